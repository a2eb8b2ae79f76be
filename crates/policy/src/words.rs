//! The words of the language that stand for headers, fields and values of fields. For the parser, the checker and the
//! printer.

use crate::{
    field::{FRAGMENT_FIRST, FRAGMENT_LATER, FRAGMENT_NONE, Field, FieldKind, Header},
    policy::Layer,
};

/// A header's word and what can follow it.
pub(crate) struct HeaderWord {
    /// The word.
    pub(crate) word: &'static str,
    /// The field that stands for the header where it is asked for alone. Fields that other headers have, too, are of
    /// this one if it is there.
    pub(crate) itself: FieldKind,
    /// Its fields.
    pub(crate) fields: &'static [(&'static str, FieldKind)],
}

/// The word behind `xdp` by which a packet keeps the traits that it has from another interface.
pub(crate) const INHERIT: &str = "inherit";

/// The word in front of a Geneve option's class and type.
pub(crate) const OPTION: &str = "option";

/// Every header that has a word.
pub(crate) const HEADERS: &[HeaderWord] = &[
    HeaderWord {
        word: "ether",
        itself: FieldKind::EtherSource,
        fields: &[
            ("saddr", FieldKind::EtherSource),
            ("daddr", FieldKind::EtherDestination),
            ("type", FieldKind::EtherType),
        ],
    },
    HeaderWord {
        word: "vlan",
        itself: FieldKind::VlanId,
        fields: &[("id", FieldKind::VlanId), ("pcp", FieldKind::VlanPriority)],
    },
    HeaderWord {
        word: "ip",
        itself: FieldKind::Ipv4Source,
        fields: &[
            ("saddr", FieldKind::Ipv4Source),
            ("daddr", FieldKind::Ipv4Destination),
            ("ttl", FieldKind::Ipv4TimeToLive),
            ("protocol", FieldKind::Protocol),
            ("dscp", FieldKind::Dscp),
            ("fragment", FieldKind::Fragment),
            ("version", FieldKind::IpVersion),
        ],
    },
    HeaderWord {
        word: "ip6",
        itself: FieldKind::Ipv6Source,
        fields: &[
            ("saddr", FieldKind::Ipv6Source),
            ("daddr", FieldKind::Ipv6Destination),
            ("hoplimit", FieldKind::Ipv6HopLimit),
            ("flowlabel", FieldKind::Ipv6FlowLabel),
            ("protocol", FieldKind::Protocol),
            ("dscp", FieldKind::Dscp),
            ("fragment", FieldKind::Fragment),
        ],
    },
    HeaderWord {
        word: "tcp",
        itself: FieldKind::TcpSource,
        fields: &[
            ("sport", FieldKind::TcpSource),
            ("dport", FieldKind::TcpDestination),
            ("flags", FieldKind::TcpFlags),
        ],
    },
    HeaderWord {
        word: "udp",
        itself: FieldKind::UdpSource,
        fields: &[("sport", FieldKind::UdpSource), ("dport", FieldKind::UdpDestination)],
    },
    HeaderWord {
        word: "th",
        itself: FieldKind::TransportSource,
        fields: &[("sport", FieldKind::TransportSource), ("dport", FieldKind::TransportDestination)],
    },
    HeaderWord {
        word: "icmp",
        itself: FieldKind::IcmpType,
        fields: &[("type", FieldKind::IcmpType), ("code", FieldKind::IcmpCode)],
    },
    HeaderWord {
        word: "icmpv6",
        itself: FieldKind::Icmpv6Type,
        fields: &[("type", FieldKind::Icmpv6Type), ("code", FieldKind::Icmpv6Code)],
    },
    HeaderWord { word: "vxlan", itself: FieldKind::VxlanVni, fields: &[("vni", FieldKind::VxlanVni)] },
    HeaderWord {
        word: "geneve",
        itself: FieldKind::GeneveVni,
        fields: &[("vni", FieldKind::GeneveVni), ("protocol", FieldKind::GeneveProtocol)],
    },
    HeaderWord {
        word: "gre",
        itself: FieldKind::GreProtocol,
        fields: &[("protocol", FieldKind::GreProtocol), ("key", FieldKind::GreKey)],
    },
    HeaderWord { word: "incomplete", itself: FieldKind::Incomplete, fields: &[] },
];

