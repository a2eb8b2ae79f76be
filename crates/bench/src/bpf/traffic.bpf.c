// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Sends the frame that BPF_PROG_TEST_RUN gives it, again and again, out of one interface (BPF_F_TEST_XDP_LIVE_FRAMES).
 *
 * The kernel takes some 20 milliseconds to begin and end such a run, waiting for grace periods, so the time is taken
 * here: when the first frame is sent and when the last one is. What is sent is received in between.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 interface;

/* struct Run in traffic.rs */
struct {
	__u64 frames; /* of this run */
	__u64 sent;
	__u64 started; /* nanoseconds of CLOCK_MONOTONIC */
	__u64 ended;
} run;

SEC("xdp")
int send(struct xdp_md *ctx)
{
	__u64 sent = run.sent + 1;

	if (sent == 1)
		run.started = bpf_ktime_get_ns();
	if (sent == run.frames)
		run.ended = bpf_ktime_get_ns();
	run.sent = sent;
	return bpf_redirect(interface, 0);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
