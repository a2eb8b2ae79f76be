//! The policies that are shown in documents, and those of the repository, are good ones.

use std::{fs, path::Path};

use packet_traits_policy::{
    check::{CheckOptions, Files, Loader, Texts, check},
    emit::{COUNTERS_MAX, GENEVE_OPTIONS_ASKED_MAX, RULES_MAX},
    field::{EXTENSION_HEADERS_MAX, OFFSET_MAX},
    policy::{BLOCKS_MAX, COUNTED_VALUES_MAX, LOG_TEXT_LEN_MAX},
};

const README: &str = include_str!("../../../README.md");
const REFERENCE: &str = include_str!("../../../docs/policy.md");
const LIMITS: &str = include_str!("../../../docs/limits.md");
const HEADER: &str = packet_traits_headers::POLICY.text;

/// Checks a policy; not even a warning may come.
#[track_caller]
fn is_good(path: &Path, loader: &dyn Loader) {
    let said = match check(path, loader, &CheckOptions::default()) {
        Ok(checked) if checked.warnings.is_empty() => {
            assert!(!checked.policy.blocks.is_empty(), "{} has no block", path.display());
            return;
        }
        Ok(checked) => checked.warnings.iter().map(|one| one.render(&checked.sources, false)).collect::<String>(),
        Err(rejected) => rejected.diagnostics.iter().map(|one| one.render(&rejected.sources, false)).collect(),
    };
    panic!("{said}");
}

/// What is between two lines, behind a heading.
fn block(text: &str, heading: &str, start: &str, end: &str) -> String {
    let (_, section) = text.split_once(heading).unwrap();
    let (_, block) = section.split_once(start).unwrap();
    block.split_once(end).unwrap().0.to_owned()
}

#[test]
fn the_policy_of_the_readme_is_good() {
    let policy = block(README, "## Write a policy", "```nft\n", "```");
    is_good(Path::new("readme.traits"), &Texts::from_iter([("readme.traits", policy)]));
}

#[test]
fn the_policy_of_the_reference_is_good() {
    let policy = block(REFERENCE, "## An example", "```text\n", "```");
    is_good(Path::new("main.traits"), &Texts::from_iter([("main.traits", policy), ("common.traits", String::new())]));
}

#[test]
fn the_policies_of_the_repository_are_good() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies");
    let policies: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(policies.len() >= 5);
    for policy in policies {
        is_good(&policy, &Files);
    }
}

#[test]
fn documents_and_programs_have_the_limits_of_the_language() {
    let offset = format!("{},{:03} bytes", OFFSET_MAX / 1000, OFFSET_MAX % 1000);
    let headers = format!("{EXTENSION_HEADERS_MAX} extension headers");
    for (name, text) in [("docs/policy.md", REFERENCE), ("docs/limits.md", LIMITS)] {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for limit in [&offset, &headers, "`incomplete drop` in front of"] {
            assert!(text.contains(limit), "{name} does not say: {limit}");
        }
    }
    for (what, limit) in [
        ("blocks of a policy", BLOCKS_MAX.to_string()),
        ("rules of a policy", RULES_MAX.to_string()),
        ("counters with a name", COUNTERS_MAX.to_string()),
        ("values of a counter `by` a field", format!("{},{:03}", COUNTED_VALUES_MAX / 1000, COUNTED_VALUES_MAX % 1000)),
        ("different Geneve options that a block tests", GENEVE_OPTIONS_ASKED_MAX.to_string()),
        ("text of a `log`", format!("{LOG_TEXT_LEN_MAX} bytes")),
    ] {
        assert!(REFERENCE.contains(&format!("| {what} | {limit} |")), "docs/policy.md does not say: {what}: {limit}");
    }
    for limit in [
        format!("#define PT_AT_MAX {OFFSET_MAX:#x}\n"),
        format!("#define PT_EXTENSION_HEADERS_MAX {EXTENSION_HEADERS_MAX}\n"),
    ] {
        assert!(HEADER.contains(&limit), "{limit}");
    }
}
