//! Packets that hide their ports meet the rules on them: in small fragments, and behind many extension headers.

mod common;

use std::{
    net::{TcpListener, UdpSocket},
    time::Duration,
};

use common::host::Host;
use packet_traits_lab::{
    Cgroup, Family, KernelFeature, PacketSocket,
    frame::{ACK, ETHERNET_LEN, Flow, SYN},
    kernel_has_for, udp_socket,
};

const PORT: u16 = 7015;
/// How long nothing must come.
const QUIET: Duration = Duration::from_millis(300);

const IPV4_LEN: usize = 20;

/// An IPv4 frame in fragments that carry `size` bytes each.
fn fragments(frame: &[u8], size: usize, identification: u16) -> Vec<Vec<u8>> {
    let (headers, payload) = frame.split_at(ETHERNET_LEN + IPV4_LEN);
    let parts: Vec<&[u8]> = payload.chunks(size).collect();
    let fragment = |(number, part): (usize, &&[u8])| {
        let mut headers = headers.to_vec();
        let ip = &mut headers[ETHERNET_LEN..];
        let more = if number + 1 < parts.len() { 0x2000 } else { 0 };
        ip[2..4].copy_from_slice(&((IPV4_LEN + part.len()) as u16).to_be_bytes());
        ip[4..6].copy_from_slice(&identification.to_be_bytes());
        ip[6..8].copy_from_slice(&(more | (number * size / 8) as u16).to_be_bytes());
        ip[10..12].fill(0);
        let sum: u32 = ip.as_chunks().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        [&headers, *part].concat()
    };
    parts.iter().enumerate().map(fragment).collect()
}

#[test]
fn a_syn_in_small_fragments_meets_the_rule_on_its_port() {
    let Some(host) = Host::new() else { return };
    let (tx, rx) = (host.pair.tx(), host.pair.rx());
    let _listener = rx.netns().enter(|| TcpListener::bind(rx.addr(Family::V4, PORT))).unwrap();
    let (frames, answers) = (PacketSocket::on(tx).unwrap(), PacketSocket::on(tx).unwrap());
    let mut connection = 0u16;
    let mut is_answered = |size| {
        connection += 1;
        let flow = Flow::between(tx, rx, Family::V4, 40_000 + connection, PORT);
        for fragment in fragments(&flow.tcp(1, 0, SYN, &[]), size, connection) {
            frames.send(&fragment).unwrap();
        }
        let ports = [PORT.to_be_bytes(), flow.src_port.to_be_bytes()].concat();
        answers
            .wait_for(QUIET, |answer| {
                let tcp = answer.bytes.get(ETHERNET_LEN + IPV4_LEN..).unwrap_or_default();
                tcp.starts_with(&ports) && tcp.get(13) == Some(&(SYN | ACK))
            })
            .is_ok()
    };
    for size in [8, 16] {
        assert!(is_answered(size), "in fragments of {size} bytes it arrives");
    }
    for hook in ["xdp", "tc ingress"] {
        let edge = host.policy("edge", &format!("{hook} {{ tcp dport {PORT} count denied drop }}\n"));
        host.ok(&format!("up {edge} --dev rx0"));
        for (packets, size) in [(1, 8), (2, 16), (3, 24)] {
            assert!(!is_answered(size), "{hook}, in fragments of {size} bytes");
            assert_eq!(host.counter("edge", "denied"), packets, "{hook}, in fragments of {size} bytes");
        }
        // those with flags in their first fragment only, and an answer to nobody else
        let edge =
            host.policy("edge", &format!("{hook} {{ tcp dport {PORT} not tcp flags is set count small drop }}\n"));
        host.ok(&format!("up {edge} --dev rx0 --replace"));
        assert!(!is_answered(8) && is_answered(16), "{hook}, without flags");
        let edge = host.policy("edge", &format!("{hook} {{ ip incomplete drop }}\n"));
        host.ok(&format!("up {edge} --dev rx0 --replace"));
        assert!(!is_answered(8) && is_answered(16), "{hook}, incomplete");
        host.ok("down edge");
    }
}

#[test]
fn a_datagram_behind_extension_headers_meets_the_rule_on_its_port() {
    let Some(host) = Host::new() else { return };
    let cgroup = Cgroup::new().unwrap();
    let (tx, rx) = (host.pair.tx(), host.pair.rx());
    tx.netns().ip("link set tx0 mtu 2000").unwrap();
    rx.netns().ip("link set rx0 mtu 2000").unwrap();
    let receiver = cgroup.enter(|| udp_socket(rx.netns(), rx.addr(Family::V6, PORT)).unwrap());
    receiver.set_read_timeout(Some(QUIET)).unwrap();
    let frames = PacketSocket::on(tx).unwrap();
    let flow = Flow::between(tx, rx, Family::V6, 40_000, PORT);
    let is_delivered = |receiver: &UdpSocket, count| {
        frames.send(&flow.udp_behind_options(count, 8, &[7; 8])).unwrap();
        receiver.recv(&mut [0; 64]).is_ok()
    };
    // the last is behind more than rules look through
    let mut counts = vec![1, 7, 12, 100, 182, 183];
    // Linux 7.3 goes through 12 of them (IP6_MAX_EXT_HDRS_CNT in include/net/ipv6.h)
    counts.retain(|count| {
        let delivered = is_delivered(&receiver, *count);
        assert!(delivered || *count > 12, "behind {count} headers it arrives");
        delivered
    });
    let mut hooks = vec!["xdp", "tc ingress", "cgroup ingress"];
    if kernel_has_for(KernelFeature::NetfilterLinks, "netfilter") {
        hooks.extend(["netfilter prerouting priority 5", "netfilter input priority 5"]);
    }
    for hook in hooks {
        let options = match hook.split(' ').next() {
            Some("cgroup") => format!("--cgroup {}", cgroup.path().display()),
            Some("netfilter") => String::new(),
            _ => "--dev rx0".to_owned(),
        };
        let edge = host.policy("edge", &format!("{hook} {{ udp dport {PORT} drop }}\n"));
        host.ok(&format!("up {edge} {options}"));
        for &count in &counts {
            assert_eq!(is_delivered(&receiver, count), count == 183, "{hook}, behind {count} headers");
        }
        let edge = host.policy("edge", &format!("{hook} {{ ip6 incomplete count guarded drop }}\n"));
        host.ok(&format!("up {edge} {options} --replace"));
        for &count in &counts {
            assert_eq!(is_delivered(&receiver, count), count != 183, "{hook}, guarded, behind {count} headers");
        }
        assert_eq!(host.counter("edge", "guarded"), u64::from(counts.contains(&183)), "{hook}");
        host.ok("down edge");
    }
}

