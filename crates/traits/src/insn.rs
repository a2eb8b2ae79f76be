//! Programs of a few instructions, which need no compiler and no object file: loading one takes well under a
//! millisecond. Codes are from include/uapi/linux/bpf.h and bpf_common.h.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use libbpf_sys::{bpf_attach_type, bpf_insn, bpf_prog_load_opts, bpf_prog_type, bpf_test_run_opts};

/// What the kernel shows as the name of a probe's program.
const NAME: &CStr = c"traits_doctor";

/// BPF_PSEUDO_KFUNC_CALL: what is called is a function of the kernel, by the number of its BTF type.
pub(crate) const PSEUDO_KFUNC: u8 = 2;

/// BPF_JMP | BPF_CALL
pub(crate) const CALL: u8 = 0x85;

/// BPF_LD | BPF_IMM | BPF_DW: a constant of 64 bits, in two instructions.
pub(crate) const LOAD_CONSTANT: u8 = 0x18;

fn insn(code: u8, to: u8, from: u8, off: i16, imm: i32) -> bpf_insn {
    bpf_insn { code, _bitfield_1: bpf_insn::new_bitfield_1(to, from), off, imm, ..Default::default() }
}

/// `to = value`
pub(crate) fn set(to: u8, value: i32) -> bpf_insn {
    insn(0xb7, to, 0, 0, value) // BPF_ALU64 | BPF_MOV | BPF_K
}

/// `to = (u32)value`
pub(crate) fn set32(to: u8, value: i32) -> bpf_insn {
    insn(0xb4, to, 0, 0, value) // BPF_ALU | BPF_MOV | BPF_K
}

/// `to = from`
pub(crate) fn copy(to: u8, from: u8) -> bpf_insn {
    insn(0xbf, to, from, 0, 0) // BPF_ALU64 | BPF_MOV | BPF_X
}

/// `to += value`
pub(crate) fn add(to: u8, value: i32) -> bpf_insn {
    insn(0x07, to, 0, 0, value) // BPF_ALU64 | BPF_ADD | BPF_K
}

/// `to = *(u32 *)(from + off)`
pub(crate) fn load32(to: u8, from: u8, off: i16) -> bpf_insn {
    insn(0x61, to, from, off, 0) // BPF_LDX | BPF_MEM | BPF_W
}

/// `*(u64 *)(to + off) = value`
pub(crate) fn store64(to: u8, off: i16, value: i32) -> bpf_insn {
    insn(0x7a, to, 0, off, value) // BPF_ST | BPF_MEM | BPF_DW
}

/// Skips the next `count` instructions if the registers are equal.
pub(crate) fn skip_if_equal(one: u8, other: u8, count: i16) -> bpf_insn {
    insn(0x1d, one, other, count, 0) // BPF_JMP | BPF_JEQ | BPF_X
}

/// Skips the next `count` instructions if the register is `value`.
pub(crate) fn skip_if(register: u8, value: i32, count: i16) -> bpf_insn {
    insn(0x15, register, 0, count, value) // BPF_JMP | BPF_JEQ | BPF_K
}

/// Calls a helper.
pub(crate) fn call(helper: u32) -> bpf_insn {
    insn(CALL, 0, 0, 0, helper.cast_signed())
}

/// Calls a function of the kernel, by its BTF type.
pub(crate) fn call_kernel(function: u32) -> bpf_insn {
    insn(CALL, 0, PSEUDO_KFUNC, 0, function.cast_signed())
}

/// Returns r0.
pub(crate) fn exit() -> bpf_insn {
    insn(0x95, 0, 0, 0, 0) // BPF_JMP | BPF_EXIT
}

/// A program to load.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) type_: bpf_prog_type,
    pub(crate) attach_type: bpf_attach_type,
    /// BTF type of the tracepoint; 0 for other programs.
    pub(crate) btf_id: u32,
    pub(crate) flags: u32,
    pub(crate) instructions: Vec<bpf_insn>,
}

impl Source {
    /// A program of these instructions.
    pub(crate) fn new(type_: bpf_prog_type, instructions: Vec<bpf_insn>) -> Source {
        Source { type_, attach_type: 0, btf_id: 0, flags: 0, instructions }
    }

    /// A program that only returns a value.
    pub(crate) fn returning(type_: bpf_prog_type, value: i32) -> Source {
        Source::new(type_, vec![set32(0, value), exit()])
    }

    /// For one of the hooks that its type has.
    pub(crate) fn at(self, attach_type: bpf_attach_type) -> Source {
        Source { attach_type, ..self }
    }

    /// Loads it.
    pub(crate) fn load(&self) -> Result<OwnedFd, String> {
        let mut options = bpf_prog_load_opts {
            sz: size_of::<bpf_prog_load_opts>() as libbpf_sys::size_t,
            expected_attach_type: self.attach_type,
            attach_btf_id: self.btf_id,
            prog_flags: self.flags,
            ..Default::default()
        };
        // SAFETY: names are NUL-terminated, the instructions as many as is said, and the options hold no pointers.
        let program = unsafe {
            libbpf_sys::bpf_prog_load(
                self.type_,
                NAME.as_ptr(),
                c"Dual MIT/GPL".as_ptr(),
                self.instructions.as_ptr(),
                self.instructions.len() as libbpf_sys::size_t,
                &mut options,
            )
        };
        if program < 0 {
            return Err(format!("the kernel does not load such a program ({})", words(-program)));
        }
        // SAFETY: the call succeeded, so it is a new descriptor that nothing else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(program) })
    }
}

/// Runs a program on a made-up packet, and returns what it returns.
pub(crate) fn run(program: BorrowedFd<'_>) -> Result<u32, String> {
    let packet = [0u8; 64];
    let mut options = bpf_test_run_opts {
        sz: size_of::<bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: packet.as_ptr().cast(),
        data_size_in: packet.len() as u32,
        ..Default::default()
    };
    // SAFETY: the only pointer is to the packet, which is only read, and its length is given.
    match unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) } {
        error if error < 0 => Err(format!("the kernel does not run it on a packet ({})", words(-error))),
        _ => Ok(options.retval),
    }
}

/// An errno in words.
pub(crate) fn words(errno: i32) -> String {
    const ENOTSUPP: i32 = 524; // the kernel's own, which gets out here and there (include/linux/errno.h)
    let text = io::Error::from_raw_os_error(errno).to_string();
    match errno {
        ENOTSUPP => "Operation not supported".to_owned(),
        _ => text.split(" (os error").next().unwrap_or_default().to_owned(),
    }
}
