/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The calls of the kernel RFC "traits: Per packet metadata KV store", by key number, over the same trait area.
 *
 * Include it after traits.bpf.h, or instead of it. Code written for the RFC compiles against it unchanged; numbers are
 * those of the registry the object is bound to. Prefer the calls by name: they are checked when the object is bound,
 * and inlined; these check everything on every call and cost a function call.
 *
 *	int bpf_xdp_trait_set(struct xdp_md *xdp, u64 key, const void *val, u64 val__sz, u64 flags)
 *		0; -EINVAL key above 63 or not registered, size not 0, 1, 2, 4, 8 or 16, or flags not 0; -EBUSY the key
 *		holds values of another size; -ENOSPC no room in the headroom; -EOPNOTSUPP no metadata here, or unbound
 *	int bpf_xdp_trait_get(struct xdp_md *xdp, u64 key, void *val, u64 val__sz)
 *		size of the value; -EINVAL key above 63; -ENOENT not set; -ENOSPC the buffer is too small
 *	int bpf_xdp_trait_del(struct xdp_md *xdp, u64 key)
 *		0; -EINVAL key above 63; -ENOENT not set
 *	int bpf_xdp_trait_is_set(struct xdp_md *xdp, u64 key)
 *		0, 1; -EINVAL key above 63
 *	int bpf_skb_trait_get(struct __sk_buff *skb, u64 key, void *val, u64 val__sz), bpf_skb_trait_is_set(skb, key)
 *		as for XDP, in every program type with an skb context
 *	int bpf_skb_trait_set(...), bpf_skb_trait_del(...)
 *		-EOPNOTSUPP: see trait_tc_set for what TC can do
 *
 * Differences from the RFC, all of fixed slots: a key's size is the registered one from the start, so -EBUSY does not
 * need an earlier set; the store is full when keys are registered, not when they are set.
 */
#ifndef __PACKET_TRAITS_RFC_BPF_H
#define __PACKET_TRAITS_RFC_BPF_H

#include "traits.bpf.h"

#define TRAITS_KEY_COUNT 64

struct trait_slot {
	__u8 dist; /* bytes from the packet data back to the slot */
	__u8 size;
	__u8 merge;
	__u8 unused;
};

/* Every key of the registry when the object was bound; crates/traits/src/descriptor.rs. */
struct trait_slots_desc {
	char magic[8];
	__u64 mask; /* bit k: key k is in the table */
	struct trait_slot slot[TRAITS_KEY_COUNT];
} __attribute__((aligned(16)));

const volatile struct trait_slots_desc trait_slots __TRAIT_SECTION __weak = { .magic = "PTRSLOT" };

static __always_inline _Bool __trait_size_valid(__u64 size)
{
	return size == 0 || size == 1 || size == 2 || size == 4 || size == 8 || size == 16;
}

/* Points to `size` bytes at `dist` from the end of the area at `offset` from data_meta; NULL if they are not there. */
static __always_inline void *__trait_rfc_slot(struct xdp_md *ctx, __u32 offset, __u32 dist, __u32 size)
{
	void *meta = __trait_ctx_ptr(struct xdp_md, ctx, data_meta);
	void *data = __trait_ctx_ptr(struct xdp_md, ctx, data);
	__u32 place = __trait_below(offset + trait_area.area_len - dist, 256);

	__trait_keep_bound(place);
	if (place > __TRAIT_META_MAX)
		return (void *)0;
	meta += place;
	return meta + size > data ? (void *)0 : meta;
}

static __trait_outline int __trait_rfc_set(struct xdp_md *ctx, __u32 key, const void *val, __u32 size)
{
	const volatile struct trait_slot *slot = &trait_slots.slot[__trait_below(key, TRAITS_KEY_COUNT)];
	__u64 bit = 1ULL << __trait_below(key, TRAITS_KEY_COUNT);
	__u32 dist = slot->dist;
	__u8 merge = slot->merge;
	void *area, *to;
	int offset;

	if (!trait_area.flow_nonce)
		return -EOPNOTSUPP;
	if (!(trait_slots.mask & bit))
		return -EINVAL;
	if (slot->size != size)
		return -EBUSY;
	offset = __trait_xdp_open(ctx);
	if (offset < 0)
		return offset;
	if (size) {
		to = __trait_rfc_slot(ctx, offset, dist, size);
		if (!to)
			return -ENOSPC;
		__trait_copy(to, val, size);
	}
	area = __trait_xdp_area_at(ctx, offset);
	if (!area)
		return -ENOSPC;
	/* the two regions apart: the verifier does not know which one it is */
	if (merge != TRAIT_BLOCK) {
		if (!trait_area.packet_len)
			return -ENOSPC;
		return __trait_area_set(area, bit, 0, TRAIT_KEEP_FIRST, (void *)0, 0);
	}
	return __trait_area_set(area, bit, 0, TRAIT_BLOCK, (void *)0, 0);
}

