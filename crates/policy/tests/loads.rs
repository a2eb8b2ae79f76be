//! Every field, test, value, action and hook compiles with every compiler and passes the verifier.

mod common;

use common::{
    Draft, Lab, area_enabled, compare, compilers, enabled, equal, inner, is_set, is_short, outer, set, single, test,
};
use packet_traits::{KeyType, Merge};
use packet_traits_lab::{clang, clangs};
use packet_traits_policy::{
    field::{Field, FieldKind, Header},
    hook::{Ability, Direction, Hook, NetfilterHook},
    policy::{
        Action, Comparison, Condition, Entry, Hardware, Interface, InterfaceDirection, KeyId, Layer, Operand, Presence,
        Test, Type, Value, Verdict,
    },
};

/// One hook of each kind of program, with its name.
const HOOKS: [(&str, Hook); 14] = [
    ("xdp", Hook::Xdp),
    ("tc_ingress", Hook::Tc(Direction::Ingress)),
    ("tc_egress", Hook::Tc(Direction::Egress)),
    ("nf_prerouting", Hook::Netfilter { family: None, hook: NetfilterHook::PreRouting, priority: 0 }),
    ("nf_input", Hook::Netfilter { family: None, hook: NetfilterHook::Input, priority: 0 }),
    ("nf_forward", Hook::Netfilter { family: None, hook: NetfilterHook::Forward, priority: 0 }),
    ("nf_output", Hook::Netfilter { family: None, hook: NetfilterHook::Output, priority: 0 }),
    ("nf_postrouting", Hook::Netfilter { family: None, hook: NetfilterHook::PostRouting, priority: 0 }),
    ("cgroup_ingress", Hook::Cgroup(Direction::Ingress)),
    ("cgroup_egress", Hook::Cgroup(Direction::Egress)),
    ("by_match", Hook::Match),
    ("by_steer", Hook::Steer),
    // names that C has for other things
    ("int", Hook::Match),
    ("trait_area", Hook::Cgroup(Direction::Ingress)),
];

