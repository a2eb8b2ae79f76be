// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Every call of socket.bpf.h in every program type that sees packets with a sender. */
#ifdef VMLINUX
#include <vmlinux.h>
#else
#include <linux/bpf.h>
#endif
#include <packet_traits/socket.bpf.h>

struct address {
	__u64 word[2];
};

struct mac {
	__u8 byte[8];
};

TRAIT_KEY(tenant, __u32);
TRAIT_KEY(flow_id, __u64, TRAIT_KEEP_FIRST);
TRAIT_KEY(src, struct address, TRAIT_DISCARD);
TRAIT_KEY(gateway, struct mac);
TRAIT_KEY_NAMED(ip_tos, "ip.tos", __u8);
TRAIT_FLAG(sampled);

/* what was read, so that reading it cannot be left out */
__u64 sum;

#define EACH(get, is_set, ctx)                                                                                         \
	({                                                                                                             \
		struct address address = {};                                                                           \
		struct mac gateway = {};                                                                               \
		__u64 flow = 0;                                                                                        \
		__u32 who = 0;                                                                                         \
		__u8 tos = 0;                                                                                          \
                                                                                                                       \
		sum += get(ctx, tenant, &who) + get(ctx, flow_id, &flow) + get(ctx, src, &address) +                   \
		       get(ctx, gateway, &gateway) + get(ctx, ip_tos, &tos) + is_set(ctx, sampled) +                   \
		       is_set(ctx, tenant) + who + flow + address.word[1] + gateway.byte[0] + tos;                     \
	})

SEC("tc")
int tc_egress(struct __sk_buff *ctx)
{
	EACH(trait_tc_sender_get, trait_tc_sender_is_set, ctx);
	return 0;
}

SEC("cgroup_skb/egress")
int cgroup_egress(struct __sk_buff *ctx)
{
	EACH(trait_sender_get, trait_sender_is_set, ctx);
	return 1;
}

SEC("netfilter")
int post_routing(struct bpf_nf_ctx *ctx)
{
	EACH(trait_sender_get, trait_sender_is_set, ctx);
	return 1;
}

SEC("tp_btf/net_dev_queue")
int queued(__u64 *ctx)
{
	struct sk_buff *skb = (void *)ctx[0];

	EACH(trait_sender_get, trait_sender_is_set, skb);
	return 0;
}

SEC("fentry/dev_hard_start_xmit")
int xmit(__u64 *ctx)
{
	struct sk_buff *skb = (void *)ctx[0];

	EACH(trait_sender_get, trait_sender_is_set, skb);
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
