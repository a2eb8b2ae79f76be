// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * The tracer's own entry: XDP gives packets an id and the time, and reports them. Used where no one else assigns ids.
 */
#include "trace.bpf.h"
#include <linux/if_ether.h>

TRAIT_KEY_NAMED(trace_id, "trace.id", __u64, TRAIT_KEEP_FIRST);
TRAIT_KEY_NAMED(trace_entered, "trace.entered", __u64, TRAIT_KEEP_FIRST);

/* Set when the programs at the other points are in place. */
__u64 armed SEC(".data.armed");

#define VLAN_TAGS 2
#define AREA_MAX 256

/* A packet's traits while its area is made anew. */
struct saved {
	__u64 word[AREA_MAX / 8];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct saved);
} saved SEC(".maps");

/* Offset of the network header; 0 if it is not IP. */
static __always_inline __u32 find_network(__u64 data, __u32 len)
{
	__u32 at = ETH_HLEN;
	__be16 type = 0;
	int i;

	if (bpf_probe_read_kernel(&type, sizeof(type), (const void *)(data + ETH_HLEN - 2)))
		return 0;
	for (i = 0; i < VLAN_TAGS; i++) {
		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		if (bpf_probe_read_kernel(&type, sizeof(type), (const void *)(data + at + 2)))
			return 0;
		at += 4;
	}
	return at < len && (type == bpf_htons(ETH_P_IP) || type == bpf_htons(ETH_P_IPV6)) ? at : 0;
}

/* Reads the headers that conditions are about from the frame itself: every packet pays for this. */
static __always_inline void read_frame(struct xdp_md *ctx, struct headers *h)
{
	void *at = __trait_ctx_ptr(struct xdp_md, ctx, data), *end = __trait_ctx_ptr(struct xdp_md, ctx, data_end);
	struct ethhdr *eth = at;
	__be16 *port, type;
	__u8 *ip;
	int i;

	if ((void *)(eth + 1) > end)
		return;
	type = eth->h_proto;
	at = eth + 1;
#pragma unroll
	for (i = 0; i < VLAN_TAGS; i++) {
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
	} else {
		return;
	}
	if (h->word[FIELD_PROTOCOL][0] != IPPROTO_TCP && h->word[FIELD_PROTOCOL][0] != IPPROTO_UDP)
		return;
	port = at;
	if ((void *)(port + 2) > end)
		return;
	h->word[FIELD_SOURCE_PORT][0] = bpf_ntohs(port[0]);
	h->word[FIELD_DESTINATION_PORT][0] = bpf_ntohs(port[1]);
}

/*
 * The skb behind the frame, if there is one: XDP starts with no metadata, but a packet that comes over a veth, or to
 * generic XDP, is an skb and has its own. Native veth keeps the skb beside the buffer (veth_xdp_rcv_skb); before generic
 * XDP runs, a tracepoint sees the skb on this CPU. That it is the same packet shows in where its buffer starts.
 */
static __always_inline struct sk_buff *skb_of(struct xdp_buff___trace *xdp, const struct net_device___trace *dev)
{
	const struct rtnl_link_ops___trace *ops = dev->rtnl_link_ops;
	struct before_xdp *before;
	struct sk_buff___trace *skb;
	__u32 zero = 0;

	before = bpf_map_lookup_elem(&before_xdp, &zero);
	if (before && before->head && before->head == (__u64)xdp->data_hard_start)
		return bpf_rdonly_cast((const void *)before->skb, bpf_core_type_id_kernel(struct sk_buff___trace));
	if (ops && bpf_core_type_exists(struct veth_xdp_buff___trace) &&
	    (__u32)__trait_kernel_word((__u64)ops->kind, 0) == *(const __u32 *)"veth") {
		/* no cast: where veth is a module, so is the type, and casts know only the kernel's own */
		skb = (void *)__trait_kernel_word((__u64)xdp + bpf_core_field_offset(struct veth_xdp_buff___trace, skb),
						  0);
		skb = bpf_rdonly_cast(skb, bpf_core_type_id_kernel(struct sk_buff___trace));
		if (skb && skb->head == xdp->data_hard_start)
			return (struct sk_buff *)skb;
	}
	return (void *)0;
}

