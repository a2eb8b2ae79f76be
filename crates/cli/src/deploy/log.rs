//! `traits log`: prints what the `log` actions of policies write, as it happens.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use clap::Args;
use packet_traits::registry::Utc;
use packet_traits_deploy::{Event, Log as Events};
use packet_traits_trace::{Headers, write::json};
use serde::Serialize;

use crate::{Global, Outcome, clock, interrupt::Interrupt, output};

/// How long to wait for an event before looking whether the policies are still the same.
const WAIT: Duration = Duration::from_millis(100);

const HELP: &str = "\
Examples:
  traits log
  traits log edge --count 10
  traits log --new --json | jq .traits.tenant

Prints the events that nobody has read yet, and those that come, until Ctrl-C or until the named policy is down. A policy that is replaced is followed. Each event goes \
to one reader only. Events that nobody reads find no room after some thousand; `traits status` says how many.

docs/json.md lists the members of what --json prints.";

/// Print what `log` actions tell, live
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Log {
    /// Only of what was brought up under this name
    name: Option<String>,
    /// Only events from now on; those that wait are dropped
    #[arg(long)]
    new: bool,
    /// Stop after this many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print JSON, one event a line
    #[arg(long)]
    json: bool,
}

/// An event, for machines.
#[derive(Serialize)]
struct EventJson<'e> {
    time: String,
    monotonic_ns: u64,
    name: &'e str,
    file: &'e str,
    line: u32,
    rule: &'e str,
    text: &'e str,
    interface: Option<u32>,
    interface_name: Option<&'e str>,
    length: u32,
    headers: serde_json::Value,
    packet: String,
    traits: serde_json::Map<String, serde_json::Value>,
}

/// What the packet's first bytes say, if they are of an IP packet.
fn headers(event: &Event) -> Option<Headers> {
    Headers::parse(event.ip()?)
}

fn as_line(event: &Event) -> String {
    let mut line = format!("{} {}", Utc(wall_clock(event.raw.time)), event.deployment);
    // Writing to a string cannot fail.
    if let Some(rule) = &event.rule {
        let _ = write!(line, " {}:{}", rule.file, rule.line);
    }
    if let Some(text) = event.text.as_deref().filter(|text| !text.is_empty()) {
        let _ = write!(line, " {text:?}");
    }
    let headers = headers(event);
    if let Some(headers) = headers {
        let _ = write!(line, " {headers}");
    }
    let _ = write!(line, " length {}", event.raw.length);
    match (&event.interface_name, event.raw.interface) {
        (Some(name), _) => drop(write!(line, " interface {name}")),
        (None, Some(index)) => drop(write!(line, " interface {index}")),
        (None, None) => {}
    }
    for (key, value) in &event.traits {
        if let Some(value) = value {
            let _ = write!(line, " {key}={value}");
        }
    }
    if headers.is_none() {
        let _ = write!(line, " packet {}", hexadecimal(&event.raw.packet));
    }
    line
}

fn as_json(event: &Event) -> serde_json::Result<String> {
    let rule = event.rule.as_ref();
    let value = |value: &Option<packet_traits::Value>| value.as_ref().map(ToString::to_string);
    serde_json::to_string(&EventJson {
        time: Utc(wall_clock(event.raw.time)).to_string(),
        monotonic_ns: event.raw.time,
        name: &event.deployment,
        file: rule.map_or("", |rule| &rule.file),
        line: rule.map_or(0, |rule| rule.line),
        rule: rule.map_or("", |rule| &rule.text),
        text: event.text.as_deref().unwrap_or_default(),
        interface: event.raw.interface,
        interface_name: event.interface_name.as_deref(),
        length: event.raw.length,
        headers: headers(event).map(json::headers).transpose()?.unwrap_or_default(),
        packet: hexadecimal(&event.raw.packet),
        traits: event.traits.iter().map(|(key, one)| (key.clone(), value(one).into())).collect(),
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the clock on the wall showed at a time of `CLOCK_MONOTONIC`.
fn wall_clock(time: u64) -> SystemTime {
    SystemTime::now() - Duration::from_nanos(clock::now().saturating_sub(time))
}

/// Runs `traits log`.
pub(crate) fn log(command: &Log, global: &Global) -> Outcome {
    let interrupt = Interrupt::catch()?;
    let start = if command.new { clock::now() } else { 0 };
    let mut events = Events::open(&global.location(), command.name.as_deref())?;
    if events.is_empty() {
        return Err(match &command.name {
            Some(name) => format!("{name} has no `log` action").into(),
            None => "nothing that is up has a `log` action".into(),
        });
    }
    let mut left = command.count.unwrap_or(u64::MAX);
    let mut waits = false;
    while !interrupt.came() && left > 0 {
        while left > 0
            && !interrupt.came()
            && let Some(event) = events.next()?
        {
            if event.raw.time < start {
                continue;
            }
            output::line(if command.json { as_json(&event)? } else { as_line(&event) })?;
            left -= 1;
        }
        if left > 0 && !waits {
            waits = true;
            let of = command.name.as_deref().unwrap_or("all policies");
            output::note(format_args!("traits: waiting for events of {of}; Ctrl-C ends it"));
        }
        if left > 0 && !events.wait(WAIT)? {
            return Ok(());
        }
    }
    Ok(())
}
