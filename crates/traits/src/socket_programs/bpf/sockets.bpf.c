// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Traits in the application: the programs of a cgroup that serve the options of <packet_traits/socket.h>.
 *
 * What is kept of a socket is in socket storage, which the kernel frees with the socket: `pt_receive` for what comes in,
 * and is copied to sockets accepted from it, `pt_send` for what goes out.
 */
#include <linux/bpf.h>
#include <packet_traits/traits.bpf.h>
#include <packet_traits/socket.h>
#include <packet_traits/socket.bpf.h>

#define AF_INET 2
#define AF_INET6 10
#define SOL_SOCKET 1 /* include/uapi/asm-generic/socket.h */
#define SO_RCVMARK 75
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define SOCK_STREAM 1 /* include/linux/net.h */
#define SOCK_DGRAM 2
#define ETH_P_IP 0x0800

#ifndef EAGAIN
#define EAGAIN 11
#endif
#ifndef EISCONN
#define EISCONN 106
#endif

#define WORDS_MAX TRAIT_SENDER_WORDS

/* the smallest page: what is longer is not shown whole (sockopt_alloc_buf in kernel/bpf/cgroup.c) */
#define PAGE_SIZE_MIN 4096

/* handles that no slot has; 0 is also the mark of a datagram that came before RCV_TRAITS */
#define HANDLE_UNKNOWN 0
#define HANDLE_PLAIN 0xfffffffe /* neither traits nor a mark */
#define HANDLE_NONE 0xffffffff

/* filled in before loading */
const volatile __u32 ring_count = 1;
const volatile __u32 rings_per_user = 1; /* of anyone but root */
const volatile __u32 rings_of_users = 1; /* of all but root together */
const volatile __u32 ring_slots = 1; /* a power of two */
const volatile __u64 instance = 0;

/*
 * The registry's maps (crates/traits/src/registry/table.rs).
 */
struct key_record {
	char name[32];
	char description[128];
	__u8 type;
	__u8 merge;
	__u8 size;
	__u8 distance;
	__u32 uid;
	__u64 generation;
	__u64 registered_at;
	char comm[16];
	__u64 checksum;
};

struct state_record {
	__u64 live;
	__u64 seq;
	__u64 discard; /* keys whose merge policy that is */
	__u64 checksum;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TRAITS_KEY_MAX);
	__type(key, __u32);
	__uint(value_size, sizeof(struct key_record));
} pt_keys SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__uint(value_size, sizeof(struct state_record));
} pt_state SEC(".maps");

/*
 * What a socket has received.
 */
#define WANTS_SYN 1 /* SAVE_SYN_TRAITS */
#define WANTS_RECEIVED 2 /* RCV_TRAITS */
#define SET_RCVMARK 4 /* RCV_TRAITS turned SO_RCVMARK on */
#define HAS_RING 8

/* Data that has come to a TCP socket, which may still refuse it. */
struct arrival {
	__u32 epoch; /* one more than that of struct receive; else what it says has been forgotten, or never was */
	__u32 end; /* sequence number after it */
	struct trait_sender_values values;
};

struct receive {
	__u32 wants;
	__u32 ring; /* if HAS_RING */
	__u32 generation; /* of that ring */
	__u32 syn_saved;
	struct trait_sender_values syn;
	__u32 last_sequence; /* odd: being written */
	__u32 newest; /* which of the two; the other one has been taken */
	__u32 epoch; /* how often they were forgotten */
	__u32 used; /* there may be something of a connection in it */
	struct arrival last[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct receive);
} pt_receive SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct trait_sender);
} pt_send SEC(".maps");

/*
 * Datagrams: a ring of slots for each socket.
 */
struct ring {
	__u64 owner; /* RING_OWNED and the user who turned RCV_TRAITS on; 0: free */
	__u32 generation;
	__u32 next; /* handle; the first one is random, so that marks that are not handles do not look like one */
	__u32 reserved[12]; /* a cache line of its own */
};

#define RING_OWNED (1ULL << 32)

struct slot {
	__u32 handle; /* HANDLE_NONE: being written */
	__u32 generation; /* of the ring's owner */
	__u64 revision; /* of the registry */
	__u64 present;
	__u32 flags;
	__u32 mark;
	__u64 word[WORDS_MAX];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ring);
} pt_rings SEC(".maps");

