//! `traits trace` and `traits top`: follow packets from XDP to the application or their end.
//!
//! | file | what it holds |
//! |---|---|
//! | `options` | what to trace: options shared by `trace` and `top` |
//! | `outputs` | where events and packets go: lines, JSON, files |
//! | `session` | starting, reading until the end, ending |
//! | `top` | the full-screen view |

mod options;
mod outputs;
mod session;
pub(crate) mod top;

use std::path::PathBuf;

use packet_traits_trace::write::View;

use self::{
    options::What,
    outputs::{Files, Outputs},
    session::{Ends, Session},
};
use crate::{Global, Outcome};

/// Follow packets from XDP to the application, or to where and why they are dropped
///
/// Packets are told apart by an id that travels with them as a trait. Without --id, the command's own XDP program assigns
/// ids while it runs, in 16 bytes of the registry's packet region. Nothing stays attached when the command ends.
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    #[command(flatten)]
    what: What,
    /// One line for each packet, with its whole path and the time each step took
    #[arg(long)]
    per_packet: bool,
    /// Print the numbers at the end only
    #[arg(long, conflicts_with = "per_packet")]
    summary: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// Also write the events to a pcapng file, which Wireshark opens
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Also write packets' paths in the trace format of Chrome and Perfetto
    #[arg(long, value_name = "FILE")]
    chrome: Option<PathBuf>,
    /// Also write a report as one HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// End after N events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    duration: Option<u64>,
}

const HELP: &str = "\
Examples:
  traits trace                                everything that enters here
  traits trace --dev eth0 'dport == 53' --per-packet
  traits trace --id flow_id 'tenant == 7'     by the ids of a policy in XDP
  traits trace --only-drops                   where and why, at little cost
  traits trace --only-drops --per-packet      and how they got there
  traits trace --slower 500 --summary         what takes longer than 500 µs
  traits trace --sample 1000 --duration 10 --html report.html
  traits trace --netns blue --json | jq 'select(.point == \"drop\")'
  traits trace -w trace.pcapng --chrome trace.json

A CONDITION is FIELD OPERATOR VALUE, and all must hold. FIELD is a key of the registry, or family, proto, src, dst, \
host, sport, dport, port or len; OPERATOR is == != < <= > or >=. src, dst and host take prefixes. No condition holds, \
not even !=, on what a packet does not have.

--only-drops and --slower choose events; with --per-packet, --chrome or --html they choose packets, with all their \
steps. A ~ marks a packet that the kernel did not name. While many packets come in and none matches, only the first \
point stays in place; --standby=never keeps all.

Ctrl-C ends it and prints the numbers, with exit status 0, or 130 before tracing has started. docs/trace.md describes \
conditions, points and standby, docs/json.md the JSON.";

pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    let view = match (options.per_packet, options.summary) {
        (true, _) => View::Packets,
        (_, true) => View::Summary,
        _ => View::Events,
    };
    let mut session = Session::prepare(&options.what, global)?;
    let (drops, slow) = (session.options.only_drops, session.options.slower.is_some());
    let paths = view == View::Packets || options.chrome.is_some() || options.html.is_some();
    // where a packet is dropped is known when it is: numbers of drops need no other points
    session.options.whole_paths = if paths { drops || slow } else { view == View::Summary && slow && !drops };
    let files = Files { pcapng: options.write.clone(), chrome: options.chrome.clone(), html: options.html.clone() };
    let mut outputs = Outputs::open(view, options.json, &files)?;
    session.run(&Ends { events: options.count, seconds: options.duration }, &mut outputs)
}
