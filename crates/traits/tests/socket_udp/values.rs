//! Values of every type and in every layout: they are where the table of keys says, and nothing else is.

use std::{
    net::{Ipv4Addr, UdpSocket},
    path::Path,
};

use packet_traits::{
    KeyType, Layout, Merge, Value,
    attach::{Attachment, XdpMode},
    bind::{BoundObject, LoadedObject},
    registry::Registry,
    socket_programs::{AttachOptions, SocketPrograms},
};
use packet_traits_lab::{Cgroup, Family, Pair, udp_socket};
use packet_traits_socket::{Keys as SocketKeys, ReceiverOptions, Ring, SocketTraits, UdpTraits, abi::traits_key};

use crate::{
    SIZE,
    common::{
        self, BOTH_MODES, Lab, TEST_PORT, attach_xdp, compile_with,
        datagrams::{RawTraits, Way, key_name, key_table, recvmsg, ring},
        load_bound,
        sockets::{EVERY_TYPE, Setup, SocketLab},
        spec,
    },
    send,
};

/// What it sets them to, in that order.
fn every_value() -> Vec<Value> {
    let words = [3u64.to_ne_bytes(), (1u64 << 63).to_ne_bytes()].concat();
    vec![
        Value::U32(u32::MAX),
        Value::U64(u64::MAX),
        Value::Flag,
        Value::U8(200),
        Value::U16(65_000),
        Value::U128(u128::from_ne_bytes(words.try_into().unwrap())),
        Value::I64(-5),
        Value::Ipv4(Ipv4Addr::new(192, 0, 2, 1)),
        Value::Ipv6("2001:db8::1".parse().unwrap()),
        Value::Mac([2, 0, 0x5e, 0x10, 0, 1]),
        Value::Uuid([0x12, 0x3e, 0x45, 0x67, 0xe8, 0x9b, 0x12, 0xd3, 0xa4, 0x56, 0x42, 0x66, 0x14, 0x17, 0x40, 0]),
        Value::Timestamp(12_000_345_678),
    ]
}

fn every_type_lab() -> SocketLab {
    // 91 bytes of values
    let layout = Some(Layout::new(72, 80).unwrap());
    SocketLab::with(&Setup { keys: EVERY_TYPE, xdp: None, layout, ..Setup::default() })
}

#[test]
fn values_of_every_type_come_with_a_datagram() {
    if !common::area_enabled() {
        return;
    }
    let lab = every_type_lab();
    let object = lab.lab.load("every_type");
    for mode in BOTH_MODES {
        let _xdp = attach_xdp(&object, "assign", lab.pair.rx(), mode);
        let (client, socket) = (lab.udp_client(Family::V4), lab.udp(Family::V4));
        socket.receive_traits(true).unwrap();
        let keys = SocketKeys::of(&socket).unwrap();
        let names = || EVERY_TYPE.iter().map(|(name, _, _)| *name);
        let expected: Vec<_> = names().zip(every_value()).collect();

        let mut buffer = [0; SIZE];
        let [mut asks, mut maps] = [ReceiverOptions::new().without_ring(), ReceiverOptions::new().ring(&ring(&lab))]
            .map(|options| options.build(&socket).unwrap());
        send(&lab, &client, Family::V4, 0..5);
        let received = [
            socket.recv_with_traits(&keys, &mut buffer).unwrap().traits,
            asks.recv(&mut buffer).unwrap().traits,
            maps.recv(&mut buffer).unwrap().traits,
        ];
        let mut received = received.to_vec();
        while received.len() < 5 {
            let receiver = if received.len() == 3 { &mut asks } else { &mut maps };
            // one at a time: there may be two
            received.extend(receiver.recv_batch().unwrap().iter().map(|datagram| datagram.traits()));
        }
        for traits in received {
            let seen: Vec<_> = traits.iter(&keys).map(|(key, value)| (key.name().as_str(), value)).collect();
            assert_eq!(seen, expected);
        }

        // and by number
        send(&lab, &client, Family::V4, 0..1);
        let raw = RawTraits::of(&socket, recvmsg(&socket, SIZE, 0).unwrap().mark().unwrap());
        for (key, (name, value)) in key_table(&socket).iter().zip(&expected) {
            assert_eq!((key_name(key), key.key_type), (*name, value.key_type() as u8));
            assert_eq!(raw.present >> key.number & 1, 1);
            let bytes = &raw.values[key.offset.into()..][..key.size.into()];
            assert_eq!(Value::from_bytes(value.key_type(), bytes), Some(*value), "{name}");
        }
        assert_eq!(raw.present, (1 << expected.len()) - 1);
    }
}

