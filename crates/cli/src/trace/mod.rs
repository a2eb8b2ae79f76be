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

use self::{
    options::What,
    outputs::{Files, Outputs, View},
    session::{Ends, Session},
};
use crate::{Global, Outcome};

/// Follow packets from XDP to the application, or to where and why they are dropped
///
/// Packets are told apart by an id that travels with them as a trait. Without --id the command's own XDP program assigns
/// ids for as long as it runs. They take 16 bytes of the registry's packet region. If it has none, as before Linux 6.8, they
/// take them of its flow region, and GRO merges no packets that are traced. Everything is held by this process: when it ends,
/// nothing is left attached.
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
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    duration: Option<u64>,
}

const HELP: &str = "\
Examples:
  traits trace                                       everything that enters this namespace
  traits trace --dev eth0 'dport == 53' --per-packet
  traits trace --id flow_id 'tenant == 7'            by the ids that a policy in XDP assigns
  traits trace --only-drops                          where and why, at little cost
  traits trace --only-drops --per-packet             and how they got there
  traits trace --standby=never 'src == 192.0.2.7'    each such packet, whatever it costs the others
  traits trace --slower 500 --summary                what takes longer than 500 µs
  traits trace --sample 1000 --duration 10 --html report.html
  traits trace --netns blue --netns red --json | jq 'select(.point == \"drop\")'
  traits trace -w trace.pcapng --chrome trace.json

A CONDITION is FIELD OPERATOR VALUE; all must hold, and they are checked in the
kernel. FIELD is a key of the registry, or family, proto, src, dst, host, sport,
dport, port or len (trait.NAME is always a key); OPERATOR is == != < <= > or >=.
src, dst and host take prefixes. No condition holds on what a packet does not
have, also not by !=: a trait that is not set, ports of ICMP or of a fragment
other than the first, any header field of what is not IP. If the command assigns
the ids, header fields are looked at where a packet enters, and it is followed
from there, also through tunnels and NAT; else at every point.

An interface that has an XDP program, as by a policy, takes no second one. There
packets get their ids behind it, at TC ingress, if it gave them traits. If it
gives out ids itself, --id KEY also shows the points before.

A ~ in front of a packet: the kernel said that it happened, but not to which
packet; that is known by what the CPU was at, or by the order in the socket's
queue.

Where the kernel lets programs run at its functions (fentry), there are more points:
xdp-verdict, what the interface's XDP program decided if it is someone else's (drop
and aborted are drops, by that program), defrag, fragment, neighbour, tcp, backlog,
out-of-order and peek; and delivery of datagrams is seen. traits -v trace says if it
does not. The summary has, on every kernel, how many packets XDP programs of others
redirected, and how many were dropped because the program, a redirect or sending
failed: of these the kernel does not say which they were.

--only-drops and --slower choose events: drops, and points at which a packet was
late already. With --per-packet, --chrome or --html they choose packets, which
are shown with all their steps: those that were dropped, those that took longer
as a whole, with both options those that did both. So does --summary with
--slower alone. For this the kernel reports the steps of all packets, which
costs as much as without these options. A pcapng file has events in any case.

sk: and a number is the cookie of the socket that a packet is for, as `ss -e`
prints it. What policies log is not shown: each of those events goes to one
reader, which is `traits log`.

In place, the points cost every packet of the host a part of a microsecond, also
those that do not match. So while more than 10,000 packets a second come in and
for a second none has matched the conditions (30 seconds, once one has), only the
first point is left, and says so (--standby=auto). The next packet that matches
brings the others back, which takes some tens of milliseconds; those that match
meanwhile are counted and not followed. --standby=never: all stay, for packets of
which each one counts. --standby: they are not there until the first match.

With --json, objects of type start, event (or packet), lost, standby and summary,
each with a version v; new types and members may come, none goes without a new
version.

Ctrl-C ends it and prints the numbers. Exit status: 0 also after Ctrl-C, 130 if
that came before tracing had started, 1 it could not run or go on, or an output
could not be written, 2 wrong usage.";

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
