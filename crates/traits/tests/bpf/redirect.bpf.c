// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* A first XDP program sets every trait and redirects, a second one in the map's entry reads and changes them. */
#include "stages.bpf.c"

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

/* Ethernet address of whoever is behind `devices`, in the low bytes */
__u64 next_hop;

static __always_inline int to_device(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 address = next_hop;

	if (data + sizeof(struct ethhdr) > end)
		return XDP_ABORTED;
	__builtin_memcpy(data, &address, ETH_ALEN);
	return bpf_redirect_map(&devices, 0, XDP_ABORTED);
}

SEC("xdp")
int to_device_sealed(struct xdp_md *ctx)
{
	if (!set_all(ctx))
		return XDP_PASS;
	return trait_seal(ctx) ? XDP_ABORTED : to_device(ctx);
}

SEC("xdp")
int to_device_open(struct xdp_md *ctx)
{
	return set_all(ctx) ? to_device(ctx) : XDP_PASS;
}

SEC("xdp")
int to_cpu_sealed(struct xdp_md *ctx)
{
	if (!set_all(ctx))
		return XDP_PASS;
	return trait_seal(ctx) ? XDP_ABORTED : bpf_redirect_map(&cpus, 0, XDP_ABORTED);
}

SEC("xdp")
int to_cpu_open(struct xdp_md *ctx)
{
	return set_all(ctx) ? bpf_redirect_map(&cpus, 0, XDP_ABORTED) : XDP_PASS;
}

/* Reports what the second program reads, and that it ran if it reads nothing. */
static __always_inline void report_again(struct xdp_md *ctx)
{
	struct record r = { .stage = STAGE_XDP_AGAIN };

	READ_EACH(ctx, &r);
	submit(&r);
}

/* In each region: sets one key to one more than it was, and deletes one. Returns 0, or how many calls failed. */
static __always_inline int change(struct xdp_md *ctx)
{
	int err = 0;

	err += !!trait_set(ctx, tenant, trait_get_or(ctx, tenant, 0) + 1);
	err += !!trait_set(ctx, tiny, trait_get_or(ctx, tiny, 0) + 1);
	err += !!trait_del(ctx, port);
	err += !!trait_del(ctx, src);
	return err;
}

SEC("xdp/devmap")
int device_read(struct xdp_md *ctx)
{
	report_again(ctx);
	return XDP_PASS;
}

SEC("xdp/devmap")
int device_change(struct xdp_md *ctx)
{
	report_again(ctx);
	if (change(ctx) || trait_seal(ctx))
		return XDP_DROP;
	return XDP_PASS;
}

SEC("xdp/devmap")
int device_set(struct xdp_md *ctx)
{
	report_again(ctx);
	return trait_set(ctx, tenant, 1) || trait_set(ctx, tiny, 1) ? XDP_DROP : XDP_PASS;
}

SEC("xdp/cpumap")
int cpu_read(struct xdp_md *ctx)
{
	report_again(ctx);
	return XDP_PASS;
}

SEC("xdp/cpumap")
int cpu_change(struct xdp_md *ctx)
{
	report_again(ctx);
	if (change(ctx) || trait_seal(ctx))
		return XDP_DROP;
	return XDP_PASS;
}

SEC("xdp/cpumap")
int cpu_set(struct xdp_md *ctx)
{
	report_again(ctx);
	return trait_set(ctx, tenant, 1) || trait_set(ctx, tiny, 1) ? XDP_DROP : XDP_PASS;
}
