//! Random policies: every hook, field, test, value and action, and nothing that a checker would refuse.

use std::ops::RangeInclusive;

use fastrand::Rng;
use packet_traits_core::{KeyName, KeyType, Merge, Region};

use super::numbers::{GENEVE_OPTIONS, chance, highest, of_operand, of_type, pick};
use crate::{
    field::{Field, FieldKind},
    hook::{Ability, Direction, Hook, NetfilterFamily, NetfilterHook},
    policy::{
        Action, Block, Comparison, Condition, Counter, CounterId, Entry, Hardware, Interface, InterfaceDirection,
        InterfaceId, KeyDeclaration, KeyId, Layer, Operand, Policy, Presence, Rule, Table, TableId, Test, Type, Value,
        Verdict,
    },
    source::Span,
};

/// Bytes of a region that random keys take at most, so that they fit a registry of the default sizes whatever their
/// order.
const REGION_BYTES: usize = 40;

/// What random policies are like.
#[derive(Clone, Debug)]
pub struct PolicyOptions {
    /// The hooks of its blocks, in this order.
    pub hooks: Vec<Hook>,
    /// How many rules a block has.
    pub rules: RangeInclusive<usize>,
    /// How many entries one of a hundred tables has at most; others have a few.
    pub large_table: usize,
    /// Whether rules may ask the network card.
    pub hardware: bool,
}

impl Default for PolicyOptions {
    fn default() -> Self {
        PolicyOptions { hooks: vec![Hook::Xdp], rules: 1..=8, large_table: 500, hardware: false }
    }
}

impl PolicyOptions {
    /// A block of every kind, and all that rules can say.
    pub fn everything() -> PolicyOptions {
        let hooks = vec![
            Hook::Xdp,
            Hook::Tc(Direction::Ingress),
            Hook::Tc(Direction::Egress),
            Hook::Netfilter { family: None, hook: NetfilterHook::Forward, priority: 0 },
            Hook::Netfilter { family: Some(NetfilterFamily::Ipv6), hook: NetfilterHook::Input, priority: -1 },
            Hook::Cgroup(Direction::Ingress),
            Hook::Match,
            Hook::Steer,
        ];
        PolicyOptions { hooks, hardware: true, ..PolicyOptions::default() }
    }
}

/// A random hook.
pub fn hook(rng: &mut Rng) -> Hook {
    let direction = *pick(rng, &[Direction::Ingress, Direction::Egress]);
    match rng.u32(..6) {
        0 => Hook::Xdp,
        1 => Hook::Tc(direction),
        2 => Hook::Netfilter {
            family: *pick(rng, &[None, Some(NetfilterFamily::Ipv4), Some(NetfilterFamily::Ipv6)]),
            hook: *pick(rng, &NetfilterHook::ALL),
            priority: rng.i32(-400..=400),
        },
        3 => Hook::Cgroup(direction),
        4 => Hook::Match,
        _ => Hook::Steer,
    }
}

/// A random policy. Its spans are those of no text.
pub fn policy(rng: &mut Rng, options: &PolicyOptions) -> Policy {
    let mut policy = Policy::default();
    declare_keys(rng, &mut policy);
    for number in 0..rng.usize(1..4) {
        policy.interfaces.push(format!("veth{number}"));
    }
    for (number, hook) in options.hooks.iter().enumerate() {
        let rules = rng.usize(options.rules.clone());
        let mut writer = Writer { rng, options, policy: &mut policy, hook: *hook };
        let rules = (0..rules).map(|_| writer.rule()).collect();
        let inherits = *hook == Hook::Xdp && rng.u8(..4) == 0;
        policy.blocks.push(Block {
            name: format!("block{number}"),
            hook: *hook,
            inherits,
            rules,
            span: Span::default(),
        });
    }
    policy
}

