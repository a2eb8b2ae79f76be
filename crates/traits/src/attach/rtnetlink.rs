//! The few route netlink messages that a clsact filter, and a route with a program, need.
//!
//! libbpf has calls for most of them, but no list of the filters, and it opens a socket per call. Numbers are from
//! include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls,lwtunnel}.h.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::hook::Direction;
pub(super) use crate::netlink::NetlinkError;
use crate::netlink::{
    Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NetlinkSocket, attributes, u32_at,
};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;

// include/uapi/linux/net_namespace.h
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// `struct rtgenmsg`, with its padding.
const RTGENMSG: usize = 4;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const TC_H_MIN_INGRESS: u32 = 0xfff2;
const TC_H_MIN_EGRESS: u32 = 0xfff3;
const TCMSG: usize = 20;

const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_ENCAP_TYPE: u16 = 21;
const RTA_ENCAP: u16 = 22;
const LWTUNNEL_ENCAP_BPF: u16 = 6;
const LWT_BPF_IN: u16 = 1;
const LWT_BPF_PROG_FD: u16 = 1;
const LWT_BPF_PROG_NAME: u16 = 2;

/// A filter of a clsact qdisc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) handle: u32,
    pub(super) priority: u16,
    /// The program's id; none if it is not a BPF filter, or the entry stands for a whole priority.
    pub(super) program: Option<u32>,
}

/// A route netlink socket, in the network namespace it was opened in.
#[derive(Debug)]
pub(crate) struct RouteSocket(NetlinkSocket);

impl RouteSocket {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        NetlinkSocket::open(None).map(Self)
    }

    /// The number by which the socket's network namespace knows this one; `None` if it does not.
    pub(super) fn namespace_number(&self, other: BorrowedFd<'_>) -> Result<Option<u32>, NetlinkError> {
        let mut message = Message::new(RTM_GETNSID, NLM_F_ACK);
        message.header(&[0; RTGENMSG]);
        message.attribute(NETNSA_FD, &other.as_raw_fd().to_ne_bytes());
        let replies = self.0.request(message, RTM_NEWNSID)?;
        let numbers = replies.iter().flat_map(|reply| attributes(reply.get(RTGENMSG..).unwrap_or_default()));
        let number = numbers.filter(|(type_, _)| *type_ == NETNSA_NSID).find_map(|(_, value)| u32_at(value, 0));
        // it is negative (NETNSA_NSID_NOT_ASSIGNED)
        Ok(number.filter(|number| i32::try_from(*number).is_ok()))
    }

    /// Adds a clsact qdisc; EEXIST if the interface has one.
    pub(super) fn add_clsact(&self, ifindex: u32) -> Result<(), NetlinkError> {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.change(clsact_qdisc(RTM_NEWQDISC, flags, ifindex))
    }

    /// Deletes the clsact qdisc with all filters on it.
    pub(super) fn delete_clsact(&self, ifindex: u32) -> Result<(), NetlinkError> {
        self.change(clsact_qdisc(RTM_DELQDISC, NLM_F_ACK, ifindex))
    }

    /// The kind of the qdisc that filters packets before they are queued: `clsact`, or the older `ingress`.
    pub(super) fn filtering_qdisc(&self, ifindex: u32) -> Result<Option<String>, NetlinkError> {
        let message = tc_message(RTM_GETQDISC, NLM_F_DUMP, [ifindex, 0, 0, 0]);
        let replies = self.0.request(message, RTM_NEWQDISC)?;
        // the kernel lists those of all interfaces
        let ours = |reply: &&Vec<u8>| u32_at(reply, 4) == Some(ifindex) && u32_at(reply, 12) == Some(TC_H_CLSACT);
        let Some(reply) = replies.iter().find(ours) else { return Ok(None) };
        let kind = attributes(reply.get(TCMSG..).unwrap_or_default()).find(|(type_, _)| *type_ == TCA_KIND);
        Ok(kind.map(|(_, kind)| String::from_utf8_lossy(kind).trim_end_matches('\0').to_owned()))
    }

    /// Adds a direct-action BPF filter, for all protocols. Priority 0 lets the kernel choose. Returns what was added.
    pub(super) fn add_filter(
        &self,
        ifindex: u32,
        direction: Direction,
        priority: u16,
        program: BorrowedFd<'_>,
        name: &str,
    ) -> Result<Filter, NetlinkError> {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL | NLM_F_ECHO;
        let mut message = tc_message(RTM_NEWTFILTER, flags, [ifindex, 0, parent(direction), info(priority)]);
        message.attribute(TCA_KIND, b"bpf\0");
        message.nested(TCA_OPTIONS, |message| {
            message.attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes());
            message.attribute(TCA_BPF_NAME, &[name.as_bytes(), b"\0"].concat());
            message.attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
        });
        let replies = self.0.request(message, RTM_NEWTFILTER)?;
        replies.iter().find_map(|reply| parse_filter(reply)).ok_or_else(|| NetlinkError {
            errno: libc::EPROTO,
            message: "the kernel did not say which filter it added".into(),
        })
    }

    /// Deletes one BPF filter.
    pub(super) fn delete_filter(&self, ifindex: u32, direction: Direction, filter: Filter) -> Result<(), NetlinkError> {
        let place = [ifindex, filter.handle, parent(direction), info(filter.priority)];
        let mut message = tc_message(RTM_DELTFILTER, NLM_F_ACK, place);
        message.attribute(TCA_KIND, b"bpf\0");
        self.change(message)
    }

    /// Lists the filters of one direction, of any kind. Empty if there is no clsact qdisc.
    pub(super) fn filters(&self, ifindex: u32, direction: Direction) -> Result<Vec<Filter>, NetlinkError> {
        let message = tc_message(RTM_GETTFILTER, NLM_F_DUMP, [ifindex, 0, parent(direction), 0]);
        let replies = self.0.request(message, RTM_NEWTFILTER)?;
        Ok(replies.iter().filter_map(|reply| parse_filter(reply)).collect())
    }

    /// Adds a route to one IPv4 address over an interface that is up, on which packets that come in over it meet an
    /// `lwt_in` program.
    pub(crate) fn add_route_with_program(
        &self,
        to: Ipv4Addr,
        ifindex: u32,
        program: BorrowedFd<'_>,
    ) -> Result<(), NetlinkError> {
        let mut message = route_message(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, to, ifindex);
        message.attribute(RTA_ENCAP_TYPE, &LWTUNNEL_ENCAP_BPF.to_ne_bytes());
        message.nested(RTA_ENCAP, |message| {
            message.nested(LWT_BPF_IN, |message| {
                message.attribute(LWT_BPF_PROG_FD, &program.as_raw_fd().to_ne_bytes());
                message.attribute(LWT_BPF_PROG_NAME, b"route\0");
            });
        });
        self.change(message)
    }

    /// Deletes the route that [`add_route_with_program`](Self::add_route_with_program) added.
    pub(crate) fn delete_route(&self, to: Ipv4Addr, ifindex: u32) -> Result<(), NetlinkError> {
        self.change(route_message(RTM_DELROUTE, NLM_F_ACK, to, ifindex))
    }

    /// Lists the interfaces: a `struct ifinfomsg` and attributes each.
    pub(super) fn links(&self) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let mut message = Message::new(RTM_GETLINK, NLM_F_DUMP);
        message.header(&[0; 16]);
        self.0.request(message, RTM_NEWLINK)
    }

    /// Sends a request that is answered by an acknowledgement only.
    fn change(&self, message: Message) -> Result<(), NetlinkError> {
        self.0.request(message, 0).map(drop)
    }
}

