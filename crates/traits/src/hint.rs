//! What a caller can do about an error by asking this library for something else.
//!
//! The message of an error says what is wrong, in words of the library. A caller that has options of its own for what a
//! [`Hint`] names, as the `traits` command has, says behind the message which.

use std::path::PathBuf;

use crate::registry::RegistryName;

/// What a caller can do about an error. Errors list the most likely first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint {
    /// Use another BPF file system: [`RegistryOptions::bpffs`](crate::registry::RegistryOptions::bpffs).
    NameBpffs,
    /// Do it all the same: the argument `force` of what was called.
    Force,
    /// Allow a long area: [`RegistryOptions::allow_oversize`](crate::registry::RegistryOptions::allow_oversize).
    AllowOversize,
    /// Clear away what is left of a registry: [`RegistryOptions::remove`](crate::registry::RegistryOptions::remove) by force.
    ClearAway {
        /// The registry's name.
        registry: RegistryName,
    },
    /// Look at a registry's keys: [`Registry::list`](crate::registry::Registry::list).
    ListKeys {
        /// The registry's name.
        registry: RegistryName,
    },
    /// Detach a registry's socket programs: [`SocketPrograms::detach_all`](crate::socket_programs::SocketPrograms::detach_all).
    DetachSockets {
        /// The registry's name.
        registry: RegistryName,
        /// Its BPF file system; `None`: the one that was worked in.
        bpffs: Option<PathBuf>,
        /// From this cgroup; `None`: from all.
        cgroup: Option<PathBuf>,
    },
    /// The same, in a BPF file system that could not be found.
    DetachSocketsElsewhere,
    /// Take a deployment down: [`Deployment::down`](crate::deployment::Deployment::down).
    TakeDown {
        /// Its registry's name, in the BPF file system that was worked in.
        registry: RegistryName,
        /// Its name.
        deployment: String,
    },
    /// Put another version in the place of a deployment: [`UpOptions::replace`](crate::deployment::UpOptions::replace).
    Replace {
        /// Its registry's name, in the BPF file system that was worked in.
        registry: RegistryName,
        /// Its name.
        deployment: String,
    },
    /// Name an interface: [`UpOptions::interface`](crate::deployment::UpOptions::interface).
    NameInterface,
    /// Name a cgroup: [`UpOptions::cgroup`](crate::deployment::UpOptions::cgroup).
    NameCgroup,
    /// Name a hook of netfilter: [`UpOptions::netfilter`](crate::deployment::UpOptions::netfilter).
    NameNetfilterHook {
        /// The program that needs it.
        program: String,
    },
    /// Name no hook of netfilter.
    OmitNetfilterHook,
    /// Leave the mode of XDP programs as it is: [`XdpMode::Auto`](crate::attach::XdpMode::Auto) in
    /// [`UpOptions::xdp_mode`](crate::deployment::UpOptions::xdp_mode).
    OmitMode,
}
