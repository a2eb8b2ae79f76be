//! What can go wrong with a registry, and how it is said.

use std::{fmt, io, path::PathBuf};

use packet_traits_core::{KeyName, KeyType, Layout, Merge, Region, layout::AREA_LEN_PORTABLE};

use super::{RegistryName, entry::KeyEntry, users::BoundProgram, utc::Utc};
use crate::{Hint, attach::Feature, bpffs::BpffsError};

/// Why a registry operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// There is no bpffs to hold registries.
    #[error("no registry can be reached: {0}")]
    Bpffs(BpffsError),
    /// There is no registry of this name.
    #[error("there is no registry '{name}' at {}; create it with `traits registry create {name}`", .dir.display())]
    NotFound {
        /// The name that was asked for.
        name: RegistryName,
        /// Where it would be.
        dir: PathBuf,
    },
    /// There already is a registry of this name.
    #[error("registry '{name}' already exists at {}; use it, remove it, or choose another name", .dir.display())]
    Exists {
        /// The name that was asked for.
        name: RegistryName,
        /// Where it is.
        dir: PathBuf,
    },
    /// The registry was removed after it was opened.
    #[error(
        "registry '{name}' at {} was removed since it was opened; open it again, and bind programs again if there is \
         another one under its name",
        .dir.display()
    )]
    Gone {
        /// Its name.
        name: RegistryName,
        /// Where it was.
        dir: PathBuf,
    },
    /// A pinned object is not what this version of a registry has there. Nothing was changed.
    #[error("{} is not part of a usable registry: {why}; nothing was changed", .path.display())]
    Damaged {
        /// The registry's name.
        name: RegistryName,
        /// The object.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The registry was made by an earlier version of this software. Nothing was changed.
    #[error(
        "registry '{name}' at {} has format version {found}, this program knows version {known}; nothing was changed. \
         `traits registry migrate {name}` makes it one of this version, with the same keys",
        .dir.display()
    )]
    Older {
        /// The registry's name.
        name: RegistryName,
        /// Where it is.
        dir: PathBuf,
        /// Its format version.
        found: u32,
        /// The version this software knows.
        known: u32,
    },
    /// The registry was made by a later version of this software. Nothing was changed.
    #[error(
        "registry '{name}' at {} has format version {found}, this program knows version {known}; nothing was changed. \
         Use the newer program it was made with, or remove it with that",
        .dir.display()
    )]
    Newer {
        /// The registry's name.
        name: RegistryName,
        /// Where it is.
        dir: PathBuf,
        /// Its format version.
        found: u32,
        /// The version this software knows.
        known: u32,
    },
    /// The area is longer than native XDP on veth has room for.
    #[error(
        "cannot create registry '{name}' with an area of {area_len} bytes: native XDP on veth has headroom for \
         {AREA_LEN_PORTABLE} (256 less struct xdp_frame); make the regions smaller"
    )]
    Oversize {
        /// The name that was asked for.
        name: RegistryName,
        /// Bytes of both regions.
        area_len: usize,
    },
    /// The area is longer than the metadata that the running kernel takes.
    #[error(
        "cannot create registry '{name}' with an area of {area_len} bytes: this kernel takes {longest} bytes of XDP \
         metadata ({}); make the regions smaller, or leave their sizes out to get the area that fits",
        Feature::LongXdpMetadata
    )]
    TooLong {
        /// The name that was asked for.
        name: RegistryName,
        /// Bytes of both regions.
        area_len: usize,
        /// Bytes that the kernel takes.
        longest: usize,
    },
    /// The registry exists with other region sizes than the caller insists on.
    #[error(
        "registry '{name}' has regions of {} + {} bytes (flow + packet), not {} + {}; leave the sizes out to use it as \
         it is, or choose another name",
        .found.region_len(Region::Flow), .found.region_len(Region::Packet),
        .wanted.region_len(Region::Flow), .wanted.region_len(Region::Packet)
    )]
    OtherLayout {
        /// The registry's name.
        name: RegistryName,
        /// Its layout.
        found: Layout,
        /// The layout the caller insists on.
        wanted: Layout,
    },
    /// The name is registered with another type or merge policy.
    #[error(
        "cannot register key '{}' as {key_type}, {merge} in registry '{registry}': it is held as {}, {} by {} since {}; \
         use it that way, or choose another name",
        .holder.key.name(), .holder.key.key_type(), .holder.merge, .holder.owner, Utc(.holder.registered_at)
    )]
    Held {
        /// The registry's name.
        registry: RegistryName,
        /// The type that was asked for.
        key_type: KeyType,
        /// The merge policy that was asked for.
        merge: Merge,
        /// The key as it is registered.
        holder: Box<KeyEntry>,
    },
    /// The region has no aligned place left for the value.
    #[error(
        "cannot register key '{key}' ({} bytes) in registry '{registry}': its {region} region has no aligned place for \
         it, {free} of {space} bytes are free{}; {}",
        .key_type.size(), HeldBy(.holders), MoreRoom(*.region, *.layout, .holders, *.longest)
    )]
    RegionFull {
        /// The registry's name.
        registry: RegistryName,
        /// The key that was asked for.
        key: KeyName,
        /// Its type.
        key_type: KeyType,
        /// The region its merge policy puts it in.
        region: Region,
        /// Bytes of the region's slot space that no key holds.
        free: usize,
        /// Bytes of the region's slot space.
        space: usize,
        /// The registry's region sizes.
        layout: Layout,
        /// The region's keys.
        holders: Vec<KeyEntry>,
        /// Bytes of XDP metadata that the running kernel takes, if an area with room for the value would be longer.
        longest: Option<usize>,
    },
    /// All 64 keys are registered.
    #[error(
        "cannot register key '{key}' in registry '{registry}': all 64 keys are taken{}; remove one, or create another \
         registry",
        HeldBy(.holders)
    )]
    KeysExhausted {
        /// The registry's name.
        registry: RegistryName,
        /// The key that was asked for.
        key: KeyName,
        /// Every key.
        holders: Vec<KeyEntry>,
    },
    /// No key has this name.
    #[error("registry '{registry}' has no key '{key}'")]
    UnknownKey {
        /// The registry's name.
        registry: RegistryName,
        /// The name that was asked for.
        key: KeyName,
    },
    /// Loaded programs use the key.
    #[error(
        "cannot remove key '{key}' from registry '{registry}': it is used by {}; unload what uses it",
        Programs(.programs)
    )]
    KeyInUse {
        /// The registry's name.
        registry: RegistryName,
        /// The key.
        key: KeyName,
        /// The programs.
        programs: Vec<BoundProgram>,
    },
    /// Loaded programs are bound to the registry.
    #[error(
        "cannot remove registry '{registry}': it is used by {}; unload what uses it (`traits down NAME` does for what \
         `traits status` lists, `traits border detach` for borders)",
        Programs(.programs)
    )]
    RegistryInUse {
        /// The registry's name.
        registry: RegistryName,
        /// The programs.
        programs: Vec<BoundProgram>,
    },
    /// The registry's socket programs are attached.
    #[error("cannot remove registry '{registry}': its socket programs are attached; detach them first")]
    SocketsAttached {
        /// The registry's name.
        registry: RegistryName,
    },
    /// The registry's directory holds more than the registry.
    #[error(
        "cannot remove registry '{registry}': {} also holds {}; remove that first",
        .dir.display(), .others.join(", ")
    )]
    NotEmpty {
        /// The registry's name.
        registry: RegistryName,
        /// Its directory.
        dir: PathBuf,
        /// Names of what else is in it.
        others: Vec<String>,
    },
    /// The file system or the kernel refused something.
    #[error("cannot {action} {}: {error}{}", .path.display(), privilege_hint(.error.raw_os_error()))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A call to a BPF map failed.
    #[error("cannot {action} the map at {}: {error:#}{}", .path.display(), privilege_hint(Some(errno_of(.error))))]
    Map {
        /// What was tried.
        action: &'static str,
        /// Where the map is pinned.
        path: PathBuf,
        /// Why not.
        error: libbpf_rs::Error,
    },
    /// It could not be tried how much metadata the kernel takes.
    #[error("cannot try how much XDP metadata this kernel takes: {error:#}; creating a registry needs root")]
    Metadata {
        /// Why not.
        error: libbpf_rs::Error,
    },
    /// The loaded programs could not be listed, so nobody knows who uses what.
    #[error("cannot list the loaded BPF programs: {error}{}", privilege_hint(.error.raw_os_error()))]
    Programs {
        /// Why not.
        error: io::Error,
    },
    /// The kernel gave no random numbers.
    #[error("getrandom gave no random numbers: {0}; try again once the system has finished booting")]
    Random(io::Error),
}

