//! What becomes of ids where packets are merged, cloned or sent again.

mod common;

use std::{collections::BTreeSet, os::fd::AsFd, time::Duration};

use common::{Home, TENANT_KEY, enabled, in_namespaces, load_object, long_enabled, points, start, tc_enabled, watch};
use packet_traits::attach::{XdpMode, xdp};
use packet_traits_lab::{
    Chain, Family, Feature, PacketSocket, Pair, TcpSink, VethOptions,
    frame::{ACK, Flow},
    recv_numbered, send_numbered, send_together, tcp_transfer, udp_socket,
};
use packet_traits_trace::{
    Detail, Outcome,
    Point::{Consume, Deliver, Drop, Gro, GroResult, Receive, TcIngress, Xdp},
};

fn mergeable() -> Pair {
    Pair::with(&VethOptions::new().gro(true)).unwrap()
}

#[test]
fn merged_packets_say_what_they_were_merged_into() {
    // ids in the flow region keep packets apart: flow_region.rs
    if !long_enabled() {
        return;
    }
    let (pair, home) = (mergeable(), Home::new());
    for family in Family::BOTH {
        let mut options = in_namespaces(&[pair.rx().netns()]);
        options.conditions = vec!["proto == tcp".parse().unwrap()];
        let mut tracer = start(&home.registry, &options);
        let frames = Flow::between(pair.tx(), pair.rx(), family, 4000, 5000).tcp_burst(1000, 16, 1000);
        let seen = watch(&mut tracer, || {
            send_together(pair.tx(), pair.rx(), &frames).unwrap();
            std::thread::sleep(Duration::from_millis(400));
        });
        assert_eq!((seen.packets.len(), seen.summary.merged), (16, 15), "{family:?}");
        let first = seen.packets.iter().find(|packet| packet.outcome != Outcome::Merged).unwrap();
        assert_eq!(first.merged, 15);
        assert_eq!(first.headers.unwrap().tcp.unwrap().sequence, 1000);
        assert_eq!(points(first)[..5], [Xdp, Gro, GroResult, Receive, TcIngress], "{first:?}");
        assert_eq!(first.outcome, Outcome::Dropped, "there is no connection: {first:?}");
        for packet in seen.packets.iter().filter(|packet| packet.id != first.id) {
            assert_eq!(points(packet), [Xdp, Gro, GroResult], "{packet:?}");
            assert_eq!(packet.steps[2].detail, Detail::Merged(Some(first.id)), "{packet:?}");
        }
    }
}

#[test]
fn ids_from_tc_do_not_keep_packets_from_being_merged_where_they_go() {
    if !tc_enabled() {
        return;
    }
    let (chain, home) = (Chain::with(&VethOptions::new().gro(true)).unwrap(), Home::new());
    let object = load_object(&home.registry, "tenant.bpf.c", &TENANT_KEY);
    let program = object.program("same_for_all").unwrap().as_fd().try_clone_to_owned().unwrap();
    let router = chain.router_in();
    let attach = || xdp::attach(program.as_fd(), router.ifindex(), XdpMode::Native);
    let _policy = router.netns().enter(attach).unwrap();
    // all packets come to the server's namespace as they were sent, and wait there for each other
    router.netns().set_feature(router.name(), Feature::Gro, false).unwrap();
    let server = chain.server();
    server.netns().defer_receive(server.name(), Duration::from_millis(1)).unwrap();
    let sink = TcpSink::start(server.netns(), server.addr(Family::V4, 0)).unwrap();

    let mut options = in_namespaces(&[router.netns(), server.netns()]);
    options.conditions = vec!["tenant == 7".parse().unwrap(), "proto == tcp".parse().unwrap()];
    let mut tracer = start(&home.registry, &options);
    let seen = watch(&mut tracer, || tcp_transfer(chain.client().netns(), sink.addr(), 1_000_000).unwrap());
    assert_eq!((sink.corrupt(), seen.counters.lost_events()), (0, 0));
    let merged: Vec<_> = seen.packets.iter().filter(|packet| packet.outcome == Outcome::Merged).collect();
    assert!(merged.len() > 100, "{} of {}", merged.len(), seen.packets.len());
    for packet in merged {
        let path = points(packet);
        assert_eq!((path[0], packet.steps[0].device()), (TcIngress, router.name()), "{packet:?}");
        assert!(path.windows(3).any(|three| three == [Xdp, Gro, GroResult]), "{packet:?}");
    }
}

