//! The tracer's own ids where the registry has no packet region: they are in the flow region, which GRO compares.

mod common;

use std::{os::fd::AsFd, time::Duration};

use common::{
    Home, TENANT_KEY, enabled, in_namespaces, load_object, on_this_kernel, points, port, start, tc_enabled, watch,
};
use packet_traits::{
    KeyName, KeyType, Layout, Merge, Region,
    attach::{XdpMode, xdp},
    registry::KeySpec,
};
use packet_traits_lab::{
    Chain, Family, KernelFeature, Pair, VethOptions, frame::Flow, recv_numbered, send_numbered, send_together,
    udp_socket,
};
use packet_traits_trace::{
    ENTERED_KEY, Hint, ID_KEY, Outcome, Packet,
    Point::{self, *},
    TraceError, Tracer,
};

/// Room for the tracer's two keys, and no more.
const SMALL: usize = 32;

const FORWARDED: [Point; 9] = [Xdp, TcIngress, PreRouting, Route, Forward, PostRouting, TcEgress, Queue, Xmit];
const DELIVERED: [Point; 7] = [Xdp, TcIngress, PreRouting, Route, Input, Cgroup, Deliver];

/// The points of a path that every kernel and mode has in this order.
fn way(packet: &Packet) -> Vec<Point> {
    let mut way = points(packet);
    way.retain(|point| FORWARDED.contains(point) || DELIVERED.contains(point));
    way.dedup_by(|one, other| one == other && *one == Route);
    way
}

fn key(name: &str, key_type: KeyType) -> KeySpec {
    KeySpec::new(KeyName::new(name).unwrap(), key_type)
}

#[test]
fn packets_are_followed_through_all_points_and_namespaces() {
    if !enabled() {
        return;
    }
    let (chain, home) = (Chain::new().unwrap(), Home::without_packet_region(SMALL));
    let (router, server) = (chain.router_in().netns(), chain.server());
    let socket = udp_socket(server.netns(), server.addr(Family::V4, 7)).unwrap();
    let sender = udp_socket(chain.client().netns(), chain.client().addr(Family::V4, 0)).unwrap();
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let mut options = in_namespaces(&[router, server.netns()]);
        options.xdp_mode = mode;
        options.conditions = vec!["dport == 7".parse().unwrap()];
        let mut tracer = start(&home.registry, &options);
        let notes = tracer.notes();
        assert!(notes.iter().any(|note| note.contains("GRO does not merge packets that are traced")), "{notes:?}");
        let keys = home.registry.list().unwrap();
        assert!(keys.iter().all(|entry| entry.merge == Merge::Block) && keys.len() == 2, "{keys:?}");
        let seen = watch(&mut tracer, || {
            for number in 0..50 {
                send_numbered(&sender, server.addr(Family::V4, 7), number..number + 1, 64).unwrap();
                assert_eq!(recv_numbered(&socket).unwrap(), number);
            }
        });
        assert_eq!((seen.packets.len(), seen.counters.assigned, seen.counters.lost_events()), (50, 50, 0), "{mode}");
        let expected = on_this_kernel(&tracer, &[&FORWARDED[..], &DELIVERED].concat());
        for packet in &seen.packets {
            assert_eq!(packet.outcome, Outcome::Delivered, "{mode}: {packet:?}");
            assert_eq!(way(packet), expected, "{mode}: {packet:?}");
            assert!(packet.entered <= packet.steps[0].at, "{mode}: {packet:?}");
        }
        drop(tracer);
        assert_eq!(home.registry.list().unwrap(), [], "the tracer's keys are gone");
    }
}

#[test]
fn packets_of_a_flow_are_not_merged_while_they_are_traced() {
    if !enabled() {
        return;
    }
    let pair = Pair::with(&VethOptions::new().gro(true)).unwrap();
    let home = Home::without_packet_region(SMALL);
    let mut options = in_namespaces(&[pair.rx().netns()]);
    options.conditions = vec!["proto == tcp".parse().unwrap()];
    let mut tracer = start(&home.registry, &options);
    let frames = Flow::between(pair.tx(), pair.rx(), Family::V4, 4000, 5000).tcp_burst(1000, 16, 1000);
    let seen = watch(&mut tracer, || {
        send_together(pair.tx(), pair.rx(), &frames).unwrap();
        std::thread::sleep(Duration::from_millis(400));
    });
    assert_eq!((seen.packets.len(), seen.summary.merged), (16, 0));
    assert!(seen.packets.iter().all(|packet| points(packet).contains(&Receive)), "{:?}", seen.packets);
}

