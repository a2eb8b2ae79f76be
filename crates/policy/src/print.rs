//! A checked policy back to text. What is printed is a policy again, and the same one.

use std::{
    fmt::{self, Write},
    net::{Ipv4Addr, Ipv6Addr},
};

use packet_traits_core::{KeyType, Merge};

use crate::{
    field::FieldKind,
    policy::{
        Action, Block, Comparison, Condition, Entry, Hardware, Interface, InterfaceDirection, Layer, Operand, Policy,
        Presence, Table, TableId, Test, Type, Value, Verdict,
    },
    words,
};

/// A policy as text: its keys, its named sets and maps, its blocks.
pub fn print(policy: &Policy) -> String {
    let mut text = String::new();
    for key in &policy.keys {
        let _ = write!(text, "key {} {}", key.name, key.key_type);
        if key.merge != Merge::default() {
            let _ = write!(text, " {}", key.merge);
        }
        if !key.description.is_empty() {
            let _ = write!(text, " {}", Quoted(&key.description));
        }
        text.push('\n');
    }
    for table in &policy.tables {
        let Some(name) = &table.name else { continue };
        let key = type_name(table.key);
        match table.value.map(type_name) {
            None => text.push_str(&format!("set {name} {key} = {}\n", entries(table, None))),
            Some(value) => text.push_str(&format!("map {name} {key} : {value} = {}\n", entries(table, None))),
        }
    }
    for (place, block) in policy.blocks.iter().enumerate() {
        let inherits = if block.inherits { format!(" {}", words::INHERIT) } else { String::new() };
        let _ = writeln!(text, "{}{inherits} {} {{", block.hook, block.name);
        for rule in 0..block.rules.len() {
            let _ = writeln!(text, "    {}", print_rule(policy, place, rule));
        }
        text.push_str("}\n");
    }
    text
}

/// A rule as text, in one line.
///
/// # Panics
/// If the policy has no such block or rule.
pub fn print_rule(policy: &Policy, block: usize, rule: usize) -> String {
    let block: &Block = &policy.blocks[block];
    let rule = &block.rules[rule];
    let mut text = String::new();
    let starts = rule.condition == Condition::Always;
    if !starts {
        condition(policy, &rule.condition, Binding::Or, &mut text);
        text.push_str("  ");
    }
    if rule.actions.is_empty() {
        text.push_str("count");
    }
    for (place, action) in rule.actions.iter().enumerate() {
        if place > 0 {
            text.push_str("  ");
        }
        let action_text = print_action(policy, action);
        match action {
            // nftables has tests that begin so
            Action::Mark(Value::Constant(_)) | Action::Priority(Value::Constant(_)) if starts && place == 0 => {
                text.push_str(&action_text.replacen(' ', " set ", 1));
            }
            _ => text.push_str(&action_text),
        }
    }
    text
}

/// How strongly what is around a condition binds: it is put in parentheses if it binds less.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Binding {
    Or,
    And,
    Not,
}

fn condition(policy: &Policy, what: &Condition, around: Binding, text: &mut String) {
    let (own, parts, word) = match what {
        // only a whole condition is usually that
        Condition::Always => return text.push_str("length is set"),
        Condition::Test(test) => return text.push_str(&print_test(policy, test)),
        Condition::Not(part) => {
            text.push_str("not ");
            return condition(policy, part, Binding::Not, text);
        }
        Condition::Any(parts) => (Binding::Or, parts, " or "),
        Condition::All(parts) => (Binding::And, parts, " and "),
    };
    // a part of the same kind stays a part of its own
    let parenthesis = own < around;
    if parenthesis {
        text.push('(');
    }
    let inside = if own == Binding::Or { Binding::And } else { Binding::Not };
    for (place, part) in parts.iter().enumerate() {
        if place > 0 {
            text.push_str(word);
        }
        condition(policy, part, inside, text);
    }
    if parenthesis {
        text.push(')');
    }
}

