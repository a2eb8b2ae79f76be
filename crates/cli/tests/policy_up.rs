//! Policies on a real interface: `traits up`, `--replace`, `status`, `log` and `down`.

mod common;

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader},
    net::UdpSocket,
    os::fd::{AsRawFd, FromRawFd},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use common::{host::Host, text};
use libbpf_rs::MapHandle;
use packet_traits_lab::{
    Cgroup, Family, Feature, KernelFeature, TcpSink, kernel_has_for, number_of, recv_numbered, send_numbered, skipped,
    tcp_transfer, udp_socket,
};
use packet_traits_policy::{
    check::{CheckOptions, Files, check},
    compile::Compiler,
    emit::{EmitOptions, emit},
};
use serde_json::{Value, json};

/// The merge policy of keys that need not be `block`: where the area has no packet region they are, too.
fn keep_first() -> &'static str {
    if KernelFeature::LongMetadata.is_here() { "keep-first" } else { "block" }
}

/// A policy with a block of every kind that the kernel has.
fn edge() -> String {
    let netfilter = if KernelFeature::NetfilterLinks.is_here() { NETFILTER } else { "" };
    EDGE.replace("MERGE", keep_first()).replace("NETFILTER\n", netfilter)
}

const EDGE: &str = r#"
key tenant u32 "who the packet belongs to"
key id u64 MERGE

map tenants ipv4 : u32 = { 10.77.0.0/16 : 77, 10.78.0.0/16 : 78 }
set blocked ipv4 = { 10.99.0.0/16 }

xdp {
    ip saddr @blocked  count blocked  drop
    set tenant = ip saddr map @tenants
    set id = unique
}

tc ingress {
    iif "rx0" trait tenant 77  mark 0x7
    iif != "rx0" count elsewhere
}

NETFILTER
cgroup ingress {
    trait tenant 77  count in_cgroup by trait tenant
}

match ours {
    trait tenant 77  accept
}
"#;

const NETFILTER: &str = "\
netfilter input priority -1 {
    trait tenant is set  count seen by trait tenant
    udp dport 5003  count denied  drop
}

";

impl Host {
    /// Compiles a policy to an object file.
    fn compiled(&self, name: &str, text: &str) -> String {
        let source = self.policy(name, text);
        let checked = check(Path::new(&source), &Files, &CheckOptions::default()).unwrap_or_else(|rejected| {
            let all: Vec<_> = rejected.diagnostics.iter().map(|one| one.render(&rejected.sources, false)).collect();
            panic!("{}", all.join("\n"))
        });
        let emitted = emit(&checked.policy, &checked.sources, &EmitOptions::default()).unwrap();
        let object = Compiler::new(&libbpf_rs::libbpf_sys::API_HEADERS).compile(&emitted).unwrap();
        let path = self.traits.folder.path().join(format!("{name}.bpf.o"));
        fs::write(&path, object).unwrap();
        path.display().to_string()
    }

    fn keys(&self) -> Vec<String> {
        let keys = self.json("keys list --json");
        keys["keys"].as_array().unwrap().iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect()
    }

    fn receiver(&self, port: u16) -> UdpSocket {
        udp_socket(self.pair.rx().netns(), self.pair.rx().addr(Family::V4, port)).unwrap()
    }

    fn sender(&self) -> UdpSocket {
        udp_socket(self.pair.tx().netns(), self.pair.tx().addr(Family::V4, 0)).unwrap()
    }

    /// Sends datagrams to a socket of the cgroup, which are waited for one after the other, until `done`. Returns how many.
    fn traffic(&self, cgroup: &Cgroup, done: &AtomicBool) -> u64 {
        let (sender, receiver) = (self.sender(), cgroup.enter(|| self.receiver(0)));
        let to = receiver.local_addr().unwrap();
        let mut sent = 0;
        while !done.load(Ordering::Relaxed) {
            send_numbered(&sender, to, sent..sent + 1, 64).unwrap();
            assert_eq!(recv_numbered(&receiver).unwrap(), sent);
            sent += 1;
            thread::sleep(Duration::from_micros(20));
        }
        sent
    }
}

/// A cgroup that a process of its own path can be given.
fn in_cgroup(cgroup: &Cgroup) -> String {
    format!("--cgroup {}", cgroup.path().display())
}

