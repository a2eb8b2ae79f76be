/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * What is written as it is only for the verifier, or for what clang makes of it: each idiom once. Included by kernel.bpf.h.
 * All of it is internal.
 *
 * Each entry says what it does, the symptom without it, and when it may go. "clang 14 to 23" are 14, 19 and 23, whose
 * instructions were compared with and without the entry. "Never" means that all kernels and compilers so far need it.
 *
 * Four habits have no name, since each is a test or a member in one place:
 * - trait_view.direct is a flag in place of a test of `end`: the verifier does not know that a pointer to the packet is not 0.
 * - __trait_xdp_set_slow tests again whether the program is bound. An unbound one does not get there, but the verifier must
 *   see that.
 * - __trait_frame_len compares with the packet's end again: the verifier may not see the bound of a place that depends on the
 *   packet.
 * - __trait_rfc_set and __trait_rfc_del do the same in two branches: the verifier does not know which region it is.
 */
#ifndef __PACKET_TRAITS_VERIFIER_BPF_H
#define __PACKET_TRAITS_VERIFIER_BPF_H

#include <bpf/bpf_helpers.h>

/* A program need not use all that a header has. */
#define __trait_unused __attribute__((unused))

/*
 * Hiding a value from clang.
 */

/*
 * Does: from here on clang knows nothing of the variable.
 * Symptom: that of the entries below, which say what it is hidden for; a benchmark's constant is computed with.
 * May go: with the last of them.
 */
#define __trait_hide(var) asm volatile("" : "+r"(var))

/*
 * Does: a bound of this number that follows, a mask or a comparison, is an instruction for this number.
 * Symptom: clang leaves out a mask that it can do without (clang 22 and 23 in __trait_xdp_area_at), or shares one comparison
 * between several (clang 14 to 23 in value_at of the socket programs); the verifier then knows no bound.
 * May go: not known; clang 23 needs it.
 */
#define __trait_keep_bound(number) __trait_hide(number)

/*
 * Does: this number is computed as a number.
 * Symptom: clang computes with the pointers that it is the difference of, or that it is added to: it subtracts from a pointer
 * to the packet (read_frame of the tracer), computes a pointer in its place (is_known of the socket programs), or adds to a
 * pointer to the stack by an OR (__trait_copy_skb_head). The verifier refuses such arithmetic.
 * May go: not known; clang 14 to 23 emit other instructions without.
 */
#define __trait_keep_number(number) __trait_hide(number)

/*
 * Does: the pointer that is compared with the packet's end is the one that is used.
 * Symptom: clang compares another one, or makes one `!=` of a `>` and a `<` (clang 14 to 23 in __trait_xdp_area_end), of
 * which the verifier does not learn how much of the packet is there.
 * May go: not known; clang 23 needs it.
 */
#define __trait_keep_checked(pointer) __trait_hide(pointer)

/*
 * Does: a choice is made once, and its result kept.
 * Symptom: clang asks again at each use of the result (clang 14 to 23 in give_last of the socket programs), and old verifiers
 * do not know that the answer is the same.
 * May go: not known; the kernel that knows was not noted.
 */
#define __trait_keep_choice(result) __trait_hide(result)

/*
 * Does: a load stays apart from another of the same place.
 * Symptom: clang may share it with one through another kind of pointer; the verifier wants one instruction to load through
 * one kind ("same insn cannot be used with different pointers").
 * May go: not known.
 */
#define __trait_keep_load(loaded) __trait_hide(loaded)

/*
 * Does: a loop that stores this zero stays a loop.
 * Symptom: clang 14 and 19 stop with "A call to built-in function 'memset' is not supported" (zero_words of the socket
 * programs).
 * May go: with a clang between 19 and 23 as the oldest; 23 does without.
 */
#define __trait_keep_loop(zero) __trait_hide(zero)

/*
 * Does: stores a zero of this type, by an instruction of its own in this place.
 * Symptom: none is known; without, clang 14 to 23 only store in another order. It is here lest clang make a call of memset of
 * many, as of a loop.
 * May go: as __trait_keep_loop.
 */
#define __trait_store_zero(type, to) (*(volatile type *)(to) = 0)

/*
 * Does: an argument of a function that is not inlined is passed, though the function does not use it.
 * Symptom: clang passes nothing, and the verifier refuses a function that gets no context.
 * May go: never; clang may do so. A function that is __trait_global does not need it.
 */
#define __trait_use(argument) asm volatile("" : : "r"(argument))

/*
 * The context.
 */

