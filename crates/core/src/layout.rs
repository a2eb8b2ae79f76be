//! Where things lie in the trait area: regions, slots and footers, as distances from the packet data.
//!
//! The area sits directly in front of the packet data, inside the XDP metadata:
//!
//! ```text
//! | packet region: slots …, id, check, present, tag | flow region: slots …, stamp, present, nonce | packet data
//! ```
//!
//! Each region ends in its footer, words of 8 bytes:
//!
//! - `present`: bit *k* is set if key *k* has a value in this region.
//! - `nonce`: the secret of the registry that says that the region is authentic.
//! - `stamp`: the headroom, in bytes, that XDP saw when the area was made or sealed, and so the place of the packet region
//!   once it is hidden. An area without a packet region has a check in its place, one of at most 32 bytes neither.
//! - `tag`: the packet region's nonce while the area is open. Once it is sealed, a number made from secrets, `id` and
//!   `stamp`, which is odd.
//! - `id`: the packet's number on this host, 0 while the area is open.
//! - `check`: 47 bits made from secrets and bytes 30 to 37 of the packet as XDP saw it, 0 if the packet is shorter. By them a
//!   reader behind a decapsulation knows that the area belongs to this packet. The low 17 bits hold the length of the frame up to
//!   the end of its IP packet. They are 0 while the area is open, and if no key has the merge policy `discard`.
//!
//! Every place in it is named by its *distance*: the number of bytes from the packet data back to the first byte.
//! Region sizes are fixed when a registry is created, so every distance is a constant.

use core::fmt;

/// Bytes of the flow region's footer: `stamp`, `present`, `nonce`.
pub const FLOW_FOOTER_LEN: usize = 24;

/// Bytes of the flow region's footer in an area that is no longer than [`SHORT_AREA_LEN`]: `present`, `nonce`.
pub const SHORT_FLOW_FOOTER_LEN: usize = 16;

/// The longest area that kernels before 6.8 let XDP reserve (`xdp_metalen_invalid` in include/net/xdp.h).
pub const SHORT_AREA_LEN: usize = 32;

/// Bytes of the packet region's footer: `id`, `check`, `present`, `tag`.
pub const PACKET_FOOTER_LEN: usize = 32;

/// How many keys a registry has: one bit of a footer's `present` word each.
pub const KEY_COUNT: usize = 64;

/// The largest area the kernel lets XDP reserve, in bytes (`xdp_metalen_invalid` in include/net/xdp.h: at most 255,
/// a multiple of 4).
pub const AREA_LEN_MAX: usize = 252;

/// The largest area that every measured driver has headroom for, in bytes: native veth has 256 bytes of headroom of
/// which `struct xdp_frame` takes 40.
pub const AREA_LEN_PORTABLE: usize = 216;

/// One of the two parts of the area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Region {
    /// Nearest to the packet data and always visible to GRO: packets whose flow regions differ are not merged.
    Flow,
    /// In front of the flow region, hidden from GRO once the area is sealed.
    Packet,
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Region::Flow => "flow",
            Region::Packet => "packet",
        })
    }
}

/// Why two region sizes do not make a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutError {
    /// The flow region is not a multiple of 8 or has no room for its footer.
    Flow(usize),
    /// The packet region is not a multiple of 8 or, unless it is empty, has no room for its footer.
    Packet(usize),
    /// Together they are longer than [`AREA_LEN_MAX`].
    TooLong(usize),
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayoutError::Flow(len) => {
                write!(
                    f,
                    "a flow region of {len} bytes: it must be a multiple of 8 and at least {FLOW_FOOTER_LEN}, or \
                     {SHORT_FLOW_FOOTER_LEN} without a packet region"
                )
            }
            LayoutError::Packet(len) => {
                write!(
                    f,
                    "a packet region of {len} bytes: it must be 0, or a multiple of 8 and at least {PACKET_FOOTER_LEN}"
                )
            }
            LayoutError::TooLong(len) => {
                write!(f, "an area of {len} bytes: the kernel allows {AREA_LEN_MAX} bytes of XDP metadata")
            }
        }
    }
}

impl core::error::Error for LayoutError {}

/// The sizes of the two regions of a registry's area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    flow: u8,
    packet: u8,
}

impl Layout {
    /// 64 bytes for the flow region and 80 for the packet region, the default of a new registry.
    pub const DEFAULT: Layout = Layout { flow: 64, packet: 80 };

