//! The policy language of packet traits: which traits packets get, and what later stages do because of them.
//!
//! A policy (`*.traits`) is checked ([`policy::Policy`]), then either compiled to BPF C over
//! `packet_traits/traits.bpf.h` or interpreted on one packet. This crate knows nothing of attaching; the `traits`
//! command loads what it emits.
//!
//! | module | what it holds |
//! |---|---|
//! | [`source`] | files and places in them |
//! | [`mod@check`], [`diagnostic`] | from text to a checked policy, or to all that is wrong with it |
//! | [`mod@print`] | and back to text |
//! | [`policy`] | the checked policy: the meaning of the language |
//! | [`field`], [`hook`], [`hash`] | headers and fields, places where rules run, the hash of a flow |
//! | [`interpret`] | the reference interpreter: what a block does to one packet, with the steps that led there |
//! | `random` | random policies and packets, for tests (behind the feature of that name) |
//! | [`emit`], [`compile`] | a policy as BPF C, and that as an object |
//! | [`log_event`] | what `log` tells |
//! | [`manifest`] | what a compiled policy says of itself to whoever loads it |
//!
//! # The language
//!
//! ```text
//! # tenant isolation: a comment goes to the end of the line
//! include "common.traits"           # relative to this file; a file is taken in once
//!
//! key tenant u32 "who the packet belongs to"
//! key rx_ts  timestamp keep-first   # merge policy: block (default), keep-first or discard
//!
//! define ssh = 22
//! define admin = { $ssh, 443, 8000-8100 }
//! set bogons ipv4 = { 127.0.0.0/8, 224.0.0.0/4 }
//! map tenants ipv4 : u32 = { 10.1.0.0/16 : 1, 10.2.0.0/16 : 2, 10.2.3.4 : 9 }
//!
//! xdp {
//!     ip saddr @bogons  count bogon  drop
//!     vxlan vni 1001  set tenant = 7
//!     vxlan vni 2000-2999  set tenant = vxlan vni
//!     not trait tenant is set  set tenant = ip saddr map @tenants
//!     set rx_ts = time
//! }
//!
//! tc ingress {
//!     trait tenant in { 7, 9 }  mark 0x7  priority 6
//! }
//!
//! netfilter input priority -1 {      # before the `filter` chains, which have 0
//!     trait tenant != 7 and tcp dport $admin  count denied by trait tenant  drop
//! }
//! ```
//!
//! **Lines.** A rule or declaration ends with its line or with `;`. Inside `{ }` of a set or map, `( )`, and after `=`,
//! `:` or `,`, `and`, `or`, `not` a line goes on in the next one; so it does after a `\` at its end.
//!
//! **Words.** Names of sets, maps, counters and constants are `[a-z_][a-z0-9_]{0,30}`; keys have a registry's names
//! (`[a-z][a-z0-9_.-]{0,30}`), programs `[a-z][a-z0-9_]{0,14}` that C allows. No name is reserved: what a word is
//! follows from where it stands. Only a counter cannot be called like an action, since `count drop` counts and drops.
//!
//! **Constants**: decimal and `0x` numbers; IPv4, IPv6 and MAC addresses; prefixes `10.0.0.0/8`, `fd00::/8` (bits
//! behind the prefix must be 0); ranges `low-high` of numbers; UUIDs; times `90s`, `1.5s`, `20ms`, `10us`, `5ns`;
//! `"text"` (with `\"` and `\\`); words where a field has some: EtherTypes (`ip ip6 arp vlan`), protocols
//! (`tcp udp icmp icmpv6 gre ah esp sctp igmp dccp comp udplite`), DSCP classes (`cs0`–`cs7 af11`–`af43 ef be df lephb
//! va`), `fragment` (`none first later`), TCP flags (`fin syn rst psh ack urg ece cwr`; `ecn` is `ece`), ICMP types and
//! codes (those of nftables: `echo-request echo-reply destination-unreachable time-exceeded router-advertisement …`, for
//! ICMPv6 `packet-too-big mld-listener-query nd-neighbor-solicit …`; codes are those of `destination-unreachable`:
//! `net-unreachable port-unreachable frag-needed …`, `no-route addr-unreachable …`). `$name` is what `define name = …`
//! gave: one constant, or a list in braces. Constants that it is made of come before it; all else may be declared
//! anywhere.
//!
//! **Types** of sets and maps are those of keys, and of a map's values too. A set's or map's elements are constants of
//! its type; numbers also ranges, IP addresses also prefixes. In a map, the smaller of two ranges, one in the other,
//! counts, and others must not overlap. What is looked up in a set or map is of its type, or a narrower number. Addresses and UUIDs
//! have no order: they are compared by `==`, `!=`, prefixes and sets only.
//!
//! **Blocks**: `xdp`, `xdp inherit`, `tc ingress`, `tc egress`,
//! `netfilter [ip|ip6] prerouting|input|forward|output|postrouting priority N`, `cgroup ingress`, `cgroup egress`,
//! `match NAME`, `steer NAME`; then an optional name (for `match` and `steer` it must be there), then `{ rules }`. One
//! `xdp` block at most. A name may be given to any block; it is its program's name, else that is made from the hook's
//! (`xdp`, `tc_ingress`, `nf_input`, `cgroup_egress`, and a number if that is taken). An `xdp` block drops the traits that a packet
//! has from another interface, as over a veth from another network namespace; with `inherit` it keeps them, unless it sets a
//! trait, which replaces them all. Netfilter has one program of a
//! hook and priority, which no chain of nftables or iptables may have: theirs are -300 (`raw`), -150
//! (`mangle`), -100 (`dstnat`), 0 (`filter`), 50 (`security`) and 100 (`srcnat`), and one beside it is as good.
//!
//! **Rules**: a condition, which may be left out, then actions.
//!
//! ```text
//! condition = condition "or" condition | condition ["and"] condition | "not" condition | "(" condition ")" | test
//! test      = field [op] constant | field ["in"] "{" element, … "}" | field ["in"] "@" set
//!           | field "!=" (range | prefix | "{" … "}" | "@" set)
//!           | "trait" key "is" "set" | header | field "is" "set" | ("iif" | "oif") ["==" | "!="] ("name" | number)
//! op        = "==" | "!=" | "<" | "<=" | ">" | ">="
//! field     = ["inner"] header-field | "length" | "trait" key
//! ```
//!
//! `iif "eth0"` and `oif "eth0"` compare the name that the interface has when the packet comes (`iifname`, `oifname` in
//! nftables): it may come later, be recreated or be renamed. Alternative names do not count. A number is an index. In
//! `cgroup ingress`, `match` and `steer` a packet may have left its interface (a `match` in POSTROUTING): then `iif` compares
//! the index with that of the interface which had the name when the policy was loaded. `redirect "eth1"` goes to that one,
//! too.
//!
//! `not` binds strongest, then `and` (which may be left out), then `or`. Fields and headers, with `inner` in front also
//! those inside a tunnel:
//!
//! | header | fields |
//! |---|---|
//! | `ether` | `saddr` `daddr` `type` |
//! | `vlan` | `id` `pcp` |
//! | `ip` | `saddr` `daddr` `ttl` `protocol` `dscp` `fragment`; `version`: of either |
//! | `ip6` | `saddr` `daddr` `hoplimit` `flowlabel` `protocol` `dscp` `fragment` |
//! | – | `protocol` `dscp` `fragment`: of either |
//! | `tcp` | `sport` `dport` `flags` |
//! | `udp` | `sport` `dport` |
//! | `th` | `sport` `dport`: of TCP, UDP, DCCP, SCTP or UDP-Lite |
//! | `icmp`, `icmpv6` | `type` `code` |
//! | `vxlan` | `vni` |
//! | `geneve` | `vni` `protocol`, `option CLASS:TYPE` |
//! | `gre` | `protocol` `key` |
//! | `incomplete` | none: the outer headers could not be read to their end |
//!
//! `tcp flags syn` asks whether the flag is set, `tcp flags syn|rst` whether one of these is, `tcp flags == syn|ack`
//! whether just these are, `tcp flags & (syn|ack|rst) == syn` whether of those in front just these are (`== 0`: none). In
//! `{ }` they are compared as by `==`. `ip protocol`, `ip6 dscp` and the like are the field of either, and of that
//! header; as a value they are written without it. A header alone asks whether it is there. What a field of an absent
//! header is asked is false, also with `!=`: see [`policy`].
//!
//! A packet that hides its port from `tcp dport 22 drop` is `incomplete`: its headers are cut short (TCP in front of its
//! flags), malformed, behind more than 2 VLAN tags or 182 extension headers, or more than 65,280 bytes into the packet.
//! `incomplete drop` in front of other rules lets none of them pass: see [`field`].
//!
//! Lengths that IP headers claim do not count: in `xdp` and `tc`, a short packet's ports may be in the padding of Ethernet, as
//! in nftables at netdev ingress. Other than here, no port is found there if the length is more than the packet has, or less
//! than the header; the kernel drops such packets in front of netfilter. From netfilter on there is no padding.
//!
//! **Actions**
//!
//! | action | does | where |
//! |---|---|---|
//! | `set KEY = VALUE`, `set KEY` (a flag) | gives a trait a value | `xdp`; `tc`: keys with `block` |
//! | `delete KEY` | takes a trait away | as `set` |
//! | `count`, `count NAME`, `count NAME by FIELD` | counts packets and bytes; hits of rules are always counted, `count` alone says so | all |
//! | `log`, `log "text"`, `… sample 1/N` | tells who listens | all |
//! | `mark VALUE`, `priority VALUE`, or with `set` in between | for `ip rule fwmark`, nft, queueing disciplines | `tc`, `cgroup` |
//! | `queue VALUE` | queue mapping | `tc` |
//! | `accept`, `drop` | ends the block | all but `steer` |
//! | `redirect "eth1"`, `redirect 5` | to an interface, by name or index | `xdp`, `tc` |
//! | `redirect cpu VALUE`, `redirect xsk [VALUE]` | to a CPU, to the AF_XDP socket of a queue | `xdp` |
//! | `member VALUE` | the socket of a SO_REUSEPORT group | `steer` |
//!
//! A VALUE is a constant, a field, `trait KEY`, `FIELD map @NAME`, `FIELD map { KEY : VALUE, … }`; in `set` also
//! `unique`, `hash(5-tuple)`, `hash(inner 5-tuple)`, `time`, `hardware timestamp`, `hardware hash`, `hardware vlan`
//! (the last three in `xdp` only). Numbers may be stored in a wider key, not in a narrower one; `unique` and `hash` in
//! any of numbers without a sign, `time` also in a `u64`. Marks, priorities, CPUs, queues of AF_XDP and members have 32
//! bits, the queue mapping has 16. An action whose value is absent is not done. A packet that is redirected to a CPU that
//! is not online, or to a queue without an AF_XDP socket, goes on as if accepted.
#![forbid(unsafe_code)]

pub mod check;
pub mod compile;
pub mod diagnostic;
pub mod emit;
pub mod field;
mod foreign;
pub mod hash;
pub mod hook;
pub mod interpret;
pub mod log_event;
pub mod manifest;
pub mod policy;
pub mod print;
#[cfg(feature = "random")]
pub mod random;
pub mod source;
mod syntax;
mod words;
