//! Views over the bytes of a trait area: checked once when made, infallible to read from then on.
//!
//! A view is made from the bytes directly in front of the packet data, as an AF_XDP application finds them in front of
//! a received frame; it finds the regions by their distance from the packet data and leaves everything below them
//! alone. What it reads has the registry's nonces, or it reads nothing.

use core::{fmt, ops::Range};

use crate::{
    key::{Key, KeyName},
    layout::{Layout, Nonces, Region},
    typed::{TraitValue, TypeMismatch, TypedKey},
    value::Value,
};

/// Bytes of each of a footer's words.
const WORD: usize = 8;

/// Why bytes are not a trait area of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ViewError {
    /// Fewer bytes than the area, or than its flow region, has.
    TooShort {
        /// Bytes that are needed.
        needed: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// The XDP metadata is shorter than the flow region, so nobody has put traits on this packet.
    MetadataTooShort {
        /// Bytes of the flow region.
        needed: usize,
        /// Bytes of the metadata.
        found: usize,
    },
    /// The flow region does not end in the registry's nonce: the bytes belong to another registry, to another program,
    /// or to nobody.
    Nonce,
    /// A nonce is 0, which no registry has; zeroed memory would pass for traits.
    ZeroNonce,
}

impl fmt::Display for ViewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ViewError::TooShort { needed, found } => {
                write!(f, "the trait area needs {needed} bytes in front of the packet data, but there are {found}")
            }
            ViewError::MetadataTooShort { needed, found } => {
                write!(
                    f,
                    "no traits on this packet: its XDP metadata has {found} bytes, the flow region alone has {needed}"
                )
            }
            ViewError::Nonce => {
                f.write_str("no traits of this registry on this packet: the flow region's nonce differs")
            }
            ViewError::ZeroNonce => f.write_str("a nonce of the registry is 0: take the nonces from the registry"),
        }
    }
}

impl core::error::Error for ViewError {}

/// Why a value was not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetError {
    /// The value, or the call, is of another type than the key.
    Type(TypeMismatch),
    /// The key has no slot in the layout of this area.
    NoSlot(KeyName),
    /// The key's value lies in the packet region, which this area does not have.
    NoPacketRegion(KeyName),
}

impl fmt::Display for SetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetError::Type(mismatch) => mismatch.fmt(f),
            SetError::NoSlot(key) => {
                write!(f, "key '{key}' has no slot in this area: take the key and the layout from the same registry")
            }
            SetError::NoPacketRegion(key) => {
                write!(f, "key '{key}' lies in the packet region, which is not valid on this packet")
            }
        }
    }
}

impl core::error::Error for SetError {}

impl From<TypeMismatch> for SetError {
    fn from(mismatch: TypeMismatch) -> Self {
        SetError::Type(mismatch)
    }
}

/// What a view found of the packet region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketRegion {
    /// It is inside the XDP metadata.
    Open,
    /// It is hidden below the XDP metadata, which is the flow region and nothing else.
    Sealed,
    /// The layout has none, or it does not end in what the metadata's length calls for. Its keys are not set.
    Absent,
}

/// The traits of one packet, read-only.
#[derive(Clone, Copy)]
pub struct TraitsView<'a> {
    /// The regions that are valid, up to the packet data.
    area: &'a [u8],
    layout: Layout,
    packet_region: PacketRegion,
}

