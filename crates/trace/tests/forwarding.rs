//! A flow that is forwarded through three network namespaces keeps its id from one to the next.

mod common;

use std::{net::Ipv4Addr, os::fd::AsRawFd, thread, time::Duration};

use common::{Home, enabled, in_namespaces, on_this_kernel, points, port, start, watch};
use packet_traits_lab::{
    Chain, Family, Overlay, Pair, TunKind, TunPair, UdpEcho, VethOptions, VxlanOptions, recv_numbered, send_numbered,
    skipped, udp_socket,
};
use packet_traits_trace::{
    Outcome, Packet,
    Point::{self, *},
};

const FORWARDED: [Point; 11] =
    [Xdp, Gro, Receive, TcIngress, PreRouting, Route, Forward, PostRouting, TcEgress, Queue, Xmit];
const DELIVERED: [Point; 10] = [Xdp, Gro, Receive, TcIngress, PreRouting, Route, Input, Cgroup, Enqueue, Deliver];

/// The points, without those that come when the CPU has time, or once for each routing table.
fn way(packet: &Packet) -> Vec<Point> {
    let mut way = points(packet);
    way.retain(|point| *point != Consume);
    way.dedup_by(|one, other| one == other && *one == Route);
    way
}

#[test]
fn one_id_goes_through_three_namespaces_and_back() {
    if !enabled() {
        return;
    }
    let (chain, home) = (Chain::new().unwrap(), Home::new());
    let namespaces = [chain.client().netns(), chain.router_in().netns(), chain.server().netns()];
    let options = in_namespaces(&namespaces);
    let [client, router, server] = [0, 1, 2].map(|at: usize| options.namespaces[at].inode());
    for family in Family::BOTH {
        let echo = UdpEcho::start(chain.server().netns(), chain.server().addr(family, 7)).unwrap();
        let socket = udp_socket(chain.client().netns(), chain.client().addr(family, 0)).unwrap();
        let mut tracer = start(&home.registry, &options);
        let seen = watch(&mut tracer, || {
            for number in 0..100 {
                send_numbered(&socket, echo.addr(), number..number + 1, 64).unwrap();
                assert_eq!(recv_numbered(&socket).unwrap(), number);
            }
        });
        assert_eq!((seen.packets.len(), seen.counters.lost_events()), (200, 0), "{family:?}");
        let expected = on_this_kernel(&tracer, &[&FORWARDED[..], &DELIVERED].concat());
        let there: Vec<&Packet> = seen.packets.iter().filter(|packet| port(packet) == Some(7)).collect();
        assert_eq!(there.len(), 100);
        for packet in &seen.packets {
            assert_eq!(packet.outcome, Outcome::Delivered, "{packet:?}");
            assert_eq!(way(packet), expected, "{family:?}: {packet:?}");
            let (to, devices) = match port(packet) {
                Some(7) => (server, ["rt0", "rt1", "sv0"]),
                _ => (client, ["rt1", "rt0", "cl0"]),
            };
            assert_eq!(packet.namespaces(), [router, to], "{packet:?}");
            let mut at: Vec<&str> = packet
                .steps
                .iter()
                .map(packet_traits_trace::Step::device)
                .filter(|device| !device.is_empty())
                .collect();
            at.dedup();
            assert_eq!(at, devices, "{packet:?}");
            assert_eq!(packet.clones(), 0, "{packet:?}");
        }
    }
}

#[test]
fn an_id_goes_on_where_generic_xdp_is_next() {
    if !enabled() {
        return;
    }
    let (chain, home) = (Chain::new().unwrap(), Home::new());
    let mut options = in_namespaces(&[chain.router_in().netns(), chain.server().netns()]);
    options.xdp_mode = packet_traits::attach::XdpMode::Generic;
    let socket = udp_socket(chain.server().netns(), chain.server().addr(Family::V4, 7)).unwrap();
    let sender = udp_socket(chain.client().netns(), chain.client().addr(Family::V4, 0)).unwrap();
    let mut tracer = start(&home.registry, &options);
    let seen = watch(&mut tracer, || {
        send_numbered(&sender, chain.server().addr(Family::V4, 7), 0..20, 64).unwrap();
        (0..20).for_each(|number| assert_eq!(recv_numbered(&socket).unwrap(), number));
    });
    assert_eq!(seen.packets.len(), 20);
    for packet in &seen.packets {
        assert_eq!(points(packet).iter().filter(|point| **point == Xdp).count(), 2, "{packet:?}");
        assert_eq!((packet.outcome, packet.namespaces().len()), (Outcome::Delivered, 2), "{packet:?}");
    }
}

