// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Sends the frame that BPF_PROG_TEST_RUN gives it, again and again, out of one interface (BPF_F_TEST_XDP_LIVE_FRAMES).
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 interface;

SEC("xdp")
int send(struct xdp_md *ctx)
{
	return bpf_redirect(interface, 0);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
