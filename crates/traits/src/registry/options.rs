//! Which registry, and what it is to be like: creating, opening and removing one.
//!
//! A registry appears and disappears whole: it is made in a directory `_new` and renamed to its name, and renamed to
//! `_old` before it is taken apart, both under the lock of the directory that holds all registries. What a killed
//! process leaves behind under those two names is cleared by the next one.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::SystemTime,
};

use packet_traits_core::{Layout, Nonces, layout::AREA_LEN_PORTABLE};
use rustix::{
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};

use super::{
    KeyEntry, KeySpec, Registry,
    error::RegistryError,
    lock::{DirId, DirLock},
    maps, metadata,
    table::{self, Header},
    users,
};
use crate::bpffs;

/// The directory in a bpffs that holds all registries.
const PARENT: &str = "packet_traits";

/// The folder in a registry's directory that the attached socket programs are pinned in.
pub(crate) const SOCKETS: &str = "sockets";

/// Name of the traits of datagrams in it.
pub(crate) const SLOTS: &str = "slots";

/// A registry's name: `[a-z][a-z0-9_-]{0,30}`. A bpffs allows no dot in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistryName(String);

/// A text that is not a [`RegistryName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name of a registry starts with a letter from a to z, and has at most 31 of a-z, 0-9, '_' and '-'")]
pub struct RegistryNameError;

