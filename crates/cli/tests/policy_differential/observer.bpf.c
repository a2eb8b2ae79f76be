// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Behind a policy's block at TC: writes down what the packet is like there, and takes it out of the way.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include <packet_traits/kernel.bpf.h>

#define IN_FRONT 256

struct sk_buff___observed {
	__u16 mac_header;
	unsigned char *head;
} __attribute__((preserve_access_index));

struct observed {
	__u32 packets; /* seen so far; all else is of the last */
	__u32 mark;
	__u32 priority;
	__u32 queue_mapping;
	__u32 meta_len;
	__u32 length;
	__u8 in_front[IN_FRONT]; /* bytes in front of the MAC header */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct observed);
} observed SEC(".maps");

SEC("tcx/ingress")
int observe(struct __sk_buff *ctx)
{
	const void *skb = __trait_skb_of(ctx);
	struct observed *seen;
	__u32 zero = 0;
	__u64 at;

	seen = bpf_map_lookup_elem(&observed, &zero);
	if (!seen)
		return TC_ACT_SHOT;
	seen->packets++;
	seen->mark = ctx->mark;
	seen->priority = ctx->priority;
	seen->queue_mapping = ctx->queue_mapping;
	seen->meta_len = ctx->data - ctx->data_meta;
	seen->length = ctx->len;
	at = __trait_kernel_field(skb, struct sk_buff___observed, head) +
	     __trait_kernel_field(skb, struct sk_buff___observed, mac_header);
	bpf_probe_read_kernel(seen->in_front, IN_FRONT, (const void *)(at - IN_FRONT));
	return TC_ACT_SHOT;
}

/* What a policy redirects to this interface ends here. */
SEC("xdp")
int swallow(struct xdp_md *ctx)
{
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
