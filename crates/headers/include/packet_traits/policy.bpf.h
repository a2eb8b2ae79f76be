/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What programs that `traits compile` makes of a policy are built from: ways to load headers at each hook, numbers in
 * the packet, and actions. Not for programs written by hand; traits.bpf.h is.
 *
 * A number of the policy is a C integer in host order, addresses too: 10.0.0.1 is 0x0a000001. Where a packet does not
 * have a field, it is 0 and the bit of its header in `headers` is not set.
 *
 * The verifier follows every way through a program on which it knows another value. With hundreds of rules it must not
 * know any: headers are taken apart in a global function, after which the verifier takes all that is in struct
 * <block>_packet for unknown, each test loads its field again (__trait_reloaded), and what rules themselves have set is
 * tested behind __trait_forget().
 */
#ifndef __PACKET_TRAITS_POLICY_BPF_H
#define __PACKET_TRAITS_POLICY_BPF_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>

#include "traits.bpf.h"

/* bits of `headers`; those of inner headers are PT_INNER() of these */
#define PT_ETHERNET (1U << 0)
#define PT_VLAN (1U << 1)
#define PT_IPV4 (1U << 2)
#define PT_IPV6 (1U << 3)
#define PT_TCP (1U << 4)
#define PT_UDP (1U << 5)
#define PT_ICMP (1U << 6)
#define PT_ICMPV6 (1U << 7)
#define PT_VXLAN (1U << 8)
#define PT_GENEVE (1U << 9)
#define PT_GRE (1U << 10)
#define PT_GRE_KEY (1U << 11)
#define PT_TCP_FLAGS (1U << 12)
#define PT_INCOMPLETE (1U << 13)
#define PT_OTHER_PORTS (1U << 14) /* those of a header that has no word of its own */
#define PT_IP (PT_IPV4 | PT_IPV6)
#define PT_TRANSPORT (PT_TCP | PT_UDP | PT_OTHER_PORTS)
#define PT_INNER(header) ((header) << 16)
/* the Geneve options that a block asks for, counted from 0 */
#define PT_OPTION(number) (1ULL << (32 + (number)))

/* values of `fragment` */
#define PT_FRAGMENT_NONE 0
#define PT_FRAGMENT_FIRST 1
#define PT_FRAGMENT_LATER 2

#define PT_VXLAN_PORT 4789
#define PT_GENEVE_PORT 6081
#define PT_BRIDGED 0x6558 /* EtherType of Ethernet in GRE and Geneve */

/* include/uapi/linux/in.h, which wants more headers than we need */
#define PT_HOP_BY_HOP 0
#define PT_ICMP_PROTOCOL 1
#define PT_TCP_PROTOCOL 6
#define PT_UDP_PROTOCOL 17
#define PT_DCCP_PROTOCOL 33
#define PT_ROUTING 43
#define PT_FRAGMENT_HEADER 44
#define PT_GRE_PROTOCOL 47
#define PT_AUTHENTICATION 51
#define PT_ICMPV6_PROTOCOL 58
#define PT_DESTINATION_OPTIONS 60
#define PT_SCTP_PROTOCOL 132
#define PT_UDPLITE_PROTOCOL 136

#define PT_EXTENSION_HEADERS_MAX 182
#define PT_GENEVE_OPTIONS_MAX 8

/*
 * The whole type, by which the kernel knows the context of a global function (include/linux/netfilter/nf_bpf_link.h).
 */
struct bpf_nf_ctx {
	const struct nf_hook_state *state;
	struct sk_buff *skb;
};

/* include/uapi/linux/netfilter.h */
#define PT_NF_DROP 0
#define PT_NF_ACCEPT 1

/*
 * What the rules of a long block decide, which are in several functions; else the program's verdict, or the number of a
 * socket.
 */
#define PT_NEXT (1ULL << 32) /* nothing: the next rules follow */
#define PT_ACCEPT (2ULL << 32)
#define PT_DROP (3ULL << 32)
#define PT_TO_XSK (4ULL << 32)

/* What `steer` returns to leave the choice to the kernel: no group has such a member. */
#define PT_KERNEL_CHOOSES 0xffffffff

typedef unsigned __int128 pt_u128 __attribute__((aligned(8)));
#define PT_U128(high, low) ((pt_u128)(high) << 64 | (low))

