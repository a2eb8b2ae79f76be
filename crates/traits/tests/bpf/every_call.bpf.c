// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Every call of the header in every program type of its table, one program a row. With VMLINUX defined it is compiled
 * against the kernel's own types instead of the uapi headers. header.rs compiles and loads it in all the ways it must.
 */
#ifdef VMLINUX
#include "vmlinux.h"
#define s6_addr32 in6_u.u6_addr32
#else
#include <linux/bpf.h>
#include <linux/in6.h>
#endif
#include <packet_traits/traits.bpf.h>
#include <packet_traits/rfc.bpf.h>

/* types whose alignment is less than what they are stored with */
struct mac {
	__u8 byte[8];
};

TRAIT_KEY(tenant, __u32);
TRAIT_KEY(flow_id, __u64, TRAIT_KEEP_FIRST);
TRAIT_KEY(src, struct in6_addr, TRAIT_DISCARD);
TRAIT_KEY(gateway, struct mac);
TRAIT_KEY_NAMED(tos, "ip.tos", __u8);
TRAIT_FLAG(sampled);

/* Fields at odd places, so that nothing is aligned by chance. */
struct seen {
	__u64 flow_id;
	__u32 tenant;
	__u8 tos;
	struct mac gateway;
	__u8 sampled;
	__u8 unused[2];
	struct in6_addr src;
	__u32 more;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} output SEC(".maps");

/* What is read is used, so that clang keeps it. */
#define REPORT(seen) bpf_ringbuf_output(&output, seen, sizeof(*(seen)), 0)

#define GET_EACH(ctx, seen)                                                                                            \
	({                                                                                                             \
		trait_get(ctx, tenant, &(seen)->tenant);                                                               \
		trait_get(ctx, flow_id, &(seen)->flow_id);                                                             \
		trait_get(ctx, src, &(seen)->src);                                                                     \
		trait_get(ctx, gateway, &(seen)->gateway);                                                             \
		(seen)->tos = trait_get_or(ctx, tos, 255);                                                             \
		(seen)->sampled = trait_is_set(ctx, sampled);                                                          \
	})

#define GET_VIEW(ctx, seen)                                                                                            \
	({                                                                                                             \
		struct trait_view view;                                                                                \
                                                                                                                       \
		if (!trait_view(ctx, &view)) {                                                                         \
			trait_view_get(&view, tenant, &(seen)->tenant);                                                \
			trait_view_get(&view, flow_id, &(seen)->flow_id);                                              \
			trait_view_get(&view, src, &(seen)->src);                                                      \
			trait_view_get(&view, gateway, &(seen)->gateway);                                              \
			(seen)->sampled = trait_view_is_set(&view, sampled);                                           \
		}                                                                                                      \
	})

SEC("xdp")
int xdp_all(struct xdp_md *ctx)
{
	struct seen seen = {};
	struct mac gateway = {};
	__u64 number = 1;

	trait_init(ctx);
	gateway.byte[3] = bpf_get_prandom_u32();
	seen.src.s6_addr32[1] = bpf_get_prandom_u32();
	trait_set(ctx, tenant, 7);
	trait_set(ctx, flow_id, bpf_ktime_get_ns());
	trait_set(ctx, src, seen.src);
	trait_set(ctx, gateway, gateway);
	trait_set(ctx, tos, 1);
	trait_set_flag(ctx, sampled);
	GET_EACH(ctx, &seen);
	GET_VIEW(ctx, &seen);
	trait_del(ctx, tenant);
	trait_del(ctx, flow_id);
	trait_del(ctx, sampled);
	trait_clear(ctx);
	bpf_xdp_trait_set(ctx, 3, &number, sizeof(number), 0);
	bpf_xdp_trait_get(ctx, 3, &number, sizeof(number));
	seen.more = bpf_xdp_trait_is_set(ctx, 3) + bpf_xdp_trait_del(ctx, 3);
	REPORT(&seen);
	trait_seal(ctx);
	trait_drop_inherited(ctx);
	return XDP_PASS;
}

