//! Where programs may be attached for a moment without anybody noticing.

use std::path::PathBuf;

/// An interface and a cgroup that nobody else uses. The interface is of the **calling thread's** network namespace,
/// which must be one of the caller's own: netfilter programs and routes are attached in it.
#[derive(Clone, Debug)]
pub struct Ground {
    pub(super) ifindex: u32,
    pub(super) cgroup: Option<PathBuf>,
}

impl Ground {
    /// With this interface, which is up.
    pub fn new(ifindex: u32) -> Ground {
        Ground { ifindex, cgroup: None }
    }

    /// And with the cgroup that has this directory.
    pub fn cgroup(self, directory: impl Into<PathBuf>) -> Ground {
        Ground { cgroup: Some(directory.into()), ..self }
    }
}
