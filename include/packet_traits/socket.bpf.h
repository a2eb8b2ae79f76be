/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Packet traits: what a packet's sender says of it.
 *
 * An application gives its socket traits, or the next datagram it sends (<packet_traits/socket.h>); programs at the egress
 * hooks read them here. They come from whoever owns the socket: believe them as far as you believe that process.
 *
 *	#include <linux/bpf.h>
 *	#include <linux/netfilter.h>
 *	#include <packet_traits/socket.bpf.h>
 *
 *	TRAIT_KEY(tenant, __u32);
 *
 *	SEC("netfilter")
 *	int only_tenant_7(struct bpf_nf_ctx *ctx)
 *	{
 *		__u32 who = 0;
 *
 *		return trait_sender_get(ctx, tenant, &who) > 0 && who == 7 ? NF_ACCEPT : NF_DROP;
 *	}
 *
 *	char LICENSE[] SEC("license") = "Dual MIT/GPL";
 *
 *	trait_sender_get(ctx, key, &value)	size of the value; -ENOENT not set, or the packet has no socket here
 *	trait_sender_is_set(ctx, key)		1 or 0
 *	trait_tc_sender_get, trait_tc_sender_is_set
 *						the same for TC and TCX programs
 *
 * `ctx` is struct bpf_nf_ctx * (OUTPUT, POST_ROUTING), struct __sk_buff * of a cgroup_skb/egress program, or struct
 * sk_buff * of a tracing program. A datagram's own traits (NEXT_TRAITS) go before those of its socket. A tracing program
 * and TC see the former only behind the cgroup egress hook.
 *
 * A packet is its socket's until it leaves the namespace or reaches the driver; one that waits while the link-layer address
 * of the next hop is looked up keeps its own traits until the socket's next datagram with traits of its own is sent.
 *
 * The socket's storage is read without a map, through the socket: programs need not know `traits sockets attach`, and
 * without it nothing is set. Kernels from 6.2, as for everything that goes through the kernel context.
 */
#ifndef __PACKET_TRAITS_SOCKET_BPF_H
#define __PACKET_TRAITS_SOCKET_BPF_H

#include "traits.bpf.h"

#define TRAIT_SENDER_WORDS 29 /* what the longest area has */

/* Traits as a socket keeps them: values of the flow region, then those of the packet region. */
struct trait_sender_values {
	__u64 present;
	__u64 word[TRAIT_SENDER_WORDS];
};

enum trait_sender_next {
	TRAIT_NEXT_NONE,
	TRAIT_NEXT_ARMED, /* for the next datagram of `task` */
	TRAIT_NEXT_BOUND, /* for `skb` */
};

/* The socket storage that `traits sockets attach` serves. */
struct trait_sender {
	__u64 nonce; /* ~trait_area.flow_nonce */
	__u32 sequence; /* odd: being written */
	__u32 state;
	__u64 task;
	__u64 skb;
	struct trait_sender_values own;
	struct trait_sender_values next;
};

struct hlist_node___traits {
	struct hlist_node___traits *next;
} __attribute__((preserve_access_index));

struct bpf_local_storage_data___traits {
	__u8 data[0];
} __attribute__((preserve_access_index));

struct bpf_local_storage_elem___traits {
	struct hlist_node___traits snode;
	struct bpf_local_storage_data___traits sdata;
} __attribute__((preserve_access_index));

struct bpf_local_storage___traits {
	void *cache[16];
	struct {
		void *first;
	} list;
} __attribute__((preserve_access_index));

struct sock___traits {
	struct {
		volatile unsigned char skc_state;
	} __sk_common;
	struct bpf_local_storage___traits *sk_bpf_storage;
} __attribute__((preserve_access_index));

struct sk_buff___traits_sk {
	struct sock___traits *sk;
} __attribute__((preserve_access_index));

/* include/net/tcp_states.h: states of what only begins like a struct sock */
#define __TRAIT_TCP_TIME_WAIT 6
#define __TRAIT_TCP_NEW_SYN_RECV 12

#define __TRAIT_STORAGE_MAX 32 /* storages of one socket that are looked at */

/* Address of the storage of the socket at `sk`; 0 if it has none. Global, so that the verifier checks it once. */
__weak __noinline __u64 trait_sender_of(__u64 sk)
{
	__u64 nonce = ~trait_area.flow_nonce, storage, node, data;
	__u8 state;
	int i;

	if (!trait_area.flow_nonce || !__trait_can_cast() || !sk)
		return 0;
	state = __trait_kernel_word(sk + bpf_core_field_offset(struct sock___traits, __sk_common.skc_state), 0);
	if (state == __TRAIT_TCP_TIME_WAIT || state == __TRAIT_TCP_NEW_SYN_RECV)
		return 0;
	storage = __trait_kernel_word(sk + bpf_core_field_offset(struct sock___traits, sk_bpf_storage), 0);
	if (!storage)
		return 0;
	for (i = 0; i < 16; i++) {
		data = __trait_kernel_word(
			storage + bpf_core_field_offset(struct bpf_local_storage___traits, cache) + 8 * i, 0);
		data += bpf_core_field_offset(struct bpf_local_storage_data___traits, data);
		if (__trait_kernel_word(data, 0) == nonce)
			return data;
	}
	/* storages share the places of the cache (bpf_local_storage_cache_idx_get in kernel/bpf/bpf_local_storage.c) */
	node = __trait_kernel_word(storage + bpf_core_field_offset(struct bpf_local_storage___traits, list.first), 0);
	for (i = 0; i < __TRAIT_STORAGE_MAX && node; i++) {
		data = node - bpf_core_field_offset(struct bpf_local_storage_elem___traits, snode) +
		       bpf_core_field_offset(struct bpf_local_storage_elem___traits, sdata) +
		       bpf_core_field_offset(struct bpf_local_storage_data___traits, data);
		if (__trait_kernel_word(data, 0) == nonce)
			return data;
		node = __trait_kernel_word(node, 0);
	}
	return 0;
}

