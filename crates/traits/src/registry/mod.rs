//! The registry: gives names a number and a place in the trait area, for every program on the host.
//!
//! A registry is a directory of pinned maps, `<bpffs>/packet_traits/<name>/`. There is no daemon: every process works
//! on the maps itself.
//!
//! | pin | holds |
//! |---|---|
//! | `header` | format version, id, layout, nonces; only [`rotate`](crate::rotate) changes it, and only the nonces |
//! | `state` | which keys there are, and how many changes there were |
//! | `keys` | a record for each of the 64 keys |
//! | `freed` | when each key number and each byte of the area was freed last |
//! | `anchors` | headroom values that BPF programs have seen in XDP, and numbers of packets |
//! | `sockets` | a folder: what [`SocketPrograms::attach`](crate::socket_programs::SocketPrograms::attach) pins |
//!
//! **Writers** take a lock on the directory that the kernel releases when they die, and change the table so that it is
//! valid at every instant: a new key's record is written before the update of `state` that publishes it, and a key's
//! stamps in `freed` before the update of `state` that takes it away. A writer that is killed anywhere in between has
//! changed nothing that anyone looks at.
//!
//! **Readers** take no lock. They read `state`, the records it names, and `state` again; if it changed, they start
//! over.
//!
//! **Users** of a key are loaded programs. They are found by looking at the programs, see [`Registry::programs`].
//!
//! # Example
//! ```no_run
//! use packet_traits::{KeyName, KeyType, registry::{KeySpec, Registry}};
//!
//! let registry = Registry::options().open_or_create()?;
//! let tenant = registry.register(&KeySpec::new(KeyName::new("tenant")?, KeyType::U32))?;
//! println!("tenant is key {}", tenant.key.number());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod allocate;
mod entry;
mod error;
mod lock;
mod maps;
mod metadata;
mod migrate;
mod options;
mod provisional;
mod table;
mod users;
mod utc;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering, fence},
    time::SystemTime,
};

use libbpf_rs::MapHandle;
use packet_traits_core::{Key, KeyName, Layout, Merge, Nonces, Slot};

pub(crate) use self::lock::DirLock;
pub use self::{
    entry::{DESCRIPTION_LEN_MAX, Description, DescriptionError, KeyEntry, KeySpec, Owner},
    error::RegistryError,
    metadata::longest as longest_metadata,
    migrate::Migration,
    options::{RegistryName, RegistryNameError, RegistryOptions},
    provisional::ProvisionalKeys,
    users::BoundProgram,
    utc::Utc,
};
pub(crate) use self::{
    error::{errno_of, privilege_hint},
    options::{SLOTS, SOCKETS, random},
    table::checksum,
    users::{boot_time, program_info, registries_of},
};
use self::{
    lock::DirId,
    maps::Maps,
    options::io_error,
    table::{Header, State},
};
use crate::descriptor::ANCHOR_MAX;

/// How often a reader starts over before it takes the lock after all.
const LOCKLESS_ATTEMPTS: usize = 64;

/// An open registry. Can be used from several threads at once.
#[derive(Debug)]
pub struct Registry {
    name: RegistryName,
    dir: PathBuf,
    identity: DirId,
    header: Header,
    maps: Maps,
    /// It has secrets that the registry does not have yet.
    is_next: AtomicBool,
}

/// The table at one instant.
struct Snapshot {
    state: State,
    keys: Vec<KeyEntry>,
}

impl Snapshot {
    fn find(&self, name: &KeyName) -> Option<&KeyEntry> {
        self.keys.iter().find(|entry| entry.key.name() == name)
    }

    fn slots(&self) -> Vec<Slot> {
        self.keys.iter().map(|entry| entry.key.slot()).collect()
    }
}

impl Registry {
    /// The `default` registry on the usual bpffs, unless the options are changed.
    pub fn options() -> RegistryOptions {
        RegistryOptions::default()
    }

    /// Its name.
    pub fn name(&self) -> &RegistryName {
        &self.name
    }

    /// Where its maps are pinned.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Tells it from every other registry, also from a later one of the same name. Not secret, never 0.
    pub fn id(&self) -> u64 {
        self.header.id
    }

    /// Sizes of its regions.
    pub fn layout(&self) -> Layout {
        self.header.layout
    }

    /// The secrets that programs bound to it authenticate areas with, as they were when it was opened:
    /// [`rotate`](crate::rotate) gives it others.
    pub fn nonces(&self) -> Nonces {
        self.header.nonces
    }

