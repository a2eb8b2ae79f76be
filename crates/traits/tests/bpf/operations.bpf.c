// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Does what a script says, one call after another, and keeps what each returned. Keys of every size are in both regions.
 */
#include "record.bpf.h"
#include "foreign.bpf.h"

TRAIT_KEY(class, __u8);
TRAIT_KEY(cookie, __u64);
TRAIT_KEY(wide, struct address);
TRAIT_KEY(half, __u16, TRAIT_KEEP_FIRST);
TRAIT_KEY(word, __u32, TRAIT_KEEP_FIRST);
TRAIT_FLAG(seen, TRAIT_KEEP_FIRST);

/* in the order of KEYS in area_errors.rs */
enum key {
	KEY_MARKED,
	KEY_CLASS,
	KEY_PORT,
	KEY_TENANT,
	KEY_COOKIE,
	KEY_WIDE,
	KEY_SEEN,
	KEY_TINY,
	KEY_HALF,
	KEY_WORD,
	KEY_SEQ,
	KEY_RX_TS,
	KEY_SRC,
};

/* in the order of Op in area_errors.rs */
enum op {
	OP_END,
	OP_SET,
	OP_GET,
	OP_GET_OR,
	OP_IS_SET,
	OP_DEL,
	OP_VIEW_GET,
	OP_VIEW_IS_SET,
	OP_INIT,
	OP_CLEAR,
	OP_SEAL,
	OP_ADJUST_HEAD,
	OP_RESTORE,
	OP_FOREIGN,
	OP_META_LEN,
};

#define STEPS 32

struct step {
	__s32 op;
	__s32 key;
	struct address value; /* of a set; otherwise the first word is a number */
};

struct result {
	__s64 returned;
	struct address value;
};

struct step script[STEPS];
struct result results[STEPS];
/* 1: runs the script on packets to TEST_PORT only */
__u64 on_traffic;

/* `call(name)` for the key with this number; FOR_KEY also for flags. */
#define FOR_VALUE_KEY(key, call)                                                                                       \
	switch (key) {                                                                                                 \
	case KEY_CLASS:                                                                                                \
		call(class);                                                                                           \
		break;                                                                                                 \
	case KEY_PORT:                                                                                                 \
		call(port);                                                                                            \
		break;                                                                                                 \
	case KEY_TENANT:                                                                                               \
		call(tenant);                                                                                          \
		break;                                                                                                 \
	case KEY_COOKIE:                                                                                               \
		call(cookie);                                                                                          \
		break;                                                                                                 \
	case KEY_WIDE:                                                                                                 \
		call(wide);                                                                                            \
		break;                                                                                                 \
	case KEY_TINY:                                                                                                 \
		call(tiny);                                                                                            \
		break;                                                                                                 \
	case KEY_HALF:                                                                                                 \
		call(half);                                                                                            \
		break;                                                                                                 \
	case KEY_WORD:                                                                                                 \
		call(word);                                                                                            \
		break;                                                                                                 \
	case KEY_SEQ:                                                                                                  \
		call(seq);                                                                                             \
		break;                                                                                                 \
	case KEY_RX_TS:                                                                                                \
		call(rx_ts);                                                                                           \
		break;                                                                                                 \
	case KEY_SRC:                                                                                                  \
		call(src);                                                                                             \
		break;                                                                                                 \
	}

#define FOR_KEY(key, call)                                                                                             \
	switch (key) {                                                                                                 \
	case KEY_MARKED:                                                                                               \
		call(marked);                                                                                          \
		break;                                                                                                 \
	case KEY_SEEN:                                                                                                 \
		call(seen);                                                                                            \
		break;                                                                                                 \
	default:                                                                                                       \
		FOR_VALUE_KEY(key, call)                                                                               \
	}

/* The step that runs, copied here so that the functions below need no pointers. */
static struct step step;
static struct result result;

#define SET(name) result.returned = trait_set(ctx, name, *(trait_type_##name *)&step.value)

__noinline int do_set(struct xdp_md *ctx)
{
	if (step.key == KEY_MARKED)
		result.returned = trait_set_flag(ctx, marked);
	else if (step.key == KEY_SEEN)
		result.returned = trait_set_flag(ctx, seen);
	else
		FOR_VALUE_KEY(step.key, SET)
	return 0;
}

#define GET(name) result.returned = trait_get(ctx, name, (trait_type_##name *)&result.value)

__noinline int do_get(struct xdp_md *ctx)
{
	FOR_VALUE_KEY(step.key, GET)
	return 0;
}

