//! What things of a policy are called in C.

use crate::{
    field::{Field, FieldKind, Header},
    policy::{Layer, Policy},
};

/// Words of C that cannot name anything else, with GNU's and those of the next C.
const KEYWORDS: [&str; 51] = [
    "alignas",
    "alignof",
    "asm",
    "auto",
    "bool",
    "break",
    "case",
    "char",
    "const",
    "constexpr",
    "continue",
    "default",
    "do",
    "double",
    "else",
    "enum",
    "extern",
    "false",
    "float",
    "for",
    "goto",
    "if",
    "inline",
    "int",
    "long",
    "main",
    "nullptr",
    "offsetof",
    "register",
    "restrict",
    "return",
    "short",
    "signed",
    "sizeof",
    "static",
    "struct",
    "switch",
    "true",
    "typedef",
    "typeof",
    "typeof_unqual",
    "union",
    "unsigned",
    "void",
    "volatile",
    "while",
    "static_assert",
    "thread_local",
    "linux",
    "unix",
    "barrier",
];

/// A word that C takes for a name: the word itself, if it is one.
fn identifier(word: &str) -> String {
    let word: String = word.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if KEYWORDS.contains(&word.as_str()) { format!("{word}_") } else { word }
}

/// The C names of a policy's keys, by their place.
pub(super) fn keys(policy: &Policy) -> Vec<String> {
    let mut taken: Vec<String> = Vec::with_capacity(policy.keys.len());
    for key in &policy.keys {
        let mut name = identifier(key.name.as_str());
        // `a.b`, `a-b` and `a_b` may all be keys
        while taken.contains(&name) {
            name.push('_');
        }
        taken.push(name);
    }
    taken
}

/// The name of a block's program, in C and in the object: the block's own, unless that is C's, or could be that of
/// something else in the source.
pub(super) fn program(block: &str) -> String {
    const BEGINNINGS: [&str; 8] = ["trait_", "pt_", "bpf_", "btf_", "set_", "map_", "table_", "program_"];
    const ENDS: [&str; 5] = ["_parse", "_load", "_store", "_log", "_extension"];
    let taken = KEYWORDS.contains(&block)
        || BEGINNINGS.iter().any(|beginning| block.starts_with(beginning))
        || ENDS.iter().any(|end| block.ends_with(end))
        // `<block>_rules_<number>`
        || block.contains("_rules_");
    if taken { format!("program_{block}") } else { block.to_owned() }
}

/// A field's member of the structure that a block keeps its packet in.
pub(super) fn member(field: Field) -> String {
    let layer = match field.layer {
        Layer::Outer => "",
        Layer::Inner => "inner_",
    };
    let name = match field.kind {
        FieldKind::Length => "length",
        FieldKind::EtherSource => "ether_saddr",
        FieldKind::EtherDestination => "ether_daddr",
        FieldKind::EtherType => "ether_type",
        FieldKind::VlanId => "vlan_id",
        FieldKind::VlanPriority => "vlan_pcp",
        FieldKind::Ipv4Source => "ip_saddr",
        FieldKind::Ipv4Destination => "ip_daddr",
        FieldKind::Ipv4TimeToLive => "ip_ttl",
        FieldKind::Ipv6Source => "ip6_saddr",
        FieldKind::Ipv6Destination => "ip6_daddr",
        FieldKind::Ipv6HopLimit => "ip6_hoplimit",
        FieldKind::Ipv6FlowLabel => "ip6_flowlabel",
        FieldKind::IpVersion => "ip_version",
        FieldKind::Protocol => "protocol",
        FieldKind::Dscp => "dscp",
        FieldKind::Fragment => "fragment",
        FieldKind::TcpSource => "tcp_sport",
        FieldKind::TcpDestination => "tcp_dport",
        FieldKind::TcpFlags => "tcp_flags",
        FieldKind::UdpSource => "udp_sport",
        FieldKind::UdpDestination => "udp_dport",
        FieldKind::TransportSource => "th_sport",
        FieldKind::TransportDestination => "th_dport",
        FieldKind::IcmpType => "icmp_type",
        FieldKind::IcmpCode => "icmp_code",
        FieldKind::Icmpv6Type => "icmpv6_type",
        FieldKind::Icmpv6Code => "icmpv6_code",
        FieldKind::VxlanVni => "vxlan_vni",
        FieldKind::GeneveVni => "geneve_vni",
        FieldKind::GeneveProtocol => "geneve_protocol",
        FieldKind::GeneveOption { class, kind } => return format!("geneve_option_{class:04x}_{kind:02x}"),
        FieldKind::GreProtocol => "gre_protocol",
        FieldKind::GreKey => "gre_key",
        FieldKind::Incomplete => "incomplete",
    };
    format!("{layer}{name}")
}

/// The bits of `headers` that say whether a header is there. Not for the packet as such, nor for Geneve's options.
pub(super) fn header_bits(layer: Layer, header: Header) -> String {
    let name = match header {
        Header::Ethernet => "PT_ETHERNET",
        Header::Vlan => "PT_VLAN",
        Header::Ipv4 => "PT_IPV4",
        Header::Ipv6 => "PT_IPV6",
        Header::Ip => "PT_IP",
        Header::Tcp => "PT_TCP",
        Header::TcpFlags => "PT_TCP_FLAGS",
        Header::Udp => "PT_UDP",
        Header::OtherPorts => "PT_OTHER_PORTS",
        Header::Transport => "PT_TRANSPORT",
        Header::Icmp => "PT_ICMP",
        Header::Icmpv6 => "PT_ICMPV6",
        Header::Vxlan => "PT_VXLAN",
        Header::Geneve => "PT_GENEVE",
        Header::Gre => "PT_GRE",
        Header::GreKey => "PT_GRE_KEY",
        Header::Incomplete => "PT_INCOMPLETE",
        Header::Packet | Header::GeneveOption => unreachable!("{header:?} has no bit of its own"),
    };
    match layer {
        Layer::Outer => name.to_owned(),
        Layer::Inner => format!("PT_INNER({name})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_of_c_names_a_program_or_a_key() {
        assert_eq!(program("tenants"), "tenants");
        assert_eq!(program("int"), "program_int");
        assert_eq!(program("trait_area"), "program_trait_area");
        assert_eq!(program("xdp_parse"), "program_xdp_parse");
        assert_eq!(identifier("my-app.tenant"), "my_app_tenant");
        assert_eq!(identifier("while"), "while_");
    }
}
