//! Rules that no packet comes to, and conditions that never hold.
//!
//! A condition is taken apart into cases, one of which must hold; a case says of fields, traits and headers which
//! values they may have. What a test implies is added: who has a TCP port has an IP header with protocol 6. A case in
//! which something may have no value never holds. A rule is covered by an earlier one that ends the block if each of
//! its cases lies within one of the earlier rule's. Where a condition has too many cases, or all takes too long,
//! nothing is said.

use std::{
    collections::{HashMap, hash_map::Entry},
    rc::Rc,
};

use super::domain::{self, Domain};
use crate::{
    diagnostic::{Code, Diagnostic, Diagnostics},
    field::{Field, FieldKind, Header},
    policy::{
        Action, Condition, Interface, InterfaceDirection, KeyId, Layer, Operand, Policy, Presence, Rule, TableId, Test,
        Value, Verdict,
    },
    source::Span,
};

/// How many cases a condition may have.
const CASES_MAX: usize = 64;

/// How much work is put into a block: numbers of ranges gone through.
const WORK_MAX: usize = 20_000_000;

/// What a case says something of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Subject {
    /// Is it there? Its only value is 0.
    Header(Layer, Header),
    Value(Operand),
    /// Is the answer to this question of an interface yes? An interface may have several names, so that answers to
    /// different questions say nothing of each other. Its only value is 0.
    Interface(InterfaceDirection, Interface, bool),
}

/// What a case says of a subject.
#[derive(Clone, Debug)]
struct Constraint {
    /// With what other tests imply.
    all: Domain,
    /// What tests of the subject itself say.
    direct: Option<Domain>,
    /// The last test that had to do with it.
    test: usize,
}

/// Tests that hold together.
#[derive(Clone, Debug, Default)]
struct Case {
    constraints: HashMap<Subject, Constraint>,
}

/// The cases of a condition. If there is none, these two tests exclude each other (or themselves).
struct Cases {
    cases: Vec<Case>,
    conflict: Option<(usize, usize)>,
}

/// Looks at the rules of a block. `tests` has the places of each rule's tests.
pub(super) fn check(policy: &Policy, rules: &[Rule], tests: &[Vec<Span>], diagnostics: &mut Diagnostics) {
    let mut reasoning = Reasoning { policy, work_left: WORK_MAX, tables: HashMap::new() };
    // rules that end the block for each packet they are for
    let mut ending: Vec<(usize, Vec<Case>)> = Vec::new();
    let mut changed: HashMap<KeyId, usize> = HashMap::new();
    for (place, (rule, tests)) in rules.iter().zip(tests).enumerate() {
        let Some(cases) = reasoning.cases(&rule.condition, true, &mut 0) else {
            note_changes(rule, place, &mut changed);
            continue;
        };
        if cases.cases.is_empty() {
            diagnostics.push(never_holds(cases.conflict, rule, tests));
            continue;
        }
        let mut cover = None;
        for (earlier, its_cases) in &ending {
            match reasoning.covers(its_cases, *earlier, &cases.cases, &changed) {
                Some(true) => {
                    cover = Some(*earlier);
                    break;
                }
                Some(false) => {}
                None => return,
            }
        }
        if let Some(earlier) = cover {
            let diagnostic = Diagnostic::new(Code::Unreachable, rule.span, "no packet comes to this rule");
            let earlier = &rules[earlier];
            if earlier.condition == Condition::Always {
                let rest = rules.len() - place;
                let diagnostic = diagnostic.related(earlier.span, "this ends the block for every packet");
                diagnostics.push(match rest {
                    1 => diagnostic,
                    2 => diagnostic.label("nor to the one after it"),
                    _ => diagnostic.label(format!("nor to the {} after it", rest - 1)),
                });
                return;
            }
            diagnostics.push(diagnostic.related(earlier.span, "this ends the block for all that it is for"));
            continue;
        }
        note_changes(rule, place, &mut changed);
        if ends(rule) {
            ending.push((place, cases.cases));
        }
    }
}

fn never_holds(conflict: Option<(usize, usize)>, rule: &Rule, tests: &[Span]) -> Diagnostic {
    let place = |test: usize| tests.get(test).copied().unwrap_or(rule.span);
    let (first, second) = conflict.unwrap_or_default();
    let (first, second) = (place(first.min(second)), place(first.max(second)));
    let diagnostic = Diagnostic::new(Code::NeverHolds, second, "no packet passes this condition");
    if first == second {
        return diagnostic.label("this is true of none");
    }
    diagnostic.label("… exclude each other").related(first, "this and …")
}

