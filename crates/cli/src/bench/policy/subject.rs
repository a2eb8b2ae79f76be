//! One case: a link, rules at its receiver, and traffic that meets them.

use std::error::Error;

use packet_traits_lab::{Pair, VethOptions};

use super::{PACKETS, rules::Shape, traffic::Traffic};

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
    pub(super) const ALL: [Place; 1] = [Place::Nft];

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
    pair: Pair,
}

impl Subject {
    pub(super) fn new(shape: Shape, size: u16, place: Place) -> Result<Subject, Box<dyn Error>> {
        // frames without an skb reach the receiver if it polls, with XDP or with GRO
        let pair = Pair::with(&VethOptions::new().gro(true))?;
        match place {
            Place::Nft => {
                pair.rx().netns().nft(&shape.nftables(size, pair.rx().name()))?;
            }
            Place::Xdp | Place::Tc => {}
        }
        Ok(Subject { shape, size, place, traffic: Traffic::new(&pair)?, pair })
    }

    pub(super) fn ns_per_packet(&self) -> Result<f64, Box<dyn Error>> {
        let before = self.dropped()?;
        let took = self.traffic.send(PACKETS)?;
        let dropped = self.dropped()? - before;
        if dropped != u64::from(PACKETS) {
            return Err(format!("{} of {PACKETS} packets were dropped", dropped).into());
        }
        Ok(took.as_nanos() as f64 / f64::from(PACKETS))
    }

    fn dropped(&self) -> Result<u64, Box<dyn Error>> {
        let listed = self.pair.rx().netns().nft("list table netdev bench")?;
        let counts =
            listed.lines().filter_map(|l| l.split("counter packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok());
        Ok(counts.sum())
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
