/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Reading the kernel's memory: the one place that says how. Included by traits.bpf.h; nothing here touches a packet.
 *
 * An address is a number, also where the kernel's structure has a pointer (__trait_number_of of verifier.bpf.h says why). So
 * such members are read by __trait_kernel_field, never by `->`.
 *
 * There are two ways to read, chosen when a program is loaded:
 *	Linux 6.2 and later	bpf_cast_to_kern_ctx and bpf_rdonly_cast, then plain loads that the kernel checks
 *	before			bpf_probe_read_kernel, also on `(void *)ctx + offset`: the context of a program is the
 *				kernel's own structure (struct sk_buff, xdp_buff, bpf_sock_ops_kern, bpf_sockopt_kern);
 *				requires CAP_PERFMON
 * Neither faults: memory that is not there reads as zeroes.
 */
#ifndef __PACKET_TRAITS_KERNEL_BPF_H
#define __PACKET_TRAITS_KERNEL_BPF_H

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "packet traits are for little-endian machines: nothing here was tried on another one"
#endif

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <packet_traits/verifier.bpf.h>

struct sk_buff;
struct xdp_md;
struct __sk_buff;
struct bpf_nf_ctx;
struct bpf_sock_ops;

/* Only its BTF id is used: 16 bytes that may be read as two words. */
struct in6_addr___traits {
	__u8 bytes[16];
};

/* kernel/bpf/helpers.c, weak so that objects load on kernels without them */
extern void *bpf_cast_to_kern_ctx(void *obj) __ksym __weak;
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;

/* Whether the kernel has the casts; both came with 6.2. A constant to the verifier. */
static __always_inline _Bool __trait_can_cast(void)
{
	return bpf_rdonly_cast != (void *)0;
}

/* The kernel's structure behind a program's context. */
#define __trait_kern_ctx(ctx) (__trait_can_cast() ? bpf_cast_to_kern_ctx(ctx) : (void *)(ctx))

struct __trait_words {
	__u64 word[2];
};

/* 16 bytes of kernel memory that may be anything: loads from it are checked by the kernel and never fault. */
static __always_inline struct __trait_words *__trait_kernel_words(__u64 address)
{
	return bpf_rdonly_cast((const void *)address, bpf_core_type_id_kernel(struct in6_addr___traits));
}

/* What is at an address, as a number of this type. */
#define __trait_kernel_load(type, address)                                                                             \
	({                                                                                                             \
		type __loaded;                                                                                         \
                                                                                                                       \
		if (__trait_can_cast()) {                                                                              \
			__loaded = *(type *)__trait_kernel_words(address);                                             \
			__trait_keep_load(__loaded);                                                                   \
		} else {                                                                                               \
			bpf_probe_read_kernel(&__loaded, sizeof(__loaded), (const void *)(address));                   \
		}                                                                                                      \
		__loaded;                                                                                              \
	})

/* One of the two words at an address. */
static __always_inline __u64 __trait_kernel_word(__u64 address, int index)
{
	__u64 word;

	if (!__trait_can_cast())
		return __trait_kernel_load(__u64, address + 8 * index);
	word = __trait_kernel_words(address)->word[index];
	__trait_keep_load(word);
	return word;
}

/* Both of them. */
static __always_inline struct __trait_words __trait_kernel_pair(__u64 address)
{
	struct __trait_words pair;

	if (__trait_can_cast()) {
		pair.word[0] = __trait_kernel_word(address, 0);
		pair.word[1] = __trait_kernel_word(address, 1);
	} else {
		bpf_probe_read_kernel(&pair, sizeof(pair), (const void *)address);
	}
	return pair;
}

/* Address of a member of the kernel's structure of a CO-RE flavour, of which `from` is the address, or a pointer to it. */
#define __trait_kernel_member(from, flavour, member) ((__u64)(from) + bpf_core_field_offset(flavour, member))

