//! What a packet's first bytes say: addresses, ports and, of TCP, sequence number and flags.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// Protocol numbers (IANA).
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const DCCP: u8 = 33;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

/// The headers of an IP packet, as far as they were captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Headers {
    /// Who sent it.
    pub source: IpAddr,
    /// Whom it is for.
    pub destination: IpAddr,
    /// The protocol number after the IP header and, in IPv6, its extension headers, as far as they were captured.
    pub protocol: u8,
    /// Source and destination port of TCP, UDP, DCCP, SCTP and UDP-Lite.
    pub ports: Option<(u16, u16)>,
    /// Of TCP.
    pub tcp: Option<Tcp>,
}

/// What tells one TCP segment from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Tcp {
    /// Sequence number.
    pub sequence: u32,
    /// FIN 1, SYN 2, RST 4, PSH 8, ACK 16 …
    pub flags: u8,
    /// Bytes of data.
    pub data: u32,
}

impl Headers {
    /// Reads a packet that starts with its IP header.
    pub fn parse(ip: &[u8]) -> Option<Headers> {
        let byte = |at: usize| ip.get(at).copied();
        let word = |from: &[u8], at: usize| Some(u16::from_be_bytes(*from.get(at..)?.first_chunk()?));
        let (source, destination, protocol, start, total, fragment) = match byte(0)? >> 4 {
            4 => {
                let address = |at: usize| Some(IpAddr::from(Ipv4Addr::from(*ip.get(at..)?.first_chunk::<4>()?)));
                let start = usize::from(byte(0)? & 15) * 4;
                (address(12)?, address(16)?, byte(9)?, start, word(ip, 2)?, word(ip, 6)? & 0x1fff != 0)
            }
            6 => {
                let address = |at: usize| Some(IpAddr::from(Ipv6Addr::from(*ip.get(at..)?.first_chunk::<16>()?)));
                let (protocol, start, fragment) = behind_extensions(ip, byte(6)?);
                (address(8)?, address(24)?, protocol, start, word(ip, 4)?.saturating_add(40), fragment)
            }
            _ => return None,
        };
        let transport = ip.get(start..).filter(|_| !fragment).unwrap_or_default();
        let has_ports = matches!(protocol, TCP | UDP | DCCP | SCTP | UDPLITE);
        let ports = if has_ports { word(transport, 0).zip(word(transport, 2)) } else { None };
        let tcp = (protocol == TCP).then(|| {
            let header = usize::from(transport.get(12)? >> 4) * 4;
            Some(Tcp {
                sequence: u32::from_be_bytes(*transport.get(4..)?.first_chunk()?),
                flags: *transport.get(13)?,
                data: u32::from(total).saturating_sub((start + header) as u32),
            })
        });
        Some(Headers { source, destination, protocol, ports, tcp: tcp.flatten() })
    }

    /// The flow it belongs to: the headers without what differs between its packets.
    pub fn flow(&self) -> Headers {
        Headers { tcp: None, ..*self }
    }
}

/// What is behind the extension headers of IPv6: its protocol, where it starts, and whether that is in another fragment.
fn behind_extensions(ip: &[u8], mut protocol: u8) -> (u8, usize, bool) {
    let (mut start, mut later) = (40, false);
    while let Some([next, len, high, low, ..]) = ip.get(start..).and_then(<[u8]>::first_chunk::<8>).filter(|_| !later) {
        let len = match protocol {
            0 | 43 | 60 => (usize::from(*len) + 1) * 8,
            51 => (usize::from(*len) + 2) * 4,
            44 => {
                later = u16::from_be_bytes([*high, *low]) >> 3 != 0;
                8
            }
            _ => break,
        };
        if start + len > ip.len() {
            break;
        }
        (protocol, start) = (*next, start + len);
    }
    (protocol, start, later)
}

/// Bytes of an IP packet, as its header has it; `None` if that does not say, as of packets longer than 64 KiB.
pub(crate) fn ip_len(ip: &[u8]) -> Option<u32> {
    let word = |at: usize| Some(u16::from_be_bytes(*ip.get(at..)?.first_chunk()?));
    let len = match ip.first()? >> 4 {
        4 => u32::from(word(2)?),
        6 => u32::from(word(4).filter(|len| *len != 0)?) + 40,
        _ => return None,
    };
    (len != 0).then_some(len)
}

