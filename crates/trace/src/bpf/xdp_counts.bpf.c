// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Verdicts of XDP programs that tracepoints tell of, but not of which packet: counted by interface, program and what came
 * of them. They fire for such verdicts only.
 */
#include "devices.bpf.h"

struct bpf_map;
struct bpf_prog;
struct net_device;

/* Fate in ../xdp.rs. */
enum fate {
	FATE_REDIRECTED,
	FATE_REDIRECT_FAILED,
	FATE_EXCEPTION, /* and the verdict in the bits above */
};

struct counted {
	struct device device;
	__u32 program;
	__u32 fate;
};

/* Interfaces times programs times fates: that it gets full would take hundreds of programs while it runs. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct counted);
	__type(value, __u64);
} xdp_counts SEC(".maps");

static __always_inline void count(struct net_device *dev, struct bpf_prog *program, __u32 fate)
{
	struct counted key = { .fate = fate };
	__u64 one = 1, *counted;

	if (!is_traced((__u64)dev, &key.device))
		return;
	key.program = ((struct bpf_prog___traits *)program)->aux->id;
	counted = bpf_map_lookup_elem(&xdp_counts, &key);
	if (!counted) {
		if (!bpf_map_update_elem(&xdp_counts, &key, &one, BPF_NOEXIST))
			return;
		/* another CPU was faster, or the map is full */
		counted = bpf_map_lookup_elem(&xdp_counts, &key);
	}
	if (counted)
		__sync_fetch_and_add(counted, 1);
}

SEC("tp_btf/xdp_exception")
int BPF_PROG(count_exception, struct net_device *dev, struct bpf_prog *program, __u32 verdict)
{
	if (verdict != XDP_REDIRECT) /* xdp_redirect_err tells that, of all drivers */
		count(dev, program, FATE_EXCEPTION | verdict << 8);
	return 0;
}

SEC("tp_btf/xdp_redirect")
int BPF_PROG(count_redirect, struct net_device *dev, struct bpf_prog *program)
{
	count(dev, program, FATE_REDIRECTED);
	return 0;
}

SEC("tp_btf/xdp_redirect_err")
int BPF_PROG(count_redirect_failed, struct net_device *dev, struct bpf_prog *program)
{
	count(dev, program, FATE_REDIRECT_FAILED);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
