//! What XDP sets on the interface where a packet enters a router is read unchanged until the packet leaves it, and where
//! it arrives if that is another namespace of the same host.

mod common;

use std::os::fd::AsFd;

use common::{
    BOTH_MODES, Lab, TEST_PORT, attach_netfilter, attach_tc, attach_xdp, load, program,
    record::{Records, Stage, shown},
    register_record_keys,
};
use packet_traits::{
    Layout,
    attach::{Attachment, Direction, NetfilterFamily, NetfilterHook, NetfilterOptions, XdpMode, netfilter},
    bind::LoadedObject,
    registry::Registry,
};
use packet_traits_lab::{
    Chain, Family, Feature, KernelFeature, PacketSocket, RECV_TIMEOUT, TcpSink, VethOptions, frame::Flow, kernel_has,
    recv_numbered, send_numbered, send_together, tcp_transfer, udp_socket,
};

const PACKETS: u64 = 100;

/// What a forwarded packet passes between the two interfaces.
const FORWARDING: [Stage; 4] = [Stage::PreRouting, Stage::Forward, Stage::PostRouting, Stage::TcEgress];

fn observe_router(object: &LoadedObject, chain: &Chain, family: Family) -> Vec<Attachment> {
    let mut attached = attach_netfilter(
        object,
        chain.router_in(),
        family,
        &[
            ("pre_routing", NetfilterHook::PreRouting),
            ("forward", NetfilterHook::Forward),
            ("post_routing", NetfilterHook::PostRouting),
        ],
    );
    attached.push(attach_tc(object, "tc_egress", chain.router_out(), Direction::Egress));
    attached
}

/// Sends numbered datagrams from the client to the server, one at a time.
fn send_through(chain: &Chain, family: Family) {
    let to = chain.server().addr(family, TEST_PORT);
    let receiver = udp_socket(chain.server().netns(), to).unwrap();
    let sender = udp_socket(chain.client().netns(), chain.client().addr(family, 0)).unwrap();
    for number in 0..PACKETS {
        send_numbered(&sender, to, number..number + 1, 64).unwrap();
        assert_eq!(recv_numbered(&receiver).unwrap(), number);
    }
}

fn udp_through_a_router(mode: XdpMode, family: Family) {
    let lab = Lab::new();
    let object = lab.load("stages");
    let chain = Chain::new().unwrap();
    let _xdp = attach_xdp(&object, "assign", chain.router_in(), mode);
    let _router = observe_router(&object, &chain, family);
    send_through(&chain, family);

    let expected = PACKETS as usize;
    let records = Records::collect(&object, |r| r.count(Stage::TcEgress) >= expected);
    for stage in shown(FORWARDING) {
        records.assert_all_read(stage, 0..PACKETS);
    }
}

#[test]
fn udp_is_read_on_its_whole_way_through_a_router() {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            for family in Family::BOTH {
                udp_through_a_router(mode, family);
            }
        }
    }
}

fn tcp_through_a_router(mode: XdpMode, family: Family) {
    const BYTES: u64 = 1 << 20;
    let lab = Lab::new();
    let object = lab.load("stages");
    let chain = Chain::new().unwrap();
    let _xdp = attach_xdp(&object, "assign", chain.router_in(), mode);
    let _router = observe_router(&object, &chain, family);
    let sink = TcpSink::start(chain.server().netns(), chain.server().addr(family, TEST_PORT)).unwrap();
    tcp_transfer(chain.client().netns(), sink.addr(), BYTES).unwrap();
    assert_eq!((sink.received(), sink.corrupt()), (BYTES, 0));

    let records = Records::collect(&object, |_| false);
    let numbers: Vec<u64> = records.set().into_keys().collect();
    // every packet has traits of its own, so that GRO merges none
    for stage in shown(FORWARDING) {
        records.assert_all_read(stage, numbers.iter().copied());
    }
    let payload: u64 = records.at(Stage::TcEgress).map(|record| u64::from(record.len)).sum();
    assert!(payload > BYTES, "all of the transfer passed with traits");
    // generic XDP meets what the client leaves to be segmented by the device; native XDP has it segmented before
    let largest = records.at(Stage::TcEgress).map(|record| record.len).max().unwrap();
    assert_eq!(largest > 1514, mode == XdpMode::Generic, "{largest}");
}

