//! Runs the programs of `bpf/ops.bpf.c` and says how long each took.
//!
//! Everything is held by descriptors of this process (a bpffs without a mount point, namespaces without a name), so
//! nothing is left behind however it ends.

use std::{
    collections::HashMap,
    error::Error,
    io, mem,
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use libbpf_rs::{MapCore, MapFlags, ProgramInput};
use packet_traits::{
    KeyName, KeyType, Merge,
    attach::{AttachError, Attachment, Direction, TcxOptions, XdpMode, tcx, xdp},
    bind::{BoundObject, LoadedObject},
    registry::{KeySpec, Registry},
};
use packet_traits_lab::{
    Bpffs, PacketSocket, Pair, RECV_TIMEOUT,
    frame::{ETHERTYPE_EXPERIMENTAL, ethernet},
};

/// The object compiled from `bpf/ops.bpf.c`.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ops.bpf.o"));

/// How often a program calls its operation in one run; `CALLS` in `ops.bpf.c`.
pub(super) const CALLS: u32 = 10_000;

/// The keys that `ops.bpf.c` declares.
const KEYS: [(&str, KeyType, Merge); 4] = [
    ("flow", KeyType::U64, Merge::Block),
    ("flow_small", KeyType::U32, Merge::Block),
    ("first", KeyType::U64, Merge::KeepFirst),
    ("first_small", KeyType::U32, Merge::KeepFirst),
];

/// The programs run by BPF_PROG_TEST_RUN, in the order of a round.
const XDP_OPERATIONS: [&str; 17] = [
    "empty",
    "empty_sink",
    "raw_get",
    "get",
    "get_keep_first",
    "batch_get4",
    "raw_set",
    "set",
    "set_keep_first",
    "set_del",
    "adjust_meta",
    "reserve_seal",
    "call",
    "helper",
    KFUNC,
    "array",
    "lru_percpu_hash",
];

/// Needs Linux 6.4.
const KFUNC: &str = "kfunc";

/// What `skb_bench` reports, in the order of `struct skb_times`.
const SKB_OPERATIONS: [&str; 5] = ["skb_empty", "skb_get", "skb_get_keep_first", "skb_batch_get4", "tc_get"];

/// An Ethernet frame of the smallest size.
const FRAME_LEN: usize = 60;

/// `XDP_PASS` (include/uapi/linux/bpf.h): the operation did what it should.
const PASS: u32 = 2;

/// What does not change between loads: a registry and a link.
pub(super) struct Rig {
    registry: Registry,
    pair: Pair,
    // last, since the registry is pinned in it
    _bpffs: Bpffs,
}

/// One load of the programs. The kernel puts programs at a random place, so two loads differ.
pub(super) struct Load<'r> {
    object: LoadedObject,
    _attached: [Attachment; 2],
    sender: PacketSocket,
    frame: Vec<u8>,
    _rig: &'r Rig,
}

/// Nanoseconds per call of every operation, one after the other.
pub(super) struct Round(HashMap<&'static str, f64>);

impl Round {
    /// Nanoseconds of one call, including the call itself; `None` if this kernel does not have what it takes.
    pub(super) fn ns(&self, operation: &str) -> Option<f64> {
        self.0.get(operation).copied()
    }
}

/// A registry with these keys, pinned in a bpffs that must outlive it.
pub(super) fn registry(bpffs: &Bpffs, keys: &[(&str, KeyType, Merge)]) -> Result<Registry, Box<dyn Error>> {
    let registry = Registry::options().bpffs(bpffs.path()).create()?;
    for (name, key_type, merge) in keys {
        registry.register(&KeySpec::new(KeyName::new(name)?, *key_type).merge(*merge))?;
    }
    Ok(registry)
}

impl Rig {
    /// Makes the registry and the link.
    pub(super) fn new() -> Result<Rig, Box<dyn Error>> {
        let bpffs = Bpffs::new()?;
        let registry = registry(&bpffs, &KEYS)?;
        Ok(Rig { registry, pair: Pair::new()?, _bpffs: bpffs })
    }

    /// Loads the programs and attaches those that work on packets from the link.
    pub(super) fn load(&self) -> Result<Load<'_>, Box<dyn Error>> {
        let object = BoundObject::from_bytes(OBJECT, "ops.bpf.o", &self.registry)?.load()?;
        let program = |name| object.program(name).ok_or_else(|| missing(name));
        let (assign, skb_bench) = (program("assign")?, program("skb_bench")?);
        let (assign, skb_bench) = (assign.as_fd(), skb_bench.as_fd());
        let receiver = self.pair.rx();
        let attached = receiver.netns().enter(|| {
            Ok::<_, AttachError>([
                xdp::attach(assign, receiver.ifindex(), XdpMode::Native)?.0,
                tcx::attach(skb_bench, receiver.ifindex(), &TcxOptions::new(Direction::Ingress))?,
            ])
        })?;
        let payload = [0; FRAME_LEN - 14];
        let sender = self.pair.tx();
        let frame = ethernet(receiver.mac(), sender.mac(), ETHERTYPE_EXPERIMENTAL, &payload);
        Ok(Load { sender: PacketSocket::on(sender)?, frame, object, _attached: attached, _rig: self })
    }
}