/// One hook of each type of program.
fn each_program_type() -> [(&'static str, Hook); 5] {
    [HOOKS[0], HOOKS[1], HOOKS[4], HOOKS[8], HOOKS[10]]
}

fn with_ethernet(hook: Hook, field: Field) -> bool {
    field.layer == Layer::Inner || hook.sees_ethernet() || !matches!(field.header(), Header::Ethernet | Header::Vlan)
}

/// Every field that rules can ask for at a hook.
fn fields(hook: Hook) -> Vec<Field> {
    let outer = FieldKind::ALL.into_iter().map(|kind| Field { layer: Layer::Outer, kind });
    let inner = FieldKind::ALL.into_iter().filter(|kind| kind.may_be_inner());
    let inner = inner.map(|kind| Field { layer: Layer::Inner, kind });
    let options = [(0x0102, 3), (0xffff, 0x80)]
        .into_iter()
        .map(|(class, kind)| Field { layer: Layer::Outer, kind: FieldKind::GeneveOption { class, kind } });
    outer.chain(inner).chain(options).filter(|field| with_ethernet(hook, *field)).collect()
}

fn highest(of: Type) -> u128 {
    u128::MAX >> (128 - u32::from(of.bits().max(1)))
}

/// Every way to ask about an operand.
fn tests(operand: Operand, of: Type, salt: u128) -> Vec<Condition> {
    let top = highest(of);
    let some = salt & top;
    let mut all: Vec<Condition> = [
        Comparison::Equal,
        Comparison::NotEqual,
        Comparison::Less,
        Comparison::LessOrEqual,
        Comparison::Greater,
        Comparison::GreaterOrEqual,
    ]
    .into_iter()
    .map(|comparison| compare(operand, comparison, some))
    .collect();
    for negated in [false, true] {
        if of != Type::Signed {
            all.push(test(Test::Between { operand, low: some / 2, high: some, negated }));
        }
        let mask = top & !(top >> 1);
        all.push(test(Test::Masked { operand, mask, value: some & mask, negated }));
        all.push(test(Test::AnyBit { operand, mask, negated }));
    }
    all
}

const KEY_TYPES: [(&str, KeyType); 12] = [
    ("flag", KeyType::Flag),
    ("u8", KeyType::U8),
    ("u16", KeyType::U16),
    ("u32", KeyType::U32),
    ("u64", KeyType::U64),
    ("u128", KeyType::U128),
    ("i64", KeyType::I64),
    ("ipv4", KeyType::Ipv4),
    ("ipv6", KeyType::Ipv6),
    ("mac", KeyType::Mac),
    ("uuid", KeyType::Uuid),
    ("timestamp", KeyType::Timestamp),
];

/// A draft with a key of each type, three of them with names that C does not take.
fn with_keys() -> (Draft, Vec<KeyId>) {
    let mut draft = Draft::new();
    let keys = KEY_TYPES
        .into_iter()
        .enumerate()
        .map(|(number, (name, key_type))| {
            let merge = if number % 2 == 0 { Merge::Block } else { Merge::KeepFirst };
            let name = match key_type {
                KeyType::U8 => "a.b",
                KeyType::U16 => "a-b",
                KeyType::U32 => "int",
                _ => name,
            };
            draft.key(name, key_type, merge)
        })
        .collect();
    (draft, keys)
}

fn load_with_each_compiler(draft: &Draft, what: &str) {
    let lab = Lab::new();
    for clang in compilers() {
        let object = draft.compile(clang);
        if let Err(error) = lab.load(&object) {
            panic!("{what}, {clang}: {error}\n{}", draft.emit().source);
        }
    }
}

#[test]
fn every_test_of_every_field_loads_in_every_type_of_program() {
    if !enabled() {
        return;
    }
    for (name, hook) in each_program_type() {
        let mut draft = Draft::new();
        draft.block(name, hook);
        for (number, field) in fields(hook).into_iter().enumerate() {
            let operand = Operand::Field(field);
            draft.plain(
                test(Test::Present(Presence::Field(field))),
                vec![Action::Count { counter: packet_traits_policy::policy::CounterId(0), by: None }],
            );
            for condition in tests(operand, field.value_type(), 0x1234_5678_9abc_def0 * (number as u128 + 1)) {
                draft.plain(
                    condition,
                    vec![Action::Count { counter: packet_traits_policy::policy::CounterId(0), by: None }],
                );
            }
        }
        draft.counter("all", None);
        load_with_each_compiler(&draft, name);
    }
}

/// A parser must not depend on what other fields are asked for.
#[test]
fn a_program_that_asks_for_one_field_only_loads() {
    if !enabled() {
        return;
    }
    let lab = Lab::new();
    for (name, hook) in [HOOKS[0], HOOKS[4]] {
        for field in fields(hook).into_iter().step_by(if is_short() { 4 } else { 1 }) {
            let mut draft = Draft::new();
            draft.block(name, hook);
            draft.plain(equal(Operand::Field(field), 1), vec![Action::Log { text: String::new(), sample: 1 }]);
            let object = draft.compile(clang());
            if let Err(error) = lab.load(&object) {
                panic!("{name} {field:?}: {error}\n{}", draft.emit().source);
            }
        }
    }
}

#[test]
fn every_test_of_every_trait_loads_in_every_type_of_program() {
    if !area_enabled() {
        return;
    }
    for (name, hook) in each_program_type() {
        let (mut draft, keys) = with_keys();
        let by_tenant = draft.counter("by_key", Some(Type::Unsigned(32)));
        draft.block(name, hook);
        for (key, (_, key_type)) in keys.iter().zip(KEY_TYPES) {
            let counted = || vec![Action::Count { counter: by_tenant, by: Some(Operand::Trait(keys[3])) }];
            draft.plain(is_set(*key), counted());
            if key_type != KeyType::Flag {
                for condition in tests(Operand::Trait(*key), key_type.into(), 0x1234_5678_9abc_def0_0102_0304_0506_0708)
                {
                    draft.plain(condition, counted());
                }
            }
        }
        load_with_each_compiler(&draft, name);
    }
}

/// A table of each form for each type, as a set and as a map.
fn table_entries(of: Type, count: u128, ranges: bool) -> Vec<Entry> {
    let step = (highest(of) / count).max(1);
    (0..count)
        .map(|number| Entry {
            low: number * step,
            high: if ranges && number % 2 == 0 { number * step + step / 2 } else { number * step },
            value: number,
        })
        .collect()
}

#[test]
fn tables_of_every_form_and_type_load() {
    if !area_enabled() {
        return;
    }
    let fields = [
        outer(FieldKind::IpVersion),
        outer(FieldKind::TransportDestination),
        outer(FieldKind::VxlanVni),
        outer(FieldKind::EtherSource),
        outer(FieldKind::Ipv4Source),
        outer(FieldKind::Ipv6Source),
        inner(FieldKind::Ipv6Destination),
    ];
    for hook in [HOOKS[0], HOOKS[3]] {
        let (mut draft, keys) = with_keys();
        let value = draft.counter("found", Some(Type::Unsigned(32)));
        draft.block(hook.0, hook.1);
        for (number, operand) in fields.into_iter().enumerate() {
            let of = draft.policy.type_of(operand);
            if number == 3 && !hook.1.sees_ethernet() {
                continue;
            }
            for (count, ranges) in [(3, false), (12, true), (100, false), (100, true)] {
                let name = format!("t{number}_{count}_{ranges}");
                let names = draft.table(Some(&name), of, None, table_entries(of, count, ranges));
                let map = draft.table(None, of, Some(Type::Unsigned(32)), table_entries(of, count, ranges));
                for negated in [false, true] {
                    for table in [names, map] {
                        let counted = vec![Action::Count { counter: value, by: Some(outer(FieldKind::Length)) }];
                        draft.plain(test(Test::In { operand, table, negated }), counted);
                    }
                }
                if hook.1.can(Ability::ChangeBlockKey) {
                    draft.plain(Condition::Always, vec![set(keys[3], Value::Lookup { operand, table: map })]);
                }
            }
        }
        load_with_each_compiler(&draft, hook.0);
    }
}

#[test]
fn every_action_loads_where_it_can_be_done() {
    if !area_enabled() {
        return;
    }
    for (name, hook) in HOOKS {
        let (mut draft, keys) = with_keys();
        let plain = draft.counter("plain", None);
        let by_type: Vec<_> = KEY_TYPES
            .into_iter()
            .zip(&keys)
            .filter(|((_, key_type), _)| *key_type != KeyType::Flag)
            .map(|((name, key_type), key)| (draft.counter(&format!("by_{name}"), Some(key_type.into())), *key))
            .collect();
        let eth1 = draft.interface("eth1");
        let ports = draft.table(None, Type::Unsigned(16), Some(Type::Unsigned(32)), vec![single(0, 5), single(22, 7)]);
        let lookup = Value::Lookup { operand: outer(FieldKind::TransportDestination), table: ports };
        let field = Value::Operand(outer(FieldKind::Protocol));
        let when = || test(Test::Present(Presence::Field(Field { layer: Layer::Outer, kind: FieldKind::Protocol })));

        draft.block(name, hook);
        draft.plain(Condition::Always, vec![Action::Count { counter: plain, by: None }]);
        for (counter, key) in by_type {
            draft.plain(when(), vec![Action::Count { counter, by: Some(Operand::Trait(key)) }]);
        }
        draft.plain(when(), vec![Action::Log { text: "seen \"it\" */".to_owned(), sample: 1 }]);
        draft.plain(when(), vec![Action::Log { text: String::new(), sample: 1000 }]);
        for (ability, direction) in
            [(Ability::InputInterface, InterfaceDirection::In), (Ability::OutputInterface, InterfaceDirection::Out)]
        {
            if hook.can(ability) {
                for (interface, negated) in
                    [(Interface::Index(1), false), (Interface::Name(eth1), false), (Interface::Name(eth1), true)]
                {
                    let asked = test(Test::Interface { direction, interface, negated });
                    draft.plain(asked, vec![Action::Count { counter: plain, by: None }]);
                }
            }
        }
        let values = [
            (3, Value::Constant(7)),
            (4, field.clone()),
            (3, lookup.clone()),
            (4, Value::Unique),
            (4, Value::Hash(Layer::Outer)),
            (1, Value::Hash(Layer::Inner)),
            (11, Value::Time),
            (0, Value::Constant(0)),
            (5, Value::Constant(u128::MAX)),
            (5, Value::Operand(Operand::Trait(keys[4]))),
            (6, Value::Constant(u128::from(u64::MAX))),
            (7, Value::Constant(0x0a00_0001)),
            (8, Value::Constant(1)),
            (8, Value::Operand(outer(FieldKind::Ipv6Source))),
            (9, Value::Constant(1)),
            (10, Value::Constant(1)),
        ];
        for (key, value) in values {
            let ability = if key % 2 == 0 { Ability::ChangeBlockKey } else { Ability::ChangeKeepFirstKey };
            if hook.can(ability) {
                draft.plain(when(), vec![set(keys[key], value), Action::Delete(keys[key])]);
                draft.plain(when(), vec![set(keys[key], Value::Operand(Operand::Trait(keys[key])))]);
            }
        }
        for value in [Value::Constant(3), field.clone(), lookup.clone(), Value::Operand(Operand::Trait(keys[3]))] {
            if hook.can(Ability::MarkAndPriority) {
                draft.plain(when(), vec![Action::Mark(value.clone()), Action::Priority(value.clone())]);
                draft.plain(Condition::Always, vec![Action::Priority(value.clone()), Action::Mark(value.clone())]);
            }
            if hook.can(Ability::Queue) {
                draft.plain(when(), vec![Action::Queue(value.clone())]);
            }
            if hook.can(Ability::RedirectCpuOrXsk) {
                draft.plain(when(), vec![Action::Verdict(Verdict::RedirectCpu(value.clone()))]);
                draft.plain(when(), vec![Action::Verdict(Verdict::RedirectXsk(Some(value.clone())))]);
            }
            if hook.can(Ability::Member) {
                draft.plain(when(), vec![Action::Verdict(Verdict::Member(value.clone()))]);
            }
        }
        if hook.can(Ability::RedirectDevice) {
            draft.plain(when(), vec![Action::Verdict(Verdict::RedirectDevice(Interface::Name(eth1)))]);
        }
        if hook.can(Ability::RedirectCpuOrXsk) {
            draft.plain(when(), vec![Action::Verdict(Verdict::RedirectXsk(None))]);
        }
        if hook.can(Ability::AcceptAndDrop) {
            draft.plain(equal(outer(FieldKind::Protocol), 6), vec![Action::Verdict(Verdict::Accept)]);
            draft.plain(equal(outer(FieldKind::Protocol), 17), vec![Action::Verdict(Verdict::Drop)]);
        }
        load_with_each_compiler(&draft, name);
    }
}

/// More than one function can take: jumps are short, and the verifier does not follow this many branches in one go.
#[test]
fn lookups_that_verdicts_make_load_by_the_thousand() {
    if !enabled() {
        return;
    }
    let mut draft = Draft::new();
    let entries = (0..16).map(|number| single(number << 8, number * 3)).collect();
    let table = draft.table(Some("numbers"), Type::Ipv4, Some(Type::Unsigned(32)), entries);
    draft.block("many", Hook::Steer);
    for port in 0..1500 {
        let value = Value::Lookup { operand: outer(FieldKind::Ipv4Source), table };
        draft.plain(equal(outer(FieldKind::UdpDestination), port), vec![Action::Verdict(Verdict::Member(value))]);
    }
    load_with_each_compiler(&draft, "many lookups");
}

#[test]
fn conditions_nest() {
    if !area_enabled() {
        return;
    }
    let (mut draft, keys) = with_keys();
    draft.block("xdp", Hook::Xdp);
    let tcp = || equal(outer(FieldKind::Protocol), 6);
    let ports = || test(Test::Between { operand: outer(FieldKind::TcpDestination), low: 0, high: 1023, negated: true });
    let tenant = || compare(Operand::Trait(keys[3]), Comparison::NotEqual, 7);
    let not = |condition| Condition::Not(Box::new(condition));
    draft.plain(
        Condition::Any(vec![
            Condition::All(vec![tcp(), not(ports()), Condition::Any(vec![tenant(), not(not(is_set(keys[0])))])]),
            not(Condition::Any(vec![tcp(), tenant()])),
        ]),
        vec![set(keys[3], Value::Constant(1)), Action::Verdict(Verdict::Drop)],
    );
    load_with_each_compiler(&draft, "nested");
}

#[test]
fn an_empty_block_loads_at_every_hook() {
    if !enabled() {
        return;
    }
    let mut draft = Draft::new();
    for (name, hook) in HOOKS {
        draft.block(name, hook);
    }
    load_with_each_compiler(&draft, "empty blocks");
}

/// Programs that ask the card must be loaded for an interface; here it is enough that they compile.
#[test]
fn what_the_network_card_says_compiles() {
    let (mut draft, keys) = with_keys();
    draft.block("xdp", Hook::Xdp);
    for (key, what) in [(11, Hardware::Timestamp), (3, Hardware::Hash), (4, Hardware::VlanId)] {
        draft.plain(Condition::Always, vec![set(keys[key], Value::Hardware(what))]);
    }
    for clang in clangs() {
        draft.compile(clang);
    }
    assert!(draft.emit().manifest.programs[0].device_bound);
}
