//! Events put together again: one packet's way, from where it entered to its end.
//!
//! Bounded: packets that nothing is heard of are given up, the oldest first, and a packet keeps a limited number of steps.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
};

use packet_traits::Value;

use crate::{
    event::{Event, GroResult},
    packet::{Headers, Tcp},
    point::Point,
    xdp::{Verdict, XdpProgram},
};

/// Packets under way that are kept.
pub const PACKETS_MAX: usize = 1 << 16;
/// Steps of one packet that are kept.
pub const STEPS_MAX: usize = 64;
/// How long a packet that has come to an end may still be seen elsewhere: a clone, the rest of its data. Nanoseconds.
const LINGER: u64 = 100_000_000;
/// How long nothing may be heard of a packet. Nanoseconds.
const SILENCE: u64 = 5_000_000_000;
/// TCP segments that are remembered, to tell when one comes again.
const SEGMENTS_MAX: usize = 1 << 16;

/// An interface's name, as the kernel keeps it.
pub(crate) type DeviceName = [u8; 16];

/// A packet at one point, as its path keeps it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// Where.
    pub point: Point,
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
    /// The namespace's inode number; at points that do not know, that of the step before.
    pub netns: u32,
    device: DeviceName,
    /// Which of the packet's buffers: 0 the first, others are clones.
    pub copy: u16,
    /// See [`Event::is_inferred`].
    pub inferred: bool,
    /// What else is known.
    pub detail: Detail,
}

impl Step {
    /// The interface; empty where the packet is not at one.
    pub fn device(&self) -> &str {
        let len = self.device.iter().position(|byte| *byte == 0).unwrap_or(self.device.len());
        std::str::from_utf8(&self.device[..len]).unwrap_or("?")
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{} {} {:?}", self.device(), self.netns, self.point, self.at, self.detail)
    }
}

/// What is known at some points only.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Detail {
    /// Nothing.
    None,
    /// GRO has merged it into the packet with this id; `None` if that one is not traced.
    Merged(Option<u64>),
    /// GRO holds it, for others to be merged into it.
    Held,
    /// The routing table that had the answer.
    Table(u32),
    /// Type and code of the ICMP error that was sent.
    Icmp(u8, u8),
    /// The verdict of another XDP program.
    Verdict(Verdict, XdpProgram),
    /// The cookie of the socket that it is for.
    Socket(u64),
    /// Who took, or looked at, how many bytes.
    Delivered {
        /// Bytes.
        bytes: u32,
        /// Process id.
        pid: u32,
        /// The process's name.
        comm: String,
        /// The socket's cookie; 0 if it is not known.
        socket: u64,
    },
    /// Where it was freed.
    Freed(u64),
    /// Why and where it was dropped.
    Dropped {
        /// `enum skb_drop_reason`.
        reason: u32,
        /// An address in the kernel.
        place: u64,
        /// See [`Event::is_spent`].
        spent: bool,
    },
}

impl Detail {
    /// The cookie of the socket that the packet is for; 0 if it is not known here.
    pub fn socket(&self) -> u64 {
        match self {
            Detail::Socket(socket) | Detail::Delivered { socket, .. } => *socket,
            _ => 0,
        }
    }
}

/// Why a packet was dropped, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The kernel has dropped it.
    Kernel {
        /// `enum skb_drop_reason`.
        reason: u32,
        /// An address in the kernel.
        place: u64,
    },
    /// Another XDP program.
    Xdp(Verdict, XdpProgram),
}

/// What became of a packet, as far as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Outcome {
    /// Nothing yet.
    UnderWay,
    /// XDP sent it back or redirected it, and it was not seen again.
    Redirected,
    /// It was freed after use, not by a process: answered, or taken up by the kernel.
    Consumed,
    /// It was of use, and then the kernel called it dropped: see [`Event::is_spent`].
    Spent,
    /// It is a part of another packet now.
    Merged,
    /// A process took it.
    Delivered,
    /// It, or a copy of it, was dropped.
    Dropped,
}

impl Outcome {
    /// Its name. Never changes.
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::UnderWay => "under-way",
            Outcome::Redirected => "redirected",
            Outcome::Consumed => "consumed",
            Outcome::Spent => "spent",
            Outcome::Merged => "merged",
            Outcome::Delivered => "delivered",
            Outcome::Dropped => "dropped",
        }
    }
}

