//! The BPF file system that registries and deployments are pinned in: telling whether it is there, mounting it, pinning
//! in it and opening what is pinned.
//!
//! Names in a bpffs cannot contain a dot (`bpf_lookup` in kernel/bpf/inode.c refuses them with EPERM), which is why
//! the names of registries cannot either.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
};

use libbpf_rs::MapHandle;
use rustix::{
    fs::{CWD, RenameFlags, renameat_with, statfs},
    mount::MountFlags,
};

use crate::{Hint, mounts};

/// Where a bpffs is mounted by convention.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf";

/// What can be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A program.
    Program,
    /// A map.
    Map,
    /// A link.
    Link,
}

impl Kind {
    /// What the kernel calls descriptors of this kind. kernel/bpf/syscall.c: `bpf_link_settle` has an underscore,
    /// `bpf_link_new_fd` a hyphen.
    fn descriptors(self) -> &'static [&'static str] {
        match self {
            Kind::Program => &["anon_inode:bpf-prog"],
            Kind::Map => &["anon_inode:bpf-map"],
            Kind::Link => &["anon_inode:bpf-link", "anon_inode:bpf_link"],
        }
    }
}

/// Gives a program, map or link a name in a bpffs.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    match unsafe { libbpf_sys::bpf_obj_pin(object.as_raw_fd(), path.as_ptr()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// Opens what is pinned; EBADF if it is of another kind.
pub(crate) fn open(path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    let object = match unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) } {
        // SAFETY: the call succeeded, so this is a new descriptor that nothing else owns.
        fd if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
        error => return Err(io::Error::from_raw_os_error(-error)),
    };
    // All kinds open the same way, and one's information would be read as another's.
    let found = fs::read_link(format!("/proc/thread-self/fd/{}", object.as_raw_fd()))?;
    if kind.descriptors().iter().any(|name| found.as_os_str() == *name) {
        Ok(object)
    } else {
        Err(io::Error::from_raw_os_error(libc::EBADF))
    }
}

/// Opens a pinned map; an error if it is something else.
pub(crate) fn open_map(path: &Path) -> io::Result<MapHandle> {
    open(path, Kind::Map)?;
    MapHandle::from_pinned_path(path).map_err(io::Error::other)
}

/// Has two paths change places, at once.
pub(crate) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

/// What is in a folder, in the order of names; a folder that is not there has nothing in it.
pub(crate) fn children(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.sort();
    Ok(paths)
}

/// Makes a folder for root only; one that is there is fine.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Why there is no bpffs to pin in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BpffsError {
    /// The path is not on a bpffs.
    #[error(
        "{} is not on a BPF file system; mount one there with `mount -t bpf -o mode=0700 bpf {}`",
        .root.display(), .root.display()
    )]
    Absent {
        /// The path.
        root: PathBuf,
    },
    /// The host has a bpffs at the usual place, but this process is in a mount namespace that does not show it.
    #[error(
        "the BPF file system at {DEFAULT_ROOT} is hidden from this process, which is in a mount namespace of its own \
         (`ip netns exec` makes one); enter the network namespace with `nsenter --net=/run/netns/NAME` instead"
    )]
    Hidden,
    /// There is no bpffs at the usual place, and one that this process mounts would not outlive its mount namespace.
    #[error(
        "there is no BPF file system at {DEFAULT_ROOT}, and this process is in a mount namespace of its own (`ip netns exec` \
         makes one): what it mounts goes away with it. Enter the network namespace with \
         `nsenter --net=/run/netns/NAME` instead; or run `mount -t bpf -o mode=0700 bpf {DEFAULT_ROOT}` first if \
         this mount namespace stays, as in a container"
    )]
    Apart,
    /// The kernel did not let it be mounted.
    #[error("cannot mount a BPF file system at {}: {error}; mounting needs CAP_SYS_ADMIN, run as root", .root.display())]
    Mount {
        /// Where it was to be mounted.
        root: PathBuf,
        /// What mount(2) said.
        error: io::Error,
    },
    /// Others than root may pin in the BPF file system, and so take the place of what is looked for there.
    #[error(
        "others than root may write to the BPF file system at {} (owner uid {uid}, mode {mode:04o}), and could put theirs in \
         the place of what is pinned there; mount one with `mount -t bpf -o mode=0700 bpf {}`, or keep others out of this \
         one with `chown 0:0 {} && chmod 0700 {}`",
        .root.display(), .root.display(), .root.display(), .root.display()
    )]
    Exposed {
        /// The path.
        root: PathBuf,
        /// Whose it is.
        uid: u32,
        /// Its permissions.
        mode: u32,
    },
    /// The folder with the pins belongs to another user, or other users may write to it.
    #[error(
        "{} is {what}: other users may have put there what is in it, so it is not used; look at it, and if nothing needs it, \
         `rm -r {}` takes it away",
        .path.display(), .path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The kernel did not say what is there.
    #[error("cannot look at {}: {error}; check that a BPF file system is mounted there", .root.display())]
    Stat {
        /// What was looked at.
        root: PathBuf,
        /// What statfs(2) said.
        error: io::Error,
    },
}

