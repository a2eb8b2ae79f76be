//! How many instructions the verifier goes through for policies of typical and of great size, against the figures of
//! last time.
//!
//! The figures are in `verifier_budget.txt`, so that growth is seen in review. They are those of one kernel and of the
//! compilers named there; with others, this only prints. What the kernel takes at most must hold everywhere.

mod common;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use common::{Draft, Lab, area_enabled, compare, compilers, equal, is_short, outer, set, test};
use libbpf_rs::libbpf_sys;
use packet_traits::{KeyType, Merge};
use packet_traits_lab::{clang, clang_version, clangs};
use packet_traits_policy::{
    field::FieldKind,
    hook::{Ability, Direction, Hook, NetfilterHook},
    policy::{Action, Comparison, Condition, Entry, KeyId, Operand, Test, Type, Value, Verdict},
};

/// Environment variable that, set to `1`, has the file written again.
const UPDATE: &str = "UPDATE_BUDGET";

/// How much a program may grow before it must be looked at, in percent.
const GROWTH: u64 = 25;

/// The kernel takes programs up to this many (BPF_COMPLEXITY_LIMIT_INSNS in include/linux/bpf.h).
const LIMIT: u64 = 1_000_000;

const HOOKS: [(&str, Hook); 8] = [
    ("xdp", Hook::Xdp),
    ("tc_ingress", Hook::Tc(Direction::Ingress)),
    ("netfilter", Hook::Netfilter { family: None, hook: NetfilterHook::Input, priority: 0 }),
    ("tc_egress", Hook::Tc(Direction::Egress)),
    ("cgroup_in", Hook::Cgroup(Direction::Ingress)),
    ("cgroup_out", Hook::Cgroup(Direction::Egress)),
    ("matching", Hook::Match),
    ("steering", Hook::Steer),
];

fn keys(draft: &mut Draft) -> [KeyId; 3] {
    [
        draft.key("tenant", KeyType::U32, Merge::Block),
        draft.key("class", KeyType::U16, Merge::Block),
        draft.key("flow_id", KeyType::U64, Merge::KeepFirst),
    ]
}

/// As many rules as asked for: of headers and of traits, with sets, counts, marks and verdicts.
fn rules(hook: Hook, count: usize) -> Draft {
    let mut draft = Draft::new();
    let [tenant, class, flow_id] = keys(&mut draft);
    let counter = draft.counter("seen", None);
    draft.block("rules", hook);
    for number in 0..count {
        let n = number as u128;
        let source = outer(FieldKind::Ipv4Source);
        let port = outer(FieldKind::TransportDestination);
        let network = Test::Masked { operand: source, mask: 0xffff_ff00, value: 0x0a00_0000 | n << 8, negated: false };
        let condition = match number % 5 {
            0 => equal(source, 0x0a01_0000 + n),
            1 => Condition::All(vec![test(network), equal(port, n)]),
            2 => compare(Operand::Trait(tenant), Comparison::NotEqual, n),
            3 => Condition::Any(vec![
                equal(Operand::Trait(class), n),
                compare(outer(FieldKind::Length), Comparison::Less, n),
            ]),
            _ => Condition::All(vec![
                equal(Operand::Trait(tenant), n),
                Condition::Not(Box::new(test(Test::Between { operand: port, low: n, high: n + 9, negated: false }))),
            ]),
        };
        let mut actions = vec![Action::Count { counter, by: None }];
        if hook.can(Ability::ChangeBlockKey) {
            let (key, value) = match number % 3 {
                0 => (tenant, Value::Constant(n)),
                1 => (class, Value::Operand(port)),
                _ if hook.can(Ability::ChangeKeepFirstKey) => (flow_id, Value::Constant(n)),
                _ => (tenant, Value::Constant(n)),
            };
            actions.push(set(key, value));
            if number % 7 == 0 {
                actions.push(Action::Delete(class));
            }
        }
        if hook.can(Ability::MarkAndPriority) && number % 4 == 0 {
            actions.push(Action::Mark(Value::Constant(n)));
        }
        if number % 10 == 9 {
            actions.push(match hook.can(Ability::Member) {
                true => Action::Verdict(Verdict::Member(Value::Constant(n % 4))),
                false => Action::Verdict(if number % 20 == 9 { Verdict::Drop } else { Verdict::Accept }),
            });
        }
        draft.plain(condition, actions);
    }
    draft
}

