//! What tests share: policies made by hand, compiling and loading them; checking texts, and policies without their places.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod robust;

use std::{path::PathBuf, sync::Once};

use libbpf_rs::libbpf_sys;
use packet_traits::{
    KeyName, KeyType, Layout, Merge,
    bind::{BoundObject, LoadedObject},
    registry::{KeySpec, Registry, RegistryName},
};
use packet_traits_lab::{Bpffs, KernelFeature, kernel_has};
use packet_traits_policy::{
    check::{CheckOptions, Checked, Rejected, Texts, check},
    compile::Compiler,
    emit::{EmitOptions, Emitted, emit},
    field::{Field, FieldKind},
    hook::Hook,
    manifest::Manifest,
    policy::{
        Action, Block, Comparison, Condition, Counter, Entry, InterfaceId, KeyDeclaration, KeyId, Layer, Operand,
        Policy, Presence, Rule, Table, TableId, Test, Type, Value,
    },
    source::{SourceId, Sources, Span},
};
use packet_traits_testing::kernel;

/// Whether to run; without root it fails with a line that says how to run.
pub fn enabled() -> bool {
    if !kernel::enabled() {
        return false;
    }
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        libbpf_rs::set_print(None);
    });
    true
}

/// Whether to try less of what takes minutes on a real machine: one compiler, and a part of what is tried one by one.
pub fn is_short() -> bool {
    std::env::var("TRAITS_FEWER_POLICIES").is_ok_and(|value| value == "1")
}

/// [`clangs`](packet_traits_lab::clangs), or only the usual one.
pub fn compilers() -> Vec<&'static str> {
    if is_short() { vec![packet_traits_lab::clang()] } else { packet_traits_lab::clangs() }
}

/// [`enabled`], of tests whose keys need more room than 32 bytes of metadata.
pub fn area_enabled() -> bool {
    enabled() && kernel_has(KernelFeature::LongMetadata)
}

/// A compiler to which warnings are errors.
pub fn compiler(clang: &str) -> Compiler {
    Compiler { clang: PathBuf::from(clang), headers: &libbpf_sys::API_HEADERS, options: &["-Werror"] }
}

/// A policy that grows rule by rule, with a source text that says what each is.
pub struct Draft {
    pub policy: Policy,
    text: String,
}

impl Draft {
    pub fn new() -> Draft {
        Draft { policy: Policy::default(), text: String::new() }
    }

    fn say(&mut self, text: &str) -> Span {
        let start = self.text.len();
        self.text.push_str(text);
        let span = Span::new(SourceId(0), start..self.text.len());
        self.text.push('\n');
        span
    }

    pub fn key(&mut self, name: &str, key_type: KeyType, merge: Merge) -> KeyId {
        let span = self.say(&format!("key {name} {key_type} {merge}"));
        self.policy.keys.push(KeyDeclaration {
            name: KeyName::new(name).unwrap(),
            key_type,
            merge,
            description: String::new(),
            span,
        });
        KeyId(self.policy.keys.len() - 1)
    }

    pub fn table(&mut self, name: Option<&str>, key: Type, value: Option<Type>, entries: Vec<Entry>) -> TableId {
        self.policy.tables.push(Table { name: name.map(str::to_owned), key, value, entries });
        TableId(self.policy.tables.len() - 1)
    }

    pub fn counter(&mut self, name: &str, by: Option<Type>) -> packet_traits_policy::policy::CounterId {
        self.policy.counters.push(Counter { name: name.to_owned(), by });
        packet_traits_policy::policy::CounterId(self.policy.counters.len() - 1)
    }

    pub fn interface(&mut self, name: &str) -> InterfaceId {
        self.policy.interfaces.push(name.to_owned());
        InterfaceId(self.policy.interfaces.len() - 1)
    }

    pub fn block(&mut self, name: &str, hook: Hook) {
        let span = self.say(&format!("{hook} {name} {{"));
        self.policy.blocks.push(Block { name: name.to_owned(), hook, inherits: false, rules: Vec::new(), span });
    }

    /// A rule of the last block.
    pub fn rule(&mut self, text: &str, condition: Condition, actions: Vec<Action>) {
        let span = self.say(text);
        self.policy.blocks.last_mut().unwrap().rules.push(Rule { condition, actions, span });
    }

