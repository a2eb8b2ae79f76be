//! `traits trace` and `traits top` as people run them: what they print, the files they write, how they end.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Read},
    os::fd::AsRawFd,
    path::PathBuf,
    process::{Child, ChildStderr, Command, Output, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use common::{Traits, soon, text};
use packet_traits_lab::{
    Family, KernelFeature, Netns, Pair, RECV_TIMEOUT, kernel_has, kernel_has_for, recv_numbered, send_numbered,
    skipped, udp_socket,
};
use packet_traits_trace::BUSY;
use serde_json::Value;

/// A port with a server, and one without.
const SERVED: u16 = 7007;
const CLOSED: u16 = 7009;

/// Points that not every kernel has: of netfilter (6.4), and of sockets' queues (6.3).
const LATER_POINTS: [&str; 4] = ["prerouting", "route(", "input", "enqueue"];

/// Whether the function is named that drops a datagram to a closed port: `__udp4_lib_rcv`, which newer kernels (7.3) have
/// in `udp_rcv`.
fn names_udp_receive(text: &str) -> bool {
    ["__udp4_lib_rcv+0x", "udp_rcv+0x"].iter().any(|name| text.contains(name))
}

fn has_all_points() -> bool {
    KernelFeature::NetfilterLinks.is_here()
}

/// A link, a server on it, and the command.
struct Rig {
    pair: Pair,
    traits: Traits,
    server: std::net::UdpSocket,
    folder: PathBuf,
}

impl Rig {
    /// `None` if kernel tests are switched off.
    fn new(name: &str) -> Option<Rig> {
        let traits = Traits::new()?;
        let pair = Pair::new().unwrap();
        let server = udp_socket(pair.rx().netns(), pair.rx().addr(Family::V4, SERVED)).unwrap();
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("trace-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Some(Rig { pair, traits, server, folder })
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn netns(&self) -> String {
        self.pair.rx().netns().path().display().to_string()
    }

    /// Starts `traits trace` in the receiver's namespace, and waits until it traces. It does not stand by: other tests may
    /// send many packets at the same time.
    fn start(&self, arguments: &[&str]) -> Tracing {
        self.start_as_told(&[&["--standby=never"], arguments].concat())
    }

    fn start_as_told(&self, arguments: &[&str]) -> Tracing {
        let mut child = Command::new(env!("CARGO_BIN_EXE_traits"))
            .arg("--bpffs")
            .arg(self.traits.bpffs.path())
            .args(["trace", "--netns", &self.netns()])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("Ctrl-C ends it") {
            assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "it ended: {said}");
        }
        Tracing { child, stderr }
    }

    /// The server's socket, as lines have it.
    fn server_cookie(&self) -> String {
        let (mut cookie, mut len) = (0u64, 8);
        // SAFETY: both are valid for writing, and `len` says how much of `cookie` is.
        let status = unsafe {
            let to = (&raw mut cookie).cast();
            libc::getsockopt(self.server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, to, &raw mut len)
        };
        assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
        format!("sk:{cookie:x}")
    }

    /// Three datagrams that are delivered, and two that are dropped.
    fn traffic(&self) {
        let (tx, rx) = (self.pair.tx(), self.pair.rx());
        let socket = udp_socket(tx.netns(), tx.addr(Family::V4, 0)).unwrap();
        for number in 0..3 {
            send_numbered(&socket, rx.addr(Family::V4, SERVED), number..number + 1, 64).unwrap();
            assert_eq!(recv_numbered(&self.server).unwrap(), number);
        }
        for number in 0..2 {
            send_numbered(&socket, rx.addr(Family::V4, CLOSED), number..number + 1, 64).unwrap();
        }
        thread::sleep(Duration::from_millis(300));
    }

    /// Whether an XDP program is attached to the receiver.
    fn has_xdp(&self) -> bool {
        let rx = self.pair.rx();
        rx.netns().ip(&format!("link show {}", rx.name())).unwrap().contains("xdp")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // what is left of it is below the build's own folder
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Sends a signal to a child that has not been waited for, so that the number is still its.
fn signal(pid: u32, number: i32) {
    // SAFETY: takes numbers only.
    assert_eq!(unsafe { libc::kill(i32::try_from(pid).unwrap(), number) }, 0);
}

/// A `traits trace` that runs.
struct Tracing {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Tracing {
    fn signal(&self, number: i32) {
        signal(self.child.id(), number);
    }

    /// The next line on standard error; empty if it has ended.
    fn says(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        line
    }

    /// Waits until it has ended; returns its status, what it printed, and what it said.
    fn ended(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut said) = (String::new(), String::new());
        self.child.stdout.take().map(|mut stdout| stdout.read_to_string(&mut out)).transpose().unwrap();
        self.stderr.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), out, said)
    }

    /// Ends it as Ctrl-C does, and returns what it printed.
    fn end(mut self) -> String {
        self.signal(libc::SIGINT);
        let Output { status, stdout, .. } = {
            let mut stdout = Vec::new();
            self.child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
            Output { status: self.child.wait().unwrap(), stdout, stderr: Vec::new() }
        };
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        assert_eq!((status.code(), said.as_str()), (Some(0), ""), "{}", text(&stdout));
        text(&stdout)
    }
}

fn objects(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn of_type<'v>(objects: &'v [Value], kind: &str) -> Vec<&'v Value> {
    objects.iter().filter(|object| object["type"] == kind).collect()
}

#[test]
fn json_lines_are_what_the_schema_says() {
    let Some(rig) = Rig::new("json") else { return };
    let tracing = rig.start(&["--json", "proto == udp"]);
    rig.traffic();
    let objects = objects(&tracing.end());
    assert!(objects.iter().all(|object| object["v"] == 1));
    assert_eq!(objects[0]["type"], "start");
    assert_eq!(objects[0]["id_key"], "trace.id");
    assert_eq!(objects[0]["assigns_ids"], true);
    assert!(objects[0]["points"].as_array().unwrap().iter().any(|point| point["name"] == "tc-ingress"));
    let events = of_type(&objects, "event");
    let members = [
        "id",
        "point",
        "at_ns",
        "since_entered_ns",
        "netns",
        "netns_name",
        "dev",
        "ifindex",
        "len",
        "mark",
        "cpu",
        "skb",
        "copy",
        "clone",
        "inferred",
        "segments",
        "headers",
        "traits",
    ];
    for event in &events {
        for member in members {
            assert!(event.get(member).is_some(), "no {member} in {event}");
        }
        assert!(event["id"].is_string() && event["since_entered_ns"].is_u64(), "{event}");
    }
    let ids: BTreeSet<&str> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids, BTreeSet::from(["1", "2", "3", "4", "5"]));
    let at = |point: &str| events.iter().filter(|event| event["point"] == point).copied().collect::<Vec<_>>();
    assert_eq!((at("xdp").len(), at("deliver").len(), at("drop").len()), (5, 3, 2));
    assert_eq!(at("xdp")[0]["headers"]["destination_port"], SERVED);
    assert_eq!(at("xdp")[0]["dev"], "rx0");
    assert_eq!(at("xdp")[0]["first"], true);
    let drop = at("drop")[0];
    assert_eq!(drop["reason"], "NO_SOCKET");
    assert!(names_udp_receive(drop["place"].as_str().unwrap()), "{drop}");
    assert_eq!(at("deliver")[0]["bytes"], 64);
    assert_eq!(at("deliver")[0]["pid"], std::process::id());
    let summary = objects.last().unwrap();
    assert_eq!(summary["type"], "summary");
    for (member, count) in [("packets", 5), ("delivered", 3), ("dropped", 2), ("lost", 0)] {
        assert_eq!(summary[member], count, "{member} in {summary}");
    }
    assert_eq!(summary["events"], events.len());
}

