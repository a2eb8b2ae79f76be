//! Conditions, values and actions, as [`policy`](crate::policy) says.

use crate::{
    hook::Hook,
    interpret::{ActionStep, Context, Counted, Decision, Effect, Logged, Outcome, Packet, RuleStep, TestStep},
    policy::{
        Action, Block, Comparison, Condition, Interface, InterfaceDirection, KeyId, Operand, Policy, Presence, Rule,
        Test, Type, Value, Verdict,
    },
};

/// What a block of the policy does to a packet, whose bytes start as they do at the block's hook.
///
/// # Panics
/// If there is no such block.
pub fn run<'p>(policy: &'p Policy, block: usize, packet: &[u8], context: &Context) -> Outcome<'p> {
    let numbers = policy.rule_numbers(block);
    let block = &policy.blocks[block];
    let mut run = Run::new(policy, block, packet, context);
    for (rule, number) in block.rules.iter().zip(numbers) {
        let step = run.rule(rule, number);
        run.outcome.steps.push(step);
        if run.outcome.decided_by.is_some() {
            break;
        }
    }
    run.outcome
}

/// A block at work on a packet.
struct Run<'p, 'c> {
    policy: &'p Policy,
    hook: Hook,
    packet: Packet<'c>,
    context: &'c Context,
    /// So far.
    outcome: Outcome<'p>,
}

impl<'p, 'c> Run<'p, 'c> {
    fn new(policy: &'p Policy, block: &Block, packet: &'c [u8], context: &'c Context) -> Run<'p, 'c> {
        let packet = match context.no_link_header {
            true => Packet::dissect_ip(packet),
            false => Packet::dissect(packet, block.hook, context.vlan),
        };
        let packet = packet.with_cut(context.cut);
        let outcome = Outcome {
            decision: match block.hook {
                Hook::Match => Decision::Drop,
                Hook::Steer => Decision::Kernel,
                Hook::Xdp | Hook::Tc(_) | Hook::Netfilter { .. } | Hook::Cgroup(_) => Decision::Accept,
            },
            decided_by: None,
            traits: (0..policy.keys.len()).map(|key| context.arriving(KeyId(key))).collect(),
            mark: None,
            priority: None,
            queue: None,
            length: packet.length(),
            hits: Vec::new(),
            counted: Vec::new(),
            logged: Vec::new(),
            unique_taken: 0,
            steps: Vec::new(),
        };
        Run { policy, hook: block.hook, packet, context, outcome }
    }

