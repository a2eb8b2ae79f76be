//! TCP transfers of a known byte pattern, checked on arrival.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::RECV_TIMEOUT;
use crate::error::{Context, Error, Result};
use crate::netns::Netns;
use crate::sys;

/// How often the server looks whether it should stop.
const STOP_INTERVAL: Duration = Duration::from_millis(20);
/// How long the last bytes may take to be read and confirmed: megabytes may still be in the sender's buffer, and an emulated
/// machine is slow.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes per read and write.
const CHUNK: usize = 64 * 1024;
/// Length of the pattern: prime, so that it lines up with no segment size, hole or repetition.
const PERIOD: u64 = 251;

/// Fills `chunk` with the bytes that belong at `offset` of a transfer.
fn fill_pattern(offset: u64, chunk: &mut [u8]) {
    let start = (offset % PERIOD) as u8;
    let pattern = (0..PERIOD as u8).cycle().skip(usize::from(start));
    chunk.iter_mut().zip(pattern).for_each(|(byte, value)| *byte = value);
}

/// Sends `bytes` bytes from inside `netns` to a [`TcpSink`] and waits until it has confirmed them.
///
/// # Errors
/// No connection, [`io::ErrorKind::TimedOut`] if nothing can be sent for [`RECV_TIMEOUT`] or what was sent is not confirmed
/// within a minute, or the sink received something else than was sent.
pub fn tcp_transfer(netns: &Netns, to: SocketAddr, bytes: u64) -> Result<()> {
    let what = || format!("cannot transfer {bytes} bytes to {to}");
    let mut stream = netns.enter(|| TcpStream::connect_timeout(&to, RECV_TIMEOUT)).context(what)?;
    stream.set_read_timeout(Some(CONFIRM_TIMEOUT)).context(what)?;
    stream.set_write_timeout(Some(RECV_TIMEOUT)).context(what)?;
    let mut chunk = vec![0; CHUNK];
    let mut sent = 0;
    while sent < bytes {
        let length = chunk.len().min(usize::try_from(bytes - sent).unwrap_or(usize::MAX));
        fill_pattern(sent, &mut chunk[..length]);
        stream.write_all(&chunk[..length]).context(what)?;
        sent += length as u64;
    }
    stream.shutdown(Shutdown::Write).context(what)?;
    let mut confirmed = [0; 8];
    stream.read_exact(&mut confirmed).context(what)?;
    match u64::from_be_bytes(confirmed) {
        confirmed if confirmed == bytes => Ok(()),
        confirmed => Err(Error::other(what(), format!("only the first {confirmed} bytes came as they were sent"))),
    }
}

/// How far a [`TcpSink`] is with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkEvent {
    /// It was accepted.
    Accepted,
    /// Everything has come, and the sender waits for the confirmation; this many bytes are as they were sent.
    Received(u64),
}

/// A server that checks and counts what [`tcp_transfer`] sends, until it is dropped.
#[derive(Debug)]
pub struct TcpSink {
    addr: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    received: AtomicU64,
    corrupt: AtomicU64,
}

impl TcpSink {
    /// Starts a server inside `netns` at `addr`; with port 0 the kernel chooses one.
    ///
    /// # Errors
    /// The address is not one of the namespace or the port is taken.
    pub fn start(netns: &Netns, addr: SocketAddr) -> Result<Self> {
        let listener =
            netns.enter(|| TcpListener::bind(addr)).context(|| format!("cannot start a TCP server at {addr}"))?;
        Self::serve(listener, |_, _| {})
    }

    /// Starts a server on a listener that is there, and has `watch` look at each connection, on the connection's own
    /// thread.
    ///
    /// # Errors
    /// The kernel refuses an option of the listener, or the thread.
    pub fn serve(listener: TcpListener, watch: impl Fn(&TcpStream, SinkEvent) + Send + Sync + 'static) -> Result<Self> {
        let what = || "cannot start a TCP server".to_owned();
        listener.set_nonblocking(true).context(what)?;
        let addr = listener.local_addr().context(what)?;
        let shared = Arc::new(Shared::default());
        let server = Arc::clone(&shared);
        let serve = move || accept_until_stopped(&listener, &server, &watch);
        let thread = thread::Builder::new().name("tcp-sink".into()).spawn(serve).context(what)?;
        Ok(Self { addr, shared, thread: Some(thread) })
    }

    /// Where the server listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Bytes received so far that were as sent, over all connections.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Connections so far on which a byte came that was not sent.
    #[must_use]
    pub fn corrupt(&self) -> u64 {
        self.shared.corrupt.load(Ordering::Relaxed)
    }
}

impl Drop for TcpSink {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A server that panicked has said so on standard error; a second panic here would abort the process.
            let _ = thread.join();
        }
    }
}

fn accept_until_stopped(listener: &TcpListener, shared: &Shared, watch: &(impl Fn(&TcpStream, SinkEvent) + Sync)) {
    thread::scope(|scope| {
        while !shared.stop.load(Ordering::Relaxed) {
            match sys::readable(listener.as_fd(), STOP_INTERVAL) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(_) => return,
            }
            if let Ok((stream, _)) = listener.accept() {
                // A broken connection is the sender's to report: it gets no confirmation.
                scope.spawn(move || drop(receive(stream, shared, watch)));
            }
        }
    });
}

/// Reads one connection to its end and answers with the number of bytes that were right.
fn receive(mut stream: TcpStream, shared: &Shared, watch: &impl Fn(&TcpStream, SinkEvent)) -> io::Result<()> {
    watch(&stream, SinkEvent::Accepted);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(STOP_INTERVAL))?;
    stream.set_write_timeout(Some(RECV_TIMEOUT))?;
    let (mut chunk, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    let (mut right, mut intact) = (0, true);
    let mut last_read = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) && last_read.elapsed() < RECV_TIMEOUT {
        let length = match stream.read(&mut chunk) {
            Ok(0) => {
                watch(&stream, SinkEvent::Received(right));
                return stream.write_all(&u64::to_be_bytes(right));
            }
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(error) => return Err(error),
        };
        last_read = Instant::now();
        fill_pattern(right, &mut expected[..length]);
        let same = chunk[..length].iter().zip(&expected).take_while(|(got, want)| got == want).count();
        if intact {
            right += same as u64;
            shared.received.fetch_add(same as u64, Ordering::Relaxed);
            if same < length {
                intact = false;
                shared.corrupt.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_does_not_depend_on_how_it_is_cut() {
        let mut whole = vec![0; 1000];
        fill_pattern(0, &mut whole);
        let mut tail = vec![0; 300];
        fill_pattern(700, &mut tail);
        assert_eq!(whole[700..], tail);
    }
}
