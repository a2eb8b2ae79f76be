//! The network namespace of a deployment: telling it apart from others, and finding it again from another one.
//!
//! The kernel finds the namespace of a link by itself; for a clsact filter the caller has to be in it. A namespace has no
//! name of its own, so it is looked for where a path leads to one: the names that `ip netns` gives, the namespaces of
//! processes, and the descriptors that processes hold.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    panic::resume_unwind,
    path::{Path, PathBuf},
    thread,
};

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
        thread::scope(|scope| {
            let inside = || {
                // SAFETY: takes a descriptor, which `file` keeps open, and a number.
                let entered = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
                (entered == 0 && Namespace::current() == self).then(f)
            };
            scope.spawn(inside).join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    fn find(self) -> Option<File> {
        // a process or thread may end, and its paths with it, at any time
        let open = |path: PathBuf| {
            let is_it = |found: &fs::Metadata| (found.dev(), found.ino()) == self.file;
            fs::metadata(&path).ok().filter(is_it)?;
            let file = File::open(path).ok()?;
            file.metadata().is_ok_and(|found| is_it(&found)).then_some(file)
        };
        entries("/run/netns".as_ref()).find_map(open).or_else(|| {
            let processes: Vec<_> = entries("/proc".as_ref()).filter(|path| is_process(path)).collect();
            let of_process = processes.iter().map(|process| process.join("ns/net"));
            let of_thread = entries("/proc/self/task".as_ref()).map(|thread| thread.join("ns/net"));
            // read_link first: a descriptor may be on a file system that does not answer
            let is_namespace = |path: &PathBuf| {
                fs::read_link(path).is_ok_and(|target| target.as_os_str().as_bytes().starts_with(b"net:["))
            };
            let held = processes.iter().flat_map(|process| entries(&process.join("fd"))).filter(is_namespace);
            of_process.chain(of_thread).chain(held).find_map(open)
        })
    }
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
    use super::*;

    #[test]
    fn threads_that_end_are_no_way_in_and_not_in_the_way() {
        // SAFETY: takes a number.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("skipped: making a network namespace needs root");
            return;
        }
        let other = || {
            // SAFETY: takes a number.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            (Namespace::current(), File::open("/proc/thread-self/ns/net").unwrap())
        };
        let (there, file) = thread::spawn(other).join().unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    // SAFETY: takes a descriptor, which `file` keeps open, and a number.
                    let enter = || unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
                    thread::scope(|inner| assert_eq!(inner.spawn(enter).join().unwrap(), 0));
                }
            });
            let found = (0..200).filter(|_| there.enter(|| ()).is_some()).count();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(found, 200);
        });
    }

    #[test]
    fn a_namespace_is_found_through_a_descriptor_and_not_when_it_is_gone() {
        // SAFETY: takes a number.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("skipped: making a network namespace needs root");
            return;
        }
        let here = Namespace::current();
        assert_eq!(here.enter(Namespace::current), Some(here));
        let other = || {
            // SAFETY: takes a number.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            (Namespace::current(), File::open("/proc/thread-self/ns/net").unwrap())
        };
        let (there, file) = thread::spawn(other).join().unwrap();
        assert_ne!(there, here);
        assert_eq!(there.enter(Namespace::current), Some(there));
        drop(file);
        assert_eq!(there.enter(Namespace::current), None);
    }
}
