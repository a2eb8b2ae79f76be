//! Packets are taken apart as the language says: what is there, where it is, and when it is not.

use etherparse::{
    EtherType, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader,
    Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions, PacketBuilder, SingleVlanHeader, VlanHeader,
};
use packet_traits_policy::{
    field::{FRAGMENT_FIRST, FRAGMENT_LATER, FRAGMENT_NONE, Field, FieldKind, OFFSET_MAX},
    hook::{Direction, Hook},
    interpret::Packet,
    policy::Layer,
    random::Rng,
};

const TC: Hook = Hook::Tc(Direction::Ingress);
const CGROUP: Hook = Hook::Cgroup(Direction::Ingress);

const OPTION: FieldKind = FieldKind::GeneveOption { class: 0x0102, kind: 0x80 };

fn outer(kind: FieldKind) -> Field {
    Field { layer: Layer::Outer, kind }
}

fn inner(kind: FieldKind) -> Field {
    Field { layer: Layer::Inner, kind }
}

/// A field of a packet that starts with its Ethernet header.
fn field(packet: &[u8], field: Field) -> Option<u128> {
    Packet::dissect(packet, Hook::Xdp, None).field(field)
}

#[track_caller]
fn assert_fields<const N: usize>(packet: &[u8], expected: [(Field, Option<u128>); N]) {
    for (which, value) in expected {
        assert_eq!(field(packet, which), value, "{which:?}");
    }
}

fn ethernet(ether_type: u16) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], &ether_type.to_be_bytes()[..]].concat()
}

fn tag(control: u16, next: u16) -> Vec<u8> {
    [control.to_be_bytes(), next.to_be_bytes()].concat()
}

fn ipv4(protocol: u8) -> Vec<u8> {
    vec![0x45, 0xb8, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 1, 2, 3, 10, 4, 5, 6]
}

fn ipv6(next: u8) -> Vec<u8> {
    let mut header = vec![0x6b, 0x81, 0x23, 0x45, 0, 0, next, 63];
    header.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    header.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    header
}

/// An extension header of IPv6 of 8 bytes, unless `units` says more; not for 44 and 51.
fn extension(next: u8, units: u8) -> Vec<u8> {
    let mut header = vec![0xee; 8 + 8 * usize::from(units)];
    header[..2].copy_from_slice(&[next, units]);
    header
}

fn fragment(next: u8, offset: u16, more: bool) -> Vec<u8> {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    vec![next, 0xff, high, low, 0, 0, 0, 9]
}

fn udp(destination: u16) -> Vec<u8> {
    let [high, low] = destination.to_be_bytes();
    vec![0x12, 0x34, high, low, 0, 8, 0, 0]
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut header = vec![0; 20];
    header[..4].copy_from_slice(&[0, 80, 0x1f, 0x90]);
    header[12..14].copy_from_slice(&[0x5f, flags]);
    header
}

fn vxlan(flags: u8) -> Vec<u8> {
    vec![flags, 0, 0, 0, 0, 3, 0xe9, 0xff]
}

fn geneve(protocol: u16, options: &[u8]) -> Vec<u8> {
    let [high, low] = protocol.to_be_bytes();
    let words = (options.len() / 4) as u8;
    [&[words, 0, high, low, 0, 7, 0xd2, 0xff], options].concat()
}

fn udp_in_ipv4(destination: u16) -> Vec<u8> {
    [ethernet(0x0800), ipv4(17), udp(destination)].concat()
}

