// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * The tracer's entry behind another XDP program: TC ingress gives packets an id and the time, if that program has
 * given them traits, and reports them. It goes into the flow region, the one that TC can write. GRO compares that: here
 * it is over, but packets that go on to another namespace are not merged there, unless assign.bpf.c is there and moves the
 * id to the packet region.
 */
#include "look.bpf.h"

TRAIT_KEY_NAMED(trace_tc_id, "trace.tc_id", __u64);
TRAIT_KEY_NAMED(trace_tc_entered, "trace.tc_entered", __u64);

#define TC_PASS -1 /* TCX_NEXT, include/uapi/linux/bpf.h */

/* Whether the packet is to be followed, by what it is and has when it comes here. */
static __trait_noinline_for_stack _Bool wanted(const void *skb, const struct trait_view *view)
{
	if (!traits_hold(view))
		return 0;
	if (config.header_conditions) {
		struct headers h = {};

		read_skb(skb, &h);
		if (!headers_hold(&h))
			return 0;
	}
	return config.sample <= 1 || __sync_fetch_and_add(&counters.sampled, 1) % config.sample == 0;
}

SEC("tc")
int trace_tc_enter(struct __sk_buff *ctx)
{
	const void *skb = __trait_skb_of(ctx);
	struct detail detail = { .point = POINT_TC_INGRESS };
	struct before_xdp *before;
	struct trait_view view;
	__u32 zero = 0;

	/* generic XDP is over */
	before = bpf_map_lookup_elem(&before_xdp, &zero);
	if (before && before->buffer)
		before->buffer = 0;
	if (__trait_view_skb(skb, &view))
		return TC_PASS;
	if (!traced_id(&view)) {
		if (!wanted(skb, &view))
			return TC_PASS;
		if (!armed) {
			__sync_fetch_and_add(&counters.too_early, 1);
			return TC_PASS;
		}
		if (view.flow_present & config.tc_id_bit) {
			__sync_fetch_and_add(&counters.taken, 1);
			return TC_PASS;
		}
		/* the time first: who has an id has one */
		if (trait_tc_set(ctx, trace_tc_entered, bpf_ktime_get_ns()) ||
		    trait_tc_set(ctx, trace_tc_id,
				 config.run << 48 | (__sync_fetch_and_add(&counters.next_id, 1) + 1))) {
			__sync_fetch_and_add(&counters.shared, 1);
			return TC_PASS;
		}
		detail.new_id = 1;
	}
	if (look(skb, &detail))
		__sync_fetch_and_add(&counters.matched, 1);
	return TC_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
