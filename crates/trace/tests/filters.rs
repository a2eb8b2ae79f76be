//! Which packets are reported: filters, sampling, other people's ids, and what does not fit.

mod common;

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use common::{
    Home, POLICY_KEYS, Seen, enabled, in_namespaces, load_object, long_enabled, on_this_kernel, points, port, start,
    tc_enabled, watch,
};
use packet_traits::{
    KeyName, KeyType, Value,
    attach::{Attachment, XdpMode, xdp},
    drop_reason,
    registry::{KeySpec, Registry},
};
use packet_traits_lab::{
    Family, KernelFeature, PacketSocket, Pair,
    frame::{Flow, ethernet},
    kernel_has_for, recv_numbered, send_numbered, skipped, udp_socket,
};
use packet_traits_trace::{
    BUSY, Change, Hint, Names, Options, Outcome, Packet,
    Point::{self, Consume, Deliver, Drop, Xdp},
    QUIET, Standby, TraceError, Tracer, write,
};

/// A link, and a server on two of the ports that are sent to; on the others there is nobody.
struct Rig {
    pair: Pair,
    home: Home,
    servers: Vec<std::net::UdpSocket>,
}

const PORTS: std::ops::Range<u16> = 7000..7010;
const SERVED: [u16; 2] = [7000, 7007];

impl Rig {
    fn new() -> Rig {
        let pair = Pair::new().unwrap();
        let serve = |port| udp_socket(pair.rx().netns(), pair.rx().addr(Family::V4, port)).unwrap();
        Rig { servers: SERVED.map(serve).into(), pair, home: Home::new() }
    }

    fn options(&self, conditions: &[&str]) -> Options {
        let mut options = in_namespaces(&[self.pair.rx().netns()]);
        options.conditions = conditions.iter().map(|text| text.parse().unwrap()).collect();
        options
    }

    /// Sends `each` datagrams to each port, and receives those that can be.
    fn send(&self, each: u64) {
        let socket = udp_socket(self.pair.tx().netns(), self.pair.tx().addr(Family::V4, 4000)).unwrap();
        for number in 0..each {
            for port in PORTS {
                send_numbered(&socket, self.pair.rx().addr(Family::V4, port), number..number + 1, 64).unwrap();
            }
            self.servers.iter().for_each(|server| assert_eq!(recv_numbered(server).unwrap(), number));
        }
    }

    fn seen(&self, options: &Options, each: u64) -> Seen {
        let mut tracer = start(&self.home.registry, options);
        watch(&mut tracer, || self.send(each))
    }
}

/// Attaches a program that assigns ids, as a policy would.
fn policy(rig: &Rig) -> Attachment {
    let object = load_object(&rig.home.registry, "policy.bpf.c", &POLICY_KEYS);
    let program = object.program("assign").unwrap().as_fd().try_clone_to_owned().unwrap();
    let rx = rig.pair.rx();
    rx.netns().enter(|| xdp::attach(program.as_fd(), rx.ifindex(), XdpMode::Native)).unwrap().0
}

