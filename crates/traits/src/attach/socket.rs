//! Socket filters: a program that sees, and may shorten or drop, the packets that one socket receives.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use libbpf_sys::BPF_PROG_TYPE_SOCKET_FILTER;

use super::attachment::Attachment;
use super::error::{AttachError, Attempt, errno_of};
use super::hook::Hook;
use super::program::Program;
use super::target::Target;

/// Attaches a program (`SEC("socket")`) as the filter of a socket of any kind. A filter that the socket has is replaced.
///
/// The attachment holds a duplicate of the descriptor: until it is dropped, or [kept](Attachment::keep), closing
/// `socket` does not close the socket.
///
/// # Errors
/// [`AttachError::Refused`] if the descriptor is not a socket, or the program is larger than
/// `net.core.optmem_max` allows; [`AttachError::NotPermitted`] if `SO_LOCK_FILTER` is set;
/// [`AttachError::WrongProgram`].
pub fn attach(program: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> Result<Attachment, AttachError> {
    let attempt = Attempt::new(Hook::SocketFilter, Target::socket(socket));
    let id = Program::expect(program, BPF_PROG_TYPE_SOCKET_FILTER, &attempt)?.id;
    let socket = socket.try_clone_to_owned().map_err(|error| {
        attempt.refused(errno_of(&error), "the descriptor was not duplicated", "raise RLIMIT_NOFILE")
    })?;
    set(&socket, libc::SO_ATTACH_BPF, program.as_raw_fd()).map_err(|errno| explain(&attempt, errno))?;
    Ok(Attachment::from_socket(attempt, id, socket))
}

/// Removes the filter; a socket without one is fine.
pub(super) fn remove_filter(socket: BorrowedFd<'_>) -> Result<(), i32> {
    match set(&socket, libc::SO_DETACH_BPF, 0) {
        Err(libc::ENOENT) => Ok(()),
        result => result,
    }
}

fn explain(attempt: &Attempt, errno: i32) -> AttachError {
    match errno {
        libc::EPERM => AttachError::NotPermitted {
            attempt: attempt.clone(),
            hint: "SO_LOCK_FILTER is set on the socket, so its filter stays as it is: use a new socket",
            errno,
        },
        libc::ENOTSOCK => attempt.refused(errno, "the descriptor is not a socket", "pass the socket's descriptor"),
        libc::ENOMEM => {
            attempt.refused(errno, "the program is larger than a socket may hold", "raise net.core.optmem_max")
        }
        _ => attempt.refused(errno, "the socket refused the filter", "check the program with `bpftool prog`"),
    }
}

fn set(socket: &impl AsRawFd, option: libc::c_int, value: RawFd) -> Result<(), i32> {
    // SAFETY: the value is an int and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result < 0 { Err(errno_of(&std::io::Error::last_os_error())) } else { Ok(()) }
}
