//! The programs that serve the options of `<packet_traits/socket.h>`: attaching them to cgroups for good, and taking
//! them away.
//!
//! They serve the sockets of the processes in a cgroup and below it, as far as these were made there. A registry's
//! programs and maps are loaded once, whichever cgroups they are attached to. There is no daemon; the pins are the only
//! state, and are in the registry's folder:
//!
//! | pin | holds |
//! |---|---|
//! | `sockets/rings`, `sockets/slots` | traits of datagrams: a ring of slots for each socket; behind them, the instance and a user's share |
//! | `sockets/syns` | traits of the SYNs that are on their way through the handshake |
//! | `sockets/receive`, `sockets/send` | what each socket asked for and has received, and what it sends with |
//! | `sockets/programs/<name>` | the programs |
//! | `sockets/programs/build-<checksum>` | nothing; its name tells them from those of another build |
//! | `sockets/<cgroup id>/<name>` | the links of one cgroup |
//! | `sockets/_new`, `sockets/_old` | the links of a cgroup that are being made, or taken away |
//! | `sockets/_programs` | programs that are taking the place of others, or these others |
//!
//! Who attaches or detaches holds a lock on `sockets`. A cgroup's links appear whole, by a rename of `_new`, and go
//! whole, by one to `_old`. So both folders, and all of `sockets` if there are no links of any cgroup, are what a
//! killed process left; whoever holds the lock next takes that away.
//!
//! Programs of another build of this library are replaced by the next attach: the links get the new ones, which take over
//! the maps, so that sockets keep what they asked for. Then `_programs` and `programs` change places. A killed process may
//! have done that or not: the links get again what is in `programs`.
//!
//! Two registries' programs at one socket would both answer its options, and each put a handle of its own into the
//! marks of its datagrams. So a cgroup is refused if it, one above it or one below it has socket programs of any
//! registry.

mod cgroups;
mod error;
mod object;

use std::{
    fmt, fs, io,
    ops::Deref,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::SystemTime,
};

use libbpf_rs::MapCore;

pub use self::error::{Overlap, Place, SocketProgramsError};
use self::{
    cgroups::Cgroup,
    object::{Kept, Maps, Sizes},
};
use crate::{
    attach::{
        AttachError, Attachment, CgroupHook, Hook, Target,
        cgroup::{self, cgroup_root},
    },
    bind::LoadedObject,
    bpffs,
    registry::{DirLock, Registry, RegistryError, RegistryOptions, SOCKETS},
};

/// Links that are being made.
const NEW: &str = "_new";

/// Links that are being taken away.
const OLD: &str = "_old";

/// Name of the link by which closed sockets give their slots back.
const RELEASE: &str = "release";

/// What the name of such a link begins with, before the cgroup, that is kept for a detached one.
const KEPT_RELEASE: &str = "_release-";

/// The folder of programs.
const PROGRAMS: &str = "programs";

/// The folder of those that take their place.
const NEW_PROGRAMS: &str = "_programs";

/// One of the programs.
struct Role {
    /// Name of its pins.
    name: &'static str,
    /// Its name in the object, and in the kernel.
    program: &'static str,
    hook: CgroupHook,
    /// Whether it goes before other programs, which are to find what it does done.
    preorder: bool,
}

impl Role {
    const fn new(name: &'static str, program: &'static str, hook: CgroupHook) -> Role {
        Role { name, program, hook, preorder: false }
    }
}

/// The programs in the order of attaching. Detaching goes backwards: nobody switches on what is not served any more.
const ROLES: [Role; 6] = [
    Role::new(RELEASE, "pt_release", CgroupHook::SockRelease),
    Role::new("sockops", "pt_sockops", CgroupHook::SockOps),
    Role::new("ingress", "pt_ingress", CgroupHook::Ingress),
    Role { preorder: true, ..Role::new("egress", "pt_egress", CgroupHook::Egress) },
    Role::new("setsockopt", "pt_setsockopt", CgroupHook::SetSockOpt),
    Role::new("getsockopt", SERVING, CgroupHook::GetSockOpt),
];

