//! Tells on standard error how far the demo is: one line that changes, or a line for each step if nobody looks.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use packet_traits_terminal::output::{self, counted};

/// What is being done.
pub(super) struct Progress {
    live: bool,
    step: String,
}

impl Progress {
    pub(super) fn new() -> Progress {
        Progress { live: io::stderr().is_terminal(), step: String::new() }
    }

    /// Starts the next step.
    pub(super) fn step(&mut self, step: impl Display) {
        self.step = step.to_string();
        if self.live {
            self.packets(0);
        } else {
            output::note(&self.step);
        }
    }

    /// How many packets XDP has seen so far.
    pub(super) fn packets(&self, count: usize) {
        if self.live {
            let packets = if count == 0 { String::new() } else { format!("  {}", counted(count, "packet")) };
            self.write(&format!("{}{packets}", self.step));
        }
    }

    fn write(&self, line: &str) {
        // carriage return, and erase to the end of the line (ECMA-48 EL)
        let mut stderr = io::stderr().lock();
        let _ = write!(stderr, "\r\x1b[K{line}").and_then(|()| stderr.flush());
    }
}

impl Drop for Progress {
    /// Leaves no line behind for other output to run into.
    fn drop(&mut self) {
        if self.live {
            self.write("");
        }
    }
}