impl From<BpffsError> for RegistryError {
    fn from(error: BpffsError) -> RegistryError {
        RegistryError::Bpffs(error)
    }
}

impl RegistryError {
    /// What the caller can do about it.
    pub fn hints(&self) -> Vec<Hint> {
        match self {
            RegistryError::Bpffs(error) => error.hints(),
            RegistryError::Damaged { name, .. } => vec![Hint::ClearAway { registry: name.clone() }],
            RegistryError::Oversize { .. } => vec![Hint::AllowOversize],
            RegistryError::UnknownKey { registry, .. } => vec![Hint::ListKeys { registry: registry.clone() }],
            RegistryError::KeyInUse { .. } | RegistryError::RegistryInUse { .. } | RegistryError::NotEmpty { .. } => {
                vec![Hint::Force]
            }
            RegistryError::SocketsAttached { registry } => {
                let registry = registry.clone();
                vec![Hint::DetachSockets { registry, bpffs: None, cgroup: None }, Hint::Force]
            }
            _ => Vec::new(),
        }
    }

    /// The error number that fits best, for callers that speak in those: EBUSY for what is held or in use, ENOSPC for
    /// what is full.
    pub fn errno(&self) -> i32 {
        match self {
            RegistryError::Bpffs(error) => error.errno(),
            RegistryError::NotFound { .. } | RegistryError::UnknownKey { .. } => libc::ENOENT,
            RegistryError::Exists { .. } => libc::EEXIST,
            RegistryError::Gone { .. } => libc::ESTALE,
            RegistryError::Damaged { .. } => libc::EUCLEAN,
            RegistryError::Older { .. } | RegistryError::Newer { .. } => libc::EPROTONOSUPPORT,
            RegistryError::Oversize { .. } | RegistryError::TooLong { .. } | RegistryError::OtherLayout { .. } => {
                libc::EINVAL
            }
            RegistryError::Held { .. }
            | RegistryError::KeyInUse { .. }
            | RegistryError::RegistryInUse { .. }
            | RegistryError::SocketsAttached { .. } => libc::EBUSY,
            RegistryError::RegionFull { .. } | RegistryError::KeysExhausted { .. } => libc::ENOSPC,
            RegistryError::NotEmpty { .. } => libc::ENOTEMPTY,
            RegistryError::Io { error, .. } | RegistryError::Programs { error } | RegistryError::Random(error) => {
                error.raw_os_error().unwrap_or(libc::EIO)
            }
            RegistryError::Map { error, .. } | RegistryError::Metadata { error } => errno_of(error),
        }
    }
}

