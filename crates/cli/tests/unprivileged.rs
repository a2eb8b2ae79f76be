//! What commands say to a user who is not root.

mod common;

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use common::{Traits, text};
use packet_traits_lab::Cgroup;

/// `nobody`, or at least not root.
const USER: &str = "65534";

/// Every command that needs root and takes --bpffs, which has a registry.
const COMMANDS: [&str; 19] = [
    "registry create lab",
    "registry show",
    "registry remove",
    "keys add flow_id u64",
    "keys list",
    "keys remove tenant",
    "bind edge.traits -o edge.o",
    "up edge.traits --dev lo",
    "down edge",
    "down edge --keys",
    "status",
    "status edge",
    "log",
    "log edge",
    "trace",
    "sockets attach",
    "sockets detach",
    "sockets status",
    "doctor",
];

/// Those that do not.
const OTHERS: [&str; 3] = ["sockets show 1", "sockets save-syn 1", "demo"];

#[test]
fn every_command_that_needs_root_says_so() {
    let Some(Traits { folder, .. }) = Traits::new() else { return };
    let folder = folder.path();
    fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
    fs::create_dir(folder.join("bpf")).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_traits"), folder.join("traits")).unwrap();
    fs::write(folder.join("edge.traits"), "xdp { accept }\n").unwrap();
    let lines = COMMANDS.iter().map(|line| format!("--bpffs $PWD/bpf {line}"));
    for line in lines.chain(OTHERS.map(str::to_owned)) {
        let script = format!(
            "mount -t bpf -o mode=0700 bpf bpf
             ./traits --bpffs $PWD/bpf registry create >registry 2>&1
             exec setpriv --reuid={USER} --regid={USER} --clear-groups timeout 60 ./traits {line}"
        );
        let mut command = Command::new("unshare");
        let output = command.args(["--mount", "sh", "-ec", &script]).current_dir(folder).output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {said}");
        let says_so = ["run as root", "run it as root", "run `sudo traits ", "needs root"];
        assert!(says_so.iter().any(|words| said.contains(words)), "{line}: {said}");
    }
}

/// Root in a container often lacks these capabilities.
#[test]
fn root_without_capabilities_is_told_what_cannot_be_done() {
    let Some(traits) = Traits::new() else { return };
    traits.create_registry("default");
    traits.ok("keys add tenant u32");
    let cgroup = Cgroup::new().unwrap();
    let attach = format!("sockets attach --cgroup {}", cgroup.path().display());
    for (without, line, said) in [
        ("-sys_admin,-bpf", "registry create lab", "cannot try how much XDP metadata this kernel takes"),
        ("-sys_admin", "keys remove tenant", "cannot list the loaded BPF programs"),
        ("-sys_admin", &attach, "cannot list the BPF links of this host"),
    ] {
        let mut command = Command::new("setpriv");
        command.arg(format!("--bounding-set={without}")).arg(format!("--inh-caps={without}"));
        command.arg(env!("CARGO_BIN_EXE_traits")).arg("--bpffs").arg(traits.bpffs.path());
        let output = command.args(line.split_whitespace()).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}: {error}");
        assert!(error.contains(said) && error.contains("root"), "{line}: {error}");
    }
    assert!(traits.ok("keys list").contains("tenant"));
    assert!(!traits.dir("lab").exists() && !traits.dir("default").join("sockets").exists());
}
