//! Where rules run, and what they can do there.

use std::fmt;

pub use packet_traits_core::{Direction, NetfilterFamily, NetfilterHook};

/// A place on a packet's way that a block of rules is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// `xdp`: before the kernel makes an skb of it.
    Xdp,
    /// `tc ingress`, `tc egress`.
    Tc(Direction),
    /// `netfilter HOOK priority N`, in both families unless one is named.
    Netfilter {
        /// `None`: IPv4 and IPv6.
        family: Option<NetfilterFamily>,
        /// The point.
        hook: NetfilterHook,
        /// Lower runs earlier.
        priority: i32,
    },
    /// `cgroup ingress`, `cgroup egress`.
    Cgroup(Direction),
    /// `match`: no hook of its own, but a socket filter that is pinned for `iptables -m bpf --object-pinned`.
    Match,
    /// `steer`: chooses among the sockets of a SO_REUSEPORT group (`SO_ATTACH_REUSEPORT_EBPF`).
    Steer,
}

/// What a rule may want to do and not every hook can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ability {
    /// Set or delete a trait whose merge policy is `block`.
    ChangeBlockKey,
    /// Set or delete a trait whose merge policy is `keep-first` or `discard`.
    ChangeKeepFirstKey,
    /// Set the mark or the priority.
    MarkAndPriority,
    /// Set the queue mapping.
    Queue,
    /// Redirect to an interface.
    RedirectDevice,
    /// Redirect to a CPU or an AF_XDP socket.
    RedirectCpuOrXsk,
    /// Accept or drop.
    AcceptAndDrop,
    /// Choose a member of a group of sockets.
    Member,
    /// Read what the network card says.
    Hardware,
    /// Look at the Ethernet header and VLAN tags.
    Ethernet,
    /// Look at the interface the packet came in by.
    InputInterface,
    /// Look at the interface the packet goes out by.
    OutputInterface,
}

impl Hook {
    /// Whether rules can do it there.
    ///
    /// Netfilter programs have the skb read-only; `cgroup_skb` programs may write mark and priority
    /// (`cg_skb_is_valid_access` in net/core/filter.c); changes of traits after XDP are TC's, and of the flow region
    /// only.
    pub const fn can(self, ability: Ability) -> bool {
        match ability {
            Ability::ChangeBlockKey | Ability::RedirectDevice | Ability::Ethernet => {
                matches!(self, Hook::Xdp | Hook::Tc(_))
            }
            Ability::ChangeKeepFirstKey | Ability::RedirectCpuOrXsk | Ability::Hardware => matches!(self, Hook::Xdp),
            Ability::MarkAndPriority => matches!(self, Hook::Tc(_) | Hook::Cgroup(_)),
            Ability::Queue => matches!(self, Hook::Tc(_)),
            Ability::AcceptAndDrop => !matches!(self, Hook::Steer),
            Ability::Member => matches!(self, Hook::Steer),
            Ability::InputInterface => match self {
                Hook::Xdp
                | Hook::Tc(Direction::Ingress)
                | Hook::Cgroup(Direction::Ingress)
                | Hook::Match
                | Hook::Steer => true,
                Hook::Netfilter { hook, .. } => !matches!(hook, NetfilterHook::Output | NetfilterHook::PostRouting),
                Hook::Tc(Direction::Egress) | Hook::Cgroup(Direction::Egress) => false,
            },
            Ability::OutputInterface => match self {
                Hook::Tc(Direction::Egress) | Hook::Cgroup(Direction::Egress) => true,
                Hook::Netfilter { hook, .. } => !matches!(hook, NetfilterHook::PreRouting | NetfilterHook::Input),
                _ => false,
            },
        }
    }

    /// Whether the packet starts with its Ethernet header there, and not with its IP header.
    pub const fn sees_ethernet(self) -> bool {
        self.can(Ability::Ethernet)
    }
}

impl fmt::Display for Hook {
    /// As it is written in a policy.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hook::Xdp => f.write_str("xdp"),
            Hook::Tc(direction) => write!(f, "tc {direction}"),
            Hook::Netfilter { family, hook, priority } => {
                f.write_str("netfilter ")?;
                if let Some(family) = family {
                    write!(f, "{family} ")?;
                }
                write!(f, "{hook} priority {priority}")
            }
            Hook::Cgroup(direction) => write!(f, "cgroup {direction}"),
            Hook::Match => f.write_str("match"),
            Hook::Steer => f.write_str("steer"),
        }
    }
}
