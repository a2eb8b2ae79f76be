//! Netfilter: the five points of the IPv4 and IPv6 stacks where nftables and iptables also run.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libbpf_sys::{BPF_NETFILTER, BPF_PROG_TYPE_NETFILTER};
pub use packet_traits_core::{NetfilterFamily, NetfilterHook};

use super::attachment::Attachment;
use super::error::{AttachError, Attempt};
use super::feature::Feature;
use super::hook::Hook;
use super::link;
use super::program::Program;
use super::target::Target;
use crate::insn::Source;

/// `NFPROTO_*`, include/uapi/linux/netfilter.h.
fn family_number(family: NetfilterFamily) -> u32 {
    match family {
        NetfilterFamily::Ipv4 => 2,
        NetfilterFamily::Ipv6 => 10,
    }
}

pub(super) fn family_of(number: u32) -> Option<NetfilterFamily> {
    NetfilterFamily::ALL.into_iter().find(|family| family_number(*family) == number)
}

/// `enum nf_inet_hooks`, include/uapi/linux/netfilter.h.
fn hook_number(hook: NetfilterHook) -> u32 {
    match hook {
        NetfilterHook::PreRouting => 0,
        NetfilterHook::Input => 1,
        NetfilterHook::Forward => 2,
        NetfilterHook::Output => 3,
        NetfilterHook::PostRouting => 4,
    }
}

pub(super) fn hook_of(number: u32) -> Option<NetfilterHook> {
    NetfilterHook::ALL.into_iter().find(|hook| hook_number(*hook) == number)
}

// include/uapi/linux/bpf.h
const BPF_F_NETFILTER_IP_DEFRAG: u32 = 1 << 0;

/// Where [`attach`] attaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetfilterOptions {
    family: NetfilterFamily,
    hook: NetfilterHook,
    priority: i32,
    defrag: bool,
}

impl NetfilterOptions {
    /// Attach at this hook, with priority 0 (that of the `filter` tables), without reassembling fragments.
    pub fn new(family: NetfilterFamily, hook: NetfilterHook) -> Self {
        Self { family, hook, priority: 0, defrag: false }
    }

    /// Run in this order among everything at the hook: lower is earlier, and a BPF program must be alone with its
    /// number. Fixed points: defragmentation −400, raw −300, connection tracking −200, mangle −150, DNAT −100,
    /// filter 0, security 50, SNAT 100 (include/uapi/linux/netfilter_ipv4.h, `enum nf_ip_hook_priorities`).
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// The hook this is.
    pub(crate) fn place(&self) -> Hook {
        Hook::Netfilter { family: self.family, hook: self.hook, priority: self.priority }
    }

    /// Reassemble IP fragments before the program sees them. Needs Linux 6.6 and a priority above −400.
    pub fn defrag(mut self, defrag: bool) -> Self {
        self.defrag = defrag;
        self
    }
}

/// Attaches a netfilter program (`SEC("netfilter")`) in the network namespace of the **calling thread**.
///
/// # Errors
/// [`AttachError::Busy`] if something at the hook has the same priority; [`AttachError::Unsupported`] on kernels
/// before 6.4, or before 6.6 with [`defrag`](NetfilterOptions::defrag); [`AttachError::Refused`] for a priority that the
/// kernel does not allow; [`AttachError::NotPermitted`]; [`AttachError::WrongProgram`].
pub fn attach(program: BorrowedFd<'_>, options: &NetfilterOptions) -> Result<Attachment, AttachError> {
    let attempt = Attempt::new(options.place(), Target::current_namespace());
    let id = Program::expect(program, BPF_PROG_TYPE_NETFILTER, &attempt)?.id;
    create(program, options)
        .map(|link| Attachment::from_link(attempt.clone(), id, link))
        .map_err(|errno| explain(&attempt, options, errno))
}

fn create(program: BorrowedFd<'_>, options: &NetfilterOptions) -> Result<OwnedFd, i32> {
    let mut create = link::options();
    create.__bindgen_anon_1.netfilter = libbpf_sys::bpf_link_create_opts__bindgen_ty_1__bindgen_ty_5 {
        pf: family_number(options.family),
        hooknum: hook_number(options.hook),
        priority: options.priority,
        flags: if options.defrag { BPF_F_NETFILTER_IP_DEFRAG } else { 0 },
    };
    link::create(program, 0, BPF_NETFILTER, &create)
}

/// The free priority that is nearest to the one in the options, of two the lower. Found by attaching a program that lets
/// every packet pass, for a moment: not every kernel lists its hooks.
fn free_priority(options: &NetfilterOptions) -> Option<i32> {
    const NF_ACCEPT: i32 = 1;
    const FARTHEST: i32 = 16;
    let program = Source::returning(BPF_PROG_TYPE_NETFILTER, NF_ACCEPT).at(BPF_NETFILTER).load().ok()?;
    let near = (1..=FARTHEST).flat_map(|distance| [-distance, distance]);
    near.filter_map(|distance| options.priority.checked_add(distance))
        .find(|priority| create(program.as_fd(), &options.priority(*priority)).is_ok())
}

/// What the errnos of `bpf_nf_link_attach` (net/netfilter/nf_bpf_link.c) mean.
fn explain(attempt: &Attempt, options: &NetfilterOptions, errno: i32) -> AttachError {
    match errno {
        libc::EBUSY => AttachError::Busy {
            attempt: attempt.clone(),
            holder: "another hook function there has the same priority".into(),
            hint: match free_priority(options) {
                Some(free) => format!("priority {free} is free; `nft list hooks` shows those in use"),
                None => "choose another number: `nft list hooks` shows those in use".to_owned(),
            },
            hints: Vec::new(),
            errno,
        },
        libc::ERANGE => attempt.refused(
            errno,
            "the kernel does not allow that priority",
            "choose one between the lowest and the highest number, both excluded, and above -400 with defrag",
        ),
        libc::EOPNOTSUPP | libc::ENOENT if options.defrag => {
            attempt.unsupported(Feature::NetfilterDefrag, errno, "; or attach without defrag")
        }
        libc::EAFNOSUPPORT => {
            attempt.refused(errno, "the kernel has no netfilter for that family", "load or build in IPv6")
        }
        libc::EOPNOTSUPP | libc::EINVAL => attempt.unsupported(Feature::NetfilterLink, errno, ""),
        _ => attempt.refused(errno, "the kernel refused the link", "`bpftool net` shows what is attached"),
    }
}