/* A trait of 16 bytes, as it is in the packet. */
struct pt_words {
	__u64 word[2];
};

/* Packets and bytes of a rule or a counter. */
struct pt_count {
	__u64 packets;
	__u64 bytes;
};

/* As __trait_forget of verifier.bpf.h. */
static __always_inline pt_u128 pt_forget128(pt_u128 value, __u64 zero)
{
	return PT_U128(__trait_forget(value >> 64, zero), __trait_forget(value, zero));
}

#define PT_LINK_HEADER_MAX 64

/* Room for the longest header that is loaded at once. */
struct pt_buffer {
	__u64 word[5];
};

/*
 * Loading `len` bytes, a constant, at offset `at` of the packet, which is at most a few bytes more than PT_AT_MAX. Returns
 * whether the packet has them; *header then points to them, in the packet or in *buffer.
 */

static __always_inline _Bool pt_direct(const void *data, const void *end, __u64 at, __u32 len, const void **header)
{
	const void *from = data + at;

	__trait_keep_checked(from);
	*header = from;
	return from + len <= end;
}

/* XDP: what is in the first buffer is read in place. There may be others from Linux 5.18 on. */
static __always_inline _Bool pt_xdp_header(struct xdp_md *ctx, __u64 at, __u32 len, const void **header,
					   struct pt_buffer *buffer)
{
	if (pt_direct(__trait_ctx_ptr(struct xdp_md, ctx, data), __trait_ctx_ptr(struct xdp_md, ctx, data_end), at, len,
		      header))
		return 1;
	*header = buffer;
	return bpf_core_field_exists(struct xdp_buff___traits, flags) && !bpf_xdp_load_bytes(ctx, at, buffer, len);
}

/* TC at egress and cgroups: what is linear is read in place. */
static __always_inline _Bool pt_skb_header(struct __sk_buff *ctx, __u64 at, __u32 len, const void **header,
					   struct pt_buffer *buffer)
{
	if (pt_direct(__trait_ctx_ptr(struct __sk_buff, ctx, data), __trait_ctx_ptr(struct __sk_buff, ctx, data_end),
		      at, len, header))
		return 1;
	*header = buffer;
	return !bpf_skb_load_bytes(ctx, at, buffer, len);
}

/*
 * TC at ingress: bytes of the link header that are in front of the packet's data: 14 where the kernel has lost its length,
 * else 0. Generic XDP whose program takes frames in several buffers copies a packet without it (skb_pp_cow_data in
 * net/core/skbuff.c, Linux 6.9 and later), so that TC begins behind the header (sch_handle_ingress in net/core/dev.c).
 */
static __always_inline __u32 pt_tc_in_front(struct __sk_buff *ctx)
{
	const void *skb;
	__u32 bytes;

	if (!__trait_can_cast()) /* an older kernel */
		return 0;
	skb = __trait_skb_of(ctx);
	bytes = __trait_kernel_field(skb, struct sk_buff___traits, data) -
		__trait_kernel_field(skb, struct sk_buff___traits, head) -
		__trait_kernel_field(skb, struct sk_buff___traits, mac_header);
	return bytes <= PT_LINK_HEADER_MAX ? bytes : 0;
}

/* TC at ingress: redirects a packet. One whose link header is not in its data would be sent without it: it is dropped. */
static __always_inline int pt_tc_redirect(struct __sk_buff *ctx, __u32 ifindex)
{
	return pt_tc_in_front(ctx) ? 2 /* TC_ACT_SHOT */ : bpf_redirect(ifindex, 0);
}

/*
 * TC at ingress: where the IP header is, of a packet that has no link header. Some devices leave one of another device in
 * front of it (xfrm, VTI: xfrm4_remove_tunnel_encap in net/ipv4/xfrm4_input.c).
 */
static __always_inline __u32 pt_tc_network(struct __sk_buff *ctx)
{
	const void *skb;
	__u32 bytes;

	if (!__trait_can_cast())
		return 0;
	skb = __trait_skb_of(ctx);
	bytes = __trait_kernel_field(skb, struct sk_buff___traits, head) +
		__trait_kernel_field(skb, struct sk_buff___traits, network_header) -
		__trait_kernel_field(skb, struct sk_buff___traits, data);
	return bytes <= PT_LINK_HEADER_MAX ? bytes : 0;
}

