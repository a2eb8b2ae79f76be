//! Why socket programs are not attached, or still are.

use std::{io, path::PathBuf};

use crate::{
    Hint,
    attach::AttachError,
    bind::BindError,
    registry::{RegistryError, RegistryName},
};

/// Why socket programs are not attached, or still are.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketProgramsError {
    /// A size is out of range.
    #[error("{what} {value}: {rule}")]
    Size {
        /// Which one.
        what: &'static str,
        /// What was asked for.
        value: u32,
        /// What it may be.
        rule: &'static str,
    },
    /// The datagrams' slots do not fit into memory, or into a map.
    #[error(
        "cannot make {sockets} x {slots} slots of {slot_len} bytes: {} MiB of kernel memory are too much here; ask for \
         fewer sockets or slots", (u64::from(*sockets) * u64::from(*slots) * u64::from(*slot_len)) >> 20
    )]
    Memory {
        /// Sockets that may receive datagrams' traits at once.
        sockets: u32,
        /// Slots of each.
        slots: u32,
        /// Bytes of a slot.
        slot_len: u32,
    },
    /// The programs are attached with other sizes than the caller insists on.
    #[error(
        "registry '{registry}' has its socket programs attached with {found} {what}, not {wanted}; leave it out, or \
         detach them first"
    )]
    OtherSize {
        /// The registry's name.
        registry: RegistryName,
        /// Which size.
        what: &'static str,
        /// What it is.
        found: u32,
        /// What the caller insists on.
        wanted: u32,
    },
    /// The attached programs are of a version that keeps other things of sockets, or keeps them otherwise, so that these
    /// cannot take their place.
    #[error(
        "registry '{registry}' has socket programs of another version attached, whose sockets this one cannot take over; \
         detach them and attach again: servers that receive traits then have to ask for them again, or to be started again"
    )]
    OtherVersion {
        /// The registry's name.
        registry: RegistryName,
    },
    /// The sockets of the cgroup, or some of them, are served already.
    #[error("cannot attach socket programs to {}: {}", .cgroup.display(), overlap(.holder.as_ref()))]
    Overlap {
        /// The cgroup that was tried.
        cgroup: PathBuf,
        /// Who serves them.
        holder: Box<Overlap>,
    },
    /// The cgroup has no socket programs of this registry.
    #[error(
        "registry '{registry}' has no socket programs attached to {}; it has them attached to {attached}",
        .cgroup.display()
    )]
    NotAttached {
        /// The registry's name.
        registry: RegistryName,
        /// The cgroup that was asked for.
        cgroup: PathBuf,
        /// Where they are.
        attached: String,
    },
    /// There is no cgroup to detach them from.
    #[error("there is no cgroup {}; if it was removed, its socket programs went with it", .cgroup.display())]
    NoCgroup {
        /// The registry's name.
        registry: RegistryName,
        /// The cgroup that was asked for.
        cgroup: PathBuf,
    },
    /// A pin of what is attached is missing, or something else.
    #[error("{} is not what attaching socket programs pins there: {why}", .path.display())]
    Damaged {
        /// The registry's name.
        registry: RegistryName,
        /// The pin.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The links of the host could not be listed, so nobody knows who serves which cgroup.
    #[error("cannot list the BPF links of this host: {0}; this needs CAP_SYS_ADMIN, run as root")]
    Links(io::Error),
    /// Loading failed.
    #[error(transparent)]
    Bind(Box<BindError>),
    /// Attaching, pinning or detaching failed.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The registry could not be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// libbpf or the kernel refused a call on a map or a program.
    #[error("cannot {action}: {error:#}")]
    Bpf {
        /// What was tried.
        action: String,
        /// Why it failed.
        error: libbpf_rs::Error,
    },
    /// A folder or a pin could not be made, read or removed.
    #[error("cannot {action} {}: {error}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
}

impl SocketProgramsError {
    /// What the caller can do about it.
    pub fn hints(&self) -> Vec<Hint> {
        match self {
            SocketProgramsError::OtherSize { registry, .. }
            | SocketProgramsError::OtherVersion { registry }
            | SocketProgramsError::NoCgroup { registry, .. }
            | SocketProgramsError::Damaged { registry, .. } => {
                vec![Hint::DetachSockets { registry: registry.clone(), bpffs: None, cgroup: None }]
            }
            SocketProgramsError::Overlap { holder, .. } => vec![holder.hint()],
            SocketProgramsError::Bind(error) => error.hints(),
            SocketProgramsError::Attach(error) => error.hints(),
            SocketProgramsError::Registry(error) => error.hints(),
            _ => Vec::new(),
        }
    }

    /// The verifier's whole log, if the verifier refused a program.
    pub fn verifier_log(&self) -> Option<&str> {
        match self {
            SocketProgramsError::Bind(error) => error.verifier_log(),
            _ => None,
        }
    }
}

impl From<BindError> for SocketProgramsError {
    fn from(error: BindError) -> SocketProgramsError {
        SocketProgramsError::Bind(Box::new(error))
    }
}

/// Socket programs that serve some of the sockets that others were to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Overlap {
    /// The cgroup they are attached to.
    pub cgroup: PathBuf,
    /// Where that is, seen from the cgroup that was tried.
    pub place: Place,
    /// Their registry's name, if it is in the same BPF file system or in the one of the host.
    pub registry: Option<RegistryName>,
    /// The BPF file system of that registry.
    pub bpffs: Option<PathBuf>,
    /// Their registry's id.
    pub registry_id: u64,
}

impl Overlap {
    /// How to detach these programs.
    pub fn hint(&self) -> Hint {
        match &self.registry {
            Some(registry) => Hint::DetachSockets {
                registry: registry.clone(),
                bpffs: self.bpffs.clone(),
                cgroup: Some(self.cgroup.clone()),
            },
            None => Hint::DetachSocketsElsewhere,
        }
    }
}

/// Where a cgroup is, seen from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// It is the same one.
    Same,
    /// It is above: its programs serve the other one's sockets too.
    Above,
    /// It is below.
    Below,
}

fn overlap(holder: &Overlap) -> String {
    let whose = match &holder.registry {
        Some(name) => format!("of registry '{name}'"),
        None => format!("of a registry in another BPF file system (id {:016x})", holder.registry_id),
    };
    let cgroup = holder.cgroup.display();
    match holder.place {
        Place::Same => format!("it has some already, {whose}"),
        Place::Above => format!("its sockets are served already, by programs {whose} on {cgroup} above it"),
        Place::Below => format!("{cgroup} below it has some, {whose}, and a socket can be served by one only"),
    }
}
