//! Objects carry their manifest, and what goes wrong when compiling is said so that it can be mended.

mod common;

use std::{fmt::Write as _, fs, os::unix::fs::PermissionsExt, path::PathBuf};

use common::{Draft, compiler, equal, good, outer};
use packet_traits::{KeyType, Merge};
use packet_traits_lab::{clang, clangs};
use packet_traits_policy::{
    compile::{CompileError, Compiler},
    emit::{COUNTERS_MAX, EmitError, EmitOptions, GENEVE_OPTIONS_ASKED_MAX, KEYS_MAX, RULES_MAX, emit},
    field::FieldKind,
    hook::Hook,
    manifest::{Manifest, ManifestError, SECTION, VERSION},
    policy::{Action, Condition, Type, Verdict},
    random::{self, PolicyOptions, Rng},
    source::Sources,
};

fn draft() -> Draft {
    let mut draft = Draft::new();
    draft.counter("seen", Some(Type::Ipv4));
    draft.interface("eth0");
    draft.block("early", Hook::Xdp);
    draft.rule(
        "ip saddr 10.0.0.1\n  drop",
        equal(outer(FieldKind::Ipv4Source), 0x0a00_0001),
        vec![Action::Verdict(Verdict::Drop)],
    );
    draft
}

#[test]
fn an_object_says_what_the_policy_said() {
    let draft = draft();
    for clang in clangs() {
        let manifest = Manifest::from_object(&draft.compile(clang)).unwrap().unwrap();
        assert_eq!(manifest, draft.emit().manifest);
        assert_eq!(manifest.programs[0].rules[0].text, "ip saddr 10.0.0.1 drop");
        assert_eq!(manifest.counters[0].by.as_deref(), Some("ipv4"));
    }
}

/// The same policy gives the same object on every run, whatever folder the compiler worked in.
#[test]
fn an_object_depends_on_nothing_but_the_policy_and_the_compiler() {
    assert_eq!(draft().compile(clang()), draft().compile(clang()));
}

#[test]
fn another_object_has_no_manifest_and_a_newer_one_is_refused() {
    let object = draft().compile(clang());
    let error = Manifest::from_object(b"no object").unwrap_err();
    assert!(matches!(error, ManifestError::NoObject(_)), "{error}");

    // the version is the first member
    let first = format!("{{\"version\":{VERSION},");
    let at = object.windows(first.len()).position(|bytes| bytes == first.as_bytes()).unwrap();
    let mut newer = object.clone();
    newer[at + 11] = b'9';
    assert!(matches!(Manifest::from_object(&newer), Err(ManifestError::Version { found: 9 })));
    let mut damaged = object.clone();
    damaged[at] = b'x';
    assert!(matches!(Manifest::from_object(&damaged), Err(ManifestError::Damaged(_))));

    let name = object.windows(SECTION.len()).position(|bytes| bytes == SECTION.as_bytes()).unwrap();
    let mut other = object;
    other[name] = b'x';
    assert_eq!(Manifest::from_object(&other).unwrap(), None);
}

#[test]
fn a_compiler_that_is_not_there_is_said_to_be_missing() {
    let compiler = Compiler { clang: PathBuf::from("no-such-clang"), ..compiler(clang()) };
    let error = compiler.compile(&draft().emit()).unwrap_err();
    assert!(matches!(error, CompileError::NoClang { .. }), "{error}");
    assert!(error.to_string().contains("package clang"), "{error}");
}

/// A file that the kernel does not execute, as it is after a bad download.
#[test]
fn a_compiler_that_cannot_be_run_is_named_with_what_the_kernel_says() {
    let program = tempfile::NamedTempFile::new().unwrap();
    let error =
        Compiler { clang: program.path().to_owned(), ..compiler(clang()) }.compile(&draft().emit()).unwrap_err();
    assert!(matches!(error, CompileError::Io { .. }), "{error}");
    let said = format!("running {}: Permission denied", program.path().display());
    assert!(error.to_string().starts_with(&said), "{error}");
}

