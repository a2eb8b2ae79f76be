//! Ctrl-C in commands that must not end between two steps: they are told, take back what they did, and end with status 130.

use std::{
    error::Error,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Exit status after Ctrl-C: 128 and the number of SIGINT, as shells have it for commands that SIGINT ends.
pub const INTERRUPTED: u8 = 130;

/// From when it is made on, Ctrl-C does not end the process.
#[derive(Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Once in a process.
    ///
    /// # Errors
    /// The second time, and those of sigaction(2).
    pub fn catch() -> Result<Interrupt, ctrlc::Error> {
        let came = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&came);
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;
        Ok(Interrupt(came))
    }

    /// Whether there was a Ctrl-C.
    pub fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// What a command came back with, or that it was interrupted. A failure then is none of its own: Ctrl-C also reaches the
    /// processes that it runs.
    ///
    /// # Errors
    /// [`Interrupted`], and the outcome's own.
    pub fn over<T>(&self, outcome: Result<T, Box<dyn Error>>, interrupted: Interrupted) -> Result<T, Box<dyn Error>> {
        if self.came() { Err(interrupted.into()) } else { outcome }
    }
}

/// The error of a command that ends because of Ctrl-C: what it leaves.
#[derive(Debug)]
pub struct Interrupted(pub &'static str);

impl Interrupted {
    /// It came too late to change anything.
    pub const ALL_DONE: Interrupted = Interrupted("when all was done");
    /// What was made is gone.
    pub const NOTHING_LEFT: Interrupted = Interrupted("nothing is left");
    /// Nothing had been begun.
    pub const NOTHING_CHANGED: Interrupted = Interrupted("nothing was changed");
    /// What was attached is detached.
    pub const NOTHING_ATTACHED: Interrupted = Interrupted("nothing stays attached");
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interrupted, {}", self.0)
    }
}

impl Error for Interrupted {}
