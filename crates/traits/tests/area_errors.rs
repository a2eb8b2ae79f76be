//! The errno contract of every call in XDP, what happens where there is no room, and what bpf_xdp_adjust_head does to an
//! area.
//!
//! `operations.bpf.c` runs scripts of calls: under bpf_prog_test_run, where the metadata comes back and is decoded with
//! the library's view, and on packets through a veth.

mod common;

use std::{collections::BTreeMap, os::fd::AsFd};

use common::{
    BOTH_MODES, Lab, program,
    readers::{Link, STAGES, load_unbound, unbound_program},
    record::{HAS_ALL, HAS_FLOW, Record, Stage, Traits, counter, read_variable, set_counter, shown, write_variable},
    spec, test_run,
};
use libbpf_rs::Object;
use packet_traits::{
    Key, KeyType, Layout, Merge, PacketRegion, TraitsView,
    attach::{Attachment, XdpMode},
    bind::LoadedObject,
    registry::Registry,
};
use packet_traits_lab::{Family, TcpSink, frame::Flow, send_numbered, tcp_transfer};

const ENOENT: i64 = -(libc::ENOENT as i64);
const EBUSY: i64 = -(libc::EBUSY as i64);
const ENOSPC: i64 = -(libc::ENOSPC as i64);
const EOPNOTSUPP: i64 = -(libc::EOPNOTSUPP as i64);

/// In the order of `enum key`.
const KEYS: [(&str, KeyType, Merge); 13] = [
    ("marked", KeyType::Flag, Merge::Block),
    ("class", KeyType::U8, Merge::Block),
    ("port", KeyType::U16, Merge::Block),
    ("tenant", KeyType::U32, Merge::Block),
    ("cookie", KeyType::U64, Merge::Block),
    ("wide", KeyType::Ipv6, Merge::Block),
    ("seen", KeyType::Flag, Merge::KeepFirst),
    ("tiny", KeyType::U8, Merge::KeepFirst),
    ("half", KeyType::U16, Merge::KeepFirst),
    ("word", KeyType::U32, Merge::KeepFirst),
    ("seq", KeyType::U64, Merge::KeepFirst),
    ("rx_ts", KeyType::Timestamp, Merge::KeepFirst),
    ("src", KeyType::Ipv6, Merge::KeepFirst),
];

/// The number of a key in `KEYS`.
fn key(name: &str) -> usize {
    KEYS.iter().position(|key| key.0 == name).unwrap()
}

fn is_flow(key: usize) -> bool {
    KEYS[key].2 == Merge::Block
}

/// One call of a script, in the order of `enum op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Set(usize, [u8; 16]),
    Get(usize),
    GetOr(usize, [u8; 16]),
    IsSet(usize),
    Del(usize),
    ViewGet(usize),
    ViewIsSet(usize),
    Init,
    Clear,
    Seal,
    AdjustHead(i64),
    /// Puts the packet's first 64 bytes back, as they came.
    Restore,
    /// Reserves foreign metadata and fills it.
    Foreign(i64),
    MetaLen,
}

const STEPS: usize = 32;
const STEP_LEN: usize = 24;

impl Step {
    fn encode(self) -> [u8; STEP_LEN] {
        use Step::*;
        let number = |n: i64| {
            let mut value = [0; 16];
            value[..8].copy_from_slice(&n.to_ne_bytes());
            value
        };
        let (op, key, value) = match self {
            Set(key, value) => (1, key, value),
            Get(key) => (2, key, [0; 16]),
            GetOr(key, value) => (3, key, value),
            IsSet(key) => (4, key, [0; 16]),
            Del(key) => (5, key, [0; 16]),
            ViewGet(key) => (6, key, [0; 16]),
            ViewIsSet(key) => (7, key, [0; 16]),
            Init => (8, 0, [0; 16]),
            Clear => (9, 0, [0; 16]),
            Seal => (10, 0, [0; 16]),
            AdjustHead(by) => (11, 0, number(by)),
            Restore => (12, 0, [0; 16]),
            Foreign(len) => (13, 0, number(len)),
            MetaLen => (14, 0, [0; 16]),
        };
        let mut bytes = [0; STEP_LEN];
        bytes[..4].copy_from_slice(&i32::to_ne_bytes(op));
        bytes[4..8].copy_from_slice(&(key as i32).to_ne_bytes());
        bytes[8..].copy_from_slice(&value);
        bytes
    }
}

