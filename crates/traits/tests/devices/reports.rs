//! What the programs of `tests/bpf/devices.bpf.c` report, and what to make of it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use libbpf_rs::RingBufferBuilder;
use packet_traits::bind::LoadedObject;

use crate::common::record::global;

/// `enum stage`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub(crate) enum Stage {
    XdpLower,
    XdpUpper,
    TcLower,
    Tc,
    PreRouting,
    LocalIn,
    Cgroup,
    /// An application's socket option, of a datagram.
    Datagram,
    /// The same, of a connection's SYN.
    Syn,
}

impl Stage {
    const REPORTING: [Stage; 7] =
        [Stage::XdpLower, Stage::XdpUpper, Stage::TcLower, Stage::Tc, Stage::PreRouting, Stage::LocalIn, Stage::Cgroup];

    /// Where traits are read.
    pub(crate) const READING: [Stage; 7] =
        [Stage::TcLower, Stage::Tc, Stage::PreRouting, Stage::LocalIn, Stage::Cgroup, Stage::Datagram, Stage::Syn];

    pub(crate) fn is_xdp(self) -> bool {
        matches!(self, Stage::XdpLower | Stage::XdpUpper)
    }
}

/// What a packet is; the second is the number in its payload, or its sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Packet {
    Udp(u64),
    Tcp(u64),
    /// Encrypted, or not one of the test's.
    Opaque(u64),
}

/// What a packet was given or what a stage read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Values {
    pub(crate) tenant: Option<u32>,
    pub(crate) flow_id: Option<u64>,
}

impl Values {
    pub(crate) fn is_empty(self) -> bool {
        self == Values::default()
    }
}

/// One packet at one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) stage: Stage,
    pub(crate) packet: Packet,
    /// How many headers of tunnels are in front of the packet's own.
    pub(crate) inside: u32,
    pub(crate) syn: bool,
    pub(crate) len: u32,
    pub(crate) values: Values,
    /// At XDP: why not all was set; 0 if it was.
    pub(crate) error: i32,
}

impl Report {
    fn parse(raw: &[u8]) -> Report {
        assert_eq!(raw.len(), 48, "struct report has changed");
        let u32_at = |at: usize| u32::from_ne_bytes(raw[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_ne_bytes(raw[at..at + 8].try_into().unwrap());
        let present = u32_at(4);
        let number = u64_at(16);
        Report {
            stage: Stage::REPORTING[u32_at(0) as usize],
            packet: match u32_at(32) {
                0 => Packet::Udp(number),
                1 => Packet::Tcp(number),
                _ => Packet::Opaque(number),
            },
            inside: u32_at(36),
            syn: u32_at(44) == 1,
            len: u32_at(40),
            values: Values {
                tenant: (present & 1 != 0).then(|| u32_at(24)),
                flow_id: (present & 2 != 0).then(|| u64_at(8)),
            },
            error: u32_at(28).cast_signed(),
        }
    }
}

/// Calls `f` with each report since the last call.
pub(crate) fn drain(object: &LoadedObject, mut f: impl FnMut(Report)) {
    let map = object.map("reports").unwrap();
    let mut builder = RingBufferBuilder::new();
    builder
        .add(&map, |raw| {
            f(Report::parse(raw));
            0
        })
        .unwrap();
    builder.build().unwrap().consume().unwrap();
    assert_eq!(global(object, "lost"), 0, "the ring buffer was too small for this test");
}

/// What a stage made of all packets it saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Packets with all their traits.
    pub(crate) kept: usize,
    /// With keys of the flow region only, or of the packet region only.
    pub(crate) partly: usize,
    /// That had traits, of which none is there.
    pub(crate) lost: usize,
    /// That had none, and have none.
    pub(crate) without: usize,
}

impl Verdict {
    pub(crate) fn outcome(self) -> Outcome {
        match (self.kept, self.partly, self.lost) {
            (0, 0, 0) => Outcome::Nothing,
            (_, 0, 0) => Outcome::Kept,
            (0, 0, _) => Outcome::Lost,
            _ => Outcome::Mixed,
        }
    }
}

/// What a verdict comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// No packet with traits came here.
    Nothing,
    Kept,
    Lost,
    Mixed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { kept, partly, lost, .. } = *self;
        match self.outcome() {
            Outcome::Nothing => f.write_str("-"),
            Outcome::Kept => f.write_str("kept"),
            Outcome::Lost => f.write_str("lost"),
            Outcome::Mixed => write!(f, "kept {kept}, in part {partly}, lost {lost}"),
        }
    }
}

