//! A packet taken apart, as [`field`](crate::field) says.

use crate::{
    field::{
        EXTENSION_HEADERS_MAX, FRAGMENT_FIRST, FRAGMENT_LATER, FRAGMENT_NONE, Field, FieldKind, GENEVE_OPTIONS_MAX,
        OFFSET_MAX, is_extension_header,
    },
    hash::FiveTuple,
    hook::Hook,
    policy::Layer,
};

const ETHER_IPV4: u16 = 0x0800;
const ETHER_IPV6: u16 = 0x86dd;
const ETHER_VLAN: u16 = 0x8100;
const ETHER_SERVICE_VLAN: u16 = 0x88a8;
const ETHER_BRIDGED: u16 = 0x6558;

const HOP_BY_HOP: u8 = 0;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const GRE: u8 = 47;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

const VXLAN_PORT: u16 = 4789;
const GENEVE_PORT: u16 = 6081;

const VLAN_TAGS_MAX: usize = 2;

/// A packet and its headers.
#[derive(Clone, Debug)]
pub struct Packet<'a> {
    length: usize,
    outer: Headers<'a>,
    tunnel: Option<Tunnel<'a>>,
    inner: Headers<'a>,
}

/// The headers of one layer, each if it is there.
#[derive(Clone, Debug, Default)]
struct Headers<'a> {
    ethernet: Option<Ethernet<'a>>,
    /// The tag control word of the outermost VLAN tag.
    vlan: Option<u16>,
    ip: Option<Ip<'a>>,
    transport: Option<Transport<'a>>,
    /// They were read to their end.
    complete: bool,
}

#[derive(Clone, Debug)]
struct Ethernet<'a> {
    addresses: &'a [u8; 12],
    /// The last EtherType that was read: what follows the tags or, where they are cut short or too many, a tag's own.
    ether_type: u16,
}

#[derive(Clone, Debug)]
struct Ip<'a> {
    header: IpHeader<'a>,
    protocol: u8,
    fragment: u128,
}

#[derive(Clone, Debug)]
enum IpHeader<'a> {
    V4(&'a [u8; 20]),
    V6(&'a [u8; 40]),
}

#[derive(Clone, Debug)]
enum Transport<'a> {
    Tcp {
        ports: &'a [u8; 4],
        flags: Option<u8>,
    },
    Udp(&'a [u8; 4]),
    /// The ports of DCCP, SCTP or UDP-Lite.
    OtherPorts(&'a [u8; 4]),
    Icmp(&'a [u8; 2]),
    Icmpv6(&'a [u8; 2]),
}

#[derive(Clone, Debug)]
enum Tunnel<'a> {
    Vxlan { vni: u128 },
    Geneve { vni: u128, protocol: u16, options: Rest<'a> },
    Gre { protocol: u16, key: Option<u128> },
}

/// What a tunnel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carried {
    Ethernet,
    Ipv4,
    Ipv6,
    Other,
}

/// The bytes that no header has taken yet.
#[derive(Clone, Copy, Debug)]
struct Rest<'a> {
    bytes: &'a [u8],
    /// Where they start in the packet.
    at: usize,
}

impl<'a> Rest<'a> {
    /// Takes the next `N` bytes; nothing if there are fewer.
    fn take<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        self.take_slice(N)?.first_chunk()
    }

    /// Takes the next `len` bytes; nothing if there are fewer.
    fn take_slice(&mut self, len: usize) -> Option<&'a [u8]> {
        self.take_rest(len).map(|taken| taken.bytes)
    }

    /// The same, with their place.
    fn take_rest(&mut self, len: usize) -> Option<Rest<'a>> {
        let (taken, rest) = self.bytes.split_at_checked(len)?;
        let at = self.at;
        *self = Rest { bytes: rest, at: at + len };
        Some(Rest { bytes: taken, at })
    }

    /// Whether they start behind what is read.
    fn is_far(&self) -> bool {
        self.at > OFFSET_MAX
    }

    /// Takes a 16-bit number.
    fn take_u16(&mut self) -> Option<u16> {
        self.take().map(|bytes| u16::from_be_bytes(*bytes))
    }
}

/// The number that bytes make in network order; at most 16 bytes.
fn number(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0, |number, byte| number << 8 | u128::from(*byte))
}

