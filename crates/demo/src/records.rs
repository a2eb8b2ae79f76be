//! What was seen: one record for each test packet at each stage. The programs' are `struct record` of bpf/demo.bpf.c;
//! those of the stage `application` come from the servers.

use std::{cell::RefCell, error::Error};

use libbpf_rs::{MapCore, MapFlags, RingBuffer, RingBufferBuilder};
use packet_traits::bind::LoadedObject;
use zerocopy::FromBytes;

/// Where a packet was seen; `enum stage`, and the application behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Stage {
    Xdp,
    TcIngress,
    TcIngressInner,
    PreRouting,
    Input,
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
        Stage::Input,
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
        matches!(self, Stage::PreRouting | Stage::Input)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Stage::Xdp => "xdp",
            Stage::TcIngress => "tc-ingress",
            Stage::TcIngressInner => "tc-ingress-inner",
            Stage::PreRouting => "netfilter-prerouting",
            Stage::Input => "netfilter-input",
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

/// `struct record`.
#[derive(FromBytes)]
#[repr(C)]
struct RawRecord {
    flow_id: u64,
    rx_ts: u64,
    now: u64,
    number: u64,
    tenant: u32,
    bytes: u32,
    reason: u32,
    port: u16,
    stage: u8,
    has: u8,
}

/// `counters`.
#[allow(dead_code, reason = "the programs' members are all here")]
#[derive(FromBytes)]
#[repr(C)]
struct RawCounters {
    flow_id: u64,
    lost: u64,
}

/// `HAS_TENANT | HAS_FLOW_ID | HAS_RX_TS`.
const HAS_ALL: u8 = 7;
const HAS_SYN: u8 = 8;

impl Record {
    fn parse(raw: &[u8]) -> Option<Record> {
        let raw = RawRecord::read_from_bytes(raw).ok()?;
        let traits = Traits { flow_id: raw.flow_id, rx_ts: raw.rx_ts, tenant: raw.tenant };
        Some(Record {
            stage: *Stage::ALL.get(usize::from(raw.stage))?,
            port: raw.port,
            number: Some(raw.number),
            syn: raw.has & HAS_SYN != 0,
            bytes: raw.bytes,
            reason: raw.reason,
            now: raw.now,
            traits: (raw.has & HAS_ALL == HAS_ALL).then_some(traits),
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
    let counters = value.as_deref().and_then(|value| RawCounters::read_from_prefix(value).ok());
    Ok(counters.ok_or("the demo's section `.data.counters` has changed")?.0.lost)
}

#[cfg(test)]
mod tests {
    use packet_traits_testing::{
        layout::{Types, enumerators, screaming},
        same_layout,
    };

    use super::*;
    use crate::programs::{OBJECT, RawConfig, SHORT_OBJECT};

    #[test]
    fn the_programs_write_records_like_that() {
        for object in [OBJECT, SHORT_OBJECT] {
            let types = Types::of(object);
            same_layout!(
                types.structure("record"),
                RawRecord { flow_id, rx_ts, now, number, tenant, bytes, reason, port, stage, has }
            );
            same_layout!(types.variable("counters"), RawCounters { flow_id, lost });
            same_layout!(types.variable("config"), RawConfig { netns, skip });
        }
        let in_c = enumerators(include_str!("bpf/demo.bpf.c"));
        assert_eq!(in_c.keys().filter(|name| name.starts_with("STAGE_")).count(), Stage::ALL.len() - 1);
        for stage in Stage::ALL.into_iter().filter(|stage| *stage != Stage::Application) {
            let name = format!("STAGE_{}", screaming(&format!("{stage:?}")));
            assert_eq!(in_c.get(&name), Some(&(stage as i64)), "{name}");
        }
        let has_all = in_c["HAS_TENANT"] | in_c["HAS_FLOW_ID"] | in_c["HAS_RX_TS"];
        assert_eq!((has_all, in_c["HAS_SYN"]), (HAS_ALL.into(), HAS_SYN.into()));
    }
}
