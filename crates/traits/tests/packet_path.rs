//! What XDP sets is read unchanged at every stage an skb passes, native and generic XDP, IPv4 and IPv6.

mod common;

use std::{os::fd::AsFd, time::Duration};

use common::{
    BOTH_MODES, Lab, TEST_PORT, attach_cgroup, attach_netfilter, attach_tc, attach_tracing, attach_xdp, program,
    record::{Records, Stage, shown},
};
use packet_traits::attach::{CgroupHook, Direction, NetfilterHook, XdpMode, socket};
use packet_traits_lab::{
    Family, PacketSocket, Pair, TcpSink,
    frame::{Flow, with_vlan},
    recv_numbered, send_frame, send_numbered, tcp_transfer, udp_socket,
};

const PACKETS: u64 = 100;

fn udp_to_a_local_socket(mode: XdpMode, family: Family, entry: &str) {
    let lab = Lab::new();
    let object = lab.load("stages");
    let pair = Pair::new().unwrap();
    let rx = pair.rx();

    let _xdp = attach_xdp(&object, entry, rx, mode);
    let _tc = attach_tc(&object, "tc_ingress", rx, Direction::Ingress);
    let _netfilter = attach_netfilter(
        &object,
        rx,
        family,
        &[("pre_routing", NetfilterHook::PreRouting), ("local_in", NetfilterHook::Input)],
    );
    let _cgroup = attach_cgroup(&object, "cgroup_ingress", CgroupHook::Ingress);
    let _tracing = attach_tracing(&object, &["delivery", "consume"]);
    let receiver = udp_socket(rx.netns(), rx.addr(family, TEST_PORT)).unwrap();
    let _filter = socket::attach(program(&object, "socket_filter").as_fd(), receiver.as_fd()).unwrap();
    let capture = PacketSocket::on(rx).unwrap();
    let _capture = socket::attach(program(&object, "packet_filter").as_fd(), capture.as_fd()).unwrap();

    let sender = udp_socket(pair.tx().netns(), pair.tx().addr(family, 0)).unwrap();
    for number in 0..PACKETS {
        send_numbered(&sender, rx.addr(family, TEST_PORT), number..number + 1, 64).unwrap();
        assert_eq!(recv_numbered(&receiver).unwrap(), number);
    }

    // The capturing process takes its copies: they come from clones, which carry the same traits. The receiver's own
    // reads pass no tracepoint that has the skb: udp_recvmsg copies a linear datagram, or one whose checksum is still to
    // be verified, without skb_copy_datagram_iovec (net/ipv4/udp.c).
    capture.drain(Duration::from_millis(100)).unwrap();

    let expected = PACKETS as usize;
    let records = Records::collect(&object, |r| r.count(Stage::Consume) >= expected);
    for stage in shown([
        Stage::Xdp,
        Stage::TcIngress,
        Stage::PreRouting,
        Stage::LocalIn,
        Stage::CgroupIngress,
        Stage::SocketFilter,
        Stage::PacketFilter,
        Stage::Delivery,
    ]) {
        records.assert_all_read(stage, 0..PACKETS);
    }
    // the clones', and those of the datagrams' own skbs that another CPU had allocated (skb_attempt_defer_free)
    assert_eq!(records.assert_right(Stage::Consume).len(), expected);
}

#[test]
fn udp_over_ipv4_is_read_at_every_stage() {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            udp_to_a_local_socket(mode, Family::V4, "assign");
        }
    }
}

#[test]
fn udp_over_ipv6_is_read_at_every_stage() {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            udp_to_a_local_socket(mode, Family::V6, "assign");
        }
    }
}

#[test]
fn an_area_left_open_is_read_at_every_stage() {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            udp_to_a_local_socket(mode, Family::V4, "assign_open");
        }
    }
}