fn parent(direction: Direction) -> u32 {
    CLSACT_HANDLE
        | match direction {
            Direction::Ingress => TC_H_MIN_INGRESS,
            Direction::Egress => TC_H_MIN_EGRESS,
        }
}

/// `tcm_info`: the priority, and the protocol in network order.
fn info(priority: u16) -> u32 {
    u32::from(priority) << 16 | u32::from((libc::ETH_P_ALL as u16).to_be())
}

/// A request with a `struct tcmsg` (include/uapi/linux/rtnetlink.h): interface, handle, parent, info.
fn tc_message(type_: u16, flags: u16, [ifindex, handle, parent, info]: [u32; 4]) -> Message {
    let mut message = Message::new(type_, flags);
    for word in [0, ifindex, handle, parent, info] {
        message.header(&word.to_ne_bytes());
    }
    message
}

fn clsact_qdisc(type_: u16, flags: u16, ifindex: u32) -> Message {
    let mut message = tc_message(type_, flags, [ifindex, CLSACT_HANDLE, TC_H_CLSACT, 0]);
    message.attribute(TCA_KIND, b"clsact\0");
    message
}

/// A request with a `struct rtmsg` (include/uapi/linux/rtnetlink.h) for a route to one address.
fn route_message(type_: u16, flags: u16, to: Ipv4Addr, ifindex: u32) -> Message {
    let mut message = Message::new(type_, flags);
    let (family, bits) = (libc::AF_INET as u8, 32);
    message.header(&[family, bits, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_LINK, RTN_UNICAST]);
    message.header(&0u32.to_ne_bytes());
    message.attribute(RTA_DST, &to.octets());
    message.attribute(RTA_OIF, &ifindex.to_ne_bytes());
    message
}

fn parse_filter(payload: &[u8]) -> Option<Filter> {
    let handle = u32_at(payload, 8)?;
    let info = u32_at(payload, 16)?;
    let options = attributes(payload.get(TCMSG..)?).find(|(type_, _)| *type_ == TCA_OPTIONS);
    let program = options.and_then(|(_, options)| {
        attributes(options).find(|(type_, _)| *type_ == TCA_BPF_ID).and_then(|(_, id)| u32_at(id, 0))
    });
    Some(Filter { handle, priority: (info >> 16) as u16, program })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::first_message;

    #[test]
    fn nested_attributes_parse_back() {
        let mut message = tc_message(RTM_NEWTFILTER, 0, [7, 0x12, parent(Direction::Egress), info(49152)]);
        message.attribute(TCA_KIND, b"bpf\0");
        message.nested(TCA_OPTIONS, |message| {
            message.attribute(TCA_BPF_NAME, b"odd\0\0");
            message.attribute(TCA_BPF_ID, &99u32.to_ne_bytes());
        });
        let bytes = message.finish();
        let (type_, payload) = first_message(&bytes);
        assert_eq!(type_, RTM_NEWTFILTER);
        let filter = Filter { handle: 0x12, priority: 49152, program: Some(99) };
        assert_eq!(parse_filter(payload), Some(filter));
    }
}
