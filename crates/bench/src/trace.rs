//! `traits bench trace`: what tracing costs the packets, and how many events it takes, beside bpftrace.
//!
//! A thread sends datagrams over a veth pair into a socket's queue. What comes in is worked on by the sending CPU, in the
//! thread's own time, so a packet's price is the thread's CPU time for all of its way: that is what the rate is of, and
//! what else the machine does disturbs it little. The cases of a round follow each other.

use std::{
    cell::RefCell,
    error::Error,
    io::{self, BufRead, BufReader, Write},
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use packet_traits::{
    KeyType, Merge,
    attach::{Attachment, XdpMode, xdp},
    bind::{BoundObject, LoadedObject},
    registry::Registry,
};
use packet_traits_lab::{Bpffs, End, Family, Netns, Pair, send_many_numbered, udp_socket};
use packet_traits_trace::{Condition, Names, Namespace, Options as TraceOptions, Standby, Tracer, write::text};
use serde::Serialize;

use super::{
    progress,
    rig::{self, kernel_release},
    statistics::Summary,
};
use packet_traits_terminal::{
    Outcome,
    interrupt::{Interrupt, Interrupted},
    output::{self, Table},
};

/// The object compiled from `bpf/trace.bpf.c`.
pub(super) static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/trace.bpf.o"));

const PORT: u16 = 7000;
/// The keys of `trace.bpf.c`.
pub(super) const KEYS: [(&str, KeyType, Merge); 2] =
    [("tenant", KeyType::U32, Merge::Block), ("packet_id", KeyType::U64, Merge::KeepFirst)];
/// The number of batches in which a case's datagrams are sent.
const BATCHES: u64 = 20;
/// The least of them while the tracer looks whether many come in.
const BATCH_MIN: u64 = 1000;
/// Bytes that a batch may take in the queue.
const QUEUE: libc::c_int = 1 << 28;
/// Bytes of a datagram.
const SIZE: usize = 64;
/// A filter that nothing matches should leave this part of the packets' rate.
const EXPECTED_NONE: f64 = 0.97;
/// How many times the events that bpftrace takes the tracer should take.
const EXPECTED_EVENTS: f64 = 3.0;
/// How long the tracer may take to see that nothing matches.
const STAND_BY_MAX: Duration = Duration::from_secs(10);
/// How long what has just changed may take: points that are taken away, the last events that are printed.
const SETTLE: Duration = Duration::from_millis(300);

/// How long is waited for them at most.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// The tracepoints that the tracer is on and that bpftrace can print.
const TRACEPOINTS: [&str; 10] = [
    "net:napi_gro_receive_entry",
    "net:netif_receive_skb",
    "net:net_dev_queue",
    "net:net_dev_start_xmit",
    "net:netif_rx",
    "skb:consume_skb",
    "skb:kfree_skb",
    "fib:fib_table_lookup",
    "sock:sk_data_ready",
    "sock:sock_recv_length",
];

/// Measure what tracing costs, and how many events it takes, beside bpftrace
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    /// Rounds, each of which measures every case once
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Datagrams in each case of a round
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1000..))]
    packets: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Examples:
  traits bench trace
  traits bench trace --rounds 20 --packets 1000000
  traits bench trace --json | jq .expectation

Needs root. Makes a registry and network namespaces of its own, and leaves nothing behind.

PACKETS/S is of the sending thread's CPU time, in which the kernel also receives the packets, up to the socket's \
queue. TO UNTRACED is that as a multiple of the case without a tracer. IDS are the tracer's own or a policy's. If \
there is a bpftrace, it prints the same tracepoints of the same traffic.

docs/bench.md describes the cases, docs/json.md the JSON.";

/// Whose ids packets have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ids {
    Own,
    Policy,
}

impl Ids {
    fn name(self) -> &'static str {
        match self {
            Ids::Own => "own",
            Ids::Policy => "policy",
        }
    }
}

/// A case: how packets are traced.
#[derive(Clone, Copy)]
struct Case {
    ids: Ids,
    name: &'static str,
    how: How,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Untraced,
    /// With a filter that matches nothing.
    None,
    /// The same, with all points left in place.
    NoneArmed,
    /// One packet in N.
    OneIn(u32),
}

const CASES: [Case; 10] = {
    const fn case(ids: Ids, name: &'static str, how: How) -> Case {
        Case { ids, name, how }
    }
    [
        case(Ids::Own, "untraced", How::Untraced),
        case(Ids::Own, "none", How::None),
        case(Ids::Own, "armed", How::NoneArmed),
        case(Ids::Own, "sampled", How::OneIn(1000)),
        case(Ids::Own, "all", How::OneIn(1)),
        case(Ids::Policy, "untraced", How::Untraced),
        case(Ids::Policy, "none", How::None),
        case(Ids::Policy, "armed", How::NoneArmed),
        case(Ids::Policy, "sampled", How::OneIn(1000)),
        case(Ids::Policy, "all", How::OneIn(1)),
    ]
};