/// A compiler that cannot find the kernel's headers: it says the same words as clang does then.
#[test]
fn missing_kernel_headers_are_said_to_be_missing() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("clang");
    let said = "policy.bpf.c:3:10: fatal error: 'linux/bpf.h' file not found";
    fs::write(&program, format!("#!/bin/sh\necho \"{said}\" >&2\nexit 1\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let error = Compiler { clang: program, ..compiler(clang()) }.compile(&draft().emit()).unwrap_err();
    assert!(matches!(error, CompileError::NoKernelHeaders { .. }), "{error}");
    assert!(error.to_string().contains("linux-libc-dev"), "{error}");
}

#[test]
fn what_the_compiler_says_is_passed_on() {
    let mut emitted = draft().emit();
    emitted.source.push_str("int unfinished(void) { return nothing; }\n");
    let error = compiler(clang()).compile(&emitted).unwrap_err();
    assert!(matches!(error, CompileError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("use of undeclared identifier 'nothing'"), "{error}");
}

#[test]
fn more_rules_than_the_map_of_hits_has_room_for_are_refused() {
    let mut draft = draft();
    for _ in 0..RULES_MAX {
        draft.plain(Condition::Always, vec![]);
    }
    assert_eq!(refused(&draft), EmitError::Rules(RULES_MAX + 1));
}

#[test]
fn more_counters_keys_and_geneve_options_than_there_can_be_are_refused() {
    let mut draft = draft();
    for number in draft.policy.counters.len()..COUNTERS_MAX {
        draft.counter(&format!("counter{number}"), None);
    }
    for number in 0..KEYS_MAX {
        draft.key(&format!("key{number}"), KeyType::Flag, Merge::Block);
    }
    for kind in 0..GENEVE_OPTIONS_ASKED_MAX {
        let option = FieldKind::GeneveOption { class: 0x0102, kind: kind as u8 };
        draft.plain(equal(outer(option), 1), vec![]);
    }
    draft.emit();

    let last = FieldKind::GeneveOption { class: 0x0103, kind: 0 };
    draft.plain(equal(outer(last), 1), vec![]);
    let options = GENEVE_OPTIONS_ASKED_MAX + 1;
    assert_eq!(refused(&draft), EmitError::GeneveOptions { block: "early".to_owned(), options });
    draft.key("last", KeyType::Flag, Merge::Block);
    assert_eq!(refused(&draft), EmitError::Keys(KEYS_MAX + 1));
    draft.counter("last", None);
    assert_eq!(refused(&draft), EmitError::Counters(COUNTERS_MAX + 1));
}

fn refused(draft: &Draft) -> EmitError {
    let mut sources = Sources::default();
    sources.add("none", "");
    emit(&draft.policy, &sources, &EmitOptions::default()).unwrap_err()
}

/// A block of many rules becomes several functions, of which each has what its rules need and nothing else: the compiler
/// warns of what is not used, and a warning is an error here.
#[test]
fn large_policies_of_every_kind_compile() {
    for (number, hook) in PolicyOptions::everything().hooks.into_iter().enumerate() {
        let options = PolicyOptions { hooks: vec![hook], rules: 300..=500, ..PolicyOptions::default() };
        let policy = random::policy(&mut Rng::with_seed(number as u64), &options);
        let mut sources = Sources::default();
        sources.add("random.traits", String::new());
        let emitted = emit(&policy, &sources, &EmitOptions::default()).unwrap();
        assert!(emitted.source.contains("_rules_1("), "{hook} is in several functions");
        compiler(clang()).compile(&emitted).unwrap_or_else(|error| panic!("{hook}: {error}"));
    }
}

/// What only the last rules need is in their function.
#[test]
fn a_part_has_what_its_rules_need() {
    let mut text = String::from("key k u32\nxdp {\n");
    for number in 0..520 {
        let _ = writeln!(text, "ip saddr 10.0.{}.{} udp dport {} drop", number >> 8, number & 255, number + 1);
    }
    text += "udp dport 9 redirect cpu 0; udp dport 10 redirect xsk; trait k 1 count mine drop }\n";
    let checked = good(&text);
    let emitted = emit(&checked.policy, &checked.sources, &EmitOptions::default()).unwrap();
    assert!(emitted.source.contains("_rules_1("));
    compiler(clang()).compile(&emitted).unwrap();
}