    /// The secrets that programs are bound to now.
    pub(crate) fn current_nonces(&self) -> Result<Nonces, RegistryError> {
        if self.is_next.load(Ordering::Relaxed) {
            return Ok(self.header.nonces);
        }
        let header = maps::read_header(&self.maps.header)?;
        Ok(header.map_err(|why| self.damaged(self.maps.header.path(), why))?.nonces)
    }

    /// The secret at the start of what sockets keep for the packets they send. Rotation does not change it.
    pub(crate) fn sender_nonce(&self) -> u64 {
        self.header.sender_nonce
    }

    /// The same registry with new secrets, for loading programs. [`publish_nonces`](Self::publish_nonces) makes them the
    /// registry's.
    pub(crate) fn with_new_nonces(options: &RegistryOptions) -> Result<Registry, RegistryError> {
        let mut registry = options.open()?;
        registry.header.nonces = options::new_nonces()?;
        registry.is_next = true.into();
        Ok(registry)
    }

    /// Gives the registry the secrets that this one has. Returns the programs that are bound to the previous secrets and are not
    /// `known`. If there are any, nothing is changed, unless `force` is set.
    pub(crate) fn publish_nonces(&self, known: &HashSet<u32>, force: bool) -> Result<Vec<BoundProgram>, RegistryError> {
        // A loader checks its binding after it has loaded a program: before this, and the program is seen here, or after it.
        let lock = self.lock(DirLock::exclusive)?;
        let keys = self.snapshot_locked(&lock)?.keys;
        let mut others = self.programs_with(&keys, force.then_some(self.header.nonces))?;
        others.retain(|program| !known.contains(&program.id));
        if others.is_empty() || force {
            self.maps.header.write(0, &self.header.encode())?;
            self.is_next.store(false, Ordering::Relaxed);
        }
        Ok(others)
    }

    /// When it was created.
    pub fn created_at(&self) -> SystemTime {
        self.header.created_at
    }

    /// The pinned map `anchors`, entries of 64 bytes. The first has sixteen `u32`: headroom values (`data -
    /// data_hard_start`, in bytes) that BPF programs have seen in XDP; 0 is free. The other 512 are by CPU: a `u64`, the id of
    /// the packet whose area was sealed last. In the kernel its name is `pt_anchors`.
    pub fn anchors_map(&self) -> &MapHandle {
        self.maps.anchors.map()
    }

    /// The pinned map `keys`: a record for each of the 64 keys. In the kernel its name is `pt_keys`.
    pub(crate) fn keys_map(&self) -> &MapHandle {
        self.maps.keys.map()
    }

    /// The pinned map `state`: which keys there are. In the kernel its name is `pt_state`.
    pub(crate) fn state_map(&self) -> &MapHandle {
        self.maps.state.map()
    }

    /// What is in the map `anchors`.
    ///
    /// # Errors
    /// [`RegistryError::Map`] if the kernel refuses to read it.
    pub fn anchors(&self) -> Result<[u32; ANCHOR_MAX], RegistryError> {
        let raw: [u8; 4 * ANCHOR_MAX] = self.maps.anchors.read(0)?;
        let (words, _) = raw.as_chunks();
        Ok(std::array::from_fn(|i| u32::from_ne_bytes(words[i])))
    }

    /// Every key, in the order of their numbers.
    ///
    /// # Errors
    /// [`RegistryError::Damaged`] if the table contradicts itself.
    pub fn list(&self) -> Result<Vec<KeyEntry>, RegistryError> {
        Ok(self.snapshot()?.keys)
    }

    /// The key of this name.
    ///
    /// # Errors
    /// As for [`list`](Self::list).
    pub fn lookup(&self, name: &KeyName) -> Result<Option<KeyEntry>, RegistryError> {
        Ok(self.snapshot()?.find(name).cloned())
    }

    /// Registers a key, or finds it if it is registered with the same type and merge policy.
    ///
    /// # Errors
    /// [`RegistryError::Held`] (EBUSY) if the name is registered with another type or merge policy,
    /// [`RegistryError::RegionFull`] or [`RegistryError::KeysExhausted`] (ENOSPC) if there is no room,
    /// [`RegistryError::Gone`] if the registry was removed.
    pub fn register(&self, spec: &KeySpec) -> Result<KeyEntry, RegistryError> {
        Ok(self.register_or_find(spec)?.0)
    }

