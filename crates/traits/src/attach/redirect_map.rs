//! Programs in the entries of a DEVMAP or a CPUMAP: a second XDP program, run on each frame that the first one
//! redirects through the entry, on its way out of an interface or on another CPU.
//!
//! The map holds the program, so there is no [`Attachment`](super::Attachment): [`remove`] the entry, or let the map go.

use std::os::fd::{AsRawFd, BorrowedFd};

use libbpf_sys::{
    BPF_MAP_TYPE_CPUMAP, BPF_MAP_TYPE_DEVMAP, BPF_MAP_TYPE_DEVMAP_HASH, BPF_PROG_TYPE_XDP, bpf_cpumap_val,
    bpf_cpumap_val__bindgen_ty_1, bpf_devmap_val, bpf_devmap_val__bindgen_ty_1, bpf_map_info,
};

use super::error::{AttachError, Attempt};
use super::feature::Feature;
use super::hook::Hook;
use super::link::check;
use super::program::Program;
use super::target::{Target, interface_name};

/// Sets an entry of a DEVMAP or DEVMAP_HASH: frames redirected to `key` leave through `ifindex`, after `program`
/// (`SEC("xdp/devmap")`) if there is one.
///
/// # Errors
/// [`AttachError::NoDevice`]; [`AttachError::WrongProgram`]; [`AttachError::Refused`] if the map is of another type, or
/// its values have no room for a program, or the program is not of the devmap kind; [`AttachError::Unsupported`] on
/// kernels before 5.8.
pub fn set_device(
    map: BorrowedFd<'_>,
    key: u32,
    ifindex: u32,
    program: Option<BorrowedFd<'_>>,
) -> Result<(), AttachError> {
    let attempt = Attempt::new(Hook::Devmap, entry(map, key));
    let types = [BPF_MAP_TYPE_DEVMAP, BPF_MAP_TYPE_DEVMAP_HASH];
    expect_map(map, &types, program.is_some(), &attempt)?;
    if interface_name(ifindex).is_none() {
        return Err(AttachError::NoDevice { hook: Hook::Devmap, ifindex, errno: libc::ENODEV });
    }
    let value =
        bpf_devmap_val { ifindex, bpf_prog: bpf_devmap_val__bindgen_ty_1 { fd: program_fd(program, &attempt)? } };
    update(map, key, &value).map_err(|errno| match errno {
        libc::EINVAL if program.is_some() && !Feature::DevmapProgram.expected_here() => {
            attempt.unsupported(Feature::DevmapProgram, errno, "")
        }
        libc::E2BIG => attempt.refused(errno, "the map is too small for that key", "raise its max_entries"),
        _ => attempt.refused(
            errno,
            "the map refused the entry",
            "the program must be SEC(\"xdp/devmap\"), and the interface's driver must be able to send XDP frames",
        ),
    })
}

/// Sets an entry of a CPUMAP: frames redirected to `cpu` are queued, at most `queue_size` (frames) at a time, and go on
/// there, after `program` (`SEC("xdp/cpumap")`) if there is one.
///
/// # Errors
/// [`AttachError::WrongProgram`]; [`AttachError::Refused`] if the map is of another type, or its values have no room for
/// a program, or there is no such CPU, or the queue is longer than 16384, or the program is not of the cpumap kind;
/// [`AttachError::Unsupported`] on kernels before 5.9.
pub fn set_cpu(
    map: BorrowedFd<'_>,
    cpu: u32,
    queue_size: u32,
    program: Option<BorrowedFd<'_>>,
) -> Result<(), AttachError> {
    let attempt = Attempt::new(Hook::Cpumap, entry(map, cpu));
    expect_map(map, &[BPF_MAP_TYPE_CPUMAP], program.is_some(), &attempt)?;
    let value = bpf_cpumap_val {
        qsize: queue_size,
        bpf_prog: bpf_cpumap_val__bindgen_ty_1 { fd: program_fd(program, &attempt)? },
    };
    update(map, cpu, &value).map_err(|errno| match errno {
        libc::EINVAL if program.is_some() && !Feature::CpumapProgram.expected_here() => {
            attempt.unsupported(Feature::CpumapProgram, errno, "")
        }
        libc::E2BIG => attempt.refused(errno, "the map is too small for that CPU", "raise its max_entries"),
        libc::ENODEV => attempt.refused(errno, "there is no such CPU", "see /sys/devices/system/cpu/possible"),
        libc::EOVERFLOW => attempt.refused(errno, "the queue is too long", "16384 frames at most"),
        _ => attempt.refused(
            errno,
            "the map refused the entry",
            "the program must be SEC(\"xdp/cpumap\"), and the queue 1 to 16384 frames",
        ),
    })
}

