// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Tries whether the kernel takes so much metadata: the packet's first four bytes say how much. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int pt_metadata(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__s32 *len = data;

	if ((void *)(len + 1) > end || bpf_xdp_adjust_meta(ctx, -*len))
		return XDP_DROP;
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
