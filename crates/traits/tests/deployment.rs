//! Deployments on a real interface: what is set up beside the programs, replacing them under traffic, and what is left
//! when something fails. The programs are in `bpf/deployment.bpf.c`.

mod common;

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::UdpSocket,
    ops::Range,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use common::{Lab, area_macros, compile_with, enabled};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use packet_traits::{
    Hint, KeyType, Merge,
    attach::{
        AttachError, Attachment, Direction, Hook, NetfilterFamily, NetfilterHook, NetfilterOptions, Target, XdpMode,
    },
    bind::{BindError, BoundObject},
    deployment::{DeployError, Deployed, Deployment, Filter, FilterUse, Location, Setup, Table, UpOptions},
    registry::{Registry, RegistryError},
    rotate::{RotateError, rotate},
};
use packet_traits_lab::{
    Cgroup, Family, Feature, KernelFeature, Netns, Pair, RECV_TIMEOUT, kernel_has, number_of, send_numbered, skipped,
    udp_socket,
};

const NAME: &str = "edge";

/// Hooks of `struct seen`.
const HOOKS: usize = 6;

/// Which of the hooks of `struct seen` is which.
const AT_XDP: usize = 0;
const AT_PREROUTING: usize = 2;
const AT_INPUT: usize = 3;

/// What one packet met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    by: [u32; HOOKS],
    /// Bits 0 and 1: versions 1 and 2.
    version: u32,
}

/// Whether the kernel runs netfilter programs; without them, the rest is tested alone.
fn has_netfilter() -> bool {
    KernelFeature::NetfilterLinks.is_here()
}

/// Whether the kernel has TCX; without it TC programs always become clsact filters.
fn has_tcx() -> bool {
    KernelFeature::Tcx.is_here()
}

/// What a packet meets that meets every program once.
fn all() -> [u32; HOOKS] {
    let mut all = [1; HOOKS];
    if !has_netfilter() {
        all[AT_PREROUTING..=AT_INPUT].fill(0);
    }
    all
}

/// `deployment.bpf.c`, compiled with some macros.
fn object(macros: &[&str]) -> Vec<u8> {
    let without = if has_netfilter() { &[][..] } else { &["-DWITHOUT_NETFILTER"] };
    let macros = &[macros, without, area_macros()].concat()[..];
    static DONE: Mutex<Option<HashMap<String, Vec<u8>>>> = Mutex::new(None);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bpf/deployment.bpf.c");
    let compiled = done.get_or_insert_default().entry(macros.join(" "));
    compiled.or_insert_with(|| compile_with(packet_traits_lab::clang(), &source, macros)).clone()
}

/// A registry, a link, and a cgroup that the receiver's sockets are in.
struct Host {
    lab: Lab,
    pair: Pair,
    cgroup: Cgroup,
}

impl Host {
    fn new() -> Option<Host> {
        if !enabled() {
            return None;
        }
        let lab = Lab::fitting();
        lab.register_fitting(&[("seq", KeyType::U64, Merge::KeepFirst), ("tenant", KeyType::U32, Merge::Block)]);
        Some(Host { lab, pair: Pair::new().unwrap(), cgroup: Cgroup::new().unwrap() })
    }

    fn options(&self) -> UpOptions {
        let place = |hook| NetfilterOptions::new(NetfilterFamily::Ipv4, hook);
        let mut netfilter = vec![
            ("on_prerouting".to_owned(), place(NetfilterHook::PreRouting)),
            ("on_input".to_owned(), place(NetfilterHook::Input)),
        ];
        if !has_netfilter() {
            netfilter.clear();
        }
        UpOptions {
            interface: Some(self.pair.rx().ifindex()),
            cgroup: Some(self.cgroup.path().to_owned()),
            netfilter,
            replace: true,
            setup: Setup {
                pinned_maps: vec!["seen".to_owned(), "runs".to_owned()],
                kept_maps: vec!["seen".to_owned()],
                filters: vec![Filter { program: "on_filter".to_owned(), usage: FilterUse::Match }],
                ..Setup::default()
            },
            ..UpOptions::default()
        }
    }

    /// TC by a clsact filter, as on kernels without TCX.
    fn clsact(&self) -> UpOptions {
        UpOptions { force_clsact: true, ..self.options() }
    }

    /// Only TC programs, by clsact filters.
    fn only_clsact(&self) -> UpOptions {
        UpOptions {
            interface: Some(self.pair.rx().ifindex()),
            replace: true,
            force_clsact: true,
            ..UpOptions::default()
        }
    }

    fn up(&self, macros: &[&str], options: &UpOptions) -> Result<Deployment, DeployError> {
        let bytes = object(macros);
        self.pair.rx().netns().enter(|| {
            let object = BoundObject::from_bytes(&bytes, NAME, &self.lab.registry)?;
            Deployment::up(NAME, object, &self.lab.registry, options)
        })
    }

    fn location(&self) -> Location {
        Location::from(&self.lab.registry)
    }

    fn list(&self) -> Vec<Deployment> {
        Deployment::list(&self.location()).unwrap()
    }

    fn folder(&self) -> PathBuf {
        self.lab.bpffs().path().join("packet_traits_up/default")
    }

    /// A socket of the receiver's, in the cgroup.
    fn receiver(&self) -> UdpSocket {
        let rx = self.pair.rx();
        self.cgroup.enter(|| udp_socket(rx.netns(), rx.addr(Family::V4, 0)).unwrap())
    }

    fn sender(&self) -> UdpSocket {
        let tx = self.pair.tx();
        udp_socket(tx.netns(), tx.addr(Family::V4, 0)).unwrap()
    }

    /// Sends one packet with this number and waits for it.
    fn exchange(&self, number: u64) {
        let receiver = self.receiver();
        send_numbered(&self.sender(), receiver.local_addr().unwrap(), number..number + 1, 64).unwrap();
        assert_eq!(packet_traits_lab::recv_numbered(&receiver).unwrap(), number);
    }
}

