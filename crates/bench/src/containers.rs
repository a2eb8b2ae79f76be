//! `traits bench containers`: what XDP at a veth, in each mode, and the tracer at a bridge cost what network namespaces send
//! each other.
//!
//! A veth whose peer has native XDP sends no large packets, and generic XDP copies them into one piece: bulk traffic of
//! TCP feels that, and small packets do not. So there are three kinds of traffic.

use std::{
    error::Error,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use packet_traits::{
    attach::XdpMode,
    bind::{BoundObject, LoadedObject},
    registry::Registry,
};
use packet_traits_lab::{Bpffs, Containers, End, Family, Pair, VethOptions};
use packet_traits_trace::{Condition, Options as TraceOptions, Standby};
use serde::Serialize;

use super::{
    progress,
    rig::{self, kernel_release},
    statistics::Summary,
    trace::{Datagrams, KEYS, OBJECT, TrafficError, attach, median, namespace, trace_while},
};
use packet_traits_terminal::{
    Outcome,
    interrupt::{Interrupt, Interrupted},
    output::{self, Table},
};

/// Connections of the traffic `streams`.
const STREAMS: usize = 16;
/// What a stream's sender writes at once.
const WRITE: usize = 128 << 10;
/// What the traffic `small` sends, in datagrams.
const SMALL: u64 = 100_000;

/// Measure what XDP at a veth and the tracer at a bridge cost traffic between network namespaces
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    /// Rounds, each of which measures every case once
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Milliseconds of each kind of TCP traffic in a case of a round
    #[arg(long, value_name = "MS", default_value_t = 500, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    time: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Examples:
  traits bench containers
  traits bench containers --rounds 20 --time 1000
  traits bench containers --json | jq '.cases[] | select(.link == \"bridge\")'

Needs root. Makes a registry and network namespaces of its own, and leaves nothing behind.

STREAM and STREAMS are of one and of 16 TCP connections, in Gbit/s of what was received. SMALL are datagrams of 64 bytes, per \
second of the sending thread's CPU time, in which the kernel also receives them. The column behind each is that as a \
multiple of the link's first case.

docs/bench.md describes the cases, docs/json.md the JSON.";

/// What the traffic goes over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    /// A veth pair between two namespaces.
    Veth,
    /// Two containers at a host's bridge.
    Bridge,
}

impl Link {
    fn name(self) -> &'static str {
        match self {
            Link::Veth => "veth",
            Link::Bridge => "bridge",
        }
    }
}

/// What is done to the traffic.
#[derive(Clone, Copy)]
enum How {
    Nothing,
    /// An XDP program of `trace.bpf.c` where the receiver's packets come in.
    Xdp {
        program: &'static str,
        mode: XdpMode,
        /// Whether the interface merges packets before them.
        gro: bool,
    },
    /// The tracer in the host's namespace, with a condition that nothing matches.
    None(Standby, XdpMode),
    /// The tracer there, which follows one packet of this many.
    OneIn(u32, XdpMode),
}

struct Case {
    link: Link,
    name: &'static str,
    how: How,
}

const CASES: [Case; 11] = {
    const fn bridge(name: &'static str, how: How) -> Case {
        Case { link: Link::Bridge, name, how }
    }
    const fn xdp(name: &'static str, program: &'static str, mode: XdpMode, gro: bool) -> Case {
        Case { link: Link::Veth, name, how: How::Xdp { program, mode, gro } }
    }
    [
        Case { link: Link::Veth, name: "no_xdp", how: How::Nothing },
        xdp("empty_native", "nothing", XdpMode::Native, false),
        xdp("traits_native", "policy", XdpMode::Native, false),
        xdp("traits_native_gro", "policy", XdpMode::Native, true),
        xdp("traits_generic", "policy", XdpMode::Generic, false),
        bridge("untraced", How::Nothing),
        bridge("none", How::None(Standby::Auto, XdpMode::Auto)),
        bridge("armed", How::None(Standby::Never, XdpMode::Auto)),
        bridge("armed_generic", How::None(Standby::Never, XdpMode::Generic)),
        bridge("sampled", How::OneIn(1000, XdpMode::Auto)),
        bridge("sampled_generic", How::OneIn(1000, XdpMode::Generic)),
    ]
};

