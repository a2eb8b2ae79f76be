//! The `traits` command. One file per command; what they print goes through [`output`].
//!
//! Exit status: 0 done, 1 failed (the reason is on standard error), 2 wrong usage, 130 interrupted (Ctrl-C).

mod bench;
mod bind;
mod border;
mod deploy;
mod doctor;
mod generate;
mod global;
mod keys;
mod output;
mod policy;
mod registry;
mod sockets;
mod trace;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use packet_traits_terminal::{Mode, Outcome, advice, clock, interrupt};

use crate::global::Global;

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
    /// Serve traits to applications by socket options, and look at their sockets
    #[command(subcommand)]
    Sockets(sockets::Command),
    /// Keep traits from crossing links to network namespaces that are not trusted
    #[command(subcommand)]
    Border(border::Command),
    Check(policy::check::Options),
    Compile(policy::compile::Options),
    Explain(policy::explain::Options),
    Bench(bench::Options),
    Bind(bind::Options),
    Demo(packet_traits_demo::Options),
    Doctor(doctor::Options),
    Up(deploy::Up),
    Down(deploy::Down),
    Status(deploy::Status),
    Trace(trace::Options),
    Top(trace::top::Options),
    Log(deploy::Log),
    Completions(generate::Completions),
    Man(generate::Man),
}

/// The commands with the options that they take.
fn described() -> clap::Command {
    global::hide_not_taken(Cli::command())
}

/// Reads the command line. Wrong usage ends the process.
fn parse() -> Cli {
    let matches = described().get_matches();
    let cli = global::refuse_not_taken(&matches).and_then(|()| Cli::from_arg_matches(&matches));
    cli.unwrap_or_else(|error| error.format(&mut Cli::command()).exit())
}

fn main() -> ExitCode {
    let cli = parse();
    packet_traits_terminal::log(cli.global.verbose);
    let outcome = match &cli.command {
        Command::Registry(command) => registry::run(command, &cli.global),
        Command::Keys(command) => keys::run(command, &cli.global),
        Command::Sockets(command) => sockets::run(command, &cli.global),
        Command::Border(command) => border::run(command, &cli.global),
        Command::Check(command) => policy::check::run(command, &cli.global),
        Command::Compile(command) => policy::compile::run(command, &cli.global),
        Command::Explain(command) => policy::explain::run(command, &cli.global),
        Command::Bind(options) => bind::run(options, &cli.global),
        Command::Demo(options) => match packet_traits_demo::run(options) {
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
        Command::Bench(options) => bench::run(options, &cli.global),
        Command::Trace(options) => trace::run(options, &cli.global),
        Command::Top(options) => trace::top::run(options, &cli.global),
        Command::Completions(options) => generate::completions(options, described()),
        Command::Man(options) => generate::man(options, described()),
    };
    packet_traits_terminal::exit(outcome, &cli.global.bpffs, cli.global.verbose > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_do_not_contradict_each_other() {
        global::hide_not_taken(Cli::command()).debug_assert();
    }
}