/* BTF has the types of variables only, and the Rust sides are compared with these. Nothing reads it. */
const volatile struct {
	__u64 unused;
	struct key_record key_record[0];
	struct state_record state_record[0];
	struct slot slot[0];
	struct traits_key traits_key[0];
	struct traits traits[0];
	struct traits_receive traits_receive[0];
} described = {};

/* ring_count * ring_slots of them; value_size is what the registry's layout needs of struct slot */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__uint(value_size, sizeof(struct slot));
} pt_slots SEC(".maps");

/*
 * SYNs on their way through the handshake. The kernel keeps none of a SYN's packet until the connection is accepted.
 */
struct syn_key {
	__u64 netns;
	__u64 saddr[2]; /* IPv4 as ::ffff:a.b.c.d */
	__u64 daddr[2];
	__u16 sport; /* network byte order */
	__u16 dport;
	__u32 sequence;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct syn_key);
	__type(value, struct trait_sender_values);
} pt_syns SEC(".maps");

#define SKB(skb, field) __trait_kernel_field(skb, struct sk_buff___traits, field)

#define FLOW_WORDS ((trait_area.flow_len - __TRAIT_FLOW_FOOTER) / 8)
#define PACKET_WORDS (trait_area.packet_len ? (trait_area.packet_len - __TRAIT_PACKET_FOOTER) / 8 : 0)
#define VALUE_WORDS (FLOW_WORDS + PACKET_WORDS)
#define TRAITS_LEN (TRAITS_HEADER_LEN + 8 * VALUE_WORDS)
#define SLOT_LEN ((16 + TRAITS_LEN + 63) & ~63u)

static __always_inline void copy_kernel(__u64 *to, __u64 from, __u32 words)
{
	__u32 i;

	if (!__trait_can_cast()) {
		if (words && words <= WORDS_MAX)
			bpf_probe_read_kernel(to, 8 * words, (const void *)from);
		return;
	}
	for (i = 0; i < WORDS_MAX && i < words; i++)
		to[i] = __trait_kernel_word(from + 8 * i, 0);
}

static __always_inline void zero_words(__u64 *to, __u32 words)
{
	__u64 zero = 0;
	__u32 i;

	__trait_hide(zero); /* clang would call memset */
	for (i = 0; i < WORDS_MAX && i < words; i++)
		to[i] = zero;
}

/* The values of the packet, flow region first. `word` has room for the layout's words. */
static __always_inline void copy_values(const struct trait_view *view, __u64 *word)
{
	copy_kernel(word, view->flow_end - trait_area.flow_len, FLOW_WORDS);
	word += FLOW_WORDS;
	if (view->packet_end)
		copy_kernel(word, view->packet_end - __TRAIT_PACKET_FOOTER - 8 * PACKET_WORDS, PACKET_WORDS);
	else
		zero_words(word, PACKET_WORDS);
}

static __always_inline void copy_words(__u64 *to, const __u64 *from, __u32 words)
{
	__u32 i;

	for (i = 0; i < WORDS_MAX && i < words; i++)
		to[i] = from[i];
}

static __always_inline struct state_record *key_state(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&pt_state, &zero);
}

/* Which revision the registry is in: a key's generation is the one that it came with. */
static __always_inline __u64 key_revision(void)
{
	struct state_record *state = key_state();

	return state ? state->seq : 0;
}

/* A view of a packet's traits, without the keys to discard of a merged one. trait_view knows the keys at binding only. */
#define VIEW(ctx, skb, view)                                                                                           \
	({                                                                                                             \
		int __viewed = trait_view(ctx, view);                                                                  \
                                                                                                                       \
		if (!__viewed)                                                                                         \
			discard(skb, view);                                                                            \
		__viewed;                                                                                              \
	})

static __always_inline void discard(const void *skb, struct trait_view *view)
{
	struct state_record *state = key_state();

	if (state)
		__trait_discard(skb, view, state->discard);
}

/* The traits of a packet; none if `err`, which trait_view gave. */
static __always_inline void keep(struct trait_sender_values *kept, const struct trait_view *view, int err)
{
	kept->revision = key_revision();
	kept->present = err ? 0 : view->flow_present | view->packet_present;
	if (kept->present)
		copy_values(view, kept->word);
}

