//! Which packets are reported: conditions on traits and header fields, checked in the kernel.
//!
//! A condition is `FIELD OPERATOR VALUE`, such as `tenant == 7`, `dst == 10.0.0.0/8` or `port == 53`. All must hold. As in
//! policies, none holds on what a packet does not have, also not by `!=`: a trait that is not set, any header field of what is
//! not IP, ports of other protocols than TCP, UDP, DCCP, SCTP and UDP-Lite, or of a fragment other than the first.

use std::{fmt, net::IpAddr, str::FromStr};

use packet_traits::{KeyType, Value};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::keys::Keys;

/// How many conditions there may be; `CONDITIONS` in bpf/trace.bpf.h.
pub const CONDITIONS_MAX: usize = 8;

/// A condition as it was written, not yet looked up in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    field: String,
    comparison: Comparison,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Why a text is no condition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    /// It has not the form of one.
    #[error("`{0}` is no condition: write FIELD OPERATOR VALUE, such as 'tenant == 7', with one of == != < <= > >=")]
    Form(String),
    /// It names neither a header field nor a registered key.
    #[error("`{field}` is neither a header field ({}) nor a key of the registry (it has {keys})", FIELDS.join(", "))]
    Field {
        /// What was written.
        field: String,
        /// The registry's keys.
        keys: String,
    },
    /// The value is not one of the field.
    #[error("`{value}` is no value of {field}: {expected}")]
    Value {
        /// The field.
        field: String,
        /// What was written.
        value: String,
        /// What would be.
        expected: String,
    },
    /// The operator makes no sense there.
    #[error("{field} has no order: compare it by == or !=")]
    Order {
        /// The field.
        field: String,
    },
    /// There are too many.
    #[error("{0} conditions: there may be {CONDITIONS_MAX}")]
    TooMany(usize),
}

/// Protocols by name (IANA's numbers), as in policies.
const PROTOCOLS: &[(&str, u64)] = &[
    ("tcp", 6),
    ("udp", 17),
    ("icmp", 1),
    ("icmpv6", 58),
    ("igmp", 2),
    ("dccp", 33),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("sctp", 132),
    ("udplite", 136),
];

/// Names of header fields.
const FIELDS: [&str; 9] = ["family", "proto", "src", "dst", "host", "sport", "dport", "port", "len"];

impl FromStr for Condition {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Condition, FilterError> {
        const OPERATORS: [(&str, Comparison); 7] = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
            ("=", Comparison::Equal),
        ];
        let form = || FilterError::Form(text.to_owned());
        let start = text.find(['=', '!', '<', '>']).ok_or_else(form)?;
        let (field, rest) = text.split_at(start);
        let (sign, comparison) = OPERATORS.iter().find(|(sign, _)| rest.starts_with(sign)).ok_or_else(form)?;
        let (field, value) = (field.trim(), rest[sign.len()..].trim());
        if field.is_empty() || value.is_empty() || value.starts_with(['=', '<', '>', '!']) {
            return Err(form());
        }
        Ok(Condition { field: field.to_owned(), comparison: *comparison, value: value.to_owned() })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.comparison {
            Comparison::Equal => "==",
            Comparison::NotEqual => "!=",
            Comparison::Less => "<",
            Comparison::LessOrEqual => "<=",
            Comparison::Greater => ">",
            Comparison::GreaterOrEqual => ">=",
        };
        write!(f, "{} {sign} {}", self.field, self.value)
    }
}

/// `enum field` of bpf/trace.bpf.h.
#[derive(Clone, Copy)]
enum Field {
    Family,
    Protocol,
    Source,
    Destination,
    SourcePort,
    DestinationPort,
    Length,
}

/// `struct condition` of bpf/trace.bpf.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct KernelCondition {
    pub(crate) bit: u64,
    pub(crate) value: [u64; 2],
    pub(crate) mask: [u64; 2],
    pub(crate) flip: u64,
    pub(crate) dist: u32,
    pub(crate) merge: u8,
    pub(crate) field: u8,
    pub(crate) other: u8,
    pub(crate) family: u8,
    pub(crate) operator: u8,
    pub(crate) negate: u8,
    pub(crate) unused: [u8; 6],
}

