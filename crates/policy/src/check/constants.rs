//! Constants to numbers of the type that is needed where they stand.

use super::{Checker, Declared, type_text};
use crate::{
    diagnostic::{Code, Diagnostic, closest, quoted},
    field::FieldKind,
    foreign,
    policy::Type,
    source::Span,
    syntax::ast::{Body, Define, Element, Literal, LiteralKind, Pattern, PatternKind},
    words,
};

/// What a constant must be, and why.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) value_type: Type,
    /// The field whose words can stand for values.
    pub(super) field: Option<FieldKind>,
    /// What the constant is for: `` `ip saddr` ``.
    pub(super) what: String,
    /// What is to be done with it: `be compared with`.
    pub(super) verb: &'static str,
    /// Where that is said.
    pub(super) span: Span,
}

impl Checker<'_> {
    /// Declares a constant. The names in it are looked up now, so that no name leads back to itself.
    pub(super) fn define(&mut self, define: &'_ Define) {
        let value = match &define.body {
            Body::One(pattern) => match pattern.kind {
                PatternKind::One(literal @ Literal { kind: LiteralKind::Name, .. }) => self.named(literal),
                _ => Some(Body::One(pattern.clone())),
            },
            Body::List(elements, span) => self.expand(elements).map(|elements| Body::List(elements, *span)),
        };
        let name = self.sources.text(define.name.span);
        match self.defines.get(name).map(|first| first.span) {
            Some(first) => self.duplicate("constant", &define.name, first),
            None => {
                let used = value.is_none();
                self.defines.insert(name, Declared { span: define.name.span, value, used });
            }
        }
    }

    /// What a `$name` stands for.
    fn named(&mut self, literal: Literal) -> Option<Body> {
        let name = &self.sources.text(literal.span)[1..];
        if let Some(declared) = self.defines.get_mut(name) {
            declared.used = true;
            let value = declared.value.clone();
            if let Some(Body::List(elements, _)) = &value {
                self.take_elements(elements.len(), literal.span)?;
            }
            return value;
        }
        let known: Vec<&str> = self.defines.keys().copied().collect();
        self.unknown_name("constant", name, literal.span, &known, &format!("define {name} = …"));
        None
    }

    /// Elements with those that `$name` stands for in their place.
    pub(super) fn expand(&mut self, elements: &[Element]) -> Option<Vec<Element>> {
        let first = elements.first()?.pattern.span;
        self.take_elements(elements.len(), first)?;
        let mut expanded = Vec::with_capacity(elements.len());
        let mut good = true;
        for element in elements {
            let PatternKind::One(literal @ Literal { kind: LiteralKind::Name, .. }) = element.pattern.kind else {
                expanded.push(element.clone());
                continue;
            };
            match self.named(literal) {
                Some(Body::One(pattern)) => expanded.push(Element { pattern, value: element.value }),
                Some(Body::List(list, _)) => {
                    expanded.extend(list.into_iter().map(|inner| Element { value: element.value, ..inner }));
                }
                None => good = false,
            }
        }
        good.then_some(expanded)
    }

    /// Counts elements of lists, so that names that stand for lists of names cannot blow up.
    fn take_elements(&mut self, count: usize, span: Span) -> Option<()> {
        match self.elements_left.checked_sub(count) {
            Some(left) => {
                self.elements_left = left;
                Some(())
            }
            None => {
                let message = format!("the policy's lists have more than {} elements", super::tables::ELEMENTS_MAX);
                self.error(Diagnostic::new(Code::TooMany, span, message));
                None
            }
        }
    }

    /// What a pattern in a place for one stands for: itself, or what its `$name` does.
    pub(super) fn resolve(&mut self, pattern: &Pattern) -> Option<Body> {
        match pattern.kind {
            PatternKind::One(literal @ Literal { kind: LiteralKind::Name, .. }) => self.named(literal),
            _ => Some(Body::One(pattern.clone())),
        }
    }

    /// The values that a pattern stands for: all from the first to the second.
    pub(super) fn interval(&mut self, pattern: &Pattern, expected: &Expected) -> Option<(u128, u128)> {
        match &pattern.kind {
            PatternKind::One(literal) => self.number(*literal, expected).map(|number| (number, number)),
            PatternKind::Bits(flags) => {
                if expected.field != Some(FieldKind::TcpFlags) {
                    let message = format!("{} are not joined by `|`", a_value_of(expected));
                    let diagnostic = Diagnostic::new(Code::TypeMismatch, pattern.span, message);
                    self.error(diagnostic.hint("only TCP flags are; a list is written `{ a, b }`"));
                    return None;
                }
                let mut bits = Some(0);
                for flag in flags {
                    bits = self.number(*flag, expected).zip(bits).map(|(flag, bits)| flag | bits);
                }
                bits.map(|bits| (bits, bits))
            }
            PatternKind::Range(low, high) => {
                if !matches!(expected.value_type, Type::Unsigned(_)) {
                    let diagnostic = self.mismatch("a range", pattern.span, expected);
                    self.error(diagnostic.hint("ranges are of numbers without a sign; addresses have prefixes"));
                    return None;
                }
                let (low, high) = (self.number(*low, expected), self.number(*high, expected));
                let (low, high) = low.zip(high)?;
                if low > high {
                    let message = format!("the range {} ends before it starts", self.quote(pattern.span));
                    self.error(Diagnostic::new(Code::OutOfRange, pattern.span, message));
                    return None;
                }
                Some((low, high))
            }
            PatternKind::Prefix(address, len) => self.prefix(pattern.span, *address, *len, expected),
        }
    }

    fn prefix(&mut self, span: Span, address: Literal, len: Literal, expected: &Expected) -> Option<(u128, u128)> {
        let address = self.single(address)?;
        match (address.kind, expected.value_type) {
            (LiteralKind::Ipv4(_), Type::Ipv4) | (LiteralKind::Ipv6(_), Type::Ipv6) => {}
            (kind, _) => {
                let diagnostic = match kind {
                    LiteralKind::Ipv4(_) => self.mismatch("an IPv4 prefix", span, expected),
                    LiteralKind::Ipv6(_) => self.mismatch("an IPv6 prefix", span, expected),
                    _ => {
                        let message = format!("{} is not a prefix", self.quote(span));
                        let hint = "prefixes are of IPv4 and IPv6 addresses: 10.0.0.0/8, fd00::/8";
                        Diagnostic::new(Code::TypeMismatch, span, message).hint(hint)
                    }
                };
                self.error(diagnostic);
                return None;
            }
        }
        let number = self.number(address, expected)?;
        let bits = u32::from(expected.value_type.bits());
        let len = self.single(len)?;
        let shift = match len.kind {
            LiteralKind::Number(len) => u32::try_from(len).ok().and_then(|len| bits.checked_sub(len)),
            _ => None,
        };
        let Some(shift) = shift else {
            let message = format!("{} is not the length of a prefix", self.quote(len.span));
            let hint = format!("{} has prefixes of 0 to {bits} bits", type_text(expected.value_type));
            self.error(Diagnostic::new(Code::OutOfRange, len.span, message).hint(hint));
            return None;
        };
        let behind = if shift == 128 { u128::MAX } else { (1 << shift) - 1 };
        if number & behind != 0 {
            let message = format!("{} has bits set behind its prefix", self.quote(span));
            let net = crate::print::constant(expected.value_type, number & !behind);
            let hint = format!("the prefix is {net}/{}; one address is written without `/`", bits - shift);
            self.error(Diagnostic::new(Code::HostBits, span, message).hint(hint));
            return None;
        }
        Some((number, number | behind))
    }

    /// A literal, or the one that its `$name` stands for.
    pub(super) fn single(&mut self, literal: Literal) -> Option<Literal> {
        if literal.kind != LiteralKind::Name {
            return Some(literal);
        }
        let message = match self.named(literal)? {
            Body::One(Pattern { kind: PatternKind::One(literal), .. }) => return Some(literal),
            Body::One(pattern) => format!("{} stands for {}", self.quote(literal.span), self.quote(pattern.span)),
            Body::List(..) => format!("{} stands for a list", self.quote(literal.span)),
        };
        let diagnostic = Diagnostic::new(Code::TypeMismatch, literal.span, message);
        self.error(diagnostic.label("one value is needed here"));
        None
    }

    /// The number that a literal is.
    pub(super) fn number(&mut self, literal: Literal, expected: &Expected) -> Option<u128> {
        let literal = self.single(literal)?;
        let bits = expected.value_type.bits();
        match (literal.kind, expected.value_type) {
            (LiteralKind::Number(number), Type::Unsigned(_)) if bits == 128 || number >> bits == 0 => Some(number),
            (LiteralKind::Number(number), Type::Signed) if number <= i64::MAX as u128 => Some(number),
            (LiteralKind::Negative(number), Type::Signed) if number <= 1 << 63 => {
                Some(u128::from((number as u64).wrapping_neg()))
            }
            (LiteralKind::Number(_) | LiteralKind::Negative(_), Type::Unsigned(_) | Type::Signed) => {
                let message = format!("{} is out of range for {}", self.quote(literal.span), expected.what);
                let hint = match expected.value_type {
                    Type::Signed => format!("it goes from {} to {}", i64::MIN, i64::MAX),
                    _ if bits == 128 => "it goes from 0 to 2^128 - 1".to_owned(),
                    _ => format!("it has {bits} bits: 0 to {}", (1u128 << bits) - 1),
                };
                let diagnostic = Diagnostic::new(Code::OutOfRange, literal.span, message);
                let diagnostic = self.because(diagnostic, literal.span, expected);
                self.error(diagnostic.hint(hint));
                None
            }
            (LiteralKind::Ipv4(address), Type::Ipv4) => Some(u128::from(address)),
            (LiteralKind::Ipv6(address), Type::Ipv6) => Some(address),
            (LiteralKind::Mac(address), Type::Mac) => Some(u128::from(address)),
            (LiteralKind::Uuid(uuid), Type::Uuid) => Some(uuid),
            (LiteralKind::Time(time), Type::Timestamp) => Some(u128::from(time)),
            (LiteralKind::Word, _) => self.word_value(literal.span, expected),
            (kind, _) => {
                let what = match kind {
                    LiteralKind::Number(_) => "a number",
                    LiteralKind::Negative(_) => "a number with a sign",
                    LiteralKind::Ipv4(_) => "an IPv4 address",
                    LiteralKind::Ipv6(_) => "an IPv6 address",
                    LiteralKind::Mac(_) => "a MAC address",
                    LiteralKind::Uuid(_) => "a UUID",
                    LiteralKind::Time(_) => "a time",
                    LiteralKind::Text => "a text",
                    LiteralKind::Word | LiteralKind::Name => "a word",
                };
                let diagnostic = self.mismatch(what, literal.span, expected);
                let diagnostic = match (kind, expected.value_type) {
                    (_, Type::Flag) => diagnostic.hint("a flag is set or not, and has no value"),
                    (LiteralKind::Number(_), Type::Timestamp) => diagnostic.hint("times have a unit: 90s, 20ms, 5ns"),
                    _ => diagnostic,
                };
                self.error(diagnostic);
                None
            }
        }
    }

    fn word_value(&mut self, span: Span, expected: &Expected) -> Option<u128> {
        let word = self.sources.text(span);
        let values = expected.field.map(words::values).unwrap_or_default();
        if let Some(value) = words::lookup(values, word) {
            return Some(value);
        }
        let mut diagnostic = if values.is_empty() {
            self.mismatch(&format!("the word {}", quoted(word)), span, expected)
        } else {
            let message = format!("{} is not a value of {}", quoted(word), expected.what);
            self.because(Diagnostic::new(Code::UnknownWord, span, message), span, expected)
        };
        let names = values.iter().map(|(name, _)| *name);
        if let Some(hint) = foreign::hint(word) {
            diagnostic = diagnostic.hint(hint);
        } else if let Some(meant) = closest(word, names.clone()) {
            diagnostic = diagnostic.hint(format!("did you mean `{meant}`?"));
        } else if self.defines.contains_key(word) {
            diagnostic = diagnostic.hint(format!("a constant is written `${word}`"));
        } else if self.tables.contains_key(word) {
            diagnostic = diagnostic.hint(format!("a set is written `@{word}`"));
        } else if !values.is_empty() {
            diagnostic = diagnostic.hint(format!("words for it are {}", names.collect::<Vec<_>>().join(" ")));
        }
        self.error(diagnostic);
        None
    }

    /// That something cannot be where `expected` says what is needed.
    pub(super) fn mismatch(&self, what: &str, span: Span, expected: &Expected) -> Diagnostic {
        let is = type_text(expected.value_type);
        let message = format!("{} is {is} and cannot {} {what}", expected.what, expected.verb);
        let diagnostic = Diagnostic::new(Code::TypeMismatch, span, message).label(what);
        self.because(diagnostic, span, expected)
    }

    /// Points at why something is expected, unless that is the same place.
    pub(super) fn because(&self, diagnostic: Diagnostic, span: Span, expected: &Expected) -> Diagnostic {
        if expected.span == span {
            return diagnostic;
        }
        diagnostic.related(expected.span, type_text(expected.value_type))
    }

    pub(super) fn quote(&self, span: Span) -> String {
        quoted(self.sources.text(span))
    }

    /// A text in quotes, also by a `$name`.
    pub(super) fn text(&mut self, literal: Literal, what: &str) -> Option<String> {
        let single = self.single(literal)?;
        if single.kind == LiteralKind::Text {
            return Some(crate::syntax::text(self.sources.text(single.span)));
        }
        let message = format!("{} is not {what}", self.quote(single.span));
        self.error(Diagnostic::new(Code::TypeMismatch, literal.span, message).hint("a text stands in quotes"));
        None
    }
}

fn a_value_of(expected: &Expected) -> String {
    format!("values of {}", expected.what)
}
