//! Prints the result for people, at most 80 columns wide.

use std::io;

use packet_traits::{Layout, attach::Feature};

use super::{
    flows::{VNI_OVER_IPV4, VNI_OVER_IPV6},
    records::Stage,
    verdict::{Latency, Reading, Sample, StageResult, Verdict},
};
use packet_traits_terminal::output;

/// How many problems are spelled out.
const PROBLEMS_SHOWN: usize = 10;

pub(super) fn print(verdict: &Verdict) -> io::Result<()> {
    text(verdict).iter().try_for_each(output::line)
}

/// The lines of it.
fn text(verdict: &Verdict) -> Vec<String> {
    let mut lines = vec![
        format!(
            "Two namespaces, a veth pair, VXLAN {VNI_OVER_IPV4} over IPv4 and VXLAN {VNI_OVER_IPV6} over IPv6. XDP"
        ),
        format!("({}) gives every packet a tenant, a flow_id and an rx_ts.", verdict.xdp_mode),
        String::new(),
    ];
    stages(&verdict.stages, &mut lines);
    if !verdict.not_shown.is_empty() {
        lines.push(format!("Not shown: {}:", verdict.not_shown.join(", ")));
        lines.push(format!("{}; all other stages do without.", Feature::NetfilterLink));
    }
    if verdict.area_len < Layout::DEFAULT.area_len() {
        lines.push(format!(
            "This kernel takes {} bytes of XDP metadata: too few for keep-first keys. So",
            verdict.area_len
        ));
        lines.push("each packet's flow_id differs for GRO, which merges none of them here.".to_owned());
    }
    lines.push(String::new());
    lines.extend(NOTES.lines().map(str::to_owned));
    lines.extend(merged(&verdict.stages));
    lines.push(String::new());
    servers(&verdict.servers, &mut lines);
    drops(verdict, &mut lines);
    lines.push(String::new());
    let end = if verdict.ok { shown } else { failed };
    end(verdict, &mut lines);
    lines
}

const NOTES: &str = "\
Times are since rx_ts, these programs' own reports included; at delivery and in
the application, also the wait in the socket's queue. The sample is one and the
same datagram at every stage, but delivery is of TCP only (the kernel hands a
datagram to the process without a tracepoint that shows the packet) and drop is
of others. The application is the UDP and TCP servers themselves, which read
traits with getsockopt: of TCP, those of the SYN and in the end of the newest
data. Tenants: a tunnel's VNI; 4077 for 10.77.0.0/16, 6077 for fd77::/16.";

/// What GRO did, if it did something.
fn merged(stages: &[StageResult]) -> Option<String> {
    let tcp = |name: Stage| Some(stages.iter().find(|stage| stage.stage == name.name())?.tcp_packets);
    let (before, after) = (tcp(Stage::Xdp)?, tcp(Stage::TcIngress)?);
    (after < before).then(|| format!("GRO merged {before} TCP packets into {after}: traits do not stop it."))
}

fn row(cells: [&str; 7]) -> String {
    let [stage, packets, with, median, p99, id, tenant] = cells;
    format!("{stage:<21}{packets:>8}{with:>13}{median:>11}{p99:>9}{id:>9}{tenant:>8}")
}

fn stages(stages: &[StageResult], lines: &mut Vec<String>) {
    lines.push(row(["STAGE", "PACKETS", "WITH TRAITS", "MEDIAN µs", "P99 µs", "FLOW_ID", "TENANT"]));
    for stage in stages {
        let time = |of: fn(&Latency) -> u64| stage.latency_ns.as_ref().map_or("-".into(), |times| micros(of(times)));
        let value = |of: fn(&Sample) -> String| stage.sample.as_ref().map_or("-".into(), of);
        lines.push(row([
            stage.stage,
            &stage.packets.to_string(),
            &stage.with_traits.to_string(),
            &time(|times| times.median),
            &time(|times| times.p99),
            &value(|sample| sample.flow_id.to_string()),
            &value(|sample| sample.tenant.to_string()),
        ]));
    }
}

/// Nanoseconds as microseconds, with a decimal where it says something.
fn micros(nanos: u64) -> String {
    if nanos < 1_000_000 { format!("{:.1}", nanos as f64 / 1000.0) } else { (nanos / 1000).to_string() }
}