impl<'a> TraitsView<'a> {
    /// Checks the bytes that end at the packet data.
    ///
    /// `in_front_of_packet` may reach further down than the area. `metadata_len` is the length of the visible XDP
    /// metadata in bytes (`data - data_meta`): the packet region is open if the metadata covers the whole area, sealed
    /// if it is exactly the flow region, and absent otherwise. In both cases its last word must say the same.
    ///
    /// [`ViewError`] if there is no valid flow region.
    pub fn new_checked(
        in_front_of_packet: &'a [u8],
        layout: &Layout,
        nonces: &Nonces,
        metadata_len: usize,
    ) -> Result<TraitsView<'a>, ViewError> {
        let (packet_region, area) = check(in_front_of_packet, layout, nonces, metadata_len)?;
        Ok(TraitsView { area: &in_front_of_packet[area], layout: *layout, packet_region })
    }

    /// Checks the bytes in front of a packet whose metadata is visible in full, as it is to AF_XDP.
    ///
    /// [`new_checked`](TraitsView::new_checked) with a `metadata_len` of all the bytes given.
    pub fn open(in_front_of_packet: &'a [u8], layout: &Layout, nonces: &Nonces) -> Result<TraitsView<'a>, ViewError> {
        TraitsView::new_checked(in_front_of_packet, layout, nonces, in_front_of_packet.len())
    }

    /// What was found of the packet region.
    pub const fn packet_region(&self) -> PacketRegion {
        self.packet_region
    }

    /// The `present` word of a region: bit *k* is set if key *k* has a value there. 0 for an absent region.
    pub fn present(&self, region: Region) -> u64 {
        present_range(self.area.len(), &self.layout, region).map_or(0, |range| word(self.area, range))
    }

    /// Whether a key has a value.
    pub fn is_set(&self, key: &Key) -> bool {
        self.bytes(key).is_some()
    }

    /// A key's value.
    pub fn get<T: TraitValue>(&self, key: &TypedKey<T>) -> Option<T> {
        // the type is known here, so that there is nothing to tell apart at run time
        T::from_value(Value::from_bytes(T::KEY_TYPE, self.bytes(key.key())?)?)
    }

    /// A key's value, with its type.
    pub fn value(&self, key: &Key) -> Option<Value> {
        Value::from_bytes(key.key_type(), self.bytes(key)?)
    }

    /// The bytes of a key's value, in the order of [`KeyType`](crate::KeyType); none for a flag that is set.
    pub fn bytes(&self, key: &Key) -> Option<&'a [u8]> {
        let range = slot_range(self.area.len(), &self.layout, key).ok()?;
        (self.present(key.slot().region()) & key.bit() != 0).then(|| &self.area[range])
    }

    /// Those of `keys` that have a value, in the same order.
    pub fn iter<'k>(&self, keys: &'k [Key]) -> impl Iterator<Item = (&'k Key, Value)> + use<'a, 'k> {
        let view = *self;
        keys.iter().filter_map(move |key| Some((key, view.value(key)?)))
    }
}

impl fmt::Debug for TraitsView<'_> {
    /// Without the bytes: they hold the nonces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraitsView")
            .field("layout", &self.layout)
            .field("packet_region", &self.packet_region)
            .field("flow_present", &self.present(Region::Flow))
            .field("packet_present", &self.present(Region::Packet))
            .finish()
    }
}

/// The traits of one packet, to read and write.
pub struct TraitsMut<'a> {
    /// The regions that are valid, up to the packet data.
    area: &'a mut [u8],
    layout: Layout,
    packet_region: PacketRegion,
}

