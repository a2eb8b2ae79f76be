//! Compiling an emitted policy with clang to an object that has its manifest in it.
//!
//! All headers but the kernel's own are brought along, so a host that compiles needs clang and `linux/bpf.h` (Debian's
//! linux-libc-dev), and one that only loads needs neither.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;
use thiserror::Error;

use crate::{emit::Emitted, manifest};

/// Environment variable that names the compiler.
pub const CLANG: &str = "CLANG";

/// Name of the source file, as messages of the compiler and the verifier have it.
const SOURCE_NAME: &str = "policy.bpf.c";

/// Name of the manifest's file, beside the source.
const MANIFEST_NAME: &str = "manifest.json";

/// How to compile.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// The compiler: a path, or a name that is looked for in `PATH`. From version 14.
    pub clang: PathBuf,
    /// libbpf's headers, by their names in `bpf/`, and their contents.
    pub headers: &'static [(&'static str, &'static str)],
    /// Further options, as `-Werror`: without it warnings are not shown, since a newer compiler may warn of what is right.
    pub options: &'static [&'static str],
}

/// Why a program was not compiled.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CompileError {
    /// There is no such compiler.
    #[error(
        "there is no compiler {}: install clang (Debian, Ubuntu, Fedora: package clang), name it in the environment variable {CLANG}, \
         or compile on another machine with `traits compile`",
        .clang.display()
    )]
    NoClang {
        /// What was looked for.
        clang: PathBuf,
    },
    /// The kernel's headers are not installed.
    #[error("{} does not find the kernel's headers for user space: install linux-libc-dev (Debian, Ubuntu) or kernel-headers (Fedora)\n{message}", .clang.display())]
    NoKernelHeaders {
        /// The compiler.
        clang: PathBuf,
        /// What it said.
        message: String,
    },
    /// It refuses the program.
    #[error("{} does not compile the policy's program:\n{message}", .clang.display())]
    Refused {
        /// The compiler.
        clang: PathBuf,
        /// What it said.
        message: String,
    },
    /// It could not be run, or its files not be written.
    #[error("{action}: {error}")]
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        error: io::Error,
    },
}

impl Compiler {
    /// The compiler that the environment variable [`CLANG`] names, else `clang`, with these headers of libbpf.
    pub fn new(headers: &'static [(&'static str, &'static str)]) -> Compiler {
        let named = env::var_os(CLANG).filter(|name| !name.is_empty());
        let clang = named.map_or_else(|| PathBuf::from("clang"), PathBuf::from);
        Compiler { clang, headers, options: &[] }
    }

    /// Compiles a program, and puts its manifest into the object.
    pub fn compile(&self, emitted: &Emitted) -> Result<Vec<u8>, CompileError> {
        let folder = TempDir::new().map_err(io("making a folder for the compiler's files"))?;
        let at = folder.path();
        let json = serde_json::to_string(&emitted.manifest)
            .map_err(|error| CompileError::Io { action: "writing the manifest".to_owned(), error: error.into() })?;
        write(&at.join(SOURCE_NAME), &with_manifest(&emitted.source))?;
        write(&at.join(MANIFEST_NAME), &json)?;
        packet_traits_headers::write_to(&at.join("include")).map_err(io("writing the headers for the compiler"))?;
        write_all(&at.join("include/bpf"), self.headers)?;

        let architecture = env::consts::ARCH;
        let output = Command::new(&self.clang)
            // names in the object are relative to it
            .current_dir(at)
            .args(["-O2", "-g", "-mcpu=v3", "-target", "bpf", "-Wall", "-fdebug-compilation-dir=."])
            .args(["-Iinclude", &format!("-I/usr/include/{architecture}-linux-gnu")])
            .args(self.options)
            .args(["-c", SOURCE_NAME, "-o", "-"])
            .stdin(Stdio::null())
            .output()
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => CompileError::NoClang { clang: self.clang.clone() },
                _ => io(format!("running {}", self.clang.display()))(source),
            })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let message = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        let clang = self.clang.clone();
        if message
            .lines()
            .any(|line| line.contains("file not found") && (line.contains("'linux/") || line.contains("'asm/")))
        {
            return Err(CompileError::NoKernelHeaders { clang, message });
        }
        Err(CompileError::Refused { clang, message })
    }
}

/// The source, and behind it the section of the manifest: no part of the program, so not of what is emitted.
fn with_manifest(source: &str) -> String {
    format!(
        "{source}\nasm(\".pushsection {},\\\"\\\",@progbits\\n.incbin \\\"{MANIFEST_NAME}\\\"\\n.popsection\");\n",
        manifest::SECTION
    )
}

fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> CompileError {
    move |error| CompileError::Io { action: action.into(), error }
}

fn write(path: &Path, contents: &str) -> Result<(), CompileError> {
    fs::write(path, contents).map_err(io(format!("writing {}", path.display())))
}

fn write_all(folder: &Path, files: &[(&str, &str)]) -> Result<(), CompileError> {
    fs::create_dir_all(folder).map_err(io(format!("making {}", folder.display())))?;
    files.iter().try_for_each(|(name, contents)| write(&folder.join(name), contents))
}
