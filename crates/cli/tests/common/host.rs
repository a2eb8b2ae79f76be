//! A host to run the command on: a registry, and the receiver of a link.

use std::{
    process::{Child, Output, Stdio},
    time::Duration,
};

use packet_traits_lab::{Family, KernelFeature, Pair, recv_numbered, send_numbered, udp_socket};
use serde_json::Value;

use super::{Traits, compile_example, text};

/// An empty registry, and the receiver of a link to run the command in.
pub struct Host {
    pub traits: Traits,
    pub pair: Pair,
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
        Some(Host { traits, pair: Pair::new().unwrap() })
    }

    /// The command in the receiver's namespace.
    pub fn command(&self, line: &str) -> std::process::Command {
        let mut command = self.pair.rx().netns().command(env!("CARGO_BIN_EXE_traits"));
        command.arg("--bpffs").arg(self.traits.bpffs.path()).args(line.split_whitespace());
        command
    }

    /// Starts the command in the receiver's namespace. What it prints can be read from it.
    pub fn start(&self, line: &str) -> Child {
        self.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs the command in the receiver's namespace.
    pub fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{line}");
        text(&output.stdout)
    }

    #[track_caller]
    pub fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(line)).unwrap()
    }

    #[track_caller]
    pub fn fails(&self, line: &str) -> String {
        let output = self.run(line);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""), "{line}");
        text(&output.stderr)
    }

    /// Compiles an example program.
    pub fn object(&self, example: &str) -> String {
        compile_example(example, self.traits.folder.path()).display().to_string()
    }

    /// Names of what is up.
    pub fn up(&self) -> Vec<String> {
        let status = self.json("status --json");
        let name = |deployment: &Value| deployment["name"].as_str().unwrap().to_owned();
        status["deployments"].as_array().unwrap().iter().map(name).collect()
    }

    /// Writes a policy.
    pub fn policy(&self, name: &str, text: &str) -> String {
        self.traits.policy(name, text).display().to_string()
    }

    /// What `traits status` says of what is up under a name.
    pub fn status(&self, name: &str) -> Value {
        self.json(&format!("status {name} --json"))["deployments"][0].take()
    }

    /// The packets of a counter.
    #[track_caller]
    pub fn counter(&self, name: &str, counter: &str) -> u64 {
        let status = self.status(name);
        let counters = status["policy"]["counters"].as_array().unwrap();
        let found = counters.iter().find(|one| one["name"] == counter).unwrap_or_else(|| panic!("{counters:?}"));
        found["packets"].as_u64().unwrap()
    }

    /// Whether a datagram gets through to a socket of the receiver.
    pub fn delivers(&self, port: u16) -> bool {
        let rx = self.pair.rx();
        let receiver = udp_socket(rx.netns(), rx.addr(Family::V4, port)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let sender = udp_socket(self.pair.tx().netns(), self.pair.tx().addr(Family::V4, 0)).unwrap();
        send_numbered(&sender, receiver.local_addr().unwrap(), 0..1, 64).unwrap();
        recv_numbered(&receiver).is_ok()
    }
}