/// One packet's way.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Packet {
    /// Its id.
    pub id: u64,
    /// When it entered, or else was first seen.
    pub entered: u64,
    /// Its steps, by time.
    pub steps: Vec<Step>,
    /// Steps that are not kept.
    pub more_steps: u32,
    /// Its addresses and ports, where they were seen last: behind a tunnel, the inner ones.
    pub headers: Option<Headers>,
    /// Those that it came in with, if others were seen last: before NAT, or around a tunnel.
    pub came_as: Option<Headers>,
    /// Its traits where it was seen last with any: the key's place in [`Keys`](crate::Keys), and the value.
    pub traits: Vec<(String, Value)>,
    /// How many packets were merged into it, itself not counted.
    pub merged: u32,
    /// The packet that brought the same TCP segment before.
    pub retransmit_of: Option<u64>,
    /// What became of it.
    pub outcome: Outcome,
    buffers: Vec<u64>,
    last_at: u64,
}

impl Packet {
    /// Buffers other than the first that were seen: clones.
    pub fn clones(&self) -> usize {
        self.steps.iter().map(|step| step.copy).max().unwrap_or(0).into()
    }

    /// The step that this event became, unless there are too many.
    pub fn step_of(&self, event: &Event<'_>) -> Option<&Step> {
        self.steps.get(self.place_of(event)?)
    }

    /// Where in its steps that is.
    pub(crate) fn place_of(&self, event: &Event<'_>) -> Option<usize> {
        self.steps.iter().rposition(|step| step.at == event.at() && step.point == event.point())
    }

    /// Why and by what it was dropped at the step at this place; `None` if it was not. Generic XDP, and a veth's, drops an skb
    /// that the kernel then frees: that is one drop.
    pub fn drop_at(&self, place: usize) -> Option<Cause> {
        let after_verdict = || {
            let before = place.checked_sub(1).and_then(|before| self.steps.get(before));
            before.is_some_and(
                |step| matches!(step.detail, Detail::Verdict(verdict, _) if verdict.drop_reason().is_some()),
            )
        };
        match self.steps.get(place)?.detail {
            Detail::Verdict(verdict, program) => verdict.drop_reason().map(|_| Cause::Xdp(verdict, program)),
            Detail::Dropped { reason, place, spent: false } if !after_verdict() => {
                Some(Cause::Kernel { reason, place })
            }
            _ => None,
        }
    }

    /// The namespaces it was in, in order, each once for each stay.
    pub fn namespaces(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.steps.iter().map(|step| step.netns).filter(|netns| *netns != 0).collect();
        all.dedup();
        all
    }

    /// Nanoseconds from entering to its last delivery, if a process took it; else until it was seen last.
    pub fn duration(&self) -> u64 {
        let delivered = self.steps.iter().rev().find(|step| step.point == Point::Deliver);
        let end = delivered.filter(|_| self.outcome == Outcome::Delivered).map_or(self.last_at, |step| step.at);
        end.saturating_sub(self.entered)
    }

    /// When it was seen last.
    pub fn last_at(&self) -> u64 {
        self.last_at
    }
}

/// Puts paths together.
#[derive(Default)]
pub struct Paths {
    packets: HashMap<u64, Packet>,
    /// Ids by when a packet was seen first.
    order: VecDeque<u64>,
    /// Packets that are done, but may still be heard of: id, and when that was.
    ended: VecDeque<(u64, u64)>,
    /// By CPU and flow: the packet that GRO holds.
    held: HashMap<(u16, Headers), u64>,
    segments: HashMap<(Headers, Tcp), u64>,
    segment_order: VecDeque<(Headers, Tcp)>,
    /// Ids of packets that were passed on, the newest [`PACKETS_MAX`].
    finished: HashSet<u64>,
    finished_order: VecDeque<u64>,
    given_up: u64,
}

/// What an event added to its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Added {
    /// The packet was not seen before.
    pub new: bool,
    /// Nanoseconds since it entered.
    pub since_entered: u64,
    /// Nanoseconds since the step before; `None` for the first.
    pub since_step: Option<u64>,
}

