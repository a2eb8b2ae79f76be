// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Carries out a list of trait calls on one packet: in XDP by key number (call_by_number) or by name (call_by_name), then
 * reads by number in TC and in a socket filter. The Rust side is rfc_conformance.rs.
 *
 * For calls by name, TYPE is the C type of the keys k0 .. k63, MERGE their policy; without TYPE they are flags. Only
 * numbers below KEYS exist.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <packet_traits/rfc.bpf.h>

#ifndef KEYS
#define KEYS 0
#endif
#ifndef MERGE
#define MERGE TRAIT_BLOCK
#endif

#define MAX_CALLS 1024
#define MAX_LEN 32

enum op {
	OP_GET,
	OP_SET,
	OP_DEL,
	OP_IS_SET,
};

struct call {
	__u32 op;
	__s32 ret; /* out */
	__u64 key;
	__u64 len; /* of the value or buffer */
	__u64 flags;
	__u8 value[MAX_LEN]; /* in: to set; out: as read */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_CALLS);
	__type(key, __u32);
	__type(value, struct call);
} calls SEC(".maps");

/* How many of `calls`; set before the packet comes. */
__u64 count;
/* How many packets had them done. */
__u64 done;

/* The packets with this Ethernet type only: a link carries others too. */
#define WANTED 0xb588 /* 0x88b5 in network order: local experimental */

static __always_inline _Bool wanted(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;

	return (void *)(eth + 1) <= end && eth->h_proto == WANTED;
}

/* A length that is a constant to the verifier in each branch. */
#define EACH_LEN(len, ret, do_)                                                                                        \
	switch (len) {                                                                                                 \
	case 0:                                                                                                        \
		ret = do_(0);                                                                                          \
		break;                                                                                                 \
	case 1:                                                                                                        \
		ret = do_(1);                                                                                          \
		break;                                                                                                 \
	case 2:                                                                                                        \
		ret = do_(2);                                                                                          \
		break;                                                                                                 \
	case 3:                                                                                                        \
		ret = do_(3);                                                                                          \
		break;                                                                                                 \
	case 4:                                                                                                        \
		ret = do_(4);                                                                                          \
		break;                                                                                                 \
	case 8:                                                                                                        \
		ret = do_(8);                                                                                          \
		break;                                                                                                 \
	case 16:                                                                                                       \
		ret = do_(16);                                                                                         \
		break;                                                                                                 \
	case 17:                                                                                                       \
		ret = do_(17);                                                                                         \
		break;                                                                                                 \
	case 32:                                                                                                       \
		ret = do_(32);                                                                                         \
		break;                                                                                                 \
	}

#define NO_SUCH_CALL -1000

/* Own functions, not static: verified once, not once for each call in the loop. */
__noinline int number_get(struct xdp_md *ctx, __u32 index)
{
	struct call *call = bpf_map_lookup_elem(&calls, &index);
	__u8 value[MAX_LEN] = {};
	int ret = NO_SUCH_CALL;

	if (!call)
		return NO_SUCH_CALL;
#define GET(len) bpf_xdp_trait_get(ctx, call->key, value, len)
	EACH_LEN(call->len, ret, GET)
#undef GET
	__builtin_memcpy(call->value, value, MAX_LEN);
	return ret;
}

__noinline int number_set(struct xdp_md *ctx, __u32 index)
{
	struct call *call = bpf_map_lookup_elem(&calls, &index);
	__u8 value[MAX_LEN];
	int ret = NO_SUCH_CALL;

	if (!call)
		return NO_SUCH_CALL;
	__builtin_memcpy(value, call->value, MAX_LEN);
#define SET(len) bpf_xdp_trait_set(ctx, call->key, value, len, call->flags)
	EACH_LEN(call->len, ret, SET)
#undef SET
	return ret;
}

