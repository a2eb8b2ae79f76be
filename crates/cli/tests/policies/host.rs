//! A registry of the test's own, and the command that brings policies up on an interface.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use packet_traits_lab::{End, KernelFeature, Netns};
use serde_json::Value;

use crate::common::{Traits, text};

/// A registry without keys: policies bring theirs along.
pub struct Host {
    pub traits: Traits,
}

impl Host {
    /// `None` if kernel tests are switched off.
    pub fn new() -> Option<Host> {
        Host::on(&[])
    }

    /// `None`, which is reported, also if the kernel lacks one of these features.
    pub fn on(features: &[KernelFeature]) -> Option<Host> {
        let traits = Traits::on(features)?;
        traits.create_registry("default");
        Some(Host { traits })
    }

    /// A policy of the repository.
    pub fn example(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies").join(name)
    }

    /// The command in a namespace.
    pub fn run(&self, netns: &Netns, arguments: &[&str]) -> Output {
        let mut command = netns.command(env!("CARGO_BIN_EXE_traits"));
        command.arg("--bpffs").arg(self.traits.bpffs.path()).args(arguments).output().unwrap()
    }

    /// Brings a policy up on the interface of `end`.
    #[track_caller]
    pub fn up(&self, end: &End, policy: &Path, options: &[&str]) -> Value {
        let policy = policy.display().to_string();
        let line = [&["up", &policy, "--dev", end.name(), "--json"], options].concat();
        let output = self.run(end.netns(), &line);
        assert!(output.status.success(), "{line:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "", "{line:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The state of a policy that is up.
    #[track_caller]
    pub fn status(&self, name: &str) -> Value {
        self.traits.json(&format!("status {name} --json"))
    }

    /// Packets of a named counter; `by` is the value they were counted under, as it is printed.
    #[track_caller]
    pub fn counted(&self, policy: &str, counter: &str, by: Option<&str>) -> u64 {
        let status = self.status(policy);
        let counters =
            status["deployments"][0]["policy"]["counters"].as_array().unwrap_or_else(|| panic!("{status:#}"));
        let found = counters.iter().find(|one| one["name"] == counter).unwrap_or_else(|| panic!("{status:#}"));
        match by {
            None => found["packets"].as_u64().unwrap_or_else(|| panic!("{found}")),
            Some(by) => {
                let values = found["values"].as_array().unwrap_or_else(|| panic!("{found}"));
                let value = values.iter().find(|one| one["value"] == by);
                value.map_or(0, |one| one["packets"].as_u64().unwrap())
            }
        }
    }

    /// Waits until a counter has `packets`: a packet is counted a moment after it was sent.
    #[track_caller]
    pub fn wait_for(&self, policy: &str, counter: &str, by: Option<&str>, packets: u64) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let counted = self.counted(policy, counter, by);
            if counted == packets {
                return;
            }
            assert!(Instant::now() < deadline, "{counter} by {by:?} counted {counted} packets, not {packets}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Where a program of a policy is pinned that is given to others rather than attached.
    pub fn filter(&self, policy: &str, program: &str) -> PathBuf {
        self.traits.pins(policy).join("filters").join(program)
    }
}

/// Runs a command in a namespace; it must succeed.
#[track_caller]
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; `make test` installs it"));
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}