#[test]
fn a_line_per_packet_has_its_whole_path() {
    let Some(rig) = Rig::new("packet") else { return };
    let tracing = rig.start(&["--per-packet", "proto == udp"]);
    rig.traffic();
    let out = tracing.end();
    let lines: Vec<&str> = out.lines().filter(|line| line.starts_with('#')).collect();
    assert_eq!(lines.len(), 5, "{out}");
    let delivered = lines.iter().find(|line| line.contains("delivered in")).unwrap();
    let points = ["[rx0@", " xdp+", " gro+", " tc-ingress+", " prerouting+", " route(main)+", " input+"];
    // the socket where it is known first
    let cgroup = format!(" cgroup({})+", rig.server_cookie());
    let mut rest = *delivered;
    let everywhere = |point: &&str| has_all_points() || !LATER_POINTS.iter().any(|later| point.contains(later));
    for point in points.into_iter().chain([&*cgroup, " enqueue+", " deliver(64 bytes to "]).filter(everywhere) {
        let place = rest.find(point).unwrap_or_else(|| panic!("{point} in {delivered}"));
        rest = &rest[place + point.len()..];
    }
    let dropped = |line: &&&str| line.contains("drop(NO_SOCKET at ") && names_udp_receive(line);
    assert_eq!(lines.iter().filter(dropped).count(), 2, "{out}");
    assert!(out.contains("5 packets, ") && out.contains("3 delivered, 2 dropped"), "{out}");

    let tracing = rig.start(&["--per-packet", "--json", "proto == udp"]);
    rig.traffic();
    let objects = objects(&tracing.end());
    let packets = of_type(&objects, "packet");
    let mut outcomes: BTreeMap<&str, u32> = BTreeMap::new();
    packets.iter().for_each(|packet| *outcomes.entry(packet["outcome"].as_str().unwrap()).or_default() += 1);
    assert_eq!(outcomes, BTreeMap::from([("delivered", 3), ("dropped", 2)]));
    for packet in packets {
        let steps = packet["steps"].as_array().unwrap();
        assert_eq!(steps[0]["point"], "xdp", "{packet}");
        let sum: u64 = steps.iter().map(|step| step["since_step_ns"].as_u64().unwrap()).sum();
        assert_eq!(sum, steps.last().unwrap()["since_entered_ns"].as_u64().unwrap(), "{packet}");
        let at_sockets: Vec<_> = steps.iter().filter(|step| step["socket"].is_string()).collect();
        let served = packet["outcome"] == "delivered";
        let expected = if has_all_points() { 3 } else { 2 };
        assert_eq!(at_sockets.len(), if served { expected } else { 0 }, "cgroup, enqueue, deliver: {packet}");
        assert!(
            at_sockets.iter().all(|step| rig.server_cookie() == format!("sk:{}", step["socket"].as_str().unwrap()))
        );
    }
}

