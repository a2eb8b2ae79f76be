//! Actions of rules and their values.

use packet_traits_core::Merge;

use super::{Checker, constants::Expected, type_text};
use crate::{
    diagnostic::{Code, Diagnostic, quoted},
    emit::COUNTERS_MAX,
    field::FieldKind,
    hook::{Ability, Hook},
    policy::{Action, Counter, CounterId, Hardware, LOG_TEXT_LEN_MAX, Operand, Type, Value, Verdict},
    source::Span,
    syntax::ast::{self, Literal, Rule, Spanned, Subject, ValueKind},
};

/// The highest queue that can be set: the next one says that none is (`NO_QUEUE_MAPPING` in linux/skbuff.h).
const QUEUE_MAX: u128 = 65_534;

/// Where a value goes.
struct Target {
    expected: Expected,
    /// It is a trait: values that are made, not only those that are there, can go there.
    key: bool,
}

impl Checker<'_> {
    /// What a rule does.
    pub(super) fn actions(&mut self, rule: &Rule, hook: Hook) -> Option<Vec<Action>> {
        if rule.actions.is_empty() {
            let message = "this rule does nothing";
            let hint = "add an action; `count` counts the packets, as every rule does";
            self.error(Diagnostic::new(Code::NoAction, rule.span, message).hint(hint));
            return None;
        }
        let mut actions = Vec::with_capacity(rule.actions.len());
        let mut good = true;
        let mut verdict: Option<Span> = None;
        for action in &rule.actions {
            if let Some(verdict) = verdict {
                let message =
                    format!("{} is never done: {} ends the rule", self.quote(action.span), self.quote(verdict));
                let diagnostic = Diagnostic::new(Code::AfterVerdict, action.span, message);
                self.error(diagnostic.related(verdict, "nothing is done after this").hint("put it in front"));
                return None;
            }
            match self.action(action, hook) {
                Some(Some(action)) => actions.push(action),
                Some(None) => {}
                None => good = false,
            }
            if is_verdict(&action.value) {
                verdict = Some(action.span);
            }
        }
        good.then_some(actions)
    }

    /// One action; nothing inside if it is done anyway.
    fn action(&mut self, action: &Spanned<ast::Action>, hook: Hook) -> Option<Option<Action>> {
        let span = action.span;
        let word = Span { end: span.start + self.first_word(span), ..span };
        let verdict = |verdict| Some(Some(Action::Verdict(verdict)));
        match &action.value {
            ast::Action::Count(None) => Some(None),
            ast::Action::Count(Some((name, by))) => self.count(name, by.as_ref(), hook).map(Some),
            ast::Action::Set(name, value) => self.set(name, value.as_ref(), hook, span).map(Some),
            ast::Action::Delete(name) => {
                let key = self.find_key(name)?;
                self.may_change(key, hook, "deleting", name.span)?;
                Some(Some(Action::Delete(key)))
            }
            ast::Action::Log { text, sample } => self.log(*text, *sample).map(Some),
            ast::Action::Mark(value) => {
                let can = self.can(hook, Ability::MarkAndPriority, "`mark`", word);
                let value = self.value(value, &target("`mark`", 32, word), hook)?;
                can.then_some(Some(Action::Mark(value)))
            }
            ast::Action::Priority(value) => {
                let can = self.can(hook, Ability::MarkAndPriority, "`priority`", word);
                let value = self.value(value, &target("`priority`", 32, word), hook)?;
                can.then_some(Some(Action::Priority(value)))
            }
            ast::Action::Queue(value) => {
                let can = self.can(hook, Ability::Queue, "`queue`", word);
                let queue = self.value(value, &target("`queue`", 16, word), hook)?;
                if matches!(queue, Value::Constant(queue) if queue > QUEUE_MAX) {
                    let message = format!("{} is out of range for `queue`", self.quote(value.span));
                    let diagnostic = Diagnostic::new(Code::OutOfRange, value.span, message);
                    self.error(diagnostic.hint(format!("queues go from 0 to {QUEUE_MAX}")));
                    return None;
                }
                can.then_some(Some(Action::Queue(queue)))
            }
            ast::Action::Accept => {
                self.can(hook, Ability::AcceptAndDrop, "`accept`", span).then_some(())?;
                verdict(Verdict::Accept)
            }
            ast::Action::Drop => {
                self.can(hook, Ability::AcceptAndDrop, "`drop`", span).then_some(())?;
                verdict(Verdict::Drop)
            }
            ast::Action::RedirectDevice(interface) => {
                let can = self.can(hook, Ability::RedirectDevice, "redirecting to an interface", span);
                let interface = self.interface(*interface)?;
                can.then_some(())?;
                verdict(Verdict::RedirectDevice(interface))
            }
            ast::Action::RedirectCpu(value) => {
                let can = self.can(hook, Ability::RedirectCpuOrXsk, "redirecting to a CPU", span);
                let value = self.value(value, &target("`redirect cpu`", 32, word), hook)?;
                can.then_some(())?;
                verdict(Verdict::RedirectCpu(value))
            }
            ast::Action::RedirectXsk(queue) => {
                let can = self.can(hook, Ability::RedirectCpuOrXsk, "redirecting to an AF_XDP socket", span);
                let queue = match queue {
                    Some(value) => Some(self.value(value, &target("`redirect xsk`", 32, word), hook)?),
                    None => None,
                };
                can.then_some(())?;
                verdict(Verdict::RedirectXsk(queue))
            }
            ast::Action::Member(value) => {
                let can = self.can(hook, Ability::Member, "`member`", word);
                let value = self.value(value, &target("`member`", 32, word), hook)?;
                can.then_some(())?;
                verdict(Verdict::Member(value))
            }
        }
    }

    /// Bytes of the word that a span starts with.
    fn first_word(&self, span: Span) -> usize {
        let text = self.sources.text(span);
        text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len())
    }

    fn set(&mut self, name: &Spanned<String>, value: Option<&ast::Value>, hook: Hook, span: Span) -> Option<Action> {
        let key = self.find_key(name)?;
        let may = self.may_change(key, hook, "setting", name.span);
        let value_type = self.key_type(key);
        let value = match (value, value_type) {
            (None, Type::Flag) => Value::Constant(0),
            (None, _) => {
                let message = format!("key {} needs a value", quoted(&name.value));
                let hint = format!("it is {}: write `set {} = VALUE`", type_text(value_type), name.value);
                self.error(Diagnostic::new(Code::TypeMismatch, span, message).hint(hint));
                return None;
            }
            (Some(value), Type::Flag) => {
                let message = format!("key {} is a flag, which has no value", quoted(&name.value));
                let hint = format!("write `set {0}`; `delete {0}` takes it away", name.value);
                self.error(Diagnostic::new(Code::TypeMismatch, value.span, message).hint(hint));
                return None;
            }
            (Some(value), _) => {
                let expected = Expected {
                    value_type,
                    field: None,
                    what: format!("key {}", quoted(&name.value)),
                    verb: "be set to",
                    span: name.span,
                };
                self.value(value, &Target { expected, key: true }, hook)?
            }
        };
        may.map(|()| Action::Set { key, value })
    }

    fn may_change(&mut self, key: crate::policy::KeyId, hook: Hook, doing: &str, span: Span) -> Option<()> {
        let declaration = self.policy.key(key);
        let merge = declaration.merge;
        let what = format!("{doing} `{}`, a key with merge policy {merge},", declaration.name);
        let ability = match merge {
            Merge::Block => Ability::ChangeBlockKey,
            Merge::KeepFirst | Merge::Discard => Ability::ChangeKeepFirstKey,
        };
        self.can(hook, ability, &what, span).then_some(())
    }

    fn count(&mut self, name: &Spanned<String>, by: Option<&Subject>, hook: Hook) -> Option<Action> {
        let by = match by {
            None => None,
            Some(subject) => Some((self.operand(subject, hook)?, subject.span)),
        };
        let by_type = by.map(|(operand, _)| counted(self.policy.type_of(operand)));
        if by_type == Some(Type::Flag) {
            let message = "a flag has no values to count by";
            self.error(Diagnostic::new(Code::TypeMismatch, by.map_or(name.span, |by| by.1), message));
            return None;
        }
        let text = self.sources.text(name.span);
        let counter = match self.counters.get(text).copied() {
            None => {
                let id = CounterId(self.policy.counters.len());
                if id.0 == COUNTERS_MAX {
                    let message = format!("the policy has more than {COUNTERS_MAX} named counters");
                    let hint = "`count NAME by FIELD` counts by values";
                    self.error(Diagnostic::new(Code::TooMany, name.span, message).hint(hint));
                    return None;
                }
                self.policy.counters.push(Counter { name: name.value.clone(), by: by_type });
                self.counters.insert(text, (name.span, id));
                id
            }
            Some((first, id)) => {
                let counter = &mut self.policy.counters[id.0];
                match counted_together(counter.by, by_type) {
                    Some(together) => counter.by = together,
                    None => {
                        let one = |by: Option<Type>| by.map_or_else(|| "nothing".to_owned(), type_text);
                        let message = format!(
                            "counter {} counts by {} here and by {} elsewhere",
                            quoted(&name.value),
                            one(by_type),
                            one(counter.by)
                        );
                        let diagnostic = Diagnostic::new(Code::TypeMismatch, name.span, message);
                        self.error(diagnostic.related(first, "elsewhere").hint("give one of them another name"));
                        return None;
                    }
                }
                id
            }
        };
        Some(Action::Count { counter, by: by.map(|(operand, _)| operand) })
    }

    fn log(&mut self, text: Option<Literal>, sample: Option<Spanned<(u128, u128)>>) -> Option<Action> {
        let said = match text {
            None => String::new(),
            Some(literal) => {
                let said = self.text(literal, "a text to log")?;
                if said.len() > LOG_TEXT_LEN_MAX {
                    let message =
                        format!("a text to log has at most {LOG_TEXT_LEN_MAX} bytes, this has {}", said.len());
                    self.error(Diagnostic::new(Code::TooMany, literal.span, message));
                    return None;
                }
                said
            }
        };
        let sample = match sample {
            None => 1,
            Some(Spanned { value: (1, of), span }) => match u32::try_from(of) {
                Ok(of @ 1..) => of,
                _ => {
                    let message = format!("{} is out of range for a sample", self.quote(span));
                    self.error(Diagnostic::new(Code::OutOfRange, span, message).hint("1/1 to 1/4294967295"));
                    return None;
                }
            },
            Some(Spanned { span, .. }) => {
                let message = "a sample is one of so many";
                self.error(Diagnostic::new(Code::OutOfRange, span, message).hint("write 1/N"));
                return None;
            }
        };
        Some(Action::Log { text: said, sample })
    }

    /// What a value or counter is about. It cannot ask for a header besides.
    fn operand(&mut self, subject: &Subject, hook: Hook) -> Option<Operand> {
        let looked = self.look_up(subject, hook)?;
        let Some(header) = looked.requires else { return Some(looked.operand) };
        let header = crate::words::header_text(header).unwrap_or_default();
        let Operand::Field(field) = looked.operand else { return Some(looked.operand) };
        let field = crate::words::field_text(field);
        let message = format!("{} is not a value: it asks for {header}, too", self.quote(subject.span));
        let hint = format!("write `{field}`, and `{header}` in front of the actions");
        self.error(Diagnostic::new(Code::TypeMismatch, subject.span, message).hint(hint));
        None
    }

    fn value(&mut self, value: &ast::Value, target: &Target, hook: Hook) -> Option<Value> {
        let made = |checker: &mut Self| {
            if target.key {
                return Some(());
            }
            let message = format!("{} can go into a trait only", checker.quote(value.span));
            let hint = "set a key to it, and use the trait here";
            checker.error(Diagnostic::new(Code::TypeMismatch, value.span, message).hint(hint));
            None
        };
        match &value.kind {
            ValueKind::Constant(literal) => self.number(*literal, &target.expected).map(Value::Constant),
            ValueKind::Subject(subject) => {
                let operand = self.operand(subject, hook)?;
                let value_type = self.policy.type_of(operand);
                self.fits(value_type, value.span, target)?;
                Some(Value::Operand(operand))
            }
            ValueKind::InTable(subject, name) => {
                let operand = self.operand(subject, hook)?;
                let looked = self.look_up(subject, hook)?;
                let table = self.use_table(name)?;
                self.fits_table(&looked, table, name)?;
                let Some(found) = self.policy.table(table).value else {
                    let message = format!("{} is a set, not a map", self.quote(name.span));
                    let hint = format!("declare it `map {} TYPE : TYPE = {{ KEY : VALUE, … }}`", name.value);
                    self.error(Diagnostic::new(Code::TypeMismatch, name.span, message).hint(hint));
                    return None;
                };
                self.fits(found, value.span, target)?;
                Some(Value::Lookup { operand, table })
            }
            ValueKind::InList(subject, elements, list) => {
                let operand = self.operand(subject, hook)?;
                let key = self.look_up(subject, hook)?.expected;
                if key.value_type == Type::Flag {
                    let diagnostic = self.mismatch("a list", *list, &key);
                    self.error(diagnostic.hint("a flag is set or not, and has no value"));
                    return None;
                }
                let entries = self.entries(elements, *list, &key, Some(&target.expected))?;
                let table = self.anonymous(key.value_type, Some(target.expected.value_type), entries);
                Some(Value::Lookup { operand, table })
            }
            ValueKind::Unique | ValueKind::Hash(_) => {
                made(self)?;
                if !matches!(target.expected.value_type, Type::Unsigned(_)) {
                    let diagnostic = self.mismatch(&self.quote(value.span), value.span, &target.expected);
                    self.error(diagnostic.hint("it is a number of 64 bits, and of fewer in a narrower key"));
                    return None;
                }
                Some(match value.kind {
                    ValueKind::Hash(layer) => Value::Hash(layer),
                    _ => Value::Unique,
                })
            }
            ValueKind::Time => {
                made(self)?;
                self.fits(Type::Timestamp, value.span, target)?;
                Some(Value::Time)
            }
            ValueKind::Hardware(which) => {
                let can = self.can(hook, Ability::Hardware, "asking the hardware", value.span);
                made(self)?;
                let value_type = match which {
                    Hardware::Timestamp => Type::Timestamp,
                    Hardware::Hash => Type::Unsigned(32),
                    Hardware::VlanId => FieldKind::VlanId.value_type(),
                };
                self.fits(value_type, value.span, target)?;
                can.then_some(Value::Hardware(*which))
            }
        }
    }

    /// Refuses values of types that a target cannot take.
    fn fits(&mut self, value_type: Type, span: Span, target: &Target) -> Option<()> {
        let expected = &target.expected;
        let fits = match (value_type, expected.value_type) {
            (Type::Unsigned(bits), Type::Unsigned(room)) => bits <= room,
            (Type::Unsigned(bits), Type::Signed) => bits < 64,
            (Type::Timestamp, Type::Unsigned(room)) => room >= 64,
            (Type::Flag, _) | (_, Type::Flag) => false,
            (value_type, room) => value_type == room,
        };
        if fits {
            return Some(());
        }
        let diagnostic = self.mismatch(&type_text(value_type), span, expected);
        let diagnostic = match (value_type, expected.value_type) {
            (Type::Unsigned(_), Type::Unsigned(_) | Type::Signed) => {
                diagnostic.hint("numbers go where there are at least as many bits")
            }
            (Type::Flag, _) => diagnostic.hint("a flag is set or not, and has no value"),
            _ => diagnostic,
        };
        self.error(diagnostic);
        None
    }
}

fn is_verdict(action: &ast::Action) -> bool {
    matches!(
        action,
        ast::Action::Accept
            | ast::Action::Drop
            | ast::Action::RedirectDevice(_)
            | ast::Action::RedirectCpu(_)
            | ast::Action::RedirectXsk(_)
            | ast::Action::Member(_)
    )
}

/// Something outside of traits that takes a number.
fn target(what: &str, bits: u8, span: Span) -> Target {
    let expected =
        Expected { value_type: Type::Unsigned(bits), field: None, what: what.to_owned(), verb: "be set to", span };
    Target { expected, key: false }
}

/// What values of a type are counted by: the key type that they fit in.
fn counted(value_type: Type) -> Type {
    match value_type {
        Type::Unsigned(bits) => Type::Unsigned(bits.next_power_of_two().max(8)),
        value_type => value_type,
    }
}

/// What a counter counts by if it counts by both; `None` if it cannot.
fn counted_together(one: Option<Type>, other: Option<Type>) -> Option<Option<Type>> {
    match (one, other) {
        (Some(Type::Unsigned(one)), Some(Type::Unsigned(other))) => Some(Some(Type::Unsigned(one.max(other)))),
        (one, other) => (one == other).then_some(one),
    }
}
