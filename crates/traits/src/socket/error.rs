//! Why an application did not get, or did not set, traits.

use std::{
    fmt, fs, io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    path::{Path, PathBuf},
};

use crate::core::{Key, KeyName, SetError, TypeMismatch};

use super::{
    abi::{self, RCV_TRAITS, SOL_TRAITS, traits_receive},
    sockopt,
};

/// What was tried on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// `set RCV_TRAITS`, `receive a datagram`.
    pub action: &'static str,
    /// The key, if it was for one.
    pub key: Option<KeyName>,
    /// The socket's descriptor.
    pub descriptor: RawFd,
}

impl Attempt {
    pub(super) fn new(action: &'static str, socket: BorrowedFd<'_>) -> Attempt {
        Attempt { action, key: None, descriptor: socket.as_raw_fd() }
    }

    pub(super) fn with_key(action: &'static str, socket: BorrowedFd<'_>, key: &Key) -> Attempt {
        Attempt { key: Some(*key.name()), ..Attempt::new(action, socket) }
    }

    /// The error for what the kernel side said of an option of this socket.
    pub(super) fn failed(self, socket: BorrowedFd<'_>, source: io::Error) -> SocketError {
        let attempt = self;
        match source.raw_os_error() {
            Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP) if !is_served(socket) => {
                SocketError::NotAttached { attempt, cgroup: own_cgroup() }
            }
            Some(libc::EINVAL) => SocketError::Refused { attempt },
            Some(libc::EOPNOTSUPP) => SocketError::WrongSocket { attempt },
            Some(libc::EISCONN) => SocketError::Connected { attempt },
            Some(libc::ENOSPC) => SocketError::NoRoom { attempt },
            Some(libc::EPERM) => SocketError::NotPermitted { attempt },
            _ => SocketError::Io { attempt, source },
        }
    }

    /// The error for an answer that does not fit.
    pub(super) fn damaged(self, why: String) -> SocketError {
        SocketError::Damaged { attempt: self, why }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.action)?;
        if let Some(key) = &self.key {
            write!(f, " of key '{key}'")?;
        }
        write!(f, " on descriptor {}", self.descriptor)
    }
}

/// Traits were not got or not set.
///
/// It turns into an [`io::Error`] of the same [kind](io::ErrorKind), so that `?` works in functions of both kinds.
/// [`io::ErrorKind::WouldBlock`] and [`io::ErrorKind::Interrupted`] turn into just what the kernel said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// ENOPROTOOPT or EOPNOTSUPP: nothing serves the options of `packet_traits/socket.h` for this socket.
    #[error(
        "cannot {attempt}: there are no trait options, because the socket's cgroup has no programs that serve them, or it \
         is neither a TCP nor a UDP socket; run `traits sockets attach` as root for the cgroup that the process made the \
         socket in{}", now_in(cgroup.as_deref())
    )]
    NotAttached {
        /// What was tried.
        attempt: Attempt,
        /// The cgroup (v2) the process is in now, as `/proc/self/cgroup` shows it.
        cgroup: Option<PathBuf>,
    },

    /// There is no key of this name.
    #[error("no key '{name}' is registered; {}", listed(known))]
    UnknownKey {
        /// The name.
        name: String,
        /// The names there are.
        known: Vec<KeyName>,
    },

    /// The key has another type than was asked for.
    #[error("{0}; ask for the type it was registered with")]
    Type(#[from] TypeMismatch),

    /// A value was not put into a [`Traits`](super::Traits).
    #[error(transparent)]
    Set(#[from] SetError),

    /// EINVAL: the kernel side does not know the option or the key, or the value has another size than the key.
    #[error(
        "cannot {attempt}: the kernel side knows no such option or key, or the size is not the key's; keys may have been \
         registered anew, read them again with `Keys::of`"
    )]
    Refused {
        /// What was tried.
        attempt: Attempt,
    },

    /// EOPNOTSUPP: the option is not for this kind of socket, or not for a listening one.
    #[error(
        "cannot {attempt}: it is not for this kind of socket, or not for a listening one; SAVE_SYN_TRAITS, SYN_TRAITS and \
         LAST_TRAITS are for TCP, traits of datagrams and NEXT_TRAITS for UDP"
    )]
    WrongSocket {
        /// What was tried.
        attempt: Attempt,
    },

    /// EISCONN: it is too late for this option.
    #[error("cannot {attempt}: the socket is connected already; set it before connect(2), or on the listener")]
    Connected {
        /// What was tried.
        attempt: Attempt,
    },

    /// ENOSPC: a limit of the host or of the socket.
    #[error(
        "cannot {attempt}: no room; raise the number of UDP sockets that may receive traits (`traits sockets attach \
         --sockets`) or one user's part of them (`--sockets-per-user`), or what a socket may hold (sysctl \
         net.core.optmem_max). What was set before stays"
    )]
    NoRoom {
        /// What was tried.
        attempt: Attempt,
    },

    /// EPERM: the kernel, or another program of the cgroup, refuses it.
    #[error(
        "cannot {attempt}: it is not permitted, either because this kernel lets only processes with CAP_NET_RAW see the \
         marks of datagrams (SO_RCVMARK), or because another program of the cgroup refuses it; run it with that \
         capability, or look for the program with `bpftool cgroup tree`"
    )]
    NotPermitted {
        /// What was tried.
        attempt: Attempt,
    },

    /// What the kernel side answered contradicts itself.
    #[error("cannot {attempt}: {why}; if it stays so, attach again with the `traits` of the version in use here")]
    Damaged {
        /// What was tried.
        attempt: Attempt,
        /// The contradiction.
        why: String,
    },

    /// The pinned slots were not opened or not mapped.
    #[error(
        "cannot open the slots of datagrams at {}: {source}; it takes permission to read and write the pin and to go \
         through its directories (or root), while `traits sockets attach` is in force", .path.display()
    )]
    Ring {
        /// Where they are pinned.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// What is pinned is not a map of slots.
    #[error(
        "what is pinned at {} is not the slots of datagrams: {why}; name the pin that `traits sockets attach` made, or \
         attach again with the `traits` of the version in use here", .path.display()
    )]
    NotRing {
        /// Where it is pinned.
        path: PathBuf,
        /// What gives it away.
        why: String,
    },

    /// The slots are those of another `traits sockets attach` than the socket's.
    #[error(
        "the slots of datagrams at {} are of another attachment than the one that serves descriptor {descriptor}; open \
         the ring again after `traits sockets attach`, or do without it", .path.display()
    )]
    ForeignRing {
        /// Where they are pinned.
        path: PathBuf,
        /// The socket's descriptor.
        descriptor: RawFd,
    },

    /// A system call failed for a reason that has nothing to do with traits.
    #[error("cannot {attempt}: {source}")]
    Io {
        /// What was tried.
        attempt: Attempt,
        /// What the kernel said.
        source: io::Error,
    },
}

