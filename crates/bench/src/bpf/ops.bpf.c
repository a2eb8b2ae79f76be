// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * What `traits bench ops` times: each operation is a function of its own, called CALLS times in a loop.
 *
 * The function is not inlined, so that clang cannot move work out of the loop; what the call itself costs is in the
 * empty functions too and cancels out. XDP programs are named after the operation and run by BPF_PROG_TEST_RUN, which
 * times them. An skb with metadata cannot be made that way: `assign` and `skb_bench` are attached to an interface, and
 * the latter times every skb operation on the packet it gets.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <packet_traits/traits.bpf.h>

/* how often an operation is called in a run; CALLS in ops.rs */
#define BURST 100
#define CALLS (BURST * BURST)
/* of the packets to measure on: local experimental (IEEE 802), ETHERTYPE_EXPERIMENTAL of the lab */
#define BENCH_ETHERTYPE 0x88b5

char LICENSE[] SEC("license") = "Dual MIT/GPL";

TRAIT_KEY(flow, __u64);
TRAIT_KEY(flow_small, __u32);
TRAIT_KEY(first, __u64, TRAIT_KEEP_FIRST);
TRAIT_KEY(first_small, __u32, TRAIT_KEEP_FIRST);

#define VALUE 0x0123456789abcdefULL

/* what the raw programs take to be at data_meta */
struct raw {
	__u64 word[8];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct raw);
} array_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct raw);
} hash_map SEC(".maps");

/* What `skb_bench` measured on the last packet: nanoseconds of CALLS calls, 0 if the operation failed. */
struct skb_times {
	__u64 packets; /* so far */
	__u64 skb_empty;
	__u64 skb_get;
	__u64 skb_get_keep_first;
	__u64 skb_batch_get4;
	__u64 tc_get;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct skb_times);
} skb_times SEC(".maps");

extern int bpf_dynptr_from_xdp(struct xdp_md *xdp, __u64 flags, struct bpf_dynptr *ptr) __ksym __weak;

/* where readers put what they read */
__u64 sink;

static __always_inline int prepare_traits(struct xdp_md *ctx)
{
	if (trait_set(ctx, flow, VALUE) || trait_set(ctx, flow_small, 1))
		return -1;
	return trait_set(ctx, first, VALUE) || trait_set(ctx, first_small, 1) ? -1 : 0;
}

static __always_inline int prepare_raw(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_meta(ctx, -(int)sizeof(struct raw));
}

static __always_inline int prepare_nothing(struct xdp_md *ctx)
{
	return 0;
}

/* BURST calls of `name`_once, in a function of their own: so the verifier looks at 2 * BURST rounds, not at CALLS. */
#define REPEATED(name, type)                                                                                           \
	__attribute__((noinline)) int name##_burst(type *ctx)                                                          \
	{                                                                                                              \
		int ret = 0, i;                                                                                        \
                                                                                                                       \
		for (i = 0; i < BURST; i++)                                                                            \
			ret = name##_once(ctx);                                                                        \
		return ret;                                                                                            \
	}

/* CALLS calls of `name`_once; what the last one returned. */
#define LOOP(name, ctx)                                                                                                \
	({                                                                                                             \
		int __ret = 0, __i;                                                                                    \
                                                                                                                       \
		for (__i = 0; __i < BURST; __i++)                                                                      \
			__ret = name##_burst(ctx);                                                                     \
		__ret;                                                                                                 \
	})

/* The program `name`, which prepares the packet and calls `name`_once; the last call must return `want`. */
#define BENCH(name, prepare, want)                                                                                     \
	REPEATED(name, struct xdp_md)                                                                                  \
	SEC("xdp") int name(struct xdp_md *ctx)                                                                        \
	{                                                                                                              \
		if (prepare(ctx))                                                                                      \
			return XDP_ABORTED;                                                                            \
		return LOOP(name, ctx) == (want) ? XDP_PASS : XDP_DROP;                                                \
	}

#define ONCE __attribute__((noinline))

/*
 * What other operations are compared to.
 */
ONCE int empty_once(struct xdp_md *ctx)
{
	__trait_use(ctx);
	return 0;
}
BENCH(empty, prepare_nothing, 0)

/* of everything that reads: a value that clang does not know goes to the sink */
ONCE int empty_sink_once(struct xdp_md *ctx)
{
	__u64 value = 0;

	__trait_use(ctx);
	__trait_hide(value);
	sink = value;
	return sizeof(value);
}
BENCH(empty_sink, prepare_nothing, sizeof(__u64))

