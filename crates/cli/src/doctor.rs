//! `traits doctor`: what this kernel, this process and this host's interfaces can do for traits, found by trying.
//!
//! The probes are those of [`packet_traits::doctor`]; here are the two namespaces, the cgroup and the registry that they
//! are tried in, the compiler, and printing. All of it is held by descriptors of this process, as in the demo.

use std::{
    error::Error,
    io,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use packet_traits::{
    Hint,
    attach::cgroup,
    bpffs::DEFAULT_ROOT,
    deployment::Holder,
    doctor::{self, Finding, Ground, Interface, Probe, Route, Status, Subject},
    registry::{Registry, RegistryName},
};
use packet_traits_lab::{Bpffs, Cgroup, End, Family, Pair, udp_socket};
use packet_traits_policy::{
    check::{CheckOptions, Loader, check},
    compile::Compiler,
    emit::{EmitOptions, emit},
};
use serde::Serialize;

use crate::{
    Global, advice,
    interrupt::{Interrupt, Interrupted},
    output::{self, counted},
};

/// Find out by trying what this kernel and the interfaces can do for traits
///
/// Loads a program of each kind, attaches it in two namespaces of its own, sends datagrams from one to the other, and says
/// what each answer means and what to do. The host's interfaces are only asked about. Leaves nothing behind.
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    /// Ask about this interface only [default: those that are up, 16 at most]
    #[arg(long, value_name = "INTERFACE")]
    dev: Option<String>,
    /// Also attach an XDP program to --dev for a second, if it has none; some drivers reset the link then
    #[arg(long = "try", requires = "dev")]
    attach: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Examples:
  sudo traits doctor
  sudo traits doctor --dev eth0 --try
  traits doctor --json | jq '.findings[] | select(.status == \"no\")'

docs/json.md lists the members of what --json prints. Exit status: 0 TC can read what XDP sets, 1 it cannot, 2 wrong \
usage, 130 interrupted.";

/// How many interfaces are asked about without --dev.
const INTERFACES_MAX: usize = 16;

/// The version of the JSON shape.
const VERSION: u32 = 1;

/// Why a subject was not tried.
const NEEDS_PRIVILEGES: &str = "needs the privileges above";

pub(crate) fn run(options: &Options, global: &Global) -> Result<ExitCode, Box<dyn Error>> {
    let interfaces =
        match &options.dev {
            None => Interface::all()?,
            Some(name) => vec![Interface::named(name).ok_or_else(|| {
                format!("there is no interface {name} in this network namespace (`ip link` lists them)")
            })?],
        };
    let interrupt = Interrupt::catch()?;
    let findings = examine(options, global, &interfaces, &|| interrupt.came())?;
    let Some(findings) = interrupt.over(Ok(findings), Interrupted::NOTHING_LEFT)? else {
        return Err(Interrupted::NOTHING_LEFT.into());
    };
    let missing = doctor::missing_basics(&findings);
    let works = missing.is_empty();
    if options.json {
        output::json(&ReportJson::new(&findings, &missing))?;
    } else {
        print(&findings, &missing, interfaces.len())?;
    }
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks everything; `None` if it was interrupted.
fn examine(
    options: &Options,
    global: &Global,
    interfaces: &[Interface],
    stop: &dyn Fn() -> bool,
) -> Result<Option<Vec<Finding>>, Box<dyn Error>> {
    let mut findings = doctor::host(&global.bpffs);
    let bpffs = findings.iter_mut().find(|finding| finding.probe == Probe::Bpffs);
    if let Some(next) = bpffs.and_then(|finding| finding.next.as_mut())
        && global.bpffs != Path::new(DEFAULT_ROOT)
    {
        next.push_str(&advice::clause(&Hint::NameBpffs, &global.bpffs));
    }
    findings.push(clang());
    let works = |probe| findings.iter().any(|found: &Finding| found.probe == probe && found.status.works());
    if !works(Probe::Privileges) {
        for subject in [Subject::Programs, Subject::Reading, Subject::Maps, Subject::Sockets, Subject::Path] {
            findings.extend(doctor::untried(subject, NEEDS_PRIVILEGES));
        }
        ask_interfaces(&mut findings, interfaces, global);
        return Ok(Some(findings));
    }
    if stop() {
        return Ok(None);
    }
    let mut rig = None;
    match Rig::build() {
        Ok(built) => {
            findings.push(Finding::yes(Probe::Namespaces, "made, with a veth pair"));
            rig = Some(built);
        }
        Err(why) => findings.push(Finding::no(Probe::Namespaces, why)),
    }
    type Step<'a> = (Subject, &'a dyn Fn() -> Vec<Finding>);
    let in_rig = |subject, probe: &(dyn Fn(&Rig) -> Vec<Finding> + Sync)| match &rig {
        Some(rig) => rig.pair.rx().netns().enter(|| probe(rig)),
        None => doctor::untried(subject, "there are no namespaces to try it in"),
    };
    let steps: [Step<'_>; 5] = [
        (Subject::Programs, &|| in_rig(Subject::Programs, &|rig| doctor::programs(&rig.ground()))),
        (Subject::Reading, &doctor::reading),
        (Subject::Maps, &doctor::maps),
        (Subject::Sockets, &|| in_rig(Subject::Sockets, &|rig| doctor::sockets(&rig.ground()))),
        (Subject::Path, &|| in_rig(Subject::Path, &Rig::path)),
    ];
    for (subject, step) in steps {
        tracing::debug!("probing {}", subject.name());
        findings.extend(step());
        if stop() {
            return Ok(None);
        }
    }
    ask_interfaces(&mut findings, interfaces, global);
    if let (true, [interface]) = (options.attach, interfaces) {
        findings.extend(doctor::try_interface(interface));
    }
    Ok(if stop() { None } else { Some(findings) })
}

fn ask_interfaces(findings: &mut Vec<Finding>, interfaces: &[Interface], global: &Global) {
    for interface in interfaces.iter().take(INTERFACES_MAX) {
        findings.extend(doctor::interface(interface).into_iter().map(|finding| name_holder(finding, global)));
    }
}

/// Has a finding say what `traits up` attached.
fn name_holder(mut finding: Finding, global: &Global) -> Finding {
    let program = finding.number.filter(|_| finding.probe == Probe::XdpAttached).and_then(|id| id.try_into().ok());
    let Some(holder) = program.and_then(|id| Holder::of_program(&global.bpffs, id)) else { return finding };
    let next = format!("to take its place, detach it first: {}", advice::take_down(&holder, &global.bpffs));
    finding.found += &format!(", by {}", holder.name());
    finding.with_next(next)
}

/// Two namespaces with a link, and a cgroup.
struct Rig {
    pair: Pair,
    cgroup: Result<Cgroup, String>,
}

impl Rig {
    fn build() -> Result<Rig, packet_traits_lab::Error> {
        let pair = Pair::new()?;
        let cgroup = match cgroup::cgroup_tree() {
            Ok(_) => Cgroup::new().map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        Ok(Rig { pair, cgroup })
    }

    fn ground(&self) -> Ground {
        let ground = Ground::new(self.pair.rx().ifindex());
        match &self.cgroup {
            Ok(cgroup) => ground.cgroup(cgroup.path()),
            Err(_) => ground,
        }
    }

    /// In the receiver's namespace.
    fn path(&self) -> Vec<Finding> {
        self.try_path().unwrap_or_else(|why| doctor::untried(Subject::Path, &why.to_string()))
    }

    fn try_path(&self) -> Result<Vec<Finding>, Box<dyn Error>> {
        let (ground, route) = (self.ground(), self.route()?);
        let mut findings = doctor::room(&ground, &route);
        // Nobody else sees it, and it goes with the process. Its area is as long as the kernel allows.
        let bpffs = Bpffs::new()?;
        let registry = Registry::options().name(RegistryName::new("doctor")?).bpffs(bpffs.path()).create()?;
        findings.extend(doctor::path(&registry, &ground, &route));
        Ok(findings)
    }

    /// The receiver's socket belongs to the cgroup.
    fn route(&self) -> Result<Route, Box<dyn Error>> {
        let socket = |end: &End| udp_socket(end.netns(), end.addr(Family::V4, 0));
        let receiver = match &self.cgroup {
            Ok(cgroup) => cgroup.enter(|| socket(self.pair.rx())),
            Err(_) => socket(self.pair.rx()),
        };
        Ok(Route::new(socket(self.pair.tx())?, receiver?)?)
    }
}

/// Compiles a policy of one rule.
fn clang() -> Finding {
    let compiler = Compiler::new(&libbpf_sys::API_HEADERS);
    let version = Command::new(&compiler.clang).arg("--version").stdin(Stdio::null()).output();
    let version = match version {
        Ok(output) => String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::limited(Probe::Clang, format!("there is no {}", compiler.clang.display()));
        }
        Err(error) => return Finding::limited(Probe::Clang, format!("{}: {error}", compiler.clang.display())),
    };
    let compiled = check(Path::new("doctor.traits"), &OneRule, &CheckOptions::default())
        .map_err(|_| "the policy of one rule is refused".to_owned())
        .and_then(|checked| {
            emit(&checked.policy, &checked.sources, &EmitOptions::default()).map_err(|error| error.to_string())
        })
        .and_then(|emitted| compiler.compile(&emitted).map_err(|error| error.to_string()));
    match compiled {
        Ok(_) => Finding::yes(Probe::Clang, version),
        Err(why) => Finding::limited(Probe::Clang, why),
    }
}

/// The policy that is compiled.
struct OneRule;

impl Loader for OneRule {
    fn read(&self, _: &Path) -> io::Result<Vec<u8>> {
        Ok(b"xdp { accept }\n".to_vec())
    }
}

/// How wide lines are made.
const WIDTH: usize = 110;
const CHECK: usize = 21;
const STATUS: usize = 7;
/// Where what a check means begins.
const INDENT: usize = 2 + CHECK + 2 + STATUS + 2;

fn print(findings: &[Finding], missing: &[String], interfaces: usize) -> io::Result<()> {
    output::line(format_args!("kernel {}", doctor::kernel()))?;
    for subject in Subject::ALL {
        let of_host = |found: &&Finding| found.probe.subject() == subject && found.interface.is_none();
        print_group(subject.name(), &findings.iter().filter(of_host).collect::<Vec<_>>())?;
    }
    let mut names: Vec<&String> = findings.iter().filter_map(|found| found.interface.as_ref()).collect();
    names.dedup();
    for name in names {
        let of_interface = |found: &&Finding| found.interface.as_ref() == Some(name);
        print_group(&format!("interface {name}"), &findings.iter().filter(of_interface).collect::<Vec<_>>())?;
    }
    if interfaces > INTERFACES_MAX {
        let more = counted(interfaces - INTERFACES_MAX, "more interface");
        output::line(format_args!("\n{more} not asked about: name one with --dev"))?;
    }
    let count = |status| findings.iter().filter(|found| found.status == status).count();
    output::line(format_args!(
        "\n{} yes, {} limited, {} no, {} untried.",
        count(Status::Yes),
        count(Status::Limited),
        count(Status::No),
        count(Status::Untried)
    ))?;
    match missing {
        [] => output::line("XDP can set a trait here, and TC reads it: traits work."),
        some => output::line(format_args!("Traits do not work here. Missing: {}.", some.join(", "))),
    }
}

fn print_group(title: &str, findings: &[&Finding]) -> io::Result<()> {
    if !findings.is_empty() {
        output::line(format_args!("\n{title}"))?;
    }
    for finding in findings {
        let (id, means) = (finding.probe.id(), finding.probe.means());
        let head = format!("  {id:<CHECK$}  {:<STATUS$}  ", finding.status);
        let bad = !matches!(finding.status, Status::Yes | Status::Info);
        let text = match finding.found.as_str() {
            "" => means.to_owned(),
            _ if bad => means.to_owned(),
            found => format!("{means}: {found}"),
        };
        wrapped(&head, &text)?;
        let indent = " ".repeat(INDENT);
        if bad && !finding.found.is_empty() {
            let label = if finding.status == Status::Limited { "but: " } else { "why: " };
            wrapped(&format!("{indent}{label}"), &finding.found)?;
        }
        if let Some(next) = finding.next.as_ref().filter(|next| !next.is_empty()) {
            wrapped(&format!("{indent}do:  "), next)?;
        }
    }
    Ok(())
}

/// Prints words behind a head, on further lines where they do not fit.
fn wrapped(head: &str, text: &str) -> io::Result<()> {
    let mut line = head.to_owned();
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            output::line(line.trim_end())?;
            line = " ".repeat(head.chars().count());
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    output::line(line.trim_end())
}

/// Everything, for machines.
#[derive(Serialize)]
struct ReportJson<'f> {
    version: u32,
    kernel: String,
    works: bool,
    missing: &'f [String],
    findings: Vec<FindingJson<'f>>,
}

#[derive(Serialize)]
struct FindingJson<'f> {
    subject: &'static str,
    interface: Option<&'f str>,
    check: &'static str,
    status: &'static str,
    means: &'static str,
    found: &'f str,
    number: Option<u64>,
    unit: &'static str,
    next: Option<&'f str>,
}

impl<'f> ReportJson<'f> {
    fn new(findings: &'f [Finding], missing: &'f [String]) -> ReportJson<'f> {
        let finding = |found: &'f Finding| FindingJson {
            subject: if found.interface.is_some() { Subject::Interface } else { found.probe.subject() }.name(),
            interface: found.interface.as_deref(),
            check: found.probe.id(),
            status: found.status.name(),
            means: found.probe.means(),
            found: &found.found,
            number: found.number,
            unit: found.probe.unit(),
            next: found.next.as_deref(),
        };
        ReportJson {
            version: VERSION,
            kernel: doctor::kernel(),
            works: missing.is_empty(),
            missing,
            findings: findings.iter().map(finding).collect(),
        }
    }
}
