//! Rules at XDP and TC find a packet's headers whatever the device is and in whatever mode XDP runs there, or are refused.

mod common;

use std::{
    fs::OpenOptions,
    mem::zeroed,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    thread,
    time::{Duration, Instant},
};

use common::{Traits, host::Host, text};
use libbpf_rs::ObjectBuilder;
use packet_traits::attach::{Attachment, XdpMode, xdp};
use packet_traits_lab::{Netns, RECV_TIMEOUT, TunKind, TunPair, clang, send_numbered, skipped, udp_socket};
use serde_json::Value;

/// The port whose datagrams the rule drops.
const PORT: u16 = 7013;

/// Counts what a rule on a header drops, and bytes.
const TC: &str = "tc ingress { udp dport 7013 ip ttl 64 count denied drop }\n";

/// Whether a condition comes to hold in time.
fn soon(holds: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < RECV_TIMEOUT {
        if holds() {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    holds()
}

/// A counter of the policy `edge`: packets and bytes.
fn counted(host: &Host, counter: &str) -> (u64, u64) {
    let status = host.status("edge");
    let all = status["policy"]["counters"].as_array().unwrap();
    let found = all.iter().find(|one| one["name"] == counter).unwrap_or_else(|| panic!("no {counter}: {all:?}"));
    let number = |member: &str| found[member].as_u64().unwrap();
    (number("packets"), number("bytes"))
}

/// Checks that TC ingress drops what comes to the port, and counts the bytes that there are in native mode.
#[track_caller]
fn assert_denied(host: &Host, what: &str) {
    const PAYLOAD: u64 = 64;
    const HEADERS: u64 = 14 + 20 + 8;
    let before = counted(host, "denied");
    assert!(!host.delivers(PORT), "{what}: it gets through");
    assert!(host.delivers(PORT + 1), "{what}: others do not");
    let (packets, bytes) = counted(host, "denied");
    assert_eq!((packets - before.0, bytes - before.1), (1, PAYLOAD + HEADERS), "{what}");
}

#[test]
fn rules_at_tc_hold_behind_xdp_of_any_mode() {
    let Some(host) = Host::new() else { return };
    let edge = host.policy("edge", &format!("key tenant u32\nxdp {{ ip set tenant = 7 }}\n{TC}"));
    for mode in ["native", "generic", "auto"] {
        host.ok(&format!("up {edge} --dev rx0 --mode {mode}"));
        assert_denied(&host, mode);
        host.ok("down edge");
    }
}

#[test]
fn rules_at_tc_hold_on_a_bridge() {
    let Some(host) = Host::new() else { return };
    let rx = host.pair.rx();
    let address = rx.ipv4();
    rx.netns()
        .ip(&format!(
            "link add br0 type bridge\nlink set br0 address {} up\naddr del {address}/24 dev rx0\nlink set rx0 master br0\n\
             addr add {address}/24 dev br0",
            rx.mac()
        ))
        .unwrap();
    let edge = host.policy("edge", &format!("key tenant u32\nxdp {{ ip set tenant = 7 }}\n{TC}"));
    let up = host.json(&format!("up {edge} --dev br0 --json"));
    let modes: Vec<_> = up["programs"].as_array().unwrap().iter().map(|program| &program["xdp_mode"]).collect();
    assert!(modes.contains(&&Value::from("generic")), "{up}");
    assert!(soon(|| host.delivers(PORT + 1)), "the bridge forwards");
    assert_denied(&host, "bridge");
}

/// An XDP program that is not of a policy and takes frames in several buffers, in generic mode.
fn foreign_xdp(traits: &Traits, netns: &Netns, ifindex: u32) -> Attachment {
    let (source, object) = (traits.folder.path().join("frags.bpf.c"), traits.folder.path().join("frags.bpf.o"));
    std::fs::write(
        &source,
        "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n\
         SEC(\"xdp.frags\") int foreign(struct xdp_md *ctx) { return XDP_PASS; }\n",
    )
    .unwrap();
    let output = std::process::Command::new(clang())
        .args(["-O2", "-g", "-target", "bpf", "-c", "-o"])
        .arg(&object)
        .arg(format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH))
        .arg(&source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let loaded = ObjectBuilder::default().open_file(&object).unwrap().load().unwrap();
    let program = loaded.progs().next().unwrap();
    let program = program.as_fd();
    netns.enter(|| xdp::attach(program, ifindex, XdpMode::Generic)).unwrap().0
}

#[test]
fn rules_at_tc_hold_behind_another_program_in_generic_mode() {
    let Some(host) = Host::new() else { return };
    let rx = host.pair.rx();
    let _foreign = foreign_xdp(&host.traits, rx.netns(), rx.ifindex());
    let edge = host.policy("edge", TC);
    host.ok(&format!("up {edge} --dev rx0"));
    assert_denied(&host, "behind another program");
}

/// Two tun interfaces, `rx0` of the receiver in place of its veth.
struct Tun {
    host: Host,
    _pair: TunPair,
}

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 2);

impl Tun {
    fn new() -> Option<Tun> {
        let host = Host::new()?;
        let (rx, tx) = (host.pair.rx().netns(), host.pair.tx().netns());
        let pair = match TunPair::connect([(rx, "tun0"), (tx, "tun0")], TunKind::Tun, false) {
            Ok(pair) => pair,
            Err(error) => {
                skipped(format_args!("there is no tun: {error}"));
                return None;
            }
        };
        for (netns, own, other) in [(rx, NEAR, FAR), (tx, FAR, NEAR)] {
            netns.ip(&format!("addr add {own} peer {other} dev tun0\nlink set tun0 up")).unwrap();
        }
        Some(Tun { host, _pair: pair })
    }

    fn send(&self, from: &Netns, to: Ipv4Addr, port: u16) {
        let own = if to == NEAR { FAR } else { NEAR };
        let sender = udp_socket(from, SocketAddr::from((own, 0))).unwrap();
        send_numbered(&sender, SocketAddr::from((to, port)), 0..1, 64).unwrap();
    }
}

#[test]
fn packets_without_a_link_header_are_taken_apart() {
    const LENGTH: u64 = 20 + 8 + 64;
    let Some(tun) = Tun::new() else { return };
    let host = &tun.host;
    let edge = host.policy(
        "edge",
        "key tenant u32\n\
         xdp { udp dport 7013 ip saddr 10.90.0.2 count at_xdp set tenant = 7\n ether saddr != 00:00:00:00:00:00 count ethernet }\n\
         tc ingress { udp dport 7013 trait tenant 7 count at_ingress\n ip saddr 10.90.0.2 udp dport 7014 count denied drop }\n\
         tc egress { udp dport 7012 count at_egress\n ip version 4 count any }\n",
    );
    for mode in ["generic", "auto"] {
        let up = host.run(&format!("up {edge} --dev tun0 --mode {mode}"));
        let said = text(&up.stderr);
        assert!(
            up.status.success() && said.contains("tun0 have no Ethernet header: rules that test `ether`"),
            "{said}"
        );
        tun.send(host.pair.tx().netns(), NEAR, 7013);
        tun.send(host.pair.tx().netns(), NEAR, 7014);
        tun.send(host.pair.rx().netns(), FAR, 7012);
        let all = || ["at_xdp", "at_ingress", "denied", "at_egress"].map(|counter| counted(host, counter));
        soon(|| all().iter().all(|(packets, _)| *packets > 0));
        assert_eq!(all(), [(1, LENGTH); 4], "{mode}");
        assert_eq!(counted(host, "ethernet").0, 0, "{mode}: there is no such header");
        assert!(counted(host, "any").0 >= 1, "{mode}");
        host.ok("down edge");
    }
}

#[test]
fn a_device_with_another_link_header_is_refused() {
    /// `ARPHRD_INFINIBAND` of include/uapi/linux/if_arp.h.
    const INFINIBAND: libc::c_ulong = 32;
    let Some(host) = Host::new() else { return };
    let rx = host.pair.rx().netns();
    let open = || OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    let device = match rx.enter(open) {
        Ok(device) => device,
        Err(error) => return skipped(format_args!("there is no tun: {error}")),
    };
    // SAFETY: an ifreq is valid when it is all zeroes.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"odd0") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes the ifreq, TUNSETLINK takes a number.
    let made = unsafe {
        [
            libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request),
            libc::ioctl(device.as_raw_fd(), libc::TUNSETLINK, INFINIBAND),
        ]
    };
    assert_eq!(made, [0, 0], "{}", std::io::Error::last_os_error());
    let edge = host.policy("edge", TC);
    let said = host.fails(&format!("up {edge} --dev odd0"));
    assert!(said.contains("odd0") && said.contains("a header of device type 32"), "{said}");
    assert!(host.up().is_empty());
    // rules that look at no header are as good there as anywhere
    let traits_only = host.policy("only", "key tenant u32\ntc ingress { trait tenant 7 count hit drop }\n");
    host.ok(&format!("up {traits_only} --dev odd0"));
}