ONCE int raw_get_once(struct xdp_md *ctx)
{
	struct raw *raw = __trait_ctx_ptr(struct xdp_md, ctx, data_meta);
	void *data = __trait_ctx_ptr(struct xdp_md, ctx, data);

	if ((void *)(raw + 1) > data)
		return -ENOENT;
	sink = raw->word[3];
	return sizeof(raw->word[3]);
}
BENCH(raw_get, prepare_raw, sizeof(__u64))

ONCE int raw_set_once(struct xdp_md *ctx)
{
	struct raw *raw = __trait_ctx_ptr(struct xdp_md, ctx, data_meta);
	void *data = __trait_ctx_ptr(struct xdp_md, ctx, data);

	if ((void *)(raw + 1) > data)
		return -ENOENT;
	raw->word[3] = VALUE;
	return 0;
}
BENCH(raw_set, prepare_raw, 0)

ONCE int call_once(struct xdp_md *ctx)
{
	return empty_once(ctx);
}
BENCH(call, prepare_nothing, 0)

ONCE int helper_once(struct xdp_md *ctx)
{
	sink = bpf_xdp_get_buff_len(ctx);
	return sizeof(sink);
}
BENCH(helper, prepare_nothing, sizeof(__u64))

/* no kfunc does nothing; this one fills in 16 bytes */
ONCE int kfunc_once(struct xdp_md *ctx)
{
	struct __trait_dynptr packet;

	if (!bpf_dynptr_from_xdp)
		return -EOPNOTSUPP;
	return bpf_dynptr_from_xdp(ctx, 0, (struct bpf_dynptr *)&packet);
}
BENCH(kfunc, prepare_nothing, 0)

ONCE int array_once(struct xdp_md *ctx)
{
	struct raw *raw;
	__u32 key = 42;

	__trait_use(ctx);
	__trait_hide(key);
	raw = bpf_map_lookup_elem(&array_map, &key);
	if (!raw)
		return -ENOENT;
	sink = raw->word[3];
	return sizeof(raw->word[3]);
}
BENCH(array, prepare_nothing, sizeof(__u64))

ONCE int lru_percpu_hash_once(struct xdp_md *ctx)
{
	struct raw *raw;
	__u64 key = 42;

	__trait_use(ctx);
	__trait_hide(key);
	raw = bpf_map_lookup_elem(&hash_map, &key);
	if (!raw)
		return -ENOENT;
	sink = raw->word[3];
	return sizeof(raw->word[3]);
}

REPEATED(lru_percpu_hash, struct xdp_md)

SEC("xdp") int lru_percpu_hash(struct xdp_md *ctx)
{
	struct raw raw = {};
	__u64 key = 42;

	if (bpf_map_update_elem(&hash_map, &key, &raw, BPF_ANY))
		return XDP_ABORTED;
	return LOOP(lru_percpu_hash, ctx) == sizeof(__u64) ? XDP_PASS : XDP_DROP;
}

/*
 * Traits in XDP.
 */
ONCE int get_once(struct xdp_md *ctx)
{
	__u64 value = 0;
	int ret = trait_get(ctx, flow, &value);

	sink = value;
	return ret;
}
BENCH(get, prepare_traits, sizeof(__u64))

ONCE int get_keep_first_once(struct xdp_md *ctx)
{
	__u64 value = 0;
	int ret = trait_get(ctx, first, &value);

	sink = value;
	return ret;
}
BENCH(get_keep_first, prepare_traits, sizeof(__u64))

ONCE int set_once(struct xdp_md *ctx)
{
	return trait_set(ctx, flow, VALUE);
}
BENCH(set, prepare_traits, 0)

ONCE int set_keep_first_once(struct xdp_md *ctx)
{
	return trait_set(ctx, first, VALUE);
}
BENCH(set_keep_first, prepare_traits, 0)

/* a key must be set to be deleted */
ONCE int set_del_once(struct xdp_md *ctx)
{
	int ret = trait_set(ctx, flow, VALUE);

	return ret ? ret : trait_del(ctx, flow);
}
BENCH(set_del, prepare_traits, 0)

