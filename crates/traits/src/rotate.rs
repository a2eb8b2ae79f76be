//! Replacing a registry's secrets.
//!
//! Secrets can be read from the memory in front of a packet that leaves the host. With them, traits can be forged. [`rotate`]
//! replaces them, and loads [deployments](crate::deployment), [borders](crate::border) and
//! [socket programs](crate::socket_programs) with the new ones. These then replace the running programs at the same hooks and
//! with the same maps: every packet meets a program, and counters go on. Traits of packets in flight read as absent.
//!
//! Programs of other loaders, tracers and applications with a [`TraitsView`](packet_traits_core::TraitsView) keep the previous secrets.
//! They read nothing, and nothing they write is read, until they are bound, started or opened again.

use std::{
    collections::HashSet,
    thread,
    time::{Duration, Instant},
};

use crate::{
    Hint,
    deployment::{DeployError, Location, Rebinding, UNLOAD},
    registry::{BoundProgram, Registry, RegistryError, RegistryName, RegistryOptions},
    socket_programs::{self, SocketCgroup, SocketProgramsError},
};

/// What was replaced.
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
    /// Programs that still have the previous secrets, because `force` was set.
    pub left: Vec<BoundProgram>,
}

/// Why secrets were not replaced, or not everywhere.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotateError {
    /// The registry could not be read or changed. It has the secrets that it had.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A deployment or border could not be loaded again. Nothing was changed.
    #[error("{0}; nothing was changed")]
    Deployment(DeployError),
    /// The socket programs could not be loaded again. Nothing was changed.
    #[error("the socket programs cannot be loaded with new secrets: {0}; nothing was changed")]
    Sockets(SocketProgramsError),
    /// Other loaders' programs are bound to the registry. Nothing was changed.
    #[error(
        "programs of other loaders are bound to registry '{registry}' and would stop reading traits: {}; stop them, rotate, and \
         start them again",
        list(programs)
    )]
    InUse {
        /// The registry's name.
        registry: RegistryName,
        /// The programs.
        programs: Vec<BoundProgram>,
    },
    /// The registry has new secrets, but some programs still have the previous ones.
    #[error(
        "registry '{registry}' has new secrets, but these still run with the previous ones; rotate again: {}",
        failed.join("; ")
    )]
    Partly {
        /// The registry's name.
        registry: RegistryName,
        /// What, and why.
        failed: Vec<String>,
    },
}

impl From<DeployError> for RotateError {
    fn from(error: DeployError) -> RotateError {
        RotateError::Deployment(error)
    }
}

impl From<SocketProgramsError> for RotateError {
    fn from(error: SocketProgramsError) -> RotateError {
        RotateError::Sockets(error)
    }
}

impl RotateError {
    /// What the caller can do about it.
    pub fn hints(&self) -> Vec<Hint> {
        match self {
            RotateError::Registry(error) => error.hints(),
            RotateError::Deployment(error) => error.hints(),
            RotateError::Sockets(error) => error.hints(),
            RotateError::InUse { .. } => vec![Hint::Force],
            RotateError::Partly { .. } => Vec::new(),
        }
    }

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

/// Replaces a registry's secrets, and the programs that use them. Waits while another process brings something up or down.
///
/// Fails if other loaders' programs are bound to the registry, unless `force` is set.
///
/// # Errors
/// But for [`RotateError::Partly`], nothing was changed.
pub fn rotate(options: &RegistryOptions, force: bool) -> Result<Rotation, RotateError> {
    let next = Registry::with_new_nonces(options)?;
    let location = Location::from(&next);
    let deployments = Rebinding::prepare(&location, &next)?;
    let borders = Rebinding::prepare(&location.of_borders(), &next)?;
    let sockets = socket_programs::Rebinding::prepare(&next)?;

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
    // socket programs only read; deployments also set
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

/// Gives the registry its new secrets, and returns the programs that are not `known` and use the previous ones. If there are
/// any, the secrets stay, unless `force` is set.
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
