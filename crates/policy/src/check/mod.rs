//! From files to a [`Policy`]: everything that can be wrong with a policy is found here.
//!
//! | module | what it holds |
//! |---|---|
//! | `load` | files and the files they include |
//! | `keys` | declarations of keys, and whether a registry can take them |
//! | `constants` | constants to numbers of the type that is needed |
//! | `tables` | sets and maps |
//! | `conditions`, `actions` | rules |
//! | `programs` | names of programs |
//! | `domain`, `reach` | rules that no packet comes to, conditions that never hold |

mod actions;
mod conditions;
mod constants;
mod domain;
mod keys;
mod load;
mod programs;
mod reach;
mod tables;

use std::{collections::HashMap, path::Path};

pub use self::{
    keys::{HeldKey, RegistryKeys},
    load::{Files, Loader, Texts},
};
use crate::{
    diagnostic::{Code, Diagnostic, Diagnostics, alternatives, closest, quoted},
    emit::RULES_MAX,
    hook::{Ability, Direction, Hook, NetfilterHook},
    policy::{BLOCKS_MAX, Block, CounterId, Entry, InterfaceId, KeyId, Policy, Rule, TableId, Type},
    source::{Sources, Span},
    syntax::ast::{self, Item, Kind, Spanned},
};

/// What a policy is checked against.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// The registry that its keys are to go into: without one, an empty one of the default layout.
    pub registry: RegistryKeys,
}

/// A good policy.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Checked {
    /// The policy.
    pub policy: Policy,
    /// Its files.
    pub sources: Sources,
    /// What looks wrong all the same.
    pub warnings: Vec<Diagnostic>,
}

/// A bad policy.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Rejected {
    /// Its files, as far as they could be read.
    pub sources: Sources,
    /// What is wrong; at least one is an error.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads and checks the policy in the file `main` and those it includes.
///
/// # Errors
/// [`Rejected`] says all that is wrong, not the first mistake only.
pub fn check(main: &Path, loader: &dyn Loader, options: &CheckOptions) -> Result<Checked, Rejected> {
    let mut sources = Sources::default();
    let mut diagnostics = Diagnostics::default();
    let items = load::load(main, loader, &mut sources, &mut diagnostics);
    let mut checker = Checker::new(&sources, &mut diagnostics);
    checker.declarations(&items);
    checker.blocks(&items);
    checker.unused();
    let policy = checker.policy;
    keys::check_room(&policy.keys, &options.registry, &mut diagnostics);
    if diagnostics.has_errors() {
        Err(Rejected { sources, diagnostics: diagnostics.finish() })
    } else {
        Ok(Checked { policy, sources, warnings: diagnostics.finish() })
    }
}

/// What a name stands for.
struct Declared<T> {
    /// Where it was declared.
    span: Span,
    /// Nothing if the declaration is wrong, which has been said.
    value: Option<T>,
    used: bool,
}

struct Checker<'a> {
    sources: &'a Sources,
    diagnostics: &'a mut Diagnostics,
    keys: HashMap<&'a str, Declared<KeyId>>,
    defines: HashMap<&'a str, Declared<ast::Body>>,
    tables: HashMap<&'a str, Declared<tables::Named>>,
    counters: HashMap<&'a str, (Span, CounterId)>,
    interfaces: HashMap<String, InterfaceId>,
    /// Tables that are written in rules: the same one is there once.
    anonymous: HashMap<(Type, Option<Type>, Vec<Entry>), TableId>,
    /// Elements that lists may still have, all together.
    elements_left: usize,
    policy: Policy,
}

