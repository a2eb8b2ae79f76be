//! Doing what a [`Setup`] says to an object: before it is loaded, and between that and attaching it.

use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use libbpf_rs::{
    AsRawLibbpf, MapCore, MapFlags, MapHandle, MapType, OpenMapMut, OpenObject, OpenProgramMut, ProgramType,
    btf::{Btf, BtfType, types},
};

use super::{DeployError, Needs, Setup, UpOptions, error::map_failed};
use crate::{
    attach::{Device, LOOPBACK, XdpMode, devices, is_veth, loses_redirects, redirect_map, xdp},
    bind::{BindError, BoundObject, LoadedObject},
    bpffs,
};

/// ELF section of constants.
const CONSTANTS: &str = ".rodata";

/// The folder of a bpffs with the maps that all deployments share.
const SHARED: &str = "packet_traits_shared";

/// Frames that wait for a CPU, at most.
const CPU_QUEUE: u32 = 2048;

/// Where the maps of a [`Setup`] are pinned.
pub(super) struct Places<'a> {
    pub(super) bpffs: &'a Path,
    /// The folder of maps of the version that is replaced.
    pub(super) old_maps: Option<PathBuf>,
}

/// Prepares an open object. `name` stands for it in errors.
pub(super) fn prepare(
    object: &mut OpenObject,
    name: &str,
    options: &UpOptions,
    places: &Places<'_>,
) -> Result<(), DeployError> {
    let setup = &options.setup;
    for (variable, value) in &setup.variables {
        set_variable(object, name, variable, value)?;
    }
    for map in &setup.cpu_maps {
        // by number, of which some may be left out
        let entries = online_cpus().into_iter().max().unwrap_or_default() + 1;
        find_map(object, name, map)?.set_max_entries(entries).map_err(map_failed("size", map))?;
    }
    for map in &setup.shared_maps {
        share(find_map(object, name, map)?, map, places.bpffs)?;
    }
    for map in &setup.kept_maps {
        let mut open = find_map(object, name, map)?;
        if let Some(path) = places.old_maps.as_ref().map(|maps| maps.join(map))
            && bpffs::open_map(&path).is_ok_and(|old| same_shape(&open, &old))
        {
            open.reuse_pinned_map(&path).map_err(map_failed("take over", map))?;
        }
    }
    let asks = setup.may_inherit.is_some() || object.progs().any(|program| program.section() == "xdp.frags");
    let interface = options.interface.filter(|_| asks);
    // once: before Linux 6.3 a program is attached to find out
    let mode = interface.map(|interface| xdp::mode_on(interface, options.xdp_mode)).transpose()?;
    prepare_programs(object, name, options, mode)?;
    let (Some(interface), Some(mode)) = (interface, mode) else { return Ok(()) };
    if let Some(variable) = &setup.may_inherit
        && mode == XdpMode::Native
        && is_card(interface)
    {
        set_variable(object, name, variable, &0u32.to_ne_bytes())?;
    }
    Ok(())
}

/// Prepares the programs of an open object, of which those at XDP are to run in this mode.
pub(super) fn prepare_programs(
    object: &mut OpenObject,
    name: &str,
    options: &UpOptions,
    mode: Option<XdpMode>,
) -> Result<(), DeployError> {
    for program in &options.setup.device_bound {
        bind_to_device(object, name, program, options)?;
    }
    if mode == Some(XdpMode::Generic) {
        in_one_buffer(object, &options.setup);
    }
    Ok(())
}

/// Fills a loaded object's maps.
pub(super) fn fill(object: &LoadedObject, name: &str, setup: &Setup) -> Result<(), DeployError> {
    let find = |map: &str| object.map(map).ok_or_else(|| missing(name, "map", map));
    for table in &setup.tables {
        let map = find(&table.map)?;
        for (key, value) in &table.entries {
            for (expected, found) in [(map.key_size(), key), (map.value_size(), value)] {
                if expected as usize != found.len() {
                    return Err(DeployError::Size {
                        object: name.to_owned(),
                        name: table.map.clone(),
                        expected: expected as usize,
                        found: found.len(),
                    });
                }
            }
            map.update(key, value, MapFlags::ANY).map_err(map_failed("fill", &table.map))?;
        }
    }
    for map in &setup.cpu_maps {
        let map = find(map)?;
        for cpu in online_cpus() {
            redirect_map::set_cpu(map.as_fd(), cpu, CPU_QUEUE, None)?;
        }
    }
    Ok(())
}

fn missing(object: &str, what: &'static str, name: &str) -> DeployError {
    DeployError::Missing { object: object.to_owned(), what, name: name.to_owned() }
}

fn find_map<'o>(object: &'o mut OpenObject, name: &str, map: &str) -> Result<OpenMapMut<'o>, DeployError> {
    object.maps_mut().find(|one| one.name() == map).ok_or_else(|| missing(name, "map", map))
}

fn set_variable(object: &mut OpenObject, name: &str, variable: &str, value: &[u8]) -> Result<(), DeployError> {
    let (offset, size) = place_of(object, name, variable)?.ok_or_else(|| missing(name, "variable", variable))?;
    if size != value.len() {
        let (object, name) = (name.to_owned(), variable.to_owned());
        return Err(DeployError::Size { object, name, expected: size, found: value.len() });
    }
    // libbpf puts a part of the object's name in front
    let mut map = object
        .maps_mut()
        .find(|map| map.name().as_encoded_bytes().ends_with(CONSTANTS.as_bytes()))
        .ok_or_else(|| missing(name, "map", CONSTANTS))?;
    map.initial_value_mut()
        .and_then(|section| section.get_mut(offset..offset + size))
        .ok_or_else(|| missing(name, "variable", variable))?
        .copy_from_slice(value);
    Ok(())
}

