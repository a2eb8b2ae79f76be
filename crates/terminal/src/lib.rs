//! What the commands of packet traits share: `traits` and `traits-bench`.
//!
//! Its interface changes with them.

pub mod advice;
pub mod clock;
pub mod interrupt;
mod logging;
mod mode;
pub mod output;

use std::{error::Error, io, path::Path, process::ExitCode};

use packet_traits::{bind::BindError, rotate::RotateError, socket_programs::SocketProgramsError};
use packet_traits_deploy::PolicyError;
use packet_traits_trace::TraceError;

pub use self::{logging::log, mode::Mode};

/// What a command comes back with.
pub type Outcome = Result<(), Box<dyn Error>>;

/// The exit status of a command, whose error is printed with what to do about it: 0 done, 1 failed, 130 interrupted. `bpffs` is
/// the BPF file system that it worked in. If the command is `verbose`, the verifier's log about a program that it refused comes
/// first.
pub fn exit(outcome: Outcome, bpffs: &Path, verbose: bool) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output has seen enough, as in `traits keys list | head`.
        Err(error) if is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(log) = verifier_log(error.as_ref()).filter(|_| verbose) {
                output::note(log);
            }
            output::note(format_args!("traits: {}", advice::message(error.as_ref(), bpffs)));
            match error.is::<interrupt::Interrupted>() {
                true => ExitCode::from(interrupt::INTERRUPTED),
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// Whether the other end of standard output was closed.
pub fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// What the verifier wrote about a program that it refused, if that is what the error is about.
fn verifier_log<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e str> {
    if let Some(about) = error.downcast_ref::<advice::About>() {
        return verifier_log(about.error.as_ref());
    }
    if let Some(error) = error.downcast_ref::<PolicyError>() {
        return error.verifier_log();
    }
    if let Some(error) = error.downcast_ref::<TraceError>() {
        return error.verifier_log();
    }
    if let Some(error) = error.downcast_ref::<SocketProgramsError>() {
        return error.verifier_log();
    }
    if let Some(error) = error.downcast_ref::<RotateError>() {
        return error.verifier_log();
    }
    error.downcast_ref::<BindError>()?.verifier_log()
}
