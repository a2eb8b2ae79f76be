//! The few bpf(2) commands that the tests need, so that the laboratory depends on no BPF library.

#![allow(dead_code, reason = "each test file uses a part")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_CREATE: i32 = 0;
const OBJ_PIN: i32 = 6;
const OBJ_GET: i32 = 7;
const MAP_GET_FD_BY_ID: i32 = 14;
const OBJ_GET_INFO_BY_FD: i32 = 15;

/// The first bytes of `union bpf_attr` (include/uapi/linux/bpf.h), as 32-bit words.
type Attr = [u32; 8];

fn bpf(command: i32, attr: &mut Attr) -> io::Result<RawFd> {
    // SAFETY: `attr` is as long as the call is told, and the pointers in it, if any, are to memory the callers hold.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(RawFd::try_from(result).expect("an fd is an int")) }
}

fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers pass a descriptor that the kernel has just returned.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn halves(address: u64) -> [u32; 2] {
    let bytes = address.to_ne_bytes();
    [0, 4].map(|at| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes")))
}

fn path_halves(path: &CString) -> [u32; 2] {
    halves(path.as_ptr().addr() as u64)
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL in the path")
}

/// An array map of one u32.
pub(crate) fn create_map() -> io::Result<OwnedFd> {
    const ARRAY: u32 = 2;
    bpf(MAP_CREATE, &mut [ARRAY, 4, 4, 1, 0, 0, 0, 0]).map(own)
}

/// Pins a map.
pub(crate) fn pin(map: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = c_path(path);
    let [low, high] = path_halves(&path);
    bpf(OBJ_PIN, &mut [low, high, map.as_raw_fd().cast_unsigned(), 0, 0, 0, 0, 0]).map(drop)
}

/// Opens a pinned map.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path);
    let [low, high] = path_halves(&path);
    bpf(OBJ_GET, &mut [low, high, 0, 0, 0, 0, 0, 0]).map(own)
}

/// The id of a map.
pub(crate) fn map_id(map: &OwnedFd) -> io::Result<u32> {
    let mut info = [0_u32; 2]; // struct bpf_map_info: type, id, …
    let [low, high] = halves((&raw mut info).addr() as u64);
    bpf(OBJ_GET_INFO_BY_FD, &mut [map.as_raw_fd().cast_unsigned(), 8, low, high, 0, 0, 0, 0])?;
    Ok(info[1])
}

/// Whether a map with this id exists.
pub(crate) fn map_exists(id: u32) -> bool {
    bpf(MAP_GET_FD_BY_ID, &mut [id, 0, 0, 0, 0, 0, 0, 0]).map(own).is_ok()
}
