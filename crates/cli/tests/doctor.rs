//! `traits doctor`: what it says is what then works on the running kernel, whichever that is, and it leaves nothing behind.

mod common;

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    io::{self, Read},
    net::UdpSocket,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Output},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{Traits, host::Host, interrupt, text};
use libbpf_sys::{BPF_FUNC_xdp_adjust_meta, BPF_PROG_TYPE_SCHED_CLS, BPF_PROG_TYPE_XDP, BPF_XDP, bpf_insn};
use packet_traits::{
    attach::{Direction, Hook, TcxOptions, XdpMode, tcx, xdp},
    registry::Registry,
    socket_programs::{AttachOptions, SocketPrograms},
};
use packet_traits_lab::{AfXdp, Cgroup, Family, Pair, number_of, recv_numbered, send_numbered, udp_socket};
use packet_traits_socket::{Keys, SocketTraits, UdpTraits};
use serde_json::Value;

/// The modes, and how the names of checks end.
const MODES: [(XdpMode, &str); 2] = [(XdpMode::Native, "native"), (XdpMode::Generic, "generic")];

/// The doctor looks at programs of the whole host, so that tests that run it take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the doctor says of this kernel; `None` if kernel tests are switched off.
fn report() -> Option<&'static Report> {
    static REPORT: OnceLock<Option<Report>> = OnceLock::new();
    REPORT
        .get_or_init(|| {
            let traits = Traits::new()?;
            let _turn = turn();
            let begun = Instant::now();
            let mut doctor = traits.start("doctor --json");
            let mut output = [String::new(), String::new()];
            doctor.stdout.take().unwrap().read_to_string(&mut output[0]).unwrap();
            doctor.stderr.take().unwrap().read_to_string(&mut output[1]).unwrap();
            let (code, worked) = wait(doctor);
            assert_eq!(output[1], "");
            let json = serde_json::from_str(&output[0]).unwrap();
            Some(Report { json, code, took: begun.elapsed(), worked })
        })
        .as_ref()
}

struct Report {
    json: Value,
    /// The exit status.
    code: i32,
    /// How long it took.
    took: Duration,
    /// Of that, the time of processors, also of the commands that it ran.
    worked: Duration,
}

/// Waits for a child: its exit status, and the time of processors that it and its own children took.
fn wait(child: Child) -> (i32, Duration) {
    let mut status = 0;
    // SAFETY: made of numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let id = child.id().cast_signed();
    // SAFETY: both pointers are to what the call writes; nobody else waits for the child, which this function owns.
    let waited = unsafe { libc::wait4(id, &mut status, 0, &mut usage) };
    assert_eq!(waited, id);
    drop(child);
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    (libc::WEXITSTATUS(status), time(usage.ru_utime) + time(usage.ru_stime))
}

fn parse(output: &Output) -> Value {
    assert_eq!(text(&output.stderr), "");
    serde_json::from_str(&text(&output.stdout)).unwrap()
}

impl Report {
    fn status(&self, check: &str) -> &str {
        status(&self.json, check, None)
    }

    fn works(&self, check: &str) -> bool {
        works(self.status(check))
    }

    fn number(&self, check: &str) -> Option<u64> {
        finding(&self.json, check, None)["number"].as_u64()
    }
}

fn works(status: &str) -> bool {
    match status {
        "yes" | "limited" => true,
        "no" => false,
        other => panic!("this must be told: {other}"),
    }
}

fn finding<'j>(json: &'j Value, check: &str, interface: Option<&str>) -> &'j Value {
    let all = json["findings"].as_array().unwrap();
    let one = all.iter().find(|one| one["check"] == check && one["interface"].as_str() == interface);
    one.unwrap_or_else(|| panic!("no {check} of {interface:?} in {all:#?}"))
}

fn status<'j>(json: &'j Value, check: &str, interface: Option<&str>) -> &'j str {
    finding(json, check, interface)["status"].as_str().unwrap()
}

