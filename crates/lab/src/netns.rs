//! A network namespace that lives as long as someone holds it: entering it, running commands in it, its sysctls.
//! What concerns one interface is in `device`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;

use crate::error::{Context, Error, Result};
use crate::sys;

/// What a new namespace tells IPv6 before any interface exists, so that links carry no packets of their own making:
/// no link-local addresses, no duplicate address detection, no router discovery. A router's reports of the all-routers
/// group cannot be switched off; the interval, in milliseconds, has them done before traffic starts.
const QUIET_IPV6: [(&str, &str); 6] = [
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/autoconf", "0"),
    ("net/ipv6/conf/default/mldv2_unsolicited_report_interval", "1"),
];

/// A network namespace without a name.
///
/// It exists while a clone of this handle, a socket made inside it or a process running inside it exists, and is gone
/// after that, however the holder ended. Clones refer to the same namespace.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
}

impl Netns {
    /// Makes a namespace with `lo` up and IPv6 told to keep quiet.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN, ENOSPC above `user.max_net_namespaces`, or `ip` is missing.
    pub fn new() -> Result<Self> {
        let fd = thread::scope(|scope| {
            let scratch = scope.spawn(|| {
                sys::unshare_net()?;
                File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
            });
            scratch.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
        .context(|| "cannot make a network namespace")?;
        let netns = Self { fd: Arc::new(fd) };
        for (path, value) in QUIET_IPV6 {
            netns.set_sysctl(path, value)?;
        }
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Opens an existing namespace by path, such as `/proc/<pid>/ns/net` or another process's [`Netns::path`].
    ///
    /// # Errors
    /// The path does not open. A path that is not a network namespace is noticed on entering it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).context(|| format!("cannot open network namespace {}", path.display()))?;
        Ok(Self { fd: Arc::new(file.into()) })
    }

    /// The descriptor that holds the namespace, close-on-exec.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A path to the namespace that any process may open while this handle exists; iproute2 takes it wherever it takes
    /// the name of a namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()))
    }

    /// Runs `f` on a scratch thread inside the namespace and returns what it returns.
    ///
    /// Sockets that `f` makes stay in the namespace wherever they are used later. Threads that `f` starts are inside
    /// too. `/proc/thread-self/net` and `/proc/sys/net` show the namespace; `/proc/net`, `/proc/self/net` and `/sys` do
    /// not, since they follow the main thread and the mount.
    ///
    /// # Panics
    /// If `f` panics, with the same payload, or if the kernel does not let this process into the namespace.
    pub fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let inside = || {
                sys::setns_net(self.fd()).unwrap_or_else(|error| panic!("cannot enter a network namespace: {error}"));
                f()
            };
            scope.spawn(inside).join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// A command that will run inside the namespace, otherwise in this process's view of the file system: unlike
    /// `ip netns exec` it leaves `/sys`, and with it cgroups and bpffs, alone.
    ///
    /// The process is killed when the thread that started it ends, so that it cannot keep the namespace alive. Start
    /// it from a thread that outlives it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let fd = Arc::clone(&self.fd);
        let parent = std::process::id();
        // SAFETY: between fork and exec only setns, prctl and getppid are called; all are async-signal-safe, and no
        // memory is allocated unless one of them fails with an errno, which io::Error keeps in place.
        unsafe {
            command.pre_exec(move || {
                sys::setns_net(fd.as_fd())?;
                sys::die_with_parent(parent)
            });
        }
        command
    }

    /// Runs `ip` of iproute2 inside the namespace and returns its standard output.
    ///
    /// One line is one command line without the word `ip`: `link set tx0 up`. Several lines run as one batch, in order,
    /// up to the first that fails.
    ///
    /// # Errors
    /// `ip` is missing, or refused: the message has the command line and what `ip` said.
    pub fn ip(&self, lines: &str) -> Result<String> {
        let commands: Vec<&str> = lines.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let mut ip = self.command("ip");
        match commands.as_slice() {
            [single] => ip.args(single.split_whitespace()),
            _ => ip.args(["-batch", "-"]),
        };
        let shown = format!("cannot run `ip {}`", commands.first().unwrap_or(&""));
        let output = feed(&mut ip, &commands.join("\n"), &shown, "iproute2")?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let failed = failed_line(&said, &commands).unwrap_or_default();
        Err(Error::other(format!("`ip {failed}` failed"), said.trim()))
    }

    /// Runs `nft` of nftables inside the namespace on a script (`table inet filter { … }`, `add rule …`, `list ruleset`) and
    /// returns its standard output.
    ///
    /// # Errors
    /// `nft` is missing, or refused: the message has what it said. The kernel then has none of the script's changes.
    pub fn nft(&self, script: &str) -> Result<String> {
        let output = feed(self.command("nft").args(["-f", "-"]), script, "cannot run `nft`", "nftables")?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::other("`nft` failed", String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// Runs `wg setconf` of wireguard-tools inside the namespace on interface `device`.
    ///
    /// # Errors
    /// `wg` is missing, or refused: the message has what it said.
    pub fn wg(&self, device: &str, config: &str) -> Result<()> {
        let mut wg = self.command("wg");
        let shown = format!("cannot run `wg setconf {device}`");
        let output = feed(wg.args(["setconf", device, "/proc/self/fd/0"]), config, &shown, "wireguard-tools")?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::other(shown, String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// Writes a sysctl of the namespace. `path` is relative to `/proc/sys`, such as `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// The path does not start with `net/` (other sysctls belong to the whole host), does not exist, or the kernel
    /// refuses the value.
    pub fn set_sysctl(&self, path: &str, value: &str) -> Result<()> {
        let file = sysctl_file(path)?;
        self.enter(|| fs::write(&file, value)).context(|| format!("cannot set sysctl {path} to {value:?}"))
    }

    /// Reads a sysctl of the namespace, without the trailing newline. `path` is as for [`Netns::set_sysctl`].
    ///
    /// # Errors
    /// The path does not start with `net/` or cannot be read.
    pub fn sysctl(&self, path: &str) -> Result<String> {
        let file = sysctl_file(path)?;
        let value = self.enter(|| fs::read_to_string(&file)).context(|| format!("cannot read sysctl {path}"))?;
        Ok(value.trim_end().to_owned())
    }
}

/// Runs a command of a Debian package with a text as its standard input.
fn feed(command: &mut Command, input: &str, shown: &str, package: &str) -> Result<Output> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(|error| {
            let name = command.get_program().to_string_lossy().into_owned();
            match error.kind() {
                io::ErrorKind::NotFound => Error::other(shown, format!("no `{name}` command found; install {package}")),
                _ => Error::new(shown, error),
            }
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // It stopped reading where something was wrong; its exit status and message tell.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            result => result.context(|| shown)?,
        }
    }
    child.wait_with_output().context(|| shown)
}

/// The line of a batch that `ip` complained about ("Command failed -:<line>"), or the only line.
fn failed_line<'a>(said: &str, commands: &[&'a str]) -> Option<&'a str> {
    let number = said.lines().find_map(|line| line.strip_prefix("Command failed -:")?.trim().parse::<usize>().ok());
    commands.get(number.unwrap_or(1).checked_sub(1)?).copied()
}

fn sysctl_file(path: &str) -> Result<PathBuf> {
    let relative = Path::new(path);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if plain && relative.starts_with("net") {
        Ok(Path::new("/proc/sys").join(relative))
    } else {
        Err(Error::other(
            format!("cannot use sysctl {path:?}"),
            "only paths below net/ belong to a network namespace; write net/ipv4/ip_forward, with slashes",
        ))
    }
}
