//! Rules do what the language says: absence, order, values, verdicts, and the steps that tell of it.

use packet_traits_core::{KeyName, KeyType, Merge};
use packet_traits_policy::{
    field::{Field, FieldKind},
    hash::FiveTuple,
    hook::{Direction, Hook},
    interpret::{self, Context, Counted, Decision, Effect, HardwareValues, Outcome},
    policy::{
        Action, Block, Comparison, Condition, Counter, CounterId, Entry, Hardware, Interface, InterfaceDirection,
        InterfaceId, KeyDeclaration, KeyId, Layer, Operand, Policy, Presence, Rule, Table, TableId, Test, Type, Value,
        Verdict,
    },
    source::Span,
};

const TENANT: KeyId = KeyId(0);
const BALANCE: KeyId = KeyId(1);
const SEEN: KeyId = KeyId(2);
const SMALL: KeyId = KeyId(3);

const DROP: Action = Action::Verdict(Verdict::Drop);
const ACCEPT: Action = Action::Verdict(Verdict::Accept);

/// Ethernet, IPv4 from 10.1.2.3 to 10.4.5.6, UDP from 4660 to 53.
const PACKET: [u8; 42] = [
    2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 2, 3, 10, 4, 5, 6, 0x12,
    0x34, 0, 53, 0, 8, 0, 0,
];

fn rule(condition: Condition, actions: impl Into<Vec<Action>>) -> Rule {
    Rule { condition, actions: actions.into(), span: Span::default() }
}

fn policy(hook: Hook, rules: impl Into<Vec<Rule>>) -> Policy {
    let key = |name, key_type| KeyDeclaration {
        name: KeyName::new(name).unwrap(),
        key_type,
        merge: Merge::Block,
        description: String::new(),
        span: Span::default(),
    };
    Policy {
        keys: vec![
            key("tenant", KeyType::U32),
            key("balance", KeyType::I64),
            key("seen", KeyType::Flag),
            key("small", KeyType::U8),
        ],
        tables: vec![Table {
            name: Some("tenants".to_owned()),
            key: Type::Ipv4,
            value: Some(Type::Unsigned(32)),
            entries: vec![
                Entry { low: 0x0a00_0000, high: 0x0aff_ffff, value: 1 },
                Entry { low: 0x0a01_0203, high: 0x0a01_0203, value: 9 },
            ],
        }],
        counters: vec![
            Counter { name: "all".to_owned(), by: None },
            Counter { name: "per_tenant".to_owned(), by: Some(Type::Unsigned(32)) },
        ],
        interfaces: vec!["eth0".to_owned(), "eth1".to_owned()],
        blocks: vec![Block {
            name: "block".to_owned(),
            hook,
            inherits: false,
            rules: rules.into(),
            span: Span::default(),
        }],
    }
}

fn field(kind: FieldKind) -> Operand {
    Operand::Field(Field { layer: Layer::Outer, kind })
}

fn compare(operand: Operand, comparison: Comparison, value: u128) -> Condition {
    Condition::Test(Test::Compare { operand, comparison, value })
}

fn is_set(key: KeyId) -> Condition {
    Condition::Test(Test::Present(Presence::Trait(key)))
}

fn set(key: KeyId, value: u128) -> Action {
    Action::Set { key, value: Value::Constant(value) }
}

fn log(text: &str) -> Action {
    Action::Log { text: text.to_owned(), sample: 1 }
}

fn run<'p>(policy: &'p Policy, context: &Context) -> Outcome<'p> {
    interpret::run(policy, 0, &PACKET, context)
}

fn texts<'p>(outcome: &Outcome<'p>) -> Vec<&'p str> {
    outcome.logged.iter().map(|logged| logged.text).collect()
}

/// Whether a condition holds for the packet.
fn holds(condition: Condition, context: &Context) -> bool {
    let policy = policy(Hook::Xdp, [rule(condition, [DROP])]);
    run(&policy, context).decision == Decision::Drop
}

fn with(key: KeyId, value: u128) -> Context {
    let mut traits = vec![None; 4];
    traits[key.0] = Some(value);
    Context { traits, has_area: true, ..Context::default() }
}