#[test]
fn a_policy_goes_up_counts_and_goes_down() {
    let Some(host) = Host::new() else { return };
    let cgroup = Cgroup::new().unwrap();
    let edge = host.policy("edge", &edge());
    let netfilter = kernel_has_for(KernelFeature::NetfilterLinks, "what netfilter does");
    let up = host.json(&format!("up {edge} --dev rx0 {} --json", in_cgroup(&cgroup)));
    assert_eq!((&up["name"], &up["new_keys"]), (&json!("edge"), &json!(["tenant", "id"])));
    assert_eq!(host.keys(), ["tenant", "id"]);
    assert!(host.fails(&format!("up {edge} --dev rx0 {}", in_cgroup(&cgroup))).contains("already up"));

    let receiver = cgroup.enter(|| host.receiver(5000));
    let other = host.receiver(5003);
    other.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    send_numbered(&host.sender(), receiver.local_addr().unwrap(), 0..3, 64).unwrap();
    send_numbered(&host.sender(), other.local_addr().unwrap(), 0..2, 64).unwrap();
    for number in 0..3 {
        assert_eq!(recv_numbered(&receiver).unwrap(), number);
    }
    assert_eq!(recv_numbered(&other).is_err(), netfilter, "netfilter drops it");

    let status = host.status("edge");
    let programs = status["programs"].as_array().unwrap();
    let find = |name: &str| programs.iter().find(|one| one["program"] == name).unwrap_or_else(|| panic!("{status:#}"));
    assert_eq!(find("xdp")["xdp_mode"], "generic", "rx0 is a veth");
    let tc = if KernelFeature::Tcx.is_here() { "tcx ingress" } else { "clsact ingress" };
    assert_eq!(find("tc_ingress")["hook"], tc);
    if netfilter {
        assert_eq!(find("nf_input-ip6-input--1")["hook"], "netfilter ip6 input priority -1");
    }
    assert_eq!(find("cgroup_ingress")["target"], cgroup.path().display().to_string());
    for program in programs {
        assert!(program["since"].as_str().unwrap().starts_with("20"), "{program}");
        assert!(program["program_id"].as_u64().unwrap() > 0, "{program}");
    }
    assert_eq!(status["unfinished"], false);
    assert!(status.get("unreadable").is_none(), "{status:#}");
    assert_eq!(status["filters"][0]["use"], "match");
    assert!(status["filters"][0]["path"].as_str().unwrap().ends_with("packet_traits_up/default/edge/filters/ours"));

    let policy = &status["policy"];
    assert_eq!(policy["source"], edge);
    let rule = |line: u64| {
        let rules = policy["rules"].as_array().unwrap();
        rules.iter().find(|rule| rule["line"] == line).unwrap_or_else(|| panic!("{policy:#}"))
    };
    assert_eq!(rule(10)["text"], "set tenant = ip saddr map @tenants");
    assert_eq!((&rule(10)["program"], &rule(10)["file"]), (&json!("xdp"), &json!(edge)));
    // 14 bytes of Ethernet, 20 of IP, 8 of UDP, 64 of payload
    assert_eq!((&rule(10)["packets"], &rule(10)["bytes"]), (&json!(5), &json!(5 * 106)));
    assert_eq!(rule(15)["packets"], 5);
    assert_eq!((&rule(9)["packets"], &rule(16)["packets"]), (&json!(0), &json!(0)));
    let counters: Vec<(&str, u64)> = policy["counters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["name"].as_str().unwrap(), one["packets"].as_u64().unwrap()))
        .collect();
    let all = [("blocked", 0), ("elsewhere", 0), ("seen", 5), ("denied", 2), ("in_cgroup", 3)];
    let here = all.into_iter().filter(|(counter, _)| netfilter || !["seen", "denied"].contains(counter));
    assert_eq!(counters, here.collect::<Vec<_>>());
    for counter in policy["counters"].as_array().unwrap().iter().filter(|counter| counter.get("by").is_some()) {
        assert_eq!((&counter["by"], &counter["values"][0]["value"]), (&json!("u32"), &json!("77")));
        assert_eq!(counter["values"][0]["packets"], counter["packets"]);
    }

    let shown = host.ok("status");
    for part in ["edge.traits:10", "set tenant = ip saddr map @tenants", "in_cgroup", "SINCE", "xdp (generic)"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(host.ok("down edge").contains(if netfilter { "5 programs detached" } else { "3 programs detached" }));
    assert_eq!(host.keys(), ["tenant", "id"], "keys stay");
    assert_eq!(host.up(), [""; 0]);
    assert!(!host.traits.pins("").exists());
}

#[test]
fn keys_go_with_their_last_user_if_that_is_asked_for() {
    let Some(host) = Host::new() else { return };
    let one = host.policy("one", "key tenant u32\nkey own u8\nxdp { set tenant = 1  set own = 2 }\n");
    let two = host.policy("two", "key tenant u32\ntc ingress { trait tenant 1  mark 1 }\n");
    host.ok(&format!("up {one} --dev rx0"));
    host.ok(&format!("up {two} --dev rx0"));
    let down = host.run("down one --keys --json");
    assert!(down.status.success());
    let report: Value = serde_json::from_slice(&down.stdout).unwrap();
    assert_eq!(report["removed_keys"], json!(["own"]));
    assert!(text(&down.stderr).contains("tc_ingress"), "who keeps tenant is named: {}", text(&down.stderr));
    assert_eq!(host.keys(), ["tenant"]);
    assert!(host.ok("down two --keys").contains("removed keys: tenant"));
    assert_eq!(host.keys(), [""; 0]);
}

#[test]
fn an_object_needs_neither_clang_nor_the_source() {
    let Some(host) = Host::on(&[KernelFeature::NetfilterLinks]) else { return };
    let object = host.compiled("edge", edge().split_once("cgroup").unwrap().0);
    fs::remove_file(host.traits.folder.path().join("edge.traits")).unwrap();
    let run =
        |line: &str| host.command(line).env("PATH", host.traits.folder.path()).env_remove("CLANG").output().unwrap();
    let output = run(&format!("up {object} --dev rx0"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(host.delivers(5000));
    assert_eq!(host.counter("edge", "seen"), 1);
    assert!(host.ok("status").contains("edge.traits:10"), "rules have their places without the file");
    host.ok("down edge --keys");

    let source = host.policy("edge", &edge());
    let error = text(&run(&format!("up {source} --dev rx0")).stderr);
    assert!(error.contains("there is no compiler clang") && error.contains("traits compile"), "{error}");
    assert_eq!((host.up(), host.keys()), (vec![], vec![]));
}

#[test]
fn an_object_with_a_damaged_description_is_refused() {
    let Some(host) = Host::new() else { return };
    let object = host.compiled("edge", "key tenant u32\nxdp { set tenant = 7 }\n");
    let whole = fs::read(&object).unwrap();
    for (part, in_its_place, said) in [
        (&b"{\"version\":"[..], &b"[\"version\":"[..], "section packet_traits.policy is damaged"),
        (b"\"type\":\"u32\"", b"\"type\":\"u33\"", "key tenant: "),
    ] {
        let at = whole.windows(part.len()).position(|bytes| bytes == part).unwrap();
        let mut damaged = whole.clone();
        damaged[at..at + part.len()].copy_from_slice(in_its_place);
        fs::write(&object, damaged).unwrap();
        let error = host.fails(&format!("up {object} --dev rx0"));
        assert!(error.contains("edge.") && error.contains(said), "{error}");
        assert_eq!((host.up(), host.keys()), (vec![], vec![]));
    }
}

#[test]
fn a_counter_whose_map_is_gone_or_another_is_named() {
    let Some(host) = Host::new() else { return };
    let edge = host.policy("edge", "xdp { ip saddr != 10.99.0.1 count seen by ip saddr }\n");
    host.ok(&format!("up {edge} --dev rx0"));
    let maps = host.traits.pins("edge").join("maps");
    fs::rename(maps.join("pt_by_seen"), maps.join("away")).unwrap();
    assert!(host.fails("status edge").contains("edge has lost map pt_by_seen"));

    fs::rename(maps.join("away"), maps.join("pt_by_seen")).unwrap();
    host.ok("status edge");
    fs::remove_file(maps.join("pt_hits")).unwrap();
    let mut header = MapHandle::from_pinned_path(host.traits.dir("default").join("header")).unwrap();
    header.pin(maps.join("pt_hits")).unwrap();
    assert!(host.fails("status edge").contains("reading map pt_hits of edge: "));
    host.ok("down edge");
}

#[test]
fn a_wrong_policy_is_told_by_line_and_changes_nothing() {
    let Some(host) = Host::new() else { return };
    let wrong = host.policy("wrong", "key tenant u32\nxdp {\n    set tenant = ip6 saddr\n    set nosuch = 1\n}\n");
    let error = host.fails(&format!("up {wrong} --dev rx0"));
    assert!(error.contains("wrong.traits:3:") && error.contains("wrong.traits:4:"), "{error}");
    assert_eq!((host.up(), host.keys()), (vec![], vec![]));

    let elsewhere = host.policy("elsewhere", "key tenant u32\nxdp { udp dport 1 redirect \"nosuch0\" }\n");
    let error = host.fails(&format!("up {elsewhere} --dev rx0"));
    assert!(error.contains("nosuch0") && error.contains("elsewhere.traits"), "{error}");
    assert_eq!((host.up(), host.keys()), (vec![], vec![]));

    if !kernel_has_for(KernelFeature::NetfilterLinks, "a wrong hook of netfilter") {
        return;
    }
    let netfilter = host.policy("netfilter", "netfilter input priority -1 { udp dport 1 drop }\n");
    assert!(host.fails(&format!("up {netfilter} --netfilter nf_input=ip:forward")).contains("remove --netfilter"));
}

#[test]
fn if_one_program_cannot_be_attached_nothing_is() {
    let Some(host) = Host::on(&[KernelFeature::NetfilterLinks]) else { return };
    let holder = host.policy("holder", "netfilter ip input priority 5 { udp dport 1 drop }\n");
    host.ok(&format!("up {holder}"));
    let third = "key tenant u32\nkey own u8\n\
                 xdp { set tenant = 1  set own = 2 }\n\
                 tc ingress { trait own 2 mark 1 }\n\
                 netfilter input priority 5 { trait tenant 1 drop }\n";
    host.traits.ok("keys add tenant u32");
    let third = host.policy("third", third);
    for _ in 0..2 {
        let error = host.fails(&format!("up {third} --dev rx0"));
        assert!(error.contains("same priority") && error.contains("priority 4 is free"), "{error}");
        assert_eq!(host.up(), ["holder"]);
        assert_eq!(host.keys(), ["tenant"], "what was registered before stays, the other is taken back");
        let left: Vec<_> =
            fs::read_dir(host.traits.pins("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["holder"]);
    }
    // The interface is free, and so is the netfilter hook of IPv6.
    host.ok("down holder");
    host.ok(&format!("up {third} --dev rx0"));
    assert!(!host.delivers(5000), "the policy drops what it has marked as its tenant's");
}

/// Sets tenant to `number`.
fn version(number: u32) -> String {
    format!("key tenant u32\nxdp {{ set tenant = {number} }}\ntc ingress {{ trait tenant {number}  count by_tc }}\n")
}

/// Says which packets of a stream have met which version.
const WATCH: &str = "key tenant u32\n\
                     cgroup ingress {\n\
                     not trait tenant is set  count neither\n\
                     trait tenant 1  count first\n\
                     trait tenant 2  count second\n\
                     }\n";

#[test]
fn no_packet_meets_neither_version_while_policies_replace_each_other() {
    let Some(host) = Host::new() else { return };
    let objects = [1, 2].map(|number| host.compiled(&format!("v{number}"), &version(number)));
    host.ok(&format!("up {} --dev rx0 --name edge --replace", objects[0]));
    let cgroup = Cgroup::new().unwrap();
    host.ok(&format!("up {} {}", host.policy("watch", WATCH), in_cgroup(&cgroup)));
    let done = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let stop = Stop(&done);
        let traffic = scope.spawn(|| host.traffic(&cgroup, &done));
        for i in 1..=100 {
            host.ok(&format!("up {} --dev rx0 --name edge --replace", objects[i % 2]));
        }
        drop(stop);
        traffic.join().unwrap()
    });
    let [neither, first, second] = ["neither", "first", "second"].map(|counter| host.counter("watch", counter));
    println!("{sent} packets: {first} met the first version, {second} the second");
    assert_eq!((neither, first + second), (0, sent));
    assert!(first > 0 && second > 0);
    assert_eq!(host.up(), ["edge", "watch"]);
}

/// How many commands are killed at different moments: `TRAITS_KILLED_COMMANDS`, or 60.
fn killed_commands() -> u32 {
    std::env::var("TRAITS_KILLED_COMMANDS").map_or(60, |number| number.parse().expect("a number"))
}

#[test]
fn a_command_that_is_killed_leaves_what_the_next_one_mends() {
    let Some(host) = Host::new() else { return };
    let commands = killed_commands();
    let netfilter = "netfilter input priority 9 { trait tenant 3 drop }\n";
    let netfilter = if KernelFeature::NetfilterLinks.is_here() { netfilter } else { "" };
    let filter = format!("{netfilter}match ours {{ trait tenant 1 accept }}\n");
    let objects = [1, 2].map(|number| host.compiled(&format!("v{number}"), &format!("{}{filter}", version(number))));
    host.ok(&format!("up {} --dev rx0 --name edge", objects[0]));
    let cgroup = Cgroup::new().unwrap();
    host.ok(&format!("up {} {}", host.policy("watch", WATCH), in_cgroup(&cgroup)));
    let other = host.policy("other", "tc egress { udp dport 1 drop }\n");
    let done = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let stop = Stop(&done);
        let traffic = scope.spawn(|| host.traffic(&cgroup, &done));
        let (mut killed, mut unfinished) = (0, 0);
        let start = Instant::now();
        host.ok(&format!("up {} --dev rx0 --name edge --replace", objects[1]));
        let whole = start.elapsed();
        for i in 0..commands {
            let line = format!("up {} --dev rx0 --name edge --replace", objects[i as usize % 2]);
            let mut child = host.command(&line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            // from when the programs are loaded to when they have taken over
            thread::sleep(whole * (20 * commands + 60 * i) / (70 * commands));
            killed += u32::from(is_killed(&mut child));
            unfinished += u32::from(host.up().contains(&"_new".to_owned()));
            match i % 3 {
                // what was up before is the same or the new version, whole
                0 => drop(host.ok(&format!("up {other} --dev rx0"))),
                1 => drop(host.ok(&format!("up {} --dev rx0 --name edge --replace", objects[0]))),
                _ => {
                    host.ok(&format!("up {other} --dev rx0 --name next"));
                    host.ok("down next");
                }
            }
            assert!(!host.traits.pins("_new").exists(), "round {i}");
            let before = host.counter("edge", "by_tc");
            let deadline = Instant::now() + Duration::from_secs(5);
            while host.counter("edge", "by_tc") == before {
                assert!(Instant::now() < deadline, "round {i}: XDP and TC are not of one version");
            }
            if i % 3 == 0 {
                host.ok("down other");
            }
        }
        println!("{killed} of {commands} commands were killed, {unfinished} left something unfinished");
        assert!(killed > commands / 12);
        drop(stop);
        traffic.join().unwrap()
    });
    let [neither, first, second] = ["neither", "first", "second"].map(|counter| host.counter("watch", counter));
    println!("{sent} packets: {first} met the first version, {second} the second");
    assert_eq!((neither, first + second), (0, sent), "also while nobody has mended anything");

    // Nothing that nobody knows of is in the way of the next one.
    host.ok("down edge");
    host.ok("down watch");
    let start = Instant::now();
    host.ok(&format!("up {} --dev rx0 --name edge", objects[0]));
    let whole = start.elapsed();
    host.ok("down edge");
    let commands = commands.div_ceil(3);
    for i in 0..commands {
        let line = format!("up {} --dev rx0 --name edge", objects[0]);
        let mut child = host.command(&line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(whole * (5 * commands + 20 * i) / (22 * commands));
        is_killed(&mut child);
        match host.up().as_slice() {
            [] => {}
            [name] => drop(host.ok(&format!("down {name}"))),
            names => panic!("{names:?}"),
        }
        host.ok(&format!("up {} --dev rx0 --name again", objects[1]));
        host.ok("down again");
    }
    assert!(!host.traits.pins("").exists());
}

/// Kills a command, and says whether it had not ended before.
fn is_killed(child: &mut Child) -> bool {
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

#[test]
fn a_match_is_one_for_iptables_and_follows_a_new_version() {
    let Some(host) = Host::new() else { return };
    if !Command::new("iptables").arg("--version").output().is_ok_and(|output| output.status.success()) {
        skipped("there is no iptables");
        return;
    }
    let policy = |tenant: u32| {
        format!("key tenant u32\nxdp {{ set tenant = 77 }}\nmatch theirs {{ trait tenant {tenant} accept }}\n")
    };
    let edge = host.policy("edge", &policy(77));
    let up = host.json(&format!("up {edge} --dev rx0 --json"));
    let path = up["filters"][0]["path"].as_str().unwrap();
    let iptables = format!("iptables -I INPUT -m bpf --object-pinned {path} -j DROP");
    let mut words = iptables.split_whitespace();
    let output = host.pair.rx().netns().command(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!host.delivers(5000));
    assert_eq!(host.status("edge")["policy"]["rules"][1]["packets"], 1);

    host.policy("edge", &policy(78));
    host.ok(&format!("up {edge} --dev rx0 --replace"));
    assert!(host.delivers(5000), "the rule asks the new version");
    host.policy("edge", &policy(77));
    host.ok(&format!("up {edge} --dev rx0 --replace"));
    assert!(!host.delivers(5000));
    let output = host.run("down edge");
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("still used") && said.contains(path), "{said}");
    assert!(host.delivers(5000), "nothing matches when the policy is down");
    // saved rules can be restored
    let restored =
        host.pair.rx().netns().command("sh").args(["-c", "iptables-save | iptables-restore"]).output().unwrap();
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    assert!(host.ok("status").contains("edge (down)"));
    host.ok(&format!("up {edge} --dev rx0"));
    assert!(!host.delivers(5000), "the old rule asks the policy that is up again");

    // a version without the filter leaves it to its user, and one with it takes it over
    host.policy("edge", "key tenant u32\nxdp { set tenant = 77 }\n");
    let said = text(&host.run(&format!("up {edge} --dev rx0 --replace")).stderr);
    assert!(said.contains("still used") && said.contains(path), "{said}");
    assert!(host.delivers(5000));
    host.policy("edge", &policy(77));
    host.ok(&format!("up {edge} --dev rx0 --replace"));
    assert!(!host.delivers(5000));

    let flushed = host.pair.rx().netns().command("iptables").arg("-F").output().unwrap();
    assert!(flushed.status.success());
    host.ok("down edge");
    assert!(!Path::new(path).exists(), "nothing uses it");
    assert_eq!(host.up(), [""; 0]);
    host.ok(&format!("up {edge} --dev rx0"));
    assert!(text(&host.run("down edge --keep-filters").stderr).contains("stays pinned"));
    assert!(Path::new(path).exists());
    host.ok("down edge");
    assert_eq!(host.up(), [""; 0]);
}

#[test]
fn a_steer_block_chooses_the_socket() {
    let Some(host) = Host::new() else { return };
    let edge = "key tenant u32\nxdp { set tenant = udp sport map { 6001 : 0, 6002 : 1 } }\n\
                steer choose { trait tenant is set  member trait tenant }\n";
    let edge = host.policy("edge", edge);
    let up = host.json(&format!("up {edge} --dev rx0 --json"));
    let filter = &up["filters"][0];
    assert_eq!(filter["use"], "steer");

    let rx = host.pair.rx();
    let members: Vec<UdpSocket> = (0..2).map(|_| reuseport(&host, rx.addr(Family::V4, 5000))).collect();
    let program = libbpf_rs::Program::fd_from_pinned_path(filter["path"].as_str().unwrap()).unwrap();
    // include/uapi/asm-generic/socket.h
    const SO_ATTACH_REUSEPORT_EBPF: i32 = 52;
    set_option(&members[0], SO_ATTACH_REUSEPORT_EBPF, program.as_raw_fd());
    for (port, member) in [(6001, 0), (6002, 1), (6002, 1), (6001, 0)] {
        let sender = udp_socket(host.pair.tx().netns(), host.pair.tx().addr(Family::V4, port)).unwrap();
        send_numbered(&sender, rx.addr(Family::V4, 5000), u64::from(port)..u64::from(port) + 1, 64).unwrap();
        let mut buffer = [0; 64];
        let length = members[member].recv(&mut buffer).unwrap();
        assert_eq!(number_of(&buffer[..length]), Some(u64::from(port)));
    }
}

/// A socket that shares its port.
fn reuseport(host: &Host, address: std::net::SocketAddr) -> UdpSocket {
    host.pair.rx().netns().enter(|| {
        // SAFETY: takes numbers, returns a new descriptor or -1.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0);
        // SAFETY: a descriptor that was just made and has no other owner.
        let socket = UdpSocket::from(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) });
        set_option(&socket, libc::SO_REUSEPORT, 1);
        let std::net::SocketAddr::V4(v4) = address else { panic!("{address}") };
        let raw = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: v4.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
            sin_zero: [0; 8],
        };
        // SAFETY: the address is one and its size is given.
        let bound = unsafe { libc::bind(fd, (&raw const raw).cast(), size_of_val(&raw) as u32) };
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket
    })
}

fn set_option(socket: &UdpSocket, option: i32, value: i32) {
    // SAFETY: the value is an int and its size is given.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), 4) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Sets a flag when it goes, also by a panic.
struct Stop<'f>(&'f AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A `traits log` that runs.
struct Reader {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Reader {
    fn start(host: &Host, arguments: &str) -> Reader {
        let mut child = host.command(&format!("log {arguments}")).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Reader { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A policy that logs.
fn logged() -> String {
    format!(
        "key tenant u32\nkey id u64 {}\n\
         xdp {{\n\
         udp dport 5000  set tenant = 77  set id = unique  log \"here\"\n\
         }}\n",
        keep_first()
    )
}

#[test]
fn events_are_printed_as_they_happen_and_unique_numbers_are_not_given_twice() {
    let Some(host) = Host::new() else { return };
    let edge = host.policy("edge", &logged());
    let host = &host;
    host.ok(&format!("up {edge} --dev rx0"));
    let done = &AtomicBool::new(false);
    thread::scope(|scope| {
        let (sender, receiver) = (host.sender(), host.receiver(5000));
        let _stop = Stop(done);
        scope.spawn(move || {
            let to = receiver.local_addr().unwrap();
            while !done.load(Ordering::Relaxed) {
                send_numbered(&sender, to, 0..1, 64).unwrap();
                thread::sleep(Duration::from_millis(2));
            }
        });
        let mut text = Reader::start(host, "edge --count 2");
        let line = text.line();
        for part in [" edge ", "edge.traits:4", "\"here\"", "length 106", " interface rx0 ", "tenant=77", " UDP 10."] {
            assert!(line.contains(part), "{part}: {line}");
        }
        text.line();
        assert_eq!(text.line(), "", "two were asked for");
        assert!(text.child.wait().unwrap().success());

        let mut reader = Reader::start(host, "edge --json");
        let mut ids = HashSet::new();
        let mut read = |reader: &mut Reader, count: usize| {
            for _ in 0..count {
                let event: Value = serde_json::from_str(&reader.line()).unwrap();
                assert_eq!((&event["name"], &event["text"]), (&json!("edge"), &json!("here")));
                assert_eq!((&event["file"], &event["line"]), (&json!(edge), &json!(4)));
                assert_eq!((&event["length"], &event["traits"]["tenant"]), (&json!(106), &json!("77")));
                assert_eq!(event["interface_name"], "rx0", "{event}");
                assert_eq!(event["packet"].as_str().unwrap().len(), 2 * 106, "{event}");
                assert_eq!(
                    (&event["headers"]["protocol"], &event["headers"]["destination_port"]),
                    (&json!(17), &json!(5000))
                );
                assert!(ids.insert(event["traits"]["id"].as_str().unwrap().to_owned()), "{event} again");
            }
        };
        read(&mut reader, 20);
        for _ in 0..3 {
            host.ok(&format!("up {edge} --dev rx0 --replace"));
            read(&mut reader, 20);
        }
        host.ok("down edge");
        while reader.line() != "" {}
        assert!(reader.child.wait().unwrap().success(), "it ends with what was named");
        host.ok(&format!("up {edge} --dev rx0"));
        read(&mut Reader::start(host, "--json"), 20);
    });
    host.ok("down edge");
    assert!(host.fails("log edge").contains("nothing named edge is up"));
    host.ok(&format!("up {} --dev rx0", host.policy("quiet", "xdp { udp dport 1 drop }\n")));
    assert!(host.fails("log quiet").contains("quiet has no `log` action"));
}

/// A packet whose payload is in fragments of the buffer has its first bytes in an event, too.
#[test]
fn an_event_at_tc_has_the_bytes_of_a_packet_in_several_buffers() {
    let Some(host) = Host::new() else { return };
    let edge = host.policy("edge", "tc ingress { tcp dport 7015 length > 400 log }\n");
    host.ok(&format!("up {edge} --dev rx0"));
    let mut reader = Reader::start(&host, "edge --json");
    let rx = host.pair.rx();
    let sink = TcpSink::start(rx.netns(), rx.addr(Family::V4, 7015)).unwrap();
    let done = AtomicBool::new(false);
    let line = thread::scope(|scope| {
        let stop = Stop(&done);
        // until the reader is there
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                tcp_transfer(host.pair.tx().netns(), sink.addr(), 500).unwrap();
                thread::sleep(Duration::from_millis(50));
            }
        });
        let line = reader.line();
        drop(stop);
        line
    });
    let event: Value = serde_json::from_str(&line).unwrap();
    let packet = event["packet"].as_str().unwrap();
    assert!(packet.len() >= 2 * 64 && packet[24..28] == *"0800", "{event}");
}

#[test]
fn logged_packets_have_their_ports_behind_extension_headers() {
    let Some(host) = Host::new() else { return };
    host.ok(&format!("up {} --dev rx0", host.policy("edge", "xdp { udp dport 5000 log \"here\" }\n")));
    let (tx, rx) = (host.pair.tx(), host.pair.rx());
    let sender = udp_socket(tx.netns(), tx.addr(Family::V6, 0)).unwrap();
    // RFC 8200: an extension header of 8 bytes, all of it padding
    let padding = [0u8, 0, 1, 4, 0, 0, 0, 0];
    for option in [libc::IPV6_HOPOPTS, libc::IPV6_DSTOPTS] {
        // SAFETY: the kernel copies the option's bytes.
        let failed = unsafe {
            libc::setsockopt(
                sender.as_raw_fd(),
                libc::IPPROTO_IPV6,
                option,
                padding.as_ptr().cast(),
                padding.len() as libc::socklen_t,
            )
        };
        assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    }
    send_numbered(&sender, rx.addr(Family::V6, 5000), 0..1, 64).unwrap();
    let event: Value = serde_json::from_str(&Reader::start(&host, "edge --json").line()).unwrap();
    assert_eq!(event["length"], 14 + 40 + 2 * 8 + 8 + 64);
    assert_eq!(event["headers"]["destination_port"], 5000, "{event}");
}

/// The registry has no room for what gives packets ids behind the policy's XDP program.
#[test]
fn a_tracer_says_what_to_take_down_where_a_policy_is_in_its_way() {
    let Some(host) = Host::on(&[KernelFeature::LongMetadata]) else { return };
    let edge = host.policy("edge", "key tenant u64\nxdp { set tenant = 7 }\n");
    host.traits.ok("registry create small --flow 32");
    host.ok(&format!("--registry small up {edge} --dev rx0"));
    let said = host.fails("--registry small trace --dev rx0");
    assert!(said.contains("packets get no id") && said.contains("in generic mode, by edge; "), "{said}");
    assert!(said.contains(" --registry small down edge` detaches it") && !said.contains("bpftool"), "{said}");
}

#[test]
fn events_that_nobody_takes_are_counted_when_the_ring_is_full() {
    let Some(host) = Host::new() else { return };
    host.ok(&format!("up {} --dev rx0", host.policy("edge", &logged())));
    let to = host.receiver(5000).local_addr().unwrap();
    let sender = host.sender();
    let lost = || host.status("edge")["policy"]["log_lost"].as_u64().unwrap();
    send_numbered(&sender, to, 0..100, 64).unwrap();
    assert_eq!(lost(), 0);
    let mut sent = 100;
    while lost() == 0 {
        assert!(sent < 20_000, "a ring of 1 MiB has no room for these");
        send_numbered(&sender, to, sent..sent + 1000, 64).unwrap();
        sent += 1000;
    }
    assert!(host.ok("status").contains("log events found no room"));
    // What waits in the ring is printed, oldest first, and does not have to be waited for.
    let output = host.run("log edge --count 2");
    let said = (output.status.code(), text(&output.stderr));
    assert_eq!(said, (Some(0), String::new()), "it does not wait");
    let printed = text(&output.stdout);
    assert!(printed.lines().count() == 2 && printed.lines().all(|line| line.contains(" > 10.")));
    // With --new nothing of it is, but it has room again.
    let before = monotonic_now();
    let mut reader = Reader::start(&host, "edge --new --json --count 1");
    let deadline = Instant::now() + Duration::from_secs(5);
    let event = thread::scope(|scope| {
        let line = scope.spawn(|| reader.line());
        while !line.is_finished() && Instant::now() < deadline {
            send_numbered(&sender, to, 0..1, 64).unwrap();
            thread::sleep(Duration::from_millis(20));
        }
        line.join().unwrap()
    });
    let event: Value = serde_json::from_str(&event).unwrap();
    assert!(event["monotonic_ns"].as_u64().unwrap() > before, "{event} is old");
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
fn monotonic_now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for writing.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) }, 0);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[test]
fn a_policy_that_asks_the_network_card_is_bound_to_its_interface() {
    let Some(host) = Host::on(&[KernelFeature::XdpHints]) else { return };
    let edge = host.policy(
        "edge",
        "key rx_ts timestamp\nkey hash u32\nxdp {\n\
         set rx_ts = hardware timestamp\nset hash = hardware hash\n\
         trait hash is set  count hashed\ntrait rx_ts is set  count stamped\n}\n",
    );
    host.ok(&format!("up {edge} --dev rx0"));
    assert!(host.delivers(5000));
    assert_eq!(host.counter("edge", "hashed"), 1, "veth has a hash of the flow");
    assert_eq!(host.counter("edge", "stamped"), 0, "and no clock");
    host.ok(&format!("up {edge} --dev rx0 --replace"));
    host.ok("down edge");
    let error = host.fails(&format!("up {edge} --dev rx0 --mode generic"));
    assert!(error.contains("generic mode does not have"), "{error}");
    assert_eq!(host.up(), [""; 0]);
}

#[test]
fn a_program_of_the_bridge_above_is_named_with_what_detaches_it() {
    let Some(host) = Host::new() else { return };
    let ip = |line: &str| host.pair.rx().netns().ip(line).unwrap();
    ip("link add br0 type bridge");
    ip("link set rx0 master br0");
    ip("link set br0 up");
    let onbr = host.policy("onbr", "xdp { udp dport 1 drop }\n");
    host.ok(&format!("up {onbr} --dev br0"));
    let error = host.fails(&format!("up {} --dev rx0", host.policy("edge", "xdp { udp dport 2 drop }\n")));
    for part in ["to br0, which stands on it, in generic mode", "by onbr", " down onbr`"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let doctor = host.run("doctor --dev rx0");
    // however its lines are broken
    let found = text(&doctor.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(found.contains("none, and there can be none: br0, which stands on it, has program"), "{found}");
    assert!(found.contains(" down onbr`"), "{found}");
}

/// A veth takes nothing from native XDP whose other end has neither XDP nor GRO.
#[test]
fn what_is_redirected_to_a_veth_arrives_or_its_loss_is_said() {
    let Some(host) = Host::new() else { return };
    let rx = host.pair.rx();
    let ip = |line: &str| rx.netns().ip(line).unwrap();
    ip("link add up9 type veth peer name up8");
    for device in ["up8", "up9"] {
        // nothing of their own is to be counted
        ip(&format!("link set {device} addrgenmode none"));
        ip(&format!("link set {device} up"));
    }
    let redirect = host.policy("redirect", "xdp { udp dport 5000 redirect \"up9\" }\n");
    let received = || {
        let output = rx.netns().command("ip").args(["-json", "-stats", "link", "show", "up8"]).output().unwrap();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        found[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
    };
    let arrives = || {
        let before = received();
        send_numbered(&host.sender(), rx.addr(Family::V4, 5000), 0..5, 64).unwrap();
        (0..50).any(|_| {
            thread::sleep(Duration::from_millis(10));
            received() >= before + 5
        })
    };
    assert!(host.ok(&format!("up {redirect} --dev rx0")).contains("xdp (generic)"));
    assert!(arrives());
    host.ok("down redirect");
    let output = host.run(&format!("up {redirect} --dev rx0 --mode native"));
    assert!(text(&output.stderr).contains("redirects to up9 are lost"), "{output:?}");
    assert!(!arrives());
    host.ok("down redirect");
    if kernel_has_for(KernelFeature::XdpHints, "what a driver does with redirected packets") {
        rx.netns().set_feature("up8", Feature::Gro, true).unwrap();
        assert!(host.ok(&format!("up {redirect} --dev rx0")).contains("xdp (native)"));
        assert!(arrives());
    }
}

#[test]
fn an_option_that_concerns_no_program_is_named() {
    let Some(host) = Host::on(&[KernelFeature::NetfilterLinks]) else { return };
    let notes = |options: &str, policy: &str| {
        let output = host.run(&format!("up {} {options} --replace", host.policy("edge", policy)));
        assert!(output.status.success(), "{output:?}");
        text(&output.stderr)
    };
    let netfilter = "netfilter input priority -7 { udp dport 1 drop }\n";
    let note = notes("--dev rx0", netfilter);
    for part in ["--dev rx0 has no effect", "no XDP and no TC program", "all interfaces"] {
        assert!(note.contains(part), "{note}");
    }
    assert!(notes("--mode generic", netfilter).contains("--mode has no effect"));
    assert!(notes("--cgroup /sys/fs/cgroup", netfilter).contains("no program for cgroups"));
    assert_eq!(notes("", netfilter), "");
    assert_eq!(notes("--dev rx0 --mode generic", "xdp { udp dport 1 drop }\n"), "");
}

#[test]
fn events_that_were_not_asked_for_wait_for_the_next_reader() {
    let Some(host) = Host::new() else { return };
    host.ok(&format!("up {} --dev rx0", host.policy("edge", "xdp { udp dport 5000-5005 log }\n")));
    for port in 5000..5006 {
        assert!(host.delivers(port));
    }
    for (count, ports) in [(1, 5000..5001), (2, 5001..5003), (3, 5003..5006)] {
        let printed = host.ok(&format!("log --count {count}"));
        assert_eq!(printed.lines().count(), count, "{printed}");
        for (line, port) in printed.lines().zip(ports) {
            assert!(line.contains(&format!(":{port} length")), "{port}: {printed}");
        }
    }
}

#[test]
fn what_is_asked_for_by_a_name_that_is_not_up_is_said() {
    let Some(host) = Host::new() else { return };
    for command in ["status nosuch", "log nosuch", "down nosuch"] {
        assert!(host.fails(command).contains("nothing named nosuch is up in registry default; up: nothing"));
    }
    let replace = host.policy("edge", "xdp { udp dport 1 drop }\n");
    host.ok(&format!("up {replace} --dev rx0 --replace"));
    assert_eq!(host.up(), ["edge"], "--replace with nothing to replace is a plain up");
}