#[test]
fn live_lines_and_the_numbers_at_the_end_are_for_people() {
    let Some(rig) = Rig::new("lines") else { return };
    let tracing = rig.start(&["proto == udp"]);
    rig.traffic();
    let out = tracing.end();
    assert!(out.lines().next().unwrap().contains("POINT"), "{out}");
    let drop = out.lines().find(|line| line.contains(" drop ")).unwrap();
    assert!(drop.contains("rx0") && drop.contains("UDP 10.77.0.1:") && drop.contains("NO_SOCKET at "), "{drop}");
    assert!(out.contains("From entering to delivery:"), "{out}");
    let cookie = rig.server_cookie();
    for point in
        [" cgroup ", " enqueue ", " deliver "].into_iter().filter(|point| has_all_points() || *point != " enqueue ")
    {
        let mut lines = out.lines().filter(|line| line.contains(point) && line.contains('#'));
        assert!(lines.clone().count() == 3 && lines.all(|line| line.ends_with(&format!(" {cookie}"))), "{out}");
    }
    let tracing = rig.start(&["--summary", "--only-drops", "proto == udp"]);
    rig.traffic();
    let out = tracing.end();
    assert!(out.starts_with("2 packets, 2 events: 0 delivered, 2 dropped"), "{out}");
    assert!(out.lines().all(|line| line.chars().count() <= 80), "{out}");
}

/// Runs a tool that the tests install.
fn tool(name: &str, arguments: &[&str]) -> Output {
    Command::new(name)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("running {name}: {error}; `make test` installs it"))
}