/// One case, once.
struct Sample {
    pps: f64,
    events_per_s: f64,
    lost: u64,
}

#[derive(Serialize)]
struct CaseJson {
    ids: &'static str,
    name: &'static str,
    pps: f64,
    spread: f64,
    to_untraced: f64,
    events_per_s: f64,
    lost: u64,
}

#[derive(Serialize)]
struct BpftraceJson {
    version: String,
    pps: f64,
    to_untraced: f64,
    events_per_s: f64,
    lost: u64,
    events_to_bpftrace: f64,
}

#[derive(Serialize)]
struct ExpectationJson {
    none_to_untraced: f64,
    none_to_untraced_policy: f64,
    events_to_bpftrace: Option<f64>,
    held: bool,
}

#[derive(Serialize)]
struct Report {
    kernel: String,
    rounds: u32,
    packets: u64,
    cases: Vec<CaseJson>,
    bpftrace: Option<BpftraceJson>,
    expectation: ExpectationJson,
}

pub(super) fn run(options: &Options) -> Outcome {
    let interrupt = Interrupt::catch()?;
    let bpftrace = bpftrace_version();
    let measured = interrupt.over(measure(options, bpftrace.is_some(), &interrupt), Interrupted::NOTHING_LEFT);
    progress::hide();
    let (samples, printed) = measured?;
    let report = report(options, &samples, bpftrace, &printed);
    if options.json { Ok(output::json(&report)?) } else { print(&report) }
}

/// The samples of each case, and bpftrace's.
type Measured = (Vec<Vec<Sample>>, Vec<Sample>);

/// Measures every case as often as asked for, or until it is interrupted.
fn measure(options: &Options, with_bpftrace: bool, interrupt: &Interrupt) -> Result<Measured, Box<dyn Error>> {
    let rig = Rig::new()?;
    let mut samples: Vec<Vec<Sample>> = CASES.iter().map(|_| Vec::new()).collect();
    let mut printed: Vec<Sample> = Vec::new();
    for round in 0..options.rounds {
        progress::show((round * 10) as usize, options.rounds * 10);
        for (case, of_case) in CASES.into_iter().zip(&mut samples) {
            if interrupt.came() {
                return Ok(Measured::default());
            }
            of_case.push(rig.measure(case, options.packets)?);
        }
        if with_bpftrace {
            printed.extend(rig.measure_bpftrace(options.packets)?);
        }
    }
    Ok((samples, printed))
}

pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    Summary::of(values).map_or(0.0, |summary| summary.median)
}

fn report(options: &Options, samples: &[Vec<Sample>], bpftrace: Option<String>, printed: &[Sample]) -> Report {
    let untraced = |ids: Ids| CASES.iter().position(|case| case.ids == ids && case.how == How::Untraced).unwrap_or(0);
    let mut cases = Vec::new();
    for (case, of_case) in CASES.into_iter().zip(samples) {
        let pps = Summary::of(of_case.iter().map(|sample| sample.pps));
        // within a round, so that what else the machine does is in both
        let pairs = of_case.iter().zip(&samples[untraced(case.ids)]);
        cases.push(CaseJson {
            ids: case.ids.name(),
            name: case.name,
            pps: pps.map_or(0.0, |pps| pps.median),
            spread: pps.map_or(0.0, |pps| pps.spread),
            to_untraced: median(pairs.map(|(sample, untraced)| sample.pps / untraced.pps)),
            events_per_s: median(of_case.iter().map(|sample| sample.events_per_s)),
            lost: of_case.iter().map(|sample| sample.lost).sum(),
        });
    }
    let case = |ids: &str, name: &str| cases.iter().find(|case| case.ids == ids && case.name == name);
    let all = case("own", "all").map_or(0.0, |case| case.events_per_s);
    let bpftrace = bpftrace.filter(|_| !printed.is_empty()).map(|version| {
        let events_per_s = median(printed.iter().map(|sample| sample.events_per_s));
        BpftraceJson {
            version,
            pps: median(printed.iter().map(|sample| sample.pps)),
            to_untraced: median(printed.iter().zip(&samples[0]).map(|(sample, untraced)| sample.pps / untraced.pps)),
            events_per_s,
            lost: printed.iter().map(|sample| sample.lost).sum(),
            events_to_bpftrace: all / events_per_s.max(1.0),
        }
    });
    let none = |ids| case(ids, "none").map_or(0.0, |case| case.to_untraced);
    let (none_to_untraced, none_to_untraced_policy) = (none("own"), none("policy"));
    let events_to_bpftrace = bpftrace.as_ref().map(|bpftrace| bpftrace.events_to_bpftrace);
    let held = none_to_untraced.min(none_to_untraced_policy) >= EXPECTED_NONE
        && events_to_bpftrace.is_none_or(|ratio| ratio >= EXPECTED_EVENTS);
    Report {
        kernel: kernel_release(),
        rounds: options.rounds,
        packets: options.packets,
        expectation: ExpectationJson { none_to_untraced, none_to_untraced_policy, events_to_bpftrace, held },
        cases,
        bpftrace,
    }
}

