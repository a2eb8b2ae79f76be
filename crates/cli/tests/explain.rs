//! `traits explain` says which rules match a packet, why, and what it then carries; without privilege, and without loading anything.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

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
                     4500001c000000004011000 00a020304 0a040506 1234 0035 0008 0000";

/// The same from 127.0.0.1, without a tag, in other writing.
const SPOOFED: &str = "0x02:00:00:00:00:01:02:00:00:00:00:02:08:00:45:00:00:1c:00:00:00:00:40:11:00:00:7f:00:00:01:0a:04:05:06:\
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

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.trim_start_matches("0x").chars().filter(char::is_ascii_hexdigit).collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn a_packet_goes_the_way_of_a_received_one_and_keeps_its_traits() {
    let lab = Lab::new();
    let said = lab.ok(&["--packet", QUERY, "--iif", "eth0"]);
    let time = said.lines().find_map(|line| line.trim().strip_prefix("> set rx_ts = time: ")).unwrap();
    let expected = format!(
        r#"46 bytes

xdp (edge.traits:9)
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

tc ingress (edge.traits:17)
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

netfilter ip input priority 10 (edge.traits:26)
  yes    27  tcp dport {{ 22, 23 }} or udp dport 50-60 count denied by trait tenant drop
               tcp dport in {{ 22, 23 }}: no, there is none
               udp dport 50-60: yes, it is 53
             > count denied by trait tenant: 9
             > drop
  drop, by line 27
  carries tenant = 9, seen = set, rx_ts = {time}
"#
    );
    assert_eq!(said, expected);
}

#[test]
fn what_a_machine_reads_says_the_same() {
    let lab = Lab::new();
    let said = lab.json(&["--packet", SPOOFED, "--iif", "eth1", "--trait", "tenant=7", "--trait", "seen"]);
    let packet = &said["packets"][0];
    assert_eq!((&said["file"], &packet["number"], &packet["length"]), (&json!("edge.traits"), &json!(1), &json!(42)));
    assert_eq!(
        packet["blocks"],
        json!([{
            "block": packet["blocks"][0]["block"], "hook": "xdp", "reached": true, "why_not": null,
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
        }])
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

    let by_hook = lab.json(&["--packet", SPOOFED, "--hook", "netfilter ip input", "--trait", "tenant=5"]);
    let block = &by_hook["packets"][0]["blocks"][0];
    assert_eq!(block["counted"], json!([{"counter": "denied", "by": "5"}]));

    let logged = lab.json(&["--packet", SPOOFED.replace("7f", "0a").as_str(), "--hook", "xdp", "--iif", "eth1"]);
    assert_eq!(logged["packets"][0]["blocks"][0]["logged"], json!(["from the side"]));

    let (said, status) = lab.fails(&["--packet", SPOOFED, "--hook", "netfilter"]);
    assert!(status == 1 && said.contains("more than one block"), "{said}");
    let (said, status) = lab.fails(&["--packet", SPOOFED, "--hook", "forward"]);
    assert!(status == 1 && said.contains("no block \"forward\"") && said.contains("(tc egress)"), "{said}");
}

#[test]
fn captures_of_both_formats_are_read_with_or_without_ethernet_headers() {
    let lab = Lab::new();
    let (query, spoofed) = (bytes(QUERY), bytes(SPOOFED));

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

    pcap("raw.pcap", DataLink::RAW, &[(&spoofed[14..], 28)]);
    let said = lab.json(&["--packet", "raw.pcap", "--trait", "tenant=3"]);
    let blocks = &said["packets"][0]["blocks"];
    assert_eq!(blocks[0]["why_not"], "the packet is given without its Ethernet header");
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
    assert_eq!(said["packets"][0]["blocks"][0]["reached"], false);
    assert_eq!(said["packets"][1]["blocks"][0]["verdict"], "drop");

    pcap("wireless.pcap", DataLink::IEEE802_11, &[(&query, 46)]);
    let (said, status) = lab.fails(&["--packet", "wireless.pcap"]);
    assert!(status == 1 && said.contains("Ethernet and raw IP"), "{said}");

    let whole = fs::read(lab.path("two.pcap")).unwrap();
    fs::write(lab.path("cut.pcap"), &whole[..whole.len() - 5]).unwrap();
    let (said, status) = lab.fails(&["--packet", "cut.pcap"]);
    assert!(status == 1 && said.contains("cut.pcap: it is cut short"), "{said}");
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
    let read = |input: &[u8], ip: bool| -> Value {
        let arguments: &[&str] = if ip { &["--packet", "-", "--json", "--ip"] } else { &["--packet", "-", "--json"] };
        serde_json::from_slice(&feed(arguments, input).stdout).unwrap()
    };
    assert_eq!(read(SPOOFED.as_bytes(), false), given);
    let behind_ethernet: String = bytes(SPOOFED)[14..].iter().map(|byte| format!("{byte:02x}\n")).collect();
    assert_eq!(read(behind_ethernet.as_bytes(), true)["packets"][0]["blocks"][3]["verdict"], "drop");
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