impl<'a> TraitsMut<'a> {
    /// Makes an open area without values of the last [`Layout::area_len`] bytes: zeroes them and writes the nonces.
    ///
    /// [`ViewError::TooShort`] or [`ViewError::ZeroNonce`], in which case nothing is written.
    pub fn init(
        in_front_of_packet: &'a mut [u8],
        layout: &Layout,
        nonces: &Nonces,
    ) -> Result<TraitsMut<'a>, ViewError> {
        check_nonces(layout, nonces)?;
        let range = tail(in_front_of_packet.len(), layout.area_len())?;
        let area = &mut in_front_of_packet[range];
        area.fill(0);
        let mut packet_region = PacketRegion::Absent;
        for (region, nonce) in [(Region::Flow, nonces.flow), (Region::Packet, nonces.packet)] {
            if let Some(range) = nonce_range(area.len(), layout, region) {
                area[range].copy_from_slice(&nonce.to_ne_bytes());
                if region == Region::Packet {
                    packet_region = PacketRegion::Open;
                }
            }
        }
        Ok(TraitsMut { area, layout: *layout, packet_region })
    }

    /// Checks the bytes that end at the packet data, as [`TraitsView::new_checked`] does.
    pub fn new_checked(
        in_front_of_packet: &'a mut [u8],
        layout: &Layout,
        nonces: &Nonces,
        metadata_len: usize,
    ) -> Result<TraitsMut<'a>, ViewError> {
        let (packet_region, area) = check(in_front_of_packet, layout, nonces, metadata_len)?;
        Ok(TraitsMut { area: &mut in_front_of_packet[area], layout: *layout, packet_region })
    }

    /// Checks the bytes in front of a packet whose metadata is visible in full, as [`TraitsView::open`] does.
    pub fn open(
        in_front_of_packet: &'a mut [u8],
        layout: &Layout,
        nonces: &Nonces,
    ) -> Result<TraitsMut<'a>, ViewError> {
        let metadata_len = in_front_of_packet.len();
        TraitsMut::new_checked(in_front_of_packet, layout, nonces, metadata_len)
    }

    /// The same traits, read-only.
    pub const fn as_view(&self) -> TraitsView<'_> {
        TraitsView { area: self.area, layout: self.layout, packet_region: self.packet_region }
    }

    /// Sets a key's value. On an error nothing is written.
    pub fn set<T: TraitValue>(&mut self, key: &TypedKey<T>, value: T) -> Result<(), SetError> {
        self.set_value(key.key(), &value.into())
    }

    /// Sets a key's value; it must be of the key's type. On an error nothing is written.
    pub fn set_value(&mut self, key: &Key, value: &Value) -> Result<(), SetError> {
        TypeMismatch::check(key, value.key_type())?;
        let slot = slot_range(self.area.len(), &self.layout, key)?;
        self.area[slot].copy_from_slice(&value.to_bytes());
        self.update_present(key.slot().region(), |present| present | key.bit());
        Ok(())
    }

    /// Sets a key of type [`KeyType::Flag`](crate::KeyType::Flag). On an error nothing is written.
    pub fn set_flag(&mut self, key: &Key) -> Result<(), SetError> {
        self.set_value(key, &Value::Flag)
    }

    /// Takes a key's value away and zeroes its slot; whether it had one.
    pub fn delete(&mut self, key: &Key) -> bool {
        let was_set = self.as_view().is_set(key);
        if was_set && let Ok(slot) = slot_range(self.area.len(), &self.layout, key) {
            self.update_present(key.slot().region(), |present| present & !key.bit());
            self.area[slot].fill(0);
        }
        was_set
    }

    /// Takes the values of all keys away and zeroes their slots, in the regions that are valid. The area stays as it is
    /// otherwise.
    pub fn clear(&mut self) {
        for region in [Region::Flow, Region::Packet] {
            if let Some(present) = present_range(self.area.len(), &self.layout, region) {
                let start = self.area.len() - self.layout.region_end(region) - self.layout.region_len(region);
                self.area[start..start + self.layout.slot_space(region)].fill(0);
                self.area[present].fill(0);
            }
        }
    }

    /// Makes the bytes in front of a packet no trait area any more: zeroes the places of the nonces.
    ///
    /// An AF_XDP application calls it on a frame that it has read, before it gives the frame back to be filled. The kernel
    /// writes nothing in front of a packet that has no metadata, and does not say which packets have, so the traits of
    /// the frame's earlier packet would be taken for the next one's. It is not needed if every XDP program that redirects
    /// to the socket reserves the area on every packet (`trait_init` in `traits.bpf.h`).
    pub fn erase(in_front_of_packet: &mut [u8], layout: &Layout) {
        for region in [Region::Flow, Region::Packet] {
            if let Some(nonce) = nonce_range(in_front_of_packet.len(), layout, region) {
                in_front_of_packet[nonce].fill(0);
            }
        }
    }

    fn update_present(&mut self, region: Region, update: impl FnOnce(u64) -> u64) {
        if let Some(range) = present_range(self.area.len(), &self.layout, region) {
            let present = update(word(self.area, range.clone()));
            self.area[range].copy_from_slice(&present.to_ne_bytes());
        }
    }
}

impl fmt::Debug for TraitsMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_view().fmt(f)
    }
}

