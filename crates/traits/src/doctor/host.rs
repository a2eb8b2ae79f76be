//! The kernel, the process and the file systems: what is there before any program is loaded.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use libbpf_rs::btf::Btf;

use super::{Finding, Probe};
use crate::{
    attach::{
        AttachError,
        cgroup::{CgroupTree, cgroup_tree},
        interface_name, kernel_release,
    },
    border::{self, OpenLink},
    bpffs::{self, BpffsError},
    registry::{Registry, RegistryName},
};

// include/uapi/linux/capability.h
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// The folder of registries in a bpffs.
const REGISTRIES: &str = "packet_traits";

/// The running kernel's release, as `uname -r` prints it.
pub fn kernel() -> String {
    kernel_release()
}

/// Looks at the host. `root` is the bpffs that registries are on.
pub fn host(root: &Path) -> Vec<Finding> {
    let mut found = vec![privileges(), btf(), lockdown(), jit(), bpf_file_system(root)];
    found.extend(registries(root));
    found.push(borders(root));
    found.push(cgroup());
    found
}

fn privileges() -> Finding {
    let probe = Probe::Privileges;
    let status = match fs::read_to_string("/proc/thread-self/status") {
        Ok(status) => status,
        Err(error) => return Finding::untried(probe, format_args!("/proc/thread-self/status: {error}")),
    };
    let Some(effective) = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
    else {
        return Finding::untried(probe, "/proc/thread-self/status does not tell the capabilities");
    };
    let has = |capability: u32| effective >> capability & 1 == 1;
    // CAP_SYS_ADMIN stands in for the two that were split off it (bpf_capable, perfmon_capable)
    let all = has(CAP_SYS_ADMIN);
    let wanted = [
        ("CAP_BPF", all || has(CAP_BPF)),
        ("CAP_NET_ADMIN", has(CAP_NET_ADMIN)),
        ("CAP_PERFMON", all || has(CAP_PERFMON)),
        ("CAP_SYS_ADMIN", all),
    ];
    let missing: Vec<&str> = wanted.iter().filter(|(_, has)| !has).map(|(name, _)| *name).collect();
    let without = format!("without {}", missing.join(", "));
    match missing.as_slice() {
        [] => Finding::yes(probe, "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_ADMIN"),
        // enough to load and attach what reads only what the packet's context shows
        _ if wanted[0].1 && wanted[1].1 => Finding::limited(probe, without),
        _ => Finding::no(probe, without),
    }
}

fn btf() -> Finding {
    match Btf::from_vmlinux() {
        Ok(btf) => Finding::yes(Probe::Btf, format!("{} types", btf.len())),
        Err(error) => Finding::no(Probe::Btf, error),
    }
}

fn lockdown() -> Finding {
    const STATE: &str = "/sys/kernel/security/lockdown";
    let probe = Probe::Lockdown;
    let Ok(text) = fs::read_to_string(STATE) else {
        return Finding::yes(probe, "no lockdown (or securityfs is not mounted)");
    };
    // `none [integrity] confidentiality`: the one in brackets is in force
    let level = text.split(['[', ']']).nth(1).unwrap_or_default();
    match level {
        "confidentiality" => Finding::no(probe, level),
        _ => Finding::yes(probe, level),
    }
}

fn jit() -> Finding {
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable") {
        // without the setting, it is built in and always on, or not built at all, which loading shows
        Err(_) => Finding::info(Probe::Jit, "not told"),
        Ok(text) if text.trim() == "0" => Finding::limited(Probe::Jit, "off: programs are interpreted"),
        Ok(_) => Finding::yes(Probe::Jit, "on"),
    }
}