/*
 * Does: loads a field of 4 bytes of the context, as a pointer or as a number.
 * Symptom: clang 14 keeps `ctx + offset` in a register, which the verifier refuses ("modified ctx ptr"); or clang reuses a
 * pointer to the packet that a helper has made invalid.
 * May go: never, for the latter; which clang no longer does the former is not known.
 */
#define __trait_ctx_ptr(type, ctx, field)                                                                              \
	({                                                                                                             \
		void *__p;                                                                                             \
		asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(__p) : "r"(ctx), "i"(__builtin_offsetof(type, field)));   \
		__p;                                                                                                   \
	})

#define __trait_ctx_load(type, ctx, field) ((__u32)(__u64)__trait_ctx_ptr(type, ctx, field))

/* Does: stores to such a field. Symptom, may go: as above. */
#define __trait_ctx_store(type, ctx, field, value)                                                                     \
	asm volatile("*(u32 *)(%0 + %1) = %2"                                                                          \
		     :                                                                                                 \
		     : "r"(ctx), "i"(__builtin_offsetof(type, field)), "r"((__u64)(__u32)(value))                      \
		     : "memory")

/*
 * Does: a field of the context that is loaded, or stored to, by each use.
 * Symptom: clang 14 to 23 store two fields of 4 bytes that lie together, `level` and `optname` of struct bpf_sockopt, as one
 * word, which the verifier refuses (cg_sockopt_is_valid_access in kernel/bpf/cgroup.c).
 * May go: not known; clang 23 needs it.
 */
#define __trait_ctx_field(ctx, field) (*(volatile __typeof__((ctx)->field) *)&(ctx)->field)

/*
 * What the verifier is to know.
 */

/*
 * Does: a constant in a register, where a program returns it.
 * Symptom: clang may keep a verdict in half a word of the stack, where the verifier loses it: programs of cgroups and
 * netfilter, which may return 0 and 1 only, are refused.
 * May go: not known.
 */
#define __trait_constant(constant)                                                                                     \
	({                                                                                                             \
		int __constant;                                                                                        \
		asm volatile("%0 = %1" : "=r"(__constant) : "i"(constant));                                            \
		__constant;                                                                                            \
	})

/*
 * Does: a number of 64 bits that has been compared with `most`, a constant, is compared again in the register where it is.
 * Symptom: the verifier does not know of a copy on the stack what it has learnt of the register, and refuses the pointer that
 * the number is added to.
 * May go: with Linux 6.8 as the oldest.
 */
#define __trait_show_bound(number, most) asm volatile("if %0 <= %1 goto +1\n\t%0 = %1" : "+r"(number) : "i"(most))

/*
 * Does: a number from 1 to `most`, a power of 2, which the verifier sees. It is masked where clang cannot move the mask, and 1
 * is added behind that.
 * Symptom: verifiers learn nothing from a comparison with 0, and refuse a helper that may get a length of 0: policies with
 * `log` did not come up on 6.1.
 * May go: with Linux 6.8 as the oldest.
 */
#define __trait_positive(number, most)                                                                                 \
	({                                                                                                             \
		__u64 __less = (number) - 1;                                                                           \
                                                                                                                       \
		__trait_keep_bound(__less);                                                                            \
		(__less & ((most) - 1)) + 1;                                                                           \
	})

/*
 * Does: a number that is less than `end`, a power of 2, is masked, so that the verifier sees it too.
 * Symptom: the verifier does not know the bound of what is loaded, or comes as an argument of a global function, and refuses
 * the pointer that it is added to.
 * May go: never.
 */
#define __trait_below(number, end) ((number) & ((end) - 1))

/*
 * Does: a small value on the stack in a whole word.
 * Symptom: the verifier does not know the value of less than a word there. Programs of TC that may not ask for the process
 * (before 6.15) did not load on 6.12, where a flag says so.
 * May go: in the tracer with Linux 6.15 as the oldest.
 */
typedef __u64 __trait_tracked;

/*
 * Does: runs `act` with a constant `n` that is the size, 1, 2, 4, 8 or 16.
 * Symptom: the verifier checks an access of each length by itself; and clang calls memcpy of a length that is no constant.
 * May go: never.
 */
#define __TRAIT_FOR_SIZE(size, act)                                                                                    \
	switch (size) {                                                                                                \
		act(1) act(2) act(4) act(8) act(16)                                                                    \
	}

/*
 * Does: the alignment of a place on the stack for a value of this type.
 * Symptom: a value is stored in words of up to 8 bytes, and the verifier takes only aligned accesses to the stack.
 * May go: never.
 */
