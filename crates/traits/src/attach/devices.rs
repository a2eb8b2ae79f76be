//! Which interfaces there are, and which of them stand on others.

use std::{io, os::fd::BorrowedFd, time::Duration};

use super::rtnetlink::RouteSocket;
use crate::{
    doctor::netdev,
    netlink::{NetlinkSocket, attributes, u32_at},
};

// include/uapi/linux/if_link.h
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
// include/uapi/linux/rtnetlink.h
const RTMGRP_LINK: u32 = 1;
/// Bytes of `struct ifinfomsg`, include/uapi/linux/rtnetlink.h.
const IFINFOMSG: usize = 16;

/// The index of the loopback interface (`LOOPBACK_IFINDEX` in include/net/flow.h).
pub const LOOPBACK: u32 = 1;

/// An interface of a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Device {
    /// Its index.
    pub ifindex: u32,
    /// What it is called by `ip link add type`; empty for network cards and loopback.
    pub kind: String,
    /// The interface that it is a port of: a bridge, a bond, a VRF.
    pub master: Option<u32>,
    /// The interface that it stands on (a VLAN, a macvlan) or is joined with (a veth), if that is in the same namespace.
    pub link: Option<u32>,
    /// The same in another namespace: its index there, and the [number](namespace_number) of that namespace here.
    pub link_elsewhere: Option<(u32, u32)>,
}

impl Device {
    /// Whether it is one end of a veth.
    pub fn is_veth(&self) -> bool {
        self.kind == "veth"
    }
}

/// The interfaces of the calling thread's network namespace.
///
/// # Errors
/// The kernel does not list them.
pub fn devices() -> io::Result<Vec<Device>> {
    let replies = RouteSocket::open()?.links().map_err(|error| io::Error::from_raw_os_error(error.errno))?;
    Ok(replies.iter().filter_map(|reply| parse(reply)).collect())
}

/// Changes of the interfaces of the network namespace it was opened in: new ones, and such that were renamed, moved or removed.
#[derive(Debug)]
pub struct LinkChanges(NetlinkSocket);

impl LinkChanges {
    /// Those of the calling thread's network namespace, from now on.
    ///
    /// # Errors
    /// The kernel gives no netlink socket.
    pub fn open() -> io::Result<LinkChanges> {
        let socket = NetlinkSocket::open(None)?;
        socket.subscribe(RTMGRP_LINK)?;
        Ok(LinkChanges(socket))
    }

    /// Waits for one. `false`: there was none in time.
    ///
    /// # Errors
    /// The socket fails.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        self.0.wait(timeout)
    }
}

/// The number by which the calling thread's network namespace knows another one; `None` if it does not.
///
/// # Errors
/// The kernel does not say.
pub fn namespace_number(other: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    RouteSocket::open()?.namespace_number(other).map_err(|error| io::Error::from_raw_os_error(error.errno))
}

/// What is to be said where a veth has native XDP (`veth_xdp_set` in drivers/net/veth.c takes TSO from its other end).
pub const NATIVE_AT_VETH: &str = "native XDP keeps a veth's other end from sending large packets, which slows bulk TCP; \
                                  `--mode generic` does less (docs/bench.md)";

/// Whether an interface of that namespace is a veth. `false` if that cannot be told.
pub fn is_veth(ifindex: u32) -> bool {
    devices().is_ok_and(|found| found.iter().any(|device| device.ifindex == ifindex && device.is_veth()))
}

/// Whether packets are lost that an XDP program in native mode redirects to an interface of that namespace: its driver does
/// not send them. A veth does not unless its other end has XDP or GRO (`veth_set_xdp_features` in drivers/net/veth.c), which
/// kernels before 6.3 do not tell: there it is said of every veth.
pub fn loses_redirects(ifindex: u32) -> bool {
    match netdev::device(ifindex) {
        Ok(device) => device.xdp & netdev::XDP_NDO_XMIT == 0,
        Err(_) => is_veth(ifindex),
    }
}

fn parse(reply: &[u8]) -> Option<Device> {
    const INDEX: usize = 4;
    let mut device = Device { ifindex: u32_at(reply, INDEX)?, ..Device::default() };
    let mut elsewhere = None;
    for (type_, value) in attributes(reply.get(IFINFOMSG..)?) {
        match type_ {
            IFLA_LINK => device.link = u32_at(value, 0).filter(|index| *index != 0),
            IFLA_MASTER => device.master = u32_at(value, 0),
            IFLA_LINK_NETNSID => elsewhere = u32_at(value, 0),
            IFLA_LINKINFO => {
                if let Some((_, kind)) = attributes(value).find(|(type_, _)| *type_ == IFLA_INFO_KIND) {
                    device.kind = String::from_utf8_lossy(kind).trim_end_matches('\0').to_owned();
                }
            }
            _ => {}
        }
    }
    if let Some(number) = elsewhere {
        device.link_elsewhere = device.link.take().map(|index| (index, number));
    }
    Some(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_stands_alone() {
        let found = devices().unwrap();
        let loopback = found.iter().find(|device| device.ifindex == 1).unwrap();
        assert_eq!((loopback.kind.as_str(), loopback.master), ("", None), "{found:?}");
    }
}
