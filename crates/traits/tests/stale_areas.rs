//! Another program takes tunnel headers off packets in XDP and leaves metadata of its own, on buffers in which earlier packets
//! left their areas. Whatever the lengths of both, no packet is read with the traits of another one.
//!
//! The kernel itself sends the packets, as fast as it can, in buffers that it uses again as they are
//! (`BPF_F_TEST_XDP_LIVE_FRAMES`). `TRAITS_STALE_PACKETS` says how many of each kind: the long proof takes 10,000,000.

mod common;

use std::{
    os::fd::{AsFd, AsRawFd},
    sync::LazyLock,
};

use common::{
    Lab, load_bound, program,
    record::{global, read_variable, set_global},
    spec,
};
use packet_traits::{
    KeyType, Layout, Merge, Region,
    attach::{Direction, TcxOptions, tcx},
    bind::{BoundObject, LoadedObject},
};
use packet_traits_lab::Netns;

/// The loopback interface, in every namespace.
const LOOPBACK: u32 = 1;

/// `FRAME_LEN`.
const FRAME_LEN: usize = 400;

/// A VXLAN tunnel over IPv4, one over IPv6, both with more around them.
const TAKEN_OFF: [u64; 4] = [50, 70, 98, 128];

/// 64 is the flow region's length, 144 the area's.
const LEFT: [u64; 10] = [0, 16, 32, 48, 64, 80, 96, 112, 128, 144];

static PACKETS: LazyLock<u32> = LazyLock::new(|| match std::env::var("TRAITS_STALE_PACKETS") {
    Ok(number) => number.parse().expect("TRAITS_STALE_PACKETS is a number of packets"),
    Err(_) => 20_000,
});

struct Traffic {
    object: LoadedObject,
    netns: Netns,
    _lab: Lab,
}

impl Traffic {
    fn new(layout: Layout) -> Traffic {
        let lab = Lab::empty(layout);
        lab.registry.register(&spec("of_flow", KeyType::U64, Merge::Block)).unwrap();
        let has_packet_region = layout.region_len(Region::Packet) != 0;
        if has_packet_region {
            lab.registry.register(&spec("of_packet", KeyType::U64, Merge::KeepFirst)).unwrap();
        }
        let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bpf/stale_areas.bpf.c");
        let macros: &[&str] = if has_packet_region { &[] } else { &["-DSHORT_AREA"] };
        let bytes = common::compile_with(packet_traits_lab::clang(), &source, macros);
        let bound = BoundObject::from_bytes(&bytes, "stale_areas", &lab.registry).unwrap();
        let object = load_bound(bound);
        let netns = Netns::new().unwrap();
        netns.ip("link set lo up").unwrap();
        Traffic { object, netns, _lab: lab }
    }

    /// Receives packets, each of which XDP treats as the object's variables say, and reads them at TC.
    fn receive(&self, packets: u32) {
        let (receive, look) = (program(&self.object, "receive"), program(&self.object, "look"));
        self.netns.enter(|| {
            let _tc = tcx::attach(look.as_fd(), LOOPBACK, &TcxOptions::new(Direction::Ingress)).unwrap();
            let frame: Vec<u8> = (0..FRAME_LEN).map(|at| 0x11 + (at % 64) as u8).collect();
            let mut opts = libbpf_sys::bpf_test_run_opts {
                sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
                data_in: frame.as_ptr().cast(),
                data_size_in: frame.len() as u32,
                repeat: packets as i32,
                flags: libbpf_sys::BPF_F_TEST_XDP_LIVE_FRAMES,
                ..Default::default()
            };
            // SAFETY: the frame outlives the call and has the length given beside it.
            let error = unsafe { libbpf_sys::bpf_prog_test_run_opts(receive.as_raw_fd(), &mut opts) };
            assert_eq!(error, 0, "running the program: {}", std::io::Error::last_os_error());
        });
    }

    fn set(&self, variables: &[(&str, u64)]) {
        for (variable, to) in variables {
            set_global(&self.object, variable, *to);
        }
    }

    /// A counter for each region.
    fn counters(&self, name: &str) -> [u64; 2] {
        let raw = read_variable(self.object.object(), name, 16);
        let (words, _) = raw.as_chunks();
        [u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])]
    }
}

#[test]
fn beside_a_program_that_takes_headers_off_no_packet_has_another_ones_traits() {
    if !common::area_enabled() {
        return;
    }
    for (layout, seal) in [(Layout::DEFAULT, 1), (Layout::DEFAULT, 0), (Layout::new(64, 0).unwrap(), 0)] {
        let traffic = Traffic::new(layout);
        traffic.set(&[("seal", seal)]);
        let mut packets = 0;
        for (pop, leave) in TAKEN_OFF.iter().flat_map(|pop| LEFT.map(|leave| (*pop, leave))) {
            traffic.set(&[("pop", pop), ("leave", leave)]);
            traffic.receive(*PACKETS);
            packets += u64::from(*PACKETS);
            let what = format!("{layout:?}, sealed {seal}: {pop} bytes taken off, {leave} left");
            assert_eq!(traffic.counters("wrong"), [0, 0], "{what}");
            assert_eq!(global(&traffic.object, "refused"), 0, "{what}");
        }
        let given = global(&traffic.object, "given");
        let regions = if layout.region_len(Region::Packet) == 0 { [given, 0] } else { [given; 2] };
        assert_eq!((traffic.counters("read"), traffic.counters("absent")), (regions, [0, 0]));
        // without old areas in front of packets this would show nothing
        let stale = global(&traffic.object, "stale");
        assert!(stale * 10 > packets, "{stale} of {packets} packets came with an old area in front of them");
        eprintln!(
            "{layout:?}, sealed {seal}: {packets} packets, {given} with traits, {stale} others with an old area in front, 0 wrong"
        );
    }
}

#[test]
fn a_front_that_moves_after_sealing_leaves_own_traits_or_none() {
    if !common::area_enabled() {
        return;
    }
    for seal in [1, 0] {
        let traffic = Traffic::new(Layout::DEFAULT);
        for (shift, leave) in [-64, -50, -14, -4, 4, 8, 14, 50, 64, 80, 128].map(|shift: i64| (shift, 64)) {
            traffic.set(&[("seal", seal), ("shift", shift as u64), ("pop", 0), ("leave", leave)]);
            let before = traffic.counters("moved_read");
            traffic.receive(*PACKETS);
            assert_eq!(traffic.counters("wrong"), [0, 0], "sealed {seal}: front moved by {shift} bytes");
            assert_eq!(global(&traffic.object, "refused"), 0);
            let after = traffic.counters("moved_read");
            let read = [after[0] > before[0], after[1] > before[1]];
            // what moves down moves over what is hidden
            assert_eq!(read, [true, seal == 0 || shift > 0], "sealed {seal}: front moved by {shift} bytes");
        }
    }
}