/// A test as text.
pub fn print_test(policy: &Policy, test: &Test) -> String {
    let not_equal = |negated: bool| if negated { "!= " } else { "" };
    match *test {
        Test::Present(Presence::Trait(key)) => format!("trait {} is set", policy.key(key).name),
        Test::Present(Presence::Field(field)) => {
            words::header_text(field).unwrap_or_else(|| format!("{} is set", words::field_text(field)))
        }
        Test::Compare { operand, comparison, value } => {
            let operator = match comparison {
                Comparison::Equal if is_flags(operand) => "== ",
                Comparison::Equal => "",
                Comparison::NotEqual => "!= ",
                Comparison::Less => "< ",
                Comparison::LessOrEqual => "<= ",
                Comparison::Greater => "> ",
                Comparison::GreaterOrEqual => ">= ",
            };
            format!("{} {operator}{}", print_operand(policy, operand), print_value(policy, operand, value))
        }
        Test::Between { operand, low, high, negated } => {
            format!("{} {}{low}-{high}", print_operand(policy, operand), not_equal(negated))
        }
        Test::Masked { operand, mask, value, negated } if is_flags(operand) => {
            let operator = if negated { "!=" } else { "==" };
            format!("{} & {} {operator} {}", print_operand(policy, operand), flag_mask(mask), flags(value))
        }
        Test::Masked { operand, mask, value, negated } => {
            let value_type = policy.type_of(operand);
            format!(
                "{} {}{}/{}",
                print_operand(policy, operand),
                not_equal(negated),
                constant(value_type, value),
                mask.count_ones()
            )
        }
        Test::AnyBit { operand, mask, negated: false } => format!("{} {}", print_operand(policy, operand), flags(mask)),
        Test::AnyBit { operand, mask, negated: true } => {
            format!("{} & {} == 0", print_operand(policy, operand), flag_mask(mask))
        }
        Test::In { operand, table, negated } => {
            let table = table_text(policy, table, operand);
            format!("{} {}{table}", print_operand(policy, operand), if negated { "!= " } else { "in " })
        }
        Test::Interface { direction, interface, negated } => {
            let word = match direction {
                InterfaceDirection::In => "iif",
                InterfaceDirection::Out => "oif",
            };
            format!("{word} {}{}", not_equal(negated), interface_text(policy, interface))
        }
    }
}

/// An action as text.
pub fn print_action(policy: &Policy, action: &Action) -> String {
    match action {
        Action::Set { key, value } => {
            let key = policy.key(*key);
            match Type::from(key.key_type) {
                Type::Flag => format!("set {}", key.name),
                value_type => format!("set {} = {}", key.name, value_text(policy, value, value_type)),
            }
        }
        Action::Delete(key) => format!("delete {}", policy.key(*key).name),
        Action::Count { counter, by } => {
            let name = &policy.counters[counter.0].name;
            match by {
                None => format!("count {name}"),
                Some(operand) => format!("count {name} by {}", print_operand(policy, *operand)),
            }
        }
        Action::Log { text, sample } => {
            let mut log = "log".to_owned();
            if !text.is_empty() {
                let _ = write!(log, " {}", Quoted(text));
            }
            if *sample != 1 {
                let _ = write!(log, " sample 1/{sample}");
            }
            log
        }
        Action::Mark(value) => format!("mark {}", value_text(policy, value, Type::Unsigned(32))),
        Action::Priority(value) => format!("priority {}", value_text(policy, value, Type::Unsigned(32))),
        Action::Queue(value) => format!("queue {}", value_text(policy, value, Type::Unsigned(16))),
        Action::Verdict(verdict) => match verdict {
            Verdict::Accept => "accept".to_owned(),
            Verdict::Drop => "drop".to_owned(),
            Verdict::RedirectDevice(interface) => format!("redirect {}", interface_text(policy, *interface)),
            Verdict::RedirectCpu(value) => format!("redirect cpu {}", value_text(policy, value, Type::Unsigned(32))),
            Verdict::RedirectXsk(None) => "redirect xsk".to_owned(),
            Verdict::RedirectXsk(Some(value)) => {
                format!("redirect xsk {}", value_text(policy, value, Type::Unsigned(32)))
            }
            Verdict::Member(value) => format!("member {}", value_text(policy, value, Type::Unsigned(32))),
        },
    }
}

fn value_text(policy: &Policy, value: &Value, value_type: Type) -> String {
    match *value {
        Value::Constant(number) => constant(value_type, number),
        Value::Operand(operand) => print_operand(policy, operand),
        Value::Lookup { operand, table } => {
            format!("{} map {}", print_operand(policy, operand), table_text(policy, table, operand))
        }
        Value::Unique => "unique".to_owned(),
        Value::Hash(Layer::Outer) => "hash(5-tuple)".to_owned(),
        Value::Hash(Layer::Inner) => "hash(inner 5-tuple)".to_owned(),
        Value::Time => "time".to_owned(),
        Value::Hardware(Hardware::Timestamp) => "hardware timestamp".to_owned(),
        Value::Hardware(Hardware::Hash) => "hardware hash".to_owned(),
        Value::Hardware(Hardware::VlanId) => "hardware vlan".to_owned(),
    }
}

