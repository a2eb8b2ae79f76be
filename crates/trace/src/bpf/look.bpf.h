/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Looking at an skb: whether it has an id, whether the conditions hold, and reporting it.
 */
#ifndef __TRACE_LOOK_BPF_H
#define __TRACE_LOOK_BPF_H

#include "trace.bpf.h"
#include <linux/if_ether.h>

/* What an event has beside the packet. */
struct detail {
	__u64 place;
	__u64 sock;
	__u32 reason;
	__u32 value;
	__u32 netns;
	__u16 point;
	_Bool queued; /* in a socket's queue, where UDP keeps other things in place of the interface (udp_dev_scratch) */
	_Bool inferred;
	_Bool new_id;
	_Bool spent;
	/* Runs in the context of the process that has to do with it. Programs load that may not ask for the process. */
	__trait_tracked process;
};

static __always_inline _Bool netns_wanted(__u32 netns)
{
	int i;

	if (!config.netns[0])
		return 1;
#pragma unroll
	for (i = 0; i < NAMESPACES; i++)
		if (config.netns[i] && config.netns[i] == netns)
			return 1;
	return 0;
}

/*
 * Reads the IP header at `at`, of a packet of `len` bytes from there, and the ports behind it. Its bytes are there up to
 * `end`. It keeps little on the stack: before Linux 6.2, where there are no casts, the frames from trace_cgroup to
 * trace_skip_extension fill it (MAX_BPF_STACK).
 */
static __noinline void read_headers(__u64 at, __u32 len, __u64 end, struct headers *h)
{
	__u8 version = __trait_kernel_load(__u8, at) >> 4;
	_Bool fragment;
	__u64 transport;

	if (at + 20 > end)
		return;
	h->word[FIELD_LENGTH][0] = len;
	if (version == 4) {
		h->word[FIELD_FAMILY][0] = 4;
		h->word[FIELD_PROTOCOL][0] = __trait_kernel_load(__u8, at + 9);
		h->word[FIELD_SOURCE][0] = __trait_kernel_load(__u32, at + 12);
		h->word[FIELD_DESTINATION][0] = __trait_kernel_load(__u32, at + 16);
		transport = at + (__trait_kernel_load(__u8, at) & 15) * 4;
		fragment = bpf_ntohs(__trait_kernel_load(__u16, at + 6)) & 0x1fff;
	} else if (version == 6 && at + 40 <= end) {
		struct extensions extensions = {
			.at = at + 40,
			.end = end,
			.protocol = __trait_kernel_load(__u8, at + 6),
		};

		skip_extensions(&extensions);
		h->word[FIELD_FAMILY][0] = 6;
		h->word[FIELD_PROTOCOL][0] = extensions.protocol;
		load_words(at + 8, h->word[FIELD_SOURCE]);
		load_words(at + 24, h->word[FIELD_DESTINATION]);
		transport = extensions.at;
		fragment = extensions.later;
	} else {
		h->word[FIELD_LENGTH][0] = 0;
		return;
	}
	if (!fragment)
		read_ports(transport, end, h);
}

/* The same of an skb, if it is IP; its length is counted from the IP header on. */
static __always_inline void read_skb(const void *skb, struct headers *h)
{
	__u32 network = SKB(skb, network_header), tail = SKB(skb, tail);
	__be16 protocol = SKB(skb, protocol);
	__u64 head = SKB(skb, head);

	if (protocol == bpf_htons(ETH_P_IP) || protocol == bpf_htons(ETH_P_IPV6))
		read_headers(head + network, tail - network + SKB(skb, data_len), head + tail, h);
}

/* The same of one that has just been received: the kernel does not know yet where the IP header is. */
static __always_inline void read_received(const void *skb, struct headers *h)
{
	__u64 at = SKB(skb, data), end = SKB(skb, head) + SKB(skb, tail);
	__be16 protocol = SKB(skb, protocol);
	int i;

#pragma unroll
	for (i = 0; i < VLAN_TAGS; i++) {
		if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
			break;
		protocol = __trait_kernel_load(__u16, at + 2);
		at += 4;
	}
	if (at <= end && (protocol == bpf_htons(ETH_P_IP) || protocol == bpf_htons(ETH_P_IPV6)))
		read_headers(at, end - at + SKB(skb, data_len), end, h);
}

