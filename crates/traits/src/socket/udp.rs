//! Single datagrams, received and sent with their traits. For many there is [`Receiver`](super::Receiver).

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr,
};

use libc::c_int;

use crate::core::Layout;

use super::{
    abi::SOL_TRAITS_DATAGRAM,
    address::RawAddress,
    error::{Attempt, SocketError},
    handle::Handle,
    keys::Keys,
    message,
    options::set_next_traits,
    sockopt,
    traits::Traits,
};

/// Receives one datagram: how many of its bytes are in `buffer`, who sent it, and its traits. One system call, and a second
/// one if it has traits or a mark.
///
/// The socket is one with [`set_receive`](super::set_receive), and `keys` are its own. As with [`UdpSocket::recv_from`](std::net::UdpSocket), what
/// is longer than the buffer is cut off. A datagram is never lost because of its traits: if they cannot be read, they are
/// not [found](Traits::is_found).
///
/// # Errors
/// Those of recvmsg(2), among them [`WouldBlock`](io::ErrorKind::WouldBlock) on a non-blocking socket.
pub fn recv_with_traits(
    socket: &impl AsFd,
    keys: &Keys,
    buffer: &mut [u8],
) -> Result<(usize, SocketAddr, Traits), SocketError> {
    let socket = socket.as_fd();
    let message = message::receive(socket, buffer)
        .map_err(|source| SocketError::Io { attempt: Attempt::new("receive a datagram", socket), source })?;
    let traits = look_up(socket, keys.layout(), message.handle);
    Ok((message.len, message.from, traits))
}

/// Sends a datagram on a connected socket, with these traits over the socket's own. Three system calls:
/// the last one takes the traits back if the datagram did not get as far as to take them, so that they do not go with another.
///
/// No other thread may send on the socket meanwhile with traits of its own: the last one set wins.
///
/// # Errors
/// Those of [`set_next_traits`] and of send(2), among them [`WouldBlock`](io::ErrorKind::WouldBlock).
pub fn send_with_traits(socket: &impl AsFd, data: &[u8], traits: &Traits) -> Result<usize, SocketError> {
    send(socket, data, None, traits)
}

/// Sends a datagram to an address, as [`send_with_traits`] does.
///
/// # Errors
/// Those of [`set_next_traits`] and of sendto(2), among them [`WouldBlock`](io::ErrorKind::WouldBlock).
pub fn send_to_with_traits(
    socket: &impl AsFd,
    data: &[u8],
    to: SocketAddr,
    traits: &Traits,
) -> Result<usize, SocketError> {
    send(socket, data, Some(to), traits)
}

fn send(socket: &impl AsFd, data: &[u8], to: Option<SocketAddr>, traits: &Traits) -> Result<usize, SocketError> {
    set_next_traits(socket, traits)?;
    let fd = socket.as_fd();
    let sent = send_datagram(fd, data, to);
    // Also if it was sent: it may have been taken away before it got to the hook where it takes its traits.
    let mut none = *traits;
    none.clear();
    // If nothing serves the options any more, there is nothing to take back either.
    if let Err(error) = set_next_traits(socket, &none) {
        tracing::debug!("the traits of a datagram that did not take them may go with the next one: {error}");
    }
    sent.map_err(|source| SocketError::Io { attempt: Attempt::new("send a datagram", fd), source })
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
pub(super) fn look_up(socket: BorrowedFd<'_>, layout: Layout, handle: Handle) -> Traits {
    let slot = match handle {
        Handle::Plain => return Traits::plain(layout),
        Handle::Lost => return Traits::empty(layout),
        Handle::Slot(slot) => slot,
    };
    let mut traits = Traits::empty(layout);
    if read_record(socket, slot, traits.record_mut()) { traits } else { Traits::empty(layout) }
}

/// Reads what is in a datagram's slot. If it cannot be read, `record` is whatever.
pub(super) fn read_record(socket: BorrowedFd<'_>, slot: u32, record: &mut [u8]) -> bool {
    match sockopt::get(socket, SOL_TRAITS_DATAGRAM, slot as c_int, record) {
        Ok(len) => len == record.len(),
        Err(error) => {
            tracing::debug!("the traits of a datagram cannot be read: {error}");
            false
        }
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
        let (len, peer, traits) = recv_with_traits(&receiver, &keys(), &mut buffer).unwrap();
        assert_eq!((&buffer[..len], peer), (b"hello".as_slice(), from));
        assert!(!traits.is_found() && traits.is_empty());

        receiver.set_nonblocking(true).unwrap();
        let error = recv_with_traits(&receiver, &keys(), &mut buffer).unwrap_err();
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::WouldBlock);

        sender.connect(to).unwrap();
        assert_eq!(send_datagram(sender.as_fd(), b"connected", None).unwrap(), 9);
        assert_eq!(recv_with_traits(&receiver, &keys(), &mut buffer).unwrap().0, 9);
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
