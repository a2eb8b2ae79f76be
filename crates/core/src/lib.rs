//! What packet traits are made of, without the kernel: where the trait area and its slots lie, what a key's value
//! means and how it prints, views over the bytes of an area, and the kernel RFC's packed store.
//!
//! This crate is `no_std`, allocates nothing, has no `unsafe` and no dependency. It knows nothing of BPF, maps or
//! interfaces; those are in `packet-traits`.
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