const EQUAL: u8 = 0;
const LESS: u8 = 1;
const GREATER: u8 = 2;

/// Looks conditions up in a registry's keys: those about headers, then those about traits.
pub(crate) fn resolve(
    conditions: &[Condition],
    keys: &Keys,
) -> Result<(Vec<KernelCondition>, Vec<KernelCondition>), FilterError> {
    if conditions.len() > CONDITIONS_MAX {
        return Err(FilterError::TooMany(conditions.len()));
    }
    let (mut headers, mut traits) = (Vec::new(), Vec::new());
    for condition in conditions {
        match condition.field.strip_prefix("trait.") {
            None if FIELDS.contains(&&*condition.field) => headers.push(condition.about_headers()?),
            name => traits.push(condition.about_trait(name.unwrap_or(&condition.field), keys)?),
        }
    }
    Ok((headers, traits))
}

impl Condition {
    fn operator(&self, ordered: bool) -> Result<(u8, u8), FilterError> {
        let pair = match self.comparison {
            Comparison::Equal => (EQUAL, 0),
            Comparison::NotEqual => (EQUAL, 1),
            _ if !ordered => return Err(FilterError::Order { field: self.field.clone() }),
            Comparison::Less => (LESS, 0),
            Comparison::GreaterOrEqual => (LESS, 1),
            Comparison::Greater => (GREATER, 0),
            Comparison::LessOrEqual => (GREATER, 1),
        };
        Ok(pair)
    }

    fn wrong(&self, expected: impl fmt::Display) -> FilterError {
        FilterError::Value { field: self.field.clone(), value: self.value.clone(), expected: expected.to_string() }
    }

    fn about_headers(&self) -> Result<KernelCondition, FilterError> {
        let (field, other) = match &*self.field {
            "family" => (Field::Family, Field::Family),
            "proto" => (Field::Protocol, Field::Protocol),
            "src" => (Field::Source, Field::Source),
            "dst" => (Field::Destination, Field::Destination),
            "host" => (Field::Source, Field::Destination),
            "sport" => (Field::SourcePort, Field::SourcePort),
            "dport" => (Field::DestinationPort, Field::DestinationPort),
            "port" => (Field::SourcePort, Field::DestinationPort),
            _ => (Field::Length, Field::Length),
        };
        let (operator, negate) = self.operator(
            matches!(field, Field::SourcePort | Field::DestinationPort | Field::Length | Field::Protocol)
                && self.field != "port",
        )?;
        let mut kernel =
            KernelCondition { field: field as u8, other: other as u8, operator, negate, ..Default::default() };
        match field {
            Field::Source | Field::Destination => {
                let (family, value, mask) = self.prefix()?;
                KernelCondition { family, value, mask, ..kernel }.clone_into(&mut kernel);
            }
            _ => {
                kernel.mask = [u64::MAX, 0];
                kernel.value = [self.number(field)?, 0];
            }
        }
        Ok(kernel)
    }

    fn number(&self, field: Field) -> Result<u64, FilterError> {
        let (names, max): (&[(&str, u64)], u64) = match field {
            Field::Family => (&[("ipv4", 4), ("ipv6", 6), ("4", 4), ("6", 6)], 0),
            Field::Protocol => (PROTOCOLS, 255),
            Field::Length => (&[], u64::from(u32::MAX)),
            _ => (&[], 65535),
        };
        if let Some((_, number)) = names.iter().find(|(name, _)| *name == self.value) {
            return Ok(*number);
        }
        self.value.parse().ok().filter(|number| *number <= max && max != 0).ok_or_else(|| {
            let names: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
            let numbers = format!("a number up to {max}");
            match (names.is_empty(), max) {
                (true, _) => self.wrong(numbers),
                (false, 0) => self.wrong(names.join(" or ")),
                (false, _) => self.wrong(format!("{} or {numbers}", names.join(", "))),
            }
        })
    }

