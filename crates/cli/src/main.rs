//! The `traits` command. One file per command; what they print goes through [`output`].
//!
//! Exit status: 0 done, 1 failed (the reason is on standard error), 2 wrong usage, 130 interrupted (Ctrl-C).

mod bench;
mod bind;
mod border;
mod clock;
mod demo;
mod deploy;
mod doctor;
mod global;
mod interrupt;
mod keys;
mod mode;
mod output;
mod policy;
mod registry;
mod sockets;
mod trace;

use std::{error::Error, io, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use packet_traits::{
    bind::BindError, deployment::DeployError, rotate::RotateError, socket::programs::SocketProgramsError,
};
use packet_traits_trace::TraceError;

use crate::{
    global::Global,
    interrupt::{INTERRUPTED, Interrupted},
};

/// What a command comes back with.
type Outcome = Result<(), Box<dyn Error>>;

const EXAMPLES: &str = "\
Examples:
  traits demo                            see traits on real traffic
  traits registry create                 make the registry of this host
  traits keys add tenant u32             register a key
  traits up edge.traits --dev eth0       attach the programs of a policy
  traits --registry lab registry create  make a second registry

Exit status: 0 done, 1 failed (the reason is on standard error), 2 wrong usage, 130 interrupted by Ctrl-C (what was \
begun is undone).";

/// Rich metadata for network packets: typed values with names that travel with a packet through the kernel.
#[derive(Parser)]
#[command(name = "traits", version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
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
    /// Keep traits from crossing links to network namespaces that are not trusted
    #[command(subcommand)]
    Border(border::Command),
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

/// Reads the command line. Wrong usage ends the process.
fn parse() -> Cli {
    let matches = global::hide_not_taken(Cli::command()).get_matches();
    let cli = global::refuse_not_taken(&matches).and_then(|()| Cli::from_arg_matches(&matches));
    cli.unwrap_or_else(|error| error.format(&mut Cli::command()).exit())
}

fn main() -> ExitCode {
    let cli = parse();
    cli.global.log();
    let outcome = match &cli.command {
        Command::Registry(command) => registry::run(command, &cli.global),
        Command::Keys(command) => keys::run(command, &cli.global),
        Command::Sockets(command) => sockets::run(command, &cli.global),
        Command::Border(command) => border::run(command, &cli.global),
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
            let mut message = error.to_string();
            if let Some(option) = cli.global.missing_option(&message) {
                message += &format!(" (with {option}, as here)");
            }
            output::note(format_args!("traits: {message}"));
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
    if let Some(error) = error.downcast_ref::<RotateError>() {
        return error.verifier_log();
    }
    error.downcast_ref::<BindError>()?.verifier_log()
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_do_not_contradict_each_other() {
        global::hide_not_taken(Cli::command()).debug_assert();
    }
}
