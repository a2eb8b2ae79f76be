//! Which number and which bytes a new key gets. Pure: knows stamps and slots, not maps.
//!
//! Packets in flight may carry the present bit and the value of a key that was just freed. So what was freed is given
//! out again last, and the longest free first: every bit and every byte of the area has the *stamp* of the change that
//! freed it last (0: never used), and the candidate with the lowest stamp wins.

use packet_traits_core::{
    Layout, Region, Slot,
    layout::{AREA_LEN_MAX, KEY_COUNT},
};

/// Every byte of an area has a distance from the packet data below this.
pub(super) const DISTANCE_COUNT: usize = AREA_LEN_MAX.next_power_of_two();

/// When every bit and every byte of the area was freed last: the registry's change number, 0 for never.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamps {
    /// By key number.
    pub(super) bits: [u64; KEY_COUNT],
    /// By distance from the packet data.
    pub(super) bytes: [u64; DISTANCE_COUNT],
}

impl Stamps {
    /// Nothing was ever freed.
    pub(super) const NONE: Stamps = Stamps { bits: [0; KEY_COUNT], bytes: [0; DISTANCE_COUNT] };

    /// Stamps a key's bit and bytes as freed by change `seq`.
    pub(super) fn free(&mut self, number: usize, slot: Slot, seq: u64) {
        self.bits[number] = seq;
        if slot.size() != 0 {
            self.bytes[slot.distances()].fill(seq);
        }
    }

    /// When the last byte of a place was freed.
    fn of(&self, slot: &Slot) -> u64 {
        if slot.size() == 0 { 0 } else { self.bytes[slot.distances()].iter().copied().max().unwrap_or(0) }
    }
}

/// The number for a new key: of those not in `live`, the longest free, then the lowest.
pub(super) fn free_number(live: u64, stamps: &Stamps) -> Option<usize> {
    (0..KEY_COUNT).filter(|number| live & 1 << number == 0).min_by_key(|number| stamps.bits[*number])
}

/// The place for a new value of `size` bytes: of those clear of `live`, the longest free, then the nearest to the
/// packet data.
pub(super) fn free_slot(layout: Layout, region: Region, size: usize, live: &[Slot], stamps: &Stamps) -> Option<Slot> {
    layout
        .places(region, size)
        .filter(|place| !live.iter().any(|slot| slot.overlaps(place)))
        .min_by_key(|place| stamps.of(place))
}

/// Bytes of a region's slot space that no key holds. They need not lie together.
pub(super) fn free_bytes(layout: Layout, region: Region, live: &[Slot]) -> usize {
    let held: usize = live.iter().filter(|slot| slot.region() == region).map(Slot::size).sum();
    layout.slot_space(region).saturating_sub(held)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A registry's allocations without the registry.
    struct Model {
        layout: Layout,
        live: [Option<Slot>; KEY_COUNT],
        stamps: Stamps,
        seq: u64,
    }

    impl Model {
        fn mask(&self) -> u64 {
            (0..KEY_COUNT).filter(|n| self.live[*n].is_some()).map(|n| 1 << n).sum()
        }

        fn slots(&self) -> Vec<Slot> {
            self.live.iter().flatten().copied().collect()
        }

        fn add(&mut self, region: Region, size: usize) {
            self.seq += 1;
            let slots = self.slots();
            let number = free_number(self.mask(), &self.stamps);
            let slot = free_slot(self.layout, region, size, &slots, &self.stamps);
            let open = |place: &Slot| slots.iter().all(|slot| !slot.overlaps(place));
            match slot {
                None => assert_eq!(self.layout.places(region, size).filter(open).count(), 0),
                Some(slot) => {
                    assert!(slots.iter().all(|other| !other.overlaps(&slot)));
                    assert_eq!((slot.region(), slot.size()), (region, size));
                    for other in self.layout.places(region, size).filter(open) {
                        assert!(self.stamps.of(&slot) <= self.stamps.of(&other), "{slot:?} before {other:?}");
                    }
                }
            }
            match number {
                None => assert_eq!(self.mask(), u64::MAX),
                Some(number) => {
                    assert!(self.live[number].is_none());
                    for other in (0..KEY_COUNT).filter(|n| self.live[*n].is_none()) {
                        assert!(self.stamps.bits[number] <= self.stamps.bits[other]);
                    }
                    if slot.is_some() {
                        self.live[number] = slot;
                    }
                }
            }
        }

        fn remove(&mut self, number: usize) {
            if let Some(slot) = self.live[number].take() {
                self.seq += 1;
                self.stamps.free(number, slot, self.seq);
            }
        }
    }

    fn layouts() -> impl Strategy<Value = Layout> {
        (3usize..=15, prop_oneof![Just(0usize), 4usize..=15])
            .prop_map(|(flow, packet)| Layout::new(flow * 8, packet * 8))
            .prop_filter_map("the kernel's limit", Result::ok)
    }

    proptest! {
        #[test]
        fn slots_never_overlap_and_nothing_is_reused_early(
            layout in layouts(),
            steps in prop::collection::vec(
                (any::<bool>(), any::<bool>(), prop::sample::select(vec![0usize, 1, 2, 4, 8, 16]), 0..KEY_COUNT),
                1..300,
            ),
        ) {
            let mut model = Model { layout, live: [None; KEY_COUNT], stamps: Stamps::NONE, seq: 0 };
            for (add, flow, size, number) in steps {
                if add {
                    model.add(if flow { Region::Flow } else { Region::Packet }, size);
                } else {
                    model.remove(number);
                }
            }
        }
    }

    #[test]
    fn a_region_is_used_to_its_last_byte() {
        let layout = Layout::for_slot_space(48, 0).unwrap();
        let mut live = Vec::new();
        for size in [1, 8, 2, 4, 1, 16, 8, 8] {
            live.push(free_slot(layout, Region::Flow, size, &live, &Stamps::NONE).unwrap());
        }
        assert_eq!(free_bytes(layout, Region::Flow, &live), 0);
        assert_eq!(free_slot(layout, Region::Flow, 1, &live, &Stamps::NONE), None);
        assert!(free_slot(layout, Region::Flow, 0, &live, &Stamps::NONE).is_some());
        assert_eq!(free_slot(layout, Region::Packet, 0, &live, &Stamps::NONE), None);
    }

    #[test]
    fn the_longest_free_comes_first() {
        let layout = Layout::new(32, 0).unwrap();
        let place = |distance| layout.slot(Region::Flow, 8, distance).unwrap();
        let mut stamps = Stamps::NONE;
        stamps.free(0, place(24), 1);
        stamps.free(1, place(32), 2);
        assert_eq!(free_slot(layout, Region::Flow, 8, &[], &stamps), Some(place(24)));
        stamps.free(0, place(24), 3);
        assert_eq!(free_slot(layout, Region::Flow, 8, &[], &stamps), Some(place(32)));
        assert_eq!(free_number(0, &stamps), Some(2));
        assert_eq!(free_number(!3, &stamps), Some(1));
        assert_eq!(free_number(u64::MAX, &stamps), None);
    }
}
