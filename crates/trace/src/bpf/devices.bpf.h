/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The interfaces that are traced, for programs that would see others as well. Objects share the map.
 */
#ifndef __TRACE_DEVICES_BPF_H
#define __TRACE_DEVICES_BPF_H

#include "trace.bpf.h"

struct device {
	__u32 netns;
	__u32 ifindex;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096); /* at least 1 and as many as there are: set by the loader */
	__type(key, struct device);
	__type(value, __u32);
} devices SEC(".maps");

/* Whether an interface is traced; fills in which it is. */
static __always_inline _Bool is_traced(__u64 dev, struct device *device)
{
	device->netns = NETNS_OF_DEV(dev);
	device->ifindex = DEV(dev, ifindex);
	return bpf_map_lookup_elem(&devices, device);
}

#endif /* __TRACE_DEVICES_BPF_H */