impl<'a> Packet<'a> {
    /// Takes a packet apart, which starts as it does at this hook. `vlan` is the tag control word of a VLAN tag that
    /// the kernel has taken out of it.
    pub fn dissect(bytes: &'a [u8], hook: Hook, vlan: Option<u16>) -> Packet<'a> {
        if !hook.sees_ethernet() {
            return Packet::dissect_ip(bytes);
        }
        let mut rest = Rest { bytes, at: 0 };
        let mut outer = Headers::default();
        outer.read_ethernet(&mut rest);
        outer.vlan = vlan.or(outer.vlan);
        Packet::behind(outer, rest, bytes.len())
    }

    /// Takes a packet apart that starts with its IP header.
    pub fn dissect_ip(bytes: &'a [u8]) -> Packet<'a> {
        let mut rest = Rest { bytes, at: 0 };
        let mut outer = Headers::default();
        outer.read_any_ip(&mut rest);
        Packet::behind(outer, rest, bytes.len())
    }

    /// Goes on behind the outer headers of a packet of this length.
    fn behind(outer: Headers<'a>, mut rest: Rest<'a>, length: usize) -> Packet<'a> {
        let mut inner = Headers::default();
        let (tunnel, carried) = outer.read_tunnel(&mut rest).unzip();
        match carried.unwrap_or(Carried::Other) {
            Carried::Ethernet => inner.read_ethernet(&mut rest),
            Carried::Ipv4 => inner.read_ipv4(&mut rest),
            Carried::Ipv6 => inner.read_ipv6(&mut rest),
            Carried::Other => {}
        }
        Packet { length, outer, tunnel, inner }
    }

    /// The same packet with `cut` more bytes, which are not given, at its end.
    pub fn with_cut(self, cut: usize) -> Packet<'a> {
        Packet { length: self.length + cut, ..self }
    }

    /// Bytes of the packet, from where it starts at the hook.
    pub fn length(&self) -> u128 {
        self.length as u128
    }

    /// A field's value; `None` if it is absent.
    pub fn field(&self, field: Field) -> Option<u128> {
        let headers = self.layer(field.layer);
        match field.kind {
            FieldKind::Length => Some(self.length()),
            FieldKind::EtherDestination => headers.ethernet.as_ref().map(|header| number(&header.addresses[..6])),
            FieldKind::EtherSource => headers.ethernet.as_ref().map(|header| number(&header.addresses[6..])),
            FieldKind::EtherType => headers.ethernet.as_ref().map(|header| header.ether_type.into()),
            FieldKind::VlanId => headers.vlan.map(|tag| (tag & 0xfff).into()),
            FieldKind::VlanPriority => headers.vlan.map(|tag| (tag >> 13).into()),
            FieldKind::Ipv4Source => headers.ipv4().map(|header| number(&header[12..16])),
            FieldKind::Ipv4Destination => headers.ipv4().map(|header| number(&header[16..20])),
            FieldKind::Ipv4TimeToLive => headers.ipv4().map(|header| header[8].into()),
            FieldKind::Ipv6Source => headers.ipv6().map(|header| number(&header[8..24])),
            FieldKind::Ipv6Destination => headers.ipv6().map(|header| number(&header[24..40])),
            FieldKind::Ipv6HopLimit => headers.ipv6().map(|header| header[7].into()),
            FieldKind::Ipv6FlowLabel => headers.ipv6().map(|header| number(&header[1..4]) & 0xf_ffff),
            FieldKind::IpVersion => headers.ip.as_ref().map(|ip| ip.version().into()),
            FieldKind::Protocol => headers.ip.as_ref().map(|ip| ip.protocol.into()),
            FieldKind::Dscp => headers.ip.as_ref().map(Ip::dscp),
            FieldKind::Fragment => headers.ip.as_ref().map(|ip| ip.fragment),
            FieldKind::TcpSource => headers.tcp().map(|header| number(&header[0..2])),
            FieldKind::TcpDestination => headers.tcp().map(|header| number(&header[2..4])),
            FieldKind::TcpFlags => match headers.transport {
                Some(Transport::Tcp { flags, .. }) => flags.map(u128::from),
                _ => None,
            },
            FieldKind::UdpSource => headers.udp().map(|header| number(&header[0..2])),
            FieldKind::UdpDestination => headers.udp().map(|header| number(&header[2..4])),
            FieldKind::TransportSource => headers.ports().map(|(source, _)| source.into()),
            FieldKind::TransportDestination => headers.ports().map(|(_, destination)| destination.into()),
            FieldKind::IcmpType => headers.icmp().map(|header| header[0].into()),
            FieldKind::IcmpCode => headers.icmp().map(|header| header[1].into()),
            FieldKind::Icmpv6Type => headers.icmpv6().map(|header| header[0].into()),
            FieldKind::Icmpv6Code => headers.icmpv6().map(|header| header[1].into()),
            FieldKind::VxlanVni => match self.tunnel {
                Some(Tunnel::Vxlan { vni }) => Some(vni),
                _ => None,
            },
            FieldKind::GeneveVni => match self.tunnel {
                Some(Tunnel::Geneve { vni, .. }) => Some(vni),
                _ => None,
            },
            FieldKind::GeneveProtocol => match self.tunnel {
                Some(Tunnel::Geneve { protocol, .. }) => Some(protocol.into()),
                _ => None,
            },
            FieldKind::GeneveOption { class, kind } => match self.tunnel {
                Some(Tunnel::Geneve { options, .. }) => geneve_option(options, class, kind),
                _ => None,
            },
            FieldKind::GreProtocol => match self.tunnel {
                Some(Tunnel::Gre { protocol, .. }) => Some(protocol.into()),
                _ => None,
            },
            FieldKind::GreKey => match self.tunnel {
                Some(Tunnel::Gre { key, .. }) => key,
                _ => None,
            },
            FieldKind::Incomplete => (!headers.complete).then_some(1),
        }
    }

