//! Events that `log` actions write to the ring `pt_log`: `struct pt_log_event` in `packet_traits/policy.bpf.h`.

use thiserror::Error;
use zerocopy::FromBytes;

/// How many of a packet's bytes are in an event, at most (`PT_LOG_PACKET_MAX`).
pub const PACKET_MAX: usize = 128;

/// What a `log` action tells of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEvent {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The rule's number in the policy.
    pub rule: u32,
    /// The text's place in the manifest's `logs`.
    pub text: u32,
    /// Index of the device the packet was at; `None` if it was at none.
    pub interface: Option<u32>,
    /// Bytes of the packet, from where it starts at the hook.
    pub length: u32,
    /// Its first bytes, [`PACKET_MAX`] at most.
    pub packet: Vec<u8>,
    /// The traits that the block reads or changes, as they were.
    pub traits: Vec<LogTrait>,
}

/// A trait in an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogTrait {
    /// The key's place among the manifest's keys.
    pub key: u32,
    /// Its value as a number, as [`policy`](crate::policy) has it; `None` if it was not set.
    pub value: Option<u128>,
}

/// Why a record is no event.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a record of {len} bytes is no log event: {reason}")]
pub struct LogEventError {
    len: usize,
    reason: &'static str,
}

impl LogEvent {
    /// Reads a record of the ring.
    pub fn parse(record: &[u8]) -> Result<LogEvent, LogEventError> {
        let error = |reason| LogEventError { len: record.len(), reason };
        let (head, mut rest) = RawEvent::read_from_prefix(record).map_err(|_| error("it is too short"))?;
        let packet = head.packet.get(..head.captured as usize);
        let packet = packet.ok_or_else(|| error("it claims more of the packet than it has"))?;
        let mut traits = Vec::new();
        for _ in 0..head.traits {
            let (one, behind) = RawTrait::read_from_prefix(rest).map_err(|_| error("it is too short"))?;
            let value = u128::from(one.high) << 64 | u128::from(one.low);
            traits.push(LogTrait { key: one.key, value: (one.set != 0).then_some(value) });
            rest = behind;
        }
        Ok(LogEvent {
            time: head.time,
            rule: head.rule,
            text: head.text,
            interface: (head.interface != 0).then_some(head.interface),
            length: head.length,
            packet: packet.to_vec(),
            traits,
        })
    }
}

/// `struct pt_log_event`.
#[derive(FromBytes)]
#[repr(C)]
struct RawEvent {
    time: u64,
    rule: u32,
    text: u32,
    interface: u32,
    length: u32,
    captured: u32,
    traits: u32,
    packet: [u8; PACKET_MAX],
}

/// `struct pt_log_trait`.
#[derive(FromBytes)]
#[repr(C)]
struct RawTrait {
    key: u32,
    set: u32,
    low: u64,
    high: u64,
}

#[cfg(test)]
mod tests {
    use packet_traits_testing::{layout::Types, same_layout};

    use super::*;
    use crate::{
        check::{CheckOptions, Texts, check},
        compile::Compiler,
        emit::{EmitOptions, emit},
    };

    #[test]
    fn policies_write_it_like_that() {
        let text = "xdp {\n\tlog \"all\"\n}\n".to_owned();
        let texts = Texts::from_iter([("p.traits", text)]);
        let checked = check(std::path::Path::new("p.traits"), &texts, &CheckOptions::default()).unwrap();
        let mut emitted = emit(&checked.policy, &checked.sources, &EmitOptions::default()).unwrap();
        // BTF has the types of variables
        emitted.source.push_str("struct pt_log_event event_here;\nstruct pt_log_trait trait_here;\n");
        let object = Compiler::new(&libbpf_sys::API_HEADERS).compile(&emitted).unwrap();
        let types = Types::of(&object);
        same_layout!(
            types.structure("pt_log_event"),
            RawEvent { time, rule, text, interface, length, captured, traits, packet }
        );
        same_layout!(types.structure("pt_log_trait"), RawTrait { key, set, low, high });
    }

    fn record(captured: u32, traits: u32) -> Vec<u8> {
        let mut record = 5u64.to_ne_bytes().to_vec();
        for word in [1, 2, 3, 100, captured, traits] {
            record.extend(u32::to_ne_bytes(word));
        }
        record.extend([0xab; PACKET_MAX]);
        record
    }

    #[test]
    fn an_event_is_read_whole() {
        let mut bytes = record(60, 2);
        for (key, set, low, high) in [(4u32, 1u32, 7u64, 1u64), (5, 0, 0, 0)] {
            bytes.extend(key.to_ne_bytes());
            bytes.extend(set.to_ne_bytes());
            bytes.extend(low.to_ne_bytes());
            bytes.extend(high.to_ne_bytes());
        }
        let event = LogEvent::parse(&bytes).unwrap();
        assert_eq!(event.traits, [LogTrait { key: 4, value: Some(1 << 64 | 7) }, LogTrait { key: 5, value: None }]);
        assert_eq!((event.time, event.rule, event.text, event.interface, event.length), (5, 1, 2, Some(3), 100));
        assert_eq!(event.packet, [0xab; 60]);
    }

    #[test]
    fn a_record_that_is_no_event_is_an_error() {
        assert!(LogEvent::parse(&record(60, 1)).is_err());
        assert!(LogEvent::parse(&record(PACKET_MAX as u32 + 1, 0)).is_err());
        assert!(LogEvent::parse(&record(0, 0)[..40]).is_err());
        assert!(LogEvent::parse(&record(0, 0)).is_ok());
    }
}
