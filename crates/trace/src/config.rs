//! What the programs are told before they are loaded: `config` of bpf/trace.bpf.h.

use libbpf_rs::OpenObject;

use crate::filter::{CONDITIONS_MAX, KernelCondition};

/// How many namespaces can be named; `NAMESPACES` in bpf/trace.bpf.h.
pub(crate) const NAMESPACES_MAX: usize = 8;
/// Most bytes of a packet that are reported; `CAPTURE_MAX` in bpf/trace.bpf.h.
pub const CAPTURE_MAX: usize = 256;

/// `sizeof(config)`.
const LEN: usize = BEFORE_CONDITIONS + CONDITIONS_MAX * 64;
/// Of these, before the conditions.
const BEFORE_CONDITIONS: usize = 144;

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
        let bytes = self.bytes();
        let mut section = object.maps_mut().find(|map| map.name() == ".rodata.config")?;
        section.initial_value_mut()?.get_mut(..bytes.len())?.copy_from_slice(&bytes);
        Some(())
    }

    fn bytes(&self) -> Vec<u8> {
        let mut to = Writer(Vec::with_capacity(LEN));
        to.u64s(&[self.id.bit, self.entered.bit, self.run, self.slower_ns, self.tc_id.bit, self.tc_entered.bit]);
        to.u32s(&[self.id.dist, self.entered.dist, self.tc_id.dist, self.tc_entered.dist]);
        to.u32s(&[self.sample, self.event_len, self.flow_slots, self.packet_slots, self.capture]);
        let netns: Vec<u32> = (0..NAMESPACES_MAX).map(|at| self.netns.get(at).copied().unwrap_or(0)).collect();
        to.u32s(&netns);
        let (headers, traits) = &self.conditions;
        let counts = [headers.len() as u8, (headers.len() + traits.len()) as u8];
        to.u8s(&[self.id.size, self.id.merge, self.entered.merge, self.only_drops.into(), counts[0], counts[1]]);
        to.u8s(&[self.consume_place.into(), 0]);
        to.0.resize(BEFORE_CONDITIONS - 16, 0);
        to.u64s(&[self.tcp_end.0, self.tcp_end.1]);
        for condition in headers.iter().chain(traits) {
            to.u64s(&[condition.bit]);
            to.u64s(&condition.value);
            to.u64s(&condition.mask);
            to.u64s(&[condition.flip]);
            to.u32s(&[condition.dist]);
            let KernelCondition { merge, field, other, family, operator, negate, .. } = *condition;
            to.u8s(&[merge, field, other, family, operator, negate, 0, 0, 0, 0, 0, 0]);
        }
        to.0.resize(LEN, 0);
        to.0
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u64s(&mut self, words: &[u64]) {
        self.0.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    }

    fn u32s(&mut self, words: &[u32]) {
        self.0.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    }

    fn u8s(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_where_the_header_has_them() {
        let condition = KernelCondition { bit: 7, negate: 1, dist: 24, ..Default::default() };
        let config = Config {
            netns: vec![5],
            capture: 96,
            only_drops: true,
            consume_place: true,
            tcp_end: (3, 4),
            conditions: (Vec::new(), vec![condition]),
            ..Default::default()
        };
        let bytes = config.bytes();
        assert_eq!(bytes.len(), LEN);
        assert_eq!((bytes[80], bytes[84], bytes[119], bytes[120], bytes[121]), (96, 5, 1, 0, 1));
        assert_eq!((bytes[122], bytes[128], bytes[136]), (1, 3, 4));
        let first = &bytes[BEFORE_CONDITIONS..];
        assert_eq!((first[0], first[48], first[57]), (7, 24, 1));
    }
}