/// What a call returned: a number, and the bytes of a value that was read.
type Returned = (i64, [u8; 16]);

fn number(returned: i64) -> Returned {
    (returned, [0; 16])
}

fn write_script(object: &Object, script: &[Step]) {
    assert!(script.len() <= STEPS, "{} steps", script.len());
    let mut bytes = [0; STEPS * STEP_LEN];
    for (place, step) in bytes.chunks_exact_mut(STEP_LEN).zip(script) {
        place.copy_from_slice(&step.encode());
    }
    write_variable(object, "script", &bytes);
    // a value that no call returns
    write_variable(object, "results", &[0x77; STEPS * STEP_LEN]);
}

fn read_results(object: &Object, script: &[Step]) -> Vec<Returned> {
    let parse = |raw: &[u8]| (i64::from_ne_bytes(raw[..8].try_into().unwrap()), raw[8..].try_into().unwrap());
    read_variable(object, "results", script.len() * STEP_LEN).chunks_exact(STEP_LEN).map(parse).collect()
}

/// What a script left of a packet under bpf_prog_test_run.
struct Outcome {
    returned: Vec<Returned>,
    /// The visible metadata.
    meta: Vec<u8>,
    packet: Vec<u8>,
}

fn frame() -> Vec<u8> {
    let ip = packet_traits_lab::frame::IpPair::V4([10, 77, 0, 1].into(), [10, 77, 0, 2].into());
    let mac = |n| packet_traits_lab::Mac([2, 0, 0, 0, 0, n]);
    Flow { src_mac: mac(1), dst_mac: mac(2), ip, src_port: 1, dst_port: common::TEST_PORT }.udp(&[7; 64])
}

fn run_once(object: &Object, script: &[Step]) -> Outcome {
    write_script(object, script);
    let ran = test_run::xdp(unbound_program(object, "operations").as_fd(), &[], &frame());
    assert_eq!(ran.verdict, libbpf_sys::XDP_PASS);
    Outcome { returned: read_results(object, script), meta: ran.metadata, packet: ran.packet }
}

fn register_keys(registry: &Registry) {
    for (key, key_type, merge) in KEYS {
        registry.register(&spec(key, key_type, merge)).unwrap();
    }
}

fn lab(layout: Layout) -> Lab {
    let lab = Lab::empty(layout);
    register_keys(&lab.registry);
    lab
}

fn registered(registry: &Registry) -> Vec<Key> {
    let entries = registry.list().unwrap();
    KEYS.iter().map(|(name, ..)| entries.iter().find(|entry| entry.key.name().as_str() == *name).unwrap().key).collect()
}

/// What the calls are specified to do.
#[derive(Default)]
struct Model {
    values: BTreeMap<usize, [u8; 16]>,
    area: Area,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Area {
    #[default]
    None,
    Open,
    Sealed,
}

impl Model {
    fn apply(&mut self, step: Step) -> Returned {
        use Step::*;
        match step {
            Set(key, value) => {
                let size = KEYS[key].1.size();
                let mut kept = [0; 16];
                kept[..size].copy_from_slice(&value[..size]);
                self.values.insert(key, kept);
                self.area = Area::Open;
                number(0)
            }
            Get(key) | ViewGet(key) => match self.values.get(&key) {
                Some(value) => (KEYS[key].1.size() as i64, *value),
                None => number(ENOENT),
            },
            GetOr(key, other) => {
                let size = KEYS[key].1.size();
                let mut value = [0; 16];
                value[..size].copy_from_slice(&self.values.get(&key).unwrap_or(&other)[..size]);
                (0, value)
            }
            IsSet(key) => number(self.values.contains_key(&key).into()),
            ViewIsSet(_) if self.area == Area::None => number(ENOENT),
            ViewIsSet(key) => number(self.values.contains_key(&key).into()),
            Del(key) => {
                if self.area == Area::Sealed {
                    self.area = Area::Open;
                }
                number(if self.values.remove(&key).is_some() { 0 } else { ENOENT })
            }
            Init => {
                self.values.clear();
                self.area = Area::Open;
                number(0)
            }
            Clear => {
                self.values.clear();
                if self.area == Area::Sealed {
                    self.area = Area::Open;
                }
                number(0)
            }
            Seal => {
                if self.area == Area::Open {
                    self.area = Area::Sealed;
                }
                number(0)
            }
            MetaLen => number(match self.area {
                Area::None => 0,
                Area::Open => 144,
                Area::Sealed => 64,
            }),
            AdjustHead(_) | Restore | Foreign(_) => unreachable!("not modelled"),
        }
    }

