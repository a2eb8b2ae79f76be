//! TC programs as filters of a clsact qdisc: what kernels before 6.6 have instead of TCX.
//!
//! No link holds such a filter, so removing it must not touch what others put there in the meantime: only the filter
//! that still runs our program is deleted, and the qdisc only if this process made it and nothing else is on it.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::hook::Direction;
use super::program::Program;
use super::rtnetlink::{Filter, NetlinkError, RouteSocket};
use super::target::namespace_identity;

/// An interface, told apart from those of other network namespaces: device and inode of the namespace, and index.
type Interface = (u64, u64, u32);

/// The interfaces whose clsact qdisc this process made. Locked while filters are added or removed.
static MADE_HERE: Mutex<Option<HashSet<Interface>>> = Mutex::new(None);

/// A filter that was added to a clsact qdisc.
#[derive(Debug)]
pub(super) struct ClsactFilter {
    /// In the network namespace of the interface.
    socket: RouteSocket,
    interface: Interface,
    direction: Direction,
    filter: Filter,
}

impl ClsactFilter {
    /// Adds `program` as a direct-action filter, and the qdisc if the interface has none.
    pub(super) fn add(
        fd: BorrowedFd<'_>,
        program: &Program,
        ifindex: u32,
        direction: Direction,
        priority: u16,
    ) -> Result<Self, NetlinkError> {
        let socket = RouteSocket::open()?;
        let (device, inode) = namespace_identity()?;
        let interface = (device, inode, ifindex);
        let mut made_here = lock();
        match socket.add_clsact(ifindex) {
            Ok(()) => {
                made_here.get_or_insert_default().insert(interface);
            }
            Err(error) if error.errno == libc::EEXIST => {}
            Err(error) => return Err(error),
        }
        let name = program.to_string();
        let added = socket.add_filter(ifindex, direction, priority, fd, &name);
        match added {
            Ok(filter) => Ok(Self { socket, interface, direction, filter }),
            Err(error) => {
                if let Err(left) = delete_unused_qdisc(&socket, interface, &mut made_here) {
                    tracing::warn!(ifindex, "clsact qdisc left behind: {}", left.message);
                }
                Err(error)
            }
        }
    }

    /// Deletes the filter if it is still there, and the qdisc if it is ours and unused.
    pub(super) fn remove(self) -> Result<(), NetlinkError> {
        let mut made_here = lock();
        let (_, _, ifindex) = self.interface;
        let filters = self.socket.filters(ifindex, self.direction)?;
        if filters.contains(&self.filter) {
            self.socket.delete_filter(ifindex, self.direction, self.filter)?;
        }
        delete_unused_qdisc(&self.socket, self.interface, &mut made_here)
    }
}

fn lock() -> MutexGuard<'static, Option<HashSet<Interface>>> {
    MADE_HERE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn delete_unused_qdisc(
    socket: &RouteSocket,
    interface: Interface,
    made_here: &mut Option<HashSet<Interface>>,
) -> Result<(), NetlinkError> {
    let Some(made_here) = made_here else {
        return Ok(());
    };
    let (_, _, ifindex) = interface;
    if !made_here.contains(&interface) {
        return Ok(());
    }
    for direction in [Direction::Ingress, Direction::Egress] {
        if !socket.filters(ifindex, direction)?.is_empty() {
            return Ok(());
        }
    }
    made_here.remove(&interface);
    match socket.delete_clsact(ifindex) {
        // Somebody deleted the qdisc or the interface before us.
        Err(error) if !matches!(error.errno, libc::ENOENT | libc::EINVAL | libc::ENODEV) => Err(error),
        _ => Ok(()),
    }
}
