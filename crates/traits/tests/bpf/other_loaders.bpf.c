// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Sets a trait in XDP, and counts its readers at hooks that use the kernel's functions where it has them. */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/types.h>
#include <packet_traits/traits.bpf.h>

#define TENANT 7

TRAIT_KEY(tenant, __u32);

/* Packets that had the tenant: at TC, at the cgroup. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

#define COUNT(ctx, place)                                                                                              \
	({                                                                                                             \
		__u32 __place = (place);                                                                               \
		__u64 *__count = bpf_map_lookup_elem(&counts, &__place);                                               \
                                                                                                                       \
		if (__count && trait_get_or(ctx, tenant, 0) == TENANT)                                                 \
			__sync_fetch_and_add(__count, 1);                                                              \
	})

SEC("xdp")
int assign(struct xdp_md *ctx)
{
	trait_set(ctx, tenant, TENANT);
	trait_seal(ctx);
	return XDP_PASS;
}

/* the name that every loader has for TC programs */
SEC("classifier")
int at_tc(struct __sk_buff *ctx)
{
	COUNT(ctx, 0);
	return -1; /* TC_ACT_UNSPEC */
}

SEC("cgroup_skb/ingress")
int at_cgroup(struct __sk_buff *ctx)
{
	COUNT(ctx, 1);
	return 1;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
