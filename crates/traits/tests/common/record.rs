//! What the programs of `tests/bpf` report: `struct record` of `record.bpf.h`.

use std::{
    collections::BTreeMap,
    sync::mpsc,
    time::{Duration, Instant},
};

use libbpf_rs::{MapCore, MapFlags, Object, RingBufferBuilder};
use packet_traits::bind::LoadedObject;
use packet_traits_lab::KernelFeature;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Stage {
    Xdp,
    XdpAgain,
    TcIngress,
    TcEgress,
    PreRouting,
    LocalIn,
    Forward,
    PostRouting,
    CgroupIngress,
    SocketFilter,
    PacketFilter,
    SockOps,
    Delivery,
    Consume,
    Kfree,
    SkSkbVerdict,
    LwtIn,
    LwtOut,
    LwtXmit,
    LocalOut,
    CgroupEgress,
    NetDevQueue,
}

impl Stage {
    pub const ALL: [Stage; 22] = [
        Stage::Xdp,
        Stage::XdpAgain,
        Stage::TcIngress,
        Stage::TcEgress,
        Stage::PreRouting,
        Stage::LocalIn,
        Stage::Forward,
        Stage::PostRouting,
        Stage::CgroupIngress,
        Stage::SocketFilter,
        Stage::PacketFilter,
        Stage::SockOps,
        Stage::Delivery,
        Stage::Consume,
        Stage::Kfree,
        Stage::SkSkbVerdict,
        Stage::LwtIn,
        Stage::LwtOut,
        Stage::LwtXmit,
        Stage::LocalOut,
        Stage::CgroupEgress,
        Stage::NetDevQueue,
    ];
}

/// Those of the stages that this kernel shows: not netfilter's, where it has no netfilter programs.
pub fn shown(stages: impl IntoIterator<Item = Stage>) -> Vec<Stage> {
    use Stage::{Forward, LocalIn, LocalOut, PostRouting, PreRouting};
    let is_here = |stage: &Stage| {
        !matches!(stage, PreRouting | LocalIn | Forward | PostRouting | LocalOut)
            || KernelFeature::NetfilterLinks.is_here()
    };
    stages.into_iter().filter(is_here).collect()
}

/// `HAS_ALL`: every key was read.
pub const HAS_ALL: u32 = 127;
/// The keys of the flow region: `HAS_TENANT | HAS_PORT | HAS_MARKED`.
pub const HAS_FLOW: u32 = 7;
/// `HAS_SEQ`.
pub const HAS_SEQ: u32 = 8;

/// What one stage read of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub stage: Stage,
    /// A bit for each key that was there; the rest is zero.
    pub present: u32,
    pub traits: Traits,
    pub len: u32,
    pub extra: u64,
}

/// The values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    pub seq: u64,
    pub rx_ts: u64,
    pub src: [u8; 16],
    pub tenant: u32,
    pub port: u16,
    pub tiny: u8,
}

const RECORD_LEN: usize = 64;

