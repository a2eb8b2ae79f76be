//! A policy as BPF C over `packet_traits/policy.bpf.h` and `packet_traits/traits.bpf.h`, and the manifest that goes
//! with it.
//!
//! A block becomes one program and a few functions of its own, all of them global, so that the verifier goes through
//! each once and forgets what it knew; weak, so that clang does not pass less to them than they say:
//!
//! - `<block>_parse` takes the packet's headers apart, only as deep and only the fields that the block's rules need,
//!   and keeps them in `struct <block>_packet`.
//! - `<block>_load` reads the traits that the rules read into `struct <block>_traits`; `<block>_store` writes back
//!   those that rules changed, when the packet goes on.
//! - The rules follow in the program in their order, each under its source as a comment: a condition, then its actions.
//!
//! What is verified is in proportion to the policy's size; `policy.bpf.h` says how. Names of blocks, keys and tables
//! are those of the policy wherever C allows.

mod block;
mod code;
mod names;
mod needs;
mod packet;
mod place;
mod rules;
mod slot;
mod tables;
mod traits;

use thiserror::Error;

use self::{block::one_line, code::Code, needs::Needs, place::Place, rules::Scope, tables::CTable};
use crate::{
    hook::{Direction, Hook, NetfilterFamily},
    manifest::{self, Manifest},
    policy::{Action, Block, COUNTED_VALUES_MAX, Interface, InterfaceId, KeyId, Layer, Policy, Verdict},
    source::Sources,
    symbols,
};

/// How many rules a policy may have: their hits are in one value of a per-CPU map, which is 32 KiB at most
/// (`PCPU_MIN_UNIT_SIZE` in include/linux/percpu.h).
pub const RULES_MAX: usize = 2048;

/// How many named counters, for the same reason.
pub const COUNTERS_MAX: usize = 2048;

/// How many different Geneve options one block can ask for.
pub const GENEVE_OPTIONS_ASKED_MAX: usize = 32;

/// How many keys, as a registry has.
pub const KEYS_MAX: usize = packet_traits_core::layout::KEY_COUNT;

/// Bytes of the ring that `log` writes to: some thousand events.
const LOG_BYTES: u32 = 1 << 20;

/// AF_XDP sockets, by queue.
const XSKS_MAX: u32 = 64;

/// CPUs that can be redirected to, until the loader says how many there are.
const CPUS_MAX: u32 = 64;

/// How to emit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmitOptions {
    /// XDP hides keep-first traits from GRO before a packet goes on (`trait_seal`). Without, user space sees the whole
    /// area of a packet that a later program hands to AF_XDP.
    pub seal: bool,
}

impl Default for EmitOptions {
    fn default() -> EmitOptions {
        EmitOptions { seal: true }
    }
}

/// A policy as C.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Emitted {
    /// The C source.
    pub source: String,
    /// What the object says of itself.
    pub manifest: Manifest,
}

/// Why a policy cannot become a program.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EmitError {
    /// More than [`RULES_MAX`].
    #[error(
        "the policy has {0} rules and can have {RULES_MAX} in all; rules that differ only in what they compare with can share one, with a set or a map"
    )]
    Rules(usize),
    /// More than [`COUNTERS_MAX`].
    #[error(
        "the policy has {0} named counters and can have {COUNTERS_MAX}; one counter `by` a field can take the place of many"
    )]
    Counters(usize),
    /// More than [`KEYS_MAX`].
    #[error("the policy declares {0} keys and a registry has {KEYS_MAX}")]
    Keys(usize),
    /// More than [`GENEVE_OPTIONS_ASKED_MAX`].
    #[error("block {block} asks for {options} different Geneve options and can ask for {GENEVE_OPTIONS_ASKED_MAX}")]
    GeneveOptions {
        /// The block's name.
        block: String,
        /// How many.
        options: usize,
    },
}