/*
 * Arriving packets.
 */

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

	err = VIEW(ctx, __trait_kern_ctx(ctx), &view);
	if (err && !ctx->mark)
		return HANDLE_PLAIN;
	if (will_be_dropped(__trait_kern_ctx(ctx)))
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

/* A TCP header and what belongs to it. */
struct segment {
	__u16 sport; /* network byte order */
	__u16 dport;
	__u32 sequence;
	__u32 payload_len;
	_Bool syn;
	_Bool ack;
};

static __always_inline void read_segment(const void *skb, struct segment *segment)
{
	__u64 header = SKB(skb, head) + SKB(skb, transport_header);
	__u64 first = __trait_kernel_word(header, 0), second = __trait_kernel_word(header, 1);
	__u8 flags = second >> 40;

	segment->sport = first;
	segment->dport = first >> 16;
	segment->sequence = __builtin_bswap32(first >> 32);
	segment->syn = flags & 2;
	segment->ack = flags & 16;
	segment->payload_len = SKB(skb, data) + SKB(skb, len) - header - ((second >> 36 & 0xf) << 2);
}

/* ::ffff:a.b.c.d as two words */
static __always_inline void map_ipv4(__u64 *address, __u32 ipv4)
{
	address[0] = 0;
	address[1] = (__u64)ipv4 << 32 | 0xffff0000;
}

