// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Gives datagrams to TEST_PORT the traits that their number has bits for, after it has left garbage where the area will be.
 * The Rust side is socket_udp/values.rs, which also says, by KEYS, which keys there are: bit, name, type, merge policy.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <packet_traits/traits.bpf.h>
#include <bpf/bpf_endian.h>

#define TEST_PORT 7777

#ifndef KEYS
#define KEYS(X) X(0, tenant, __u32, TRAIT_BLOCK)
#endif

/* what every measured driver has room for (AREA_LEN_PORTABLE) */
#define GARBAGE_LEN 216

struct wide {
	__u64 word[2];
};

#define DECLARE(bit, name, type, merge) TRAIT_KEY(name, type, merge);
KEYS(DECLARE)

/* Bit of a number: what was set is deleted again. */
#define DELETE_BIT 32

/* In a number: what is deleted again leaves its bytes behind, as with a program that does not use trait_del. */
#define LEAVE (1ULL << 62)

/* In a number: before the others are set, all keys are, and cleared. */
#define CLEAR (1ULL << 63)

static __always_inline void leave_garbage(struct xdp_md *ctx)
{
	__u32 *meta, *data, i;

	if (bpf_xdp_adjust_meta(ctx, -GARBAGE_LEN))
		return;
	meta = (void *)(long)ctx->data_meta;
	data = (void *)(long)ctx->data;
	if (meta + GARBAGE_LEN / 4 <= data)
		for (i = 0; i < GARBAGE_LEN / 4; i++)
			meta[i] = 0xeeeeeeee;
	bpf_xdp_adjust_meta(ctx, GARBAGE_LEN);
}

/* A value that follows from the number and the key: the first bytes of this. */
static __always_inline struct wide pattern(__u64 number, __u32 bit)
{
	struct wide wide = {};

	wide.word[0] = (number + 1) * 0x9e3779b97f4a7c15 + bit;
	wide.word[1] = ~wide.word[0];
	return wide;
}

static __always_inline int turn_off(struct xdp_md *ctx, const volatile struct trait_key_desc *key, __u8 merge)
{
	void *area = __trait_xdp_area(ctx);

	return area ? __trait_area_del(area, key->bit, merge) : -ENOENT;
}

/* Global functions, which the verifier checks one by one: it tries both values of every bit. */
#define DEFINE(bit, name, type, merge)                                                                                 \
	__noinline int set_##name(struct xdp_md *ctx, __u64 number)                                                    \
	{                                                                                                              \
		struct wide wide = pattern(number, bit);                                                               \
		type value = *(type *)&wide;                                                                           \
                                                                                                                       \
		return number >> (bit) & 1 ? trait_set(ctx, name, value) : 0;                                          \
	}                                                                                                              \
                                                                                                                       \
	__noinline int delete_##name(struct xdp_md *ctx, __u64 number)                                                 \
	{                                                                                                              \
		if (!(number >> ((bit) + DELETE_BIT) & 1))                                                             \
			return 0;                                                                                      \
		return number & LEAVE ? turn_off(ctx, __trait_key(name)) : trait_del(ctx, name);                       \
	}
KEYS(DEFINE)

SEC("xdp")
int assign(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	__be64 *payload = (void *)(udp + 1);
	__u64 number;

	if ((void *)(payload + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->protocol != IPPROTO_UDP ||
	    udp->dest != bpf_htons(TEST_PORT))
		return XDP_PASS;
	number = bpf_be64_to_cpu(*payload);
	leave_garbage(ctx);
	if (number & CLEAR) {
#define SET_ANY(bit, name, type, merge)                                                                                \
	if (set_##name(ctx, ~0ULL))                                                                                    \
		return XDP_ABORTED;
		KEYS(SET_ANY)
		if (trait_clear(ctx))
			return XDP_ABORTED;
	}
#define SET(bit, name, type, merge)                                                                                    \
	if (set_##name(ctx, number))                                                                                   \
		return XDP_ABORTED;
	KEYS(SET)
#define DELETE(bit, name, type, merge)                                                                                 \
	if (delete_##name(ctx, number))                                                                                \
		return XDP_ABORTED;
	KEYS(DELETE)
	trait_seal(ctx); /* there may be no area */
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
