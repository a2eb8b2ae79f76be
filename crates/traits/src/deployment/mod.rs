//! Loading a bound object and attaching all of its programs for good, replacing them, and taking them away again.
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
//! | `socket` | nothing: it is pinned for others, if [`Setup::filters`] names it |
//!
//! A kernel without TCX (before 6.6) gets filters of a clsact qdisc instead, with the same verdicts and in the same
//! order. [`Deployment::down`] removes the qdisc if a deployment made it and nothing else is on it.
//!
//! # Replacing
//!
//! With [`UpOptions::replace`], every program that has a counterpart in the same place (hook and interface, cgroup or
//! priority) takes over from it there at one instant, so that every packet meets the one or the other. Programs without
//! a counterpart in the old version are attached before that, those of the old version without one in the new are detached
//! after it. XDP, TCX and cgroup links are updated; at netfilter hooks, in clsact filters and in pinned filters a
//! dispatcher stays and runs the new program. If anything fails, the old version goes on as it was; if the process is killed, the next
//! [`up`](Deployment::up) or [`down`](Deployment::down) in the registry makes whole what it left: either version, never a mixture.
//!
//! The old version's maps go with it, but for [`Setup::kept_maps`]: counters start at zero.
//! Filters that the new version has no program for go, too, unless something uses them: then they stay and match nothing.

mod about;
mod clsact;
mod dispatch;
mod error;
mod holder;
mod location;
mod namespace;
mod options;
mod program;
mod rebind;
mod setup;
mod source;
mod version;

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::SystemTime,
};

use libbpf_rs::MapHandle;

use self::{
    about::About,
    error::{failed, map_failed},
    location::RootLock,
    namespace::Namespace,
    program::{Placed, Program},
    source::Source,
    version::{Link, PinnedFilter, UNFINISHED, Version, mend},
};
pub use self::{
    error::{DeployError, Needs},
    holder::Holder,
    location::Location,
    namespace::NetNamespace,
    options::{Filter, FilterUse, Setup, Table, UpOptions},
};
use crate::{
    attach::{self, AttachmentInfo, Hook, Target, XdpMode},
    bind::{BoundObject, LoadedObject},
    bpffs,
    registry::{Registry, boot_time, longest_metadata},
};

pub(crate) use self::{dispatch::UNLOAD, namespace::all as network_namespaces, rebind::Rebinding};

/// Cookie of the calling thread's network namespace, which the kernel never gives twice.
pub(crate) fn namespace_cookie() -> u64 {
    Namespace::current().cookie
}

/// Programs that are attached and pinned under one name.
#[derive(Debug)]
pub struct Deployment {
    name: String,
    attached: Vec<Deployed>,
    filters: Vec<DeployedFilter>,
    maps: Vec<(String, MapHandle)>,
    about: About,
    namespace: Option<NetNamespace>,
    unreadable: Vec<Unreadable>,
    kept: Vec<String>,
    replaced: bool,
}

/// A pin in a deployment's folder that is not part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unreadable {
    /// Its file name.
    pub pin: String,
    /// Why it is not.
    pub why: String,
}

/// One attached program of a deployment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Deployed {
    /// The program's name, as in the source.
    pub program: String,
    /// The name of its pin: the program's, with the hook behind it if it is attached more than once.
    pub pin: String,
    /// Where it is attached. The program's id is its own, also where a dispatcher runs it.
    pub info: AttachmentInfo,
    /// The mode in use, for an XDP program.
    pub xdp_mode: Option<XdpMode>,
    /// When it was loaded.
    pub since: Option<SystemTime>,
}

/// One socket filter of a deployment, which others attach.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeployedFilter {
    /// The program's name.
    pub program: String,
    /// Who attaches it.
    pub usage: FilterUse,
    /// Where it is pinned.
    pub path: PathBuf,
    /// The id of the program that it runs; 0 if it runs none: it was kept for those that use it.
    pub program_id: u32,
    /// When that was loaded.
    pub since: Option<SystemTime>,
}

