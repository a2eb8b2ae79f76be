// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Changes the keys of the flow region at TC, and keeps what each call returned. */
#include "record.bpf.h"

#include <linux/pkt_cls.h>

/* what to do; with what: CHANGED_ in tc_changes.rs */
enum action {
	ACTION_NONE,
	ACTION_SET,
	ACTION_DEL,
	/* what only a program without bound keys, or a packet without an area, refuses in full */
	ACTION_GET,
};
__u64 action;

#define CHANGED_TENANT 0xc0ffee
#define CHANGED_PORT 0xbeef

/* packets on which all calls of the action returned what was returned first */
__u64 packets;
__u64 differing;
__s64 returned[8];

static __always_inline void keep(const __s64 *now)
{
	int i;

	if (!__sync_fetch_and_add(&packets, 1)) {
		for (i = 0; i < 8; i++)
			returned[i] = now[i];
		return;
	}
	for (i = 0; i < 8; i++)
		if (returned[i] != now[i]) {
			__sync_fetch_and_add(&differing, 1);
			return;
		}
}

/* What is in trait_tc_set and trait_tc_del, which stop the compiler at this key: calls by number get here. */
static __always_inline int change_keep_first(struct __sk_buff *ctx, _Bool on)
{
	const __u64 number = on;

	return __trait_tc_change(ctx, __trait_desc(seq), &number, sizeof(number), on);
}

SEC("tc")
int change(struct __sk_buff *ctx)
{
	__s64 now[8] = {};
	__u32 who = 0;
	__u64 number = 0;

	switch (action) {
	case ACTION_SET:
		now[0] = trait_tc_set(ctx, tenant, CHANGED_TENANT);
		now[1] = trait_tc_set(ctx, port, CHANGED_PORT);
		now[2] = trait_tc_set_flag(ctx, marked);
		now[3] = change_keep_first(ctx, 1);
		break;
	case ACTION_DEL:
		now[0] = trait_tc_del(ctx, tenant);
		now[1] = trait_tc_del(ctx, port);
		now[2] = trait_tc_del(ctx, marked);
		now[3] = change_keep_first(ctx, 0);
		now[4] = trait_tc_del(ctx, tenant);
		break;
	case ACTION_GET:
		break;
	default:
		return TC_ACT_UNSPEC;
	}
	now[5] = trait_tc_get(ctx, tenant, &who);
	now[6] = trait_tc_get(ctx, seq, &number);
	now[7] = trait_tc_is_set(ctx, marked);
	/* what was read must be what a read through the kernel context gives */
	{
		struct record r = {};

		READ_EACH(ctx, &r);
		if (r.tenant != who || r.seq != number)
			now[7] = -1;
	}
	keep(now);
	return TC_ACT_UNSPEC;
}

/* Reads after the change, in the same hook. */
SEC("tc")
int reread(struct __sk_buff *ctx)
{
	struct record r = { .stage = STAGE_TC_EGRESS, .len = ctx->len };

	READ_VIEW(ctx, &r);
	if (r.present)
		submit(&r);
	return TC_ACT_UNSPEC;
}
