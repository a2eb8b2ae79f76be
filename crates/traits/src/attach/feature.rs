//! Kernel features that attaching depends on, and the version that brought each.

use std::fmt;

/// A kernel feature that [`AttachError::Unsupported`](super::AttachError::Unsupported) and
/// [`BindError::Unsupported`](crate::bind::BindError::Unsupported) can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Feature {
    /// `bpf_xdp_adjust_meta()`: metadata in front of a packet.
    XdpMetadata,
    /// More than 32 bytes of that metadata.
    LongXdpMetadata,
    /// XDP programs held by a link.
    XdpLink,
    /// TC programs held by a link (TCX).
    Tcx,
    /// Functions of the driver that give an XDP program what the network card says of a packet.
    XdpHints,
    /// Netfilter programs.
    NetfilterLink,
    /// Reassembly of IP fragments before a netfilter program sees them.
    NetfilterDefrag,
    /// Cgroup programs held by a link.
    CgroupLink,
    /// Programs in DEVMAP entries.
    DevmapProgram,
    /// Programs in CPUMAP entries.
    CpumapProgram,
}

impl Feature {
    /// The first mainline version that has the feature, as (major, minor).
    pub const fn since(self) -> (u32, u32) {
        match self {
            Self::XdpMetadata => (4, 15),
            Self::LongXdpMetadata => (6, 8),
            Self::XdpLink => (5, 9),
            Self::Tcx => (6, 6),
            Self::XdpHints => (6, 3),
            Self::NetfilterLink => (6, 4),
            Self::NetfilterDefrag => (6, 6),
            Self::CgroupLink => (5, 7),
            Self::DevmapProgram => (5, 8),
            Self::CpumapProgram => (5, 9),
        }
    }

    /// The kernel configuration symbol that can switch the feature off on a new enough kernel.
    pub const fn config(self) -> &'static str {
        match self {
            Self::XdpMetadata
            | Self::LongXdpMetadata
            | Self::XdpLink
            | Self::XdpHints
            | Self::DevmapProgram
            | Self::CpumapProgram => "CONFIG_NET",
            Self::Tcx => "CONFIG_NET_XGRESS",
            Self::NetfilterLink => "CONFIG_NETFILTER_BPF_LINK",
            Self::NetfilterDefrag => "CONFIG_NF_DEFRAG_IPV4 / CONFIG_NF_DEFRAG_IPV6",
            Self::CgroupLink => "CONFIG_CGROUP_BPF",
        }
    }

    /// Whether the running kernel's version says that the feature is there; no if the version cannot be read.
    ///
    /// Only for explaining a failure that does not say whether the feature was missing: distributions backport, so a
    /// feature may be there although the version says no.
    pub(super) fn expected_here(self) -> bool {
        version(&kernel_release()).is_some_and(|running| running >= self.since())
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::XdpMetadata => "XDP metadata",
            Self::LongXdpMetadata => "more than 32 bytes of XDP metadata",
            Self::XdpLink => "an XDP link",
            Self::Tcx => "TCX",
            Self::XdpHints => "an XDP program that reads what the network card says of packets",
            Self::NetfilterLink => "a netfilter link",
            Self::NetfilterDefrag => "defragmentation for a netfilter link",
            Self::CgroupLink => "a cgroup link",
            Self::DevmapProgram => "a program in a DEVMAP entry",
            Self::CpumapProgram => "a program in a CPUMAP entry",
        };
        let (major, minor) = self.since();
        write!(f, "{name} needs Linux {major}.{minor} or newer")
    }
}

/// The running kernel's release, as `uname -r` prints it.
pub(crate) fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_strings_of_distributions_parse() {
        assert_eq!(version("6.12.48+deb13-amd64"), Some((6, 12)));
        assert_eq!(version("5.15.0-105-generic"), Some((5, 15)));
        assert_eq!(version("6.1"), Some((6, 1)));
        assert_eq!(version("unknown"), None);
    }
}
