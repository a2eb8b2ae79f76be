//! The records in the registry's pinned maps, byte for byte. Native-endian; all lengths are fixed by [`VERSION`].
//!
//! Reading and updating an array map from user space is a plain memory copy in the kernel (`copy_map_value`), which
//! another process's copy may overlap. [`Header`], [`State`] and key records therefore end in a checksum: what does not match it
//! was caught in the middle of an update, or is damaged.

use std::time::SystemTime;

use packet_traits_core::{Key, KeyName, KeyType, Layout, Merge, Nonces, Region};

use super::{
    allocate::{DISTANCE_COUNT, Stamps},
    entry::{DESCRIPTION_LEN_MAX, Description, KeyEntry, KeySpec, Owner},
    utc,
};
use packet_traits_core::layout::KEY_COUNT;

/// First bytes of the header record.
pub(super) const MAGIC: [u8; 8] = *b"PTRREGS\0";

/// Version of the whole format: maps, sizes and meanings.
pub(super) const VERSION: u32 = 2;

/// The version before: its areas have no stamps, tags and checks, and its header no checksum.
pub(super) const OLD_VERSION: u32 = 1;

/// Bytes of the header record that every version has: magic, version.
pub(super) const PREFIX_LEN: usize = 12;

/// What is decided when a registry is created; of it, only the nonces are ever exchanged.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) layout: Layout,
    /// Not secret; tells registries apart, also later ones of the same name.
    pub(super) id: u64,
    pub(super) nonces: Nonces,
    pub(super) created_at: SystemTime,
    pub(super) name: [u8; 32],
    /// Tells what sockets keep for their packets from other storage of sockets. Secret.
    pub(super) sender_nonce: u64,
}

impl Header {
    pub(super) const LEN: usize = PREFIX_LEN + 4 + 4 + 4 + 8 + 8 + 8 + 8 + 32 + 8 + 8;

    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let mut raw = Writer::new();
        raw.put(&MAGIC);
        raw.put(&VERSION.to_ne_bytes());
        raw.put(&(self.layout.region_len(Region::Flow) as u32).to_ne_bytes());
        raw.put(&(self.layout.region_len(Region::Packet) as u32).to_ne_bytes());
        raw.put(&[0; 4]);
        raw.put(&self.id.to_ne_bytes());
        raw.put(&self.nonces.flow.to_ne_bytes());
        raw.put(&self.nonces.packet.to_ne_bytes());
        raw.put(&utc::nanos(self.created_at).to_ne_bytes());
        raw.put(&self.name);
        raw.put(&self.sender_nonce.to_ne_bytes());
        raw.finish_with_checksum()
    }

    /// Magic and version, which [`PREFIX_LEN`] bytes of any version's header begin with.
    pub(super) fn decode_prefix(raw: &[u8; PREFIX_LEN]) -> ([u8; 8], u32) {
        let mut raw = Reader(raw);
        (raw.take(), raw.u32())
    }

    /// Reads the rest; magic and version are already checked.
    pub(super) fn decode(raw: &[u8; Self::LEN]) -> Result<Header, String> {
        let body = checked(raw).ok_or("its checksum does not match")?;
        let mut raw = Reader(&body[PREFIX_LEN..]);
        let (flow, packet) = (raw.u32(), raw.u32());
        let layout = Layout::new(flow as usize, packet as usize).map_err(|e| format!("it describes {e}"))?;
        let [_, _, _, _] = raw.take();
        let id = raw.u64();
        let nonces = Nonces { flow: raw.u64(), packet: raw.u64() };
        if nonces != Nonces::from_random(nonces.flow, nonces.packet) {
            return Err("its nonces are not valid ones".to_owned());
        }
        let (created_at, name, sender_nonce) = (utc::from_nanos(raw.u64()), raw.take(), raw.u64());
        Ok(Header { layout, id, nonces, created_at, name, sender_nonce })
    }
}

