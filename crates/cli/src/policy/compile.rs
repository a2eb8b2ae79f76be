//! `traits compile`: makes an object file of a policy, for hosts without clang.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use packet_traits_policy::{
    compile::{CLANG, Compiler},
    emit::{EmitOptions, Emitted, emit},
    manifest::{Hook, Manifest, Program},
};
use serde::Serialize;

use super::{counted, load};
use crate::{Global, Outcome, output};

const HELP: &str = "\
Examples:
  traits compile edge.traits -o edge.bpf.o
  traits compile edge.traits --emit c
  CLANG=clang-19 traits compile edge.traits -o edge.bpf.o

Requires clang 14 or later and the kernel's headers for user space (linux-libc-dev). `traits up edge.bpf.o` requires \
neither, nor the policy's source: the object contains keys, hooks, sets, maps and the names of interfaces. To compile \
the C elsewhere, put the folder packet_traits and libbpf's headers into the include path.

docs/json.md lists the members of what --json prints.";

/// Make an object file of a policy, for hosts without clang
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    /// Policy file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where to write; C goes to standard output unless this is given
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Product::Object)]
    emit: Product,
    /// Leave the area of packets that XDP accepts open: a later program that hands them to AF_XDP then shows all of it,
    /// and GRO compares keep-first traits, too
    #[arg(long)]
    no_seal: bool,
    /// Print JSON about what was made
    #[arg(long, requires = "output")]
    json: bool,
}

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Product {
    /// An object file
    Object,
    /// Its C
    C,
}

#[derive(Serialize)]
struct CompiledJson<'a> {
    file: &'a Path,
    output: &'a Path,
    emitted: Product,
    keys: Vec<&'a str>,
    programs: Vec<ProgramJson<'a>>,
    tables: Vec<TableJson<'a>>,
    counters: Vec<&'a str>,
    interfaces: Vec<&'a str>,
}

#[derive(Serialize)]
struct ProgramJson<'a> {
    name: &'a str,
    hook: &'a Hook,
    rules: usize,
    device_bound: bool,
    redirects_to_xsk: bool,
}

#[derive(Serialize)]
struct TableJson<'a> {
    map: &'a str,
    entries: usize,
}

pub(crate) fn run(command: &Options, global: &Global) -> Outcome {
    if command.output.as_deref() == Some(Path::new("-")) {
        return Err("`-` is no file: C goes to standard output without -o, and an object file wants a name".into());
    }
    if command.output.is_none() && command.emit == Product::Object {
        return Err("say with -o where to write the object file, or with `--emit c` that you want to see its C".into());
    }
    let checked = load(&command.file, global)?;
    let emitted = emit(&checked.policy, &checked.sources, &EmitOptions { seal: !command.no_seal })?;
    let Some(path) = &command.output else {
        output::text(&emitted.source)?;
        return Ok(());
    };
    write(path, &product(command, &emitted)?)?;
    if command.json {
        output::json(&described(command, path, &emitted.manifest))?;
    } else {
        output::line(format_args!("{}", summary(command, path, &emitted.manifest)))?;
    }
    Ok(())
}

/// What is asked for, as bytes.
fn product(command: &Options, emitted: &Emitted) -> Result<Vec<u8>, Box<dyn Error>> {
    Ok(match command.emit {
        Product::C => emitted.source.clone().into_bytes(),
        Product::Object => {
            let compiler = Compiler::new(&libbpf_sys::API_HEADERS);
            tracing::debug!("compiling with {} ({CLANG} names another)", compiler.clang.display());
            compiler.compile(emitted)?
        }
    })
}

fn write(path: &Path, bytes: &[u8]) -> Outcome {
    fs::write(path, bytes).map_err(|error| format!("writing {}: {error}", path.display()).into())
}

fn summary(command: &Options, path: &Path, manifest: &Manifest) -> String {
    let programs = manifest.programs.len();
    let rules: usize = manifest.programs.iter().map(|program| program.rules.len()).sum();
    let what = match command.emit {
        Product::Object => "compiled",
        Product::C => "made C of",
    };
    format!(
        "{what} {} as {}: {}, {}, {}",
        command.file.display(),
        path.display(),
        counted(programs, "program"),
        counted(rules, "rule"),
        counted(manifest.keys.len(), "key")
    )
}

fn described<'a>(command: &'a Options, path: &'a Path, manifest: &'a Manifest) -> CompiledJson<'a> {
    CompiledJson {
        file: &command.file,
        output: path,
        emitted: command.emit,
        keys: manifest.keys.iter().map(|key| key.name.as_str()).collect(),
        programs: manifest.programs.iter().map(described_program).collect(),
        tables: manifest
            .tables
            .iter()
            .map(|table| TableJson { map: &table.map, entries: table.entries.len() })
            .collect(),
        counters: manifest.counters.iter().map(|counter| counter.name.as_str()).collect(),
        interfaces: manifest.interfaces.iter().map(|interface| interface.name.as_str()).collect(),
    }
}

fn described_program(program: &Program) -> ProgramJson<'_> {
    ProgramJson {
        name: &program.name,
        hook: &program.hook,
        rules: program.rules.len(),
        device_bound: program.device_bound,
        redirects_to_xsk: program.redirects_to_xsk,
    }
}
