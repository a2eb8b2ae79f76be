//! What a policy that is up has counted: hits of its rules, its counters, and events that found no room.

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use packet_traits::{KeyType, Value, deployment::Deployment};
use packet_traits_policy::{
    manifest::{self, Manifest},
    symbols,
};
use serde::Serialize;
use zerocopy::FromBytes;

use crate::{PolicyError, setup};

/// `struct pt_count` in `packet_traits/policy.bpf.h`.
#[derive(FromBytes)]
#[repr(C)]
struct RawCount {
    packets: u64,
    bytes: u64,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Count {
    const LEN: usize = size_of::<RawCount>();

    fn read(raw: &[u8]) -> Option<Count> {
        let (RawCount { packets, bytes }, _) = RawCount::read_from_prefix(raw).ok()?;
        Some(Count { packets, bytes })
    }
}

/// What a policy has counted.
#[derive(Serialize)]
#[non_exhaustive]
pub struct Statistics {
    /// Its file.
    pub source: String,
    /// Its rules.
    pub rules: Vec<RuleStatistics>,
    /// Its counters.
    pub counters: Vec<CounterStatistics>,
    /// Events that found no room in the ring; none if it logs nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_lost: Option<u64>,
}

/// A rule.
#[derive(Serialize)]
#[non_exhaustive]
pub struct RuleStatistics {
    /// Its program.
    pub program: String,
    /// What it says.
    #[serde(flatten)]
    pub rule: manifest::Rule,
    /// For how many packets it held.
    #[serde(flatten)]
    pub count: Count,
}

/// A counter.
#[derive(Serialize)]
#[non_exhaustive]
pub struct CounterStatistics {
    /// Its name.
    pub name: String,
    /// The type of what it counts by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// All together.
    #[serde(flatten)]
    pub count: Count,
    /// By value, most packets first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<ValueStatistics>>,
}

/// What a counter has for one value.
#[derive(Serialize)]
#[non_exhaustive]
pub struct ValueStatistics {
    /// The value as people write it.
    pub value: String,
    /// Packets that had it.
    #[serde(flatten)]
    pub count: Count,
}

impl Statistics {
    /// Reads what a policy has counted so far. `None` if it is no policy, or is not whole.
    ///
    /// # Errors
    /// [`PolicyError::NoMap`], [`PolicyError::Map`].
    pub fn of(deployment: &Deployment) -> Result<Option<Statistics>, PolicyError> {
        match setup::noted(deployment.notes()) {
            // its making or its removal has not ended
            Some(_) if deployment.unfinished() => Ok(None),
            Some(manifest) => Statistics::read(deployment, manifest).map(Some),
            None => Ok(None),
        }
    }

    fn read(deployment: &Deployment, manifest: Manifest) -> Result<Statistics, PolicyError> {
        let hits = read(deployment, symbols::HITS)?.unwrap_or_default();
        let rules = manifest.programs.into_iter().flat_map(|program| {
            let hits = &hits;
            let rules = program.rules.into_iter();
            rules.map(move |rule| RuleStatistics {
                program: program.name.clone(),
                count: count_at(hits, rule.number),
                rule,
            })
        });
        let rules = rules.collect();
        let counters = manifest.counters.into_iter().map(|counter| read_counter(deployment, counter));
        let lost = read(deployment, symbols::LOG_LOST)?;
        let log_lost = lost.map(|cpus| cpus.iter().filter_map(|raw| number(raw.get(..8)?)).sum());
        Ok(Statistics { source: manifest.source, rules, counters: counters.collect::<Result<_, _>>()?, log_lost })
    }
}

/// The only entry of a per-CPU map; `None` if there is no such map.
fn read(deployment: &Deployment, map: &str) -> Result<Option<Vec<Vec<u8>>>, PolicyError> {
    deployment.map(map).map(per_cpu).transpose().map_err(failed(deployment, map))
}

fn failed(deployment: &Deployment, map: &str) -> impl FnOnce(libbpf_rs::Error) -> PolicyError {
    let (deployment, map) = (deployment.name().to_owned(), map.to_owned());
    move |error| PolicyError::Map { deployment, map, error }
}

/// The only entry of a per-CPU map.
fn per_cpu(map: &MapHandle) -> libbpf_rs::Result<Vec<Vec<u8>>> {
    Ok(map.lookup_percpu(&[0; 4], MapFlags::ANY)?.unwrap_or_default())
}

/// The sum of all CPUs' numbers at one place of their arrays.
fn count_at(cpus: &[Vec<u8>], place: u32) -> Count {
    let counts = cpus.iter().filter_map(|raw| Count::read(raw.get(place as usize * Count::LEN..)?));
    sum(counts)
}

fn sum(counts: impl Iterator<Item = Count>) -> Count {
    counts.fold(Count::default(), |all, one| Count {
        packets: all.packets.wrapping_add(one.packets),
        bytes: all.bytes.wrapping_add(one.bytes),
    })
}

fn read_counter(deployment: &Deployment, counter: manifest::Counter) -> Result<CounterStatistics, PolicyError> {
    let map = deployment
        .map(&counter.map)
        .ok_or_else(|| PolicyError::NoMap { deployment: deployment.name().to_owned(), map: counter.map.clone() })?;
    let (count, values) = match (counter.index, &counter.by) {
        (Some(place), _) => {
            let cpus = per_cpu(map).map_err(failed(deployment, &counter.map))?;
            (count_at(&cpus, place), None)
        }
        (None, by) => {
            let key_type: Option<KeyType> = by.as_deref().and_then(|by| by.parse().ok());
            let mut values = Vec::new();
            // More than there can be only if values come and go at the same time.
            for key in map.keys().take(map.max_entries() as usize) {
                let raw = map.lookup(&key, MapFlags::ANY).map_err(failed(deployment, &counter.map))?;
                let Some(count) = raw.and_then(|raw| Count::read(&raw)) else { continue };
                values.push(ValueStatistics { value: print(key_type, &key), count });
            }
            values.sort_by(|a, b| (b.count.packets, &a.value).cmp(&(a.count.packets, &b.value)));
            (sum(values.iter().map(|value| value.count)), Some(values))
        }
    };
    Ok(CounterStatistics { name: counter.name, by: counter.by, count, values })
}

/// A value from the bytes of its slot.
fn print(key_type: Option<KeyType>, bytes: &[u8]) -> String {
    match key_type.and_then(|key_type| Value::from_bytes(key_type, bytes)) {
        Some(value) => value.to_string(),
        None => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn number(raw: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(raw.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use packet_traits_testing::{layout::Types, same_layout};

    use super::*;
    use crate::Policy;

    #[test]
    fn policies_count_like_that() {
        let policy = Policy::from_text("p.traits", "xdp {\n\tcount all\n}\n").unwrap();
        same_layout!(Types::of(policy.object()).structure("pt_count"), RawCount { packets, bytes });
    }
}