/// Name of the program by which the kernel's links tell that a cgroup's sockets are served.
const SERVING: &str = "pt_getsockopt";

/// To which cgroup, and for how many sockets. Sizes that are not given are those of the registry's programs that are
/// attached already, or else the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// The cgroup's directory. Default: the root of the tree, which is every socket of the host.
    pub cgroup: Option<PathBuf>,
    /// How many UDP sockets may receive traits at once. Default: [`SOCKETS_DEFAULT`](Self::SOCKETS_DEFAULT).
    pub sockets: Option<u32>,
    /// How many of them one user may have; root may have all, and an eighth is for root alone. A socket counts for the user
    /// of the process that turned RCV_TRAITS on. Default: half of all.
    pub sockets_per_user: Option<u32>,
    /// Of how many datagrams a socket keeps the traits: a power of two. Default:
    /// [`SLOTS_DEFAULT`](Self::SLOTS_DEFAULT).
    pub slots: Option<u32>,
    /// How many connections may be in their handshake at once and have their SYN's traits kept. Default:
    /// [`PENDING_SYNS_DEFAULT`](Self::PENDING_SYNS_DEFAULT).
    pub pending_syns: Option<u32>,
}

impl AttachOptions {
    /// UDP sockets that may receive traits at once.
    pub const SOCKETS_DEFAULT: u32 = 256;
    /// Datagrams of a socket.
    pub const SLOTS_DEFAULT: u32 = 512;
    /// Connections in their handshake.
    pub const PENDING_SYNS_DEFAULT: u32 = 16384;

    fn new_sizes(&self) -> Result<Sizes, SocketProgramsError> {
        let sockets = self.sockets.unwrap_or(Self::SOCKETS_DEFAULT);
        let sizes = Sizes {
            sockets,
            per_user: self.sockets_per_user.unwrap_or(sockets.div_ceil(2)),
            slots: self.slots.unwrap_or(Self::SLOTS_DEFAULT),
            pending_syns: self.pending_syns.unwrap_or(Self::PENDING_SYNS_DEFAULT),
        };
        sizes.check()?;
        Ok(sizes)
    }

    /// Refuses sizes that were asked for and that the attached programs do not have.
    fn fit(&self, found: Sizes, registry: &Registry) -> Result<(), SocketProgramsError> {
        let sizes = [
            ("sockets", self.sockets, found.sockets),
            ("sockets of one user", self.sockets_per_user, found.per_user),
            ("slots", self.slots, found.slots),
            ("pending SYNs", self.pending_syns, found.pending_syns),
        ];
        for (what, wanted, found) in sizes {
            if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
                return Err(SocketProgramsError::OtherSize { registry: registry.name().clone(), what, found, wanted });
            }
        }
        Ok(())
    }
}

/// What [`SocketPrograms::attach`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The cgroup's id: the inode number of its directory.
    pub cgroup: u64,
    /// It had these programs already; nothing was changed, unless they are `updated`.
    pub already: bool,
    /// The registry's programs were of another build of this library. In all cgroups these took their place, and sockets
    /// kept what they had asked for.
    pub updated: bool,
}

/// A registry's socket programs, as they are attached.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketPrograms {
    /// Which loading of the programs it is; an application that has mapped the slots of another one sees that by it.
    pub instance: u64,
    /// How many UDP sockets may receive traits at once.
    pub sockets: u32,
    /// How many of them one user may have who is not root.
    pub sockets_per_user: u32,
    /// How many there are.
    pub sockets_used: u32,
    /// And of which users they are, in the order of user ids.
    pub users: Vec<SocketUser>,
    /// Of how many datagrams a socket keeps the traits.
    pub slots: u32,
    /// How many connections may be in their handshake at once and have their SYN's traits kept.
    pub pending_syns: u32,
    /// The programs, in the order of attaching.
    pub programs: Vec<SocketProgram>,
    /// The cgroups they are attached to.
    pub cgroups: Vec<SocketCgroup>,
    /// Links are being made or taken away, or were by a process that was killed.
    pub unfinished: bool,
    /// The programs are those of this build of the library; others are replaced by the next [`attach`](Self::attach).
    pub current: bool,
}

