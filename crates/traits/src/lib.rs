//! Rich metadata for network packets on the stock Linux kernel.
//!
//! A *trait* is a small typed value with a name (`tenant: u32`, `flow_id: u64`, `rx_ts`) that an XDP program attaches
//! to a packet and that every later stage can read. This crate is the control side: the [`registry`] that names are
//! given out from, [`bind`]ing a BPF object's keys to it, and [`attach`]ing programs to hooks; the [`socket_programs`] that serve
//! the options of `packet-traits-socket`, by which applications read and set traits; and [`border`]s, which keep traits from others.

#[cfg(not(target_endian = "little"))]
compile_error!("packet traits are for little-endian machines: nothing here was tried on another one");

pub mod attach;
pub mod bind;
pub mod border;
pub mod bpffs;
pub mod deployment;
mod descriptor;
pub mod doctor;
pub mod drop_reason;
mod hint;
mod insn;
mod mounts;
mod netlink;
pub mod registry;
pub mod rotate;
pub mod socket_programs;

pub use self::hint::Hint;
pub use packet_traits_core::{
    Key, KeyName, KeyType, Layout, LayoutError, Mac, Merge, NameError, NetfilterFamily, NetfilterHook, Nonces, Packed,
    PacketRegion, Region, SetError, Slot, Timestamp, TraitValue, TraitsMut, TraitsView, TypeMismatch, TypedKey, Uuid,
    Value, ValueBytes, ValueError, Version, ViewError, hook, key, layout, packed, typed, value, view,
};
