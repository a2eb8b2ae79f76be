//! What the kernel's stack does with a packet between its hooks, as far as the packet itself says: what it drops, where
//! it cuts off padding, what it changes.
//!
//! | between | what is looked at | where |
//! |---|---|---|
//! | `tc ingress` and `netfilter prerouting` | VLAN tags, the frame's address | `__netif_receive_skb_core` in net/core/dev.c, `eth_type_trans` in net/ethernet/eth.c |
//! | | the IP header, lengths, IPv4's checksum, hop-by-hop options | `ip_rcv_core` in net/ipv4/ip_input.c, `ip6_rcv_core` in net/ipv6/ip6_input.c |
//! | `netfilter prerouting` and `input` | addresses that no packet may have, IPv4 options, fragments | `ip_route_input_slow` in net/ipv4/route.c, `ip_rcv_options`, `ip_local_deliver` |
//! | `netfilter prerouting` and `forward` | the same, and the time to live | `ip_forward` in net/ipv4/ip_forward.c, `ip6_forward` in net/ipv6/ip6_output.c |
//!
//! Routes, reverse path filters, IPsec and sockets are not looked at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::checksum::Sum16BitWords;
use packet_traits::NetfilterFamily;

use super::{
    frame::{Datagram, Frame, IPV4_LEN, IPV6_LEN, NoIp, is_group},
    host::{Host, Vlan},
    options::{self, Fault},
};

/// Largest length that an IP header can say; longer packets are merged ones, whose headers say 0.
pub(super) const IP_LENGTH_MAX: usize = 65535;
const PROTOCOL_HOP_BY_HOP: u8 = 0;
const PROTOCOL_IGMP: u8 = 2;

/// Why a packet does not come to a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    /// It never does.
    Never(String),
    /// Whether it does, or as what, is not known.
    Unknown(String),
}

/// That the kernel drops a packet, in which function.
fn dropped(why: impl AsRef<str>, function: &str) -> Absent {
    Absent::Never(format!("the kernel drops it before: {} ({function})", why.as_ref()))
}

/// That too little of a packet was captured.
fn cut() -> Absent {
    Absent::Unknown("the capture ends in front of the end of its IP header".to_owned())
}

/// A frame's IP packet, or why the IP stack gets none.
pub(crate) fn ip<'a>(frame: &Frame<'a>) -> Result<Datagram<'a>, Absent> {
    frame.ip.map_err(|no_ip| match no_ip {
        NoIp::Other => Absent::Never("the packet is not IP".to_owned()),
        NoIp::Cut => cut(),
    })
}

/// The interface that the stack takes a received frame from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    /// The VLAN device, if it is one and known.
    pub(crate) vlan: Option<String>,
    /// What is taken for granted.
    pub(crate) note: Option<String>,
}

/// Takes in a frame: its VLAN tags and its destination. Nothing is known of the receiver without a host.
pub(crate) fn receive_frame(frame: &Frame<'_>, host: Option<&Host>, interface: Option<&str>) -> Result<Device, Absent> {
    let mut device = Device::default();
    // an index says nothing of the name
    let mut below = interface.filter(|name| name.parse::<u32>().is_err()).map(str::to_owned);
    // tags with id 0 only carry a priority
    for id in frame.vlans.iter().copied().filter(|id| *id != 0) {
        let Some(host) = host else {
            device.note = Some(format!("assumes a device for VLAN {id}, which is the packet's `iif` from here on"));
            break;
        };
        let Some(vlans) = &host.vlans else {
            device.note = Some(format!("assumes a device for VLAN {id}; only root can list them"));
            break;
        };
        let is_given = |vlan: &Vlan| device.vlan.is_none() && interface == Some(vlan.name.as_str());
        let is_on = |vlan: &Vlan| below.as_ref().is_none_or(|below| *below == vlan.below) || is_given(vlan);
        let found = vlans.iter().find(|vlan| vlan.id == id && is_on(vlan));
        let Some(vlan) = found else {
            let on = below.map(|below| format!(" on {below}")).unwrap_or_default();
            let why = format!("there is no device for VLAN {id}{on}, though a bridge may take it");
            return Err(dropped(why, "__netif_receive_skb_core"));
        };
        device.vlan = Some(vlan.name.clone());
        below = Some(vlan.name.clone());
    }
    if let (Some(host), Some((destination, _))) = (host, frame.macs)
        && !frame.is_of_loopback()
        && !is_group(destination)
        && host.owner_of_mac(destination).is_none()
    {
        let [a, b, c, d, e, f] = destination;
        let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        return Err(dropped(
            format!("no interface of this host has its MAC address, {mac}"),
            "eth_type_trans, ip_rcv_core",
        ));
    }
    Ok(device)
}