/// One case, once: Gbit/s of one stream and of many, and small packets a second.
#[derive(Clone, Copy)]
struct Sample {
    stream: f64,
    streams: f64,
    small: f64,
}

/// One kind of traffic of a case.
#[derive(Serialize)]
struct RateJson {
    rate: f64,
    spread: f64,
    to_first: f64,
}

#[derive(Serialize)]
struct CaseJson {
    link: &'static str,
    name: &'static str,
    /// Gbit/s.
    stream: RateJson,
    /// Gbit/s of all together.
    streams: RateJson,
    /// Datagrams a second.
    small: RateJson,
}

#[derive(Serialize)]
struct Report {
    kernel: String,
    rounds: u32,
    time_ms: u64,
    cases: Vec<CaseJson>,
}

pub(super) fn run(options: &Options) -> Outcome {
    let interrupt = Interrupt::catch()?;
    let measured = interrupt.over(measure(options, &interrupt), Interrupted::NOTHING_LEFT);
    progress::hide();
    let report = report(options, &measured?);
    if options.json { Ok(output::json(&report)?) } else { print(&report) }
}

/// Measures every case as often as asked for, or until it is interrupted.
fn measure(options: &Options, interrupt: &Interrupt) -> Result<Vec<Vec<Sample>>, Box<dyn Error>> {
    let rig = Rig::new(Duration::from_millis(options.time))?;
    let mut samples: Vec<Vec<Sample>> = CASES.iter().map(|_| Vec::new()).collect();
    for round in 0..options.rounds {
        progress::show((round * 10) as usize, options.rounds * 10);
        for (case, of_case) in CASES.iter().zip(&mut samples) {
            if interrupt.came() {
                return Ok(Vec::new());
            }
            of_case.push(rig.measure(case)?);
        }
    }
    Ok(samples)
}

fn report(options: &Options, samples: &[Vec<Sample>]) -> Report {
    let mut cases = Vec::new();
    for (case, of_case) in CASES.iter().zip(samples) {
        let first = CASES.iter().position(|first| first.link == case.link).unwrap_or(0);
        let rate = |of: fn(&Sample) -> f64| {
            let summary = Summary::of(of_case.iter().map(of)).unwrap_or(Summary { median: 0.0, spread: 0.0 });
            // within a round, so that what else the machine does is in both
            let pairs = of_case.iter().zip(&samples[first]);
            let to_first = median(pairs.map(|(sample, first)| of(sample) / of(first)));
            RateJson { rate: summary.median, spread: summary.spread, to_first }
        };
        cases.push(CaseJson {
            link: case.link.name(),
            name: case.name,
            stream: rate(|sample| sample.stream),
            streams: rate(|sample| sample.streams),
            small: rate(|sample| sample.small),
        });
    }
    Report { kernel: kernel_release(), rounds: options.rounds, time_ms: options.time, cases }
}

fn print(report: &Report) -> Outcome {
    let mut table = Table::new(&["LINK", "CASE", "STREAM", "", "STREAMS", "", "SMALL", ""]);
    for case in &report.cases {
        let ratio = |rate: &RateJson| format!("{:.2}", rate.to_first);
        table.row(&[
            &case.link,
            &case.name,
            &format!("{:.1}", case.stream.rate),
            &ratio(&case.stream),
            &format!("{:.1}", case.streams.rate),
            &ratio(&case.streams),
            &format!("{:.0}", case.small.rate),
            &ratio(&case.small),
        ]);
    }
    table.print()?;
    Ok(())
}

/// What does not change between cases.
struct Rig {
    pair: Pair,
    merging: Pair,
    containers: Containers,
    object: LoadedObject,
    registry: Registry,
    time: Duration,
    // last, since the registry is pinned in it
    _bpffs: Bpffs,
}

