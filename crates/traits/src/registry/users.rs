//! Which loaded programs use a registry's keys, found by looking at the programs themselves.
//!
//! A bound program carries its filled-in descriptors in a frozen map of read-only data, and the kernel tells which
//! maps a program uses. So nothing is written down when a program is bound: such a record would miss programs that
//! another loader loads from a bound object, and would outlive programs that are closed or whose loader is killed.
//! What is found here cannot be stale. The one program it can miss is one that is still being loaded; its loader asks
//! [`Binding::holds`](crate::bind::Binding::holds) afterwards.
//!
//! Maps are recognised by what they are (one entry, read-only for programs, an area descriptor of this registry in
//! it), not by their name, which every loader cuts or rewrites in its own way.

use std::{
    collections::HashMap,
    fmt, io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    thread,
    time::{Duration, SystemTime},
};

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle, MapInfo, MapType};

use packet_traits_core::Nonces;

use super::{RegistryError, entry::KeyEntry, table, utc::Utc};
use crate::descriptor::{AreaDescriptor, At, Descriptors};

/// How often, and how long apart, a program is looked for before it counts as one that stays.
const LOOKS: usize = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// A loaded program that is bound to the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BoundProgram {
    /// The kernel's number for it.
    pub id: u32,
    /// Its name, as the kernel keeps it (at most 15 bytes).
    pub name: String,
    /// The kernel's hash of its instructions.
    pub tag: [u8; 8],
    /// When it was loaded, counted from when the machine booted, as the kernel keeps it.
    pub loaded_after_boot: Duration,
    /// The registered keys it uses: bit *k* for key *k*.
    pub keys: u64,
    /// It has secrets that the registry had before they were [rotated](crate::rotate): it reads and sets nothing for others.
    pub stale: bool,
}

impl BoundProgram {
    /// The tag as `bpftool prog` prints it: 16 hexadecimal digits.
    pub fn tag_hex(&self) -> String {
        self.tag.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// When it was loaded, by the clock as it is set now.
    pub fn loaded_at(&self) -> SystemTime {
        boot_time() + self.loaded_after_boot
    }
}

impl fmt::Display for BoundProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "program {} '{}' (tag {}, loaded {})", self.id, self.name, self.tag_hex(), Utc(self.loaded_at()))
    }
}

/// What one map of read-only data says about one registry.
#[derive(Clone, Debug, Default)]
struct Uses {
    /// The secret of the flow region.
    nonce: u64,
    /// Number and generation of each key declared by name.
    declared: Vec<(u8, u64)>,
    /// Keys in the table for the calls by number. It has no generations.
    numbered: u64,
}

/// A program bound to a registry, and the keys it names.
pub(super) struct Found {
    program: BoundProgram,
    uses: Vec<Uses>,
}

impl Found {
    /// The program, with those of its keys that are `registered`, and whether it has other secrets than these, if they are given.
    pub(super) fn resolve(self, registered: &[KeyEntry], nonces: Option<Nonces>) -> BoundProgram {
        let used = |entry: &&KeyEntry| {
            let declared = (entry.key.number() as u8, entry.generation);
            self.uses.iter().any(|uses| uses.numbered & entry.key.bit() != 0 || uses.declared.contains(&declared))
        };
        let keys = registered.iter().filter(used).map(|entry| entry.key.bit()).sum();
        let stale = nonces.is_some_and(|nonces| self.uses.iter().any(|uses| uses.nonce != nonces.flow));
        BoundProgram { keys, stale, ..self.program }
    }
}

/// Every loaded program that is bound to the registry with this id. A program or map that goes away in the meantime is left
/// out.
pub(super) fn scan(registry_id: u64) -> Result<Vec<Found>, RegistryError> {
    let mut maps = HashMap::new();
    let mut found = Vec::new();
    let mut id = 0;
    // Not libbpf_rs::query::ProgInfoIter: it takes any failure, also a lack of privilege, for the end of the list.
    while let Some(next) = next_program(id)? {
        id = next;
        let Some(program) = open_program(id)? else { continue };
        let (info, map_ids) = program_info(&program).map_err(listing)?;
        let uses: Vec<Uses> = map_ids
            .into_iter()
            .filter_map(|map| maps.entry(map).or_insert_with(|| uses_of_map(map, registry_id)).clone())
            .collect();
        if !uses.is_empty() {
            let name = info.name.map(|c| c as u8);
            let program = BoundProgram {
                id,
                name: table::text(&name),
                tag: info.tag,
                loaded_after_boot: Duration::from_nanos(info.load_time),
                keys: 0,
                stale: false,
            };
            found.push(Found { program, uses });
        }
    }
    Ok(found)
}

