//! Compiles BPF programs in a build script. `src/<module>/bpf/<name>.bpf.c` becomes `$OUT_DIR/<name>.bpf.o`, which the module
//! embeds.
//!
//! ```no_run
//! // build.rs; in Cargo.toml: [build-dependencies] packet-traits-headers = { version = "0.1", features = ["build"] }
//! packet_traits_headers::build::compile(&["src/bpf/classify.bpf.c"]);
//! ```
//!
//! Then, in the crate: `include_bytes!(concat!(env!("OUT_DIR"), "/classify.bpf.o"))`.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use libbpf_cargo::SkeletonBuilder;

/// The environment variable that names the compiler. Without it, `clang` is used.
pub const CLANG: &str = "CLANG";

/// Compiles BPF programs of the crate that is being built, with debugging information and for BPF's third instruction set
/// (`-mcpu=v3`). They can include libbpf's headers, those of this crate and the files of their own folders.
///
/// `sources` are paths from the crate's folder. The build fails with a message if the compiler is not installed.
///
/// # Panics
/// If a source does not compile, or this is not called from a build script.
pub fn compile(sources: &[&str]) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let include = out.join("include");
    super::write_to(&include).unwrap_or_else(|error| panic!("writing headers to {}: {error}", include.display()));
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
            .clang_args(clang_args(&include))
            .build()
            .unwrap_or_else(|error| panic!("{error:#}"));
    }
}

/// The compiler. If it cannot be run, the build ends here.
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

fn clang_args(include: &Path) -> Vec<OsString> {
    // No -Werror: a newer compiler may warn of what is right. tools/lint-c.sh has it.
    // Debian and distributions based on it have <asm/types.h> in a folder of the architecture, where clang does not look for BPF.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    ["-mcpu=v3", "-Wall", &format!("-I{}", include.display()), &format!("-I/usr/include/{arch}-linux-gnu")]
        .map(OsString::from)
        .to_vec()
}
