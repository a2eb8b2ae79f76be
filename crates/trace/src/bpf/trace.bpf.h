/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What the tracer's objects share: the event they report, their configuration, and the conditions that decide in the
 * kernel whether a packet is reported. The Rust side is ../event/raw.rs and ../config.rs.
 */
#ifndef __TRACE_BPF_H
#define __TRACE_BPF_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <packet_traits/traits.bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#define VLAN_TAGS 2 /* that are looked behind */

/* Where a packet was seen; Point in ../point.rs. */
enum point {
	POINT_XDP,
	POINT_XDP_VERDICT,
	POINT_NETIF_RX,
	POINT_GRO,
	POINT_GRO_RESULT,
	POINT_RECEIVE,
	POINT_TC_INGRESS,
	POINT_PRE_ROUTING,
	POINT_ROUTE,
	POINT_DEFRAG,
	POINT_INPUT,
	POINT_FORWARD,
	POINT_OUTPUT,
	POINT_POST_ROUTING,
	POINT_FRAGMENT,
	POINT_NEIGHBOUR,
	POINT_TC_EGRESS,
	POINT_QUEUE,
	POINT_XMIT,
	POINT_TCP,
	POINT_CGROUP,
	POINT_BACKLOG,
	POINT_OUT_OF_ORDER,
	POINT_ENQUEUE,
	POINT_QUEUE_FULL,
	POINT_ICMP,
	POINT_PEEK,
	POINT_DELIVER,
	POINT_CONSUME,
	POINT_DROP,
	POINT_COUNT,
};

#define POINTS_MAX 32 /* a power of two: __trait_below */

/* bits of event.flags */
enum {
	EVENT_CLONE = 1, /* other skbs share this one's data */
	EVENT_MAC = 2, /* `bytes` starts at the MAC header, else at the network header */
	EVENT_INFERRED = 4, /* the tracepoint does not show the packet */
	EVENT_ENTERED = 8, /* `entered` is known */
	EVENT_NEW_ID = 16, /* XDP, TC_INGRESS: the packet got its id here, it did not bring one along */
	EVENT_SPENT = 32, /* DROP: it was of use, though the kernel calls it dropped */
};

/* One packet at one point. The flow region's slots, the packet region's and the packet's first bytes follow. */
struct event {
	__u64 id;
	__u64 at; /* ns, bpf_ktime_get_ns */
	__u64 entered; /* ns, value of the timestamp key */
	__u64 skb;
	__u64 place; /* return address of who freed it; XDP_VERDICT: the program's id */
	__u64 sock; /* its cookie */
	__u64 flow_present;
	__u64 packet_present;
	__u64 dev[2]; /* name */
	__u64 comm[2]; /* of the process; XDP_VERDICT: of the program */
	__u32 netns;
	__u32 ifindex;
	__u32 len;
	__u32 mark;
	__u32 reason; /* POINT_DROP: enum skb_drop_reason */
	/*
	 * XDP_VERDICT: enum xdp_action; GRO_RESULT: gro_result_t; ROUTE: table; PEEK, DELIVER: bytes; ICMP: type << 8 | code;
	 * QUEUE_FULL: errno
	 */
	__u32 value;
	__u32 pid;
	__u16 point;
	__u16 cpu;
	__u16 captured; /* bytes of the packet that follow */
	__u16 network; /* offset of the network header in them */
	__u16 segments; /* of a merged packet */
	__u8 flags;
	__u8 unused;
};

/* Header fields that conditions name; Field in ../filter/mod.rs. */
enum field {
	FIELD_FAMILY, /* 4 or 6 */
	FIELD_PROTOCOL,
	FIELD_SOURCE,
	FIELD_DESTINATION,
	FIELD_SOURCE_PORT,
	FIELD_DESTINATION_PORT,
	FIELD_LENGTH,
};

#define FIELDS_MAX 8 /* a power of two: __trait_below */

enum operator{
	OPERATOR_EQUAL,
	OPERATOR_LESS,
	OPERATOR_GREATER,
};

/* A trait, or a header field, compared with a value. */
struct condition {
	__u64 bit; /* of the trait's key; 0: a header field */
	__u64 value[2];
	__u64 mask[2];
	__u64 flip; /* sign bit of a signed type, to compare it as if it were not */
	__u32 dist; /* of the trait's slot */
	__u8 merge;
	__u8 field;
	__u8 other; /* a second field one of which must do, as in `port == 80`; else the same */
	__u8 family; /* 4 or 6: the condition is about such packets; 0: about all */
	__u8 operator;
	__u8 negate;
	__u8 unused[6];
};

