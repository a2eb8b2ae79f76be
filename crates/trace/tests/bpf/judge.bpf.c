// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Stands for another XDP program: each UDP packet over IPv4 gets a number, and its destination port says what
 * becomes of it.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <packet_traits/traits.bpf.h>
#include <bpf/bpf_endian.h>

#define NO_INTERFACE 0x7fffffff

#ifdef NO_PACKET_REGION
TRAIT_KEY(packet_id, __u64);
#else
TRAIT_KEY(packet_id, __u64, TRAIT_KEEP_FIRST);
#endif

__u64 last_id;

/* Longer than the kernel's name of a program can be. */
SEC("xdp")
int judge_by_destination_port(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	__u32 port;

	if ((void *)(udp + 1) > (void *)(long)ctx->data_end || eth->h_proto != bpf_htons(ETH_P_IP) ||
	    ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	port = bpf_ntohs(udp->dest);
	trait_set(ctx, packet_id, __sync_fetch_and_add(&last_id, 1) + 1);
	/* some verdicts with an open area, some with a sealed one */
	if (port % 2)
		trait_seal(ctx);
	switch (port) {
	case 7001:
		return XDP_DROP;
	case 7002:
		return XDP_ABORTED;
	case 7003:
		return bpf_redirect(ctx->ingress_ifindex, 0);
	case 7004:
		return XDP_TX;
	case 7005:
		return bpf_redirect(NO_INTERFACE, 0);
	case 7006:
		return 99;
	}
	trait_seal(ctx);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
