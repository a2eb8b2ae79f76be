//! `traits completions` and `traits man`: descriptions of the commands for shells and for man(1).

use std::{fs, path::PathBuf};

use clap::Command;
use clap_complete::Shell;

use crate::{Outcome, output};

const EXAMPLES: &str = "\
Examples:
  traits completions bash > /etc/bash_completion.d/traits
  traits completions zsh > /usr/local/share/zsh/site-functions/_traits";

const MAN_EXAMPLES: &str = "\
Examples:
  traits man /usr/local/share/man/man1";

/// Print a completion script for a shell
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

/// Write a man page for each command into a folder
#[derive(clap::Args)]
#[command(after_help = MAN_EXAMPLES)]
pub(crate) struct Man {
    /// The folder, which is made if it is not there
    folder: PathBuf,
}

/// Prints it.
pub(crate) fn completions(options: &Completions, mut command: Command) -> Outcome {
    // the generator panics if it cannot write, and memory can be written
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut command, "traits", &mut script);
    Ok(output::text(&String::from_utf8(script)?)?)
}

/// Writes them.
pub(crate) fn man(options: &Man, command: Command) -> Outcome {
    let failed = |error| format!("cannot write man pages to {}: {error}", options.folder.display());
    fs::create_dir_all(&options.folder).map_err(failed)?;
    Ok(clap_mangen::generate_to(command, &options.folder).map_err(failed)?)
}
