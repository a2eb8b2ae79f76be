//! What a deployment's programs were loaded from: used to load them again when the registry's secrets are rotated.

use std::{collections::HashSet, ffi::OsStr, os::fd::AsFd};

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle, MapInfo, MapType, OpenObject};
use serde::{Deserialize, Serialize};

use super::{DeployError, Setup, UpOptions, error::map_failed, setup};
use crate::{
    attach::XdpMode,
    bind::{ANCHORS_MAP, BoundObject, LoadedObject},
    descriptor::SECTION,
    registry::Registry,
};

/// Version of the encoding.
const VERSION: u32 = 1;

/// Name of the map in the kernel.
const MAP: &str = "pt_source";

/// What names of sections of constants contain: libbpf puts a part of the object's name in front.
const CONSTANTS: &str = ".rodata";

/// What the kernel's configuration says, which libbpf fills in.
const KCONFIG: &str = ".kconfig";

/// The object file, and what was set before it was loaded. Constants are in the maps.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Source {
    version: u32,
    /// The interface of programs that are loaded for one.
    interface: Option<u32>,
    device_bound: Vec<String>,
    /// Programs that are not loaded.
    left_out: Vec<String>,
    /// Names of the object's maps as libbpf has them, and ids of those that were made, by place.
    maps: Vec<(String, Option<u32>)>,
    #[serde(skip)]
    object: Vec<u8>,
}

impl Source {
    /// Of an object that is prepared to be loaded.
    pub(super) fn of(bound: &mut BoundObject<'_>, options: &UpOptions) -> Source {
        let object = bound.bytes().to_owned();
        let open = bound.open_object_mut();
        Source {
            version: VERSION,
            interface: options.interface,
            device_bound: options.setup.device_bound.clone(),
            left_out: open.progs().filter(|program| !program.autoload()).map(|program| text(program.name())).collect(),
            maps: map_names(open),
            object,
        }
    }

    /// Adds the ids of the loaded object's maps, and returns a frozen map with all of it, for pinning. Returns `None` if it is
    /// too long: before Linux 6.0 a map's value has at most 4 MiB (`array_map_alloc_check` in kernel/bpf/arraymap.c).
    pub(super) fn write(mut self, loaded: &LoadedObject) -> Result<Option<MapHandle>, DeployError> {
        for (name, id) in &mut self.maps {
            let Some(map) = loaded.map(name) else { continue };
            *id = Some(MapInfo::new(map.as_fd()).map_err(map_failed("look at", name))?.info.id);
        }
        match frozen_map(MAP, &self.encode()) {
            Err(DeployError::Map { error, .. }) if error.kind() == ErrorKind::TooBig => Ok(None),
            other => other.map(Some),
        }
    }

    /// Reads what is written in a map; the error says why it cannot be read.
    pub(super) fn read(map: &MapHandle) -> Result<Source, String> {
        Source::decode(&frozen_value(map)?).ok_or_else(|| "it is of another version".to_owned())
    }

