// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Gives traits to about half of the packets. From the others it takes bytes off the front, as the end of a tunnel in XDP does,
 * and leaves metadata of its own: it stands for a program that knows nothing of traits. TC says what is read then.
 */
#include "foreign.bpf.h"

#include <linux/pkt_cls.h>
#include <packet_traits/traits.bpf.h>

TRAIT_KEY(of_flow, __u64);
#ifndef SHORT_AREA
TRAIT_KEY(of_packet, __u64, TRAIT_KEEP_FIRST);
#endif

/* what XDP does: set before packets are sent */
__u64 seal; /* 1: seals areas */
__s64 shift; /* bytes that it takes off the front of some packets after it gave them traits */
__u64 pop; /* bytes that it takes off the front of packets without traits */
__u64 leave; /* bytes of metadata that it leaves with them */

/* what happened */
__u64 given; /* packets that got traits */
__u64 refused; /* packets for which a call failed */
__u64 stale; /* packets without, in a buffer that has an earlier packet's area in front of them */
__u64 read[2]; /* values that were the packet's own, of the flow region and of the packet region */
__u64 absent[2]; /* packets with traits of which none was read there */
__u64 wrong[2]; /* values of another packet */
__u64 moved_read[2]; /* values that were the packet's own, where the front was moved */

/* The packet's number is in its last 8 bytes; 0: it has no traits. Set in its highest bit: its front was moved. */
#define FRAME_LEN 400
#define MOVED (1ULL << 63)

/* Writes the packet's front, as its arrival would: of what the kernel uses again it writes nothing. */
static __always_inline int number_packet(struct xdp_md *ctx, __u64 number)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	int i;

	if (data + FRAME_LEN > end)
		return -1;
	for (i = 0; i < 256; i += 8)
		*(volatile __u64 *)(data + i) = 0x1112131415161718 + i;
	*(__u64 *)(data + FRAME_LEN - 8) = number;
	return 0;
}

static __always_inline int give(struct xdp_md *ctx, _Bool move)
{
	__u64 number = ++given;

	if (number_packet(ctx, move ? number | MOVED : number) || trait_set(ctx, of_flow, number))
		return -1;
#ifndef SHORT_AREA
	if (trait_set(ctx, of_packet, number))
		return -1;
#endif
	if (seal && trait_seal(ctx))
		return -1;
	return move ? bpf_xdp_adjust_head(ctx, shift) : 0;
}

static __always_inline int take_off(struct xdp_md *ctx)
{
	__u64 at = __trait_kernel_field(__trait_kern_ctx(ctx), struct xdp_buff___traits, data);

	if (number_packet(ctx, 0))
		return -1;
	if (__trait_kernel_word(at - 8, 0) == trait_area.flow_nonce)
		stale++;
	if (pop && bpf_xdp_adjust_head(ctx, pop))
		return -1;
	if (!leave)
		return 0;
	if (leave > FOREIGN_MAX || bpf_xdp_adjust_meta(ctx, -(int)leave))
		return -1;
	foreign_write((void *)(long)ctx->data_meta, (void *)(long)ctx->data, leave);
	return 0;
}

SEC("xdp")
int receive(struct xdp_md *ctx)
{
	__u32 random = bpf_get_prandom_u32();

	if (random & 1 ? give(ctx, shift && random & 2) : take_off(ctx))
		refused++;
	return XDP_PASS;
}

static __always_inline void judge(int region, __u64 number, long len, __u64 value)
{
	if (len == sizeof(value) && number && value == (number & ~MOVED))
		++*(number & MOVED ? &moved_read[region] : &read[region]);
	else if (len == -ENOENT)
		absent[region] += number != 0;
	else
		wrong[region]++;
}

SEC("tc")
int look(struct __sk_buff *ctx)
{
	__u64 number = 0, value = 0;
	long len;

	if (bpf_skb_load_bytes(ctx, ctx->len - sizeof(number), &number, sizeof(number)))
		return TC_ACT_SHOT;
	len = trait_get(ctx, of_flow, &value);
	judge(0, number, len, value);
#ifndef SHORT_AREA
	value = 0;
	len = trait_get(ctx, of_packet, &value);
	judge(1, number, len, value);
#endif
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
