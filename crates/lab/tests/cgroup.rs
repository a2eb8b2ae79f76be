//! Code and commands run in a cgroup of the test's own, and nothing is left of it when its process has ended.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use packet_traits_lab::{Cgroup, Netns, kernel_tests_enabled};

/// Tells the child process of this file how to end.
const ENDING: &str = "TRAITS_LAB_TEST_CGROUP_ENDING";

/// What the child prints before its cgroup's directory.
const READY: &str = "cgroup at ";

/// The cgroup of the calling thread, as `/<path below the root>`.
fn current() -> String {
    own_line(&fs::read_to_string("/proc/thread-self/cgroup").unwrap())
}

fn own_line(cgroups: &str) -> String {
    cgroups.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned()
}

fn names(cgroup: &Cgroup, shown: &str) -> bool {
    cgroup.path().display().to_string().ends_with(shown) && shown.contains("pt-test-")
}

#[test]
fn code_and_commands_run_inside() {
    if !kernel_tests_enabled() {
        return;
    }
    let (cgroup, netns) = (Cgroup::new().unwrap(), Netns::new().unwrap());
    let below = cgroup.child().unwrap();
    assert!(names(&cgroup, &cgroup.enter(current)));
    assert!(names(&below, &below.enter(current)));
    assert!(names(&cgroup, &cgroup.enter(|| netns.enter(current))), "a thread it starts is inside too");
    assert!(names(&cgroup, &netns.enter(|| cgroup.enter(current))));
    assert!(!names(&cgroup, &current()), "the other threads are not");

    let shown = |mut command: Command| own_line(&String::from_utf8(command.output().unwrap().stdout).unwrap());
    let cat = |mut command: Command| {
        command.arg("/proc/self/cgroup");
        shown(command)
    };
    assert!(names(&cgroup, &cat(cgroup.command("cat").unwrap())));
    let mut command = netns.command("cat");
    below.join(&mut command).unwrap();
    assert!(names(&below, &cat(command)));

    let paths = [below.path().to_owned(), cgroup.path().to_owned()];
    drop(below);
    drop(cgroup);
    assert!(paths.iter().all(|path| !path.exists()));
}

#[test]
fn a_panic_takes_it_away() {
    if !kernel_tests_enabled() {
        return;
    }
    let cgroup = Cgroup::new().unwrap();
    let path = cgroup.path().to_owned();
    let inside = move || cgroup.enter(|| panic!("on purpose"));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(inside)).unwrap_err();
    assert!(!path.exists());
}

#[test]
#[ignore = "the child process of the other tests in this file"]
fn child() {
    let Ok(ending) = std::env::var(ENDING) else { return };
    let cgroup = Cgroup::new().unwrap();
    println!("{READY}{}", cgroup.path().display());
    match ending.as_str() {
        // What an exit in the middle leaves is not dropped.
        "exit" => {
            assert!(!names(&cgroup, &current()));
            cgroup.enter_process().unwrap();
            assert!(names(&cgroup, &current()));
            std::process::exit(0)
        }
        _ => std::thread::sleep(std::time::Duration::from_secs(1000)),
    }
}

/// A child that has its cgroup, and the cgroup of that process.
fn start_child(ending: &str) -> (Child, PathBuf) {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--ignored", "--nocapture"])
        .env(ENDING, ending)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let cgroup = lines.find_map(|line| Some(line.unwrap().split_once(READY)?.1.to_owned())).unwrap();
    (process, Path::new(&cgroup).parent().unwrap().to_owned())
}

#[test]
fn nothing_is_left_after_the_process() {
    if !kernel_tests_enabled() {
        return;
    }
    let (mut process, cgroup) = start_child("exit");
    assert!(process.wait().unwrap().success());
    assert!(!cgroup.exists());

    let (mut process, killed) = start_child("wait");
    process.kill().unwrap();
    process.wait().unwrap();
    let (mut process, _) = start_child("exit");
    assert!(process.wait().unwrap().success());
    assert!(!killed.exists(), "the next one does");
}