    fn run(script: &[Step]) -> (Vec<Returned>, Model) {
        let mut model = Model::default();
        let returned = script.iter().map(|step| model.apply(*step)).collect();
        (returned, model)
    }
}

/// Numbers that look random and are the same in every run (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn value(&mut self) -> [u8; 16] {
        (u128::from(self.next()) << 64 | u128::from(self.next())).to_ne_bytes()
    }

    fn step(&mut self) -> Step {
        let key = self.below(KEYS.len());
        let of_value = || if KEYS[key].1 == KeyType::Flag { key + 1 } else { key };
        match self.below(18) {
            0..=5 => Step::Set(key, self.value()),
            6 | 7 => Step::Get(of_value()),
            8 => Step::GetOr(of_value(), self.value()),
            9 => Step::IsSet(key),
            10 | 11 => Step::Del(key),
            12 => Step::ViewGet(of_value()),
            13 => Step::ViewIsSet(key),
            14 => Step::MetaLen,
            15 | 16 => Step::Seal,
            _ if self.below(2) == 0 => Step::Clear,
            _ => Step::Init,
        }
    }

    /// Some calls, then whether every key is set: in a sealed area the packet region is not in the visible metadata.
    fn script(&mut self) -> Vec<Step> {
        let calls = self.below(STEPS - KEYS.len() + 1);
        let start: Vec<Step> = (0..calls).map(|_| self.step()).collect();
        start.into_iter().chain((0..KEYS.len()).map(Step::IsSet)).collect()
    }
}

#[test]
fn every_sequence_of_calls_does_what_the_contract_says() {
    if !common::area_enabled() {
        return;
    }
    let lab = lab(Layout::DEFAULT);
    let object = lab.load("operations");
    let keys = registered(&lab.registry);
    let (layout, nonces) = (lab.registry.layout(), lab.registry.nonces());
    let mut ends = BTreeMap::<_, usize>::new();
    for seed in 0..500 {
        let script = Numbers(seed).script();
        let (expected, model) = Model::run(&script);
        let outcome = run_once(object.object(), &script);
        for (at, step) in script.iter().enumerate() {
            assert_eq!(outcome.returned[at], expected[at], "step {at}, {step:?}, of seed {seed}: {script:?}");
        }
        assert_eq!(outcome.packet, frame(), "the packet was changed");

        // the library's view of the same metadata
        *ends.entry(format!("{:?}", model.area)).or_default() += 1;
        let view = TraitsView::new_checked(&outcome.meta, &layout, &nonces, outcome.meta.len());
        let region = match model.area {
            Area::None => {
                assert!(outcome.meta.is_empty() && view.is_err());
                continue;
            }
            Area::Open => PacketRegion::Open,
            Area::Sealed => PacketRegion::Absent, // it is below what comes back
        };
        let view = view.unwrap();
        assert_eq!(view.packet_region(), region);
        for (at, key) in keys.iter().enumerate() {
            let expected = model.values.get(&at).filter(|_| model.area == Area::Open || is_flow(at));
            assert_eq!(view.bytes(key), expected.map(|value| &value[..KEYS[at].1.size()]), "{key:?} of seed {seed}");
        }
    }
    assert!(ends.values().all(|count| *count > 10) && ends.len() == 3, "{ends:?}");
}

#[test]
fn calls_on_packets_do_what_the_contract_says() {
    if !common::area_enabled() {
        return;
    }
    let lab = lab(Layout::DEFAULT);
    let object = lab.load("operations");
    let link = Link::new(&lab.registry);
    for mode in BOTH_MODES {
        let _scripted = Scripted::new(&link, &object, mode);
        for seed in 1000..1100 {
            let script = Numbers(seed).script();
            write_script(object.object(), &script);
            link.deliver(seed..seed + 1);
            let (expected, _) = Model::run(&script);
            assert_eq!(read_results(object.object(), &script), expected, "{mode}, seed {seed}: {script:?}");
        }
    }
}

