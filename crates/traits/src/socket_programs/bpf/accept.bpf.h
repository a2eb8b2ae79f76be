/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * A socket begins a connection, or to listen: it forgets an earlier one's traits, and gets those of the SYN.
 */
#ifndef __SOCKETS_ACCEPT_BPF_H
#define __SOCKETS_ACCEPT_BPF_H

#include "receive.bpf.h"

/* What another CPU is just writing is forgotten too: it began before. */
static __always_inline void forget_last(struct receive *receive)
{
	__sync_fetch_and_add(&receive->epoch, 1);
}

/* Forgets what an earlier connection of the socket received. */
static __always_inline void forget(struct receive *receive)
{
	receive->syn_saved = 0;
	receive->syn.present = 0;
	forget_last(receive);
}

#define SOCK_OPS(ctx, field) __trait_ctx_load(struct bpf_sock_ops, ctx, field)

static __always_inline void accept_syn(struct bpf_sock_ops *ctx, struct receive *receive)
{
	const void *skb = __trait_skb_of(ctx);
	struct trait_sender_values *values;
	struct syn_key key = {};

	/* what the listener had of a connection of its own; if it had none, do not forget data that has overtaken this */
	if (receive->used)
		forget(receive);
	receive->used = 1;
	key.netns = bpf_get_netns_cookie(ctx);
	if (SOCK_OPS(ctx, family) == AF_INET) {
		map_ipv4(key.saddr, SOCK_OPS(ctx, remote_ip4));
		map_ipv4(key.daddr, SOCK_OPS(ctx, local_ip4));
	} else {
		key.saddr[0] = SOCK_OPS(ctx, remote_ip6[0]) | (__u64)SOCK_OPS(ctx, remote_ip6[1]) << 32;
		key.saddr[1] = SOCK_OPS(ctx, remote_ip6[2]) | (__u64)SOCK_OPS(ctx, remote_ip6[3]) << 32;
		key.daddr[0] = SOCK_OPS(ctx, local_ip6[0]) | (__u64)SOCK_OPS(ctx, local_ip6[1]) << 32;
		key.daddr[1] = SOCK_OPS(ctx, local_ip6[2]) | (__u64)SOCK_OPS(ctx, local_ip6[3]) << 32;
	}
	key.sport = SOCK_OPS(ctx, remote_port) >> 16;
	key.dport = __builtin_bswap16(SOCK_OPS(ctx, local_port));
	key.sequence = SOCK_OPS(ctx, rcv_nxt) - 1;
	if (receive->wants & WANTS_SYN) {
		values = bpf_map_lookup_elem(&pt_syns, &key);
		if (values) {
			receive->syn.present = values->present;
			receive->syn.revision = values->revision;
			copy_words(receive->syn.word, values->word, VALUE_WORDS);
			receive->syn_saved = 1;
			bpf_map_delete_elem(&pt_syns, &key);
		}
	}
	/* what ended the handshake may have data */
	if (skb && receive->wants & WANTS_RECEIVED)
		KEEP_LAST(ctx, skb, __trait_kernel_field(__trait_kern_ctx(ctx), struct bpf_sock_ops_kern___traits, sk),
			  receive);
}

SEC("sockops")
int pt_sockops(struct bpf_sock_ops *ctx)
{
	struct receive *receive;
	struct bpf_sock *sk;

	if (ctx->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB &&
	    ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB)
		return 1;
	sk = ctx->sk;
	if (!sk)
		return 1;
	receive = bpf_sk_storage_get(&pt_receive, sk, 0, 0);
	if (!receive)
		return 1;
	if (ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
		accept_syn(ctx, receive);
	} else {
		forget(receive);
		receive->used = ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB;
	}
	return 1;
}

#endif /* __SOCKETS_ACCEPT_BPF_H */
