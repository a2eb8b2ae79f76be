// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Programs of the attach tests: each counts the packets or events it sees, in the slot of its name. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CPUMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bpf_cpumap_val);
} cpus SEC(".maps");

static __always_inline void hit(__u32 slot)
{
	__u64 *count = bpf_map_lookup_elem(&hits, &slot);

	if (count)
		__sync_fetch_and_add(count, 1);
}

SEC("xdp")
int xdp_count(struct xdp_md *ctx)
{
	hit(0);
	return XDP_PASS;
}

SEC("xdp")
int xdp_to_device(struct xdp_md *ctx)
{
	return bpf_redirect_map(&devices, 0, 0);
}

SEC("xdp")
int xdp_to_cpu(struct xdp_md *ctx)
{
	return bpf_redirect_map(&cpus, 0, 0);
}

SEC("xdp/devmap")
int devmap_count(struct xdp_md *ctx)
{
	hit(1);
	return XDP_DROP;
}

SEC("xdp/cpumap")
int cpumap_count(struct xdp_md *ctx)
{
	hit(1);
	return XDP_PASS;
}

SEC("tc")
int tc_count(struct __sk_buff *skb)
{
	hit(0);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int tc_stop(struct __sk_buff *skb)
{
	hit(1);
	return TC_ACT_OK;
}

SEC("netfilter")
int nf_count(void *ctx)
{
	hit(0);
	return 1; /* NF_ACCEPT */
}

SEC("cgroup_skb/ingress")
int cg_ingress(struct __sk_buff *skb)
{
	hit(0);
	return 1;
}

SEC("cgroup_skb/egress")
int cg_egress(struct __sk_buff *skb)
{
	hit(0);
	return 1;
}

SEC("cgroup_skb/egress")
int cg_egress_mark(struct __sk_buff *skb)
{
	skb->mark = 1;
	return 1;
}

/* counts by what an earlier program has marked the packet with */
SEC("cgroup_skb/egress")
int cg_egress_by_mark(struct __sk_buff *skb)
{
	hit(skb->mark);
	return 1;
}

SEC("sockops")
int cg_sockops(struct bpf_sock_ops *ops)
{
	hit(0);
	return 1;
}

SEC("cgroup/getsockopt")
int cg_getsockopt(struct bpf_sockopt *ctx)
{
	hit(0);
	return 1;
}

SEC("cgroup/setsockopt")
int cg_setsockopt(struct bpf_sockopt *ctx)
{
	hit(0);
	return 1;
}

SEC("cgroup/sock_release")
int cg_release(struct bpf_sock *sock)
{
	hit(0);
	return 1;
}

SEC("socket")
int socket_count(struct __sk_buff *skb)
{
	hit(0);
	return skb->len;
}

SEC("tp_btf/netif_receive_skb")
int tp_count(void *ctx)
{
	hit(0);
	return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
