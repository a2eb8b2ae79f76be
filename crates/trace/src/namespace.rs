//! Network namespaces by what people call them, and the interfaces in them.

use std::{
    ffi::CStr,
    fs::File,
    io, mem,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// Where iproute2 keeps named namespaces.
const NAMED: &str = "/run/netns";

/// A network namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    fd: Arc<OwnedFd>,
    inode: u32,
    name: String,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index in the namespace.
    pub index: u32,
    /// It is the loopback interface.
    pub loopback: bool,
    /// It is up.
    pub up: bool,
}

impl Namespace {
    /// The namespace of this thread.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> io::Result<Namespace> {
        Namespace::at(Path::new("/proc/thread-self/ns/net"), "")
    }

    /// A namespace by the id of a process in it, by a path, or by the name that `ip netns` gave it.
    ///
    /// # Errors
    /// There is none.
    pub fn find(name: &str) -> io::Result<Namespace> {
        let path = match name.parse::<u32>() {
            Ok(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
            Err(_) if name.contains('/') => PathBuf::from(name),
            Err(_) => Path::new(NAMED).join(name),
        };
        Namespace::at(&path, name)
    }

    fn at(path: &Path, name: &str) -> io::Result<Namespace> {
        let file = File::open(path)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot open {}: {error}", path.display())))?;
        let inode = u32::try_from(file.metadata()?.ino()).map_err(io::Error::other)?;
        let name = match known_name(inode) {
            Some(name) => name,
            None if name.is_empty() || name.contains('/') => String::new(),
            None => name.to_owned(),
        };
        let namespace = Namespace { fd: Arc::new(file.into()), inode, name };
        namespace.enter(|| ()).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{} is not a network namespace that can be entered: {error}", path.display()),
            )
        })?;
        Ok(namespace)
    }

    /// Its inode number, by which the kernel and [`Event::netns`](crate::Event::netns) tell it from others.
    pub fn inode(&self) -> u32 {
        self.inode
    }

    /// Its descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What it is called; empty if it has no name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `f` on a thread inside.
    ///
    /// # Errors
    /// It cannot be entered.
    pub fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> io::Result<R> {
        thread::scope(|scope| {
            let inside = || {
                move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(f())
            };
            scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Its interfaces.
    ///
    /// # Errors
    /// The kernel does not list them.
    pub fn interfaces(&self) -> io::Result<Vec<Interface>> {
        self.enter(interfaces)?
    }
}

/// The name in [`NAMED`] of the namespace with this inode number.
pub(crate) fn known_name(inode: u32) -> Option<String> {
    let named = std::fs::read_dir(NAMED).ok()?.flatten();
    let mut same = named.filter(|entry| entry.path().metadata().is_ok_and(|found| found.ino() == u64::from(inode)));
    same.next()?.file_name().into_string().ok()
}

/// The interfaces of this thread's namespace.
fn interfaces() -> io::Result<Vec<Interface>> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: returns an array that ends with an index of 0, or null.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut entry = list;
    // SAFETY: the array is read up to its last entry, whose index is 0 and whose name is not looked at.
    while let Some((index, name)) = unsafe { ((*entry).if_index != 0).then(|| ((*entry).if_index, (*entry).if_name)) } {
        // SAFETY: an ifreq is plain numbers, for which all zeroes is a value.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        // SAFETY: the name is NUL-terminated, and stays until the array is freed.
        let name = unsafe { CStr::from_ptr(name) };
        for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes()) {
            *to = from.cast_signed();
        }
        // SAFETY: SIOCGIFFLAGS reads the name from `request` and writes the flags to it.
        let flags = unsafe {
            match libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) {
                0 => i32::from(request.ifr_ifru.ifru_flags),
                _ => 0,
            }
        };
        found.push(Interface {
            name: name.to_string_lossy().into_owned(),
            index,
            loopback: flags & libc::IFF_LOOPBACK != 0,
            up: flags & libc::IFF_UP != 0,
        });
        // SAFETY: not the last entry, so there is a next one.
        entry = unsafe { entry.add(1) };
    }
    // SAFETY: what if_nameindex returned, freed once.
    unsafe { libc::if_freenameindex(list) };
    Ok(found)
}

/// An interface, in its namespace.
pub(crate) type Place = (Namespace, Interface);
/// The namespace's inode number, the interface's index.
pub(crate) type PlaceId = (u32, u32);

pub(crate) fn place_id((namespace, interface): &Place) -> PlaceId {
    (namespace.inode(), interface.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_an_interface_of_every_namespace() {
        let found = interfaces().unwrap();
        assert!(found.iter().any(|interface| interface.name == "lo" && interface.loopback), "{found:?}");
    }

    #[test]
    fn a_namespace_that_is_not_there_is_named() {
        let error = Namespace::find("no-such-namespace").unwrap_err().to_string();
        assert!(error.contains("/run/netns/no-such-namespace"), "{error}");
    }
}
