//! Verdicts of other software's XDP programs that no tracepoint shows with a packet are counted, on every kernel.

mod common;
#[path = "common/judge.rs"]
mod judge;

use common::{Home, enabled, in_namespaces, start, watch};
use judge::{ABORTED, INVALID, PACKETS, PASS, REDIRECT, REDIRECT_FAILS};
use packet_traits::attach::{XdpMode, tracing};
use packet_traits_lab::{Family, Pair, VethOptions, recv_numbered, skipped, udp_socket};
use packet_traits_trace::{Fate, Options, Point};

fn sent(port: u16) -> u64 {
    PACKETS.iter().find(|(other, _)| *other == port).unwrap().1
}

#[test]
fn what_others_do_with_packets_is_counted_exactly() {
    if !enabled() {
        return;
    }
    for mode in [XdpMode::Native, XdpMode::Generic] {
        // with GRO, a veth takes redirected packets
        let links = VethOptions::new().gro(true);
        let (pair, other, home) = (Pair::with(&links).unwrap(), Pair::with(&links).unwrap(), Home::new());
        let judge = judge::load(&home.registry);
        let attachment = judge.attach(pair.rx(), mode);
        // an interface that is not traced
        let _same = judge.attach(other.rx(), mode);
        let server = udp_socket(pair.rx().netns(), pair.rx().addr(Family::V4, PASS)).unwrap();
        let options = Options { id: Some("packet_id".to_owned()), ..in_namespaces(&[pair.rx().netns()]) };
        let mut tracer = start(&home.registry, &options);
        let seen = watch(&mut tracer, || {
            judge::send(pair.tx(), pair.rx(), |number| assert_eq!(recv_numbered(&server).unwrap(), number));
            judge::send(other.tx(), other.rx(), |_| {});
        });
        let counts: Vec<(Fate, u64)> = seen.counters.xdp.iter().map(|count| (count.fate, count.packets)).collect();
        let expected = [
            (Fate::Redirected, sent(REDIRECT)),
            (Fate::RedirectFailed, sent(REDIRECT_FAILS)),
            (Fate::Aborted, sent(ABORTED)),
            (Fate::OtherFailed, sent(INVALID)),
        ];
        assert_eq!(counts, expected, "{mode}");
        for count in &seen.counters.xdp {
            assert_eq!((&*count.interface.name, count.program.name()), ("rx0", judge::NAME));
            assert_eq!(count.program.id, attachment.info().program_id);
            assert_eq!(count.netns, options.namespaces[0].inode());
        }
        assert_eq!(seen.summary.delivered, sent(PASS), "{mode}");
    }
}

#[test]
fn a_kernel_without_functions_has_the_other_points_and_says_nothing() {
    if !enabled() {
        return;
    }
    if tracing::try_functions().is_ok() {
        skipped("this kernel lets programs run at its functions");
        return;
    }
    let (pair, home) = (Pair::new().unwrap(), Home::new());
    let tracer = start(&home.registry, &in_namespaces(&[pair.rx().netns()]));
    let points: Vec<Point> = tracer.points().collect();
    assert_eq!(points.len(), 22, "{points:?}");
    assert!(!points.iter().any(|point| point.is_of_function()), "{points:?}");
    // of its XDP program there is something to say
    let notes: Vec<String> = tracer.notes().iter().filter(|note| !note.contains("native XDP")).cloned().collect();
    assert_eq!(notes, Vec::<String>::new());
}
