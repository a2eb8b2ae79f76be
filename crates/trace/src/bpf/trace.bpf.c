// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Every point behind XDP: a program looks whether the packet has an id, and reports it if so. Those on tracepoints see the
 * packets of all namespaces; whoever has no id costs them a few loads.
 */
#include "devices.bpf.h"
#include "look.bpf.h"
#include <packet_traits/rfc.bpf.h> /* has the object bound to every key, so that none goes while it is traced */

#define TC_PASS -1 /* TCX_NEXT, include/uapi/linux/bpf.h */
#define NF_ACCEPT 1 /* include/uapi/linux/netfilter.h */
#define RTF_REJECT 0x200 /* include/uapi/linux/route.h */
#define MSG_PEEK 2 /* include/linux/socket.h */
#define GRO_NORMAL 3 /* include/linux/netdevice.h, gro_result_t */

struct fib6_result;
struct fib6_table;
struct fib_nh_common;
struct flowi4;
struct flowi6;
struct net;
struct sock;

#define SKB_DST_NOREF 1 /* include/linux/skbuff.h */
#define DST_METADATA 0x80 /* include/net/dst.h */

/* What this CPU is at: some tracepoints say what happens, but not to which packet. */
struct current_packet {
	__u64 routing; /* skb between PRE_ROUTING and the hook after it */
	__u64 routing_id;
	__u64 queueing; /* skb between the cgroup and its socket's queue */
	__u64 queueing_id;
	__u64 sock; /* whose queue that is */
	__u64 cookie;
	__u64 gro_id; /* packet in napi_gro_receive */
	__u64 received; /* count of packets; CURRENT_RECEIVED in ../tracer/attach.rs is its place */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct current_packet);
} current SEC(".maps");

static __always_inline struct current_packet *on_this_cpu(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&current, &zero);
}

/* The same for an skb whose address was kept: it may be gone, or another packet's by now. */
static __always_inline void look_again(__u64 address, __u64 id, struct detail *detail)
{
	const void *skb = SKB_AT(address);
	struct trait_view view;

	if (!__trait_view_skb(skb, &view) && traced_id(&view) == id)
		report(skb, &view, id, detail);
}

/*
 * Receiving.
 */

SEC("tp_btf/netif_rx")
int BPF_PROG(trace_netif_rx, struct sk_buff *skb)
{
	LOOK(skb, .point = POINT_NETIF_RX);
	return 0;
}

SEC("tp_btf/napi_gro_receive_entry")
int BPF_PROG(trace_gro, struct sk_buff *skb)
{
	struct current_packet *now = on_this_cpu();
	__u64 id = LOOK(skb, .point = POINT_GRO);

	if (now)
		now->gro_id = id;
	return 0;
}

/* The packet may be gone: a merged one's head is freed. */
SEC("tp_btf/napi_gro_receive_exit")
int BPF_PROG(trace_gro_result, int result)
{
	struct current_packet *now = on_this_cpu();
	struct event *e;
	__u64 id;

	if (!now || !now->gro_id)
		return 0;
	id = now->gro_id;
	now->gro_id = 0;
	if (result == GRO_NORMAL || config.only_drops || config.slower_ns)
		return 0;
	e = reserve(POINT_GRO_RESULT);
	if (!e)
		return 0;
	__builtin_memset(e, 0, sizeof(*e));
	e->id = id;
	e->at = bpf_ktime_get_ns();
	e->value = result;
	e->point = POINT_GRO_RESULT;
	e->cpu = bpf_get_smp_processor_id();
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	return 0;
}

/*
 * Counts a packet that would be followed if the tracer did not stand by: it comes in where the tracer gives out ids. While
 * it stands by, it has no XDP program there that could see it.
 */
