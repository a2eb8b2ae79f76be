//! `traits explain` says which rules match a packet, why, and what it then carries; without privilege, and without loading anything.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use packet_traits_testing::process::text;
use pcap_file::{
    DataLink,
    pcap::{PcapHeader, PcapPacket, PcapWriter},
    pcapng::{
        PcapNgWriter,
        blocks::{enhanced_packet::EnhancedPacketBlock, interface_description::InterfaceDescriptionBlock},
    },
};
use serde_json::{Value, json};
use tempfile::TempDir;

const POLICY: &str = r#"
key tenant u32 "who the packet belongs to"
key seen flag
key rx_ts timestamp keep-first

set bogons ipv4 = { 127.0.0.0/8, 224.0.0.0/4 }
map tenants ipv4 : u32 = { 10.1.0.0/16 : 1, 10.2.0.0/16 : 2, 10.2.3.4 : 9 }

xdp {
    ip saddr @bogons  count bogon  drop
    iif "eth1" and not tcp  log "from the side" sample 1/10
    not trait tenant is set \
        set tenant = ip saddr map @tenants
    vlan id 100  set seen  set rx_ts = time
}

tc ingress {
    vlan id 100 and udp dport 53  mark trait tenant  priority 6
    trait tenant 9  queue 3  accept
}

netfilter ip6 input priority -1 {
    count six
}

netfilter ip input priority 10 {
    tcp dport { 22, 23 } or udp dport 50-60  count denied by trait tenant  drop
}

tc egress {
    oif 4  drop
}
"#;

/// Ethernet, VLAN 100, IPv4 from 10.2.3.4 to 10.4.5.6, UDP from 4660 to 53.
const QUERY: &str = "020000000001020000000002 8100 0064 0800 \
                     4500001c0000000040115ec20a020304 0a040506 1234 0035 0008 0000";

/// The same without a tag.
const UNTAGGED: &str = "020000000001 020000000002 0800 4500001c0000000040115ec20a0203040a040506 1234003500080000";

/// That from 127.0.0.1, in other writing.
const SPOOFED: &str = "0x02:00:00:00:00:01:02:00:00:00:00:02:08:00:45:00:00:1c:00:00:00:00:40:11:ec:c6:7f:00:00:01:0a:04:05:06:\
                       12:34:00:35:00:08:00:00";

/// A policy in a folder of its own.
struct Lab {
    folder: TempDir,
}

impl Lab {
    fn new() -> Lab {
        let lab = Lab { folder: TempDir::new().unwrap() };
        fs::write(lab.path("edge.traits"), POLICY).unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_traits"));
        command.current_dir(&self.folder).args(["--bpffs", "nowhere", "explain", "edge.traits"]).args(arguments);
        command
    }

