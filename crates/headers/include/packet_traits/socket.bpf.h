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
 * and TC see the former only behind the cgroup egress hook. A cgroup program that runs in front of the one that serves the
 * options may take them for those of a datagram without, in the memory of one with: from 6.17 one with BPF_F_PREORDER at a
 * cgroup above, before 6.17 any of a cgroup below or attached earlier.
 *
 * A packet is its socket's until it leaves the namespace or reaches the driver. One that came in has no sender here, nor has
 * what the kernel sends without a socket, or for a listener: answers to SYNs, resets, the last ACK of a connection. A datagram
 * that waits while the link-layer address of the next hop is looked up keeps its own traits until the socket's next datagram
 * with traits of its own is sent. Of the fragments of a datagram the first may have its own; all have the socket's.
 *
 * The socket's storage is read without a map, through the socket: programs need not know `traits sockets attach`, and
 * without it nothing is set. Linux 5.18 and later.
 */
#ifndef __PACKET_TRAITS_SOCKET_BPF_H
#define __PACKET_TRAITS_SOCKET_BPF_H

#include "traits.bpf.h"

#define TRAIT_SENDER_WORDS 29 /* what the longest area has */

/* Traits as a socket keeps them: values of the flow region, then those of the packet region. */
struct trait_sender_values {
	__u64 present;
	__u64 revision; /* of the registry, when they were kept: they are none of a key that was registered later */
	__u64 word[TRAIT_SENDER_WORDS];
};

enum trait_sender_next {
	TRAIT_NEXT_NONE,
	TRAIT_NEXT_ARMED, /* for the next datagram of `task` */
	TRAIT_NEXT_BOUND, /* for `skb` */
};

/* Counts up with the layout of struct trait_sender: a program that was compiled with another one finds no storage. */
#define TRAIT_SENDER_LAYOUT 2

static __always_inline __u64 __trait_sender_nonce(void)
{
	return trait_area.sender_nonce ^ TRAIT_SENDER_LAYOUT;
}

/*
 * The socket storage that `traits sockets attach` serves. A socket's own traits are there twice, so that readers need not
 * wait for a writer that was interrupted.
 */
struct trait_sender {
	__u64 nonce; /* __trait_sender_nonce() */
	__u32 sequence; /* odd: `next` is being written */
	__u32 state;
	__u64 task;
	__u64 skb;
	__u32 pid; /* of `task` */
	__u32 own_sequence; /* own[own_sequence & 1] is not being written */
	struct trait_sender_values own[2];
	struct trait_sender_values next;
};

/* include/net/tcp_states.h: what only begins like a struct sock, and what sends nothing of its own */
#define __TRAIT_TCP_TIME_WAIT 6
#define __TRAIT_TCP_LISTEN 10
#define __TRAIT_TCP_NEW_SYN_RECV 12

#define __TRAIT_STORAGE_MAX 32 /* storages of one socket that are looked at */

