/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Packet traits: small typed values with a name that travel with a packet through the kernel.
 *
 * An XDP program attaches traits to a packet; XDP, TC, netfilter, cgroup, socket filter, sock_ops and tracing programs
 * read them. Header only: copy this folder, include this file after vmlinux.h or <linux/bpf.h>.
 *
 *	#include <linux/bpf.h>
 *	#include <packet_traits/traits.bpf.h>
 *
 *	TRAIT_KEY(tenant, __u32);
 *	TRAIT_KEY(flow_id, __u64, TRAIT_KEEP_FIRST);
 *
 *	SEC("xdp")
 *	int classify(struct xdp_md *ctx)
 *	{
 *		trait_set(ctx, tenant, 7);
 *		trait_set(ctx, flow_id, bpf_ktime_get_ns());
 *		trait_seal(ctx);
 *		return XDP_PASS;
 *	}
 *
 *	SEC("cgroup_skb/ingress")
 *	int only_tenant_7(struct __sk_buff *ctx)
 *	{
 *		__u32 who = 0;
 *
 *		return trait_get(ctx, tenant, &who) > 0 && who == 7;
 *	}
 *
 *	char LICENSE[] SEC("license") = "Dual MIT/GPL";
 *
 * Names become numbers and places when the object is bound to a registry: with the packet-traits Rust library, or with
 * `traits bind in.o -o out.o`, whose output any loader can load. A program that is loaded unbound gets -EOPNOTSUPP
 * from every set and -ENOENT from every get, and touches no packet.
 *
 * Declaring keys
 *	TRAIT_KEY(name, type [, merge])			key `name` with a value of C type `type` (1, 2, 4, 8 or 16 bytes)
 *	TRAIT_KEY_NAMED(ident, "na-me", type [, merge])	the same where the key's name is not a C identifier
 *	TRAIT_FLAG(name [, merge])			a key without a value: set or not set
 * merge: TRAIT_BLOCK (default; GRO does not merge packets whose values differ), TRAIT_KEEP_FIRST (GRO merges freely
 * and the first packet's value stays) or TRAIT_DISCARD (GRO merges freely, and no value is read of a packet that GRO, or the
 * reassembly of fragments, made of several, nor of one whose length XDP cannot tell: behind PPPoE or more than two VLAN tags,
 * and of jumbograms). Keys of the last two, in the packet region, are here called keep-first. Type and merge must be those of
 * the registry, else binding fails.
 *
 * Calls; `key` is the name or identifier given above
 *	trait_get(ctx, key, &value)	size of the value; -ENOENT not set
 *	trait_get_or(ctx, key, other)	the value; `other` if not set
 *	trait_is_set(ctx, key)		1 or 0
 *	trait_set(ctx, key, value)	XDP: 0; -ENOSPC no room in the headroom; -EOPNOTSUPP no metadata here
 *	trait_set_flag(ctx, key)	XDP: the same for a flag
 *	trait_del(ctx, key)		XDP: 0; -ENOENT not set
 *	trait_init(ctx)			XDP: reserves the area, empty. Optional: the first set does it
 *	trait_clear(ctx)		XDP: deletes every trait of the packet. What is deleted, here or by trait_del, leaves no
 *					byte behind
 *	trait_seal(ctx)			XDP: hides the packet region from GRO; 0; -EBUSY another program's metadata
 *					is below the area, which then stays open (readable, but GRO compares all of it)
 *	trait_drop_inherited(ctx)	XDP, before XDP_PASS: drops traits that the packet had from another interface, if
 *					this program set none; see "Inherited traits"
 *	trait_view(ctx, &view)		checks bounds and nonces once; 0; -ENOENT no traits here
 *	trait_view_get(&view, key, &value), trait_view_is_set(&view, key)
 *					as trait_get and trait_is_set, at the cost of a bit test and a load
 *	trait_tc_get, trait_tc_is_set, trait_tc_set, trait_tc_set_flag, trait_tc_del
 *					for TC and TCX programs; see below
 *
 * `ctx` is the program's context or an skb:
 *	struct xdp_md *			all calls
 *	struct __sk_buff *		get, is_set, view: TC, socket filter, cgroup_skb, sk_skb, lwt_*
 *	struct bpf_nf_ctx *		get, is_set, view
 *	struct bpf_sock_ops *		get, is_set, view, in callbacks that have an skb
 *	struct sk_buff *		get, is_set, view: tp_btf and fentry programs
 * set and del in another program than XDP stop the compiler, and so do trait_tc_set and trait_tc_del of a keep-first key;
 * by number (rfc.bpf.h) they are -EOPNOTSUPP there.
 *
 * When to seal: before XDP_PASS, so that keep-first keys do not stop GRO. Not before XDP_REDIRECT to an AF_XDP socket,
 * which then sees the whole area in front of the packet, and rather not before bpf_xdp_adjust_head(), which moves the visible
 * metadata only: keep-first keys are read after bytes were taken off, and absent after bytes were added. A set or del on a
 * sealed area opens it again; where the front was moved since, without the values of keep-first keys.
 *
 * Redirecting: a program in the entry of a DEVMAP or CPUMAP, and whoever gets the frame after it, reads what was set, in
 * native XDP; generic XDP loses all metadata there (bpf_prog_run_generic_xdp in net/core/dev.c). The memory of AF_XDP is
 * used again, and user space is not told whether a packet has metadata: call trait_init for every packet that goes to
 * the socket, or let the application erase each frame it gives back (TraitsMut::erase), else it may take the traits of
 * an earlier packet for this one's.
 *
 * Inherited traits: a packet that crosses a veth, or reaches generic XDP of a bridge, a VLAN or a tunnel, may have traits from
 * another interface, perhaps of another network namespace. An XDP program sees none of them, and its first set replaces them
 * with an area of its own. But if it attaches no metadata, the kernel keeps the old, and later hooks read it (veth_xdp_rcv_skb in
 * drivers/net/veth.c, bpf_prog_run_generic_xdp in net/core/dev.c). trait_drop_inherited before XDP_PASS prevents that: it
 * attaches 4 bytes of zeroes to a packet without metadata. Native XDP of network cards does not need it.
 *
 * TC: trait_tc_get reads keys of the flow region directly from the metadata. trait_tc_set and trait_tc_del change keys
 * of the flow region; -EOPNOTSUPP after decapsulation, and where the packet has no area. Keep-first keys are not in it:
 * only XDP programs set and delete them. From 6.18 they write through a dynptr (bpf_dynptr_from_skb_meta). Before 6.18, or
 * with TRAITS_TC_DIRECT_WRITE defined, they store directly, which is cheaper. A packet may be a clone, because an AF_PACKET
 * socket's queue, say, holds another:
 *	from 6.19	the packet gets a head of its own with the metadata in it, and is changed; the other stays as it was
 *	6.18		-EOPNOTSUPP; the packet keeps its traits
 *	direct, to 6.18	the kernel drops *all* metadata of a clone when the program is entered (pskb_expand_head in
 *			net/core/skbuff.c, called from the prologue of tc_cls_act_prologue)
 *
 * Programs at TC that push or pop bytes (bpf_skb_adjust_room, change_head, change_proto, vlan_push, vlan_pop), and heads
 * that the kernel reallocates:
 *	from 6.19	the visible metadata moves along, and a new head has it: keys of the flow region stay, of an open
 *			area all. The hidden region stays where it was: read after a pop, and when what was popped is pushed
 *			again; after a push absent.
 *	to 6.18		a push writes over the metadata: all traits are absent. A pop leaves them to be read as behind a
 *			decapsulation. A new head, also a clone's that is written to, has no metadata.
 * Not covered:
 * - From 6.19, behind a decapsulation. There the kernel moves what is in front of the inner MAC header as if it were the
 *   metadata, and after a push by TC, also if a pop follows, keys of the flow region may be read from the wrong bytes.
 * - An XDP program that takes headers off and leaves as much metadata as the flow region has, on packets that the kernel then
 *   puts into a tunnel: the new headers are pushed over that metadata, and what an earlier packet left in the buffer could be
 *   read at TC egress.
 * - Drivers that copy what XDP passed to another buffer, with the visible metadata only, as from a zero-copy AF_XDP pool
 *   (xdp_build_skb_from_zc in net/core/xdp.c): what lies in front of the copy could be a hidden region of another packet. Do not
 *   seal there.
 * - To 6.18: if XDP pushes bytes onto some packets before it sets traits, TC must not push as many onto other packets, if that
 *   is as much as the area is long: what an earlier packet left in the buffer could be read.
 *
 * Decapsulation: an earlier packet may have left its area in the buffer, and an XDP program of other software may have taken
 * headers off this packet and left metadata. So the area of a packet whose MAC header moved is read only if such metadata would
 * cover the area's nonce, or the bytes of the packet that its check was computed from. With headers of these lengths it is read:
 *	sealed, 64 bytes of flow region		up to 94 bytes: all common tunnels, over IPv6 too, but no tunnel inside another
 *	else, n bytes of visible metadata	up to n - 8, and 38 to n + 30
 *	an area of 32 bytes			any: it has no check, and other software must not leave 32 bytes
 * After the kernel removed a VLAN tag, an area is read in front of a tunnel if the outer headers have 38 bytes or more, and
 * inside a tunnel if they are as long as the visible metadata; else it is absent.
 *
 * Routes with an encapsulation (lwtunnel: bpf, mpls, seg6): from 7.1.5 the kernel drops the metadata before it
 * (net/core/lwtunnel.c), so lwt_* programs and what comes after them read nothing. Before, lwt_* programs read the traits,
 * and what is pushed is written over the metadata.
 *
 * What is where (lower addresses left)
 *	| xdp_frame | headroom | foreign metadata | packet region | flow region | packet data |
 * Each region ends in a footer:
 *	packet region	id, check, present, tag
 *	flow region	stamp, present, nonce; without a packet region check, present, nonce, in 32 bytes present, nonce
 * A region counts only if it carries its registry's secret nonce or, once it is hidden, a tag made from secrets, this packet's
 * id and the stamp. So bytes from the wire, other programs' metadata and other registries' areas read as absent, and a hidden
 * region gives nothing away that could be used without the nonce. The stamp is the headroom that XDP saw: it tells where the
 * hidden region is if the visible one was moved. A reader of an skb looks in front of the MAC header, then, since decapsulation
 * moves that header, at the headrooms XDP saw; never unless the skb's metadata length says that XDP attached metadata to this
 * very packet. A foreign program that reserves metadata must write all of it, as it must for its own readers: the kernel does
 * not clear it, and an area that an earlier packet left in the same buffer could be taken for this packet's.
 *
 * Kernels: Linux 5.15 and later (tested from 6.1), netfilter programs from 6.4. What goes through the kernel's structures uses the casts
 * of 6.2 where they are, and bpf_probe_read_kernel elsewhere, which requires CAP_PERFMON (kernel.bpf.h). 64-bit hosts.
 * clang from 14. Requires libbpf's bpf_helpers.h and bpf_core_read.h. Beside a vmlinux.h of a kernel that is built with
 * -fms-extensions (7.3), whose structures embed others by their tag, pass clang -fms-extensions -Wno-microsoft-anon-tag;
 * else it says "declaration does not declare anything", and members are missing.
 *
 * Version 2. TRAITS_ABI_VERSION changes when the descriptors below or the area's layout do.
 */
