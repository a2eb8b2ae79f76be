//! TC programs as filters of a clsact qdisc: what kernels before 6.6 have instead of TCX.
//!
//! No link holds such a filter, so removing it must not touch what others put there in the meantime: only the filter
//! that still runs our program is deleted, and the qdisc only if we made it and nothing else is on it.
//!
//! [`ClsactFilter`] is a filter that goes with its value, [`KeptFilter`] one that outlives the process.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error::{AttachError, Attempt};
use super::hook::{Direction, Hook};
use super::program::Program;
use super::rtnetlink::{Filter, NetlinkError, RouteSocket};
use super::target::{Target, namespace_identity};

/// The lowest priority for a filter that is to run last: where the kernel starts when it chooses one
/// (`tcf_auto_prio` in net/sched/cls_api.c).
const LAST_FROM: u16 = 0xc000;

/// What a clsact filter needs.
pub(super) const NEEDS: &str = "the kernel needs CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF, and the interface a \
                                clsact qdisc, not an ingress one: `tc qdisc show dev <interface>`";

/// What to do about a filter that cannot be removed.
pub(super) const LEFT: &str = "`tc filter show dev <interface> ingress|egress` shows what is left";

/// Where among the filters of the same interface and direction a new one runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    First,
    Last,
}

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
        order: Order,
    ) -> Result<Self, NetlinkError> {
        let socket = RouteSocket::open()?;
        let (device, inode) = namespace_identity()?;
        let interface = (device, inode, ifindex);
        let mut made_here = lock();
        if make_qdisc(&socket, ifindex)? {
            made_here.get_or_insert_default().insert(interface);
        }
        match add_filter(&socket, ifindex, direction, order, fd, &program.to_string()) {
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

/// A filter that outlives the process that added it, known by the id of its program. Its network namespace is that of the
/// calling thread in every call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeptFilter {
    pub(crate) ifindex: u32,
    pub(crate) direction: Direction,
    /// As long as a process holds the program, no other has its id.
    pub(crate) program: u32,
}

impl KeptFilter {
    /// Adds a clsact qdisc to the interface if it has none. Returns whether it did.
    pub(crate) fn make_qdisc(&self) -> Result<bool, AttachError> {
        let made = RouteSocket::open().map_err(NetlinkError::from).and_then(|socket| make_qdisc(&socket, self.ifindex));
        made.map_err(|error| self.refused(error))
    }

    /// Adds the filter behind those that are there, or before them. `name` is what `tc filter show` shows for it.
    pub(crate) fn add(&self, program: BorrowedFd<'_>, name: &str, first: bool) -> Result<(), AttachError> {
        let order = if first { Order::First } else { Order::Last };
        let add = |socket| add_filter(&socket, self.ifindex, self.direction, order, program, name);
        RouteSocket::open().map_err(NetlinkError::from).and_then(add).map(drop).map_err(|error| self.refused(error))
    }

    /// Whether the filter is there.
    pub(crate) fn exists(&self) -> Result<bool, AttachError> {
        let filters = RouteSocket::open().map_err(NetlinkError::from).and_then(|socket| self.filters(&socket));
        filters.map(|filters| filters.iter().any(|filter| self.is(filter))).map_err(|error| self.not_removed(error))
    }

    /// Deletes the filter if it is still there, and the qdisc with it if `with_qdisc` and nothing else is on it.
    pub(crate) fn remove(&self, with_qdisc: bool) -> Result<(), AttachError> {
        let remove = |socket: RouteSocket| {
            let filters = self.filters(&socket)?;
            let Some(&filter) = filters.iter().find(|filter| self.is(filter)) else { return Ok(()) };
            let other = match self.direction {
                Direction::Ingress => Direction::Egress,
                Direction::Egress => Direction::Ingress,
            };
            // an entry without a handle stands for the priority
            let alone = filters.iter().all(|one| self.is(one) || one.handle == 0 && one.priority == filter.priority)
                && socket.filters(self.ifindex, other)?.is_empty();
            let deleted = match with_qdisc && alone {
                true => socket.delete_clsact(self.ifindex),
                false => socket.delete_filter(self.ifindex, self.direction, filter),
            };
            match deleted {
                Err(error) if !is_gone(error.errno) => Err(error),
                _ => Ok(()),
            }
        };
        let removed = RouteSocket::open().map_err(NetlinkError::from).and_then(remove);
        removed.map_err(|error| self.not_removed(error))
    }

    fn filters(&self, socket: &RouteSocket) -> Result<Vec<Filter>, NetlinkError> {
        match socket.filters(self.ifindex, self.direction) {
            Err(error) if is_gone(error.errno) => Ok(Vec::new()),
            other => other,
        }
    }

    fn is(&self, filter: &Filter) -> bool {
        filter.program == Some(self.program)
    }

    fn attempt(&self) -> Attempt {
        Attempt::new(Hook::Clsact(self.direction), Target::interface(self.ifindex))
    }

    fn refused(&self, error: NetlinkError) -> AttachError {
        self.attempt().refused(error.errno, error.message, NEEDS)
    }

    fn not_removed(&self, error: NetlinkError) -> AttachError {
        AttachError::Detach { attempt: self.attempt(), why: error.message, hint: LEFT, errno: error.errno }
    }
}

fn make_qdisc(socket: &RouteSocket, ifindex: u32) -> Result<bool, NetlinkError> {
    match socket.add_clsact(ifindex) {
        Ok(()) => return Ok(true),
        Err(error) if error.errno == libc::EEXIST => {}
        Err(error) => return Err(error),
    }
    // An ingress qdisc would take an egress filter and run it at ingress (`ingress_tcf_block` in net/sched/sch_ingress.c).
    match socket.filtering_qdisc(ifindex)? {
        Some(kind) if kind != "clsact" => Err(NetlinkError {
            errno: libc::EEXIST,
            message: format!("the interface has a qdisc of kind {kind} in the place of a clsact qdisc"),
        }),
        _ => Ok(false),
    }
}

fn add_filter(
    socket: &RouteSocket,
    ifindex: u32,
    direction: Direction,
    order: Order,
    program: BorrowedFd<'_>,
    name: &str,
) -> Result<Filter, NetlinkError> {
    let priority = match order {
        Order::First => 1,
        Order::Last => {
            let last = socket.filters(ifindex, direction)?.iter().map(|filter| filter.priority).max();
            last.map_or(LAST_FROM, |last| last.saturating_add(1).max(LAST_FROM))
        }
    };
    socket.add_filter(ifindex, direction, priority, program, name)
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
        Err(error) if !is_gone(error.errno) => Err(error),
        _ => Ok(()),
    }
}

/// Whether a refused deletion means that the filter, the qdisc or the interface was deleted before.
fn is_gone(errno: i32) -> bool {
    matches!(errno, libc::ENOENT | libc::EINVAL | libc::ENODEV)
}
