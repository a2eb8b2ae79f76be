// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* What an object may have, apart from XDP, TC and netfilter programs: it all goes on when secrets are rotated. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_tracing.h>
#include <packet_traits/traits.bpf.h>

TRAIT_KEY(tenant, __u32);

/* the kernel cuts all names to the same 15 bytes */
struct counter {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
};
struct counter packets_seen_at_xdp SEC(".maps");
struct counter packets_seen_at_tc SEC(".maps");
struct counter packets_seen_at_receive SEC(".maps");

const volatile __u32 step = 1; /* the loader says 3 */
__u64 by_bss;
__u64 by_data = 1000;
__u64 traced;

static __always_inline void put(void *map, __u64 value)
{
	__u32 zero = 0;

	bpf_map_update_elem(map, &zero, &value, BPF_ANY);
}

SEC("xdp")
int on_xdp(struct xdp_md *ctx)
{
	trait_set(ctx, tenant, step);
	by_bss += step;
	by_data += step;
	put(&packets_seen_at_xdp, by_bss + by_data);
	return XDP_PASS;
}

/* only if the loader says so */
SEC("?tc")
int on_tc(struct __sk_buff *ctx)
{
	__u32 zero = 0;
	__u64 *seen = bpf_map_lookup_elem(&packets_seen_at_tc, &zero);

	if (seen && trait_get_or(ctx, tenant, 0) == 3)
		*seen += 1;
	return TC_ACT_UNSPEC;
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(on_receive, struct sk_buff *skb)
{
	__u32 value = 0;

	if (trait_get(skb, tenant, &value) > 0)
		put(&packets_seen_at_receive, ++traced);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