#ifndef __PACKET_TRAITS_TRAITS_BPF_H
#define __PACKET_TRAITS_TRAITS_BPF_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <packet_traits/kernel.bpf.h>

#define TRAITS_ABI_VERSION 2
#define TRAITS_ANCHOR_COUNT 4
#define TRAITS_ANCHOR_MAX 16
#define TRAITS_CPU_MAX 512 /* a power of 2; CPUs from this number on share what lower ones have */

/* uapi/asm-generic/errno-base.h and errno.h; vmlinux.h has no macros */
#ifndef ENOENT
#define ENOENT 2
#endif
#ifndef EBUSY
#define EBUSY 16
#endif
#ifndef EINVAL
#define EINVAL 22
#endif
#ifndef ENOSPC
#define ENOSPC 28
#endif
#ifndef EOPNOTSUPP
#define EOPNOTSUPP 95
#endif

#define TRAIT_BLOCK 0
#define TRAIT_KEEP_FIRST 1
#define TRAIT_DISCARD 2

struct xdp_md;
struct __sk_buff;
struct sk_buff;
struct bpf_nf_ctx;
struct bpf_sock_ops;
struct bpf_dynptr;

/*
 * Descriptors: filled in by binding, constants to the verifier. Native-endian, 16-byte aligned; the Rust side is
 * crates/traits/src/descriptor.rs.
 */

/* Which registry's areas this program works on; lengths in bytes. */
struct trait_area_desc {
	char magic[8];
	__u32 abi;
	__u32 area_len;
	__u32 flow_len;
	__u32 packet_len;
	__u64 flow_nonce; /* 0: not bound */
	__u64 packet_nonce; /* of open areas; even, so that it is no tag */
	__u64 registry_id;
	__u32 anchors[TRAITS_ANCHOR_COUNT]; /* headrooms known when it was bound */
	__u64 tag_keys[2]; /* secret, odd; for tags of sealed areas */
	__u64 check_keys[2]; /* secret, odd; for checks of packets' fronts */
	__u64 discard; /* bits of the keys with TRAIT_DISCARD */
	__u64 sender_nonce; /* secret; what sockets keep for their packets begins with it: socket.bpf.h */
} __attribute__((aligned(16)));

/* One declared key. */
struct trait_key_desc {
	char magic[8];
	__u64 bit; /* 1 << number; 0: not bound */
	__u32 dist; /* bytes from the packet data back to the slot */
	__u16 size;
	__u8 merge;
	__u8 number;
	__u64 generation;
	char name[32];
} __attribute__((aligned(16)));

#define __TRAIT_SECTION SEC(".rodata.packet_traits")

const volatile struct trait_area_desc trait_area __TRAIT_SECTION __weak = {
	.magic = "PTRAREA",
	.abi = TRAITS_ABI_VERSION,
};

/*
 * What programs learn of packets. The first entry: headrooms seen in XDP (xdp_buff.data - data_hard_start) that are not among
 * trait_area.anchors. The others, by CPU: in the first 8 bytes the id of the packet that was sealed last. Our loader
 * puts the registry's pinned map here; with another loader, give it `anchors` of the registry's folder for this map, or the
 * object keeps its own, and finds traits after decapsulation only at headrooms known when it was bound.
 */
struct trait_anchors {
	__u32 headroom[TRAITS_ANCHOR_MAX]; /* 0: free; filled from the front */
} __attribute__((aligned(8)));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 + TRAITS_CPU_MAX);
	__type(key, __u32);
	__type(value, struct trait_anchors);
} pt_anchors SEC(".maps") __weak;

#define __TRAIT_KEY4(ident, text, type, merge_)                                                                        \
	_Static_assert(sizeof(text) > 1 && sizeof(text) <= 32, "a trait key's name has 1 to 31 characters");           \
	_Static_assert(sizeof(type) == 0 || sizeof(type) == 1 || sizeof(type) == 2 || sizeof(type) == 4 ||             \
			       sizeof(type) == 8 || sizeof(type) == 16,                                                \
		       "a trait has 0, 1, 2, 4, 8 or 16 bytes");                                                       \
	typedef type trait_type_##ident;                                                                               \
	enum { trait_merge_##ident = (merge_) };                                                                       \
	struct trait_key_var_##ident {                                                                                 \
		struct trait_key_desc desc;                                                                            \
		trait_type_##ident value[0];                                                                           \
	};                                                                                                             \
	const volatile struct trait_key_var_##ident trait_key_##ident __TRAIT_SECTION __weak = {                       \
		.desc = { .magic = "PTRKEY", .size = sizeof(type), .merge = trait_merge_##ident, .name = text },       \
	}
#define __TRAIT_KEY3(ident, text, type) __TRAIT_KEY4(ident, text, type, TRAIT_BLOCK)
#define __TRAIT_KEY_PICK(_1, _2, _3, _4, which, ...) which

#define TRAIT_KEY_NAMED(...) __TRAIT_KEY_PICK(__VA_ARGS__, __TRAIT_KEY4, __TRAIT_KEY3)(__VA_ARGS__)
#define TRAIT_KEY(name, ...) TRAIT_KEY_NAMED(name, #name, __VA_ARGS__)

struct trait_flag {
};
#define __TRAIT_FLAG2(name, merge_) TRAIT_KEY(name, struct trait_flag, merge_)
#define __TRAIT_FLAG1(name) TRAIT_KEY(name, struct trait_flag)
#define __TRAIT_FLAG_PICK(_1, _2, which, ...) which
#define TRAIT_FLAG(...) __TRAIT_FLAG_PICK(__VA_ARGS__, __TRAIT_FLAG2, __TRAIT_FLAG1)(__VA_ARGS__)

/* net/core/filter.c, weak so that objects load on kernels without it */
extern int bpf_dynptr_from_skb_meta(struct __sk_buff *skb, __u64 flags, struct bpf_dynptr *ptr) __ksym __weak;

/* Out of line, to keep the fast paths small; a program need not use them all. */
#define __trait_outline __noinline __trait_unused