impl Deployment {
    /// Loads an object and attaches its programs under `name`; with [`UpOptions::replace`] in place of what is up under
    /// that name, if there is something. Waits while another process does so for the same registry.
    ///
    /// # Errors
    /// Whatever it is, nothing of the object stays attached, and what was up under the name is as before.
    /// [`DeployError::Exists`] if something of this name is up and not to be replaced.
    pub fn up(
        name: &str,
        object: BoundObject<'_>,
        registry: &Registry,
        options: &UpOptions,
    ) -> Result<Deployment, DeployError> {
        Deployment::up_at(name, object, registry, options, &Location::from(registry))
    }

    /// As [`up`](Self::up), in another place of the same bpffs.
    pub(crate) fn up_at(
        name: &str,
        object: BoundObject<'_>,
        registry: &Registry,
        options: &UpOptions,
        location: &Location,
    ) -> Result<Deployment, DeployError> {
        Deployment::try_up(name, object, registry, options, location).map_err(|error| match error {
            DeployError::Attach(error) => DeployError::Attach(holder::explain(error, &location.bpffs)),
            other => other,
        })
    }

    fn try_up(
        name: &str,
        mut object: BoundObject<'_>,
        registry: &Registry,
        options: &UpOptions,
        location: &Location,
    ) -> Result<Deployment, DeployError> {
        let folder = location.folder(name)?;
        let exists = || DeployError::Exists { name: name.to_owned(), registry: location.registry.clone() };
        let lock = RootLock::make(location)?;
        // before attaching: what it holds may be in the way
        mend(&lock.root)?;
        let old = match folder.exists() {
            true if !options.replace && !version::is_down(&folder) => return Err(exists()),
            true => Some(Version::open(&folder)),
            false => None,
        };

        // the secrets may have been rotated while the lock was waited for
        object.bind_again()?;
        let options = &UpOptions { xdp_mode: setup::xdp_mode(&object, options), ..options.clone() };
        let places =
            setup::Places { bpffs: &location.bpffs, old_maps: old.as_ref().map(|_| folder.join(version::MAPS)) };
        setup::prepare(object.open_object_mut(), name, options, &places)?;
        program::refuse_long_area(registry.name(), registry.layout(), object.open_object_mut(), longest_metadata()?)?;
        let source = Source::of(&mut object, options);
        let loaded = object.load()?;
        setup::fill(&loaded, name, &options.setup)?;
        let programs = Program::all(&loaded)?;
        program::refuse_unknown_netfilter(name, &programs, options)?;

        let unfinished = lock.root.join(UNFINISHED);
        let replaces = old.is_some();
        let maps = pinned_maps(name, &loaded, options)?;
        let made = Making::new(name, &programs, old, options, source.write(&loaded)?)
            .and_then(|making| making.pin(&unfinished, &programs, maps))
            .and_then(Making::switch);
        let version = match made {
            Ok(made) if replaces => version::exchange(&unfinished, &folder).map(|()| made),
            Ok(made) => fs::rename(&unfinished, &folder).map_err(failed("name", &folder)).map(|()| made),
            Err(error) => Err(error),
        };
        let (version, left) = version.map_err(|error| {
            if let Err(error) = mend(&lock.root) {
                // the error to report is the first one
                tracing::warn!("{error}");
            }
            let taken = matches!(&error, DeployError::Folder { error, .. } if matches!(
                error.kind(),
                io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
            ));
            if taken && !replaces { exists() } else { error }
        })?;
        if replaces {
            mend(&lock.root)?;
        }
        let kept = version::keep(&folder, left, false)?;
        Ok(Deployment { kept, replaced: replaces, ..Deployment::new(name, &folder, version) })
    }

