//! Maps and helpers that programs of traits use.

use std::{
    ffi::CStr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

use libbpf_sys::{
    BPF_F_CLONE, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_FUNC_loop, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_RINGBUF,
    BPF_MAP_TYPE_SK_STORAGE, BPF_PROG_TYPE_CGROUP_SKB, bpf_map_create_opts, bpf_map_type,
};

use super::{Finding, Probe};
use crate::insn::words;

const NAME: &CStr = c"traits_doctor";

/// A ring buffer is a power of two of pages, and this is of the largest.
const RING_LEN: u32 = 1 << 16;

/// Makes a map of each kind, and asks for each helper.
pub fn maps() -> Vec<Finding> {
    vec![
        Finding::tried(Probe::RingBuffer, create(BPF_MAP_TYPE_RINGBUF, 0, 0, RING_LEN, 0)),
        Finding::tried(Probe::MmapableArray, mapped_array()),
        Finding::tried(Probe::SkStorage, socket_storage()),
        Finding::tried(Probe::Loop, helper(BPF_FUNC_loop)),
    ]
}

/// Makes a map.
pub(super) fn create(type_: bpf_map_type, key: u32, value: u32, entries: u32, flags: u32) -> Result<OwnedFd, String> {
    create_with(type_, key, value, entries, bpf_map_create_opts { map_flags: flags, ..Default::default() })
}

fn create_with(
    type_: bpf_map_type,
    key: u32,
    value: u32,
    entries: u32,
    options: bpf_map_create_opts,
) -> Result<OwnedFd, String> {
    let options = bpf_map_create_opts { sz: size_of::<bpf_map_create_opts>() as libbpf_sys::size_t, ..options };
    // SAFETY: the name is NUL-terminated, and the options say their size and hold no pointers.
    let map = unsafe { libbpf_sys::bpf_map_create(type_, NAME.as_ptr(), key, value, entries, &options) };
    if map < 0 {
        return Err(format!("the kernel does not make such a map ({})", words(-map)));
    }
    // SAFETY: the call succeeded, so it is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(map) })
}

/// An array, written through the process's memory.
fn mapped_array() -> Result<(), String> {
    let page = 4096;
    let map = create(BPF_MAP_TYPE_ARRAY, 4, 8, 1, BPF_F_MMAPABLE)?;
    // SAFETY: asks for a new mapping of a descriptor that is open; nothing is at that address before.
    let at = unsafe {
        libc::mmap(ptr::null_mut(), page, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, map.as_raw_fd(), 0)
    };
    if at == libc::MAP_FAILED {
        return Err(format!("the array is not mapped ({})", std::io::Error::last_os_error()));
    }
    // SAFETY: this is the mapping that was just made, and nothing refers to it.
    unsafe { libc::munmap(at, page) };
    Ok(())
}

/// Storage of sockets, whose entries must have a BTF type: here int to int.
fn socket_storage() -> Result<(), String> {
    const BTF_INT_SIGNED: i32 = 1; // include/uapi/linux/btf.h
    const INT: u32 = 1; // the number of the first type
    // SAFETY: takes nothing; null or a new object, which is freed below.
    let btf = unsafe { libbpf_sys::btf__new_empty() };
    if btf.is_null() {
        return Err("cannot make BTF".to_owned());
    }
    // SAFETY: `btf` is one that was just made, the name is NUL-terminated, and the descriptor belongs to `btf`.
    let fd = unsafe {
        libbpf_sys::btf__add_int(btf, c"int".as_ptr(), 4, BTF_INT_SIGNED);
        match libbpf_sys::btf__load_into_kernel(btf) {
            0 => Ok(libbpf_sys::btf__fd(btf)),
            error => Err(format!("the kernel does not load BTF ({})", words(-error))),
        }
    };
    let made = fd.and_then(|fd| {
        let options = bpf_map_create_opts {
            map_flags: BPF_F_NO_PREALLOC | BPF_F_CLONE,
            btf_fd: fd.cast_unsigned(),
            btf_key_type_id: INT,
            btf_value_type_id: INT,
            ..Default::default()
        };
        create_with(BPF_MAP_TYPE_SK_STORAGE, 4, 4, 0, options)
    });
    // SAFETY: made above and not used any more; this closes its descriptor too.
    unsafe { libbpf_sys::btf__free(btf) };
    made.map(drop)
}

/// Whether programs may call a helper, by loading one that does and looking at why it is refused.
fn helper(number: u32) -> Result<(), String> {
    // SAFETY: takes numbers and null for no options.
    match unsafe { libbpf_sys::libbpf_probe_bpf_helper(BPF_PROG_TYPE_CGROUP_SKB, number, ptr::null()) } {
        1 => Ok(()),
        0 => Err("this kernel has no such helper".to_owned()),
        error => Err(format!("the kernel does not say ({})", words(-error))),
    }
}