/// libbpf-rs keeps the error number to itself but gives its kind.
pub(crate) fn errno_of(error: &libbpf_rs::Error) -> i32 {
    use libbpf_rs::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => libc::ENOENT,
        ErrorKind::PermissionDenied => libc::EPERM,
        ErrorKind::AlreadyExists => libc::EEXIST,
        ErrorKind::InvalidInput => libc::EINVAL,
        ErrorKind::OutOfMemory => libc::ENOMEM,
        ErrorKind::TooBig => libc::E2BIG,
        _ => libc::EIO,
    }
}

/// What to do about a lack of privileges, as the end of a message; empty for any other error number.
pub(crate) fn privilege_hint(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::EPERM | libc::EACCES) => "; this needs CAP_BPF and CAP_SYS_ADMIN, run as root",
        _ => "",
    }
}

/// How to get room for a key in a full region: the region, the layout, the region's keys, and the kernel's limit if that is
/// in the way.
struct MoreRoom<'a>(Region, Layout, &'a [KeyEntry], Option<usize>);

impl fmt::Display for MoreRoom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MoreRoom(region, layout, holders, longest) = *self;
        let (other, policy) = match region {
            Region::Flow => (Region::Packet, "use the other region (merge policy keep-first)"),
            Region::Packet => (Region::Flow, "use the other region (merge policy block)"),
        };
        let larger = format!("create a registry with a larger {region} region");
        let ways = [
            (!holders.is_empty()).then_some("remove a key"),
            (layout.region_len(other) > 0).then_some(policy),
            longest.is_none().then_some(&*larger),
        ];
        match &*ways.into_iter().flatten().collect::<Vec<_>>() {
            [] => {}
            [ways @ .., last] if !ways.is_empty() => write!(f, "{}, or {last}", ways.join(", "))?,
            [way, ..] => f.write_str(way)?,
        }
        let Some(longest) = longest else { return Ok(()) };
        let longer = Feature::LongXdpMetadata;
        let separator = if holders.is_empty() && layout.region_len(other) == 0 { "" } else { "; " };
        write!(
            f,
            "{separator}no larger area fits into the {longest} bytes of XDP metadata that this kernel takes ({longer})"
        )
    }
}

/// `: tenant u32 by app (uid 0), …`
struct HeldBy<'a>(&'a [KeyEntry]);

impl fmt::Display for HeldBy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = ": held are ";
        for entry in self.0 {
            write!(f, "{separator}{} {} by {}", entry.key.name(), entry.key.key_type(), entry.owner)?;
            separator = ", ";
        }
        Ok(())
    }
}

/// Programs, one after the other.
struct Programs<'a>(&'a [BoundProgram]);

impl fmt::Display for Programs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for program in self.0 {
            write!(f, "{separator}{program}")?;
            separator = ", ";
        }
        Ok(())
    }
}
