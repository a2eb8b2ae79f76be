//! The C headers of [packet traits](https://docs.rs/packet-traits) as constants: for compilers of BPF programs and for build
//! scripts.
//!
//! BPF programs include `packet_traits/traits.bpf.h`; applications in C include `packet_traits/socket.h`. The opening comment of
//! each header is its reference. [`write_to`] writes all headers into a folder for clang's `-I`.
//!
//! With the feature `build`, `build::compile` compiles a crate's BPF programs in its build script.

#[cfg(feature = "build")]
pub mod build;

use std::{fs, io, path::Path};

/// The folder of the headers in `#include <packet_traits/...>`.
pub const FOLDER: &str = "packet_traits";

/// A header file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// Its name in [`FOLDER`].
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! headers {
    ($($(#[$doc:meta])* $constant:ident = $name:literal;)*) => {
        $(
            $(#[$doc])*
            pub const $constant: Header =
                Header { name: $name, text: include_str!(concat!("../include/packet_traits/", $name)) };
        )*

        /// Every header.
        pub const ALL: &[Header] = &[$($constant),*];
    };
}

headers! {
    /// Traits in BPF programs: `TRAIT_KEY`, `trait_get`, `trait_set`, and what else XDP, TC and later hooks call.
    TRAITS = "traits.bpf.h";
    /// The calls of the kernel RFC: by a key's number.
    RFC = "rfc.bpf.h";
    /// The kernel structures that the other headers for BPF read. [`TRAITS`] includes it.
    KERNEL = "kernel.bpf.h";
    /// What the other headers for BPF do for the verifier and for clang, each with its reason. [`KERNEL`] includes it.
    VERIFIER = "verifier.bpf.h";
    /// What compiled policies include.
    POLICY = "policy.bpf.h";
    /// The traits of a packet's sender in BPF programs at egress.
    SOCKET_BPF = "socket.bpf.h";
    /// Socket options, for applications in C.
    SOCKET = "socket.h";
}

/// Writes all headers into the folder `packet_traits` of `include`, which is created if it does not exist.
///
/// # Errors
/// Those of [`fs::create_dir_all`] and [`fs::write`].
pub fn write_to(include: &Path) -> io::Result<()> {
    let folder = include.join(FOLDER);
    fs::create_dir_all(&folder)?;
    ALL.iter().try_for_each(|header| fs::write(folder.join(header.name), header.text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_of_the_folder_is_a_constant() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("include").join(FOLDER);
        let mut there: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let mut names: Vec<_> = ALL.iter().map(|header| header.name).collect();
        there.sort();
        names.sort();
        assert_eq!(there, names);
    }

    #[test]
    fn headers_are_written_where_they_are_included_from() {
        let include = tempfile::tempdir().unwrap();
        write_to(include.path()).unwrap();
        for header in ALL {
            assert_eq!(
                fs::read_to_string(include.path().join("packet_traits").join(header.name)).unwrap(),
                header.text
            );
        }
    }
}
