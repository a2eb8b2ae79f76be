//! `traits bench`: measures traits on this machine, always against a baseline of the same run.

mod ops;
mod rig;
mod statistics;

use clap::Subcommand;

use crate::Outcome;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Measure what one call costs, beside a raw struct, a helper and a map
    Ops(ops::Options),
}

pub(crate) fn run(command: &Command) -> Outcome {
    match command {
        Command::Ops(options) => ops::run(options),
    }
}