impl Record {
    fn parse(raw: &[u8]) -> Record {
        assert_eq!(raw.len(), RECORD_LEN, "struct record has changed");
        let u32_at = |at: usize| u32::from_ne_bytes(raw[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_ne_bytes(raw[at..at + 8].try_into().unwrap());
        Record {
            stage: Stage::ALL[u32_at(0) as usize],
            present: u32_at(4),
            traits: Traits {
                seq: u64_at(8),
                rx_ts: u64_at(16),
                src: raw[24..40].try_into().unwrap(),
                tenant: u32_at(40),
                port: u16::from_ne_bytes(raw[48..50].try_into().unwrap()),
                tiny: raw[50],
            },
            len: u32_at(44),
            extra: u64_at(56),
        }
    }
}

/// Everything that was reported so far.
pub struct Records(Vec<Record>);

impl Records {
    /// Reads the object's ring buffer until `done` says so or two seconds pass without a new record.
    pub fn collect(object: &LoadedObject, done: impl FnMut(&Records) -> bool) -> Records {
        Records::collect_from(object.object(), done)
    }

    /// The same of an object that may not be bound.
    pub fn collect_from(object: &Object, mut done: impl FnMut(&Records) -> bool) -> Records {
        let (sender, receiver) = mpsc::channel();
        let map = object.maps().find(|map| map.name() == "records").unwrap();
        let mut builder = RingBufferBuilder::new();
        builder
            .add(&map, move |raw| {
                sender.send(Record::parse(raw)).unwrap();
                0
            })
            .unwrap();
        let ring = builder.build().unwrap();
        let mut records = Records(Vec::new());
        let mut quiet_since = Instant::now();
        while quiet_since.elapsed() < Duration::from_secs(2) {
            ring.poll(Duration::from_millis(20)).unwrap();
            let before = records.0.len();
            records.0.extend(receiver.try_iter());
            if records.0.len() != before {
                quiet_since = Instant::now();
            }
            if done(&records) {
                break;
            }
        }
        assert_eq!(counter(object, "lost"), 0, "the ring buffer was too small for this test");
        records
    }

    /// With the records of another object.
    pub fn and(mut self, other: Records) -> Records {
        self.0.extend(other.0);
        self
    }

    pub fn at(&self, stage: Stage) -> impl Iterator<Item = &Record> {
        self.0.iter().filter(move |record| record.stage == stage)
    }

    pub fn count(&self, stage: Stage) -> usize {
        self.at(stage).count()
    }

    /// What XDP set, by packet number.
    pub fn set(&self) -> BTreeMap<u64, Traits> {
        self.at(Stage::Xdp)
            .map(|record| {
                assert_eq!(record.present, HAS_ALL, "XDP could not set all traits: {record:?}");
                (record.traits.seq, record.traits)
            })
            .collect()
    }

    /// Checks that `stage` read, of each of the packets `numbers`, once, exactly what XDP set.
    #[track_caller]
    pub fn assert_all_read(&self, stage: Stage, numbers: impl IntoIterator<Item = u64>) {
        let mut seen = self.assert_right(stage);
        for number in numbers {
            assert_eq!(seen.remove(&number), Some(1), "packet {number} at {stage:?}");
        }
        assert!(seen.is_empty(), "{stage:?} reports packets nobody sent: {seen:?}");
    }

    /// Checks that what `stage` read is what XDP set; returns how often it read each packet.
    #[track_caller]
    pub fn assert_right(&self, stage: Stage) -> BTreeMap<u64, usize> {
        let set = self.set();
        let mut seen = BTreeMap::new();
        for record in self.at(stage) {
            assert_eq!(record.present, HAS_ALL, "{record:?}");
            assert_eq!(Some(&record.traits), set.get(&record.traits.seq), "{stage:?}");
            *seen.entry(record.traits.seq).or_default() += 1;
        }
        seen
    }
}

/// A u64 variable of the object.
pub fn global(object: &LoadedObject, variable: &str) -> u64 {
    counter(object.object(), variable)
}

/// Sets a u64 variable of the object.
pub fn set_global(object: &LoadedObject, variable: &str, to: u64) {
    set_counter(object.object(), variable, to);
}

/// A u64 variable of an object that may not be bound.
pub fn counter(object: &Object, variable: &str) -> u64 {
    u64::from_ne_bytes(read_variable(object, variable, 8).try_into().unwrap())
}

/// Sets a u64 variable of an object that may not be bound.
pub fn set_counter(object: &Object, variable: &str, to: u64) {
    write_variable(object, variable, &to.to_ne_bytes());
}

/// The first `len` bytes of a variable.
pub fn read_variable(object: &Object, variable: &str, len: usize) -> Vec<u8> {
    let (section, offset) = place(object, variable);
    section.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap()[offset..offset + len].to_vec()
}

/// Writes the first bytes of a variable. Not while programs write the object's other variables.
pub fn write_variable(object: &Object, variable: &str, bytes: &[u8]) {
    let (section, offset) = place(object, variable);
    let mut value = section.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
    value[offset..offset + bytes.len()].copy_from_slice(bytes);
    section.update(&0u32.to_ne_bytes(), &value, MapFlags::ANY).unwrap();
}

/// The map and the offset in it of a variable in `.bss`.
fn place<'o>(object: &'o Object, variable: &str) -> (libbpf_rs::Map<'o>, usize) {
    use libbpf_rs::btf::{BtfType, types};
    let btf = object.btf().unwrap().unwrap();
    let section: types::DataSec<'_> = btf.type_by_name(".bss").unwrap();
    let offset = section
        .iter()
        .find(|place| btf.type_by_id::<BtfType<'_>>(place.ty).unwrap().name().is_some_and(|name| name == variable))
        .unwrap_or_else(|| panic!("no variable {variable}"))
        .offset as usize;
    let map = object.maps().find(|map| map.name().to_string_lossy().ends_with(".bss")).unwrap();
    (map, offset)
}

/// Stages whose reports a test does not want.
pub fn mute(object: &LoadedObject, stages: &[Stage]) {
    set_global(object, "muted", stages.iter().fold(0, |bits, stage| bits | 1 << *stage as u32));
}