/* The member's value; of one that is a pointer, the address, as a number. */
#define __trait_kernel_field(from, flavour, member)                                                                    \
	__trait_kernel_load(__trait_number_of(((flavour *)0)->member), __trait_kernel_member(from, flavour, member))

/* The difference of two pointer members of the structure behind a program's context (from __trait_kern_ctx). */
#define __trait_kernel_distance(from, flavour, member, less)                                                           \
	({                                                                                                             \
		const void *__from = (from);                                                                           \
                                                                                                                       \
		__trait_can_cast()                                                                                     \
			? __trait_difference_at(__from + bpf_core_field_offset(flavour, member),                       \
						__from + bpf_core_field_offset(flavour, less))                         \
			: __trait_kernel_field(__from, flavour, member) - __trait_kernel_field(__from, flavour, less); \
	})

/* A pointer to the kernel's structure at an address, for functions that take one. */
#define __trait_kernel_pointer(address, flavour)                                                                       \
	(__trait_can_cast() ? bpf_rdonly_cast((const void *)(address), bpf_core_type_id_kernel(flavour))               \
			    : (void *)(address))

/* Copies a value of 0, 1, 2, 4, 8 or 16 bytes; `size` is a constant to clang or to the verifier. */
static __always_inline void __trait_copy_kernel(void *to, __u64 from, __u32 size)
{
	switch (size) {
	case 1:
		*(__u8 *)to = __trait_kernel_load(__u8, from);
		break;
	case 2:
		*(__u16 *)to = __trait_kernel_load(__u16, from);
		break;
	case 4:
		*(__u32 *)to = __trait_kernel_load(__u32, from);
		break;
	case 8:
		*(__u64 *)to = __trait_kernel_load(__u64, from);
		break;
	case 16:
		((__u64 *)to)[0] = __trait_kernel_word(from, 0);
		((__u64 *)to)[1] = __trait_kernel_word(from, 1);
		break;
	}
}

/*
 * The kernel's structures, as far as we look into them, each with what it is for if that is not plain. The suffix makes
 * these CO-RE flavours, which can stand beside vmlinux.h: the loader finds the members that a program reads, by their names.
 */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common___traits {
	unsigned int inum;
};

struct net___traits {
	struct ns_common___traits ns;
	__u64 net_cookie;
};

struct possible_net_t___traits {
	struct net___traits *net;
};

struct rtnl_link_ops___traits {
	const char *kind;
};

struct bpf_xdp_entity___traits {
	void *prog;
	void *link;
};

struct net_device___traits {
	struct possible_net_t___traits nd_net;
	int ifindex;
	unsigned short type;
	char name[16]; /* IFNAMSIZ */
	const struct rtnl_link_ops___traits *rtnl_link_ops;
	struct bpf_xdp_entity___traits xdp_state[3];
};

struct hlist_node___traits {
	struct hlist_node___traits *next;
};

struct bpf_local_storage_data___traits {
	__u8 data[0];
};

struct bpf_local_storage_elem___traits {
	struct hlist_node___traits snode;
	struct bpf_local_storage_data___traits sdata;
};

struct bpf_local_storage___traits {
	void *cache[16];
	struct {
		void *first;
	} list;
};

struct sock_common___traits {
	struct possible_net_t___traits skc_net;
	struct {
		__s64 counter;
	} skc_cookie; /* 0 until someone asks for it */
	unsigned long skc_flags;
	volatile unsigned char skc_state;
};

struct sock___traits {
	struct sock_common___traits __sk_common;
	__u16 sk_protocol;
	struct {
		struct {
			int counter;
		} rmem_alloc;
	} sk_backlog;
	int sk_rcvbuf;
	struct bpf_local_storage___traits *sk_bpf_storage;
};

struct tcp_sock___traits {
	__u32 rcv_nxt;
	__u32 rcv_wnd;
	__u32 rcv_wup;
};

