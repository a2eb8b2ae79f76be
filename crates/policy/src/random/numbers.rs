//! Numbers that are worth trying: those that packets often have, those at the ends of ranges, and any.

use std::collections::HashMap;

use fastrand::Rng;

use crate::{
    field::{Field, FieldKind},
    policy::{Action, Verdict},
    policy::{Condition, Operand, Policy, Test, Type, Value},
};

/// All values of a type that has this many bits.
pub(super) const fn highest(bits: u8) -> u128 {
    match bits {
        0 => 0,
        bits => u128::MAX >> (128 - bits),
    }
}

/// One of them.
pub(super) fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.usize(..from.len())]
}

/// Whether something comes about that does so in `percent` of all cases.
pub(super) fn chance(rng: &mut Rng, percent: u32) -> bool {
    rng.u32(..100) < percent
}

/// A value of a type: often one of a few, so that two that are chosen independently are often the same.
pub(super) fn of_type(rng: &mut Rng, value_type: Type) -> u128 {
    let all = highest(value_type.bits());
    match rng.u32(..10) {
        0 => rng.u128(..) & all,
        1 => *pick(rng, &[0, 1, all, all - all / 2, all.saturating_sub(1)]) & all,
        _ => match value_type {
            Type::Ipv4 => 0x0a01_0000 | u128::from(rng.u8(..4)) << 8 | u128::from(rng.u8(..8)),
            Type::Ipv6 => 0xfd00_0000_0000_0001 << 64 | u128::from(rng.u8(..4)) << 16 | u128::from(rng.u8(..8)),
            Type::Mac => 0x0200_0000_0000 | u128::from(rng.u8(..6)),
            Type::Uuid => 0x6ba7_b810_9dad_11d1_80b4_00c0_4fd4_30c8 ^ u128::from(rng.u8(..4)),
            // Far from the time now, which a rule may have set: a test cannot know that to the nanosecond.
            Type::Timestamp => u128::from(rng.u16(..4)),
            Type::Signed => u128::from(i64::from(rng.i8(-8..8)) as u64),
            Type::Unsigned(_) | Type::Flag => u128::from(rng.u8(..8)) & all,
        },
    }
}

/// A value of a field: often one that packets have, or one of a few.
pub(super) fn of_field(rng: &mut Rng, field: Field) -> u128 {
    let common: &[u128] = match field.kind {
        FieldKind::Length => &[14, 34, 42, 54, 60, 62, 64, 74, 82, 90, 100, 120, 128],
        FieldKind::EtherType | FieldKind::GeneveProtocol | FieldKind::GreProtocol => {
            &[0x0800, 0x86dd, 0x0806, 0x8100, 0x88a8, 0x6558]
        }
        FieldKind::VlanId => &[0, 1, 2, 100, 4094, 4095],
        FieldKind::Ipv4TimeToLive | FieldKind::Ipv6HopLimit => &[0, 1, 63, 64, 128, 255],
        FieldKind::Ipv6FlowLabel => &[0, 1, 0x12345, 0xfffff],
        FieldKind::IpVersion => &[4, 6],
        FieldKind::Incomplete => &[1],
        FieldKind::Protocol => &[0, 1, 6, 17, 43, 44, 47, 50, 51, 58, 60, 132],
        FieldKind::Dscp => &[0, 8, 10, 34, 46, 63],
        FieldKind::Fragment => &[0, 1, 2],
        FieldKind::TcpSource
        | FieldKind::TcpDestination
        | FieldKind::UdpSource
        | FieldKind::UdpDestination
        | FieldKind::TransportSource
        | FieldKind::TransportDestination => &[22, 53, 80, 443, 4789, 6081, 8000, 8001, 8080, 65535],
        FieldKind::TcpFlags => &[0, 0x02, 0x10, 0x12, 0x18, 0x11, 0x14, 0xff],
        FieldKind::IcmpType | FieldKind::Icmpv6Type => &[0, 3, 8, 11, 128, 129, 133, 135, 136],
        FieldKind::IcmpCode | FieldKind::Icmpv6Code => &[0, 1, 3, 4],
        FieldKind::VxlanVni | FieldKind::GeneveVni => &[0, 1, 7, 1001, 2002, 0xff_ffff],
        FieldKind::GeneveOption { .. } | FieldKind::GreKey => &[0, 1, 7, 1001, 0xffff_ffff],
        FieldKind::EtherSource
        | FieldKind::EtherDestination
        | FieldKind::VlanPriority
        | FieldKind::Ipv4Source
        | FieldKind::Ipv4Destination
        | FieldKind::Ipv6Source
        | FieldKind::Ipv6Destination => &[],
    };
    if common.is_empty() || chance(rng, 20) { of_type(rng, field.value_type()) } else { *pick(rng, common) }
}

