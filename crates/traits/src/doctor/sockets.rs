//! Options of sockets that an application's traits need, and AF_XDP.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr, thread,
};

use rustix::{
    net::{
        AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt,
        xdp::{SocketAddrXdp, SocketAddrXdpFlags, XdpUmemReg, XdpUmemRegFlags},
    },
    process::Uid,
    thread::set_thread_res_uid,
};

use super::{Finding, Ground, Probe};
use crate::{attach::udp_socket, insn::words};

// include/uapi/asm-generic/socket.h
const SO_RCVMARK: libc::c_int = 75;
const SO_RCVPRIORITY: libc::c_int = 82;

/// The user id of nobody, who has no privileges.
const NOBODY: u32 = 65534;

/// Tries the options on sockets of its own, and AF_XDP on the interface of `ground`, in whose namespace the calling thread
/// must be.
pub fn sockets(ground: &Ground) -> Vec<Finding> {
    let rcvmark = with_option(SO_RCVMARK);
    let unprivileged = match &rcvmark {
        Ok(()) => Finding::tried(Probe::RcvMarkUnprivileged, unprivileged(|| with_option(SO_RCVMARK))),
        Err(why) => Finding::no(Probe::RcvMarkUnprivileged, why),
    };
    vec![
        Finding::tried(Probe::RcvMark, rcvmark),
        unprivileged,
        Finding::tried(Probe::RcvPriority, with_option(SO_RCVPRIORITY)),
        Finding::tried(Probe::AfXdp, af_xdp(ground.ifindex)),
    ]
}

/// Turns an option on for a new UDP socket.
fn with_option(option: libc::c_int) -> Result<(), String> {
    let socket = udp_socket().map_err(|error| format!("making a UDP socket: {error}"))?;
    set_option(socket.as_fd(), libc::SOL_SOCKET, option, 1).map_err(words)
}

/// Runs `f` on a thread that has root's privileges no more.
fn unprivileged(f: impl FnOnce() -> Result<(), String> + Send) -> Result<(), String> {
    let run = || {
        // The function of libc would change all threads; the system call changes this one, which ends then. An effective
        // user other than root has no effective capabilities (capabilities(7)).
        set_thread_res_uid(None::<Uid>, Uid::from_raw(NOBODY), None::<Uid>)
            .map_err(|error| format!("cannot become nobody ({})", io::Error::from(error)))?;
        f()
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap_or_else(|_| Err("the thread that tried it failed".to_owned())))
}

/// Binds an AF_XDP socket in copy mode to queue 0, as xdp-sockets need it to receive.
fn af_xdp(ifindex: u32) -> Result<(), String> {
    const FRAME: u32 = 4096;
    const FRAMES: u32 = 4;
    let len = (FRAME * FRAMES) as usize;
    let socket = socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)
        .map_err(|error| format!("making an AF_XDP socket: {}", io::Error::from(error)))?;
    // SAFETY: asks for new memory at an address of the kernel's choice.
    let memory = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        libc::mmap(ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    if memory == libc::MAP_FAILED {
        return Err(format!("memory for frames: {}", io::Error::last_os_error()));
    }
    let bound = bind_af_xdp(socket.as_fd(), ifindex, memory, len, FRAME, FRAMES);
    // The kernel holds the pages itself until the socket is gone, which is now.
    drop(socket);
    // SAFETY: made above, and nothing refers to it.
    unsafe { libc::munmap(memory, len) };
    bound
}

fn bind_af_xdp(
    socket: BorrowedFd<'_>,
    ifindex: u32,
    memory: *mut libc::c_void,
    len: usize,
    frame: u32,
    frames: u32,
) -> Result<(), String> {
    let region = XdpUmemReg {
        addr: memory.expose_provenance() as u64,
        len: len as u64,
        chunk_size: frame,
        headroom: 0,
        flags: XdpUmemRegFlags::empty(),
        tx_metadata_len: 0,
    };
    sockopt::set_xdp_umem_reg(socket, region)
        .map_err(|errno| format!("the socket does not take memory ({})", words(errno.raw_os_error())))?;
    sockopt::set_xdp_umem_fill_ring_size(socket, frames)
        .and_then(|()| sockopt::set_xdp_umem_completion_ring_size(socket, frames))
        .and_then(|()| sockopt::set_xdp_rx_ring_size(socket, frames))
        .map_err(|errno| format!("the socket does not make its rings ({})", words(errno.raw_os_error())))?;
    bind(socket, &SocketAddrXdp::new(SocketAddrXdpFlags::XDP_COPY, ifindex, 0))
        .map_err(|error| format!("the socket is not bound to a queue ({})", io::Error::from(error)))
}

/// Sets an option that is an int; an errno if it is refused.
pub(super) fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> Result<(), i32> {
    // SAFETY: the value is readable for its size, which is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)) } else { Ok(()) }
}
