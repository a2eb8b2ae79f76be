//! The `traits` command. One file per command; what they print goes through [`output`].
//!
//! Exit status: 0 done, 1 failed (the reason is on standard error), 2 wrong usage, 130 interrupted (Ctrl-C).

mod bench;
mod bind;
mod clock;
mod demo;
mod deploy;
mod doctor;
mod interrupt;
mod keys;
mod mode;
mod output;
mod policy;
mod registry;
mod sockets;
mod trace;

use std::{
    error::Error,
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use clap::{ArgAction, Parser, Subcommand};
use libbpf_rs::PrintLevel;
use packet_traits::{
    bind::BindError,
    bpffs,
    deployment::DeployError,
    registry::{RegistryName, RegistryOptions},
    socket::programs::SocketProgramsError,
};
use packet_traits_trace::TraceError;
use tracing_subscriber::EnvFilter;

use crate::interrupt::{INTERRUPTED, Interrupted};

/// What a command comes back with.
type Outcome = Result<(), Box<dyn Error>>;

const EXAMPLES: &str = "\
Examples:
  traits demo                                see traits on real traffic, in namespaces of its own
  traits registry create                     make the registry of this host
  traits keys add tenant u32                 register a key
  traits keys list                           see who holds what
  traits --registry lab registry create      have a second registry beside it

Exit status: 0 done, 1 failed (the reason is on standard error), 2 wrong usage,
130 interrupted by Ctrl-C (what was begun is taken back).";

/// Rich metadata for network packets: typed values with names that travel with a packet through the kernel.
#[derive(Parser)]
#[command(name = "traits", version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(clap::Args)]
struct Global {
    /// Registry to work on
    #[arg(long, global = true, value_name = "NAME", default_value_t)]
    registry: RegistryName,
    /// BPF file system that holds the registry
    #[arg(long, global = true, value_name = "PATH", default_value = bpffs::DEFAULT_ROOT)]
    bpffs: PathBuf,
    /// Say what is being done, on standard error; twice for more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

impl Global {
    /// The registry these options name.
    fn options(&self) -> RegistryOptions {
        RegistryOptions::default().name(self.registry.clone()).bpffs(&self.bpffs)
    }

    fn log(&self) {
        let level = match self.verbose {
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
        libbpf_rs::set_print(Some((PrintLevel::Debug, log_libbpf)));
    }
}

#[derive(Subcommand)]
enum Command {
    /// Create, show or remove a registry
    #[command(subcommand)]
    Registry(registry::Command),
    /// Register, list or remove keys
    #[command(subcommand)]
    Keys(keys::Command),
    /// Measure traits on this machine
    #[command(subcommand)]
    Bench(bench::Command),
    /// Serve traits to applications by socket options, and look at their sockets
    #[command(subcommand)]
    Sockets(sockets::Command),
    Check(policy::check::Options),
    Compile(policy::compile::Options),
    Explain(policy::explain::Options),
    Bind(bind::Options),
    Demo(demo::Options),
    Doctor(doctor::Options),
    Up(deploy::Up),
    Down(deploy::Down),
    Status(deploy::Status),
    Trace(trace::Options),
    Top(trace::top::Options),
    Log(deploy::Log),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.global.log();
    let outcome = match &cli.command {
        Command::Registry(command) => registry::run(command, &cli.global),
        Command::Keys(command) => keys::run(command, &cli.global),
        Command::Sockets(command) => sockets::run(command, &cli.global),
        Command::Check(command) => policy::check::run(command, &cli.global),
        Command::Compile(command) => policy::compile::run(command, &cli.global),
        Command::Explain(command) => policy::explain::run(command, &cli.global),
        Command::Bind(options) => bind::run(options, &cli.global),
        Command::Demo(options) => match demo::run(options) {
            Ok(status) => return status,
            Err(error) => Err(error),
        },
        Command::Doctor(options) => match doctor::run(options, &cli.global) {
            Ok(status) => return status,
            Err(error) => Err(error),
        },
        Command::Up(command) => deploy::up(command, &cli.global),
        Command::Down(command) => deploy::down(command, &cli.global),
        Command::Status(command) => deploy::status(command, &cli.global),
        Command::Log(command) => deploy::log(command, &cli.global),
        Command::Bench(command) => bench::run(command),
        Command::Trace(options) => trace::run(options, &cli.global),
        Command::Top(options) => trace::top::run(options, &cli.global),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the output has seen enough, as in `traits keys list | head`.
        Err(error) if is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(log) = verifier_log(error.as_ref()).filter(|_| cli.global.verbose > 0) {
                output::note(log);
            }
            output::note(format_args!("traits: {error}"));
            if error.is::<Interrupted>() { ExitCode::from(INTERRUPTED) } else { ExitCode::FAILURE }
        }
    }
}

/// What the verifier wrote about a program it refused.
fn verifier_log<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e str> {
    if let Some(DeployError::Bind(error)) = error.downcast_ref() {
        return error.verifier_log();
    }
    if let Some(error) = error.downcast_ref::<TraceError>() {
        return error.verifier_log();
    }
    if let Some(error) = error.downcast_ref::<SocketProgramsError>() {
        return error.verifier_log();
    }
    error.downcast_ref::<BindError>()?.verifier_log()
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

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
