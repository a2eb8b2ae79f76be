//! Compares what every stage saw with what was sent.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{
    flows::{Flow, Kind, SAMPLED, SAMPLED_TRANSFER},
    records::{Record, Stage, Traits},
    traffic::Sent,
};
use packet_traits_terminal::output::counted;

/// The demo's result; with `--json`, what is printed.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    /// Whether every stage saw what was sent, with the traits that XDP set.
    pub(super) ok: bool,
    /// `native` or `generic`.
    pub(super) xdp_mode: String,
    pub(super) flows: Vec<FlowResult>,
    pub(super) stages: Vec<StageResult>,
    /// Bytes in front of the packet data that hold the traits: what the kernel takes, or the default.
    pub(super) area_len: usize,
    /// Names of the stages that this kernel cannot show.
    pub(super) not_shown: Vec<&'static str>,
    /// Some of what the servers have read.
    pub(super) servers: Vec<Reading>,
    pub(super) drops: Vec<DropResult>,
    /// Why it is not ok, a line each.
    pub(super) problems: Vec<String>,
}

/// What was sent and came back.
#[derive(Debug, Serialize)]
pub(super) struct FlowResult {
    pub(super) flow: String,
    pub(super) port: u16,
    pub(super) tenant: u32,
    /// `datagrams` or `bytes`.
    pub(super) unit: &'static str,
    pub(super) sent: u64,
    /// Replies, or bytes that the server received right; 0 for what is dropped on purpose.
    pub(super) returned: u64,
}

/// What a stage saw.
#[derive(Debug, Serialize)]
pub(super) struct StageResult {
    pub(super) stage: &'static str,
    /// Test packets seen; at delivery, packets that data was taken from; in the application, of TCP, those whose traits
    /// were asked for.
    pub(super) packets: usize,
    /// Those of which all three traits were read; in XDP, set.
    pub(super) with_traits: usize,
    /// Of `packets`, the datagrams.
    pub(super) udp_packets: usize,
    /// Datagrams that had to be seen.
    pub(super) udp_expected: u64,
    /// Of `packets`, the TCP packets: GRO may have merged several of XDP's into one.
    pub(super) tcp_packets: usize,
    /// Payload in those, or what the process took of it.
    pub(super) tcp_bytes: u64,
    /// Nanoseconds since XDP; null in XDP.
    pub(super) latency_ns: Option<Latency>,
    /// One packet's traits.
    pub(super) sample: Option<Sample>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) min: u64,
    pub(super) median: u64,
    pub(super) p99: u64,
    pub(super) max: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Sample {
    pub(super) flow_id: u64,
    pub(super) tenant: u32,
    pub(super) rx_ts: u64,
}

impl From<Traits> for Sample {
    fn from(traits: Traits) -> Sample {
        let Traits { flow_id, rx_ts, tenant } = traits;
        Sample { flow_id, tenant, rx_ts }
    }
}

/// What a server has read of a packet.
#[derive(Debug, Serialize)]
pub(super) struct Reading {
    /// What it serves.
    pub(super) server: String,
    /// Which packet of that.
    pub(super) packet: String,
    #[serde(flatten)]
    pub(super) traits: Sample,
    /// Nanoseconds since XDP.
    pub(super) latency_ns: u64,
}

/// Packets of a tenant that were dropped for a reason.
#[derive(Debug, Serialize)]
pub(super) struct DropResult {
    pub(super) reason: String,
    /// From the packets' own traits; null if they had none.
    pub(super) tenant: Option<u32>,
    pub(super) packets: usize,
    pub(super) with_traits: usize,
    /// How many were provoked.
    pub(super) expected: u64,
}

/// Everything that was sent and seen.
pub(super) struct Evidence<'a> {
    pub(super) sent: &'a [Sent],
    pub(super) records: &'a [Record],
    /// Records that the ring buffer had no room for.
    pub(super) lost: u64,
    /// Names of the kernel's drop reasons.
    pub(super) reasons: &'a dyn Fn(u32) -> String,
    pub(super) xdp_mode: String,
    pub(super) area_len: usize,
    /// The stages at which there was a program to see packets.
    pub(super) stages: &'a [Stage],
}