    /// What the hash of a flow is made of; `None` without an IP header.
    pub fn five_tuple(&self, layer: Layer) -> Option<FiveTuple> {
        let headers = self.layer(layer);
        let ip = headers.ip.as_ref()?;
        let (source, destination) = match ip.header {
            IpHeader::V4(header) => (number(&header[12..16]), number(&header[16..20])),
            IpHeader::V6(header) => (number(&header[8..24]), number(&header[24..40])),
        };
        let (source_port, destination_port) = headers.ports().unwrap_or((0, 0));
        Some(FiveTuple {
            version: ip.version(),
            protocol: ip.protocol,
            source,
            destination,
            source_port,
            destination_port,
        })
    }

    fn layer(&self, layer: Layer) -> &Headers<'a> {
        match layer {
            Layer::Outer => &self.outer,
            Layer::Inner => &self.inner,
        }
    }
}

impl<'a> Headers<'a> {
    /// Reads an Ethernet header, VLAN tags, and what comes behind.
    fn read_ethernet(&mut self, rest: &mut Rest<'a>) {
        if rest.is_far() {
            return;
        }
        let Some(header) = rest.take::<14>() else { return };
        let (addresses, ether_type) = header.split_first_chunk::<12>().expect("14 bytes are more than 12");
        let ether_type = number(ether_type) as u16;
        let ethernet = self.ethernet.insert(Ethernet { addresses, ether_type });
        for _ in 0..VLAN_TAGS_MAX {
            if !is_vlan(ethernet.ether_type) {
                break;
            }
            let Some(tag) = rest.take::<4>() else { return };
            self.vlan.get_or_insert(number(&tag[..2]) as u16);
            ethernet.ether_type = number(&tag[2..]) as u16;
        }
        match ethernet.ether_type {
            ETHER_IPV4 => self.read_ipv4(rest),
            ETHER_IPV6 => self.read_ipv6(rest),
            other => self.complete = !is_vlan(other),
        }
    }

    /// Reads an IP header whose version is known from itself, and what comes behind.
    fn read_any_ip(&mut self, rest: &mut Rest<'a>) {
        const SHORTEST: usize = 20;
        if rest.bytes.len() < SHORTEST {
            return;
        }
        match rest.bytes[0] >> 4 {
            4 => self.read_ipv4(rest),
            6 => self.read_ipv6(rest),
            _ => self.complete = true,
        }
    }

    fn read_ipv4(&mut self, rest: &mut Rest<'a>) {
        if rest.is_far() {
            return;
        }
        let Some(header) = rest.take::<20>() else { return };
        let header_len = usize::from(header[0] & 0xf) * 4;
        if header[0] >> 4 != 4 || header_len < header.len() || rest.take_slice(header_len - header.len()).is_none() {
            return;
        }
        let flags_offset = number(&header[6..8]) as u16;
        let fragment = fragment_of(flags_offset & 0x2000 != 0, flags_offset & 0x1fff);
        self.ip = Some(Ip { header: IpHeader::V4(header), protocol: header[9], fragment });
        self.read_transport(rest);
    }

