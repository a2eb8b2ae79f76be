//! Numbers of a policy as bytes of a slot: in a packet, and in the keys of counters.

use packet_traits_core::KeyType;

use crate::policy::Type;

/// The type of key that holds values of a type.
pub(super) fn key_type(of: Type) -> KeyType {
    match of {
        Type::Flag => KeyType::Flag,
        Type::Unsigned(..=8) => KeyType::U8,
        Type::Unsigned(..=16) => KeyType::U16,
        Type::Unsigned(..=32) => KeyType::U32,
        Type::Unsigned(..=64) => KeyType::U64,
        Type::Unsigned(_) => KeyType::U128,
        Type::Signed => KeyType::I64,
        Type::Ipv4 => KeyType::Ipv4,
        Type::Ipv6 => KeyType::Ipv6,
        Type::Mac => KeyType::Mac,
        Type::Uuid => KeyType::Uuid,
        Type::Timestamp => KeyType::Timestamp,
    }
}

/// The C type of a slot: one that binding takes for this type.
pub(super) fn c_type(of: KeyType) -> &'static str {
    match of {
        KeyType::Flag => "struct trait_flag",
        KeyType::U8 => "__u8",
        KeyType::U16 => "__u16",
        KeyType::U32 => "__u32",
        KeyType::U64 | KeyType::Timestamp | KeyType::Mac => "__u64",
        KeyType::I64 => "__s64",
        KeyType::Ipv4 => "__be32",
        KeyType::U128 | KeyType::Ipv6 | KeyType::Uuid => "struct pt_words",
    }
}

/// C: a number as the slot has it.
pub(super) fn from_number(of: KeyType, number: &str) -> String {
    match of {
        KeyType::Ipv4 => format!("bpf_htonl({number})"),
        KeyType::Mac => format!("pt_to_mac({number})"),
        KeyType::Ipv6 | KeyType::Uuid => format!("pt_to_bytes({number})"),
        KeyType::U128 => format!("pt_to_u128({number})"),
        _ => number.to_owned(),
    }
}

/// C: what the slot has, as a number.
pub(super) fn to_number(of: KeyType, slot: &str) -> String {
    match of {
        KeyType::Ipv4 => format!("bpf_ntohl({slot})"),
        KeyType::Mac => format!("pt_from_mac({slot})"),
        KeyType::Ipv6 | KeyType::Uuid => format!("pt_from_bytes({slot})"),
        KeyType::U128 => format!("pt_from_u128({slot})"),
        _ => slot.to_owned(),
    }
}
