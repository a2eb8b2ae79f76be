//! What TC changes in the flow region is read from there on; what it cannot change stays as it was, also while a capture
//! runs.

mod common;

use std::{os::fd::AsFd, path::Path};

use common::{
    BOTH_MODES, Lab, TEST_PORT, attach_tc, attach_xdp, compile_with, load,
    readers::{Link, Readers, STAGES, load_unbound, set_next, unbound_program},
    record::{
        HAS_ALL, HAS_FLOW, Records, Stage, Traits, counter, read_variable, set_counter, set_global, shown,
        write_variable,
    },
    register_record_keys,
};
use libbpf_rs::Object;
use packet_traits::{
    Layout,
    attach::Direction,
    bind::{BoundObject, LoadedObject},
    registry::Registry,
};
use packet_traits_lab::{
    Family, KernelFeature, Overlay, PacketSocket, VxlanOptions, recv_numbered, send_numbered, udp_socket,
};

const PACKETS: u64 = 16;
const ENOENT: i64 = -(libc::ENOENT as i64);
const EOPNOTSUPP: i64 = -(libc::EOPNOTSUPP as i64);

/// `enum action`.
#[derive(Clone, Copy)]
enum Action {
    None,
    Set,
    Del,
    Get,
}

/// What `change` returned on every packet: the calls of the action, then the reads of `tenant`, `seq` and `marked`.
type Returned = [i64; 8];

/// Every set works, but that of a key of the packet region.
const SET: Returned = [0, 0, 0, EOPNOTSUPP, 0, 4, 8, 1];
const DELETED: Returned = [0, 0, 0, EOPNOTSUPP, ENOENT, ENOENT, 8, 0];
/// Nothing is changed, everything is read.
const REFUSED: Returned = [EOPNOTSUPP, EOPNOTSUPP, EOPNOTSUPP, EOPNOTSUPP, 0, 4, 8, 1];
const REFUSED_DEL: Returned = [EOPNOTSUPP, EOPNOTSUPP, EOPNOTSUPP, EOPNOTSUPP, EOPNOTSUPP, 4, 8, 1];
/// There is nothing to change or to read.
const ABSENT: Returned = [EOPNOTSUPP, EOPNOTSUPP, EOPNOTSUPP, EOPNOTSUPP, 0, ENOENT, ENOENT, 0];
const ABSENT_DEL: Returned = [EOPNOTSUPP, EOPNOTSUPP, EOPNOTSUPP, EOPNOTSUPP, EOPNOTSUPP, ENOENT, ENOENT, 0];

fn absent(action: Action) -> Returned {
    if let Action::Del = action { ABSENT_DEL } else { ABSENT }
}

fn start(changer: &Object, action: Action) {
    for variable in ["packets", "differing"] {
        set_counter(changer, variable, 0);
    }
    write_variable(changer, "returned", &[0x55; 64]);
    set_counter(changer, "action", action as u64);
}

#[track_caller]
fn assert_returned(changer: &Object, expected: Returned, packets: u64) {
    assert_eq!((counter(changer, "packets"), counter(changer, "differing")), (packets, 0));
    let raw = read_variable(changer, "returned", 64);
    let returned: Vec<i64> = raw.chunks_exact(8).map(|word| i64::from_ne_bytes(word.try_into().unwrap())).collect();
    assert_eq!(returned, expected);
}

/// What is to be read, of what XDP had set.
type Change = fn(Traits) -> Traits;

/// After a set.
fn changed(traits: Traits) -> Traits {
    Traits { tenant: 0xc0ffee, port: 0xbeef, ..traits }
}

/// After the deletion of all keys of the flow region.
fn deleted(traits: Traits) -> Traits {
    Traits { tenant: 0, port: 0, ..traits }
}

fn same(traits: Traits) -> Traits {
    traits
}

