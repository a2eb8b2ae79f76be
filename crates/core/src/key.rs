//! Keys: their number, name, type and merge policy.

use core::{fmt, str::FromStr};

use crate::layout::{KEY_COUNT, Region, Slot};

/// Longest name of a key, in bytes.
pub const NAME_LEN_MAX: usize = 31;

/// What a key's value is: how many bytes it has and how it is printed.
///
/// The discriminant is the code stored in the registry's pinned table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum KeyType {
    /// Set or not set; no bytes.
    Flag = 1,
    /// 1 byte.
    U8 = 2,
    /// 2 bytes, native endianness.
    U16 = 3,
    /// 4 bytes, native endianness.
    U32 = 4,
    /// 8 bytes, native endianness.
    U64 = 5,
    /// 16 bytes, native endianness.
    U128 = 6,
    /// 8 bytes, native endianness, signed.
    I64 = 7,
    /// 4 bytes in network order, as in an IPv4 header.
    Ipv4 = 8,
    /// 16 bytes in network order, as in an IPv6 header.
    Ipv6 = 9,
    /// 8 bytes: the 6 bytes of the address as on the wire, then 2 that are ignored.
    Mac = 10,
    /// 16 bytes in RFC 9562 order (first byte first in the text form).
    Uuid = 11,
    /// 8 bytes, native endianness: nanoseconds of `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`).
    Timestamp = 12,
}

impl KeyType {
    /// Every type, in the order of its code.
    pub const ALL: [KeyType; 12] = [
        KeyType::Flag,
        KeyType::U8,
        KeyType::U16,
        KeyType::U32,
        KeyType::U64,
        KeyType::U128,
        KeyType::I64,
        KeyType::Ipv4,
        KeyType::Ipv6,
        KeyType::Mac,
        KeyType::Uuid,
        KeyType::Timestamp,
    ];

    /// Bytes of a value: 0, 1, 2, 4, 8 or 16.
    pub const fn size(self) -> usize {
        match self {
            KeyType::Flag => 0,
            KeyType::U8 => 1,
            KeyType::U16 => 2,
            KeyType::U32 | KeyType::Ipv4 => 4,
            KeyType::U64 | KeyType::I64 | KeyType::Mac | KeyType::Timestamp => 8,
            KeyType::U128 | KeyType::Ipv6 | KeyType::Uuid => 16,
        }
    }

    /// The type's name: `flag`, `u8`, … `timestamp`.
    pub const fn name(self) -> &'static str {
        match self {
            KeyType::Flag => "flag",
            KeyType::U8 => "u8",
            KeyType::U16 => "u16",
            KeyType::U32 => "u32",
            KeyType::U64 => "u64",
            KeyType::U128 => "u128",
            KeyType::I64 => "i64",
            KeyType::Ipv4 => "ipv4",
            KeyType::Ipv6 => "ipv6",
            KeyType::Mac => "mac",
            KeyType::Uuid => "uuid",
            KeyType::Timestamp => "timestamp",
        }
    }

    /// The type with this code in the registry's table.
    pub fn from_code(code: u8) -> Option<KeyType> {
        Self::ALL.into_iter().find(|t| *t as u8 == code)
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for KeyType {
    type Err = UnknownWord;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|t| t.name() == s)
            .ok_or(UnknownWord { expected: "flag, u8, u16, u32, u64, u128, i64, ipv4, ipv6, mac, uuid or timestamp" })
    }
}

/// What GRO does with two packets of a flow whose values of a key differ.
///
/// The discriminant is the code stored in the registry's pinned table and in a program's key descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Merge {
    /// They are not merged. For values that are the same for a whole flow.
    #[default]
    Block = 0,
    /// They are merged, and the merged packet keeps the first one's value. For values that differ per packet.
    KeepFirst = 1,
    /// They are merged, and the merged packet has no value: for values that are of one packet only. So has a packet that was
    /// made of fragments.
    Discard = 2,
}

impl Merge {
    /// All policies.
    pub const ALL: [Merge; 3] = [Merge::Block, Merge::KeepFirst, Merge::Discard];

    /// The policy's name: `block`, `keep-first` or `discard`.
    pub const fn name(self) -> &'static str {
        match self {
            Merge::Block => "block",
            Merge::KeepFirst => "keep-first",
            Merge::Discard => "discard",
        }
    }

    /// The region that holds keys with this policy.
    pub const fn region(self) -> Region {
        match self {
            Merge::Block => Region::Flow,
            Merge::KeepFirst | Merge::Discard => Region::Packet,
        }
    }

    /// The policy with this code.
    pub fn from_code(code: u8) -> Option<Merge> {
        Self::ALL.into_iter().find(|m| *m as u8 == code)
    }
}

impl fmt::Display for Merge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Merge {
    type Err = UnknownWord;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|m| m.name() == s).ok_or(UnknownWord { expected: "block, keep-first or discard" })
    }
}

/// A word that names no [`KeyType`] or no [`Merge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownWord {
    expected: &'static str,
}

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.expected)
    }
}

