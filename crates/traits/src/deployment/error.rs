//! Why an object is not up, or still is.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use crate::{
    Hint,
    attach::{AttachError, Feature, XdpMode},
    bind::BindError,
    bpffs::BpffsError,
    registry::{RegistryError, RegistryName, errno_of, privilege_hint},
};

/// Why an object is not up, or still is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeployError {
    /// A deployment's name has a character that a bpffs does not take, or is empty.
    #[error("deployment name {0:?}: use letters, digits, '_' and '-', at most 63, and start with a letter or digit")]
    Name(String),
    /// Something of this name is up.
    #[error("{name} is already up in registry {registry}")]
    Exists {
        /// The deployment.
        name: String,
        /// The registry's name.
        registry: RegistryName,
    },
    /// Nothing of this name is up.
    #[error("nothing named {name} is up in registry {registry}; up: {up}")]
    NotUp {
        /// The deployment.
        name: String,
        /// The registry's name.
        registry: String,
        /// What is.
        up: String,
    },
    /// A hook was given for a netfilter program that the object does not have.
    #[error("{object} has no netfilter program {program}; {}", netfilter_programs(.programs))]
    NoNetfilterProgram {
        /// The deployment that was to be.
        object: String,
        /// The name that was given.
        program: String,
        /// The object's netfilter programs.
        programs: Vec<String>,
    },
    /// The object has no program that could be attached.
    #[error("{0} has no program to attach")]
    NoProgram(String),
    /// It was not said where a program is to be attached.
    #[error("program {program} (section {section}) needs {needs}")]
    Where {
        /// The program.
        program: String,
        /// Its ELF section.
        section: String,
        /// What was not said.
        needs: Needs,
    },
    /// A program is of a type that is not attached to a hook of its own.
    #[error("program {program} (section {section}) cannot be attached by `up`: {why}")]
    Section {
        /// The program.
        program: String,
        /// Its ELF section.
        section: String,
        /// Why.
        why: &'static str,
    },
    /// The registry's area does not fit into the metadata that the running kernel takes: every set would fail.
    #[error(
        "registry {registry} has an area of {area_len} bytes, and this kernel takes {longest} bytes of XDP metadata ({}): \
         no trait could be set; `traits registry remove {registry}` and `traits registry create {registry}` make one \
         that fits",
        Feature::LongXdpMetadata
    )]
    TooLong {
        /// The registry's name.
        registry: String,
        /// Bytes of its area.
        area_len: usize,
        /// Bytes that the kernel takes.
        longest: usize,
    },
    /// What it was loaded from was not kept: by an earlier version of this library, or before Linux 6.0 because it has more than
    /// 4 MiB.
    #[error(
        "{name} was brought up by an earlier version, or from too large an object for this kernel, and what it was loaded from \
         was not kept: replace it first, or, a border, attach it again"
    )]
    NoSource {
        /// The deployment.
        name: String,
        /// The registry's name.
        registry: RegistryName,
    },
    /// It cannot be loaded again with the registry's new secrets.
    #[error("{name} cannot be loaded with new secrets: {why}")]
    Rebind {
        /// The deployment.
        name: String,
        /// Why.
        why: String,
    },
    /// There is no bpffs to hold deployments.
    #[error("no deployment can be reached: {0}")]
    Bpffs(BpffsError),
    /// The registry could not be asked.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Loading failed.
    #[error(transparent)]
    Bind(Box<BindError>),
    /// Attaching, pinning or detaching failed.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The object does not have what its [`Setup`](super::Setup) speaks of.
    #[error("{object} has no {what} {name}, which is to be set up; it does not belong to its description")]
    Missing {
        /// The deployment that was to be.
        object: String,
        /// `map`, `program` or `variable`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A variable or an entry of a map has another size in the object.
    #[error("{name} of {object} has {expected} bytes, not {found}")]
    Size {
        /// The deployment that was to be.
        object: String,
        /// The variable or map.
        name: String,
        /// Bytes it has in the object.
        expected: usize,
        /// Bytes that were given.
        found: usize,
    },
    /// A map that is shared by all deployments was made by another version, and has another shape.
    #[error(
        "map {map} is shared by all that is up, and the one at {} has another shape; take everything down that uses it, \
         and remove it", path.display()
    )]
    SharedMap {
        /// The map.
        map: String,
        /// Where it is pinned.
        path: PathBuf,
    },
    /// A program that asks the network card cannot run in the stack.
    #[error(
        "program {program} reads what the network card says of packets (XDP metadata functions), which generic mode \
         does not have; use native mode"
    )]
    GenericDeviceBound {
        /// The program.
        program: String,
    },
    /// A replacement cannot put an XDP program in another mode.
    #[error("program {program} runs in {found} mode, and replacing keeps the mode; take it down first")]
    ModeChange {
        /// The program.
        program: String,
        /// The mode in use.
        found: XdpMode,
    },
    /// The kernel refused the program that runs others from a slot.
    #[error("cannot load {dispatcher}, which runs the object's program there: {error:#}")]
    Dispatcher {
        /// Its name.
        dispatcher: String,
        /// libbpf's error.
        error: libbpf_rs::Error,
    },
    /// A map could not be made, filled or read.
    #[error("cannot {action} map {map}: {error:#}{}", privilege_hint(Some(errno_of(error))))]
    Map {
        /// What was tried.
        action: &'static str,
        /// On which map.
        map: String,
        /// Why it failed.
        error: libbpf_rs::Error,
    },
    /// A folder or pin of the bpffs could not be made, read or removed.
    #[error("cannot {action} {}: {error}{}", path.display(), privilege_hint(error.raw_os_error()))]
    Folder {
        /// What was tried.
        action: &'static str,
        /// On which folder.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
}