    /// What is printed if all goes well.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{arguments:?}");
        text(&output.stdout)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// What is said if something is wrong, and the status.
    fn fails(&self, arguments: &[&str]) -> (String, i32) {
        let output = self.command(arguments).output().unwrap();
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        (text(&output.stderr), output.status.code().unwrap())
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.trim_start_matches("0x").chars().filter(char::is_ascii_hexdigit).collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn a_packet_goes_the_way_of_a_received_one_and_keeps_its_traits() {
    let lab = Lab::new();
    let said = lab.ok(&["--packet", QUERY, "--iif", "eth0", "--way", "in"]);
    let time = said.lines().find_map(|line| line.trim().strip_prefix("> set rx_ts = time: ")).unwrap();
    let expected = format!(
        r#"46 bytes
way: in (--way)

xdp (edge.traits:9), 46 bytes
   no    10  ip saddr @bogons count bogon drop
               ip saddr in @bogons: no, it is 10.2.3.4
   no    11  iif "eth1" and not tcp log "from the side" sample 1/10
               iif "eth1": no, it is "eth0"
  yes    12  not trait tenant is set set tenant = ip saddr map @tenants
               trait tenant is set: no, there is none
             > set tenant = ip saddr map @tenants: 9
  yes    14  vlan id 100 set seen set rx_ts = time
               vlan id 100: yes, it is 100
             > set seen
             > set rx_ts = time: {time}
  accept, at the end of the block
  carries tenant = 9, seen = set, rx_ts = {time}

tc ingress (edge.traits:17), 42 bytes
  yes    18  vlan id 100 and udp dport 53 mark trait tenant priority 6
               vlan id 100: yes, it is 100
               udp dport 53: yes, it is 53
             > mark trait tenant: 9
             > priority 6
  yes    19  trait tenant 9 queue 3 accept
               trait tenant 9: yes, it is 9
             > queue 3
             > accept
  accept, by line 19
  carries tenant = 9, seen = set, rx_ts = {time}
  mark 9
  priority 6
  queue 3

netfilter ip6 input priority -1 (edge.traits:22)
  not reached: it is for IPv6 only

netfilter ip input priority 10 (edge.traits:26), 28 bytes
  note: assumes a device for VLAN 100, which is the packet's `iif` from here on
  yes    27  tcp dport {{ 22, 23 }} or udp dport 50-60 count denied by trait tenant drop
               tcp dport in {{ 22, 23 }}: no, there is none
               udp dport 50-60: yes, it is 53
             > count denied by trait tenant: 9
             > drop
  drop, by line 27
  carries tenant = 9, seen = set, rx_ts = {time}

tc egress (edge.traits:30)
  not on the way
"#
    );
    assert_eq!(said, expected);
}

#[test]
fn what_a_machine_reads_says_the_same() {
    let lab = Lab::new();
    let said =
        lab.json(&["--packet", SPOOFED, "--iif", "eth1", "--trait", "tenant=7", "--trait", "seen", "--way", "in"]);
    let packet = &said["packets"][0];
    assert_eq!((&said["file"], &packet["number"], &packet["length"]), (&json!("edge.traits"), &json!(1), &json!(42)));
    assert_eq!((&packet["way"], &packet["way_why"]), (&json!("in"), &json!("--way")));
    let states: Vec<_> = packet["blocks"].as_array().unwrap().iter().map(|block| &block["state"]).collect();
    assert_eq!(states, ["judged", "not reached", "not reached", "not reached", "not on the way"]);
    let behind = &packet["blocks"][1];
    assert_eq!((&behind["reached"], &behind["why_not"]), (&json!(false), &json!("dropped in xdp")));
    assert_eq!((&behind["length"], &behind["verdict"]), (&Value::Null, &Value::Null));
    assert_eq!(
        packet["blocks"][0],
        json!({
            "block": packet["blocks"][0]["block"], "hook": "xdp", "state": "judged", "reached": true, "why_not": null,
            "notes": [], "length": 42,
            "rules": [{
                "number": 0, "file": "edge.traits", "line": 10, "text": "ip saddr @bogons count bogon drop", "holds": true,
                "tests": [{"test": "ip saddr in @bogons", "value": "127.0.0.1", "passed": true}],
                "actions": [
                    {"action": "count bogon", "done": true, "value": null},
                    {"action": "drop", "done": true, "value": null},
                ],
            }],
            "verdict": "drop", "decided_by": 0, "traits": {"tenant": "7", "seen": "set"},
            "mark": null, "priority": null, "queue": null, "counted": [{"counter": "bogon", "by": null}], "logged": [],
        })
    );
}

#[test]
fn one_block_can_be_asked_for() {
    let lab = Lab::new();
    let said = lab.json(&["--packet", SPOOFED, "--hook", "tc egress", "--oif", "4"]);
    let blocks = said["packets"][0]["blocks"].as_array().unwrap();
    assert_eq!((blocks.len(), &blocks[0]["verdict"]), (1, &json!("drop")));
    let name = blocks[0]["block"].as_str().unwrap();
    assert_eq!(lab.json(&["--packet", SPOOFED, "--hook", name, "--oif", "4"]), said);

    let by_hook = lab.json(&["--packet", UNTAGGED, "--hook", "netfilter ip input", "--trait", "tenant=5"]);
    let block = &by_hook["packets"][0]["blocks"][0];
    assert_eq!(block["counted"], json!([{"counter": "denied", "by": "5"}]));

    assert_eq!(by_hook["packets"][0]["way"], "in");

    let logged = lab.json(&["--packet", UNTAGGED, "--hook", "xdp", "--iif", "eth1"]);
    assert_eq!(logged["packets"][0]["blocks"][0]["logged"], json!(["from the side"]));

    let (said, status) = lab.fails(&["--packet", SPOOFED, "--hook", "netfilter"]);
    assert!(status == 1 && said.contains("more than one block"), "{said}");
    let (said, status) = lab.fails(&["--packet", SPOOFED, "--hook", "forward"]);
    assert!(status == 1 && said.contains("no block \"forward\"") && said.contains("(tc egress)"), "{said}");
    let (said, status) = lab.fails(&["--packet", UNTAGGED, "--hook", "tc egress", "--way", "in"]);
    assert!(status == 1 && said.contains("`tc egress` is not on the way \"in\""), "{said}");
}

#[test]
fn captures_of_both_formats_are_read_with_or_without_ethernet_headers() {
    let lab = Lab::new();
    let (query, spoofed, untagged) = (bytes(QUERY), bytes(SPOOFED), bytes(UNTAGGED));

    let pcap = |name: &str, link: DataLink, packets: &[(&[u8], usize)]| {
        let path = lab.path(name);
        let header = PcapHeader { datalink: link, ..PcapHeader::default() };
        let mut writer = PcapWriter::with_header(fs::File::create(&path).unwrap(), header).unwrap();
        for (bytes, length) in packets {
            let packet = PcapPacket::new(Duration::ZERO, *length as u32, bytes);
            writer.write_packet(&packet).unwrap();
        }
        path
    };
    pcap("two.pcap", DataLink::ETHERNET, &[(&query, 46), (&spoofed[..34], 42)]);
    let said = lab.ok(&["--packet", "two.pcap"]);
    assert!(said.starts_with("packet 1 of 2: 46 bytes\n"), "{said}");
    assert!(said.contains("packet 2 of 2: 42 bytes, 34 of them captured and looked at\n"), "{said}");
    let said = lab.json(&["--packet", "two.pcap"]);
    let verdicts: Vec<_> =
        said["packets"].as_array().unwrap().iter().map(|packet| &packet["blocks"][0]["verdict"]).collect();
    assert_eq!(verdicts, ["accept", "drop"]);

    pcap("raw.pcap", DataLink::RAW, &[(&untagged[14..], 28)]);
    let said = lab.json(&["--packet", "raw.pcap", "--trait", "tenant=3", "--way", "in"]);
    let blocks = &said["packets"][0]["blocks"];
    let bare = "the packet is given without a link header; judged as at a device without one, such as tun";
    assert_eq!((&blocks[0]["state"], &blocks[0]["notes"]), (&json!("judged"), &json!([bare])));
    assert_eq!(blocks[0]["length"], 28);
    // by the number that libpcap has for it on Linux
    pcap("libpcap.pcap", DataLink::Unknown(12), &[(&untagged[14..], 28)]);
    let again = lab.json(&["--packet", "libpcap.pcap", "--trait", "tenant=3", "--way", "in"]);
    assert_eq!(again["packets"][0]["blocks"][0]["notes"], json!([bare]));
    assert_eq!((&blocks[3]["verdict"], &blocks[3]["traits"]), (&json!("drop"), &json!({"tenant": "3"})));

    let mut writer = PcapNgWriter::new(fs::File::create(lab.path("mixed.pcapng")).unwrap()).unwrap();
    for (link, number, bytes) in [(DataLink::RAW, 0, &spoofed[14..]), (DataLink::ETHERNET, 1, &spoofed[..])] {
        writer.write_pcapng_block(InterfaceDescriptionBlock { linktype: link, snaplen: 0, options: vec![] }).unwrap();
        let packet = EnhancedPacketBlock {
            interface_id: number,
            original_len: bytes.len() as u32,
            data: bytes.into(),
            timestamp: Duration::ZERO,
            options: vec![],
        };
        writer.write_pcapng_block(packet).unwrap();
    }
    let said = lab.json(&["--packet", "mixed.pcapng"]);
    for packet in [0, 1] {
        assert_eq!(said["packets"][packet]["blocks"][0]["verdict"], "drop");
    }

    pcap("wireless.pcap", DataLink::IEEE802_11, &[(&query, 46)]);
    let (said, status) = lab.fails(&["--packet", "wireless.pcap"]);
    assert!(status == 1 && said.contains("link type 105 (IEEE802_11); captures of Ethernet (1) and raw IP"), "{said}");
    pcap("unheard.pcap", DataLink::Unknown(4000), &[(&query, 46)]);
    let (said, status) = lab.fails(&["--packet", "unheard.pcap"]);
    assert!(status == 1 && said.contains("link type 4000; captures"), "{said}");

    let whole = fs::read(lab.path("two.pcap")).unwrap();
    fs::write(lab.path("cut.pcap"), &whole[..whole.len() - 5]).unwrap();
    let (said, status) = lab.fails(&["--packet", "cut.pcap"]);
    assert!(status == 1 && said.contains("cut.pcap: it is cut short"), "{said}");
}

/// As `tcpdump -s 60` writes it.
#[test]
fn a_packet_of_which_a_part_was_captured_has_its_whole_length() {
    let lab = Lab::with(
        "xdp { length == 454 count whole }\nnetfilter ip input priority 1 { length == 440 count whole }\n\
         netfilter ip6 input priority 1 { accept }\n",
    );
    let mut packet = bytes(QUERY);
    // without its tag, and as long as it says
    packet.drain(12..16);
    packet[16..18].copy_from_slice(&440u16.to_be_bytes());
    packet[24..26].fill(0);
    let sum: u32 = packet[14..34].as_chunks().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[24..26].copy_from_slice(&checksum.to_be_bytes());
    packet.resize(60, 0);
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4u32, 2 | 4 << 16, 0, 0, 60, 1, 0, 0, 60, 454] {
        file.extend(word.to_le_bytes());
    }
    file.extend(&packet);
    fs::write(lab.path("snap.pcap"), file).unwrap();
    let said = lab.json(&["--packet", "snap.pcap", "--way", "in"]);
    let packet = &said["packets"][0];
    assert_eq!((&packet["length"], &packet["captured"]), (&json!(454), &json!(60)));
    for hook in ["xdp", "netfilter ip input priority 1"] {
        assert_eq!(at(packet, hook)["counted"][0]["counter"], "whole", "{hook}: {packet}");
    }
}

#[test]
fn digits_and_captures_come_by_standard_input_too() {
    let lab = Lab::new();
    let feed = |arguments: &[&str], input: &[u8]| -> Output {
        let mut command = lab.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    };
    let given = lab.json(&["--packet", SPOOFED]);
    let read = |input: &[u8], arguments: &[&str]| -> Value {
        let arguments = [&["--packet", "-", "--json"], arguments].concat();
        serde_json::from_slice(&feed(&arguments, input).stdout).unwrap()
    };
    assert_eq!(read(SPOOFED.as_bytes(), &[]), given);
    let behind_ethernet: String = bytes(UNTAGGED)[14..].iter().map(|byte| format!("{byte:02x}\n")).collect();
    let said = read(behind_ethernet.as_bytes(), &["--ip", "--way", "in"]);
    assert_eq!(said["packets"][0]["blocks"][3]["verdict"], "drop");
    let output = feed(&["--packet", "-"], &[0xff, 0xfe]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("standard input: it is neither a pcap or pcapng file nor text"));
}

#[test]
fn what_is_wrong_is_named() {
    let lab = Lab::new();
    for (arguments, status, expected) in [
        (&["--packet", "0a0"][..], 2, "3 hexadecimal digits: two make a byte"),
        (&["--packet", "nothing.pcap"], 1, "reading nothing.pcap"),
        (&["--packet", ""], 2, "it is empty"),
        (&["--packet", SPOOFED, "--trait", "owner=1"], 1, "no key \"owner\"; it has tenant, seen, rx_ts"),
        (&["--packet", SPOOFED, "--trait", "tenant=x"], 1, "--trait tenant=x: not a value of type u32"),
        (&["--packet", SPOOFED, "--trait", "tenant"], 1, "--trait tenant: not a value of type u32"),
    ] {
        let (said, found) = lab.fails(arguments);
        assert!(found == status && said.contains(expected), "{arguments:?}: {found}: {said}");
    }
    fs::write(lab.path("edge.traits"), "xdp {\n  tcp dport foo  drop\n}\n").unwrap();
    let (said, status) = lab.fails(&["--packet", SPOOFED]);
    assert!(status == 1 && said.contains("edge.traits:2"), "{said}");
    assert!(Path::new(&lab.path("edge.traits")).exists());
}

/// A policy with a block at every hook, all of which let packets pass.
const EVERYWHERE: &str = r#"
key tenant u32
tc egress { trait tenant 7  count left }
match tenant_7 { trait tenant 7  accept }
cgroup egress { count sent }
netfilter postrouting priority 2 { ip ttl 63  count older }
netfilter postrouting priority 1 { count post }
netfilter output priority 1 { count output }
netfilter forward priority 1 { ip ttl 63  count older }
cgroup ingress { count got }
netfilter input priority 1 { count input }
netfilter prerouting priority 1 { udp dport 53  count dns }
netfilter prerouting priority -450 { count early }
tc ingress { count ingress }
xdp { set tenant = 7 }
"#;

/// The hooks of blocks in the order they are named in, with what came of them.
fn met(packet: &Value) -> Vec<(&str, &str)> {
    let blocks = packet["blocks"].as_array().unwrap();
    blocks.iter().map(|block| (block["hook"].as_str().unwrap(), block["state"].as_str().unwrap())).collect()
}

/// The hooks of the blocks that have looked at a packet.
fn judged(packet: &Value) -> Vec<&str> {
    met(packet).into_iter().filter(|(_, state)| *state == "judged").map(|(hook, _)| hook).collect()
}

/// What is said of the block at a hook.
fn at<'v>(packet: &'v Value, hook: &str) -> &'v Value {
    packet["blocks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|block| block["hook"] == hook)
        .unwrap_or_else(|| panic!("{packet:#}"))
}

