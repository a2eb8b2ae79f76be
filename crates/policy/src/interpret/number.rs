//! Numbers as this crate has them and values as keys have them: the same things, told apart by their type.

use std::net::{Ipv4Addr, Ipv6Addr};

use packet_traits_core::{KeyType, Value};

/// The value of a key of this type that a number stands for: the number's low bits, as many as the type has.
///
/// [`Value::to_bytes`] says what is then in the packet's slot.
pub fn to_value(key_type: KeyType, number: u128) -> Value {
    match key_type {
        KeyType::Flag => Value::Flag,
        KeyType::U8 => Value::U8(number as u8),
        KeyType::U16 => Value::U16(number as u16),
        KeyType::U32 => Value::U32(number as u32),
        KeyType::U64 => Value::U64(number as u64),
        KeyType::U128 => Value::U128(number),
        KeyType::I64 => Value::I64(number as i64),
        KeyType::Ipv4 => Value::Ipv4(Ipv4Addr::from_bits(number as u32)),
        KeyType::Ipv6 => Value::Ipv6(Ipv6Addr::from_bits(number)),
        KeyType::Mac => {
            let [_, _, a, b, c, d, e, f] = (number as u64).to_be_bytes();
            Value::Mac([a, b, c, d, e, f])
        }
        KeyType::Uuid => Value::Uuid(number.to_be_bytes()),
        KeyType::Timestamp => Value::Timestamp(number as u64),
    }
}

/// The number that stands for a value.
pub fn from_value(value: &Value) -> u128 {
    match *value {
        Value::Flag => 0,
        Value::U8(n) => n.into(),
        Value::U16(n) => n.into(),
        Value::U32(n) => n.into(),
        Value::U64(n) | Value::Timestamp(n) => n.into(),
        Value::U128(n) => n,
        Value::I64(n) => (n as u64).into(),
        Value::Ipv4(address) => address.to_bits().into(),
        Value::Ipv6(address) => address.to_bits(),
        Value::Mac([a, b, c, d, e, f]) => u64::from_be_bytes([0, 0, a, b, c, d, e, f]).into(),
        Value::Uuid(bytes) => u128::from_be_bytes(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_text_forms_agree() {
        for (key_type, text, number) in [
            (KeyType::Flag, "set", 0),
            (KeyType::U8, "255", 255),
            (KeyType::U16, "0x1f90", 8080),
            (KeyType::I64, "-1", u64::MAX.into()),
            (KeyType::Ipv4, "10.0.0.1", 0x0a00_0001),
            (KeyType::Ipv6, "fd00::1", 0xfd00 << 112 | 1),
            (KeyType::Mac, "02:00:00:00:00:01", 0x0200_0000_0001),
            (KeyType::Uuid, "6ba7b810-9dad-11d1-80b4-00c04fd430c8", 0x6ba7b810_9dad_11d1_80b4_00c04fd430c8),
            (KeyType::Timestamp, "1.5s", 1_500_000_000),
        ] {
            let value = Value::parse(key_type, text).unwrap();
            assert_eq!(from_value(&value), number, "{text}");
            assert_eq!(to_value(key_type, number), value, "{text}");
        }
    }

    #[test]
    fn a_number_that_is_too_wide_loses_its_high_bits() {
        for key_type in KeyType::ALL {
            let bits = crate::policy::Type::from(key_type).bits();
            let low = u128::MAX.checked_shr(128 - u32::from(bits)).unwrap_or(0);
            assert_eq!(from_value(&to_value(key_type, u128::MAX)), low, "{key_type}");
        }
    }
}