fn read_seen(deployment: &Deployment, number: u64) -> Seen {
    let map = deployment.map("seen").unwrap();
    let raw = map.lookup(&(number as u32).to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
    let (words, _) = raw.as_chunks();
    let word = |i: usize| u32::from_ne_bytes(words[i]);
    Seen { by: std::array::from_fn(word), version: word(HOOKS) }
}

/// How often the XDP program of this version ran.
fn runs(deployment: &Deployment) -> u64 {
    let raw = deployment.map("runs").unwrap().lookup(&[0; 4], MapFlags::ANY).unwrap().unwrap();
    u64::from_ne_bytes(raw.try_into().unwrap())
}

fn links(deployment: &Deployment) -> Vec<(String, u32, u32)> {
    let link = |one: &packet_traits::deployment::Deployed| {
        (one.pin.clone(), one.info.link_id.unwrap_or_default(), one.info.program_id)
    };
    let mut links: Vec<_> = deployment.attached().iter().map(link).collect();
    links.sort_unstable();
    links
}

/// Attaches what is pinned at `path` as the filter of a socket.
fn attach_filter(path: &Path, socket: &UdpSocket) {
    let program = libbpf_rs::Program::fd_from_pinned_path(path).unwrap();
    let fd = program.as_raw_fd();
    // SAFETY: the value is an int and its size is given.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_BPF, (&raw const fd).cast(), 4)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Packets that `traffic` has in flight at a time.
const IN_FLIGHT: u64 = 16;

/// Sends numbered packets from one thread to another until `done`, and returns how many. `burst` hears of each
/// `IN_FLIGHT` of them: before they are sent, and when they have come.
fn traffic(host: &Host, receiver: &UdpSocket, done: &AtomicBool, mut burst: impl FnMut(Burst)) -> u64 {
    let received = AtomicU64::new(0);
    let sender = host.sender();
    let address = receiver.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            while let Ok(length) = receiver.recv(&mut buffer) {
                let number = number_of(&buffer[..length]).unwrap();
                if number == u64::MAX {
                    return;
                }
                assert_eq!(received.fetch_add(1, Ordering::Relaxed), number, "every packet comes, in order");
            }
        });
        let mut sent = 0;
        while !done.load(Ordering::Relaxed) && sent < (1 << 19) - IN_FLIGHT {
            burst(Burst::Sending);
            send_numbered(&sender, address, sent..sent + IN_FLIGHT, 64).unwrap();
            sent += IN_FLIGHT;
            let deadline = Instant::now() + Duration::from_secs(5);
            while received.load(Ordering::Relaxed) < sent {
                assert!(Instant::now() < deadline, "of {sent} packets {} came", received.load(Ordering::Relaxed));
                thread::sleep(Duration::from_micros(20));
            }
            burst(Burst::Received(sent - IN_FLIGHT..sent));
        }
        sender.send_to(&u64::MAX.to_be_bytes(), address).unwrap();
        sent
    })
}

enum Burst {
    Sending,
    Received(Range<u64>),
}

/// What is on the receiver's clsact qdisc: every filter with the id of its program.
fn tc_filters(host: &Host) -> String {
    ["ingress", "egress"].map(|direction| tc(host, &format!("filter show dev rx0 {direction}"))).concat()
}

fn tc(host: &Host, arguments: &str) -> String {
    let output = host.pair.rx().netns().command("tc").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn has_clsact(host: &Host) -> bool {
    tc(host, "qdisc show dev rx0").contains("clsact")
}

fn every_packet_meets_one_version_at_every_hook(mode: XdpMode, force_clsact: bool, replacements: u32) {
    let Some(host) = Host::new() else { return };
    let options = UpOptions { xdp_mode: mode, force_clsact, ..host.options() };
    // The second version has another name for its XDP program: it is the place that counts.
    let versions: [&[&str]; 2] = [&["-DVERSION=1"], &["-DVERSION=2", "-DXDP_NAME=renamed"]];
    // compiled before there is traffic: the compiler may have to wait for other tests
    versions.iter().for_each(|version| drop(object(version)));
    let first = host.up(versions[0], &options).unwrap();
    let filters = tc_filters(&host);
    assert_eq!(filters.contains("on_tc"), force_clsact || !has_tcx(), "{filters}");
    let receiver = host.receiver();
    attach_filter(&first.filters()[0].path, &receiver);

    let done = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let traffic = scope.spawn(|| traffic(&host, &receiver, &done, |_| {}));
        for i in 1..=replacements {
            let now = host.up(versions[i as usize % 2], &options).unwrap();
            assert_eq!(now.attached().len(), first.attached().len());
        }
        done.store(true, Ordering::Relaxed);
        traffic.join().unwrap()
    });

    let last = &host.list()[0];
    let (mut by_version, all) = ([0u64; 4], all());
    for number in 0..sent {
        let seen = read_seen(last, number);
        assert_eq!(seen.by, all, "packet {number} of {sent}");
        by_version[seen.version as usize] += 1;
    }
    assert!(by_version[1] > 0 && by_version[2] > 0, "both versions have met packets: {by_version:?}");
    println!("{sent} packets, {replacements} replacements, by version 1, 2 and both: {:?}", &by_version[1..]);
    let ids = |deployment: &Deployment| links(deployment).into_iter().map(|(_, id, _)| id).collect::<HashSet<_>>();
    assert_eq!(ids(&first), ids(last), "the links are the first ones");
    assert_eq!(tc_filters(&host), filters, "the filter is the first one");

    // a filter that is used would stay
    drop(receiver);
    let down = Deployment::down(NAME, &host.location()).unwrap();
    assert!(down.kept().is_empty(), "{:?}", down.kept());
    host.exchange(0);
    assert!(!host.folder().exists());
}

#[test]
fn every_packet_meets_one_version_at_every_hook_in_native_mode() {
    every_packet_meets_one_version_at_every_hook(XdpMode::Native, false, 100);
}

#[test]
fn every_packet_meets_one_version_at_every_hook_in_generic_mode() {
    every_packet_meets_one_version_at_every_hook(XdpMode::Generic, false, 30);
}

#[test]
fn every_packet_meets_one_version_at_every_hook_with_clsact() {
    every_packet_meets_one_version_at_every_hook(XdpMode::Native, true, 100);
}

/// New secrets under traffic: what is attached stays where it is and goes on counting, and what is read is right or absent.
#[test]
fn secrets_rotate_under_traffic() {
    const ROTATIONS: u32 = 20;
    for force_clsact in [false, true] {
        let Some(host) = Host::new() else { return };
        let options = UpOptions { force_clsact, ..host.options() };
        let first = host.up(&["-DVERSION=1"], &options).unwrap();
        let filters = tc_filters(&host);
        let receiver = host.receiver();
        attach_filter(&first.filters()[0].path, &receiver);
        let place = Registry::options().bpffs(host.lab.bpffs().path());

        let done = AtomicBool::new(false);
        // odd while secrets rotate
        let rotations = AtomicU32::new(0);
        let (undisturbed, heard) = mpsc::channel();
        let (sent, whole) = thread::scope(|scope| {
            let traffic = scope.spawn(|| {
                let mut at = 1;
                traffic(&host, &receiver, &done, |burst| match burst {
                    Burst::Sending => at = rotations.load(Ordering::SeqCst),
                    Burst::Received(numbers) if at % 2 == 0 && rotations.load(Ordering::SeqCst) == at => {
                        let _ = undisturbed.send((at, numbers));
                    }
                    Burst::Received(_) => {}
                })
            });
            let mut whole = Vec::new();
            let mut nonces = vec![host.lab.registry.nonces()];
            for _ in 0..ROTATIONS {
                rotations.fetch_add(1, Ordering::SeqCst);
                let rotation = rotate(&place, false).unwrap();
                let rotated = rotations.fetch_add(1, Ordering::SeqCst) + 1;
                assert_eq!((rotation.deployments, rotation.left), (vec![NAME.to_owned()], Vec::new()));
                assert!(!nonces.contains(&rotation.registry.nonces()));
                nonces.push(rotation.registry.nonces());
                loop {
                    let (at, numbers) = heard.recv_timeout(RECV_TIMEOUT).expect("packets between two rotations");
                    whole.extend(numbers);
                    if at == rotated {
                        break;
                    }
                }
            }
            done.store(true, Ordering::Relaxed);
            (traffic.join().unwrap(), whole)
        });

        let [last] = &host.list()[..] else { panic!("one deployment") };
        let (mut read, all) = (0, all());
        for number in 0..sent {
            let seen = read_seen(last, number);
            assert_eq!(seen.by[AT_XDP], 1, "packet {number} of {sent}");
            assert!(seen.by.iter().zip(all).all(|(seen, all)| *seen <= all), "packet {number}: {:?}", seen.by);
            read += u64::from(seen.by == all);
        }
        println!("{sent} packets, {ROTATIONS} rotations, {read} packets read everywhere");
        // those that were under way while programs were exchanged may be read nowhere
        for number in whole {
            assert_eq!(read_seen(last, number).by, all, "packet {number}, sent and received between two rotations");
        }
        assert_eq!(runs(last), runs(&first), "the maps are the first ones");
        assert!(runs(last) > sent, "{} runs for {sent} packets", runs(last));
        let ids = |deployment: &Deployment| links(deployment).into_iter().map(|(_, id, _)| id).collect::<HashSet<_>>();
        assert_eq!(ids(&first), ids(last), "the links are the first ones");
        assert_eq!(tc_filters(&host), filters, "the filter is the first one");

        // what is up can be replaced as before
        drop(receiver);
        host.up(&["-DVERSION=2", "-DXDP_NAME=renamed"], &options).unwrap();
        host.exchange(0);
        assert_eq!(read_seen(&host.list()[0], 0).version & 2, 2);
        Deployment::down(NAME, &host.location()).unwrap();
        assert!(!host.folder().exists());
    }
}

