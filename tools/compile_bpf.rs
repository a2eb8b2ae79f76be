//! What the build scripts share: compiling BPF programs. `src/<module>/bpf/<name>.bpf.c` becomes
//! `$OUT_DIR/<name>.bpf.o`, which the module embeds and binds before it loads it.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use libbpf_cargo::SkeletonBuilder;

/// Where the project's headers are, from a crate's folder.
const INCLUDE: &str = "../../include";

/// Compiles sources of the crate, each beside the module that owns it.
pub(crate) fn compile(sources: &[&str]) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rerun-if-changed={INCLUDE}");
    for source in sources {
        let source = Path::new(source);
        let folder = source.parent().expect("a source is in a folder");
        let object = out.join(source.with_extension("o").file_name().expect("a source has a name"));
        println!("cargo::rerun-if-changed={}", folder.display());
        SkeletonBuilder::new()
            .source(source)
            .obj(&object)
            .clang_args(clang_args())
            .build()
            .unwrap_or_else(|error| panic!("{error:#}"));
    }
}

fn clang_args() -> Vec<OsString> {
    // on Debian and its kin <asm/types.h> is in a folder of the architecture, where clang does not look for BPF
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    ["-mcpu=v3", "-Wall", "-Werror", &format!("-I{INCLUDE}"), &format!("-I/usr/include/{arch}-linux-gnu")]
        .map(OsString::from)
        .to_vec()
}
