// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Dispatchers: each runs the program that is in its slot, which can be exchanged while packets pass. They stand where the
 * kernel has no way to exchange a program: netfilter links cannot be updated, and whoever has attached a pinned socket
 * filter (an iptables rule, a SO_REUSEPORT group) holds on to that program. A clsact filter has no link, and its program
 * can only be exchanged from its network namespace. What they say while the slot is empty is what the kernel does without
 * a program.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} pt_slot SEC(".maps");

struct bpf_nf_ctx;

SEC("netfilter")
int pt_netfilter(struct bpf_nf_ctx *ctx)
{
	bpf_tail_call(ctx, &pt_slot, 0);
	return 1; /* NF_ACCEPT */
}

/* for a filter of a clsact qdisc */
SEC("tc")
int pt_tc(struct __sk_buff *ctx)
{
	bpf_tail_call(ctx, &pt_slot, 0);
	return TC_ACT_UNSPEC;
}

/* for xt_bpf: does not match */
SEC("socket")
int pt_match(struct __sk_buff *ctx)
{
	bpf_tail_call(ctx, &pt_slot, 0);
	return 0;
}

/* for SO_ATTACH_REUSEPORT_EBPF: no member, so the kernel chooses by its hash (reuseport_select_sock) */
SEC("socket")
int pt_steer(struct __sk_buff *ctx)
{
	bpf_tail_call(ctx, &pt_slot, 0);
	return -1;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