/// Fields that stand without a header.
pub(crate) const BARE_FIELDS: &[(&str, FieldKind)] = &[
    ("protocol", FieldKind::Protocol),
    ("dscp", FieldKind::Dscp),
    ("fragment", FieldKind::Fragment),
    ("length", FieldKind::Length),
];

/// Words that a test starts with, besides headers and bare fields.
pub(crate) const TEST_STARTS: &[&str] = &["not", "inner", "trait", "iif", "oif"];

/// Words that an action starts with.
pub(crate) const ACTIONS: &[&str] =
    &["set", "delete", "count", "log", "mark", "priority", "queue", "accept", "drop", "redirect", "member"];

/// The header of this word.
pub(crate) fn header(word: &str) -> Option<&'static HeaderWord> {
    HEADERS.iter().find(|header| header.word == word)
}

/// What `word` stands for in `table`.
pub(crate) fn lookup<T: Copy>(table: &[(&str, T)], word: &str) -> Option<T> {
    table.iter().find(|(name, _)| *name == word).map(|(_, value)| *value)
}

/// A field as it is written.
pub(crate) fn field_text(field: Field) -> String {
    let inner = match field.layer {
        Layer::Outer => "",
        Layer::Inner => "inner ",
    };
    if let FieldKind::GeneveOption { class, kind } = field.kind {
        return format!("geneve {OPTION} {class:#06x}:{kind:#04x}");
    }
    if let Some((word, _)) = BARE_FIELDS.iter().find(|(_, kind)| *kind == field.kind) {
        return format!("{inner}{word}");
    }
    let named = |header: &HeaderWord| {
        let (word, _) = header.fields.iter().find(|(_, kind)| *kind == field.kind)?;
        Some(format!("{inner}{} {word}", header.word))
    };
    HEADERS.iter().find_map(named).unwrap_or_default()
}

/// The header word that a field alone stands for.
pub(crate) fn header_text(field: Field) -> Option<String> {
    let header = HEADERS.iter().find(|header| header.itself == field.kind)?;
    Some(if field.layer == Layer::Inner { format!("inner {}", header.word) } else { header.word.to_owned() })
}

/// Words for values of a field, and what they stand for.
pub(crate) fn values(field: FieldKind) -> &'static [(&'static str, u128)] {
    match field {
        FieldKind::EtherType | FieldKind::GeneveProtocol | FieldKind::GreProtocol => ETHER_TYPES,
        FieldKind::Protocol => PROTOCOLS,
        FieldKind::Dscp => DSCP_CLASSES,
        FieldKind::Fragment => FRAGMENTS,
        FieldKind::TcpFlags => TCP_FLAGS,
        FieldKind::IcmpType => ICMP_TYPES,
        FieldKind::IcmpCode => ICMP_CODES,
        FieldKind::Icmpv6Type => ICMPV6_TYPES,
        FieldKind::Icmpv6Code => ICMPV6_CODES,
        _ => &[],
    }
}

/// linux/if_ether.h
const ETHER_TYPES: &[(&str, u128)] = &[("ip", 0x0800), ("ip6", 0x86dd), ("arp", 0x0806), ("vlan", 0x8100)];

/// linux/in.h, linux/in6.h
const PROTOCOLS: &[(&str, u128)] = &[
    ("icmp", 1),
    ("igmp", 2),
    ("tcp", 6),
    ("udp", 17),
    ("dccp", 33),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmpv6", 58),
    ("comp", 108),
    ("sctp", 132),
    ("udplite", 136),
];

/// RFC 2474 section 4.2.2, RFC 2597 section 6, RFC 3246 section 2.7, RFC 5865 section 3, RFC 8622 section 4. As for all
/// fields, the first word of several for a value is the one that is printed.
const DSCP_CLASSES: &[(&str, u128)] = &[
    ("cs0", 0),
    ("cs1", 8),
    ("cs2", 16),
    ("cs3", 24),
    ("cs4", 32),
    ("cs5", 40),
    ("cs6", 48),
    ("cs7", 56),
    ("af11", 10),
    ("af12", 12),
    ("af13", 14),
    ("af21", 18),
    ("af22", 20),
    ("af23", 22),
    ("af31", 26),
    ("af32", 28),
    ("af33", 30),
    ("af41", 34),
    ("af42", 36),
    ("af43", 38),
    ("ef", 46),
    ("be", 0),
    ("df", 0),
    ("lephb", 1),
    ("va", 44),
];

