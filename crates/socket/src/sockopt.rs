//! getsockopt(2) and setsockopt(2) on bytes. No policy here.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use libc::c_int;

/// Gets an option and answers how many bytes of `value` it has.
pub(crate) fn get(socket: BorrowedFd<'_>, level: c_int, option: c_int, value: &mut [u8]) -> io::Result<usize> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: `value` is writable for the length given.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, value.as_mut_ptr().cast(), &raw mut len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok((len as usize).min(value.len())) }
}

/// Sets an option.
pub(crate) fn set(socket: BorrowedFd<'_>, level: c_int, option: c_int, value: &[u8]) -> io::Result<()> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: `value` is readable for the length given.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