fn declare_keys(rng: &mut Rng, policy: &mut Policy) {
    let mut used = [0, 0];
    for number in 0..rng.usize(2..12) {
        let key_type = *pick(rng, &KeyType::ALL);
        let merge = *pick(rng, &Merge::ALL);
        let used = &mut used[usize::from(merge.region() == Region::Packet)];
        if *used + key_type.size() > REGION_BYTES {
            continue;
        }
        *used += key_type.size();
        let name = match rng.u32(..3) {
            0 => format!("key{number}"),
            1 => format!("key-{number}.x"),
            _ => format!("k_{number}_{key_type}"),
        };
        let description = if chance(rng, 50) { "of a random \"policy\"".to_owned() } else { String::new() };
        let name = KeyName::new(&name).expect("it starts with a letter and is short");
        policy.keys.push(KeyDeclaration { name, key_type, merge, description, span: Span::default() });
    }
}

/// Writes rules for one hook.
struct Writer<'a> {
    rng: &'a mut Rng,
    options: &'a PolicyOptions,
    policy: &'a mut Policy,
    hook: Hook,
}

impl Writer<'_> {
    fn rule(&mut self) -> Rule {
        let condition = if chance(self.rng, 8) { Condition::Always } else { self.condition(2) };
        let mut actions: Vec<Action> = (0..self.rng.usize(0..4)).map(|_| self.action()).collect();
        // A verdict under `Always` would make the rest of the block unreachable.
        let may_decide = condition != Condition::Always;
        if may_decide && chance(self.rng, 30) {
            actions.push(Action::Verdict(self.verdict()));
        }
        if actions.is_empty() {
            actions.push(self.count());
        }
        Rule { condition, actions, span: Span::default() }
    }

    fn condition(&mut self, depth: usize) -> Condition {
        let part = if depth == 0 { 0 } else { self.rng.u32(..10) };
        match part {
            6 | 7 => Condition::All(self.parts(depth, |part| matches!(part, Condition::All(_)))),
            8 => Condition::Any(self.parts(depth, |part| matches!(part, Condition::Any(_)))),
            9 => Condition::Not(Box::new(self.condition(depth - 1))),
            _ => Condition::Test(self.test()),
        }
    }

    /// Two or three conditions, none of which is of the kind that holds them.
    fn parts(&mut self, depth: usize, same: impl Fn(&Condition) -> bool) -> Vec<Condition> {
        let mut parts = Vec::new();
        for _ in 0..self.rng.usize(2..4) {
            let part = self.condition(depth - 1);
            parts.push(if same(&part) { Condition::Test(self.test()) } else { part });
        }
        parts
    }

    fn test(&mut self) -> Test {
        if chance(self.rng, 6)
            && let Some(test) = self.interface_test()
        {
            return test;
        }
        if chance(self.rng, 3) {
            return Test::Present(Presence::Field(Field { layer: Layer::Outer, kind: FieldKind::Incomplete }));
        }
        let operand = self.operand();
        if chance(self.rng, 12) {
            return Test::Present(presence_of(operand));
        }
        let operand_type = self.policy.type_of(operand);
        let negated = chance(self.rng, 25);
        match (self.rng.u32(..10), operand_type) {
            (_, Type::Flag) => Test::Present(presence_of(operand)),
            (0..=2, _) => Test::In { operand, table: self.table(operand, None), negated },
            (3 | 4, Type::Unsigned(_)) => {
                let (one, other) = (self.constant(operand), self.constant(operand));
                Test::Between { operand, low: one.min(other), high: one.max(other), negated }
            }
            (3..=6, Type::Ipv4 | Type::Ipv6) => {
                let mask = prefix_mask(operand_type.bits(), self.prefix_len(operand_type));
                Test::Masked { operand, mask, value: self.constant(operand) & mask, negated }
            }
            _ if self.is_tcp_flags(operand) && chance(self.rng, 70) => {
                let mask = u128::from(self.rng.u8(1..));
                if chance(self.rng, 50) {
                    Test::AnyBit { operand, mask, negated }
                } else {
                    Test::Masked { operand, mask, value: self.constant(operand) & mask, negated }
                }
            }
            (_, Type::Unsigned(_) | Type::Signed | Type::Timestamp) => {
                let comparison = *pick(
                    self.rng,
                    &[
                        Comparison::Equal,
                        Comparison::Equal,
                        Comparison::NotEqual,
                        Comparison::Less,
                        Comparison::LessOrEqual,
                        Comparison::Greater,
                        Comparison::GreaterOrEqual,
                    ],
                );
                Test::Compare { operand, comparison, value: self.constant(operand) }
            }
            (_, Type::Ipv4 | Type::Ipv6 | Type::Mac | Type::Uuid) => {
                let comparison = if negated { Comparison::NotEqual } else { Comparison::Equal };
                Test::Compare { operand, comparison, value: self.constant(operand) }
            }
        }
    }

    fn interface_test(&mut self) -> Option<Test> {
        let direction = *pick(self.rng, &[InterfaceDirection::In, InterfaceDirection::Out]);
        let ability = match direction {
            InterfaceDirection::In => Ability::InputInterface,
            InterfaceDirection::Out => Ability::OutputInterface,
        };
        let negated = chance(self.rng, 40);
        let interface = self.interface();
        self.hook.can(ability).then_some(Test::Interface { direction, interface, negated })
    }

    fn interface(&mut self) -> Interface {
        if chance(self.rng, 50) {
            Interface::Index(self.rng.u32(1..4))
        } else {
            Interface::Name(InterfaceId(self.rng.usize(..self.policy.interfaces.len())))
        }
    }

    fn constant(&mut self, operand: Operand) -> u128 {
        of_operand(self.rng, self.policy, operand)
    }

    fn is_tcp_flags(&self, operand: Operand) -> bool {
        matches!(operand, Operand::Field(Field { kind: FieldKind::TcpFlags, .. }))
    }

    /// Anything that a test at this hook can be about.
    fn operand(&mut self) -> Operand {
        if !self.policy.keys.is_empty() && chance(self.rng, 30) {
            return Operand::Trait(KeyId(self.rng.usize(..self.policy.keys.len())));
        }
        loop {
            let kind = if chance(self.rng, 5) {
                let (class, kind) = *pick(self.rng, &GENEVE_OPTIONS);
                FieldKind::GeneveOption { class, kind }
            } else {
                *pick(self.rng, &FieldKind::ALL)
            };
            let layer = if kind.may_be_inner() && chance(self.rng, 35) { Layer::Inner } else { Layer::Outer };
            let field = Field { layer, kind };
            if layer == Layer::Inner || self.hook.sees_ethernet() || !in_ethernet(kind) {
                return Operand::Field(field);
            }
        }
    }

    /// A table in which things like `operand` are looked up: a map to values of a type, or a set.
    fn table(&mut self, operand: Operand, value: Option<Type>) -> TableId {
        let operand_type = self.policy.type_of(operand);
        let fitting = |table: &Table| table.name.is_some() && fits(operand_type, table.key) && table.value == value;
        let there: Vec<usize> =
            (0..self.policy.tables.len()).filter(|table| fitting(&self.policy.tables[*table])).collect();
        if !there.is_empty() && chance(self.rng, 40) {
            return TableId(*pick(self.rng, &there));
        }
        let number = self.policy.tables.len();
        let (name, key) = if chance(self.rng, 60) {
            (Some(format!("table{number}")), Type::from(operand_type.key_type()))
        } else {
            (None, operand_type)
        };
        let entries = self.entries(operand, key, value);
        self.policy.tables.push(Table { name, key, value, entries });
        TableId(number)
    }

    fn entries(&mut self, operand: Operand, key: Type, value: Option<Type>) -> Vec<Entry> {
        let len = match self.rng.u32(..100) {
            0 => self.rng.usize(1..=self.options.large_table),
            1..=10 => self.rng.usize(1..40),
            _ => self.rng.usize(1..6),
        };
        // Some tables have single keys only, as some maps can.
        let ranges = chance(self.rng, 60);
        let mut entries: Vec<Entry> = Vec::new();
        for number in 0..len {
            let (low, high) = self.entry_keys(operand, key, ranges, number >= 40);
            let clashes = |other: &Entry| {
                let apart = high < other.low || other.high < low;
                let inside = low <= other.low && other.high <= high || other.low <= low && high <= other.high;
                !apart && !inside || (low, high) == (other.low, other.high)
            };
            if !entries.iter().any(clashes) {
                let value = value.map_or(0, |value| of_type(self.rng, value));
                entries.push(Entry { low, high, value });
            }
        }
        entries
    }

    /// The lowest and the highest key of an entry.
    fn entry_keys(&mut self, operand: Operand, key: Type, ranges: bool, spread: bool) -> (u128, u128) {
        let all = highest(key.bits());
        let one = if spread { self.rng.u128(..) & all } else { self.constant(operand) };
        if !ranges || chance(self.rng, 40) {
            return (one, one);
        }
        match key {
            Type::Ipv4 | Type::Ipv6 => {
                let mask = prefix_mask(key.bits(), self.prefix_len(key));
                (one & mask, one & mask | !mask & all)
            }
            Type::Unsigned(_) => {
                let width = *pick(self.rng, &[1, 2, 3, 7, 15, 16, 100, 1000, all / 2, all]);
                (one, one.saturating_add(width).min(all))
            }
            _ => (one, one),
        }
    }

    fn prefix_len(&mut self, address: Type) -> u8 {
        let common: &[u8] = if address == Type::Ipv4 { &[8, 16, 24, 30, 31, 32] } else { &[16, 48, 64, 112, 127, 128] };
        if chance(self.rng, 75) { *pick(self.rng, common) } else { self.rng.u8(1..=address.bits()) }
    }

    fn action(&mut self) -> Action {
        loop {
            let action = match self.rng.u32(..12) {
                0..=4 => self.set(),
                5 => self.delete(),
                6 if self.hook.can(Ability::MarkAndPriority) => Some(Action::Mark(self.value(Type::Unsigned(32)))),
                7 if self.hook.can(Ability::MarkAndPriority) => Some(Action::Priority(self.value(Type::Unsigned(32)))),
                8 if self.hook.can(Ability::Queue) => Some(Action::Queue(self.queue())),
                9 => Some(self.log()),
                10 | 11 => Some(self.count()),
                _ => None,
            };
            if let Some(action) = action {
                return action;
            }
        }
    }

    /// A key that rules can change at this hook.
    fn changeable_key(&mut self) -> Option<KeyId> {
        let can = |merge| {
            self.hook.can(match merge {
                Merge::Block => Ability::ChangeBlockKey,
                Merge::KeepFirst | Merge::Discard => Ability::ChangeKeepFirstKey,
            })
        };
        let keys: Vec<usize> = (0..self.policy.keys.len()).filter(|key| can(self.policy.keys[*key].merge)).collect();
        if keys.is_empty() { None } else { Some(KeyId(*pick(self.rng, &keys))) }
    }

    fn set(&mut self) -> Option<Action> {
        let key = self.changeable_key()?;
        let value = match Type::from(self.policy.key(key).key_type) {
            Type::Flag => Value::Constant(0),
            Type::Unsigned(bits) => match self.rng.u32(..10) {
                0 => Value::Unique,
                1 => Value::Hash(Layer::Outer),
                2 => Value::Hash(Layer::Inner),
                3 if bits >= 32 && self.may_ask_hardware() => Value::Hardware(Hardware::Hash),
                4 if bits >= 16 && self.may_ask_hardware() => Value::Hardware(Hardware::VlanId),
                _ => self.value(Type::Unsigned(bits)),
            },
            Type::Timestamp => match self.rng.u32(..4) {
                0 => Value::Time,
                1 if self.may_ask_hardware() => Value::Hardware(Hardware::Timestamp),
                _ => self.value(Type::Timestamp),
            },
            other => self.value(other),
        };
        Some(Action::Set { key, value })
    }

    fn may_ask_hardware(&self) -> bool {
        self.options.hardware && self.hook.can(Ability::Hardware)
    }

    fn delete(&mut self) -> Option<Action> {
        self.changeable_key().map(Action::Delete)
    }

    /// A value that can be had everywhere and is of a type, or a narrower number.
    fn value(&mut self, wanted: Type) -> Value {
        match self.rng.u32(..10) {
            0..=3 => Value::Constant(of_type(self.rng, wanted)),
            4..=6 => match self.operand_for(wanted) {
                Some(operand) => Value::Operand(operand),
                None => Value::Constant(of_type(self.rng, wanted)),
            },
            _ => {
                let operand = self.operand();
                if self.policy.type_of(operand) == Type::Flag {
                    return Value::Constant(of_type(self.rng, wanted));
                }
                let found = Type::from(wanted.key_type());
                let found = if found.bits() > wanted.bits() { Type::Unsigned(8) } else { found };
                Value::Lookup { operand, table: self.table(operand, Some(found)) }
            }
        }
    }

    /// A queue: the kernel takes no number from 0xffff (NO_QUEUE_MAPPING in include/linux/skbuff.h).
    fn queue(&mut self) -> Value {
        match self.operand_for(Type::Unsigned(12)) {
            Some(operand) if chance(self.rng, 50) => Value::Operand(operand),
            _ => Value::Constant(u128::from(self.rng.u16(..0xffff))),
        }
    }

    /// Something whose values are of a type, or are narrower numbers.
    fn operand_for(&mut self, wanted: Type) -> Option<Operand> {
        let tries = std::iter::repeat_with(|| self.operand()).take(40).collect::<Vec<_>>();
        tries.into_iter().find(|operand| {
            let found = self.policy.type_of(*operand);
            found != Type::Flag && fits(found, wanted)
        })
    }

    fn count(&mut self) -> Action {
        let there = self.policy.counters.len();
        let number = if there > 0 && chance(self.rng, 50) { self.rng.usize(..there) } else { there };
        let wanted = match self.policy.counters.get(number) {
            Some(counter) => counter.by,
            None => {
                let by = if chance(self.rng, 50) { Some(self.operand()) } else { None };
                let by = by.map(|operand| self.policy.type_of(operand)).filter(|by| *by != Type::Flag);
                let by = by.map(|by| Type::from(by.key_type()));
                self.policy.counters.push(Counter { name: format!("counter{number}"), by });
                by
            }
        };
        let counter = CounterId(number);
        match wanted {
            None => Action::Count { counter, by: None },
            Some(wanted) => match self.operand_for(wanted) {
                Some(operand) => Action::Count { counter, by: Some(operand) },
                None => self.log(),
            },
        }
    }

    fn log(&mut self) -> Action {
        let text = *pick(self.rng, &["", "seen", "a \"quoted\" */ text \\ with %d", "ümläut"]);
        Action::Log { text: text.to_owned(), sample: *pick(self.rng, &[1, 1, 2, 1000]) }
    }

    fn verdict(&mut self) -> Verdict {
        loop {
            match self.rng.u32(..6) {
                0 if self.hook.can(Ability::AcceptAndDrop) => return Verdict::Accept,
                1 if self.hook.can(Ability::AcceptAndDrop) => return Verdict::Drop,
                2 if self.hook.can(Ability::RedirectDevice) => return Verdict::RedirectDevice(self.interface()),
                3 if self.hook.can(Ability::RedirectCpuOrXsk) => {
                    return Verdict::RedirectCpu(self.value(Type::Unsigned(32)));
                }
                4 if self.hook.can(Ability::RedirectCpuOrXsk) => {
                    let own = chance(self.rng, 50);
                    return Verdict::RedirectXsk(if own { None } else { Some(self.value(Type::Unsigned(32))) });
                }
                5 if self.hook.can(Ability::Member) => return Verdict::Member(self.value(Type::Unsigned(32))),
                _ => {}
            }
        }
    }
}

fn presence_of(operand: Operand) -> Presence {
    match operand {
        Operand::Field(field) => Presence::Field(field),
        Operand::Trait(key) => Presence::Trait(key),
    }
}

/// Whether a field is of the Ethernet header or a VLAN tag.
fn in_ethernet(kind: FieldKind) -> bool {
    matches!(
        kind,
        FieldKind::EtherSource
            | FieldKind::EtherDestination
            | FieldKind::EtherType
            | FieldKind::VlanId
            | FieldKind::VlanPriority
    )
}

/// Whether a value of one type can be taken for one of another.
fn fits(narrow: Type, wide: Type) -> bool {
    match (narrow, wide) {
        (Type::Unsigned(narrow), Type::Unsigned(wide)) => narrow <= wide,
        (narrow, wide) => narrow == wide,
    }
}

/// The bits of a prefix, among `bits`.
fn prefix_mask(bits: u8, len: u8) -> u128 {
    highest(bits) & !highest(bits - len)
}
