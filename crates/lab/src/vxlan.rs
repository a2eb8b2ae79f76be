//! A VXLAN tunnel over a link: one VXLAN device on each side, with inner addresses of their own.

use crate::end::{End, EndSpec, Family};
use crate::error::Result;
use crate::veth::VethPair;

/// The UDP port of VXLAN (RFC 7348 section 5).
pub const VXLAN_PORT: u16 = 4789;

/// How a tunnel is made.
#[derive(Clone, Debug)]
pub struct VxlanOptions {
    underlay: Family,
    vni: u32,
    udp_checksum: bool,
}

impl VxlanOptions {
    /// VNI 77 over the given underlay, outer UDP checksums on.
    #[must_use]
    pub fn new(underlay: Family) -> Self {
        Self { underlay, vni: 77, udp_checksum: true }
    }

    /// Sets the network identifier, 24 bits.
    #[must_use]
    pub fn vni(mut self, vni: u32) -> Self {
        self.vni = vni;
        self
    }

    /// Sends the outer UDP checksum, or zero; over IPv6 also accepts zero (RFC 6935).
    #[must_use]
    pub fn udp_checksum(mut self, on: bool) -> Self {
        self.udp_checksum = on;
        self
    }
}

/// The two inner sides of a tunnel.
#[derive(Clone, Debug)]
pub struct VxlanPair {
    left: End,
    right: End,
    vni: u32,
}

impl VxlanPair {
    /// Makes a VXLAN device on each side of `link`, each with the other as its only remote and permanent neighbour.
    ///
    /// # Errors
    /// What `ip` refuses: names that are taken, a VNI above 24 bits.
    pub fn connect(link: &VethPair, left: &EndSpec, right: &EndSpec, options: &VxlanOptions) -> Result<Self> {
        let VxlanOptions { underlay, vni, udp_checksum } = *options;
        let checksum = match (underlay, udp_checksum) {
            (Family::V4, true) => "udpcsum",
            (Family::V4, false) => "noudpcsum",
            (Family::V6, true) => "noudp6zerocsumtx noudp6zerocsumrx",
            (Family::V6, false) => "udp6zerocsumtx udp6zerocsumrx",
        };
        for (local, remote, spec) in [(link.left(), link.right(), left), (link.right(), link.left(), right)] {
            local.netns().ip(&format!(
                "link add {name} address {mac} type vxlan id {vni} dev {device} local {from} remote {to} \
                 dstport {VXLAN_PORT} nolearning {checksum}",
                name = spec.name,
                mac = spec.mac,
                device = local.name(),
                from = local.ip(underlay),
                to = remote.ip(underlay),
            ))?;
        }
        let [left, right] = End::configure([(link.left().netns(), left), (link.right().netns(), right)])?;
        Ok(Self { left, right, vni })
    }

    /// The VXLAN device on the link's left side.
    #[must_use]
    pub fn left(&self) -> &End {
        &self.left
    }

    /// The VXLAN device on the link's right side.
    #[must_use]
    pub fn right(&self) -> &End {
        &self.right
    }

    /// The network identifier.
    #[must_use]
    pub fn vni(&self) -> u32 {
        self.vni
    }
}