static __always_inline void save_syn(struct __sk_buff *ctx, const void *skb)
{
	struct trait_sender_values values = {};
	struct syn_key key = {};
	struct trait_view view;
	struct segment segment;
	__u64 header, sk;
	int err;

	read_segment(skb, &segment);
	sk = SKB(skb, sk);
	if (!segment.syn || segment.ack || !sk)
		return;
	header = SKB(skb, head) + SKB(skb, network_header);
	key.netns = __trait_kernel_field(__trait_kernel_field(sk, struct sock___traits, __sk_common.skc_net.net),
					 struct net___traits, net_cookie);
	if (SKB(skb, protocol) == __builtin_bswap16(ETH_P_IP)) {
		__u64 addresses = __trait_kernel_word(header + 12, 0);

		map_ipv4(key.saddr, addresses);
		map_ipv4(key.daddr, addresses >> 32);
	} else {
		key.saddr[0] = __trait_kernel_word(header + 8, 0);
		key.saddr[1] = __trait_kernel_word(header + 8, 1);
		key.daddr[0] = __trait_kernel_word(header + 24, 0);
		key.daddr[1] = __trait_kernel_word(header + 24, 1);
	}
	key.sport = segment.sport;
	key.dport = segment.dport;
	key.sequence = segment.sequence;
	err = VIEW(ctx, skb, &view);
	keep(&values, &view, err);
	bpf_map_update_elem(&pt_syns, &key, &values, BPF_ANY);
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

	__trait_hide(age); /* clang would compute a pointer from it */
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
	skb = __trait_kern_ctx(ctx);
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

/* What another CPU is just writing is forgotten too: it began before. */
static __always_inline void forget_last(struct receive *receive)
{
	__sync_fetch_and_add(&receive->epoch, 1);
}

/* Forgets what an earlier connection of the socket received. */
static __always_inline void forget(struct receive *receive)
{
	receive->syn_saved = 0;
	receive->syn.present = 0;
	forget_last(receive);
}

#define SOCK_OPS(ctx, field) ((__u32)(__u64)__trait_ctx_ptr(struct bpf_sock_ops, ctx, field))

static __always_inline void accept_syn(struct bpf_sock_ops *ctx, struct receive *receive)
{
	const void *skb = __trait_skb_of_sock_ops(ctx);
	struct trait_sender_values *values;
	struct syn_key key = {};

	/* what the listener had of a connection of its own; if it had none, do not forget data that has overtaken this */
	if (receive->used)
		forget(receive);
	receive->used = 1;
	key.netns = bpf_get_netns_cookie(ctx);
	if (SOCK_OPS(ctx, family) == AF_INET) {
		map_ipv4(key.saddr, SOCK_OPS(ctx, remote_ip4));
		map_ipv4(key.daddr, SOCK_OPS(ctx, local_ip4));
	} else {
		key.saddr[0] = SOCK_OPS(ctx, remote_ip6[0]) | (__u64)SOCK_OPS(ctx, remote_ip6[1]) << 32;
		key.saddr[1] = SOCK_OPS(ctx, remote_ip6[2]) | (__u64)SOCK_OPS(ctx, remote_ip6[3]) << 32;
		key.daddr[0] = SOCK_OPS(ctx, local_ip6[0]) | (__u64)SOCK_OPS(ctx, local_ip6[1]) << 32;
		key.daddr[1] = SOCK_OPS(ctx, local_ip6[2]) | (__u64)SOCK_OPS(ctx, local_ip6[3]) << 32;
	}
	key.sport = SOCK_OPS(ctx, remote_port) >> 16;
	key.dport = __builtin_bswap16(SOCK_OPS(ctx, local_port));
	key.sequence = SOCK_OPS(ctx, rcv_nxt) - 1;
	if (receive->wants & WANTS_SYN) {
		values = bpf_map_lookup_elem(&pt_syns, &key);
		if (values) {
			receive->syn.present = values->present;
			receive->syn.revision = values->revision;
			copy_words(receive->syn.word, values->word, VALUE_WORDS);
			receive->syn_saved = 1;
			bpf_map_delete_elem(&pt_syns, &key);
		}
	}
	/* what ended the handshake may have data */
	if (skb && receive->wants & WANTS_RECEIVED)
		KEEP_LAST(ctx, skb, __trait_kernel_field(__trait_kern_ctx(ctx), struct bpf_sock_ops_kern___traits, sk),
			  receive);
}

SEC("sockops")
int pt_sockops(struct bpf_sock_ops *ctx)
{
	struct receive *receive;
	struct bpf_sock *sk;

	if (ctx->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB &&
	    ctx->op != BPF_SOCK_OPS_TCP_LISTEN_CB)
		return 1;
	sk = ctx->sk;
	if (!sk)
		return 1;
	receive = bpf_sk_storage_get(&pt_receive, sk, 0, 0);
	if (!receive)
		return 1;
	if (ctx->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
		accept_syn(ctx, receive);
	} else {
		forget(receive);
		receive->used = ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB;
	}
	return 1;
}

/*
 * Leaving packets: binds a datagram's own traits to it.
 */
SEC("cgroup_skb/egress")
int pt_egress(struct __sk_buff *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct trait_sender *send;
	__u64 skb;

	if (!sk)
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->protocol != IPPROTO_UDP)
		return 1;
	send = bpf_sk_storage_get(&pt_send, sk, 0, 0);
	if (!send)
		return 1;
	skb = (__u64)__trait_kern_ctx(ctx);
	if (send->state == TRAIT_NEXT_ARMED && __trait_is_current(send->task, send->pid)) {
		send->skb = skb;
		send->state = TRAIT_NEXT_BOUND;
	} else if (send->state == TRAIT_NEXT_BOUND && send->skb == skb) {
		/* a later datagram in the memory of the one that had them */
		send->state = TRAIT_NEXT_NONE;
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

/*
 * The options.
 */

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
	__u32 of_packet = -(__u32)(record->merge != TRAIT_BLOCK), has_value = -(__u32)(record->size != 0);

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

#define OPTVAL(ctx) (*(void *volatile *)&(ctx)->optval)
#define OPTVAL_END(ctx) (*(void *volatile *)&(ctx)->optval_end)

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
	__trait_hide(offset); /* each size has a bound of its own, which clang would share */
	return size <= len && offset <= len - size ? (void *)word + offset : NULL;
}

/* Does `act` with a constant `n` that is the size. */
#define FOR_SIZE(size, act)                                                                                            \
	switch (size) {                                                                                                \
		act(1) act(2) act(4) act(8) act(16)                                                                    \
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
	FOR_SIZE(place.size, COPY)
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
	FOR_SIZE(place.size, GIVE)
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
		__trait_hide(values); /* clang would ask again, and old verifiers not know the answer */
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
	*(volatile __s32 *)&ctx->level = SOL_SOCKET;
	*(volatile __s32 *)&ctx->optname = SO_RCVMARK;
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
	FOR_SIZE(change->place.size, TAKE)
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
	FOR_SIZE(change->place.size, MAKE)
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
	send->nonce = trait_sender_nonce();
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

char LICENSE[] SEC("license") = "Dual MIT/GPL";
