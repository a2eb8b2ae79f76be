//! What is read is what this registry's programs set on this very packet, or nothing: not another registry's area, not
//! another program's metadata, not what an earlier packet left in the buffer, not bytes from the wire.

mod common;

use std::{
    ops::Range,
    os::fd::{AsFd, OwnedFd},
};

use common::{
    BOTH_MODES, Lab, TEST_PORT, attach_tc, load, program,
    readers::{Link, Readers, STAGES, load_unbound, set_next, unbound_program},
    record::{HAS_FLOW, HAS_SEQ, Records, Stage, counter, global, set_counter, set_global},
    register_record_keys,
};
use libbpf_rs::Object;
use packet_traits::{
    Layout, Nonces, TraitsMut, Value,
    attach::{CgroupHook, Direction, XdpMode, cgroup, tracing, xdp},
    bind::LoadedObject,
    registry::Registry,
};
use packet_traits_lab::{Family, Overlay, PacketSocket, VxlanOptions, frame::Flow, recv_numbered, udp_socket};

const PACKETS: u64 = 8;

/// The tenant of a packet (`set_all` in record.bpf.h).
fn tenant_of(number: u64) -> u32 {
    (number as u32).wrapping_mul(2654435761)
}

/// What was read and what XDP set.
fn records(readers: &Readers, writers: &[&LoadedObject]) -> Records {
    let all = readers.records();
    writers.iter().fold(all, |all, writer| all.and(Records::collect(writer, |_| true)))
}

/// Every stage read all traits of the packets.
#[track_caller]
fn assert_all(records: &Records, stages: &[Stage], numbers: Range<u64>) {
    for stage in stages {
        records.assert_all_read(*stage, numbers.clone());
    }
}

#[track_caller]
fn assert_nothing(records: &Records) {
    for stage in Stage::ALL.into_iter().filter(|stage| *stage != Stage::Xdp) {
        let read: Vec<_> = records.at(stage).collect();
        assert!(read.is_empty(), "{stage:?} read {read:?}");
    }
}

/// Every stage read the flow region's keys of the packets, and of the packet region what `more` says.
#[track_caller]
fn assert_flow_and(records: &Records, stages: &[Stage], numbers: Range<u64>, more: u32) {
    for stage in stages {
        let mut tenants = Vec::new();
        for record in records.at(*stage) {
            assert_eq!(record.present, HAS_FLOW | more, "{record:?}");
            if more == HAS_SEQ {
                assert_eq!(record.traits.tenant, tenant_of(record.traits.seq), "{record:?}");
            }
            tenants.push(record.traits.tenant);
        }
        assert_eq!(tenants, numbers.clone().map(tenant_of).collect::<Vec<_>>(), "{stage:?}");
    }
}

/// The same where two registries' programs read: a socket has one filter, and each one's capture receives a copy.
#[track_caller]
fn assert_all_shared(records: &Records) {
    let once: Vec<Stage> =
        STAGES.iter().copied().filter(|stage| ![Stage::SocketFilter, Stage::Delivery].contains(stage)).collect();
    assert_all(records, &once, 0..PACKETS);
    let delivered = records.assert_right(Stage::Delivery);
    assert!(delivered.len() as u64 == PACKETS && delivered.values().all(|times| *times == 2), "{delivered:?}");
}

#[test]
fn another_registrys_traits_are_absent() {
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::new();
    let other = lab.another("other", Layout::DEFAULT);
    register_record_keys(&other);
    let link = Link::new(&lab.registry);
    let other_readers = Readers::on(link.pair.rx(), &other, 1);
    let (ours, theirs) = (lab.load("areas"), load("areas", &other));
    for seal in [0, 1] {
        set_global(&ours, "seal", seal);
        set_global(&theirs, "seal", seal);
        for mode in BOTH_MODES {
            for (writer, right, wrong) in
                [(&ours, &link.readers, &other_readers), (&theirs, &other_readers, &link.readers)]
            {
                let _xdp = link.attach_xdp(&program(writer, "assign_next"), mode);
                link.deliver(0..PACKETS);
                wrong.release();
                assert_all_shared(&records(right, &[writer]));
                assert_nothing(&wrong.records());
            }
        }
    }
}

