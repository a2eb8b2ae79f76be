//! The keys that the tracer itself registers.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    thread,
    time::{Duration, Instant},
};

use packet_traits::{
    KeyName, KeyType, Merge, Region,
    bind::LoadedObject,
    registry::{Description, KeyEntry, KeySpec, Registry, RegistryError},
};

use super::load::id_candidates;
use crate::error::TraceError;
use crate::keys::{ENTERED_KEY, ID_KEY, Keys, TC_ENTERED_KEY, TC_ID_KEY};

/// How long the kernel may take to forget programs that were closed.
const UNLOAD: Duration = Duration::from_secs(5);

/// A program's id, of which /proc tells.
fn id_of(program: BorrowedFd<'_>) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
}

/// The merge policy of the keys that XDP sets: in the packet region they keep no packets from being merged.
pub(super) fn merge(registry: &Registry) -> Merge {
    match registry.layout().region_len(Region::Packet) {
        0 => Merge::Block,
        _ => Merge::KeepFirst,
    }
}

/// The tracer's own keys. Dropping it removes them, unless another tracer uses them: one whose programs are loaded. One that
/// is about to load its programs registers them again.
pub(super) struct OwnKeys<'r> {
    registry: &'r Registry,
    names: Vec<&'static str>,
    /// The tracer's programs.
    programs: Vec<u32>,
}

impl<'r> OwnKeys<'r> {
    pub(super) fn new(registry: &'r Registry) -> OwnKeys<'r> {
        OwnKeys { registry, names: Vec::new(), programs: Vec::new() }
    }

    /// Registers those that XDP sets, if they are not.
    pub(super) fn register(&mut self) -> Result<(), TraceError> {
        let merge = merge(self.registry);
        self.add(ID_KEY, KeyType::U64, merge, "traits trace: tells packets from each other")
            .and_then(|()| self.add(ENTERED_KEY, KeyType::Timestamp, merge, "traits trace: when XDP saw the packet"))
            .map_err(|error| self.explain(error, merge.region()))?;
        // a tracer that was killed has left them
        let keys = self.registry.list()?;
        let left = |name: &&'static str| keys.iter().any(|entry| entry.key.name().as_str() == *name);
        [TC_ID_KEY, TC_ENTERED_KEY].into_iter().filter(left).for_each(|name| self.remove_at_the_end(name));
        Ok(())
    }

    /// Registers those that TC sets, behind other people's XDP programs.
    pub(super) fn register_behind_xdp(&mut self) -> Result<(), TraceError> {
        self.add(TC_ID_KEY, KeyType::U64, Merge::Block, "traits trace: the same, behind other XDP programs")?;
        self.add(TC_ENTERED_KEY, KeyType::Timestamp, Merge::Block, "traits trace: when TC saw the packet")
    }

    fn add(
        &mut self,
        name: &'static str,
        key_type: KeyType,
        merge: Merge,
        description: &'static str,
    ) -> Result<(), TraceError> {
        let description = Description::new(description).unwrap_or_default();
        self.registry.register(&KeySpec::new(key_name(name)?, key_type).merge(merge).description(description))?;
        self.remove_at_the_end(name);
        Ok(())
    }

    /// Says of both keys that they do not fit, where only one does not.
    fn explain(&self, error: TraceError, region: Region) -> TraceError {
        let TraceError::Registry(RegistryError::RegionFull { longest, .. }) = error else { return error };
        let keys = match Keys::read(self.registry) {
            Ok(keys) => keys,
            Err(error) => return error.into(),
        };
        let size = KeyType::U64.size();
        let held: Vec<&KeyEntry> = keys
            .iter()
            .filter(|key| ![ID_KEY, ENTERED_KEY].contains(&key.name()))
            .map(|key| &key.entry)
            .filter(|entry| entry.merge.region() == region)
            .collect();
        let places = self.registry.layout().places(region, size);
        let free = places.filter(|place| held.iter().all(|entry| !entry.key.slot().overlaps(place))).count();
        TraceError::NoRoom {
            registry: self.registry.name().to_string(),
            region,
            missing: (2 * size).saturating_sub(free * size),
            held: match &*held.iter().map(|entry| entry.key.name().as_str()).collect::<Vec<_>>().join(", ") {
                "" => "no other key".to_owned(),
                names => names.to_owned(),
            },
            ids: id_candidates(&keys),
            longest,
        }
    }

    fn remove_at_the_end(&mut self, name: &'static str) {
        if !self.names.contains(&name) {
            self.names.push(name);
        }
    }

    /// Says whose end is to be waited for before the keys can go.
    pub(super) fn used_by(&mut self, objects: &[&LoadedObject]) {
        let programs = objects.iter().flat_map(|object| object.object().progs());
        self.programs = programs.filter_map(|program| id_of(program.as_fd())).collect();
    }
}

impl Drop for OwnKeys<'_> {
    fn drop(&mut self) {
        let deadline = Instant::now() + UNLOAD;
        for &name in &self.names {
            let Ok(name) = key_name(name) else { continue };
            loop {
                match self.registry.unregister(&name, false) {
                    // closed programs go when all CPUs have left them; those of another tracer do not
                    Err(RegistryError::KeyInUse { programs, .. })
                        if Instant::now() < deadline
                            && programs.iter().any(|program| self.programs.contains(&program.id)) =>
                    {
                        thread::sleep(Duration::from_millis(10));
                    }
                    Err(error) => {
                        tracing::debug!("key {name} stays: {error}");
                        break;
                    }
                    Ok(_) => break,
                }
            }
        }
    }
}

fn key_name(name: &str) -> Result<KeyName, TraceError> {
    KeyName::new(name).map_err(|error| TraceError::Option(format!("`{name}` is no key's name: {error}")))
}
