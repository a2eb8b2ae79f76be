//! Every hook with a real program on the running kernel: it attaches, it sees packets, it lets go.
//!
//! The programs are in `bpf/attach.bpf.c`, compiled by clang when the tests start.

use std::fs::{self, File};
use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore, MapFlags, Object, ObjectBuilder};
use packet_traits::attach::{
    AttachError, Attachment, CgroupHook, Direction, Hook, NetfilterFamily, NetfilterHook, NetfilterOptions, Position,
    Target, TcxOptions, XdpMode, cgroup, netfilter, redirect_map, socket, tcx, tracing, xdp,
};
use packet_traits_lab::{
    Bpffs, Chain, End, Family, KernelFeature, Netns, Pair, VethOptions, kernel_has, kernel_has_for,
    kernel_tests_enabled, recv_numbered, require_root, send_numbered, udp_socket,
};

/// Datagrams per round of traffic.
const PACKETS: u64 = 5;

/// Returns from the test if kernel tests are switched off; fails it if they cannot run.
macro_rules! needs_kernel {
    ($($feature:ident)?) => {
        if !kernel_tests_enabled() {
            return;
        }
        $(if !kernel_has(KernelFeature::$feature) {
            return;
        })?
        if let Err(why) = require_root() {
            panic!("{why}");
        }
    };
}

/// Programs of `attach.bpf.c` and their counters, loaded for one test.
struct Programs {
    object: Object,
    fds: Vec<(String, OwnedFd)>,
}

impl Programs {
    /// Loads the named programs and none of the others.
    fn load(names: &[&str]) -> Self {
        let mut open = ObjectBuilder::default().open_memory(compiled()).expect("open attach.bpf.o");
        for mut program in open.progs_mut() {
            let wanted = names.iter().any(|name| program.name() == *name);
            program.set_autoload(wanted);
        }
        let object = open.load().expect("load attach.bpf.o");
        let fds = names.iter().map(|name| {
            let program = object.progs().find(|program| program.name() == *name).expect("a program of that name");
            ((*name).to_owned(), program.as_fd().try_clone_to_owned().expect("duplicate a descriptor"))
        });
        let fds = fds.collect();
        Self { object, fds }
    }

    fn fd(&self, name: &str) -> BorrowedFd<'_> {
        let (_, fd) = self.fds.iter().find(|(known, _)| known == name).expect("a loaded program");
        fd.as_fd()
    }

    fn id(&self, name: &str) -> u32 {
        let program = self.object.progs().find(|program| program.name() == name).expect("a program of that name");
        let fdinfo = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", raw(program.as_fd()))).expect("fdinfo");
        let id = fdinfo.lines().find_map(|line| line.strip_prefix("prog_id:")).expect("prog_id");
        id.trim().parse().expect("a number")
    }

    fn map(&self, name: &str) -> OwnedFd {
        let map = self.object.maps().find(|map| map.name() == name).expect("a map of that name");
        map.as_fd().try_clone_to_owned().expect("duplicate a descriptor")
    }

    /// What the programs of one slot have counted.
    fn hits(&self, slot: u32) -> u64 {
        let map = self.object.maps().find(|map| map.name() == "hits").expect("the map of counters");
        let value = map.lookup(&slot.to_ne_bytes(), MapFlags::ANY).expect("look up").expect("an array entry");
        u64::from_ne_bytes(value.try_into().expect("eight bytes"))
    }

    /// Waits for packets that nobody receives.
    fn wait_for_hits(&self, slot: u32, count: u64) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.hits(slot) < count && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.hits(slot), count);
    }
}

fn raw(fd: BorrowedFd<'_>) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(&fd)
}

/// The object file of `attach.bpf.c`.
fn compiled() -> &'static [u8] {
    static OBJECT: OnceLock<Vec<u8>> = OnceLock::new();
    OBJECT.get_or_init(|| {
        let multiarch = format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH);
        let mut clang = Command::new(packet_traits_lab::clang())
            .args(["-O2", "-g", "-target", "bpf", &multiarch, "-x", "c", "-c", "-", "-o", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run clang (or what CLANG names), which these tests need, with the headers of libbpf-dev");
        let mut source = clang.stdin.take().expect("a pipe");
        source.write_all(include_bytes!("bpf/attach.bpf.c")).expect("write to clang");
        drop(source);
        let output = clang.wait_with_output().expect("wait for clang");
        assert!(output.status.success(), "clang failed");
        output.stdout
    })
}

/// Sends datagrams from one end and receives them at the other.
fn exchange(from: &End, to: &End, family: Family) {
    let sender = udp_socket(from.netns(), from.addr(family, 0)).expect("a sender");
    let receiver = udp_socket(to.netns(), to.addr(family, 0)).expect("a receiver");
    let address = receiver.local_addr().expect("an address");
    send_numbered(&sender, address, 0..PACKETS, 64).expect("send");
    for number in 0..PACKETS {
        assert_eq!(recv_numbered(&receiver).expect("receive"), number);
    }
}

