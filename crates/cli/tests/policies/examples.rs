//! The policies of the repository on the traffic they are for. Tenant isolation is in `routing`.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
};

use packet_traits::{Timestamp, TypedKey};
use packet_traits_lab::{
    Cgroup, Family, KernelFeature, PacketSocket, Pair, VethOptions,
    frame::{FIN, Flow, IpPair, SYN},
    number_of, send_numbered, udp_socket,
};
use packet_traits_socket::{Received, Receiver};
use socket2::SockRef;

use crate::host::Host;

const PORT: u16 = 7777;

/// A policy that is up, and a server in a cgroup whose sockets have traits.
struct Served {
    pair: Pair,
    receiver: Receiver<UdpSocket>,
    host: Host,
    // the sockets' programs go with the registry's bpffs
    _cgroup: Cgroup,
}

impl Served {
    fn new(policy: &str) -> Option<Served> {
        let host = Host::on(&[KernelFeature::LongMetadata])?;
        let (pair, cgroup) = (Pair::with(&VethOptions::new().gro(true)).unwrap(), Cgroup::new().unwrap());
        host.up(pair.rx(), &Host::example(policy), &["--mode", "native"]);
        host.traits.ok(&format!("sockets attach --cgroup {}", cgroup.path().display()));
        let rx = pair.rx();
        let socket = cgroup.enter(|| udp_socket(rx.netns(), rx.addr(Family::V4, PORT))).unwrap();
        let receiver = Receiver::new(socket).unwrap();
        Some(Served { pair, receiver, host, _cgroup: cgroup })
    }

    fn to(&self) -> SocketAddr {
        self.receiver.socket().local_addr().unwrap()
    }

    fn sender(&self) -> UdpSocket {
        udp_socket(self.pair.tx().netns(), self.pair.tx().addr(Family::V4, 0)).unwrap()
    }
}

/// Frames of another sender than the link's.
fn flow_from(pair: &Pair, from: Ipv4Addr, src_port: u16, dst_port: u16) -> Flow {
    Flow {
        ip: IpPair::V4(from, pair.rx().ipv4()),
        ..Flow::between(pair.tx(), pair.rx(), Family::V4, src_port, dst_port)
    }
}

fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime(2) writes the timespec.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) }, 0);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[test]
fn every_packet_has_an_id_of_its_own_and_every_flow_one_for_all_of_its_packets() {
    const FLOWS: usize = 8;
    const PER_FLOW: u64 = 100;
    let Some(served) = Served::new("tracing-ids.traits") else { return };
    let keys = served.receiver.keys().clone();
    let packet_id: TypedKey<u64> = keys.typed("packet_id").unwrap();
    let flow_id: TypedKey<u64> = keys.typed("flow_id").unwrap();
    let rx_ts: TypedKey<Timestamp> = keys.typed("rx_ts").unwrap();

    let senders: Vec<UdpSocket> = (0..FLOWS).map(|_| served.sender()).collect();
    let (mut ids, mut flows) = (HashSet::new(), HashMap::<SocketAddr, u64>::new());
    let mut last = monotonic();
    for number in 0..PER_FLOW {
        for sender in &senders {
            send_numbered(sender, served.to(), number..number + 1, 64).unwrap();
            let mut buffer = [0; 2048];
            let Received { len, from, traits, .. } = served.receiver.recv(&mut buffer).unwrap();
            assert_eq!(number_of(&buffer[..len]), Some(number));
            assert!(ids.insert(traits.get(&packet_id).unwrap()), "an id was given twice");
            let flow = traits.get(&flow_id).unwrap();
            assert_eq!(*flows.entry(from).or_insert(flow), flow, "one flow");
            let Timestamp(at) = traits.get(&rx_ts).unwrap();
            assert!(last < at && at < monotonic(), "the time of arrival is between sending and receiving");
            last = at;
        }
    }
    assert_eq!(flows.values().collect::<HashSet<_>>().len(), FLOWS, "flows differ");

    // the ids go on where they were when the policy is replaced
    served.host.up(served.pair.rx(), &Host::example("tracing-ids.traits"), &["--mode", "native", "--replace"]);
    for number in 0..PER_FLOW {
        send_numbered(&senders[0], served.to(), number..number + 1, 64).unwrap();
        let traits = served.receiver.recv(&mut [0; 2048]).unwrap().traits;
        assert!(ids.insert(traits.get(&packet_id).unwrap()), "an id was given twice after replacing");
    }
}

