// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* What is around the border that is measured: packets get traits, are passed on over it, and are counted where they end. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <packet_traits/traits.bpf.h>

TRAIT_KEY(tenant, __u32);

const volatile __u32 interface;

__u64 ended; /* packets */

SEC("xdp")
int give(struct xdp_md *ctx)
{
	trait_set(ctx, tenant, 7);
	trait_seal(ctx);
	return XDP_PASS;
}

SEC("tc")
int pass_on(struct __sk_buff *ctx)
{
	return bpf_redirect(interface, 0);
}

SEC("tc")
int empty(struct __sk_buff *ctx)
{
	return TC_ACT_UNSPEC;
}

SEC("tc")
int end(struct __sk_buff *ctx)
{
	__sync_fetch_and_add(&ended, 1);
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