static __trait_outline int __trait_rfc_del(struct xdp_md *ctx, __u32 key)
{
	const volatile struct trait_slot *slot = &trait_slots.slot[__trait_below(key, TRAITS_KEY_COUNT)];
	__u64 bit = 1ULL << __trait_below(key, TRAITS_KEY_COUNT);
	__u32 size = slot->size, dist = slot->dist, i;
	__u8 merge = slot->merge;
	__u8 *to;
	void *area;
	int offset, err;

	/* a key that was registered later may be set by others; where its value lies is not known here */
	if (!(trait_slots.mask & bit))
		return -ENOENT;
	offset = __trait_xdp_reopen(ctx);
	if (offset < 0)
		return offset;
	area = __trait_xdp_area_at(ctx, offset);
	if (!area)
		return -ENOENT;
	/* the two regions apart, as above */
	if (merge == TRAIT_BLOCK)
		err = __trait_area_del(area, bit, TRAIT_BLOCK);
	else if (trait_area.packet_len)
		err = __trait_area_del(area, bit, TRAIT_KEEP_FIRST);
	else
		err = -ENOENT;
	for (i = 0; !err && i < 16 && i < size; i++) {
		to = __trait_rfc_slot(ctx, offset, dist - i, 1);
		if (to)
			*to = 0;
	}
	return err;
}

/* Where a packet's traits are in kernel memory. */
struct __trait_rfc_place {
	__u64 head;
	__u64 at; /* the packet data as XDP left it */
	__u32 meta_len;
	_Bool merged; /* keys to discard are absent */
};

/*
 * Reads a key of the table. `size` is the size of the caller's buffer; values are copied in the size they have.
 */
static __trait_outline int __trait_rfc_get(const struct __trait_rfc_place *from, __u32 key, __u64 *val, __u32 size)
{
	const volatile struct trait_slot *slot = &trait_slots.slot[__trait_below(key, TRAITS_KEY_COUNT)];
	__u64 bit = 1ULL << __trait_below(key, TRAITS_KEY_COUNT);
	__u32 dist = slot->dist, held = slot->size;
	__u64 at = from->at;
	int err;

	if (!(trait_slots.mask & bit))
		return -ENOENT;
	if (slot->merge == TRAIT_DISCARD && from->merged)
		return -ENOENT;
	err = __trait_kernel_get(from->head, at, from->meta_len, bit, 0, slot->merge, (void *)0, 0);
	if (err)
		return err;
	if (size < held)
		return -ENOSPC;
	if (slot->merge != TRAIT_BLOCK)
		at = __trait_packet_end(from->head, at, from->meta_len) + trait_area.flow_len;
#define __trait_copy_held(n)                                                                                           \
	case n:                                                                                                        \
		__trait_copy_kernel(val, at - dist, n);                                                                \
		break;
	__TRAIT_FOR_SIZE(held, __trait_copy_held)
#undef __trait_copy_held
	return held;
}

/* The caller's value or buffer may have any alignment. */
static __always_inline void __trait_rfc_copy_if(_Bool it_is, void *to, const void *from, __u64 size)
{
	if (it_is)
		__trait_copy_unaligned(to, from, size);
}

static __always_inline void __trait_rfc_copy_in(__u64 *value, const void *val, __u64 val__sz)
{
	__trait_rfc_copy_if(val__sz == 1, value, val, 1);
	__trait_rfc_copy_if(val__sz == 2, value, val, 2);
	__trait_rfc_copy_if(val__sz == 4, value, val, 4);
	__trait_rfc_copy_if(val__sz == 8, value, val, 8);
	__trait_rfc_copy_if(val__sz == 16, value, val, 16);
}