fn print(report: &Report) -> Outcome {
    let mut table = Table::new(&["IDS", "CASE", "PACKETS/S", "SPREAD", "TO UNTRACED", "EVENTS/S", "LOST"]);
    for case in &report.cases {
        table.row(&[
            &case.ids,
            &case.name,
            &format!("{:.0}", case.pps),
            &format!("{:.0}", case.spread),
            &format!("{:.3}", case.to_untraced),
            &format!("{:.0}", case.events_per_s),
            &case.lost,
        ]);
    }
    if let Some(bpftrace) = &report.bpftrace {
        table.row(&[
            &"-",
            &bpftrace.version,
            &format!("{:.0}", bpftrace.pps),
            &"-",
            &format!("{:.3}", bpftrace.to_untraced),
            &format!("{:.0}", bpftrace.events_per_s),
            &bpftrace.lost,
        ]);
    }
    table.print()?;
    let ExpectationJson { none_to_untraced, none_to_untraced_policy, events_to_bpftrace, held } = &report.expectation;
    let events = match events_to_bpftrace {
        Some(ratio) => format!("{ratio:.1} times bpftrace's events (expected {EXPECTED_EVENTS})"),
        None => "no bpftrace to compare with".to_owned(),
    };
    output::line(format_args!(
        "\nNone matching: {none_to_untraced:.3} of the untraced rate, by a policy's ids {none_to_untraced_policy:.3} \
         (expected {EXPECTED_NONE});\n{events}: {} in this run",
        if *held { "held" } else { "did not hold" }
    ))?;
    Ok(())
}

/// What does not change between cases.
struct Rig {
    pair: Pair,
    registry: Registry,
    object: LoadedObject,
    datagrams: Datagrams,
    // last, since the registry is pinned in it
    _bpffs: Bpffs,
}

impl Rig {
    fn new() -> Result<Rig, Box<dyn Error>> {
        let bpffs = Bpffs::new()?;
        let registry = rig::registry(&bpffs, &KEYS)?;
        let object = BoundObject::from_bytes(OBJECT, "trace.bpf.o", &registry)?.load()?;
        let pair = Pair::new()?;
        let datagrams = Datagrams::new(pair.tx(), pair.rx())?;
        Ok(Rig { pair, registry, object, datagrams, _bpffs: bpffs })
    }

    /// Attaches one of the programs that are there when nothing is traced.
    fn attach(&self, program: &str) -> Result<Attachment, Box<dyn Error>> {
        attach(&self.object, program, self.pair.rx(), XdpMode::Native)
    }

    /// Measures a case once.
    fn measure(&self, case: Case, packets: u64) -> Result<Sample, Box<dyn Error>> {
        let _entry = match (case.ids, case.how) {
            (Ids::Policy, _) => Some(self.attach("policy")?),
            (Ids::Own, How::Untraced) => Some(self.attach("nothing")?),
            (Ids::Own, _) => None,
        };
        if case.how == How::Untraced {
            let pps = self.datagrams.send(packets).map_err(|error| error.to_string())?;
            return Ok(Sample { pps, events_per_s: 0.0, lost: 0 });
        }
        let (id, condition) = match case.ids {
            Ids::Own => (None, "dport == 9"),
            Ids::Policy => (Some("packet_id".to_owned()), "tenant == 9"),
        };
        let options = TraceOptions {
            namespaces: vec![namespace(self.pair.rx().netns())?],
            id,
            sample: if let How::OneIn(sample) = case.how { sample } else { 1 },
            standby: if case.how == How::None { Standby::Auto } else { Standby::Never },
            conditions: match case.how {
                How::None | How::NoneArmed => vec![condition.parse::<Condition>()?],
                _ => Vec::new(),
            },
            ..TraceOptions::default()
        };
        // not the rig: what it has of libbpf must stay on this thread
        let datagrams = &self.datagrams;
        let warm_up = || datagrams.send(packets.max(BATCH_MIN * BATCHES)).map(drop);
        let traced = trace_while(&self.registry, &options, warm_up, || datagrams.send(packets))?;
        Ok(Sample { pps: traced.result, events_per_s: traced.events_per_s, lost: traced.lost })
    }