#[test]
fn a_test_of_something_absent_is_false_also_if_it_is_negated() {
    let nothing = Context::default();
    let absent = [Operand::Trait(TENANT), field(FieldKind::TcpSource), field(FieldKind::VxlanVni)];
    for operand in absent {
        for comparison in [Comparison::Equal, Comparison::NotEqual, Comparison::Less, Comparison::GreaterOrEqual] {
            assert!(!holds(compare(operand, comparison, 0), &nothing));
        }
        for negated in [false, true] {
            let table = TableId(0);
            for test in [
                Test::Between { operand, low: 0, high: u128::MAX, negated },
                Test::Masked { operand, mask: 1, value: 0, negated },
                Test::AnyBit { operand, mask: 1, negated },
                Test::In { operand, table, negated },
            ] {
                assert!(holds(Condition::Not(Box::new(Condition::Test(test.clone()))), &nothing));
                assert!(!holds(Condition::Test(test), &nothing));
            }
        }
    }
    for negated in [false, true] {
        let test = Test::Interface { direction: InterfaceDirection::In, interface: Interface::Index(1), negated };
        assert!(!holds(Condition::Test(test), &nothing));
    }
}

#[test]
fn tests_ask_what_they_say() {
    let operand = field(FieldKind::UdpDestination);
    let nothing = Context::default();
    let test = |test| holds(Condition::Test(test), &nothing);
    for (comparison, below, equal, above) in [
        (Comparison::Equal, false, true, false),
        (Comparison::NotEqual, true, false, true),
        (Comparison::Less, true, false, false),
        (Comparison::LessOrEqual, true, true, false),
        (Comparison::Greater, false, false, true),
        (Comparison::GreaterOrEqual, false, true, true),
    ] {
        for (constant, expected) in [(54, below), (53, equal), (52, above)] {
            assert_eq!(
                holds(compare(operand, comparison, constant), &nothing),
                expected,
                "53 {comparison:?} {constant}"
            );
        }
    }
    for negated in [false, true] {
        for (low, high, inside) in [(53, 53, true), (0, 53, true), (53, 99, true), (54, 99, false), (0, 52, false)] {
            assert_eq!(test(Test::Between { operand, low, high, negated }), inside != negated);
        }
        for (mask, value, same) in [(0x3c, 0x34, true), (0xff, 53, true), (0x01, 0, false)] {
            assert_eq!(test(Test::Masked { operand, mask, value, negated }), same != negated);
        }
        for (mask, any) in [(0x01, true), (0x0b, true), (0x0a, false)] {
            assert_eq!(test(Test::AnyBit { operand, mask, negated }), any != negated);
        }
        let table = TableId(0);
        assert_eq!(test(Test::In { operand: field(FieldKind::Ipv4Source), table, negated }), !negated);
        assert_eq!(test(Test::In { operand, table, negated }), negated);
    }
}

#[test]
fn a_signed_number_is_ordered_by_its_sign() {
    let minus_one = with(BALANCE, u64::MAX.into());
    let operand = Operand::Trait(BALANCE);
    assert!(holds(compare(operand, Comparison::Less, 0), &minus_one));
    assert!(holds(compare(operand, Comparison::Greater, u128::from(-2i64 as u64)), &minus_one));
    assert!(holds(compare(operand, Comparison::Equal, u64::MAX.into()), &minus_one));
}

#[test]
fn interfaces_are_numbers_and_a_name_without_one_is_no_interface() {
    let context = Context { input: Some(3), interfaces: vec![Some(3), None], ..Context::default() };
    let is = |interface, negated| {
        holds(Condition::Test(Test::Interface { direction: InterfaceDirection::In, interface, negated }), &context)
    };
    assert!(is(Interface::Index(3), false) && !is(Interface::Index(3), true));
    assert!(is(Interface::Name(InterfaceId(0)), false) && !is(Interface::Index(2), false));
    assert!(!is(Interface::Name(InterfaceId(1)), false) && is(Interface::Name(InterfaceId(1)), true));
}

