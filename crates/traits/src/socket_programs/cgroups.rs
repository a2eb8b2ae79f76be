//! Cgroups by directory and by id, and which of them have socket programs.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
};

use super::error::{Overlap, Place, SocketProgramsError};
use crate::{
    attach::{
        AttachError, CgroupHook,
        cgroup::{self, CgroupLink, CgroupTree},
    },
    bpffs::DEFAULT_ROOT,
    registry::{self, Registry, RegistryName},
};

/// A cgroup that is there.
#[derive(Debug)]
pub(super) struct Cgroup {
    /// Its directory, without links on the way.
    pub(super) path: PathBuf,
    pub(super) dir: File,
    /// The kernel's number for it: the inode of its directory, which no later cgroup gets again.
    pub(super) id: u64,
}

impl Cgroup {
    pub(super) fn open(path: &Path) -> Result<Cgroup, SocketProgramsError> {
        let dir = cgroup::open(path)?;
        let failed = |error| SocketProgramsError::Io { action: "look at", path: path.to_owned(), error };
        if !is_cgroup2(&dir).map_err(failed)? {
            return Err(AttachError::Cgroup {
                path: path.to_owned(),
                hint: "give a directory of the cgroup v2 tree: `findmnt -t cgroup2` shows where it is, and \
                       /sys/fs/cgroup/<controller> is cgroup v1",
                errno: libc::EBADF,
            }
            .into());
        }
        let id = dir.metadata().map_err(failed)?.ino();
        Ok(Cgroup { path: fs::canonicalize(path).map_err(failed)?, dir, id })
    }
}

fn is_cgroup2(dir: &File) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(dir)?.f_type as u32 == libc::CGROUP2_SUPER_MAGIC as u32)
}

/// Directories of cgroups, by id, as far as they are in this mount namespace's tree.
pub(super) fn paths(ids: impl IntoIterator<Item = u64>) -> HashMap<u64, PathBuf> {
    let wanted: HashSet<u64> = ids.into_iter().collect();
    let mut found = HashMap::new();
    let Ok(CgroupTree { path: root, .. }) = cgroup::cgroup_tree() else { return found };
    if let Some(id) = inode(&root).filter(|id| wanted.contains(id)) {
        found.insert(id, root.clone());
    }
    find_below(&root, &wanted, &mut found);
    found
}

/// Adds the wanted cgroups below a directory. A cgroup that goes away in the meantime is not there.
fn find_below(dir: &Path, wanted: &HashSet<u64>, found: &mut HashMap<u64, PathBuf>) {
    let folders = fs::read_dir(dir).into_iter().flatten().flatten();
    for folder in folders.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if found.len() == wanted.len() {
            return;
        }
        if wanted.contains(&folder.ino()) {
            found.insert(folder.ino(), folder.path());
        }
        find_below(&folder.path(), wanted, found);
    }
}

fn inode(dir: &Path) -> Option<u64> {
    fs::metadata(dir).ok().map(|meta| meta.ino())
}

/// Refuses a cgroup whose sockets, or some of them, are served already, by whatever registry's programs; the links
/// `own` do not count. `serving` is the name of the program that tells.
///
/// It looks at the kernel's links, not at pins: those may be in a file system that is not to be seen here.
pub(super) fn refuse_overlap(
    cgroup: &Cgroup,
    registry: &Registry,
    serving: &str,
    own: &[u32],
) -> Result<(), SocketProgramsError> {
    let links = cgroup::links(CgroupHook::GetSockOpt).map_err(SocketProgramsError::Links)?;
    let is_other = |link: &CgroupLink| link.name == serving && link.cgroup != 0 && !own.contains(&link.id);
    let others: HashMap<u64, CgroupLink> = links.into_iter().filter(is_other).map(|link| (link.cgroup, link)).collect();
    let Some((link, place, path)) = nearest(cgroup, &others) else { return Ok(()) };
    let ids = registry::registries_of(link.program)?;
    let registry_id = ids.first().copied().unwrap_or_default();
    let (registry, bpffs) = find_registry(registry_id, registry).unzip();
    let holder = Overlap { registry, bpffs, registry_id, cgroup: path, place };
    Err(SocketProgramsError::Overlap { cgroup: cgroup.path.clone(), holder: Box::new(holder) })
}

/// The other cgroup that is the cgroup itself, the next above it, or else one below it.
fn nearest<'l>(cgroup: &Cgroup, others: &'l HashMap<u64, CgroupLink>) -> Option<(&'l CgroupLink, Place, PathBuf)> {
    if others.is_empty() {
        return None;
    }
    let device = cgroup.dir.metadata().ok()?.dev();
    // Above the root of the tree other file systems begin, which have inodes of the same numbers.
    let in_tree = |path: &&Path| fs::metadata(path).is_ok_and(|meta| meta.dev() == device);
    for path in cgroup.path.ancestors().take_while(in_tree) {
        if let Some(link) = inode(path).and_then(|id| others.get(&id)) {
            let place = if link.cgroup == cgroup.id { Place::Same } else { Place::Above };
            return Some((link, place, path.to_owned()));
        }
    }
    let mut below = HashMap::new();
    find_below(&cgroup.path, &others.keys().copied().collect(), &mut below);
    let (id, path) = below.into_iter().next()?;
    Some((&others[&id], Place::Below, path))
}

/// Name of the registry with this id, and its BPF file system: that of `beside`, or the host's.
fn find_registry(id: u64, beside: &Registry) -> Option<(RegistryName, PathBuf)> {
    let of_beside = beside.dir().ancestors().nth(2)?;
    [of_beside, Path::new(DEFAULT_ROOT)].into_iter().find_map(|bpffs| {
        let options = Registry::options().bpffs(bpffs);
        let is_it =
            |name: &RegistryName| options.clone().name(name.clone()).open().is_ok_and(|registry| registry.id() == id);
        let folders = fs::read_dir(bpffs.join(beside.dir().parent()?.file_name()?)).ok()?.flatten();
        let names = folders.filter_map(|entry| RegistryName::new(entry.file_name().to_str()?).ok());
        names.into_iter().find(is_it).map(|name| (name, bpffs.to_owned()))
    })
}