/// Which keys there are: updating this record is what publishes a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Bit *k*: key *k* is registered.
    pub(super) live: u64,
    /// How many changes there were.
    pub(super) seq: u64,
    /// Bit *k*: key *k* is registered with the merge policy `discard`.
    pub(super) discard: u64,
}

impl State {
    pub(super) const LEN: usize = 32;

    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let mut raw = Writer::new();
        raw.put(&self.live.to_ne_bytes());
        raw.put(&self.seq.to_ne_bytes());
        raw.put(&self.discard.to_ne_bytes());
        raw.finish_with_checksum()
    }

    /// `None`: the checksum does not match.
    pub(super) fn decode(raw: &[u8; Self::LEN]) -> Option<State> {
        let mut raw = Reader(checked(raw)?);
        Some(State { live: raw.u64(), seq: raw.u64(), discard: raw.u64() })
    }
}

/// Bytes of a key record.
pub(super) const KEY_LEN: usize = 32 + (DESCRIPTION_LEN_MAX + 1) + 4 + 4 + 8 + 8 + 16 + 8;

/// The record of a key.
pub(super) fn encode_key(entry: &KeyEntry) -> [u8; KEY_LEN] {
    let mut raw = Writer::new();
    raw.put(entry.key.name().padded());
    raw.put(&padded::<{ DESCRIPTION_LEN_MAX + 1 }>(entry.description.as_str().as_bytes()));
    raw.put(&[entry.key.key_type() as u8, entry.merge as u8]);
    raw.put(&[entry.key.slot().size() as u8, entry.key.slot().distance() as u8]);
    raw.put(&entry.owner.uid.to_ne_bytes());
    raw.put(&entry.generation.to_ne_bytes());
    raw.put(&utc::nanos(entry.registered_at).to_ne_bytes());
    raw.put(&padded::<16>(entry.owner.comm.as_bytes()));
    raw.finish_with_checksum()
}

/// The beginning of a key record: what was registered, and size and distance of the slot.
fn decode_spec(raw: &mut Reader<'_>) -> Result<(KeySpec, usize, usize), String> {
    let name = KeyName::from_padded(&raw.take()).map_err(|e| e.to_string())?;
    let description: [u8; DESCRIPTION_LEN_MAX + 1] = raw.take();
    let description = Description::new(&text(&description)).map_err(|e| e.to_string())?;
    let [type_code, merge_code, size, distance] = raw.take();
    let key_type = KeyType::from_code(type_code).ok_or_else(|| format!("type code {type_code} is unknown"))?;
    let merge = Merge::from_code(merge_code).ok_or_else(|| format!("merge code {merge_code} is unknown"))?;
    Ok((KeySpec::new(name, key_type).merge(merge).description(description), size.into(), distance.into()))
}

/// The key with this number, or what is wrong with its record.
pub(super) fn decode_key(number: usize, layout: Layout, raw: &[u8; KEY_LEN]) -> Result<KeyEntry, String> {
    let mut raw = Reader(checked(raw).ok_or("its checksum does not match")?);
    let (KeySpec { name, key_type, merge, description }, size, distance) = decode_spec(&mut raw)?;
    let key = layout
        .slot(merge.region(), size, distance)
        .and_then(|slot| Key::new(number, name, key_type, slot))
        .ok_or_else(|| format!("{size} bytes at distance {distance} are no place for a {key_type} in this layout"))?;
    let uid = raw.u32();
    let generation = raw.u64();
    let registered_at = utc::from_nanos(raw.u64());
    let comm: [u8; 16] = raw.take();
    let comm = text(&comm).replace(char::is_control, "?");
    Ok(KeyEntry { key, merge, description, owner: Owner { comm, uid }, generation, registered_at })
}

/// What a header of [`OLD_VERSION`] says.
pub(super) struct OldHeader {
    pub(super) id: u64,
    /// Bytes for values in the flow and in the packet region.
    pub(super) slot_space: [usize; 2],
}

