//! Datagrams that travelled as one packet, because GRO put them together or the sender left cutting to the device: they have
//! the traits of that packet, or none.

use std::os::fd::AsFd;

use packet_traits::attach::XdpMode;
use packet_traits_lab::{Family, VethOptions, frame::Flow, number_of, send_together};
use packet_traits_socket::SocketTraits;

use crate::{
    SIZE,
    common::{
        self, TEST_PORT,
        datagrams::{Carried, Datagram, Reader, Way, recvmsg},
        sockets::{Setup, SocketLab},
        sockopt::set_int,
    },
    own,
};

/// include/uapi/linux/udp.h
const UDP_SEGMENT: i32 = 103;
const UDP_GRO: i32 = 104;

/// Datagrams that go together.
const COUNT: u64 = 16;

/// As many as may come as one.
const ROOM: usize = 65_536;

fn merging_lab() -> SocketLab {
    let mut lab = SocketLab::with(&Setup { veth: VethOptions::new().gro(true), ..Setup::default() });
    lab.mark_some();
    lab
}

/// The datagrams with these numbers, each in a packet of its own, all of one flow.
fn send_frames(lab: &SocketLab, family: Family, numbers: impl Iterator<Item = u64>) {
    let (tx, rx) = (lab.pair.tx(), lab.pair.rx());
    let flow = Flow::between(tx, rx, family, 40_000, TEST_PORT);
    let frames: Vec<_> = numbers.map(|number| flow.udp(&numbered(number))).collect();
    send_together(tx, rx, &frames).unwrap();
}

fn numbered(number: u64) -> Vec<u8> {
    [&number.to_be_bytes()[..], &[0; SIZE - 8]].concat()
}

/// The numbers of the datagrams that came as one.
fn numbers(datagram: &Datagram) -> Vec<u64> {
    assert_eq!(datagram.data.len() % SIZE, 0);
    datagram.data.chunks(SIZE).map(|data| number_of(data).unwrap()).collect()
}

/// Receives until there are as many datagrams as were sent.
fn recv_merged(reader: &mut Reader) -> Vec<Datagram> {
    let mut received: Vec<Datagram> = Vec::new();
    while received.iter().map(|datagram| numbers(datagram).len()).sum::<usize>() < COUNT as usize {
        received.extend(reader.recv().unwrap());
    }
    received
}

#[test]
fn datagrams_that_gro_merges_have_the_first_ones_traits() {
    if !common::area_enabled() {
        return;
    }
    let lab = merging_lab();
    for way in Way::ALL {
        for family in Family::BOTH {
            let socket = lab.udp(family);
            set_int(&socket, libc::IPPROTO_UDP, UDP_GRO, 1).unwrap();
            let mut reader = Reader::with_room(way, socket, &lab, ROOM);
            // one tenant, a block key: nothing keeps them apart
            send_frames(&lab, family, (0..COUNT).map(|number| 5 * number));
            let received = recv_merged(&mut reader);
            assert!(received.len() < COUNT as usize / 2, "GRO merged them: {received:?}");
            for datagram in &received {
                assert_eq!(datagram.carried, Some(own(numbers(datagram)[0])));
            }
        }
    }
}

#[test]
fn datagrams_that_gro_merges_are_of_one_tenant() {
    if !common::enabled() {
        return;
    }
    let lab = merging_lab();
    for family in Family::BOTH {
        let socket = lab.udp(family);
        set_int(&socket, libc::IPPROTO_UDP, UDP_GRO, 1).unwrap();
        let mut reader = Reader::with_room(Way::Once, socket, &lab, ROOM);
        // five tenants, in turn
        send_frames(&lab, family, 0..COUNT);
        for datagram in &recv_merged(&mut reader) {
            let numbers = numbers(datagram);
            assert_eq!(datagram.carried, Some(own(numbers[0])));
            assert!(numbers.iter().all(|number| number % 5 == numbers[0] % 5), "{numbers:?}");
        }
    }
}

#[test]
fn a_socket_that_wants_no_merged_datagrams_gets_each_ones_own_traits() {
    if !common::enabled() {
        return;
    }
    let lab = merging_lab();
    for family in Family::BOTH {
        let mut reader = Reader::with_room(Way::Once, lab.udp(family), &lab, ROOM);
        send_frames(&lab, family, (0..COUNT).map(|number| 5 * number));
        let received: Vec<_> = recv_merged(&mut reader).iter().map(|one| (numbers(one), one.carried)).collect();
        let expected = (0..COUNT).map(|number| (vec![5 * number], Some(own(5 * number))));
        assert_eq!(received, expected.collect::<Vec<_>>());
    }
}

/// What a sender has cut by the device comes uncut over a veth with generic XDP, which takes it for one packet, and cut with
/// native XDP, for which veth has it cut before.
fn cut_by_the_sender(mode: XdpMode, gro: i32, check: impl Fn(&Datagram)) {
    if !common::enabled() {
        return;
    }
    let mut lab = SocketLab::with(&Setup { xdp: Some(mode), ..Setup::default() });
    lab.mark_some();
    for way in Way::ALL {
        for family in Family::BOTH {
            let (client, socket) = (lab.udp_client(family), lab.udp(family));
            set_int(&socket, libc::IPPROTO_UDP, UDP_GRO, gro).unwrap();
            set_int(&client, libc::IPPROTO_UDP, UDP_SEGMENT, SIZE as i32).unwrap();
            let mut reader = Reader::with_room(way, socket, &lab, ROOM);
            let payload: Vec<u8> = (3..3 + COUNT).flat_map(numbered).collect();
            client.send(&payload).unwrap();
            let received = recv_merged(&mut reader);
            assert_eq!(received.iter().flat_map(numbers).collect::<Vec<_>>(), (3..3 + COUNT).collect::<Vec<_>>());
            received.iter().for_each(&check);
        }
    }
}

#[test]
fn datagrams_that_the_sender_cuts_in_time_have_their_own_traits() {
    cut_by_the_sender(XdpMode::Native, 0, |datagram| assert_eq!(datagram.carried, Some(own(datagram.number()))));
}

#[test]
fn datagrams_that_are_cut_behind_xdp_have_no_traits() {
    cut_by_the_sender(XdpMode::Generic, 0, |datagram| {
        // the mark is that of the packet they were
        let nothing = Carried { mark: own(3).mark, ..Carried::NOTHING };
        assert_eq!(datagram.carried, Some(nothing), "{}", datagram.number());
    });
}

#[test]
fn datagrams_that_are_never_cut_have_the_first_ones_traits() {
    cut_by_the_sender(XdpMode::Generic, 1, |datagram| {
        assert_eq!((numbers(datagram).len(), datagram.carried), (COUNT as usize, Some(own(3))));
    });
}

/// A handle is for a buffer that `recvmsg` fills, however many datagrams are in it.
#[test]
fn a_merged_datagram_has_one_handle() {
    if !common::area_enabled() {
        return;
    }
    let lab = merging_lab();
    let socket = lab.udp(Family::V4);
    set_int(&socket, libc::IPPROTO_UDP, UDP_GRO, 1).unwrap();
    socket.receive_traits(true).unwrap();
    send_frames(&lab, Family::V4, (0..COUNT).map(|number| 5 * number));
    let message = recvmsg(&socket.as_fd(), ROOM, 0).unwrap();
    assert!(message.data.len() > SIZE);
    assert_eq!(message.int(libc::IPPROTO_UDP, UDP_GRO), Some(SIZE as u32));
    assert_eq!(message.control.iter().filter(|control| control.kind == libc::SO_MARK).count(), 1);
}
