//! What is seen only where the kernel lets programs run at its functions: each with traffic of which it is known what becomes
//! of it. On other kernels these tests are skipped by name.

mod common;
#[path = "common/judge.rs"]
mod judge;

use std::{
    collections::BTreeMap,
    net::UdpSocket,
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use common::{Home, Seen, enabled, in_namespaces, long_enabled, points, port, start, watch};
use judge::{ABORTED, DROP, INVALID, PACKETS, PASS, REDIRECT, REDIRECT_FAILS, TX};
use libbpf_rs::ProgramInput;
use packet_traits::attach::{XdpMode, tracing};
use packet_traits_lab::{
    Chain, Family, KernelFeature, Pair, TcpSink, VethOptions, frame::Flow, kernel_has_for, recv_numbered,
    send_numbered, skipped, tcp_transfer, udp_socket,
};
use packet_traits_trace::{
    Cause, Detail, Options, Outcome, Packet,
    Point::{self, *},
    Verdict,
};

/// Whether the kernel tests run, and this kernel has functions.
fn functions() -> bool {
    if !enabled() {
        return false;
    }
    let here = tracing::try_functions();
    if let Err(errno) = here {
        let why = std::io::Error::from_raw_os_error(errno);
        skipped(format_args!("this kernel lets no program run at its functions: {why}"));
    }
    here.is_ok()
}

fn by_packet_id(options: Options) -> Options {
    Options { id: Some("packet_id".to_owned()), ..options }
}

fn verdicts(packet: &Packet) -> Vec<Verdict> {
    let verdict = |detail: &Detail| match detail {
        Detail::Verdict(verdict, program) => {
            assert_eq!(program.name(), judge::NAME);
            Some(*verdict)
        }
        _ => None,
    };
    packet.steps.iter().filter_map(|step| verdict(&step.detail)).collect()
}

#[test]
fn verdicts_of_someone_elses_program_are_seen_exactly() {
    if !functions() {
        return;
    }
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let (pair, home) = (Pair::with(&VethOptions::new().gro(true)).unwrap(), Home::new());
        let mut judge = judge::load(&home.registry);
        let attachment = judge.attach(pair.rx(), mode);
        let server = udp_socket(pair.rx().netns(), pair.rx().addr(Family::V4, PASS)).unwrap();
        let mut tracer = start(&home.registry, &by_packet_id(in_namespaces(&[pair.rx().netns()])));
        if KernelFeature::LongMetadata.is_here() {
            assert_eq!(tracer.notes(), [""; 0]);
            assert_eq!(tracer.points().count(), Point::ALL.len());
        }
        let test_frame = Flow::between(pair.tx(), pair.rx(), Family::V4, 4000, DROP).udp(&[0; 64]);
        let seen = watch(&mut tracer, || {
            judge::send(pair.tx(), pair.rx(), |number| assert_eq!(recv_numbered(&server).unwrap(), number));
        });
        let program = judge.object.object_mut().progs_mut().next().unwrap();
        let input = ProgramInput { data_in: Some(&test_frame), ..Default::default() };
        assert_eq!(program.test_run(input).unwrap().return_value, 1);
        assert_eq!(watch(&mut tracer, || ()).packets.len(), 0, "a test run is no packet of the interface");

        assert_eq!(seen.packets.len(), 1000, "{mode}");
        let expected = [
            (DROP, Verdict::Drop, Outcome::Dropped),
            (ABORTED, Verdict::Aborted, Outcome::Dropped),
            (INVALID, Verdict::Invalid, Outcome::Dropped),
            (TX, Verdict::Tx, Outcome::Redirected),
            (REDIRECT, Verdict::Redirect, Outcome::Redirected),
            (REDIRECT_FAILS, Verdict::Redirect, Outcome::Redirected),
            (PASS, Verdict::Pass, Outcome::Delivered),
        ];
        let mut drops = BTreeMap::new();
        for (to, verdict, outcome) in expected {
            let (_, count) = PACKETS.iter().find(|(port, _)| *port == to).unwrap();
            let to_port: Vec<&Packet> = seen.packets.iter().filter(|packet| port(packet) == Some(to)).collect();
            assert_eq!(to_port.len() as u64, *count, "{mode}: {verdict}");
            for packet in to_port {
                assert_eq!(verdicts(packet), [verdict], "{mode}: {packet:?}");
                // a redirect that failed may be seen as a drop
                assert!(packet.outcome == outcome || to == REDIRECT_FAILS, "{mode}: {packet:?}");
                assert_eq!(packet.steps[0].point, XdpVerdict, "{mode}: {packet:?}");
                assert_eq!(packet.steps[0].device(), "rx0");
            }
            if verdict.drop_reason().is_some() {
                drops.insert(verdict, *count);
            }
        }
        let seen_drops: BTreeMap<Verdict, u64> = seen
            .summary
            .drops
            .iter()
            .filter_map(|(drop, count)| match drop.cause {
                Cause::Xdp(verdict, program) => {
                    assert_eq!(program.id, attachment.info().program_id);
                    Some((verdict, *count))
                }
                Cause::Kernel { .. } => None,
            })
            .collect();
        assert_eq!(seen_drops, drops, "{mode}");
        assert_eq!(
            seen.summary.dropped,
            drops.values().sum::<u64>(),
            "{mode}: each drop is one: {:?}",
            seen.summary.drops
        );
    }
}