/// A tracepoint's program, one that is only loaded on demand, variables, constants, and maps that the kernel calls by the same name.
#[test]
fn all_that_an_object_has_goes_on_when_secrets_rotate() {
    let Some(host) = Host::new() else { return };
    let place = Registry::options().bpffs(host.lab.bpffs().path());
    let bytes = common::compile("rotation");
    let maps = ["packets_seen_at_xdp", "packets_seen_at_tc", "packets_seen_at_receive"].map(str::to_owned);
    let setup = Setup {
        variables: vec![("step".to_owned(), 3u32.to_ne_bytes().to_vec())],
        pinned_maps: maps.to_vec(),
        ..Setup::default()
    };
    // generic mode comes behind the tracepoint
    let (interface, xdp_mode) = (Some(host.pair.rx().ifindex()), XdpMode::Native);
    let options = UpOptions { interface, xdp_mode, setup, ..UpOptions::default() };
    host.pair.rx().netns().enter(|| {
        let mut object = BoundObject::from_bytes(&bytes, NAME, &host.lab.registry).unwrap();
        object.open_object_mut().progs_mut().for_each(|mut program| program.set_autoload(true));
        Deployment::up(NAME, object, &host.lab.registry, &options).unwrap();
    });
    let counts = || {
        let [deployment] = &host.list()[..] else { panic!("one deployment") };
        assert_eq!(deployment.attached().len(), 3);
        maps.clone().map(|map| {
            let raw = deployment.map(&map).unwrap().lookup(&[0; 4], MapFlags::ANY).unwrap().unwrap();
            u64::from_ne_bytes(raw.try_into().unwrap())
        })
    };
    host.exchange(0);
    let mut before = counts();
    for _ in 0..3 {
        rotate(&place, false).unwrap();
        host.exchange(0);
        let [xdp, tc, traced] = counts();
        // from the start it would be 1006
        assert!(xdp > before[0] && tc > before[1] && traced > before[2], "{xdp}, {tc}, {traced} after {before:?}");
        before = [xdp, tc, traced];
    }
    Deployment::down(NAME, &host.location()).unwrap();
}

/// A filter in use that the new version has no program for stays as it is.
#[test]
fn a_kept_filter_does_not_stand_in_the_way_of_new_secrets() {
    let Some(host) = Host::new() else { return };
    let place = Registry::options().bpffs(host.lab.bpffs().path());
    let up = host.up(&["-DVERSION=1"], &host.options()).unwrap();
    let receiver = host.receiver();
    attach_filter(&up.filters()[0].path, &receiver);
    let now = host.up(&["-DONLY_TC"], &host.only_clsact()).unwrap();
    assert_eq!(now.kept(), ["on_filter"]);
    assert_eq!(rotate(&place, false).unwrap().deployments, [NAME]);
    let [deployment] = &host.list()[..] else { panic!("one deployment") };
    assert_eq!(deployment.filters().iter().map(|filter| filter.program_id).collect::<Vec<_>>(), [0]);
    assert!(deployment.unreadable().is_empty(), "{:?}", deployment.unreadable());
    drop(receiver);
    Deployment::down(NAME, &host.location()).unwrap();
}

/// What was attached to an interface that is gone is left as it is, and does not stand in the way of the rest.
#[test]
fn a_dead_deployment_does_not_stand_in_the_way_of_new_secrets() {
    if !kernel_has(KernelFeature::Tcx) {
        return;
    }
    let Some(host) = Host::new() else { return };
    let place = Registry::options().bpffs(host.lab.bpffs().path());
    let options = UpOptions { interface: Some(host.pair.rx().ifindex()), ..UpOptions::default() };
    host.up(&["-DONLY_TC"], &options).unwrap();
    host.pair.rx().netns().ip("link del rx0").unwrap();
    let rotation = rotate(&place, false).unwrap();
    assert!(rotation.deployments.is_empty() && rotation.left.is_empty(), "{rotation:?}");
    assert_eq!(Deployment::down(NAME, &host.location()).unwrap().attached().len(), 1);
}

/// Other loaders' programs are named, and a deployment that cannot be loaded again prevents the rotation.
#[test]
fn what_stands_in_the_way_of_new_secrets_is_said() {
    let Some(host) = Host::new() else { return };
    let place = Registry::options().bpffs(host.lab.bpffs().path());
    let up = host.up(&["-DVERSION=1"], &host.options()).unwrap();
    let nonces = host.lab.registry.nonces();
    let bytes = object(&["-DVERSION=1"]);
    let bound = || BoundObject::from_bytes(&bytes, "other", &host.lab.registry).unwrap();
    let late = bound();
    let mut other = bound();
    common::leave_out_netfilter(other.open_object_mut());
    let other = other.load().unwrap();

    let error = rotate(&place, false).unwrap_err();
    assert!(matches!(&error, RotateError::InUse { programs, .. } if programs.len() >= 3), "{error}");
    assert!(error.to_string().contains("on_xdp"), "{error}");
    assert_eq!(place.open().unwrap().nonces(), nonces);
    let rotation = rotate(&place, true).unwrap();
    assert!(rotation.left.iter().any(|program| program.name == "on_xdp"), "{:?}", rotation.left);
    assert_ne!(place.open().unwrap().nonces(), nonces);
    drop(other);

    // bound before, and loaded after: it would have the secrets of before
    assert!(matches!(late.load(), Err(BindError::Changed { .. })));
    // the registry that was opened before binds to the new ones
    drop(bound().load().unwrap());

    let source = host.folder().join(NAME).join("source");
    fs::remove_file(&source).unwrap();
    let (before, nonces) = (links(&up).len(), place.open().unwrap().nonces());
    let running = links(&host.list()[0]);
    let error = rotate(&place, false).unwrap_err();
    assert!(matches!(&error.hints()[..], [Hint::Replace { deployment, .. }] if deployment == NAME), "{error:?}");
    assert!(error.to_string().ends_with("nothing was changed"), "{error}");
    assert_eq!((place.open().unwrap().nonces(), links(&host.list()[0])), (nonces, running));
    assert_eq!(links(&host.list()[0]).len(), before);
    host.up(&["-DVERSION=1"], &host.options()).unwrap();
    rotate(&place, false).unwrap();
    host.exchange(3);
    assert_eq!(read_seen(&host.list()[0], 3).by[AT_XDP], 1);
    Deployment::down(NAME, &host.location()).unwrap();
    // nothing is up
    let rotation = rotate(&place, false).unwrap();
    assert!(rotation.deployments.is_empty() && rotation.left.is_empty());
}

