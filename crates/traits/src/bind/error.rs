//! What can go wrong in binding and loading.

use std::{io, path::PathBuf};

use packet_traits_core::{KeyName, KeyType, Merge};

use crate::registry::RegistryError;

/// Why an object could not be bound or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The object file could not be read, or the bound copy not written.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was tried: `reading` or `writing`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// libbpf does not accept the object file.
    #[error("opening {object} as a BPF object: {source:#}")]
    Open {
        /// The object.
        object: String,
        /// libbpf's error.
        source: libbpf_rs::Error,
    },
    /// The object declares no keys: it does not include the header.
    #[error(
        "{object} has no section {section}: it declares no trait keys; include <packet_traits/traits.bpf.h> and declare \
         them with TRAIT_KEY",
        section = crate::descriptor::SECTION
    )]
    NoKeys {
        /// The object.
        object: String,
    },
    /// The object has no type information.
    #[error("{object} has no BTF, which declared types are checked with; compile it with -g")]
    NoBtf {
        /// The object.
        object: String,
    },
    /// The object's descriptors are of another version than this library's.
    #[error(
        "{object} was compiled with version {found} of the traits header, this library knows version {known}; compile it \
         against the header that belongs to this version",
        known = crate::descriptor::ABI_VERSION
    )]
    Version {
        /// The object.
        object: String,
        /// The version in the object.
        found: u32,
    },
    /// The object declares a key that the registry does not have.
    #[error(
        "{object} declares key {key}, which registry {registry} does not have (it has: {known}); register it with \
         `traits keys add {key} TYPE`"
    )]
    UnknownKey {
        /// The object.
        object: String,
        /// The declared name.
        key: String,
        /// The registry's name.
        registry: String,
        /// The names it has.
        known: String,
    },
    /// A declared C type is not one for values of the registered type.
    #[error(
        "{object} declares key {key} as `{declared}`, registry {registry} has it as {registered}, which is {expected} in C"
    )]
    Type {
        /// The object.
        object: String,
        /// The key.
        key: KeyName,
        /// The declared type, as in the source.
        declared: String,
        /// The registry's name.
        registry: String,
        /// The registered type.
        registered: KeyType,
        /// C types that fit.
        expected: &'static str,
    },
    /// A declared merge policy is not the registered one.
    #[error("{object} declares key {key} as {declared}, registry {registry} has it as {registered}; say {macro_name} in TRAIT_KEY",
        macro_name = match registered { Merge::Block => "TRAIT_BLOCK (or nothing)", Merge::KeepFirst => "TRAIT_KEEP_FIRST" })]
    MergePolicy {
        /// The object.
        object: String,
        /// The key.
        key: KeyName,
        /// The declared policy.
        declared: Merge,
        /// The registry's name.
        registry: String,
        /// The registered policy.
        registered: Merge,
    },
    /// The object is bound to another registry.
    #[error(
        "{object} is already bound to another registry (id {found:016x}; registry {registry} has {id:016x}); bind the \
         object as the compiler wrote it"
    )]
    OtherRegistry {
        /// The object.
        object: String,
        /// Id of the registry it is bound to.
        found: u64,
        /// Name of the registry asked for.
        registry: String,
        /// Its id.
        id: u64,
    },
    /// A descriptor is damaged.
    #[error("{object} has a damaged key descriptor: {reason}")]
    Descriptor {
        /// The object.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry could not be read.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// libbpf refused a change of the object.
    #[error("preparing {object}: {source:#}")]
    Prepare {
        /// The object.
        object: String,
        /// libbpf's error.
        source: libbpf_rs::Error,
    },
    /// The kernel refused the object.
    #[error("loading {object}: {}", load_reason(.program.as_deref(), .log, .source))]
    Load {
        /// The object.
        object: String,
        /// The program that was refused, if it was a program.
        program: Option<String>,
        /// The verifier's log, whole; empty if it wrote none.
        log: String,
        /// libbpf's error.
        source: libbpf_rs::Error,
    },
    /// A key was unregistered between binding and loading; the object has been unloaded again.
    #[error(
        "loading {object}: a key it uses was unregistered from registry {registry} meanwhile; bind and load it again"
    )]
    Changed {
        /// The object.
        object: String,
        /// The registry's name.
        registry: String,
    },
}

impl BindError {
    /// The verifier's whole log, if the verifier refused a program.
    pub fn verifier_log(&self) -> Option<&str> {
        match self {
            BindError::Load { log, .. } if !log.is_empty() => Some(log),
            _ => None,
        }
    }
}

/// The last line of a verifier's log that is not its statistics: the one that says why.
fn telling_line(log: &str) -> Option<&str> {
    log.lines().map(str::trim).rfind(|line| {
        !line.is_empty()
            && !["processed ", "verification time", "stack depth"].iter().any(|start| line.starts_with(start))
    })
}

fn load_reason(program: Option<&str>, log: &str, source: &libbpf_rs::Error) -> String {
    match (program, telling_line(log)) {
        (Some(program), Some(line)) => {
            format!("the verifier refuses program {program}: {line} (-v shows its whole log)")
        }
        (Some(program), None) => format!("program {program}: {source:#}"),
        (None, _) => format!("{source:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_telling_line_is_the_verifiers_last_word() {
        let log = "0: R1=ctx()\n1: (79) r2 = *(u64 *)(r1 +8)\ninvalid bpf_context access off=8 size=8\n\
                   processed 2 insns (limit 1000000) max_states_per_insn 0\n\n";
        assert_eq!(telling_line(log), Some("invalid bpf_context access off=8 size=8"));
        assert_eq!(telling_line(""), None);
    }
}
