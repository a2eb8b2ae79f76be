//! What the kernel knows of a loaded program: its id, type and name.

use std::ffi::CStr;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use libbpf_sys::{bpf_prog_info, bpf_prog_type};

use super::error::{AttachError, Attempt};
use super::link::check;

/// Identity of a loaded program.
pub(crate) struct Program {
    pub(crate) id: u32,
    pub(crate) name: String,
    /// When it was loaded, counted from when the machine booted.
    pub(crate) loaded_after_boot: Duration,
    type_: bpf_prog_type,
}

impl Program {
    /// Asks the kernel about `fd`; the error is an errno.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Result<Self, i32> {
        let mut info = bpf_prog_info::default();
        let mut len = size_of::<bpf_prog_info>() as u32;
        // SAFETY: `info` is writable for `len` bytes, and zeroed, so the kernel follows no pointer in it.
        check(unsafe { libbpf_sys::bpf_prog_get_info_by_fd(fd.as_raw_fd(), &mut info, &mut len) })?;
        // SAFETY: the kernel fills `name` with at most BPF_OBJ_NAME_LEN - 1 characters; the rest stays zero.
        let name = unsafe { CStr::from_ptr(info.name.as_ptr()) };
        Ok(Self {
            id: info.id,
            name: name.to_string_lossy().into_owned(),
            loaded_after_boot: Duration::from_nanos(info.load_time),
            type_: info.type_,
        })
    }

    /// The program with this id, if it is still loaded and the caller may look.
    pub(crate) fn by_id(id: u32) -> Option<Self> {
        Self::of(std::os::fd::AsFd::as_fd(&Self::open(id)?)).ok()
    }

    /// Opens the program with this id, if it is still loaded and the caller may.
    pub(crate) fn open(id: u32) -> Option<OwnedFd> {
        // SAFETY: takes a number, returns a descriptor that we own or a negative errno.
        let fd = check(unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) }).ok()?;
        // SAFETY: `fd` was just returned as a new descriptor and nothing else owns it.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// The program behind `fd`, which must be of the type that the hook runs.
    ///
    /// Without this check the kernel answers a program of the wrong type with EINVAL, as it does many other mistakes.
    pub(super) fn expect(fd: BorrowedFd<'_>, type_: bpf_prog_type, attempt: &Attempt) -> Result<Self, AttachError> {
        let program = Self::of(fd).map_err(|errno| {
            attempt.refused(
                errno,
                "the descriptor is not one of a loaded BPF program",
                "load the object and pass the program's descriptor",
            )
        })?;
        if program.type_ == type_ {
            return Ok(program);
        }
        Err(AttachError::WrongProgram {
            attempt: attempt.clone(),
            program: program.to_string(),
            found: type_name(program.type_),
            expected: type_name(type_),
        })
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            write!(f, "program {}", self.id)
        } else {
            write!(f, "program {} ({})", self.id, self.name)
        }
    }
}

/// libbpf's name of a program type, such as `sched_cls`.
pub(crate) fn type_name(type_: bpf_prog_type) -> &'static str {
    // SAFETY: returns a pointer to a string constant of libbpf, or null for a type libbpf does not know.
    let name = unsafe { libbpf_sys::libbpf_bpf_prog_type_str(type_) };
    if name.is_null() {
        return "unknown";
    }
    // SAFETY: not null, so a NUL-terminated constant that lives as long as the process.
    let name: &'static CStr = unsafe { CStr::from_ptr(name) };
    name.to_str().unwrap_or("unknown")
}