#[test]
fn a_deployment_that_has_lost_a_program_prevents_new_secrets() {
    let Some(host) = Host::new() else { return };
    let place = Registry::options().bpffs(host.lab.bpffs().path());
    let nonces = host.lab.registry.nonces();
    host.up(&["-DVERSION=1"], &host.clsact()).unwrap();
    tc(&host, "qdisc del dev rx0 clsact");
    let error = rotate(&place, false).unwrap_err();
    assert!(matches!(error, RotateError::Deployment(DeployError::Rebind { .. })), "{error}");
    assert!(error.to_string().contains("its pin on_tc cannot be read"), "{error}");
    assert_eq!(place.open().unwrap().nonces(), nonces);

    let error = rotate(&place.name("nowhere".parse().unwrap()), false).unwrap_err();
    assert!(matches!(error, RotateError::Registry(RegistryError::NotFound { .. })), "{error}");
}

#[test]
fn programs_come_and_go_with_a_new_version() {
    if !kernel_has(KernelFeature::NetfilterLinks) {
        return;
    }
    let Some(host) = Host::new() else { return };
    let mut options = host.options();
    let old = host.up(&["-DVERSION=1"], &options).unwrap();
    host.exchange(0);
    assert_eq!(read_seen(&old, 0).by[AT_INPUT], 1);

    options.netfilter.pop();
    options.netfilter[0].1 = options.netfilter[0].1.priority(7);
    let new = host.up(&["-DVERSION=2", "-DWITHOUT_INPUT"], &options).unwrap();
    host.exchange(1);
    let seen = read_seen(&new, 1);
    assert_eq!((seen.by[AT_INPUT], seen.version), (0, 2), "{seen:?}");
    assert_eq!(seen.by[..3], [1; 3], "{seen:?}");
    let priority = new.attached().iter().find_map(|one| match one.info.hook {
        Hook::Netfilter { priority, .. } => Some(priority),
        _ => None,
    });
    assert_eq!(priority, Some(7), "the old place has nothing any more");

    // back again, and the old places can be taken at once
    host.up(&["-DVERSION=1"], &host.options()).unwrap();
    host.exchange(2);
    assert_eq!(read_seen(&host.list()[0], 2).by[..5], all()[..5]);
}

#[test]
fn a_replaced_version_is_gone_and_counts_from_zero() {
    let Some(host) = Host::new() else { return };
    let old = host.up(&["-DVERSION=1"], &host.options()).unwrap();
    host.exchange(0);
    assert!(runs(&old) > 0);
    let programs: Vec<u32> = links(&old).iter().map(|(_, _, program)| *program).collect();

    let new = host.up(&["-DVERSION=2"], &host.options()).unwrap();
    assert_eq!(runs(&new), 0);
    assert_eq!(read_seen(&new, 0).by[AT_XDP], 1, "a map that is kept is");
    for program in programs {
        let deadline = Instant::now() + Duration::from_secs(5);
        while libbpf_rs::Program::fd_from_id(program).is_ok() {
            assert!(Instant::now() < deadline, "program {program} of the old version is still loaded");
            thread::sleep(Duration::from_millis(10));
        }
    }
    let since = |deployment: &Deployment| deployment.attached()[0].since.unwrap();
    assert!(since(&new) > since(&old));
    let names: Vec<_> = fs::read_dir(host.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [NAME]);
}

#[test]
fn what_was_read_is_of_one_version_while_another_takes_its_place() {
    let Some(host) = Host::new() else { return };
    // each version has a map of its own, and says so
    let version = |map: &str| {
        let mut options = host.options();
        options.setup.pinned_maps = vec![map.to_owned()];
        options.setup.kept_maps.clear();
        options.setup.notes = map.into();
        options
    };
    let versions = ["seen", "runs"].map(version);
    host.up(&["-DVERSION=1"], &versions[0]).unwrap();
    let done = AtomicBool::new(false);
    let reads = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) {
                for deployment in host.list().iter().filter(|deployment| !deployment.unfinished()) {
                    let noted = std::str::from_utf8(deployment.notes()).unwrap();
                    assert_eq!(deployment.maps().collect::<Vec<_>>(), [noted]);
                    reads += 1;
                }
            }
            reads
        });
        for number in 1..=20 {
            host.up(&["-DVERSION=1"], &versions[number % 2]).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    assert!(reads > 0);
}

#[test]
fn without_asking_nothing_is_replaced() {
    let Some(host) = Host::new() else { return };
    let old = host.up(&["-DVERSION=1"], &host.options()).unwrap();
    let error = host.up(&["-DVERSION=2"], &UpOptions { replace: false, ..host.options() }).unwrap_err();
    assert!(matches!(error, DeployError::Exists { .. }), "{error}");
    assert!(matches!(&error.hints()[..], [Hint::TakeDown { .. }, Hint::Replace { .. }]), "{error:?}");
    assert_eq!(links(&host.list()[0]), links(&old));
}

#[test]
fn a_replacement_that_fails_to_attach_leaves_the_old_version() {
    if !kernel_has(KernelFeature::NetfilterLinks) {
        return;
    }
    let Some(host) = Host::new() else { return };
    let mut options = host.options();
    let old = host.up(&["-DVERSION=1"], &options).unwrap();
    // The new version wants one more place, which is taken.
    let taken = NetfilterOptions::new(NetfilterFamily::Ipv6, NetfilterHook::Forward).priority(5);
    let other = common::program(&common::load("deployment_other", &host.lab.registry), "other_netfilter");
    let _holder =
        host.pair.rx().netns().enter(|| packet_traits::attach::netfilter::attach(other.as_fd(), &taken)).unwrap();
    options.netfilter.push(("on_input".to_owned(), taken));
    let error = host.up(&["-DVERSION=2"], &options).unwrap_err();
    assert!(matches!(error, DeployError::Attach(AttachError::Busy { .. })), "{error}");
    unchanged(&host, &old);
}

