//! What was seen: one record for each test packet at each stage. The programs' are `struct record` of bpf/demo.bpf.c;
//! those of the stage `application` come from the servers.

use std::{cell::RefCell, error::Error};

use libbpf_rs::{MapCore, MapFlags, RingBuffer, RingBufferBuilder};
use packet_traits::bind::LoadedObject;

/// Where a packet was seen; `enum stage`, and the application behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Stage {
    Xdp,
    TcIngress,
    TcIngressInner,
    PreRouting,
    LocalIn,
    CgroupIngress,
    SocketFilter,
    Delivery,
    Drop,
    Application,
}

impl Stage {
    /// In the order in which a packet passes them, as far as it is not dropped.
    pub(super) const ALL: [Stage; 10] = [
        Stage::Xdp,
        Stage::TcIngress,
        Stage::TcIngressInner,
        Stage::PreRouting,
        Stage::LocalIn,
        Stage::CgroupIngress,
        Stage::SocketFilter,
        Stage::Delivery,
        Stage::Drop,
        Stage::Application,
    ];

    /// Those that a kernel shows: before Linux 6.4 there are no netfilter programs.
    pub(super) fn shown(netfilter: bool) -> Vec<Stage> {
        Stage::ALL.into_iter().filter(|stage| netfilter || !stage.is_netfilter()).collect()
    }

    pub(super) fn is_netfilter(self) -> bool {
        matches!(self, Stage::PreRouting | Stage::LocalIn)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Stage::Xdp => "xdp",
            Stage::TcIngress => "tc-ingress",
            Stage::TcIngressInner => "tc-ingress-inner",
            Stage::PreRouting => "netfilter-prerouting",
            Stage::LocalIn => "netfilter-input",
            Stage::CgroupIngress => "cgroup-ingress",
            Stage::SocketFilter => "socket-filter",
            Stage::Delivery => "delivery",
            Stage::Drop => "drop",
            Stage::Application => "application",
        }
    }
}

/// The three traits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Traits {
    pub(super) flow_id: u64,
    /// When XDP saw the packet, in nanoseconds of the monotonic clock.
    pub(super) rx_ts: u64,
    pub(super) tenant: u32,
}

/// One test packet at one stage.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) stage: Stage,
    /// The port it was sent to.
    pub(super) port: u16,
    /// A datagram's number within its flow; the sequence number of TCP, which a server does not see.
    pub(super) number: Option<u64>,
    /// It opens a TCP connection.
    pub(super) syn: bool,
    /// Bytes of its payload; at delivery, and of TCP in the application, bytes that the process took.
    pub(super) bytes: u32,
    /// Why it was dropped, if it was.
    pub(super) reason: u32,
    /// When it was seen, on the clock of [`Traits::rx_ts`].
    pub(super) now: u64,
    /// What was read, in XDP what was set; `None` unless it was all three.
    pub(super) traits: Option<Traits>,
}

/// `sizeof(struct record)`.
const LEN: usize = 48;
/// `HAS_TENANT | HAS_FLOW_ID | HAS_RX_TS`.
const HAS_ALL: u8 = 7;
const HAS_SYN: u8 = 8;

impl Record {
    fn parse(raw: &[u8]) -> Option<Record> {
        let raw: &[u8; LEN] = raw.try_into().ok()?;
        let u32_at = |at: usize| raw[at..].first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let u64_at = |at: usize| raw[at..].first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        let traits = Traits { flow_id: u64_at(0)?, rx_ts: u64_at(8)?, tenant: u32_at(32)? };
        Some(Record {
            stage: *Stage::ALL.get(usize::from(raw[46]))?,
            port: u16::from_ne_bytes([raw[44], raw[45]]),
            number: Some(u64_at(24)?),
            syn: raw[47] & HAS_SYN != 0,
            bytes: u32_at(36)?,
            reason: u32_at(40)?,
            now: u64_at(16)?,
            traits: (raw[47] & HAS_ALL == HAS_ALL).then_some(traits),
        })
    }
}

/// The reading end of the programs' ring buffer.
pub(super) struct Reader<'a> {
    ring: RingBuffer<'a>,
}

impl<'a> Reader<'a> {
    /// Reads into `to`.
    pub(super) fn new(object: &'a LoadedObject, to: &'a RefCell<Vec<Record>>) -> Result<Reader<'a>, Box<dyn Error>> {
        let map = object.map("records").ok_or("the demo's object has no map `records`")?;
        let mut builder = RingBufferBuilder::new();
        builder.add(&map, |raw| {
            to.borrow_mut().extend(Record::parse(raw));
            0
        })?;
        Ok(Reader { ring: builder.build()? })
    }

    /// Takes over everything that was reported so far.
    pub(super) fn read(&self) -> Result<(), Box<dyn Error>> {
        Ok(self.ring.consume()?)
    }
}

/// How many records did not fit into the ring buffer: `counters.lost`.
pub(super) fn lost(object: &LoadedObject) -> Result<u64, Box<dyn Error>> {
    let map = object.map(".data.counters").ok_or("the demo's object has no section `.data.counters`")?;
    let value = map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY)?;
    let lost = value.as_deref().and_then(|value| value.get(8..)?.first_chunk());
    Ok(u64::from_ne_bytes(*lost.ok_or("the demo's section `.data.counters` has changed")?))
}
