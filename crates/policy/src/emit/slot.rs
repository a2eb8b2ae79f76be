//! Numbers of a policy as bytes of a slot: in a packet, and in the keys of counters.

use packet_traits_core::KeyType;

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