const FRAGMENTS: &[(&str, u128)] = &[("none", FRAGMENT_NONE), ("first", FRAGMENT_FIRST), ("later", FRAGMENT_LATER)];

/// RFC 9293 section 3.1.
const TCP_FLAGS: &[(&str, u128)] = &[
    ("fin", 0x01),
    ("syn", 0x02),
    ("rst", 0x04),
    ("psh", 0x08),
    ("ack", 0x10),
    ("urg", 0x20),
    ("ece", 0x40),
    ("ecn", 0x40),
    ("cwr", 0x80),
];

/// RFC 792, RFC 950, RFC 1256, under the names of nftables.
const ICMP_TYPES: &[(&str, u128)] = &[
    ("echo-reply", 0),
    ("destination-unreachable", 3),
    ("source-quench", 4),
    ("redirect", 5),
    ("echo-request", 8),
    ("router-advertisement", 9),
    ("router-solicitation", 10),
    ("time-exceeded", 11),
    ("parameter-problem", 12),
    ("timestamp-request", 13),
    ("timestamp-reply", 14),
    ("info-request", 15),
    ("info-reply", 16),
    ("address-mask-request", 17),
    ("address-mask-reply", 18),
];

/// Codes of `destination-unreachable`: RFC 792, RFC 1812 section 5.2.7.1.
const ICMP_CODES: &[(&str, u128)] = &[
    ("net-unreachable", 0),
    ("host-unreachable", 1),
    ("prot-unreachable", 2),
    ("port-unreachable", 3),
    ("frag-needed", 4),
    ("net-prohibited", 9),
    ("host-prohibited", 10),
    ("admin-prohibited", 13),
];

/// RFC 4443, RFC 2710, RFC 3810, RFC 4861 section 4, RFC 2894, RFC 3122, under the names of nftables.
const ICMPV6_TYPES: &[(&str, u128)] = &[
    ("destination-unreachable", 1),
    ("packet-too-big", 2),
    ("time-exceeded", 3),
    ("parameter-problem", 4),
    ("echo-request", 128),
    ("echo-reply", 129),
    ("mld-listener-query", 130),
    ("mld-listener-report", 131),
    ("mld-listener-done", 132),
    ("mld-listener-reduction", 132),
    ("nd-router-solicit", 133),
    ("nd-router-advert", 134),
    ("nd-neighbor-solicit", 135),
    ("nd-neighbor-advert", 136),
    ("nd-redirect", 137),
    ("redirect", 137),
    ("router-renumbering", 138),
    ("ind-neighbor-solicit", 141),
    ("ind-neighbor-advert", 142),
    ("mld2-listener-report", 143),
];

/// Codes of `destination-unreachable`: RFC 4443 section 3.1.
const ICMPV6_CODES: &[(&str, u128)] = &[
    ("no-route", 0),
    ("admin-prohibited", 1),
    ("addr-unreachable", 3),
    ("port-unreachable", 4),
    ("policy-fail", 5),
    ("reject-route", 6),
];

/// Whether a field under a header's word is that of this header only, though another has it, too: `ip protocol` is
/// `protocol`, but of IPv4.
pub(crate) fn narrows(kind: FieldKind) -> bool {
    kind.header() == Header::Ip && BARE_FIELDS.iter().any(|(_, bare)| *bare == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_a_text_of_its_own() {
        let mut texts = std::collections::HashSet::new();
        for kind in FieldKind::ALL {
            let text = field_text(Field { layer: Layer::Outer, kind });
            assert!(!text.is_empty(), "{kind:?}");
            assert!(texts.insert(text), "{kind:?}");
        }
    }

    #[test]
    fn a_header_alone_stands_for_a_field_that_comes_and_goes_with_it() {
        for header in HEADERS {
            let own = header.fields.is_empty() || header.fields.iter().any(|(_, kind)| *kind == header.itself);
            assert!(own, "{}", header.word);
            assert_ne!(header.itself.header(), Header::Ip, "{}", header.word);
        }
    }

    #[test]
    fn values_fit_their_fields() {
        for kind in FieldKind::ALL {
            for (word, value) in values(kind) {
                assert!(*value < 1 << kind.value_type().bits(), "{word}");
            }
        }
    }

    #[test]
    fn no_word_starts_both_a_test_and_an_action() {
        for action in ACTIONS {
            assert!(header(action).is_none() && lookup(BARE_FIELDS, action).is_none() && !TEST_STARTS.contains(action));
        }
    }
}
