//! A key's value whose type is known at run time: its bytes in a slot, its text form and back.
//!
//! Values whose type is known at compile time are in [`typed`](crate::typed).

use core::{
    fmt::{self, Write},
    net::{Ipv4Addr, Ipv6Addr},
    ops::Deref,
};

use crate::key::KeyType;

/// Bytes of the longest value.
pub const VALUE_LEN_MAX: usize = 16;

const NS_PER_S: u64 = 1_000_000_000;

/// After how many bytes of the address a `:` is printed.
const MAC_BREAKS: &[usize] = &[1, 2, 3, 4, 5];

/// After how many bytes of the identifier a `-` is printed (RFC 9562 section 4).
const UUID_BREAKS: &[usize] = &[4, 6, 8, 10];

/// A value together with its type.
///
/// [`Display`](fmt::Display) and [`Value::parse`] are each other's inverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// Set, and nothing more.
    Flag,
    /// 8 bits.
    U8(u8),
    /// 16 bits.
    U16(u16),
    /// 32 bits.
    U32(u32),
    /// 64 bits.
    U64(u64),
    /// 128 bits.
    U128(u128),
    /// 64 bits, signed.
    I64(i64),
    /// An IPv4 address.
    Ipv4(Ipv4Addr),
    /// An IPv6 address.
    Ipv6(Ipv6Addr),
    /// An Ethernet address, first byte on the wire first.
    Mac([u8; 6]),
    /// A UUID, first byte of the text form first.
    Uuid([u8; 16]),
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    Timestamp(u64),
}

impl Value {
    /// The value that these bytes of a slot hold; `None` unless there are exactly [`KeyType::size`] of them.
    ///
    /// Byte orders are those of [`KeyType`]; the last 2 of a MAC address's 8 bytes are ignored.
    #[inline]
    pub fn from_bytes(key_type: KeyType, bytes: &[u8]) -> Option<Value> {
        Some(match key_type {
            KeyType::Flag => {
                let [] = bytes else { return None };
                Value::Flag
            }
            KeyType::U8 => Value::U8(u8::from_ne_bytes(bytes.try_into().ok()?)),
            KeyType::U16 => Value::U16(u16::from_ne_bytes(bytes.try_into().ok()?)),
            KeyType::U32 => Value::U32(u32::from_ne_bytes(bytes.try_into().ok()?)),
            KeyType::U64 => Value::U64(u64::from_ne_bytes(bytes.try_into().ok()?)),
            KeyType::U128 => Value::U128(u128::from_ne_bytes(bytes.try_into().ok()?)),
            KeyType::I64 => Value::I64(i64::from_ne_bytes(bytes.try_into().ok()?)),
            KeyType::Ipv4 => Value::Ipv4(<[u8; 4]>::try_from(bytes).ok()?.into()),
            KeyType::Ipv6 => Value::Ipv6(<[u8; 16]>::try_from(bytes).ok()?.into()),
            KeyType::Mac => {
                let &[a, b, c, d, e, f, _, _] = bytes else { return None };
                Value::Mac([a, b, c, d, e, f])
            }
            KeyType::Uuid => Value::Uuid(bytes.try_into().ok()?),
            KeyType::Timestamp => Value::Timestamp(u64::from_ne_bytes(bytes.try_into().ok()?)),
        })
    }

    /// The bytes a slot holds for this value: [`KeyType::size`] of them. The last 2 of a MAC address are 0.
    pub fn to_bytes(&self) -> ValueBytes {
        match *self {
            Value::Flag => ValueBytes::new(&[]),
            Value::U8(n) => ValueBytes::new(&n.to_ne_bytes()),
            Value::U16(n) => ValueBytes::new(&n.to_ne_bytes()),
            Value::U32(n) => ValueBytes::new(&n.to_ne_bytes()),
            Value::U64(n) | Value::Timestamp(n) => ValueBytes::new(&n.to_ne_bytes()),
            Value::U128(n) => ValueBytes::new(&n.to_ne_bytes()),
            Value::I64(n) => ValueBytes::new(&n.to_ne_bytes()),
            Value::Ipv4(address) => ValueBytes::new(&address.octets()),
            Value::Ipv6(address) => ValueBytes::new(&address.octets()),
            Value::Mac([a, b, c, d, e, f]) => ValueBytes::new(&[a, b, c, d, e, f, 0, 0]),
            Value::Uuid(bytes) => ValueBytes::new(&bytes),
        }
    }

