//! What the programs are told before they are loaded: `config` of bpf/trace.bpf.h.

use libbpf_rs::OpenObject;
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

use crate::filter::{CONDITIONS_MAX, KernelCondition};

/// How many namespaces can be named; `NAMESPACES` in bpf/trace.bpf.h.
pub(crate) const NAMESPACES_MAX: usize = 8;
/// Most bytes of a packet that are reported; `CAPTURE_MAX` in bpf/trace.bpf.h.
pub const CAPTURE_MAX: usize = 256;

/// `config` of bpf/trace.bpf.h.
#[allow(dead_code, reason = "the programs' members are all here")]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawConfig {
    id_bit: u64,
    entered_bit: u64,
    run: u64,
    slower_ns: u64,
    tc_id_bit: u64,
    tc_entered_bit: u64,
    id_dist: u32,
    entered_dist: u32,
    tc_id_dist: u32,
    tc_entered_dist: u32,
    sample: u32,
    event_len: u32,
    flow_slots: u32,
    packet_slots: u32,
    capture: u32,
    netns: [u32; NAMESPACES_MAX],
    id_size: u8,
    id_merge: u8,
    entered_merge: u8,
    only_drops: u8,
    header_conditions: u8,
    conditions: u8,
    consume_place: u8,
    unused: [u8; 5],
    tcp_end_from: u64,
    tcp_end_to: u64,
    condition: [KernelCondition; CONDITIONS_MAX],
}

/// A key, as the programs find it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    pub(crate) bit: u64,
    pub(crate) dist: u32,
    pub(crate) size: u8,
    pub(crate) merge: u8,
}

/// The configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    pub(crate) id: Place,
    pub(crate) entered: Place,
    /// The same behind other people's XDP programs.
    pub(crate) tc_id: Place,
    pub(crate) tc_entered: Place,
    pub(crate) run: u64,
    pub(crate) slower_ns: u64,
    pub(crate) sample: u32,
    pub(crate) event_len: u32,
    pub(crate) flow_slots: u32,
    pub(crate) packet_slots: u32,
    pub(crate) capture: u32,
    pub(crate) netns: Vec<u32>,
    pub(crate) only_drops: bool,
    /// Whether the tracepoint `consume_skb` tells the place (6.3).
    pub(crate) consume_place: bool,
    /// Where the function is in which TCP ends connections.
    pub(crate) tcp_end: (u64, u64),
    /// About headers, then about traits.
    pub(crate) conditions: (Vec<KernelCondition>, Vec<KernelCondition>),
}

impl Config {
    /// Writes it to an object. `None` if the object has no such section.
    pub(crate) fn write(&self, object: &mut OpenObject) -> Option<()> {
        let raw = self.raw();
        let mut section = object.maps_mut().find(|map| map.name() == ".rodata.config")?;
        section.initial_value_mut()?.get_mut(..raw.as_bytes().len())?.copy_from_slice(raw.as_bytes());
        Some(())
    }

    /// What does not fit is left out.
    fn raw(&self) -> RawConfig {
        let (headers, traits) = &self.conditions;
        let mut raw = RawConfig {
            id_bit: self.id.bit,
            entered_bit: self.entered.bit,
            run: self.run,
            slower_ns: self.slower_ns,
            tc_id_bit: self.tc_id.bit,
            tc_entered_bit: self.tc_entered.bit,
            id_dist: self.id.dist,
            entered_dist: self.entered.dist,
            tc_id_dist: self.tc_id.dist,
            tc_entered_dist: self.tc_entered.dist,
            sample: self.sample,
            event_len: self.event_len,
            flow_slots: self.flow_slots,
            packet_slots: self.packet_slots,
            capture: self.capture,
            id_size: self.id.size,
            id_merge: self.id.merge,
            entered_merge: self.entered.merge,
            only_drops: self.only_drops.into(),
            header_conditions: headers.len() as u8,
            conditions: (headers.len() + traits.len()) as u8,
            consume_place: self.consume_place.into(),
            tcp_end_from: self.tcp_end.0,
            tcp_end_to: self.tcp_end.1,
            ..RawConfig::new_zeroed()
        };
        raw.netns.iter_mut().zip(&self.netns).for_each(|(to, inode)| *to = *inode);
        raw.condition.iter_mut().zip(headers.iter().chain(traits)).for_each(|(to, condition)| *to = *condition);
        raw
    }
}

#[cfg(test)]
mod tests {
    use packet_traits_testing::{layout::Types, same_layout};

    use super::*;
    use crate::tracer::load::TRACE_OBJECT;

    #[test]
    fn the_programs_read_it_like_that() {
        let types = Types::of(TRACE_OBJECT);
        same_layout!(
            types.variable("config"),
            RawConfig {
                id_bit,
                entered_bit,
                run,
                slower_ns,
                tc_id_bit,
                tc_entered_bit,
                id_dist,
                entered_dist,
                tc_id_dist,
                tc_entered_dist,
                sample,
                event_len,
                flow_slots,
                packet_slots,
                capture,
                netns,
                id_size,
                id_merge,
                entered_merge,
                only_drops,
                header_conditions,
                conditions,
                consume_place,
                unused,
                tcp_end_from,
                tcp_end_to,
                condition
            }
        );
    }

    #[test]
    fn what_is_said_stands_in_its_place() {
        let condition = |dist| KernelCondition { dist, ..Default::default() };
        let config = Config {
            netns: vec![5],
            tcp_end: (3, 4),
            conditions: (vec![condition(8)], vec![condition(16), condition(24)]),
            ..Default::default()
        };
        let raw = config.raw();
        assert_eq!((raw.netns, raw.tcp_end_from, raw.tcp_end_to), ([5, 0, 0, 0, 0, 0, 0, 0], 3, 4));
        assert_eq!((raw.header_conditions, raw.conditions), (1, 3));
        assert_eq!(raw.condition.map(|condition| condition.dist), [8, 16, 24, 0, 0, 0, 0, 0]);
    }
}
