//! The newest data of a connection: what came last in sequence and TCP has taken.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::fd::AsFd,
    thread,
};

use packet_traits::attach::{Direction, XdpMode};
use packet_traits_lab::{
    Family, VethOptions,
    frame::{ACK, FIN, PSH},
};
use packet_traits_socket::SocketTraits;

use crate::{
    Numbered, Reader, Source, all,
    common::{
        self, BOTH_MODES,
        crafted::Crafted,
        record::{Record, Records, Stage},
        sockets::{Assigned, Setup, SocketLab},
        sockopt, tcp,
    },
    connect, read_number, saving_listener, wait_for, write_number,
};

/// One connection whose every segment is crafted.
struct Segments {
    client: Crafted,
    accepted: TcpStream,
    link: Numbered,
    /// How many the client has sent.
    sent: u64,
}

impl Segments {
    fn new(family: Family) -> Segments {
        let link = Numbered::new();
        let listener = saving_listener(&link.lab, family);
        listener.receive_traits(true).unwrap();
        let mut client = Crafted::new(&link.lab.pair, family, 40000);
        client.connect(&[]);
        let (accepted, _) = tcp::accept(&listener);
        Segments { client, accepted, link, sent: 2 }
    }

    /// Sends one and waits until TCP has got it. Returns its number.
    #[track_caller]
    fn inject(&mut self, frame: &[u8]) -> u64 {
        let before = segments_in(&self.accepted);
        self.client.inject_frame(frame);
        wait_for(|| segments_in(&self.accepted) == before + 1);
        self.sent += 1;
        self.sent - 1
    }

    /// Sends data that begins this far behind what has been sent so far.
    #[track_caller]
    fn inject_at(&mut self, offset: i32, flags: u8, data: &[u8]) -> u64 {
        let sequence = self.client.sequence.wrapping_add_signed(offset);
        self.inject(&self.client.flow.tcp(sequence, self.client.acknowledged, flags, data))
    }

    /// Sends the next data.
    #[track_caller]
    fn send(&mut self, data: &[u8]) -> u64 {
        let number = self.inject_at(0, ACK, data);
        self.client.sequence += data.len() as u32;
        number
    }

    /// Number of the newest data.
    #[track_caller]
    fn last(&self) -> Option<u64> {
        self.link.number(&self.accepted, Source::Last)
    }
}

/// How many segments the socket has got: `tcpi_segs_in` of `struct tcp_info`.
fn segments_in(socket: &impl AsFd) -> u32 {
    let mut info = [0; 144];
    sockopt::get(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).unwrap();
    u32::from_ne_bytes(info[140..].try_into().unwrap())
}

#[test]
fn the_newest_data_is_what_last_came_in_sequence() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let mut segments = Segments::new(family);
        assert_eq!(segments.last(), None, "there has been no data");
        let first = segments.send(&[1; 100]);
        assert_eq!(segments.last(), Some(first));
        segments.send(&[]);
        assert_eq!(segments.last(), Some(first), "an acknowledgement has no data");
        for (offset, len) in [(-100, 100), (-100, 10), (-10, 10), (-101, 50), (-5000, 100)] {
            segments.inject_at(offset, ACK, &vec![1; len]);
            assert_eq!(segments.last(), Some(first), "{len} bytes at {offset} are old");
        }
        let overlapping = segments.inject_at(-50, ACK | PSH, &[2; 60]);
        segments.client.sequence += 10;
        assert_eq!(segments.last(), Some(overlapping), "10 bytes of it are new");
        segments.inject_at(100, ACK, &[4; 100]);
        assert_eq!(segments.last(), Some(overlapping), "it cannot be read yet, for what is missing before it");
        let missing = segments.send(&[3; 100]);
        assert_eq!(segments.last(), Some(missing));
        segments.client.sequence += 100;
        let next = segments.send(&[5; 100]);
        assert_eq!(segments.last(), Some(next));

        let mut received = Vec::new();
        segments.client.inject(segments.client.sequence, ACK | FIN, &[]);
        segments.accepted.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), 100 + 10 + 300);
        assert_eq!(segments.last(), Some(next));
        assert_eq!(segments.link.number(&segments.accepted, Source::Syn), Some(0));
    }
}

#[test]
fn data_that_tcp_does_not_take_is_not_the_newest() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let mut segments = Segments::new(family);
        let mut newest = segments.send(&[1; 100]);
        let window = 70_000; // more than the receiver offers, which has no window scaling
        for offset in [window, 1 << 30, i32::MAX, -(1 << 30), i32::MIN] {
            segments.inject_at(offset, ACK, &[2; 100]);
            assert_eq!(segments.last(), Some(newest), "{offset} is out of the window");
        }
        newest = segments.send(&[3; 100]);
        assert_eq!(segments.last(), Some(newest));

        let flow = segments.client.flow;
        let (sequence, acknowledged) = (segments.client.sequence, segments.client.acknowledged);
        let mut corrupt = flow.tcp(sequence, acknowledged, ACK, &[4; 200]);
        *corrupt.last_mut().unwrap() ^= 1;
        let rejected = [
            ("no ACK flag", flow.tcp(sequence, acknowledged, PSH, &[4; 100])),
            ("acknowledges what was not sent", flow.tcp(sequence, acknowledged + 100_000, ACK, &[4; 100])),
            ("acknowledges what was long ago", flow.tcp(sequence, acknowledged ^ 0x8000_0000, ACK, &[4; 100])),
            ("a wrong checksum", corrupt),
        ];
        for (why, frame) in rejected {
            segments.inject(&frame);
            assert_eq!(segments.last(), Some(newest), "{why}");
        }
        newest = segments.send(&[5; 10]);
        assert_eq!(segments.last(), Some(newest), "and nothing of it stays");
    }
}

