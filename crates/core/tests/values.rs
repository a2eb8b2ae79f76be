//! Values to bytes, to text and back.

use std::net::{Ipv4Addr, Ipv6Addr};

use packet_traits_core::{Key, KeyName, KeyType, Layout, Mac, Region, Timestamp, TraitValue, Uuid, Value, ValueError};
use proptest::prelude::*;

/// A value of every type, with small, large and arbitrary numbers.
fn value() -> impl Strategy<Value = Value> {
    let number = prop_oneof![any::<u128>(), 0u128..20, Just(u128::MAX), any::<u64>().prop_map(u128::from)];
    (0..KeyType::ALL.len(), number).prop_map(|(index, n)| match KeyType::ALL[index] {
        KeyType::Flag => Value::Flag,
        KeyType::U8 => Value::U8(n as u8),
        KeyType::U16 => Value::U16(n as u16),
        KeyType::U32 => Value::U32(n as u32),
        KeyType::U64 => Value::U64(n as u64),
        KeyType::U128 => Value::U128(n),
        KeyType::I64 => Value::I64(n as i64),
        KeyType::Ipv4 => Value::Ipv4(Ipv4Addr::from(n as u32)),
        KeyType::Ipv6 => Value::Ipv6(Ipv6Addr::from(n)),
        KeyType::Mac => {
            let [a, b, c, d, e, f, ..] = n.to_le_bytes();
            Value::Mac([a, b, c, d, e, f])
        }
        KeyType::Uuid => Value::Uuid(n.to_be_bytes()),
        KeyType::Timestamp => Value::Timestamp(n as u64),
    })
}

fn key(key_type: KeyType) -> Key {
    let slot = Layout::DEFAULT.places(Region::Flow, key_type.size()).next().unwrap();
    Key::new(3, KeyName::new("k").unwrap(), key_type, slot).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn text_round_trips(value in value()) {
        prop_assert_eq!(Value::parse(value.key_type(), &value.to_string()), Ok(value));
    }

    #[test]
    fn bytes_round_trip(value in value()) {
        let bytes = value.to_bytes();
        prop_assert_eq!(bytes.len(), value.key_type().size());
        prop_assert_eq!(Value::from_bytes(value.key_type(), &bytes), Some(value));
    }

    #[test]
    fn bytes_of_any_other_length_are_no_value(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
        for key_type in KeyType::ALL {
            let value = Value::from_bytes(key_type, &bytes);
            prop_assert_eq!(value.is_some(), bytes.len() == key_type.size());
            prop_assert!(value.is_none_or(|value| value.key_type() == key_type));
        }
    }

    #[test]
    fn any_text_parses_to_what_it_says_or_is_refused(text in "(-|\\+|0x|0X)?[0-9a-fs.:-]{0,40}|\\PC{0,40}") {
        for key_type in KeyType::ALL {
            if let Ok(value) = Value::parse(key_type, &text) {
                prop_assert_eq!(value.key_type(), key_type);
                prop_assert_eq!(Value::parse(key_type, &value.to_string()), Ok(value));
            }
        }
    }

    #[test]
    fn integers_parse_from_hex(n in any::<u128>()) {
        prop_assert_eq!(Value::parse(KeyType::U8, &format!("{:#x}", n as u8)), Ok(Value::U8(n as u8)));
        prop_assert_eq!(Value::parse(KeyType::U64, &format!("{:#X}", n as u64)), Ok(Value::U64(n as u64)));
        prop_assert_eq!(Value::parse(KeyType::U128, &format!("{n:#x}")), Ok(Value::U128(n)));
        prop_assert_eq!(Value::parse(KeyType::Timestamp, &format!("{:#x}", n as u64)), Ok(Value::Timestamp(n as u64)));
        let (sign, magnitude) = (if (n as i64) < 0 { "-" } else { "" }, (n as i64).unsigned_abs());
        prop_assert_eq!(Value::parse(KeyType::I64, &format!("{sign}{magnitude:#x}")), Ok(Value::I64(n as i64)));
    }
}

