// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * assign.bpf.c with the tracer's keys in the flow region, for registries that have no other. GRO compares that region, so it
 * merges no packets that are traced.
 */
#define OWN_MERGE TRAIT_BLOCK
#include "assign.bpf.c"