    /// An address or prefix: its family, and what to compare under which mask.
    fn prefix(&self) -> Result<(u8, [u64; 2], [u64; 2]), FilterError> {
        let wrong = || self.wrong("expected an address or a prefix, such as 10.0.0.0/8 or fd00::/8");
        let (address, len) = match self.value.split_once('/') {
            Some((address, len)) => (address, Some(len.parse::<u32>().map_err(|_| wrong())?)),
            None => (&*self.value, None),
        };
        let (family, octets, bits) = match address.parse::<IpAddr>().map_err(|_| wrong())? {
            IpAddr::V4(address) => (4, address.octets().to_vec(), 32),
            IpAddr::V6(address) => (6, address.octets().to_vec(), 128),
        };
        let len = len.unwrap_or(bits);
        if len > bits {
            return Err(wrong());
        }
        let mask: Vec<u8> = (0..bits / 8)
            .map(|byte| {
                let ones = len.saturating_sub(8 * byte).min(8);
                !(0xffu32 >> ones) as u8
            })
            .collect();
        let value: Vec<u8> = octets.iter().zip(&mask).map(|(byte, mask)| byte & mask).collect();
        Ok((family, words(&value), words(&mask)))
    }

    fn about_trait(&self, name: &str, keys: &Keys) -> Result<KernelCondition, FilterError> {
        let key =
            keys.find(name).ok_or_else(|| FilterError::Field { field: self.field.clone(), keys: keys.names() })?;
        let key_type = key.entry.key.key_type();
        let ordered = matches!(
            key_type,
            KeyType::U8 | KeyType::U16 | KeyType::U32 | KeyType::U64 | KeyType::I64 | KeyType::Timestamp
        );
        let (operator, negate) = self.operator(ordered)?;
        let value = Value::parse(key_type, &self.value).map_err(|error| self.wrong(error))?;
        let value = words(&value.to_bytes());
        // of the 8 bytes of a MAC address's slot the last 2 are ignored
        let len = if key_type == KeyType::Mac { 6 } else { key_type.size() };
        let flip = if key_type == KeyType::I64 { 1 << 63 } else { 0 };
        Ok(KernelCondition {
            bit: key.entry.key.bit(),
            value: [value[0] ^ flip, value[1]],
            mask: words(&vec![0xff; len]),
            flip,
            dist: key.entry.key.slot().distance() as u32,
            merge: key.entry.merge as u8,
            operator,
            negate,
            ..KernelCondition::default()
        })
    }
}

/// Bytes as the kernel loads them: two words, padded with zeroes.
fn words(bytes: &[u8]) -> [u64; 2] {
    let mut padded = [0; 16];
    padded[..bytes.len()].copy_from_slice(bytes);
    let (words, _) = padded.as_chunks();
    [u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])]
}

#[cfg(test)]
mod tests {
    use packet_traits_testing::{
        layout::{Types, enumerators},
        same_layout,
    };

    use super::*;
    use crate::tracer::load::TRACE_OBJECT;

    #[test]
    fn the_programs_read_conditions_like_that() {
        same_layout!(
            Types::of(TRACE_OBJECT).structure("condition"),
            KernelCondition { bit, value, mask, flip, dist, merge, field, other, family, operator, negate, unused }
        );
        let in_c = enumerators(include_str!("bpf/trace.bpf.h"));
        let fields = [
            ("FIELD_FAMILY", Field::Family),
            ("FIELD_PROTOCOL", Field::Protocol),
            ("FIELD_SOURCE", Field::Source),
            ("FIELD_DESTINATION", Field::Destination),
            ("FIELD_SOURCE_PORT", Field::SourcePort),
            ("FIELD_DESTINATION_PORT", Field::DestinationPort),
            ("FIELD_LENGTH", Field::Length),
        ];
        for (name, field) in fields {
            assert_eq!(in_c[name], field as i64, "{name}");
        }
        assert_eq!(in_c.keys().filter(|name| name.starts_with("FIELD_")).count(), fields.len());
        for (name, operator) in [("OPERATOR_EQUAL", EQUAL), ("OPERATOR_LESS", LESS), ("OPERATOR_GREATER", GREATER)] {
            assert_eq!(in_c[name], i64::from(operator), "{name}");
        }
    }

