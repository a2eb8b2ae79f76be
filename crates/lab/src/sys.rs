//! The system calls that the standard library lacks, as safe functions over owned descriptors. No policy here.

use std::ffi::CStr;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{null, null_mut};
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_long(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes over a descriptor that a system call has just returned.
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers pass a descriptor that the kernel has just given to them and to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Moves the calling thread into a new network namespace.
pub(crate) fn unshare_net() -> io::Result<()> {
    // SAFETY: unshare takes no pointers; it changes the calling thread only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Moves the calling thread into the network namespace behind `fd`. Async-signal-safe.
pub(crate) fn setns_net(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns takes no pointers; it changes the calling thread only.
    check(unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Has the kernel kill the calling process when the thread that forked it ends. Async-signal-safe.
pub(crate) fn die_with_parent(parent: u32) -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes one integer.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    // SAFETY: getppid takes nothing and cannot fail.
    if unsafe { libc::getppid() }.cast_unsigned() == parent {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

/// A new instance of a file system as a mount that is attached nowhere (fsopen(2), fsmount(2); Linux 5.2).
pub(crate) fn detached_mount(fs_type: &CStr) -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: libc::c_uint = 1; // include/uapi/linux/mount.h
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    const FSMOUNT_CLOEXEC: libc::c_uint = 1;
    let descriptor =
        |result: libc::c_long| check_long(result).map(|fd| own(RawFd::try_from(fd).expect("an fd is an int")));

    // SAFETY: `fs_type` is a NUL-terminated string that outlives the call.
    let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, fs_type.as_ptr(), FSOPEN_CLOEXEC) })?;
    // SAFETY: FSCONFIG_CMD_CREATE takes neither key nor value, both pointers are null.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            null::<libc::c_char>(),
            null::<libc::c_void>(),
            0,
        )
    })?;
    // SAFETY: fsmount takes no pointers.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
}

/// An interface request for `device`, everything else zero.
fn interface_request(device: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data for which all zeroes is valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

/// Any socket of the calling thread's network namespace, to send interface ioctls through.
fn ioctl_socket() -> io::Result<OwnedFd> {
    // SAFETY: socket takes no pointers.
    check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }).map(own)
}

/// The index of an interface of the calling thread's network namespace.
pub(crate) fn interface_index(device: &str) -> io::Result<u32> {
    let mut request = interface_request(device)?;
    let socket = ioctl_socket()?;
    // SAFETY: SIOCGIFINDEX reads the name and writes the index of the ifreq it is given.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) })?;
    // SAFETY: SIOCGIFINDEX has filled this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex }.cast_unsigned())
}

/// Whether an interface of the calling thread's network namespace is up and has a carrier (IFF_UP and IFF_RUNNING).
pub(crate) fn interface_runs(device: &str) -> io::Result<bool> {
    let mut request = interface_request(device)?;
    let socket = ioctl_socket()?;
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of the ifreq it is given.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    // SAFETY: SIOCGIFFLAGS has filled this member of the union.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    let wanted = libc::IFF_UP | libc::IFF_RUNNING;
    Ok(flags & wanted == wanted)
}

/// `struct ethtool_value` (include/uapi/linux/ethtool.h).
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// Runs an ethtool command that takes and returns one u32, on an interface of the calling thread's network namespace.
pub(crate) fn ethtool(device: &str, command: u32, data: u32) -> io::Result<u32> {
    let mut value = EthtoolValue { cmd: command, data };
    let mut request = interface_request(device)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = ioctl_socket()?;
    // SAFETY: the ifreq points to an ethtool_value, which is what the commands of this crate read and write.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) })?;
    Ok(value.data)
}

/// Waits until `fd` can be read; `false` after `timeout`, or early if a signal came.
pub(crate) fn readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let milliseconds = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: `poll` is one pollfd, and one is what the call is told.
    match check(unsafe { libc::poll(&raw mut poll, 1, milliseconds) }) {
        Ok(ready) => Ok(ready > 0),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
    }
}

/// A link-layer address that names only an interface.
fn link_address(ifindex: u32) -> io::Result<libc::sockaddr_ll> {
    // SAFETY: sockaddr_ll is plain data for which all zeroes is valid.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    Ok(address)
}

