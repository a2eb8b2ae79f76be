//! `traits up`, `traits down`, `traits status`, `traits log`: policies and objects whose programs stay attached.

mod log;
mod status;

use std::{
    error::Error,
    path::{Path, PathBuf},
};

use clap::Args;
use packet_traits::{
    KeyName,
    attach::{Hook, NetfilterFamily, NetfilterHook, NetfilterOptions},
    hook::UnknownHook,
};
use packet_traits_deploy::{Deployment, Location, Policy, PolicyError, RemovedKeys, interface_index, remove_keys};
use serde::Serialize;

use self::status::DeploymentJson;
pub(crate) use self::{
    log::{Log, log},
    status::{Status, status},
};
use crate::{
    Global, Mode, Outcome,
    interrupt::{Interrupt, Interrupted},
    output::{self, counted},
    policy,
};

const UP_EXAMPLES: &str = "\
Examples:
  traits up edge.traits --dev eth0
  traits up edge.traits --dev eth0 --replace
  traits up classify.bpf.o --dev eth0 --mode generic --name edge
  traits up filter.bpf.o --netfilter drop=ip:input:-100
  traits up count.bpf.o --cgroup /sys/fs/cgroup/system.slice

Attaches every program to the hook that its block or section names, or attaches none. They stay attached after the \
command ends; `traits down NAME` detaches them.

At a veth, where native XDP slows bulk TCP (docs/bench.md), auto is generic unless programs redirect or use hints; \
elsewhere if a redirect needs it.

A policy (FILE.traits, or what `traits compile` made of it) registers the keys that the registry lacks. `iif` and `oif` \
compare names, so an interface may come later or be recreated; `redirect` requires one that is there. Programs of \
`match` and `steer` blocks, and maps, are pinned in BPFFS/packet_traits_up/REGISTRY/NAME; AF_XDP sockets go into the map \
pt_xsks there, by queue.

With --replace, the version that is up runs until the new one takes over, and stays if that fails. Every packet meets \
one version at each hook. Hits and counters start at zero; `unique` gives no id twice, and AF_XDP sockets stay.";

