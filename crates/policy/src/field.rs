//! The fields of packets that rules can ask for: where they are, what they are called and when they are there.
//!
//! How a packet is taken apart, the same in the generated programs and in the interpreter:
//!
//! - **Start.** At XDP and TC a packet starts with its Ethernet header, elsewhere with its IP header, whose version is
//!   then the first four bits. Bounds are those of the packet's bytes, not of lengths that headers claim: a header is
//!   present if all of it is in the packet.
//! - **Ethernet**, 14 bytes. Then up to two VLAN tags (EtherType 0x8100 or 0x88a8), 4 bytes each; with a tag that is
//!   cut short, and a third, nothing after it is present. `vlan` is the outermost tag; at TC also one that the kernel
//!   has taken out of the packet, which is none of the two. `ether type` is what follows the tags; where they are cut
//!   short or too many, a tag's own EtherType.
//! - **IPv4** (EtherType 0x0800): version 4, header length at least 5 words and all of the header in the packet.
//! - **IPv6** (EtherType 0x86dd): version 6, 40 bytes. Hop-by-hop options (0), routing (43), fragment (44),
//!   authentication (51) and destination options (60) are skipped, at most [`EXTENSION_HEADERS_MAX`] of them, each
//!   wholly in the packet; `protocol` is the number that the last one read, or the IPv6 header itself, says comes next.
//! - **Fragments**: nothing after the IP header of a later fragment (fragment offset not 0) is present. In IPv6 no
//!   header is skipped behind the fragment header of a later fragment. Of several fragment headers that one counts
//!   which says the most: later, then first, then none.
//! - **TCP** (protocol 6) and **UDP** (17) from 4 bytes on, which are the ports; TCP's flags from 14 bytes on, so that a
//!   small first fragment has ports and no flags; **DCCP** (33), **SCTP** (132) and **UDP-Lite** (136) from 4 bytes on,
//!   which are their ports, too; **ICMP** (1, in IPv4 only) and **ICMPv6** (58, in IPv6 only) from 2 bytes on.
//! - **Far headers**: an IP header, an extension header, what is behind them or in a tunnel, and an option of Geneve or its
//!   data are absent if they start more than [`OFFSET_MAX`] bytes behind the packet's start.
//! - **Incomplete** is a packet of which that could not be read, in the outer headers: one of them is cut short (TCP in
//!   front of its flags), malformed or too far, or there are more VLAN tags or extension headers than are read. A later
//!   fragment is complete, and so is a packet with a protocol that rules know nothing of.
//! - **Tunnels**, in the outer headers only: **VXLAN**: UDP to port 4789, 8 bytes, flag I (0x08 in the first byte) set.
//!   **Geneve**: UDP to port 6081, version 0, 8 bytes and all of its options in the packet. **GRE** (protocol 47),
//!   version 0, not source-routed (bit 0x4000 of the first 16 bits is 0): 4 bytes, and 4 each for checksum, key and
//!   sequence number where its flags say so, all in the packet.
//! - **Inner headers** start with Ethernet in VXLAN; in Geneve and GRE by the protocol field: Ethernet for 0x6558, IPv4
//!   for 0x0800, IPv6 for 0x86dd, else none. From there on all is as above, but without tunnels.

use crate::policy::{Layer, Type};

/// How many extension headers of IPv6 are skipped: as many as fit into a packet of 1500 bytes. Kernels go through any number
/// (ip6_protocol_deliver_rcu in net/ipv6/ip6_input.c), the newest through 12 (IP6_MAX_EXT_HDRS_CNT in include/net/ipv6.h).
pub const EXTENSION_HEADERS_MAX: usize = (1500 - 40) / 8;

/// How far from the packet's start headers are read: `PT_AT_MAX` in `packet_traits/policy.bpf.h`, which says why.
pub const OFFSET_MAX: usize = 0xff00;

/// Whether this number is of an extension header of IPv6 that is skipped: hop-by-hop options, routing, fragment,
/// authentication, destination options.
pub(crate) const fn is_extension_header(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 51 | 60)
}

/// A field of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Field {
    /// Of which headers. Always the outer ones for a tunnel's own and for the packet's length.
    pub layer: Layer,
    /// Which.
    pub kind: FieldKind,
}