    /// The key, and whether it is new.
    fn register_or_find(&self, spec: &KeySpec) -> Result<(KeyEntry, bool), RegistryError> {
        let lock = self.lock(DirLock::exclusive)?;
        let table = self.snapshot_locked(&lock)?;
        if let Some(entry) = table.find(&spec.name) {
            if entry.key.key_type() == spec.key_type && entry.merge == spec.merge {
                return Ok((entry.clone(), false));
            }
            return Err(RegistryError::Held {
                registry: self.name.clone(),
                key_type: spec.key_type,
                merge: spec.merge,
                holder: Box::new(entry.clone()),
            });
        }

        let stamps = table::decode_stamps(&self.maps.freed.read(0)?);
        let number = allocate::free_number(table.state.live, &stamps).ok_or_else(|| RegistryError::KeysExhausted {
            registry: self.name.clone(),
            key: spec.name,
            holders: table.keys.clone(),
        })?;
        let (region, slots) = (spec.merge.region(), table.slots());
        let key = allocate::free_slot(self.layout(), region, spec.key_type.size(), &slots, &stamps)
            .and_then(|slot| Key::new(number, spec.name, spec.key_type, slot))
            .ok_or_else(|| RegistryError::RegionFull {
                registry: self.name.clone(),
                key: spec.name,
                key_type: spec.key_type,
                region,
                free: allocate::free_bytes(self.layout(), region, &slots),
                space: self.layout().slot_space(region),
                layout: self.layout(),
                holders: table.keys.iter().filter(|entry| entry.key.slot().region() == region).cloned().collect(),
                longest: metadata::in_the_way(self.layout().longer_area_len(region, spec.key_type.size())),
            })?;
        let next = State {
            live: table.state.live | key.bit(),
            seq: table.state.seq + 1,
            discard: table.state.discard | if spec.merge == Merge::Discard { key.bit() } else { 0 },
        };
        let entry = KeyEntry {
            key,
            merge: spec.merge,
            description: spec.description.clone(),
            owner: Owner::current(),
            generation: next.seq,
            registered_at: SystemTime::now(),
        };
        self.maps.keys.write(number, &table::encode_key(&entry))?;
        self.publish(next)?;
        tracing::debug!("registered key '{}' as number {number} in registry '{}'", spec.name, self.name);
        // As everyone else will read it.
        table::decode_key(number, self.layout(), &self.maps.keys.read(number)?)
            .map(|entry| (entry, true))
            .map_err(|why| self.damaged_key(number, &why))
    }

    /// Removes a key and answers what it was. Its number and its bytes are given out again last, because packets in
    /// flight may still carry its value.
    ///
    /// With `force` it goes even if loaded programs use it; those go on reading and writing what may become another
    /// key's bytes.
    ///
    /// # Errors
    /// [`RegistryError::UnknownKey`]; [`RegistryError::KeyInUse`] (EBUSY) without `force`; [`RegistryError::Gone`].
    pub fn unregister(&self, name: &KeyName, force: bool) -> Result<KeyEntry, RegistryError> {
        self.unregister_found(name, None, force)
    }

    /// Only if it is the key of that generation, if one is given.
    fn unregister_found(
        &self,
        name: &KeyName,
        generation: Option<u64>,
        force: bool,
    ) -> Result<KeyEntry, RegistryError> {
        let lock = self.lock(DirLock::exclusive)?;
        let table = self.snapshot_locked(&lock)?;
        let entry = table
            .find(name)
            .filter(|entry| generation.is_none_or(|generation| entry.generation == generation))
            .ok_or_else(|| RegistryError::UnknownKey { registry: self.name.clone(), key: *name })?;
        if !force {
            let mut programs = self.programs_with(&table.keys, None)?;
            programs.retain(|program| program.keys & entry.key.bit() != 0);
            let programs = users::that_stay(programs)?;
            if !programs.is_empty() {
                return Err(RegistryError::KeyInUse { registry: self.name.clone(), key: *name, programs });
            }
        }
        let next = State {
            live: table.state.live & !entry.key.bit(),
            seq: table.state.seq + 1,
            discard: table.state.discard & !entry.key.bit(),
        };
        let mut stamps = table::decode_stamps(&self.maps.freed.read(0)?);
        stamps.free(entry.key.number(), entry.key.slot(), next.seq);
        self.maps.freed.write(0, &table::encode_stamps(&stamps))?;
        self.publish(next)?;
        tracing::debug!("removed key '{name}' from registry '{}'", self.name);
        Ok(entry.clone())
    }

    /// Every loaded program that is bound to this registry, whoever loaded it.
    ///
    /// # Errors
    /// [`RegistryError::Programs`] if the kernel does not let this process list programs (CAP_SYS_ADMIN), and those
    /// of [`list`](Self::list).
    pub fn programs(&self) -> Result<Vec<BoundProgram>, RegistryError> {
        self.programs_with(&self.list()?, Some(self.current_nonces()?))
    }