#define __TRAIT_ENOTSUPP 524 /* include/linux/errno.h */
#define __TRAIT_META_MAX 252 /* xdp_metalen_invalid, include/net/xdp.h */
#define __TRAIT_TUNNEL_MIN 8 /* what MACsec puts between two Ethernet headers, at least */
/* The bytes of a packet, as XDP saw it, that its check is over: the source of IPv6; of IPv4 the destination, and ports */
#define __TRAIT_CHECK_FROM 30
#define __TRAIT_CHECK_TO 38
#define __TRAIT_LEN_BITS 17 /* of the packet's length */
#define __TRAIT_LEN_MAX ((1U << __TRAIT_LEN_BITS) - 1)

/* the end of a region's footer */
struct __trait_footer {
	__u64 present;
	__u64 nonce; /* of the packet region of a sealed area: its tag */
};

/* what the footer has in front of it: of the packet region */
struct __trait_packet_mark {
	__u64 id; /* unique on this host for long; 0 while the area is open */
	__u64 check; /* over the packet's front; in the low bits the packet's length, 0 if it is not known */
	struct __trait_footer footer;
};

/* of the flow region, unless that is the whole area and no longer than kernels before 6.8 take */
struct __trait_flow_mark {
	union {
		__u64 stamp; /* where there is a packet region: the headroom in XDP when the area was made, or sealed */
		__u64 check; /* else: over the packet's front */
	};
	struct __trait_footer footer;
};
#define __TRAIT_SHORT_MAX 32
#define __trait_has_flow_mark() (trait_area.packet_len || trait_area.flow_len > __TRAIT_SHORT_MAX)

/* bytes of the footers */
#define __TRAIT_FLOW_FOOTER (__trait_has_flow_mark() ? sizeof(struct __trait_flow_mark) : sizeof(struct __trait_footer))
#define __TRAIT_PACKET_FOOTER sizeof(struct __trait_packet_mark)

#define __trait_be16(number) __builtin_bswap16(number)
#define __trait_is_vlan(type) ((type) == __trait_be16(0x8100) || (type) == __trait_be16(0x88a8))

#define __trait_unlikely(condition) __builtin_expect(!!(condition), 0)

/* Copies a value of 0, 1, 2, 4, 8 or 16 bytes; `size` is a constant to clang or to the verifier. */
static __always_inline void __trait_copy(void *to, const void *from, __u32 size)
{
	switch (size) {
	case 1:
		*(__u8 *)to = *(const __u8 *)from;
		break;
	case 2:
		*(__u16 *)to = *(const __u16 *)from;
		break;
	case 4:
		*(__u32 *)to = *(const __u32 *)from;
		break;
	case 8:
		*(__u64 *)to = *(const __u64 *)from;
		break;
	case 16:
		((__u64 *)to)[0] = ((const __u64 *)from)[0];
		((__u64 *)to)[1] = ((const __u64 *)from)[1];
		break;
	}
}

/*
 * Reading through kernel memory. `at` is the address of the packet data as XDP left it, `meta_len` the length of the
 * metadata in front of it.
 */

/* The tag of a sealed area, of this id and place. */
static __always_inline __u64 __trait_tag(__u64 id, __u64 stamp)
{
	__u64 tag = (id ^ trait_area.packet_nonce ^ stamp * trait_area.tag_keys[1]) * trait_area.tag_keys[0];

	return ((tag ^ tag >> 32) * trait_area.tag_keys[1]) | 1;
}

/* The check over a packet's front, of the word there; the bits of the length are 0. */
static __always_inline __u64 __trait_check(__u64 word)
{
	return (word ^ trait_area.check_keys[0]) * trait_area.check_keys[1] & ~(__u64)__TRAIT_LEN_MAX;
}

/* Whether the packet region that ends there is of a sealed area with this stamp. */
static __always_inline _Bool __trait_is_sealed(__u64 end, __u64 stamp)
{
	return __trait_kernel_word(end - 8, 0) == __trait_tag(__trait_kernel_word(end - 32, 0), stamp);
}

/*
 * The end of a hidden region that is not in front of the flow region, or 0: the visible metadata was moved since, by
 * bpf_xdp_adjust_head or because the kernel took out VLAN tags of 4 bytes (skb_reorder_vlan_header in net/core/skbuff.c).
 * The stamp says where it is; but some drivers' skbs begin in front of what XDP took for the start (virtio_net's small
 * buffers).
 */
__trait_global __u64 __trait_moved_region(__u64 head, __u64 at, __u64 stamp)
{
	__u32 flow_len = trait_area.flow_len;
	__u64 end = head + stamp - flow_len;

	/* what is visible may have been moved down over it */
	if (stamp >= flow_len + trait_area.packet_len && stamp <= 0xffff && end < at - flow_len &&
	    __trait_is_sealed(end, stamp))
		return end;
	end = at - flow_len - 4;
	if (end - 4 < head + trait_area.packet_len)
		return 0;
	if (__trait_is_sealed(end, stamp))
		return end;
	return __trait_is_sealed(end - 4, stamp) ? end - 4 : 0;
}

/*
 * The end of the packet region, if it is authentic; else 0. `head` is where the buffer begins: xdp_buff.data_hard_start or
 * sk_buff.head.
 */
static __always_inline __u64 __trait_packet_end(__u64 head, __u64 at, __u32 meta_len)
{
	__u64 end = at - trait_area.flow_len, stamp;

	if (!trait_area.packet_len)
		return 0;
	/* the metadata's length tells whether the area was sealed */
	if (meta_len >= trait_area.area_len)
		return __trait_kernel_word(end - 8, 0) == trait_area.packet_nonce ? end : 0;
	/* where a driver copied what is visible to another buffer, there is no room for what is hidden */
	if (meta_len != trait_area.flow_len || end < head + trait_area.packet_len)
		return 0;
	stamp = __trait_kernel_word(at - 24, 0);
	return __trait_is_sealed(end, stamp) ? end : __trait_moved_region(head, at, stamp);
}

static __always_inline int __trait_kernel_get(__u64 head, __u64 at, __u32 meta_len, __u64 bit, __u32 dist, __u8 merge,
					      void *val, __u32 size)
{
	__u64 end = at;

	if (__trait_kernel_word(at - 16, 1) != trait_area.flow_nonce)
		return -ENOENT;
	if (merge != TRAIT_BLOCK) {
		end = __trait_packet_end(head, at, meta_len);
		if (!end)
			return -ENOENT;
		dist -= trait_area.flow_len;
	}
	if (!(__trait_kernel_word(end - 16, 0) & bit))
		return -ENOENT;
	if (size)
		__trait_copy_kernel(val, end - dist, size);
	return size;
}

/* The word that starts 0, 4 or 8 bytes into two words. */
static __always_inline __u64 __trait_word_between(const struct __trait_words *pair, int offset)
{
	if (offset != 4)
		return pair->word[offset / 8];
	return pair->word[0] >> 32 | pair->word[1] << 32;
}

/*
 * Where the flow region ends if XDP saw this headroom: there or, after VLAN tags were taken out, 4 or 8 bytes on; 0 if it
 * is in none of these places. The area lies in front of what is now the MAC header: nothing behind that counts. The result
 * is the place times 65536, plus the headroom. Free of branches: __trait_sign_mask.
 */
static __trait_outline __u32 __trait_seek(__u64 head, __u32 headroom, __u32 mac_header)
{
	struct __trait_words at = __trait_kernel_pair(head + headroom - 8);
	__u64 found = 0;
	int moved;

#pragma unroll
	for (moved = 0; moved <= 8; moved += 4) {
		__u64 place = (headroom + moved) & 0xffff;
		__u64 differs = __trait_word_between(&at, moved) ^ trait_area.flow_nonce;
		__u64 same = ~__trait_sign_mask(differs | -differs);
		__u64 in_front = __trait_sign_mask(place - mac_header);
		__u64 too_near = __trait_sign_mask(place - trait_area.flow_len);

		found |= (place << 16 | (headroom & 0xffff)) & same & in_front & ~too_near;
	}
	return found;
}

/*
 * Whether the area that __trait_decap_anchor found is this packet's, and not one that an earlier packet left in the buffer while
 * an XDP program of other software took headers off this packet and left metadata of its own. That metadata ends at the MAC
 * header. If it would cover the area's nonce, there is none. Otherwise the check tells, if that metadata would cover the bytes
 * that it was computed from. Those are where they were, or 4 or 8 bytes on if the kernel removed VLAN tags inside the tunnel
 * and moved nothing of the area.
 */
