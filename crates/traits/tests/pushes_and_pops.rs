//! Programs at TC that push bytes onto a packet's front and pull them off: each trait is read as XDP set it on this very
//! packet, or not at all.
//!
//! Up to Linux 6.18 these helpers leave metadata where it was: a push writes over it, and after a pop it is found at the
//! headroom that XDP saw. A head that is reallocated loses all metadata. From 6.19 the *visible* metadata moves along
//! (`skb_data_move` in include/linux/skbuff.h), also into a new head (`pskb_expand_head`); what a seal has hidden does not.

mod common;

use std::collections::BTreeMap;

use common::{
    BOTH_MODES, Lab, TEST_PORT, attach_tc, attach_xdp,
    record::{HAS_ALL, HAS_FLOW, Record, Records, Stage, Traits, global, set_global},
    spec,
};
use packet_traits::{
    KeyType, Layout, Merge,
    attach::{Attachment, Direction, XdpMode},
    bind::LoadedObject,
};
use packet_traits_lab::{
    Chain, End, Family, KernelFeature, Overlay, PacketSocket, Pair, VxlanOptions,
    frame::{Flow, with_vlan},
    send_frame,
};

const PACKETS: u64 = 12;

/// `enum move`.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
enum Move {
    None,
    VlanPush,
    VlanPop,
    /// `bpf_skb_adjust_room` behind the Ethernet header.
    Room,
    /// `bpf_skb_change_head`.
    Head,
    /// `bpf_skb_change_tail`.
    Tail,
    /// `bpf_skb_change_proto`, to this Ethernet type.
    Protocol,
    /// `bpf_skb_store_bytes`, before which the kernel gives a clone a head of its own.
    Write,
}

const NOTHING: (Move, i64) = (Move::None, 0);
const TO_IPV4: (Move, i64) = (Move::Protocol, libc::ETH_P_IP as i64);
const TO_IPV6: (Move, i64) = (Move::Protocol, libc::ETH_P_IPV6 as i64);

/// 14 and 20 are headers, 50 and 70 tunnels; a flow region has 64 bytes, an area 144; 1000 do not fit into the headroom.
const LENGTHS: [i64; 15] = [1, 2, 4, 8, 12, 14, 20, 50, 51, 64, 70, 94, 95, 144, 1000];

/// What is read of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    Nothing,
    Flow,
    All,
}

use Read::{All, Nothing};

/// Whether a reader can be certain of an area that ends `len` bytes in front of the MAC header: another program's metadata of
/// the same length, right in front of that header, would cover the area's nonce or the bytes its check was computed from.
fn known_behind(len: i64, open: bool) -> bool {
    if open { len <= 174 } else { len <= 94 }
}

/// Whether the kernel moves visible metadata along and keeps it in new heads.
fn metadata_moves() -> bool {
    KernelFeature::MovedMetadata.is_here()
}

/// What was read, if it is what XDP set on the same packet: each region whole or not at all.
fn judge(record: &Record, set: &BTreeMap<u64, Traits>) -> Result<Read, String> {
    let right = set[&record.extra];
    let (read, expected) = match record.present {
        0 => (Read::Nothing, Traits::default()),
        HAS_FLOW => (Read::Flow, Traits { tenant: right.tenant, port: right.port, ..Traits::default() }),
        HAS_ALL => (Read::All, right),
        _ => return Err(format!("packet {} has a part of a region: {record:?}", record.extra)),
    };
    if record.traits == expected { Ok(read) } else { Err(format!("{record:?}, but XDP set {right:?}")) }
}

/// What a stage read of the packets: of each the same.
#[track_caller]
fn read_at(records: &Records, stage: Stage) -> Read {
    let set = records.set();
    let mut read = BTreeMap::new();
    for record in records.at(stage) {
        let judged = judge(record, &set).unwrap_or_else(|wrong| panic!("{stage:?}: {wrong}"));
        assert!(read.insert(record.extra, judged).is_none(), "{stage:?} reports packet {} twice", record.extra);
    }
    assert_eq!(read.keys().copied().collect::<Vec<_>>(), (0..PACKETS).collect::<Vec<_>>(), "{stage:?}");
    assert!(read.values().all(|one| *one == read[&0]), "{stage:?} reads packets differently: {read:?}");
    read[&0]
}

