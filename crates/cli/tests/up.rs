//! `traits up`, `traits down` and `traits status` on a real interface.

mod common;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Output,
    thread,
    time::Duration,
};

use common::{host::Host, interrupt, text, wait_for_lock};
use libbpf_rs::{MapHandle, MapType};
use packet_traits::attach::cgroup::cgroup_root;
use packet_traits_lab::KernelFeature;
use serde_json::Value;

/// A host whose registry has the examples' keys.
fn host() -> Option<Host> {
    let host = Host::on(&[KernelFeature::LongMetadata])?;
    for key in ["tenant u32", "flow_id u64", "rx_ts timestamp --merge keep-first"] {
        host.traits.ok(&format!("keys add {key}"));
    }
    Some(host)
}

/// A cgroup of the test's own, with no process in it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(test: &str) -> Cgroup {
        let path = cgroup_root().unwrap().join(format!("traits-up-{test}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Cgroup(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn what_is_up_outlives_the_command_until_it_is_taken_down() {
    let Some(host) = host() else { return };
    let classify = host.object("xdp_classify");
    let up = format!("up {classify} --dev rx0 --mode native --json");
    let report: Value = serde_json::from_str(&host.ok(&up)).unwrap();
    assert_eq!(report["name"], "xdp_classify");
    let program = &report["programs"][0];
    assert_eq!((&program["hook"], &program["xdp_mode"]), (&"xdp".into(), &"native".into()));

    assert_eq!(host.up(), ["xdp_classify"]);
    assert!(host.traits.fails("keys remove tenant", 1).contains("classify"), "the loaded program holds its keys");
    assert!(host.delivers(5000), "the program lets packets pass");

    assert!(host.ok("down xdp_classify").contains("is down"));
    assert_eq!(host.up(), [""; 0]);
    host.traits.ok("keys remove tenant");
}

#[test]
fn status_names_the_interface_and_its_network_namespace() {
    let Some(host) = host() else { return };
    let inode = fs::metadata(host.pair.rx().netns().path()).unwrap().ino();
    host.ok(&format!("up {} --dev rx0", host.object("xdp_classify")));
    host.ok(&format!("up {} --netfilter drop_blocked=ip:input", host.object("netfilter_drop")));

    let inside = host.ok("status");
    assert!(inside.contains("  rx0 (ifindex "), "{inside}");
    assert!(!inside.contains("in netns"), "it is this command's: {inside}");
    let outside = host.traits.ok("status");
    assert!(outside.contains(&format!(") in netns {inode} ")) && outside.contains("  rx0 (ifindex "), "{outside}");
    assert!(outside.contains(&format!("  network namespace {inode} ")), "{outside}");
    for status in [host.json("status --json"), host.traits.json("status --json")] {
        let program = |place: usize| &status["deployments"][place]["programs"][0];
        assert_eq!((&program(1)["dev"], &program(1)["netns"]), (&"rx0".into(), &inode.into()), "{status:#}");
        assert!(program(1)["ifindex"].is_u64() && program(1)["target"].as_str().unwrap().starts_with("rx0 ("));
        assert_eq!((&program(0)["dev"], &program(0)["netns"]), (&Value::Null, &inode.into()), "{status:#}");
        assert_eq!(program(0)["netns_name"], "", "`ip netns` does not know it");
    }

    host.pair.rx().netns().ip("link set rx0 down\nlink set rx0 name renamed0").unwrap();
    let renamed = host.traits.ok("status xdp_classify");
    assert!(renamed.contains("  renamed0 (ifindex "), "{renamed}");
}

#[test]
fn a_name_is_up_once() {
    let Some(host) = host() else { return };
    let classify = host.object("xdp_classify");
    host.ok(&format!("up {classify} --dev rx0 --mode generic --name edge"));
    assert!(host.fails(&format!("up {classify} --dev rx0 --name edge")).contains("already up"));
    assert!(host.fails(&format!("up {classify} --dev rx0 --name other")).contains("rx0"), "the interface is taken");
    assert_eq!(host.up(), ["edge"], "the failed attempt left nothing");
    host.ok("down edge");
    assert!(host.fails("down edge").contains("nothing named edge is up"));
}

/// With native XDP at one end of a veth the other sends no large packets.
#[test]
fn at_a_veth_xdp_is_generic_unless_it_redirects_or_is_to_be_native() {
    let Some(host) = host() else { return };
    let (classify, redirect) = (host.object("xdp_classify"), host.object("af_xdp_redirect"));
    let warns = |shown: &str| shown.contains("rx0 is a veth: ") && shown.contains("`--mode generic`");
    let shown = host.ok(&format!("up {classify} --dev rx0"));
    assert!(shown.contains("xdp (generic)") && !warns(&shown), "{shown}");
    host.ok("down xdp_classify");
    let shown = host.ok(&format!("up {redirect} --dev rx0"));
    assert!(shown.contains("xdp (native)") && warns(&shown), "{shown}");
    assert!(warns(&host.ok("status")));
    host.ok("down af_xdp_redirect");
    assert!(warns(&host.ok(&format!("up {classify} --dev rx0 --mode native"))));
    let shown = host.ok(&format!("up {classify} --dev rx0 --replace"));
    assert!(shown.contains("xdp (native)"), "what replaces it keeps its mode: {shown}");
    let doctor = host.ok("doctor --dev rx0");
    assert!(doctor.contains("sends no large packets") || doctor.contains("from sending large packets"), "{doctor}");
}

#[test]
fn a_place_that_is_taken_says_what_to_take_down() {
    let Some(host) = host() else { return };
    let (classify, drop) = (host.object("xdp_classify"), host.object("netfilter_drop"));
    let bpffs = host.traits.bpffs.path().display().to_string();
    host.ok(&format!("up {classify} --dev rx0 --mode native --name edge"));
    let taken = host.fails(&format!("up {classify} --dev rx0 --name other"));
    assert!(taken.contains("is attached there in native mode, by edge; "), "{taken}");
    assert!(taken.contains(&format!("`traits --bpffs {bpffs} down edge` detaches it")), "{taken}");
    assert!(taken.contains("--replace --name edge`") && !taken.contains("bpftool"), "{taken}");
    let doctor = host.json("doctor --dev rx0 --json");
    let findings = doctor["findings"].as_array().unwrap();
    let found = findings.iter().find(|one| one["check"] == "xdp-attached").expect("xdp-attached");
    assert!(found["found"].as_str().unwrap().ends_with(", native, by edge"), "{found}");
    assert!(found["next"].as_str().unwrap().ends_with(" down edge`"), "{found}");

    host.ok(&format!("up {drop} --netfilter drop_blocked=ip:input"));
    let taken = host.fails(&format!("up {drop} --name other --netfilter drop_blocked=ip:input"));
    assert!(taken.contains("has the same priority, by netfilter_drop; ") && taken.contains("is free"), "{taken}");
    assert!(taken.contains(" down netfilter_drop` detaches it"), "{taken}");

    // in another registry
    host.traits.create_registry("lab");
    for key in ["tenant u32", "flow_id u64", "rx_ts timestamp --merge keep-first"] {
        host.traits.ok(&format!("--registry lab keys add {key}"));
    }
    let taken = host.fails(&format!("--registry lab up {classify} --dev rx0"));
    assert!(taken.contains(&format!("`traits --bpffs {bpffs} down edge`")), "{taken}");
    host.ok("down edge");
    host.ok(&format!("--registry lab up {classify} --dev rx0"));
    let taken = host.fails(&format!("up {classify} --dev rx0"));
    assert!(taken.contains(&format!("`traits --bpffs {bpffs} --registry lab down xdp_classify`")), "{taken}");
}

#[test]
fn netfilter_programs_go_where_they_are_told() {
    let Some(host) = host() else { return };
    let drop = host.object("netfilter_drop");
    let places = "--netfilter drop_blocked=ip:input --netfilter drop_blocked=ip6:input:-5";
    host.ok(&format!("up {drop} {places}"));
    let status = host.ok("status");
    for pin in ["drop_blocked-ip-input-0", "drop_blocked-ip6-input--5"] {
        assert!(status.contains(pin), "{status}");
    }
    host.ok("down netfilter_drop");
    let twice = "--netfilter drop_blocked=ip:input:7 --netfilter drop_blocked=ip:input:8";
    host.ok(&format!("up {drop} {twice}"));
    host.ok("down netfilter_drop");
    let wrong = host.fails(&format!("up {drop} --netfilter drop_blocked=ip:forward --netfilter drop=ip:input"));
    assert!(wrong.contains("no netfilter program drop;") && wrong.contains("it has drop_blocked"), "{wrong}");
    let classify = host.object("xdp_classify");
    let none = host.fails(&format!("up {classify} --dev rx0 --netfilter drop=ip:input"));
    assert!(none.contains("leave --netfilter out"), "{none}");
    assert_eq!(host.up(), [""; 0]);
    assert!(!host.traits.pins("").exists(), "a failed attempt leaves no folder");
    let hint = host.fails(&format!("up {drop}"));
    assert!(hint.contains("--netfilter") && hint.contains("drop_blocked"), "{hint}");
}

#[test]
fn what_cannot_be_done_is_said() {
    let Some(host) = host() else { return };
    let classify = host.object("xdp_classify");
    assert!(host.fails(&format!("up {classify}")).contains("--dev INTERFACE"));
    let count = host.object("cgroup_count");
    let hint = host.fails(&format!("up {count}"));
    assert!(hint.contains("--cgroup PATH") && hint.contains("/system.slice"), "{hint}");
    assert!(host.fails(&format!("up {classify} --dev nosuch0")).contains("no interface nosuch0"));
    assert!(host.fails("up /nonexistent.bpf.o --dev rx0").contains("/nonexistent.bpf.o"));
    assert!(host.fails(&format!("up {classify} --dev rx0 --name a.b")).contains("deployment name"));
    host.traits.ok("keys remove tenant");
    assert!(host.fails(&format!("up {classify} --dev rx0")).contains("traits keys add tenant"));
    assert_eq!(host.up(), [""; 0]);
}

#[test]
fn every_example_goes_up_side_by_side_and_down_again() {
    let Some(host) = host() else { return };
    let cgroup = Cgroup::new("examples");
    let in_cgroup = format!("--cgroup {}", cgroup.path().display());
    let examples = [
        ("xdp_classify", "--dev rx0"),
        ("tc_priority", "--dev rx0"),
        ("netfilter_drop", "--netfilter drop_blocked=ip:prerouting"),
        ("cgroup_count", in_cgroup.as_str()),
        ("trace_drops", ""),
    ];
    for (example, places) in examples {
        host.ok(&format!("up {} {places}", host.object(example)));
    }
    let mut names = examples.map(|(example, _)| example);
    names.sort_unstable();
    assert_eq!(host.up(), names);
    assert!(host.delivers(5000));
    for (example, _) in examples {
        host.ok(&format!("down {example}"));
    }
    assert_eq!(host.up(), [""; 0]);
}

#[test]
fn parallel_commands_do_not_disturb_each_other() {
    const PROCESSES: i32 = 6;
    let Some(host) = host() else { return };
    let host = &host;
    let drop = &host.object("netfilter_drop");
    // Six pins each, at priorities of their own: at the hooks nothing is in the way.
    let places = |process: i32| {
        let place = |i| format!("--netfilter drop_blocked=ip:input:{}", 10 * process + i);
        (1..=6).map(place).collect::<Vec<_>>().join(" ")
    };
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for process in 0..PROCESSES {
                scope.spawn(move || {
                    host.ok(&format!("up {drop} --name p{process} {}", places(process)));
                    // The last of these takes the registry's folder away, perhaps while another one goes up again.
                    assert!(host.ok(&format!("down p{process}")).contains("6 programs"));
                    host.ok(&format!("up {drop} --name p{process} {}", places(process)));
                });
            }
        });
        let status: Value = serde_json::from_str(&host.ok("status --json")).unwrap();
        let deployments = status["deployments"].as_array().unwrap();
        assert_eq!(deployments.len(), PROCESSES as usize);
        assert!(deployments.iter().all(|one| one["programs"].as_array().unwrap().len() == 6), "{status:#}");
        std::thread::scope(|scope| {
            for process in 0..PROCESSES {
                scope.spawn(move || host.ok(&format!("down p{process}")));
            }
        });
        assert!(!host.traits.pins("").exists(), "the folder goes with the last deployment");

        let outputs: Vec<Output> = std::thread::scope(|scope| {
            let run = |process| scope.spawn(move || host.run(&format!("up {drop} --name same {}", places(process))));
            let running: Vec<_> = (0..PROCESSES).map(run).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = outputs.into_iter().partition(|output| output.status.success());
        assert_eq!(won.len(), 1);
        for output in lost {
            let error = text(&output.stderr);
            assert!(error.contains("same is already up"), "{error}");
        }
        assert!(host.ok("down same").contains("6 programs"));
    }
}