/// The driver may give XDP a long packet in several buffers, of which a program sees the first.
#[test]
fn a_datagram_behind_long_extension_headers_meets_the_rule_on_its_port() {
    let Some(host) = Host::new() else { return };
    let (tx, rx) = (host.pair.tx(), host.pair.rx());
    tx.netns().ip("link set tx0 mtu 9000").unwrap();
    rx.netns().ip("link set rx0 mtu 9000").unwrap();
    let receiver = udp_socket(rx.netns(), rx.addr(Family::V6, PORT)).unwrap();
    receiver.set_read_timeout(Some(QUIET)).unwrap();
    let frames = PacketSocket::on(tx).unwrap();
    let flow = Flow::between(tx, rx, Family::V6, 40_000, PORT);
    let is_delivered = |count| {
        frames.send(&flow.udp_behind_options(count, 1800, &[7; 8])).unwrap();
        receiver.recv(&mut [0; 64]).is_ok()
    };
    for count in 0..5 {
        assert!(is_delivered(count), "behind {count} headers it arrives");
    }
    for (hook, mode) in [("xdp", "native"), ("xdp", "generic"), ("tc ingress", "auto")] {
        let edge = host.policy("edge", &format!("{hook} {{ udp dport {PORT} drop }}\n"));
        let mode = if hook == "xdp" { format!("--mode {mode}") } else { String::new() };
        host.ok(&format!("up {edge} --dev rx0 {mode}"));
        for count in 0..5 {
            assert!(!is_delivered(count), "{hook} {mode}, behind {count} headers");
        }
        host.ok("down edge");
    }
}

/// With long headers, ports are read almost as far as a packet can be long, and `incomplete` says where they are not.
#[test]
fn a_datagram_behind_nearly_64_kib_of_extension_headers_meets_the_rules() {
    let Some(host) = Host::new() else { return };
    let cgroup = Cgroup::new().unwrap();
    let (tx, rx) = (host.pair.tx(), host.pair.rx());
    tx.netns().ip("link set tx0 mtu 65535").unwrap();
    rx.netns().ip("link set rx0 mtu 65535").unwrap();
    let receiver = cgroup.enter(|| udp_socket(rx.netns(), rx.addr(Family::V6, PORT)).unwrap());
    receiver.set_read_timeout(Some(QUIET)).unwrap();
    let frames = PacketSocket::on(tx).unwrap();
    let flow = Flow::between(tx, rx, Family::V6, 40_000, PORT);
    let is_delivered = |(count, len)| {
        frames.send(&flow.udp_behind_options(count, len, &[7; 8])).unwrap();
        receiver.recv(&mut [0; 64]).is_ok()
    };
    // number and length of the headers, and whether rules see the port; the last end behind 0xff00 bytes
    let cases = [(15, 2048, true), (16, 2048, true), (17, 2048, true), (31, 2048, true), (32, 2040, false)];
    // Linux 7.3 goes through 12 headers of a packet for itself
    let arrive = is_delivered((16, 2048));
    let mut hooks = vec!["xdp", "tc ingress"];
    if arrive {
        hooks.push("cgroup ingress");
        if kernel_has_for(KernelFeature::NetfilterLinks, "netfilter") {
            hooks.push("netfilter input priority 5");
        }
    }
    for hook in hooks {
        let options = match hook.split(' ').next() {
            Some("cgroup") => format!("--cgroup {}", cgroup.path().display()),
            Some("netfilter") => String::new(),
            _ => "--dev rx0".to_owned(),
        };
        let rules = format!("incomplete count incomplete drop\n udp dport {PORT} count ports drop");
        let edge = host.policy("edge", &format!("{hook} {{\n {rules}\n}}\n"));
        host.ok(&format!("up {edge} {options}"));
        let (mut incomplete, mut ports) = (0, 0);
        for (count, len, is_seen) in cases {
            assert!(!is_delivered((count, len)), "{hook}, behind {count} headers of {len} bytes");
            *if is_seen { &mut ports } else { &mut incomplete } += 1;
            let counted = [host.counter("edge", "incomplete"), host.counter("edge", "ports")];
            assert_eq!(counted, [incomplete, ports], "{hook}, behind {count} headers of {len} bytes");
        }
        host.ok("down edge");
    }
}
