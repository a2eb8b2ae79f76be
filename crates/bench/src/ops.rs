//! `traits bench ops`: what a call costs.
//!
//! One round measures every operation once, one after the other, so that a machine that gets slower or busier does so
//! for all of them. A figure is the median over rounds of a *difference within a round*: the operation's program minus
//! a baseline program that does everything but the operation. The rounds are spread over several loads, since the
//! kernel places programs at random and the place shows in tenths of a nanosecond.

use std::error::Error;

use clap::value_parser;
use serde::Serialize;

use super::{
    progress,
    rig::{self, CALLS, Rig, Round},
    statistics::Summary,
};
use packet_traits_terminal::{
    Outcome,
    interrupt::{Interrupt, Interrupted},
    output::{self, Table, counted},
};

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    /// How often to measure every operation
    #[arg(long, value_name = "N", default_value_t = 480, value_parser = value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Examples:
  traits bench ops
  traits bench ops --rounds 2000
  traits bench ops --json | jq .expectation

Needs root. Makes a registry and two network namespaces of its own, and leaves nothing behind.

NS is one call of a BPF function that does the operation, of 10,000 in a loop. OVER EMPTY is that minus the same loop \
without the operation, in the same round; SPREAD is the distance between its quartiles. TO RAW and TO HELPER are OVER \
EMPTY as a multiple of that of a raw struct and of a helper call.

docs/bench.md describes the cases, docs/json.md the JSON.";

/// How many times the programs are loaded, if there are as many rounds.
const LOADS: u32 = 16;
/// Rounds after each load that do not count.
const WARM_UP: u32 = 2;
/// Nanoseconds; what is smaller is nothing, and no ratio to it means anything.
const RESOLUTION: f64 = 0.02;
/// Nanoseconds that get and set are expected to be above the raw struct at most.
const EXPECTED_ABOVE_RAW: f64 = 1.0;
/// How many times as much as get and set a helper call is expected to cost at least.
const EXPECTED_HELPER_RATIO: f64 = 5.0;

/// An operation, as reported.
struct Case {
    name: &'static str,
    /// The program that does it.
    program: &'static str,
    /// The program that does all else.
    baseline: Baseline,
    /// What the operation would be with a raw struct.
    raw: &'static str,
}

enum Baseline {
    /// A function that does nothing, or nothing but keep what was read.
    Empty(&'static str),
    /// A function that also does something the operation needs around it.
    Around(&'static str),
}
use Baseline::{Around, Empty};

impl Baseline {
    fn program(&self) -> &'static str {
        match self {
            Empty(program) | Around(program) => program,
        }
    }
}

impl Case {
    const fn new(name: &'static str, baseline: Baseline, raw: &'static str) -> Case {
        Case { name, program: name, baseline, raw }
    }

    /// Nanoseconds above the baseline in this round.
    fn over_empty(&self, round: &Round) -> Option<f64> {
        Some(round.ns(self.program)? - round.ns(self.baseline.program())?)
    }

