//! Single datagrams, received and sent with their traits.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr,
};

use libc::c_int;

use packet_traits_core::Layout;

use super::{
    abi::{NEXT_TRAITS, SOL_TRAITS_DATAGRAM},
    address::RawAddress,
    error::{Attempt, SocketError},
    handle::Handle,
    keys::Keys,
    message, options, sockopt,
    traits::Traits,
};

/// A datagram that was received, but for its bytes, which are in the caller's buffer.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Received {
    /// How many of its bytes are in the buffer.
    pub len: usize,
    /// Whether it was longer than the buffer, so that its end is missing.
    pub is_truncated: bool,
    /// The sender.
    pub from: SocketAddr,
    /// Its traits.
    pub traits: Traits,
}

impl Received {
    /// No datagram, for [`Receiver::recv_into`](super::Receiver::recv_into) to overwrite.
    pub fn none(keys: &Keys) -> Received {
        Received {
            len: 0,
            is_truncated: false,
            from: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
            traits: Traits::new(keys),
        }
    }
}

/// Datagrams with traits on UDP sockets. [`Receiver`](super::Receiver) is faster for many.
///
/// ```no_run
/// use std::net::UdpSocket;
/// use packet_traits_socket::{Keys, SocketTraits, UdpTraits};
///
/// let socket = UdpSocket::bind("[::]:5000")?;
/// socket.receive_traits(true)?;
/// let keys = Keys::of(&socket)?;
/// let tenant = keys.typed::<u32>("tenant")?;
/// let mut buffer = [0; 2048];
/// let received = socket.recv_with_traits(&keys, &mut buffer)?;
/// println!("{} bytes from {}, tenant {:?}", received.len, received.from, received.traits.get(&tenant));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait UdpTraits: AsFd {
    /// Receives one datagram. One system call, and a second one if it has traits or a mark.
    ///
    /// The socket is one with [`receive_traits`](super::SocketTraits::receive_traits), and `keys` are its own. As with
    /// [`UdpSocket::recv_from`](std::net::UdpSocket), what is longer than the buffer is cut off. A datagram is never lost because
    /// of its traits: if they cannot be read, they are not [found](Traits::is_found).
    ///
    /// # Errors
    /// Those of recvmsg(2), among them [`WouldBlock`](io::ErrorKind::WouldBlock) on a non-blocking socket.
    fn recv_with_traits(&self, keys: &Keys, buffer: &mut [u8]) -> Result<Received, SocketError> {
        let socket = self.as_fd();
        let message = message::receive(socket, buffer)
            .map_err(|error| SocketError::Io { attempt: Attempt::new("receive a datagram", socket), error })?;
        let traits = look_up(socket, keys.layout(), message.handle);
        Ok(Received { len: message.len, is_truncated: message.is_truncated, from: message.from, traits })
    }

    /// Sends a datagram on a connected socket, with these traits over the socket's own. Three system calls: the last one takes
    /// the traits back if the datagram did not get as far as to take them, so that no other datagram does.
    ///
    /// No other thread may send with its own traits on the socket at the same time: the last ones set win.
    ///
    /// # Errors
    /// Those of [`set_next_traits`](Self::set_next_traits) and of send(2), among them
    /// [`WouldBlock`](io::ErrorKind::WouldBlock).
    fn send_with_traits(&self, data: &[u8], traits: &Traits) -> Result<usize, SocketError> {
        send(self.as_fd(), data, None, traits)
    }

    /// Sends a datagram to an address, as [`send_with_traits`](Self::send_with_traits) does.
    ///
    /// # Errors
    /// Those of [`set_next_traits`](Self::set_next_traits) and of sendto(2), among them
    /// [`WouldBlock`](io::ErrorKind::WouldBlock).
    fn send_to_with_traits(&self, data: &[u8], to: SocketAddr, traits: &Traits) -> Result<usize, SocketError> {
        send(self.as_fd(), data, Some(to), traits)
    }

    /// Sets the traits of the next datagram that **this thread** sends on the socket. They go over the socket's own. Empty ones
    /// take back what was set.
    ///
    /// Prefer [`send_with_traits`](Self::send_with_traits), which takes them back if the datagram is not sent.
    ///
    /// # Errors
    /// [`SocketError::NotAttached`]; [`SocketError::WrongSocket`] if the socket is not UDP; [`SocketError::NoRoom`];
    /// [`SocketError::Refused`] if a key is no longer registered.
    fn set_next_traits(&self, traits: &Traits) -> Result<(), SocketError> {
        options::set_all(self.as_fd(), NEXT_TRAITS, "set NEXT_TRAITS", traits)
    }
}