/// A program of these instructions: code, registers (destination low), offset, immediate (include/uapi/linux/bpf.h).
fn load(kind: libbpf_sys::bpf_prog_type, attach: libbpf_sys::bpf_attach_type, code: &[(u8, u8, i16, i32)]) -> OwnedFd {
    let program: Vec<bpf_insn> = code
        .iter()
        .map(|&(code, registers, off, imm)| bpf_insn {
            code,
            _bitfield_1: bpf_insn::new_bitfield_1(registers & 15, registers >> 4),
            off,
            imm,
            ..Default::default()
        })
        .collect();
    let mut options = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        expected_attach_type: attach,
        ..Default::default()
    };
    // SAFETY: names are NUL-terminated, the instructions as many as is said, and the options hold no pointers.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            kind,
            c"test".as_ptr(),
            c"GPL".as_ptr(),
            program.as_ptr(),
            program.len() as libbpf_sys::size_t,
            &mut options,
        )
    };
    assert!(fd >= 0, "loading: {}", io::Error::from_raw_os_error(-fd));
    // SAFETY: the call succeeded, so it is a new descriptor that nothing else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Passes packets that can be given this many bytes of metadata, and drops the others.
fn with_metadata(bytes: i32) -> OwnedFd {
    let code = [
        (0xb7, 2, 0, -bytes),                                 // r2 = -bytes
        (0x85, 0, 0, BPF_FUNC_xdp_adjust_meta.cast_signed()), // r0 = bpf_xdp_adjust_meta(ctx, r2)
        (0x15, 0, 2, 0),                                      // if (!r0) goto pass
        (0xb7, 0, 0, 1),                                      // return XDP_DROP
        (0x95, 0, 0, 0),
        (0xb7, 0, 0, 2), // pass: return XDP_PASS
        (0x95, 0, 0, 0),
    ];
    load(BPF_PROG_TYPE_XDP, BPF_XDP, &code)
}

/// A sender and a receiver of datagrams.
struct Datagrams {
    sender: UdpSocket,
    receiver: UdpSocket,
}

impl Datagrams {
    fn new(pair: &Pair, cgroup: Option<&Cgroup>) -> Datagrams {
        let receiver = || udp_socket(pair.rx().netns(), pair.rx().addr(Family::V4, 0)).unwrap();
        let receiver = cgroup.map_or_else(receiver, |cgroup| cgroup.enter(receiver));
        Datagrams { sender: udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0)).unwrap(), receiver }
    }

    fn send(&self, count: u64) {
        send_numbered(&self.sender, self.receiver.local_addr().unwrap(), 0..count, 64).unwrap();
    }

    /// Whether one arrives. If it is not expected, it is not waited for long.
    fn arrives(&self, expected: bool) -> bool {
        let wait = if expected { packet_traits_lab::RECV_TIMEOUT } else { Duration::from_millis(300) };
        self.receiver.set_read_timeout(Some(wait)).unwrap();
        self.send(1);
        recv_numbered(&self.receiver).is_ok()
    }
}

#[test]
fn tc_attaches_as_the_doctor_says() {
    let Some(report) = report() else { return };
    let pair = Pair::new().unwrap();
    let program = load(BPF_PROG_TYPE_SCHED_CLS, 0, &[(0xb4, 0, 0, -1), (0x95, 0, 0, 0)]);
    let attach = |force| {
        let options = TcxOptions::new(Direction::Ingress).force_clsact(force);
        pair.rx().netns().enter(|| tcx::attach(program.as_fd(), pair.rx().ifindex(), &options))
    };
    let tcx = attach(false).is_ok_and(|attached| matches!(attached.info().hook, Hook::Tcx(_)));
    assert_eq!(tcx, report.works("tcx"));
    assert_eq!(attach(true).is_ok(), report.works("clsact"));
}