__noinline int number_call(struct xdp_md *ctx, __u32 index)
{
	struct call *call = bpf_map_lookup_elem(&calls, &index);
	int ret = NO_SUCH_CALL;

	if (!call)
		return NO_SUCH_CALL;
	switch (call->op) {
	case OP_GET:
		ret = number_get(ctx, index);
		break;
	case OP_SET:
		ret = number_set(ctx, index);
		break;
	case OP_DEL:
		ret = bpf_xdp_trait_del(ctx, call->key);
		break;
	case OP_IS_SET:
		ret = bpf_xdp_trait_is_set(ctx, call->key);
		break;
	}
	call->ret = ret;
	return 0;
}

/* The index stays in a register, which the verifier can count in. */
#define DO_CALLS(ctx, do_call)                                                                                         \
	({                                                                                                             \
		__u32 __i;                                                                                             \
                                                                                                                       \
		for (__i = 0; __i < MAX_CALLS && __i < count; __i++)                                                   \
			do_call(ctx, __i);                                                                             \
		__sync_fetch_and_add(&done, 1);                                                                        \
	})

SEC("xdp")
int call_by_number(struct xdp_md *ctx)
{
	if (wanted(ctx))
		DO_CALLS(ctx, number_call);
	return XDP_PASS;
}

/* What TC and a socket filter read of every key: ret, and the value. */
struct read {
	__s32 ret;
	__s32 is_set;
	__s32 too_small; /* ret with a buffer of no bytes */
	__s32 set; /* ret of a set */
	__s32 del;
	__u8 value[16];
};

#define READERS(array)                                                                                                 \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                                      \
		__uint(max_entries, TRAITS_KEY_COUNT + 1);                                                             \
		__type(key, __u32);                                                                                    \
		__type(value, struct read);                                                                            \
	} array SEC(".maps")

READERS(tc_reads);
READERS(filter_reads);

#define READER(name, array)                                                                                            \
	__noinline int name(struct __sk_buff *ctx, __u32 key)                                                          \
	{                                                                                                              \
		struct read read = {};                                                                                 \
                                                                                                                       \
		read.ret = bpf_skb_trait_get(ctx, key, read.value, sizeof(read.value));                                \
		read.is_set = bpf_skb_trait_is_set(ctx, key);                                                          \
		read.too_small = bpf_skb_trait_get(ctx, key, read.value, 0);                                           \
		read.set = bpf_skb_trait_set(ctx, key, read.value, sizeof(read.value), 0);                             \
		read.del = bpf_skb_trait_del(ctx, key);                                                                \
		bpf_map_update_elem(&array, &key, &read, BPF_ANY);                                                     \
		return 0;                                                                                              \
	}

READER(tc_read_key, tc_reads)
READER(filter_read_key, filter_reads)

SEC("tc")
int tc_read(struct __sk_buff *ctx)
{
	__u32 key;

	for (key = 0; ctx->protocol == WANTED && key <= TRAITS_KEY_COUNT; key++)
		tc_read_key(ctx, key);
	return 0; /* TC_ACT_OK */
}

SEC("socket")
int filter_read(struct __sk_buff *ctx)
{
	__u32 key;

	for (key = 0; ctx->protocol == WANTED && key <= TRAITS_KEY_COUNT; key++)
		filter_read_key(ctx, key);
	return -1;
}

/*
 * By name. EACH_KEY(do_) is do_(0) do_(1) … for the keys there are, which are always the lowest numbers: the test
 * registers k0 first.
 */
#define EACH_8(do_, a, b, c, d, e, f, g, h) do_(a) do_(b) do_(c) do_(d) do_(e) do_(f) do_(g) do_(h)
#if KEYS == 64
#define EACH_KEY(do_)                                                                                                  \
	EACH_8(do_, 0, 1, 2, 3, 4, 5, 6, 7)                                                                            \
	EACH_8(do_, 8, 9, 10, 11, 12, 13, 14, 15)                                                                      \
	EACH_8(do_, 16, 17, 18, 19, 20, 21, 22, 23)                                                                    \
	EACH_8(do_, 24, 25, 26, 27, 28, 29, 30, 31)                                                                    \
	EACH_8(do_, 32, 33, 34, 35, 36, 37, 38, 39)                                                                    \
	EACH_8(do_, 40, 41, 42, 43, 44, 45, 46, 47)                                                                    \
	EACH_8(do_, 48, 49, 50, 51, 52, 53, 54, 55)                                                                    \
	EACH_8(do_, 56, 57, 58, 59, 60, 61, 62, 63)
