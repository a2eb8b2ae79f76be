//! `traits bench border`: what a border costs a packet, beside an interface without one and one with an empty program.

use std::{
    error::Error,
    os::fd::{AsFd, OwnedFd},
};

use clap::value_parser;
use libbpf_rs::{MapCore, MapFlags};
use packet_traits::{
    KeyType, Merge,
    attach::{Attachment, Direction, TcxOptions, XdpMode, tcx, xdp},
    bind::{BoundObject, LoadedObject},
    border::Border,
    registry::Registry,
};
use packet_traits_lab::{Bpffs, Chain, End, Feature, VethOptions};
use serde::Serialize;

use super::{
    rig::{self, kernel_release, pin_to_cpu},
    rounds,
    statistics::Summary,
    traffic::{Traffic, set_interface, variables},
};
use packet_traits_terminal::{
    Outcome,
    interrupt::Interrupt,
    output::{self, Table},
};

/// The object compiled from `bpf/border.bpf.c`.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/border.bpf.o"));

/// Measure what a border costs a packet, beside an empty program
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    /// How often to measure everything
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Packets of a case in one round
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = value_parser!(u32).range(64..=10_000_000))]
    packets: u32,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Examples:
  traits bench border
  traits bench border --rounds 200
  traits bench border --json | jq '.cases[] | select(.at == \"border\")'

Needs root. Makes a registry and network namespaces of its own, and leaves nothing behind.

The kernel sends UDP packets over a veth pair to a router, which passes them on over another. `out`: they get traits from XDP \
there, and the border is where they go out. `in`: they have none, and the border is where they come in. NS is a packet's time \
from sending to its end; OVER EMPTY is that minus the same with an empty TC program, in the same round.

docs/bench.md describes the cases, docs/json.md the JSON.";

/// Rounds that do not count.
const WARM_UP: u32 = 2;
/// Where the packets go.
const PORT: u16 = 4001;

/// What is at the interface that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Nothing,
    Empty,
    Border,
}

impl At {
    const ALL: [At; 3] = [At::Nothing, At::Empty, At::Border];

    fn name(self) -> &'static str {
        match self {
            At::Nothing => "nothing",
            At::Empty => "empty",
            At::Border => "border",
        }
    }
}

/// A case: links, what is at them, and traffic.
struct Subject {
    direction: Direction,
    at: At,
    traffic: Traffic,
    object: LoadedObject,
    border: Option<Border>,
    _attached: Vec<Attachment>,
    _chain: Chain,
}

/// A case and its figures.
#[derive(Serialize)]
struct Case {
    direction: &'static str,
    at: &'static str,
    ns: f64,
    spread_ns: f64,
    over_empty_ns: f64,
}

#[derive(Serialize)]
struct Report {
    kernel: String,
    cpu: usize,
    rounds: u32,
    packets: u32,
    cases: Vec<Case>,
}

fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "in",
        Direction::Egress => "out",
    }
}

impl Subject {
    fn new(registry: &Registry, direction: Direction, at: At) -> Result<Subject, Box<dyn Error>> {
        // frames that were sent without an skb reach a receiver that polls: one with GRO
        let chain = Chain::with(&VethOptions::new().gro(true))?;
        // what has one goes over the stack's queue, which is longer than the ring of a receiver that polls
        chain.server().netns().set_feature(chain.server().name(), Feature::Gro, false)?;
        let object = load(registry, chain.router_out().ifindex())?;
        let attach_tc = |program: &str, end: &End, direction| -> Result<Attachment, Box<dyn Error>> {
            let program = program_of(&object, program)?;
            let attach = || tcx::attach(program.as_fd(), end.ifindex(), &TcxOptions::new(direction));
            Ok(end.netns().enter(attach)?)
        };
        let mut attached = Vec::new();
        if direction == Direction::Egress {
            let program = program_of(&object, "give")?;
            let end = chain.router_in();
            let attach = || xdp::attach(program.as_fd(), end.ifindex(), XdpMode::Native);
            attached.push(end.netns().enter(attach)?.0);
        }
        let measured = if direction == Direction::Egress { chain.router_out() } else { chain.router_in() };
        let mut border = None;
        match at {
            At::Nothing => {}
            At::Empty => attached.push(attach_tc("empty", measured, direction)?),
            At::Border => {
                let attach = || Border::attach(registry, measured.ifindex()).map_err(|error| error.to_string());
                border = Some(measured.netns().enter(attach)?);
            }
        }
        attached.push(attach_tc("pass_on", chain.router_in(), Direction::Ingress)?);
        attached.push(attach_tc("end", chain.server(), Direction::Ingress)?);
        let traffic = Traffic::new(chain.client(), chain.router_in(), PORT)?;
        Ok(Subject { direction, at, traffic, object, border, _attached: attached, _chain: chain })
    }