    fn rule(&mut self, rule: &'p Rule, number: usize) -> RuleStep<'p> {
        let mut step = RuleStep { rule: number, tests: Vec::new(), holds: false, actions: Vec::new() };
        step.holds = self.holds(&rule.condition, &mut step.tests);
        if !step.holds {
            return step;
        }
        self.outcome.hits.push(number);
        for action in &rule.actions {
            let effect = self.act(action, number);
            step.actions.push(ActionStep { action, effect });
            if let Effect::Decided(decision) = effect {
                self.outcome.decision = decision;
                self.outcome.decided_by = Some(number);
            }
        }
        step
    }

    /// Whether a condition holds. Notes the tests it makes; a part that can change nothing is left out.
    fn holds(&self, condition: &'p Condition, steps: &mut Vec<TestStep<'p>>) -> bool {
        match condition {
            Condition::Always => true,
            Condition::Test(test) => {
                let (value, passed) = self.test(test);
                steps.push(TestStep { test, value, passed });
                passed
            }
            Condition::All(parts) => parts.iter().all(|part| self.holds(part, steps)),
            Condition::Any(parts) => parts.iter().any(|part| self.holds(part, steps)),
            Condition::Not(part) => !self.holds(part, steps),
        }
    }

    /// The value that a test is about, and the test's answer: no if it is absent.
    fn test(&self, test: &Test) -> (Option<u128>, bool) {
        let ask = |operand: Operand, question: &dyn Fn(u128) -> bool| {
            let value = self.operand(operand);
            (value, value.is_some_and(question))
        };
        match *test {
            Test::Present(Presence::Field(field)) => ask(Operand::Field(field), &|_| true),
            Test::Present(Presence::Trait(key)) => ask(Operand::Trait(key), &|_| true),
            Test::Compare { operand, comparison, value } => {
                let operand_type = self.policy.type_of(operand);
                ask(operand, &|found| compare(operand_type, found, comparison, value))
            }
            Test::Between { operand, low, high, negated } => {
                ask(operand, &|found| (low <= found && found <= high) != negated)
            }
            Test::Masked { operand, mask, value, negated } => ask(operand, &|found| (found & mask == value) != negated),
            Test::AnyBit { operand, mask, negated } => ask(operand, &|found| (found & mask != 0) != negated),
            Test::In { operand, table, negated } => {
                ask(operand, &|found| self.policy.table(table).find(found).is_some() != negated)
            }
            Test::Interface { direction, interface, negated } => {
                let found = match direction {
                    InterfaceDirection::In => self.context.input,
                    InterfaceDirection::Out => self.context.output,
                };
                let passed = found.is_some_and(|found| (self.index_of(interface) == Some(found)) != negated);
                (found.map(u128::from), passed)
            }
        }
    }

    fn operand(&self, operand: Operand) -> Option<u128> {
        match operand {
            Operand::Field(field) => self.packet.field(field),
            Operand::Trait(key) => self.outcome.traits[key.0],
        }
    }

    fn index_of(&self, interface: Interface) -> Option<u32> {
        match interface {
            Interface::Index(index) => Some(index),
            Interface::Name(name) => self.context.interfaces.get(name.0).copied().flatten(),
        }
    }

    fn value(&mut self, value: &Value) -> Option<u128> {
        match *value {
            Value::Constant(constant) => Some(constant),
            Value::Operand(operand) => self.operand(operand),
            Value::Lookup { operand, table } => {
                let found = self.policy.table(table).find(self.operand(operand)?)?;
                Some(found.value)
            }
            Value::Unique => {
                let unique = self.context.unique + self.outcome.unique_taken;
                self.outcome.unique_taken += 1;
                Some(unique.into())
            }
            Value::Hash(layer) => Some(self.packet.five_tuple(layer)?.hash().into()),
            Value::Time => Some(self.context.time.into()),
            Value::Hardware(which) => self.context.hardware.get(which),
        }
    }

    fn act(&mut self, action: &'p Action, rule: usize) -> Effect {
        match action {
            Action::Set { key, value } => self.set(*key, value),
            Action::Delete(key) => match self.outcome.traits[key.0].take() {
                Some(value) => Effect::Done(Some(value)),
                None => Effect::Absent,
            },
            Action::Count { counter, by } => {
                let by = match by.map(|operand| self.operand(operand)) {
                    Some(None) => return Effect::Absent,
                    Some(value) => value,
                    None => None,
                };
                self.outcome.counted.push(Counted { counter: *counter, by });
                Effect::Done(by)
            }
            Action::Log { text, sample } => {
                if *sample > 1 && !self.context.sampled {
                    return Effect::NotSampled;
                }
                self.outcome.logged.push(Logged { rule, text, traits: self.outcome.traits.clone() });
                Effect::Done(None)
            }
            Action::Mark(value) => match self.value(value) {
                None => Effect::Absent,
                mark => {
                    self.outcome.mark = mark;
                    Effect::Done(mark)
                }
            },
            Action::Priority(value) => match self.value(value) {
                None => Effect::Absent,
                priority => {
                    self.outcome.priority = priority;
                    Effect::Done(priority)
                }
            },
            Action::Queue(value) => match self.value(value) {
                None => Effect::Absent,
                queue => {
                    self.outcome.queue = queue;
                    Effect::Done(queue)
                }
            },
            Action::Verdict(verdict) => self.decide(verdict).map_or(Effect::Absent, Effect::Decided),
        }
    }

    fn set(&mut self, key: KeyId, value: &Value) -> Effect {
        if !matches!(self.hook, Hook::Xdp) && !self.context.has_area {
            return Effect::NoArea;
        }
        let Some(value) = self.value(value) else { return Effect::Absent };
        let bits = Type::from(self.policy.key(key).key_type).bits();
        let value = value & low_bits(bits);
        self.outcome.traits[key.0] = Some(value);
        Effect::Done(Some(value))
    }

    /// What a verdict comes to; `None` if a value it needs is absent.
    fn decide(&mut self, verdict: &Verdict) -> Option<Decision> {
        Some(match verdict {
            Verdict::Accept => Decision::Accept,
            Verdict::Drop => Decision::Drop,
            Verdict::RedirectDevice(interface) => Decision::RedirectDevice(*interface),
            Verdict::RedirectCpu(value) => Decision::RedirectCpu(self.value(value)?),
            Verdict::RedirectXsk(None) => Decision::RedirectXsk(None),
            Verdict::RedirectXsk(Some(value)) => Decision::RedirectXsk(Some(self.value(value)?)),
            Verdict::Member(value) => Decision::Member(self.value(value)?),
        })
    }
}

/// Compares two values of a type: `i64` by its sign, all else as numbers.
fn compare(operand_type: Type, left: u128, comparison: Comparison, right: u128) -> bool {
    let ordering = match operand_type {
        Type::Signed => (left as i64).cmp(&(right as i64)),
        _ => left.cmp(&right),
    };
    match comparison {
        Comparison::Equal => ordering.is_eq(),
        Comparison::NotEqual => ordering.is_ne(),
        Comparison::Less => ordering.is_lt(),
        Comparison::LessOrEqual => ordering.is_le(),
        Comparison::Greater => ordering.is_gt(),
        Comparison::GreaterOrEqual => ordering.is_ge(),
    }
}

/// A number whose low bits, this many, are set.
const fn low_bits(bits: u8) -> u128 {
    match bits {
        0 => 0,
        bits => u128::MAX >> (128 - bits),
    }
}