impl Rig {
    fn new(time: Duration) -> Result<Rig, Box<dyn Error>> {
        let bpffs = Bpffs::new()?;
        let registry = rig::registry(&bpffs, &KEYS)?;
        let object = BoundObject::from_bytes(OBJECT, "trace.bpf.o", &registry)?.load()?;
        let merging = Pair::with(&VethOptions::new().gro(true))?;
        Ok(Rig { pair: Pair::new()?, merging, containers: Containers::new()?, object, registry, time, _bpffs: bpffs })
    }

    /// Measures a case once.
    fn measure(&self, case: &Case) -> Result<Sample, Box<dyn Error>> {
        let [from, to] = match (case.link, case.how) {
            (Link::Bridge, _) => self.containers.ends(),
            (Link::Veth, How::Xdp { gro: true, .. }) => [self.merging.tx(), self.merging.rx()],
            (Link::Veth, _) => [self.pair.tx(), self.pair.rx()],
        };
        let traffic = Traffic::new(from, to, self.time)?;
        let _attached = match case.how {
            How::Xdp { program, mode, .. } => Some(attach(&self.object, program, to, mode)?),
            _ => None,
        };
        let namespaces = vec![namespace(self.containers.host())?];
        let traced = |standby, xdp_mode| TraceOptions { namespaces, standby, xdp_mode, ..TraceOptions::default() };
        let options = match case.how {
            How::Nothing | How::Xdp { .. } => return Ok(traffic.all().map_err(|error| error.to_string())?),
            How::None(standby, mode) => {
                TraceOptions { conditions: vec!["dport == 9".parse::<Condition>()?], ..traced(standby, mode) }
            }
            How::OneIn(sample, mode) => TraceOptions { sample, ..traced(Standby::Never, mode) },
        };
        let warm_up = || traffic.small().map(drop);
        Ok(trace_while(&self.registry, &options, warm_up, || traffic.all())?.result)
    }
}

/// The sides of a link, and its small packets.
struct Traffic<'l> {
    from: &'l End,
    to: &'l End,
    datagrams: Datagrams,
    time: Duration,
}

impl Traffic<'_> {
    fn new<'l>(from: &'l End, to: &'l End, time: Duration) -> Result<Traffic<'l>, Box<dyn Error>> {
        Ok(Traffic { from, to, datagrams: Datagrams::new(from, to)?, time })
    }

    /// Each kind, one after the other.
    fn all(&self) -> Result<Sample, TrafficError> {
        Ok(Sample { stream: self.streams(1)?, streams: self.streams(STREAMS)?, small: self.small()? })
    }

    fn small(&self) -> Result<f64, TrafficError> {
        self.datagrams.send(SMALL)
    }

    /// Gbit/s over `count` new connections: what the sender may send large is settled when they are made.
    fn streams(&self, count: usize) -> Result<f64, TrafficError> {
        // any port: those of the case before may still be taken
        let listener = self.to.netns().enter(|| TcpListener::bind(self.to.addr(Family::V4, 0)))?;
        let addr = listener.local_addr()?;
        let mut connections = Vec::new();
        for _ in 0..count {
            let sender = self.from.netns().enter(|| TcpStream::connect(addr))?;
            connections.push((sender, listener.accept()?.0));
        }
        let started = Instant::now();
        let deadline = started + self.time;
        let received = thread::scope(|scope| {
            let receivers: Vec<_> = connections
                .into_iter()
                .map(|(mut sender, mut receiver)| {
                    scope.spawn(move || {
                        let data = vec![0; WRITE];
                        while Instant::now() < deadline {
                            sender.write_all(&data)?;
                        }
                        Ok::<_, std::io::Error>(())
                    });
                    scope.spawn(move || {
                        let (mut data, mut received) = (vec![0; WRITE], 0);
                        loop {
                            match receiver.read(&mut data)? {
                                0 => return Ok::<_, std::io::Error>(received),
                                len => received += len,
                            }
                        }
                    })
                })
                .collect();
            let joined = receivers
                .into_iter()
                .map(|receiver| receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            joined.sum::<Result<usize, _>>()
        })?;
        Ok(received as f64 * 8.0 / 1e9 / started.elapsed().as_secs_f64())
    }
}
