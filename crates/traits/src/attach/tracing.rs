//! Tracepoints with BTF arguments (`SEC("tp_btf/kfree_skb")`): places in the kernel that packets pass.

use std::os::fd::BorrowedFd;

use libbpf_sys::BPF_PROG_TYPE_TRACING;

use super::attachment::Attachment;
use super::error::{AttachError, Attempt};
use super::hook::Hook;
use super::link;
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
    let info = link::info(std::os::fd::AsFd::as_fd(&link)).ok();
    if let Some((_, target)) = info.and_then(|info| info.place) {
        attempt = Attempt::new(Hook::TpBtf, target);
    }
    Ok(Attachment::from_link(attempt, id, link))
}