impl core::error::Error for UnknownWord {}

/// A key's name: `[a-z][a-z0-9_.-]{0,30}`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyName {
    /// Padded with NUL, so that it is also a C string.
    bytes: [u8; NAME_LEN_MAX + 1],
}

/// Why a text is not a key's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameError {
    /// It is empty or longer than [`NAME_LEN_MAX`] bytes.
    Length,
    /// It does not start with `a` to `z`.
    Start,
    /// It has a character outside `a`–`z`, `0`–`9`, `_`, `.` and `-`.
    Character,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NameError::Length => "a name has 1 to 31 characters",
            NameError::Start => "a name starts with a letter from a to z",
            NameError::Character => "a name has only a-z, 0-9, '_', '.' and '-'",
        })
    }
}

impl core::error::Error for NameError {}

impl KeyName {
    /// Checks a name.
    pub fn new(name: &str) -> Result<KeyName, NameError> {
        let raw = name.as_bytes();
        if raw.is_empty() || raw.len() > NAME_LEN_MAX {
            return Err(NameError::Length);
        }
        if !raw[0].is_ascii_lowercase() {
            return Err(NameError::Start);
        }
        if !raw.iter().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_.-".contains(c)) {
            return Err(NameError::Character);
        }
        let mut bytes = [0; NAME_LEN_MAX + 1];
        bytes[..raw.len()].copy_from_slice(raw);
        Ok(KeyName { bytes })
    }

    /// A name from NUL-padded bytes, as in the registry's table and in key descriptors.
    pub fn from_padded(bytes: &[u8; NAME_LEN_MAX + 1]) -> Result<KeyName, NameError> {
        let len = bytes.iter().position(|c| *c == 0).ok_or(NameError::Length)?;
        if bytes[len..].iter().any(|c| *c != 0) {
            return Err(NameError::Character);
        }
        KeyName::new(core::str::from_utf8(&bytes[..len]).map_err(|_| NameError::Character)?)
    }

    /// The name, padded with NUL to 32 bytes.
    pub const fn padded(&self) -> &[u8; NAME_LEN_MAX + 1] {
        &self.bytes
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        let len = self.bytes.iter().position(|c| *c == 0).unwrap_or(self.bytes.len());
        core::str::from_utf8(&self.bytes[..len]).unwrap_or_default()
    }
}

impl fmt::Debug for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for KeyName {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        KeyName::new(s)
    }
}

/// A key as a registry knows it: its number, its name, its type and where its value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    number: u8,
    name: KeyName,
    key_type: KeyType,
    slot: Slot,
}

impl Key {
    /// A key; `None` if the number is not below [`KEY_COUNT`] or the slot's size is not the type's.
    pub const fn new(number: usize, name: KeyName, key_type: KeyType, slot: Slot) -> Option<Key> {
        if number >= KEY_COUNT || slot.size() != key_type.size() {
            return None;
        }
        Some(Key { number: number as u8, name, key_type, slot })
    }

    /// Its number, 0 to 63: its bit in the footer of its region.
    pub const fn number(&self) -> usize {
        self.number as usize
    }

    /// Its bit in the `present` word of its region's footer.
    pub const fn bit(&self) -> u64 {
        1 << self.number
    }

    /// Its name.
    pub const fn name(&self) -> &KeyName {
        &self.name
    }

    /// Its type.
    pub const fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// Where its value lies.
    pub const fn slot(&self) -> Slot {
        self.slot
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "tenant", "my-app.tenant_2", "abcdefghijklmnopqrstuvwxyz01234"] {
            let name = KeyName::new(good).unwrap();
            assert_eq!(name.as_str(), good);
            assert_eq!(KeyName::from_padded(name.padded()), Ok(name));
        }
        assert_eq!(KeyName::new(""), Err(NameError::Length));
        assert_eq!(KeyName::new("abcdefghijklmnopqrstuvwxyz012345"), Err(NameError::Length));
        assert_eq!(KeyName::new("1a"), Err(NameError::Start));
        assert_eq!(KeyName::new("a b"), Err(NameError::Character));
        assert_eq!(KeyName::from_padded(&[b'a'; 32]), Err(NameError::Length));
        let mut dirty = *KeyName::new("a").unwrap().padded();
        dirty[5] = b'x';
        assert_eq!(KeyName::from_padded(&dirty), Err(NameError::Character));
    }

    #[test]
    fn words_and_codes_round_trip() {
        for t in KeyType::ALL {
            assert_eq!(t.to_string().parse(), Ok(t));
            assert_eq!(KeyType::from_code(t as u8), Some(t));
        }
        for m in Merge::ALL {
            assert_eq!(m.to_string().parse(), Ok(m));
            assert_eq!(Merge::from_code(m as u8), Some(m));
        }
        assert!("u24".parse::<KeyType>().is_err());
        assert!("sum".parse::<Merge>().is_err());
        assert_eq!(KeyType::from_code(0), None);
    }
}
