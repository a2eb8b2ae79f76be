//! TCP sockets in the states that the standard library does not stop at: made, bound, disconnected.

use std::{
    fs, mem,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    ptr, thread,
    time::{Duration, Instant},
};

use libc::c_int;
use packet_traits_lab::{Family, Netns, RECV_TIMEOUT};

use super::sockopt::{errno, set_int};

/// A socket that is neither bound nor connected. Whatever blocks times out.
pub fn socket(family: Family) -> OwnedFd {
    let domain = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    // SAFETY: takes numbers only; a descriptor that it returns is new.
    let socket = unsafe {
        let descriptor = libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        assert!(descriptor >= 0, "socket: errno {}", errno());
        OwnedFd::from_raw_fd(descriptor)
    };
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(RECV_TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(RECV_TIMEOUT)).unwrap(); // connect's too: socket(7)
    stream.into()
}

/// Binds a socket to an address that nobody else uses, or will soon not: a process that another test has just started holds
/// a copy of every descriptor until it runs its program.
pub fn bind(socket: &impl AsFd, addr: SocketAddr) {
    set_int(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
    let (address, len) = raw(addr);
    let deadline = Instant::now() + RECV_TIMEOUT;
    loop {
        // SAFETY: the address is readable for the length given.
        match unsafe { libc::bind(socket.as_fd().as_raw_fd(), (&raw const address).cast(), len) } {
            0 => return,
            _ if errno() == libc::EADDRINUSE && Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            _ => panic!("bind to {addr}: errno {}", errno()),
        }
    }
}

pub fn listen(socket: OwnedFd) -> TcpListener {
    // SAFETY: takes numbers only.
    let result = unsafe { libc::listen(socket.as_raw_fd(), 128) };
    assert_eq!(result, 0, "listen: errno {}", errno());
    socket.into()
}

/// Whether a socket in this state has the port. States are those of include/net/tcp_states.h.
pub fn is_in_state(netns: &Netns, family: Family, port: u16, state: &str) -> bool {
    let table = match family {
        Family::V4 => "/proc/thread-self/net/tcp",
        Family::V6 => "/proc/thread-self/net/tcp6",
    };
    let sockets = netns.enter(|| fs::read_to_string(table)).unwrap();
    sockets.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, found) = (fields.next().unwrap_or_default(), fields.nth(1));
        local.ends_with(&format!(":{port:04X}")) && found == Some(state)
    })
}

/// connect(2), or the error number.
pub fn connect(socket: &impl AsFd, addr: SocketAddr) -> Result<(), c_int> {
    let (address, len) = raw(addr);
    // SAFETY: the address is readable for the length given.
    let result = unsafe { libc::connect(socket.as_fd().as_raw_fd(), (&raw const address).cast(), len) };
    if result == 0 { Ok(()) } else { Err(errno()) }
}

/// Takes a socket out of its connection: connect(2) to no address.
pub fn disconnect(socket: &impl AsFd) {
    // SAFETY: all zeroes is a valid address, of the family AF_UNSPEC.
    let nothing: libc::sockaddr = unsafe { mem::zeroed() };
    let len = size_of_val(&nothing) as libc::socklen_t;
    // SAFETY: the address is readable for the length given.
    let result = unsafe { libc::connect(socket.as_fd().as_raw_fd(), &raw const nothing, len) };
    assert_eq!(result, 0, "disconnect: errno {}", errno());
}

/// Accepts a connection, whose reads and writes will time out.
#[track_caller]
pub fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    assert!(readable(listener), "nobody has connected");
    let (stream, peer) = listener.accept().unwrap();
    stream.set_read_timeout(Some(RECV_TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(RECV_TIMEOUT)).unwrap();
    stream.set_nodelay(true).unwrap();
    (stream, peer)
}

/// Waits until there is something to read or to accept; whether there is.
pub fn readable(socket: &impl AsFd) -> bool {
    let mut poll = libc::pollfd { fd: socket.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: the array is one entry long.
    unsafe { libc::poll(&raw mut poll, 1, RECV_TIMEOUT.as_millis() as c_int) == 1 }
}

fn raw(addr: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zeroes is a valid address.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    match addr {
        SocketAddr::V4(addr) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: addr.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_storage has room for every address, and is aligned for it.
            unsafe { ptr::write((&raw mut storage).cast(), raw) };
            (storage, size_of_val(&raw) as libc::socklen_t)
        }
        SocketAddr::V6(addr) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: addr.port().to_be(),
                sin6_flowinfo: addr.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: addr.ip().octets() },
                sin6_scope_id: addr.scope_id(),
            };
            // SAFETY: as above.
            unsafe { ptr::write((&raw mut storage).cast(), raw) };
            (storage, size_of_val(&raw) as libc::socklen_t)
        }
    }
}
