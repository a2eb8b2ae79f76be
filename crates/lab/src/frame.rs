//! Crafted frames with right lengths and checksums, for what a socket would not send. No system calls here.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{IpHeaders, IpNumber, Ipv6Header, Ipv6RawExtHeader, PacketBuilder, PacketBuilderStep, TcpHeader};
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

// further flags, for callers who give the byte
const URG: u8 = 0x20;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_TEB: u16 = 0x6558; // transparent Ethernet bridging, what Geneve calls an inner Ethernet frame
// a destination option that a node skips if it does not know it (RFC 4727 section 3.6)
const EXPERIMENTAL: u8 = 0x1e;
const HOP_LIMIT: u8 = 64;
const FITS: &str = "the payload fits in an IP packet";
const OPTIONS_LEN: &str = "an extension header has 8 to 2048 bytes, a multiple of 8";

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
        let headers = self.ethernet_and_ip().udp(self.src_port, self.dst_port);
        let mut frame = Vec::with_capacity(headers.size(payload.len()));
        headers.write_to_vec(&mut frame, payload).expect(FITS);
        frame
    }

    /// A UDP datagram in IPv6 behind `count` headers of destination options (RFC 8200 section 4.6), of `len` bytes each.
    ///
    /// # Panics
    /// If the flow is of IPv4, the payload does not fit in an IP packet, or `len` is not 8 to 2048, a multiple of 8.
    #[must_use]
    pub fn udp_behind_options(&self, count: usize, len: usize, payload: &[u8]) -> Vec<u8> {
        let IpPair::V6(..) = self.ip else { panic!("IPv4 has no destination options") };
        let frame = self.udp(payload);
        let (ethernet, packet) = frame.split_at(ETHERNET_LEN);
        let (mut ip, datagram) = Ipv6Header::from_slice(packet).expect("a packet of IPv6");
        ip.set_payload_length(len * count + datagram.len()).expect(FITS);
        if count > 0 {
            ip.next_header = IpNumber::IPV6_DESTINATION_OPTIONS;
        }
        let mut headers = [ethernet, &ip.to_bytes()].concat();
        let mut options = vec![0; len.checked_sub(2).expect(OPTIONS_LEN)];
        for option in options.chunks_mut(2 + 253) {
            // a single byte that is left stays 0, which is padding (Pad1)
            if let [kind, length, data @ ..] = option {
                (*kind, *length) = (EXPERIMENTAL, data.len() as u8);
            }
        }
        for number in 1..=count {
            let next = if number == count { IpNumber::UDP } else { IpNumber::IPV6_DESTINATION_OPTIONS };
            headers.extend(Ipv6RawExtHeader::new_raw(next, &options).expect(OPTIONS_LEN).to_bytes());
        }
        [&headers, datagram].concat()
    }

    /// A TCP segment without options, with the largest window.
    ///
    /// # Panics
    /// If the payload does not fit in an IP packet.
    #[must_use]
    pub fn tcp(&self, sequence: u32, acknowledged: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let header = TcpHeader {
            acknowledgment_number: acknowledged,
            fin: flags & FIN != 0,
            syn: flags & SYN != 0,
            rst: flags & RST != 0,
            psh: flags & PSH != 0,
            ack: flags & ACK != 0,
            urg: flags & URG != 0,
            ece: flags & ECE != 0,
            cwr: flags & CWR != 0,
            ..TcpHeader::new(self.src_port, self.dst_port, sequence, u16::MAX)
        };
        let headers = self.ethernet_and_ip().tcp_header(header);
        let mut frame = Vec::with_capacity(headers.size(payload.len()));
        headers.write_to_vec(&mut frame, payload).expect(FITS);
        frame
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

    /// The headers of Ethernet and IP. IPv4's has no identification and "don't fragment", as the kernel sends and GRO expects
    /// (RFC 6864).
    fn ethernet_and_ip(&self) -> PacketBuilderStep<IpHeaders> {
        let ethernet = PacketBuilder::ethernet2(self.src_mac.0, self.dst_mac.0);
        match self.ip {
            IpPair::V4(src, dst) => ethernet.ipv4(src.octets(), dst.octets(), HOP_LIMIT),
            IpPair::V6(src, dst) => ethernet.ipv6(src.octets(), dst.octets(), HOP_LIMIT),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlan_tag_sits_behind_the_addresses() {
        let frame = ethernet(Mac([1; 6]), Mac([2; 6]), 0x0800, &[9]);
        assert_eq!(with_vlan(&frame, 0x123, 5)[12..], [0x81, 0x00, 0xa1, 0x23, 0x08, 0x00, 9]);
    }
}
