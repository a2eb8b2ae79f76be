// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Stands for a policy in XDP that assigns ids: each UDP packet over IPv4 gets a number, the time, and as its tenant the last
 * digit of its destination port.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <packet_traits/traits.bpf.h>
#include <bpf/bpf_endian.h>

TRAIT_KEY(tenant, __u32);
TRAIT_KEY(balance, __s64);
TRAIT_FLAG(marked);
TRAIT_KEY(packet_id, __u64, TRAIT_KEEP_FIRST);
TRAIT_KEY(arrived, __u64, TRAIT_KEEP_FIRST);

__u64 last_id;

SEC("xdp")
int assign(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	__u32 port;

	if ((void *)(udp + 1) > (void *)(long)ctx->data_end || eth->h_proto != bpf_htons(ETH_P_IP) ||
	    ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	port = bpf_ntohs(udp->dest);
	trait_set(ctx, tenant, port % 10);
	trait_set(ctx, balance, (__s64)(port % 10) - 5);
	if (port % 2)
		trait_set_flag(ctx, marked);
	trait_set(ctx, packet_id, __sync_fetch_and_add(&last_id, 1) + 1);
	trait_set(ctx, arrived, bpf_ktime_get_ns());
	trait_seal(ctx);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
