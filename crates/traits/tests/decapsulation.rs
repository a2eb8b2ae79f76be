//! What XDP set on the outer packet is read behind a kernel VXLAN device, in both regions.

mod common;

use std::os::fd::AsFd;

use common::{
    BOTH_MODES, Lab, TEST_PORT, attach_cgroup, attach_netfilter, attach_tc, attach_tracing, attach_xdp, program,
    record::{Records, Stage, shown},
};
use packet_traits::attach::{CgroupHook, Direction, NetfilterHook, XdpMode, socket};
use packet_traits_lab::{
    Family, Overlay, Pair, TcpSink, VethOptions, VxlanOptions, recv_numbered, send_numbered, tcp_transfer, udp_socket,
};

const PACKETS: u64 = 50;

const LOCAL_HOOKS: [(&str, NetfilterHook); 2] =
    [("pre_routing", NetfilterHook::PreRouting), ("local_in", NetfilterHook::Input)];

/// How often a hook sees a tunnelled packet: inside the tunnel, and outside of it if both are of one family.
fn passes(underlay: Family, inner: Family) -> usize {
    if underlay == inner { 2 } else { 1 }
}

fn udp_through_vxlan(mode: XdpMode, underlay: Family, inner: Family, entry: &str) {
    let lab = Lab::new();
    let object = lab.load("stages");
    let overlay = Overlay::new(&VxlanOptions::new(underlay)).unwrap();
    let rx = overlay.rx();

    let _xdp = attach_xdp(&object, entry, overlay.underlay().rx(), mode);
    let _tc = attach_tc(&object, "tc_ingress", rx, Direction::Ingress);
    let _netfilter = attach_netfilter(&object, rx, inner, &LOCAL_HOOKS);
    let _cgroup = attach_cgroup(&object, "cgroup_ingress", CgroupHook::Ingress);
    let receiver = udp_socket(rx.netns(), rx.addr(inner, TEST_PORT)).unwrap();
    let _filter = socket::attach(program(&object, "socket_filter").as_fd(), receiver.as_fd()).unwrap();

    let sender = udp_socket(overlay.tx().netns(), overlay.tx().addr(inner, 0)).unwrap();
    for number in 0..PACKETS {
        send_numbered(&sender, rx.addr(inner, TEST_PORT), number..number + 1, 200).unwrap();
        assert_eq!(recv_numbered(&receiver).unwrap(), number);
    }

    let records = Records::collect(&object, |r| r.count(Stage::SocketFilter) >= PACKETS as usize);
    for stage in [Stage::Xdp, Stage::TcIngress, Stage::CgroupIngress, Stage::SocketFilter] {
        records.assert_all_read(stage, 0..PACKETS);
    }
    for stage in shown([Stage::PreRouting, Stage::LocalIn]) {
        let seen = records.assert_right(stage);
        assert_eq!(seen.len(), PACKETS as usize, "{stage:?} {mode} {underlay:?} {inner:?}");
        assert!(seen.values().all(|times| *times == passes(underlay, inner)), "{stage:?}: {seen:?}");
    }
    if mode == XdpMode::Generic {
        // whatever headroom generic XDP saw was published
        eprintln!("generic XDP, {underlay:?}: headrooms {:?}", lab.registry.anchors().unwrap());
    }
}

#[test]
fn traits_survive_decapsulation_from_ipv4() {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            for inner in Family::BOTH {
                udp_through_vxlan(mode, Family::V4, inner, "assign");
            }
        }
    }
}

#[test]
fn traits_survive_decapsulation_from_ipv6() {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            for inner in Family::BOTH {
                udp_through_vxlan(mode, Family::V6, inner, "assign");
            }
        }
    }
}

#[test]
fn an_open_area_survives_decapsulation() {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            udp_through_vxlan(mode, Family::V4, Family::V4, "assign_open");
        }
    }
}

fn tcp_through_vxlan(mode: XdpMode, gro: bool) {
    const BYTES: u64 = 1 << 20;
    let lab = Lab::new();
    let object = lab.load("stages");
    let pair = Pair::with(&VethOptions::new().gro(gro)).unwrap();
    let overlay = Overlay::over(pair, &VxlanOptions::new(Family::V4)).unwrap();
    let rx = overlay.rx();
    let _xdp = attach_xdp(&object, "assign", overlay.underlay().rx(), mode);
    let _tc = attach_tc(&object, "tc_ingress", rx, Direction::Ingress);
    let _cgroup = attach_cgroup(&object, "cgroup_ingress", CgroupHook::Ingress);
    let _tracing = attach_tracing(&object, &["delivery"]);
    let sink = TcpSink::start(rx.netns(), rx.addr(Family::V4, TEST_PORT)).unwrap();
    tcp_transfer(overlay.tx().netns(), sink.addr(), BYTES).unwrap();
    assert_eq!((sink.received(), sink.corrupt()), (BYTES, 0));

    let records = Records::collect(&object, |_| false);
    let ingress = records.assert_right(Stage::TcIngress);
    assert_eq!(records.assert_right(Stage::CgroupIngress), ingress);
    records.assert_right(Stage::Delivery);
    let bytes: u64 = records.at(Stage::Delivery).map(|record| u64::from(record.len)).sum();
    assert_eq!(bytes, BYTES, "every byte was delivered from a packet with traits ({mode}, gro {gro})");
    let longest = records.at(Stage::TcIngress).map(|record| record.len).max().unwrap();
    eprintln!(
        "{mode} XDP, gro {gro}: {} packets at XDP, {} at TC of the inner device, the longest {longest} bytes",
        records.count(Stage::Xdp),
        records.count(Stage::TcIngress)
    );
}

#[test]
fn every_byte_of_tcp_through_vxlan_is_delivered_with_traits() {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            for gro in [false, true] {
                tcp_through_vxlan(mode, gro);
            }
        }
    }
}
