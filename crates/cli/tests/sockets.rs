//! `traits sockets` on cgroups of the tests' own.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{TcpStream, UdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{Traits, compile_example, interrupt, soon, text, wait_for_lock};
use libbpf_rs::{
    MapCore, MapFlags, MapHandle, MapType, Program, libbpf_sys,
    query::{ProgInfoIter, ProgInfoQueryOptions},
};
use packet_traits::attach::Attachment;
use packet_traits_lab::{Cgroup, Family, KernelFeature, Netns, Pair, kernel_has};
use packet_traits_socket::{Keys, SocketError, SocketTraits};
use serde_json::Value;

const PROGRAMS: [&str; 6] = ["pt_egress", "pt_getsockopt", "pt_ingress", "pt_release", "pt_setsockopt", "pt_sockops"];

/// A registry, and a cgroup.
struct Host {
    traits: Traits,
    cgroup: Cgroup,
}

impl Host {
    fn new() -> Option<Host> {
        let traits = Traits::new()?;
        traits.create_registry("default");
        traits.ok("keys add tenant u32");
        Some(Host { traits, cgroup: Cgroup::new().unwrap() })
    }

    fn attach(&self, cgroup: &Cgroup, options: &str) -> Value {
        self.traits.json(&format!("{} {options} --json", on("attach", cgroup)))
    }

    fn status(&self) -> Value {
        self.traits.json("sockets status --json")
    }

    /// Where the registry's socket programs are pinned.
    fn pins(&self) -> PathBuf {
        self.traits.dir("default").join("sockets")
    }

    fn links(&self, cgroup: &Cgroup) -> PathBuf {
        self.pins().join(cgroup.id().unwrap().to_string())
    }
}

/// A command line for a cgroup.
fn on(command: &str, cgroup: &Cgroup) -> String {
    format!("sockets {command} --cgroup {}", cgroup.path().display())
}

