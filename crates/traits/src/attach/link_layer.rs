//! What the packets of an interface begin with.

use std::{fmt, io, mem::zeroed, os::fd::AsRawFd};

use super::target::{interface_name, udp_socket};

/// `ARPHRD_RAWIP` of include/uapi/linux/if_arp.h.
const RAWIP: u16 = 519;

/// What XDP and TC programs find at the front of an interface's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LinkLayer {
    /// An Ethernet header.
    Ethernet,
    /// The header of IPv4 or IPv6: tun, WireGuard, PPP, IPIP, SIT.
    None,
    /// Something else, or not always the same: a type of include/uapi/linux/if_arp.h.
    Other(u16),
}

impl LinkLayer {
    /// That of an interface in the calling thread's network namespace.
    ///
    /// # Errors
    /// ENODEV if there is none with this index.
    pub fn of(ifindex: u32) -> io::Result<LinkLayer> {
        let name = interface_name(ifindex).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        // SAFETY: an ifreq is valid when it is all zeroes.
        let mut request: libc::ifreq = unsafe { zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        let socket = udp_socket()?;
        // SAFETY: SIOCGIFHWADDR reads the name, which is NUL-terminated, and writes the ifreq.
        if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: SIOCGIFHWADDR has filled this member of the union.
        Ok(LinkLayer::from(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family }))
    }
}

impl From<u16> for LinkLayer {
    /// Of a type of include/uapi/linux/if_arp.h. GRE around IP is of the third kind: its driver puts a header in front of
    /// what it sends if the tunnel has no remote address.
    fn from(device_type: u16) -> LinkLayer {
        match device_type {
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => LinkLayer::Ethernet,
            libc::ARPHRD_NONE
            | libc::ARPHRD_PPP
            | RAWIP
            | libc::ARPHRD_TUNNEL
            | libc::ARPHRD_TUNNEL6
            | libc::ARPHRD_SIT => LinkLayer::None,
            other => LinkLayer::Other(other),
        }
    }
}

impl fmt::Display for LinkLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkLayer::Ethernet => f.write_str("an Ethernet header"),
            LinkLayer::None => f.write_str("an IP header"),
            LinkLayer::Other(device_type) => write!(f, "a header of device type {device_type}"),
        }
    }
}
