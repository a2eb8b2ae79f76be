//! A netkit pair between two namespaces (Linux 6.7). By netlink, since the `ip` of most distributions does not know it.

use std::os::fd::AsRawFd;

use crate::error::{Context, Result};
use crate::netns::Netns;
use crate::sys;

// include/uapi/linux/{netlink,rtnetlink,if_link,if_arp}.h
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLA_F_NESTED: u16 = 1 << 15;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_NETKIT_PEER_INFO: u16 = 1;
const IFLA_NETKIT_MODE: u16 = 5;
/// `struct ifinfomsg`
const IFINFO_LEN: usize = 16;
const HEADER_LEN: usize = 16;

/// What a netkit carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetkitMode {
    /// Ethernet frames (`NETKIT_L2`).
    L2,
    /// IP packets between interfaces that do not look at their Ethernet headers (`NETKIT_L3`).
    L3,
}

/// The two sides of a pair, the primary one first.
#[derive(Clone, Copy, Debug)]
pub struct NetkitPair;

impl NetkitPair {
    /// Makes a pair, one side in each namespace, under these names.
    ///
    /// # Errors
    /// EOPNOTSUPP if the kernel has no netkit; the names are taken.
    pub fn connect(sides: [(&Netns, &str); 2], mode: NetkitMode) -> Result<Self> {
        let mode = match mode {
            NetkitMode::L2 => 0u32, // include/uapi/linux/if_link.h
            NetkitMode::L3 => 1,
        };
        let [(primary, name), (peer_netns, peer)] = sides;
        let mut in_peer = vec![0; IFINFO_LEN];
        attribute(&mut in_peer, IFLA_IFNAME, &nul_terminated(peer));
        attribute(&mut in_peer, IFLA_NET_NS_FD, &peer_netns.fd().as_raw_fd().to_ne_bytes());
        let mut data = Vec::new();
        attribute(&mut data, IFLA_NETKIT_MODE, &mode.to_ne_bytes());
        attribute(&mut data, IFLA_NETKIT_PEER_INFO | NLA_F_NESTED, &in_peer);
        let mut info = Vec::new();
        attribute(&mut info, IFLA_INFO_KIND, b"netkit\0");
        attribute(&mut info, IFLA_INFO_DATA | NLA_F_NESTED, &data);
        let mut message = vec![0; HEADER_LEN + IFINFO_LEN];
        attribute(&mut message, IFLA_IFNAME, &nul_terminated(name));
        attribute(&mut message, IFLA_LINKINFO | NLA_F_NESTED, &info);
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let length = message.len() as u32;
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        message[6..8].copy_from_slice(&flags.to_ne_bytes());
        primary
            .enter(|| sys::route_request(&message))
            .context(|| format!("cannot make the netkit pair {name} and {peer}"))?;
        Ok(Self)
    }
}

fn nul_terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// Appends an attribute: its length and type, the value, and zeroes up to a multiple of four bytes.
fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = 4 + value.len();
    message.extend(u16::try_from(length).expect("an attribute of an interface is short").to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}
