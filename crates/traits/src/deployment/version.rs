//! A version of a deployment: what is pinned in a folder, and how folders take each other's place.
//!
//! | in the folder | what it is |
//! |---|---|
//! | `about` | what the links do not tell: see `about.rs` |
//! | `source` | what the programs were loaded from: see `source.rs` |
//! | `links/NAME` | the link that holds a program, or its dispatcher, at a place; the dispatcher itself for a clsact filter |
//! | `places/NAME` | where that filter is: see `clsact.rs` |
//! | `programs/NAME` | every program |
//! | `slots/NAME` | the slot that the dispatcher of that link or filter runs |
//! | `filters/NAME` | the dispatcher of a socket filter, for others to attach |
//! | `maps/NAME` | a map, for others to read and write |
//!
//! A link or slot that the old version hands on to the new one is pinned in both folders, and the folders are exchanged by
//! one rename. So at any instant one whole version is under the deployment's name, with its programs: should the process
//! be killed between giving the first link its new program and the exchange, or between that and clearing away the old
//! folder, then [`mend`] has every link run the program of the version that has the name.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use libbpf_rs::MapHandle;

use super::{
    DeployError, FilterUse, Unreadable,
    about::About,
    clsact::{self, ClsactFilter, PLACES},
    dispatch::{self, Slot},
    error::failed,
    program::Program,
};
use crate::{
    attach::{self, Attachment, AttachmentInfo, Target},
    bpffs::{self, Kind, make_dir},
};

/// Name of a folder that is being made, or that a killed process left; never that of a finished deployment.
pub(super) const UNFINISHED: &str = "_new";

const ABOUT: &str = "about";
const SOURCE: &str = "source";
pub(super) const LINKS: &str = "links";
const PROGRAMS: &str = "programs";
const SLOTS: &str = "slots";
const FILTERS: &str = "filters";
pub(super) const MAPS: &str = "maps";

/// What is pinned in a folder, open.
#[derive(Debug, Default)]
pub(super) struct Version {
    pub(super) links: Vec<Link>,
    pub(super) filters: Vec<PinnedFilter>,
    /// By name.
    pub(super) maps: Vec<(String, MapHandle)>,
    pub(super) about: About,
    /// What it was loaded from.
    pub(super) source: Option<MapHandle>,
    pub(super) unreadable: Vec<Unreadable>,
}

/// A link of a version.
#[derive(Debug)]
pub(super) struct Link {
    /// Its file name: the program's, with the hook behind a '-' if the program is attached more than once.
    pub(super) pin: String,
    pub(super) holder: Holder,
    /// What its dispatcher runs, if it has one.
    pub(super) slot: Option<Slot>,
}

/// What holds a program at its place.
#[derive(Debug)]
pub(super) enum Holder {
    Link(Attachment),
    Clsact(ClsactFilter),
}

impl From<Attachment> for Holder {
    fn from(attachment: Attachment) -> Holder {
        Holder::Link(attachment)
    }
}

/// A socket filter of a version.
#[derive(Debug)]
pub(super) struct PinnedFilter {
    pub(super) program: String,
    pub(super) usage: FilterUse,
    pub(super) dispatcher: OwnedFd,
    pub(super) slot: Slot,
}

impl Link {
    /// The name of its program.
    pub(super) fn program(&self) -> &str {
        self.pin.split('-').next().unwrap_or_default()
    }

    /// The id of the program that packets meet.
    pub(super) fn program_id(&self) -> u32 {
        match &self.slot {
            Some(slot) => slot.program().unwrap_or_default(),
            None => self.info().program_id,
        }
    }

    /// Where it is, and the program that is there: the dispatcher if it has one.
    pub(super) fn info(&self) -> &AttachmentInfo {
        match &self.holder {
            Holder::Link(attachment) => attachment.info(),
            Holder::Clsact(filter) => &filter.info,
        }
    }

    /// The id of the program of its clsact filter, if it is one.
    fn filter_program(&self) -> Option<u32> {
        match &self.holder {
            Holder::Clsact(filter) => Some(filter.info.program_id),
            Holder::Link(_) => None,
        }
    }

    /// Has packets meet another program from now on, unless what it was attached to is gone.
    pub(super) fn run(&mut self, program: BorrowedFd<'_>) -> Result<(), DeployError> {
        match (&self.slot, &mut self.holder) {
            (Some(slot), _) => slot.put(program),
            (None, Holder::Link(attachment)) => match attachment.replace(program) {
                Err(error) if error.errno() == Some(libc::ENOLINK) => Ok(()),
                other => Ok(other?),
            },
            // A killed process may leave one without its slot, never in the place of another.
            (None, Holder::Clsact(_)) => Ok(()),
        }
    }
}

