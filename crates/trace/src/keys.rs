//! The registry's keys as events carry them: which bytes behind an event are whose value.

use packet_traits::{
    KeyType, Region, Value,
    registry::{KeyEntry, Registry, RegistryError},
};

/// How the names of the tracer's own keys begin.
pub(crate) const OWN_KEYS: &str = "trace.";
/// Name of the tracer's own key for ids.
pub const ID_KEY: &str = "trace.id";
/// Name of the tracer's own key for when a packet entered.
pub const ENTERED_KEY: &str = "trace.entered";

/// The same behind other people's XDP programs, at TC ingress.
pub const TC_ID_KEY: &str = "trace.tc_id";
/// And when a packet came there.
pub const TC_ENTERED_KEY: &str = "trace.tc_entered";

/// The keys of a registry when tracing started.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    keys: Vec<TracedKey>,
    pub(crate) flow_slots: usize,
    pub(crate) packet_slots: usize,
}

/// One key.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TracedKey {
    /// As the registry has it.
    pub entry: KeyEntry,
    /// Offset of its value in the slots of its region.
    offset: usize,
}

impl TracedKey {
    /// Its name.
    pub fn name(&self) -> &str {
        self.entry.key.name().as_str()
    }
}

impl Keys {
    /// Reads a registry's keys.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub fn read(registry: &Registry) -> Result<Keys, RegistryError> {
        let layout = registry.layout();
        let key = |entry: KeyEntry| {
            let slot = entry.key.slot();
            let end = layout.region_end(slot.region()) + layout.region_len(slot.region());
            // flags have no slot
            TracedKey { offset: end.saturating_sub(slot.distance()), entry }
        };
        Ok(Keys {
            keys: registry.list()?.into_iter().map(key).collect(),
            flow_slots: layout.slot_space(Region::Flow),
            packet_slots: if layout.region_len(Region::Packet) == 0 { 0 } else { layout.slot_space(Region::Packet) },
        })
    }

    /// Whether all of them are still registered as they were.
    pub(crate) fn hold(&self, registry: &Registry) -> Result<bool, RegistryError> {
        let keys: Vec<_> = self.iter().map(|key| (key.entry.key.number(), key.entry.generation)).collect();
        registry.still_valid(&keys)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &TracedKey> {
        self.keys.iter()
    }

    /// Their names but for the tracer's own, for errors.
    pub(crate) fn names(&self) -> String {
        let others = self.iter().map(TracedKey::name).filter(|name| !name.starts_with(OWN_KEYS));
        match others.collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => "none".to_owned(),
            names => names,
        }
    }

    /// The key of this name.
    pub fn find(&self, name: &str) -> Option<&TracedKey> {
        self.keys.iter().find(|key| key.name() == name)
    }

    /// The key's value, from a region's present word and slots.
    pub(crate) fn value(key: &TracedKey, present: u64, slots: &[u8]) -> Option<Value> {
        let key_type: KeyType = key.entry.key.key_type();
        if present & key.entry.key.bit() == 0 {
            return None;
        }
        if key_type == KeyType::Flag {
            return Some(Value::Flag);
        }
        Value::from_bytes(key_type, slots.get(key.offset..key.offset + key_type.size())?)
    }
}
