//! Keys that are registered for something that may still fail.

use super::{KeyEntry, KeySpec, Registry, RegistryError};

/// Keys registered together. Those that were not there before are unregistered again when this is dropped, unless a
/// loaded program uses one; [`keep`](Self::keep) leaves them.
#[derive(Debug)]
#[must_use = "dropping it unregisters the new keys"]
pub struct ProvisionalKeys<'r> {
    registry: &'r Registry,
    new: Vec<KeyEntry>,
}

impl Registry {
    /// Registers keys for something that may still fail: all of them, or none.
    ///
    /// # Errors
    /// As [`register`](Self::register), for the first that cannot be.
    pub fn register_provisionally(&self, specs: &[KeySpec]) -> Result<ProvisionalKeys<'_>, RegistryError> {
        let mut keys = ProvisionalKeys { registry: self, new: Vec::new() };
        for spec in specs {
            let (entry, new) = self.register_or_find(spec)?;
            if new {
                keys.new.push(entry);
            }
        }
        Ok(keys)
    }
}

impl ProvisionalKeys<'_> {
    /// The keys that were not there before.
    pub fn new_keys(&self) -> &[KeyEntry] {
        &self.new
    }

    /// Leaves the keys registered.
    pub fn keep(mut self) {
        self.new.clear();
    }
}

impl Drop for ProvisionalKeys<'_> {
    fn drop(&mut self) {
        for entry in self.new.drain(..) {
            match self.registry.unregister_found(entry.key.name(), Some(entry.generation), false) {
                Ok(_) | Err(RegistryError::UnknownKey { .. } | RegistryError::Gone { .. }) => {}
                Err(error) => tracing::warn!("key '{}' stays registered: {error}", entry.key.name()),
            }
        }
    }
}