/// Removes an entry of a DEVMAP or CPUMAP, and its program with it. An entry that is not there is fine.
///
/// # Errors
/// [`AttachError::Detach`] if the kernel refuses.
pub fn remove(map: BorrowedFd<'_>, key: u32) -> Result<(), AttachError> {
    // SAFETY: the key is a u32, as the keys of these maps are, and outlives the call.
    let result = check(unsafe { libbpf_sys::bpf_map_delete_elem(map.as_raw_fd(), (&raw const key).cast()) });
    match result {
        Ok(_) | Err(libc::ENOENT) => Ok(()),
        Err(errno) => Err(AttachError::Detach {
            attempt: Attempt::new(Hook::Devmap, entry(map, key)),
            why: "the map did not remove the entry".into(),
            hint: "check the key, and that the descriptor is one of a DEVMAP or CPUMAP",
            errno,
        }),
    }
}

fn map_info(map: BorrowedFd<'_>) -> Result<bpf_map_info, i32> {
    let mut info = bpf_map_info::default();
    let mut len = size_of::<bpf_map_info>() as u32;
    // SAFETY: `info` is writable for `len` bytes, and zeroed, so the kernel follows no pointer in it.
    check(unsafe { libbpf_sys::bpf_map_get_info_by_fd(map.as_raw_fd(), &mut info, &mut len) })?;
    Ok(info)
}

fn entry(map: BorrowedFd<'_>, key: u32) -> Target {
    let map = map_info(map).map_or(0, |info| info.id);
    Target::MapEntry { map, key }
}

/// A map of another type would take the value as something else, and one with 4-byte values would leave the program out
/// without a word.
fn expect_map(map: BorrowedFd<'_>, types: &[u32], with_program: bool, attempt: &Attempt) -> Result<(), AttachError> {
    let info = map_info(map).map_err(|errno| {
        let why = "the descriptor is not one of a BPF map";
        attempt.refused(errno, why, "pass the map's descriptor")
    })?;
    if !types.contains(&info.type_) {
        let why = format!("the map is not of type {}", attempt.hook);
        return Err(attempt.refused(libc::EINVAL, why, "`bpftool map` shows its type"));
    }
    if with_program && info.value_size < size_of::<bpf_devmap_val>() as u32 {
        return Err(attempt.refused(
            libc::EINVAL,
            "the map's values have no room for a program",
            "declare its value as struct bpf_devmap_val or struct bpf_cpumap_val (8 bytes)",
        ));
    }
    Ok(())
}

/// The descriptor to put in the value; -1 for none (net/core/xdp: `kernel/bpf/devmap.c`, `cpumap.c` take only > 0).
fn program_fd(program: Option<BorrowedFd<'_>>, attempt: &Attempt) -> Result<i32, AttachError> {
    let Some(program) = program else {
        return Ok(-1);
    };
    Program::expect(program, BPF_PROG_TYPE_XDP, attempt)?;
    Ok(program.as_raw_fd())
}

/// `value` must be at least as large as the values of the map.
fn update<T>(map: BorrowedFd<'_>, key: u32, value: &T) -> Result<(), i32> {
    // SAFETY: the key is a u32, as the keys of these maps are; `value` is as large as the largest value such a map has
    // (kernel/bpf/devmap.c and cpumap.c allow 4 and 8 bytes), and initialised.
    check(unsafe {
        libbpf_sys::bpf_map_update_elem(map.as_raw_fd(), (&raw const key).cast(), std::ptr::from_ref(value).cast(), 0)
    })
    .map(drop)
}