#[test]
fn tcp_is_read_on_its_whole_way_through_a_router() {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            for family in Family::BOTH {
                tcp_through_a_router(mode, family);
            }
        }
    }
}

const SEGMENTS: u32 = 16;

/// Sends segments that GRO merges, and checks that the router sees one packet. `tso` is whether the router leaves it to
/// the device to cut that packet again, or the stack does.
///
/// Native XDP only: an interface with a generic XDP program does no GRO (`netif_elide_gro` in
/// include/linux/netdevice.h).
fn merged_packet_through_a_router(family: Family, tso: bool) -> Records {
    let lab = Lab::new();
    let object = lab.load("stages");
    let chain = Chain::with(&VethOptions::new().gro(true)).unwrap();
    let router_out = chain.router_out();
    router_out.netns().set_feature(router_out.name(), Feature::Tso, tso).unwrap();
    let _xdp = attach_xdp(&object, "assign_flow", chain.router_in(), XdpMode::Native);
    let _router = observe_router(&object, &chain, family);
    let _server = attach_netfilter(&object, chain.server(), family, &[("local_in", NetfilterHook::Input)]);
    let (client, server) = (chain.client(), chain.server());
    let flow = Flow {
        ip: Flow::between(client, server, family, 0, 0).ip,
        ..Flow::between(client, chain.router_in(), family, 1234, TEST_PORT)
    };
    let capture = PacketSocket::on(server).unwrap();
    send_together(client, chain.router_in(), &flow.tcp_burst(1, SEGMENTS, 1000)).unwrap();
    capture.wait_for(RECV_TIMEOUT, |frame| !frame.outgoing).unwrap();

    let records = Records::collect(&object, |_| false);
    assert_eq!(records.count(Stage::Xdp), SEGMENTS as usize);
    for stage in shown(FORWARDING) {
        records.assert_all_read(stage, [0]);
    }
    assert!(records.at(Stage::TcEgress).all(|record| record.len > SEGMENTS * 1000));
    records
}

#[test]
fn a_merged_packet_keeps_its_first_packets_traits_through_a_router() {
    if common::area_enabled() && kernel_has(KernelFeature::NetfilterLinks) {
        for family in Family::BOTH {
            merged_packet_through_a_router(family, true).assert_all_read(Stage::LocalIn, [0]);
        }
    }
}

/// Each segment gets a buffer of its own (`skb_segment` in net/core/skbuff.c); metadata is not copied.
#[test]
fn segments_that_the_stack_cuts_have_no_traits() {
    if common::area_enabled() && kernel_has(KernelFeature::NetfilterLinks) {
        for family in Family::BOTH {
            assert_eq!(merged_packet_through_a_router(family, false).count(Stage::LocalIn), 0);
        }
    }
}

/// Observes what comes to the server, behind XDP.
fn observe_server(object: &LoadedObject, chain: &Chain) -> Vec<Attachment> {
    let mut attached = attach_netfilter(object, chain.server(), Family::V4, &[("local_in", NetfilterHook::Input)]);
    attached.push(attach_tc(object, "tc_ingress", chain.server(), Direction::Ingress));
    attached
}

const AT_SERVER: [Stage; 2] = [Stage::TcIngress, Stage::LocalIn];

#[test]
fn traits_cross_a_veth_into_another_namespace_of_the_same_registry() {
    if !common::area_enabled() {
        return;
    }
    for mode in BOTH_MODES {
        let lab = Lab::new();
        let object = lab.load("stages");
        let chain = Chain::new().unwrap();
        let _xdp = attach_xdp(&object, "assign", chain.router_in(), mode);
        let _server = observe_server(&object, &chain);
        send_through(&chain, Family::V4);
        let records = Records::collect(&object, |r| r.count(Stage::TcIngress) >= PACKETS as usize);
        for stage in shown(AT_SERVER) {
            records.assert_all_read(stage, 0..PACKETS);
        }
    }
}

