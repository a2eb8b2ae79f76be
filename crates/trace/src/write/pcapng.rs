//! pcapng: each event as a packet, with what is known of it as a comment and as JSON in a custom option.
//!
//! There is one interface for each point (and for each kind of link: where the MAC header is gone, packets start with the
//! IP header; where the kernel does not show the packet, there are no bytes, of link type USER0), named after the point, so that `frame.interface_name == "drop"` finds the drops in Wireshark.
//!
//! The custom option (code 2988, text that may be copied; draft-ietf-opsawg-pcapng section 3.5.1) has the private
//! enterprise number 32473, which is set aside for documentation (RFC 5612), since the project has none; its text is
//! `packet-traits:` and an object of type `event` of [`json`]. `pcap-file` cannot make custom options, so packet
//! blocks are put together here.

use std::{
    borrow::Cow,
    collections::HashMap,
    io::{self, Write},
};

use pcap_file::{
    DataLink, Endianness, PcapError,
    pcapng::{
        PcapNgWriter,
        blocks::{
            ENHANCED_PACKET_BLOCK, RawBlock,
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        },
    },
};

use super::{Clock, End, Sink, json, text};
use crate::{config::CAPTURE_MAX, event::Event, names::Names, path::Packet, point::Point, write};

/// Code of the custom option (`opt_custom`, UTF-8, may be copied).
pub const OPTION: u16 = 2988;
/// Its private enterprise number.
pub const ENTERPRISE: u32 = 32473;
/// How its text starts.
pub const PREFIX: &str = "packet-traits:";

/// Bytes of a block's type and its two lengths.
const BLOCK_FRAME: usize = 12;
/// Code of a comment (`opt_comment`).
const COMMENT: u16 = 1;

/// Appends an option. Its length has 16 bits: what is longer, if ever anything is, is left out.
fn option(to: &mut Vec<u8>, code: u16, start: &[u8], text: &str) {
    if let Ok(len) = u16::try_from(start.len() + text.len()) {
        to.extend(code.to_ne_bytes());
        to.extend(len.to_ne_bytes());
        to.extend(start);
        to.extend(text.as_bytes());
        pad(to);
    }
}

/// Pads to 32 bits.
fn pad(to: &mut Vec<u8>) {
    to.resize(to.len().next_multiple_of(4), 0);
}

/// A file that is being written.
pub struct File<W: Write> {
    writer: PcapNgWriter<W>,
    interfaces: HashMap<(Point, u32), u32>,
    clock: Clock,
}

impl<W: Write> File<W> {
    /// Starts a file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(to: W, clock: Clock) -> io::Result<File<W>> {
        let writer = PcapNgWriter::with_endianness(to, Endianness::native()).map_err(of_pcap)?;
        Ok(File { writer, interfaces: HashMap::new(), clock })
    }

    /// One that has none of the packet's bytes is written as an empty packet.
    fn write(
        &mut self,
        event: &Event<'_>,
        since_entered: u64,
        packet: &Packet,
        names: &mut Names,
    ) -> Result<(), PcapError> {
        let (bytes, with_mac) = event.bytes();
        let link = match (bytes, with_mac) {
            ([], _) => DataLink::USER0,
            (_, true) => DataLink::ETHERNET,
            (_, false) => DataLink::RAW,
        };
        let interface_id = self.interface(event.point(), link)?;
        let mut comment = format!("#{} {} +{}", event.id(), event.point(), text::time(since_entered));
        let netns = names.namespace(event.netns());
        for (name, value) in [("dev", event.device()), ("netns", &netns)] {
            if !value.is_empty() {
                comment.push_str(&format!(" {name}={value}"));
            }
        }
        for (key, value) in event.traits() {
            comment.push_str(&format!(" {}={value}", key.name()));
        }
        let detail = write::detail(event, Some(packet), names);
        if !detail.is_empty() {
            comment.push_str(&format!(" {detail}"));
        }
        let object = json::event(event, since_entered, Some(packet), names).unwrap_or_default();
        let at = self.clock.wall(event.at());
        let mut body = Vec::with_capacity(512);
        for word in [interface_id, (at >> 32) as u32, at as u32, bytes.len() as u32, event.whole_len()] {
            body.extend(word.to_ne_bytes());
        }
        body.extend(bytes);
        pad(&mut body);
        option(&mut body, COMMENT, &[], &comment);
        option(&mut body, OPTION, &ENTERPRISE.to_ne_bytes(), &format!("{PREFIX}{object}"));
        body.extend([0; 4]);
        let len = (body.len() + BLOCK_FRAME) as u32;
        self.writer.write_raw_block(&RawBlock {
            type_: ENHANCED_PACKET_BLOCK,
            initial_len: len,
            body: Cow::Owned(body),
            trailer_len: len,
        })?;
        Ok(())
    }

    fn interface(&mut self, point: Point, link: DataLink) -> Result<u32, PcapError> {
        if let Some(interface) = self.interfaces.get(&(point, u32::from(link))) {
            return Ok(*interface);
        }
        let id = self.interfaces.len() as u32;
        self.writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: link,
            snaplen: CAPTURE_MAX as u32,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Borrowed(point.name())),
                InterfaceDescriptionOption::IfDescription(Cow::Borrowed(point.hook())),
                // nanoseconds
                InterfaceDescriptionOption::IfTsResol(9),
            ],
        })?;
        self.interfaces.insert((point, u32::from(link)), id);
        Ok(id)
    }
}

impl<W: Write> Sink for File<W> {
    fn event(&mut self, event: &Event<'_>, since_entered: u64, packet: &Packet, names: &mut Names) -> io::Result<()> {
        self.write(event, since_entered, packet, names).map_err(of_pcap)
    }

    fn end(&mut self, _: &End<'_>, _: &mut Names) -> io::Result<()> {
        self.writer.get_mut().flush()
    }
}

fn of_pcap(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}
