// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Traits in the application: the programs of a cgroup that serve the options of <packet_traits/socket.h>.
 *
 * What is kept of a socket is in socket storage, which the kernel frees with the socket: `pt_receive` for what comes in,
 * and is copied to sockets accepted from it, `pt_send` for what goes out.
 *
 *	state.bpf.h	maps, structures, copying values
 *	receive.bpf.h	pt_ingress, pt_release: arriving packets
 *	syn.bpf.h	saving a SYN's traits
 *	accept.bpf.h	pt_sockops: connections begin
 *	send.bpf.h	pt_egress: leaving packets
 *	get.bpf.h	pt_getsockopt
 *	set.bpf.h	pt_setsockopt
 */
#include "receive.bpf.h"
#include "accept.bpf.h"
#include "send.bpf.h"
#include "get.bpf.h"
#include "set.bpf.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";
