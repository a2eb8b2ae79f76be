//! What the rules of a block need: how deep its packets are taken apart, which traits are read, which maps it uses.

use super::place::Place;
use crate::{
    field::{Field, FieldKind, Header},
    policy::{
        Action, Condition, CounterId, Interface, InterfaceDirection, KeyId, Layer, Operand, Presence, Rule, TableId,
        Test, Value, Verdict,
    },
};

/// What a block's rules need. Every list is free of duplicates and in the order of first use.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Fields whose values are used.
    pub(super) fields: Vec<Field>,
    /// Headers that must be known to be there or not.
    headers: Vec<(Layer, Header)>,
    /// Geneve options that are asked for, as the fields they are; their places are their bits' numbers.
    pub(super) options: Vec<Field>,
    /// Traits whose values are used or that are asked to be set.
    pub(super) read: Vec<KeyId>,
    /// Traits that are set or deleted.
    pub(super) changed: Vec<KeyId>,
    /// Those of them that are deleted.
    pub(super) deleted: Vec<KeyId>,
    /// Tables that are looked up in.
    pub(super) tables: Vec<TableId>,
    /// Counters.
    pub(super) counters: Vec<CounterId>,
    /// Directions whose interface's index is asked for.
    interfaces: Vec<InterfaceDirection>,
    /// Directions whose interface's name is asked for.
    pub(super) interface_names: Vec<InterfaceDirection>,
    /// Texts that are logged.
    pub(super) logs: Vec<String>,
    /// There are `unique` numbers.
    pub(super) unique: bool,
    /// It asks the network card.
    pub(super) hardware: bool,
    /// It redirects to an interface.
    pub(super) redirects_to_device: bool,
    /// It redirects to a CPU.
    pub(super) redirects_to_cpu: bool,
    /// It redirects to an AF_XDP socket.
    pub(super) redirects_to_xsk: bool,
}

fn insert<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

impl Needs {
    /// Whether a direction's index is needed at this place: also where a name may have to be told by it.
    pub(super) fn interface_index(&self, direction: InterfaceDirection, place: Place) -> bool {
        self.interfaces.contains(&direction)
            || place.names_by_index(direction) && self.interface_names.contains(&direction)
    }

    /// What rules of a block need.
    pub(super) fn of(rules: &[Rule]) -> Needs {
        let mut needs = Needs::default();
        for rule in rules {
            needs.condition(&rule.condition);
            for action in &rule.actions {
                needs.action(action);
            }
        }
        needs
    }

    /// Whether the value of a field is used.
    pub(super) fn field(&self, layer: Layer, kind: FieldKind) -> bool {
        self.fields.contains(&Field { layer, kind })
    }

    /// Whether the packet must be taken apart up to one of these headers of this layer.
    fn any(&self, layer: Layer, headers: &[Header]) -> bool {
        self.headers.iter().any(|(in_layer, header)| *in_layer == layer && headers.contains(header))
    }

    /// Whether anything inside a tunnel is used.
    pub(super) fn inner(&self) -> bool {
        self.headers.iter().any(|(layer, _)| *layer == Layer::Inner)
    }

    /// Whether VXLAN must be taken apart.
    pub(super) fn vxlan(&self) -> bool {
        self.inner() || self.any(Layer::Outer, &[Header::Vxlan])
    }

    /// Whether Geneve must be taken apart.
    pub(super) fn geneve(&self) -> bool {
        self.inner() || self.any(Layer::Outer, &[Header::Geneve, Header::GeneveOption])
    }

    /// Whether GRE must be taken apart.
    pub(super) fn gre(&self) -> bool {
        self.inner() || self.any(Layer::Outer, &[Header::Gre, Header::GreKey])
    }

    /// Whether the key of GRE must be looked at.
    pub(super) fn gre_key(&self) -> bool {
        self.any(Layer::Outer, &[Header::GreKey])
    }

