/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * getsockopt: traits of the SYN, of the newest data, of datagrams and of the socket, and the keys.
 */
#ifndef __SOCKETS_GET_BPF_H
#define __SOCKETS_GET_BPF_H

#include "receive.bpf.h"

static __always_inline _Bool is_key_of(__s32 optname, __s32 option)
{
	return (optname & ~0xff) == option;
}

struct place {
	__u64 bit;
	__u64 generation;
	__u32 offset;
	__u32 size;
};

static __always_inline __u64 live_keys(void)
{
	struct state_record *state = key_state();

	return state ? state->live : 0;
}

/* Offset of a key's value in traits.values; 0 for a flag. Without branches: see give_keys. */
static __always_inline __u32 place_of(const struct key_record *record)
{
	__u32 of_packet = __trait_mask_if(record->merge != TRAIT_BLOCK), has_value = __trait_mask_if(record->size != 0);

	return (trait_area.flow_len - record->distance + ((8 * VALUE_WORDS + __TRAIT_PACKET_FOOTER) & of_packet)) &
	       has_value;
}

/* Where the value of a registered key is. Returns 0, or -EINVAL. */
static __always_inline int find_key(__u32 number, struct place *place)
{
	struct key_record *record;

	if (number >= TRAITS_KEY_MAX || !(live_keys() >> number & 1))
		return -EINVAL;
	record = bpf_map_lookup_elem(&pt_keys, &number);
	if (!record)
		return -EINVAL;
	place->bit = 1ULL << number;
	place->generation = record->generation;
	place->size = record->size;
	place->offset = place_of(record);
	return 0;
}

#define OPTVAL(ctx) __trait_ctx_field(ctx, optval)
#define OPTVAL_END(ctx) __trait_ctx_field(ctx, optval_end)

static __always_inline int refuse(int err)
{
	bpf_set_retval(err);
	return 1;
}

static __always_inline int give(struct bpf_sockopt *ctx, __s32 len)
{
	ctx->optlen = len;
	bpf_set_retval(0);
	return 1;
}

/* A value's place in `word`, if `size` bytes from it on are among its first `len`; else NULL. */
static __always_inline void *value_at(const __u64 *word, __u32 len, __u32 offset, __u32 size)
{
	__trait_keep_bound(offset);
	return size <= len && offset <= len - size ? (void *)word + offset : NULL;
}

/* Values that are being given. */
struct giving {
	void *to;
	void *end;
	const __u64 *from;
	__u64 present;
	__u64 revision; /* when they were kept */
	__u64 given; /* those that are of keys of that time */
};

/* Copies the value of a key, if it is set. Returns 1 if no key of a higher number is. */
static long give_value(__u32 number, struct giving *giving)
{
	__u32 len = 8 * VALUE_WORDS;
	struct place place;
	void *from, *to;

	if (!(giving->present >> number))
		return 1;
	if (!(giving->present >> number & 1) || find_key(number, &place) || place.generation > giving->revision)
		return 0;
	giving->given |= place.bit;
#define COPY(n)                                                                                                        \
	case n:                                                                                                        \
		from = value_at(giving->from, len, place.offset, n);                                                   \
		if (!from)                                                                                             \
			return 0;                                                                                      \
		to = giving->to + place.offset;                                                                        \
		if (to + (n) <= giving->end)                                                                           \
			__trait_copy(to, from, n);                                                                     \
		return 0;
	__TRAIT_FOR_SIZE(place.size, COPY)
	return 0;
}

/*
 * Copies the values of those keys that are in `present` to `to`, which has room for TRAITS_LEN, and zeroes the rest: what is
 * there of other keys is not the packet's.
 */
static __always_inline void give_values(struct traits *to, void *end, const __u64 *from, __u64 present, __u64 revision)
{
	struct giving giving = {
		.to = to->values,
		.end = end,
		.from = from,
		.present = present & live_keys(),
		.revision = revision,
	};

	zero_words((void *)to->values, VALUE_WORDS);
	if (giving.present)
		bpf_loop(TRAITS_KEY_MAX, give_value, &giving, 0);
	to->present = giving.given;
}

