//! Whether tests of the running kernel run.

use packet_traits_lab::{kernel_tests_enabled, require_root};

/// Whether to run: `false`, after reporting a skip, if kernel tests are switched off.
///
/// # Panics
/// Without root, with a line that says how to run.
#[must_use]
pub fn enabled() -> bool {
    if !kernel_tests_enabled() {
        return false;
    }
    if let Err(how) = require_root() {
        panic!("{how}");
    }
    true
}