/// Makes C and a manifest of a policy.
pub fn emit(policy: &Policy, sources: &Sources, options: &EmitOptions) -> Result<Emitted, EmitError> {
    let needs: Vec<Needs> = policy.blocks.iter().map(|block| Needs::of(&block.rules)).collect();
    check_limits(policy, &needs)?;
    let tables: Vec<CTable<'_>> =
        policy.tables.iter().enumerate().map(|(number, table)| CTable::new(table, number)).collect();
    let mut logs: Vec<String> = Vec::new();
    for text in needs.iter().flat_map(|needs| &needs.logs) {
        if !logs.contains(text) {
            logs.push(text.clone());
        }
    }

    let keys = names::keys(policy);
    let mut code = Code::default();
    opening(&mut code, sources);
    let mut used: Vec<KeyId> = needs.iter().flat_map(Needs::traits).collect();
    used.sort_unstable();
    used.dedup();
    traits::declarations(&mut code, policy, &keys, &used);
    interfaces(&mut code, policy);
    let sees_links = at_links(policy, &needs, |needs| needs.ethernet(Layer::Outer));
    if sees_links {
        code.comment("Whether packets begin with their IP header, at XDP and TC; filled in by the loader.");
        code.line(format_args!("const volatile __u32 {} = 0;", symbols::NO_LINK_HEADER));
        code.blank();
    }
    let may_inherit = policy.blocks.iter().any(drops_inherited);
    if may_inherit {
        code.comment("Whether packets may have traits from another interface; filled in by the loader.");
        code.line(format_args!("const volatile __u32 {} = 1;", symbols::MAY_INHERIT));
        code.blank();
    }
    maps(&mut code, policy, &needs);
    for (number, table) in tables.iter().enumerate() {
        if is_looked_up(&needs, number) {
            table.write(&mut code);
        }
    }
    for (number, block) in policy.blocks.iter().enumerate() {
        let place = Place::of(block.hook);
        let needs = &needs[number];
        let name = names::program(&block.name);
        let scope = Scope {
            policy,
            keys: &keys,
            tables: &tables,
            logs: &logs,
            block: &name,
            place,
            needs,
            seal: options.seal,
            finishes: !needs.changed.is_empty() || place == Place::Xdp && options.seal || drops_inherited(block),
            drops_inherited: drops_inherited(block),
            is_part: false,
        };
        block::block(&mut code, &scope, block, policy.rule_numbers(number).start, sources);
        code.blank();
    }
    code.line("char LICENSE[] SEC(\"license\") = \"Dual MIT/GPL\";");

    let manifest = Manifest {
        version: manifest::VERSION,
        source: sources.iter().next().map(|(_, main)| main.name.clone()).unwrap_or_default(),
        keys: policy.keys.iter().map(describe_key).collect(),
        programs: (0..policy.blocks.len())
            .map(|number| describe_program(policy, number, &needs[number], sources))
            .collect(),
        tables: (0..tables.len())
            .filter(|number| is_looked_up(&needs, *number))
            .filter_map(|number| tables[number].contents())
            .collect(),
        counters: policy
            .counters
            .iter()
            .enumerate()
            .map(|(number, counter)| describe_counter(counter, number))
            .collect(),
        interfaces: policy
            .interfaces
            .iter()
            .zip(0..)
            .map(|(name, index)| manifest::Interface {
                name: name.clone(),
                index,
                must_exist: is_redirected_to(policy, index as usize, |_| true),
                by_xdp: is_redirected_to(policy, index as usize, |hook| hook == Hook::Xdp),
            })
            .collect(),
        logs,
        sees_links,
        may_inherit,
        tests_ethernet: at_links(policy, &needs, |needs| needs.tests_ethernet(Layer::Outer)),
    };
    Ok(Emitted { source: code.into_text(), manifest })
}

/// Whether a block drops the traits that a packet has from another interface, if it sets none.
fn drops_inherited(block: &Block) -> bool {
    block.hook == Hook::Xdp && !block.inherits
}

