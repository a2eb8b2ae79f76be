//! Making the policy of a failing case smaller.

use crate::policy::{Condition, Policy, Rule};

/// The smallest policy found that still fails, starting from one that does and asking `fails` at most `tries` times.
///
/// Rules, actions and parts of conditions are left out one after the other. Blocks, keys, tables and counters keep
/// their places.
pub fn minimise(mut policy: Policy, tries: usize, mut fails: impl FnMut(&Policy) -> bool) -> Policy {
    let mut left = tries;
    'smaller: loop {
        for candidate in candidates(&policy) {
            if left == 0 {
                return policy;
            }
            left -= 1;
            if fails(&candidate) {
                policy = candidate;
                continue 'smaller;
            }
        }
        return policy;
    }
}

/// The policies that are one step smaller, those first from which most is missing.
fn candidates(policy: &Policy) -> Vec<Policy> {
    let mut candidates = Vec::new();
    for block in 0..policy.blocks.len() {
        let rules = policy.blocks[block].rules.len();
        let mut without = |from: usize, to: usize| {
            let mut smaller = policy.clone();
            smaller.blocks[block].rules.drain(from..to);
            candidates.push(smaller);
        };
        if rules > 3 {
            without(0, rules / 2);
            without(rules / 2, rules);
        }
        for rule in 0..rules {
            without(rule, rule + 1);
        }
    }
    for block in 0..policy.blocks.len() {
        for (place, rule) in policy.blocks[block].rules.iter().enumerate() {
            candidates.extend(simpler_rules(rule).into_iter().map(|rule| {
                let mut smaller = policy.clone();
                smaller.blocks[block].rules[place] = rule;
                smaller
            }));
        }
    }
    candidates
}

fn simpler_rules(rule: &Rule) -> Vec<Rule> {
    let mut simpler: Vec<Rule> =
        parts(&rule.condition).into_iter().map(|condition| Rule { condition, ..rule.clone() }).collect();
    if rule.actions.len() > 1 {
        for action in 0..rule.actions.len() {
            let mut rule = rule.clone();
            rule.actions.remove(action);
            simpler.push(rule);
        }
    }
    simpler
}

/// Conditions that are a part of this one.
fn parts(condition: &Condition) -> Vec<Condition> {
    match condition {
        Condition::Always => Vec::new(),
        Condition::Test(_) => vec![Condition::Always],
        Condition::Not(part) => vec![(**part).clone()],
        Condition::All(parts) | Condition::Any(parts) => parts.clone(),
    }
}
