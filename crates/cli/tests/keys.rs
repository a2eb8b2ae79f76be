//! The commands `traits registry` and `traits keys`, run as a person or a script runs them.

mod common;

use std::process::Command;

use common::{Traits, text};
use packet_traits_lab::{KernelFeature, kernel_has_for};
use serde_json::{Value, json};

/// The names of an object's members.
fn members(value: &Value) -> Vec<&str> {
    let mut members: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    members
}

#[test]
fn a_registry_is_created_shown_and_removed() {
    let Some(traits) = Traits::on(&[KernelFeature::LongMetadata]) else { return };
    assert!(traits.fails("registry show", 1).contains("create it with `traits registry create default`"));
    assert!(traits.ok("registry create --flow 56 --packet 48").contains("created registry 'default'"));
    assert!(traits.fails("registry create", 1).contains("already exists"));
    traits.ok("keys add tenant u32");
    traits.ok("keys add flow_id u64 --merge keep-first");
    traits.ok("keys add seen flag");

    let shown = traits.ok("registry show");
    for row in [
        "packet  104-97  free",
        "packet  96-89   flow_id (u64)",
        "packet  88-57   footer",
        "flow    56-29   free",
        "flow    28-25   tenant (u32)",
        "flow    24-1    footer",
        "in the footers only: seen",
        "headroom  none seen yet",
        "No programs are bound.",
    ] {
        assert!(shown.contains(row), "{row} in:\n{shown}");
    }

    let shown = traits.json("registry show --json");
    assert_eq!(
        members(&shown),
        ["anchors", "area_len", "created_at", "dir", "id", "keys", "programs", "regions", "registry"]
    );
    assert_eq!(
        shown["regions"],
        json!([
            {"region": "flow", "len": 56, "footer": 24, "used": 4, "free": 28},
            {"region": "packet", "len": 48, "footer": 32, "used": 8, "free": 8},
        ])
    );
    assert_eq!((&shown["registry"], &shown["area_len"]), (&json!("default"), &json!(104)));
    assert_eq!(shown["keys"].as_array().unwrap().len(), 3);
    assert_eq!(shown["programs"], json!([]));

    assert!(traits.ok("registry remove").contains("removed registry 'default'"));
    assert!(!traits.dir("default").exists());
}

#[test]
fn keys_are_added_listed_and_removed() {
    let Some(traits) = Traits::on(&[KernelFeature::LongMetadata]) else { return };
    traits.ok("registry create");
    assert_eq!(traits.ok("keys list"), "registry 'default' has no keys\n");
    let added = traits.json("keys add tenant u32 --description pays --json");
    assert_eq!(
        members(&added),
        [
            "description",
            "distance",
            "generation",
            "merge",
            "name",
            "number",
            "owner",
            "region",
            "registered_at",
            "size",
            "type"
        ]
    );
    for (member, value) in [
        ("name", json!("tenant")),
        ("number", json!(0)),
        ("type", json!("u32")),
        ("merge", json!("block")),
        ("region", json!("flow")),
        ("size", json!(4)),
        ("distance", json!(28)),
        ("description", json!("pays")),
        ("owner", json!({"comm": "traits", "uid": 0})),
    ] {
        assert_eq!(added[member], value, "{member}");
    }
    assert_eq!(traits.json("keys add tenant u32 --json"), added);
    assert_eq!(
        traits.ok("keys add rx_ts timestamp --merge keep-first"),
        "rx_ts: key 1, timestamp in the packet region, 104 bytes before the packet data\n"
    );

    let list = traits.ok("keys list");
    assert!(list.starts_with("KEY  NAME    TYPE       MERGE       SINCE"), "{list}");
    assert!(list.lines().nth(1).unwrap().starts_with("0    tenant  u32        block"), "{list}");
    assert!(list.lines().nth(1).unwrap().ends_with("traits (uid 0)  pays"), "{list}");
    let list = traits.json("keys list --json");
    assert_eq!((&list["registry"], &list["keys"][0]), (&json!("default"), &added));

    let refused = traits.fails("keys add tenant u64", 1);
    assert!(refused.contains("held as u32, block by traits (uid 0)"), "{refused}");
    assert_eq!(traits.json("keys remove tenant --json"), added);
    assert!(traits.fails("keys remove tenant", 1).contains("has no key 'tenant'"));
}

