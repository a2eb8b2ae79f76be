// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Any device, with any header or none: XDP gives a packet traits, and every stage reports what it reads beside what the
 * packet itself says, so that a value of another packet is seen as such. The Rust side is devices/reports.rs.
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

#define TEST_PORT 7777
#define VXLAN_PORT 4789
#define GENEVE_PORT 6081
#define WIREGUARD_PORT 51820

#define LENGTH_OF_TUNNEL_HEADERS 16 /* UDP, then VXLAN or Geneve without options */
#define TENANT_OF_TCP 7

TRAIT_KEY(tenant, __u32);
TRAIT_KEY(flow_id, __u64, TRAIT_KEEP_FIRST);

enum stage {
	STAGE_XDP_LOWER,
	STAGE_XDP_UPPER,
	STAGE_TC_LOWER,
	STAGE_TC,
	STAGE_PRE_ROUTING,
	STAGE_LOCAL_IN,
	STAGE_CGROUP,
};

enum {
	KIND_UDP,
	KIND_TCP,
	KIND_OPAQUE, /* encrypted: nobody can say which packet this is */
};

enum {
	HAS_TENANT = 1,
	HAS_FLOW_ID = 2,
};

/* What a packet is: for UDP the number that its payload begins with, for TCP the sequence number. */
struct packet {
	__u64 number;
	__u32 kind;
	__u32 inside; /* how many headers of tunnels are in front of the packet's own */
	_Bool syn;
};

struct report {
	__u32 stage;
	__u32 present;
	__u64 flow_id;
	__u64 number;
	__u32 tenant;
	__s32 error; /* of XDP, from setting */
	__u32 kind;
	__u32 inside;
	__u32 len;
	__u32 syn;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22);
} reports SEC(".maps");

/* reports that did not fit: a test must see 0 */
__u64 lost;
/* whether frames of the device begin with an Ethernet header: set before traffic starts */
__u64 lower_is_ethernet;
__u64 upper_is_ethernet;
/* each packet that gets traits has a flow_id of its own */
__u64 last_flow_id;

static __always_inline void submit(struct report *r, const struct packet *packet)
{
	r->number = packet->number;
	r->kind = packet->kind;
	r->inside = packet->inside;
	r->syn = packet->syn;
	if (bpf_ringbuf_output(&reports, r, sizeof(*r), 0))
		__sync_fetch_and_add(&lost, 1);
}

/* Where to read packets from: an XDP context, or the linear part of an skb. */
struct source {
	struct xdp_md *xdp;
	__u64 address;
	__u32 len;
};

static __always_inline _Bool load(const struct source *from, __u32 at, void *to, __u32 len)
{
	if (from->xdp)
		return !bpf_xdp_load_bytes(from->xdp, at, to, len);
	return at + len <= from->len && !bpf_probe_read_kernel(to, len, (const void *)(from->address + at));
}

/* Looks through tags and tunnels for a packet to TEST_PORT. `type` is that of what is at `at`, ETH_P_TEB for a frame. */
static __always_inline _Bool parse(const struct source *from, __u32 at, __u16 type, struct packet *packet)
{
	__u8 protocol, ip[20];
	__u16 ports[2], field;
	__u32 word;
	int i;

	for (i = 0; i < 6; i++) {
		if (type == ETH_P_TEB) {
			if (!load(from, at + 12, &field, sizeof(field)))
				return 0;
			type = bpf_ntohs(field);
			at += ETH_HLEN;
			continue;
		}
		if (type == ETH_P_8021Q || type == ETH_P_8021AD) {
			if (!load(from, at + 2, &field, sizeof(field)))
				return 0;
			type = bpf_ntohs(field);
			at += 4;
			continue;
		}
		if (type == ETH_P_IP) {
			if (!load(from, at, ip, sizeof(ip)))
				return 0;
			protocol = ip[9];
			at += 4 * (ip[0] & 0xf);
		} else if (type == ETH_P_IPV6) {
			if (!load(from, at + 6, &protocol, sizeof(protocol)))
				return 0;
			at += sizeof(struct ipv6hdr);
		} else {
			return 0;
		}
		if (protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6) {
			type = protocol == IPPROTO_IPIP ? ETH_P_IP : ETH_P_IPV6;
			packet->inside++;
			continue;
		}
		if (protocol == IPPROTO_GRE) {
			if (!load(from, at + 2, &field, sizeof(field)))
				return 0;
			type = bpf_ntohs(field);
			at += 4;
			packet->inside++;
			continue;
		}
		if (!load(from, at, ports, sizeof(ports)))
			return 0;
		if (protocol == IPPROTO_TCP && ports[1] == bpf_htons(TEST_PORT)) {
			if (!load(from, at + 4, &word, sizeof(word)) || !load(from, at + 12, &field, sizeof(field)))
				return 0;
			packet->number = bpf_ntohl(word);
			packet->kind = KIND_TCP;
			packet->syn = bpf_ntohs(field) >> 1 & 1;
			return 1;
		}
		if (protocol != IPPROTO_UDP)
			return 0;
		if (ports[1] == bpf_htons(TEST_PORT)) {
			if (!load(from, at + sizeof(struct udphdr), &packet->number, sizeof(packet->number)))
				return 0;
			packet->number = bpf_be64_to_cpu(packet->number);
			packet->kind = KIND_UDP;
			return 1;
		}
		if (ports[1] == bpf_htons(WIREGUARD_PORT)) {
			/* a data message: its type, the receiver's index, a counter */
			if (!load(from, at + sizeof(struct udphdr), &word, sizeof(word)) || word != 4 ||
			    !load(from, at + sizeof(struct udphdr) + 8, &packet->number, sizeof(packet->number)))
				return 0;
			packet->kind = KIND_OPAQUE;
			return 1;
		}
		if (ports[1] != bpf_htons(VXLAN_PORT) && ports[1] != bpf_htons(GENEVE_PORT))
			return 0;
		at += LENGTH_OF_TUNNEL_HEADERS;
		type = ETH_P_TEB;
		packet->inside++;
	}
	return 0;
}

