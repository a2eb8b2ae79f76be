//! Words of nftables, iptables and tcpdump that this language does not have, with what to write instead; and what it reads
//! differently.

use crate::field::{FieldKind, Header};

/// Words, and what to do instead.
const WORDS: &[(&[&str], &str)] = &[
    (
        &["table", "chain"],
        "there are no tables and chains: a block is a hook, such as `netfilter input priority -1 { … }`",
    ),
    (&["hook"], "hook and priority stand in front of the block: `netfilter input priority -1 { … }`"),
    (&["policy"], "packets that reach the end are accepted; for `policy drop`, make `drop` the last rule"),
    (
        &["jump", "goto", "return", "continue", "RETURN"],
        "there are no chains: rules run in order, and `accept` and `drop` end the block",
    ),
    (
        &["inet", "bridge", "netdev"],
        "`netfilter` is both families, or `netfilter ip` and `netfilter ip6`; devices have `tc` and `xdp`",
    ),
    (
        &["flush", "add", "insert", "destroy", "rule", "ruleset"],
        "a policy is the whole rule set: `traits up --replace` replaces the previous one atomically",
    ),
    (&["reject", "REJECT"], "write `drop`: policies do not send replies"),
    (&["ACCEPT", "pass", "allow", "permit"], "write `accept`"),
    (&["DROP", "deny", "block", "discard"], "write `drop`"),
    (
        &["iptables", "ip6tables", "nft", "ipset"],
        "a policy is no list of commands: a rule is its tests and what to do, `tcp dport 22 drop`",
    ),
    (&["fwmark", "nfmark", "connmark"], "a packet's mark is set by `mark set VALUE`; policies cannot test it"),
    (&["LOG"], "write `log`"),
    (&["MARK"], "write `mark VALUE`"),
    (&["counter"], "write `count`, or `count NAME`"),
    (&["limit", "quota", "burst", "hashlimit"], "policies do not limit rates: use nftables or a queueing discipline"),
    (&["prefix"], "the text follows `log` itself: `log \"text\"`"),
    (&["group", "snaplen", "level"], "`log` has no such option; `traits log` shows what it reports"),
    (&["comment"], "a comment starts with `#`"),
    (
        &["ct", "state", "established", "related", "invalid", "untracked", "ctstate", "conntrack", "notrack"],
        "policies do not track connections: use nftables",
    ),
    (
        &["dnat", "snat", "masquerade", "nat", "tproxy", "synproxy"],
        "policies do not change addresses or connections: use nftables",
    ),
    (&["flow", "offload", "flowtable"], "policies have no flow tables: use nftables"),
    (&["dup", "tee"], "policies do not copy packets: use nftables or `tc`"),
    (&["fwd"], "write `redirect \"eth1\"`"),
    (
        &["meta"],
        "leave `meta` out: `protocol` (l4proto), `ip version` (nfproto), `length` (at XDP and TC with the Ethernet \
         header), `iif`, `oif`, `mark set VALUE`, `priority VALUE`; policies test nothing else of it",
    ),
    (&["l4proto", "proto", "nexthdr"], "write `protocol`, or `ether type` for what is in an Ethernet frame"),
    (&["nfproto"], "write `ip version`"),
    (&["iifname"], "write `iif \"NAME\"`, which is by name here"),
    (&["oifname"], "write `oif \"NAME\"`, which is by name here"),
    (&["device", "dev", "interface", "ifname", "in-interface"], "write `iif \"NAME\"` or `oif \"NAME\"`"),
    (
        &["skuid", "skgid", "cgroupv2", "socket", "osf", "rt", "rtclassid"],
        "policies cannot test sockets, routes and routing headers",
    ),
    (&["fib"], "policies cannot look up routes"),
    (
        &["numgen", "jhash", "symhash", "random"],
        "nothing is tested by chance: `hash(5-tuple)` and `unique` are values, as in `set KEY = unique`",
    ),
    (&["saddr", "daddr"], "write the header in front: `ip saddr`, `ip6 saddr`, `ether saddr`"),
    (&["sport"], "write the header in front: `tcp sport`, `udp sport`, or `th sport` for either"),
    (&["dport"], "write the header in front: `tcp dport`, `udp dport`, or `th dport` for either"),
    (&["port", "portrange", "ports"], "write `th sport` or `th dport`"),
    (&["dstport", "dst-port", "destination-port", "destport"], "write `dport`"),
    (&["srcport", "src-port", "source-port"], "write `sport`"),
    (
        &["host", "net", "src", "dst", "source", "destination"],
        "addresses are `saddr` and `daddr` of `ip`, `ip6` or `ether`, ports `sport` and `dport` of `tcp`, `udp` or `th`",
    ),
    (&["icmp6", "icmpv6-type", "ipv6-icmp"], "write `icmpv6`"),
    (&["icmp4", "icmpv4", "icmp-type"], "write `icmp`"),
    (&["icmpx"], "write `icmp` or `icmpv6`"),
    (&["ipv4"], "write `ip`"),
    (&["ipv6"], "write `ip6`"),
    (&["dhcp"], "ports are numbers: DHCP's are 67 and 68, DHCPv6's 546 and 547"),
    (
        &["hdrlength", "checksum", "sequence", "ackseq", "doff", "urgptr", "csum", "mtu", "gateway"],
        "policies cannot test this field",
    ),
    (&["tos"], "write `dscp`, the upper 6 bits of it"),
    (&["sctp"], "write `protocol sctp`"),
    (&["dccp"], "write `protocol dccp`"),
    (&["udplite"], "write `protocol udplite`"),
    (&["esp"], "write `protocol esp`"),
    (&["comp"], "write `protocol comp`"),
    (&["igmp"], "write `protocol igmp`"),
    (&["arp"], "write `ether type arp`"),
    (&["gretap"], "write `gre`"),
    (
        &["ah", "hbh", "frag", "mh", "srh", "exthdr"],
        "policies skip extension headers and cannot test them; for fragments write `fragment first` or `fragment later`",
    ),
    (&["frag-off", "more-fragments"], "write `fragment first` or `fragment later`"),
    (&["tcpflags", "maxseg", "sack-perm"], "policies cannot test TCP options, only `tcp flags`"),
    (
        &["elements", "timeout", "typeof", "interval"],
        "a set is written `set NAME TYPE = { … }`, a map `map NAME TYPE : TYPE = { … }`",
    ),
    (&["vmap", "verdict"], "maps hold values, as in `set KEY = FIELD map @NAME`; write a rule for each verdict"),
    (&["ipv4_addr"], "the type is called `ipv4`"),
    (&["ipv6_addr"], "the type is called `ipv6`"),
    (&["ether_addr"], "the type is called `mac`"),
    (&["inet_service"], "ports are of type `u16`"),
    (&["inet_proto"], "protocols are of type `u8`"),
    (&["iface_index"], "sets cannot hold interfaces; test one with `iif \"eth0\"`"),
];