#[test]
fn every_field_is_where_its_header_has_it() {
    let packet = [ethernet(0x8100), tag(0xb064, 0x0800), ipv4(6), tcp(0x12)].concat();
    assert_fields(
        &packet,
        [
            (outer(FieldKind::Length), Some(58)),
            (outer(FieldKind::EtherDestination), Some(0x0200_0000_0001)),
            (outer(FieldKind::EtherSource), Some(0x0200_0000_0002)),
            (outer(FieldKind::EtherType), Some(0x0800)),
            (outer(FieldKind::VlanId), Some(100)),
            (outer(FieldKind::VlanPriority), Some(5)),
            (outer(FieldKind::IpVersion), Some(4)),
            (outer(FieldKind::Ipv4Source), Some(0x0a01_0203)),
            (outer(FieldKind::Ipv4Destination), Some(0x0a04_0506)),
            (outer(FieldKind::Ipv4TimeToLive), Some(64)),
            (outer(FieldKind::Ipv6Source), None),
            (outer(FieldKind::Protocol), Some(6)),
            (outer(FieldKind::Dscp), Some(46)),
            (outer(FieldKind::Fragment), Some(FRAGMENT_NONE)),
            (outer(FieldKind::TcpSource), Some(80)),
            (outer(FieldKind::TcpDestination), Some(8080)),
            (outer(FieldKind::TcpFlags), Some(0x12)),
            (outer(FieldKind::TransportSource), Some(80)),
            (outer(FieldKind::TransportDestination), Some(8080)),
            (outer(FieldKind::UdpSource), None),
            (inner(FieldKind::IpVersion), None),
        ],
    );
    let packet = [ethernet(0x86dd), ipv6(58), vec![128, 7, 0, 0]].concat();
    assert_fields(
        &packet,
        [
            (outer(FieldKind::VlanId), None),
            (outer(FieldKind::IpVersion), Some(6)),
            (outer(FieldKind::Ipv6Source), Some(0xfd00 << 112 | 1)),
            (outer(FieldKind::Ipv6Destination), Some(0xfd00 << 112 | 2)),
            (outer(FieldKind::Ipv6HopLimit), Some(63)),
            (outer(FieldKind::Ipv6FlowLabel), Some(0x1_2345)),
            (outer(FieldKind::Dscp), Some(46)),
            (outer(FieldKind::Icmpv6Type), Some(128)),
            (outer(FieldKind::Icmpv6Code), Some(7)),
            (outer(FieldKind::IcmpType), None),
            (outer(FieldKind::TransportSource), None),
        ],
    );
}

#[test]
fn behind_ethernet_hooks_a_packet_starts_with_its_ip_header() {
    let packet = [ipv6(17), udp(53)].concat();
    let dissected = Packet::dissect(&packet, CGROUP, None);
    assert_eq!(dissected.field(outer(FieldKind::EtherType)), None);
    assert_eq!(dissected.field(outer(FieldKind::Length)), Some(48));
    assert_eq!(dissected.field(outer(FieldKind::UdpDestination)), Some(53));
    for start in [0x55, 0x35, 0x00] {
        let packet = [vec![start], ipv4(17)[1..].to_vec(), udp(53)].concat();
        assert_eq!(Packet::dissect(&packet, CGROUP, None).field(outer(FieldKind::IpVersion)), None);
    }
    assert_eq!(Packet::dissect(&[], CGROUP, None).field(outer(FieldKind::Length)), Some(0));
}

/// Each header is there if its bytes are, of the transport protocols as far as its fields go.
#[test]
fn a_header_that_is_cut_short_is_absent() {
    let packet = [ethernet(0x8100), tag(1, 0x0800), ipv4(17), udp(4789), vxlan(8), ethernet(0x86dd), ipv6(6), tcp(2)];
    let packet = packet.concat();
    let needs = [
        (outer(FieldKind::Length), 0),
        (outer(FieldKind::EtherType), 14),
        (outer(FieldKind::VlanId), 18),
        (outer(FieldKind::Ipv4Source), 38),
        (outer(FieldKind::UdpSource), 42),
        (outer(FieldKind::VxlanVni), 54),
        (inner(FieldKind::EtherSource), 68),
        (inner(FieldKind::Ipv6Source), 108),
        (inner(FieldKind::TcpFlags), 122),
    ];
    for len in 0..=packet.len() {
        for (which, needed) in needs {
            assert_eq!(field(&packet[..len], which).is_some(), len >= needed, "{which:?} in {len} bytes");
        }
    }
    for (protocol, header_len) in [(1, 2), (6, 14), (17, 4)] {
        let packet = [ethernet(0x0800), ipv4(protocol), vec![0; header_len]].concat();
        let there = |packet| {
            [FieldKind::IcmpCode, FieldKind::TcpFlags, FieldKind::UdpSource]
                .iter()
                .any(|kind| field(packet, outer(*kind)).is_some())
        };
        assert!(there(&packet) && !there(&packet[..packet.len() - 1]), "protocol {protocol}");
    }
}

