// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Two versions of one deployment, by VERSION: every program counts the packets it meets, by the number that the sender
 * has put into them.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <packet_traits/traits.bpf.h>

#ifndef VERSION
#define VERSION 1
#endif

#define PACKETS (1 << 19)

enum { AT_XDP, AT_TC, AT_PREROUTING, AT_INPUT, AT_CGROUP, AT_FILTER, HOOKS };

#ifdef SHORT_AREA
TRAIT_KEY(seq, __u64);
#else
TRAIT_KEY(seq, __u64, TRAIT_KEEP_FIRST);
#endif
TRAIT_KEY(tenant, __u32);

struct seen {
	__u32 by[HOOKS];
	__u32 version;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PACKETS);
	__type(key, __u32);
	__type(value, struct seen);
} seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} runs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} ids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} table SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CPUMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} cpus SEC(".maps");

const volatile __u32 unused = 0;
const volatile __u32 interfaces[2] = {};

static __always_inline void count(__u64 number, __u32 hook)
{
	__u32 key = number;
	struct seen *packet = bpf_map_lookup_elem(&seen, &key);

	if (!packet)
		return;
	packet->by[hook]++;
	packet->version |= VERSION;
}

#define COUNT_BY_TRAIT(ctx, hook)                                                                                      \
	({                                                                                                             \
		__u64 number;                                                                                          \
                                                                                                                       \
		if (trait_get(ctx, seq, &number) > 0)                                                                  \
			count(number, hook);                                                                           \
	})

#ifndef TC_VERDICT
#define TC_VERDICT TC_ACT_UNSPEC
#endif

SEC("tc")
int on_tc(struct __sk_buff *ctx)
{
	COUNT_BY_TRAIT(ctx, AT_TC);
	return TC_VERDICT;
}

#ifdef TC_SECOND
SEC("tcx/ingress")
int on_tc_second(struct __sk_buff *ctx)
{
	return TC_SECOND;
}
#endif

#ifdef TC_EGRESS
SEC("tcx/egress")
int on_tc_egress(struct __sk_buff *ctx)
{
	return TC_EGRESS;
}
#endif

#ifndef ONLY_TC
/* the number of the packet, and 1, or 0 if it has none */
static __always_inline int number_of(struct xdp_md *ctx, __u64 *number)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	__u64 *payload = (void *)(ip + 1) + sizeof(struct udphdr);

	if ((void *)(payload + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->protocol != IPPROTO_UDP)
		return 0;
	*number = bpf_be64_to_cpu(*payload);
	return 1;
}

#ifndef XDP_SECTION
#define XDP_SECTION "xdp"
#endif
#ifndef XDP_NAME
#define XDP_NAME on_xdp
#endif

#ifdef DEVICE_BOUND
extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) __ksym;
#endif

SEC(XDP_SECTION)
int XDP_NAME(struct xdp_md *ctx)
{
	__u32 zero = 0, cpu = unused;
	__u64 number, *slot = bpf_map_lookup_elem(&runs, &zero);

	if (slot)
		__sync_fetch_and_add(slot, 1);
#ifdef DEVICE_BOUND
	__u64 timestamp = 0;

	if (!bpf_xdp_metadata_rx_timestamp(ctx, &timestamp) && slot)
		__sync_fetch_and_add(slot, 1000);
#endif
	if (!number_of(ctx, &number))
		return XDP_PASS;
	slot = bpf_map_lookup_elem(&ids, &zero);
	if (slot)
		*slot += 1;
	/* what the loader has filled in decides */
	slot = bpf_map_lookup_elem(&table, &cpu);
	if (slot && interfaces[1] == *slot && ctx->ingress_ifindex == interfaces[0])
		return bpf_redirect_map(&cpus, 0, XDP_DROP);
	trait_set(ctx, seq, number);
	trait_set(ctx, tenant, VERSION);
	trait_seal(ctx);
	count(number, AT_XDP);
	return XDP_PASS;
}

#ifndef WITHOUT_NETFILTER
SEC("netfilter")
int on_prerouting(struct bpf_nf_ctx *ctx)
{
	COUNT_BY_TRAIT(ctx, AT_PREROUTING);
	return 1;
}

#ifndef WITHOUT_INPUT
SEC("netfilter")
int on_input(struct bpf_nf_ctx *ctx)
{
	COUNT_BY_TRAIT(ctx, AT_INPUT);
	return 1;
}
#endif
#endif

SEC("cgroup_skb/ingress")
int on_cgroup(struct __sk_buff *ctx)
{
	COUNT_BY_TRAIT(ctx, AT_CGROUP);
	return 1;
}

SEC("socket")
int on_filter(struct __sk_buff *ctx)
{
	COUNT_BY_TRAIT(ctx, AT_FILTER);
	return ctx->len;
}
#endif

char LICENSE[] SEC("license") = "Dual MIT/GPL";