#[test]
fn only_drops_have_those_of_xdp() {
    if !functions() {
        return;
    }
    let (pair, home) = (Pair::new().unwrap(), Home::new());
    let judge = judge::load(&home.registry);
    let _attachment = judge.attach(pair.rx(), XdpMode::Native);
    let conditions = vec![format!("dport <= {ABORTED}").parse().unwrap()];
    let options = Options { only_drops: true, conditions, ..by_packet_id(in_namespaces(&[pair.rx().netns()])) };
    let mut tracer = start(&home.registry, &options);
    let seen = watch(&mut tracer, || judge::send(pair.tx(), pair.rx(), |_| {}));
    assert_eq!(seen.packets.len(), 137 + 61);
    assert!(seen.packets.iter().all(|packet| points(packet) == [XdpVerdict]), "{:?}", seen.packets[0]);
    assert_eq!(seen.summary.dropped, 137 + 61);
}

#[test]
fn a_packet_with_an_id_of_the_tracer_ends_in_someone_elses_program() {
    // both have ids
    if !long_enabled() || !functions() {
        return;
    }
    let (chain, home) = (Chain::new().unwrap(), Home::new());
    let judge = judge::load(&home.registry);
    let _attachment = judge.attach(chain.server(), XdpMode::Native);
    let options = in_namespaces(&[chain.router_in().netns(), chain.server().netns()]);
    let mut tracer = start(&home.registry, &options);
    let socket = udp_socket(chain.client().netns(), chain.client().addr(Family::V4, 0)).unwrap();
    let seen = watch(&mut tracer, || {
        send_numbered(&socket, chain.server().addr(Family::V4, DROP), 0..50, 64).unwrap();
    });
    let dropped: Vec<&Packet> = seen.packets.iter().filter(|packet| port(packet) == Some(DROP)).collect();
    assert_eq!(dropped.len(), 50);
    for packet in dropped {
        assert_eq!(packet.outcome, Outcome::Dropped, "{packet:?}");
        assert_eq!(points(packet)[0], Xdp, "{packet:?}");
        assert_eq!(verdicts(packet), [Verdict::Drop], "{packet:?}");
    }
    assert_eq!(seen.summary.dropped, 50, "{:?}", seen.summary.drops);
}

/// What is known of deliveries: the kind, bytes, process, and whether it was inferred, in the order of time.
fn deliveries(seen: &Seen) -> Vec<(u64, Point, u32, u32, bool)> {
    let mut all: Vec<_> = seen
        .packets
        .iter()
        .flat_map(|packet| packet.steps.iter().map(move |step| (packet.id, step)))
        .filter_map(|(id, step)| match &step.detail {
            Detail::Delivered { bytes, pid, .. } => Some((step.at, (id, step.point, *bytes, *pid, step.inferred))),
            _ => None,
        })
        .collect();
    all.sort_unstable_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, delivery)| delivery).collect()
}

fn peek(socket: &UdpSocket) {
    socket.peek(&mut [0; 2000]).unwrap();
}