/// What some servers read, if they read something.
fn servers(readings: &[Reading], lines: &mut Vec<String>) {
    let row = |server: &str, packet: &str, after: &str, id: &str, tenant: &str| {
        format!("{server:<34}{packet:<17}{after:>11}{id:>9}{tenant:>8}")
    };
    if readings.is_empty() {
        return;
    }
    lines.push(row("A SERVER READS", "OF", "AFTER µs", "FLOW_ID", "TENANT"));
    for reading in readings {
        let Sample { flow_id, tenant, .. } = &reading.traits;
        let (after, id, tenant) = (micros(reading.latency_ns), flow_id.to_string(), tenant.to_string());
        lines.push(row(&reading.server, &reading.packet, &after, &id, &tenant));
    }
    lines.push(String::new());
}

fn drops(verdict: &Verdict, lines: &mut Vec<String>) {
    let row = |reason: &str, tenant: &str, packets: &str, with: &str, provoked: &str| {
        format!("{reason:<21}{packets:>8}{with:>13}{provoked:>11}{tenant:>26}")
    };
    lines.push(row("DROPPED FOR", "TENANT", "PACKETS", "WITH TRAITS", "PROVOKED"));
    for drop in &verdict.drops {
        lines.push(row(
            &drop.reason,
            &drop.tenant.map_or("-".into(), |tenant| tenant.to_string()),
            &drop.packets.to_string(),
            &drop.with_traits.to_string(),
            &drop.expected.to_string(),
        ));
    }
}

fn shown(verdict: &Verdict, lines: &mut Vec<String>) {
    let total = |unit: &str, dropped: bool| -> u64 {
        let flows = verdict.flows.iter().filter(|flow| flow.unit == unit && (flow.returned == 0) == dropped);
        flows.map(|flow| flow.sent).sum()
    };
    lines.extend([
        format!(
            "Shown: {} datagrams (all came back) and all bytes of {} MB of TCP were seen",
            total("datagrams", false),
            total("bytes", false) / 1_000_000
        ),
        "at every stage they pass, also behind decapsulation, and by the servers, with".into(),
        format!(
            "the traits that XDP gave to that packet; {} provoked drops name their tenant.",
            total("datagrams", true)
        ),
        "Nothing is left.".into(),
        "Try next: `traits demo --mode generic`; `traits registry create` and".into(),
        "`traits keys add tenant u32` for programs of your own.".into(),
    ]);
}

fn failed(verdict: &Verdict, lines: &mut Vec<String>) {
    lines.push("NOT shown: what the stages saw is not what was sent.".into());
    lines.extend(verdict.problems.iter().take(PROBLEMS_SHOWN).map(|problem| format!("- {problem}")));
    lines.push(match verdict.problems.len().saturating_sub(PROBLEMS_SHOWN) {
        0 => "Try next: `traits demo --mode generic`, and report the output of --json.".into(),
        more => format!("- and {more} more. Try next: `traits demo --json` lists them all."),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        flows::SAMPLED_TRANSFER,
        verdict::{DropResult, FlowResult},
    };

    #[test]
    fn fits_80_columns_with_large_numbers() {
        let stage = |stage: &Stage| StageResult {
            stage: stage.name(),
            packets: 1_234_567,
            with_traits: 1_234_567,
            udp_packets: 1_000_000,
            udp_expected: 1_000_000,
            tcp_packets: if *stage == Stage::Xdp { 234_567 } else { 23_456 },
            tcp_bytes: 1 << 30,
            latency_ns: Some(Latency { min: 1, median: 99_999_999, p99: 9_999_999_999, max: 9_999_999_999 }),
            sample: Some(Sample { flow_id: 1_234_567, tenant: 2002, rx_ts: 0 }),
        };
        let flow = |unit, sent, returned| FlowResult { flow: String::new(), port: 0, tenant: 0, unit, sent, returned };
        let verdict = Verdict {
            ok: true,
            xdp_mode: "generic".into(),
            flows: vec![flow("bytes", 6 << 20, 1), flow("datagrams", 120_000, 1), flow("datagrams", 80, 0)],
            stages: Stage::ALL.iter().map(stage).collect(),
            area_len: 32,
            not_shown: vec![Stage::PreRouting.name(), Stage::Input.name()],
            servers: vec![Reading {
                server: SAMPLED_TRANSFER.to_string(),
                packet: "datagram 10000".into(),
                traits: Sample { flow_id: 1_234_567, tenant: 2002, rx_ts: 0 },
                latency_ns: 9_999_999_999,
            }],
            drops: vec![DropResult {
                reason: "NETFILTER_DROP".into(),
                tenant: Some(2002),
                packets: 1_234_567,
                with_traits: 1_234_567,
                expected: 1_234_567,
            }],
            problems: Vec::new(),
        };
        for line in text(&verdict) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