    /// The value's type.
    pub const fn key_type(&self) -> KeyType {
        match self {
            Value::Flag => KeyType::Flag,
            Value::U8(_) => KeyType::U8,
            Value::U16(_) => KeyType::U16,
            Value::U32(_) => KeyType::U32,
            Value::U64(_) => KeyType::U64,
            Value::U128(_) => KeyType::U128,
            Value::I64(_) => KeyType::I64,
            Value::Ipv4(_) => KeyType::Ipv4,
            Value::Ipv6(_) => KeyType::Ipv6,
            Value::Mac(_) => KeyType::Mac,
            Value::Uuid(_) => KeyType::Uuid,
            Value::Timestamp(_) => KeyType::Timestamp,
        }
    }

    /// Reads the text form of a value.
    ///
    /// Integers are decimal or `0x` hex. A timestamp is seconds since boot with up to nine decimal places and an `s`
    /// (`12.5s`), or an integer of nanoseconds. Hex digits may be of either case.
    ///
    /// ```
    /// use packet_traits_core::{KeyType, Value};
    ///
    /// assert_eq!(Value::parse(KeyType::U16, "0x1f90"), Ok(Value::U16(8080)));
    /// assert_eq!(Value::parse(KeyType::Mac, "02:00:00:00:00:01"), Ok(Value::Mac([2, 0, 0, 0, 0, 1])));
    /// assert_eq!(
    ///     Value::parse(KeyType::U8, "256").unwrap_err().to_string(),
    ///     "out of range for u8: expected a whole number from 0 to 255, decimal or 0x hex",
    /// );
    /// ```
    pub fn parse(key_type: KeyType, text: &str) -> Result<Value, ValueError> {
        let syntax = ValueError::Syntax(key_type);
        let range = ValueError::Range(key_type);
        let unsigned = || magnitude(text, syntax, range);
        Ok(match key_type {
            KeyType::Flag if text == "set" => Value::Flag,
            KeyType::Flag => return Err(syntax),
            KeyType::U8 => Value::U8(unsigned()?.try_into().map_err(|_| range)?),
            KeyType::U16 => Value::U16(unsigned()?.try_into().map_err(|_| range)?),
            KeyType::U32 => Value::U32(unsigned()?.try_into().map_err(|_| range)?),
            KeyType::U64 => Value::U64(unsigned()?.try_into().map_err(|_| range)?),
            KeyType::U128 => Value::U128(unsigned()?),
            KeyType::I64 => Value::I64(
                match text.strip_prefix('-') {
                    Some(positive) => {
                        0i64.checked_sub_unsigned(magnitude(positive, syntax, range)?.try_into().map_err(|_| range)?)
                    }
                    None => i64::try_from(unsigned()?).ok(),
                }
                .ok_or(range)?,
            ),
            KeyType::Ipv4 => Value::Ipv4(text.parse().map_err(|_| syntax)?),
            KeyType::Ipv6 => Value::Ipv6(text.parse().map_err(|_| syntax)?),
            KeyType::Mac => Value::Mac(hex_groups(text, b':', MAC_BREAKS).ok_or(syntax)?),
            KeyType::Uuid => Value::Uuid(hex_groups(text, b'-', UUID_BREAKS).ok_or(syntax)?),
            KeyType::Timestamp => Value::Timestamp(match text.strip_suffix('s') {
                Some(seconds) => nanoseconds(seconds, syntax, range)?,
                None => unsigned()?.try_into().map_err(|_| range)?,
            }),
        })
    }
}

impl fmt::Display for Value {
    /// The text form: integers in decimal, addresses and UUIDs in their standard forms (lower-case hex), timestamps as
    /// seconds since boot (`12.000345678s`), flags as `set`. Width and alignment are honoured.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Flag => f.pad("set"),
            Value::U8(n) => n.fmt(f),
            Value::U16(n) => n.fmt(f),
            Value::U32(n) => n.fmt(f),
            Value::U64(n) => n.fmt(f),
            Value::U128(n) => n.fmt(f),
            Value::I64(n) => n.fmt(f),
            Value::Ipv4(address) => address.fmt(f),
            Value::Ipv6(address) => address.fmt(f),
            Value::Mac(bytes) => Text::hex_groups(bytes, ':', MAC_BREAKS)?.pad(f),
            Value::Uuid(bytes) => Text::hex_groups(bytes, '-', UUID_BREAKS)?.pad(f),
            Value::Timestamp(ns) => {
                let mut text = Text::EMPTY;
                write!(text, "{}.{:09}s", ns / NS_PER_S, ns % NS_PER_S)?;
                text.pad(f)
            }
        }
    }
}

/// The bytes of one value: 0 to [`VALUE_LEN_MAX`] of them, as a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ValueBytes {
    /// 0 after the first `len`.
    bytes: [u8; VALUE_LEN_MAX],
    len: u8,
}

