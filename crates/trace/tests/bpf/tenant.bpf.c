// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Stands for a policy in XDP that assigns no ids: the same trait for every packet, so that GRO merges them.
 */
#include <linux/bpf.h>
#include <packet_traits/traits.bpf.h>

TRAIT_KEY(tenant, __u32);

SEC("xdp")
int same_for_all(struct xdp_md *ctx)
{
	trait_set(ctx, tenant, 7);
	trait_seal(ctx);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