/// Checks that `stages` read of every packet what `change` makes of what XDP set.
#[track_caller]
fn assert_read(records: &Records, stages: &[Stage], present: u32, change: Change) {
    let set = records.set();
    assert_eq!(set.len() as u64, PACKETS);
    for stage in &shown(stages.iter().copied()) {
        let read: Vec<_> = records.at(*stage).collect();
        assert_eq!(read.len() as u64, PACKETS, "{stage:?}");
        for record in read {
            assert_eq!((record.present, record.traits), (present, change(set[&record.traits.seq])), "{stage:?}");
        }
    }
}

#[track_caller]
fn assert_absent(records: &Records, stages: &[Stage]) {
    for stage in stages {
        assert_eq!(records.count(*stage), 0, "{stage:?}");
    }
}

fn records(readers: &Readers, others: &[&LoadedObject]) -> Records {
    let all = readers.records();
    others.iter().fold(all, |all, object| all.and(Records::collect(object, |_| true)))
}

/// What comes after the programs at TC. The second program of `tc_changes.bpf.c` reports as [`Stage::TcEgress`].
const BEHIND: [Stage; 5] =
    [Stage::TcEgress, Stage::PreRouting, Stage::LocalIn, Stage::CgroupIngress, Stage::SocketFilter];

/// What comes before them, and what the capture receives.
const BEFORE_OR_CLONES: [Stage; 3] = [Stage::TcIngress, Stage::PacketFilter, Stage::Delivery];

/// The ways an area may be when TC sees it: sealed; open; open with foreign metadata below.
#[derive(Clone, Copy, Debug)]
enum Area {
    Sealed,
    Open,
    Shared,
}

#[test]
fn what_tc_sets_and_deletes_is_read_from_there_on() {
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::new();
    let link = Link::without_capture(&lab.registry);
    let (writer, changer, foreign) = (lab.load("areas"), lab.load("tc_changes"), load_unbound("foreign"));
    let rx = link.pair.rx();
    let _change = attach_tc(&changer, "change", rx, Direction::Ingress);
    let _reread = attach_tc(&changer, "reread", rx, Direction::Ingress);
    let _foreign = link.attach_tc(&unbound_program(&foreign, "foreign_reader"));
    for mode in BOTH_MODES {
        let _xdp = attach_xdp(&writer, "assign_next", rx, mode);
        for area in [Area::Sealed, Area::Open, Area::Shared] {
            set_global(&writer, "seal", matches!(area, Area::Sealed).into());
            let below = if matches!(area, Area::Shared) { 20 } else { 0 };
            set_next(writer.object(), (below != 0).then(|| unbound_program(&foreign, "foreign")).as_ref());
            for (variable, to) in [("reserve", below), ("written", below), ("intact", 0), ("damaged", 0)] {
                set_counter(&foreign, variable, to);
            }
            let cases: [(Action, Returned, u32, Change); 3] = [
                (Action::Set, SET, HAS_ALL, changed),
                (Action::Del, DELETED, HAS_ALL & !HAS_FLOW, deleted),
                (Action::Get, [0, 0, 0, 0, 0, 4, 8, 1], HAS_ALL, same),
            ];
            for (action, returned, present, change) in cases {
                start(changer.object(), action);
                link.deliver(0..PACKETS);
                assert_returned(changer.object(), returned, PACKETS);
                let read = records(&link.readers, &[&writer, &changer]);
                assert_read(&read, &[Stage::TcIngress], HAS_ALL, same);
                assert_read(&read, &BEHIND, present, change);
            }
            if below != 0 {
                assert_eq!((counter(&foreign, "intact"), counter(&foreign, "damaged")), (3 * PACKETS, 0));
            }
        }
    }
}