impl Paths {
    /// Adds an event to its packet's path. `None` if that is nothing to tell: the memory of a packet that was passed on
    /// is freed, which the kernel may put off until the CPU it came in on has time.
    pub fn add(&mut self, event: &Event<'_>) -> Option<(Added, &Packet)> {
        let (id, at, point) = (event.id(), event.at(), event.point());
        let new = !self.packets.contains_key(&id);
        if new {
            if point == Point::Consume && self.finished.contains(&id) {
                return None;
            }
            self.make_room();
            self.order.push_back(id);
        }
        let headers = event.headers();
        let mut detail = detail_of(event);
        let retransmit_of = if event.is_first() { self.seen_before(headers, id) } else { None };
        let merged_into = self.follow_gro(event, headers, &mut detail);
        if let Some(target) = merged_into.and_then(|target| self.packets.get_mut(&target)) {
            target.merged += 1;
        }

        let packet = self.packets.entry(id).or_insert_with(|| Packet {
            id,
            entered: event.entered().unwrap_or(at),
            steps: Vec::new(),
            more_steps: 0,
            headers: None,
            came_as: None,
            traits: Vec::new(),
            merged: 0,
            retransmit_of,
            outcome: Outcome::UnderWay,
            buffers: Vec::new(),
            last_at: at,
        });
        if let Some(headers) = headers {
            packet.take_headers(headers);
        }
        if event.has_traits() {
            packet.traits.clear();
            packet.traits.extend(event.traits().map(|(key, value)| (key.name().to_owned(), value)));
        }
        let ended = packet.outcome != Outcome::UnderWay;
        packet.take_outcome(&detail, point);
        if !ended && packet.outcome != Outcome::UnderWay {
            self.ended.push_back((id, at));
        }
        let added = Added {
            new,
            since_entered: at.saturating_sub(packet.entered),
            since_step: packet.steps.last().map(|step| at.saturating_sub(step.at)),
        };
        packet.last_at = packet.last_at.max(at);
        packet.push(event, detail);
        Some((added, packet))
    }

    /// A packet under way.
    pub fn get(&self, id: u64) -> Option<&Packet> {
        self.packets.get(&id)
    }

    /// Packets that were given up because there were too many.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Takes the packets of which nothing more is expected at this time (nanoseconds of `CLOCK_MONOTONIC`).
    pub fn take_finished(&mut self, now: u64) -> Vec<Packet> {
        let mut finished = Vec::new();
        while let Some((id, at)) = self.ended.front().copied().filter(|(_, at)| at + LINGER <= now) {
            self.ended.pop_front();
            match self.packets.get(&id) {
                // data is still taken from it
                Some(packet) if packet.last_at > at && packet.last_at + LINGER > now => {
                    self.ended.push_back((id, packet.last_at));
                }
                _ => self.finish(id, &mut finished),
            }
        }
        while let Some(id) = self.order.front().copied() {
            match self.packets.get(&id) {
                Some(packet) if packet.last_at + SILENCE > now => break,
                _ => self.finish(id, &mut finished),
            }
            self.order.pop_front();
        }
        finished
    }

    fn finish(&mut self, id: u64, to: &mut Vec<Packet>) {
        let Some(packet) = self.packets.remove(&id) else { return };
        to.push(packet);
        if self.finished.insert(id) {
            self.finished_order.push_back(id);
        }
        if self.finished_order.len() > PACKETS_MAX
            && let Some(oldest) = self.finished_order.pop_front()
        {
            self.finished.remove(&oldest);
        }
    }

    /// Takes all packets, in the order in which they were seen first.
    pub fn take_all(&mut self) -> Vec<Packet> {
        self.ended.clear();
        let order = std::mem::take(&mut self.order);
        order.into_iter().filter_map(|id| self.packets.remove(&id)).collect()
    }

    fn make_room(&mut self) {
        while self.packets.len() >= PACKETS_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            if self.packets.remove(&oldest).is_some() {
                self.given_up += 1;
            }
        }
        // ids whose packets are gone
        while self.order.len() >= 2 * PACKETS_MAX {
            self.order.retain(|id| self.packets.contains_key(id));
        }
    }

    /// The packet that brought the same segment before, if it has data or opens or closes a connection.
    fn seen_before(&mut self, headers: Option<Headers>, id: u64) -> Option<u64> {
        let headers = headers?;
        let tcp = headers.tcp.filter(|tcp| tcp.data != 0 || tcp.flags & 3 != 0)?;
        let segment = (headers.flow(), Tcp { flags: tcp.flags & 3, ..tcp });
        if let Some(first) = self.segments.get(&segment) {
            return Some(*first);
        }
        if self.segment_order.len() >= SEGMENTS_MAX
            && let Some(oldest) = self.segment_order.pop_front()
        {
            self.segments.remove(&oldest);
        }
        self.segments.insert(segment, id);
        self.segment_order.push_back(segment);
        None
    }

    /// Keeps account of what GRO holds, and names the packet that this one was merged into.
    fn follow_gro(&mut self, event: &Event<'_>, headers: Option<Headers>, detail: &mut Detail) -> Option<u64> {
        let headers = headers.or_else(|| self.packets.get(&event.id())?.headers)?;
        let place = (event.cpu(), headers.flow());
        match event.gro_result() {
            Some(GroResult::Held) => {
                if self.held.len() >= PACKETS_MAX {
                    self.held.clear();
                }
                self.held.insert(place, event.id());
                None
            }
            Some(GroResult::Merged) => {
                let target = self.held.get(&place).copied();
                *detail = Detail::Merged(target);
                target
            }
            _ => None,
        }
    }
}

