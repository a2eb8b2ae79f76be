//! The registry's pinned maps: making them, checking that what is pinned is them, reading and updating their records.

use std::{
    ffi::OsStr,
    fs,
    io::ErrorKind,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use packet_traits_core::layout::KEY_COUNT;

use super::{
    KeySpec, RegistryName,
    allocate::Stamps,
    error::RegistryError,
    table::{self, Header, OldHeader, State},
};
use crate::descriptor::{ANCHOR_MAX, CPU_MAX};

/// What one of the pinned maps must look like. All are arrays with 4-byte keys.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// File name in the registry's directory.
    pin: &'static str,
    /// Name of the map in the kernel.
    kernel_name: &'static str,
    value_size: usize,
    max_entries: usize,
}

const HEADER: Shape = Shape { pin: "header", kernel_name: "pt_header", value_size: Header::LEN, max_entries: 1 };
const STATE: Shape = Shape { pin: "state", kernel_name: "pt_state", value_size: State::LEN, max_entries: 1 };
const KEYS: Shape = Shape { pin: "keys", kernel_name: "pt_keys", value_size: table::KEY_LEN, max_entries: KEY_COUNT };
const FREED: Shape = Shape { pin: "freed", kernel_name: "pt_freed", value_size: table::STAMPS_LEN, max_entries: 1 };
const ANCHORS: Shape =
    Shape { pin: "anchors", kernel_name: "pt_anchors", value_size: 4 * ANCHOR_MAX, max_entries: 1 + CPU_MAX };

const SHAPES: [Shape; 5] = [HEADER, STATE, KEYS, FREED, ANCHORS];

/// Whether a file of this name in a registry's directory is part of the registry.
pub(super) fn is_pin(name: &OsStr) -> bool {
    SHAPES.iter().any(|shape| name == shape.pin)
}

/// One pinned map, open.
#[derive(Debug)]
pub(super) struct Table {
    map: MapHandle,
    path: PathBuf,
}

impl Table {
    pub(super) fn map(&self) -> &MapHandle {
        &self.map
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn create(dir: &Path, shape: Shape) -> Result<Table, RegistryError> {
        let path = dir.join(shape.pin);
        let opts = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            ..Default::default()
        };
        let (value_size, max_entries) = (shape.value_size as u32, shape.max_entries as u32);
        let fail = |action| {
            let path = path.clone();
            move |error| RegistryError::Map { action, path, error }
        };
        let mut map = MapHandle::create(MapType::Array, Some(shape.kernel_name), 4, value_size, max_entries, &opts)
            .map_err(fail("create"))?;
        map.pin(&path).map_err(fail("pin"))?;
        Ok(Table { map, path })
    }

    /// Opens a pin and checks that it is an array with 4-byte keys.
    fn open(name: &RegistryName, dir: &Path, shape: Shape) -> Result<Table, RegistryError> {
        let path = dir.join(shape.pin);
        let damaged = |why: String| RegistryError::Damaged { name: name.clone(), path: path.clone(), why };
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => return Err(damaged("it is a directory, not a map".to_owned())),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(damaged("it is missing".to_owned())),
            Err(error) => return Err(RegistryError::Io { action: "look at", path, error }),
        }
        let map = match MapHandle::from_pinned_path(&path) {
            Ok(map) => map,
            Err(error) if error.kind() == libbpf_rs::ErrorKind::InvalidData => {
                return Err(damaged("it is not a map".to_owned()));
            }
            Err(error) => return Err(RegistryError::Map { action: "open", path, error }),
        };
        // BPF_OBJ_GET opens programs and links as well, and the kernel then describes those; only the name of the
        // descriptor tells them from a map.
        let link = PathBuf::from(format!("/proc/self/fd/{}", map.as_fd().as_raw_fd()));
        match fs::read_link(&link) {
            Ok(kind) if kind.as_os_str() == "anon_inode:bpf-map" => {}
            Ok(kind) => return Err(damaged(format!("it is not a map but {}", kind.display()))),
            Err(error) => return Err(RegistryError::Io { action: "read", path: link, error }),
        }
        if map.map_type() != MapType::Array {
            return Err(damaged(format!("it is a map of type {:?}, not Array", map.map_type())));
        }
        if map.key_size() != 4 {
            return Err(damaged(format!("its keys have {} bytes, not 4", map.key_size())));
        }
        Ok(Table { map, path })
    }

    /// Opens a pin, and checks that it is a map of this shape.
    fn open_whole(name: &RegistryName, dir: &Path, shape: Shape) -> Result<Table, RegistryError> {
        let table = Table::open(name, dir, shape)?;
        table.check_sizes(name, shape)?;
        Ok(table)
    }

    fn check_sizes(&self, name: &RegistryName, shape: Shape) -> Result<(), RegistryError> {
        for (what, found, wanted) in [
            ("bytes per value", self.map.value_size() as usize, shape.value_size),
            ("entries", self.map.max_entries() as usize, shape.max_entries),
        ] {
            if found != wanted {
                return Err(RegistryError::Damaged {
                    name: name.clone(),
                    path: self.path.clone(),
                    why: format!("it has {found} {what}, not {wanted}"),
                });
            }
        }
        Ok(())
    }

    /// The record at `index`. `N` is the map's value size.
    pub(super) fn read<const N: usize>(&self, index: usize) -> Result<[u8; N], RegistryError> {
        let mut value = [0; N];
        match self.map.lookup_into(&(index as u32).to_ne_bytes(), &mut value, MapFlags::ANY) {
            Ok(true) => Ok(value),
            // Array maps have every entry below max_entries.
            Ok(false) => unreachable!("index {index} is below the number of entries of {}", self.path.display()),
            Err(error) => Err(RegistryError::Map { action: "read", path: self.path.clone(), error }),
        }
    }

    /// Replaces the record at `index`.
    pub(super) fn write(&self, index: usize, value: &[u8]) -> Result<(), RegistryError> {
        self.map.update(&(index as u32).to_ne_bytes(), value, MapFlags::ANY).map_err(|error| RegistryError::Map {
            action: "write",
            path: self.path.clone(),
            error,
        })
    }
}