impl DeployError {
    /// What the caller can do about it.
    pub fn hints(&self) -> Vec<Hint> {
        let replace = |name: &String, registry: &RegistryName| Hint::Replace {
            registry: registry.clone(),
            deployment: name.clone(),
        };
        match self {
            DeployError::Bpffs(error) => error.hints(),
            DeployError::Registry(error) => error.hints(),
            DeployError::Bind(error) => error.hints(),
            DeployError::Attach(error) => error.hints(),
            DeployError::Exists { name, registry } => {
                let take_down = Hint::TakeDown { registry: registry.clone(), deployment: name.clone() };
                vec![take_down, replace(name, registry)]
            }
            DeployError::NoSource { name, registry } => vec![replace(name, registry)],
            DeployError::NoNetfilterProgram { programs, .. } if programs.is_empty() => vec![Hint::OmitNetfilterHook],
            DeployError::Where { program, needs, .. } => vec![match needs {
                Needs::Interface => Hint::NameInterface,
                Needs::Cgroup { .. } => Hint::NameCgroup,
                Needs::NetfilterHook => Hint::NameNetfilterHook { program: program.clone() },
            }],
            DeployError::ModeChange { .. } => vec![Hint::OmitMode],
            _ => Vec::new(),
        }
    }
}

/// What must be said to attach a program.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Needs {
    /// An interface.
    Interface,
    /// A cgroup.
    Cgroup {
        /// One of this host.
        example: PathBuf,
    },
    /// A hook of netfilter.
    NetfilterHook,
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Needs::Interface => f.write_str("an interface"),
            Needs::Cgroup { example } => write!(f, "a cgroup, such as {}", example.display()),
            Needs::NetfilterHook => f.write_str("a hook of netfilter"),
        }
    }
}

impl From<BpffsError> for DeployError {
    fn from(error: BpffsError) -> DeployError {
        DeployError::Bpffs(error)
    }
}

impl From<BindError> for DeployError {
    fn from(error: BindError) -> DeployError {
        DeployError::Bind(Box::new(error))
    }
}

fn netfilter_programs(programs: &[String]) -> String {
    match programs {
        [] => "it has none".to_owned(),
        programs => format!("it has {}", programs.join(", ")),
    }
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DeployError {
    let path = path.to_owned();
    move |error| DeployError::Folder { action, path, error }
}

pub(super) fn map_failed(action: &'static str, map: &str) -> impl FnOnce(libbpf_rs::Error) -> DeployError {
    let map = map.to_owned();
    move |error| DeployError::Map { action, map, error }
}
