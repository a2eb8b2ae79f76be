//! Where deployments are, and the lock on the folder they are in.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{DeployError, error::failed};
use crate::{
    bpffs::{self, BpffsError, children, make_dir},
    registry::{DirLock, Registry, RegistryName},
};

/// The folder of a bpffs that deployments are pinned in.
const UP: &str = "packet_traits_up";

/// The same for those that are [borders](crate::border).
const BORDERS: &str = "packet_traits_borders";

/// All of these.
pub(super) const ROOTS: [&str; 2] = [UP, BORDERS];

/// Where a registry's deployments are. They stay where they are, and can be taken down, when the registry is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub(super) bpffs: PathBuf,
    pub(super) registry: RegistryName,
    folder: &'static str,
}

impl Location {
    /// The deployments of the registry of this name in this bpffs.
    pub fn new(bpffs: impl Into<PathBuf>, registry: RegistryName) -> Location {
        Location { bpffs: bpffs.into(), registry, folder: UP }
    }

    /// Where the borders are that were attached with it.
    pub(crate) fn of_borders(self) -> Location {
        Location { folder: BORDERS, ..self }
    }

    /// Those of all registries in this bpffs that have deployments.
    pub(super) fn all(bpffs: &Path) -> Vec<Location> {
        Location::below(bpffs, UP)
    }

    /// Those of all registries in this bpffs that have borders.
    pub(crate) fn with_borders(bpffs: &Path) -> Vec<Location> {
        Location::below(bpffs, BORDERS)
    }

    /// Those of all registries that have a folder below this one.
    fn below(bpffs: &Path, root: &str) -> Vec<Location> {
        let folders = children(&bpffs.join(root)).unwrap_or_default();
        let registry = |folder: &PathBuf| RegistryName::new(folder.file_name()?.to_str()?).ok();
        folders.iter().filter_map(registry).map(|registry| Location::new(bpffs, registry)).collect()
    }

    /// The folder of the deployments of all registries, beside the folder of registries.
    fn parent(&self) -> PathBuf {
        self.bpffs.join(self.folder)
    }

    /// The folder of the deployments.
    pub(super) fn root(&self) -> PathBuf {
        self.parent().join(self.registry.as_str())
    }

    /// Refuses the folders of deployments if another user owns them or may write to them.
    pub(super) fn require_own(&self) -> Result<(), BpffsError> {
        bpffs::require_own(&self.parent())?;
        bpffs::require_own(&self.root())
    }

    pub(super) fn folder(&self, name: &str) -> Result<PathBuf, DeployError> {
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

/// The lock on the folder of a registry's deployments. The folder goes with its last deployment.
pub(super) struct RootLock {
    pub(super) root: PathBuf,
    _lock: DirLock,
}

impl RootLock {
    /// Makes the folder if it is not there, and locks it.
    pub(super) fn make(location: &Location) -> Result<RootLock, DeployError> {
        let root = location.root();
        loop {
            make_dir(&location.parent()).map_err(failed("make", &root))?;
            location.require_own()?;
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
    pub(super) fn take(location: &Location) -> Result<Option<RootLock>, DeployError> {
        let root = location.root();
        location.require_own()?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::Deployment;

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let location = Location::new("/bpf", RegistryName::default());
        assert_eq!(location.folder("edge-1").unwrap(), Path::new("/bpf/packet_traits_up/default/edge-1"));
        for wrong in ["", "..", "a.b", "a/b", "_new", "-a"] {
            assert!(matches!(location.folder(wrong), Err(DeployError::Name(_))), "{wrong}");
        }
    }

    #[test]
    fn a_place_that_cannot_hold_deployments_is_named() {
        let nowhere = Location::new("/no/such/place", RegistryName::default());
        let error = RootLock::make(&nowhere).err().unwrap();
        assert!(matches!(error, DeployError::Folder { action: "make", .. }), "{error}");
        assert!(error.to_string().contains("/no/such/place/packet_traits_up/default"), "{error}");

        let no_bpffs = Location::new(std::env::temp_dir(), RegistryName::default());
        for error in [Deployment::list(&no_bpffs).unwrap_err(), Deployment::down("edge", &no_bpffs).unwrap_err()] {
            assert!(matches!(error, DeployError::Bpffs(BpffsError::Absent { .. })), "{error}");
        }
    }
}
