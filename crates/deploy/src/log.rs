//! What the `log` actions of policies write.

use std::{
    collections::HashMap,
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use libbpf_rs::{MapHandle, MapInfo, RingBuffer, RingBufferBuilder};
use packet_traits::{
    Value,
    deployment::{Deployment, Location},
};
use packet_traits_policy::{
    interpret::to_value,
    log_event::LogEvent,
    manifest::{Hook, Manifest, Program, Rule},
    symbols,
};

use crate::{PolicyError, setup};

/// How long an interface is thought to have the name it had.
const NAME_KEPT: Duration = Duration::from_secs(1);

/// The events of policies that are up, as they come. Each event goes to one reader only.
///
/// ```no_run
/// use std::time::Duration;
/// use packet_traits::registry::Registry;
/// use packet_traits_deploy::{Location, Log};
///
/// let registry = Registry::options().open()?;
/// let mut log = Log::open(&Location::from(&registry), Some("edge"))?;
/// while log.wait(Duration::from_millis(100))? {
///     while let Some(event) = log.next()? {
///         println!("{}: {}", event.deployment, event.text.unwrap_or_default());
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Log {
    location: Location,
    name: Option<String>,
    up: Vec<Deployment>,
    sources: Vec<Source>,
}

/// An event of a `log` action.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Event {
    /// What was brought up.
    pub deployment: String,
    /// Its rule; `None` if the policy has no such rule.
    pub rule: Option<Rule>,
    /// The text of the action; `None` if the policy has no such text.
    pub text: Option<String>,
    /// The name of the interface that the packet was at, now.
    pub interface_name: Option<String>,
    /// The traits that the block reads or changes, as they were; a value of `None` was not set.
    pub traits: Vec<(String, Option<Value>)>,
    /// Whether the packet begins at the hook with the header of its link.
    has_link_header: bool,
    /// What else was written.
    pub raw: LogEvent,
}

impl Event {
    /// The packet's first bytes from its IP header on; `None` if it is no IP packet.
    pub fn ip(&self) -> Option<&[u8]> {
        if self.has_link_header { behind_link_header(&self.raw) } else { Some(&self.raw.packet) }
    }
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

impl Log {
    /// Opens the events of what is up under a name, or of all that is up.
    ///
    /// # Errors
    /// Those of [`Deployment::list`]; [`DeployError::NotUp`](packet_traits::deployment::DeployError::NotUp);
    /// [`PolicyError::Map`].
    pub fn open(location: &Location, name: Option<&str>) -> Result<Log, PolicyError> {
        let mut log =
            Log { location: location.clone(), name: name.map(str::to_owned), up: Vec::new(), sources: Vec::new() };
        log.find()?;
        Ok(log)
    }

    /// Whether nothing that is up has a `log` action.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// The next event that was written; `None` if there is none now.
    ///
    /// # Errors
    /// [`PolicyError::Map`], [`PolicyError::Event`].
    #[expect(clippy::should_implement_trait, reason = "an iterator would end where this goes on later")]
    pub fn next(&mut self) -> Result<Option<Event>, PolicyError> {
        for source in &mut self.sources {
            if let Some(record) = source.next()? {
                return Ok(Some(source.event(LogEvent::parse(&record)?, &self.up)));
            }
        }
        Ok(None)
    }

    /// Waits for an event, `timeout` at most. Follows policies that are replaced, and finds those that came up. Returns false
    /// if what was named is down.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, PolicyError> {
        match self.sources.first() {
            // an event may come in any of them
            Some(source) if self.sources.len() == 1 => source.wait(timeout),
            _ => thread::sleep(timeout),
        }
        match self.find() {
            Ok(()) => Ok(true),
            Err(PolicyError::Deploy(packet_traits::deployment::DeployError::NotUp { .. })) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Finds the rings of what is up now. Those that are open stay so.
    fn find(&mut self) -> Result<(), PolicyError> {
        self.up = match &self.name {
            Some(name) => vec![Deployment::find(name, &self.location)?],
            None => Deployment::list(&self.location)?,
        };
        let mut open = std::mem::take(&mut self.sources);
        for deployment in &self.up {
            self.sources.extend(Source::find(deployment, &mut open)?);
        }
        Ok(())
    }
}

impl Source {
    /// The ring of a deployment: one that is read already, or else opened; `None` if it has none.
    fn find(deployment: &Deployment, read: &mut Vec<Source>) -> Result<Option<Source>, PolicyError> {
        let Some(map) = deployment.map(symbols::LOG).filter(|_| !deployment.unfinished()) else { return Ok(None) };
        let failed =
            |error| PolicyError::Map { deployment: deployment.name().to_owned(), map: symbols::LOG.to_owned(), error };
        let id = MapInfo::new(map.as_fd()).map_err(failed)?.info.id;
        if let Some(place) = read.iter().position(|source| source.id == id) {
            return Ok(Some(read.swap_remove(place)));
        }
        let Some(manifest) = setup::noted(deployment.notes()) else { return Ok(None) };
        let records = Arc::new(Mutex::new(Vec::new()));
        let map = MapHandle::try_from(map).map_err(failed)?;
        let ring = ring(&map, Arc::clone(&records)).map_err(failed)?;
        let (name, interfaces) = (deployment.name().to_owned(), InterfaceNames::new());
        Ok(Some(Source { name, id, ring, _map: map, manifest, records, interfaces }))
    }

    /// The next record, if there is one. What is not asked for stays in the ring, for other readers.
    fn next(&self) -> Result<Option<Vec<u8>>, PolicyError> {
        let taken = self.ring.consume_raw_n(1);
        if taken < 0 {
            return Err(PolicyError::Map {
                deployment: self.name.clone(),
                map: symbols::LOG.to_owned(),
                error: io::Error::from_raw_os_error(-taken).into(),
            });
        }
        Ok(self.records.lock().unwrap_or_else(PoisonError::into_inner).pop())
    }

    /// Waits for an event, but not for long.
    fn wait(&self, timeout: Duration) {
        let mut ring = libc::pollfd { fd: self.ring.epoll_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `ring` is one `pollfd`, valid for reading and writing.
        unsafe { libc::poll(&raw mut ring, 1, timeout.as_millis() as libc::c_int) };
    }

    /// What an event's numbers mean.
    fn event(&mut self, raw: LogEvent, up: &[Deployment]) -> Event {
        let hook = self.rule(&raw).map(|(program, _)| &program.hook);
        let has_link_header = matches!(hook, Some(Hook::Xdp | Hook::TcIngress | Hook::TcEgress));
        Event {
            deployment: self.name.clone(),
            rule: self.rule(&raw).map(|(_, rule)| rule.clone()),
            text: self.manifest.logs.get(raw.text as usize).cloned(),
            interface_name: self.interface_name(&raw, up),
            traits: self.traits(&raw),
            has_link_header,
            raw,
        }
    }

    /// The rule that an event is of, and its program.
    fn rule(&self, event: &LogEvent) -> Option<(&Program, &Rule)> {
        let rules = |program: &'_ Program| program.rules.iter().position(|rule| rule.number == event.rule);
        self.manifest.programs.iter().find_map(|program| Some((program, &program.rules[rules(program)?])))
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

    /// Names and values of the traits that an event has.
    fn traits(&self, event: &LogEvent) -> Vec<(String, Option<Value>)> {
        let known = event.traits.iter().filter_map(|one| {
            let key = self.manifest.keys.get(one.key as usize)?;
            let key_type = key.key_type.parse().ok()?;
            Some((key.name.clone(), one.value.map(|number| to_value(key_type, number))))
        });
        known.collect()
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
