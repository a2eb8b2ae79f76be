//! `traits border`: keeps traits from crossing links to network namespaces that are not trusted.

use std::{error::Error, time::Duration};

use clap::Subcommand;
use glob::Pattern;
use packet_traits::{
    attach::{Direction, LOOPBACK, LinkChanges, devices, interface_name, xdp},
    border::{Border, Crossed},
    deployment::Location,
    registry::Registry,
};
use serde::Serialize;

use crate::{
    Global, Outcome,
    advice::About,
    interrupt::{Interrupt, Interrupted},
    output::{self, Table},
};

/// How often Ctrl-C is looked for while interfaces are waited for.
const TICK: Duration = Duration::from_millis(200);

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Give interfaces a border: what is in front of packets is wiped there
    #[command(after_help = ATTACH_HELP)]
    Attach {
        /// Interface: the host's end of a link to an untrusted network namespace; `*`, `?` and `[…]` as in file names; may be
        /// repeated
        #[arg(long, value_name = "INTERFACE", required = true)]
        dev: Vec<Pattern>,
        /// Go on with interfaces that come later, until Ctrl-C; the borders stay
        #[arg(long, conflicts_with = "json")]
        watch: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Detach borders
    #[command(after_help = DETACH_HELP)]
    Detach {
        /// Interface of this network namespace, as for `attach`; may be repeated
        #[arg(long, value_name = "INTERFACE", required_unless_present = "all")]
        dev: Vec<Pattern>,
        /// All, also in other network namespaces
        #[arg(long, conflicts_with = "dev")]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the borders and what crossed them
    #[command(after_help = STATUS_HELP)]
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

const ATTACH_HELP: &str = "\
Examples:
  traits border attach --dev veth0
  traits border attach --dev 'veth*' --dev 'cali*'
  traits border attach --dev 'veth*' --watch

Root of the namespace at the other end can read the memory in front of its packets: traits, and the secrets that authenticate \
them. A border wipes that memory in every packet that leaves, and in packets that arrive with XDP metadata. It drops and counts \
packets that it cannot wipe. Packets that XDP redirects, or that TC hands to the other end, do not pass it.

If the interface has an XDP program, a border leaves packets that arrive to it: an `xdp` block of a policy drops inherited \
traits. A border stays attached when the command ends, and is removed with its interface. It requires a registry, and wipes the \
traits of all registries.

docs/security.md says against whom traits are protected. docs/json.md lists the members of what --json prints.";

const DETACH_HELP: &str = "\
Examples:
  traits border detach --dev veth0
  traits border detach --all

docs/json.md lists the members of what --json prints.";

const STATUS_HELP: &str = "\
Examples:
  traits border status
  traits border status --json | jq '.borders[].out.dropped'

IN and OUT: packets, those of them that were wiped, and those that could not be, and were dropped.

docs/json.md lists the members of what --json prints.";

/// The borders of a registry.
#[derive(Serialize)]
struct BordersJson {
    registry: String,
    borders: Vec<BorderJson>,
}

/// A border.
#[derive(Serialize)]
struct BorderJson {
    /// The interface's name in its namespace; null if it is gone or out of sight.
    interface: Option<String>,
    /// Its index; null if it is gone.
    ifindex: Option<u32>,
    /// Inode number and name of its network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<NamespaceJson>,
    since: Option<String>,
    /// Whether both programs are attached.
    whole: bool,
    #[serde(rename = "in")]
    inward: CrossedJson,
    #[serde(rename = "out")]
    outward: CrossedJson,
}

/// A network namespace.
#[derive(Serialize)]
struct NamespaceJson {
    inode: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

/// What crossed a border in one direction.
#[derive(Serialize)]
struct CrossedJson {
    packets: u64,
    wiped: u64,
    dropped: u64,
}

/// The detached borders.
#[derive(Serialize)]
struct DetachedJson {
    registry: String,
    detached: Vec<InterfaceJson>,
}

/// Whose border it was.
#[derive(Serialize)]
struct InterfaceJson {
    interface: Option<String>,
    ifindex: Option<u32>,
}

impl From<Crossed> for CrossedJson {
    fn from(crossed: Crossed) -> CrossedJson {
        let Crossed { packets, wiped, dropped, .. } = crossed;
        CrossedJson { packets, wiped, dropped }
    }
}

impl From<&Border> for BorderJson {
    fn from(border: &Border) -> BorderJson {
        let namespace =
            border.namespace().map(|namespace| NamespaceJson { inode: namespace.inode, name: namespace.name.clone() });
        BorderJson {
            interface: name_of(border),
            ifindex: border.ifindex(),
            namespace,
            since: border.since().map(|since| since.to_string()),
            whole: border.is_whole(),
            inward: border.crossed(Direction::Ingress).into(),
            outward: border.crossed(Direction::Egress).into(),
        }
    }
}

pub(crate) fn run(command: &Command, global: &Global) -> Outcome {
    match command {
        Command::Attach { dev, watch, json } => attach(global, dev, *watch, *json),
        Command::Detach { dev, all, json } => detach(global, dev, *all, *json),
        Command::Status { json } => status(global, *json),
    }
}

fn name_of(border: &Border) -> Option<String> {
    border.interface().and_then(|(_, name)| name.map(str::to_owned))
}

/// The interfaces of this network namespace by index and name, in the order of indexes, without loopback.
fn interfaces() -> Result<Vec<(u32, String)>, Box<dyn Error>> {
    let found = devices().map_err(|error| format!("cannot list the interfaces: {error}"))?;
    let mut indexes: Vec<u32> = found.iter().map(|device| device.ifindex).filter(|index| *index != LOOPBACK).collect();
    indexes.sort_unstable();
    Ok(indexes.into_iter().filter_map(|index| Some((index, interface_name(index)?))).collect())
}

/// Those of them that a pattern names. A name, or a pattern if all must match something, that names none is an error.
fn named(patterns: &[Pattern], there: &[(u32, String)], all: bool) -> Result<Vec<(u32, String)>, String> {
    let is_name = |pattern: &Pattern| Pattern::escape(pattern.as_str()) == pattern.as_str();
    for pattern in patterns.iter().filter(|pattern| all || is_name(pattern)) {
        if !there.iter().any(|(_, name)| pattern.matches(name)) {
            return Err(match is_name(pattern) {
                true => format!("there is no interface {pattern} in this network namespace: `ip link` lists them"),
                false => {
                    format!("no interface of this network namespace is called like {pattern}: `ip link` lists them")
                }
            });
        }
    }
    let matches = |name: &str| patterns.iter().any(|pattern| pattern.matches(name));
    Ok(there.iter().filter(|(_, name)| matches(name)).cloned().collect())
}

fn attach(global: &Global, patterns: &[Pattern], watch: bool, json: bool) -> Outcome {
    let interrupt = Interrupt::catch()?;
    let registry = global.options().open()?;
    // before they are listed, so that none is missed in between
    let changes = watch.then(LinkChanges::open).transpose()?;
    let wanted = named(patterns, &interfaces()?, !watch)?;
    let before = here(&registry)?;
    let mut attached = Vec::new();
    for (index, name) in &wanted {
        let outcome = Border::attach(&registry, *index).map_err(|error| About::new(name, error).into());
        match interrupt.over(outcome, Interrupted::NOTHING_ATTACHED) {
            Ok(border) => attached.push(border),
            Err(error) => {
                take_back(&registry, &before, attached)?;
                return Err(error);
            }
        }
    }
    global.note_passing();
    for (index, name) in &wanted {
        note_xdp(*index, name);
    }
    if json {
        let borders = attached.iter().map(BorderJson::from).collect();
        output::json(&BordersJson { registry: registry.name().to_string(), borders })?;
    }
    for (index, name) in wanted.iter().filter(|_| !json) {
        say_attached(name, before.contains(index))?;
    }
    let Some(changes) = changes else { return Ok(()) };
    let known = wanted.into_iter().map(|(index, _)| index).collect();
    go_on(&registry, patterns, known, &changes, &interrupt)
}

/// Attaches borders to interfaces that come later, until Ctrl-C. The `known` ones have theirs.
fn go_on(
    registry: &Registry,
    patterns: &[Pattern],
    mut known: Vec<u32>,
    changes: &LinkChanges,
    interrupt: &Interrupt,
) -> Outcome {
    while !interrupt.came() {
        if !changes.wait(TICK)? {
            continue;
        }
        let there = interfaces()?;
        known.retain(|index| there.iter().any(|(found, _)| found == index));
        let wanted = named(patterns, &there, false).unwrap_or_default();
        for (index, name) in wanted.into_iter().filter(|(index, _)| !known.contains(index)).collect::<Vec<_>>() {
            match Border::attach(registry, index) {
                Ok(_) => {
                    known.push(index);
                    say_attached(&name, false)?;
                    note_xdp(index, &name);
                }
                // it may be gone again
                Err(_) if interface_name(index).is_none() => {}
                Err(error) => return Err(About::new(name, error).into()),
            }
        }
    }
    Ok(())
}

/// Indexes of the interfaces of this network namespace that have a border.
fn here(registry: &Registry) -> Result<Vec<u32>, Box<dyn Error>> {
    let found = Border::list(&Location::from(registry))?;
    Ok(found.iter().filter(|border| border.is_here()).filter_map(Border::ifindex).collect())
}

/// Takes away those that were not there before.
fn take_back(registry: &Registry, before: &[u32], attached: Vec<Border>) -> Outcome {
    tracing::debug!("taking {} borders of registry '{}' away again", attached.len(), registry.name());
    for border in attached {
        if border.ifindex().is_none_or(|index| !before.contains(&index)) {
            border.detach()?;
        }
    }
    Ok(())
}

fn say_attached(name: &str, before: bool) -> std::io::Result<()> {
    output::line(match before {
        true => format!("{name}: has its border, with the programs of this build"),
        false => format!("{name}: border attached"),
    })
}

/// Notes that an XDP program is responsible for packets that arrive.
fn note_xdp(index: u32, name: &str) {
    if let Some((program, _)) = xdp::attached(index) {
        output::note(format_args!(
            "{name} has XDP program {program}, which answers for what comes in: an `xdp` block of a policy drops inherited traits; \
             another program must set a trait, or call trait_drop_inherited, before it passes a packet"
        ));
    }
}

fn detach(global: &Global, patterns: &[Pattern], all: bool, json: bool) -> Outcome {
    let mut found = Border::list(&global.location())?;
    if !all {
        found.retain(Border::is_here);
        let there: Vec<_> = found.iter().filter_map(|border| Some((border.interface()?.0, name_of(border)?))).collect();
        let wanted = named(patterns, &there, true).map_err(
            |_| "no such interface of this network namespace has a border: `traits border status` lists them",
        )?;
        found.retain(|border| border.ifindex().is_some_and(|index| wanted.iter().any(|(one, _)| *one == index)));
    }
    let mut detached = Vec::new();
    for border in found {
        detached.push(InterfaceJson { interface: name_of(&border), ifindex: border.ifindex() });
        border.detach()?;
    }
    if json {
        output::json(&DetachedJson { registry: global.registry.to_string(), detached })?;
    } else if detached.is_empty() {
        output::line("there were no borders")?;
    } else {
        for interface in &detached {
            output::line(format_args!(
                "{}: border taken away",
                shown(interface.interface.as_deref(), interface.ifindex)
            ))?;
        }
    }
    Ok(())
}

fn shown(name: Option<&str>, index: Option<u32>) -> String {
    match (name, index) {
        (Some(name), _) => name.to_owned(),
        (None, Some(index)) => format!("ifindex {index}"),
        (None, None) => "an interface that is gone".to_owned(),
    }
}

fn status(global: &Global, json: bool) -> Outcome {
    let found = Border::list(&global.location())?;
    if json {
        let borders = found.iter().map(BorderJson::from).collect();
        return Ok(output::json(&BordersJson { registry: global.registry.to_string(), borders })?);
    }
    if found.is_empty() {
        output::line("no interface has a border; `traits border attach --dev INTERFACE` gives it one")?;
        return Ok(());
    }
    let mut table =
        Table::new(&["INTERFACE", "NAMESPACE", "IN", "WIPED", "DROPPED", "OUT", "WIPED", "DROPPED", "STATE"]);
    for border in &found {
        let (inward, outward) = (border.crossed(Direction::Ingress), border.crossed(Direction::Egress));
        let namespace = match border.namespace() {
            Some(namespace) if namespace.current => "this".to_owned(),
            Some(namespace) => namespace.name.clone().unwrap_or_else(|| namespace.inode.to_string()),
            None => "?".to_owned(),
        };
        let state = match border.interface() {
            None => "gone; `traits border detach --all` forgets it",
            Some(_) if !border.is_whole() => "not whole: attach it again",
            Some(_) => "attached",
        };
        table.row(&[
            &shown(name_of(border).as_deref(), border.ifindex()),
            &namespace,
            &inward.packets,
            &inward.wiped,
            &inward.dropped,
            &outward.packets,
            &outward.wiped,
            &outward.dropped,
            &state,
        ]);
    }
    table.print()?;
    Ok(())
}
