//! JSON lines: one object a line, of version [`VERSION`]. docs/json.md lists the types of objects and their members.
//!
//! Types and members are added; none is renamed, removed or changed without a new version. Numbers that may need more than 53 bits
//! are text.

use std::io::{self, Write};

use packet_traits::Value as TraitValue;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    event::{Event, GroResult},
    names::{Names, table},
    packet::Headers,
    path::{Detail, Packet},
    point::Point,
    standby::Change,
    summary::{Summary, Times},
    tracer::{Counters, Tracer},
    write::{End, Sink, Start, View},
};

/// The version of what is written.
pub const VERSION: u32 = 1;

/// The first object: what is traced, and how.
pub fn start(tracer: &Tracer<'_>, registry: &str, id_key: &str, kernel: &str) -> Value {
    let keys: Vec<Value> =
        tracer.keys().iter().map(|key| json!({"name": key.name(), "type": key.entry.key.key_type().name()})).collect();
    let points: Vec<Value> = tracer.points().map(|p| json!({"name": p.name(), "hook": p.hook()})).collect();
    json!({
        "v": VERSION, "type": "start", "kernel": kernel, "registry": registry, "id_key": id_key,
        "assigns_ids": tracer.assigns_ids(), "armed": tracer.is_armed(), "keys": keys, "points": points, "notes": tracer.notes(),
    })
}

/// Lines of JSON.
pub struct Lines<W: Write> {
    to: W,
    view: View,
}

impl<W: Write> Lines<W> {
    /// Lines about what `view` says, and about everything else.
    pub fn new(to: W, view: View) -> Lines<W> {
        Lines { to, view }
    }
}

impl<W: Write> Sink for Lines<W> {
    fn start(&mut self, it: &Start<'_, '_>) -> io::Result<()> {
        writeln!(self.to, "{}", start(it.tracer, it.registry, it.id_key, it.kernel))
    }

    fn event(&mut self, it: &Event<'_>, since_entered: u64, packet: &Packet, names: &mut Names) -> io::Result<()> {
        if self.view != View::Events {
            return Ok(());
        }
        writeln!(self.to, "{}", event(it, since_entered, Some(packet), names)?)
    }

    fn packet(&mut self, it: &Packet, names: &mut Names) -> io::Result<()> {
        if self.view != View::Packets {
            return Ok(());
        }
        writeln!(self.to, "{}", packet(it, names))
    }

    fn lost(&mut self, counters: &Counters) -> io::Result<()> {
        writeln!(self.to, "{}", lost(counters))
    }

    fn changed(&mut self, change: Change, why: &str) -> io::Result<()> {
        writeln!(self.to, "{}", standby(change == Change::Armed, why))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    fn end(&mut self, end: &End<'_>, names: &mut Names) -> io::Result<()> {
        writeln!(self.to, "{}", summary(end.summary, end.counters, end.given_up, names))?;
        self.to.flush()
    }
}

/// An event.
#[derive(Serialize)]
struct EventJson<'a> {
    v: u32,
    r#type: &'static str,
    id: String,
    point: &'static str,
    at_ns: u64,
    since_entered_ns: u64,
    netns: u32,
    netns_name: String,
    dev: &'a str,
    ifindex: u32,
    len: u32,
    mark: u32,
    cpu: u16,
    skb: String,
    copy: u16,
    clone: bool,
    inferred: bool,
    segments: u16,
    headers: Option<HeadersJson>,
    traits: Map<String, Value>,
    #[serde(flatten)]
    more: Map<String, Value>,
}

#[derive(Serialize)]
struct HeadersJson {
    protocol: u8,
    source: String,
    destination: String,
    source_port: Option<u16>,
    destination_port: Option<u16>,
    tcp: Option<TcpJson>,
}

#[derive(Serialize)]
struct TcpJson {
    sequence: u32,
    flags: u8,
    data: u32,
}

impl From<Headers> for HeadersJson {
    fn from(headers: Headers) -> HeadersJson {
        HeadersJson {
            protocol: headers.protocol,
            source: headers.source.to_string(),
            destination: headers.destination.to_string(),
            source_port: headers.ports.map(|(port, _)| port),
            destination_port: headers.ports.map(|(_, port)| port),
            tcp: headers.tcp.map(|tcp| TcpJson { sequence: tcp.sequence, flags: tcp.flags, data: tcp.data }),
        }
    }
}