#define __trait_stack_align(type) (sizeof(type) >= 8 ? 8 : sizeof(type) ? sizeof(type) : 1)

/*
 * Does: copies `size` bytes, a constant, to or from a place of any alignment: clang knows it, and copies in words if it can.
 * Symptom, may go: as above.
 */
static __always_inline void __trait_copy_unaligned(void *to, const void *from, __u64 size)
{
	__builtin_memcpy(to, from, size);
}

/*
 * Pointers to the kernel's memory.
 */

/*
 * Does: the type of a number as long as `value`, to read a pointer as. Addresses are numbers in all of our code.
 * Symptom: a pointer that is loaded through BTF (`skb->head`) is a number to the verifier up to Linux 6.16, untrusted memory
 * from 6.17 (btf_struct_walk in kernel/bpf/btf.c), and so is its sum with an offset from 7.1: then a program loads only if
 * clang happens to emit no 32-bit arithmetic on it. The socket programs did not load from 7.1 on.
 * May go: never.
 */
#define __trait_number_of(value)                                                                                       \
	__typeof__(__builtin_choose_expr(                                                                              \
		sizeof(value) == 1, (__u8)0,                                                                           \
		__builtin_choose_expr(sizeof(value) == 2, (__u16)0,                                                    \
				      __builtin_choose_expr(sizeof(value) == 4, (__u32)0, (__u64)0))))

/*
 * Does: the difference of the two pointers that are at these addresses, as a number. Of 64 bits, whatever clang would have.
 * Symptom: as above. The verifier may know both as numbers or both as memory; their difference is a number in either case.
 * May go: never; two __trait_kernel_load do the same for a few instructions more.
 */
static __always_inline __u64 __trait_difference_at(const void *more, const void *less)
{
	__u64 difference, subtracted;

	asm volatile("%0 = *(u64 *)(%2 + 0)\n"
		     "%1 = *(u64 *)(%3 + 0)\n"
		     "%0 -= %1"
		     : "=&r"(difference), "=&r"(subtracted)
		     : "r"(more), "r"(less));
	return difference;
}

/*
 * Keeping the verifier's work, and the stack, small.
 */

/*
 * Does: a global function, which the verifier checks once for a program, with arguments of which it knows nothing.
 * Symptom: of a function that is inlined or static, the verifier follows every way through it in every place that calls it:
 * reserving and publishing a headroom cost 110,000 instructions inlined, and 2,400 now (clang 19).
 * May go: never. It is weak, because clang otherwise leaves out an argument that the function does not use, and because an
 * object may be linked of several.
 */
#define __trait_global __weak __noinline

/*
 * Does: a function has a frame of its own on the stack.
 * Symptom: the program's frame is more than 512 bytes long, or those of the functions that call each other are (MAX_BPF_STACK).
 * May go: never.
 */
#define __trait_noinline_for_stack __noinline

/* Always 0, and the verifier cannot know: `zero` of __trait_forget. */
static volatile __u64 __trait_unknown_zero __trait_unused;

/*
 * Does: the value, of which the verifier forgets what it knew.
 * Symptom: the verifier follows each way to a test on which the value is another one: a policy of 500 rules went beyond a
 * million instructions. It is volatile, because clang otherwise keeps the sum for the next test, and with it what the verifier
 * has learnt there.
 * May go: never.
 */
static __always_inline __u64 __trait_forget(__u64 value, __u64 zero)
{
	asm volatile("%0 += %1" : "+r"(value) : "r"(zero));
	return value;
}

/*
 * Does: what a pointer to such a type points to is loaded again by each use.
 * Symptom, may go: as above, of what a test has taught the verifier about a register.
 */
#define __trait_reloaded volatile

/*
 * Does: all ones if the highest bit is set, else 0. Hidden from clang, which would make branches of what is done with it.
 * Symptom: the verifier follows both sides of each branch, in every place that the code is called from: too many in all.
 * May go: never.
 */
static __always_inline __u64 __trait_sign_mask(__u64 word)
{
	__trait_hide(word);
	word = (__s64)word >> 63;
	__trait_hide(word);
	return word;
}

/* Does: the higher of two numbers, without a branch. Symptom, may go: as above. */
static __always_inline __u32 __trait_higher(__u32 one, __u32 other)
{
	__u64 more = (__u64)other - one;

	return one + (more & ~__trait_sign_mask(more));
}

/* Does: all ones if the condition holds, else 0, by arithmetic. Symptom, may go: as above. */
#define __trait_mask_if(condition) (-(__u32)(condition))

#endif /* __PACKET_TRAITS_VERIFIER_BPF_H */