/// Whether a block where packets have their link header asks for something.
fn at_links(policy: &Policy, needs: &[Needs], asks: impl Fn(&Needs) -> bool) -> bool {
    policy.blocks.iter().zip(needs).any(|(block, needs)| block.hook.sees_ethernet() && asks(needs))
}

/// Whether a block looks up in a table: if not, there is no map of it to be filled.
fn is_looked_up(needs: &[Needs], table: usize) -> bool {
    needs.iter().any(|needs| needs.tables.iter().any(|id| id.0 == table))
}

fn check_limits(policy: &Policy, needs: &[Needs]) -> Result<(), EmitError> {
    let rules = policy.blocks.iter().map(|block| block.rules.len()).sum();
    if rules > RULES_MAX {
        return Err(EmitError::Rules(rules));
    }
    if policy.counters.len() > COUNTERS_MAX {
        return Err(EmitError::Counters(policy.counters.len()));
    }
    if policy.keys.len() > KEYS_MAX {
        return Err(EmitError::Keys(policy.keys.len()));
    }
    for (block, needs) in policy.blocks.iter().zip(needs) {
        if needs.options.len() > GENEVE_OPTIONS_ASKED_MAX {
            return Err(EmitError::GeneveOptions { block: block.name.clone(), options: needs.options.len() });
        }
    }
    Ok(())
}

fn opening(code: &mut Code, sources: &Sources) {
    code.line("/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */");
    let names: Vec<&str> = sources.iter().map(|(_, source)| source.name.as_str()).collect();
    code.comment(&format!("Made by `traits compile` of {}.", names.join(", ")));
    code.line("#include <linux/bpf.h>");
    code.blank();
    code.line("#include <packet_traits/policy.bpf.h>");
    code.blank();
}

fn interfaces(code: &mut Code, policy: &Policy) {
    if policy.interfaces.is_empty() {
        return;
    }
    code.comment(&format!("Indexes of {}, filled in by the loader.", policy.interfaces.join(", ")));
    code.line(format_args!("const volatile __u32 {}[{}] = {{}};", symbols::INTERFACES, policy.interfaces.len()));
    code.blank();
}

/// Whether a rule at one of these hooks redirects to this interface.
fn is_redirected_to(policy: &Policy, interface: usize, at: impl Fn(Hook) -> bool) -> bool {
    let to = Action::Verdict(Verdict::RedirectDevice(Interface::Name(InterfaceId(interface))));
    let blocks = policy.blocks.iter().filter(|block| at(block.hook));
    blocks.flat_map(|block| &block.rules).any(|rule| rule.actions.contains(&to))
}

/// A map's declaration, line by line.
fn map(code: &mut Code, name: &str, map_type: &str, max_entries: u32, key: &str, value: &str) {
    code.open("struct");
    code.line(format_args!("__uint(type, BPF_MAP_TYPE_{map_type});"));
    code.line(format_args!("__uint(max_entries, {max_entries});"));
    if !key.is_empty() {
        code.line(format_args!("__type(key, {key});"));
        code.line(format_args!("__type(value, {value});"));
    }
    code.close_with(&format!(" {name} SEC(\".maps\");"));
    code.blank();
}

