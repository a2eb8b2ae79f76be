// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Reads at every egress hook what the sender says of its packets to TEST_PORT. Of a record, `len` is the number that the
 * datagram begins with, a TCP segment's payload's length or a later fragment's offset in bytes; `extra` is the mark and
 * what else is known of the packet. The Rust side is socket_send/main.rs.
 */
#include "record.bpf.h"
#include <packet_traits/socket.bpf.h>

#define NF_ACCEPT 1
#define TCX_PASS 0

struct net___test {
	__u64 net_cookie;
} __attribute__((preserve_access_index));

struct net_device___test {
	struct {
		struct net___test *net;
	} nd_net;
} __attribute__((preserve_access_index));

struct sk_buff___test {
	unsigned int len;
	unsigned int data_len;
	__u32 mark;
	__be16 protocol;
	__u16 transport_header;
	__u16 network_header;
	unsigned char *head;
	unsigned char *data;
	struct net_device___test *dev;
} __attribute__((preserve_access_index));

#define SKB(skb, field) __trait_kernel_field(skb, struct sk_buff___test, field)

/* the sender's namespace; set before traffic starts */
__u64 netns_cookie;

/* bits of record.extra above the mark */
#define IS_TCP (1ULL << 32)
#define IS_SYN (1ULL << 33)
#define IS_FIN (1ULL << 34)
#define IS_FRAGMENT (1ULL << 35) /* not the first one */

#define READ_SENDER(get, is_set, ctx, r)                                                                               \
	({                                                                                                             \
		if (get(ctx, tenant, &(r)->tenant) == sizeof((r)->tenant))                                             \
			(r)->present |= HAS_TENANT;                                                                    \
		if (get(ctx, port, &(r)->port) == sizeof((r)->port))                                                   \
			(r)->present |= HAS_PORT;                                                                      \
		if (is_set(ctx, marked))                                                                               \
			(r)->present |= HAS_MARKED;                                                                    \
		if (get(ctx, seq, &(r)->seq) == sizeof((r)->seq))                                                      \
			(r)->present |= HAS_SEQ;                                                                       \
		if (get(ctx, rx_ts, &(r)->rx_ts) == sizeof((r)->rx_ts))                                                \
			(r)->present |= HAS_RX_TS;                                                                     \
		if (get(ctx, src, &(r)->src) == sizeof((r)->src))                                                      \
			(r)->present |= HAS_SRC;                                                                       \
		if (get(ctx, tiny, &(r)->tiny) == sizeof((r)->tiny))                                                   \
			(r)->present |= HAS_TINY;                                                                      \
	})

/* Whether the packet is one to TEST_PORT, or a later fragment; then says which. */
static __always_inline _Bool describe(const void *skb, struct record *r)
{
	__u64 head = SKB(skb, head), data = SKB(skb, data);
	__u64 network = head + SKB(skb, network_header), transport = head + SKB(skb, transport_header);
	__u64 linear_end = data + SKB(skb, len) - SKB(skb, data_len);
	__u64 ip = __trait_kernel_word(network, 0), first, second;
	__u32 offset;
	__u8 proto;

	if (SKB(skb, protocol) == bpf_htons(ETH_P_IPV6)) {
		proto = ip >> 48;
		offset = 0;
		if (proto == IPPROTO_FRAGMENT) {
			first = __trait_kernel_word(network + sizeof(struct ipv6hdr), 0);
			proto = first;
			offset = bpf_ntohs(first >> 16) & ~7;
			transport = network + sizeof(struct ipv6hdr) + 8;
		}
	} else if (SKB(skb, protocol) == bpf_htons(ETH_P_IP)) {
		proto = __trait_kernel_word(network, 1) >> 8;
		offset = (bpf_ntohs(ip >> 48) & 0x1fff) * 8;
	} else {
		return 0;
	}
	r->extra = SKB(skb, mark);
	if (offset) {
		r->extra |= IS_FRAGMENT;
		r->len = offset;
		return 1;
	}
	first = __trait_kernel_word(transport, 0);
	second = __trait_kernel_word(transport, 1);
	if ((first >> 16 & 0xffff) != bpf_htons(TEST_PORT))
		return 0;
	if (proto == IPPROTO_UDP) {
		/* the payload may be in pages */
		r->len = linear_end < transport + 16 ? -1 : bpf_be64_to_cpu(second);
		return 1;
	}
	r->extra |= IS_TCP | (second >> 40 & 2 ? IS_SYN : 0) | (second >> 40 & 1 ? IS_FIN : 0);
	r->len = data + SKB(skb, len) - transport - ((second >> 36 & 0xf) << 2);
	return proto == IPPROTO_TCP;
}

static __always_inline int netfilter(struct bpf_nf_ctx *ctx, __u32 stage)
{
	struct record r = { .stage = stage };

	if (describe(__trait_skb_of(ctx), &r)) {
		READ_SENDER(trait_sender_get, trait_sender_is_set, ctx, &r);
		submit(&r);
	}
	return NF_ACCEPT;
}

SEC("netfilter")
int local_out(struct bpf_nf_ctx *ctx)
{
	return netfilter(ctx, STAGE_LOCAL_OUT);
}

SEC("netfilter")
int post_routing(struct bpf_nf_ctx *ctx)
{
	return netfilter(ctx, STAGE_POST_ROUTING);
}

SEC("cgroup_skb/egress")
int cgroup_egress(struct __sk_buff *ctx)
{
	struct record r = { .stage = STAGE_CGROUP_EGRESS };

	if (describe(__trait_skb_of(ctx), &r)) {
		READ_SENDER(trait_sender_get, trait_sender_is_set, ctx, &r);
		submit(&r);
	}
	return 1;
}

SEC("tcx/egress")
int tc_egress(struct __sk_buff *ctx)
{
	struct record r = { .stage = STAGE_TC_EGRESS };

	if (describe(__trait_skb_of(ctx), &r)) {
		READ_SENDER(trait_tc_sender_get, trait_tc_sender_is_set, ctx, &r);
		submit(&r);
	}
	return TCX_PASS;
}

/* What the other end gets: nothing of it is the sender's there. */
SEC("tcx/ingress")
int tc_ingress(struct __sk_buff *ctx)
{
	struct record r = { .stage = STAGE_TC_INGRESS };

	READ_SENDER(trait_tc_sender_get, trait_tc_sender_is_set, ctx, &r);
	r.extra = ctx->mark;
	submit(&r);
	return TCX_PASS;
}

/* in front of the queue of a device in the sender's namespace */
SEC("tp_btf/net_dev_queue")
int BPF_PROG(net_dev_queue, struct sk_buff *skb)
{
	struct record r = { .stage = STAGE_NET_DEV_QUEUE };
	struct sk_buff___test *s = (void *)skb;

	if (s->dev->nd_net.net->net_cookie == netns_cookie && describe(skb, &r)) {
		READ_SENDER(trait_sender_get, trait_sender_is_set, skb, &r);
		submit(&r);
	}
	return 0;
}
