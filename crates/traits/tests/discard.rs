//! `discard` keys: read of a packet that is as XDP saw it, absent of one that GRO or the reassembly of fragments made of
//! several.

mod common;

use common::{
    Keys, Lab, attach_cgroup, attach_tc, attach_xdp,
    record::{read_variable, set_global},
    register,
    sockets::{Setup, SocketLab},
};
use etherparse::{IpFragOffset, Ipv4Header};
use packet_traits::{
    KeyType, Layout, Merge,
    attach::{CgroupHook, Direction, XdpMode},
    bind::LoadedObject,
    registry::Registry,
};
use packet_traits_lab::{
    End, Family, Mac, Overlay, Pair, VethOptions, VxlanOptions,
    frame::{ETHERNET_LEN, Flow, ethernet, with_vlan},
    recv_numbered, send_numbered, send_together, udp_socket,
};
use packet_traits_socket::{ReceiverOptions, Ring};

const KEYS: Keys = &[
    ("flow", KeyType::U64, Merge::Block),
    ("first", KeyType::U64, Merge::KeepFirst),
    ("only", KeyType::U64, Merge::Discard),
];
const PORT: u16 = common::TEST_PORT;
const SEGMENTS: u32 = 8;

/// `struct read`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Read {
    whole: u64,
    discarded: u64,
    wrong: u64,
    longest: u64,
}

impl Read {
    /// How many packets were whole, and how many not, since; and how many were ever wrong.
    fn since(&self, before: &Read) -> (u64, u64, u64) {
        (self.whole - before.whole, self.discarded - before.discarded, self.wrong)
    }
}

fn read_at(object: &LoadedObject, stage: &str) -> Read {
    let raw = read_variable(object.object(), stage, 32);
    let (words, _) = raw.as_chunks();
    let [whole, discarded, wrong, longest] = std::array::from_fn(|i| u64::from_ne_bytes(words[i]));
    Read { whole, discarded, wrong, longest }
}

fn load(lab: &Lab) -> LoadedObject {
    register(&lab.registry, KEYS);
    let object = lab.load("discard");
    let number = lab.registry.lookup(&common::name("only")).unwrap().unwrap().key.number();
    set_global(&object, "only_number", number as u64);
    object
}

/// What TC reads of a burst of segments of one flow, whose receiver merges packets or not.
fn burst(gro: bool, unsealed: bool, tunnelled: bool) -> Read {
    let lab = Lab::empty(Layout::DEFAULT);
    let object = load(&lab);
    set_global(&object, "unsealed", unsealed.into());
    let pair = Pair::with(&VethOptions::new().gro(gro)).unwrap();
    let overlay = tunnelled.then(|| Overlay::over(pair.clone(), &VxlanOptions::new(Family::V4)).unwrap());
    let stack_side: &End = overlay.as_ref().map_or(pair.rx(), |overlay| overlay.rx());
    let _xdp = attach_xdp(&object, "number", pair.rx(), XdpMode::Native);
    let _tc = attach_tc(&object, "look_tc", stack_side, Direction::Ingress);
    let mut frames = Flow::between(pair.tx(), pair.rx(), Family::V4, 40000, PORT).tcp_burst(1, SEGMENTS, 1000);
    if let Some(overlay) = &overlay {
        let outer = Flow::between(pair.tx(), pair.rx(), Family::V4, 40000, packet_traits_lab::VXLAN_PORT);
        let inner = Flow::between(overlay.tx(), overlay.rx(), Family::V4, 40000, PORT).tcp_burst(1, SEGMENTS, 1000);
        frames = inner.iter().map(|inner| outer.vxlan(overlay.vni(), inner)).collect();
    }
    if gro {
        send_together(pair.tx(), pair.rx(), &frames).unwrap();
    } else {
        for frame in &frames {
            packet_traits_lab::send_frame(pair.tx().netns(), pair.tx().ifindex(), frame).unwrap();
        }
    }
    let done = |read: &Read| read.whole + read.discarded + read.wrong >= SEGMENTS.into() || read.longest > 7000;
    common::until(|| read_at(&object, "at_tc"), done)
}

