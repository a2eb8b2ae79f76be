// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Counts what each tenant sends to the sockets of a cgroup: packets and bytes, as delivered, after GRO and
 * decapsulation.
 *
 *	bpftool map dump name traffic
 */
#include <linux/bpf.h>
#include <packet_traits/traits.bpf.h>

TRAIT_KEY(tenant, __u32);

struct traffic {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct traffic);
} traffic SEC(".maps");

SEC("cgroup_skb/ingress")
int count(struct __sk_buff *ctx)
{
	struct traffic first = { .packets = 1, .bytes = ctx->len }, *sum;
	/* Packets without a tenant count as tenant 0. */
	__u32 who = trait_get_or(ctx, tenant, 0);

	sum = bpf_map_lookup_elem(&traffic, &who);
	if (!sum) {
		/* Lost if another CPU is first with this tenant: then there is an entry to add to. */
		if (!bpf_map_update_elem(&traffic, &who, &first, BPF_NOEXIST))
			return 1;
		sum = bpf_map_lookup_elem(&traffic, &who);
		if (!sum)
			return 1;
	}
	__sync_fetch_and_add(&sum->packets, 1);
	__sync_fetch_and_add(&sum->bytes, ctx->len);
	return 1;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
