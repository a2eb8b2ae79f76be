//! A BPF file system that only this process can see.

use std::{
    fs::{self, Permissions},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::PathBuf,
};

use crate::error::{Context, Result};
use crate::sys;

/// A bpffs instance without a mount point. Pins in it, and what they hold, go with the process, however it ends.
///
/// Pinning, opening, mkdir, rename, link, unlink, readdir, stat, chmod and flock all work below [`Bpffs::path`]. Do not
/// canonicalise the path: there is no mount point above it, so `realpath` gives a path that leads nowhere.
#[derive(Debug)]
pub struct Bpffs {
    mount: OwnedFd,
}

impl Bpffs {
    /// Makes an empty bpffs, for root only.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN, ENODEV if the kernel has no bpffs.
    pub fn new() -> Result<Self> {
        let mount = sys::detached_mount(c"bpf").context(|| "cannot make a private bpffs")?;
        let bpffs = Self { mount };
        fs::set_permissions(bpffs.path(), Permissions::from_mode(0o700)).context(|| "cannot keep others out of it")?;
        Ok(bpffs)
    }

    /// Where the file system is, for this process and for those it starts, as long as this value exists.
    ///
    /// It names the process, not `/proc/self`, so that a command that is given the path finds the same place.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.mount.as_raw_fd()))
    }

    /// The descriptor of its root folder, close-on-exec.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }
}