/// Whose processes receive datagrams' traits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketUser {
    /// The user id.
    pub uid: u32,
    /// On how many sockets.
    pub sockets: u32,
}

/// One of the programs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketProgram {
    /// Its name in the kernel.
    pub name: &'static str,
    /// Its id, as `bpftool prog` shows it.
    pub id: u32,
}

/// A cgroup that socket programs are attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketCgroup {
    /// Its id: the inode number of its directory.
    pub id: u64,
    /// Its directory; `None` if it was removed, or is not to be seen in this mount namespace.
    pub path: Option<PathBuf>,
    /// When the programs were attached.
    pub since: SystemTime,
    /// Names of the programs that are not attached any more, because someone detached them or the cgroup was removed.
    pub missing: Vec<&'static str>,
}

impl fmt::Display for SocketCgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}", path.display()),
            None => write!(f, "cgroup id {}", self.id),
        }
    }
}

impl SocketPrograms {
    /// Attaches the programs to a cgroup, and loads them first if the registry's are not loaded. They stay when the
    /// process ends. A cgroup that has them already is left as it is.
    ///
    /// If the registry's are of another build of this library, these take their place in all cgroups: sockets are served
    /// without a break, and keep what they asked for.
    ///
    /// # Errors
    /// Whatever it is, nothing stays attached that was not before. [`SocketProgramsError::OtherSize`],
    /// [`SocketProgramsError::OtherVersion`], [`SocketProgramsError::Overlap`], [`SocketProgramsError::Size`];
    /// [`SocketProgramsError::Bind`] if the kernel does not take the programs.
    pub fn attach(registry: &Registry, options: &AttachOptions) -> Result<Attached, SocketProgramsError> {
        let sizes = options.new_sizes()?;
        let cgroup = match &options.cgroup {
            Some(path) => Cgroup::open(path)?,
            None => Cgroup::open(&cgroup_root()?)?,
        };
        let folder = Folder::make(registry)?;
        folder.tidy()?;
        let loaded = !folder.links()?.is_empty();
        let mut updated = false;
        if loaded {
            let found = folder.sizes()?;
            options.fit(found, registry)?;
            updated = folder.update(found)?;
        }
        let links = folder.path.join(cgroup.id.to_string());
        if links.exists() {
            if missing(&links, cgroup.id).is_empty() {
                return Ok(Attached { cgroup: cgroup.id, already: true, updated });
            }
            folder.keep_release(cgroup.id)?;
            folder.take_away(&links)?;
        }
        cgroups::refuse_overlap(&cgroup, registry, SERVING, &[])?;

        let programs = if loaded {
            folder.programs()
        } else {
            folder.clear()?;
            folder.load(sizes)
        };
        let made = programs.and_then(|programs| folder.link(&cgroup, &programs));
        if let Err(error) = made {
            // the error to report is the first one
            let _ = folder.tidy().and_then(|()| folder.clear_unless_used());
            return Err(error);
        }
        remove(&folder.kept_release(cgroup.id))?;
        tracing::debug!(cgroup = %cgroup.path.display(), registry = %registry.name(), "socket programs attached");
        Ok(Attached { cgroup: cgroup.id, already: false, updated })
    }