#[test]
fn every_segment_of_its_own_has_its_own_traits() {
    if !common::enabled() {
        return;
    }
    for mode in BOTH_MODES {
        let lab = SocketLab::with(&Setup { xdp: Some(mode), ..Setup::default() });
        for family in Family::BOTH {
            let listener = lab.listener(family);
            listener.receive_traits(true).unwrap();
            let (mut client, mut accepted) = connect(&lab, family, &listener);
            let (reader, peer) = (Reader::of(&accepted), client.local_addr().unwrap());
            reader.assert_nothing(&accepted, Source::Last);
            for number in 0..50 {
                write_number(&mut client, number);
                if number % 2 == 0 {
                    assert_eq!(read_number(&mut accepted), number);
                    reader.assert(&accepted, Source::Last, Assigned::data(peer, number));
                    // what it sends, and what acknowledges that, changes nothing
                    write_number(&mut accepted, number);
                    assert_eq!(read_number(&mut client), number);
                } else {
                    // before it is read
                    assert!(tcp::readable(&accepted));
                }
                reader.assert(&accepted, Source::Last, Assigned::data(peer, number));
                if number % 2 == 1 {
                    assert_eq!(read_number(&mut accepted), number);
                }
            }
            reader.assert_nothing(&accepted, Source::Syn);
        }
    }
}

#[test]
fn receiving_can_begin_and_end_on_a_connection() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let listener = lab.listener(Family::V4);
    let (mut client, mut accepted) = connect(&lab, Family::V4, &listener);
    let (reader, peer) = (Reader::of(&accepted), client.local_addr().unwrap());
    let mut exchange = |accepted: &mut TcpStream, number| {
        write_number(&mut client, number);
        assert_eq!(read_number(accepted), number);
    };
    exchange(&mut accepted, 1);
    reader.assert_nothing(&accepted, Source::Last);
    accepted.receive_traits(true).unwrap();
    reader.assert_nothing(&accepted, Source::Last);
    exchange(&mut accepted, 2);
    reader.assert(&accepted, Source::Last, Assigned::data(peer, 2));
    accepted.receive_traits(false).unwrap();
    exchange(&mut accepted, 3);
    reader.assert_nothing(&accepted, Source::Last);
    accepted.receive_traits(true).unwrap();
    reader.assert_nothing(&accepted, Source::Last);
    exchange(&mut accepted, 4);
    reader.assert(&accepted, Source::Last, Assigned::data(peer, 4));
}

/// GRO merges segments that differ in the traits of the packet region only; the merged one has those of the first.
#[test]
fn bulk_data_has_the_traits_of_the_newest_packet_that_gro_made() {
    const BYTES: usize = 4 << 20;
    /// Ethernet, IP, TCP with timestamps.
    const HEADERS: [u32; 2] = [14 + 20 + 32, 14 + 40 + 32];
    if !common::area_enabled() {
        return;
    }
    for mode in BOTH_MODES {
        let mut link = Numbered::with("stages", "assign_flow", mode, VethOptions::new().gro(true));
        link.attached.push(common::attach_tc(&link.object, "tc_ingress", link.lab.pair.rx(), Direction::Ingress));
        // no tail loss probes, which send again what came last: that is no new data
        link.lab.pair.tx().netns().set_sysctl("net/ipv4/tcp_early_retrans", "0").unwrap();
        for (family, headers) in Family::BOTH.into_iter().zip(HEADERS) {
            let listener = link.lab.listener(family);
            listener.receive_traits(true).unwrap();
            let (mut client, mut accepted) = connect(&link.lab, family, &listener);
            let newest = |accepted: &TcpStream| {
                let traits = all(accepted, Source::Last, &link.keys);
                assert!(traits.is_found());
                assert_eq!(traits.get(&link.tenant), Some(7));
                traits.get(&link.seq).unwrap()
            };
            thread::scope(|scope| {
                scope.spawn(|| client.write_all(&vec![1; BYTES]).unwrap());
                let (mut received, mut before, mut buffer) = (0, 0, vec![0; 1 << 16]);
                while received < BYTES {
                    received += accepted.read(&mut buffer).unwrap();
                    let now = newest(&accepted);
                    assert!(now >= before, "{now} came before {before}");
                    before = now;
                }
            });
            let records = Records::collect(&link.object, |_| true);
            let (packets, merged) = (records.count(Stage::Xdp), records.count(Stage::TcIngress));
            // generic XDP sees a packet behind GRO, if at all: then the packets are those that GRO has made
            assert!(mode == XdpMode::Generic || merged < packets / 2, "GRO has made {merged} packets of {packets}");
            let with_data = |record: &&Record| record.len > headers;
            let last = records.at(Stage::TcIngress).filter(with_data).map(|record| record.traits.seq).max();
            assert_eq!(Some(newest(&accepted)), last);
        }
    }
}
