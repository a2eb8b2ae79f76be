//! BPF links: the kernel object that holds a program at a hook for as long as someone holds the link.

use std::ffi::{CStr, c_int};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_sys::{bpf_attach_type, bpf_link_create_opts, bpf_link_info};

use super::hook::{CgroupHook, Direction, Hook};
use super::netfilter;
use super::target::Target;

/// Turns libbpf's "negative errno or result" into a result; the error is an errno.
pub(super) fn check(result: c_int) -> Result<c_int, i32> {
    if result < 0 { Err(-result) } else { Ok(result) }
}

/// Empty creation options of the right size.
pub(super) fn options() -> bpf_link_create_opts {
    bpf_link_create_opts { sz: size_of::<bpf_link_create_opts>() as libbpf_sys::size_t, ..Default::default() }
}

/// Attaches `program` by a new link. `target` is an interface index, a cgroup's descriptor or 0, by attach type.
pub(super) fn create(
    program: BorrowedFd<'_>,
    target: c_int,
    attach_type: bpf_attach_type,
    options: &bpf_link_create_opts,
) -> Result<OwnedFd, i32> {
    // SAFETY: `options` is a valid structure that says its own size, and holds no pointers for the attach types used
    // here.
    own(unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), target, attach_type, options) })
}

/// Attaches a program to the tracepoint or function it was loaded for.
pub(super) fn open_raw_tracepoint(program: BorrowedFd<'_>) -> Result<OwnedFd, i32> {
    // SAFETY: a null name is how the kernel is told to take the tracepoint from the program.
    own(unsafe { libbpf_sys::bpf_raw_tracepoint_open(std::ptr::null(), program.as_raw_fd()) })
}

/// Has the link's hook run another program from the next packet on.
pub(super) fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), i32> {
    // SAFETY: takes descriptors, which the borrows keep open; null options are none.
    check(unsafe { libbpf_sys::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), std::ptr::null()) }).map(drop)
}

/// Takes the link off its hook now, whoever else holds it.
pub(super) fn detach(link: BorrowedFd<'_>) -> Result<(), i32> {
    // SAFETY: takes a descriptor, which the borrow keeps open.
    check(unsafe { libbpf_sys::bpf_link_detach(link.as_raw_fd()) }).map(drop)
}

/// What the kernel tells of a link.
pub(super) struct LinkInfo {
    pub(super) id: u32,
    pub(super) program: u32,
    /// Where the link is attached; none for a link of a kind this module does not make.
    pub(super) place: Option<(Hook, Target)>,
}

/// Asks the kernel about `link`.
pub(super) fn info(link: BorrowedFd<'_>) -> Result<LinkInfo, i32> {
    let raw = raw_info(link, bpf_link_info::default())?;
    let place = place(link, &raw)?;
    Ok(LinkInfo { id: raw.id, program: raw.prog_id, place })
}

/// What the kernel tells of every link there is. One that goes away in the meantime is left out.
pub(super) fn all() -> Result<Vec<LinkInfo>, i32> {
    let mut found = Vec::new();
    let mut id = 0;
    loop {
        // SAFETY: `id` is valid for reading and writing one u32.
        match check(unsafe { libbpf_sys::bpf_link_get_next_id(id, &mut id) }) {
            Err(libc::ENOENT) => return Ok(found),
            other => other?,
        };
        // SAFETY: takes a number only.
        match own(unsafe { libbpf_sys::bpf_link_get_fd_by_id(id) }) {
            Ok(link) => found.extend(info(link.as_fd())),
            // gone, or a link that is being made
            Err(libc::ENOENT | libc::EAGAIN) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn place(link: BorrowedFd<'_>, raw: &bpf_link_info) -> Result<Option<(Hook, Target)>, i32> {
    let any = &raw.__bindgen_anon_1;
    // SAFETY: every member of the union is plain numbers, so any of them may be read; `type_` says which the kernel
    // filled in.
    let (xdp, tcx, netfilter, cgroup) = unsafe { (any.xdp, any.tcx, any.netfilter, any.cgroup) };
    let interface = |ifindex| Target::Interface { ifindex, name: None };
    Ok(match raw.type_ {
        libbpf_sys::BPF_LINK_TYPE_XDP => Some((Hook::Xdp, interface(xdp.ifindex))),
        libbpf_sys::BPF_LINK_TYPE_TCX => {
            let direction = match tcx.attach_type {
                libbpf_sys::BPF_TCX_EGRESS => Direction::Egress,
                _ => Direction::Ingress,
            };
            Some((Hook::Tcx(direction), interface(tcx.ifindex)))
        }
        libbpf_sys::BPF_LINK_TYPE_NETFILTER => {
            let family = netfilter::family_of(netfilter.pf);
            let hook = netfilter::hook_of(netfilter.hooknum);
            family.zip(hook).map(|(family, hook)| {
                let priority = netfilter.priority;
                let hook = Hook::Netfilter { family, hook, priority };
                (hook, Target::Namespace { inode: None })
            })
        }
        libbpf_sys::BPF_LINK_TYPE_CGROUP => CgroupHook::from_kernel(cgroup.attach_type).map(|hook| {
            let id = cgroup.cgroup_id;
            (Hook::Cgroup(hook), Target::Cgroup { id, path: None })
        }),
        libbpf_sys::BPF_LINK_TYPE_RAW_TRACEPOINT => {
            let name = tracepoint_name(link)?;
            Some((Hook::TpBtf, Target::Tracepoint { name }))
        }
        _ => None,
    })
}

/// The tracepoint that a link of type RAW_TRACEPOINT is on. The kernel writes the name to a buffer given to it.
fn tracepoint_name(link: BorrowedFd<'_>) -> Result<String, i32> {
    let mut name = [0u8; 128];
    let mut request = bpf_link_info::default();
    request.__bindgen_anon_1.raw_tracepoint.tp_name = name.as_mut_ptr().expose_provenance() as u64;
    request.__bindgen_anon_1.raw_tracepoint.tp_name_len = name.len() as u32;
    raw_info(link, request)?;
    let name = CStr::from_bytes_until_nul(&name).map_err(|_| libc::ENAMETOOLONG)?;
    Ok(name.to_string_lossy().into_owned())
}

/// `request` must hold no pointers other than those valid for the link's own type.
fn raw_info(link: BorrowedFd<'_>, request: bpf_link_info) -> Result<bpf_link_info, i32> {
    let mut info = request;
    let mut len = size_of::<bpf_link_info>() as u32;
    // SAFETY: `info` is writable for `len` bytes; the only pointer a caller puts in it is to a buffer that it keeps.
    check(unsafe { libbpf_sys::bpf_link_get_info_by_fd(link.as_raw_fd(), &mut info, &mut len) })?;
    Ok(info)
}

/// Takes ownership of a descriptor that a libbpf call returned.
fn own(fd: c_int) -> Result<OwnedFd, i32> {
    let fd = check(fd)?;
    // SAFETY: the call succeeded, so `fd` is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
