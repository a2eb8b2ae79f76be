//! Names of programs, and which programs can be attached together.

use std::collections::HashMap;

use super::Checker;
use crate::{
    diagnostic::{Code, Diagnostic, quoted},
    foreign,
    hook::Hook,
    source::Span,
    syntax::ast::Block,
};

/// Bytes of a program's longest name: BPF_OBJ_NAME_LEN in linux/bpf.h less its NUL.
const LEN_MAX: usize = 15;

/// Words that a function of a C program cannot be called.
const C_WORDS: &[&str] = &[
    "asm", "auto", "bool", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum",
    "extern", "false", "float", "for", "goto", "if", "inline", "int", "long", "main", "register", "restrict", "return",
    "short", "signed", "sizeof", "static", "struct", "switch", "true", "typedef", "typeof", "union", "unsigned",
    "void", "volatile", "while",
];

/// Starts and ends of names that the programs' own parts have.
const OWN_STARTS: &[&str] = &["pt_", "bpf_", "trait_"];
const OWN_ENDS: &[&str] = &["_parse", "_load", "_store"];

impl Checker<'_> {
    /// The name of every block's program.
    pub(super) fn program_names(&mut self, blocks: &[&Block]) -> Vec<String> {
        let mut taken: HashMap<String, Span> = HashMap::new();
        for block in blocks {
            let Some(name) = &block.name else { continue };
            self.program_name(&name.value, name.span);
            match taken.get(&name.value).copied() {
                Some(first) => self.duplicate("program", name, first),
                None => {
                    taken.insert(name.value.clone(), name.span);
                }
            }
        }
        blocks
            .iter()
            .map(|block| match &block.name {
                Some(name) => name.value.clone(),
                None => {
                    let name = free_name(&default_name(block.hook), |name| !taken.contains_key(name));
                    taken.insert(name.clone(), block.span);
                    name
                }
            })
            .collect()
    }

    fn program_name(&mut self, name: &str, span: Span) {
        let good = name.len() <= LEN_MAX
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_');
        let hint = if !good {
            "the name of a program has 1 to 15 of a-z, 0-9 and '_', and starts with a letter"
        } else if C_WORDS.contains(&name) {
            "it is a word of C, to which the policy is compiled"
        } else if OWN_STARTS.iter().any(|start| name.starts_with(start))
            || OWN_ENDS.iter().any(|end| name.ends_with(end))
        {
            "names that start with `pt_`, `bpf_` or `trait_`, or end with `_parse`, `_load` or `_store`, are those of the \
             program's own parts"
        } else {
            return;
        };
        let message = format!("{} cannot be the name of a program", quoted(name));
        self.error(Diagnostic::new(Code::BadName, span, message).hint(hint));
    }

    /// Refuses what cannot be attached at the same time: a second XDP program, and netfilter programs of one priority
    /// (nf_hook_entries_grow in net/netfilter/core.c).
    pub(super) fn attachable_together(&mut self, blocks: &[&Block]) {
        let mut xdp: Option<Span> = None;
        let mut netfilter: HashMap<_, Span> = HashMap::new();
        for block in blocks {
            match block.hook {
                Hook::Xdp => match xdp {
                    Some(first) => {
                        let message = "there is a second `xdp` block, and an interface has one XDP program only";
                        let diagnostic = Diagnostic::new(Code::Duplicate, block.span, message);
                        let diagnostic = diagnostic.related(first, "the first one");
                        self.error(diagnostic.hint("put the rules of both into one block"));
                    }
                    None => xdp = Some(block.span),
                },
                Hook::Netfilter { family, hook, priority } => {
                    let families = match family {
                        None => vec![crate::hook::NetfilterFamily::Ipv4, crate::hook::NetfilterFamily::Ipv6],
                        Some(family) => vec![family],
                    };
                    if let Some(holder) = foreign::at_priority(priority) {
                        let message = format!("{holder} priority {priority}");
                        let label = "a BPF program cannot share it";
                        let diagnostic = Diagnostic::new(Code::TakenPriority, block.span, message).label(label);
                        let (before, after) = (priority - 1, priority + 1);
                        self.error(
                            diagnostic.hint(format!("use {before} to run just before, {after} to run just after")),
                        );
                    }
                    for family in families {
                        match netfilter.get(&(family, hook, priority)).copied() {
                            Some(first) => {
                                let message = "a second block has the same netfilter hook and priority";
                                let diagnostic = Diagnostic::new(Code::Duplicate, block.span, message);
                                let diagnostic = diagnostic.related(first, "the first one");
                                self.error(diagnostic.hint("give it another priority: the lower one runs first"));
                                break;
                            }
                            None => {
                                netfilter.insert((family, hook, priority), block.span);
                            }
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// The name of a program that was given none.
fn default_name(hook: Hook) -> String {
    match hook {
        Hook::Netfilter { hook, .. } => format!("nf_{}", hook.name()),
        hook => hook.to_string().replace(' ', "_"),
    }
}

/// `base`, or `base` and the lowest number that makes it free, in at most [`LEN_MAX`] bytes.
fn free_name(base: &str, free: impl Fn(&str) -> bool) -> String {
    let mut name = base.to_owned();
    let mut number = 2;
    while !free(&name) {
        let suffix = number.to_string();
        name = format!("{}{suffix}", &base[..base.len().min(LEN_MAX - suffix.len())]);
        number += 1;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::{Direction, NetfilterHook};

    #[test]
    fn names_made_from_hooks_are_short_and_differ() {
        let mut hooks = vec![Hook::Xdp, Hook::Match, Hook::Steer];
        for direction in [Direction::Ingress, Direction::Egress] {
            hooks.extend([Hook::Tc(direction), Hook::Cgroup(direction)]);
        }
        hooks.extend(NetfilterHook::ALL.map(|hook| Hook::Netfilter { family: None, hook, priority: 0 }));
        let mut taken = std::collections::HashSet::new();
        for hook in hooks {
            for _ in 0..120 {
                let name = free_name(&default_name(hook), |name| !taken.contains(name));
                assert!(name.len() <= LEN_MAX, "{name}");
                assert!(taken.insert(name));
            }
        }
    }
}