fn flow(pair: &Pair) {
    exchange(pair.tx(), pair.rx(), Family::V4);
}

/// Traffic is counted while `attachment` lives, and no longer.
fn counts_until_dropped(programs: &Programs, attachment: Attachment, traffic: impl Fn()) {
    let before = programs.hits(0);
    traffic();
    assert_eq!(programs.hits(0) - before, PACKETS, "{:?}", attachment.info());
    drop(attachment);
    traffic();
    assert_eq!(programs.hits(0) - before, PACKETS, "still attached after drop");
}

fn attach_xdp(programs: &Programs, end: &End, mode: XdpMode) -> Result<(Attachment, XdpMode), AttachError> {
    end.netns().enter(|| xdp::attach(programs.fd("xdp_count"), end.ifindex(), mode))
}

fn attach_tc(programs: &Programs, name: &str, end: &End, options: TcxOptions) -> Result<Attachment, AttachError> {
    end.netns().enter(|| tcx::attach(programs.fd(name), end.ifindex(), &options))
}

fn tc(end: &End, words: &str) -> String {
    let output = end.netns().command("tc").args(words.split_whitespace()).output().expect("run tc of iproute2");
    assert!(output.status.success(), "tc {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn has_clsact(end: &End) -> bool {
    tc(end, &format!("qdisc show dev {}", end.name())).contains("clsact")
}

// XDP

#[test]
fn xdp_counts_in_both_modes_until_dropped() {
    needs_kernel!();
    let pair = Pair::new().expect("a pair");
    let programs = Programs::load(&["xdp_count"]);
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let (attachment, used) = attach_xdp(&programs, pair.rx(), mode).expect("attach");
        assert_eq!(used, mode);
        assert_eq!(attachment.info().hook, Hook::Xdp);
        assert_eq!(attachment.info().program_id, programs.id("xdp_count"));
        let target = Target::Interface { ifindex: pair.rx().ifindex(), name: Some("rx0".into()) };
        assert_eq!(attachment.info().target, target);
        counts_until_dropped(&programs, attachment, || flow(&pair));
    }
}

#[test]
fn auto_is_native_where_the_driver_does_it() {
    needs_kernel!();
    let pair = Pair::new().expect("a pair");
    let programs = Programs::load(&["xdp_count"]);
    let (attachment, used) = attach_xdp(&programs, pair.rx(), XdpMode::Auto).expect("attach");
    assert_eq!(used, XdpMode::Native);
    counts_until_dropped(&programs, attachment, || flow(&pair));
}

#[test]
fn auto_is_generic_where_the_driver_objects_to_the_mtu() {
    needs_kernel!();
    let pair = Pair::with(&VethOptions::new().mtu(9000)).expect("a pair");
    let programs = Programs::load(&["xdp_count"]);
    let error = attach_xdp(&programs, pair.rx(), XdpMode::Native).expect_err("9000 bytes are too much for native XDP");
    assert!(error.to_string().contains("driver refused native mode"), "{error}");
    assert!(error.to_string().contains("rx0"), "{error}");
    let (attachment, used) = attach_xdp(&programs, pair.rx(), XdpMode::Auto).expect("attach");
    assert_eq!(used, XdpMode::Generic);
    counts_until_dropped(&programs, attachment, || flow(&pair));
}

#[test]
fn auto_is_generic_where_the_driver_has_no_native_xdp() {
    needs_kernel!();
    let netns = Netns::new().expect("a namespace");
    let programs = Programs::load(&["xdp_count"]);
    let lo = netns.ifindex("lo").expect("lo");
    let (_attachment, used) =
        netns.enter(|| xdp::attach(programs.fd("xdp_count"), lo, XdpMode::Auto)).expect("attach to lo");
    assert_eq!(used, XdpMode::Generic);
}

#[test]
fn busy_xdp_error_names_the_holder() {
    needs_kernel!();
    let pair = Pair::new().expect("a pair");
    let programs = Programs::load(&["xdp_count"]);
    let id = programs.id("xdp_count");
    for (held, wanted) in [
        (XdpMode::Native, XdpMode::Native),
        (XdpMode::Native, XdpMode::Auto),
        (XdpMode::Generic, XdpMode::Auto),
        (XdpMode::Native, XdpMode::Generic),
    ] {
        let (_attachment, used) = attach_xdp(&programs, pair.rx(), held).expect("attach");
        let error = attach_xdp(&programs, pair.rx(), wanted).expect_err("the interface is taken");
        assert!(matches!(error, AttachError::Busy { .. }), "{error}");
        let ifindex = pair.rx().ifindex();
        let says = format!(
            "cannot attach to xdp on rx0 (ifindex {ifindex}): program {id} (xdp_count) is attached there in {used} mode; \
             detach it first: "
        );
        assert!(error.to_string().starts_with(&says), "{error}");
    }
}