#[test]
fn files_open_in_the_tools_they_are_for() {
    let Some(rig) = Rig::new("files") else { return };
    let (pcapng, chrome, html) = (rig.file("x.pcapng"), rig.file("x.json"), rig.file("x.html"));
    let tracing = rig.start(&["--summary", "-w", &pcapng, "--chrome", &chrome, "--html", &html, "proto == udp"]);
    rig.traffic();
    tracing.end();

    // Wireshark's
    let fields = ["frame.interface_name", "udp.dstport", "frame.comment"];
    let mut arguments = vec!["-r", &pcapng, "-T", "fields", "-E", "separator=|"];
    fields.iter().for_each(|field| arguments.extend(["-e", field]));
    let output = tool("tshark", &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let frames = text(&output.stdout);
    let of = |point: &str| frames.lines().filter(|line| line.split('|').next() == Some(point)).collect::<Vec<_>>();
    assert_eq!((of("xdp").len(), of("drop").len(), of("deliver").len()), (5, 2, 3), "{frames}");
    let mut drop = of("drop")[0].splitn(3, '|').skip(1);
    assert_eq!(drop.next(), Some("7009"), "{frames}");
    let comment = drop.next().unwrap();
    assert!(
        comment.contains("dev=rx0") && comment.contains("NO_SOCKET at ") && names_udp_receive(comment),
        "{comment}"
    );
    let checked = tool("tshark", &["-r", &pcapng, "-Y", "_ws.malformed || udp.length.bad || ip.bogus_ip_length"]);
    assert_eq!(text(&checked.stdout), "", "every frame can be read");
    let custom = String::from_utf8_lossy(&fs::read(&pcapng).unwrap()).matches("packet-traits:{\"v\":1").count();
    assert_eq!(custom, frames.lines().count(), "each frame has its event as a custom option");

    // Perfetto's
    let trace: Value = serde_json::from_str(&fs::read_to_string(&chrome).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let count = |kind: &str| events.iter().filter(|event| event["ph"] == kind).count();
    assert!(count("b") > 5 * 6 && count("b") == count("e"), "{} starts, {} ends", count("b"), count("e"));
    let mut open: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for event in events.iter().filter(|event| event["cat"] == "packet") {
        let stack = open.entry(event["id"].as_str().unwrap()).or_default();
        match event["ph"].as_str().unwrap() {
            "b" => stack.push(event["name"].as_str().unwrap()),
            _ => assert_eq!(stack.pop(), event["name"].as_str(), "slices are nested"),
        }
    }
    assert!(open.len() == 5 && open.values().all(Vec::is_empty), "{open:?}");

    // a browser's, without a network; Ubuntu has none as a package
    if std::env::var("TRAITS_NO_BROWSER").is_ok_and(|value| value == "1") {
        packet_traits_lab::left_out("the report in a browser", "TRAITS_NO_BROWSER=1");
        return;
    }
    if let Err(why) = Command::new("chromium").arg("--version").output() {
        packet_traits_lab::left_out("the report in a browser", format_args!("running chromium: {why}"));
        return;
    }
    let profile = rig.file("profile");
    let url = format!("file://{html}");
    let browse = |more: &[&str]| {
        let profile = format!("--user-data-dir={profile}");
        let mut arguments = vec![
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &profile,
        ];
        arguments.extend(more);
        arguments.push(&url);
        tool("chromium", &arguments)
    };
    let dom = text(&browse(&["--dump-dom"]).stdout);
    for part in ["From entering to delivery", "<svg", "NO_SOCKET", "The slowest packets"] {
        assert!(dom.contains(part), "{part} in {dom}");
    }
    assert!(!dom.contains("src=") && !dom.contains("href="), "nothing is loaded: {dom}");
    let picture = rig.file("x.png");
    browse(&["--window-size=1000,1400", &format!("--screenshot={picture}")]);
    assert!(fs::metadata(&picture).unwrap().len() > 10_000, "it is drawn");
}

#[test]
fn an_output_that_fails_is_named_and_the_others_are_whole() {
    let Some(rig) = Rig::new("full") else { return };
    let chrome = rig.file("x.json");
    let slices = || {
        let trace: Value = serde_json::from_str(&fs::read_to_string(&chrome).unwrap()).unwrap();
        trace["traceEvents"].as_array().unwrap().len()
    };
    let tracing = rig.start(&["-w", "/dev/full", "--chrome", &chrome, "--html", "/dev/full", "proto == udp"]);
    rig.traffic();
    tracing.signal(libc::SIGTERM);
    let (status, out, said) = tracing.ended();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.starts_with("traits: cannot write /dev/full: ") && said.contains("No space left"), "{said}");
    assert!(out.contains("packets, ") && slices() > 1, "{out}");

    // who reads the lines has seen enough
    let mut tracing = rig.start(&["--chrome", &chrome, "proto == udp"]);
    drop(tracing.child.stdout.take());
    rig.traffic();
    let (status, _, said) = tracing.ended();
    assert_eq!((status, said.as_str()), (Some(0), ""));
    assert!(slices() >= 1);

    let full = format!(
        "{} --bpffs {} trace --netns {} --json > /dev/full",
        env!("CARGO_BIN_EXE_traits"),
        rig.traits.bpffs.path().display(),
        rig.netns()
    );
    let output = tool("sh", &["-c", &full]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("cannot write to standard output: No space left"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_tracer_that_cannot_go_on_is_named_and_what_it_saw_is_whole() {
    let Some(rig) = Rig::new("broken") else { return };
    let (chrome, html, pcapng) = (rig.file("x.json"), rig.file("x.html"), rig.file("x.pcapng"));
    let arguments = ["--standby", "--json", "--chrome", &chrome, "--html", &html, "-w", &pcapng, "proto == udp"];
    let tracing = rig.start_as_told(&arguments);
    // the last that it opens is what tells of the ring buffer
    let descriptors = PathBuf::from(format!("/proc/{}/fd", tracing.child.id()));
    let is_ring = |path: PathBuf| fs::read_link(path).is_ok_and(|to| to.ends_with("anon_inode:[eventpoll]"));
    soon("it reads events", || fs::read_dir(&descriptors).unwrap().any(|entry| is_ring(entry.unwrap().path())));
    // from now on it can open nothing: it cannot bring the points back
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the process runs, and the limits are valid for reading.
    let status = unsafe { libc::prlimit(tracing.child.id() as i32, libc::RLIMIT_NOFILE, &none, std::ptr::null_mut()) };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
    rig.traffic();
    let (status, out, said) = tracing.ended();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.starts_with("traits: ") && said.contains("cannot keep a map open"), "{said}");
    let seen = objects(&out);
    assert!(seen.last().unwrap()["too_early"].as_u64().unwrap() >= 1, "{seen:?}");
    let trace: Value = serde_json::from_str(&fs::read_to_string(&chrome).unwrap()).unwrap();
    assert!(trace["traceEvents"].is_array());
    assert!(fs::read_to_string(&html).unwrap().trim_end().ends_with("</html>"));
    let packets = tool("tshark", &["-r", &pcapng, "-T", "fields", "-e", "frame.number"]);
    assert_eq!(text(&packets.stdout).lines().count(), of_type(&seen, "event").len(), "{}", text(&packets.stderr));
}

#[test]
fn nothing_is_left_however_it_ends() {
    let Some(rig) = Rig::new("ends") else { return };
    // a registry that others use as well
    rig.traits.create_registry("default");
    let keys = || rig.traits.json("keys list --json")["keys"].as_array().unwrap().len();
    let tracing = rig.start(&[]);
    assert!(rig.has_xdp());
    assert_eq!(keys(), 2);
    tracing.end();
    assert!(!rig.has_xdp());
    assert_eq!(keys(), 0);

    let mut killed = rig.start(&[]);
    killed.signal(libc::SIGKILL);
    killed.child.wait().unwrap();
    let deadline = Instant::now() + RECV_TIMEOUT;
    while rig.has_xdp() {
        assert!(Instant::now() < deadline, "its XDP program is still there");
        thread::sleep(Duration::from_millis(10));
    }
    // before 6.6 no link holds what is at TC: it stays until it is removed as `packet-traits-trace` says
    if !KernelFeature::Tcx.is_here() {
        for direction in ["ingress", "egress"] {
            let rx = rig.pair.rx();
            let removed = rx.netns().command("tc").args(["filter", "del", "dev", rx.name(), direction]).status();
            assert!(removed.unwrap().success(), "{direction}");
        }
    }
    // the names stay; who traces next takes them over, and away
    let tracing = rig.start(&["--per-packet", "proto == udp"]);
    rig.traffic();
    assert!(tracing.end().contains("3 delivered, 2 dropped"));
    assert_eq!(keys(), 0);
}

#[test]
fn it_ends_by_itself_after_so_many_events_or_seconds() {
    let Some(rig) = Rig::new("limits") else { return };
    for limit in [["--count", "3"], ["--duration", "1"]] {
        let mut tracing = rig.start(&[&limit[..], &["--json"]].concat());
        rig.traffic();
        let mut out = String::new();
        tracing.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        assert!(tracing.child.wait().unwrap().success());
        let objects = objects(&out);
        assert_eq!(objects.last().unwrap()["type"], "summary", "{limit:?}");
        assert!(limit[0] != "--count" || of_type(&objects, "event").len() == 3, "{limit:?}");
    }
}

#[test]
fn a_slow_packet_is_shown_with_its_whole_path() {
    let Some(rig) = Rig::new("slow") else { return };
    let tracing = rig.start(&["--json", "--per-packet", "--slower", "200000", "proto == udp"]);
    rig.traffic();
    let socket = udp_socket(rig.pair.tx().netns(), rig.pair.tx().addr(Family::V4, 0)).unwrap();
    send_numbered(&socket, rig.pair.rx().addr(Family::V4, SERVED), 7..8, 64).unwrap();
    thread::sleep(Duration::from_millis(250));
    assert_eq!(recv_numbered(&rig.server).unwrap(), 7);
    let objects = objects(&tracing.end());
    let slow: Vec<_> = of_type(&objects, "packet")
        .into_iter()
        .filter(|packet| packet["steps"].as_array().unwrap().iter().any(|step| step["point"] == "deliver"))
        .collect();
    let all = of_type(&objects, "packet");
    assert!(all.iter().all(|packet| packet["duration_ns"].as_u64().unwrap() >= 200_000_000), "{all:?}");
    let [last] = slow[slow.len().saturating_sub(1)..] else { panic!("none is slow: {objects:?}") };
    let points: Vec<_> = last["steps"].as_array().unwrap().iter().map(|step| step["point"].as_str().unwrap()).collect();
    for point in ["xdp", "tc-ingress", "cgroup", "deliver"] {
        assert!(points.contains(&point), "{points:?}");
    }
    let deliver = last["steps"].as_array().unwrap().iter().find(|step| step["point"] == "deliver").unwrap();
    assert!(deliver["socket"].is_string(), "{deliver}");
    assert_eq!(objects.last().unwrap()["packets"], all.len() as u64, "the numbers are of slow packets");
}

#[test]
fn dropped_packets_are_shown_with_their_whole_path() {
    let Some(rig) = Rig::new("drops") else { return };
    let (pcapng, chrome, html) = (rig.file("x.pcapng"), rig.file("x.json"), rig.file("x.html"));
    let files = ["-w", &pcapng, "--chrome", &chrome, "--html", &html];
    let points = |packet: &Value| -> Vec<String> {
        packet["steps"].as_array().unwrap().iter().map(|step| step["point"].as_str().unwrap().to_owned()).collect()
    };
    let tracing = rig.start(&[&["--json", "--per-packet", "--only-drops", "proto == udp"], &files[..]].concat());
    rig.traffic();
    let seen = objects(&tracing.end());
    let packets = of_type(&seen, "packet");
    assert_eq!(packets.len(), 2, "{packets:?}");
    for packet in packets {
        assert_eq!(packet["outcome"], "dropped", "{packet}");
        let points = points(packet);
        assert_eq!((&*points[0], &**points.last().unwrap()), ("xdp", "drop"), "{packet}");
        assert!(points.contains(&"tc-ingress".to_owned()), "{packet}");
    }
    let summary = seen.last().unwrap();
    assert_eq!((&summary["packets"], &summary["dropped"], &summary["delivered"]), (&2.into(), &2.into(), &0.into()));
    // a file of events has the drops, one of paths has the paths
    let frames = text(&tool("tshark", &["-r", &pcapng, "-T", "fields", "-e", "frame.interface_name"]).stdout);
    assert_eq!(frames, "drop\ndrop\n");
    let slices = fs::read_to_string(&chrome).unwrap();
    let starts = |name: &str| slices.matches(&format!("\"name\":\"{name}\",\"ph\":\"b\"")).count();
    assert_eq!((starts("xdp"), starts("tc-ingress"), starts("drop"), starts("deliver")), (2, 2, 2, 0), "{slices}");
    assert!(fs::read_to_string(&html).unwrap().contains(">tc-ingress<"));

    // lines of events beside such a file are of drops
    let tracing = rig.start(&["--only-drops", "--chrome", &chrome, "proto == udp"]);
    rig.traffic();
    let out = tracing.end();
    assert_eq!(out.lines().skip(1).take_while(|line| line.contains(" drop ")).count(), 2, "{out}");
    assert_eq!(fs::read_to_string(&chrome).unwrap().matches("\"name\":\"tc-ingress\"").count(), 4, "starts and ends");

    // those are quick, and what is slow is delivered, but for what waits in a socket that is closed
    let tracing = rig.start(&["--json", "--per-packet", "--only-drops", "--slower", "200000", "proto == udp"]);
    rig.traffic();
    let (tx, rx) = (rig.pair.tx(), rig.pair.rx());
    let closing = udp_socket(rx.netns(), rx.addr(Family::V4, SERVED + 1)).unwrap();
    let socket = udp_socket(tx.netns(), tx.addr(Family::V4, 0)).unwrap();
    for port in [SERVED, SERVED + 1] {
        send_numbered(&socket, rx.addr(Family::V4, port), 7..8, 64).unwrap();
    }
    thread::sleep(Duration::from_millis(250));
    assert_eq!(recv_numbered(&rig.server).unwrap(), 7);
    drop(closing);
    let seen = objects(&tracing.end());
    let [packet] = of_type(&seen, "packet")[..] else { panic!("{seen:?}") };
    assert_eq!(packet["headers"]["destination_port"], SERVED + 1, "{packet}");
    assert!(points(packet).contains(&"cgroup".to_owned()), "{packet}");
}

#[test]
fn it_says_that_it_stands_by_and_that_it_follows_again() {
    let Some(rig) = Rig::new("standby") else { return };
    let mut tracing = rig.start_as_told(&["--json", "--summary", "dport == 7007"]);
    let (stop, child) = (AtomicBool::new(false), tracing.child.id());
    let stands_by = thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let (tx, rx) = (rig.pair.tx(), rig.pair.rx());
            let socket = udp_socket(tx.netns(), tx.addr(Family::V4, 0)).unwrap();
            let (started, mut sent) = (Instant::now(), 0);
            while !stop.load(Ordering::Relaxed) {
                send_numbered(&socket, rx.addr(Family::V4, CLOSED), 0..1000, 64).unwrap();
                sent += 1000;
                // so that the test ends, too
                if started.elapsed() > Duration::from_secs(60) {
                    signal(child, libc::SIGKILL);
                    break;
                }
            }
            sent as f64 / started.elapsed().as_secs_f64()
        });
        let said = tracing.says();
        stop.store(true, Ordering::Relaxed);
        let per_second = flood.join().unwrap();
        let stands_by = said.contains("all points but the first are taken away");
        assert!(stands_by || per_second < 2.0 * BUSY as f64, "{per_second} packets per second: {said}");
        stands_by
    });
    if !stands_by {
        return skipped(format_args!(
            "this machine sends too few packets per second for a tracer to stand by ({BUSY})"
        ));
    }
    rig.traffic();
    let said = tracing.says();
    assert!(said.contains("packets are followed from now on"), "{said}");
    rig.traffic();
    let seen = objects(&tracing.end());
    assert_eq!(of_type(&seen, "start")[0]["armed"], true);
    let changes = of_type(&seen, "standby");
    assert_eq!(changes.iter().map(|change| change["armed"].as_bool()).collect::<Vec<_>>(), [Some(false), Some(true)]);
    assert!(said.contains(changes[1]["why"].as_str().unwrap()), "{changes:?}");
    let summary = seen.last().unwrap();
    let number = |member: &str| summary[member].as_u64().unwrap();
    assert!(number("too_early") >= 1 && number("packets") >= 3, "{summary}");
    assert_eq!(number("too_early") + number("packets"), 6, "{summary}");
}

