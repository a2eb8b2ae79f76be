/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* What a program writes to its metadata that knows nothing of traits, so that its own reader can check it. */
#ifndef __FOREIGN_BPF_H
#define __FOREIGN_BPF_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define FOREIGN_MAX 252 /* xdp_metalen_invalid, include/net/xdp.h */
/* the same in area_errors.rs */
#define FOREIGN_PATTERN(i) (0x46000000U | (i) * 0x010203U)

/* Writes the first `len` bytes of the metadata. */
static __always_inline void foreign_write(void *meta, void *data, __u64 len)
{
	__u32 i;

	for (i = 0; i < FOREIGN_MAX; i += 4) {
		if (i >= len || meta + i + 4 > data)
			break;
		*(volatile __u32 *)(meta + i) = FOREIGN_PATTERN(i);
	}
}

/* Whether they are all there. */
static __always_inline _Bool foreign_intact(void *meta, void *data, __u64 len)
{
	__u32 i;

	for (i = 0; i < FOREIGN_MAX; i += 4) {
		if (i >= len)
			break;
		if (meta + i + 4 > data || *(volatile __u32 *)(meta + i) != FOREIGN_PATTERN(i))
			return 0;
	}
	return 1;
}

#endif
