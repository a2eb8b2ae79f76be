//! Binding: giving a BPF object's keys their numbers and places, before it is loaded.
//!
//! BPF source declares keys by name (`TRAIT_KEY(tenant, __u32)` in `packet_traits/traits.bpf.h`). Each declaration is
//! a descriptor in the object's section `.rodata.packet_traits`; binding looks the name up in a registry, checks the
//! declared type and merge policy against the registered ones, and fills the descriptor in. The section is read-only
//! and frozen when the program is loaded, so the verifier treats its contents as constants.
//!
//! Two ways, one mechanism:
//! - [`BoundObject`] (or [`bind_open_object`] for skeletons) binds an object that this process then loads.
//! - [`bind_file`] writes a bound copy of an object file for any other loader.
//!
//! Binding is all or nothing: an object in which one key cannot be bound is not changed.

mod ctype;
mod error;
mod file;
mod needs;
mod object;
mod open;
mod other_loaders;
mod redirects;
mod refusal;
mod secrets;

pub use error::BindError;
pub use file::bind_file;
pub use object::{BoundObject, LoadedObject};
pub(crate) use open::ANCHORS_MAP;
pub use open::{Binding, BoundKey, bind_open_object};