fn maps(code: &mut Code, policy: &Policy, needs: &[Needs]) {
    let rules: usize = policy.blocks.iter().map(|block| block.rules.len()).sum();
    for (count, name, member) in
        [(rules, symbols::HITS, "rule"), (plain_counters(policy), symbols::COUNTERS, "counter")]
    {
        if count > 0 {
            code.open(format_args!("struct {name}"));
            code.line(format_args!("struct pt_count {member}[{count}];"));
            code.close_with(";");
            code.blank();
            map(code, name, "PERCPU_ARRAY", 1, "__u32", &format!("struct {name}"));
        }
    }
    for counter in &policy.counters {
        if let Some(by) = counter.by {
            let key = slot::c_type(by.key_type());
            map(
                code,
                &symbols::counter_by_value(&counter.name),
                "LRU_HASH",
                COUNTED_VALUES_MAX,
                key,
                "struct pt_count",
            );
        }
    }
    let any = |wanted: fn(&Needs) -> bool| needs.iter().any(wanted);
    if any(|needs| needs.unique) {
        map(code, symbols::UNIQUE, "PERCPU_ARRAY", 1, "__u32", "__u64");
    }
    if any(|needs| needs.redirects_to_xsk) {
        map(code, symbols::XSKS, "XSKMAP", XSKS_MAX, "__u32", "__u32");
    }
    if any(|needs| needs.redirects_to_cpu) {
        map(code, symbols::CPUS, "CPUMAP", CPUS_MAX, "__u32", "struct bpf_cpumap_val");
    }
    if any(|needs| !needs.logs.is_empty()) {
        map(code, symbols::LOG, "RINGBUF", LOG_BYTES, "", "");
        map(code, symbols::LOG_LOST, "PERCPU_ARRAY", 1, "__u32", "__u64");
    }
}

/// How many entries the map of counters without `by` has: a counter's place there is its place in the policy.
fn plain_counters(policy: &Policy) -> usize {
    policy.counters.iter().rposition(|counter| counter.by.is_none()).map_or(0, |last| last + 1)
}

fn describe_key(key: &crate::policy::KeyDeclaration) -> manifest::Key {
    manifest::Key {
        name: key.name.to_string(),
        key_type: key.key_type.to_string(),
        merge: key.merge.to_string(),
        description: key.description.clone(),
    }
}

fn describe_counter(counter: &crate::policy::Counter, number: usize) -> manifest::Counter {
    let name = counter.name.clone();
    match counter.by {
        None => manifest::Counter { name, map: symbols::COUNTERS.to_owned(), index: Some(number as u32), by: None },
        Some(by) => {
            let map = symbols::counter_by_value(&name);
            manifest::Counter { name, map, index: None, by: Some(by.key_type().to_string()) }
        }
    }
}

fn describe_program(policy: &Policy, number: usize, needs: &Needs, sources: &Sources) -> manifest::Program {
    let block = &policy.blocks[number];
    let rules = block
        .rules
        .iter()
        .zip(policy.rule_numbers(number))
        .map(|(rule, number)| manifest::Rule {
            number: number as u32,
            file: sources.get(rule.span.source).name.clone(),
            line: sources.line_column(rule.span.source, rule.span.start).0 as u32,
            text: one_line(sources.text(rule.span)),
        })
        .collect();
    manifest::Program {
        name: names::program(&block.name),
        hook: describe_hook(block.hook),
        device_bound: needs.hardware,
        redirects_to_xsk: needs.redirects_to_xsk,
        rules,
    }
}

fn describe_hook(hook: Hook) -> manifest::Hook {
    match hook {
        Hook::Xdp => manifest::Hook::Xdp,
        Hook::Tc(Direction::Ingress) => manifest::Hook::TcIngress,
        Hook::Tc(Direction::Egress) => manifest::Hook::TcEgress,
        Hook::Netfilter { family, hook, priority } => manifest::Hook::Netfilter {
            families: match family {
                None => vec!["ipv4".to_owned(), "ipv6".to_owned()],
                Some(NetfilterFamily::Ipv4) => vec!["ipv4".to_owned()],
                Some(NetfilterFamily::Ipv6) => vec!["ipv6".to_owned()],
            },
            point: hook.name().to_owned(),
            priority,
        },
        Hook::Cgroup(Direction::Ingress) => manifest::Hook::CgroupIngress,
        Hook::Cgroup(Direction::Egress) => manifest::Hook::CgroupEgress,
        Hook::Match => manifest::Hook::Match,
        Hook::Steer => manifest::Hook::Steer,
    }
}
