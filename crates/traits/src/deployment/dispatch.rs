//! Slots and the dispatchers that run what is in them: for the places where the kernel cannot exchange a program.
//!
//! A netfilter link cannot be updated (`bpf_nf_link_update` in net/netfilter/nf_bpf_link.c is EOPNOTSUPP), and two BPF
//! programs cannot be at the same hook with the same priority (`nf_hook_entries_grow`, EBUSY), so there is no way from one
//! to the next without a packet that meets both or neither. A socket filter that is pinned for others stays with whoever
//! opened the pin. A clsact filter has no link: the kernel exchanges its program, but only for a caller in its network
//! namespace, to which no path may lead any more. So what is attached, or pinned for others, is a dispatcher: a program
//! that tail-calls entry 0 of a PROG_ARRAY, its slot. Exchanging that entry is atomic, and with a constant index the kernel
//! makes the call a direct jump.
//!
//! The kernel empties a PROG_ARRAY when nobody holds it by a descriptor or a pin any more; so a slot is pinned as long
//! as its dispatcher is to run something.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapInfo, ObjectBuilder, ProgramAttachType};

use super::{DeployError, FilterUse, error::map_failed};
use crate::{attach::Program, bpffs};

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/dispatch.bpf.o"));

/// The map in it.
const SLOT: &str = "pt_slot";

/// The dispatcher in it for netfilter hooks.
const NETFILTER: &str = "pt_netfilter";

/// The dispatcher in it for clsact filters.
const TC: &str = "pt_tc";

impl FilterUse {
    /// The dispatcher for it.
    fn dispatcher(self) -> &'static str {
        match self {
            FilterUse::Match => "pt_match",
            FilterUse::Steer => "pt_steer",
        }
    }

    /// What a dispatcher is for.
    pub(super) fn of(dispatcher: BorrowedFd<'_>) -> Option<FilterUse> {
        let name = Program::of(dispatcher).ok()?.name;
        [FilterUse::Match, FilterUse::Steer].into_iter().find(|usage| usage.dispatcher() == name)
    }
}

/// Holds the program that a dispatcher runs.
#[derive(Debug)]
pub(super) struct Slot(MapHandle);

impl Slot {
    /// Opens a pinned slot; `None` if there is none.
    pub(super) fn open(path: &Path) -> Option<Slot> {
        bpffs::open_map(path).ok().map(Slot)
    }

    /// Has the dispatcher run a program of its type from the next packet on.
    pub(super) fn put(&self, program: BorrowedFd<'_>) -> Result<(), DeployError> {
        let program = program.as_raw_fd().to_ne_bytes();
        self.0.update(&[0; 4], &program, MapFlags::ANY).map_err(map_failed("put a program into", SLOT))
    }

    /// Has the dispatcher run nothing.
    pub(super) fn clear(&self) -> Result<(), DeployError> {
        match self.0.delete(&[0; 4]) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => Err(map_failed("empty", SLOT)(error)),
            _ => Ok(()),
        }
    }

    /// The id of the program in it.
    pub(super) fn program(&self) -> Option<u32> {
        let id = self.0.lookup(&[0; 4], MapFlags::ANY).ok()??;
        Some(u32::from_ne_bytes(id.try_into().ok()?))
    }

    /// The id of its map.
    pub(super) fn id(&self) -> Option<u32> {
        Some(MapInfo::new(self.0.as_fd()).ok()?.info.id)
    }
}

impl AsFd for Slot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A dispatcher for a netfilter hook, and its slot, with a program in it.
pub(super) fn for_netfilter(program: BorrowedFd<'_>) -> Result<(OwnedFd, Slot), DeployError> {
    load(NETFILTER, None, program)
}

/// A dispatcher for a clsact filter, and its slot, with a program in it that was loaded for this attach type.
///
/// From 6.17 a slot takes only programs of its dispatcher's attach type (`__bpf_prog_map_compatible` in
/// kernel/bpf/core.c).
pub(super) fn for_clsact(
    program: BorrowedFd<'_>,
    attach_type: &ProgramAttachType,
) -> Result<(OwnedFd, Slot), DeployError> {
    load(TC, Some(attach_type), program)
}

/// A dispatcher to pin for others, and its slot, with a program in it.
pub(super) fn for_filter(usage: FilterUse, program: BorrowedFd<'_>) -> Result<(OwnedFd, Slot), DeployError> {
    load(usage.dispatcher(), None, program)
}

/// Programs go a grace period after their last user, on a busy host some tens of milliseconds.
pub(crate) const UNLOAD: Duration = Duration::from_millis(500);

/// Gives a dispatcher back that is pinned nowhere, if something else still holds it: a rule of iptables, a socket. Closes it
/// first, and waits for the kernel to forget it.
pub(super) fn still_used(dispatcher: OwnedFd) -> Option<OwnedFd> {
    let id = Program::of(dispatcher.as_fd()).ok()?.id;
    drop(dispatcher);
    let deadline = Instant::now() + UNLOAD;
    loop {
        let found = Program::open(id)?;
        if Instant::now() >= deadline {
            return Some(found);
        }
        drop(found);
        thread::sleep(Duration::from_millis(10));
    }
}

fn load(
    name: &str,
    attach_type: Option<&ProgramAttachType>,
    program: BorrowedFd<'_>,
) -> Result<(OwnedFd, Slot), DeployError> {
    let failed = |error| DeployError::Dispatcher { dispatcher: name.to_owned(), error };
    let mut object = ObjectBuilder::default().open_memory(OBJECT).map_err(failed)?;
    for mut one in object.progs_mut() {
        let wanted = one.name() == name;
        one.set_autoload(wanted);
        if let Some(attach_type) = attach_type.filter(|_| wanted) {
            one.set_attach_type(attach_type.clone());
        }
    }
    let object = object.load().map_err(failed)?;
    let slot = object.maps().find(|map| map.name() == SLOT).expect("the dispatchers' object has the map");
    let slot = Slot(MapHandle::try_from(&slot).map_err(failed)?);
    slot.put(program)?;
    let dispatcher = object.progs().find(|one| one.name() == name).expect("the dispatchers' object has the program");
    let dispatcher = dispatcher.as_fd().try_clone_to_owned().map_err(|error| failed(error.into()))?;
    Ok((dispatcher, slot))
}
