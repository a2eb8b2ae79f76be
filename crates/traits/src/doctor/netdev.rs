//! What the kernel tells of a device's XDP, by generic netlink (include/uapi/linux/netdev.h).

use crate::insn::words;
use crate::netlink::{Message, NLM_F_ACK, NetlinkError, NetlinkSocket, attributes, u16_at, u64_at};

// include/uapi/linux/genetlink.h
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// `struct genlmsghdr`
const HEADER: usize = 4;

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_A_DEV_XDP_RX_METADATA_FEATURES: u16 = 5;

/// `NETDEV_XDP_ACT_BASIC`: the driver has native XDP.
pub(crate) const XDP_BASIC: u64 = 1 << 0;

/// `NETDEV_XDP_ACT_NDO_XMIT`: the driver sends what native XDP redirects to it.
pub(crate) const XDP_NDO_XMIT: u64 = 1 << 2;

/// What is told of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    /// Bits of `enum netdev_xdp_act`.
    pub(crate) xdp: u64,
    /// Bits of `enum netdev_xdp_rx_metadata`.
    pub(crate) hints: u64,
}

/// Asks about an interface of the calling thread's network namespace.
pub(crate) fn device(ifindex: u32) -> Result<Device, String> {
    let refused = |error: NetlinkError| format!("the kernel does not tell ({}; {})", words(error.errno), error.message);
    let protocol = Some(rustix::net::netlink::GENERIC);
    let socket = NetlinkSocket::open(protocol).map_err(|error| format!("generic netlink: {error}"))?;
    let family = match ask(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, b"netdev\0") {
        Err(NetlinkError { errno: libc::ENOENT, .. }) => {
            return Err("this kernel does not tell; Linux 6.3 or later does".to_owned());
        }
        reply => reply.map_err(refused)?,
    };
    let family = find(&family, CTRL_ATTR_FAMILY_ID).and_then(|id| u16_at(id, 0));
    let family = family.ok_or("the kernel does not tell the number of the netlink family netdev")?;
    let reply =
        ask(&socket, family, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes()).map_err(refused)?;
    let bits = |type_| find(&reply, type_).and_then(|value| u64_at(value, 0)).unwrap_or(0);
    Ok(Device { xdp: bits(NETDEV_A_DEV_XDP_FEATURES), hints: bits(NETDEV_A_DEV_XDP_RX_METADATA_FEATURES) })
}

/// Sends a command with one attribute, and returns the attributes of the answer.
fn ask(
    socket: &NetlinkSocket,
    family: u16,
    command: u8,
    attribute: u16,
    value: &[u8],
) -> Result<Vec<u8>, NetlinkError> {
    let mut message = Message::new(family, NLM_F_ACK);
    message.header(&[command, 1, 0, 0]);
    message.attribute(attribute, value);
    let reply = socket.request(message, family)?.into_iter().next().unwrap_or_default();
    Ok(reply.get(HEADER..).unwrap_or_default().to_vec())
}

fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(type_, _)| *type_ == wanted).map(|(_, value)| value)
}
