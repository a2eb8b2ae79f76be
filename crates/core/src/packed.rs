//! The packed store of the kernel RFC "traits: per packet metadata KV store" (patches 1, 5 and 6), both versions, bit
//! for bit.
//!
//! A 16-byte header, then the values of the keys that are set, in key order and without padding:
//!
//! ```text
//! | high: u64 | low: u64 | value of the lowest key | value of the next one | …
//! ```
//!
//! Bit *k* of `high` and of `low` is the size code of key *k*; 00 is not set. Both words have native endianness. The
//! offset of a value follows from population counts of the words below its bit, so that nothing is searched; a new key
//! moves the values behind it up, a deleted one moves them down. Bytes behind the last value keep what they had.
//!
//! This is another format than the trait area, whose slots are fixed ([`layout`](crate::layout)): it is here for
//! programs and data that use the RFC's.

use core::fmt;

use crate::layout::KEY_COUNT;

/// Bytes of the header (`struct __trait_hdr` in the RFC).
pub const HEADER_LEN: usize = 16;

/// Which of the two published formats a store has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// March 2025. Values of 2, 4 and 8 bytes, coded 01, 10 and 11.
    V1,
    /// April 2025. Values of 0 (flag), 4 and 8 bytes, coded 01, 10 and 11.
    V2,
}

impl Version {
    /// The sizes a value can have, in bytes, in the order of their codes from 1.
    pub const fn value_lens(self) -> [usize; 3] {
        match self {
            Version::V1 => [2, 4, 8],
            Version::V2 => [0, 4, 8],
        }
    }

    /// The code of a size.
    fn code(self, len: usize) -> Option<u64> {
        self.value_lens().into_iter().zip(1..).find_map(|(valid, code)| (valid == len).then_some(code))
    }
}

/// Why a call on a store failed. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// `ENOMEM`: the bytes given have no room for the header.
    NoRoomForHeader {
        /// How many were given.
        found: usize,
    },
    /// `EINVAL`: the header claims more values than fit into the bytes given.
    Truncated {
        /// Bytes that header and values take.
        needed: usize,
        /// How many were given.
        found: usize,
    },
    /// `EINVAL`: the key is above 63.
    Key(u64),
    /// `EINVAL`: a value cannot have this many bytes.
    ValueLen {
        /// Bytes of the value.
        len: usize,
        /// The version of the store, which says what it can have.
        version: Version,
    },
    /// `EINVAL`: flags other than 0.
    Flags(u64),
    /// `EBUSY`: the key is set and its value has another size.
    OtherLen {
        /// Bytes of the value it holds.
        held: usize,
        /// Bytes of the value it was to be set to.
        len: usize,
    },
    /// `ENOSPC`: there is no room for one more value of this size.
    NoSpace {
        /// Bytes that are needed.
        needed: usize,
        /// Bytes that are left.
        left: usize,
    },
    /// `ENOSPC`: the buffer is too small for the value.
    BufferTooSmall {
        /// Bytes of the value.
        needed: usize,
        /// Bytes of the buffer.
        found: usize,
    },
    /// `ENOENT`: the key is not set.
    NotSet,
}