impl Version {
    /// Opens what is pinned in a folder. What cannot be opened, or is no part of a version, is in `unreadable`.
    pub(super) fn open(folder: &Path) -> Version {
        let mut version = Version::default();
        let children = children(folder).unwrap_or_else(|error| {
            version.unreadable.push(Unreadable { pin: file_name(folder), why: error.to_string() });
            Vec::new()
        });
        for path in children {
            match file_name(&path).as_str() {
                ABOUT => match About::open(&path) {
                    Ok(about) => version.about = about,
                    Err(why) => version.unreadable(ABOUT, &path, why),
                },
                SOURCE => match bpffs::open_map(&path) {
                    Ok(source) => version.source = Some(source),
                    Err(error) => version.unreadable(SOURCE, &path, error.to_string()),
                },
                LINKS => version.open_links(folder),
                FILTERS => version.open_filters(folder),
                MAPS => version.open_maps(folder),
                PLACES | PROGRAMS | SLOTS => {}
                other => version.unreadable(other, &path, "it is not part of what is up".to_owned()),
            }
        }
        version
    }

    /// The same while others may put another version in the folder's place: what comes back is of one version.
    pub(super) fn open_settled(folder: &Path) -> Version {
        loop {
            let about = About::id(&folder.join(ABOUT));
            let version = Version::open(folder);
            if About::id(&folder.join(ABOUT)) == about {
                return version;
            }
        }
    }

    fn open_maps(&mut self, folder: &Path) {
        for name in names(&folder.join(MAPS)) {
            let path = map_path(folder, &name);
            match bpffs::open_map(&path) {
                Ok(map) => self.maps.push((name, map)),
                Err(error) => self.unreadable(&name, &path, error.to_string()),
            }
        }
    }

    fn open_links(&mut self, folder: &Path) {
        for pin in names(&folder.join(LINKS)) {
            let path = folder.join(LINKS).join(&pin);
            let holder = match clsact_filter(&path) {
                Some(Ok(filter)) if filter.was_deleted() && file_name(folder) != UNFINISHED => {
                    Err("its clsact filter was deleted; replacing the deployment adds it again".to_owned())
                }
                Some(filter) => filter.map(Holder::Clsact),
                None => Attachment::from_pinned(&path).map(Holder::Link).map_err(|error| error.to_string()),
            };
            match holder {
                Ok(holder) => {
                    let slot = Slot::open(&folder.join(SLOTS).join(&pin));
                    self.links.push(Link { pin, holder, slot });
                }
                Err(why) => self.unreadable(&pin, &path, why),
            }
        }
    }

    fn open_filters(&mut self, folder: &Path) {
        for program in names(&folder.join(FILTERS)) {
            let path = folder.join(FILTERS).join(&program);
            let dispatcher = bpffs::open(&path, Kind::Program).ok();
            let usage = dispatcher.as_ref().and_then(|dispatcher| FilterUse::of(dispatcher.as_fd()));
            match (dispatcher, usage, Slot::open(&folder.join(SLOTS).join(&program))) {
                (Some(dispatcher), Some(usage), Some(slot)) => {
                    self.filters.push(PinnedFilter { program, usage, dispatcher, slot });
                }
                _ => self.unreadable(&program, &path, "it is not a filter with a slot".to_owned()),
            }
        }
    }

    /// Notes what cannot be read, unless it was removed in the meantime.
    fn unreadable(&mut self, pin: &str, path: &Path, why: String) {
        if path.exists() {
            self.unreadable.push(Unreadable { pin: pin.to_owned(), why });
        }
    }

