//! Random packets and circumstances: valid ones of every kind, whose fields have the values that a policy's rules ask
//! for, and odd ones.

use fastrand::Rng;

use super::numbers::{Constants, GENEVE_OPTIONS, chance, pick};
use crate::{
    field::{EXTENSION_HEADERS_MAX, Field, FieldKind, OFFSET_MAX},
    hook::Hook,
    interpret::{Context, HardwareValues},
    policy::{KeyId, Layer, Operand, Policy},
};

/// A random packet for a block, starting as packets do at its hook. It may be cut short, or have wrong bits, or be
/// anything.
pub fn packet(rng: &mut Rng, policy: &Policy, block: usize) -> Vec<u8> {
    let constants = Constants::of(policy, block);
    let hook = policy.blocks[block].hook;
    let at_xdp = hook == Hook::Xdp;
    let mut builder = Builder { rng, policy, constants, layer: Layer::Outer, at_xdp, bytes: Vec::new() };
    if hook.sees_ethernet() {
        builder.ethernet();
    } else {
        builder.ip();
    }
    let mut bytes = builder.bytes;
    match rng.u32(..100) {
        0..70 => {}
        70..85 => bytes.truncate(rng.usize(..=bytes.len())),
        85..95 => {
            for _ in 0..rng.usize(1..5) {
                let at = rng.usize(..bytes.len());
                bytes[at] ^= 1 << rng.u32(..8);
            }
        }
        95..98 => {
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
        _ => {
            bytes = vec![0; rng.usize(..200)];
            rng.fill(&mut bytes);
        }
    }
    bytes
}

/// The circumstances in which a packet comes to a block: traits, interfaces and what the network card says. Time and
/// `unique` are 0, and the packet is in no sample.
pub fn context(rng: &mut Rng, policy: &Policy, block: usize) -> Context {
    let constants = Constants::of(policy, block);
    let hook = policy.blocks[block].hook;
    let has_area = chance(rng, 60);
    let percent = if has_area { 50 } else { 0 };
    let mut arriving = |key| {
        let set = chance(rng, percent);
        set.then(|| constants.value(rng, policy, Operand::Trait(KeyId(key))))
    };
    let traits = (0..policy.keys.len()).map(&mut arriving).collect();
    let mut some = |percent| chance(rng, percent);
    let [input, output, vlan, timestamp, hash, vlan_id] = [some(70), some(70), some(20), some(50), some(50), some(50)];
    Context {
        traits,
        has_area,
        input: input.then(|| rng.u32(1..4)),
        output: output.then(|| rng.u32(1..4)),
        interfaces: policy.interfaces.iter().map(|_| Some(rng.u32(1..4))).collect(),
        vlan: (vlan && matches!(hook, Hook::Tc(_))).then(|| rng.u16(..)),
        hardware: HardwareValues {
            timestamp: timestamp.then(|| rng.u64(..)),
            hash: hash.then(|| rng.u32(..)),
            vlan_id: vlan_id.then(|| rng.u16(..4096)),
        },
        ..Context::default()
    }
}

/// Appends headers to bytes.
struct Builder<'a> {
    rng: &'a mut Rng,
    policy: &'a Policy,
    constants: Constants,
    layer: Layer,
    at_xdp: bool,
    bytes: Vec<u8>,
}