impl<'a> Checker<'a> {
    fn new(sources: &'a Sources, diagnostics: &'a mut Diagnostics) -> Checker<'a> {
        Checker {
            sources,
            diagnostics,
            keys: HashMap::new(),
            defines: HashMap::new(),
            tables: HashMap::new(),
            counters: HashMap::new(),
            interfaces: HashMap::new(),
            anonymous: HashMap::new(),
            elements_left: tables::ELEMENTS_MAX,
            policy: Policy::default(),
        }
    }

    fn error(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    fn declarations(&mut self, items: &'a [Item]) {
        // sets and maps may use constants that come later
        let (tables, others): (Vec<_>, Vec<_>) = items.iter().partition(|item| matches!(item, Item::Table(_)));
        for item in others.into_iter().chain(tables) {
            if self.diagnostics.is_full() {
                return;
            }
            match item {
                Item::Broken(Kind::Key, name) => {
                    self.keys.entry(&name.value).or_insert(Declared { span: name.span, value: None, used: true });
                }
                Item::Broken(Kind::Define, name) => {
                    self.defines.entry(&name.value).or_insert(Declared { span: name.span, value: None, used: true });
                }
                Item::Broken(Kind::Table, name) => {
                    self.tables.entry(&name.value).or_insert(Declared { span: name.span, value: None, used: true });
                }
                Item::Key(key) => self.key(key),
                Item::Define(define) => self.define(define),
                Item::Table(table) => self.named_table(table),
                Item::Include(_) | Item::Block(_) => {}
            }
        }
    }

    fn blocks(&mut self, items: &'a [Item]) {
        let blocks: Vec<&'a ast::Block> =
            items.iter().filter_map(|item| if let Item::Block(block) = item { Some(block) } else { None }).collect();
        if blocks.len() > BLOCKS_MAX {
            let message = format!("the policy has {} blocks, and {BLOCKS_MAX} is the most there can be", blocks.len());
            self.error(Diagnostic::new(Code::TooMany, blocks[BLOCKS_MAX].span, message));
            return;
        }
        let names = self.program_names(&blocks);
        self.attachable_together(&blocks);
        let count: usize = blocks.iter().map(|block| block.rules.len()).sum();
        if count > RULES_MAX {
            let span =
                blocks.iter().flat_map(|block| &block.rules).nth(RULES_MAX).map_or_else(Span::default, |r| r.span);
            let message = format!("the policy has {count} rules, and {RULES_MAX} is the most there can be");
            let hint = "rules that differ in one value only are one rule with a set or a map";
            self.error(Diagnostic::new(Code::TooMany, span, message).hint(hint));
            return;
        }
        for (block, name) in blocks.into_iter().zip(names) {
            let mut rules = Vec::with_capacity(block.rules.len());
            let mut tests = Vec::with_capacity(block.rules.len());
            for rule in &block.rules {
                if self.diagnostics.is_full() {
                    return;
                }
                let mut spans = Vec::new();
                let condition = self.condition(rule.condition.as_ref(), block.hook, &mut spans);
                let actions = self.actions(rule, block.hook);
                if let (Some(condition), Some(actions)) = (condition, actions) {
                    rules.push(Rule { condition, actions, span: rule.span });
                    tests.push(spans);
                }
            }
            if !self.diagnostics.has_errors() {
                reach::check(&self.policy, &rules, &tests, self.diagnostics);
            }
            self.policy.blocks.push(Block {
                name,
                hook: block.hook,
                inherits: block.inherits,
                rules,
                span: block.span,
            });
        }
    }

    /// Says what the main file declares and nothing uses. Files that are included may be for others, too.
    fn unused(&mut self) {
        // what is wrong may be what would use it
        if self.diagnostics.has_errors() {
            return;
        }
        let defines = self.defines.values().filter(|d| !d.used).map(|d| (d.span, "constant"));
        let tables = self.tables.values().filter(|d| !d.used).map(|d| (d.span, "set or map"));
        let unused: Vec<_> = defines.chain(tables).filter(|(span, _)| span.source.0 == 0).collect();
        for (span, what) in unused {
            let message = format!("nothing uses the {what} {}", quoted(self.sources.text(span)));
            self.error(Diagnostic::new(Code::Unused, span, message));
        }
    }

    /// Says that a name is taken.
    fn duplicate(&mut self, what: &str, name: &Spanned<String>, first: Span) {
        let message = format!("the {what} {} is there twice", quoted(&name.value));
        self.error(Diagnostic::new(Code::Duplicate, name.span, message).related(first, "it is here already"));
    }

    /// Says that nothing has a name, and what was perhaps meant.
    fn unknown_name(&mut self, what: &str, name: &str, span: Span, known: &[&str], declare: &str) {
        let message = format!("there is no {what} {}", quoted(name));
        let mut known = known.to_vec();
        known.sort_unstable();
        let diagnostic = Diagnostic::new(Code::UnknownName, span, message);
        let hint = match closest(name, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None if matches!(name, "mark" | "priority") => {
                format!("the packet's {name} is set by `{name} set VALUE`; a {what} is declared by `{declare}`")
            }
            None => format!("declare it: `{declare}`"),
        };
        self.error(diagnostic.hint(hint));
    }

    /// A key by its name.
    fn find_key(&mut self, name: &Spanned<String>) -> Option<KeyId> {
        if let Some(declared) = self.keys.get(name.value.as_str()) {
            return declared.value;
        }
        let known: Vec<&str> = self.keys.keys().copied().collect();
        let declare = format!("key {} TYPE", name.value);
        self.unknown_name("key", &name.value, name.span, &known, &declare);
        None
    }

    fn key_type(&self, key: KeyId) -> Type {
        self.policy.key(key).key_type.into()
    }

    /// Says that a hook cannot do what a rule wants, and which hooks can; `true` if it can.
    fn can(&mut self, hook: Hook, ability: Ability, what: &str, span: Span) -> bool {
        if hook.can(ability) {
            return true;
        }
        let message = format!("{what} cannot be done in `{}`", without_priority(hook));
        let hint = format!("it can be done in {}", places(ability));
        self.error(Diagnostic::new(Code::HookCannot, span, message).hint(hint));
        false
    }
}