#[test]
fn values_of_every_type_are_read_key_by_key() {
    if !common::area_enabled() {
        return;
    }
    let lab = every_type_lab();
    let socket = lab.udp(Family::V6);
    let keys = SocketKeys::of(&socket).unwrap();
    for (key, value) in keys.iter().zip(every_value()) {
        assert_eq!(socket.own_value(key).unwrap(), None);
        socket.set_value(key, &value).unwrap();
        assert_eq!(socket.own_value(key).unwrap(), Some(value));
    }
    let all: Vec<_> = socket.own_traits(&keys).unwrap().iter(&keys).map(|(_, value)| value).collect();
    assert_eq!(all, every_value());
}

/// Keys for `filled.bpf.c`: name, C type, the registry's type and merge policy; the bit is the place in the list.
type Filled = &'static [(&'static str, &'static str, KeyType, Merge)];

/// A layout and keys that fill it.
struct Case {
    layout: (usize, usize),
    keys: Filled,
}

const BLOCK: Merge = Merge::Block;
const FIRST: Merge = Merge::KeepFirst;

const CASES: [Case; 5] = [
    // the default
    Case {
        layout: (64, 80),
        keys: &[
            ("a1", "__u8", KeyType::U8, BLOCK),
            ("a8", "__u64", KeyType::U64, BLOCK),
            ("a2", "__u16", KeyType::U16, BLOCK),
            ("a16", "struct wide", KeyType::U128, BLOCK),
            ("b4", "__u32", KeyType::U32, FIRST),
            ("b16", "struct wide", KeyType::U128, FIRST),
            ("b1", "__u8", KeyType::U8, FIRST),
            ("b8", "__u64", KeyType::U64, FIRST),
        ],
    },
    // a packet region with room for one word
    Case {
        layout: (64, 40),
        keys: &[
            ("a4", "__u32", KeyType::U32, BLOCK),
            ("a16", "struct wide", KeyType::U128, BLOCK),
            ("a8", "__u64", KeyType::U64, BLOCK),
            ("b2", "__u16", KeyType::U16, FIRST),
            ("b1", "__u8", KeyType::U8, FIRST),
        ],
    },
    Case {
        layout: (32, 48),
        keys: &[
            ("a4", "__u32", KeyType::U32, BLOCK),
            ("a2", "__u16", KeyType::U16, BLOCK),
            ("b8", "__u64", KeyType::U64, FIRST),
            ("b4", "__u32", KeyType::U32, FIRST),
        ],
    },
    // no packet region
    Case {
        layout: (64, 0),
        keys: &[
            ("a16", "struct wide", KeyType::U128, BLOCK),
            ("a1", "__u8", KeyType::U8, BLOCK),
            ("a8", "__u64", KeyType::U64, BLOCK),
            ("a4", "__u32", KeyType::U32, BLOCK),
        ],
    },
    // as long as every measured driver has room for
    Case {
        layout: (120, 96), // 96 and 64 bytes of values
        keys: &[
            ("c0", "struct wide", KeyType::U128, BLOCK),
            ("c1", "struct wide", KeyType::U128, BLOCK),
            ("c2", "struct wide", KeyType::U128, BLOCK),
            ("c3", "struct wide", KeyType::U128, BLOCK),
            ("c4", "struct wide", KeyType::U128, BLOCK),
            ("c5", "struct wide", KeyType::U128, BLOCK),
            ("d0", "struct wide", KeyType::U128, FIRST),
            ("d1", "struct wide", KeyType::U128, FIRST),
            ("d2", "struct wide", KeyType::U128, FIRST),
            ("d3", "struct wide", KeyType::U128, FIRST),
        ],
    },
];

/// Bit of a number: the key with the bit 32 below is deleted again.
const DELETE_BIT: u32 = 32;

/// In a number: what is deleted again leaves its bytes in the packet.
const LEAVE: u64 = 1 << 62;

/// In a number: before the others are set, all keys are, and cleared.
const CLEAR: u64 = 1 << 63;

/// The first bytes of what `pattern` of `filled.bpf.c` makes of a number and a key's bit.
fn pattern(number: u64, bit: usize, len: usize) -> Vec<u8> {
    let word = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(bit as u64);
    [word.to_ne_bytes(), (!word).to_ne_bytes()].concat()[..len].to_vec()
}

