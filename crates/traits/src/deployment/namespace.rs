//! The network namespace of a deployment: telling it apart from others, and finding it again from another one.
//!
//! The kernel finds the namespace of a link by itself; for a clsact filter the caller has to be in it. A namespace has no
//! name of its own, so it is looked for where a path leads to one: the names that `ip netns` gives, the namespaces of
//! processes, and the descriptors that processes hold.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::attach::namespace_identity;

/// A network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Namespace {
    /// The kernel never gives one twice. 0 if it cannot be told.
    pub(super) cookie: u64,
    /// Device and inode of its file, which another namespace may have after it.
    pub(super) file: (u64, u64),
}

impl Namespace {
    /// The calling thread's.
    pub(super) fn current() -> Namespace {
        Namespace { cookie: cookie(), file: namespace_identity().unwrap_or_default() }
    }

    /// Runs `f` in it. `None` if this process finds no way into it: it is gone, or nothing but sockets or interfaces hold
    /// it.
    pub(super) fn enter<R: Send>(self, f: impl FnOnce() -> R + Send) -> Option<R> {
        if Namespace::current() == self {
            return Some(f());
        }
        let file = self.find()?;
        inside(&file, || (Namespace::current() == self).then(f)).flatten()
    }

    fn find(self) -> Option<File> {
        // a process or thread may end, and its paths with it, at any time
        let open = |path: PathBuf| {
            let is_it = |found: &fs::Metadata| (found.dev(), found.ino()) == self.file;
            fs::metadata(&path).ok().filter(is_it)?;
            let file = File::open(path).ok()?;
            file.metadata().is_ok_and(|found| is_it(&found)).then_some(file)
        };
        paths().find_map(open)
    }
}

/// The network namespace that a deployment was brought up in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetNamespace {
    /// The inode number that `/proc/<pid>/ns/net` shows.
    pub inode: u64,
    /// The name that `ip netns` gave it.
    pub name: Option<String>,
    /// Whether it is the calling thread's.
    pub current: bool,
}

/// A network namespace, and a way into it.
pub(super) struct Found {
    pub(super) namespace: NetNamespace,
    file: File,
}

impl Found {
    /// Opens what a path leads to. Returns it with its cookie.
    fn open(path: &Path) -> Option<(u64, Found)> {
        let file = File::open(path).ok()?;
        let cookie = inside(&file, cookie).filter(|cookie| *cookie != 0)?;
        let metadata = file.metadata().ok()?;
        let current = namespace_identity().is_ok_and(|current| current == (metadata.dev(), metadata.ino()));
        let namespace = NetNamespace { inode: metadata.ino(), name: name(&metadata), current };
        Some((cookie, Found { namespace, file }))
    }

    /// Runs `f` in it.
    pub(super) fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> Option<R> {
        if self.namespace.current { Some(f()) } else { inside(&self.file, f) }
    }
}

/// Finds the namespaces that have these cookies. Those that are gone, or that this process finds no way into, are left out.
pub(super) fn by_cookie(mut wanted: HashSet<u64>) -> HashMap<u64, Found> {
    let mut found = HashMap::new();
    wanted.remove(&0);
    let mut paths = distinct([PathBuf::from(CURRENT)].into_iter().chain(paths()));
    while !wanted.is_empty()
        && let Some(path) = paths.next()
    {
        if let Some((cookie, namespace)) = Found::open(&path)
            && wanted.remove(&cookie)
        {
            found.insert(cookie, namespace);
        }
    }
    found
}

/// The first path to each network namespace.
fn distinct(paths: impl Iterator<Item = PathBuf>) -> impl Iterator<Item = PathBuf> {
    let mut seen = HashSet::new();
    paths.filter(move |path| fs::metadata(path).is_ok_and(|found| seen.insert((found.dev(), found.ino()))))
}

/// What `of` finds out of each network namespace that a path leads to, which it is given once.
pub(crate) fn all<T>(of: impl Fn(&File) -> Option<T>) -> Vec<T> {
    // a process or thread may end, and its paths with it, at any time
    distinct(paths()).filter_map(|path| of(&File::open(path).ok()?)).collect()
}