#[test]
fn two_vlan_tags_are_passed_and_nothing_is_behind_a_third() {
    let tags = |count: usize| {
        let mut packet = ethernet(0x88a8);
        for number in 1..=count {
            packet.extend(tag(number as u16, if number == count { 0x0800 } else { 0x8100 }));
        }
        packet.extend(ipv4(6));
        packet
    };
    let source = outer(FieldKind::Ipv4Source);
    assert!(field(&tags(1), source).is_some() && field(&tags(2), source).is_some());
    assert_fields(
        &tags(3),
        [
            (source, None),
            (outer(FieldKind::VlanId), Some(1)),
            (outer(FieldKind::EtherType), Some(0x8100)),
            (outer(FieldKind::EtherSource), Some(0x0200_0000_0002)),
        ],
    );
    let cut = &tags(2)[..21];
    assert_fields(
        cut,
        [(outer(FieldKind::VlanId), Some(1)), (outer(FieldKind::EtherType), Some(0x8100)), (source, None)],
    );
    assert_fields(&cut[..17], [(outer(FieldKind::VlanId), None), (outer(FieldKind::EtherType), Some(0x88a8))]);
}

#[test]
fn a_tag_that_the_kernel_has_taken_out_is_the_outermost() {
    let packet = [ethernet(0x8100), tag(7, 0x8100), tag(8, 0x0800), ipv4(6)].concat();
    let taken_out = Packet::dissect(&packet, TC, Some(0x6009));
    assert_eq!(taken_out.field(outer(FieldKind::VlanId)), Some(9));
    assert_eq!(taken_out.field(outer(FieldKind::VlanPriority)), Some(3));
    assert!(taken_out.field(outer(FieldKind::Ipv4Source)).is_some());
    assert_eq!(Packet::dissect(&packet, TC, None).field(outer(FieldKind::VlanId)), Some(7));
}

#[test]
fn an_ipv4_header_has_its_version_its_options_and_all_of_its_bytes() {
    let with_first = |first: u8| [ethernet(0x0800), vec![first], ipv4(17)[1..].to_vec(), udp(53), vec![0; 40]].concat();
    for first in [0x44, 0x40, 0x65, 0x05] {
        assert_eq!(field(&with_first(first), outer(FieldKind::IpVersion)), None, "{first:#x}");
    }
    let options = with_first(0x46);
    assert_eq!(field(&options, outer(FieldKind::UdpDestination)), Some(0), "behind 4 bytes of options");
    assert_eq!(field(&options[..37], outer(FieldKind::IpVersion)), None);
    assert_eq!(field(&options[..38], outer(FieldKind::IpVersion)), Some(4));
}

#[test]
fn as_many_extension_headers_are_passed_as_fit_into_1500_bytes() {
    let chain = |count: usize| {
        let mut packet = [ethernet(0x86dd), ipv6(if count == 0 { 17 } else { 60 })].concat();
        for number in 1..=count {
            packet.extend(extension(if number == count { 17 } else { 60 }, 0));
        }
        packet.extend(udp(53));
        packet
    };
    for count in [0, 1, 6, 7, 181, 182] {
        assert_fields(
            &chain(count),
            [
                (outer(FieldKind::Protocol), Some(17)),
                (outer(FieldKind::UdpDestination), Some(53)),
                (outer(FieldKind::Incomplete), None),
            ],
        );
    }
    assert_fields(
        &chain(183),
        [
            (outer(FieldKind::Protocol), Some(60)),
            (outer(FieldKind::UdpDestination), None),
            (outer(FieldKind::Incomplete), Some(1)),
        ],
    );
}

/// A chain of `bytes` bytes of extension headers, and what follows it.
fn behind_extensions(bytes: usize, protocol: u8, behind: &[u8]) -> Vec<u8> {
    let mut packet = ipv6(60);
    let mut left = bytes / 8;
    while left > 0 {
        let units = left.min(256);
        left -= units;
        packet.extend(extension(if left == 0 { protocol } else { 60 }, (units - 1) as u8));
    }
    packet.extend(behind);
    packet
}

#[test]
fn headers_are_read_up_to_an_offset() {
    let ports = |bytes| {
        let packet = behind_extensions(bytes, 17, &udp(53));
        let packet = Packet::dissect(&packet, CGROUP, None);
        let protocol = packet.field(outer(FieldKind::Protocol));
        (protocol, packet.field(outer(FieldKind::UdpDestination)), packet.field(outer(FieldKind::Incomplete)).is_some())
    };
    let last = OFFSET_MAX - ipv6(60).len();
    for bytes in [16 * 2048, 31 * 2048, last] {
        assert_eq!(ports(bytes), (Some(17), Some(53), false), "behind {bytes} bytes");
    }
    assert_eq!(ports(last + 8), (Some(17), None, true));
    assert_eq!(ports(32 * 2048), (Some(17), None, true));
    // the last extension header starts too far itself
    assert_eq!(ports(33 * 2048), (Some(60), None, true));
}