/// Options of Geneve that policies ask for and packets have.
pub(super) const GENEVE_OPTIONS: [(u16, u8); 4] = [(0x0102, 0x80), (0x0102, 0x81), (0x0102, 0x01), (0xffff, 0x80)];

/// A value of a field or, for a trait, of its type.
pub(super) fn of_operand(rng: &mut Rng, policy: &Policy, operand: Operand) -> u128 {
    match operand {
        Operand::Field(field) => of_field(rng, field),
        Operand::Trait(_) => of_type(rng, policy.type_of(operand)),
    }
}

/// The numbers that a policy's rules compare things with.
#[derive(Default)]
pub(super) struct Constants(HashMap<Operand, Vec<u128>>);

impl Constants {
    /// Those of one block.
    pub(super) fn of(policy: &Policy, block: usize) -> Constants {
        let mut constants = Constants::default();
        for rule in &policy.blocks[block].rules {
            constants.condition(policy, &rule.condition);
            for action in &rule.actions {
                constants.action(policy, action);
            }
        }
        constants
    }

    /// A value for what a test may be about: often one that decides a test, or its neighbour.
    pub(super) fn value(&self, rng: &mut Rng, policy: &Policy, operand: Operand) -> u128 {
        match self.0.get(&operand) {
            Some(numbers) if chance(rng, 70) => {
                let number = *pick(rng, numbers);
                let near = match rng.u32(..10) {
                    0 => number.wrapping_add(1),
                    1 => number.wrapping_sub(1),
                    _ => number,
                };
                near & highest(policy.type_of(operand).bits())
            }
            _ => of_operand(rng, policy, operand),
        }
    }

    fn add(&mut self, operand: Operand, numbers: impl IntoIterator<Item = u128>) {
        self.0.entry(operand).or_default().extend(numbers);
    }

    fn condition(&mut self, policy: &Policy, condition: &Condition) {
        match condition {
            Condition::Always => {}
            Condition::All(parts) | Condition::Any(parts) => {
                for part in parts {
                    self.condition(policy, part);
                }
            }
            Condition::Not(part) => self.condition(policy, part),
            Condition::Test(test) => match *test {
                Test::Compare { operand, value, .. } => self.add(operand, [value]),
                Test::Between { operand, low, high, .. } => self.add(operand, [low, high]),
                Test::Masked { operand, mask, value, .. } => self.add(operand, [value, value | !mask]),
                Test::AnyBit { operand, mask, .. } => self.add(operand, [mask, !mask]),
                Test::In { operand, table, .. } => self.add_table(policy, operand, table.0),
                Test::Present(_) | Test::Interface { .. } => {}
            },
        }
    }

    fn action(&mut self, policy: &Policy, action: &Action) {
        let value = match action {
            Action::Set { value, .. } | Action::Mark(value) | Action::Priority(value) | Action::Queue(value) => value,
            Action::Verdict(
                Verdict::RedirectCpu(value) | Verdict::RedirectXsk(Some(value)) | Verdict::Member(value),
            ) => value,
            Action::Delete(_) | Action::Count { .. } | Action::Log { .. } | Action::Verdict(_) => return,
        };
        if let Value::Lookup { operand, table } = *value {
            self.add_table(policy, operand, table.0);
        }
    }

    fn add_table(&mut self, policy: &Policy, operand: Operand, table: usize) {
        // A few of a large table are enough.
        let entries = policy.tables[table].entries.iter().take(200);
        self.add(operand, entries.flat_map(|entry| [entry.low, entry.high]));
    }
}