__trait_global int __trait_is_own(__u64 head, __u32 found, __u32 mac_header, __u32 meta_len)
{
	__u32 headroom = found & 0xffff, place = found >> 16;
	__u32 flow_len = trait_area.flow_len, packet_len = trait_area.packet_len;
	__u64 at = head + place, end, check;
	struct __trait_words front;

	if (meta_len != flow_len && meta_len != trait_area.area_len)
		return 0;
	/* the headroom by which it was found may be another that is 4 or 8 bytes apart */
	if (packet_len) {
		__u64 moved = place - __trait_kernel_word(at - 24, 0);

		if (moved > 8 || moved & 3)
			return 0;
		headroom = place - moved;
	}
	/* no tunnel is as short: TC popped a tag without the metadata */
	if (place == headroom ? mac_header - place + 8 <= meta_len : mac_header - place < __TRAIT_TUNNEL_MIN) {
		/* without a stamp, what was moved in part inside the tunnel may look as if XDP saw another headroom */
		if (packet_len || !__trait_has_flow_mark() || mac_header < headroom + __TRAIT_CHECK_TO)
			return 1;
	}
	/* a short area has no check; what is moved inside the tunnel does not reach it */
	if (!__trait_has_flow_mark())
		return place == headroom || mac_header - place >= meta_len;
	if (mac_header < headroom + __TRAIT_CHECK_TO || mac_header > headroom + __TRAIT_CHECK_FROM + meta_len)
		return 0;
	if (!packet_len) {
		check = __trait_kernel_word(at - 24, 0);
	} else if (meta_len == flow_len) {
		end = head + headroom - flow_len;
		if (!__trait_is_sealed(end, headroom))
			return 0;
		check = __trait_kernel_word(end - 24, 0) & ~(__u64)__TRAIT_LEN_MAX;
	} else {
		end = at - flow_len;
		if (__trait_kernel_word(end - 8, 0) != trait_area.packet_nonce)
			return 0;
		check = __trait_kernel_word(end - 24, 0);
	}
	front = __trait_kernel_pair(head + headroom + __TRAIT_CHECK_FROM);
	if (check == __trait_check(front.word[0]))
		return 1;
	/* what is moved inside a tunnel begins as far in front of the MAC header as the metadata is long */
	if (mac_header < place + meta_len + 4)
		return 0;
	if (check == __trait_check(__trait_word_between(&front, 4)))
		return 1;
	return mac_header >= place + meta_len + 8 && check == __trait_check(front.word[1]);
}

/* Decapsulation has moved the MAC header: looks for an area at the headrooms that XDP saw. Returns what __trait_seek does. */
__trait_global __u32 __trait_decap_anchor(__u64 head, __u32 mac_header)
{
	struct trait_anchors *seen;
	__u32 zero = 0, found;
	int i;

	/*
	 * Of several the highest is this packet's: an earlier packet's that is higher would be written over by this packet's
	 * front. Nearer to the MAC header than a flow region, there is none higher. Drivers with native XDP all leave the same
	 * headroom, which binding puts first.
	 */
	found = __trait_seek(head, trait_area.anchors[0], mac_header);
	if (found && mac_header - (found >> 16) <= trait_area.flow_len - 8)
		return found;
#pragma unroll
	for (i = 1; i < TRAITS_ANCHOR_COUNT; i++)
		if (trait_area.anchors[i])
			found = __trait_higher(found, __trait_seek(head, trait_area.anchors[i], mac_header));
	seen = bpf_map_lookup_elem(&pt_anchors, &zero);
	if (seen)
		for (i = 0; i < TRAITS_ANCHOR_MAX; i++) {
			__u32 headroom = *(volatile __u32 *)&seen->headroom[i];

			if (!headroom)
				break;
			found = __trait_higher(found, __trait_seek(head, headroom, mac_header));
		}
	return found;
}

/* What leads to an skb's metadata. */
struct __trait_skb_head {
	__u64 head;
	__u32 end;
	__u32 mac_header;
};

/* Reads it where each read is a copy: what lies together is copied at once. Out of line, for the registers of the other way. */
static __trait_outline int __trait_copy_skb_head(const struct sk_buff *skb, struct __trait_skb_head *to)
{
	const struct sk_buff___traits *s = (const void *)skb;
	/* aligned on the stack as it is in the kernel's structure: __trait_stack_align */
	__u32 start = bpf_core_field_offset(s->mac_header) & ~7U;
	__u32 mac_at = bpf_core_field_offset(s->mac_header) - start, end_at = bpf_core_field_offset(s->end) - start,
	      head_at = bpf_core_field_offset(s->head) - start;
	__u64 copy[4];

	if (head_at > sizeof(copy) - 8 || end_at > sizeof(copy) - 4)
		return -ENOENT;
	__trait_keep_number(mac_at);
	bpf_probe_read_kernel(copy, sizeof(copy), (const void *)s + start);
	to->head = *(__u64 *)((void *)copy + head_at);
	to->end = *(__u32 *)((void *)copy + end_at);
	to->mac_header = *(__u16 *)((void *)copy + mac_at);
	return 0;
}

/*
 * Address of the packet data as XDP left it, if an authentic flow region is in front of it; else 0. Also where the skb's
 * head is, and the length of its metadata.
 */
static __always_inline __u64 __trait_skb_anchor(const struct sk_buff *skb, __u64 *head_at, __u32 *meta_len)
{
	const struct sk_buff___traits *s = (const void *)skb;
	__u64 head, nonce = trait_area.flow_nonce;
	struct __trait_skb_head copy;
	__u32 mac_header, found;

	if (!nonce)
		return 0;
	if (__trait_can_cast()) {
		head = __trait_kernel_field(s, struct sk_buff___traits, head);
		*meta_len = __trait_kernel_field(head + s->end, struct skb_shared_info___traits, meta_len);
	} else {
		if (__trait_copy_skb_head(skb, &copy))
			return 0;
		head = copy.head;
		*meta_len = __trait_kernel_field(head + copy.end, struct skb_shared_info___traits, meta_len);
	}
	if (*meta_len < trait_area.flow_len)
		return 0;
	*head_at = head;
	mac_header = __trait_can_cast() ? s->mac_header : copy.mac_header;
	if (__trait_kernel_word(head + mac_header - 16, 1) == nonce)
		return head + mac_header;
	found = __trait_decap_anchor(head, mac_header);
	return found && __trait_is_own(head, found, mac_header, *meta_len) ? head + (found >> 16) : 0;
}

/*
 * Whether the packet is as long as XDP saw it, at most: then it is not made of several. What was taken off its front since
 * counts. `at` is the end of its flow region, `packet_end` that of its packet region, or 0. An area that is not sealed does not
 * say how long the packet was.
 */
static __always_inline _Bool __trait_is_whole(const struct sk_buff *skb, __u64 at, __u64 packet_end)
{
	__u64 start;
	__u32 was;
	__s64 is;

	if (!packet_end)
		return 0;
	was = __trait_kernel_word(packet_end - 24, 0) & __TRAIT_LEN_MAX;
	start = __trait_kernel_field(skb, struct sk_buff___traits, head) + __trait_kernel_word(at - 24, 0);
	is = __trait_kernel_field(skb, struct sk_buff___traits, len);
	is += __trait_kernel_field(skb, struct sk_buff___traits, data) - start;
	return was && is <= was;
}

static __always_inline int __trait_get_skb(const struct sk_buff *skb, const volatile struct trait_key_desc *key,
					   __u8 merge, void *val, __u32 size)
{
	__u32 meta_len;
	__u64 head, at = __trait_skb_anchor(skb, &head, &meta_len);

	if (!at)
		return -ENOENT;
	if (merge == TRAIT_DISCARD && !__trait_is_whole(skb, at, __trait_packet_end(head, at, meta_len)))
		return -ENOENT;
	return __trait_kernel_get(head, at, meta_len, key->bit, key->dist, merge, val, size);
}

static __always_inline int __trait_get_any(const struct sk_buff *skb, const volatile struct trait_key_desc *key,
					   __u8 merge, void *val, __u32 size)
{
	return skb ? __trait_get_skb(skb, key, merge, val, size) : -ENOENT;
}

/* An object that is not bound may have been loaded without CAP_PERFMON: it must not ask the kernel for its skb. */
#define __trait_if_bound(call) (trait_area.flow_nonce ? (call) : -ENOENT)

/* A call: `xdp` takes the context, `skb` the skb behind it, `any` one that may be NULL. */
#define __trait_call(ctx, xdp, skb, any, ...)                                                                          \
	_Generic((ctx),                                                                                                \
		struct xdp_md *: xdp((void *)(ctx), __VA_ARGS__),                                                      \
		struct __sk_buff *: __trait_if_bound(skb(__trait_skb_of(ctx), __VA_ARGS__)),                           \
		struct bpf_sock_ops *: __trait_if_bound(any(__trait_skb_of(ctx), __VA_ARGS__)),                        \
		default: skb(__trait_skb_of(ctx), __VA_ARGS__))

/*
 * XDP. The fast path is an open area with nothing below it: every place is a constant distance from data_meta.
 */

/*
 * Points to the end of the area, where the packet data starts, if the area is open and authentic and fills the
 * metadata; else NULL. What is in the area is reached backwards from there: its length need not be loaded again.
 */
