//! Crafted frames with right lengths and checksums, for what a socket would not send. No system calls here.

use std::net::{Ipv4Addr, Ipv6Addr};

use packet_traits_core::Mac;

use crate::end::{End, Family};
use crate::vxlan::VXLAN_PORT;

/// Length of an Ethernet header without a VLAN tag.
pub const ETHERNET_LEN: usize = 14;
/// The UDP port of Geneve (RFC 8926 section 3.3).
pub const GENEVE_PORT: u16 = 6081;
/// An Ethernet type for local experiments (IEEE 802, "Local Experimental EtherType 1"), which no protocol handles.
pub const ETHERTYPE_EXPERIMENTAL: u16 = 0x88b5;

/// TCP flag FIN (RFC 9293 section 3.1).
pub const FIN: u8 = 0x01;
/// TCP flag SYN.
pub const SYN: u8 = 0x02;
/// TCP flag RST.
pub const RST: u8 = 0x04;
/// TCP flag PSH; GRO passes a merged packet on when it meets one.
pub const PSH: u8 = 0x08;
/// TCP flag ACK; GRO merges only segments that have it.
pub const ACK: u8 = 0x10;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_TEB: u16 = 0x6558; // transparent Ethernet bridging, what Geneve calls an inner Ethernet frame
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_DESTINATION_OPTIONS: u8 = 60;
// a destination option that a node skips if it does not know it (RFC 4727 section 3.6)
const EXPERIMENTAL: u8 = 0x1e;
const HOP_LIMIT: u8 = 64;

/// Source and destination of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpPair {
    /// IPv4 source, then destination.
    V4(Ipv4Addr, Ipv4Addr),
    /// IPv6 source, then destination.
    V6(Ipv6Addr, Ipv6Addr),
}

/// Everything that the packets of one flow have in common. Its methods build frames of that flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Source Ethernet address.
    pub src_mac: Mac,
    /// Destination Ethernet address: the next hop's.
    pub dst_mac: Mac,
    /// Source and destination address.
    pub ip: IpPair,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
}

impl Flow {
    /// A flow from one end of a link to the other.
    #[must_use]
    pub fn between(from: &End, to: &End, family: Family, src_port: u16, dst_port: u16) -> Self {
        let ip = match family {
            Family::V4 => IpPair::V4(from.ipv4(), to.ipv4()),
            Family::V6 => IpPair::V6(from.ipv6(), to.ipv6()),
        };
        Self { src_mac: from.mac(), dst_mac: to.mac(), ip, src_port, dst_port }
    }

    /// A UDP datagram.
    ///
    /// # Panics
    /// If the payload does not fit in an IP packet.
    #[must_use]
    pub fn udp(&self, payload: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::with_capacity(8 + payload.len());
        datagram.extend(self.src_port.to_be_bytes());
        datagram.extend(self.dst_port.to_be_bytes());
        datagram.extend(length_field(8 + payload.len()));
        datagram.extend([0, 0]);
        datagram.extend(payload);
        // Zero would say "no checksum" (RFC 768).
        let checksum = match self.transport_checksum(PROTOCOL_UDP, &datagram) {
            0 => 0xffff,
            checksum => checksum,
        };
        datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
        self.packet(PROTOCOL_UDP, &datagram)
    }

    /// A UDP datagram in IPv6 behind `count` headers of destination options (RFC 8200 section 4.6), of `len` bytes each.
    ///
    /// # Panics
    /// If the flow is of IPv4, the payload does not fit in an IP packet, or `len` is not 8 to 2048, a multiple of 8.
    #[must_use]
    pub fn udp_behind_options(&self, count: usize, len: usize, payload: &[u8]) -> Vec<u8> {
        const IPV6_LEN: usize = 40;
        let IpPair::V6(..) = self.ip else { panic!("IPv4 has no destination options") };
        let frame = self.udp(payload);
        let (headers, datagram) = frame.split_at(ETHERNET_LEN + IPV6_LEN);
        let mut headers = headers.to_vec();
        let ip = &mut headers[ETHERNET_LEN..];
        ip[4..6].copy_from_slice(&length_field(len * count + datagram.len()));
        if count > 0 {
            ip[6] = PROTOCOL_DESTINATION_OPTIONS;
        }
        let units = len.checked_sub(8).filter(|more| more.is_multiple_of(8)).expect("8 bytes, or some times that") / 8;
        let units = u8::try_from(units).expect("an extension header has up to 2048 bytes");
        let mut options = vec![0; len - 2];
        for option in options.chunks_mut(2 + 253) {
            // a single byte that is left stays 0, which is padding (Pad1)
            if let [kind, length, data @ ..] = option {
                (*kind, *length) = (EXPERIMENTAL, data.len() as u8);
            }
        }
        for number in 1..=count {
            let next = if number == count { PROTOCOL_UDP } else { PROTOCOL_DESTINATION_OPTIONS };
            headers.extend([next, units]);
            headers.extend(&options);
        }
        [&headers, datagram].concat()
    }

