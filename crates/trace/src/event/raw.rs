//! `struct event` of bpf/trace.bpf.h, as the programs write it.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    native_endian::{U16, U32, U64},
};

/// One packet at one point. The flow region's slots, the packet region's and the packet's first bytes follow.
#[allow(dead_code, reason = "the programs' members are all here")]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawEvent {
    pub(super) id: U64,
    pub(super) at: U64,
    pub(super) entered: U64,
    pub(super) skb: U64,
    pub(super) place: U64,
    pub(super) sock: U64,
    pub(super) flow_present: U64,
    pub(super) packet_present: U64,
    pub(super) dev: [u8; 16],
    pub(super) comm: [u8; 16],
    pub(super) netns: U32,
    pub(super) ifindex: U32,
    pub(super) len: U32,
    pub(super) mark: U32,
    pub(super) reason: U32,
    pub(super) value: U32,
    pub(super) pid: U32,
    pub(super) point: U16,
    pub(super) cpu: U16,
    pub(super) captured: U16,
    pub(super) network: U16,
    pub(super) segments: U16,
    pub(super) flags: u8,
    unused: u8,
}

/// Its bytes.
pub(crate) const EVENT_LEN: usize = size_of::<RawEvent>();

/// `EVENT_*`, bits of its flags.
pub(super) const CLONE: u8 = 1;
pub(super) const MAC: u8 = 2;
pub(super) const INFERRED: u8 = 4;
pub(super) const ENTERED: u8 = 8;
pub(super) const NEW_ID: u8 = 16;
pub(super) const SPENT: u8 = 32;

#[cfg(test)]
mod tests {
    use packet_traits_testing::{
        layout::{Types, enumerators},
        same_layout,
    };

    use super::*;
    use crate::tracer::load::TRACE_OBJECT;

    #[test]
    fn the_programs_write_it_like_that() {
        let types = Types::of(TRACE_OBJECT);
        same_layout!(
            types.structure("event"),
            RawEvent {
                id,
                at,
                entered,
                skb,
                place,
                sock,
                flow_present,
                packet_present,
                dev,
                comm,
                netns,
                ifindex,
                len,
                mark,
                reason,
                value,
                pid,
                point,
                cpu,
                captured,
                network,
                segments,
                flags,
                unused
            }
        );
        let flags = [
            ("EVENT_CLONE", CLONE),
            ("EVENT_MAC", MAC),
            ("EVENT_INFERRED", INFERRED),
            ("EVENT_ENTERED", ENTERED),
            ("EVENT_NEW_ID", NEW_ID),
            ("EVENT_SPENT", SPENT),
        ];
        let in_c = enumerators(include_str!("../bpf/trace.bpf.h"));
        assert_eq!(in_c.keys().filter(|name| name.starts_with("EVENT_")).count(), flags.len());
        for (name, flag) in flags {
            assert_eq!(in_c[name], i64::from(flag), "{name}");
        }
    }
}
