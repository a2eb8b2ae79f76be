// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* Sets every trait in XDP and reads them in the callbacks of TCP sockets that have a packet. */
#include "record.bpf.h"

/* The context as the kernel has it: `syn_skb` is the SYN that a listener is answering. */
struct bpf_sock_ops_kern___syn {
	struct sk_buff *syn_skb;
} __attribute__((preserve_access_index));

/* the test's namespace: a cgroup has sockets of others */
__u64 netns_cookie;

SEC("xdp")
int assign(struct xdp_md *ctx)
{
	if (set_all(ctx) && trait_seal(ctx))
		return XDP_ABORTED;
	return XDP_PASS;
}

/* `extra` of a record is the callback's number. */
SEC("sockops")
int callbacks(struct bpf_sock_ops *ctx)
{
	struct record r = { .stage = STAGE_SOCK_OPS, .extra = ctx->op };
	__u64 syn;

	if (ctx->local_port != TEST_PORT || bpf_get_netns_cookie(ctx) != netns_cookie)
		return 1;
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_LISTEN_CB: /* an accepted socket has the flags of its listener */
		bpf_sock_ops_cb_flags_set(ctx,
					  BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG | BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
		return 1;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB: /* before a packet is sent */
		syn = __trait_kernel_field(__trait_kern_ctx(ctx), struct bpf_sock_ops_kern___syn, syn_skb);
		if (!syn)
			return 1;
		READ_EACH((struct sk_buff *)__trait_kernel_pointer(syn, struct sk_buff___traits), &r);
		break;
	default:
		READ_EACH(ctx, &r);
	}
	if (r.present)
		submit(&r);
	return 1;
}