fn payload(number: u64, len: usize) -> Vec<u8> {
    let mut payload = vec![0xa5; len];
    payload[len - 8..].copy_from_slice(&number.to_be_bytes());
    payload
}

/// VLAN 0: priority only, the packet belongs to the interface itself.
fn tagged(frame: Vec<u8>, tags: usize) -> Vec<u8> {
    (0..tags).fold(frame, |frame, _| with_vlan(&frame, 0, 5))
}

/// What moves packets at TC ingress of an interface, and reads before, between and after it; then they are dropped.
struct Mover {
    object: LoadedObject,
    _attached: Vec<Attachment>,
}

impl Mover {
    fn on(end: &End, lab: &Lab) -> Mover {
        let object = lab.load("moves");
        let programs = ["before", "first", "between", "second", "behind"];
        let _attached = programs.map(|name| attach_tc(&object, name, end, Direction::Ingress)).into();
        set_global(&object, "drop", 1);
        Mover { object, _attached }
    }

    fn set_moves(&self, first: (Move, i64), second: (Move, i64)) {
        for (variable, to) in [
            ("first_move", first.0 as u64),
            ("first_len", first.1 as u64),
            ("second_move", second.0 as u64),
            ("second_len", second.1 as u64),
            ("first_error", 0),
            ("second_error", 0),
        ] {
            set_global(&self.object, variable, to);
        }
    }

    /// Sends packets, which two moves change, and which are read before, between and after them.
    #[track_caller]
    fn records(&self, from: &End, frame: impl Fn(u64) -> Vec<u8>, first: (Move, i64), second: (Move, i64)) -> Records {
        self.set_moves(first, second);
        for number in 0..PACKETS {
            send_frame(from.netns(), from.ifindex(), &frame(number)).unwrap();
        }
        let records = Records::collect(&self.object, |records| records.count(Stage::Forward) as u64 >= PACKETS);
        let errors = ["first_error", "second_error"].map(|name| global(&self.object, name) as i64);
        assert_eq!(errors, [0, 0], "{first:?}, {second:?}");
        records
    }

    /// What is read between two moves and after the second; before, it is all.
    #[track_caller]
    fn moved(
        &self,
        from: &End,
        frame: impl Fn(u64) -> Vec<u8>,
        first: (Move, i64),
        second: (Move, i64),
    ) -> (Read, Read) {
        let records = self.records(from, frame, first, second);
        assert_eq!(read_at(&records, Stage::TcIngress), All, "{first:?}, {second:?}");
        (read_at(&records, Stage::TcEgress), read_at(&records, Stage::Forward))
    }
}

#[test]
fn what_is_visible_moves_with_the_front_or_is_written_over() {
    if !common::area_enabled() {
        return;
    }
    let (lab, pair) = (Lab::new(), Pair::new().unwrap());
    let mover = Mover::on(pair.rx(), &lab);
    let flow = Flow::between(pair.tx(), pair.rx(), Family::V4, 4000, TEST_PORT);
    let flow_v6 = Flow::between(pair.tx(), pair.rx(), Family::V6, 4000, TEST_PORT);
    let frame = |number| flow.udp(&payload(number, 1200));
    let moves = metadata_moves();
    for (mode, open) in BOTH_MODES.into_iter().flat_map(|mode| [(mode, false), (mode, true)]) {
        let visible = if open { All } else { Read::Flow };
        set_global(&mover.object, "keep_open", open.into());
        let _xdp = attach_xdp(&mover.object, "assign_last", pair.rx(), mode);
        let check = |frame: &dyn Fn(u64) -> Vec<u8>, first, second, expected| {
            let read = mover.moved(pair.tx(), frame, first, second);
            assert_eq!(read, expected, "{mode}, open {open}: {first:?}, then {second:?}");
        };
        let pushed = if moves { visible } else { Nothing };
        for len in LENGTHS {
            check(&frame, (Move::Room, len), (Move::Room, -len), (pushed, pushed));
            check(&frame, (Move::Head, len), NOTHING, (pushed, pushed));
            // what is visible is moved along and tells where the rest is, or all is where it was
            let popped = if moves || known_behind(len, open) { All } else { Nothing };
            check(&frame, (Move::Room, -len), (Move::Room, len), (popped, All));
        }
        check(&frame, TO_IPV6, TO_IPV4, (pushed, pushed));
        check(&|number| flow_v6.udp(&payload(number, 1200)), TO_IPV4, TO_IPV6, (All, All));
        // there may be room behind the packet, or it gets a new head
        let records = mover.records(pair.tx(), frame, (Move::Tail, 64), (Move::Tail, -64));
        let set = records.set();
        for record in records.at(Stage::TcEgress).chain(records.at(Stage::Forward)) {
            let read = judge(record, &set).unwrap_or_else(|wrong| panic!("{mode}, open {open}: {wrong}"));
            assert!(read == All || (read == Nothing && !moves), "{mode}, open {open}: {read:?}");
        }
        // the first tag is kept beside the packet; so is that which a pop leaves
        check(&frame, (Move::VlanPush, 0), (Move::VlanPush, 0), (All, pushed));
        for tags in [1, 2] {
            check(&|number| tagged(frame(number), tags), (Move::VlanPop, 0), (Move::VlanPush, 0), (All, All));
        }
    }
}

