//! XDP: the first hook a received packet meets.

use std::fmt;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libbpf_sys::{BPF_F_XDP_HAS_FRAGS, BPF_PROG_TYPE_XDP, BPF_XDP, bpf_xdp_query_opts};

use super::attachment::Attachment;
use super::devices::{Device, devices};
use super::error::{AttachError, Attempt, ENOTSUPP};
use super::feature::Feature;
use super::hook::Hook;
use super::link::{self, check};
use super::program::Program;
use super::target::{Target, interface_name};
use crate::doctor::netdev;
use crate::insn::Source;

/// Where in the receive path an XDP program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum XdpMode {
    /// In the driver, before the kernel builds an skb.
    Native,
    /// In the stack, on an skb: works on every interface, slower.
    Generic,
    /// Native if the driver does it, else generic. [`attach`] says which it was.
    #[default]
    Auto,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Auto => "auto",
        })
    }
}

// include/uapi/linux/if_link.h
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// The program by which `traits trace` gives packets ids, while it runs.
const TRACER: &str = "trace_xdp";

/// Attaches an XDP program to an interface. An interface has room for one.
///
/// Returns the mode that is in use: [`XdpMode::Native`] or [`XdpMode::Generic`].
///
/// # Errors
/// [`AttachError::Busy`] if the interface has an XDP program, with its id; [`AttachError::NoDevice`];
/// [`AttachError::NotPermitted`]; [`AttachError::WrongProgram`]; [`AttachError::Refused`] if the driver cannot do
/// native XDP, at all or with the interface's present MTU, queues or offloads.
pub fn attach(program: BorrowedFd<'_>, ifindex: u32, mode: XdpMode) -> Result<(Attachment, XdpMode), AttachError> {
    let attempt = Attempt::new(Hook::Xdp, Target::interface(ifindex));
    let id = Program::expect(program, BPF_PROG_TYPE_XDP, &attempt)?.id;
    let in_mode =
        |mode| create(program, ifindex, mode).map(|link| (Attachment::from_link(attempt.clone(), id, link), mode));
    let attached = match mode {
        XdpMode::Native | XdpMode::Generic => in_mode(mode).map_err(|errno| (errno, mode)),
        XdpMode::Auto => in_mode(XdpMode::Native).or_else(|errno| {
            if !driver_refused(errno) {
                return Err((errno, XdpMode::Native));
            }
            tracing::debug!(%attempt, errno, "driver refused native XDP, trying generic");
            in_mode(XdpMode::Generic).map_err(|errno| (errno, XdpMode::Generic))
        }),
    };
    attached.map_err(|(errno, mode)| explain(&attempt, ifindex, mode, errno))
}

/// The mode that [`attach`] is to use on an interface where it is given this one. For [`XdpMode::Auto`], that of the program
/// which is attached there; else what the driver tells of itself, which may be more than it does with the interface's present
/// MTU and offloads. Before Linux 6.3 it tells nothing: a program that lets everything pass is attached for a moment.
///
/// # Errors
/// As of [`attach`], but that the interface may have an XDP program.
pub fn mode_on(ifindex: u32, mode: XdpMode) -> Result<XdpMode, AttachError> {
    const XDP_PASS: i32 = 2;
    if mode != XdpMode::Auto {
        return Ok(mode);
    }
    if let Some((_, mode)) = attached(ifindex) {
        return Ok(mode);
    }
    if let Ok(device) = netdev::device(ifindex) {
        return Ok(if device.xdp & netdev::XDP_BASIC == 0 { XdpMode::Generic } else { XdpMode::Native });
    }
    let source = Source::returning(BPF_PROG_TYPE_XDP, XDP_PASS).at(BPF_XDP);
    // as what is to come; kernels before 5.18 do not know it
    let frags = Source { flags: BPF_F_XDP_HAS_FRAGS, ..source.clone() };
    let program = frags.load().or_else(|_| source.load()).map_err(|_| {
        let attempt = Attempt::new(Hook::Xdp, Target::interface(ifindex));
        attempt.refused(libc::EPERM, "no XDP program can be loaded", "run as root, or with CAP_BPF and CAP_NET_ADMIN")
    })?;
    attach(program.as_fd(), ifindex, mode).map(|(_, mode)| mode)
}

fn create(program: BorrowedFd<'_>, ifindex: u32, mode: XdpMode) -> Result<OwnedFd, i32> {
    let mut options = link::options();
    options.flags = match mode {
        XdpMode::Generic => XDP_FLAGS_SKB_MODE,
        XdpMode::Native | XdpMode::Auto => XDP_FLAGS_DRV_MODE,
    };
    link::create(program, ifindex.cast_signed(), BPF_XDP, &options)
}