/// Takes in an IP packet: its bytes without padding, or why it is dropped. IPv6 addresses of the host itself may come by
/// the loopback interface only.
pub(crate) fn receive_ip<'a>(ip: &Datagram<'a>, is_loopback: bool) -> Result<&'a [u8], Absent> {
    let total = match ip.family {
        NetfilterFamily::Ipv4 => check_ipv4(ip)?,
        NetfilterFamily::Ipv6 => check_ipv6(ip, is_loopback)?,
    };
    Ok(trimmed(ip, total))
}

/// A packet as this host's stack has made it: a capture of its frame may have padding behind it.
pub(crate) fn sent_ip<'a>(ip: &Datagram<'a>) -> &'a [u8] {
    let header = if ip.family == NetfilterFamily::Ipv4 { IPV4_LEN } else { IPV6_LEN };
    match total(ip) {
        Some(total) if total >= header => trimmed(ip, total),
        // it is not the stack that has made it
        _ => ip.bytes,
    }
}

/// How long the packet's header says that it is; `None` if that was not captured.
pub(crate) fn total(ip: &Datagram<'_>) -> Option<usize> {
    match ip.family {
        NetfilterFamily::Ipv4 => ip.bytes.first_chunk::<IPV4_LEN>().map(|header| ipv4_total(header, ip.length)),
        NetfilterFamily::Ipv6 => ip.bytes.first_chunk::<IPV6_LEN>().map(|header| ipv6_total(header, ip.length)),
    }
}

fn trimmed<'a>(ip: &Datagram<'a>, total: usize) -> &'a [u8] {
    &ip.bytes[..total.min(ip.bytes.len())]
}

pub(super) fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// `iph_totlen` in include/linux/ip.h.
fn ipv4_total(header: &[u8; IPV4_LEN], length: usize) -> usize {
    match number(&header[2..4]) {
        0 if length > IP_LENGTH_MAX => length,
        total => total,
    }
}

/// `ipv6_payload_len` in include/linux/ipv6.h, and `ip6_rcv_core` of jumbo payloads.
fn ipv6_total(header: &[u8; IPV6_LEN], length: usize) -> usize {
    match number(&header[4..6]) {
        0 if length > IP_LENGTH_MAX || header[6] == PROTOCOL_HOP_BY_HOP => length,
        payload => IPV6_LEN + payload,
    }
}

/// `ip_rcv_core`.
fn check_ipv4(ip: &Datagram<'_>) -> Result<usize, Absent> {
    const FUNCTION: &str = "ip_rcv_core";
    if ip.length < IPV4_LEN {
        return Err(dropped("it is shorter than an IPv4 header", FUNCTION));
    }
    let header = ip.bytes.first_chunk::<IPV4_LEN>().ok_or_else(cut)?;
    let (version, header_len) = (header[0] >> 4, usize::from(header[0] & 0xf) * 4);
    if version != 4 {
        return Err(dropped(format!("its IP header has version {version}"), FUNCTION));
    }
    if header_len < IPV4_LEN {
        return Err(dropped(format!("bad IPv4 header length, {header_len} bytes"), FUNCTION));
    }
    if header_len > ip.length {
        let why = format!("its IPv4 header has {header_len} bytes, but only {} are there", ip.length);
        return Err(dropped(why, FUNCTION));
    }
    let whole = ip.bytes.get(..header_len).ok_or_else(cut)?;
    if !has_right_checksum(whole) {
        return Err(dropped("bad IPv4 checksum", FUNCTION));
    }
    let total = ipv4_total(header, ip.length);
    if total > ip.length {
        let why = format!("its IPv4 total length is {total} bytes, but only {} are there", ip.length);
        return Err(dropped(why, FUNCTION));
    }
    if total < header_len {
        return Err(dropped(format!("its IPv4 total length, {total} bytes, is less than its header's"), FUNCTION));
    }
    Ok(total)
}