    /// Pins everything in a new folder.
    pub(super) fn pin(
        &mut self,
        folder: &Path,
        programs: &[Program],
        maps: Vec<(String, MapHandle)>,
    ) -> Result<(), DeployError> {
        make_dir(folder).map_err(failed("make", folder))?;
        for part in [LINKS, PLACES, PROGRAMS, SLOTS, FILTERS, MAPS] {
            let part = folder.join(part);
            make_dir(&part).map_err(failed("make", &part))?;
        }
        let pin = |object: BorrowedFd<'_>, part: &str, name: &str| {
            let path = folder.join(part).join(name);
            bpffs::pin(object, &path).map_err(failed("pin", &path))
        };
        self.about.pin(&folder.join(ABOUT))?;
        if let Some(source) = &self.source {
            let path = folder.join(SOURCE);
            bpffs::pin(source.as_fd(), &path).map_err(failed("pin", &path))?;
        }
        for program in programs {
            pin(program.as_fd(), PROGRAMS, &program.name)?;
        }
        for (name, map) in &maps {
            pin(map.as_fd(), MAPS, name)?;
        }
        self.maps = maps;
        for filter in &self.filters {
            pin(filter.slot.as_fd(), SLOTS, &filter.program)?;
            pin(filter.dispatcher.as_fd(), FILTERS, &filter.program)?;
        }
        for link in &mut self.links {
            if let Some(slot) = &link.slot {
                pin(slot.as_fd(), SLOTS, &link.pin)?;
            }
            let path = folder.join(LINKS).join(&link.pin);
            let name = link.program().to_owned();
            match &mut link.holder {
                Holder::Link(attachment) if attachment.pinned_at().is_none() => attachment.pin(path)?,
                // handed on
                Holder::Link(attachment) => attachment.pin_also(&path)?,
                Holder::Clsact(filter) => filter.pin(folder, &link.pin, &name)?,
            }
        }
        Ok(())
    }

    /// The programs that are pinned in a version's folder.
    pub(super) fn programs(folder: &Path) -> Result<Vec<OwnedFd>, DeployError> {
        let open = |path: &PathBuf| bpffs::open(path, Kind::Program).map_err(failed("open the program", path));
        children(&folder.join(PROGRAMS))?.iter().map(open).collect()
    }

    /// Whether the interfaces that it was attached to are gone, and it has no filters for others.
    pub(super) fn is_dead(&self) -> bool {
        let is_gone = |link: &Link| matches!(link.info().target, Target::Interface { ifindex: 0, .. });
        self.filters.is_empty() && !self.links.is_empty() && self.links.iter().all(is_gone)
    }

    /// Has every link and filter run the program that is pinned beside it.
    fn restore(&mut self, folder: &Path) -> Result<(), DeployError> {
        let open = |name: &str| bpffs::open(&folder.join(PROGRAMS).join(name), Kind::Program).ok();
        for link in &mut self.links {
            let Some(program) = open(link.program()) else { continue };
            if attach::Program::of(program.as_fd()).is_ok_and(|program| program.id == link.program_id()) {
                continue;
            }
            link.run(program.as_fd())?;
        }
        for filter in &self.filters {
            if let Some(program) = open(&filter.program) {
                filter.slot.put(program.as_fd())?;
            }
        }
        Ok(())
    }

    fn ids(&self) -> Ids {
        let slots = self.links.iter().filter_map(|link| link.slot.as_ref());
        let slots = slots.chain(self.filters.iter().map(|filter| &filter.slot));
        Ids {
            links: self.links.iter().filter_map(|link| link.info().link_id).collect(),
            filters: self.links.iter().filter_map(Link::filter_program).collect(),
            slots: slots.filter_map(Slot::id).collect(),
        }
    }
}

/// Ids of links, of the programs of clsact filters, and of the maps that slots are.
#[derive(Debug, Default)]
struct Ids {
    links: HashSet<u32>,
    filters: HashSet<u32>,
    slots: HashSet<u32>,
}

impl Ids {
    fn meet(&self, other: &Ids) -> bool {
        !self.links.is_disjoint(&other.links)
            || !self.filters.is_disjoint(&other.filters)
            || !self.slots.is_disjoint(&other.slots)
    }
}

/// Clears the unfinished folder away, if there is one: what it shares with a deployment goes on in that, with the programs
/// of that, and what it has alone is detached.
pub(super) fn mend(root: &Path) -> Result<(), DeployError> {
    let unfinished = root.join(UNFINISHED);
    if !unfinished.exists() {
        return Ok(());
    }
    let own = Version::open(&unfinished).ids();
    let mut keep = Ids::default();
    for folder in children(root)?.into_iter().filter(|folder| *folder != unfinished) {
        let mut version = Version::open(&folder);
        let ids = version.ids();
        if ids.meet(&own) {
            version.restore(&folder)?;
            keep.links.extend(ids.links);
            keep.filters.extend(ids.filters);
            keep.slots.extend(ids.slots);
        }
    }
    remove_but(&unfinished, &keep)
}