    /// Detaches the programs of the deployment `name`, and removes what else is pinned in its folder. Returns what was
    /// there. The registry need not be there any more.
    ///
    /// What a killed process left half made has the name `_new`.
    ///
    /// # Errors
    /// [`DeployError::NotUp`]; [`DeployError::Attach`] or [`DeployError::Folder`] if something could not be removed.
    ///
    /// Filters that something still uses (a rule of iptables, a socket) stay pinned where they are and match nothing, until
    /// the next [`up`](Self::up) under the same name has them run its programs: see [`kept`](Self::kept). Taken down once
    /// more when nothing uses them, they go.
    pub fn down(name: &str, location: &Location) -> Result<Deployment, DeployError> {
        Deployment::take_down(name, location, false)
    }

    /// As [`down`](Self::down), but all filters stay, used or not, so that a rule set that names them can be restored.
    ///
    /// # Errors
    /// As [`down`](Self::down).
    pub fn down_but_filters(name: &str, location: &Location) -> Result<Deployment, DeployError> {
        Deployment::take_down(name, location, true)
    }

    fn take_down(name: &str, location: &Location, keep_filters: bool) -> Result<Deployment, DeployError> {
        let mut unfinished = name == UNFINISHED;
        let mut folder = if unfinished { location.root().join(name) } else { location.folder(name)? };
        bpffs::require(&location.bpffs)?;
        let lock = RootLock::take(location)?;
        // the lock is held, so no process is making it any more
        let left = location.root().join(UNFINISHED);
        if !folder.exists() && version::name_of(&left).as_deref() == Some(name) {
            (unfinished, folder) = (true, left);
        }
        let Some(lock) = lock.filter(|_| folder.exists()) else {
            return Err(not_up(name, location, &Deployment::list(location)?));
        };
        let deployment = Deployment::new(name, &folder, Version::open(&folder));
        // what a killed process left may hold on to the same links
        mend(&lock.root)?;
        let filters = if unfinished { Vec::new() } else { Version::open(&folder).filters };
        version::remove(&folder)?;
        let kept = version::keep(&folder, filters, keep_filters)?;
        Ok(Deployment { kept, ..deployment })
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
        location.require_own()?;
        let root = location.root();
        let mut found = Vec::new();
        for folder in version::children(&root)? {
            let version = Version::open_settled(&folder);
            let deployment = Deployment::new(&version::file_name(&folder), &folder, version);
            // It may have been taken down in the meantime.
            if folder.exists() {
                found.push(deployment);
            }
        }
        Ok(found)
    }

    /// What is up under a name, or is being made.
    ///
    /// # Errors
    /// [`DeployError::NotUp`], which names what is up, and as for [`list`](Self::list).
    pub fn find(name: &str, location: &Location) -> Result<Deployment, DeployError> {
        let mut up = Deployment::list(location)?;
        match up.iter().position(|deployment| deployment.name() == name) {
            Some(place) => Ok(up.swap_remove(place)),
            None => Err(not_up(name, location, &up)),
        }
    }

    /// Finds the network namespaces that deployments were brought up in, and what their interfaces are called there now.
    /// The kernel tells neither of a link.
    ///
    /// A namespace that is gone, or that no path leads to which this process may use, stays unknown, as do the names in it.
    pub fn locate(deployments: &mut [Deployment]) {
        let found = namespace::by_cookie(deployments.iter().map(|deployment| deployment.about.namespace).collect());
        for deployment in deployments {
            let Some(namespace) = found.get(&deployment.about.namespace) else { continue };
            namespace
                .enter(|| deployment.attached.iter_mut().for_each(|deployed| name_target(&mut deployed.info.target)));
            for deployed in &mut deployment.attached {
                if let Target::Namespace { inode } = &mut deployed.info.target {
                    *inode = Some(namespace.namespace.inode);
                }
            }
            deployment.namespace = Some(namespace.namespace.clone());
        }
    }

    /// What an interface of the network namespace it was brought up in is called there now.
    pub fn interface_name(&self, index: u32) -> Option<String> {
        let cookie = self.about.namespace;
        namespace::by_cookie([cookie].into()).get(&cookie)?.enter(|| attach::interface_name(index))?
    }