impl ValueBytes {
    fn new(value: &[u8]) -> ValueBytes {
        let mut bytes = [0; VALUE_LEN_MAX];
        bytes[..value.len()].copy_from_slice(value);
        ValueBytes { bytes, len: value.len() as u8 }
    }
}

impl Deref for ValueBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl AsRef<[u8]> for ValueBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Why a text is not a value of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ValueError {
    /// It does not have the type's text form.
    Syntax(KeyType),
    /// It is a number that the type cannot hold.
    Range(KeyType),
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (problem, key_type) = match self {
            ValueError::Syntax(key_type) => ("not a value of type", *key_type),
            ValueError::Range(key_type) => ("out of range for", *key_type),
        };
        write!(f, "{problem} {key_type}: expected {}", expected(key_type))
    }
}

impl core::error::Error for ValueError {}

/// The text form of a type, in words.
const fn expected(key_type: KeyType) -> &'static str {
    match key_type {
        KeyType::Flag => "the word 'set'",
        KeyType::U8 => "a whole number from 0 to 255, decimal or 0x hex",
        KeyType::U16 => "a whole number from 0 to 65535, decimal or 0x hex",
        KeyType::U32 => "a whole number from 0 to 4294967295, decimal or 0x hex",
        KeyType::U64 => "a whole number from 0 to 18446744073709551615, decimal or 0x hex",
        KeyType::U128 => "a whole number from 0 to 2^128 - 1, decimal or 0x hex",
        KeyType::I64 => "a whole number from -9223372036854775808 to 9223372036854775807, decimal or 0x hex",
        KeyType::Ipv4 => "an IPv4 address such as 192.0.2.1",
        KeyType::Ipv6 => "an IPv6 address such as 2001:db8::1",
        KeyType::Mac => "a MAC address such as 02:00:00:00:00:01",
        KeyType::Uuid => "a UUID such as 6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        KeyType::Timestamp => {
            "seconds since boot such as 12.000345678s, or nanoseconds as a whole number, decimal or 0x hex; \
             at most 18446744073.709551615s"
        }
    }
}

/// An unsigned integer without a sign, decimal or `0x` hex.
fn magnitude(text: &str, syntax: ValueError, range: ValueError) -> Result<u128, ValueError> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(syntax);
    }
    u128::from_str_radix(digits, radix).map_err(|_| range)
}

/// Nanoseconds from decimal seconds with up to nine decimal places.
fn nanoseconds(seconds: &str, syntax: ValueError, range: ValueError) -> Result<u64, ValueError> {
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let decimal = |digits: &str| !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
    if !decimal(whole) || !decimal(fraction) || fraction.len() > 9 {
        return Err(syntax);
    }
    let whole: u64 = whole.parse().map_err(|_| range)?;
    let fraction =
        fraction.bytes().chain(core::iter::repeat(b'0')).take(9).fold(0, |ns, c| ns * 10 + u64::from(c - b'0'));
    whole.checked_mul(NS_PER_S).and_then(|ns| ns.checked_add(fraction)).ok_or(range)
}

/// `N` bytes of two hex digits each, with a separator after the numbers of bytes in `breaks`.
fn hex_groups<const N: usize>(text: &str, separator: u8, breaks: &[usize]) -> Option<[u8; N]> {
    let mut text = text.bytes();
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        if breaks.contains(&i) && text.next()? != separator {
            return None;
        }
        let mut digit = || char::from(text.next()?).to_digit(16);
        *byte = (digit()? << 4 | digit()?) as u8;
    }
    text.next().is_none().then_some(bytes)
}

/// A short ASCII text that is put together before it is padded to the width asked for.
struct Text {
    /// The longest text is a UUID's, 36 bytes.
    bytes: [u8; 36],
    len: usize,
}

impl Text {
    const EMPTY: Text = Text { bytes: [0; 36], len: 0 };

    fn hex_groups(bytes: &[u8], separator: char, breaks: &[usize]) -> Result<Text, fmt::Error> {
        let mut text = Text::EMPTY;
        for (i, byte) in bytes.iter().enumerate() {
            if breaks.contains(&i) {
                text.write_char(separator)?;
            }
            write!(text, "{byte:02x}")?;
        }
        Ok(text)
    }

    fn pad(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(core::str::from_utf8(&self.bytes[..self.len]).map_err(|_| fmt::Error)?)
    }
}

impl Write for Text {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let end = self.len + s.len();
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(s.as_bytes());
        self.len = end;
        Ok(())
    }
}