const A: [u8; 16] = *b"ABCDEFGHIJKLMNOP";
const B: [u8; 16] = *b"abcdefghijklmnop";

/// `len` bytes of `value`, the rest zero.
fn first(value: [u8; 16], len: usize) -> [u8; 16] {
    let mut kept = [0; 16];
    kept[..len].copy_from_slice(&value[..len]);
    kept
}

#[track_caller]
fn expect(object: &LoadedObject, steps: &[(Step, Returned)]) -> Outcome {
    let script: Vec<Step> = steps.iter().map(|step| step.0).collect();
    let outcome = run_once(object.object(), &script);
    for (at, (step, expected)) in steps.iter().enumerate() {
        assert_eq!(outcome.returned[at], *expected, "step {at}, {step:?}, of {script:?}");
    }
    outcome
}

#[test]
fn every_call_has_its_errno() {
    if !common::area_enabled() {
        return;
    }
    let lab = lab(Layout::DEFAULT);
    let object = lab.load("operations");
    let (seq, tenant) = (key("seq"), key("tenant"));
    use Step::*;
    // without an area, nothing reserves one but init and set
    expect(
        &object,
        &[
            (Get(tenant), number(ENOENT)),
            (GetOr(tenant, B), (0, first(B, 4))),
            (IsSet(tenant), number(0)),
            (Del(tenant), number(ENOENT)),
            (ViewGet(tenant), number(ENOENT)),
            (Clear, number(0)),
            (Seal, number(0)),
            (MetaLen, number(0)),
            (Init, number(0)),
            (MetaLen, number(144)),
            (ViewIsSet(tenant), number(0)),
        ],
    );
    for key in [tenant, seq] {
        let size = KEYS[key].1.size();
        expect(
            &object,
            &[
                (Set(key, A), number(0)),
                (Set(key, B), number(0)),
                (Get(key), (size as i64, first(B, size))),
                (Del(key), number(0)),
                (Del(key), number(ENOENT)),
                (Get(key), number(ENOENT)),
                (Set(key, A), number(0)),
                (Clear, number(0)),
                (Get(key), number(ENOENT)),
            ],
        );
    }
    // a set, a del and a clear open a sealed area, and what was set before is still there
    expect(
        &object,
        &[
            (Set(seq, A), number(0)),
            (Set(tenant, A), number(0)),
            (Seal, number(0)),
            (MetaLen, number(64)),
            (Get(seq), (8, first(A, 8))),
            (Set(key("word"), B), number(0)),
            (MetaLen, number(144)),
            (Get(seq), (8, first(A, 8))),
            (Seal, number(0)),
            (Del(tenant), number(0)),
            (MetaLen, number(144)),
            (Get(seq), (8, first(A, 8))),
            (Get(key("word")), (4, first(B, 4))),
            (Seal, number(0)),
            (Clear, number(0)),
            (MetaLen, number(144)),
            (IsSet(seq), number(0)),
            (Init, number(0)),
            (Init, number(0)),
            (MetaLen, number(144)),
        ],
    );
}

#[test]
fn what_was_deleted_or_cleared_leaves_no_byte() {
    if !common::area_enabled() {
        return;
    }
    let lab = lab(Layout::DEFAULT);
    let object = lab.load("operations");
    use Step::*;
    let metadata = |script: &[Step]| run_once(object.object(), script).meta;
    let all = |call: &dyn Fn(usize) -> Step| (0..KEYS.len()).map(call).collect::<Vec<_>>();
    let set = all(&|key| Set(key, A));
    let (port, class, seq, word) = (key("port"), key("class"), key("seq"), key("word"));
    // sealed, it is what GRO compares
    for (end, len) in [(&[][..], 144), (&[Seal], 64)] {
        let left = |script: &[Step]| {
            let left = metadata(&[script, end].concat());
            assert_eq!(left.len(), len, "{script:?} {end:?}");
            left
        };
        let never_set = left(&[Init]);
        assert_ne!(left(&set), never_set);
        for (how, script) in [
            ("deleted", [&set[..], &all(&Del)].concat()),
            ("deleted when sealed", [&set[..], &[Seal], &all(&Del)].concat()),
            ("cleared", [&set[..], &[Clear]].concat()),
            ("cleared when sealed", [&set[..], &[Seal, Clear]].concat()),
            ("begun again", [&set[..], &[Init]].concat()),
            ("begun again when sealed", [&set[..], &[Seal, Init]].concat()),
        ] {
            assert_eq!(left(&script), never_set, "{how}, {end:?}");
        }
        // what is left tells only of what is left
        for (kept, deleted) in [(port, class), (seq, word)] {
            let other_way = [Set(deleted, B), Set(kept, B), Set(kept, A), Del(deleted)];
            assert_eq!(left(&[Set(kept, A)]), left(&other_way), "{end:?}");
        }
    }
}