/// What there is of an area, and the bytes of its valid regions.
fn check(
    bytes: &[u8],
    layout: &Layout,
    nonces: &Nonces,
    metadata_len: usize,
) -> Result<(PacketRegion, Range<usize>), ViewError> {
    check_nonces(layout, nonces)?;
    let flow_len = layout.region_len(Region::Flow);
    let flow = tail(bytes.len(), flow_len)?;
    if metadata_len < flow_len {
        return Err(ViewError::MetadataTooShort { needed: flow_len, found: metadata_len });
    }
    let has_nonce =
        |region, nonce| nonce_range(bytes.len(), layout, region).is_some_and(|range| word(bytes, range) == nonce);
    if !has_nonce(Region::Flow, nonces.flow) {
        return Err(ViewError::Nonce);
    }
    let (state, nonce) = if metadata_len >= layout.area_len() {
        (PacketRegion::Open, nonces.packet)
    } else if metadata_len == flow_len
        && let Some(id) = id_range(bytes.len(), layout)
    {
        let stamp = word(bytes, stamp_range(bytes.len()));
        (PacketRegion::Sealed, nonces.tag(word(bytes, id), stamp))
    } else {
        return Ok((PacketRegion::Absent, flow));
    };
    if has_nonce(Region::Packet, nonce) {
        Ok((state, tail(bytes.len(), layout.area_len())?))
    } else {
        Ok((PacketRegion::Absent, flow))
    }
}

/// Refuses the nonces that zeroed memory would match.
fn check_nonces(layout: &Layout, nonces: &Nonces) -> Result<(), ViewError> {
    if nonces.flow == 0 || nonces.packet == 0 && layout.region_len(Region::Packet) != 0 {
        return Err(ViewError::ZeroNonce);
    }
    Ok(())
}

/// The last `needed` of `len` bytes.
fn tail(len: usize, needed: usize) -> Result<Range<usize>, ViewError> {
    let start = len.checked_sub(needed).ok_or(ViewError::TooShort { needed, found: len })?;
    Ok(start..len)
}

/// Where a region's `present` word lies in `len` bytes that end at the packet data, if they hold the whole region.
fn present_range(len: usize, layout: &Layout, region: Region) -> Option<Range<usize>> {
    let region_len = layout.region_len(region);
    if region_len == 0 || len < layout.region_end(region) + region_len {
        return None;
    }
    let start = len - layout.region_end(region) - 2 * WORD;
    Some(start..start + WORD)
}

/// Where a region's nonce lies in `len` bytes that end at the packet data, if they hold the whole region.
fn nonce_range(len: usize, layout: &Layout, region: Region) -> Option<Range<usize>> {
    let present = present_range(len, layout, region)?;
    Some(present.end..present.end + WORD)
}

/// Where the packet region's `id` lies in `len` bytes that end at the packet data, if they hold the whole region.
fn id_range(len: usize, layout: &Layout) -> Option<Range<usize>> {
    let present = present_range(len, layout, Region::Packet)?;
    Some(present.start - 2 * WORD..present.start - WORD)
}

/// Where the flow region's `stamp` lies in `len` bytes that end at the packet data and hold the whole area.
fn stamp_range(len: usize) -> Range<usize> {
    len - 3 * WORD..len - 2 * WORD
}

/// Where a key's value lies in `len` bytes of valid regions that end at the packet data.
fn slot_range(len: usize, layout: &Layout, key: &Key) -> Result<Range<usize>, SetError> {
    let slot = key.slot();
    if layout.slot(slot.region(), slot.size(), slot.distance()).is_none() {
        return Err(SetError::NoSlot(*key.name()));
    }
    if present_range(len, layout, slot.region()).is_none() {
        return Err(SetError::NoPacketRegion(*key.name()));
    }
    let start = len - slot.distance();
    Ok(start..start + slot.size())
}

/// The u64 in native endianness at `range`, which is 8 bytes long.
fn word(bytes: &[u8], range: Range<usize>) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[range]);
    u64::from_ne_bytes(word)
}
