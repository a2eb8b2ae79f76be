// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Sets a trait of every type, with values whose text is easily got wrong. Its keys are EVERY_TYPE of common/sockets.rs. */
#include <linux/bpf.h>
#include <packet_traits/traits.bpf.h>

struct words {
	__u64 word[2];
};

struct bytes8 {
	__u8 byte[8];
} __attribute__((aligned(8)));

struct bytes16 {
	__u8 byte[16];
} __attribute__((aligned(8)));

TRAIT_KEY(tenant, __u32);
TRAIT_KEY(flow_id, __u64, TRAIT_KEEP_FIRST);
TRAIT_FLAG(sampled);
TRAIT_KEY(hops, __u8, TRAIT_KEEP_FIRST);
TRAIT_KEY(port, __u16, TRAIT_KEEP_FIRST);
TRAIT_KEY(hash, struct words);
TRAIT_KEY(offset, __s64, TRAIT_KEEP_FIRST);
TRAIT_KEY(via, __u32);
TRAIT_KEY(source, struct bytes16);
TRAIT_KEY(gateway, struct bytes8);
TRAIT_KEY(session, struct bytes16, TRAIT_KEEP_FIRST);
TRAIT_KEY(rx_ts, __u64, TRAIT_KEEP_FIRST);

SEC("xdp")
int assign(struct xdp_md *ctx)
{
	struct bytes16 address = { { 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01 } };
	struct bytes16 uuid = { { 0x12, 0x3e, 0x45, 0x67, 0xe8, 0x9b, 0x12, 0xd3, 0xa4, 0x56, 0x42, 0x66, 0x14, 0x17,
				  0x40, 0x00 } };
	struct bytes8 mac = { { 0x02, 0x00, 0x5e, 0x10, 0x00, 0x01, 0xff, 0xff } };
	__u8 ipv4[4] = { 192, 0, 2, 1 };
	struct words large = { { 3, 1ULL << 63 } };
	__u32 via;

	__builtin_memcpy(&via, ipv4, sizeof(via));
	if (trait_set(ctx, tenant, 0xffffffff) || trait_set(ctx, flow_id, ~0ULL) || trait_set_flag(ctx, sampled) ||
	    trait_set(ctx, hops, 200) || trait_set(ctx, port, 65000) || trait_set(ctx, hash, large) ||
	    trait_set(ctx, offset, -5) || trait_set(ctx, via, via) || trait_set(ctx, source, address) ||
	    trait_set(ctx, gateway, mac) || trait_set(ctx, session, uuid) || trait_set(ctx, rx_ts, 12000345678ULL))
		return XDP_ABORTED;
	return trait_seal(ctx) ? XDP_ABORTED : XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