    /// Whether tunnels must be taken apart; only the outer headers have some.
    pub(super) fn tunnel(&self, layer: Layer) -> bool {
        layer == Layer::Outer && (self.vxlan() || self.geneve() || self.gre())
    }

    /// Whether it must be known that all headers of this layer could be read.
    pub(super) fn incomplete(&self, layer: Layer) -> bool {
        self.any(layer, &[Header::Incomplete])
    }

    /// Whether the flags of TCP must be looked at.
    pub(super) fn tcp_flags(&self, layer: Layer) -> bool {
        self.any(layer, &[Header::TcpFlags]) || self.incomplete(layer)
    }

    /// Whether TCP must be looked at.
    pub(super) fn tcp(&self, layer: Layer) -> bool {
        self.any(layer, &[Header::Tcp, Header::TcpFlags, Header::Transport]) || self.incomplete(layer)
    }

    /// Whether UDP must be looked at.
    pub(super) fn udp(&self, layer: Layer) -> bool {
        self.any(layer, &[Header::Udp, Header::Transport])
            || layer == Layer::Outer && (self.vxlan() || self.geneve())
            || self.incomplete(layer)
    }

    /// Whether the other protocols with ports must be looked at.
    pub(super) fn transport(&self, layer: Layer) -> bool {
        self.any(layer, &[Header::Transport]) || self.incomplete(layer)
    }

    /// Whether ICMP must be looked at.
    pub(super) fn icmp(&self, layer: Layer) -> bool {
        self.any(layer, &[Header::Icmp]) || self.incomplete(layer)
    }

    /// Whether ICMPv6 must be looked at.
    pub(super) fn icmpv6(&self, layer: Layer) -> bool {
        self.any(layer, &[Header::Icmpv6]) || self.incomplete(layer)
    }

    /// Whether anything behind the IP header is used.
    pub(super) fn behind_ip(&self, layer: Layer) -> bool {
        self.tcp(layer) || self.udp(layer) || self.icmp(layer) || self.icmpv6(layer) || self.tunnel(layer)
    }

    /// Whether IPv4 must be looked at.
    pub(super) fn ipv4(&self, layer: Layer) -> bool {
        self.any(layer, &[Header::Ipv4, Header::Ip]) || self.behind_ip(layer)
    }

    /// Whether IPv6 must be looked at.
    pub(super) fn ipv6(&self, layer: Layer) -> bool {
        self.any(layer, &[Header::Ipv6, Header::Ip]) || self.behind_ip(layer)
    }

    /// Whether the extension headers of IPv6 must be skipped.
    pub(super) fn extensions(&self, layer: Layer) -> bool {
        self.behind_ip(layer) || self.field(layer, FieldKind::Protocol) || self.field(layer, FieldKind::Fragment)
    }

    /// Whether an IP header must be looked at.
    pub(super) fn ip(&self, layer: Layer) -> bool {
        self.ipv4(layer) || self.ipv6(layer)
    }

    /// Whether VLAN tags must be looked at.
    pub(super) fn vlan(&self, layer: Layer) -> bool {
        self.any(layer, &[Header::Vlan])
    }

    /// Whether an Ethernet header must be looked at, where there is one.
    pub(super) fn ethernet(&self, layer: Layer) -> bool {
        self.tests_ethernet(layer) || self.ip(layer)
    }

    /// Whether it asks for the Ethernet header itself or a VLAN tag.
    pub(super) fn tests_ethernet(&self, layer: Layer) -> bool {
        self.any(layer, &[Header::Ethernet, Header::Vlan])
    }

    /// Whether packets go elsewhere.
    pub(super) fn redirects(&self) -> bool {
        self.redirects_to_device || self.redirects_to_cpu || self.redirects_to_xsk
    }

    /// Traits whose values must be known when the block starts: an event also shows those that are only changed.
    pub(super) fn loaded(&self) -> Vec<KeyId> {
        if self.logs.is_empty() { self.read.clone() } else { self.traits() }
    }

    /// Traits that are read or changed.
    pub(super) fn traits(&self) -> Vec<KeyId> {
        let mut all = self.read.clone();
        for key in &self.changed {
            insert(&mut all, *key);
        }
        all
    }