    fn header(text: &str) -> Result<KernelCondition, FilterError> {
        text.parse::<Condition>()?.about_headers()
    }

    #[test]
    fn every_operator_is_read_with_and_without_spaces() {
        for sign in ["==", "!=", "<", "<=", ">", ">="] {
            let (close, apart) = (format!("len{sign}5"), format!(" len {sign} 5 "));
            assert_eq!(close.parse::<Condition>(), apart.parse(), "{sign}");
            assert_eq!(close.parse::<Condition>().unwrap().to_string(), format!("len {sign} 5"));
        }
        assert_eq!("len=5".parse::<Condition>(), "len == 5".parse());
        for wrong in ["", "len", "== 5", "len ==", "len === 5", "len ! 5"] {
            assert!(matches!(wrong.parse::<Condition>(), Err(FilterError::Form(_))), "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = header(&text);
        }

        #[test]
        fn no_condition_makes_it_panic(
            field in "family|proto|src|dst|host|sport|dport|port|len",
            sign in "==|!=|<|<=|>|>=|=",
            value in "[0-9a-f.:/+-]{0,30}|[0-9]{1,22}|[0-9]{1,3}(\\.[0-9]{1,3}){3}/[0-9]{1,3}|\\PC{1,8}",
        ) {
            let text = format!("{field}{sign}{value}");
            if let Ok(condition) = text.parse::<Condition>() {
                let _ = condition.about_headers();
                proptest::prop_assert_eq!(condition.to_string().parse::<Condition>(), Ok(condition));
            }
        }
    }

    #[test]
    fn a_prefix_masks_what_is_behind_it() {
        let kernel = header("dst == 10.1.255.7/18").unwrap();
        assert_eq!(kernel.value, words(&[10, 1, 192, 0]));
        assert_eq!(kernel.mask, words(&[255, 255, 192, 0]));
        assert_eq!((kernel.family, kernel.operator, kernel.negate), (4, EQUAL, 0));
        let kernel = header("src != fd00::/8").unwrap();
        assert_eq!((kernel.value, kernel.mask), (words(&[0xfd]), words(&[0xff])));
        assert_eq!((kernel.family, kernel.negate), (6, 1));
        let any = header("src == 0.0.0.0/0").unwrap();
        assert_eq!((any.value, any.mask), ([0, 0], [0, 0]));
    }

    #[test]
    fn either_side_is_two_fields() {
        let kernel = header("port == 53").unwrap();
        assert_eq!((kernel.field, kernel.other), (Field::SourcePort as u8, Field::DestinationPort as u8));
        assert!(matches!(header("port < 53"), Err(FilterError::Order { .. })));
    }

    #[test]
    fn more_conditions_than_the_programs_have_room_for_are_refused() {
        let conditions = |count| vec!["len > 5".parse::<Condition>().unwrap(); count];
        assert!(resolve(&conditions(CONDITIONS_MAX), &Keys::default()).is_ok());
        let error = resolve(&conditions(CONDITIONS_MAX + 1), &Keys::default()).unwrap_err();
        assert_eq!(error, FilterError::TooMany(CONDITIONS_MAX + 1));
    }

    #[test]
    fn values_that_are_none_are_refused_with_what_would_be() {
        for (text, hint) in [
            ("proto == http", "tcp, udp"),
            ("dport == 70000", "up to 65535"),
            ("family == 5", "ipv4 or ipv6"),
            ("src == 10.0.0.0/33", "10.0.0.0/8"),
            ("dst == here", "10.0.0.0/8"),
        ] {
            let error = header(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
        assert_eq!(header("proto == tcp").unwrap().value, [6, 0]);
    }
}