/// Whether a header's one's complement sum is right (RFC 1071; `ip_fast_csum`).
fn has_right_checksum(header: &[u8]) -> bool {
    Sum16BitWords::new().add_slice(header).ones_complement() == 0
}

/// `ip6_rcv_core`, and `ipv6_parse_hopopts` in net/ipv6/exthdrs.c as far as lengths go.
fn check_ipv6(ip: &Datagram<'_>, is_loopback: bool) -> Result<usize, Absent> {
    const FUNCTION: &str = "ip6_rcv_core";
    if ip.length < IPV6_LEN {
        return Err(dropped("it is shorter than an IPv6 header", FUNCTION));
    }
    let header = ip.bytes.first_chunk::<IPV6_LEN>().ok_or_else(cut)?;
    let version = header[0] >> 4;
    if version != 6 {
        return Err(dropped(format!("its IP header has version {version}"), FUNCTION));
    }
    let Some((IpAddr::V6(source), IpAddr::V6(destination))) = ip.addresses() else { return Err(cut()) };
    if !is_loopback && (source.is_loopback() || destination.is_loopback()) {
        return Err(dropped("it has the loopback address", FUNCTION));
    }
    let scope = destination.octets()[1] & 0xf;
    if destination.is_multicast() && (scope == 0 || scope == 1 && !is_loopback) {
        return Err(dropped(format!("{destination} is a multicast address of scope {scope}"), FUNCTION));
    }
    if source.is_multicast() {
        return Err(dropped(format!("its source, {source}, is a multicast address"), FUNCTION));
    }
    let total = ipv6_total(header, ip.length);
    if total > ip.length {
        let (payload, there) = (total - IPV6_LEN, ip.length - IPV6_LEN);
        let why = format!("its IPv6 payload length is {payload} bytes, but only {there} are there");
        return Err(dropped(why, FUNCTION));
    }
    if header[6] == PROTOCOL_HOP_BY_HOP {
        const FUNCTION: &str = "ipv6_parse_hopopts";
        let options_len = ip.bytes.get(IPV6_LEN + 1).map_or(8, |len| (usize::from(*len) + 1) * 8);
        if IPV6_LEN + options_len > total {
            return Err(dropped("its hop-by-hop options do not end in the packet", FUNCTION));
        }
        // what was not captured is taken for right
        if let Some(whole) = ip.bytes.get(IPV6_LEN..IPV6_LEN + options_len) {
            let judged = options::hop_by_hop(whole, number(&header[4..6]), ip.length);
            judged.map_err(|why| dropped(why, FUNCTION))?;
        }
    }
    Ok(total)
}

