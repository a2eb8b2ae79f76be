//! Sets of values, for reasoning about conditions: which values of a field or trait pass.

use std::rc::Rc;

use crate::{
    field::FieldKind,
    policy::{Comparison, Operand, Policy, TableId, Test, Type},
};

/// Values that something may have, and whether it may be absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Domain {
    pub(super) absent: bool,
    /// From the first to the second, both included; in order, and apart.
    pub(super) ranges: Rc<[(u128, u128)]>,
}

impl Domain {
    pub(super) fn of(ranges: impl Into<Rc<[(u128, u128)]>>) -> Domain {
        Domain { absent: false, ranges: ranges.into() }
    }

    /// Not there.
    pub(super) fn absent() -> Domain {
        Domain { absent: true, ranges: Rc::new([]) }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.absent && self.ranges.is_empty()
    }

    /// How much work it is to go through it.
    pub(super) fn weight(&self) -> usize {
        self.ranges.len() + 1
    }

    /// What is in both.
    pub(super) fn and(&self, other: &Domain) -> Domain {
        let absent = self.absent && other.absent;
        if Rc::ptr_eq(&self.ranges, &other.ranges) {
            return Domain { absent, ranges: Rc::clone(&self.ranges) };
        }
        let mut ranges = Vec::new();
        let (mut left, mut right) = (self.ranges.iter().peekable(), other.ranges.iter().peekable());
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            let (low, high) = (a.0.max(b.0), a.1.min(b.1));
            if low <= high {
                ranges.push((low, high));
            }
            if a.1 <= b.1 {
                left.next()
            } else {
                right.next()
            };
        }
        Domain { absent, ranges: ranges.into() }
    }

    /// What is in none, of values up to `most`, with absence.
    pub(super) fn not(&self, most: u128) -> Domain {
        Domain { absent: !self.absent, ranges: complement(&self.ranges, most).into() }
    }

    /// Whether all of it is in the other.
    pub(super) fn within(&self, other: &Domain) -> bool {
        if self.absent && !other.absent {
            return false;
        }
        if Rc::ptr_eq(&self.ranges, &other.ranges) {
            return true;
        }
        let mut outer = other.ranges.iter().peekable();
        self.ranges.iter().all(|(low, high)| {
            while outer.next_if(|(_, end)| end < low).is_some() {}
            outer.peek().is_some_and(|(start, end)| start <= low && high <= end)
        })
    }
}

/// The values, of those from 0 to `most`, that no range has.
fn complement(ranges: &[(u128, u128)], most: u128) -> Vec<(u128, u128)> {
    let mut gaps = Vec::new();
    let mut next = Some(0);
    for (low, high) in ranges {
        if let Some(start) = next.filter(|start| start < low) {
            gaps.push((start, low - 1));
        }
        next = high.checked_add(1);
    }
    gaps.extend(next.filter(|start| *start <= most).map(|start| (start, most)));
    gaps
}

/// Ranges in order and apart.
fn tidy(mut ranges: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    ranges.sort_unstable();
    let mut tidied: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
    for (low, high) in ranges {
        match tidied.last_mut() {
            Some((_, end)) if end.checked_add(1).is_none_or(|next| low <= next) => *end = high.max(*end),
            _ => tidied.push((low, high)),
        }
    }
    tidied
}

/// The highest number that stands for a value of a type.
pub(super) fn most(value_type: Type) -> u128 {
    match value_type.bits() {
        128 => u128::MAX,
        bits => (1 << bits) - 1,
    }
}

/// The number by which values of a type are in order.
fn ordinal(value_type: Type, value: u128) -> u128 {
    if value_type == Type::Signed { value ^ 1 << 63 } else { value }
}

/// Everything that something can be, if it is there.
pub(super) fn everything(policy: &Policy, operand: Operand) -> Domain {
    match operand {
        Operand::Field(field) if field.kind == FieldKind::IpVersion => Domain::of([(4, 4), (6, 6)]),
        Operand::Field(field) if field.kind == FieldKind::Fragment => Domain::of([(0, 2)]),
        operand => Domain::of([(0, most(policy.type_of(operand)))]),
    }
}