static __noinline void count_too_early(const void *skb)
{
	__u64 dev = SKB(skb, dev);
	struct device device;
	struct trait_view view;

	if (!dev || !is_traced(dev, &device))
		return;
	if (config.conditions != config.header_conditions && (__trait_view_skb(skb, &view) || !traits_hold(&view)))
		return;
	if (config.header_conditions) {
		struct headers h = {};

		read_received(skb, &h);
		if (!headers_hold(&h))
			return;
	}
	__sync_fetch_and_add(&counters.too_early, 1);
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(trace_receive, struct sk_buff *skb)
{
	struct current_packet *now = on_this_cpu();
	struct before_xdp *before;
	__u32 zero = 0;

	if (now) {
		now->received++;
		now->routing = 0;
	}
	if (config.run && !armed) {
		count_too_early(skb);
		return 0;
	}
	before = config.run ? bpf_map_lookup_elem(&before_xdp, &zero) : (void *)0;
	if (before)
		before->buffer = 0;
	if (!LOOK(skb, .point = POINT_RECEIVE))
		return 0;
	__sync_fetch_and_add(&counters.matched, 1);
	if (config.run) {
		if (before) {
			before->buffer = SKB(skb, head);
			before->skb = (__u64)skb;
		}
	}
	return 0;
}

SEC("tc")
int trace_tc_ingress(struct __sk_buff *ctx)
{
	struct before_xdp *before;
	__u32 zero = 0;

	/* generic XDP is over */
	before = bpf_map_lookup_elem(&before_xdp, &zero);
	if (before && before->buffer)
		before->buffer = 0;
	LOOK(__trait_skb_of(ctx), .point = POINT_TC_INGRESS);
	return TC_PASS;
}

/*
 * IP.
 */

SEC("netfilter")
int trace_pre_routing(struct bpf_nf_ctx *ctx)
{
	struct current_packet *now = on_this_cpu();
	__u64 id = LOOK(__trait_skb_of(ctx), .point = POINT_PRE_ROUTING);

	if (now) {
		now->routing = id ? (__u64)__trait_skb_of(ctx) : 0;
		now->routing_id = id;
	}
	return NF_ACCEPT;
}

static __always_inline int after_routing(struct bpf_nf_ctx *ctx, __u16 point)
{
	struct current_packet *now = on_this_cpu();

	if (now && now->routing)
		now->routing = 0;
	LOOK(__trait_skb_of(ctx), .point = point);
	return NF_ACCEPT;
}

SEC("netfilter")
int trace_local_in(struct bpf_nf_ctx *ctx)
{
	return after_routing(ctx, POINT_INPUT);
}

SEC("netfilter")
int trace_forward(struct bpf_nf_ctx *ctx)
{
	return after_routing(ctx, POINT_FORWARD);
}

SEC("netfilter")
int trace_local_out(struct bpf_nf_ctx *ctx)
{
	LOOK(__trait_skb_of(ctx), .point = POINT_OUTPUT);
	return NF_ACCEPT;
}

SEC("netfilter")
int trace_post_routing(struct bpf_nf_ctx *ctx)
{
	LOOK(__trait_skb_of(ctx), .point = POINT_POST_ROUTING);
	return NF_ACCEPT;
}

/* Whether a packet has its route; one out of a tunnel may bring the tunnel's metadata in its place. */
static __always_inline _Bool has_route(__u64 skb)
{
	__u64 dst = SKB(skb, _skb_refdst) & ~(__u64)SKB_DST_NOREF;

	return dst && !(__trait_kernel_field(dst, struct dst_entry___traits, flags) & DST_METADATA);
}

/*
 * Reports a routing decision, if it is about the packet that this CPU is routing: the destinations are the same, and it has
 * no route. An error that is sent because of the packet is routed while it has one.
 */
static __always_inline void routed(__u32 table, const __u64 to[2], _Bool v6)
{
	struct current_packet *now = on_this_cpu();
	__u64 network, destination[2];

	if (!now || !now->routing || has_route(now->routing))
		return;
	network = SKB(now->routing, head) + SKB(now->routing, network_header);
	load_words(network + (v6 ? 24 : 16), destination);
	if (v6 ? destination[0] != to[0] || destination[1] != to[1] : (__u32)destination[0] != (__u32)to[0])
		return;
	struct detail detail = { .point = POINT_ROUTE, .value = table, .inferred = 1 };

	look_again(now->routing, now->routing_id, &detail);
}

SEC("tp_btf/fib_table_lookup")
int BPF_PROG(trace_route4, __u32 table, const struct flowi4 *flow, const struct fib_nh_common *nexthop, int err)
{
	__u64 to[2] = { ((const struct flowi4___traits *)flow)->daddr };

	if (!err)
		routed(table, to, 0);
	return 0;
}

SEC("tp_btf/fib6_table_lookup")
int BPF_PROG(trace_route6, const struct net *net, const struct fib6_result *result, struct fib6_table *table,
	     const struct flowi6 *flow)
{
	const struct flowi6___traits *f = (const void *)flow;
	__u64 to[2];

	if (((const struct fib6_result___traits *)result)->fib6_flags & RTF_REJECT) /* also: no answer */
		return 0;
	load_words((__u64)f + bpf_core_field_offset(f->daddr), to);
	routed(((struct fib6_table___traits *)table)->tb6_id, to, 1);
	return 0;
}

SEC("tp_btf/icmp_send")
int BPF_PROG(trace_icmp, struct sk_buff *skb, int type, int code)
{
	LOOK(skb, .point = POINT_ICMP, .value = (type & 0xff) << 8 | (code & 0xff));
	return 0;
}

/*
 * Sending on.
 */

SEC("tc")
int trace_tc_egress(struct __sk_buff *ctx)
{
	LOOK(__trait_skb_of(ctx), .point = POINT_TC_EGRESS);
	return TC_PASS;
}

SEC("tp_btf/net_dev_queue")
int BPF_PROG(trace_queue, struct sk_buff *skb)
{
	LOOK(skb, .point = POINT_QUEUE);
	return 0;
}

SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(trace_xmit, struct sk_buff *skb)
{
	__u64 address = (__u64)skb, buffer;

	if (LOOK(skb, .point = POINT_XMIT) && config.run && !VETH_KEEPS_SKB) {
		buffer = SKB(skb, head);
		bpf_map_update_elem(&sent, &buffer, &address, BPF_ANY);
	}
	return 0;
}

/*
 * Sockets.
 *
 * A datagram in one piece is copied to its process without passing a tracepoint that shows it (udp_recvmsg in
 * net/ipv4/udp.c). What there is: a tracepoint when a socket's owner is woken after its queue has grown, and one when
 * a process has received from a socket. So traced datagrams are kept by socket from the cgroup hook on, in order. Each
 * time a process has received, those at the front that are no longer in the queue were delivered.
 */
#define WAITING 256

struct waiting_packet {
	__u64 skb;
	__u64 id; /* 0: dropped since */
	__u64 entered;
};

struct waiting {
	__u32 head;
	__u32 tail;
	__u32 queued; /* those before this were put into the queue */
	__u32 early_pid; /* who received before the tracepoint said that they were */
	__u32 early_bytes;
	__u32 netns;
	__u64 early_at;
	__u64 early_comm[2];
	struct waiting_packet packet[WAITING];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64); /* the socket's cookie */
	__type(value, struct waiting);
} waiting SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct waiting);
} none_waiting SEC(".maps");