/// A packet's headers, as events have them.
///
/// # Errors
/// None in practice: everything in them can be written.
pub fn headers(headers: Headers) -> serde_json::Result<Value> {
    serde_json::to_value(HeadersJson::from(headers))
}

fn trait_value(value: &TraitValue) -> Value {
    match value {
        TraitValue::Flag => true.into(),
        TraitValue::U8(n) => (*n).into(),
        TraitValue::U16(n) => (*n).into(),
        TraitValue::U32(n) => (*n).into(),
        other => other.to_string().into(),
    }
}

/// An event, as one line.
///
/// # Errors
/// None in practice: everything in it can be written.
pub fn event(
    event: &Event<'_>,
    since_entered: u64,
    packet: Option<&Packet>,
    names: &mut Names,
) -> serde_json::Result<String> {
    let mut more = Map::new();
    let step = packet.and_then(|packet| packet.step_of(event));
    match event.point() {
        Point::Xdp | Point::TcIngress => {
            more.insert("first".into(), event.is_first().into());
        }
        Point::Drop => {
            more.insert("reason".into(), names.reason(event.reason()).into());
            more.insert("place".into(), names.place(event.place()).into());
        }
        Point::Consume => {
            more.insert("place".into(), names.place(event.place()).into());
        }
        Point::XdpVerdict => {
            if let Some((verdict, program)) = event.verdict() {
                more.insert("verdict".into(), verdict.name().into());
                more.insert("program".into(), program.name().into());
                more.insert("program_id".into(), program.id.into());
            }
        }
        Point::Deliver | Point::Peek => {
            more.insert("bytes".into(), event.delivered().into());
            let (pid, comm) = event.process().unwrap_or_default();
            more.insert("pid".into(), pid.into());
            more.insert("comm".into(), comm.into());
        }
        Point::Route => {
            more.insert("table".into(), event.table().map(table).into());
        }
        Point::Icmp => {
            more.insert("icmp".into(), event.icmp().map(|(kind, code)| vec![kind, code]).into());
        }
        Point::GroResult => {
            let result = match event.gro_result() {
                Some(GroResult::Merged) => "merged",
                Some(GroResult::Held) => "held",
                _ => "consumed",
            };
            more.insert("result".into(), result.into());
            if let Some(Detail::Merged(Some(target))) = step.map(|step| &step.detail) {
                more.insert("into".into(), target.to_string().into());
            }
        }
        _ => {}
    }
    if event.socket() != 0 {
        more.insert("socket".into(), format!("{:x}", event.socket()).into());
    }
    serde_json::to_string(&EventJson {
        v: VERSION,
        r#type: "event",
        id: event.id().to_string(),
        point: event.point().name(),
        at_ns: event.at(),
        since_entered_ns: since_entered,
        netns: event.netns(),
        netns_name: names.namespace(event.netns()),
        dev: event.device(),
        ifindex: event.ifindex(),
        len: event.len(),
        mark: event.mark(),
        cpu: event.cpu(),
        skb: format!("{:x}", event.skb()),
        copy: step.map_or(0, |step| step.copy),
        clone: event.is_clone(),
        inferred: event.is_inferred(),
        segments: event.segments(),
        headers: event.headers().map(HeadersJson::from),
        traits: event.traits().map(|(key, value)| (key.name().to_owned(), trait_value(&value))).collect(),
        more,
    })
}

/// A packet's whole path.
pub fn packet(packet: &Packet, names: &mut Names) -> Value {
    let mut before = packet.entered;
    let steps: Vec<Value> = packet
        .steps
        .iter()
        .map(|step| {
            let mut one = json!({
                "point": step.point.name(),
                "since_entered_ns": step.at.saturating_sub(packet.entered),
                "since_step_ns": step.at.saturating_sub(before),
                "netns": step.netns,
                "netns_name": names.namespace(step.netns),
                "dev": step.device(),
                "copy": step.copy,
                "inferred": step.inferred,
            });
            before = step.at;
            if step.detail.socket() != 0 {
                one["socket"] = format!("{:x}", step.detail.socket()).into();
            }
            match &step.detail {
                Detail::None => {}
                Detail::Merged(into) => {
                    one["result"] = "merged".into();
                    one["into"] = into.map(|id| id.to_string()).into();
                }
                Detail::Held => one["result"] = "held".into(),
                Detail::Table(number) => one["table"] = table(*number).into(),
                Detail::Icmp(kind, code) => one["icmp"] = vec![*kind, *code].into(),
                Detail::Verdict(verdict, program) => {
                    one["verdict"] = verdict.name().into();
                    one["program"] = program.name().into();
                    one["program_id"] = program.id.into();
                }
                Detail::Socket(_) => {}
                Detail::Delivered { bytes, pid, comm, .. } => {
                    one["bytes"] = (*bytes).into();
                    one["pid"] = (*pid).into();
                    one["comm"] = comm.clone().into();
                }
                Detail::Freed(place) => one["place"] = names.place(*place).into(),
                Detail::Dropped { reason, place, .. } => {
                    one["reason"] = names.reason(*reason).into();
                    one["place"] = names.place(*place).into();
                }
            }
            one
        })
        .collect();
    let traits: Map<String, Value> =
        packet.traits.iter().map(|(key, value)| (key.clone(), trait_value(value))).collect();
    json!({
        "v": VERSION, "type": "packet", "id": packet.id.to_string(), "entered_ns": packet.entered,
        "duration_ns": packet.duration(), "outcome": packet.outcome.name(),
        "headers": packet.headers.map(HeadersJson::from), "came_as": packet.came_as.map(HeadersJson::from), "traits": traits, "merged": packet.merged,
        "clones": packet.clones(), "retransmit_of": packet.retransmit_of.map(|id| id.to_string()),
        "steps": steps, "more_steps": packet.more_steps,
    })
}

