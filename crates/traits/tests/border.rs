//! A border leaves nothing in front of the packets that cross it, whatever they are and whoever else holds them.

mod common;

use std::{os::fd::AsFd, time::Duration};

use common::{BOTH_MODES, Keys, Lab, attach_tc, attach_xdp, enabled, program};
use libbpf_rs::{MapCore, MapFlags};
use packet_traits::{
    KeyType, Merge,
    attach::{Direction, TcxOptions, XdpMode, tcx, xdp},
    bind::LoadedObject,
    border::{Border, Crossed},
    deployment::Location,
};
use packet_traits_lab::{
    Chain, Containers, Family, PacketSocket, TcpSink,
    frame::{Flow, ethernet},
    tcp_transfer,
};

const KEYS: Keys = &[("tenant", KeyType::U64, Merge::Block), ("flow_id", KeyType::U64, Merge::KeepFirst)];

/// Frames of each kind that are sent.
const FRAMES: u64 = 20;

const WAIT: Duration = Duration::from_secs(5);

const ARP: u16 = 0x0806;
/// For experiments (`ETH_P_802_EX1` in include/uapi/linux/if_ether.h).
const EXPERIMENT: u16 = 0x88b5;

/// `struct seen` of `border.bpf.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    packets: u64,
    secrets: u64,
    traits: u64,
}

