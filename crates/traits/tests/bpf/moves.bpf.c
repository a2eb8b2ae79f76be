// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Programs at TC that push bytes onto packets and pull them off, and readers between them. Each packet's number is its
 * last 8 bytes, in network order: they stay where they are, whatever is done to the front.
 */
#include "record.bpf.h"

#include <linux/pkt_cls.h>

/* what the two programs do: set before traffic starts; `enum Move` of common/moves.rs */
enum move {
	MOVE_NONE,
	MOVE_VLAN_PUSH,
	MOVE_VLAN_POP,
	MOVE_ROOM,
	MOVE_HEAD,
	MOVE_TAIL,
	MOVE_PROTOCOL,
	MOVE_WRITE,
};
__u64 first_move;
__s64 first_len;
__u64 second_move;
__s64 second_len;
__u64 keep_open; /* 1: does not seal the area */
__u64 drop; /* 1: packets go no further than these programs */
__u64 tail; /* bytes that were added behind the number */
__u64 push_head; /* bytes that XDP pushes before it sets traits, onto packets whose number is a multiple of 3 */

/* what happened */
__s64 first_error; /* the last error */
__s64 second_error;

static __always_inline _Bool number_of(struct __sk_buff *ctx, __u64 *number)
{
	__be64 last;

	if (bpf_skb_load_bytes(ctx, ctx->len - tail - sizeof(last), &last, sizeof(last)))
		return 0;
	*number = bpf_be64_to_cpu(last);
	return 1;
}

SEC("xdp")
int assign_last(struct xdp_md *ctx)
{
	struct record r = { .stage = STAGE_XDP, .present = HAS_ALL };
	__u32 len = ctx->data_end - ctx->data;
	__be64 last;

	if (bpf_xdp_load_bytes(ctx, len - sizeof(last), &last, sizeof(last)))
		return XDP_ABORTED;
	r.extra = r.seq = bpf_be64_to_cpu(last);
	if (push_head && r.seq % 3 == 0 && bpf_xdp_adjust_head(ctx, -(int)(push_head & 0xff)))
		return XDP_ABORTED;
	r.rx_ts = bpf_ktime_get_ns();
	r.src.word[0] = ~r.seq;
	r.src.word[1] = r.seq << 32 | 0x5a5a5a5a;
	r.tenant = (__u32)r.seq * 2654435761U;
	r.port = r.seq * 3 + 1;
	r.tiny = r.seq * 7 + 3;
	r.len = len;
	if (trait_set(ctx, tenant, r.tenant) || trait_set(ctx, port, r.port) || trait_set_flag(ctx, marked) ||
	    trait_set(ctx, seq, r.seq) || trait_set(ctx, rx_ts, r.rx_ts) || trait_set(ctx, src, r.src) ||
	    trait_set(ctx, tiny, r.tiny) || (!keep_open && trait_seal(ctx)))
		return XDP_ABORTED;
	submit(&r);
	return XDP_PASS;
}

/* Reports of each packet, also of one without traits, what is read; the number is `extra`. */
#define REPORT(ctx, stage_)                                                                                            \
	({                                                                                                             \
		struct record __r = { .stage = (stage_), .len = (ctx)->len };                                          \
                                                                                                                       \
		if (number_of(ctx, &__r.extra)) {                                                                      \
			READ_EACH(ctx, &__r);                                                                          \
			submit(&__r);                                                                                  \
		}                                                                                                      \
	})

static __always_inline long do_move(struct __sk_buff *ctx, __u64 what, __s64 len)
{
	__u8 byte = 0;

	switch (what) {
	case MOVE_VLAN_PUSH:
		return bpf_skb_vlan_push(ctx, bpf_htons(ETH_P_8021Q), 5);
	case MOVE_VLAN_POP:
		return bpf_skb_vlan_pop(ctx);
	case MOVE_ROOM:
		return bpf_skb_adjust_room(ctx, len, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
	case MOVE_HEAD:
		return bpf_skb_change_head(ctx, len, 0);
	case MOVE_TAIL:
		tail += len;
		return bpf_skb_change_tail(ctx, ctx->len + len, 0);
	case MOVE_PROTOCOL:
		return bpf_skb_change_proto(ctx, bpf_htons(len), 0);
	case MOVE_WRITE:
		return bpf_skb_load_bytes(ctx, 0, &byte, 1) ?: bpf_skb_store_bytes(ctx, 0, &byte, 1, 0);
	}
	return 0;
}

SEC("tc")
int first(struct __sk_buff *ctx)
{
	long err;

	tail = 0;
	err = do_move(ctx, first_move, first_len);
	if (err)
		first_error = err;
	return TC_ACT_UNSPEC;
}

SEC("tc")
int second(struct __sk_buff *ctx)
{
	long err = do_move(ctx, second_move, second_len);

	if (err)
		second_error = err;
	return TC_ACT_UNSPEC;
}

SEC("tc")
int before(struct __sk_buff *ctx)
{
	REPORT(ctx, STAGE_TC_INGRESS);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int between(struct __sk_buff *ctx)
{
	REPORT(ctx, STAGE_TC_EGRESS);
	return TC_ACT_UNSPEC;
}

SEC("tc")
int behind(struct __sk_buff *ctx)
{
	REPORT(ctx, STAGE_FORWARD);
	return drop ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

SEC("socket")
int at_socket(struct __sk_buff *ctx)
{
	REPORT(ctx, STAGE_SOCKET_FILTER);
	return -1;
}
