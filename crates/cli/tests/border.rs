//! `traits border`: borders are attached by name, found again, and taken away.

mod common;

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Instant,
};

use common::{host::Host, interrupt, soon, text};
use packet_traits::{bind::BoundObject, registry::Registry};
use serde_json::{Value, json};

/// A policy's text: it gives datagrams a tenant.
const SETS: &str = "key tenant u32\nxdp { udp set tenant = 7 }\n";

/// Adds a link as of a container: `pod1` and `pod1in`.
fn add_pod(host: &Host) {
    host.pair.rx().netns().ip("link add pod1 type veth peer name pod1in").unwrap();
}

/// The interfaces that have a border, as `traits border status` tells.
fn bordered(host: &Host) -> Vec<String> {
    let status = host.json("border status --json");
    let names = status["borders"].as_array().unwrap().iter().map(|border| &border["interface"]);
    names.map(|name| name.as_str().unwrap_or("gone").to_owned()).collect()
}

#[test]
fn borders_are_attached_by_name_and_taken_away() {
    let Some(host) = Host::new() else { return };
    let netns = host.pair.rx().netns();
    netns.ip("link add pod1 type veth peer name pod1in\nlink add pod2 type veth peer name pod2in").unwrap();

    assert_eq!(
        host.ok("border status"),
        "no interface has a border; `traits border attach --dev INTERFACE` gives it one\n"
    );
    assert_eq!(
        host.ok("border attach --dev pod? --dev rx0"),
        "rx0: border attached\npod1: border attached\npod2: border attached\n"
    );
    let mut all = bordered(&host);
    all.sort();
    assert_eq!(all, ["pod1", "pod2", "rx0"]);

    // what comes and goes is counted
    assert!(host.delivers(7013));
    let of_rx0 = || {
        let status = host.json("border status --json");
        status["borders"].as_array().unwrap().iter().find(|border| border["interface"] == "rx0").unwrap().clone()
    };
    let border = of_rx0();
    assert!(border["in"]["packets"].as_u64().unwrap() >= 1, "{border}");
    assert_eq!(
        (&border["whole"], &border["in"]["wiped"], &border["out"]["dropped"]),
        (&json!(true), &json!(0), &json!(0))
    );
    assert_eq!(border["ifindex"], host.pair.rx().ifindex());

    // attaching again keeps what was counted
    assert_eq!(host.ok("border attach --dev rx0"), "rx0: has its border, with the programs of this build\n");
    assert!(of_rx0()["in"]["packets"].as_u64() >= border["in"]["packets"].as_u64());
    let shown = host.ok("border status");
    assert!(shown.lines().any(|line| line.starts_with("rx0 ") && line.ends_with(" attached")), "{shown}");

    // its programs are bound to the registry, which is not removed under them
    assert!(host.fails("registry remove default").contains("border_in"));
    // and a policy beside it is not disturbed
    let policy = host.policy("edge", "key tenant u32\ntc ingress { udp dport 7014 drop }\n");
    host.ok(&format!("up {policy} --dev rx0"));
    assert!(!host.delivers(7014));
    assert!(host.delivers(7013));
    host.ok("down edge");

    assert_eq!(
        host.json("border detach --dev pod1 --json"),
        json!({ "registry": "default", "detached": [{ "interface": "pod1", "ifindex": netns.ifindex("pod1").unwrap() }] })
    );
    netns.ip("link del pod2").unwrap();
    let mut left = bordered(&host);
    left.sort();
    assert_eq!(left, ["gone", "rx0"]);
    assert!(host.ok("border status").contains("gone; `traits border detach --all` forgets it"));
    let gone = host.ok("border detach --all");
    assert!(gone.contains("rx0: border taken away\n") && gone.contains("an interface that is gone: "), "{gone}");
    assert_eq!(host.ok("border detach --all"), "there were no borders\n");
    host.ok("registry remove default");
}

#[test]
fn what_cannot_be_meant_is_refused_and_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    for (command, expected) in [
        ("attach --dev rx0 --dev nosuch", "there is no interface nosuch in this network namespace"),
        ("attach --dev no*such", "no interface of this network namespace is called like no*such"),
        ("detach --dev rx0", "no such interface of this network namespace has a border"),
    ] {
        let error = host.fails(&format!("border {command}"));
        assert!(error.contains(expected), "{command}: {error}");
        assert_eq!(bordered(&host), [""; 0], "{command}");
    }
    let nothing = host.run("border detach");
    assert_eq!(nothing.status.code(), Some(2), "{nothing:?}");
}

