// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Programs of the doctor that need a real packet: how much room XDP has in front of it, and who reads the trait that XDP
 * gives it. Each is loaded alone, so that what a kernel lacks for one does not stop the others; ../path.rs has the
 * other side.
 */
#include <linux/bpf.h>
#include <packet_traits/traits.bpf.h>

TRAIT_KEY(doctor, __u32);

#define TC_ACT_UNSPEC (-1)
#define NF_ACCEPT 1 /* include/uapi/linux/netfilter.h */
#define ALLOW 1
#define WHOLE (-1)

/* More than any driver has in front of a packet, and more than a packet's metadata can have. */
#define HEADROOM_MAX 1024
#define METADATA_MAX 256
#define STEP 4

/* the trait's value; only packets with this one were given it by this program */
#define VALUE 0x646f6374

/* What one program saw. */
struct seen {
	__u32 packets; /* with the trait, or measured */
	__u32 headroom; /* bytes in front of the packet that XDP can use */
	__u32 metadata; /* bytes of the longest metadata */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct seen);
} doctor_seen SEC(".maps");

static __always_inline struct seen *seen(void)
{
	__u32 first = 0;

	return bpf_map_lookup_elem(&doctor_seen, &first);
}

static __always_inline void count(int read, __u32 value)
{
	struct seen *s = seen();

	if (s && read > 0 && value == VALUE)
		__sync_fetch_and_add(&s->packets, 1);
}

/* Moves the packet's start, and then the metadata's, forward until the kernel refuses, and back. */
SEC("xdp")
int doctor_room(struct xdp_md *ctx)
{
	__u32 headroom = 0, metadata = 0;
	struct seen *s = seen();
	int i;

	/* Another program's metadata would be moved. Where there can be none, it begins behind the packet's start. */
	if (!s || ctx->data_meta < ctx->data)
		return XDP_PASS;
	for (i = 0; i < HEADROOM_MAX / STEP; i++) {
		if (bpf_xdp_adjust_head(ctx, -STEP))
			break;
		headroom += STEP;
	}
	bpf_xdp_adjust_head(ctx, headroom);
	for (i = 0; i < METADATA_MAX / STEP; i++) {
		if (bpf_xdp_adjust_meta(ctx, -STEP))
			break;
		metadata += STEP;
	}
	bpf_xdp_adjust_meta(ctx, metadata);
	s->headroom = headroom;
	s->metadata = metadata;
	__sync_fetch_and_add(&s->packets, 1);
	return XDP_PASS;
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