fn note_changes(rule: &Rule, place: usize, changed: &mut HashMap<KeyId, usize>) {
    for action in &rule.actions {
        if let Action::Set { key, .. } | Action::Delete(key) = action {
            changed.insert(*key, place);
        }
    }
}

/// Whether a rule ends the block for every packet it is for.
fn ends(rule: &Rule) -> bool {
    match rule.actions.last() {
        Some(Action::Verdict(verdict)) => matches!(
            verdict,
            Verdict::Accept
                | Verdict::Drop
                | Verdict::RedirectDevice(_)
                | Verdict::RedirectXsk(None | Some(Value::Constant(_)))
                | Verdict::RedirectCpu(Value::Constant(_))
                | Verdict::Member(Value::Constant(_))
        ),
        _ => false,
    }
}

struct Reasoning<'a> {
    policy: &'a Policy,
    work_left: usize,
    tables: HashMap<TableId, Rc<[(u128, u128)]>>,
}

impl Reasoning<'_> {
    /// Counts work; nothing if there was enough.
    fn work(&mut self, weight: usize) -> Option<()> {
        self.work_left = self.work_left.checked_sub(weight)?;
        Some(())
    }

    /// The cases in which a condition holds or, if not `positive`, does not; nothing if they cannot be told. `next` is
    /// the number of the test that comes next.
    fn cases(&mut self, condition: &Condition, positive: bool, next: &mut usize) -> Option<Cases> {
        let (parts, all) = match condition {
            Condition::Always if positive => return Some(Cases { cases: vec![Case::default()], conflict: None }),
            Condition::Always => return Some(Cases { cases: Vec::new(), conflict: None }),
            Condition::Not(part) => return self.cases(part, !positive, next),
            Condition::Test(test) => {
                *next += 1;
                return self.test(test, positive, *next - 1);
            }
            Condition::All(parts) => (parts, positive),
            Condition::Any(parts) => (parts, !positive),
        };
        let mut sum = if all {
            Cases { cases: vec![Case::default()], conflict: None }
        } else {
            Cases { cases: Vec::new(), conflict: None }
        };
        for part in parts {
            let part = self.cases(part, positive, next)?;
            sum = if all { self.product(&sum, &part)? } else { add(sum, part) };
            if sum.cases.len() > CASES_MAX {
                return None;
            }
        }
        Some(sum)
    }

    /// The cases in which one of both holds.
    fn product(&mut self, one: &Cases, other: &Cases) -> Option<Cases> {
        let mut product = Cases { cases: Vec::new(), conflict: one.conflict.or(other.conflict) };
        for left in &one.cases {
            for right in &other.cases {
                let (larger, smaller) =
                    if left.constraints.len() < right.constraints.len() { (right, left) } else { (left, right) };
                self.work(smaller.constraints.len() + 1)?;
                let mut case = larger.clone();
                self.work(case.constraints.len())?;
                let mut conflict = None;
                for (subject, constraint) in &smaller.constraints {
                    conflict = conflict.or(self.constrain(&mut case, *subject, constraint)?);
                }
                match conflict {
                    None => product.cases.push(case),
                    Some(conflict) => product.conflict = product.conflict.or(Some(conflict)),
                }
                if product.cases.len() > CASES_MAX {
                    return None;
                }
            }
        }
        Some(product)
    }

    /// Adds what is said of a subject. If nothing is left, these tests are why.
    fn constrain(&mut self, case: &mut Case, subject: Subject, new: &Constraint) -> Option<Option<(usize, usize)>> {
        let mut entry = match case.constraints.entry(subject) {
            Entry::Vacant(entry) => {
                entry.insert(new.clone());
                return Some(new.all.is_empty().then_some((new.test, new.test)));
            }
            Entry::Occupied(entry) => entry,
        };
        let old = entry.get_mut();
        self.work_left = self.work_left.checked_sub(old.all.weight() + new.all.weight())?;
        let all = old.all.and(&new.all);
        let conflict = all.is_empty().then_some((old.test, new.test));
        let direct = match (&old.direct, &new.direct) {
            (Some(one), Some(other)) => Some(one.and(other)),
            (one, other) => one.clone().or_else(|| other.clone()),
        };
        // the test that says more is the one to point at
        let test = if all == old.all { old.test } else { new.test };
        *old = Constraint { all, direct, test };
        Some(conflict)
    }

    /// The cases of one test: it needs one thing of one subject, and what that implies.
    fn test(&mut self, test: &Test, positive: bool, number: usize) -> Option<Cases> {
        let there = || Domain::of([(0, 0)]);
        let (subject, domain, header) = match test {
            Test::Present(Presence::Field(field)) if !matches!(field.kind, FieldKind::GeneveOption { .. }) => {
                if field.header() == Header::Packet {
                    return self.cases(&Condition::Always, positive, &mut 0);
                }
                (Subject::Header(field.layer, field.header()), there(), None)
            }
            Test::Present(Presence::Field(field)) => {
                let operand = Operand::Field(*field);
                (Subject::Value(operand), domain::everything(self.policy, operand), Some(*field))
            }
            Test::Present(Presence::Trait(key)) => {
                let operand = Operand::Trait(*key);
                (Subject::Value(operand), domain::everything(self.policy, operand), None)
            }
            Test::Interface { direction, interface, negated } => {
                (Subject::Interface(*direction, *interface, *negated), there(), None)
            }
            test => {
                let (policy, tables) = (self.policy, &mut self.tables);
                let mut table = |id| Rc::clone(tables.entry(id).or_insert_with(|| domain::keys_of(policy, id)));
                let (operand, domain) = domain::passing(policy, test, &mut table)?;
                let field = if let Operand::Field(field) = operand { Some(field) } else { None };
                (Subject::Value(operand), domain.and(&domain::everything(policy, operand)), field)
            }
        };
        self.work(domain.weight())?;
        let mut case = Case::default();
        let mut conflict = None;
        if !positive {
            let domain = match subject {
                Subject::Value(operand) => domain.not(domain::most(self.policy.type_of(operand))),
                Subject::Header(..) | Subject::Interface(..) => Domain::absent(),
            };
            let constraint = Constraint { all: domain.clone(), direct: Some(domain), test: number };
            case.constraints.insert(subject, constraint);
            return Some(Cases { cases: vec![case], conflict });
        }
        let direct = Constraint { all: domain.clone(), direct: Some(domain.clone()), test: number };
        conflict = conflict.or(self.constrain(&mut case, subject, &direct)?);
        let mut implied = Vec::new();
        match (subject, header) {
            (Subject::Header(layer, header), _) => implications(layer, header, &mut implied),
            (_, Some(field)) => {
                if !matches!(field.kind, FieldKind::Length | FieldKind::GeneveOption { .. }) {
                    implied.push((Subject::Header(field.layer, field.header()), there()));
                }
                implied.extend(
                    alias(field).map(|kind| {
                        (Subject::Value(Operand::Field(Field { layer: field.layer, kind })), domain.clone())
                    }),
                );
                implications(field.layer, field.header(), &mut implied);
            }
            _ => {}
        }
        for (subject, domain) in implied {
            let constraint = Constraint { all: domain, direct: None, test: number };
            conflict = conflict.or(self.constrain(&mut case, subject, &constraint)?);
        }
        Some(match conflict {
            None => Cases { cases: vec![case], conflict },
            Some(_) => Cases { cases: Vec::new(), conflict },
        })
    }

    /// Whether each of `cases` lies within one of those of an earlier rule, whose place is `earlier`; nothing if that
    /// takes too long. `changed` has the rules that last changed each trait since.
    fn covers(
        &mut self,
        earlier_cases: &[Case],
        earlier: usize,
        cases: &[Case],
        changed: &HashMap<KeyId, usize>,
    ) -> Option<bool> {
        for case in cases {
            let mut covered = false;
            for outer in earlier_cases {
                if self.within(case, outer, earlier, changed)? {
                    covered = true;
                    break;
                }
            }
            if !covered {
                return Some(false);
            }
        }
        Some(true)
    }

    fn within(&mut self, case: &Case, outer: &Case, earlier: usize, changed: &HashMap<KeyId, usize>) -> Option<bool> {
        self.work(1)?;
        for (subject, constraint) in &outer.constraints {
            let Some(direct) = &constraint.direct else { continue };
            if let Subject::Value(Operand::Trait(key)) = subject
                && changed.get(key).is_some_and(|change| *change > earlier)
            {
                return Some(false);
            }
            let Some(inner) = case.constraints.get(subject) else { return Some(false) };
            self.work(inner.all.weight() + direct.weight())?;
            if !inner.all.within(direct) {
                return Some(false);
            }
        }
        Some(true)
    }
}

