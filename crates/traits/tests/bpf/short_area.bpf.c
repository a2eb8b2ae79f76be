// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* An area of one key, and what is read of it. Each packet's number, in network order, is its last 8 bytes. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <packet_traits/traits.bpf.h>
#include <bpf/bpf_endian.h>

TRAIT_KEY(number, __u64);

#define ANOTHER_HEADROOM 0xffffffffffffffff /* the number of a packet by which only its headroom is published */

__u64 push; /* bytes that XDP pushes onto it */

__u64 published;
__u64 right;
__u64 absent;
__u64 wrong;

SEC("xdp")
int assign(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end, *data = (void *)(long)ctx->data;
	__u32 at = (end - data - sizeof(__u64)) & 0x1ff;
	__u64 number;

	if (data + at + sizeof(number) > end)
		return XDP_ABORTED;
	number = bpf_be64_to_cpu(*(__u64 *)(data + at));
	if (number == ANOTHER_HEADROOM && bpf_xdp_adjust_head(ctx, -(int)(push & 0xff)))
		return XDP_ABORTED;
	if (trait_set(ctx, number, number))
		return XDP_ABORTED;
	if (number != ANOTHER_HEADROOM)
		return XDP_PASS;
	__sync_fetch_and_add(&published, 1);
	return XDP_DROP;
}

SEC("tc")
int read(struct __sk_buff *ctx)
{
	__be64 last;
	__u64 number;

	if (bpf_skb_load_bytes(ctx, ctx->len - sizeof(last), &last, sizeof(last)))
		return TC_ACT_SHOT;
	if (trait_get(ctx, number, &number) < 0)
		__sync_fetch_and_add(&absent, 1);
	else if (number == bpf_be64_to_cpu(last))
		__sync_fetch_and_add(&right, 1);
	else
		__sync_fetch_and_add(&wrong, 1);
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