/* TC at ingress, of which `in_front` bytes are not in the packet's data. */
static __always_inline _Bool pt_tc_header(struct __sk_buff *ctx, __u32 in_front, __u64 at, __u32 len,
					  const void **header, struct pt_buffer *buffer)
{
	if (!in_front)
		return pt_skb_header(ctx, at, len, header, buffer);
	*header = buffer;
	return !bpf_skb_load_bytes_relative(ctx, at, buffer, len, BPF_HDR_START_MAC);
}

/* Socket filters: wherever the packet's data starts now, its IP header is offset 0. */
static __always_inline _Bool pt_net_header(struct __sk_buff *ctx, __u64 at, __u32 len, const void **header,
					   struct pt_buffer *buffer)
{
	*header = buffer;
	return !bpf_skb_load_bytes_relative(ctx, at, buffer, len, BPF_HDR_START_NET);
}

extern int bpf_dynptr_from_skb(struct __sk_buff *skb, __u64 flags, struct bpf_dynptr *ptr) __ksym __weak;
extern void *bpf_dynptr_slice(const struct bpf_dynptr *ptr, __u32 offset, void *buffer, __u32 len) __ksym __weak;

/* Netfilter; `packet` is a dynptr of the skb. */
static __always_inline _Bool pt_nf_header(struct __trait_dynptr *packet, __u64 at, __u32 len, const void **header,
					  struct pt_buffer *buffer)
{
	*header = bpf_dynptr_slice((struct bpf_dynptr *)packet, at, buffer, len);
	return *header != (void *)0;
}

/*
 * The packet's length, from where it starts at the hook.
 */
#define __PT_XDP_FLAGS_HAS_FRAGS 1 /* enum xdp_buff_flags, include/net/xdp.h */

/* Bytes of an XDP frame in its first buffer. */
static __always_inline __u32 pt_xdp_linear(struct xdp_md *ctx)
{
	return __trait_ctx_ptr(struct xdp_md, ctx, data_end) - __trait_ctx_ptr(struct xdp_md, ctx, data);
}

static __always_inline __u32 pt_xdp_length(struct xdp_md *ctx)
{
	/* Linux 5.18 and later: before, a frame is in one buffer */
	if (bpf_core_field_exists(struct xdp_buff___traits, flags) &&
	    __trait_kernel_field(__trait_kern_ctx(ctx), struct xdp_buff___traits, flags) & __PT_XDP_FLAGS_HAS_FRAGS)
		return bpf_xdp_get_buff_len(ctx);
	return pt_xdp_linear(ctx);
}

static __always_inline __u32 pt_nf_length(struct bpf_nf_ctx *ctx)
{
	return ((struct sk_buff___traits *)__trait_skb_of(ctx))->len;
}

static __always_inline __u32 pt_nf_input(struct bpf_nf_ctx *ctx)
{
	struct nf_hook_state___traits *state = (void *)ctx->state;

	return state->in->ifindex;
}

static __always_inline __u32 pt_nf_output(struct bpf_nf_ctx *ctx)
{
	struct nf_hook_state___traits *state = (void *)ctx->state;

	return state->out->ifindex;
}

/*
 * Names of interfaces, as they are now: the words of net_device.name, in which the end of a former, longer name may follow
 * the NUL; zeroes if there is no interface.
 */
static __always_inline void pt_device_name(__u64 device, struct pt_words *name)
{
	struct __trait_words words = {};

	if (device)
		words = __trait_kernel_pair(__trait_kernel_member(device, struct net_device___traits, name));
	name->word[0] = words.word[0];
	name->word[1] = words.word[1];
}

static __always_inline void pt_xdp_device_name(struct xdp_md *ctx, struct pt_words *name)
{
	__u64 rxq = __trait_kernel_field(__trait_kern_ctx(ctx), struct xdp_buff___traits, rxq);

	pt_device_name(__trait_kernel_field(rxq, struct xdp_rxq_info___traits, dev), name);
}

static __always_inline void pt_skb_device_name(struct __sk_buff *ctx, struct pt_words *name)
{
	pt_device_name(__trait_kernel_field(__trait_skb_of(ctx), struct sk_buff___traits, dev), name);
}