impl Lab {
    fn with(policy: &str) -> Lab {
        let lab = Lab::new();
        fs::write(lab.path("edge.traits"), policy).unwrap();
        lab
    }

    /// What is said of one packet on a way.
    fn on_way(&self, way: &str, packet: &[u8]) -> Value {
        let hex: String = packet.iter().map(|byte| format!("{byte:02x}")).collect();
        self.json(&["--packet", &hex, "--way", way])["packets"][0].take()
    }
}

#[test]
fn each_way_meets_its_blocks_in_order() {
    let lab = Lab::with(EVERYWHERE);
    let packet = bytes(UNTAGGED);
    let early = "netfilter prerouting priority -450";
    let prerouting = "netfilter prerouting priority 1";
    let post = ["netfilter postrouting priority 1", "netfilter postrouting priority 2"];
    let said = lab.on_way("in", &packet);
    let expected = ["xdp", "tc ingress", early, prerouting, "netfilter input priority 1", "cgroup ingress", "match"];
    assert_eq!(judged(&said), expected);
    let others: Vec<_> = met(&said)[expected.len()..].to_vec();
    assert!(others.len() == 6 && others.iter().all(|(_, state)| *state == "not on the way"), "{others:?}");
    assert_eq!(at(&said, "match")["verdict"], "match", "with the trait that it was given");

    let said = lab.on_way("forward", &packet);
    let forward = "netfilter forward priority 1";
    let expected = ["xdp", "tc ingress", early, prerouting, forward, post[0], post[1], "tc egress", "match"];
    assert_eq!(judged(&said), expected);
    for hook in [forward, post[1]] {
        assert_eq!(at(&said, hook)["counted"][0]["counter"], "older", "{hook}");
    }
    assert_eq!(at(&said, "tc egress")["counted"][0]["counter"], "left", "the trait comes that far");
    assert_eq!(at(&said, "cgroup egress")["state"], "not on the way", "a forwarded packet has no socket");

    let said = lab.on_way("out", &packet);
    let expected = ["netfilter output priority 1", post[0], post[1], "cgroup egress", "tc egress", "match"];
    assert_eq!(judged(&said), expected);
    assert_eq!(at(&said, "xdp")["state"], "not on the way");
    assert_eq!(at(&said, post[1])["counted"], json!([]), "it has not passed a router");
}

