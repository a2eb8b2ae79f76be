//! A captured packet as far as its IP header: the frame's addresses, its VLAN tags, and where IP begins.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use packet_traits::NetfilterFamily;

use super::capture::{Captured, Link};

/// Length of an Ethernet header without VLAN tags.
pub(crate) const ETHERNET_LEN: usize = 14;
/// Length of a VLAN tag.
pub(crate) const TAG_LEN: usize = 4;
/// Length of an IPv4 header without options.
pub(crate) const IPV4_LEN: usize = 20;
/// Length of an IPv6 header without extension headers.
pub(crate) const IPV6_LEN: usize = 40;

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// Whether frames for it are for several hosts: its group bit (IEEE 802, `is_multicast_ether_addr`).
pub(crate) fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

/// What is in front of a packet's IP header, and that header's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// Destination and source; `None` if the packet starts with its IP header.
    pub(crate) macs: Option<(Mac, Mac)>,
    /// The ids of its VLAN tags, outermost first.
    pub(crate) vlans: Vec<u16>,
    /// The IP packet.
    pub(crate) ip: Result<Datagram<'a>, NoIp>,
}

/// Why there is no IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoIp {
    /// It is another protocol.
    Other,
    /// Too little was captured to tell.
    Cut,
}

/// From an IP header to the end of the frame, which padding may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datagram<'a> {
    /// What the link says it is.
    pub(crate) family: NetfilterFamily,
    /// Its bytes, as far as they were captured.
    pub(crate) bytes: &'a [u8],
    /// How many bytes there were.
    pub(crate) length: usize,
}

impl<'a> Frame<'a> {
    /// Reads a packet's link header.
    pub(crate) fn read(packet: &'a Captured) -> Frame<'a> {
        let bytes = packet.bytes.as_slice();
        if packet.link == Link::Ip {
            return Frame { macs: None, vlans: Vec::new(), ip: of_version(bytes, packet.length) };
        }
        let Some(header) = bytes.first_chunk::<ETHERNET_LEN>() else {
            let ip = Err(if packet.length < ETHERNET_LEN { NoIp::Other } else { NoIp::Cut });
            return Frame { macs: None, vlans: Vec::new(), ip };
        };
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, mut type_high, mut type_low] = *header;
        let mut frame = Frame {
            macs: Some(([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5])),
            vlans: Vec::new(),
            ip: Err(NoIp::Other),
        };
        let mut at = ETHERNET_LEN;
        while matches!([type_high, type_low], [0x81, 0x00] | [0x88, 0xa8]) {
            let Some(&[high, low, next_high, next_low]) = bytes[at..].first_chunk::<TAG_LEN>() else {
                frame.ip = Err(if packet.length < at + TAG_LEN { NoIp::Other } else { NoIp::Cut });
                return frame;
            };
            frame.vlans.push(u16::from_be_bytes([high, low]) & 0xfff);
            (type_high, type_low) = (next_high, next_low);
            at += TAG_LEN;
        }
        let datagram = |family| Datagram { family, bytes: &bytes[at..], length: packet.length.max(bytes.len()) - at };
        frame.ip = match [type_high, type_low] {
            [0x08, 0x00] => Ok(datagram(NetfilterFamily::Ipv4)),
            [0x86, 0xdd] => Ok(datagram(NetfilterFamily::Ipv6)),
            _ => Err(NoIp::Other),
        };
        frame
    }

    /// Whether it can be a frame of the loopback interface, whose addresses are all 0.
    pub(crate) fn is_of_loopback(&self) -> bool {
        self.macs.is_some_and(|(destination, source)| destination == [0; 6] && source == [0; 6])
    }
}

/// A packet without a link header, whose own version says what it is, as on devices without link headers
/// (`tun_get_user` in drivers/net/tun.c).
fn of_version(bytes: &[u8], length: usize) -> Result<Datagram<'_>, NoIp> {
    let datagram = |family| Datagram { family, bytes, length: length.max(bytes.len()) };
    match bytes.first().map(|byte| byte >> 4) {
        Some(4) => Ok(datagram(NetfilterFamily::Ipv4)),
        Some(6) => Ok(datagram(NetfilterFamily::Ipv6)),
        Some(_) => Err(NoIp::Other),
        None => Err(NoIp::Cut),
    }
}

impl Datagram<'_> {
    /// Source and destination, if its header was captured.
    pub(crate) fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        match self.family {
            NetfilterFamily::Ipv4 => {
                let header = self.bytes.first_chunk::<IPV4_LEN>()?;
                let address = |at: usize| Some(IpAddr::from(Ipv4Addr::from(*header[at..].first_chunk::<4>()?)));
                Some((address(12)?, address(16)?))
            }
            NetfilterFamily::Ipv6 => {
                let header = self.bytes.first_chunk::<IPV6_LEN>()?;
                let address = |at: usize| Some(IpAddr::from(Ipv6Addr::from(*header[at..].first_chunk::<16>()?)));
                Some((address(8)?, address(24)?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(link: Link, bytes: &[u8]) -> Captured {
        Captured { link, bytes: bytes.to_vec(), length: bytes.len() }
    }

    #[test]
    fn ip_begins_behind_any_number_of_tags() {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in [0x88a8_6064u32, 0x8100_0007, 0x8100_0000] {
            bytes.extend(tag.to_be_bytes());
        }
        bytes.extend([0x86, 0xdd, 0x60, 9]);
        let packet = captured(Link::Ethernet, &bytes);
        let frame = Frame::read(&packet);
        assert_eq!(frame.macs, Some(([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])));
        assert_eq!(frame.vlans, [100, 7, 0]);
        assert_eq!(frame.ip, Ok(Datagram { family: NetfilterFamily::Ipv6, bytes: &[0x60, 9], length: 2 }));
        assert_eq!(frame.ip.unwrap().addresses(), None);

        let cut = Captured { bytes: bytes[..20].to_vec(), ..packet };
        assert_eq!(Frame::read(&cut).ip, Err(NoIp::Cut), "a tag is cut by the capture");
        assert_eq!(Frame::read(&captured(Link::Ethernet, &bytes[..20])).ip, Err(NoIp::Other), "and by the sender");
    }

    #[test]
    fn without_a_link_header_the_version_tells() {
        for (first, family) in
            [(0x4f, Ok(NetfilterFamily::Ipv4)), (0x60, Ok(NetfilterFamily::Ipv6)), (0x50, Err(NoIp::Other))]
        {
            let packet = captured(Link::Ip, &[first]);
            assert_eq!(Frame::read(&packet).ip.map(|ip| ip.family), family);
        }
    }
}
