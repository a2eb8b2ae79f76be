//! What is said of bad policies: each `tests/diagnostics/NAME.traits` must be said of what is in `NAME.txt`, exactly.
//!
//! `BLESS=1 cargo test -p packet-traits-policy --test diagnostics` writes the texts again; look at them before you keep
//! them.

use std::{collections::HashMap, fs, path::Path};

use packet_traits_core::{KeyName, KeyType, Layout, Merge, Region};
use packet_traits_policy::{
    check::{CheckOptions, HeldKey, RegistryKeys, Texts, check},
    diagnostic::{Code, Severity},
};

/// A registry with little room, for those policies whose names start with `registry`.
fn registry() -> RegistryKeys {
    let layout = Layout::for_slot_space(24, 8).unwrap();
    let held = |name, key_type: KeyType, merge: Merge, distance| HeldKey {
        name: KeyName::new(name).unwrap(),
        key_type,
        merge,
        slot: layout.slot(merge.region(), key_type.size(), distance).unwrap(),
        holder: "balancer (uid 0)".to_owned(),
    };
    let packet = layout.region_end(Region::Packet);
    RegistryKeys {
        name: Some("edge".to_owned()),
        layout,
        keys: vec![
            held("tenant", KeyType::U16, Merge::Block, 26),
            held("zone", KeyType::U64, Merge::Block, 40),
            held("rx_ts", KeyType::U64, Merge::KeepFirst, packet + 40),
        ],
        longest_metadata: None,
    }
}

/// The registry that Linux before 6.8 has room for, for those policies whose names start with `short`.
fn short_registry() -> RegistryKeys {
    RegistryKeys {
        name: Some("default".to_owned()),
        layout: Layout::default_within(32).unwrap(),
        keys: Vec::new(),
        longest_metadata: Some(32),
    }
}

#[test]
fn bad_policies_are_said_to_be_bad_in_these_words() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/diagnostics");
    let bless = std::env::var_os("BLESS").is_some();
    let files: HashMap<String, Vec<u8>> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "traits"))
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    let texts: Texts = files.iter().map(|(name, text)| (name.clone(), text.clone())).collect();
    let mut said = Vec::new();
    let mut different = Vec::new();
    let mut names: Vec<&String> = files.keys().collect();
    names.sort();
    for name in names {
        let registry = match name.split('_').next() {
            Some("registry") => registry(),
            Some("short") => short_registry(),
            _ => RegistryKeys::default(),
        };
        let (sources, diagnostics) = match check(name.as_ref(), &texts, &CheckOptions { registry }) {
            Ok(checked) => (checked.sources, checked.warnings),
            Err(rejected) => (rejected.sources, rejected.diagnostics),
        };
        said.extend(diagnostics.iter().map(|diagnostic| diagnostic.code));
        let shown: String = diagnostics.iter().map(|diagnostic| diagnostic.render(&sources, false) + "\n\n").collect();
        let expected = folder.join(name).with_extension("txt");
        if bless {
            fs::write(&expected, &shown).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != shown {
            different.push(format!("{name}:\n{shown}"));
        }
    }
    assert!(different.is_empty(), "{}", different.concat());
    for code in Code::ALL {
        assert!(said.contains(code), "no policy here is said to be {}", code.name());
    }
}

#[test]
fn names_of_codes_are_all_different_and_warnings_are_warnings() {
    let mut names: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), Code::ALL.len());
    let warnings =
        [Code::Unreachable, Code::NeverHolds, Code::Repeated, Code::Unused, Code::Misleading, Code::TakenPriority];
    for code in Code::ALL {
        assert_eq!(code.severity() == Severity::Warning, warnings.contains(code));
    }
}
