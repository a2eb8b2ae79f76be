// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * The demo's programs: XDP gives every test packet three traits, a program at each later stage reads them and reports
 * what it read. The Rust side is ../records.rs; flows and ports are in ../flows.rs.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <packet_traits/traits.bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

TRAIT_KEY(tenant, __u32);
#ifdef SHORT_AREA /* demo_short.bpf.c */
TRAIT_KEY(flow_id, __u32);
TRAIT_KEY(rx_ts, __u64);
#else
TRAIT_KEY(flow_id, __u64, TRAIT_KEEP_FIRST);
TRAIT_KEY(rx_ts, __u64, TRAIT_KEEP_FIRST);
#endif

/* Destination ports of test packets; replies go to other ports, so they are not test packets. */
#define FIRST_PORT 7700
#define PORTS 16

#define VXLAN_PORT 4789 /* RFC 7348 section 5 */
#define NF_ACCEPT 1 /* include/uapi/linux/netfilter.h */

enum stage {
	STAGE_XDP,
	STAGE_TC_INGRESS,
	STAGE_TC_INGRESS_INNER,
	STAGE_PRE_ROUTING,
	STAGE_INPUT,
	STAGE_CGROUP_INGRESS,
	STAGE_SOCKET_FILTER,
	STAGE_DELIVERY,
	STAGE_DROP,
};

/* bits of record.has */
enum {
	HAS_TENANT = 1,
	HAS_FLOW_ID = 2,
	HAS_RX_TS = 4,
	HAS_SYN = 8,
};

/* One test packet at one stage. */
struct record {
	__u64 flow_id;
	__u64 rx_ts;
	__u64 now;
	__u64 number; /* of the datagram, from its payload; the sequence number of TCP */
	__u32 tenant;
	__u32 bytes; /* of payload */
	__u32 reason; /* enum skb_drop_reason */
	__u16 port;
	__u8 stage;
	__u8 has; /* which traits were read, and whether it is a SYN */
};

/* Filled in before the object is loaded. */
const volatile struct {
	__u32 netns; /* the receiver's namespace, for the programs that see all namespaces */
	__u32 skip; /* XDP leaves every skip-th packet without traits; 0: none */
} config SEC(".rodata.config");

struct {
	__u64 flow_id;
	__u64 lost; /* records that did not fit */
	struct record record[0]; /* BTF has the types of variables only, and the Rust side is compared with it */
} counters SEC(".data.counters");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 23);
} records SEC(".maps");

static __always_inline void submit(struct record *r)
{
	r->now = bpf_ktime_get_ns();
	if (bpf_ringbuf_output(&records, r, sizeof(*r), BPF_RB_NO_WAKEUP))
		__sync_fetch_and_add(&counters.lost, 1);
}

/*
 * Which packets are test packets.
 */

/* What stands behind the IP header. */
union transport {
	struct tcphdr tcp;
	struct {
		struct udphdr udp;
		__be32 word[2]; /* a datagram's number, or the VXLAN header: 24 bits of VNI in the second word */
	};
};

/* Takes a test packet's numbers down; `len` is the IP packet's length without its IP header. */
static __always_inline _Bool is_test_packet(const union transport *transport, __u8 protocol, __u32 len,
					    struct record *r)
{
	r->port = bpf_ntohs(transport->udp.dest); /* in the same place in TCP */
	if ((__u16)(r->port - FIRST_PORT) >= PORTS)
		return 0;
	if (protocol == IPPROTO_TCP) {
		r->number = bpf_ntohl(transport->tcp.seq);
		r->bytes = len - transport->tcp.doff * 4;
		if (transport->tcp.syn)
			r->has = HAS_SYN;
		return 1;
	}
	r->number = (__u64)bpf_ntohl(transport->word[0]) << 32 | bpf_ntohl(transport->word[1]);
	r->bytes = len - sizeof(struct udphdr);
	return protocol == IPPROTO_UDP;
}

/* Tenants of packets that are not in a tunnel. */
static __always_inline __u32 tenant_of_ipv4(__be32 source)
{
	return bpf_ntohl(source) >> 16 == (10 << 8 | 77) ? 4077 : 0; /* 10.77.0.0/16 */
}

