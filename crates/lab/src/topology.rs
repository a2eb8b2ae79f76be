//! Ready-made networks. Addresses are the same in every instance, since every instance has namespaces of its own.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use packet_traits_core::Mac;

use crate::end::{End, EndSpec};
use crate::error::Result;
use crate::netns::Netns;
use crate::veth::{VethOptions, VethPair};
use crate::vxlan::{VxlanOptions, VxlanPair};

/// The side with number `host` of network `network`: `10.<block>.<network>.<host>` and
/// `fd<block>:<network>::<host>`, where `block` is 77 for links and 78 inside tunnels.
fn side(name: &str, block: u8, network: u8, host: u8) -> EndSpec {
    let digits = u16::from(block / 10 * 16 + block % 10);
    EndSpec::new(
        name,
        Mac([2, block, 0, 0, network, host]),
        Ipv4Addr::new(10, block, network, host),
        Ipv6Addr::new(0xfd00 | digits, network.into(), 0, 0, 0, 0, 0, host.into()),
    )
}

/// A sender and a receiver joined by a veth pair.
///
/// | | interface | IPv4 | IPv6 |
/// |---|---|---|---|
/// | sender | `tx0` | 10.77.0.1 | fd77::1 |
/// | receiver | `rx0` | 10.77.0.2 | fd77::2 |
#[derive(Clone, Debug)]
pub struct Pair {
    link: VethPair,
}

impl Pair {
    /// A pair with the default [`VethOptions`].
    ///
    /// # Errors
    /// Not root, or `ip` is missing.
    pub fn new() -> Result<Self> {
        Self::with(&VethOptions::new())
    }

    /// A pair with these options.
    ///
    /// # Errors
    /// As [`Pair::new`], and what [`VethPair::connect`] refuses.
    pub fn with(options: &VethOptions) -> Result<Self> {
        let (sender, receiver) = (Netns::new()?, Netns::new()?);
        let (tx, rx) = (side("tx0", 77, 0, 1), side("rx0", 77, 0, 2));
        Ok(Self { link: VethPair::connect((&sender, &tx), (&receiver, &rx), options)? })
    }

    /// The sender's side.
    #[must_use]
    pub fn tx(&self) -> &End {
        self.link.left()
    }

    /// The receiver's side.
    #[must_use]
    pub fn rx(&self) -> &End {
        self.link.right()
    }
}

