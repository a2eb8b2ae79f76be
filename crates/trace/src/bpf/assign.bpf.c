// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * The tracer's own entry: XDP gives packets an id and the time, and reports them. Used where no one else assigns ids.
 * assign_flow.bpf.c is the same for registries without a packet region.
 */
#include "frame.bpf.h"

#ifndef OWN_MERGE
#define OWN_MERGE TRAIT_KEEP_FIRST
#endif

TRAIT_KEY_NAMED(trace_id, "trace.id", __u64, OWN_MERGE);
TRAIT_KEY_NAMED(trace_entered, "trace.entered", __u64, OWN_MERGE);

#define AREA_MAX 256

/* A packet's traits while its area is made again. */
struct saved {
	__u64 word[AREA_MAX / 8];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct saved);
} saved SEC(".maps");

/* Reads what is behind the extension headers of IPv6 that may be at `at`, an address. */
static __noinline void read_behind_extensions(__u64 at, __u64 end, struct headers *h)
{
	struct extensions extensions = { .at = at, .end = end, .protocol = h->word[FIELD_PROTOCOL][0] };

	skip_extensions(&extensions);
	h->word[FIELD_PROTOCOL][0] = extensions.protocol;
	if (!extensions.later)
		read_ports(extensions.at, end, h);
}

/*
 * Reads the headers that conditions are about from the frame itself, which ends at this address: every packet pays for
 * this.
 */
static __always_inline void read_frame(struct xdp_md *ctx, __u64 end_address, _Bool bare, struct headers *h)
{
	void *at = __trait_ctx_ptr(struct xdp_md, ctx, data), *end = __trait_ctx_ptr(struct xdp_md, ctx, data_end);
	__u64 left;
	struct ethhdr *eth = at;
	__be16 *port, type;
	__u8 *ip;
	int i;

	if ((void *)(eth + 1) > end)
		return;
	if (bare) {
		type = *(__u8 *)at >> 4 == 4 ? bpf_htons(ETH_P_IP) : *(__u8 *)at >> 4 == 6 ? bpf_htons(ETH_P_IPV6) : 0;
	} else {
		type = eth->h_proto;
		at = eth + 1;
	}
#pragma unroll
	for (i = 0; i < VLAN_TAGS && !bare; i++) {
		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		if (at + 4 > end)
			return;
		type = ((__be16 *)at)[1];
		at += 4;
	}
	ip = at;
	if (type == bpf_htons(ETH_P_IP)) {
		if ((void *)(ip + 20) > end)
			return;
		h->word[FIELD_FAMILY][0] = 4;
		h->word[FIELD_PROTOCOL][0] = ip[9];
		h->word[FIELD_SOURCE][0] = *(__u32 *)&ip[12];
		h->word[FIELD_DESTINATION][0] = *(__u32 *)&ip[16];
		h->word[FIELD_LENGTH][0] = end - at;
		at += (ip[0] & 15) * 4;
		if ((ip[6] & 0x1f) || ip[7])
			return;
	} else if (type == bpf_htons(ETH_P_IPV6)) {
		if ((void *)(ip + 40) > end)
			return;
		h->word[FIELD_FAMILY][0] = 6;
		h->word[FIELD_PROTOCOL][0] = ip[6];
		__builtin_memcpy(h->word[FIELD_SOURCE], &ip[8], 16);
		__builtin_memcpy(h->word[FIELD_DESTINATION], &ip[24], 16);
		h->word[FIELD_LENGTH][0] = end - at;
		at += 40;
		if (!has_ports(ip[6])) {
			left = end - at;
			__trait_keep_number(left);
			read_behind_extensions(end_address - left, end_address, h);
			return;
		}
	} else {
		return;
	}
	if (!has_ports(h->word[FIELD_PROTOCOL][0]))
		return;
	port = at;
	if ((void *)(port + 2) > end)
		return;
	h->word[FIELD_SOURCE_PORT][0] = bpf_ntohs(port[0]);
	h->word[FIELD_DESTINATION_PORT][0] = bpf_ntohs(port[1]);
	h->ports = 1;
}

/*
 * Has an id that TC gave the packet be as if XDP had: GRO compares the flow region, and would merge it with no other. Only
 * where the tracer's keys are in the packet region.
 */
static __always_inline void move_tc_id(struct saved *old, const struct trait_view *view)
{
	__u32 flow_len = trait_area.flow_len, packet_len = trait_area.packet_len;
	void *packet_end = (void *)old + packet_len, *flow_end = packet_end + flow_len;
	__u64 *tc_id_at = flow_end - config.tc_id_dist, *tc_entered_at = flow_end - config.tc_entered_dist;

	*(__u64 *)(packet_end - (config.id_dist - flow_len)) = tc_id(view);
	*(__u64 *)(packet_end - (config.entered_dist - flow_len)) = entry_time(view);
	*(__u64 *)(packet_end - 16) |= config.id_bit | config.entered_bit;
	*tc_id_at = 0;
	*tc_entered_at = 0;
	*(__u64 *)(flow_end - 16) &= ~(config.tc_id_bit | config.tc_entered_bit);
}