#[test]
fn metadata_is_accepted_up_to_the_length_that_the_doctor_says() {
    let Some(report) = report() else { return };
    let pair = Pair::new().unwrap();
    let datagrams = Datagrams::new(&pair, None);
    for (mode, name) in MODES {
        assert!(report.works(&format!("xdp-{name}")), "veth has every mode");
        let longest = report.number(&format!("metadata-{name}")).unwrap();
        assert!(longest >= 32 && longest % 4 == 0, "{longest}");
        for (bytes, fits) in [(longest, true), (longest + 4, false)] {
            let program = with_metadata(bytes as i32);
            let attach = |fd: BorrowedFd<'_>| xdp::attach(fd, pair.rx().ifindex(), mode);
            let attached = pair.rx().netns().enter(|| attach(program.as_fd())).unwrap();
            assert_eq!(datagrams.arrives(fits), fits, "{bytes} bytes in {name} mode");
            drop(attached);
        }
    }
}

/// Blocks of policies, and the checks that say whether what XDP sets is read there.
const READERS: [(&str, &str); 3] =
    [("tc", "tc ingress"), ("netfilter", "netfilter ip input priority -1"), ("cgroup", "cgroup ingress")];

#[test]
fn stages_read_what_the_doctor_says() {
    const SENT: u64 = 5;
    let Some(report) = report() else { return };
    let Some(traits) = Traits::new() else { return };
    let host = Host { traits, pair: Pair::new().unwrap() };
    let longest = MODES.iter().filter_map(|(_, name)| report.number(&format!("metadata-{name}"))).min().unwrap();
    if longest < 128 {
        // does what the doctor says
        let advice = finding(&report.json, "metadata-native", None)["next"].as_str().unwrap();
        let command = advice.split('`').nth(1).unwrap().strip_prefix("traits ").unwrap();
        host.ok(command);
    } else {
        host.ok("registry create");
    }
    let object = |name: &str, source: &str| {
        let policy = host.traits.policy(name, source).display().to_string();
        let object = host.traits.folder.path().join(format!("{name}.bpf.o")).display().to_string();
        host.ok(&format!("compile {policy} -o {object}"));
        object
    };
    let set = object("set", "key tenant u32\nxdp { set tenant = 7 }\n");
    let readers = READERS.map(|(check, block)| {
        (check, object(check, &format!("key tenant u32\n{block} {{ trait tenant 7  count seen }}\n")))
    });
    let cgroup = Cgroup::new().unwrap();
    let datagrams = Datagrams::new(&host.pair, Some(&cgroup));
    let registry = Registry::options().bpffs(host.traits.bpffs.path()).open().unwrap();

    for (_, mode) in MODES {
        host.ok(&format!("up {set} --dev rx0 --mode {mode}"));
        for (check, object) in &readers {
            let up = host.run(&format!("up {object} --dev rx0 --cgroup {}", cgroup.path().display()));
            let mut read = 0;
            if up.status.success() {
                datagrams.send(SENT);
                (0..SENT).for_each(|number| assert_eq!(recv_numbered(&datagrams.receiver).unwrap(), number));
                let status = host.json(&format!("status {check} --json"));
                read = status["deployments"][0]["policy"]["counters"][0]["packets"].as_u64().unwrap();
                host.ok(&format!("down {check}"));
            }
            let says = report.status(&format!("{check}-{mode}"));
            assert_eq!(read, if says == "yes" { SENT } else { 0 }, "{check} {mode}: {says}, {}", text(&up.stderr));
        }

        let options = AttachOptions { cgroup: Some(cgroup.path().to_owned()), ..AttachOptions::default() };
        let says = report.status(&format!("socket-{mode}"));
        let served = SocketPrograms::attach(&registry, &options);
        if let ("untried", Err(_)) = (says, &served) {
            // another registry serves all sockets of this host
            host.ok("down set");
            continue;
        }
        assert_eq!(served.is_ok(), says == "yes", "socket {mode}: {served:?}");
        if served.is_ok() {
            datagrams.receiver.receive_traits(true).unwrap();
            let keys = Keys::of(&datagrams.receiver).unwrap();
            let tenant = keys.typed::<u32>("tenant").unwrap();
            datagrams.send(1);
            let mut buffer = [0; 64];
            let received = datagrams.receiver.recv_with_traits(&keys, &mut buffer).unwrap();
            let found = (number_of(&buffer[..received.len]), received.traits.get(&tenant));
            assert_eq!(found, (Some(0), Some(7)), "{mode}");
            datagrams.receiver.receive_traits(false).unwrap();
            SocketPrograms::detach_all(&registry).unwrap();
        }
        host.ok("down set");
    }
}

