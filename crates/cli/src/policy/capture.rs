//! Packets that a user hands over: in hexadecimal digits, or in a pcap or pcapng file.

use std::{
    fs,
    io::{self, Read},
    path::PathBuf,
    str::FromStr,
};

use pcap_file::{
    DataLink, PcapError,
    pcap::PcapReader,
    pcapng::{Block, PcapNgReader},
};

use super::counted;

/// Where packets come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PacketSource {
    /// A packet's bytes.
    Bytes(Vec<u8>),
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

impl FromStr for PacketSource {
    type Err = String;

    fn from_str(text: &str) -> Result<PacketSource, String> {
        if text == "-" {
            return Ok(PacketSource::Stdin);
        }
        match parse_hex(text) {
            Ok(bytes) => Ok(PacketSource::Bytes(bytes)),
            Err(problem) => {
                let path = PathBuf::from(text);
                let is_path = path.exists() || text.contains(['/', '.']);
                if is_path { Ok(PacketSource::File(path)) } else { Err(format!("no file, and no packet: {problem}")) }
            }
        }
    }
}

/// What a packet's first byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// Its Ethernet header.
    Ethernet,
    /// Its IP header.
    Ip,
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Captured {
    /// What its first byte belongs to.
    pub(crate) link: Link,
    /// Its bytes, as far as they were captured.
    pub(crate) bytes: Vec<u8>,
    /// How many bytes it had.
    pub(crate) length: usize,
}

impl PacketSource {
    /// Reads the packets, of which there is at least one. `hex` says where those in hexadecimal digits start.
    pub(crate) fn read(&self, hex: Link) -> Result<Vec<Captured>, String> {
        let (name, bytes) = match self {
            PacketSource::Bytes(bytes) => return Ok(vec![Captured::whole(hex, bytes.clone())]),
            PacketSource::File(path) => {
                let bytes = fs::read(path).map_err(|error| format!("reading {}: {error}", path.display()))?;
                (path.display().to_string(), bytes)
            }
            PacketSource::Stdin => {
                let mut bytes = Vec::new();
                io::stdin()
                    .lock()
                    .read_to_end(&mut bytes)
                    .map_err(|error| format!("reading standard input: {error}"))?;
                ("standard input".to_owned(), bytes)
            }
        };
        let packets = match bytes.first_chunk::<4>() {
            Some([0x0a, 0x0d, 0x0d, 0x0a]) => read_pcapng(&bytes),
            // times in microseconds or nanoseconds, either byte order
            Some([0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1]) => read_pcap(&bytes),
            Some([0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d]) => read_pcap(&bytes),
            _ => str::from_utf8(&bytes)
                .map_err(|_| "it is neither a pcap or pcapng file nor text".to_owned())
                .and_then(|text| Ok(vec![Captured::whole(hex, parse_hex(text)?)])),
        };
        match packets {
            Ok(packets) if packets.is_empty() => Err(format!("there is no packet in {name}")),
            Ok(packets) => Ok(packets),
            Err(problem) => Err(format!("reading a packet from {name}: {problem}")),
        }
    }
}

impl Captured {
    fn whole(link: Link, bytes: Vec<u8>) -> Captured {
        Captured { link, length: bytes.len(), bytes }
    }
}

/// A packet in hexadecimal digits. Blanks, colons and a `0x` in front do not matter.
fn parse_hex(text: &str) -> Result<Vec<u8>, String> {
    let text = text.trim();
    let digits: Vec<char> =
        text.strip_prefix("0x").unwrap_or(text).chars().filter(|c| !c.is_whitespace() && *c != ':').collect();
    if digits.is_empty() {
        return Err("it is empty; give its bytes in hexadecimal digits".to_owned());
    }
    if let Some(other) = digits.iter().find(|c| !c.is_ascii_hexdigit()) {
        return Err(format!("{other:?} is no hexadecimal digit"));
    }
    if !digits.len().is_multiple_of(2) {
        return Err(format!("{}: two make a byte", counted(digits.len(), "hexadecimal digit")));
    }
    let value = |digit: char| digit.to_digit(16).unwrap_or_default() as u8;
    Ok(digits.chunks(2).map(|pair| value(pair[0]) << 4 | value(pair[1])).collect())
}

fn read_pcap(bytes: &[u8]) -> Result<Vec<Captured>, String> {
    let mut reader = PcapReader::new(bytes).map_err(damage)?;
    let link = link_of(reader.header().datalink)?;
    let mut packets = Vec::new();
    // the other way to read it refuses packets that are longer than the file's snap length
    while let Some(packet) = reader.next_raw_packet() {
        let packet = packet.map_err(damage)?;
        packets.push(Captured { link, bytes: packet.data.into_owned(), length: packet.orig_len as usize });
    }
    Ok(packets)
}

fn read_pcapng(bytes: &[u8]) -> Result<Vec<Captured>, String> {
    let mut reader = PcapNgReader::new(bytes).map_err(damage)?;
    let mut packets = Vec::new();
    loop {
        let links: Vec<DataLink> = reader.interfaces().iter().map(|interface| interface.linktype).collect();
        let Some(block) = reader.next_block() else { return Ok(packets) };
        let (interface, bytes, length) = match block.map_err(damage)? {
            Block::EnhancedPacket(packet) => (packet.interface_id, packet.data.into_owned(), packet.original_len),
            Block::Packet(packet) => (packet.interface_id.into(), packet.data.into_owned(), packet.original_len),
            Block::SimplePacket(packet) => (0, packet.data.into_owned(), packet.original_len),
            _ => continue,
        };
        let link = links.get(interface as usize).ok_or_else(|| {
            format!("packet {} is of interface {interface}, which the file does not describe", packets.len() + 1)
        })?;
        packets.push(Captured { link: link_of(*link)?, bytes, length: length as usize });
    }
}

fn link_of(link: DataLink) -> Result<Link, String> {
    match link {
        DataLink::ETHERNET => Ok(Link::Ethernet),
        // files of some programs have raw IP by the number that its systems have for it: 14 is OpenBSD's (DLT_RAW of libpcap)
        DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 | DataLink::Unknown(12 | 14) => Ok(Link::Ip),
        other => {
            let name = match other {
                DataLink::Unknown(_) => String::new(),
                known => format!(" ({known:?})"),
            };
            Err(format!(
                "its packets are of link type {}{name}; captures of Ethernet (1) and raw IP (101) can be explained",
                u32::from(other)
            ))
        }
    }
}

fn damage(error: PcapError) -> String {
    match error {
        PcapError::IncompleteBuffer => "it is cut short".to_owned(),
        PcapError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => "it is cut short".to_owned(),
        other => format!("it is damaged: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_may_be_set_apart() {
        for text in ["0x0a0b0c", "0A:0b:0c", " 0a0b\n0c ", "0a 0b 0c"] {
            assert_eq!(text.parse(), Ok(PacketSource::Bytes(vec![10, 11, 12])), "{text}");
        }
        assert_eq!("-".parse(), Ok(PacketSource::Stdin));
        assert_eq!("a.pcap".parse(), Ok(PacketSource::File("a.pcap".into())));
        assert_eq!(
            "0a0".parse::<PacketSource>(),
            Err("no file, and no packet: 3 hexadecimal digits: two make a byte".to_owned())
        );
        assert_eq!(
            "pcap".parse::<PacketSource>(),
            Err("no file, and no packet: 'p' is no hexadecimal digit".to_owned())
        );
    }
}
