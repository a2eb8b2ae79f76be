//! `traits bind`: writes a bound copy of an object file, which any loader can load.

use std::path::{Path, PathBuf};

use clap::Args;
use packet_traits::{
    bind::{Binding, BoundObject, bind_file},
    registry::Registry,
};
use serde::Serialize;

use crate::{
    Global, Outcome,
    output::{self, Table},
};

const EXAMPLES: &str = "\
Examples:
  traits bind classify.bpf.o -o classify.bound.o
  traits --registry lab bind classify.bpf.o -o bound.o --check -v

The output is an object file for the running kernel and any loader: libbpf, bpftool, iproute2, aya (0.13 and later), \
cilium/ebpf (seen with 0.22); docs/programs.md says what each of them loads. It contains the registry's nonces, by which \
traits can be forged, so only its owner may read it. Bind again after keys were removed and registered again; programs \
that are loaded keep their keys.

docs/json.md lists the members of what --json prints.";

/// Write a copy of an object file whose keys are bound to the registry
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// BPF object file, as the compiler wrote it or bound to the same registry
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Where to write the bound object; a file is replaced atomically, and unchanged on failure
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// First load what would be written, and unload it again, to see that this kernel takes it; -v shows the verifier's
    /// log if not
    #[arg(long)]
    check: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct BoundJson<'a> {
    input: &'a Path,
    output: &'a Path,
    registry: &'a str,
    /// The pin of the map that loaders share as `pt_anchors`.
    anchors: &'a Path,
    keys: Vec<BoundKeyJson<'a>>,
}

/// A key as the object has it from now on.
#[derive(Serialize)]
struct BoundKeyJson<'a> {
    name: &'a str,
    number: usize,
    #[serde(rename = "type")]
    key_type: &'static str,
    region: String,
    size: usize,
    distance: usize,
    generation: u64,
}

impl<'a> BoundKeyJson<'a> {
    fn all(binding: &'a Binding) -> Vec<BoundKeyJson<'a>> {
        let keys = binding.keys().iter();
        keys.map(|bound| {
            let slot = bound.key.slot();
            BoundKeyJson {
                name: bound.key.name().as_str(),
                number: bound.key.number(),
                key_type: bound.key.key_type().name(),
                region: slot.region().to_string(),
                size: slot.size(),
                distance: slot.distance(),
                generation: bound.generation,
            }
        })
        .collect()
    }
}

pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    let registry = global.options().open()?;
    if options.check {
        BoundObject::open(&options.input, &registry)?.load()?;
    }
    let binding = bind_file(&options.input, &options.output, &registry)?;
    let anchors = registry.dir().join("anchors");
    if options.json {
        output::json(&BoundJson {
            input: &options.input,
            output: &options.output,
            registry: registry.name().as_str(),
            anchors: &anchors,
            keys: BoundKeyJson::all(&binding),
        })?;
        return Ok(());
    }
    show(options, &registry, &binding, &anchors)
}

fn show(options: &Options, registry: &Registry, binding: &Binding, anchors: &Path) -> Outcome {
    let (input, output) = (options.input.display(), options.output.display());
    output::line(format_args!("bound {input} to registry '{}' as {output}", registry.name()))?;
    let mut table = Table::new(&["KEY", "NAME", "TYPE", "REGION", "DISTANCE"]);
    for key in BoundKeyJson::all(binding) {
        table.row(&[&key.number, &key.name, &key.key_type, &key.region, &key.distance]);
    }
    table.print()?;
    output::line(format_args!(
        "\n\
         To read traits behind a decapsulation, every program needs the headrooms XDP has seen, which the registry keeps.\n\
         Let the loader use its map as pt_anchors:\n  \
         bpftool prog loadall {output} /sys/fs/bpf/NAME map name pt_anchors pinned {}",
        anchors.display()
    ))?;
    Ok(())
}