#[test]
fn tc_cannot_set_where_there_is_no_area_of_ours() {
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::new();
    let other = lab.another("other", Layout::DEFAULT);
    register_record_keys(&other);
    let link = Link::without_capture(&lab.registry);
    let (writer, changer) = (lab.load("areas"), lab.load("tc_changes"));
    let (theirs, foreign) = (load("areas", &other), load_unbound("foreign"));
    let rx = link.pair.rx();
    let others = Readers::without_capture(rx, &other, 1);
    let _change = attach_tc(&changer, "change", rx, Direction::Ingress);
    let _foreign = link.attach_tc(&unbound_program(&foreign, "foreign_reader"));
    set_next(&foreign, None);
    let behind = [Stage::TcIngress, Stage::PreRouting, Stage::LocalIn, Stage::CgroupIngress];
    for mode in BOTH_MODES {
        start(changer.object(), Action::Set);
        link.deliver(0..PACKETS);
        assert_returned(changer.object(), ABSENT, PACKETS);
        for len in [8, 64, 144, 200] {
            let _xdp = link.attach_xdp(&unbound_program(&foreign, "foreign"), mode);
            for (variable, to) in [("reserve", len), ("written", len), ("intact", 0), ("damaged", 0)] {
                set_counter(&foreign, variable, to);
            }
            start(changer.object(), Action::Set);
            link.deliver(0..PACKETS);
            assert_returned(changer.object(), ABSENT, PACKETS);
            assert_eq!((counter(&foreign, "intact"), counter(&foreign, "damaged")), (PACKETS, 0), "{len} bytes");
        }
        set_counter(&foreign, "written", 0);
        {
            let _xdp = attach_xdp(&theirs, "assign_next", rx, mode);
            start(changer.object(), Action::Set);
            link.deliver(0..PACKETS);
            assert_returned(changer.object(), ABSENT, PACKETS);
            assert_read(&records(&others, &[&theirs]), &behind, HAS_ALL, same);
        }
        assert_absent(&link.readers.records(), &STAGES);
        // ours, in the same place, can be changed
        let _xdp = attach_xdp(&writer, "assign_next", rx, mode);
        start(changer.object(), Action::Set);
        link.deliver(0..PACKETS);
        assert_returned(changer.object(), SET, PACKETS);
        assert_read(&records(&link.readers, &[&writer]), &behind[1..], HAS_ALL, changed);
        assert_absent(&others.records(), &STAGES);
    }
}

#[test]
fn behind_decapsulation_tc_reads_and_cannot_set() {
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::new();
    let overlay = Overlay::new(&VxlanOptions::new(Family::V4)).unwrap();
    let rx = overlay.rx();
    let readers = Readers::without_capture(rx, &lab.registry, 0);
    let (writer, changer) = (lab.load("areas"), lab.load("tc_changes"));
    let _change = attach_tc(&changer, "change", rx, Direction::Ingress);
    let receiver = udp_socket(rx.netns(), rx.addr(Family::V4, TEST_PORT)).unwrap();
    let sender = udp_socket(overlay.tx().netns(), overlay.tx().addr(Family::V4, 0)).unwrap();
    for mode in BOTH_MODES {
        let _xdp = attach_xdp(&writer, "assign_next", overlay.underlay().rx(), mode);
        for seal in [0, 1] {
            set_global(&writer, "seal", seal);
            for (action, returned) in [(Action::Set, REFUSED), (Action::Del, REFUSED_DEL)] {
                start(changer.object(), action);
                for number in 0..PACKETS {
                    send_numbered(&sender, rx.addr(Family::V4, TEST_PORT), number..number + 1, 64).unwrap();
                    assert_eq!(recv_numbered(&receiver).unwrap(), number);
                }
                assert_returned(changer.object(), returned, PACKETS);
                let read = records(&readers, &[&writer]);
                assert_read(&read, &[Stage::TcIngress, Stage::CgroupIngress], HAS_ALL, same);
            }
        }
    }
}

/// Whether a write to a clone gives it a head of its own with the metadata in it (from 6.19), which is then changed.
fn clones_can_be_written() -> bool {
    KernelFeature::MovedMetadata.is_here()
}

/// What is read where a set or a deletion took place, and what it returned.
const SET_AND_DEL: [(Action, Returned, u32, Change); 2] =
    [(Action::Set, SET, HAS_ALL, changed), (Action::Del, DELETED, HAS_ALL & !HAS_FLOW, deleted)];

const REFUSED_BOTH: [(Action, Returned, u32, Change); 2] =
    [(Action::Set, REFUSED, HAS_ALL, same), (Action::Del, REFUSED_DEL, HAS_ALL, same)];