/// Clears the unfinished folder away whose place a version in another folder has taken: what both share goes on in that.
pub(super) fn clear_replaced(root: &Path, folder: &Path) -> Result<(), DeployError> {
    remove_but(&root.join(UNFINISHED), &Version::open(folder).ids())
}

/// Puts the unfinished folder in the place of a deployment's, which then is the unfinished one.
pub(super) fn exchange(unfinished: &Path, folder: &Path) -> Result<(), DeployError> {
    bpffs::exchange(unfinished, folder).map_err(failed("exchange", folder))
}

/// Detaches what is pinned at or below a path and removes it. What is pinned there and is not an attachment loses its
/// pin; nothing there is fine.
pub(super) fn remove(path: &Path) -> Result<(), DeployError> {
    remove_but(path, &Ids::default())
}

fn remove_but(path: &Path, keep: &Ids) -> Result<(), DeployError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
        Ok(meta) if meta.is_dir() => {
            // in the order of names: a link goes before its slot
            children(path)?.iter().try_for_each(|child| remove_but(child, keep))?;
            return fs::remove_dir(path).map_err(failed("remove", path));
        }
        Ok(_) => {}
    }
    if let Some(filter) = clsact_filter(path) {
        match filter {
            Ok(filter) if !keep.filters.contains(&filter.info.program_id) => filter.remove()?,
            _ => {}
        }
    } else if let Some(attachment) = Attachment::from_pinned_link(path)? {
        if !attachment.info().link_id.is_some_and(|id| keep.links.contains(&id)) {
            return Ok(attachment.detach()?);
        }
    } else if path.parent().is_some_and(|folder| folder.ends_with(SLOTS))
        && let Some(slot) = Slot::open(path)
        && !slot.id().is_some_and(|id| keep.slots.contains(&id))
    {
        // Who still holds a filter runs nothing any more.
        slot.clear()?;
    }
    fs::remove_file(path).map_err(failed("remove", path))
}

/// The name that what is in a folder was to have, or has; `None` if it does not say.
pub(super) fn name_of(folder: &Path) -> Option<String> {
    Some(About::open(&folder.join(ABOUT)).ok()?.name).filter(|name| !name.is_empty())
}

/// Whether a folder has only filters that were kept when what it had was taken down.
pub(super) fn is_down(folder: &Path) -> bool {
    folder.join(FILTERS).exists() && !folder.join(ABOUT).exists()
}

/// Pins filters again whose pins are gone: those that something still uses, or `all`. They run nothing, but are found by the
/// next version, and by who asks for their path. Returns their programs' names.
pub(super) fn keep(folder: &Path, filters: Vec<PinnedFilter>, all: bool) -> Result<Vec<String>, DeployError> {
    let mut kept = Vec::new();
    for PinnedFilter { program, dispatcher, slot, .. } in filters {
        let dispatcher = match all {
            true => Some(dispatcher),
            false => dispatch::still_used(dispatcher),
        };
        let Some(dispatcher) = dispatcher else { continue };
        for part in [folder.to_owned(), folder.join(SLOTS), folder.join(FILTERS)] {
            match make_dir(&part) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.map_err(failed("make", &part))?,
            }
        }
        for (object, part) in [(slot.as_fd(), SLOTS), (dispatcher.as_fd(), FILTERS)] {
            let path = folder.join(part).join(&program);
            bpffs::pin(object, &path).map_err(failed("pin", &path))?;
        }
        kept.push(program);
    }
    Ok(kept)
}

/// The clsact filter whose program is pinned at a path; `None` if that is something else.
fn clsact_filter(path: &Path) -> Option<Result<ClsactFilter, String>> {
    let links = path.parent().filter(|folder| folder.ends_with(LINKS))?;
    let (folder, pin) = (links.parent()?, file_name(path));
    clsact::place_path(folder, &pin).exists().then(|| ClsactFilter::open(folder, &pin))
}

/// What is in a folder, in the order of names; a folder that is not there has nothing in it.
pub(super) fn children(folder: &Path) -> Result<Vec<PathBuf>, DeployError> {
    bpffs::children(folder).map_err(failed("read", folder))
}

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    children(folder).unwrap_or_default().iter().map(|path| file_name(path)).collect()
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where the map of this name is pinned in a deployment's folder.
pub(super) fn map_path(folder: &Path, map: &str) -> PathBuf {
    folder.join(MAPS).join(map)
}

/// Where the filter of this name is pinned in a deployment's folder.
pub(super) fn filter_path(folder: &Path, program: &str) -> PathBuf {
    folder.join(FILTERS).join(program)
}
