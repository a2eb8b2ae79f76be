// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Sets every trait in XDP and reads them at a socket map's verdict and at a route's programs. */
#include "record.bpf.h"

/* The socket whose received data the verdict sees. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

SEC("xdp")
int assign(struct xdp_md *ctx)
{
	if (set_all(ctx) && trait_seal(ctx))
		return XDP_ABORTED;
	return XDP_PASS;
}

/* The length of the metadata, as the kernel has it. */
static __always_inline __u64 metadata_len(struct __sk_buff *ctx)
{
	const void *skb = __trait_skb_of(ctx);
	__u64 shared = __trait_kernel_field(skb, struct sk_buff___traits, head) +
		       __trait_kernel_field(skb, struct sk_buff___traits, end);

	return __trait_kernel_field(shared, struct skb_shared_info___traits, meta_len);
}

/* Unlike in stages.bpf.c, what has no traits is reported too: nothing else passes here. */
#define REPORT(ctx, stage_, read)                                                                                      \
	({                                                                                                             \
		struct record __r = { .stage = (stage_), .len = (ctx)->len, .extra = metadata_len(ctx) };              \
                                                                                                                       \
		read(ctx, &__r);                                                                                       \
		submit(&__r);                                                                                          \
	})

SEC("sk_skb/stream_verdict")
int verdict(struct __sk_buff *ctx)
{
	REPORT(ctx, STAGE_SK_SKB_VERDICT, READ_EACH);
	return SK_PASS;
}

SEC("lwt_in")
int route_in(struct __sk_buff *ctx)
{
	REPORT(ctx, STAGE_LWT_IN, READ_EACH);
	return BPF_OK;
}

SEC("lwt_out")
int route_out(struct __sk_buff *ctx)
{
	REPORT(ctx, STAGE_LWT_OUT, READ_VIEW);
	return BPF_OK;
}

SEC("lwt_xmit")
int route_xmit(struct __sk_buff *ctx)
{
	REPORT(ctx, STAGE_LWT_XMIT, READ_EACH);
	return BPF_OK;
}