#[test]
fn foreign_metadata_over_a_hidden_region_is_ebusy_and_makes_way_for_a_new_region() {
    if !common::area_enabled() {
        return;
    }
    let lab = lab(Layout::DEFAULT);
    let object = lab.load("operations");
    let (seq, word, tenant) = (key("seq"), key("word"), key("tenant"));
    use Step::*;
    // a packet has room for 72 bytes more than an area
    for len in [4, 60, 64, 68, 72] {
        let outcome = expect(
            &object,
            &[
                (Set(seq, A), number(0)),
                (Set(tenant, A), number(0)),
                (Seal, number(0)),
                (Foreign(len), number(0)),
                (Seal, number(EBUSY)),
                (Get(seq), number(ENOENT)),
                (ViewGet(seq), number(ENOENT)),
                (Get(tenant), (4, first(A, 4))),
                (ViewGet(tenant), (4, first(A, 4))),
                (Set(word, B), number(0)),
                (MetaLen, number(len + 144)),
                (Get(seq), number(ENOENT)),
                (ViewGet(word), (4, first(B, 4))),
                (Get(tenant), (4, first(A, 4))),
                (Seal, number(EBUSY)),
                (Clear, number(0)),
                (IsSet(tenant), number(0)),
            ],
        );
        let pattern = (0..len as u32).step_by(4).flat_map(|at| (0x4600_0000 | (at * 0x01_0203)).to_ne_bytes());
        assert_eq!(outcome.meta[..len as usize], pattern.collect::<Vec<_>>(), "{len} foreign bytes");
    }
}

/// Calls of an unbound program, and what they return.
fn unbound_calls() -> Vec<(Step, i64)> {
    use Step::*;
    let (tenant, seq, marked) = (key("tenant"), key("seq"), key("marked"));
    vec![
        (Init, EOPNOTSUPP),
        (Set(tenant, A), EOPNOTSUPP),
        (Set(seq, A), EOPNOTSUPP),
        (Set(marked, A), EOPNOTSUPP),
        (Get(tenant), ENOENT),
        (Get(seq), ENOENT),
        (IsSet(marked), 0),
        (Del(tenant), ENOENT),
        (Del(seq), ENOENT),
        (ViewGet(tenant), ENOENT),
        (ViewIsSet(seq), ENOENT),
        // there is nothing to delete and nothing to hide
        (Clear, 0),
        (Seal, 0),
        (MetaLen, 0),
    ]
}

#[test]
fn an_unbound_program_touches_no_packet() {
    if !common::area_enabled() {
        return;
    }
    let unbound = load_unbound("operations");
    let (script, expected): (Vec<Step>, Vec<Returned>) =
        unbound_calls().into_iter().map(|(step, returned)| (step, number(returned))).unzip();
    let outcome = run_once(&unbound, &script);
    assert_eq!(outcome.returned, expected);
    assert!(outcome.meta.is_empty());
    assert_eq!(outcome.packet, frame());
    // nor does it take zeroes, which an unbound program has for nonces, for an area
    let zeroes = run_once(&unbound, &[&[Step::Foreign(252), Step::Foreign(-252)], &script[..]].concat());
    assert_eq!(zeroes.returned[2..], expected);

    set_counter(&unbound, "on_traffic", 1);
    let lab = lab(Layout::DEFAULT);
    let bound = lab.load("operations");
    set_counter(bound.object(), "on_traffic", 1);
    let link = Link::new(&lab.registry);
    for mode in BOTH_MODES {
        {
            let _xdp = link.attach_xdp(&unbound_program(&unbound, "operations"), mode);
            write_script(&unbound, &script);
            link.deliver(0..1);
            assert_eq!(read_results(&unbound, &script), expected, "{mode}");
        }
        // the same program, bound, does set them
        let _xdp = link.attach_xdp(&program(&bound, "operations"), mode);
        let set = [Step::Set(key("tenant"), A)];
        write_script(bound.object(), &set);
        link.deliver(0..1);
        assert_eq!(read_results(bound.object(), &set), [number(0)], "{mode}");
    }
}

