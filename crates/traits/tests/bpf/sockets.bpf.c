// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * What the tests of the socket options have around the socket: XDP gives every packet to TEST_PORT traits that follow from
 * what is in it, and TC reports what the sender of every datagram from TEST_PORT says of it. The Rust side is
 * common/sockets.rs.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <packet_traits/socket.bpf.h>
#include <bpf/bpf_endian.h>

#define TEST_PORT 7777

/* packet_traits/socket.h */
#define SOL_TRAITS 0x5452

TRAIT_KEY(tenant, __u32);
#ifdef SHORT_AREA
TRAIT_KEY(flow_id, __u64);
#else
TRAIT_KEY(flow_id, __u64, TRAIT_KEEP_FIRST);
#endif

/* What a packet is, in the host's byte order. */
struct packet {
	__u64 number; /* the first 8 bytes of its payload, if `numbered` */
	__u32 from; /* the last 4 bytes of the source address */
	__u16 sport;
	__u16 dport;
	__u8 proto;
	_Bool numbered;
	_Bool syn;
};

static __always_inline _Bool parse(void *data, void *end, struct packet *packet)
{
	struct ethhdr *eth = data;
	struct ipv6hdr *ip6 = (void *)(eth + 1);
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *tcp;
	struct udphdr *udp;
	__be64 *number;

	if ((void *)(eth + 1) > end)
		return 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if ((void *)(ip + 1) > end || ip->ihl != 5)
			return 0;
		packet->from = bpf_ntohl(ip->saddr);
		packet->proto = ip->protocol;
		udp = (void *)(ip + 1);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		if ((void *)(ip6 + 1) > end)
			return 0;
		packet->from = bpf_ntohl(ip6->saddr.in6_u.u6_addr32[3]);
		packet->proto = ip6->nexthdr;
		udp = (void *)(ip6 + 1);
	} else {
		return 0;
	}
	if ((void *)(udp + 1) > end)
		return 0;
	packet->sport = bpf_ntohs(udp->source); /* TCP's ports are in the same place */
	packet->dport = bpf_ntohs(udp->dest);
	number = (void *)(udp + 1);
	if (packet->proto == IPPROTO_TCP) {
		tcp = (void *)udp;
		if ((void *)(tcp + 1) > end)
			return 0;
		packet->syn = tcp->syn;
		number = (void *)tcp + 4 * tcp->doff;
	} else if (packet->proto != IPPROTO_UDP) {
		return 0;
	}
	packet->numbered = (void *)(number + 1) <= end;
	if (packet->numbered)
		packet->number = bpf_be64_to_cpu(*number);
	return 1;
}

/*
 * UDP: tenant 7 + number % 5, flow_id the number.
 * TCP: tenant sport % 100; flow_id of a SYN the source address and port, of data its number; other segments have none.
 */
SEC("xdp")
int assign(struct xdp_md *ctx)
{
	struct packet packet = {};
	__u64 flow = 0;
	__u32 who;

	if (!parse((void *)(long)ctx->data, (void *)(long)ctx->data_end, &packet) || packet.dport != TEST_PORT)
		return XDP_PASS;
	flow = packet.number;
	if (packet.proto == IPPROTO_UDP) {
		who = 7 + packet.number % 5;
	} else {
		who = packet.sport % 100;
		if (packet.syn)
			flow = (__u64)packet.from << 16 | packet.sport;
	}
	if (trait_set(ctx, tenant, who))
		return XDP_ABORTED;
	if ((packet.numbered || packet.syn) && trait_set(ctx, flow_id, flow))
		return XDP_ABORTED;
	return trait_seal(ctx) ? XDP_ABORTED : XDP_PASS;
}

/* Every third datagram to TEST_PORT has a mark of its own: 5. */
SEC("tc")
int mark_some(struct __sk_buff *ctx)
{
	struct packet packet = {};

	if (parse((void *)(long)ctx->data, (void *)(long)ctx->data_end, &packet) && packet.dport == TEST_PORT &&
	    packet.proto == IPPROTO_UDP && packet.number % 3 == 0)
		ctx->mark = 5;
	return TC_ACT_UNSPEC;
}

/* What the sender of a datagram says of it. */
struct sent {
	__u64 number;
	__u64 flow_id;
	__u32 tenant;
	__u8 has_flow_id;
	__u8 has_tenant;
	__u16 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22);
} sent SEC(".maps");

/* reports that did not fit: a test must see 0 */
__u64 lost;

SEC("tc")
int report_sent(struct __sk_buff *ctx)
{
	struct packet packet = {};
	struct sent report = {};

	if (!parse((void *)(long)ctx->data, (void *)(long)ctx->data_end, &packet) || packet.sport != TEST_PORT ||
	    packet.proto != IPPROTO_UDP)
		return TC_ACT_UNSPEC;
	report.number = packet.number;
	report.has_flow_id = trait_tc_sender_get(ctx, flow_id, &report.flow_id) > 0;
	report.has_tenant = trait_tc_sender_get(ctx, tenant, &report.tenant) > 0;
	if (bpf_ringbuf_output(&sent, &report, sizeof(report), 0))
		__sync_fetch_and_add(&lost, 1);
	return TC_ACT_UNSPEC;
}

/* another program of the cgroup, which takes the options for its own and answers with one byte */
SEC("cgroup/getsockopt")
int answer_one_byte(struct bpf_sockopt *ctx)
{
	__u8 *value = ctx->optval;

	if (ctx->level != SOL_TRAITS || value + 1 > (__u8 *)ctx->optval_end)
		return 1;
	*value = 1;
	__trait_ctx_field(ctx, optlen) = 1;
	__trait_ctx_field(ctx, retval) = 0;
	return 1;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