#define __trait_sender_field(at, field) ((at) + __builtin_offsetof(struct trait_sender, field))

/*
 * Copies the value at `offset` of the storage at `at` to `out`: of the datagram's own traits if `next`, else of the
 * socket's. Returns 1; 0 if it is not set.
 */
__weak __noinline int trait_sender_read(__u64 at, __u64 bit, __u32 offset, __u32 next, struct __trait_words *out)
{
	__u64 values = next ? __trait_sender_field(at, next) : __trait_sender_field(at, own);
	__u64 present, sequence;
	int i;

	if (!out || !__trait_can_cast())
		return 0;
	for (i = 0; i < 8; i++) { /* a writer is done in less time than a few of these take */
		sequence = __trait_kernel_word(__trait_sender_field(at, sequence), 0);
		present = __trait_kernel_word(values, 0) & bit;
		out->word[0] = __trait_kernel_word(values + 8 + offset, 0);
		out->word[1] = __trait_kernel_word(values + 8 + offset, 1);
		if (!(sequence & 1) &&
		    (__u32)__trait_kernel_word(__trait_sender_field(at, sequence), 0) == (__u32)sequence)
			return !!present;
	}
	return 0;
}

/* Where a key's value is in trait_sender_values.word, in bytes. */
static __always_inline __u32 __trait_sender_offset(const volatile struct trait_key_desc *key, __u8 merge)
{
	__u32 flow_len = trait_area.flow_len, packet_len = trait_area.packet_len;

	if (merge != TRAIT_KEEP_FIRST)
		return flow_len - key->dist;
	return flow_len - 16 + ((packet_len - 16 + 7) & ~7u) + 16 + flow_len - key->dist;
}

/* `unsent`: this hook is in front of the one where the cgroup's program binds a datagram's own traits to the skb. */
static __always_inline int __trait_sender_of_skb(const struct sk_buff *skb, const volatile struct trait_key_desc *key,
						 __u8 merge, void *val, __u32 size, _Bool unsent)
{
	__u32 offset = __trait_sender_offset(key, merge), state, next = 0;
	struct __trait_words got = {};
	__u64 at;

	if (!key->bit || !__trait_can_cast())
		return -ENOENT;
	at = trait_sender_of(
		__trait_kernel_word((__u64)skb + bpf_core_field_offset(struct sk_buff___traits_sk, sk), 0));
	if (!at)
		return -ENOENT;
	state = __trait_kernel_word(__trait_sender_field(at, sequence), 0) >> 32;
	if (state == TRAIT_NEXT_BOUND)
		next = __trait_kernel_word(__trait_sender_field(at, skb), 0) == (__u64)skb;
	else if (state == TRAIT_NEXT_ARMED && unsent)
		next = __trait_kernel_word(__trait_sender_field(at, task), 0) == bpf_get_current_task();
	if (!(next && trait_sender_read(at, key->bit, offset, 1, &got)) &&
	    !trait_sender_read(at, key->bit, offset, 0, &got))
		return -ENOENT;
	__trait_copy(val, &got, size);
	return size;
}

static __always_inline int __trait_sender_ctx(struct __sk_buff *ctx, const volatile struct trait_key_desc *key,
					      __u8 merge, void *val, __u32 size)
{
	struct sk_buff *skb = __trait_skb_of_tc(ctx);

	return skb ? __trait_sender_of_skb(skb, key, merge, val, size, 1) : -ENOENT;
}

static __always_inline int __trait_sender_nf(struct bpf_nf_ctx *ctx, const volatile struct trait_key_desc *key,
					     __u8 merge, void *val, __u32 size)
{
	return __trait_sender_of_skb(__trait_skb_of_nf(ctx), key, merge, val, size, 1);
}

static __always_inline int __trait_sender_skb(const struct sk_buff *skb, const volatile struct trait_key_desc *key,
					      __u8 merge, void *val, __u32 size)
{
	return __trait_sender_of_skb(skb, key, merge, val, size, 0);
}

static __always_inline int __trait_tc_sender_get(struct __sk_buff *ctx, const volatile struct trait_key_desc *key,
						 __u8 merge, void *val, __u32 size)
{
	struct sk_buff *skb = __trait_skb_of_tc(ctx);

	return skb ? __trait_sender_of_skb(skb, key, merge, val, size, 0) : -ENOENT;
}

#define __trait_sender_get(ctx, ...)                                                                                   \
	_Generic((ctx),                                                                                                \
		struct __sk_buff *: __trait_sender_ctx,                                                                \
		struct bpf_nf_ctx *: __trait_sender_nf,                                                                \
		struct sk_buff *: __trait_sender_skb,                                                                  \
		const struct sk_buff *: __trait_sender_skb)(ctx, __VA_ARGS__)

#define trait_sender_get(ctx, key, ptr) __trait_read(key, ptr, __trait_sender_get, ctx)

#define trait_sender_is_set(ctx, key) (__trait_sender_get(ctx, __trait_key(key), (void *)0, 0) >= 0)

#define trait_tc_sender_get(ctx, key, ptr) __trait_read(key, ptr, __trait_tc_sender_get, ctx)

#define trait_tc_sender_is_set(ctx, key) (__trait_tc_sender_get(ctx, __trait_key(key), (void *)0, 0) >= 0)

#endif /* __PACKET_TRAITS_SOCKET_BPF_H */