#[test]
fn what_a_killed_command_left_is_shown_and_cleared() {
    let Some(host) = host() else { return };
    let classify = host.object("xdp_classify");
    let leave_unfinished = || {
        host.ok(&format!("up {classify} --dev rx0"));
        fs::rename(host.traits.pins("xdp_classify"), host.traits.pins("_new")).unwrap();
    };
    leave_unfinished();
    assert!(host.ok("status").contains("_new (unfinished)"));
    assert!(host.fails("down other").contains("_new"));
    assert!(host.ok(&format!("up {classify} --dev rx0")).contains("rx0"), "the next one has the interface");
    assert_eq!(host.up(), ["xdp_classify"]);
    host.ok("down xdp_classify");

    // by its name, too
    for name in ["xdp_classify", "_new"] {
        leave_unfinished();
        host.ok(&format!("down {name}"));
        assert_eq!(host.up(), [""; 0]);
    }
}

#[test]
fn an_interrupted_up_says_so_and_leaves_nothing() {
    let Some(host) = host() else { return };
    let classify = host.object("xdp_classify");
    // the command waits for this lock when the signal comes
    fs::create_dir_all(host.traits.pins("")).unwrap();
    let lock = fs::File::open(host.traits.pins("")).unwrap();
    lock.lock().unwrap();
    let process = host.start(&format!("up {classify} --dev rx0"));
    wait_for_lock(&process);
    interrupt(&process);
    // It has been told, by a thread of its own; loading takes longer than that thread.
    thread::sleep(Duration::from_millis(200));
    drop(lock);
    let output = process.wait_with_output().unwrap();
    let said = (output.status.code(), text(&output.stdout), text(&output.stderr));
    assert_eq!(said, (Some(130), String::new(), "traits: interrupted, nothing stays attached\n".to_owned()));
    assert_eq!(host.up(), [""; 0]);
}

