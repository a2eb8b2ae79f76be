//! The few route netlink messages that a clsact filter needs.
//!
//! libbpf has calls for most of them, but no list of the filters, and it opens a socket per call. A socket belongs to
//! the network namespace it was opened in, so one that is kept removes the filter from the right namespace, whichever
//! the dropping thread is in. Numbers are from include/uapi/linux/{netlink,rtnetlink,pkt_sched,pkt_cls}.h.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::error::errno_of;
use super::hook::Direction;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_ECHO: u16 = 0x8;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSG_HEADER: usize = 16;
const NLA_HEADER: usize = 4;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

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

/// A refused request: the errno, and the kernel's own words where it has some (extended acknowledgement).
#[derive(Debug)]
pub(super) struct NetlinkError {
    pub(super) errno: i32,
    pub(super) message: String,
}

impl From<io::Error> for NetlinkError {
    fn from(error: io::Error) -> Self {
        Self { errno: errno_of(&error), message: "the route netlink socket failed".into() }
    }
}

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
pub(super) struct RouteSocket {
    fd: OwnedFd,
}

impl RouteSocket {
    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: takes numbers, returns a new descriptor or -1.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is new and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        enable(fd.as_fd(), libc::NETLINK_EXT_ACK)?;
        enable(fd.as_fd(), libc::NETLINK_CAP_ACK)?;
        Ok(Self { fd })
    }

    /// Adds a clsact qdisc; EEXIST if the interface has one.
    pub(super) fn add_clsact(&self, ifindex: u32) -> Result<(), NetlinkError> {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.request(clsact_qdisc(RTM_NEWQDISC, flags, ifindex)).map(drop)
    }

    /// Deletes the clsact qdisc with all filters on it.
    pub(super) fn delete_clsact(&self, ifindex: u32) -> Result<(), NetlinkError> {
        self.request(clsact_qdisc(RTM_DELQDISC, NLM_F_ACK, ifindex)).map(drop)
    }

    /// The kind of the qdisc that filters packets before they are queued: `clsact`, or the older `ingress`.
    pub(super) fn filtering_qdisc(&self, ifindex: u32) -> Result<Option<String>, NetlinkError> {
        let mut message = Message::new(RTM_GETQDISC, NLM_F_DUMP);
        message.tcmsg(ifindex, 0, 0, 0);
        let replies = self.request(message)?;
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
        let mut message = Message::new(RTM_NEWTFILTER, flags);
        message.tcmsg(ifindex, 0, parent(direction), info(priority));
        message.attribute(TCA_KIND, b"bpf\0");
        message.nested(TCA_OPTIONS, |message| {
            message.attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes());
            message.attribute(TCA_BPF_NAME, &[name.as_bytes(), b"\0"].concat());
            message.attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
        });
        let replies = self.request(message)?;
        replies.iter().find_map(|reply| parse_filter(reply)).ok_or_else(|| NetlinkError {
            errno: libc::EPROTO,
            message: "the kernel did not say which filter it added".into(),
        })
    }

    /// Deletes one BPF filter.
    pub(super) fn delete_filter(&self, ifindex: u32, direction: Direction, filter: Filter) -> Result<(), NetlinkError> {
        let mut message = Message::new(RTM_DELTFILTER, NLM_F_ACK);
        message.tcmsg(ifindex, filter.handle, parent(direction), info(filter.priority));
        message.attribute(TCA_KIND, b"bpf\0");
        self.request(message).map(drop)
    }

    /// Lists the filters of one direction, of any kind. Empty if there is no clsact qdisc.
    pub(super) fn filters(&self, ifindex: u32, direction: Direction) -> Result<Vec<Filter>, NetlinkError> {
        let mut message = Message::new(RTM_GETTFILTER, NLM_F_DUMP);
        message.tcmsg(ifindex, 0, parent(direction), 0);
        let replies = self.request(message)?;
        Ok(replies.iter().filter_map(|reply| parse_filter(reply)).collect())
    }

    /// Sends a request and returns the filters and qdiscs that came before its acknowledgement or the end of the dump.
    fn request(&self, message: Message) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let message = message.finish();
        // SAFETY: the pointer and length are those of `message`, which outlives the call.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error().into());
        }
        let mut replies = Vec::new();
        // The kernel fills dumps in pieces of at most 32 KiB (net/netlink/af_netlink.c, `netlink_dump`).
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            // SAFETY: `buffer` is writable for the length given.
            let received = unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            let Ok(received) = usize::try_from(received) else {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error.into());
            };
            for (type_, flags, payload) in messages(&buffer[..received]) {
                match type_ {
                    NLMSG_DONE => return Ok(replies),
                    NLMSG_ERROR => match refusal(flags, payload) {
                        Some(error) => return Err(error),
                        None => return Ok(replies),
                    },
                    RTM_NEWTFILTER | RTM_NEWQDISC => replies.push(payload.to_vec()),
                    _ => {}
                }
            }
        }
    }
}

