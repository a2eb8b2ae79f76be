//! An AF_XDP socket that receives, in copy mode: the frame's bytes, and those in front of it.

use std::{os::fd::AsRawFd, time::Duration};

use libbpf_rs::{MapCore, MapFlags};
use packet_traits::bind::LoadedObject;
use packet_traits_lab::End;
use xdp::{
    RingConfigBuilder, Rings, Umem,
    nic::NicIndex,
    slab::{HeapSlab, Slab},
    socket::{PollTimeout, XdpSocket, XdpSocketBuilder},
    umem::{FrameSize, UmemCfgBuilder},
};

/// Frames that a socket has: few, so that each is filled again and again.
pub const FRAMES: u32 = 8;

/// A socket on the only queue of an interface.
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
pub struct Frame {
    /// The headroom that was asked for.
    pub in_front: Vec<u8>,
    pub packet: Vec<u8>,
}

impl AfXdp {
    /// A socket on the interface of `end`, in entry 0 of the object's map `sockets`.
    pub fn bind(end: &End, object: &LoadedObject, headroom: usize) -> AfXdp {
        let config = UmemCfgBuilder {
            frame_size: FrameSize::TwoK,
            head_room: headroom as u32,
            frame_count: FRAMES,
            ..UmemCfgBuilder::default()
        };
        let mut umem = Umem::map(config.build().unwrap()).unwrap();
        let counts = RingConfigBuilder { rx_count: FRAMES, tx_count: 0, fill_count: FRAMES, completion_count: FRAMES };
        let mut builder = end.netns().enter(XdpSocketBuilder::new).unwrap();
        let (mut rings, mut flags) = builder.build_rings(&umem, counts.build().unwrap()).unwrap();
        flags.force_copy();
        let socket = builder.bind(NicIndex(end.ifindex()), 0, flags).unwrap();
        // SAFETY: the memory outlives the socket: see the order of the fields.
        let filled = unsafe { rings.fill_ring.enqueue(&mut umem, FRAMES as usize) };
        assert_eq!(filled, FRAMES as usize);
        let sockets = object.map("sockets").unwrap();
        sockets.update(&0u32.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes(), MapFlags::ANY).unwrap();
        AfXdp { socket, rings, umem, headroom }
    }

    /// The next frame. `give_back` gets the bytes in front of it before the frame is given back to be filled.
    pub fn recv(&mut self, give_back: impl FnOnce(&mut [u8])) -> Frame {
        let mut received = HeapSlab::with_capacity(1);
        let ring = self.rings.rx_ring.as_mut().unwrap();
        // SAFETY: the packet is given back below, before the memory can go.
        while unsafe { ring.recv(&self.umem, &mut received) } == 0 {
            let timeout = PollTimeout::new(Some(Duration::from_secs(5)));
            assert!(self.socket.poll_read(timeout).unwrap(), "no frame came");
        }
        let mut packet = received.pop_back().unwrap();
        let bytes = packet.to_vec();
        packet.adjust_head(-(self.headroom as i32)).unwrap();
        let in_front = packet[..self.headroom].to_vec();
        give_back(&mut packet[..self.headroom]);
        self.umem.free_packet(packet);
        // SAFETY: as in `bind`.
        let filled = unsafe { self.rings.fill_ring.enqueue(&mut self.umem, 1) };
        assert_eq!(filled, 1);
        Frame { in_front, packet: bytes }
    }
}