/* Of the interface it came in by, if it is still there: then this is its index. Else zeroes. */
static __always_inline void pt_skb_input_name(struct __sk_buff *ctx, __u32 ifindex, struct pt_words *name)
{
	__u64 device = __trait_kernel_field(__trait_skb_of(ctx), struct sk_buff___traits, dev);

	if (device && __trait_kernel_field(device, struct net_device___traits, ifindex) != ifindex)
		device = 0;
	pt_device_name(device, name);
}

static __always_inline void pt_nf_input_name(struct bpf_nf_ctx *ctx, struct pt_words *name)
{
	pt_device_name(__trait_kernel_field(ctx->state, struct nf_hook_state___traits, in), name);
}

static __always_inline void pt_nf_output_name(struct bpf_nf_ctx *ctx, struct pt_words *name)
{
	pt_device_name(__trait_kernel_field(ctx->state, struct nf_hook_state___traits, out), name);
}

/* A word of a name, of a number whose highest byte is the first letter. */
#define PT_NAME_WORD(number) bpf_cpu_to_be64(number)

/* From the IP header on, wherever the packet's data starts now. */
static __always_inline __u32 pt_net_length(struct __sk_buff *ctx)
{
	const void *skb = __trait_skb_of(ctx);
	__u64 head = __trait_kernel_field(skb, struct sk_buff___traits, head);
	__u64 data = __trait_kernel_field(skb, struct sk_buff___traits, data);
	__u32 network = __trait_kernel_field(skb, struct sk_buff___traits, network_header);

	return __trait_ctx_load(struct __sk_buff, ctx, len) + (__u32)(data - head) - network;
}

/*
 * Numbers in headers.
 */
#define pt_be16(from) bpf_ntohs(*(const __be16 *)(from))
#define pt_be32(from) bpf_ntohl(*(const __be32 *)(from))
#define pt_be128(from)                                                                                                 \
	PT_U128(bpf_be64_to_cpu(((const __be64 *)(from))[0]), bpf_be64_to_cpu(((const __be64 *)(from))[1]))

/* by halves that are aligned where a header starts */
#define pt_ether_daddr(ether) ((__u64)pt_be32((ether)->h_dest) << 16 | pt_be16((ether)->h_dest + 4))
#define pt_ether_saddr(ether) ((__u64)pt_be16((ether)->h_source) << 32 | pt_be32((ether)->h_source + 2))

/*
 * Nothing is read that starts behind this offset. The verifier wants a pointer into the packet, with all that is added to
 * it, to stay within 64 KiB (MAX_PACKET_OFF in kernel/bpf/verifier.c). crates/policy/src/field.rs has it too.
 */
#define PT_AT_MAX 0xff00

/* EtherType of a version of IP; 0 if it is none. */
static __always_inline __u32 pt_ip_type(__u32 version)
{
	return version == 4 ? ETH_P_IP : version == 6 ? ETH_P_IPV6 : 0;
}

static __always_inline _Bool pt_is_vlan(__u32 type)
{
	return type == ETH_P_8021Q || type == ETH_P_8021AD;
}

static __always_inline __u32 pt_fragment(_Bool more, __u32 offset)
{
	return offset ? PT_FRAGMENT_LATER : more ? PT_FRAGMENT_FIRST : PT_FRAGMENT_NONE;
}

/* Whether this is the protocol number of an extension header of IPv6 that is skipped. */
static __always_inline _Bool pt_is_extension(__u32 protocol)
{
	return protocol == PT_HOP_BY_HOP || protocol == PT_ROUTING || protocol == PT_FRAGMENT_HEADER ||
	       protocol == PT_AUTHENTICATION || protocol == PT_DESTINATION_OPTIONS;
}

/* Its length, from its second byte. */
static __always_inline __u32 pt_extension_len(__u32 protocol, __u32 len)
{
	return protocol == PT_FRAGMENT_HEADER ? 8 : protocol == PT_AUTHENTICATION ? (len + 2) * 4 : (len + 1) * 8;
}

/* Going through extension headers. */
struct pt_extensions {
	__u64 at; /* the next header */
	__u64 end; /* of the packet */
	__u32 protocol; /* of the next header */
	__u32 fragment;
};