/// A hook by the words that choose what it can do.
fn without_priority(hook: Hook) -> String {
    match hook {
        Hook::Netfilter { hook, .. } => format!("netfilter {}", hook.name()),
        hook => hook.to_string(),
    }
}

/// The hooks that can do something.
fn places(ability: Ability) -> String {
    let directions = [Direction::Ingress, Direction::Egress];
    let kinds: [Vec<Hook>; 6] = [
        vec![Hook::Xdp],
        directions.map(Hook::Tc).to_vec(),
        NetfilterHook::ALL.map(|hook| Hook::Netfilter { family: None, hook, priority: 0 }).to_vec(),
        directions.map(Hook::Cgroup).to_vec(),
        vec![Hook::Match],
        vec![Hook::Steer],
    ];
    let mut words: Vec<String> = Vec::new();
    for hooks in kinds {
        let able: Vec<Hook> = hooks.iter().copied().filter(|hook| hook.can(ability)).collect();
        if able.len() == hooks.len() {
            // all of a kind go by its first word
            words.extend(hooks[0].to_string().split(' ').next().map(|word| format!("`{word}`")));
        } else {
            words.extend(able.into_iter().map(|hook| format!("`{}`", without_priority(hook))));
        }
    }
    alternatives(words.iter().map(String::as_str))
}

/// How a type is called in messages, with an article.
fn type_text(value_type: Type) -> String {
    match value_type {
        Type::Unsigned(bits @ 8) => format!("a number of {bits} bits (u8)"),
        Type::Unsigned(bits @ (16 | 32 | 64 | 128)) => format!("a number of {bits} bits (u{bits})"),
        Type::Unsigned(bits) => format!("a number of {bits} bits"),
        Type::Signed => "a number with a sign (i64)".to_owned(),
        Type::Ipv4 => "an IPv4 address".to_owned(),
        Type::Ipv6 => "an IPv6 address".to_owned(),
        Type::Mac => "a MAC address".to_owned(),
        Type::Uuid => "a UUID".to_owned(),
        Type::Timestamp => "a time".to_owned(),
        Type::Flag => "a flag".to_owned(),
    }
}
