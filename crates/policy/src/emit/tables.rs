//! Sets and maps: a tree of comparisons for a small one, a BPF map for a large one.

use crate::{
    emit::code::{Code, c_size, c_type, constant},
    manifest,
    policy::{Entry, Table, Type},
};

/// A table of up to this many disjoint ranges becomes a tree of comparisons: no map lookup is as fast.
const TREE_RANGES_MAX: usize = 16;

/// A table as it is in C.
#[derive(Debug)]
pub(super) struct CTable<'p> {
    table: &'p Table,
    /// The function that looks up in it.
    pub(super) function: String,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// Disjoint ranges in order.
    Tree(Vec<Entry>),
    /// A map of this name for single keys.
    Hash(String),
    /// A map of this name for prefixes of numbers of `width` bits: 32, 64 or 128.
    Trie { map: String, width: u32 },
}

/// A prefix of a trie: the number's bytes after the length in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Prefix {
    number: u128,
    len: u32,
}

impl<'p> CTable<'p> {
    /// The `number`th table of a policy.
    pub(super) fn new(table: &'p Table, number: usize) -> CTable<'p> {
        let function = match (&table.name, table.value) {
            (Some(name), None) => format!("set_{name}"),
            (Some(name), Some(_)) => format!("map_{name}"),
            (None, _) => format!("table_{number}"),
        };
        let map = format!("pt_{function}");
        let form = if table.entries.len() <= TREE_RANGES_MAX
            && let ranges = disjoint(table)
            && ranges.len() <= TREE_RANGES_MAX
        {
            Form::Tree(ranges)
        } else if table.entries.iter().all(|entry| entry.low == entry.high) {
            Form::Hash(map)
        } else {
            Form::Trie { map, width: 8 * c_size(table.key.bits()).max(4) as u32 }
        };
        CTable { table, function, form }
    }

    /// About how large the code of a lookup is, in tests.
    pub(super) fn weight(&self) -> usize {
        match &self.form {
            Form::Tree(ranges) => 2 * ranges.len(),
            Form::Hash(_) | Form::Trie { .. } => 2,
        }
    }

    /// What is in its map, if it is one.
    pub(super) fn contents(&self) -> Option<manifest::Table> {
        let value = |value: u128| hex(&native(value, self.table.value.map_or(1, |of| c_size(of.bits()))));
        let (map, entries) = match &self.form {
            Form::Tree(_) => return None,
            Form::Hash(map) => {
                let key = |number| hex(&native(number, c_size(self.table.key.bits())));
                (map, self.table.entries.iter().map(|entry| (key(entry.low), value(entry.value))).collect())
            }
            Form::Trie { map, width } => {
                let key = |prefix: Prefix| {
                    let number = &prefix.number.to_be_bytes()[16 - *width as usize / 8..];
                    hex(&[&prefix.len.to_ne_bytes(), number].concat())
                };
                let prefixes = prefixes(self.table, *width);
                (map, prefixes.into_iter().map(|(prefix, found)| (key(prefix), value(found))).collect())
            }
        };
        Some(manifest::Table { map: map.clone(), entries })
    }

    /// Writes its map, if it is one, and its function.
    pub(super) fn write(&self, code: &mut Code) {
        let key = c_type(self.table.key.bits());
        let value = c_type(self.table.value.map_or(8, Type::bits));
        if let Some(contents) = self.contents() {
            let (map_type, map_key) = match &self.form {
                Form::Trie { width, .. } => ("BPF_MAP_TYPE_LPM_TRIE", format!("struct pt_prefix{width}")),
                _ => ("BPF_MAP_TYPE_HASH", key.to_owned()),
            };
            code.open("struct");
            code.line(format_args!("__uint(type, {map_type});"));
            if let Form::Trie { .. } = self.form {
                code.line("__uint(map_flags, BPF_F_NO_PREALLOC);");
            }
            code.line(format_args!("__uint(max_entries, {});", contents.entries.len()));
            code.line(format_args!("__type(key, {map_key});"));
            code.line(format_args!("__type(value, {value});"));
            code.close_with(&format!(" {} SEC(\".maps\");", contents.map));
            code.blank();
        }
        let found = if self.table.value.is_some() { format!(", {value} *found") } else { String::new() };
        code.function(format_args!("static __always_inline _Bool {}({key} key{found})", self.function));
        match &self.form {
            Form::Tree(ranges) => {
                let max = u128::MAX >> (128 - u32::from(self.table.key.bits().max(1)));
                self.tree(code, ranges, 0, max);
            }
            Form::Hash(map) => self.lookup(code, map, "&key"),
            Form::Trie { map, width } => {
                code.line(format_args!("struct pt_prefix{width} prefix = pt_prefix{width}(key);"));
                code.blank();
                self.lookup(code, map, "&prefix");
            }
        }
        code.close();
        code.blank();
    }

    fn lookup(&self, code: &mut Code, map: &str, key: &str) {
        match self.table.value {
            None => code.line(format_args!("return bpf_map_lookup_elem(&{map}, {key}) != (void *)0;")),
            Some(of) => {
                code.line(format_args!("{} *value = bpf_map_lookup_elem(&{map}, {key});", c_type(of.bits())));
                code.blank();
                code.line("if (!value)");
                code.line("\treturn 0;");
                code.line("*found = *value;");
                code.line("return 1;");
            }
        }
    }

    /// Statements that return; `key` is known to be from `min` to `max`.
    fn tree(&self, code: &mut Code, ranges: &[Entry], min: u128, max: u128) {
        let of = self.table.key;
        match ranges {
            [] => code.line("return 0;"),
            [range] => {
                let mut conditions = Vec::new();
                if range.low == range.high {
                    conditions.push(format!("key == {}", constant(range.low, of)));
                } else {
                    if range.low > min {
                        conditions.push(format!("key >= {}", constant(range.low, of)));
                    }
                    if range.high < max {
                        conditions.push(format!("key <= {}", constant(range.high, of)));
                    }
                }
                match self.table.value {
                    None if conditions.is_empty() => code.line("return 1;"),
                    None => code.line(format_args!("return {};", conditions.join(" && "))),
                    Some(value) => {
                        if !conditions.is_empty() {
                            code.line(format_args!("if (!({}))", conditions.join(" && ")));
                            code.line("\treturn 0;");
                        }
                        code.line(format_args!("*found = {};", constant(range.value, value)));
                        code.line("return 1;");
                    }
                }
            }
            _ => {
                let (left, right) = ranges.split_at(ranges.len() / 2);
                let middle = right[0].low;
                code.open(format_args!("if (key < {})", constant(middle, of)));
                self.tree(code, left, min, middle - 1);
                code.close();
                self.tree(code, right, middle, max);
            }
        }
    }
}

/// The number's low bytes as a C integer of that size has them.
fn native(number: u128, size: usize) -> Vec<u8> {
    number.to_le_bytes()[..size].to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Ranges that do not overlap, in order, with what is found in each.
fn disjoint(table: &Table) -> Vec<Entry> {
    let mut starts: Vec<u128> = Vec::new();
    for entry in &table.entries {
        starts.push(entry.low);
        starts.extend(entry.high.checked_add(1));
    }
    starts.sort_unstable();
    starts.dedup();
    let mut ranges: Vec<Entry> = Vec::new();
    for (place, low) in starts.iter().enumerate() {
        let high = starts.get(place + 1).map_or(u128::MAX, |next| next - 1);
        let Some(entry) = table.find(*low) else { continue };
        match ranges.last_mut() {
            Some(last) if last.high.checked_add(1) == Some(*low) && last.value == entry.value => last.high = high,
            _ => ranges.push(Entry { low: *low, high, value: entry.value }),
        }
    }
    ranges
}

/// The prefixes that make up the table's ranges, in order, with what is found under each.
///
/// A prefix that is part of an inner range is never shorter than one of the outer range around it, so the longest
/// counts, as in the trie; where both are the same, the inner range's.
fn prefixes(table: &Table, width: u32) -> Vec<(Prefix, u128)> {
    let mut found = std::collections::HashMap::new();
    let mut entries: Vec<&Entry> = table.entries.iter().collect();
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.high - entry.low));
    for entry in entries {
        let mut low = entry.low;
        loop {
            // as many low bits as the number's place and the range's end allow
            let mut free = low.trailing_zeros().min(width);
            while low_bits(free) > entry.high - low {
                free -= 1;
            }
            found.insert(Prefix { number: low, len: width - free }, entry.value);
            let last = low + low_bits(free);
            if last >= entry.high {
                break;
            }
            low = last + 1;
        }
    }
    let mut prefixes: Vec<_> = found.into_iter().collect();
    prefixes.sort_by_key(|(prefix, _)| (prefix.number, prefix.len));
    prefixes
}

