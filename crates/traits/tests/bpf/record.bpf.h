/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What the kernel tests' programs share: the keys they declare, how XDP chooses values, and how every stage reports what
 * it read. The Rust side is common/record.rs.
 */
#ifndef __RECORD_BPF_H
#define __RECORD_BPF_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <packet_traits/traits.bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#define TEST_PORT 7777
#define VXLAN_PORT 4789

struct address {
	__u64 word[2];
};

TRAIT_KEY(tenant, __u32);
TRAIT_KEY(port, __u16);
TRAIT_FLAG(marked);
TRAIT_KEY(seq, __u64, TRAIT_KEEP_FIRST);
TRAIT_KEY(rx_ts, __u64, TRAIT_KEEP_FIRST);
TRAIT_KEY(src, struct address, TRAIT_KEEP_FIRST);
TRAIT_KEY(tiny, __u8, TRAIT_KEEP_FIRST);

enum stage {
	STAGE_XDP,
	STAGE_XDP_AGAIN,
	STAGE_TC_INGRESS,
	STAGE_TC_EGRESS,
	STAGE_PRE_ROUTING,
	STAGE_LOCAL_IN,
	STAGE_FORWARD,
	STAGE_POST_ROUTING,
	STAGE_CGROUP_INGRESS,
	STAGE_SOCKET_FILTER,
	STAGE_PACKET_FILTER,
	STAGE_SOCK_OPS,
	STAGE_DELIVERY,
	STAGE_CONSUME,
	STAGE_KFREE,
	STAGE_SK_SKB_VERDICT,
	STAGE_LWT_IN,
	STAGE_LWT_OUT,
	STAGE_LWT_XMIT,
	STAGE_LOCAL_OUT,
	STAGE_CGROUP_EGRESS,
	STAGE_NET_DEV_QUEUE,
};

/* bits of record.present */
enum {
	HAS_TENANT = 1,
	HAS_PORT = 2,
	HAS_MARKED = 4,
	HAS_SEQ = 8,
	HAS_RX_TS = 16,
	HAS_SRC = 32,
	HAS_TINY = 64,
	HAS_ALL = 127,
};

struct record {
	__u32 stage;
	__u32 present;
	__u64 seq;
	__u64 rx_ts;
	struct address src;
	__u32 tenant;
	__u32 len;
	__u16 port;
	__u8 tiny;
	__u8 unused[5];
	__u64 extra;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22);
} records SEC(".maps");

/* records that did not fit: a test must see 0 */
__u64 lost;
/* stages a test does not want to hear of, as bits: set before traffic starts */
__u64 muted;

static __always_inline void submit(const struct record *r)
{
	if (muted & (1ULL << r->stage))
		return;
	if (bpf_ringbuf_output(&records, (void *)r, sizeof(*r), 0))
		__sync_fetch_and_add(&lost, 1);
}

/* Reads every key with the single calls. */
#define READ_EACH(ctx, r)                                                                                              \
	({                                                                                                             \
		if (trait_get(ctx, tenant, &(r)->tenant) == sizeof((r)->tenant))                                       \
			(r)->present |= HAS_TENANT;                                                                    \
		if (trait_get(ctx, port, &(r)->port) == sizeof((r)->port))                                             \
			(r)->present |= HAS_PORT;                                                                      \
		if (trait_is_set(ctx, marked))                                                                         \
			(r)->present |= HAS_MARKED;                                                                    \
		if (trait_get(ctx, seq, &(r)->seq) == sizeof((r)->seq))                                                \
			(r)->present |= HAS_SEQ;                                                                       \
		if (trait_get(ctx, rx_ts, &(r)->rx_ts) == sizeof((r)->rx_ts))                                          \
			(r)->present |= HAS_RX_TS;                                                                     \
		if (trait_get(ctx, src, &(r)->src) == sizeof((r)->src))                                                \
			(r)->present |= HAS_SRC;                                                                       \
		if (trait_get(ctx, tiny, &(r)->tiny) == sizeof((r)->tiny))                                             \
			(r)->present |= HAS_TINY;                                                                      \
	})

