//! Finding loaded programs, and refusing to take keys away from them.

use std::{
    thread,
    time::{Duration, SystemTime},
};

use packet_traits::{Hint, KeyType, Merge, registry::RegistryError};

use super::{bound_program::BoundProgram, name, options, registry, registry_name, spec};

#[test]
fn a_key_of_a_loaded_program_is_not_given_up() {
    let Some((_bpffs, registry)) = registry(48, 48) else { return };
    let tenant = registry.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap();
    registry.register(&spec("unused", KeyType::U32, Merge::Block)).unwrap();
    assert_eq!(registry.programs().unwrap(), []);

    let program = BoundProgram::load(&registry, &[&tenant], None);
    let found = registry.programs().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].name.as_str(), found[0].keys), (program.name, tenant.key.bit()));
    let age = SystemTime::now().duration_since(found[0].loaded_at()).unwrap_or_default();
    assert!(age < Duration::from_secs(60), "loaded {age:?} ago");

    let error = registry.unregister(&name("tenant"), false).unwrap_err();
    assert_eq!(error.errno(), libc::EBUSY);
    let RegistryError::KeyInUse { programs, .. } = &error else { panic!("{error}") };
    assert_eq!(*programs, found);
    let text = error.to_string();
    for part in ["'tenant'", program.name, &found[0].id.to_string(), &found[0].tag_hex()] {
        assert!(text.contains(part), "{part} in: {text}");
    }
    assert_eq!(error.hints(), [Hint::Force]);
    registry.unregister(&name("unused"), false).unwrap();
    assert!(registry.still_valid(&[(tenant.key.number(), tenant.generation)]).unwrap());

    drop(program);
    // with programs of other tests it may be held by those that look through all
    registry.unregister(&name("tenant"), false).unwrap();
    assert_eq!(registry.programs().unwrap(), []);
}

#[test]
fn a_program_that_is_only_looked_at_is_not_a_user() {
    let Some((bpffs, registry)) = registry(48, 48) else { return };
    let tenant = registry.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap();
    // closed while another process, which lists programs, holds it
    let closed = || {
        let held = BoundProgram::load(&registry, &[&tenant], None).held();
        assert_eq!(registry.programs().unwrap().len(), 1);
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            drop(held);
        })
    };
    let looking = closed();
    registry.unregister(&name("tenant"), false).unwrap();
    looking.join().unwrap();
    let looking = closed();
    options(&bpffs).remove(false).unwrap();
    looking.join().unwrap();
}

#[test]
fn a_program_with_the_slot_table_uses_every_key_in_it() {
    let Some((_bpffs, registry)) = registry(48, 48) else { return };
    let inside = registry.register(&spec("inside", KeyType::U32, Merge::Block)).unwrap();
    registry.register(&spec("outside", KeyType::U32, Merge::Block)).unwrap();
    let _program = BoundProgram::load(&registry, &[], Some(inside.key.bit()));
    assert_eq!(registry.unregister(&name("inside"), false).unwrap_err().errno(), libc::EBUSY);
    registry.unregister(&name("outside"), false).unwrap();
}

#[test]
fn a_program_of_an_earlier_generation_uses_nothing() {
    let Some((_bpffs, registry)) = registry(48, 48) else { return };
    let old = registry.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap();
    let _program = BoundProgram::load(&registry, &[&old], None);
    registry.unregister(&name("tenant"), true).unwrap();
    // Take every other number, so that the old one comes back.
    let reborn = (0..64)
        .map(|i| registry.register(&spec(&format!("flag{i}"), KeyType::Flag, Merge::Block)).unwrap())
        .find(|entry| entry.key.number() == old.key.number())
        .unwrap();
    assert_eq!(registry.programs().unwrap()[0].keys, 0);
    registry.unregister(reborn.key.name(), false).unwrap();
}

#[test]
fn programs_of_another_registry_do_not_count() {
    let Some((bpffs, mine)) = registry(48, 48) else { return };
    let other = options(&bpffs).name(registry_name("other")).create().unwrap();
    mine.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap();
    let theirs = other.register(&spec("tenant", KeyType::U32, Merge::Block)).unwrap();
    let _program = BoundProgram::load(&other, &[&theirs], None);
    assert_eq!(mine.programs().unwrap(), []);
    mine.unregister(&name("tenant"), false).unwrap();
    assert_eq!(other.programs().unwrap().len(), 1);
}

#[test]
fn a_registry_with_bound_programs_is_not_removed_unasked() {
    let Some((bpffs, registry)) = registry(48, 48) else { return };
    let program = BoundProgram::load(&registry, &[], None);
    let error = options(&bpffs).remove(false).unwrap_err();
    assert_eq!(error.errno(), libc::EBUSY);
    assert!(error.to_string().contains(program.name), "{error}");
    assert_eq!(options(&bpffs).open().unwrap().id(), registry.id());
    options(&bpffs).remove(true).unwrap();
    assert!(!registry.dir().exists());
}