/// Those of the programs that stay loaded. One that was just closed is there until other processes that list programs, each of
/// which holds a program while it looks at it, have looked.
pub(super) fn that_stay(mut programs: Vec<BoundProgram>) -> Result<Vec<BoundProgram>, RegistryError> {
    for _ in 0..LOOKS {
        if programs.is_empty() {
            break;
        }
        thread::sleep(BETWEEN_LOOKS);
        let mut stay = Vec::with_capacity(programs.len());
        for program in programs {
            // asking for the next id holds nothing
            if next_program(program.id - 1)? == Some(program.id) {
                stay.push(program);
            }
        }
        programs = stay;
    }
    Ok(programs)
}

fn listing(error: io::Error) -> RegistryError {
    RegistryError::Programs { error }
}

/// Ids of the registries that a loaded program is bound to; none if it is bound to none, or gone.
pub(crate) fn registries_of(program: u32) -> Result<Vec<u64>, RegistryError> {
    let Some(program) = open_program(program)? else { return Ok(Vec::new()) };
    let (_, map_ids) = program_info(&program).map_err(listing)?;
    let sections = map_ids.into_iter().filter_map(read_only_data);
    let bound = |section: Vec<u8>| Descriptors::parse(&section).areas.into_iter().filter(is_bound);
    Ok(sections.flat_map(bound).map(|area| area.value.registry_id).collect())
}

/// What a map says about the registry; `None` if it is not a bound program's read-only data, or gone.
fn uses_of_map(id: u32, registry_id: u64) -> Option<Uses> {
    uses_of_section(&read_only_data(id)?, registry_id)
}

/// What is in a map, if it is one that descriptors can be in.
fn read_only_data(map: u32) -> Option<Vec<u8>> {
    let handle = MapHandle::from_map_id(map)
        .inspect_err(|error| {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!("cannot look into BPF map {map} for keys in use: {error:#}");
            }
        })
        .ok()?;
    let read_only = MapInfo::new(handle.as_fd()).ok()?.info.map_flags & libbpf_sys::BPF_F_RDONLY_PROG != 0;
    if handle.map_type() != MapType::Array || handle.max_entries() != 1 || !read_only {
        return None;
    }
    handle.lookup(&[0; 4], MapFlags::ANY).ok()?
}

fn is_bound(area: &At<AreaDescriptor>) -> bool {
    area.value.flow_nonce != 0
}

fn uses_of_section(section: &[u8], registry_id: u64) -> Option<Uses> {
    let descriptors = Descriptors::parse(section);
    let is_of_it = |area: &&At<AreaDescriptor>| is_bound(area) && area.value.registry_id == registry_id;
    let nonce = descriptors.areas.iter().find(is_of_it)?.value.flow_nonce;
    let declared = descriptors
        .keys
        .iter()
        .filter(|key| key.value.bit != 0)
        .map(|key| (key.value.number, key.value.generation))
        .collect();
    Some(Uses { nonce, declared, numbered: descriptors.slots.iter().fold(0, |mask, slots| mask | slots.value.mask) })
}

/// The id of the next loaded program, in ascending order.
fn next_program(after: u32) -> Result<Option<u32>, RegistryError> {
    let mut next = 0;
    // SAFETY: `next` is valid for writing one u32.
    match unsafe { libbpf_sys::bpf_prog_get_next_id(after, &mut next) } {
        0 => Ok(Some(next)),
        error if error == -libc::ENOENT => Ok(None),
        error => Err(listing(io::Error::from_raw_os_error(-error))),
    }
}

/// Opens a program by id; `None` if it is gone.
fn open_program(id: u32) -> Result<Option<OwnedFd>, RegistryError> {
    // SAFETY: takes a number only.
    match unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) } {
        // SAFETY: a descriptor that was just made for this call and has no other owner.
        fd if fd >= 0 => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        error if error == -libc::ENOENT => Ok(None),
        error => Err(listing(io::Error::from_raw_os_error(-error))),
    }
}

/// A program's description and the ids of the maps it uses.
pub(crate) fn program_info(program: &OwnedFd) -> io::Result<(libbpf_sys::bpf_prog_info, Vec<u32>)> {
    let mut map_ids: Vec<u32> = Vec::new();
    loop {
        let mut info = libbpf_sys::bpf_prog_info {
            nr_map_ids: map_ids.len() as u32,
            map_ids: map_ids.as_mut_ptr() as u64,
            ..Default::default()
        };
        let mut len = size_of_val(&info) as u32;
        // SAFETY: `info` is valid for `len` bytes, all its other buffers have length 0, and `map_ids` has room for
        // `nr_map_ids` numbers, of which the kernel writes no more.
        let error = unsafe { libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &mut info, &mut len) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(-error));
        }
        // The kernel says how many there are; a loader may bind more maps to a program between two calls.
        let count = info.nr_map_ids as usize;
        let complete = count <= map_ids.len();
        map_ids.resize(count, 0);
        if complete {
            return Ok((info, map_ids));
        }
    }
}

/// When this machine booted. Load times count from there, with the time it was suspended (`ktime_get_boottime_ns` in
/// `bpf_prog_load`, kernel/bpf/syscall.c).
pub(crate) fn boot_time() -> SystemTime {
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    SystemTime::now() - Duration::try_from(since).expect("the clock started at 0")
}