#[test]
fn of_two_registries_on_one_packet_the_nearer_is_read_and_the_other_is_absent() {
    if !common::area_enabled() {
        return;
    }
    // together no more than native veth has room for
    let layout = Layout::new(32, 72).unwrap();
    let lab = Lab::empty(layout);
    lab.register_record_keys();
    let other = lab.another("other", layout);
    register_record_keys(&other);
    let link = Link::new(&lab.registry);
    let other_readers = Readers::on(link.pair.rx(), &other, 1);
    let (ours, theirs) = (lab.load("areas"), load("areas", &other));
    // our second one finds the other's area below its own, and must not hide it
    for mode in BOTH_MODES {
        for (first, second, right, wrong) in
            [(&ours, &theirs, &other_readers, &link.readers), (&theirs, &ours, &link.readers, &other_readers)]
        {
            set_next(first.object(), Some(&program(second, "assign_next")));
            set_next(second.object(), None);
            let _xdp = link.attach_xdp(&program(first, "assign_next"), mode);
            for seal in [0, 1] {
                set_global(first, "seal", 0);
                set_global(second, "seal", seal);
                set_global(second, "seal_error", 0);
                link.deliver(0..PACKETS);
                wrong.release();
                let read = records(right, &[second]);
                assert_all_shared(&read);
                assert_eq!(global(second, "seal_error"), seal * libc::EBUSY as u64);
                let first_set = Records::collect(first, |_| true);
                assert_eq!(first_set.set().len() as u64, PACKETS, "the other did set all of its traits before");
                assert_nothing(&wrong.records());
            }
        }
    }
}

/// A link whose packets meet a program that knows nothing of traits, and its reader at TC.
struct Shared {
    lab: Lab,
    link: Link,
    writer: LoadedObject,
    last: LoadedObject,
    foreign: Object,
}

impl Shared {
    fn new() -> Shared {
        let lab = Lab::new();
        let link = Link::new(&lab.registry);
        let (writer, last) = (lab.load("areas"), lab.load("areas"));
        Shared { lab, link, writer, last, foreign: load_unbound("foreign") }
    }

    /// What the other program does from now on.
    fn foreign(&self, reserve: u64, written: u64) {
        for (variable, to) in
            [("reserve", reserve), ("written", written), ("reserved", 0), ("intact", 0), ("damaged", 0)]
        {
            set_counter(&self.foreign, variable, to);
        }
    }

    /// The other program's metadata, if it writes any, was where and what it wrote.
    #[track_caller]
    fn assert_foreign_intact(&self, packets: u64, what: &str) {
        let [reserve, written, reserved, intact, damaged] =
            ["reserve", "written", "reserved", "intact", "damaged"].map(|name| counter(&self.foreign, name));
        assert_eq!(reserved, if reserve == 0 { 0 } else { packets }, "{what}");
        assert_eq!((intact, damaged), (if written == 0 { 0 } else { packets }, 0), "{what}");
    }
}

