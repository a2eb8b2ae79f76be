// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Packets of one TCP flow whose traits differ in one region or the other: which of them does GRO merge? */
#include "record.bpf.h"

#include <linux/pkt_cls.h>

#define TENANT 7

static __always_inline int assign(struct xdp_md *ctx, _Bool tenant_differs, _Bool seq_differs, _Bool seal)
{
	struct record r = { .stage = STAGE_XDP, .present = HAS_TENANT | HAS_SEQ };
	struct found found = {};

	if (!find(ctx, &found))
		return XDP_PASS;
	r.tenant = tenant_differs ? found.seq : TENANT;
	r.seq = seq_differs ? found.seq : 0;
	if (trait_set(ctx, tenant, r.tenant) || trait_set(ctx, seq, r.seq))
		return XDP_ABORTED;
	if (seal && trait_seal(ctx))
		return XDP_ABORTED;
	submit(&r);
	return XDP_PASS;
}

SEC("xdp")
int keep_first_differs(struct xdp_md *ctx)
{
	return assign(ctx, 0, 1, 1);
}

SEC("xdp")
int block_differs(struct xdp_md *ctx)
{
	return assign(ctx, 1, 0, 1);
}

SEC("xdp")
int all_equal(struct xdp_md *ctx)
{
	return assign(ctx, 0, 0, 1);
}

SEC("xdp")
int keep_first_differs_unsealed(struct xdp_md *ctx)
{
	return assign(ctx, 0, 1, 0);
}

/* Sets a block key that differs, and takes it back. */
SEC("xdp")
int block_deleted(struct xdp_md *ctx)
{
	struct found found = {};

	if (!find(ctx, &found))
		return XDP_PASS;
	trait_set(ctx, port, (__u16)found.seq);
	trait_del(ctx, port);
	return assign(ctx, 0, 1, 1);
}

SEC("tc")
int tc_ingress(struct __sk_buff *ctx)
{
	struct record r = { .stage = STAGE_TC_INGRESS, .len = ctx->len };

	READ_EACH(ctx, &r);
	if (r.present)
		submit(&r);
	return TC_ACT_UNSPEC;
}
