//! The blocks of README.md and of the pages in docs/, run as they are written and in their order. Each document has a host of its
//! own: its mounts, its network and its cgroups are not this one's. That host has network interfaces `eth0` and `veth0`, the folder
//! `policies`, a capture, and peers that send. So each document must contain what its blocks need, `traits registry create` first.

mod common;

use std::{
    error::Error,
    fs, io,
    os::{fd::AsFd, unix::fs::symlink},
    path::Path,
    process::{Child, Command, Stdio},
    ptr, thread,
};

use common::{Traits, text};
use packet_traits::{
    attach::{XdpMode, xdp},
    bind::BoundObject,
    registry::Registry,
};
use packet_traits_lab::{Cgroup, KernelFeature};

/// A document whose blocks are run.
struct Document {
    /// Its path in the repository.
    name: &'static str,
    text: &'static str,
    /// How many of its blocks do something.
    runs: usize,
    /// Files that they make.
    makes: &'static [&'static str],
}

impl Document {
    const fn new(name: &'static str, text: &'static str, runs: usize, makes: &'static [&'static str]) -> Document {
        Document { name, text, runs, makes }
    }
}

const README: Document =
    Document::new("README.md", include_str!("../../../README.md"), 8, &["edge.bpf.o", "classify.bpf.o"]);
const POLICY: Document =
    Document::new("docs/policy.md", include_str!("../../../docs/policy.md"), 1, &["early-drop.bpf.o"]);
const PROGRAMS: Document = Document::new(
    "docs/programs.md",
    include_str!("../../../docs/programs.md"),
    4,
    &["classify.bpf.o", "classify.bound.o"],
);
const SOCKETS: Document = Document::new("docs/sockets.md", include_str!("../../../docs/sockets.md"), 4, &[]);
const TRACE: Document = Document::new(
    "docs/trace.md",
    include_str!("../../../docs/trace.md"),
    5,
    &["report.html", "trace.pcapng", "trace.json"],
);
const OPERATIONS: Document = Document::new("docs/operations.md", include_str!("../../../docs/operations.md"), 4, &[]);
const DOCUMENTS: [Document; 6] = [README, POLICY, PROGRAMS, SOCKETS, TRACE, OPERATIONS];

/// Blocks that are not run here, by what they begin with, and why.
const ELSEWHERE: &[(&str, &str)] = &[("make demo", "it runs this test")];

/// What the shell finds in front of every block. Commands that end by Ctrl-C get one when they have printed something.
const SHELL: &str = r#"
set -euo pipefail
sudo() { "$@"; }
# what it makes and installs is on the PATH already
make() { [ "$*" = "" ] || [ "$*" = install ]; }
# (a shell has what it runs beside itself ignore SIGINT)
until_interrupted() {
	: >printed
	env --default-signal=INT "$@" >printed & process=$!
	until_printed .
	sleep 0.5
	kill -INT $process 2>/dev/null || true
	wait $process
	[ -s printed ] || { echo "it printed nothing: $*" >&2; return 1; }
	cat printed
}
# waits for something like this, as long as the process runs
until_printed() {
	for _ in $(seq 6000); do
		grep -q "$1" printed || ! kill -0 $process 2>/dev/null && break
		sleep 0.1
	done
}
# in a terminal, which Ctrl-C is typed into
in_terminal() {
	: >printed
	mkfifo keys
	script -qefc "stty rows 24 columns 80; exec $*" printed <keys >/dev/null & process=$!
	exec 3>keys
	until_printed quit
	printf '\003' >&3
	wait $process
	exec 3>&-
	rm keys
}
traits() {
	case $* in
	trace*--duration*) "$TRAITS" "$@" ;;
	trace*) until_interrupted "$TRAITS" "$@" ;;
	top) in_terminal "$TRAITS" top ;;
	*) "$TRAITS" "$@" ;;
	esac
}
"#;