/* Looks at a packet that has an id, and reports it. Returns whether it passed the filter. */
static __noinline _Bool report(const void *skb, struct trait_view *view, __u64 id, struct detail *detail)
{
	__u64 dev = detail->queued ? 0 : SKB(skb, dev), sk = SKB(skb, sk);
	__u64 now, entered, from, head = SKB(skb, head), shared;
	__u32 netns = detail->netns, network = SKB(skb, network_header), mac = SKB(skb, mac_header), linear;
	_Bool with_mac = mac != 0xffff && mac < network;
	struct event *e;

	/* the traits first: their cache line is at hand */
	if (!traits_hold(view))
		return 0;
	if (config.header_conditions && !config.run) {
		struct headers h = {};

		if (detail->point == POINT_RECEIVE)
			read_received(skb, &h);
		else
			read_skb(skb, &h);
		if (!headers_hold(&h))
			return 0;
	}
	if (!netns && dev)
		netns = NETNS_OF_DEV(dev);
	if (!netns && sk)
		netns = NETNS_OF_SOCK(sk);
	if (!netns_wanted(netns))
		return 0;
	now = bpf_ktime_get_ns();
	entered = entry_time(view);
	/* who does not give out ids himself waits for the first packet that matches where all come by */
	if (!config.run && !armed) {
		if (detail->point == POINT_RECEIVE)
			__sync_fetch_and_add(&counters.too_early, 1);
		return 0;
	}
	if (config.slower_ns && !late(now, entered))
		return 1;
	if (config.only_drops && (detail->point != POINT_DROP || detail->spent))
		return 1;
	e = reserve(detail->point);
	if (!e)
		return 1;
	__builtin_memset(e, 0, sizeof(*e));
	e->id = id;
	e->at = now;
	e->entered = entered;
	e->skb = (__u64)skb;
	e->place = detail->place;
	e->sock = detail->sock;
	e->len = SKB(skb, len);
	e->mark = SKB(skb, mark);
	e->reason = detail->reason;
	e->value = detail->value;
	e->point = detail->point;
	e->cpu = bpf_get_smp_processor_id();
	shared = head + SKB(skb, end);
	e->segments = __trait_kernel_field(shared, struct skb_shared_info___traits, gso_segs);
	if (BPF_CORE_READ_BITFIELD_PROBED((const struct sk_buff___traits *)skb, cloned) &&
	    (__trait_kernel_field(shared, struct skb_shared_info___traits, dataref.counter) & 0xffff) > 1)
		e->flags |= EVENT_CLONE;
	if (entered)
		e->flags |= EVENT_ENTERED;
	if (detail->inferred)
		e->flags |= EVENT_INFERRED;
	if (detail->new_id)
		e->flags |= EVENT_NEW_ID;
	if (detail->spent)
		e->flags |= EVENT_SPENT;
	if (dev)
		set_device(e, dev);
	if (netns)
		e->netns = netns;
	if (detail->process) {
		e->pid = bpf_get_current_pid_tgid() >> 32;
		bpf_get_current_comm(e->comm, sizeof(e->comm));
	}
	from = head + network;
	if (with_mac) {
		from = head + mac;
		e->network = network - mac;
		e->flags |= EVENT_MAC;
	}
	linear = head + SKB(skb, tail) - from;
	append(e, view, from, linear);
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	return 1;
}

/* Reports the packet if it has an id. Returns the id of a packet that passed the filter, else 0. */
static __always_inline __u64 look(const void *skb, struct detail *detail)
{
	struct trait_view view;
	__u64 id;

	if (__trait_view_skb(skb, &view))
		return 0;
	id = traced_id(&view);
	return id && report(skb, &view, id, detail) ? id : 0;
}

#define LOOK(skb, ...)                                                                                                 \
	({                                                                                                             \
		struct detail __detail = { __VA_ARGS__ };                                                              \
		look(skb, &__detail);                                                                                  \
	})

#endif /* __TRACE_LOOK_BPF_H */