#[test]
fn a_packet_for_another_host_is_not_dropped_by_input() {
    let lab =
        Lab::with("netfilter input priority 5 { udp dport 53 drop }\nnetfilter forward priority 5 { count on }\n");
    let said = lab.on_way("forward", &bytes(UNTAGGED));
    assert_eq!(
        met(&said),
        [("netfilter forward priority 5", "judged"), ("netfilter input priority 5", "not on the way")]
    );
    // whose these addresses are nobody here knows
    let said = lab.ok(&["--packet", UNTAGGED]);
    let way =
        "way: not known, judged as a received packet: neither 10.2.3.4 nor 10.4.5.6 is an address of this host; use";
    assert!(said.contains(way), "{said}");
    assert_eq!(said.matches("not known: it depends on the packet's way; use --way").count(), 2, "{said}");
    let said = lab.json(&["--packet", UNTAGGED]);
    assert_eq!((&said["packets"][0]["way"], judged(&said["packets"][0])), (&Value::Null, vec![]));
}

#[test]
fn a_loopback_address_says_the_way() {
    let lab = Lab::with(EVERYWHERE);
    let mut packet = [vec![0; 12], bytes(SPOOFED)[12..].to_vec()].concat();
    packet[30..34].copy_from_slice(&[127, 0, 0, 2]);
    packet[24..26].copy_from_slice(&[0x7c, 0xce]);
    let hex: String = packet.iter().map(|byte| format!("{byte:02x}")).collect();
    let said = lab.json(&["--packet", &hex]);
    let packet = &said["packets"][0];
    assert_eq!((&packet["way"], &packet["way_why"]), (&json!("in"), &json!("127.0.0.2 is a loopback address")));
    assert!(judged(packet).contains(&"cgroup ingress"), "{packet:#}");
    assert!(lab.ok(&["--packet", &hex]).contains("way: in (guessed: 127.0.0.2 is a loopback address)\n"));
    let said = lab.json(&["--packet", &hex[28..], "--ip"]);
    assert!(judged(&said["packets"][0]).contains(&"cgroup ingress"), "{said:#}");
}

