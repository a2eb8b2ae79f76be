//! `traits status`, and how what is up is shown: programs, rules with their hits, counters.

use clap::Args;
use packet_traits::{
    attach::{Hook, NATIVE_AT_VETH, Target, XdpMode, is_veth},
    deployment::{Deployed, DeployedFilter, FilterUse, NetNamespace},
    registry::Utc,
};
use packet_traits_deploy::{Count, Deployment, Statistics};
use serde::Serialize;

use crate::{
    Global, Outcome,
    output::{self, Table, counted},
};

/// How many of a counter's values are shown.
const VALUES_SHOWN: usize = 20;

const HELP: &str = "\
Examples:
  traits status
  traits status edge
  traits --registry lab status --json

Shows a policy's rules, with the packets and bytes for which each held, and its counters. They start at zero when the \
policy is brought up or replaced. Works without the registry, too.

A target without a network namespace is in that of this command. `_new (unfinished)` is being brought up, or was left \
by a `traits up` that was killed; of `edge (down)` filters are left that something still uses.

docs/json.md lists the members of what --json prints.";

/// Show what `traits up` attached, and what its rules have counted
#[derive(Args)]
#[command(after_help = HELP)]
pub(crate) struct Status {
    /// Only what was brought up under this name
    name: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A deployment.
#[derive(Serialize)]
pub(super) struct DeploymentJson {
    /// Its name.
    name: String,
    /// Whether it is being made, or was by a process that was killed.
    unfinished: bool,
    /// Its programs.
    programs: Vec<DeployedJson>,
    /// Its socket filters, which others attach.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    filters: Vec<FilterJson>,
    /// Names of its pinned maps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    maps: Vec<String>,
    /// What its policy has counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Statistics>,
    /// What else is pinned in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable: Vec<UnreadableJson>,
}

/// A pin that is not part of a deployment.
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
    /// Its name, with the hook behind it if it is attached more than once.
    program: String,
    /// The hook, such as `xdp` or `tcx ingress`.
    hook: String,
    /// What it is attached to at the hook.
    target: String,
    /// The interface's name now, if it is attached to one and its network namespace was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    dev: Option<String>,
    /// The interface's index in its network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    ifindex: Option<u32>,
    /// The inode number of the network namespace, if it is attached in one that was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u64>,
    /// The name of that in `ip netns`; may be empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    netns_name: Option<String>,
    /// Its id, as `bpftool prog` shows it.
    program_id: u32,
    /// `native` or `generic`, for an XDP program.
    #[serde(skip_serializing_if = "Option::is_none")]
    xdp_mode: Option<String>,
    /// When it was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
}

/// A socket filter.
#[derive(Serialize)]
struct FilterJson {
    /// Its name.
    program: String,
    /// `match` or `steer`.
    r#use: &'static str,
    /// Where it is pinned.
    path: String,
    /// The id of the program it runs.
    program_id: u32,
    /// When that was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
}

impl DeploymentJson {
    /// What is up, without what was counted.
    pub(super) fn new(deployment: &Deployment) -> DeploymentJson {
        DeploymentJson {
            name: deployment.name().to_owned(),
            unfinished: deployment.unfinished(),
            programs: deployment.attached().iter().map(|deployed| DeployedJson::new(deployment, deployed)).collect(),
            filters: deployment.filters().iter().map(FilterJson::from).collect(),
            maps: deployment.maps().map(str::to_owned).collect(),
            policy: None,
            unreadable: deployment
                .unreadable()
                .iter()
                .map(|unreadable| UnreadableJson { pin: unreadable.pin.clone(), why: unreadable.why.clone() })
                .collect(),
        }
    }
}

