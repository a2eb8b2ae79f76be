//! What differs between the types of BPF programs that blocks become.

use crate::{
    hook::{Direction, Hook, NetfilterHook},
    policy::InterfaceDirection,
};

/// A type of program, with the direction where that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// XDP.
    Xdp,
    /// TC and TCX.
    Tc(Direction),
    /// `cgroup_skb`.
    Cgroup(Direction),
    /// Netfilter.
    Netfilter(NetfilterHook),
    /// A socket filter that says whether a packet matches.
    Match,
    /// A socket filter that chooses a member of a group of sockets.
    Steer,
}

impl Place {
    /// Where a hook's rules run.
    pub(super) fn of(hook: Hook) -> Place {
        match hook {
            Hook::Xdp => Place::Xdp,
            Hook::Tc(direction) => Place::Tc(direction),
            Hook::Cgroup(direction) => Place::Cgroup(direction),
            Hook::Netfilter { hook, .. } => Place::Netfilter(hook),
            Hook::Match => Place::Match,
            Hook::Steer => Place::Steer,
        }
    }

    /// ELF section of its program: libbpf derives the program's type from it.
    pub(super) fn section(self) -> &'static str {
        match self {
            // also frames in several buffers: headers are looked for in the first
            Place::Xdp => "xdp.frags",
            Place::Tc(Direction::Ingress) => "tcx/ingress",
            Place::Tc(Direction::Egress) => "tcx/egress",
            Place::Cgroup(Direction::Ingress) => "cgroup_skb/ingress",
            Place::Cgroup(Direction::Egress) => "cgroup_skb/egress",
            Place::Netfilter(_) => "netfilter",
            Place::Match | Place::Steer => "socket",
        }
    }

    /// Type of the context.
    pub(super) fn context(self) -> &'static str {
        match self {
            Place::Xdp => "struct xdp_md",
            Place::Netfilter(_) => "struct bpf_nf_ctx",
            Place::Tc(_) | Place::Cgroup(_) | Place::Match | Place::Steer => "struct __sk_buff",
        }
    }

    /// The function that loads a header, with its first argument.
    pub(super) fn load_header(self) -> &'static str {
        match self {
            Place::Xdp => "pt_xdp_header(ctx",
            Place::Tc(Direction::Ingress) => "pt_tc_header(ctx, in_front",
            Place::Tc(Direction::Egress) | Place::Cgroup(_) => "pt_skb_header(ctx",
            Place::Netfilter(_) => "pt_nf_header(&packet",
            Place::Match | Place::Steer => "pt_net_header(ctx",
        }
    }

    /// The function that copies a packet's first bytes to an event.
    pub(super) fn log_packet(self) -> &'static str {
        match self {
            Place::Xdp => "pt_xdp_log_packet",
            Place::Tc(Direction::Ingress) => "pt_tc_log_packet",
            Place::Tc(Direction::Egress) | Place::Cgroup(_) => "pt_skb_log_packet",
            Place::Netfilter(_) => "pt_nf_log_packet",
            Place::Match | Place::Steer => "pt_net_log_packet",
        }
    }

    /// The packet's length.
    pub(super) fn length(self) -> &'static str {
        match self {
            Place::Xdp => "pt_xdp_length(ctx)",
            Place::Tc(Direction::Ingress) => "__trait_ctx_load(struct __sk_buff, ctx, len) + in_front",
            Place::Tc(Direction::Egress) | Place::Cgroup(_) => "__trait_ctx_load(struct __sk_buff, ctx, len)",
            Place::Netfilter(_) => "pt_nf_length(ctx)",
            Place::Match | Place::Steer => "pt_net_length(ctx)",
        }
    }

    /// Index of an interface; 0 if there is none.
    pub(super) fn interface(self, direction: InterfaceDirection) -> &'static str {
        match (self, direction) {
            (Place::Xdp, InterfaceDirection::In) => "__trait_ctx_load(struct xdp_md, ctx, ingress_ifindex)",
            (Place::Tc(Direction::Ingress), InterfaceDirection::In)
            | (Place::Tc(Direction::Egress) | Place::Cgroup(Direction::Egress), InterfaceDirection::Out) => {
                "__trait_ctx_load(struct __sk_buff, ctx, ifindex)"
            }
            (Place::Cgroup(Direction::Ingress) | Place::Match | Place::Steer, InterfaceDirection::In) => {
                "__trait_ctx_load(struct __sk_buff, ctx, ingress_ifindex)"
            }
            (Place::Netfilter(_), InterfaceDirection::In) => "pt_nf_input(ctx)",
            (Place::Netfilter(_), InterfaceDirection::Out) => "pt_nf_output(ctx)",
            // a block that passed the checker does not ask
            _ => "0",
        }
    }

    /// The call that fills in an interface's name.
    pub(super) fn interface_name(self, direction: InterfaceDirection) -> &'static str {
        match (self, direction) {
            (Place::Xdp, _) => "pt_xdp_device_name(ctx, &pkt->iif_name);",
            (Place::Netfilter(_), InterfaceDirection::In) => "pt_nf_input_name(ctx, &pkt->iif_name);",
            (Place::Netfilter(_), InterfaceDirection::Out) => "pt_nf_output_name(ctx, &pkt->oif_name);",
            (_, InterfaceDirection::In) if self.names_by_index(direction) => {
                "pt_skb_input_name(ctx, pkt->iif, &pkt->iif_name);"
            }
            (_, InterfaceDirection::In) => "pt_skb_device_name(ctx, &pkt->iif_name);",
            (_, InterfaceDirection::Out) => "pt_skb_device_name(ctx, &pkt->oif_name);",
        }
    }

    /// Whether an interface may be known by its index only: the packet may have gone on to another one, as behind a
    /// `match` in a chain of POSTROUTING. Then a name is that of the index which had it when the program was loaded.
    pub(super) fn names_by_index(self, direction: InterfaceDirection) -> bool {
        direction == InterfaceDirection::In
            && matches!(self, Place::Cgroup(Direction::Ingress) | Place::Match | Place::Steer)
    }

    /// Index of the interface that a packet is at, for events.
    pub(super) fn any_interface(self) -> &'static str {
        match self {
            Place::Netfilter(NetfilterHook::Output | NetfilterHook::PostRouting) => {
                self.interface(InterfaceDirection::Out)
            }
            Place::Tc(Direction::Egress) | Place::Cgroup(Direction::Egress) => self.interface(InterfaceDirection::Out),
            _ => self.interface(InterfaceDirection::In),
        }
    }

    /// Statement of the block's end and of `accept`.
    pub(super) fn accept(self) -> &'static str {
        match self {
            Place::Xdp => "return XDP_PASS;",
            Place::Tc(_) => "return TC_ACT_UNSPEC;",
            Place::Cgroup(_) => "return __trait_constant(1);",
            Place::Netfilter(_) => "return __trait_constant(PT_NF_ACCEPT);",
            Place::Match => "return pkt->length;",
            Place::Steer => "return PT_KERNEL_CHOOSES;",
        }
    }

    /// Statement of `drop`.
    pub(super) fn drop(self) -> &'static str {
        match self {
            Place::Xdp => "return XDP_DROP;",
            Place::Tc(_) => "return TC_ACT_SHOT;",
            Place::Cgroup(_) => "return __trait_constant(0);",
            Place::Match => "return 0;",
            Place::Netfilter(_) => "return __trait_constant(PT_NF_DROP);",
            Place::Steer => "return PT_KERNEL_CHOOSES;",
        }
    }

    /// Statement of a block's end where no rule gave a verdict.
    pub(super) fn end_of_block(self) -> &'static str {
        match self {
            Place::Match => "return 0;",
            _ => self.accept(),
        }
    }
}