#[test]
fn keys_that_a_killed_tracer_left_are_taken_over() {
    if !enabled() {
        return;
    }
    let (pair, home) = (Pair::new().unwrap(), Home::without_packet_region(SMALL));
    for (name, key_type) in [(ID_KEY, KeyType::U64), (ENTERED_KEY, KeyType::Timestamp)] {
        home.registry.register(&key(name, key_type)).unwrap();
    }
    let mut tracer = start(&home.registry, &in_namespaces(&[pair.rx().netns()]));
    let sender = udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0)).unwrap();
    let seen = watch(&mut tracer, || send_numbered(&sender, pair.rx().addr(Family::V4, 9), 0..5, 64).unwrap());
    assert_eq!(seen.packets.iter().filter(|packet| port(packet) == Some(9)).count(), 5);
    drop(tracer);
    assert_eq!(home.registry.list().unwrap(), []);
}

#[test]
fn a_registry_without_room_for_the_ids_is_refused_with_what_to_do() {
    if !enabled() {
        return;
    }
    let (pair, home) = (Pair::new().unwrap(), Home::without_packet_region(SMALL));
    let refused = |parts: &[&str]| {
        let Err(error) = Tracer::start(&home.registry, &in_namespaces(&[pair.rx().netns()])) else {
            panic!("it should not start");
        };
        let larger = if KernelFeature::LongMetadata.is_here() { "larger flow region" } else { "Linux 6.8" };
        for part in ["trace.id and trace.entered", "`traits keys remove NAME`", larger].iter().chain(parts) {
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
        assert!(matches!(error, TraceError::NoRoom { region: Region::Flow, .. }), "{error:?}");
        assert_eq!(error.hints(), [Hint::NameId]);
    };
    home.registry.register(&key("tenant", KeyType::U32)).unwrap();
    refused(&["8 of them are missing", "The region holds tenant.", "(of tenant)"]);
    home.registry.register(&key("owner", KeyType::Uuid)).unwrap_err();
    home.registry.register(&key("peer", KeyType::Mac)).unwrap();
    refused(&["16 of them are missing", "The region holds tenant, peer."]);
    let left: Vec<_> = home.registry.list().unwrap().iter().map(|entry| entry.key.name().to_string()).collect();
    assert_eq!(left, ["tenant", "peer"], "nothing of the tracer's is left");
}

#[test]
fn ids_from_tc_stay_where_they_are() {
    if !tc_enabled() {
        return;
    }
    let home = Home::without_packet_region(Layout::DEFAULT.region_len(Region::Flow));
    let chain = Chain::new().unwrap();
    let object = load_object(&home.registry, "tenant.bpf.c", &TENANT_KEY);
    let program = object.program("same_for_all").unwrap().as_fd().try_clone_to_owned().unwrap();
    let (router, server) = (chain.router_in(), chain.server());
    let attach = || xdp::attach(program.as_fd(), router.ifindex(), XdpMode::Native);
    let _policy = router.netns().enter(attach).unwrap();
    let socket = udp_socket(server.netns(), server.addr(Family::V4, 7)).unwrap();
    let sender = udp_socket(chain.client().netns(), chain.client().addr(Family::V4, 0)).unwrap();
    let mut options = in_namespaces(&[router.netns(), server.netns()]);
    options.conditions = vec!["tenant == 7".parse().unwrap(), "dport == 7".parse().unwrap()];
    let mut tracer = start(&home.registry, &options);
    let seen = watch(&mut tracer, || {
        for number in 0..20 {
            send_numbered(&sender, server.addr(Family::V4, 7), number..number + 1, 64).unwrap();
            assert_eq!(recv_numbered(&socket).unwrap(), number);
        }
    });
    assert_eq!((seen.packets.len(), seen.counters.assigned), (20, 20));
    for packet in &seen.packets {
        assert_eq!(way(packet), [&FORWARDED[1..], &DELIVERED].concat(), "{packet:?}");
        assert_eq!(packet.outcome, Outcome::Delivered, "{packet:?}");
    }
}
