//! Registering, finding and removing keys.

use packet_traits::{
    KeyType, Layout, Merge, Region,
    registry::{Description, RegistryError},
};
use packet_traits_lab::KernelFeature;

use super::{name, options, registry, spec};

#[test]
fn registering_again_gives_the_same_key() {
    let Some((bpffs, registry)) = registry(48, 48) else { return };
    let tenant = spec("tenant", KeyType::U32, Merge::Block).description(Description::new("who pays").unwrap());
    let first = registry.register(&tenant).unwrap();
    let again = registry.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap();
    assert_eq!(first, again);
    assert_eq!(first.description.as_str(), "who pays");
    assert_eq!((first.key.number(), first.key.slot().region()), (0, Region::Flow));
    assert!(first.generation > 0);
    // SAFETY: getuid takes nothing.
    assert_eq!(first.owner.uid, unsafe { libc::getuid() });
    assert!(!first.owner.comm.is_empty());

    let elsewhere = options(&bpffs).open().unwrap();
    assert_eq!(elsewhere.lookup(&name("tenant")).unwrap(), Some(first.clone()));
    assert_eq!(elsewhere.list().unwrap(), [first]);
    assert_eq!(elsewhere.lookup(&name("nobody")).unwrap(), None);
}

#[test]
fn another_spec_is_refused_and_names_the_holder() {
    let Some((_bpffs, registry)) = registry(48, 48) else { return };
    let held = registry.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap();
    for other in [spec("tenant", KeyType::U64, Merge::Block), spec("tenant", KeyType::U32, Merge::KeepFirst)] {
        let error = registry.register(&other).unwrap_err();
        assert_eq!(error.errno(), libc::EBUSY);
        let RegistryError::Held { holder, .. } = &error else { panic!("{error}") };
        assert_eq!(**holder, held);
        let text = error.to_string();
        assert!(text.contains("'tenant'") && text.contains("held as u32, block"), "{text}");
        assert!(text.contains(&held.owner.to_string()), "{text}");
    }
    assert_eq!(registry.list().unwrap(), [held]);
}

