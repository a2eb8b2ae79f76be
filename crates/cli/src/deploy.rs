//! `traits up`, `traits down`, `traits status`: objects whose programs stay attached.

use std::{ffi::CString, path::PathBuf};

use clap::Args;
use packet_traits::{
    attach::{Hook, NetfilterFamily, NetfilterHook, NetfilterOptions},
    bind::BoundObject,
    deployment::{Deployment, Location, UpOptions},
};
use serde::Serialize;

use crate::{
    Global, Outcome,
    interrupt::{Interrupt, Interrupted},
    mode::Mode,
    output::{self, Table},
};

const UP_EXAMPLES: &str = "\
Examples:
  traits up classify.bpf.o --dev eth0
  traits up classify.bpf.o --dev eth0 --mode generic --name edge
  traits up filter.bpf.o --netfilter drop=ipv4:local-in --netfilter drop=ipv6:local-in:-100
  traits up count.bpf.o --cgroup /sys/fs/cgroup/system.slice

Every program of the object is attached to the hook its section names, or none is. They stay attached when the command
ends; `traits down NAME` takes them away.";

/// Bind an object to the registry, load it and attach its programs for good
#[derive(Args)]
#[command(after_help = UP_EXAMPLES)]
pub(crate) struct Up {
    /// BPF object file, as the compiler wrote it
    object: PathBuf,
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
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Detach the programs that `traits up` attached
#[derive(Args)]
#[command(after_help = "\
Examples:
  traits down classify
  traits down _new        what a `traits up` that was killed left; the next `traits up` takes it away, too

Works without the registry, too.")]
pub(crate) struct Down {
    /// Name it was brought up under
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show what `traits up` attached
#[derive(Args)]
#[command(after_help = "\
Examples:
  traits status
  traits --registry lab status --json

Works without the registry, too. `_new (unfinished)` is being brought up, or was by a `traits up` that was killed.
An interface that is listed by its index may be in another network namespace than this command.")]
pub(crate) struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn parse_netfilter(text: &str) -> Result<(String, NetfilterOptions), String> {
    let wrong = || format!("{text:?} is not PROGRAM=FAMILY:HOOK[:PRIORITY], such as drop=ipv4:local-in:-100");
    let (program, place) = text.split_once('=').filter(|(program, _)| !program.is_empty()).ok_or_else(wrong)?;
    let mut parts = place.split(':');
    let family = match parts.next() {
        Some("ipv4") => NetfilterFamily::Ipv4,
        Some("ipv6") => NetfilterFamily::Ipv6,
        _ => return Err(format!("{}; FAMILY is ipv4 or ipv6", wrong())),
    };
    let hook = match parts.next().map(|hook| hook.replace('_', "-")).as_deref() {
        Some("pre-routing") => NetfilterHook::PreRouting,
        Some("local-in") => NetfilterHook::LocalIn,
        Some("forward") => NetfilterHook::Forward,
        Some("local-out") => NetfilterHook::LocalOut,
        Some("post-routing") => NetfilterHook::PostRouting,
        _ => return Err(format!("{}; HOOK is pre-routing, local-in, forward, local-out or post-routing", wrong())),
    };
    let mut options = NetfilterOptions::new(family, hook);
    if let Some(priority) = parts.next() {
        options = options.priority(priority.parse().map_err(|_| format!("{}; PRIORITY is a number", wrong()))?);
    }
    if parts.next().is_some() {
        return Err(wrong());
    }
    Ok((program.to_owned(), options))
}

/// A deployment.
#[derive(Serialize)]
struct DeploymentJson {
    /// Its name.
    name: String,
    /// Whether it is being made, or was by a process that was killed.
    unfinished: bool,
    /// Its programs.
    programs: Vec<DeployedJson>,
    /// What else is pinned in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable: Vec<UnreadableJson>,
}

/// A pin that is not an attached program.
#[derive(Serialize)]
struct UnreadableJson {
    /// Its file name.
    pin: String,
    /// Why it is not.
    why: String,
}

/// An attached program.
#[derive(Serialize)]
struct DeployedJson {
    /// Its name.
    program: String,
    /// The hook, such as `xdp` or `tcx/ingress`.
    hook: String,
    /// What it is attached to at the hook.
    target: String,
    /// Its id, as `bpftool prog` shows it.
    program_id: u32,
    /// `native` or `generic`, for an XDP program that this command attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    xdp_mode: Option<String>,
}

impl From<&Deployment> for DeploymentJson {
    fn from(deployment: &Deployment) -> DeploymentJson {
        DeploymentJson {
            name: deployment.name().to_owned(),
            unfinished: deployment.unfinished(),
            programs: deployment
                .attached()
                .iter()
                .map(|deployed| DeployedJson {
                    program: deployed.program.clone(),
                    hook: deployed.info.hook.to_string(),
                    target: deployed.info.target.to_string(),
                    program_id: deployed.info.program_id,
                    xdp_mode: deployed.xdp_mode.map(|mode| mode.to_string()),
                })
                .collect(),
            unreadable: deployment
                .unreadable()
                .iter()
                .map(|unreadable| UnreadableJson { pin: unreadable.pin.clone(), why: unreadable.why.clone() })
                .collect(),
        }
    }
}

fn interface_index(name: &str) -> Result<u32, String> {
    let c_name = CString::new(name).map_err(|_| format!("interface name {name:?} has a NUL in it"))?;
    // SAFETY: if_nametoindex(3) reads a NUL-terminated name.
    match unsafe { libc::if_nametoindex(c_name.as_ptr()) } {
        0 => Err(format!("there is no interface {name} in this network namespace (`ip link` lists them)")),
        index => Ok(index),
    }
}

fn print(deployments: &[Deployment]) -> std::io::Result<()> {
    let mut table = Table::new(&["NAME", "PROGRAM", "HOOK", "TARGET", "ID"]);
    for deployment in deployments {
        let name = match deployment.unfinished() {
            true => format!("{} (unfinished)", deployment.name()),
            false => deployment.name().to_owned(),
        };
        for deployed in deployment.attached() {
            let hook = match (deployed.info.hook, deployed.xdp_mode) {
                (Hook::Xdp, Some(mode)) => format!("xdp ({mode})"),
                (hook, _) => hook.to_string(),
            };
            table.row(&[&name, &deployed.program, &hook, &deployed.info.target, &deployed.info.program_id]);
        }
        for unreadable in deployment.unreadable() {
            table.row(&[&name, &unreadable.pin, &"unreadable", &"-", &"-"]);
        }
        if deployment.attached().is_empty() && deployment.unreadable().is_empty() {
            table.row(&[&name, &"-", &"-", &"-", &"-"]);
        }
    }
    table.print()?;
    for unreadable in deployments.iter().flat_map(Deployment::unreadable) {
        output::line(format!("{} is unreadable: {}", unreadable.pin, unreadable.why))?;
    }
    Ok(())
}

impl Global {
    /// Where what is up is pinned. The registry need not be there.
    fn location(&self) -> Location {
        Location::new(&self.bpffs, self.registry.clone())
    }
}

/// Runs `traits up`.
pub(crate) fn up(command: &Up, global: &Global) -> Outcome {
    let registry = global.options().open()?;
    let name = match &command.name {
        Some(name) => name.clone(),
        None => {
            let file = command.object.file_name().unwrap_or_default().to_string_lossy();
            file.split('.').next().unwrap_or_default().to_owned()
        }
    };
    let options = UpOptions {
        interface: command.dev.as_deref().map(interface_index).transpose()?,
        xdp_mode: command.mode.into(),
        cgroup: command.cgroup.clone(),
        netfilter: command.netfilter.clone(),
    };
    // Ctrl-C waits for the pins to be whole, then takes them away.
    let interrupt = Interrupt::catch()?;
    let object = BoundObject::open(&command.object, &registry)?;
    let deployment = Deployment::up(&name, object, &registry, &options)?;
    if interrupt.came() {
        Deployment::down(&name, &global.location())?;
        return Err(Interrupted::NOTHING_ATTACHED.into());
    }
    if command.json {
        output::json(&DeploymentJson::from(&deployment))?;
    } else {
        print(std::slice::from_ref(&deployment))?;
    }
    Ok(())
}

/// Runs `traits down`.
pub(crate) fn down(command: &Down, global: &Global) -> Outcome {
    let deployment = Deployment::down(&command.name, &global.location())?;
    if command.json {
        output::json(&DeploymentJson::from(&deployment))?;
    } else {
        let others = match deployment.unreadable() {
            [] => String::new(),
            pins => format!(", {} other pins removed", pins.len()),
        };
        let (name, programs) = (deployment.name(), deployment.attached().len());
        output::line(format!("{name} is down ({programs} programs detached{others})"))?;
    }
    Ok(())
}

/// Runs `traits status`.
pub(crate) fn status(command: &Status, global: &Global) -> Outcome {
    let deployments = Deployment::list(&global.location())?;
    if command.json {
        let all: Vec<_> = deployments.iter().map(DeploymentJson::from).collect();
        output::json(&serde_json::json!({ "deployments": all }))?;
    } else if deployments.is_empty() {
        output::line(format!(
            "nothing is up in registry {}; `traits up OBJECT --dev INTERFACE` attaches an object's programs",
            global.registry
        ))?;
    } else {
        print(&deployments)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netfilter_places_are_parsed_whole() {
        assert_eq!(
            parse_netfilter("drop=ipv4:local-in"),
            Ok(("drop".to_owned(), NetfilterOptions::new(NetfilterFamily::Ipv4, NetfilterHook::LocalIn)))
        );
        assert!(parse_netfilter("drop=ipv6:post_routing:-100").is_ok());
        for wrong in
            ["drop", "=ipv4:local-in", "drop=ip:local-in", "drop=ipv4:in", "drop=ipv4:forward:x", "d=ipv4:forward:1:2"]
        {
            assert!(parse_netfilter(wrong).is_err(), "{wrong}");
        }
    }
}
