//! 10,000 packets of which it is known what became of each: dropped at one of five places, or delivered.

mod common;

use std::{
    collections::{BTreeMap, HashSet},
    net::UdpSocket,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use common::{Home, enabled, in_namespaces, on_this_kernel, points, port, start, watch};
use packet_traits_lab::{
    End, Family, KernelFeature, PacketSocket, Pair, frame::Flow, recv_numbered, send_numbered, udp_socket,
};
use packet_traits_trace::{
    Detail, Names, Outcome, Packet,
    Point::{self, *},
};

const PACKETS: u64 = 10_000;

/// Ports, by what becomes of a packet that is sent there.
const READ: u16 = 7000;
const FILTERED: u16 = 7001;
const CLOSED: u16 = 7002;
const FILTERED_AT_INGRESS: u16 = 7003;
const FULL: u16 = 7004;
const DAMAGED: u16 = 7005;

/// How many of the packets go to each; the rest is read.
const FATES: [(u16, u64); 5] =
    [(FILTERED, 400), (CLOSED, 311), (FILTERED_AT_INGRESS, 222), (FULL, 1000), (DAMAGED, 123)];

/// How a packet starts that gets as far as IP.
const RECEIVED: [Point; 4] = [Xdp, Gro, Receive, TcIngress];
const TO_SOCKET: [Point; 4] = [PreRouting, Route, Input, Cgroup];

/// Drops in LOCAL_IN, and where packets come in.
fn filter(receiver: &End) {
    let rules = format!(
        "add table inet t
        add chain inet t input {{ type filter hook input priority 0; }}
        add rule inet t input udp dport {FILTERED} drop
        add table netdev t
        add chain netdev t ingress {{ type filter hook ingress device {} priority 0; }}
        add rule netdev t ingress udp dport {FILTERED_AT_INGRESS} drop\n",
        receiver.name()
    );
    receiver.netns().nft(&rules).unwrap();
}

/// The function that drops a datagram to a closed port: it stands in `__udp4_lib_rcv`, which newer kernels (7.3) have in
/// its caller.
fn no_socket_place() -> &'static str {
    let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap();
    let known = |name| symbols.lines().any(|line| line.split(' ').nth(2) == Some(name));
    ["__udp4_lib_rcv", "udp_rcv"].iter().find(|name| known(name)).expect("this kernel receives UDP")
}

