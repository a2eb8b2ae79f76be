// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Traits of every size, in whichever region: XDP sets those of every packet, and the egress hooks report what the sender of
 * a packet says of it. SMALL and LARGE are the merge policies of short and of long values. The Rust side is common/sizes.rs.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <packet_traits/socket.bpf.h>

#ifndef SMALL
#define SMALL TRAIT_BLOCK
#endif
#ifndef LARGE
#define LARGE TRAIT_BLOCK
#endif

struct words {
	__u64 word[2];
};

TRAIT_FLAG(flag, SMALL);
TRAIT_KEY(one, __u8, SMALL);
TRAIT_KEY(two, __u16, SMALL);
TRAIT_KEY(four, __u32, LARGE);
TRAIT_KEY(eight, __u64, LARGE);
TRAIT_KEY(sixteen, struct words, LARGE);

SEC("xdp")
int assign(struct xdp_md *ctx)
{
	struct words words = { { 0xe1e2e3e4e5e6e7e8, 0xf1f2f3f4f5f6f7f8 } };

	if (trait_set_flag(ctx, flag) || trait_set(ctx, one, 0xa1) || trait_set(ctx, two, 0xb1b2) ||
	    trait_set(ctx, four, 0xc1c2c3c4) || trait_set(ctx, eight, 0xd1d2d3d4d5d6d7d8) ||
	    trait_set(ctx, sixteen, words))
		return XDP_ABORTED;
	return trait_seal(ctx) ? XDP_ABORTED : XDP_PASS;
}

enum hook {
	HOOK_LOCAL_OUT,
	HOOK_CGROUP_EGRESS,
	HOOK_TC_EGRESS,
};

struct seen {
	__u32 hook;
	__u32 present; /* bit 0: flag; then the others as they are declared */
	struct words sixteen;
	__u64 eight;
	__u32 four;
	__u16 two;
	__u8 one;
	__u8 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} seen SEC(".maps");

#define REPORT(hook_, get, is_set, ctx)                                                                                \
	({                                                                                                             \
		struct seen __seen = { .hook = (hook_) };                                                              \
                                                                                                                       \
		__seen.present = is_set(ctx, flag);                                                                    \
		__seen.present |= (get(ctx, one, &__seen.one) == 1) << 1;                                              \
		__seen.present |= (get(ctx, two, &__seen.two) == 2) << 2;                                              \
		__seen.present |= (get(ctx, four, &__seen.four) == 4) << 3;                                            \
		__seen.present |= (get(ctx, eight, &__seen.eight) == 8) << 4;                                          \
		__seen.present |= (get(ctx, sixteen, &__seen.sixteen) == 16) << 5;                                     \
		bpf_ringbuf_output(&seen, &__seen, sizeof(__seen), 0);                                                 \
	})

SEC("netfilter")
int local_out(struct bpf_nf_ctx *ctx)
{
	REPORT(HOOK_LOCAL_OUT, trait_sender_get, trait_sender_is_set, ctx);
	return 1; /* NF_ACCEPT */
}

SEC("cgroup_skb/egress")
int cgroup_egress(struct __sk_buff *ctx)
{
	REPORT(HOOK_CGROUP_EGRESS, trait_sender_get, trait_sender_is_set, ctx);
	return 1;
}

SEC("tc")
int tc_egress(struct __sk_buff *ctx)
{
	REPORT(HOOK_TC_EGRESS, trait_tc_sender_get, trait_tc_sender_is_set, ctx);
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
