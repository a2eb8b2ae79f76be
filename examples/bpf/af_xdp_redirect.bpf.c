// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Hands datagrams to port 7777 to AF_XDP sockets, with traits: which tenant the sender belongs to, which flow it is and
 * when it arrived. 10.1.0.0/16 is tenant 1's network, 10.2.0.0/16 tenant 2's and so on; other senders' datagrams have
 * no traits.
 *
 *	traits keys add tenant u32
 *	traits keys add flow_id u64
 *	traits keys add rx_ts timestamp --merge keep-first
 *	clang -O2 -g -target bpf -c af_xdp_redirect.bpf.c -o af_xdp_redirect.o
 *
 * crates/traits/examples/af_xdp.rs loads the object, puts its socket in `sockets` and reads the traits in front of each
 * frame.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <packet_traits/traits.bpf.h>
#include <bpf/bpf_endian.h>

#define PORT 7777

TRAIT_KEY(tenant, __u32);
TRAIT_KEY(flow_id, __u64);
TRAIT_KEY(rx_ts, __u64, TRAIT_KEEP_FIRST);

/* A socket for each receive queue. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

SEC("xdp")
int redirect(struct xdp_md *ctx)
{
	void *start = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = start;
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp;
	__u32 from = 0;
	__u64 flow;

	if ((void *)(eth + 1) > end)
		return XDP_PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if ((void *)(ip + 1) > end || ip->protocol != IPPROTO_UDP || ip->ihl != 5)
			return XDP_PASS;
		from = bpf_ntohl(ip->saddr);
		udp = (void *)(ip + 1);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		if ((void *)(ip6 + 1) > end || ip6->nexthdr != IPPROTO_UDP)
			return XDP_PASS;
		udp = (void *)(ip6 + 1);
	} else {
		return XDP_PASS;
	}
	if ((void *)(udp + 1) > end || udp->dest != bpf_htons(PORT))
		return XDP_PASS;

	/* A packet that has no room for traits goes on without them. */
	flow = (__u64)from << 16 | bpf_ntohs(udp->source);
	if (from >> 24 == 10 && !trait_set(ctx, tenant, from >> 16 & 0xff)) {
		trait_set(ctx, flow_id, flow);
		trait_set(ctx, rx_ts, bpf_ktime_get_ns());
	}
	/* Not sealed: the socket sees what is visible. Without a socket for the queue the kernel goes on with the packet. */
	return bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
