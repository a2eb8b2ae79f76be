//! `traits explain` beside the kernel: the same packets meet the same blocks, with the same lengths.

mod common;

use std::{net::Ipv6Addr, process::Command, thread, time::Duration};

use common::{Traits, host::Host, soon, text};
use packet_traits_lab::{
    Cgroup, Chain, End, Family, KernelFeature, Netns, PacketSocket,
    frame::{ETHERNET_LEN, Flow, with_vlan},
    udp_socket,
};
use serde_json::Value;

const PORT: u16 = 7016;
/// How long a packet may take from XDP to a socket.
const TRAVEL: Duration = Duration::from_millis(50);

/// The blocks that are compared, and the counter of each.
const IN: [(&str, &str); 6] = [
    ("xdp", "at_xdp"),
    ("tc ingress", "at_ingress"),
    ("netfilter prerouting priority -450", "at_early"),
    ("netfilter prerouting priority 5", "at_prerouting"),
    ("netfilter input priority 5", "at_input"),
    ("netfilter forward priority 5", "at_forward"),
];
const FORWARD: [(&str, &str); 6] = [
    ("xdp", "at_xdp"),
    ("tc ingress", "at_ingress"),
    ("netfilter prerouting priority 5", "at_prerouting"),
    ("netfilter forward priority 5", "at_forward"),
    ("netfilter postrouting priority 5", "at_postrouting"),
    ("tc egress", "at_egress"),
];

/// A policy with these blocks, each of which counts packets of which this holds.
fn counting(blocks: &[(&str, &str)], condition: &str) -> String {
    blocks.iter().map(|(hook, counter)| format!("{hook} {{ {condition} count {counter} }}\n")).collect()
}

/// The command in a network namespace.
struct Place<'a> {
    traits: &'a Traits,
    netns: &'a Netns,
}

impl Place<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.netns.command(env!("CARGO_BIN_EXE_traits"));
        command.arg("--bpffs").arg(self.traits.bpffs.path()).args(arguments);
        command
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{arguments:?}");
        text(&output.stdout)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    /// Packets and bytes of these counters.
    fn counts(&self, blocks: &[(&str, &str)]) -> Vec<(u64, u64)> {
        let status = self.json(&["status", "--json"]);
        let deployments = status["deployments"].as_array().unwrap().iter();
        let counters: Vec<_> = deployments.flat_map(|up| up["policy"]["counters"].as_array().unwrap()).collect();
        let count = |name: &str| {
            let counter = counters.iter().find(|counter| counter["name"] == name).unwrap();
            (counter["packets"].as_u64().unwrap(), counter["bytes"].as_u64().unwrap())
        };
        blocks.iter().map(|(_, counter)| count(counter)).collect()
    }

    /// Sends a frame from another namespace, and compares where it is counted with what is explained.
    fn compare(&self, from: &End, interface: &str, policy: &str, blocks: &[(&str, &str)], name: &str, frame: &[u8]) {
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        let said = self.json(&["explain", policy, "--packet", &hex, "--iif", interface, "--json"]);
        let said = &said["packets"][0];
        let explained = blocks.iter().map(|(hook, counter)| {
            let block = said["blocks"].as_array().unwrap().iter().find(|block| block["hook"] == *hook).unwrap();
            let counted = block["counted"].as_array().unwrap().iter().any(|one| one["counter"] == *counter);
            if counted { (1, block["length"].as_u64().unwrap()) } else { (0, 0) }
        });
        let explained: Vec<(u64, u64)> = explained.collect();
        let before = self.counts(blocks);
        PacketSocket::on(from).unwrap().send(frame).unwrap();
        soon("it comes to XDP", || self.counts(blocks)[0].0 > before[0].0);
        thread::sleep(TRAVEL);
        let after = self.counts(blocks);
        let counted: Vec<(u64, u64)> =
            after.iter().zip(&before).map(|(after, before)| (after.0 - before.0, after.1 - before.1)).collect();
        assert_eq!(explained, counted, "{name}, at {blocks:?}: {said:#}");
    }
}

/// A frame whose IPv4 header is changed, and has a right checksum then.
fn with_header(frame: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let header = &mut frame[ETHERNET_LEN..][..20];
    change(header);
    header[10..12].fill(0);
    let sum: u32 = header.as_chunks().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame
}

