// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * A border: at the host's end of a link to a network namespace that is not trusted. What lies in front of a packet, its traits
 * and whatever an earlier packet left in the same memory, is wiped: of all that goes out there, and of what comes in with
 * metadata. A packet that cannot be wiped is dropped.
 *
 * The kernel lets a TC program write the visible metadata at most. The rest is reached by having it make room between the
 * packet's link header and its IP header, which it fills with zeroes, and take it out again (bpf_skb_adjust_room in
 * net/core/filter.c): the link header is moved down and back, over all that was in between.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <packet_traits/traits.bpf.h>

/* TCX_NEXT, and what a clsact filter returns for the next one */
#define NEXT TC_ACT_UNSPEC

/* What bpf_skb_adjust_room takes at most: more headroom than any driver leaves. */
#define ROOM_MAX 0xfffU

/* Where the type is in a frame with one VLAN tag. */
#define TYPE_BEHIND_TAG (ETH_HLEN + 4 - 2)

/* What came over the border in each direction; the Rust side is `Crossed`. */
struct pt_crossed {
	__u64 packets;
	__u64 wiped;
	__u64 dropped;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2); /* in, out */
	__type(key, __u32);
	__type(value, struct pt_crossed);
} pt_crossed SEC(".maps");

/* Has the kernel's and the packet's idea of its protocol be IP, which bpf_skb_adjust_room insists on, or what it was. */
static __noinline int set_type(struct __sk_buff *ctx, __u16 type)
{
	_Bool tagged = ctx->vlan_present;
	int err;

	/* taking a tag out is what has the kernel look at the type behind it (vlan_set_encap_proto) */
	if (!tagged) {
		err = bpf_skb_vlan_push(ctx, bpf_htons(ETH_P_8021Q), 0);
		if (err)
			return err;
	}
	/* the tag that is there goes into the packet, and this one is beside it */
	err = bpf_skb_vlan_push(ctx, bpf_htons(ETH_P_8021Q), 0);
	if (err)
		return err;
	err = bpf_skb_store_bytes(ctx, TYPE_BEHIND_TAG, &type, sizeof(type), 0);
	if (err)
		return err;
	err = bpf_skb_vlan_pop(ctx);
	if (err || tagged)
		return err;
	return bpf_skb_vlan_pop(ctx);
}

static const char zeroes[__TRAIT_META_MAX] = {};

/*
 * Zeroes the visible metadata, which Linux 6.19 and later move along with the link header, and returns its length. 0 if the
 * kernel cannot; it moves none then. 6.18 may refuse it, and moves none either.
 */
static __noinline int zero_metadata(struct __sk_buff *ctx)
{
	struct __trait_dynptr meta;
	__u32 len = (__u64)__trait_ctx_ptr(struct __sk_buff, ctx, data) -
		    (__u64)__trait_ctx_ptr(struct __sk_buff, ctx, data_meta);

	if (bpf_dynptr_from_skb_meta == (void *)0 || !len || len > __TRAIT_META_MAX)
		return 0;
	if (bpf_dynptr_from_skb_meta(ctx, 0, (struct bpf_dynptr *)&meta))
		return 0;
	bpf_dynptr_write((struct bpf_dynptr *)&meta, 0, (void *)zeroes, len, 0);
	return len;
}

static __always_inline __u32 headroom(struct __sk_buff *ctx)
{
	const void *skb = __trait_skb_of(ctx);

	return __trait_kernel_field(skb, struct sk_buff___traits, data) -
	       __trait_kernel_field(skb, struct sk_buff___traits, head);
}

/* Wipes what is in front of the packet. Returns 0, or an error after which the packet may be damaged. */
static __noinline int wipe(struct __sk_buff *ctx)
{
	const __u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET;
	_Bool is_ip = ctx->protocol == bpf_htons(ETH_P_IP) || ctx->protocol == bpf_htons(ETH_P_IPV6);
	const void *skb = __trait_skb_of(ctx);
	__u64 head = __trait_kernel_field(skb, struct sk_buff___traits, head);
	__u64 shared = head + __trait_kernel_field(skb, struct sk_buff___traits, end);
	__u32 room, visible;
	__u16 type = 0;
	int err;

	/* packets behind others have memory of their own in front of them, which shows when these are taken apart */
	if (__trait_kernel_field(shared, struct skb_shared_info___traits, frag_list)) {
		err = bpf_skb_pull_data(ctx, ctx->len);
		if (err)
			return err;
	}
	if (!is_ip) {
		__u16 link_len = __trait_kernel_field(skb, struct sk_buff___traits, network_header) -
				 __trait_kernel_field(skb, struct sk_buff___traits, mac_header);

		if (link_len != ETH_HLEN)
			return -EOPNOTSUPP;
		err = bpf_skb_load_bytes(ctx, ETH_HLEN - sizeof(type), &type, sizeof(type));
		if (err)
			return err;
		err = set_type(ctx, bpf_htons(ETH_P_IP));
		if (err)
			return err;
	}
	visible = zero_metadata(ctx);
	/* metadata that the kernel moves needs as much room below what is made */
	room = headroom(ctx) - visible;
	if (room > ROOM_MAX)
		room = ROOM_MAX;
	if (room) {
		err = bpf_skb_adjust_room(ctx, room, BPF_ADJ_ROOM_MAC, flags);
		if (err)
			return err;
		err = bpf_skb_adjust_room(ctx, -(int)room, BPF_ADJ_ROOM_MAC, flags);
		if (err)
			return err;
	}
	if (visible) {
		/* the end of a flow region, on which all of an area depends */
		__u64 data = __trait_kernel_field(skb, struct sk_buff___traits, data);

		if (__trait_kernel_word(data - 16, 0) || __trait_kernel_word(data - 16, 1))
			return -EBUSY;
	}
	/* leaves pieces of the link header in front of it */
	return is_ip ? 0 : set_type(ctx, type);
}

static __always_inline int cross(struct __sk_buff *ctx, __u32 direction, _Bool wipes)
{
	struct pt_crossed *crossed = bpf_map_lookup_elem(&pt_crossed, &direction);

	if (!crossed)
		return TC_ACT_SHOT;
	crossed->packets++;
	if (!wipes)
		return NEXT;
	if (wipe(ctx)) {
		crossed->dropped++;
		return TC_ACT_SHOT;
	}
	crossed->wiped++;
	return NEXT;
}

/* Whether the interface has an XDP program, which then is what attached the metadata, or let it pass. */
static __always_inline _Bool has_xdp(struct __sk_buff *ctx)
{
	__u64 device = __trait_kernel_field(__trait_skb_of(ctx), struct sk_buff___traits, dev);
	__u64 state = device + bpf_core_field_offset(struct net_device___traits, xdp_state);
	int i;

	for (i = 0; i < 3; i++)
		if (__trait_kernel_word(state + i * 16, 0) || __trait_kernel_word(state + i * 16, 1))
			return 1;
	return 0;
}

SEC("tc/ingress")
int border_in(struct __sk_buff *ctx)
{
	_Bool has_metadata =
		__trait_ctx_ptr(struct __sk_buff, ctx, data_meta) != __trait_ctx_ptr(struct __sk_buff, ctx, data);

	return cross(ctx, 0, has_metadata && !has_xdp(ctx));
}

SEC("tc/egress")
int border_out(struct __sk_buff *ctx)
{
	return cross(ctx, 1, 1);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