/// Whether an errno of a native attach is the driver's, so that generic mode can still work.
///
/// EOPNOTSUPP: no native XDP (net/core/dev.c, `dev_xdp_attach`). The others are what drivers answer when
/// MTU, ring sizes, queue counts or offloads stand in the way: veth ERANGE, virtio_net EINVAL, others ENOMEM, ENOSPC or
/// the internal ENOTSUPP.
fn driver_refused(errno: i32) -> bool {
    matches!(errno, libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE | libc::ENOMEM | libc::ENOSPC | ENOTSUPP)
}

fn explain(attempt: &Attempt, ifindex: u32, mode: XdpMode, errno: i32) -> AttachError {
    match errno {
        libc::EBUSY | libc::EEXIST => busy(attempt, ifindex, errno),
        // The interface may also not be there, which the link call reports in the same way.
        libc::EINVAL if !Feature::XdpLink.expected_here() && interface_name(ifindex).is_some() => {
            attempt.unsupported(Feature::XdpLink, errno, "")
        }
        _ if mode == XdpMode::Native => attempt.refused(
            errno,
            "the driver refused native mode",
            "use generic or auto mode, or change what the driver objects to (MTU, queues, LRO: see dmesg)",
        ),
        _ => attempt.refused(
            errno,
            "the kernel refused generic mode",
            "check that the program is not of the devmap or cpumap kind (SEC(\"xdp/devmap\"))",
        ),
    }
}

fn busy(attempt: &Attempt, ifindex: u32, errno: i32) -> AttachError {
    let (holder, hint) = match in_the_way(ifindex) {
        Some(Attached { ifindex: at, program: id, mode }) => {
            let program = Program::by_id(id);
            let found = program.as_ref().map_or_else(|| format!("program {id}"), ToString::to_string);
            let off = match mode {
                XdpMode::Generic => "xdpgeneric",
                _ => "xdpdrv",
            };
            let interface = interface_name(at).unwrap_or_default();
            let hint = match program {
                Some(program) if program.name == TRACER => "`traits trace` has it there until it ends".to_owned(),
                _ => format!(
                    "detach it first: whoever attached it ends or unpins its link (`bpftool link` lists links), or \
                     `ip link set dev {interface} {off} off` if it is not held by a link"
                ),
            };
            let place = if at == ifindex { "there".to_owned() } else { format!("to {interface}, which stands on it,") };
            (format!("{found} is attached {place} in {mode} mode"), hint)
        }
        None => (
            "an XDP program that the kernel does not name is attached there or to an interface that stands on it"
                .into(),
            "look at the interface and those above it with `ip link`, and detach that program first".into(),
        ),
    };
    AttachError::Busy { attempt: attempt.clone(), holder, hint, hints: Vec::new(), errno }
}

/// An XDP program, and where it is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attached {
    /// The interface.
    pub ifindex: u32,
    /// The program's id.
    pub program: u32,
    /// In which mode.
    pub mode: XdpMode,
}

/// The program that keeps an interface from getting one: its own, or that of an interface that stands on it, such as the bridge
/// of which it is a port (`dev_xdp_attach` in net/core/dev.c).
pub fn in_the_way(ifindex: u32) -> Option<Attached> {
    let at = |ifindex| attached(ifindex).map(|(program, mode)| Attached { ifindex, program, mode });
    at(ifindex).or_else(|| {
        let all = devices().ok()?;
        let device = all.iter().find(|device| device.ifindex == ifindex)?;
        let stands_on_it = |other: &&Device| other.link == Some(ifindex) && !other.is_veth();
        let above = all.iter().filter(stands_on_it).map(|other| other.ifindex);
        device.master.into_iter().chain(above).find_map(at)
    })
}

/// The id of the XDP program that an interface has, and its mode. `None` also if there is no such interface.
pub fn attached(ifindex: u32) -> Option<(u32, XdpMode)> {
    let mut query = bpf_xdp_query_opts {
        // Up to the feature flags, which would cost a second request.
        sz: offset_of!(bpf_xdp_query_opts, feature_flags) as libbpf_sys::size_t,
        ..Default::default()
    };
    // SAFETY: `query` is a valid, writable structure, and libbpf writes only the part that `sz` covers.
    check(unsafe { libbpf_sys::bpf_xdp_query(ifindex.cast_signed(), 0, &mut query) }).ok()?;
    match (query.drv_prog_id, query.skb_prog_id, query.prog_id) {
        (0, 0, 0) => None,
        (0, 0, id) => Some((id, XdpMode::Native)),
        (0, id, _) => Some((id, XdpMode::Generic)),
        (id, _, _) => Some((id, XdpMode::Native)),
    }
}
