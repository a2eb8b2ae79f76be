// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * The demo's programs where the kernel takes 32 bytes of metadata: 16 of values, and no packet region.
 */
#define SHORT_AREA
#include "demo.bpf.c"