/// Judges.
pub(super) fn judge(evidence: &Evidence<'_>) -> Verdict {
    let problems = problems(evidence);
    let flow = |sent: &Sent| FlowResult {
        flow: sent.flow.to_string(),
        port: sent.flow.port,
        tenant: sent.flow.tenant(),
        unit: if sent.flow.kind == Kind::Transfer { "bytes" } else { "datagrams" },
        sent: sent.sent,
        returned: sent.returned,
    };
    Verdict {
        ok: problems.is_empty(),
        xdp_mode: evidence.xdp_mode.clone(),
        flows: evidence.sent.iter().map(flow).collect(),
        stages: evidence.stages.iter().map(|stage| stage_result(evidence, *stage)).collect(),
        area_len: evidence.area_len,
        not_shown: Stage::ALL
            .iter()
            .filter(|stage| !evidence.stages.contains(stage))
            .map(|stage| stage.name())
            .collect(),
        servers: readings(evidence),
        drops: drop_results(evidence),
        problems,
    }
}

fn stage_result(evidence: &Evidence<'_>, stage: Stage) -> StageResult {
    let datagrams = |flow: &Flow| flow.kind != Kind::Transfer;
    let expected = evidence.sent.iter().filter(|sent| datagrams(&sent.flow) && sent.flow.passes(stage));
    let is_tcp = |record: &Record| flow_of(evidence, record).is_some_and(|sent| !datagrams(&sent.flow));
    let seen: Vec<&Record> = evidence.records.iter().filter(|record| record.stage == stage).collect();
    let (tcp, udp): (Vec<&Record>, Vec<&Record>) = seen.iter().partition(|record| is_tcp(record));
    // data is taken from one packet in several reads
    let packets = |records: &[&Record]| {
        let bare = records.iter().filter(|record| record.traits.is_none()).count();
        let ids: BTreeSet<u64> = records.iter().filter_map(|record| Some(record.traits?.flow_id)).collect();
        if stage == Stage::Delivery { (bare + ids.len(), ids.len()) } else { (records.len(), records.len() - bare) }
    };
    let ((udp_packets, udp_with), (tcp_packets, tcp_with)) = (packets(&udp), packets(&tcp));
    StageResult {
        stage: stage.name(),
        packets: udp_packets + tcp_packets,
        with_traits: udp_with + tcp_with,
        udp_packets,
        udp_expected: expected.map(|sent| sent.sent).sum(),
        tcp_packets,
        tcp_bytes: tcp.iter().map(|record| u64::from(record.bytes)).sum(),
        latency_ns: (stage != Stage::Xdp).then(|| latency(&seen)).flatten(),
        sample: sample(evidence, &seen),
    }
}

fn latency(seen: &[&Record]) -> Option<Latency> {
    let mut sorted: Vec<u64> =
        seen.iter().filter_map(|record| Some(record.now.saturating_sub(record.traits?.rx_ts))).collect();
    sorted.sort_unstable();
    // the nearest rank
    let quantile = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    Some(Latency { min: *sorted.first()?, median: quantile(50)?, p99: quantile(99)?, max: *sorted.last()? })
}

/// The datagram in the middle of one flow, or any packet where that flow does not come.
fn sample(evidence: &Evidence<'_>, seen: &[&Record]) -> Option<Sample> {
    let chosen = |record: &&&Record| is_sampled(evidence, record) && record.traits.is_some();
    let any = |record: &&&Record| record.traits.is_some();
    let record = seen.iter().find(chosen).or_else(|| seen.iter().find(any))?;
    record.traits.map(Sample::from)
}

/// Whether it is of the datagram that is shown at every stage.
fn is_sampled(evidence: &Evidence<'_>, record: &Record) -> bool {
    let middle = evidence.sent.iter().find(|sent| sent.flow == SAMPLED).map(|sent| sent.sent / 2);
    record.port == SAMPLED.port && record.number == middle
}