    /// Binds the object to a registry, with its previous settings and maps. `used` are the maps of the running programs, `mode`
    /// is that of the XDP program. Call [`write`](Self::write) after loading: constants are in new maps.
    pub(super) fn bind<'r>(
        &mut self,
        name: &str,
        registry: &'r Registry,
        mode: Option<XdpMode>,
        used: &HashSet<u32>,
    ) -> Result<BoundObject<'r>, DeployError> {
        let mut bound = BoundObject::from_bytes(&self.object, name, registry)?;
        let object = bound.open_object_mut();
        for mut program in object.progs_mut() {
            let wanted = !self.left_out.iter().any(|left_out| program.name() == left_out.as_str());
            program.set_autoload(wanted);
        }
        self.take_over_maps(object, used).map_err(|why| DeployError::Rebind { name: name.to_owned(), why })?;
        let setup = Setup { device_bound: self.device_bound.clone(), ..Setup::default() };
        let options =
            UpOptions { interface: self.interface, xdp_mode: mode.unwrap_or_default(), setup, ..UpOptions::default() };
        setup::prepare_programs(object, name, &options, mode)?;
        self.maps = map_names(object);
        Ok(bound)
    }

    /// Reuses the previous maps, and copies the contents of sections of constants. The error says why it failed.
    fn take_over_maps(&self, object: &mut OpenObject, used: &HashSet<u32>) -> Result<(), String> {
        for (mut map, (name, id)) in object.maps_mut().zip(&self.maps) {
            let Some(id) = *id else { continue };
            if name == ANCHORS_MAP || name == SECTION || name.contains(KCONFIG) {
                continue;
            }
            let old = match MapHandle::from_map_id(id) {
                // no program uses it
                Err(_) if !used.contains(&id) => continue,
                other => other.map_err(|error| format!("its map {name} cannot be opened: {error:#}"))?,
            };
            if old.map_type() == MapType::ProgArray {
                return Err(format!("its map {name} has programs to call, which would go on with the old secrets"));
            }
            if name.contains(CONSTANTS) {
                let value = frozen_value(&old).map_err(|why| format!("its constants cannot be read: {why}"))?;
                match map.initial_value_mut() {
                    Some(section) if section.len() == value.len() => section.copy_from_slice(&value),
                    _ => return Err("its constants do not fit".to_owned()),
                }
                continue;
            }
            map.reuse_fd(old.as_fd()).map_err(|error| format!("its map {name} cannot be taken over: {error:#}"))?;
        }
        Ok(())
    }

    /// Whether its programs must be loaded in the namespace of their interface.
    pub(super) fn is_of_a_device(&self) -> bool {
        !self.device_bound.is_empty()
    }

    /// The length of what describes the object, that, and the object.
    fn encode(&self) -> Vec<u8> {
        let about = serde_json::to_vec(self).expect("strings and numbers can be written");
        [&(about.len() as u32).to_ne_bytes(), &*about, &self.object].concat()
    }

    fn decode(raw: &[u8]) -> Option<Source> {
        let (len, rest) = raw.split_first_chunk()?;
        let (about, object) = rest.split_at_checked(u32::from_ne_bytes(*len) as usize)?;
        let source: Source = serde_json::from_slice(about).ok().filter(|one: &Source| one.version == VERSION)?;
        Some(Source { object: object.to_owned(), ..source })
    }
}

fn text(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

/// The maps of an open object, none of which is made.
fn map_names(object: &OpenObject) -> Vec<(String, Option<u32>)> {
    object.maps().map(|map| (text(map.name()), None)).collect()
}

/// A frozen map of one value.
pub(super) fn frozen_map(name: &str, value: &[u8]) -> Result<MapHandle, DeployError> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let map = MapHandle::create(MapType::Array, Some(name), 4, value.len() as u32, 1, &options)
        .map_err(map_failed("make", name))?;
    map.update(&[0; 4], value, MapFlags::ANY).map_err(map_failed("write", name))?;
    map.freeze().map_err(map_failed("freeze", name))?;
    Ok(map)
}

/// The value of such a map; the error says why it cannot be read.
pub(super) fn frozen_value(map: &MapHandle) -> Result<Vec<u8>, String> {
    if map.map_type() != MapType::Array || map.max_entries() != 1 {
        return Err("it is another map".to_owned());
    }
    let value = map.lookup(&[0; 4], MapFlags::ANY).map_err(|error| format!("{error:#}"))?;
    Ok(value.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let source = Source {
            version: VERSION,
            interface: Some(7),
            device_bound: vec!["hints".to_owned()],
            left_out: Vec::new(),
            maps: vec![("seen".to_owned(), Some(9)), (SECTION.to_owned(), None)],
            object: b"\x7fELF".to_vec(),
        };
        let raw = source.encode();
        assert_eq!(Source::decode(&raw), Some(source));
        assert_eq!(Source::decode(&raw[..8]), None);
        assert_eq!(Source::decode(&[]), None);
    }
}
