//! Places on a packet's way through the network stack, under their names in nftables.

use core::{fmt, str::FromStr};

/// Which way a packet goes through an interface or a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// It was received.
    Ingress,
    /// It is about to be sent.
    Egress,
}

impl Direction {
    /// `ingress` or `egress`.
    pub const fn name(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A protocol family whose packets a netfilter program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NetfilterFamily {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl NetfilterFamily {
    /// Both.
    pub const ALL: [NetfilterFamily; 2] = [NetfilterFamily::Ipv4, NetfilterFamily::Ipv6];

    /// Its name in nftables: `ip` or `ip6`.
    pub const fn name(self) -> &'static str {
        match self {
            NetfilterFamily::Ipv4 => "ip",
            NetfilterFamily::Ipv6 => "ip6",
        }
    }
}

impl fmt::Display for NetfilterFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for NetfilterFamily {
    type Err = UnknownHook;

    /// Also reads `ipv4` and `ipv6`.
    fn from_str(text: &str) -> Result<NetfilterFamily, UnknownHook> {
        match text {
            "ip" | "ipv4" => Ok(NetfilterFamily::Ipv4),
            "ip6" | "ipv6" => Ok(NetfilterFamily::Ipv6),
            _ => Err(UnknownHook("ip or ip6")),
        }
    }
}

/// A hook of netfilter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NetfilterHook {
    /// Every received packet, before it is routed.
    PreRouting,
    /// Received packets for this host.
    Input,
    /// Packets routed from one interface to another.
    Forward,
    /// Packets this host made.
    Output,
    /// Every packet about to be sent.
    PostRouting,
}

impl NetfilterHook {
    /// Every hook, in the order a packet meets them.
    pub const ALL: [NetfilterHook; 5] = [
        NetfilterHook::PreRouting,
        NetfilterHook::Input,
        NetfilterHook::Forward,
        NetfilterHook::Output,
        NetfilterHook::PostRouting,
    ];

    /// Its name in nftables.
    pub const fn name(self) -> &'static str {
        match self {
            NetfilterHook::PreRouting => "prerouting",
            NetfilterHook::Input => "input",
            NetfilterHook::Forward => "forward",
            NetfilterHook::Output => "output",
            NetfilterHook::PostRouting => "postrouting",
        }
    }
}

impl fmt::Display for NetfilterHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for NetfilterHook {
    type Err = UnknownHook;

    /// Also reads the kernel's names, with `-` or `_`: `pre-routing`, `local_in`.
    fn from_str(text: &str) -> Result<NetfilterHook, UnknownHook> {
        match text {
            "prerouting" | "pre-routing" | "pre_routing" => Ok(NetfilterHook::PreRouting),
            "input" | "local-in" | "local_in" => Ok(NetfilterHook::Input),
            "forward" => Ok(NetfilterHook::Forward),
            "output" | "local-out" | "local_out" => Ok(NetfilterHook::Output),
            "postrouting" | "post-routing" | "post_routing" => Ok(NetfilterHook::PostRouting),
            _ => Err(UnknownHook("prerouting, input, forward, output or postrouting")),
        }
    }
}

/// A text names no hook or family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownHook(&'static str);

impl fmt::Display for UnknownHook {
    /// What it could be.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.0)
    }
}

impl core::error::Error for UnknownHook {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_again() {
        for hook in NetfilterHook::ALL {
            assert_eq!(hook.name().parse(), Ok(hook));
        }
        for family in NetfilterFamily::ALL {
            assert_eq!(family.name().parse(), Ok(family));
        }
    }

    #[test]
    fn other_spellings_are_read() {
        for (hook, spellings) in [
            (NetfilterHook::PreRouting, ["pre-routing", "pre_routing"]),
            (NetfilterHook::Input, ["local-in", "local_in"]),
            (NetfilterHook::Output, ["local-out", "local_out"]),
            (NetfilterHook::PostRouting, ["post-routing", "post_routing"]),
        ] {
            for spelling in spellings {
                assert_eq!(spelling.parse(), Ok(hook));
            }
        }
        assert_eq!("ipv4".parse(), Ok(NetfilterFamily::Ipv4));
        assert_eq!("ipv6".parse(), Ok(NetfilterFamily::Ipv6));
        assert!("in".parse::<NetfilterHook>().is_err());
        assert!("inet".parse::<NetfilterFamily>().is_err());
    }
}