#[test]
fn a_clone_whose_head_is_made_its_own_keeps_all_or_loses_all() {
    if !common::area_enabled() {
        return;
    }
    let (lab, pair) = (Lab::new(), Pair::new().unwrap());
    let mover = Mover::on(pair.rx(), &lab);
    let flow = Flow::between(pair.tx(), pair.rx(), Family::V4, 4000, TEST_PORT);
    // its queue holds a clone of each packet
    let capture = PacketSocket::on(pair.rx()).unwrap();
    let kept = if metadata_moves() { All } else { Nothing };
    for (mode, open) in BOTH_MODES.into_iter().flat_map(|mode| [(mode, 0), (mode, 1)]) {
        set_global(&mover.object, "keep_open", open);
        let _xdp = attach_xdp(&mover.object, "assign_last", pair.rx(), mode);
        let read = mover.moved(pair.tx(), |number| flow.udp(&payload(number, 200)), (Move::Write, 0), (Move::Write, 0));
        assert_eq!(read, (kept, kept), "{mode}, open {open}");
        capture.drain(std::time::Duration::from_millis(20)).unwrap();
    }
}

/// A VXLAN tunnel behind which packets are moved.
struct Tunnel {
    _lab: Lab,
    overlay: Overlay,
    mover: Mover,
}

impl Tunnel {
    /// `fillers` keys of the flow region come before those of the record.
    fn new(underlay: Family, fillers: usize) -> Tunnel {
        let lab = Lab::empty(Layout::DEFAULT);
        for number in 0..fillers {
            lab.registry.register(&spec(&format!("filler{number}"), KeyType::Flag, Merge::Block)).unwrap();
        }
        lab.register_record_keys();
        let overlay = Overlay::new(&VxlanOptions::new(underlay)).unwrap();
        let mover = Mover::on(overlay.rx(), &lab);
        Tunnel { _lab: lab, overlay, mover }
    }

    fn xdp(&self, mode: XdpMode) -> Attachment {
        attach_xdp(&self.mover.object, "assign_last", self.overlay.underlay().rx(), mode)
    }

    fn records(&self, first: (Move, i64), second: (Move, i64)) -> Records {
        let outer = self.overlay.underlay();
        let inner = Flow::between(self.overlay.tx(), self.overlay.rx(), Family::V4, 4000, TEST_PORT);
        let tunnel = Flow::between(outer.tx(), outer.rx(), Family::V4, 5000, 0);
        let frame = |number| tunnel.vxlan(self.overlay.vni(), &inner.udp(&payload(number, 1200)));
        self.mover.records(outer.tx(), frame, first, second)
    }
}

/// Up to 6.18 a push and a pop behind a tunnel move nothing of the area; a push may write over it.
#[test]
fn behind_a_tunnel_a_moved_front_leaves_right_traits_or_none() {
    const HEADERS: i64 = 50; // Ethernet, IPv4, UDP, VXLAN
    if !common::area_enabled() {
        return;
    }
    if metadata_moves() {
        eprintln!("skipped: this kernel moves metadata; see behind_a_tunnel_a_moved_front_may_damage_the_flow_region");
        return;
    }
    let tunnel = Tunnel::new(Family::V4, 0);
    for mode in BOTH_MODES {
        let _xdp = tunnel.xdp(mode);
        for len in LENGTHS {
            let pushed = if len <= HEADERS { All } else { Nothing };
            let records = tunnel.records((Move::Room, len), (Move::Room, -len));
            let read = [Stage::TcEgress, Stage::Forward].map(|stage| read_at(&records, stage));
            assert_eq!(read, [pushed, pushed], "{mode}, {len} bytes pushed");
            let records = tunnel.records((Move::Room, -len), NOTHING);
            let popped = if known_behind(HEADERS + len, false) { All } else { Nothing };
            assert_eq!(read_at(&records, Stage::TcEgress), popped, "{mode}, {len} bytes popped");
        }
    }
}