/// A value for each key of `record.bpf.h`, and what its readers find then.
fn record_script() -> Vec<Step> {
    ["tenant", "port", "marked", "seq", "rx_ts", "src", "tiny"].map(|name| Step::Set(key(name), A)).to_vec()
}

fn recorded(present: u32) -> Traits {
    let flow = present & HAS_FLOW != 0;
    let packet = present & !HAS_FLOW != 0;
    let word = |len: usize| u64::from_ne_bytes(first(first(A, len), 8)[..8].try_into().unwrap());
    let mut traits = Traits { seq: 0, rx_ts: 0, src: [0; 16], tenant: 0, port: 0, tiny: 0 };
    if flow {
        (traits.tenant, traits.port) = (u32::from_ne_bytes(A[..4].try_into().unwrap()), word(2) as u16);
    }
    if packet {
        traits = Traits { seq: word(8), rx_ts: word(8), src: A, tiny: A[0], ..traits };
    }
    traits
}

#[track_caller]
fn assert_read(records: &common::record::Records, stages: &[Stage], present: u32, what: &str) {
    for stage in stages {
        let read: Vec<&Record> = records.at(*stage).collect();
        if present == 0 {
            assert!(read.is_empty(), "{what}: {stage:?} read {read:?}");
            continue;
        }
        assert_eq!(read.len(), 1, "{what}: {stage:?} read {read:?}");
        assert_eq!((read[0].present, read[0].traits), (present, recorded(present)), "{what}, {stage:?}");
    }
}

/// A link on which every packet is subject to a script.
struct Scripted<'l> {
    link: &'l Link,
    object: &'l LoadedObject,
    mode: XdpMode,
    _xdp: Attachment,
}

impl<'l> Scripted<'l> {
    fn new(link: &'l Link, object: &'l LoadedObject, mode: XdpMode) -> Scripted<'l> {
        set_counter(object.object(), "on_traffic", 1);
        Scripted { link, object, mode, _xdp: link.attach_xdp(&program(object, "operations"), mode) }
    }

    /// Runs one script on one packet; the packet is delivered unharmed, and every stage reads `present`.
    #[track_caller]
    fn deliver(&self, steps: &[(Step, i64)], present: u32, what: &str) {
        self.run(steps, what, || self.link.deliver(1..2));
        assert_read(&self.link.readers.records(), &STAGES, present, &format!("{}, {what}", self.mode));
    }

    /// The same for a packet that no protocol takes afterwards.
    #[track_caller]
    fn misplace(&self, steps: &[(Step, i64)], present: u32, what: &str) {
        let to = self.link.pair.rx().addr(Family::V4, common::TEST_PORT);
        let send = || send_numbered(&self.link.sender, to, 1..2, 64).unwrap();
        let mut records = self.run(steps, what, || {
            send();
            self.link.readers.records()
        });
        let what = format!("{}, {what}", self.mode);
        if present != 0 && records.count(Stage::TcIngress) == 0 {
            // native XDP runs on another CPU's time
            records = records.and(self.link.readers.records());
        }
        assert_read(&records, &[Stage::TcIngress, Stage::PacketFilter], present, &what);
        assert_read(&records, &[Stage::LocalIn, Stage::CgroupIngress, Stage::SocketFilter], 0, &what);
    }

    #[track_caller]
    fn run<R>(&self, steps: &[(Step, i64)], what: &str, traffic: impl FnOnce() -> R) -> R {
        let (script, expected): (Vec<Step>, Vec<i64>) = steps.iter().copied().unzip();
        write_script(self.object.object(), &script);
        let result = traffic();
        let returned: Vec<i64> = read_results(self.object.object(), &script).into_iter().map(|it| it.0).collect();
        assert_eq!(returned, expected, "{}, {what}: {script:?}", self.mode);
        result
    }
}