#[test]
fn tunnels_are_read_up_to_the_same_offset() {
    let options = [&[1, 2, 0x80, 1][..], &[0, 0, 0, 7]].concat();
    let tunnel = [udp(6081), geneve(0x0800, &options), ipv4(17), udp(53)].concat();
    let read = |geneve_at: usize| {
        let packet = behind_extensions(geneve_at - 8 - ipv6(60).len(), 17, &tunnel);
        let packet = Packet::dissect(&packet, CGROUP, None);
        [outer(FieldKind::GeneveVni), outer(OPTION), inner(FieldKind::Ipv4TimeToLive), inner(FieldKind::UdpDestination)]
            .map(|field| packet.field(field).is_some())
    };
    for (back, expected) in [
        (40, [true; 4]),
        (32, [true, true, true, false]),
        (16, [true, true, true, false]),
        // the option's data starts 12 bytes behind Geneve's header, and the inner header 16
        (8, [true, false, false, false]),
        (0, [true, false, false, false]),
    ] {
        assert_eq!(read(OFFSET_MAX - back), expected, "Geneve {back} bytes in front of the last");
    }
    assert_eq!(read(OFFSET_MAX + 8), [true, false, false, false], "the ports are in time");
    assert_eq!(read(OFFSET_MAX + 16), [false; 4]);
}

/// nftables reads `th` in whatever follows the IP header.
#[test]
fn every_protocol_with_ports_has_them() {
    for protocol in [33, 132, 136] {
        for network in [[ethernet(0x0800), ipv4(protocol)].concat(), [ethernet(0x86dd), ipv6(protocol)].concat()] {
            for len in [0, 3, 4, 12] {
                let packet = [network.clone(), tcp(2)[..len].to_vec()].concat();
                assert_fields(
                    &packet,
                    [
                        (outer(FieldKind::Protocol), Some(protocol.into())),
                        (outer(FieldKind::TransportSource), (len >= 4).then_some(80)),
                        (outer(FieldKind::TransportDestination), (len >= 4).then_some(8080)),
                        (outer(FieldKind::TcpDestination), None),
                        (outer(FieldKind::UdpDestination), None),
                        (outer(FieldKind::Incomplete), (len < 4).then_some(1)),
                    ],
                );
            }
        }
    }
}

#[test]
fn a_small_first_fragment_has_ports_and_no_flags() {
    for len in [0, 3, 4, 8, 13, 14, 16, 20] {
        for network in [[ethernet(0x0800), ipv4(6)].concat(), [ethernet(0x86dd), ipv6(6)].concat()] {
            let packet = [network, tcp(2)[..len].to_vec()].concat();
            assert_fields(
                &packet,
                [
                    (outer(FieldKind::TcpDestination), (len >= 4).then_some(8080)),
                    (outer(FieldKind::TransportSource), (len >= 4).then_some(80)),
                    (outer(FieldKind::TcpFlags), (len >= 14).then_some(2)),
                    (outer(FieldKind::Incomplete), (len < 14).then_some(1)),
                ],
            );
        }
    }
    for len in [3, 4, 7] {
        let packet = [ethernet(0x0800), ipv4(17), udp(4789)[..len].to_vec()].concat();
        assert_fields(
            &packet,
            [
                (outer(FieldKind::UdpDestination), (len >= 4).then_some(4789)),
                (outer(FieldKind::Incomplete), (len < 4).then_some(1)),
                (outer(FieldKind::VxlanVni), None),
            ],
        );
    }
}