#[test]
fn conditions_combine_and_stop_at_what_settles_them() {
    let yes = || compare(field(FieldKind::Length), Comparison::Equal, 42);
    let no = || compare(field(FieldKind::Length), Comparison::NotEqual, 42);
    for (condition, expected, made) in [
        (Condition::All(vec![yes(), yes()]), true, 2),
        (Condition::All(vec![no(), yes()]), false, 1),
        (Condition::Any(vec![yes(), no()]), true, 1),
        (Condition::Any(vec![no(), no()]), false, 2),
        (Condition::Not(Box::new(Condition::Any(vec![no(), yes()]))), false, 2),
        (Condition::Always, true, 0),
    ] {
        let policy = policy(Hook::Xdp, [rule(condition.clone(), [DROP])]);
        let outcome = run(&policy, &Context::default());
        let step = &outcome.steps[0];
        assert_eq!((step.holds, step.tests.len()), (expected, made), "{condition:?}");
        assert_eq!(outcome.hits, if expected { vec![0] } else { vec![] });
    }
}

#[test]
fn actions_show_in_later_rules_and_a_verdict_ends_the_block() {
    let policy = policy(
        Hook::Xdp,
        [
            rule(is_set(TENANT), [log("not yet")]),
            rule(Condition::Always, [set(TENANT, 7), Action::Delete(BALANCE), Action::Delete(SEEN)]),
            rule(compare(Operand::Trait(TENANT), Comparison::Equal, 7), [log("now"), DROP]),
            rule(Condition::Always, [ACCEPT]),
        ],
    );
    let outcome = run(&policy, &with(BALANCE, 5));
    assert_eq!((outcome.decision, outcome.decided_by), (Decision::Drop, Some(2)));
    assert_eq!(outcome.traits, [Some(7), None, None, None]);
    assert_eq!((outcome.logged[0].rule, outcome.logged[0].traits[TENANT.0]), (2, Some(7)));
    assert_eq!((texts(&outcome), outcome.hits), (vec!["now"], vec![1, 2]));
    assert_eq!(outcome.steps.len(), 3, "the last rule is not looked at");
    let effects: Vec<_> = outcome.steps[1].actions.iter().map(|step| step.effect).collect();
    assert_eq!(effects, [Effect::Done(Some(7)), Effect::Done(Some(5)), Effect::Absent]);
    assert_eq!(outcome.length, 42);
}

#[test]
fn a_verdict_without_its_value_is_not_taken() {
    let policy = policy(
        Hook::Xdp,
        [
            rule(Condition::Always, [Action::Verdict(Verdict::RedirectCpu(Value::Operand(Operand::Trait(TENANT))))]),
            rule(Condition::Always, [Action::Verdict(Verdict::RedirectXsk(None))]),
        ],
    );
    let outcome = run(&policy, &Context::default());
    assert_eq!((outcome.decision, outcome.hits), (Decision::RedirectXsk(None), vec![0, 1]));
    assert_eq!(run(&policy, &with(TENANT, 1)).decision, Decision::RedirectCpu(1));
}

#[test]
fn a_block_without_a_verdict_ends_as_its_hook_does() {
    for (hook, decision) in [
        (Hook::Xdp, Decision::Accept),
        (Hook::Tc(Direction::Egress), Decision::Accept),
        (Hook::Cgroup(Direction::Ingress), Decision::Accept),
        (Hook::Match, Decision::Drop),
        (Hook::Steer, Decision::Kernel),
    ] {
        let policy = policy(hook, [rule(Condition::Always, [log("")])]);
        let outcome = run(&policy, &Context::default());
        assert_eq!((outcome.decision, outcome.decided_by), (decision, None));
    }
}

#[test]
fn values_come_from_where_they_say_or_are_absent() {
    let context = Context {
        time: 5_000,
        unique: 0x1_0000_0000_0203,
        hardware: HardwareValues { timestamp: Some(77), hash: None, vlan_id: Some(9) },
        ..with(SMALL, 200)
    };
    let five_tuple = FiveTuple {
        version: 4,
        protocol: 17,
        source: 0x0a01_0203,
        destination: 0x0a04_0506,
        source_port: 4660,
        destination_port: 53,
    };
    let lookup = |operand| Value::Lookup { operand, table: TableId(0) };
    let source = field(FieldKind::Ipv4Source);
    for (value, expected) in [
        (Value::Constant(5), Some(5)),
        (Value::Operand(source), Some(0x0a01_0203)),
        (Value::Operand(Operand::Trait(SMALL)), Some(200)),
        (Value::Operand(Operand::Trait(TENANT)), None),
        (lookup(source), Some(9)),
        (lookup(field(FieldKind::Ipv4Destination)), Some(1)),
        (lookup(field(FieldKind::UdpDestination)), None),
        (lookup(field(FieldKind::TcpDestination)), None),
        (Value::Unique, Some(0x203)),
        (Value::Hash(Layer::Outer), Some(u128::from(five_tuple.hash() as u32))),
        (Value::Hash(Layer::Inner), None),
        (Value::Time, Some(5_000)),
        (Value::Hardware(Hardware::Timestamp), Some(77)),
        (Value::Hardware(Hardware::Hash), None),
        (Value::Hardware(Hardware::VlanId), Some(9)),
    ] {
        let action = Action::Set { key: TENANT, value: value.clone() };
        let policy = policy(Hook::Xdp, [rule(Condition::Always, [action])]);
        let outcome = run(&policy, &context);
        assert_eq!(outcome.traits[TENANT.0], expected, "{value:?}");
        let effect = expected.map_or(Effect::Absent, |value| Effect::Done(Some(value)));
        assert_eq!(outcome.steps[0].actions[0].effect, effect);
    }
}