/// The host: `eth0`, its peer's namespace `peer`, behind which is another way, through the namespaces `router` and `server`. Also
/// `veth0`, as of a container.
const NETWORK: &str = r#"
mount -t tmpfs tmpfs /run
while umount -l /sys/fs/bpf 2>/dev/null; do :; done
mount -t bpf -o mode=0700 bpf /sys/fs/bpf
for name in peer router server; do ip netns add $name; ip -n $name link set lo up; done
ip link add eth0 type veth peer name p0 netns peer
ip link add veth0 type veth peer name c0 netns peer
ip -n peer link add p1 type veth peer name rt0 netns router
ip -n router link add rt1 type veth peer name sv0 netns server
ip addr add 10.77.0.1/24 dev eth0
ip link set lo up
ip link set eth0 up
ip route add 192.0.2.0/24 dev eth0
ip -n peer addr add 10.77.0.2/24 dev p0
ip -n peer addr add 192.0.2.7/32 dev p0
ip -n peer addr add 10.99.1.1/24 dev p1
ip -n router addr add 10.99.1.2/24 dev rt0
ip -n router addr add 10.99.2.1/24 dev rt1
ip -n server addr add 10.99.2.2/24 dev sv0
for device in p0@peer p1@peer rt0@router rt1@router sv0@server; do ip -n ${device#*@} link set ${device%@*} up; done
ip -n peer route add 10.99.2.0/24 via 10.99.1.2
ip -n server route add default via 10.99.2.1
nsenter --net=/run/netns/router sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
"#;

/// Sends datagrams to this host and to `server`, where nobody takes them, until it is killed.
const TRAFFIC: &str = r#"
import socket, time

def sender(address):
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind((address, 0))
    return one

ways = [(sender("10.77.0.2"), "10.77.0.1"), (sender("192.0.2.7"), "10.77.0.1"), (sender("10.99.1.1"), "10.99.2.2")]
while True:
    for one, to in ways:
        one.sendto(bytes(64), (to, 9))
    time.sleep(0.01)
"#;

/// A capture of a datagram to this host.
const CAPTURE: &str = r#"
import struct
udp = struct.pack(">4H", 4000, 4001, 16, 0) + bytes(8)
ip = bytearray(struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + bytes([10, 77, 0, 2, 10, 77, 0, 1]))
total = sum(struct.unpack(">10H", ip))
total = (total & 0xffff) + (total >> 16)
ip[10:12] = struct.pack(">H", 0xffff - total)
frame = bytes(12) + b"\x08\x00" + ip + udp
with open("capture.pcap", "wb") as file:
    file.write(struct.pack("<IHHiIII", 0xa1b2c3d4, 2, 4, 0, 0, 65535, 1))
    file.write(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)
"#;

/// What is in front of the server in Python: its cgroup (of the kind that a test's cgroups are), its sockets, and a peer that
/// sends to them a little later, from without that cgroup.
const BEFORE_PYTHON: &str = r#"
import os, pathlib, socket, struct, subprocess
peer = """
import socket, time
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
time.sleep(2)
one.sendto(bytes(8), ("10.77.0.1", 7777))
time.sleep(1)
socket.create_connection(("10.77.0.1", 7777))
"""
subprocess.Popen(["nsenter", "--net=/run/netns/peer", "python3", "-c", peer])
cgroup = pathlib.Path("/sys/fs/cgroup/tenant7.slice")
(cgroup / "cgroup.type").write_text("threaded")
(cgroup / "cgroup.procs").write_text(str(os.getpid()))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("10.77.0.1", 7777))
listener = socket.create_server(("10.77.0.1", 7777))
"#;

/// And behind it.
const AFTER_PYTHON: &str = r#"
present, flags, mark = struct.unpack_from("QII", traits)
print(f"datagram: {present >> number & 1} connection: {tenant}")
"#;

/// A block of a document.
struct Block<'d> {
    /// Where it is: `README.md:7`.
    place: String,
    language: &'d str,
    text: String,
}

impl Block<'_> {
    /// Whether it is for this test.
    fn is_run(&self) -> bool {
        let elsewhere = ELSEWHERE.iter().any(|(begin, _)| self.text.starts_with(begin));
        !elsewhere && !matches!(self.language, "" | "text")
    }
}