/* Skips the extension header at hand, whose first 8 bytes these are. Returns whether it is wholly in the packet. */
static __always_inline int pt_skip_extension(struct pt_extensions *extensions, const __u8 *header)
{
	__u32 len = pt_extension_len(extensions->protocol, header[1]);
	__u32 fragment = extensions->protocol == PT_FRAGMENT_HEADER ? pt_be16(header + 2) : 0;

	if (extensions->at + len > extensions->end)
		return 0;
	extensions->at += len;
	extensions->protocol = header[0];
	if (fragment & 0xfff8)
		extensions->fragment = PT_FRAGMENT_LATER;
	else if (fragment & 1)
		extensions->fragment = PT_FRAGMENT_FIRST;
	return 1;
}

#define PT_GRE_HAS_CHECKSUM 0x8000
#define PT_GRE_IS_ROUTED 0x4000
#define PT_GRE_HAS_KEY 0x2000
#define PT_GRE_HAS_SEQUENCE 0x1000
#define PT_GRE_VERSION 0x0007

/* Length of a GRE header with these flags; 0 if it is of a kind that is not looked at. */
static __always_inline __u32 pt_gre_len(__u32 flags)
{
	if (flags & (PT_GRE_IS_ROUTED | PT_GRE_VERSION))
		return 0;
	return 4 + (flags & PT_GRE_HAS_CHECKSUM ? 4 : 0) + (flags & PT_GRE_HAS_KEY ? 4 : 0) +
	       (flags & PT_GRE_HAS_SEQUENCE ? 4 : 0);
}

/*
 * The hash of a flow: crates/policy/src/hash.rs.
 */
#define __PT_HASH_VERSION 2
#define __PT_HASH_MULTIPLIER 0xbf58476d1ce4e5b9ULL

static __always_inline __u64 __pt_mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * __PT_HASH_MULTIPLIER;
	return hash ^ hash >> 29;
}

static __always_inline __u64 pt_hash(__u32 version, __u32 protocol, pt_u128 source, pt_u128 destination,
				     __u32 source_port, __u32 destination_port)
{
	__u64 hash = __pt_mix(0, protocol | version << 8);

	hash = __pt_mix(hash, source >> 64);
	hash = __pt_mix(hash, source);
	hash = __pt_mix(hash, destination >> 64);
	hash = __pt_mix(hash, destination);
	hash = __pt_mix(hash, source_port << 16 | destination_port);
	return __pt_mix(hash, __PT_HASH_VERSION);
}

/*
 * Traits that a block reads or changes: `t` points to a structure with a number for each key, and the words _present
 * and _changed, in which a key's bit is HAS_<key>. A key without a value has the number 0.
 */
#define pt_set(t, key, value) ((t)->key = (value), (t)->_present |= HAS_##key, (t)->_changed |= HAS_##key)
#define pt_set_flag(t, key) ((t)->_present |= HAS_##key, (t)->_changed |= HAS_##key)
#define pt_del(t, key) ((t)->key = 0, (t)->_present &= ~HAS_##key, (t)->_changed |= HAS_##key)
#define pt_del_flag(t, key) ((t)->_present &= ~HAS_##key, (t)->_changed |= HAS_##key)

/* Numbers as slots have them, and back (crates/core/src/key.rs, KeyType). */
#define pt_to_mac(number) bpf_cpu_to_be64((__u64)(number) << 16)
#define pt_from_mac(slot) (bpf_be64_to_cpu(slot) >> 16)

static __always_inline struct pt_words pt_to_bytes(pt_u128 number)
{
	return (struct pt_words){ { bpf_cpu_to_be64(number >> 64), bpf_cpu_to_be64(number) } };
}

static __always_inline pt_u128 pt_from_bytes(struct pt_words slot)
{
	return PT_U128(bpf_be64_to_cpu(slot.word[0]), bpf_be64_to_cpu(slot.word[1]));
}

static __always_inline struct pt_words pt_to_u128(pt_u128 number)
{
	return (struct pt_words){ { number, number >> 64 } };
}

static __always_inline pt_u128 pt_from_u128(struct pt_words slot)
{
	return PT_U128(slot.word[1], slot.word[0]);
}

/* Whether traits of a packet can be changed at TC: it came with a flow region. */
static __always_inline _Bool pt_tc_has_area(struct __sk_buff *ctx)
{
	__u32 meta_len;

	return __trait_tc_flow(ctx, &meta_len) != (void *)0;
}