/// What was seen of IPv4, IPv6, ARP and others.
fn seen(object: &LoadedObject) -> [Seen; 4] {
    let map = object.map("seen").unwrap();
    [0u32, 1, 2, 3].map(|kind| {
        let raw = map.lookup(&kind.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
        let word = |at: usize| u64::from_ne_bytes(*raw[8 * at..].first_chunk().unwrap());
        Seen { packets: word(0), secrets: word(1), traits: word(2) }
    })
}

/// What was seen since.
fn since(object: &LoadedObject, before: [Seen; 4]) -> [Seen; 4] {
    let now = seen(object);
    std::array::from_fn(|kind| Seen {
        packets: now[kind].packets - before[kind].packets,
        secrets: now[kind].secrets - before[kind].secrets,
        traits: now[kind].traits - before[kind].traits,
    })
}

/// A lab whose keys fit.
fn lab() -> Option<Lab> {
    enabled().then(|| {
        let lab = Lab::fitting();
        lab.register_fitting(KEYS);
        lab
    })
}

/// Sends frames of each kind from the second container to the first, where they must arrive as they were sent.
fn send_each_kind(containers: &Containers) {
    let [to, from] = containers.ends();
    let receiver = PacketSocket::on(to).unwrap();
    let sender = PacketSocket::on(from).unwrap();
    let payload = [0x5a; 64];
    for number in 0..FRAMES {
        let marked = [&number.to_be_bytes()[..], &payload].concat();
        for frame in [
            Flow::between(from, to, Family::V4, 4000, 4001).udp(&marked),
            Flow::between(from, to, Family::V6, 4000, 4001).udp(&marked),
            ethernet(to.mac(), from.mac(), ARP, &marked),
            ethernet(to.mac(), from.mac(), EXPERIMENT, &marked),
        ] {
            sender.send(&frame).unwrap();
            let mut others = Vec::new();
            let found = receiver.wait_for(WAIT, |captured| {
                others.push(captured.bytes.clone());
                captured.bytes == frame
            });
            assert!(found.is_ok(), "frame {number} of {frame:02x?} did not come, but {others:02x?}");
        }
    }
}

/// Transfers from the second container and from the host to the first container.
fn send_bulk(containers: &Containers) {
    const BYTES: u64 = 1 << 20;
    let [to, from] = containers.ends();
    // there is no ARP
    containers.host().ip(&format!("neigh replace {} lladdr {} dev br0", to.ipv4(), to.mac())).unwrap();
    for netns in [from.netns(), containers.host()] {
        let sink = TcpSink::start(to.netns(), to.addr(Family::V4, 4002)).unwrap();
        tcp_transfer(netns, sink.addr(), BYTES).unwrap();
        assert_eq!((sink.received(), sink.corrupt()), (BYTES, 0));
    }
}

fn nothing_is_left(lab: &Lab, mode: XdpMode, held_by_others: bool) {
    let what = format!("{mode}, {}", if held_by_others { "clones" } else { "no clones" });
    let object = lab.load("border");
    let containers = Containers::new().unwrap();
    let [reader, _] = containers.ends();
    let host = containers.host();
    let (inner, outer) = (host.ifindex("port3").unwrap(), host.ifindex("port2").unwrap());
    let _taps = held_by_others.then(|| [inner, outer].map(|port| PacketSocket::open(host, port).unwrap()));
    let give = program(&object, "give");
    let _give = host.enter(|| xdp::attach(give.as_fd(), inner, mode)).unwrap();
    let _look = attach_tc(&object, "look", reader, Direction::Ingress);

    // they see it where there is no border
    let before = seen(&object);
    send_each_kind(&containers);
    for kind in since(&object, before) {
        assert!(kind.packets >= FRAMES && kind.secrets >= FRAMES, "{what}: {kind:?}");
    }

    let border = host.enter(|| Border::attach(&lab.registry, outer)).unwrap();
    // what was behind the border when it was attached has come
    send_each_kind(&containers);
    let before = seen(&object);
    send_each_kind(&containers);
    send_bulk(&containers);
    for kind in since(&object, before) {
        assert!(kind.packets >= FRAMES, "{what}: {kind:?}");
        assert_eq!((kind.secrets, kind.traits), (0, 0), "{what}: {kind:?}");
    }
    let crossed = border.crossed(Direction::Egress);
    assert!(crossed.wiped >= 4 * FRAMES && crossed.packets == crossed.wiped, "{what}: {crossed:?}");
    // what came in, the answers, had nothing with it
    let inward = border.crossed(Direction::Ingress);
    assert!(inward.packets > 0, "{what}: {inward:?}");
    assert_eq!((inward.wiped, inward.dropped), (0, 0), "{what}");
    border.detach().unwrap();
    assert!(Border::list(&Location::from(&lab.registry)).unwrap().is_empty());
}

#[test]
fn nothing_is_left_in_front_of_what_goes_out() {
    let Some(lab) = lab() else { return };
    for mode in BOTH_MODES {
        for held_by_others in [false, true] {
            nothing_is_left(&lab, mode, held_by_others);
        }
    }
}

/// The other side knows the secrets here, and gives what it sends back traits of its own.
#[test]
fn what_comes_in_has_no_traits() {
    let Some(lab) = lab() else { return };
    for mode in BOTH_MODES {
        let object = lab.load("border");
        let chain = Chain::new().unwrap();
        // to a network that each takes to be the other's
        chain.router_out().netns().ip("route add 10.77.9.0/24 via 10.77.2.2").unwrap();
        chain.server().netns().ip("route add 10.77.9.0/24 via 10.77.2.1").unwrap();
        chain.server().netns().set_sysctl("net/ipv4/ip_forward", "1").unwrap();
        let _give = attach_xdp(&object, "give", chain.server(), mode);
        let look = |border: bool| {
            let end = chain.router_out();
            let before = seen(&object);
            let border = border.then(|| end.netns().enter(|| Border::attach(&lab.registry, end.ifindex())).unwrap());
            let program = program(&object, "look");
            let options = TcxOptions::new(Direction::Ingress);
            let look = end.netns().enter(|| tcx::attach(program.as_fd(), end.ifindex(), &options)).unwrap();
            let mut flow = Flow::between(chain.client(), chain.router_in(), Family::V4, 4000, 4001);
            flow.ip = packet_traits_lab::frame::IpPair::V4(chain.client().ipv4(), [10, 77, 9, 9].into());
            let sender = PacketSocket::on(chain.client()).unwrap();
            for number in 0..FRAMES {
                sender.send(&flow.udp(&number.to_be_bytes())).unwrap();
            }
            let [ipv4, ..] = loop {
                let now = since(&object, before);
                if now[0].packets >= FRAMES {
                    break now;
                }
                std::thread::sleep(Duration::from_millis(10));
            };
            drop(look);
            let crossed = border.as_ref().map(|border| border.crossed(Direction::Ingress));
            if let Some(border) = border {
                border.detach().unwrap();
            }
            (ipv4, crossed)
        };
        let (bare, _) = look(false);
        assert!(bare.traits >= FRAMES, "{mode}: {bare:?}");
        let (ipv4, crossed) = look(true);
        assert_eq!((ipv4.traits, ipv4.secrets), (0, 0), "{mode}: {ipv4:?}");
        let Crossed { wiped, dropped, .. } = crossed.unwrap();
        assert!(wiped >= FRAMES && dropped == 0, "{mode}: {crossed:?}");
    }
}