#[test]
fn a_policy_that_is_up_needs_no_ids_to_be_traced() {
    if !kernel_has(KernelFeature::MetadataDynptr) {
        return;
    }
    let Some(rig) = Rig::new("policy") else { return };
    let policy = rig.traits.policy("tenants", "key tenant u32\nxdp {\n\tudp dport 7007  set tenant = 7\n}\n");
    let rx = rig.pair.rx();
    rig.traits.create_registry("default");
    rx.netns().enter(|| rig.traits.ok(&format!("up {} --dev {}", policy.display(), rx.name())));
    let tracing = rig.start(&["--json", "--per-packet", "tenant == 7"]);
    rig.traffic();
    let seen = objects(&tracing.end());
    let notes = of_type(&seen, "start")[0]["notes"].to_string();
    assert!(notes.contains("rx0: XDP program") && notes.contains("at TC ingress"), "{notes}");
    let packets = of_type(&seen, "packet");
    assert_eq!(packets.len(), 3, "{seen:?}");
    for packet in packets {
        assert_eq!((&packet["traits"]["tenant"], &packet["outcome"]), (&7.into(), &"delivered".into()), "{packet}");
        assert_eq!(packet["steps"][0]["point"], "tc-ingress", "{packet}");
    }
    assert!(rig.has_xdp(), "the policy's program stays");
}