impl Error {
    /// The error number the RFC's calls return for it, as a positive number (include/uapi/asm-generic/errno-base.h).
    pub const fn errno(self) -> i32 {
        match self {
            Error::NotSet => 2,
            Error::NoRoomForHeader { .. } => 12,
            Error::OtherLen { .. } => 16,
            Error::Truncated { .. } | Error::Key(_) | Error::ValueLen { .. } | Error::Flags(_) => 22,
            Error::NoSpace { .. } | Error::BufferTooSmall { .. } => 28,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoRoomForHeader { found } => {
                write!(f, "a store needs at least {HEADER_LEN} bytes for its header, but {found} were given")
            }
            Error::Truncated { needed, found } => {
                write!(f, "not a whole store: its header says {needed} bytes, but {found} were given")
            }
            Error::Key(key) => write!(f, "key {key} is not from 0 to {}", KEY_COUNT - 1),
            Error::ValueLen { len, version } => {
                let [a, b, c] = version.value_lens();
                write!(f, "a value of {len} bytes: this version of the store has values of {a}, {b} or {c} bytes")
            }
            Error::Flags(flags) => write!(f, "flags {flags:#x}: none are defined, pass 0"),
            Error::OtherLen { held, len } => {
                write!(f, "the key holds a value of {held} bytes, not of {len}: delete it first to change its size")
            }
            Error::NoSpace { needed, left } => write!(f, "no room: the value has {needed} bytes, {left} are left"),
            Error::BufferTooSmall { needed, found } => {
                write!(f, "the value has {needed} bytes, but the buffer only {found}")
            }
            Error::NotSet => f.write_str("the key is not set"),
        }
    }
}

impl core::error::Error for Error {}

