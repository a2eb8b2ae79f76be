//! The error of this crate.

use std::{io, path::PathBuf};

use packet_traits::{Hint, bind::BindError, deployment::DeployError, registry::RegistryError};
use packet_traits_policy::{
    check::Rejected, compile::CompileError, emit::EmitError, log_event::LogEventError, manifest::ManifestError,
};
use thiserror::Error;

/// Why a policy or an object did not come up, or why what it counts or logs was not read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The file could not be read.
    #[error("reading {}: {error}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The policy has errors.
    #[error("{}", rendered(.0))]
    Rejected(Box<Rejected>),
    /// The policy is larger than its programs can be.
    #[error(transparent)]
    Emit(#[from] EmitError),
    /// The policy's programs were not compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// An object's description of its policy cannot be read.
    #[error("{file}: {error}")]
    Manifest {
        /// The object.
        file: String,
        /// Why.
        error: ManifestError,
    },
    /// An object's description of its policy contradicts itself or this version.
    #[error("{file}: {why}; compile the policy again")]
    Damaged {
        /// The object or the policy.
        file: String,
        /// The contradiction.
        why: String,
    },
    /// Hooks were given for the netfilter programs of a policy, which names them already.
    #[error("the policy {file} already names the hooks of its netfilter programs; give none")]
    NetfilterGiven {
        /// The policy.
        file: String,
    },
    /// There is no interface of this name in this network namespace.
    #[error("there is no interface {name} in this network namespace (`ip link` lists them)")]
    NoInterface {
        /// The name.
        name: String,
    },
    /// A policy redirects packets to an interface that does not exist.
    #[error("{file}: there is no interface {name} in this network namespace (`ip link` lists them)")]
    NoTarget {
        /// The policy.
        file: String,
        /// The interface.
        name: String,
    },
    /// A policy names an interface by an alternative name, which rules do not compare with.
    #[error("{file}: {name} is an alternative name of interface {first}: write \"{first}\"")]
    AlternativeName {
        /// The policy.
        file: String,
        /// The alternative name.
        name: String,
        /// The name.
        first: String,
    },
    /// Packets of the interface begin with a header that rules at XDP and TC do not know.
    #[error(
        "packets of {interface} begin with {header}, which rules at XDP and TC do not know: attach the policy to another \
         interface that they pass, or test their headers at netfilter"
    )]
    LinkLayer {
        /// The interface.
        interface: String,
        /// The header.
        header: String,
    },
    /// The link layer of an interface was not found out.
    #[error("asking for the link layer of {interface}: {error}")]
    Interface {
        /// The interface.
        interface: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// The registry refused something.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The object was not bound or not loaded.
    #[error(transparent)]
    Bind(Box<BindError>),
    /// The programs were not attached or not detached.
    #[error(transparent)]
    Deploy(#[from] DeployError),
    /// A map of what is up is missing.
    #[error("{deployment} has lost map {map}")]
    NoMap {
        /// The deployment.
        deployment: String,
        /// The map.
        map: String,
    },
    /// A map of what is up was not read.
    #[error("reading map {map} of {deployment}: {error:#}")]
    Map {
        /// The deployment.
        deployment: String,
        /// The map.
        map: String,
        /// What the kernel said.
        error: libbpf_rs::Error,
    },
    /// An event of a `log` action cannot be read.
    #[error(transparent)]
    Event(#[from] LogEventError),
}

impl PolicyError {
    /// What the caller can do about it.
    pub fn hints(&self) -> Vec<Hint> {
        match self {
            PolicyError::Registry(error) => error.hints(),
            PolicyError::Bind(error) => error.hints(),
            PolicyError::Deploy(error) => error.hints(),
            _ => Vec::new(),
        }
    }

    /// What the verifier wrote about a program that it refused.
    pub fn verifier_log(&self) -> Option<&str> {
        match self {
            PolicyError::Bind(error) => error.verifier_log(),
            PolicyError::Deploy(DeployError::Bind(error)) => error.verifier_log(),
            _ => None,
        }
    }
}

fn rendered(rejected: &Rejected) -> String {
    let diagnostics = rejected.diagnostics.iter().map(|one| one.render(&rejected.sources, false));
    diagnostics.collect::<Vec<_>>().join("\n")
}

impl From<BindError> for PolicyError {
    fn from(error: BindError) -> PolicyError {
        PolicyError::Bind(Box::new(error))
    }
}