#[test]
fn ctrl_c_ends_it_in_a_flood_that_it_cannot_keep_up_with() {
    let Some(rig) = Rig::new("flood") else { return };
    let tracing = rig.start(&["--json", "--buffer", "1", "proto == udp"]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (tx, rx) = (rig.pair.tx(), rig.pair.rx());
            let socket = udp_socket(tx.netns(), tx.addr(Family::V4, 0)).unwrap();
            while !stop.load(Ordering::Relaxed) {
                send_numbered(&socket, rx.addr(Family::V4, CLOSED), 0..200, 64).unwrap();
            }
        });
        thread::sleep(Duration::from_millis(700));
        // the flood goes on until it has ended
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tracing.end()));
        stop.store(true, Ordering::Relaxed);
        let objects = objects(&ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        assert_eq!(objects.last().unwrap()["type"], "summary");
    });
    assert!(!rig.has_xdp());
}

#[test]
fn what_is_lost_is_said_and_counted() {
    let Some(rig) = Rig::new("lost") else { return };
    let tracing = rig.start(&["--json", "--buffer", "1", "proto == udp"]);
    let (tx, rx) = (rig.pair.tx(), rig.pair.rx());
    let socket = udp_socket(tx.netns(), tx.addr(Family::V4, 0)).unwrap();
    // nobody reads in the meantime
    tracing.signal(libc::SIGSTOP);
    send_numbered(&socket, rx.addr(Family::V4, CLOSED), 0..2000, 64).unwrap();
    tracing.signal(libc::SIGCONT);
    thread::sleep(Duration::from_secs(1));
    let objects = objects(&tracing.end());
    assert!(!of_type(&objects, "lost").is_empty());
    let summary = objects.last().unwrap();
    let lost = &summary["lost_points"];
    assert!(summary["lost"].as_u64().unwrap() > 1000, "{summary}");
    for point in ["xdp", "receive", "tc-ingress", "drop"] {
        let seen = of_type(&objects, "event").iter().filter(|event| event["point"] == point).count() as u64;
        assert!(seen > 0, "{point}");
        assert_eq!(seen + lost[point].as_u64().unwrap(), 2000, "{point}: {summary}");
    }
}

