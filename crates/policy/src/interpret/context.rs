//! What a block can see beside the bytes of the packet.

use crate::policy::{Hardware, KeyId};

/// The circumstances in which a packet meets a block. By default there are none: no traits, no interfaces, time 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Values of the policy's keys that the packet arrives with, by [`KeyId`]; keys behind the end are absent.
    pub traits: Vec<Option<u128>>,
    /// The packet arrives with a trait area whose traits can be changed. At XDP, where an area is made when it is
    /// needed, this does not matter; at TC a packet without one cannot be given traits.
    pub has_area: bool,
    /// Index of the interface the packet came in by; `None` where the hook has none.
    pub input: Option<u32>,
    /// Index of the interface it goes out by.
    pub output: Option<u32>,
    /// Indexes of the interfaces that the policy names, by [`InterfaceId`](crate::policy::InterfaceId); `None` if there
    /// is no such interface.
    pub interfaces: Vec<Option<u32>>,
    /// How many bytes the packet has behind those that are given.
    pub cut: usize,
    /// At XDP and TC, the packet starts with its IP header, as at devices without link headers.
    pub no_link_header: bool,
    /// At TC, the tag control word (priority and id) of a VLAN tag that the kernel has taken out of the packet.
    pub vlan: Option<u16>,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// What the first `unique` gives; each further one gives one more.
    pub unique: u64,
    /// What the network card says of it.
    pub hardware: HardwareValues,
    /// Whether it is one of those that a `log` with `sample` tells of.
    pub sampled: bool,
}

/// What a network card says of a packet; it may be silent about each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardwareValues {
    /// Nanoseconds of its clock.
    pub timestamp: Option<u64>,
    /// Its receive hash.
    pub hash: Option<u32>,
    /// The VLAN id it has taken out.
    pub vlan_id: Option<u16>,
}

impl Context {
    /// A trait that the packet arrives with.
    pub fn arriving(&self, key: KeyId) -> Option<u128> {
        self.traits.get(key.0).copied().flatten()
    }
}

impl HardwareValues {
    /// One of them, as a number.
    pub fn get(&self, which: Hardware) -> Option<u128> {
        match which {
            Hardware::Timestamp => self.timestamp.map(u128::from),
            Hardware::Hash => self.hash.map(u128::from),
            Hardware::VlanId => self.vlan_id.map(u128::from),
        }
    }
}