    /// Detaches the programs from a cgroup; with the last cgroup they are unloaded. Answers what it was. What a process
    /// that was killed left half attached or half detached there goes, too.
    ///
    /// # Errors
    /// [`SocketProgramsError::NotAttached`]; [`SocketProgramsError::NoCgroup`]; [`SocketProgramsError::Attach`] if a program
    /// could not be detached.
    pub fn detach(registry: &Registry, cgroup: &Path) -> Result<SocketCgroup, SocketProgramsError> {
        let cgroup = Cgroup::open(cgroup).map_err(|error| match error {
            SocketProgramsError::Attach(AttachError::Cgroup { path, errno: libc::ENOENT, .. }) => {
                SocketProgramsError::NoCgroup { registry: registry.name().clone(), cgroup: path }
            }
            error => error,
        })?;
        let not_attached = |attached: &[SocketCgroup]| SocketProgramsError::NotAttached {
            registry: registry.name().clone(),
            cgroup: cgroup.path.clone(),
            attached: match attached {
                [] => "no cgroup".to_owned(),
                list => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            },
        };
        let Some(folder) = Folder::take(registry)? else { return Err(not_attached(&[])) };
        let left = folder.left_half(&cgroup);
        folder.tidy()?;
        let attached = folder.cgroups()?;
        let Some(found) = attached.iter().find(|found| found.id == cgroup.id) else {
            folder.clear_unless_used()?;
            return left.ok_or_else(|| not_attached(&attached));
        };
        folder.keep_release(cgroup.id)?;
        folder.take_away(&folder.path.join(cgroup.id.to_string()))?;
        folder.clear_unless_used()?;
        Ok(found.clone())
    }

    /// Detaches the programs from every cgroup, also from those that were removed, and unloads them. Answers which
    /// those were. It clears away whatever is pinned with them, and what a killed process left half attached.
    ///
    /// # Errors
    /// [`SocketProgramsError::Attach`] or [`SocketProgramsError::Io`] if something could not be removed.
    pub fn detach_all(registry: &Registry) -> Result<Vec<SocketCgroup>, SocketProgramsError> {
        detach_all_in(registry.dir().join(SOCKETS))
    }

    /// Detaches them all, also where the registry itself cannot be opened because its maps are damaged or of another version.
    ///
    /// # Errors
    /// As for [`detach_all`](Self::detach_all), and [`SocketProgramsError::Registry`] if there is no such registry, or its folder
    /// is not root's.
    pub fn detach_all_of(options: &RegistryOptions) -> Result<Vec<SocketCgroup>, SocketProgramsError> {
        detach_all_in(options.found_dir()?.join(SOCKETS))
    }

    /// A registry's socket programs; `None` if they are attached to no cgroup, and none is being made.
    ///
    /// # Errors
    /// [`SocketProgramsError::Damaged`] if something else is pinned in their place.
    pub fn status(registry: &Registry) -> Result<Option<SocketPrograms>, SocketProgramsError> {
        let folder = Folder { pins: Pins { path: registry.dir().join(SOCKETS), lock: None }, registry };
        match folder.read() {
            // Taken away in the meantime.
            Err(_) if !folder.path.exists() => Ok(None),
            other => other,
        }
    }
}

/// A registry's socket programs, loaded again and not yet attached. It holds the lock of their folder.
pub(crate) struct Rebinding<'r> {
    folder: Folder<'r>,
    /// `None` if none are attached.
    loaded: Option<LoadedObject>,
    cgroups: Vec<SocketCgroup>,
}

impl<'r> Rebinding<'r> {
    /// Loads them for the registry.
    pub(crate) fn prepare(registry: &'r Registry) -> Result<Rebinding<'r>, SocketProgramsError> {
        let folder = Folder::make(registry)?;
        folder.tidy()?;
        folder.clear_unless_used()?;
        let cgroups = folder.cgroups()?;
        let loaded = match cgroups[..] {
            [] => None,
            _ => Some(folder.load_over(folder.sizes()?)?),
        };
        Ok(Rebinding { folder, loaded, cgroups })
    }

    /// Ids of its programs: those that run, and those that are to replace them.
    pub(crate) fn programs(&self) -> Result<Vec<u32>, SocketProgramsError> {
        let Some(loaded) = &self.loaded else { return Ok(Vec::new()) };
        let running = self.folder.programs()?;
        let running = running.iter().map(|program| libbpf_rs::Program::id_from_fd(program.as_fd()).map_err(reading));
        running.chain(loaded.ids().map(Ok)).collect()
    }

    /// Replaces the running programs in all cgroups, and returns these.
    pub(crate) fn switch(self) -> Result<Vec<SocketCgroup>, SocketProgramsError> {
        if let Some(loaded) = self.loaded {
            self.folder.replace(loaded)?;
        }
        Ok(self.cgroups)
    }
}

fn detach_all_in(path: PathBuf) -> Result<Vec<SocketCgroup>, SocketProgramsError> {
    let Some(pins) = Pins::take(path)? else { return Ok(Vec::new()) };
    let attached = pins.cgroups()?;
    for cgroup in &attached {
        pins.take_away(&pins.path.join(cgroup.id.to_string()))?;
    }
    pins.clear()?;
    Ok(attached)
}

/// A registry's folder of socket programs, as what is pinned in it. It goes with what is in it.
struct Pins {
    path: PathBuf,
    /// Only who changes something holds it.
    lock: Option<DirLock>,
}

impl Pins {
    /// Locks the folder if it is there.
    fn take(path: PathBuf) -> Result<Option<Pins>, SocketProgramsError> {
        match DirLock::exclusive(&path) {
            Ok(lock) => Ok(Some(Pins { path, lock: Some(lock) })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("lock", &path)(error)),
        }
    }