#[test]
fn mistakes_are_named_with_what_to_do() {
    let Some(rig) = Rig::new("mistakes") else { return };
    let netns = rig.netns();
    let fails = |line: &str, status: i32, parts: &[&str]| {
        let said = rig.traits.fails(line, status);
        for part in parts {
            assert!(said.contains(part), "{part} in {said}");
        }
    };
    // the tracer's own keys are not what is meant
    fails(&format!("trace --netns {netns} tenant==7"), 1, &["`tenant`", "it has none"]);
    rig.traits.create_registry("default");
    rig.traits.ok("keys add tenant u32");
    rig.traits.ok("keys add owner mac");
    fails("trace tenant", 2, &["`tenant` is no condition", "tenant == 7"]);
    if kernel_has_for(KernelFeature::LongMetadata, "conditions, beside other keys than the command's own") {
        fails(&format!("trace --netns {netns} tennant==7"), 1, &["`tennant`", "tenant, owner", "dport"]);
        fails(&format!("trace --netns {netns} tenant==many"), 1, &["`many`", "u32"]);
        fails(&format!("trace --netns {netns} owner<02:00:00:00:00:01"), 1, &["owner", "== or !="]);
    } else {
        let parts = ["trace.id and trace.entered", "16 of them are missing", "(of tenant)", "Linux 6.8"];
        fails(&format!("trace --netns {netns} tenant==7"), 1, &parts);
    }
    fails(&format!("trace --netns {netns} --dev eth7"), 1, &["eth7", "ip link"]);
    let idle = Netns::new().unwrap();
    fails(&format!("trace --netns {}", idle.path().display()), 1, &["no interface that is up", "--dev"]);
    fails("trace --netns no-such-one", 1, &["no-such-one", "ip netns"]);
    fails(&format!("trace --netns {netns} --id nobody"), 1, &["nobody", "tenant, owner"]);
    fails(&format!("trace --netns {netns} --id owner"), 1, &["owner", "mac", "u64 or u32"]);
    fails(&format!("trace --netns {netns} --id tenant --slower 5"), 1, &["--entered"]);
    fails("trace --entered tenant", 2, &["--id"]);
    fails(&format!("trace --netns {netns} -w /nowhere/x.pcapng"), 1, &["/nowhere/x.pcapng"]);
    fails(&format!("trace --netns {netns} -w -"), 1, &["standard output"]);
    fails(&format!("trace --netns {netns} --buffer 3"), 1, &["--buffer 3", "power of two"]);
    fails(&format!("trace --netns {netns} --buffer 18446744073709551615"), 1, &["1024 MiB"]);
    fails(&format!("top --standby=never --netns {netns}"), 1, &["terminal", "traits trace --summary"]);
    assert!(!rig.has_xdp());
}

