//! Pinned objects that are not a registry of this version: a clear error, and nothing is touched.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs,
    os::{
        fd::{AsFd, AsRawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, libbpf_sys};
use packet_traits::{
    KeyType, Merge,
    registry::{Registry, RegistryError, RegistryOptions},
};
use packet_traits_lab::Bpffs;

use super::{bound_program, options, registry, spec};

/// What every pin holds, byte for byte; of what is not a map, only that it is there.
pub(super) fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |path: &Path| {
        // which opens programs as well, and takes what the kernel says of them for sizes of a map
        let map = MapHandle::from_pinned_path(path).ok()?;
        let descriptor = fs::read_link(format!("/proc/self/fd/{}", map.as_fd().as_raw_fd())).unwrap();
        if descriptor.as_os_str() != "anon_inode:bpf-map" {
            return None;
        }
        let entries = (0..map.max_entries().min(64)).map(|i| map.lookup(&i.to_ne_bytes(), MapFlags::ANY));
        Some(entries.filter_map(|value| value.ok().flatten()).flatten().collect())
    };
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), read(&entry.path()).unwrap_or_default()))
        .collect()
}

/// A registry with a key in it, spoilt by `spoil`. Every way to use it must fail as `expected` says.
fn refused(spoil: impl FnOnce(&Registry), expected: impl Fn(&RegistryError) -> bool) {
    let Some((bpffs, registry)) = registry(48, 48) else { return };
    registry.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap();
    spoil(&registry);
    let before = contents(registry.dir());
    type Attempt = fn(&RegistryOptions) -> Option<RegistryError>;
    let attempts: [Attempt; 4] = [
        |options| options.open().err(),
        |options| options.create().err(),
        |options| options.open_or_create().err(),
        |options| options.remove(false).err(),
    ];
    for attempt in attempts {
        let error = attempt(&options(&bpffs)).expect("a spoilt registry is refused");
        assert!(expected(&error), "{error}");
        assert!(error.to_string().contains("nothing was changed"), "{error}");
    }
    assert_eq!(contents(registry.dir()), before);
    clears_with_force(&bpffs);
}

fn clears_with_force(bpffs: &Bpffs) {
    options(bpffs).remove(true).unwrap();
    options(bpffs).create().unwrap();
}

/// Whether the error is about this pin and says this.
fn damaged(pin: &'static str, what: &'static str) -> impl Fn(&RegistryError) -> bool {
    move |error| match error {
        RegistryError::Damaged { path, why, .. } => path.ends_with(pin) && why.contains(what),
        _ => false,
    }
}

