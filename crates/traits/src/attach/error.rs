//! Why a program could not be attached, pinned or detached.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::feature::{Feature, kernel_release};
use super::hook::Hook;
use super::target::{self, Target};
use crate::Hint;

/// A program was not attached, pinned or detached.
///
/// Every message names the hook, what it was tried on, why it failed and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Another program holds the hook.
    #[error("cannot attach to {attempt}: {holder}{}{hint}", if hint.is_empty() { "" } else { "; " })]
    Busy {
        /// What was tried.
        attempt: Attempt,
        /// Who holds the hook, with the program's id where the kernel tells it.
        holder: String,
        /// What to do about it with tools of the host; empty if there is nothing better than `hints`.
        hint: String,
        /// What the caller can do about it.
        hints: Vec<Hint>,
        /// What the kernel said: EBUSY or EEXIST.
        errno: i32,
    },

    /// The calling thread's network namespace has no interface with this index.
    #[error(
        "cannot attach to {hook}: no interface with index {ifindex} in this network namespace; \
         `ip link` lists the interfaces, and attaching works only from the namespace the interface is in"
    )]
    NoDevice {
        /// The hook that was tried.
        hook: Hook,
        /// The index that names no interface.
        ifindex: u32,
        /// What the kernel said.
        errno: i32,
    },

    /// The kernel denied it.
    #[error("cannot attach to {attempt}: {}; {hint}", Errno(*errno))]
    NotPermitted {
        /// What was tried.
        attempt: Attempt,
        /// What could be missing.
        hint: &'static str,
        /// What the kernel said: EPERM or EACCES.
        errno: i32,
    },

    /// The running kernel lacks a feature.
    #[error("cannot attach to {attempt}: {feature}; this is {running}, without it or built without {}{hint}", feature.config())]
    Unsupported {
        /// What was tried.
        attempt: Attempt,
        /// What the kernel lacks.
        feature: Feature,
        /// The running kernel's release.
        running: String,
        /// A way around it, as the end of a sentence; may be empty.
        hint: &'static str,
        /// What the kernel said.
        errno: i32,
    },

    /// The program is of a type that the hook does not run.
    #[error(
        "cannot attach to {attempt}: {program} is of type {found} and the hook runs type {expected}; check its SEC()"
    )]
    WrongProgram {
        /// What was tried.
        attempt: Attempt,
        /// The program, by id and name.
        program: String,
        /// Its type.
        found: &'static str,
        /// The type the hook runs.
        expected: &'static str,
    },

    /// The kernel or the driver refused for another reason.
    #[error("cannot attach to {attempt}: {why} ({}); {hint}", Errno(*errno))]
    Refused {
        /// What was tried.
        attempt: Attempt,
        /// The reason, as far as it is known.
        why: String,
        /// What to do about it.
        hint: &'static str,
        /// What the kernel said.
        errno: i32,
    },

    /// A pin was not made, opened or removed.
    #[error("cannot {action} {}: {}; {hint}", path.display(), Errno(*errno))]
    Pin {
        /// `pin xdp on eth0 at`, `open the pinned link`, `remove the pin`.
        action: String,
        /// Where.
        path: PathBuf,
        /// What to do about it.
        hint: &'static str,
        /// What the kernel said.
        errno: i32,
    },

    /// The attachment is not held by a link, so it cannot be pinned, or is, so it cannot be kept without a pin.
    #[error("cannot {action} {attempt}: {why}")]
    WrongKind {
        /// `pin` or `keep`.
        action: &'static str,
        /// The attachment.
        attempt: Attempt,
        /// Why, and what to call instead.
        why: &'static str,
    },

    /// A program was not detached.
    #[error("cannot detach from {attempt}: {why} ({}); {hint}", Errno(*errno))]
    Detach {
        /// What it is attached to.
        attempt: Attempt,
        /// The reason, as far as it is known.
        why: String,
        /// What to do about it.
        hint: &'static str,
        /// What the kernel said.
        errno: i32,
    },

    /// The cgroup v2 tree is mounted, but this mount or cgroup namespace shows only a part of it.
    #[error(
        "{} is not the host's cgroup root but that of a cgroup namespace, as in a container: name the cgroup, or run the \
         command in the host's namespaces (`nsenter --target 1 --mount --cgroup`)",
        path.display()
    )]
    PartOfCgroups {
        /// Where it is mounted.
        path: PathBuf,
    },

    /// A cgroup was not found or not opened.
    #[error("cannot open cgroup {}: {}; {hint}", path.display(), Errno(*errno))]
    Cgroup {
        /// What was looked for.
        path: PathBuf,
        /// What to do about it.
        hint: &'static str,
        /// What the kernel said.
        errno: i32,
    },
}

impl AttachError {
    /// What the caller can do about it.
    pub fn hints(&self) -> Vec<Hint> {
        match self {
            Self::Busy { hints, .. } => hints.clone(),
            _ => Vec::new(),
        }
    }

    /// What the kernel said, where it was asked.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Busy { errno, .. }
            | Self::NoDevice { errno, .. }
            | Self::NotPermitted { errno, .. }
            | Self::Unsupported { errno, .. }
            | Self::Refused { errno, .. }
            | Self::Pin { errno, .. }
            | Self::Detach { errno, .. }
            | Self::Cgroup { errno, .. } => Some(*errno),
            Self::WrongProgram { .. } | Self::WrongKind { .. } | Self::PartOfCgroups { .. } => None,
        }
    }
}

/// A hook and what it is tried on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// The hook.
    pub hook: Hook,
    /// What the program is attached to there.
    pub target: Box<Target>,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.hook, self.target)
    }
}

impl Attempt {
    pub(super) fn new(hook: Hook, target: Target) -> Self {
        Self { hook, target: Box::new(target) }
    }

    /// An error for an errno that means nothing special at this hook beyond `why`.
    ///
    /// Sorts out what means the same everywhere: no permission, and an interface that is not there (which some hooks
    /// report as EINVAL).
    pub(super) fn refused(&self, errno: i32, why: impl Into<String>, hint: &'static str) -> AttachError {
        match (errno, &*self.target) {
            (libc::EPERM | libc::EACCES, _) => AttachError::NotPermitted {
                attempt: self.clone(),
                hint: "it needs CAP_BPF and CAP_NET_ADMIN (tracing hooks: CAP_PERFMON): run as root",
                errno,
            },
            (libc::ENODEV | libc::EINVAL, &Target::Interface { ifindex, .. })
                if target::interface_name(ifindex).is_none() =>
            {
                AttachError::NoDevice { hook: self.hook, ifindex, errno }
            }
            _ => AttachError::Refused { attempt: self.clone(), why: why.into(), hint, errno },
        }
    }

    pub(super) fn unsupported(&self, feature: Feature, errno: i32, hint: &'static str) -> AttachError {
        AttachError::Unsupported { attempt: self.clone(), feature, running: kernel_release(), hint, errno }
    }
}

/// An errno in words and as a number.
pub(super) struct Errno(pub(super) i32);

/// The kernel's internal "not supported", which some drivers let out (include/linux/errno.h).
pub(super) const ENOTSUPP: i32 = 524;

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = io::Error::from_raw_os_error(self.0).to_string();
        let words = match self.0 {
            ENOTSUPP => "Operation not supported",
            _ => text.split(" (os error").next().unwrap_or_default(),
        };
        write!(f, "{words}, errno {}", self.0)
    }
}

/// The errno of a failed call of the standard library; EIO if it failed without asking the kernel.
pub(super) fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
