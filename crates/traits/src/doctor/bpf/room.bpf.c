// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * How much room XDP has in front of a real packet. It knows nothing of traits; ../room.rs has the other side.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* More than any driver has in front of a packet, and more than a packet's metadata can have. */
#define HEADROOM_MAX 1024
#define METADATA_MAX 256
#define STEP 4

struct room {
	__u32 packets;
	__u32 headroom; /* bytes in front of the packet that XDP can use */
	__u32 metadata; /* bytes of the longest metadata */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct room);
} doctor_room_map SEC(".maps");

/* Moves the packet's start, and then the metadata's, forward until the kernel refuses, and back. */
SEC("xdp")
int doctor_room(struct xdp_md *ctx)
{
	__u32 first = 0, headroom = 0, metadata = 0;
	struct room *room;
	int i;

	room = bpf_map_lookup_elem(&doctor_room_map, &first);
	/* Another program's metadata would be moved. Where there can be none, it begins behind the packet's start. */
	if (!room || ctx->data_meta < ctx->data)
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
	room->headroom = headroom;
	room->metadata = metadata;
	__sync_fetch_and_add(&room->packets, 1);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
