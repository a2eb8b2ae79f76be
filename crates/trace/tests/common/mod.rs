//! What the tracer's tests share: a registry nobody else sees, and a tracer around some traffic.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::{cell::RefCell, path::Path, process::Command, thread, time::Duration};

use packet_traits::{
    KeyName, KeyType, Layout, Merge, Region,
    bind::{BoundObject, LoadedObject},
    registry::{KeySpec, Registry, RegistryOptions},
};
use packet_traits_lab::{Bpffs, KernelFeature, Netns, kernel_has};
pub use packet_traits_testing::kernel::enabled;
use packet_traits_trace::{Counters, Namespace, Options, Packet, Paths, Point, Summary, TraceError, Tracer};

/// How long events may take to arrive after the traffic has ended.
const SETTLE: Duration = Duration::from_millis(150);

/// Whether the kernel tests run, and a registry has room for more than the tracer's own keys.
pub fn long_enabled() -> bool {
    enabled() && kernel_has(KernelFeature::LongMetadata)
}

/// Whether the kernel tests run, and TC can give packets ids on this kernel.
pub fn tc_enabled() -> bool {
    enabled() && kernel_has(KernelFeature::MetadataDynptr)
}

/// A registry on a bpffs that nobody else sees.
pub struct Home {
    pub registry: Registry,
    pub bpffs: Bpffs,
}

impl Home {
    /// With as much room as this kernel allows, up to the default: before 6.8 for the tracer's own keys, and no more.
    pub fn new() -> Home {
        Home::with(|options| options)
    }

    /// Without a packet region.
    pub fn without_packet_region(flow: usize) -> Home {
        Home::with(|options| options.layout(Layout::new(flow, 0).unwrap()))
    }

    fn with(options: impl FnOnce(RegistryOptions) -> RegistryOptions) -> Home {
        let bpffs = Bpffs::new().unwrap();
        Home { registry: options(Registry::options().bpffs(bpffs.path())).create().unwrap(), bpffs }
    }
}

/// `path` without the points that this kernel does not have.
pub fn on_this_kernel(tracer: &Tracer<'_>, path: &[Point]) -> Vec<Point> {
    let here: Vec<Point> = tracer.points().collect();
    path.iter().copied().filter(|point| here.contains(point)).collect()
}

/// The key of `tenant.bpf.c`.
pub const TENANT_KEY: [(&str, KeyType, Merge); 1] = [("tenant", KeyType::U32, Merge::Block)];
/// The keys of `policy.bpf.c`.
pub const POLICY_KEYS: [(&str, KeyType, Merge); 5] = [
    ("tenant", KeyType::U32, Merge::Block),
    ("balance", KeyType::I64, Merge::Block),
    ("marked", KeyType::Flag, Merge::Block),
    ("packet_id", KeyType::U64, Merge::KeepFirst),
    ("arrived", KeyType::Timestamp, Merge::KeepFirst),
];

/// Registers keys, and compiles and loads a file of `tests/bpf` that uses them; `NO_PACKET_REGION` is defined if the registry
/// has none.
pub fn load_object(registry: &Registry, file: &str, keys: &[(&str, KeyType, Merge)]) -> LoadedObject {
    for &(name, key_type, merge) in keys {
        registry.register(&KeySpec::new(KeyName::new(name).unwrap(), key_type).merge(merge)).unwrap();
    }
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(packet_traits_lab::clang())
        .args(["-O2", "-g", "-mcpu=v3", "-target", "bpf", "-c", "-o", "-"])
        .args((registry.layout().region_len(Region::Packet) == 0).then_some("-DNO_PACKET_REGION"))
        .arg(format!("-I{}", crate_dir.join("../../include").display()))
        .arg(format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH))
        .arg(crate_dir.join("tests/bpf").join(file))
        .output()
        .unwrap_or_else(|error| panic!("running {}: {error}; `make test` installs it", packet_traits_lab::clang()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    BoundObject::from_bytes(&output.stdout, file, registry).unwrap().load().unwrap()
}

/// Options for these namespaces.
pub fn in_namespaces(namespaces: &[&Netns]) -> Options {
    let find = |netns: &&Netns| Namespace::find(netns.path().to_str().unwrap()).unwrap();
    Options { namespaces: namespaces.iter().map(find).collect(), ..Options::default() }
}

/// Starts tracing; a refusal is shown with what the verifier said.
pub fn start<'r>(registry: &'r Registry, options: &Options) -> Tracer<'r> {
    match Tracer::start(registry, options) {
        Ok(tracer) => tracer,
        Err(error) => panic!("{}", explain(&error)),
    }
}

fn explain(error: &TraceError) -> String {
    let log = error.verifier_log().unwrap_or_default();
    format!("{error}\n{}", &log[log.len().saturating_sub(5000)..])
}

/// What was seen.
pub struct Seen {
    pub packets: Vec<Packet>,
    pub summary: Summary,
    pub counters: Counters,
}

/// Reads what is reported while `traffic` runs, and a little longer.
pub fn watch(tracer: &mut Tracer<'_>, traffic: impl FnOnce() + Send) -> Seen {
    let state = RefCell::new((Paths::default(), Summary::default()));
    let reader = tracer
        .reader(|event| {
            let (paths, summary) = &mut *state.borrow_mut();
            if let Some((added, packet)) = paths.add(&event) {
                summary.add(&event, added, packet);
            }
        })
        .unwrap();
    thread::scope(|scope| {
        let traffic = scope.spawn(traffic);
        while !traffic.is_finished() {
            tracer.adapt().unwrap();
            if reader.read().unwrap() == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        traffic.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        thread::sleep(SETTLE);
        reader.read().unwrap();
    });
    drop(reader);
    let counters = tracer.counters().unwrap();
    let (mut paths, mut summary) = state.into_inner();
    let packets = paths.take_all();
    packets.iter().for_each(|packet| summary.add_finished(packet));
    Seen { packets, summary, counters }
}

/// The points of a packet's path, in order, but a queue before its reader: one that is awake on another CPU may have the
/// packet before the kernel says that it is in the queue.
pub fn points(packet: &Packet) -> Vec<Point> {
    let mut points: Vec<Point> = packet.steps.iter().map(|step| step.point).collect();
    let [read, queued] = [Point::Deliver, Point::Enqueue].map(|point| points.iter().position(|other| *other == point));
    if let (Some(read), Some(queued)) = (read, queued)
        && read < queued
    {
        points[read..=queued].rotate_right(1);
    }
    points
}

/// The port a packet was sent to.
pub fn port(packet: &Packet) -> Option<u16> {
    packet.headers?.ports.map(|(_, to)| to)
}