impl RegistryName {
    /// Checks a name.
    pub fn new(name: &str) -> Result<RegistryName, RegistryNameError> {
        let raw = name.as_bytes();
        let fits = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"_-".contains(c);
        if raw.len() > 31 || !raw.first().is_some_and(u8::is_ascii_lowercase) || !raw.iter().all(fits) {
            return Err(RegistryNameError);
        }
        Ok(RegistryName(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for RegistryName {
    /// `default`, the registry a host has unless someone asks for more.
    fn default() -> Self {
        RegistryName("default".to_owned())
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for RegistryName {
    type Err = RegistryNameError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        RegistryName::new(s)
    }
}

/// Says which registry is meant, and for creating it what it is to be like. Made by [`Registry::options`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryOptions {
    pub(super) name: RegistryName,
    root: PathBuf,
    pub(super) layout: Option<Layout>,
    allow_oversize: bool,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        RegistryOptions {
            name: RegistryName::default(),
            root: bpffs::DEFAULT_ROOT.into(),
            layout: None,
            allow_oversize: false,
        }
    }
}

impl RegistryOptions {
    /// Another registry than `default`.
    pub fn name(self, name: RegistryName) -> Self {
        RegistryOptions { name, ..self }
    }

    /// Another bpffs than [`bpffs::DEFAULT_ROOT`]; it must be mounted.
    pub fn bpffs(self, root: impl Into<PathBuf>) -> Self {
        RegistryOptions { root: root.into(), ..self }
    }

    /// Region sizes. A new registry has [`Layout::DEFAULT`] without this, or as much of it as the kernel takes metadata
    /// ([`Layout::default_within`]); opening an existing one with other sizes
    /// fails with it.
    pub fn layout(self, layout: Layout) -> Self {
        RegistryOptions { layout: Some(layout), ..self }
    }

    /// Allows a new registry's area to be longer than [`AREA_LEN_PORTABLE`], up to the kernel's limit of 252 bytes.
    pub fn allow_oversize(self, allow: bool) -> Self {
        RegistryOptions { allow_oversize: allow, ..self }
    }

    /// Where the registry's maps are pinned.
    pub fn dir(&self) -> PathBuf {
        self.parent().join(self.name.as_str())
    }

    /// Where the traits of datagrams are pinned while socket programs are attached: what `packet_traits_socket::Ring` opens.
    pub fn slots_path(&self) -> PathBuf {
        self.dir().join(SOCKETS).join(SLOTS)
    }

    /// Where the registry's maps are pinned, if there is such a registry, whatever state it is in.
    pub(crate) fn found_dir(&self) -> Result<PathBuf, RegistryError> {
        let dir = self.own_dir()?;
        if !exists(&dir)? {
            return Err(RegistryError::NotFound { name: self.name.clone(), dir });
        }
        Ok(dir)
    }

    /// Where they are, or would be, if that is on a bpffs and root's.
    fn own_dir(&self) -> Result<PathBuf, RegistryError> {
        bpffs::require(&self.root)?;
        bpffs::require_own(&self.parent())?;
        let dir = self.dir();
        bpffs::require_own(&dir)?;
        Ok(dir)
    }

    pub(super) fn parent(&self) -> PathBuf {
        self.root.join(PARENT)
    }

    /// Creates the registry and opens it. Mounts a bpffs at the default root if there is none.
    ///
    /// # Errors
    /// [`RegistryError::Exists`], [`RegistryError::Oversize`], [`RegistryError::TooLong`]; and whatever stands in the way of opening it if there
    /// is something else under its name.
    pub fn create(&self) -> Result<Registry, RegistryError> {
        self.refuse_oversize(self.layout.unwrap_or_default())?;
        bpffs::ensure(&self.root)?;
        let layout = metadata::fitting(&self.name, self.layout, metadata::longest()?)?;
        let (parent, dir) = (self.parent(), self.dir());
        make_dir(&parent)?;
        bpffs::require_own(&parent)?;
        let _lock = DirLock::exclusive(&parent).map_err(io_error("lock", &parent))?;
        if exists(&dir)? {
            self.connect()?.list()?;
            return Err(RegistryError::Exists { name: self.name.clone(), dir });
        }
        let registry = self.make(layout, &[], |new| {
            fs::rename(new, &dir).map_err(io_error("name the new registry", &dir))?;
            Ok(())
        })?;
        tracing::debug!("created registry '{}' at {}", self.name, dir.display());
        Ok(registry)
    }

    /// Makes a registry with these keys beside the others, and has it `publish`ed, after which nothing can fail. If something
    /// does before, nothing is left of it.
    pub(super) fn make(
        &self,
        layout: Layout,
        keys: &[KeySpec],
        publish: impl FnOnce(&Path) -> Result<(), RegistryError>,
    ) -> Result<Registry, RegistryError> {
        let new = self.parent().join("_new");
        let make = || {
            clear(&new)?;
            make_dir(&new)?;
            maps::create(&new, &new_header(&self.name, layout)?)?;
            let identity = DirId::of(&new).map_err(io_error("open", &new))?;
            let (header, maps) = maps::open(&self.name, &new)?;
            let registry =
                Registry { name: self.name.clone(), dir: new.clone(), identity, header, maps, is_next: false.into() };
            keys.iter().try_for_each(|key| registry.register(key).map(drop))?;
            publish(&new)?;
            Ok(Registry { dir: self.dir(), ..registry })
        };
        make().inspect_err(|_| drop(clear(&new)))
    }

    /// Refuses an area that native XDP on veth has no room for, unless it is allowed.
    pub(super) fn refuse_oversize(&self, layout: Layout) -> Result<(), RegistryError> {
        let area_len = layout.area_len();
        if area_len > AREA_LEN_PORTABLE && !self.allow_oversize {
            return Err(RegistryError::Oversize { name: self.name.clone(), area_len });
        }
        Ok(())
    }

    /// Opens the registry.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`]; [`RegistryError::Damaged`], [`RegistryError::Older`] or [`RegistryError::Newer`] if what
    /// is pinned is not a registry of this version; [`RegistryError::OtherLayout`] if [`layout`](Self::layout) was given and differs.
    pub fn open(&self) -> Result<Registry, RegistryError> {
        let registry = self.connect()?;
        if let Some(wanted) = self.layout.filter(|wanted| *wanted != registry.layout()) {
            return Err(RegistryError::OtherLayout { name: self.name.clone(), found: registry.layout(), wanted });
        }
        registry.list()?;
        Ok(registry)
    }

    /// Opens the registry, whatever its layout, without a look at its table.
    fn connect(&self) -> Result<Registry, RegistryError> {
        loop {
            let dir = self.own_dir()?;
            let before = DirId::of(&dir).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => RegistryError::NotFound { name: self.name.clone(), dir: dir.clone() },
                _ => RegistryError::Io { action: "open", path: dir.clone(), error },
            })?;
            let opened = maps::open(&self.name, &dir);
            // If it was removed in the meantime, and perhaps made again, what was opened may be some of each.
            if DirId::of(&dir).ok() != Some(before) {
                continue;
            }
            let (header, maps) = opened?;
            return Ok(Registry {
                name: self.name.clone(),
                dir,
                identity: before,
                header,
                maps,
                is_next: false.into(),
            });
        }
    }

    /// Opens the registry, creating it first if there is none.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) and [`create`](Self::create).
    pub fn open_or_create(&self) -> Result<Registry, RegistryError> {
        loop {
            // The default bpffs may not be mounted yet.
            bpffs::ensure(&self.root)?;
            match self.open() {
                Err(RegistryError::NotFound { .. }) => {}
                other => return other,
            }
            match self.create() {
                // Another process was faster to create it, or to remove it again.
                Err(RegistryError::Exists { .. } | RegistryError::NotFound { .. }) => {}
                other => return other,
            }
        }
    }

    /// Removes the registry with all its keys.
    ///
    /// With `force` it goes even if loaded programs are bound to it, if something else is pinned in its directory, or
    /// if it cannot be opened; programs bound to it keep working among themselves. Its socket programs are pinned in
    /// its directory, so they are detached.
    ///
    /// # Errors
    /// Without `force`: [`RegistryError::SocketsAttached`], [`RegistryError::RegistryInUse`],
    /// [`RegistryError::NotEmpty`], and those of [`open`](Self::open). Always [`RegistryError::NotFound`].
    pub fn remove(&self, force: bool) -> Result<(), RegistryError> {
        bpffs::require(&self.root)?;
        let (parent, dir) = (self.parent(), self.dir());
        let not_found = || RegistryError::NotFound { name: self.name.clone(), dir: dir.clone() };
        if !exists(&parent)? {
            return Err(not_found());
        }
        bpffs::require_own(&parent)?;
        let _parent_lock = DirLock::exclusive(&parent).map_err(io_error("lock", &parent))?;
        if !exists(&dir)? {
            return Err(not_found());
        }
        // No key is registered and no loader checks its binding while this is held.
        let lock = DirLock::exclusive(&dir).map_err(io_error("lock", &dir))?;
        if !force {
            let registry = self.connect()?;
            self.refuse_if_used(&dir, registry.id(), || Ok(registry.snapshot_locked(&lock)?.keys))?;
        }
        let old = parent.join("_old");
        clear(&old)?;
        fs::rename(&dir, &old).map_err(io_error("move away", &dir))?;
        clear_now_or_later(&old);
        tracing::debug!("removed registry '{}' at {}", self.name, dir.display());
        Ok(())
    }

    /// Refuses if anything needs the registry with this id and these keys.
    pub(super) fn refuse_if_used(
        &self,
        dir: &Path,
        id: u64,
        keys: impl FnOnce() -> Result<Vec<KeyEntry>, RegistryError>,
    ) -> Result<(), RegistryError> {
        if exists(&dir.join(SOCKETS))? {
            return Err(RegistryError::SocketsAttached { registry: self.name.clone() });
        }
        let keys = keys()?;
        let programs = users::scan(id)?.into_iter().map(|found| found.resolve(&keys, None)).collect();
        let programs = users::that_stay(programs)?;
        if !programs.is_empty() {
            return Err(RegistryError::RegistryInUse { registry: self.name.clone(), programs });
        }
        let mut others = Vec::new();
        for entry in fs::read_dir(dir).map_err(io_error("list", dir))? {
            let name = entry.map_err(io_error("list", dir))?.file_name();
            if !maps::is_pin(&name) {
                others.push(name.to_string_lossy().into_owned());
            }
        }
        if others.is_empty() {
            return Ok(());
        }
        others.sort();
        Err(RegistryError::NotEmpty { registry: self.name.clone(), dir: dir.to_owned(), others })
    }
}

fn new_header(name: &RegistryName, layout: Layout) -> Result<Header, RegistryError> {
    Ok(Header {
        layout,
        id: random()?,
        nonces: new_nonces()?,
        created_at: SystemTime::now(),
        name: table::padded(name.as_str().as_bytes()),
        sender_nonce: random()?,
    })
}

pub(super) fn new_nonces() -> Result<Nonces, RegistryError> {
    Ok(Nonces::from_random(random()?, random()?))
}

/// A random number that is not 0.
pub(crate) fn random() -> Result<u64, RegistryError> {
    loop {
        let mut bytes = [0; 8];
        match getrandom(&mut bytes, GetRandomFlags::empty()) {
            Ok(len) if len == bytes.len() && bytes != [0; 8] => return Ok(u64::from_ne_bytes(bytes)),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(RegistryError::Random(error.into())),
        }
    }
}

fn exists(path: &Path) -> Result<bool, RegistryError> {
    path.try_exists().map_err(io_error("look at", path))
}

/// Makes a directory for root only; one that is there is fine.
fn make_dir(path: &Path) -> Result<(), RegistryError> {
    bpffs::make_dir(path).map_err(io_error("make the directory", path))
}

/// Removes a directory with all it holds; none is fine.
fn clear(path: &Path) -> Result<(), RegistryError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(io_error("clear away", path)),
    }
}

/// Clears away a directory that is no registry any more; if that fails, the next command does.
pub(super) fn clear_now_or_later(path: &Path) {
    if let Err(error) = clear(path) {
        tracing::warn!("{} is left for the next command to clear away: {error}", path.display());
    }
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RegistryError {
    let path = path.to_owned();
    move |error| RegistryError::Io { action, path, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "default", "edge-2_b", "abcdefghijklmnopqrstuvwxyz01234"] {
            assert_eq!(RegistryName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "1a", "_new", "a.b", "a/b", "A", "abcdefghijklmnopqrstuvwxyz012345"] {
            assert_eq!(RegistryName::new(bad), Err(RegistryNameError), "{bad}");
        }
    }

    #[test]
    fn an_area_that_veth_has_no_room_for_is_refused() {
        let options = Registry::options().layout(Layout::new(120, 104).unwrap()).bpffs("/nowhere");
        let error = options.create().unwrap_err();
        assert!(matches!(error, RegistryError::Oversize { area_len: 224, .. }), "{error}");
        assert!(error.to_string().contains("veth"), "{error}");
        assert!(matches!(options.allow_oversize(true).create(), Err(RegistryError::Bpffs(_))));
    }
}
