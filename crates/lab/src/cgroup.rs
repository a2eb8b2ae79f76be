//! A cgroup (v2) of the test's own: running code and commands in it.
//!
//! A socket belongs, for good, to the cgroup that the thread was in that made it; an accepted one to that of its
//! listener. So what matters is where `socket()` is called, not where the socket is used later.
//!
//! A thread can only be in a cgroup of its process's part of the tree. So the first [`Cgroup::new`] of a process makes
//! one for it, `pt-test-<pid>` below the root, and moves the whole process there; the cgroups that the tests ask for
//! are *threaded* ones below that. When the process ends it goes back where it was and takes its cgroups with it. What
//! a killed process leaves, empty cgroups, the next one to make a cgroup removes.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::{fs::MetadataExt, process::CommandExt},
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::error::{Context, Error, Result};
use crate::sys;

/// What the name of a process's cgroup begins with; its process id follows.
const PREFIX: &str = "pt-test-";

/// How long a cgroup's removal waits for its last processes to end.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A cgroup that nobody else uses. Dropping it removes it, and detaches what is attached to it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// The whole process is in it.
    entered: AtomicBool,
}

impl Cgroup {
    /// Makes an empty cgroup.
    ///
    /// # Errors
    /// EPERM or EACCES without root; there is no cgroup v2 tree.
    pub fn new() -> Result<Self> {
        Self::make(&home()?.path)
    }

    /// Makes an empty cgroup below this one. Drop it first.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn child(&self) -> Result<Self> {
        Self::make(&self.path)
    }

    fn make(parent: &Path) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = parent.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path).context(|| format!("cannot make cgroup {}", path.display()))?;
        let cgroup = Self { path, entered: AtomicBool::new(false) };
        let kind = cgroup.path.join("cgroup.type");
        fs::write(&kind, "threaded").context(|| format!("cannot write {}", kind.display()))?;
        Ok(cgroup)
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its id: the inode number of its directory.
    ///
    /// # Errors
    /// Another process removed it.
    pub fn id(&self) -> Result<u64> {
        let meta = fs::metadata(&self.path).context(|| format!("cannot look at {}", self.path.display()))?;
        Ok(meta.ino())
    }

    /// Runs `f` on a scratch thread inside the cgroup and returns what it returns.
    ///
    /// Sockets that `f` makes belong to the cgroup wherever they are used later, also those it makes by
    /// [`Netns::enter`](crate::Netns::enter): threads and processes that `f` starts are inside too. They keep the
    /// cgroup from being removed, so have them end before it is dropped.
    ///
    /// # Panics
    /// If `f` panics, with the same payload, or if the kernel does not let this thread into the cgroup.
    pub fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let inside = || {
                let file = self.path.join("cgroup.threads");
                fs::write(&file, "0").unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
                f()
            };
            scope.spawn(inside).join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Moves the whole process into the cgroup, whatever cgroups its threads are in, until this is dropped. For a
    /// program that does one thing at a time; tests run in parallel, so use [`enter`](Self::enter) in them.
    ///
    /// # Errors
    /// Another process removed the cgroup.
    pub fn enter_process(&self) -> Result<()> {
        move_process(&self.path)?;
        self.entered.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// A command that will run inside the cgroup.
    ///
    /// The process is killed when the thread that started it ends, so that it cannot keep the cgroup. Start it from a
    /// thread that outlives it.
    ///
    /// # Errors
    /// Another process removed the cgroup.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new(program);
        self.join(&mut command)?;
        let parent = std::process::id();
        // SAFETY: between fork and exec only prctl and getppid are called; both are async-signal-safe.
        unsafe { command.pre_exec(move || sys::die_with_parent(parent)) };
        Ok(command)
    }

    /// Has a command, such as one of [`Netns::command`](crate::Netns::command), run inside the cgroup.
    ///
    /// # Errors
    /// Another process removed the cgroup.
    pub fn join(&self, command: &mut Command) -> Result<()> {
        let path = self.path.join("cgroup.procs");
        let file = OpenOptions::new().write(true).open(&path).context(|| format!("cannot open {}", path.display()))?;
        // SAFETY: between fork and exec only write(2) is called, which is async-signal-safe.
        unsafe { command.pre_exec(move || (&file).write_all(b"0")) };
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let (true, Ok(home)) = (self.entered.load(Ordering::Relaxed), home()) {
            // If that fails, so does what follows.
            let _ = move_process(&home.path);
        }
        let start = Instant::now();
        while let Err(error) = fs::remove_dir(&self.path) {
            if error.raw_os_error() != Some(libc::EBUSY) || start.elapsed() > REMOVE_TIMEOUT {
                // The process removes it when it ends.
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The cgroup of this process.
struct Home {
    path: PathBuf,
    /// Where the process was before.
    origin: PathBuf,
    process: u32,
}

/// Moves the process into its own cgroup, once.
fn home() -> Result<&'static Home> {
    HOME.get_or_init(|| make_home().map_err(|error| error.to_string()))
        .as_ref()
        .map_err(|error| Error::other("cannot make cgroups", error.clone()))
}

static HOME: OnceLock<std::result::Result<Home, String>> = OnceLock::new();

fn make_home() -> Result<Home> {
    let root = root()?;
    sweep(&root);
    let process = std::process::id();
    let origin = fs::read_to_string("/proc/self/cgroup").context(|| "cannot read /proc/self/cgroup")?;
    let origin = origin.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let home = Home { path: root.join(format!("{PREFIX}{process}")), origin: root.join(origin), process };
    // of a killed process that had the same id
    remove_tree(&home.path);
    fs::create_dir(&home.path).context(|| format!("cannot make cgroup {}", home.path.display()))?;
    move_process(&home.path)?;
    // SAFETY: registers a function that takes nothing and does not unwind.
    unsafe { libc::atexit(leave_home) };
    Ok(home)
}

/// Runs when the process ends, other than by a signal.
extern "C" fn leave_home() {
    // A child that was forked and not executed has this function, too.
    if let Some(Ok(home)) = HOME.get()
        && home.process == std::process::id()
        && move_process(&home.origin).is_ok()
    {
        remove_tree(&home.path);
    }
}

fn move_process(cgroup: &Path) -> Result<()> {
    let file = cgroup.join("cgroup.procs");
    let write = |mut file: File| file.write_all(b"0");
    OpenOptions::new()
        .write(true)
        .open(&file)
        .and_then(write)
        .context(|| format!("cannot move the process, by writing {}", file.display()))
}

/// Where the cgroup v2 tree is mounted.
fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context(|| "cannot read /proc/self/mountinfo")?;
    let mut points = mounts.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (shows, point) = (fields.next()?, fields.next()?);
        (file_system.starts_with("cgroup2 ") && shows == "/").then(|| PathBuf::from(point))
    });
    points.next().ok_or_else(|| {
        let hint = "none is mounted: `mount -t cgroup2 cgroup2 /sys/fs/cgroup`";
        Error::other("cannot find the cgroup v2 tree", hint)
    })
}

/// Removes what killed processes left.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        let ended = |process| !Path::new("/proc").join(format!("{process}")).exists();
        let events = || fs::read_to_string(entry.path().join("cgroup.events")).unwrap_or_default();
        if process.is_some_and(ended) && events().contains("populated 0") {
            remove_tree(&entry.path());
        }
    }
}

/// Removes a cgroup and those below it, as far as nobody is in them.
fn remove_tree(cgroup: &Path) {
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path());
    }
    let _: io::Result<()> = fs::remove_dir(cgroup);
}