#[test]
fn a_replacement_that_fails_half_way_is_taken_back() {
    for force_clsact in [false, true] {
        let Some(host) = Host::new() else { return };
        let common = UpOptions { force_clsact, ..host.options() };
        host.pair.tx().netns().ip("link set tx0 mtu 8000").unwrap();
        // The driver takes a program that cannot do fragments only while the sender's MTU is small (`veth_xdp_set`): so the old one is
        // fine, and the new one is refused when all others have taken over.
        let old = host.up(&["-DVERSION=1", "-DXDP_SECTION=\"xdp.frags\""], &common).unwrap();
        let error = host.up(&["-DVERSION=2"], &common).unwrap_err();
        assert!(matches!(error, DeployError::Attach(AttachError::Refused { .. })), "{error}");
        assert!(error.to_string().contains("in place of"), "{error}");
        unchanged(&host, &old);
    }
}

/// The old version is there as it was, and does its work.
fn unchanged(host: &Host, old: &Deployment) {
    let now = &host.list()[..];
    let [now] = now else { panic!("{now:?}") };
    assert_eq!(links(now), links(old));
    host.exchange(9);
    let seen = read_seen(now, 9);
    assert_eq!((&seen.by[..5], seen.version), (&all()[..5], 1));
}

#[test]
fn the_mode_of_xdp_stays() {
    let Some(host) = Host::new() else { return };
    let generic = UpOptions { xdp_mode: XdpMode::Generic, ..host.options() };
    let mode = |deployment: &Deployment| deployment.attached().iter().find_map(|one| one.xdp_mode);
    assert_eq!(mode(&host.up(&["-DVERSION=1"], &generic).unwrap()), Some(XdpMode::Generic));
    let auto = host.up(&["-DVERSION=2"], &host.options()).unwrap();
    assert_eq!(mode(&auto), Some(XdpMode::Generic), "auto takes what is there");
    assert_eq!(mode(&host.list()[0]), Some(XdpMode::Generic));
    let native = UpOptions { xdp_mode: XdpMode::Native, ..host.options() };
    let error = host.up(&["-DVERSION=1"], &native).unwrap_err();
    assert!(matches!(error, DeployError::ModeChange { found: XdpMode::Generic, .. }), "{error}");
    assert_eq!(links(&host.list()[0]), links(&auto));
}

#[test]
fn a_version_on_another_interface_takes_over_from_one_whose_interface_is_gone() {
    for force_clsact in [false, true] {
        let Some(host) = Host::new() else { return };
        let common = UpOptions { force_clsact, ..host.options() };
        host.up(&["-DVERSION=1"], &common).unwrap();
        let rx = host.pair.rx().netns();
        rx.ip("link del rx0").unwrap();
        rx.ip("link add new0 type veth peer new1").unwrap();
        rx.ip("link set new0 up").unwrap();
        let interface = rx.enter(|| {
            // SAFETY: the name is NUL-terminated.
            unsafe { libc::if_nametoindex(c"new0".as_ptr()) }
        });
        let new = host.up(&["-DVERSION=2"], &UpOptions { interface: Some(interface), ..common.clone() }).unwrap();
        let on_new =
            |one: &&Deployed| matches!(one.info.target, Target::Interface { ifindex, .. } if ifindex == interface);
        assert_eq!(new.attached().iter().filter(on_new).count(), 2, "{new:?}");
        assert_eq!(host.list().len(), 1);
        Deployment::down(NAME, &host.location()).unwrap();
        assert!(!host.folder().exists());
    }
}

#[test]
fn a_version_in_another_namespace_takes_over_there() {
    for force_clsact in [false, true] {
        let Some(host) = Host::new() else { return };
        let common = UpOptions { force_clsact, ..host.options() };
        host.up(&["-DVERSION=1"], &common).unwrap();
        let tx = host.pair.tx();
        let bytes = object(&["-DVERSION=2"]);
        let options = UpOptions { interface: Some(tx.ifindex()), ..common.clone() };
        tx.netns().enter(|| {
            let object = BoundObject::from_bytes(&bytes, NAME, &host.lab.registry).unwrap();
            Deployment::up(NAME, object, &host.lab.registry, &options).unwrap()
        });
        host.exchange(1);
        assert_eq!(read_seen(&host.list()[0], 1).by, [0; HOOKS], "nothing is left at the receiver");
        // The netfilter places of the first namespace are free again.
        host.up(&["-DVERSION=1"], &common).unwrap();
        host.exchange(2);
        assert_eq!(read_seen(&host.list()[0], 2).by[..5], all()[..5]);
    }
}

#[test]
fn what_a_killed_replacement_left_is_made_whole() {
    for force_clsact in [false, true] {
        let Some(host) = Host::new() else { return };
        let common = UpOptions { force_clsact, ..host.options() };
        let old = host.up(&["-DVERSION=1"], &common).unwrap();
        let folder = host.folder().join(NAME);
        // As a process leaves it that is killed after the first link has its new program: the links are in both folders.
        let other = common::program(&common::load("deployment_other_xdp", &host.lab.registry), "other_xdp");
        fs::create_dir_all(host.folder().join("_new/links")).unwrap();
        for entry in fs::read_dir(folder.join("links")).unwrap() {
            let link = libbpf_rs::Link::open(entry.as_ref().unwrap().path()).unwrap();
            pin(&link.as_fd(), &host.folder().join("_new/links").join(entry.unwrap().file_name()));
        }
        let mut xdp = Attachment::from_pinned(folder.join("links/on_xdp")).unwrap();
        xdp.replace(other.as_fd()).unwrap();
        drop(xdp);
        host.exchange(1);
        assert_eq!(read_seen(&old, 1).by, [0; HOOKS], "the version is half there");
        assert_eq!(host.list().len(), 2);

        // any other command in the registry mends it
        let object = object(&["-DVERSION=2", "-DXDP_SECTION=\"?xdp\""]);
        let error = host.pair.rx().netns().enter(|| {
            let object = BoundObject::from_bytes(&object, "other", &host.lab.registry).unwrap();
            Deployment::up("other", object, &host.lab.registry, &UpOptions::default()).unwrap_err()
        });
        assert!(matches!(error, DeployError::Where { .. }), "{error}");
        unchanged(&host, &old);
        assert!(!host.folder().join("_new").exists());
    }
}

fn pin(object: &impl AsFd, path: &Path) {
    let c_path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: the path is NUL-terminated and outlives the call.
    let result = unsafe { libbpf_sys::bpf_obj_pin(object.as_fd().as_raw_fd(), c_path.as_ptr()) };
    assert_eq!(result, 0, "pinning {}", path.display());
}

#[test]
fn clsact_filters_are_shown_and_go_with_their_qdisc() {
    let Some(host) = Host::new() else { return };
    let up = host.up(&["-DVERSION=1", "-DTC_EGRESS=TC_ACT_UNSPEC"], &host.clsact()).unwrap();
    let found = |deployment: &Deployment| {
        let hooks = deployment.attached().iter().filter_map(|one| match (one.info.hook, &one.info.target) {
            (Hook::Clsact(direction), Target::Interface { ifindex, .. }) => {
                Some((one.program.clone(), direction, *ifindex, one.info.program_id))
            }
            _ => None,
        });
        hooks.collect::<Vec<_>>()
    };
    let rx = host.pair.rx().ifindex();
    let [(ingress, _, _, id), (egress, ..)] = &found(&up)[..] else { panic!("{up:?}") };
    assert_eq!((ingress.as_str(), egress.as_str()), ("on_tc", "on_tc_egress"));
    assert_eq!(found(&up)[0], ("on_tc".to_owned(), Direction::Ingress, rx, *id));
    let own: Vec<_> = host.list().iter().flat_map(&found).collect();
    assert_eq!(own, found(&up), "another process shows the same");
    assert!(host.list()[0].unreadable().is_empty(), "{:?}", host.list()[0].unreadable());
    host.exchange(1);
    assert_eq!(read_seen(&up, 1).by[..5], all()[..5]);

    Deployment::down(NAME, &host.location()).unwrap();
    assert!(!has_clsact(&host), "{}", tc_filters(&host));
    assert!(!host.folder().exists());
    host.exchange(2);
}

