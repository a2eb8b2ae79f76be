//! What commands print: [`packet_traits_terminal::output`], and the JSON shapes that several commands share.
//!
//! JSON shapes are stable: members may be added, none is renamed or removed. Times are RFC 3339 in UTC to the second;
//! 64-bit identities are text in hexadecimal, because many readers of JSON keep 53 bits of a number.

use packet_traits::registry::{BoundProgram, KeyEntry, Utc};
pub(crate) use packet_traits_terminal::output::*;
use serde::Serialize;

/// A key.
#[derive(Serialize)]
pub(crate) struct KeyJson {
    /// Its name.
    name: String,
    /// 0 to 63.
    number: usize,
    /// `flag`, `u8`, … `timestamp`.
    #[serde(rename = "type")]
    key_type: &'static str,
    /// `block`, `keep-first` or `discard`.
    merge: &'static str,
    /// `flow` or `packet`.
    region: String,
    /// Bytes of a value.
    size: usize,
    /// Bytes from the packet data back to a value's first byte; 0 for a flag.
    distance: usize,
    /// What it means; may be empty.
    description: String,
    /// Tells it from an earlier key of the same number.
    generation: u64,
    /// When it was registered.
    registered_at: String,
    /// Who registered it.
    owner: OwnerJson,
}

/// Who registered a key.
#[derive(Serialize)]
struct OwnerJson {
    /// Name of the process.
    comm: String,
    /// User it ran as.
    uid: u32,
}

impl From<&KeyEntry> for KeyJson {
    fn from(entry: &KeyEntry) -> Self {
        KeyJson {
            name: entry.key.name().to_string(),
            number: entry.key.number(),
            key_type: entry.key.key_type().name(),
            merge: entry.merge.name(),
            region: entry.merge.region().to_string(),
            size: entry.key.slot().size(),
            distance: entry.key.slot().distance(),
            description: entry.description.to_string(),
            generation: entry.generation,
            registered_at: Utc(entry.registered_at).to_string(),
            owner: OwnerJson { comm: entry.owner.comm.clone(), uid: entry.owner.uid },
        }
    }
}

/// A loaded program that is bound to a registry.
#[derive(Serialize)]
pub(crate) struct ProgramJson {
    /// The kernel's number for it.
    id: u32,
    /// Its name in the kernel.
    name: String,
    /// The kernel's hash of its instructions, 16 hexadecimal digits.
    tag: String,
    /// When it was loaded.
    loaded_at: String,
    /// Names of the keys it uses.
    keys: Vec<String>,
    /// It has secrets of before the last rotation.
    stale: bool,
}

impl ProgramJson {
    /// A program and those of `keys` that it uses.
    pub(crate) fn new(program: &BoundProgram, keys: &[KeyEntry]) -> ProgramJson {
        ProgramJson {
            id: program.id,
            name: program.name.clone(),
            tag: program.tag_hex(),
            loaded_at: Utc(program.loaded_at()).to_string(),
            keys: keys_of(program, keys).map(|entry| entry.key.name().to_string()).collect(),
            stale: program.stale,
        }
    }
}

/// Those of `keys` that a program uses.
pub(crate) fn keys_of<'k>(program: &BoundProgram, keys: &'k [KeyEntry]) -> impl Iterator<Item = &'k KeyEntry> {
    let used = program.keys;
    keys.iter().filter(move |entry| used & entry.key.bit() != 0)
}
