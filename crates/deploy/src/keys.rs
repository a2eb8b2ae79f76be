//! Removing the keys of a policy that is down.

use std::{
    thread,
    time::{Duration, Instant},
};

use packet_traits::{
    KeyName,
    deployment::Deployment,
    registry::{BoundProgram, KeyEntry, Registry, RegistryError},
};

use crate::{PolicyError, setup};

/// How long programs may take to be unloaded once they are detached.
const UNLOAD_TIMEOUT: Duration = Duration::from_secs(2);

/// The result of [`remove_keys`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct RemovedKeys {
    /// Those that were removed.
    pub removed: Vec<KeyName>,
    /// Why others stay: [`RegistryError::KeyInUse`].
    pub kept: Vec<RegistryError>,
}

/// Removes the keys that a policy declares and that no loaded program uses. `deployment` is what
/// [`Deployment::down`] returned.
///
/// # Errors
/// Those of [`Registry::lookup`] and [`Registry::unregister`], except for keys in use.
pub fn remove_keys(deployment: &Deployment, registry: &Registry) -> Result<RemovedKeys, PolicyError> {
    let mut keys = RemovedKeys::default();
    let Some(manifest) = setup::noted(deployment.notes()) else { return Ok(keys) };
    for spec in setup::keys(&manifest)? {
        let is_it = |entry: KeyEntry| entry.key.key_type() == spec.key_type && entry.merge == spec.merge;
        if !registry.lookup(&spec.name)?.is_some_and(is_it) {
            continue;
        }
        match unregister(registry, &spec.name, deployment) {
            Ok(_) => keys.removed.push(spec.name),
            Err(error @ RegistryError::KeyInUse { .. }) => keys.kept.push(error),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(keys)
}

/// Removes a key. Programs that were just detached are unloaded a moment later.
pub(crate) fn unregister(registry: &Registry, key: &KeyName, detached: &Deployment) -> Result<KeyEntry, RegistryError> {
    let ours = |program: &BoundProgram| {
        detached.attached().iter().any(|deployed| deployed.info.program_id == program.id)
            || detached.filters().iter().any(|filter| filter.program_id == program.id)
    };
    let deadline = Instant::now() + UNLOAD_TIMEOUT;
    loop {
        match registry.unregister(key, false) {
            Err(RegistryError::KeyInUse { programs, .. }) if programs.iter().all(ours) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}