    /// Takes away everything.
    fn clear(&self) -> Result<(), SocketProgramsError> {
        children(&self.path)?.iter().try_for_each(|path| remove(path))
    }

    /// Detaches a cgroup's programs.
    fn take_away(&self, links: &Path) -> Result<(), SocketProgramsError> {
        let old = self.path.join(OLD);
        remove(&old)?;
        fs::rename(links, &old).map_err(failed("move away", links))?;
        remove(&old)
    }

    /// The folders of links.
    fn links(&self) -> Result<Vec<PathBuf>, SocketProgramsError> {
        let mut paths = children(&self.path)?;
        paths.retain(|path| cgroup_id(path).is_some());
        Ok(paths)
    }

    /// The cgroups that have links, removed ones too.
    fn cgroups(&self) -> Result<Vec<SocketCgroup>, SocketProgramsError> {
        let links = self.links()?;
        let mut paths = cgroups::paths(links.iter().filter_map(|links| cgroup_id(links)));
        let mut found = Vec::new();
        for links in &links {
            let since = match fs::metadata(links).and_then(|meta| meta.modified()) {
                // detached in the meantime
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(failed("look at", links))?,
            };
            let id = cgroup_id(links).unwrap_or_default();
            found.push(SocketCgroup { id, path: paths.remove(&id), since, missing: missing(links, id) });
        }
        Ok(found)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // Fails unless the folder is empty. Who waits for the lock sees that the folder is gone.
        if self.lock.is_some() {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// The same folder, and the registry that its programs are bound to.
struct Folder<'r> {
    pins: Pins,
    registry: &'r Registry,
}

impl Deref for Folder<'_> {
    type Target = Pins;

    fn deref(&self) -> &Pins {
        &self.pins
    }
}

impl<'r> Folder<'r> {
    /// Makes the folder if it is not there, and locks it.
    fn make(registry: &'r Registry) -> Result<Folder<'r>, SocketProgramsError> {
        let path = registry.dir().join(SOCKETS);
        loop {
            match make_dir(&path) {
                Err(SocketProgramsError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(gone(registry));
                }
                other => other?,
            }
            // Who held the lock may have removed the folder.
            let Some(folder) = Folder::take(registry)? else { continue };
            // There may be another registry of this name now.
            return if registry.still_valid(&[])? { Ok(folder) } else { Err(gone(registry)) };
        }
    }

    /// Locks the folder if it is there.
    fn take(registry: &'r Registry) -> Result<Option<Folder<'r>>, SocketProgramsError> {
        Ok(Pins::take(registry.dir().join(SOCKETS))?.map(|pins| Folder { pins, registry }))
    }

    /// What a killed process left of the links of this cgroup, if anything.
    fn left_half(&self, cgroup: &Cgroup) -> Option<SocketCgroup> {
        let of_it = |links: &PathBuf| missing(links, cgroup.id).len() < ROLES.len();
        let links = [NEW, OLD].map(|name| self.path.join(name)).into_iter().find(of_it)?;
        let since = fs::metadata(&links).and_then(|meta| meta.modified()).ok()?;
        Some(SocketCgroup {
            id: cgroup.id,
            path: Some(cgroup.path.clone()),
            since,
            missing: missing(&links, cgroup.id),
        })
    }

    /// Takes away what a killed process left of a cgroup's links, and links to cgroups that were removed.
    fn tidy(&self) -> Result<(), SocketProgramsError> {
        for path in [self.path.join(NEW), self.path.join(OLD)] {
            remove(&path)?;
        }
        for links in self.links()? {
            if is_dead(&links) {
                self.take_away(&links)?;
            }
        }
        let new = self.path.join(NEW_PROGRAMS);
        if new.exists() {
            self.run(&self.programs()?)?;
            remove(&new)?;
        }
        Ok(())
    }

    fn clear_unless_used(&self) -> Result<(), SocketProgramsError> {
        if self.links()?.is_empty() { self.clear() } else { Ok(()) }
    }

    /// Where the link is pinned by which the sockets of a detached cgroup still give their slots back: they stay taken as
    /// long as other cgroups are attached.
    fn kept_release(&self, cgroup: u64) -> PathBuf {
        self.path.join(format!("{KEPT_RELEASE}{cgroup}"))
    }

    fn kept_releases(&self) -> Result<Vec<PathBuf>, SocketProgramsError> {
        let mut paths = children(&self.path)?;
        paths.retain(|path| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(KEPT_RELEASE.as_bytes()))
        });
        Ok(paths)
    }