/// Waits until a router's interface has reported that it is in the all-routers group: two packets (RFC 3810 section 9.1,
/// the robustness variable) within milliseconds, the only ones that a link carries by itself. A kernel that is set to
/// report less costs the whole wait and does no harm.
fn wait_for_group_reports(end: &End) -> Result<()> {
    let deadline = Instant::now() + Duration::from_millis(200);
    while Instant::now() < deadline && end.netns().link_stats(end.name())?.tx_packets < 2 {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A client and a server with a router between them that forwards IPv4 and IPv6.
///
/// | | interface | IPv4 | IPv6 |
/// |---|---|---|---|
/// | client | `cl0` | 10.77.1.1 | fd77:1::1 |
/// | router, towards the client | `rt0` | 10.77.1.2 | fd77:1::2 |
/// | router, towards the server | `rt1` | 10.77.2.1 | fd77:2::1 |
/// | server | `sv0` | 10.77.2.2 | fd77:2::2 |
#[derive(Clone, Debug)]
pub struct Chain {
    near: VethPair,
    far: VethPair,
}

impl Chain {
    /// A chain with the default [`VethOptions`] on both links.
    ///
    /// # Errors
    /// Not root, or `ip` is missing.
    pub fn new() -> Result<Self> {
        Self::with(&VethOptions::new())
    }

    /// A chain with these options on both links.
    ///
    /// # Errors
    /// As [`Chain::new`], and what [`VethPair::connect`] refuses.
    pub fn with(options: &VethOptions) -> Result<Self> {
        let (client, router, server) = (Netns::new()?, Netns::new()?, Netns::new()?);
        router.set_sysctl("net/ipv4/ip_forward", "1")?;
        router.set_sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let (cl0, rt0) = (side("cl0", 77, 1, 1), side("rt0", 77, 1, 2));
        let (rt1, sv0) = (side("rt1", 77, 2, 1), side("sv0", 77, 2, 2));
        let near = VethPair::connect((&client, &cl0), (&router, &rt0), options)?;
        let far = VethPair::connect((&router, &rt1), (&server, &sv0), options)?;
        for (netns, gateway) in [(&client, &rt0), (&server, &rt1)] {
            let EndSpec { ipv4, ipv6, .. } = gateway;
            netns.ip(&format!("route add default via {ipv4}\nroute add default via {ipv6}"))?;
        }
        let chain = Self { near, far };
        for end in [chain.router_in(), chain.router_out()] {
            wait_for_group_reports(end)?;
        }
        Ok(chain)
    }

    /// The client's side of the first link.
    #[must_use]
    pub fn client(&self) -> &End {
        self.near.left()
    }

    /// The router's side of the first link, where the client's packets come in.
    #[must_use]
    pub fn router_in(&self) -> &End {
        self.near.right()
    }

    /// The router's side of the second link, where the client's packets go out.
    #[must_use]
    pub fn router_out(&self) -> &End {
        self.far.left()
    }

    /// The server's side of the second link.
    #[must_use]
    pub fn server(&self) -> &End {
        self.far.right()
    }
}

/// Two containers, as people run them: each is joined by a veth to a port of a host's bridge.
///
/// | | interface | IPv4 | IPv6 |
/// |---|---|---|---|
/// | containers | `eth0` | 10.80.0.2, 10.80.0.3 | fd80::2, fd80::3 |
/// | host, the bridge | `br0` | 10.80.0.1 | |
/// | host, its ports | `port2`, `port3` | | |
#[derive(Clone, Debug)]
pub struct Containers {
    host: Netns,
    links: [VethPair; 2],
}

impl Containers {
    /// Two containers and their host. The bridge has the lowest index of the host's interfaces.
    ///
    /// # Errors
    /// As [`Pair::new`]; the kernel has no bridges.
    pub fn new() -> Result<Self> {
        let (host, bridge) = (Netns::new()?, side("br0", 80, 0, 1));
        host.ip(&format!(
            "link add br0 type bridge\nlink set br0 address {} up\naddr add {}/24 dev br0",
            bridge.mac, bridge.ipv4
        ))?;
        let connect = |number: u8| {
            let (container, port) = (Netns::new()?, side(&format!("port{number}"), 80, 0, 100 + number));
            let link =
                VethPair::connect((&container, &side("eth0", 80, 0, number)), (&host, &port), &VethOptions::new())?;
            host.ip(&format!("addr flush dev {0}\nlink set {0} master br0", port.name))?;
            // there is no ARP on the laboratory's links
            for EndSpec { ipv4, mac, .. } in [&bridge, &side("eth0", 80, 0, 5 - number)] {
                container.ip(&format!("neigh replace {ipv4} lladdr {mac} dev eth0"))?;
            }
            Ok(link)
        };
        let links = [connect(2)?, connect(3)?];
        Ok(Self { host, links })
    }

    /// The host's namespace.
    #[must_use]
    pub fn host(&self) -> &Netns {
        &self.host
    }

    /// The containers' sides of their links.
    #[must_use]
    pub fn ends(&self) -> [&End; 2] {
        [self.links[0].left(), self.links[1].left()]
    }
}

/// A [`Pair`] with a VXLAN tunnel over it.
///
/// | | interface | IPv4 | IPv6 |
/// |---|---|---|---|
/// | sender, inner | `vx0` | 10.78.0.1 | fd78::1 |
/// | receiver, inner | `vx1` | 10.78.0.2 | fd78::2 |
#[derive(Clone, Debug)]
pub struct Overlay {
    pair: Pair,
    tunnel: VxlanPair,
}

impl Overlay {
    /// A pair with the default [`VethOptions`] and a tunnel with these options.
    ///
    /// # Errors
    /// As [`Pair::new`], and what [`VxlanPair::connect`] refuses.
    pub fn new(options: &VxlanOptions) -> Result<Self> {
        Self::over(Pair::new()?, options)
    }

    /// A tunnel over an existing pair.
    ///
    /// # Errors
    /// What [`VxlanPair::connect`] refuses.
    pub fn over(pair: Pair, options: &VxlanOptions) -> Result<Self> {
        let tunnel = VxlanPair::connect(&pair.link, &side("vx0", 78, 0, 1), &side("vx1", 78, 0, 2), options)?;
        Ok(Self { pair, tunnel })
    }

    /// The sender's side inside the tunnel.
    #[must_use]
    pub fn tx(&self) -> &End {
        self.tunnel.left()
    }

    /// The receiver's side inside the tunnel.
    #[must_use]
    pub fn rx(&self) -> &End {
        self.tunnel.right()
    }

    /// The pair that carries the tunnel.
    #[must_use]
    pub fn underlay(&self) -> &Pair {
        &self.pair
    }

    /// The tunnel's network identifier.
    #[must_use]
    pub fn vni(&self) -> u32 {
        self.tunnel.vni()
    }
}