#[test]
fn a_packet_is_incomplete_if_its_headers_could_not_be_read() {
    let mut later = ipv4(6);
    later[7] = 1;
    let tags = |count| (0..count).map(|_| tag(5, 0x8100)).collect::<Vec<_>>().concat();
    let bad_version = [&[0x55], &ipv4(17)[1..]].concat();
    for (what, packet, incomplete) in [
        ("no Ethernet header", ethernet(0x0800)[..13].to_vec(), true),
        ("ARP", [ethernet(0x0806), vec![0; 4]].concat(), false),
        ("two tags, then ARP", [ethernet(0x8100), tag(5, 0x8100), tag(5, 0x0806)].concat(), false),
        ("three tags", [ethernet(0x8100), tags(2)].concat(), true),
        ("a cut tag", [ethernet(0x8100), vec![0; 3]].concat(), true),
        ("a cut IPv4 header", [ethernet(0x0800), ipv4(17)[..19].to_vec()].concat(), true),
        ("a cut IPv6 header", [ethernet(0x86dd), ipv6(17)[..39].to_vec()].concat(), true),
        ("IPv4 of version 5", [ethernet(0x0800), bad_version, udp(53)].concat(), true),
        ("a later fragment", [ethernet(0x0800), later].concat(), false),
        ("a later fragment of IPv6", [ethernet(0x86dd), ipv6(44), fragment(60, 1, true)].concat(), false),
        ("a far UDP header", [ethernet(0x86dd), behind_extensions(32 * 2048, 17, &udp(53))].concat(), true),
        ("a cut extension header", [ethernet(0x86dd), ipv6(60), extension(17, 0)[..7].to_vec()].concat(), true),
        ("ESP", [ethernet(0x0800), ipv4(50)].concat(), false),
        ("AH in IPv4", [ethernet(0x0800), ipv4(51)].concat(), false),
        ("ICMP in IPv6", [ethernet(0x86dd), ipv6(1)].concat(), false),
        ("a cut ICMP header", [ethernet(0x0800), ipv4(1), vec![8]].concat(), true),
        ("ICMP", [ethernet(0x0800), ipv4(1), vec![8, 0]].concat(), false),
        ("UDP", [ethernet(0x86dd), ipv6(17), udp(53)].concat(), false),
    ] {
        assert_eq!(field(&packet, outer(FieldKind::Incomplete)).is_some(), incomplete, "{what}");
    }
}

#[test]
fn extension_headers_have_the_lengths_they_say() {
    let authentication = [vec![17, 4], vec![0xee; 22]].concat();
    for (kind, header) in [
        (0, extension(17, 3)),
        (43, extension(17, 1)),
        (60, extension(17, 0)),
        (51, authentication),
        (44, fragment(17, 0, false)),
    ] {
        let packet = [ethernet(0x86dd), ipv6(kind), header, udp(53)].concat();
        assert_eq!(field(&packet, outer(FieldKind::UdpDestination)), Some(53), "extension header {kind}");
        let cut = &packet[..packet.len() - 9];
        assert_fields(
            cut,
            [(outer(FieldKind::Protocol), Some(kind.into())), (outer(FieldKind::Ipv6HopLimit), Some(63))],
        );
    }
    let unknown = [ethernet(0x86dd), ipv6(135), extension(17, 0), udp(53)].concat();
    assert_eq!(field(&unknown, outer(FieldKind::Protocol)), Some(135));
}

#[test]
fn nothing_is_behind_the_ip_header_of_a_later_fragment() {
    for (flags_offset, expected) in [
        (0x0000, FRAGMENT_NONE),
        (0x4000, FRAGMENT_NONE),
        (0x2000, FRAGMENT_FIRST),
        (0x2001, FRAGMENT_LATER),
        (0x0001, FRAGMENT_LATER),
    ] {
        for protocol in [17, 47] {
            let mut header = ipv4(protocol);
            header[6..8].copy_from_slice(&u16::to_be_bytes(flags_offset));
            let packet = [ethernet(0x0800), header, udp(53)].concat();
            let behind = if protocol == 17 { FieldKind::UdpSource } else { FieldKind::GreProtocol };
            // The UDP header's first bytes are no GRE header.
            let packet = if protocol == 47 { [&packet[..34], &[0, 0, 8, 0]].concat() } else { packet };
            assert_eq!(field(&packet, outer(FieldKind::Fragment)), Some(expected));
            assert_eq!(field(&packet, outer(behind)).is_some(), expected != FRAGMENT_LATER, "{flags_offset:#x}");
        }
    }
    let first = [ethernet(0x86dd), ipv6(44), fragment(60, 0, true), extension(17, 0), udp(53)].concat();
    assert_fields(
        &first,
        [(outer(FieldKind::Fragment), Some(FRAGMENT_FIRST)), (outer(FieldKind::UdpDestination), Some(53))],
    );
    let later = [ethernet(0x86dd), ipv6(44), fragment(60, 1, true), extension(17, 0), udp(53)].concat();
    assert_fields(
        &later,
        [
            (outer(FieldKind::Fragment), Some(FRAGMENT_LATER)),
            (outer(FieldKind::Protocol), Some(60)),
            (outer(FieldKind::UdpDestination), None),
        ],
    );
    let twice = [ethernet(0x86dd), ipv6(44), fragment(44, 0, true), fragment(17, 0, false), udp(53)].concat();
    assert_eq!(field(&twice, outer(FieldKind::Fragment)), Some(FRAGMENT_FIRST), "the one that says the most counts");
}