/* The whole of a socket's or packet's traits. */
static __always_inline int give_all(struct bpf_sockopt *ctx, const struct trait_sender_values *values, __u32 flags,
				    __u32 mark)
{
	void *end = OPTVAL_END(ctx);
	struct traits *to = OPTVAL(ctx);
	__u32 len = TRAITS_LEN;

	if ((void *)to + len > end)
		return refuse(-EINVAL);
	to->flags = flags;
	to->mark = mark;
	if (values) {
		give_values(to, end, values->word, values->present, values->revision);
	} else {
		to->present = 0;
		zero_words((void *)to->values, VALUE_WORDS);
	}
	return give(ctx, len);
}

/* Whether a value of the key is among them. */
static __always_inline _Bool has_value(const struct trait_sender_values *values, const struct place *place)
{
	return values && values->present & place->bit && place->generation <= values->revision;
}

/* One key of them. */
static __always_inline int give_one(struct bpf_sockopt *ctx, const struct trait_sender_values *values, __u32 number)
{
	struct place place;
	void *from, *to;

	if (find_key(number, &place))
		return refuse(-EINVAL);
	to = OPTVAL(ctx);
	if (place.size == 0) {
		if (to + 1 > OPTVAL_END(ctx))
			return refuse(-EINVAL);
		if (!has_value(values, &place))
			return refuse(-ENOENT);
		*(__u8 *)to = 1;
		return give(ctx, 1);
	}
#define GIVE(n)                                                                                                        \
	case n:                                                                                                        \
		if (to + (n) > OPTVAL_END(ctx))                                                                        \
			return refuse(-EINVAL);                                                                        \
		if (!has_value(values, &place))                                                                        \
			return refuse(-ENOENT);                                                                        \
		from = value_at(values->word, TRAITS_VALUES_MAX, place.offset, n);                                     \
		if (!from)                                                                                             \
			break;                                                                                         \
		__trait_copy(to, from, n);                                                                             \
		return give(ctx, n);
	__TRAIT_FOR_SIZE(place.size, GIVE)
	return refuse(-EINVAL);
}

static __always_inline int give_traits(struct bpf_sockopt *ctx, const struct trait_sender_values *values, __u32 number)
{
	if (number == TRAITS_ALL)
		return give_all(ctx, values, values ? TRAITS_FOUND : 0, 0);
	return give_one(ctx, values, number);
}

static __always_inline int give_int(struct bpf_sockopt *ctx, int value)
{
	int *to = OPTVAL(ctx);

	if ((void *)(to + 1) > OPTVAL_END(ctx))
		return refuse(-EINVAL);
	*to = value;
	return give(ctx, sizeof(*to));
}

/*
 * The keys from number `first` on, as many as there is room for. Without a branch on whether a key is there, which would be
 * too much for the verifier: what is not is overwritten by the next.
 */
static __always_inline int give_keys(struct bpf_sockopt *ctx, __u32 first)
{
	void *start = OPTVAL(ctx), *end = OPTVAL_END(ctx);
	volatile struct state_record *state = key_state();
	__u32 number, i, count = 0;
	__u64 live, seq;

	if (!state)
		return refuse(-EINVAL);
	seq = state->seq;
	live = state->live;
	if (first >= TRAITS_KEY_MAX || !(live >> first))
		return refuse(-ENOENT);
	for (number = first; number < TRAITS_KEY_MAX; number++) {
		struct traits_key *to = start + count * sizeof(*to);
		__u32 index = number;
		struct key_record *record = bpf_map_lookup_elem(&pt_keys, &index);

		if (!record || (void *)(to + 1) > end)
			break;
		for (i = 0; i < sizeof(to->name); i++)
			to->name[i] = record->name[i];
		to->number = number;
		to->type = record->type;
		to->size = record->size;
		to->merge = record->merge;
		to->offset = place_of(record);
		to->distance = record->distance;
		count += live >> number & 1;
	}
	if (!count)
		return refuse(-EINVAL);
	if (state->seq != seq)
		return refuse(-EAGAIN);
	return give(ctx, count * sizeof(struct traits_key));
}