    /// A layout of `flow` and `packet` bytes, footers included.
    ///
    /// `flow` is a multiple of 8 and at least [`FLOW_FOOTER_LEN`] (its footer authenticates the whole area); `packet` is
    /// a multiple of 8 and at least [`PACKET_FOOTER_LEN`], or 0 for no packet region, in which case `flow` may be
    /// [`SHORT_FLOW_FOOTER_LEN`].
    pub const fn new(flow: usize, packet: usize) -> Result<Layout, LayoutError> {
        if flow < flow_footer_len(flow, packet) || !flow.is_multiple_of(8) {
            return Err(LayoutError::Flow(flow));
        }
        if packet != 0 && packet < PACKET_FOOTER_LEN || !packet.is_multiple_of(8) {
            return Err(LayoutError::Packet(packet));
        }
        if flow > AREA_LEN_MAX || packet > AREA_LEN_MAX || flow + packet > AREA_LEN_MAX {
            return Err(LayoutError::TooLong(flow.saturating_add(packet)));
        }
        Ok(Layout { flow: flow as u8, packet: packet as u8 })
    }

    /// [`DEFAULT`](Self::DEFAULT) as far as it fits into `longest` bytes of metadata: first the flow region, then the
    /// packet region. `None` if there is no room for a flow region.
    pub const fn default_within(longest: usize) -> Option<Layout> {
        const fn shorter(len: u8, room: usize) -> usize {
            if (len as usize) < room { len as usize } else { room }
        }
        let flow = shorter(Self::DEFAULT.flow, longest / 8 * 8);
        let packet = shorter(Self::DEFAULT.packet, (longest - flow) / 8 * 8);
        match Layout::new(flow, if packet < PACKET_FOOTER_LEN { 0 } else { packet }) {
            Ok(layout) => Some(layout),
            Err(_) => None,
        }
    }

    /// Bytes of one region, footer included; 0 if the layout has no such region.
    #[inline]
    pub const fn region_len(&self, region: Region) -> usize {
        match region {
            Region::Flow => self.flow as usize,
            Region::Packet => self.packet as usize,
        }
    }

    /// Distance from the packet data to the end of a region: 0 for the flow region, its length for the packet region.
    #[inline]
    pub const fn region_end(&self, region: Region) -> usize {
        match region {
            Region::Flow => 0,
            Region::Packet => self.flow as usize,
        }
    }

    /// Bytes of the whole area.
    pub const fn area_len(&self) -> usize {
        self.flow as usize + self.packet as usize
    }

    /// Bytes of a region's footer; of the packet region also if the layout has none.
    #[inline]
    pub const fn footer_len(&self, region: Region) -> usize {
        match region {
            Region::Flow => flow_footer_len(self.flow as usize, self.packet as usize),
            Region::Packet => PACKET_FOOTER_LEN,
        }
    }

    /// Bytes of a region that slots can use.
    #[inline]
    pub const fn slot_space(&self, region: Region) -> usize {
        self.region_len(region).saturating_sub(self.footer_len(region))
    }

    /// The layout with as much room for values in the two regions, or a little more; without a packet region if that has none.
    pub const fn for_slot_space(flow: usize, packet: usize) -> Result<Layout, LayoutError> {
        let packet = if packet == 0 { 0 } else { packet.next_multiple_of(8) + PACKET_FOOTER_LEN };
        let slots = flow.next_multiple_of(8);
        Layout::new(slots + flow_footer_len(slots + SHORT_FLOW_FOOTER_LEN, packet), packet)
    }

    /// Bytes of an area like this one, at least, in which `region` had room for `size` more bytes of values.
    pub const fn longer_area_len(&self, region: Region, size: usize) -> usize {
        let footer = match region {
            Region::Packet if self.packet == 0 => PACKET_FOOTER_LEN,
            _ => 0,
        };
        self.area_len() - self.footer_len(Region::Flow) + FLOW_FOOTER_LEN + footer + size
    }

    /// The slot of `size` bytes at `distance` from the packet data, if it lies in `region`, is aligned to its size up
    /// to 8 and does not touch the footer. A flag (size 0) has distance 0.
    #[inline]
    pub const fn slot(&self, region: Region, size: usize, distance: usize) -> Option<Slot> {
        if !matches!(size, 0 | 1 | 2 | 4 | 8 | 16) || self.region_len(region) == 0 {
            return None;
        }
        if size == 0 {
            return if distance == 0 { Some(Slot { region, size: 0, distance: 0 }) } else { None };
        }
        let align = if size > 8 { 8 } else { size };
        let lowest = self.region_end(region) + self.footer_len(region) + size;
        let highest = self.region_end(region) + self.region_len(region);
        if distance < lowest || distance > highest || !distance.is_multiple_of(align) {
            return None;
        }
        Some(Slot { region, size: size as u8, distance: distance as u8 })
    }

