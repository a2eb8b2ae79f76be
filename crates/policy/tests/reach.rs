//! What is said of rules that no packet comes to is true.

mod common;

use std::collections::HashSet;

use common::good;
use packet_traits_policy::{
    diagnostic::{Code, Diagnostic},
    hook::{Direction, Hook},
    interpret,
    policy::Policy,
    print::print,
    random::{self, PolicyOptions, Rng},
};

/// The numbers of rules that warnings of one kind are about.
fn rules_of(policy: &Policy, warnings: &[Diagnostic], code: Code) -> HashSet<usize> {
    let rules = policy.blocks.iter().flat_map(|block| &block.rules).enumerate();
    rules
        .filter(|(_, rule)| {
            warnings.iter().any(|w| w.code == code && rule.span.start <= w.span.start && w.span.end <= rule.span.end)
        })
        .map(|(number, _)| number)
        .collect()
}

#[test]
fn no_packet_is_seen_to_come_to_a_rule_that_none_comes_to() {
    let hooks = vec![Hook::Xdp, Hook::Tc(Direction::Ingress), Hook::Cgroup(Direction::Ingress), Hook::Match];
    let options = PolicyOptions { hooks, rules: 4..=25, ..PolicyOptions::default() };
    let mut said = 0;
    for seed in 0..80 {
        let mut rng = Rng::with_seed(seed);
        let text = print(&random::policy(&mut rng, &options));
        let checked = good(&text);
        let policy = &checked.policy;
        let unreachable = rules_of(policy, &checked.warnings, Code::Unreachable);
        let never = rules_of(policy, &checked.warnings, Code::NeverHolds);
        said += unreachable.len() + never.len();
        for block in 0..policy.blocks.len() {
            for _ in 0..30 {
                let packet = random::packet(&mut rng, policy, block);
                let context = random::context(&mut rng, policy, block);
                let outcome = interpret::run(policy, block, &packet, &context);
                for hit in &outcome.hits {
                    assert!(!unreachable.contains(hit), "rule {hit} is not unreachable, seed {seed}:\n{text}");
                    assert!(!never.contains(hit), "the condition of rule {hit} can hold, seed {seed}:\n{text}");
                }
            }
        }
    }
    assert!(said > 20, "only {said} rules were warned of");
}

/// The codes of the warnings for the rules of an XDP block.
fn warnings(rules: &str) -> Vec<Code> {
    let checked = good(&format!("key tenant u32\nkey level i64\nkey seen flag\nxdp {{\n{rules}\n}}"));
    checked.warnings.iter().map(|warning| warning.code).collect()
}

#[test]
fn conditions_that_contradict_themselves_are_found() {
    for condition in [
        "tcp udp",
        "ip ip6",
        "ip saddr 10.0.0.1 ip saddr 10.0.0.2",
        "ip saddr 10.0.0.0/8 and ip saddr != 10.0.0.0/8",
        "ip saddr 10.0.0.0/8 and not ip",
        "tcp dport 22 tcp dport 80",
        "tcp dport 22 th dport 80",
        "th dport 22 and vxlan",
        "protocol tcp and udp dport 53",
        "icmp and ip6",
        "icmpv6 type echo-request and ip version 4",
        "fragment later and tcp",
        "ether type arp and ip",
        "ip ttl > 255",
        "ip ttl < 0",
        "ip ttl > 10 ip ttl < 5",
        "ip version 5",
        "fragment 3",
        "trait level < 0 and trait level > 0",
        "trait level < -9223372036854775808",
        "trait tenant is set and not trait tenant is set",
        "trait tenant { 1, 2 } and trait tenant { 3, 4 }",
        "trait tenant 5 and trait tenant != { 5, 6 }",
        "not (ip or ip6 or ip saddr 10.0.0.1) and ip",
        "(tcp dport 22 or udp dport 53) and icmp",
        "inner tcp and icmp",
        "tcp flags & (syn|ack) == syn and tcp flags & syn == 0",
        "geneve option 1:2 3 and geneve option 1:2 4",
        "gre key 5 and geneve",
        "not length is set",
    ] {
        assert_eq!(warnings(&format!("{condition} drop")), [Code::NeverHolds], "{condition}");
    }
}

#[test]
fn conditions_that_can_hold_are_left_alone() {
    for condition in [
        "tcp or udp",
        "ip and inner ip6",
        "tcp dport 22 th dport 22",
        "ip saddr 10.0.0.0/8 and ip saddr != 10.1.0.0/16",
        "inner ip and inner ether type is set",
        "udp and inner tcp",
        "trait level >= 0 and trait level < 1",
        "not tcp and protocol tcp",
        "tcp flags syn and tcp flags ack",
        "tcp flags syn and tcp flags & ack == 0",
        "iif \"a\" and iif \"b\"",
        "geneve option 1:2 3 and geneve option 1:3 4",
        "vxlan and udp dport 4789",
        "not (ip and ip6)",
    ] {
        assert_eq!(warnings(&format!("{condition} drop")), [], "{condition}");
    }
}

#[test]
fn rules_behind_one_that_takes_all_their_packets_are_found() {
    for rules in [
        "accept\n tcp dport 22 drop",
        "ip drop\n ip saddr 10.0.0.1 accept",
        "ip saddr 10.0.0.0/8 drop\n ip saddr 10.1.0.0/16 tcp dport 22 accept",
        "protocol { tcp, udp } drop\n udp dport 53 accept",
        "th dport 1-1024 drop\n tcp dport { 22, 80, 443 } accept",
        "udp drop\n vxlan vni 5 redirect \"eth0\"",
        "udp drop\n tcp drop\n accept\n tcp dport 22 or udp dport 53 accept",
        "tcp or udp or icmp drop\n tcp dport 22 or udp dport 53 accept",
        "trait tenant < 10 drop\n trait tenant 5 accept",
        "trait tenant 5 drop\n set seen\n trait tenant 5 tcp accept",
        "trait seen is set redirect xsk 3\n trait seen is set and ip accept",
        "ip6 redirect \"eth0\"\n ip6 accept",
    ] {
        assert_eq!(warnings(rules), [Code::Unreachable], "{rules}");
    }
    assert_eq!(warnings("accept\n drop\n ip drop"), [Code::Unreachable]);
}

#[test]
fn rules_that_packets_may_come_to_are_left_alone() {
    for rules in [
        "ip saddr 10.1.0.0/16 drop\n ip saddr 10.0.0.0/8 accept",
        "ip drop\n protocol tcp accept",
        "protocol tcp tcp dport 22 drop\n protocol tcp accept",
        "trait tenant 5 drop\n set tenant = 5\n trait tenant 5 accept",
        "trait tenant 5 drop\n delete tenant\n not trait tenant is set accept",
        "tcp count t\n tcp drop",
        "redirect cpu trait tenant\n drop",
        "not ip6 drop\n ip6 accept",
        "ip saddr 10.0.0.0/8 or tcp drop\n udp accept",
    ] {
        assert_eq!(warnings(rules), [], "{rules}");
    }
}
