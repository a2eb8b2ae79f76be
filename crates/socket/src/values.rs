//! Where a key's value lies among the values that the socket options give: [`traits::values`](super::abi::traits).
//!
//! They are the slots of the flow region and then those of the packet region, both without their footers.

use std::ops::Range;

use packet_traits_core::{Layout, Region, Slot};

use super::abi::TRAITS_HEADER_LEN;

/// Bytes of a [`traits`](super::abi::traits) that are used with a layout, header included. A multiple of 8.
#[inline]
pub(crate) const fn traits_len(layout: &Layout) -> usize {
    TRAITS_HEADER_LEN + layout.slot_space(Region::Flow) + layout.slot_space(Region::Packet)
}

/// Where a slot's value lies in the values. `None` if it is not a slot of this layout.
#[inline]
pub(crate) fn range(layout: &Layout, slot: Slot) -> Option<Range<usize>> {
    layout.slot(slot.region(), slot.size(), slot.distance())?;
    if slot.size() == 0 {
        return Some(0..0);
    }
    // The slots of a region end at its footer, and so does its part.
    let slots_end =
        layout.region_end(slot.region()) + layout.region_len(slot.region()) - layout.slot_space(slot.region());
    let part_end = match slot.region() {
        Region::Flow => layout.slot_space(Region::Flow),
        Region::Packet => layout.slot_space(Region::Flow) + layout.slot_space(Region::Packet),
    };
    let start = part_end + slots_end - slot.distance();
    Some(start..start + slot.size())
}

#[cfg(test)]
mod tests {
    use super::{super::abi::TRAITS_VALUES_MAX, *};

    /// Every layout there is.
    fn layouts() -> impl Iterator<Item = Layout> {
        (0..=252).flat_map(|flow| (0..=252).filter_map(move |packet| Layout::new(flow, packet).ok()))
    }

    #[test]
    fn offsets_are_those_of_the_header() {
        let mut slots = 0;
        for layout in layouts() {
            let (flow_len, packet_len) = (layout.region_len(Region::Flow), layout.region_len(Region::Packet));
            let flow = flow_len - if packet_len == 0 && flow_len <= 32 { 16 } else { 24 };
            let packet = if packet_len == 0 { 0 } else { packet_len - 32 };
            assert_eq!(traits_len(&layout), 16 + flow + packet);
            assert!(flow + packet <= TRAITS_VALUES_MAX);
            for size in [1, 2, 4, 8, 16] {
                for slot in layout.places(Region::Flow, size) {
                    let start = flow_len - slot.distance();
                    assert_eq!(range(&layout, slot), Some(start..start + size));
                    assert!(start + size <= flow);
                    slots += 1;
                }
                for slot in layout.places(Region::Packet, size) {
                    let start = flow + packet + 32 + flow_len - slot.distance();
                    assert_eq!(range(&layout, slot), Some(start..start + size));
                    assert!(start >= flow && start + size <= flow + packet);
                    slots += 1;
                }
            }
        }
        assert!(slots > 10_000);
    }

    #[test]
    fn a_flag_has_no_bytes_and_a_foreign_slot_no_place() {
        let (large, small) = (Layout::DEFAULT, Layout::new(24, 0).unwrap());
        assert_eq!(range(&large, large.slot(Region::Packet, 0, 0).unwrap()), Some(0..0));
        assert_eq!(range(&small, large.slot(Region::Packet, 0, 0).unwrap()), None);
        assert_eq!(range(&small, large.slot(Region::Flow, 8, 64).unwrap()), None);
    }
}