/// Sets SO_RCVMARK, between fork and exec of a process of this user.
fn rcvmark_as(user: u32) -> io::Result<()> {
    const SO_RCVMARK: libc::c_int = 75; // include/uapi/asm-generic/socket.h
    let mut command = Command::new("true");
    let set = || {
        let on: libc::c_int = 1;
        // SAFETY: takes numbers; the option's value is an int of the length given.
        let result = unsafe {
            let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            libc::setsockopt(socket, libc::SOL_SOCKET, SO_RCVMARK, (&raw const on).cast(), size_of_val(&on) as u32)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: only system calls are made, and they are async-signal-safe. The user is changed before (std).
    unsafe { command.uid(user).pre_exec(set) };
    command.status().map(drop)
}

#[test]
fn options_of_sockets_work_as_the_doctor_says() {
    let Some(report) = report() else { return };
    assert_eq!(rcvmark_as(0).is_ok(), report.works("rcvmark"));
    assert_eq!(rcvmark_as(65534).is_ok(), report.works("rcvmark-unprivileged"));
    let pair = Pair::new().unwrap();
    assert_eq!(AfXdp::bind(pair.rx(), 0, 0).is_ok(), report.works("af-xdp"));
}

#[test]
fn an_interface_is_asked_and_tried() {
    let Some(host) = Host::new() else { return };
    let _turn = turn();
    let run = |line: &str| parse(&host.run(line));
    let on_rx0 = |json: &Value, check: &str| finding(json, check, Some("rx0")).clone();

    // Without a packet there is nothing to measure.
    let idle = run("doctor --json --dev rx0 --try");
    let rx0: BTreeSet<&str> = (idle["findings"].as_array().unwrap().iter())
        .filter(|one| one["interface"] == "rx0")
        .map(|one| one["check"].as_str().unwrap())
        .collect();
    assert_eq!(rx0.len(), 12, "{rx0:?}");
    assert_eq!(on_rx0(&idle, "driver")["found"], "veth");
    assert_eq!(on_rx0(&idle, "xdp-attached")["found"], "none");
    for check in ["gro", "hints", "lro"] {
        assert!(!on_rx0(&idle, check)["found"].as_str().unwrap().is_empty(), "{check}");
    }
    let features = on_rx0(&idle, "xdp-features");
    match features["status"].as_str().unwrap() {
        "yes" => assert!(features["found"].as_str().unwrap().contains("basic"), "{features}"),
        // before the kernel told
        other => assert_eq!(other, "untried", "{features}"),
    }

    // With packets it is what the doctor's own link has, which is of the same kind.
    let (done, datagrams) = (AtomicBool::new(false), Datagrams::new(&host.pair, None));
    let busy = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                datagrams.send(1);
                thread::sleep(Duration::from_millis(5));
            }
        });
        let busy = run("doctor --json --dev rx0 --try");
        done.store(true, Ordering::Relaxed);
        busy
    });
    for (_, mode) in MODES {
        assert_eq!(status(&idle, &format!("xdp-{mode}"), Some("rx0")), "yes");
        assert_eq!(status(&idle, &format!("metadata-{mode}"), Some("rx0")), "untried");
        for check in ["metadata", "headroom"] {
            let check = format!("{check}-{mode}");
            assert_eq!(on_rx0(&busy, &check)["number"], finding(&busy, &check, None)["number"], "{check}");
        }
    }

    // A program that is there stays there.
    let program = with_metadata(4);
    let attached =
        host.pair.rx().netns().enter(|| xdp::attach(program.as_fd(), host.pair.rx().ifindex(), XdpMode::Native));
    let (attached, _) = attached.unwrap();
    let id = u64::from(attached.info().program_id);
    let held = run("doctor --json --dev rx0 --try");
    assert_eq!(on_rx0(&held, "xdp-attached")["number"], id);
    let untried = on_rx0(&held, "xdp-native");
    assert!(
        untried["status"] == "untried" && untried["found"].as_str().unwrap().contains(&id.to_string()),
        "{untried}"
    );
    let there = host.pair.rx().netns().enter(|| xdp::attached(host.pair.rx().ifindex()));
    assert_eq!(there, Some((attached.info().program_id, XdpMode::Native)));
}

