//! TC ingress and egress: between the driver and the protocol stack, on an skb.
//!
//! Programs are attached by TCX links (Linux 6.6). Where the kernel has none, they become direct-action filters of a
//! `clsact` qdisc, with the same verdicts, except that a program there needs `TC_ACT_UNSPEC` to hand the packet to the
//! next one, as TCX's `TCX_NEXT` (the same number, -1) does.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};

use libbpf_sys::{
    BPF_F_AFTER, BPF_F_BEFORE, BPF_PROG_TYPE_SCHED_CLS, BPF_TCX_EGRESS, BPF_TCX_INGRESS, bpf_attach_type,
};

use super::attachment::Attachment;
use super::clsact::{self, ClsactFilter, Order};
use super::error::{AttachError, Attempt};
use super::feature::Feature;
use super::hook::{Direction, Hook};
use super::link;
use super::program::Program;
use super::target::Target;

/// Where among the programs of the same interface and direction a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Position {
    /// Before all that are there now.
    First,
    /// After all that are there now.
    #[default]
    Last,
    /// Directly before the program with this id.
    Before(u32),
    /// Directly after the program with this id.
    After(u32),
}

/// How [`attach`] attaches.
#[derive(Debug, Clone, Copy)]
pub struct TcxOptions {
    direction: Direction,
    position: Position,
    force_clsact: bool,
}

impl TcxOptions {
    /// Attach in this direction, after the programs that are there.
    pub fn new(direction: Direction) -> Self {
        Self { direction, position: Position::default(), force_clsact: false }
    }

    /// Run at this place among the other programs.
    ///
    /// A clsact filter has a priority instead of a place: `First` becomes 1, and `Last` the number behind the last one in
    /// use, from 49152 to 65535. Of filters with the same priority the newest runs first. `Before` and `After` need TCX.
    pub fn position(mut self, position: Position) -> Self {
        self.position = position;
        self
    }

    /// Use a clsact filter even if the kernel has TCX.
    pub fn force_clsact(mut self, force: bool) -> Self {
        self.force_clsact = force;
        self
    }
}

/// Attaches a TC program (`SEC("tc")`, `SEC("tcx/ingress")` …) to an interface.
///
/// [`Attachment::info`] says which way it was done: [`Hook::Tcx`] or [`Hook::Clsact`].
///
/// # Errors
/// [`AttachError::NoDevice`]; [`AttachError::NotPermitted`]; [`AttachError::WrongProgram`];
/// [`AttachError::Unsupported`] if [`Position::Before`] or [`Position::After`] is asked for without TCX;
/// [`AttachError::Refused`] if the program that the position names is not attached there, or the clsact filter is refused.
pub fn attach(program: BorrowedFd<'_>, ifindex: u32, options: &TcxOptions) -> Result<Attachment, AttachError> {
    let attempt = Attempt::new(Hook::Tcx(options.direction), Target::interface(ifindex));
    let identity = Program::expect(program, BPF_PROG_TYPE_SCHED_CLS, &attempt)?;
    if options.force_clsact {
        return attach_clsact(program, &identity, ifindex, options);
    }
    match attach_link(program, ifindex, options)? {
        Some(attachment) => Ok(attachment),
        None => {
            tracing::debug!(%attempt, "no TCX in this kernel, using clsact");
            attach_clsact(program, &identity, ifindex, options)
        }
    }
}

/// Attaches a TC program by a TCX link; `None` if the kernel has none.
pub(crate) fn attach_link(
    program: BorrowedFd<'_>,
    ifindex: u32,
    options: &TcxOptions,
) -> Result<Option<Attachment>, AttachError> {
    let attempt = Attempt::new(Hook::Tcx(options.direction), Target::interface(ifindex));
    let identity = Program::expect(program, BPF_PROG_TYPE_SCHED_CLS, &attempt)?;
    match create(program, ifindex, options) {
        Ok(link) => Ok(Some(Attachment::from_link(attempt, identity.id, link))),
        Err(libc::EINVAL) if !kernel_has_tcx(program) => Ok(None),
        Err(errno) => Err(explain(&attempt, errno)),
    }
}

fn create(program: BorrowedFd<'_>, ifindex: u32, options: &TcxOptions) -> Result<OwnedFd, i32> {
    let (flags, relative_id) = match options.position {
        Position::First => (BPF_F_BEFORE, 0),
        Position::Last => (BPF_F_AFTER, 0),
        Position::Before(id) => (BPF_F_BEFORE, id),
        Position::After(id) => (BPF_F_AFTER, id),
    };
    let mut create = link::options();
    create.flags = flags;
    create.__bindgen_anon_1.tcx.relative_id = relative_id;
    link::create(program, ifindex.cast_signed(), attach_type(options.direction), &create)
}

fn attach_type(direction: Direction) -> bpf_attach_type {
    match direction {
        Direction::Ingress => BPF_TCX_INGRESS,
        Direction::Egress => BPF_TCX_EGRESS,
    }
}

/// Whether the kernel has TCX, found once by trying: an attach to an impossible interface index fails with ENODEV where
/// TCX looks for the interface, and with EINVAL where there is no TCX.
fn kernel_has_tcx(program: BorrowedFd<'_>) -> bool {
    const UNKNOWN: u8 = 0;
    const YES: u8 = 1;
    const NO: u8 = 2;
    static FOUND: AtomicU8 = AtomicU8::new(UNKNOWN);
    match FOUND.load(Ordering::Relaxed) {
        UNKNOWN => {
            let answer = link::create(program, -1, BPF_TCX_INGRESS, &link::options());
            let has = matches!(answer, Err(libc::ENODEV));
            FOUND.store(if has { YES } else { NO }, Ordering::Relaxed);
            has
        }
        found => found == YES,
    }
}

fn explain(attempt: &Attempt, errno: i32) -> AttachError {
    let (why, hint) = match errno {
        libc::ENOENT | libc::ESRCH | libc::EDOM | libc::ERANGE => {
            ("the program that the position names is not attached there", "`bpftool net` lists what is attached")
        }
        libc::E2BIG | libc::ENOSPC => (
            "the interface has as many programs as it can hold in this direction",
            "detach one: `bpftool net` lists them",
        ),
        _ => (
            "the kernel refused the link",
            "check the program's attach type: SEC(\"tc\") or SEC(\"tcx/ingress\") and SEC(\"tcx/egress\")",
        ),
    };
    attempt.refused(errno, why, hint)
}

fn attach_clsact(
    program: BorrowedFd<'_>,
    identity: &Program,
    ifindex: u32,
    options: &TcxOptions,
) -> Result<Attachment, AttachError> {
    let direction = options.direction;
    let attempt = Attempt::new(Hook::Clsact(direction), Target::interface(ifindex));
    let order = match options.position {
        Position::First => Order::First,
        Position::Last => Order::Last,
        Position::Before(_) | Position::After(_) if options.force_clsact => {
            return Err(attempt.refused(
                libc::EINVAL,
                "a clsact filter has no place next to a named program",
                "ask for first or last, or do not force clsact",
            ));
        }
        Position::Before(_) | Position::After(_) => {
            let hint = "; a clsact filter can only be first or last";
            return Err(attempt.unsupported(Feature::Tcx, libc::EINVAL, hint));
        }
    };
    match ClsactFilter::add(program, identity, ifindex, direction, order) {
        Ok(filter) => Ok(Attachment::from_clsact(attempt, identity.id, filter)),
        Err(error) => Err(attempt.refused(error.errno, error.message, clsact::NEEDS)),
    }
}