/// Attach a policy's or an object's programs persistently
#[derive(Args)]
#[command(after_help = UP_EXAMPLES)]
pub(crate) struct Up {
    /// Policy, or BPF object file as the compiler wrote it
    file: PathBuf,
    /// Name for `traits down` [default: the file's name up to the first dot]
    #[arg(long)]
    name: Option<String>,
    /// Interface for XDP and TC programs
    #[arg(long, value_name = "INTERFACE")]
    dev: Option<String>,
    /// How XDP programs are attached
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    mode: Mode,
    /// Cgroup for cgroup programs: its directory; they act on all processes in it and below
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Hook for a netfilter program, as PROGRAM=FAMILY:HOOK or PROGRAM=FAMILY:HOOK:PRIORITY; may be repeated
    #[arg(long, value_name = "WHERE", value_parser = parse_netfilter)]
    netfilter: Vec<(String, NetfilterOptions)>,
    /// Take over from what is up under the same name, if anything is
    #[arg(long)]
    replace: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const DOWN_HELP: &str = "\
Examples:
  traits down edge
  traits down edge --keys
  traits down _new

A policy's keys stay registered, because applications may know their numbers; --keys removes those that no loaded \
program uses. Works without the registry, too, except for --keys.

Filters that an iptables rule or a socket still uses stay pinned and match nothing until the next `traits up` of that \
name; once nothing uses them, `traits down` removes them. --keep-filters keeps all of them, so that a saved rule set \
that names them can be restored; at boot, `traits up` comes before `iptables-restore`.

What a `traits up` that was killed left has the name it was to have, or `_new`. The next `traits up` removes it, too.";

/// Detach the programs that `traits up` attached
#[derive(Args)]
#[command(after_help = DOWN_HELP)]
pub(crate) struct Down {
    /// Name it was brought up under
    name: String,
    /// Remove the policy's keys that nothing else uses from the registry
    #[arg(long)]
    keys: bool,
    /// Keep the pinned filters, which then match nothing, whether something uses them or not
    #[arg(long)]
    keep_filters: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was brought up.
#[derive(Serialize)]
struct UpJson {
    #[serde(flatten)]
    deployment: DeploymentJson,
    /// Names of keys that the registry did not have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    new_keys: Vec<String>,
}

/// What was taken down.
#[derive(Serialize)]
struct DownJson {
    #[serde(flatten)]
    deployment: DeploymentJson,
    /// Names of keys that were removed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    removed_keys: Vec<String>,
    /// Programs whose filters stay pinned and match nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kept_filters: Vec<String>,
}

fn parse_netfilter(text: &str) -> Result<(String, NetfilterOptions), String> {
    let wrong = || format!("{text:?} is not PROGRAM=FAMILY:HOOK[:PRIORITY], such as drop=ip:input:-100");
    let (program, place) = text.split_once('=').filter(|(program, _)| !program.is_empty()).ok_or_else(wrong)?;
    let mut parts = place.split(':');
    let unknown = |what: &str, why: UnknownHook| format!("{}; {what}: {why}", wrong());
    let mut part = || parts.next().unwrap_or_default();
    let family: NetfilterFamily = part().parse().map_err(|why| unknown("FAMILY", why))?;
    let hook: NetfilterHook = part().parse().map_err(|why| unknown("HOOK", why))?;
    let mut options = NetfilterOptions::new(family, hook);
    if let Some(priority) = parts.next() {
        options = options.priority(priority.parse().map_err(|_| format!("{}; PRIORITY is a number", wrong()))?);
    }
    if parts.next().is_some() {
        return Err(wrong());
    }
    Ok((program.to_owned(), options))
}

impl Global {
    /// Where what is up is pinned. The registry need not be there.
    pub(crate) fn location(&self) -> Location {
        Location::new(&self.bpffs, self.registry.clone())
    }
}

/// Reads an object, or checks and compiles a policy against the registry.
fn read(file: &Path, global: &Global) -> Result<Policy, Box<dyn Error>> {
    if Policy::is_text(file) {
        return Ok(Policy::compile(file, &policy::load(file, global)?)?);
    }
    Ok(Policy::from_file(file)?)
}

/// Runs `traits up`.
pub(crate) fn up(command: &Up, global: &Global) -> Outcome {
    let registry = global.options().open()?;
    // before clang takes its time
    if let Some(interface) = &command.dev {
        interface_index(interface)?;
    }
    // Ctrl-C waits for the pins to be whole, then takes them away. It also ends the compiler.
    let interrupt = Interrupt::catch()?;
    let mut policy = interrupt
        .over(read(&command.file, global), Interrupted::NOTHING_CHANGED)?
        .mode(command.mode.into())
        .replace(command.replace);
    if let Some(name) = &command.name {
        policy = policy.named(name);
    }
    if let Some(interface) = &command.dev {
        policy = policy.on_interface(interface);
    }
    if let Some(cgroup) = &command.cgroup {
        policy = policy.in_cgroup(cgroup);
    }
    for (program, place) in &command.netfilter {
        policy = policy.netfilter(program, *place);
    }
    let mut up = policy.up(&registry).map_err(|error| match error {
        PolicyError::NetfilterGiven { .. } => {
            "the policy already names the hooks of its netfilter programs; remove --netfilter".into()
        }
        other => Box::<dyn Error>::from(other),
    })?;
    // What was replaced is gone, so the new version stays.
    if interrupt.came() && !up.replaced {
        up.undo(&registry)?;
        return Err(Interrupted::NOTHING_ATTACHED.into());
    }
    global.note_passing();
    Deployment::locate(std::slice::from_mut(&mut up.deployment));
    let deployment = &up.deployment;
    if !deployment.kept().is_empty() {
        note_kept(&Deployment::find(deployment.name(), &global.location())?, deployment.kept(), false);
    }
    unused(command, deployment).for_each(output::note);
    up.notes.iter().for_each(output::note);
    let new_keys: Vec<_> = up.new_keys.iter().map(KeyName::to_string).collect();
    if command.json {
        output::json(&UpJson { deployment: DeploymentJson::new(deployment), new_keys })?;
    } else {
        status::print(std::slice::from_ref(deployment))?;
        if !new_keys.is_empty() {
            output::line(format_args!("registered: {}", new_keys.join(", ")))?;
        }
    }
    Ok(())
}

/// What was given and concerns no program.
fn unused(command: &Up, deployment: &Deployment) -> impl Iterator<Item = String> {
    let any = |is_one: fn(Hook) -> bool| deployment.attached().iter().any(|deployed| is_one(deployed.info.hook));
    let name = deployment.name();
    let at_interface = any(|hook| matches!(hook, Hook::Xdp | Hook::Tcx(_) | Hook::Clsact(_)));
    let dev = command.dev.as_ref().filter(|_| !at_interface).map(|dev| {
        let others = match any(|hook| matches!(hook, Hook::Netfilter { .. })) {
            true => "; those at netfilter meet the packets of all interfaces",
            false => "",
        };
        format!("--dev {dev} has no effect: {name} has no XDP and no TC program{others}")
    });
    let in_cgroup = any(|hook| matches!(hook, Hook::Cgroup(_)));
    let cgroup = command
        .cgroup
        .as_ref()
        .filter(|_| !in_cgroup)
        .map(|path| format!("--cgroup {} has no effect: {name} has no program for cgroups", path.display()));
    let without_xdp = command.mode != Mode::Auto && !any(|hook| hook == Hook::Xdp);
    let mode = without_xdp.then(|| format!("--mode has no effect: {name} has no XDP program"));
    dev.into_iter().chain(cgroup).chain(mode)
}

/// Runs `traits down`.
pub(crate) fn down(command: &Down, global: &Global) -> Outcome {
    // before anything is detached
    let registry = command.keys.then(|| global.options().open()).transpose()?;
    let mut deployment = match command.keep_filters {
        true => Deployment::down_but_filters(&command.name, &global.location())?,
        false => Deployment::down(&command.name, &global.location())?,
    };
    Deployment::locate(std::slice::from_mut(&mut deployment));
    let keys = match registry {
        Some(registry) => remove_keys(&deployment, &registry)?,
        None => RemovedKeys::default(),
    };
    let removed: Vec<_> = keys.removed.iter().map(KeyName::to_string).collect();
    if command.json {
        let kept_filters = deployment.kept().to_vec();
        output::json(&DownJson { deployment: DeploymentJson::new(&deployment), removed_keys: removed, kept_filters })?;
    } else {
        let others = match deployment.unreadable() {
            [] => String::new(),
            pins => format!(", {} removed", counted(pins.len(), "other pin")),
        };
        let programs = counted(deployment.attached().len(), "program");
        output::line(format_args!("{} is down ({programs} detached{others})", deployment.name()))?;
        if !removed.is_empty() {
            output::line(format_args!("removed keys: {}", removed.join(", ")))?;
        }
    }
    keys.kept.iter().for_each(output::note);
    note_kept(&deployment, deployment.kept(), command.keep_filters);
    Ok(())
}

/// Says which filters stay, and for how long.
fn note_kept(deployment: &Deployment, kept: &[String], all: bool) {
    let name = deployment.name();
    for filter in deployment.filters().iter().filter(|filter| kept.contains(&filter.program)) {
        let why = if all { "stays pinned" } else { "is still used, by an iptables rule or a socket, and stays pinned" };
        output::note(format_args!(
            "{} {why}: it matches nothing until `traits up` brings up {name} with it again; `traits down {name}` removes \
             it once nothing uses it",
            filter.path.display()
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netfilter_places_are_parsed_whole() {
        assert_eq!(
            parse_netfilter("drop=ip:input"),
            Ok(("drop".to_owned(), NetfilterOptions::new(NetfilterFamily::Ipv4, NetfilterHook::Input)))
        );
        assert_eq!(parse_netfilter("drop=ipv4:local-in"), parse_netfilter("drop=ip:input"));
        assert!(parse_netfilter("drop=ipv6:post_routing:-100").is_ok());
        for wrong in [
            "drop",
            "=ip:input",
            "drop=inet:input",
            "drop=ip:in",
            "drop=ip",
            "drop=ipv4:forward:x",
            "d=ipv4:forward:1:2",
        ] {
            assert!(parse_netfilter(wrong).is_err(), "{wrong}");
        }
    }
}
