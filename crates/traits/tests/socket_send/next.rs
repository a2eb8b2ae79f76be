//! Traits of one datagram: they are the next one's that is sent, over those of its socket, and of no other.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
};

use packet_traits_lab::Family;
use packet_traits_socket::{SocketTraits, Traits, UdpTraits};

use crate::{
    ABSENT, HOOKS, NOTHING, Sender, assert_seen, by_number,
    common::{
        self,
        record::{self, HAS_SEQ, Records, Stage, shown},
        sockopt, tcp,
    },
    datagram, full, full_sink, seq_over,
};

/// The memory of a datagram's skb is the next one's at once, since nobody keeps what arrives.
#[test]
fn a_datagrams_own_traits_are_not_the_next_ones() {
    const DATAGRAMS: u64 = 4000;
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let sender = Sender::new();
        let _sink = full_sink(&sender, family);
        let socket = sender.udp(family);
        let send = |number: u64| match number % 2 {
            0 => socket.send(&datagram(number)).unwrap(),
            _ => socket.send_with_traits(&datagram(number), &sender.traits(number)).unwrap(),
        };
        for number in 0..DATAGRAMS {
            send(number);
        }
        let own = |number| if number % 2 == 0 { ABSENT } else { full(number) };
        assert_seen(&sender.records(), (0..DATAGRAMS).map(|number| (number, own(number))));

        socket.set_traits(&sender.traits(9)).unwrap();
        let send = |number: u64| match number % 3 {
            0 => socket.send(&datagram(number)).unwrap(),
            1 => socket.send_with_traits(&datagram(number), &sender.traits(number)).unwrap(),
            _ => socket.send_with_traits(&datagram(number), &sender.seq(number)).unwrap(),
        };
        for number in 0..DATAGRAMS {
            send(number);
        }
        let seen = |number| match number % 3 {
            0 => full(9),
            1 => full(number),
            _ => seq_over(number, 9),
        };
        assert_seen(&sender.records(), (0..DATAGRAMS).map(|number| (number, seen(number))));
    }
}

/// Makes the link look for the other end's address, which never answers.
fn forget_neighbour(sender: &Sender) {
    let (rx, tx) = (sender.lab.pair.rx(), sender.lab.pair.tx());
    rx.netns().ip(&format!("link set {} arp on", rx.name())).unwrap();
    for (family, version) in Family::BOTH.into_iter().zip(["ipv4", "ipv6"]) {
        // it asks once a second; when it gives up, it drops what waits
        rx.netns().set_sysctl(&format!("net/{version}/neigh/{}/mcast_solicit", rx.name()), "100").unwrap();
        let _ = rx.netns().ip(&format!("neigh del {} dev {}", tx.ip(family), rx.name()));
    }
}

/// Tells it.
fn find_neighbour(sender: &Sender, family: Family) {
    let (rx, tx) = (sender.lab.pair.rx(), sender.lab.pair.tx());
    let (ip, mac) = (tx.ip(family), tx.mac());
    rx.netns().ip(&format!("neigh replace {ip} lladdr {mac} dev {} nud permanent", rx.name())).unwrap();
}

#[test]
fn a_failed_send_leaves_nothing_for_the_next_datagram() {
    const CLOSED_PORT: u16 = 9;
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let sender = Sender::new();
        let socket = sender.udp(family);
        socket.set_traits(&sender.traits(9)).unwrap();
        let failed = |socket: &UdpSocket, data: &[u8], errno| {
            let error = socket.send_with_traits(data, &sender.traits(1)).unwrap_err();
            assert_eq!(error.errno(), errno, "{error}");
        };
        // too long
        let _sink = sender.sink(family);
        failed(&socket, &[0; 70_000], libc::EMSGSIZE);
        socket.send(&datagram(0)).unwrap();
        // an error of an earlier datagram: nobody is there
        socket.connect(SocketAddr::new(sender.to(family).ip(), CLOSED_PORT)).unwrap();
        socket.send(&datagram(1)).unwrap();
        wait_for_error(&socket);
        failed(&socket, &datagram(2), libc::ECONNREFUSED);
        socket.connect(sender.to(family)).unwrap();
        socket.send(&datagram(3)).unwrap();
        assert_seen(&sender.records(), [(0, full(9)), (3, full(9))]);

        // no room, since what was sent waits for the other end's address
        let socket = sender.udp(family);
        socket.set_traits(&sender.traits(9)).unwrap();
        socket.set_nonblocking(true).unwrap();
        sockopt::set_int(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, 1).unwrap();
        forget_neighbour(&sender);
        let mut sent = 10;
        while socket.send(&datagram(sent)).is_ok() {
            sent += 1;
        }
        failed(&socket, &datagram(sent), libc::EAGAIN);
        find_neighbour(&sender, family);
        socket.set_nonblocking(false).unwrap();
        socket.send(&datagram(sent)).unwrap();
        assert!(sent > 10);
        assert_seen(&sender.records(), (10..=sent).map(|number| (number, full(9))));
    }
}