/// The cases of both.
fn add(mut one: Cases, other: Cases) -> Cases {
    one.cases.extend(other.cases);
    one.conflict = one.conflict.or(other.conflict);
    one
}

/// The field of all transport protocols that has the value of one's.
fn alias(field: Field) -> Option<FieldKind> {
    match field.kind {
        FieldKind::TcpSource | FieldKind::UdpSource => Some(FieldKind::TransportSource),
        FieldKind::TcpDestination | FieldKind::UdpDestination => Some(FieldKind::TransportDestination),
        _ => None,
    }
}

/// What else is so where a header is: see [`field`](crate::field).
fn implications(layer: Layer, header: Header, implied: &mut Vec<(Subject, Domain)>) {
    let mut value = |kind, ranges: &[(u128, u128)]| {
        // in GRE, an IP header may follow without an Ethernet header
        let absent = layer == Layer::Inner && kind == FieldKind::EtherType;
        let subject = Subject::Value(Operand::Field(Field { layer, kind }));
        implied.push((subject, Domain { absent, ranges: ranges.into() }));
    };
    let above: &[Header] = match header {
        Header::Packet | Header::Ethernet | Header::Vlan => &[],
        Header::Ip => {
            value(FieldKind::EtherType, &[(0x0800, 0x0800), (0x86dd, 0x86dd)]);
            &[]
        }
        Header::Ipv4 => {
            value(FieldKind::EtherType, &[(0x0800, 0x0800)]);
            value(FieldKind::IpVersion, &[(4, 4)]);
            &[Header::Ip]
        }
        Header::Ipv6 => {
            value(FieldKind::EtherType, &[(0x86dd, 0x86dd)]);
            value(FieldKind::IpVersion, &[(6, 6)]);
            &[Header::Ip]
        }
        Header::Transport => {
            value(FieldKind::Protocol, &[6, 17, 33, 132, 136].map(|protocol| (protocol, protocol)));
            value(FieldKind::Fragment, &[(0, 1)]);
            &[Header::Ip]
        }
        Header::Tcp => {
            value(FieldKind::Protocol, &[(6, 6)]);
            &[Header::Transport]
        }
        Header::TcpFlags => &[Header::Tcp],
        Header::Incomplete => &[],
        Header::Udp => {
            value(FieldKind::Protocol, &[(17, 17)]);
            &[Header::Transport]
        }
        Header::OtherPorts => &[Header::Transport],
        Header::Icmp => {
            value(FieldKind::Protocol, &[(1, 1)]);
            value(FieldKind::Fragment, &[(0, 1)]);
            &[Header::Ipv4]
        }
        Header::Icmpv6 => {
            value(FieldKind::Protocol, &[(58, 58)]);
            value(FieldKind::Fragment, &[(0, 1)]);
            &[Header::Ipv6]
        }
        Header::Vxlan => {
            value(FieldKind::UdpDestination, &[(4789, 4789)]);
            value(FieldKind::TransportDestination, &[(4789, 4789)]);
            &[Header::Udp]
        }
        Header::Geneve => {
            value(FieldKind::UdpDestination, &[(6081, 6081)]);
            value(FieldKind::TransportDestination, &[(6081, 6081)]);
            &[Header::Udp]
        }
        Header::GeneveOption => &[Header::Geneve],
        Header::Gre => {
            value(FieldKind::Protocol, &[(47, 47)]);
            value(FieldKind::Fragment, &[(0, 1)]);
            &[Header::Ip]
        }
        Header::GreKey => &[Header::Gre],
    };
    for header in above {
        implied.push((Subject::Header(layer, *header), Domain::of([(0, 0)])));
        implications(layer, *header, implied);
    }
    if layer == Layer::Inner {
        let outer = |kind| Subject::Value(Operand::Field(Field { layer: Layer::Outer, kind }));
        implied.push((outer(FieldKind::Protocol), Domain::of([(17, 17), (47, 47)])));
        implied.push((outer(FieldKind::Fragment), Domain::of([(0, 1)])));
    }
}