/// What XDP gave to packets, and the judgement of what is read of them.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// By the value that no two packets have.
    by_flow_id: HashMap<u64, Report>,
    by_packet: HashMap<Packet, Vec<Report>>,
    /// What came in while one packet was on its way, by that packet's number.
    rounds: HashMap<u64, Vec<Report>>,
    /// Packets that XDP was to give traits, and how often it could not, by errno.
    pub(crate) tried: usize,
    pub(crate) refused: BTreeMap<i32, usize>,
    /// TCP segments at XDP.
    pub(crate) segments: BTreeMap<Stage, usize>,
}

impl Given {
    /// Takes what XDP reports; `round` is the number of the datagram that was on its way alone.
    pub(crate) fn take(&mut self, report: Report, round: Option<u64>) {
        if matches!(report.packet, Packet::Tcp(_)) {
            *self.segments.entry(report.stage).or_default() += 1;
        }
        if !report.values.is_empty() || report.error != 0 {
            self.tried += 1;
        }
        if report.error != 0 {
            *self.refused.entry(-report.error).or_default() += 1;
        }
        if let Some(flow_id) = report.values.flow_id {
            self.by_flow_id.insert(flow_id, report);
        }
        self.by_packet.entry(report.packet).or_default().push(report);
        if let Some(round) = round {
            self.rounds.entry(round).or_default().push(report);
        }
    }

    /// What may be read of a packet: what the last XDP program gave to it that did, and of a packet that was encrypted on
    /// its way in, what any that came in at that time was given, if that is known.
    fn candidates(&self, packet: Packet, when: When) -> Option<Vec<&Report>> {
        let own = self.by_packet.get(&packet).map(Vec::as_slice).unwrap_or_default();
        if when == When::AfterAll && of(own, Stage::XdpUpper).any(|report| !report.values.is_empty()) {
            return Some(of(own, Stage::XdpUpper).collect());
        }
        if of(own, Stage::XdpLower).next().is_some() {
            return Some(of(own, Stage::XdpLower).collect());
        }
        match packet {
            Packet::Udp(number) => self.rounds.get(&number).map(|came| of(came, Stage::XdpLower).collect()),
            _ => None,
        }
    }

    /// Judges what was read of a packet.
    ///
    /// # Errors
    /// It is not what XDP gave to this packet.
    pub(crate) fn judge(&self, packet: Packet, when: When, read: Values, verdict: &mut Verdict) -> Result<(), String> {
        let candidates = self.candidates(packet, when);
        let known = candidates.is_some();
        let all = candidates.unwrap_or_else(|| {
            // encrypted, and several came in at once
            self.by_flow_id.values().filter(|given| matches!(given.packet, Packet::Opaque(_))).collect()
        });
        if read.is_empty() {
            // One in four of the datagrams that were encrypted was given nothing, and nobody can say which. An XDP program
            // that sets nothing, above one that does, may take away what that has set.
            let known = known || matches!(packet, Packet::Tcp(_));
            match all.iter().any(|given| !given.values.is_empty()) {
                true if known && !(when == When::AfterAll && self.passed_above(packet)) => verdict.lost += 1,
                true => {}
                false => verdict.without += 1,
            }
            return Ok(());
        }
        let same = |given: &&&Report| {
            read.tenant.is_none_or(|tenant| given.values.tenant == Some(tenant))
                && read.flow_id.is_none_or(|flow_id| given.values.flow_id == Some(flow_id))
        };
        let Some(given) = all.iter().find(same) else {
            let owner = read.flow_id.and_then(|flow_id| self.by_flow_id.get(&flow_id));
            return Err(format!("{packet:?} reads {read:?}; given to it: {all:?}; given that value: {owner:?}"));
        };
        match read == given.values {
            true => verdict.kept += 1,
            false => verdict.partly += 1,
        }
        Ok(())
    }

    /// Whether a packet met XDP above, which gave it nothing.
    fn passed_above(&self, packet: Packet) -> bool {
        let reports = self.by_packet.get(&packet).map(Vec::as_slice).unwrap_or_default();
        reports.iter().any(|report| report.stage == Stage::XdpUpper && report.values.is_empty())
    }
}

fn of(reports: &[Report], stage: Stage) -> impl Iterator<Item = &Report> {
    reports.iter().filter(move |report| report.stage == stage)
}

/// When a stage saw a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// Before XDP above.
    BeforeUpper,
    AfterAll,
}
