//! Loading a bound object and attaching all of its programs for good, and taking them away again.
//!
//! [`Deployment::up`] attaches every program of an object to the hook its ELF section names, and pins the links in
//! `<bpffs>/packet_traits_up/<registry>/<name>/`, so that they outlive the process. It is all or nothing: if one program
//! cannot be attached, none stays. [`Deployment::down`] detaches them. There is no daemon; the pins are the only state.
//!
//! The pins are made in a folder `_new` beside the deployments, which is then renamed. Who makes or removes a deployment
//! holds a lock on the folder of the registry's deployments, so a `_new` that the holder finds is one that a killed
//! process left; the next [`Deployment::up`] detaches what is in it.
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
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use crate::{
    attach::{
        AttachError, Attachment, AttachmentInfo, CgroupHook, Direction, Feature, Hook, NetfilterOptions, TcxOptions,
        XdpMode, cgroup, netfilter, tcx, tracing, xdp,
    },
    bind::{BindError, BoundObject},
    bpffs::{self, BpffsError},
    registry::{DirLock, Registry, RegistryName},
};

/// The folder of a bpffs that deployments are pinned in.
const ROOT: &str = "packet_traits_up";

/// Name of a deployment that is being made, or that a killed process left half made; never that of a finished one.
const UNFINISHED: &str = "_new";

/// Where a registry's deployments are. They stay where they are, and can be taken down, when the registry is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    bpffs: PathBuf,
    registry: RegistryName,
}

impl Location {
    /// The deployments of the registry of this name in this bpffs.
    pub fn new(bpffs: impl Into<PathBuf>, registry: RegistryName) -> Location {
        Location { bpffs: bpffs.into(), registry }
    }

    /// The folder of the deployments, beside the folder of registries.
    fn root(&self) -> PathBuf {
        self.bpffs.join(ROOT).join(self.registry.as_str())
    }

    fn folder(&self, name: &str) -> Result<PathBuf, DeployError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !starts || name.len() > 63 || !name.chars().all(plain) {
            return Err(DeployError::Name(name.to_owned()));
        }
        Ok(self.root().join(name))
    }
}

impl From<&Registry> for Location {
    fn from(registry: &Registry) -> Location {
        // <bpffs>/packet_traits/<name>
        let bpffs = registry.dir().parent().and_then(Path::parent).unwrap_or(registry.dir());
        Location::new(bpffs, registry.name().clone())
    }
}