/// A packed store over bytes: `Packed<&[u8]>` to read, `Packed<&mut [u8]>` (or an array) to write as well.
///
/// ```
/// use packet_traits_core::packed::{Error, Packed, Version};
///
/// let mut store = Packed::init([0; 64], Version::V2)?;
/// store.set(7, &[1, 2, 3, 4], 0)?;
/// let mut value = [0; 8];
/// assert_eq!(store.get(7, &mut value), Ok(4));
/// assert_eq!(value[..4], [1, 2, 3, 4]);
/// assert_eq!(store.get(8, &mut value), Err(Error::NotSet));
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Packed<B> {
    /// Long enough for the header and the values it names.
    bytes: B,
    version: Version,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Packed<B> {
    /// Makes an empty store that may use all of `bytes`: zeroes its header.
    ///
    /// [`Error::NoRoomForHeader`] if there are fewer than [`HEADER_LEN`].
    pub fn init(mut bytes: B, version: Version) -> Result<Packed<B>, Error> {
        let found = bytes.as_ref().len();
        if found < HEADER_LEN {
            return Err(Error::NoRoomForHeader { found });
        }
        bytes.as_mut()[..HEADER_LEN].fill(0);
        Ok(Packed { bytes, version })
    }

    /// Sets a key's value. `flags` is 0.
    ///
    /// Checked in this order: [`Error::Key`], [`Error::ValueLen`] and [`Error::Flags`]; [`Error::OtherLen`] if the key
    /// is set with another size; [`Error::NoSpace`] if it is not set and the value does not fit.
    pub fn set(&mut self, key: u64, value: &[u8], flags: u64) -> Result<(), Error> {
        let bit = bit(key)?;
        let len = value.len();
        let code = self.version.code(len).ok_or(Error::ValueLen { len, version: self.version })?;
        if flags != 0 {
            return Err(Error::Flags(flags));
        }
        let header = self.header();
        let offset = header.offset(bit, self.version);
        match header.value_len(bit, self.version) {
            Some(held) if held != len => return Err(Error::OtherLen { held, len }),
            Some(_) => self.bytes.as_mut()[offset..offset + len].copy_from_slice(value),
            None => {
                let end = header.store_len(self.version);
                let bytes = self.bytes.as_mut();
                let left = bytes.len() - end;
                if left < len {
                    return Err(Error::NoSpace { needed: len, left });
                }
                bytes.copy_within(offset..end, offset + len);
                bytes[offset..offset + len].copy_from_slice(value);
                self.set_header(header.with_code(bit, code));
            }
        }
        Ok(())
    }

    /// Takes a key's value away. [`Error::Key`] or [`Error::NotSet`].
    pub fn del(&mut self, key: u64) -> Result<(), Error> {
        let bit = bit(key)?;
        let header = self.header();
        let len = header.value_len(bit, self.version).ok_or(Error::NotSet)?;
        let offset = header.offset(bit, self.version);
        self.bytes.as_mut().copy_within(offset + len..header.store_len(self.version), offset);
        self.set_header(header.with_code(bit, 0));
        Ok(())
    }

    fn set_header(&mut self, header: Header) {
        let bytes = self.bytes.as_mut();
        bytes[..8].copy_from_slice(&header.high.to_ne_bytes());
        bytes[8..HEADER_LEN].copy_from_slice(&header.low.to_ne_bytes());
    }
}

impl<B: AsRef<[u8]>> Packed<B> {
    /// The store that these bytes hold. It may grow to all of them.
    ///
    /// [`Error::NoRoomForHeader`], or [`Error::Truncated`] if the values do not fit, as with bytes that are no store.
    pub fn from_bytes(bytes: B, version: Version) -> Result<Packed<B>, Error> {
        let found = bytes.as_ref().len();
        if found < HEADER_LEN {
            return Err(Error::NoRoomForHeader { found });
        }
        let store = Packed { bytes, version };
        let needed = store.store_len();
        if needed > found {
            return Err(Error::Truncated { needed, found });
        }
        Ok(store)
    }

    /// Copies a key's value to the start of `buffer`, which may be larger, and returns its size in bytes.
    ///
    /// [`Error::Key`], [`Error::NotSet`] or [`Error::BufferTooSmall`], in this order.
    pub fn get(&self, key: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        let bit = bit(key)?;
        let header = self.header();
        let len = header.value_len(bit, self.version).ok_or(Error::NotSet)?;
        let offset = header.offset(bit, self.version);
        let found = buffer.len();
        let start = buffer.get_mut(..len).ok_or(Error::BufferTooSmall { needed: len, found })?;
        start.copy_from_slice(&self.bytes.as_ref()[offset..offset + len]);
        Ok(len)
    }

    /// Whether a key has a value. [`Error::Key`].
    pub fn is_set(&self, key: u64) -> Result<bool, Error> {
        Ok(self.header().value_len(bit(key)?, self.version).is_some())
    }

    /// Bytes that the header and all values take (`traits_size` in the RFC).
    pub fn store_len(&self) -> usize {
        self.header().store_len(self.version)
    }

    /// The format of the store.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// All bytes given to the store, also those that it does not use.
    pub fn into_inner(self) -> B {
        self.bytes
    }

    fn header(&self) -> Header {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&self.bytes.as_ref()[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        Header { high: word(0), low: word(8) }
    }
}

/// A key's bit in the header words.
fn bit(key: u64) -> Result<u64, Error> {
    if key < KEY_COUNT as u64 { Ok(1 << key) } else { Err(Error::Key(key)) }
}

/// The two words of the header.
#[derive(Clone, Copy)]
struct Header {
    high: u64,
    low: u64,
}

impl Header {
    /// Total size of the values of the keys whose bits are in `mask`.
    fn values_len(self, mask: u64, version: Version) -> usize {
        let pop = |word: u64| (word & mask).count_ones() as usize;
        let (high, low, both) = (pop(self.high), pop(self.low), pop(self.high & self.low));
        match version {
            Version::V1 => 2 * low + 4 * high + 2 * both,
            Version::V2 => 4 * high + 4 * both,
        }
    }

    /// Size of one key's value, if it is set.
    fn value_len(self, bit: u64, version: Version) -> Option<usize> {
        ((self.high | self.low) & bit != 0).then(|| self.values_len(bit, version))
    }

    /// Where one key's value lies, or would, from the start of the store.
    fn offset(self, bit: u64, version: Version) -> usize {
        HEADER_LEN + self.values_len(bit - 1, version)
    }

    fn store_len(self, version: Version) -> usize {
        HEADER_LEN + self.values_len(u64::MAX, version)
    }

    fn with_code(self, bit: u64, code: u64) -> Header {
        let put = |word: u64, on: bool| if on { word | bit } else { word & !bit };
        Header { high: put(self.high, code & 2 != 0), low: put(self.low, code & 1 != 0) }
    }
}
