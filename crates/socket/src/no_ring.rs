//! Without the feature `ring`: no slots as memory. What is in `ring.rs`, of types that have no values.

use super::abi::traits_receive;

pub(crate) enum Ring {}

pub(crate) enum Part {}

/// What was found in a slot.
#[expect(dead_code, reason = "nothing is ever looked for")]
pub(crate) enum Found {
    Traits,
    Other(u64),
    Nothing,
}

impl Ring {
    /// None, without having tried.
    pub(crate) fn part_if_allowed(_: &traits_receive) -> Option<Part> {
        None
    }
}

impl Part {
    pub(crate) fn prefetch(&self) {
        match *self {}
    }

    pub(crate) fn read(&self, _handle: u32, _record: &mut [u8]) -> Found {
        match *self {}
    }

    pub(crate) fn set_revision(&self, _revision: u64) {
        match *self {}
    }

    pub(crate) fn is_news(&self, _revision: u64) -> bool {
        match *self {}
    }
}