#[test]
fn a_drop_ends_the_way() {
    let policy = EVERYWHERE.replace("udp dport 53  count dns", "udp dport 53  drop");
    let lab = Lab::with(&policy);
    for (way, before) in [("in", 3), ("forward", 3)] {
        let said = lab.on_way(way, &bytes(UNTAGGED));
        let met = met(&said);
        assert_eq!(met[before], ("netfilter prerouting priority 1", "judged"), "{way}: {met:?}");
        assert_eq!(met[before + 1].1, "not reached", "{way}: {met:?}");
        for block in &said["blocks"].as_array().unwrap()[before + 1..] {
            let expected = match block["state"].as_str().unwrap() {
                "not on the way" => "it is not on the packet's way",
                "judged" => continue, // the match block
                _ => "dropped in netfilter prerouting priority 1",
            };
            assert_eq!(block["why_not"], expected, "{way}");
        }
    }
}

#[test]
fn a_redirect_ends_the_way_unless_nobody_may_take_it() {
    let rest = "tc ingress { count ingress }\n";
    for (redirect, state) in [("5", "not reached"), ("xsk", "not known"), ("cpu 0", "judged")] {
        let lab = Lab::with(&format!("xdp {{ redirect {redirect} }}\n{rest}"));
        let said = lab.on_way("in", &bytes(UNTAGGED));
        assert_eq!(met(&said), [("xdp", "judged"), ("tc ingress", state)], "{redirect}");
    }
}