fn all_set() -> Vec<(Step, i64)> {
    record_script().into_iter().map(|step| (step, 0)).collect()
}

#[test]
fn an_area_longer_than_the_drivers_headroom_is_enospc_and_harms_no_packet() {
    if !common::area_enabled() {
        return;
    }
    use Step::*;
    let lab = lab(Layout::new(64, 184).unwrap());
    let object = lab.load("operations");
    let link = Link::new(&lab.registry);
    // native veth has 256 bytes in front of the packet, of which struct xdp_frame takes 40
    let refused = [
        (Set(key("tenant"), A), ENOSPC),
        (Set(key("seq"), A), ENOSPC),
        (Init, ENOSPC),
        (Get(key("tenant")), ENOENT),
        (Clear, 0),
        (Seal, 0),
        (MetaLen, 0),
    ];
    Scripted::new(&link, &object, XdpMode::Native).deliver(&refused, 0, "248 bytes");
    // Generic XDP sees the headroom that the sender's skb had, brought up to 256 bytes before the IP header, and keeps 40
    // free too (bpf_xdp_adjust_meta in net/core/filter.c). That is no more than native for UDP; for some TCP segments
    // the kernel's limit of 252 is the only one.
    let generic = Scripted::new(&link, &object, XdpMode::Generic);
    generic.deliver(&refused, 0, "248 bytes");
    let script = [&record_script()[..], &[MetaLen, Seal, MetaLen, Get(key("seq"))]].concat();
    write_script(object.object(), &script);
    let rx = link.pair.rx();
    let sink = TcpSink::start(rx.netns(), rx.addr(Family::V4, common::TEST_PORT)).unwrap();
    tcp_transfer(link.pair.tx().netns(), sink.addr(), 1000).unwrap();
    assert_eq!((sink.received(), sink.corrupt()), (1000, 0));
    // of the last segment
    let returned: Vec<i64> = read_results(object.object(), &script).into_iter().map(|it| it.0).collect();
    let fits = [0, 0, 0, 0, 0, 0, 0, 248, 0, 64, 8];
    let refused = [ENOSPC, ENOSPC, ENOSPC, ENOSPC, ENOSPC, ENOSPC, ENOSPC, 0, 0, 0, ENOENT];
    assert!(returned == fits || returned == refused, "{returned:?}");
    let records = link.readers.records();
    for stage in shown([Stage::TcIngress, Stage::LocalIn, Stage::CgroupIngress]) {
        assert!(records.count(stage) > 0, "{stage:?}");
        for record in records.at(stage) {
            assert_eq!((record.present, record.traits), (HAS_ALL, recorded(HAS_ALL)), "{stage:?}");
        }
    }
}

#[test]
fn foreign_metadata_that_leaves_no_room_is_enospc_and_stays_intact() {
    if !common::area_enabled() {
        return;
    }
    use Step::*;
    let lab = lab(Layout::DEFAULT);
    let object = lab.load("operations");
    let link = Link::new(&lab.registry);
    let foreign = load_unbound("foreign");
    let _foreign_reader = link.attach_tc(&unbound_program(&foreign, "foreign_reader"));
    let mut expected_intact = 0;
    // what a datagram's headroom leaves for metadata, see above
    let metadata_max = 216;
    for mode in BOTH_MODES {
        let scripted = Scripted::new(&link, &object, mode);
        let mut run = |len: i64, steps: &[(Step, i64)], present, what: &str| {
            set_counter(&foreign, "written", len as u64);
            scripted.deliver(steps, present, what);
            expected_intact += 1;
            assert_eq!((counter(&foreign, "intact"), counter(&foreign, "damaged")), (expected_intact, 0), "{what}");
        };
        let room = metadata_max - 144;
        let fits = [&[(Foreign(room), 0)], &all_set()[..], &[(MetaLen, metadata_max)]].concat();
        run(room, &fits, HAS_ALL, "just enough room");
        let too_long = [
            (Foreign(room + 4), 0),
            (Set(key("tenant"), A), ENOSPC),
            (Set(key("seq"), A), ENOSPC),
            (Init, ENOSPC),
            (Get(key("tenant")), ENOENT),
            (Clear, 0),
            (Seal, 0),
            (MetaLen, room + 4),
        ];
        run(room + 4, &too_long, 0, "4 bytes too few");

        // no room to open a sealed area again: the flow region stays as it is, the packet region is gone
        let over = metadata_max - 64;
        let no_way_back = [
            &all_set()[..],
            &[
                (Seal, 0),
                (Foreign(over), 0),
                (Set(key("seq"), B), ENOSPC),
                (Get(key("seq")), ENOENT),
                (Del(key("tenant")), ENOSPC),
                (Clear, ENOSPC),
                (Get(key("tenant")), 4),
                (Seal, EBUSY),
                (MetaLen, over + 64),
            ],
        ]
        .concat();
        run(over, &no_way_back, HAS_FLOW, "no room to open again");
    }
}