fn changed(frame: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut frame = frame.to_vec();
    change(&mut frame);
    frame
}

#[test]
fn received_packets_meet_the_blocks_that_are_explained() {
    let Some(host) = Host::on(&[KernelFeature::NetfilterLinks]) else { return };
    let (tx, rx) = (host.pair.tx(), host.pair.rx());
    let policy = host.policy("edge", &counting(&IN, ""));
    host.ok(&format!("up {policy} --dev rx0"));
    let place = Place { traits: &host.traits, netns: rx.netns() };

    let v4 = Flow::between(tx, rx, Family::V4, 40_000, PORT).udp(&[7; 16]);
    let v6 = Flow::between(tx, rx, Family::V6, 40_000, PORT).udp(&[7; 16]);
    let to = |address: [u8; 4]| with_header(&v4, |ip| ip[16..20].copy_from_slice(&address));
    let from = |address: [u8; 4]| with_header(&v4, |ip| ip[12..16].copy_from_slice(&address));
    // RFC 8200 section 4.5: in front of the datagram, which is the first part of more
    let v6_fragment = {
        let (headers, datagram) = v6.split_at(ETHERNET_LEN + 40);
        let mut headers = headers.to_vec();
        headers[ETHERNET_LEN + 5] += 8;
        headers[ETHERNET_LEN + 6] = 44;
        [&headers, &[17, 0, 0, 1, 0, 0, 0, 9][..], datagram].concat()
    };
    let cases = [
        ("IPv4", v4.clone()),
        ("IPv4 with padding", [&v4[..], &[7; 18]].concat()),
        ("a bad checksum", changed(&v4, |frame| frame[ETHERNET_LEN + 10] ^= 1)),
        ("version 5", with_header(&v4, |ip| ip[0] = 0x55)),
        ("a header of 16 bytes", with_header(&v4, |ip| ip[0] = 0x44)),
        ("a total length that is too long", with_header(&v4, |ip| ip[3] += 1)),
        ("a total length that is too short", with_header(&v4, |ip| ip[3] = 19)),
        ("for another MAC address", changed(&v4, |frame| frame[5] ^= 1)),
        ("for a group of hosts", changed(&v4, |frame| frame[0] |= 1)),
        ("in a VLAN", with_vlan(&v4, 100, 0)),
        ("with a priority", with_vlan(&v4, 0, 5)),
        ("a first fragment", with_header(&v4, |ip| ip[6..8].copy_from_slice(&[0x20, 0]))),
        ("a later fragment", with_header(&v4, |ip| ip[6..8].copy_from_slice(&[0, 9]))),
        ("from a loopback address", from([127, 0, 0, 1])),
        ("from a multicast address", from([224, 0, 0, 1])),
        ("from the receiver itself", from(rx.ipv4().octets())),
        ("from nobody", from([0; 4])),
        ("from network 0", from([0, 0, 0, 1])),
        ("to nobody", to([0; 4])),
        ("to everybody", to([255; 4])),
        ("for another host", to([10, 200, 0, 1])),
        ("IPv6", v6.clone()),
        ("IPv6 with padding", [&v6[..], &[7; 5]].concat()),
        ("version 4 in IPv6", changed(&v6, |frame| frame[ETHERNET_LEN] = 0x45)),
        ("a payload length that is too long", changed(&v6, |frame| frame[ETHERNET_LEN + 5] += 1)),
        ("a shorter payload length", changed(&v6, |frame| frame[ETHERNET_LEN + 5] -= 8)),
        ("from IPv6 multicast", changed(&v6, |frame| frame[ETHERNET_LEN + 8] = 0xff)),
        ("an IPv6 fragment, which input sees", v6_fragment),
        ("not IP", changed(&v4, |frame| frame[12..14].copy_from_slice(&[0x88, 0xb5]))),
    ];
    for (name, frame) in cases {
        place.compare(tx, rx.name(), &policy, &IN, name, &frame);
    }
}

