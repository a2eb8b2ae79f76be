//! `traits sockets`: the programs that serve applications' socket options, and the sockets of a running process.

mod process;

use std::path::PathBuf;

use clap::Subcommand;
use packet_traits::{
    registry::{Registry, RegistryName, Utc},
    socket_programs::{AttachOptions, Attached, SocketCgroup, SocketPrograms},
};

use serde::Serialize;

use crate::{
    Global, Outcome,
    interrupt::{Interrupt, Interrupted},
    output::{self, Table, counted},
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Serve the socket options in a cgroup, persistently
    #[command(after_help = ATTACH_HELP)]
    Attach {
        /// Cgroup: its directory; the sockets that processes in it and below make are served [default: the root of the
        /// tree, every process]
        #[arg(long, value_name = "PATH")]
        cgroup: Option<PathBuf>,
        /// How many UDP sockets may receive traits at once [default: 256]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
        sockets: Option<u32>,
        /// How many of them one user's processes may have; root's may have all, the last eighth alone [default: half of them]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
        sockets_per_user: Option<u32>,
        /// Of how many datagrams a UDP socket keeps the traits, a power of two [default: 512]
        #[arg(long, value_name = "N", value_parser = parse_slots)]
        slots: Option<u32>,
        /// How many TCP connections may be in their handshake at once and have their SYN's traits kept [default: 16384]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 22))]
        pending_syns: Option<u32>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Stop serving the socket options in a cgroup
    #[command(after_help = DETACH_HELP)]
    Detach {
        /// Cgroup: its directory [default: the root of the tree]
        #[arg(long, value_name = "PATH", conflicts_with = "all")]
        cgroup: Option<PathBuf>,
        /// Detach from all cgroups, also from those that were removed
        #[arg(long)]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show where the socket options are served
    #[command(after_help = STATUS_HELP)]
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Have a running server keep the traits of SYNs: sets SAVE_SYN_TRAITS on its listening TCP sockets
    #[command(after_help = SAVE_SYN_HELP)]
    SaveSyn {
        /// The process
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        pid: u32,
        /// Stop it
        #[arg(long)]
        off: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the TCP and UDP sockets of a running process, and their traits
    #[command(after_help = SHOW_HELP)]
    Show {
        /// The process
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        pid: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

const ATTACH_HELP: &str = "\
Examples:
  traits sockets attach
  traits sockets attach --cgroup /sys/fs/cgroup/system.slice
  traits sockets attach --sockets 1024 --slots 2048

Applications then read and set traits with plain socket calls, without privileges: see <packet_traits/socket.h> for C, \
and packet-traits-socket for Rust. The programs stay attached after the command ends. Attaching again changes \
nothing, unless the programs are of another build of traits: then these take their place in all cgroups, and sockets keep \
what they asked for. That is how to upgrade. A socket belongs to the cgroup its process was in when it made the socket.

The sizes hold for all cgroups of a registry. Memory: sockets x slots x 128 bytes with the default regions. RCV_TRAITS \
of a UDP socket fails with ENOSPC when the sockets, or the user's part of them, are used up.

docs/json.md lists the members of what --json prints.";

const DETACH_HELP: &str = "\
Examples:
  traits sockets detach
  traits sockets detach --cgroup /sys/fs/cgroup/system.slice
  traits sockets detach --all

With the last cgroup the programs are unloaded, and it is forgotten which sockets asked for RCV_TRAITS and \
SAVE_SYN_TRAITS: their applications have to ask again. For an upgrade `traits sockets attach` alone is enough.

--all also removes what an `attach` that was killed left; so does the next `attach`.

docs/json.md lists the members of what --json prints.";

const STATUS_HELP: &str = "\
Examples:
  traits sockets status
  traits sockets status --json | jq '.cgroups[].path'

docs/json.md lists the members of what --json prints.";

const SAVE_SYN_HELP: &str = "\
Examples:
  traits sockets save-syn $(pidof -s redis-server)
  traits sockets save-syn 4711 --off

For servers that do not know of traits: connections that they accept from now on keep the traits of their SYN, which \
`traits sockets show` prints. The process is not disturbed. A server that makes new listeners needs it again.

docs/json.md lists the members of what --json prints.";

const SHOW_HELP: &str = "\
Examples:
  traits sockets show $(pidof -s redis-server)
  traits sockets show 4711 --json | jq '.sockets[].syn.tenant'

SYN: traits of the SYN that a TCP connection began with. LAST: those of the newest TCP data. OWN: those that go with \
what the socket sends. `-`: nothing is known; `none`: there were none.

docs/json.md lists the members of what --json prints.";

fn parse_slots(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(slots) if (2..=65536).contains(&slots) && slots.is_power_of_two() => Ok(slots),
        _ => Err("it is a power of two from 2 to 65536".to_owned()),
    }
}

/// What is attached.
#[derive(Serialize)]
struct StatusJson {
    /// The registry's name.
    registry: String,
    /// Whether anything is.
    attached: bool,
    #[serde(flatten)]
    programs: Option<ProgramsJson>,
}

/// A registry's socket programs.
#[derive(Serialize)]
struct ProgramsJson {
    /// Which loading of the programs it is, 16 hexadecimal digits.
    instance: String,
    /// How many UDP sockets may receive traits at once.
    sockets: u32,
    /// How many of them one user may have who is not root.
    sockets_per_user: u32,
    /// How many there are.
    sockets_used: u32,
    /// Whose they are.
    users: Vec<UserJson>,
    /// Datagrams of each.
    slots: u32,
    /// Connections in their handshake.
    pending_syns: u32,
    /// The programs.
    programs: Vec<ProgramJson>,
    /// Where they are attached.
    cgroups: Vec<CgroupJson>,
    /// Whether a cgroup is being attached or detached, or was by a process that was killed.
    unfinished: bool,
    /// Whether the programs are of this build of traits.
    current: bool,
}

/// A user whose processes receive datagrams' traits.
#[derive(Serialize)]
struct UserJson {
    uid: u32,
    /// On how many sockets.
    sockets: u32,
}

/// A program.
#[derive(Serialize)]
struct ProgramJson {
    /// Its name in the kernel.
    name: &'static str,
    /// Its id, as `bpftool prog` shows it.
    id: u32,
}

/// A cgroup with socket programs.
#[derive(Serialize)]
struct CgroupJson {
    /// Its id: the inode number of its directory.
    id: u64,
    /// Its directory.
    path: Option<PathBuf>,
    /// When they were attached.
    since: String,
    /// Those that are not any more.
    missing: Vec<&'static str>,
}

/// What [`Command::Attach`] did.
#[derive(Serialize)]
struct AttachedJson {
    already: bool,
    updated: bool,
    #[serde(flatten)]
    status: StatusJson,
}

/// What [`Command::Detach`] did.
#[derive(Serialize)]
struct DetachedJson {
    registry: String,
    detached: Vec<SocketCgroupJson>,
}

/// A cgroup that has socket programs, or had.
#[derive(Serialize)]
pub(crate) struct SocketCgroupJson {
    id: u64,
    path: Option<PathBuf>,
}

impl From<&SocketCgroup> for SocketCgroupJson {
    fn from(cgroup: &SocketCgroup) -> SocketCgroupJson {
        SocketCgroupJson { id: cgroup.id, path: cgroup.path.clone() }
    }
}

impl StatusJson {
    fn new(registry: &Registry, programs: Option<&SocketPrograms>) -> StatusJson {
        let attached = programs.is_some_and(|programs| !programs.cgroups.is_empty());
        StatusJson { registry: registry.name().to_string(), attached, programs: programs.map(ProgramsJson::from) }
    }
}

impl From<&SocketPrograms> for ProgramsJson {
    fn from(programs: &SocketPrograms) -> ProgramsJson {
        let cgroup = |cgroup: &SocketCgroup| CgroupJson {
            id: cgroup.id,
            path: cgroup.path.clone(),
            since: Utc(cgroup.since).to_string(),
            missing: cgroup.missing.clone(),
        };
        ProgramsJson {
            instance: format!("{:016x}", programs.instance),
            sockets: programs.sockets,
            sockets_per_user: programs.sockets_per_user,
            sockets_used: programs.sockets_used,
            users: programs.users.iter().map(|user| UserJson { uid: user.uid, sockets: user.sockets }).collect(),
            slots: programs.slots,
            pending_syns: programs.pending_syns,
            programs: programs
                .programs
                .iter()
                .map(|program| ProgramJson { name: program.name, id: program.id })
                .collect(),
            cgroups: programs.cgroups.iter().map(cgroup).collect(),
            unfinished: programs.unfinished,
            current: programs.current,
        }
    }
}

pub(crate) fn run(command: &Command, global: &Global) -> Outcome {
    match command {
        Command::Attach { cgroup, sockets, sockets_per_user, slots, pending_syns, json } => {
            let options = AttachOptions {
                cgroup: cgroup.clone(),
                sockets: *sockets,
                sockets_per_user: *sockets_per_user,
                slots: *slots,
                pending_syns: *pending_syns,
            };
            attach(&global.options().open()?, &options, *json)?;
            global.note_passing();
            Ok(())
        }
        Command::Detach { cgroup, all, json } => {
            if *all {
                // also of a registry that is damaged, or of another version
                let detached = SocketPrograms::detach_all_of(&global.options())?;
                return print_detached(&global.registry, &detached, false, *json);
            }
            let registry = global.options().open()?;
            let detached = match cgroup {
                Some(cgroup) => vec![SocketPrograms::detach(&registry, cgroup)?],
                None => vec![SocketPrograms::detach(&registry, &packet_traits::attach::cgroup::cgroup_root()?)?],
            };
            let left = SocketPrograms::status(&registry)?.is_some();
            print_detached(registry.name(), &detached, left, *json)
        }
        Command::Status { json } => {
            let registry = global.options().open()?;
            let programs = SocketPrograms::status(&registry)?;
            if *json {
                output::json(&StatusJson::new(&registry, programs.as_ref()))?;
            } else {
                print(&registry, programs.as_ref())?;
            }
            Ok(())
        }
        Command::SaveSyn { pid, off, json } => process::save_syn(*pid, !off, *json),
        Command::Show { pid, json } => process::show(*pid, *json),
    }
}

fn attach(registry: &Registry, options: &AttachOptions, json: bool) -> Outcome {
    // Ctrl-C waits for the pins to be whole, then takes them away.
    let interrupt = Interrupt::catch()?;
    let attached = SocketPrograms::attach(registry, options)?;
    let programs = SocketPrograms::status(registry)?;
    let cgroup = programs.iter().flat_map(|programs| &programs.cgroups).find(|cgroup| cgroup.id == attached.cgroup);
    if interrupt.came() && attached.already {
        return Err(Interrupted("it was attached before and stays so").into());
    }
    if interrupt.came() {
        if let Some(path) = cgroup.and_then(|cgroup| cgroup.path.as_deref()) {
            SocketPrograms::detach(registry, path)?;
        }
        return Err(Interrupted::NOTHING_ATTACHED.into());
    }
    if json {
        let status = StatusJson::new(registry, programs.as_ref());
        output::json(&AttachedJson { already: attached.already, updated: attached.updated, status })?;
    } else if let (Some(cgroup), Some(programs)) = (cgroup, &programs) {
        let what = match attached {
            Attached { already: true, updated: false, .. } => "already attached, nothing was changed",
            Attached { already: true, .. } => "socket options are served on",
            _ => "socket options are served",
        };
        output::line(format_args!("{cgroup}: {what}"))?;
        if attached.updated {
            output::line(format_args!(
                "the programs of another build were replaced in {}; sockets keep what they asked for",
                counted(programs.cgroups.len(), "cgroup")
            ))?;
        }
        print_sizes(programs)?;
    }
    Ok(())
}

/// `left`: socket programs of the registry are attached to other cgroups.
fn print_detached(registry: &RegistryName, detached: &[SocketCgroup], left: bool, json: bool) -> Outcome {
    if json {
        let detached = detached.iter().map(SocketCgroupJson::from).collect();
        output::json(&DetachedJson { registry: registry.to_string(), detached })?;
    } else if detached.is_empty() {
        output::line(format_args!("no socket programs of registry '{registry}' were attached"))?;
    } else {
        for cgroup in detached {
            output::line(format_args!("{cgroup}: socket options are no longer served"))?;
        }
        if !left {
            output::line("which sockets asked for traits is forgotten: after another attach they have to ask again")?;
        }
    }
    Ok(())
}

fn print(registry: &Registry, programs: Option<&SocketPrograms>) -> Outcome {
    let name = registry.name();
    let Some(programs) = programs else {
        output::line(format_args!(
            "registry '{name}' has no socket programs attached; `traits sockets attach` attaches them"
        ))?;
        return Ok(());
    };
    print_sizes(programs)?;
    let ids: Vec<String> = programs.programs.iter().map(|program| format!("{} {}", program.name, program.id)).collect();
    output::line(format_args!("programs: {} (instance {:016x})", ids.join(", "), programs.instance))?;
    let mut table = Table::new(&["CGROUP", "ID", "SINCE", "STATE"]);
    for cgroup in &programs.cgroups {
        let path = cgroup.path.as_ref().map_or_else(|| "?".to_owned(), |path| path.display().to_string());
        let state = match (cgroup.missing.as_slice(), &cgroup.path) {
            ([], Some(_)) => "attached".to_owned(),
            ([], None) => "attached; its directory is gone or out of sight".to_owned(),
            (missing, _) if missing.len() == programs.programs.len() => "removed".to_owned(),
            (missing, _) => format!("without {}; attach again", missing.join(", ")),
        };
        table.row(&[&path, &cgroup.id, &Utc(cgroup.since), &state]);
    }
    table.print()?;
    if !programs.current {
        output::line(
            "the programs are of another build of traits: `traits sockets attach` replaces them, and sockets keep what they \
             asked for",
        )?;
    }
    if programs.unfinished {
        output::line(
            "a cgroup is being attached or detached, or was by a command that was killed: the next one clears that",
        )?;
    }
    Ok(())
}

fn print_sizes(programs: &SocketPrograms) -> Outcome {
    output::line(format_args!(
        "sockets: {} of {} receive datagrams' traits, {} of one user at most, {} datagrams each; {}",
        programs.sockets_used,
        programs.sockets,
        programs.sockets_per_user,
        programs.slots,
        counted(programs.pending_syns, "pending SYN")
    ))?;
    if !programs.users.is_empty() {
        let users: Vec<_> = programs.users.iter().map(|user| format!("uid {}: {}", user.uid, user.sockets)).collect();
        output::line(format_args!("used by {}", users.join(", ")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_a_power_of_two() {
        assert_eq!(parse_slots("512"), Ok(512));
        for wrong in ["0", "1", "500", "131072", "-2", "x"] {
            assert!(parse_slots(wrong).is_err(), "{wrong}");
        }
    }
}