    /// The network namespace it was brought up in, if [`locate`](Self::locate) found it.
    pub fn namespace(&self) -> Option<&NetNamespace> {
        self.namespace.as_ref()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its programs.
    pub fn attached(&self) -> &[Deployed] {
        &self.attached
    }

    /// Its socket filters.
    pub fn filters(&self) -> &[DeployedFilter] {
        &self.filters
    }

    /// Names of the programs whose filters were kept, though nothing runs in them any more.
    pub fn kept(&self) -> &[String] {
        &self.kept
    }

    /// Whether it was taken down, and only filters that something uses are left.
    pub fn is_down(&self) -> bool {
        self.attached.is_empty() && !self.filters.is_empty() && self.filters.iter().all(|filter| filter.program_id == 0)
    }

    /// Names of the maps that are pinned with it.
    pub fn maps(&self) -> impl Iterator<Item = &str> {
        self.maps.iter().map(|(name, _)| name.as_str())
    }

    /// A map that is pinned with it, if there is one of that name: its own, whatever has replaced it since.
    pub fn map(&self, name: &str) -> Option<&MapHandle> {
        self.maps.iter().find(|(one, _)| one == name).map(|(_, map)| map)
    }

    /// The directory of the cgroup it was attached to.
    pub fn cgroup(&self) -> Option<&Path> {
        self.about.cgroup.as_deref()
    }

    /// What was to be remembered with it: [`Setup::notes`].
    pub fn notes(&self) -> &[u8] {
        &self.about.notes
    }

    /// What else is pinned in its folder, or cannot be read.
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    /// Whether [`up`](Self::up) put it in the place of another version.
    pub fn replaced(&self) -> bool {
        self.replaced
    }

    /// Whether it is not whole: it is being made, or the process that made it was killed. In the latter case the next
    /// [`up`](Self::up) in the registry takes it away.
    pub fn unfinished(&self) -> bool {
        self.name == UNFINISHED
    }

    fn new(name: &str, folder: &Path, version: Version) -> Deployment {
        let attached = version.links.iter().map(|link| {
            let program_id = link.program_id();
            let info = AttachmentInfo { program_id, ..link.info().clone() };
            Deployed {
                program: link.program().to_owned(),
                pin: link.pin.clone(),
                xdp_mode: version.about.xdp_mode.filter(|_| info.hook == Hook::Xdp),
                info,
                since: loaded_at(program_id),
            }
        });
        let filters = version.filters.iter().map(|filter| {
            let program_id = filter.slot.program().unwrap_or_default();
            DeployedFilter {
                program: filter.program.clone(),
                usage: filter.usage,
                path: version::filter_path(folder, &filter.program),
                program_id,
                since: loaded_at(program_id),
            }
        });
        Deployment {
            name: name.to_owned(),
            attached: attached.collect(),
            filters: filters.collect(),
            maps: version.maps,
            about: version.about,
            namespace: None,
            unreadable: version.unreadable,
            kept: Vec::new(),
            replaced: false,
        }
    }
}

/// Names an interface of the calling thread's network namespace.
fn name_target(target: &mut Target) {
    if let Target::Interface { ifindex, name } = target
        && *ifindex != 0
    {
        *name = attach::interface_name(*ifindex);
    }
}

/// When the program of this id was loaded, by the clock as it is set now.
fn loaded_at(program: u32) -> Option<SystemTime> {
    Some(boot_time() + attach::Program::by_id(program)?.loaded_after_boot)
}

/// A version that is being made, and what it takes over.
struct Making<'p> {
    version: Version,
    /// Programs for links of the old version, by their place in the new one's.
    takeovers: Vec<(usize, &'p Program)>,
    /// The same for filters.
    filter_takeovers: Vec<(usize, &'p Program)>,
    /// Filters of the old version that the new one has no program for.
    left: Vec<PinnedFilter>,
}

impl<'p> Making<'p> {
    /// Attaches what has no counterpart in the old version, and finds the counterparts of the rest.
    fn new(
        name: &str,
        programs: &'p [Program],
        old: Option<Version>,
        options: &UpOptions,
        source: Option<MapHandle>,
    ) -> Result<Making<'p>, DeployError> {
        let old = old.unwrap_or_default();
        let about = About {
            name: name.to_owned(),
            namespace: Namespace::current().cookie,
            xdp_mode: None,
            cgroup: options.cgroup.as_deref().map(about::absolute),
            notes: options.setup.notes.clone(),
        };
        let same_namespace = about.namespace != 0 && about.namespace == old.about.namespace;
        let version = Version { about, source, ..Version::default() };
        let mut making = Making { version, takeovers: Vec::new(), filter_takeovers: Vec::new(), left: Vec::new() };

        let usage = |program: &Program| {
            options.setup.filters.iter().find(|filter| filter.program == program.name).map(|filter| filter.usage)
        };
        let mut old_filters = old.filters;
        let mut placed = Vec::new();
        for program in programs {
            match usage(program) {
                Some(usage) => making.add_filter(program, usage, &mut old_filters)?,
                None => placed.extend(program.places(options)?),
            }
        }
        making.left = old_filters;
        let missing =
            options.setup.filters.iter().find(|filter| !programs.iter().any(|one| one.name == filter.program));
        if let Some(filter) = missing {
            let name = name.to_owned();
            return Err(DeployError::Missing { object: name, what: "program", name: filter.program.clone() });
        }

        let counterparts = counterparts(&placed, old.links, same_namespace);
        for (placed, counterpart) in placed.iter().zip(counterparts) {
            let link = match counterpart {
                Some(old_link) => {
                    if old_link.info().hook == Hook::Xdp {
                        making.version.about.xdp_mode = old.about.xdp_mode;
                        refuse_mode_change(placed, old.about.xdp_mode)?;
                    }
                    making.takeovers.push((making.version.links.len(), placed.program));
                    Link { pin: placed.pin.clone(), ..old_link }
                }
                None => {
                    let (link, mode) = placed.attach(options.force_clsact)?;
                    making.version.about.xdp_mode = mode.or(making.version.about.xdp_mode);
                    link
                }
            };
            making.version.links.push(link);
        }
        if making.version.links.is_empty() && making.version.filters.is_empty() {
            return Err(DeployError::NoProgram(name.to_owned()));
        }
        Ok(making)
    }

    fn add_filter(
        &mut self,
        program: &'p Program,
        usage: FilterUse,
        old: &mut Vec<PinnedFilter>,
    ) -> Result<(), DeployError> {
        let counterpart = old.iter().position(|old| old.program == program.name && old.usage == usage);
        let filter = match counterpart {
            Some(place) => {
                self.filter_takeovers.push((self.version.filters.len(), program));
                old.swap_remove(place)
            }
            None => {
                let (dispatcher, slot) = dispatch::for_filter(usage, program.as_fd())?;
                PinnedFilter { program: program.name.clone(), usage, dispatcher, slot }
            }
        };
        self.version.filters.push(filter);
        Ok(())
    }

    /// Whether programs, loaded again, can take over from all that an old version runs.
    fn check(name: &str, old: &Version, programs: &[Program]) -> Result<(), DeployError> {
        old.links.iter().try_for_each(|link| again(name, link, programs).map(drop))
    }

    /// The same programs, loaded again, in all places of the old version, with its maps. A filter that was kept because it is
    /// in use has no program, and is left as it is.
    fn over(name: &str, old: Version, programs: &'p [Program]) -> Result<(Making<'p>, PinnedMaps), DeployError> {
        let Version { links, filters, maps, about, source, .. } = old;
        let find = |filter: &PinnedFilter| programs.iter().find(|program| program.name == filter.program);
        let filter_takeovers = filters.iter().enumerate().filter_map(|(place, filter)| Some((place, find(filter)?)));
        let filter_takeovers = filter_takeovers.collect();
        let version = Version { filters, about, source, ..Version::default() };
        let mut making = Making { version, takeovers: Vec::new(), filter_takeovers, left: Vec::new() };
        for (place, link) in links.into_iter().enumerate() {
            let program = again(name, &link, programs)?;
            making.version.links.push(match link.info().hook {
                // it cannot be updated: the old one goes when the new one is there
                Hook::TpBtf => program.at_tracepoint(&link.pin)?,
                _ => {
                    making.takeovers.push((place, program));
                    link
                }
            });
        }
        Ok((making, maps))
    }

    /// Pins it all.
    fn pin(mut self, unfinished: &Path, programs: &[Program], maps: PinnedMaps) -> Result<Making<'p>, DeployError> {
        self.version.pin(unfinished, programs, maps)?;
        Ok(self)
    }