#[test]
fn foreign_metadata_below_an_area_stays_intact_and_keeps_it_open() {
    if !common::area_enabled() {
        return;
    }
    let shared = Shared::new();
    let Shared { link, writer, foreign, .. } = &shared;
    let _reader = link.attach_tc(&unbound_program(foreign, "foreign_reader"));
    for mode in BOTH_MODES {
        // before ours, and then ours is to be sealed
        set_next(foreign, Some(&program(writer, "assign_next")));
        set_next(writer.object(), None);
        set_global(writer, "seal", 1);
        {
            let _xdp = link.attach_xdp(&unbound_program(foreign, "foreign"), mode);
            for len in [0, 4, 8, 16, 32, 64, 68, 72] {
                shared.foreign(len, len);
                set_global(writer, "seal_error", 0);
                set_global(writer, "sealed", 0);
                link.deliver(0..PACKETS);
                assert_all(&records(&link.readers, &[writer]), &STAGES, 0..PACKETS);
                shared.assert_foreign_intact(PACKETS, &format!("{mode}, {len} bytes before"));
                let (error, sealed) = if len == 0 { (0, PACKETS) } else { (libc::EBUSY as u64, 0) };
                assert_eq!((global(writer, "seal_error"), global(writer, "sealed")), (error, sealed), "{len} bytes");
            }
        }
        // after ours, which is open
        set_next(foreign, None);
        set_next(writer.object(), Some(&unbound_program(foreign, "foreign")));
        set_global(writer, "seal", 0);
        let _xdp = link.attach_xdp(&program(writer, "assign_next"), mode);
        for len in [0, 4, 8, 16, 32, 64, 68, 72] {
            shared.foreign(len, len);
            link.deliver(0..PACKETS);
            assert_all(&records(&link.readers, &[writer]), &STAGES, 0..PACKETS);
            shared.assert_foreign_intact(PACKETS, &format!("{mode}, {len} bytes after"));
        }
    }
}

#[test]
fn foreign_metadata_over_a_hidden_region_leaves_the_flow_region() {
    if !common::area_enabled() {
        return;
    }
    let shared = Shared::new();
    let Shared { link, writer, last, foreign, .. } = &shared;
    let _reader = link.attach_tc(&unbound_program(foreign, "foreign_reader"));
    set_global(writer, "seal", 1);
    set_next(writer.object(), Some(&unbound_program(foreign, "foreign")));
    for mode in BOTH_MODES {
        let _xdp = link.attach_xdp(&program(writer, "assign_next"), mode);
        // written in full, in part and not at all
        // 80 is the packet region's length
        for len in [0, 4, 32, 60, 64, 72, 76, 80, 84, 128, 152] {
            for written in [len, len / 8 * 4, 0] {
                set_next(foreign, None);
                shared.foreign(len, written);
                link.deliver(0..PACKETS);
                let what = format!("{mode}, {written} of {len} bytes written");
                shared.assert_foreign_intact(PACKETS, &what);
                let read = records(&link.readers, &[writer]);
                match len {
                    0 => assert_all(&read, &STAGES, 0..PACKETS),
                    _ => assert_flow_and(&read, &STAGES, 0..PACKETS, 0),
                }
                if len > 72 {
                    continue; // no room for a packet region below the flow region
                }
                // a later program of ours opens the area again: the packet region is a new one
                set_next(foreign, Some(&program(last, "assign_one")));
                set_global(last, "set_error", 0);
                shared.foreign(len, written);
                link.deliver(0..PACKETS);
                assert_eq!(global(last, "set_error"), 0, "{what}");
                shared.assert_foreign_intact(PACKETS, &what);
                let read = records(&link.readers, &[writer]);
                match len {
                    0 => assert_all(&read, &STAGES, 0..PACKETS),
                    _ => assert_flow_and(&read, &STAGES, 0..PACKETS, HAS_SEQ),
                }
            }
        }
    }
}

/// Whether each of many buffers that came back was cleared: then there will be no old area.
fn clears_buffers(writer: &LoadedObject) -> bool {
    let came_back = global(writer, "came_back");
    came_back >= 32 && came_back == global(writer, "cleared")
}

fn forget_old_areas(writer: &LoadedObject, counter: &str) {
    for variable in [counter, "came_back", "cleared"] {
        set_global(writer, variable, 0);
    }
}

/// Packets did come in buffers in which there was an earlier packet's area: else nothing is shown. Native XDP's buffers
/// are used again as they are. Of generic XDP's, some kernels leave none with an old area: that is said, with counts.
#[track_caller]
fn assert_old_areas_seen(writer: &LoadedObject, counter: &str, packets: u64, mode: XdpMode, what: &str) {
    let [seen, came_back, cleared] = [counter, "came_back", "cleared"].map(|variable| global(writer, variable));
    let what =
        format!("{what}: of {packets} packets {came_back} came in a buffer that was used, {cleared} in a cleared one");
    if seen == 0 && mode == XdpMode::Generic {
        let thread = std::thread::current();
        eprintln!("skipped: {} ({what}; none with the old area)", thread.name().unwrap_or("kernel test"));
        return;
    }
    assert!(seen > 0, "{what}; none with the old area");
}

