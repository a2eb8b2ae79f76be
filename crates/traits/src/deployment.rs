//! Loading a bound object and attaching all of its programs for good, and taking them away again.
//!
//! [`Deployment::up`] attaches every program of an object to the hook its ELF section names, and pins the links in
//! `<bpffs>/packet_traits_up/<registry>/<name>/`, so that they outlive the process. It is all or nothing: if one program
//! cannot be attached, none stays. [`Deployment::down`] detaches them. There is no daemon; the pins are the only state.
//!
//! | section | attached to |
//! |---|---|
//! | `xdp`, `xdp.frags` | the interface |
//! | `tc`, `tc/ingress`, `tcx/ingress`, `classifier` | the interface's ingress |
//! | `tc/egress`, `tcx/egress` | the interface's egress |
//! | `netfilter` | the hooks that [`UpOptions::netfilter`] gives for it |
//! | `cgroup_skb/ingress`, `cgroup_skb/egress`, `sockops` | the cgroup |
//! | `tp_btf/…` | the tracepoint |

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use crate::{
    attach::{
        AttachError, Attachment, AttachmentInfo, CgroupHook, Direction, Hook, NetfilterOptions, TcxOptions, XdpMode,
        cgroup, netfilter, tcx, tracing, xdp,
    },
    bind::{BindError, BoundObject},
    registry::Registry,
};

/// The folder of a bpffs that deployments are pinned in.
const ROOT: &str = "packet_traits_up";

/// Name of a deployment that is being made; never that of a finished one.
const UNFINISHED: &str = "_new";

/// Where the programs of an object go.
#[derive(Clone, Debug, Default)]
pub struct UpOptions {
    /// The interface for XDP and TC programs: its index in the calling thread's network namespace.
    pub interface: Option<u32>,
    /// How XDP programs are attached.
    pub xdp_mode: XdpMode,
    /// The cgroup for cgroup programs; none: the root of the cgroup v2 hierarchy.
    pub cgroup: Option<PathBuf>,
    /// The hooks of netfilter programs, by program name. A program may be given several times.
    pub netfilter: Vec<(String, NetfilterOptions)>,
}