    /// A TCP segment without options, with the largest window.
    ///
    /// # Panics
    /// If the payload does not fit in an IP packet.
    #[must_use]
    pub fn tcp(&self, sequence: u32, acknowledged: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut segment = Vec::with_capacity(20 + payload.len());
        segment.extend(self.src_port.to_be_bytes());
        segment.extend(self.dst_port.to_be_bytes());
        segment.extend(sequence.to_be_bytes());
        segment.extend(acknowledged.to_be_bytes());
        segment.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend(payload);
        let checksum = self.transport_checksum(PROTOCOL_TCP, &segment);
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        self.packet(PROTOCOL_TCP, &segment)
    }

    /// `count` TCP segments in order, each of `size` payload bytes that hold the segment's number (its low byte, from
    /// 0 on): what GRO merges into one packet. They belong to no connection; a receiver answers with a reset.
    ///
    /// # Panics
    /// If the payload does not fit in an IP packet.
    #[must_use]
    pub fn tcp_burst(&self, first_sequence: u32, count: u32, size: u16) -> Vec<Vec<u8>> {
        let segment = |number: u32| {
            let sequence = first_sequence.wrapping_add(number.wrapping_mul(size.into()));
            self.tcp(sequence, 1, ACK, &vec![number as u8; size.into()])
        };
        (0..count).map(segment).collect()
    }

    /// A VXLAN packet (RFC 7348 section 5) around `inner`, a whole Ethernet frame. The destination port is VXLAN's,
    /// whatever the flow says.
    ///
    /// # Panics
    /// If the inner frame does not fit in an IP packet.
    #[must_use]
    pub fn vxlan(&self, vni: u32, inner: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = vni.to_be_bytes();
        let header = [0x08, 0, 0, 0, a, b, c, 0];
        Self { dst_port: VXLAN_PORT, ..*self }.udp(&[&header, inner].concat())
    }

    /// A Geneve packet (RFC 8926 section 3.4) without options around `inner`, a whole Ethernet frame. The destination
    /// port is Geneve's, whatever the flow says.
    ///
    /// # Panics
    /// If the inner frame does not fit in an IP packet.
    #[must_use]
    pub fn geneve(&self, vni: u32, inner: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = vni.to_be_bytes();
        let [e, f] = ETHERTYPE_TEB.to_be_bytes();
        let header = [0, 0, e, f, a, b, c, 0];
        Self { dst_port: GENEVE_PORT, ..*self }.udp(&[&header, inner].concat())
    }

    /// The pseudo-header checksum of a TCP segment or UDP datagram whose checksum field is zero.
    fn transport_checksum(&self, protocol: u8, segment: &[u8]) -> u16 {
        let addresses = match self.ip {
            IpPair::V4(src, dst) => [src.octets(), dst.octets()].concat(),
            IpPair::V6(src, dst) => [src.octets(), dst.octets()].concat(),
        };
        let tail = [&[0, protocol], &length_field(segment.len())[..]].concat();
        checksum(&[&addresses, &tail, segment])
    }

    /// An Ethernet frame with an IP packet around `segment`.
    fn packet(&self, protocol: u8, segment: &[u8]) -> Vec<u8> {
        match self.ip {
            IpPair::V4(src, dst) => {
                let [total_high, total_low] = length_field(20 + segment.len());
                // No identification and "don't fragment", as the kernel sends and GRO expects (RFC 6864).
                let mut header = [0; 20];
                header[..10].copy_from_slice(&[0x45, 0, total_high, total_low, 0, 0, 0x40, 0, HOP_LIMIT, protocol]);
                header[12..16].copy_from_slice(&src.octets());
                header[16..].copy_from_slice(&dst.octets());
                let sum = checksum(&[&header]).to_be_bytes();
                header[10..12].copy_from_slice(&sum);
                ethernet(self.dst_mac, self.src_mac, ETHERTYPE_IPV4, &[&header, segment].concat())
            }
            IpPair::V6(src, dst) => {
                let [length_high, length_low] = length_field(segment.len());
                let start = [0x60, 0, 0, 0, length_high, length_low, protocol, HOP_LIMIT];
                let packet = [&start, &src.octets()[..], &dst.octets()[..], segment].concat();
                ethernet(self.dst_mac, self.src_mac, ETHERTYPE_IPV6, &packet)
            }
        }
    }
}

/// An Ethernet frame.
#[must_use]
pub fn ethernet(dst: Mac, src: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&dst.0, &src.0, &ethertype.to_be_bytes()[..], payload].concat()
}

/// `frame` with an 802.1Q tag: VLAN id `vid` (12 bits), priority `pcp` (3 bits).
///
/// # Panics
/// If the frame is shorter than its addresses.
#[must_use]
pub fn with_vlan(frame: &[u8], vid: u16, pcp: u8) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    let control = u16::from(pcp & 7) << 13 | vid & 0xfff;
    [addresses, &ETHERTYPE_VLAN.to_be_bytes(), &control.to_be_bytes(), rest].concat()
}

fn length_field(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("the payload fits in an IP packet").to_be_bytes()
}

/// The internet checksum (RFC 1071) over `parts`, each but the last of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_matches_the_worked_example_of_rfc_1071() {
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    }

    #[test]
    fn vlan_tag_sits_behind_the_addresses() {
        let frame = ethernet(Mac([1; 6]), Mac([2; 6]), ETHERTYPE_IPV4, &[9]);
        assert_eq!(with_vlan(&frame, 0x123, 5)[12..], [0x81, 0x00, 0xa1, 0x23, 0x08, 0x00, 9]);
    }
}
