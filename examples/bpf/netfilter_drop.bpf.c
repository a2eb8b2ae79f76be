// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Drops the packets of blocked tenants in netfilter, at whatever hook it is attached to: PRE_ROUTING drops before
 * routing, FORWARD only what is forwarded.
 *
 *	bpftool map update name blocked key 7 0 0 0 value 0 0 0 0 0 0 0 0
 *
 * The value counts what was dropped.
 */
#include <linux/bpf.h>
#include <packet_traits/traits.bpf.h>

#define NF_DROP 0
#define NF_ACCEPT 1

TRAIT_KEY(tenant, __u32);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u64);
} blocked SEC(".maps");

SEC("netfilter")
int drop_blocked(struct bpf_nf_ctx *ctx)
{
	__u64 *dropped;
	__u32 who;

	if (trait_get(ctx, tenant, &who) < 0)
		return NF_ACCEPT;
	dropped = bpf_map_lookup_elem(&blocked, &who);
	if (!dropped)
		return NF_ACCEPT;
	__sync_fetch_and_add(dropped, 1);
	return NF_DROP;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