#[test]
fn another_registry_is_chosen_by_name() {
    let Some(traits) = Traits::new() else { return };
    traits.create_registry("lab");
    traits.ok("--registry lab keys add tenant u32");
    traits.ok("keys add other u32 --registry lab");
    assert_eq!(traits.json("keys list --json --registry lab")["keys"].as_array().unwrap().len(), 2);
    assert_eq!(traits.json("registry show lab --json")["registry"], json!("lab"));
    assert!(traits.fails("keys list", 1).contains("no registry 'default'"));
    assert_eq!(
        traits.json("registry remove lab --json"),
        json!({"registry": "lab", "dir": traits.dir("lab"), "removed": true})
    );
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    let Some(traits) = Traits::new() else { return };
    for (line, said) in [
        ("", "Usage"),
        ("keys add Tenant u32", "starts with a letter from a to z"),
        ("keys add tenant u24", "expected flag, u8"),
        ("keys add tenant u32 --merge sum", "block, keep-first or discard"),
        ("registry create a.b", "the name of a registry"),
        ("registry create --flow 20", "multiple of 8"),
        ("registry create --flow 200 --packet 104", "the kernel allows 252"),
    ] {
        let error = traits.fails(line, 2);
        assert!(error.contains(said), "{line}: {error}");
    }
    if !kernel_has_for(KernelFeature::LongMetadata, "areas that few drivers have room for") {
        let error = traits.fails("registry create --flow 64 --packet 0", 1);
        assert!(error.contains("64 bytes") && error.contains("Linux 6.8"), "{error}");
        return;
    }
    let oversize = "registry create --flow 128 --packet 120";
    assert!(traits.fails(oversize, 1).contains("--allow-oversize"));
    assert!(!traits.dir("default").exists());
    traits.ok(&format!("{oversize} --allow-oversize"));
}

#[test]
fn a_place_that_is_no_bpffs_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_traits"))
        .args(["registry", "create", "--bpffs"])
        .arg(std::env::temp_dir())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("is not on a BPF file system"));
}

#[test]
fn nonces_are_never_printed() {
    let Some(traits) = Traits::new() else { return };
    traits.create_registry("default");
    let registry = packet_traits::registry::Registry::options().bpffs(traits.bpffs.path()).open().unwrap();
    let nonces = registry.nonces();
    for line in ["registry show", "registry show --json", "-vv keys list", "-vv registry show --json"] {
        let output = traits.run(line);
        let all = text(&output.stdout) + &text(&output.stderr);
        let [tag, check] = [nonces.tag_keys(), nonces.check_keys()];
        for nonce in [nonces.flow, nonces.packet, tag[0], tag[1], check[0], check[1]] {
            for form in [format!("{nonce}"), format!("{nonce:x}"), format!("{nonce:X}")] {
                assert!(!all.contains(&form), "{line} prints a nonce");
            }
        }
    }
}

#[test]
fn every_command_has_help_with_examples() {
    for line in ["", "registry create", "registry show", "registry remove", "keys add", "keys list", "keys remove"] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_traits")).args(line.split_whitespace()).arg("--help").output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        let help = text(&output.stdout);
        assert!(help.contains("Examples:\n  traits "), "{line}: {help}");
        assert!(line.is_empty() || help.contains("docs/json.md"), "{line}: {help}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let Some(traits) = Traits::new() else { return };
    traits.create_registry("default");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_traits"))
        .args(["registry", "show", "--bpffs"])
        .arg(traits.bpffs.path())
        .stdout(writer)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}