/// What a test can be about, as text.
pub fn print_operand(policy: &Policy, operand: Operand) -> String {
    match operand {
        Operand::Field(field) => words::field_text(field),
        Operand::Trait(key) => format!("trait {}", policy.key(key).name),
    }
}

fn interface_text(policy: &Policy, interface: Interface) -> String {
    match interface {
        Interface::Index(index) => index.to_string(),
        Interface::Name(name) => Quoted(&policy.interfaces[name.0]).to_string(),
    }
}

fn table_text(policy: &Policy, table: TableId, operand: Operand) -> String {
    let table = policy.table(table);
    match &table.name {
        Some(name) => format!("@{name}"),
        None => entries(table, Some(operand)),
    }
}

/// `{ element, … }`
fn entries(table: &Table, operand: Option<Operand>) -> String {
    let field = if let Some(Operand::Field(field)) = operand { Some(field.kind) } else { None };
    let elements: Vec<String> = table
        .entries
        .iter()
        .map(|entry| {
            let element = element(table.key, field, entry);
            match table.value {
                None => element,
                Some(value_type) => format!("{element} : {}", constant(value_type, entry.value)),
            }
        })
        .collect();
    format!("{{ {} }}", elements.join(", "))
}

fn element(key: Type, field: Option<FieldKind>, entry: &Entry) -> String {
    if entry.low == entry.high {
        return match field.and_then(|field| word(field, entry.low)) {
            Some(word) => word.to_owned(),
            None => constant(key, entry.low),
        };
    }
    match key {
        Type::Ipv4 | Type::Ipv6 => {
            let len = u32::from(key.bits()) - (entry.low ^ entry.high).count_ones();
            format!("{}/{len}", constant(key, entry.low))
        }
        _ => format!("{}-{}", constant(key, entry.low), constant(key, entry.high)),
    }
}

fn is_flags(operand: Operand) -> bool {
    matches!(operand, Operand::Field(field) if field.kind == FieldKind::TcpFlags)
}

/// TCP flags, one or more; a number if there is none.
fn flags(bits: u128) -> String {
    let names: Vec<&str> =
        (0..8).filter(|bit| bits >> bit & 1 != 0).filter_map(|bit| word(FieldKind::TcpFlags, 1 << bit)).collect();
    if names.is_empty() { bits.to_string() } else { names.join("|") }
}

/// Flags behind `&`, in parentheses if they are several, as in nftables.
fn flag_mask(bits: u128) -> String {
    if bits.count_ones() > 1 { format!("({})", flags(bits)) } else { flags(bits) }
}

fn word(field: FieldKind, value: u128) -> Option<&'static str> {
    words::values(field).iter().find(|(_, number)| *number == value).map(|(word, _)| *word)
}

/// A value of that, as text: a word where the field has one for it.
pub fn print_value(policy: &Policy, operand: Operand, value: u128) -> String {
    if let Operand::Field(field) = operand {
        if field.kind == FieldKind::TcpFlags {
            return flags(value);
        }
        if let Some(word) = word(field.kind, value) {
            return word.to_owned();
        }
    }
    constant(policy.type_of(operand), value)
}

/// A constant of a type, as it is written in a policy.
pub(crate) fn constant(value_type: Type, value: u128) -> String {
    match value_type {
        Type::Unsigned(_) => value.to_string(),
        Type::Signed => (value as i64).to_string(),
        Type::Ipv4 => Ipv4Addr::from_bits(value as u32).to_string(),
        Type::Ipv6 => Ipv6Addr::from_bits(value).to_string(),
        Type::Mac => {
            let bytes = (value as u64).to_be_bytes().map(|byte| format!("{byte:02x}"));
            bytes[2..].join(":")
        }
        Type::Uuid => {
            let digits = format!("{value:032x}");
            [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
        }
        Type::Timestamp => format!("{value}ns"),
        Type::Flag => String::new(),
    }
}

/// The name of the type that a named set or map has.
fn type_name(value_type: Type) -> KeyType {
    KeyType::ALL.into_iter().find(|key_type| Type::from(*key_type) == value_type).unwrap_or(KeyType::U128)
}

/// A text in quotes.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for character in self.0.chars() {
            if matches!(character, '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(character)?;
        }
        f.write_char('"')
    }
}