/// Offset and size of a variable in the section of constants.
fn place_of(object: &OpenObject, name: &str, variable: &str) -> Result<Option<(usize, usize)>, DeployError> {
    // SAFETY: the object outlives `btf`, which is dropped when this returns.
    let raw = unsafe { object.as_libbpf_object().as_ref() };
    let btf = Btf::from_bpf_object(raw)
        .map_err(|source| BindError::Prepare { object: name.to_owned(), source })?
        .ok_or_else(|| BindError::NoBtf { object: name.to_owned() })?;
    let Some(section) = btf.type_by_name::<types::DataSec<'_>>(CONSTANTS) else { return Ok(None) };
    let found = section.iter().find(|place| {
        let of = btf.type_by_id::<BtfType<'_>>(place.ty);
        of.and_then(|of| types::Var::try_from(of).ok()).is_some_and(|of| of.name().is_some_and(|name| name == variable))
    });
    Ok(found.map(|place| (place.offset as usize, place.size)))
}

/// Has an open map be the one that all deployments share.
///
/// It is made here, not by libbpf at load: that would take it away again if the load failed, though another process may
/// have found it in the meantime.
fn share(mut map: OpenMapMut<'_>, name: &str, bpffs: &Path) -> Result<(), DeployError> {
    let folder = bpffs.join(SHARED);
    bpffs::make_dir(&folder).map_err(super::error::failed("make", &folder))?;
    bpffs::require_own(&folder)?;
    let path = folder.join(name);
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        map_flags: map.map_flags(),
        ..Default::default()
    };
    let new =
        MapHandle::create(map.map_type(), Some(name), map.key_size(), map.value_size(), map.max_entries(), &options)
            .map_err(map_failed("make", name))?;
    match bpffs::pin(new.as_fd(), &path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(super::error::failed("pin a map at", &path)(error));
        }
        _ => {}
    }
    if !bpffs::open_map(&path).is_ok_and(|pinned| same_shape(&map, &pinned)) {
        return Err(DeployError::SharedMap { map: name.to_owned(), path });
    }
    map.reuse_pinned_map(&path).map_err(map_failed("share", name))
}

fn same_shape(map: &OpenMapMut<'_>, pinned: &MapHandle) -> bool {
    let shape: (MapType, u32, u32, u32) = (map.map_type(), map.key_size(), map.value_size(), map.max_entries());
    shape == (pinned.map_type(), pinned.key_size(), pinned.value_size(), pinned.max_entries())
}

/// The mode that XDP programs are to be attached in, see [`UpOptions::xdp_mode`]. That of a program which is attached stays.
pub(super) fn xdp_mode(object: &BoundObject<'_>, options: &UpOptions) -> XdpMode {
    match (options.xdp_mode, options.interface) {
        (XdpMode::Auto, Some(interface))
            if options.setup.device_bound.is_empty() && xdp::attached(interface).is_none() =>
        {
            let generic = match object.redirects() {
                true => options.setup.redirects_to.iter().any(|target| loses_redirects(*target)),
                false => is_veth(interface),
            };
            if generic { XdpMode::Generic } else { XdpMode::Auto }
        }
        (mode, _) => mode,
    }
}

/// Whether an interface is a network card, where packets begin: what other drivers receive may be a packet of the stack's, with
/// metadata that XDP attached to it at another interface.
fn is_card(interface: u32) -> bool {
    let is_it = |device: &Device| device.ifindex == interface && device.kind.is_empty() && interface != LOOPBACK;
    devices().is_ok_and(|found| found.iter().any(is_it))
}

/// Has programs of `xdp.frags` loaded as those of `xdp` are, for generic mode. It has each packet in one buffer for them. For
/// such as take several it copies a packet without the length of its link header, and TC programs behind find no header where
/// they look (`skb_pp_cow_data` in net/core/skbuff.c, Linux 6.9 and later).
fn in_one_buffer(object: &mut OpenObject, setup: &Setup) {
    let is_one = |program: &OpenProgramMut<'_>| {
        let bound = setup.device_bound.iter().any(|name| program.name() == name.as_str());
        program.section() == "xdp.frags" && !bound
    };
    for mut program in object.progs_mut().filter(is_one) {
        // with another type, libbpf forgets what the section says besides
        program.set_prog_type(ProgramType::SocketFilter);
        program.set_prog_type(ProgramType::Xdp);
    }
}

fn bind_to_device(object: &mut OpenObject, name: &str, program: &str, options: &UpOptions) -> Result<(), DeployError> {
    if options.xdp_mode == XdpMode::Generic {
        return Err(DeployError::GenericDeviceBound { program: program.to_owned() });
    }
    let mut found =
        object.progs_mut().find(|one| one.name() == program).ok_or_else(|| missing(name, "program", program))?;
    let interface = options.interface.ok_or_else(|| DeployError::Where {
        program: program.to_owned(),
        section: found.section().to_string_lossy().into_owned(),
        needs: Needs::Interface,
    })?;
    found.set_ifindex(interface);
    found.set_flags(libbpf_sys::BPF_F_XDP_DEV_BOUND_ONLY);
    Ok(())
}

/// The CPUs that are online; the first one if that cannot be told.
fn online_cpus() -> Vec<u32> {
    cpu_list(&fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default()).unwrap_or_else(|| vec![0])
}

/// The numbers in a list of the kernel's: `0-3,8`.
fn cpu_list(text: &str) -> Option<Vec<u32>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse::<u32>().ok()?)
    };
    let ranges: Vec<_> = text.trim().split(',').map(range).collect::<Option<_>>()?;
    Some(ranges.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read_whole() {
        assert_eq!(cpu_list("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(cpu_list("0"), Some(vec![0]));
        assert_eq!(cpu_list(""), None);
    }
}