/// Which field. Byte orders are resolved: values are numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldKind {
    /// `length`: bytes of the packet from where it starts at the hook: with the Ethernet header at XDP and TC.
    Length,
    /// `ether saddr`
    EtherSource,
    /// `ether daddr`
    EtherDestination,
    /// `ether type`, behind VLAN tags.
    EtherType,
    /// `vlan id`, 12 bits.
    VlanId,
    /// `vlan pcp`, 3 bits.
    VlanPriority,
    /// `ip saddr`
    Ipv4Source,
    /// `ip daddr`
    Ipv4Destination,
    /// `ip ttl`
    Ipv4TimeToLive,
    /// `ip6 saddr`
    Ipv6Source,
    /// `ip6 daddr`
    Ipv6Destination,
    /// `ip6 hoplimit`
    Ipv6HopLimit,
    /// `ip6 flowlabel`, 20 bits.
    Ipv6FlowLabel,
    /// `ip version`: 4 or 6. Present with either.
    IpVersion,
    /// `protocol`: of IPv4, or of IPv6 behind its extension headers.
    Protocol,
    /// `dscp`: the high 6 bits of IPv4's type of service or IPv6's traffic class.
    Dscp,
    /// `fragment`: [`FRAGMENT_NONE`], [`FRAGMENT_FIRST`] or [`FRAGMENT_LATER`]. Present with either IP header.
    Fragment,
    /// `tcp sport`
    TcpSource,
    /// `tcp dport`
    TcpDestination,
    /// `tcp flags`: the low 8 flags, FIN lowest.
    TcpFlags,
    /// `udp sport`
    UdpSource,
    /// `udp dport`
    UdpDestination,
    /// `th sport`: of TCP, UDP, DCCP, SCTP or UDP-Lite.
    TransportSource,
    /// `th dport`
    TransportDestination,
    /// `icmp type`
    IcmpType,
    /// `icmp code`
    IcmpCode,
    /// `icmpv6 type`
    Icmpv6Type,
    /// `icmpv6 code`
    Icmpv6Code,
    /// `vxlan vni`, 24 bits.
    VxlanVni,
    /// `geneve vni`, 24 bits.
    GeneveVni,
    /// `geneve protocol`: EtherType of what is inside.
    GeneveProtocol,
    /// `geneve option CLASS:TYPE`: the first 4 bytes of the first such option's data as a number. Absent if there is no
    /// such option among the first [`GENEVE_OPTIONS_MAX`], or it has no data, or it or one in front of it is longer
    /// than what is left of the options.
    GeneveOption {
        /// Its class.
        class: u16,
        /// Its type, with the critical bit.
        kind: u8,
    },
    /// `gre protocol`: EtherType of what is inside.
    GreProtocol,
    /// `gre key`. Absent if the GRE header has none.
    GreKey,
    /// `incomplete`: there, and 1, if headers could not be read to their end.
    Incomplete,
}

/// Not a fragment.
pub const FRAGMENT_NONE: u128 = 0;
/// The first fragment: offset 0, more follow.
pub const FRAGMENT_FIRST: u128 = 1;
/// A later fragment.
pub const FRAGMENT_LATER: u128 = 2;

/// How many options of a Geneve header are looked at.
pub const GENEVE_OPTIONS_MAX: usize = 8;

/// A header, as presence goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Header {
    /// The packet as such: always there.
    Packet,
    /// Ethernet.
    Ethernet,
    /// The outermost VLAN tag.
    Vlan,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// IPv4 or IPv6.
    Ip,
    /// TCP, as far as its ports.
    Tcp,
    /// TCP, as far as its flags.
    TcpFlags,
    /// UDP.
    Udp,
    /// DCCP, SCTP or UDP-Lite, as far as their ports. No field is of these alone.
    OtherPorts,
    /// TCP, UDP or those.
    Transport,
    /// ICMP.
    Icmp,
    /// ICMPv6.
    Icmpv6,
    /// VXLAN.
    Vxlan,
    /// Geneve.
    Geneve,
    /// One option in it.
    GeneveOption,
    /// GRE.
    Gre,
    /// The key in it.
    GreKey,
    /// None: headers could not be read to their end.
    Incomplete,
}

impl FieldKind {
    /// Every field but Geneve's options and `incomplete`, whose value nobody uses.
    pub const ALL: [FieldKind; 33] = [
        FieldKind::Length,
        FieldKind::EtherSource,
        FieldKind::EtherDestination,
        FieldKind::EtherType,
        FieldKind::VlanId,
        FieldKind::VlanPriority,
        FieldKind::Ipv4Source,
        FieldKind::Ipv4Destination,
        FieldKind::Ipv4TimeToLive,
        FieldKind::Ipv6Source,
        FieldKind::Ipv6Destination,
        FieldKind::Ipv6HopLimit,
        FieldKind::Ipv6FlowLabel,
        FieldKind::IpVersion,
        FieldKind::Protocol,
        FieldKind::Dscp,
        FieldKind::Fragment,
        FieldKind::TcpSource,
        FieldKind::TcpDestination,
        FieldKind::TcpFlags,
        FieldKind::UdpSource,
        FieldKind::UdpDestination,
        FieldKind::TransportSource,
        FieldKind::TransportDestination,
        FieldKind::IcmpType,
        FieldKind::IcmpCode,
        FieldKind::Icmpv6Type,
        FieldKind::Icmpv6Code,
        FieldKind::VxlanVni,
        FieldKind::GeneveVni,
        FieldKind::GeneveProtocol,
        FieldKind::GreProtocol,
        FieldKind::GreKey,
    ];