/* Before a frame goes to an AF_XDP socket, which is not told whether a frame has metadata: see traits.bpf.h. */
static __always_inline void pt_init_for_xsk(struct xdp_md *ctx)
{
	struct trait_view view;

	if (trait_view(ctx, &view))
		trait_init(ctx);
}

/*
 * Keys of tries: the number in network order.
 */
struct pt_prefix32 {
	__u32 len;
	__be32 word;
};

struct pt_prefix64 {
	__u32 len;
	__be32 word[2];
};

struct pt_prefix128 {
	__u32 len;
	__be32 word[4];
};

static __always_inline struct pt_prefix32 pt_prefix32(__u32 number)
{
	return (struct pt_prefix32){ .len = 32, .word = bpf_htonl(number) };
}

static __always_inline struct pt_prefix64 pt_prefix64(__u64 number)
{
	return (struct pt_prefix64){ .len = 64, .word = { bpf_htonl(number >> 32), bpf_htonl(number) } };
}

static __always_inline struct pt_prefix128 pt_prefix128(pt_u128 number)
{
	return (struct pt_prefix128){
		.len = 128,
		.word = { bpf_htonl(number >> 96), bpf_htonl(number >> 64), bpf_htonl(number >> 32),
			  bpf_htonl(number) },
	};
}

/*
 * Counting, numbering, telling.
 */
static __always_inline void *pt_first(void *map)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(map, &zero);
}

/* A rule's hit, or a count. `count` is this CPU's own; at hooks that can interrupt each other one may be lost. */
static __always_inline void pt_hit(struct pt_count *count, __u32 length)
{
	count->packets++;
	count->bytes += length;
}

/* A count under a value; `key` points to the value's bytes. */
static __always_inline void pt_count_by(void *map, const void *key, __u32 length)
{
	struct pt_count *count = bpf_map_lookup_elem(map, key);

	if (!count) {
		const struct pt_count none = {};

		bpf_map_update_elem(map, key, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(map, key);
	}
	if (!count)
		return;
	__sync_fetch_and_add(&count->packets, 1);
	__sync_fetch_and_add(&count->bytes, length);
}

/* A number that no other packet of this host gets. `map` has one for each CPU, and outlives the program. */
static __always_inline _Bool pt_next_unique(void *map, __u64 *unique)
{
	__u64 *last = pt_first(map);

	if (!last)
		return 0;
	*unique = (__u64)bpf_get_smp_processor_id() << 48 | ((__sync_fetch_and_add(last, 1) + 1) & ((1ULL << 48) - 1));
	return 1;
}

/*
 * What the network card says; crates/policy/src/policy.rs, Hardware. Programs that call these must be loaded for one
 * interface.
 */
enum xdp_rss_hash_type;

extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) __ksym __weak;
extern int bpf_xdp_metadata_rx_hash(const struct xdp_md *ctx, __u32 *hash, enum xdp_rss_hash_type *type) __ksym __weak;
extern int bpf_xdp_metadata_rx_vlan_tag(const struct xdp_md *ctx, __be16 *protocol, __u16 *tci) __ksym __weak;

static __always_inline _Bool pt_hardware_timestamp(struct xdp_md *ctx, __u64 *timestamp)
{
	/* drivers that hand over what an skb has (veth) give 0 for none */
	return bpf_xdp_metadata_rx_timestamp != (void *)0 && !bpf_xdp_metadata_rx_timestamp(ctx, timestamp) &&
	       *timestamp;
}

static __always_inline _Bool pt_hardware_hash(struct xdp_md *ctx, __u32 *hash)
{
	__u32 type;

	return bpf_xdp_metadata_rx_hash != (void *)0 &&
	       !bpf_xdp_metadata_rx_hash(ctx, hash, (enum xdp_rss_hash_type *)&type);
}

static __always_inline _Bool pt_hardware_vlan(struct xdp_md *ctx, __u16 *id)
{
	__be16 protocol;

	if (bpf_xdp_metadata_rx_vlan_tag == (void *)0 || bpf_xdp_metadata_rx_vlan_tag(ctx, &protocol, id))
		return 0;
	*id &= 0xfff;
	return 1;
}

/*
 * Events of `log`: crates/policy/src/log_event.rs reads them.
 */
#define PT_LOG_PACKET_MAX 128

