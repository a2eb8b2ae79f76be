//! `traits up`, `traits down` and `traits status` on a real interface.

mod common;

use std::{path::PathBuf, process::Output};

use common::{Traits, compile_example, text};
use packet_traits_lab::{Family, Pair, recv_numbered, send_numbered, udp_socket};
use serde_json::Value;

/// A registry with the examples' keys, and the receiver of a link to run the command in.
struct Host {
    traits: Traits,
    pair: Pair,
    folder: PathBuf,
}

impl Host {
    fn new(test: &str) -> Option<Host> {
        let traits = Traits::new()?;
        traits.ok("registry create");
        for key in ["tenant u32", "flow_id u64", "rx_ts timestamp --merge keep-first"] {
            traits.ok(&format!("keys add {key}"));
        }
        let folder = std::env::temp_dir().join(format!("traits-up-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Some(Host { traits, pair: Pair::new().unwrap(), folder })
    }

    /// Runs the command in the receiver's namespace.
    fn run(&self, line: &str) -> Output {
        self.pair
            .rx()
            .netns()
            .command(env!("CARGO_BIN_EXE_traits"))
            .arg("--bpffs")
            .arg(self.traits.bpffs.path())
            .args(line.split_whitespace())
            .output()
            .unwrap()
    }

    #[track_caller]
    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{line}");
        text(&output.stdout)
    }

    #[track_caller]
    fn fails(&self, line: &str) -> String {
        let output = self.run(line);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""), "{line}");
        text(&output.stderr)
    }

    fn object(&self, example: &str) -> String {
        compile_example(example, &self.folder).display().to_string()
    }

    fn up(&self) -> Vec<String> {
        let status: Value = serde_json::from_str(&self.ok("status --json")).unwrap();
        let name = |deployment: &Value| deployment["name"].as_str().unwrap().to_owned();
        status["deployments"].as_array().unwrap().iter().map(name).collect()
    }

    /// Whether a datagram gets through to a socket of the receiver.
    fn delivers(&self, port: u16) -> bool {
        let rx = self.pair.rx();
        let receiver = udp_socket(rx.netns(), rx.addr(Family::V4, port)).unwrap();
        receiver.set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
        let sender = udp_socket(self.pair.tx().netns(), self.pair.tx().addr(Family::V4, 0)).unwrap();
        send_numbered(&sender, receiver.local_addr().unwrap(), 0..1, 64).unwrap();
        recv_numbered(&receiver).is_ok()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn what_is_up_outlives_the_command_until_it_is_taken_down() {
    let Some(host) = Host::new("outlives") else { return };
    let classify = host.object("xdp_classify");
    let report: Value = serde_json::from_str(&host.ok(&format!("up {classify} --dev rx0 --json"))).unwrap();
    assert_eq!(report["name"], "xdp_classify");
    let program = &report["programs"][0];
    assert_eq!((&program["hook"], &program["xdp_mode"]), (&"xdp".into(), &"native".into()));

    assert_eq!(host.up(), ["xdp_classify"]);
    assert!(host.ok("status").contains("rx0"));
    assert!(host.traits.fails("keys remove tenant", 1).contains("classify"), "the loaded program holds its keys");
    assert!(host.delivers(5000), "the program lets packets pass");

    assert!(host.ok("down xdp_classify").contains("is down"));
    assert_eq!(host.up(), [""; 0]);
    host.traits.ok("keys remove tenant");
}

#[test]
fn a_name_is_up_once() {
    let Some(host) = Host::new("once") else { return };
    let classify = host.object("xdp_classify");
    host.ok(&format!("up {classify} --dev rx0 --mode generic --name edge"));
    assert!(host.fails(&format!("up {classify} --dev rx0 --name edge")).contains("already up"));
    assert!(host.fails(&format!("up {classify} --dev rx0 --name other")).contains("rx0"), "the interface is taken");
    assert_eq!(host.up(), ["edge"], "the failed attempt left nothing");
    host.ok("down edge");
    assert!(host.fails("down edge").contains("nothing named edge is up"));
}

#[test]
fn netfilter_programs_go_where_they_are_told() {
    let Some(host) = Host::new("netfilter") else { return };
    let drop = host.object("netfilter_drop");
    let places = "--netfilter drop_blocked=ipv4:local-in --netfilter drop_blocked=ipv6:local-in:-5";
    host.ok(&format!("up {drop} {places}"));
    let status = host.ok("status");
    assert!(status.contains("drop_blocked_ipv4_local_in") && status.contains("drop_blocked_ipv6_local_in"), "{status}");
    host.ok("down netfilter_drop");
    let hint = host.fails(&format!("up {drop}"));
    assert!(hint.contains("--netfilter") && hint.contains("drop_blocked"), "{hint}");
}

#[test]
fn what_cannot_be_done_is_said() {
    let Some(host) = Host::new("errors") else { return };
    let classify = host.object("xdp_classify");
    assert!(host.fails(&format!("up {classify}")).contains("--dev INTERFACE"));
    assert!(host.fails(&format!("up {classify} --dev nosuch0")).contains("no interface nosuch0"));
    assert!(host.fails("up /nonexistent.bpf.o --dev rx0").contains("/nonexistent.bpf.o"));
    assert!(host.fails(&format!("up {classify} --dev rx0 --name a.b")).contains("deployment name"));
    host.traits.ok("keys remove tenant");
    assert!(host.fails(&format!("up {classify} --dev rx0")).contains("traits keys add tenant"));
    assert_eq!(host.up(), [""; 0]);
}

#[test]
fn every_example_goes_up_side_by_side_and_down_again() {
    let Some(host) = Host::new("examples") else { return };
    let examples = [
        ("xdp_classify", "--dev rx0"),
        ("tc_priority", "--dev rx0"),
        ("netfilter_drop", "--netfilter drop_blocked=ipv4:pre-routing"),
        ("cgroup_count", ""),
        ("trace_drops", ""),
    ];
    for (example, places) in examples {
        host.ok(&format!("up {} {places}", host.object(example)));
    }
    let mut names = examples.map(|(example, _)| example);
    names.sort_unstable();
    assert_eq!(host.up(), names);
    assert!(host.delivers(5000));
    for (example, _) in examples {
        host.ok(&format!("down {example}"));
    }
    assert_eq!(host.up(), [""; 0]);
}
