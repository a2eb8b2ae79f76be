//! What the command's tests share: the command on a bpffs of its own, and the example programs.
#![allow(dead_code, unreachable_pub, unused_imports, missing_docs)]

pub mod host;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use packet_traits_lab::{Bpffs, KernelFeature, kernel_has};
use packet_traits_testing::kernel;
pub use packet_traits_testing::process::{interrupt, soon, text, wait_for_lock};
use serde_json::Value;
use tempfile::TempDir;

/// Runs a script on a host of its own as far as mounts and processes go: its shell is the first process, nothing is
/// mounted at /sys/fs/bpf, and `ip netns` knows no network namespace.
pub fn on_host(script: &str) -> Output {
    let set_up = "while umount -l /sys/fs/bpf 2>/dev/null; do :; done; mount -t tmpfs tmpfs /run";
    let prepared = format!("{set_up}\n{script}\nexit $?");
    Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--mount-proc", "bash", "-c", &prepared])
        .env("TRAITS", env!("CARGO_BIN_EXE_traits"))
        .output()
        .unwrap()
}

/// The command on a bpffs of its own.
pub struct Traits {
    pub bpffs: Bpffs,
    /// For files of the test's own.
    pub folder: TempDir,
}

impl Traits {
    /// `None` if kernel tests are switched off.
    pub fn new() -> Option<Traits> {
        if !kernel::enabled() {
            return None;
        }
        Some(Traits { bpffs: Bpffs::new().unwrap(), folder: tempfile::tempdir().unwrap() })
    }

    /// `None`, which is reported, also if the kernel lacks one of these features.
    pub fn on(features: &[KernelFeature]) -> Option<Traits> {
        let traits = Traits::new()?;
        features.iter().all(|feature| kernel_has(*feature)).then_some(traits)
    }

    /// Creates a registry. On a kernel that takes 32 bytes of metadata its area is of that length, and the command says so.
    pub fn create_registry(&self, name: &str) {
        let output = self.run(&format!("registry create {name}"));
        let note = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{note}");
        assert_eq!(note.is_empty(), KernelFeature::LongMetadata.is_here(), "{note}");
    }

    pub fn dir(&self, registry: &str) -> PathBuf {
        self.bpffs.path().join("packet_traits").join(registry)
    }

    /// Where a deployment is pinned.
    pub fn pins(&self, name: &str) -> PathBuf {
        self.bpffs.path().join("packet_traits_up/default").join(name)
    }

    /// Writes a policy of the test's own.
    pub fn policy(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(format!("{name}.traits"));
        fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_traits"));
        // these find the registry by the process
        if !["sockets show ", "sockets save-syn "].iter().any(|begin| line.starts_with(begin)) {
            command.arg("--bpffs").arg(self.bpffs.path());
        }
        command.args(line.split_whitespace());
        command
    }

    pub fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Starts a command. What it prints can be read from it.
    pub fn start(&self, line: &str) -> Child {
        let mut command = self.command(line);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
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

/// Compiles `examples/bpf/<name>.bpf.c` to a file of that name in a folder of the test's own.
pub fn compile_example(name: &str, folder: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    compile_bpf(&root.join(format!("examples/bpf/{name}.bpf.c")), folder)
}

/// Compiles a BPF program to a file in a folder.
pub fn compile_bpf(source: &Path, folder: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let object = folder.join(source.file_name().unwrap()).with_extension("o");
    let output = Command::new(packet_traits_lab::clang())
        .args(["-O2", "-g", "-mcpu=v3", "-target", "bpf", "-c", "-o"])
        .arg(&object)
        .arg(format!("-I{}", root.join("include").display()))
        .arg(format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH))
        .arg(source)
        .output()
        .unwrap_or_else(|error| panic!("running {}: {error}; `make test` installs it", packet_traits_lab::clang()));
    assert!(output.status.success(), "{}", text(&output.stderr));
    object
}
