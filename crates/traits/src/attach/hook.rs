//! The places in the network stack that a program can be attached to.

use std::fmt;

pub use packet_traits_core::Direction;
use packet_traits_core::{NetfilterFamily, NetfilterHook};

/// A hook of the sockets in a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CgroupHook {
    /// Packets arriving at a socket (`SEC("cgroup_skb/ingress")`).
    Ingress,
    /// Packets a socket sends (`SEC("cgroup_skb/egress")`).
    Egress,
    /// Events of TCP sockets (`SEC("sockops")`).
    SockOps,
    /// `getsockopt` (`SEC("cgroup/getsockopt")`).
    GetSockOpt,
    /// `setsockopt` (`SEC("cgroup/setsockopt")`).
    SetSockOpt,
    /// A socket is closed (`SEC("cgroup/sock_release")`).
    SockRelease,
}

impl fmt::Display for CgroupHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::SockOps => "sockops",
            Self::GetSockOpt => "getsockopt",
            Self::SetSockOpt => "setsockopt",
            Self::SockRelease => "sock_release",
        })
    }
}

/// A hook, as [`AttachmentInfo`](super::AttachmentInfo) and [`AttachError`](super::AttachError) name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Hook {
    /// XDP, native or generic.
    Xdp,
    /// TC, attached by a TCX link.
    Tcx(Direction),
    /// TC, attached as a direct-action filter of a `clsact` qdisc.
    Clsact(Direction),
    /// A netfilter hook.
    Netfilter {
        /// The protocol family.
        family: NetfilterFamily,
        /// The point on the packet's way.
        hook: NetfilterHook,
        /// Lower runs earlier.
        priority: i32,
    },
    /// A hook of the sockets in a cgroup.
    Cgroup(CgroupHook),
    /// The filter of one socket.
    SocketFilter,
    /// A tracepoint with BTF arguments.
    TpBtf,
    /// The start or the end of a function.
    Function,
    /// An entry of a DEVMAP: runs on frames redirected through it.
    Devmap,
    /// An entry of a CPUMAP: runs on frames redirected through it.
    Cpumap,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xdp => f.write_str("xdp"),
            Self::Tcx(direction) => write!(f, "tcx {direction}"),
            Self::Clsact(direction) => write!(f, "clsact {direction}"),
            Self::Netfilter { family, hook, priority } => {
                write!(f, "netfilter {family} {hook} priority {priority}")
            }
            Self::Cgroup(hook) => write!(f, "cgroup {hook}"),
            Self::SocketFilter => f.write_str("socket filter"),
            Self::TpBtf => f.write_str("tp_btf"),
            Self::Function => f.write_str("fentry or fexit"),
            Self::Devmap => f.write_str("devmap"),
            Self::Cpumap => f.write_str("cpumap"),
        }
    }
}
