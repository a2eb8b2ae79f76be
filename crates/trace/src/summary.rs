//! Many packets in a few numbers: counts, loss and latency by point, and by the value of a trait.

use std::collections::{BTreeMap, BTreeSet};

use packet_traits::Value;
use serde::Serialize;

use crate::{
    event::Event,
    histogram::Histogram,
    path::{Added, Cause, Detail, Outcome, Packet},
    point::Point,
    xdp::{Verdict, XdpProgram},
};

/// Values of a trait that are counted apart; the others are counted together.
pub const VALUES_MAX: usize = 1000;
/// Keys of drops and the like that are counted apart.
const DROPS_MAX: usize = 1000;
/// What values that are not counted apart are called.
pub const OTHERS: &str = "others";

/// What was seen at one point.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct PointSummary {
    /// How often a packet was there.
    pub events: u64,
    /// Nanoseconds since the packets had entered.
    pub since_entered: Histogram,
    /// Nanoseconds since the packets' step before.
    pub since_step: Histogram,
}

/// What was seen of packets with one value of a trait.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ValueSummary {
    /// Packets.
    pub packets: u64,
    /// Packets that a process took.
    pub delivered: u64,
    /// Packets that were dropped.
    pub dropped: u64,
    /// Nanoseconds from entering to the first delivery.
    pub latency: Histogram,
}

/// Why and where packets were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct DropPlace {
    /// Why, and by what.
    pub cause: Cause,
    /// The namespace's inode number.
    pub netns: u32,
}

/// The numbers.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Summary {
    /// Packets that were seen.
    pub packets: u64,
    /// Events that were seen.
    pub events: u64,
    /// Packets that a process took.
    pub delivered: u64,
    /// Drops.
    pub dropped: u64,
    /// Packets that the kernel calls dropped and that were of use: see [`Event::is_spent`].
    pub spent: u64,
    /// Packets that GRO merged into others.
    pub merged: u64,
    /// Packets that brought a TCP segment again.
    pub retransmits: u64,
    /// By point.
    pub points: BTreeMap<Point, PointSummary>,
    /// By key and text of the value. Times are not here, nor keys of which nearly every packet has a value of its own.
    pub values: BTreeMap<(String, String), ValueSummary>,
    /// Keys of which nearly every packet has a value of its own.
    pub unique: BTreeSet<String>,
    /// By key: values that are counted apart, and packets that have one.
    pub(crate) keys: BTreeMap<String, (u64, u64)>,
    /// Verdicts of other software's XDP programs.
    pub verdicts: BTreeMap<(XdpProgram, Verdict), u64>,
    /// By reason and place.
    pub drops: BTreeMap<DropPlace, u64>,
}

impl Summary {
    /// Counts an event that was added to its packet.
    pub fn add(&mut self, event: &Event<'_>, added: Added, packet: &Packet) {
        self.events += 1;
        let point = self.points.entry(event.point()).or_default();
        point.events += 1;
        point.since_entered.add(added.since_entered);
        if let Some(time) = added.since_step {
            point.since_step.add(time);
        }
        if added.new {
            self.packets += 1;
            self.retransmits += u64::from(packet.retransmit_of.is_some());
        }
        match event.point() {
            Point::Deliver => self.delivered += u64::from(first(packet, Point::Deliver)),
            Point::Drop if event.is_spent() => self.spent += 1,
            Point::Drop => {
                let kernel = Cause::Kernel { reason: event.reason(), place: event.place() };
                match packet.place_of(event) {
                    Some(place) => self.add_drop(packet.drop_at(place), packet.steps[place].netns),
                    // a step that is not kept
                    None => self.add_drop(Some(kernel), 0),
                }
            }
            Point::XdpVerdict => self.add_verdict(event.verdict(), event.netns()),
            Point::GroResult => self.merged += u64::from(packet.outcome == Outcome::Merged),
            _ => {}
        }
    }