    /// Keeps that link of a cgroup that is about to be taken away.
    fn keep_release(&self, cgroup: u64) -> Result<(), SocketProgramsError> {
        let link = self.path.join(cgroup.to_string()).join(RELEASE);
        match fs::rename(&link, self.kept_release(cgroup)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(failed("move", &link)),
        }
    }

    /// Loads the programs, and pins them and their maps.
    fn load(&self, sizes: Sizes) -> Result<Vec<OwnedFd>, SocketProgramsError> {
        let mut loaded = object::load(self.registry, sizes, None)?;
        for mut map in loaded.object_mut().maps_mut() {
            if let Some((_, pin)) = object::PINNED.iter().find(|(name, _)| map.name() == *name) {
                let path = self.path.join(pin);
                map.pin(&path).map_err(pinning("a map", &path))?;
            }
        }
        self.pin_programs(&mut loaded, PROGRAMS)?;
        self.programs()
    }

    fn pin_programs(&self, loaded: &mut LoadedObject, folder: &str) -> Result<(), SocketProgramsError> {
        let folder = self.path.join(folder);
        make_dir(&folder)?;
        make_dir(&folder.join(build_name()))?;
        for mut program in loaded.object_mut().progs_mut() {
            if let Some(role) = ROLES.iter().find(|role| program.name() == role.program) {
                let path = folder.join(role.name);
                program.pin(&path).map_err(pinning("a program", &path))?;
            }
        }
        Ok(())
    }

    /// Whether the pinned programs are those of this build.
    fn is_current(&self) -> bool {
        self.path.join(PROGRAMS).join(build_name()).exists()
    }

    /// Replaces programs of another build, wherever they are attached; their maps stay. Whether there was a need to.
    fn update(&self, sizes: Sizes) -> Result<bool, SocketProgramsError> {
        if self.is_current() {
            return Ok(false);
        }
        self.replace(self.load_over(sizes)?).map(|()| true)
    }

    /// Loads the programs with the maps of those that are attached.
    fn load_over(&self, sizes: Sizes) -> Result<LoadedObject, SocketProgramsError> {
        let Some(kept) = Kept::open(&self.path).map_err(reading)? else {
            return Err(SocketProgramsError::OtherVersion { registry: self.registry.name().clone() });
        };
        object::load(self.registry, sizes, Some(&kept))
    }

