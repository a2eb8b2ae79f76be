//! What can go wrong in binding and loading.

use std::{io, path::PathBuf};

use packet_traits_core::{KeyName, KeyType, Merge};

use super::refusal::Refusal;
use crate::{Hint, attach::Feature, registry::RegistryError};

/// Why an object could not be bound or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The object file could not be read, or the bound copy not written.
    #[error("{action} {}: {error}", path.display())]
    File {
        /// What was tried: `reading` or `writing`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// The object file is none, or none for BPF.
    #[error("{object} is not a BPF object file (ELF): {reason}")]
    NotBpf {
        /// The object.
        object: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Text in the object file is none: libbpf's messages would have it in them.
    #[error("{object} has a {what} that is no text (UTF-8): it is damaged")]
    NotText {
        /// The object.
        object: String,
        /// What should be text.
        what: &'static str,
    },
    /// libbpf does not accept the object file.
    #[error("opening {object} as a BPF object: {}", libbpf_words(.source))]
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
        macro_name = match registered { Merge::Block => "TRAIT_BLOCK (or nothing)", Merge::KeepFirst => "TRAIT_KEEP_FIRST", Merge::Discard => "TRAIT_DISCARD" })]
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
    #[error("preparing {object}: {}", libbpf_words(.source))]
    Prepare {
        /// The object.
        object: String,
        /// libbpf's error.
        source: libbpf_rs::Error,
    },
    /// The running kernel lacks what a program needs.
    #[error(
        "loading {object}: program {program}: {feature}; this is {running}, without it or built without {}; take the \
         program out, or run a newer kernel", feature.config()
    )]
    Unsupported {
        /// The object.
        object: String,
        /// The program.
        program: String,
        /// What the kernel lacks.
        feature: Feature,
        /// The running kernel's release.
        running: String,
    },
    /// The running kernel does not know the type of a program.
    #[error(
        "loading {object}: program {program} is of type {kind}, which this kernel ({running}) does not know; take the \
         program out, or run a kernel that is built with it"
    )]
    ProgramType {
        /// The object.
        object: String,
        /// The program.
        program: String,
        /// Its type.
        kind: &'static str,
        /// The running kernel's release.
        running: String,
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
    /// A key was unregistered, or the registry's secrets were rotated, between binding and loading; the object has been unloaded
    /// again.
    #[error(
        "loading {object}: while it was loaded, a key it uses was unregistered from registry {registry}, or the registry's \
         secrets were rotated; bind and load it again"
    )]
    Changed {
        /// The object.
        object: String,
        /// The registry's name.
        registry: String,
    },
}

impl BindError {
    /// What the caller can do about it.
    pub fn hints(&self) -> Vec<Hint> {
        match self {
            BindError::Registry(error) => error.hints(),
            _ => Vec::new(),
        }
    }

    /// The verifier's whole log, if the verifier refused a program.
    pub fn verifier_log(&self) -> Option<&str> {
        match self {
            BindError::Load { log, .. } if !log.is_empty() => Some(log),
            _ => None,
        }
    }
}

fn load_reason(program: Option<&str>, log: &str, source: &libbpf_rs::Error) -> String {
    match (program, Refusal::read(log)) {
        (Some(program), Some(refusal)) => {
            format!("the verifier refuses program {program}: {refusal} (-v shows its whole log)")
        }
        (Some(program), None) => format!("program {program}: {}", libbpf_words(source)),
        (None, _) => libbpf_words(source),
    }
}

/// An error of libbpf-rs with libbpf's own codes in words, which are no errno: the system calls them "Unknown error
/// 4001". libbpf-rs gives a code away only in its text, "... (os error 4001)".
fn libbpf_words(error: &libbpf_rs::Error) -> String {
    let text = format!("{error:#}");
    let code = text.rsplit_once("(os error ").and_then(|(_, rest)| rest.split_once(')')?.0.parse().ok());
    let Some(words) = code.and_then(libbpf_code) else { return text };
    match text.rsplit_once(": ") {
        Some((context, _)) => format!("{context}: {words}"),
        None => words.to_owned(),
    }
}

/// `enum libbpf_errno` of libbpf.h, in its order from `LIBBPF_ERRNO__LIBELF` on; libbpf-sys does not have it.
fn libbpf_code(code: u32) -> Option<&'static str> {
    Some(match code {
        4000 => "libelf cannot read it",
        4001 => "a section, symbol or map definition in it is not valid; -v shows which",
        4002 => "its version section is not valid",
        4003 => "it is for the other byte order; compile it with `clang -target bpf`",
        4004 => "internal error in libbpf; -v shows its messages",
        4005 => "a reference in it cannot be resolved, or a kernel type does not have what it asks for; -v shows which",
        4006 => "the kernel refused it without a reason; -v shows libbpf's messages",
        4007 => "the verifier refused a program",
        4008 => "a program is too big",
        4009 => "it is for another kernel version",
        4010 => "this kernel does not have the type of one of its programs",
        4011 => "the kernel's netlink answer was for another process",
        4012 => "the kernel's netlink answer was to another request",
        4013 => "the kernel's netlink answer could not be read",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libbpfs_own_codes_are_put_in_words_and_others_left_as_they_are() {
        for code in 4000..4014 {
            let error = libbpf_rs::Error::from_raw_os_error(code);
            let text = libbpf_words(&error);
            assert!(!text.contains("Unknown error") && !text.contains("os error"), "{code}: {text}");
        }
        let error = libbpf_rs::ErrorExt::context(libbpf_rs::Error::from_raw_os_error(4001), "opening");
        assert_eq!(libbpf_words(&error), format!("opening: {}", libbpf_code(4001).unwrap()));
        let error = libbpf_rs::Error::from_raw_os_error(libc::EPERM);
        assert_eq!(libbpf_words(&error), format!("{error:#}"));
    }
}
