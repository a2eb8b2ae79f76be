//! An area of 32 bytes, all that kernels before 6.8 take: what is read of it behind tunnels and without VLAN tags.

mod common;

use common::{
    BOTH_MODES, Lab, TEST_PORT, attach_tc, attach_xdp,
    record::{global, set_global},
    spec,
};
use packet_traits::{KeyType, Layout, Merge, attach::Direction};
use packet_traits_lab::{
    End, Family, Overlay, VxlanOptions,
    frame::{Flow, with_vlan},
    send_frame,
};

const PACKETS: u64 = 12;

/// The number of a packet by which XDP only publishes a headroom.
const ANOTHER_HEADROOM: u64 = u64::MAX;

/// Counters of `short_area.bpf.c`.
const READINGS: [&str; 3] = ["right", "absent", "wrong"];

fn send(from: &End, frame: &[u8]) {
    send_frame(from.netns(), from.ifindex(), frame).unwrap();
}

fn payload(number: u64) -> Vec<u8> {
    [[0; 56].as_slice(), &number.to_be_bytes()].concat()
}

fn tagged(frame: Vec<u8>, tags: usize) -> Vec<u8> {
    (0..tags).fold(frame, |frame, _| with_vlan(&frame, 0, 5))
}

/// Before Linux 6.9, generic XDP saw headrooms that were some bytes apart; so do drivers, and XDP that pushes. An area may
/// then be one that XDP set at the one, or at the other with a VLAN tag less.
#[test]
fn traits_are_read_where_two_headrooms_are_a_vlan_tag_apart() {
    if !common::enabled() {
        return;
    }
    for (underlay, apart) in [(Family::V4, 8), (Family::V6, 4), (Family::V6, 8)] {
        let lab = Lab::empty(Layout::new(32, 0).unwrap());
        lab.registry.register(&spec("number", KeyType::U64, Merge::Block)).unwrap();
        let object = lab.load("short_area");
        let overlay = Overlay::new(&VxlanOptions::new(underlay)).unwrap();
        let outer = overlay.underlay();
        let inner = Flow::between(overlay.tx(), overlay.rx(), Family::V4, 4000, TEST_PORT);
        let tunnel = Flow::between(outer.tx(), outer.rx(), underlay, 5000, 0);
        let _tc = attach_tc(&object, "read", overlay.rx(), Direction::Ingress);
        let count = |variable: &str| global(&object, variable);
        let until = |what: &str, holds: &dyn Fn() -> bool| assert!(common::until(holds, |held| *held), "{what}");
        for mode in BOTH_MODES {
            let _xdp = attach_xdp(&object, "assign", outer.rx(), mode);
            set_global(&object, "published", 0);
            set_global(&object, "push", apart);
            send(outer.tx(), &tunnel.udp(&payload(ANOTHER_HEADROOM)));
            until("the other headroom is published", &|| count("published") == 1);
            for (outside, inside) in [(0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (1, 1)] {
                READINGS.into_iter().for_each(|variable| set_global(&object, variable, 0));
                for number in 0..PACKETS {
                    let inner = tagged(inner.udp(&payload(number)), inside);
                    send(outer.tx(), &tagged(tunnel.vxlan(overlay.vni(), &inner), outside));
                }
                let read = || READINGS.map(count);
                until("all packets arrive", &|| read().iter().sum::<u64>() == PACKETS);
                let what = format!("{underlay:?}, {apart} apart, {mode}, {outside} tags outside, {inside} inside");
                assert_eq!(read(), [PACKETS, 0, 0], "{what}");
            }
        }
    }
}
