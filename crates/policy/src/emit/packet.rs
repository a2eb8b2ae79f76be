//! The function that takes a packet apart, as [`field`](crate::field) says, and the structure it fills.

use crate::{
    emit::{
        code::{Code, c_size, c_type},
        names::{header_bits, member},
        needs::Needs,
        place::Place,
    },
    field::{Field, FieldKind, Header},
    hook::{Direction, Hook},
    policy::{InterfaceDirection, Layer},
    symbols::NO_LINK_HEADER,
};

/// Bytes of TCP's header up to the end of its flags.
const TCP_WITH_FLAGS: &str = "14";

/// The structure of a block's packets.
pub(super) fn structure(code: &mut Code, name: &str, place: Place, needs: &Needs) {
    let mut members: Vec<(usize, String)> = needs
        .fields
        .iter()
        .filter(|field| field.kind != FieldKind::Length)
        .map(|field| {
            let bits = field.value_type().bits();
            (c_size(bits), format!("{} {};", c_type(bits), member(*field)))
        })
        .collect();
    // without gaps
    members.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
    code.open(format_args!("struct {name}_packet"));
    code.line("__u64 headers;");
    let (large, small): (Vec<_>, Vec<_>) = members.into_iter().partition(|(size, _)| *size >= 8);
    large.iter().for_each(|(_, line)| code.line(line));
    for direction in &needs.interface_names {
        code.line(format_args!("struct pt_words {}_name;", interface(*direction)));
    }
    code.line("__u32 length;");
    for direction in InterfaceDirection::ALL.into_iter().filter(|direction| needs.interface_index(*direction, place)) {
        code.line(format_args!("__u32 {};", interface(direction)));
    }
    small.iter().for_each(|(_, line)| code.line(line));
    code.close_with(";");
}

/// The member that holds an interface's index; that of its name begins so.
pub(super) fn interface(direction: InterfaceDirection) -> &'static str {
    match direction {
        InterfaceDirection::In => "iif",
        InterfaceDirection::Out => "oif",
    }
}

/// The function `<name>_parse`.
pub(super) fn parser(code: &mut Code, name: &str, hook: Hook, needs: &Needs) {
    let place = Place::of(hook);
    let mut parser = Parser { code, block: name, place, needs, ethernet: hook.sees_ethernet(), leaves: false };
    if needs.extensions(Layer::Outer) || needs.extensions(Layer::Inner) {
        parser.extensions();
        parser.code.blank();
    }
    parser.function(name, hook);
}

/// The function that skips an extension header of IPv6. The verifier goes through it once, and not for each header that
/// there may be.
fn extension_function(block: &str) -> String {
    format!("{block}_extension")
}

/// The writer of one parser.
struct Parser<'w> {
    code: &'w mut Code,
    /// The name of the block's program.
    block: &'w str,
    place: Place,
    needs: &'w Needs,
    /// The packet starts with its Ethernet header.
    ethernet: bool,
    /// Something has jumped to the end.
    leaves: bool,
}

