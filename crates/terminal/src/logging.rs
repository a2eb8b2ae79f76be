//! Messages about what is being done, on standard error.

use std::io::{self, IsTerminal};

use libbpf_rs::PrintLevel;
use tracing_subscriber::EnvFilter;

/// Has messages go to standard error: warnings, with `-v` once what is being done, twice more. The environment variable
/// `RUST_LOG` says otherwise.
pub fn log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        // its own complaint that standard error is closed would panic, since that is where it goes
        .log_internal_errors(false)
        .init();
    // else it is not even written
    let listened = tracing::enabled!(target: "libbpf", tracing::Level::DEBUG);
    libbpf_rs::set_print(listened.then_some((PrintLevel::Debug, log_libbpf)));
}

/// libbpf's own messages go where ours go, and only if they are asked for: its errors come back as ours.
#[expect(clippy::needless_pass_by_value, reason = "the signature is libbpf-rs' PrintCallback")]
fn log_libbpf(level: PrintLevel, message: String) {
    let message = message.trim_end();
    match level {
        PrintLevel::Debug => tracing::trace!(target: "libbpf", "{message}"),
        _ => tracing::debug!(target: "libbpf", "{message}"),
    }
}
