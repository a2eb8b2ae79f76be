// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Reports every classified packet that the kernel drops: whose it was, why, where, and how long after it arrived.
 * Several keys of one packet are read through a view, which looks for the area once.
 */
#include <linux/bpf.h>
#include <packet_traits/traits.bpf.h>
#include <bpf/bpf_tracing.h>

TRAIT_KEY(tenant, __u32);
TRAIT_KEY(flow_id, __u64);
TRAIT_KEY(rx_ts, __u64, TRAIT_KEEP_FIRST);

struct drop {
	__u64 location; /* return address of the function that dropped it */
	__u64 flow_id;
	__u64 age; /* nanoseconds since XDP; 0: not known */
	__u32 tenant;
	__u32 reason; /* enum skb_drop_reason of the running kernel */
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} drops SEC(".maps");

SEC("tp_btf/kfree_skb")
int BPF_PROG(report_drop, struct sk_buff *skb, void *location, int reason)
{
	struct drop drop = { .location = (__u64)location, .reason = reason };
	struct trait_view view;
	__u64 arrived;

	if (trait_view(skb, &view) || trait_view_get(&view, tenant, &drop.tenant) < 0)
		return 0;
	trait_view_get(&view, flow_id, &drop.flow_id);
	if (trait_view_get(&view, rx_ts, &arrived) > 0)
		drop.age = bpf_ktime_get_ns() - arrived;
	bpf_ringbuf_output(&drops, &drop, sizeof(drop), 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