impl OldHeader {
    pub(super) const LEN: usize = Header::LEN - 16;

    pub(super) fn decode(raw: &[u8; Self::LEN]) -> OldHeader {
        const FOOTER: usize = 16;
        let mut raw = Reader(&raw[PREFIX_LEN..]);
        let slot_space = [raw.u32(), raw.u32()].map(|len| (len as usize).saturating_sub(FOOTER));
        let [_, _, _, _] = raw.take();
        OldHeader { id: raw.u64(), slot_space }
    }
}

/// Bytes of the state record of that version.
pub(super) const OLD_STATE_LEN: usize = State::LEN - 8;

/// Which keys a state record of that version says there are; `None`: the checksum does not match.
pub(super) fn old_live(raw: &[u8; OLD_STATE_LEN]) -> Option<u64> {
    Some(Reader(checked(raw)?).u64())
}

/// A key as a record of [`OLD_VERSION`] has it, but for its place.
pub(super) fn old_key(raw: &[u8; KEY_LEN]) -> Result<KeySpec, String> {
    Ok(decode_spec(&mut Reader(checked(raw).ok_or("its checksum does not match")?))?.0)
}

/// Bytes of the record of [`Stamps`].
pub(super) const STAMPS_LEN: usize = 8 * (KEY_COUNT + DISTANCE_COUNT);

/// The record of stamps.
pub(super) fn encode_stamps(stamps: &Stamps) -> [u8; STAMPS_LEN] {
    let mut raw = Writer::new();
    for stamp in stamps.bits.iter().chain(&stamps.bytes) {
        raw.put(&stamp.to_ne_bytes());
    }
    raw.finish()
}

/// The stamps of a record.
pub(super) fn decode_stamps(raw: &[u8; STAMPS_LEN]) -> Stamps {
    let mut raw = Reader(raw);
    Stamps { bits: std::array::from_fn(|_| raw.u64()), bytes: std::array::from_fn(|_| raw.u64()) }
}

/// Text from NUL-padded bytes.
pub(super) fn text(padded: &[u8]) -> String {
    let len = padded.iter().position(|byte| *byte == 0).unwrap_or(padded.len());
    String::from_utf8_lossy(&padded[..len]).into_owned()
}

/// Text as NUL-padded bytes, cut to leave one NUL.
pub(super) fn padded<const N: usize>(text: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    let len = text.len().min(N - 1);
    bytes[..len].copy_from_slice(&text[..len]);
    bytes
}

/// The bytes in front of a record's checksum, if it matches.
fn checked(raw: &[u8]) -> Option<&[u8]> {
    let (body, sum) = raw.split_last_chunk()?;
    (checksum(body) == u64::from_ne_bytes(*sum)).then_some(body)
}

/// 64-bit FNV-1a.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Fills a record of `N` bytes from the front.
struct Writer<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Writer<N> {
    fn new() -> Self {
        Writer { bytes: [0; N], len: 0 }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn finish(self) -> [u8; N] {
        debug_assert_eq!(self.len, N);
        self.bytes
    }

    fn finish_with_checksum(mut self) -> [u8; N] {
        self.put(&checksum(&self.bytes[..N - 8]).to_ne_bytes());
        self.finish()
    }
}

/// Takes a record apart from the front. The record's type fixes its length, so there is always enough.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (bytes, rest) = self.0.split_first_chunk().expect("records have a fixed length");
        self.0 = rest;
        *bytes
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use packet_traits_testing::layout::Types;

    use super::*;

    fn entry() -> KeyEntry {
        let slot = Layout::DEFAULT.slot(Region::Packet, 8, 104).unwrap();
        KeyEntry {
            key: Key::new(5, KeyName::new("flow_id").unwrap(), KeyType::U64, slot).unwrap(),
            merge: Merge::KeepFirst,
            description: Description::new("a flow").unwrap(),
            owner: Owner { comm: "traits".to_owned(), uid: 7 },
            generation: 9,
            registered_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(123_456_789),
        }
    }