/// The distances of bpf_xdp_adjust_head, in bytes: an Ethernet header, and what VXLAN over IPv4 has in front of a frame.
const MOVES: [i64; 4] = [14, -14, 50, -50];

#[test]
fn an_open_area_moves_along_with_the_packets_front() {
    if !common::area_enabled() {
        return;
    }
    use Step::*;
    let lab = lab(Layout::DEFAULT);
    let object = lab.load("operations");
    let link = Link::new(&lab.registry);
    for mode in BOTH_MODES {
        let scripted = Scripted::new(&link, &object, mode);
        for by in MOVES {
            // there and back, so that the packet arrives
            let steps = [
                &all_set()[..],
                &[
                    (AdjustHead(by), 0),
                    (MetaLen, 144),
                    (Get(key("tenant")), 4),
                    (Get(key("src")), 16),
                    (Set(key("class"), B), 0),
                    (AdjustHead(-by), 0),
                    (Restore, 0),
                    (Get(key("class")), 1),
                    (Seal, 0),
                ],
            ]
            .concat();
            scripted.deliver(&steps, HAS_ALL, &format!("{by} bytes and back"));
            // there only: what is left of the packet is seen by TC and packet sockets
            let steps = [&all_set()[..], &[(AdjustHead(by), 0), (Get(key("seq")), 8)]].concat();
            scripted.misplace(&steps, HAS_ALL, &format!("{by} bytes"));
            let steps = [&all_set()[..], &[(AdjustHead(by), 0), (Seal, 0), (Get(key("seq")), 8)]].concat();
            scripted.misplace(&steps, HAS_ALL, &format!("{by} bytes, then sealed"));
        }
    }
}

#[test]
fn a_sealed_areas_packet_region_is_where_it_was_when_the_packets_front_moves() {
    if !common::area_enabled() {
        return;
    }
    use Step::*;
    let lab = lab(Layout::DEFAULT);
    let object = lab.load("operations");
    let link = Link::new(&lab.registry);
    let sealed = [&all_set()[..], &[(Seal, 0)]].concat();
    for mode in BOTH_MODES {
        let scripted = Scripted::new(&link, &object, mode);
        scripted.deliver(&sealed, HAS_ALL, "not moved");
        for by in MOVES {
            // the flow region is moved along, down over the hidden region
            let (seq, left) = if by > 0 { (8, HAS_ALL) } else { (ENOENT, HAS_FLOW) };
            let there = [&sealed[..], &[(AdjustHead(by), 0), (Get(key("tenant")), 4), (Get(key("seq")), seq)]].concat();
            scripted.misplace(&there, left, &format!("{by} bytes"));
            // opened again where it is now, the packet region is empty
            let opened = [&there[..], &[(Set(key("word"), B), 0), (Get(key("seq")), ENOENT)]].concat();
            scripted.misplace(&opened, HAS_FLOW, &format!("{by} bytes, then opened"));
            let back =
                [&there[..], &[(AdjustHead(-by), 0), (Restore, 0), (Get(key("tenant")), 4), (Get(key("seq")), seq)]]
                    .concat();
            scripted.deliver(&back, left, &format!("{by} bytes and back"));
        }
    }
}
