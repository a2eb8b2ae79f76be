//! What each phase of a trace attaches, and what is left after it.

mod common;

use std::{cell::Cell, thread, time::Duration};

use common::{Home, enabled, in_namespaces};
use packet_traits::attach::xdp;
use packet_traits_lab::{Family, Pair, send_numbered, udp_socket};
use packet_traits_trace::Tracer;

#[test]
fn packets_get_ids_from_attaching_until_assigning_stops_and_are_read_after_the_end() {
    if !enabled() {
        return;
    }
    let (pair, home) = (Pair::new().unwrap(), Home::new());
    let mut options = in_namespaces(&[pair.rx().netns()]);
    options.conditions = vec!["dport == 9".parse().unwrap()];
    let has_xdp = || pair.rx().netns().enter(|| xdp::attached(pair.rx().ifindex())).is_some();
    let sender = udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0)).unwrap();
    let send = || send_numbered(&sender, pair.rx().addr(Family::V4, 9), 0..5, 64).unwrap();
    let loaded = Tracer::load(&home.registry, &options).unwrap();
    assert!(loaded.assigns_ids() && !has_xdp());
    send();
    let tracer = loaded.attach().unwrap();
    assert!(has_xdp());
    let events = Cell::new(0);
    let reader = tracer.reader(|_| events.set(events.get() + 1)).unwrap();
    send();
    let have_ids = (0..500).any(|_| {
        thread::sleep(Duration::from_millis(10));
        tracer.counters().unwrap().assigned == 5
    });
    assert!(have_ids, "{:?}", tracer.counters().unwrap());
    let draining = tracer.stop_assigning();
    assert!(!has_xdp());
    send();
    let ended = draining.end();
    assert_eq!(ended.counters.unwrap().assigned, 5, "{:?}", ended.notes);
    assert_eq!(home.registry.list().unwrap(), [], "the tracer's keys are gone");
    // a packet is seen at more than one point
    assert!(reader.read().unwrap() > 5 && events.get() > 5, "{} events", events.get());
}
