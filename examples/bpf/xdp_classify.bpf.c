// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Classifies packets where they enter the machine: the tenant from the VLAN id, a flow id from addresses and ports, and
 * the time of arrival. Everything later reads these instead of looking into headers again.
 *
 *	traits keys add tenant u32
 *	traits keys add flow_id u64
 *	traits keys add rx_ts timestamp --merge keep-first
 *	clang -O2 -g -target bpf -c xdp_classify.bpf.c -o xdp_classify.o
 *	traits bind xdp_classify.o -o xdp_classify.bound.o
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

struct vlan_header {
	__be16 tag;
	__be16 protocol;
};

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
	void *at = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = at;
	__u32 who = 0;
	__u64 flow = 0;
	__be16 protocol;

	if ((void *)(eth + 1) > end)
		return XDP_PASS;
	protocol = eth->h_proto;
	at = eth + 1;
	if (protocol == bpf_htons(ETH_P_8021Q)) {
		struct vlan_header *vlan = at;

		if ((void *)(vlan + 1) > end)
			return XDP_PASS;
		who = bpf_ntohs(vlan->tag) & 0xfff;
		protocol = vlan->protocol;
		at = vlan + 1;
	}
	if (protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = at;
		struct ports *ports;

		if ((void *)(ip + 1) > end)
			return XDP_PASS;
		flow = mix(mix(ip->protocol, ip->saddr), ip->daddr);
		ports = (void *)(ip + 1);
		if (ip->ihl == 5 && (ip->protocol == IPPROTO_TCP || ip->protocol == IPPROTO_UDP) &&
		    (void *)(ports + 1) <= end)
			flow = mix(flow, (__u32)ports->source << 16 | ports->dest);
	}

	/* A packet that has no room for traits goes on without them. */
	if (trait_set(ctx, tenant, who))
		return XDP_PASS;
	if (flow)
		trait_set(ctx, flow_id, flow);
	trait_set(ctx, rx_ts, bpf_ktime_get_ns());
	trait_seal(ctx);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
