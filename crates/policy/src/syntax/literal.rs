//! Tokens to the numbers they stand for.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::ast::LiteralKind;

/// An IPv6 or MAC address.
pub(super) fn address(text: &str) -> Option<LiteralKind> {
    mac(text).map(LiteralKind::Mac).or_else(|| text.parse().ok().map(|ip: Ipv6Addr| LiteralKind::Ipv6(ip.to_bits())))
}

/// An IPv4 address.
pub(super) fn ipv4(text: &str) -> Option<u32> {
    text.parse().ok().map(Ipv4Addr::to_bits)
}

/// Six bytes of two digits.
fn mac(text: &str) -> Option<u64> {
    let mut address = 0;
    let mut count = 0;
    for byte in text.split(':') {
        if byte.len() != 2 {
            return None;
        }
        address = address << 8 | u64::from_str_radix(byte, 16).ok()?;
        count += 1;
        if count > 6 {
            return None;
        }
    }
    (count == 6).then_some(address)
}

/// A number, decimal or after `0x`; `None` if it has more than 128 bits.
pub(super) fn number(text: &str) -> Option<u128> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u128::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A UUID.
pub(super) fn uuid(text: &str) -> Option<u128> {
    u128::from_str_radix(&text.replace('-', ""), 16).ok()
}

/// Nanoseconds of a time; `None` if they are not a whole number of at most 64 bits.
pub(super) fn time(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let places: usize = match &text[digits.len()..] {
        "s" => 9,
        "ms" => 6,
        "us" => 3,
        _ => 0,
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > places {
        return None;
    }
    let unit = 10u64.pow(places as u32);
    let fraction: u64 = format!("{fraction:0<places$}").parse().unwrap_or(0);
    whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(fraction)
}

/// What is between the quotes.
pub(super) fn text(token: &str) -> String {
    let mut text = String::with_capacity(token.len());
    let mut characters = token.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or_default().chars();
    while let Some(character) = characters.next() {
        text.push(if character == '\\' { characters.next().unwrap_or_default() } else { character });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_whole_nanoseconds() {
        assert_eq!(time("90s"), Some(90_000_000_000));
        assert_eq!(time("1.5s"), Some(1_500_000_000));
        assert_eq!(time("1.50ms"), Some(1_500_000));
        assert_eq!(time("5ns"), Some(5));
        assert_eq!(time("1.0ns"), Some(1));
        assert_eq!(time("0.000000001s"), Some(1));
        assert_eq!(time("0.5ns"), None);
        assert_eq!(time("18446744073.709551615s"), Some(u64::MAX));
        assert_eq!(time("18446744073.709551616s"), None);
        assert_eq!(time("99999999999999999999ns"), None);
    }

    #[test]
    fn addresses_are_numbers_in_network_order() {
        assert_eq!(ipv4("10.0.0.1"), Some(0x0a00_0001));
        assert_eq!(ipv4("10.0.0.256"), None);
        assert_eq!(address("02:00:00:00:00:ff"), Some(LiteralKind::Mac(0x0200_0000_00ff)));
        assert_eq!(address("::2"), Some(LiteralKind::Ipv6(2)));
        assert_eq!(address("02:00:00:00:00"), None);
        assert_eq!(uuid("00000000-0000-0000-0000-0000000000ff"), Some(255));
    }

    #[test]
    fn numbers_have_at_most_128_bits() {
        assert_eq!(number("340282366920938463463374607431768211455"), Some(u128::MAX));
        assert_eq!(number("340282366920938463463374607431768211456"), None);
        assert_eq!(number("0xffffffffffffffffffffffffffffffff"), Some(u128::MAX));
    }

    #[test]
    fn quotes_in_texts_are_escaped() {
        assert_eq!(text(r#""a \"b\" \\ c""#), r#"a "b" \ c"#);
    }
}