ONCE int batch_get4_once(struct xdp_md *ctx)
{
	__u64 flow = 0, first = 0;
	__u32 flow_small = 0, first_small = 0;
	struct trait_view view;
	int ret;

	if (trait_view(ctx, &view))
		return -ENOENT;
	ret = trait_view_get(&view, flow, &flow);
	ret += trait_view_get(&view, flow_small, &flow_small);
	ret += trait_view_get(&view, first, &first);
	ret += trait_view_get(&view, first_small, &first_small);
	sink = flow ^ flow_small ^ first ^ first_small;
	return ret;
}
BENCH(batch_get4, prepare_traits, 2 * (sizeof(__u64) + sizeof(__u32)))

/* All metadata is given back, for the next call to reserve it again: what `adjust_meta` does, to no effect. */
ONCE int reserve_seal_once(struct xdp_md *ctx)
{
	int ret = trait_init(ctx);

	if (!ret)
		ret = trait_seal(ctx);
	return ret ? ret : bpf_xdp_adjust_meta(ctx, trait_area.flow_len);
}

BENCH(reserve_seal, prepare_nothing, 0)

ONCE int adjust_meta_once(struct xdp_md *ctx)
{
	return bpf_xdp_adjust_meta(ctx, 0);
}
BENCH(adjust_meta, prepare_nothing, 0)

/*
 * Traits of an skb.
 */
ONCE int skb_empty_once(struct __sk_buff *ctx)
{
	__u64 value = 0;

	__trait_use(ctx);
	__trait_hide(value);
	sink = value;
	return sizeof(value);
}
REPEATED(skb_empty, struct __sk_buff)

ONCE int skb_get_once(struct __sk_buff *ctx)
{
	__u64 value = 0;
	int ret = trait_get(ctx, flow, &value);

	sink = value;
	return ret;
}
REPEATED(skb_get, struct __sk_buff)

ONCE int skb_get_keep_first_once(struct __sk_buff *ctx)
{
	__u64 value = 0;
	int ret = trait_get(ctx, first, &value);

	sink = value;
	return ret;
}
REPEATED(skb_get_keep_first, struct __sk_buff)

ONCE int skb_batch_get4_once(struct __sk_buff *ctx)
{
	__u64 flow = 0, first = 0;
	__u32 flow_small = 0, first_small = 0;
	struct trait_view view;
	int ret;

	if (trait_view(ctx, &view))
		return -ENOENT;
	ret = trait_view_get(&view, flow, &flow);
	ret += trait_view_get(&view, flow_small, &flow_small);
	ret += trait_view_get(&view, first, &first);
	ret += trait_view_get(&view, first_small, &first_small);
	sink = flow ^ flow_small ^ first ^ first_small;
	return ret;
}
REPEATED(skb_batch_get4, struct __sk_buff)

ONCE int tc_get_once(struct __sk_buff *ctx)
{
	__u64 value = 0;
	int ret = trait_tc_get(ctx, flow, &value);

	sink = value;
	return ret;
}
REPEATED(tc_get, struct __sk_buff)

/* Nanoseconds of CALLS calls; 0 if the last does not return `want`. */
#define TIMED(name, ctx, want)                                                                                         \
	({                                                                                                             \
		__u64 __start = bpf_ktime_get_ns();                                                                    \
		int __last = LOOP(name, ctx);                                                                          \
                                                                                                                       \
		__last == (want) ? bpf_ktime_get_ns() - __start : 0;                                                   \
	})

SEC("xdp") int assign(struct xdp_md *ctx)
{
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > data_end || eth->h_proto != bpf_htons(BENCH_ETHERTYPE))
		return XDP_PASS;
	return prepare_traits(ctx) || trait_seal(ctx) ? XDP_ABORTED : XDP_PASS;
}

SEC("tc") int skb_bench(struct __sk_buff *ctx)
{
	struct skb_times *times;
	__u32 zero = 0;

	if (ctx->protocol != bpf_htons(BENCH_ETHERTYPE))
		return TC_ACT_UNSPEC;
	times = bpf_map_lookup_elem(&skb_times, &zero);
	if (!times)
		return TC_ACT_SHOT;
	times->skb_empty = TIMED(skb_empty, ctx, sizeof(__u64));
	times->skb_get = TIMED(skb_get, ctx, sizeof(__u64));
	times->skb_get_keep_first = TIMED(skb_get_keep_first, ctx, sizeof(__u64));
	times->skb_batch_get4 = TIMED(skb_batch_get4, ctx, 2 * (sizeof(__u64) + sizeof(__u32)));
	times->tc_get = TIMED(tc_get, ctx, sizeof(__u64));
	/* the packet is done with; user space waits for the count */
	__sync_fetch_and_add(&times->packets, 1);
	return TC_ACT_SHOT;
}