/// The calling thread's namespace.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// Where `ip netns` keeps namespaces by name.
const NAMED: &str = "/run/netns";

/// The name in [`NAMED`] of the namespace with this file.
fn name(file: &fs::Metadata) -> Option<String> {
    let same =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (file.dev(), file.ino()));
    entries(NAMED.as_ref()).find(same)?.file_name()?.to_str().map(str::to_owned)
}

/// Runs `f` on a thread in the namespace of this file. `None` if it cannot be entered.
fn inside<R: Send>(file: &File, f: impl FnOnce() -> R + Send) -> Option<R> {
    thread::scope(|scope| {
        let inside = || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).ok()?;
            Some(f())
        };
        scope.spawn(inside).join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Paths that lead to network namespaces; to one of them perhaps several.
fn paths() -> impl Iterator<Item = PathBuf> {
    let of_others = || {
        let processes: Vec<_> = entries("/proc".as_ref()).filter(|path| is_process(path)).collect();
        let of_process: Vec<_> = processes.iter().map(|process| process.join("ns/net")).collect();
        let of_thread = entries("/proc/self/task".as_ref()).map(|thread| thread.join("ns/net"));
        // read_link first: a descriptor may be on a file system that does not answer
        let is_namespace = |path: &PathBuf| {
            fs::read_link(path).is_ok_and(|target| target.as_os_str().as_bytes().starts_with(b"net:["))
        };
        let held = processes.into_iter().flat_map(|process| entries(&process.join("fd"))).filter(is_namespace);
        of_process.into_iter().chain(of_thread).chain(held)
    };
    // not looked for before those with names are through
    entries(NAMED.as_ref()).chain(std::iter::once_with(of_others).flatten())
}

fn is_process(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().iter().all(u8::is_ascii_digit))
}

/// The paths in a folder; none if it cannot be read.
fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries: io::Result<fs::ReadDir> = fs::read_dir(folder);
    entries.into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Cookie of the calling thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14); 0 if it cannot be told.
fn cookie() -> u64 {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    let Ok(socket) = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)) else { return 0 };
    // SAFETY: the value is writable for `len` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut len,
        )
    };
    if result == 0 { cookie } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::{
        process::geteuid,
        thread::{UnshareFlags, unshare_unsafe},
    };

    use super::*;

    #[test]
    fn threads_that_end_are_no_way_in_and_not_in_the_way() {
        if !geteuid().is_root() {
            eprintln!("skipped: making a network namespace needs root");
            return;
        }
        let other = || {
            // SAFETY: a network namespace of its own does not change which descriptors a thread has.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            (Namespace::current(), File::open("/proc/thread-self/ns/net").unwrap())
        };
        let (there, file) = thread::spawn(other).join().unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let enter = || move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
                    thread::scope(|inner| inner.spawn(enter).join().unwrap().unwrap());
                }
            });
            let found = (0..200).filter(|_| there.enter(|| ()).is_some()).count();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(found, 200);
        });
    }

    #[test]
    fn a_namespace_is_found_through_a_descriptor_and_not_when_it_is_gone() {
        if !geteuid().is_root() {
            eprintln!("skipped: making a network namespace needs root");
            return;
        }
        let here = Namespace::current();
        assert_eq!(here.enter(Namespace::current), Some(here));
        let other = || {
            // SAFETY: a network namespace of its own does not change which descriptors a thread has.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            (Namespace::current(), File::open("/proc/thread-self/ns/net").unwrap())
        };
        let (there, file) = thread::spawn(other).join().unwrap();
        assert_ne!(there, here);
        assert_eq!(there.enter(Namespace::current), Some(there));
        drop(file);
        // the thread that was in it may not be gone yet, and what looks for namespaces in other tests opens it for a moment
        let deadline = Instant::now() + Duration::from_secs(10);
        while there.enter(Namespace::current).is_some() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(there.enter(Namespace::current), None);
    }
}