#[test]
fn text_forms_are_the_standard_ones() {
    let uuid = 0x6ba7_b810_9dad_11d1_80b4_00c0_4fd4_30c8u128.to_be_bytes();
    for (value, text) in [
        (Value::Flag, "set"),
        (Value::I64(i64::MIN), "-9223372036854775808"),
        (Value::U128(u128::MAX), "340282366920938463463374607431768211455"),
        (Value::Ipv4(Ipv4Addr::new(192, 0, 2, 1)), "192.0.2.1"),
        (Value::Ipv6("2001:db8::1".parse().unwrap()), "2001:db8::1"),
        (Value::Mac([2, 0, 0, 0, 0xab, 1]), "02:00:00:00:ab:01"),
        (Value::Uuid(uuid), "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        (Value::Timestamp(12_000_345_678), "12.000345678s"),
        (Value::Timestamp(u64::MAX), "18446744073.709551615s"),
    ] {
        assert_eq!(value.to_string(), text);
        assert_eq!(format!("{value:>42}"), format!("{text:>42}"));
        assert_eq!(Value::parse(value.key_type(), text), Ok(value));
    }
}

#[test]
fn bytes_have_the_order_of_the_wire_where_the_type_says_so() {
    assert_eq!(Value::Ipv4(Ipv4Addr::new(10, 1, 2, 3)).to_bytes()[..], [10, 1, 2, 3]);
    assert_eq!(Value::Ipv6(Ipv6Addr::LOCALHOST).to_bytes()[15], 1);
    assert_eq!(Value::Mac([1, 2, 3, 4, 5, 6]).to_bytes()[..], [1, 2, 3, 4, 5, 6, 0, 0]);
    assert_eq!(Value::from_bytes(KeyType::Mac, &[1, 2, 3, 4, 5, 6, 7, 8]), Some(Value::Mac([1, 2, 3, 4, 5, 6])));
    assert_eq!(Value::U32(7).to_bytes()[..], 7u32.to_ne_bytes());
    assert_eq!(Value::I64(-1).to_bytes()[..], [0xff; 8]);
}

#[test]
fn shorter_timestamps_and_upper_case_are_read() {
    for (key_type, text, value) in [
        (KeyType::Timestamp, "12s", Value::Timestamp(12_000_000_000)),
        (KeyType::Timestamp, "0.5s", Value::Timestamp(500_000_000)),
        (KeyType::Timestamp, "12", Value::Timestamp(12)),
        (KeyType::Mac, "02:00:00:00:AB:01", Value::Mac([2, 0, 0, 0, 0xab, 1])),
        (KeyType::I64, "-0", Value::I64(0)),
    ] {
        assert_eq!(Value::parse(key_type, text), Ok(value), "{text}");
    }
}

#[test]
fn refused_text_says_what_was_expected() {
    for (key_type, text) in [
        (KeyType::Flag, "1"),
        (KeyType::U8, ""),
        (KeyType::U8, "+1"),
        (KeyType::U8, "-1"),
        (KeyType::U8, "0x"),
        (KeyType::U8, "0x+1"),
        (KeyType::U8, " 1"),
        (KeyType::I64, "--1"),
        (KeyType::I64, "-"),
        (KeyType::Ipv4, "10.0.0"),
        (KeyType::Ipv6, "10.0.0.1"),
        (KeyType::Mac, "02:00:00:00:00"),
        (KeyType::Mac, "02:00:00:00:00:01:"),
        (KeyType::Mac, "02-00-00-00-00-01"),
        (KeyType::Mac, "2:0:0:0:0:1"),
        (KeyType::Uuid, "6ba7b8109dad11d180b400c04fd430c8"),
        (KeyType::Timestamp, "s"),
        (KeyType::Timestamp, "1.s"),
        (KeyType::Timestamp, ".5s"),
        (KeyType::Timestamp, "1.5"),
        (KeyType::Timestamp, "1.0000000001s"),
        (KeyType::Timestamp, "0x1s"),
    ] {
        assert_eq!(Value::parse(key_type, text), Err(ValueError::Syntax(key_type)), "{text:?} as {key_type}");
        assert!(ValueError::Syntax(key_type).to_string().contains("expected "));
    }
    for (key_type, text) in [
        (KeyType::U8, "256"),
        (KeyType::U16, "0x10000"),
        (KeyType::U32, "4294967296"),
        (KeyType::U64, "18446744073709551616"),
        (KeyType::U128, "340282366920938463463374607431768211456"),
        (KeyType::I64, "9223372036854775808"),
        (KeyType::I64, "-9223372036854775809"),
        (KeyType::Timestamp, "18446744073.709551616s"),
        (KeyType::Timestamp, "99999999999999999999s"),
        (KeyType::Timestamp, "18446744073709551616"),
    ] {
        assert_eq!(Value::parse(key_type, text), Err(ValueError::Range(key_type)), "{text:?} as {key_type}");
    }
    assert_eq!(
        ValueError::Syntax(KeyType::Mac).to_string(),
        "not a value of type mac: expected a MAC address such as 02:00:00:00:00:01"
    );
}

#[test]
fn a_key_is_typed_as_its_own_type_only() {
    fn typed_as<T: TraitValue>(key_type: KeyType) -> bool {
        let result = key(key_type).typed::<T>();
        if let Err(mismatch) = result {
            assert_eq!((mismatch.key_type, mismatch.wanted), (key_type, T::KEY_TYPE));
        }
        result.is_ok()
    }
    for key_type in KeyType::ALL {
        let typed = [
            (KeyType::U8, typed_as::<u8>(key_type)),
            (KeyType::U16, typed_as::<u16>(key_type)),
            (KeyType::U32, typed_as::<u32>(key_type)),
            (KeyType::U64, typed_as::<u64>(key_type)),
            (KeyType::U128, typed_as::<u128>(key_type)),
            (KeyType::I64, typed_as::<i64>(key_type)),
            (KeyType::Ipv4, typed_as::<Ipv4Addr>(key_type)),
            (KeyType::Ipv6, typed_as::<Ipv6Addr>(key_type)),
            (KeyType::Mac, typed_as::<Mac>(key_type)),
            (KeyType::Uuid, typed_as::<Uuid>(key_type)),
            (KeyType::Timestamp, typed_as::<Timestamp>(key_type)),
        ];
        for (own, accepted) in typed {
            assert_eq!(accepted, own == key_type, "{key_type} as {own}");
        }
    }
    assert_eq!(key(KeyType::Timestamp).typed::<u64>().unwrap_err().to_string(), "key 'k' has type timestamp, not u64");
    assert_eq!(Timestamp(1).to_string(), "0.000000001s");
    assert_eq!(Mac([0; 6]).to_string(), "00:00:00:00:00:00");
    assert_eq!(Uuid([0; 16]).to_string(), "00000000-0000-0000-0000-000000000000");
}
