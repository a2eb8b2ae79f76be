//! What the kernel tests share: a private bpffs with a registry, BPF objects compiled from `tests/bpf`, and the records
//! their programs write.
//!
//! Every test makes its own: nothing is shared between tests but the compiled objects, and nothing outlives the process.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod c_program;
pub mod crafted;
pub mod datagrams;
pub mod examples;
pub mod readers;
pub mod record;
pub mod sizes;
pub mod sockets;
pub mod sockopt;
pub mod tcp;
pub mod test_run;

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, Once, PoisonError},
    thread,
    time::{Duration, Instant},
};

use libbpf_rs::{OpenObject, OpenProgramMut};
use packet_traits::{
    KeyName, KeyType, Layout, Merge, Region,
    attach::{
        Attachment, CgroupHook, Direction, NetfilterFamily, NetfilterHook, NetfilterOptions, TcxOptions, XdpMode,
        cgroup, netfilter, tcx, tracing, xdp,
    },
    bind::{BoundObject, LoadedObject},
    registry::{KeySpec, Registry, RegistryName},
};
use packet_traits_lab::{Bpffs, End, Family, KernelFeature, RECV_TIMEOUT, kernel_has, kernel_has_for};
use packet_traits_testing::kernel;

pub const TEST_PORT: u16 = 7777;
pub const BOTH_MODES: [XdpMode; 2] = [XdpMode::Native, XdpMode::Generic];

/// Whether to run; without root it fails with a line that says how to run.
pub fn enabled() -> bool {
    if !kernel::enabled() {
        return false;
    }
    // libbpf's own messages, which tests that provoke errors would clutter the output with; the errors are asserted on
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        libbpf_rs::set_print(None);
    });
    true
}

/// The same for a test whose keys do not fit into the 32 bytes of metadata that older kernels take.
pub fn area_enabled() -> bool {
    enabled() && kernel_has(KernelFeature::LongMetadata)
}

/// A file or folder of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// The repository's `include` folder.
pub fn include_dir() -> PathBuf {
    repository("include")
}

/// `SHORT_AREA`, for the compiler, where a [fitting](Lab::fitting) registry has no packet region.
pub fn area_macros() -> &'static [&'static str] {
    if KernelFeature::LongMetadata.is_here() { &[] } else { &["-DSHORT_AREA"] }
}

/// Compiles `tests/bpf/<name>.bpf.c`, once per process; with `SHORT_AREA` where the area has no packet region.
pub fn compile(name: &str) -> Vec<u8> {
    static DONE: Mutex<Option<HashMap<String, Vec<u8>>>> = Mutex::new(None);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    done.get_or_insert_default()
        .entry(name.to_owned())
        .or_insert_with(|| {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/bpf/{name}.bpf.c"));
            compile_with(packet_traits_lab::clang(), &source, area_macros())
        })
        .clone()
}