/// An XDP program there starts with empty metadata. If it sets nothing, the kernel leaves the skb's metadata length as
/// it was, and what comes behind it reads the router's traits. Except that the driver moves an skb without a page
/// fragment for its head, as generic XDP makes it, into a new buffer before native XDP (`veth_convert_skb_to_xdp_buff`
/// in drivers/net/veth.c), which leaves the metadata behind.
#[test]
fn an_xdp_program_behind_the_veth_does_not_see_the_traits_but_later_stages_may() {
    if !common::area_enabled() {
        return;
    }
    for mode in BOTH_MODES {
        for behind in BOTH_MODES {
            let lab = Lab::new();
            let object = lab.load("stages");
            let chain = Chain::new().unwrap();
            let _xdp = attach_xdp(&object, "assign", chain.router_in(), mode);
            let _behind = attach_xdp(&object, "read_again", chain.server(), behind);
            let _server = observe_server(&object, &chain);
            send_through(&chain, Family::V4);
            let moved = (mode, behind) == (XdpMode::Generic, XdpMode::Native);
            let left = if moved { 0..0 } else { 0..PACKETS };
            let records = Records::collect(&object, |r| !moved && r.count(Stage::TcIngress) >= PACKETS as usize);
            assert_eq!(records.set().len(), PACKETS as usize);
            assert_eq!(records.count(Stage::XdpAgain), 0);
            for stage in shown(AT_SERVER) {
                records.assert_all_read(stage, left.clone());
            }
        }
    }
}

#[test]
fn another_registry_behind_the_veth_reads_nothing() {
    if !common::area_enabled() || !kernel_has(KernelFeature::NetfilterLinks) {
        return;
    }
    for mode in BOTH_MODES {
        let lab = Lab::new();
        let object = lab.load("stages");
        let other = another_registry(&lab);
        let theirs = load("stages", &other);
        let chain = Chain::new().unwrap();
        let _xdp = attach_xdp(&object, "assign", chain.router_in(), mode);
        let _ours = observe_server(&object, &chain);
        let _behind = attach_xdp(&theirs, "read_again", chain.server(), mode);
        let _tc = attach_tc(&theirs, "tc_ingress", chain.server(), Direction::Ingress);
        let local_in = program(&theirs, "local_in");
        let beside = NetfilterOptions::new(NetfilterFamily::Ipv4, NetfilterHook::Input).priority(1);
        let _local_in = chain.server().netns().enter(|| netfilter::attach(local_in.as_fd(), &beside)).unwrap();
        send_through(&chain, Family::V4);

        let records = Records::collect(&object, |r| r.count(Stage::TcIngress) >= PACKETS as usize);
        records.assert_all_read(Stage::LocalIn, 0..PACKETS);
        let theirs = Records::collect(&theirs, |_| false);
        assert!(Stage::ALL.iter().all(|stage| theirs.count(*stage) == 0));
    }
}

fn another_registry(lab: &Lab) -> Registry {
    let other = lab.another("other", Layout::DEFAULT);
    register_record_keys(&other);
    other
}

#[test]
fn a_program_of_another_registry_behind_the_veth_replaces_the_traits() {
    if !common::area_enabled() {
        return;
    }
    for mode in BOTH_MODES {
        for behind in BOTH_MODES {
            let lab = Lab::new();
            let object = lab.load("stages");
            let other = another_registry(&lab);
            let theirs = load("stages", &other);
            let chain = Chain::new().unwrap();
            let _xdp = attach_xdp(&object, "assign", chain.router_in(), mode);
            let _router = observe_router(&object, &chain, Family::V4);
            let _behind = attach_xdp(&theirs, "assign", chain.server(), behind);
            let _ours = attach_tc(&object, "tc_ingress", chain.server(), Direction::Ingress);
            let _theirs = observe_server(&theirs, &chain);
            send_through(&chain, Family::V4);

            let records = Records::collect(&object, |r| r.count(Stage::TcEgress) >= PACKETS as usize);
            records.assert_all_read(Stage::TcEgress, 0..PACKETS);
            assert_eq!(records.count(Stage::TcIngress), 0);
            let theirs = Records::collect(&theirs, |r| r.count(Stage::TcIngress) >= PACKETS as usize);
            for stage in shown(AT_SERVER) {
                theirs.assert_all_read(stage, 0..PACKETS);
            }
        }
    }
}
