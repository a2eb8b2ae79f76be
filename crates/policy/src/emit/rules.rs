//! Rules: conditions as C expressions, actions as C statements.

use packet_traits_core::KeyType;

use crate::{
    emit::{
        code::{Code, c_type, constant},
        names::{header_bits, member},
        needs::Needs,
        packet,
        place::Place,
        slot,
        tables::CTable,
    },
    field::{Field, Header},
    hook::Direction,
    policy::{
        Action, Comparison, Condition, CounterId, Hardware, Interface, KeyId, Layer, Operand, Policy, Presence, Rule,
        Test, Type, Value, Verdict,
    },
    symbols::{self, CPUS, XSKS},
};

/// The condition that holds for every packet.
const ALWAYS: &str = "1";

/// What the statements of a rule refer to.
#[derive(Clone, Copy)]
pub(super) struct Scope<'s> {
    pub(super) policy: &'s Policy,
    /// C names of keys.
    pub(super) keys: &'s [String],
    pub(super) tables: &'s [CTable<'s>],
    /// Texts of `log`.
    pub(super) logs: &'s [String],
    /// C name of the block.
    pub(super) block: &'s str,
    pub(super) place: Place,
    pub(super) needs: &'s Needs,
    /// XDP seals the area of packets that go on.
    pub(super) seal: bool,
    /// XDP drops the traits that a packet has from another interface, if it sets none.
    pub(super) drops_inherited: bool,
    /// The block has something to do before a packet goes on.
    pub(super) finishes: bool,
    /// The rules are in a function that returns what they decide, not in the program.
    pub(super) is_part: bool,
}

/// A value that C can compute.
struct Computed {
    /// Declarations it needs.
    declarations: Vec<String>,
    /// What must hold for it not to be absent, in this order.
    guards: Vec<String>,
    expression: String,
}

impl Computed {
    fn plain(expression: impl Into<String>) -> Computed {
        Computed { declarations: Vec::new(), guards: Vec::new(), expression: expression.into() }
    }
}

