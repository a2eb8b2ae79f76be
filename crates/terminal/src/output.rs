//! Printing: tables for people, JSON for machines.

use std::{
    fmt::Display,
    io::{self, Write},
};

pub use packet_traits_trace::write::text::counted;
use serde::Serialize;

/// Prints a line.
///
/// # Errors
/// Those of writing to standard output.
pub fn line(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Prints text whose lines are ended.
///
/// # Errors
/// Those of writing to standard output.
pub fn text(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}

/// Prints a line on standard error. A failure, as after `traits demo 2>&1 | head -1`, is ignored.
pub fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints a value as JSON.
///
/// # Errors
/// Those of writing to standard output.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Rows of text in aligned columns.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column titles.
    pub fn new(titles: &[&str]) -> Table {
        Table { rows: vec![titles.iter().map(|title| (*title).to_owned()).collect()] }
    }

    /// Appends a row.
    pub fn row(&mut self, cells: &[&dyn Display]) {
        self.rows.push(cells.iter().map(ToString::to_string).collect());
    }

    /// Prints it, if it has more than titles.
    ///
    /// # Errors
    /// Those of writing to standard output.
    pub fn print(&self) -> io::Result<()> {
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