    /// Nanoseconds of a call in this round.
    fn call(&self, round: &Round) -> Option<f64> {
        match self.baseline {
            Empty(_) => round.ns(self.program),
            Around(_) => Some(self.over_empty(round)? + round.ns("empty")?),
        }
    }
}

const CASES: [Case; 18] = [
    Case::new("get", Empty("empty_sink"), "raw_get"),
    Case::new("set", Empty("empty"), "raw_set"),
    Case { name: "del", program: "set_del", baseline: Around("set"), raw: "raw_set" },
    Case::new("batch_get4", Empty("empty_sink"), "raw_get"),
    Case::new("reserve_seal", Around("adjust_meta"), "raw_set"),
    Case::new("skb_get", Empty("skb_empty"), "raw_get"),
    Case::new("raw_get", Empty("empty_sink"), "raw_get"),
    Case::new("raw_set", Empty("empty"), "raw_set"),
    Case::new("call", Empty("empty"), "raw_get"),
    Case::new("helper", Empty("empty_sink"), "raw_get"),
    Case::new("array", Empty("empty_sink"), "raw_get"),
    Case::new("lru_percpu_hash", Empty("empty_sink"), "raw_get"),
    Case::new("get_keep_first", Empty("empty_sink"), "raw_get"),
    Case::new("set_keep_first", Empty("empty"), "raw_set"),
    Case::new("skb_get_keep_first", Empty("skb_empty"), "raw_get"),
    Case::new("skb_batch_get4", Empty("skb_empty"), "raw_get"),
    Case::new("tc_get", Empty("skb_empty"), "raw_get"),
    Case::new("kfunc", Empty("empty"), "raw_get"),
];

#[derive(Serialize)]
struct Report {
    /// Release of the running kernel.
    kernel: String,
    /// The CPU it was measured on.
    cpu: usize,
    rounds: u32,
    loads: u32,
    calls_per_round: u32,
    cases: Vec<Figures>,
    expectation: Expectation,
}

/// What was measured of a case.
#[derive(Serialize)]
struct Figures {
    name: &'static str,
    ns: f64,
    over_empty_ns: f64,
    spread_ns: f64,
    baseline: &'static str,
    raw: &'static str,
    to_raw: Option<f64>,
    to_helper: Option<f64>,
}

/// Whether this run shows what traits are built to be: never a reason to fail.
#[derive(Serialize)]
struct Expectation {
    get_above_raw_ns: f64,
    set_above_raw_ns: f64,
    helper_to_get: Option<f64>,
    helper_to_set: Option<f64>,
    held: bool,
}

/// Measures every operation as often as asked for, or until it is interrupted.
fn measure(options: &Options, loads: u32, interrupt: &Interrupt) -> Result<Vec<Round>, Box<dyn Error>> {
    let rig = Rig::new()?;
    let mut rounds = Vec::new();
    for number in 0..loads {
        let mut load = rig.load()?;
        for _ in 0..WARM_UP {
            load.round()?;
        }
        // as many for each load, and one more for the first ones if that leaves a rest
        for _ in 0..options.rounds / loads + u32::from(number < options.rounds % loads) {
            progress::show(rounds.len(), options.rounds);
            if interrupt.came() {
                break;
            }
            rounds.push(load.round()?);
        }
    }
    progress::hide();
    Ok(rounds)
}

pub(crate) fn run(options: &Options) -> Outcome {
    let interrupt = Interrupt::catch()?;
    let cpu = rig::pin_to_cpu().map_err(|error| format!("cannot stay on one CPU: {error}"))?;
    let loads = LOADS.min(options.rounds);
    let rounds = interrupt.over(measure(options, loads, &interrupt), Interrupted::NOTHING_LEFT)?;

    let report = Report {
        kernel: rig::kernel_release(),
        cpu,
        rounds: options.rounds,
        loads,
        calls_per_round: CALLS,
        cases: figures(&rounds),
        expectation: expectation(&rounds),
    };
    if options.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(())
}

/// The median over rounds; 0 if there is none.
fn median(rounds: &[Round], sample: impl Fn(&Round) -> Option<f64>) -> f64 {
    Summary::of(rounds.iter().filter_map(sample)).map_or(0.0, |summary| summary.median)
}

fn over_empty(rounds: &[Round], name: &str) -> f64 {
    let case = CASES.iter().find(|case| case.name == name);
    median(rounds, |round| case?.over_empty(round))
}

fn ratio(of: f64, to: f64) -> Option<f64> {
    (to >= RESOLUTION).then(|| of / to)
}

fn figures(rounds: &[Round]) -> Vec<Figures> {
    let figures = |case: &Case| {
        let over = Summary::of(rounds.iter().filter_map(|round| case.over_empty(round)))?;
        Some(Figures {
            name: case.name,
            ns: median(rounds, |round| case.call(round)),
            over_empty_ns: over.median,
            spread_ns: over.spread,
            baseline: case.baseline.program(),
            raw: case.raw,
            to_raw: ratio(over.median, over_empty(rounds, case.raw)),
            to_helper: ratio(over.median, over_empty(rounds, "helper")),
        })
    };
    CASES.iter().filter_map(figures).collect()
}

fn expectation(rounds: &[Round]) -> Expectation {
    let [get, set, raw_get, raw_set, helper] =
        ["get", "set", "raw_get", "raw_set", "helper"].map(|name| over_empty(rounds, name));
    Expectation {
        get_above_raw_ns: get - raw_get,
        set_above_raw_ns: set - raw_set,
        helper_to_get: ratio(helper, get),
        helper_to_set: ratio(helper, set),
        held: [get - raw_get, set - raw_set].iter().all(|above| *above <= EXPECTED_ABOVE_RAW)
            && [get, set].iter().all(|call| helper >= call * EXPECTED_HELPER_RATIO),
    }
}

fn print(report: &Report) -> Outcome {
    let Report { kernel, cpu, rounds, loads, .. } = report;
    output::line(format_args!(
        "Linux {kernel}, CPU {cpu}: median of {} of {CALLS} calls, {}\n",
        counted(rounds, "round"),
        counted(loads, "load")
    ))?;
    let ns = |ns: f64| format!("{ns:>6.2}");
    let times = |ratio: Option<f64>| ratio.map_or_else(|| "     -".to_owned(), |ratio| format!("{ratio:>6.2}"));
    let mut table = Table::new(&["OPERATION", "    NS", "OVER EMPTY", "SPREAD", "TO RAW", "TO HELPER"]);
    for case in &report.cases {
        table.row(&[
            &case.name,
            &ns(case.ns),
            &format!("{:>10.2}", case.over_empty_ns),
            &ns(case.spread_ns),
            &times(case.to_raw),
            &format!("   {}", times(case.to_helper)),
        ]);
    }
    table.print()?;

    let Expectation { get_above_raw_ns, set_above_raw_ns, helper_to_get, helper_to_set, held } = &report.expectation;
    let times = |ratio: &Option<f64>| {
        ratio.map_or_else(|| "immeasurably more than".to_owned(), |ratio| format!("{ratio:.1} times"))
    };
    output::line(format_args!(
        "\nget and set are {get_above_raw_ns:.2} and {set_above_raw_ns:.2} ns above the raw struct (expected: at most \
         {EXPECTED_ABOVE_RAW}); a helper call costs {} get and {} set (expected: at least {EXPECTED_HELPER_RATIO} \
         times): {} in this run",
        times(helper_to_get),
        times(helper_to_set),
        if *held { "held" } else { "did not hold" },
    ))?;
    Ok(())
}