fn tcp_to_a_local_socket(mode: XdpMode, family: Family) {
    const BYTES: u64 = 1 << 20;
    let lab = Lab::new();
    let object = lab.load("stages");
    let pair = Pair::new().unwrap();
    let rx = pair.rx();

    let _xdp = attach_xdp(&object, "assign", rx, mode);
    let _tc = attach_tc(&object, "tc_ingress", rx, Direction::Ingress);
    let _netfilter = attach_netfilter(
        &object,
        rx,
        family,
        &[("pre_routing", NetfilterHook::PreRouting), ("local_in", NetfilterHook::Input)],
    );
    let _cgroup = [("cgroup_ingress", CgroupHook::Ingress), ("sock_ops", CgroupHook::SockOps)]
        .map(|(name, hook)| attach_cgroup(&object, name, hook));
    let _tracing = attach_tracing(&object, &["delivery"]);
    let sink = TcpSink::start(rx.netns(), rx.addr(family, TEST_PORT)).unwrap();
    tcp_transfer(pair.tx().netns(), sink.addr(), BYTES).unwrap();
    assert_eq!((sink.received(), sink.corrupt()), (BYTES, 0));

    let records = Records::collect(&object, |_| false);
    let set = records.set();
    assert!(set.len() > 10);
    // GRO may have merged packets before the stack saw them: then the first one's traits stand for all
    let ingress = records.assert_right(Stage::TcIngress);
    for stage in shown([Stage::PreRouting, Stage::LocalIn, Stage::CgroupIngress]) {
        assert_eq!(records.assert_right(stage), ingress, "{stage:?}");
    }
    // the established event has the packet that ended the handshake
    let established = records.assert_right(Stage::SockOps);
    assert!(!established.is_empty() && established.keys().all(|number| ingress.contains_key(number)));
    let delivered = records.assert_right(Stage::Delivery);
    let bytes: u64 = records.at(Stage::Delivery).map(|record| u64::from(record.len)).sum();
    assert_eq!(bytes, BYTES, "every byte was delivered from a packet with traits");
    assert!(delivered.keys().all(|number| ingress.contains_key(number)));
}

#[test]
fn tcp_is_read_up_to_the_delivery_of_every_byte() {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            for family in [Family::V4, Family::V6] {
                tcp_to_a_local_socket(mode, family);
            }
        }
    }
}

/// The kernel takes a VLAN tag out in software and moves only the visible metadata along.
fn vlan_tagged(mode: XdpMode, tags: usize) {
    let lab = Lab::new();
    let object = lab.load("stages");
    let pair = Pair::new().unwrap();
    let rx = pair.rx();
    let _xdp = attach_xdp(&object, "assign_tagged", rx, mode);
    let _tc = attach_tc(&object, "tc_ingress", rx, Direction::Ingress);
    let _netfilter = attach_netfilter(&object, rx, Family::V4, &[("pre_routing", NetfilterHook::PreRouting)]);
    let receiver = udp_socket(rx.netns(), rx.addr(Family::V4, TEST_PORT)).unwrap();
    let _filter = socket::attach(program(&object, "socket_filter").as_fd(), receiver.as_fd()).unwrap();

    let flow = Flow::between(pair.tx(), rx, Family::V4, 40000, TEST_PORT);
    for number in 0..PACKETS {
        // VLAN 0: priority only, the packet belongs to the interface itself
        let frame = (0..tags).fold(flow.udp(&number.to_be_bytes()), |frame, _| with_vlan(&frame, 0, 5));
        send_frame(pair.tx().netns(), pair.tx().ifindex(), &frame).unwrap();
        assert_eq!(recv_numbered(&receiver).unwrap(), number);
    }
    let records = Records::collect(&object, |r| r.count(Stage::SocketFilter) >= PACKETS as usize);
    for stage in shown([Stage::Xdp, Stage::TcIngress, Stage::PreRouting, Stage::SocketFilter]) {
        records.assert_all_read(stage, 0..PACKETS);
    }
}

#[test]
fn traits_survive_the_removal_of_vlan_tags() {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            for tags in [1, 2] {
                vlan_tagged(mode, tags);
            }
        }
    }
}