/// Compiles a BPF source file.
pub fn compile_with(clang: &str, source: &Path, extra: &[&str]) -> Vec<u8> {
    let arch = std::env::consts::ARCH;
    let target = match arch {
        "x86_64" => "x86",
        "aarch64" => "arm64",
        other => other,
    };
    let output = Command::new(clang)
        .args(["-O2", "-g", "-mcpu=v3", "-target", "bpf", "-c", "-o", "-"])
        .arg(format!("-D__TARGET_ARCH_{target}"))
        .arg(format!("-I{}", include_dir().display()))
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
        .args(extra)
        .arg(source)
        .output()
        .unwrap_or_else(|error| panic!("running {clang}: {error}; `make test` installs it"));
    assert!(
        output.status.success(),
        "{clang} refuses {}:\n{}",
        source.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// A registry nobody else sees.
pub struct Lab {
    pub registry: Registry,
    bpffs: Bpffs,
}

pub fn name(name: &str) -> KeyName {
    KeyName::new(name).unwrap()
}

pub fn spec(key: &str, key_type: KeyType, merge: Merge) -> KeySpec {
    KeySpec::new(name(key), key_type).merge(merge)
}

impl Lab {
    /// A registry with the keys of `record.bpf.h`.
    pub fn new() -> Lab {
        let lab = Lab::empty(Layout::DEFAULT);
        lab.register_record_keys();
        lab
    }

    pub fn empty(layout: Layout) -> Lab {
        let bpffs = Bpffs::new().unwrap();
        let registry = Self::create(&bpffs, "default", layout);
        Lab { registry, bpffs }
    }

    /// A registry with the default area, or as much of it as the kernel has metadata for.
    pub fn fitting() -> Lab {
        let bpffs = Bpffs::new().unwrap();
        let registry = Registry::options().bpffs(bpffs.path()).create().unwrap();
        Lab { registry, bpffs }
    }

    /// Registers keys in a [fitting](Self::fitting) registry: all are `block` where it has no packet region.
    pub fn register_fitting(&self, keys: Keys) {
        register_fitting(&self.registry, keys);
    }

    /// A second registry in the same bpffs.
    pub fn another(&self, name: &str, layout: Layout) -> Registry {
        Self::create(&self.bpffs, name, layout)
    }

    pub fn bpffs(&self) -> &Bpffs {
        &self.bpffs
    }

    fn create(bpffs: &Bpffs, name: &str, layout: Layout) -> Registry {
        Registry::options()
            .name(RegistryName::new(name).unwrap())
            .bpffs(bpffs.path())
            .layout(layout)
            .allow_oversize(true)
            .create()
            .unwrap()
    }

    pub fn register_record_keys(&self) {
        register_record_keys(&self.registry);
    }

    /// Fails if programs are bound to the registry, other than closed ones that another test's look at all programs still holds.
    #[track_caller]
    pub fn assert_unused(&self) {
        let left = until(|| self.registry.programs().unwrap(), Vec::is_empty);
        assert!(left.is_empty(), "still loaded: {left:?}");
    }

    /// Compiles, binds and loads `tests/bpf/<name>.bpf.c`.
    pub fn load(&self, object: &str) -> LoadedObject {
        load(object, &self.registry)
    }
}

/// Reads until the answer is `done`, or what is waited for cannot be expected any more. Returns the last answer.
pub fn until<T>(mut read: impl FnMut() -> T, done: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + RECV_TIMEOUT;
    loop {
        let answer = read();
        if done(&answer) || Instant::now() > deadline {
            return answer;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

pub fn register_record_keys(registry: &Registry) {
    register(registry, RECORD_KEYS);
}

/// Names, types and merge policies of keys.
pub type Keys = &'static [(&'static str, KeyType, Merge)];

/// The keys of `record.bpf.h`.
pub const RECORD_KEYS: Keys = &[
    ("tenant", KeyType::U32, Merge::Block),
    ("port", KeyType::U16, Merge::Block),
    ("marked", KeyType::Flag, Merge::Block),
    ("seq", KeyType::U64, Merge::KeepFirst),
    ("rx_ts", KeyType::Timestamp, Merge::KeepFirst),
    ("src", KeyType::Ipv6, Merge::KeepFirst),
    ("tiny", KeyType::U8, Merge::KeepFirst),
];

/// The keys of `every_call.bpf.c`.
pub const EVERY_KEY: Keys = &[
    ("tenant", KeyType::U32, Merge::Block),
    ("flow_id", KeyType::U64, Merge::KeepFirst),
    ("src", KeyType::Ipv6, Merge::Discard),
    ("gateway", KeyType::Mac, Merge::Block),
    ("ip.tos", KeyType::U8, Merge::Block),
    ("sampled", KeyType::Flag, Merge::Block),
];

pub fn register(registry: &Registry, keys: Keys) {
    for (key, key_type, merge) in keys {
        registry.register(&spec(key, *key_type, *merge)).unwrap();
    }
}

/// Registers keys: all are `block` where there is no packet region.
pub fn register_fitting(registry: &Registry, keys: Keys) {
    let whole = registry.layout().region_len(Region::Packet) > 0;
    for &(key, key_type, merge) in keys {
        registry.register(&spec(key, key_type, if whole { merge } else { Merge::Block })).unwrap();
    }
}

/// Loads an object; without its netfilter programs, where the kernel has none.
pub fn load(object: &str, registry: &Registry) -> LoadedObject {
    let mut bound = BoundObject::from_bytes(&compile(object), object, registry).unwrap();
    leave_out_netfilter(bound.open_object_mut());
    load_bound(bound)
}

/// Loads a bound object; if the kernel refuses it, fails with the verifier's log.
pub fn load_bound(bound: BoundObject<'_>) -> LoadedObject {
    bound.load().unwrap_or_else(|error| panic!("{error}\n{}", error.verifier_log().unwrap_or_default()))
}

/// Has an object loaded without its netfilter programs, where the kernel has none.
pub fn leave_out_netfilter(object: &mut OpenObject) {
    let netfilter = |program: &OpenProgramMut<'_>| program.section().as_encoded_bytes().starts_with(b"netfilter");
    if !KernelFeature::NetfilterLinks.is_here() {
        object.progs_mut().filter(netfilter).for_each(|mut program| program.set_autoload(false));
    }
}

/// A program's descriptor, which can go to another thread.
pub fn program(object: &LoadedObject, name: &str) -> OwnedFd {
    let program = object.program(name).unwrap_or_else(|| panic!("no program {name}"));
    program.as_fd().try_clone_to_owned().unwrap()
}

/// Attaches an XDP program to one end of a link.
pub fn attach_xdp(object: &LoadedObject, name: &str, end: &End, mode: XdpMode) -> Attachment {
    let fd = program(object, name);
    end.netns().enter(|| xdp::attach(fd.as_fd(), end.ifindex(), mode)).unwrap().0
}

/// The netfilter family of a lab family.
pub fn netfilter_family(family: Family) -> NetfilterFamily {
    match family {
        Family::V4 => NetfilterFamily::Ipv4,
        Family::V6 => NetfilterFamily::Ipv6,
    }
}

/// Attaches netfilter programs; none, which is reported, where the kernel has none. What these would show is not among
/// [`record::shown`].
pub fn attach_netfilter(
    object: &LoadedObject,
    end: &End,
    family: Family,
    hooks: &[(&str, NetfilterHook)],
) -> Vec<Attachment> {
    if !kernel_has_for(KernelFeature::NetfilterLinks, "what netfilter shows") {
        return Vec::new();
    }
    hooks
        .iter()
        .map(|(name, hook)| {
            let fd = program(object, name);
            let options = NetfilterOptions::new(netfilter_family(family), *hook);
            end.netns().enter(|| netfilter::attach(fd.as_fd(), &options)).unwrap()
        })
        .collect()
}

pub fn attach_tc(object: &LoadedObject, name: &str, end: &End, direction: Direction) -> Attachment {
    let fd = program(object, name);
    end.netns().enter(|| tcx::attach(fd.as_fd(), end.ifindex(), &TcxOptions::new(direction))).unwrap()
}

pub fn attach_cgroup(object: &LoadedObject, name: &str, hook: CgroupHook) -> Attachment {
    cgroup::attach_path(program(object, name).as_fd(), cgroup::cgroup_root().unwrap(), hook).unwrap()
}

pub fn attach_tracing(object: &LoadedObject, names: &[&str]) -> Vec<Attachment> {
    names.iter().map(|name| tracing::attach(program(object, name).as_fd()).unwrap()).collect()
}