/// The maps.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) header: Table,
    pub(super) state: Table,
    pub(super) keys: Table,
    pub(super) freed: Table,
    pub(super) anchors: Table,
}

/// Makes and pins the maps of an empty registry.
pub(super) fn create(dir: &Path, header: &Header) -> Result<(), RegistryError> {
    for shape in SHAPES {
        let table = Table::create(dir, shape)?;
        match shape.pin {
            "header" => table.write(0, &header.encode())?,
            "state" => table.write(0, &State::default().encode())?,
            "freed" => table.write(0, &table::encode_stamps(&Stamps::NONE))?,
            _ => {}
        }
    }
    Ok(())
}

/// What is to be known of a registry of [`table::OLD_VERSION`].
pub(super) struct Old {
    pub(super) header: OldHeader,
    pub(super) keys: Vec<KeySpec>,
}

/// Reads it.
pub(super) fn read_old(name: &RegistryName, dir: &Path) -> Result<Old, RegistryError> {
    let open = |shape| Table::open_whole(name, dir, shape);
    let header = open(Shape { value_size: OldHeader::LEN, ..HEADER })?;
    let (state, records) = (open(Shape { value_size: table::OLD_STATE_LEN, ..STATE })?, open(KEYS)?);
    let damaged = |path: &Path, why: String| RegistryError::Damaged { name: name.clone(), path: path.to_owned(), why };
    let live = table::old_live(&state.read(0)?)
        .ok_or_else(|| damaged(&state.path, "its checksum does not match".to_owned()))?;
    let mut keys = Vec::new();
    for number in (0..KEY_COUNT).filter(|number| live & 1 << number != 0) {
        let key = table::old_key(&records.read(number)?)
            .map_err(|why| damaged(&records.path, format!("the record of key {number} is not valid: {why}")))?;
        keys.push(key);
    }
    Ok(Old { header: OldHeader::decode(&header.read(0)?), keys })
}

/// Opens the maps of a registry, and refuses what is not one of this version.
pub(super) fn open(name: &RegistryName, dir: &Path) -> Result<(Header, Maps), RegistryError> {
    let header = Table::open(name, dir, HEADER)?;
    let damaged = |path: &Path, why: String| RegistryError::Damaged { name: name.clone(), path: path.to_owned(), why };

    // The version first: a newer registry may have other maps and sizes.
    let raw = header
        .map
        .lookup(&[0; 4], MapFlags::ANY)
        .map_err(|error| RegistryError::Map { action: "read", path: header.path.clone(), error })?
        .unwrap_or_default();
    let (magic, version) = match raw.first_chunk::<{ table::PREFIX_LEN }>() {
        Some(prefix) => Header::decode_prefix(prefix),
        None => return Err(damaged(&header.path, format!("it has {} bytes per value, too few", raw.len()))),
    };
    if magic != table::MAGIC {
        return Err(damaged(&header.path, "it does not begin as a registry's header".to_owned()));
    }
    let (found, known) = (version, table::VERSION);
    match version {
        0 => return Err(damaged(&header.path, "its format version is 0".to_owned())),
        table::VERSION => {}
        _ if found < known => {
            return Err(RegistryError::Older { name: name.clone(), dir: dir.to_owned(), found, known });
        }
        _ => return Err(RegistryError::Newer { name: name.clone(), dir: dir.to_owned(), found, known }),
    }

    header.check_sizes(name, HEADER)?;
    let decoded = read_header(&header)?.map_err(|why| damaged(&header.path, why))?;
    let open = |shape| Table::open_whole(name, dir, shape);
    Ok((decoded, Maps { state: open(STATE)?, keys: open(KEYS)?, freed: open(FREED)?, anchors: open(ANCHORS)?, header }))
}

/// Reads the header, or what is wrong with it. A rotation may be writing it, so it is read several times.
pub(super) fn read_header(header: &Table) -> Result<Result<Header, String>, RegistryError> {
    let mut read = Header::decode(&header.read(0)?);
    for attempt in 1..super::LOCKLESS_ATTEMPTS {
        if read.is_ok() {
            break;
        }
        // the writer may have been preempted
        thread::sleep(Duration::from_millis(u64::from(attempt > 8)));
        read = Header::decode(&header.read(0)?);
    }
    Ok(read)
}
