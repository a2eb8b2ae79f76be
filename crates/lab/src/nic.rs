//! Two network cards joined outside this machine: those that `tools/on-kernel.sh` puts into an emulated one.

use std::fs;

use crate::error::{Context, Error, Result};
use crate::netns::Netns;
use packet_traits_core::Mac;

/// How the addresses of the cards begin; a byte for the pair and one for the card follow.
const PREFIX: [u8; 4] = [0x02, 0x4e, 0x49, 0x43];

/// Two cards of one driver, in this process's network namespace. They are moved, used and come back when the namespaces
/// they are in are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicPair {
    driver: String,
    names: [String; 2],
}

impl NicPair {
    /// The pairs of this machine; none, unless it is the emulated one.
    ///
    /// # Errors
    /// `/sys` is not mounted.
    pub fn all() -> Result<Vec<Self>> {
        let host = Netns::open("/proc/thread-self/ns/net")?;
        let mut cards = Vec::new();
        for name in host.interfaces()? {
            if let Some(Mac([a, b, c, d, pair, card])) = host.mac(&name)?
                && [a, b, c, d] == PREFIX
            {
                let driver = fs::read_link(format!("/sys/class/net/{name}/device/driver"))
                    .context(|| format!("cannot find the driver of interface {name}"))?;
                let driver = driver.file_name().unwrap_or_default().to_string_lossy().into_owned();
                cards.push((pair, card, driver, name));
            }
        }
        cards.sort();
        let pairs = cards.chunk_by(|one, other| one.0 == other.0);
        Ok(pairs
            .filter_map(|pair| match pair {
                [(_, _, driver, one), (_, _, _, other)] => {
                    Some(Self { driver: driver.clone(), names: [one.clone(), other.clone()] })
                }
                _ => None,
            })
            .collect())
    }

    /// The pair of cards of one driver (`virtio_net`, `e1000e`).
    ///
    /// # Errors
    /// There is none.
    pub fn of(driver: &str) -> Result<Self> {
        Self::all()?.into_iter().find(|pair| pair.driver == driver).ok_or_else(|| {
            Error::other(
                format!("cannot find two network cards of {driver}"),
                "this machine has none that are joined; ON_KERNEL_NICS of tools/on-kernel.sh puts them into an emulated one",
            )
        })
    }

    /// The kernel's driver of both.
    #[must_use]
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// Moves one card into each namespace, under these names.
    ///
    /// # Errors
    /// What `ip` refuses: the cards are in use elsewhere, the names are taken.
    pub fn move_to(&self, sides: [(&Netns, &str); 2]) -> Result<()> {
        let host = Netns::open("/proc/thread-self/ns/net")?;
        for (card, (netns, name)) in self.names.iter().zip(sides) {
            host.ip(&format!("link set {card} down"))?;
            host.ip(&format!("link set {card} netns {} name {name}", netns.path().display()))?;
        }
        Ok(())
    }
}