#[test]
fn what_an_earlier_packet_left_in_the_buffer_is_absent() {
    const BURST: u64 = 64;
    const MANY: u64 = 2048;
    if !common::area_enabled() {
        return;
    }
    let shared = Shared::new();
    let Shared { link, writer, foreign, .. } = &shared;
    set_global(writer, "even_only", 1);
    // packets with an odd number get no traits; the other program may keep metadata with them
    set_next(writer.object(), Some(&unbound_program(foreign, "foreign")));
    set_next(foreign, None);
    for mode in BOTH_MODES {
        let _xdp = link.attach_xdp(&program(writer, "assign_next"), mode);
        for seal in [0, 1] {
            set_global(writer, "seal", seal);
            // 64 is the flow region's length, 144 the area's
            for len in [0, 4, 60, 64, 68, 140, 144, 152] {
                shared.foreign(len, len);
                forget_old_areas(writer, "stale");
                // buffers come back when the capture has received its copies
                let mut read = records(&link.readers, &[writer]);
                let mut sent = 0;
                // without an old area in a buffer this would show nothing
                while sent < BURST || (global(writer, "stale") == 0 && sent < MANY && !clears_buffers(writer)) {
                    link.deliver(sent..sent + 16);
                    read = read.and(records(&link.readers, &[writer]));
                    sent += 16;
                }
                for stage in STAGES.iter().copied() {
                    read.assert_all_read(stage, (0..sent).step_by(2));
                }
                assert_old_areas_seen(writer, "stale", sent, mode, &format!("{mode}, {len} bytes"));
            }
        }
    }
}

/// An area as `stages.bpf.c` reads it, of the packet with this number.
fn imitation(registry: &Registry, nonces: &Nonces, number: u64) -> Vec<u8> {
    let layout = registry.layout();
    let mut bytes = vec![0; layout.area_len()];
    let mut area = TraitsMut::init(&mut bytes, &layout, nonces).unwrap();
    for entry in registry.list().unwrap() {
        let value = match entry.key.name().as_str() {
            "tenant" => Value::U32(tenant_of(number)),
            "marked" => Value::Flag,
            "seq" => Value::U64(number),
            _ => continue,
        };
        area.set_value(&entry.key, &value).unwrap();
    }
    bytes
}

