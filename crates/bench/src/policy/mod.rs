//! `traits bench policy`: what a policy costs a packet, beside the same rules in nftables.
//!
//! The same frames are sent through links of the same kind in every case. They are dropped by the rules that are
//! measured, so what a case takes is sending, receiving up to its hook, and its rules. A round measures all cases one after
//! the other, and a ratio is taken within a round.

mod rules;
mod subject;

use std::error::Error;

use clap::value_parser;
use serde::Serialize;

use self::{
    rules::Shape,
    subject::{Place, Subject},
};
use super::{
    rig::{kernel_release, pin_to_cpu},
    rounds,
    statistics::Summary,
};
use packet_traits_terminal::{
    Outcome,
    interrupt::{Interrupt, Interrupted},
    output::{self, Table},
};

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    /// How often to measure everything
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// How many rules, or elements of a set or map
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,10,100,500",
          value_parser = value_parser!(u16).range(1..=1000))]
    sizes: Vec<u16>,
    /// Packets of a case in one round
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = value_parser!(u32).range(64..=10_000_000))]
    packets: u32,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Examples:
  traits bench policy
  traits bench policy --rounds 100
  traits bench policy --json | jq .expectation

Needs root, clang and nft. Makes registries and network namespaces of its own, and leaves nothing behind.

The kernel sends UDP packets over a veth pair, and what is measured drops them. NS is the time from sending to \
dropping; SPREAD is the distance between its quartiles. PPS is the packets that one CPU does in a second, TO NFT that \
as a multiple of what nftables does at netdev ingress in the same round with the same rules.

docs/bench.md describes the cases, docs/json.md the JSON.";

/// Rounds that do not count.
const WARM_UP: u32 = 1;
/// How much more the largest set or map may take than the smallest to count as flat.
const FLAT: f64 = 1.25;

/// A case and its figures.
#[derive(Serialize)]
struct Case {
    rules: &'static str,
    size: u16,
    place: &'static str,
    ns: f64,
    spread_ns: f64,
    pps: f64,
    to_nft: f64,
}

#[derive(Serialize)]
struct Report {
    kernel: String,
    cpu: usize,
    rounds: u32,
    packets: u32,
    cases: Vec<Case>,
    expectation: Expectation,
}

#[derive(Serialize)]
struct Expectation {
    slowest_to_nft: f64,
    set_growth: f64,
    map_growth: f64,
    held: bool,
}

/// Makes the cases, or as many as there are until it is interrupted.
fn subjects(options: &Options, interrupt: &Interrupt) -> Result<Vec<Subject>, Box<dyn Error>> {
    let sizes = |shape| options.sizes.iter().map(move |size| (shape, *size));
    let cases = Shape::ALL.into_iter().flat_map(sizes);
    let places = cases.flat_map(|(shape, size)| Place::ALL.map(|place| (shape, size, place)));
    let until = places.take_while(|_| !interrupt.came());
    until.map(|(shape, size, place)| Subject::new(shape, size, place)).collect()
}

/// Runs `traits bench policy`.
pub(super) fn run(options: &Options) -> Outcome {
    let interrupt = Interrupt::catch()?;
    let cpu = pin_to_cpu()?;
    let subjects = interrupt.over(subjects(options, &interrupt), Interrupted::NOTHING_LEFT)?;
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
        let nft = subjects.iter().position(|other| other.is_nft_of(subject))?;
        let ns = Summary::of(rounds.iter().map(|round| round[number]))?;
        let to_nft = Summary::of(rounds.iter().map(|round| round[nft] / round[number]))?;
        cases.push(Case {
            rules: subject.shape().name(),
            size: subject.size(),
            place: subject.place().name(),
            ns: ns.median,
            spread_ns: ns.spread,
            pps: 1e9 / ns.median,
            to_nft: to_nft.median,
        });
    }
    let slowest_to_nft = cases
        .iter()
        .filter(|case| case.place != Place::Nft.name())
        .map(|case| case.to_nft)
        .fold(f64::INFINITY, f64::min);
    let growth = |shape: Shape| {
        let at = |size| {
            subjects.iter().position(|one| one.shape() == shape && one.size() == size && one.place() == Place::Tc)
        };
        let (small, large) = (at(*options.sizes.iter().min()?)?, at(*options.sizes.iter().max()?)?);
        Some(Summary::of(rounds.iter().map(|round| round[large] / round[small]))?.median)
    };
    let (set_growth, map_growth) = (growth(Shape::Set)?, growth(Shape::Map)?);
    Some(Report {
        kernel: kernel_release(),
        cpu,
        rounds: rounds.len() as u32,
        packets: options.packets,
        cases,
        expectation: Expectation {
            slowest_to_nft,
            set_growth,
            map_growth,
            held: slowest_to_nft >= 1.0 && set_growth < FLAT && map_growth < FLAT,
        },
    })
}

fn print(report: &Report) -> std::io::Result<()> {
    let mut table = Table::new(&["RULES", "SIZE", "PLACE", "NS", "SPREAD", "PPS", "TO NFT"]);
    for case in &report.cases {
        table.row(&[
            &case.rules,
            &case.size,
            &case.place,
            &format!("{:.0}", case.ns),
            &format!("{:.0}", case.spread_ns),
            &format!("{:.0}", case.pps),
            &format!("{:.2}", case.to_nft),
        ]);
    }
    table.print()?;
    let Expectation { slowest_to_nft, set_growth, map_growth, held } = report.expectation;
    output::line(format!(
        "\nA policy is at least {slowest_to_nft:.2} times as fast as nft; the largest set takes {set_growth:.2} times as \
         long as the smallest at tc, the largest map {map_growth:.2}: {}",
        if held { "as expected" } else { "not as expected (1.00, 1.25, 1.25)" }
    ))
}
