//! `traits check`, run as a person or a script runs it.

mod common;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use common::{Traits, text};
use packet_traits_lab::KernelFeature;
use serde_json::{Value, json};
use tempfile::TempDir;

const GOOD: &str =
    "key tenant u32\nxdp {\n    vxlan vni 1001  set tenant = 7\n}\ntc ingress { trait tenant 7 mark 7 }\n";

/// A folder with a file in it.
fn file(name: &str, text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

/// The command where there is no registry.
fn check(args: &[&str], file: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_traits"));
    command.args(["--bpffs", "/none", "check"]).args(args).arg(file).output().unwrap()
}

#[test]
fn a_good_policy_is_summed_up_in_a_line() {
    let (_folder, path) = file("good.traits", GOOD);
    let output = check(&[], &path);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(text(&output.stdout), format!("{}: 1 key, 2 rules, 2 blocks\n", path.display()));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn mistakes_are_shown_where_they_are_and_fail() {
    let (_folder, path) = file("bad.traits", "xdp {\n    tcp dprot 22 drop\n    ip ttl 300 drop\n}\n");
    let output = check(&[], &path);
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""));
    let path = path.display();
    for part in [
        "error[unknown-word]: expected a test or an action, found `dprot`\n".to_owned(),
        format!("--> {path}:2:9\n"),
        "2 |     tcp dprot 22 drop\n  |         ^^^^^\n".to_owned(),
        "help: did you mean `dport`?\n".to_owned(),
        "error[out-of-range]".to_owned(),
        format!("traits: {path} has 2 errors\n"),
    ] {
        assert!(said.contains(&part), "{part} in:\n{said}");
    }
    assert!(!said.contains('\u{1b}'), "there is no colour where there is no terminal");
}

#[test]
fn warnings_fail_only_if_they_are_denied() {
    let (_folder, path) = file("warned.traits", "xdp {\n    accept\n    drop\n}\n");
    let output = check(&[], &path);
    assert!(text(&output.stderr).contains("warning[unreachable]"));
    assert!(text(&output.stdout).ends_with(": 0 keys, 2 rules, 1 block\n"));
    assert_eq!(output.status.code(), Some(0));

    let output = check(&["--deny-warnings"], &path);
    assert!(text(&output.stderr).ends_with("has 1 warning, and none is allowed\n"));
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let (_folder, path) = file("includes.traits", "include \"missing.traits\"\n");
    let output = check(&[], &path);
    let missing = path.with_file_name("missing.traits");
    assert!(text(&output.stderr).contains(&format!("cannot read `{}`", missing.display())));
    assert_eq!(output.status.code(), Some(1));

    let output = check(&[], &missing);
    assert!(text(&output.stderr).contains("error[cannot-read]"), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(1));

    let output = Command::new(env!("CARGO_BIN_EXE_traits")).arg("check").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn machines_get_every_file_and_every_place() {
    let (_folder, good) = file("good.traits", GOOD);
    let (_other, bad) = file("bad.traits", "xdp {\n    ip ttl 300 drop\n}\n");
    let output = check(&["--json", bad.to_str().unwrap()], &good);
    assert_eq!(output.status.code(), Some(1));
    let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(checks["good"], false);
    let files = checks["files"].as_array().unwrap();
    assert_eq!(files[1], json!({"file": good, "good": true, "keys": 1, "rules": 2, "blocks": 2, "diagnostics": []}));
    assert_eq!((&files[0]["good"], &files[0]["rules"]), (&json!(false), &Value::Null));
    let place = json!({"file": bad, "line": 2, "column": 5, "end": {"line": 2, "column": 11}});
    let mut related = place.clone();
    related["message"] = json!("a number of 8 bits (u8)");
    assert_eq!(
        files[0]["diagnostics"],
        json!([{
            "severity": "error",
            "code": "out-of-range",
            "message": "`300` is out of range for `ip ttl`",
            "file": bad,
            "line": 2,
            "column": 12,
            "end": {"line": 2, "column": 15},
            "label": "",
            "related": [related],
            "hints": ["it has 8 bits: 0 to 255"],
        }])
    );
}

#[test]
fn keys_must_agree_with_those_of_the_registry() {
    let Some(traits) = Traits::new() else { return };
    let (_folder, path) = file("keys.traits", "key tenant u32\nkey big uuid\n");
    let line = format!("check {}", path.display());
    assert!(traits.ok(&line).ends_with(": 2 keys, 0 rules, 0 blocks\n"));

    traits.ok("registry create --flow 32 --packet 0");
    traits.ok("keys add tenant u16");
    let said = traits.fails(&line, 1);
    for part in [
        "key `tenant` is held as u16, block in registry `default`, not as u32, block",
        "key `big` does not fit",
        "tenant u16",
    ] {
        assert!(said.contains(part), "{part} in:\n{said}");
    }
    traits.create_registry("lab");
    if KernelFeature::LongMetadata.is_here() {
        traits.ok(&format!("--registry lab {line}"));
    } else {
        assert!(traits.fails(&format!("--registry lab {line}"), 1).contains("key `big` does not fit"));
    }
}

#[test]
fn a_check_that_ends_early_says_so() {
    let rule = "    length 010 count\n";
    let last = |text: &str| {
        let (_folder, path) = file("long.traits", text);
        let said = text_of_last_line(&check(&[], &path));
        said.replace(&path.display().to_string(), "FILE")
    };
    let ended = "a check ends after 100 errors and warnings";
    let warnings = format!("xdp {{\n{}    trait nobody 1 drop\n}}\n", rule.repeat(120));
    assert_eq!(last(&warnings), format!("traits: FILE has at least 1 error: {ended}"));
    let errors = format!("xdp {{\n{}}}\n", "    trait nobody 1 drop\n".repeat(120));
    assert_eq!(last(&errors), format!("traits: FILE has at least 100 errors: {ended}"));
    let errors = format!("xdp {{\n{}}}\n", "    trait nobody 1 drop\n".repeat(99));
    assert_eq!(last(&errors), "traits: FILE has 99 errors");
}

/// What the command ends with.
fn text_of_last_line(output: &Output) -> String {
    text(&output.stderr).lines().last().unwrap_or_default().to_owned()
}