impl<S: AsFd + ?Sized> UdpTraits for S {}

fn send(socket: BorrowedFd<'_>, data: &[u8], to: Option<SocketAddr>, traits: &Traits) -> Result<usize, SocketError> {
    socket.set_next_traits(traits)?;
    let sent = send_datagram(socket, data, to);
    // Even after a successful send: the kernel may drop the datagram before the hook that takes its traits.
    let mut none = *traits;
    none.clear();
    // If nothing serves the options any more, there is nothing to take back either.
    let _ = socket.set_next_traits(&none);
    sent.map_err(|error| SocketError::Io { attempt: Attempt::new("send a datagram", socket), error })
}

fn send_datagram(socket: BorrowedFd<'_>, data: &[u8], to: Option<SocketAddr>) -> io::Result<usize> {
    let address = to.map(RawAddress::from);
    let (name, name_len) =
        address.as_ref().map_or((ptr::null(), 0), |address| ((&raw const address.storage).cast(), address.len));
    // SAFETY: `data` is readable for its length; the address is null, or readable for the length given.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), data.as_ptr().cast(), data.len(), libc::MSG_NOSIGNAL, name, name_len)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// The traits of a datagram that has been received, by getsockopt(2).
pub(crate) fn look_up(socket: BorrowedFd<'_>, layout: Layout, handle: Handle) -> Traits {
    let slot = match handle {
        Handle::Plain => return Traits::plain(layout),
        Handle::Lost => return Traits::empty(layout),
        Handle::Slot(slot) => slot,
    };
    let mut traits = Traits::empty(layout);
    if read_record(socket, slot, traits.record_mut()) { traits } else { Traits::empty(layout) }
}

/// Reads what is in a datagram's slot. If it cannot be read, `record` is whatever.
pub(crate) fn read_record(socket: BorrowedFd<'_>, slot: u32, record: &mut [u8]) -> bool {
    match sockopt::get(socket, SOL_TRAITS_DATAGRAM, slot as c_int, record) {
        Ok(len) => len == record.len(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::{super::keys::tests::keys, *};

    #[test]
    fn a_datagram_comes_even_if_there_are_no_traits() {
        let (sender, receiver) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let (from, to) = (sender.local_addr().unwrap(), receiver.local_addr().unwrap());
        assert_eq!(send_datagram(sender.as_fd(), b"hello", Some(to)).unwrap(), 5);
        let mut buffer = [0; 16];
        let received = receiver.recv_with_traits(&keys(), &mut buffer).unwrap();
        assert_eq!((&buffer[..received.len], received.from), (b"hello".as_slice(), from));
        assert!(!received.is_truncated && !received.traits.is_found() && received.traits.is_empty());

        receiver.set_nonblocking(true).unwrap();
        let error = receiver.recv_with_traits(&keys(), &mut buffer).unwrap_err();
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::WouldBlock);

        sender.connect(to).unwrap();
        assert_eq!(send_datagram(sender.as_fd(), b"connected", None).unwrap(), 9);
        assert_eq!(receiver.recv_with_traits(&keys(), &mut buffer).unwrap().len, 9);
    }

    #[test]
    fn a_lookup_that_fails_finds_nothing() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let layout = keys().layout();
        assert!(look_up(socket.as_fd(), layout, Handle::Plain).is_found());
        assert!(!look_up(socket.as_fd(), layout, Handle::Lost).is_found());
        assert!(!look_up(socket.as_fd(), layout, Handle::Slot(0x1234_5678)).is_found());
    }
}