#[test]
fn a_packets_class_is_its_mark_and_its_priority() {
    let Some(host) = Host::new() else { return };
    let pair = Pair::new().unwrap();
    host.up(pair.rx(), &Host::example("service-classes.traits"), &[]);
    // 0:4 and 0:6: how nftables writes the priorities 4 and 6
    pair.rx()
        .netns()
        .nft(
            "table inet t {\nchain c {\ntype filter hook prerouting priority 0\n\
             meta l4proto udp meta mark 1 meta priority 0:6 counter comment \"voice\"\n\
             meta l4proto udp meta mark 2 meta priority 0:4 counter comment \"interactive\"\n\
             meta l4proto udp meta mark 3 meta priority 0:0 counter comment \"bulk\"\n\
             meta l4proto udp meta mark 0 counter comment \"none\"\n}\n}\n",
        )
        .unwrap();
    let plain = udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0)).unwrap();
    let expedited = udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0)).unwrap();
    SockRef::from(&expedited).set_tos_v4(46 << 2).unwrap();
    let send = |socket: &UdpSocket, port, count| {
        send_numbered(socket, pair.rx().addr(Family::V4, port), 0..count, 64).unwrap();
    };
    send(&expedited, 873, 1); // what the sender asked for goes first
    send(&plain, 5061, 2);
    send(&plain, 16384, 4);
    send(&plain, 53, 8);
    send(&plain, 873, 16);
    send(&plain, 9, 32);
    let frames = PacketSocket::on(pair.tx()).unwrap();
    for _ in 0..64 {
        // the smaller of two prefixes, and what the partner has goes before the port
        frames.send(&flow_from(&pair, Ipv4Addr::new(192, 0, 2, 53), 4000, 5060).udp(&[0; 64])).unwrap();
        frames.send(&flow_from(&pair, Ipv4Addr::new(192, 0, 2, 54), 4000, 53).udp(&[0; 64])).unwrap();
    }
    let listed = pair.rx().netns().nft("list table inet t").unwrap();
    for (class, packets) in [("voice", 1 + 2 + 4), ("interactive", 8 + 64), ("bulk", 16 + 64), ("none", 32)] {
        let line = listed.lines().find(|line| line.contains(&format!("comment \"{class}\""))).unwrap();
        assert!(
            line.contains(&format!("counter packets {packets} ")),
            "{class}: {packets} packets expected:\n{listed}"
        );
    }
}

#[test]
fn unwanted_packets_end_in_xdp_and_are_counted_by_tenant() {
    const NAME: &str = "early-drop";
    for mode in ["native", "generic"] {
        let Some(host) = Host::new() else { return };
        let pair = Pair::new().unwrap();
        host.up(pair.rx(), &Host::example("early-drop.traits"), &["--mode", mode]);
        let frames = PacketSocket::on(pair.tx()).unwrap();
        let from = |last| Ipv4Addr::new(10, 77, 0, last);
        for _ in 0..10 {
            frames.send(&flow_from(&pair, from(66), 4000, PORT).udp(&[0; 64])).unwrap();
            frames.send(&flow_from(&pair, Ipv4Addr::new(10, 77, 1, 200), 4000, PORT).udp(&[0; 64])).unwrap();
            frames.send(&flow_from(&pair, Ipv4Addr::new(203, 0, 113, 9), 4000, PORT).udp(&[0; 64])).unwrap();
            frames.send(&flow_from(&pair, from(5), 53, PORT).udp(&[0; 600])).unwrap();
            frames.send(&flow_from(&pair, from(5), 4000, PORT).tcp(1, 0, SYN | FIN, &[])).unwrap();
            frames.send(&flow_from(&pair, from(5), 4000, PORT).tcp(1, 0, 0, &[])).unwrap();
        }
        // two later fragments each
        let sender = udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0)).unwrap();
        send_numbered(&sender, pair.rx().addr(Family::V4, PORT), 0..3, 4000).unwrap();
        for (counter, tenant, packets) in [
            ("blocked", Some("7"), 10),
            ("blocked", Some("8"), 10),
            ("blocked", Some("1"), 0),
            ("amplified", Some("7"), 10),
            ("malformed", None, 20),
            ("fragments", Some("7"), 6),
        ] {
            host.wait_for(NAME, counter, tenant, packets);
        }
        // a sender without a tenant is dropped all the same
        let status = host.status(NAME);
        let rules = status["deployments"][0]["policy"]["rules"].as_array().unwrap();
        let blocked = rules.iter().find(|rule| rule["text"].as_str().unwrap().contains("count blocked")).unwrap();
        assert_eq!(blocked["packets"], 30, "{blocked}");

        // and what is wanted goes through
        let receiver = udp_socket(pair.rx().netns(), pair.rx().addr(Family::V4, PORT)).unwrap();
        frames.send(&flow_from(&pair, from(5), 53, PORT).udp(&[0; 64])).unwrap();
        assert_eq!(receiver.recv(&mut [0; 2048]).unwrap(), 64);
    }
}

/// A veth has no clock, but a hash of the flow, as a card has.
#[test]
fn what_the_card_says_reaches_the_application() {
    let Some(served) = Served::new("hardware-timestamps.traits") else { return };
    let keys = served.receiver.keys().clone();
    let rx_hash: TypedKey<u32> = keys.typed("rx_hash").unwrap();
    let rx_ts: TypedKey<Timestamp> = keys.typed("rx_ts").unwrap();
    let hw_ts: TypedKey<Timestamp> = keys.typed("hw_ts").unwrap();
    let mut hashes = HashSet::new();
    for _ in 0..8 {
        let sender = served.sender();
        sender.connect(served.to()).unwrap();
        let mut of_flow = HashSet::new();
        for _ in 0..10 {
            let before = monotonic();
            sender.send(&[0; 64]).unwrap();
            let traits = served.receiver.recv(&mut [0; 2048]).unwrap().traits;
            of_flow.extend(traits.get(&rx_hash));
            assert!(before < traits.get(&rx_ts).unwrap().0);
            assert_eq!(traits.get(&hw_ts), None);
        }
        assert_eq!(of_flow.len(), 1, "one hash for all packets of a flow");
        hashes.extend(of_flow);
    }
    assert!(hashes.len() > 1, "flows differ");
}