impl Parser<'_> {
    fn extensions(&mut self) {
        let place = self.place;
        self.code.function(format_args!(
            "__trait_global int {}({} *ctx, struct pt_extensions *extensions)",
            extension_function(self.block),
            place.context()
        ));
        if place == Place::Tc(Direction::Ingress) {
            self.code.line("__u32 in_front = pt_tc_in_front(ctx);");
        }
        self.code.line("struct pt_buffer buffer;");
        self.code.line("const void *header;");
        self.code.line("__u64 at;");
        if matches!(place, Place::Netfilter(_)) {
            self.code.line("struct __trait_dynptr packet;");
        }
        self.code.blank();
        self.code.line("if (!extensions || extensions->fragment == PT_FRAGMENT_LATER ||");
        self.code.line("    !pt_is_extension(extensions->protocol))");
        self.code.line("\treturn 0;");
        self.code.line("at = extensions->at;");
        self.code.line("if (at > PT_AT_MAX)");
        self.code.line("\treturn 0;");
        self.code.line("__trait_show_bound(at, PT_AT_MAX);");
        self.packet_of_netfilter();
        self.code.line(format_args!("if (!{})", self.loads("at", "8")));
        self.code.line("\treturn 0;");
        self.code.line("return pt_skip_extension(extensions, header);");
        self.code.close();
    }

    /// Makes the dynptr that netfilter programs load headers through.
    fn packet_of_netfilter(&mut self) {
        if matches!(self.place, Place::Netfilter(_)) {
            self.code.line("if (bpf_dynptr_from_skb((struct __sk_buff *)__trait_skb_of(ctx), 0,");
            self.code.line("\t\t\t(struct bpf_dynptr *)&packet))");
            self.code.line("\treturn 0;");
        }
    }

    fn function(&mut self, name: &str, hook: Hook) {
        let (place, needs) = (self.place, self.needs);
        let (outer, inner) = (Layer::Outer, Layer::Inner);
        let parses = needs.ethernet(outer);
        // lengths that headers claim are compared with it
        let ends = needs.ipv4(outer) || needs.extensions(outer);
        self.code.function(format_args!(
            "__trait_global int {name}_parse({} *ctx, struct {name}_packet *pkt)",
            place.context()
        ));
        if parses {
            let headers = if needs.incomplete(outer) { "PT_INCOMPLETE" } else { "0" };
            self.code.line(format_args!("__u64 headers = {headers}, at = 0;"));
            self.code.line("struct pt_buffer buffer;");
            self.code.line("const void *header;");
            if needs.ip(outer) {
                self.code.line("__u64 zero = __trait_unknown_zero;");
            }
            if ends {
                self.code.line("__u64 end;");
            }
            if needs.ip(outer) || needs.vlan(outer) || needs.field(outer, FieldKind::EtherType) {
                self.code.line("__u32 type;");
            }
            if needs.behind_ip(outer) {
                self.code.line("__u32 protocol;");
            }
            if matches!(place, Place::Netfilter(_)) {
                self.code.line("struct __trait_dynptr packet;");
            }
        }
        if place == Place::Tc(Direction::Ingress) {
            self.code.line("__u32 in_front = pt_tc_in_front(ctx);");
        }
        if parses || place == Place::Tc(Direction::Ingress) {
            self.code.blank();
        }
        self.code.line("if (!pkt)");
        self.code.line("\treturn 0;");
        self.code.line(format_args!("pkt->length = {};", place.length()));
        for direction in InterfaceDirection::ALL {
            if needs.interface_index(direction, place) {
                self.code.line(format_args!("pkt->{} = {};", interface(direction), place.interface(direction)));
            }
            if needs.interface_names.contains(&direction) {
                self.code.line(place.interface_name(direction));
            }
        }
        if parses {
            self.packet_of_netfilter();
            if ends {
                self.code.line("end = pkt->length;");
            }
            if self.ethernet {
                self.link_layer(hook);
            } else {
                self.any_ip();
            }
            self.network(outer);
            self.transport(outer);
            if needs.tunnel(outer) {
                self.tunnel();
            }
            if needs.inner() {
                self.code.blank();
                self.code.line("/* inside the tunnel */");
                self.code.open("if (type == PT_BRIDGED)");
                self.ethernet(inner);
                self.code.close();
                self.network(inner);
                self.transport(inner);
            }
            if self.leaves {
                self.code.label("done");
            }
            self.code.line("pkt->headers = headers;");
        }
        self.code.line("return 0;");
        self.code.close();
    }

    fn leave(&mut self) {
        self.leaves = true;
        self.code.line("\tgoto done;");
    }

    /// Loads `len` bytes at `at` to where `header` then points, or goes to the end.
    fn load(&mut self, at: &str, len: &str) {
        self.code.line(format_args!("if (!{})", self.loads(at, len)));
        self.leave();
    }

    fn loads(&self, at: &str, len: &str) -> String {
        format!("{}, {at}, {len}, &header, &buffer)", self.place.load_header())
    }

    fn there(&mut self, layer: Layer, header: Header) {
        self.code.line(format_args!("headers |= {};", header_bits(layer, header)));
    }

    /// Notes that the headers were read to their end.
    fn complete(&mut self, layer: Layer) {
        if self.needs.incomplete(layer) {
            self.code.line("headers &= ~(__u64)PT_INCOMPLETE;");
        }
    }

    /// Keeps a field, if it is used.
    fn keep(&mut self, layer: Layer, kind: FieldKind, value: &str) {
        if self.needs.field(layer, kind) {
            self.code.line(format_args!("pkt->{} = {value};", member(Field { layer, kind })));
        }
    }

    /// Moves on to the next header. The verifier knows no more of `at` than its bound.
    fn advance(&mut self, by: &str) {
        self.forget("at", &format!("at + {by}"));
    }

    /// Has the variable be this place, of which the verifier is to know the bound only. Nothing is read behind that.
    fn forget(&mut self, variable: &str, at: &str) {
        self.code.line(format_args!("{variable} = __trait_forget({at}, zero);"));
        self.code.line(format_args!("if ({variable} > PT_AT_MAX)"));
        self.leave();
        self.code.line(format_args!("__trait_show_bound({variable}, PT_AT_MAX);"));
    }

    /// What the interface's packets begin with: the loader says it.
    fn link_layer(&mut self, hook: Hook) {
        let outer = Layer::Outer;
        if self.needs.ip(outer) {
            self.code.open(format_args!("if ({NO_LINK_HEADER})"));
            if hook == Hook::Tc(Direction::Ingress) {
                self.code.line("at = pt_tc_network(ctx);");
            }
            self.any_ip();
            self.code.turn("else");
        } else {
            self.code.line(format_args!("if ({NO_LINK_HEADER})"));
            self.leave();
        }
        if matches!(hook, Hook::Tc(_)) {
            self.taken_out_vlan();
        }
        self.ethernet(outer);
        if self.needs.ip(outer) {
            self.code.close();
        }
    }

    fn ethernet(&mut self, layer: Layer) {
        let behind = self.needs.ip(layer);
        let keep_type = |parser: &mut Parser<'_>| parser.keep(layer, FieldKind::EtherType, "type");
        self.code.blank();
        self.load("at", "sizeof(struct ethhdr)");
        self.there(layer, Header::Ethernet);
        for (kind, value) in [
            (FieldKind::EtherSource, "pt_ether_saddr((const struct ethhdr *)header)"),
            (FieldKind::EtherDestination, "pt_ether_daddr((const struct ethhdr *)header)"),
        ] {
            self.keep(layer, kind, value);
        }
        if !behind && !self.needs.vlan(layer) && !self.needs.field(layer, FieldKind::EtherType) {
            return;
        }
        self.code.line("type = pt_be16(header + 12);");
        keep_type(self);
        self.code.line("at += sizeof(struct ethhdr);");
        self.code.open("if (pt_is_vlan(type))");
        self.load("at", "4");
        // a tag that the kernel has taken out is the outermost
        let taken_out = layer == Layer::Outer && matches!(self.place, Place::Tc(_)) && self.needs.vlan(layer);
        if taken_out {
            self.code.open("if (!(headers & PT_VLAN))");
        }
        self.there(layer, Header::Vlan);
        self.keep(layer, FieldKind::VlanId, "pt_be16(header) & 0xfff");
        self.keep(layer, FieldKind::VlanPriority, "pt_be16(header) >> 13");
        if taken_out {
            self.code.close();
        }
        self.code.line("type = pt_be16(header + 2);");
        keep_type(self);
        if behind || self.needs.field(layer, FieldKind::EtherType) {
            self.code.line("at += 4;");
            self.code.open("if (pt_is_vlan(type))");
            self.load("at", "4");
            self.code.line("type = pt_be16(header + 2);");
            keep_type(self);
            self.code.line("at += 4;");
            self.code.close();
        }
        self.code.close();
    }

    /// A VLAN tag that the kernel has taken out of the packet.
    fn taken_out_vlan(&mut self) {
        let layer = Layer::Outer;
        if !self.needs.vlan(layer) {
            return;
        }
        self.code.open("if (__trait_ctx_load(struct __sk_buff, ctx, vlan_present))");
        self.there(layer, Header::Vlan);
        self.keep(layer, FieldKind::VlanId, "__trait_ctx_load(struct __sk_buff, ctx, vlan_tci) & 0xfff");
        self.keep(layer, FieldKind::VlanPriority, "__trait_ctx_load(struct __sk_buff, ctx, vlan_tci) >> 13");
        self.code.close();
    }

    /// Where a packet starts with its IP header, that says its version.
    fn any_ip(&mut self) {
        self.code.blank();
        // the shorter of the two
        self.load("at", "sizeof(struct iphdr)");
        self.code.line("type = pt_ip_type(*(const __u8 *)header >> 4);");
    }

    fn network(&mut self, layer: Layer) {
        let (ipv4, ipv6) = (self.needs.ipv4(layer), self.needs.ipv6(layer));
        if !ipv4 && !ipv6 {
            return;
        }
        self.code.blank();
        // behind a tag or a tunnel, its place differs
        self.forget("at", "at");
        if ipv4 {
            self.code.open("if (type == ETH_P_IP)");
            self.ipv4(layer);
        }
        match (ipv4, ipv6) {
            (true, true) => self.code.turn("else if (type == ETH_P_IPV6)"),
            (false, true) => self.code.open("if (type == ETH_P_IPV6)"),
            _ => {}
        }
        if ipv6 {
            self.ipv6(layer);
        }
        if self.needs.behind_ip(layer) {
            self.code.turn("else");
            if self.needs.incomplete(layer) {
                self.code.open("if (!pt_is_vlan(type)) /* a third tag */");
                self.complete(layer);
                self.code.close();
            }
            self.leaves = true;
            self.code.line("goto done;");
        }
        self.code.close();
    }

    fn ipv4(&mut self, layer: Layer) {
        self.code.line("const struct iphdr *ip;");
        self.code.line("__u32 len;");
        self.code.blank();
        if layer == Layer::Inner || self.ethernet {
            self.load("at", "sizeof(*ip)");
        }
        self.code.line("ip = header;");
        self.code.line("len = ip->ihl * 4;");
        self.code.line("if (ip->version != 4 || len < sizeof(*ip) || at + len > end)");
        self.leave();
        self.there(layer, Header::Ipv4);
        for (kind, value) in [
            (FieldKind::Ipv4Source, "bpf_ntohl(ip->saddr)"),
            (FieldKind::Ipv4Destination, "bpf_ntohl(ip->daddr)"),
            (FieldKind::Ipv4TimeToLive, "ip->ttl"),
            (FieldKind::IpVersion, "4"),
            (FieldKind::Protocol, "ip->protocol"),
            (FieldKind::Dscp, "ip->tos >> 2"),
            (FieldKind::Fragment, "pt_fragment(ip->frag_off & bpf_htons(0x2000), ip->frag_off & bpf_htons(0x1fff))"),
        ] {
            self.keep(layer, kind, value);
        }
        if self.needs.behind_ip(layer) {
            self.code.open("if (ip->frag_off & bpf_htons(0x1fff)) /* a later fragment */");
            self.complete(layer);
            self.leaves = true;
            self.code.line("goto done;");
            self.code.close();
            self.code.line("protocol = ip->protocol;");
            self.advance("len");
        }
    }

    fn ipv6(&mut self, layer: Layer) {
        let extensions = self.needs.extensions(layer);
        let behind = self.needs.behind_ip(layer);
        let next = if behind { "protocol" } else { "next" };
        if extensions && !behind {
            self.code.line("__u32 next;");
            self.code.blank();
        }
        self.load("at", "sizeof(struct ipv6hdr)");
        self.code.line("if (*(const __u8 *)header >> 4 != 6)");
        self.leave();
        self.there(layer, Header::Ipv6);
        for (kind, value) in [
            (FieldKind::Ipv6Source, "pt_be128(header + 8)"),
            (FieldKind::Ipv6Destination, "pt_be128(header + 24)"),
            (FieldKind::Ipv6HopLimit, "*(const __u8 *)(header + 7)"),
            (FieldKind::Ipv6FlowLabel, "pt_be32(header) & 0xfffff"),
            (FieldKind::IpVersion, "6"),
            (FieldKind::Dscp, "pt_be16(header) >> 6 & 0x3f"),
        ] {
            self.keep(layer, kind, value);
        }
        if !extensions {
            return;
        }
        self.code.line(format_args!("{next} = *(const __u8 *)(header + 6);"));
        self.code.line("at += sizeof(struct ipv6hdr);");
        self.code.open(format_args!("if (pt_is_extension({next}))"));
        self.code
            .line(format_args!("struct pt_extensions extensions = {{ .at = at, .end = end, .protocol = {next} }};"));
        self.code.line("int i;");
        self.code.blank();
        self.code.line("for (i = 0; i < PT_EXTENSION_HEADERS_MAX; i++)");
        self.code.line(format_args!("\tif (!{}(ctx, &extensions))", extension_function(self.block)));
        self.code.line("\t\tbreak;");
        self.code.line(format_args!("{next} = extensions.protocol;"));
        self.keep(layer, FieldKind::Fragment, "extensions.fragment");
        self.code.open("if (extensions.fragment == PT_FRAGMENT_LATER)");
        self.keep(layer, FieldKind::Protocol, next);
        self.complete(layer);
        self.leaves = true;
        self.code.line("goto done;");
        self.code.close();
        self.code.line("at = extensions.at;");
        self.code.close();
        self.keep(layer, FieldKind::Protocol, next);
        if behind {
            self.forget("at", "at");
        }
    }

    fn transport(&mut self, layer: Layer) {
        let needs = self.needs;
        if !needs.behind_ip(layer) {
            return;
        }
        self.code.blank();
        self.code.line("protocol = __trait_forget(protocol, zero);");
        self.code.open("switch (protocol)");
        if needs.tcp(layer) {
            self.code.case("PT_TCP_PROTOCOL");
            if needs.tcp_flags(layer) {
                self.code.open(format_args!("if ({})", self.loads("at", TCP_WITH_FLAGS)));
                self.there(layer, Header::TcpFlags);
                self.keep(layer, FieldKind::TcpFlags, "*(const __u8 *)(header + 13)");
                self.complete(layer);
                self.code.close();
            }
            self.ports(layer, Header::Tcp, Some((FieldKind::TcpSource, FieldKind::TcpDestination)));
            self.code.end_case();
        }
        if needs.udp(layer) {
            self.code.case("PT_UDP_PROTOCOL");
            self.ports(layer, Header::Udp, Some((FieldKind::UdpSource, FieldKind::UdpDestination)));
            if layer == Layer::Outer && (needs.vxlan() || needs.geneve()) {
                self.code.line("type = pt_be16(header + 2);");
            }
            self.complete(layer);
            self.code.end_case();
        }
        if needs.transport(layer) {
            for number in ["PT_DCCP_PROTOCOL", "PT_SCTP_PROTOCOL", "PT_UDPLITE_PROTOCOL"] {
                self.code.case(number);
            }
            self.ports(layer, Header::OtherPorts, None);
            self.complete(layer);
            self.code.end_case();
        }
        for (wanted, number, header, bits, kinds) in [
            (
                needs.icmp(layer),
                "PT_ICMP_PROTOCOL",
                Header::Icmp,
                Header::Ipv4,
                [FieldKind::IcmpType, FieldKind::IcmpCode],
            ),
            (
                needs.icmpv6(layer),
                "PT_ICMPV6_PROTOCOL",
                Header::Icmpv6,
                Header::Ipv6,
                [FieldKind::Icmpv6Type, FieldKind::Icmpv6Code],
            ),
        ] {
            if wanted {
                self.code.case(number);
                self.code.open(format_args!("if (!(headers & {}))", header_bits(layer, bits)));
                self.complete(layer);
                self.leaves = true;
                self.code.line("goto done;");
                self.code.close();
                self.transport_header(
                    layer,
                    "2",
                    header,
                    &[(kinds[0], "*(const __u8 *)header"), (kinds[1], "*(const __u8 *)(header + 1)")],
                );
                self.complete(layer);
                self.code.end_case();
            }
        }
        if needs.incomplete(layer) {
            self.code.default_case();
            self.code.open("if (!(headers & PT_IPV6 && pt_is_extension(protocol)))");
            self.complete(layer);
            self.code.close();
            self.code.end_case();
        }
        self.code.close();
    }

    /// The ports that a header begins with, as its own fields, if it has such, and as those of `th`.
    fn ports(&mut self, layer: Layer, header: Header, own: Option<(FieldKind, FieldKind)>) {
        self.load("at", "4");
        self.there(layer, header);
        for (source, destination) in
            own.into_iter().chain([(FieldKind::TransportSource, FieldKind::TransportDestination)])
        {
            self.keep(layer, source, "pt_be16(header)");
            self.keep(layer, destination, "pt_be16(header + 2)");
        }
    }

    /// One case of the transport protocols.
    fn transport_header(&mut self, layer: Layer, len: &str, header: Header, fields: &[(FieldKind, &str)]) {
        self.load("at", len);
        self.there(layer, header);
        for (kind, value) in fields {
            self.keep(layer, *kind, value);
        }
    }

    fn tunnel(&mut self) {
        let needs = self.needs;
        let layer = Layer::Outer;
        let inner = needs.inner();
        self.code.blank();
        self.code.line("/* tunnels; of UDP, `type` is the destination port */");
        let mut first = true;
        let mut branch = |parser: &mut Self, condition: &str| {
            if std::mem::take(&mut first) {
                parser.code.open(format_args!("if ({condition})"));
            } else {
                parser.code.turn(format_args!("else if ({condition})"));
            }
        };
        if needs.vxlan() {
            branch(self, "protocol == PT_UDP_PROTOCOL && type == PT_VXLAN_PORT");
            self.load("at + sizeof(struct udphdr)", "8");
            self.code.line("if (!(*(const __u8 *)header & 0x08)) /* no VNI */");
            self.leave();
            self.there(layer, Header::Vxlan);
            self.keep(layer, FieldKind::VxlanVni, "pt_be32(header + 4) >> 8");
            if inner {
                self.code.line("type = PT_BRIDGED;");
                self.advance("sizeof(struct udphdr) + 8");
            }
        }
        if needs.geneve() {
            branch(self, "protocol == PT_UDP_PROTOCOL && type == PT_GENEVE_PORT");
            self.geneve();
        }
        if needs.gre() {
            branch(self, "protocol == PT_GRE_PROTOCOL");
            self.gre();
        }
        if inner {
            self.code.turn("else");
            self.leaves = true;
            self.code.line("goto done;");
        }
        self.code.close();
    }

    fn geneve(&mut self) {
        let needs = self.needs;
        let layer = Layer::Outer;
        let options = !needs.options.is_empty();
        self.code.line("__u32 len;");
        if options {
            self.code.line("__u64 option, options_end, found = 0;");
            self.code.line("int i;");
        }
        self.code.blank();
        self.load("at + sizeof(struct udphdr)", "8");
        self.code.line("len = (*(const __u8 *)header & 0x3f) * 4;");
        self.code.line("if (*(const __u8 *)header >> 6 || at + sizeof(struct udphdr) + 8 + len > end)");
        self.leave();
        self.there(layer, Header::Geneve);
        self.keep(layer, FieldKind::GeneveVni, "pt_be32(header + 4) >> 8");
        self.keep(layer, FieldKind::GeneveProtocol, "pt_be16(header + 2)");
        if needs.inner() {
            self.code.line("type = pt_be16(header + 2);");
        }
        if options {
            self.forget("option", "at + sizeof(struct udphdr) + 8");
            self.code.line("options_end = option + len;");
            self.code.open("for (i = 0; i < PT_GENEVE_OPTIONS_MAX && option + 4 <= options_end; i++)");
            self.code.line("__u32 what, data_len;");
            self.code.blank();
            self.load("option", "4");
            self.code.line("what = pt_be32(header) >> 8;");
            self.code.line("data_len = (*(const __u8 *)(header + 3) & 0x1f) * 4;");
            self.forget("option", "option + 4");
            self.code.line("if (option + data_len > options_end)");
            self.code.line("\tbreak;");
            for (number, field) in needs.options.iter().enumerate() {
                let FieldKind::GeneveOption { class, kind } = field.kind else { continue };
                self.code.open(format_args!(
                    "if (what == {:#08x} && !(__trait_forget(found, zero) & PT_OPTION({number})))",
                    u32::from(class) << 8 | u32::from(kind)
                ));
                self.code.line(format_args!("found |= PT_OPTION({number});"));
                self.code.open("if (data_len)");
                self.load("option", "4");
                self.code.line(format_args!("headers |= PT_OPTION({number});"));
                self.keep(layer, field.kind, "pt_be32(header)");
                self.code.close();
                self.code.close();
            }
            self.forget("option", "option + data_len");
            self.code.close();
        }
        if needs.inner() {
            self.advance("sizeof(struct udphdr) + 8 + len");
        }
    }

    fn gre(&mut self) {
        let needs = self.needs;
        let layer = Layer::Outer;
        self.code.line("__u32 flags, len;");
        self.code.blank();
        self.load("at", "4");
        self.code.line("flags = pt_be16(header);");
        self.code.line("len = pt_gre_len(flags);");
        self.code.line("if (!len || at + len > end)");
        self.leave();
        self.there(layer, Header::Gre);
        self.keep(layer, FieldKind::GreProtocol, "pt_be16(header + 2)");
        if needs.inner() {
            self.code.line("type = pt_be16(header + 2);");
        }
        if needs.gre_key() {
            self.code.open("if (flags & PT_GRE_HAS_KEY)");
            self.load("at + (flags & PT_GRE_HAS_CHECKSUM ? 8 : 4)", "4");
            self.there(layer, Header::GreKey);
            self.keep(layer, FieldKind::GreKey, "pt_be32(header)");
            self.code.close();
        }
        if needs.inner() {
            self.advance("len");
        }
    }
}
