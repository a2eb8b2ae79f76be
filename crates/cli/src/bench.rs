//! `traits bench`: runs `traits-bench`, a program of its own.

use std::{env, error::Error, ffi::OsString, io, os::unix::process::CommandExt, path::PathBuf, process::Command};

use crate::{Global, Outcome};

/// The program, which is beside this one or on the PATH.
const PROGRAM: &str = "traits-bench";

/// Measure traits on this machine
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// What `traits-bench` takes: `traits bench --help` lists it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "BENCH")]
    arguments: Vec<OsString>,
}

/// Becomes the other program.
pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    let error = Command::new(program()).args(vec!["-v"; global.verbose.into()]).args(&options.arguments).exec();
    Err(match error.kind() {
        io::ErrorKind::NotFound => Box::<dyn Error>::from(format!(
            "{PROGRAM} not found; build it in the repository with `cargo build --release -p packet-traits-bench`, and copy it \
             beside `traits` or to a folder of the PATH"
        )),
        _ => format!("running {PROGRAM}: {error}").into(),
    })
}

/// Beside this program if it is there, else by its name.
fn program() -> PathBuf {
    let beside = env::current_exe().ok().map(|this| this.with_file_name(PROGRAM));
    beside.filter(|path| path.exists()).unwrap_or_else(|| PROGRAM.into())
}