/// Whether a packet gets from `netfilter prerouting` to the hooks behind the routing decision.
pub(crate) fn route(ip: &Datagram<'_>, is_loopback: bool, host: Option<&Host>) -> Result<(), Absent> {
    const FUNCTION: &str = "ip_route_input_slow";
    let Some((IpAddr::V4(source), IpAddr::V4(destination))) = ip.addresses() else { return Ok(()) };
    if source.is_multicast() || source.is_broadcast() {
        return Err(dropped(format!("{source} is not a valid source address"), FUNCTION));
    }
    let is_to_all = destination.is_broadcast() || source.is_unspecified() && destination.is_unspecified();
    if destination.is_multicast() {
        let is_local = destination.octets()[..3] == [224, 0, 0];
        let is_igmp = ip.bytes.get(9) == Some(&PROTOCOL_IGMP);
        if source.is_unspecified() && !is_local && !is_igmp {
            return Err(dropped(format!("{source} is not a valid source address"), "ip_mc_validate_source"));
        }
    } else if !is_to_all {
        // ipv4_is_zeronet in include/linux/in.h: the rest of 0.0.0.0/8 is as other addresses are
        if source.is_unspecified() {
            return Err(dropped(format!("{source} is not a valid source address"), FUNCTION));
        }
        if destination.is_unspecified() {
            return Err(dropped(format!("{destination} is not a valid destination address"), FUNCTION));
        }
    }
    if let (false, Some(address)) = (is_loopback, [destination, source].into_iter().find(Ipv4Addr::is_loopback)) {
        let why = format!("{address} is a loopback address, which the kernel takes only with route_localnet");
        return Err(dropped(why, FUNCTION));
    }
    if !is_loopback && host.is_some_and(|host| host.owner(source.into()).is_some()) {
        let why = format!("{source} is an address of this host, which the kernel takes only with accept_local");
        return Err(dropped(why, "fib_validate_source"));
    }
    let header_len = ip.bytes.first().map_or(0, |first| usize::from(first & 0xf) * 4);
    let options = ip.bytes.get(IPV4_LEN..header_len).unwrap_or_default();
    options::ipv4(options).map_err(|fault| match fault {
        Fault::Wrong(why) => dropped(why, "ip_rcv_options"),
        Fault::Unknown(why) => Absent::Unknown(why),
    })
}

/// A packet as `netfilter forward` sees it, or why it is not forwarded. Without padding, and one hop older: its time to
/// live is less by one, its checksum is left.
pub(crate) fn forward(
    frame: &Frame<'_>,
    ip: &Datagram<'_>,
    bytes: &[u8],
    host: Option<&Host>,
) -> Result<Vec<u8>, Absent> {
    let (function, limit_at) = match ip.family {
        NetfilterFamily::Ipv4 => ("ip_forward", 8),
        NetfilterFamily::Ipv6 => ("ip6_forward", 7),
    };
    if host.is_some_and(|host| !host.forwards(ip.family)) {
        let (family, setting) = match ip.family {
            NetfilterFamily::Ipv4 => ("IPv4", "net.ipv4.ip_forward"),
            NetfilterFamily::Ipv6 => ("IPv6", "net.ipv6.conf.all.forwarding"),
        };
        let function = if ip.family == NetfilterFamily::Ipv4 { "ip_route_input_slow" } else { function };
        return Err(dropped(format!("this host does not forward {family}, {setting} is 0"), function));
    }
    let Some((source, destination)) = ip.addresses() else { return Err(cut()) };
    if frame.macs.is_some_and(|(to, _)| is_group(to)) && !destination.is_multicast() {
        return Err(dropped("its frame has a multicast MAC address", function));
    }
    let mut bytes = bytes.to_vec();
    match bytes.get_mut(limit_at) {
        Some(limit @ 2..) => *limit -= 1,
        Some(limit) if ip.family == NetfilterFamily::Ipv4 => {
            return Err(dropped(format!("its TTL is {limit}"), function));
        }
        Some(limit) => return Err(dropped(format!("its hop limit is {limit}"), function)),
        None => return Err(cut()),
    }
    // which goes out by the interface it came in by (rt6_need_strict)
    let is_on_link = matches!(destination, IpAddr::V6(destination) if destination.is_unicast_link_local());
    if let IpAddr::V6(source) = source
        && !is_forwardable(source)
        && !is_on_link
    {
        let why = format!(
            "a packet from {source} is forwarded only if it goes out by the interface that it came in by ({function})"
        );
        return Err(Absent::Unknown(why));
    }
    Ok(bytes)
}