#[test]
fn icmp_belongs_to_ipv4_and_icmpv6_to_ipv6() {
    let message = vec![8, 3, 0, 0];
    assert_eq!(field(&[ethernet(0x0800), ipv4(1), message.clone()].concat(), outer(FieldKind::IcmpType)), Some(8));
    for packet in
        [[ethernet(0x0800), ipv4(58), message.clone()].concat(), [ethernet(0x86dd), ipv6(1), message.clone()].concat()]
    {
        assert_fields(&packet, [(outer(FieldKind::IcmpType), None), (outer(FieldKind::Icmpv6Type), None)]);
    }
}

#[test]
fn vxlan_has_a_network_and_an_ethernet_header() {
    let tunnel =
        |flags| [udp_in_ipv4(4789), vxlan(flags), ethernet(0x8100), tag(5, 0x86dd), ipv6(17), udp(4789), vxlan(8)];
    let packet = tunnel(0x08).concat();
    assert_fields(
        &packet,
        [
            (outer(FieldKind::VxlanVni), Some(1001)),
            (inner(FieldKind::EtherType), Some(0x86dd)),
            (inner(FieldKind::VlanId), Some(5)),
            (inner(FieldKind::UdpDestination), Some(4789)),
            (outer(FieldKind::VlanId), None),
            (outer(FieldKind::GeneveVni), None),
        ],
    );
    assert_fields(&tunnel(0xf7).concat(), [(outer(FieldKind::VxlanVni), None), (inner(FieldKind::EtherType), None)]);
    let elsewhere = [udp_in_ipv4(4788), vxlan(8), ethernet(0x0800)].concat();
    assert_eq!(field(&elsewhere, outer(FieldKind::VxlanVni)), None);
}

#[test]
fn geneve_carries_what_its_protocol_says() {
    for (protocol, inside, kind) in [
        (0x6558, ethernet(0x0800), FieldKind::EtherType),
        (0x0800, ipv4(6), FieldKind::Ipv4Source),
        (0x86dd, ipv6(6), FieldKind::Ipv6Source),
    ] {
        let packet = [udp_in_ipv4(6081), geneve(protocol, &[1, 2, 0x80, 0]), inside].concat();
        assert_fields(
            &packet,
            [(outer(FieldKind::GeneveVni), Some(2002)), (outer(FieldKind::GeneveProtocol), Some(protocol.into()))],
        );
        assert!(field(&packet, inner(kind)).is_some(), "{protocol:#x}");
    }
    let other = [udp_in_ipv4(6081), geneve(0x0806, &[]), ethernet(0x0800)].concat();
    assert_fields(&other, [(outer(FieldKind::GeneveVni), Some(2002)), (inner(FieldKind::EtherType), None)]);
    let mut version_1 = [udp_in_ipv4(6081), geneve(0x6558, &[]), ethernet(0x0800)].concat();
    version_1[42] |= 0x40;
    assert_eq!(field(&version_1, outer(FieldKind::GeneveVni)), None);
    let cut = [udp_in_ipv4(6081), geneve(0x6558, &[0; 8])].concat();
    assert_eq!(field(&cut[..cut.len() - 1], outer(FieldKind::GeneveVni)), None, "its options are not all there");
}

#[test]
fn a_geneve_option_is_the_first_of_its_kind_among_eight() {
    let option =
        |options: &[&[u8]]| field(&[udp_in_ipv4(6081), geneve(0x6558, &options.concat())].concat(), outer(OPTION));
    let wanted: &[u8] = &[1, 2, 0x80, 0xe1, 0, 0, 0, 7];
    let again: &[u8] = &[1, 2, 0x80, 1, 0, 0, 0, 8];
    let other: &[u8] = &[1, 2, 0x81, 2, 9, 9, 9, 9, 9, 9, 9, 9];
    let empty: &[u8] = &[1, 2, 0x80, 0];
    assert_eq!(option(&[other, wanted, again]), Some(7));
    assert_eq!(option(&[other]), None);
    assert_eq!(option(&[empty, wanted]), None, "the first has no data");
    assert_eq!(option(&[&[1, 2, 0x80, 2, 0, 0, 0, 7, 0, 0, 0, 8]]), Some(7), "longer data counts with its start");
    let seven = [other; 7];
    assert_eq!(option(&[&seven[..], &[wanted]].concat()), Some(7));
    assert_eq!(option(&[&seven[..], &[other, wanted]].concat()), None, "it is the ninth");
    assert_eq!(option(&[&[1, 2, 0x80, 2, 0, 0, 0, 7]]), None, "it is longer than what is left");
    assert_eq!(option(&[&[0, 0, 0, 31], wanted]), None, "one in front of it is");
}

