// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Puts traits on packets, as a link of a chain of programs (bpf_tail_call) in which others touch the packet too. */
#include "record.bpf.h"

/* what XDP does: set before traffic starts */
__u64 seal; /* 1: seals the area */
__u64 even_only; /* 1: gives traits to packets with an even number only, the others go on to the next program */

/* what happened */
__u64 sealed; /* packets whose area was sealed */
__u64 seal_error; /* the last error of trait_seal, negated */
__u64 set_error; /* the last error of a set, negated */
__u64 stale; /* packets without traits that came in a buffer in which an earlier packet had left an area */
__u64 lowest; /* the lowest headroom of a packet with traits */
__u64 stale_below; /* packets with more headroom that have an earlier packet's area there */

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} next SEC(".maps");

/* Whether there is an area in front of this address. */
static __always_inline _Bool is_area(__u64 at)
{
	return __trait_kernel_word(at - 16, 1) == trait_area.flow_nonce;
}

/* Whether it gave traits to the packet. */
static __always_inline _Bool set_and_seal(struct xdp_md *ctx)
{
	struct xdp_buff___traits *xdp = bpf_cast_to_kern_ctx(ctx);
	struct found found = {};
	__u64 headroom;
	int err;

	if (!find(ctx, &found))
		return 0;
	if (even_only && found.seq & 1) {
		if (xdp->data_meta == xdp->data && is_area((__u64)xdp->data))
			__sync_fetch_and_add(&stale, 1);
		return 0;
	}
	if (!set_all(ctx))
		return 0;
	headroom = (__u64)xdp->data - (__u64)xdp->data_hard_start;
	if (!lowest || headroom < lowest)
		lowest = headroom;
	else if (headroom > lowest && is_area((__u64)xdp->data_hard_start + lowest))
		__sync_fetch_and_add(&stale_below, 1);
	if (!seal)
		return 1;
	err = trait_seal(ctx);
	if (err)
		seal_error = -err;
	else
		__sync_fetch_and_add(&sealed, 1);
	return 1;
}

SEC("xdp")
int assign_next(struct xdp_md *ctx)
{
	if (set_and_seal(ctx) && even_only)
		return XDP_PASS;
	bpf_tail_call(ctx, &next, 0);
	return XDP_PASS;
}

/* Sets one key of the packet region, and says what became of it. */
SEC("xdp")
int assign_one(struct xdp_md *ctx)
{
	struct found found = {};
	int err;

	if (!find(ctx, &found))
		return XDP_PASS;
	err = trait_set(ctx, seq, found.seq);
	if (err)
		set_error = -err;
	return XDP_PASS;
}