/* Address of the storage of the socket at `sk`; 0 if it has none. */
__trait_global __u64 __trait_sender_storage(__u64 sk)
{
	__u64 nonce = __trait_sender_nonce(), storage, node, data;
	__u8 state;
	int i;

	if (!trait_area.flow_nonce || !sk)
		return 0;
	state = __trait_kernel_field(sk, struct sock___traits, __sk_common.skc_state);
	if (state == __TRAIT_TCP_TIME_WAIT || state == __TRAIT_TCP_LISTEN || state == __TRAIT_TCP_NEW_SYN_RECV)
		return 0;
	storage = __trait_kernel_field(sk, struct sock___traits, sk_bpf_storage);
	if (!storage)
		return 0;
	for (i = 0; i < 16; i++) {
		data = __trait_kernel_word(
			__trait_kernel_member(storage, struct bpf_local_storage___traits, cache) + 8 * i, 0);
		data += bpf_core_field_offset(struct bpf_local_storage_data___traits, data);
		if (__trait_kernel_word(data, 0) == nonce)
			return data;
	}
	/* storages share the places of the cache (bpf_local_storage_cache_idx_get in kernel/bpf/bpf_local_storage.c) */
	node = __trait_kernel_field(storage, struct bpf_local_storage___traits, list.first);
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

static __always_inline __u32 __trait_pid(__u64 task)
{
	return __trait_kernel_field(task, struct task_struct___traits, pid);
}

/* Whether this thread runs. Its memory alone does not tell, since it is another one's when it has ended. */
static __always_inline _Bool __trait_is_current(__u64 task, __u32 pid)
{
	return task == bpf_get_current_task() && pid == __trait_pid(task);
}

/* Where a program is, seen from the hook at which the cgroup's program binds a datagram's own traits to the skb. */
enum __trait_sender_hook {
	__TRAIT_BEFORE_BIND,
	__TRAIT_AT_BIND,
	__TRAIT_AFTER_BIND,
};

/* What to read, and what was read. */
struct __trait_sender_read {
	__u64 at; /* the storage */
	__u64 skb;
	__u64 bit; /* of the key */
	__u64 generation;
	__u32 offset; /* of its value */
	__u32 hook;
	struct __trait_words value;
};

/*
 * Whether the packet is the datagram that the traits of the next one are for. In front of the hook that binds them, what is
 * bound is a former datagram, whose memory this one may have.
 */
static __always_inline _Bool __trait_sender_is_next(const struct __trait_sender_read *read, __u32 state)
{
	if (state == TRAIT_NEXT_BOUND && read->hook != __TRAIT_BEFORE_BIND)
		return __trait_kernel_word(__trait_sender_field(read->at, skb), 0) == read->skb;
	if (state == TRAIT_NEXT_ARMED && read->hook != __TRAIT_AFTER_BIND)
		return __trait_is_current(__trait_kernel_word(__trait_sender_field(read->at, task), 0),
					  __trait_kernel_word(__trait_sender_field(read->at, pid), 0));
	return 0;
}

/* Reads a value of the struct trait_sender_values there. Returns whether it is set. */
static __always_inline _Bool __trait_sender_value(struct __trait_sender_read *read, __u64 values)
{
	__u64 present = __trait_kernel_word(values, 0), revision = __trait_kernel_word(values, 1);
	__u64 at = values + __builtin_offsetof(struct trait_sender_values, word) + read->offset;

	read->value.word[0] = __trait_kernel_word(at, 0);
	read->value.word[1] = __trait_kernel_word(at, 1);
	return present & read->bit && read->generation <= revision;
}

/* Reads a value: the datagram's own, or else the socket's. Returns 1; 0 if it is not set. */
__trait_global int __trait_read_sender(struct __trait_sender_read *read)
{
	__u64 state, own;
	__u32 sequence;
	_Bool set;
	int i;

	if (!read)
		return 0;
	state = __trait_kernel_word(__trait_sender_field(read->at, sequence), 0);
	if (!(state & 1) && __trait_sender_is_next(read, state >> 32) &&
	    __trait_sender_value(read, __trait_sender_field(read->at, next)) &&
	    __trait_kernel_word(__trait_sender_field(read->at, sequence), 0) == state)
		return 1;
	for (i = 0; i < 4; i++) {
		sequence = __trait_kernel_word(__trait_sender_field(read->at, own_sequence), 0);
		own = __trait_sender_field(read->at, own) + (sequence & 1) * sizeof(struct trait_sender_values);
		set = __trait_sender_value(read, own);
		if ((__u32)__trait_kernel_word(__trait_sender_field(read->at, own_sequence), 0) == sequence)
			return set;
	}
	return 0;
}

/* Where a key's value is in trait_sender_values.word, in bytes. */
static __always_inline __u32 __trait_sender_offset(const volatile struct trait_key_desc *key, __u8 merge)
{
	__u32 flow_len = trait_area.flow_len, packet_len = trait_area.packet_len;

	if (merge == TRAIT_BLOCK)
		return flow_len - key->dist;
	return flow_len - __TRAIT_FLOW_FOOTER + packet_len + flow_len - key->dist;
}

static __always_inline int __trait_sender_of_skb(const struct sk_buff *skb, const volatile struct trait_key_desc *key,
						 __u8 merge, void *val, __u32 size, enum __trait_sender_hook hook)
{
	struct __trait_sender_read read = { .skb = (__u64)skb, .hook = hook };

	if (!key->bit)
		return -ENOENT;
	/* of a packet that came in, it is the socket it is for, or the sender's on another host of this kernel */
	if (__trait_kernel_field(skb, struct sk_buff___traits, skb_iif))
		return -ENOENT;
	read.at = __trait_sender_storage(__trait_kernel_field(skb, struct sk_buff___traits, sk));
	if (!read.at)
		return -ENOENT;
	read.bit = key->bit;
	read.generation = key->generation;
	read.offset = __trait_sender_offset(key, merge);
	if (!__trait_read_sender(&read))
		return -ENOENT;
	__trait_copy(val, &read.value, size);
	return size;
}

static __always_inline int __trait_tc_sender_get(struct __sk_buff *ctx, const volatile struct trait_key_desc *key,
						 __u8 merge, void *val, __u32 size)
{
	return __trait_sender_of_skb(__trait_skb_of(ctx), key, merge, val, size, __TRAIT_AFTER_BIND);
}

#define __trait_sender_hook(ctx)                                                                                       \
	_Generic((ctx),                                                                                                \
		struct __sk_buff *: __TRAIT_AT_BIND,                                                                   \
		struct bpf_nf_ctx *: __TRAIT_BEFORE_BIND,                                                              \
		struct sk_buff *: __TRAIT_AFTER_BIND,                                                                  \
		const struct sk_buff *: __TRAIT_AFTER_BIND)

#define __trait_sender_get(ctx, ...) __trait_sender_of_skb(__trait_skb_of(ctx), __VA_ARGS__, __trait_sender_hook(ctx))

#define trait_sender_get(ctx, key, ptr) __trait_read(key, ptr, __trait_sender_get, ctx)

#define trait_sender_is_set(ctx, key) (__trait_sender_get(ctx, __trait_key(key), (void *)0, 0) >= 0)

#define trait_tc_sender_get(ctx, key, ptr) __trait_read(key, ptr, __trait_tc_sender_get, ctx)

#define trait_tc_sender_is_set(ctx, key) (__trait_tc_sender_get(ctx, __trait_key(key), (void *)0, 0) >= 0)

#endif /* __PACKET_TRAITS_SOCKET_BPF_H */