#[test]
fn gre_has_the_words_its_flags_say() {
    let gre = |flags: u16, words: usize, protocol: u16| {
        let mut header = tag(flags, protocol);
        for word in 1..=words {
            header.extend([0, 0, 0, word as u8]);
        }
        [ethernet(0x0800), ipv4(47), header, ipv4(6), tcp(2)].concat()
    };
    let there = outer(FieldKind::GreProtocol);
    let key = outer(FieldKind::GreKey);
    for (flags, words, expected) in [
        (0x0000, 0, None),
        (0x8000, 1, None),
        (0x1000, 1, None),
        (0x2000, 1, Some(1)),
        (0xa000, 2, Some(2)),
        (0x3000, 2, Some(1)),
        (0xb000, 3, Some(2)),
        (0x0ff8, 0, None),
    ] {
        let packet = gre(flags, words, 0x0800);
        assert_fields(&packet, [(there, Some(0x0800)), (key, expected), (inner(FieldKind::TcpFlags), Some(2))]);
        let cut = &packet[..34 + 4 + words * 4 - 1];
        assert_fields(cut, [(there, None), (key, None)]);
    }
    for flags in [0x4000, 0x0001, 0x0007] {
        assert_fields(&gre(flags, 0, 0x0800), [(there, None), (inner(FieldKind::TcpFlags), None)]);
    }
    let other = gre(0, 0, 0x880b);
    assert_fields(&other, [(there, Some(0x880b)), (inner(FieldKind::IpVersion), None)]);
}

#[test]
fn a_flow_is_told_by_addresses_protocol_and_ports() {
    let packet = [udp_in_ipv4(4789), vxlan(8), ethernet(0x86dd), ipv6(58), vec![128, 0, 0, 0]].concat();
    let dissected = Packet::dissect(&packet, Hook::Xdp, None);
    let tuple = dissected.five_tuple(Layer::Outer).unwrap();
    assert_eq!((tuple.version, tuple.protocol, tuple.source_port, tuple.destination_port), (4, 17, 0x1234, 4789));
    assert_eq!((tuple.source, tuple.destination), (0x0a01_0203, 0x0a04_0506));
    let tuple = dissected.five_tuple(Layer::Inner).unwrap();
    assert_eq!((tuple.version, tuple.protocol, tuple.source_port, tuple.destination_port), (6, 58, 0, 0));
    assert_eq!(Packet::dissect(&packet[..68], Hook::Xdp, None).five_tuple(Layer::Inner), None);
}

