//! Making a registry of an earlier version one of this version.

use packet_traits_core::{
    Layout,
    layout::{FLOW_FOOTER_LEN, PACKET_FOOTER_LEN},
};

use super::{
    Registry, RegistryError, RegistryOptions,
    lock::DirLock,
    maps, metadata,
    options::{clear_now_or_later, io_error},
    table,
};
use crate::bpffs;

/// The result of migrating a registry.
#[derive(Debug)]
#[non_exhaustive]
pub struct Migration {
    /// The registry, of this version.
    pub registry: Registry,
    /// The version that it had; `None` if it had this version, and was left as it is.
    pub from: Option<u32>,
}

impl RegistryOptions {
    /// Makes a registry of an earlier version one of this version. It keeps its name, its keys and, unless
    /// [`layout`](Self::layout) gives other sizes, its room for values; its secrets are new. Numbers and places of keys may
    /// change, so objects must be compiled and bound again.
    ///
    /// The two registries change places in one step: no process finds none, or a part of one.
    ///
    /// # Errors
    /// [`RegistryError::RegistryInUse`] and [`RegistryError::SocketsAttached`] if programs are bound to it;
    /// [`RegistryError::Oversize`], [`RegistryError::TooLong`] and [`RegistryError::RegionFull`] if its keys do not fit into
    /// the area; those of [`open`](Self::open) but for [`RegistryError::Older`]. Then nothing was changed.
    pub fn migrate(&self) -> Result<Migration, RegistryError> {
        let (parent, dir) = (self.parent(), self.found_dir()?);
        let _lock = DirLock::exclusive(&parent).map_err(io_error("lock", &parent))?;
        match self.open() {
            Ok(registry) => return Ok(Migration { registry, from: None }),
            Err(RegistryError::Older { .. }) => {}
            Err(error) => return Err(error),
        }
        // nobody registers a key, or checks its binding, while this is held
        let _old_lock = DirLock::exclusive(&dir).map_err(io_error("lock", &dir))?;
        let old = maps::read_old(&self.name, &dir)?;
        self.refuse_if_used(&dir, old.header.id, || Ok(Vec::new()))?;
        let layout = self.layout_for(old.header.slot_space)?;
        let registry = self.make(layout, &old.keys, |new| {
            bpffs::exchange(new, &dir).map_err(io_error("exchange", &dir))?;
            clear_now_or_later(new);
            Ok(())
        })?;
        tracing::debug!("migrated registry '{}' at {}", self.name, dir.display());
        Ok(Migration { registry, from: Some(table::OLD_VERSION) })
    }

    fn layout_for(&self, [flow, packet]: [usize; 2]) -> Result<Layout, RegistryError> {
        let longest = metadata::longest()?;
        let too_long = |_| RegistryError::TooLong {
            name: self.name.clone(),
            area_len: flow + packet + FLOW_FOOTER_LEN + PACKET_FOOTER_LEN,
            longest,
        };
        let layout = self.layout.map_or_else(|| Layout::for_slot_space(flow, packet).map_err(too_long), Ok)?;
        self.refuse_oversize(layout)?;
        metadata::fitting(&self.name, Some(layout), longest)
    }
}
