//! Netlink: sending a request and taking the answer apart. What the messages of one family say is in the module that
//! speaks it.
//!
//! A socket belongs to the network namespace it was opened in, so one that is kept works on the right namespace,
//! whichever the calling thread is in later. Numbers are from include/uapi/linux/netlink.h.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, recv,
    send, socket_with,
};

const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_ECHO: u16 = 0x8;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSG_HEADER: usize = 16;
const NLA_HEADER: usize = 4;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A refused request: the errno, and the kernel's own words where it has some (extended acknowledgement).
#[derive(Debug)]
pub(crate) struct NetlinkError {
    pub(crate) errno: i32,
    pub(crate) message: String,
}

impl From<io::Error> for NetlinkError {
    fn from(error: io::Error) -> Self {
        Self { errno: error.raw_os_error().unwrap_or(libc::EIO), message: "the netlink socket failed".into() }
    }
}

impl From<Errno> for NetlinkError {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// A netlink socket, in the network namespace it was opened in.
#[derive(Debug)]
pub(crate) struct NetlinkSocket {
    fd: OwnedFd,
}

impl NetlinkSocket {
    /// Opens a socket in the calling thread's network namespace, of a protocol of [`rustix::net::netlink`] or else of
    /// NETLINK_ROUTE.
    pub(crate) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        enable(fd.as_fd(), libc::NETLINK_EXT_ACK)?;
        enable(fd.as_fd(), libc::NETLINK_CAP_ACK)?;
        Ok(Self { fd })
    }

    /// Sends a request and returns the messages of type `wanted` that came before its acknowledgement or the end of the
    /// dump.
    pub(crate) fn request(&self, message: Message, wanted: u16) -> Result<Vec<Vec<u8>>, NetlinkError> {
        send(&self.fd, &message.finish(), SendFlags::empty())?;
        let mut replies = Vec::new();
        // The kernel fills dumps in pieces of at most 32 KiB (net/netlink/af_netlink.c, `netlink_dump`).
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            let received = match recv(&self.fd, &mut buffer[..], RecvFlags::empty()) {
                Ok((received, _)) => received,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for (type_, flags, payload) in messages(&buffer[..received]) {
                match type_ {
                    NLMSG_DONE => return Ok(replies),
                    NLMSG_ERROR => match refusal(flags, payload) {
                        Some(error) => return Err(error),
                        None => return Ok(replies),
                    },
                    _ if type_ == wanted => replies.push(payload.to_vec()),
                    _ => {}
                }
            }
        }
    }

    /// Has the kernel send what it tells these groups.
    pub(crate) fn subscribe(&self, groups: u32) -> io::Result<()> {
        Ok(bind(&self.fd, &SocketAddrNetlink::new(0, groups))?)
    }

    /// Waits for messages and takes what there is, without reading them. `false`: nothing came in time.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<bool> {
        // Without a timeout if it is longer than the kernel can count.
        let timeout = Timespec::try_from(timeout).ok();
        match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut buffer = [0; 4096];
        loop {
            match recv(&self.fd, &mut buffer, RecvFlags::DONTWAIT) {
                // some were lost, so there were some
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(true),
                Err(error) => return Err(error.into()),
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

/// The attributes in a payload, by type.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let type_ = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let payload = bytes.get(NLA_HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((type_, payload))
    })
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*bytes))
}

/// A request under construction.
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// A request of this type, without a payload.
    pub(crate) fn new(type_: u16, flags: u16) -> Self {
        let mut bytes = vec![0; NLMSG_HEADER];
        bytes[4..6].copy_from_slice(&type_.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        Self(bytes)
    }

    /// Appends the family's own header, a multiple of four bytes.
    pub(crate) fn header(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Appends an attribute.
    pub(crate) fn attribute(&mut self, type_: u16, payload: &[u8]) {
        let len = (NLA_HEADER + payload.len()) as u16;
        self.0.extend(len.to_ne_bytes());
        self.0.extend(type_.to_ne_bytes());
        self.0.extend(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Appends an attribute of attributes.
    pub(crate) fn nested(&mut self, type_: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.attribute(type_ | NLA_F_NESTED, &[]);
        fill(self);
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// The request's bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

/// The type and the payload of the first message in `bytes`, for tests of those that make messages.
#[cfg(test)]
pub(crate) fn first_message(bytes: &[u8]) -> (u16, &[u8]) {
    let (type_, flags, payload) = messages(bytes).next().expect("one message");
    assert_eq!(flags & NLM_F_REQUEST, NLM_F_REQUEST);
    (type_, payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_messages_end_the_list() {
        let bytes = Message::new(NLMSG_DONE, 0).finish();
        for len in 0..bytes.len() {
            assert_eq!(messages(&bytes[..len]).count(), 0);
        }
    }
}