#[test]
fn padding_ends_with_the_ethernet_header() {
    // no UDP header fits into 24 bytes; what is behind them looks like ports, and like a query's
    let mut packet = bytes(UNTAGGED);
    packet[17] = 20;
    packet[24..26].copy_from_slice(&[0x5e, 0xca]);
    packet.extend([0; 18]);
    let lab = Lab::with(EVERYWHERE);
    for (way, hook) in [("in", "netfilter prerouting priority 1"), ("forward", "netfilter forward priority 1")] {
        let said = lab.on_way(way, &packet);
        assert_eq!(at(&said, "xdp")["length"], 60);
        assert_eq!(at(&said, "tc ingress")["length"], 60);
        assert_eq!(at(&said, hook)["length"], 20, "{way}");
        assert_eq!(at(&said, "netfilter prerouting priority 1")["counted"], json!([]), "the port is padding");
    }
    assert_eq!(at(&lab.on_way("in", &packet), "cgroup ingress")["length"], 20);
    assert_eq!(at(&lab.on_way("forward", &packet), "tc egress")["length"], 34);
    let said = lab.on_way("out", &packet);
    assert_eq!(at(&said, "netfilter output priority 1")["length"], 20);
    assert_eq!(at(&said, "tc egress")["length"], 34);

    let length =
        "key seen flag\nxdp { length > 59  set seen }\nnetfilter input priority 1 { length 20  count short }\n";
    let said = Lab::with(length).on_way("in", &packet);
    let counted: Vec<_> = said["blocks"].as_array().unwrap().iter().map(|block| &block["counted"]).collect();
    assert_eq!(counted, [&json!([]), &json!([{"counter": "short", "by": null}])]);
    assert_eq!(said["blocks"][1]["traits"], json!({"seen": "set"}));
}

