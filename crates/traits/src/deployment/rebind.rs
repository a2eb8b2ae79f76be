//! Replacing the programs of deployments by the same programs with new secrets. Links and maps stay.

use std::{
    collections::HashSet,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use libbpf_rs::MapHandle;

use super::{
    DeployError, Location, Making,
    location::RootLock,
    namespace,
    program::Program,
    source::Source,
    version::{self, UNFINISHED, Version, clear_replaced, mend},
};
use crate::{
    attach,
    bind::{BindError, BoundObject, LoadedObject},
    bpffs,
    registry::{Registry, program_info},
};

/// The deployments of a location, loaded again and not yet attached. It holds the lock of the location.
pub(crate) struct Rebinding {
    lock: RootLock,
    ready: Vec<Ready>,
    /// Ids of the programs that run now, and of those that are to replace them.
    programs: HashSet<u32>,
}

/// The programs of a deployment, loaded again.
struct Ready {
    name: String,
    folder: PathBuf,
    programs: Vec<Program>,
    /// What they were loaded from.
    source: Option<MapHandle>,
}

impl Rebinding {
    /// Loads every deployment.
    pub(crate) fn prepare(location: &Location, registry: &Registry) -> Result<Rebinding, DeployError> {
        bpffs::require(&location.bpffs)?;
        let lock = RootLock::make(location)?;
        mend(&lock.root)?;
        let mut rebinding = Rebinding { lock, ready: Vec::new(), programs: HashSet::new() };
        for folder in version::children(&rebinding.lock.root)? {
            if version::is_down(&folder) {
                continue;
            }
            let name = version::file_name(&folder);
            let old = Version::open(&folder);
            let running = Version::programs(&folder)?;
            rebinding.note(&running);
            // its interfaces are gone, and it has no filters that others use
            if old.is_dead() {
                continue;
            }
            let (loaded, source) = load(&name, &old, &running, registry)?;
            let programs = Program::all(&loaded)?;
            Making::check(&name, &old, &programs)?;
            rebinding.note(&programs);
            rebinding.ready.push(Ready { name, folder, programs, source });
        }
        Ok(rebinding)
    }

    fn note<P: AsFd>(&mut self, programs: &[P]) {
        let known = programs.iter().filter_map(|program| attach::Program::of(program.as_fd()).ok());
        self.programs.extend(known.map(|program| program.id));
    }

    /// Ids of its programs: those that run, and those that are to replace them.
    pub(crate) fn programs(&self) -> &HashSet<u32> {
        &self.programs
    }

    /// Replaces the running programs. Returns an outcome by name; after an error the old programs run on.
    pub(crate) fn switch(self) -> Vec<(String, Result<(), DeployError>)> {
        let Rebinding { lock, ready, .. } = self;
        let switch = |ready: Ready| {
            let name = ready.name.clone();
            (name, ready.switch(&lock))
        };
        ready.into_iter().map(switch).collect()
    }
}

impl Ready {
    fn switch(self, lock: &RootLock) -> Result<(), DeployError> {
        let unfinished = lock.root.join(UNFINISHED);
        let old = Version { source: self.source, ..Version::open(&self.folder) };
        let made = require_whole(&self.name, &old)
            .and_then(|()| Making::over(&self.name, old, &self.programs))
            .and_then(|(making, maps)| making.pin(&unfinished, &self.programs, maps))
            .and_then(Making::switch)
            .and_then(|_| version::exchange(&unfinished, &self.folder));
        // the old version, or the new one if it failed
        let cleared = if made.is_ok() { clear_replaced(&lock.root, &self.folder) } else { mend(&lock.root) };
        if let Err(error) = cleared {
            tracing::warn!("{} is left for the next command to clear away: {error}", unfinished.display());
        }
        made
    }
}

/// Loads a deployment's object with the maps of its running programs. Also returns its new source.
fn load(
    name: &str,
    old: &Version,
    running: &[OwnedFd],
    registry: &Registry,
) -> Result<(LoadedObject, Option<MapHandle>), DeployError> {
    let failed = |why: String| DeployError::Rebind { name: name.to_owned(), why };
    require_whole(name, old)?;
    let no_source = || DeployError::NoSource { name: name.to_owned(), registry: registry.name().clone() };
    let source = old.source.as_ref().ok_or_else(no_source)?;
    let mut source =
        Source::read(source).map_err(|why| failed(format!("what it was loaded from cannot be read: {why}")))?;
    let mut used = HashSet::new();
    for program in running {
        let (_, maps) =
            program_info(program).map_err(|error| failed(format!("its programs cannot be read: {error}")))?;
        used.extend(maps);
    }
    let bound = source.bind(name, registry, old.about.xdp_mode, &used)?;
    let loaded = match source.is_of_a_device() {
        false => bound.load()?,
        true => load_in(bound, old.about.namespace).ok_or_else(|| {
            let why = "it must be loaded in the network namespace of its interface, which was not found";
            failed(format!("{why}; `traits down {name}` takes it down"))
        })??,
    };
    let source = source.write(&loaded)?;
    Ok((loaded, source))
}

/// Refuses a deployment with a pin that cannot be read: replacing would lose it.
fn require_whole(name: &str, old: &Version) -> Result<(), DeployError> {
    match old.unreadable.first() {
        Some(pin) => Err(DeployError::Rebind {
            name: name.to_owned(),
            why: format!("its pin {} cannot be read: {}; bring it up again first", pin.pin, pin.why),
        }),
        None => Ok(()),
    }
}

fn load_in(bound: BoundObject<'_>, namespace: u64) -> Option<Result<LoadedObject, BindError>> {
    namespace::by_cookie([namespace].into()).get(&namespace)?.enter(|| bound.load())
}