    /// Every place in `region` where a slot of `size` bytes may lie, nearest to the packet data first.
    pub fn places(&self, region: Region, size: usize) -> impl Iterator<Item = Slot> + use<> {
        let layout = *self;
        (0..=layout.area_len()).filter_map(move |distance| layout.slot(region, size, distance))
    }
}

const fn flow_footer_len(flow: usize, packet: usize) -> usize {
    if packet == 0 && flow <= SHORT_AREA_LEN { SHORT_FLOW_FOOTER_LEN } else { FLOW_FOOTER_LEN }
}

impl Default for Layout {
    fn default() -> Self {
        Layout::DEFAULT
    }
}

/// Where a key's value lies: its region, size and distance from the packet data, all in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    region: Region,
    size: u8,
    distance: u8,
}

impl Slot {
    /// The region it lies in.
    pub const fn region(&self) -> Region {
        self.region
    }

    /// Bytes of the value: 0, 1, 2, 4, 8 or 16.
    pub const fn size(&self) -> usize {
        self.size as usize
    }

    /// Bytes from the packet data back to the value's first byte; 0 for a flag.
    pub const fn distance(&self) -> usize {
        self.distance as usize
    }

    /// The distances the slot covers: its first byte has the largest.
    pub const fn distances(&self) -> core::ops::RangeInclusive<usize> {
        self.distance() + 1 - self.size()..=self.distance()
    }

    /// Whether two slots share a byte.
    pub const fn overlaps(&self, other: &Slot) -> bool {
        self.size != 0
            && other.size != 0
            && self.distance() - self.size() < other.distance()
            && other.distance() - other.size() < self.distance()
    }
}

/// The secrets that authenticate the two regions of one registry's areas.
///
/// A nonce is never 0 and always even. The packet region ends in its nonce while the area is open (the region is inside the
/// XDP metadata), and once it is sealed (hidden below it) in a [`tag`](Self::tag), which is odd. A reader knows from the
/// metadata's length which one to expect, so a foreign program that grows its metadata over a hidden region makes the
/// region invalid, even if it writes nothing there. A tag is of one packet and one place, and is of no use
/// without the flow region's nonce.
///
/// The last two bytes of the flow region's nonce, as they lie in memory, are 0, so a guess is right once in 2^47. They
/// touch the Ethernet header, and the kernel zeroes them when it forwards a packet to a neighbour whose header it has
/// cached: it writes 16 bytes for a header of 14 (`neigh_hh_output` in include/net/neighbour.h).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Nonces {
    /// The flow region's nonce.
    pub flow: u64,
    /// The packet region's nonce while the area is open.
    pub packet: u64,
}

impl Nonces {
    /// Nonces made from two random numbers, with the bits that are fixed put right; 0 is replaced.
    pub const fn from_random(flow: u64, packet: u64) -> Nonces {
        const fn even(n: u64) -> u64 {
            if n & !1 == 0 { 2 } else { n & !1 }
        }
        let [a, b, c, d, e, f, _, _] = flow.to_ne_bytes();
        let flow = match u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]) & !1 {
            0 => u64::from_ne_bytes([2, 0, 0, 0, 0, 0, 0, 0]),
            flow => flow,
        };
        Nonces { flow, packet: even(packet) }
    }

    /// The secret factors of [`tag`](Self::tag). Odd.
    pub const fn tag_keys(&self) -> [u64; 2] {
        [derived(self.packet, 1) | 1, derived(self.packet, 2) | 1]
    }

    /// The secret term and factor of a packet's check: `(word ^ term) * factor`. Odd.
    pub const fn check_keys(&self) -> [u64; 2] {
        [derived(self.packet, 3) | 1, derived(self.packet, 4) | 1]
    }

    /// What the packet region of a sealed area ends in, if it has this `id` and the flow region this `stamp`.
    pub const fn tag(&self, id: u64, stamp: u64) -> u64 {
        let [first, second] = self.tag_keys();
        let tag = (id ^ self.packet ^ stamp.wrapping_mul(second)).wrapping_mul(first);
        (tag ^ tag >> 32).wrapping_mul(second) | 1
    }
}