#[test]
fn what_the_kernel_drops_before_a_block_is_not_reached() {
    let lab = Lab::with(EVERYWHERE);
    let mut wrong = bytes(UNTAGGED);
    wrong[24] ^= 1;
    for way in ["in", "forward"] {
        let said = lab.on_way(way, &wrong);
        assert_eq!(judged(&said), ["xdp", "tc ingress"], "{way}");
        let block = at(&said, "netfilter prerouting priority 1");
        assert_eq!(block["why_not"], "the kernel drops it before: bad IPv4 checksum (ip_rcv_core)");
        assert_eq!((&block["state"], &block["reached"]), (&json!("not reached"), &json!(false)));
    }
    // a network card may be left to write it
    assert_eq!(judged(&lab.on_way("out", &wrong)).len(), 6);

    let said = lab.on_way("in", &bytes(SPOOFED));
    assert_eq!(judged(&said).last(), Some(&"match"));
    assert!(judged(&said).contains(&"netfilter prerouting priority 1"));
    let why = at(&said, "netfilter input priority 1")["why_not"].as_str().unwrap();
    assert!(why.contains("127.0.0.1 is a loopback address"), "{why}");
}

#[test]
fn fragments_are_put_together_before_sockets() {
    let lab = Lab::with(EVERYWHERE);
    let mut packet = bytes(UNTAGGED);
    packet[20] = 0x20; // more follow
    packet[24..26].copy_from_slice(&[0x3e, 0xc2]);
    let said = lab.on_way("in", &packet);
    let early = at(&said, "netfilter prerouting priority -450");
    assert_eq!((&early["state"], &early["notes"]), (&json!("judged"), &json!([])));
    let note =
        "it is a fragment; with connection tracking, the reassembled packet comes here instead (ipv4_conntrack_defrag)";
    assert_eq!(at(&said, "netfilter prerouting priority 1")["notes"], json!([note]));
    let expected = "it is a fragment; the kernel reassembles the packet before this hook (ip_local_deliver)";
    assert_eq!(at(&said, "netfilter input priority 1")["why_not"], expected);
    let expected =
        "it is a fragment; the kernel reassembles the packet before sockets get it (ip_local_deliver, ipv6_frag_rcv)";
    assert_eq!(at(&said, "cgroup ingress")["why_not"], expected);
    let said = lab.on_way("forward", &packet);
    assert_eq!(at(&said, "netfilter forward priority 1")["notes"], json!([note]));

    let said = lab.on_way("out", &packet);
    assert_eq!(judged(&said), ["tc egress", "match"]);
    let block = at(&said, "cgroup egress");
    assert_eq!((&block["state"], &block["reached"]), (&json!("not known"), &json!(false)));
    let why = block["why_not"].as_str().unwrap();
    assert!(why.contains("the kernel made it after this hook (ip_finish_output)"), "{why}");
}