    /// The same with bpftrace; `None` if it does not print.
    fn measure_bpftrace(&self, packets: u64) -> Result<Option<Sample>, Box<dyn Error>> {
        let _entry = self.attach("nothing")?;
        let mut bpftrace = Bpftrace::start(self.pair.rx().netns())?;
        if !bpftrace.wait_until_attached() {
            return Ok(None);
        }
        let started = Instant::now();
        let pps = self.datagrams.send(packets).map_err(|error| error.to_string())?;
        let (mut seen, mut at) = (bpftrace.lines.load(Ordering::Relaxed), Instant::now());
        // it prints what happens on the whole host, which may never end
        let deadline = started.elapsed() + SETTLE_MAX;
        while at.elapsed() < SETTLE && started.elapsed() < deadline {
            thread::sleep(Duration::from_millis(5));
            let lines = bpftrace.lines.load(Ordering::Relaxed);
            if lines != seen {
                (seen, at) = (lines, Instant::now());
            }
        }
        let took = at.duration_since(started);
        let lost = bpftrace.lost.load(Ordering::Relaxed);
        Ok(Some(Sample { pps, events_per_s: seen as f64 / took.as_secs_f64(), lost }))
    }
}

/// What traffic under a tracer gave.
pub(super) struct Traced<T> {
    pub(super) result: T,
    events_per_s: f64,
    lost: u64,
}

/// What a thread of traffic fails with.
pub(super) type TrafficError = Box<dyn Error + Send + Sync>;

/// Runs traffic while a tracer prints its events to nowhere. If it is to stand by while nothing matches, it gets `warm_up`
/// until it does.
pub(super) fn trace_while<T: Send>(
    registry: &Registry,
    options: &TraceOptions,
    warm_up: impl Fn() -> Result<(), TrafficError> + Send + Sync,
    traffic: impl FnOnce() -> Result<T, TrafficError> + Send,
) -> Result<Traced<T>, Box<dyn Error>> {
    let stands_by = options.standby == Standby::Auto;
    let mut tracer = Tracer::start(registry, options)?;
    let state = RefCell::new((Names::read(&options.namespaces)?, String::new(), 0u64, io::sink()));
    let reader = tracer.reader(|event| {
        let (names, line, count, to) = &mut *state.borrow_mut();
        line.clear();
        let since = event.entered().map_or(0, |entered| event.at() - entered);
        text::event(line, &event, since, None, names);
        line.push('\n');
        *count += 1;
        // a sink takes everything
        let _ = to.write_all(line.as_bytes());
    })?;
    let ready = AtomicBool::new(!stands_by);
    let (result, took) = thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let began = Instant::now();
            while !ready.load(Ordering::Relaxed) && began.elapsed() < STAND_BY_MAX {
                warm_up()?;
            }
            if stands_by {
                // the kernel is still busy with what the tracer took away
                thread::sleep(SETTLE);
            }
            let started = Instant::now();
            Ok((traffic()?, started))
        });
        while !traffic.is_finished() {
            tracer.adapt()?;
            ready.store(ready.load(Ordering::Relaxed) || !tracer.is_armed(), Ordering::Relaxed);
            if reader.read()? == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        let traced = traffic.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (result, started) = traced.map_err(|error: TrafficError| error.to_string())?;
        while reader.read()? != 0 {}
        Ok::<_, Box<dyn Error>>((result, started.elapsed()))
    })?;
    drop(reader);
    if !ready.into_inner() {
        return Err("the tracer did not stand by though nothing matched: too few packets in a second?".into());
    }
    let count = state.into_inner().2;
    let lost = tracer.counters()?.lost_events();
    Ok(Traced { result, events_per_s: count as f64 / took.as_secs_f64(), lost })
}

/// Attaches a program of `trace.bpf.c` where packets come in.
pub(super) fn attach(
    object: &LoadedObject,
    program: &str,
    to: &End,
    mode: XdpMode,
) -> Result<Attachment, Box<dyn Error>> {
    let program = object.program(program).ok_or("trace.bpf.o has changed")?;
    let fd: OwnedFd = program.as_fd().try_clone_to_owned()?;
    Ok(to.netns().enter(|| xdp::attach(fd.as_fd(), to.ifindex(), mode))?.0)
}

