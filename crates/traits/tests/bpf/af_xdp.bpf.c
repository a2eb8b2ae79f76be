// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Hands frames to an AF_XDP socket: with all traits, with the area sealed, with an empty area, and untouched. */
#include "record.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

/* only packets of receive queue 0 get here: the links have one queue */
#define TO_SOCKET() bpf_redirect_map(&sockets, 0, XDP_ABORTED)

SEC("xdp")
int with_traits(struct xdp_md *ctx)
{
	return set_all(ctx) ? TO_SOCKET() : XDP_PASS;
}

SEC("xdp")
int with_traits_sealed(struct xdp_md *ctx)
{
	if (!set_all(ctx))
		return XDP_PASS;
	return trait_seal(ctx) ? XDP_ABORTED : TO_SOCKET();
}

SEC("xdp")
int with_empty_area(struct xdp_md *ctx)
{
	struct found found = {};

	if (!find(ctx, &found))
		return XDP_PASS;
	return trait_init(ctx) ? XDP_ABORTED : TO_SOCKET();
}

SEC("xdp")
int untouched(struct xdp_md *ctx)
{
	struct found found = {};

	return find(ctx, &found) ? TO_SOCKET() : XDP_PASS;
}
