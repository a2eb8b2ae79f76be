//! Commands about policies, and what they share: reading and checking a policy's file.

mod capture;
pub(crate) mod check;
pub(crate) mod compile;
pub(crate) mod explain;
mod frame;
mod host;
mod journey;
mod options;
mod stack;
mod way;

use std::{
    error::Error,
    io::{self, IsTerminal},
    path::Path,
};

use packet_traits::{
    layout::AREA_LEN_PORTABLE,
    registry::{RegistryError, longest_metadata},
};
use packet_traits_policy::{
    check::{CheckOptions, Checked, Files, HeldKey, RegistryKeys, Rejected},
    diagnostic::{DIAGNOSTICS_MAX, Diagnostic, Severity},
    source::Sources,
};

use crate::{
    Global,
    output::{self, counted},
};

/// Reads and checks a policy against the registry, if there is one. What is wrong with it, and what looks wrong, is
/// said on standard error; the error that comes back only counts it.
pub(crate) fn load(file: &Path, global: &Global) -> Result<Checked, Box<dyn Error>> {
    match packet_traits_policy::check::check(file, &Files, &options(global)?) {
        Ok(checked) => {
            say(&checked.warnings, &checked.sources);
            Ok(checked)
        }
        Err(rejected) => {
            say(&rejected.diagnostics, &rejected.sources);
            Err(refusal(file, &rejected).into())
        }
    }
}

/// What a policy is checked against: the registry as it is. Without one, or without the right to look, one of the
/// default layout.
fn options(global: &Global) -> Result<CheckOptions, RegistryError> {
    let registry = match global.options().open() {
        Ok(registry) => registry,
        Err(error) if matches!(error.errno(), libc::ENOENT | libc::EPERM | libc::EACCES) => {
            tracing::debug!("checking against a registry of the default layout: {error}");
            return Ok(CheckOptions::default());
        }
        Err(error) => return Err(error),
    };
    let keys = registry.list()?;
    let held = keys.iter().map(|entry| HeldKey {
        name: *entry.key.name(),
        key_type: entry.key.key_type(),
        merge: entry.merge,
        slot: entry.key.slot(),
        holder: entry.owner.to_string(),
    });
    let name = Some(registry.name().to_string());
    let longest_metadata = longest_metadata().ok().filter(|longest| *longest < AREA_LEN_PORTABLE);
    let layout = registry.layout();
    Ok(CheckOptions { registry: RegistryKeys { name, layout, keys: held.collect(), longest_metadata } })
}

/// Says diagnostics on standard error, in colour on a terminal.
fn say(diagnostics: &[Diagnostic], sources: &Sources) {
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    for diagnostic in diagnostics {
        output::note(format_args!("{}\n", diagnostic.render(sources, colour)));
    }
}

/// That a policy is refused, in one line.
fn refusal(file: &Path, rejected: &Rejected) -> String {
    let errors = rejected.diagnostics.iter().filter(|diagnostic| diagnostic.severity() == Severity::Error).count();
    let (file, errors) = (file.display(), counted(errors, "error"));
    if rejected.diagnostics.len() < DIAGNOSTICS_MAX {
        return format!("{file} has {errors}");
    }
    format!("{file} has at least {errors}: a check ends after {DIAGNOSTICS_MAX} errors and warnings")
}