/// A link whose receiver has a layout of its own, filled with keys, and XDP that sets them.
struct FilledLab {
    _xdp: Attachment,
    socket: UdpSocket,
    ring: Ring,
    /// Dropped last.
    _object: LoadedObject,
    client: UdpSocket,
    _lab: Lab,
    _cgroup: Cgroup,
}

impl FilledLab {
    fn new(case: &Case) -> FilledLab {
        let layout = Layout::new(case.layout.0, case.layout.1).unwrap();
        let (lab, pair, cgroup) = (Lab::empty(layout), Pair::new().unwrap(), Cgroup::new().unwrap());
        for (name, _, key_type, merge) in case.keys {
            lab.registry.register(&spec(name, *key_type, *merge)).unwrap();
        }
        let options = AttachOptions {
            cgroup: Some(cgroup.path().to_owned()),
            sockets: Some(1),
            slots: Some(64),
            ..AttachOptions::default()
        };
        SocketPrograms::attach(&lab.registry, &options).unwrap_or_else(|error| panic!("{error}"));
        let object = load_filled(case.keys, &lab);
        let xdp = attach_xdp(&object, "assign", pair.rx(), XdpMode::Native);
        let (tx, rx) = (pair.tx(), pair.rx());
        let addr = rx.addr(Family::V4, TEST_PORT);
        let socket = cgroup.enter(|| udp_socket(rx.netns(), addr)).unwrap();
        socket.receive_traits(true).unwrap();
        let client = udp_socket(tx.netns(), tx.addr(Family::V4, 0)).unwrap();
        client.connect(addr).unwrap();
        let ring = Ring::open(Registry::options().bpffs(lab.bpffs().path()).slots_path()).unwrap();
        FilledLab { _xdp: xdp, socket, ring, _object: object, client, _lab: lab, _cgroup: cgroup }
    }

    fn send(&self, number: u64) {
        self.client.send(&[number.to_be_bytes(), [0; 8]].concat()).unwrap();
    }
}

/// Compiles and loads `filled.bpf.c` with these keys.
fn load_filled(keys: Filled, lab: &Lab) -> LoadedObject {
    let key = |(bit, (name, c_type, _, merge)): (usize, &(&str, &str, KeyType, Merge))| {
        let merge = if *merge == BLOCK { "TRAIT_BLOCK" } else { "TRAIT_KEEP_FIRST" };
        format!("X({bit}, {name}, {c_type}, {merge})")
    };
    let keys: Vec<String> = keys.iter().enumerate().map(key).collect();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bpf/filled.bpf.c");
    let bytes = compile_with(packet_traits_lab::clang(), &source, &[&format!("-DKEYS(X)={}", keys.join(" "))]);
    let bound = BoundObject::from_bytes(&bytes, "filled", &lab.registry).unwrap();
    load_bound(bound)
}

/// Where a key's value is to be, by the layout alone: the values of the flow region are in front of those of the packet
/// region, and each region's end where its footer begins.
fn offset(case: &Case, key: &traits_key) -> usize {
    let (flow, packet) = case.layout;
    let distance = usize::from(key.distance);
    match Merge::from_code(key.merge).unwrap() {
        Merge::Block => flow - distance,
        Merge::KeepFirst | Merge::Discard => slots(case).0 + packet + flow - distance,
    }
}

/// Bytes for values in the flow region and in the packet region.
fn slots(case: &Case) -> (usize, usize) {
    match case.layout {
        (flow, 0) => (flow - 24, 0),
        (flow, packet) => (flow - 24, packet - 32),
    }
}

/// What comes with a datagram of this number: bits of keys that are set, and of those that were deleted after that.
fn expected(case: &Case, table: &[traits_key], number: u64) -> RawTraits {
    let (flow, packet) = slots(case);
    let len = flow + packet;
    let mut traits = RawTraits { flags: 1, values: vec![0; len], ..RawTraits::default() };
    for (bit, key) in table.iter().enumerate() {
        if number >> bit & 1 == 1 && number >> (bit as u32 + DELETE_BIT) & 1 == 0 {
            traits.present |= 1 << key.number;
            let place = usize::from(key.offset)..usize::from(key.offset) + usize::from(key.size);
            traits.values[place].copy_from_slice(&pattern(number, bit, key.size.into()));
        }
    }
    traits
}