#[test]
fn every_byte_of_a_merged_flow_is_delivered_by_packets_that_were_followed() {
    if !enabled() {
        return;
    }
    const BYTES: u64 = 3_000_000;
    let (pair, home) = (mergeable(), Home::new());
    let sink = TcpSink::start(pair.rx().netns(), pair.rx().addr(Family::V4, 0)).unwrap();
    let mut options = in_namespaces(&[pair.rx().netns()]);
    options.conditions = vec![format!("dport == {}", sink.addr().port()).parse().unwrap()];
    let mut tracer = start(&home.registry, &options);
    let seen = watch(&mut tracer, || tcp_transfer(pair.tx().netns(), sink.addr(), BYTES).unwrap());
    assert_eq!(seen.counters.lost_events(), 0);
    let data = |packet: &packet_traits_trace::Packet| match packet.retransmit_of {
        None => u64::from(packet.headers.unwrap().tcp.unwrap().data),
        Some(_) => 0,
    };
    // the header of a merged packet has the length of all; those of its parts have their own
    let entered: u64 = seen.packets.iter().filter(|packet| packet.outcome == Outcome::Merged).map(data).sum();
    let whole: u64 = seen.packets.iter().filter(|packet| packet.outcome != Outcome::Merged).map(data).sum();
    assert!(entered < BYTES && whole >= BYTES - entered, "{entered} of parts, {whole} of the others");
    let delivered: u64 = seen
        .packets
        .iter()
        .flat_map(|packet| &packet.steps)
        .filter_map(|step| match &step.detail {
            Detail::Delivered { bytes, .. } => Some(u64::from(*bytes)),
            _ => None,
        })
        .sum();
    assert_eq!(delivered, BYTES);
    let sockets: BTreeSet<u64> = seen
        .packets
        .iter()
        .flat_map(|packet| &packet.steps)
        .filter_map(|step| match &step.detail {
            Detail::Delivered { socket, .. } => Some(*socket),
            _ => None,
        })
        .collect();
    assert!(sockets.len() == 1 && !sockets.contains(&0), "the connection's socket is named: {sockets:?}");
    let merged = seen.packets.iter().map(|packet| u64::from(packet.merged)).sum::<u64>();
    assert_eq!(merged, seen.summary.merged, "each merged packet is a part of one that is known");
}

#[test]
fn a_segment_that_comes_again_is_told_from_the_first() {
    if !enabled() {
        return;
    }
    let (pair, home) = (Pair::new().unwrap(), Home::new());
    let mut tracer = start(&home.registry, &in_namespaces(&[pair.rx().netns()]));
    let flow = Flow::between(pair.tx(), pair.rx(), Family::V4, 4000, 5000);
    let seen = watch(&mut tracer, || {
        let socket = PacketSocket::on(pair.tx()).unwrap();
        for sequence in [100, 200, 100, 300, 100] {
            socket.send(&flow.tcp(sequence, 1, ACK, &[0; 50])).unwrap();
        }
        // no data, no news: nothing comes again
        socket.send(&flow.tcp(400, 1, ACK, &[])).unwrap();
        socket.send(&flow.tcp(400, 2, ACK, &[])).unwrap();
    });
    let again: Vec<Option<u64>> = seen.packets.iter().map(|packet| packet.retransmit_of).collect();
    let first = Some(seen.packets[0].id);
    assert_eq!(again, [None, None, first, None, first, None, None]);
    assert_eq!(seen.summary.retransmits, 2);
}

#[test]
fn a_clone_is_told_from_the_packet() {
    if !enabled() {
        return;
    }
    let (pair, home) = (Pair::new().unwrap(), Home::new());
    let socket = udp_socket(pair.rx().netns(), pair.rx().addr(Family::V4, 7)).unwrap();
    let sender = udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0)).unwrap();
    // whoever listens to the interface gets a clone
    let tap = PacketSocket::on(pair.rx()).unwrap();
    let mut tracer = start(&home.registry, &in_namespaces(&[pair.rx().netns()]));
    let seen = watch(&mut tracer, || {
        send_numbered(&sender, pair.rx().addr(Family::V4, 7), 0..5, 64).unwrap();
        (0..5).for_each(|number| assert_eq!(recv_numbered(&socket).unwrap(), number));
        assert_eq!(tap.drain(Duration::from_millis(50)).unwrap().len(), 5);
    });
    assert_eq!(seen.packets.len(), 5);
    for packet in &seen.packets {
        assert_eq!(packet.clones(), 1, "{packet:?}");
        let of_clone: Vec<_> = packet.steps.iter().filter(|step| step.copy == 1).map(|step| step.point).collect();
        assert!(!of_clone.is_empty() && of_clone.iter().all(|point| matches!(point, Deliver | Consume)), "{packet:?}");
        let of_packet = packet.steps.iter().filter(|step| step.copy == 0 && step.point == Deliver);
        assert_eq!(of_packet.count(), 1, "{packet:?}");
        assert!(!points(packet).contains(&Drop), "{packet:?}");
    }
}
