// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Classifies packets where they enter the machine: the tenant from the source address, a flow id from addresses and
 * ports, and the time of arrival. Everything later reads these instead of looking into headers again.
 *
 *	traits keys add tenant u32
 *	traits keys add flow_id u64
 *	traits keys add rx_ts timestamp --merge keep-first
 *	clang -O2 -g -target bpf -c xdp_classify.bpf.c -o xdp_classify.o
 *	traits bind xdp_classify.o -o xdp_classify.bound.o
 *
 * `tenants` says whose an address is, here 10.77.0.0/24 tenant 7's:
 *	bpftool map update name tenants key 24 0 0 0 10 77 0 0 value 7 0 0 0
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <packet_traits/traits.bpf.h>
#include <bpf/bpf_endian.h>

/* The same for a whole flow: GRO may compare them. */
TRAIT_KEY(tenant, __u32);
TRAIT_KEY(flow_id, __u64);
/* Different for every packet: a merged packet keeps the first one's. */
TRAIT_KEY(rx_ts, __u64, TRAIT_KEEP_FIRST);

struct prefix {
	__u32 length; /* bits */
	__be32 address;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
} tenants SEC(".maps");

struct ports {
	__be16 source;
	__be16 dest;
};

static __always_inline __u64 mix(__u64 hash, __u64 word)
{
	return (hash ^ word) * 0x9e3779b97f4a7c15ULL;
}

SEC("xdp")
int classify(struct xdp_md *ctx)
{
	void *start = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = start;
	struct iphdr *ip = (void *)(eth + 1);
	struct ports *ports = (void *)(ip + 1);
	struct prefix from = { .length = 32 };
	__u64 flow;
	__u32 *who;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	from.address = ip->saddr;
	who = bpf_map_lookup_elem(&tenants, &from);
	if (!who)
		return XDP_PASS;
	flow = mix(mix(ip->protocol, ip->saddr), ip->daddr);
	if (ip->ihl == 5 && (ip->protocol == IPPROTO_TCP || ip->protocol == IPPROTO_UDP) && (void *)(ports + 1) <= end)
		flow = mix(flow, (__u32)ports->source << 16 | ports->dest);

	/* A packet that has no room for traits goes on without them. */
	if (trait_set(ctx, tenant, *who))
		return XDP_PASS;
	trait_set(ctx, flow_id, flow);
	trait_set(ctx, rx_ts, bpf_ktime_get_ns());
	/* Last: `rx_ts` is different for every packet, and must not keep GRO from merging. */
	trait_seal(ctx);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