impl DeployedJson {
    fn new(deployment: &Deployment, deployed: &Deployed) -> DeployedJson {
        let (ifindex, dev) = match &deployed.info.target {
            Target::Interface { ifindex, name } => (Some(*ifindex), name.clone()),
            _ => (None, None),
        };
        let namespace = deployment.namespace().filter(|_| is_in_namespace(deployed));
        DeployedJson {
            program: deployed.pin.clone(),
            hook: deployed.info.hook.to_string(),
            target: target(deployment, deployed),
            dev,
            ifindex,
            netns: namespace.map(|namespace| namespace.inode),
            netns_name: namespace.map(|namespace| namespace.name.clone().unwrap_or_default()),
            program_id: deployed.info.program_id,
            xdp_mode: deployed.xdp_mode.map(|mode| mode.to_string()),
            since: deployed.since.map(|since| Utc(since).to_string()),
        }
    }
}

impl From<&DeployedFilter> for FilterJson {
    fn from(filter: &DeployedFilter) -> FilterJson {
        FilterJson {
            program: filter.program.clone(),
            r#use: use_name(filter.usage),
            path: filter.path.display().to_string(),
            program_id: filter.program_id,
            since: filter.since.map(|since| Utc(since).to_string()),
        }
    }
}

fn use_name(usage: FilterUse) -> &'static str {
    match usage {
        FilterUse::Match => "match",
        FilterUse::Steer => "steer",
    }
}

/// What a program is attached to: for a cgroup the path that was given.
fn target(deployment: &Deployment, deployed: &Deployed) -> String {
    match (&deployed.info.target, deployment.cgroup()) {
        (Target::Cgroup { path: None, .. }, Some(path)) => path.display().to_string(),
        (target, _) => target.to_string(),
    }
}

/// Whether a program meets packets of one network namespace.
fn is_in_namespace(deployed: &Deployed) -> bool {
    matches!(deployed.info.target, Target::Interface { .. } | Target::Namespace { .. })
}

/// What a program is attached to, with the network namespace if it is not this command's.
fn place(deployment: &Deployment, deployed: &Deployed) -> String {
    let target = target(deployment, deployed);
    match deployment.namespace() {
        _ if !is_in_namespace(deployed) => target,
        Some(NetNamespace { current: true, .. }) => target,
        Some(NetNamespace { name: Some(name), .. }) => format!("{target} in netns {name}"),
        Some(NetNamespace { inode, .. }) => match deployed.info.target {
            Target::Namespace { .. } => target,
            _ => format!("{target} in netns {inode}"),
        },
        None => match deployed.info.target {
            Target::Namespace { .. } => "a netns that is gone or cannot be entered".to_owned(),
            _ => format!("{target} in a netns that is gone or cannot be entered"),
        },
    }
}

/// Prints what is attached and pinned.
pub(super) fn print(deployments: &[Deployment]) -> std::io::Result<()> {
    let mut table = Table::new(&["NAME", "PROGRAM", "HOOK", "TARGET", "ID", "SINCE"]);
    let since = |since: Option<_>| since.map_or_else(|| "-".to_owned(), |since| Utc(since).to_string());
    for deployment in deployments {
        let name = match deployment.name() {
            name if deployment.unfinished() => format!("{name} (unfinished)"),
            name if deployment.is_down() => format!("{name} (down)"),
            name => name.to_owned(),
        };
        for deployed in deployment.attached() {
            let hook = match (deployed.info.hook, deployed.xdp_mode) {
                (Hook::Xdp, Some(mode)) => format!("xdp ({mode})"),
                (hook, _) => hook.to_string(),
            };
            let place = place(deployment, deployed);
            table.row(&[&name, &deployed.pin, &hook, &place, &deployed.info.program_id, &since(deployed.since)]);
        }
        for filter in deployment.filters() {
            let (usage, path) = (use_name(filter.usage), filter.path.display());
            let program = if filter.program_id == 0 { "-".to_owned() } else { filter.program_id.to_string() };
            table.row(&[&name, &filter.program, &usage, &path, &program, &since(filter.since)]);
        }
        for unreadable in deployment.unreadable() {
            table.row(&[&name, &unreadable.pin, &"unreadable", &"-", &"-", &"-"]);
        }
        if deployment.attached().is_empty() && deployment.filters().is_empty() && deployment.unreadable().is_empty() {
            table.row(&[&name, &"-", &"-", &"-", &"-", &"-"]);
        }
    }
    table.print()?;
    for unreadable in deployments.iter().flat_map(Deployment::unreadable) {
        output::line(format!("{} is unreadable: {}", unreadable.pin, unreadable.why))?;
    }
    for veth in native_veths(deployments) {
        output::line(format!("{veth} is a veth: {NATIVE_AT_VETH}"))?;
    }
    Ok(())
}