    /// The header it is in.
    pub const fn header(self) -> Header {
        match self {
            FieldKind::Length => Header::Packet,
            FieldKind::EtherSource | FieldKind::EtherDestination | FieldKind::EtherType => Header::Ethernet,
            FieldKind::VlanId | FieldKind::VlanPriority => Header::Vlan,
            FieldKind::Ipv4Source | FieldKind::Ipv4Destination | FieldKind::Ipv4TimeToLive => Header::Ipv4,
            FieldKind::Ipv6Source | FieldKind::Ipv6Destination | FieldKind::Ipv6HopLimit | FieldKind::Ipv6FlowLabel => {
                Header::Ipv6
            }
            FieldKind::IpVersion | FieldKind::Protocol | FieldKind::Dscp | FieldKind::Fragment => Header::Ip,
            FieldKind::TcpSource | FieldKind::TcpDestination => Header::Tcp,
            FieldKind::TcpFlags => Header::TcpFlags,
            FieldKind::UdpSource | FieldKind::UdpDestination => Header::Udp,
            FieldKind::TransportSource | FieldKind::TransportDestination => Header::Transport,
            FieldKind::IcmpType | FieldKind::IcmpCode => Header::Icmp,
            FieldKind::Icmpv6Type | FieldKind::Icmpv6Code => Header::Icmpv6,
            FieldKind::VxlanVni => Header::Vxlan,
            FieldKind::GeneveVni | FieldKind::GeneveProtocol => Header::Geneve,
            FieldKind::GeneveOption { .. } => Header::GeneveOption,
            FieldKind::GreProtocol => Header::Gre,
            FieldKind::GreKey => Header::GreKey,
            FieldKind::Incomplete => Header::Incomplete,
        }
    }

    /// What its values are.
    pub const fn value_type(self) -> Type {
        match self {
            FieldKind::EtherSource | FieldKind::EtherDestination => Type::Mac,
            FieldKind::Ipv4Source | FieldKind::Ipv4Destination => Type::Ipv4,
            FieldKind::Ipv6Source | FieldKind::Ipv6Destination => Type::Ipv6,
            FieldKind::Incomplete => Type::Unsigned(1),
            FieldKind::Fragment => Type::Unsigned(2),
            FieldKind::VlanPriority => Type::Unsigned(3),
            FieldKind::Dscp => Type::Unsigned(6),
            FieldKind::Ipv4TimeToLive
            | FieldKind::Ipv6HopLimit
            | FieldKind::IpVersion
            | FieldKind::Protocol
            | FieldKind::TcpFlags
            | FieldKind::IcmpType
            | FieldKind::IcmpCode
            | FieldKind::Icmpv6Type
            | FieldKind::Icmpv6Code => Type::Unsigned(8),
            FieldKind::VlanId => Type::Unsigned(12),
            FieldKind::EtherType
            | FieldKind::TcpSource
            | FieldKind::TcpDestination
            | FieldKind::UdpSource
            | FieldKind::UdpDestination
            | FieldKind::TransportSource
            | FieldKind::TransportDestination
            | FieldKind::GeneveProtocol
            | FieldKind::GreProtocol => Type::Unsigned(16),
            FieldKind::Ipv6FlowLabel => Type::Unsigned(20),
            FieldKind::VxlanVni | FieldKind::GeneveVni => Type::Unsigned(24),
            FieldKind::Length | FieldKind::GeneveOption { .. } | FieldKind::GreKey => Type::Unsigned(32),
        }
    }

    /// Whether there can be one of the inner headers.
    pub const fn may_be_inner(self) -> bool {
        !matches!(
            self.header(),
            Header::Packet
                | Header::Vxlan
                | Header::Geneve
                | Header::GeneveOption
                | Header::Gre
                | Header::GreKey
                | Header::Incomplete
        )
    }
}

impl Field {
    /// `length`.
    pub const LENGTH: Field = Field { layer: Layer::Outer, kind: FieldKind::Length };

    /// What its values are.
    pub const fn value_type(self) -> Type {
        self.kind.value_type()
    }

    /// The header it is in.
    pub const fn header(self) -> Header {
        self.kind.header()
    }
}
