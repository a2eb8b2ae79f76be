//! `traits bench` (the program `traits-bench`): measures traits on this machine, always against a baseline of the same run.

mod border;
mod containers;
mod ops;
mod policy;
mod progress;
mod rig;
mod rounds;
mod sockets;
mod statistics;
mod trace;
mod traffic;

use std::{path::Path, process::ExitCode};

use clap::{ArgAction, Parser, Subcommand};
use packet_traits::bpffs::DEFAULT_ROOT;
use packet_traits_terminal::Outcome;

/// Measure traits on this machine
#[derive(Parser)]
#[command(name = "traits bench", bin_name = "traits bench", version)]
struct Cli {
    /// Say what is being done, on standard error; twice for more
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Global options")]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure what one call costs, beside a raw struct, a helper and a map
    Ops(ops::Options),
    /// Measure what a policy costs a packet, beside the same rules in nftables
    Policy(policy::Options),
    /// Measure what traits cost an application that receives and sends them
    Sockets(sockets::Options),
    Trace(trace::Options),
    Containers(containers::Options),
    Border(border::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    packet_traits_terminal::log(cli.verbose);
    packet_traits_terminal::exit(run(&cli.command), Path::new(DEFAULT_ROOT), cli.verbose > 0)
}

fn run(command: &Command) -> Outcome {
    match command {
        Command::Ops(options) => ops::run(options),
        Command::Policy(options) => policy::run(options),
        Command::Sockets(options) => sockets::run(options),
        Command::Trace(options) => trace::run(options),
        Command::Containers(options) => containers::run(options),
        Command::Border(options) => border::run(options),
    }
}