impl BpffsError {
    /// What the caller can do about it.
    pub fn hints(&self) -> Vec<Hint> {
        match self {
            BpffsError::Absent { .. } | BpffsError::Hidden | BpffsError::Stat { .. } => vec![Hint::NameBpffs],
            _ => Vec::new(),
        }
    }

    /// The error number that fits best.
    pub fn errno(&self) -> i32 {
        match self {
            BpffsError::Absent { .. } | BpffsError::Hidden | BpffsError::Apart => libc::ENOENT,
            BpffsError::Exposed { .. } | BpffsError::Foreign { .. } => libc::EPERM,
            BpffsError::Mount { error, .. } | BpffsError::Stat { error, .. } => {
                error.raw_os_error().unwrap_or(libc::EIO)
            }
        }
    }
}

/// The permissions that let others than the owner write.
const OTHERS_WRITE: u32 = 0o022;

/// Refuses a root that is not on a bpffs, or to which others than root may write.
pub fn require(root: &Path) -> Result<(), BpffsError> {
    let usual = root == Path::new(DEFAULT_ROOT);
    match is_bpffs(root) {
        Ok(true) => {
            let stat = |error| BpffsError::Stat { root: root.to_owned(), error };
            let found = fs::metadata(root).map_err(stat)?;
            let (uid, mode) = (found.uid(), found.mode() & 0o7777);
            if uid != 0 || mode & OTHERS_WRITE != 0 {
                return Err(BpffsError::Exposed { root: root.to_owned(), uid, mode });
            }
            Ok(())
        }
        Ok(false) if usual && mounts::has_init(root, "bpf") => Err(BpffsError::Hidden),
        Ok(false) if usual && !mounts::show_to_init(root) => Err(BpffsError::Apart),
        Ok(false) => Err(BpffsError::Absent { root: root.to_owned() }),
        Err(error) => Err(BpffsError::Stat { root: root.to_owned(), error }),
    }
}

/// Refuses a folder that another user owns or may write to. A missing folder is accepted. The caller has checked the folder
/// above it.
pub(crate) fn require_own(folder: &Path) -> Result<(), BpffsError> {
    let found = match fs::symlink_metadata(folder) {
        // who may not look there may not use it either, which is said then
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
            return Ok(());
        }
        other => other.map_err(|error| BpffsError::Stat { root: folder.to_owned(), error })?,
    };
    let foreign = |what: String| Err(BpffsError::Foreign { path: folder.to_owned(), what });
    let mode = found.mode() & 0o7777;
    match found.uid() {
        _ if !found.is_dir() => foreign("no folder".to_owned()),
        0 if mode & OTHERS_WRITE != 0 => {
            foreign(format!("a folder that others than root may write to (mode {mode:04o})"))
        }
        0 => Ok(()),
        uid => foreign(format!("a folder of user {uid}")),
    }
}

/// Mounts a bpffs at [`DEFAULT_ROOT`] if that is the root and nothing is mounted there; any other root must be on one.
/// Nothing is mounted where only this process's mount namespace would show it.
pub fn ensure(root: &Path) -> Result<(), BpffsError> {
    match require(root) {
        Err(BpffsError::Absent { .. }) if root == Path::new(DEFAULT_ROOT) => {
            mount(root).map_err(|error| BpffsError::Mount { root: root.to_owned(), error })?;
            tracing::info!("mounted a BPF file system at {DEFAULT_ROOT}");
            Ok(())
        }
        other => other,
    }
}

/// That what is pinned below a root goes away with the calling process's mount namespace, if it does, and what to do instead.
pub fn passing(root: &Path) -> Option<String> {
    mounts::goes_away(root).then(|| {
        format!(
            "the BPF file system at {} is in this process's mount namespace only, and goes away with it and all that is pinned \
             there (`ip netns exec` makes one for each command); enter the network namespace with \
             `nsenter --net=/run/netns/NAME` instead",
            root.display()
        )
    })
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.f_type as u32 == libc::BPF_FS_MAGIC as u32)
}

fn mount(root: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(rustix::mount::mount(c"bpf", root, c"bpf", flags, c"mode=0700")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_elsewhere_is_not_mounted_over() {
        let root = std::env::temp_dir();
        let error = ensure(&root).unwrap_err();
        assert!(matches!(&error, BpffsError::Absent { root: path } if *path == root), "{error}");
        assert!(error.to_string().contains("mount -t bpf -o mode=0700 bpf"), "{error}");
        let error = ensure(Path::new("/no/such/place")).unwrap_err();
        assert!(matches!(error, BpffsError::Stat { .. }), "{error}");
        assert!(error.to_string().contains("cannot look at /no/such/place"), "{error}");
        assert_eq!(error.errno(), libc::ENOENT);
    }
}