    /// Replaces the attached programs by loaded ones.
    fn replace(&self, mut loaded: LoadedObject) -> Result<(), SocketProgramsError> {
        let replaced = self.pin_programs(&mut loaded, NEW_PROGRAMS).and_then(|()| {
            let (new, current) = (self.path.join(NEW_PROGRAMS), self.path.join(PROGRAMS));
            self.run(&self.programs_in(&new)?)?;
            bpffs::exchange(&new, &current).map_err(failed("exchange", &current))
        });
        // of what was done there is nothing left, or what was there before
        let tidied = self.tidy();
        replaced.and(tidied)
    }

    /// Has the links of all cgroups run these programs, given in the order of their roles.
    fn run(&self, programs: &[OwnedFd]) -> Result<(), SocketProgramsError> {
        let links = self.links()?;
        for (role, program) in ROLES.iter().zip(programs) {
            let mut pins: Vec<_> = links.iter().map(|links| links.join(role.name)).collect();
            if role.name == RELEASE {
                pins.extend(self.kept_releases()?);
            }
            for pin in pins {
                // One that someone detached stays so.
                let Ok(mut link) = Attachment::from_pinned(&pin) else { continue };
                match link.replace(program.as_fd()) {
                    Err(error) if error.errno() == Some(libc::ENOLINK) => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// The pinned programs, in the order of their roles.
    fn programs(&self) -> Result<Vec<OwnedFd>, SocketProgramsError> {
        self.programs_in(&self.path.join(PROGRAMS))
    }

    fn programs_in(&self, folder: &Path) -> Result<Vec<OwnedFd>, SocketProgramsError> {
        let open = |role: &Role| {
            let path = folder.join(role.name);
            bpffs::open(&path, bpffs::Kind::Program).map_err(|error| self.damaged(&path, &error))
        };
        ROLES.iter().map(open).collect()
    }

    fn maps(&self) -> Result<Maps, SocketProgramsError> {
        let open = |name: &str| {
            let path = self.path.join(name);
            bpffs::open_map(&path).map_err(|error| self.damaged(&path, &error))
        };
        Ok(Maps { rings: open("rings")?, slots: open("slots")?, syns: open("syns")? })
    }

    fn sizes(&self) -> Result<Sizes, SocketProgramsError> {
        self.maps()?.sizes().map_err(reading)
    }

    /// Attaches programs, given in the order of their roles, to a cgroup for good.
    fn link(&self, cgroup: &Cgroup, programs: &[OwnedFd]) -> Result<(), SocketProgramsError> {
        let mut attachments = Vec::new();
        for (role, program) in ROLES.iter().zip(programs) {
            let attach = if role.preorder { cgroup::attach_preorder } else { cgroup::attach };
            attachments.push(attach(program.as_fd(), cgroup.dir.as_fd(), role.hook)?);
        }
        // Again: another registry's may have come in the meantime, which no lock prevents. Then at least one gives way.
        let own: Vec<u32> = attachments.iter().filter_map(|attachment| attachment.info().link_id).collect();
        cgroups::refuse_overlap(cgroup, self.registry, SERVING, &own)?;

        let new = self.path.join(NEW);
        make_dir(&new)?;
        for (role, attachment) in ROLES.iter().zip(&mut attachments) {
            attachment.pin(new.join(role.name))?;
        }
        let links = self.path.join(cgroup.id.to_string());
        fs::rename(&new, &links).map_err(failed("name", &links))
    }

    fn read(&self) -> Result<Option<SocketPrograms>, SocketProgramsError> {
        let cgroups = self.cgroups()?;
        let unfinished = [NEW, OLD, NEW_PROGRAMS].iter().any(|name| self.path.join(name).exists());
        if cgroups.is_empty() && !unfinished {
            return Ok(None);
        }
        let maps = self.maps()?;
        let programs = ROLES.iter().zip(self.programs()?).map(|(role, program)| {
            let id = libbpf_rs::Program::id_from_fd(program.as_fd()).map_err(reading)?;
            Ok(SocketProgram { name: role.program, id })
        });
        let Sizes { sockets, per_user, slots, pending_syns } = maps.sizes().map_err(reading)?;
        let users = maps.rings_in_use().map_err(reading)?;
        Ok(Some(SocketPrograms {
            instance: maps.instance().map_err(reading)?,
            sockets,
            sockets_per_user: per_user,
            sockets_used: users.values().sum(),
            users: users.into_iter().map(|(uid, sockets)| SocketUser { uid, sockets }).collect(),
            slots,
            pending_syns,
            programs: programs.collect::<Result<_, SocketProgramsError>>()?,
            cgroups,
            unfinished,
            current: self.is_current(),
        }))
    }

    fn damaged(&self, path: &Path, error: &io::Error) -> SocketProgramsError {
        let why = match error.raw_os_error() {
            Some(libc::EBADF) => "something of another kind is pinned there".to_owned(),
            _ => error.to_string(),
        };
        SocketProgramsError::Damaged { registry: self.registry.name().clone(), path: path.to_owned(), why }
    }
}

fn pinning(what: &str, path: &Path) -> impl FnOnce(libbpf_rs::Error) -> SocketProgramsError {
    let action = format!("pin {what} at {}", path.display());
    move |error| SocketProgramsError::Bpf { action, error }
}

/// Name of the folder beside programs of this build.
fn build_name() -> String {
    format!("build-{:016x}", object::build())
}

fn reading(error: libbpf_rs::Error) -> SocketProgramsError {
    SocketProgramsError::Bpf { action: "read the socket programs' maps".to_owned(), error }
}

fn gone(registry: &Registry) -> SocketProgramsError {
    RegistryError::Gone { name: registry.name().clone(), dir: registry.dir().to_owned() }.into()
}

/// The id of the cgroup whose links are in a folder of this name.
fn cgroup_id(folder: &Path) -> Option<u64> {
    folder.file_name()?.to_str()?.parse().ok()
}

/// The cgroup that the link pinned at a path holds a program at; 0 if that was removed.
fn linked(path: &Path, hook: CgroupHook) -> Option<u64> {
    match Attachment::from_pinned(path).ok()?.info() {
        info if info.hook != Hook::Cgroup(hook) => None,
        info => match info.target {
            Target::Cgroup { id, .. } => Some(id),
            _ => None,
        },
    }
}

/// Names of the programs whose links in this folder do not hold them at the cgroup.
fn missing(links: &Path, cgroup: u64) -> Vec<&'static str> {
    let gone = |role: &&Role| linked(&links.join(role.name), role.hook) != Some(cgroup);
    ROLES.iter().filter(gone).map(|role| role.program).collect()
}

/// Whether no link in this folder holds a program any more.
fn is_dead(links: &Path) -> bool {
    ROLES.iter().all(|role| matches!(linked(&links.join(role.name), role.hook), None | Some(0)))
}

/// Detaches what is pinned at or below a path, the program that was attached last first, and removes it. Nothing there
/// is fine.
fn remove(path: &Path) -> Result<(), SocketProgramsError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("look at", path)(error)),
        Ok(meta) if meta.is_dir() => {
            for role in ROLES.iter().rev() {
                remove(&path.join(role.name))?;
            }
            children(path)?.iter().try_for_each(|child| remove(child))?;
            fs::remove_dir(path).map_err(failed("remove", path))
        }
        Ok(_) => match Attachment::from_pinned_link(path)? {
            Some(attachment) => Ok(attachment.detach()?),
            None => fs::remove_file(path).map_err(failed("remove", path)),
        },
    }
}

/// What is in a folder; one that is not there has nothing in it.
fn children(folder: &Path) -> Result<Vec<PathBuf>, SocketProgramsError> {
    bpffs::children(folder).map_err(failed("read", folder))
}

/// Makes a folder for root only.
fn make_dir(path: &Path) -> Result<(), SocketProgramsError> {
    bpffs::make_dir(path).map_err(failed("make the folder", path))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketProgramsError {
    let path = path.to_owned();
    move |error| SocketProgramsError::Io { action, path, error }
}
