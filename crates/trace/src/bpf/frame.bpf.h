/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Frames in XDP: where the IP header is, and the skb that a frame may have behind it.
 */
#ifndef __TRACE_FRAME_BPF_H
#define __TRACE_FRAME_BPF_H

#include "trace.bpf.h"
#include <linux/if_ether.h>

#define VLAN_TAGS 2

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

#endif /* __TRACE_FRAME_BPF_H */