#[test]
fn of_merged_packets_nothing_is_read() {
    if !common::area_enabled() {
        return;
    }
    for tunnelled in [false, true] {
        let merged = burst(true, false, tunnelled);
        assert_eq!((merged.whole, merged.discarded, merged.wrong), (0, 1, 0), "{merged:?}");
        let apart = burst(false, false, tunnelled);
        assert_eq!((apart.whole, apart.discarded, apart.wrong), (SEGMENTS.into(), 0, 0), "{apart:?}");
    }
    // how long the packet was is known of a sealed area only
    let open = burst(false, true, false);
    assert_eq!((open.whole, open.discarded, open.wrong), (0, SEGMENTS.into(), 0), "{open:?}");
}

/// Sends datagrams of these sizes through XDP, to a receiver that reads the key or, where that is said, does not.
fn datagrams(veth: &VethOptions, xdp: &str, sizes: &[(usize, bool)]) {
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::empty(Layout::DEFAULT);
    let object = load(&lab);
    let pair = Pair::with(veth).unwrap();
    let _cgroup = attach_cgroup(&object, "look_cgroup", CgroupHook::Ingress);
    for (mode, family) in common::BOTH_MODES.into_iter().flat_map(|mode| Family::BOTH.map(|family| (mode, family))) {
        let _xdp = attach_xdp(&object, xdp, pair.rx(), mode);
        let receiver = udp_socket(pair.rx().netns(), pair.rx().addr(family, PORT)).unwrap();
        let sender = udp_socket(pair.tx().netns(), pair.tx().addr(family, 0)).unwrap();
        for &(size, whole) in sizes {
            let before = read_at(&object, "at_cgroup");
            send_numbered(&sender, pair.rx().addr(family, PORT), 5..6, size).unwrap();
            assert_eq!(recv_numbered(&receiver).unwrap(), 5);
            let read = read_at(&object, "at_cgroup").since(&before);
            assert_eq!(read, (whole.into(), (!whole).into(), 0), "{mode}, {family:?}, {size} bytes");
        }
    }
}

#[test]
fn of_reassembled_packets_nothing_is_read() {
    // the last fits just so, and must not be taken for more than it was
    let sizes = [(100, true), (3000, false), (1400, true), (8000, false), (18, true)];
    datagrams(&VethOptions::new(), "number", &sizes);
}

/// The length of a packet in several buffers is that of all of them.
#[test]
fn of_a_packet_in_several_buffers_it_is_read() {
    datagrams(&VethOptions::new().mtu(9000), "number_frags", &[(8000, true), (20000, false)]);
}

/// Also of a key that came after the programs which serve sockets.
#[test]
fn an_application_gets_no_value_of_a_reassembled_datagram() {
    if !common::area_enabled() {
        return;
    }
    let lab = SocketLab::with(&Setup { xdp: None, ..Setup::default() });
    let object = load(&lab.lab);
    let _xdp = attach_xdp(&object, "number", lab.pair.rx(), XdpMode::Native);
    let (client, socket) = (lab.udp_client(Family::V4), lab.udp(Family::V4));
    for by_ring in [true, false] {
        let ring = Ring::open(Registry::options().bpffs(lab.lab.bpffs().path()).slots_path()).unwrap();
        let options = ReceiverOptions::new();
        let options = if by_ring { options.ring(&ring) } else { options.without_ring() };
        let receiver = options.build(socket.try_clone().unwrap()).unwrap();
        let keys = receiver.keys();
        let (first, only) = (keys.typed::<u64>("first").unwrap(), keys.typed::<u64>("only").unwrap());
        for (size, whole) in [(100, true), (3000, false)] {
            send_numbered(&client, lab.addr(Family::V4), 0..1, size).unwrap();
            let traits = receiver.recv(&mut [0; 4000]).unwrap().traits;
            let number = traits.get(&first).expect("a number");
            assert_eq!(traits.get(&only), whole.then_some(number), "{size} bytes, by ring {by_ring}");
        }
    }
}

/// A UDP datagram over IPv4 in two fragments, of which the second has this many bytes.
fn fragments(frame: &[u8], tail: usize) -> [Vec<u8>; 2] {
    let (ethernet, packet) = frame.split_at(ETHERNET_LEN);
    let (header, payload) = Ipv4Header::from_slice(packet).unwrap();
    let cut = payload.len() - tail;
    assert!(cut.is_multiple_of(8), "a fragment but the last has a multiple of 8 bytes");
    let fragment = |payload: &[u8], start: usize, more_fragments: bool| {
        let fragment_offset = IpFragOffset::try_new((start / 8) as u16).unwrap();
        let mut header = Ipv4Header { dont_fragment: false, more_fragments, fragment_offset, ..header.clone() };
        header.set_payload_len(payload.len()).unwrap();
        header.header_checksum = header.calc_header_checksum();
        [ethernet, &header.to_bytes(), payload].concat()
    };
    [fragment(&payload[..cut], 0, true), fragment(&payload[cut..], cut, false)]
}