#[test]
fn forwarded_packets_meet_the_blocks_that_are_explained() {
    let Some(traits) = Traits::on(&[KernelFeature::NetfilterLinks]) else { return };
    traits.create_registry("default");
    let chain = Chain::new().unwrap();
    let (client, router) = (chain.client(), chain.router_in());
    let place = Place { traits: &traits, netns: router.netns() };
    // not what answers to them
    let condition = format!("udp dport {PORT}");
    let older = ("netfilter postrouting priority 6", "older");
    let near = counting(&FORWARD[..5], &condition) + &counting(&[older], &format!("{condition} and ip ttl 63"));
    let far = counting(&FORWARD[5..], &condition);
    let blocks = [&FORWARD[..], &[older]].concat();
    for (name, policy, device) in [("near", &near, "rt0"), ("far", &far, "rt1")] {
        place.ok(&["up", &traits.policy(name, policy).display().to_string(), "--dev", device]);
    }
    let policy = traits.policy("both", &(near + &far)).display().to_string();

    let flow = |family| Flow { dst_mac: router.mac(), ..Flow::between(client, chain.server(), family, 40_000, PORT) };
    let (v4, v6) = (flow(Family::V4).udp(&[7; 16]), flow(Family::V6).udp(&[7; 16]));
    let cases = [
        ("IPv4", v4.clone()),
        ("IPv4 with padding", [&v4[..], &[7; 18]].concat()),
        ("a bad checksum", changed(&v4, |frame| frame[ETHERNET_LEN + 10] ^= 1)),
        ("at the end of its life", with_header(&v4, |ip| ip[8] = 1)),
        ("for a group of hosts", changed(&v4, |frame| frame[0] |= 1)),
        ("a fragment", with_header(&v4, |ip| ip[6..8].copy_from_slice(&[0x20, 0]))),
        ("IPv6 with padding", [&v6[..], &[7; 5]].concat()),
        ("IPv6 at the end of its life", changed(&v6, |frame| frame[ETHERNET_LEN + 7] = 1)),
    ];
    for (name, frame) in cases {
        place.compare(client, router.name(), &policy, &blocks, name, &frame);
    }
    // these do not go out by the other interface; a link-local address brings its route
    router.netns().ip(&format!("address add fe80::1/64 dev {} nodad", router.name())).unwrap();
    let between = |source: Ipv6Addr, destination: Ipv6Addr| {
        changed(&v6, |frame| {
            frame[ETHERNET_LEN + 8..][..16].copy_from_slice(&source.octets());
            frame[ETHERNET_LEN + 24..][..16].copy_from_slice(&destination.octets());
        })
    };
    let link_local = |host| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host);
    let network = |address: Ipv6Addr| Ipv6Addr::from_bits(address.to_bits() >> 64 << 64);
    for (name, frame) in [
        ("between link-local addresses that are not the host's", between(link_local(0x77), link_local(0x99))),
        ("from a link-local address to another host", between(link_local(0x77), chain.server().ipv6())),
        ("to the routers of a network", between(client.ipv6(), network(router.ipv6()))),
        ("to the routers of another network", between(client.ipv6(), network(chain.router_out().ipv6()))),
        ("to the routers of the link", between(client.ipv6(), link_local(0))),
    ] {
        place.compare(client, router.name(), &policy, &FORWARD[..5], name, &frame);
    }
}

#[test]
fn cgroup_egress_is_behind_postrouting() {
    let Some(host) = Host::on(&[KernelFeature::NetfilterLinks]) else { return };
    let cgroup = Cgroup::new().unwrap();
    let (tx, rx) = (host.pair.tx(), host.pair.rx());
    let sender = cgroup.enter(|| udp_socket(rx.netns(), rx.addr(Family::V4, 0)).unwrap());
    let options = format!("--cgroup {}", cgroup.path().display());
    for (at_postrouting, at_egress, expected) in [("", "drop", (1, 1)), ("drop", "", (1, 0))] {
        let policy = format!(
            "netfilter postrouting priority 5 {{ udp dport {PORT} count post {at_postrouting} }}
             cgroup egress {{ udp dport {PORT} count sent {at_egress} }}"
        );
        let edge = host.policy("edge", &policy);
        host.ok(&format!("up {edge} {options}"));
        assert!(sender.send_to(&[7], tx.addr(Family::V4, PORT)).is_err(), "it is dropped");
        assert_eq!((host.counter("edge", "post"), host.counter("edge", "sent")), expected);
        host.ok("down edge");
    }
}