/// The values that pass a test of values; `None` if they are too many to tell.
pub(super) fn passing(
    policy: &Policy,
    test: &Test,
    table: &mut impl FnMut(TableId) -> Rc<[(u128, u128)]>,
) -> Option<(Operand, Domain)> {
    let of = |operand, ranges: Vec<(u128, u128)>, negated| {
        let ranges = if negated { complement(&ranges, most(policy.type_of(operand))) } else { ranges };
        Some((operand, Domain::of(ranges)))
    };
    match *test {
        Test::Compare { operand, comparison, value } => {
            let value_type = policy.type_of(operand);
            let value = ordinal(value_type, value);
            let most = most(value_type);
            let below = |end: Option<u128>| end.map(|end| (0, end)).into_iter().collect();
            let from = |start: Option<u128>| {
                start.filter(|start| *start <= most).map(|start| (start, most)).into_iter().collect()
            };
            let ranges: Vec<(u128, u128)> = match comparison {
                Comparison::Equal => vec![(value, value)],
                Comparison::NotEqual => complement(&[(value, value)], most),
                Comparison::Less => below(value.checked_sub(1)),
                Comparison::LessOrEqual => below(Some(value)),
                Comparison::Greater => from(value.checked_add(1)),
                Comparison::GreaterOrEqual => from(Some(value)),
            };
            of(operand, ranges, false)
        }
        Test::Between { operand, low, high, negated } => of(operand, vec![(low, high)], negated),
        Test::Masked { operand, mask, value, negated } => {
            let every = most(policy.type_of(operand));
            let behind = every & !mask;
            if behind & behind.wrapping_add(1) == 0 {
                return of(operand, vec![(value, value | behind)], negated);
            }
            of(operand, matching(every, |bits| bits & mask == value)?, negated)
        }
        Test::AnyBit { operand, mask, negated } => {
            of(operand, matching(most(policy.type_of(operand)), |bits| bits & mask != 0)?, negated)
        }
        Test::In { operand, table: id, negated } => {
            let ranges = table(id);
            let domain = Domain::of(ranges);
            if !negated {
                return Some((operand, domain));
            }
            of(operand, domain.ranges.to_vec(), true)
        }
        Test::Present(_) | Test::Interface { .. } => None,
    }
}

/// The values up to `most` that match; nothing if there are too many to go through.
fn matching(most: u128, matches: impl Fn(u128) -> bool) -> Option<Vec<(u128, u128)>> {
    (most <= 0xff).then(|| tidy((0..=most).filter(|bits| matches(*bits)).map(|bits| (bits, bits)).collect()))
}

/// The keys of a table.
pub(super) fn keys_of(policy: &Policy, id: TableId) -> Rc<[(u128, u128)]> {
    let table = policy.table(id);
    let number = |value| ordinal(table.key, value);
    tidy(table.entries.iter().map(|entry| (number(entry.low), number(entry.high))).collect()).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn domains() -> impl Strategy<Value = Domain> {
        (any::<bool>(), prop::collection::vec((0u128..40, 0u128..8), 0..6)).prop_map(|(absent, ranges)| Domain {
            absent,
            ranges: tidy(ranges.into_iter().map(|(low, len)| (low, low + len)).collect()).into(),
        })
    }

    fn has(domain: &Domain, value: u128) -> bool {
        domain.ranges.iter().any(|(low, high)| *low <= value && value <= *high)
    }

    proptest! {
        #[test]
        fn operations_are_those_of_sets(a in domains(), b in domains()) {
            let (both, not) = (a.and(&b), a.not(63));
            for value in 0..64 {
                prop_assert_eq!(has(&both, value), has(&a, value) && has(&b, value));
                prop_assert_eq!(has(&not, value), !has(&a, value));
            }
            prop_assert_eq!(both.absent, a.absent && b.absent);
            prop_assert_eq!(not.absent, !a.absent);
            let within = (0..64).all(|value| !has(&a, value) || has(&b, value)) && (!a.absent || b.absent);
            prop_assert_eq!(a.within(&b), within);
        }
    }
}
