// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Programs that let everything pass and count nothing. */
#include <linux/bpf.h>
#include <packet_traits/traits.bpf.h>

TRAIT_KEY(tenant, __u32);

SEC("netfilter")
int other_netfilter(struct bpf_nf_ctx *ctx)
{
	return 1;
}

SEC("netfilter")
int another_netfilter(struct bpf_nf_ctx *ctx)
{
	return 1;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
