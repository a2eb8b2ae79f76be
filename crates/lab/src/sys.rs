//! The system calls that the standard library lacks, as safe functions over owned descriptors. No policy here.

use std::ffi::CStr;
use std::io::{self, IoSlice};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::net::{
    AddressFamily, MMsgHdr, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, netdevice, recv, send,
    sendmmsg, socket_with, sockopt,
};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Moves the calling thread into a new network namespace.
pub(crate) fn unshare_net() -> io::Result<()> {
    // SAFETY: a network namespace of its own does not change which descriptors a thread has.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?)
}

/// Moves the calling thread into the network namespace behind `fd`. Async-signal-safe.
pub(crate) fn setns_net(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(fd, Some(LinkNameSpaceType::Network))?)
}

/// Has the kernel kill the calling process when the thread that forked it ends. Async-signal-safe.
pub(crate) fn die_with_parent(parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if Pid::as_raw(getppid()).cast_unsigned() == parent { Ok(()) } else { Err(Errno::SRCH.into()) }
}

/// A new instance of a file system as a mount that is attached nowhere (fsopen(2), fsmount(2); Linux 5.2).
pub(crate) fn detached_mount(fs_type: &CStr) -> io::Result<OwnedFd> {
    let context = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
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
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// The index of an interface of the calling thread's network namespace.
pub(crate) fn interface_index(device: &str) -> io::Result<u32> {
    Ok(netdevice::name_to_index(ioctl_socket()?, device)?)
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
    // Without a timeout if it is longer than the kernel can count.
    let timeout = Timespec::try_from(timeout).ok();
    match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], timeout.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
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
const CAPTURE_BUFFER: usize = 32 << 20;

/// A raw AF_PACKET socket for all protocols on one interface of the calling thread's network namespace.
pub(crate) fn packet_socket(ifindex: u32) -> io::Result<OwnedFd> {
    let address = link_address(ifindex)?;
    // Protocol 0 receives nothing until bind names one, so that no frame of another interface slips in between.
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_recv_buffer_size_force(&socket, CAPTURE_BUFFER)?;
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
    Ok(send(socket, frame, SendFlags::empty()).map(drop)?)
}

/// Sends datagrams on a connected socket; how many of them it took, at least one.
pub(crate) fn send_many(socket: BorrowedFd<'_>, payloads: &[Vec<u8>]) -> io::Result<usize> {
    let slices: Vec<[IoSlice<'_>; 1]> = payloads.iter().map(|payload| [IoSlice::new(payload)]).collect();
    let mut controls: Vec<SendAncillaryBuffer<'_, '_, '_>> = payloads.iter().map(|_| <_>::default()).collect();
    let messages = slices.iter().zip(&mut controls).map(|(slice, control)| MMsgHdr::new(slice, control));
    Ok(sendmmsg(socket, &mut messages.collect::<Vec<_>>(), SendFlags::empty())?)
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
    Ok(fcntl_setfl(device, OFlags::NONBLOCK)?)
}

/// Sends a route netlink request that asks for an acknowledgement, in the calling thread's network namespace, and returns
/// what the kernel answers.
pub(crate) fn route_request(message: &[u8]) -> io::Result<()> {
    // Without a protocol: 0 is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    send(&socket, message, SendFlags::empty())?;
    let mut answer = [0; 1024];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    // struct nlmsgerr behind struct nlmsghdr: a negative errno or 0
    let error =
        answer[..length].get(16..20).and_then(|bytes| bytes.try_into().ok()).map_or(-libc::EPROTO, i32::from_ne_bytes);
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-error)) }
}