#[test]
fn report_has_the_shape_that_help_shows() {
    let Some(report) = report() else { return };
    let json = &report.json;
    let members: BTreeSet<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, BTreeSet::from(["version", "kernel", "works", "missing", "findings"]));
    assert_eq!(json["version"], 1);
    assert_eq!(json["kernel"].as_str(), Some(fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim()));
    assert_eq!(json["works"], true, "{:#}", json["missing"]);
    assert_eq!(report.code, 0);

    let mut seen = HashSet::new();
    for one in json["findings"].as_array().unwrap() {
        let members: BTreeSet<&str> = one.as_object().unwrap().keys().map(String::as_str).collect();
        let expected = ["subject", "interface", "check", "status", "means", "found", "number", "unit", "next"];
        assert_eq!(members, BTreeSet::from(expected), "{one}");
        // a registry for each that the host has
        assert!(one["check"] == "registry" || seen.insert((one["interface"].clone(), one["check"].clone())), "{one}");
        assert_eq!(one["subject"] == "interface", one["interface"].is_string(), "{one}");
        let status = one["status"].as_str().unwrap();
        assert!(["yes", "limited", "no", "untried", "info"].contains(&status), "{one}");
        assert!(!one["means"].as_str().unwrap().is_empty(), "{one}");
        assert!(status != "no" || !one["found"].as_str().unwrap().is_empty(), "the reason: {one}");
        assert!(!matches!(status, "yes" | "info") || one["next"].is_null(), "{one}");
    }
    let emulated = fs::read_to_string("/proc/cpuinfo").unwrap().contains("QEMU TCG");
    // On a quiet machine it takes less than two seconds, half of them waiting; here other tests run beside it.
    assert!(emulated || report.worked < Duration::from_secs(4), "{:?} of {:?}", report.worked, report.took);
}

