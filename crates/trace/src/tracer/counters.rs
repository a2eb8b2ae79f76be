//! What the programs count, and adding it up.

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use packet_traits::bind::LoadedObject;
use zerocopy::FromBytes;

use crate::{
    error::{TraceError, libbpf},
    object::handle,
    xdp::XdpCount,
};

/// `POINTS_MAX` in bpf/trace.bpf.h.
const POINTS_MAX: usize = 32;

/// What was counted rather than reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that got an id of the tracer.
    pub assigned: u64,
    /// Events that did not fit into the ring buffer, by the number of their [`Point`](crate::Point).
    pub lost: [u64; POINTS_MAX],
    /// Packets that have no room for an id in front of them.
    pub no_room: u64,
    /// Packets that matched while the tracer stood by, and were not followed.
    pub too_early: u64,
    /// Datagrams whose delivery is not followed, because too many waited in their socket's queue.
    pub unfollowed: u64,
    /// Packets that have the id of another tracer, behind other people's XDP programs, and get none of this one.
    pub taken: u64,
    /// Packets that TC could not give an id behind other people's XDP programs, because others have them as well: a
    /// capture, say.
    pub shared: u64,
    /// What became of packets by other software's XDP programs, where the kernel does not say which packets, traced or not.
    pub xdp: Vec<XdpCount>,
}

impl Counters {
    /// All events that were lost.
    pub fn lost_events(&self) -> u64 {
        self.lost.iter().sum()
    }
}

/// `counters` of bpf/trace.bpf.h.
#[allow(dead_code, reason = "the programs' members are all here")]
#[derive(FromBytes)]
#[repr(C)]
struct RawCounters {
    next_id: u64,
    sampled: u64,
    lost: [u64; POINTS_MAX],
    no_room: u64,
    followed: u64,
    too_early: u64,
    unfollowed: u64,
    matched: u64,
    taken: u64,
    shared: u64,
}

/// The counters of all objects.
#[derive(Default)]
pub(super) struct Counts {
    /// Without those of other software's XDP programs, which are elsewhere.
    pub(super) shown: Counters,
    /// Packets that matched where they came in, and were followed.
    pub(super) matched: u64,
}

impl Counts {
    /// Adds what one object has counted.
    fn add(&mut self, bytes: &[u8]) {
        let Ok((raw, _)) = RawCounters::read_from_prefix(bytes) else { return };
        let shown = &mut self.shown;
        shown.assigned += raw.next_id;
        shown.lost.iter_mut().zip(raw.lost).for_each(|(sum, lost)| *sum += lost);
        shown.no_room += raw.no_room;
        shown.too_early += raw.too_early;
        shown.unfollowed += raw.unfollowed;
        self.matched += raw.matched;
        shown.taken += raw.taken;
        shown.shared += raw.shared;
    }
}

/// The maps with the counters of each object that has its own.
pub(super) struct CounterMaps(Vec<MapHandle>);

impl CounterMaps {
    pub(super) fn of(objects: &[&LoadedObject]) -> Result<CounterMaps, TraceError> {
        Ok(CounterMaps(objects.iter().map(|object| handle(object, ".data.counters")).collect::<Result<_, _>>()?))
    }

    /// The sum of all.
    pub(super) fn read(&self) -> Result<Counts, TraceError> {
        let mut sum = Counts::default();
        for map in &self.0 {
            let value = map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).map_err(libbpf("read the tracer's counters"))?;
            sum.add(&value.unwrap_or_default());
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use packet_traits_testing::{layout::Types, same_layout};

    use super::*;
    use crate::tracer::load::TRACE_OBJECT;

    #[test]
    fn the_programs_count_like_that() {
        let types = Types::of(TRACE_OBJECT);
        same_layout!(
            types.variable("counters"),
            RawCounters { next_id, sampled, lost, no_room, followed, too_early, unfollowed, matched, taken, shared }
        );
    }
}