/* A trait as the block had it when the event was written. */
struct pt_log_trait {
	__u32 key; /* its place among the policy's keys */
	__u32 set; /* 1; 0: it has no value */
	__u64 low; /* its value, a number of 128 bits */
	__u64 high;
};

/* What an event begins with. Behind it: `traits` times struct pt_log_trait. */
struct pt_log_event {
	__u64 time; /* nanoseconds of CLOCK_MONOTONIC */
	__u32 rule; /* its number in the policy */
	__u32 text; /* its place among the policy's texts */
	__u32 interface; /* the device the packet is at; 0 if it is at none */
	__u32 length; /* of the packet, from where it starts at the hook */
	__u32 captured; /* how many bytes of `packet` are of the packet */
	__u32 traits;
	__u8 packet[PT_LOG_PACKET_MAX]; /* its first bytes, from where it starts at the hook */
};

/* Fills in what every event has but the packet's bytes. */
static __always_inline void pt_log_begin(struct pt_log_event *event, __u32 rule, __u32 text, __u32 interface,
					 __u32 length, __u32 traits)
{
	__builtin_memset(event->packet, 0, sizeof(event->packet));
	event->time = bpf_ktime_get_ns();
	event->rule = rule;
	event->text = text;
	event->interface = interface;
	event->length = length;
	event->captured = length < PT_LOG_PACKET_MAX ? length : PT_LOG_PACKET_MAX;
	event->traits = traits;
}

/* Counts an event that finds no room in the ring; `lost` has one number for each CPU. */
static __always_inline int pt_log_lose(void *lost)
{
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(lost, &zero);

	if (count)
		*count += 1;
	return 0;
}

#define pt_log_trait(key_, set_, number)                                                                               \
	((struct pt_log_trait){ .key = (key_), .set = !!(set_), .low = (number), .high = (pt_u128)(number) >> 64 })

/* Loads the first bytes of the packet. `call(len)` loads `len` bytes, at least 1, and returns 0. */
#define __pt_log_packet(event, call)                                                                                   \
	({                                                                                                             \
		__u64 len = (event)->captured;                                                                         \
                                                                                                                       \
		if (len) {                                                                                             \
			len = __trait_positive(len, PT_LOG_PACKET_MAX);                                                \
			if (call(len))                                                                                 \
				(event)->captured = 0;                                                                 \
		}                                                                                                      \
	})

static __always_inline void pt_xdp_log_packet(struct xdp_md *ctx, struct pt_log_event *event)
{
#define __pt_call(len) bpf_xdp_load_bytes(ctx, 0, event->packet, len)
	__pt_log_packet(event, __pt_call);
#undef __pt_call
}

static __always_inline void pt_skb_log_packet(struct __sk_buff *ctx, struct pt_log_event *event)
{
#define __pt_call(len) bpf_skb_load_bytes(ctx, 0, event->packet, len)
	__pt_log_packet(event, __pt_call);
#undef __pt_call
}

static __always_inline void pt_tc_log_packet(struct __sk_buff *ctx, struct pt_log_event *event)
{
	/* relative to a header only what is linear can be read */
	if (!pt_tc_in_front(ctx)) {
		pt_skb_log_packet(ctx, event);
		return;
	}
#define __pt_call(len) bpf_skb_load_bytes_relative(ctx, 0, event->packet, len, BPF_HDR_START_MAC)
	__pt_log_packet(event, __pt_call);
#undef __pt_call
}

static __always_inline void pt_net_log_packet(struct __sk_buff *ctx, struct pt_log_event *event)
{
#define __pt_call(len) bpf_skb_load_bytes_relative(ctx, 0, event->packet, len, BPF_HDR_START_NET)
	__pt_log_packet(event, __pt_call);
#undef __pt_call
}

static __always_inline void pt_nf_log_packet(struct bpf_nf_ctx *ctx, struct pt_log_event *event)
{
	struct __trait_dynptr packet;

	if (bpf_dynptr_from_skb((struct __sk_buff *)__trait_skb_of(ctx), 0, (struct bpf_dynptr *)&packet)) {
		event->captured = 0;
		return;
	}
#define __pt_call(len) bpf_dynptr_read(event->packet, len, (struct bpf_dynptr *)&packet, 0, 0)
	__pt_log_packet(event, __pt_call);
#undef __pt_call
}

#endif /* __PACKET_TRAITS_POLICY_BPF_H */