/// Packets that etherparse puts together are taken apart into what it was told.
#[test]
fn packets_of_another_library_are_read_as_they_were_written() {
    let mut rng = Rng::with_seed(1);
    for _ in 0..2000 {
        let (source, destination): (u128, u128) = (rng.u128(..), rng.u128(..));
        let macs = [rng.u64(..) >> 16, rng.u64(..) >> 16];
        let mac = |number: u64| number.to_be_bytes()[2..].try_into().unwrap();
        let mut expected =
            vec![(FieldKind::EtherSource, macs[0].into()), (FieldKind::EtherDestination, macs[1].into())];
        let builder = PacketBuilder::ethernet2(mac(macs[0]), mac(macs[1]));

        let version_4 = rng.bool();
        let (dscp, time_to_live) = (rng.u8(..64), rng.u8(..));
        let ip = if version_4 {
            let addresses = [(source as u32).to_be_bytes(), (destination as u32).to_be_bytes()];
            let mut header = Ipv4Header::new(0, time_to_live, IpNumber::UDP, addresses[0], addresses[1]).unwrap();
            header.dscp = dscp.try_into().unwrap();
            header.options = vec![1; rng.usize(..=10) * 4].as_slice().try_into().unwrap();
            header.more_fragments = rng.bool();
            expected.extend([
                (FieldKind::Ipv4Source, u128::from(source as u32)),
                (FieldKind::Ipv4Destination, u128::from(destination as u32)),
                (FieldKind::Ipv4TimeToLive, time_to_live.into()),
                (FieldKind::Fragment, u128::from(header.more_fragments)),
            ]);
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        } else {
            let flow_label = rng.u32(..1 << 20);
            let raw = |rng: &mut Rng| {
                let len = rng.usize(..4) * 8 + 6;
                rng.bool().then(|| Ipv6RawExtHeader::new_raw(IpNumber::UDP, &vec![0; len]).unwrap())
            };
            let more = rng.bool();
            let extensions = Ipv6Extensions {
                hop_by_hop_options: raw(&mut rng),
                destination_options: raw(&mut rng),
                routing: raw(&mut rng)
                    .map(|routing| Ipv6RoutingExtensions { routing, final_destination_options: raw(&mut rng) }),
                fragment: rng
                    .bool()
                    .then(|| Ipv6FragmentHeader::new(IpNumber::UDP, IpFragOffset::ZERO, more, rng.u32(..))),
                auth: None,
            };
            expected.extend([
                (FieldKind::Ipv6Source, source),
                (FieldKind::Ipv6Destination, destination),
                (FieldKind::Ipv6HopLimit, time_to_live.into()),
                (FieldKind::Ipv6FlowLabel, flow_label.into()),
                (FieldKind::Fragment, u128::from(more && extensions.fragment.is_some())),
            ]);
            let header = Ipv6Header {
                traffic_class: dscp << 2,
                flow_label: flow_label.try_into().unwrap(),
                hop_limit: time_to_live,
                source: source.to_be_bytes(),
                destination: destination.to_be_bytes(),
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(header, extensions)
        };
        expected.push((FieldKind::Dscp, dscp.into()));
        let builder = match rng.u32(..3) {
            0 => builder.ip(ip),
            1 => {
                let (id, priority) = (rng.u16(..4096), rng.u8(..8));
                expected.extend([(FieldKind::VlanId, id.into()), (FieldKind::VlanPriority, priority.into())]);
                let header = SingleVlanHeader {
                    pcp: priority.try_into().unwrap(),
                    drop_eligible_indicator: rng.bool(),
                    vlan_id: id.try_into().unwrap(),
                    ether_type: EtherType::IPV4,
                };
                builder.vlan(VlanHeader::Single(header)).ip(ip)
            }
            _ => {
                let ids = [rng.u16(..4096), rng.u16(..4096)];
                expected.push((FieldKind::VlanId, ids[0].into()));
                builder.double_vlan(ids[0].try_into().unwrap(), ids[1].try_into().unwrap()).ip(ip)
            }
        };
        let ports = [rng.u16(..), rng.u16(..4000)];
        let mut packet = Vec::new();
        match rng.u32(..3) {
            0 => {
                expected.extend([
                    (FieldKind::UdpSource, ports[0].into()),
                    (FieldKind::UdpDestination, ports[1].into()),
                    (FieldKind::Protocol, 17),
                ]);
                builder.udp(ports[0], ports[1]).write(&mut packet, &[0; 9]).unwrap();
            }
            1 => {
                expected.extend([
                    (FieldKind::TcpSource, ports[0].into()),
                    (FieldKind::TcpDestination, ports[1].into()),
                    (FieldKind::TcpFlags, 0x12),
                    (FieldKind::Protocol, 6),
                ]);
                builder.tcp(ports[0], ports[1], 1, 2).syn().ack(3).write(&mut packet, &[0; 9]).unwrap();
            }
            _ => {
                let (kind, code) = (rng.u8(128..), rng.u8(..));
                if version_4 {
                    expected.extend([(FieldKind::IcmpType, kind.into()), (FieldKind::IcmpCode, code.into())]);
                    builder.icmpv4_raw(kind, code, [0; 4]).write(&mut packet, &[]).unwrap();
                } else {
                    expected.extend([(FieldKind::Icmpv6Type, kind.into()), (FieldKind::Icmpv6Code, code.into())]);
                    builder.icmpv6_raw(kind, code, [0; 4]).write(&mut packet, &[]).unwrap();
                }
            }
        }
        for (kind, value) in expected {
            assert_eq!(field(&packet, outer(kind)), Some(value), "{kind:?} of {packet:x?}");
        }
    }
}