#[test]
fn a_packet_is_followed_out_of_its_tunnel() {
    if !enabled() {
        return;
    }
    let pair = Pair::with(&VethOptions::new().gro(true)).unwrap();
    let overlay = Overlay::over(pair, &VxlanOptions::new(Family::V4)).unwrap();
    let home = Home::new();
    let mut options = in_namespaces(&[overlay.rx().netns()]);
    options.devices = vec!["rx0".to_owned()];
    let socket = udp_socket(overlay.rx().netns(), overlay.rx().addr(Family::V6, 7)).unwrap();
    let sender = udp_socket(overlay.tx().netns(), overlay.tx().addr(Family::V6, 0)).unwrap();
    let mut tracer = start(&home.registry, &options);
    let seen = watch(&mut tracer, || {
        send_numbered(&sender, overlay.rx().addr(Family::V6, 7), 0..20, 64).unwrap();
        // a tunnel has a queue for each CPU, and a sender may move from one to another
        let mut numbers: Vec<u64> = (0..20).map(|_| recv_numbered(&socket).unwrap()).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..20));
    });
    assert_eq!(seen.packets.len(), 20);
    for packet in &seen.packets {
        assert_eq!(packet.outcome, Outcome::Delivered, "{packet:?}");
        let devices: Vec<&str> =
            packet.steps.iter().filter(|step| step.point == Receive).map(packet_traits_trace::Step::device).collect();
        assert_eq!(devices, ["rx0", "vx1"], "{packet:?}");
        assert_eq!(port(packet), Some(7), "the inner packet's port: {packet:?}");
    }
}

/// A router that has no room for a packet tells its sender, by packets that have routes of their own, and frees it.
#[test]
fn a_freed_packet_is_not_taken_for_the_next_that_is_routed() {
    const PACKETS: u64 = 5;
    if !enabled() {
        return;
    }
    let (chain, home) = (Chain::new().unwrap(), Home::new());
    let router = chain.router_out();
    router.netns().ip(&format!("link set {} mtu 1000", router.name())).unwrap();
    let sender = udp_socket(chain.client().netns(), chain.client().addr(Family::V4, 0)).unwrap();
    let probe = libc::IP_PMTUDISC_PROBE;
    // SAFETY: the value is an int and its size is given. So each packet is sent, and with DF.
    let set = unsafe {
        libc::setsockopt(sender.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, (&raw const probe).cast(), 4)
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    let mut tracer = start(&home.registry, &in_namespaces(&[chain.router_in().netns()]));
    let seen = watch(&mut tracer, || {
        for number in 0..PACKETS {
            // what is told of one is an error of the next
            let _ = send_numbered(&sender, chain.server().addr(Family::V4, 7), number..number + 1, 1200);
            thread::sleep(Duration::from_millis(50));
        }
    });
    let routes = on_this_kernel(&tracer, &[Route]).len();
    assert!(seen.packets.len() >= 2, "{:?}", seen.packets);
    for packet in &seen.packets {
        let way = points(packet);
        assert_eq!(packet.outcome, Outcome::Dropped, "{packet:?}");
        assert_eq!(way.last(), Some(&Point::Drop), "nothing happens to it after its end: {packet:?}");
        assert_eq!(way.iter().filter(|point| **point == Route).count(), routes, "{packet:?}");
    }
}

#[test]
fn conditions_hold_on_a_device_without_a_link_header() {
    const NEAR: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);
    const FAR: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 2);
    if !enabled() {
        return;
    }
    let (pair, home) = (Pair::new().unwrap(), Home::new());
    let (near, far) = (pair.rx().netns(), pair.tx().netns());
    let _tun = match TunPair::connect([(near, "tun0"), (far, "tun0")], TunKind::Tun, false) {
        Ok(tun) => tun,
        Err(error) => return skipped(format_args!("there is no tun: {error}")),
    };
    for (netns, own, other) in [(near, NEAR, FAR), (far, FAR, NEAR)] {
        netns.ip(&format!("addr add {own} peer {other} dev tun0\nlink set tun0 up")).unwrap();
    }
    let socket = udp_socket(near, (NEAR, 7).into()).unwrap();
    let sender = udp_socket(far, (FAR, 0).into()).unwrap();
    let mut options = in_namespaces(&[near]);
    options.devices = vec!["tun0".to_owned()];
    options.conditions = ["proto == udp", "dport == 7", "src == 10.90.0.2"].map(|text| text.parse().unwrap()).into();
    let mut tracer = start(&home.registry, &options);
    let seen = watch(&mut tracer, || {
        for number in 0..5 {
            send_numbered(&sender, (NEAR, 8).into(), number..number + 1, 64).unwrap();
            send_numbered(&sender, (NEAR, 7).into(), number..number + 1, 64).unwrap();
            assert_eq!(recv_numbered(&socket).unwrap(), number);
        }
    });
    assert_eq!(seen.packets.len(), 5, "{:?}", seen.packets);
    for packet in &seen.packets {
        assert_eq!((packet.outcome, points(packet)[0], port(packet)), (Outcome::Delivered, Xdp, Some(7)), "{packet:?}");
    }
}