/// A number whose low bits, this many, are set.
fn low_bits(bits: u32) -> u128 {
    u128::MAX.checked_shr(128 - bits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(key: Type, entries: &[(u128, u128, u128)]) -> Table {
        Table {
            name: None,
            key,
            value: Some(Type::Unsigned(32)),
            entries: entries.iter().map(|(low, high, value)| Entry { low: *low, high: *high, value: *value }).collect(),
        }
    }

    /// What a trie finds: the longest prefix.
    fn longest(prefixes: &[(Prefix, u128)], width: u32, key: u128) -> Option<u128> {
        let matching =
            |prefix: &Prefix| key.checked_shr(width - prefix.len) == prefix.number.checked_shr(width - prefix.len);
        prefixes
            .iter()
            .filter(|(prefix, _)| matching(prefix))
            .max_by_key(|(prefix, _)| prefix.len)
            .map(|(_, value)| *value)
    }

    #[test]
    fn ranges_and_prefixes_find_what_the_table_does() {
        let whole = table(Type::Unsigned(16), &[(0, 0xffff, 1), (7, 7, 2), (8, 100, 3), (16, 31, 4), (17, 17, 5)]);
        let parts = table(Type::Unsigned(16), &[(5, 9, 1), (10, 10, 1), (12, 12, 2), (0xfff0, 0xffff, 3)]);
        for table in [whole, parts] {
            let ranges = disjoint(&table);
            let prefixes = prefixes(&table, 32);
            for key in 0..=0xffff {
                let expected = table.find(key).map(|entry| entry.value);
                let range = ranges.iter().find(|range| range.low <= key && key <= range.high);
                assert_eq!(range.map(|range| range.value), expected, "range of {key}");
                assert_eq!(longest(&prefixes, 32, key), expected, "prefix of {key}");
            }
        }
    }

    #[test]
    fn the_whole_of_a_type_is_one_range_and_one_prefix() {
        let all = table(Type::Ipv6, &[(0, u128::MAX, 1)]);
        assert_eq!(disjoint(&all), [Entry { low: 0, high: u128::MAX, value: 1 }]);
        assert_eq!(prefixes(&all, 128), [(Prefix { number: 0, len: 0 }, 1)]);
    }

    #[test]
    fn large_tables_are_maps_and_their_contents_are_in_map_order() {
        let ports: Vec<_> = (0..20).map(|port| (port * 2, port * 2, 7)).collect();
        let single = table(Type::Unsigned(16), &ports);
        let contents = CTable::new(&single, 3).contents().unwrap();
        assert_eq!(contents.map, "pt_table_3");
        let (key, value) = &contents.entries[1];
        assert_eq!((key, value), (&hex(&2u16.to_ne_bytes()), &hex(&7u32.to_ne_bytes())));

        let networks: Vec<_> = (0..20).map(|net| (net << 24, net << 24 | 0xff_ffff, 7)).collect();
        let prefixed = table(Type::Ipv4, &networks);
        let contents = CTable::new(&prefixed, 0).contents().unwrap();
        assert_eq!(contents.entries[1].0, format!("{}01000000", hex(&8u32.to_ne_bytes())));
        assert!(CTable::new(&table(Type::Ipv4, &networks[..16]), 0).contents().is_none());
    }
}