struct sk_buff___traits {
	struct sk_buff___traits
		*prev; /* in a queue; not in a list that is linked one way, as that of skbs to be freed */
	struct net_device___traits *dev;
	struct sock___traits *sk;
	char cb[48];
	unsigned long _skb_refdst;
	unsigned int len;
	unsigned int data_len;
	__u8 cloned : 1;
	int skb_iif;
	__u32 mark;
	__be16 protocol;
	__u16 transport_header;
	__u16 network_header;
	__u16 mac_header; /* 0xffff: unset (skb_mac_header_was_set) */
	__u32 tail; /* offsets from head: 64-bit kernels (NET_SKBUFF_DATA_USES_OFFSET) */
	__u32 end;
	unsigned char *head;
	unsigned char *data;
	unsigned int truesize;
	struct {
		struct {
			int counter;
		} refs;
	} users;
};

struct skb_shared_info___traits {
	__u8 meta_len;
	__u16 gso_segs;
	struct sk_buff *frag_list;
	struct {
		int counter;
	} dataref;
};

struct tcp_skb_cb___traits {
	__u32 seq;
};

struct dst_entry___traits {
	unsigned short flags;
};

struct neighbour___traits {
	__u8 nud_state;
};

struct xdp_rxq_info___traits {
	struct net_device___traits *dev;
};

struct xdp_buff___traits {
	void *data;
	void *data_end;
	void *data_meta;
	void *data_hard_start;
	struct xdp_rxq_info___traits *rxq;
	__u32 flags; /* 5.18 */
};

/* drivers/net/veth.c */
struct veth_xdp_buff___traits {
	struct sk_buff___traits *skb;
};

struct nf_hook_state___traits {
	struct net_device___traits *in;
	struct net_device___traits *out;
};

struct bpf_sock_ops_kern___traits {
	struct sock___traits *sk;
	struct sk_buff *skb;
};

struct bpf_sockopt_kern___traits {
	struct sock___traits *sk;
};

struct task_struct___traits {
	int pid;
};

struct bpf_prog_aux___traits {
	__u32 id;
};

struct bpf_prog___traits {
	struct bpf_prog_aux___traits *aux;
};

struct flowi4___traits {
	__be32 daddr;
};

struct flowi6___traits {
	struct in6_addr___traits daddr;
};

struct fib6_result___traits {
	__u32 fib6_flags;
};

struct fib6_table___traits {
	__u32 tb6_id;
};

#pragma clang attribute pop

enum sock_flags___traits {
	SOCK_RCVMARK___traits, /* 5.19; its number differs between kernels */
};

/* The context of netfilter programs (struct bpf_nf_ctx, include/linux/netfilter/nf_bpf_link.h). */
struct __trait_nf_ctx {
	void *state;
	struct sk_buff *skb;
};

static __always_inline struct sk_buff *__trait_sock_ops_skb(struct bpf_sock_ops *ctx)
{
	__u64 skb = __trait_kernel_field(__trait_kern_ctx(ctx), struct bpf_sock_ops_kern___traits, skb);

	return skb ? __trait_kernel_pointer(skb, struct sk_buff___traits) : (void *)0;
}

/* The kernel's skb behind a program's context; NULL where there is none: in XDP, and in some callbacks of sock_ops. */
#define __trait_skb_of(ctx)                                                                                            \
	_Generic((ctx),                                                                                                \
		struct xdp_md *: (struct sk_buff *)0,                                                                  \
		struct __sk_buff *: (struct sk_buff *)__trait_kern_ctx((void *)(ctx)),                                 \
		struct bpf_nf_ctx *: ((struct __trait_nf_ctx *)(ctx))->skb,                                            \
		struct bpf_sock_ops *: __trait_sock_ops_skb((void *)(ctx)),                                            \
		struct sk_buff *: (ctx),                                                                               \
		const struct sk_buff *: (ctx))

#endif /* __PACKET_TRAITS_KERNEL_BPF_H */
