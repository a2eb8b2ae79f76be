/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What the programs keep: their maps, the structures in them, and copying values. Included first.
 */
#ifndef __SOCKETS_STATE_BPF_H
#define __SOCKETS_STATE_BPF_H

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

	__trait_keep_loop(zero);
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

#endif /* __SOCKETS_STATE_BPF_H */
