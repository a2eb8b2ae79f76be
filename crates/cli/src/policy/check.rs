//! `traits check`: says what is wrong with policies.

use std::{
    error::Error,
    path::{Path, PathBuf},
};

use clap::Args;
use packet_traits_policy::{
    check::{Checked, Files, check},
    diagnostic::Report,
    policy::Policy,
};
use serde::Serialize;

use super::{counted, load, options, refusal};
use crate::{Global, Outcome, output};

const HELP: &str = "\
Examples:
  traits check edge.traits
  traits check --deny-warnings policies/*.traits
  traits check --json edge.traits | jq -r '.files[].diagnostics[].message'

Checks keys against the registry, if there is one: types, merge policies and room. Errors and warnings go to standard \
error.

docs/json.md lists the members of what --json prints.";

/// Say what is wrong with policies
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    /// Policy files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Refuse policies with warnings, too
    #[arg(long)]
    deny_warnings: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct ChecksJson {
    good: bool,
    files: Vec<CheckJson>,
}

#[derive(Serialize)]
struct CheckJson {
    file: String,
    good: bool,
    keys: Option<usize>,
    rules: Option<usize>,
    blocks: Option<usize>,
    diagnostics: Vec<Report>,
}

pub(crate) fn run(command: &Options, global: &Global) -> Outcome {
    let mut refused: Vec<Box<dyn Error>> =
        if command.json { as_json(command, global)? } else { as_text(command, global)? };
    match refused.len() {
        0 => Ok(()),
        1 => Err(refused.remove(0)),
        count => Err(format!("{count} of {} policies are refused", command.files.len()).into()),
    }
}

/// Checks the files and says what they have or why they are refused.
fn as_text(command: &Options, global: &Global) -> Result<Vec<Box<dyn Error>>, Box<dyn Error>> {
    let mut refused = Vec::new();
    for file in &command.files {
        match load(file, global) {
            Ok(checked) => match denied(command, file, &checked) {
                Some(why) => refused.push(why.into()),
                None => {
                    let policy = &checked.policy;
                    let (keys, blocks) = (counted(policy.keys.len(), "key"), counted(policy.blocks.len(), "block"));
                    let rules = counted(policy.rule_count(), "rule");
                    output::line(format_args!("{}: {keys}, {rules}, {blocks}", file.display()))?;
                }
            },
            Err(why) => refused.push(why),
        }
    }
    Ok(refused)
}

/// Checks the files and prints JSON.
fn as_json(command: &Options, global: &Global) -> Result<Vec<Box<dyn Error>>, Box<dyn Error>> {
    let options = options(global)?;
    let mut refused: Vec<Box<dyn Error>> = Vec::new();
    let mut files = Vec::new();
    for file in &command.files {
        let (policy, sources, diagnostics, why) = match check(file, &Files, &options) {
            Ok(checked) => {
                let why = denied(command, file, &checked);
                (Some(checked.policy), checked.sources, checked.warnings, why)
            }
            Err(rejected) => {
                let why = refusal(file, &rejected);
                (None, rejected.sources, rejected.diagnostics, Some(why))
            }
        };
        files.push(CheckJson {
            file: file.display().to_string(),
            good: why.is_none(),
            keys: policy.as_ref().map(|policy| policy.keys.len()),
            rules: policy.as_ref().map(Policy::rule_count),
            blocks: policy.as_ref().map(|policy| policy.blocks.len()),
            diagnostics: diagnostics.iter().map(|diagnostic| diagnostic.report(&sources)).collect(),
        });
        refused.extend(why.map(Into::into));
    }
    output::json(&ChecksJson { good: refused.is_empty(), files })?;
    Ok(refused)
}

/// Why a policy without errors is refused all the same.
fn denied(command: &Options, file: &Path, checked: &Checked) -> Option<String> {
    if !command.deny_warnings || checked.warnings.is_empty() {
        return None;
    }
    Some(format!("{} has {}, and none is allowed", file.display(), counted(checked.warnings.len(), "warning")))
}
