//! Tracepoints with BTF arguments (`SEC("tp_btf/kfree_skb")`) and functions (`SEC("fentry/ip_defrag")`): places in the
//! kernel that packets pass.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_sys::{BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY, bpf_insn, bpf_prog_load_opts};

use super::attachment::Attachment;
use super::error::{AttachError, Attempt};
use super::hook::Hook;
use super::link::{self, check};
use super::program::Program;
use super::target::Target;

/// Attaches a `tp_btf` program to the tracepoint it was loaded for. It sees the packets of all namespaces.
///
/// # Errors
/// [`AttachError::NotPermitted`]; [`AttachError::WrongProgram`]; [`AttachError::Refused`] if the program was not loaded
/// for a tracepoint.
pub fn attach(program: BorrowedFd<'_>) -> Result<Attachment, AttachError> {
    let name = String::from("the tracepoint the program was loaded for");
    let mut attempt = Attempt::new(Hook::TpBtf, Target::Tracepoint { name });
    let id = Program::expect(program, BPF_PROG_TYPE_TRACING, &attempt)?.id;
    let link = link::open_raw_tracepoint(program).map_err(|errno| {
        attempt.refused(
            errno,
            "the kernel refused the link",
            "check the program's SEC(\"tp_btf/…\"), and that the tracepoint is in this kernel: \
             `bpftool btf dump file /sys/kernel/btf/vmlinux | grep btf_trace_`",
        )
    })?;
    // The kernel knows the tracepoint from the program's BTF.
    let info = link::info(link.as_fd()).ok();
    if let Some((_, target)) = info.and_then(|info| info.place) {
        attempt = Attempt::new(Hook::TpBtf, target);
    }
    Ok(Attachment::from_link(attempt, id, link))
}

/// Attaches an `fentry` or `fexit` program to the function, of the kernel or of another BPF program, that it was loaded
/// for; `name` is the function's, for errors. Not every kernel has this: many are built or run without it.
///
/// # Errors
/// [`AttachError::NotPermitted`]; [`AttachError::WrongProgram`]; [`AttachError::Refused`] if the kernel does not let
/// programs run at functions, or not at this one.
pub fn attach_function(program: BorrowedFd<'_>, name: &str) -> Result<Attachment, AttachError> {
    let attempt = Attempt::new(Hook::Function, Target::Function { name: name.to_owned() });
    let id = Program::expect(program, BPF_PROG_TYPE_TRACING, &attempt)?.id;
    let link = link::open_raw_tracepoint(program).map_err(|errno| {
        attempt.refused(
            errno,
            "the kernel refused the link",
            "a tracepoint may show the same: `bpftool btf dump file /sys/kernel/btf/vmlinux | grep btf_trace_` lists them",
        )
    })?;
    Ok(Attachment::from_link(attempt, id, link))
}

/// A function that every kernel with BTF has, and that nothing calls but a test of the kernel's (net/bpf/test_run.c).
const NEVER_CALLED: &CStr = c"bpf_fentry_test1";

/// Whether this kernel lets programs run at its functions, found by attaching one that does nothing, and taking it away.
///
/// # Errors
/// The errno that refused it.
pub fn try_functions() -> Result<(), i32> {
    // SAFETY: takes a NUL-terminated name and a number.
    let function = check(unsafe { libbpf_sys::libbpf_find_vmlinux_btf_id(NEVER_CALLED.as_ptr(), BPF_TRACE_FENTRY) })?;
    let mut options = bpf_prog_load_opts {
        sz: size_of::<bpf_prog_load_opts>() as libbpf_sys::size_t,
        expected_attach_type: BPF_TRACE_FENTRY,
        attach_btf_id: function.cast_unsigned(),
        ..Default::default()
    };
    // r0 = 0; exit (include/uapi/linux/bpf.h: BPF_ALU64 | BPF_MOV | BPF_K, BPF_JMP | BPF_EXIT)
    let program = [0xb7, 0x95].map(|code| bpf_insn { code, ..Default::default() });
    // SAFETY: names are NUL-terminated, the instructions as many as is said, and the options hold no pointers.
    let program = check(unsafe {
        libbpf_sys::bpf_prog_load(
            BPF_PROG_TYPE_TRACING,
            c"try_functions".as_ptr(),
            c"GPL".as_ptr(),
            program.as_ptr(),
            program.len() as libbpf_sys::size_t,
            &mut options,
        )
    })?;
    // SAFETY: the call succeeded, so it is a new descriptor that nothing else owns.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    link::open_raw_tracepoint(program.as_fd()).map(drop)
}
