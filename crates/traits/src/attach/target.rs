//! What a program is attached to at a hook: an interface, a cgroup, a namespace, a socket, a tracepoint, a map entry.

use std::ffi::CStr;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with};

/// The object a program is attached to.
///
/// Names are filled in by the attach functions. [`Attachment::from_pinned`](super::Attachment::from_pinned) knows
/// only what the kernel tells of a link, which is numbers: names belong to namespaces that the caller may not be in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// A network interface.
    Interface {
        /// Its index. 0: the interface is gone and the link holds nothing any more.
        ifindex: u32,
        /// Its name when the program was attached.
        name: Option<String>,
    },
    /// A network namespace.
    Namespace {
        /// The inode number that `/proc/<pid>/ns/net` shows.
        inode: Option<u64>,
    },
    /// A cgroup (v2).
    Cgroup {
        /// Its id, which is the inode number of its directory.
        id: u64,
        /// Its directory when the program was attached.
        path: Option<PathBuf>,
    },
    /// A socket.
    Socket {
        /// The inode number that `/proc/<pid>/fd` and `ss -e` show.
        inode: u64,
    },
    /// A kernel tracepoint.
    Tracepoint {
        /// Its name, such as `kfree_skb`.
        name: String,
    },
    /// A function of the kernel, or of a BPF program.
    Function {
        /// Its name, such as `ip_defrag`.
        name: String,
    },
    /// An entry of a BPF map.
    MapEntry {
        /// The map's id, as `bpftool map` shows it.
        map: u32,
        /// The entry's key.
        key: u32,
    },
}

impl Target {
    /// The interface with this index in the calling thread's network namespace, named if it exists.
    pub(crate) fn interface(ifindex: u32) -> Self {
        Self::Interface { ifindex, name: interface_name(ifindex) }
    }

    /// The calling thread's network namespace.
    pub(super) fn current_namespace() -> Self {
        let inode = fs::metadata(THREAD_NETNS).map(|metadata| metadata.ino()).ok();
        Self::Namespace { inode }
    }

    /// The cgroup whose directory `fd` is open on.
    pub(super) fn cgroup(fd: BorrowedFd<'_>) -> Self {
        Self::Cgroup { id: inode(fd), path: fs::read_link(fd_path(fd)).ok() }
    }

    /// The socket behind `fd`.
    pub(super) fn socket(fd: BorrowedFd<'_>) -> Self {
        Self::Socket { inode: inode(fd) }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface { ifindex, name: Some(name) } => write!(f, "{name} (ifindex {ifindex})"),
            Self::Interface { ifindex: 0, name: None } => f.write_str("an interface that is gone"),
            Self::Interface { ifindex, name: None } => write!(f, "ifindex {ifindex}"),
            Self::Namespace { inode: Some(inode) } => write!(f, "network namespace {inode}"),
            Self::Namespace { inode: None } => f.write_str("a network namespace"),
            Self::Cgroup { path: Some(path), .. } => write!(f, "{}", path.display()),
            Self::Cgroup { id, path: None } => write!(f, "cgroup id {id}"),
            Self::Socket { inode } => write!(f, "socket {inode}"),
            Self::Tracepoint { name } | Self::Function { name } => f.write_str(name),
            Self::MapEntry { map, key } => write!(f, "entry {key} of map {map}"),
        }
    }
}

const THREAD_NETNS: &str = "/proc/thread-self/ns/net";

/// Identity of a network namespace: device and inode of its file.
pub(crate) fn namespace_identity() -> std::io::Result<(u64, u64)> {
    let metadata = File::open(THREAD_NETNS)?.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Name of an interface in the calling thread's network namespace, if there is one with this index.
pub fn interface_name(ifindex: u32) -> Option<String> {
    let mut name = [0u8; libc::IF_NAMESIZE];
    // SAFETY: `name` is writable for IF_NAMESIZE bytes, which is what if_indextoname(3) writes at most.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr().cast()) };
    if found.is_null() {
        return None;
    }
    let name = CStr::from_bytes_until_nul(&name).ok()?;
    Some(name.to_string_lossy().into_owned())
}

/// Index of the interface of this name in the calling thread's network namespace, if there is one.
pub fn interface_index(name: &str) -> Option<u32> {
    name_to_index(udp_socket().ok()?, name).ok()
}

/// A UDP socket that is bound to nothing. Requests about interfaces take any: it stands for its network namespace.
pub(crate) fn udp_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// The `/proc` path of an open descriptor of this thread.
pub(super) fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/thread-self/fd/{}", fd.as_raw_fd()))
}

fn inode(fd: BorrowedFd<'_>) -> u64 {
    fs::metadata(fd_path(fd)).map_or(0, |metadata| metadata.ino())
}
