//! Where the kernel drops a packet, its traits and the reason are read, of exactly the packets that were dropped.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::UdpSocket,
    os::fd::AsFd,
};

use common::{
    BOTH_MODES, Lab, TEST_PORT, attach_netfilter, attach_tc, attach_tracing, attach_xdp, program,
    record::{Record, Records, Stage},
    sockopt,
};
use packet_traits::{
    attach::{Attachment, Direction, NetfilterHook, XdpMode, socket},
    bind::LoadedObject,
    drop_reason,
};
use packet_traits_lab::{
    Chain, End, Family, KernelFeature, PacketSocket, Pair,
    frame::{Flow, SYN},
    kernel_has, number_of, recv_numbered, send_numbered, udp_socket,
};

const PACKETS: u64 = 40;

/// A receiver behind a veth on which all datagrams get traits.
struct Scene {
    object: LoadedObject,
    pair: Pair,
    family: Family,
    _attached: Vec<Attachment>,
    _lab: Lab,
}

impl Scene {
    fn new(mode: XdpMode, family: Family) -> Scene {
        let lab = Lab::new();
        let object = lab.load("drops");
        let pair = Pair::new().unwrap();
        let mut attached = attach_tracing(&object, &["dropped"]);
        attached.push(attach_xdp(&object, "assign", pair.rx(), mode));
        Scene { object, pair, family, _attached: attached, _lab: lab }
    }

    fn rx(&self) -> &End {
        self.pair.rx()
    }

    fn receiver(&self) -> UdpSocket {
        udp_socket(self.rx().netns(), self.rx().addr(self.family, TEST_PORT)).unwrap()
    }

    /// Sends datagrams of 64 bytes with even numbers and of 100 bytes with odd ones.
    fn send(&self) {
        let sender = udp_socket(self.pair.tx().netns(), self.pair.tx().addr(self.family, 0)).unwrap();
        for number in 0..PACKETS {
            let size = if number % 2 == 0 { 64 } else { 100 };
            send_numbered(&sender, self.rx().addr(self.family, TEST_PORT), number..number + 1, size).unwrap();
        }
    }

    /// Sends to a receiver that must get the even numbers only.
    fn send_and_lose_odd(&self, receiver: &UdpSocket) {
        self.send();
        for number in even() {
            assert_eq!(recv_numbered(receiver).unwrap(), number);
        }
    }

    /// Checks that exactly the packets `numbers` were dropped, all for `reason`.
    #[track_caller]
    fn assert_dropped(&self, numbers: impl IntoIterator<Item = u64>, reason: &str) {
        assert_dropped(&self.object, numbers.into_iter().map(|number| (number, reason)).collect());
    }
}

fn even() -> impl Iterator<Item = u64> {
    (0..PACKETS).step_by(2)
}

fn odd() -> impl Iterator<Item = u64> {
    (1..PACKETS).step_by(2)
}

/// Checks that exactly these packets were dropped, for these reasons, and that all their traits were read there.
#[track_caller]
fn assert_dropped(object: &LoadedObject, expected: BTreeMap<u64, &str>) {
    let names = drop_reason::names().unwrap();
    let records = Records::collect(object, |_| false);
    let name = |record: &Record| names[&u32::try_from(record.extra).unwrap()].as_str();
    let dropped: BTreeMap<_, _> = records.at(Stage::Kfree).map(|record| (record.traits.seq, name(record))).collect();
    assert_eq!(dropped, expected);
    records.assert_all_read(Stage::Kfree, expected.into_keys());
}

/// Runs a test with native and generic XDP, IPv4 and IPv6.
fn each(test: impl Fn(Scene)) {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            for family in Family::BOTH {
                test(Scene::new(mode, family));
            }
        }
    }
}

#[test]
fn a_datagram_to_a_closed_port_is_read() {
    each(|scene| {
        scene.send();
        scene.assert_dropped(0..PACKETS, "NO_SOCKET");
    });
}

#[test]
fn a_datagram_that_an_nftables_rule_drops_is_read() {
    each(|scene| {
        // 108: an odd datagram and its header
        scene
            .rx()
            .netns()
            .nft("table inet test {\nchain input {\ntype filter hook input priority 0\nudp length 108 drop\n}\n}")
            .unwrap();
        scene.send_and_lose_odd(&scene.receiver());
        scene.assert_dropped(odd(), "NETFILTER_DROP");
    });
}

#[test]
fn a_datagram_that_a_netfilter_program_drops_by_its_traits_is_read() {
    if !kernel_has(KernelFeature::NetfilterLinks) {
        return;
    }
    each(|scene| {
        let hooks = [("netfilter_drops_odd", NetfilterHook::Input)];
        let _netfilter = attach_netfilter(&scene.object, scene.rx(), scene.family, &hooks);
        scene.send_and_lose_odd(&scene.receiver());
        scene.assert_dropped(odd(), "NETFILTER_DROP");
    });
}

#[test]
fn a_datagram_that_tc_drops_by_its_traits_is_read() {
    each(|scene| {
        let _tc = attach_tc(&scene.object, "tc_drops_odd", scene.rx(), Direction::Ingress);
        scene.send_and_lose_odd(&scene.receiver());
        scene.assert_dropped(odd(), "TC_INGRESS");
    });
}

