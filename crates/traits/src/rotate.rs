//! Giving a registry other secrets, with all that is up.
//!
//! Who has read the secrets of a registry, from memory that a packet took to another host or container, can make areas that count.
//! [`rotate`] ends that. It loads [deployments](crate::deployment), [borders](crate::border) and
//! [socket programs](crate::socket::programs) anew and only then has them take over from those that run, in the same places and
//! with the same maps: no packet meets none, and counters go on. What packets on their way carry reads as absent.
//!
//! Programs that other loaders hold, tracers and applications that read areas by [`TraitsView`](crate::core::TraitsView) keep the
//! secrets they have, and read and write nothing any more for those that have the new ones: bind, start and open them again.

use std::{
    collections::HashSet,
    thread,
    time::{Duration, Instant},
};

use crate::{
    deployment::{DeployError, Location, Rebinding, UNLOAD},
    registry::{BoundProgram, Registry, RegistryError, RegistryName, RegistryOptions},
    socket::programs::{self, SocketCgroup, SocketProgramsError},
};

/// What has new secrets.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rotation {
    /// The registry, with the new secrets.
    pub registry: Registry,
    /// Names of deployments.
    pub deployments: Vec<String>,
    /// Names of borders.
    pub borders: Vec<String>,
    /// The cgroups whose sockets are served.
    pub cgroups: Vec<SocketCgroup>,
    /// Programs that have the old ones: those that were there in spite of `force`.
    pub left: Vec<BoundProgram>,
}

/// Why secrets were not exchanged, or not everywhere.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotateError {
    /// The registry could not be read or changed. It has the secrets that it had.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A deployment or border could not be loaded anew. Nothing was changed.
    #[error("{0}; nothing was changed")]
    Deployment(#[from] DeployError),
    /// The socket programs could not be loaded anew. Nothing was changed.
    #[error("the socket programs cannot be loaded with new secrets: {0}; nothing was changed")]
    Sockets(#[from] SocketProgramsError),
    /// Programs that others loaded are bound to the registry. Nothing was changed.
    #[error(
        "programs are bound to registry '{registry}' that `traits up`, `border attach` and `sockets attach` did not load, and \
         would read nothing any more: {}; end them and start them again afterwards, or rotate in spite of them with --force",
        list(programs)
    )]
    InUse {
        /// The registry's name.
        registry: RegistryName,
        /// The programs.
        programs: Vec<BoundProgram>,
    },
    /// The registry has new secrets, and some of what is up still has the old ones.
    #[error(
        "registry '{registry}' has new secrets, but what follows still runs with the old ones; rotate again: {}",
        failed.join("; ")
    )]
    Partly {
        /// The registry's name.
        registry: RegistryName,
        /// What, and why.
        failed: Vec<String>,
    },
}

impl RotateError {
    /// The verifier's whole log, if the verifier refused a program.
    pub fn verifier_log(&self) -> Option<&str> {
        match self {
            RotateError::Deployment(DeployError::Bind(error)) => error.verifier_log(),
            RotateError::Sockets(error) => error.verifier_log(),
            _ => None,
        }
    }
}

fn list(programs: &[BoundProgram]) -> String {
    programs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Gives a registry new secrets, with all that is up. Waits while something is brought up or taken down.
///
/// With `force` it does so even if programs are bound that others loaded.
///
/// # Errors
/// But for [`RotateError::Partly`], nothing was changed.
pub fn rotate(options: &RegistryOptions, force: bool) -> Result<Rotation, RotateError> {
    let next = Registry::with_new_nonces(options)?;
    let location = Location::from(&next);
    let deployments = Rebinding::prepare(&location, &next)?;
    let borders = Rebinding::prepare(&location.of_borders(), &next)?;
    let sockets = programs::Rebinding::prepare(&next)?;

    let mut known: HashSet<u32> = sockets.programs()?.into_iter().collect();
    known.extend(deployments.programs().union(borders.programs()));
    let left = publish(&next, &known, force)?;
    if !left.is_empty() && !force {
        return Err(RotateError::InUse { registry: next.name().clone(), programs: left });
    }

    let mut failed = Vec::new();
    let mut done = |what: &str, rebinding: Rebinding| {
        let mut names = Vec::new();
        for (name, switched) in rebinding.switch() {
            match switched {
                Ok(()) => names.push(name),
                Err(error) => failed.push(format!("{what} {name}: {error}")),
            }
        }
        names
    };
    // readers before those that set: what the latter set is then read
    let borders = done("border", borders);
    let cgroups = sockets.switch();
    let deployments = done("deployment", deployments);
    let cgroups = cgroups.unwrap_or_else(|error| {
        failed.push(format!("the socket programs: {error}"));
        Vec::new()
    });
    if !failed.is_empty() {
        return Err(RotateError::Partly { registry: next.name().clone(), failed });
    }
    tracing::debug!("rotated the secrets of registry '{}'", next.name());
    Ok(Rotation { registry: next, deployments, borders, cgroups, left })
}

/// Gives the registry its new secrets unless, without `force`, programs use the old ones that are not `known`; returns those.
fn publish(next: &Registry, known: &HashSet<u32>, force: bool) -> Result<Vec<BoundProgram>, RegistryError> {
    let deadline = Instant::now() + UNLOAD;
    loop {
        let left = next.publish_nonces(known, force)?;
        if left.is_empty() || force || Instant::now() >= deadline {
            return Ok(left);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
