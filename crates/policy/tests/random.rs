//! Random policies say everything that a policy can say, and random packets meet them.

use std::collections::HashSet;

use packet_traits_policy::{
    hook::Ability,
    interpret::{self, Decision, Effect},
    policy::{Action, Condition, Operand, Policy, Test, Type, Value},
    random::{self, PolicyOptions, Rng},
};

fn tests<'p>(condition: &'p Condition, found: &mut Vec<&'p Test>) {
    match condition {
        Condition::Always => {}
        Condition::Test(test) => found.push(test),
        Condition::All(parts) | Condition::Any(parts) => parts.iter().for_each(|part| tests(part, found)),
        Condition::Not(part) => tests(part, found),
    }
}

fn assert_fits(policy: &Policy, operand: Operand, value: u128, what: &Test) {
    let bits = u32::from(policy.type_of(operand).bits());
    assert!(128 - value.leading_zeros() <= bits, "{what:?}: {value:#x} has more than {bits} bits");
}

#[test]
fn policies_keep_the_rules_of_a_checked_policy() {
    let options = PolicyOptions::everything();
    for seed in 0..300 {
        let policy = random::policy(&mut Rng::with_seed(seed), &options);
        for table in &policy.tables {
            assert!(!table.entries.is_empty());
            for (place, one) in table.entries.iter().enumerate() {
                assert!(one.low <= one.high);
                for other in &table.entries[..place] {
                    let apart = one.high < other.low || other.high < one.low;
                    let inside = |a: &packet_traits_policy::policy::Entry, b: &packet_traits_policy::policy::Entry| {
                        b.low <= a.low && a.high <= b.high
                    };
                    assert_ne!((one.low, one.high), (other.low, other.high));
                    assert!(apart || inside(one, other) || inside(other, one), "{one:?} {other:?}");
                }
            }
        }
        for block in &policy.blocks {
            for rule in &block.rules {
                let verdicts = rule.actions.iter().filter(|action| matches!(action, Action::Verdict(_))).count();
                assert!(verdicts <= 1 && !rule.actions.is_empty());
                assert!(verdicts == 0 || matches!(rule.actions.last(), Some(Action::Verdict(_))));
                let mut asked = Vec::new();
                tests(&rule.condition, &mut asked);
                for test in asked {
                    match *test {
                        Test::Compare { operand, value, .. } => assert_fits(&policy, operand, value, test),
                        Test::Between { operand, low, high, .. } => {
                            assert!(low <= high && matches!(policy.type_of(operand), Type::Unsigned(_)));
                            assert_fits(&policy, operand, high, test);
                        }
                        Test::Masked { operand, mask, value, .. } => {
                            assert!(mask != 0 && value & !mask == 0);
                            assert_fits(&policy, operand, mask, test);
                        }
                        _ => {}
                    }
                }
                for action in &rule.actions {
                    if let Action::Mark(_) | Action::Priority(_) = action {
                        assert!(block.hook.can(Ability::MarkAndPriority));
                    }
                }
            }
        }
    }
}

/// Rules that are never met by a packet would test nothing.
#[test]
fn packets_are_met_by_rules_in_every_way() {
    let options = PolicyOptions::everything();
    let (mut looked_at, mut held, mut decided) = (0, 0, HashSet::new());
    let mut effects = HashSet::new();
    let mut set_from = HashSet::new();
    for seed in 0..100 {
        let mut rng = Rng::with_seed(seed);
        let policy = random::policy(&mut rng, &options);
        for block in 0..policy.blocks.len() {
            for _ in 0..30 {
                let packet = random::packet(&mut rng, &policy, block);
                let context = random::context(&mut rng, &policy, block);
                let outcome = interpret::run(&policy, block, &packet, &context);
                looked_at += outcome.steps.len();
                held += outcome.hits.len();
                decided.insert(std::mem::discriminant(&outcome.decision));
                for step in outcome.steps.iter().flat_map(|rule| &rule.actions) {
                    effects.insert(std::mem::discriminant(&step.effect));
                    if let (Action::Set { value, .. }, Effect::Done(_)) = (step.action, step.effect) {
                        set_from.insert(std::mem::discriminant(value));
                    }
                }
            }
        }
    }
    assert!(held * 5 > looked_at, "{held} of {looked_at} rules held");
    assert!(held * 5 < looked_at * 4, "{held} of {looked_at} rules held");
    for decision in [
        Decision::Accept,
        Decision::Drop,
        Decision::RedirectDevice(packet_traits_policy::policy::Interface::Index(0)),
        Decision::RedirectCpu(0),
        Decision::RedirectXsk(None),
        Decision::Member(0),
        Decision::Kernel,
    ] {
        assert!(decided.contains(&std::mem::discriminant(&decision)), "nothing came to {decision:?}");
    }
    assert_eq!(effects.len(), 5, "an effect never came about: {effects:?}");
    assert!(set_from.contains(&std::mem::discriminant(&Value::Unique)));
    assert_eq!(set_from.len(), 7, "a value never came about: {set_from:?}");
}

#[test]
fn the_seed_decides() {
    let make = || {
        let mut rng = Rng::with_seed(7);
        let policy = random::policy(&mut rng, &PolicyOptions::everything());
        (random::packet(&mut rng, &policy, 0), random::context(&mut rng, &policy, 0), policy)
    };
    assert_eq!(make(), make());
}

#[test]
fn a_failing_policy_is_made_smaller_as_long_as_it_fails() {
    let drops = |policy: &Policy| {
        let rules = policy.blocks.iter().flat_map(|block| &block.rules);
        rules.filter(|rule| rule.actions.iter().any(|action| matches!(action, Action::Count { .. }))).count()
    };
    let policy = (0..)
        .map(|seed| random::policy(&mut Rng::with_seed(seed), &PolicyOptions::everything()))
        .find(|p| drops(p) > 4)
        .unwrap();
    let smaller = random::minimise(policy, 10_000, |policy| drops(policy) > 1);
    assert_eq!(drops(&smaller), 2);
    let rules: Vec<_> = smaller.blocks.iter().flat_map(|block| &block.rules).collect();
    assert!(
        rules.len() == 2 && rules.iter().all(|rule| rule.condition == Condition::Always && rule.actions.len() == 1)
    );
}
