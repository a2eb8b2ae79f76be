//! An AF_XDP socket that receives, in copy mode: the frame's bytes, and those in front of it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use xdp::{
    RingConfigBuilder, Rings, Umem,
    nic::NicIndex,
    slab::{HeapSlab, Slab},
    socket::{PollTimeout, XdpSocket, XdpSocketBuilder},
    umem::{FrameSize, UmemCfgBuilder},
};

use crate::RECV_TIMEOUT;
use crate::end::End;
use crate::error::{Error, Result};

/// Frames that a socket has: few, so that each is filled again and again.
pub const FRAMES: u32 = 8;

/// A socket on one queue of an interface. It receives what an XDP program redirects to it by an XSKMAP, into which its
/// descriptor must be put.
///
/// The kernel copies the metadata to where it ends at the packet, in front of which there are always
/// XDP_PACKET_HEADROOM (256) bytes (`__xsk_rcv` in net/xdp/xsk.c), and more if the socket asks for more; an application
/// that only uses what it has asked for, as this one, asks for the length of the area.
pub struct AfXdp {
    // dropped in this order: the memory last, since the kernel fills it and the rings hold places in it
    socket: XdpSocket,
    rings: Rings,
    umem: Umem,
    headroom: usize,
}

/// What was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The headroom that was asked for.
    pub in_front: Vec<u8>,
    /// From its Ethernet header on.
    pub packet: Vec<u8>,
}

impl AfXdp {
    /// A socket on a queue of the interface of `end`, with `headroom` bytes in front of each frame.
    ///
    /// # Errors
    /// The queue does not exist or has a socket already, or the kernel has no AF_XDP.
    pub fn bind(end: &End, queue: u32, headroom: usize) -> Result<AfXdp> {
        let failed = |what: &'static str| {
            let name = end.name().to_owned();
            move |error: String| {
                Error::other(format!("cannot {what} of an AF_XDP socket on {name} queue {queue}"), error)
            }
        };
        let config = UmemCfgBuilder {
            frame_size: FrameSize::TwoK,
            head_room: headroom as u32,
            frame_count: FRAMES,
            ..UmemCfgBuilder::default()
        };
        let config = config.build().map_err(|error| failed("choose the memory")(error.to_string()))?;
        let mut umem = Umem::map(config).map_err(|error| failed("make the memory")(error.to_string()))?;
        let counts = RingConfigBuilder { rx_count: FRAMES, tx_count: 0, fill_count: FRAMES, completion_count: FRAMES };
        let counts = counts.build().map_err(|error| failed("choose the rings")(error.to_string()))?;
        let builder = end.netns().enter(XdpSocketBuilder::new);
        let mut builder = builder.map_err(|error| failed("make the descriptor")(error.to_string()))?;
        let built = builder.build_rings(&umem, counts).map_err(|error| failed("make the rings")(error.to_string()));
        let (mut rings, mut flags) = built?;
        flags.force_copy();
        let socket = builder
            .bind(NicIndex(end.ifindex()), queue, flags)
            .map_err(|error| failed("bind the descriptor")(error.to_string()))?;
        // SAFETY: the memory outlives the socket: see the order of the fields.
        let filled = unsafe { rings.fill_ring.enqueue(&mut umem, FRAMES as usize) };
        match filled == FRAMES as usize {
            true => Ok(AfXdp { socket, rings, umem, headroom }),
            false => Err(failed("hand over the frames")(format!("the kernel took {filled} of {FRAMES}"))),
        }
    }

    /// The next frame. `give_back` gets the bytes in front of it before the frame is given back to be filled.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`](std::io::ErrorKind::TimedOut) if none comes within [`RECV_TIMEOUT`].
    pub fn recv(&mut self, give_back: impl FnOnce(&mut [u8])) -> Result<Frame> {
        let failed = |error: String| Error::other("cannot receive from an AF_XDP socket", error);
        let mut received = HeapSlab::with_capacity(1);
        let ring = self.rings.rx_ring.as_mut().ok_or_else(|| failed("it has no ring to receive from".to_owned()))?;
        // SAFETY: the packet is given back below, before the memory can go.
        while unsafe { ring.recv(&self.umem, &mut received) } == 0 {
            let timeout = PollTimeout::new(Some(RECV_TIMEOUT));
            if !self.socket.poll_read(timeout).map_err(|error| failed(error.to_string()))? {
                return Err(Error::timed_out("cannot receive from an AF_XDP socket", "no frame came in time"));
            }
        }
        let mut packet = received.pop_back().ok_or_else(|| failed("the ring gave no frame".to_owned()))?;
        let bytes = packet.to_vec();
        packet.adjust_head(-(self.headroom as i32)).map_err(|error| failed(error.to_string()))?;
        let in_front = packet[..self.headroom].to_vec();
        give_back(&mut packet[..self.headroom]);
        self.umem.free_packet(packet);
        // SAFETY: as in `bind`.
        let filled = unsafe { self.rings.fill_ring.enqueue(&mut self.umem, 1) };
        match filled {
            1 => Ok(Frame { in_front, packet: bytes }),
            _ => Err(failed("the kernel did not take the frame back".to_owned())),
        }
    }
}

impl AsFd for AfXdp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the socket is there.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}