#[test]
fn bytes_from_the_wire_that_imitate_an_area_are_absent_without_the_nonce() {
    if !common::area_enabled() {
        return;
    }
    let shared = Shared::new();
    let Shared { lab, link, foreign, .. } = &shared;
    set_next(foreign, None);
    let (tx, rx) = (link.pair.tx(), link.pair.rx());
    let frame = Flow::between(tx, rx, Family::V4, 4000, TEST_PORT).udp(&[0; 64]);
    let sender = PacketSocket::on(tx).unwrap();
    // In front of the packet are an Ethernet header, which brings it here, and the imitation. The other program takes
    // them off, as a tunnel's end does, and then reserves metadata without writing it: the worst there is.
    let send = |area: &[u8]| {
        set_counter(foreign, "pop", 14 + area.len() as u64);
        sender.send(&[&frame[..14], area, &frame].concat()).unwrap();
        assert_eq!(recv_numbered(&link.receiver).unwrap(), 0);
    };
    let right = lab.registry.nonces();
    let guesses = (0..64).map(|bit| (right.flow ^ 1 << bit, right.packet)).chain([
        (right.packet, right.flow),
        (right.packet, right.packet),
        (!right.flow, right.packet),
        (right.flow.swap_bytes(), right.packet),
        (1, 1),
        (u64::MAX, u64::MAX),
    ]);
    for mode in BOTH_MODES {
        let _xdp = link.attach_xdp(&unbound_program(foreign, "foreign"), mode);
        for len in [64, 144] {
            shared.foreign(len, 0);
            // who knows the nonces is believed: this is what the rest is refused for
            send(&imitation(&lab.registry, &right, 5));
            let read = link.readers.records();
            for stage in STAGES.iter().copied() {
                let found: Vec<_> = read.at(stage).collect();
                assert_eq!(found.len(), 1, "{mode}, {len} bytes, {stage:?}");
                assert_eq!(found[0].traits.tenant, tenant_of(5));
                assert_eq!(found[0].present & HAS_SEQ != 0, len == 144, "a hidden region has a tag: {stage:?}");
            }
            for (flow, packet) in guesses.clone() {
                send(&imitation(&lab.registry, &Nonces { flow, packet }, 5));
            }
            // the flow region's nonce alone gives the flow region alone
            assert_nothing(&link.readers.records());
            send(&imitation(&lab.registry, &Nonces { packet: right.packet ^ 2, ..right }, 5));
            let read = link.readers.records();
            for stage in STAGES.iter().copied() {
                assert_eq!(read.count(stage), 1, "{stage:?}");
                assert!(read.at(stage).all(|record| record.present & !HAS_FLOW == 0), "{stage:?}");
            }
            // without metadata, not even the nonce helps
            shared.foreign(0, 0);
            send(&imitation(&lab.registry, &right, 5));
            assert_nothing(&link.readers.records());
            shared.foreign(len, 0);
        }
    }
}

#[test]
fn an_area_inside_a_packet_is_never_taken_for_one_in_front_of_it() {
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::new();
    let overlay = Overlay::new(&VxlanOptions::new(Family::V4)).unwrap();
    let (outer, rx) = (overlay.underlay(), overlay.rx());
    let readers = Readers::on(rx, &lab.registry, 0);
    let receiver = udp_socket(rx.netns(), rx.addr(Family::V4, TEST_PORT)).unwrap();
    let (writer, foreign) = (lab.load("areas"), load_unbound("foreign"));
    set_next(&foreign, None);
    set_global(&writer, "seal", 1);
    set_counter(&foreign, "reserve", 144);
    set_counter(&foreign, "written", 144);
    // with the right nonces, as if they had leaked: wherever it begins, it is behind the inner MAC header
    let area = imitation(&lab.registry, &lab.registry.nonces(), 5);
    let inner = Flow::between(overlay.tx(), rx, Family::V4, 4000, TEST_PORT);
    let tunnel = Flow::between(outer.tx(), outer.rx(), Family::V4, 5000, 0);
    let sender = PacketSocket::on(outer.tx()).unwrap();
    for mode in BOTH_MODES {
        let end = outer.rx();
        let attach = |fd: OwnedFd| end.netns().enter(|| xdp::attach(fd.as_fd(), end.ifindex(), mode)).unwrap().0;
        let send = |pad: usize| {
            let payload = [&0u64.to_be_bytes()[..], &vec![0; pad], &area].concat();
            sender.send(&tunnel.vxlan(overlay.vni(), &inner.udp(&payload))).unwrap();
            assert_eq!(recv_numbered(&receiver).unwrap(), 0);
        };
        {
            let _xdp = attach(program(&writer, "assign_next"));
            send(0);
            assert_all(&records(&readers, &[&writer]), &[Stage::TcIngress, Stage::CgroupIngress], 0..1);
        }
        let _xdp = attach(unbound_program(&foreign, "foreign"));
        for pad in 0..32 {
            send(pad);
        }
        assert_nothing(&readers.records());
    }
}