/// What the servers have read of the sampled datagram and of a connection.
fn readings(evidence: &Evidence<'_>) -> Vec<Reading> {
    let of_servers = evidence.records.iter().filter(|record| record.stage == Stage::Application);
    let reading = |record: &Record| {
        let (flow, packet) = match record {
            _ if is_sampled(evidence, record) => (SAMPLED, format!("datagram {}", record.number?)),
            _ if record.port != SAMPLED_TRANSFER.port => return None,
            Record { syn: true, .. } => (SAMPLED_TRANSFER, "the SYN".to_owned()),
            _ => (SAMPLED_TRANSFER, "the newest data".to_owned()),
        };
        let traits = record.traits?;
        let latency_ns = record.now.saturating_sub(traits.rx_ts);
        Some(Reading { server: flow.to_string(), packet, traits: traits.into(), latency_ns })
    };
    of_servers.filter_map(reading).collect()
}

fn drop_results(evidence: &Evidence<'_>) -> Vec<DropResult> {
    let mut drops: BTreeMap<(String, Option<u32>), (usize, u64)> = BTreeMap::new();
    for sent in evidence.sent {
        if let Some(reason) = sent.flow.drop_reason() {
            drops.entry((reason.to_owned(), Some(sent.flow.tenant()))).or_default().1 += sent.sent;
        }
    }
    for record in evidence.records.iter().filter(|record| record.stage == Stage::Drop) {
        let tenant = record.traits.map(|traits| traits.tenant);
        drops.entry(((evidence.reasons)(record.reason), tenant)).or_default().0 += 1;
    }
    let result = |((reason, tenant), (packets, expected)): ((String, Option<u32>), (usize, u64))| DropResult {
        reason,
        tenant,
        packets,
        with_traits: if tenant.is_some() { packets } else { 0 },
        expected,
    };
    drops.into_iter().map(result).collect()
}

fn flow_of<'a>(evidence: &Evidence<'a>, record: &Record) -> Option<&'a Sent> {
    evidence.sent.iter().find(|sent| sent.flow.port == record.port)
}

/// Everything that is not as it must be.
fn problems(evidence: &Evidence<'_>) -> Vec<String> {
    let mut problems = Vec::new();
    if evidence.lost != 0 {
        let reports = counted(evidence.lost, "report");
        problems.push(format!("{reports} did not fit into the ring buffer; send fewer packets"));
    }
    let stray = evidence.records.iter().filter(|record| flow_of(evidence, record).is_none()).count();
    if stray != 0 {
        problems.push(format!("{} of packets to ports that nothing was sent to", counted(stray, "report")));
    }

    let in_xdp = || evidence.records.iter().filter(|record| record.stage == Stage::Xdp);
    let set: BTreeMap<u64, &Record> = in_xdp().filter_map(|record| Some((record.traits?.flow_id, record))).collect();
    let ids = in_xdp().filter(|record| record.traits.is_some()).count();
    if set.len() != ids {
        problems.push(format!("{} got only {}", counted(ids, "packet"), counted(set.len(), "different flow_id")));
    }
    // what was read must be what XDP set on that packet
    let as_set = |record: &Record, traits: &Traits| {
        set.get(&traits.flow_id).is_some_and(|origin| {
            (origin.port, origin.syn) == (record.port, record.syn)
                && (origin.number == record.number || record.number.is_none())
                && origin.traits.as_ref() == Some(traits)
        })
    };

    for sent in evidence.sent {
        let seen: Vec<&Record> = evidence.records.iter().filter(|record| record.port == sent.flow.port).collect();
        for &stage in evidence.stages {
            let here: Vec<&Record> = seen.iter().filter(|record| record.stage == stage).copied().collect();
            let mut wrong = Vec::new();
            if sent.flow.kind == Kind::Transfer {
                transfer_problems(sent, stage, &seen, &here, &mut wrong);
            } else {
                datagram_problems(sent, stage, &here, &mut wrong);
            }
            let bare = here.iter().filter(|record| record.traits.is_none()).count();
            note(&mut wrong, bare, "without traits");
            let other =
                here.iter().filter(|record| record.traits.is_some_and(|traits| !as_set(record, &traits))).count();
            note(&mut wrong, other, "with traits that XDP did not set on them");
            let tenant = |record: &&&Record| record.traits.is_some_and(|traits| traits.tenant != sent.flow.tenant());
            note(&mut wrong, here.iter().filter(tenant).count(), "of another tenant");
            if let Some(expected) = sent.flow.drop_reason().filter(|_| stage == Stage::Drop) {
                let reason = |record: &&&Record| (evidence.reasons)(record.reason) != expected;
                note(&mut wrong, here.iter().filter(reason).count(), &format!("not for {expected}"));
            }
            if !wrong.is_empty() {
                problems.push(format!("{} ({}): {}", stage.name(), sent.flow, wrong.join(", ")));
            }
        }
        if sent.flow.drop_reason().is_none() && sent.returned != sent.sent {
            problems.push(format!("{}: {} sent, {} came back", sent.flow, sent.sent, sent.returned));
        }
    }
    problems
}

