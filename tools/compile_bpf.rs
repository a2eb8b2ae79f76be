//! What the build scripts share: compiling BPF programs. `src/<module>/bpf/<name>.bpf.c` becomes
//! `$OUT_DIR/<name>.bpf.o`, which the module embeds and binds before it loads it.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use libbpf_cargo::SkeletonBuilder;

/// Where the project's headers are, from a crate's folder.
const INCLUDE: &str = "../../include";

/// Environment variable that names the compiler, as it does when a policy is compiled.
const CLANG: &str = "CLANG";

/// Compiles sources of the crate, each beside the module that owns it.
pub(crate) fn compile(sources: &[&str]) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rerun-if-changed={INCLUDE}");
    println!("cargo::rerun-if-env-changed={CLANG}");
    let clang = clang();
    for source in sources {
        let source = Path::new(source);
        let folder = source.parent().expect("a source is in a folder");
        let object = out.join(source.with_extension("o").file_name().expect("a source has a name"));
        println!("cargo::rerun-if-changed={}", folder.display());
        SkeletonBuilder::new()
            .source(source)
            .obj(&object)
            .clang(&clang)
            .clang_args(clang_args())
            .build()
            .unwrap_or_else(|error| panic!("{error:#}"));
    }
}

/// The compiler: what [`CLANG`] names, else `clang`. Without it the build ends here, with what to do.
fn clang() -> PathBuf {
    let named = env::var_os(CLANG).filter(|name| !name.is_empty());
    let clang = named.map_or_else(|| PathBuf::from("clang"), PathBuf::from);
    let run = Command::new(&clang).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if let Err(why) = run {
        println!(
            "cargo::error=compiling BPF programs: running {}: {why}; install clang 14 or newer (Debian, Ubuntu, Fedora: \
             package clang), or name a compiler in the environment variable {CLANG}",
            clang.display()
        );
        process::exit(1);
    }
    clang
}

fn clang_args() -> Vec<OsString> {
    // No -Werror: a newer compiler may warn of what is right. tools/lint-bpf.sh has it.
    // on Debian and its kin <asm/types.h> is in a folder of the architecture, where clang does not look for BPF
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    ["-mcpu=v3", "-Wall", &format!("-I{INCLUDE}"), &format!("-I/usr/include/{arch}-linux-gnu")]
        .map(OsString::from)
        .to_vec()
}
