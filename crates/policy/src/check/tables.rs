//! Sets and maps: named ones, and those written in a rule.

use std::cmp::Reverse;

use packet_traits_core::KeyType;

use super::{Checker, Declared, constants::Expected};
use crate::{
    diagnostic::{Code, Diagnostic, quoted},
    policy::{Entry, Table, TableId, Type},
    source::Span,
    syntax::ast::{self, Element, Spanned},
};

/// How many elements all lists of a policy may have together.
pub(super) const ELEMENTS_MAX: usize = 1 << 21;

/// A named set or map.
pub(super) struct Named {
    table: Table,
    /// Its place in the policy once a rule uses it.
    id: Option<TableId>,
}

impl<'a> Checker<'a> {
    pub(super) fn named_table(&mut self, table: &'a ast::Table) {
        let value = self.checked_table(table).map(|table| Named { table, id: None });
        match self.tables.get(table.name.value.as_str()).map(|first| first.span) {
            Some(first) => self.duplicate("set or map", &table.name, first),
            None => {
                let used = value.is_none();
                self.tables.insert(&table.name.value, Declared { span: table.name.span, value, used });
            }
        }
    }

    fn checked_table(&mut self, table: &ast::Table) -> Option<Table> {
        let key = self.table_type(&table.key);
        let value = table.value.as_ref().map(|word| self.table_type(word));
        let expected = |value_type, what: &str, span| Expected {
            value_type,
            field: None,
            what: format!("{what} of {}", quoted(&table.name.value)),
            verb: "be",
            span,
        };
        let key = expected(key?, if value.is_some() { "a key" } else { "an element" }, table.key.span);
        let value = match (value, &table.value) {
            (Some(value), Some(word)) => Some(expected(value?, "a value", word.span)),
            _ => None,
        };
        let entries = self.entries(&table.elements, table.list, &key, value.as_ref())?;
        let name = Some(table.name.value.clone());
        Some(Table { name, key: key.value_type, value: value.map(|value| value.value_type), entries })
    }

    fn table_type(&mut self, word: &Spanned<String>) -> Option<Type> {
        let key_type = self.type_name(word)?;
        if key_type == KeyType::Flag {
            let message = "a flag has no values that could be in a set or a map";
            self.error(Diagnostic::new(Code::TypeMismatch, word.span, message));
            return None;
        }
        Some(key_type.into())
    }

    /// The entries of a list, in the order they are written.
    pub(super) fn entries(
        &mut self,
        elements: &[Element],
        list: Span,
        key: &Expected,
        value: Option<&Expected>,
    ) -> Option<Vec<Entry>> {
        if elements.is_empty() {
            let message = "a list has at least one element";
            self.error(Diagnostic::new(Code::Empty, list, message));
            return None;
        }
        let mut good = true;
        let mut entries: Vec<(Entry, Span)> = Vec::new();
        for element in self.expand(elements)? {
            let interval = self.interval(&element.pattern, key);
            let value = match (value, element.value) {
                (Some(expected), Some(literal)) => self.number(literal, expected),
                _ => Some(0),
            };
            match (interval, value) {
                (Some((low, high)), Some(value)) => entries.push((Entry { low, high, value }, element.pattern.span)),
                _ => good = false,
            }
        }
        let map = value.is_some();
        let (repeated, apart) = self.overlaps(&entries, map)?;
        let mut entries: Vec<Entry> = entries.into_iter().map(|(entry, _)| entry).collect();
        if !apart {
            return good.then_some(joined(entries));
        }
        if repeated.contains(&true) {
            let mut place = 0;
            entries.retain(|_| {
                place += 1;
                !repeated[place - 1]
            });
        }
        good.then_some(entries)
    }

    /// Which entries are there already, and whether all others are apart or one in the other, as a set's need not be;
    /// nothing if there is something wrong with that.
    fn overlaps(&mut self, entries: &[(Entry, Span)], map: bool) -> Option<(Vec<bool>, bool)> {
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|place| (entries[*place].0.low, Reverse(entries[*place].0.high), *place));
        let mut repeated = vec![false; entries.len()];
        let (mut good, mut apart) = (true, true);
        // those that have the current one in them, the smallest last
        let mut around: Vec<usize> = Vec::new();
        for place in order {
            let (entry, span) = entries[place];
            while around.last().is_some_and(|outer| entries[*outer].0.high < entry.low) {
                around.pop();
            }
            let Some((outer, first)) = around.last().map(|outer| entries[*outer]) else {
                around.push(place);
                continue;
            };
            if (outer.low, outer.high) == (entry.low, entry.high) {
                repeated[place] = true;
                let code = if map { Code::Duplicate } else { Code::Repeated };
                let message = format!("{} is in the list twice", self.quote(span));
                self.error(Diagnostic::new(code, span, message).related(first, "it is here already"));
                good &= !map;
            } else if outer.high < entry.high && !map {
                apart = false;
                around.push(place);
            } else if outer.high < entry.high {
                let message = format!("{} and {} overlap", self.quote(first), self.quote(span));
                let diagnostic = Diagnostic::new(Code::Overlap, span, message).related(first, "the other one");
                self.error(
                    diagnostic.hint("one range may be inside another, and then counts; else they must be apart"),
                );
                good = false;
            } else {
                around.push(place);
            }
        }
        good.then_some((repeated, apart))
    }

    /// The place of a table that is written in a rule.
    pub(super) fn anonymous(&mut self, key: Type, value: Option<Type>, entries: Vec<Entry>) -> TableId {
        let next = TableId(self.policy.tables.len());
        let id = *self.anonymous.entry((key, value, entries.clone())).or_insert(next);
        if id == next {
            self.policy.tables.push(Table { name: None, key, value, entries });
        }
        id
    }

    /// The place of a table that a rule uses by its name.
    pub(super) fn use_table(&mut self, name: &Spanned<String>) -> Option<TableId> {
        let Some(declared) = self.tables.get_mut(name.value.as_str()) else {
            let known: Vec<&str> = self.tables.keys().copied().collect();
            let declare = format!("set {} TYPE = {{ … }}", name.value);
            self.unknown_name("set or map", &name.value, name.span, &known, &declare);
            return None;
        };
        declared.used = true;
        let named = declared.value.as_mut()?;
        if named.id.is_none() {
            named.id = Some(TableId(self.policy.tables.len()));
            self.policy.tables.push(named.table.clone());
        }
        named.id
    }
}

/// A set's ranges as those that are apart.
fn joined(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by_key(|entry| entry.low);
    let mut joined: Vec<Entry> = Vec::new();
    for entry in entries {
        match joined.last_mut() {
            Some(last) if entry.low <= last.high => last.high = last.high.max(entry.high),
            _ => joined.push(entry),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn joined_ranges_are_apart_and_have_the_same_numbers(ranges in prop::collection::vec((0u128..60, 0u128..20), 1..12)) {
            let entries: Vec<Entry> =
                ranges.into_iter().map(|(low, more)| Entry { low, high: low + more, value: 0 }).collect();
            let joined = joined(entries.clone());
            prop_assert!(joined.is_sorted_by(|one, next| one.high < next.low));
            for number in 0..90 {
                let inside = |entries: &[Entry]| entries.iter().any(|entry| (entry.low..=entry.high).contains(&number));
                prop_assert_eq!(inside(&joined), inside(&entries), "{}", number);
            }
        }
    }
}