fn note(wrong: &mut Vec<String>, count: usize, what: &str) {
    if count != 0 {
        wrong.push(format!("{count} {what}"));
    }
}

/// Each datagram is seen once where it must be, and nowhere else.
fn datagram_problems(sent: &Sent, stage: Stage, here: &[&Record], wrong: &mut Vec<String>) {
    if !sent.flow.passes(stage) {
        note(wrong, here.len(), "that should not get here");
        return;
    }
    let numbers: BTreeSet<u64> =
        here.iter().filter_map(|record| record.number).filter(|number| *number < sent.sent).collect();
    note(wrong, usize::try_from(sent.sent).unwrap_or(usize::MAX) - numbers.len(), "missing");
    note(wrong, here.len() - numbers.len(), "too many");
}

/// Every byte is seen where it must be. What TCP sent again and the kernel then dropped is no fault.
fn transfer_problems(sent: &Sent, stage: Stage, seen: &[&Record], here: &[&Record], wrong: &mut Vec<String>) {
    let bytes = |records: &[&Record]| records.iter().map(|record| u64::from(record.bytes)).sum::<u64>();
    let in_xdp = || seen.iter().filter(|record| record.stage == Stage::Xdp).map(|record| u64::from(record.bytes)).sum();
    let expected = match stage {
        Stage::Drop => return,
        _ if !sent.flow.passes(stage) => 0,
        Stage::Xdp => sent.sent.max(in_xdp()),
        Stage::Delivery | Stage::Application => sent.sent,
        _ => in_xdp(),
    };
    if bytes(here) != expected {
        wrong.push(format!("{} of {expected}", counted(bytes(here), "byte")));
    }
    if stage == Stage::Application {
        connection_problems(sent, seen, here, wrong);
    }
}

/// A server reads the SYN's traits of one connection, and those of its newest data.
fn connection_problems(sent: &Sent, seen: &[&Record], here: &[&Record], wrong: &mut Vec<String>) {
    let (syns, data): (Vec<&Record>, Vec<&Record>) = here.iter().partition(|record| record.syn);
    if (syns.len(), data.len()) != (1, 1) {
        let (syns, data) = (counted(syns.len(), "SYN"), counted(data.len(), "report"));
        wrong.push(format!("{syns} and {data} of the newest data, of one connection"));
    }
    let newest = newest_data(sent, seen);
    let old = |record: &&&Record| record.traits.is_some_and(|traits| !newest.contains(&traits.flow_id));
    note(wrong, data.iter().filter(old).count(), "not of the newest data");
}