fn ports(seen: &Seen) -> Vec<u16> {
    let mut ports: Vec<u16> = seen.packets.iter().filter_map(port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[test]
fn header_conditions_decide_who_gets_an_id() {
    if !enabled() {
        return;
    }
    let rig = Rig::new();
    let cases: [(&[&str], &[u16]); 7] = [
        (&["dport == 7003"], &[7003]),
        (&["port == 7003"], &[7003]),
        (&["dport >= 7003", "dport < 7006", "dport != 7004"], &[7003, 7005]),
        (&["src == 10.77.0.0/16", "dport <= 7001"], &[7000, 7001]),
        (&["src != 10.77.0.0/16"], &[]),
        (&["family == ipv6"], &[]),
        (&["proto == udp", "len > 92"], &[]),
    ];
    for (conditions, expected) in cases {
        let seen = rig.seen(&rig.options(conditions), 10);
        assert_eq!(ports(&seen), expected, "{conditions:?}");
        assert_eq!(seen.counters.assigned, 10 * expected.len() as u64, "{conditions:?}");
        assert_eq!(seen.packets.len(), 10 * expected.len(), "{conditions:?}");
    }
}

/// A datagram and the same as SCTP, and what has no ports: the same as ICMP, as a later fragment, and a frame that is not
/// IP.
fn frames_with_and_without_ports(rig: &Rig) -> [Vec<u8>; 5] {
    let (tx, rx) = (rig.pair.tx(), rig.pair.rx());
    let datagram = Flow::between(tx, rx, Family::V4, 4000, 7003).udp(&[0; 64]);
    let [mut sctp, mut icmp, mut fragment] = [0; 3].map(|_| datagram.clone());
    sctp[14 + 9] = 132; // protocol
    icmp[14 + 9] = 1;
    fragment[14 + 7] = 0x10; // offset
    [datagram, sctp, icmp, fragment, ethernet(rx.mac(), tx.mac(), 0x88b5, &[0; 64])]
}

#[test]
fn conditions_hold_only_for_packets_that_have_the_field() {
    if !enabled() {
        return;
    }
    let rig = Rig::new();
    let from = PacketSocket::on(rig.pair.tx()).unwrap();
    let send = || frames_with_and_without_ports(&rig).iter().for_each(|frame| from.send(frame).unwrap());
    // among packets that are not of the kernel's own
    let cases: [(&[&str], usize); 6] = [
        (&["dport < 1024"], 0),
        (&["port != 9"], 2),
        (&["sport >= 0"], 2),
        (&["src == 10.77.0.0/16"], 4),
        (&["family != ipv6", "proto != tcp"], 4),
        (&["family != ipv6", "len < 1000"], 4),
    ];
    for (conditions, expected) in cases {
        let mut tracer = start(&rig.home.registry, &rig.options(conditions));
        let seen = watch(&mut tracer, send);
        assert_eq!(seen.packets.len(), expected, "{conditions:?}: {:?}", seen.packets);
    }
    // the same where another program gives the ids, to fragments too
    if !kernel_has_for(KernelFeature::LongMetadata, "ids that another key holds") {
        return;
    }
    let _policy = policy(&rig);
    for (condition, expected) in [("dport < 1024", 0), ("dport != 9", 1), ("proto == udp", 2)] {
        let options = Options { id: Some("packet_id".to_owned()), ..rig.options(&[condition]) };
        let mut tracer = start(&rig.home.registry, &options);
        let seen = watch(&mut tracer, send);
        assert_eq!(seen.packets.len(), expected, "{condition}: {:?}", seen.packets);
    }
}

#[test]
fn one_packet_in_ten_is_followed_all_the_way() {
    if !enabled() {
        return;
    }
    let rig = Rig::new();
    let options = Options { sample: 10, ..rig.options(&["dport == 7007"]) };
    let seen = rig.seen(&options, 200);
    assert_eq!(seen.packets.len(), 20);
    assert!(seen.packets.iter().all(|packet| packet.outcome == Outcome::Delivered), "{:?}", seen.packets);
}

#[test]
fn only_drops_are_drops_only() {
    if !enabled() {
        return;
    }
    let rig = Rig::new();
    let seen = rig.seen(&Options { only_drops: true, ..rig.options(&[]) }, 10);
    assert_eq!(seen.packets.len(), 80);
    assert!(seen.packets.iter().all(|packet| points(packet) == [Drop]), "{:?}", seen.packets);
    // when it entered is known all the same
    assert!(seen.packets.iter().all(|packet| packet.steps[0].at > packet.entered), "{:?}", seen.packets);
}

#[test]
fn only_slow_packets_are_seen_where_they_are_slow() {
    if !enabled() {
        return;
    }
    let rig = Rig::new();
    const SLOW: Duration = Duration::from_millis(200);
    let options = Options { slower: Some(SLOW), ..rig.options(&["dport == 7007"]) };
    let mut tracer = start(&rig.home.registry, &options);
    let seen = watch(&mut tracer, || {
        rig.send(5);
        let socket = udp_socket(rig.pair.tx().netns(), rig.pair.tx().addr(Family::V4, 4000)).unwrap();
        send_numbered(&socket, rig.pair.rx().addr(Family::V4, 7007), 77..78, 64).unwrap();
        thread::sleep(SLOW + Duration::from_millis(50));
        assert_eq!(recv_numbered(&rig.servers[1]).unwrap(), 77);
    });
    assert_eq!(seen.packets.len(), 1, "{:?}", seen.packets);
    // on 6.12 its memory is freed before it is known to have been delivered, on 6.18 after that
    assert_eq!(points(&seen.packets[0]).iter().find(|point| **point != Consume), Some(&Deliver));
    assert!(seen.packets[0].duration() >= SLOW.as_nanos() as u64);
}

#[test]
fn conditions_on_ports_hold_behind_extension_headers() {
    if !enabled() {
        return;
    }
    let rig = Rig::new();
    let (tx, rx) = (rig.pair.tx(), rig.pair.rx());
    let frames = PacketSocket::on(tx).unwrap();
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let options = Options { xdp_mode: mode, ..rig.options(&["dport == 7007", "proto == udp"]) };
        let mut tracer = start(&rig.home.registry, &options);
        let seen = watch(&mut tracer, || {
            for port in [7006, 7007] {
                let flow = Flow::between(tx, rx, Family::V6, 4000, port);
                [0, 1, 4, 100]
                    .iter()
                    .for_each(|count| frames.send(&flow.udp_behind_options(*count, 8, &[7; 8])).unwrap());
            }
        });
        assert_eq!((seen.packets.len(), seen.counters.assigned), (4, 4), "{mode}: {:?}", seen.packets);
        // the others' ports are behind what is captured
        let known = seen.packets.iter().filter(|packet| port(packet) == Some(7007)).count();
        assert_eq!(known, 3, "{mode}: {:?}", seen.packets);
    }
}

#[test]
fn a_packet_says_what_it_came_as_before_nat() {
    if !enabled() {
        return;
    }
    let rig = Rig::new();
    let rules =
        "table ip nat {\nchain c {\ntype nat hook prerouting priority dstnat\nudp dport 7001 redirect to 7007\n}\n}\n";
    rig.pair.rx().netns().nft(rules).unwrap();
    let mut tracer = start(&rig.home.registry, &rig.options(&["dport > 7000", "dport < 7003"]));
    let socket = udp_socket(rig.pair.tx().netns(), rig.pair.tx().addr(Family::V4, 4000)).unwrap();
    let seen = watch(&mut tracer, || {
        for port in [7001, 7002] {
            send_numbered(&socket, rig.pair.rx().addr(Family::V4, port), 0..5, 64).unwrap();
        }
    });
    let came = |packet: &Packet| packet.came_as.and_then(|headers| headers.ports).map(|(_, to)| to);
    let (changed, other): (Vec<_>, Vec<_>) = seen.packets.iter().partition(|packet| port(packet) == Some(7007));
    assert_eq!((changed.len(), other.len()), (5, 5), "{:?}", seen.packets);
    assert!(changed.iter().all(|packet| came(packet) == Some(7001)), "{changed:?}");
    assert!(other.iter().all(|packet| packet.came_as.is_none()), "{other:?}");
    let mut line = String::new();
    write::text::packet(&mut line, changed[0], &mut Names::read(&[]).unwrap());
    assert!(line.contains(":7007 (came as UDP ") && line.contains(":7001)"), "{line}");
}

#[test]
fn a_connection_that_closes_has_dropped_nothing() {
    if !enabled() {
        return;
    }
    let rig = Rig::new();
    let (tx, rx) = (rig.pair.tx(), rig.pair.rx());
    let names = drop_reason::names().unwrap_or_default();
    let known = names.values().any(|name| name == "QUEUE_PURGE");
    for only_drops in [false, true] {
        let mut tracer = start(&rig.home.registry, &Options { only_drops, ..rig.options(&["proto == tcp"]) });
        let seen = watch(&mut tracer, || {
            for number in 0..20 {
                let address = rx.addr(Family::V4, 9000 + number);
                let listener = rx.netns().enter(|| TcpListener::bind(address)).unwrap();
                let mut client = tx.netns().enter(|| TcpStream::connect(address)).unwrap();
                let (mut server, _) = listener.accept().unwrap();
                client.write_all(b"GET / HTTP/1.0").unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                // the request, and not its end, which the kernel keeps with the connection
                assert_eq!(server.read(&mut [0; 64]).unwrap(), 14);
                server.write_all(b"HTTP/1.0 200").unwrap();
                drop(server);
                assert_eq!(client.read_to_end(&mut Vec::new()).unwrap(), 12);
            }
        });
        if known {
            let dropped: Vec<String> = seen
                .packets
                .iter()
                .filter(|packet| packet.outcome == Outcome::Dropped)
                .map(|packet| {
                    let mut line = String::new();
                    write::text::packet(&mut line, packet, &mut Names::read(&[]).unwrap());
                    line
                })
                .collect();
            assert_eq!((seen.summary.dropped, dropped), (0, Vec::new()));
        }
        // kernels before that reason give none: there it is a drop
        assert!(!known && only_drops || seen.packets.is_empty() == only_drops, "{:?}", seen.packets);
    }
}

#[test]
fn other_peoples_ids_and_traits_are_used() {
    if !long_enabled() {
        return;
    }
    let rig = Rig::new();
    let _policy = policy(&rig);
    let by = |conditions: &[&str]| Options {
        id: Some("packet_id".to_owned()),
        entered: Some("arrived".to_owned()),
        ..rig.options(conditions)
    };
    let cases: [(&[&str], &[u16]); 8] = [
        (&["tenant == 7"], &[7007]),
        (&["tenant != 7", "tenant > 5"], &[7006, 7008, 7009]),
        (&["trait.tenant <= 1"], &[7000, 7001]),
        (&["balance < -3"], &[7000, 7001]),
        (&["balance >= 3"], &[7008, 7009]),
        (&["marked == set", "dport > 7005"], &[7007, 7009]),
        (&["dport == 7004"], &[7004]),
        (&["dst == fd00::/8"], &[]),
    ];
    for (conditions, expected) in cases {
        let seen = rig.seen(&by(conditions), 10);
        assert_eq!(ports(&seen), expected, "{conditions:?}");
        assert_eq!(seen.packets.len(), 10 * expected.len(), "{conditions:?}");
        assert_eq!(seen.counters.assigned, 0);
        for packet in &seen.packets {
            let tenant = packet.traits.iter().find(|(key, _)| key == "tenant").map(|(_, value)| *value);
            assert_eq!(tenant, Some(Value::U32(u32::from(port(packet).unwrap()) % 10)), "{packet:?}");
            assert!(!points(packet).contains(&Xdp), "the entry is another program's: {packet:?}");
        }
    }
    let seen = rig.seen(&Options { sample: 5, ..by(&[]) }, 10);
    assert_eq!(seen.packets.len(), 20);
    assert!(seen.packets.iter().all(|packet: &Packet| packet.id.is_multiple_of(5)));
    let values = &seen.summary.values;
    assert!(values.keys().any(|(key, value)| key == "tenant" && value == "4"), "{:?}", values.keys());
    // a row for each packet would tell nothing
    let summary = rig.seen(&by(&[]), 10).summary;
    let keys: BTreeSet<&str> = summary.values.keys().map(|(key, _)| key.as_str()).collect();
    assert!(keys.contains("tenant") && !keys.contains("packet_id") && !keys.contains("arrived"), "{keys:?}");
    assert!(summary.unique.iter().eq(["packet_id"]), "{:?}", summary.unique);
}

#[test]
fn a_taken_entry_is_refused_with_what_to_do() {
    if !long_enabled() {
        return;
    }
    let rig = Rig::new();
    let _policy = policy(&rig);
    // no room is left for an id that TC could set
    let filler = |number| KeySpec::new(KeyName::new(&format!("filler{number}")).unwrap(), KeyType::U32);
    let filled = (0..64).take_while(|number| rig.home.registry.register(&filler(*number)).is_ok()).count();
    assert!(filled > 0 && filled < 64, "{filled}");
    let Err(error @ TraceError::NoEntry { .. }) = Tracer::start(&rig.home.registry, &rig.options(&[])) else {
        panic!("it should not start");
    };
    let text = error.to_string();
    for part in ["(assign)", "packet_id"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(error.hints().ends_with(&[Hint::NameId, Hint::NameInterface]), "{error:?}");
    let names: Vec<String> =
        rig.home.registry.list().unwrap().iter().map(|entry| entry.key.name().to_string()).collect();
    assert!(!names.iter().any(|name| name.starts_with("trace.")), "nothing is left: {names:?}");
}

#[test]
fn what_does_not_fit_is_counted() {
    if !enabled() {
        return;
    }
    let rig = Rig::new();
    let options = Options { ring_len: 4096, ..rig.options(&["dport == 7007"]) };
    let mut tracer = start(&rig.home.registry, &options);
    // nobody reads in the meantime
    rig.send(300);
    let seen = watch(&mut tracer, || {});
    let lost = &seen.counters.lost;
    assert!(seen.counters.lost_events() > 0);
    assert_eq!(seen.counters.assigned, 300);
    let events = |point: Point| seen.summary.points.get(&point).map_or(0, |seen| seen.events);
    let all = [Xdp, Point::Gro, Point::Receive, Point::TcIngress, Point::PreRouting, Point::Input, Deliver];
    for point in on_this_kernel(&tracer, &all) {
        assert_eq!(events(point) + lost[point as usize], 300, "{point}");
    }
}

/// Sends 200 packets that match, one after the other, to a tracer that stands by. All are counted or followed.
fn is_armed_by_a_match(rig: &Rig, tracer: &mut Tracer<'_>) {
    assert!(!tracer.is_armed());
    let before = tracer.counters().unwrap();
    let socket = udp_socket(rig.pair.tx().netns(), rig.pair.tx().addr(Family::V4, 4000)).unwrap();
    let seen = watch(tracer, || {
        for number in 0..200 {
            send_numbered(&socket, rig.pair.rx().addr(Family::V4, 7007), number..number + 1, 64).unwrap();
            assert_eq!(recv_numbered(&rig.servers[1]).unwrap(), number);
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(tracer.is_armed(), "within four seconds");
    let (too_early, followed) = (seen.counters.too_early - before.too_early, seen.packets.len() as u64);
    assert!(too_early > 0 && followed > 0, "{too_early} too early, {followed} followed");
    // one may be under way when the points come back
    assert!((200..=201).contains(&(too_early + followed)), "{too_early} too early, {followed} followed");
    assert!(seen.packets.iter().skip(1).all(|packet| packet.outcome == Outcome::Delivered), "{:?}", seen.packets);
    assert_eq!(ports(&seen), [7007]);
}

/// Starts a tracer that stands by, and has packets come that do not match; then such that do.
fn waits_for_a_match(rig: &Rig, options: Options) {
    let options = Options { standby: Standby::FromStart, ..options };
    let mut tracer = start(&rig.home.registry, &options);
    let seen = watch(&mut tracer, || {
        let socket = udp_socket(rig.pair.tx().netns(), rig.pair.tx().addr(Family::V4, 4000)).unwrap();
        send_numbered(&socket, rig.pair.rx().addr(Family::V4, 7000), 0..50, 64).unwrap();
        thread::sleep(Duration::from_millis(200));
    });
    assert_eq!((seen.packets.len(), seen.counters.too_early), (0, 0));
    assert_eq!(tracer.adapt().unwrap(), None, "nothing has matched");
    is_armed_by_a_match(rig, &mut tracer);
}

#[test]
fn a_tracer_that_stands_by_is_armed_by_the_first_packet_that_matches() {
    if !enabled() {
        return;
    }
    let rig = Rig::new();
    waits_for_a_match(&rig, rig.options(&["dport == 7007"]));
}

#[test]
fn it_is_also_if_ids_are_other_peoples() {
    if !long_enabled() {
        return;
    }
    let rig = Rig::new();
    let _policy = policy(&rig);
    // packets were not late yet when they entered
    let slower = Some(Duration::from_nanos(1));
    let options = Options { entered: Some("arrived".to_owned()), slower, ..rig.options(&["tenant == 7"]) };
    waits_for_a_match(&rig, Options { id: Some("packet_id".to_owned()), ..options });
}

#[test]
fn behind_other_peoples_xdp_packets_get_their_ids_at_tc() {
    if !tc_enabled() {
        return;
    }
    let rig = Rig::new();
    let _policy = policy(&rig);
    let cases: [(&[&str], &[u16]); 4] = [
        (&["tenant == 7"], &[7007]),
        (&["dport == 7003"], &[7003]),
        (&["balance >= 3", "dport != 7009"], &[7008]),
        (&["tenant == 12"], &[]),
    ];
    for (conditions, expected) in cases {
        let mut tracer = start(&rig.home.registry, &rig.options(conditions));
        assert!(tracer.notes()[0].contains("rx0: XDP program assign["), "{:?}", tracer.notes());
        let seen = watch(&mut tracer, || rig.send(10));
        assert_eq!(ports(&seen), expected, "{conditions:?}");
        assert_eq!((seen.packets.len(), seen.counters.assigned), (10 * expected.len(), 10 * expected.len() as u64));
        for packet in &seen.packets {
            let path = points(packet);
            assert_eq!(path[..2], [Point::TcIngress, Point::PreRouting], "{path:?}");
            assert!(packet.entered <= packet.steps[0].at, "{packet:?}");
            let end = if SERVED.contains(&port(packet).unwrap()) { Outcome::Delivered } else { Outcome::Dropped };
            assert_eq!(packet.outcome, end, "{packet:?}");
        }
        let mut ids: Vec<u64> = seen.packets.iter().map(|packet| packet.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, (1..=10 * expected.len() as u64).collect::<Vec<_>>());
    }
    let sampled = rig.seen(&Options { sample: 5, ..rig.options(&["dport == 7000"]) }, 20);
    assert_eq!(sampled.packets.len(), 4);
    let left = rig.home.registry.list().unwrap();
    assert!(left.iter().all(|entry| !entry.key.name().as_str().starts_with("trace.")), "{left:?}");
    waits_for_a_match(&rig, rig.options(&["tenant == 7"]));
}

#[test]
fn an_interface_that_goes_while_a_tracer_stands_by_is_noted() {
    if !enabled() {
        return;
    }
    let rig = Rig::new();
    let other = Pair::new().unwrap();
    let mut options = in_namespaces(&[rig.pair.rx().netns(), other.rx().netns()]);
    options.conditions = vec!["dport == 7007".parse().unwrap()];
    let mut tracer = start(&rig.home.registry, &Options { standby: Standby::FromStart, ..options });
    other.rx().netns().ip(&format!("link del {}", other.rx().name())).unwrap();
    is_armed_by_a_match(&rig, &mut tracer);
    let notes = tracer.notes();
    assert!(notes.iter().any(|note| note.contains("is gone, and is not traced any more")), "{notes:?}");
}

#[test]
fn lengths_behind_other_peoples_xdp_are_those_of_ip() {
    if !tc_enabled() {
        return;
    }
    let rig = Rig::new();
    // 64 bytes of data, and the headers of UDP and IPv4
    let exact = ["dport == 7000", "len == 92"];
    assert_eq!(rig.seen(&rig.options(&exact), 5).packets.len(), 5);
    let _policy = policy(&rig);
    assert_eq!(rig.seen(&rig.options(&exact), 5).packets.len(), 5);
    let by_id = Options { id: Some("packet_id".to_owned()), ..rig.options(&exact) };
    let seen = rig.seen(&by_id, 5);
    assert_eq!(seen.packets.len(), 5);
    assert!(points(&seen.packets[0]).contains(&Point::TcIngress), "{:?}", seen.packets[0]);
}

#[test]
fn of_two_tracers_behind_one_xdp_program_one_follows_a_packet() {
    if !tc_enabled() {
        return;
    }
    let rig = Rig::new();
    let _policy = policy(&rig);
    let options = rig.options(&["dport == 7000"]);
    let (mut first, mut second) = (start(&rig.home.registry, &options), start(&rig.home.registry, &options));
    let seen = watch(&mut second, || rig.send(10));
    let of_first = watch(&mut first, || {});
    let counts = |seen: &Seen| (seen.packets.len() as u64, seen.counters.assigned, seen.counters.taken);
    // the second is the first at the hook
    assert_eq!((counts(&seen), counts(&of_first)), ((10, 10, 0), (0, 0, 10)));
    assert!(seen.packets.iter().all(|packet| packet.outcome == Outcome::Delivered), "{:?}", seen.packets);
}

#[test]
fn a_packet_that_a_capture_has_too_gets_no_id_from_tc_up_to_6_18() {
    if !tc_enabled() {
        return;
    }
    let clones_can_be_written = KernelFeature::MovedMetadata.is_here();
    let rig = Rig::new();
    let _policy = policy(&rig);
    let _capture = PacketSocket::on(rig.pair.rx()).unwrap();
    let seen = rig.seen(&rig.options(&["dport == 7000"]), 10);
    let (followed, shared) = if clones_can_be_written { (10, 0) } else { (0, 10) };
    assert_eq!((seen.packets.len() as u64, seen.counters.shared, seen.counters.no_room), (followed, shared, 0));
}

#[test]
fn packets_that_other_peoples_xdp_gave_no_traits_get_no_id() {
    if !tc_enabled() {
        return;
    }
    let rig = Rig::new();
    let _policy = policy(&rig);
    let mut tracer = start(&rig.home.registry, &rig.options(&[]));
    let seen = watch(&mut tracer, || {
        rig.send(5);
        // the policy is for UDP
        tcp_refused(&rig.pair);
    });
    assert_eq!(seen.packets.len(), 50);
    assert_eq!(ports(&seen).len(), 10);
}

/// Tries to connect to where nobody listens.
fn tcp_refused(pair: &Pair) {
    let to = pair.rx().addr(Family::V4, 7000);
    let error = pair.tx().netns().enter(|| std::net::TcpStream::connect(to)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// Floods a port while something is done.
fn flooded<R>(rig: &Rig, port: u16, during: impl FnOnce() -> R) -> R {
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let socket = udp_socket(rig.pair.tx().netns(), rig.pair.tx().addr(Family::V4, 0)).unwrap();
            while !enough.load(Ordering::Relaxed) {
                send_numbered(&socket, rig.pair.rx().addr(Family::V4, port), 0..1000, 64).unwrap();
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(during));
        enough.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Whether this machine sends packets so fast that a tracer stands by; an emulated one may not, which is reported.
fn is_busy(rig: &Rig) -> bool {
    const PACKETS: u64 = 5000;
    let socket = udp_socket(rig.pair.tx().netns(), rig.pair.tx().addr(Family::V4, 0)).unwrap();
    let started = Instant::now();
    send_numbered(&socket, rig.pair.rx().addr(Family::V4, 7003), 0..PACKETS, 64).unwrap();
    let per_second = PACKETS as f64 / started.elapsed().as_secs_f64();
    // tracing them takes its time
    let enough = per_second > 3.0 * BUSY as f64;
    if !enough {
        skipped(format_args!("this machine sends too few packets per second for a tracer to stand by ({BUSY})"));
    }
    enough
}

/// Calls `adapt` until something changes, for half a minute at most.
fn until_change(tracer: &mut Tracer<'_>) -> Option<Change> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let change = tracer.adapt().unwrap();
        if change.is_some() || Instant::now() > deadline {
            return change;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_second_of_rare_packets_in_a_flood_is_followed() {
    if !enabled() {
        return;
    }
    let rig = Rig::new();
    if !is_busy(&rig) {
        return;
    }
    let options = Options { standby: Standby::Auto, ..rig.options(&["dport == 7007"]) };
    let mut tracer = start(&rig.home.registry, &options);
    flooded(&rig, 7003, || {
        assert_eq!(until_change(&mut tracer), Some(Change::StoodBy));
        let socket = udp_socket(rig.pair.tx().netns(), rig.pair.tx().addr(Family::V4, 4000)).unwrap();
        let send = |number| {
            send_numbered(&socket, rig.pair.rx().addr(Family::V4, 7007), number..number + 1, 64).unwrap();
            assert_eq!(recv_numbered(&rig.servers[1]).unwrap(), number);
        };
        send(0);
        assert_eq!(until_change(&mut tracer), Some(Change::Armed));
        let seen = watch(&mut tracer, || {
            // longer than it waits for the first
            thread::sleep(3 * QUIET);
            send(1);
        });
        assert!(tracer.is_armed());
        assert_eq!((seen.packets.len(), seen.counters.too_early), (1, 1));
        assert_eq!(seen.packets[0].outcome, Outcome::Delivered);
    });
}

#[test]
fn packets_that_match_and_are_not_late_keep_a_tracer_from_standing_by() {
    if !long_enabled() {
        return;
    }
    let rig = Rig::new();
    let _policy = policy(&rig);
    let mut tracer = start(
        &rig.home.registry,
        &Options {
            id: Some("packet_id".to_owned()),
            entered: Some("arrived".to_owned()),
            slower: Some(Duration::from_secs(60)),
            standby: Standby::Auto,
            ..rig.options(&["tenant == 3"])
        },
    );
    let seen = flooded(&rig, 7003, || watch(&mut tracer, || thread::sleep(3 * QUIET)));
    assert!(tracer.is_armed());
    assert_eq!((seen.packets.len(), seen.counters.too_early), (0, 0));
}

#[test]
fn many_packets_of_which_none_matches_have_a_tracer_stand_by() {
    if !enabled() {
        return;
    }
    let rig = Rig::new();
    if !is_busy(&rig) {
        return;
    }
    let options = Options { standby: Standby::Auto, ..rig.options(&["dport == 7007"]) };
    let mut tracer = start(&rig.home.registry, &options);
    assert!(tracer.is_armed());
    let change = flooded(&rig, 7003, || until_change(&mut tracer));
    assert_eq!(change, Some(Change::StoodBy));
    is_armed_by_a_match(&rig, &mut tracer);
}

#[test]
fn two_tracers_do_not_see_each_others_packets() {
    if !enabled() {
        return;
    }
    let home = Home::new();
    let (one, other) = (Pair::new().unwrap(), Pair::new().unwrap());
    let trace = |pair: &Pair| start(&home.registry, &in_namespaces(&[pair.rx().netns()]));
    let send = |pair: &Pair, count| {
        let socket = udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0)).unwrap();
        send_numbered(&socket, pair.rx().addr(Family::V4, 9), 0..count, 64).unwrap();
    };
    let (mut first, mut second) = (trace(&one), trace(&other));
    let of_first = watch(&mut first, || {
        send(&one, 7);
        send(&other, 3);
    });
    let of_second = watch(&mut second, || {});
    assert_eq!((of_first.packets.len(), of_second.packets.len()), (7, 3));
    drop(first);
    let left = |registry: &Registry| registry.list().unwrap().len();
    assert_eq!(left(&home.registry), 2, "the second one still uses the keys");
    let started = Instant::now();
    drop(second);
    assert_eq!(left(&home.registry), 0, "after {:?}", started.elapsed());
}

#[test]
fn tracers_that_start_and_end_at_the_same_time_do_not_take_each_others_keys() {
    if !enabled() {
        return;
    }
    let home = Home::new();
    thread::scope(|scope| {
        for _ in 0..2 {
            let home = &home;
            scope.spawn(move || {
                let pair = Pair::new().unwrap();
                // standing by, it starts and ends sooner
                let options = Options { standby: Standby::FromStart, ..in_namespaces(&[pair.rx().netns()]) };
                for _ in 0..12 {
                    drop(start(&home.registry, &options));
                }
            });
        }
    });
    let left: Vec<_> = home.registry.list().unwrap().iter().map(|entry| entry.key.name().to_string()).collect();
    assert!(left.is_empty(), "{left:?}");
}