#[test]
fn behind_a_tunnel_a_clone_whose_head_is_made_its_own_keeps_all_or_loses_all() {
    if !common::area_enabled() {
        return;
    }
    let tunnel = Tunnel::new(Family::V4, 0);
    let _capture = PacketSocket::on(tunnel.overlay.rx()).unwrap();
    let kept = if metadata_moves() { All } else { Nothing };
    for mode in BOTH_MODES {
        let _xdp = tunnel.xdp(mode);
        let records = tunnel.records((Move::Write, 0), NOTHING);
        assert_eq!(read_at(&records, Stage::TcEgress), kept, "{mode}");
    }
}

/// A documented limit from 6.19 on: what is in front of the inner header is moved as if it were the metadata, which is the
/// tunnel's headers and the end of the area. Values of the flow region may then be wrong; those of the packet region are
/// right or absent.
#[test]
fn behind_a_tunnel_a_moved_front_may_damage_the_flow_region() {
    if !common::area_enabled() {
        return;
    }
    if !metadata_moves() {
        eprintln!("skipped: this kernel moves no metadata (6.19)");
        return;
    }
    // the first 16 presence bits are among what is damaged
    let tunnel = Tunnel::new(Family::V4, 16);
    for mode in BOTH_MODES {
        let _xdp = tunnel.xdp(mode);
        for (len, back) in [2, 4, 8, 20, 70].into_iter().flat_map(|len| [(len, -len), (-len, len)]) {
            let records = tunnel.records((Move::Room, len), (Move::Room, back));
            let set = records.set();
            let mut wrong = 0;
            for record in records.at(Stage::TcEgress).chain(records.at(Stage::Forward)) {
                let right = set[&record.extra];
                let hidden = Traits { tenant: 0, port: 0, ..record.traits };
                let expected = match record.present & !HAS_FLOW {
                    0 => Traits::default(),
                    _ => Traits { tenant: 0, port: 0, ..right },
                };
                assert_eq!(hidden, expected, "{mode}, {len} bytes: {record:?}");
                wrong += usize::from(judge(record, &set).is_err());
            }
            eprintln!("{mode}, {len} bytes, then {back}: {wrong} readings with wrong values in the flow region");
        }
    }
}