    /// Has the links and filters of the old version run the new programs.
    /// Also returns the filters that the new version has no program for.
    fn switch(mut self) -> Result<(Version, Vec<PinnedFilter>), DeployError> {
        for (place, program) in self.filter_takeovers {
            self.version.filters[place].slot.put(program.as_fd())?;
        }
        // XDP last: the kernel exchanges the program first and then waits for a grace period, some milliseconds
        // (`bpf_dispatcher_change_prog`), in which packets would meet the new version here and the old one elsewhere.
        let links = &mut self.version.links;
        self.takeovers.sort_by_key(|(place, _)| links[*place].info().hook == Hook::Xdp);
        for (place, program) in self.takeovers {
            links[place].run(program.as_fd())?;
        }
        Ok((self.version, self.left))
    }
}

/// A link's program among those that were loaded again.
fn again<'p>(name: &str, link: &Link, programs: &'p [Program]) -> Result<&'p Program, DeployError> {
    programs.iter().find(|program| program.name == link.program()).ok_or_else(|| DeployError::Rebind {
        name: name.to_owned(),
        why: format!("its object has no program {} any more", link.program()),
    })
}

/// Maps that are pinned, by name.
type PinnedMaps = Vec<(String, MapHandle)>;

/// The maps of a loaded object that [`Setup::pinned_maps`] names.
fn pinned_maps(object: &str, loaded: &LoadedObject, options: &UpOptions) -> Result<PinnedMaps, DeployError> {
    let find = |name: &String| {
        let missing = || DeployError::Missing { object: object.to_owned(), what: "map", name: name.clone() };
        let map = loaded.map(name).ok_or_else(missing)?;
        Ok((name.clone(), MapHandle::try_from(&map).map_err(map_failed("open", name))?))
    };
    options.setup.pinned_maps.iter().map(find).collect()
}