pub(super) fn update(registry: &Registry, pin: &str, index: u32, change: impl FnOnce(&mut Vec<u8>)) {
    let map = MapHandle::from_pinned_path(registry.dir().join(pin)).unwrap();
    let mut value = map.lookup(&index.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
    change(&mut value);
    map.update(&index.to_ne_bytes(), &value, MapFlags::ANY).unwrap();
}

pub(super) fn replace(registry: &Registry, pin: &str, kind: MapType, key_size: u32, value_size: u32, entries: u32) {
    let path = registry.dir().join(pin);
    fs::remove_file(&path).unwrap();
    let opts = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    MapHandle::create(kind, Some("foreign"), key_size, value_size, entries, &opts).unwrap().pin(&path).unwrap();
}

#[test]
fn a_newer_version_is_refused() {
    refused(
        |registry| update(registry, "header", 0, |value| value[8..12].copy_from_slice(&3u32.to_ne_bytes())),
        |error| matches!(error, RegistryError::Newer { found: 3, known: 2, .. }),
    );
}

#[test]
fn a_newer_version_is_told_whatever_its_sizes() {
    refused(
        |registry| {
            replace(registry, "header", MapType::Array, 4, 200, 1);
            update(registry, "header", 0, |value| value[..12].copy_from_slice(b"PTRREGS\0\x09\0\0\0"));
            replace(registry, "keys", MapType::Hash, 32, 300, 128);
        },
        |error| matches!(error, RegistryError::Newer { found: 9, .. }),
    );
}

#[test]
fn a_foreign_header_is_refused() {
    refused(|r| update(r, "header", 0, |value| value[0] ^= 1), damaged("header", "does not begin"));
    refused(|r| update(r, "header", 0, |value| value[12] = 3), damaged("header", "checksum"));
    refused(|r| update(r, "header", 0, |value| value[32..48].fill(0)), damaged("header", "checksum"));
}

#[test]
fn an_earlier_version_is_told_with_what_to_do() {
    refused(
        |registry| update(registry, "header", 0, |value| value[8..12].copy_from_slice(&1u32.to_ne_bytes())),
        |error| {
            matches!(error, RegistryError::Older { found: 1, .. })
                && error.to_string().contains("traits registry migrate")
        },
    );
}

#[test]
fn a_map_of_another_shape_is_refused() {
    refused(|r| replace(r, "header", MapType::Array, 4, 8, 1), damaged("header", "8 bytes per value"));
    refused(|r| replace(r, "keys", MapType::Array, 4, 200, 64), damaged("keys", "200 bytes per value"));
    refused(|r| replace(r, "keys", MapType::Array, 4, 208, 32), damaged("keys", "32 entries"));
    refused(|r| replace(r, "state", MapType::Hash, 4, 24, 1), damaged("state", "type Hash"));
    refused(|r| replace(r, "freed", MapType::Hash, 8, 2560, 1), damaged("freed", "type Hash"));
    refused(|r| replace(r, "anchors", MapType::Array, 4, 8, 1), damaged("anchors", "8 bytes per value"));
}

#[test]
fn a_missing_map_is_refused() {
    for pin in ["header", "state", "keys", "freed", "anchors"] {
        refused(|r| fs::remove_file(r.dir().join(pin)).unwrap(), damaged(pin, "missing"));
    }
}

#[test]
fn something_else_in_the_place_of_a_map_is_refused() {
    let pin_program = |registry: &Registry, pin| {
        let path = registry.dir().join(pin);
        fs::remove_file(&path).unwrap();
        let program = bound_program::load(c"foreign", None);
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the path is a C string.
        assert_eq!(unsafe { libbpf_sys::bpf_obj_pin(program.as_raw_fd(), path.as_ptr()) }, 0);
    };
    refused(|r| pin_program(r, "header"), damaged("header", "not a map"));
    refused(|r| pin_program(r, "freed"), damaged("freed", "not a map"));
    refused(
        |r| {
            fs::remove_file(r.dir().join("keys")).unwrap();
            fs::create_dir(r.dir().join("keys")).unwrap();
        },
        damaged("keys", "directory"),
    );
}

/// The kernel does not let anyone write to a frozen map.
#[test]
fn a_table_that_cannot_be_written_is_named() {
    let Some((_bpffs, registry)) = registry(48, 48) else { return };
    MapHandle::from_pinned_path(registry.dir().join("keys")).unwrap().freeze().unwrap();
    let error = registry.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap_err();
    assert!(matches!(&error, RegistryError::Map { action: "write", path, .. } if path.ends_with("keys")), "{error}");
    assert_eq!(error.errno(), libc::EPERM);
    assert!(registry.list().unwrap().is_empty());
}

/// A pin cannot be locked as the registry's folder is.
#[test]
fn a_pin_that_took_the_place_of_an_open_registry_is_named() {
    let Some((bpffs, registry)) = registry(48, 48) else { return };
    let away = bpffs.path().join("packet_traits/away");
    fs::rename(registry.dir(), &away).unwrap();
    MapHandle::from_pinned_path(away.join("header")).unwrap().pin(registry.dir()).unwrap();
    let error = registry.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap_err();
    let RegistryError::Io { action: "lock", path, .. } = &error else { panic!("{error}") };
    assert_eq!(path, registry.dir());
}

#[test]
fn a_damaged_table_is_refused() {
    refused(|r| update(r, "state", 0, |value| value[0] ^= 1), damaged("state", "checksum"));
    refused(|r| update(r, "keys", 0, |value| value[1] ^= 1), damaged("keys", "record of key 0"));
}