fn bpf_file_system(root: &Path) -> Finding {
    let probe = Probe::Bpffs;
    match bpffs::require(root) {
        Ok(()) => match fs::metadata(root) {
            Ok(found) => {
                let (uid, mode) = (found.uid(), found.mode() & 0o7777);
                Finding::yes(probe, format!("{}, owner uid {uid}, mode {mode:04o}", root.display()))
            }
            Err(error) => Finding::no(probe, format_args!("{}: {error}", root.display())),
        },
        Err(BpffsError::Absent { .. }) => Finding::limited(probe, format!("not mounted at {}", root.display()))
            .with_next(match root == Path::new(bpffs::DEFAULT_ROOT) {
                true => probe.next().to_owned(),
                false => format!("`mount -t bpf -o mode=0700 bpf {}`", root.display()),
            }),
        // these say themselves what to do
        Err(error) => Finding { next: None, ..Finding::no(probe, error) },
    }
}

/// A finding for each registry, or one that there is none.
fn registries(root: &Path) -> Vec<Finding> {
    let folder = root.join(REGISTRIES);
    let entries = match bpffs::children(&folder) {
        Ok(entries) => entries,
        Err(error) => return vec![Finding::untried(Probe::Registry, format_args!("{}: {error}", folder.display()))],
    };
    let registries: Vec<Finding> = entries.iter().filter_map(|path| registry(root, path)).collect();
    if registries.is_empty() {
        return vec![Finding::info(Probe::Registry, "none yet: `traits registry create` makes one")];
    }
    registries
}

/// What is in one folder; none if that is no registry's name.
fn registry(root: &Path, path: &PathBuf) -> Option<Finding> {
    let name = RegistryName::new(path.file_name()?.to_str()?).ok()?;
    let probe = Probe::Registry;
    let opened = Registry::options().name(name.clone()).bpffs(root).open();
    Some(match opened.and_then(|registry| Ok((registry.list()?.len(), registry.anchors()?, registry))) {
        Ok((keys, anchors, registry)) => {
            let area = registry.layout().area_len();
            let headrooms: Vec<String> = anchors.iter().filter(|at| **at != 0).map(ToString::to_string).collect();
            let seen = match headrooms.as_slice() {
                [] => "no packet seen yet".to_owned(),
                some => format!("headroom seen in XDP: {}", some.join(", ")),
            };
            let owner = fs::metadata(path).map_or_else(|_| "unknown".to_owned(), |found| found.uid().to_string());
            let text = format!("{name}: {keys} keys, area of {area} bytes, owner uid {owner}; {seen}");
            Finding::yes(probe, text).with_number(area as u64)
        }
        Err(error) => Finding { next: None, ..Finding::no(probe, format_args!("{name}: {error}")) },
    })
}

fn borders(root: &Path) -> Finding {
    let probe = Probe::Borders;
    let open = match border::open_links(root) {
        Ok(open) => open,
        Err(error) => return Finding::untried(probe, format_args!("the interfaces cannot be listed: {error}")),
    };
    if open.is_empty() {
        return Finding::yes(probe, "no link to such a namespace is without a border");
    }
    let named = |link: &OpenLink| interface_name(link.ifindex).unwrap_or_else(|| format!("ifindex {}", link.ifindex));
    let names: Vec<String> = open.iter().map(named).collect();
    let to = |link: &OpenLink| format!("{} to user namespace {}", named(link), link.user_namespace);
    let links: Vec<String> = open.iter().map(to).collect();
    let devices: Vec<String> = names.iter().map(|name| format!("--dev {name}")).collect();
    Finding::limited(probe, format!("without a border: {}", links.join(", ")))
        .with_next(format!("`traits border attach {}` (docs/security.md)", devices.join(" ")))
}

fn cgroup() -> Finding {
    match cgroup_tree() {
        Ok(CgroupTree { path: root, whole }) => {
            let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("unknown").to_owned();
            let part = if whole { "" } else { ", a container's part of the host's tree" };
            Finding::yes(Probe::Cgroup, format!("{}{part}, this process in {own}", root.display()))
        }
        // these say themselves what to do
        Err(AttachError::Cgroup { hint, .. }) => Finding { next: None, ..Finding::no(Probe::Cgroup, hint) },
        Err(error) => Finding { next: None, ..Finding::no(Probe::Cgroup, error) },
    }
}