    /// Whether keys, each given as number and generation, are all still registered. A loader asks this *after* it has
    /// loaded a bound program: a key that was removed between binding and loading was not yet seen to be in use. Loaders of
    /// this library ask [`Binding::holds`](crate::bind::Binding::holds), which also knows whether the secrets are the same.
    ///
    /// # Errors
    /// As for [`list`](Self::list). A registry that was removed is an answer (`false`), not an error.
    pub fn still_valid(&self, keys: &[(usize, u64)]) -> Result<bool, RegistryError> {
        self.still_binds(keys, None)
    }

    /// The same, and whether the registry still has these secrets.
    pub(crate) fn still_binds(&self, keys: &[(usize, u64)], nonces: Option<Nonces>) -> Result<bool, RegistryError> {
        // Who removes a key looks for programs and takes the key away under the exclusive lock. So this either comes
        // before, and the program is loaded and will be seen, or after, and the key is gone.
        let lock = match self.lock(DirLock::shared) {
            Err(RegistryError::Gone { .. }) => return Ok(false),
            other => other?,
        };
        if nonces.is_some() && nonces != Some(self.current_nonces()?) {
            return Ok(false);
        }
        let table = self.snapshot_locked(&lock)?;
        let registered = |(number, generation): &(usize, u64)| {
            table.keys.iter().any(|entry| entry.key.number() == *number && entry.generation == *generation)
        };
        Ok(keys.iter().all(registered))
    }

    fn programs_with(&self, keys: &[KeyEntry], nonces: Option<Nonces>) -> Result<Vec<BoundProgram>, RegistryError> {
        Ok(users::scan(self.id())?.into_iter().map(|program| program.resolve(keys, nonces)).collect())
    }

    /// Locks the registry's directory, and refuses if the registry this was opened as is no longer there.
    fn lock(&self, lock: fn(&Path) -> std::io::Result<DirLock>) -> Result<DirLock, RegistryError> {
        let gone = || RegistryError::Gone { name: self.name.clone(), dir: self.dir.clone() };
        match lock(&self.dir) {
            Ok(lock) if lock.dir() == self.identity => Ok(lock),
            Ok(_) => Err(gone()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(gone()),
            Err(error) => Err(io_error("lock", &self.dir)(error)),
        }
    }

    /// Makes everything written before visible, by one update.
    fn publish(&self, state: State) -> Result<(), RegistryError> {
        fence(Ordering::SeqCst);
        self.maps.state.write(0, &state.encode())
    }

    fn snapshot(&self) -> Result<Snapshot, RegistryError> {
        for _ in 0..LOCKLESS_ATTEMPTS {
            if let Some(snapshot) = self.try_snapshot()? {
                return Ok(snapshot);
            }
        }
        let lock = self.lock(DirLock::shared)?;
        self.snapshot_locked(&lock)
    }

    /// The table, for who holds the lock: it cannot change in the meantime.
    fn snapshot_locked(&self, _: &DirLock) -> Result<Snapshot, RegistryError> {
        self.try_snapshot()?
            .ok_or_else(|| self.damaged(self.maps.state.path(), "its checksum does not match".to_owned()))
    }

    /// The table, or `None` if it was changed in the meantime.
    fn try_snapshot(&self) -> Result<Option<Snapshot>, RegistryError> {
        let Some(state) = State::decode(&self.maps.state.read(0)?) else { return Ok(None) };
        let mut records = Vec::new();
        for number in (0..64).filter(|number| state.live & 1 << number != 0) {
            records.push((number, self.maps.keys.read(number)?));
        }
        fence(Ordering::SeqCst);
        if State::decode(&self.maps.state.read(0)?) != Some(state) {
            return Ok(None);
        }

        let mut keys: Vec<KeyEntry> = Vec::with_capacity(records.len());
        for (number, record) in records {
            let entry =
                table::decode_key(number, self.layout(), &record).map_err(|why| self.damaged_key(number, &why))?;
            if entry.generation == 0 || entry.generation > state.seq {
                return Err(self.damaged_key(number, &format!("generation {} is to come", entry.generation)));
            }
            if let Some(other) = keys
                .iter()
                .find(|other| other.key.name() == entry.key.name() || other.key.slot().overlaps(&entry.key.slot()))
            {
                let why = format!(
                    "'{}' is in the way of key {}, '{}'",
                    entry.key.name(),
                    other.key.number(),
                    other.key.name()
                );
                return Err(self.damaged_key(number, &why));
            }
            keys.push(entry);
        }
        Ok(Some(Snapshot { state, keys }))
    }

    fn damaged_key(&self, number: usize, why: &str) -> RegistryError {
        self.damaged(self.maps.keys.path(), format!("the record of key {number} is not valid: {why}"))
    }

    fn damaged(&self, path: &Path, why: String) -> RegistryError {
        RegistryError::Damaged { name: self.name.clone(), path: path.to_owned(), why }
    }
}
