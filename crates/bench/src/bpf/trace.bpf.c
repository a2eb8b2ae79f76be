// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * What is at the interface while nothing is traced (../trace.rs): a program that does nothing, or one that gives each
 * packet an id and a tenant, as a policy does.
 */
#include <linux/bpf.h>
#include <packet_traits/traits.bpf.h>

TRAIT_KEY(tenant, __u32);
TRAIT_KEY(packet_id, __u64, TRAIT_KEEP_FIRST);

__u64 last_id;

SEC("xdp")
int nothing(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp")
int policy(struct xdp_md *ctx)
{
	trait_set(ctx, tenant, 7);
	trait_set(ctx, packet_id, __sync_fetch_and_add(&last_id, 1) + 1);
	trait_seal(ctx);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
