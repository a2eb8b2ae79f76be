//! A veth pair between two namespaces.

use crate::device::Feature;
use crate::end::{End, EndSpec};
use crate::error::Result;
use crate::netns::Netns;

/// From where on the left sides of pairs get their index. In fresh namespaces both sides would get the same, which the
/// kernel takes for a device that is nobody's peer: its carrier then comes on a second late (`linkwatch_urgent_event` in
/// net/core/link_watch.c).
const LEFT_INDEX: usize = 100;

/// How a veth pair is made.
#[derive(Clone, Debug)]
pub struct VethOptions {
    mtu: u32,
    queues: u32,
    gro: bool,
}

impl Default for VethOptions {
    fn default() -> Self {
        Self { mtu: 1500, queues: 1, gro: false }
    }
}

impl VethOptions {
    /// MTU 1500, one queue in each direction, no GRO.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the MTU of both sides, in bytes. Native XDP without fragment support refuses more than about 3500.
    #[must_use]
    pub fn mtu(mut self, bytes: u32) -> Self {
        self.mtu = bytes;
        self
    }

    /// Sets the number of receive queues and of transmit queues of both sides.
    #[must_use]
    pub fn queues(mut self, count: u32) -> Self {
        self.queues = count;
        self
    }

    /// Has both sides receive through NAPI with GRO, as hardware does, without an XDP program.
    ///
    /// That takes GRO on at the receiver and TSO off at the sender: while a veth may send unsegmented packets, the
    /// kernel hands all of its packets over without NAPI (`veth_skb_is_eligible_for_gro` in drivers/net/veth.c).
    #[must_use]
    pub fn gro(mut self, on: bool) -> Self {
        self.gro = on;
        self
    }
}

/// Two namespaces joined by a veth pair. It goes when either namespace goes.
#[derive(Clone, Debug)]
pub struct VethPair {
    left: End,
    right: End,
}

impl VethPair {
    /// Joins two namespaces: interfaces up, addresses assigned, each side a permanent neighbour of the other.
    ///
    /// # Errors
    /// What `ip` refuses: names that are taken, bad MTU or queue counts.
    pub fn connect(left: (&Netns, &EndSpec), right: (&Netns, &EndSpec), options: &VethOptions) -> Result<Self> {
        let VethOptions { mtu, queues, gro } = options;
        let side = |spec: &EndSpec| {
            let EndSpec { name, mac, .. } = spec;
            format!("name {name} address {mac} mtu {mtu} numtxqueues {queues} numrxqueues {queues}")
        };
        let (near, far, path) = (side(left.1), side(right.1), right.0.path());
        let index = LEFT_INDEX + left.0.interfaces()?.len();
        left.0.ip(&format!("link add {near} index {index} type veth peer {far} netns {}", path.display()))?;
        let [left, right] = End::configure([left, right])?;
        if *gro {
            for end in [&left, &right] {
                end.netns().set_feature(end.name(), Feature::Tso, false)?;
                end.netns().set_feature(end.name(), Feature::Gro, true)?;
            }
        }
        Ok(Self { left, right })
    }

    /// The side named first.
    #[must_use]
    pub fn left(&self) -> &End {
        &self.left
    }

    /// The side named second.
    #[must_use]
    pub fn right(&self) -> &End {
        &self.right
    }
}
