//! The options of all commands, and which commands take them.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, Error, error::ErrorKind, parser::ValueSource};
use packet_traits::{
    bpffs,
    registry::{RegistryName, RegistryOptions},
};

use crate::output;

/// Where help lists them.
const HEADING: &str = "Global options";

/// Options of all commands but those in [`NOT_TAKEN`].
#[derive(clap::Args)]
pub(crate) struct Global {
    /// Registry to work on
    #[arg(long, global = true, value_name = "NAME", default_value_t, help_heading = HEADING)]
    pub(crate) registry: RegistryName,
    /// BPF file system that holds the registry
    #[arg(long, global = true, value_name = "PATH", default_value = bpffs::DEFAULT_ROOT, help_heading = HEADING)]
    pub(crate) bpffs: PathBuf,
    /// Say what is being done, on standard error; twice for more
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = HEADING)]
    pub(crate) verbose: u8,
}

/// Commands that would ignore an option, the option, and why.
const NOT_TAKEN: [(&[&str], &str, &str); 13] = [
    (&["demo"], "registry", "it makes a registry of its own"),
    (&["demo"], "bpffs", "it makes a BPF file system of its own"),
    (&["bench"], "registry", "it makes a registry of its own"),
    (&["bench"], "bpffs", "it makes a BPF file system of its own"),
    (&["completions"], "registry", "it uses none"),
    (&["completions"], "bpffs", "it uses none"),
    (&["man"], "registry", "it uses none"),
    (&["man"], "bpffs", "it uses none"),
    (&["doctor"], "registry", "it looks at all registries"),
    (&["sockets", "show"], "registry", "the sockets know theirs"),
    (&["sockets", "show"], "bpffs", "the sockets know their registry"),
    (&["sockets", "save-syn"], "registry", "the sockets know theirs"),
    (&["sockets", "save-syn"], "bpffs", "the sockets know their registry"),
];

/// Has the help of commands leave out what they do not take.
pub(crate) fn hide_not_taken(mut command: Command) -> Command {
    for (path, option, _) in NOT_TAKEN {
        let shown = command.get_arguments().find(|argument| argument.get_id() == option).cloned();
        if let Some(shown) = shown {
            command = with_argument(command, path, shown.hide(true));
        }
    }
    command
}

/// Gives a command below this one an argument of its own, in the place of the global one.
fn with_argument(command: Command, path: &[&str], argument: Arg) -> Command {
    match path {
        [] => command.arg(argument),
        [name, below @ ..] => command.mut_subcommand(name, |command| with_argument(command, below, argument)),
    }
}

/// Refuses options that the command would ignore.
pub(crate) fn refuse_not_taken(matches: &ArgMatches) -> Result<(), Error> {
    let (mut path, mut deepest) = (Vec::new(), matches);
    while let Some((name, below)) = deepest.subcommand() {
        path.push(name);
        deepest = below;
    }
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let refuse = |why: String| Err(Error::raw(ErrorKind::ArgumentConflict, why));
    let ignored = NOT_TAKEN.iter().find(|(command, option, _)| path.starts_with(command) && given(option));
    if let Some((_, option, why)) = ignored {
        return refuse(format!("`traits {}` does not take --{option}: {why}", path.join(" ")));
    }
    if path.first() == Some(&"registry") && deepest.contains_id("name") && given("registry") {
        return refuse(format!("`traits {}` takes the registry's name or --registry, not both", path.join(" ")));
    }
    Ok(())
}

impl Global {
    /// The registry these options name.
    pub(crate) fn options(&self) -> RegistryOptions {
        RegistryOptions::default().name(self.registry.clone()).bpffs(&self.bpffs)
    }

    /// Says so if what is pinned goes away with this process's mount namespace.
    pub(crate) fn note_passing(&self) {
        bpffs::passing(&self.bpffs).into_iter().for_each(output::note);
    }
}
