//! Links to network namespaces that another user namespace owns: where a border belongs.

use std::{
    collections::HashSet,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use super::Border;
use crate::{
    attach::{Device, devices, namespace_number},
    deployment::{self, Location},
};

/// Kinds of interfaces that are joined with one in another namespace.
const JOINED: [&str; 2] = ["veth", "netkit"];

/// An interface whose other end is in a network namespace that another user namespace owns: its root rules there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenLink {
    /// The interface in the calling thread's network namespace.
    pub ifindex: u32,
    /// The inode number of that user namespace, as `/proc/<pid>/ns/user` shows it.
    pub user_namespace: u64,
}

/// The links of the calling thread's network namespace without a border, of any registry of a bpffs.
///
/// A namespace that no path leads to which this process may use is not looked at.
///
/// # Errors
/// The interfaces cannot be listed.
pub fn open_links(bpffs: &Path) -> io::Result<Vec<OpenLink>> {
    let elsewhere: Vec<(u32, u32)> = devices()?
        .into_iter()
        .filter(|device: &Device| JOINED.contains(&device.kind.as_str()))
        .filter_map(|device| Some((device.ifindex, device.link_elsewhere?.1)))
        .collect();
    if elsewhere.is_empty() {
        return Ok(Vec::new());
    }
    let own = fs::metadata("/proc/thread-self/ns/user")?.ino();
    let closed = bordered(bpffs);
    let others = deployment::network_namespaces(|file| {
        let number = namespace_number(file.as_fd()).ok()??;
        let owner = owner(file).filter(|owner| *owner != own)?;
        Some((number, owner))
    });
    let open = |&(ifindex, number): &(u32, u32)| {
        let (_, user_namespace) = *others.iter().find(|(found, _)| *found == number)?;
        (!closed.contains(&ifindex)).then_some(OpenLink { ifindex, user_namespace })
    };
    Ok(elsewhere.iter().filter_map(open).collect())
}

/// Indexes of the interfaces of the calling thread's network namespace that have a border.
fn bordered(bpffs: &Path) -> HashSet<u32> {
    let borders =
        Location::with_borders(bpffs).into_iter().flat_map(|location| Border::list(&location).unwrap_or_default());
    borders.filter(|border| border.is_here() && border.is_whole()).filter_map(|border| border.ifindex()).collect()
}

/// The inode number of the user namespace that owns a network namespace.
fn owner(file: &fs::File) -> Option<u64> {
    // include/uapi/linux/nsfs.h
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    // SAFETY: the request takes no argument and returns a new descriptor or -1.
    let fd = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_USERNS as _) };
    if fd < 0 {
        return None;
    }
    // SAFETY: `fd` is new and nothing else owns it.
    let namespace = fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    namespace.metadata().ok().map(|found| found.ino())
}
