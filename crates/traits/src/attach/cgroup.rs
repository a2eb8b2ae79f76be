//! Cgroup hooks: programs for every socket of the processes in a cgroup (v2) and below it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use libbpf_sys::{bpf_attach_type, bpf_prog_type};

use super::attachment::Attachment;
use super::error::{AttachError, Attempt, errno_of};
use super::feature::Feature;
pub use super::hook::CgroupHook;
use super::hook::Hook;
use super::link;
use super::program::Program;
use super::target::Target;
use crate::mounts::{self, Mount};

impl CgroupHook {
    const ALL: [Self; 6] =
        [Self::Ingress, Self::Egress, Self::SockOps, Self::GetSockOpt, Self::SetSockOpt, Self::SockRelease];

    fn attach_type(self) -> bpf_attach_type {
        match self {
            Self::Ingress => libbpf_sys::BPF_CGROUP_INET_INGRESS,
            Self::Egress => libbpf_sys::BPF_CGROUP_INET_EGRESS,
            Self::SockOps => libbpf_sys::BPF_CGROUP_SOCK_OPS,
            Self::GetSockOpt => libbpf_sys::BPF_CGROUP_GETSOCKOPT,
            Self::SetSockOpt => libbpf_sys::BPF_CGROUP_SETSOCKOPT,
            Self::SockRelease => libbpf_sys::BPF_CGROUP_INET_SOCK_RELEASE,
        }
    }

    fn program_type(self) -> bpf_prog_type {
        match self {
            Self::Ingress | Self::Egress => libbpf_sys::BPF_PROG_TYPE_CGROUP_SKB,
            Self::SockOps => libbpf_sys::BPF_PROG_TYPE_SOCK_OPS,
            Self::GetSockOpt | Self::SetSockOpt => libbpf_sys::BPF_PROG_TYPE_CGROUP_SOCKOPT,
            Self::SockRelease => libbpf_sys::BPF_PROG_TYPE_CGROUP_SOCK,
        }
    }

    pub(super) fn from_kernel(attach_type: bpf_attach_type) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.attach_type() == attach_type)
    }
}

/// Attaches a program to the cgroup whose directory is open as `cgroup`, after the programs that are there.
///
/// # Errors
/// [`AttachError::NotPermitted`], also if a cgroup above has a program that allows none below it;
/// [`AttachError::Refused`] if `cgroup` is not a cgroup v2 directory; [`AttachError::Unsupported`] on kernels before 5.7;
/// [`AttachError::WrongProgram`].
pub fn attach(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, hook: CgroupHook) -> Result<Attachment, AttachError> {
    attach_flagged(program, cgroup, hook, 0)
}

/// As [`attach`], but the program runs before all those, here, above and below, that are attached without this.
///
/// Kernels before 6.17 have no such order for links (`BPF_F_PREORDER`); there it is the same as [`attach`].
///
/// # Errors
/// As [`attach`].
pub fn attach_preorder(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    hook: CgroupHook,
) -> Result<Attachment, AttachError> {
    attach_flagged(program, cgroup, hook, libbpf_sys::BPF_F_PREORDER)
}

/// Attaches without the flags if the kernel says EINVAL to them, as it does to a flag that it does not know.
fn attach_flagged(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    hook: CgroupHook,
    flags: u32,
) -> Result<Attachment, AttachError> {
    let attempt = Attempt::new(Hook::Cgroup(hook), Target::cgroup(cgroup));
    let id = Program::expect(program, hook.program_type(), &attempt)?.id;
    let create = |flags| {
        let options = libbpf_sys::bpf_link_create_opts { flags, ..link::options() };
        link::create(program, cgroup.as_raw_fd(), hook.attach_type(), &options)
    };
    let link = match create(flags) {
        Err(libc::EINVAL) if flags != 0 => create(0),
        other => other,
    };
    link.map(|link| Attachment::from_link(attempt.clone(), id, link)).map_err(|errno| explain(&attempt, errno))
}

/// Attaches a program to the cgroup with this directory, such as one under [`cgroup_root`].
///
/// # Errors
/// [`AttachError::Cgroup`] if the directory cannot be opened; else as [`attach`].
pub fn attach_path(
    program: BorrowedFd<'_>,
    cgroup: impl AsRef<Path>,
    hook: CgroupHook,
) -> Result<Attachment, AttachError> {
    let directory = open(cgroup.as_ref())?;
    attach(program, directory.as_fd(), hook)
}

/// Opens a cgroup's directory.
pub(crate) fn open(path: &Path) -> Result<File, AttachError> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path).map_err(|error| AttachError::Cgroup {
        path: path.into(),
        hint: match cgroup_tree() {
            Ok(_) => "give a directory of the cgroup v2 tree (`findmnt -t cgroup2` shows where it is)",
            Err(_) => unmounted(),
        },
        errno: errno_of(&error),
    })
}

/// A program that a link holds at a cgroup.
#[derive(Debug)]
pub(crate) struct CgroupLink {
    /// The link's id.
    pub(crate) id: u32,
    /// The cgroup's id; 0: it was removed.
    pub(crate) cgroup: u64,
    /// The program's id.
    pub(crate) program: u32,
    /// The program's name in the kernel; empty if it was unloaded in the meantime.
    pub(crate) name: String,
}

/// Every link of the host to this hook, on whatever cgroup. Needs CAP_SYS_ADMIN.
pub(crate) fn links(hook: CgroupHook) -> io::Result<Vec<CgroupLink>> {
    let all = link::all().map_err(io::Error::from_raw_os_error)?;
    let ours = all.into_iter().filter_map(|info| match info.place {
        Some((Hook::Cgroup(found), Target::Cgroup { id, .. })) if found == hook => Some(CgroupLink {
            id: info.id,
            cgroup: id,
            program: info.program,
            name: Program::by_id(info.program).map(|program| program.name).unwrap_or_default(),
        }),
        _ => None,
    });
    Ok(ours.collect())
}