#[test]
fn missing_interface_error_says_where_to_look() {
    needs_kernel!();
    let netns = Netns::new().expect("a namespace");
    let programs = Programs::load(&["xdp_count", "tc_count"]);
    let xdp =
        |mode| netns.enter(|| xdp::attach(programs.fd("xdp_count"), 4711, mode)).map(|(attachment, _)| attachment);
    let tc = |clsact| {
        let options = TcxOptions::new(Direction::Ingress).force_clsact(clsact);
        netns.enter(|| tcx::attach(programs.fd("tc_count"), 4711, &options))
    };
    for (result, hook) in [
        (xdp(XdpMode::Native), "xdp"),
        (xdp(XdpMode::Generic), "xdp"),
        (xdp(XdpMode::Auto), "xdp"),
        (tc(false), if KernelFeature::Tcx.is_here() { "tcx ingress" } else { "clsact ingress" }),
        (tc(true), "clsact ingress"),
    ] {
        let error = result.expect_err("there is no such interface");
        assert!(matches!(error, AttachError::NoDevice { ifindex: 4711, .. }), "{error}");
        let says =
            format!("cannot attach to {hook}: no interface with index 4711 in this network namespace; `ip link`");
        assert!(error.to_string().starts_with(&says), "{error}");
    }
}

#[test]
fn program_of_another_type_is_named() {
    needs_kernel!();
    let pair = Pair::new().expect("a pair");
    let programs = Programs::load(&["tc_count"]);
    let error = pair
        .rx()
        .netns()
        .enter(|| xdp::attach(programs.fd("tc_count"), pair.rx().ifindex(), XdpMode::Auto))
        .expect_err("a TC program is no XDP program");
    let id = programs.id("tc_count");
    let says = format!("program {id} (tc_count) is of type sched_cls and the hook runs type xdp");
    assert!(error.to_string().contains(&says), "{error}");
}

// TC

/// Whether TC programs are attached as filters of a clsact qdisc: by TCX too, where the kernel has it.
fn tc_ways() -> Vec<bool> {
    if kernel_has_for(KernelFeature::Tcx, "TCX") { vec![false, true] } else { vec![true] }
}

#[test]
fn tc_counts_ingress_and_egress_until_dropped() {
    needs_kernel!();
    let pair = Pair::new().expect("a pair");
    let programs = Programs::load(&["tc_count"]);
    for clsact in tc_ways() {
        for (direction, end) in [(Direction::Ingress, pair.rx()), (Direction::Egress, pair.tx())] {
            let options = TcxOptions::new(direction).force_clsact(clsact);
            let attachment = attach_tc(&programs, "tc_count", end, options).expect("attach");
            let hook = if clsact { Hook::Clsact(direction) } else { Hook::Tcx(direction) };
            assert_eq!(attachment.info().hook, hook);
            assert_eq!(attachment.info().link_id.is_none(), clsact);
            assert_eq!(has_clsact(end), clsact);
            counts_until_dropped(&programs, attachment, || flow(&pair));
            assert!(!has_clsact(end), "the qdisc we made stayed");
        }
    }
}

#[test]
fn tc_position_decides_who_runs_first() {
    needs_kernel!();
    let pair = Pair::new().expect("a pair");
    for clsact in tc_ways() {
        let programs = Programs::load(&["tc_count", "tc_stop"]);
        let options = TcxOptions::new(Direction::Ingress).force_clsact(clsact);
        let _last = attach_tc(&programs, "tc_count", pair.rx(), options).expect("attach");
        let first = attach_tc(&programs, "tc_stop", pair.rx(), options.position(Position::First)).expect("attach");
        flow(&pair);
        assert_eq!((programs.hits(0), programs.hits(1)), (0, PACKETS));
        drop(first);
        flow(&pair);
        assert_eq!((programs.hits(0), programs.hits(1)), (PACKETS, PACKETS));
    }
}

#[test]
fn tcx_position_can_name_a_program() {
    needs_kernel!(Tcx);
    let pair = Pair::new().expect("a pair");
    let programs = Programs::load(&["tc_count", "tc_stop"]);
    let options = TcxOptions::new(Direction::Ingress);
    let before = options.position(Position::Before(programs.id("tc_count")));
    let error = attach_tc(&programs, "tc_stop", pair.rx(), before).expect_err("tc_count is not attached yet");
    assert!(error.to_string().contains("the program that the position names is not attached"), "{error}");
    let error = attach_tc(&programs, "tc_stop", pair.rx(), before.force_clsact(true)).expect_err("needs TCX");
    assert!(error.to_string().contains("ask for first or last, or do not force clsact"), "{error}");

    let _count = attach_tc(&programs, "tc_count", pair.rx(), options).expect("attach");
    let _stop = attach_tc(&programs, "tc_stop", pair.rx(), before).expect("attach");
    flow(&pair);
    assert_eq!((programs.hits(0), programs.hits(1)), (0, PACKETS));
}

