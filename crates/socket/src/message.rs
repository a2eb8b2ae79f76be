//! recvmsg(2) and recvmmsg(2): a datagram's bytes, where it is from, and the mark in its control messages.
//!
//! Directly on libc: nix knows no `SO_MARK` control message and puts unknown ones on the heap, rustix has neither, and
//! socket2 parses no control messages.

use std::{
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use libc::{c_int, c_uint, iovec, mmsghdr, msghdr};

use super::{address::RawAddress, handle::Handle};

/// Datagrams of one recvmmsg(2), at most. The kernel's own limit is 1024 (`UIO_MAXIOV`).
pub(crate) const MESSAGES_MAX: usize = 64;

/// Room for the control messages up to `SO_MARK`'s, whatever else the application has turned on. `sock_recv_cmsgs` in
/// include/net/sock.h writes, in this order: timestamp (32 bytes), `SCM_TIMESTAMPING` (64), its packet info (32),
/// `SO_RXQ_OVFL` (24), `SO_MARK` (24). What follows may be cut off.
const CONTROL_LEN: usize = 256;

/// Room for control messages, aligned as `struct cmsghdr`.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Control([MaybeUninit<u8>; CONTROL_LEN]);

const _: () = assert!(align_of::<Control>() >= align_of::<libc::cmsghdr>());

impl Control {
    pub(crate) const fn empty() -> Control {
        Control([MaybeUninit::uninit(); CONTROL_LEN])
    }
}

/// A datagram that has been received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    /// Bytes of it that are in the buffer.
    pub(crate) len: usize,
    /// Whether it had more bytes than the buffer.
    pub(crate) is_truncated: bool,
    pub(crate) from: SocketAddr,
    pub(crate) handle: Handle,
}

/// Receives one datagram. Does not wait if the socket is non-blocking.
#[inline]
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Message> {
    let mut name = RawAddress::empty();
    let mut control = Control::empty();
    let mut iov = iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut header = header(&mut name, &mut iov, &mut control);
    // Not libc's recvmsg: as a cancellation point it has calls within calls around the system call, and where the kernel
    // clears the processor's return predictions each of them costs a misprediction, together some 30 ns.
    // SAFETY: everything the header points at is writable for the lengths it gives, and outlives the call.
    let len = unsafe { libc::syscall(libc::SYS_recvmsg, socket.as_raw_fd(), &raw mut header, 0) };
    let Ok(len) = usize::try_from(len) else { return Err(io::Error::last_os_error()) };
    // SAFETY: the kernel has filled the header in, and `control` is still there.
    let handle = Handle::of_mark(unsafe { mark(&header) });
    name.len = header.msg_namelen;
    message(len, header.msg_flags, handle, &name)
}

/// Receives datagrams: at least one, for which it waits unless the socket is non-blocking, and those that are there
/// already. Datagram `i` is put at `i * stride` in `data`, of which it may have `capacity` bytes, and into `messages[i]`.
///
/// As many as `messages` has room for, [`MESSAGES_MAX`] at most. Answers how many there were.
pub(crate) fn receive_many(
    socket: BorrowedFd<'_>,
    data: &mut [u8],
    stride: usize,
    capacity: usize,
    room: &mut Room,
    messages: &mut [Option<Message>],
) -> io::Result<usize> {
    let mut headers = [const { MaybeUninit::<mmsghdr>::uninit() }; MESSAGES_MAX];
    let mut iovs = [const { MaybeUninit::<iovec>::uninit() }; MESSAGES_MAX];
    let mut count = 0;
    let places = data.chunks_mut(stride).zip(room.names.iter_mut()).zip(room.controls.iter_mut());
    let slots = headers.iter_mut().zip(iovs.iter_mut()).zip(messages.iter());
    for (((data, name), control), ((slot, iov), _)) in places.zip(slots) {
        let data = &mut data[..capacity];
        let iov = iov.write(iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() });
        slot.write(mmsghdr { msg_hdr: header(name, iov, control), msg_len: 0 });
        count += 1;
    }
    // SAFETY: the first `count` headers are initialized, everything they point at is writable for the lengths they give,
    // and outlives the call. Without a timeout.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count as c_uint,
            libc::MSG_WAITFORONE,
            ptr::null_mut(),
        )
    };
    let Ok(received) = usize::try_from(received) else { return Err(io::Error::last_os_error()) };
    for ((header, name), slot) in headers.iter().zip(room.names.iter_mut()).zip(messages.iter_mut()).take(received) {
        // SAFETY: no more than `count` were received, and those are initialized.
        let header = unsafe { header.assume_init_ref() };
        // SAFETY: the kernel has filled the header in, and its control messages are still in `room`.
        let handle = Handle::of_mark(unsafe { mark(&header.msg_hdr) });
        name.len = header.msg_hdr.msg_namelen;
        *slot = Some(message(header.msg_len as usize, header.msg_hdr.msg_flags, handle, name)?);
    }
    Ok(received)
}