fn blocks<'d>(name: &str, document: &'d str) -> Vec<Block<'d>> {
    let mut blocks = Vec::new();
    let mut lines = document.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let inside = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```");
            let text = inside.map(|line| format!("{line}\n")).collect();
            blocks.push(Block { place: format!("{name}:{}", index + 1), language, text });
        }
    }
    blocks
}

/// The block in Rust, with what it says it is given.
fn in_rust(ifindex: u32) -> Result<String, Box<dyn Error>> {
    let registry = Registry::options().open()?;
    let object = BoundObject::open("classify.bpf.o".as_ref(), &registry)?.load()?;
    let program = object.program("classify").unwrap();
    let (attachment, mode) = xdp::attach(program.as_fd(), ifindex, XdpMode::Auto)?;
    Ok(format!("{} in mode {mode}", attachment.info().program_id))
}

/// Runs a document's blocks as they are written and in their order.
fn run(document: &Document) {
    // what docs/limits.md says is required
    let required = [KernelFeature::NetfilterLinks, KernelFeature::LongMetadata, KernelFeature::MetadataDynptr];
    let Some(_) = Traits::on(&required) else { return };
    let (folder, cgroup) = (tempfile::tempdir().unwrap(), Cgroup::new().unwrap());
    symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies"), folder.path().join("policies")).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            unshare();
            let host = Host { folder: folder.path() };
            host.run("bash", &format!("set -e\n{NETWORK}mount --bind {} /sys/fs/cgroup\n", cgroup.path().display()));
            host.run("python3", CAPTURE);
            let _traffic = host.traffic();
            let mut runs = 0;
            for block in blocks(document.name, document.text) {
                runs += usize::from(host.block(&block));
            }
            assert_eq!(runs, document.runs, "{}: blocks that were run", document.name);
            for made in document.makes {
                let is_whole = fs::metadata(folder.path().join(made)).is_ok_and(|file| file.len() > 0);
                assert!(is_whole, "{}: {made}", document.name);
            }
            let _ = fs::remove_dir("/sys/fs/cgroup/tenant7.slice");
        });
    });
}

#[test]
fn readme_runs_as_written() {
    run(&README);
}

#[test]
fn policy_page_runs_as_written() {
    run(&POLICY);
}

#[test]
fn programs_page_runs_as_written() {
    run(&PROGRAMS);
}

#[test]
fn sockets_page_runs_as_written() {
    run(&SOCKETS);
}

#[test]
fn trace_page_runs_as_written() {
    run(&TRACE);
}

#[test]
fn operations_page_runs_as_written() {
    run(&OPERATIONS);
}

#[test]
fn every_page_with_commands_is_run() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let paths = fs::read_dir(docs).unwrap().map(|entry| entry.unwrap().path());
    for path in paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let name = format!("docs/{}", path.file_name().unwrap().display());
        let text = fs::read_to_string(&path).unwrap();
        let has_commands = blocks(&name, &text).iter().any(Block::is_run);
        let is_run = DOCUMENTS.iter().any(|document| document.name == name);
        assert_eq!(has_commands, is_run, "{name}");
    }
}

#[test]
fn readme_is_short() {
    assert!(README.text.lines().count() <= 200);
}

/// Gives this thread mounts and a network of its own.
fn unshare() {
    let check = |result: libc::c_int| assert_eq!(result, 0, "{}", io::Error::last_os_error());
    // SAFETY: takes flags only; it affects this thread alone.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_FS) });
    let (root, none) = (c"/".as_ptr(), ptr::null());
    // SAFETY: `root` is a C string; what is null is not used when only the propagation changes.
    check(unsafe { libc::mount(ptr::null(), root, none, libc::MS_REC | libc::MS_PRIVATE, ptr::null()) });
}

/// Where the blocks are run, by the thread that has entered it.
struct Host<'h> {
    folder: &'h Path,
}

/// Dropping it kills it.
struct Traffic(Child);

impl Drop for Traffic {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Host<'_> {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../include");
        command.current_dir(self.folder).env("TRAITS", env!("CARGO_BIN_EXE_traits")).env("C_INCLUDE_PATH", include);
        command
    }

    /// Runs a script, and gives what it printed.
    fn run(&self, interpreter: &str, script: &str) -> String {
        let mut command = self.command(interpreter);
        let output = command.args(["-c", script]).stdin(Stdio::null()).output().unwrap();
        let (printed, said) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{}:\n{script}\n{printed}\n{said}", output.status);
        printed
    }

    fn traffic(&self) -> Traffic {
        let mut command = self.command("nsenter");
        Traffic(command.args(["--net=/run/netns/peer", "python3", "-c", TRAFFIC]).spawn().unwrap())
    }

    /// Runs a block, or puts it where a later one looks for it. Whether it is of a kind that does something.
    fn block(&self, block: &Block<'_>) -> bool {
        let Block { place, language, text } = block;
        if !block.is_run() {
            let first = text.lines().next().unwrap_or_default();
            let commands = ["make", "sudo", "traits", "clang", "cargo", "$"];
            let is_command = commands.iter().any(|word| first.split(' ').next() == Some(word));
            assert!(!is_command || *language == "sh", "{place} is a command and not marked `sh`");
            return false;
        }
        eprintln!("{place}");
        match *language {
            "sh" => drop(self.run("bash", &format!("{SHELL}{text}"))),
            "console" => {
                let command = text.lines().next().and_then(|line| line.strip_prefix("$ ")).unwrap();
                let printed = self.run("bash", &format!("{SHELL}{command}"));
                assert!(printed.contains("[rt0@router] ") && printed.contains("[sv0@server] "), "{place}:\n{printed}");
            }
            "nft" => fs::write(self.folder.join("edge.traits"), text).unwrap(),
            "c" => fs::write(self.folder.join("classify.bpf.c"), text).unwrap(),
            "python" => {
                let printed = self.run("python3", &format!("{BEFORE_PYTHON}{text}{AFTER_PYTHON}"));
                assert_eq!(printed, "datagram: 1 connection: 7\n", "{place}");
            }
            "rust" => {
                let here: Vec<_> = include_str!("readme.rs").lines().map(str::trim).collect();
                let shown: Vec<_> = text.lines().map(str::trim).collect();
                assert!(here.windows(shown.len()).any(|lines| lines == shown), "in_rust is not what {place} shows");
                let ifindex = 77;
                self.run("bash", &format!("ip link add eth1 index {ifindex} type veth peer name p2 netns peer"));
                std::env::set_current_dir(self.folder).unwrap();
                in_rust(ifindex).unwrap();
            }
            other => panic!("{place}: what is to be done with `{other}`?"),
        }
        true
    }
}