/// Ports that people know by name, as in /etc/services.
const SERVICES: &[(&str, u16)] = &[
    ("ftp", 21),
    ("ssh", 22),
    ("telnet", 23),
    ("smtp", 25),
    ("domain", 53),
    ("dns", 53),
    ("bootps", 67),
    ("bootpc", 68),
    ("tftp", 69),
    ("http", 80),
    ("www", 80),
    ("kerberos", 88),
    ("pop3", 110),
    ("sunrpc", 111),
    ("ntp", 123),
    ("imap", 143),
    ("imap2", 143),
    ("snmp", 161),
    ("bgp", 179),
    ("ldap", 389),
    ("https", 443),
    ("microsoft-ds", 445),
    ("submission", 587),
    ("syslog", 514),
    ("ldaps", 636),
    ("imaps", 993),
    ("pop3s", 995),
    ("mysql", 3306),
    ("postgresql", 5432),
];

/// What to write instead of this word.
pub(crate) fn hint(word: &str) -> Option<String> {
    if let Some((_, instead)) = WORDS.iter().find(|(words, _)| words.contains(&word)) {
        return Some((*instead).to_owned());
    }
    let (_, port) = SERVICES.iter().find(|(name, _)| *name == word)?;
    Some(format!("ports are numbers: {word} is {port}"))
}