#define CONDITIONS 8
#define NAMESPACES 8
#define CAPTURE_MAX 256

/* Filled in before the object is loaded: constants to the verifier. */
const volatile struct {
	__u64 id_bit;
	__u64 entered_bit; /* 0: there is no timestamp key */
	__u64 run; /* the tracer's own ids have these high 16 bits; 0: another program gives the ids */
	__u64 slower_ns; /* report what is older than that; 0: everything */
	__u64 tc_id_bit; /* keys of enter.bpf.c; 0: it is not used */
	__u64 tc_entered_bit;
	__u32 id_dist;
	__u32 entered_dist;
	__u32 tc_id_dist;
	__u32 tc_entered_dist;
	__u32 sample; /* report one id in N */
	__u32 event_len; /* struct event and what follows */
	__u32 flow_slots; /* bytes that follow of each region */
	__u32 packet_slots;
	__u32 capture; /* bytes of the packet, at most */
	__u32 netns[NAMESPACES]; /* report what is seen in these; 0: the end of the list; none: in all */
	__u8 id_size; /* 4 or 8 */
	__u8 id_merge;
	__u8 entered_merge;
	__u8 only_drops;
	__u8 header_conditions; /* those of `condition` that are about headers come first */
	__u8 conditions;
	__u8 consume_place; /* the tracepoint consume_skb tells the place (6.3) */
	__u8 unused[5];
	__u64 tcp_end_from; /* address of tcp_rcv_state_process (net/ipv4/tcp_input.c), and its end; 0: not known */
	__u64 tcp_end_to;
	struct condition condition[CONDITIONS];
	struct event event[0]; /* BTF has the types of variables only, and the Rust side is compared with it */
} config SEC(".rodata.config") = { .event_len = sizeof(struct event) };

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 12); /* set by the loader */
} events SEC(".maps");

/* What is counted instead of reported; Counters in ../tracer/mod.rs. */
struct {
	__u64 next_id;
	__u64 sampled; /* packets that XDP looked at, for 1 in N */
	__u64 lost[POINTS_MAX]; /* events that did not fit into the ring buffer */
	__u64 no_room; /* packets that have no room for an id */
	__u64 followed; /* 1 if a datagram's delivery was ever waited for */
	__u64 too_early; /* packets that matched before the other points were in place */
	__u64 unfollowed; /* datagrams whose delivery is not followed: too many wait */
	__u64 matched; /* packets that matched where they came in, and were followed */
	__u64 taken; /* packets that have another tracer's id, behind other people's XDP programs */
	__u64 shared; /* packets that TC cannot give an id: others have them as well */
} counters SEC(".data.counters");

/* Set when the programs at all points are in place. Each object has its own. */
__u64 armed SEC(".data.armed");

/* Fields of the kernel's structures, as numbers: one may have an address only. */
#define SKB(skb, field) __trait_kernel_field(skb, struct sk_buff___traits, field)
#define SOCK(sk, field) __trait_kernel_field(sk, struct sock___traits, field)
#define DEV(dev, field) __trait_kernel_field(dev, struct net_device___traits, field)
#define XDP(xdp, field) __trait_kernel_field(xdp, struct xdp_buff___traits, field)

/* What takes an skb can have one at an address. */
#define SKB_AT(address) __trait_kernel_pointer(address, struct sk_buff___traits)

/* Number of the network namespace `net`, of the interface `dev`, of the socket `sk`. */
#define NETNS_OF(net) __trait_kernel_field(net, struct net___traits, ns.inum)
#define NETNS_OF_DEV(dev) NETNS_OF(DEV(dev, nd_net.net))
#define NETNS_OF_SOCK(sk) NETNS_OF(SOCK(sk, __sk_common.skc_net.net))

/*
 * Going through the extension headers of IPv6, as policies do (packet_traits/policy.bpf.h): as many as fit into a packet of
 * 1500 bytes. The bytes that are there bound them, which is the packet's first buffer; policies see the others, too.
 */
#define EXTENSION_HEADERS_MAX 182

struct extensions {
	__u64 at; /* address of the next header */
	__u64 end; /* of the bytes that are there */
	__u32 protocol; /* of the next header */
	_Bool later; /* it is in a later fragment */
};

