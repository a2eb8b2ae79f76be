//! Running example programs: those of packet-traits-socket, which cargo builds with the tests of the workspace, and those of
//! the repository.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

/// How long an example may take to start, to print what it has to say, and to end: on a loaded machine an interpreter
/// takes seconds to start.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The binary of `crates/socket/examples/<name>.rs`.
///
/// `cargo test --workspace` builds it; otherwise run `cargo build --workspace --examples` first.
pub fn binary(name: &str) -> PathBuf {
    // target/<profile>/deps/<test>-<hash>
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is not built; `cargo build --workspace --examples` does it", path.display());
    path
}

/// A folder that everybody may read, gone when it is dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("packet-traits-examples-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Copies a file into it, and answers where the copy is.
    ///
    /// By a command: what this process has written, it might not be able to execute (ETXTBSY), as a child that another
    /// thread makes at the moment has the file open for writing too, until it executes something itself.
    pub fn copy(&self, file: &Path) -> PathBuf {
        let copy = self.0.join(file.file_name().unwrap());
        let output = Command::new("cp").arg(file).arg(&copy).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        copy
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An example that runs. Dropping it kills it.
pub struct Running {
    process: Child,
    stdout: Receiver<String>,
}

impl Running {
    pub fn start(command: &mut Command) -> Running {
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("running {command:?}: {error}"));
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (sender, stdout) = mpsc::channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Running { process, stdout }
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The next lines that it printed: fewer if it ends or is silent for long.
    pub fn lines(&self, count: usize) -> Vec<String> {
        (0..count).map_while(|_| self.stdout.recv_timeout(PATIENCE).ok()).collect()
    }

    /// Fails, with what it said, if it has ended.
    #[track_caller]
    pub fn assert_runs(&mut self) {
        // its output is closed a moment before it has ended
        thread::sleep(Duration::from_millis(50));
        if let Some(status) = self.process.try_wait().unwrap() {
            panic!("it ended with {status}: {}", self.stderr());
        }
    }

    pub fn signal(&self, signal: libc::c_int) {
        let process = libc::pid_t::try_from(self.process.id()).unwrap();
        // SAFETY: takes numbers only; the process has not been waited for, so it is still this one's child.
        assert_eq!(unsafe { libc::kill(process, signal) }, 0);
    }

    /// It ends, has said nothing that was not read yet, and succeeds.
    #[track_caller]
    pub fn assert_ends_cleanly(mut self) {
        let status = self.wait();
        assert_eq!(self.stderr(), "");
        assert!(status.success(), "{status}");
        assert_eq!(self.lines(1), [""; 0]);
    }

    fn stderr(&mut self) -> String {
        let mut said = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