/// Whether packets from an address may go out by another interface.
fn is_forwardable(source: Ipv6Addr) -> bool {
    !source.is_unspecified() && !source.is_multicast() && !source.is_loopback() && !source.is_unicast_link_local()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 packet: a header with a right checksum, of these bytes at these places, and 8 bytes behind it.
    fn ipv4(changes: &[(usize, u8)]) -> Vec<u8> {
        let mut bytes =
            vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3, 4, 0, 8, 0, 0];
        for (at, byte) in changes {
            bytes[*at] = *byte;
        }
        let header_len = usize::from(bytes[0] & 0xf) * 4;
        let checksum = Sum16BitWords::new().add_slice(bytes.get(..header_len).unwrap_or(&bytes)).ones_complement();
        bytes[10..12].copy_from_slice(&checksum.to_ne_bytes());
        bytes
    }

    fn ipv6(source: &str, destination: &str, changes: &[(usize, u8)]) -> Vec<u8> {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let start = [0x60, 0, 0, 0, 0, 8, 17, 64];
        let mut bytes = [&start[..], &address(source), &address(destination), &[1, 2, 3, 4, 0, 8, 0, 0]].concat();
        for (at, byte) in changes {
            bytes[*at] = *byte;
        }
        bytes
    }

    /// An IP packet's bytes as they are taken in.
    fn taken_in(family: NetfilterFamily, bytes: &[u8], length: usize) -> Result<usize, Absent> {
        receive_ip(&Datagram { family, bytes, length }, false).map(<[u8]>::len)
    }

    fn why(absent: Absent) -> String {
        match absent {
            Absent::Never(why) => why.replace("the kernel drops it before: ", ""),
            Absent::Unknown(why) => format!("unknown: {why}"),
        }
    }

    #[test]
    fn padding_is_no_part_of_a_packet() {
        let padded = [ipv4(&[]), vec![0xee; 18]].concat();
        assert_eq!(taken_in(NetfilterFamily::Ipv4, &padded, 46), Ok(28));
        assert_eq!(sent_ip(&Datagram { family: NetfilterFamily::Ipv4, bytes: &padded, length: 46 }).len(), 28);
        let padded = [ipv6("fd00::1", "fd00::2", &[]), vec![0xee; 5]].concat();
        assert_eq!(taken_in(NetfilterFamily::Ipv6, &padded, 53), Ok(48));
        assert_eq!(sent_ip(&Datagram { family: NetfilterFamily::Ipv6, bytes: &padded, length: 53 }).len(), 48);
        assert_eq!(taken_in(NetfilterFamily::Ipv4, &ipv4(&[])[..24], 28), Ok(24), "of which 24 were captured");
        // merged ones do not say how long they are
        let merged = [ipv4(&[(3, 0)]), vec![0; 70_000]].concat();
        assert_eq!(taken_in(NetfilterFamily::Ipv4, &merged, merged.len()), Ok(merged.len()));
        // and those with a jumbo payload say it in an option
        let jumbo = ipv6("fd00::1", "fd00::2", &[(5, 0), (6, 0), (41, 0)]);
        assert_eq!(taken_in(NetfilterFamily::Ipv6, &jumbo, 48), Ok(48));
    }

    #[test]
    fn bad_headers_are_dropped() {
        let mut wrong = ipv4(&[]);
        wrong[11] ^= 1;
        let cases = [
            (wrong, "bad IPv4 checksum (ip_rcv_core)"),
            (ipv4(&[(0, 0x55)]), "its IP header has version 5 (ip_rcv_core)"),
            (ipv4(&[(0, 0x44)]), "bad IPv4 header length, 16 bytes (ip_rcv_core)"),
            (ipv4(&[(0, 0x48)]), "its IPv4 header has 32 bytes, but only 28 are there (ip_rcv_core)"),
            (ipv4(&[(3, 29)]), "its IPv4 total length is 29 bytes, but only 28 are there (ip_rcv_core)"),
            (ipv4(&[(3, 19)]), "its IPv4 total length, 19 bytes, is less than its header's (ip_rcv_core)"),
            (ipv4(&[(3, 0)]), "its IPv4 total length, 0 bytes, is less than its header's (ip_rcv_core)"),
            (ipv4(&[])[..19].to_vec(), "it is shorter than an IPv4 header (ip_rcv_core)"),
        ];
        for (bytes, expected) in cases {
            let found = taken_in(NetfilterFamily::Ipv4, &bytes, bytes.len()).map_err(why);
            assert_eq!(found, Err(expected.to_owned()));
            // where it goes out, it is not the receiver's to judge
            assert!(
                !sent_ip(&Datagram { family: NetfilterFamily::Ipv4, bytes: &bytes, length: bytes.len() }).is_empty()
            );
        }
        let cut = "unknown: the capture ends in front of the end of its IP header";
        assert_eq!(taken_in(NetfilterFamily::Ipv4, &ipv4(&[])[..19], 28).map_err(why), Err(cut.to_owned()));
        assert_eq!(taken_in(NetfilterFamily::Ipv6, &[0x60; 8], 48).map_err(why), Err(cut.to_owned()));

        for (source, destination, changes, expected) in [
            ("fd00::1", "fd00::2", (0, 0x40), "its IP header has version 4 (ip6_rcv_core)"),
            ("fd00::1", "fd00::2", (5, 9), "its IPv6 payload length is 9 bytes, but only 8 are there (ip6_rcv_core)"),
            ("::1", "fd00::2", (0, 0x60), "it has the loopback address (ip6_rcv_core)"),
            ("fd00::1", "::1", (0, 0x60), "it has the loopback address (ip6_rcv_core)"),
            ("fd00::1", "ff01::1", (0, 0x60), "ff01::1 is a multicast address of scope 1 (ip6_rcv_core)"),
            ("fd00::1", "ff00::1", (0, 0x60), "ff00::1 is a multicast address of scope 0 (ip6_rcv_core)"),
            ("ff02::1", "fd00::2", (0, 0x60), "its source, ff02::1, is a multicast address (ip6_rcv_core)"),
            ("fd00::1", "fd00::2", (6, 0), "its hop-by-hop options do not end in the packet (ipv6_parse_hopopts)"),
        ] {
            let bytes = ipv6(source, destination, &[changes]);
            assert_eq!(taken_in(NetfilterFamily::Ipv6, &bytes, 48).map_err(why), Err(expected.to_owned()));
        }
        let of_itself = ipv6("::1", "::1", &[]);
        let datagram = Datagram { family: NetfilterFamily::Ipv6, bytes: &of_itself, length: 48 };
        assert_eq!(receive_ip(&datagram, true), Ok(&of_itself[..]));
    }

    #[test]
    fn some_addresses_are_not_routed() {
        let from = |source: [u8; 4], destination: [u8; 4]| {
            let places = (12..20).zip([source, destination].concat());
            ipv4(&places.collect::<Vec<_>>())
        };
        let routed = |bytes: &[u8], is_loopback| {
            route(&Datagram { family: NetfilterFamily::Ipv4, bytes, length: bytes.len() }, is_loopback, None)
                .map_err(why)
        };
        for (source, destination, expected) in [
            ([224, 0, 0, 1], [10, 0, 0, 1], "224.0.0.1 is not a valid source address (ip_route_input_slow)"),
            ([255; 4], [10, 0, 0, 1], "255.255.255.255 is not a valid source address (ip_route_input_slow)"),
            ([0; 4], [10, 0, 0, 1], "0.0.0.0 is not a valid source address (ip_route_input_slow)"),
            ([10, 0, 0, 1], [0; 4], "0.0.0.0 is not a valid destination address (ip_route_input_slow)"),
            ([0; 4], [239, 1, 1, 1], "0.0.0.0 is not a valid source address (ip_mc_validate_source)"),
            (
                [127, 0, 0, 1],
                [10, 0, 0, 1],
                "127.0.0.1 is a loopback address, which the kernel takes only with route_localnet (ip_route_input_slow)",
            ),
        ] {
            assert_eq!(routed(&from(source, destination), false), Err(expected.to_owned()));
        }
        for (source, destination) in
            [([0; 4], [255; 4]), ([0; 4], [0; 4]), ([0; 4], [224, 0, 0, 22]), ([0, 0, 0, 1], [10, 0, 0, 1])]
        {
            assert_eq!(routed(&from(source, destination), false), Ok(()));
        }
        assert_eq!(routed(&from([127, 0, 0, 1], [127, 0, 0, 1]), true), Ok(()));
        let source = Ipv4Addr::new(10, 0, 0, 7);
        let here = Host { addresses: vec![("eth0".to_owned(), source.into())], ..Host::default() };
        let bytes = from(source.octets(), [10, 0, 0, 1]);
        let datagram = Datagram { family: NetfilterFamily::Ipv4, bytes: &bytes, length: 28 };
        let dropped = route(&datagram, false, Some(&here)).map_err(why).unwrap_err();
        assert!(dropped.starts_with("10.0.0.7 is an address of this host, "), "{dropped}");
        assert_eq!(route(&datagram, true, Some(&here)), Ok(()), "it goes to itself by the loopback interface");
    }

    #[test]
    fn options_count_where_the_kernel_reads_them() {
        let with = |option: &[u8]| {
            let bytes = ipv4(&[(0, 0x46), (3, 32), (20, option[0]), (21, option[1]), (22, option[2]), (23, option[3])]);
            [bytes, vec![0; 4]].concat()
        };
        let judged = |bytes: &[u8]| {
            let datagram = Datagram { family: NetfilterFamily::Ipv4, bytes, length: 32 };
            // netfilter prerouting sees it, the hooks behind do not
            assert!(receive_ip(&datagram, false).is_ok());
            route(&datagram, false, None).map_err(why)
        };
        assert_eq!(judged(&with(&[148, 4, 0, 0])), Ok(()));
        let source_route =
            "it has a source route, which the kernel takes only with accept_source_route (ip_rcv_options)";
        assert_eq!(judged(&with(&[131, 3, 4, 0])), Err(source_route.to_owned()));
        let bad = "bad IPv4 option 7, at byte 20 of its header (ip_rcv_options)";
        assert_eq!(judged(&with(&[7, 9, 4, 0])), Err(bad.to_owned()));

        let unknown = ipv6("fd00::1", "fd00::2", &[(6, 0), (40, 17), (41, 0), (42, 0x5e), (43, 4)]);
        let expected =
            "hop-by-hop option 94 is not known here, and says that the packet is dropped then (ipv6_parse_hopopts)";
        assert_eq!(taken_in(NetfilterFamily::Ipv6, &unknown, 48).map_err(why), Err(expected.to_owned()));
        assert_eq!(taken_in(NetfilterFamily::Ipv6, &unknown[..44], 48), Ok(44), "of which 44 were captured");
    }

    fn frame(to: [u8; 6], vlans: &[u16]) -> Frame<'static> {
        Frame { macs: Some((to, [2, 0, 0, 0, 0, 9])), vlans: vlans.to_vec(), ip: Err(NoIp::Other) }
    }

    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn host(vlans: Option<Vec<Vlan>>) -> Host {
        Host { macs: vec![("eth0".to_owned(), OURS)], vlans, forwards: (true, false), ..Host::default() }
    }

    #[test]
    fn a_vlan_tag_leads_to_the_device_for_it() {
        let vlan = |name: &str, id, below: &str| Vlan { name: name.to_owned(), id, below: below.to_owned() };
        let here = host(Some(vec![vlan("blue", 100, "eth0"), vlan("inner", 7, "blue"), vlan("other", 8, "eth1")]));
        let device = |vlans: &[u16], interface| receive_frame(&frame(OURS, vlans), Some(&here), interface).map_err(why);
        let named = |name: &str| Ok(Device { vlan: Some(name.to_owned()), note: None });
        assert_eq!(device(&[], None), Ok(Device::default()));
        assert_eq!(device(&[0], Some("eth0")), Ok(Device::default()), "it only has a priority");
        assert_eq!(device(&[100], None), named("blue"));
        assert_eq!(device(&[100, 7], Some("eth0")), named("inner"));
        assert_eq!(device(&[0, 100], Some("eth0")), named("blue"));
        assert_eq!(device(&[100], Some("blue")), named("blue"));
        assert_eq!(device(&[100], Some("2")), named("blue"));
        for (vlans, interface, device_text) in
            [(&[5][..], None, "VLAN 5"), (&[8], Some("eth0"), "VLAN 8 on eth0"), (&[100, 8], None, "VLAN 8 on blue")]
        {
            let expected =
                format!("there is no device for {device_text}, though a bridge may take it (__netif_receive_skb_core)");
            assert_eq!(device(vlans, interface), Err(expected));
        }
        for here in [None, Some(&host(None))] {
            let device = receive_frame(&frame(OURS, &[5]), here, None).unwrap();
            assert!(device.note.unwrap().starts_with("assumes a device for VLAN 5"));
        }
    }

    #[test]
    fn frames_for_others_are_dropped_where_the_host_is_known() {
        let here = host(Some(Vec::new()));
        let expected = "no interface of this host has its MAC address, 02:00:00:00:00:02 (eth_type_trans, ip_rcv_core)";
        let other = frame([2, 0, 0, 0, 0, 2], &[]);
        assert_eq!(receive_frame(&other, Some(&here), None).map_err(why), Err(expected.to_owned()));
        assert_eq!(receive_frame(&other, None, None), Ok(Device::default()));
        assert_eq!(receive_frame(&frame([0x33, 0x33, 0, 0, 0, 1], &[]), Some(&here), None), Ok(Device::default()));
    }

    #[test]
    fn a_forwarded_packet_is_one_hop_older() {
        let forwarded = |family, bytes: &[u8], to, here: Option<&Host>| {
            forward(&frame(to, &[]), &Datagram { family, bytes, length: bytes.len() }, bytes, here).map_err(why)
        };
        let (v4, v6) = (ipv4(&[]), ipv6("fd00::1", "fd00::2", &[]));
        assert_eq!(forwarded(NetfilterFamily::Ipv4, &v4, OURS, None).unwrap()[8], 63);
        assert_eq!(forwarded(NetfilterFamily::Ipv6, &v6, OURS, None).unwrap()[7], 63);
        let here = host(None);
        assert!(forwarded(NetfilterFamily::Ipv4, &v4, OURS, Some(&here)).is_ok());
        let link_local = ipv6("fe80::1", "fd00::2", &[]);
        let on_link = ipv6("fe80::1", "fe80::2", &[]);
        assert_eq!(forwarded(NetfilterFamily::Ipv6, &on_link, OURS, None).unwrap()[7], 63);
        let only_on_link = "unknown: a packet from fe80::1 is forwarded only if it goes out by the interface that it came in by \
                            (ip6_forward)";
        for (family, bytes, to, here, expected) in [
            (NetfilterFamily::Ipv4, ipv4(&[(8, 1)]), OURS, None, "its TTL is 1 (ip_forward)"),
            (
                NetfilterFamily::Ipv6,
                ipv6("fd00::1", "fd00::2", &[(7, 0)]),
                OURS,
                None,
                "its hop limit is 0 (ip6_forward)",
            ),
            (NetfilterFamily::Ipv4, v4, [0xff; 6], None, "its frame has a multicast MAC address (ip_forward)"),
            (NetfilterFamily::Ipv6, link_local, OURS, None, only_on_link),
            (
                NetfilterFamily::Ipv6,
                v6,
                OURS,
                Some(&here),
                "this host does not forward IPv6, net.ipv6.conf.all.forwarding is 0 (ip6_forward)",
            ),
        ] {
            assert_eq!(forwarded(family, &bytes, to, here), Err(expected.to_owned()));
        }
    }
}
