//! What the command's tests share: the command on a bpffs of its own, and the example programs.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod host;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use packet_traits_lab::{Bpffs, kernel_tests_enabled, require_root};
use serde_json::Value;

/// The command on a bpffs of its own.
pub struct Traits {
    pub bpffs: Bpffs,
}

impl Traits {
    /// `None` if kernel tests are switched off.
    pub fn new() -> Option<Traits> {
        if !kernel_tests_enabled() {
            return None;
        }
        if let Err(how) = require_root() {
            panic!("{how}");
        }
        Some(Traits { bpffs: Bpffs::new().unwrap() })
    }

    pub fn dir(&self, registry: &str) -> PathBuf {
        self.bpffs.path().join("packet_traits").join(registry)
    }

    pub fn run(&self, line: &str) -> Output {
        let args = line.split_whitespace();
        Command::new(env!("CARGO_BIN_EXE_traits")).arg("--bpffs").arg(self.bpffs.path()).args(args).output().unwrap()
    }

    /// What a successful command prints.
    pub fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!((output.status.code(), err.as_str()), (Some(0), ""), "{line}");
        out
    }

    pub fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(line)).unwrap()
    }

    /// What a failing command says.
    pub fn fails(&self, line: &str, status: i32) -> String {
        let output = self.run(line);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!((output.status.code(), out.as_str()), (Some(status), ""), "{line}: {err}");
        err
    }
}

/// Output as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Compiles `examples/bpf/<name>.bpf.c` to a file of that name in a folder of the test's own.
pub fn compile_example(name: &str, folder: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let object = folder.join(format!("{name}.bpf.o"));
    let output = Command::new("clang")
        .args(["-O2", "-g", "-mcpu=v3", "-target", "bpf", "-Wall", "-Werror", "-c", "-o"])
        .arg(&object)
        .arg(format!("-I{}", root.join("include").display()))
        .arg(format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH))
        .arg(root.join(format!("examples/bpf/{name}.bpf.c")))
        .output()
        .unwrap_or_else(|error| panic!("running clang: {error}; `make test` installs it"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    object
}