#[test]
fn who_answers_for_what_comes_in_is_said() {
    let Some(host) = Host::new() else { return };
    let policy = host.policy("edge", SETS);
    host.ok(&format!("up {policy} --dev rx0"));
    let output = host.run("border attach --dev rx0");
    let note = text(&output.stderr);
    assert!(output.status.success() && note.contains("answers for what comes in"), "{note}");
    // what the policy sets there stays
    let reader = host.policy("reader", "key tenant u32\ntc ingress { trait tenant == 7 count known }\n");
    host.ok(&format!("up {reader} --dev rx0"));
    assert!(host.delivers(7013));
    assert_eq!(host.counter("reader", "known"), 1);
}

/// The namespace of a link's other end belongs to a user namespace of its own.
#[test]
fn the_doctor_tells_of_links_without_a_border() {
    let Some(host) = Host::new() else { return };
    let netns = host.pair.rx().netns();
    let mut container = std::process::Command::new("unshare");
    container.args(["--user", "--map-root-user", "--net", "sh", "-c", "echo up; exec sleep 600"]);
    let mut container = container.stdout(Stdio::piped()).spawn().unwrap();
    let mut up = String::new();
    BufReader::new(container.stdout.take().unwrap()).read_line(&mut up).unwrap();
    netns.ip(&format!("link add pod type veth peer name eth0 netns {}", container.id())).unwrap();

    let borders = || {
        let report: Value = serde_json::from_slice(&host.run("doctor --json --dev rx0").stdout).unwrap();
        report["findings"].as_array().unwrap().iter().find(|found| found["check"] == "borders").unwrap().clone()
    };
    let open = borders();
    let inode =
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(format!("/proc/{}/ns/user", container.id())).unwrap());
    assert_eq!(open["status"], "limited", "{open}");
    assert_eq!(open["found"], format!("without a border: pod to user namespace {inode}"), "{open}");
    assert!(open.to_string().contains("traits border attach --dev pod"), "{open}");
    host.ok("border attach --dev pod");
    assert_eq!(borders()["status"], "yes");
    container.kill().unwrap();
    container.wait().unwrap();
}

#[test]
fn interfaces_that_come_later_get_their_border() {
    let Some(host) = Host::new() else { return };
    let netns = host.pair.rx().netns();
    let mut watch = host.command("border attach --dev pod* --watch");
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    soon("it waits", || {
        let groups = std::fs::read_to_string(format!("/proc/{}/net/netlink", watch.id())).unwrap();
        let pid = watch.id().to_string();
        groups.lines().any(|line| line.split_whitespace().nth(2) == Some(&pid))
    });
    for name in ["pod1", "pod2"] {
        netns.ip(&format!("link add {name} type veth peer name {name}in")).unwrap();
        // the other end has its name, too
        let mut said = vec![lines.next().unwrap().unwrap(), lines.next().unwrap().unwrap()];
        said.sort();
        assert_eq!(said, [format!("{name}: border attached"), format!("{name}in: border attached")]);
    }
    netns.ip("link add other type veth peer name otherin").unwrap();
    netns.ip("link set other name pod3").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "pod3: border attached");
    interrupt(&watch);
    assert!(watch.wait().unwrap().success());
    let mut all = bordered(&host);
    all.sort();
    assert_eq!(all, ["pod1", "pod1in", "pod2", "pod2in", "pod3"], "they stay");
    let status: Value = host.json("border status --json");
    assert_eq!(status["registry"], "default");
    host.ok("border detach --all");
}