static __always_inline void *__trait_xdp_area_end(struct xdp_md *ctx)
{
	__u64 nonce = trait_area.flow_nonce;
	void *data, *end;

	if (__trait_unlikely(!nonce))
		return (void *)0;
	end = __trait_ctx_ptr(struct xdp_md, ctx, data_meta) + trait_area.area_len;
	data = __trait_ctx_ptr(struct xdp_md, ctx, data);
	if (__trait_unlikely(end > data))
		return (void *)0;
	__trait_keep_checked(end);
	if (__trait_unlikely(end < data))
		return (void *)0;
	if (__trait_unlikely(((struct __trait_footer *)end - 1)->nonce != nonce))
		return (void *)0;
	return end;
}

/* Points to the start of that area; NULL if there is none. */
static __always_inline void *__trait_xdp_area(struct xdp_md *ctx)
{
	void *end = __trait_xdp_area_end(ctx);

	return end ? end - trait_area.area_len : (void *)0;
}

/* The footer of the packet region of an area that ends there, authentic or not. */
static __always_inline struct __trait_footer *__trait_packet_footer(void *end)
{
	return (struct __trait_footer *)(end - trait_area.flow_len) - 1;
}

/* The footer of a key's region in an open area; NULL if the packet region is not authentic. */
static __always_inline struct __trait_footer *__trait_area_footer(void *area, __u8 merge)
{
	struct __trait_footer *footer;

	if (merge == TRAIT_BLOCK)
		return area + (trait_area.area_len - 16);
	footer = area + (trait_area.packet_len - 16);
	return footer->nonce == trait_area.packet_nonce ? footer : (void *)0;
}

/* Address of the packet data in kernel memory, if the metadata in front of it is long enough for a flow region; else 0. */
static __always_inline __u64 __trait_xdp_at(struct xdp_md *ctx, __u64 *head, __u32 *meta_len)
{
	const void *xdp;
	__u64 data;
	long len;

	if (!trait_area.flow_nonce)
		return 0;
	xdp = __trait_kern_ctx(ctx);
	data = __trait_kernel_field(xdp, struct xdp_buff___traits, data);
	len = data - __trait_kernel_field(xdp, struct xdp_buff___traits, data_meta);
	if (len < (long)trait_area.flow_len)
		return 0;
	*meta_len = len;
	*head = __trait_kernel_field(xdp, struct xdp_buff___traits, data_hard_start);
	return data;
}

static __trait_outline int __trait_xdp_get_slow(struct xdp_md *ctx, __u64 bit, __u32 dist_merge, void *val, __u32 size)
{
	__u32 meta_len;
	__u64 head, at = __trait_xdp_at(ctx, &head, &meta_len);

	return at ? __trait_kernel_get(head, at, meta_len, bit, dist_merge >> 8, dist_merge, val, size) : -ENOENT;
}

static __always_inline int __trait_get_xdp(struct xdp_md *ctx, const volatile struct trait_key_desc *key, __u8 merge,
					   void *val, __u32 size)
{
	void *end = __trait_xdp_area_end(ctx);
	struct __trait_footer *footer;

	if (__trait_unlikely(!end)) {
		/* not `val` itself, so that clang can keep the caller's variable in a register */
		__u64 slow[2] = {};
		int ret = __trait_xdp_get_slow(ctx, key->bit, key->dist << 8 | merge, slow, size);

		if (ret > 0)
			__trait_copy(val, slow, size);
		return ret;
	}
	footer = (struct __trait_footer *)end - 1;
	if (merge != TRAIT_BLOCK) {
		footer = __trait_packet_footer(end);
		if (footer->nonce != trait_area.packet_nonce)
			return -ENOENT;
	}
	if (__trait_unlikely(!(footer->present & key->bit)))
		return -ENOENT;
	if (size)
		__trait_copy(val, end - key->dist, size);
	return size;
}

/*
 * Points to the flow region at the end of the metadata if it is authentic, whatever is below it; else NULL. Works for
 * XDP and TC: `meta` and `data` are the context's pointers.
 */
static __always_inline void *__trait_flow(void *meta, void *data, __u32 *meta_len)
{
	__u32 flow_len = trait_area.flow_len;
	void *flow;

	if (!trait_area.flow_nonce || meta > data) /* above: xdp_data_meta_unsupported, include/net/xdp.h */
		return (void *)0;
	*meta_len = data - meta;
	if (*meta_len < flow_len || *meta_len > __TRAIT_META_MAX)
		return (void *)0;
	flow = meta + __trait_below(*meta_len - flow_len, 256);
	if (flow + flow_len > data)
		return (void *)0;
	return ((struct __trait_footer *)(flow + (flow_len - 16)))->nonce == trait_area.flow_nonce ? flow : (void *)0;
}

static __always_inline void *__trait_xdp_flow(struct xdp_md *ctx, __u32 *meta_len)
{
	return __trait_flow(__trait_ctx_ptr(struct xdp_md, ctx, data_meta), __trait_ctx_ptr(struct xdp_md, ctx, data),
			    meta_len);
}

/* The headroom XDP sees. */
static __always_inline __u64 __trait_headroom(struct xdp_md *ctx)
{
	return __trait_kernel_distance(__trait_kern_ctx(ctx), struct xdp_buff___traits, data, data_hard_start);
}

/* Publishes it, for readers behind a decapsulation. Returns 0. */
__trait_global int __trait_publish_headroom(struct xdp_md *ctx)
{
	struct trait_anchors *seen;
	__u32 zero = 0, headroom;
	int i;

	if (!trait_area.flow_nonce)
		return 0;
	headroom = __trait_headroom(ctx);
#pragma unroll
	for (i = 0; i < TRAITS_ANCHOR_COUNT; i++)
		if (trait_area.anchors[i] == headroom)
			return 0;
	seen = bpf_map_lookup_elem(&pt_anchors, &zero);
	if (!seen)
		return 0;
	for (i = 0; i < TRAITS_ANCHOR_MAX; i++) {
		volatile __u32 *place = &seen->headroom[i];

		/*
		 * Two CPUs may take a free place at once. The one that is overwritten takes the next with its next
		 * packet; a compare-and-swap would need -mcpu=v3.
		 */
		if (!*place)
			*place = headroom;
		if (*place == headroom)
			return 0;
	}
	return 0;
}

/* The headroom, published; at the cost of a few loads if it is the usual one. */
static __always_inline __u64 __trait_published_headroom(struct xdp_md *ctx)
{
	__u64 headroom = __trait_headroom(ctx);

	if (headroom != trait_area.anchors[0])
		__trait_publish_headroom(ctx);
	return headroom;
}

/* The number of this CPU, in the upper 16 bits, and of the packet on it. */
static __always_inline __u64 __trait_next_id(void)
{
	__u32 cpu = bpf_get_smp_processor_id(), entry = 1 + (cpu & (TRAITS_CPU_MAX - 1));
	volatile __u64 *last = (void *)bpf_map_lookup_elem(&pt_anchors, &entry);
	__u64 id;

	if (!last)
		return 0;
	id = *last + 1;
	/* begins anywhere: an object that is not given the registry's map should not repeat the ids of others */
	if (__trait_unlikely(id == 1))
		id = (__u64)cpu << 48 | (__u64)bpf_get_prandom_u32() << 12 | 1;
	*last = id;
	/* CPUs that share an entry give ids of their own */
	return id ^ (__u64)(cpu & ~(TRAITS_CPU_MAX - 1)) << 48;
}

static __always_inline int __trait_xdp_adjust_meta(struct xdp_md *ctx, __u32 len)
{
	int err = bpf_xdp_adjust_meta(ctx, -(int)len);

	return !err ? 0 : err == -__TRAIT_ENOTSUPP ? -EOPNOTSUPP : -ENOSPC;
}

/*
 * Reserves `len` bytes of metadata between what is there, the first `below` bytes of which move down, and the rest. The
 * new bytes are not zeroed. Returns 0, -EOPNOTSUPP, -ENOSPC.
 */
__trait_global int __trait_xdp_reserve(struct xdp_md *ctx, __u32 len, __u32 below)
{
	void *meta, *data, *from;
	__u32 i;
	int err;

	len = __trait_below(len, 256);
	err = __trait_xdp_adjust_meta(ctx, len);
	if (err)
		return err;
	meta = __trait_ctx_ptr(struct xdp_md, ctx, data_meta);
	data = __trait_ctx_ptr(struct xdp_md, ctx, data);
	from = meta + len;
	for (i = 0; i < __TRAIT_META_MAX && i < below; i += 4) {
		if (from + i + 4 > data || meta + i + 4 > data)
			break;
		*(__u32 *)(meta + i) = *(__u32 *)(from + i);
	}
	return 0;
}

