// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Sets every trait in XDP and reads them at every stage an skb passes. */
#include "record.bpf.h"

#include <linux/pkt_cls.h>

SEC("xdp")
int assign(struct xdp_md *ctx)
{
	if (set_all(ctx) && trait_seal(ctx))
		return XDP_ABORTED;
	return XDP_PASS;
}

SEC("xdp")
int assign_open(struct xdp_md *ctx)
{
	set_all(ctx);
	return XDP_PASS;
}

/* All packets of a flow get the same values of keys that would stop GRO. */
SEC("xdp")
int assign_flow(struct xdp_md *ctx)
{
	if (set_all_of_tenant(ctx, 7) && trait_seal(ctx))
		return XDP_ABORTED;
	return XDP_PASS;
}

/* As assign, for a UDP datagram behind VLAN tags over IPv4. */
SEC("xdp")
int assign_tagged(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct record r = { .stage = STAGE_XDP, .present = HAS_ALL, .tiny = 1, .tenant = 2 };
	__be16 *type = data + 12;
	__be64 *number;
	int tags;

	for (tags = 0; tags < 2; tags++) {
		if ((void *)(type + 3) > end)
			return XDP_PASS;
		if (*type != bpf_htons(ETH_P_8021Q))
			break;
		type += 2;
	}
	number = (void *)(type + 1) + sizeof(struct iphdr) + sizeof(struct udphdr);
	if (!tags || (void *)(number + 1) > end)
		return XDP_PASS;
	r.seq = bpf_be64_to_cpu(*number);
	r.rx_ts = bpf_ktime_get_ns();
	if (trait_set(ctx, tenant, r.tenant) || trait_set(ctx, port, r.port) || trait_set_flag(ctx, marked) ||
	    trait_set(ctx, seq, r.seq) || trait_set(ctx, rx_ts, r.rx_ts) || trait_set(ctx, src, r.src) ||
	    trait_set(ctx, tiny, r.tiny) || trait_seal(ctx))
		return XDP_ABORTED;
	submit(&r);
	return XDP_PASS;
}

#define REPORT(ctx, stage_, len_, extra_, read)                                                                        \
	({                                                                                                             \
		struct record __r = { .stage = (stage_), .len = (len_), .extra = (extra_) };                           \
                                                                                                                       \
		read(ctx, &__r);                                                                                       \
		if (__r.present)                                                                                       \
			submit(&__r);                                                                                  \
	})

/* An XDP program that a packet meets later, on another interface. */
SEC("xdp")
int read_again(struct xdp_md *ctx)
{
	REPORT(ctx, STAGE_XDP_AGAIN, ctx->data_end - ctx->data, 0, READ_EACH);
	return XDP_PASS;
}

SEC("tc")
int tc_ingress(struct __sk_buff *ctx)
{
	struct record r = { .stage = STAGE_TC_INGRESS, .len = ctx->len };

	READ_VIEW(ctx, &r);
	/* the direct calls read the same */
	if (r.present == HAS_ALL) {
		__u32 who = 0;
		__u64 number = 0;

		if (trait_tc_get(ctx, tenant, &who) != sizeof(who) || who != r.tenant ||
		    trait_tc_get(ctx, seq, &number) != sizeof(number) || number != r.seq ||
		    !trait_tc_is_set(ctx, marked))
			r.present = HAS_ALL + 1;
	}
	if (r.present)
		submit(&r);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int tc_egress(struct __sk_buff *ctx)
{
	REPORT(ctx, STAGE_TC_EGRESS, ctx->len, 0, READ_EACH);
	return TC_ACT_UNSPEC;
}

/* netfilter programs see no length without looking into the skb */
#define NETFILTER(name, stage)                                                                                         \
	SEC("netfilter") int name(struct bpf_nf_ctx *ctx)                                                              \
	{                                                                                                              \
		REPORT(ctx, stage, 0, 0, READ_EACH);                                                                   \
		return 1; /* NF_ACCEPT */                                                                              \
	}

NETFILTER(pre_routing, STAGE_PRE_ROUTING)
NETFILTER(local_in, STAGE_LOCAL_IN)
NETFILTER(forward, STAGE_FORWARD)
NETFILTER(post_routing, STAGE_POST_ROUTING)

SEC("cgroup_skb/ingress")
int cgroup_ingress(struct __sk_buff *ctx)
{
	REPORT(ctx, STAGE_CGROUP_INGRESS, ctx->len, 0, READ_EACH);
	return 1;
}

SEC("socket")
int socket_filter(struct __sk_buff *ctx)
{
	REPORT(ctx, STAGE_SOCKET_FILTER, ctx->len, 0, READ_EACH);
	return -1;
}

SEC("socket")
int packet_filter(struct __sk_buff *ctx)
{
	REPORT(ctx, STAGE_PACKET_FILTER, ctx->len, 0, READ_VIEW);
	return -1;
}

SEC("sockops")
int sock_ops(struct bpf_sock_ops *ctx)
{
	REPORT(ctx, STAGE_SOCK_OPS, 0, ctx->op, READ_EACH);
	return 1;
}

SEC("tp_btf/skb_copy_datagram_iovec")
int BPF_PROG(delivery, struct sk_buff *skb, int len)
{
	REPORT(skb, STAGE_DELIVERY, len, 0, READ_VIEW);
	return 0;
}

SEC("tp_btf/consume_skb")
int BPF_PROG(consume, struct sk_buff *skb)
{
	REPORT(skb, STAGE_CONSUME, 0, 0, READ_EACH);
	return 0;
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(kfree, struct sk_buff *skb, void *location, int reason)
{
	REPORT(skb, STAGE_KFREE, 0, reason, READ_VIEW);
	return 0;
}
