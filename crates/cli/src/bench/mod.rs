//! `traits bench`: measures traits on this machine, always against a baseline of the same run.

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

use clap::Subcommand;

use crate::Outcome;

#[derive(Subcommand)]
pub(crate) enum Command {
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

pub(crate) fn run(command: &Command) -> Outcome {
    match command {
        Command::Ops(options) => ops::run(options),
        Command::Policy(options) => policy::run(options),
        Command::Sockets(options) => sockets::run(options),
        Command::Trace(options) => trace::run(options),
        Command::Containers(options) => containers::run(options),
        Command::Border(options) => border::run(options),
    }
}