#[test]
fn a_wide_value_loses_its_high_bits_and_a_flag_has_none() {
    let unique = |key| Action::Set { key, value: Value::Unique };
    let policy = policy(Hook::Xdp, [rule(Condition::Always, [unique(SMALL), set(SEEN, 1)])]);
    let outcome = run(&policy, &Context { unique: 0x1234, ..Context::default() });
    assert_eq!(outcome.traits, [None, None, Some(0), Some(0x34)]);
}

#[test]
fn a_packet_that_takes_two_unique_numbers_gets_two() {
    let unique = |key| Action::Set { key, value: Value::Unique };
    let policy = policy(Hook::Xdp, [rule(Condition::Always, [unique(TENANT), unique(SMALL)])]);
    let outcome = run(&policy, &Context { unique: 5, ..Context::default() });
    assert_eq!(outcome.traits, [Some(5), None, None, Some(6)]);
}

#[test]
fn a_trait_has_no_place_at_tc_where_the_packet_has_no_area() {
    let policy = policy(Hook::Tc(Direction::Ingress), [rule(Condition::Always, [set(TENANT, 7)])]);
    let without = run(&policy, &Context::default());
    assert_eq!((without.traits[0], without.steps[0].actions[0].effect), (None, Effect::NoArea));
    assert_eq!(run(&policy, &with(SMALL, 1)).traits[0], Some(7));
}

#[test]
fn marks_counts_and_logs_are_told() {
    let count = |counter, by| Action::Count { counter: CounterId(counter), by };
    let policy = policy(
        Hook::Tc(Direction::Ingress),
        [rule(
            Condition::Always,
            [
                Action::Mark(Value::Constant(1)),
                Action::Mark(Value::Operand(Operand::Trait(TENANT))),
                Action::Priority(Value::Constant(2)),
                Action::Queue(Value::Operand(field(FieldKind::TcpSource))),
                count(0, None),
                count(1, Some(Operand::Trait(SMALL))),
                count(1, Some(Operand::Trait(TENANT))),
                Action::Log { text: "sometimes".to_owned(), sample: 2 },
                log("always"),
            ],
        )],
    );
    let outcome = run(&policy, &with(TENANT, 7));
    assert_eq!((outcome.mark, outcome.priority, outcome.queue), (Some(7), Some(2), None));
    let counted = [Counted { counter: CounterId(0), by: None }, Counted { counter: CounterId(1), by: Some(7) }];
    assert_eq!((outcome.counted.as_slice(), texts(&outcome)), (&counted[..], vec!["always"]));
    let sampled = run(&policy, &Context { sampled: true, ..Context::default() });
    assert_eq!((sampled.mark, texts(&sampled)), (Some(1), vec!["sometimes", "always"]));
}

#[test]
fn rules_are_numbered_through_the_policy() {
    let mut policy = policy(Hook::Xdp, [rule(Condition::Always, [log("a")]), rule(Condition::Always, [log("b")])]);
    let second =
        Block { name: "second".to_owned(), rules: vec![rule(Condition::Always, [DROP])], ..policy.blocks[0].clone() };
    policy.blocks.push(second);
    let outcome = interpret::run(&policy, 1, &PACKET, &Context::default());
    assert_eq!((outcome.hits, outcome.decided_by), (vec![2], Some(2)));
}