/// A number that a secret determines: the output of SplitMix64. It can be turned back, so it is as secret.
const fn derived(secret: u64, number: u64) -> u64 {
    let z = secret.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

impl fmt::Debug for Nonces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonces(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_a_cached_header_overwrites_hold_no_nonce() {
        let nonces = Nonces::from_random(u64::MAX, u64::MAX);
        assert_eq!(nonces.flow.to_ne_bytes()[6..], [0, 0]);
        assert_eq!(nonces.flow.count_ones(), if cfg!(target_endian = "little") { 47 } else { 48 });
        assert_eq!(nonces.packet.count_ones(), 63);
        let least = Nonces::from_random(u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 9, 9]), 0);
        assert!(least.flow != 0 && least.packet != 0);
        assert_eq!(least, Nonces::from_random(least.flow, least.packet));
    }

    #[test]
    fn layout_refuses_what_the_kernel_would() {
        assert_eq!(Layout::new(8, 0), Err(LayoutError::Flow(8)));
        assert_eq!(Layout::new(20, 0), Err(LayoutError::Flow(20)));
        assert_eq!(Layout::new(16, 32), Err(LayoutError::Flow(16)));
        assert_eq!(Layout::new(64, 24), Err(LayoutError::Packet(24)));
        assert_eq!(Layout::new(64, 36), Err(LayoutError::Packet(36)));
        assert_eq!(Layout::new(128, 128), Err(LayoutError::TooLong(256)));
        assert_eq!(Layout::new(usize::MAX - 7, 32), Err(LayoutError::TooLong(usize::MAX)));
        assert_eq!(Layout::new(64, 184).unwrap().area_len(), 248);
        assert_eq!(Layout::new(16, 0).unwrap().slot_space(Region::Packet), 0);
    }

    #[test]
    fn default_area_is_cut_down_to_what_fits() {
        let within = |longest| Layout::default_within(longest).map(|layout| (layout.flow, layout.packet));
        assert_eq!(within(15), None);
        assert_eq!(within(32), Some((32, 0)));
        assert_eq!(within(79), Some((64, 0)));
        assert_eq!(within(95), Some((64, 0)));
        assert_eq!(within(102), Some((64, 32)));
        for longest in 16..=AREA_LEN_MAX {
            let layout = Layout::default_within(longest).unwrap();
            assert!(layout.area_len() <= longest);
            assert!(longest < 144 || layout == Layout::DEFAULT);
        }
    }

    #[test]
    fn slots_are_aligned_inside_their_region_and_clear_of_the_footer() {
        let layout = Layout::new(64, 48).unwrap();
        for region in [Region::Flow, Region::Packet] {
            let end = layout.region_end(region);
            for size in [1, 2, 4, 8, 16] {
                let mut places = 0;
                for slot in layout.places(region, size) {
                    assert!(slot.distance().is_multiple_of(size.min(8)));
                    assert!(slot.distance() - size >= end + layout.footer_len(region));
                    assert!(slot.distance() <= end + layout.region_len(region));
                    places += 1;
                }
                assert!(places >= layout.slot_space(region) / size.max(8) / 2);
            }
        }
        assert_eq!(layout.places(Region::Flow, 3).count(), 0);
        assert_eq!(Layout::new(64, 0).unwrap().places(Region::Packet, 0).count(), 0);
    }

    #[test]
    fn overlap_is_sharing_a_byte() {
        let layout = Layout::DEFAULT;
        let at = |size, distance| layout.slot(Region::Flow, size, distance).unwrap();
        assert!(at(8, 40).overlaps(&at(4, 36)));
        assert!(!at(8, 40).overlaps(&at(4, 44)));
        assert!(!at(8, 40).overlaps(&at(8, 32)));
        assert!(!at(8, 40).overlaps(&at(0, 0)));
        assert_eq!(at(8, 40).distances(), 33..=40);
    }

    #[test]
    fn nonces_are_even_and_never_zero() {
        for n in [0, 1, 2, 3, u64::MAX] {
            let nonces = Nonces::from_random(n, n);
            assert!(nonces.flow != 0 && nonces.flow.is_multiple_of(2));
            assert!(nonces.packet != 0 && nonces.packet.is_multiple_of(2));
        }
    }
}
