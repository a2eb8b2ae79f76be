//! Conditions of rules.

use super::{Checker, constants::Expected, type_text};
use crate::{
    diagnostic::{Code, Diagnostic, quoted},
    field::{Field, FieldKind, Header, is_extension_header},
    hook::{Ability, Hook},
    policy::{Comparison, Condition, Interface, InterfaceDirection, InterfaceId, Layer, Operand, Presence, Test, Type},
    source::Span,
    syntax::ast::{self, Body, Element, Literal, LiteralKind, Pattern, PatternKind, Spanned, Subject, SubjectKind},
};

/// What a test or value is about, looked up.
pub(super) struct Looked {
    pub(super) operand: Operand,
    /// What else must be there.
    pub(super) requires: Option<Field>,
    pub(super) expected: Expected,
}

/// A test under way: what it is about, and where it is.
struct About {
    looked: Looked,
    span: Span,
}

/// Bytes of an interface's longest name (IFNAMSIZ less its NUL).
const INTERFACE_LEN_MAX: usize = 15;

impl Checker<'_> {
    /// A rule's condition. `spans` gets the place of each test, in the order they are found going down from left to
    /// right.
    pub(super) fn condition(
        &mut self,
        condition: Option<&ast::Condition>,
        hook: Hook,
        spans: &mut Vec<Span>,
    ) -> Option<Condition> {
        match condition {
            None => Some(Condition::Always),
            Some(condition) => self.part(condition, hook, spans),
        }
    }

    fn part(&mut self, condition: &ast::Condition, hook: Hook, spans: &mut Vec<Span>) -> Option<Condition> {
        match condition {
            ast::Condition::Any(parts) => self.parts(parts, hook, spans).map(Condition::Any),
            ast::Condition::All(parts) => self.parts(parts, hook, spans).map(Condition::All),
            ast::Condition::Not(part) => self.part(part, hook, spans).map(|part| Condition::Not(Box::new(part))),
            ast::Condition::Test(test) => {
                let condition = self.test(test, hook)?;
                let tests = if let Condition::All(parts) = &condition { parts.len() } else { 1 };
                spans.extend(std::iter::repeat_n(test.span, tests));
                Some(condition)
            }
        }
    }

    fn parts(&mut self, parts: &[ast::Condition], hook: Hook, spans: &mut Vec<Span>) -> Option<Vec<Condition>> {
        // all of them are looked at, also after a bad one
        let checked: Vec<Option<Condition>> = parts.iter().map(|part| self.part(part, hook, spans)).collect();
        checked.into_iter().collect()
    }

    fn test(&mut self, test: &Spanned<ast::Test>, hook: Hook) -> Option<Condition> {
        let about = |checker: &mut Self, subject: &Subject| {
            checker.look_up(subject, hook).map(|looked| About { looked, span: test.span })
        };
        match &test.value {
            ast::Test::Header(field) => {
                self.sees(*field, hook, test.span)?;
                Some(Condition::Test(Test::Present(Presence::Field(*field))))
            }
            ast::Test::IsSet(subject) => {
                let looked = self.look_up(subject, hook)?;
                Some(Condition::Test(Test::Present(match (looked.operand, looked.requires) {
                    // a field of either header is there if the header is
                    (_, Some(field)) | (Operand::Field(field), None) => Presence::Field(field),
                    (Operand::Trait(key), None) => Presence::Trait(key),
                })))
            }
            ast::Test::Interface { direction, negated, interface } => {
                let (ability, what) = match direction {
                    InterfaceDirection::In => (Ability::InputInterface, "looking at `iif`"),
                    InterfaceDirection::Out => (Ability::OutputInterface, "looking at `oif`"),
                };
                let can = self.can(hook, ability, what, test.span);
                let interface = self.interface(*interface)?;
                can.then_some(Condition::Test(Test::Interface { direction: *direction, interface, negated: *negated }))
            }
            ast::Test::Masked { subject, mask, negated, value } => {
                let about = about(self, subject)?;
                self.masked(&about, mask, *negated, value)
            }
            ast::Test::InTable { subject, negated, table } => {
                let about = about(self, subject)?;
                let id = self.use_table(table)?;
                self.fits_table(&about.looked, id, table)?;
                Some(about.test(Test::In { operand: about.looked.operand, table: id, negated: *negated }))
            }
            ast::Test::InList { subject, negated, elements, list } => {
                let about = about(self, subject)?;
                self.in_list(&about, *negated, elements, *list)
            }
            ast::Test::Compare { subject, operator, pattern } => {
                let about = about(self, subject)?;
                let negated = match operator {
                    None => false,
                    Some(Spanned { value: Comparison::Equal, .. }) => false,
                    Some(Spanned { value: Comparison::NotEqual, .. }) => true,
                    Some(operator) => return self.ordered(&about, *operator, pattern),
                };
                match self.resolve(pattern)? {
                    Body::List(elements, list) => self.in_list(&about, negated, &elements, list),
                    Body::One(pattern) => self.one(&about, operator.is_some(), negated, &pattern),
                }
            }
        }
    }

    /// `tcp flags & mask == value`
    fn masked(&mut self, about: &About, mask: &Pattern, negated: bool, value: &Pattern) -> Option<Condition> {
        let operand = about.looked.operand;
        if !is_flags(operand) {
            let message = format!("{} has no flags", about.looked.expected.what);
            let hint = "`&` looks at some of `tcp flags`; prefixes and ranges are for the rest";
            self.error(Diagnostic::new(Code::TypeMismatch, about.span, message).hint(hint));
            return None;
        }
        let bits = |checker: &mut Self, pattern: &Pattern| match checker.resolve(pattern)? {
            Body::One(pattern) => checker.one_number(&pattern, &about.looked.expected),
            Body::List(..) => checker.one_number(pattern, &about.looked.expected),
        };
        let (bits_of_mask, bits_of_value) = (bits(self, mask), bits(self, value));
        let (mask_bits, value_bits) = bits_of_mask.zip(bits_of_value)?;
        if mask_bits == 0 {
            self.error(Diagnostic::new(Code::OutOfRange, mask.span, "no flag is looked at"));
            return None;
        }
        if value_bits & !mask_bits != 0 {
            let message = "flags are to be set that are not looked at";
            let diagnostic = Diagnostic::new(Code::OutOfRange, value.span, message);
            self.error(diagnostic.related(mask.span, "these are looked at"));
            return None;
        }
        Some(about.test(if value_bits == 0 {
            Test::AnyBit { operand, mask: mask_bits, negated: !negated }
        } else {
            Test::Masked { operand, mask: mask_bits, value: value_bits, negated }
        }))
    }

    /// A constant, range or prefix; `exact` if there is an operator.
    fn one(&mut self, about: &About, exact: bool, negated: bool, pattern: &Pattern) -> Option<Condition> {
        let (low, high) = self.interval(pattern, &about.looked.expected)?;
        let operand = about.looked.operand;
        if is_flags(operand) && !exact && matches!(pattern.kind, PatternKind::One(_) | PatternKind::Bits(_)) {
            if low == 0 {
                let message = "no flag is asked for";
                let hint = "that no flag is set at all is written `tcp flags == 0`";
                self.error(Diagnostic::new(Code::OutOfRange, pattern.span, message).hint(hint));
                return None;
            }
            return Some(about.test(Test::AnyBit { operand, mask: low, negated: false }));
        }
        self.interval_test(about, low, high, negated, pattern.span)
    }

    /// Whether something is in an interval that a pattern stands for.
    fn interval_test(&mut self, about: &About, low: u128, high: u128, negated: bool, span: Span) -> Option<Condition> {
        let operand = about.looked.operand;
        let value_type = about.looked.expected.value_type;
        self.not_passed_over(&about.looked, low, high, span);
        let test = if low == high {
            let comparison = if negated { Comparison::NotEqual } else { Comparison::Equal };
            Test::Compare { operand, comparison, value: low }
        } else if matches!(value_type, Type::Unsigned(_)) {
            Test::Between { operand, low, high, negated }
        } else {
            let every = ones(value_type.bits());
            let mask = every & !(low ^ high);
            if mask == 0 {
                if negated {
                    let message = format!("every address is in {}", self.quote(span));
                    let hint = "the condition could never hold";
                    self.error(Diagnostic::new(Code::OutOfRange, span, message).hint(hint));
                    return None;
                }
                Test::Present(match operand {
                    Operand::Field(field) => Presence::Field(field),
                    Operand::Trait(key) => Presence::Trait(key),
                })
            } else {
                Test::Masked { operand, mask, value: low, negated }
            }
        };
        Some(about.test(test))
    }

    fn in_list(&mut self, about: &About, negated: bool, elements: &[Element], list: Span) -> Option<Condition> {
        let key = about.looked.expected.value_type;
        if key == Type::Flag {
            let diagnostic = self.mismatch("a list", list, &about.looked.expected);
            self.error(diagnostic.hint("a flag is set or not, and has no value"));
            return None;
        }
        let entries = self.entries(elements, list, &about.looked.expected, None)?;
        if let [entry] = entries.as_slice() {
            return self.interval_test(about, entry.low, entry.high, negated, list);
        }
        for entry in &entries {
            self.not_a_tag(about.looked.operand, entry.low, entry.high, list);
        }
        let table = self.anonymous(key, None, entries);
        Some(about.test(Test::In { operand: about.looked.operand, table, negated }))
    }

    /// Warns of a number that stands for a header which is passed over: what is asked about is what follows it.
    fn not_passed_over(&mut self, looked: &Looked, low: u128, high: u128, span: Span) {
        self.not_a_tag(looked.operand, low, high, span);
        let Operand::Field(Field { kind: FieldKind::Protocol, layer }) = looked.operand else { return };
        let of_ipv4 = looked.requires.is_some_and(|header| header.kind.header() == Header::Ipv4);
        if low != high || of_ipv4 || !u8::try_from(low).is_ok_and(is_extension_header) {
            return;
        }
        let message = "in IPv6, `protocol` is what follows the extension headers, never one of these";
        let inner = if layer == Layer::Inner { "inner " } else { "" };
        let hint = match low {
            44 => format!("of fragments, write `{inner}fragment != none`"),
            _ => format!("policies cannot ask for extension headers; of IPv4, write `{inner}ip protocol {low}`"),
        };
        self.error(Diagnostic::new(Code::Misleading, span, message).hint(hint));
    }

    /// Warns of an `ether type` that is a VLAN tag's: what is asked about is what follows the tags.
    fn not_a_tag(&mut self, operand: Operand, low: u128, high: u128, span: Span) {
        let Operand::Field(Field { kind: FieldKind::EtherType, layer }) = operand else { return };
        if low == high && matches!(low, 0x8100 | 0x88a8) {
            let message = "`ether type` is the type behind the VLAN tags, never a tag's own";
            let inner = if layer == Layer::Inner { "inner " } else { "" };
            let hint = format!("write `{inner}vlan` to test for a tag");
            self.error(Diagnostic::new(Code::Misleading, span, message).hint(hint));
        }
    }

    /// `<`, `<=`, `>`, `>=`
    fn ordered(&mut self, about: &About, operator: Spanned<Comparison>, pattern: &Pattern) -> Option<Condition> {
        let expected = &about.looked.expected;
        if !matches!(expected.value_type, Type::Unsigned(_) | Type::Signed | Type::Timestamp | Type::Flag) {
            let message = format!("{} is {}, which has no order", expected.what, type_text(expected.value_type));
            let diagnostic = Diagnostic::new(Code::TypeMismatch, operator.span, message);
            self.error(diagnostic.hint("compare by `==`, `!=`, a prefix or a set"));
            return None;
        }
        let value = match self.resolve(pattern)? {
            Body::One(pattern) => self.one_number(&pattern, expected),
            Body::List(..) => self.one_number(pattern, expected),
        }?;
        Some(about.test(Test::Compare { operand: about.looked.operand, comparison: operator.value, value }))
    }

    /// What must be one number or several flags.
    fn one_number(&mut self, pattern: &Pattern, expected: &Expected) -> Option<u128> {
        match pattern.kind {
            PatternKind::One(literal) => self.number(literal, expected),
            PatternKind::Bits(_) => self.interval(pattern, expected).map(|(number, _)| number),
            PatternKind::Range(..) | PatternKind::Prefix(..) => {
                let message = format!("{} is more than one value", self.quote(pattern.span));
                let diagnostic = Diagnostic::new(Code::TypeMismatch, pattern.span, message);
                let diagnostic = self.because(diagnostic, pattern.span, expected);
                self.error(diagnostic.hint("ranges and prefixes are compared with by `==` and `!=`"));
                None
            }
        }
    }

    /// Looks a subject up.
    pub(super) fn look_up(&mut self, subject: &Subject, hook: Hook) -> Option<Looked> {
        let (operand, requires) = match &subject.kind {
            SubjectKind::Field(field, requires) => {
                self.sees(*field, hook, subject.span)?;
                (Operand::Field(*field), *requires)
            }
            SubjectKind::Trait(name) => (Operand::Trait(self.find_key(name)?), None),
        };
        let expected = Expected {
            value_type: self.policy.type_of(operand),
            field: if let Operand::Field(field) = operand { Some(field.kind) } else { None },
            what: quoted(self.sources.text(subject.span)),
            verb: "be compared with",
            span: subject.span,
        };
        Some(Looked { operand, requires, expected })
    }

    /// Refuses fields of the Ethernet header where packets start behind it.
    fn sees(&mut self, field: Field, hook: Hook, span: Span) -> Option<()> {
        if field.layer == Layer::Outer && matches!(field.header(), Header::Ethernet | Header::Vlan) {
            let what = format!("looking at {}", self.quote(span));
            return self.can(hook, Ability::Ethernet, &what, span).then_some(());
        }
        Some(())
    }

    /// Refuses tables of other types.
    pub(super) fn fits_table(
        &mut self,
        looked: &Looked,
        id: crate::policy::TableId,
        name: &Spanned<String>,
    ) -> Option<()> {
        let (key, value_type) = (self.policy.table(id).key, looked.expected.value_type);
        let fits = match (value_type, key) {
            (Type::Unsigned(bits), Type::Unsigned(key_bits)) => bits <= key_bits,
            (value_type, key) => value_type == key,
        };
        if fits {
            return Some(());
        }
        let message = format!(
            "{} is {} and cannot be looked up in {}, which takes {}",
            looked.expected.what,
            type_text(value_type),
            self.quote(name.span),
            type_text(key)
        );
        self.error(
            Diagnostic::new(Code::TypeMismatch, name.span, message)
                .related(looked.expected.span, type_text(value_type)),
        );
        None
    }

    /// An interface by name or index.
    pub(super) fn interface(&mut self, literal: Literal) -> Option<Interface> {
        let single = self.single(literal)?;
        if let LiteralKind::Number(index) = single.kind {
            return match i32::try_from(index) {
                Ok(1..) => Some(Interface::Index(index as u32)),
                _ => {
                    let message = format!("{} is not an interface's index", self.quote(single.span));
                    self.error(Diagnostic::new(Code::OutOfRange, single.span, message));
                    None
                }
            };
        }
        let name = self.text(literal, "an interface's name")?;
        // dev_valid_name in net/core/dev.c
        let good = !name.is_empty()
            && name.len() <= INTERFACE_LEN_MAX
            && !matches!(name.as_str(), "." | "..")
            && !name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
        if !good {
            let message = format!("{} cannot be an interface's name", quoted(&name));
            let hint = "a name has 1 to 15 bytes, and no '/', ':' or space";
            self.error(Diagnostic::new(Code::BadName, single.span, message).hint(hint));
            return None;
        }
        if name.contains('*') || name.ends_with('+') {
            let message =
                format!("{} is compared as it is written: here `*` and `+` stand for themselves", quoted(&name));
            let hint = "write a test for each interface";
            self.error(Diagnostic::new(Code::Misleading, single.span, message).hint(hint));
        }
        let next = InterfaceId(self.policy.interfaces.len());
        let id = *self.interfaces.entry(name.clone()).or_insert(next);
        if id == next {
            self.policy.interfaces.push(name);
        }
        Some(Interface::Name(id))
    }
}

impl About {
    /// The test, and that what else must be there is.
    fn test(&self, test: Test) -> Condition {
        match self.looked.requires {
            None => Condition::Test(test),
            Some(field) => {
                Condition::All(vec![Condition::Test(Test::Present(Presence::Field(field))), Condition::Test(test)])
            }
        }
    }
}

fn is_flags(operand: Operand) -> bool {
    matches!(operand, Operand::Field(field) if field.kind == FieldKind::TcpFlags)
}

/// This many bits, all set.
fn ones(bits: u8) -> u128 {
    if bits == 128 { u128::MAX } else { (1 << bits) - 1 }
}