#[test]
fn deliveries_of_datagrams_are_exact() {
    if !functions() {
        return;
    }
    const COUNT: u64 = 300;
    let home = Home::new();
    for family in Family::BOTH {
        let pair = Pair::new().unwrap();
        let server = udp_socket(pair.rx().netns(), pair.rx().addr(family, 7)).unwrap();
        let mut options = in_namespaces(&[pair.rx().netns()]);
        options.conditions = vec!["dport == 7".parse().unwrap()];
        let mut tracer = start(&home.registry, &options);
        let client = udp_socket(pair.tx().netns(), pair.tx().addr(family, 0)).unwrap();
        let seen = watch(&mut tracer, || {
            // several wait in the queue at once; each third is looked at first, and the last has no bytes
            for first in (0..COUNT).step_by(10) {
                send_numbered(&client, pair.rx().addr(family, 7), first..first + 10, 64).unwrap();
                for number in first..first + 10 {
                    if number % 3 == 0 {
                        peek(&server);
                        peek(&server);
                    }
                    assert_eq!(recv_numbered(&server).unwrap(), number);
                }
            }
            client.send_to(&[], pair.rx().addr(family, 7)).unwrap();
            peek(&server);
            server.recv(&mut []).unwrap();
        });
        assert_eq!((seen.counters.lost_events(), seen.counters.unfollowed), (0, 0));
        assert_eq!(seen.packets.len() as u64, COUNT + 1);
        let first = seen.packets.iter().map(|packet| packet.id).min().unwrap();
        let process = std::process::id();
        let expected: Vec<_> = (0..=COUNT)
            .flat_map(|number| {
                let peeks = match number {
                    COUNT => 1,
                    number if number % 3 == 0 => 2,
                    _ => 0,
                };
                let bytes = if number == COUNT { 0 } else { 64 };
                let one = move |point| (first + number, point, bytes, process, false);
                std::iter::repeat_n(one(Peek), peeks).chain([one(Deliver)])
            })
            .collect();
        assert_eq!(deliveries(&seen), expected, "{family:?}");
        assert_eq!(seen.summary.delivered, COUNT + 1);
    }
}

#[test]
fn a_datagram_that_is_only_looked_at_is_not_delivered() {
    if !functions() {
        return;
    }
    let (pair, home) = (Pair::new().unwrap(), Home::new());
    let server = udp_socket(pair.rx().netns(), pair.rx().addr(Family::V4, 7)).unwrap();
    let mut tracer = start(&home.registry, &in_namespaces(&[pair.rx().netns()]));
    let client = udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0)).unwrap();
    let seen = watch(&mut tracer, || {
        send_numbered(&client, pair.rx().addr(Family::V4, 7), 0..1, 64).unwrap();
        peek(&server);
    });
    let packet = seen.packets.iter().find(|packet| port(packet) == Some(7)).unwrap();
    assert_eq!((packet.outcome, points(packet).last()), (Outcome::UnderWay, Some(&Peek)), "{packet:?}");
    assert_eq!(seen.summary.delivered, 0);
}

#[test]
fn fragments_are_put_together_and_delivered_once() {
    if !functions() {
        return;
    }
    let home = Home::new();
    for family in Family::BOTH {
        let pair = Pair::new().unwrap();
        let server = udp_socket(pair.rx().netns(), pair.rx().addr(family, 7)).unwrap();
        let mut tracer = start(&home.registry, &in_namespaces(&[pair.rx().netns()]));
        let client = udp_socket(pair.tx().netns(), pair.tx().addr(family, 0)).unwrap();
        let seen = watch(&mut tracer, || {
            for number in 0..20 {
                send_numbered(&client, pair.rx().addr(family, 7), number..number + 1, 4000).unwrap();
                let mut buffer = [0; 5000];
                assert_eq!(server.recv(&mut buffer).unwrap(), 4000);
            }
        });
        let at = |point| seen.packets.iter().filter(|packet| points(packet).contains(&point)).count();
        // three fragments each; the first one's id is that of the whole
        assert_eq!(at(Defrag), 60, "{family:?}");
        assert_eq!(at(Deliver), 20, "{family:?}");
        let delivered = deliveries(&seen);
        assert_eq!(delivered.len(), 20, "{family:?}: {delivered:?}");
        assert!(delivered.iter().all(|(_, point, bytes, ..)| (*point, *bytes) == (Deliver, 4000)), "{delivered:?}");
    }
}

#[test]
fn a_packet_that_is_too_long_for_the_next_link_is_cut() {
    if !functions() {
        return;
    }
    let (chain, home) = (Chain::new().unwrap(), Home::new());
    let router = chain.router_out();
    router.netns().ip(&format!("link set {} mtu 1000", router.name())).unwrap();
    let server = udp_socket(chain.server().netns(), chain.server().addr(Family::V4, 7)).unwrap();
    let client = udp_socket(chain.client().netns(), chain.client().addr(Family::V4, 0)).unwrap();
    let may_be_cut = libc::IP_PMTUDISC_DONT;
    // SAFETY: an option of type int, with its length.
    let error = unsafe {
        libc::setsockopt(
            client.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            std::ptr::from_ref(&may_be_cut).cast(),
            size_of_val(&may_be_cut) as libc::socklen_t,
        )
    };
    assert_eq!(error, 0);
    let mut tracer = start(&home.registry, &in_namespaces(&[router.netns()]));
    let seen = watch(&mut tracer, || {
        for (number, size) in [(0, 1400), (1, 500), (2, 1400)] {
            send_numbered(&client, chain.server().addr(Family::V4, 7), number..number + 1, size).unwrap();
            assert_eq!(server.recv(&mut [0; 2000]).unwrap(), size);
        }
    });
    let cut: Vec<bool> = seen
        .packets
        .iter()
        .filter(|packet| port(packet) == Some(7))
        .map(|packet| points(packet).contains(&Fragment))
        .collect();
    assert_eq!(cut, [true, false, true], "{:?}", seen.packets);
}