impl Packet {
    fn take_headers(&mut self, headers: Headers) {
        let first = self.came_as.or(self.headers).unwrap_or(headers);
        self.came_as = Some(first).filter(|first| first.flow() != headers.flow());
        self.headers = Some(headers);
    }

    fn take_outcome(&mut self, detail: &Detail, point: Point) {
        let outcome = match (point, detail) {
            (_, Detail::Verdict(verdict, _)) if verdict.drop_reason().is_some() => Outcome::Dropped,
            (_, Detail::Verdict(verdict, _)) if verdict.sends_elsewhere() => Outcome::Redirected,
            (Point::Deliver, _) => Outcome::Delivered,
            (_, Detail::Dropped { spent: true, .. }) => Outcome::Spent,
            (Point::Drop, _) => Outcome::Dropped,
            (Point::Consume, _) => Outcome::Consumed,
            (_, Detail::Merged(_)) => Outcome::Merged,
            _ => return,
        };
        self.outcome = self.outcome.max(outcome);
    }

    fn push(&mut self, event: &Event<'_>, detail: Detail) {
        let copy = match event.skb() {
            0 => 0,
            // it comes out of XDP in a buffer of its own: the same packet, not another one
            skb if self.steps.last().is_some_and(|step| matches!(step.point, Point::Xdp | Point::XdpVerdict)) => {
                self.buffers.clear();
                self.buffers.push(skb);
                0
            }
            skb => match self.buffers.iter().position(|known| *known == skb) {
                Some(copy) => copy as u16,
                // an id that many packets share, as one of a flow, has ever new buffers
                None if self.buffers.len() >= STEPS_MAX => STEPS_MAX as u16,
                None => {
                    self.buffers.push(skb);
                    (self.buffers.len() - 1) as u16
                }
            },
        };
        if self.steps.len() >= STEPS_MAX {
            self.more_steps += 1;
            return;
        }
        let netns = match event.netns() {
            0 => self.steps.last().map_or(0, |step| step.netns),
            netns => netns,
        };
        let mut device = DeviceName::default();
        let name = event.device().as_bytes();
        device[..name.len()].copy_from_slice(name);
        let step =
            Step { point: event.point(), at: event.at(), netns, device, copy, inferred: event.is_inferred(), detail };
        // events of two CPUs may come in another order than they happened in
        let after = self.steps.iter().rposition(|other| other.at <= step.at).map_or(0, |place| place + 1);
        self.steps.insert(after, step);
    }
}

fn detail_of(event: &Event<'_>) -> Detail {
    match event.point() {
        Point::GroResult => match event.gro_result() {
            Some(GroResult::Merged) => Detail::Merged(None),
            Some(GroResult::Held) => Detail::Held,
            _ => Detail::None,
        },
        Point::Route => event.table().map_or(Detail::None, Detail::Table),
        Point::Icmp => event.icmp().map_or(Detail::None, |(kind, code)| Detail::Icmp(kind, code)),
        Point::XdpVerdict => {
            event.verdict().map_or(Detail::None, |(verdict, program)| Detail::Verdict(verdict, program))
        }
        Point::Deliver | Point::Peek => {
            let (pid, comm) = event.process().unwrap_or_default();
            Detail::Delivered {
                bytes: event.delivered().unwrap_or(0),
                pid,
                comm: comm.to_owned(),
                socket: event.socket(),
            }
        }
        Point::Consume => Detail::Freed(event.place()),
        Point::Drop => Detail::Dropped { reason: event.reason(), place: event.place(), spent: event.is_spent() },
        _ => match event.socket() {
            0 => Detail::None,
            cookie => Detail::Socket(cookie),
        },
    }
}
