// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* An XDP program of another object. */
#include <linux/bpf.h>
#include <packet_traits/traits.bpf.h>

TRAIT_KEY(tenant, __u32);

SEC("xdp")
int other_xdp(struct xdp_md *ctx)
{
	return trait_is_set(ctx, tenant) ? XDP_DROP : XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