static __always_inline __u32 tenant_of_ipv6(const struct in6_addr *source)
{
	return source->in6_u.u6_addr16[0] == bpf_htons(0xfd77) ? 6077 : 0; /* fd77::/16 */
}

/* Finds a test packet in a frame, also inside VXLAN; then the tenant is the tunnel's VNI. */
static __always_inline _Bool find_in_frame(void *data, void *end, struct record *r, __u32 *tenant)
{
	_Bool tunnel = 0;
	int depth;

#pragma unroll
	for (depth = 0; depth < 2; depth++) {
		struct ethhdr *eth = data;
		union transport *transport;
		__u8 protocol;
		__u32 len;

		if ((void *)(eth + 1) > end)
			return 0;
		if (eth->h_proto == bpf_htons(ETH_P_IP)) {
			struct iphdr *ip = (void *)(eth + 1);

			if ((void *)(ip + 1) > end || ip->ihl != 5)
				return 0;
			if (!tunnel)
				*tenant = tenant_of_ipv4(ip->saddr);
			protocol = ip->protocol;
			len = bpf_ntohs(ip->tot_len) - sizeof(*ip);
			transport = (void *)(ip + 1);
		} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
			struct ipv6hdr *ip = (void *)(eth + 1);

			if ((void *)(ip + 1) > end)
				return 0;
			if (!tunnel)
				*tenant = tenant_of_ipv6(&ip->saddr);
			protocol = ip->nexthdr;
			len = bpf_ntohs(ip->payload_len);
			transport = (void *)(ip + 1);
		} else {
			return 0;
		}
		if ((void *)(transport + 1) > end)
			return 0;
		if (protocol != IPPROTO_UDP || transport->udp.dest != bpf_htons(VXLAN_PORT))
			return is_test_packet(transport, protocol, len, r);
		*tenant = bpf_ntohl(transport->word[1]) >> 8;
		tunnel = 1;
		data = &transport->word[2];
	}
	return 0;
}

#define SKB(skb, field) __trait_kernel_field(skb, struct sk_buff___traits, field)
#define NETNS_OF(net) __trait_kernel_field(net, struct net___traits, ns.inum)

/* Whether an interface is in the receiver's namespace. */
static __always_inline _Bool is_of_receiver(__u64 dev)
{
	return dev && NETNS_OF(__trait_kernel_field(dev, struct net_device___traits, nd_net.net)) == config.netns;
}

/* Finds a test packet at the skb's network header: after decapsulation, the inner packet. */
static __always_inline _Bool find_in_skb(const void *skb, struct record *r)
{
	__u64 at = SKB(skb, head) + SKB(skb, network_header);
	union transport transport;
	union {
		struct iphdr v4;
		struct ipv6hdr v6;
	} ip;

	if (bpf_probe_read_kernel(&ip, sizeof(ip), (const void *)at))
		return 0;
	if (ip.v4.version == 4 && ip.v4.ihl == 5)
		at += sizeof(ip.v4);
	else if (ip.v4.version == 6)
		at += sizeof(ip.v6);
	else
		return 0;
	if (bpf_probe_read_kernel(&transport, sizeof(transport), (const void *)at))
		return 0;
	if (ip.v4.version == 4)
		return is_test_packet(&transport, ip.v4.protocol, bpf_ntohs(ip.v4.tot_len) - sizeof(ip.v4), r);
	return is_test_packet(&transport, ip.v6.nexthdr, bpf_ntohs(ip.v6.payload_len), r);
}

/*
 * XDP sets.
 */

SEC("xdp")
int demo_xdp(struct xdp_md *ctx)
{
	struct record r = { .stage = STAGE_XDP };
	__u32 who = 0;

	if (!find_in_frame((void *)(long)ctx->data, (void *)(long)ctx->data_end, &r, &who))
		return XDP_PASS;
	r.flow_id = __sync_fetch_and_add(&counters.flow_id, 1) + 1;
	r.rx_ts = bpf_ktime_get_ns();
	r.tenant = who;
	if (!config.skip || r.flow_id % config.skip) {
		if (!trait_set(ctx, tenant, r.tenant))
			r.has |= HAS_TENANT;
		if (!trait_set(ctx, flow_id, r.flow_id))
			r.has |= HAS_FLOW_ID;
		if (!trait_set(ctx, rx_ts, r.rx_ts))
			r.has |= HAS_RX_TS;
		trait_seal(ctx);
	}
	submit(&r);
	return XDP_PASS;
}