#[test]
fn clsact_leaves_what_others_put_there() {
    needs_kernel!();
    let pair = Pair::new().expect("a pair");
    let programs = Programs::load(&["tc_count"]);
    let options = TcxOptions::new(Direction::Ingress).force_clsact(true);

    // A filter that someone added to the qdisc that we made.
    let attachment = attach_tc(&programs, "tc_count", pair.rx(), options).expect("attach");
    tc(pair.rx(), "filter add dev rx0 egress protocol all prio 7 u32 match u32 0 0");
    counts_until_dropped(&programs, attachment, || flow(&pair));
    assert!(has_clsact(pair.rx()));
    assert!(tc(pair.rx(), "filter show dev rx0 egress").contains("u32"));

    // A qdisc that someone made, empty when we come and when we go.
    tc(pair.tx(), "qdisc add dev tx0 clsact");
    drop(attach_tc(&programs, "tc_count", pair.tx(), options).expect("attach"));
    assert!(has_clsact(pair.tx()));
}

#[test]
fn clsact_qdisc_goes_with_the_last_filter_of_the_process() {
    needs_kernel!();
    let pair = Pair::new().expect("a pair");
    let programs = Programs::load(&["tc_count"]);
    let attach = |direction| {
        let options = TcxOptions::new(direction).force_clsact(true);
        attach_tc(&programs, "tc_count", pair.rx(), options).expect("attach")
    };
    let (maker, other) = (attach(Direction::Ingress), attach(Direction::Egress));
    drop(maker);
    assert!(has_clsact(pair.rx()));
    drop(other);
    assert!(!has_clsact(pair.rx()));
}

#[test]
fn clsact_filter_deleted_by_others_is_no_error() {
    needs_kernel!();
    let pair = Pair::new().expect("a pair");
    let programs = Programs::load(&["tc_count"]);
    let options = TcxOptions::new(Direction::Ingress).force_clsact(true);
    let attachment = attach_tc(&programs, "tc_count", pair.rx(), options).expect("attach");
    tc(pair.rx(), "qdisc del dev rx0 clsact");
    attachment.detach().expect("nothing is left to detach");

    let attachment = attach_tc(&programs, "tc_count", pair.rx(), options).expect("attach");
    pair.rx().netns().ip("link del rx0").expect("delete the interface");
    attachment.detach().expect("nothing is left to detach");
}

#[test]
fn kept_clsact_filter_stays() {
    needs_kernel!();
    let pair = Pair::new().expect("a pair");
    let programs = Programs::load(&["tc_count"]);
    let options = TcxOptions::new(Direction::Ingress).force_clsact(true);
    let mut attachment = attach_tc(&programs, "tc_count", pair.rx(), options).expect("attach");
    let error = attachment.pin("/sys/fs/bpf/never").expect_err("there is no link");
    assert!(error.to_string().contains("a clsact filter has no link to pin; keep() leaves it attached"), "{error}");
    attachment.keep().expect("keep");
    drop(attachment);
    flow(&pair);
    assert_eq!(programs.hits(0), PACKETS);
}

#[test]
fn unprivileged_attach_says_what_it_needs() {
    needs_kernel!();
    let pair = Pair::new().expect("a pair");
    let programs = Programs::load(&["tc_count"]);
    let options = TcxOptions::new(Direction::Ingress).force_clsact(true);
    let error = pair
        .rx()
        .netns()
        .enter(|| {
            become_nobody();
            tcx::attach(programs.fd("tc_count"), pair.rx().ifindex(), &options)
        })
        .expect_err("nobody may not add filters");
    assert!(matches!(error, AttachError::NotPermitted { .. }), "{error}");
    assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
}

/// Gives up root on the calling thread only, which is what the bare system call does.
fn become_nobody() {
    const NOBODY: libc::c_long = 65534;
    // SAFETY: setresuid takes numbers.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
    assert_eq!(result, 0);
}

// Netfilter

const FAMILIES: [(NetfilterFamily, Family); 2] =
    [(NetfilterFamily::Ipv4, Family::V4), (NetfilterFamily::Ipv6, Family::V6)];

#[test]
fn netfilter_counts_at_every_hook_until_dropped() {
    needs_kernel!(NetfilterLinks);
    let chain = Chain::new().expect("a chain");
    for (family, traffic) in FAMILIES {
        for (hook, end) in [
            (NetfilterHook::Output, chain.client()),
            (NetfilterHook::PostRouting, chain.client()),
            (NetfilterHook::PreRouting, chain.router_in()),
            (NetfilterHook::Forward, chain.router_in()),
            (NetfilterHook::PostRouting, chain.router_in()),
            (NetfilterHook::PreRouting, chain.server()),
            (NetfilterHook::Input, chain.server()),
        ] {
            let programs = Programs::load(&["nf_count"]);
            let options = NetfilterOptions::new(family, hook).priority(-10);
            let attachment =
                end.netns().enter(|| netfilter::attach(programs.fd("nf_count"), &options)).expect("attach");
            assert_eq!(attachment.info().hook, Hook::Netfilter { family, hook, priority: -10 });
            counts_until_dropped(&programs, attachment, || exchange(chain.client(), chain.server(), traffic));
        }
    }
}

