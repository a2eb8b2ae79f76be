//! One side of a link between two namespaces: the namespace, the interface and its fixed addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use packet_traits_core::Mac;

use crate::error::Result;
use crate::netns::Netns;

/// Which internet protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, for tests that must hold for either.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// How one side of a link is to be named and addressed.
#[derive(Clone, Debug)]
pub struct EndSpec {
    /// Name of the interface, at most 15 bytes.
    pub name: String,
    /// Ethernet address.
    pub mac: Mac,
    /// IPv4 address; the network is its /24.
    pub ipv4: Ipv4Addr,
    /// IPv6 address; the network is its /64.
    pub ipv6: Ipv6Addr,
}

impl EndSpec {
    /// An interface called `name` with these addresses.
    pub fn new(name: impl Into<String>, mac: Mac, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Self {
        Self { name: name.into(), mac, ipv4, ipv6 }
    }
}

/// One side of a link that exists.
#[derive(Clone, Debug)]
pub struct End {
    netns: Netns,
    spec: EndSpec,
    ifindex: u32,
}

impl End {
    /// The namespace the interface is in.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Name of the interface.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Index of the interface, unique within its namespace only.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Ethernet address.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.spec.mac
    }

    /// IPv4 address.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        self.spec.ipv4
    }

    /// IPv6 address.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        self.spec.ipv6
    }

    /// The address of the given family.
    #[must_use]
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.spec.ipv4.into(),
            Family::V6 => self.spec.ipv6.into(),
        }
    }

    /// The address of the given family with a port; port 0 lets the kernel choose on bind.
    #[must_use]
    pub fn addr(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(family), port)
    }

    /// Two interfaces that exist and are joined in some way: brings them up, gives them these addresses and, if they have
    /// a link layer, each other as permanent neighbours. Their Ethernet addresses are those that they have.
    ///
    /// # Errors
    /// There is no such interface, it gets no carrier within [`RECV_TIMEOUT`](crate::RECV_TIMEOUT), or `ip` refuses.
    pub fn join(sides: [(&Netns, &str, Ipv4Addr, Ipv6Addr); 2]) -> Result<[Self; 2]> {
        let spec = |(netns, name, ipv4, ipv6): (&Netns, &str, _, _)| {
            Ok(EndSpec::new(name, netns.mac(name)?.unwrap_or(Mac([0; 6])), ipv4, ipv6))
        };
        let specs = [spec(sides[0])?, spec(sides[1])?];
        Self::configure([(sides[0].0, &specs[0]), (sides[1].0, &specs[1])])
    }

    /// Whether the interface's frames begin with an Ethernet header.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn is_ethernet(&self) -> Result<bool> {
        Ok(self.netns.mac(self.name())?.is_some())
    }

    /// Brings up two interfaces that exist, and gives them their addresses and each other as permanent neighbours.
    ///
    /// ARP and neighbour discovery are switched off (IFF_NOARP), which also keeps the kernel from joining, and so from
    /// reporting, solicited-node multicast groups: the link carries nothing but what its users send. An address that is added later needs
    /// neighbour entries too.
    pub(crate) fn configure(sides: [(&Netns, &EndSpec); 2]) -> Result<[Self; 2]> {
        let mut ethernet = true;
        for (netns, EndSpec { name, .. }) in sides {
            netns.ip(&format!("link set {name} arp off up"))?;
            ethernet &= netns.mac(name)?.is_some();
        }
        for ((netns, own), (_, peer)) in [(sides[0], sides[1]), (sides[1], sides[0])] {
            let EndSpec { name, ipv4, ipv6, .. } = own;
            netns.wait_running(name)?;
            netns.ip(&format!(
                "addr add {ipv4}/24 dev {name}
                addr add {ipv6}/64 dev {name} nodad"
            ))?;
            if ethernet {
                netns.ip(&format!(
                    "neigh replace {peer4} lladdr {mac} dev {name} nud permanent
                    neigh replace {peer6} lladdr {mac} dev {name} nud permanent",
                    peer4 = peer.ipv4,
                    peer6 = peer.ipv6,
                    mac = peer.mac,
                ))?;
            }
        }
        for (netns, EndSpec { ipv6, .. }) in sides {
            netns.wait_local(*ipv6)?;
        }
        let end = |(netns, spec): (&Netns, &EndSpec)| -> Result<Self> {
            Ok(Self { netns: netns.clone(), spec: spec.clone(), ifindex: netns.ifindex(&spec.name)? })
        };
        Ok([end(sides[0])?, end(sides[1])?])
    }
}