/* Skips an extension header, of many that there may be. Returns whether there was one, wholly there. */
__trait_global int trace_skip_extension(struct extensions *e)
{
	__u32 len, fragment;
	__u64 word;
	__u8 *header = (void *)&word;

	if (!e || e->later || e->at + 8 > e->end)
		return 0;
	word = __trait_kernel_word(e->at, 0);
	switch (e->protocol) {
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_DSTOPTS:
		len = (header[1] + 1) * 8;
		break;
	case IPPROTO_AH:
		len = (header[1] + 2) * 4;
		break;
	case IPPROTO_FRAGMENT:
		len = 8;
		fragment = header[2] << 8 | header[3];
		e->later = fragment >> 3;
		break;
	default:
		return 0;
	}
	if (e->at + len > e->end)
		return 0;
	e->at += len;
	e->protocol = header[0];
	return 1;
}

/* Goes to what is behind the extension headers. */
static __always_inline void skip_extensions(struct extensions *e)
{
	int i;

	for (i = 0; i < EXTENSION_HEADERS_MAX; i++)
		if (!trace_skip_extension(e))
			break;
}

/* The next 16 bytes in kernel memory as two words; loads never fault. */
static __always_inline void load_words(__u64 address, __u64 to[2])
{
	to[0] = __trait_kernel_word(address, 0);
	to[1] = __trait_kernel_word(address, 1);
}

/*
 * Conditions.
 */

/* Of a packet that is not IP, all is 0: it has none of the fields. */
struct headers {
	__u64 word[FIELDS_MAX][2];
	_Bool ports; /* it has ports: fragments but for the first, and most protocols, have none */
};

/* Whether a protocol's header starts with its ports. */
static __always_inline _Bool has_ports(__u64 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_DCCP ||
	       protocol == IPPROTO_SCTP || protocol == IPPROTO_UDPLITE;
}

/* Reads the ports at `at`, of a packet whose bytes are there up to `end`, if its protocol has any. */
static __always_inline void read_ports(__u64 at, __u64 end, struct headers *h)
{
	if (!has_ports(h->word[FIELD_PROTOCOL][0]) || at + 4 > end)
		return;
	h->word[FIELD_SOURCE_PORT][0] = bpf_ntohs(__trait_kernel_load(__u16, at));
	h->word[FIELD_DESTINATION_PORT][0] = bpf_ntohs(__trait_kernel_load(__u16, at + 2));
	h->ports = 1;
}

static __always_inline _Bool compare(const volatile struct condition *c, const __u64 word[2])
{
	__u64 low = (word[0] & c->mask[0]) ^ c->flip, high = word[1] & c->mask[1];

	switch (c->operator) {
	case OPERATOR_EQUAL:
		return low == c->value[0] && high == c->value[1];
	case OPERATOR_LESS:
		return low < c->value[0];
	default:
		return low > c->value[0];
	}
}

/* As in policies, no condition holds on a field that the packet does not have, also not by `!=`. */
static __always_inline _Bool headers_hold(const struct headers *h)
{
	int i;

	if (!h->word[FIELD_FAMILY][0])
		return 0;
#pragma unroll
	for (i = 0; i < CONDITIONS; i++) {
		const volatile struct condition *c = &config.condition[i];
		_Bool holds;

		if (i >= config.header_conditions)
			break;
		if ((c->field == FIELD_SOURCE_PORT || c->field == FIELD_DESTINATION_PORT) && !h->ports)
			return 0;
		holds = compare(c, h->word[__trait_below(c->field, FIELDS_MAX)]) ||
			compare(c, h->word[__trait_below(c->other, FIELDS_MAX)]);
		if (c->family && h->word[FIELD_FAMILY][0] != c->family)
			holds = 0;
		if (holds == !!c->negate)
			return 0;
	}
	return 1;
}

/* Address of a key's value in a view that is not of XDP; 0 if the packet has none. */
static __always_inline __u64 slot_in(const struct trait_view *view, __u64 bit, __u32 dist, __u8 merge)
{
	if (merge != TRAIT_BLOCK)
		return view->packet_present & bit ? view->packet_end - (dist - trait_area.flow_len) : 0;
	return view->flow_present & bit ? view->flow_end - dist : 0;
}