/// What is up goes on with the new secrets, and counts on.
#[test]
fn secrets_rotate_with_all_that_is_up() {
    let Some(host) = Host::new() else { return };
    assert_eq!(host.ok("registry rotate"), "registry 'default' has new secrets: nothing is up\n");
    let policy = host.policy(
        "edge",
        "key tenant u32\nxdp { udp set tenant = 7 count seen }\ntc ingress { trait tenant == 7 count known\n udp dport 7014 drop }\n",
    );
    host.ok(&format!("up {policy} --dev rx0"));
    add_pod(&host);
    host.ok("border attach --dev pod1");
    assert!(host.delivers(7013) && !host.delivers(7014));

    assert_eq!(host.ok("registry rotate"), "registry 'default' has new secrets: edge, 1 border\n");
    assert!(host.delivers(7013) && !host.delivers(7014));
    assert_eq!((host.counter("edge", "seen"), host.counter("edge", "known")), (4, 4));
    assert_eq!(bordered(&host), ["pod1"]);
    let rotated = host.json("registry rotate --json");
    assert_eq!(
        (&rotated["registry"], &rotated["deployments"], &rotated["borders"], &rotated["left"]),
        (&json!("default"), &json!(["edge"]), &json!(1), &json!([])),
        "{rotated}"
    );

    // a program of another loader is named, and goes blind if it is passed over
    let registry = Registry::options().bpffs(host.traits.bpffs.path()).open().unwrap();
    let object = std::fs::read(host.object("cgroup_count")).unwrap();
    let other = BoundObject::from_bytes(&object, "other", &registry).unwrap().load().unwrap();
    let error = host.fails("registry rotate");
    assert!(error.contains("--force") && error.contains("start them again"), "{error}");
    let forced = host.run("registry rotate --force");
    let note = text(&forced.stderr);
    assert!(forced.status.success() && note.contains("reads nothing any more: start it again"), "{note}");
    let shown = host.json("registry show --json");
    let stale = |wanted: bool| {
        shown["programs"].as_array().unwrap().iter().filter(|program| program["stale"] == wanted).count()
    };
    assert!(stale(true) > 0 && stale(false) > 0, "{shown}");
    drop(other);
    assert!(host.delivers(7013) && !host.delivers(7014));
    assert_eq!((host.counter("edge", "seen"), host.counter("edge", "known")), (6, 6));
    host.ok("down edge");
    host.ok("border detach --all");
}

/// Wherever a rotation is killed, traits are right or absent, and the next rotation has all programs read them again.
#[test]
fn a_killed_rotation_is_mended_by_the_next() {
    const STEPS: u32 = 24;
    let Some(host) = Host::new() else { return };
    add_pod(&host);
    let edge = host.policy("edge", SETS);
    let reader = "key tenant u32\ntc ingress { trait tenant == 7 count known\n trait tenant != 7 count wrong }\n";
    host.ok(&format!("up {edge} --dev rx0"));
    host.ok(&format!("up {} --dev rx0", host.policy("reader", reader)));
    host.ok("border attach --dev pod1");
    let start = Instant::now();
    host.ok("registry rotate");
    let whole = start.elapsed();

    let (mut killed, mut stale) = (0, 0);
    for step in 0..STEPS {
        let mut rotation = host.start("registry rotate");
        std::thread::sleep(whole * (STEPS + step) / (2 * STEPS));
        rotation.kill().unwrap();
        killed += u32::from(!rotation.wait().unwrap().success());
        assert!(host.delivers(7013));
        let shown: Value = serde_json::from_slice(&host.run("registry show --json").stdout).unwrap();
        stale += u32::from(shown["programs"].as_array().unwrap().iter().any(|program| program["stale"] == true));

        assert_eq!(host.ok("registry rotate"), "registry 'default' has new secrets: edge, reader, 1 border\n");
        let before = host.counter("reader", "known");
        assert!(host.delivers(7013));
        assert_eq!(host.counter("reader", "known"), before + 1, "step {step}");
        assert!(!host.traits.pins("_new").exists(), "step {step}");
    }
    println!("{killed} of {STEPS} rotations were killed, {stale} with programs of both secrets");
    assert!(killed > STEPS / 4);
    assert_eq!(host.counter("reader", "wrong"), 0);
}

/// What is brought up while a rotation waits, or makes it wait, has the secrets that the rest has.
#[test]
fn rotations_and_replacements_do_not_disturb_each_other() {
    const ROUNDS: usize = 8;
    let Some(host) = Host::new() else { return };
    add_pod(&host);
    let edge = host.policy("edge", SETS);
    let reader = host.policy("reader", "key tenant u32\ntc ingress { trait tenant == 7 count known }\n");
    host.ok(&format!("up {reader} --dev rx0"));
    std::thread::scope(|scope| {
        scope.spawn(|| (0..ROUNDS).for_each(|_| drop(host.ok("registry rotate"))));
        scope.spawn(|| (0..ROUNDS).for_each(|_| drop(host.ok("border attach --dev pod1"))));
        (0..ROUNDS).for_each(|_| drop(host.ok(&format!("up {edge} --dev rx0 --replace"))));
    });
    let shown = host.json("registry show --json");
    let programs = shown["programs"].as_array().unwrap();
    assert!(!programs.is_empty() && programs.iter().all(|program| program["stale"] == false), "{shown}");
    assert!(host.delivers(7013));
    assert_eq!(host.counter("reader", "known"), 1);
}
