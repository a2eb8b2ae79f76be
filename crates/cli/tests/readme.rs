//! README.md's blocks, run as they are written and in their order, on a host of their own: its mounts, its network and its
//! cgroups are others than this one's. What is there before is a network interface `eth0`, a capture, and peers that send.

mod common;

use std::{
    error::Error,
    fs, io,
    os::fd::AsFd,
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

const README: &str = include_str!("../../../README.md");

/// Blocks that are not run here, by what they begin with, and why.
const ELSEWHERE: &[(&str, &str)] = &[
    ("make demo", "it runs this test"),
    ("sudo -E ON_KERNEL=", "tools/test-kernels.py runs tests in this way, which takes minutes"),
];

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

/// The host: `eth0`, its peer's namespace `peer`, behind which is another way, through the namespaces `router` and `server`.
const NETWORK: &str = r#"
mount -t tmpfs tmpfs /run
while umount -l /sys/fs/bpf 2>/dev/null; do :; done
mount -t bpf -o mode=0700 bpf /sys/fs/bpf
for name in peer router server; do ip netns add $name; ip -n $name link set lo up; done
ip link add eth0 type veth peer name p0 netns peer
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

/// A block of README.md.
struct Block {
    line: usize,
    language: &'static str,
    text: String,
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = README.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let inside = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```");
            let text = inside.map(|line| format!("{line}\n")).collect();
            blocks.push(Block { line: index + 1, language, text });
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

#[test]
fn every_block_runs_as_written_and_in_order() {
    // what the table of kernels there says is required
    let required = [KernelFeature::NetfilterLinks, KernelFeature::LongMetadata, KernelFeature::MetadataDynptr];
    let Some(_) = Traits::on(&required) else { return };
    let (folder, cgroup) = (tempfile::tempdir().unwrap(), Cgroup::new().unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            unshare();
            let host = Host { folder: folder.path() };
            host.run("bash", &format!("set -e\n{NETWORK}mount --bind {} /sys/fs/cgroup\n", cgroup.path().display()));
            host.run("python3", CAPTURE);
            let _traffic = host.traffic();
            let mut ran = 0;
            for block in blocks() {
                ran += u32::from(host.block(&block));
            }
            assert!(ran >= 10, "only {ran} blocks were run");
            for made in ["edge.bpf.o", "classify.bpf.o", "report.html", "trace.pcapng", "trace.json"] {
                assert!(fs::metadata(folder.path().join(made)).is_ok_and(|file| file.len() > 0), "{made}");
            }
            let _ = fs::remove_dir("/sys/fs/cgroup/tenant7.slice");
        });
    });
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
    fn block(&self, block: &Block) -> bool {
        let Block { line, language, text } = block;
        if ELSEWHERE.iter().any(|(begin, _)| text.starts_with(begin)) {
            return false;
        }
        eprintln!("README.md:{line}");
        match *language {
            "sh" => drop(self.run("bash", &format!("{SHELL}{text}"))),
            "console" => {
                let command = text.lines().next().and_then(|line| line.strip_prefix("$ ")).unwrap();
                let printed = self.run("bash", &format!("{SHELL}{command}"));
                assert!(printed.contains("[rt0@router] ") && printed.contains("[sv0@server] "), "{printed}");
            }
            "nft" => fs::write(self.folder.join("edge.traits"), text).unwrap(),
            "c" => fs::write(self.folder.join("classify.bpf.c"), text).unwrap(),
            "python" => {
                let printed = self.run("python3", &format!("{BEFORE_PYTHON}{text}{AFTER_PYTHON}"));
                assert_eq!(printed, "datagram: 1 connection: 7\n");
            }
            "rust" => {
                let here: Vec<_> = include_str!("readme.rs").lines().map(str::trim).collect();
                let shown: Vec<_> = text.lines().map(str::trim).collect();
                assert!(here.windows(shown.len()).any(|lines| lines == shown), "in_rust is not what README.md shows");
                let ifindex = 77;
                self.run("bash", &format!("ip link add eth1 index {ifindex} type veth peer name p2 netns peer"));
                std::env::set_current_dir(self.folder).unwrap();
                in_rust(ifindex).unwrap();
            }
            "" => {
                let first = text.lines().next().unwrap_or_default();
                let commands = ["make", "sudo", "traits", "clang", "cargo", "$"];
                let is_command = commands.iter().any(|word| first.split(' ').next() == Some(word));
                assert!(!is_command, "README.md:{line} is a command and not marked `sh`");
                return false;
            }
            other => panic!("README.md:{line}: what is to be done with `{other}`?"),
        }
        true
    }
}
