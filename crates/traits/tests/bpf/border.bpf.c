// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Gives every packet traits, and looks for them, and for what authenticates them, in all that is in front of it. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <packet_traits/traits.bpf.h>
#include <bpf/bpf_endian.h>

TRAIT_KEY(tenant, __u64);
#ifndef SHORT_AREA
TRAIT_KEY(flow_id, __u64, TRAIT_KEEP_FIRST);
#endif

#define TENANT 0x5ec4e75ec4e75ec4
#define FLOW_ID 0x1d1d2d2d3d3d4d4d

#define HEADROOM_MAX 1024

struct sk_buff___test {
	unsigned char *data;
} __attribute__((preserve_access_index));

struct seen {
	__u64 packets;
	__u64 secrets; /* packets with something of ours in front of them */
	__u64 traits; /* packets with the trait */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4); /* IPv4, IPv6, ARP, others */
	__type(key, __u32);
	__type(value, struct seen);
} seen SEC(".maps");

SEC("xdp")
int give(struct xdp_md *ctx)
{
	trait_set(ctx, tenant, TENANT);
#ifndef SHORT_AREA
	trait_set(ctx, flow_id, FLOW_ID);
#endif
	trait_seal(ctx);
	return XDP_PASS;
}

static __always_inline _Bool is_ours(__u64 word)
{
	return word == trait_area.flow_nonce || word == TENANT
#ifndef SHORT_AREA
	       || (word & ~1ULL) == trait_area.packet_nonce || word == FLOW_ID
#endif
		;
}

SEC("tc")
int look(struct __sk_buff *ctx)
{
	const void *skb = __trait_skb_of(ctx);
	__u64 head = __trait_kernel_field(skb, struct sk_buff___traits, head);
	__u64 headroom = __trait_kernel_field(skb, struct sk_buff___test, data) - head;
	__u64 tenant_of = 0;
	struct seen *kind;
	_Bool found = 0;
	__u32 number, at;

	switch (ctx->protocol) {
	case bpf_htons(ETH_P_IP):
		number = 0;
		break;
	case bpf_htons(ETH_P_IPV6):
		number = 1;
		break;
	case bpf_htons(ETH_P_ARP):
		number = 2;
		break;
	default:
		number = 3;
	}
	kind = bpf_map_lookup_elem(&seen, &number);
	if (!kind)
		return TC_ACT_UNSPEC;
	for (at = 0; at < HEADROOM_MAX; at += 2) {
		if (at + 8 > headroom)
			break;
		if (is_ours(__trait_kernel_word(head + at, 0)))
			found = 1;
	}
	__sync_fetch_and_add(&kind->packets, 1);
	if (found)
		__sync_fetch_and_add(&kind->secrets, 1);
	if (trait_get(ctx, tenant, &tenant_of) > 0)
		__sync_fetch_and_add(&kind->traits, 1);
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