/// A map of 10,000 prefixes whose value is set, or compared.
fn prefixes(hook: Hook) -> Draft {
    let mut draft = Draft::new();
    let [tenant, ..] = keys(&mut draft);
    let entries =
        (0..10_000).map(|number| Entry { low: number << 12, high: number << 12 | 0xff, value: number }).collect();
    let map = draft.table(Some("tenants"), Type::Ipv4, Some(Type::Unsigned(32)), entries);
    let operand = outer(FieldKind::Ipv4Source);
    let counter = draft.counter("by_length", Some(Type::Unsigned(32)));
    draft.block("prefixes", hook);
    draft.plain(
        test(Test::In { operand, table: map, negated: false }),
        vec![Action::Count { counter, by: Some(outer(FieldKind::Length)) }],
    );
    if hook.can(Ability::ChangeBlockKey) {
        draft.plain(Condition::Always, vec![set(tenant, Value::Lookup { operand, table: map })]);
    }
    draft
}

/// One early drop.
fn one(hook: Hook) -> Draft {
    let mut draft = Draft::new();
    draft.block("one", hook);
    let verdict = match hook.can(Ability::Member) {
        true => Verdict::Member(Value::Constant(0)),
        false => Verdict::Drop,
    };
    draft.plain(equal(outer(FieldKind::Ipv4Source), 0x0a00_0001), vec![Action::Verdict(verdict)]);
    draft
}

type Made = fn(Hook) -> Draft;

const POLICIES: [(&str, Made); 5] = [
    ("one rule", one),
    ("10 rules", |hook| rules(hook, 10)),
    ("500 rules", |hook| rules(hook, 500)),
    ("2,048 rules", |hook| rules(hook, 2048)),
    ("10,000 prefixes", prefixes),
];

/// Instructions the verifier processed and instructions of the program.
fn measure(lab: &Lab, draft: &Draft, clang: &str) -> (u64, u64) {
    let object = lab.load(&draft.compile(clang)).unwrap_or_else(|error| panic!("{error}"));
    let mut sum = (0, 0);
    for program in object.object().progs() {
        let mut info = libbpf_sys::bpf_prog_info::default();
        let mut len = size_of_val(&info) as u32;
        // SAFETY: `info` is as long as `len` says.
        let err = unsafe { libbpf_sys::bpf_prog_get_info_by_fd(program.as_fd().as_raw_fd(), &mut info, &mut len) };
        assert_eq!(err, 0);
        // an instruction has 8 bytes
        sum = (sum.0 + u64::from(info.verified_insns), sum.1 + u64::from(info.xlated_prog_len) / 8);
    }
    sum
}

fn budget_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/verifier_budget.txt")
}

/// The kernel's version to its second number, and the compilers' to their first.
fn measured_with(compilers: &[&str]) -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut with = format!("kernel {}", release.split('.').take(2).collect::<Vec<_>>().join("."));
    for clang in compilers {
        write!(with, ", clang {}", clang_version(clang)).unwrap();
    }
    with
}

#[test]
fn policies_of_every_size_stay_within_the_verifiers_limits() {
    if !area_enabled() {
        return;
    }
    let lab = Lab::new();
    let mut found = BTreeMap::new();
    for (policy, make) in POLICIES {
        for (place, (name, hook)) in HOOKS.into_iter().enumerate() {
            for compiler in compilers() {
                // the largest and the newer compiler where programs differ most: they take minutes else
                if place > 2 && (is_short() || policy.starts_with("2,048") || compiler != clang()) {
                    continue;
                }
                let (processed, len) = measure(&lab, &make(hook), compiler);
                assert!(processed * 2 < LIMIT, "{policy} at {hook}, {compiler}: {processed}");
                found.insert(format!("{policy}, {name}, {compiler}"), (processed, len));
            }
        }
    }

    let with = measured_with(&clangs());
    let mut text =
        format!("# Instructions: processed by the verifier, in the program. Written by {UPDATE}=1.\n# {with}\n");
    for (name, (processed, len)) in &found {
        writeln!(text, "{name:<44} {processed:>8} {len:>6}").unwrap();
    }
    println!("{text}");
    if std::env::var_os(UPDATE).is_some_and(|value| value == "1") {
        std::fs::write(budget_file(), text).unwrap();
        return;
    }
    let recorded = std::fs::read_to_string(budget_file()).unwrap();
    if recorded.lines().nth(1) != Some(&format!("# {with}")) {
        packet_traits_lab::skipped(format_args!(
            "{with} is not what the figures of {} are of",
            budget_file().display()
        ));
        return;
    }
    let mut wrong = String::new();
    for (name, (processed, _)) in &found {
        let before = recorded
            .lines()
            .find_map(|line| line.strip_prefix(name.as_str())?.split_whitespace().next()?.parse::<u64>().ok());
        match before {
            Some(before) if *processed * 100 <= before * (100 + GROWTH) => {}
            Some(before) => writeln!(wrong, "{name}: {processed}, was {before}").unwrap(),
            None => writeln!(wrong, "{name}: {processed}, not recorded yet").unwrap(),
        }
    }
    assert!(
        wrong.is_empty(),
        "verifier figures have changed:\n{wrong}If that is meant, run with {UPDATE}=1 and commit {}",
        budget_file().display()
    );
}