/* Whether the word at an offset in an area has values, or says which there are. */
static __always_inline _Bool is_of_values(__u32 at)
{
	__u32 flow_len = trait_area.flow_len, packet_len = trait_area.packet_len, end = packet_len + flow_len;

	if (at < packet_len)
		return at + __TRAIT_PACKET_FOOTER + 8 <= packet_len || at + 16 == packet_len;
	return at + __TRAIT_FLOW_FOOTER + 8 <= end || at + 16 == end;
}

/* What a packet brought along. */
enum {
	BROUGHT_NOTHING,
	BROUGHT_TRAITS,
	BROUGHT_ID, /* and it is of this tracer */
};

/* Takes over what the packet brought along. */
static __always_inline int carry_over(struct xdp_md *ctx, const void *skb)
{
	__u32 zero = 0, flow_len = trait_area.flow_len, packet_len = trait_area.packet_len, i;
	struct saved *old = bpf_map_lookup_elem(&saved, &zero);
	struct trait_view view;
	__u64 id;
	int offset;
	void *area;

	if (!old || !trait_area.flow_nonce || packet_len + flow_len > AREA_MAX || __trait_view_skb(skb, &view))
		return BROUGHT_NOTHING;
	id = traced_id(&view);
	__builtin_memset(old, 0, sizeof(*old));
	if (view.packet_end && packet_len)
		bpf_probe_read_kernel(old, packet_len, (const void *)(view.packet_end - packet_len));
	bpf_probe_read_kernel((void *)old + packet_len, flow_len, (const void *)(view.flow_end - flow_len));
	/* of a packet that was merged, keys to discard are left out */
	if (packet_len)
		*(__u64 *)((void *)old + packet_len - 16) = view.packet_present;
	if (OWN_MERGE == TRAIT_KEEP_FIRST && config.tc_id_bit && tc_id(&view))
		move_tc_id(old, &view);
	offset = __trait_xdp_open(ctx);
	if (offset < 0)
		return BROUGHT_NOTHING;
	area = __trait_xdp_area_at(ctx, offset);
	if (!area)
		return BROUGHT_NOTHING;
	/* all but what is this place's and this area's: it is in place */
#pragma unroll
	for (i = 0; i < AREA_MAX / 8; i++)
		if (is_of_values(8 * i))
			((__u64 *)area)[i] = old->word[i];
	return id ? BROUGHT_ID : BROUGHT_TRAITS;
}

/* A view of the traits: the area is open and fills the metadata, or is sealed. */
static __always_inline void view_area(const void *xdp, struct trait_view *view)
{
	view->flow_end = XDP(xdp, data);
	view->packet_end = view->flow_end - trait_area.flow_len;
	view->flow_present = __trait_kernel_word(view->flow_end - 16, 0);
	if (trait_area.packet_len)
		view->packet_present = __trait_kernel_word(view->packet_end - 16, 0);
}

static __always_inline void report(const void *xdp, __u64 dev, __u32 len, _Bool bare, __u8 flags)
{
	struct trait_view view = {};
	__u64 entered, now = bpf_ktime_get_ns();
	struct event *e;

	if (config.only_drops)
		return;
	view_area(xdp, &view);
	entered = entry_time(&view);
	if (config.slower_ns && !late(now, entered))
		return;
	if (!traits_hold(&view))
		return;
	e = reserve(POINT_XDP);
	if (!e)
		return;
	__builtin_memset(e, 0, sizeof(*e));
	e->id = traced_id(&view);
	e->at = now;
	e->entered = entered;
	e->len = len;
	e->value = XDP_PASS;
	e->point = POINT_XDP;
	e->cpu = bpf_get_smp_processor_id();
	e->network = bare ? 0 : find_network(XDP(xdp, data), len);
	e->flags = flags | (bare ? 0 : EVENT_MAC) | EVENT_ENTERED;
	set_device(e, dev);
	append(e, &view, XDP(xdp, data), len);
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
}

SEC("xdp")
int trace_xdp(struct xdp_md *ctx)
{
	const void *xdp = __trait_kern_ctx(ctx);
	__u64 dev = DEV_OF(xdp);
	__u32 len = XDP(xdp, data_end) - XDP(xdp, data);
	const void *skb = skb_of(xdp, dev);
	_Bool bare = is_bare(dev);
	int brought = skb ? carry_over(ctx, skb) : BROUGHT_NOTHING;
	__u8 flags = 0;

	if (brought != BROUGHT_ID) {
		if (config.header_conditions) {
			struct headers h = {};

			read_frame(ctx, XDP(xdp, data_end), bare, &h);
			if (!headers_hold(&h))
				goto pass;
		}
		if (config.sample > 1 && __sync_fetch_and_add(&counters.sampled, 1) % config.sample)
			goto pass;
		/* trace_receive counts it */
		if (!armed)
			goto pass;
		if (trait_set(ctx, trace_id, config.run << 48 | (__sync_fetch_and_add(&counters.next_id, 1) + 1)) ||
		    trait_set(ctx, trace_entered, bpf_ktime_get_ns())) {
			__sync_fetch_and_add(&counters.no_room, 1);
			goto pass;
		}
		flags = EVENT_NEW_ID;
	}
	trait_seal(ctx);
	report(xdp, dev, len, bare, flags);
	return XDP_PASS;
pass:
	trait_seal(ctx);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
