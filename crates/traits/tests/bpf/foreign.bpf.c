// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * A program that knows nothing of traits and keeps metadata of its own at data_meta: what shares the packet with us. It
 * is loaded without binding.
 */
#include "foreign.bpf.h"

#include <linux/pkt_cls.h>

/* what XDP does: set before traffic starts; all multiples of 4 but `pop` */
__u64 pop; /* bytes it takes off the front of the packet */
__u64 reserve; /* bytes of metadata it reserves */
__u64 written; /* how many of them it writes, from data_meta on */

/* what happened */
__u64 reserved; /* packets that got the metadata */
__u64 refused; /* packets that did not */

/* what TC found, of packets with metadata */
__u64 intact;
__u64 damaged;

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} next SEC(".maps");

static __always_inline void count(__u64 *counter)
{
	__sync_fetch_and_add(counter, 1);
}

static __always_inline void reserve_and_write(struct xdp_md *ctx)
{
	if (pop && pop < 256 && bpf_xdp_adjust_head(ctx, pop))
		return;
	if (!reserve)
		return;
	if (reserve > FOREIGN_MAX || bpf_xdp_adjust_meta(ctx, -(int)reserve)) {
		count(&refused);
		return;
	}
	foreign_write((void *)(long)ctx->data_meta, (void *)(long)ctx->data, written);
	count(&reserved);
}

SEC("xdp")
int foreign(struct xdp_md *ctx)
{
	reserve_and_write(ctx);
	bpf_tail_call(ctx, &next, 0);
	return XDP_PASS;
}

SEC("tc")
int foreign_reader(struct __sk_buff *ctx)
{
	void *meta = (void *)(long)ctx->data_meta, *data = (void *)(long)ctx->data;

	if (written && meta < data)
		count(foreign_intact(meta, data, written) ? &intact : &damaged);
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
