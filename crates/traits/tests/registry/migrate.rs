//! A registry of the version before becomes one of this version, whole or not at all.

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use packet_traits::{
    KeyType, Layout, Merge,
    registry::{Description, Registry, RegistryError, RegistryOptions},
};
use packet_traits_lab::Bpffs;

use super::{
    bound_program::BoundProgram,
    damage::{contents, replace, update},
    name, options, registry, spec,
};

/// Bytes of a header of version 1, which had no checksum.
const HEADER_LEN: usize = 88;

/// A state record of version 1: which keys there are, how many changes there were, and the 64-bit FNV-1a of both.
fn old_state(live: u64, changes: u64) -> Vec<u8> {
    let mut record = [live.to_ne_bytes(), changes.to_ne_bytes()].concat();
    let sum = record
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    record.extend(sum.to_ne_bytes());
    record
}

/// A registry with two keys, whose header and state are of version 1, with regions of 64 and 64 bytes. Key records are the
/// same in both.
fn old_registry() -> Option<(Bpffs, Registry)> {
    let (bpffs, registry) = registry(48, 48)?;
    let tenant = spec("tenant", KeyType::U32, Merge::Block).description(Description::new("who pays").unwrap());
    registry.register(&tenant).unwrap();
    registry.register(&spec("flow_id", KeyType::U64, Merge::KeepFirst)).unwrap();
    let header = MapHandle::from_pinned_path(registry.dir().join("header")).unwrap();
    let mut value = header.lookup(&[0; 4], MapFlags::ANY).unwrap().unwrap();
    value.truncate(HEADER_LEN);
    for (at, word) in [(8, 1u32), (12, 64), (16, 64)] {
        value[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    replace(&registry, "header", MapType::Array, 4, HEADER_LEN as u32, 1);
    update(&registry, "header", 0, |header| header.copy_from_slice(&value));
    replace(&registry, "state", MapType::Array, 4, 24, 1);
    update(&registry, "state", 0, |state| state.copy_from_slice(&old_state(3, 2)));
    replace(&registry, "anchors", MapType::Array, 4, 64, 1);
    Some((bpffs, registry))
}

#[test]
fn a_registry_of_the_version_before_keeps_its_keys() {
    let Some((bpffs, old)) = old_registry() else { return };
    let error = options(&bpffs).open().unwrap_err();
    assert!(matches!(error, RegistryError::Older { found: 1, known: 2, .. }), "{error}");
    let migrated = options(&bpffs).migrate().unwrap();
    assert_eq!(migrated.from, Some(1));
    let new = migrated.registry;
    // as much room for values as before
    assert_eq!(new.layout(), Layout::new(72, 80).unwrap());
    assert!(new.id() != old.id() && new.nonces() != old.nonces());
    let keys: Vec<_> =
        new.list().unwrap().iter().map(|key| (key.key.name().to_string(), key.key.key_type(), key.merge)).collect();
    let expected = [("tenant", KeyType::U32, Merge::Block), ("flow_id", KeyType::U64, Merge::KeepFirst)];
    assert_eq!(keys, expected.map(|(name, key_type, merge)| (name.to_owned(), key_type, merge)));
    assert_eq!(new.lookup(&name("tenant")).unwrap().unwrap().description.as_str(), "who pays");
    // what was opened before is not mistaken for it
    assert!(matches!(old.register(&spec("late", KeyType::U8, Merge::Block)), Err(RegistryError::Gone { .. })));
    // again, there is nothing to do
    let again = options(&bpffs).migrate().unwrap();
    assert_eq!((again.from, again.registry.id()), (None, new.id()));
}

#[test]
fn sizes_can_be_given_with_it() {
    let Some((bpffs, _)) = old_registry() else { return };
    let layout = Layout::new(40, 40).unwrap();
    assert_eq!(options(&bpffs).layout(layout).migrate().unwrap().registry.layout(), layout);
}

#[test]
fn a_registry_that_cannot_be_migrated_stays_as_it_is() {
    let Some((bpffs, registry)) = old_registry() else { return };
    let refused = |layout: Option<Layout>, expected: fn(&RegistryError) -> bool| {
        let before = contents(registry.dir());
        let options = layout.into_iter().fold(options(&bpffs), RegistryOptions::layout);
        let error = options.migrate().unwrap_err();
        assert!(expected(&error), "{error}");
        assert_eq!(contents(registry.dir()), before);
        assert!(!bpffs.path().join("packet_traits/_new").exists());
    };
    {
        let _program = BoundProgram::load(&registry, &[], Some(1));
        refused(None, |error| matches!(error, RegistryError::RegistryInUse { .. }));
    }
    refused(Some(Layout::new(24, 32).unwrap()), |error| matches!(error, RegistryError::RegionFull { .. }));
    refused(Some(Layout::new(128, 96).unwrap()), |error| matches!(error, RegistryError::Oversize { .. }));
    update(&registry, "keys", 0, |record| record[3] ^= 1);
    refused(None, |error| matches!(error, RegistryError::Damaged { .. }));
}
