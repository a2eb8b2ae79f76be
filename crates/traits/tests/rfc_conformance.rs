//! What the RFC "traits: Per packet metadata KV store" asks of its calls holds for ours, on the running kernel: its
//! selftest, in the value sizes of both of its versions and those asked for in its review, by key number (`rfc.bpf.h`)
//! and by name (`traits.bpf.h`).
//!
//! A test is a list of calls with what each must answer. `bpf/rfc.bpf.c` carries it out on one packet. The same list
//! for the RFC's packed store is in packet-traits-core.

mod common;

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    time::Duration,
};

use common::{BOTH_MODES, Lab, attach_tc, attach_xdp, compile_with, load_bound, program, record, spec, test_run};
use libbpf_rs::{MapCore, MapFlags, ObjectBuilder};
use libc::{EBUSY, EINVAL, ENOENT, ENOSPC, EOPNOTSUPP};
use packet_traits::{
    KeyType, Layout, Merge, Region, TraitsView,
    attach::{Direction, socket},
    bind::{BoundObject, LoadedObject},
    layout::FLOW_FOOTER_LEN,
    registry::{Registry, RegistryError},
};
use packet_traits_lab::{
    Mac, PacketSocket, Pair,
    frame::{ETHERTYPE_EXPERIMENTAL, ethernet},
    send_frame,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Op {
    Get,
    Set,
    Del,
    IsSet,
}

/// One call and what it must answer: `struct call` in `rfc.bpf.c`.
#[derive(Clone, Debug)]
struct Call {
    op: Op,
    key: u64,
    len: usize,
    flags: u64,
    /// To set, or what a get must read.
    value: Vec<u8>,
    /// What it must return.
    ret: i32,
}

/// `sizeof(struct call)`.
const CALL_LEN: usize = 64;
/// `MAX_CALLS`
const MAX_CALLS: usize = 1024;
/// `sizeof(struct read)`.
const READ_LEN: usize = 36;

impl Call {
    fn encode(&self) -> [u8; CALL_LEN] {
        let mut raw = [0; CALL_LEN];
        raw[..4].copy_from_slice(&(self.op as u32).to_ne_bytes());
        raw[8..16].copy_from_slice(&self.key.to_ne_bytes());
        raw[16..24].copy_from_slice(&(self.len as u64).to_ne_bytes());
        raw[24..32].copy_from_slice(&self.flags.to_ne_bytes());
        if self.op == Op::Set {
            raw[32..32 + self.value.len()].copy_from_slice(&self.value);
        }
        raw
    }
}

/// A list of calls, in order.
#[derive(Clone, Debug, Default)]
struct Script(Vec<Call>);

impl Script {
    fn call(&mut self, op: Op, key: u64, len: usize, ret: i32) -> &mut Call {
        self.0.push(Call { op, key, len, flags: 0, value: Vec::new(), ret });
        self.0.last_mut().unwrap()
    }

    fn set(&mut self, key: u64, value: Vec<u8>) {
        let len = value.len();
        self.call(Op::Set, key, len, 0).value = value;
    }

    fn get(&mut self, key: u64, value: Vec<u8>) {
        let len = value.len();
        self.call(Op::Get, key, len, len as i32).value = value;
    }

    /// Every key is there or not, as `expected` says.
    fn check(&mut self, keys: u64, size: usize, expected: impl Fn(u64) -> Option<Vec<u8>>) {
        for key in 0..keys {
            match expected(key) {
                Some(value) => {
                    self.get(key, value);
                    self.call(Op::IsSet, key, 0, 1);
                }
                None => {
                    self.call(Op::Get, key, size, -ENOENT);
                    self.call(Op::IsSet, key, 0, 0);
                }
            }
        }
    }

    /// The RFC's selftest for keys of one size.
    fn selftest(keys: u64, size: usize) -> Script {
        let mut script = Script::default();
        script.check(keys, size, |_| None);
        for key in 0..keys {
            script.set(key, value(key, size, 0));
        }
        script.check(keys, size, |key| Some(value(key, size, 0)));
        for key in 0..keys {
            script.set(key, value(key, size, 1));
        }
        for key in 0..keys {
            script.get(key, value(key, size, 1));
        }
        for key in (0..keys).step_by(2) {
            script.call(Op::Del, key, 0, 0);
        }
        for key in (0..keys).step_by(2) {
            script.call(Op::Del, key, 0, -ENOENT);
        }
        script.check(keys, size, |key| (key % 2 == 1).then(|| value(key, size, 1)));
        for key in (0..keys).step_by(2) {
            script.set(key, value(key, size, 2));
        }
        for key in 0..keys {
            script.get(key, value(key, size, if key % 2 == 1 { 1 } else { 2 }));
        }
        script
    }

    /// What must be refused while keys `0..keys` hold values of `size` bytes and no others are registered.
    fn refusals(keys: u64, size: usize) -> Script {
        let mut script = Script::default();
        for key in 0..keys {
            script.set(key, value(key, size, 3));
        }
        for key in [64, 65, 127, 128, 1 << 32, u64::MAX] {
            script.call(Op::Set, key, size, -EINVAL);
            script.call(Op::Get, key, size, -EINVAL);
            script.call(Op::Del, key, 0, -EINVAL);
            script.call(Op::IsSet, key, 0, -EINVAL);
        }
        if keys < 64 {
            for key in [keys, 63] {
                script.call(Op::Set, key, size, -EINVAL);
                script.call(Op::Get, key, size, -ENOENT);
                script.call(Op::Del, key, 0, -ENOENT);
                script.call(Op::IsSet, key, 0, 0);
            }
        }
        for key in [0, keys - 1] {
            for bad in [3, 17, 32] {
                script.call(Op::Set, key, bad, -EINVAL);
            }
            for other in [0, 1, 2, 4, 8, 16].into_iter().filter(|other| *other != size) {
                script.call(Op::Set, key, other, -EBUSY);
            }
            script.call(Op::Set, key, size, -EINVAL).flags = 1;
            for small in [0, 1, 2, 3, 4, 8].into_iter().filter(|small| *small < size) {
                script.call(Op::Get, key, small, -ENOSPC);
            }
            for large in [1, 2, 3, 4, 8, 16, 17, 32].into_iter().filter(|large| *large > size) {
                script.call(Op::Get, key, large, size as i32).value = value(key, size, 3);
            }
        }
        script.check(keys, size, |key| Some(value(key, size, 3)));
        script.call(Op::Del, 0, 0, 0);
        // not set comes before too small
        script.call(Op::Get, 0, 0, -ENOENT);
        script.set(0, value(0, size, 4));
        script.check(keys, size, |key| Some(value(key, size, if key == 0 { 4 } else { 3 })));
        script
    }

    fn write(&self, object: &LoadedObject) {
        assert!(self.0.len() <= MAX_CALLS, "{} calls", self.0.len());
        let calls = object.map("calls").unwrap();
        for (index, call) in self.0.iter().enumerate() {
            calls.update(&(index as u32).to_ne_bytes(), &call.encode(), MapFlags::ANY).unwrap();
        }
        record::set_global(object, "count", self.0.len() as u64);
        record::set_global(object, "done", 0);
    }

    #[track_caller]
    fn assert_answers(&self, object: &LoadedObject) {
        assert_eq!(record::global(object, "done"), 1, "one packet had the calls done to it");
        let calls = object.map("calls").unwrap();
        for (index, call) in self.0.iter().enumerate() {
            let raw = calls.lookup(&(index as u32).to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
            let ret = i32::from_ne_bytes(raw[4..8].try_into().unwrap());
            assert_eq!(ret, call.ret, "call {index}: {call:?}");
            if call.op == Op::Get && ret >= 0 {
                assert_eq!(raw[32..32 + ret as usize], call.value[..], "call {index}: {call:?}");
                assert!(
                    raw[32 + ret as usize..].iter().all(|byte| *byte == 0),
                    "it wrote more than the value: {raw:x?}"
                );
            }
        }
    }
}

/// A value that no other key and no other round has, in any two bytes.
fn value(key: u64, size: usize, round: u64) -> Vec<u8> {
    (0..size).map(|i| (key * 4 + round + 1) as u8 ^ (i as u8).wrapping_mul(37)).collect()
}

/// A registry that is full of keys `k0`, `k1`, … of one type.
struct Full {
    lab: Lab,
    keys: u64,
    key_type: KeyType,
}

impl Full {
    /// The flow region first, then the packet region.
    fn of(key_type: KeyType, layout: Layout) -> Full {
        let lab = Lab::empty(layout);
        let mut keys = 0;
        let refused = loop {
            let key = format!("k{keys}");
            let refused = match lab.registry.register(&spec(&key, key_type, Merge::Block)) {
                Err(RegistryError::RegionFull { .. }) => {
                    lab.registry.register(&spec(&key, key_type, Merge::KeepFirst)).err()
                }
                other => other.err(),
            };
            match refused {
                None => keys += 1,
                Some(error) => break error,
            }
        };
        assert_eq!(refused.errno(), ENOSPC, "{refused}");
        Full { lab, keys, key_type }
    }

    fn size(&self) -> usize {
        self.key_type.size()
    }

    fn load(&self, defines: &[&str]) -> LoadedObject {
        load(&self.lab.registry, defines)
    }
}

fn compile(defines: &[&str]) -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bpf/rfc.bpf.c");
    compile_with(packet_traits_lab::clang(), &source, defines)
}

fn load(registry: &Registry, defines: &[&str]) -> LoadedObject {
    let bound = BoundObject::from_bytes(&compile(defines), "rfc.bpf.c", registry).unwrap();
    load_bound(bound)
}

/// A frame that the programs work on.
fn frame() -> Vec<u8> {
    ethernet(Mac([2; 6]), Mac([4; 6]), ETHERTYPE_EXPERIMENTAL, &[0x5a; 50])
}

/// Runs a program on a packet without an interface. Returns the metadata it leaves.
fn test_run(program: BorrowedFd<'_>) -> Vec<u8> {
    let ran = test_run::xdp(program, &[], &frame());
    assert_eq!((ran.verdict, ran.packet), (libbpf_sys::XDP_PASS, frame()));
    ran.metadata
}

/// Runs a list on a packet without an interface.
fn run(object: &LoadedObject, program: &str, script: &Script) -> Vec<u8> {
    script.write(object);
    let meta = test_run(object.program(program).unwrap().as_fd());
    script.assert_answers(object);
    meta
}

/// Each type with the layout that holds most of its keys on every driver, and how many that is.
fn sizes() -> [(KeyType, Layout, u64); 8] {
    let layout = |flow, packet| Layout::new(flow, packet).unwrap();
    [
        (KeyType::Flag, layout(16, 0), 64),
        (KeyType::U8, layout(88, 0), 64),
        (KeyType::U16, layout(152, 0), 64),
        (KeyType::U16, layout(88, 96), 64),
        (KeyType::U32, layout(216, 0), 48),
        (KeyType::U32, layout(112, 104), 40),
        (KeyType::U64, layout(216, 0), 24),
        (KeyType::U128, layout(216, 0), 12),
    ]
}

#[test]
fn the_selftest_passes_by_number_for_every_value_size() {
    if !common::area_enabled() {
        return;
    }
    for (key_type, layout, keys) in sizes() {
        let full = Full::of(key_type, layout);
        assert_eq!(full.keys, keys, "{key_type} keys in {layout:?}");
        let object = full.load(&[]);
        let meta = run(&object, "call_by_number", &Script::selftest(keys, full.size()));
        // the other implementation of the area reads the same
        let registry = &full.lab.registry;
        let view = TraitsView::open(&meta, &registry.layout(), &registry.nonces()).unwrap();
        for entry in registry.list().unwrap() {
            let number = entry.key.number() as u64;
            let expected = value(number, full.size(), if number % 2 == 1 { 1 } else { 2 });
            assert_eq!(view.bytes(&entry.key), Some(&expected[..]), "{}", entry.key.name());
        }
    }
}

#[test]
fn the_selftest_passes_by_name_for_every_value_size() {
    if !common::area_enabled() {
        return;
    }
    for (key_type, merge, type_define) in [
        (KeyType::Flag, Merge::Block, None),
        (KeyType::Flag, Merge::KeepFirst, None),
        (KeyType::U8, Merge::Block, Some("__u8")),
        (KeyType::U16, Merge::Block, Some("__u16")),
        (KeyType::U16, Merge::KeepFirst, Some("__u16")),
        (KeyType::U32, Merge::Block, Some("__u32")),
        (KeyType::U64, Merge::KeepFirst, Some("__u64")),
        (KeyType::U128, Merge::Block, Some("type16")),
        (KeyType::U128, Merge::KeepFirst, Some("type16")),
    ] {
        let keys = if key_type.size() <= 2 { 64 } else { 8 };
        let space = keys as usize * key_type.size();
        let layout = match merge {
            Merge::Block => Layout::for_slot_space(space, 0),
            _ => Layout::for_slot_space(0, space.max(8)),
        };
        let lab = Lab::empty(layout.unwrap());
        for key in 0..keys {
            lab.registry.register(&spec(&format!("k{key}"), key_type, merge)).unwrap();
        }
        let mut defines = vec![format!("-DKEYS={keys}"), format!("-DMERGE={}", merge as u8)];
        defines.extend(type_define.map(|c_type| format!("-DTYPE={c_type}")));
        defines.push(format!("-DTYPE_SIZE={}", key_type.size()));
        let defines: Vec<&str> = defines.iter().map(String::as_str).collect();
        let object = load(&lab.registry, &defines);
        assert_eq!(object.binding().keys().len(), keys as usize);
        let script = Script::selftest(keys, key_type.size());
        let meta = run(&object, "call_by_name", &script);
        // by number it is the same store
        assert_eq!(meta.len(), run(&object, "call_by_number", &script).len());
    }
}

#[test]
fn wrong_keys_lengths_and_flags_are_refused_and_change_nothing() {
    if !common::area_enabled() {
        return;
    }
    for (key_type, layout, keys) in sizes() {
        let full = Full::of(key_type, layout);
        run(&full.load(&[]), "call_by_number", &Script::refusals(keys, full.size()));
    }
}

#[test]
fn keys_of_all_sizes_live_side_by_side() {
    if !common::area_enabled() {
        return;
    }
    let lab = Lab::empty(Layout::new(112, 104).unwrap());
    let types = [KeyType::U8, KeyType::U16, KeyType::Flag, KeyType::U32, KeyType::U64, KeyType::U128, KeyType::Mac];
    let mut sizes = Vec::new();
    for (number, key_type) in types.into_iter().cycle().take(64).enumerate() {
        let merges = if number % 2 == 0 { [Merge::Block, Merge::KeepFirst] } else { [Merge::KeepFirst, Merge::Block] };
        let registered = merges
            .into_iter()
            .find_map(|merge| lab.registry.register(&spec(&format!("k{}", sizes.len()), key_type, merge)).ok());
        if let Some(entry) = registered {
            assert_eq!(entry.key.number(), sizes.len());
            sizes.push(key_type.size());
        }
    }
    assert!(sizes.len() > 24 && [0, 1, 2, 4, 8, 16].iter().all(|size| sizes.contains(size)), "{sizes:?}");

    let object = load(&lab.registry, &[]);
    let mut script = Script::default();
    let check = |script: &mut Script, expected: &dyn Fn(usize) -> Option<u64>| {
        for (key, size) in sizes.iter().enumerate() {
            match expected(key) {
                Some(round) => script.get(key as u64, value(key as u64, *size, round)),
                None => drop(script.call(Op::Get, key as u64, *size, -ENOENT)),
            }
        }
    };
    for round in 0..2 {
        for (key, size) in sizes.iter().enumerate() {
            script.set(key as u64, value(key as u64, *size, round));
        }
        check(&mut script, &|_| Some(round));
    }
    for third in 0..3 {
        for key in (0..sizes.len()).filter(|key| key % 3 == third) {
            script.call(Op::Del, key as u64, 0, 0);
        }
        check(&mut script, &|key| (key % 3 > third).then_some(1));
    }
    run(&object, "call_by_number", &script);
}

/// A value `struct read` of `rfc.bpf.c`.
struct Read {
    ret: i32,
    is_set: i32,
    too_small: i32,
    set: i32,
    del: i32,
    value: Vec<u8>,
}

fn reads(object: &LoadedObject, map: &str) -> Vec<Read> {
    let map = object.map(map).unwrap();
    (0u32..65)
        .map(|key| {
            let raw = map.lookup(&key.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
            assert_eq!(raw.len(), READ_LEN, "struct read has changed");
            let word = |i: usize| i32::from_ne_bytes(raw[4 * i..4 * i + 4].try_into().unwrap());
            Read {
                ret: word(0),
                is_set: word(1),
                too_small: word(2),
                set: word(3),
                del: word(4),
                value: raw[20..].to_vec(),
            }
        })
        .collect()
}

#[test]
fn a_live_packet_passes_the_selftest_and_is_read_by_number_in_tc_and_in_a_socket_filter() {
    if !common::area_enabled() {
        return;
    }
    for mode in BOTH_MODES {
        for (key_type, layout, keys) in sizes() {
            let full = Full::of(key_type, layout);
            let size = full.size();
            let object = full.load(&[]);
            let pair = Pair::new().unwrap();
            let _xdp = attach_xdp(&object, "call_by_number", pair.rx(), mode);
            let _tc = attach_tc(&object, "tc_read", pair.rx(), Direction::Ingress);
            let capture = PacketSocket::on(pair.rx()).unwrap();
            let _filter = socket::attach(program(&object, "filter_read").as_fd(), capture.as_fd()).unwrap();

            // the last round leaves key 1 without a value, if there is one
            let mut script = Script::selftest(keys, size);
            script.call(Op::Del, 1, 0, 0);
            script.write(&object);
            send_frame(pair.tx().netns(), pair.tx().ifindex(), &frame()).unwrap();
            capture.wait_for(Duration::from_secs(5), |seen| seen.bytes == frame()).unwrap();
            script.assert_answers(&object);

            let counted = || reads(&object, "tc_reads")[64].ret;
            assert_ne!(common::until(counted, |ret| *ret != 0), 0, "the packet did not come to TC");
            for map in ["tc_reads", "filter_reads"] {
                for (key, read) in reads(&object, map).into_iter().enumerate() {
                    let what = format!("{key_type} key {key} in {map}, {mode:?}");
                    let (ret, is_set, too_small) = match key as u64 {
                        64 => (-EINVAL, -EINVAL, -EINVAL),
                        number if number >= keys || number == 1 => (-ENOENT, 0, -ENOENT),
                        _ => (size as i32, 1, if size == 0 { 0 } else { -ENOSPC }),
                    };
                    assert_eq!((read.ret, read.is_set, read.too_small), (ret, is_set, too_small), "{what}");
                    assert_eq!((read.set, read.del), (-EOPNOTSUPP, -EOPNOTSUPP), "{what}");
                    if ret >= 0 {
                        let expected = value(key as u64, size, if key % 2 == 1 { 1 } else { 2 });
                        assert_eq!(read.value[..size], expected, "{what}");
                        assert!(read.value[size..].iter().all(|byte| *byte == 0), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn without_headroom_for_the_area_set_answers_no_space_and_changes_nothing() {
    if !common::area_enabled() {
        return;
    }
    // native XDP has 256 bytes of headroom less struct xdp_frame (40)
    for (layout, fits) in [((112, 104), true), ((112, 112), false), ((216, 0), true), ((224, 0), false)] {
        let lab = Lab::empty(Layout::new(layout.0, layout.1).unwrap());
        let merge = if layout.1 == 0 { Merge::Block } else { Merge::KeepFirst };
        lab.registry.register(&spec("k0", KeyType::U64, merge)).unwrap();
        let object = load(&lab.registry, &[]);
        let mut script = Script::default();
        if fits {
            script.set(0, value(0, 8, 0));
            script.get(0, value(0, 8, 0));
        } else {
            script.call(Op::Set, 0, 8, -ENOSPC);
            script.call(Op::Get, 0, 8, -ENOENT);
            script.call(Op::IsSet, 0, 0, 0);
            script.call(Op::Del, 0, 0, -ENOENT);
        }
        let meta = run(&object, "call_by_number", &script);
        assert_eq!(meta.len(), if fits { layout.0 + layout.1 } else { 0 }, "{layout:?}");
    }
}

#[test]
fn nothing_is_set_until_something_is_and_reading_reserves_nothing() {
    if !common::area_enabled() {
        return;
    }
    let full = Full::of(KeyType::U16, Layout::new(152, 0).unwrap());
    let object = full.load(&[]);
    let mut script = Script::default();
    script.check(64, 2, |_| None);
    for key in 0..64 {
        script.call(Op::Del, key, 0, -ENOENT);
    }
    assert_eq!(run(&object, "call_by_number", &script), [0u8; 0]);
}

#[test]
fn deleted_keys_leave_no_byte() {
    if !common::area_enabled() {
        return;
    }
    for (key_type, layout, keys) in sizes() {
        let full = Full::of(key_type, layout);
        let object = full.load(&[]);
        let mut script = Script::default();
        for key in 0..keys {
            script.set(key, value(key, full.size(), 0));
        }
        for key in 0..keys {
            script.call(Op::Del, key, 0, 0);
        }
        let meta = run(&object, "call_by_number", &script);
        let nonces = full.lab.registry.nonces();
        let (packet, flow) = meta.split_at(layout.region_len(Region::Packet));
        for (region, own) in [(packet, nonces.packet), (flow, nonces.flow)].iter().filter(|region| !region.0.is_empty())
        {
            let (rest, nonce) = region.split_at(region.len() - 8);
            // what is in front of the presence bits: a stamp, or a check
            let has_mark = *own == nonces.packet || layout.footer_len(Region::Flow) == FLOW_FOOTER_LEN;
            let stamp = if has_mark { rest.len() - 16..rest.len() - 8 } else { 0..0 };
            let rest = [&rest[..stamp.start], &rest[stamp.end..]].concat();
            assert!(rest.iter().all(|byte| *byte == 0), "{key_type}: {rest:x?}");
            assert_eq!(nonce, own.to_ne_bytes());
        }
    }
}

#[test]
fn an_unbound_program_refuses_every_set_and_touches_no_packet() {
    if !common::area_enabled() {
        return;
    }
    for defines in [&[][..], &["-DKEYS=64", "-DTYPE=__u16"], &["-DKEYS=64"]] {
        let object = ObjectBuilder::default().open_memory(&compile(defines)).unwrap().load().unwrap();
        for program in object.progs().filter(|program| program.name().to_string_lossy().starts_with("call_by")) {
            let name = program.name().to_string_lossy().into_owned();
            let size = if defines.len() == 1 { 0 } else { 2 };
            let calls: Vec<(Op, usize, i32)> =
                vec![(Op::Set, size, -EOPNOTSUPP), (Op::Get, size, -ENOENT), (Op::IsSet, 0, 0), (Op::Del, 0, -ENOENT)];
            let map = object.maps().find(|map| map.name() == "calls").unwrap();
            for (index, (op, len, ret)) in calls.iter().enumerate() {
                let call = Call { op: *op, key: 5, len: *len, flags: 0, value: vec![7; *len], ret: *ret };
                map.update(&(index as u32).to_ne_bytes(), &call.encode(), MapFlags::ANY).unwrap();
            }
            let bss = object.maps().find(|map| map.name().to_string_lossy().ends_with(".bss")).unwrap();
            // `count` and `done`, in the order the compiler chose: both are set, one of them to no effect
            let counts = [calls.len() as u64, calls.len() as u64].map(u64::to_ne_bytes).concat();
            bss.update(&[0; 4], &counts, MapFlags::ANY).unwrap();
            assert_eq!(test_run(program.as_fd()), [0u8; 0], "{name} {defines:?}");
            for (index, (op, _, ret)) in calls.iter().enumerate() {
                let raw = map.lookup(&(index as u32).to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
                assert_eq!(i32::from_ne_bytes(raw[4..8].try_into().unwrap()), *ret, "{op:?} in {name} {defines:?}");
            }
        }
    }
}

#[test]
fn a_key_that_was_registered_after_binding_is_left_alone() {
    if !common::area_enabled() {
        return;
    }
    let lab = common::Lab::empty(Layout::DEFAULT);
    for merge in [Merge::Block, Merge::KeepFirst] {
        let name = |when: &str| format!("{when}-{merge}");
        lab.registry.register(&common::spec(&name("before"), KeyType::U32, merge)).unwrap();
        let earlier = load(&lab.registry, &[]);
        let late = lab.registry.register(&common::spec(&name("after"), KeyType::U32, merge)).unwrap();
        let later = load(&lab.registry, &[]);
        let number = late.key.number() as u64;

        let mut sets = Script::default();
        sets.set(number, value(number, 4, 0));
        let with_late_key = run(&later, "call_by_number", &sets);

        let mut tries = Script::default();
        tries.call(Op::Get, number, 4, -ENOENT);
        tries.call(Op::IsSet, number, 0, 0);
        tries.call(Op::Del, number, 0, -ENOENT);
        tries.call(Op::Set, number, 4, -EINVAL);
        tries.write(&earlier);
        let ran = test_run::xdp(earlier.program("call_by_number").unwrap().as_fd(), &with_late_key, &frame());
        tries.assert_answers(&earlier);
        assert_eq!(ran.metadata, with_late_key);
    }
}
