//! `traits demo` shows what it says, notices when it does not, leaves nothing behind and refuses in one line.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use libbpf_rs::query::{LinkInfo, LinkInfoIter, LinkTypeInfo, ProgInfoIter};
use packet_traits::attach::cgroup::cgroup_root;
use packet_traits_lab::{KernelFeature, kernel_tests_enabled};
use serde_json::Value;

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_traits");

/// In the order of a packet's way.
const STAGES: [&str; 10] = [
    "xdp",
    "tc-ingress",
    "tc-ingress-inner",
    "netfilter-prerouting",
    "netfilter-input",
    "cgroup-ingress",
    "socket-filter",
    "delivery",
    "drop",
    "application",
];

/// One demo at a time, so that its programs can be looked for by name. `None` if kernel tests are switched off.
fn alone() -> Option<MutexGuard<'static, ()>> {
    static LOCK: Mutex<()> = Mutex::new(());
    kernel_tests_enabled().then(|| LOCK.lock().unwrap_or_else(PoisonError::into_inner))
}

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(EXECUTABLE);
    command.arg("demo").args(arguments);
    command
}

/// Runs the demo with `--json`; what it printed, and its exit status.
fn run_json(arguments: &[&str]) -> (Value, i32) {
    let output = demo(&["--json"]).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}\n{said}"));
    (value, output.status.code().unwrap())
}

fn number(value: &Value, member: &str) -> u64 {
    value[member].as_u64().unwrap_or_else(|| panic!("no number {member} in {value}"))
}

fn list<'a>(value: &'a Value, member: &str) -> &'a Vec<Value> {
    value[member].as_array().unwrap_or_else(|| panic!("no list {member} in {value}"))
}

/// Adds up what was sent, by the flows' names.
fn sent(result: &Value, wanted: impl Fn(&str) -> bool) -> u64 {
    let flows = list(result, "flows").iter().filter(|flow| wanted(flow["flow"].as_str().unwrap()));
    flows.map(|flow| number(flow, "sent")).sum()
}

fn assert_shows_the_truth(mode: &str) {
    const PACKETS: u64 = 100;
    let (result, status) = run_json(&["--mode", mode, "--packets", "100"]);
    assert_eq!(result["problems"], Value::Array(Vec::new()));
    assert_eq!((&result["ok"], status, &result["xdp_mode"]), (&Value::Bool(true), 0, &Value::from(mode)));

    let echoes = sent(&result, |flow| flow.starts_with("UDP echo"));
    assert_eq!(echoes, 6 * PACKETS);
    let dropped = sent(&result, |flow| flow.starts_with("UDP to"));
    let tunnelled = sent(&result, |flow| flow.starts_with("UDP") && flow.contains("VXLAN"));
    let bytes = sent(&result, |flow| flow.starts_with("TCP"));
    let bytes_tunnelled = sent(&result, |flow| flow.starts_with("TCP") && flow.contains("VXLAN"));

    let stages: Vec<&str> = list(&result, "stages").iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
    let mut expected = STAGES.to_vec();
    if !KernelFeature::NetfilterLinks.is_here() {
        expected.retain(|stage| !stage.starts_with("netfilter"));
    }
    assert_eq!(stages, expected);
    for stage in list(&result, "stages") {
        assert_eq!(number(stage, "packets"), number(stage, "with_traits"), "{stage}");
        assert!(number(stage, "packets") > 0, "{stage}");
        let (datagrams, tcp) = match stage["stage"].as_str().unwrap() {
            "tc-ingress-inner" => (tunnelled, bytes_tunnelled),
            "cgroup-ingress" | "application" => (echoes, bytes),
            "socket-filter" => (echoes, 0),
            "delivery" => (0, bytes),
            "drop" => (dropped, 0),
            _ => (echoes + dropped, bytes),
        };
        assert_eq!((number(stage, "udp_packets"), number(stage, "udp_expected")), (datagrams, datagrams), "{stage}");
        // TCP may send some of it twice
        let seen = number(stage, "tcp_bytes");
        assert!(seen >= tcp && (seen > 0) == (number(stage, "tcp_packets") > 0), "{stage}");
        if stage["stage"] == "xdp" {
            assert!(stage["latency_ns"].is_null());
        } else {
            let latency = &stage["latency_ns"];
            let [min, median, p99, max] = ["min", "median", "p99", "max"].map(|member| number(latency, member));
            assert!(0 < min && min <= median && median <= p99 && p99 <= max, "{stage}");
        }
        assert!([1001, 2002, 4077, 6077].contains(&number(&stage["sample"], "tenant")), "{stage}");
    }

    let read: Vec<_> = list(&result, "servers").iter().map(|one| (&one["packet"], number(one, "tenant"))).collect();
    assert_eq!(read, [(&"datagram 50".into(), 2002), (&"the SYN".into(), 1001), (&"the newest data".into(), 1001)]);
    let sampled = |stage: &str| &list(&result, "stages").iter().find(|one| one["stage"] == stage).unwrap()["sample"];
    assert_eq!(sampled("xdp"), sampled("application"), "one and the same datagram");

    let provoked: Vec<(&str, u64)> = list(&result, "drops")
        .iter()
        .filter(|drop| number(drop, "expected") > 0)
        .map(|drop| {
            assert_eq!(number(drop, "packets"), number(drop, "expected"), "{drop}");
            (drop["reason"].as_str().unwrap(), number(drop, "tenant"))
        })
        .collect();
    let expected = [("NETFILTER_DROP", 2002), ("NETFILTER_DROP", 6077), ("NO_SOCKET", 1001), ("NO_SOCKET", 4077)];
    assert_eq!(provoked, expected);
}