/// Sends each number after one that sets all keys, so that their values may be left in the packet's memory and in the slots,
/// and compares every byte that the application gets.
fn assert_every_byte(case: &Case, lab: &FilledLab, numbers: &[u64]) {
    let table = key_table(&lab.socket);
    let names: Vec<_> = table.iter().map(|key| (key_name(key), usize::from(key.number))).collect();
    let registered: Vec<_> = case.keys.iter().map(|key| key.0).zip(0..).collect();
    assert_eq!(names, registered);
    let keys = SocketKeys::of(&lab.socket).unwrap();
    let all = (1 << case.keys.len()) - 1;
    let receiver = ReceiverOptions::new().ring(&lab.ring).build(&lab.socket).unwrap();
    let mut buffer = [0; SIZE];
    let recv = || RawTraits::of(&lab.socket, recvmsg(&lab.socket, SIZE, 0).unwrap().mark().unwrap());
    for number in numbers {
        let all_of_them = || {
            for _ in 0..2 {
                lab.send(all);
                assert_eq!(recv(), expected(case, &table, all));
            }
        };
        all_of_them();
        lab.send(*number);
        let expected = expected(case, &table, *number);
        assert_eq!(recv(), expected, "{number:#x} with layout {:?}", case.layout);

        all_of_them();
        let value = |key: &traits_key| {
            let bytes = &expected.values[key.offset.into()..][..key.size.into()];
            let value = Value::from_bytes(KeyType::from_code(key.key_type).unwrap(), bytes).unwrap();
            (expected.present >> key.number & 1 == 1).then(|| (key_name(key).to_owned(), value))
        };
        let values: Vec<_> = table.iter().filter_map(value).collect();
        for way in [Way::Once, Way::MappedReceiver] {
            lab.send(*number);
            let received = match way {
                Way::Once => lab.socket.recv_with_traits(&keys, &mut buffer),
                _ => receiver.recv(&mut buffer),
            };
            let traits = received.unwrap().traits;
            let seen: Vec<_> = traits.iter(&keys).map(|(key, value)| (key.name().to_string(), value)).collect();
            assert_eq!((traits.is_found(), seen), (true, values.clone()), "{number:#x} {way:?} {:?}", case.layout);
        }
    }
}

#[test]
fn offsets_follow_from_the_layout() {
    if !common::area_enabled() {
        return;
    }
    for case in &CASES {
        let lab = FilledLab::new(case);
        let mut used = Vec::new();
        for key in key_table(&lab.socket) {
            let start = usize::from(key.offset);
            assert_eq!(start, offset(case, &key), "{}", key_name(&key));
            used.extend(start..start + usize::from(key.size));
        }
        let bytes = used.len();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), bytes, "no two keys share a byte");
    }
}

#[test]
fn no_byte_comes_that_is_not_a_value() {
    if !common::area_enabled() {
        return;
    }
    for case in &CASES {
        let lab = FilledLab::new(case);
        let all = (1 << case.keys.len()) - 1;
        let mut numbers = vec![0, all, all & 0x5555, all & 0xaaaa];
        numbers.extend((0..case.keys.len()).flat_map(|bit| [1 << bit, all & !(1 << bit)]));
        assert_every_byte(case, &lab, &numbers);
    }
}

#[test]
fn no_byte_comes_of_a_key_that_was_deleted_again() {
    if !common::area_enabled() {
        return;
    }
    for case in &CASES {
        let lab = FilledLab::new(case);
        let all: u64 = (1 << case.keys.len()) - 1;
        let deleted = (0..case.keys.len()).map(|bit| 1 << bit).chain([all & 0x5555, all & 0xaaaa, all]);
        let mut numbers: Vec<u64> = deleted.map(|deleted| all | deleted << DELETE_BIT).collect();
        // all at once, by trait_clear; after that nothing, or every other one
        numbers.extend([CLEAR, all & 0x5555 | CLEAR, all & 0xaaaa | CLEAR]);
        assert_every_byte(case, &lab, &numbers);
    }
}

#[test]
fn no_byte_comes_of_a_value_whose_bit_is_off() {
    if !common::area_enabled() {
        return;
    }
    for case in &CASES {
        let lab = FilledLab::new(case);
        let all: u64 = (1 << case.keys.len()) - 1;
        let off = (0..case.keys.len()).map(|bit| 1 << bit).chain([all & 0x5555, all & 0xaaaa, all]);
        let numbers: Vec<u64> = off.map(|off| all | off << DELETE_BIT | LEAVE).collect();
        assert_every_byte(case, &lab, &numbers);
    }
}
