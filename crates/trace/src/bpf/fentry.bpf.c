// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Points that only functions of the kernel show, and no tracepoint. Attached where the kernel lets us; each is left out by
 * itself if its function is not there.
 */
#include "look.bpf.h"

/* include/net/neighbour.h: states in which packets are sent, not kept until the neighbour has answered */
#define NUD_SENDS (0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80)

struct neighbour;
struct net;
struct sock;

static __always_inline __u32 netns_of(struct sock *sk)
{
	return ((struct sock___traits *)sk)->__sk_common.skc_net.net->ns.inum;
}

/* Its cookie, which the cgroup hook has made if the packet is one to be traced. */
static __always_inline __u64 cookie_of(struct sock *sk)
{
	return ((struct sock___traits *)sk)->__sk_common.skc_cookie.counter;
}

/* A datagram was copied to a process. */
SEC("fentry/skb_consume_udp")
int BPF_PROG(trace_udp, struct sock *sk, struct sk_buff *skb, int len)
{
	/* `len` is negated if the process only looked (udp_recvmsg); of no bytes, the queue has a reference as well */
	_Bool peek = len < 0 || (!len && ((struct sk_buff___traits *)skb)->users.refs.counter > 1);

	struct detail detail = {
		.point = peek ? POINT_PEEK : POINT_DELIVER,
		.value = len < 0 ? -len : len,
		.netns = netns_of(sk),
		.sock = cookie_of(sk),
		.queued = 1,
		.process = 1,
	};

	look(skb, &detail);
	return 0;
}

SEC("fentry/tcp_v4_rcv")
int BPF_PROG(trace_tcp4, struct sk_buff *skb)
{
	LOOK(skb, .point = POINT_TCP);
	return 0;
}

SEC("fentry/tcp_v6_rcv")
int BPF_PROG(trace_tcp6, struct sk_buff *skb)
{
	LOOK(skb, .point = POINT_TCP);
	return 0;
}

/* A process is at work with the socket: TCP takes the packet when it has done. */
SEC("fentry/tcp_add_backlog")
int BPF_PROG(trace_backlog, struct sock *sk, struct sk_buff *skb)
{
	LOOK(skb, .point = POINT_BACKLOG, .netns = netns_of(sk), .sock = cookie_of(sk));
	return 0;
}

/* What comes before it has not come yet. */
SEC("fentry/tcp_data_queue")
int BPF_PROG(trace_out_of_order, struct sock *sk, struct sk_buff *skb)
{
	__u64 cb = __trait_kernel_member(skb, struct sk_buff___traits, cb);
	__u32 sequence = __trait_kernel_field(cb, struct tcp_skb_cb___traits, seq);
	__u32 next = __trait_kernel_field(sk, struct tcp_sock___traits, rcv_nxt);

	if ((__s32)(sequence - next) > 0)
		LOOK(skb, .point = POINT_OUT_OF_ORDER, .netns = netns_of(sk), .sock = cookie_of(sk));
	return 0;
}

/* The next host's address is not known: the packet is kept until it is. */
SEC("fentry/__neigh_event_send")
int BPF_PROG(trace_neighbour, struct neighbour *neighbour, struct sk_buff *skb)
{
	if (skb && !(((struct neighbour___traits *)neighbour)->nud_state & NUD_SENDS))
		LOOK(skb, .point = POINT_NEIGHBOUR);
	return 0;
}

/* A fragment: kept until all are there. */
SEC("fentry/ip_defrag")
int BPF_PROG(trace_defrag4, struct net *net, struct sk_buff *skb)
{
	LOOK(skb, .point = POINT_DEFRAG);
	return 0;
}

SEC("fentry/ipv6_frag_rcv")
int BPF_PROG(trace_defrag6, struct sk_buff *skb)
{
	LOOK(skb, .point = POINT_DEFRAG);
	return 0;
}

/* Too long for its way out: cut into fragments. */
SEC("fentry/ip_do_fragment")
int BPF_PROG(trace_fragment4, struct net *net, struct sock *sk, struct sk_buff *skb)
{
	LOOK(skb, .point = POINT_FRAGMENT);
	return 0;
}

SEC("fentry/ip6_fragment")
int BPF_PROG(trace_fragment6, struct net *net, struct sock *sk, struct sk_buff *skb)
{
	LOOK(skb, .point = POINT_FRAGMENT);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