#[test]
fn a_foreign_pin_is_reported_and_removed() {
    let Some(host) = host() else { return };
    host.ok(&format!("up {} --dev rx0", host.object("xdp_classify")));
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as u64,
        ..Default::default()
    };
    let map = || MapHandle::create(MapType::Array, Some("foreign"), 4, 4, 1, &options).unwrap();
    map().pin(host.traits.pins("xdp_classify").join("stray")).unwrap();
    map().pin(host.traits.pins("not_a_folder")).unwrap();

    assert_eq!(host.up(), ["not_a_folder", "xdp_classify"]);
    let status = host.ok("status");
    assert!(status.contains("stray is unreadable") && status.contains("ifindex"), "{status}");
    assert!(host.ok("down xdp_classify").contains("1 program detached, 1 other pin removed"));
    host.ok("down not_a_folder");
    assert!(!host.traits.pins("").exists());
}

#[test]
fn what_is_up_can_be_taken_down_without_its_registry() {
    let Some(host) = host() else { return };
    host.ok(&format!("up {} --dev rx0", host.object("xdp_classify")));
    assert!(host.fails("registry remove").contains("`traits down NAME`"));
    host.ok("registry remove --force");
    assert_eq!(host.up(), ["xdp_classify"]);
    host.ok("down xdp_classify");
    assert!(host.ok("status").contains("nothing is up"));
}
