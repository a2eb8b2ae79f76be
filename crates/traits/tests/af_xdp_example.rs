//! The AF_XDP example (`examples/af_xdp.rs`, with the repository's `examples/bpf/af_xdp_redirect.bpf.c`) prints of
//! every frame just what XDP set on it.

mod common;

use std::{fs, net::Ipv4Addr, path::PathBuf, process::Command};

use common::{
    Keys, Lab, TEST_PORT, compile_with,
    examples::{Folder, Running, binary},
    register, repository,
};
use packet_traits::{KeyType, Layout, Merge, Value, registry::Registry};
use packet_traits_lab::{
    Family, PacketSocket, Pair,
    frame::{Flow, IpPair},
    recv_numbered, send_numbered, udp_socket,
};

const KEYS: Keys = &[
    ("tenant", KeyType::U32, Merge::Block),
    ("flow_id", KeyType::U64, Merge::Block),
    ("rx_ts", KeyType::Timestamp, Merge::KeepFirst),
];

/// Datagrams: each of the example's 64 frames is filled several times.
const DATAGRAMS: u64 = 400;

/// How many are sent before their lines are read.
const BURST: usize = 16;

struct Scene {
    lab: Lab,
    pair: Pair,
    object: PathBuf,
    _folder: Folder,
}

impl Scene {
    fn new() -> Scene {
        let folder = Folder::new();
        let object = folder.path().join("af_xdp_redirect.o");
        fs::write(
            &object,
            compile_with(packet_traits_lab::clang(), &repository("examples/bpf/af_xdp_redirect.bpf.c"), &[]),
        )
        .unwrap();
        Scene { lab: Lab::empty(Layout::DEFAULT), pair: Pair::new().unwrap(), object, _folder: folder }
    }

    /// The example's command, on the receiver's interface.
    fn command(&self, registry: &Registry) -> Command {
        let mut command = self.pair.rx().netns().command(binary("af_xdp"));
        command.arg("--bpffs").arg(self.lab.bpffs().path()).args(["--registry", registry.name().as_str()]);
        command.arg(&self.object).arg(self.pair.rx().name());
        command
    }

    /// Starts the example and waits until it receives.
    fn start(&self, registry: &Registry, options: &[&str]) -> Running {
        let mut example = Running::start(self.command(registry).args(options));
        let receiving = example.lines(1);
        if receiving.is_empty() {
            example.assert_runs();
        }
        assert_eq!(receiving, ["receiving on rx0 queue 0, XDP mode native"]);
        example
    }

    /// A frame of its own length, and what the example says of it but for the time of arrival, which only those with
    /// traits have. Every third one has; a frame of the memory is never filled by one with traits twice in a row.
    fn datagram(&self, number: u64) -> (Vec<u8>, String) {
        let family = if number % 3 == 2 { Family::V6 } else { Family::V4 };
        let port = 1000 + number as u16;
        let mut flow = Flow::between(self.pair.tx(), self.pair.rx(), family, port, TEST_PORT);
        let tenant = number % 256;
        let from = if number.is_multiple_of(3) {
            Ipv4Addr::new(10, tenant as u8, number as u8, 1)
        } else {
            Ipv4Addr::new(192, 0, 2, number as u8)
        };
        if family == Family::V4 {
            flow.ip = IpPair::V4(from, self.pair.rx().ipv4());
        }
        let frame = flow.udp(&vec![7; number as usize]);
        let traits = if number.is_multiple_of(3) {
            let flow_id = u64::from(from.to_bits()) << 16 | u64::from(port);
            format!("tenant={tenant} flow_id={flow_id}")
        } else {
            "none".to_owned()
        };
        let line = format!("{} bytes: {traits}", frame.len());
        (frame, line)
    }

    /// Sends datagrams and checks what is printed of them.
    fn exchange(&self, example: &Running, numbers: std::ops::Range<u64>) {
        let sender = PacketSocket::on(self.pair.tx()).unwrap();
        let (frames, expected): (Vec<_>, Vec<_>) = numbers.map(|number| self.datagram(number)).unzip();
        let mut last = now();
        for (frames, expected) in frames.chunks(BURST).zip(expected.chunks(BURST)) {
            frames.iter().for_each(|frame| sender.send(frame).unwrap());
            let lines = example.lines(frames.len());
            assert_eq!(lines.len(), frames.len(), "{lines:?}");
            for (line, expected) in lines.iter().zip(expected) {
                let (without_time, time) = line.split_once(" rx_ts=").unwrap_or((line, ""));
                assert_eq!((without_time, time.is_empty()), (expected.as_str(), expected.ends_with("none")));
                if !time.is_empty() {
                    let Ok(Value::Timestamp(time)) = Value::parse(KeyType::Timestamp, time) else { panic!("{line}") };
                    assert!((last..=now()).contains(&time), "{line}");
                    last = time;
                }
            }
        }
    }

    /// Whether port [`TEST_PORT`] of the receiver gets datagrams.
    fn assert_delivers(&self, receiver: &std::net::UdpSocket) {
        let sender = udp_socket(self.pair.tx().netns(), self.pair.tx().addr(Family::V4, 0)).unwrap();
        let to = receiver.local_addr().unwrap();
        send_numbered(&sender, to, 5..6, 64).unwrap();
        assert_eq!(recv_numbered(receiver).unwrap(), 5);
    }

    fn receiver(&self, port: u16) -> std::net::UdpSocket {
        udp_socket(self.pair.rx().netns(), self.pair.rx().addr(Family::V4, port)).unwrap()
    }
}

/// Nanoseconds of the clock of timestamps.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) }, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[test]
fn every_frame_is_printed_with_what_xdp_set() {
    if !common::area_enabled() {
        return;
    }
    let scene = Scene::new();
    register(&scene.lab.registry, KEYS);
    let (redirected, other) = (scene.receiver(TEST_PORT), scene.receiver(TEST_PORT + 1));
    let example = scene.start(&scene.lab.registry, &["--frames", &DATAGRAMS.to_string()]);
    scene.exchange(&example, 0..DATAGRAMS - 1);
    scene.assert_delivers(&other);
    scene.exchange(&example, DATAGRAMS - 1..DATAGRAMS);
    example.assert_ends_cleanly();
    scene.assert_delivers(&redirected);
}

#[test]
fn a_signal_ends_it_and_takes_the_program_off_the_interface() {
    if !common::area_enabled() {
        return;
    }
    let scene = Scene::new();
    let registry = scene.lab.another("edge", Layout::new(48, 40).unwrap());
    register(&registry, KEYS);
    let redirected = scene.receiver(TEST_PORT);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let example = scene.start(&registry, &[]);
        scene.exchange(&example, 0..100);
        example.signal(signal);
        example.assert_ends_cleanly();
        scene.assert_delivers(&redirected);
    }
}

#[test]
fn what_is_missing_is_named() {
    if !common::area_enabled() {
        return;
    }
    let scene = Scene::new();
    let registry = &scene.lab.registry;
    let fails = |options: &[&str]| {
        let output = scene.command(registry).args(options).output().unwrap();
        assert_eq!((output.status.code(), output.stdout), (Some(1), Vec::new()));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = fails(&[]);
    assert!(said.starts_with("cannot receive on rx0 queue 0: ") && said.contains("traits keys add tenant"), "{said}");
    register(registry, KEYS);
    let said = fails(&["--queue", "1"]);
    assert!(said.starts_with("cannot receive on rx0 queue 1: ") && said.contains("ethtool -l"), "{said}");
}