/// A socket with a small receive buffer.
fn small_socket(receiver: &End) -> UdpSocket {
    let socket = udp_socket(receiver.netns(), receiver.addr(Family::V4, FULL)).unwrap();
    let bytes: libc::c_int = 20_000;
    // SAFETY: an option of type int, with its length.
    let error = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            std::ptr::from_ref(&bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    assert_eq!(error, 0);
    socket
}

/// Where the packet with this number goes: the fates are spread evenly.
fn fate(number: u64) -> u16 {
    for (port, count) in FATES {
        let every = PACKETS / count;
        // different places in the row for each fate, so that two do not meet
        if number % every == u64::from(port - FILTERED) && number / every < count && !taken(number, port) {
            return port;
        }
    }
    READ
}

/// Whether an earlier fate has this number.
fn taken(number: u64, port: u16) -> bool {
    FATES.iter().take_while(|(other, _)| *other != port).any(|(other, count)| {
        let every = PACKETS / count;
        number % every == u64::from(other - FILTERED) && number / every < *count
    })
}

#[test]
fn every_packet_is_accounted_for() {
    if !enabled() {
        return;
    }
    let (pair, home) = (Pair::new().unwrap(), Home::new());
    let (tx, rx) = (pair.tx(), pair.rx());
    filter(rx);
    let read = udp_socket(rx.netns(), rx.addr(Family::V4, READ)).unwrap();
    let full = small_socket(rx);
    let mut sent: BTreeMap<u16, u64> = BTreeMap::new();
    (0..PACKETS).for_each(|number| *sent.entry(fate(number)).or_default() += 1);
    assert!(FATES.iter().all(|(port, count)| sent[port] > count / 2), "{sent:?}");

    let mut tracer = start(&home.registry, &in_namespaces(&[rx.netns()]));
    let seen = watch(&mut tracer, || {
        let expected = sent[&READ];
        let received = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&received);
        let reader = thread::spawn(move || {
            (0..expected).for_each(|_| {
                recv_numbered(&read).unwrap();
                counter.fetch_add(1, Ordering::Relaxed);
            });
            read
        });
        let socket = udp_socket(tx.netns(), tx.addr(Family::V4, 0)).unwrap();
        let raw = PacketSocket::on(tx).unwrap();
        let mut damaged = Flow::between(tx, rx, Family::V4, 4000, DAMAGED).udp(&[0; 64]);
        damaged[14 + 10] ^= 0x55; // the checksum of the IPv4 header
        let mut to_read = 0;
        for number in 0..PACKETS {
            match fate(number) {
                DAMAGED => raw.send(&damaged).unwrap(),
                port => {
                    to_read += u64::from(port == READ);
                    send_numbered(&socket, rx.addr(Family::V4, port), number..number + 1, 64).unwrap();
                }
            }
            // neither the tracer's ring nor the reader's queue must run over, however slow the machine
            if number % 50 == 0 {
                thread::sleep(Duration::from_millis(2));
            }
            while to_read > received.load(Ordering::Relaxed) + 20 && !reader.is_finished() {
                thread::sleep(Duration::from_micros(100));
            }
        }
        drop(reader.join().unwrap());
    });
    full.set_nonblocking(true).unwrap();
    let queued = std::iter::from_fn(|| full.recv(&mut [0; 100]).ok()).count() as u64;
    assert!(queued > 0 && queued < sent[&FULL]);

    assert_eq!(seen.counters.lost_events(), 0);
    assert_eq!(seen.counters.unfollowed, 0);
    assert_eq!(seen.counters.assigned, PACKETS, "every packet got an id");
    assert_eq!(seen.packets.len() as u64, PACKETS);
    assert_eq!(seen.packets.iter().map(|packet| packet.id).collect::<HashSet<_>>().len() as u64, PACKETS);

    // before 6.11 the kernel does not say of a datagram that its socket's queue is full, just that it is dropped
    let full_is_seen = !tracer.notes().iter().any(|note| note.contains("not that a queue is full"));
    let path = |parts: &[&[Point]]| {
        let mut path = on_this_kernel(&tracer, &parts.concat());
        path.retain(|point| *point != QueueFull || full_is_seen);
        path
    };
    assert!(full_is_seen || !KernelFeature::MetadataDynptr.is_here(), "{:?}", tracer.notes());
    let mut names = Names::read(&[]).unwrap();
    // by port: the reason, the function, how many, and the path that leads there
    let drops = [
        (FILTERED, "NETFILTER_DROP", "nft_do_chain", sent[&FILTERED], path(&[&RECEIVED, &TO_SOCKET[..3], &[Drop]])),
        (CLOSED, "NO_SOCKET", no_socket_place(), sent[&CLOSED], path(&[&RECEIVED, &TO_SOCKET[..3], &[Drop]])),
        (
            FILTERED_AT_INGRESS,
            "NETFILTER_DROP",
            "nft_do_chain",
            sent[&FILTERED_AT_INGRESS],
            path(&[&RECEIVED, &[Drop]]),
        ),
        (
            FULL,
            "SOCKET_RCVBUFF",
            "udp_queue_rcv_one_skb",
            sent[&FULL] - queued,
            path(&[&RECEIVED, &TO_SOCKET, &[QueueFull, Drop]]),
        ),
        (DAMAGED, "IP_CSUM", "ip_rcv_core", sent[&DAMAGED], path(&[&RECEIVED, &[Drop]])),
    ];
    for (to, reason, function, count, expected) in drops {
        let dropped: Vec<&Packet> = seen
            .packets
            .iter()
            .filter(|packet| port(packet) == Some(to) && packet.outcome == Outcome::Dropped)
            .collect();
        assert_eq!(dropped.len() as u64, count, "dropped at port {to}");
        for packet in dropped {
            let mut way = points(packet);
            // how often the kernel answers is limited (net.ipv4.icmp_ratelimit)
            way.retain(|point| *point != Icmp);
            assert_eq!(way, expected, "path of packet #{} to port {to}", packet.id);
            let Some(Detail::Dropped { reason: number, place, .. }) = packet.steps.last().map(|step| &step.detail)
            else {
                panic!("{packet:?}");
            };
            assert_eq!(names.reason(*number), reason, "port {to}");
            let place = names.place(*place);
            assert!(place.starts_with(function), "port {to}: {place}");
        }
    }
    let answered = seen.packets.iter().filter(|packet| points(packet).contains(&Icmp));
    assert!(answered.clone().count() > 0 && answered.clone().all(|packet| port(packet) == Some(CLOSED)));
    let total: u64 = sent.iter().filter(|(port, _)| **port != READ).map(|(_, count)| count).sum::<u64>() - queued;
    assert_eq!(seen.summary.dropped, total);

    let delivered: Vec<&Packet> = seen.packets.iter().filter(|packet| port(packet) == Some(READ)).collect();
    assert_eq!(delivered.len() as u64, sent[&READ]);
    for packet in delivered {
        assert_eq!(packet.outcome, Outcome::Delivered, "{packet:?}");
        let mut way = points(packet);
        // its memory may be freed by the CPU it came in on, some time later
        way.retain(|point| *point != Consume);
        assert_eq!(way, path(&[&RECEIVED, &TO_SOCKET, &[Enqueue, Deliver]]), "{packet:?}");
        let took = packet.steps.iter().find_map(|step| match &step.detail {
            Detail::Delivered { bytes, pid, .. } => Some((*bytes, *pid)),
            _ => None,
        });
        assert_eq!(took, Some((64, std::process::id())), "{packet:?}");
        assert!(packet.steps.is_sorted_by_key(|step| step.at), "{packet:?}");
    }
    assert_eq!(seen.summary.delivered, sent[&READ]);
    let waiting =
        seen.packets.iter().filter(|packet| port(packet) == Some(FULL) && packet.outcome == Outcome::UnderWay);
    assert_eq!(waiting.count() as u64, queued);
    drop(tracer);
    assert_eq!(home.registry.list().unwrap(), [], "the tracer's keys are gone");
}
