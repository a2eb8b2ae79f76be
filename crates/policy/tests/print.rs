//! What is printed of a policy is that policy again.

mod common;

use common::{good, robust::placeless};
use packet_traits_policy::{
    interpret::{self, Context, Decision, Outcome},
    policy::{Interface, Policy},
    print::print,
    random::{self, PolicyOptions, Rng},
};

/// What became of a packet, in words that do not depend on the places of counters and interfaces.
fn told(policy: &Policy, outcome: &Outcome<'_>) -> String {
    let decision = match outcome.decision {
        Decision::RedirectDevice(Interface::Name(name)) => format!("to {}", policy.interfaces[name.0]),
        decision => format!("{decision:?}"),
    };
    let counted: Vec<String> = outcome
        .counted
        .iter()
        .map(|counted| format!("{} {:?}", policy.counters[counted.counter.0].name, counted.by))
        .collect();
    let Outcome { decided_by, traits, mark, priority, queue, hits, logged, .. } = outcome;
    format!("{decision} {decided_by:?} {traits:?} {mark:?} {priority:?} {queue:?} {hits:?} {counted:?} {logged:?}")
}

/// The same circumstances for a policy that names interfaces in another order, or fewer.
fn context_for(other: &Policy, policy: &Policy, context: &Context) -> Context {
    let index = |name: &String| {
        let place = policy.interfaces.iter().position(|interface| interface == name).unwrap();
        context.interfaces.get(place).copied().flatten()
    };
    Context { interfaces: other.interfaces.iter().map(index).collect(), ..context.clone() }
}

#[test]
fn a_printed_policy_means_the_same_and_prints_the_same() {
    for seed in 0..150 {
        let mut rng = Rng::with_seed(seed);
        let policy = random::policy(&mut rng, &PolicyOptions::everything());
        let text = print(&policy);
        let checked = good(&text).policy;
        assert_eq!(checked.keys.len(), policy.keys.len());
        for block in 0..policy.blocks.len() {
            for _ in 0..15 {
                let packet = random::packet(&mut rng, &policy, block);
                let context = random::context(&mut rng, &policy, block);
                let before = interpret::run(&policy, block, &packet, &context);
                let context = context_for(&checked, &policy, &context);
                let after = interpret::run(&checked, block, &packet, &context);
                assert_eq!(told(&checked, &after), told(&policy, &before), "seed {seed}, block {block}:\n{text}");
            }
        }

        let again = good(&print(&checked)).policy;
        assert_eq!(placeless(again.clone()), placeless(checked.clone()), "seed {seed}:\n{text}");
        assert_eq!(print(&again), print(&checked), "seed {seed}");
    }
}

#[test]
fn forms_of_one_meaning_are_printed_as_one() {
    for (written, printed) in [
        ("ip protocol tcp accept", "ip and protocol tcp  accept"),
        ("inner ip6 dscp 46 accept", "inner ip6 and inner dscp ef  accept"),
        ("ip saddr == 10.0.0.1/32 accept", "ip saddr 10.0.0.1  accept"),
        ("tcp flags & (fin | ecn) == ecn accept", "tcp flags & (fin|ece) == ece  accept"),
        ("tcp dport { 5-20, 40, 1-10, 15-30 } accept", "tcp dport in { 1-30, 40 }  accept"),
        (
            "icmpv6 type redirect icmpv6 code no-route accept",
            "icmpv6 type nd-redirect and icmpv6 code no-route  accept",
        ),
        ("icmp code frag-needed dscp be accept", "icmp code frag-needed and dscp cs0  accept"),
        ("ip saddr 0.0.0.0/0 accept", "ip  accept"),
        ("tcp dport { 22 } accept", "tcp dport 22  accept"),
        ("tcp dport != { 22, 80 } accept", "tcp dport != { 22, 80 }  accept"),
        ("tcp dport 22-22 accept", "tcp dport 22  accept"),
        ("tcp flags 0x12 accept", "tcp flags syn|ack  accept"),
        ("tcp flags syn,ack accept", "tcp flags syn|ack  accept"),
        ("tcp flags syn / fin,syn,rst,ack accept", "tcp flags & (fin|syn|rst|ack) == syn  accept"),
        ("tcp flags != syn,ack / syn|ack accept", "tcp flags & (syn|ack) != syn|ack  accept"),
        ("tcp flags & syn != 0 accept", "tcp flags syn  accept"),
        ("tcp flags == syn accept", "tcp flags == syn  accept"),
        ("tcp flags { syn, syn|ack } accept", "tcp flags in { syn, 18 }  accept"),
        ("not (ip or ip6) length > 0x10 accept", "not (ip or ip6) and length > 16  accept"),
        ("count", "count"),
        ("iif == \"eth0\" or iif 3 accept", "iif \"eth0\" or iif 3  accept"),
    ] {
        let text = print(&good(&format!("xdp {{\n{written}\n}}")).policy);
        assert_eq!(text, format!("xdp xdp {{\n    {printed}\n}}\n"), "{written}");
    }
}