/// A terminal multiplexer with a server of its own. Dropping it ends it.
struct Tmux(String);

impl Tmux {
    fn run(&self, arguments: &[&str]) -> String {
        let output = tool("tmux", &[&["-L", &self.0, "-f", "/dev/null"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Waits until the screen is as it should be.
    fn wait_for(&self, what: &str, ready: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let screen = self.run(&["capture-pane", "-p"]);
            if ready(&screen) {
                return screen;
            }
            assert!(Instant::now() < deadline, "{what}:\n{screen}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        // it may have ended with the command in it
        let _ = Command::new("tmux").args(["-L", &self.0, "kill-server"]).output();
    }
}

/// `traits top` in a terminal of 80 by 24, which shows its status when it has ended.
fn top(rig: &Rig, name: &str) -> Tmux {
    let tmux = Tmux(format!("traits-test-{name}-{}", std::process::id()));
    let command = format!(
        "{} --bpffs {} top --standby=never --netns {} 'proto == udp'; echo ended with $?; stty -a; sleep 30",
        env!("CARGO_BIN_EXE_traits"),
        rig.traits.bpffs.path().display(),
        rig.netns()
    );
    tmux.run(&["new-session", "-d", "-x", "80", "-y", "24", &command]);
    tmux.wait_for("it starts", |screen| screen.contains("POINT") && screen.contains("q quit"));
    tmux
}

/// The number of a process whose command line has this in it.
fn process_with(part: &str) -> Option<i32> {
    fs::read_dir("/proc").unwrap().find_map(|entry| {
        let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        (line.starts_with(env!("CARGO_BIN_EXE_traits")) && line.contains(part)).then_some(pid)
    })
}

#[test]
fn top_leaves_the_terminal_as_it_was_and_ends_with_it() {
    let Some(rig) = Rig::new("top-ends") else { return };
    let process = || process_with(&format!("top --standby=never --netns {} ", rig.netns()));
    let restored = |screen: &str| {
        screen.contains("ended with 0") && [" icanon", " echo "].iter().all(|mode| screen.contains(mode))
    };
    let tmux = top(&rig, "ctrl-c");
    tmux.run(&["send-keys", "C-c"]);
    tmux.wait_for("Ctrl-C ends it", restored);
    let tmux = top(&rig, "term");
    // SAFETY: takes numbers only; the process runs as long as nobody ends it.
    assert_eq!(unsafe { libc::kill(process().unwrap(), libc::SIGTERM) }, 0);
    tmux.wait_for("SIGTERM ends it", restored);
    drop(top(&rig, "gone"));
    soon("it ends when its terminal is gone", || process().is_none() && !rig.has_xdp());
}

#[test]
fn top_fills_a_terminal_of_80_by_24() {
    let Some(rig) = Rig::new("top") else { return };
    let tmux = top(&rig, "80-by-24");
    rig.traffic();
    // the terminal may be seen while it is drawn: all that belongs on a screen is waited for
    let screen = tmux.wait_for("packets are counted", |screen| {
        screen.contains("5 packets, 3 delivered, 2 dropped") && screen.lines().any(|line| line.starts_with("deliver"))
    });
    assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
    tmux.run(&["send-keys", "d"]);
    tmux.wait_for("drops", |screen| screen.contains("NO_SOCKET") && names_udp_receive(screen));
    tmux.run(&["send-keys", "q"]);
    tmux.wait_for("it ends", |screen| screen.contains("ended with 0"));
    assert!(!rig.has_xdp());
}
