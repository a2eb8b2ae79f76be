//! Where it is sent: two namespaces, a veth pair, two VXLAN tunnels over it and a netfilter rule. All of it goes with
//! the process.

use std::{
    error::Error,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    process::{Command, Stdio},
};

use packet_traits_lab::{End, EndSpec, Family, Mac, Netns, VethOptions, VethPair, VxlanOptions, VxlanPair};

use super::flows::{FLOWS, Flow, Kind, Route, VNI_OVER_IPV4, VNI_OVER_IPV6};

const NO_NFT: &str =
    "the demo needs the `nft` command for its netfilter rule, and there is none: install the package nftables";

/// The namespaces and what joins them; left is the sender, right the receiver.
#[derive(Clone)]
pub(super) struct Network {
    link: VethPair,
    over_ipv4: VxlanPair,
    over_ipv6: VxlanPair,
}

/// One side: 10.`block`.0.`host` and fd`block`::`host`.
fn side(name: &str, block: u8, host: u8) -> EndSpec {
    let digits = u16::from(block / 10 * 16 + block % 10);
    EndSpec::new(
        name,
        Mac([2, block, 0, 0, 0, host]),
        Ipv4Addr::new(10, block, 0, host),
        Ipv6Addr::new(0xfd00 | digits, 0, 0, 0, 0, 0, 0, host.into()),
    )
}

impl Network {
    /// Makes everything.
    pub(super) fn build() -> Result<Network, Box<dyn Error>> {
        if let Err(error) = Command::new("nft").arg("--version").stdout(Stdio::null()).status() {
            return Err(if error.kind() == io::ErrorKind::NotFound { NO_NFT.into() } else { error.into() });
        }
        let (sender, receiver) = (Netns::new()?, Netns::new()?);
        let (tx0, rx0) = (side("tx0", 77, 1), side("rx0", 77, 2));
        // GRO as on hardware, to show that traits do not stop it
        let link = VethPair::connect((&sender, &tx0), (&receiver, &rx0), &VethOptions::new().gro(true))?;
        let tunnel = |underlay, vni, name: &str, block| {
            let [tx, rx] = [1, 2].map(|host| side(&format!("{name}{}", host - 1), block, host));
            VxlanPair::connect(&link, &tx, &rx, &VxlanOptions::new(underlay).vni(vni))
        };
        let over_ipv4 = tunnel(Family::V4, VNI_OVER_IPV4, "vxa", 78)?;
        let over_ipv6 = tunnel(Family::V6, VNI_OVER_IPV6, "vxb", 79)?;
        let network = Network { link, over_ipv4, over_ipv6 };
        network.filter_ports()?;
        Ok(network)
    }

    /// The sender's interface for a route.
    pub(super) fn tx(&self, route: Route) -> &End {
        match route {
            Route::Plain => self.link.left(),
            Route::Tunnel(Family::V4) => self.over_ipv4.left(),
            Route::Tunnel(Family::V6) => self.over_ipv6.left(),
        }
    }

    /// The receiver's interface for a route.
    pub(super) fn rx(&self, route: Route) -> &End {
        match route {
            Route::Plain => self.link.right(),
            Route::Tunnel(Family::V4) => self.over_ipv4.right(),
            Route::Tunnel(Family::V6) => self.over_ipv6.right(),
        }
    }

    /// Where a flow goes.
    pub(super) fn to(&self, flow: &Flow) -> SocketAddr {
        self.rx(flow.route).addr(flow.family, flow.port)
    }

    /// Has the receiver's netfilter drop the ports of the flows that are to be dropped so.
    fn filter_ports(&self) -> Result<(), Box<dyn Error>> {
        let ports: Vec<String> =
            FLOWS.iter().filter(|flow| flow.kind == Kind::Filtered).map(|flow| flow.port.to_string()).collect();
        let rules = format!(
            "add table inet demo
            add chain inet demo input {{ type filter hook input priority 0; }}
            add rule inet demo input udp dport {{ {} }} drop\n",
            ports.join(", ")
        );
        self.link.right().netns().nft(&rules).map_err(|error| {
            format!("the demo's netfilter rule, for which the kernel needs CONFIG_NF_TABLES_INET: {error}")
        })?;
        Ok(())
    }
}