/* The direct calls of TC and TCX. */
SEC("tc")
int tc_all(struct __sk_buff *ctx)
{
	struct seen seen = {};

	trait_tc_get(ctx, tenant, &seen.tenant);
	trait_tc_get(ctx, src, &seen.src);
	seen.sampled = trait_tc_is_set(ctx, sampled);
	trait_tc_set(ctx, tenant, 8);
	trait_tc_set(ctx, gateway, seen.gateway);
	trait_tc_set_flag(ctx, sampled);
	trait_tc_del(ctx, tenant);
	REPORT(&seen);
	return 0;
}

/* What every skb context can do; by number too. */
#define READER(section, name, type, ret)                                                                               \
	SEC(section)                                                                                                   \
	int name##_each(type *ctx)                                                                                     \
	{                                                                                                              \
		struct seen seen = {};                                                                                 \
                                                                                                                       \
		GET_EACH(ctx, &seen);                                                                                  \
		REPORT(&seen);                                                                                         \
		return ret;                                                                                            \
	}                                                                                                              \
	SEC(section)                                                                                                   \
	int name##_view(type *ctx)                                                                                     \
	{                                                                                                              \
		struct seen seen = {};                                                                                 \
                                                                                                                       \
		GET_VIEW(ctx, &seen);                                                                                  \
		REPORT(&seen);                                                                                         \
		return ret;                                                                                            \
	}

#define NUMBERED_READER(section, name, ret)                                                                            \
	SEC(section)                                                                                                   \
	int name##_number(struct __sk_buff *ctx)                                                                       \
	{                                                                                                              \
		struct seen seen = {};                                                                                 \
		__u8 value[16] = {};                                                                                   \
                                                                                                                       \
		if (bpf_skb_trait_get(ctx, 3, value, sizeof(value)) > 0)                                               \
			seen.tos = value[0];                                                                           \
		seen.sampled = bpf_skb_trait_is_set(ctx, 5);                                                           \
		REPORT(&seen);                                                                                         \
		return ret;                                                                                            \
	}                                                                                                              \
	READER(section, name, struct __sk_buff, ret)

NUMBERED_READER("tc", tc, 0)
NUMBERED_READER("socket", socket, -1)
NUMBERED_READER("cgroup_skb/ingress", cgroup_ingress, 1)
NUMBERED_READER("cgroup_skb/egress", cgroup_egress, 1)
NUMBERED_READER("sk_skb/stream_verdict", sk_skb, SK_PASS)
NUMBERED_READER("lwt_in", lwt_in, 0)
NUMBERED_READER("lwt_out", lwt_out, 0)
NUMBERED_READER("lwt_xmit", lwt_xmit, 0)
READER("netfilter", netfilter, struct bpf_nf_ctx, 1)
READER("sockops", sockops, struct bpf_sock_ops, 1)

/* By hand what BPF_PROG does, which is not clean under -Wextra. */
#define TRACER(section, name)                                                                                          \
	SEC(section)                                                                                                   \
	int name##_each(unsigned long long *args)                                                                      \
	{                                                                                                              \
		struct sk_buff *skb = (void *)args[0];                                                                 \
		struct seen seen = {};                                                                                 \
                                                                                                                       \
		GET_EACH(skb, &seen);                                                                                  \
		REPORT(&seen);                                                                                         \
		return 0;                                                                                              \
	}                                                                                                              \
	SEC(section)                                                                                                   \
	int name##_view(unsigned long long *args)                                                                      \
	{                                                                                                              \
		const struct sk_buff *skb = (void *)args[0];                                                           \
		struct seen seen = {};                                                                                 \
                                                                                                                       \
		GET_VIEW(skb, &seen);                                                                                  \
		REPORT(&seen);                                                                                         \
		return 0;                                                                                              \
	}

TRACER("tp_btf/netif_receive_skb", tp_btf)
TRACER("fentry/ip_rcv", fentry)

char LICENSE[] SEC("license") = "Dual MIT/GPL";
