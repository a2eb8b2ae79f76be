//! Why tracing did not start.

use std::io;

use packet_traits::{
    KeyType, Region,
    attach::{AttachError, Feature},
    bind::BindError,
    registry::RegistryError,
};

use crate::{filter::FilterError, keys::OWN_KEYS};

/// What a caller can do about an error by other [`Options`](crate::Options).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint {
    /// Something that is not the tracer's.
    Traits(packet_traits::Hint),
    /// Name the key that has packets' ids: [`Options::id`](crate::Options::id).
    NameId,
    /// Name no such key: the tracer assigns ids itself.
    OmitId,
    /// Name the key that says when packets entered: [`Options::entered`](crate::Options::entered).
    NameEntered,
    /// Name an interface: [`Options::devices`](crate::Options::devices).
    NameInterface,
    /// Name a namespace: [`Options::namespaces`](crate::Options::namespaces).
    NameNamespace,
}

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
         (`traits keys remove NAME`), or name the key that has packets' ids ({ids}){}",
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
        "cannot tell which packets are slow: no key says when a packet entered; name one of type timestamp, or let the \
         tracer assign ids itself"
    )]
    NoEntered,
    /// An interface that was named is not there.
    #[error(
        "cannot trace interface {name}: there is none of that name in the namespaces that are traced; `ip link` lists them"
    )]
    NoInterface {
        /// Its name.
        name: String,
    },
    /// No interface is up.
    #[error(
        "cannot trace this network namespace: it has no interface that is up, but for loopback; name what to trace"
    )]
    NothingUp,
    /// No interface has room for the tracer's XDP program.
    #[error(
        "packets get no id: {why}; if the program that is there assigns one, name its key ({keys}), else detach it, or \
         trace another interface"
    )]
    NoEntry {
        /// What stands in the way, of the first interface.
        why: String,
        /// What the caller can do about that.
        hints: Vec<packet_traits::Hint>,
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
    /// What the caller can do about it.
    pub fn hints(&self) -> Vec<Hint> {
        let (library, own): (_, &[Hint]) = match self {
            TraceError::Registry(error) => (error.hints(), &[]),
            TraceError::Bind(error) => (error.hints(), &[]),
            TraceError::Attach(error) => (error.hints(), &[]),
            TraceError::NoRoom { .. } => (Vec::new(), &[Hint::NameId]),
            TraceError::NoEntered => (Vec::new(), &[Hint::NameEntered, Hint::OmitId]),
            TraceError::NoInterface { .. } => (Vec::new(), &[Hint::NameNamespace]),
            TraceError::NothingUp => (Vec::new(), &[Hint::NameInterface, Hint::NameNamespace]),
            TraceError::NoEntry { hints, .. } => (hints.clone(), &[Hint::NameId, Hint::NameInterface]),
            _ => (Vec::new(), &[]),
        };
        library.into_iter().map(Hint::Traits).chain(own.iter().cloned()).collect()
    }

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
