//! One case: a link, rules at its receiver, and traffic that meets them.

use std::error::Error;

use packet_traits::{attach::XdpMode, registry::Registry};
use packet_traits_deploy::{Deployment, Statistics};
use packet_traits_lab::{Bpffs, End, Pair, VethOptions};

use super::{
    super::traffic::Traffic,
    rules::{PORT, Shape},
};

/// Where the rules are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A policy's `xdp`.
    Xdp,
    /// A policy's `tc ingress`.
    Tc,
    /// nftables' netdev ingress.
    Nft,
}

impl Place {
    pub(super) const ALL: [Place; 3] = [Place::Xdp, Place::Tc, Place::Nft];

    pub(super) fn name(self) -> &'static str {
        match self {
            Place::Xdp => "xdp",
            Place::Tc => "tc",
            Place::Nft => "nft",
        }
    }
}

/// What is measured.
pub(super) struct Subject {
    shape: Shape,
    size: u16,
    place: Place,
    traffic: Traffic,
    /// `None`: a table of nftables in the receiver's namespace.
    policy: Option<Policy>,
    pair: Pair,
}

/// A policy that is up.
struct Policy {
    deployment: Deployment,
    // last, since everything is pinned in it
    _bpffs: Bpffs,
}

impl Subject {
    pub(super) fn new(shape: Shape, size: u16, place: Place) -> Result<Subject, Box<dyn Error>> {
        // frames that were sent without an skb reach a receiver that polls: one with GRO
        let pair = Pair::with(&VethOptions::new().gro(true))?;
        let policy = match place {
            Place::Xdp => Some(Policy::up_at(pair.rx(), &shape.policy(size, "xdp"))?),
            Place::Tc => Some(Policy::up_at(pair.rx(), &shape.policy(size, "tc ingress"))?),
            Place::Nft => {
                pair.rx().netns().nft(&shape.nftables(size, pair.rx().name()))?;
                None
            }
        };
        Ok(Subject { shape, size, place, traffic: Traffic::new(pair.tx(), pair.rx(), PORT)?, policy, pair })
    }

    pub(super) fn ns_per_packet(&self, packets: u32) -> Result<f64, Box<dyn Error>> {
        let name = format!("{} {} of size {}", self.place.name(), self.shape.name(), self.size);
        self.traffic.ns_per_packet(packets, &name, || self.dropped())
    }

    /// How many packets the last rule has met, which drops them.
    fn dropped(&self) -> Result<u64, Box<dyn Error>> {
        if let Some(policy) = &self.policy {
            return policy.dropped();
        }
        let listed = self.pair.rx().netns().nft("list table netdev bench")?;
        let counter = listed.rsplit_once("counter packets ").and_then(|(_, rest)| rest.split(' ').next());
        Ok(counter.ok_or("nft lists no counter")?.parse()?)
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Whether it is what nftables makes of the same rules.
    pub(super) fn is_nft_of(&self, other: &Subject) -> bool {
        self.place == Place::Nft && (self.shape, self.size) == (other.shape, other.size)
    }
}

impl Policy {
    /// Brings a policy up on an interface.
    fn up_at(end: &End, text: &str) -> Result<Policy, Box<dyn Error>> {
        Ok(end.netns().enter(|| Policy::up(end.name(), text).map_err(|error| error.to_string()))?)
    }

    /// The same in the calling thread's namespace.
    fn up(interface: &str, text: &str) -> Result<Policy, Box<dyn Error>> {
        let bpffs = Bpffs::new()?;
        let registry = Registry::options().bpffs(bpffs.path()).create()?;
        let up = packet_traits_deploy::Policy::from_text("bench.traits", text)?
            .on_interface(interface)
            .mode(XdpMode::Native)
            .up(&registry)?;
        Ok(Policy { deployment: up.deployment, _bpffs: bpffs })
    }

    fn dropped(&self) -> Result<u64, Box<dyn Error>> {
        let statistics = Statistics::of(&self.deployment)?.ok_or("what is up is no policy")?;
        Ok(statistics.rules.last().map_or(0, |rule| rule.count.packets))
    }
}
