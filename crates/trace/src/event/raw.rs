//! `struct event` of bpf/trace.bpf.h, by offsets.

/// `sizeof(struct event)`.
pub(crate) const EVENT_LEN: usize = 136;

/// Offsets of its members.
pub(super) mod at {
    pub(in crate::event) const ID: usize = 0;
    pub(in crate::event) const AT: usize = 8;
    pub(in crate::event) const ENTERED: usize = 16;
    pub(in crate::event) const SKB: usize = 24;
    pub(in crate::event) const PLACE: usize = 32;
    pub(in crate::event) const SOCK: usize = 40;
    pub(in crate::event) const FLOW_PRESENT: usize = 48;
    pub(in crate::event) const PACKET_PRESENT: usize = 56;
    pub(in crate::event) const DEV: usize = 64;
    pub(in crate::event) const COMM: usize = 80;
    pub(in crate::event) const NETNS: usize = 96;
    pub(in crate::event) const IFINDEX: usize = 100;
    pub(in crate::event) const LEN: usize = 104;
    pub(in crate::event) const MARK: usize = 108;
    pub(in crate::event) const REASON: usize = 112;
    pub(in crate::event) const VALUE: usize = 116;
    pub(in crate::event) const PID: usize = 120;
    pub(in crate::event) const POINT: usize = 124;
    pub(in crate::event) const CPU: usize = 126;
    pub(in crate::event) const CAPTURED: usize = 128;
    pub(in crate::event) const NETWORK: usize = 130;
    pub(in crate::event) const SEGMENTS: usize = 132;
    pub(in crate::event) const FLAGS: usize = 134;
}

/// `EVENT_*`, bits of its flags.
pub(super) const CLONE: u8 = 1;
pub(super) const MAC: u8 = 2;
pub(super) const INFERRED: u8 = 4;
pub(super) const ENTERED: u8 = 8;
pub(super) const NEW_ID: u8 = 16;
pub(super) const SPENT: u8 = 32;

pub(super) fn u16(raw: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([raw[at], raw[at + 1]])
}

pub(super) fn u32(raw: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&raw[at..at + 4]);
    u32::from_ne_bytes(bytes)
}

pub(super) fn u64(raw: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&raw[at..at + 8]);
    u64::from_ne_bytes(bytes)
}
