/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Saving a SYN's traits until its connection is accepted; accept.bpf.h gives them to the connection.
 */
#ifndef __SOCKETS_SYN_BPF_H
#define __SOCKETS_SYN_BPF_H

#include "state.bpf.h"

/* A TCP header and what belongs to it. */
struct segment {
	__u16 sport; /* network byte order */
	__u16 dport;
	__u32 sequence;
	__u32 payload_len;
	_Bool syn;
	_Bool ack;
};

static __always_inline void read_segment(const void *skb, struct segment *segment)
{
	__u64 header = SKB(skb, head) + SKB(skb, transport_header);
	__u64 first = __trait_kernel_word(header, 0), second = __trait_kernel_word(header, 1);
	__u8 flags = second >> 40;

	segment->sport = first;
	segment->dport = first >> 16;
	segment->sequence = __builtin_bswap32(first >> 32);
	segment->syn = flags & 2;
	segment->ack = flags & 16;
	segment->payload_len = SKB(skb, data) + SKB(skb, len) - header - ((second >> 36 & 0xf) << 2);
}

/* ::ffff:a.b.c.d as two words */
static __always_inline void map_ipv4(__u64 *address, __u32 ipv4)
{
	address[0] = 0;
	address[1] = (__u64)ipv4 << 32 | 0xffff0000;
}

static __always_inline void save_syn(struct __sk_buff *ctx, const void *skb)
{
	struct trait_sender_values values = {};
	struct syn_key key = {};
	struct trait_view view;
	struct segment segment;
	__u64 header, sk;
	int err;

	read_segment(skb, &segment);
	sk = SKB(skb, sk);
	if (!segment.syn || segment.ack || !sk)
		return;
	header = SKB(skb, head) + SKB(skb, network_header);
	key.netns = __trait_kernel_field(__trait_kernel_field(sk, struct sock___traits, __sk_common.skc_net.net),
					 struct net___traits, net_cookie);
	if (SKB(skb, protocol) == __builtin_bswap16(ETH_P_IP)) {
		__u64 addresses = __trait_kernel_word(header + 12, 0);

		map_ipv4(key.saddr, addresses);
		map_ipv4(key.daddr, addresses >> 32);
	} else {
		key.saddr[0] = __trait_kernel_word(header + 8, 0);
		key.saddr[1] = __trait_kernel_word(header + 8, 1);
		key.daddr[0] = __trait_kernel_word(header + 24, 0);
		key.daddr[1] = __trait_kernel_word(header + 24, 1);
	}
	key.sport = segment.sport;
	key.dport = segment.dport;
	key.sequence = segment.sequence;
	err = VIEW(ctx, skb, &view);
	keep(&values, &view, err);
	bpf_map_update_elem(&pt_syns, &key, &values, BPF_ANY);
}

#endif /* __SOCKETS_SYN_BPF_H */