    /// The same, with a text made of what it is.
    pub fn plain(&mut self, condition: Condition, actions: Vec<Action>) {
        let text = format!("{condition:?} {actions:?}");
        self.rule(&text, condition, actions);
    }

    pub fn emit(&self) -> Emitted {
        self.emit_with(&EmitOptions::default())
    }

    pub fn emit_with(&self, options: &EmitOptions) -> Emitted {
        let mut sources = Sources::default();
        sources.add("draft.traits", &self.text);
        emit(&self.policy, &sources, options).unwrap()
    }

    pub fn compile(&self, clang: &str) -> Vec<u8> {
        let emitted = self.emit();
        compiler(clang).compile(&emitted).unwrap_or_else(|error| panic!("{error}\n{}", numbered(&emitted.source)))
    }
}

fn numbered(source: &str) -> String {
    source.lines().enumerate().map(|(line, text)| format!("{:5} {text}\n", line + 1)).collect()
}

pub const fn outer(kind: FieldKind) -> Operand {
    Operand::Field(Field { layer: Layer::Outer, kind })
}

pub const fn inner(kind: FieldKind) -> Operand {
    Operand::Field(Field { layer: Layer::Inner, kind })
}

pub fn test(test: Test) -> Condition {
    Condition::Test(test)
}

pub fn equal(operand: Operand, value: u128) -> Condition {
    compare(operand, Comparison::Equal, value)
}

pub fn compare(operand: Operand, comparison: Comparison, value: u128) -> Condition {
    test(Test::Compare { operand, comparison, value })
}

pub fn is_set(key: KeyId) -> Condition {
    test(Test::Present(Presence::Trait(key)))
}

pub fn set(key: KeyId, value: Value) -> Action {
    Action::Set { key, value }
}

pub fn single(key: u128, value: u128) -> Entry {
    Entry { low: key, high: key, value }
}

/// A registry nobody else sees.
pub struct Lab {
    pub registry: Registry,
    _bpffs: Bpffs,
}

impl Lab {
    pub fn new() -> Lab {
        let bpffs = Bpffs::new().unwrap();
        // the largest area there is
        let (flow, packet) = if KernelFeature::LongMetadata.is_here() { (104, 112) } else { (32, 0) };
        let layout = Layout::new(flow, packet).unwrap();
        let registry = Registry::options()
            .name(RegistryName::new("default").unwrap())
            .bpffs(bpffs.path())
            .layout(layout)
            .allow_oversize(true)
            .create()
            .unwrap();
        Lab { registry, _bpffs: bpffs }
    }

    /// Registers the keys that an object's manifest lists, binds and loads it.
    pub fn load(&self, object: &[u8]) -> Result<LoadedObject, String> {
        let manifest = Manifest::from_object(object).unwrap().expect("a policy's object has a manifest");
        for key in &manifest.keys {
            let long = KernelFeature::LongMetadata.is_here();
            let merge = if long { key.merge.parse().unwrap() } else { Merge::Block };
            let spec = KeySpec::new(KeyName::new(&key.name).unwrap(), key.key_type.parse().unwrap()).merge(merge);
            self.registry.register(&spec).unwrap();
        }
        let mut bound = BoundObject::from_bytes(object, "policy", &self.registry).map_err(|error| error.to_string())?;
        if !KernelFeature::NetfilterLinks.is_here() {
            let programs = bound.open_object_mut().progs_mut();
            let netfilter = programs.filter(|program| program.section() == "netfilter");
            netfilter.for_each(|mut program| program.set_autoload(false));
        }
        bound.load().map_err(|error| format!("{error}\n{}", error.verifier_log().unwrap_or_default()))
    }
}

pub fn check_text(text: &str) -> Result<Checked, Rejected> {
    check("policy.traits".as_ref(), &Texts::from_iter([("policy.traits", text)]), &CheckOptions::default())
}

/// The policy of a text that must be good.
pub fn good(text: &str) -> Checked {
    check_text(text).unwrap_or_else(|rejected| panic!("{}\n{text}", said(&rejected)))
}

pub fn said(rejected: &Rejected) -> String {
    rejected.diagnostics.iter().map(|diagnostic| diagnostic.render(&rejected.sources, false) + "\n\n").collect()
}
