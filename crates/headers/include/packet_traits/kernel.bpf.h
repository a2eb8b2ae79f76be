/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Reading the kernel's memory: the one place that says how. Included by traits.bpf.h; nothing here touches a packet.
 *
 * An address is a number, also where the kernel's structure has a pointer. A pointer that is loaded through BTF
 * (`skb->head`) is a number to the verifier up to Linux 6.16, untrusted memory from 6.17 (btf_struct_walk in
 * kernel/bpf/btf.c), and so is its sum with an offset from 7.1: then a program loads only if the compiler happens to emit
 * no 32-bit arithmetic on it. So such members are read by __trait_kernel_field, never by `->`.
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

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

struct sk_buff;

/* Only its BTF id is used: 16 bytes that may be read as two words. */
struct in6_addr___traits {
	__u8 bytes[16];
};

/* kernel/bpf/helpers.c, weak so that objects load on kernels without them */
extern void *bpf_cast_to_kern_ctx(void *obj) __ksym __weak;
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;

#define __trait_hide(var) asm volatile("" : "+r"(var))

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

/*
 * What is at an address, as a number of this type. Hidden from clang, which could otherwise share the load with a direct
 * read; the verifier wants one instruction to load through one kind of pointer.
 */
#define __trait_kernel_load(type, address)                                                                             \
	({                                                                                                             \
		type __loaded;                                                                                         \
                                                                                                                       \
		if (__trait_can_cast()) {                                                                              \
			__loaded = *(type *)__trait_kernel_words(address);                                             \
			__trait_hide(__loaded);                                                                        \
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
	__trait_hide(word);
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

/*
 * The difference of two pointer members of the structure behind a program's context (from __trait_kern_ctx). The verifier may
 * know both as numbers or both as memory; their difference is a number in either case.
 */
#define __trait_kernel_distance(from, flavour, member, less)                                                           \
	({                                                                                                             \
		const void *__from = (from);                                                                           \
		__u64 __distance, __less;                                                                              \
                                                                                                                       \
		if (__trait_can_cast()) {                                                                              \
			asm volatile("%0 = *(u64 *)(%2 + 0)\n"                                                         \
				     "%1 = *(u64 *)(%3 + 0)\n"                                                         \
				     "%0 -= %1"                                                                        \
				     : "=&r"(__distance), "=&r"(__less)                                                \
				     : "r"(__from + bpf_core_field_offset(flavour, member)),                           \
				       "r"(__from + bpf_core_field_offset(flavour, less)));                            \
		} else {                                                                                               \
			__distance = __trait_kernel_field(__from, flavour, member) -                                   \
				     __trait_kernel_field(__from, flavour, less);                                      \
		}                                                                                                      \
		__distance;                                                                                            \
	})

/* The type of a number that is as long as `value`. */
#define __trait_number_of(value)                                                                                       \
	__typeof__(__builtin_choose_expr(                                                                              \
		sizeof(value) == 1, (__u8)0,                                                                           \
		__builtin_choose_expr(sizeof(value) == 2, (__u16)0,                                                    \
				      __builtin_choose_expr(sizeof(value) == 4, (__u32)0, (__u64)0))))

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
 * The parts of an skb that lead to its metadata. Suffixes make CO-RE flavours, which can stand beside vmlinux.h.
 */
struct sk_buff___traits {
	__u16 mac_header; /* 0xffff: unset (skb_mac_header_was_set) */
	__u32 end; /* offset from head: 64-bit kernels (NET_SKBUFF_DATA_USES_OFFSET) */
	unsigned char *head;
	unsigned int len;
	unsigned char *data;
} __attribute__((preserve_access_index));

#endif /* __PACKET_TRAITS_KERNEL_BPF_H */