/// The namespace as the tracer is given it.
pub(super) fn namespace(netns: &Netns) -> Result<Namespace, Box<dyn Error>> {
    Ok(Namespace::find(netns.path().to_str().ok_or("a path that is not text")?)?)
}

/// Datagrams from one namespace into a socket's queue in another.
pub(super) struct Datagrams {
    sender: UdpSocket,
    receiver: UdpSocket,
}

impl Datagrams {
    pub(super) fn new(from: &End, to: &End) -> Result<Datagrams, Box<dyn Error>> {
        let receiver = udp_socket(to.netns(), to.addr(Family::V4, PORT))?;
        receiver.set_nonblocking(true)?;
        set_queue(&receiver)?;
        let sender = udp_socket(from.netns(), from.addr(Family::V4, 0))?;
        sender.connect(to.addr(Family::V4, PORT))?;
        Ok(Datagrams { sender, receiver })
    }

    /// Sends, several times, and returns how fast that went: the median. Between batches the queue is read empty, so that
    /// nobody has to be woken while the clock runs.
    pub(super) fn send(&self, packets: u64) -> Result<f64, TrafficError> {
        let mut rates = Vec::new();
        let mut buffer = [0; 2048];
        let batch = packets / BATCHES;
        for round in 0..=BATCHES {
            let started = cpu_time();
            send_many_numbered(&self.sender, 0..batch, SIZE).map_err(|error| error.to_string())?;
            let took = cpu_time().saturating_sub(started).as_secs_f64();
            while self.receiver.recv(&mut buffer).is_ok() {}
            // the first packets of a path are slow
            if round != 0 && took > 0.0 {
                rates.push(batch as f64 / took);
            }
        }
        Ok(median(rates.into_iter()))
    }
}

/// Has a socket's queue hold a batch.
fn set_queue(socket: &UdpSocket) -> io::Result<()> {
    // SAFETY: an option of type int, with its length.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            std::ptr::from_ref(&QUEUE).cast(),
            size_of_val(&QUEUE) as libc::socklen_t,
        )
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What this thread has used of its CPU, in the kernel's work on packets as well.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing; the clock exists, so this cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn bpftrace_version() -> Option<String> {
    let output = Command::new("bpftrace").arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()).filter(|version| !version.is_empty())
}

/// A bpftrace that prints tracepoints. It ends when it is dropped, and with this process.
struct Bpftrace {
    child: Child,
    lines: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    attached: Arc<AtomicBool>,
}

impl Bpftrace {
    fn start(netns: &Netns) -> Result<Bpftrace, Box<dyn Error>> {
        let script: String = TRACEPOINTS
            .iter()
            .map(|name| {
                let argument = match *name {
                    "fib:fib_table_lookup" => "args->tb_id",
                    "sock:sk_data_ready" => "args->protocol",
                    "sock:sock_recv_length" => "args->ret",
                    _ => "args->skbaddr",
                };
                format!("tracepoint:{name} {{ printf(\"%llu %s %d %lx\\n\", nsecs, probe, cpu, {argument}); }}\n")
            })
            .collect();
        // it finds tracepoints in tracefs, which is mounted for it alone
        let mut child = netns
            .command("unshare")
            .args([
                "-m",
                "sh",
                "-c",
                "mount -t tracefs tracefs /sys/kernel/tracing && exec bpftrace -e \"$0\"",
                &script,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot run `unshare`, which mounts tracefs for bpftrace: {error}"))?;
        let stdout = child.stdout.take().ok_or("bpftrace has no output")?;
        let (lines, lost, attached) = <(Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicBool>)>::default();
        let (counted, missed, ready) = (Arc::clone(&lines), Arc::clone(&lost), Arc::clone(&attached));
        thread::spawn(move || {
            let mut reader = BufReader::with_capacity(1 << 20, stdout);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|len| len != 0) {
                if line.starts_with(b"Attaching") {
                    ready.store(true, Ordering::Relaxed);
                } else if let Some(rest) = line.strip_prefix(b"Lost ") {
                    let count = rest.split(|byte| *byte == b' ').next().unwrap_or_default();
                    let count = std::str::from_utf8(count).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
                    missed.fetch_add(count, Ordering::Relaxed);
                } else {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                line.clear();
            }
        });
        Ok(Bpftrace { child, lines, lost, attached })
    }

    /// Waits until it says that it attaches, and a little longer, in which it does.
    fn wait_until_attached(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if self.attached.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_secs(1));
                return true;
            }
            if !matches!(self.child.try_wait(), Ok(None)) {
                return false;
            }
            thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