#[test]
fn netfilter_priority_errors_are_explained() {
    needs_kernel!(NetfilterLinks);
    let netns = Netns::new().expect("a namespace");
    let programs = Programs::load(&["nf_count"]);
    let options = NetfilterOptions::new(NetfilterFamily::Ipv4, NetfilterHook::PreRouting);
    let attach = |options| netns.enter(|| netfilter::attach(programs.fd("nf_count"), &options));
    let _attachment = attach(options).expect("attach");

    let error = attach(options).expect_err("the priority is taken");
    assert!(matches!(error, AttachError::Busy { .. }), "{error}");
    assert!(error.to_string().contains("netfilter ip prerouting priority 0 on network namespace"), "{error}");
    assert!(error.to_string().contains("priority -1 is free"), "{error}");
    let lower = attach(options.priority(-1)).expect("what is said to be free is");
    let error = attach(options).expect_err("the priority is taken");
    assert!(error.to_string().contains("priority 1 is free"), "{error}");
    lower.detach().expect("detach");
    for refused in [options.priority(i32::MIN), options.priority(i32::MAX), options.priority(-400).defrag(true)] {
        let error = attach(refused).expect_err("the kernel keeps these priorities for itself");
        assert!(error.to_string().contains("does not allow that priority"), "{error}");
    }
    attach(options.priority(-1).defrag(true)).expect("attach with defragmentation").detach().expect("detach");
}

#[test]
fn deleted_interface_leaves_nothing_to_detach() {
    needs_kernel!();
    let pair = Pair::new().expect("a pair");
    let programs = Programs::load(&["xdp_count", "tc_count"]);
    let (xdp, _) = attach_xdp(&programs, pair.rx(), XdpMode::Auto).expect("attach");
    let tcx = attach_tc(&programs, "tc_count", pair.rx(), TcxOptions::new(Direction::Ingress)).expect("attach");
    pair.rx().netns().ip("link del rx0").expect("delete the interface");
    xdp.detach().expect("nothing is left to detach");
    tcx.detach().expect("nothing is left to detach");
}

// Cgroups

/// A cgroup below the root, removed with the value.
struct TestCgroup(PathBuf);

