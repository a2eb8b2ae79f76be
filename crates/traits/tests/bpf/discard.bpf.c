// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Numbers packets by two keys: one stays when packets are merged, the other is then absent. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <packet_traits/rfc.bpf.h>
#include <packet_traits/traits.bpf.h>

TRAIT_KEY(first, __u64, TRAIT_KEEP_FIRST);
TRAIT_KEY(only, __u64, TRAIT_DISCARD);
TRAIT_KEY(flow, __u64);

/* the number of `only`, for the calls by number; its bytes follow `first` */
__u64 only_number;
__u64 unsealed; /* 1: XDP leaves areas open */

__u64 given;

/* what a stage read of packets with numbers */
struct read {
	__u64 whole; /* both keys, and they are equal */
	__u64 discarded; /* `first`, but not `only` */
	__u64 wrong; /* anything else */
	__u64 bytes; /* of the longest packet */
};
struct read at_tc, at_tc_local, at_cgroup;

static __always_inline int give_number(struct xdp_md *ctx)
{
	__u64 number = __sync_fetch_and_add(&given, 1) + 1, read = 0;

	trait_set(ctx, flow, 7);
	trait_set(ctx, first, number);
	trait_set(ctx, only, number);
	if (!unsealed)
		trait_seal(ctx);
	/* in XDP it is the packet alone */
	if (trait_get(ctx, only, &read) != sizeof(read) || read != number)
		__sync_fetch_and_add(&at_tc.wrong, 1);
	return XDP_PASS;
}

SEC("xdp")
int number(struct xdp_md *ctx)
{
	return give_number(ctx);
}

SEC("xdp.frags")
int number_frags(struct xdp_md *ctx)
{
	return give_number(ctx);
}

static __always_inline void judge(struct read *stage, __u32 len, __u64 first_is, long got, __u64 only_is)
{
	if (got == sizeof(only_is) && only_is == first_is)
		__sync_fetch_and_add(&stage->whole, 1);
	else if (got == -ENOENT)
		__sync_fetch_and_add(&stage->discarded, 1);
	else
		__sync_fetch_and_add(&stage->wrong, 1);
	if (len > stage->bytes)
		stage->bytes = len;
}

/* By name, by a view and, where it can be, by number: all read the same. */
#define READ(ctx, stage, len, by_number)                                                                               \
	({                                                                                                             \
		__u64 first_is = 0, only_is = 0, again = 0;                                                            \
		struct trait_view view;                                                                                \
                                                                                                                       \
		if (trait_get(ctx, first, &first_is) > 0 && !trait_view(ctx, &view)) {                                 \
			long got = trait_get(ctx, only, &only_is);                                                     \
                                                                                                                       \
			judge(stage, len, first_is, got, only_is);                                                     \
			if (trait_view_get(&view, only, &again) != got || again != only_is)                            \
				__sync_fetch_and_add(&(stage)->wrong, 1);                                              \
			again = 0;                                                                                     \
			if (by_number != got || again != only_is)                                                      \
				__sync_fetch_and_add(&(stage)->wrong, 1);                                              \
		}                                                                                                      \
	})

SEC("tc")
int look_tc(struct __sk_buff *ctx)
{
	/* not what neighbours ask each other */
	if (ctx->len > 500)
		READ(ctx, &at_tc, ctx->len, bpf_skb_trait_get(ctx, only_number, &again, sizeof(again)));
	return TC_ACT_UNSPEC;
}

/* Of the EtherType for local experiments (IEEE 802, 0x88b5), behind tags or not. */
SEC("tc")
int look_tc_local(struct __sk_buff *ctx)
{
	const __u16 local = __trait_be16(0x88b5);
	__u16 type = 0;
	int i;

	for (i = 0; i < 4; i++)
		if (!bpf_skb_load_bytes(ctx, 12 + 4 * i, &type, sizeof(type)) && type == local) {
			READ(ctx, &at_tc_local, ctx->len, bpf_skb_trait_get(ctx, only_number, &again, sizeof(again)));
			break;
		}
	return TC_ACT_UNSPEC;
}

SEC("cgroup_skb/ingress")
int look_cgroup(struct __sk_buff *ctx)
{
	READ(ctx, &at_cgroup, ctx->len, bpf_skb_trait_get(ctx, only_number, &again, sizeof(again)));
	return 1;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