#[test]
fn text_says_the_same_as_json() {
    let Some(report) = report() else { return };
    let Some(traits) = Traits::new() else { return };
    let _turn = turn();
    let shown = traits.ok("doctor");
    for one in report.json["findings"].as_array().unwrap().iter().filter(|one| one["interface"].is_null()) {
        let (check, status) = (one["check"].as_str().unwrap(), one["status"].as_str().unwrap());
        let says = |line: &str| line.split_whitespace().take(2).eq([check, status]);
        assert!(shown.lines().any(says), "{check} {status} in\n{shown}");
    }
    assert!(shown.ends_with("traits work.\n"), "{shown}");
    let long: Vec<&str> = shown.lines().filter(|line| line.chars().count() > 110 && !line.contains('/')).collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn without_privileges_it_says_so_and_asks_what_it_can() {
    let Some(traits) = Traits::new() else { return };
    let _turn = turn();
    let mut command = Command::new(env!("CARGO_BIN_EXE_traits"));
    command.arg("--bpffs").arg(traits.folder.path()).args(["doctor", "--json"]);
    const SECBIT_NOROOT: libc::c_ulong = 1; // include/uapi/linux/securebits.h: exec gives root no capabilities
    // SAFETY: one system call, which takes numbers and is async-signal-safe.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NOROOT) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let output = command.output().unwrap();
    let json = parse(&output);
    assert_eq!((output.status.code(), &json["works"]), (Some(1), &Value::Bool(false)));
    let privileges = finding(&json, "privileges", None);
    assert_eq!(privileges["status"], "no");
    assert!(privileges["found"].as_str().unwrap().contains("CAP_BPF"), "{privileges}");
    assert!(privileges["next"].as_str().unwrap().contains("root"), "{privileges}");
    for check in ["xdp-native", "tcx", "ring-buffer", "rcvmark", "tc-native", "socket-generic"] {
        assert_eq!(status(&json, check, None), "untried", "{check}");
    }
    assert_eq!(status(&json, "btf", None), "yes");
    let bpffs = finding(&json, "bpffs", None);
    assert_eq!(bpffs["status"], "limited", "a folder is none");
    assert!(bpffs["next"].as_str().unwrap().contains("mount -t bpf"), "{bpffs}");
    let missing: Vec<&str> = json["missing"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    assert!(missing.contains(&"privileges") && missing.contains(&"tcx or clsact"), "{missing:?}");
}

#[test]
fn wrong_arguments_are_refused() {
    let Some(traits) = Traits::new() else { return };
    let error = traits.fails("doctor --dev nosuch0", 1);
    assert!(error.contains("no interface nosuch0") && error.contains("ip link"), "{error}");
    assert!(traits.fails("doctor --try", 2).contains("--dev"));
    assert!(traits.fails("doctor eth0", 2).contains("eth0"));
}

#[test]
fn registries_are_told_with_their_areas() {
    let Some(report) = report() else { return };
    let Some(traits) = Traits::new() else { return };
    let _turn = turn();
    let registries = || {
        let json = traits.json("doctor --json");
        let all = json["findings"].as_array().unwrap().iter().filter(|one| one["check"] == "registry");
        all.map(|one| {
            let word = |member: &str| one[member].as_str().unwrap().to_owned();
            (word("status"), word("found"), one["number"].as_u64())
        })
        .collect::<Vec<_>>()
    };
    traits.ok("registry create --flow 32 --packet 0");
    traits.ok("registry create lab --flow 24 --packet 0");
    traits.ok("keys add tenant u32");
    // of another bpffs than the first report
    assert_eq!(report.status("registry"), "info");
    let two = registries();
    assert_eq!(
        two.iter().map(|(status, _, area)| (status.as_str(), *area)).collect::<Vec<_>>(),
        [("yes", Some(32)), ("yes", Some(24))]
    );
    assert!(two[0].1.starts_with("default: 1 keys") && two[1].1.starts_with("lab: 0 keys"), "{two:?}");
    fs::remove_file(traits.dir("lab").join("keys")).unwrap();
    let damaged = registries();
    assert_eq!((damaged[0].0.as_str(), damaged[1].0.as_str()), ("yes", "no"));
}

/// Programs of the doctor that are loaded, and cgroups that it made.
fn left_by(process: u32) -> Vec<String> {
    let programs = libbpf_rs::query::ProgInfoIter::default().map(|program| program.name.to_string_lossy().into_owned());
    let ours = |name: &String| name.starts_with("doctor_") || name.starts_with("traits_doctor");
    let root = packet_traits::attach::cgroup::cgroup_root().unwrap();
    let cgroup = root.join(format!("pt-test-{process}"));
    programs.filter(ours).chain(cgroup.exists().then(|| cgroup.display().to_string())).collect()
}

#[test]
fn nothing_is_left_behind() {
    let Some(traits) = Traits::new() else { return };
    let _turn = turn();
    let links = || text(&Command::new("ip").args(["-o", "link"]).output().unwrap().stdout);
    // the kernel puts files of its own there
    let pins = || fs::read_dir(traits.bpffs.path()).unwrap().count();
    let before = (links(), pins());
    let process = traits.start("doctor");
    let id = process.id();
    assert_eq!(process.wait_with_output().unwrap().status.code(), Some(0));
    // the kernel frees programs a moment after their last holder is gone
    common::soon("all is gone", || left_by(id).is_empty());
    assert_eq!((links(), pins()), before);

    let process = traits.start("doctor");
    interrupt(&process);
    let id = process.id();
    let output = process.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(130), ""));
    assert!(text(&output.stderr).contains("interrupted, nothing is left"), "{}", text(&output.stderr));
    common::soon("all is gone", || left_by(id).is_empty());
    assert_eq!((links(), pins()), before);
}