/// Frames whose first bytes XDP takes off before it sets traits: a tunnel that ends in XDP, and one inside it that ends
/// in the kernel. The area lies higher up in the buffer than that of a packet which had no outer tunnel.
#[test]
fn behind_decapsulation_an_earlier_packets_area_in_the_same_buffer_is_absent() {
    const FEW: u64 = 64;
    const MANY: u64 = 2048;
    const OUTER: u64 = 150; // longer than the area, so that the old one is not written over
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::new();
    let overlay = Overlay::new(&VxlanOptions::new(Family::V4)).unwrap();
    let (outer, rx) = (overlay.underlay(), overlay.rx());
    let readers = Readers::on(rx, &lab.registry, 0);
    let receiver = udp_socket(rx.netns(), rx.addr(Family::V4, TEST_PORT)).unwrap();
    let (writer, foreign) = (lab.load("areas"), load_unbound("foreign"));
    set_next(&foreign, Some(&program(&writer, "assign_next")));
    set_global(&writer, "seal", 1);
    let inner = Flow::between(overlay.tx(), rx, Family::V4, 4000, TEST_PORT);
    let tunnel = Flow::between(outer.tx(), outer.rx(), Family::V4, 5000, 0);
    let sender = PacketSocket::on(outer.tx()).unwrap();
    for mode in BOTH_MODES {
        let end = outer.rx();
        let fd = unbound_program(&foreign, "foreign");
        let _xdp = end.netns().enter(|| xdp::attach(fd.as_fd(), end.ifindex(), mode)).unwrap().0;
        // generic XDP sees another headroom
        set_global(&writer, "lowest", 0);
        forget_old_areas(&writer, "stale_below");
        let mut read = records(&readers, &[&writer]);
        let mut number = 0;
        // without an old area below the new one this would show nothing
        while number < FEW
            || (global(&writer, "stale_below") == 0 && number < MANY && !clears_buffers(&writer))
            || number % 8 != 0
        {
            // no regular order, which might give each kind its own buffers
            let pop = if number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63 == 0 { 0 } else { OUTER };
            set_counter(&foreign, "pop", pop);
            let mut payload = [0; 64];
            payload[..8].copy_from_slice(&number.to_be_bytes());
            let packet = tunnel.vxlan(overlay.vni(), &inner.udp(&payload));
            let mut front = vec![0; pop as usize];
            let header = front.len().min(14);
            front[..header].copy_from_slice(&packet[..header]);
            // a packet without the outer tunnel is as long, so that it gets a buffer of the same kind
            let tail = vec![0; (OUTER - pop) as usize];
            sender.send(&[&front[..], &packet, &tail].concat()).unwrap();
            assert_eq!(recv_numbered(&receiver).unwrap(), number);
            number += 1;
            if number % 8 == 0 {
                // buffers come back when the capture has received its copies
                read = read.and(records(&readers, &[&writer]));
            }
        }
        for stage in [Stage::TcIngress, Stage::CgroupIngress] {
            read.assert_all_read(stage, 0..number);
        }
        assert_old_areas_seen(&writer, "stale_below", number, mode, &mode.to_string());
    }
}

#[test]
fn an_unbound_programs_readers_find_nothing_on_packets_with_traits() {
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::new();
    let link = Link::new(&lab.registry);
    let writer = lab.load("areas");
    let unbound = load_unbound("stages");
    let rx = link.pair.rx();
    let _tc = link.attach_tc(&unbound_program(&unbound, "tc_ingress"));
    let _cgroup = cgroup::attach_path(
        unbound_program(&unbound, "cgroup_ingress").as_fd(),
        cgroup::cgroup_root().unwrap(),
        CgroupHook::Ingress,
    )
    .unwrap();
    let _delivery = tracing::attach(unbound_program(&unbound, "delivery").as_fd()).unwrap();
    // bound, beside it: another of the same programs does read them
    let _bound = attach_tc(&link.readers.object, "tc_egress", rx, Direction::Ingress);
    for mode in BOTH_MODES {
        let _xdp = link.attach_xdp(&program(&writer, "assign_next"), mode);
        link.deliver(0..PACKETS);
        let read = records(&link.readers, &[&writer]);
        assert_all(&read, &STAGES, 0..PACKETS);
        read.assert_all_read(Stage::TcEgress, 0..PACKETS);
    }
    assert_nothing(&Records::collect_from(&unbound, |_| true));
}
