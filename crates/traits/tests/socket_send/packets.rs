//! However datagrams leave, each packet has its traits, and its socket's mark: in fragments, many at once, to many, and
//! written in parts.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsRawFd,
};

use packet_traits_lab::Family;
use packet_traits_socket::{SocketTraits, Traits, UdpTraits};

use crate::{
    ABSENT, HOOKS, IS_FRAGMENT, Sender, assert_seen,
    common::{
        self, TEST_PORT,
        record::{Stage, shown},
        sockopt,
    },
    datagram, full, seq_over,
};

#[test]
fn a_datagram_leaves_with_its_sockets_mark() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    for family in Family::BOTH {
        let (_sink, socket) = (sender.sink(family), sender.udp(family));
        for mark in [0, 9, 0x8000_0001u32] {
            sockopt::set_int(&socket, libc::SOL_SOCKET, libc::SO_MARK, mark as i32).unwrap();
            socket.send(&datagram(0)).unwrap();
            socket.send_with_traits(&datagram(1), &sender.traits(1)).unwrap();
            socket.set_traits(&sender.traits(2)).unwrap();
            socket.send(&datagram(2)).unwrap();
            socket.set_traits(&Traits::new(&sender.keys)).unwrap();
            let records = sender.records();
            for hook in shown(HOOKS) {
                let marks: Vec<u64> = records.at(hook).map(|record| record.extra).collect();
                assert_eq!(marks, [u64::from(mark); 3], "{hook:?}");
            }
        }
    }
}

/// Pieces of a datagram: only the first one is the packet that its own traits are bound to.
#[test]
fn fragments_have_their_sockets_traits_and_the_first_one_its_datagrams() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    for family in Family::BOTH {
        let (_sink, socket) = (sender.sink(family), sender.udp(family));
        socket.set_traits(&sender.traits(9)).unwrap();
        let long = |number: u64| [&number.to_be_bytes()[..], &[0; 4000]].concat();
        for own in [false, true] {
            match own {
                false => socket.send(&long(1)).unwrap(),
                true => socket.send_with_traits(&long(1), &sender.seq(1)).unwrap(),
            };
            socket.send(&datagram(2)).unwrap();
            let records = sender.records();
            let first = if own { seq_over(1, 9) } else { full(9) };
            for hook in shown(HOOKS) {
                let seen: Vec<_> = records
                    .at(hook)
                    .map(|record| (record.extra & IS_FRAGMENT != 0, (record.present, record.traits)))
                    .collect();
                let whole = matches!(hook, Stage::LocalOut | Stage::PostRouting | Stage::CgroupEgress);
                let later = if whole { 0 } else { 2 };
                assert_eq!(seen[0], (false, first), "{hook:?}");
                assert_eq!(seen[1..=later], vec![(true, full(9)); later], "{hook:?}");
                assert_eq!(seen[later + 1..], [(false, full(9))], "{hook:?}");
            }
        }
    }
}

/// What UDP_SEGMENT sends at once is one packet for every hook.
#[test]
fn datagrams_that_are_sent_at_once_have_the_same_traits() {
    const UDP_SEGMENT: i32 = 103; // include/uapi/linux/udp.h
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let sender = Sender::new();
        let (sink, socket) = (sender.sink(family), sender.udp(family));
        socket.set_traits(&sender.traits(9)).unwrap();
        sockopt::set_int(&socket, libc::IPPROTO_UDP, UDP_SEGMENT, 1000).unwrap();
        socket.send(&[1; 4000]).unwrap();
        socket.send_with_traits(&[2; 4000], &sender.seq(2)).unwrap();
        socket.send(&[3; 4000]).unwrap();
        let records = sender.records();
        for hook in shown(HOOKS) {
            let seen: Vec<_> = records.at(hook).map(|record| (record.present, record.traits)).collect();
            assert_eq!(seen, [full(9), seq_over(2, 9), full(9)], "{hook:?}");
        }
        for datagram in 0..12 {
            let mut data = [0; 4000];
            assert_eq!(sink.recv(&mut data).unwrap(), 1000);
            assert_eq!(data[0], 1 + datagram / 4);
        }
    }
}

/// Of a datagram to many, the host keeps a copy for itself, which has no socket.
#[test]
fn what_goes_to_many_has_its_traits_when_it_leaves() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    let group = Ipv4Addr::new(239, 1, 1, 1);
    let rx = sender.lab.pair.rx();
    let socket = sender.unconnected(Family::V4);
    socket.set_broadcast(true).unwrap();
    socket.join_multicast_v4(&group, &rx.ipv4()).unwrap();
    socket.set_traits(&sender.traits(9)).unwrap();
    rx.netns().ip(&format!("route add {group} dev {}", rx.name())).unwrap();
    for to in [group, Ipv4Addr::new(10, 77, 0, 255)] {
        for number in 0..10 {
            let to = SocketAddr::from((to, TEST_PORT));
            match number % 2 {
                0 => socket.send_to(&datagram(number), to).unwrap(),
                _ => socket.send_to_with_traits(&datagram(number), to, &sender.seq(number)).unwrap(),
            };
        }
        let records = sender.records();
        let expected: Vec<_> =
            (0..10).map(|number| if number % 2 == 0 { full(9) } else { seq_over(number, 9) }).collect();
        for hook in shown(HOOKS) {
            let (copies, seen): (Vec<_>, Vec<_>) =
                records.at(hook).map(|record| (record.present, record.traits)).partition(|seen| *seen == ABSENT);
            assert_eq!(seen, expected, "{to}, {hook:?}");
            let copied = if hook == Stage::PostRouting { 10 } else { 0 };
            assert_eq!(copies.len(), copied, "{to}, {hook:?}");
        }
    }
}

#[test]
fn a_datagram_that_is_written_in_parts_has_its_traits() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    for family in Family::BOTH {
        let (_sink, socket) = (sender.sink(family), sender.udp(family));
        let send_part = |data: &[u8]| {
            // SAFETY: the data is readable for its length.
            let sent = unsafe { libc::send(socket.as_raw_fd(), data.as_ptr().cast(), data.len(), libc::MSG_MORE) };
            assert_eq!(sent, data.len() as isize);
        };
        for number in [0, 2] {
            if number == 0 {
                socket.set_next_traits(&sender.traits(number)).unwrap();
                send_part(&datagram(number));
            } else {
                send_part(&datagram(number));
                socket.set_next_traits(&sender.traits(number)).unwrap();
            }
            socket.send(b"the rest").unwrap();
            socket.send(&datagram(number + 1)).unwrap();
        }
        assert_seen(&sender.records(), [(0, full(0)), (1, ABSENT), (2, full(2)), (3, ABSENT)]);
    }
}