    fn ns_per_packet(&self, packets: u32) -> Result<f64, Box<dyn Error>> {
        let name = format!("{} with {}", direction_name(self.direction), self.at.name());
        self.traffic.ns_per_packet(packets, &name, || self.ended())
    }

    /// How many packets came to their end.
    fn ended(&self) -> Result<u64, Box<dyn Error>> {
        let raw = variables(self.object.object())?.lookup(&[0; 4], MapFlags::ANY)?.unwrap_or_default();
        Ok(raw.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes)))
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Some(border) = self.border.take()
            && let Err(error) = border.detach()
        {
            tracing::warn!("{error}");
        }
    }
}

/// Loads the programs; they pass packets on over this interface.
fn load(registry: &Registry, interface: u32) -> Result<LoadedObject, Box<dyn Error>> {
    let mut object = BoundObject::from_bytes(OBJECT, "border.bpf.o", registry)?;
    set_interface(object.open_object_mut(), interface)?;
    Ok(object.load()?)
}

fn program_of(object: &LoadedObject, name: &str) -> Result<OwnedFd, Box<dyn Error>> {
    let program = object.program(name).ok_or_else(|| format!("border.bpf.o has no program {name}"))?;
    Ok(program.as_fd().try_clone_to_owned()?)
}

/// Runs `traits bench border`.
pub(super) fn run(options: &Options) -> Outcome {
    let interrupt = Interrupt::catch()?;
    let cpu = pin_to_cpu()?;
    let bpffs = Bpffs::new()?;
    let registry = rig::registry(&bpffs, &[("tenant", KeyType::U32, Merge::Block)])?;
    let mut subjects = Vec::new();
    for direction in [Direction::Egress, Direction::Ingress] {
        for at in At::ALL {
            subjects.push(Subject::new(&registry, direction, at)?);
        }
    }
    let measure = |subject: &Subject| subject.ns_per_packet(options.packets);
    let rounds = rounds::measure(&subjects, WARM_UP, options.rounds, &interrupt, measure)?;
    let report = report(options, &subjects, &rounds, cpu).ok_or("nothing was measured")?;
    if options.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(())
}

fn report(options: &Options, subjects: &[Subject], rounds: &[Vec<f64>], cpu: usize) -> Option<Report> {
    let mut cases = Vec::new();
    for (number, subject) in subjects.iter().enumerate() {
        let is_empty = |other: &Subject| other.at == At::Empty && other.direction == subject.direction;
        let empty = subjects.iter().position(is_empty)?;
        let ns = Summary::of(rounds.iter().map(|round| round[number]))?;
        let over_empty = Summary::of(rounds.iter().map(|round| round[number] - round[empty]))?;
        cases.push(Case {
            direction: direction_name(subject.direction),
            at: subject.at.name(),
            ns: ns.median,
            spread_ns: ns.spread,
            over_empty_ns: over_empty.median,
        });
    }
    Some(Report { kernel: kernel_release(), cpu, rounds: rounds.len() as u32, packets: options.packets, cases })
}

fn print(report: &Report) -> std::io::Result<()> {
    let mut table = Table::new(&["DIRECTION", "AT THE INTERFACE", "NS", "SPREAD", "OVER EMPTY"]);
    for case in &report.cases {
        table.row(&[
            &case.direction,
            &case.at,
            &format!("{:.0}", case.ns),
            &format!("{:.0}", case.spread_ns),
            &format!("{:.0}", case.over_empty_ns),
        ]);
    }
    table.print()
}