impl TestCgroup {
    fn new(name: &str) -> Self {
        let root = cgroup::cgroup_root().expect("a cgroup v2 tree");
        let path = root.join(format!("traits-test-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("make a cgroup");
        Self(path)
    }

    /// Sends datagrams from a socket to itself, connects once by TCP, and gets and sets one socket option, in a child
    /// process inside the cgroup and a namespace of its own.
    fn traffic(&self) {
        let netns = Netns::new().expect("a namespace");
        let processes = self.0.join("cgroup.procs");
        let mut child = netns.command("true");
        let work = move || {
            File::create(&processes)?.write_all(b"0")?;
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect(socket.local_addr()?)?;
            for _ in 0..PACKETS {
                socket.send(b"datagram")?;
                socket.recv(&mut [0; 16])?;
            }
            let ttl = socket.ttl()?;
            socket.set_ttl(ttl)
        };
        // SAFETY: the closure only makes system calls and allocates; no other thread of the forked process exists, and
        // the allocator is usable after fork in glibc.
        unsafe { child.pre_exec(work) };
        let status = child.status().expect("run a child in the cgroup");
        assert!(status.success());
    }

    /// Opens one TCP connection from inside the cgroup.
    fn connect(&self) {
        let netns = Netns::new().expect("a namespace");
        let listener = netns.enter(|| TcpListener::bind("127.0.0.1:0")).expect("listen");
        let address = listener.local_addr().expect("an address");
        let processes = self.0.join("cgroup.procs");
        let mut child = netns.command("true");
        let work = move || {
            File::create(&processes)?.write_all(b"0")?;
            TcpStream::connect(address).map(drop)
        };
        // SAFETY: as in `traffic`.
        unsafe { child.pre_exec(work) };
        let status = child.status().expect("run a child in the cgroup");
        assert!(status.success());
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        // An exited process leaves its cgroup a moment later.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        eprintln!("cgroup {} stayed behind", self.0.display());
    }
}

#[test]
fn cgroup_counts_the_packets_of_its_sockets_until_dropped() {
    needs_kernel!();
    let cgroup = TestCgroup::new("skb");
    for (hook, name) in [(CgroupHook::Ingress, "cg_ingress"), (CgroupHook::Egress, "cg_egress")] {
        let programs = Programs::load(&[name]);
        let attachment = cgroup::attach_path(programs.fd(name), &cgroup.0, hook).expect("attach");
        assert_eq!(attachment.info().hook, Hook::Cgroup(hook));
        let Target::Cgroup { path, .. } = &attachment.info().target else { panic!("{:?}", attachment.info()) };
        assert_eq!(path.as_deref(), Some(cgroup.0.as_path()));
        counts_until_dropped(&programs, attachment, || cgroup.traffic());
    }
}

#[test]
fn cgroup_sees_socket_options_and_tcp_events() {
    needs_kernel!();
    let cgroup = TestCgroup::new("events");
    for (hook, name) in [
        (CgroupHook::SockOps, "cg_sockops"),
        (CgroupHook::GetSockOpt, "cg_getsockopt"),
        (CgroupHook::SetSockOpt, "cg_setsockopt"),
        (CgroupHook::SockRelease, "cg_release"),
    ] {
        let programs = Programs::load(&[name]);
        let attachment = cgroup::attach_path(programs.fd(name), &cgroup.0, hook).expect("attach");
        let traffic = || {
            cgroup.traffic();
            cgroup.connect();
        };
        traffic();
        let seen = programs.hits(0);
        assert!(seen > 0, "{hook} saw nothing");
        attachment.detach().expect("detach");
        traffic();
        assert_eq!(programs.hits(0), seen);
    }
}

#[test]
fn preorder_goes_before_what_is_attached_already() {
    needs_kernel!();
    let cgroup = TestCgroup::new("preorder");
    let programs = Programs::load(&["cg_egress_mark", "cg_egress_by_mark"]);
    let directory = File::open(&cgroup.0).expect("open the cgroup");
    let attach = |program: &str, preorder: bool| {
        let attach = if preorder { cgroup::attach_preorder } else { cgroup::attach };
        attach(programs.fd(program), directory.as_fd(), CgroupHook::Egress).expect("attach")
    };
    let _reader = attach("cg_egress_by_mark", false);
    let after = attach("cg_egress_mark", false);
    cgroup.traffic();
    assert_eq!((programs.hits(0), programs.hits(1)), (PACKETS, 0));
    after.detach().expect("detach");

    let _before = attach("cg_egress_mark", true);
    cgroup.traffic();
    // Kernels before 6.17 attach it behind the other one.
    let (unmarked, marked) = (programs.hits(0), programs.hits(1));
    assert_eq!(unmarked + marked, 2 * PACKETS);
    assert!(!kernel_has_preorder() || marked == PACKETS, "{unmarked} packets unmarked, {marked} marked");
}

/// Whether links can be attached with BPF_F_PREORDER: from 6.17.
fn kernel_has_preorder() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(17))
}

#[test]
fn what_is_no_cgroup_is_told() {
    needs_kernel!();
    let programs = Programs::load(&["cg_ingress"]);
    let attach = |path: &str| {
        cgroup::attach_path(programs.fd("cg_ingress"), path, CgroupHook::Ingress).expect_err("no cgroup").to_string()
    };
    let error = attach("/tmp");
    assert!(error.contains("cannot attach to cgroup ingress on /tmp: that is not a cgroup v2 directory"), "{error}");
    let error = attach("/nowhere");
    assert!(error.contains("cannot open cgroup /nowhere: No such file or directory"), "{error}");
}

// Sockets, tracepoints, redirect maps

#[test]
fn socket_filter_counts_until_dropped() {
    needs_kernel!();
    let pair = Pair::new().expect("a pair");
    let programs = Programs::load(&["socket_count"]);
    let sender = udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0)).expect("a sender");
    let receiver = udp_socket(pair.rx().netns(), pair.rx().addr(Family::V4, 0)).expect("a receiver");
    let address = receiver.local_addr().expect("an address");
    let traffic = || {
        send_numbered(&sender, address, 0..PACKETS, 64).expect("send");
        for number in 0..PACKETS {
            assert_eq!(recv_numbered(&receiver).expect("receive"), number);
        }
    };
    let mut attachment = socket::attach(programs.fd("socket_count"), receiver.as_fd()).expect("attach");
    let error = attachment.pin("/sys/fs/bpf/never").expect_err("there is no link");
    assert!(error.to_string().contains("a socket's filter has no link to pin"), "{error}");
    counts_until_dropped(&programs, attachment, traffic);

    let error = socket::attach(programs.fd("socket_count"), File::open("/dev/null").expect("open").as_fd());
    let error = error.expect_err("a file has no filter");
    assert!(error.to_string().contains("the descriptor is not a socket"), "{error}");
}

#[test]
fn a_filter_that_its_socket_keeps_is_said_to_stay() {
    needs_kernel!();
    let programs = Programs::load(&["socket_count"]);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let attachment = socket::attach(programs.fd("socket_count"), socket.as_fd()).expect("attach");
    let on: libc::c_int = 1;
    // SAFETY: the value is an int and its size is given.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LOCK_FILTER, (&raw const on).cast(), 4)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    let error = attachment.detach().expect_err("the socket keeps it");
    assert!(matches!(error, AttachError::Detach { errno: libc::EPERM, .. }), "{error}");
    assert!(error.to_string().contains("close the socket"), "{error}");
}

