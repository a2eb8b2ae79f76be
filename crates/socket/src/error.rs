//! The error of this crate.

use std::{
    error, fmt, fs, io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    path::{Path, PathBuf},
};

use packet_traits_core::{Key, KeyName, SetError, TypeMismatch};

use super::{
    abi::{self, RCV_TRAITS, SOL_TRAITS, traits_receive},
    sockopt,
};

/// What was tried on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// `set RCV_TRAITS`, `receive a datagram`.
    pub action: &'static str,
    /// The key, if it was for one.
    pub key: Option<KeyName>,
    /// The socket's descriptor.
    pub descriptor: RawFd,
}

impl Attempt {
    pub(crate) fn new(action: &'static str, socket: BorrowedFd<'_>) -> Attempt {
        Attempt { action, key: None, descriptor: socket.as_raw_fd() }
    }

    pub(crate) fn with_key(action: &'static str, socket: BorrowedFd<'_>, key: &Key) -> Attempt {
        Attempt { key: Some(*key.name()), ..Attempt::new(action, socket) }
    }

    /// The error for what the kernel side said of an option of this socket.
    pub(crate) fn failed(self, socket: BorrowedFd<'_>, error: io::Error) -> SocketError {
        let attempt = self;
        match error.raw_os_error() {
            Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP) if !is_served(socket) => {
                SocketError::NotAttached { attempt, cgroup: own_cgroup() }
            }
            Some(libc::EINVAL) => SocketError::Refused { attempt },
            Some(libc::EOPNOTSUPP) => SocketError::WrongSocket { attempt },
            Some(libc::EISCONN) => SocketError::Connected { attempt },
            Some(libc::ENOSPC) => SocketError::NoRoom { attempt },
            Some(libc::EPERM) => SocketError::NotPermitted { attempt },
            _ => SocketError::Io { attempt, error },
        }
    }

    /// The error for an answer that does not fit.
    pub(crate) fn damaged(self, why: String) -> SocketError {
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

/// Traits were not read or not set.
///
/// Its message says what was tried and why it failed; [`hint`](Self::hint) says what to do about it. It turns into an
/// [`io::Error`] of the same [kind](io::ErrorKind), so that `?` works in functions of both kinds.
/// [`io::ErrorKind::WouldBlock`] and [`io::ErrorKind::Interrupted`] turn into what the kernel said.
#[derive(Debug)]
#[non_exhaustive]
pub enum SocketError {
    /// ENOPROTOOPT or EOPNOTSUPP: nothing serves the options of `packet_traits/socket.h` for this socket.
    NotAttached {
        /// What was tried.
        attempt: Attempt,
        /// The cgroup (v2) the process is in now, as `/proc/self/cgroup` shows it.
        cgroup: Option<PathBuf>,
    },

    /// There is no key of this name.
    UnknownKey {
        /// The name.
        name: String,
        /// The names there are.
        known: Vec<KeyName>,
    },

    /// The key has another type than was asked for.
    Type(TypeMismatch),

    /// A value was not put into a [`Traits`](super::Traits).
    Set(SetError),

    /// EINVAL: the kernel side does not know the option or the key, or the value has another size than the key.
    Refused {
        /// What was tried.
        attempt: Attempt,
    },

    /// EOPNOTSUPP: the option is not for this kind of socket, or not for a listening one.
    WrongSocket {
        /// What was tried.
        attempt: Attempt,
    },

    /// EISCONN: it is too late for this option.
    Connected {
        /// What was tried.
        attempt: Attempt,
    },

    /// ENOSPC: a limit of the host or of the socket. What was set before stays.
    NoRoom {
        /// What was tried.
        attempt: Attempt,
    },

    /// EPERM: the kernel, or another program of the cgroup, refuses it.
    NotPermitted {
        /// What was tried.
        attempt: Attempt,
    },

    /// What the kernel side answered contradicts itself.
    Damaged {
        /// What was tried.
        attempt: Attempt,
        /// The contradiction.
        why: String,
    },

    /// The pinned slots were not opened or not mapped.
    Ring {
        /// Where they are pinned.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },

    /// What is pinned is not a map of slots.
    NotRing {
        /// Where it is pinned.
        path: PathBuf,
        /// The reason for which it is not.
        why: String,
    },

    /// The slots are those of another `traits sockets attach` than the socket's.
    ForeignRing {
        /// Where they are pinned.
        path: PathBuf,
        /// The socket's descriptor.
        descriptor: RawFd,
    },

    /// A system call failed for a reason that has nothing to do with traits.
    Io {
        /// What was tried.
        attempt: Attempt,
        /// What the kernel said.
        error: io::Error,
    },
}

impl SocketError {
    /// What to do about it, if there is something.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            SocketError::NotAttached { cgroup, .. } => {
                return Some(format!(
                    "run `traits sockets attach` as root for the cgroup in which the process made the socket{}",
                    now_in(cgroup.as_deref())
                ));
            }
            SocketError::UnknownKey { known, .. } if known.is_empty() => "`traits keys add` registers keys",
            SocketError::UnknownKey { .. } | SocketError::Set(_) | SocketError::Io { .. } => return None,
            SocketError::Type(_) => "ask for the type that the key was registered with",
            SocketError::Refused { .. } => "keys may have been registered again; read them again with `Keys::of`",
            SocketError::WrongSocket { .. } => {
                "SAVE_SYN_TRAITS, SYN_TRAITS and LAST_TRAITS are for TCP, traits of datagrams and NEXT_TRAITS for UDP"
            }
            SocketError::Connected { .. } => "set it before connect(2), or on the listener",
            SocketError::NoRoom { .. } => {
                "raise the number of UDP sockets that may receive traits (`traits sockets attach --sockets`), one user's \
                 part of them (`--sockets-per-user`), or what a socket may hold (sysctl net.core.optmem_max)"
            }
            SocketError::NotPermitted { .. } => {
                "run it with CAP_NET_RAW, or look for the other program with `bpftool cgroup tree`"
            }
            SocketError::Damaged { .. } => {
                "if it happens again, attach again with the `traits` of the version in use here"
            }
            SocketError::Ring { .. } => {
                "opening them requires permission to read and write the pin and to go through its directories, while \
                 `traits sockets attach` is in force"
            }
            SocketError::NotRing { .. } => {
                "name the pin that `traits sockets attach` made, or attach again with the `traits` of the version in use here"
            }
            SocketError::ForeignRing { .. } => "open the ring again after `traits sockets attach`, or do without it",
        };
        Some(hint.to_owned())
    }

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
            SocketError::Ring { error, .. } | SocketError::Io { error, .. } => {
                error.raw_os_error().unwrap_or(libc::EIO)
            }
        }
    }

    /// The kind of the [`io::Error`] it turns into.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            SocketError::Ring { error, .. } | SocketError::Io { error, .. } => error.kind(),
            other => io::Error::from_raw_os_error(other.errno()).kind(),
        }
    }
}