/* Takes over what the packet brought along. Returns whether it was an id of this tracer. */
static __always_inline _Bool carry_over(struct xdp_md *ctx, struct sk_buff *skb)
{
	__u32 zero = 0, flow_len = trait_area.flow_len, packet_len = trait_area.packet_len, i;
	struct saved *old = bpf_map_lookup_elem(&saved, &zero);
	struct trait_view view;
	__u64 id = 0, at;
	int offset;
	void *area;

	if (!old || !trait_area.flow_nonce || packet_len + flow_len > AREA_MAX || __trait_view_skb(skb, &view))
		return 0;
	at = slot_in(&view, config.id_bit, config.id_dist, config.id_merge);
	if (at)
		id = __trait_kernel_word(at, 0);
	__builtin_memset(old, 0, sizeof(*old));
	if (view.packet_end && packet_len)
		bpf_probe_read_kernel(old, packet_len, (const void *)(view.packet_end - packet_len));
	bpf_probe_read_kernel((void *)old + packet_len, flow_len, (const void *)(view.flow_end - flow_len));
	offset = trait_xdp_open(ctx);
	if (offset < 0)
		return 0;
	area = __trait_xdp_area_at(ctx, offset);
	if (!area)
		return 0;
	/* all but the nonces: those are in place */
#pragma unroll
	for (i = 0; i < AREA_MAX / 8; i++)
		if (8 * i + 8 <= packet_len + flow_len && 8 * i + 8 != packet_len && 8 * i + 8 != packet_len + flow_len)
			((volatile __u64 *)area)[i] = old->word[i];
	return id >> 48 == config.run;
}

static __always_inline void report(struct xdp_md *ctx, struct xdp_buff___trace *xdp,
				   const struct net_device___trace *dev, __u32 len, __u32 network, __u8 flags)
{
	struct trait_view view = {};
	__u64 id = 0, entered = 0, now = bpf_ktime_get_ns();
	struct event *e;

	trait_get(ctx, trace_id, &id);
	trait_get(ctx, trace_entered, &entered);
	if (config.slower_ns && !late(now, entered))
		return;
	if (config.only_drops)
		return;
	/* the area is open and fills the metadata, or is sealed */
	view.flow_end = (__u64)xdp->data;
	view.packet_end = view.flow_end - trait_area.flow_len;
	view.flow_present = __trait_kernel_word(view.flow_end - 16, 0);
	if (trait_area.packet_len)
		view.packet_present = __trait_kernel_word(view.packet_end - 16, 0);
	if (!traits_hold(&view))
		return;
	e = reserve(POINT_XDP);
	if (!e)
		return;
	__builtin_memset(e, 0, sizeof(*e));
	e->id = id;
	e->at = now;
	e->entered = entered;
	e->len = len;
	e->value = XDP_PASS;
	e->point = POINT_XDP;
	e->cpu = bpf_get_smp_processor_id();
	e->network = network;
	e->flags = flags | EVENT_MAC | EVENT_ENTERED;
	set_device(e, dev);
	append(e, &view, (__u64)xdp->data, len);
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
}

SEC("xdp")
int trace_xdp(struct xdp_md *ctx)
{
	struct xdp_buff___trace *xdp = bpf_cast_to_kern_ctx(ctx);
	const struct net_device___trace *dev = xdp->rxq->dev;
	__u32 len = (__u64)xdp->data_end - (__u64)xdp->data, network;
	struct sk_buff *skb = skb_of(xdp, dev);
	__u8 flags = 0;

	if (!skb || !carry_over(ctx, skb)) {
		if (config.header_conditions) {
			struct headers h = {};

			read_frame(ctx, &h);
			if (!headers_hold(&h))
				goto pass;
		}
		if (config.sample > 1 && __sync_fetch_and_add(&counters.sampled, 1) % config.sample)
			goto pass;
		if (!armed) {
			__sync_fetch_and_add(&counters.too_early, 1);
			goto pass;
		}
		if (trait_set(ctx, trace_id, config.run << 48 | (__sync_fetch_and_add(&counters.next_id, 1) + 1)) ||
		    trait_set(ctx, trace_entered, bpf_ktime_get_ns())) {
			__sync_fetch_and_add(&counters.no_room, 1);
			goto pass;
		}
		flags = EVENT_NEW_ID;
	}
	trait_seal(ctx);
	network = find_network((__u64)xdp->data, len);
	report(ctx, xdp, dev, len, network, flags);
	return XDP_PASS;
pass:
	trait_seal(ctx);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
