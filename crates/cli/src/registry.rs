//! `traits registry`: creates, shows and removes a registry.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Subcommand, error::ErrorKind};
use packet_traits::{
    Layout, Region,
    attach::Feature,
    registry::{KeyEntry, Migration, Registry, RegistryName, RegistryOptions, Utc},
    rotate::{self, Rotation},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::{
    Cli, Global, Outcome,
    interrupt::{Interrupt, Interrupted},
    keys,
    output::{self, KeyJson, ProgramJson, Table},
    sockets::SocketCgroupJson,
};

/// Sizes of an area's regions.
#[derive(Args)]
pub(crate) struct Sizes {
    /// Bytes of the flow region, a multiple of 8; 24 of them are its footer
    #[arg(long, value_name = "BYTES")]
    flow: Option<usize>,
    /// Bytes of the packet region, a multiple of 8; 32 of them are its footer; 0 for none
    #[arg(long, value_name = "BYTES")]
    packet: Option<usize>,
    /// Allow more than 216 bytes together, which native XDP on veth has no headroom for
    #[arg(long)]
    allow_oversize: bool,
}

impl Sizes {
    /// Whether neither region's is given.
    fn is_default(&self) -> bool {
        self.flow.is_none() && self.packet.is_none()
    }

    /// Adds them to the options; ends the program if there is no such layout.
    fn of(&self, options: RegistryOptions) -> RegistryOptions {
        let options = options.allow_oversize(self.allow_oversize);
        if self.is_default() {
            return options;
        }
        let len = |given: Option<usize>, region| given.unwrap_or(Layout::DEFAULT.region_len(region));
        let layout = Layout::new(len(self.flow, Region::Flow), len(self.packet, Region::Packet))
            .unwrap_or_else(|why| Cli::command().error(ErrorKind::ValueValidation, why).exit());
        options.layout(layout)
    }
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create a registry; mounts /sys/fs/bpf if it is not
    #[command(after_help = CREATE_HELP)]
    Create {
        /// Name: a letter from a to z, then at most 30 of a-z, 0-9, '_' and '-' [default: --registry]
        name: Option<RegistryName>,
        #[command(flatten)]
        sizes: Sizes,
        /// Print the registry as JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a registry of an earlier version one of this version, with the same keys
    #[command(after_help = MIGRATE_HELP)]
    Migrate {
        /// The registry's name [default: --registry]
        name: Option<RegistryName>,
        #[command(flatten)]
        sizes: Sizes,
        /// Print the registry as JSON
        #[arg(long)]
        json: bool,
    },
    /// Replace a registry's secrets, and the programs that use them
    #[command(after_help = ROTATE_HELP)]
    Rotate {
        /// The registry's name [default: --registry]
        name: Option<RegistryName>,
        /// Rotate even if other loaders' programs are bound to the registry
        #[arg(long)]
        force: bool,
        /// Print what was replaced as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a registry's layout, keys and programs
    #[command(after_help = SHOW_HELP)]
    Show {
        /// The registry's name [default: --registry]
        name: Option<RegistryName>,
        /// Print the registry as JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a registry that no loaded program is bound to
    #[command(after_help = REMOVE_HELP)]
    Remove {
        /// The registry's name [default: --registry]
        name: Option<RegistryName>,
        /// Remove it even if programs are bound to it, if something else is pinned in it, or if it is damaged
        #[arg(long)]
        force: bool,
        /// Print what was removed as JSON
        #[arg(long)]
        json: bool,
    },
}

const CREATE_HELP: &str = "\
Examples:
  traits registry create
  traits registry create lab --flow 96 --packet 40

Without sizes, the regions have 64 and 80 bytes, or what the kernel takes. With --json, it prints what `traits registry show --json` prints; docs/json.md lists the members.";

const MIGRATE_HELP: &str = "\
Examples:
  traits registry migrate
  traits registry migrate lab --flow 104

The registry keeps its keys and, unless sizes are given, as much room for values. Its \
secrets are new, and keys may have other numbers and places: compile and bind objects \
again. Fails if programs are bound to it; take these down first.

docs/json.md lists the members of what --json prints.";

const ROTATE_HELP: &str = "\
Examples:
  traits registry rotate
  traits registry rotate lab --json

Makes secrets that were read from a packet's memory useless. Policies, objects, borders and socket programs are loaded with \
new secrets and then replace those that run, each atomically. Their maps stay, so counters go on. At tracepoints, both \
programs run for a moment. Traits of packets in flight read as absent.

Programs of other loaders, and AF_XDP readers, read nothing until they are bound and started again. If a program cannot be \
loaded, nothing is changed.

docs/json.md lists the members of what --json prints.";

const SHOW_HELP: &str = "\
Examples:
  traits registry show
  traits registry show lab --json | jq .programs

docs/json.md lists the members of what --json prints.";

const REMOVE_HELP: &str = "\
Examples:
  traits registry remove lab

docs/json.md lists the members of what --json prints.";

#[derive(Serialize)]
struct RegistryJson {
    registry: String,
    dir: PathBuf,
    id: String,
    created_at: String,
    area_len: usize,
    regions: Vec<RegionJson>,
    anchors: Vec<u32>,
    keys: Vec<KeyJson>,
    programs: Vec<ProgramJson>,
}

#[derive(Serialize)]
struct MigratedJson {
    /// The version it had; null if there was nothing to do.
    from: Option<u32>,
    registry: RegistryJson,
}

#[derive(Serialize)]
struct RotatedJson {
    registry: String,
    dir: PathBuf,
    /// Names of what was brought up.
    deployments: Vec<String>,
    borders: usize,
    cgroups: Vec<SocketCgroupJson>,
    /// Programs that still have the previous secrets.
    left: Vec<ProgramJson>,
}

#[derive(Serialize)]
struct RegionJson {
    region: String,
    len: usize,
    footer: usize,
    used: usize,
    free: usize,
}

#[derive(Serialize)]
struct RemovedJson {
    registry: String,
    dir: PathBuf,
    removed: bool,
}

pub(crate) fn run(command: &Command, global: &Global) -> Outcome {
    let chosen = |name: &Option<RegistryName>| name.clone().unwrap_or_else(|| global.registry.clone());
    let options = |name| global.options().name(chosen(name));
    match command {
        Command::Create { name, sizes, json } => {
            let registry = sizes.of(options(name)).create()?;
            global.note_passing();
            if sizes.is_default() {
                note_short_area(registry.layout());
            }
            if *json {
                output::json(&describe(&registry)?)?;
            } else {
                output::line(format_args!("created registry '{}' at {}", registry.name(), registry.dir().display()))?;
            }
        }
        Command::Migrate { name, sizes, json } => {
            let Migration { registry, from, .. } = sizes.of(options(name)).migrate()?;
            global.note_passing();
            if *json {
                output::json(&MigratedJson { from, registry: describe(&registry)? })?;
            } else {
                let (name, dir) = (registry.name(), registry.dir().display());
                match from {
                    Some(version) => {
                        let keys = output::counted(registry.list()?.len() as u64, "key");
                        output::line(format_args!(
                            "migrated registry '{name}' at {dir} from version {version}: {keys}"
                        ))?;
                    }
                    None => output::line(format_args!("registry '{name}' at {dir} is of this version: nothing to do"))?,
                }
            }
        }
        Command::Rotate { name, force, json } => {
            // Ctrl-C waits until all have the same secrets
            let interrupt = Interrupt::catch()?;
            raise_file_limit();
            let rotation = rotate::rotate(&options(name), *force)?;
            let keys = rotation.registry.list()?;
            let left = rotation.left.iter().map(|program| ProgramJson::new(program, &keys)).collect();
            if *json {
                output::json(&RotatedJson {
                    registry: rotation.registry.name().to_string(),
                    dir: rotation.registry.dir().to_owned(),
                    deployments: rotation.deployments,
                    borders: rotation.borders.len(),
                    cgroups: rotation.cgroups.iter().map(SocketCgroupJson::from).collect(),
                    left,
                })?;
            } else {
                rotated(&rotation)?;
            }
            if interrupt.came() {
                return Err(Interrupted::ALL_DONE.into());
            }
        }
        Command::Show { name, json } => {
            let registry = options(name).open()?;
            if *json {
                output::json(&describe(&registry)?)?;
            } else {
                show(&registry)?;
            }
        }
        Command::Remove { name, force, json } => {
            let (name, options) = (chosen(name), options(name));
            options.remove(*force)?;
            if *json {
                output::json(&RemovedJson { registry: name.to_string(), dir: options.dir(), removed: true })?;
            } else {
                output::line(format_args!("removed registry '{name}' at {}", options.dir().display()))?;
            }
        }
    }
    Ok(())
}

/// Raises the limit of open files as far as allowed: each program that is up needs some.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // If it fails, the limit is what it was.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Prints what was replaced.
fn rotated(rotation: &Rotation) -> Outcome {
    let mut parts = rotation.deployments.clone();
    if !rotation.borders.is_empty() {
        parts.push(output::counted(rotation.borders.len(), "border"));
    }
    if !rotation.cgroups.is_empty() {
        let cgroups: Vec<_> = rotation.cgroups.iter().map(ToString::to_string).collect();
        parts.push(format!("the socket programs of {}", cgroups.join(", ")));
    }
    let with = if parts.is_empty() { "nothing is up".to_owned() } else { parts.join(", ") };
    output::line(format_args!("registry '{}' has new secrets: {with}", rotation.registry.name()))?;
    for program in &rotation.left {
        output::note(format_args!("{program} has those of before and reads nothing any more: start it again"));
    }
    Ok(())
}

/// Says so if the kernel takes less metadata than the default area has.
fn note_short_area(layout: Layout) {
    if layout != Layout::DEFAULT {
        let [flow, packet] = [Region::Flow, Region::Packet].map(|region| layout.region_len(region));
        output::note(format_args!(
            "this kernel takes less XDP metadata than the default area's {} bytes ({}): the flow region has {flow} bytes, \
             the packet region {packet}",
            Layout::DEFAULT.area_len(),
            Feature::LongXdpMetadata
        ));
    }
}

fn describe(registry: &Registry) -> Result<RegistryJson, Box<dyn std::error::Error>> {
    let keys = registry.list()?;
    let layout = registry.layout();
    let region = |region| {
        let used = used(&keys, region);
        RegionJson {
            region: region.to_string(),
            len: layout.region_len(region),
            footer: layout.region_len(region) - layout.slot_space(region),
            used,
            free: layout.slot_space(region) - used,
        }
    };
    Ok(RegistryJson {
        registry: registry.name().to_string(),
        dir: registry.dir().to_owned(),
        id: format!("{:016x}", registry.id()),
        created_at: Utc(registry.created_at()).to_string(),
        area_len: layout.area_len(),
        regions: vec![region(Region::Flow), region(Region::Packet)],
        anchors: anchors(registry)?,
        programs: registry.programs()?.iter().map(|program| ProgramJson::new(program, &keys)).collect(),
        keys: keys.iter().map(KeyJson::from).collect(),
    })
}

fn show(registry: &Registry) -> Outcome {
    let keys = registry.list()?;
    let programs = registry.programs()?;
    output::line(format_args!("registry  {}", registry.name()))?;
    output::line(format_args!("dir       {}", registry.dir().display()))?;
    output::line(format_args!("id        {:016x}", registry.id()))?;
    output::line(format_args!("created   {}", Utc(registry.created_at())))?;
    let headrooms: Vec<String> = anchors(registry)?.iter().map(u32::to_string).collect();
    output::line(format_args!(
        "headroom  {}",
        if headrooms.is_empty() { "none seen yet".to_owned() } else { headrooms.join(", ") }
    ))?;

    output::line("\nBytes in front of the packet data:")?;
    layout_map(registry.layout(), &keys).print()?;
    let flags: Vec<&str> =
        keys.iter().filter(|entry| entry.key.slot().size() == 0).map(|entry| entry.key.name().as_str()).collect();
    if !flags.is_empty() {
        output::line(format_args!("Flags, in the footers only: {}", flags.join(", ")))?;
    }

    output::line(if keys.is_empty() { "\nNo keys." } else { "\nKeys:" })?;
    keys::table(&keys).print()?;

    output::line(if programs.is_empty() { "\nNo programs are bound." } else { "\nBound programs:" })?;
    let mut table = Table::new(&["ID", "NAME", "TAG", "LOADED", "KEYS"]);
    for program in &programs {
        let used: Vec<&str> = output::keys_of(program, &keys).map(|entry| entry.key.name().as_str()).collect();
        table.row(&[&program.id, &program.name, &program.tag_hex(), &Utc(program.loaded_at()), &used.join(", ")]);
    }
    table.print()?;
    for program in programs.iter().filter(|program| program.stale) {
        output::note(format_args!(
            "{program} was bound before the secrets were rotated, and reads and sets nothing for others: load it again, or \
             `traits registry rotate` again if it is up"
        ));
    }
    Ok(())
}

/// Every byte of the area, as it lies in memory: the packet data comes after the last row.
fn layout_map(layout: Layout, keys: &[KeyEntry]) -> Table {
    let mut table = Table::new(&["REGION", "BYTES", "HOLDS"]);
    for region in [Region::Packet, Region::Flow] {
        if layout.region_len(region) == 0 {
            continue;
        }
        let mut slots: Vec<&KeyEntry> =
            keys.iter().filter(|entry| entry.key.slot().region() == region && entry.key.slot().size() != 0).collect();
        slots.sort_by_key(|entry| std::cmp::Reverse(entry.key.slot().distance()));
        let mut row = |first: usize, last: usize, holds: String| {
            if first >= last {
                table.row(&[&region, &format!("{first}-{last}"), &holds]);
            }
        };
        let footer = layout.region_end(region) + layout.footer_len(region);
        let mut next = layout.region_end(region) + layout.region_len(region);
        for entry in slots {
            let slot = entry.key.slot();
            row(next, slot.distance() + 1, "free".to_owned());
            next = slot.distance() - slot.size();
            row(slot.distance(), next + 1, format!("{} ({})", entry.key.name(), entry.key.key_type()));
        }
        row(next, footer + 1, "free".to_owned());
        row(footer, layout.region_end(region) + 1, "footer".to_owned());
    }
    table
}

/// Bytes of a region's slots.
fn used(keys: &[KeyEntry], region: Region) -> usize {
    keys.iter().map(|entry| entry.key.slot()).filter(|slot| slot.region() == region).map(|slot| slot.size()).sum()
}

/// Headroom values that programs have seen, without the free places.
fn anchors(registry: &Registry) -> Result<Vec<u32>, Box<dyn std::error::Error>> {
    Ok(registry.anchors()?.into_iter().filter(|anchor| *anchor != 0).collect())
}
