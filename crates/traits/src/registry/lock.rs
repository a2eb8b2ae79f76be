//! The lock that writers take: flock(2) on a directory of the bpffs. The kernel releases it when its holder dies,
//! however it dies.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
};

/// Which directory a path led to; a directory made later under the same name has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirId {
    dev: u64,
    ino: u64,
}

impl DirId {
    /// The directory at `path`.
    pub(super) fn of(path: &Path) -> io::Result<DirId> {
        let meta = fs::metadata(path)?;
        if !meta.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(DirId { dev: meta.dev(), ino: meta.ino() })
    }
}

/// A lock on a directory, held until it is dropped.
///
/// The directory is opened again for every lock, because flock(2) belongs to the open file: so threads of one process
/// exclude each other as well.
#[derive(Debug)]
pub(crate) struct DirLock {
    _file: File,
    dir: DirId,
}

impl DirLock {
    /// Waits until nobody else holds a lock on the directory.
    pub(crate) fn exclusive(path: &Path) -> io::Result<DirLock> {
        DirLock::take(path, File::lock)
    }

    /// Waits until nobody holds an exclusive lock on the directory.
    pub(super) fn shared(path: &Path) -> io::Result<DirLock> {
        DirLock::take(path, File::lock_shared)
    }

    /// The locked directory.
    pub(super) fn dir(&self) -> DirId {
        self.dir
    }

    fn take(path: &Path, lock: fn(&File) -> io::Result<()>) -> io::Result<DirLock> {
        loop {
            let file = File::open(path)?;
            while let Err(error) = lock(&file) {
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            let meta = file.metadata()?;
            let dir = DirId { dev: meta.dev(), ino: meta.ino() };
            // While this process waited, the directory may have been removed and another one made in its place.
            if DirId::of(path)? == dir {
                return Ok(DirLock { _file: file, dir });
            }
        }
    }
}
