//! `traits log`: prints what the `log` actions of policies tell, as it happens.

use std::{
    error::Error,
    fmt::Write as _,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use clap::Args;
use libbpf_rs::{MapHandle, MapInfo, RingBuffer, RingBufferBuilder};
use packet_traits::{deployment::Deployment, registry::Utc};
use packet_traits_policy::{
    interpret::to_value,
    log_event::LogEvent,
    manifest::{Manifest, Rule},
};
use serde::Serialize;

use super::{find, policy};
use crate::{Global, Outcome, interrupt::Interrupt, output};

/// The ring of events.
const RING: &str = "pt_log";

/// How long to wait for an event before looking whether the policies are still the same.
const WAIT: Duration = Duration::from_millis(100);

const HELP: &str = "\
Examples:
  traits log
  traits log edge --count 10
  traits log --json | jq .traits.tenant

Prints events until Ctrl-C, or until the named policy is down. A policy that is replaced is followed. Each event goes \
to one reader only. Events that nobody reads find no room after some thousand; `traits status` says how many.

docs/json.md lists the members of what --json prints.";

/// Print what `log` actions tell, live
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Log {
    /// Only of what was brought up under this name
    name: Option<String>,
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
    length: u32,
    packet: String,
    traits: serde_json::Map<String, serde_json::Value>,
}

/// A ring that is read, and what its numbers mean.
struct Source {
    name: String,
    id: u32,
    ring: RingBuffer<'static>,
    /// Waiting for the ring takes its descriptor.
    _map: MapHandle,
    manifest: Manifest,
    /// What the ring gave and was not printed yet.
    records: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Source {
    /// The ring of a deployment: one that is read already, or else opened; `None` if it has none.
    fn find(deployment: &Deployment, read: &mut Vec<Source>) -> Result<Option<Source>, Box<dyn Error>> {
        let Some(map) = deployment.map(RING).filter(|_| !deployment.unfinished()) else { return Ok(None) };
        let id = MapInfo::new(map.as_fd())?.info.id;
        if let Some(place) = read.iter().position(|source| source.id == id) {
            return Ok(Some(read.swap_remove(place)));
        }
        let Some(manifest) = policy::noted(deployment.notes()) else { return Ok(None) };
        let records = Arc::new(Mutex::new(Vec::new()));
        let map = MapHandle::try_from(map)?;
        let ring = ring(&map, Arc::clone(&records))?;
        Ok(Some(Source { name: deployment.name().to_owned(), id, ring, _map: map, manifest, records }))
    }

    fn rule(&self, number: u32) -> Option<&Rule> {
        self.manifest.programs.iter().flat_map(|program| &program.rules).find(|rule| rule.number == number)
    }

    /// What has come since the last time.
    fn take(&self) -> libbpf_rs::Result<Vec<Vec<u8>>> {
        self.ring.consume()?;
        Ok(std::mem::take(&mut *self.records.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn line(&self, event: &LogEvent) -> String {
        let mut line = format!("{} {}", Utc(wall_clock(event.time)), self.name);
        // Writing to a string cannot fail.
        if let Some(rule) = self.rule(event.rule) {
            let _ = write!(line, " {}:{}", rule.file, rule.line);
        }
        if let Some(text) = self.text(event).filter(|text| !text.is_empty()) {
            let _ = write!(line, " {text:?}");
        }
        let _ = write!(line, " length {}", event.length);
        if let Some(interface) = event.interface {
            let _ = write!(line, " interface {interface}");
        }
        for (key, value) in self.traits(event) {
            if let Some(value) = value {
                let _ = write!(line, " {key}={value}");
            }
        }
        let _ = write!(line, " packet {}", hexadecimal(&event.packet));
        line
    }

    fn json(&self, event: &LogEvent) -> serde_json::Result<String> {
        let rule = self.rule(event.rule);
        serde_json::to_string(&EventJson {
            time: Utc(wall_clock(event.time)).to_string(),
            monotonic_ns: event.time,
            name: &self.name,
            file: rule.map_or("", |rule| &rule.file),
            line: rule.map_or(0, |rule| rule.line),
            rule: rule.map_or("", |rule| &rule.text),
            text: self.text(event).unwrap_or_default(),
            interface: event.interface,
            length: event.length,
            packet: hexadecimal(&event.packet),
            traits: self.traits(event).map(|(key, value)| (key.to_owned(), value.into())).collect(),
        })
    }

    fn text(&self, event: &LogEvent) -> Option<&str> {
        self.manifest.logs.get(event.text as usize).map(String::as_str)
    }

    /// Names and values of the traits that an event has.
    fn traits<'e>(&'e self, event: &'e LogEvent) -> impl Iterator<Item = (&'e str, Option<String>)> {
        event.traits.iter().filter_map(|one| {
            let key = self.manifest.keys.get(one.key as usize)?;
            let key_type = key.key_type.parse().ok()?;
            Some((key.name.as_str(), one.value.map(|number| to_value(key_type, number).to_string())))
        })
    }
}

/// A reader of a ring that keeps what comes.
fn ring(map: &MapHandle, records: Arc<Mutex<Vec<Vec<u8>>>>) -> libbpf_rs::Result<RingBuffer<'static>> {
    let mut builder = RingBufferBuilder::new();
    builder.add(map, move |record: &[u8]| {
        records.lock().unwrap_or_else(PoisonError::into_inner).push(record.to_vec());
        0
    })?;
    builder.build()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Nanoseconds of `CLOCK_MONOTONIC` now.
fn monotonic_now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for writing, and the clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What the clock on the wall showed at a time of `CLOCK_MONOTONIC`.
fn wall_clock(time: u64) -> SystemTime {
    SystemTime::now() - Duration::from_nanos(monotonic_now().saturating_sub(time))
}

/// What is up and to be read.
fn deployments(command: &Log, global: &Global) -> Result<Vec<Deployment>, Box<dyn Error>> {
    Ok(match &command.name {
        Some(name) => vec![find(name, global)?],
        None => Deployment::list(&global.location())?,
    })
}

/// The rings of what is up now. Those that are read already go on being read.
fn sources(deployments: &[Deployment], mut read: Vec<Source>) -> Result<Vec<Source>, Box<dyn Error>> {
    let found = deployments.iter().map(|deployment| Source::find(deployment, &mut read));
    found.filter_map(Result::transpose).collect()
}

/// Runs `traits log`.
pub(crate) fn log(command: &Log, global: &Global) -> Outcome {
    let interrupt = Interrupt::catch()?;
    // What waits in the ring from before may be hours old.
    let start = monotonic_now();
    let mut open = sources(&deployments(command, global)?, Vec::new())?;
    if open.is_empty() {
        return Err(match &command.name {
            Some(name) => format!("{name} has no `log` action").into(),
            None => "nothing that is up has a `log` action".into(),
        });
    }
    let mut left = command.count.unwrap_or(u64::MAX);
    while !interrupt.came() && left > 0 {
        for source in &open {
            for record in source.take()? {
                let event = LogEvent::parse(&record)?;
                if event.time < start || left == 0 {
                    continue;
                }
                output::line(if command.json { source.json(&event)? } else { source.line(&event) })?;
                left -= 1;
            }
        }
        match open.first() {
            // an event may come in any of them
            Some(source) if open.len() == 1 => drop(source.ring.poll(WAIT)),
            _ => std::thread::sleep(WAIT),
        }
        match deployments(command, global) {
            Ok(up) => open = sources(&up, open)?,
            // What was named is down.
            Err(_) if command.name.is_some() => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
