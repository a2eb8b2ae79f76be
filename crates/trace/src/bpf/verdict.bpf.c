// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * The verdict of another XDP program: runs when that program returns, and before it to know the id of a
 * packet that it may write its own traits over. Loaded once for each such program.
 */
#include "devices.bpf.h"
#include "frame.bpf.h"
#include "look.bpf.h"

struct xdp_buff;

/* The program, filled in before the object is loaded; XdpProgram in ../xdp.rs. */
const volatile struct {
	__u64 id;
	__u64 name[2];
} target SEC(".rodata.target");

/*
 * The packet's traits as the program leaves them: in front of the frame; or, as XDP starts with no metadata, in the skb
 * that is behind it.
 */
static __always_inline __u64 find_id(const void *xdp, __u64 dev, struct trait_view *view)
{
	__u64 data = XDP(xdp, data), id;
	long meta_len = data - XDP(xdp, data_meta);
	const void *skb;

	if (!trait_area.flow_nonce)
		return 0;
	if (meta_len >= (long)trait_area.flow_len &&
	    !__trait_view_kernel(XDP(xdp, data_hard_start), data, meta_len, view)) {
		id = traced_id(view);
		if (id)
			return id;
	}
	skb = skb_of(xdp, dev);
	return skb && !__trait_view_skb(skb, view) ? traced_id(view) : 0;
}

/* What a packet had when the program was called. */
struct brought {
	__u64 xdp;
	__u64 id;
	__u64 entered;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct brought);
} brought SEC(".maps");

/* Only if the tracer assigns the ids: others' are assigned by such programs. */
SEC("fentry")
int BPF_PROG(trace_before_verdict, struct xdp_buff *xdp)
{
	struct trait_view view = {};
	struct brought *had;
	__u32 zero = 0;

	had = bpf_map_lookup_elem(&brought, &zero);
	if (!had)
		return 0;
	had->id = find_id(xdp, DEV_OF(xdp), &view);
	if (!had->id)
		return 0;
	had->xdp = (__u64)xdp;
	had->entered = entry_time(&view);
	return 0;
}

SEC("fexit")
int BPF_PROG(trace_verdict, struct xdp_buff *xdp, int verdict)
{
	__u64 id, now, entered, dev = DEV_OF(xdp), data = XDP(xdp, data);
	__u32 len = XDP(xdp, data_end) - data, network, zero = 0;
	struct trait_view view = {};
	struct brought *had;
	struct device device;
	struct event *e;
	_Bool bare;

	if (!config.run && !armed)
		return 0;
	if (config.only_drops && (__u32)verdict > XDP_DROP && (__u32)verdict <= XDP_REDIRECT)
		return 0;
	if (!is_traced(dev, &device)) /* bpf_prog_test_run, or an interface that shares the program */
		return 0;
	id = find_id(xdp, dev, &view);
	entered = entry_time(&view);
	if (config.run && !id) {
		had = bpf_map_lookup_elem(&brought, &zero);
		if (!had || had->xdp != (__u64)xdp)
			return 0;
		id = had->id;
		entered = had->entered;
	}
	if (!id)
		return 0;
	bare = is_bare(dev);
	network = bare ? 0 : find_network(data, len);
	if (config.header_conditions && !config.run) {
		struct headers h = {};

		if (network || bare)
			read_headers(data + network, len - network, data + len, &h);
		if (!headers_hold(&h))
			return 0;
	}
	if (!traits_hold(&view))
		return 0;
	now = bpf_ktime_get_ns();
	if (config.slower_ns && !late(now, entered))
		return 0;
	e = reserve(POINT_XDP_VERDICT);
	if (!e)
		return 0;
	__builtin_memset(e, 0, sizeof(*e));
	e->id = id;
	e->at = now;
	e->entered = entered;
	e->place = target.id;
	e->comm[0] = target.name[0];
	e->comm[1] = target.name[1];
	e->len = len;
	e->value = verdict;
	e->point = POINT_XDP_VERDICT;
	e->cpu = bpf_get_smp_processor_id();
	e->network = network;
	e->flags = (bare ? 0 : EVENT_MAC) | (entered ? EVENT_ENTERED : 0);
	set_device(e, dev);
	append(e, &view, data, len);
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
