//! The parts of packet traits that need no kernel: layout of the trait area and its slots, types and text forms of values,
//! views over the bytes of an area, the kernel RFC's packed store, and the names of hooks.
//!
//! This crate is `no_std`, allocates nothing, has no `unsafe` and no dependency. BPF, maps and interfaces are in
//! `packet-traits`.
#![no_std]
#![forbid(unsafe_code)]

pub mod hook;
pub mod key;
pub mod layout;
pub mod packed;
pub mod typed;
pub mod value;
pub mod view;

pub use hook::{Direction, NetfilterFamily, NetfilterHook};
pub use key::{Key, KeyName, KeyType, Merge, NameError};
pub use layout::{Layout, LayoutError, Nonces, Region, Slot};
pub use packed::{Packed, Version};
pub use typed::{Mac, Timestamp, TraitValue, TypeMismatch, TypedKey, Uuid};
pub use value::{Value, ValueBytes, ValueError};
pub use view::{PacketRegion, SetError, TraitsMut, TraitsView, ViewError};