/* Zeroes whole words: as many as there are in `len` bytes. */
static __always_inline void __trait_zero_words(void *to, __u32 len)
{
	__u64 *word = to;
	__u32 i;

	/*
	 * `len` is a constant to the verifier, which removes what is never reached; but it leaves a branch there that is never
	 * taken, so there should be few of them.
	 */
	if (len & 8)
		__trait_store_zero(__u64, word++);
	if (len & 16) {
		__trait_store_zero(__u64, word++);
		__trait_store_zero(__u64, word++);
	}
#pragma unroll
	for (i = 0; i < __TRAIT_META_MAX / 32; i++)
		if (32 * i + 32 <= len) {
			__trait_store_zero(__u64, &word[4 * i]);
			__trait_store_zero(__u64, &word[4 * i + 1]);
			__trait_store_zero(__u64, &word[4 * i + 2]);
			__trait_store_zero(__u64, &word[4 * i + 3]);
		}
}

static __always_inline void __trait_zero(void *to, __u32 len)
{
	__trait_zero_words(to, len);
	to += len & ~7U;
	if (len & 4) {
		__trait_store_zero(__u32, to);
		to += 4;
	}
	if (len & 2) {
		__trait_store_zero(__u16, to);
		to += 2;
	}
	if (len & 1)
		__trait_store_zero(__u8, to);
}

/* Points to the area at `offset` (a result of __trait_xdp_open) from data_meta. */
static __always_inline void *__trait_xdp_area_at(struct xdp_md *ctx, __u32 offset)
{
	void *area = __trait_ctx_ptr(struct xdp_md, ctx, data_meta);
	void *data = __trait_ctx_ptr(struct xdp_md, ctx, data);

	__trait_keep_bound(offset);
	area += __trait_below(offset, 256);
	return area + trait_area.area_len > data ? (void *)0 : area;
}

/* The check over the packet's front; 0 if the packet is shorter. */
static __always_inline __u64 __trait_front_check(struct xdp_md *ctx)
{
	void *data = __trait_ctx_ptr(struct xdp_md, ctx, data);

	if (data + __TRAIT_CHECK_TO > __trait_ctx_ptr(struct xdp_md, ctx, data_end))
		return 0;
	return __trait_check(*(__u64 *)(data + __TRAIT_CHECK_FROM));
}

/*
 * The length of an Ethernet frame; of an IP packet without padding. 0 if it is not known: of frames shorter than 38 bytes, of
 * jumbograms, and of frames with more than two VLAN tags or a PPPoE header, which may hold an IP packet.
 */
static __always_inline __u32 __trait_frame_len(struct xdp_md *ctx)
{
	__u64 len = bpf_xdp_get_buff_len(ctx), ip_len;
	void *data = __trait_ctx_ptr(struct xdp_md, ctx, data), *end = __trait_ctx_ptr(struct xdp_md, ctx, data_end);
	void *type = data + 12; /* of what is behind the addresses and the tags */

	if (data + __TRAIT_CHECK_TO > end)
		return 0;
	/* the bounds hold, but the verifier may not see it of a place that depends on the packet */
	if (__trait_is_vlan(*(__u16 *)type)) {
		type += 4;
		if (type + 8 > end)
			return 0;
		if (__trait_is_vlan(*(__u16 *)type))
			type += 4;
	}
	if (type + 8 > end)
		return 0;
	if (__trait_is_vlan(*(__u16 *)type) || *(__u16 *)type == __trait_be16(0x8864)) /* ETH_P_PPP_SES */
		return 0;
	if (*(__u16 *)type == __trait_be16(0x0800)) { /* ETH_P_IP: its total length */
		ip_len = __trait_be16(*(__u16 *)(type + 4));
	} else if (*(__u16 *)type == __trait_be16(0x86dd)) { /* ETH_P_IPV6: its payload length, 0 of a jumbogram */
		ip_len = __trait_be16(*(__u16 *)(type + 6));
		if (!ip_len)
			return 0;
		ip_len += 40;
	} else {
		ip_len = len;
	}
	ip_len += type + 2 - data;
	if (len > ip_len)
		len = ip_len;
	return len < __TRAIT_LEN_MAX ? len : 0;
}

/* The footers of an open area. */
static __always_inline struct __trait_flow_mark *__trait_flow_mark(void *area)
{
	return (struct __trait_flow_mark *)(area + trait_area.area_len) - 1;
}

static __always_inline struct __trait_packet_mark *__trait_packet_mark(void *area)
{
	return (struct __trait_packet_mark *)(area + trait_area.packet_len) - 1;
}

/*
 * Makes sure that there is an open area in front of the packet data: reserves it, or opens it if it was sealed.
 * Returns its offset from data_meta (the length of foreign metadata below it), or an errno.
 */
__trait_global int __trait_xdp_open(struct xdp_md *ctx)
{
	__u32 flow_len = trait_area.flow_len, packet_len = trait_area.packet_len, area_len = trait_area.area_len;
	struct __trait_packet_mark *mark;
	__u32 meta_len, below;
	__u64 headroom = 0;
	void *meta, *data, *area;
	_Bool have_flow;
	int err;

	if (!trait_area.flow_nonce)
		return -EOPNOTSUPP;
	meta = __trait_ctx_ptr(struct xdp_md, ctx, data_meta);
	data = __trait_ctx_ptr(struct xdp_md, ctx, data);
	if (meta > data) /* xdp_data_meta_unsupported, include/net/xdp.h */
		return -EOPNOTSUPP;
	meta_len = data - meta;
	if (meta_len > __TRAIT_META_MAX)
		return -ENOSPC;
	have_flow = __trait_flow(meta, data, &meta_len) != (void *)0;
	if (have_flow) {
		below = meta_len - flow_len;
		if (!packet_len)
			return below;
		if (meta_len >= area_len) {
			area = __trait_xdp_area_at(ctx, meta_len - area_len);
			if (area && __trait_area_footer(area, TRAIT_KEEP_FIRST))
				return meta_len - area_len;
		}
		err = below ? __trait_xdp_reserve(ctx, packet_len, below) : __trait_xdp_adjust_meta(ctx, packet_len);
	} else {
		below = meta_len;
		err = below ? __trait_xdp_reserve(ctx, area_len, below) : __trait_xdp_adjust_meta(ctx, area_len);
	}
	if (err)
		return err;
	if (!have_flow)
		headroom = __trait_published_headroom(ctx);
	area = __trait_xdp_area_at(ctx, below);
	if (!area)
		return -ENOSPC;
	if (!have_flow) {
		__trait_zero_words(area + packet_len, flow_len - __TRAIT_FLOW_FOOTER);
		if (__trait_has_flow_mark())
			__trait_flow_mark(area)->stamp = packet_len ? headroom : __trait_front_check(ctx);
		__trait_flow_mark(area)->footer.present = 0;
		__trait_flow_mark(area)->footer.nonce = trait_area.flow_nonce;
	}
	if (packet_len) {
		mark = __trait_packet_mark(area);
		/* a hidden region is taken back only if it is this one, and nothing has grown over it */
		if (!have_flow || below ||
		    mark->footer.nonce != __trait_tag(mark->id, __trait_flow_mark(area)->stamp)) {
			__trait_zero_words(area, packet_len - __TRAIT_PACKET_FOOTER);
			mark->footer.present = 0;
		}
		mark->id = 0;
		mark->check = __trait_front_check(ctx);
		mark->footer.nonce = trait_area.packet_nonce;
	}
	return below;
}

static __always_inline int __trait_area_set(void *area, __u64 bit, __u32 dist, __u8 merge, const void *val, __u32 size)
{
	struct __trait_footer *footer = __trait_area_footer(area, merge);

	if (!footer)
		return -ENOSPC;
	footer->present |= bit;
	if (size)
		__trait_copy(area + (trait_area.area_len - dist), val, size);
	return 0;
}

static __always_inline int __trait_area_del(void *area, __u64 bit, __u8 merge)
{
	struct __trait_footer *footer = __trait_area_footer(area, merge);

	if (!footer || !(footer->present & bit))
		return -ENOENT;
	footer->present &= ~bit;
	return 0;
}

/* As above, and zeroes the slot: GRO compares what is left in a flow region, and what is deleted is for nobody to see. */
static __always_inline int __trait_area_del_key(void *area, const volatile struct trait_key_desc *key)
{
	int err = __trait_area_del(area, key->bit, key->merge);
	__u32 size = key->size;

	if (!err && size)
		__trait_zero(area + (trait_area.area_len - key->dist), size);
	return err;
}

static __trait_outline int __trait_xdp_set_slow(struct xdp_md *ctx, const volatile struct trait_key_desc *key,
						const void *val, __u32 size)
{
	int offset = __trait_xdp_open(ctx);
	void *area;

	if (offset < 0)
		return offset;
	/* an unbound program never gets here, but the verifier must see that */
	if (!trait_area.flow_nonce)
		return -EOPNOTSUPP;
	area = __trait_xdp_area_at(ctx, offset);
	if (!area)
		return -ENOSPC;
	return __trait_area_set(area, key->bit, key->dist, key->merge, val, size);
}

