//! One case: a link, rules at its receiver, and traffic that meets them.

use std::{error::Error, path::Path};

use libbpf_rs::libbpf_sys;
use packet_traits::{
    attach::XdpMode,
    bind::BoundObject,
    deployment::{Deployment, UpOptions},
    registry::Registry,
};
use packet_traits_lab::{Bpffs, End, Pair, VethOptions};
use packet_traits_policy::{
    check::{CheckOptions, Texts, check},
    compile::Compiler,
    emit::{EmitOptions, emit},
    manifest::Manifest,
};

use super::{
    super::traffic::Traffic,
    rules::{PORT, Shape},
};
use crate::deploy::{policy, statistics::Statistics};

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
    manifest: Manifest,
    // last, since everything is pinned in it
    _bpffs: Bpffs,
}

impl Subject {
    pub(super) fn new(shape: Shape, size: u16, place: Place) -> Result<Subject, Box<dyn Error>> {
        // frames that were sent without an skb reach a receiver that polls: one with GRO
        let pair = Pair::with(&VethOptions::new().gro(true))?;
        let policy = match place {
            Place::Xdp => Some(Policy::up_at(pair.rx(), shape.policy(size, "xdp"))?),
            Place::Tc => Some(Policy::up_at(pair.rx(), shape.policy(size, "tc ingress"))?),
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
    fn up_at(end: &End, text: String) -> Result<Policy, Box<dyn Error>> {
        Ok(end.netns().enter(|| Policy::up(end.ifindex(), text).map_err(|error| error.to_string()))?)
    }

    /// The same in the calling thread's namespace.
    fn up(interface: u32, text: String) -> Result<Policy, Box<dyn Error>> {
        let checked =
            check(Path::new("bench.traits"), &Texts::from_iter([("bench.traits", text)]), &CheckOptions::default())
                .map_err(|rejected| {
                    let said = rejected.diagnostics.iter().map(|one| one.render(&rejected.sources, false));
                    said.collect::<Vec<_>>().join("\n")
                })?;
        let emitted = emit(&checked.policy, &checked.sources, &EmitOptions::default())?;
        let object = Compiler::new(&libbpf_sys::API_HEADERS).compile(&emitted)?;
        let bpffs = Bpffs::new()?;
        let registry = Registry::options().bpffs(bpffs.path()).create()?;
        for spec in policy::keys(&emitted.manifest)? {
            registry.register(&spec)?;
        }
        let mut object = BoundObject::from_bytes(&object, "bench.traits", &registry)?;
        let options = UpOptions {
            interface: Some(interface),
            xdp_mode: XdpMode::Native,
            setup: policy::setup(
                &emitted.manifest,
                object.open_object_mut(),
                Some((interface, "the bench's interface")),
            )?,
            ..UpOptions::default()
        };
        let deployment = Deployment::up("bench", object, &registry, &options)?;
        Ok(Policy { deployment, manifest: emitted.manifest, _bpffs: bpffs })
    }

    fn dropped(&self) -> Result<u64, Box<dyn Error>> {
        let statistics = Statistics::read(&self.deployment, self.manifest.clone())?;
        Ok(statistics.rules.last().map_or(0, |rule| rule.count.packets))
    }
}
