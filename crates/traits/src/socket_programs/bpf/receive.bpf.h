/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Arriving packets: a datagram's traits go into a slot of its socket's ring, those of a connection's data are kept with
 * the socket.
 */
#ifndef __SOCKETS_RECEIVE_BPF_H
#define __SOCKETS_RECEIVE_BPF_H

#include "state.bpf.h"
#include "syn.bpf.h"

/* Bit of a socket's flag in sock_common.skc_flags; 0 if the kernel has no such flag. */
static __always_inline __u64 rcvmark_bit(void)
{
	if (!bpf_core_enum_value_exists(enum sock_flags___traits, SOCK_RCVMARK___traits))
		return 0;
	return 1ULL << bpf_core_enum_value(enum sock_flags___traits, SOCK_RCVMARK___traits);
}

/* Whether the application is told marks: the kernel may have refused it, or the application has turned it off. */
static __always_inline _Bool has_rcvmark(__u64 sk)
{
	return sk && __trait_kernel_field(sk, struct sock___traits, __sk_common.skc_flags) & rcvmark_bit();
}

/*
 * Whether the socket will drop the datagram (__udp_enqueue_schedule_skb in net/ipv4/udp.c). Such a one must not take a slot
 * from one that waits in the socket's queue.
 */
static __always_inline _Bool will_be_dropped(const void *skb)
{
	__u64 sk = SKB(skb, sk);
	__u32 used;

	if (!sk)
		return 0;
	used = __trait_kernel_field(sk, struct sock___traits, sk_backlog.rmem_alloc.counter);
	return used && used + SKB(skb, truesize) > __trait_kernel_field(sk, struct sock___traits, sk_rcvbuf);
}

/* Puts a datagram's traits and mark into the next slot of its socket's ring. Returns the slot's handle. */
static __always_inline __u32 take_slot(struct __sk_buff *ctx, const struct receive *receive)
{
	__u32 index = receive->ring, handle;
	struct trait_view view;
	struct ring *ring;
	struct slot *slot;
	int err;

	err = VIEW(ctx, __trait_skb_of(ctx), &view);
	if (err && !ctx->mark)
		return HANDLE_PLAIN;
	if (will_be_dropped(__trait_skb_of(ctx)))
		return HANDLE_NONE;
	ring = bpf_map_lookup_elem(&pt_rings, &index);
	if (!ring)
		return HANDLE_NONE;
	handle = __sync_fetch_and_add(&ring->next, 1);
	if (handle == HANDLE_UNKNOWN || handle >= HANDLE_PLAIN)
		return HANDLE_NONE;
	index = index * ring_slots + (handle & (ring_slots - 1));
	slot = bpf_map_lookup_elem(&pt_slots, &index);
	if (!slot)
		return HANDLE_NONE;
	/*
	 * Both exchanges are full barriers. Whoever finds the slot being written, after a whole turn of the ring, leaves it
	 * to the one who writes.
	 */
	if (__sync_lock_test_and_set(&slot->handle, HANDLE_NONE) == HANDLE_NONE)
		return HANDLE_NONE;
	slot->generation = receive->generation;
	slot->revision = key_revision();
	slot->flags = TRAITS_FOUND;
	slot->mark = ctx->mark;
	slot->present = err ? 0 : view.flow_present | view.packet_present;
	if (slot->present)
		copy_values(&view, slot->word);
	__sync_lock_test_and_set(&slot->handle, handle);
	return handle;
}

/* A field of the kernel's TCP socket at `sk`. */
#define TCP(sk, field) __trait_kernel_field(sk, struct tcp_sock___traits, field)

/* The newest of the two arrivals, and the other one. */
static __always_inline struct arrival *newest_of(struct receive *receive, __u32 other)
{
	return &receive->last[(receive->newest + other) & 1];
}

static __always_inline _Bool is_known(const struct receive *receive, const struct arrival *arrival)
{
	__u32 age = *(const volatile __u32 *)&receive->epoch + 1 - arrival->epoch;

	__trait_keep_number(age);
	return !age;
}

/* Whether TCP has taken the data: it checks more than is checked here, the checksum and the acknowledgement among it. */
static __always_inline _Bool is_taken(const struct receive *receive, const struct arrival *arrival, __u32 next)
{
	return is_known(receive, arrival) && (__s32)(arrival->end - next) <= 0;
}

/* Keeps the traits of a segment if it has data that the socket does not have yet and that is in its window. */
#define KEEP_LAST(ctx, skb, sk, receive)                                                                               \
	({                                                                                                             \
		struct arrival *__to = begin_last(skb, sk, receive);                                                   \
		struct trait_view __view;                                                                              \
                                                                                                                       \
		if (__to) {                                                                                            \
			int __err = VIEW(ctx, skb, &__view);                                                           \
                                                                                                                       \
			keep(&__to->values, &__view, __err);                                                           \
			__sync_fetch_and_add(&(receive)->last_sequence, 1);                                            \
		}                                                                                                      \
	})

static __always_inline struct arrival *begin_last(const void *skb, __u64 sk, struct receive *receive)
{
	struct segment segment;
	struct arrival *to;
	__u32 next, end, sequence;
	__s32 window;

	read_segment(skb, &segment);
	if (!segment.payload_len)
		return NULL;
	next = TCP(sk, rcv_nxt);
	window = TCP(sk, rcv_wup) + TCP(sk, rcv_wnd) - next; /* tcp_receive_window, include/net/tcp.h */
	if (window < 0)
		window = 0;
	end = segment.sequence + segment.syn + segment.payload_len;
	if ((__s32)(end - next) <= 0 || (__s32)(segment.sequence - next) > window)
		return NULL;
	sequence = receive->last_sequence;
	if (sequence & 1 || __sync_val_compare_and_swap(&receive->last_sequence, sequence, sequence + 1) != sequence)
		return NULL; /* another CPU is at it, with data of the same moment */
	if (is_taken(receive, newest_of(receive, 0), next))
		receive->newest ^= 1;
	to = newest_of(receive, 0);
	to->end = end;
	to->epoch = *(volatile __u32 *)&receive->epoch + 1;
	return to;
}

SEC("cgroup_skb/ingress")
int pt_ingress(struct __sk_buff *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct receive *receive;
	const void *skb;

	if (!sk)
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	receive = bpf_sk_storage_get(&pt_receive, sk, 0, 0);
	if (!receive || !receive->wants)
		return 1;
	skb = __trait_skb_of(ctx);
	if (sk->protocol == IPPROTO_UDP) {
		if (receive->wants & WANTS_RECEIVED && has_rcvmark(SKB(skb, sk)))
			ctx->mark = take_slot(ctx, receive);
		return 1;
	}
	if (sk->state == BPF_TCP_LISTEN) {
		if (receive->wants & WANTS_SYN)
			save_syn(ctx, skb);
	} else if (receive->wants & WANTS_RECEIVED) {
		KEEP_LAST(ctx, skb, SKB(skb, sk), receive);
	}
	return 1;
}

SEC("cgroup/sock_release")
int pt_release(struct bpf_sock *ctx)
{
	struct receive *receive = bpf_sk_storage_get(&pt_receive, ctx, 0, 0);
	struct ring *ring;
	__u32 index;

	if (!receive || !(receive->wants & HAS_RING))
		return 1;
	index = receive->ring;
	receive->wants = 0;
	ring = bpf_map_lookup_elem(&pt_rings, &index);
	if (ring)
		__sync_lock_test_and_set(&ring->owner, 0);
	return 1;
}

#endif /* __SOCKETS_RECEIVE_BPF_H */