static __always_inline int __trait_set_xdp(struct xdp_md *ctx, const volatile struct trait_key_desc *key, __u8 merge,
					   const void *val, __u32 size)
{
	void *end = __trait_xdp_area_end(ctx);
	struct __trait_footer *footer;

	/* no area; or not open: another program's metadata, as long as the packet region, is over it */
	if (__trait_unlikely(!end ||
			     (merge != TRAIT_BLOCK && __trait_packet_footer(end)->nonce != trait_area.packet_nonce))) {
		/* as in __trait_get_xdp */
		__u64 slow[2] = {};

		__trait_copy(slow, val, size);
		return __trait_xdp_set_slow(ctx, key, slow, size);
	}
	footer = merge != TRAIT_BLOCK ? __trait_packet_footer(end) : (struct __trait_footer *)end - 1;
	footer->present |= key->bit;
	if (size)
		__trait_copy(end - key->dist, val, size);
	return 0;
}

/* Opens the area only if the packet has one. Returns its offset from data_meta; -ENOENT if there is none. */
static __always_inline int __trait_xdp_reopen(struct xdp_md *ctx)
{
	__u32 meta_len;

	return __trait_xdp_flow(ctx, &meta_len) ? __trait_xdp_open(ctx) : -ENOENT;
}

static __trait_outline int __trait_xdp_del_slow(struct xdp_md *ctx, const volatile struct trait_key_desc *key)
{
	int offset = __trait_xdp_reopen(ctx);
	void *area;

	if (offset < 0)
		return offset;
	area = __trait_xdp_area_at(ctx, offset);
	return area ? __trait_area_del_key(area, key) : -ENOENT;
}

static __always_inline int __trait_del_xdp(struct xdp_md *ctx, const volatile struct trait_key_desc *key)
{
	void *area = __trait_xdp_area(ctx);

	return area ? __trait_area_del_key(area, key) : __trait_xdp_del_slow(ctx, key);
}

static __always_inline void __trait_area_clear(void *area)
{
	__u32 flow_len = trait_area.flow_len, packet_len = trait_area.packet_len;

	/* the footers stay, but for what is present */
	__trait_zero_words(area + packet_len, flow_len - __TRAIT_FLOW_FOOTER);
	__trait_flow_mark(area)->footer.present = 0;
	if (packet_len) {
		__trait_zero_words(area, packet_len - __TRAIT_PACKET_FOOTER);
		__trait_packet_mark(area)->footer.present = 0;
	}
}

/* Deletes every trait of the packet; the area stays reserved. Returns 0 or an errno. */
static __always_inline int trait_clear(struct xdp_md *ctx)
{
	int offset = __trait_xdp_reopen(ctx);
	void *area;

	if (offset < 0)
		return offset == -ENOENT ? 0 : offset;
	area = __trait_xdp_area_at(ctx, offset);
	if (area)
		__trait_area_clear(area);
	return 0;
}

/* Reserves the area with nothing set. Returns 0 or an errno. */
static __always_inline int trait_init(struct xdp_md *ctx)
{
	__u32 meta_len;
	int offset;

	if (__trait_xdp_flow(ctx, &meta_len))
		return trait_clear(ctx);
	offset = __trait_xdp_open(ctx);
	return offset < 0 ? offset : 0;
}

/*
 * Hides the packet region below data_meta. Returns 0, also if there is nothing to hide; -EBUSY if another program's
 * metadata is below the area.
 */
static __always_inline int trait_seal(struct xdp_md *ctx)
{
	__u32 packet_len = trait_area.packet_len, meta_len;
	struct __trait_packet_mark *mark;
	__u64 headroom, id;
	void *area;

	if (!packet_len)
		return 0;
	area = __trait_xdp_area(ctx);
	if (!area)
		return __trait_xdp_flow(ctx, &meta_len) && meta_len != trait_area.flow_len ? -EBUSY : 0;
	mark = __trait_packet_mark(area);
	if (mark->footer.nonce != trait_area.packet_nonce) /* metadata as long as the packet region is over it */
		return -EBUSY;
	headroom = __trait_published_headroom(ctx);
	id = __trait_next_id();
	__trait_flow_mark(area)->stamp = headroom;
	mark->id = id;
	mark->check = __trait_front_check(ctx) | (trait_area.discard ? __trait_frame_len(ctx) : 0);
	mark->footer.nonce = __trait_tag(id, headroom);
	return bpf_xdp_adjust_meta(ctx, packet_len) ? -EOPNOTSUPP : 0;
}

/*
 * Drops the traits that a packet has from another interface, if no program attached metadata to it at this one. Returns 0;
 * -ENOSPC no room in the headroom; -EOPNOTSUPP no metadata here, and so nothing to drop, or an unbound program.
 */
static __always_inline int trait_drop_inherited(struct xdp_md *ctx)
{
	const __u32 len = 4; /* the least; no region is as short */
	void *meta;
	int err;

	if (!trait_area.flow_nonce)
		return -EOPNOTSUPP;
	if (__trait_ctx_ptr(struct xdp_md, ctx, data_meta) != __trait_ctx_ptr(struct xdp_md, ctx, data))
		return 0;
	err = __trait_xdp_adjust_meta(ctx, len);
	if (err)
		return err;
	meta = __trait_ctx_ptr(struct xdp_md, ctx, data_meta);
	if (meta + len <= __trait_ctx_ptr(struct xdp_md, ctx, data))
		__trait_store_zero(__u32, meta);
	return 0;
}

/*
 * TC and TCX: keys of the flow region, in place.
 */

/* The flow region as TC sees it, if it is where XDP left it; else NULL. */
static __always_inline void *__trait_tc_flow(struct __sk_buff *ctx, __u32 *meta_len)
{
	return __trait_flow(__trait_ctx_ptr(struct __sk_buff, ctx, data_meta),
			    __trait_ctx_ptr(struct __sk_buff, ctx, data), meta_len);
}

static __always_inline int __trait_tc_get(struct __sk_buff *ctx, const volatile struct trait_key_desc *key, __u8 merge,
					  void *val, __u32 size)
{
	__u32 meta_len;
	void *flow;

	if (merge != TRAIT_BLOCK)
		return __trait_if_bound(__trait_get_skb(__trait_skb_of(ctx), key, merge, val, size));
	flow = __trait_tc_flow(ctx, &meta_len);
	if (!flow)
		return __trait_if_bound(__trait_get_skb(__trait_skb_of(ctx), key, merge, val, size));
	if (!(((struct __trait_footer *)(flow + (trait_area.flow_len - 16)))->present & key->bit))
		return -ENOENT;
	if (size)
		__trait_copy(val, flow + (trait_area.flow_len - key->dist), size);
	return size;
}

#ifdef TRAITS_TC_DIRECT_WRITE
#define __trait_tc_has_dynptr() 0
#else
#define __trait_tc_has_dynptr() (bpf_dynptr_from_skb_meta != (void *)0)
#endif

struct __trait_dynptr {
	__u64 opaque[2];
} __attribute__((aligned(8)));

/* Sets (`on`) or deletes a key of the flow region; a deleted key's slot gets `val` too: zeroes. */
static __trait_outline int __trait_tc_change(struct __sk_buff *ctx, const volatile struct trait_key_desc *key,
					     const void *val, __u32 size, _Bool on)
{
	__u32 meta_len, flow_at, flow_len = trait_area.flow_len;
	__u64 bit = key->bit, present;
	struct __trait_dynptr meta;
	struct __trait_footer *footer;
	void *flow;

	if (key->merge != TRAIT_BLOCK)
		return -EOPNOTSUPP;
	flow = __trait_tc_flow(ctx, &meta_len);
	if (!flow)
		return -EOPNOTSUPP;
	footer = flow + (flow_len - 16);
	if (!on && !(footer->present & bit))
		return -ENOENT;
	present = on ? footer->present | bit : footer->present & ~bit;
	if (!__trait_tc_has_dynptr()) {
		footer->present = present;
		if (size)
			__trait_copy(flow + (flow_len - key->dist), val, size);
		return 0;
	}
	flow_at = meta_len - flow_len;
	if (bpf_dynptr_from_skb_meta(ctx, 0, (struct bpf_dynptr *)&meta))
		return -EOPNOTSUPP;
	if (size && bpf_dynptr_write((struct bpf_dynptr *)&meta, flow_at + flow_len - key->dist, (void *)val, size, 0))
		return -EOPNOTSUPP;
	if (bpf_dynptr_write((struct bpf_dynptr *)&meta, flow_at + flow_len - 16, &present, sizeof(present), 0))
		return -EOPNOTSUPP;
	return 0;
}

/*
 * A view: bounds and nonces checked once for any number of reads.
 */