/// Why an object is not up, or still is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeployError {
    /// A deployment's name has a character that a bpffs does not take, or is empty.
    #[error("deployment name {0:?}: use letters, digits, '_' and '-', at most 63, and start with a letter or digit")]
    Name(String),
    /// Something of this name is up.
    #[error("{name} is already up in registry {registry}; `traits down {name}` takes it down")]
    Exists {
        /// The deployment.
        name: String,
        /// The registry's name.
        registry: String,
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
    /// The object has no program that could be attached.
    #[error("{0} has no program to attach")]
    NoProgram(String),
    /// An option that a program needs was not given.
    #[error("program {program} (section {section}) needs to know where: {hint}")]
    Where {
        /// The program.
        program: String,
        /// Its ELF section.
        section: String,
        /// What to say.
        hint: String,
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
    /// Loading failed.
    #[error(transparent)]
    Bind(Box<BindError>),
    /// Attaching, pinning or detaching failed.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A folder of the bpffs could not be made, read or removed.
    #[error("{action} {}: {source}", path.display())]
    Folder {
        /// What was tried.
        action: &'static str,
        /// On which folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl From<BindError> for DeployError {
    fn from(error: BindError) -> DeployError {
        DeployError::Bind(Box::new(error))
    }
}

/// Programs that are attached and pinned under one name.
#[derive(Debug)]
pub struct Deployment {
    name: String,
    attached: Vec<Deployed>,
}

/// One attached program of a deployment.
#[derive(Clone, Debug)]
pub struct Deployed {
    /// The program's name, as in the source; with the hook behind it if it is attached more than once.
    pub program: String,
    /// Where it is attached.
    pub info: AttachmentInfo,
    /// The mode in use, for an XDP program that was just attached.
    pub xdp_mode: Option<XdpMode>,
}

impl Deployment {
    /// Loads an object and attaches its programs under `name`.
    ///
    /// # Errors
    /// Whatever it is, nothing stays attached. [`DeployError::Exists`] if something of this name is up.
    pub fn up(
        name: &str,
        object: BoundObject<'_>,
        registry: &Registry,
        options: &UpOptions,
    ) -> Result<Deployment, DeployError> {
        let folder = folder(registry, name)?;
        if folder.exists() {
            return Err(DeployError::Exists { name: name.to_owned(), registry: registry.name().to_string() });
        }
        let loaded = object.load()?;
        let mut attachments = Vec::new();
        for program in loaded.object().progs() {
            let program = Program {
                name: program.name().to_string_lossy().into_owned(),
                section: program.section().to_string_lossy().into_owned(),
                fd: program.as_fd().try_clone_to_owned().map_err(|source| DeployError::Folder {
                    action: "duplicating a program's descriptor for",
                    path: folder.clone(),
                    source,
                })?,
            };
            attachments.extend(program.attach(options)?);
        }
        if attachments.is_empty() {
            return Err(DeployError::NoProgram(name.to_owned()));
        }
        pin_all(&folder, &mut attachments)?;
        let attached = attachments
            .iter()
            .map(|(program, attachment, xdp_mode)| Deployed {
                program: program.clone(),
                info: attachment.info().clone(),
                xdp_mode: *xdp_mode,
            })
            .collect();
        Ok(Deployment { name: name.to_owned(), attached })
    }

    /// Detaches the programs of the deployment `name`. Returns what was attached.
    pub fn down(name: &str, registry: &Registry) -> Result<Deployment, DeployError> {
        let folder = folder(registry, name)?;
        if !folder.exists() {
            let up: Vec<_> = Deployment::list(registry)?.into_iter().map(|deployment| deployment.name).collect();
            return Err(DeployError::NotUp {
                name: name.to_owned(),
                registry: registry.name().to_string(),
                up: if up.is_empty() { "nothing".to_owned() } else { up.join(", ") },
            });
        }
        let deployment = Deployment::read(name, &folder)?;
        remove(&folder)?;
        // the registry's folder goes with its last deployment
        let _ = folder.parent().map(fs::remove_dir);
        let _ = folder.parent().and_then(Path::parent).map(fs::remove_dir);
        Ok(deployment)
    }

    /// What is up in a registry.
    pub fn list(registry: &Registry) -> Result<Vec<Deployment>, DeployError> {
        let root = root(registry);
        let entries = match fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(DeployError::Folder { action: "reading", path: root, source }),
        };
        let mut found = Vec::new();
        for entry in entries.flatten().filter(|entry| entry.file_name() != UNFINISHED) {
            found.push(Deployment::read(&entry.file_name().to_string_lossy(), &entry.path())?);
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its programs.
    pub fn attached(&self) -> &[Deployed] {
        &self.attached
    }

    fn read(name: &str, folder: &Path) -> Result<Deployment, DeployError> {
        let mut attached = Vec::new();
        for pin in pins(folder)? {
            let program = pin.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let attachment = Attachment::from_pinned(&pin)?;
            attached.push(Deployed { program, info: attachment.info().clone(), xdp_mode: None });
        }
        Ok(Deployment { name: name.to_owned(), attached })
    }
}

type Attached = (String, Attachment, Option<XdpMode>);

/// A loaded program and where its source says it goes.
struct Program {
    name: String,
    section: String,
    fd: std::os::fd::OwnedFd,
}

impl Program {
    fn attach(&self, options: &UpOptions) -> Result<Vec<Attached>, DeployError> {
        let (kind, rest) = self.section.split_once('/').unwrap_or((&self.section, ""));
        let kind = kind.trim_start_matches('?');
        let one = |attachment| Ok(vec![(self.name.clone(), attachment, None)]);
        match (kind, rest) {
            ("xdp" | "xdp.frags", "") => {
                let (attachment, mode) = xdp::attach(self.fd.as_fd(), self.interface(options)?, options.xdp_mode)?;
                Ok(vec![(self.name.clone(), attachment, Some(mode))])
            }
            ("tc" | "tcx", "ingress") | ("tc" | "classifier", "") => one(self.attach_tc(options, Direction::Ingress)?),
            ("tc" | "tcx", "egress") => one(self.attach_tc(options, Direction::Egress)?),
            ("netfilter", _) => self.attach_netfilter(options),
            ("cgroup_skb", "ingress") => one(self.attach_cgroup(options, CgroupHook::Ingress)?),
            ("cgroup_skb", "egress") => one(self.attach_cgroup(options, CgroupHook::Egress)?),
            ("sockops", "") => one(self.attach_cgroup(options, CgroupHook::SockOps)?),
            ("tp_btf", _) => one(tracing::attach(self.fd.as_fd())?),
            ("xdp" | "xdp.frags", _) => {
                Err(self.refused("it runs from a DEVMAP or CPUMAP entry, which a program fills"))
            }
            ("socket", _) => Err(self.refused("a socket filter belongs to one socket, which attaches it itself")),
            _ => Err(self.refused("no hook is known for this section; attach it with the library")),
        }
    }

    fn attach_tc(&self, options: &UpOptions, direction: Direction) -> Result<Attachment, DeployError> {
        Ok(tcx::attach(self.fd.as_fd(), self.interface(options)?, &TcxOptions::new(direction))?)
    }

    fn attach_cgroup(&self, options: &UpOptions, hook: CgroupHook) -> Result<Attachment, DeployError> {
        let path = match &options.cgroup {
            Some(path) => path.clone(),
            None => cgroup::cgroup_root()?,
        };
        Ok(cgroup::attach_path(self.fd.as_fd(), &path, hook)?)
    }

    fn attach_netfilter(&self, options: &UpOptions) -> Result<Vec<Attached>, DeployError> {
        let places: Vec<_> = options.netfilter.iter().filter(|(program, _)| *program == self.name).collect();
        if places.is_empty() {
            return Err(self.needs(format!("--netfilter {}=ipv4:local-in (FAMILY:HOOK[:PRIORITY])", self.name)));
        }
        places
            .iter()
            .map(|(_, place)| {
                let attachment = netfilter::attach(self.fd.as_fd(), place)?;
                let name = match attachment.info().hook {
                    Hook::Netfilter { family, hook, .. } if places.len() > 1 => {
                        format!("{}_{family}_{}", self.name, hook.to_string().replace('-', "_"))
                    }
                    _ => self.name.clone(),
                };
                Ok((name, attachment, None))
            })
            .collect()
    }

    fn interface(&self, options: &UpOptions) -> Result<u32, DeployError> {
        options.interface.ok_or_else(|| self.needs("--dev INTERFACE".to_owned()))
    }

    fn needs(&self, hint: String) -> DeployError {
        DeployError::Where { program: self.name.clone(), section: self.section.clone(), hint }
    }

    fn refused(&self, why: &'static str) -> DeployError {
        DeployError::Section { program: self.name.clone(), section: self.section.clone(), why }
    }
}

/// Pins into an unfinished folder that is then renamed, so that a deployment is there whole or not at all.
fn pin_all(folder: &Path, attachments: &mut [Attached]) -> Result<(), DeployError> {
    let unfinished = folder.with_file_name(UNFINISHED);
    if unfinished.exists() {
        // of a process that died in the midst of this
        remove(&unfinished)?;
    }
    fs::create_dir_all(&unfinished).map_err(|source| DeployError::Folder {
        action: "making",
        path: unfinished.clone(),
        source,
    })?;
    let pinned = attachments
        .iter_mut()
        .try_for_each(|(name, attachment, _)| Ok(attachment.pin(unfinished.join(name.as_str()))?))
        .and_then(|()| {
            fs::rename(&unfinished, folder).map_err(|source| DeployError::Folder {
                action: "naming",
                path: folder.to_owned(),
                source,
            })
        });
    if pinned.is_err() {
        // the error to report is the first one
        let _ = remove(&unfinished);
    }
    pinned
}

/// Detaches what is pinned in a folder and removes the folder.
fn remove(folder: &Path) -> Result<(), DeployError> {
    for pin in pins(folder)? {
        Attachment::from_pinned(&pin)?.detach()?;
    }
    fs::remove_dir(folder).map_err(|source| DeployError::Folder { action: "removing", path: folder.to_owned(), source })
}

fn pins(folder: &Path) -> Result<Vec<PathBuf>, DeployError> {
    let failed = |source| DeployError::Folder { action: "reading", path: folder.to_owned(), source };
    let mut pins: Vec<_> = fs::read_dir(folder)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    pins.sort();
    Ok(pins)
}

/// The folder of a registry's deployments, beside the folder of registries.
fn root(registry: &Registry) -> PathBuf {
    let bpffs = registry.dir().parent().and_then(Path::parent).unwrap_or(registry.dir());
    bpffs.join(ROOT).join(registry.name().as_str())
}

fn folder(registry: &Registry, name: &str) -> Result<PathBuf, DeployError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !starts || name.len() > 63 || !name.chars().all(plain) {
        return Err(DeployError::Name(name.to_owned()));
    }
    Ok(root(registry).join(name))
}