fn enable(fd: BorrowedFd<'_>, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the value is an int and its size is given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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

fn clsact_qdisc(type_: u16, flags: u16, ifindex: u32) -> Message {
    let mut message = Message::new(type_, flags);
    message.tcmsg(ifindex, CLSACT_HANDLE, TC_H_CLSACT, 0);
    message.attribute(TCA_KIND, b"clsact\0");
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

/// The error in an NLMSG_ERROR message; none if it is an acknowledgement.
fn refusal(flags: u16, payload: &[u8]) -> Option<NetlinkError> {
    let errno = u32_at(payload, 0).map_or(libc::EPROTO, u32::cast_signed).saturating_neg();
    if errno == 0 {
        return None;
    }
    // With NETLINK_CAP_ACK only the header of the request stands between the errno and the attributes.
    let attributes_at = (flags & NLM_F_ACK_TLVS != 0).then_some(4 + NLMSG_HEADER);
    let message = attributes_at
        .and_then(|at| payload.get(at..))
        .and_then(|tail| attributes(tail).find(|(type_, _)| *type_ == NLMSGERR_ATTR_MSG))
        .map_or_else(
            || "the kernel refused the request".into(),
            |(_, text)| {
                let text = String::from_utf8_lossy(text);
                format!("the kernel says: {}", text.trim_end_matches(['\0', '.']))
            },
        );
    Some(NetlinkError { errno, message })
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u32_at(bytes, 0)? as usize;
        let (type_, flags) = (u16_at(bytes, 4)?, u16_at(bytes, 6)?);
        let payload = bytes.get(NLMSG_HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((type_, flags, payload))
    })
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let type_ = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let payload = bytes.get(NLA_HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((type_, payload))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// A request under construction.
struct Message(Vec<u8>);

impl Message {
    fn new(type_: u16, flags: u16) -> Self {
        let mut bytes = vec![0; NLMSG_HEADER];
        bytes[4..6].copy_from_slice(&type_.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        Self(bytes)
    }

    /// `struct tcmsg`, include/uapi/linux/rtnetlink.h.
    fn tcmsg(&mut self, ifindex: u32, handle: u32, parent: u32, info: u32) {
        for word in [0, ifindex, handle, parent, info] {
            self.0.extend(word.to_ne_bytes());
        }
    }

    fn attribute(&mut self, type_: u16, payload: &[u8]) {
        let len = (NLA_HEADER + payload.len()) as u16;
        self.0.extend(len.to_ne_bytes());
        self.0.extend(type_.to_ne_bytes());
        self.0.extend(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn nested(&mut self, type_: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.attribute(type_ | NLA_F_NESTED, &[]);
        fill(self);
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_attributes_parse_back() {
        let mut message = Message::new(RTM_NEWTFILTER, 0);
        message.tcmsg(7, 0x12, parent(Direction::Egress), info(49152));
        message.attribute(TCA_KIND, b"bpf\0");
        message.nested(TCA_OPTIONS, |message| {
            message.attribute(TCA_BPF_NAME, b"odd\0\0");
            message.attribute(TCA_BPF_ID, &99u32.to_ne_bytes());
        });
        let bytes = message.finish();
        let (type_, flags, payload) = messages(&bytes).next().expect("one message");
        assert_eq!((type_, flags), (RTM_NEWTFILTER, NLM_F_REQUEST));
        let filter = Filter { handle: 0x12, priority: 49152, program: Some(99) };
        assert_eq!(parse_filter(payload), Some(filter));
    }

    #[test]
    fn truncated_messages_end_the_list() {
        let bytes = Message::new(NLMSG_DONE, 0).finish();
        for len in 0..bytes.len() {
            assert_eq!(messages(&bytes[..len]).count(), 0);
        }
    }
}