/// From 6.19 a clone is changed, on 6.18 the change is refused; before, the clone has no traits any more. In every case the
/// capture's own copies stay as they were.
#[test]
fn a_capture_that_holds_clones_makes_a_change_fail_or_keeps_its_own() {
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::new();
    // with a packet socket, whose queue holds a clone of each packet until it is received
    let link = Link::new(&lab.registry);
    let (writer, changer) = (lab.load("areas"), lab.load("tc_changes"));
    let rx = link.pair.rx();
    let _change = attach_tc(&changer, "change", rx, Direction::Ingress);
    let _reread = attach_tc(&changer, "reread", rx, Direction::Ingress);
    for mode in BOTH_MODES {
        let _xdp = attach_xdp(&writer, "assign_next", rx, mode);
        for seal in [0, 1] {
            set_global(&writer, "seal", seal);
            let cases = if clones_can_be_written() { SET_AND_DEL } else { REFUSED_BOTH };
            for (action, returned, present, change) in cases {
                start(changer.object(), action);
                link.deliver(0..PACKETS);
                let read = records(&link.readers, &[&writer, &changer]);
                assert_read(&read, &BEFORE_OR_CLONES, HAS_ALL, same);
                if KernelFeature::MetadataDynptr.is_here() {
                    assert_returned(changer.object(), returned, PACKETS);
                    assert_read(&read, &BEHIND, present, change);
                } else {
                    assert_returned(changer.object(), absent(action), PACKETS);
                    assert_absent(&read, &BEHIND);
                }
            }
        }
    }
}

/// A memory-mapped capture, as tcpdump's: the kernel copies each packet into its ring and holds no clone.
struct Ring(PacketSocket);

impl Ring {
    fn on(link: &Link) -> Ring {
        let socket = PacketSocket::on(link.pair.rx()).unwrap();
        let request =
            libc::tpacket_req { tp_block_size: 1 << 16, tp_block_nr: 32, tp_frame_size: 1 << 11, tp_frame_nr: 32 << 5 };
        Ring::set(&socket, libc::PACKET_VERSION, &libc::tpacket_versions::TPACKET_V2);
        Ring::set(&socket, libc::PACKET_RX_RING, &request);
        let ring = Ring(socket);
        ring.captured();
        ring
    }

    fn set<T>(socket: &PacketSocket, option: libc::c_int, value: &T) {
        use std::os::fd::AsRawFd;
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: `value` is valid for reading its size, and the kernel only reads.
        let err = unsafe {
            libc::setsockopt(fd, libc::SOL_PACKET, option, std::ptr::from_ref(value).cast(), size_of::<T>() as u32)
        };
        assert_eq!(err, 0, "packet socket option {option}: {}", std::io::Error::last_os_error());
    }

    /// Packets that were put into the ring since the last call, and those for which there was no room.
    fn captured(&self) -> (u32, u32) {
        use std::os::fd::AsRawFd;
        let mut statistics = [0u32; 2]; // struct tpacket_stats: packets (with drops), drops
        let mut len = size_of_val(&statistics) as u32;
        // SAFETY: `statistics` is valid for writing `len` bytes.
        let err = unsafe {
            libc::getsockopt(
                self.0.as_fd().as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                statistics.as_mut_ptr().cast(),
                &mut len,
            )
        };
        assert_eq!(err, 0, "{}", std::io::Error::last_os_error());
        (statistics[0], statistics[1])
    }
}

#[test]
fn a_memory_mapped_capture_does_not_keep_tc_from_setting() {
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::new();
    let link = Link::without_capture(&lab.registry);
    let (writer, changer) = (lab.load("areas"), lab.load("tc_changes"));
    set_global(&writer, "seal", 1);
    let rx = link.pair.rx();
    let _change = attach_tc(&changer, "change", rx, Direction::Ingress);
    let _reread = attach_tc(&changer, "reread", rx, Direction::Ingress);
    let ring = Ring::on(&link);
    for mode in BOTH_MODES {
        let _xdp = attach_xdp(&writer, "assign_next", rx, mode);
        start(changer.object(), Action::Set);
        link.deliver(0..PACKETS);
        assert_eq!(ring.captured(), (PACKETS as u32, 0));
        assert_returned(changer.object(), SET, PACKETS);
        let read = records(&link.readers, &[&writer, &changer]);
        assert_read(&read, &[Stage::TcIngress], HAS_ALL, same);
        assert_read(&read, &BEHIND, HAS_ALL, changed);
    }
}