/* Of what is encrypted: by its length. */
static __always_inline _Bool is_datagram(const struct packet *packet, __u32 len)
{
	if (packet->kind != KIND_OPAQUE)
		return packet->kind == KIND_UDP;
	return len > 300 && len < 340;
}

/*
 * One datagram in `not_of` gets nothing: whatever is read of it was another's. All of TCP's packets get something, and the
 * same of what stops GRO.
 */
static __always_inline int assign(struct xdp_md *ctx, __u32 stage, _Bool ethernet, __u32 not_of)
{
	struct report r = { .stage = stage, .len = ctx->data_end - ctx->data };
	struct source from = { .xdp = ctx };
	struct packet packet = {};
	__u16 type = ETH_P_TEB;
	__u8 version;

	if (!ethernet) {
		if (bpf_xdp_load_bytes(ctx, 0, &version, sizeof(version)))
			return XDP_PASS;
		type = version >> 4 == 6 ? ETH_P_IPV6 : ETH_P_IP;
	}
	if (!parse(&from, 0, type, &packet))
		return XDP_PASS;
	if (!is_datagram(&packet, r.len) || packet.number % not_of) {
		r.flow_id = __sync_fetch_and_add(&last_flow_id, 1) + 1;
		r.tenant = packet.kind == KIND_TCP ? TENANT_OF_TCP : (__u32)r.flow_id * 2654435761U;
		r.error = trait_set(ctx, tenant, r.tenant);
		if (!r.error)
			r.present |= HAS_TENANT;
		r.error = trait_set(ctx, flow_id, r.flow_id);
		if (!r.error)
			r.present |= HAS_FLOW_ID;
		if (!r.error)
			r.error = trait_seal(ctx);
	}
	submit(&r, &packet);
	return XDP_PASS;
}

SEC("xdp")
int xdp_lower(struct xdp_md *ctx)
{
	return assign(ctx, STAGE_XDP_LOWER, lower_is_ethernet, 4);
}

SEC("xdp")
int xdp_upper(struct xdp_md *ctx)
{
	return assign(ctx, STAGE_XDP_UPPER, upper_is_ethernet, 3);
}

/* the parts of an skb that lead to its headers */
struct sk_buff___devices {
	__be16 protocol;
	__u16 network_header;
	unsigned int len;
	unsigned int data_len;
	unsigned char *head;
	unsigned char *data;
} __attribute__((preserve_access_index));

#define FIELD(skb, member) __trait_kernel_field(skb, struct sk_buff___devices, member)

/* Packets that are not the test's are reported only if traits are read of them. */
#define READ(ctx, skb, stage_)                                                                                         \
	({                                                                                                             \
		struct report __r = { .stage = (stage_) };                                                             \
		struct packet __packet = {};                                                                           \
		_Bool __ours = find(skb, &__packet, &__r.len);                                                         \
                                                                                                                       \
		if (trait_get(ctx, tenant, &__r.tenant) == sizeof(__r.tenant))                                         \
			__r.present |= HAS_TENANT;                                                                     \
		if (trait_get(ctx, flow_id, &__r.flow_id) == sizeof(__r.flow_id))                                      \
			__r.present |= HAS_FLOW_ID;                                                                    \
		if (!__ours)                                                                                           \
			__packet.kind = KIND_OPAQUE;                                                                   \
		if (__ours || __r.present)                                                                             \
			submit(&__r, &__packet);                                                                       \
	})

static __noinline _Bool find(const void *skb, struct packet *packet, __u32 *len)
{
	__u64 head = FIELD(skb, head), data = FIELD(skb, data);
	struct source from = { .address = head + FIELD(skb, network_header) };
	__u16 type = bpf_ntohs(FIELD(skb, protocol));

	*len = FIELD(skb, len);
	from.len = *len - FIELD(skb, data_len) - (from.address - data);
	return parse(&from, 0, type, packet);
}

#define TC(name, stage)                                                                                                \
	SEC("tc") int name(struct __sk_buff *ctx)                                                                      \
	{                                                                                                              \
		READ(ctx, __trait_skb_of(ctx), stage);                                                                 \
		return TC_ACT_UNSPEC;                                                                                  \
	}

TC(tc_lower, STAGE_TC_LOWER)
TC(tc_upper, STAGE_TC)

#define NETFILTER(name, stage)                                                                                         \
	SEC("netfilter") int name(struct bpf_nf_ctx *ctx)                                                              \
	{                                                                                                              \
		READ(ctx, __trait_skb_of(ctx), stage);                                                                 \
		return 1; /* NF_ACCEPT */                                                                              \
	}

NETFILTER(pre_routing, STAGE_PRE_ROUTING)
NETFILTER(local_in, STAGE_LOCAL_IN)

SEC("cgroup_skb/ingress")
int cgroup_ingress(struct __sk_buff *ctx)
{
	READ(ctx, __trait_skb_of(ctx), STAGE_CGROUP);
	return 1;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