/// Sends nothing, with success (include/linux/socket.h).
const MSG_PROBE: libc::c_int = 0x10;

/// A send that succeeds may send nothing.
#[test]
fn what_no_datagram_has_taken_can_be_taken_back() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let sender = Sender::new();
        let (socket, _sink) = (sender.udp(family), sender.sink(family));
        let probe = || {
            // SAFETY: there is nothing to be read.
            let sent = unsafe { libc::send(socket.as_raw_fd(), std::ptr::null(), 0, MSG_PROBE) };
            assert_eq!(sent, 0);
        };
        let none = Traits::new(&sender.keys);
        socket.set_next_traits(&sender.traits(1)).unwrap();
        probe();
        socket.set_next_traits(&none).unwrap();
        socket.send(&datagram(0)).unwrap();
        // but not what is on its way
        socket.set_next_traits(&sender.traits(2)).unwrap();
        socket.send(&datagram(2)).unwrap();
        socket.set_next_traits(&none).unwrap();
        assert_seen(&sender.records(), [(0, (0, record::Traits::default())), (2, full(2))]);
    }
}

/// Waits until the socket has an error to report.
fn wait_for_error(socket: &UdpSocket) {
    assert!(tcp::readable(socket), "no error came");
}

/// While the address of the other end is looked up, datagrams wait between the cgroup and TC.
#[test]
fn a_datagram_that_waits_for_an_address_keeps_its_own_traits_until_the_next_has_some() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let sender = Sender::new();
        let (_sink, socket) = (sender.sink(family), sender.udp(family));
        let other = sender.udp(family);
        socket.set_traits(&sender.traits(9)).unwrap();
        forget_neighbour(&sender);
        socket.send(&datagram(0)).unwrap();
        socket.send_with_traits(&datagram(1), &sender.seq(1)).unwrap();
        socket.send(&datagram(2)).unwrap();
        other.send_with_traits(&datagram(3), &sender.seq(3)).unwrap();
        other.send(&datagram(4)).unwrap();
        let waiting = sender.records();
        for hook in [Stage::TcEgress, Stage::NetDevQueue] {
            assert_eq!(waiting.count(hook), 0);
        }
        find_neighbour(&sender, family);
        let only_seq = |seq| (HAS_SEQ, record::Traits { seq, ..NOTHING });
        let expected = [(0, full(9)), (1, seq_over(1, 9)), (2, full(9)), (3, only_seq(3)), (4, ABSENT)];
        let records = Records::collect(&sender.object, |records| records.count(Stage::NetDevQueue) == 5).and(waiting);
        assert_seen(&records, expected);

        // the next one with traits takes its place: what waits has its socket's then, never the other's
        forget_neighbour(&sender);
        socket.send_with_traits(&datagram(1), &sender.seq(1)).unwrap();
        socket.send_with_traits(&datagram(2), &sender.traits(2)).unwrap();
        find_neighbour(&sender, family);
        let records = Records::collect(&sender.object, |records| records.count(Stage::NetDevQueue) == 2);
        for hook in shown(HOOKS) {
            let waited = matches!(hook, Stage::TcEgress | Stage::NetDevQueue);
            let first = if waited { full(9) } else { seq_over(1, 9) };
            assert_eq!(by_number(&records, hook), BTreeMap::from([(1, first), (2, full(2))]), "{hook:?}");
        }
    }
}