/* Reads every key through a view. */
#define READ_VIEW(ctx, r)                                                                                              \
	({                                                                                                             \
		struct trait_view __view;                                                                              \
                                                                                                                       \
		if (!trait_view(ctx, &__view)) {                                                                       \
			if (trait_view_get(&__view, tenant, &(r)->tenant) == sizeof((r)->tenant))                      \
				(r)->present |= HAS_TENANT;                                                            \
			if (trait_view_get(&__view, port, &(r)->port) == sizeof((r)->port))                            \
				(r)->present |= HAS_PORT;                                                              \
			if (trait_view_is_set(&__view, marked))                                                        \
				(r)->present |= HAS_MARKED;                                                            \
			if (trait_view_get(&__view, seq, &(r)->seq) == sizeof((r)->seq))                               \
				(r)->present |= HAS_SEQ;                                                               \
			if (trait_view_get(&__view, rx_ts, &(r)->rx_ts) == sizeof((r)->rx_ts))                         \
				(r)->present |= HAS_RX_TS;                                                             \
			if (trait_view_get(&__view, src, &(r)->src) == sizeof((r)->src))                               \
				(r)->present |= HAS_SRC;                                                               \
			if (trait_view_get(&__view, tiny, &(r)->tiny) == sizeof((r)->tiny))                            \
				(r)->present |= HAS_TINY;                                                              \
		}                                                                                                      \
	})

/* Where the interesting packet is: what is set, and from what. */
struct found {
	__u64 seq;
	struct address src;
	__u16 port;
	__u8 proto;
};

static __always_inline __u64 next_number(void)
{
	static __u64 number;

	return __sync_fetch_and_add(&number, 1);
}

/*
 * Finds a UDP or TCP packet to TEST_PORT, also inside VXLAN. A UDP datagram's number is the one in its payload (network
 * order), a TCP segment's is counted.
 */
static __always_inline _Bool find(struct xdp_md *ctx, struct found *found)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	int depth;

	for (depth = 0; depth < 2; depth++) {
		struct ethhdr *eth = data;
		struct udphdr *udp;
		struct tcphdr *tcp;
		__u8 proto;

		if ((void *)(eth + 1) > end)
			return 0;
		if (eth->h_proto == bpf_htons(ETH_P_IP)) {
			struct iphdr *ip = (void *)(eth + 1);

			if ((void *)(ip + 1) > end || ip->ihl != 5)
				return 0;
			proto = ip->protocol;
			found->src.word[0] = 0;
			found->src.word[1] = ip->saddr;
			data = ip + 1;
		} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
			struct ipv6hdr *ip = (void *)(eth + 1);

			if ((void *)(ip + 1) > end)
				return 0;
			proto = ip->nexthdr;
			__builtin_memcpy(&found->src, &ip->saddr, sizeof(found->src));
			data = ip + 1;
		} else {
			return 0;
		}
		found->proto = proto;
		if (proto == IPPROTO_TCP) {
			tcp = data;
			if ((void *)(tcp + 1) > end || tcp->dest != bpf_htons(TEST_PORT))
				return 0;
			found->port = tcp->source;
			found->seq = next_number();
			return 1;
		}
		if (proto != IPPROTO_UDP)
			return 0;
		udp = data;
		if ((void *)(udp + 1) > end)
			return 0;
		if (udp->dest == bpf_htons(TEST_PORT)) {
			__be64 *number = (void *)(udp + 1);

			if ((void *)(number + 1) > end)
				return 0;
			found->port = udp->source;
			found->seq = bpf_be64_to_cpu(*number);
			return 1;
		}
		if (udp->dest != bpf_htons(VXLAN_PORT))
			return 0;
		data = (void *)(udp + 1) + 8;
	}
	return 0;
}

/* Gives the packet all traits, from its number; `tenant` is the same for all packets unless it is 0. Reports them. */
static __always_inline _Bool set_all_of_tenant(struct xdp_md *ctx, __u32 tenant)
{
	struct record r = { .stage = STAGE_XDP, .present = HAS_ALL };
	struct found found = {};

	if (!find(ctx, &found))
		return 0;
	r.seq = found.seq;
	r.rx_ts = bpf_ktime_get_ns();
	r.src = found.src;
	r.tenant = tenant ?: (__u32)found.seq * 2654435761U;
	r.port = found.port;
	r.tiny = found.seq * 7;
	r.len = ctx->data_end - ctx->data;
	if (trait_set(ctx, tenant, r.tenant) || trait_set(ctx, port, r.port) || trait_set_flag(ctx, marked) ||
	    trait_set(ctx, seq, r.seq) || trait_set(ctx, rx_ts, r.rx_ts) || trait_set(ctx, src, r.src) ||
	    trait_set(ctx, tiny, r.tiny))
		r.present = 0;
	submit(&r);
	return 1;
}

static __always_inline _Bool set_all(struct xdp_md *ctx)
{
	return set_all_of_tenant(ctx, 0);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#endif