/* The id that the tracer gave the packet behind another XDP program, or 0. */
static __always_inline __u64 tc_id(const struct trait_view *view)
{
	__u64 id;

	if (!config.tc_id_bit || !(view->flow_present & config.tc_id_bit))
		return 0;
	id = __trait_kernel_word(view->flow_end - config.tc_id_dist, 0);
	return id >> 48 == config.run ? id : 0;
}

/* The packet's id if it is to be traced, else 0. */
static __always_inline __u64 traced_id(const struct trait_view *view)
{
	__u64 id, at = slot_in(view, config.id_bit, config.id_dist, config.id_merge);

	if (!at)
		return tc_id(view);
	id = __trait_kernel_word(at, 0);
	if (config.id_size == 4)
		id = (__u32)id;
	if (config.run)
		return id >> 48 == config.run ? id : tc_id(view);
	return config.sample > 1 && id % config.sample ? 0 : id;
}

/* When the packet entered, or 0. */
static __always_inline __u64 entry_time(const struct trait_view *view)
{
	__u64 at = 0;

	if (config.tc_entered_bit && tc_id(view))
		at = view->flow_end - config.tc_entered_dist;
	else if (config.entered_bit)
		at = slot_in(view, config.entered_bit, config.entered_dist, config.entered_merge);
	return at ? __trait_kernel_word(at, 0) : 0;
}

static __always_inline _Bool traits_hold(const struct trait_view *view)
{
	int i;

#pragma unroll
	for (i = 0; i < CONDITIONS; i++) {
		const volatile struct condition *c = &config.condition[i];
		__u64 at, word[2];
		_Bool holds;

		if (i < config.header_conditions)
			continue;
		if (i >= config.conditions)
			break;
		at = slot_in(view, c->bit, c->dist, c->merge);
		if (!at)
			return 0;
		load_words(at, word);
		holds = compare(c, word);
		if (holds == !!c->negate)
			return 0;
	}
	return 1;
}

/* Whether a packet that entered then is late; not if that is not known, or is of another clock and still to come. */
static __always_inline _Bool late(__u64 now, __u64 entered)
{
	return entered && now >= entered && now - entered >= config.slower_ns;
}

/*
 * Reporting.
 */

static __always_inline struct event *reserve(__u16 point)
{
	struct event *e = bpf_ringbuf_reserve(&events, config.event_len, 0);

	if (!e)
		__sync_fetch_and_add(&counters.lost[__trait_below(point, POINTS_MAX)], 1);
	return e;
}

static __always_inline void set_device(struct event *e, __u64 dev)
{
	e->ifindex = DEV(dev, ifindex);
	e->netns = NETNS_OF_DEV(dev);
	load_words(__trait_kernel_member(dev, struct net_device___traits, name), e->dev);
}

/* What trace.bpf.c saw last on this CPU before generic XDP, for assign.bpf.c. The objects share the map. */
struct before_xdp {
	__u64 buffer; /* where it starts */
	__u64 skb;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct before_xdp);
} before_xdp SEC(".maps");

/*
 * Where veth does not keep the skb beside the XDP buffer (before 6.3): the skbs that trace.bpf.c saw last on their way to an
 * interface, by where their buffers start. The objects share the map.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} sent SEC(".maps");

#define VETH_KEEPS_SKB bpf_core_field_exists(struct veth_xdp_buff___traits, skb)

/* Copies the slots of both regions, and `len` bytes at `from`, behind the event. */
static __always_inline void append(struct event *e, const struct trait_view *view, __u64 from, __u32 len)
{
	void *to = e + 1;

	e->flow_present = view->flow_present;
	e->packet_present = view->packet_present;
	if (config.flow_slots && view->flow_present)
		bpf_probe_read_kernel(to, config.flow_slots,
				      (const void *)(view->flow_end - __TRAIT_FLOW_FOOTER - config.flow_slots));
	to += config.flow_slots;
	if (config.packet_slots && view->packet_present)
		bpf_probe_read_kernel(to, config.packet_slots,
				      (const void *)(view->packet_end - __TRAIT_PACKET_FOOTER - config.packet_slots));
	to += config.packet_slots;
	e->captured = 0;
	if (!config.capture)
		return;
	if (len > config.capture)
		len = config.capture;
	if (len > 0 && len <= CAPTURE_MAX && !bpf_probe_read_kernel(to, len, (const void *)from))
		e->captured = len;
}

#endif /* __TRACE_BPF_H */