#define GET_OR(name) *(trait_type_##name *)&result.value = trait_get_or(ctx, name, *(trait_type_##name *)&step.value)

__noinline int do_get_or(struct xdp_md *ctx)
{
	FOR_VALUE_KEY(step.key, GET_OR)
	return 0;
}

#define IS_SET(name) result.returned = trait_is_set(ctx, name)

__noinline int do_is_set(struct xdp_md *ctx)
{
	FOR_KEY(step.key, IS_SET)
	return 0;
}

#define DEL(name) result.returned = trait_del(ctx, name)

__noinline int do_del(struct xdp_md *ctx)
{
	FOR_KEY(step.key, DEL)
	return 0;
}

#define VIEW_GET(name) result.returned = trait_view_get(&view, name, (trait_type_##name *)&result.value)

__noinline int do_view_get(struct xdp_md *ctx)
{
	struct trait_view view;

	result.returned = trait_view(ctx, &view);
	if (!result.returned)
		FOR_VALUE_KEY(step.key, VIEW_GET)
	return 0;
}

#define VIEW_IS_SET(name) result.returned = trait_view_is_set(&view, name)

__noinline int do_view_is_set(struct xdp_md *ctx)
{
	struct trait_view view;

	result.returned = trait_view(ctx, &view);
	if (!result.returned)
		FOR_KEY(step.key, VIEW_IS_SET)
	return 0;
}

/* Reserves (a positive number) or gives up (a negative one) metadata as a program does that knows nothing of traits. */
__noinline int do_foreign(struct xdp_md *ctx)
{
	int len = step.value.word[0];

	result.returned = bpf_xdp_adjust_meta(ctx, -len);
	if (!result.returned && len > 0)
		foreign_write((void *)(long)ctx->data_meta, (void *)(long)ctx->data, len);
	return 0;
}

/* The front of the packet as it came. */
#define SAVED_LEN 64
static __u64 saved[SAVED_LEN / 8];

static __always_inline int save(struct xdp_md *ctx)
{
	void *data = __trait_ctx_ptr(struct xdp_md, ctx, data);
	void *end = __trait_ctx_ptr(struct xdp_md, ctx, data_end);

	if (data + SAVED_LEN > end)
		return -EINVAL;
	__builtin_memcpy(saved, data, SAVED_LEN);
	return 0;
}

static __always_inline int restore(struct xdp_md *ctx)
{
	void *data = __trait_ctx_ptr(struct xdp_md, ctx, data);
	void *end = __trait_ctx_ptr(struct xdp_md, ctx, data_end);

	if (data + SAVED_LEN > end)
		return -EINVAL;
	__builtin_memcpy(data, saved, SAVED_LEN);
	return 0;
}

__noinline int do_whole(struct xdp_md *ctx)
{
	switch (step.op) {
	case OP_INIT:
		result.returned = trait_init(ctx);
		break;
	case OP_CLEAR:
		result.returned = trait_clear(ctx);
		break;
	case OP_SEAL:
		result.returned = trait_seal(ctx);
		break;
	case OP_ADJUST_HEAD:
		result.returned = bpf_xdp_adjust_head(ctx, (int)step.value.word[0]);
		break;
	case OP_RESTORE:
		result.returned = restore(ctx);
		break;
	case OP_META_LEN:
		result.returned = (void *)(long)ctx->data - (void *)(long)ctx->data_meta;
		break;
	}
	return 0;
}

SEC("xdp")
int operations(struct xdp_md *ctx)
{
	struct found found = {};
	int i;

	if ((on_traffic && !find(ctx, &found)) || save(ctx))
		return XDP_PASS;
	for (i = 0; i < STEPS; i++) {
		step = script[i];
		if (step.op == OP_END)
			break;
		__builtin_memset(&result, 0, sizeof(result));
		switch (step.op) {
		case OP_SET:
			do_set(ctx);
			break;
		case OP_GET:
			do_get(ctx);
			break;
		case OP_GET_OR:
			do_get_or(ctx);
			break;
		case OP_IS_SET:
			do_is_set(ctx);
			break;
		case OP_DEL:
			do_del(ctx);
			break;
		case OP_VIEW_GET:
			do_view_get(ctx);
			break;
		case OP_VIEW_IS_SET:
			do_view_is_set(ctx);
			break;
		case OP_FOREIGN:
			do_foreign(ctx);
			break;
		default:
			do_whole(ctx);
			break;
		}
		results[i] = result;
	}
	return XDP_PASS;
}