/// Bytes of frames that may wait in a packet socket, buffers and all: some ten thousand small frames.
const CAPTURE_BUFFER: libc::c_int = 32 << 20;

/// A raw AF_PACKET socket for all protocols on one interface of the calling thread's network namespace.
pub(crate) fn packet_socket(ifindex: u32) -> io::Result<OwnedFd> {
    let address = link_address(ifindex)?;
    // SAFETY: socket takes no pointers. Protocol 0 receives nothing until bind names one, so that no frame of
    // another interface slips in between.
    let socket = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) }).map(own)?;
    let buffer = CAPTURE_BUFFER;
    // SAFETY: the option value is an int of the length given.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const buffer).cast(),
            size_of_val(&buffer) as libc::socklen_t,
        )
    })?;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_ll of the length given.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

/// Receives one frame without waiting: its length and `sll_pkttype`.
pub(crate) fn receive_frame(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, u8)> {
    // SAFETY: sockaddr_ll is plain data for which all zeroes is valid.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: buffer, address and their lengths describe memory that this function holds exclusively.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            (&raw mut address).cast(),
            &raw mut length,
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    Ok((received, address.sll_pkttype))
}

/// Sends one frame through a bound packet socket.
pub(crate) fn transmit_frame(socket: BorrowedFd<'_>, frame: &[u8]) -> io::Result<()> {
    // SAFETY: `frame` is readable for its whole length; no address is given, so the bound interface is used.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, null_mut::<libc::c_void>().cast(), 0)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends datagrams on a connected socket; how many of them it took, at least one.
pub(crate) fn send_many(socket: BorrowedFd<'_>, payloads: &[Vec<u8>]) -> io::Result<usize> {
    let iov = |payload: &Vec<u8>| libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let mut iovs: Vec<libc::iovec> = payloads.iter().map(iov).collect();
    let header = |iov: &mut libc::iovec| {
        // SAFETY: mmsghdr is made of integers and pointers, for which zeroes are a value.
        let mut header: libc::mmsghdr = unsafe { zeroed() };
        header.msg_hdr.msg_iov = iov;
        header.msg_hdr.msg_iovlen = 1;
        header
    };
    let mut headers: Vec<libc::mmsghdr> = iovs.iter_mut().map(header).collect();
    // SAFETY: the headers are as many as given and point to `iovs`, these to the payloads, which are only read; no address
    // is given.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), headers.len() as libc::c_uint, 0) };
    check(sent).map(|sent| sent as usize)
}

/// Makes the interface that an open `/dev/net/tun` stands for (TUNSETIFF in include/uapi/linux/if_tun.h), in the network
/// namespace it was opened in. The descriptor no longer blocks.
pub(crate) fn tun_interface(device: BorrowedFd<'_>, name: &str, tap: bool, napi: bool) -> io::Result<()> {
    const IFF_NAPI: libc::c_int = 0x10;
    let mut request = interface_request(name)?;
    let kind = if tap { libc::IFF_TAP } else { libc::IFF_TUN };
    let flags = kind | libc::IFF_NO_PI | if napi { IFF_NAPI } else { 0 };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads the ifreq and writes the name that the interface got.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    // SAFETY: takes numbers only.
    check(unsafe { libc::fcntl(device.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }).map(drop)
}

/// Sends a route netlink request that asks for an acknowledgement, in the calling thread's network namespace, and returns
/// what the kernel answers.
pub(crate) fn route_request(message: &[u8]) -> io::Result<()> {
    // SAFETY: socket takes no pointers.
    let socket =
        check(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) })
            .map(own)?;
    // SAFETY: the message is readable for its whole length; without an address it goes to the kernel.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut answer = [0u8; 1024];
    // SAFETY: the buffer is writable for its whole length.
    let length = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    // struct nlmsgerr behind struct nlmsghdr: a negative errno or 0
    let error =
        answer[..length].get(16..20).and_then(|bytes| bytes.try_into().ok()).map_or(-libc::EPROTO, i32::from_ne_bytes);
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-error)) }
}