/// When a VLAN tag inside a tunnel is taken out, the area is no longer in front of the MAC header, and the kernel moves its
/// end and the tunnel's headers as if they were the metadata.
#[test]
fn behind_a_tunnel_a_vlan_tag_that_is_taken_out_leaves_right_traits_or_none() {
    if !common::area_enabled() {
        return;
    }
    // Over IPv4, of the presence bits a part is moved: these keys' bits are in it, or not. The headers over IPv6 are longer
    // than what is visible of a sealed area: nothing of it is moved.
    for (underlay, fillers) in [(Family::V4, 0), (Family::V4, 16), (Family::V6, 0)] {
        let test = Tunnel::new(underlay, fillers);
        let Tunnel { overlay, mover, .. } = &test;
        let outer = overlay.underlay();
        let inner = Flow::between(overlay.tx(), overlay.rx(), Family::V4, 4000, TEST_PORT);
        let tunnel = Flow::between(outer.tx(), outer.rx(), underlay, 5000, 0);
        for (mode, open) in BOTH_MODES.into_iter().flat_map(|mode| [(mode, 0), (mode, 1)]) {
            set_global(&mover.object, "keep_open", open);
            let _xdp = test.xdp(mode);
            for (outside, inside) in [(0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (1, 1)] {
                for number in 0..PACKETS {
                    let inner = tagged(inner.udp(&payload(number, 64)), inside);
                    let frame = tagged(tunnel.vxlan(overlay.vni(), &inner), outside);
                    send_frame(outer.tx().netns(), outer.tx().ifindex(), &frame).unwrap();
                }
                let records =
                    Records::collect(&mover.object, |records| records.count(Stage::Forward) as u64 >= PACKETS);
                let over_the_area = underlay == Family::V4 || open == 1;
                let lost = inside * usize::from(over_the_area);
                let expected = if lost == 0 { All } else { Nothing };
                let what = format!(
                    "{underlay:?}, {fillers} more keys, {mode}, open {open}, {outside} tags outside, {inside} inside"
                );
                assert_eq!(read_at(&records, Stage::TcIngress), expected, "{what}");
            }
        }
    }
}

/// Up to 7.1.4 the header is pushed over the metadata, from 7.1.5 the kernel drops that before.
#[test]
fn a_route_that_encapsulates_leaves_no_traits() {
    const HEADER: u32 = 20;
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::new();
    let mut object = lab.load("moves");
    let chain = Chain::new().unwrap();
    let (client, router, server) = (chain.client(), chain.router_out(), chain.server());
    let _egress = attach_tc(&object, "before", router, Direction::Egress);
    let pin = lab.bpffs().path().join("encapsulate");
    object.object_mut().progs_mut().find(|program| program.name() == "encapsulate").unwrap().pin(&pin).unwrap();
    let flow = Flow {
        ip: Flow::between(client, server, Family::V4, 0, 0).ip,
        ..Flow::between(client, chain.router_in(), Family::V4, 4000, TEST_PORT)
    };
    let (to, dev) = (server.ipv4(), router.name());
    for mode in BOTH_MODES {
        let _xdp = attach_xdp(&object, "assign_last", chain.router_in(), mode);
        let mut lengths = Vec::new();
        for (encap, expected) in [(String::new(), All), (format!("encap bpf xmit pinned {}", pin.display()), Nothing)] {
            router.netns().ip(&format!("route replace {to} dev {dev} {encap}")).unwrap();
            for number in 0..PACKETS {
                send_frame(client.netns(), client.ifindex(), &flow.udp(&payload(number, 200))).unwrap();
            }
            let records = Records::collect(&object, |records| records.count(Stage::TcIngress) as u64 >= PACKETS);
            assert_eq!(read_at(&records, Stage::TcIngress), expected, "{mode} {encap}");
            lengths.push(records.at(Stage::TcIngress).next().unwrap().len);
        }
        assert_eq!(lengths[1], lengths[0] + HEADER, "the route did encapsulate");
    }
}

/// A documented limit: where XDP pushes onto some packets and then sets traits, TC must not push as much onto others. What
/// an earlier packet's area left in the same buffer is then in front of this packet's new header, in place of its own. From
/// 6.19 the flow region moves along, and its stamp tells that the packet region below is not this packet's.
#[test]
fn what_tc_pushes_may_bring_up_an_earlier_packets_area_if_xdp_pushes_as_much() {
    const LEN: u64 = 104;
    const MANY: u64 = 512;
    if !common::area_enabled() {
        return;
    }
    let layout = Layout::new(32, 72).unwrap();
    assert_eq!(layout.area_len() as u64, LEN, "no shorter than the area, or this packet's own is written over it");
    let lab = Lab::empty(layout);
    lab.register_record_keys();
    let pair = Pair::new().unwrap();
    let mover = Mover::on(pair.rx(), &lab);
    let flow = Flow::between(pair.tx(), pair.rx(), Family::V4, 4000, TEST_PORT);
    let moves = metadata_moves();
    for mode in BOTH_MODES {
        let _xdp = attach_xdp(&mover.object, "assign_last", pair.rx(), mode);
        set_global(&mover.object, "push_head", LEN);
        mover.set_moves((Move::Room, LEN as i64), NOTHING);
        for number in 0..MANY {
            send_frame(pair.tx().netns(), pair.tx().ifindex(), &flow.udp(&payload(number, 400))).unwrap();
        }
        let records = Records::collect(&mover.object, |records| records.count(Stage::Forward) as u64 >= MANY);
        let set = records.set();
        let mut others = 0;
        for record in records.at(Stage::TcEgress).filter(|record| record.extra % 3 != 0) {
            if judge(record, &set).is_ok() {
                continue;
            }
            others += 1;
            // what XDP set on another packet
            assert_eq!(record.present, HAS_ALL, "{record:?}");
            assert_eq!(record.traits, set[&record.traits.seq]);
            assert!(!moves, "{record:?}");
            assert!(record.traits.seq < record.extra && record.traits.seq % 3 == 0, "{record:?}");
        }
        eprintln!("{mode}: {others} of {MANY} packets were read with an earlier packet's traits");
    }
}