impl Load<'_> {
    /// Measures every operation once.
    pub(super) fn round(&mut self) -> Result<Round, Box<dyn Error>> {
        let mut round = HashMap::new();
        for operation in XDP_OPERATIONS {
            if let Some(took) = self.run(operation)? {
                round.insert(operation, took.as_nanos() as f64 / f64::from(CALLS));
            }
        }
        for (operation, ns) in SKB_OPERATIONS.into_iter().zip(self.measure_packet()?) {
            if ns == 0 {
                return Err(failed(operation));
            }
            round.insert(operation, ns as f64 / f64::from(CALLS));
        }
        Ok(Round(round))
    }

    /// Runs one program.
    fn run(&mut self, name: &'static str) -> Result<Option<Duration>, Box<dyn Error>> {
        let mut programs = self.object.object_mut().progs_mut();
        let program = programs.find(|program| program.name() == name).ok_or_else(|| missing(name))?;
        let input = ProgramInput { data_in: Some(&self.frame), repeat: 1, ..ProgramInput::default() };
        let output = program.test_run(input).map_err(|error| format!("running program {name} by test_run: {error}"))?;
        match output.return_value {
            PASS => Ok(Some(output.duration)),
            _ if name == KFUNC => Ok(None),
            _ => Err(failed(name)),
        }
    }

    /// Sends one packet and waits for what `skb_bench` measured on it.
    fn measure_packet(&self) -> Result<[u64; SKB_OPERATIONS.len()], Box<dyn Error>> {
        let (before, _) = self.skb_times()?;
        self.sender.send(&self.frame)?;
        let deadline = Instant::now() + RECV_TIMEOUT;
        loop {
            let (packets, times) = self.skb_times()?;
            if packets != before {
                return Ok(times);
            }
            if Instant::now() > deadline {
                return Err(format!("the packet sent to the tc program did not arrive within {RECV_TIMEOUT:?}").into());
            }
            // receiving is done by the time that send returns, unless the machine is busy
            thread::sleep(Duration::from_micros(100));
        }
    }

    /// Number of packets so far, and the times of the last.
    fn skb_times(&self) -> Result<(u64, [u64; SKB_OPERATIONS.len()]), Box<dyn Error>> {
        let map = self.object.map("skb_times").ok_or_else(|| missing("skb_times"))?;
        let value = map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY)?.ok_or_else(|| missing("skb_times"))?;
        let (words, _) = value.as_chunks();
        let mut words = words.iter().map(|word| u64::from_ne_bytes(*word));
        let mut next = || words.next().ok_or_else(|| missing("skb_times"));
        let packets = next()?;
        let mut times = [0; SKB_OPERATIONS.len()];
        for time in &mut times {
            *time = next()?;
        }
        Ok((packets, times))
    }
}

fn missing(name: &str) -> Box<dyn Error> {
    format!("ops.bpf.o has no {name}: this command was built from sources that do not belong together").into()
}

fn failed(operation: &str) -> Box<dyn Error> {
    format!("operation {operation} failed on this kernel, there is nothing to measure; `traits doctor` says more")
        .into()
}

/// Keeps the calling thread, and those it starts, on the CPU it is on. Returns that CPU.
pub(super) fn pin_to_cpu() -> io::Result<usize> {
    // SAFETY: takes nothing.
    let cpu = usize::try_from(unsafe { libc::sched_getcpu() }).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: a cpu_set_t is an array of integers, for which all zeroes is a value.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: CPU_SET indexes its array with a bounds check, sched_setaffinity reads `set` for its length.
    let failed = unsafe {
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, mem::size_of_val(&set), &set)
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cpu)
}

/// Release of the running kernel.
pub(super) fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
