/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Leaving packets: binds a datagram's own traits to it.
 */
#ifndef __SOCKETS_SEND_BPF_H
#define __SOCKETS_SEND_BPF_H

#include "state.bpf.h"

SEC("cgroup_skb/egress")
int pt_egress(struct __sk_buff *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct trait_sender *send;
	__u64 skb;

	if (!sk)
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->protocol != IPPROTO_UDP)
		return 1;
	send = bpf_sk_storage_get(&pt_send, sk, 0, 0);
	if (!send)
		return 1;
	skb = (__u64)__trait_skb_of(ctx);
	if (send->state == TRAIT_NEXT_ARMED && __trait_is_current(send->task, send->pid)) {
		send->skb = skb;
		send->state = TRAIT_NEXT_BOUND;
	} else if (send->state == TRAIT_NEXT_BOUND && send->skb == skb) {
		/* a later datagram in the memory of the one that had them */
		send->state = TRAIT_NEXT_NONE;
	}
	return 1;
}

#endif /* __SOCKETS_SEND_BPF_H */
