// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Sets every trait in XDP, drops packets by a trait at several places, and reads the traits where the kernel drops. */
#include "record.bpf.h"

#include <linux/pkt_cls.h>

SEC("xdp")
int assign(struct xdp_md *ctx)
{
	if (set_all(ctx) && trait_seal(ctx))
		return XDP_ABORTED;
	return XDP_PASS;
}

/* Whether the packet has an odd number. */
#define IS_ODD(ctx) (trait_get_or(ctx, seq, 0) & 1)

SEC("tc")
int tc_drops_odd(struct __sk_buff *ctx)
{
	return IS_ODD(ctx) ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

SEC("netfilter")
int netfilter_drops_odd(struct bpf_nf_ctx *ctx)
{
	return IS_ODD(ctx) ? 0 /* NF_DROP */ : 1 /* NF_ACCEPT */;
}

SEC("socket")
int socket_drops_odd(struct __sk_buff *ctx)
{
	return IS_ODD(ctx) ? 0 : -1;
}

SEC("socket")
int socket_keeps_all(struct __sk_buff *ctx __attribute__((unused)))
{
	return -1;
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(dropped, struct sk_buff *skb, void *location, int reason)
{
	struct record r = { .stage = STAGE_KFREE, .extra = reason };

	READ_VIEW(skb, &r);
	if (r.present)
		submit(&r);
	return 0;
}
