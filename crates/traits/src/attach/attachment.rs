//! A program attached to a hook, as a value that owns the attachment.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::clsact::{self, ClsactFilter};
use super::error::{AttachError, Attempt, errno_of};
use super::hook::Hook;
use super::link;
use super::program::Program;
use super::socket;
use super::target::Target;
use crate::bpffs::{self, Kind};

/// A program attached to a hook. Dropping it detaches the program.
///
/// When drop returns, the program is detached, even if another process opened the link in the meantime. Tracing links are the
/// exception: the kernel detaches them when the last holder lets go, and a child process between fork and exec is one.
///
/// Most hooks are held by a link, a kernel object that [`pin`](Self::pin) can give a name, so that it outlives this
/// value and the process. Two are not: a TC program attached through `clsact`, and a socket's filter.
/// They are removed on drop too, and [`keep`](Self::keep) leaves them in place.
#[derive(Debug)]
#[must_use = "dropping an attachment detaches the program"]
pub struct Attachment {
    info: AttachmentInfo,
    holder: Holder,
}

/// What an [`Attachment`] is: which program, at which hook, on what.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttachmentInfo {
    /// The hook.
    pub hook: Hook,
    /// What the program is attached to there.
    pub target: Target,
    /// The program's id, as `bpftool prog` shows it.
    pub program_id: u32,
    /// The link's id, as `bpftool link` shows it; none if no link holds the attachment.
    pub link_id: Option<u32>,
}

#[derive(Debug)]
enum Holder {
    Link {
        link: OwnedFd,
        pin: Option<PathBuf>,
    },
    Clsact(ClsactFilter),
    /// A duplicate of the socket's descriptor.
    Socket(OwnedFd),
    /// Left in place, or detached already.
    Nobody,
}

impl Attachment {
    pub(super) fn from_link(attempt: Attempt, program_id: u32, link: OwnedFd) -> Self {
        let link_id = link::info(link.as_fd()).map(|info| info.id).ok();
        let holder = Holder::Link { link, pin: None };
        Self::new(attempt, program_id, link_id, holder)
    }

    pub(super) fn from_clsact(attempt: Attempt, program_id: u32, filter: ClsactFilter) -> Self {
        Self::new(attempt, program_id, None, Holder::Clsact(filter))
    }

    pub(super) fn from_socket(attempt: Attempt, program_id: u32, socket: OwnedFd) -> Self {
        Self::new(attempt, program_id, None, Holder::Socket(socket))
    }

    fn new(attempt: Attempt, program_id: u32, link_id: Option<u32>, holder: Holder) -> Self {
        let Attempt { hook, target } = attempt;
        tracing::debug!(%hook, %target, program_id, link_id, "attached");
        let info = AttachmentInfo { hook, target: *target, program_id, link_id };
        Self { info, holder }
    }

    /// Opens an attachment that was [pinned](Self::pin) before, in this process or another.
    ///
    /// Dropping the value leaves the program attached, since the pin still holds it; [`detach`](Self::detach) and
    /// [`unpin`](Self::unpin) remove the pin.
    ///
    /// # Errors
    /// [`AttachError::Pin`] if nothing is pinned at `path`, or something that is not a link to a hook of
    /// [`attach`](super).
    pub fn from_pinned(path: impl AsRef<Path>) -> Result<Self, AttachError> {
        let path = absolute(path.as_ref());
        let failed = |errno, hint| AttachError::Pin {
            action: "open the pinned attachment".into(),
            path: path.clone(),
            hint,
            errno,
        };
        let link = bpffs::open(&path, Kind::Link).map_err(|error| {
            let errno = errno_of(&error);
            let hint = match errno {
                libc::ENOENT => "nothing is pinned there, so it was never pinned or is detached already",
                libc::EBADF => "a map or a program is pinned there, not a link: check the path",
                libc::EPERM | libc::EACCES => "run as root, and check that the path is in a BPF file system",
                _ => "check the path: `bpftool link show pinned <path>`",
            };
            failed(errno, hint)
        })?;
        let info = link::info(link.as_fd()).map_err(|errno| failed(errno, "the kernel does not describe the link"))?;
        let Some((hook, target)) = info.place else {
            let hint = "it is a link to another kind of hook: check the path with `bpftool link`";
            return Err(failed(libc::EMEDIUMTYPE, hint));
        };
        let info = AttachmentInfo { hook, target, program_id: info.program, link_id: Some(info.id) };
        let holder = Holder::Link { link, pin: Some(path) };
        Ok(Self { info, holder })
    }