/// For each program at a place the old version's link at that place: one of the same name if there is one.
fn counterparts(placed: &[Placed<'_>], old: Vec<Link>, same_namespace: bool) -> Vec<Option<Link>> {
    let mut old: Vec<Option<Link>> = old.into_iter().map(Some).collect();
    let mut found: Vec<Option<Link>> = placed.iter().map(|_| None).collect();
    for same_name in [true, false] {
        for (placed, found) in placed.iter().zip(&mut found).filter(|(_, found)| found.is_none()) {
            let fits =
                |link: &Link| placed.is_place_of(link.info(), same_namespace) && (!same_name || placed.pin == link.pin);
            *found = old.iter_mut().find(|link| link.as_ref().is_some_and(fits)).and_then(Option::take);
        }
    }
    found
}

/// A link keeps its XDP mode.
fn refuse_mode_change(placed: &Placed<'_>, found: Option<XdpMode>) -> Result<(), DeployError> {
    match (&placed.place, found) {
        (program::Place::Xdp { mode, .. }, Some(found)) if *mode != XdpMode::Auto && *mode != found => {
            Err(DeployError::ModeChange { program: placed.program.name.clone(), found })
        }
        _ => Ok(()),
    }
}

/// The error for a name that is not up; it lists what is.
fn not_up(name: &str, location: &Location, up: &[Deployment]) -> DeployError {
    let names: Vec<&str> = up.iter().map(Deployment::name).collect();
    DeployError::NotUp {
        name: name.to_owned(),
        registry: location.registry.to_string(),
        up: if names.is_empty() { "nothing".to_owned() } else { names.join(", ") },
    }
}
