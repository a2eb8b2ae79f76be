// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* What `traits bench sockets` receives: UDP and TCP packets with two traits. */
#include <linux/bpf.h>
#include <packet_traits/traits.bpf.h>

TRAIT_KEY(tenant, __u32);
TRAIT_KEY(flow_id, __u64, TRAIT_KEEP_FIRST);

SEC("xdp")
int assign(struct xdp_md *ctx)
{
	static __u64 packets;

	if (trait_set(ctx, tenant, 7) || trait_set(ctx, flow_id, __sync_fetch_and_add(&packets, 1)) || trait_seal(ctx))
		return XDP_ABORTED;
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