/// Events that did not fit into the ring buffer, so far.
pub fn lost(counters: &Counters) -> Value {
    json!({"v": VERSION, "type": "lost", "events": counters.lost_events(), "points": lost_points(counters)})
}

fn lost_points(counters: &Counters) -> Map<String, Value> {
    let named =
        |(code, count): (usize, &u64)| Some((Point::from_code(code as u16)?.name().to_owned(), (*count).into()));
    counters.lost.iter().enumerate().filter(|(_, count)| **count != 0).filter_map(named).collect()
}

/// The points behind the entry are in place again (`armed`), or were taken away.
pub fn standby(armed: bool, why: &str) -> Value {
    json!({"v": VERSION, "type": "standby", "armed": armed, "why": why})
}

/// The last object.
pub fn summary(summary: &Summary, counters: &Counters, given_up: u64, names: &mut Names) -> Value {
    let points: Vec<Value> = summary
        .points
        .iter()
        .map(|(point, seen)| {
            json!({
                "point": point.name(), "events": seen.events,
                "since_entered_ns": Times::from(&seen.since_entered), "since_step_ns": Times::from(&seen.since_step),
                "histogram_ns": seen.since_entered.buckets().map(|bucket| [bucket.start, bucket.count]).collect::<Vec<_>>(),
            })
        })
        .collect();
    let verdicts: Vec<Value> = summary
        .verdicts
        .iter()
        .map(|((program, verdict), count)| {
            json!({
                "program": program.name(), "program_id": program.id, "verdict": verdict.name(), "packets": count,
            })
        })
        .collect();
    let xdp: Vec<Value> = counters
        .xdp
        .iter()
        .map(|count| {
            json!({
                "fate": count.fate.name(), "dev": count.interface.name, "ifindex": count.interface.index,
                "netns": count.netns, "netns_name": count.namespace, "program": count.program.name(),
                "program_id": count.program.id, "packets": count.packets,
            })
        })
        .collect();
    let drops: Vec<Value> = summary
        .drops
        .iter()
        .map(|(drop, count)| {
            json!({
                "reason": names.drop_reason(&drop.cause), "place": names.drop_place(&drop.cause), "netns": drop.netns,
                "netns_name": names.namespace(drop.netns), "packets": count,
            })
        })
        .collect();
    let values: Vec<Value> = summary
        .values
        .iter()
        .map(|((key, value), counts)| {
            json!({
                "key": key, "value": value, "packets": counts.packets, "delivered": counts.delivered,
                "dropped": counts.dropped, "latency_ns": Times::from(&counts.latency),
            })
        })
        .collect();
    json!({
        "v": VERSION, "type": "summary", "packets": summary.packets, "events": summary.events,
        "delivered": summary.delivered, "dropped": summary.dropped, "spent": summary.spent, "merged": summary.merged,
        "unique_keys": summary.unique,
        "retransmits": summary.retransmits,
        "lost": counters.lost_events(), "lost_points": lost_points(counters), "no_room": counters.no_room,
        "too_early": counters.too_early, "taken": counters.taken, "shared": counters.shared, "unfollowed": counters.unfollowed, "given_up": given_up, "points": points, "drops": drops, "values": values,
        "verdicts": verdicts, "xdp": xdp,
    })
}
