//! The text that policies are written in: files, and places in them.

use std::ops::Range;

/// Place of a file in [`Sources`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(pub usize);

/// A part of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Span {
    /// Which file.
    pub source: SourceId,
    /// Its first byte.
    pub start: usize,
    /// The byte after its last.
    pub end: usize,
}

impl Span {
    /// A part of a file.
    pub const fn new(source: SourceId, range: Range<usize>) -> Span {
        Span { source, start: range.start, end: range.end }
    }

    /// The smallest part that has both in it.
    #[must_use]
    pub fn to(self, other: Span) -> Span {
        Span { source: self.source, start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Source {
    /// Its path, as errors name it.
    pub name: String,
    /// What is in it.
    pub text: String,
}

/// Every file of a policy: the first is the policy itself, the others are those it includes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    files: Vec<Source>,
}

impl Sources {
    /// Adds a file.
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<String>) -> SourceId {
        self.files.push(Source { name: name.into(), text: text.into() });
        SourceId(self.files.len() - 1)
    }

    /// A file.
    ///
    /// # Panics
    /// If it is of other sources.
    pub fn get(&self, id: SourceId) -> &Source {
        &self.files[id.0]
    }

    /// All files in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = (SourceId, &Source)> {
        self.files.iter().enumerate().map(|(place, file)| (SourceId(place), file))
    }

    /// The text of a part.
    pub fn text(&self, span: Span) -> &str {
        self.get(span.source).text.get(span.start..span.end).unwrap_or_default()
    }

    /// Line and column of a byte, both from 1; columns count characters.
    pub fn line_column(&self, source: SourceId, byte: usize) -> (usize, usize) {
        let before = self.get(source).text.get(..byte).unwrap_or(&self.get(source).text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}