/// Where recvmmsg(2) puts what is not data.
pub(crate) struct Room {
    names: Box<[RawAddress]>,
    controls: Box<[Control]>,
}

impl Room {
    /// For `count` datagrams.
    pub(crate) fn new(count: usize) -> Room {
        Room { names: vec![RawAddress::empty(); count].into(), controls: vec![Control::empty(); count].into() }
    }
}

/// A header that points at the three.
#[inline]
fn header(name: &mut RawAddress, iov: &mut iovec, control: &mut Control) -> msghdr {
    // SAFETY: it is made of integers and raw pointers, for which zeroes are a value. (It has padding on some systems.)
    let mut header: msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut name.storage).cast();
    header.msg_namelen = RawAddress::CAPACITY;
    header.msg_iov = iov;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control.0).cast();
    header.msg_controllen = CONTROL_LEN as _;
    header
}

#[inline]
fn message(len: usize, flags: c_int, handle: Handle, name: &RawAddress) -> io::Result<Message> {
    let from = name.decode().ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the sender has no IPv4 or IPv6 address; traits are for UDP sockets",
        )
    })?;
    Ok(Message { len, is_truncated: flags & libc::MSG_TRUNC != 0, from, handle })
}

/// The mark in the control messages of a received message.
///
/// # Safety
/// The header is as recvmsg(2) has left it, and what it points at is still there.
#[inline]
unsafe fn mark(header: &msghdr) -> Option<u32> {
    // SAFETY: computes a number.
    let len = unsafe { libc::CMSG_LEN(size_of::<u32>() as c_uint) };
    // SAFETY: says the caller.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: null, or a control message that lies within the bytes that the kernel has written.
    while let Some(message) = unsafe { control.as_ref() } {
        let is_mark = (message.cmsg_level, message.cmsg_type) == (libc::SOL_SOCKET, libc::SO_MARK);
        if is_mark && message.cmsg_len >= len as _ {
            // SAFETY: the message has at least the 4 bytes that are read.
            return Some(unsafe { libc::CMSG_DATA(message).cast::<u32>().read_unaligned() });
        }
        // SAFETY: `message` is one of this header's.
        control = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
        os::fd::AsFd,
    };

    use super::*;

    /// include/uapi/asm-generic/socket.h; from Linux 5.19.
    const SO_RCVMARK: c_int = 75;

    /// Control messages, each of a level, a type and data, as the kernel lays them out.
    fn mark_in(messages: &[(c_int, c_int, &[u8])]) -> Option<u32> {
        let mut control = Control([MaybeUninit::new(0); CONTROL_LEN]);
        let (mut name, mut iov) = (RawAddress::empty(), iovec { iov_base: ptr::null_mut(), iov_len: 0 });
        let mut header = header(&mut name, &mut iov, &mut control);
        let mut at = 0;
        for (level, type_, data) in messages {
            // SAFETY: these compute numbers.
            let (len, space) =
                unsafe { (libc::CMSG_LEN(data.len() as c_uint), libc::CMSG_SPACE(data.len() as c_uint) as usize) };
            assert!(at + space <= CONTROL_LEN);
            // SAFETY: the message lies within `control`, which is zeroed and aligned.
            unsafe {
                let message = header.msg_control.cast::<u8>().add(at).cast::<libc::cmsghdr>();
                (*message).cmsg_len = len as _;
                (*message).cmsg_level = *level;
                (*message).cmsg_type = *type_;
                ptr::copy_nonoverlapping(data.as_ptr(), libc::CMSG_DATA(message), data.len());
            }
            at += space;
        }
        header.msg_controllen = at as _;
        // SAFETY: the header is as recvmsg(2) would have left it.
        unsafe { mark(&header) }
    }

    #[test]
    fn the_mark_is_found_among_other_control_messages() {
        let mark = 0x0102_0304u32.to_ne_bytes();
        let marked = (libc::SOL_SOCKET, libc::SO_MARK, mark.as_slice());
        let overflow = (libc::SOL_SOCKET, libc::SO_RXQ_OVFL, [1u8, 0, 0, 0].as_slice());
        let timestamps = (libc::SOL_SOCKET, libc::SCM_TIMESTAMPING, [9u8; 48].as_slice());
        let other_level = (libc::IPPROTO_IP, libc::SO_MARK, [1u8, 0, 0, 0].as_slice());
        assert_eq!(mark_in(&[marked]), Some(0x0102_0304));
        assert_eq!(mark_in(&[timestamps, overflow, other_level, marked, overflow]), Some(0x0102_0304));
        assert_eq!(mark_in(&[timestamps, overflow, other_level]), None);
        assert_eq!(mark_in(&[]), None);
    }

    #[test]
    fn a_mark_that_is_cut_off_is_none() {
        assert_eq!(mark_in(&[(libc::SOL_SOCKET, libc::SO_MARK, &[1, 2])]), None);
    }

    fn pair(ip: IpAddr) -> (UdpSocket, UdpSocket) {
        let receiver = UdpSocket::bind((ip, 0)).unwrap();
        let sender = UdpSocket::bind((ip, 0)).unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        (sender, receiver)
    }

    fn turn_rcvmark_on(socket: &UdpSocket) {
        super::super::sockopt::set(socket.as_fd(), libc::SOL_SOCKET, SO_RCVMARK, &1i32.to_ne_bytes()).unwrap();
    }

    /// Marks what the sender sends from now on, if this process may; what the receiver is to find.
    fn turn_mark_on(sender: &UdpSocket) -> Handle {
        let mark = 7u32;
        match super::super::sockopt::set(sender.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, &mark.to_ne_bytes()) {
            Ok(()) => Handle::Slot(mark),
            Err(_) => Handle::Lost,
        }
    }

    #[test]
    fn a_datagram_comes_with_its_sender_and_its_mark() {
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            let (sender, receiver) = pair(ip);
            let mut buffer = [0; 16];
            let marked = turn_mark_on(&sender);
            sender.send(b"before").unwrap();
            let message = receive(receiver.as_fd(), &mut buffer).unwrap();
            assert_eq!((message.from, message.handle), (sender.local_addr().unwrap(), Handle::Lost));

            turn_rcvmark_on(&receiver);
            sender.send(b"after").unwrap();
            let message = receive(receiver.as_fd(), &mut buffer).unwrap();
            assert_eq!((&buffer[..message.len], message.handle), (b"after".as_slice(), marked));
        }
    }

    #[test]
    fn a_datagram_longer_than_the_buffer_is_cut_off() {
        let (sender, receiver) = pair(Ipv4Addr::LOCALHOST.into());
        sender.send(b"0123456789").unwrap();
        sender.send(b"0123").unwrap();
        let mut buffer = [0; 4];
        let first = receive(receiver.as_fd(), &mut buffer).unwrap();
        assert_eq!((first.len, first.is_truncated, &buffer), (4, true, b"0123"));
        let second = receive(receiver.as_fd(), &mut buffer).unwrap();
        assert_eq!((second.len, second.is_truncated), (4, false));
    }

    #[test]
    fn several_datagrams_are_received_at_once() {
        let (sender, receiver) = pair(Ipv4Addr::LOCALHOST.into());
        turn_rcvmark_on(&receiver);
        let marked = turn_mark_on(&sender);
        receiver.set_nonblocking(true).unwrap();
        let (stride, capacity) = (16, 8);
        let (mut data, mut room, mut messages) = (vec![0; 3 * stride], Room::new(3), [None; 3]);
        let mut receive = |data: &mut [u8], messages: &mut [_]| {
            receive_many(receiver.as_fd(), data, stride, capacity, &mut room, messages)
        };

        let error = receive(&mut data, &mut messages).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);

        for text in ["a", "two", "", "longer than 8"] {
            sender.send(text.as_bytes()).unwrap();
        }
        assert_eq!(receive(&mut data, &mut messages).unwrap(), 3);
        let lens = messages.map(|message| message.unwrap().len);
        assert_eq!(lens, [1, 3, 0]);
        assert_eq!((&data[..1], &data[stride..][..3]), (b"a".as_slice(), b"two".as_slice()));
        assert!(messages.iter().flatten().all(|message| message.from == sender.local_addr().unwrap()));
        assert!(messages.iter().flatten().all(|message| message.handle == marked));

        assert_eq!(receive(&mut data, &mut messages).unwrap(), 1);
        let last = messages[0].unwrap();
        assert_eq!((last.len, last.is_truncated, &data[..8]), (8, true, b"longer t".as_slice()));
    }
}