static __always_inline int give_receive(struct bpf_sockopt *ctx, const struct receive *receive, _Bool is_told)
{
	const __u32 without_revision = __builtin_offsetof(struct traits_receive, revision);
	struct traits_receive *to = OPTVAL(ctx);

	if ((void *)to + without_revision > OPTVAL_END(ctx))
		return refuse(-EINVAL);
	to->enabled = receive && receive->wants & WANTS_RECEIVED && is_told;
	to->traits_len = TRAITS_LEN;
	to->flow_len = trait_area.flow_len;
	to->packet_len = trait_area.packet_len;
	to->instance = instance;
	if (receive && receive->wants & HAS_RING) {
		to->ring = receive->ring;
		to->slots = ring_slots;
		to->generation = receive->generation;
		to->slot_len = SLOT_LEN;
	} else {
		to->ring = 0;
		to->slots = 0;
		to->generation = 0;
		to->slot_len = 0;
	}
	if ((void *)(to + 1) > OPTVAL_END(ctx))
		return give(ctx, without_revision);
	to->revision = key_revision();
	return give(ctx, sizeof(*to));
}

/* The handle of what is in the slot: a load between two full barriers. */
static __always_inline __u32 handle_of(struct slot *slot)
{
	return __sync_fetch_and_add(&slot->handle, 0);
}

/* A datagram's slot, if it still is in it. */
static __always_inline struct slot *find_slot(const struct receive *receive, __u32 handle)
{
	__u32 index = receive->ring * ring_slots + (handle & (ring_slots - 1));
	struct slot *slot = bpf_map_lookup_elem(&pt_slots, &index);

	return slot && handle_of(slot) == handle && slot->generation == receive->generation ? slot : NULL;
}

/* Writes a datagram's traits to `to`, which has room for TRAITS_LEN. */
static __always_inline void give_slot(struct traits *to, void *end, const struct receive *receive, __u32 handle)
{
	struct slot *slot = NULL;

	to->present = 0;
	to->flags = 0;
	to->mark = 0;
	if (handle == HANDLE_PLAIN)
		to->flags = TRAITS_FOUND;
	else if (handle != HANDLE_UNKNOWN && handle != HANDLE_NONE && receive)
		slot = find_slot(receive, handle);
	if (slot) {
		to->flags = TRAITS_FOUND;
		to->mark = slot->mark;
		give_values(to, end, slot->word, slot->present, slot->revision);
		if (handle_of(slot) == handle)
			return;
		/* the ring has come round while it was read */
		to->present = 0;
		to->flags = 0;
		to->mark = 0;
	}
	zero_words((void *)to->values, VALUE_WORDS);
}

static __always_inline int give_datagram(struct bpf_sockopt *ctx, const struct receive *receive)
{
	void *end = OPTVAL_END(ctx);
	struct traits *to = OPTVAL(ctx);
	__u32 len = TRAITS_LEN;

	if ((void *)to + len > end)
		return refuse(-EINVAL);
	give_slot(to, end, receive, ctx->optname);
	return give(ctx, len);
}

static __always_inline int give_datagrams(struct bpf_sockopt *ctx, const struct receive *receive)
{
	void *to = OPTVAL(ctx), *end = OPTVAL_END(ctx);
	__u32 len = TRAITS_LEN, handle = ctx->optname, i;

	for (i = 0; i < TRAITS_BATCH_MAX; i++) {
		if (to + len > end)
			break;
		give_slot(to, end, receive, handle + i);
		to += len;
	}
	return i ? give(ctx, i * len) : refuse(-EINVAL);
}

/* Address of the kernel's socket. */
static __always_inline __u64 socket_of(struct bpf_sockopt *ctx)
{
	return __trait_kernel_field(__trait_kern_ctx(ctx), struct bpf_sockopt_kern___traits, sk);
}

