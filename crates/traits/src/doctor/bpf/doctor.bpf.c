// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * XDP gives a trait to real packets, and each later stage tells how many it read it from. Each program is loaded alone, so
 * that what a kernel lacks for one does not stop the others; ../path.rs has the other side.
 */
#include <linux/bpf.h>
#include <packet_traits/traits.bpf.h>

TRAIT_KEY(doctor, __u32);

#define TC_ACT_UNSPEC (-1)
#define NF_ACCEPT 1 /* include/uapi/linux/netfilter.h */
#define ALLOW 1
#define WHOLE (-1)

/* the trait's value; only packets with this one were given it by this program */
#define VALUE 0x646f6374

/* how many packets had it */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} doctor_packets SEC(".maps");

static __always_inline void count(int read, __u32 value)
{
	__u32 first = 0, *packets = bpf_map_lookup_elem(&doctor_packets, &first);

	if (packets && read > 0 && value == VALUE)
		__sync_fetch_and_add(packets, 1);
}

SEC("xdp")
int doctor_set(struct xdp_md *ctx)
{
	int read = 0;

	if (!trait_set(ctx, doctor, VALUE)) {
		trait_seal(ctx);
		read = 1;
	}
	count(read, VALUE);
	return XDP_PASS;
}

SEC("tc")
int doctor_tc(struct __sk_buff *ctx)
{
	__u32 value = 0;

	count(trait_tc_get(ctx, doctor, &value), value);
	return TC_ACT_UNSPEC;
}

SEC("netfilter")
int doctor_filter(struct bpf_nf_ctx *ctx)
{
	__u32 value = 0;

	count(trait_get(ctx, doctor, &value), value);
	return NF_ACCEPT;
}

SEC("cgroup_skb/ingress")
int doctor_cgroup(struct __sk_buff *ctx)
{
	__u32 value = 0;

	count(trait_get(ctx, doctor, &value), value);
	return ALLOW;
}

SEC("socket")
int doctor_socket(struct __sk_buff *ctx)
{
	__u32 value = 0;

	count(trait_get(ctx, doctor, &value), value);
	return WHOLE;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
