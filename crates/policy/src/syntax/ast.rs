//! A policy as it is written: names and types are not looked at yet.

use crate::{
    field::Field,
    hook::{Direction, Hook},
    policy::{Comparison, Hardware, InterfaceDirection, Layer},
    source::Span,
};

/// Something and where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spanned<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
}

/// What a file consists of.
#[derive(Debug)]
pub(crate) enum Item {
    Include(Spanned<String>),
    Key(Key),
    Define(Define),
    Table(Table),
    Block(Block),
    /// A declaration that could not be read. That has been said; its name is not unknown.
    Broken(Kind, Spanned<String>),
}

/// What can be declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Key,
    Define,
    Table,
}

#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: Spanned<String>,
    pub(crate) key_type: Spanned<String>,
    pub(crate) merge: Option<Spanned<String>>,
    pub(crate) description: Option<Spanned<String>>,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) struct Define {
    pub(crate) name: Spanned<String>,
    pub(crate) body: Body,
}

/// What a name in `define` stands for.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    One(Pattern),
    List(Vec<Element>, Span),
}

/// A set or a map.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: Spanned<String>,
    pub(crate) key: Spanned<String>,
    pub(crate) value: Option<Spanned<String>>,
    pub(crate) elements: Vec<Element>,
    /// The braces and what is in them.
    pub(crate) list: Span,
}

/// What is between two commas.
#[derive(Clone, Debug)]
pub(crate) struct Element {
    pub(crate) pattern: Pattern,
    /// What comes after the colon, in a map.
    pub(crate) value: Option<Literal>,
}

/// One or several values.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    pub(crate) kind: PatternKind,
    pub(crate) span: Span,
}

#[derive(Clone, Debug)]
pub(crate) enum PatternKind {
    One(Literal),
    /// `low-high`
    Range(Literal, Literal),
    /// `address/length`
    Prefix(Literal, Literal),
    /// `syn|ack`
    Bits(Vec<Literal>),
}

/// A constant. What it is good for depends on the type that is needed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Literal {
    pub(crate) kind: LiteralKind,
    pub(crate) span: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LiteralKind {
    Number(u128),
    /// With a minus in front.
    Negative(u128),
    Ipv4(u32),
    Ipv6(u128),
    Mac(u64),
    Uuid(u128),
    /// Nanoseconds.
    Time(u64),
    /// In quotes; the text is in the source.
    Text,
    /// The word is in the source.
    Word,
    /// `$name`; the name is in the source.
    Name,
}

#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) hook: Hook,
    pub(crate) inherits: bool,
    pub(crate) name: Option<Spanned<String>>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) condition: Option<Condition>,
    pub(crate) actions: Vec<Spanned<Action>>,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) enum Condition {
    Any(Vec<Condition>),
    All(Vec<Condition>),
    Not(Box<Condition>),
    Test(Box<Spanned<Test>>),
}

#[derive(Debug)]
pub(crate) enum Test {
    /// A header alone.
    Header(Field),
    /// `… is set`
    IsSet(Subject),
    /// With no operator, `==`, `!=`, `<`, …
    Compare {
        subject: Subject,
        operator: Option<Spanned<Comparison>>,
        pattern: Pattern,
    },
    /// With `{ … }`.
    InList {
        subject: Subject,
        negated: bool,
        elements: Vec<Element>,
        list: Span,
    },
    /// With `@name`.
    InTable {
        subject: Subject,
        negated: bool,
        table: Spanned<String>,
    },
    /// `… & mask == value`
    Masked {
        subject: Subject,
        mask: Pattern,
        negated: bool,
        value: Pattern,
    },
    Interface {
        direction: InterfaceDirection,
        negated: bool,
        interface: Literal,
    },
}

/// What a test or a value is about.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) kind: SubjectKind,
    pub(crate) span: Span,
}

#[derive(Clone, Debug)]
pub(crate) enum SubjectKind {
    /// A field, and what says that the packet has the header it was asked for by, if that is a narrower one than the
    /// field's own: `ip protocol` is `protocol` of IPv4.
    Field(Field, Option<Field>),
    Trait(Spanned<String>),
}

#[derive(Debug)]
pub(crate) enum Action {
    Set(Spanned<String>, Option<Value>),
    Delete(Spanned<String>),
    Count(Option<(Spanned<String>, Option<Subject>)>),
    Log { text: Option<Literal>, sample: Option<Spanned<(u128, u128)>> },
    Mark(Value),
    Priority(Value),
    Queue(Value),
    Accept,
    Drop,
    RedirectDevice(Literal),
    RedirectCpu(Value),
    RedirectXsk(Option<Value>),
    Member(Value),
}

#[derive(Debug)]
pub(crate) struct Value {
    pub(crate) kind: ValueKind,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) enum ValueKind {
    Constant(Literal),
    Subject(Subject),
    /// `… map @name`
    InTable(Subject, Spanned<String>),
    /// `… map { … }`
    InList(Subject, Vec<Element>, Span),
    Unique,
    Hash(Layer),
    Time,
    Hardware(Hardware),
}

/// The word for a direction.
pub(crate) fn direction(word: &str) -> Option<Direction> {
    [Direction::Ingress, Direction::Egress].into_iter().find(|direction| direction.to_string() == word)
}