/// What the kernel takes off a frame, a VLAN tag in front and what pads it behind, makes no room for another fragment.
#[test]
fn a_short_fragment_does_not_hide_behind_tags_and_padding() {
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::empty(Layout::DEFAULT);
    let object = load(&lab);
    let pair = Pair::new().unwrap();
    let _cgroup = attach_cgroup(&object, "look_cgroup", CgroupHook::Ingress);
    let receiver = udp_socket(pair.rx().netns(), pair.rx().addr(Family::V4, PORT)).unwrap();
    let flow = Flow::between(pair.tx(), pair.rx(), Family::V4, 4000, PORT);
    for mode in common::BOTH_MODES {
        let _xdp = attach_xdp(&object, "number", pair.rx(), mode);
        for (tags, padding, tail) in [0, 1, 2]
            .into_iter()
            .flat_map(|tags| [0, 18].map(|padding| (tags, padding)))
            .flat_map(|(tags, padding)| [None, Some(1), Some(4), Some(8)].map(|tail| (tags, padding, tail)))
        {
            // 8 bytes of UDP, the number, and what makes the first fragment's length a multiple of 8
            let datagram = flow.udp(&vec![0; 64 + tail.unwrap_or(0)]);
            let frames = tail.map_or_else(|| vec![datagram.clone()], |tail| fragments(&datagram, tail).to_vec());
            let before = read_at(&object, "at_cgroup");
            for frame in frames {
                let tagged = (0..tags).fold(frame, |frame, _| with_vlan(&frame, 0, 0));
                let frame = [tagged, vec![0xee; padding]].concat();
                packet_traits_lab::send_frame(pair.tx().netns(), pair.tx().ifindex(), &frame).unwrap();
            }
            assert_eq!(recv_numbered(&receiver).unwrap(), 0);
            let read = read_at(&object, "at_cgroup").since(&before);
            let whole = tail.is_none();
            assert_eq!(
                read,
                (whole.into(), (!whole).into(), 0),
                "{mode}, {tags} tags, {padding} bytes of padding, {tail:?} bytes in the second fragment"
            );
        }
    }
}

/// Nothing merges packets other than IP. Behind a third tag, or PPPoE, it is not known what they are.
#[test]
fn of_packets_other_than_ip_it_is_read() {
    const LOCAL_EXPERIMENT: u16 = 0x88b5;
    const PPPOE_SESSION: u16 = 0x8864;
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::empty(Layout::DEFAULT);
    let object = load(&lab);
    let pair = Pair::new().unwrap();
    let _tc = attach_tc(&object, "look_tc_local", pair.rx(), Direction::Ingress);
    let local = ethernet(Mac([0xff; 6]), pair.tx().mac(), LOCAL_EXPERIMENT, &[0; 46]);
    let tagged = |count| (0..count).fold(local.clone(), |frame, _| with_vlan(&frame, 5, 0));
    // what TC looks for is behind this header, as behind a tag
    let pppoe = [&local[..12], &PPPOE_SESSION.to_be_bytes(), &[0x11, 0], &local[12..]].concat();
    for mode in common::BOTH_MODES {
        let _xdp = attach_xdp(&object, "number", pair.rx(), mode);
        for (what, frame, known) in [
            ("no tag", tagged(0), true),
            ("a tag", tagged(1), true),
            ("two tags", tagged(2), true),
            ("three tags", tagged(3), false),
            ("PPPoE", pppoe.clone(), false),
        ] {
            let before = read_at(&object, "at_tc_local");
            packet_traits_lab::send_frame(pair.tx().netns(), pair.tx().ifindex(), &frame).unwrap();
            let read = common::until(|| read_at(&object, "at_tc_local").since(&before), |read| *read != (0, 0, 0));
            assert_eq!(read, (known.into(), (!known).into(), 0), "{mode}, {what}");
        }
    }
}