struct trait_view {
	_Bool direct; /* XDP with an open area. A flag, since the verifier does not know that packet pointers are not 0 */
	void *end; /* direct: the end of the area */
	__u64 flow_end; /* not direct: the regions' ends in kernel memory */
	__u64 packet_end;
	__u64 flow_present;
	__u64 packet_present; /* 0 if the packet region is not authentic; of a merged packet without keys to discard */
};

static __always_inline int __trait_view_kernel(__u64 head, __u64 at, __u32 meta_len, struct trait_view *view)
{
	view->direct = 0;
	view->end = (void *)0;
	view->flow_end = at;
	view->packet_end = 0;
	view->packet_present = 0;
	if (__trait_kernel_word(at - 16, 1) != trait_area.flow_nonce)
		return -ENOENT;
	view->flow_present = __trait_kernel_word(at - 16, 0);
	view->packet_end = __trait_packet_end(head, at, meta_len);
	if (view->packet_end)
		view->packet_present = __trait_kernel_word(view->packet_end - 16, 0);
	return 0;
}

/* Takes these keys out of the view of a packet that is made of several. */
static __always_inline void __trait_discard(const struct sk_buff *skb, struct trait_view *view, __u64 keys)
{
	if (keys & view->packet_present && !__trait_is_whole(skb, view->flow_end, view->packet_end))
		view->packet_present &= ~keys;
}

static __always_inline int __trait_view_skb(const struct sk_buff *skb, struct trait_view *view)
{
	__u32 meta_len;
	__u64 head, at = __trait_skb_anchor(skb, &head, &meta_len);

	if (!at || __trait_view_kernel(head, at, meta_len, view))
		return -ENOENT;
	__trait_discard(skb, view, trait_area.discard);
	return 0;
}

static __always_inline int __trait_view_any(const struct sk_buff *skb, struct trait_view *view)
{
	return skb ? __trait_view_skb(skb, view) : -ENOENT;
}

static __always_inline int __trait_view_xdp(struct xdp_md *ctx, struct trait_view *view)
{
	struct __trait_footer *footer;
	__u32 meta_len;
	__u64 head, at;

	view->end = __trait_xdp_area_end(ctx);
	if (view->end) {
		view->direct = 1;
		view->flow_end = view->packet_end = 0;
		view->flow_present = ((struct __trait_footer *)view->end - 1)->present;
		view->packet_present = 0;
		if (trait_area.packet_len) {
			footer = __trait_packet_footer(view->end);
			if (footer->nonce == trait_area.packet_nonce)
				view->packet_present = footer->present;
		}
		return 0;
	}
	at = __trait_xdp_at(ctx, &head, &meta_len);
	return at ? __trait_view_kernel(head, at, meta_len, view) : -ENOENT;
}

static __always_inline int __trait_view_get(const struct trait_view *view, const volatile struct trait_key_desc *key,
					    __u8 merge, void *val, __u32 size)
{
	__u64 present = merge != TRAIT_BLOCK ? view->packet_present : view->flow_present;

	if (!(present & key->bit))
		return -ENOENT;
	if (!size)
		return 0;
	if (view->direct)
		__trait_copy(val, view->end - key->dist, size);
	else
		__trait_copy_kernel(val,
				    merge != TRAIT_BLOCK ? view->packet_end - (key->dist - trait_area.flow_len)
							 : view->flow_end - key->dist,
				    size);
	return size;
}

/*
 * The calls.
 */
#define __trait_get(ctx, ...) __trait_call(ctx, __trait_get_xdp, __trait_get_skb, __trait_get_any, __VA_ARGS__)

/* A key as the calls take it: its descriptor, and its merge policy, which the object's binding has checked. */
#define __trait_desc(key) (&trait_key_##key.desc)
#define __trait_key(key) __trait_desc(key), trait_merge_##key

/* A pointer to the key's type; another pointer is an error, not the warning that C makes of it. */
#define __trait_pointer(key, var, ptr)                                                                                 \
	_Pragma("clang diagnostic push") _Pragma("clang diagnostic error \"-Wincompatible-pointer-types\"")            \
		_Pragma("clang diagnostic error \"-Wint-conversion\"") trait_type_##key *var = (ptr);                  \
	_Pragma("clang diagnostic pop")

/*
 * A value of a type that is aligned to less than the verifier wants on the stack (struct in6_addr, bytes) is read to a place
 * that is aligned, then copied.
 */
#define __trait_align(key) __trait_stack_align(trait_type_##key)

#define __trait_read(key, ptr, get, from)                                                                              \
	({                                                                                                             \
		__trait_pointer(key, __to, ptr);                                                                       \
		const _Bool __direct = _Alignof(trait_type_##key) >= __trait_align(key);                               \
		trait_type_##key __place __attribute__((aligned(__trait_align(key))));                                 \
		int __len = get(from, __trait_key(key), __direct ? __to : &__place, sizeof(*__to));                    \
                                                                                                                       \
		if (!__direct && __len > 0)                                                                            \
			*__to = __place;                                                                               \
		__len;                                                                                                 \
	})

#define trait_get(ctx, key, ptr) __trait_read(key, ptr, __trait_get, ctx)

#define trait_get_or(ctx, key, other)                                                                                  \
	({                                                                                                             \
		trait_type_##key __got __attribute__((aligned(__trait_align(key)))) = (other);                         \
		__trait_get(ctx, __trait_key(key), &__got, sizeof(__got));                                             \
		__got;                                                                                                 \
	})

#define trait_is_set(ctx, key) (__trait_get(ctx, __trait_key(key), (void *)0, 0) >= 0)

/* Stops the compiler where a call for XDP would do nothing. */
#define __trait_in_xdp(ctx, call)                                                                                      \
	_Static_assert(_Generic((ctx), struct __sk_buff *: 0, default: 1),                                             \
		       "trait_" #call " is for XDP: a TC program calls trait_tc_" #call);                              \
	_Static_assert(_Generic((ctx), struct xdp_md *: 1, struct __sk_buff *: 1, default: 0),                         \
		       "trait_" #call " is for XDP: this type of program can only read traits")

#define trait_set(ctx, key, value)                                                                                     \
	({                                                                                                             \
		__trait_in_xdp(ctx, set);                                                                              \
		const trait_type_##key __from __attribute__((aligned(__trait_align(key)))) = (value);                  \
		__trait_set_xdp(ctx, __trait_key(key), &__from, sizeof(__from));                                       \
	})

#define trait_set_flag(ctx, key)                                                                                       \
	({                                                                                                             \
		__trait_in_xdp(ctx, set_flag);                                                                         \
		_Static_assert(sizeof(trait_type_##key) == 0, #key " has a value: use trait_set");                     \
		__trait_set_xdp(ctx, __trait_key(key), (void *)0, 0);                                                  \
	})

#define trait_del(ctx, key)                                                                                            \
	({                                                                                                             \
		__trait_in_xdp(ctx, del);                                                                              \
		__trait_del_xdp(ctx, __trait_desc(key));                                                               \
	})

#define trait_view(ctx, view) __trait_call(ctx, __trait_view_xdp, __trait_view_skb, __trait_view_any, view)

#define trait_view_get(view, key, ptr) __trait_read(key, ptr, __trait_view_get, view)

#define trait_view_is_set(view, key) (__trait_view_get(view, __trait_key(key), (void *)0, 0) >= 0)

#define trait_tc_get(ctx, key, ptr) __trait_read(key, ptr, __trait_tc_get, ctx)

#define trait_tc_is_set(ctx, key) (__trait_tc_get(ctx, __trait_key(key), (void *)0, 0) >= 0)

/* Stops the compiler where a call could never do anything. */
#define __trait_in_tc(key, call)                                                                                       \
	_Static_assert(trait_merge_##key == TRAIT_BLOCK,                                                               \
		       "trait_tc_" #call ": " #key " is keep-first or discard: only XDP programs set and delete it")

#define trait_tc_set(ctx, key, value)                                                                                  \
	({                                                                                                             \
		__trait_in_tc(key, set);                                                                               \
		const trait_type_##key __from __attribute__((aligned(__trait_align(key)))) = (value);                  \
		__trait_tc_change(ctx, __trait_desc(key), &__from, sizeof(__from), 1);                                 \
	})

#define trait_tc_set_flag(ctx, key)                                                                                    \
	({                                                                                                             \
		__trait_in_tc(key, set_flag);                                                                          \
		_Static_assert(sizeof(trait_type_##key) == 0, #key " has a value: use trait_tc_set");                  \
		__trait_tc_change(ctx, __trait_desc(key), (void *)0, 0, 1);                                            \
	})

#define trait_tc_del(ctx, key)                                                                                         \
	({                                                                                                             \
		__trait_in_tc(key, del);                                                                               \
		const __u64 __zero[2] = {};                                                                            \
		__trait_tc_change(ctx, __trait_desc(key), __zero, sizeof(trait_type_##key), 0);                        \
	})

#endif /* __PACKET_TRAITS_TRAITS_BPF_H */
