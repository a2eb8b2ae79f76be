//! Socket options as a C program sees them: bytes, lengths and error numbers.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsFd, AsRawFd},
};

use libc::c_int;
use packet_traits_lab::Netns;

/// What bytes are that nobody has written.
pub const UNTOUCHED: u8 = 0xa5;

/// The error number of the last call.
pub fn errno() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or_default()
}

/// getsockopt(2): how long it says the value is, or the error number. It may not write behind `value`.
#[track_caller]
pub fn get(socket: &impl AsFd, level: c_int, option: c_int, value: &mut [u8]) -> Result<usize, c_int> {
    get_units(socket, level, option, value, value.len())
}

/// The same, of an option whose length is not in bytes: `value` is `len` units long.
#[track_caller]
pub fn get_units(
    socket: &impl AsFd,
    level: c_int,
    option: c_int,
    value: &mut [u8],
    len: usize,
) -> Result<usize, c_int> {
    let mut buffer = value.to_vec();
    buffer.extend([UNTOUCHED; 64]);
    let mut len = len as libc::socklen_t;
    // SAFETY: the buffer is longer than the length given.
    let result = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut len)
    };
    let failed = (result != 0).then(errno);
    let (inside, behind) = buffer.split_at(value.len());
    assert!(behind.iter().all(|byte| *byte == UNTOUCHED), "option {option:#x} was written behind the buffer");
    value.copy_from_slice(inside);
    failed.map_or(Ok(len as usize), Err)
}

/// setsockopt(2), or the error number.
pub fn set(socket: &impl AsFd, level: c_int, option: c_int, value: &[u8]) -> Result<(), c_int> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: the value is readable for the length given.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, value.as_ptr().cast(), len) };
    if result == 0 { Ok(()) } else { Err(errno()) }
}

/// An option whose value is an int.
#[track_caller]
pub fn get_int(socket: &impl AsFd, level: c_int, option: c_int) -> Result<c_int, c_int> {
    let mut value = [UNTOUCHED; 4];
    let len = get(socket, level, option, &mut value)?;
    assert_eq!(len, 4);
    Ok(c_int::from_ne_bytes(value))
}

/// Sets an option whose value is an int.
pub fn set_int(socket: &impl AsFd, level: c_int, option: c_int, value: c_int) -> Result<(), c_int> {
    set(socket, level, option, &value.to_ne_bytes())
}

/// The number by which the kernel tells namespaces apart.
pub fn netns_cookie(netns: &Netns) -> u64 {
    let socket = netns.enter(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let mut cookie = [0; 8];
    get(&socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, &mut cookie).unwrap();
    u64::from_ne_bytes(cookie)
}