    fn read_ipv6(&mut self, rest: &mut Rest<'a>) {
        if rest.is_far() {
            return;
        }
        let Some(header) = rest.take::<40>() else { return };
        if header[0] >> 4 != 6 {
            return;
        }
        let ip = self.ip.insert(Ip { header: IpHeader::V6(header), protocol: header[6], fragment: FRAGMENT_NONE });
        for _ in 0..EXTENSION_HEADERS_MAX {
            if ip.fragment == FRAGMENT_LATER || rest.is_far() || !ip.skip_extension(rest) {
                break;
            }
        }
        self.read_transport(rest);
    }

    /// Reads what comes behind the IP header that has been read.
    fn read_transport(&mut self, rest: &mut Rest<'a>) {
        const FLAGS_BEHIND_PORTS: usize = 9;
        let Some(ip) = &self.ip else { return };
        if ip.fragment == FRAGMENT_LATER {
            self.complete = true;
            return;
        }
        if rest.is_far() {
            return;
        }
        let (protocol, version) = (ip.protocol, ip.version());
        self.transport = match (protocol, version) {
            (TCP, _) => rest.take().map(|ports| {
                let flags = rest.bytes.get(FLAGS_BEHIND_PORTS).copied();
                Transport::Tcp { ports, flags }
            }),
            (UDP, _) => rest.take().map(|ports| {
                let length_and_checksum = rest.bytes.len().min(4);
                rest.take_slice(length_and_checksum);
                Transport::Udp(ports)
            }),
            (DCCP | SCTP | UDPLITE, _) => rest.take().map(Transport::OtherPorts),
            (ICMP, 4) => rest.take().map(Transport::Icmp),
            (ICMPV6, 6) => rest.take().map(Transport::Icmpv6),
            _ => {
                self.complete = version == 4 || !is_extension_header(protocol);
                return;
            }
        };
        self.complete = !matches!(self.transport, None | Some(Transport::Tcp { flags: None, .. }));
    }

    /// Reads the tunnel's header that is behind the headers that have been read, and what that carries.
    fn read_tunnel(&self, rest: &mut Rest<'a>) -> Option<(Tunnel<'a>, Carried)> {
        if let Some(header) = self.udp() {
            return match number(&header[2..4]) as u16 {
                VXLAN_PORT => read_vxlan(rest),
                GENEVE_PORT => read_geneve(rest),
                _ => None,
            };
        }
        let ip = self.ip.as_ref()?;
        if ip.protocol == GRE && ip.fragment != FRAGMENT_LATER { read_gre(rest) } else { None }
    }

    fn ipv4(&self) -> Option<&'a [u8; 20]> {
        match self.ip.as_ref()?.header {
            IpHeader::V4(header) => Some(header),
            IpHeader::V6(_) => None,
        }
    }

    fn ipv6(&self) -> Option<&'a [u8; 40]> {
        match self.ip.as_ref()?.header {
            IpHeader::V6(header) => Some(header),
            IpHeader::V4(_) => None,
        }
    }

    fn tcp(&self) -> Option<&'a [u8; 4]> {
        match self.transport {
            Some(Transport::Tcp { ports, .. }) => Some(ports),
            _ => None,
        }
    }

    fn udp(&self) -> Option<&'a [u8; 4]> {
        match self.transport {
            Some(Transport::Udp(header)) => Some(header),
            _ => None,
        }
    }

    fn icmp(&self) -> Option<&'a [u8; 2]> {
        match self.transport {
            Some(Transport::Icmp(header)) => Some(header),
            _ => None,
        }
    }

    fn icmpv6(&self) -> Option<&'a [u8; 2]> {
        match self.transport {
            Some(Transport::Icmpv6(header)) => Some(header),
            _ => None,
        }
    }

    /// Source and destination port.
    fn ports(&self) -> Option<(u16, u16)> {
        let header = match self.transport.as_ref()? {
            Transport::Tcp { ports: header, .. } | Transport::Udp(header) | Transport::OtherPorts(header) => header,
            Transport::Icmp(_) | Transport::Icmpv6(_) => return None,
        };
        Some((number(&header[0..2]) as u16, number(&header[2..4]) as u16))
    }
}

impl<'a> Ip<'a> {
    fn version(&self) -> u8 {
        match self.header {
            IpHeader::V4(_) => 4,
            IpHeader::V6(_) => 6,
        }
    }