impl SocketError {
    /// The error number that fits best.
    pub fn errno(&self) -> i32 {
        match self {
            SocketError::NotAttached { .. } => libc::ENOPROTOOPT,
            SocketError::UnknownKey { .. } => libc::ENOENT,
            SocketError::Type(_) | SocketError::Set(_) | SocketError::Refused { .. } | SocketError::NotRing { .. } => {
                libc::EINVAL
            }
            SocketError::WrongSocket { .. } => libc::EOPNOTSUPP,
            SocketError::Connected { .. } => libc::EISCONN,
            SocketError::NoRoom { .. } => libc::ENOSPC,
            SocketError::NotPermitted { .. } => libc::EPERM,
            SocketError::Damaged { .. } => libc::EPROTO,
            SocketError::ForeignRing { .. } => libc::ESTALE,
            SocketError::Ring { source, .. } | SocketError::Io { source, .. } => {
                source.raw_os_error().unwrap_or_else(|| match source.kind() {
                    // libbpf-rs keeps the error number to itself but gives its kind.
                    io::ErrorKind::NotFound => libc::ENOENT,
                    io::ErrorKind::PermissionDenied => libc::EACCES,
                    io::ErrorKind::InvalidInput => libc::EINVAL,
                    _ => libc::EIO,
                })
            }
        }
    }

    /// The kind of the [`io::Error`] it turns into.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            SocketError::Ring { source, .. } | SocketError::Io { source, .. } => source.kind(),
            other => io::Error::from_raw_os_error(other.errno()).kind(),
        }
    }
}

impl From<SocketError> for io::Error {
    fn from(error: SocketError) -> io::Error {
        match error {
            SocketError::Io { source, .. }
                if matches!(source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                source
            }
            other => io::Error::new(other.kind(), other),
        }
    }
}

fn now_in(cgroup: Option<&Path>) -> String {
    cgroup.map_or_else(String::new, |path| format!(" (it is in {} now)", path.display()))
}

fn listed(known: &[KeyName]) -> String {
    if known.is_empty() {
        return "there are no keys at all, `traits keys add` makes them".to_owned();
    }
    let names: Vec<&str> = known.iter().map(KeyName::as_str).collect();
    format!("there are: {}", names.join(", "))
}

/// Whether something serves the options, which then answers for [`RCV_TRAITS`] of every socket. The kernel's own answer to
/// an unknown level is ENOPROTOOPT; but to a get of an IPv4 socket it is EOPNOTSUPP (`do_ip_getsockopt` in net/ipv4/ip_sockglue.c),
/// which the programs say for an option that is not the socket's.
fn is_served(socket: BorrowedFd<'_>) -> bool {
    let mut state = [traits_receive::default()];
    match sockopt::get(socket, SOL_TRAITS, RCV_TRAITS, abi::bytes_mut(&mut state)) {
        Ok(_) => true,
        Err(error) => !matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP)),
    }
}

/// The calling process's cgroup in the v2 hierarchy, which is the one numbered 0 (cgroups(7)).
fn own_cgroup() -> Option<PathBuf> {
    let table = fs::read_to_string("/proc/self/cgroup").ok()?;
    table.lines().find_map(|line| line.strip_prefix("0::")).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd};

    use super::*;

    fn failed(errno: i32) -> SocketError {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        Attempt::new("set RCV_TRAITS", socket.as_fd()).failed(socket.as_fd(), io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn messages_say_what_was_tried_why_it_failed_and_what_to_do() {
        for (errno, next) in [
            (libc::ENOPROTOOPT, "traits sockets attach"),
            (libc::EINVAL, "Keys::of"),
            (libc::EISCONN, "before connect(2)"),
            (libc::ENOSPC, "optmem_max"),
            (libc::EPERM, "CAP_NET_RAW"),
        ] {
            let error = failed(errno);
            let text = error.to_string();
            assert!(text.starts_with("cannot set RCV_TRAITS on descriptor "), "{text}");
            assert!(text.contains(next), "{text}");
            assert_eq!(error.errno(), errno);
            assert_eq!(io::Error::from(error).to_string(), text);
        }
    }

    #[test]
    fn would_block_passes_through_untouched() {
        let error = io::Error::from(failed(libc::EAGAIN));
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
        let refused = io::Error::from(failed(libc::ECONNREFUSED));
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