/// What uses this priority at netfilter's hooks, with the verb: chains of nftables and iptables, or a part of the kernel.
///
/// `enum nf_ip_hook_priorities`, include/uapi/linux/netfilter_ipv4.h. A BPF program must be alone with its number
/// (`nf_hook_entries_grow`, net/netfilter/core.c).
pub(crate) fn at_priority(priority: i32) -> Option<&'static str> {
    const KNOWN: [(i32, &str); 9] = [
        (-400, "defragmentation uses"),
        (-300, "the `raw` chains of nftables and iptables use"),
        (-225, "SELinux uses"),
        (-200, "connection tracking uses"),
        (-150, "the `mangle` chains of nftables and iptables use"),
        (-100, "the `dstnat` chains of nftables and iptables use"),
        (0, "the `filter` chains of nftables and iptables use"),
        (50, "the `security` chains of nftables and iptables use"),
        (100, "the `srcnat` chains of nftables and iptables use"),
    ];
    KNOWN.iter().find(|(known, _)| *known == priority).map(|(_, what)| *what)
}

/// Whether other headers follow inside this one: nftables then means those.
pub(crate) fn is_tunnel(kind: FieldKind) -> bool {
    matches!(kind.header(), Header::Vxlan | Header::Geneve | Header::Gre)
}

/// Whether a block's name looks like an interface's.
pub(crate) fn looks_like_interface(name: &str) -> bool {
    const STARTS: [&str; 23] = [
        "eth", "en", "ens", "eno", "enp", "wl", "wlan", "br", "bond", "team", "veth", "virbr", "docker", "tun", "tap",
        "wg", "ppp", "vxlan", "macvlan", "ib", "lan", "wan", "dmz",
    ];
    let start = name.trim_end_matches(|c: char| c.is_ascii_digit());
    matches!(name, "lo" | "lan" | "wan" | "dmz")
        || start.len() < name.len() && STARTS.contains(&start)
        || is_path_name(name)
}

/// `enp0s3`, `wlp2s0`, `ens1f0`: systemd's names by place.
fn is_path_name(name: &str) -> bool {
    let rest = ["enp", "ens", "eno", "wlp", "wls"].iter().find_map(|start| name.strip_prefix(start));
    rest.is_some_and(|rest| {
        rest.starts_with(|c: char| c.is_ascii_digit())
            && rest.chars().all(|c| c.is_ascii_digit() || matches!(c, 's' | 'f' | 'd' | 'n' | 'p'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words;

    #[test]
    fn no_foreign_word_is_one_of_the_language() {
        let own = |word: &str| {
            words::ACTIONS.contains(&word)
                || words::TEST_STARTS.contains(&word)
                || words::header(word).is_some()
                || words::lookup(words::BARE_FIELDS, word).is_some()
        };
        let services = SERVICES.iter().map(|(word, _)| *word);
        for word in WORDS.iter().flat_map(|(words, _)| words.iter().copied()).chain(services) {
            assert!(!own(word), "{word}");
        }
    }

    #[test]
    fn foreign_words_are_there_once() {
        let mut seen = std::collections::HashSet::new();
        let services = SERVICES.iter().map(|(word, _)| *word);
        for word in WORDS.iter().flat_map(|(words, _)| words.iter().copied()).chain(services) {
            assert!(seen.insert(word), "{word}");
        }
    }

    #[test]
    fn interfaces_are_told_from_programs() {
        for name in
            ["eth0", "enp0s3", "ens1f0", "wlp2s0", "br0", "docker0", "lo", "wg0", "veth12", "bond0", "lan", "wan6"]
        {
            assert!(looks_like_interface(name), "{name}");
        }
        for name in ["edge", "xdp", "tenants", "br", "brake", "enter", "ether", "loop", "tunnel", "drop2", "enp"] {
            assert!(!looks_like_interface(name), "{name}");
        }
    }
}
