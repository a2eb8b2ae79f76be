//! `traits log`: prints what the `log` actions of policies tell, as it happens.

use std::{
    collections::HashMap,
    error::Error,
    fmt::Write as _,
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use clap::Args;
use libbpf_rs::{MapHandle, MapInfo, RingBuffer, RingBufferBuilder};
use packet_traits::{deployment::Deployment, registry::Utc};
use packet_traits_policy::{
    interpret::to_value,
    log_event::LogEvent,
    manifest::{Hook, Manifest, Program, Rule},
};
use packet_traits_trace::{Headers, write::json};
use serde::Serialize;

use super::{find, policy};
use crate::{Global, Outcome, interrupt::Interrupt, output};

/// The ring of events.
const RING: &str = "pt_log";

/// How long to wait for an event before looking whether the policies are still the same.
const WAIT: Duration = Duration::from_millis(100);

/// How long an interface is thought to have the name it had.
const NAME_KEPT: Duration = Duration::from_secs(1);

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

/// A ring that is read, and what its numbers mean.
struct Source {
    name: String,
    id: u32,
    ring: RingBuffer<'static>,
    /// Waiting for the ring takes its descriptor.
    _map: MapHandle,
    manifest: Manifest,
    /// What the ring has given.
    records: Arc<Mutex<Vec<Vec<u8>>>>,
    interfaces: InterfaceNames,
}

/// What interfaces are called.
struct InterfaceNames {
    since: Instant,
    known: HashMap<u32, Option<String>>,
}

impl InterfaceNames {
    fn new() -> InterfaceNames {
        InterfaceNames { since: Instant::now(), known: HashMap::new() }
    }

    /// The name, as `find` has it.
    fn get(&mut self, index: u32, find: impl FnOnce(u32) -> Option<String>) -> Option<String> {
        if self.since.elapsed() > NAME_KEPT {
            *self = InterfaceNames::new();
        }
        self.known.entry(index).or_insert_with(|| find(index)).clone()
    }
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
        let (name, interfaces) = (deployment.name().to_owned(), InterfaceNames::new());
        Ok(Some(Source { name, id, ring, _map: map, manifest, records, interfaces }))
    }

    /// The rule that an event is of, and its program.
    fn rule(&self, event: &LogEvent) -> Option<(&Program, &Rule)> {
        let rules = |program: &'_ Program| program.rules.iter().position(|rule| rule.number == event.rule);
        self.manifest.programs.iter().find_map(|program| Some((program, &program.rules[rules(program)?])))
    }

    /// What the packet's first bytes say, if they are of an IP packet.
    fn headers(&self, event: &LogEvent) -> Option<Headers> {
        match self.rule(event)?.0.hook {
            Hook::Xdp | Hook::TcIngress | Hook::TcEgress => Headers::parse(behind_link_header(event)?),
            _ => Headers::parse(&event.packet),
        }
    }

    /// The next event, if there is one. What is not asked for stays in the ring, for other readers.
    fn next(&self) -> io::Result<Option<Vec<u8>>> {
        let taken = self.ring.consume_raw_n(1);
        if taken < 0 {
            return Err(io::Error::from_raw_os_error(-taken));
        }
        Ok(self.records.lock().unwrap_or_else(PoisonError::into_inner).pop())
    }

    /// Waits for an event, but not for long.
    fn wait(&self) {
        let mut ring = libc::pollfd { fd: self.ring.epoll_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `ring` is one `pollfd`, valid for reading and writing.
        unsafe { libc::poll(&raw mut ring, 1, WAIT.as_millis() as libc::c_int) };
    }

    /// The name of the interface that the packet was at. Programs of cgroups, sockets and iptables rules meet packets of
    /// any network namespace: of these it is not known which interface an index is.
    fn interface_name(&mut self, event: &LogEvent, up: &[Deployment]) -> Option<String> {
        let deployment = up.iter().find(|deployment| deployment.name() == self.name)?;
        match self.rule(event)?.0.hook {
            Hook::Xdp | Hook::TcIngress | Hook::TcEgress | Hook::Netfilter { .. } => {
                self.interfaces.get(event.interface?, |index| deployment.interface_name(index))
            }
            _ => None,
        }
    }

    fn line(&self, event: &LogEvent, interface_name: Option<&str>) -> String {
        let mut line = format!("{} {}", Utc(wall_clock(event.time)), self.name);
        // Writing to a string cannot fail.
        if let Some((_, rule)) = self.rule(event) {
            let _ = write!(line, " {}:{}", rule.file, rule.line);
        }
        if let Some(text) = self.text(event).filter(|text| !text.is_empty()) {
            let _ = write!(line, " {text:?}");
        }
        let headers = self.headers(event);
        if let Some(headers) = headers {
            let _ = write!(line, " {headers}");
        }
        let _ = write!(line, " length {}", event.length);
        match (interface_name, event.interface) {
            (Some(name), _) => drop(write!(line, " interface {name}")),
            (None, Some(index)) => drop(write!(line, " interface {index}")),
            (None, None) => {}
        }
        for (key, value) in self.traits(event) {
            if let Some(value) = value {
                let _ = write!(line, " {key}={value}");
            }
        }
        if headers.is_none() {
            let _ = write!(line, " packet {}", hexadecimal(&event.packet));
        }
        line
    }

    fn json(&self, event: &LogEvent, interface_name: Option<&str>) -> serde_json::Result<String> {
        let rule = self.rule(event).map(|(_, rule)| rule);
        serde_json::to_string(&EventJson {
            time: Utc(wall_clock(event.time)).to_string(),
            monotonic_ns: event.time,
            name: &self.name,
            file: rule.map_or("", |rule| &rule.file),
            line: rule.map_or(0, |rule| rule.line),
            rule: rule.map_or("", |rule| &rule.text),
            text: self.text(event).unwrap_or_default(),
            interface: event.interface,
            interface_name,
            length: event.length,
            headers: self.headers(event).map(json::headers).transpose()?.unwrap_or_default(),
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

/// The packet from its IP header on; `None` if it is no IP packet. On devices without a link header it starts there.
fn behind_link_header(event: &LogEvent) -> Option<&[u8]> {
    const ETHERNET: usize = 14;
    const VLAN: usize = 4;
    let packet = &event.packet[..];
    let word = |at: usize| Some(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?));
    let whole = match packet.first()? >> 4 {
        4 => word(2).map(u32::from),
        6 => word(4).map(|payload| u32::from(payload) + 40),
        _ => None,
    };
    if whole == Some(event.length) {
        return Some(packet);
    }
    let mut start = ETHERNET;
    // include/uapi/linux/if_ether.h: ETH_P_8021Q, ETH_P_8021AD
    while let Some(0x8100 | 0x88a8) = word(start - 2) {
        start += VLAN;
    }
    // ETH_P_IP, ETH_P_IPV6
    matches!(word(start - 2)?, 0x0800 | 0x86dd).then(|| packet.get(start..))?
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
    let start = if command.new { monotonic_now() } else { 0 };
    let mut up = deployments(command, global)?;
    let mut open = sources(&up, Vec::new())?;
    if open.is_empty() {
        return Err(match &command.name {
            Some(name) => format!("{name} has no `log` action").into(),
            None => "nothing that is up has a `log` action".into(),
        });
    }
    let mut left = command.count.unwrap_or(u64::MAX);
    let mut waits = false;
    while !interrupt.came() && left > 0 {
        for source in &mut open {
            while left > 0
                && !interrupt.came()
                && let Some(record) = source.next()?
            {
                let event = LogEvent::parse(&record)?;
                if event.time < start {
                    continue;
                }
                let interface = source.interface_name(&event, &up);
                let interface = interface.as_deref();
                output::line(if command.json {
                    source.json(&event, interface)?
                } else {
                    source.line(&event, interface)
                })?;
                left -= 1;
            }
        }
        if left > 0 && !waits {
            waits = true;
            let of = command.name.as_deref().unwrap_or("all policies");
            output::note(format_args!("traits: waiting for events of {of}; Ctrl-C ends it"));
        }
        match open.first() {
            // an event may come in any of them
            Some(source) if open.len() == 1 => source.wait(),
            _ => std::thread::sleep(WAIT),
        }
        match deployments(command, global) {
            Ok(now) => {
                up = now;
                open = sources(&up, open)?;
            }
            // What was named is down.
            Err(_) if command.name.is_some() => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ip_header_is_found_behind_tags_and_without_a_link_header() {
        let event = |packet: &[u8]| LogEvent {
            time: 0,
            rule: 0,
            text: 0,
            interface: None,
            length: packet.len() as u32,
            packet: packet.to_vec(),
            traits: Vec::new(),
        };
        let mut ip = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        ip.extend([0, 53, 15, 160, 0, 8, 0, 0]);
        let behind = |header: &[u8]| event(&[header, &ip].concat());
        let addresses = [2; 12];
        for tags in [&[][..], &[0x81, 0, 0, 5], &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 5]] {
            let event = behind(&[&addresses, tags, &[8, 0]].concat());
            assert_eq!(behind_link_header(&event), Some(&ip[..]), "{tags:?}");
        }
        assert_eq!(behind_link_header(&behind(&[])), Some(&ip[..]), "as on tun");
        assert_eq!(behind_link_header(&behind(&[&addresses[..], &[8, 6]].concat())), None, "ARP");
        assert_eq!(behind_link_header(&event(&[2; 12])), None);
        assert_eq!(behind_link_header(&event(&[])), None);
    }
}
