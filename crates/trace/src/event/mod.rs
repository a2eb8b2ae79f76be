//! One packet at one point: what the programs report, as a view of the reported bytes.
//!
//! An event is not copied or parsed until something of it is asked for; whoever keeps it takes what it needs.

mod raw;

use std::{ffi::CStr, str};

use packet_traits::{Region, Value};
use zerocopy::FromBytes as _;

pub(crate) use self::raw::EVENT_LEN;
use self::raw::RawEvent;
use crate::{
    keys::{Keys, OWN_KEYS, TracedKey},
    packet::{self, Headers},
    point::Point,
    xdp::{Verdict, XdpProgram},
};

/// What GRO did with a packet (`gro_result_t`, include/linux/netdevice.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroResult {
    /// It is now a part of another packet.
    Merged,
    /// It is held, for others to be merged into it.
    Held,
    /// Taken by something else.
    Consumed,
}

/// A view of one event.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    raw: &'a [u8],
    /// What it begins with.
    head: &'a RawEvent,
    keys: &'a Keys,
    point: Point,
    run: u64,
}

impl<'a> Event<'a> {
    /// A view of what the programs wrote; `None` if it is too short or of a point this version does not know. `run` are
    /// the tracer's own bits of ids.
    pub(crate) fn new(raw: &'a [u8], keys: &'a Keys, run: u64) -> Option<Event<'a>> {
        let (head, _) = RawEvent::ref_from_prefix(raw).ok()?;
        let point = Point::from_code(head.point.get())?;
        (raw.len() >= EVENT_LEN + keys.flow_slots + keys.packet_slots).then_some(Event { raw, head, keys, point, run })
    }

    /// Where it was seen.
    pub fn point(&self) -> Point {
        self.point
    }

    /// The packet's id: the value of the id key; if the tracer assigns ids, the packets' number from 1 on.
    pub fn id(&self) -> u64 {
        let id = self.head.id.get();
        if self.run == 0 { id } else { id & 0xffff_ffff_ffff }
    }

    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub fn at(&self) -> u64 {
        self.head.at.get()
    }

    /// When the packet entered, on the same clock: the value of the timestamp key.
    pub fn entered(&self) -> Option<u64> {
        (self.flags() & raw::ENTERED != 0).then(|| self.head.entered.get())
    }

    /// Tells the kernel's buffers from each other; 0 in XDP.
    pub fn skb(&self) -> u64 {
        self.head.skb.get()
    }

    /// Consumed, dropped: the address in the kernel it was done from.
    pub fn place(&self) -> u64 {
        self.head.place.get()
    }

    /// The socket's cookie, at points that have to do with one and know it; else 0.
    pub fn socket(&self) -> u64 {
        self.head.sock.get()
    }

    /// The interface's name; empty where the packet is not at one.
    pub fn device(&self) -> &'a str {
        text(&self.head.dev)
    }

    /// The interface's index in its namespace, or 0.
    pub fn ifindex(&self) -> u32 {
        self.head.ifindex.get()
    }

    /// The network namespace, by its inode number; 0 if it is not known.
    pub fn netns(&self) -> u32 {
        self.head.netns.get()
    }

    /// Bytes of the packet: from the MAC header on in XDP and on the way out, else from the header at hand.
    pub fn len(&self) -> u32 {
        self.head.len.get()
    }

    /// Whether it has no bytes, as events have that do not show the packet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `skb->mark`.
    pub fn mark(&self) -> u32 {
        self.head.mark.get()
    }

    /// Dropped: why, by number; `packet_traits::drop_reason` has the names.
    pub fn reason(&self) -> u32 {
        self.head.reason.get()
    }

    /// Whether the packet was of use, though the kernel calls it dropped: a connection's last FIN and ACK, and what is left
    /// in a queue that is emptied, as that of a socket is which is closed.
    pub fn is_spent(&self) -> bool {
        self.flags() & raw::SPENT != 0
    }

    /// Whether the packet is dropped here: by the kernel, unless it [`is_spent`](Event::is_spent), or by another XDP program.
    pub fn is_drop(&self) -> bool {
        self.point == Point::Drop && !self.is_spent()
            || self.verdict().is_some_and(|(verdict, _)| verdict.drop_reason().is_some())
    }

    /// What GRO did.
    pub fn gro_result(&self) -> Option<GroResult> {
        match (self.point, self.value()) {
            (Point::GroResult, 0 | 1) => Some(GroResult::Merged),
            (Point::GroResult, 2) => Some(GroResult::Held),
            (Point::GroResult, _) => Some(GroResult::Consumed),
            _ => None,
        }
    }

    /// Delivered: bytes that the process took; looked at, if it left the packet in the queue.
    pub fn delivered(&self) -> Option<u32> {
        matches!(self.point, Point::Deliver | Point::Peek).then(|| self.value())
    }

    /// XDP: the verdict of another program, and which.
    pub fn verdict(&self) -> Option<(Verdict, XdpProgram)> {
        let name = text(&self.head.comm);
        (self.point == Point::XdpVerdict)
            .then(|| (Verdict::from_code(self.value()), XdpProgram::new(self.place() as u32, name)))
    }

    /// Routed: the number of the routing table that had the answer.
    pub fn table(&self) -> Option<u32> {
        (self.point == Point::Route).then(|| self.value())
    }

    /// Answered: type and code of the ICMP error.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        (self.point == Point::Icmp).then(|| ((self.value() >> 8) as u8, self.value() as u8))
    }

    fn value(&self) -> u32 {
        self.head.value.get()
    }

    /// Delivered, looked at: the process.
    pub fn process(&self) -> Option<(u32, &'a str)> {
        let pid = self.head.pid.get();
        (pid != 0).then(|| (pid, text(&self.head.comm)))
    }

    /// The CPU it happened on.
    pub fn cpu(&self) -> u16 {
        self.head.cpu.get()
    }

    /// How many packets were merged into it, or it is to be cut into; 0 or 1 if none.
    pub fn segments(&self) -> u16 {
        self.head.segments.get()
    }

    /// Whether other buffers share its data: it is a clone, or has clones.
    pub fn is_clone(&self) -> bool {
        self.flags() & raw::CLONE != 0
    }

    /// Whether the kernel said that it happened, but not to which packet: that was found by what the CPU was at, or by
    /// the order in the socket's queue.
    pub fn is_inferred(&self) -> bool {
        self.flags() & raw::INFERRED != 0
    }

    /// In XDP: whether the packet got its id here, rather than brought it along from another interface.
    pub fn is_first(&self) -> bool {
        self.flags() & raw::NEW_ID != 0
    }

    fn flags(&self) -> u8 {
        self.head.flags
    }

    /// The packet's first bytes, and whether they start with its MAC header.
    pub fn bytes(&self) -> (&'a [u8], bool) {
        let start = EVENT_LEN + self.keys.flow_slots + self.keys.packet_slots;
        let captured = usize::from(self.head.captured.get());
        (self.raw.get(start..start + captured).unwrap_or_default(), self.flags() & raw::MAC != 0)
    }

    /// Its addresses and ports.
    pub fn headers(&self) -> Option<Headers> {
        let network = usize::from(self.head.network.get());
        let (bytes, with_mac) = self.bytes();
        if with_mac && network == 0 {
            return None;
        }
        Headers::parse(bytes.get(network..)?)
    }

    /// Bytes of the packet from where [`bytes`](Event::bytes) starts, also where the kernel has stepped over headers.
    pub fn whole_len(&self) -> u32 {
        let network = usize::from(self.head.network.get());
        let (bytes, _) = self.bytes();
        let ip = bytes.get(network..).and_then(packet::ip_len).map(|len| len + network as u32);
        ip.unwrap_or(0).max(self.len()).max(bytes.len() as u32)
    }

    /// Whether the packet had any traits there.
    pub fn has_traits(&self) -> bool {
        self.present(Region::Flow) | self.present(Region::Packet) != 0
    }

    fn present(&self, region: Region) -> u64 {
        match region {
            Region::Flow => self.head.flow_present.get(),
            Region::Packet => self.head.packet_present.get(),
        }
    }

    /// The value of one key.
    pub fn value_of(&self, key: &TracedKey) -> Option<Value> {
        let region = key.entry.merge.region();
        let start = match region {
            Region::Flow => EVENT_LEN,
            Region::Packet => EVENT_LEN + self.keys.flow_slots,
        };
        Keys::value(key, self.present(region), self.raw.get(start..)?)
    }

    /// All traits it had there, but for the tracer's own, in the order of their keys' numbers.
    pub fn traits(&self) -> impl Iterator<Item = (&'a TracedKey, Value)> + use<'a> {
        let event = *self;
        let keys = event.keys.iter().filter(move |key| event.run == 0 || !key.name().starts_with(OWN_KEYS));
        keys.filter_map(move |key| Some((key, event.value_of(key)?)))
    }
}

/// Text up to the first NUL.
pub(crate) fn text(bytes: &[u8]) -> &str {
    let text = CStr::from_bytes_until_nul(bytes).map_or(bytes, CStr::to_bytes);
    str::from_utf8(text).unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros as _, IntoBytes as _};

    use super::*;

    #[test]
    fn verdicts_that_drop_are_drops() {
        let keys = Keys::default();
        let is_drop = |point: Point, verdict: u32| {
            let mut raw = RawEvent::new_zeroed();
            raw.point.set(point as u16);
            raw.value.set(verdict);
            Event::new(raw.as_bytes(), &keys, 0).unwrap().is_drop()
        };
        assert!(is_drop(Point::Drop, 0));
        assert!(!is_drop(Point::Consume, 0));
        // XDP_ABORTED to XDP_REDIRECT, and what is none of them
        let verdicts = [true, true, false, false, false, true];
        assert_eq!([0, 1, 2, 3, 4, 5].map(|verdict| is_drop(Point::XdpVerdict, verdict)), verdicts);
    }
}