#[test]
fn clsact_filters_run_in_the_order_of_the_source() {
    let Some(host) = Host::new() else { return };
    // the first one's verdict ends the way through the filters
    let passes = ["-DVERSION=1", "-DONLY_TC", "-DTC_VERDICT=TC_ACT_OK", "-DTC_SECOND=TC_ACT_SHOT"];
    let drops = ["-DVERSION=1", "-DONLY_TC", "-DTC_VERDICT=TC_ACT_UNSPEC", "-DTC_SECOND=TC_ACT_SHOT"];
    let receiver = host.receiver();
    receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    for (macros, arrives) in [(passes, true), (drops, false), (passes, true)] {
        host.up(&macros, &host.only_clsact()).unwrap();
        send_numbered(&host.sender(), receiver.local_addr().unwrap(), 1..2, 64).unwrap();
        assert_eq!(packet_traits_lab::recv_numbered(&receiver).is_ok(), arrives, "{macros:?}");
    }
}

#[test]
fn other_filters_and_qdiscs_stay() {
    let Some(host) = Host::new() else { return };
    let only_tc = ["-DVERSION=1", "-DONLY_TC"];
    let other = "filter add dev rx0 ingress protocol ip prio 7 u32 match u32 0 0";
    tc(&host, "qdisc add dev rx0 clsact");
    for with_filter in [false, true] {
        if with_filter {
            tc(&host, other);
        }
        let before = tc_filters(&host);
        host.up(&only_tc, &host.only_clsact()).unwrap();
        assert!(tc_filters(&host).contains("on_tc"));
        Deployment::down(NAME, &host.location()).unwrap();
        assert!(has_clsact(&host), "an empty qdisc that was there stays");
        assert_eq!(tc_filters(&host), before);
    }

    // a qdisc that a deployment made stays for a filter that came later
    tc(&host, "qdisc del dev rx0 clsact");
    host.up(&only_tc, &host.only_clsact()).unwrap();
    tc(&host, other);
    Deployment::down(NAME, &host.location()).unwrap();
    assert!(has_clsact(&host) && tc_filters(&host).contains("u32"));
    assert!(!tc_filters(&host).contains("on_tc"));
}

#[test]
fn the_last_deployment_removes_the_qdisc_that_the_first_made() {
    let Some(host) = Host::new() else { return };
    let bytes = object(&["-DVERSION=1", "-DONLY_TC"]);
    for (first_down, then) in [("a", "b"), ("b", "a")] {
        for name in ["a", "b"] {
            host.pair.rx().netns().enter(|| {
                let object = BoundObject::from_bytes(&bytes, name, &host.lab.registry).unwrap();
                Deployment::up(name, object, &host.lab.registry, &host.only_clsact()).unwrap();
            });
        }
        Deployment::down(first_down, &host.location()).unwrap();
        assert!(tc_filters(&host).contains("on_tc"));
        Deployment::down(then, &host.location()).unwrap();
        assert!(!has_clsact(&host));
    }
}

#[test]
fn an_up_that_fails_at_a_clsact_filter_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    let both = ["-DVERSION=1", "-DTC_EGRESS=TC_ACT_UNSPEC"];
    tc(&host, "qdisc add dev rx0 clsact");
    // the last priority there is belongs to a filter of another kind
    tc(&host, "filter add dev rx0 egress protocol ip prio 65535 u32 match u32 0 0");
    let before = tc_filters(&host);
    let error = host.up(&both, &host.clsact()).unwrap_err();
    assert!(matches!(error, DeployError::Attach(AttachError::Refused { .. })), "{error}");
    assert!(error.to_string().contains("clsact egress on rx0"), "{error}");
    assert_eq!(tc_filters(&host), before);
    assert!(host.list().is_empty(), "{:?}", host.list());

    tc(&host, "qdisc del dev rx0 clsact");
    tc(&host, "qdisc add dev rx0 ingress");
    let error = host.up(&both, &host.clsact()).unwrap_err();
    assert!(error.to_string().contains("qdisc of kind ingress"), "{error}");
    assert!(tc(&host, "qdisc show dev rx0").contains("ingress"));
    assert!(host.list().is_empty(), "{:?}", host.list());
}

#[test]
fn what_a_killed_up_left_of_clsact_is_cleared() {
    let Some(host) = Host::new() else { return };
    let only_tc = ["-DVERSION=1", "-DONLY_TC"];
    for (by_up, name) in [(true, NAME), (false, NAME), (false, "_new")] {
        host.up(&only_tc, &host.only_clsact()).unwrap();
        // as a process leaves it that is killed before the deployment has its name
        fs::rename(host.folder().join(NAME), host.folder().join("_new")).unwrap();
        let left = tc_filters(&host);
        if by_up {
            host.up(&only_tc, &host.only_clsact()).unwrap();
            assert!(!tc_filters(&host).is_empty() && tc_filters(&host) != left);
            Deployment::down(NAME, &host.location()).unwrap();
        } else {
            // by its name, or as what is unfinished
            let error = Deployment::down("other", &host.location()).unwrap_err();
            assert!(matches!(error, DeployError::NotUp { .. }), "{error}");
            Deployment::down(name, &host.location()).unwrap();
        }
        assert!(!has_clsact(&host), "{}", tc_filters(&host));
    }

    // killed before the filter was added
    host.up(&only_tc, &host.only_clsact()).unwrap();
    tc(&host, "qdisc del dev rx0 clsact");
    fs::rename(host.folder().join(NAME), host.folder().join("_new")).unwrap();
    host.up(&only_tc, &host.only_clsact()).unwrap();
    Deployment::down(NAME, &host.location()).unwrap();
    assert!(!has_clsact(&host) && !host.folder().exists());
}

#[test]
fn a_deleted_clsact_filter_is_said_and_added_again() {
    let Some(host) = Host::new() else { return };
    let old = host.up(&["-DVERSION=1"], &host.clsact()).unwrap();
    tc(&host, "qdisc del dev rx0 clsact");
    let shown = &host.list()[0];
    let [unreadable] = shown.unreadable() else { panic!("{shown:?}") };
    assert_eq!(unreadable.pin, "on_tc");
    assert!(unreadable.why.contains("was deleted"), "{unreadable:?}");
    assert_eq!(shown.attached().len(), old.attached().len() - 1);

    host.up(&["-DVERSION=2"], &host.clsact()).unwrap();
    assert_eq!(host.list()[0].attached().len(), old.attached().len());
    host.exchange(1);
    assert_eq!(read_seen(&host.list()[0], 1).by[..5], all()[..5]);

    // Another qdisc of the same kind is not ours.
    tc(&host, "qdisc del dev rx0 clsact");
    tc(&host, "qdisc add dev rx0 clsact");
    Deployment::down(NAME, &host.location()).unwrap();
    assert!(has_clsact(&host));
}