/* Set when fentry.bpf.c sees the delivery of datagrams, so that nothing needs to wait. */
__u64 exact_delivery SEC(".data.delivery");

static __always_inline void wait_for_delivery(const void *skb, __u64 id, __u64 cookie)
{
	struct waiting *w = bpf_map_lookup_elem(&waiting, &cookie);
	struct waiting_packet *packet;
	struct trait_view view;
	__u32 zero = 0, tail;
	__u64 dev;

	if (!w) {
		const void *none = bpf_map_lookup_elem(&none_waiting, &zero);

		if (!none)
			return;
		bpf_map_update_elem(&waiting, &cookie, none, BPF_NOEXIST);
		w = bpf_map_lookup_elem(&waiting, &cookie);
		if (!w)
			return;
	}
	if (w->tail - w->head >= WAITING) {
		__sync_fetch_and_add(&counters.unfollowed, 1);
		return;
	}
	dev = SKB(skb, dev);
	if (dev)
		w->netns = NETNS_OF_DEV(dev);
	tail = w->tail;
	packet = &w->packet[tail % WAITING];
	packet->skb = (__u64)skb;
	packet->id = id;
	packet->entered = 0;
	if (config.entered_bit && !__trait_view_skb(skb, &view))
		packet->entered = entry_time(&view);
	__sync_fetch_and_add(&w->tail, 1);
	if (!counters.followed)
		counters.followed = 1;
}

SEC("cgroup_skb/ingress")
int trace_cgroup(struct __sk_buff *ctx)
{
	const void *skb = __trait_skb_of(ctx);
	struct current_packet *now = on_this_cpu();
	struct detail detail = { .point = POINT_CGROUP };
	struct trait_view view;
	__u64 id = 0, sk;

	if (!__trait_view_skb(skb, &view))
		id = traced_id(&view);
	if (id) {
		/* makes the cookie if the socket has none, for those points too that cannot */
		detail.sock = bpf_get_socket_cookie(ctx);
		if (!report(skb, &view, id, &detail))
			id = 0;
	}
	if (!now)
		return 1;
	if (!id) {
		if (now->queueing)
			now->queueing = 0;
		return 1;
	}
	now->queueing = (__u64)skb;
	now->queueing_id = id;
	now->cookie = detail.sock;
	sk = SKB(skb, sk);
	now->sock = sk;
	if (!exact_delivery && sk && SOCK(sk, sk_protocol) == IPPROTO_UDP)
		wait_for_delivery(skb, id, now->cookie);
	return 1; /* pass */
}

