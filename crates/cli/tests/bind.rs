//! The command `traits bind`, run as a person or a script runs it.

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use common::{Traits, compile_example, text};
use packet_traits_lab::KernelFeature;
use serde_json::json;

/// A registry with the examples' keys, and a folder for objects.
struct Host {
    traits: Traits,
    folder: PathBuf,
}

impl Host {
    /// `None` if kernel tests are switched off.
    fn new(test: &str) -> Option<Host> {
        let traits = Traits::on(&[KernelFeature::LongMetadata])?;
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bind-{test}.{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        traits.ok("registry create");
        for key in ["flow_id u64", "tenant u32", "rx_ts timestamp --merge keep-first"] {
            traits.ok(&format!("keys add {key}"));
        }
        Some(Host { traits, folder })
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // left behind, it is in the build's own folder
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn what_was_bound_is_shown_with_how_to_load_it() {
    let Some(host) = Host::new("shown") else { return };
    let input = compile_example("xdp_classify", &host.folder).display().to_string();
    let output = host.file("out.o");
    let shown = host.traits.ok(&format!("bind {input} -o {output}"));
    let anchors = host.traits.dir("default").join("anchors").display().to_string();
    for part in [
        format!("bound {input} to registry 'default' as {output}"),
        "KEY  NAME     TYPE       REGION  DISTANCE".to_owned(),
        "1    tenant   u32        flow    ".to_owned(),
        "2    rx_ts    timestamp  packet  ".to_owned(),
        format!("bpftool prog loadall {output} /sys/fs/bpf/NAME map name pt_anchors pinned {anchors}"),
    ] {
        assert!(shown.contains(&part), "no {part:?} in:\n{shown}");
    }
    assert_eq!(fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&output).unwrap().len(), fs::metadata(&input).unwrap().len());
    assert_ne!(fs::read(&output).unwrap(), fs::read(&input).unwrap());
}

#[test]
fn json_has_every_key_and_the_pin_to_share() {
    let Some(host) = Host::new("json") else { return };
    let input = compile_example("tc_priority", &host.folder).display().to_string();
    let output = host.file("out.o");
    let bound = host.traits.json(&format!("bind {input} -o {output} --check --json"));
    let listed = host.traits.json("keys list --json");
    let tenant = &listed["keys"][1];
    assert_eq!(
        bound,
        json!({
            "input": input,
            "output": output,
            "registry": "default",
            "anchors": host.traits.dir("default").join("anchors").display().to_string(),
            "keys": [{
                "name": "tenant",
                "number": 1,
                "type": "u32",
                "region": "flow",
                "size": 4,
                "distance": tenant["distance"],
                "generation": tenant["generation"],
            }],
        })
    );
}

#[test]
fn the_hint_is_a_command_that_works() {
    let Some(host) = Host::new("hint") else { return };
    if Command::new("bpftool").arg("version").output().is_err() {
        packet_traits_lab::skipped("bpftool is not installed");
        return;
    }
    let input = compile_example("cgroup_count", &host.folder).display().to_string();
    let shown = host.traits.ok(&format!("bind {input} -o {}", host.file("out.o")));
    let pin = host.traits.bpffs.path().join("pinned").display().to_string();
    let hint = shown.lines().last().unwrap().trim().replace("/sys/fs/bpf/NAME", &pin);
    let mut words = hint.split_whitespace();
    let loaded = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(loaded.status.success(), "{hint}: {}", text(&loaded.stderr));
    // the registry sees who uses its key
    assert!(host.traits.fails("keys remove tenant", 1).contains("'count'"));
    host.traits.ok("keys remove flow_id");
}

#[test]
fn what_cannot_be_bound_leaves_the_output_alone_and_says_why() {
    let Some(host) = Host::new("refused") else { return };
    let input = compile_example("xdp_classify", &host.folder).display().to_string();
    let output = host.file("out.o");
    fs::write(&output, "as before").unwrap();
    host.traits.ok("keys remove rx_ts");
    for (line, said) in [
        (format!("bind {input} -o {output}"), "traits keys add rx_ts"),
        (format!("--registry lab bind {input} -o {output}"), "there is no registry 'lab'"),
        (format!("bind {output} -o {output}"), "BPF object"),
        (format!("bind {input}.missing -o {output}"), "No such file"),
        (format!("bind {input} -o {}", host.file("no/folder.o")), "traits keys add rx_ts"),
    ] {
        let error = host.traits.fails(&line, 1);
        assert!(error.contains(said), "{line}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert_eq!(fs::read_to_string(&output).unwrap(), "as before");
    host.traits.fails(&format!("bind {input}"), 2);
}

#[test]
fn check_shows_the_verifiers_log_if_asked_and_writes_nothing() {
    let Some(host) = Host::new("check") else { return };
    let source = host.file("bad.bpf.c");
    fs::write(
        &source,
        "#include <linux/bpf.h>\n#include <packet_traits/traits.bpf.h>\nTRAIT_KEY(tenant, __u32);\n\
         SEC(\"xdp\") int bad(struct xdp_md *ctx)\n\
         {\n\ttrait_set(ctx, tenant, 7);\n\treturn *(int *)(long)ctx->data_end;\n}\n\
         char LICENSE[] SEC(\"license\") = \"Dual MIT/GPL\";\n",
    )
    .unwrap();
    let (input, output) = (host.file("bad.bpf.o"), host.file("out.o"));
    let compiled = Command::new(packet_traits_lab::clang())
        .args(["-O2", "-g", "-target", "bpf", "-c", "-o", &input, &source])
        .arg(format!("-I{}", Path::new(env!("CARGO_MANIFEST_DIR")).join("../../include").display()))
        .arg(format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH))
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", text(&compiled.stderr));

    let short = host.traits.fails(&format!("bind {input} -o {output} --check"), 1);
    assert!(short.contains("the verifier refuses program bad") && short.lines().count() == 1, "{short}");
    let long = host.traits.fails(&format!("bind {input} -o {output} --check -v"), 1);
    assert!(long.contains("processed ") && long.lines().count() > 10, "{long}");
    assert!(!Path::new(&output).exists());
    // without --check nobody asks the verifier
    host.traits.ok(&format!("bind {input} -o {output}"));
}