fn explain(attempt: &Attempt, errno: i32) -> AttachError {
    match errno {
        libc::EPERM => AttachError::NotPermitted {
            attempt: attempt.clone(),
            hint: "run as root (CAP_BPF and CAP_NET_ADMIN); or a cgroup above holds a program that allows none below \
                   it: `bpftool cgroup tree`",
            errno,
        },
        libc::EBADF | libc::EBADFD => attempt.refused(
            errno,
            "that is not a cgroup v2 directory",
            "`findmnt -t cgroup2` shows where the tree is; /sys/fs/cgroup/<controller> is cgroup v1",
        ),
        libc::E2BIG => attempt.refused(
            errno,
            "the cgroup has as many programs as it can hold",
            "`bpftool cgroup show <path>` lists them",
        ),
        libc::EINVAL if !Feature::CgroupLink.expected_here() => attempt.unsupported(Feature::CgroupLink, errno, ""),
        _ => attempt.refused(errno, "the kernel refused the link", "check the program's SEC() against the hook"),
    }
}

/// The cgroup v2 tree, as far as this mount and cgroup namespace show it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CgroupTree {
    /// Where it is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside cgroup v1.
    pub path: PathBuf,
    /// Whether that is the host's root. In a container it usually is the container's own cgroup: a program there sees no
    /// socket of the host or of other containers.
    pub whole: bool,
}

/// The cgroup v2 tree; of several mounts the one that shows the host's root.
///
/// # Errors
/// [`AttachError::Cgroup`] if it is not mounted in this mount namespace.
pub fn cgroup_tree() -> Result<CgroupTree, AttachError> {
    const MOUNTS: &str = "/proc/thread-self/mountinfo";
    let failed = |path: &str, errno, hint| AttachError::Cgroup { path: path.into(), hint, errno };
    let mounts = fs::read_to_string(MOUNTS).map_err(|error| failed(MOUNTS, errno_of(&error), "mount /proc"))?;
    let mounts = cgroup2_mounts(&mounts).into_iter().filter(Mount::is_reached);
    let points: Vec<_> = mounts.map(|mount| mount.point).collect();
    let whole = points.iter().find(|point| is_root(point));
    let path = whole.or(points.first()).cloned().ok_or_else(|| failed("v2 tree", libc::ENOENT, unmounted()))?;
    Ok(CgroupTree { whole: whole.is_some(), path })
}

/// The host's cgroup v2 root: the cgroup of every process.
///
/// # Errors
/// [`AttachError::Cgroup`] if the tree is not mounted in this mount namespace; [`AttachError::PartOfCgroups`] if only a part
/// of it is.
pub fn cgroup_root() -> Result<PathBuf, AttachError> {
    match cgroup_tree()? {
        CgroupTree { path, whole: true } => Ok(path),
        CgroupTree { path, .. } => Err(AttachError::PartOfCgroups { path }),
    }
}

/// That no cgroup v2 tree is mounted in this mount namespace, and what to do about it.
fn unmounted() -> &'static str {
    if mounts::has_init_any("cgroup2") {
        "the tree is hidden from this process, which is in a mount namespace of its own (`ip netns exec` makes one); enter the \
         network namespace with `nsenter --net=/run/netns/NAME` instead"
    } else if Path::new("/sys/fs/cgroup/unified").is_dir() {
        "no cgroup v2 tree is mounted: `mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified`"
    } else {
        "no cgroup v2 tree is mounted: `mount -t cgroup2 cgroup2 /sys/fs/cgroup`"
    }
}

/// Whether a directory is the root of the whole tree.
fn is_root(directory: &Path) -> bool {
    // the first inode of a kernfs (kernfs_create_root in fs/kernfs/dir.c)
    const ROOT_INODE: u64 = 1;
    fs::metadata(directory).is_ok_and(|found| found.ino() == ROOT_INODE)
}

/// The mounts of the cgroup2 file system in the text of mountinfo (proc_pid_mountinfo(5)): those that show the whole tree
/// of this cgroup namespace first.
fn cgroup2_mounts(mountinfo: &str) -> Vec<Mount> {
    let mut mounts: Vec<_> = Mount::parse_all(mountinfo).filter(|mount| mount.file_system == "cgroup2").collect();
    mounts.sort_by_key(|mount| mount.root != "/");
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 30 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw
31 25 0:27 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro,mode=755
32 31 0:28 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:29 / /sys/fs/cgroup/cpu rw shared:11 - cgroup cgroup rw,cpu
";

    fn points(mountinfo: &str) -> Vec<PathBuf> {
        cgroup2_mounts(mountinfo).into_iter().map(|mount| mount.point).collect()
    }

    #[test]
    fn root_is_found_beside_cgroup_v1() {
        assert_eq!(points(HYBRID), [Path::new("/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn root_is_found_where_only_v2_is_mounted() {
        let unified = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        assert_eq!(points(unified), [Path::new("/sys/fs/cgroup")]);
    }

    #[test]
    fn whole_tree_is_preferred_to_a_part() {
        let both = "\
40 23 0:26 /system.slice /mnt/part rw - cgroup2 cgroup2 rw
41 23 0:26 / /mnt/with\\040space rw - cgroup2 cgroup2 rw
";
        assert_eq!(points(both), [Path::new("/mnt/with space"), Path::new("/mnt/part")]);
    }

    #[test]
    fn cgroup_v1_alone_has_no_root() {
        assert!(cgroup2_mounts("33 31 0:29 / /c rw - cgroup cgroup rw\n").is_empty());
    }
}