    /// Counts a whole path, instead of each event by [`add`](Summary::add). Steps that were not kept are not counted.
    pub fn add_path(&mut self, packet: &Packet) {
        self.packets += 1;
        self.retransmits += u64::from(packet.retransmit_of.is_some());
        self.delivered += u64::from(packet.steps.iter().any(|step| step.point == Point::Deliver));
        self.merged += u64::from(packet.steps.iter().any(|step| matches!(step.detail, Detail::Merged(_))));
        let mut before = None;
        for (place, step) in packet.steps.iter().enumerate() {
            self.events += 1;
            let point = self.points.entry(step.point).or_default();
            point.events += 1;
            point.since_entered.add(step.at.saturating_sub(packet.entered));
            if let Some(before) = before.replace(step.at) {
                point.since_step.add(step.at.saturating_sub(before));
            }
            match step.detail {
                Detail::Verdict(verdict, program) => self.add_verdict(Some((verdict, program)), step.netns),
                Detail::Dropped { spent: true, .. } => self.spent += 1,
                _ => self.add_drop(packet.drop_at(place), step.netns),
            }
        }
    }

    fn add_verdict(&mut self, verdict: Option<(Verdict, XdpProgram)>, netns: u32) {
        let Some((verdict, program)) = verdict else { return };
        if self.verdicts.len() < DROPS_MAX || self.verdicts.contains_key(&(program, verdict)) {
            *self.verdicts.entry((program, verdict)).or_default() += 1;
        }
        self.add_drop(verdict.drop_reason().map(|_| Cause::Xdp(verdict, program)), netns);
    }

    fn add_drop(&mut self, cause: Option<Cause>, netns: u32) {
        let Some(cause) = cause else { return };
        let place = DropPlace { cause, netns };
        self.dropped += 1;
        if self.drops.len() < DROPS_MAX || self.drops.contains_key(&place) {
            *self.drops.entry(place).or_default() += 1;
        }
    }

    /// Counts a packet of which nothing more is expected, by the values of its traits.
    pub fn add_finished(&mut self, packet: &Packet) {
        for (key, value) in &packet.traits {
            if matches!(value, Value::Timestamp(_)) || self.unique.contains(key) {
                continue;
            }
            let mut name = (key.clone(), value.to_string());
            if self.values.len() >= VALUES_MAX && !self.values.contains_key(&name) {
                OTHERS.clone_into(&mut name.1);
            }
            let counts = self.values.entry(name).or_default();
            counts.packets += 1;
            counts.dropped += u64::from(packet.outcome == Outcome::Dropped);
            if let Some(step) = packet.steps.iter().find(|step| step.point == Point::Deliver) {
                counts.delivered += 1;
                counts.latency.add(step.at.saturating_sub(packet.entered));
            }
            let new = counts.packets == 1;
            self.leave_out_if_unique(key, new);
        }
    }

    /// Counts a packet with a value of the key, and leaves the key out once it has many values of which nearly all are of
    /// one packet: an id, say.
    fn leave_out_if_unique(&mut self, key: &str, new_value: bool) {
        const ENOUGH: u64 = 32;
        let (values, packets) = match self.keys.get_mut(key) {
            Some(counts) => counts,
            None => self.keys.entry(key.to_owned()).or_default(),
        };
        *values += u64::from(new_value);
        *packets += 1;
        if *values >= ENOUGH && *packets < 2 * *values {
            self.values.retain(|(name, _), _| name != key);
            self.unique.insert(key.to_owned());
        }
    }
}

/// Whether a packet's last step is its first at this point.
fn first(packet: &Packet, point: Point) -> bool {
    packet.steps.iter().filter(|step| step.point == point).count() == 1
}

/// A histogram in JSON: nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct Times {
    /// How many.
    pub count: u64,
    /// The mean.
    pub mean: u64,
    /// The median.
    pub p50: u64,
    /// 90 of 100 are not longer.
    pub p90: u64,
    /// 99 of 100 are not longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

impl From<&Histogram> for Times {
    fn from(histogram: &Histogram) -> Times {
        Times {
            count: histogram.count(),
            mean: histogram.mean(),
            p50: histogram.quantile(0.5),
            p90: histogram.quantile(0.9),
            p99: histogram.quantile(0.99),
            max: histogram.max(),
        }
    }
}