static __always_inline int give_last(struct bpf_sockopt *ctx, struct receive *receive, __u32 number)
{
	const struct trait_sender_values *values;
	struct arrival *last;
	__u32 sequence, i;
	int ret;

	for (i = 0; i < 4; i++) {
		sequence = *(volatile __u32 *)&receive->last_sequence;
		if (sequence & 1)
			continue;
		last = newest_of(receive, 0);
		if (!is_taken(receive, last, TCP(socket_of(ctx), rcv_nxt)))
			last = newest_of(receive, 1);
		values = is_known(receive, last) ? &last->values : NULL;
		__trait_keep_choice(values);
		ret = give_traits(ctx, values, number);
		if (*(volatile __u32 *)&receive->last_sequence == sequence)
			return ret;
	}
	return refuse(-EAGAIN);
}

/*
 * Lets the kernel's own answer pass. Of an option whose length is not in bytes (SO_GET_FILTER), or is more than there was
 * room for, the kernel would take it for this program's, and refuse it (__cgroup_bpf_run_filter_getsockopt in
 * kernel/bpf/cgroup.c). With 0 it leaves alone what the application has been given.
 */
static __always_inline int pass(struct bpf_sockopt *ctx)
{
	__u32 len = ctx->optlen;

	if (len > PAGE_SIZE_MIN || OPTVAL(ctx) + len > OPTVAL_END(ctx))
		ctx->optlen = 0;
	return 1;
}

/* Whether the socket is an internet one; the kernel answers for others. */
static __always_inline _Bool is_inet(struct bpf_sock *sk)
{
	return sk->family == AF_INET || sk->family == AF_INET6;
}

/* Not raw sockets, which may be of the same protocols. */
static __always_inline _Bool is_served(struct bpf_sock *sk)
{
	return sk->type == SOCK_STREAM || sk->type == SOCK_DGRAM;
}

SEC("cgroup/getsockopt")
int pt_getsockopt(struct bpf_sockopt *ctx)
{
	__s32 level = ctx->level, optname = ctx->optname;
	const struct trait_sender *send;
	struct receive *receive;
	struct bpf_sock *sk;

	if (level < SOL_TRAITS || level > SOL_TRAITS_DATAGRAMS)
		return pass(ctx);
	sk = ctx->sk;
	if (!sk || !is_inet(sk))
		return 1;
	receive = bpf_sk_storage_get(&pt_receive, sk, 0, 0);
	if (level != SOL_TRAITS) {
		if (!is_served(sk) || sk->protocol != IPPROTO_UDP)
			return refuse(-EOPNOTSUPP);
		if (receive && !(receive->wants & HAS_RING))
			receive = NULL;
		return level == SOL_TRAITS_DATAGRAM ? give_datagram(ctx, receive) : give_datagrams(ctx, receive);
	}
	if (is_key_of(optname, TRAITS_KEYS))
		return give_keys(ctx, optname & 0xff);
	if (optname == RCV_TRAITS)
		return give_receive(ctx, receive, sk->protocol != IPPROTO_UDP || has_rcvmark(socket_of(ctx)));
	if (!is_served(sk))
		return refuse(-EOPNOTSUPP);
	if (is_key_of(optname, SOCKET_TRAITS)) {
		send = bpf_sk_storage_get(&pt_send, sk, 0, 0);
		return give_traits(ctx, send ? &send->own[0] : NULL, optname & 0xff);
	}
	if (optname != SAVE_SYN_TRAITS && !is_key_of(optname, SYN_TRAITS) && !is_key_of(optname, LAST_TRAITS))
		return refuse(-EINVAL);
	if (sk->protocol != IPPROTO_TCP)
		return refuse(-EOPNOTSUPP);
	if (optname == SAVE_SYN_TRAITS)
		return give_int(ctx, receive && receive->wants & WANTS_SYN);
	if (!sk->dst_port) /* disconnected, or never connected */
		receive = NULL;
	if (is_key_of(optname, SYN_TRAITS))
		return give_traits(ctx, receive && receive->syn_saved ? &receive->syn : NULL, optname & 0xff);
	return receive ? give_last(ctx, receive, optname & 0xff) : give_traits(ctx, NULL, optname & 0xff);
}

#endif /* __SOCKETS_GET_BPF_H */
