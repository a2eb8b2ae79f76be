/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Frames in XDP: where the IP header is, and the skb that a frame may have behind it.
 */
#ifndef __TRACE_FRAME_BPF_H
#define __TRACE_FRAME_BPF_H

#include "trace.bpf.h"
#include <linux/if_ether.h>

/* The interface a frame came in by. */
#define DEV_OF(xdp) __trait_kernel_field(XDP(xdp, rxq), struct xdp_rxq_info___traits, dev)

/* include/uapi/linux/if_arp.h, which needs headers that there are not for BPF */
enum {
	ARPHRD_PPP = 512,
	ARPHRD_RAWIP = 519,
	ARPHRD_TUNNEL = 768,
	ARPHRD_TUNNEL6 = 769,
	ARPHRD_SIT = 776,
	ARPHRD_NONE = 0xfffe,
};

/* Whether packets of an interface begin with their IP header: those of tun, WireGuard, PPP, IPIP and SIT do. */
static __always_inline _Bool is_bare(__u64 dev)
{
	switch (DEV(dev, type)) {
	case ARPHRD_NONE:
	case ARPHRD_PPP:
	case ARPHRD_RAWIP:
	case ARPHRD_TUNNEL:
	case ARPHRD_TUNNEL6:
	case ARPHRD_SIT:
		return 1;
	}
	return 0;
}

/* Offset of the network header behind that of Ethernet; 0 if it is not IP. */
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

/*
 * The skb behind the frame, if there is one: XDP starts with no metadata, but a packet that comes over a veth, or to
 * generic XDP, is an skb and has its own. Native veth keeps the skb beside the buffer (veth_xdp_rcv_skb), or a tracepoint
 * has seen it when it was sent; before generic XDP runs, a tracepoint sees the skb on this CPU. That it is the same packet
 * shows in where its buffer starts, and the latter's in its interface: it may be gone, and its buffer another frame's.
 */
static __always_inline const void *skb_of(const void *xdp, __u64 dev)
{
	__u64 ops = DEV(dev, rtnl_link_ops), buffer = XDP(xdp, data_hard_start), skb, kind;
	struct before_xdp *before;
	__u64 *was_sent;
	__u32 zero = 0;

	before = bpf_map_lookup_elem(&before_xdp, &zero);
	if (before && before->buffer && before->buffer == buffer && SKB(before->skb, dev) == dev)
		return SKB_AT(before->skb);
	if (!ops)
		return (void *)0;
	kind = __trait_kernel_field(ops, struct rtnl_link_ops___traits, kind);
	if (__trait_kernel_load(__u32, kind) != *(const __u32 *)"veth")
		return (void *)0;
	if (VETH_KEEPS_SKB) {
		skb = __trait_kernel_field(xdp, struct veth_xdp_buff___traits, skb);
	} else {
		was_sent = bpf_map_lookup_elem(&sent, &buffer);
		skb = was_sent ? *was_sent : 0;
	}
	return skb && SKB(skb, head) == buffer ? SKB_AT(skb) : (void *)0;
}

#endif /* __TRACE_FRAME_BPF_H */