/// Whether sockets made in a cgroup have trait options.
fn is_served(cgroup: &Cgroup) -> bool {
    let socket = cgroup.enter(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
    match Keys::of(&socket) {
        Ok(keys) => keys.get("tenant").is_some(),
        Err(SocketError::NotAttached { .. } | SocketError::WrongSocket { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

/// The cgroups in a status, by path; `?` if that is null.
fn cgroups(status: &Value) -> Vec<&Path> {
    let cgroups = status["cgroups"].as_array().unwrap();
    cgroups.iter().map(|cgroup| Path::new(cgroup["path"].as_str().unwrap_or("?"))).collect()
}

#[test]
fn sockets_are_served_until_the_programs_are_detached() {
    let Some(host) = Host::new() else { return };
    assert!(host.traits.ok("sockets status").contains("`traits sockets attach`"));
    assert_eq!(host.status(), serde_json::json!({ "registry": "default", "attached": false }));
    assert!(!is_served(&host.cgroup));

    let attached = host.attach(&host.cgroup, "");
    assert_eq!((&attached["already"], &attached["attached"]), (&false.into(), &true.into()));
    assert!(is_served(&host.cgroup), "the command has ended");
    assert!(!is_served(&Cgroup::new().unwrap()), "another cgroup is left alone");

    let status = host.status();
    let mut names: Vec<_> = status["programs"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    names.sort_by_key(Value::to_string);
    assert_eq!(names, PROGRAMS);
    for (what, size) in
        [("sockets", 256), ("sockets_per_user", 128), ("slots", 512), ("pending_syns", 16384), ("sockets_used", 0)]
    {
        assert_eq!(status[what], size, "{what}");
    }
    assert_ne!(status["instance"], "0000000000000000");
    let cgroup = &status["cgroups"][0];
    assert_eq!(cgroup["id"], host.cgroup.id().unwrap());
    assert_eq!(cgroups(&status), [host.cgroup.path()]);
    assert!(cgroup["since"].as_str().unwrap().ends_with('Z') && cgroup["missing"].as_array().unwrap().is_empty());
    let shown = host.traits.ok("sockets status");
    let path = host.cgroup.path().display().to_string();
    assert!(shown.contains(&path) && shown.contains("pt_getsockopt"), "{shown}");

    let detached = host.traits.json(&format!("{} --json", on("detach", &host.cgroup)));
    assert_eq!(detached["detached"], serde_json::json!([{ "id": cgroup["id"], "path": path }]));
    assert!(!is_served(&host.cgroup));
    assert!(!host.pins().exists(), "nothing is left");
    assert!(host.traits.fails(&on("detach", &host.cgroup), 1).contains("it has them attached to no cgroup"));
    assert!(host.traits.ok("sockets detach --all").contains("no socket programs"));
}

#[test]
fn status_says_whose_the_sockets_are() {
    let Some(host) = Host::new() else { return };
    host.attach(&host.cgroup, "--sockets 4 --sockets-per-user 3");
    assert!(!host.traits.ok("sockets status").contains("uid"));
    let sockets = [(); 2].map(|()| host.cgroup.enter(|| UdpSocket::bind("127.0.0.1:0")).unwrap());
    for socket in &sockets {
        socket.receive_traits(true).unwrap();
    }
    let status = host.status();
    assert_eq!((&status["sockets_per_user"], &status["sockets_used"]), (&3.into(), &2.into()));
    assert_eq!(status["users"], serde_json::json!([{ "uid": 0, "sockets": 2 }]));
    let shown = host.traits.ok("sockets status");
    assert!(shown.contains("2 of 4") && shown.contains("3 of one user") && shown.contains("uid 0: 2"), "{shown}");
}

#[test]
fn attaching_again_changes_nothing() {
    let Some(host) = Host::new() else { return };
    let first = host.attach(&host.cgroup, "--sockets 3 --sockets-per-user 1 --slots 4 --pending-syns 5");
    let again = host.attach(&host.cgroup, "");
    assert_eq!(again["already"], true);
    for what in ["instance", "programs", "cgroups", "sockets", "sockets_per_user", "slots", "pending_syns"] {
        assert_eq!(first[what], again[what], "{what}");
    }
    assert!(host.traits.ok(&on("attach", &host.cgroup)).contains("nothing was changed"));
    host.attach(&host.cgroup, "--sockets 3 --slots 4");
    for (options, said) in [
        ("--sockets 4", "3 sockets, not 4"),
        ("--sockets-per-user 2", "1 sockets of one user, not 2"),
        ("--slots 8", "4 slots, not 8"),
        ("--pending-syns 6", "5"),
    ] {
        let error = host.traits.fails(&format!("{} {options}", on("attach", &host.cgroup)), 1);
        assert!(error.contains(said) && error.contains(" sockets detach --all`"), "{error}");
    }
    assert_eq!(host.status()["instance"], first["instance"]);
}

#[test]
fn cgroups_of_a_registry_share_the_programs() {
    let Some(host) = Host::new() else { return };
    let other = Cgroup::new().unwrap();
    let first = host.attach(&host.cgroup, "--sockets 3");
    let second = host.attach(&other, "");
    assert_eq!(second["already"], false);
    for what in ["instance", "programs", "sockets"] {
        assert_eq!(first[what], second[what], "{what}");
    }
    assert_eq!(cgroups(&second).len(), 2);
    let third = Cgroup::new().unwrap();
    assert!(host.traits.fails(&format!("{} --sockets 9", on("attach", &third)), 1).contains("3 sockets, not 9"));
    assert!(is_served(&host.cgroup) && is_served(&other) && !is_served(&third));

    host.traits.ok(&on("detach", &host.cgroup));
    assert!(!is_served(&host.cgroup) && is_served(&other));
    let error = host.traits.fails(&on("detach", &host.cgroup), 1);
    assert!(error.contains(&other.path().display().to_string()), "{error}");
    host.attach(&host.cgroup, "");
    let detached = host.traits.ok("sockets detach --all");
    assert_eq!(detached.lines().count(), 3, "{detached}");
    assert!(detached.contains("have to ask again"), "{detached}");
    assert!(!is_served(&host.cgroup) && !is_served(&other) && !host.pins().exists());
    soon("the programs are unloaded", || {
        host.traits.json("registry show --json")["programs"].as_array().unwrap().is_empty()
    });
}

#[test]
fn a_socket_is_served_by_one_registry_only() {
    let (Some(host), Some(elsewhere)) = (Host::new(), Traits::new()) else { return };
    elsewhere.create_registry("default");
    host.traits.create_registry("lab");
    host.traits.ok("--registry lab keys add tenant u32");
    let (below, beside) = (host.cgroup.child().unwrap(), Cgroup::new().unwrap());
    let parent = host.cgroup.path().display().to_string();
    let lab = |command: &str, cgroup: &Cgroup| format!("--registry lab {}", on(command, cgroup));

    host.traits.ok(&on("attach", &host.cgroup));
    for (line, place) in [
        (on("attach", &below), "above it"),
        (lab("attach", &below), "above it"),
        (lab("attach", &host.cgroup), "already"),
    ] {
        let error = host.traits.fails(&line, 1);
        assert!(error.contains(place) && error.contains("registry 'default'") && error.contains(&parent), "{error}");
    }
    let error = elsewhere.fails(&on("attach", &below), 1);
    assert!(error.contains("another BPF file system") && error.contains(&parent), "{error}");
    host.traits.ok(&lab("attach", &beside));

    host.traits.ok(&on("detach", &host.cgroup));
    host.traits.ok(&lab("attach", &below));
    for traits in [&host.traits, &elsewhere] {
        let error = traits.fails(&on("attach", &host.cgroup), 1);
        assert!(error.contains("below it") && error.contains(&below.path().display().to_string()), "{error}");
    }
    assert!(!host.pins().exists(), "a refused attach leaves nothing");
    assert!(is_served(&beside) && is_served(&below) && !is_served(&host.cgroup));
    drop(below);
}

#[test]
fn of_registries_that_race_for_a_cgroup_one_wins_at_most() {
    let Some(host) = Host::new() else { return };
    host.traits.create_registry("lab");
    let below = host.cgroup.child().unwrap();
    for _ in 0..5 {
        let lines = [on("attach", &host.cgroup), format!("--registry lab {}", on("attach", &below))];
        let outputs: Vec<_> = std::thread::scope(|scope| {
            let running = lines.each_ref().map(|line| scope.spawn(|| host.traits.run(line)));
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let won = outputs.iter().filter(|output| output.status.success()).count();
        assert!(won <= 1);
        for output in outputs.iter().filter(|output| !output.status.success()) {
            let error = text(&output.stderr);
            assert!(error.contains("cannot attach socket programs"), "{error}");
        }
        let detached = host.traits.ok("sockets detach --all") + &host.traits.ok("--registry lab sockets detach --all");
        assert_eq!(detached.matches("no longer served").count(), won, "{detached}");
    }
    drop(below);
}

#[test]
fn parallel_commands_do_not_disturb_each_other() {
    let Some(host) = Host::new() else { return };
    let cgroups: Vec<Cgroup> = (0..4).map(|_| Cgroup::new().unwrap()).collect();
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for cgroup in &cgroups {
                scope.spawn(|| {
                    host.traits.ok(&on("attach", cgroup));
                    // The last of these takes the folder away, perhaps while another one attaches again.
                    host.traits.ok(&on("detach", cgroup));
                    host.traits.ok(&on("attach", cgroup));
                });
            }
        });
        let status = host.status();
        assert_eq!(status["cgroups"].as_array().unwrap().len(), 4, "{status}");
        assert!(cgroups.iter().all(is_served));
        host.traits.ok("sockets detach --all");
        assert!(!host.pins().exists());
    }
}

#[test]
fn what_a_killed_command_left_is_shown_and_cleared() {
    let Some(host) = Host::new() else { return };
    let attach = on("attach", &host.cgroup);
    let leave_unfinished = |name: &str| {
        host.traits.ok(&attach);
        fs::rename(host.links(&host.cgroup), host.pins().join(name)).unwrap();
    };
    for name in ["_new", "_old"] {
        leave_unfinished(name);
        let status = host.status();
        assert_eq!((&status["attached"], &status["unfinished"]), (&false.into(), &true.into()));
        assert!(host.traits.ok("sockets status").contains("command that was killed"));
        assert_eq!(host.attach(&host.cgroup, "--sockets 7")["already"], false, "nothing is in the way");
        assert!(is_served(&host.cgroup));
        host.traits.ok("sockets detach --all");
    }

    for name in ["_new", "_old"] {
        leave_unfinished(name);
        host.traits.ok(&on("detach", &host.cgroup));
        assert!(!host.pins().exists() && !is_served(&host.cgroup));
        assert!(host.traits.fails(&on("detach", &host.cgroup), 1).contains("no cgroup"));
    }

    // Only the programs were pinned.
    leave_unfinished("_new");
    fs::remove_dir_all(host.pins().join("_new")).unwrap();
    assert_eq!(host.status()["attached"], false);
    assert!(host.traits.fails("registry remove", 1).contains("sockets detach --all"));
    assert_eq!(host.attach(&host.cgroup, "--slots 8")["slots"], 8);

    // Some of the programs are not attached any more.
    Attachment::from_pinned(host.links(&host.cgroup).join("egress")).unwrap().detach().unwrap();
    let status = host.status();
    assert_eq!(status["cgroups"][0]["missing"], serde_json::json!(["pt_egress"]));
    assert!(host.traits.ok("sockets status").contains("without pt_egress"));
    assert_eq!(host.attach(&host.cgroup, "")["already"], false);
    assert!(host.status()["cgroups"][0]["missing"].as_array().unwrap().is_empty());
}

#[test]
fn a_command_can_be_killed_at_any_moment() {
    const STEPS: u32 = 12;
    let Some(host) = Host::new() else { return };
    let start = |line: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_traits"));
        command.arg("--bpffs").arg(host.traits.bpffs.path()).args(line.split_whitespace());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let attach = on("attach", &host.cgroup);
    let start_of_one = Instant::now();
    host.traits.ok(&attach);
    let whole = start_of_one.elapsed();
    host.traits.ok("sockets detach --all");
    for step in 0..STEPS {
        let mut process = start(&attach);
        std::thread::sleep(whole * step / STEPS);
        process.kill().unwrap();
        process.wait().unwrap();
        host.traits.ok("sockets status");
        if step % 2 == 0 {
            host.traits.ok(&attach);
            assert!(is_served(&host.cgroup));
        }
        let mut process = start("sockets detach --all");
        std::thread::sleep(whole * step / STEPS / 2);
        process.kill().unwrap();
        process.wait().unwrap();
        host.traits.ok("sockets detach --all");
        assert!(!host.pins().exists());
        soon("a killed command's links are gone", || !is_served(&host.cgroup));
    }
}

/// Has what is attached look as if another build of traits had attached it.
fn make_foreign(host: &Host) {
    let programs = host.pins().join("programs");
    let mut entries = fs::read_dir(&programs).unwrap().map(|entry| entry.unwrap().path());
    let build = entries.find(|path| path.is_dir()).unwrap();
    fs::rename(build, programs.join("build-0123456789abcdef")).unwrap();
}

/// Ids of the programs that a cgroup's links hold, by the names of their pins, and of those that are pinned.
fn program_ids(host: &Host, cgroup: &Cgroup) -> [Vec<(String, u32)>; 2] {
    let pins = |folder: PathBuf| {
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<_> = paths.filter(|path| !path.is_dir()).collect();
        paths.sort();
        paths.into_iter().map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
    };
    let links =
        pins(host.links(cgroup)).map(|(name, path)| (name, Attachment::from_pinned(path).unwrap().info().program_id));
    let programs = pins(host.pins().join("programs")).map(|(name, path)| {
        let program = Program::fd_from_pinned_path(path).unwrap();
        (name, Program::id_from_fd(program.as_fd()).unwrap())
    });
    [links.collect(), programs.collect()]
}

#[test]
fn attaching_again_replaces_the_programs_of_another_build() {
    let Some(host) = Host::new() else { return };
    let first = host.attach(&host.cgroup, "");
    assert_eq!((&first["current"], &first["updated"]), (&true.into(), &false.into()));
    make_foreign(&host);
    assert_eq!(host.status()["current"], false);
    let shown = host.traits.ok("sockets status");
    assert!(shown.contains("another build") && shown.contains("`traits sockets attach`"), "{shown}");
    let error = host.traits.fails(&format!("{} --sockets 9", on("attach", &host.cgroup)), 1);
    assert!(error.contains("256 sockets, not 9"), "{error}");
    assert_eq!(host.status()["current"], false, "nothing was changed");

    let shown = host.traits.ok(&on("attach", &host.cgroup));
    assert!(shown.contains("served on") && shown.contains("replaced in 1 cgroup; sockets keep"), "{shown}");
    let status = host.status();
    assert_eq!(status["instance"], first["instance"]);
    assert_ne!(status["programs"], first["programs"]);
    make_foreign(&host);
    let other = Cgroup::new().unwrap();
    let second = host.attach(&other, "");
    assert_eq!((&second["already"], &second["updated"]), (&false.into(), &true.into()));
    for cgroup in [&host.cgroup, &other] {
        let [links, programs] = program_ids(&host, cgroup);
        assert_eq!(links, programs);
    }
}

#[test]
fn a_killed_update_leaves_the_old_programs_or_the_new_ones() {
    const STEPS: u32 = 12;
    let Some(host) = Host::new() else { return };
    let attach = on("attach", &host.cgroup);
    host.traits.ok(&attach);
    make_foreign(&host);
    let start = Instant::now();
    host.traits.ok(&attach);
    let whole = start.elapsed();
    let mut killed = 0;
    for step in 0..STEPS {
        make_foreign(&host);
        let mut process = host.traits.start(&attach);
        std::thread::sleep(whole * (STEPS + step) / (2 * STEPS));
        process.kill().unwrap();
        killed += u32::from(!process.wait().unwrap().success());
        assert!(is_served(&host.cgroup));
        host.traits.ok("sockets status");
        // another cgroup's command finds what the killed one left
        host.traits.fails(&on("detach", &Cgroup::new().unwrap()), 1);
        let [links, programs] = program_ids(&host, &host.cgroup);
        assert_eq!(links, programs, "step {step}");
        assert_eq!(host.status()["unfinished"], false);
        host.traits.ok(&attach);
        assert_eq!(host.status()["current"], true);
    }
    assert!(killed > 0, "no command was killed");
}

#[test]
fn an_interrupted_attach_says_so_and_takes_back_what_it_did() {
    let Some(host) = Host::new() else { return };
    // The command waits for this lock when the signal comes.
    let interrupt_attach = || {
        fs::create_dir_all(host.pins()).unwrap();
        let lock = fs::File::open(host.pins()).unwrap();
        lock.lock().unwrap();
        let process = host.traits.start(&on("attach", &host.cgroup));
        wait_for_lock(&process);
        interrupt(&process);
        // It has been told, by a thread of its own; attaching takes longer than that thread.
        std::thread::sleep(Duration::from_millis(200));
        drop(lock);
        let output = process.wait_with_output().unwrap();
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(130), ""));
        text(&output.stderr)
    };
    assert!(interrupt_attach().contains("interrupted, nothing stays attached"));
    assert!(!is_served(&host.cgroup) && !host.pins().exists());

    host.attach(&host.cgroup, "");
    assert!(interrupt_attach().contains("interrupted, it was attached before"));
    assert!(is_served(&host.cgroup));
}

#[test]
fn a_removed_cgroup_is_shown_and_cleared() {
    let Some(host) = Host::new() else { return };
    let removed = Cgroup::new().unwrap();
    host.traits.ok(&on("attach", &removed));
    let (links, detach) = (host.links(&removed), on("detach", &removed));
    drop(removed);
    soon("the kernel detaches the programs", || {
        host.status()["cgroups"][0]["missing"].as_array().is_some_and(|missing| missing.len() == PROGRAMS.len())
    });
    let status = host.status();
    assert_eq!(cgroups(&status), [Path::new("?")]);
    assert!(host.traits.ok("sockets status").lines().any(|line| line.starts_with('?') && line.ends_with("removed")));
    assert!(host.traits.fails(&detach, 1).contains(" sockets detach --all`"));

    assert_eq!(host.attach(&host.cgroup, "--slots 2")["slots"], 2, "the next attach begins again");
    assert!(!links.exists());
    host.traits.ok("sockets detach --all");

    let removed = Cgroup::new().unwrap();
    host.traits.ok(&on("attach", &removed));
    let id = removed.id().unwrap();
    drop(removed);
    assert!(host.traits.ok("sockets detach --all").contains(&format!("cgroup id {id}")));
    assert!(!host.pins().exists());
}

#[test]
fn a_registry_is_not_removed_from_under_its_sockets_unasked() {
    let Some(host) = Host::new() else { return };
    host.traits.ok(&on("attach", &host.cgroup));
    let error = host.traits.fails("registry remove", 1);
    assert!(error.contains(" sockets detach --all`"), "{error}");
    host.traits.ok("keys remove tenant");
    host.traits.ok("keys add tenant u32");
    assert!(is_served(&host.cgroup), "keys come and go");

    host.traits.ok("registry remove --force");
    soon("the programs went with the registry", || !is_served(&host.cgroup));
    host.traits.create_registry("default");
    host.traits.ok(&on("attach", &host.cgroup));
    host.traits.ok(&on("detach", &host.cgroup));
    host.traits.ok("registry remove");
}

#[test]
fn what_cannot_be_done_is_said() {
    let Some(host) = Host::new() else { return };
    let error = host.traits.fails("sockets attach --cgroup /tmp", 1);
    assert!(error.contains("/tmp") && error.contains("cgroup v2"), "{error}");
    let error = host.traits.fails("sockets attach --cgroup /no/such/cgroup", 1);
    assert!(error.contains("/no/such/cgroup") && error.contains("findmnt"), "{error}");
    let error = host.traits.fails(&format!("{} --sockets 65536 --slots 65536", on("attach", &host.cgroup)), 1);
    assert!(error.contains("MiB of kernel memory"), "{error}");
    assert!(!host.pins().exists());
    let error = host.traits.fails(&format!("--registry nowhere {}", on("attach", &host.cgroup)), 1);
    assert!(error.contains("`traits registry create nowhere`"), "{error}");
    for wrong in ["attach --slots 3", "attach --sockets 0", "detach --all --cgroup /", "save-syn 0", "show", "attach x"]
    {
        host.traits.fails(&format!("sockets {wrong}"), 2);
    }
    let error = host.traits.fails("sockets show 4194304", 1);
    assert!(error.contains("no process 4194304"), "{error}");
    // SAFETY: takes nothing and cannot fail.
    let thread = unsafe { libc::gettid() };
    let error = host.traits.fails(&format!("sockets show {thread}"), 1);
    assert!(error.contains(&format!("{thread} is a thread")), "{error}");
    for option in ["--slots 3", "--sockets 0"] {
        let error = host.traits.fails(&format!("{} {option}", on("attach", &host.cgroup)), 2);
        assert!(error.contains(option.split(' ').next().unwrap()), "{error}");
    }
}

#[test]
fn what_is_attached_for_a_damaged_registry_can_be_detached() {
    let Some(host) = Host::new() else { return };
    for damage in ["header", "state"] {
        host.attach(&host.cgroup, "");
        assert!(is_served(&host.cgroup));
        let map = MapHandle::from_pinned_path(host.traits.dir("default").join(damage)).unwrap();
        let whole = map.lookup(&[0; 4], MapFlags::ANY).unwrap().unwrap();
        let mut broken = whole.clone();
        *broken.last_mut().unwrap() ^= 1;
        map.update(&[0; 4], &broken, MapFlags::ANY).unwrap();
        assert!(host.traits.fails("sockets detach", 1).contains("checksum"));
        assert!(host.traits.ok("sockets detach --all").contains("socket options are no longer served"));
        assert!(!is_served(&host.cgroup) && !host.pins().exists());
        map.update(&[0; 4], &whole, MapFlags::ANY).unwrap();
    }
    let error = host.traits.fails("--registry nowhere sockets detach --all", 1);
    assert!(error.contains("`traits registry create nowhere`"), "{error}");
}

#[test]
fn pins_of_another_kind_are_refused() {
    let Some(host) = Host::new() else { return };
    for pin in ["slots", "rings"] {
        host.attach(&host.cgroup, "");
        fs::rename(host.pins().join("programs/release"), host.pins().join(pin)).unwrap();
        let error = host.traits.fails(&format!("sockets attach --cgroup {}", host.cgroup.path().display()), 1);
        assert!(error.contains(&format!("sockets/{pin} is not what")) && error.contains("of another kind"), "{error}");
        host.traits.ok("sockets detach --all");
        assert!(!is_served(&host.cgroup) && !host.pins().exists());
    }
}

#[test]
fn maps_of_another_shape_are_refused() {
    let Some(host) = Host::new() else { return };
    host.attach(&host.cgroup, "");
    fs::remove_file(host.pins().join("slots")).unwrap();
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let slots = MapHandle::create(MapType::Hash, Some("slots"), 8, 8, 1, &options);
    slots.unwrap().pin(host.pins().join("slots")).unwrap();
    let error = host.traits.fails("sockets status", 1);
    assert!(error.contains("cannot read the socket programs' maps"), "{error}");

    let error = host.traits.fails("registry rotate", 1);
    assert!(error.contains("the socket programs cannot be loaded with new secrets"), "{error}");
    assert!(error.contains("nothing was changed"), "{error}");
    assert!(is_served(&host.cgroup));
    host.traits.ok("sockets detach --all");
}

#[test]
fn a_pin_in_the_place_of_the_folder_is_refused() {
    let Some(host) = Host::new() else { return };
    let mut header = MapHandle::from_pinned_path(host.traits.dir("default").join("header")).unwrap();
    header.pin(host.pins()).unwrap();
    let error = host.traits.fails(&on("attach", &host.cgroup), 1);
    assert!(error.contains(&format!("cannot lock {}: ", host.pins().display())), "{error}");
    assert!(!is_served(&host.cgroup));
}

/// A server that knows nothing of traits but what its third argument has it do.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    /// Accepts on TCP, and has a UDP socket whose own trait 0 is 7 if `own`.
    fn start(cgroup: &Cgroup, netns: &Netns, address: &str, own: bool) -> Server {
        const SOURCE: &str = "
import socket, struct, sys
tcp = socket.socket()
tcp.bind((sys.argv[1], 0))
tcp.listen()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((sys.argv[1], 0))
if sys.argv[2] == 'true':
    udp.setsockopt(0x5452, 0x500 | 0, struct.pack('I', 7))
others = socket.socketpair(), socket.socket(socket.AF_UNIX), open('/dev/null')
print(tcp.getsockname()[1], flush=True)
accepted = []
while True:
    accepted.append(tcp.accept())
    print('accepted', flush=True)
";
        let mut command = netns.command("python3");
        cgroup.join(&mut command).unwrap();
        command.args(["-c", SOURCE, address, &own.to_string()]).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let port = line(&mut process).parse().unwrap();
        Server { process, port }
    }

    /// A connection that it has accepted.
    fn connect(&mut self, netns: &Netns, address: &str) -> TcpStream {
        let stream = netns.enter(|| TcpStream::connect((address, self.port))).unwrap();
        assert_eq!(line(&mut self.process), "accepted");
        stream
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// The next line a process prints. Reads no further.
fn line(process: &mut Child) -> String {
    let mut line = String::new();
    let output = process.stdout.as_mut().unwrap();
    BufReader::with_capacity(1, output).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// A process's sockets that have a property, as `traits sockets show` shows them.
fn sockets<'v>(shown: &'v Value, what: &str, is: &str) -> Vec<&'v Value> {
    shown["sockets"].as_array().unwrap().iter().filter(|socket| socket[what] == is).collect()
}

#[test]
fn a_server_that_knows_nothing_of_traits_keeps_those_of_its_syns() {
    // what `xdp_classify` sets
    let Some(host) = Host::new().filter(|_| kernel_has(KernelFeature::LongMetadata)) else { return };
    host.traits.ok("keys add flow_id u64");
    host.traits.ok("keys add rx_ts timestamp --merge keep-first");
    host.traits.ok(&on("attach", &host.cgroup));
    let folder = std::env::temp_dir().join(format!("traits-sockets-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let pair = Pair::new().unwrap();
    let classify = compile_example("xdp_classify", &folder);
    let mut up = pair.rx().netns().command(env!("CARGO_BIN_EXE_traits"));
    up.arg("--bpffs").arg(host.traits.bpffs.path()).arg("up").arg(&classify).args(["--dev", "rx0", "--json"]);
    let report: Value = serde_json::from_slice(&up.output().unwrap().stdout).unwrap();
    fs::remove_dir_all(&folder).unwrap();
    every_tenant_is(report["programs"][0]["program_id"].as_u64().unwrap() as u32, 7);

    let address = pair.rx().addr(Family::V4, 0).ip().to_string();
    let mut server = Server::start(&host.cgroup, pair.rx().netns(), &address, true);
    let pid = server.process.id();
    let before = server.connect(pair.tx().netns(), &address);
    let saved = host.traits.json(&format!("sockets save-syn {pid} --json"));
    assert_eq!((saved["pid"].as_u64(), &saved["save_syn"]), (Some(pid.into()), &true.into()));
    assert_eq!(saved["listeners"][0]["local"], format!("{address}:{}", server.port));
    let during = server.connect(pair.tx().netns(), &address);
    assert!(host.traits.ok(&format!("sockets save-syn {pid} --off")).contains("no longer kept"));
    let after = server.connect(pair.tx().netns(), &address);

    let shown = host.traits.json(&format!("sockets show {pid} --json"));
    assert_eq!(shown["sockets"].as_array().unwrap().len(), 5, "{shown}");
    let of = |stream: &TcpStream| sockets(&shown, "peer", &stream.local_addr().unwrap().to_string())[0];
    assert_eq!((&of(&before)["syn"], &of(&after)["syn"]), (&Value::Null, &Value::Null));
    let traits = &of(&during)["syn"];
    assert_eq!(traits["tenant"], "7", "{shown}");
    assert!(traits["flow_id"].as_str().unwrap().parse::<u64>().unwrap() != 0);
    assert!(traits["rx_ts"].as_str().unwrap().ends_with('s'));
    let listener = sockets(&shown, "state", "listen")[0];
    assert_eq!((&listener["save_syn"], &listener["peer"]), (&false.into(), &Value::Null));
    assert_eq!(sockets(&shown, "protocol", "udp")[0]["own"], serde_json::json!({ "tenant": "7" }));
    let table = host.traits.ok(&format!("sockets show {pid}"));
    assert!(table.contains("flow_id = ") && table.contains("tenant = 7"), "{table}");

    assert_eq!(internet_sockets(pid), shown["sockets"].as_array().unwrap().len(), "the process still has them all");
    host.traits.ok("down xdp_classify");
}

/// How many TCP and UDP sockets a process has, by its table of descriptors.
fn internet_sockets(pid: u32) -> usize {
    let inodes = |name: &str| -> Vec<String> {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap();
        let inode = |line: &str| line.split_whitespace().nth(9).map(str::to_owned);
        table.lines().skip(1).filter_map(inode).collect()
    };
    let known: Vec<String> = ["tcp", "tcp6", "udp", "udp6"].into_iter().flat_map(inodes).collect();
    let links =
        fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().flat_map(|entry| fs::read_link(entry.path()));
    let inode = |link: PathBuf| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    links.filter_map(inode).filter(|inode| known.contains(inode)).count()
}

/// Has the example's program take every address for one tenant's.
fn every_tenant_is(program: u32, tenant: u32) {
    let options = ProgInfoQueryOptions::default().include_map_ids(true);
    let info = ProgInfoIter::with_query_opts(options).find(|info| info.id == program).unwrap();
    let maps = info.map_ids.into_iter().map(|id| MapHandle::from_map_id(id).unwrap());
    let tenants = maps.into_iter().find(|map| map.name() == "tenants").unwrap();
    tenants.update(&[0; 8], &tenant.to_ne_bytes(), MapFlags::ANY).unwrap();
}

#[test]
fn a_server_in_another_cgroup_is_told_from_one_that_is_served() {
    let Some(host) = Host::new() else { return };
    let netns = Netns::new().unwrap();
    let server = Server::start(&host.cgroup, &netns, "127.0.0.1", false);
    let pid = server.process.id();
    let error = host.traits.fails(&format!("sockets save-syn {pid}"), 1);
    assert!(error.contains("`traits sockets attach`") && error.contains(&pid.to_string()), "{error}");
    let shown = host.traits.json(&format!("sockets show {pid} --json"));
    let sockets = shown["sockets"].as_array().unwrap();
    assert!(!sockets.is_empty() && sockets.iter().all(|socket| socket["served"] == false), "{shown}");
    assert!(host.traits.ok(&format!("sockets show {pid}")).contains("not served"));

    host.traits.ok(&on("attach", &host.cgroup));
    assert!(
        host.traits.ok(&format!("sockets save-syn {pid}")).contains("SYN traits are kept"),
        "attached later is fine"
    );
    let mut idle = host.cgroup.command("sleep").unwrap().arg("1000").spawn().unwrap();
    let error = host.traits.fails(&format!("sockets save-syn {}", idle.id()), 1);
    assert!(error.contains("no listening TCP socket"), "{error}");
    assert!(host.traits.ok(&format!("sockets show {}", idle.id())).contains("no TCP or UDP socket"));
    idle.kill().unwrap();
    idle.wait().unwrap();
}

/// What a command says in a container: in a cgroup of its own, whose namespace's root is mounted in place of the host's.
fn in_container(traits: &Traits, line: &str) -> std::process::Output {
    let inside = r#"umount "$1" && mount -t cgroup2 none "$1" && shift && exec "$@""#;
    let outside = r#"
        root=$1
        own=$root/traits-container-$$
        mkdir "$own" && echo 0 >"$own/cgroup.procs" || exit 4
        unshare --mount --cgroup sh -c "$0" sh "$@"
        ended=$?
        echo 0 >"$root/cgroup.procs"
        rmdir "$own"
        exit $ended"#;
    let tree = packet_traits::attach::cgroup::cgroup_root().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", outside, inside]).arg(tree).arg(env!("CARGO_BIN_EXE_traits"));
    command.arg("--bpffs").arg(traits.bpffs.path()).args(line.split_whitespace()).output().unwrap()
}

#[test]
fn a_containers_root_is_not_taken_for_the_hosts() {
    let Some(host) = Host::new() else { return };
    for command in ["sockets attach", "sockets detach"] {
        let output = in_container(&host.traits, command);
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), said.contains("cgroup namespace")), (Some(1), true), "{command}: {said}");
        assert!(said.contains("nsenter --target 1 --mount --cgroup"), "{said}");
    }
    assert!(host.status()["cgroups"].as_array().is_none_or(Vec::is_empty));
    // a cgroup that is named is served, by the path that the container has for it
    let tree = packet_traits::attach::cgroup::cgroup_root().unwrap();
    let output = in_container(&host.traits, &format!("sockets attach --cgroup {}", tree.display()));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    // it went with the container
    host.traits.ok("sockets detach --all");
    // a short area has no room for it beside the tracer's
    host.traits.ok("keys remove tenant");
    let netns = Netns::new().unwrap();
    netns.ip("link add one type veth peer name other\nlink set one up\nlink set other up").unwrap();
    let output = in_container(&host.traits, &format!("trace --netns {} --duration 1", netns.path().display()));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("the queues of sockets outside of it"), "{said}");
}
