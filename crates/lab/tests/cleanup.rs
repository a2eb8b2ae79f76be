//! Nothing is left of a laboratory whose process ended, whichever way it ended.
//!
//! A child process, this test binary again, builds one end of a veth pair whose other end is in a namespace of the
//! parent, and pins a map in a private bpffs. The parent then watches both vanish.

mod bpf;

use std::io::{BufRead, BufReader, Lines};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use packet_traits_lab::{Bpffs, EndSpec, Mac, Netns, VethOptions, VethPair, kernel_tests_enabled};

/// Tells the child the path of the parent's namespace.
const NAMESPACE: &str = "TRAITS_LAB_TEST_NAMESPACE";
/// Tells the child how to end.
const ENDING: &str = "TRAITS_LAB_TEST_ENDING";
/// What the child prints before the id of its map.
const READY: &str = "pinned map ";

#[test]
#[ignore = "the child process of the other tests in this file"]
fn child() {
    let Ok(parent) = std::env::var(NAMESPACE) else { return };
    let (own, parent) = (Netns::new().unwrap(), Netns::open(parent).unwrap());
    let side = |name: &str, host: u8| {
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host.into());
        EndSpec::new(name, Mac([2, 0, 0, 0, 0, host]), Ipv4Addr::new(10, 77, 0, host), v6)
    };
    let _pair =
        VethPair::connect((&own, &side("inside", 1)), (&parent, &side("outside", 2)), &VethOptions::new()).unwrap();
    let mut sleeper = own.command("sleep").arg("1000").spawn().unwrap();
    let bpffs = Bpffs::new().unwrap();
    let map = bpf::create_map().unwrap();
    bpf::pin(&map, &bpffs.path().join("map")).unwrap();
    // Only the pin holds the map now.
    let id = bpf::map_id(&map).unwrap();
    drop(map);
    assert!(bpf::map_exists(id));
    println!("{READY}{id}");
    match std::env::var(ENDING).as_deref() {
        Ok("panic") => panic!("on purpose"),
        // Not reached in a test: either the parent kills this process, or the panic does not come back.
        _ => drop(sleeper.wait()),
    }
}

/// A child that has built everything. Its output stays open, so that it ends for no other reason than the one asked for.
struct Started {
    process: Child,
    output: Lines<BufReader<ChildStdout>>,
    map: u32,
}

fn start_child(parent: &Netns, ending: &str) -> Started {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--ignored", "--nocapture"])
        .env(NAMESPACE, parent.path())
        .env(ENDING, ending)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
    let map = output.find_map(|line| line.unwrap().split_once(READY)?.1.trim().parse().ok());
    Started { process, output, map: map.expect("the child got ready") }
}

/// Waits for what the kernel does in the background.
fn soon(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn assert_nothing_left(parent: &Netns, map: u32) {
    soon("the veth pair is gone", || parent.interfaces().unwrap() == ["lo"]);
    soon("the pinned map is gone", || !bpf::map_exists(map));
}

#[test]
fn nothing_is_left_after_sigkill() {
    if !kernel_tests_enabled() {
        return;
    }
    let parent = Netns::new().unwrap();
    let mut child = start_child(&parent, "wait");
    assert_eq!(parent.interfaces().unwrap(), ["lo", "outside"]);
    assert!(bpf::map_exists(child.map));
    child.process.kill().unwrap();
    assert_eq!(child.process.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert_nothing_left(&parent, child.map);
}

#[test]
fn nothing_is_left_after_a_panic() {
    if !kernel_tests_enabled() {
        return;
    }
    let parent = Netns::new().unwrap();
    let mut child = start_child(&parent, "panic");
    assert!(child.output.any(|line| line.unwrap().contains("child ... FAILED")));
    assert!(!child.process.wait().unwrap().success());
    assert_nothing_left(&parent, child.map);
}

#[test]
fn namespace_lives_while_a_socket_made_in_it_is_open() {
    if !kernel_tests_enabled() {
        return;
    }
    let parent = Netns::new().unwrap();
    let own = Netns::new().unwrap();
    own.ip(&format!("link add inside type veth peer name outside netns {}", parent.path().display())).unwrap();
    let socket = own.enter(|| std::net::UdpSocket::bind("127.0.0.1:0")).unwrap();
    drop(own);
    thread::sleep(Duration::from_millis(200));
    assert!(parent.interfaces().unwrap().contains(&"outside".to_owned()));
    drop(socket);
    soon("the veth pair is gone", || parent.interfaces().unwrap() == ["lo"]);
}