#[test]
fn a_version_keeps_the_kind_of_tc_hook_that_it_finds() {
    if !has_tcx() {
        return;
    }
    let Some(host) = Host::new() else { return };
    let is_clsact =
        |deployment: &Deployment| deployment.attached().iter().any(|one| matches!(one.info.hook, Hook::Clsact(_)));
    for first in [host.options(), host.clsact()] {
        assert_eq!(is_clsact(&host.up(&["-DVERSION=1"], &first).unwrap()), first.force_clsact);
        let other = UpOptions { force_clsact: !first.force_clsact, ..first.clone() };
        assert_eq!(is_clsact(&host.up(&["-DVERSION=2"], &other).unwrap()), first.force_clsact);
        host.exchange(1);
        let seen = read_seen(&host.list()[0], 1);
        assert_eq!((&seen.by[..5], seen.version), (&all()[..5], 2));
        Deployment::down(NAME, &host.location()).unwrap();
    }
}

#[test]
fn a_clsact_filter_that_nobody_can_reach_does_nothing_after_down() {
    let Some(host) = Host::new() else { return };
    let bytes = object(&["-DVERSION=1", "-DONLY_TC", "-DTC_VERDICT=TC_ACT_SHOT"]);
    // A namespace that only a socket holds, which receives what it sends to itself.
    let netns = Netns::new().unwrap();
    let socket = netns.enter(|| {
        // SAFETY: the name is NUL-terminated.
        let interface = Some(unsafe { libc::if_nametoindex(c"lo".as_ptr()) });
        let options = UpOptions { interface, ..host.only_clsact() };
        let object = BoundObject::from_bytes(&bytes, NAME, &host.lab.registry).unwrap();
        Deployment::up(NAME, object, &host.lab.registry, &options).unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap()
    });
    drop(netns);
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let arrives = || {
        socket.send_to(b"hello", socket.local_addr().unwrap()).unwrap();
        socket.recv(&mut [0; 16]).is_ok()
    };
    assert!(!arrives(), "the program drops all packets");
    assert_eq!(host.list()[0].attached().len(), 1, "whether the filter is there cannot be told");
    Deployment::down(NAME, &host.location()).unwrap();
    assert!(arrives());
}

#[test]
fn constants_tables_and_cpus_are_filled_in_before_the_first_packet() {
    let Some(host) = Host::new() else { return };
    let mut options = host.options();
    let interface = host.pair.rx().ifindex();
    let number = |value: u32| value.to_ne_bytes().to_vec();
    options.setup.variables = vec![("interfaces".to_owned(), [number(interface), number(77)].concat())];
    options.setup.tables = vec![Table {
        map: "table".to_owned(),
        entries: vec![(number(0), 77u64.to_ne_bytes().to_vec()), (number(1), 78u64.to_ne_bytes().to_vec())],
    }];
    options.setup.cpu_maps = vec!["cpus".to_owned()];
    options.setup.pinned_maps.extend(["table".to_owned(), "cpus".to_owned()]);
    options.setup.notes = b"{\"rules\": 3}".to_vec();
    host.up(&["-DVERSION=1"], &options).unwrap();
    let up = &host.list()[0];
    assert_eq!(up.notes(), b"{\"rules\": 3}");
    assert_eq!(up.cgroup(), Some(host.cgroup.path()));
    assert_eq!(up.maps().collect::<Vec<_>>(), ["cpus", "runs", "seen", "table"]);
    assert!(up.unreadable().is_empty(), "{:?}", up.unreadable());
    // Only if constants and table agree does the program send packets by way of the CPU map, which does not keep that
    // a checksum is still to be made.
    host.pair.tx().netns().set_feature("tx0", Feature::TxChecksum, false).unwrap();
    host.exchange(3);
    assert_eq!(read_seen(up, 3).by[AT_XDP], 0, "the packet went by way of the CPU map");
    assert!(runs(up) > 0);

    let mut wrong = host.options();
    wrong.setup.variables = vec![("interfaces".to_owned(), vec![0; 4])];
    let error = host.up(&["-DVERSION=1"], &wrong).unwrap_err();
    assert!(matches!(error, DeployError::Size { expected: 8, found: 4, .. }), "{error}");
    for setup in [
        Setup { variables: vec![("nosuch".to_owned(), Vec::new())], ..Setup::default() },
        Setup { pinned_maps: vec!["nosuch".to_owned()], ..Setup::default() },
        Setup { device_bound: vec!["nosuch".to_owned()], ..Setup::default() },
        Setup { filters: vec![Filter { program: "nosuch".to_owned(), usage: FilterUse::Match }], ..Setup::default() },
    ] {
        let mut options = host.options();
        let filters = options.setup.filters.clone();
        options.setup = Setup { filters: [filters, setup.filters.clone()].concat(), ..setup };
        let error = host.up(&["-DVERSION=1"], &options).unwrap_err();
        assert!(matches!(&error, DeployError::Missing { name, .. } if name == "nosuch"), "{error}");
    }
    assert_eq!(host.list().len(), 1);
}

#[test]
fn what_has_no_hook_is_refused_and_nothing_is_up() {
    let Some(host) = Host::new() else { return };
    let mut options = host.options();
    options.setup.filters.clear();
    let error = host.up(&["-DVERSION=1"], &options).unwrap_err();
    assert!(matches!(error, DeployError::Section { .. }), "{error}");
    assert!(error.to_string().contains("on_filter (section socket)"), "{error}");
    let devmap = ["-DVERSION=1", "-DXDP_SECTION=\"xdp/devmap\""];
    let error = host.up(&devmap, &host.options()).unwrap_err();
    assert!(matches!(error, DeployError::Section { .. }), "{error}");
    assert!(error.to_string().contains("from a DEVMAP or CPUMAP entry"), "{error}");

    let bytes = object(&["-DONLY_TC"]);
    let mut none = BoundObject::from_bytes(&bytes, NAME, &host.lab.registry).unwrap();
    none.open_object_mut().progs_mut().for_each(|mut program| program.set_autoload(false));
    let error = Deployment::up(NAME, none, &host.lab.registry, &UpOptions::default()).unwrap_err();
    assert!(matches!(&error, DeployError::NoProgram(name) if name == NAME), "{error}");
    assert!(host.list().is_empty() && !host.folder().exists());
}

#[test]
fn a_table_with_more_entries_than_its_map_is_refused() {
    let Some(host) = Host::new() else { return };
    let mut options = host.options();
    let entries = (0u32..17).map(|key| (key.to_ne_bytes().to_vec(), u64::from(key).to_ne_bytes().to_vec()));
    options.setup.tables = vec![Table { map: "table".to_owned(), entries: entries.collect() }];
    let error = host.up(&["-DVERSION=1"], &options).unwrap_err();
    assert!(matches!(&error, DeployError::Map { action: "fill", map, .. } if map == "table"), "{error}");
    assert!(host.list().is_empty());
}

