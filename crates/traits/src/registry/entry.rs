//! What callers ask a registry for ([`KeySpec`]) and what it answers ([`KeyEntry`]).

use std::{fmt, str::FromStr, time::SystemTime};

use packet_traits_core::{Key, KeyName, KeyType, Merge};

/// Longest description of a key, in bytes.
pub const DESCRIPTION_LEN_MAX: usize = 127;

/// What a key is to be: its name, type, merge policy and a line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpec {
    /// Its name, by which programs that know nothing of each other share it.
    pub name: KeyName,
    /// What its value is.
    pub key_type: KeyType,
    /// What GRO does with packets whose values differ; decides the region.
    pub merge: Merge,
    /// What it means. Not part of the agreement: two callers may describe the same key differently, the first one's
    /// is kept.
    pub description: Description,
}

impl KeySpec {
    /// A key with the default merge policy ([`Merge::Block`]) and no description.
    pub fn new(name: KeyName, key_type: KeyType) -> KeySpec {
        KeySpec { name, key_type, merge: Merge::default(), description: Description::default() }
    }

    /// The same with another merge policy.
    pub fn merge(self, merge: Merge) -> KeySpec {
        KeySpec { merge, ..self }
    }

    /// The same with a description.
    pub fn description(self, description: Description) -> KeySpec {
        KeySpec { description, ..self }
    }
}

/// One line of text about a key: at most [`DESCRIPTION_LEN_MAX`] bytes of UTF-8 without control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description(String);

/// Why a text is not a [`Description`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptionError {
    /// It is too long.
    #[error("a description has at most {DESCRIPTION_LEN_MAX} bytes, this one has {0}")]
    Length(usize),
    /// It has a line break or another control character.
    #[error("a description is one line without control characters")]
    Control,
}

impl Description {
    /// Checks a text.
    pub fn new(text: &str) -> Result<Description, DescriptionError> {
        if text.len() > DESCRIPTION_LEN_MAX {
            return Err(DescriptionError::Length(text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err(DescriptionError::Control);
        }
        Ok(Description(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Description {
    type Err = DescriptionError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Description::new(s)
    }
}

/// Who registered a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Owner {
    /// The process's name, as in `/proc/PID/comm`.
    pub comm: String,
    /// The user it ran as.
    pub uid: u32,
}

impl Owner {
    /// This process.
    pub(super) fn current() -> Owner {
        let comm = std::fs::read("/proc/self/comm").unwrap_or_default();
        let comm = String::from_utf8_lossy(comm.strip_suffix(b"\n").unwrap_or(&comm)).into_owned();
        Owner { comm, uid: rustix::process::getuid().as_raw() }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} (uid {})", self.comm, self.uid))
    }
}

/// A key as it stands in the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyEntry {
    /// Number, name, type and slot.
    pub key: Key,
    /// Its merge policy, which chose the slot's region.
    pub merge: Merge,
    /// What it means, in the words of who registered it.
    pub description: Description,
    /// Who registered it.
    pub owner: Owner,
    /// Tells it from an earlier key of the same number. Grows with every change of the registry, never 0.
    pub generation: u64,
    /// When it was registered.
    pub registered_at: SystemTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_one_short_line() {
        assert_eq!(Description::new("Mandant, größer").unwrap().as_str(), "Mandant, größer");
        assert_eq!(Description::new(&"x".repeat(128)), Err(DescriptionError::Length(128)));
        assert_eq!(Description::new("a\u{1b}[2Jb"), Err(DescriptionError::Control));
    }
}
