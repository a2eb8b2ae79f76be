//! Interfaces of this network namespace, by name.

use std::ffi::CString;

use crate::PolicyError;

/// The index of an interface of this network namespace.
///
/// # Errors
/// [`PolicyError::NoInterface`].
pub fn index(name: &str) -> Result<u32, PolicyError> {
    let missing = || PolicyError::NoInterface { name: name.to_owned() };
    let c_name = CString::new(name).map_err(|_| missing())?;
    // SAFETY: if_nametoindex(3) reads a NUL-terminated name.
    match unsafe { libc::if_nametoindex(c_name.as_ptr()) } {
        0 => Err(missing()),
        index => Ok(index),
    }
}