static __always_inline void report_delivery(const struct waiting *w, const struct waiting_packet *packet, __u64 cookie,
					    _Bool early, __u32 bytes)
{
	__u64 at = early ? w->early_at : bpf_ktime_get_ns();
	struct event *e;

	if (config.only_drops || (config.slower_ns && !late(at, packet->entered)))
		return;
	e = reserve(POINT_DELIVER);
	if (!e)
		return;
	__builtin_memset(e, 0, sizeof(*e));
	e->id = packet->id;
	e->at = at;
	e->entered = packet->entered;
	e->skb = packet->skb;
	e->sock = cookie;
	e->netns = w->netns;
	e->value = bytes;
	e->point = POINT_DELIVER;
	e->cpu = bpf_get_smp_processor_id();
	e->flags = EVENT_INFERRED;
	if (packet->entered)
		e->flags |= EVENT_ENTERED;
	if (early) {
		e->pid = w->early_pid;
		e->comm[0] = w->early_comm[0];
		e->comm[1] = w->early_comm[1];
	} else {
		e->pid = bpf_get_current_pid_tgid() >> 32;
		bpf_get_current_comm(e->comm, sizeof(e->comm));
	}
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
}

/* Whether the packet is still in a queue: it is linked, and is still the same. */
static __always_inline _Bool still_waits(const struct waiting_packet *packet)
{
	const void *skb = SKB_AT(packet->skb);
	struct trait_view view;

	return SKB(skb, prev) && !__trait_view_skb(skb, &view) && traced_id(&view) == packet->id;
}

/* Takes what has left the queue off the front, up to `end`. */
static __always_inline void take_delivered(struct waiting *w, __u64 cookie, __u32 end, _Bool early, __u32 bytes)
{
	int i;

	for (i = 0; i < 8; i++) {
		__u32 head = *(volatile __u32 *)&w->head;
		struct waiting_packet packet = w->packet[head % WAITING];

		if ((__s32)(end - head) <= 0 || (packet.id && still_waits(&packet)))
			break;
		if (__sync_val_compare_and_swap(&w->head, head, head + 1) == head && packet.id)
			report_delivery(w, &packet, cookie, early, bytes);
	}
}

