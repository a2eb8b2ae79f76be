//! What is sent: the demo's flows, the stages each must pass and the tenant its packets must carry.

use std::fmt;

use packet_traits_lab::Family;

use super::records::Stage;

/// The tunnels' network identifiers, by what carries them.
pub(super) const VNI_OVER_IPV4: u32 = 1001;
/// See [`VNI_OVER_IPV4`].
pub(super) const VNI_OVER_IPV6: u32 = 2002;

/// Tenants of packets outside tunnels: `tenant_of_ipv4` in bpf/demo.bpf.c, 10.77.0.0/16.
const TENANT_OF_IPV4: u32 = 4077;
/// `tenant_of_ipv6` in bpf/demo.bpf.c, fd77::/16.
const TENANT_OF_IPV6: u32 = 6077;

/// Which way a flow's packets take to the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Over the veth pair as they are.
    Plain,
    /// In VXLAN over the veth pair, with this protocol outside.
    Tunnel(Family),
}

/// What becomes of a flow's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// UDP to a server that sends everything back.
    Echo,
    /// One TCP transfer.
    Transfer,
    /// UDP to a port without a socket.
    ClosedPort,
    /// UDP to a port that a netfilter rule drops.
    Filtered,
}

/// Packets of one kind, over one route, to one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) kind: Kind,
    pub(super) route: Route,
    /// The inner protocol, if there is a tunnel.
    pub(super) family: Family,
    /// Tells the flow from the others; from `FIRST_PORT` in bpf/demo.bpf.c on.
    pub(super) port: u16,
}

const fn flow(kind: Kind, route: Route, family: Family, port: u16) -> Flow {
    Flow { kind, route, family, port }
}

/// Everything that is sent, in this order.
pub(super) const FLOWS: [Flow; 13] = {
    use Family::{V4, V6};
    use Kind::{ClosedPort, Echo, Filtered, Transfer};
    use Route::{Plain, Tunnel};
    [
        flow(Echo, Plain, V4, 7700),
        flow(Echo, Plain, V6, 7701),
        flow(Echo, Tunnel(V4), V4, 7702),
        flow(Echo, Tunnel(V4), V6, 7703),
        flow(Echo, Tunnel(V6), V4, 7704),
        SAMPLED,
        flow(Transfer, Plain, V4, 7706),
        SAMPLED_TRANSFER,
        flow(Transfer, Tunnel(V6), V6, 7708),
        flow(ClosedPort, Plain, V4, 7709),
        flow(ClosedPort, Tunnel(V4), V6, 7710),
        flow(Filtered, Plain, V6, 7711),
        flow(Filtered, Tunnel(V6), V4, 7712),
    ]
};

/// The flow of which one datagram is shown at every stage.
pub(super) const SAMPLED: Flow = flow(Kind::Echo, Route::Tunnel(Family::V6), Family::V6, 7705);
/// The transfer of which is shown what its server reads.
pub(super) const SAMPLED_TRANSFER: Flow = flow(Kind::Transfer, Route::Tunnel(Family::V4), Family::V4, 7707);

impl Flow {
    /// The tenant XDP must give to its packets.
    pub(super) fn tenant(&self) -> u32 {
        match (self.route, self.family) {
            (Route::Tunnel(Family::V4), _) => VNI_OVER_IPV4,
            (Route::Tunnel(Family::V6), _) => VNI_OVER_IPV6,
            (Route::Plain, Family::V4) => TENANT_OF_IPV4,
            (Route::Plain, Family::V6) => TENANT_OF_IPV6,
        }
    }

    /// Whether its packets must be seen at a stage.
    ///
    /// A datagram's way to the process is not visible: `udp_recvmsg` copies a linear one without a tracepoint that has
    /// the skb (net/ipv4/udp.c), so its last stage in the kernel is the socket filter. What comes next is the process
    /// itself.
    pub(super) fn passes(&self, stage: Stage) -> bool {
        match stage {
            Stage::Xdp | Stage::TcIngress | Stage::PreRouting | Stage::Input => true,
            Stage::TcIngressInner => self.route != Route::Plain,
            Stage::CgroupIngress | Stage::Application => matches!(self.kind, Kind::Echo | Kind::Transfer),
            Stage::SocketFilter => self.kind == Kind::Echo,
            Stage::Delivery => self.kind == Kind::Transfer,
            Stage::Drop => self.drop_reason().is_some(),
        }
    }

    /// Why the kernel must drop its packets: the end of a name of `enum skb_drop_reason`
    /// (include/net/dropreason-core.h).
    pub(super) fn drop_reason(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Echo | Kind::Transfer => None,
            Kind::ClosedPort => Some("NO_SOCKET"),
            Kind::Filtered => Some("NETFILTER_DROP"),
        }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Echo => "UDP echo",
            Kind::Transfer => "TCP transfer",
            Kind::ClosedPort => "UDP to a closed port",
            Kind::Filtered => "UDP to a filtered port",
        };
        let family = match self.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        match self.route {
            Route::Plain => write!(f, "{what}, {family}"),
            Route::Tunnel(_) => write!(f, "{what}, {family} in VXLAN {}", self.tenant()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_tell_flows_apart() {
        for (index, flow) in FLOWS.iter().enumerate() {
            assert_eq!(usize::from(flow.port), 7700 + index, "{flow}");
        }
    }
}