/// The flow_ids of the packets that may have brought a transfer's newest data: the one that made it whole, and those that
/// came after that, with data sent again. What comes last need not be the end: if a tunnel's GRO finds that the outer
/// headers of a short last segment differ from those of the packets it holds, the segment overtakes them.
fn newest_data(sent: &Sent, seen: &[&Record]) -> BTreeSet<u64> {
    let at_socket = || seen.iter().filter(|record| record.stage == Stage::CgroupIngress);
    let Some(start) = at_socket().find(|record| record.syn).and_then(|syn| Some(syn.number? + 1)) else {
        return BTreeSet::new();
    };
    let data: Vec<&&Record> = at_socket().filter(|record| record.bytes > 0).collect();
    let (mut whole, mut early) = (0, Vec::new());
    let last = data.iter().position(|record| {
        // sequence numbers are of 32 bits and begin anywhere (RFC 9293 section 3.4)
        let from = u64::from(record.number.unwrap_or_default().wrapping_sub(start) as u32);
        early.push(from..from + u64::from(record.bytes));
        while let Some(next) = early.iter().position(|range| range.contains(&whole)) {
            whole = early.swap_remove(next).end;
        }
        whole >= sent.sent
    });
    let newest = last.map_or(&[][..], |last| &data[last..]);
    newest.iter().filter_map(|record| Some(record.traits?.flow_id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::FLOWS;

    const SENT: u64 = 3;
    const PAYLOAD: u32 = 64;
    /// Of a transfer: its second packet's number is beyond 32 bits.
    const FIRST_SEQUENCE: u32 = u32::MAX - PAYLOAD;

    /// The sequence number of a transfer's packet.
    fn sequence_of(index: u64) -> u64 {
        u64::from(FIRST_SEQUENCE.wrapping_add(1 + index as u32 * PAYLOAD))
    }

    fn flow_with(kind: Kind) -> Flow {
        *FLOWS.iter().find(|flow| flow.kind == kind).unwrap()
    }

    fn reason(number: u32) -> String {
        ["NOT_SPECIFIED", "NO_SOCKET", "NETFILTER_DROP"][number as usize].to_owned()
    }

    /// What a run of one flow in which everything goes well leaves behind.
    fn faultless(flow: Flow) -> (Sent, Vec<Record>) {
        let transfer = flow.kind == Kind::Transfer;
        let bytes_sent = SENT * u64::from(PAYLOAD);
        let record = |stage, index: u64, number, bytes| Record {
            stage,
            port: flow.port,
            number: Some(number),
            syn: false,
            bytes,
            reason: (0..3).find(|number| flow.drop_reason() == Some(&reason(*number))).unwrap_or(0),
            now: 2000,
            traits: Some(Traits { flow_id: 100 + index, rx_ts: 1000 + index, tenant: flow.tenant() }),
        };
        let mut records = Vec::new();
        for stage in Stage::ALL.into_iter().filter(|stage| flow.passes(*stage)) {
            if !transfer {
                records.extend((0..SENT).map(|number| record(stage, number, number, PAYLOAD)));
                continue;
            }
            let syn = Record { syn: true, ..record(stage, 99, u64::from(FIRST_SEQUENCE), 0) };
            let data = (0..SENT).map(|index| record(stage, index, sequence_of(index), PAYLOAD));
            match stage {
                Stage::Application => {
                    let newest = record(stage, SENT - 1, 0, bytes_sent as u32);
                    records.extend([syn, newest].map(|record| Record { number: None, ..record }));
                }
                Stage::Delivery => records.extend(data),
                _ => records.extend([syn].into_iter().chain(data)),
            }
        }
        let sent = if transfer { bytes_sent } else { SENT };
        let returned = if flow.drop_reason().is_some() { 0 } else { sent };
        (Sent { flow, sent, returned }, records)
    }

    fn verdict(sent: Sent, records: &[Record]) -> Verdict {
        let (sent, xdp_mode) = ([sent], "native".to_owned());
        judge(&Evidence {
            sent: &sent,
            records,
            lost: 0,
            reasons: &reason,
            xdp_mode,
            area_len: 144,
            stages: &Stage::ALL,
        })
    }

    /// Changes what was seen of a flow of `kind`, and returns what is then wrong.
    fn problem(kind: Kind, change: impl FnOnce(&mut Sent, &mut Vec<Record>)) -> String {
        let (mut sent, mut records) = faultless(flow_with(kind));
        change(&mut sent, &mut records);
        let verdict = verdict(sent, &records);
        assert!(!verdict.ok);
        verdict.problems.join("; ")
    }

    fn first(records: &mut [Record], stage: Stage) -> &mut Record {
        records.iter_mut().find(|record| record.stage == stage).unwrap()
    }

    fn last(records: &mut [Record], stage: Stage) -> &mut Record {
        records.iter_mut().rfind(|record| record.stage == stage).unwrap()
    }

    #[test]
    fn a_faultless_run_is_ok() {
        for flow in FLOWS {
            let (sent, records) = faultless(flow);
            let verdict = verdict(sent, &records);
            assert!(verdict.ok, "{:?}", verdict.problems);
            assert!(verdict.drops.iter().all(|drop| drop.packets as u64 == drop.expected));
        }
    }

    #[test]
    fn stages_that_the_kernel_cannot_show_are_named_and_not_missed() {
        let (sent, mut records) = faultless(flow_with(Kind::Echo));
        records.retain(|record| !record.stage.is_netfilter());
        let (sent, xdp_mode, stages) = ([sent], "native".to_owned(), Stage::shown(false));
        let evidence = Evidence {
            sent: &sent,
            records: &records,
            lost: 0,
            reasons: &reason,
            xdp_mode,
            area_len: 144,
            stages: &stages,
        };
        let verdict = judge(&evidence);
        assert!(verdict.ok, "{:?}", verdict.problems);
        assert_eq!(verdict.not_shown, ["netfilter-prerouting", "netfilter-input"]);
    }

    #[test]
    fn a_datagram_that_a_stage_missed_is_noticed() {
        let wrong = problem(Kind::Echo, |_, records| {
            let at = records.iter().position(|record| record.stage == Stage::Input).unwrap();
            records.remove(at);
        });
        assert_eq!(wrong, "netfilter-input (UDP echo, IPv4): 1 missing");
    }

    #[test]
    fn a_datagram_that_a_stage_saw_twice_is_noticed() {
        let wrong = problem(Kind::Echo, |_, records| records.push(*first(&mut records.clone(), Stage::TcIngress)));
        assert_eq!(wrong, "tc-ingress (UDP echo, IPv4): 1 too many");
    }

    #[test]
    fn a_packet_without_traits_is_noticed() {
        let wrong = problem(Kind::Transfer, |_, records| first(records, Stage::Delivery).traits = None);
        assert_eq!(wrong, "delivery (TCP transfer, IPv4): 1 without traits");
    }

    #[test]
    fn another_packets_traits_are_noticed() {
        let wrong = problem(Kind::Echo, |_, records| {
            let traits = first(records, Stage::SocketFilter).traits.as_mut().unwrap();
            traits.flow_id += 1;
        });
        assert_eq!(wrong, "socket-filter (UDP echo, IPv4): 1 with traits that XDP did not set on them");
    }

    #[test]
    fn what_a_server_reads_of_another_datagram_is_noticed() {
        let wrong = problem(Kind::Echo, |_, records| {
            let number = first(records, Stage::Application).number.as_mut().unwrap();
            *number += 1;
        });
        assert_eq!(
            wrong,
            "application (UDP echo, IPv4): 1 missing, 1 too many, 1 with traits that XDP did not set on them"
        );
    }

    #[test]
    fn a_datagram_that_a_server_reads_nothing_of_is_noticed() {
        let wrong = problem(Kind::Echo, |_, records| first(records, Stage::Application).traits = None);
        assert_eq!(wrong, "application (UDP echo, IPv4): 1 without traits");
    }

    #[test]
    fn data_that_is_taken_for_the_syn_is_noticed() {
        let wrong = problem(Kind::Transfer, |_, records| {
            let data = last(records, Stage::Application).traits;
            first(records, Stage::Application).traits = data;
        });
        assert_eq!(wrong, "application (TCP transfer, IPv4): 1 with traits that XDP did not set on them");
    }

    #[test]
    fn a_connection_without_its_syn_is_noticed() {
        let wrong = problem(Kind::Transfer, |_, records| {
            records.retain(|record| record.stage != Stage::Application || !record.syn);
        });
        assert_eq!(
            wrong,
            "application (TCP transfer, IPv4): 0 SYNs and 1 report of the newest data, of one connection"
        );
    }

    #[test]
    fn older_data_that_is_taken_for_the_newest_is_noticed() {
        let wrong = problem(Kind::Transfer, |_, records| {
            let first_data = records.iter().find(|record| !record.syn).unwrap().traits;
            last(records, Stage::Application).traits = first_data;
        });
        assert_eq!(wrong, "application (TCP transfer, IPv4): 1 not of the newest data");
    }

    #[test]
    fn the_newest_data_may_have_been_sent_twice() {
        let (sent, mut records) = faultless(flow_with(Kind::Transfer));
        for stage in Stage::ALL.into_iter().filter(|stage| *stage < Stage::Delivery && sent.flow.passes(*stage)) {
            let mut again = *last(&mut records, stage);
            again.traits.as_mut().unwrap().flow_id += 100;
            records.push(again);
        }
        let verdict = verdict(sent, &records);
        assert!(verdict.ok, "{:?}", verdict.problems);
    }

    #[test]
    fn the_newest_data_is_what_comes_last_and_not_what_is_last() {
        let (sent, mut records) = faultless(flow_with(Kind::Transfer));
        // the end overtakes the others
        let end = records.iter().rposition(|record| record.stage == Stage::CgroupIngress).unwrap();
        records[end - 2..=end].rotate_right(1);
        assert!(!verdict(sent, &records).ok);
        last(&mut records, Stage::Application).traits = records[end].traits;
        let verdict = verdict(sent, &records);
        assert!(verdict.ok, "{:?}", verdict.problems);
    }

    #[test]
    fn what_a_server_reads_is_shown_of_a_datagram_and_a_connection() {
        let (echo, transfer) = (faultless(SAMPLED), faultless(SAMPLED_TRANSFER));
        let records: Vec<Record> = [echo.1, transfer.1].concat();
        let (sent, xdp_mode) = ([echo.0, transfer.0], "native".to_owned());
        let readings = judge(&Evidence {
            sent: &sent,
            records: &records,
            lost: 0,
            reasons: &reason,
            xdp_mode,
            area_len: 144,
            stages: &Stage::ALL,
        })
        .servers;
        let shown: Vec<_> = readings.iter().map(|one| (&*one.packet, one.traits.tenant, one.latency_ns)).collect();
        let expected =
            [("datagram 1", 2002, 2000 - 1001), ("the SYN", 1001, 2000 - 1099), ("the newest data", 1001, 2000 - 1002)];
        assert_eq!(shown, expected);
    }

    #[test]
    fn another_drop_reason_is_noticed() {
        let wrong = problem(Kind::Filtered, |_, records| first(records, Stage::Drop).reason = 0);
        assert_eq!(wrong, "drop (UDP to a filtered port, IPv6): 1 not for NETFILTER_DROP");
    }

    #[test]
    fn the_same_flow_id_twice_is_noticed() {
        let wrong = problem(Kind::Transfer, |_, records| {
            for record in records.iter_mut() {
                record.traits.as_mut().unwrap().flow_id = 1;
            }
        });
        assert!(wrong.starts_with("4 packets got only 1 different flow_id;"), "{wrong}");
    }

    #[test]
    fn a_missing_reply_is_noticed() {
        assert_eq!(problem(Kind::Echo, |sent, _| sent.returned -= 1), "UDP echo, IPv4: 3 sent, 2 came back");
    }

    #[test]
    fn bytes_that_were_not_delivered_are_noticed() {
        let wrong = problem(Kind::Transfer, |_, records| first(records, Stage::Delivery).bytes = 1);
        assert_eq!(wrong, "delivery (TCP transfer, IPv4): 129 bytes of 192");
    }

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let (sent, mut records) = faultless(flow_with(Kind::Echo));
        for (record, late) in records.iter_mut().filter(|record| record.stage == Stage::TcIngress).zip([5, 1, 3]) {
            record.now = record.traits.unwrap().rx_ts + late;
        }
        let latency = verdict(sent, &records).stages[1].latency_ns.clone().unwrap();
        assert_eq!((latency.min, latency.median, latency.p99, latency.max), (1, 3, 5, 5));
    }
}