#[test]
fn tracepoint_counts_until_dropped() {
    needs_kernel!();
    let pair = Pair::new().expect("a pair");
    let programs = Programs::load(&["tp_count"]);
    let attachment = tracing::attach(programs.fd("tp_count")).expect("attach");
    assert_eq!(attachment.info().target, Target::Tracepoint { name: "netif_receive_skb".into() });
    flow(&pair);
    assert!(programs.hits(0) >= PACKETS);
    attachment.detach().expect("detach");
    // A process that another test is starting may hold the link a moment longer.
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let seen = programs.hits(0);
        flow(&pair);
        if programs.hits(0) == seen {
            break;
        }
        assert!(Instant::now() < deadline, "still attached");
    }
}

#[test]
fn program_in_a_devmap_runs_on_redirected_frames() {
    needs_kernel!();
    let chain = Chain::new().expect("a chain");
    let programs = Programs::load(&["xdp_count", "xdp_to_device", "devmap_count"]);
    let (inside, outside) = (chain.router_in(), chain.router_out());
    let devices = programs.map("devices");
    let _entry = inside.netns().enter(|| {
        redirect_map::set_device(devices.as_fd(), 0, outside.ifindex(), Some(programs.fd("devmap_count")))
            .expect("set an entry");
        xdp::attach(programs.fd("xdp_to_device"), inside.ifindex(), XdpMode::Native).expect("attach")
    });
    // A veth sends XDP frames only while its peer has a program.
    let _exit = attach_xdp(&programs, chain.server(), XdpMode::Native).expect("attach");
    let sender = udp_socket(chain.client().netns(), chain.client().addr(Family::V4, 0)).expect("a sender");
    send_numbered(&sender, chain.server().addr(Family::V4, 9), 0..PACKETS, 64).expect("send");
    programs.wait_for_hits(1, PACKETS);
    redirect_map::remove(devices.as_fd(), 0).expect("remove the entry");
    redirect_map::remove(devices.as_fd(), 0).expect("removing it twice is fine");
}

#[test]
fn program_in_a_cpumap_runs_on_redirected_frames() {
    needs_kernel!();
    let pair = Pair::new().expect("a pair");
    let programs = Programs::load(&["xdp_to_cpu", "cpumap_count"]);
    let cpus = programs.map("cpus");
    redirect_map::set_cpu(cpus.as_fd(), 0, 64, Some(programs.fd("cpumap_count"))).expect("set an entry");
    let _attachment = pair
        .rx()
        .netns()
        .enter(|| xdp::attach(programs.fd("xdp_to_cpu"), pair.rx().ifindex(), XdpMode::Native))
        .expect("attach");
    // Checksums left to the device do not survive XDP_REDIRECT, so nobody can receive these.
    let sender = udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0)).expect("a sender");
    send_numbered(&sender, pair.rx().addr(Family::V4, 9), 0..PACKETS, 64).expect("send");
    programs.wait_for_hits(1, PACKETS);
}

#[test]
fn redirect_map_errors_are_explained() {
    needs_kernel!();
    let programs = Programs::load(&["xdp_count", "devmap_count"]);
    let netns = Netns::new().expect("a namespace");
    let lo = netns.ifindex("lo").expect("lo");
    let (devices, cpus, hits) = (programs.map("devices"), programs.map("cpus"), programs.map("hits"));
    let set = |map: &OwnedFd, key, ifindex, name| {
        let program = Some(programs.fd(name));
        let result = netns.enter(|| redirect_map::set_device(map.as_fd(), key, ifindex, program));
        result.expect_err("a mistake").to_string()
    };
    let error = set(&hits, 0, lo, "devmap_count");
    assert!(error.contains("the map is not of type devmap"), "{error}");
    let error = set(&devices, 0, lo, "xdp_count");
    assert!(error.contains("the program must be SEC(\"xdp/devmap\")"), "{error}");
    let error = set(&devices, 1, lo, "devmap_count");
    assert!(error.contains("the map is too small for that key"), "{error}");
    let error = set(&devices, 0, 4711, "devmap_count");
    assert!(error.contains("no interface with index 4711"), "{error}");
    let error = redirect_map::set_cpu(cpus.as_fd(), 0, 1 << 20, None).expect_err("too long a queue").to_string();
    assert!(error.contains("16384"), "{error}");
    // an array does not lose its entries
    let error = redirect_map::remove(hits.as_fd(), 0).expect_err("a map of another type");
    assert!(matches!(error, AttachError::Detach { errno: libc::EINVAL, .. }), "{error}");
    assert!(error.to_string().contains("one of a DEVMAP or CPUMAP"), "{error}");
}

