//! The error of this crate: what was tried, on what, and why the kernel or a command refused.

use std::{fmt, io};

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// An operating-system error together with what was being done.
///
/// `Debug` prints the same as `Display`, so that a test which unwraps says what a person can read.
pub struct Error {
    context: String,
    cause: io::Error,
}

impl Error {
    pub(crate) fn new(context: impl Into<String>, cause: io::Error) -> Self {
        Self { context: context.into(), cause }
    }

    /// An error that the operating system did not number: `reason` says why.
    pub(crate) fn other(context: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::new(context, io::Error::other(reason.into()))
    }

    /// An error for something that did not happen in time.
    pub(crate) fn timed_out(context: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::new(context, io::Error::new(io::ErrorKind::TimedOut, reason.into()))
    }

    /// The kind of the underlying error, [`io::ErrorKind::TimedOut`] for anything that did not happen in time.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.cause.kind()
    }

    /// The errno behind this error, if the operating system gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.cause.raw_os_error()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.context, self.cause)?;
        if self.cause.raw_os_error() == Some(libc::EPERM) {
            f.write_str("; run as root")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::new(error.kind(), error)
    }
}

/// Adds what was tried to an [`io::Result`].
pub(crate) trait Context<T> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| {
            // A receive timeout reports EAGAIN; "Resource temporarily unavailable" would tell a person nothing.
            if cause.kind() == io::ErrorKind::WouldBlock {
                Error::timed_out(what(), "nothing came in time")
            } else {
                Error::new(what(), cause)
            }
        })
    }
}