/// Written out: a derive would have every application compile a parser of Rust.
impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SocketError::NotAttached { attempt, .. } => write!(
                f,
                "cannot {attempt}: `traits sockets attach` is not in force for the cgroup of the socket, or it is neither a TCP \
                 nor a UDP socket"
            ),
            SocketError::UnknownKey { name, known } if known.is_empty() => {
                write!(f, "no key '{name}' is registered; there are no keys")
            }
            SocketError::UnknownKey { name, known } => {
                let names: Vec<&str> = known.iter().map(KeyName::as_str).collect();
                write!(f, "no key '{name}' is registered; there are: {}", names.join(", "))
            }
            SocketError::Type(error) => error.fmt(f),
            SocketError::Set(error) => error.fmt(f),
            SocketError::Refused { attempt } => {
                write!(f, "cannot {attempt}: the kernel side knows no such option or key, or the size is not the key's")
            }
            SocketError::WrongSocket { attempt } => {
                write!(f, "cannot {attempt}: it is not for this kind of socket, or not for a listening one")
            }
            SocketError::Connected { attempt } => write!(f, "cannot {attempt}: the socket is connected already"),
            SocketError::NoRoom { attempt } => {
                write!(f, "cannot {attempt}: a limit of the host, of the user or of the socket is reached")
            }
            SocketError::NotPermitted { attempt } => write!(
                f,
                "cannot {attempt}: it is not permitted; this kernel lets only processes with CAP_NET_RAW see the marks of \
                 datagrams (SO_RCVMARK), or another program of the cgroup refuses it"
            ),
            SocketError::Damaged { attempt, why } => write!(f, "cannot {attempt}: {why}"),
            SocketError::Ring { path, error } => {
                write!(f, "cannot open the slots of datagrams at {}: {error}", path.display())
            }
            SocketError::NotRing { path, why } => {
                write!(f, "what is pinned at {} is not the slots of datagrams: {why}", path.display())
            }
            SocketError::ForeignRing { path, descriptor } => write!(
                f,
                "the slots of datagrams at {} belong to another attachment than the one that serves descriptor {descriptor}",
                path.display()
            ),
            SocketError::Io { attempt, error } => write!(f, "cannot {attempt}: {error}"),
        }
    }
}

/// Without a source: the message has all of it.
impl error::Error for SocketError {}

impl From<TypeMismatch> for SocketError {
    fn from(error: TypeMismatch) -> SocketError {
        SocketError::Type(error)
    }
}

impl From<SetError> for SocketError {
    fn from(error: SetError) -> SocketError {
        SocketError::Set(error)
    }
}

impl From<SocketError> for io::Error {
    fn from(error: SocketError) -> io::Error {
        match error {
            SocketError::Io { error, .. }
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
            {
                error
            }
            other => io::Error::new(other.kind(), other),
        }
    }
}

fn now_in(cgroup: Option<&Path>) -> String {
    cgroup.map_or_else(String::new, |path| format!(" (it is in {} now)", path.display()))
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
    fn an_error_says_what_was_tried_why_it_failed_and_what_to_do() {
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
            let hint = error.hint().unwrap();
            assert!(hint.contains(next), "{hint}");
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
