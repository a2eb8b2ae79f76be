//! Why tracing did not start.

use std::io;

use packet_traits::{
    KeyType, Region,
    attach::{AttachError, Feature},
    bind::BindError,
    registry::RegistryError,
};

use crate::{filter::FilterError, keys::OWN_KEYS};

/// Why tracing did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// A condition is wrong.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The registry cannot be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The programs were refused.
    #[error(transparent)]
    Bind(Box<BindError>),
    /// A program cannot be attached.
    #[error(transparent)]
    Attach(Box<AttachError>),
    /// A key that was named is not one of the registry.
    #[error("there is no key {key} in the registry; it has {keys}")]
    NoKey {
        /// What was named.
        key: String,
        /// The registry's keys.
        keys: String,
    },
    /// A key is of a type that does not fit.
    #[error("key {key} is of type {found}; {expected}")]
    KeyType {
        /// The key.
        key: String,
        /// Its type.
        found: KeyType,
        /// What it should be.
        expected: &'static str,
    },
    /// The registry has no room for the tracer's own keys.
    #[error(
        "cannot register the tracer's keys trace.id and trace.entered in registry '{registry}': they take 16 bytes of its \
         {region} region, and {missing} of them are missing. The region holds {held}. Remove keys that nothing uses \
         (`traits keys remove NAME`), or name the key that has packets' ids by `--id KEY` ({ids}){}",
        longest.map_or_else(
            || format!("; or create a registry with a larger {region} region"),
            |longest| format!(
                ". A larger area does not fit: this kernel takes {longest} bytes of XDP metadata ({})",
                Feature::LongXdpMetadata
            ),
        )
    )]
    NoRoom {
        /// The registry's name.
        registry: String,
        /// The region that the keys would be in.
        region: Region,
        /// Bytes of 16 for which it has no aligned place.
        missing: usize,
        /// Names of the region's other keys.
        held: String,
        /// Keys that could be ids.
        ids: String,
        /// Bytes of metadata that the kernel takes, if that is why the area cannot be larger.
        longest: Option<usize>,
    },
    /// `slower` needs to know when packets entered.
    #[error(
        "cannot tell which packets are slow: no key says when a packet entered; name one of type timestamp by \
         `--entered KEY`, or leave `--id` out, and the tracer has its own"
    )]
    NoEntered,
    /// There is no interface to trace.
    #[error("cannot trace {what}: {why}")]
    NoInterface {
        /// What was asked for.
        what: String,
        /// Why there is none.
        why: String,
    },
    /// No interface has room for the tracer's XDP program.
    #[error(
        "packets get no id: {why}. If the program that is there assigns one, name its key by `--id KEY` ({keys}); else \
         detach it, or trace another interface by `--dev`"
    )]
    NoEntry {
        /// What stands in the way, of the first interface.
        why: String,
        /// Keys that could be ids.
        keys: String,
    },
    /// Something of the system failed.
    #[error("cannot {action}: {error}")]
    System {
        /// What was tried.
        action: String,
        /// Why it failed.
        error: io::Error,
    },
    /// libbpf failed.
    #[error("cannot {action}: {error}")]
    Libbpf {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        error: libbpf_rs::Error,
    },
    /// An option is out of range.
    #[error("{0}")]
    Option(String),
}

impl TraceError {
    /// What the verifier wrote, if it refused a program.
    pub fn verifier_log(&self) -> Option<&str> {
        match self {
            TraceError::Bind(error) => error.verifier_log(),
            _ => None,
        }
    }

    /// Whether keys went between their registration and the loading of programs that use them, as they do when another
    /// tracer ends then.
    pub(super) fn keys_changed(&self) -> bool {
        match self {
            TraceError::Bind(error) => matches!(**error, BindError::Changed { .. } | BindError::UnknownKey { .. }),
            TraceError::NoKey { key, .. } => key.starts_with(OWN_KEYS),
            _ => false,
        }
    }
}

impl From<BindError> for TraceError {
    fn from(error: BindError) -> TraceError {
        TraceError::Bind(Box::new(error))
    }
}

impl From<AttachError> for TraceError {
    fn from(error: AttachError) -> TraceError {
        TraceError::Attach(Box::new(error))
    }
}

pub(crate) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> TraceError {
    let action = action.into();
    move |error| TraceError::System { action, error }
}

pub(crate) fn libbpf(action: &'static str) -> impl FnOnce(libbpf_rs::Error) -> TraceError {
    move |error| TraceError::Libbpf { action, error }
}