    /// The socket programs read these two.
    #[test]
    fn programs_read_the_records_like_that() {
        let types = Types::of(include_bytes!(concat!(env!("OUT_DIR"), "/sockets.bpf.o")));
        let (entry, raw) = (entry(), encode_key(&entry()));
        let given = [
            ("name", entry.key.name().padded().to_vec()),
            ("description", padded::<128>(b"a flow").to_vec()),
            ("type", vec![KeyType::U64 as u8]),
            ("merge", vec![Merge::KeepFirst as u8]),
            ("size", vec![8]),
            ("distance", vec![104]),
            ("uid", 7u32.to_ne_bytes().to_vec()),
            ("generation", 9u64.to_ne_bytes().to_vec()),
            ("registered_at", 123_456_789u64.to_ne_bytes().to_vec()),
            ("comm", padded::<16>(b"traits").to_vec()),
            ("checksum", checksum(&raw[..KEY_LEN - 8]).to_ne_bytes().to_vec()),
        ];
        let key = types.structure("key_record");
        assert_eq!((key.size, key.misplaced(&raw, &given)), (KEY_LEN, Vec::new()));

        let state = State { live: 1 << 63 | 1, seq: 77, discard: 1 << 63 };
        let raw = state.encode();
        let given = [
            ("live", state.live.to_ne_bytes().to_vec()),
            ("seq", state.seq.to_ne_bytes().to_vec()),
            ("discard", state.discard.to_ne_bytes().to_vec()),
            ("checksum", checksum(&raw[..State::LEN - 8]).to_ne_bytes().to_vec()),
        ];
        let record = types.structure("state_record");
        assert_eq!((record.size, record.misplaced(&raw, &given)), (State::LEN, Vec::new()));
    }

    #[test]
    fn records_round_trip() {
        assert_eq!(decode_key(5, Layout::DEFAULT, &encode_key(&entry())), Ok(entry()));
        let state = State { live: 1 << 63 | 1, seq: 77, discard: 1 << 63 };
        assert_eq!(State::decode(&state.encode()), Some(state));
        let mut stamps = Stamps::NONE;
        stamps.free(63, entry().key.slot(), 4);
        assert_eq!(decode_stamps(&encode_stamps(&stamps)), stamps);
        let header = Header {
            layout: Layout::DEFAULT,
            id: 3,
            nonces: Nonces::from_random(8, 9),
            created_at: entry().registered_at,
            name: padded(b"default"),
            sender_nonce: 11,
        };
        let raw = header.encode();
        assert_eq!(Header::decode_prefix(raw.first_chunk().unwrap()), (MAGIC, VERSION));
        let again = Header::decode(&raw).unwrap();
        assert_eq!((again.layout, again.id, again.nonces), (header.layout, header.id, header.nonces));
        assert_eq!((again.created_at, text(&again.name)), (header.created_at, "default".to_owned()));
        assert_eq!(again.sender_nonce, 11);
    }

    #[test]
    fn a_torn_or_damaged_record_is_told() {
        let (old, new) =
            (State { live: 1, seq: 1, discard: 0 }, State { live: 0x1_0000_0003, seq: 0x1_0000_0002, discard: 2 });
        for cut in 1..State::LEN {
            let mut torn = old.encode();
            torn[..cut].copy_from_slice(&new.encode()[..cut]);
            assert!(State::decode(&torn).is_none_or(|state| state == new || state == old), "cut at {cut}");
        }
        assert_eq!(State::decode(&[0; State::LEN]), None);
        for byte in 0..KEY_LEN {
            let mut raw = encode_key(&entry());
            raw[byte] ^= 1;
            assert!(decode_key(5, Layout::DEFAULT, &raw).is_err(), "byte {byte}");
        }
        let elsewhere = Layout::new(64, 32).unwrap();
        assert!(decode_key(5, elsewhere, &encode_key(&entry())).unwrap_err().contains("no place"));
    }
}
