//! Making a registry of an earlier version one of this version.

use packet_traits_core::{
    Layout,
    layout::{FLOW_FOOTER_LEN, PACKET_FOOTER_LEN},
};

use super::{
    Registry, RegistryError, RegistryOptions,
    lock::DirLock,
    maps, metadata,
    options::{clear, clear_later, io_error},
    table,
};
use crate::bpffs;

/// What became of a registry that was migrated.
#[derive(Debug)]
pub struct Migration {
    /// The registry, of this version.
    pub registry: Registry,
    /// The version that it had; `None` if it had this version, and was left as it is.
    pub from: Option<u32>,
}

impl RegistryOptions {
    /// Makes a registry of an earlier version one of this version: with the same name and keys, with as much room for values
    /// unless [`layout`](Self::layout) says otherwise, and with new secrets. Places and numbers of keys may change, so what is
    /// compiled against the earlier version is to be compiled again, and bound.
    ///
    /// The registry is exchanged at once: nobody finds half of it, or none.
    ///
    /// # Errors
    /// [`RegistryError::RegistryInUse`] and [`RegistryError::SocketsAttached`] if programs are bound to it;
    /// [`RegistryError::Oversize`], [`RegistryError::TooLong`] and [`RegistryError::RegionFull`] if its keys do not fit into
    /// the area; those of [`open`](Self::open) but for [`RegistryError::Older`]. Then nothing was changed.
    pub fn migrate(&self) -> Result<Migration, RegistryError> {
        match self.open() {
            Ok(registry) => return Ok(Migration { registry, from: None }),
            Err(RegistryError::Older { .. }) => {}
            Err(error) => return Err(error),
        }
        let (parent, dir) = (self.parent(), self.dir());
        let _lock = DirLock::exclusive(&parent).map_err(io_error("lock", &parent))?;
        // another process may have been faster
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
            clear_later(new, clear(new));
            Ok(())
        })?;
        tracing::debug!("migrated registry '{}' at {}", self.name, dir.display());
        Ok(Migration { registry, from: Some(table::OLD_VERSION) })
    }

    fn layout_for(&self, [flow, packet]: [usize; 2]) -> Result<Layout, RegistryError> {
        let longest = metadata::longest()?;
        let as_before = Layout::for_slot_space(flow, packet).map_err(|_| RegistryError::TooLong {
            name: self.name.clone(),
            area_len: flow + packet + FLOW_FOOTER_LEN + PACKET_FOOTER_LEN,
            longest,
        });
        let layout = match self.layout {
            Some(layout) => layout,
            None => as_before?,
        };
        self.refuse_oversize(layout)?;
        metadata::fitting(&self.name, Some(layout), longest)
    }
}