SEC("tp_btf/sk_data_ready")
int BPF_PROG(trace_enqueue, struct sock *sk)
{
	struct current_packet *now = on_this_cpu();
	struct detail detail = { .point = POINT_ENQUEUE, .inferred = 1 };
	struct waiting *w;

	if (!now || !now->queueing || now->sock != (__u64)sk)
		return 0;
	detail.queued = ((struct sock___traits *)sk)->sk_protocol == IPPROTO_UDP;
	detail.sock = bpf_get_socket_cookie(sk);
	detail.netns = ((struct sock___traits *)sk)->__sk_common.skc_net.net->ns.inum;
	look_again(now->queueing, now->queueing_id, &detail);
	now->queueing = 0;
	if (!detail.queued)
		return 0;
	w = bpf_map_lookup_elem(&waiting, &detail.sock);
	if (!w)
		return 0;
	w->queued = w->tail;
	if (w->early_at) {
		take_delivered(w, detail.sock, w->queued, 1, w->early_bytes);
		w->early_at = 0;
	}
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(trace_received, struct sock *sk, int ret, int flags)
{
	struct waiting *w;
	__u64 cookie;

	if (!counters.followed || ret < 0 || flags & MSG_PEEK ||
	    ((struct sock___traits *)sk)->sk_protocol != IPPROTO_UDP)
		return 0;
	cookie = bpf_get_socket_cookie(sk);
	w = bpf_map_lookup_elem(&waiting, &cookie);
	if (!w || w->head == w->tail)
		return 0;
	if (w->head == w->queued) {
		w->early_pid = bpf_get_current_pid_tgid() >> 32;
		bpf_get_current_comm(w->early_comm, sizeof(w->early_comm));
		w->early_bytes = ret;
		w->early_at = bpf_ktime_get_ns();
		return 0;
	}
	take_delivered(w, cookie, w->queued, 0, ret);
	return 0;
}

/* In a UDP socket's queue packets have no socket; those that others queue do. */
static __always_inline _Bool is_udp(const void *skb)
{
	__u64 words[2];
	__u8 *ip = (void *)words;

	load_words(SKB(skb, head) + SKB(skb, network_header), words);
	return (ip[0] >> 4 == 6 ? ip[6] : ip[9]) == IPPROTO_UDP;
}

SEC("tp_btf/skb_copy_datagram_iovec")
int BPF_PROG(trace_copy, struct sk_buff *skb, int len)
{
	struct sock___traits *sk = ((struct sk_buff___traits *)skb)->sk;
	struct detail detail = { .point = POINT_DELIVER, .value = len, .process = 1 };

	/* a datagram in pieces: sock_recv_length or skb_consume_udp follows */
	if (sk ? sk->sk_protocol == IPPROTO_UDP : is_udp(skb))
		return 0;
	if (sk) {
		detail.netns = sk->__sk_common.skc_net.net->ns.inum;
		detail.sock = sk->__sk_common.skc_cookie.counter;
	}
	look(skb, &detail);
	return 0;
}

SEC("tp_btf/sock_rcvqueue_full")
int BPF_PROG(trace_queue_full, struct sock *sk, struct sk_buff *skb)
{
	LOOK(skb, .point = POINT_QUEUE_FULL, .sock = bpf_get_socket_cookie(sk));
	return 0;
}

/* Before 6.11 it does not show the packet, which is gone by then: not loaded there. */
SEC("tp_btf/udp_fail_queue_rcv_skb")
int BPF_PROG(trace_udp_fail, int rc, struct sock *sk, struct sk_buff *skb)
{
	LOOK(skb, .point = POINT_QUEUE_FULL, .value = -rc, .sock = bpf_get_socket_cookie(sk));
	return 0;
}

/*
 * The end.
 */

SEC("tp_btf/consume_skb")
int trace_consume(__u64 *args)
{
	struct detail detail = { .point = POINT_CONSUME };

	if (config.consume_place)
		detail.place = args[1];
	look((const void *)args[0], &detail);
	return 0;
}

/* Forgets a datagram that did not get into its socket's queue. */
static __always_inline void forget_waiting(__u64 cookie, __u64 id)
{
	struct waiting *w = bpf_map_lookup_elem(&waiting, &cookie);
	__u32 i, tail;

	if (!w)
		return;
	tail = w->tail;
	/* it is the last, unless another CPU puts packets into the same queue */
	if (tail != w->head && w->packet[(tail - 1) % WAITING].id == id &&
	    __sync_val_compare_and_swap(&w->tail, tail, tail - 1) == tail)
		return;
	for (i = 2; i <= 8; i++) {
		struct waiting_packet *packet = &w->packet[(tail - i) % WAITING];

		if (packet->id == id) {
			packet->id = 0;
			return;
		}
	}
}

/* include/net/dropreason-core.h: its numbers differ between kernels */
enum skb_drop_reason___trace {
	SKB_DROP_REASON_NOT_SPECIFIED___trace = 1,
	SKB_DROP_REASON_QUEUE_PURGE___trace = 2,
};

#define IS_REASON(reason, name)                                                                                        \
	(bpf_core_enum_value_exists(enum skb_drop_reason___trace, SKB_DROP_REASON_##name##___trace) &&                 \
	 (reason) == bpf_core_enum_value(enum skb_drop_reason___trace, SKB_DROP_REASON_##name##___trace))

/* Whether it is a TCP segment without data, whose headers up to TCP's are off. */
static __always_inline _Bool is_bare_segment(const void *skb)
{
	return SKB(skb, len) <= (__trait_kernel_load(__u8, SKB(skb, data) + 12) >> 4) * 4;
}

/*
 * Whether a packet is freed that was of use, though the kernel calls it dropped: it is left in a queue that is emptied, as a
 * closing FIN is until its socket goes; or it is the last ACK of a connection, for which there is no reason.
 */
static __always_inline _Bool is_spent(const void *skb, __u64 place, __u32 reason)
{
	return IS_REASON(reason, QUEUE_PURGE) || (IS_REASON(reason, NOT_SPECIFIED) && place >= config.tcp_end_from &&
						  place < config.tcp_end_to && is_bare_segment(skb));
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(trace_drop, struct sk_buff *skb, void *place, int reason)
{
	struct current_packet *now = on_this_cpu();

	LOOK(skb, .point = POINT_DROP, .place = (__u64)place, .reason = reason,
	     .spent = is_spent(skb, (__u64)place, reason));
	if (!now)
		return 0;
	/* from here on there may be another packet at its address */
	if (now->routing == (__u64)skb)
		now->routing = 0;
	if (now->queueing == (__u64)skb) {
		now->queueing = 0;
		forget_waiting(now->cookie, now->queueing_id);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
