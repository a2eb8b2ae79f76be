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

__u64 came_back; /* packets in a buffer in which an earlier packet had left an area, where they could show it */
__u64 cleared; /* of these, those in whose buffer there were zeroes in its place */

/* The buffers of packets with traits, by address: what was left in them is seen if they are used again as they are. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 14);
	__type(key, __u64);
	__type(value, __u32);
} buffers SEC(".maps");

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

/* A packet whose buffer may hold an area in front of `at`. `had` is the headroom of the packet that left it there. */
static __always_inline void look_for_area(__u64 buffer, __u64 at, __u32 had, __u64 *found)
{
	__u32 *headroom = bpf_map_lookup_elem(&buffers, &buffer);

	if (is_area(at))
		__sync_fetch_and_add(found, 1);
	if (!headroom || *headroom != had)
		return;
	__sync_fetch_and_add(&came_back, 1);
	if (!__trait_kernel_word(at - 16, 1))
		__sync_fetch_and_add(&cleared, 1);
}

/* Whether it gave traits to the packet. */
static __always_inline _Bool set_and_seal(struct xdp_md *ctx)
{
	struct xdp_buff___traits *xdp = bpf_cast_to_kern_ctx(ctx);
	struct found found = {};
	__u64 buffer = (__u64)xdp->data_hard_start;
	__u32 headroom;
	int err;

	if (!find(ctx, &found))
		return 0;
	headroom = (__u64)xdp->data - buffer;
	if (even_only && found.seq & 1) {
		if (xdp->data_meta == xdp->data)
			look_for_area(buffer, (__u64)xdp->data, headroom, &stale);
		bpf_map_delete_elem(&buffers, &buffer);
		return 0;
	}
	if (!set_all(ctx))
		return 0;
	if (!lowest || headroom < lowest)
		lowest = headroom;
	else if (headroom > lowest)
		look_for_area(buffer, buffer + lowest, lowest, &stale_below);
	bpf_map_update_elem(&buffers, &buffer, &headroom, BPF_ANY);
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