#[test]
fn a_full_region_lists_who_holds_what() {
    let Some((_bpffs, registry)) = registry(16, 16) else { return };
    registry.register(&spec("first", KeyType::U64, Merge::Block)).unwrap();
    registry.register(&spec("second", KeyType::U32, Merge::Block)).unwrap();
    registry.register(&spec("other-region", KeyType::U64, Merge::KeepFirst)).unwrap();
    let error = registry.register(&spec("third", KeyType::U64, Merge::Block)).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
    assert!(matches!(error, RegistryError::RegionFull { free: 4, space: 16, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("first u64") && text.contains("second u32"), "{text}");
    assert!(!text.contains("other-region"), "{text}");
    registry.register(&spec("third", KeyType::U32, Merge::Block)).unwrap();
    registry.register(&spec("bit", KeyType::Flag, Merge::Block)).unwrap();
}

#[test]
fn a_registry_without_a_packet_region_has_no_keep_first_keys() {
    let Some((_bpffs, registry)) = registry(48, 0) else { return };
    for key_type in [KeyType::U8, KeyType::Flag] {
        let error = registry.register(&spec("key", key_type, Merge::KeepFirst)).unwrap_err();
        assert!(matches!(error, RegistryError::RegionFull { space: 0, .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("use the other region (merge policy block)") && !text.contains("remove a key"), "{text}");
    }
}

#[test]
fn no_larger_area_is_advised_than_the_kernel_takes() {
    let Some((_bpffs, registry)) = registry(16, 0) else { return };
    registry.register(&spec("holder", KeyType::Uuid, Merge::Block)).unwrap();
    for (merge, region) in [(Merge::Block, "flow"), (Merge::KeepFirst, "packet")] {
        let text = registry.register(&spec("key", KeyType::U32, merge)).unwrap_err().to_string();
        let larger = text.contains(&format!("create a registry with a larger {region} region"));
        assert_eq!(larger, KernelFeature::LongMetadata.is_here(), "{text}");
        let limit = text.contains("the 32 bytes of XDP metadata that this kernel takes") && text.contains("Linux 6.8");
        assert_eq!(limit, !larger, "{text}");
        assert_eq!(text.contains("use the other region"), merge == Merge::KeepFirst, "{text}");
    }
}

#[test]
fn the_sixty_fifth_key_is_refused_with_a_list() {
    let Some((_bpffs, registry)) = registry(48, 48) else { return };
    for i in 0..64 {
        let entry = registry.register(&spec(&format!("flag{i}"), KeyType::Flag, Merge::Block)).unwrap();
        assert_eq!(entry.key.number(), i);
    }
    let error = registry.register(&spec("more", KeyType::Flag, Merge::KeepFirst)).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
    let RegistryError::KeysExhausted { holders, .. } = &error else { panic!("{error}") };
    assert_eq!(holders.len(), 64);
    assert!(error.to_string().contains("flag63 flag"), "{error}");

    registry.unregister(&name("flag17"), false).unwrap();
    assert_eq!(registry.register(&spec("more", KeyType::Flag, Merge::KeepFirst)).unwrap().key.number(), 17);
}

#[test]
fn slots_lie_in_the_region_of_their_policy_and_never_overlap() {
    let Some((_bpffs, registry)) = registry(80, 80) else { return };
    for (i, key_type) in KeyType::ALL.into_iter().enumerate() {
        for merge in Merge::ALL {
            let key = spec(&format!("k{i}-{merge}"), key_type, merge);
            match registry.register(&key) {
                Ok(entry) => assert_eq!(entry.key.slot().region(), merge.region()),
                Err(error) => assert_eq!(error.errno(), libc::ENOSPC, "{error}"),
            }
        }
    }
    let keys = registry.list().unwrap();
    assert!(keys.len() >= 20);
    for (i, a) in keys.iter().enumerate() {
        assert!(keys[i + 1..].iter().all(|b| !a.key.slot().overlaps(&b.key.slot())));
    }
}

#[test]
fn a_freed_key_is_reused_last() {
    let Some((_bpffs, registry)) = registry(32, 0) else { return };
    let add = |key: &str| registry.register(&spec(key, KeyType::U64, Merge::Block)).unwrap();
    let place = |key: &packet_traits::registry::KeyEntry| (key.key.number(), key.key.slot().distance());
    let (a, b) = (add("a"), add("b"));
    registry.unregister(&name("b"), false).unwrap();
    registry.unregister(&name("a"), false).unwrap();
    let (c, d) = (add("c"), add("d"));
    for new in [&c, &d] {
        for old in [&a, &b] {
            assert_ne!(new.key.number(), old.key.number());
            assert!(!new.key.slot().overlaps(&old.key.slot()));
        }
    }
    // Only the freed bytes are left now, the longest free first. Numbers never used still come before freed ones.
    let (e, f) = (add("e"), add("f"));
    assert_eq!(e.key.slot(), b.key.slot());
    assert_eq!(f.key.slot(), a.key.slot());
    assert_eq!([&c, &d, &e, &f].map(|key| key.key.number()), [2, 3, 4, 5]);
    assert!(f.generation > e.generation && e.generation > a.generation, "{:?} {:?}", place(&e), place(&f));
}

#[test]
fn a_key_that_is_gone_is_no_longer_valid() {
    let Some((bpffs, registry)) = registry(48, 48) else { return };
    let tenant = registry.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap();
    let bound = [(tenant.key.number(), tenant.generation)];
    assert!(registry.still_valid(&bound).unwrap());
    assert!(registry.still_valid(&[]).unwrap());
    assert_eq!(registry.unregister(&name("tenant"), false).unwrap(), tenant);
    assert!(!registry.still_valid(&bound).unwrap());
    let error = registry.unregister(&name("tenant"), true).unwrap_err();
    assert!(matches!(error, RegistryError::UnknownKey { .. }), "{error}");

    let again = registry.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap();
    assert!(!registry.still_valid(&bound).unwrap());
    let bound = [(again.key.number(), again.generation)];
    options(&bpffs).remove(false).unwrap();
    assert!(!registry.still_valid(&bound).unwrap());
    let error = registry.register(&spec("late", KeyType::U8, Merge::Block)).unwrap_err();
    assert!(matches!(error, RegistryError::Gone { .. }), "{error}");
    options(&bpffs).layout(Layout::DEFAULT).create().unwrap();
    assert!(matches!(registry.unregister(&name("tenant"), true), Err(RegistryError::Gone { .. })));
}

#[test]
fn keys_for_something_that_fails_are_taken_back() {
    let Some((_bpffs, registry)) = registry(16, 16) else { return };
    let before = registry.register(&spec("before", KeyType::U64, Merge::Block)).unwrap();
    let wanted = [spec("new", KeyType::U32, Merge::Block), spec("before", KeyType::U64, Merge::Block)];
    let keys = registry.register_provisionally(&wanted).unwrap();
    let new: Vec<_> = keys.new_keys().iter().map(|entry| entry.key.name().to_string()).collect();
    assert_eq!(new, ["new"]);
    drop(keys);
    assert_eq!(registry.list().unwrap(), std::slice::from_ref(&before));

    // The second of these finds no room.
    let wanted = [spec("new", KeyType::U32, Merge::Block), spec("wide", KeyType::U64, Merge::Block)];
    assert!(matches!(registry.register_provisionally(&wanted).unwrap_err(), RegistryError::RegionFull { .. }));
    assert_eq!(registry.list().unwrap(), [before]);

    registry.register_provisionally(&wanted[..1]).unwrap().keep();
    // Whoever has taken a key away and registered it again in the meantime keeps it.
    let keys = registry.register_provisionally(&[spec("other", KeyType::U8, Merge::Block)]).unwrap();
    registry.unregister(&name("other"), false).unwrap();
    registry.register(&spec("other", KeyType::U8, Merge::Block)).unwrap();
    drop(keys);
    assert_eq!(registry.list().unwrap().len(), 3);
}