impl Scope<'_> {
    /// Writes a rule, whose number is `number`.
    pub(super) fn rule(&self, code: &mut Code, rule: &Rule, number: usize) {
        let condition = self.condition(&rule.condition);
        let always = condition == ALWAYS;
        if !always {
            code.open(format_args!("if ({condition})"));
        }
        code.line(format_args!("pt_hit(&hits->rule[{number}], pkt->length);"));
        for action in &rule.actions {
            self.action(code, action, number);
        }
        if !always {
            code.close();
        }
    }

    /// About how large a rule's code is, in tests and actions.
    pub(super) fn weight(&self, rule: &Rule) -> usize {
        fn of_condition(scope: &Scope<'_>, condition: &Condition) -> usize {
            match condition {
                Condition::Always => 0,
                Condition::Test(Test::In { table, .. }) => scope.tables[table.0].weight(),
                Condition::Test(_) => 1,
                Condition::All(parts) | Condition::Any(parts) => {
                    parts.iter().map(|part| of_condition(scope, part)).sum()
                }
                Condition::Not(part) => of_condition(scope, part),
            }
        }
        let of_value = |value: &Value| match value {
            Value::Lookup { table, .. } => self.tables[table.0].weight(),
            Value::Hash(_) => 4,
            _ => 1,
        };
        let of_action = |action: &Action| match action {
            Action::Set { value, .. }
            | Action::Mark(value)
            | Action::Priority(value)
            | Action::Queue(value)
            | Action::Verdict(
                Verdict::RedirectCpu(value) | Verdict::RedirectXsk(Some(value)) | Verdict::Member(value),
            ) => of_value(value),
            Action::Count { by: Some(_), .. } => 4,
            _ => 1,
        };
        1 + of_condition(self, &rule.condition) + rule.actions.iter().map(of_action).sum::<usize>()
    }

    /// A condition, as an expression that can stand alone.
    fn condition(&self, condition: &Condition) -> String {
        match condition {
            Condition::Always => ALWAYS.to_owned(),
            Condition::Test(test) => self.test(test),
            Condition::All(parts) => self.joined(parts, " && "),
            Condition::Any(parts) => self.joined(parts, " || "),
            Condition::Not(part) => format!("!({})", self.condition(part)),
        }
    }

    fn joined(&self, parts: &[Condition], with: &str) -> String {
        let part = |part| {
            let part = self.condition(part);
            if part.contains(" & ") || part.contains("&&") || part.contains("||") { format!("({part})") } else { part }
        };
        parts.iter().map(part).collect::<Vec<_>>().join(with)
    }

    /// A test, as an expression that can stand alone.
    fn test(&self, test: &Test) -> String {
        match *test {
            Test::Present(Presence::Field(field)) => self.present(Operand::Field(field)).unwrap_or(ALWAYS.to_owned()),
            Test::Present(Presence::Trait(key)) => self.present(Operand::Trait(key)).unwrap_or(ALWAYS.to_owned()),
            Test::Compare { operand, comparison, value } => self.compare(operand, comparison, value),
            Test::Between { operand, low, high, negated } => {
                let (of, number) = (self.policy.type_of(operand), self.number(operand));
                let (low_c, high_c) = (constant(low, of), constant(high, of));
                let question = match (low, negated) {
                    (0, false) => format!("{number} <= {high_c}"),
                    (0, true) => format!("{number} > {high_c}"),
                    (_, false) => format!("{number} >= {low_c} && {number} <= {high_c}"),
                    (_, true) => format!("({number} < {low_c} || {number} > {high_c})"),
                };
                self.asked(operand, (low == 0) != negated, question)
            }
            Test::Masked { operand, mask, value, negated } => {
                let of = self.policy.type_of(operand);
                let equals = if negated { "!=" } else { "==" };
                let mask = mask_literal(mask);
                let question = format!("({} & {mask}) {equals} {}", self.number(operand), constant(value, of));
                self.asked(operand, (value == 0) != negated, question)
            }
            Test::AnyBit { operand, mask, negated } => {
                let any = format!("{} & {}", self.number(operand), mask_literal(mask));
                self.asked(operand, negated, if negated { format!("!({any})") } else { any })
            }
            Test::In { operand, table, negated } => {
                let not = if negated { "!" } else { "" };
                let zero_is_in = self.policy.table(table).find(0).is_some();
                let question = match self.policy.table(table).value {
                    None => format!("{not}{}({})", self.tables[table.0].function, self.number(operand)),
                    Some(value) => format!(
                        "{not}{}({}, &({}){{ 0 }})",
                        self.tables[table.0].function,
                        self.number(operand),
                        c_type(value.bits())
                    ),
                };
                self.asked(operand, zero_is_in != negated, question)
            }
            Test::Interface { direction, interface, negated } => {
                let member = packet::interface(direction);
                let not = if negated { "!" } else { "" };
                let by_index = format!("pkt->{member} == {}", self.interface(interface));
                match interface {
                    Interface::Index(_) => format!("pkt->{member} && {not}({by_index})"),
                    Interface::Name(name) => {
                        let by_name = has_name(&format!("pkt->{member}_name"), &self.policy.interfaces[name.0]);
                        if self.place.names_by_index(direction) {
                            format!("pkt->{member} && {not}(pkt->{member}_name.word[0] ? {by_name} : {by_index})")
                        } else {
                            format!("pkt->{member}_name.word[0] && {not}({by_name})")
                        }
                    }
                }
            }
        }
    }

    fn compare(&self, operand: Operand, comparison: Comparison, value: u128) -> String {
        let of = self.policy.type_of(operand);
        let (operator, of_zero) = match comparison {
            Comparison::Equal => ("==", value == 0),
            Comparison::NotEqual => ("!=", value != 0),
            Comparison::Less => ("<", value != 0),
            Comparison::LessOrEqual => ("<=", true),
            Comparison::Greater => (">", false),
            Comparison::GreaterOrEqual => (">=", value == 0),
        };
        if of == Type::Signed {
            let question = format!("(__s64){} {operator} {}", self.number(operand), constant(value, of));
            // zero is not the least there
            return self.asked(operand, true, question);
        }
        self.asked(operand, of_zero, format!("{} {operator} {}", self.number(operand), constant(value, of)))
    }

    /// A question about an operand; if it is absent, its number is 0, and the answer must be no.
    fn asked(&self, operand: Operand, yes_of_zero: bool, question: String) -> String {
        match self.present(operand).filter(|_| yes_of_zero) {
            Some(present) => format!("({present}) && {question}"),
            None => question,
        }
    }

    /// Whether an operand is there; `None` if it always is.
    fn present(&self, operand: Operand) -> Option<String> {
        match operand {
            Operand::Field(field) => match field.header() {
                Header::Packet => None,
                Header::GeneveOption => Some(format!("pkt->headers & PT_OPTION({})", self.needs.option_number(field))),
                header => Some(format!("pkt->headers & {}", header_bits(field.layer, header))),
            },
            Operand::Trait(key) => Some(format!("__trait_forget(t->_present, zero) & HAS_{}", self.keys[key.0])),
        }
    }

    /// An operand's value to compare with something, 0 if it is absent.
    fn number(&self, operand: Operand) -> String {
        match operand {
            Operand::Field(_) => self.copied(operand),
            Operand::Trait(key) => {
                let any = if self.policy.type_of(operand).bits() > 64 { "pt_forget128" } else { "__trait_forget" };
                format!("{any}(t->{}, zero)", self.keys[key.0])
            }
        }
    }

    /// An operand's value to put somewhere, 0 if it is absent.
    fn copied(&self, operand: Operand) -> String {
        match operand {
            Operand::Field(field) => format!("pkt->{}", member(field)),
            Operand::Trait(key) => format!("t->{}", self.keys[key.0]),
        }
    }

    fn interface(&self, interface: Interface) -> String {
        match interface {
            Interface::Index(index) => index.to_string(),
            Interface::Name(name) => {
                format!("{}[{}] /* {} */", symbols::INTERFACES, name.0, self.policy.interfaces[name.0])
            }
        }
    }

    fn value(&self, value: &Value, of: Type) -> Computed {
        match *value {
            Value::Constant(number) => Computed::plain(constant(number, of)),
            Value::Operand(operand) => Computed {
                guards: self.present(operand).into_iter().collect(),
                ..Computed::plain(self.copied(operand))
            },
            Value::Lookup { operand, table } => {
                let zero_is_in = self.policy.table(table).find(0).is_some();
                let bits = self.policy.table(table).value.map_or(0, Type::bits);
                let mut guards: Vec<String> = self.present(operand).filter(|_| zero_is_in).into_iter().collect();
                guards.push(format!("{}({}, &found)", self.tables[table.0].function, self.number(operand)));
                Computed {
                    declarations: vec![format!("{} found;", c_type(bits))],
                    guards,
                    expression: "found".to_owned(),
                }
            }
            Value::Unique => Computed {
                declarations: vec!["__u64 unique;".to_owned()],
                guards: vec![format!("pt_next_unique(&{}, &unique)", symbols::UNIQUE)],
                expression: "unique".to_owned(),
            },
            Value::Hash(layer) => self.hash(layer),
            Value::Time => Computed::plain("bpf_ktime_get_ns()"),
            Value::Hardware(what) => {
                let (c_type, name) = match what {
                    Hardware::Timestamp => ("__u64", "timestamp"),
                    Hardware::Hash => ("__u32", "hash"),
                    Hardware::VlanId => ("__u16", "vlan"),
                };
                Computed {
                    declarations: vec![format!("{c_type} {name};")],
                    guards: vec![format!("pt_hardware_{name}(ctx, &{name})")],
                    expression: name.to_owned(),
                }
            }
        }
    }

    fn hash(&self, layer: Layer) -> Computed {
        use crate::field::FieldKind as Kind;
        let field = |kind| format!("pkt->{}", member(Field { layer, kind }));
        // those of the other version are 0
        let either = |name, ipv6, ipv4| format!("pt_u128 {name} = {} | {};", field(ipv6), field(ipv4));
        Computed {
            declarations: vec![
                either("source", Kind::Ipv6Source, Kind::Ipv4Source),
                either("destination", Kind::Ipv6Destination, Kind::Ipv4Destination),
            ],
            guards: vec![format!("pkt->headers & {}", header_bits(layer, Header::Ip))],
            expression: format!(
                "pt_hash({}, {}, source, destination, {}, {})",
                field(Kind::IpVersion),
                field(Kind::Protocol),
                field(Kind::TransportSource),
                field(Kind::TransportDestination)
            ),
        }
    }

    /// Writes what is done with a value, if it is not absent.
    fn with(&self, code: &mut Code, computed: &Computed, write: impl FnOnce(&mut Code, &str)) {
        let scoped = !computed.declarations.is_empty();
        if scoped {
            code.open_scope();
            computed.declarations.iter().for_each(|declaration| code.line(declaration));
            code.blank();
        }
        if !computed.guards.is_empty() {
            code.open(format_args!("if ({})", computed.guards.join(" && ")));
        }
        write(code, &computed.expression);
        if !computed.guards.is_empty() {
            code.close();
        }
        if scoped {
            code.close();
        }
    }

    fn action(&self, code: &mut Code, action: &Action, number: usize) {
        match action {
            Action::Set { key, value } => self.set(code, *key, value),
            Action::Delete(key) => {
                let flag = if self.policy.key(*key).key_type == KeyType::Flag { "_flag" } else { "" };
                code.line(format_args!("pt_del{flag}(t, {});", self.keys[key.0]));
            }
            Action::Count { counter, by } => self.count(code, *counter, *by),
            Action::Log { text, sample } => {
                let place =
                    self.logs.iter().position(|log| log == text).expect("every text that is logged has been found");
                let traits = if self.needs.traits().is_empty() { "" } else { ", t" };
                if *sample > 1 {
                    code.line(format_args!("if (bpf_get_prandom_u32() % {sample} == 0)"));
                    code.line(format_args!("\t{}_log(ctx{traits}, {number}, {place}, pkt->length);", self.block));
                } else {
                    code.line(format_args!("{}_log(ctx{traits}, {number}, {place}, pkt->length);", self.block));
                }
            }
            Action::Mark(value) => self.store(code, "mark", value, ""),
            Action::Priority(value) => self.store(code, "priority", value, ""),
            Action::Queue(value) => {
                // a recorded receive queue is counted from 1 (skb_record_rx_queue, include/linux/skbuff.h)
                let recorded = if self.place == Place::Tc(Direction::Ingress) { " + 1" } else { "" };
                self.store(code, "queue_mapping", value, recorded);
            }
            Action::Verdict(verdict) => self.verdict(code, verdict),
        }
    }

    fn set(&self, code: &mut Code, key: KeyId, value: &Value) {
        let key_type = self.policy.key(key).key_type;
        let name = &self.keys[key.0];
        let mut computed = self.value(value, key_type.into());
        if matches!(self.place, Place::Tc(_)) {
            computed.guards.insert(0, "t->_area".to_owned());
        }
        // a hash or a unique number may be wider than the key
        let narrow = match (value, Type::from(key_type).bits()) {
            (Value::Unique | Value::Hash(_), bits) if bits < 64 => format!("({})", c_type(bits)),
            _ => String::new(),
        };
        self.with(code, &computed, |code, expression| match key_type {
            KeyType::Flag => code.line(format_args!("pt_set_flag(t, {name});")),
            _ => code.line(format_args!("pt_set(t, {name}, {narrow}{expression});")),
        });
    }

    fn count(&self, code: &mut Code, counter: CounterId, by: Option<Operand>) {
        let Some(by) = by else {
            code.line(format_args!(
                "pt_hit(&counters->counter[{}], pkt->length); /* {} */",
                counter.0, self.policy.counters[counter.0].name
            ));
            return;
        };
        let declared = self.policy.counters[counter.0].by.unwrap_or_else(|| self.policy.type_of(by));
        let key_type = declared.key_type();
        let guards: Vec<String> = self.present(by).into_iter().collect();
        let computed = Computed { guards, ..Computed::plain(self.copied(by)) };
        self.with(code, &computed, |code, expression| {
            code.open_scope();
            code.line(format_args!("{} by = {};", slot::c_type(key_type), slot::from_number(key_type, expression)));
            code.blank();
            code.line(format_args!(
                "pt_count_by(&{}, &by, pkt->length);",
                symbols::counter_by_value(&self.policy.counters[counter.0].name)
            ));
            code.close();
        });
    }

    fn store(&self, code: &mut Code, field: &str, value: &Value, plus: &str) {
        let computed = self.value(value, Type::Unsigned(32));
        self.with(code, &computed, |code, expression| {
            code.line(format_args!("__trait_ctx_store(struct __sk_buff, ctx, {field}, {expression}{plus});"));
        });
    }

    fn verdict(&self, code: &mut Code, verdict: &Verdict) {
        match verdict {
            Verdict::Accept if self.is_part => code.line("return PT_ACCEPT;"),
            Verdict::Drop if self.is_part => code.line("return PT_DROP;"),
            Verdict::Accept if self.finishes => code.line("goto accept;"),
            Verdict::Accept => code.line(self.place.accept()),
            Verdict::Drop => code.line(self.place.drop()),
            Verdict::RedirectDevice(interface) => {
                let interface = self.interface(*interface);
                code.line(match self.place {
                    Place::Tc(Direction::Ingress) => format!("verdict = pt_tc_redirect(ctx, {interface});"),
                    _ => format!("verdict = bpf_redirect({interface}, 0);"),
                });
                code.line("goto redirect;");
            }
            Verdict::RedirectCpu(value) => {
                let computed = self.value(value, Type::Unsigned(32));
                self.with(code, &computed, |code, expression| {
                    code.line(format_args!("verdict = bpf_redirect_map(&{CPUS}, {expression}, XDP_PASS);"));
                    code.line("goto redirect;");
                });
            }
            Verdict::RedirectXsk(queue) => {
                let own = || Computed::plain("__trait_ctx_load(struct xdp_md, ctx, rx_queue_index)");
                let computed = queue.as_ref().map_or_else(own, |queue| self.value(queue, Type::Unsigned(32)));
                self.with(code, &computed, |code, expression| {
                    code.line(format_args!("verdict = bpf_redirect_map(&{XSKS}, {expression}, XDP_PASS);"));
                    code.line("goto redirect_xsk;");
                });
            }
            Verdict::Member(value) => {
                let computed = self.value(value, Type::Unsigned(32));
                self.with(code, &computed, |code, expression| {
                    code.line(format_args!("return (__u32)({expression});"));
                });
            }
        }
    }
}