#[test]
fn a_shared_map_goes_on_over_deployments() {
    let Some(host) = Host::new() else { return };
    let mut options = host.options();
    options.setup.shared_maps = vec!["ids".to_owned()];
    let total = || -> u64 {
        let map = MapHandle::from_pinned_path(host.lab.bpffs().path().join("packet_traits_shared/ids")).unwrap();
        let values = map.lookup_percpu(&[0; 4], MapFlags::ANY).unwrap().unwrap();
        values.iter().map(|value| u64::from_ne_bytes(value[..8].try_into().unwrap())).sum()
    };
    for round in 1..=2 {
        host.up(&["-DVERSION=1"], &options).unwrap();
        host.exchange(0);
        assert_eq!(total(), 3 * round - 2);
        host.up(&["-DVERSION=2"], &options).unwrap();
        host.exchange(0);
        host.exchange(0);
        assert_eq!(total(), 3 * round);
        Deployment::down(NAME, &host.location()).unwrap();
    }

    let path = host.lab.bpffs().path().join("packet_traits_shared/ids");
    fs::remove_file(&path).unwrap();
    let new = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as u64,
        ..Default::default()
    };
    MapHandle::create(MapType::Array, Some("ids"), 4, 4, 1, &new).unwrap().pin(&path).unwrap();
    let error = host.up(&["-DVERSION=1"], &options).unwrap_err();
    assert!(matches!(error, DeployError::SharedMap { .. }), "{error}");
    assert!(host.list().is_empty());
}

#[test]
fn a_device_bound_program_reads_hardware_metadata_and_can_be_replaced() {
    if !kernel_has(KernelFeature::XdpHints) {
        return;
    }
    let Some(host) = Host::new() else { return };
    let mut options = host.options();
    options.setup.device_bound = vec!["on_xdp".to_owned()];
    let bound = ["-DVERSION=1", "-DDEVICE_BOUND"];
    for _ in 0..2 {
        let up = host.up(&bound, &options).unwrap();
        host.exchange(1);
        assert!(runs(&up) > 0);
    }
    let last = host.up(&["-DVERSION=2"], &host.options()).unwrap();
    host.exchange(2);
    assert_eq!(read_seen(&last, 2).version, 2, "an unbound program takes over, too");
    host.up(&bound, &options).unwrap();
    // this thread is in another network namespace than the interface, for which the program is loaded
    rotate(&Registry::options().bpffs(host.lab.bpffs().path()), false).unwrap();
    host.exchange(3);
    let (seen, all) = (read_seen(&host.list()[0], 3).by, all());
    assert_eq!(seen[..HOOKS - 1], all[..HOOKS - 1], "at every hook but the filter, which no socket has");

    let generic = UpOptions { xdp_mode: XdpMode::Generic, ..options.clone() };
    let error = host.up(&bound, &generic).unwrap_err();
    assert!(matches!(error, DeployError::GenericDeviceBound { .. }), "{error}");
    // Unless it is said to be bound, the kernel does not take it.
    let error = host.up(&bound, &host.options()).unwrap_err();
    assert!(matches!(error, DeployError::Bind(_)), "{error}");
    assert_eq!(host.list()[0].attached().len(), last.attached().len());
}

#[test]
fn a_filter_that_is_used_runs_nothing_until_its_deployment_is_up_again() {
    let Some(host) = Host::new() else { return };
    let mut options = host.options();
    for (usage, name) in [(FilterUse::Match, "matches nothing"), (FilterUse::Steer, "leaves the choice")] {
        options.setup.filters[0].usage = usage;
        let up = host.up(&["-DVERSION=1"], &options).unwrap();
        let path = &up.filters()[0].path;
        assert_eq!(*path, host.folder().join(NAME).join("filters/on_filter"));
        let receiver = host.receiver();
        receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        attach_filter(path, &receiver);
        let delivered = |number: u64| {
            send_numbered(&host.sender(), receiver.local_addr().unwrap(), number..number + 1, 64).unwrap();
            packet_traits_lab::recv_numbered(&receiver).is_ok()
        };
        assert!(delivered(1), "the filter takes all packets");
        assert_eq!(Deployment::down(NAME, &host.location()).unwrap().kept(), ["on_filter"]);
        assert!(host.list()[0].is_down() && path.exists());
        // A socket takes as many bytes as the filter says: 0 for what matches nothing, all for the largest number.
        assert_eq!(delivered(2), usage == FilterUse::Steer, "{name}");
        // up again, the socket's filter is that of the new version
        host.up(&["-DVERSION=2"], &options).unwrap();
        assert!(delivered(3), "the filter takes all packets again");
        drop(receiver);
        assert!(Deployment::down(NAME, &host.location()).unwrap().kept().is_empty());
    }
    assert!(!host.folder().exists());
}

#[test]
fn a_pinned_filter_is_one_for_iptables() {
    let Some(host) = Host::new() else { return };
    if !Command::new("iptables").arg("--version").output().is_ok_and(|output| output.status.success()) {
        skipped("there is no iptables");
        return;
    }
    let up = host.up(&["-DVERSION=1"], &host.options()).unwrap();
    let rule = format!("-m bpf --object-pinned {}", up.filters()[0].path.display());
    let iptables = |arguments: &str| {
        let output = host.pair.rx().netns().command("iptables").args(arguments.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    iptables(&format!("-I INPUT {rule}"));
    let hits = || {
        let listed = iptables("-nvxL INPUT");
        let rule = listed.lines().find(|line| line.contains("match bpf")).unwrap_or_else(|| panic!("{listed}"));
        rule.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    host.exchange(1);
    assert_eq!(hits(), 1);
    let new = host.up(&["-DVERSION=2"], &host.options()).unwrap();
    host.exchange(2);
    assert_eq!(hits(), 2);
    assert_eq!((read_seen(&new, 2).by[5], read_seen(&new, 2).version), (1, 2), "the rule runs the new version");
    assert_eq!(Deployment::down(NAME, &host.location()).unwrap().kept().len(), 1);
    host.exchange(3);
    assert_eq!(hits(), 2, "nothing matches when it is down");
}

#[test]
fn netfilter_links_need_a_dispatcher() {
    if !kernel_has(KernelFeature::NetfilterLinks) {
        return;
    }
    let Some(host) = Host::new() else { return };
    let programs = common::load("deployment_other", &host.lab.registry);
    let [first, second] = ["other_netfilter", "another_netfilter"].map(|name| common::program(&programs, name));
    host.pair.rx().netns().enter(|| {
        let place = NetfilterOptions::new(NetfilterFamily::Ipv4, NetfilterHook::Input);
        let mut link = packet_traits::attach::netfilter::attach(first.as_fd(), &place).unwrap();
        let error = link.replace(second.as_fd()).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EOPNOTSUPP), "the kernel cannot update such a link: {error}");
        let error = packet_traits::attach::netfilter::attach(second.as_fd(), &place).unwrap_err();
        assert!(matches!(error, AttachError::Busy { .. }), "nor are two in one place: {error}");
    });
}
