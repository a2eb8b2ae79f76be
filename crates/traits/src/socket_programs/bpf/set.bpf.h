/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * setsockopt: which traits are kept, and the socket's own.
 */
#ifndef __SOCKETS_SET_BPF_H
#define __SOCKETS_SET_BPF_H

#include "accept.bpf.h"
#include "get.bpf.h"

/* The kernel need not see this option: it is set. */
static __always_inline int done(struct bpf_sockopt *ctx)
{
	ctx->optlen = -1;
	return 1;
}

/* The option's value if it is an int of 0 or 1; else negative. */
static __always_inline int read_switch(struct bpf_sockopt *ctx)
{
	int *from = OPTVAL(ctx), value;

	if (ctx->optlen != sizeof(*from) || (void *)(from + 1) > OPTVAL_END(ctx))
		return -EINVAL;
	value = *from;
	return value == 0 || value == 1 ? value : -EINVAL;
}

static __always_inline int set_save_syn(struct bpf_sockopt *ctx, struct bpf_sock *sk)
{
	int on = read_switch(ctx);
	struct receive *receive;

	if (sk->protocol != IPPROTO_TCP)
		return refuse(-EOPNOTSUPP);
	if (on < 0)
		return refuse(-EINVAL);
	if (sk->state != BPF_TCP_LISTEN && sk->state != BPF_TCP_CLOSE)
		return refuse(-EISCONN);
	receive = bpf_sk_storage_get(&pt_receive, sk, 0, on ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (!receive)
		return on ? refuse(-ENOSPC) : done(ctx);
	receive->wants = on ? receive->wants | WANTS_SYN : receive->wants & ~WANTS_SYN;
	return done(ctx);
}

/* A walk through the rings. */
struct walk {
	__u64 owner;
	struct ring *claimed;
	__u32 index; /* of that one */
	__u32 owned; /* by the owner */
	__u32 of_users; /* by anyone but root */
};

static long try_ring(__u32 index, struct walk *walk)
{
	struct ring *ring = bpf_map_lookup_elem(&pt_rings, &index);

	if (!ring || ring->owner || __sync_val_compare_and_swap(&ring->owner, 0, walk->owner))
		return 0;
	walk->claimed = ring;
	walk->index = index;
	return 1;
}

static long count_ring(__u32 index, struct walk *walk)
{
	struct ring *ring = bpf_map_lookup_elem(&pt_rings, &index);

	__u64 owner = ring ? ring->owner : 0;

	walk->owned += owner == walk->owner;
	walk->of_users += owner > RING_OWNED; /* by user 0 */
	return 0;
}

/*
 * Claims a free ring for the user of this process. Unless that is root, the user must not have more than the share of a user
 * then, nor all users together those that are kept for root. Of two sockets that are after the last ring of a share at the
 * same time it may be that none gets it. Returns the ring's number, or -ENOSPC.
 */
static __always_inline int claim_ring(void)
{
	__u32 uid = bpf_get_current_uid_gid();
	struct walk walk = { .owner = RING_OWNED | uid };

	bpf_loop(ring_count, try_ring, &walk, 0);
	if (!walk.claimed)
		return -ENOSPC;
	if (!uid)
		return walk.index;
	bpf_loop(ring_count, count_ring, &walk, 0);
	if (walk.owned <= rings_per_user && walk.of_users <= rings_of_users)
		return walk.index;
	__sync_lock_test_and_set(&walk.claimed->owner, 0);
	return -ENOSPC;
}

static __always_inline int set_receive(struct bpf_sockopt *ctx, struct bpf_sock *sk)
{
	int on = read_switch(ctx), index;
	struct receive *receive;
	struct ring *ring;
	__u32 place;

	if (sk->protocol != IPPROTO_TCP && sk->protocol != IPPROTO_UDP)
		return refuse(-EOPNOTSUPP);
	if (on < 0)
		return refuse(-EINVAL);
	receive = bpf_sk_storage_get(&pt_receive, sk, 0, on ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (!receive)
		return on ? refuse(-ENOSPC) : done(ctx);
	if (!on) {
		receive->wants &= ~WANTS_RECEIVED;
		forget_last(receive);
		if (!(receive->wants & SET_RCVMARK))
			return done(ctx);
		receive->wants &= ~SET_RCVMARK;
	} else if (sk->protocol == IPPROTO_TCP) {
		if (sk->state != BPF_TCP_LISTEN)
			receive->used = 1;
		receive->wants |= WANTS_RECEIVED;
		return done(ctx);
	} else {
		if (!(receive->wants & HAS_RING)) {
			index = claim_ring();
			if (index < 0)
				return refuse(-ENOSPC);
			place = index;
			ring = bpf_map_lookup_elem(&pt_rings, &place);
			if (!ring)
				return refuse(-ENOSPC);
			receive->ring = index;
			receive->generation = ++ring->generation;
			__sync_fetch_and_or(&receive->wants, HAS_RING);
		}
		__sync_fetch_and_or(&receive->wants,
				    WANTS_RECEIVED); /* a full barrier: the ring is there for who sees it */
		if (has_rcvmark(socket_of(ctx)))
			return done(ctx);
		receive->wants |= SET_RCVMARK;
	}
	/* the kernel sets this in its stead */
	__trait_ctx_field(ctx, level) = SOL_SOCKET;
	__trait_ctx_field(ctx, optname) = SO_RCVMARK;
	return 1;
}

/* One key's new value: none, to delete it, or `value`. */
struct change {
	struct place place;
	_Bool on;
	__u64 value[2];
};

/* Reads the option's value for a key. Returns 0, or -EINVAL. */
static __always_inline int read_change(struct bpf_sockopt *ctx, __u32 number, struct change *change)
{
	void *from = OPTVAL(ctx), *end = OPTVAL_END(ctx);
	__s32 len = ctx->optlen;

	if (find_key(number, &change->place))
		return -EINVAL;
	change->on = len != 0;
	if (!len)
		return 0;
	if (!change->place.size) {
		if (len == 1 && from + 1 <= end)
			change->on = *(__u8 *)from;
		else if (len == 4 && from + 4 <= end)
			change->on = *(__u32 *)from;
		else
			return -EINVAL;
		return 0;
	}
	if (len != (__s32)change->place.size)
		return -EINVAL;
#define TAKE(n)                                                                                                        \
	case n:                                                                                                        \
		if (from + (n) > end)                                                                                  \
			return -EINVAL;                                                                                \
		__trait_copy(change->value, from, n);                                                                  \
		return 0;
	__TRAIT_FOR_SIZE(change->place.size, TAKE)
	return -EINVAL;
}

/* Which keys have values that were kept at a revision. */
struct kept_keys {
	__u64 present;
	__u64 revision;
};

/* Takes out a key that was registered later. */
static long drop_later(__u32 number, struct kept_keys *kept)
{
	struct key_record *record;

	if (number >= TRAITS_KEY_MAX || !(kept->present >> number))
		return 1;
	record = bpf_map_lookup_elem(&pt_keys, &number);
	if (!record || record->generation > kept->revision)
		kept->present &= ~(1ULL << number);
	return 0;
}

/* Has the values be of this revision of the registry: what is not of its keys goes. */
static __always_inline void renew(struct trait_sender_values *values, __u64 revision)
{
	struct kept_keys kept = { .present = values->present, .revision = values->revision };

	if (kept.revision != revision && kept.present) {
		bpf_loop(TRAITS_KEY_MAX, drop_later, &kept, 0);
		values->present = kept.present;
	}
	values->revision = revision;
}

static __always_inline void make_change(struct trait_sender_values *values, const struct change *change)
{
	void *to;

	if (!change->on) {
		values->present &= ~change->place.bit;
		return;
	}
#define MAKE(n)                                                                                                        \
	case n:                                                                                                        \
		to = value_at(values->word, TRAITS_VALUES_MAX, change->place.offset, n);                               \
		if (!to)                                                                                               \
			return;                                                                                        \
		__trait_copy(to, change->value, n);                                                                    \
		break;
	__TRAIT_FOR_SIZE(change->place.size, MAKE)
	values->present |= change->place.bit;
}

/* Whether the option's value is a struct traits of registered keys. */
static __always_inline _Bool is_all(struct bpf_sockopt *ctx)
{
	const struct traits *from = OPTVAL(ctx);
	__u32 len = TRAITS_LEN;

	if (ctx->optlen < (__s32)len || ctx->optlen > (__s32)sizeof(*from) || (void *)from + len > OPTVAL_END(ctx))
		return 0;
	return !(from->present & ~live_keys());
}

static __always_inline void take_all(struct bpf_sockopt *ctx, struct trait_sender_values *to)
{
	const struct traits *from = OPTVAL(ctx);
	__u32 len = TRAITS_LEN;

	if ((void *)from + len > OPTVAL_END(ctx))
		return;
	to->present = from->present;
	copy_words(to->word, (const void *)from->values, VALUE_WORDS);
}

/* Makes one change, or takes the option's value for all there is. */
static __always_inline void change_values(struct bpf_sockopt *ctx, struct trait_sender_values *values,
					  const struct change *change, __u64 revision)
{
	renew(values, revision);
	if (change)
		make_change(values, change);
	else
		take_all(ctx, values);
}

/* The kernel holds the socket's lock: there is one writer. */
static __always_inline void set_own(struct bpf_sockopt *ctx, struct trait_sender *send, const struct change *change,
				    __u64 revision)
{
	__u32 i;

	for (i = 0; i < 2; i++) {
		__sync_fetch_and_add(&send->own_sequence, 1); /* a full barrier: readers take the other one */
		change_values(ctx, &send->own[i], change, revision);
	}
}

static __always_inline void set_next(struct bpf_sockopt *ctx, struct trait_sender *send, const struct change *change,
				     __u64 revision)
{
	__sync_fetch_and_add(&send->sequence, 1);
	if (send->state != TRAIT_NEXT_ARMED || !__trait_is_current(send->task, send->pid))
		send->next.present = 0;
	change_values(ctx, &send->next, change, revision);
	send->task = bpf_get_current_task();
	send->pid = __trait_pid(send->task);
	send->state = send->next.present ? TRAIT_NEXT_ARMED : TRAIT_NEXT_NONE;
	__sync_fetch_and_add(&send->sequence, 1);
}

/* Whether the option's value, which is a struct traits, has none. */
static __always_inline _Bool is_none(struct bpf_sockopt *ctx)
{
	const struct traits *from = OPTVAL(ctx);

	return (void *)from + TRAITS_HEADER_LEN <= OPTVAL_END(ctx) && !from->present;
}

/*
 * Takes back what this thread has set and no datagram has taken. What a datagram has taken stays its own: it may be waiting
 * for the address of the next hop.
 */
static __always_inline void drop_next(struct trait_sender *send)
{
	if (send->state != TRAIT_NEXT_ARMED || !__trait_is_current(send->task, send->pid))
		return;
	__sync_fetch_and_add(&send->sequence, 1);
	send->next.present = 0;
	send->state = TRAIT_NEXT_NONE;
	__sync_fetch_and_add(&send->sequence, 1);
}

/* SOCKET_TRAITS and, if `next`, NEXT_TRAITS. */
static __always_inline int set_sent(struct bpf_sockopt *ctx, struct bpf_sock *sk, __u32 number, _Bool next)
{
	__u64 revision = key_revision(); /* before the keys are looked at */
	_Bool all = number == TRAITS_ALL;
	struct change change = {};
	struct trait_sender *send;

	if (sk->state == BPF_TCP_LISTEN && sk->protocol == IPPROTO_TCP)
		return refuse(-EOPNOTSUPP);
	if (next && sk->protocol != IPPROTO_UDP)
		return refuse(-EOPNOTSUPP);
	if (all ? !is_all(ctx) : read_change(ctx, number, &change))
		return refuse(-EINVAL);
	if (next && all && is_none(ctx)) {
		send = bpf_sk_storage_get(&pt_send, sk, 0, 0);
		if (send)
			drop_next(send);
		return done(ctx);
	}
	send = bpf_sk_storage_get(&pt_send, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!send)
		return refuse(-ENOSPC);
	if (next)
		set_next(ctx, send, all ? NULL : &change, revision);
	else
		set_own(ctx, send, all ? NULL : &change, revision);
	send->nonce = __trait_sender_nonce();
	return done(ctx);
}

/* The application sets SO_RCVMARK itself: it is not ours to turn off any more. */
static __always_inline void keep_rcvmark(struct bpf_sock *sk)
{
	struct receive *receive = bpf_sk_storage_get(&pt_receive, sk, 0, 0);

	if (receive)
		__sync_fetch_and_and(&receive->wants, ~SET_RCVMARK);
}

SEC("cgroup/setsockopt")
int pt_setsockopt(struct bpf_sockopt *ctx)
{
	__s32 optname = ctx->optname;
	struct bpf_sock *sk;

	sk = ctx->sk;
	if (ctx->level != SOL_TRAITS) {
		if (sk && ctx->level == SOL_SOCKET && optname == SO_RCVMARK)
			keep_rcvmark(sk);
		if (ctx->optlen > PAGE_SIZE_MIN)
			ctx->optlen = 0; /* the kernel is to read the application's buffer */
		return 1;
	}
	if (!sk || !is_inet(sk))
		return 1;
	if (!is_served(sk))
		return refuse(-EOPNOTSUPP);
	if (optname == SAVE_SYN_TRAITS)
		return set_save_syn(ctx, sk);
	if (optname == RCV_TRAITS)
		return set_receive(ctx, sk);
	if (is_key_of(optname, SOCKET_TRAITS))
		return set_sent(ctx, sk, optname & 0xff, 0);
	if (is_key_of(optname, NEXT_TRAITS))
		return set_sent(ctx, sk, optname & 0xff, 1);
	return refuse(-EINVAL);
}

#endif /* __SOCKETS_SET_BPF_H */