#[test]
fn a_packet_waits_for_a_neighbour_that_is_not_known() {
    if !functions() {
        return;
    }
    let (chain, home) = (Chain::new().unwrap(), Home::new());
    let client = udp_socket(chain.client().netns(), chain.client().addr(Family::V4, 0)).unwrap();
    let mut nobody = chain.server().addr(Family::V4, 7);
    nobody.set_ip("10.77.2.200".parse().unwrap());
    // the laboratory's links have no ARP
    for end in [chain.router_out(), chain.server()] {
        end.netns().ip(&format!("link set {} arp on", end.name())).unwrap();
    }
    let mut tracer = start(&home.registry, &in_namespaces(&[chain.router_in().netns()]));
    let seen = watch(&mut tracer, || {
        send_numbered(&client, nobody, 0..1, 64).unwrap();
        send_numbered(&client, chain.server().addr(Family::V4, 7), 0..1, 64).unwrap();
        // three questions, a second each
        thread::sleep(Duration::from_secs(5));
    });
    let to = |address: std::net::SocketAddr| {
        seen.packets
            .iter()
            .find(|packet| packet.headers.is_some_and(|headers| headers.destination == address.ip()))
            .unwrap_or_else(|| panic!("{:?}", seen.packets))
    };
    let waited = to(nobody);
    assert!(points(waited).contains(&Neighbour), "{waited:?}");
    assert_eq!(waited.outcome, Outcome::Dropped, "{waited:?}");
    assert!(points(to(chain.server().addr(Family::V4, 7))).contains(&Xmit));
}

#[test]
fn tcp_says_what_it_takes_and_what_comes_out_of_order() {
    if !functions() {
        return;
    }
    const BYTES: u64 = 400_000;
    let home = Home::new();
    for family in Family::BOTH {
        let pair = Pair::new().unwrap();
        let sink = TcpSink::start(pair.rx().netns(), pair.rx().addr(family, 0)).unwrap();
        let dport = sink.addr().port();
        // what comes after a hole waits until that is filled
        pair.rx()
            .netns()
            .nft(&format!(
                "add table inet t
                add chain inet t pre {{ type filter hook prerouting priority 0; }}
                add rule inet t pre tcp dport {dport} meta length > 1000 numgen inc mod 25 == 0 drop\n"
            ))
            .unwrap();
        let mut options = in_namespaces(&[pair.rx().netns()]);
        options.conditions = vec![format!("dport == {dport}").parse().unwrap()];
        let mut tracer = start(&home.registry, &options);
        let started = Instant::now();
        let seen = watch(&mut tracer, || tcp_transfer(pair.tx().netns(), sink.addr(), BYTES).unwrap());
        let dropped = seen.packets.iter().filter(|packet| packet.outcome == Outcome::Dropped);
        assert!(dropped.clone().count() > 0, "{family:?}: there are holes, {:?}", started.elapsed());
        if kernel_has_for(KernelFeature::NetfilterLinks, "whether TCP takes what is let through") {
            for packet in &seen.packets {
                let way = points(packet);
                assert_eq!(way.contains(&Tcp), way.contains(&Input), "{family:?}: {packet:?}");
            }
        }
        let early = seen.packets.iter().filter(|packet| points(packet).contains(&OutOfOrder)).count();
        assert!(early > 0, "{family:?}: {} packets, {} dropped", seen.packets.len(), dropped.count());
        // nothing that came before the first hole waits
        let first_hole = seen.packets.iter().filter(|packet| points(packet).last() == Some(&Drop)).map(|p| p.id).min();
        let first_early =
            seen.packets.iter().filter(|packet| points(packet).contains(&OutOfOrder)).map(|packet| packet.id).min();
        assert!(first_hole < first_early, "{family:?}: {first_hole:?} {first_early:?}");
        let backlog = seen.packets.iter().filter(|packet| points(packet).contains(&Backlog)).count();
        eprintln!("{family:?}: {early} of {} out of order, {backlog} in the backlog", seen.packets.len());
    }
}