#elif KEYS == 8
#define EACH_KEY(do_) EACH_8(do_, 0, 1, 2, 3, 4, 5, 6, 7)
#endif

#if KEYS
#ifdef TYPE
#if TYPE_SIZE == 16
typedef struct {
	__u64 word[2];
} type16;
#endif
#define DECLARE(n) TRAIT_KEY(k##n, TYPE, MERGE);
#else
#define DECLARE(n) TRAIT_FLAG(k##n, MERGE);
#endif
EACH_KEY(DECLARE)

__noinline int name_get(struct xdp_md *ctx, __u32 index)
{
	struct call *call = bpf_map_lookup_elem(&calls, &index);

	if (!call)
		return NO_SUCH_CALL;
	__builtin_memset(call->value, 0, MAX_LEN);
	switch (call->key) {
#ifdef TYPE
#define GET(n)                                                                                                         \
	case n: {                                                                                                      \
		TYPE value;                                                                                            \
		int ret;                                                                                               \
                                                                                                                       \
		ret = trait_get(ctx, k##n, &value);                                                                    \
		if (ret > 0)                                                                                           \
			*(TYPE *)call->value = value;                                                                  \
		return ret;                                                                                            \
	}
#else
#define GET(n)                                                                                                         \
	case n:                                                                                                        \
		return trait_is_set(ctx, k##n) ? 0 : -ENOENT;
#endif
		EACH_KEY(GET)
	}
	return NO_SUCH_CALL;
}

__noinline int name_set(struct xdp_md *ctx, __u32 index)
{
	struct call *call = bpf_map_lookup_elem(&calls, &index);

	if (!call)
		return NO_SUCH_CALL;
	switch (call->key) {
#ifdef TYPE
#define SET(n)                                                                                                         \
	case n:                                                                                                        \
		return trait_set(ctx, k##n, *(TYPE *)call->value);
#else
#define SET(n)                                                                                                         \
	case n:                                                                                                        \
		return trait_set_flag(ctx, k##n);
#endif
		EACH_KEY(SET)
	}
	return NO_SUCH_CALL;
}

__noinline int name_del(struct xdp_md *ctx, __u32 index)
{
	struct call *call = bpf_map_lookup_elem(&calls, &index);

	if (!call)
		return NO_SUCH_CALL;
	switch (call->key) {
#define DEL(n)                                                                                                         \
	case n:                                                                                                        \
		return trait_del(ctx, k##n);
		EACH_KEY(DEL)
	}
	return NO_SUCH_CALL;
}

__noinline int name_is_set(struct xdp_md *ctx, __u32 index)
{
	struct call *call = bpf_map_lookup_elem(&calls, &index);

	if (!call)
		return NO_SUCH_CALL;
	switch (call->key) {
#define IS_SET(n)                                                                                                      \
	case n:                                                                                                        \
		return trait_is_set(ctx, k##n);
		EACH_KEY(IS_SET)
	}
	return NO_SUCH_CALL;
}

__noinline int name_call(struct xdp_md *ctx, __u32 index)
{
	struct call *call = bpf_map_lookup_elem(&calls, &index);
	int ret = NO_SUCH_CALL;

	if (!call)
		return NO_SUCH_CALL;
	switch (call->op) {
	case OP_GET:
		ret = name_get(ctx, index);
		break;
	case OP_SET:
		ret = name_set(ctx, index);
		break;
	case OP_DEL:
		ret = name_del(ctx, index);
		break;
	case OP_IS_SET:
		ret = name_is_set(ctx, index);
		break;
	}
	call->ret = ret;
	return 0;
}

SEC("xdp")
int call_by_name(struct xdp_md *ctx)
{
	if (wanted(ctx))
		DO_CALLS(ctx, name_call);
	return XDP_PASS;
}
#endif

char LICENSE[] SEC("license") = "Dual MIT/GPL";