    fn dscp(&self) -> u128 {
        match self.header {
            IpHeader::V4(header) => u128::from(header[1] >> 2),
            IpHeader::V6(header) => number(&header[0..2]) >> 6 & 0x3f,
        }
    }

    /// Skips the extension header of IPv6 that comes next. Whether there was one, wholly in the packet.
    fn skip_extension(&mut self, rest: &mut Rest<'a>) -> bool {
        let mut behind = *rest;
        let Some(start) = behind.take::<2>() else { return false };
        let [next, len] = *start;
        let len = match self.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (usize::from(len) + 1) * 8,
            AUTHENTICATION => (usize::from(len) + 2) * 4,
            FRAGMENT => 8,
            _ => return false,
        };
        let Some(header) = behind.take_slice(len - start.len()) else { return false };
        if self.protocol == FRAGMENT {
            let offset_more = number(&header[..2]) as u16;
            self.fragment = self.fragment.max(fragment_of(offset_more & 1 != 0, offset_more >> 3));
        }
        self.protocol = next;
        *rest = behind;
        true
    }
}

fn is_vlan(ether_type: u16) -> bool {
    matches!(ether_type, ETHER_VLAN | ETHER_SERVICE_VLAN)
}

fn fragment_of(more: bool, offset: u16) -> u128 {
    match (offset, more) {
        (0, false) => FRAGMENT_NONE,
        (0, true) => FRAGMENT_FIRST,
        _ => FRAGMENT_LATER,
    }
}

/// What an EtherType in a tunnel's header stands for.
fn carried_by(protocol: u16) -> Carried {
    match protocol {
        ETHER_BRIDGED => Carried::Ethernet,
        ETHER_IPV4 => Carried::Ipv4,
        ETHER_IPV6 => Carried::Ipv6,
        _ => Carried::Other,
    }
}

/// RFC 7348 section 5.
fn read_vxlan<'a>(rest: &mut Rest<'a>) -> Option<(Tunnel<'a>, Carried)> {
    let header = rest.take::<8>()?;
    let has_vni = header[0] & 0x08 != 0;
    has_vni.then(|| (Tunnel::Vxlan { vni: number(&header[4..7]) }, Carried::Ethernet))
}

/// RFC 8926 section 3.4.
fn read_geneve<'a>(rest: &mut Rest<'a>) -> Option<(Tunnel<'a>, Carried)> {
    let header = rest.take::<8>()?;
    let version = header[0] >> 6;
    if version != 0 {
        return None;
    }
    let options = rest.take_rest(usize::from(header[0] & 0x3f) * 4)?;
    let protocol = number(&header[2..4]) as u16;
    Some((Tunnel::Geneve { vni: number(&header[4..7]), protocol, options }, carried_by(protocol)))
}

/// The first 4 bytes of an option's data. RFC 8926 section 3.5.
fn geneve_option(mut rest: Rest<'_>, class: u16, kind: u8) -> Option<u128> {
    for _ in 0..GENEVE_OPTIONS_MAX {
        if rest.is_far() {
            return None;
        }
        let header = rest.take::<4>()?;
        if rest.is_far() {
            return None;
        }
        let data = rest.take_slice(usize::from(header[3] & 0x1f) * 4)?;
        if number(&header[..2]) == u128::from(class) && header[2] == kind {
            return data.first_chunk::<4>().map(|start| number(start));
        }
    }
    None
}

/// RFC 2784 section 2.1 and RFC 2890 section 2; the routing flag is RFC 1701's.
fn read_gre<'a>(rest: &mut Rest<'a>) -> Option<(Tunnel<'a>, Carried)> {
    const CHECKSUM: u16 = 0x8000;
    const ROUTED: u16 = 0x4000;
    const KEY: u16 = 0x2000;
    const SEQUENCE: u16 = 0x1000;
    const VERSION: u16 = 0x0007;

    let flags = rest.take_u16()?;
    let protocol = rest.take_u16()?;
    if flags & (ROUTED | VERSION) != 0 {
        return None;
    }
    let mut word = |flag| if flags & flag != 0 { rest.take::<4>().map(Some) } else { Some(None) };
    let _checksum = word(CHECKSUM)?;
    let key = word(KEY)?;
    let _sequence = word(SEQUENCE)?;
    Some((Tunnel::Gre { protocol, key: key.map(|key| number(key)) }, carried_by(protocol)))
}