/// Names of the veths of this network namespace that have native XDP.
fn native_veths(deployments: &[Deployment]) -> Vec<&str> {
    let here = |deployment: &&Deployment| deployment.namespace().is_some_and(|namespace| namespace.current);
    let attached = deployments.iter().filter(here).flat_map(Deployment::attached);
    let native = attached.filter(|deployed| deployed.xdp_mode == Some(XdpMode::Native));
    native
        .filter_map(|deployed| match &deployed.info.target {
            Target::Interface { ifindex, name: Some(name) } if is_veth(*ifindex) => Some(name.as_str()),
            _ => None,
        })
        .collect()
}

/// Prints what a policy has counted.
fn print_statistics(name: &str, statistics: &Statistics) -> std::io::Result<()> {
    output::line(format_args!("\n{name}: {}", statistics.source))?;
    let mut rules = Table::new(&["RULE", "PROGRAM", "PACKETS", "BYTES", "TEXT"]);
    for one in &statistics.rules {
        let place = format!("{}:{}", one.rule.file, one.rule.line);
        rules.row(&[&place, &one.program, &one.count.packets, &one.count.bytes, &one.rule.text]);
    }
    rules.print()?;
    let mut counters = Table::new(&["COUNTER", "VALUE", "PACKETS", "BYTES"]);
    let mut row = |name: &str, value: &str, count: Count| counters.row(&[&name, &value, &count.packets, &count.bytes]);
    for counter in &statistics.counters {
        let Some(values) = &counter.values else {
            row(&counter.name, "", counter.count);
            continue;
        };
        for value in values.iter().take(VALUES_SHOWN) {
            row(&counter.name, &value.value, value.count);
        }
        if values.len() > VALUES_SHOWN {
            row(&counter.name, &format!("(all {})", values.len()), counter.count);
        }
    }
    if !statistics.counters.is_empty() {
        output::line("")?;
    }
    counters.print()?;
    match statistics.log_lost {
        None | Some(0) => Ok(()),
        Some(lost) => {
            let events = counted(lost, "log event");
            output::line(format_args!("\n{events} found no room; `traits log {name}` makes room"))
        }
    }
}

/// Runs `traits status`.
pub(crate) fn status(command: &Status, global: &Global) -> Outcome {
    let mut deployments = match &command.name {
        Some(name) => vec![Deployment::find(name, &global.location())?],
        None => Deployment::list(&global.location())?,
    };
    Deployment::locate(&mut deployments);
    let counted = deployments.iter().map(Statistics::of).collect::<Result<Vec<_>, _>>()?;
    if command.json {
        let all = deployments.iter().zip(counted);
        let all: Vec<_> = all.map(|(one, policy)| DeploymentJson { policy, ..DeploymentJson::new(one) }).collect();
        output::json(&serde_json::json!({ "deployments": all }))?;
    } else if deployments.is_empty() {
        output::line(format!(
            "nothing is up in registry {}; `traits up FILE --dev INTERFACE` brings up a policy or an object's programs",
            global.registry
        ))?;
    } else {
        print(&deployments)?;
        for (deployment, statistics) in deployments.iter().zip(&counted) {
            if let Some(statistics) = statistics {
                print_statistics(deployment.name(), statistics)?;
            }
        }
    }
    Ok(())
}
