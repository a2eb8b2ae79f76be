//! Whole frames in and out of an interface (AF_PACKET).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use crate::device::Feature;
use crate::end::End;
use crate::error::{Context, Error, Result};
use crate::frame::{ETHERTYPE_EXPERIMENTAL, ethernet};
use crate::netns::Netns;
use crate::sys;

/// Largest frame that can be received: a GSO packet of 64 KiB and its Ethernet header.
const BUFFER: usize = 64 * 1024 + 64;
/// How long [`send_together`] keeps the receiver from polling: long enough to queue a burst on a loaded machine.
const HOLD: Duration = Duration::from_millis(250);
/// How long the receiver may take to poll the frame that makes it rest.
const SETTLE: Duration = Duration::from_millis(25);

/// A frame as an interface saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The frame from its Ethernet header on. A merged (GRO) or unsegmented (GSO) packet is one frame; a VLAN tag that
    /// the kernel has taken off is missing; an outgoing frame's transport checksum may be left to the device.
    pub bytes: Vec<u8>,
    /// Whether the interface sent it rather than received it.
    pub outgoing: bool,
}

/// A raw packet socket on one interface. It sees what comes in after generic and native XDP and after GRO, and what
/// goes out.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
}

impl PacketSocket {
    /// Opens a socket on the interface with index `ifindex` inside `netns`.
    ///
    /// # Errors
    /// EPERM without CAP_NET_RAW, ENODEV if there is no such interface, ENETDOWN if it is down.
    pub fn open(netns: &Netns, ifindex: u32) -> Result<Self> {
        let socket = netns
            .enter(|| sys::packet_socket(ifindex))
            .context(|| format!("cannot open a packet socket on interface {ifindex}"))?;
        Ok(Self { socket })
    }

    /// Opens a socket on the interface of `end`.
    ///
    /// # Errors
    /// As [`PacketSocket::open`].
    pub fn on(end: &End) -> Result<Self> {
        Self::open(end.netns(), end.ifindex())
    }

    /// Sends a whole frame out of the interface.
    ///
    /// # Errors
    /// EMSGSIZE above the MTU, ENETDOWN if the interface is down.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        sys::transmit_frame(self.socket.as_fd(), frame)
            .context(|| format!("cannot send a frame of {} bytes", frame.len()))
    }

    /// The next frame, or `None` if none comes within `timeout`.
    ///
    /// # Errors
    /// The interface went down or away.
    pub fn recv(&self, timeout: Duration) -> Result<Option<Captured>> {
        const PACKET_OUTGOING: u8 = 4; // include/uapi/linux/if_packet.h
        let deadline = Instant::now() + timeout;
        let mut buffer = vec![0; BUFFER];
        loop {
            match sys::receive_frame(self.socket.as_fd(), &mut buffer) {
                Ok((length, kind)) => {
                    buffer.truncate(length);
                    return Ok(Some(Captured { bytes: buffer, outgoing: kind == PACKET_OUTGOING }));
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(Error::new("cannot receive a frame", error)),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Rounded up to a millisecond, poll's unit, so that the last one is not spent spinning.
            let wait = left.max(Duration::from_millis(1));
            sys::readable(self.socket.as_fd(), wait).context(|| "cannot wait for a frame")?;
        }
    }

    /// Waits for a frame that `wanted` accepts and drops those before it.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if none comes within `timeout`.
    pub fn wait_for(&self, timeout: Duration, mut wanted: impl FnMut(&Captured) -> bool) -> Result<Captured> {
        let deadline = Instant::now() + timeout;
        let mut others = 0;
        while let Some(frame) = self.recv(deadline.saturating_duration_since(Instant::now()))? {
            if wanted(&frame) {
                return Ok(frame);
            }
            others += 1;
        }
        let seen = format!("{timeout:?} passed, {others} other frames came");
        Err(Error::timed_out("cannot find the frame that was waited for", seen))
    }

    /// All frames until none has come for `quiet`, at most until ten times that has passed.
    ///
    /// # Errors
    /// The interface went down or away.
    pub fn drain(&self, quiet: Duration) -> Result<Vec<Captured>> {
        let deadline = Instant::now() + quiet * 10;
        let mut frames = Vec::new();
        while Instant::now() < deadline {
            match self.recv(quiet)? {
                Some(frame) => frames.push(frame),
                None => break,
            }
        }
        Ok(frames)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends one frame out of the interface with index `ifindex` inside `netns`.
///
/// # Errors
/// As [`PacketSocket::open`] and [`PacketSocket::send`].
pub fn send_frame(netns: &Netns, ifindex: u32, frame: &[u8]) -> Result<()> {
    PacketSocket::open(netns, ifindex)?.send(frame)
}

/// Sends up to 64 frames from one end of a veth pair so that the other end receives them in one NAPI poll, 250 ms later:
/// what it takes for GRO to merge frames that are sent one by one.
///
/// The link must be made with [`VethOptions::gro`](crate::VethOptions::gro), also when a native XDP program is attached.
/// Before the burst the receiver gets one empty frame of type [`ETHERTYPE_EXPERIMENTAL`], the poll of which starts the
/// wait; XDP and packet sockets see it, protocols do not.
///
/// # Errors
/// The link was made without GRO; otherwise as [`PacketSocket::open`] and [`PacketSocket::send`].
pub fn send_together(from: &End, to: &End, frames: &[impl AsRef<[u8]>]) -> Result<()> {
    let tso = from.netns().feature(from.name(), Feature::Tso)?;
    if tso || !to.netns().feature(to.name(), Feature::Gro)? {
        return Err(Error::other(
            format!("cannot send frames together from {} to {}", from.name(), to.name()),
            "the receiver cannot merge; make the link with VethOptions::gro",
        ));
    }
    let socket = PacketSocket::on(from)?;
    to.netns().defer_receive(to.name(), HOLD)?;
    socket.send(&ethernet(to.mac(), from.mac(), ETHERTYPE_EXPERIMENTAL, &[0; 46]))?;
    thread::sleep(SETTLE);
    let sent = frames.iter().try_for_each(|frame| socket.send(frame.as_ref()));
    // The timer that ends this wait is running already.
    to.netns().defer_receive(to.name(), Duration::ZERO)?;
    sent
}