impl Builder<'_> {
    /// A value for a field of the layer at hand.
    fn value(&mut self, kind: FieldKind) -> u128 {
        let field = Field { layer: if kind.may_be_inner() { self.layer } else { Layer::Outer }, kind };
        self.constants.value(self.rng, self.policy, Operand::Field(field))
    }

    fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.bytes.extend(value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_be_bytes());
    }

    /// The low `len` bytes of a number.
    fn number(&mut self, value: u128, len: usize) {
        self.bytes.extend(&value.to_be_bytes()[16 - len..]);
    }

    fn random(&mut self, len: usize) {
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        self.rng.fill(&mut self.bytes[start..]);
    }

    fn ethernet(&mut self) {
        let addresses = [self.value(FieldKind::EtherDestination), self.value(FieldKind::EtherSource)];
        for address in addresses {
            self.number(address, 6);
        }
        let tags = *pick(self.rng, &[0, 0, 0, 0, 0, 0, 1, 1, 2, 3]);
        for _ in 0..tags {
            let ether_type = *pick(self.rng, &[0x8100, 0x88a8]);
            let tag = self.value(FieldKind::VlanPriority) << 13 | self.value(FieldKind::VlanId);
            let drop_eligible = u16::from(self.rng.bool()) << 12;
            self.u16(ether_type);
            self.u16(tag as u16 | drop_eligible);
        }
        match self.rng.u32(..100) {
            0..45 => {
                self.u16(0x0800);
                self.ipv4();
            }
            45..90 => {
                self.u16(0x86dd);
                self.ipv6();
            }
            _ => {
                let ether_type = self.value(FieldKind::EtherType);
                self.u16(ether_type as u16);
                self.ip();
            }
        }
    }

    fn ip(&mut self) {
        if self.rng.bool() { self.ipv4() } else { self.ipv6() }
    }

    /// Sometimes another number than the right one.
    fn mostly(&mut self, right: u8) -> u8 {
        if chance(self.rng, 97) { right } else { self.rng.u8(..16) }
    }

    fn ipv4(&mut self) {
        let words = if chance(self.rng, 70) { 5 } else { self.rng.u8(5..16) };
        let (version, said_words) = (self.mostly(4), self.mostly(words));
        let dscp = self.value(FieldKind::Dscp) as u8;
        let time_to_live = self.value(FieldKind::Ipv4TimeToLive) as u8;
        let protocol = self.protocol(4);
        let flags_offset = match self.value(FieldKind::Fragment) {
            _ if chance(self.rng, 75) => u16::from(self.rng.bool()) << 14,
            1 => 0x2000,
            2 => self.fragment_offset() | u16::from(self.rng.bool()) << 13,
            _ => 0,
        };
        self.u8(version << 4 | said_words);
        let congestion = self.rng_bits(2);
        self.u8(dscp << 2 | congestion);
        self.random(4);
        self.u16(flags_offset);
        self.u8(time_to_live);
        self.u8(protocol);
        self.random(2);
        let addresses = [self.value(FieldKind::Ipv4Source), self.value(FieldKind::Ipv4Destination)];
        for address in addresses {
            self.number(address, 4);
        }
        self.random(usize::from(words - 5) * 4);
        self.transport(protocol);
    }

    /// The offset of a later fragment, 13 bits.
    fn fragment_offset(&mut self) -> u16 {
        match self.rng.u32(..4) {
            0 => 1,
            1 => 1 << self.rng.u32(..13),
            _ => self.rng.u16(1..0x2000),
        }
    }

    fn rng_bits(&mut self, bits: u32) -> u8 {
        self.rng.u8(..1 << bits)
    }

    fn ipv6(&mut self) {
        let class = self.value(FieldKind::Dscp) << 2 | u128::from(self.rng_bits(2));
        let label = self.value(FieldKind::Ipv6FlowLabel);
        let version = self.mostly(6);
        self.u32(u32::from(version) << 28 | (class << 20 | label) as u32);
        // with its length in units of 8 bytes, where that is not random
        let mut extensions: Vec<(u8, Option<usize>)> = (0..*pick(self.rng, &[0, 0, 0, 0, 0, 1, 1, 2, 3, 5, 6, 7, 8]))
            .map(|_| (*pick(self.rng, &[0, 43, 44, 51, 60]), None))
            .collect();
        if chance(self.rng, 2) {
            // around the most that are skipped
            let count = self.rng.usize(EXTENSION_HEADERS_MAX - 2..=EXTENSION_HEADERS_MAX + 2);
            extensions = vec![(60, Some(1)); count];
        } else if self.at_xdp && chance(self.rng, 1) {
            // around where headers are no longer read; elsewhere the kernel runs programs on a page at most
            let end = OFFSET_MAX - 64 + self.rng.usize(..16) * 8;
            let units = end.saturating_sub(self.bytes.len()) / 8;
            extensions = vec![(60, Some(256)); units / 256];
            extensions.extend((!units.is_multiple_of(256)).then_some((60, Some(units % 256))));
        }
        let protocol = self.protocol(6);
        self.random(2);
        self.u8(extensions.first().map_or(protocol, |(kind, _)| *kind));
        let hop_limit = self.value(FieldKind::Ipv6HopLimit);
        self.u8(hop_limit as u8);
        let addresses = [self.value(FieldKind::Ipv6Source), self.value(FieldKind::Ipv6Destination)];
        for address in addresses {
            self.number(address, 16);
        }
        for (place, (kind, units)) in extensions.iter().enumerate() {
            let next = extensions.get(place + 1).map_or(protocol, |(kind, _)| *kind);
            match units {
                Some(units) => {
                    self.u8(next);
                    self.u8((units - 1) as u8);
                    self.random(units * 8 - 2);
                }
                None => self.extension(*kind, next),
            }
        }
        self.transport(protocol);
    }

    /// An extension header of IPv6.
    fn extension(&mut self, kind: u8, next: u8) {
        const FRAGMENT: u8 = 44;
        const AUTHENTICATION: u8 = 51;
        self.u8(next);
        if kind == FRAGMENT {
            let offset_more = match self.value(FieldKind::Fragment) {
                2 if chance(self.rng, 50) => self.fragment_offset() << 3 | self.rng.u16(..8),
                1 => 1,
                _ => 0,
            };
            self.random(1);
            self.u16(offset_more);
            self.random(4);
            return;
        }
        let len = if chance(self.rng, 95) { self.rng.u8(..4) } else { self.rng.u8(..40) };
        self.u8(len);
        let units = usize::from(len);
        self.random(if kind == AUTHENTICATION { units * 4 + 6 } else { units * 8 + 6 });
    }

    /// What comes behind an IP header: mostly something that is looked into.
    fn protocol(&mut self, version: u8) -> u8 {
        let icmp = if version == 4 { 1 } else { 58 };
        match self.rng.u32(..20) {
            0..5 => 6,
            5..11 => 17,
            11..14 => icmp,
            14..16 => 47,
            16 => *pick(self.rng, &[1, 58]),
            17 => *pick(self.rng, &[33, 132, 136]),
            _ => self.value(FieldKind::Protocol) as u8,
        }
    }

    fn transport(&mut self, protocol: u8) {
        match protocol {
            1 | 58 => {
                let (kind, code) = if protocol == 1 {
                    (FieldKind::IcmpType, FieldKind::IcmpCode)
                } else {
                    (FieldKind::Icmpv6Type, FieldKind::Icmpv6Code)
                };
                let header = [self.value(kind), self.value(code)];
                self.bytes.extend(header.map(|value| value as u8));
                self.random(2);
                self.payload();
            }
            6 => {
                let source = self.port(FieldKind::TcpSource, FieldKind::TransportSource);
                let destination = self.port(FieldKind::TcpDestination, FieldKind::TransportDestination);
                let flags = self.value(FieldKind::TcpFlags) as u8;
                self.u16(source);
                self.u16(destination);
                self.random(8);
                let offset = self.rng_bits(4) << 4 | 0x50;
                self.u8(offset);
                self.u8(flags);
                self.random(6);
                self.payload();
            }
            17 => {
                let source = self.port(FieldKind::UdpSource, FieldKind::TransportSource);
                let destination = match self.rng.u32(..10) {
                    0..3 => 4789,
                    3..6 => 6081,
                    _ => self.port(FieldKind::UdpDestination, FieldKind::TransportDestination),
                };
                self.u16(source);
                self.u16(destination);
                self.random(4);
                match destination {
                    4789 => self.vxlan(),
                    6081 => self.geneve(),
                    _ => self.payload(),
                }
            }
            33 | 132 | 136 => {
                let ports = [self.value(FieldKind::TransportSource), self.value(FieldKind::TransportDestination)];
                ports.into_iter().for_each(|port| self.u16(port as u16));
                self.random(8);
                self.payload();
            }
            47 => self.gre(),
            _ => self.payload(),
        }
    }

    fn port(&mut self, own: FieldKind, common: FieldKind) -> u16 {
        let kind = if self.rng.bool() { own } else { common };
        self.value(kind) as u16
    }

    fn payload(&mut self) {
        let len = self.rng.usize(..40);
        self.random(len);
    }

    fn vxlan(&mut self) {
        let flags = if chance(self.rng, 90) { 0x08 | self.rng.u8(..) & 0xf0 } else { self.rng.u8(..) };
        self.u8(flags);
        self.random(3);
        let network = self.value(FieldKind::VxlanVni);
        self.number(network, 3);
        self.random(1);
        self.inside(0x6558);
    }

    fn geneve(&mut self) {
        let options = self.geneve_options();
        let words = (options.len() / 4) as u8;
        let said_words = if chance(self.rng, 95) { words } else { self.rng.u8(..64) };
        let version = if chance(self.rng, 95) { 0 } else { self.rng_bits(2) };
        self.u8(version << 6 | said_words);
        self.random(1);
        let protocol = self.carried(FieldKind::GeneveProtocol);
        self.u16(protocol);
        let network = self.value(FieldKind::GeneveVni);
        self.number(network, 3);
        self.random(1);
        self.bytes.extend(options);
        self.inside(protocol);
    }

    fn geneve_options(&mut self) -> Vec<u8> {
        let mut options = Vec::new();
        let count = *pick(self.rng, &[0, 0, 1, 1, 2, 3, 7, 8, 9, 10]);
        for _ in 0..count {
            let (class, kind) = *pick(self.rng, &GENEVE_OPTIONS);
            let words = *pick(self.rng, &[0, 1, 1, 1, 2, 4]);
            let said_words = if chance(self.rng, 97) { words } else { self.rng.u8(..32) };
            let value = self.value(FieldKind::GeneveOption { class, kind }) as u32;
            if options.len() / 4 + 1 + usize::from(words) > 63 {
                break;
            }
            options.extend(class.to_be_bytes());
            options.push(kind);
            options.push(self.rng_bits(3) << 5 | said_words);
            for word in 0..words {
                options.extend(if word == 0 { value } else { self.rng.u32(..) }.to_be_bytes());
            }
        }
        options
    }

    fn gre(&mut self) {
        let version = if chance(self.rng, 95) { 0 } else { self.rng.u16(..8) };
        let routed = u16::from(chance(self.rng, 4)) << 14;
        let others = self.rng.u16(..) & 0xb000;
        let ignored = if chance(self.rng, 90) { 0 } else { self.rng.u16(..) & 0x0ff8 };
        let flags = others | routed | ignored | version;
        let protocol = self.carried(FieldKind::GreProtocol);
        self.u16(flags);
        self.u16(protocol);
        if flags & 0x8000 != 0 {
            self.random(4);
        }
        if flags & 0x2000 != 0 {
            let key = self.value(FieldKind::GreKey);
            self.number(key, 4);
        }
        if flags & 0x1000 != 0 {
            self.random(4);
        }
        self.inside(protocol);
    }

    /// An EtherType in a tunnel's header: mostly one that is looked into.
    fn carried(&mut self, kind: FieldKind) -> u16 {
        if chance(self.rng, 80) { *pick(self.rng, &[0x6558, 0x0800, 0x86dd]) } else { self.value(kind) as u16 }
    }

    /// What a tunnel carries; a tunnel in a tunnel carries no more headers.
    fn inside(&mut self, protocol: u16) {
        if self.layer == Layer::Inner {
            return self.payload();
        }
        self.layer = Layer::Inner;
        match protocol {
            0x6558 => self.ethernet(),
            0x0800 => self.ipv4(),
            0x86dd => self.ipv6(),
            _ => self.ip(),
        }
        self.layer = Layer::Outer;
    }
}