#[test]
fn every_stage_sees_what_was_sent_with_native_xdp() {
    let Some(_alone) = alone() else { return };
    assert_shows_the_truth("native");
    assert_no_programs();
}

#[test]
fn every_stage_sees_what_was_sent_with_generic_xdp() {
    let Some(_alone) = alone() else { return };
    assert_shows_the_truth("generic");
    assert_no_programs();
}

#[test]
fn packets_without_traits_are_noticed() {
    let Some(_alone) = alone() else { return };
    let (result, status) = run_json(&["--packets", "50", "--sabotage"]);
    assert_eq!((&result["ok"], status), (&Value::Bool(false), 1));
    let xdp = &list(&result, "stages")[0];
    assert!(number(xdp, "with_traits") < number(xdp, "packets"));
    let problems = list(&result, "problems");
    for stage in ["socket-filter (UDP", "application (UDP"] {
        assert!(problems.iter().any(|problem| problem.as_str().unwrap().starts_with(stage)), "{stage}: {problems:?}");
    }

    let output = demo(&["--packets", "50", "--sabotage"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("NOT shown"));
}

#[test]
fn table_is_80_columns_wide() {
    let Some(_alone) = alone() else { return };
    let output = demo(&["--packets", "50"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("Shown: 300 datagrams") && text.contains("A SERVER READS"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

/// Waits for what the kernel does in the background.
fn soon(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Names of the demo's programs that are loaded, whoever loaded them.
fn programs() -> Vec<String> {
    let names = ProgInfoIter::default().map(|program| program.name.to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("demo_")).collect()
}

fn assert_no_programs() {
    soon("the demo's programs are gone", || programs().is_empty());
}

/// The namespaces that a process holds: the links of its descriptors.
fn namespaces_of(process: &Child) -> Vec<String> {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap();
    let links = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let mut names: Vec<String> = links.map(|link| link.to_string_lossy().into_owned()).collect();
    names.retain(|name| name.starts_with("net:["));
    names
}

/// Whether a process is in one of these namespaces or holds it.
fn somebody_has(namespaces: &[String]) -> bool {
    let is_one =
        |path: &Path| fs::read_link(path).is_ok_and(|link| namespaces.contains(&link.to_string_lossy().into()));
    fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let held = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        is_one(&process.path().join("ns/net")) || held.map(|entry| entry.path()).any(|path| is_one(&path))
    })
}

/// The cgroup of a demo's servers, whose name is the lab's.
fn cgroup_of(process: &Child) -> PathBuf {
    cgroup_root().unwrap().join(format!("pt-test-{}/0", process.id()))
}

/// How many programs links hold at a cgroup.
fn links_at(cgroup: u64) -> usize {
    let at = |link: &LinkInfo| matches!(&link.info, LinkTypeInfo::Cgroup(info) if info.cgroup_id == cgroup);
    LinkInfoIter::default().filter(at).count()
}

/// Starts a demo that takes long and sends it a signal once traffic flows. Returns its exit status.
fn end_with(signal: libc::c_int) -> Option<i32> {
    let mut process = demo(&["--packets", "20000"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("UDP echo")), "no traffic");
    thread::sleep(Duration::from_millis(100));
    let namespaces = namespaces_of(&process);
    assert_eq!(namespaces.len(), 2, "{namespaces:?}");
    let netfilter = if KernelFeature::NetfilterLinks.is_here() { 2 } else { 0 };
    assert_eq!(programs().len(), 7 + netfilter, "{:?}", programs());
    assert!(somebody_has(&namespaces));
    let cgroup = cgroup_of(&process);
    let cgroup_id = fs::metadata(&cgroup).unwrap().ino();
    assert_eq!(links_at(cgroup_id), 6, "the programs that serve sockets");

    // SAFETY: kill takes two numbers; the process is a child that was not waited for.
    assert_eq!(unsafe { libc::kill(process.id().cast_signed(), signal) }, 0);
    let status = process.wait().unwrap();
    assert_no_programs();
    soon("the demo's namespaces are gone", || !somebody_has(&namespaces));
    soon("the programs at the demo's cgroup are gone", || links_at(cgroup_id) == 0);
    if status.code().is_none() {
        let events = fs::read_to_string(cgroup.with_file_name("cgroup.events")).unwrap_or_default();
        assert!(!events.contains("populated 1"), "only an empty cgroup is left");
        assert!(demo(&["--packets", "50", "--json"]).output().unwrap().status.success(), "the next one removes it");
    }
    assert!(!cgroup.parent().unwrap().exists(), "{}", cgroup.display());
    status.code()
}

#[test]
fn interrupted_demo_ends_at_once_and_leaves_nothing() {
    let Some(_alone) = alone() else { return };
    assert_eq!(end_with(libc::SIGINT), Some(130));
}

#[test]
fn killed_demo_leaves_nothing() {
    let Some(_alone) = alone() else { return };
    assert_eq!(end_with(libc::SIGKILL), None);
}

/// What a demo that cannot run says: status 1, nothing on standard output, one line that is an error.
fn refusal(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("traits: ")).collect();
    assert_eq!((errors.len(), said.lines().last()), (1, errors.first().copied()), "{said}");
    errors[0].to_owned()
}

/// A copy of the executable that any user may run, in a folder that goes with it.
struct PublicCopy(PathBuf);

impl PublicCopy {
    fn new() -> PublicCopy {
        let folder = std::env::temp_dir().join(format!("traits-demo-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let copy = PublicCopy(folder);
        fs::copy(EXECUTABLE, copy.executable()).unwrap();
        for path in [&copy.0, &copy.executable()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        copy
    }

    fn executable(&self) -> PathBuf {
        self.0.join("traits")
    }
}

impl Drop for PublicCopy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs the command with both outputs going to a reader that is content with the first line; the line, and what the
/// command ended with.
fn head_1(arguments: &[&str]) -> (String, Option<i32>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new(EXECUTABLE);
    command.args(arguments).stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut process = command.spawn().unwrap();
    // the command holds the pipe's other end
    drop(command);
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).unwrap();
    (line, process.wait().unwrap().code())
}

#[test]
fn a_reader_that_stops_reading_is_no_error() {
    let Some(_alone) = alone() else { return };
    // a panic would be 101
    let (line, status) = head_1(&["demo", "--packets", "50"]);
    assert_eq!((line.as_str(), status), ("making two namespaces, a veth pair and two VXLAN tunnels\n", Some(0)));
    // what is logged goes there too
    let (line, status) = head_1(&["-vv", "demo", "--packets", "50"]);
    assert!(!line.is_empty());
    assert_eq!(status, Some(0), "{line}");
}

#[test]
fn an_error_that_nobody_reads_is_still_a_status() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let bpffs = ["--bpffs", "/nonexistent", "keys", "list"];
    let status = Command::new(EXECUTABLE).args(bpffs).stdout(Stdio::null()).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn without_root_it_says_so_in_one_line() {
    const NOBODY: u32 = 65534;
    if !kernel_tests_enabled() {
        return;
    }
    let copy = PublicCopy::new();
    let output = Command::new(copy.executable()).arg("demo").uid(NOBODY).gid(NOBODY).current_dir("/").output().unwrap();
    let line = refusal(&output);
    assert!(line.contains("needs root") && line.contains("sudo traits demo"), "{line}");
}

#[test]
fn without_bpf_it_says_so_in_one_line() {
    if !kernel_tests_enabled() {
        return;
    }
    let output = Command::new("setpriv")
        .args(["--bounding-set=-bpf,-sys_admin", "--inh-caps=-bpf,-sys_admin", EXECUTABLE, "demo"])
        .output()
        .unwrap();
    let line = refusal(&output);
    assert!(line.contains("does not let root load BPF programs"), "{line}");
}

#[test]
fn without_btf_it_says_so_in_one_line() {
    if !kernel_tests_enabled() {
        return;
    }
    // in a mount namespace of its own
    let script = r#"mount -t tmpfs none /sys/kernel/btf && exec "$0" demo"#;
    let output = Command::new("unshare").args(["--mount", "sh", "-c", script, EXECUTABLE]).output().unwrap();
    let line = refusal(&output);
    assert!(line.contains("/sys/kernel/btf/vmlinux") && line.contains("CONFIG_DEBUG_INFO_BTF"), "{line}");
}

#[test]
fn without_cgroups_it_says_what_to_mount() {
    if !kernel_tests_enabled() {
        return;
    }
    // in a mount namespace of its own; what it says to mount is then mounted
    let umount = "while umount $(findmnt -nfo TARGET -t cgroup2) 2>&-; do :; done";
    let run =
        |script: &str| Command::new("unshare").args(["--mount", "sh", "-c", script, EXECUTABLE]).output().unwrap();
    let line = refusal(&run(&format!(r#"{umount}; exec "$0" demo"#)));
    let (said, mount) = line.split_once(": run `").unwrap();
    assert!(said.contains("no cgroup v2 tree is mounted"), "{line}");
    let mount = mount.strip_suffix('`').unwrap();
    let output = run(&format!(r#"{umount}; {mount} && exec "$0" demo --packets 50"#));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn without_nft_it_says_what_to_install() {
    if !kernel_tests_enabled() {
        return;
    }
    let output = demo(&[]).env("PATH", "/nonexistent").output().unwrap();
    let line = refusal(&output);
    assert!(line.contains("install the package nftables"), "{line}");
}

#[test]
fn where_sockets_are_served_it_names_the_command_that_ends_that() {
    if !kernel_tests_enabled() {
        return;
    }
    // in namespaces of its own whose root of cgroups is one of its own, and whose registry, too
    let inside = r#"
        while umount "$1" 2>&-; do :; done
        mount -t cgroup2 none "$1" && mount -t bpf -o mode=0700 none /sys/fs/bpf &&
        "$0" registry create >&2 && "$0" sockets attach --cgroup "$1" >&2 || exit 3
        "$0" demo
        ended=$?
        "$0" sockets detach --cgroup "$1" >&2
        exit $ended"#;
    let outside = r#"
        root=$(findmnt -nfo TARGET -t cgroup2)
        own=$root/traits-demo-test-$$
        mkdir "$own" && echo 0 >"$own/cgroup.procs" || exit 4
        unshare --mount --cgroup sh -c "$1" "$0" "$root"
        ended=$?
        echo 0 >"$root/cgroup.procs"
        rmdir "$own"
        exit $ended"#;
    let output = Command::new("sh").args(["-c", outside, EXECUTABLE, inside]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{said}");
    let line = said.lines().find(|line| line.starts_with("traits: ")).unwrap_or_else(|| panic!("{said}"));
    let (_, command) = line.split_once("registry 'default'").unwrap_or_else(|| panic!("{line}"));
    assert!(command.contains("`traits sockets detach --cgroup /"), "{line}");
}
