//! A link, socket options and traits of every size in every layout: `tests/bpf/every_size.bpf.c`.

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    path::Path,
    sync::{Mutex, PoisonError, mpsc},
};

use libbpf_rs::RingBufferBuilder;
use packet_traits::{
    KeyType, Layout, Merge, Value,
    attach::{Attachment, CgroupHook, Direction, NetfilterHook, XdpMode, cgroup},
    bind::{BoundObject, LoadedObject},
    socket_programs::{AttachOptions, SocketPrograms},
};

use packet_traits_lab::{Cgroup, Family, KernelFeature, Pair};

use super::{
    Lab, attach_netfilter, attach_tc, attach_xdp, compile_with, leave_out_netfilter, load_bound, program, spec,
};

/// Names, types and values.
pub const VALUES: [(&str, Value); 6] = [
    ("flag", Value::Flag),
    ("one", Value::U8(0xa1)),
    ("two", Value::U16(0xb1b2)),
    ("four", Value::U32(0xc1c2_c3c4)),
    ("eight", Value::U64(0xd1d2_d3d4_d5d6_d7d8)),
    ("sixteen", Value::U128(0xf1f2_f3f4_f5f6_f7f8_e1e2_e3e4_e5e6_e7e8)),
];

/// A registered key that nobody sets.
pub const ABSENT: &str = "absent";

/// Sizes of the regions, and the merge policies of short and of long values: all layouts that differ in how values lie.
pub const LAYOUTS: [(usize, usize, Merge, Merge); 6] = [
    (64, 64, Merge::KeepFirst, Merge::KeepFirst),
    (64, 64, Merge::KeepFirst, Merge::Block),
    (64, 64, Merge::Block, Merge::KeepFirst),
    (64, 40, Merge::KeepFirst, Merge::Block),
    (64, 0, Merge::Block, Merge::Block),
    (216, 0, Merge::Block, Merge::Block),
];

/// A pair with these keys, whose receiver's sockets have the options if they are made [inside](Self::inside).
pub struct Sizes {
    object: LoadedObject,
    attached: Vec<Attachment>,
    pub lab: Lab,
    pub pair: Pair,
    pub cgroup: Cgroup,
}

impl Sizes {
    pub fn new((flow, packet, small, large): (usize, usize, Merge, Merge)) -> Sizes {
        let lab = Lab::empty(Layout::new(flow, packet).unwrap());
        lab.registry.register(&spec(ABSENT, KeyType::U32, Merge::Block)).unwrap();
        for (key, value) in VALUES {
            let merge = if value.key_type().size() <= 2 { small } else { large };
            lab.registry.register(&spec(key, value.key_type(), merge)).unwrap();
        }
        let (pair, cgroup) = (Pair::new().unwrap(), Cgroup::new().unwrap());
        let sizes = Some(8);
        let options = AttachOptions {
            cgroup: Some(cgroup.path().to_owned()),
            sockets: sizes,
            slots: sizes,
            pending_syns: Some(64),
            ..AttachOptions::default()
        };
        SocketPrograms::attach(&lab.registry, &options).unwrap_or_else(|error| panic!("{error}"));

        let bytes = compiled(small, large);
        let mut bound = BoundObject::from_bytes(&bytes, "every_size", &lab.registry).unwrap();
        leave_out_netfilter(bound.open_object_mut());
        let object = load_bound(bound);
        Sizes { object, attached: Vec::new(), lab, pair, cgroup }
    }

    /// Gives every packet that the receiver gets all traits.
    pub fn assign(&mut self) {
        self.attached.push(attach_xdp(&self.object, "assign", self.pair.rx(), XdpMode::Native));
    }

    /// Has the egress hooks of the receiver report.
    pub fn watch(&mut self, family: Family) {
        let rx = self.pair.rx();
        self.attached.extend(attach_netfilter(&self.object, rx, family, &[("local_out", NetfilterHook::Output)]));
        let egress = program(&self.object, "cgroup_egress");
        self.attached.push(cgroup::attach_path(egress.as_fd(), self.cgroup.path(), CgroupHook::Egress).unwrap());
        self.attached.push(attach_tc(&self.object, "tc_egress", rx, Direction::Egress));
    }

    /// The hooks that report, by their numbers in `every_size.bpf.c`: the first is netfilter's, which not every kernel has.
    pub fn watched(&self) -> std::ops::Range<u32> {
        u32::from(!KernelFeature::NetfilterLinks.is_here())..3
    }

    /// Runs `f` in the receiver's namespace and in the cgroup.
    pub fn inside<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.cgroup.enter(|| self.pair.rx().netns().enter(f))
    }

    /// What the hooks have reported: the hook, in the order of a packet's way, and the values it saw.
    pub fn seen(&self) -> Vec<(u32, Vec<(&'static str, Value)>)> {
        let (sender, receiver) = mpsc::channel();
        let map = self.object.map("seen").unwrap();
        let mut builder = RingBufferBuilder::new();
        builder
            .add(&map, move |raw| {
                sender.send(parse(raw)).unwrap();
                0
            })
            .unwrap();
        builder.build().unwrap().consume().unwrap();
        receiver.try_iter().collect()
    }
}

/// The object for these merge policies, compiled once per process.
fn compiled(small: Merge, large: Merge) -> Vec<u8> {
    static DONE: Mutex<BTreeMap<[String; 2], Vec<u8>>> = Mutex::new(BTreeMap::new());
    let c_name = |merge| if merge == Merge::Block { "TRAIT_BLOCK" } else { "TRAIT_KEEP_FIRST" };
    let policies = [format!("-DSMALL={}", c_name(small)), format!("-DLARGE={}", c_name(large))];
    let compile = |[small, large]: [&str; 2]| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bpf/every_size.bpf.c");
        compile_with(packet_traits_lab::clang(), &source, &[small, large])
    };
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    done.entry(policies.clone()).or_insert_with(|| compile(policies.each_ref().map(String::as_str))).clone()
}

fn parse(raw: &[u8]) -> (u32, Vec<(&'static str, Value)>) {
    assert_eq!(raw.len(), 40, "struct seen has changed");
    let u32_at = |at: usize| u32::from_ne_bytes(raw[at..at + 4].try_into().unwrap());
    let places = [0..0, 38..39, 36..38, 32..36, 24..32, 8..24];
    let present = u32_at(4);
    let values = VALUES.iter().zip(places).enumerate().filter(|(bit, _)| present >> bit & 1 == 1);
    let value = |(_, ((name, value), place)): (usize, (&(&'static str, Value), std::ops::Range<usize>))| {
        (*name, Value::from_bytes(value.key_type(), &raw[place]).unwrap())
    };
    (u32_at(0), values.map(value).collect())
}
