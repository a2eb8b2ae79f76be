//! How far a measurement is, on a terminal.

use std::io::{IsTerminal, Write, stderr};

pub(super) fn show(done: usize, rounds: u32) {
    let mut stderr = stderr();
    if stderr.is_terminal() && done.is_multiple_of(10) {
        // nothing depends on it
        let _ = write!(stderr, "\rround {done} of {rounds}");
    }
}

pub(super) fn hide() {
    let mut stderr = stderr();
    if stderr.is_terminal() {
        // as above
        let _ = write!(stderr, "\r\x1b[K");
    }
}