/// A mask as C has it.
fn mask_literal(mask: u128) -> String {
    if mask > u64::MAX.into() {
        format!("PT_U128({:#x}, {:#x})", (mask >> 64) as u64, mask as u64)
    } else if mask > u32::MAX.into() {
        format!("{mask:#x}ULL")
    } else {
        format!("{mask:#x}")
    }
}

/// Whether an interface has this name, of at most 15 bytes. What follows the NUL does not count.
fn has_name(words: &str, name: &str) -> String {
    let mut bytes = [0; 16];
    let mut mask = [0; 16];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    mask[..=name.len().min(15)].fill(0xff);
    let word = |bytes: &[u8; 16], word: usize| {
        bytes[8 * word..8 * word + 8].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let same = |place: usize| {
        let (bytes, mask) = (word(&bytes, place), word(&mask, place));
        let masked = match mask {
            u64::MAX => format!("{words}.word[{place}]"),
            _ => format!("({words}.word[{place}] & PT_NAME_WORD({mask:#018x}ULL))"),
        };
        (mask != 0).then(|| format!("{masked} == PT_NAME_WORD({bytes:#018x}ULL)"))
    };
    let words: Vec<String> = (0..2).filter_map(same).collect();
    format!("{} /* {name} */", words.join(" && "))
}
