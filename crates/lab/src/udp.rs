//! UDP traffic whose datagrams carry a number, and a server that sends them back.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::RECV_TIMEOUT;
use crate::error::{Context, Error, Result};
use crate::netns::Netns;
use crate::sys;

/// Datagrams that one system call sends.
const MANY: usize = 64;

/// How often the server looks whether it should stop.
const STOP_INTERVAL: Duration = Duration::from_millis(20);

/// Makes a UDP socket inside `netns`, bound to `addr`. Receives fail after [`RECV_TIMEOUT`].
///
/// # Errors
/// The address is not one of the namespace or the port is taken.
pub fn udp_socket(netns: &Netns, addr: SocketAddr) -> Result<UdpSocket> {
    let bind = || {
        let socket = UdpSocket::bind(addr)?;
        socket.set_read_timeout(Some(RECV_TIMEOUT))?;
        socket.set_write_timeout(Some(RECV_TIMEOUT))?;
        Ok(socket)
    };
    netns.enter(bind).context(|| format!("cannot bind a UDP socket to {addr}"))
}

/// Sends one datagram of `size` bytes for each number. A datagram starts with its number, as eight bytes in network
/// order, and goes on with zeroes.
///
/// # Errors
/// Sending failed, or `size` is below eight.
pub fn send_numbered(socket: &UdpSocket, to: SocketAddr, numbers: Range<u64>, size: usize) -> Result<()> {
    let mut payload = vec![0; size];
    for number in numbers {
        set_number(&mut payload, number)?;
        socket.send_to(&payload, to).context(|| format!("cannot send datagram {number} to {to}"))?;
    }
    Ok(())
}

/// Sends as [`send_numbered`] does, on a connected socket and as fast as it goes: up to 64 datagrams by one system call.
///
/// # Errors
/// As [`send_numbered`].
pub fn send_many_numbered(socket: &UdpSocket, numbers: Range<u64>, size: usize) -> Result<()> {
    let mut payloads = vec![vec![0; size]; MANY];
    let mut next = numbers.start;
    while next < numbers.end {
        let mut count = 0;
        for (payload, number) in payloads.iter_mut().zip(next..numbers.end) {
            set_number(payload, number)?;
            count += 1;
        }
        let sent = sys::send_many(socket.as_fd(), &payloads[..count])
            .context(|| format!("cannot send datagrams from {next} on"))?;
        next += sent as u64;
    }
    Ok(())
}

fn set_number(payload: &mut [u8], number: u64) -> Result<()> {
    let size = payload.len();
    let start = payload.first_chunk_mut().ok_or_else(|| {
        let what = format!("cannot number datagrams of {size} bytes");
        Error::other(what, "the number takes 8 bytes; ask for at least 8")
    })?;
    *start = number.to_be_bytes();
    Ok(())
}

/// The number at the start of a datagram; `None` if it is shorter than eight bytes.
#[must_use]
pub fn number_of(payload: &[u8]) -> Option<u64> {
    payload.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

/// Receives one datagram and returns its number.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if none came within the socket's timeout; a datagram too short to have a number.
pub fn recv_numbered(socket: &UdpSocket) -> Result<u64> {
    let what = || match socket.local_addr() {
        Ok(addr) => format!("cannot receive a numbered datagram at {addr}"),
        Err(_) => "cannot receive a numbered datagram".to_owned(),
    };
    let mut payload = vec![0; usize::from(u16::MAX)];
    let length = socket.recv(&mut payload).context(what)?;
    number_of(&payload[..length])
        .ok_or_else(|| Error::other(what(), format!("{length} bytes came, which is too short for a number")))
}

/// A server that sends every datagram back to where it came from, until it is dropped.
#[derive(Debug)]
pub struct UdpEcho {
    addr: SocketAddr,
    socket: Arc<UdpSocket>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    /// Starts a server inside `netns` at `addr`; with port 0 the kernel chooses one.
    ///
    /// # Errors
    /// As [`udp_socket`].
    pub fn start(netns: &Netns, addr: SocketAddr) -> Result<Self> {
        let socket = udp_socket(netns, addr)?;
        let what = || format!("cannot start a UDP echo server at {addr}");
        socket.set_read_timeout(Some(STOP_INTERVAL)).context(what)?;
        let addr = socket.local_addr().context(what)?;
        let (socket, stop) = (Arc::new(socket), Arc::new(AtomicBool::new(false)));
        let (served, stopped) = (Arc::clone(&socket), Arc::clone(&stop));
        let serve = move || echo_until(&served, &stopped);
        let thread = thread::Builder::new().name("udp-echo".into()).spawn(serve).context(what)?;
        Ok(Self { addr, socket, stop, thread: Some(thread) })
    }

    /// Where the server listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// The server's socket, to attach a filter to.
impl AsFd for UdpEcho {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A server that panicked has said so on standard error; a second panic here would abort the process.
            let _ = thread.join();
        }
    }
}

/// Serves until told to stop. A failed send or receive concerns one datagram, whose sender notices its absence.
fn echo_until(socket: &UdpSocket, stop: &AtomicBool) {
    let mut payload = vec![0; usize::from(u16::MAX)];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut payload) {
            Ok((length, from)) => drop(socket.send_to(&payload[..length], from)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused) => {}
            Err(_) => thread::sleep(STOP_INTERVAL),
        }
    }
}