fn load_direct(registry: &Registry) -> LoadedObject {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bpf/tc_changes.bpf.c");
    let bytes = compile_with(packet_traits_lab::clang(), &source, &["-DTRAITS_TC_DIRECT_WRITE"]);
    BoundObject::from_bytes(&bytes, "tc_changes", registry).unwrap().load().unwrap()
}

/// A program that stores to packets has the kernel give a clone a head of its own before it runs. Up to 6.18 that drops the
/// metadata: the documented limit of `TRAITS_TC_DIRECT_WRITE`, and of every kernel before 6.18.
#[test]
fn with_direct_writes_a_clone_is_changed_or_loses_its_traits_and_gains_no_others() {
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::new();
    let writer = lab.load("areas");
    set_global(&writer, "seal", 1);
    {
        let link = Link::without_capture(&lab.registry);
        let changer = load_direct(&lab.registry);
        let rx = link.pair.rx();
        let _change = attach_tc(&changer, "change", rx, Direction::Ingress);
        let _reread = attach_tc(&changer, "reread", rx, Direction::Ingress);
        for mode in BOTH_MODES {
            let _xdp = attach_xdp(&writer, "assign_next", rx, mode);
            for (action, returned, present, change) in SET_AND_DEL {
                start(changer.object(), action);
                link.deliver(0..PACKETS);
                assert_returned(changer.object(), returned, PACKETS);
                assert_read(&records(&link.readers, &[&writer, &changer]), &BEHIND, present, change);
            }
        }
    }
    let link = Link::new(&lab.registry);
    let changer = load_direct(&lab.registry);
    let rx = link.pair.rx();
    let _change = attach_tc(&changer, "change", rx, Direction::Ingress);
    let _reread = attach_tc(&changer, "reread", rx, Direction::Ingress);
    for mode in BOTH_MODES {
        let _xdp = attach_xdp(&writer, "assign_next", rx, mode);
        for seal in [0, 1] {
            set_global(&writer, "seal", seal);
            for (action, returned, present, change) in SET_AND_DEL {
                start(changer.object(), action);
                link.deliver(0..PACKETS);
                let read = records(&link.readers, &[&writer, &changer]);
                assert_read(&read, &BEFORE_OR_CLONES, HAS_ALL, same);
                if clones_can_be_written() {
                    assert_returned(changer.object(), returned, PACKETS);
                    assert_read(&read, &BEHIND, present, change);
                    continue;
                }
                assert_returned(changer.object(), absent(action), PACKETS);
                assert_absent(&read, &BEHIND);
            }
        }
    }
}

#[test]
fn an_unbound_program_changes_nothing_at_tc() {
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::new();
    let link = Link::without_capture(&lab.registry);
    let (writer, bound) = (lab.load("areas"), lab.load("tc_changes"));
    let unbound = load_unbound("tc_changes");
    let rx = link.pair.rx();
    let _unbound = link.attach_tc(&unbound_program(&unbound, "change"));
    let _bound = attach_tc(&bound, "change", rx, Direction::Ingress);
    start(bound.object(), Action::None);
    for mode in BOTH_MODES {
        let _xdp = attach_xdp(&writer, "assign_next", rx, mode);
        for action in [Action::Set, Action::Del] {
            start(&unbound, action);
            start(bound.object(), Action::Get);
            link.deliver(0..PACKETS);
            assert_returned(&unbound, absent(action), PACKETS);
            assert_returned(bound.object(), [0, 0, 0, 0, 0, 4, 8, 1], PACKETS);
            assert_read(&records(&link.readers, &[&writer]), &BEHIND[1..], HAS_ALL, same);
        }
    }
}