/* Each length with its own bound, so that the verifier sees that the buffer is large enough. */
static __always_inline void __trait_rfc_copy_out(void *val, __u64 val__sz, const __u64 *value, int len)
{
	__trait_rfc_copy_if(val__sz >= 1 && len == 1, val, value, 1);
	__trait_rfc_copy_if(val__sz >= 2 && len == 2, val, value, 2);
	__trait_rfc_copy_if(val__sz >= 4 && len == 4, val, value, 4);
	__trait_rfc_copy_if(val__sz >= 8 && len == 8, val, value, 8);
	__trait_rfc_copy_if(val__sz >= 16 && len == 16, val, value, 16);
}

static __always_inline int __trait_rfc_get_xdp(struct xdp_md *xdp, __u64 key, __u64 *value, __u64 size)
{
	struct __trait_rfc_place from;

	if (key >= TRAITS_KEY_COUNT)
		return -EINVAL;
	from.at = __trait_xdp_at(xdp, &from.head, &from.meta_len);
	from.merged = 0;
	return from.at ? __trait_rfc_get(&from, key, value, size) : -ENOENT;
}

static __always_inline int __trait_rfc_get_skb(struct __sk_buff *skb, __u64 key, __u64 *value, __u64 size)
{
	struct __trait_rfc_place from;

	if (key >= TRAITS_KEY_COUNT)
		return -EINVAL;
	if (!trait_area.flow_nonce)
		return -ENOENT;
	from.at = __trait_skb_anchor(__trait_skb_of(skb), &from.head, &from.meta_len);
	if (!from.at)
		return -ENOENT;
	from.merged = trait_area.discard && !__trait_is_whole(__trait_skb_of(skb), from.at,
							      __trait_packet_end(from.head, from.at, from.meta_len));
	return __trait_rfc_get(&from, key, value, size);
}

static __always_inline int bpf_xdp_trait_set(struct xdp_md *xdp, __u64 key, const void *val, __u64 val__sz, __u64 flags)
{
	__u64 value[2];

	if (key >= TRAITS_KEY_COUNT || flags || !__trait_size_valid(val__sz))
		return -EINVAL;
	__trait_rfc_copy_in(value, val, val__sz);
	return __trait_rfc_set(xdp, key, value, val__sz);
}

static __always_inline int bpf_xdp_trait_get(struct xdp_md *xdp, __u64 key, void *val, __u64 val__sz)
{
	__u64 value[2];
	int len = __trait_rfc_get_xdp(xdp, key, value, val__sz);

	__trait_rfc_copy_out(val, val__sz, value, len);
	return len;
}

static __always_inline int bpf_xdp_trait_del(struct xdp_md *xdp, __u64 key)
{
	return key >= TRAITS_KEY_COUNT ? -EINVAL : __trait_rfc_del(xdp, key);
}

static __always_inline int bpf_xdp_trait_is_set(struct xdp_md *xdp, __u64 key)
{
	__u64 value[2];
	int err = __trait_rfc_get_xdp(xdp, key, value, sizeof(value));

	return err == -ENOENT ? 0 : err < 0 ? err : 1;
}

static __always_inline int bpf_skb_trait_get(struct __sk_buff *skb, __u64 key, void *val, __u64 val__sz)
{
	__u64 value[2];
	int len = __trait_rfc_get_skb(skb, key, value, val__sz);

	__trait_rfc_copy_out(val, val__sz, value, len);
	return len;
}

static __always_inline int bpf_skb_trait_is_set(struct __sk_buff *skb, __u64 key)
{
	__u64 value[2];
	int err = __trait_rfc_get_skb(skb, key, value, sizeof(value));

	return err == -ENOENT ? 0 : err < 0 ? err : 1;
}

static __always_inline int bpf_skb_trait_set(struct __sk_buff *skb __trait_unused, __u64 key __trait_unused,
					     const void *val __trait_unused, __u64 val__sz __trait_unused,
					     __u64 flags __trait_unused)
{
	return -EOPNOTSUPP;
}

static __always_inline int bpf_skb_trait_del(struct __sk_buff *skb __trait_unused, __u64 key __trait_unused)
{
	return -EOPNOTSUPP;
}

#endif /* __PACKET_TRAITS_RFC_BPF_H */