    /// The place of a Geneve option among those that are asked for.
    pub(super) fn option_number(&self, field: Field) -> usize {
        self.options.iter().position(|option| *option == field).expect("every option that is used has been found")
    }

    fn condition(&mut self, condition: &Condition) {
        match condition {
            Condition::Always => {}
            Condition::Test(test) => self.test(test),
            Condition::All(parts) | Condition::Any(parts) => parts.iter().for_each(|part| self.condition(part)),
            Condition::Not(part) => self.condition(part),
        }
    }

    fn test(&mut self, test: &Test) {
        match test {
            Test::Present(Presence::Field(field)) => self.header(*field),
            Test::Present(Presence::Trait(key)) => insert(&mut self.read, *key),
            Test::Compare { operand, .. }
            | Test::Between { operand, .. }
            | Test::Masked { operand, .. }
            | Test::AnyBit { operand, .. } => self.operand(*operand),
            Test::In { operand, table, .. } => {
                self.operand(*operand);
                insert(&mut self.tables, *table);
            }
            Test::Interface { direction, interface: Interface::Index(_), .. } => {
                insert(&mut self.interfaces, *direction);
            }
            Test::Interface { direction, interface: Interface::Name(_), .. } => {
                insert(&mut self.interface_names, *direction);
            }
        }
    }

    fn header(&mut self, field: Field) {
        if field.kind == FieldKind::Length {
            return;
        }
        insert(&mut self.headers, (field.layer, field.header()));
        if matches!(field.kind, FieldKind::GeneveOption { .. }) {
            insert(&mut self.options, field);
        }
    }

    fn operand(&mut self, operand: Operand) {
        match operand {
            Operand::Field(field) => {
                self.header(field);
                insert(&mut self.fields, field);
            }
            Operand::Trait(key) => insert(&mut self.read, key),
        }
    }

    fn value(&mut self, value: &Value) {
        match *value {
            Value::Constant(_) | Value::Time => {}
            Value::Operand(operand) => self.operand(operand),
            Value::Lookup { operand, table } => {
                self.operand(operand);
                insert(&mut self.tables, table);
            }
            Value::Unique => self.unique = true,
            Value::Hash(layer) => {
                for kind in [
                    FieldKind::IpVersion,
                    FieldKind::Protocol,
                    FieldKind::Ipv4Source,
                    FieldKind::Ipv4Destination,
                    FieldKind::Ipv6Source,
                    FieldKind::Ipv6Destination,
                    FieldKind::TransportSource,
                    FieldKind::TransportDestination,
                ] {
                    self.operand(Operand::Field(Field { layer, kind }));
                }
            }
            Value::Hardware(_) => self.hardware = true,
        }
    }

    fn action(&mut self, action: &Action) {
        match action {
            Action::Set { key, value } => {
                self.value(value);
                insert(&mut self.changed, *key);
            }
            Action::Delete(key) => {
                insert(&mut self.changed, *key);
                insert(&mut self.deleted, *key);
            }
            Action::Count { counter, by } => {
                insert(&mut self.counters, *counter);
                if let Some(operand) = by {
                    self.operand(*operand);
                }
            }
            Action::Log { text, .. } => insert(&mut self.logs, text.clone()),
            Action::Mark(value) | Action::Priority(value) | Action::Queue(value) => self.value(value),
            Action::Verdict(verdict) => self.verdict(verdict),
        }
    }

    fn verdict(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Accept | Verdict::Drop => {}
            Verdict::RedirectDevice(_) => self.redirects_to_device = true,
            Verdict::RedirectCpu(value) => {
                self.redirects_to_cpu = true;
                self.value(value);
            }
            Verdict::RedirectXsk(queue) => {
                self.redirects_to_xsk = true;
                if let Some(queue) = queue {
                    self.value(queue);
                }
            }
            Verdict::Member(value) => self.value(value),
        }
    }
}