#[test]
fn a_datagram_that_a_socket_filter_drops_by_its_traits_is_read() {
    each(|scene| {
        let receiver = scene.receiver();
        let filter = program(&scene.object, "socket_drops_odd");
        let _filter = socket::attach(filter.as_fd(), receiver.as_fd()).unwrap();
        scene.send_and_lose_odd(&receiver);
        scene.assert_dropped(odd(), "SOCKET_FILTER");
    });
}

#[test]
fn a_datagram_that_does_not_fit_in_the_receive_buffer_is_read() {
    each(|scene| {
        let receiver = scene.receiver();
        sockopt::set_int(&receiver, libc::SOL_SOCKET, libc::SO_RCVBUF, 8000).unwrap();
        scene.send();
        receiver.set_nonblocking(true).unwrap();
        let mut lost: BTreeSet<u64> = (0..PACKETS).collect();
        let mut payload = [0; 100];
        while let Ok(length) = receiver.recv(&mut payload) {
            lost.remove(&number_of(&payload[..length]).unwrap());
        }
        assert!(!lost.is_empty() && lost.len() < PACKETS as usize, "{lost:?}");
        scene.assert_dropped(lost, "SOCKET_RCVBUFF");
    });
}

/// Sends crafted frames, of which `damage` changes the odd ones.
fn send_crafted(scene: &Scene, craft: impl Fn(&Flow, u64) -> Vec<u8>, damage: impl Fn(&mut [u8])) {
    let (tx, rx) = (scene.pair.tx(), scene.rx());
    let socket = PacketSocket::on(tx).unwrap();
    for number in 0..PACKETS {
        let mut frame = craft(&Flow::between(tx, rx, scene.family, 1000 + number as u16, TEST_PORT), number);
        if number % 2 == 1 {
            damage(&mut frame);
        }
        socket.send(&frame).unwrap();
    }
}

fn numbered(flow: &Flow, number: u64) -> Vec<u8> {
    flow.udp(&[&number.to_be_bytes()[..], &[0; 56]].concat())
}

fn damage_last_byte(frame: &mut [u8]) {
    *frame.last_mut().unwrap() ^= 1;
}

#[test]
fn a_datagram_with_a_bad_checksum_is_read() {
    each(|scene| {
        let receiver = scene.receiver();
        // with a filter, UDP looks at checksums before it queues; without one, the reader does
        let filter = program(&scene.object, "socket_keeps_all");
        let _filter = socket::attach(filter.as_fd(), receiver.as_fd()).unwrap();
        send_crafted(&scene, numbered, damage_last_byte);
        for number in even() {
            assert_eq!(recv_numbered(&receiver).unwrap(), number);
        }
        scene.assert_dropped(odd(), "UDP_CSUM");
    });
}

#[test]
fn a_packet_with_a_bad_header_checksum_is_read() {
    each(|scene| {
        if scene.family == Family::V6 {
            return; // no header checksum
        }
        let receiver = scene.receiver();
        send_crafted(&scene, numbered, |frame| frame[14 + 10] ^= 1);
        for number in even() {
            assert_eq!(recv_numbered(&receiver).unwrap(), number);
        }
        scene.assert_dropped(odd(), "IP_CSUM");
    });
}

/// The other segments are for a closed port.
#[test]
fn a_segment_with_a_bad_checksum_is_read() {
    each(|scene| {
        send_crafted(&scene, |flow, _| flow.tcp(1, 0, SYN, &[]), damage_last_byte);
        let reasons = even().map(|number| (number, "NO_SOCKET")).chain(odd().map(|number| (number, "TCP_CSUM")));
        assert_dropped(&scene.object, reasons.collect());
    });
}

#[test]
fn a_packet_whose_hops_are_used_up_is_read_at_the_router() {
    if !common::area_enabled() {
        return;
    }
    for mode in BOTH_MODES {
        for family in Family::BOTH {
            let lab = Lab::new();
            let object = lab.load("drops");
            let chain = Chain::new().unwrap();
            let _tracing = attach_tracing(&object, &["dropped"]);
            let _xdp = attach_xdp(&object, "assign", chain.router_in(), mode);
            let to = chain.server().addr(family, TEST_PORT);
            let receiver = udp_socket(chain.server().netns(), to).unwrap();
            let sender = udp_socket(chain.client().netns(), chain.client().addr(family, 0)).unwrap();
            for number in 0..PACKETS {
                let hops = if number % 2 == 0 { 64 } else { 1 };
                match family {
                    Family::V4 => sockopt::set_int(&sender, libc::IPPROTO_IP, libc::IP_TTL, hops).unwrap(),
                    Family::V6 => sockopt::set_int(&sender, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, hops).unwrap(),
                }
                send_numbered(&sender, to, number..number + 1, 64).unwrap();
                if hops > 1 {
                    assert_eq!(recv_numbered(&receiver).unwrap(), number);
                }
            }
            assert_dropped(&object, odd().map(|number| (number, "IP_INHDR")).collect());
        }
    }
}