/*
 * Every later stage reads.
 */

#define READ_TRAITS(ctx, r)                                                                                            \
	({                                                                                                             \
		trait_type_flow_id id = 0;                                                                             \
		struct trait_view view;                                                                                \
                                                                                                                       \
		if (!trait_view(ctx, &view)) {                                                                         \
			if (trait_view_get(&view, tenant, &(r)->tenant) > 0)                                           \
				(r)->has |= HAS_TENANT;                                                                \
			if (trait_view_get(&view, flow_id, &id) > 0) {                                                 \
				(r)->flow_id = id;                                                                     \
				(r)->has |= HAS_FLOW_ID;                                                               \
			}                                                                                              \
			if (trait_view_get(&view, rx_ts, &(r)->rx_ts) > 0)                                             \
				(r)->has |= HAS_RX_TS;                                                                 \
		}                                                                                                      \
	})

static __always_inline int at_tc(struct __sk_buff *ctx, __u8 stage)
{
	struct record r = { .stage = stage };
	__u32 unused;

	if (find_in_frame((void *)(long)ctx->data, (void *)(long)ctx->data_end, &r, &unused)) {
		READ_TRAITS(ctx, &r);
		submit(&r);
	}
	return TC_ACT_UNSPEC;
}

SEC("tc")
int demo_tc(struct __sk_buff *ctx)
{
	return at_tc(ctx, STAGE_TC_INGRESS);
}

SEC("tc")
int demo_tc_inner(struct __sk_buff *ctx)
{
	return at_tc(ctx, STAGE_TC_INGRESS_INNER);
}

/* These hooks see a tunnelled packet twice, outside and inside; the outer one is not a test packet. */
static __always_inline int at_netfilter(struct bpf_nf_ctx *ctx, __u8 stage)
{
	struct record r = { .stage = stage };

	if (find_in_skb(__trait_skb_of(ctx), &r)) {
		READ_TRAITS(ctx, &r);
		submit(&r);
	}
	return NF_ACCEPT;
}

SEC("netfilter")
int demo_pre_route(struct bpf_nf_ctx *ctx)
{
	return at_netfilter(ctx, STAGE_PRE_ROUTING);
}

SEC("netfilter")
int demo_local_in(struct bpf_nf_ctx *ctx)
{
	return at_netfilter(ctx, STAGE_INPUT);
}

/* The cgroup is the root: it sees every socket of the host. */
SEC("cgroup_skb/ingress")
int demo_cgroup(struct __sk_buff *ctx)
{
	const void *skb = __trait_skb_of(ctx);
	struct record r = { .stage = STAGE_CGROUP_INGRESS };

	if (is_of_receiver(SKB(skb, dev)) && find_in_skb(skb, &r)) {
		READ_TRAITS(ctx, &r);
		submit(&r);
	}
	return 1; /* pass */
}

SEC("socket")
int demo_socket(struct __sk_buff *ctx)
{
	struct record r = { .stage = STAGE_SOCKET_FILTER };

	if (find_in_skb(__trait_skb_of(ctx), &r)) {
		READ_TRAITS(ctx, &r);
		submit(&r);
	}
	return -1; /* keep all of the packet */
}

/* The process copies data out of a packet. In a socket's queue a packet has a socket, but no device any more. */
SEC("tp_btf/skb_copy_datagram_iovec")
int BPF_PROG(demo_delivery, struct sk_buff *skb, int len)
{
	__u64 sk = SKB(skb, sk);
	struct record r = { .stage = STAGE_DELIVERY };

	if (sk && NETNS_OF(__trait_kernel_field(sk, struct sock___traits, __sk_common.skc_net.net)) == config.netns &&
	    find_in_skb(skb, &r)) {
		r.bytes = len;
		READ_TRAITS(skb, &r);
		submit(&r);
	}
	return 0;
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(demo_drop, struct sk_buff *skb, void *location, int reason)
{
	struct record r = { .stage = STAGE_DROP, .reason = reason };

	if (is_of_receiver(SKB(skb, dev)) && find_in_skb(skb, &r)) {
		READ_TRAITS(skb, &r);
		submit(&r);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