/// Where the programs of an object go.
#[derive(Clone, Debug, Default)]
pub struct UpOptions {
    /// The interface for XDP and TC programs: its index in the calling thread's network namespace.
    pub interface: Option<u32>,
    /// How XDP programs are attached.
    pub xdp_mode: XdpMode,
    /// The directory of the cgroup for cgroup programs.
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
    /// The kernel can attach a program, but not so that it outlives the process.
    #[error(
        "program {program} (section {section}) cannot stay attached: {feature} ({}), and what older kernels have \
         instead, a clsact filter, cannot be pinned; run a newer kernel, or load what `traits bind` writes with a \
         loader of your own", feature.config()
    )]
    Unpinnable {
        /// The program.
        program: String,
        /// Its ELF section.
        section: String,
        /// What the kernel lacks.
        feature: Feature,
    },
    /// There is no bpffs to hold deployments.
    #[error("no deployment can be reached: {0}")]
    Bpffs(#[from] BpffsError),
    /// Loading failed.
    #[error(transparent)]
    Bind(Box<BindError>),
    /// Attaching, pinning or detaching failed.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A folder of the bpffs could not be made, read or removed.
    #[error("cannot {action} {}: {source}", path.display())]
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

fn netfilter_programs(programs: &[String]) -> String {
    match programs {
        [] => "it has none, so leave --netfilter out".to_owned(),
        programs => format!("it has {}", programs.join(", ")),
    }
}

/// Programs that are attached and pinned under one name.
#[derive(Debug)]
pub struct Deployment {
    name: String,
    attached: Vec<Deployed>,
    unreadable: Vec<Unreadable>,
}

/// A pin in a deployment's folder that is not an attached program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its file name.
    pub pin: String,
    /// Why it is not.
    pub why: String,
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
    /// Loads an object and attaches its programs under `name`. Waits while another process does so for the same
    /// registry.
    ///
    /// # Errors
    /// Whatever it is, nothing stays attached. [`DeployError::Exists`] if something of this name is up.
    pub fn up(
        name: &str,
        object: BoundObject<'_>,
        registry: &Registry,
        options: &UpOptions,
    ) -> Result<Deployment, DeployError> {
        let location = Location::from(registry);
        let folder = location.folder(name)?;
        let exists = || DeployError::Exists { name: name.to_owned(), registry: location.registry.to_string() };
        let lock = RootLock::make(&location)?;
        if folder.exists() {
            return Err(exists());
        }
        // before attaching: what it holds may be in the way
        let unfinished = lock.root.join(UNFINISHED);
        remove(&unfinished)?;

        let loaded = object.load()?;
        let mut programs = Vec::new();
        for program in loaded.object().progs().filter(libbpf_rs::ProgramImpl::autoload) {
            programs.push(Program {
                name: program.name().to_string_lossy().into_owned(),
                section: program.section().to_string_lossy().into_owned(),
                fd: program
                    .as_fd()
                    .try_clone_to_owned()
                    .map_err(failed("duplicate a program's descriptor for", &folder))?,
            });
        }
        refuse_unknown_netfilter(name, &programs, options)?;
        let mut attachments = Vec::new();
        for program in &programs {
            attachments.extend(program.attach(options)?);
        }
        if attachments.is_empty() {
            return Err(DeployError::NoProgram(name.to_owned()));
        }
        if let Err(error) = pin_all(&unfinished, &folder, &mut attachments) {
            // the error to report is the first one
            let _ = remove(&unfinished);
            let taken = matches!(&error, DeployError::Folder { source, .. } if matches!(
                source.kind(),
                io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
            ));
            return Err(if taken { exists() } else { error });
        }
        let attached = attachments
            .iter()
            .map(|(program, attachment, xdp_mode)| Deployed {
                program: program.clone(),
                info: attachment.info().clone(),
                xdp_mode: *xdp_mode,
            })
            .collect();
        Ok(Deployment { name: name.to_owned(), attached, unreadable: Vec::new() })
    }

    /// Detaches the programs of the deployment `name`, and removes what else is pinned in its folder. Returns what was
    /// there. The registry need not be there any more.
    ///
    /// What a killed process left half made has the name `_new`.
    ///
    /// # Errors
    /// [`DeployError::NotUp`]; [`DeployError::Attach`] or [`DeployError::Folder`] if something could not be removed.
    pub fn down(name: &str, location: &Location) -> Result<Deployment, DeployError> {
        let folder = if name == UNFINISHED { location.root().join(name) } else { location.folder(name)? };
        bpffs::require(&location.bpffs)?;
        let lock = RootLock::take(location)?;
        if lock.is_none() || !folder.exists() {
            let up: Vec<_> = Deployment::list(location)?.into_iter().map(|deployment| deployment.name).collect();
            return Err(DeployError::NotUp {
                name: name.to_owned(),
                registry: location.registry.to_string(),
                up: if up.is_empty() { "nothing".to_owned() } else { up.join(", ") },
            });
        }
        let deployment = Deployment::read(name, &folder);
        remove(&folder)?;
        Ok(deployment)
    }

    /// What is up in a registry, in the order of names. The registry need not be there any more.
    ///
    /// Includes the deployment that is being made at the moment, or that a killed process left half made; see
    /// [`unfinished`](Self::unfinished).
    ///
    /// # Errors
    /// [`DeployError::Bpffs`]; [`DeployError::Folder`] if the registry's folder cannot be read. What cannot be read in
    /// a deployment is in [`unreadable`](Self::unreadable).
    pub fn list(location: &Location) -> Result<Vec<Deployment>, DeployError> {
        bpffs::require(&location.bpffs)?;
        let root = location.root();
        let mut found = Vec::new();
        for path in children(&root)? {
            let deployment = Deployment::read(&file_name(&path), &path);
            // It may have been taken down meanwhile.
            if path.exists() {
                found.push(deployment);
            }
        }
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

    /// What else is pinned in its folder, or cannot be read.
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    /// Whether it is not whole: it is being made, or the process that made it was killed. In the latter case the next
    /// [`up`](Self::up) in the registry takes it away.
    pub fn unfinished(&self) -> bool {
        self.name == UNFINISHED
    }

    fn read(name: &str, folder: &Path) -> Deployment {
        let mut deployment = Deployment { name: name.to_owned(), attached: Vec::new(), unreadable: Vec::new() };
        let pins = children(folder).unwrap_or_else(|error| {
            deployment.unreadable.push(Unreadable { pin: name.to_owned(), why: error.to_string() });
            Vec::new()
        });
        for path in pins {
            let pin = file_name(&path);
            match Attachment::from_pinned(&path) {
                Ok(attachment) => {
                    let info = attachment.info().clone();
                    deployment.attached.push(Deployed { program: pin, info, xdp_mode: None });
                }
                // taken away meanwhile
                Err(AttachError::Pin { errno: libc::ENOENT, .. }) => {}
                Err(error) => deployment.unreadable.push(Unreadable { pin, why: error.to_string() }),
            }
        }
        deployment
    }
}

/// The lock on the folder of a registry's deployments. The folder goes with its last deployment.
struct RootLock {
    root: PathBuf,
    _lock: DirLock,
}

impl RootLock {
    /// Makes the folder if it is not there, and locks it.
    fn make(location: &Location) -> Result<RootLock, DeployError> {
        let root = location.root();
        loop {
            make_dir(&location.bpffs.join(ROOT)).map_err(failed("make", &root))?;
            match make_dir(&root) {
                // Another process took its last deployment down, and the folder above with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(failed("make", &root))?,
            }
            if let Some(lock) = RootLock::take(location)? {
                return Ok(lock);
            }
        }
    }

    /// Locks the folder if it is there.
    fn take(location: &Location) -> Result<Option<RootLock>, DeployError> {
        let root = location.root();
        match DirLock::exclusive(&root) {
            Ok(lock) => Ok(Some(RootLock { root, _lock: lock })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("lock", &root)(error)),
        }
    }
}

impl Drop for RootLock {
    fn drop(&mut self) {
        // Both fail unless the folder is empty. Who waits for the lock sees that the folder is gone.
        if fs::remove_dir(&self.root).is_ok() {
            let _ = self.root.parent().map(fs::remove_dir);
        }
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
    fn is_netfilter(&self) -> bool {
        self.section.split('/').next() == Some("netfilter")
    }

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
        let attachment = tcx::attach(self.fd.as_fd(), self.interface(options)?, &TcxOptions::new(direction))?;
        if matches!(attachment.info().hook, Hook::Clsact(_)) {
            return Err(DeployError::Unpinnable {
                program: self.name.clone(),
                section: self.section.clone(),
                feature: Feature::Tcx,
            });
        }
        Ok(attachment)
    }

    fn attach_cgroup(&self, options: &UpOptions, hook: CgroupHook) -> Result<Attachment, DeployError> {
        let path = options.cgroup.as_deref().ok_or_else(|| {
            // Not the root by itself: a program that drops would cut off the host.
            let root = cgroup::cgroup_root().unwrap_or_else(|_| "/sys/fs/cgroup".into());
            self.needs(format!("--cgroup PATH, such as {}", root.join("system.slice").display()))
        })?;
        Ok(cgroup::attach_path(self.fd.as_fd(), path, hook)?)
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
                    // '-' is in no program's name, so this is not another program's.
                    Hook::Netfilter { family, hook, priority } if places.len() > 1 => {
                        format!("{}-{family}-{hook}-{priority}", self.name)
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

/// Refuses a hook for a program that the object does not have: it would be left out without a word.
fn refuse_unknown_netfilter(object: &str, programs: &[Program], options: &UpOptions) -> Result<(), DeployError> {
    let names = || programs.iter().filter(|program| program.is_netfilter()).map(|program| &program.name);
    match options.netfilter.iter().find(|(given, _)| !names().any(|name| name == given)) {
        Some((given, _)) => Err(DeployError::NoNetfilterProgram {
            object: object.to_owned(),
            program: given.clone(),
            programs: names().cloned().collect(),
        }),
        None => Ok(()),
    }
}

/// Pins into an unfinished folder that is then renamed, so that a deployment is there whole or not at all.
fn pin_all(unfinished: &Path, folder: &Path, attachments: &mut [Attached]) -> Result<(), DeployError> {
    make_dir(unfinished).map_err(failed("make", unfinished))?;
    for (name, attachment, _) in attachments {
        attachment.pin(unfinished.join(name.as_str()))?;
    }
    fs::rename(unfinished, folder).map_err(failed("name", folder))
}

/// Detaches what is pinned at or below a path and removes it. What is pinned there and is not an attachment loses its
/// pin; nothing there is fine.
fn remove(path: &Path) -> Result<(), DeployError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("look at", path)(error)),
        Ok(meta) if meta.is_dir() => {
            children(path)?.iter().try_for_each(|child| remove(child))?;
            fs::remove_dir(path).map_err(failed("remove", path))
        }
        Ok(_) => match Attachment::from_pinned(path) {
            Ok(attachment) => Ok(attachment.detach()?),
            Err(_) => fs::remove_file(path).map_err(failed("remove", path)),
        },
    }
}

/// What is in a folder, in the order of names; a folder that is not there has nothing in it.
fn children(folder: &Path) -> Result<Vec<PathBuf>, DeployError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed("read", folder))?,
    };
    let mut paths: Vec<_> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(failed("read", folder))?;
    paths.sort();
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Makes a directory for root only; one that is there is fine.
fn make_dir(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DeployError {
    let path = path.to_owned();
    move |source| DeployError::Folder { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_tcx_is_told_which_has_it() {
        let error =
            DeployError::Unpinnable { program: "mark".to_owned(), section: "tc".to_owned(), feature: Feature::Tcx };
        assert!(error.to_string().contains("TCX needs Linux 6.6"), "{error}");
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let location = Location::new("/bpf", RegistryName::default());
        assert_eq!(location.folder("edge-1").unwrap(), Path::new("/bpf/packet_traits_up/default/edge-1"));
        for wrong in ["", "..", "a.b", "a/b", "_new", "-a"] {
            assert!(matches!(location.folder(wrong), Err(DeployError::Name(_))), "{wrong}");
        }
    }
}
