// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Turns the tenant that XDP found into what older parts of the stack understand: the mark, for `ip rule fwmark` and nft,
 * and the priority, for queueing disciplines. For TC or TCX, ingress.
 *
 * `classes` says which priority a tenant has:
 *	bpftool map update name classes key 7 0 0 0 value 6 0 0 0
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <packet_traits/traits.bpf.h>

TRAIT_KEY(tenant, __u32);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} classes SEC(".maps");

SEC("tc")
int prioritize(struct __sk_buff *ctx)
{
	__u32 who, *class;

	/* Direct: the tenant is in the flow region, which TC programs see without a cast. */
	if (trait_tc_get(ctx, tenant, &who) < 0)
		return TC_ACT_OK;
	ctx->mark = who;
	class = bpf_map_lookup_elem(&classes, &who);
	if (class)
		ctx->priority = *class;
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