// Pins

#[test]
fn pinned_attachment_outlives_the_value_and_reopens() {
    needs_kernel!(Tcx);
    let (pair, bpffs) = (Pair::new().expect("a pair"), Bpffs::new().expect("a bpffs"));
    let path = bpffs.path().join("ingress");
    let programs = Programs::load(&["tc_count"]);
    let mut attachment =
        attach_tc(&programs, "tc_count", pair.rx(), TcxOptions::new(Direction::Ingress)).expect("attach");
    attachment.pin(&path).expect("pin");
    assert_eq!(attachment.pinned_at(), Some(path.as_path()));
    let info = attachment.info().clone();
    drop(attachment);
    flow(&pair);
    assert_eq!(programs.hits(0), PACKETS);

    let reopened = Attachment::from_pinned(&path).expect("open the pin");
    assert_eq!(reopened.info().hook, info.hook);
    assert_eq!(reopened.info().program_id, info.program_id);
    assert_eq!(reopened.info().link_id, info.link_id);
    assert_eq!(reopened.info().target, Target::Interface { ifindex: pair.rx().ifindex(), name: None });
    reopened.detach().expect("detach");
    assert!(!path.exists());
    flow(&pair);
    assert_eq!(programs.hits(0), PACKETS);
}

#[test]
fn every_kind_of_link_reopens_with_its_hook() {
    needs_kernel!(Tcx);
    let (pair, bpffs) = (Pair::new().expect("a pair"), Bpffs::new().expect("a bpffs"));
    let cgroup = TestCgroup::new("pin");
    let programs = Programs::load(&["xdp_count", "tc_count", "nf_count", "cg_sockops", "tp_count"]);
    let nf = NetfilterOptions::new(NetfilterFamily::Ipv6, NetfilterHook::Forward).priority(42);
    let attachments = [
        attach_xdp(&programs, pair.rx(), XdpMode::Auto).map(|(attachment, _)| attachment),
        attach_tc(&programs, "tc_count", pair.rx(), TcxOptions::new(Direction::Egress)),
        pair.rx().netns().enter(|| netfilter::attach(programs.fd("nf_count"), &nf)),
        cgroup::attach_path(programs.fd("cg_sockops"), &cgroup.0, CgroupHook::SockOps),
        tracing::attach(programs.fd("tp_count")),
    ];
    for (number, attachment) in attachments.into_iter().enumerate() {
        let path = bpffs.path().join(format!("link{number}"));
        let mut attachment = attachment.expect("attach");
        attachment.pin(&path).expect("pin");
        let (hook, link) = (attachment.info().hook, attachment.info().link_id);
        drop(attachment);
        let mut reopened = Attachment::from_pinned(&path).expect("open the pin");
        assert_eq!((reopened.info().hook, reopened.info().link_id), (hook, link));
        reopened.unpin().expect("unpin");
        assert_eq!(reopened.pinned_at(), None);
        assert!(!path.exists());
    }
}

#[test]
fn pin_errors_say_what_to_do() {
    needs_kernel!(Tcx);
    let (pair, bpffs) = (Pair::new().expect("a pair"), Bpffs::new().expect("a bpffs"));
    let programs = Programs::load(&["tc_count"]);
    let mut attachment =
        attach_tc(&programs, "tc_count", pair.rx(), TcxOptions::new(Direction::Ingress)).expect("attach");
    let error = attachment.keep().expect_err("a link needs a pin");
    assert!(error.to_string().contains("pin() it instead"), "{error}");
    let mut refused = |path: &Path, hint: &str| {
        let error = attachment.pin(path).expect_err("a bad path").to_string();
        let says = format!("cannot pin tcx ingress on rx0 (ifindex {}) at {}: ", pair.rx().ifindex(), path.display());
        assert!(error.starts_with(&says) && error.contains(hint), "{error}");
    };
    refused(&bpffs.path().join("dotted.name"), "takes no names with a dot");
    refused(&bpffs.path().join("missing/name"), "create the directory first");
    refused(Path::new("/tmp/not_bpffs"), "pin in a BPF file system");
    attachment.pin(bpffs.path().join("pin")).expect("pin");
    let error = attachment.pin(bpffs.path().join("again")).expect_err("pinned already");
    assert!(error.to_string().contains("it is pinned already"), "{error}");

    let error = Attachment::from_pinned(bpffs.path().join("nothing")).expect_err("nothing there");
    assert!(error.to_string().contains("nothing is pinned there"), "{error}");
    let map = bpffs.path().join("map");
    let mut maps = programs.object.maps();
    let hits = maps.find(|map| map.name() == "hits").expect("a map");
    libbpf_rs::MapHandle::try_from(&hits).expect("a handle").pin(&map).expect("pin a map");
    let error = Attachment::from_pinned(&map).expect_err("a map is no link");
    assert!(error.to_string().contains("a map or a program is pinned there"), "{error}");
}
