//! How commands print: tables for people, JSON for machines, and the JSON shapes they share.
//!
//! JSON shapes are stable: members may be added, none is renamed or removed. Times are RFC 3339 in UTC to the second;
//! 64-bit identities are text in hexadecimal, because many readers of JSON keep 53 bits of a number.

use std::{
    fmt::Display,
    io::{self, Write},
};

use packet_traits::registry::{BoundProgram, KeyEntry, Utc};
pub(crate) use packet_traits_trace::write::text::counted;
use serde::Serialize;

/// Prints a line.
pub(crate) fn line(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Prints text whose lines are ended.
pub(crate) fn text(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}

/// Prints a line on standard error. If nobody can read it, as after `traits demo 2>&1 | head -1`, there is nobody to tell.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints a value as JSON.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Rows of text in aligned columns.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column titles.
    pub(crate) fn new(titles: &[&str]) -> Table {
        Table { rows: vec![titles.iter().map(|title| (*title).to_owned()).collect()] }
    }

    /// Appends a row.
    pub(crate) fn row(&mut self, cells: &[&dyn Display]) {
        self.rows.push(cells.iter().map(ToString::to_string).collect());
    }

    /// Prints it, if it has more than titles.
    pub(crate) fn print(&self) -> io::Result<()> {
        if self.rows.len() < 2 {
            return Ok(());
        }
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        for row in &self.rows {
            let cells: Vec<String> =
                row.iter().enumerate().map(|(i, cell)| format!("{cell:<width$}", width = width(i))).collect();
            line(cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

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