    /// As [`from_pinned`](Self::from_pinned); `None` if what is pinned at `path` is something else than such a link.
    pub(crate) fn from_pinned_link(path: &Path) -> Result<Option<Self>, AttachError> {
        match Self::from_pinned(path) {
            Ok(attachment) => Ok(Some(attachment)),
            Err(error) if matches!(error.errno(), Some(libc::EBADF | libc::EMEDIUMTYPE)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Which program is attached, at which hook, on what.
    pub fn info(&self) -> &AttachmentInfo {
        &self.info
    }

    /// Where the attachment is pinned, as far as this value knows.
    pub fn pinned_at(&self) -> Option<&Path> {
        match &self.holder {
            Holder::Link { pin, .. } => pin.as_deref(),
            _ => None,
        }
    }

    /// The link that holds the program, for calls this module does not make; none for the hooks without a link.
    pub fn link_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.holder {
            Holder::Link { link, .. } => Some(link.as_fd()),
            _ => None,
        }
    }

    /// Gives the attachment a name in a BPF file system. From then on dropping the value leaves the program attached.
    ///
    /// The directory must exist, and the file name must have no dot in it.
    ///
    /// # Errors
    /// [`AttachError::WrongKind`] for a hook without a link ([`keep`](Self::keep) is for those), or if it is pinned
    /// already; [`AttachError::Pin`] if the kernel refuses.
    pub fn pin(&mut self, path: impl AsRef<Path>) -> Result<(), AttachError> {
        let attempt = self.attempt();
        let wrong = |why| AttachError::WrongKind { action: "pin", attempt: attempt.clone(), why };
        let (link, pin) = match &mut self.holder {
            Holder::Link { link, pin: pin @ None } => (link, pin),
            Holder::Link { pin: Some(_), .. } => {
                return Err(wrong("it is pinned already; unpin it first to pin it elsewhere"));
            }
            Holder::Clsact(_) => {
                return Err(wrong(
                    "a clsact filter has no link to pin; keep() leaves it attached, and TCX (Linux 6.6) can be pinned",
                ));
            }
            Holder::Nobody => return Err(wrong("it was kept, so there is nothing left to pin")),
            Holder::Socket(_) => {
                return Err(wrong(
                    "a socket's filter has no link to pin; keep() leaves it on the socket, which must be held open",
                ));
            }
        };
        let path = absolute(path.as_ref());
        pin_link(&attempt, link.as_fd(), &path)?;
        *pin = Some(path);
        Ok(())
    }

    /// Gives the attachment one more name in a BPF file system; this value does not keep it in mind.
    ///
    /// # Errors
    /// [`AttachError::WrongKind`] for a hook without a link; [`AttachError::Pin`] if the kernel refuses.
    pub(crate) fn pin_also(&self, path: &Path) -> Result<(), AttachError> {
        let attempt = self.attempt();
        match &self.holder {
            Holder::Link { link, .. } => pin_link(&attempt, link.as_fd(), path),
            _ => Err(AttachError::WrongKind { action: "pin", attempt, why: "no link holds it" }),
        }
    }

    /// Has the hook run another program of the same type instead, in the same place among others. Every packet meets
    /// the one or the other.
    ///
    /// XDP, TCX and cgroup hooks can do this. An XDP program stays in its mode.
    ///
    /// # Errors
    /// [`AttachError::Refused`] if the hook cannot, or what it was attached to is gone, or the program is of another
    /// type; the old program then stays. [`AttachError::WrongKind`] for a hook without a link.
    pub fn replace(&mut self, program: BorrowedFd<'_>) -> Result<(), AttachError> {
        let attempt = self.attempt();
        let Holder::Link { link, .. } = &self.holder else {
            return Err(AttachError::WrongKind { action: "replace", attempt, why: "no link holds it" });
        };
        let updated = Program::of(program).and_then(|new| link::update(link.as_fd(), program).map(|()| new.id));
        self.info.program_id = updated.map_err(|errno| {
            let (why, hint) = match errno {
                libc::ENOLINK => ("what it was attached to is gone", "detach it, and attach the new program"),
                libc::EOPNOTSUPP => ("the hook cannot exchange its program", "detach it, and attach the new program"),
                _ => ("the hook did not take the program in place of the one it has", "check the new program's SEC()"),
            };
            attempt.refused(errno, why, hint)
        })?;
        tracing::debug!(%attempt, program_id = self.info.program_id, "replaced");
        Ok(())
    }

    /// Removes the pin, if there is one. The program stays attached until the value is dropped.
    ///
    /// # Errors
    /// [`AttachError::Pin`] if the file cannot be removed.
    pub fn unpin(&mut self) -> Result<(), AttachError> {
        let Holder::Link { pin, .. } = &mut self.holder else {
            return Ok(());
        };
        let Some(path) = pin.as_deref() else {
            return Ok(());
        };
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(AttachError::Pin {
                action: "remove the pin".into(),
                path: path.into(),
                hint: "remove the file by hand to let the program go",
                errno: errno_of(&error),
            }),
            _ => {
                *pin = None;
                Ok(())
            }
        }
    }

    /// Leaves a program attached that no link holds: a clsact filter until it is deleted, a socket's filter until the
    /// socket is closed. Dropping the value does nothing from then on.
    ///
    /// # Errors
    /// [`AttachError::WrongKind`] if a link holds the program: that needs a [`pin`](Self::pin).
    pub fn keep(&mut self) -> Result<(), AttachError> {
        if let Holder::Link { .. } = self.holder {
            return Err(AttachError::WrongKind {
                action: "keep",
                attempt: self.attempt(),
                why: "a link holds it, which goes with its last holder; pin() it instead",
            });
        }
        self.holder = Holder::Nobody;
        Ok(())
    }

    /// Detaches the program now and removes the pin.
    ///
    /// It leaves its hook even if others hold the link too; what they keep is an empty link.
    ///
    /// # Errors
    /// [`AttachError::Pin`] if the pin cannot be removed, [`AttachError::Detach`] if the kernel refuses.
    pub fn detach(mut self) -> Result<(), AttachError> {
        self.unpin()?;
        self.release()
    }

    fn attempt(&self) -> Attempt {
        Attempt::new(self.info.hook, self.info.target.clone())
    }

    /// Lets go of what this value holds.
    fn release(&mut self) -> Result<(), AttachError> {
        match std::mem::replace(&mut self.holder, Holder::Nobody) {
            Holder::Nobody | Holder::Link { pin: Some(_), .. } => Ok(()),
            // Closing the descriptor is not enough: a child process, between fork and exec, has a copy of it.
            Holder::Link { link, pin: None } => match link::detach(link.as_fd()) {
                // EOPNOTSUPP: links without a detach operation, such as those of tracing.
                Ok(()) | Err(libc::EOPNOTSUPP) => Ok(()),
                Err(errno) => Err(AttachError::Detach {
                    attempt: self.attempt(),
                    why: "the kernel did not let the link go".into(),
                    hint: "`bpftool link` lists who holds it",
                    errno,
                }),
            },
            Holder::Clsact(filter) => filter.remove().map_err(|error| AttachError::Detach {
                attempt: self.attempt(),
                why: error.message,
                hint: clsact::LEFT,
                errno: error.errno,
            }),
            Holder::Socket(socket) => socket::remove_filter(socket.as_fd()).map_err(|errno| AttachError::Detach {
                attempt: self.attempt(),
                why: "the socket did not let its filter go".into(),
                hint: "SO_LOCK_FILTER may be set on it: close the socket",
                errno,
            }),
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::warn!("{error}");
        }
    }
}

fn pin_link(attempt: &Attempt, link: BorrowedFd<'_>, path: &Path) -> Result<(), AttachError> {
    bpffs::pin(link, path).map_err(|error| {
        let errno = errno_of(&error);
        let hint = pin_hint(errno, path);
        AttachError::Pin { action: format!("pin {attempt} at"), path: path.into(), hint, errno }
    })?;
    tracing::debug!(%attempt, path = %path.display(), "pinned");
    Ok(())
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

fn pin_hint(errno: i32, path: &Path) -> &'static str {
    let dotted = path.file_name().is_some_and(|name| name.as_encoded_bytes().contains(&b'.'));
    match errno {
        libc::EPERM if dotted => "a BPF file system takes no names with a dot: rename the pin",
        libc::EPERM | libc::EACCES => {
            "run as root, and pin in a BPF file system (`mount -t bpf -o mode=0700 bpf /sys/fs/bpf`)"
        }
        libc::EEXIST => "something is pinned there: choose another name, or detach that first",
        libc::ENOENT => "create the directory first",
        _ => "check the path",
    }
}
