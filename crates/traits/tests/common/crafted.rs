//! A TCP client whose segments are crafted one by one, from an address at which no kernel answers.

use std::net::SocketAddr;

use etherparse::{SlicedPacket, TransportSlice};
use packet_traits_lab::{
    Family, PacketSocket, Pair, RECV_TIMEOUT,
    frame::{ACK, Flow, IpPair, SYN},
};

use super::TEST_PORT;

/// The client. It has no TCP options, a window of 64 KiB and no patience: what is lost is not sent again.
pub struct Crafted {
    pub flow: Flow,
    /// Sequence number of what is sent next.
    pub sequence: u32,
    /// Everything that is before this was received.
    pub acknowledged: u32,
    wire: PacketSocket,
}

/// What the receiver answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
}

impl Crafted {
    /// A client at the sender's side of a pair, whose packets go to [`TEST_PORT`].
    pub fn new(pair: &Pair, family: Family, port: u16) -> Crafted {
        let mut flow = Flow::between(pair.tx(), pair.rx(), family, port, TEST_PORT);
        flow.ip = match flow.ip {
            IpPair::V4(_, to) => IpPair::V4([10, 77, 0, 99].into(), to),
            IpPair::V6(_, to) => IpPair::V6([0xfd77, 0, 0, 0, 0, 0, 0, 0x99].into(), to),
        };
        let wire = PacketSocket::on(pair.tx()).unwrap();
        let mut client = Crafted { flow, sequence: 1000, acknowledged: 0, wire };
        let (ip, rx, mac) = (client.addr().ip(), pair.rx(), pair.tx().mac());
        rx.netns().ip(&format!("neigh replace {ip} lladdr {mac} dev {} nud permanent", rx.name())).unwrap();
        client.sequence += u32::from(port) << 8;
        client
    }

    /// Where it seems to be.
    pub fn addr(&self) -> SocketAddr {
        let port = self.flow.src_port;
        match self.flow.ip {
            IpPair::V4(from, _) => SocketAddr::from((from, port)),
            IpPair::V6(from, _) => SocketAddr::from((from, port)),
        }
    }

    /// Sends the first segment, with data or without, and takes the answer to it.
    pub fn syn(&mut self, data: &[u8]) -> Answer {
        self.inject(self.sequence, SYN, data);
        self.sequence = self.sequence.wrapping_add(1 + data.len() as u32);
        let answer = self.answer();
        assert_eq!(answer.flags & (SYN | ACK), SYN | ACK, "{answer:?}");
        self.acknowledged = answer.sequence.wrapping_add(1);
        answer
    }

    /// Connects: the acknowledgement that ends the handshake has this data.
    pub fn connect(&mut self, data: &[u8]) {
        self.syn(&[]);
        self.send(data);
    }

    /// Sends the next data, or an acknowledgement without any.
    pub fn send(&mut self, data: &[u8]) {
        self.inject(self.sequence, ACK, data);
        self.sequence = self.sequence.wrapping_add(data.len() as u32);
    }

    /// Sends a segment that is not in sequence.
    pub fn inject(&self, sequence: u32, flags: u8, data: &[u8]) {
        self.inject_frame(&self.flow.tcp(sequence, self.acknowledged, flags, data));
    }

    /// Sends a frame.
    pub fn inject_frame(&self, frame: &[u8]) {
        self.wire.send(frame).unwrap();
    }

    /// What comes next.
    #[track_caller]
    pub fn answer(&self) -> Answer {
        let wanted = |frame: &packet_traits_lab::Captured| !frame.outgoing && self.parse(&frame.bytes).is_some();
        let frame = self.wire.wait_for(RECV_TIMEOUT, wanted).unwrap();
        self.parse(&frame.bytes).unwrap()
    }

    /// Waits until the receiver has said that it has everything that was sent in sequence.
    #[track_caller]
    pub fn wait_until_received(&self) {
        while self.answer().acknowledged != self.sequence {}
    }

    fn parse(&self, frame: &[u8]) -> Option<Answer> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(TransportSlice::Tcp(segment)) = packet.transport else { return None };
        let ours = (segment.source_port(), segment.destination_port()) == (self.flow.dst_port, self.flow.src_port);
        ours.then(|| Answer {
            sequence: segment.sequence_number(),
            acknowledged: segment.acknowledgment_number(),
            flags: segment.slice()[13],
        })
    }
}
