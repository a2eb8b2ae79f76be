//! `traits demo`: real traffic in namespaces of its own, and the traits of every packet at every stage.
//!
//! | file | what it holds |
//! |---|---|
//! | `flows` | what is sent, and what must become of it |
//! | `network` | the namespaces, the veth pair, the tunnels and the netfilter rule |
//! | `programs` | loading and attaching `bpf/demo.bpf.c`, and the programs that serve sockets |
//! | `traffic` | sending, and counting what was sent |
//! | `servers` | receiving: the applications, which read traits by socket options |
//! | `records` | what the programs and the servers saw |
//! | `verdict` | whether that is what was sent |
//! | `report`, `progress` | what people see |
//!
//! Everything the demo makes is held by a descriptor of this process: namespaces, a bpffs without a mount point, links
//! that are not pinned, or are in that bpffs. Only the cgroup of the servers' sockets must have a name. It goes when the
//! process ends, and a killed one leaves an empty directory, with no program attached, that the next demo removes
//! ([`Cgroup`]). So nothing needs to be cleaned up, however the process ends.

mod flows;
mod network;
mod programs;
mod progress;
mod records;
mod report;
mod servers;
mod traffic;
mod verdict;

use std::{
    cell::RefCell,
    error::Error,
    path::Path,
    process::ExitCode,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use libbpf_rs::ProgramType;
use packet_traits::attach::cgroup;
use packet_traits_lab::{Bpffs, Cgroup};

use self::{
    network::Network,
    progress::Progress,
    records::{Reader, Record, Stage},
    servers::Servers,
    traffic::Sent,
    verdict::{Evidence, Verdict},
};
use packet_traits_terminal::{
    Mode,
    interrupt::{Interrupt, Interrupted},
    output,
};

/// Show traits on real traffic: XDP sets them, every later stage and the application read them
///
/// Makes two network namespaces with a veth pair and two VXLAN tunnels, sends UDP and TCP over IPv4 and IPv6, has some
/// packets dropped on purpose, and compares what every stage saw with what was sent. Needs root. Has a registry, a BPF
/// file system and a cgroup of its own, and leaves nothing behind.
#[derive(clap::Args)]
#[command(after_help = HELP)]
#[derive(Debug)]
pub struct Options {
    /// Datagrams of each of the six UDP flows
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    packets: u64,
    /// How XDP runs: in the driver, in the stack, or in the driver if it can
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    mode: Mode,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Have XDP leave every tenth packet without traits, to see that the demo notices
    #[arg(long, hide = true)]
    sabotage: bool,
}

const HELP: &str = "\
Examples:
  traits demo
  traits demo --mode generic --packets 5000
  traits demo --json | jq '.stages[] | {stage, packets, with_traits}'

The last stage, application, is the UDP and TCP servers themselves. They read traits with getsockopt: those of each \
datagram, of each connection's SYN, and of its newest data.

docs/json.md lists the members of what --json prints. Exit status: 0 every stage saw what was sent, 1 it did not or \
the demo could not run, 2 wrong usage, 130 interrupted.";

/// How often reports are read and Ctrl-C is looked for.
const TICK: Duration = Duration::from_millis(10);
/// How long the last packets may take to get to the last stage.
const SETTLE: Duration = Duration::from_secs(1);

/// Runs `traits demo`.
///
/// # Errors
/// If the demo could not run, or was interrupted.
pub fn run(options: &Options) -> Result<ExitCode, Box<dyn Error>> {
    let interrupt = Interrupt::catch()?;
    let mut progress = Progress::new();
    let outcome = require_kernel().and_then(|()| show(options, &interrupt, &mut progress));
    drop(progress);
    let Some(verdict) = interrupt.over(outcome, Interrupted::NOTHING_LEFT)? else {
        return Err(Interrupted::NOTHING_LEFT.into());
    };
    if options.json {
        output::json(&verdict)?;
    } else {
        report::print(&verdict)?;
    }
    Ok(if verdict.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Refuses with one line where the demo cannot run at all.
fn require_kernel() -> Result<(), Box<dyn Error>> {
    if !rustix::process::geteuid().is_root() {
        return Err(
            "the demo makes network namespaces and loads BPF programs, which needs root: run `sudo traits demo`".into(),
        );
    }
    match ProgramType::Xdp.is_supported() {
        Ok(true) => {}
        Ok(false) => {
            return Err("this kernel, or this container, does not let root load BPF programs; the demo needs \
                        CONFIG_BPF_SYSCALL and CAP_BPF"
                .into());
        }
        Err(error) => return Err(format!("cannot find out whether BPF programs can be loaded: {error}").into()),
    }
    const BTF: &str = "/sys/kernel/btf/vmlinux";
    if !Path::new(BTF).exists() {
        return Err(format!(
            "this kernel has no type information ({BTF} is not there); the demo needs CONFIG_DEBUG_INFO_BTF"
        )
        .into());
    }
    if cgroup::cgroup_tree().is_err() {
        const BESIDE_V1: &str = "/sys/fs/cgroup/unified";
        let place = if Path::new(BESIDE_V1).is_dir() { BESIDE_V1 } else { "/sys/fs/cgroup" };
        return Err(format!(
            "no cgroup v2 tree is mounted, and the demo's servers need a cgroup: run `mount -t cgroup2 cgroup2 {place}`"
        )
        .into());
    }
    Ok(())
}

/// Runs the demo; `None` if it was interrupted.
fn show(options: &Options, interrupt: &Interrupt, progress: &mut Progress) -> Result<Option<Verdict>, Box<dyn Error>> {
    let stop = || interrupt.came();
    progress.step("making two namespaces, a veth pair and two VXLAN tunnels");
    let network = Network::build()?;
    if stop() {
        return Ok(None);
    }
    progress.step("loading and attaching programs");
    let bpffs = Bpffs::new()?;
    let registry = programs::registry(&bpffs)?;
    let skip = if options.sabotage { 10 } else { 0 };
    let stages = Stage::shown(ProgramType::Netfilter.is_supported()?);
    let object = programs::load(&registry, network.rx(flows::Route::Plain).netns(), skip, &stages)?;
    let cgroup = Cgroup::new()?;
    programs::serve_sockets(&registry, &cgroup)?;
    let (served, of_servers) = mpsc::channel();
    let servers = Servers::start(&network, &cgroup, &served)?;
    let mode = options.mode.into();
    let attached = programs::attach(&object, &network, &servers, mode)?;
    let records = RefCell::new(Vec::new());
    let reader = Reader::new(&object, &records)?;

    let (at, steps) = mpsc::channel();
    let packets = options.packets;
    // Not joined after Ctrl-C: the process ends instead, and takes it along.
    let sender = thread::spawn(move || traffic::send(&network, &servers, packets, &at));
    let (mut counted, mut in_xdp) = (0, 0);
    while !sender.is_finished() {
        if stop() {
            return Ok(None);
        }
        reader.read()?;
        steps.try_iter().for_each(|flow| progress.step(flow));
        let records = records.borrow();
        in_xdp += records[counted..].iter().filter(|record: &&Record| record.stage == Stage::Xdp).count();
        counted = records.len();
        drop(records);
        progress.packets(in_xdp);
        thread::sleep(TICK);
    }
    let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    // the servers have ended, too
    records.borrow_mut().extend(of_servers.try_iter());
    settle(&reader, &records, &sent, &stop)?;
    if stop() {
        return Ok(None);
    }
    let lost = records::lost(&object)?;
    let names = packet_traits::drop_reason::names()?;
    let reasons = |reason: u32| names.get(&reason).cloned().unwrap_or_else(|| format!("reason {reason}"));
    Ok(Some(verdict::judge(&Evidence {
        sent: &sent,
        records: &records.borrow(),
        lost,
        reasons: &reasons,
        xdp_mode: attached.mode.to_string(),
        area_len: registry.layout().area_len(),
        stages: &stages,
    })))
}

/// Reads on until the drops that were provoked are there and nothing comes any more.
fn settle(
    reader: &Reader<'_>,
    records: &RefCell<Vec<Record>>,
    sent: &[Sent],
    stop: &dyn Fn() -> bool,
) -> Result<(), Box<dyn Error>> {
    let provoked: u64 = sent.iter().filter(|sent| sent.flow.passes(Stage::Drop)).map(|sent| sent.sent).sum();
    let deadline = Instant::now() + SETTLE;
    loop {
        let before = records.borrow().len();
        thread::sleep(TICK);
        reader.read()?;
        let records = records.borrow();
        let dropped = records.iter().filter(|record| record.stage == Stage::Drop).count();
        let complete = records.len() == before && dropped as u64 >= provoked;
        if complete || stop() || Instant::now() > deadline {
            return Ok(());
        }
    }
}