/// `UDP 10.0.0.1:53 > 10.0.0.2:4000`.
impl fmt::Display for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            1 => f.write_str("ICMP ")?,
            TCP => f.write_str("TCP ")?,
            UDP => f.write_str("UDP ")?,
            DCCP => f.write_str("DCCP ")?,
            58 => f.write_str("ICMPv6 ")?,
            SCTP => f.write_str("SCTP ")?,
            UDPLITE => f.write_str("UDP-Lite ")?,
            other => write!(f, "protocol {other} ")?,
        }
        match self.ports {
            Some((from, to)) => {
                write!(f, "{} > {}", SocketAddr::new(self.source, from), SocketAddr::new(self.destination, to))?;
            }
            None => write!(f, "{} > {}", self.source, self.destination)?,
        }
        if let Some(tcp) = self.tcp {
            let names = [(2, 'S'), (1, 'F'), (4, 'R')];
            let flags: String = names.iter().filter(|(bit, _)| tcp.flags & bit != 0).map(|(_, name)| *name).collect();
            if !flags.is_empty() {
                write!(f, " {flags}")?;
            }
            write!(f, " seq {}", tcp.sequence)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn udp4() -> Vec<u8> {
        let mut ip = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(53, 4000).write_to_vec(&mut ip, &[0; 8]).unwrap();
        ip
    }

    #[test]
    fn udp_over_ipv4_has_ports() {
        assert_eq!(Headers::parse(&udp4()).unwrap().to_string(), "UDP 10.0.0.1:53 > 10.0.0.2:4000");
    }

    #[test]
    fn other_protocols_with_ports_have_them() {
        for (protocol, name) in [(DCCP, "DCCP"), (SCTP, "SCTP"), (UDPLITE, "UDP-Lite")] {
            let mut packet = udp4();
            packet[9] = protocol;
            let expected = format!("{name} 10.0.0.1:53 > 10.0.0.2:4000");
            assert_eq!(Headers::parse(&packet).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn tcp_over_ipv6_has_a_sequence_number_and_a_data_length() {
        let address = Ipv6Addr::LOCALHOST.octets();
        let segment = PacketBuilder::ipv6(address, address, 64).tcp(1, 2, 9, 0).syn().ack(0);
        let mut ip = Vec::new();
        segment.write_to_vec(&mut ip, &[0; 10]).unwrap();
        let headers = Headers::parse(&ip).unwrap();
        assert_eq!(headers.tcp, Some(Tcp { sequence: 9, flags: 0x12, data: 10 }));
        assert_eq!(headers.to_string(), "TCP [::1]:1 > [::1]:2 S seq 9");
    }

    #[test]
    fn ports_are_behind_the_extension_headers_of_ipv6() {
        let packet = |extensions: &[u8], first| {
            let mut ip = vec![0x60, 0, 0, 0, 0, (extensions.len() + 8) as u8, first, 64];
            ip.extend(Ipv6Addr::LOCALHOST.octets());
            ip.extend(Ipv6Addr::LOCALHOST.octets());
            ip.extend(extensions);
            ip.extend([0, 53, 15, 160, 0, 8, 0, 0]);
            Headers::parse(&ip).unwrap()
        };
        let options = [60, 0, 1, 4, 0, 0, 0, 0, 44, 0, 1, 4, 0, 0, 0, 0];
        let fragment = |offset: u8| [UDP, 0, 0, offset << 3 | 1, 0, 0, 0, 9];
        let first = packet(&[&options[..], &fragment(0)].concat(), 0);
        assert_eq!((first.protocol, first.ports), (UDP, Some((53, 4000))));
        let later = packet(&[&options[..], &fragment(1)].concat(), 0);
        assert_eq!((later.protocol, later.ports), (UDP, None));
        assert_eq!(packet(&[UDP, 4, 0, 0, 0, 0, 0, 0], 51).ports, None, "it is longer than the packet");
    }

    #[test]
    fn later_fragments_and_short_captures_have_no_ports() {
        let mut fragment = udp4();
        fragment[7] = 1;
        assert_eq!(Headers::parse(&fragment).unwrap().ports, None);
        assert_eq!(Headers::parse(&udp4()[..22]).unwrap().ports, None);
        assert_eq!(Headers::parse(&udp4()[..18]), None);
        assert_eq!(Headers::parse(&[]), None);
    }
}
