//! An upgrade: `traits sockets attach` of another build replaces the socket programs while servers run. They keep what they
//! asked for, and no packet comes without its traits.

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    ops::Range,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use common::{
    sockets::{Assigned, Sent, Setup, SocketLab},
    tcp,
};
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};
use packet_traits::{
    Hint,
    bind::BoundObject,
    deployment::{Deployment, Location, UpOptions},
    registry::Registry,
    rotate::rotate,
    socket_programs::{AttachOptions, Attached, SocketPrograms, SocketProgramsError},
};
use packet_traits_lab::{Cgroup, Family, send_numbered};
use packet_traits_socket::{Keys, Receiver, ReceiverOptions, Ring, SocketTraits, TcpTraits, Traits};

const TENANT: u32 = 77;

/// Where the socket programs are pinned.
fn pins(lab: &SocketLab) -> PathBuf {
    lab.lab.registry.dir().join("sockets")
}

/// Has what is attached look as if another build had attached it.
fn make_foreign(lab: &SocketLab) {
    let programs = pins(lab).join("programs");
    let builds = fs::read_dir(&programs).unwrap().flatten().filter(|entry| entry.file_type().unwrap().is_dir());
    let builds: Vec<_> = builds.collect();
    assert_eq!(builds.len(), 1, "{builds:?}");
    fs::rename(builds[0].path(), programs.join("build-0123456789abcdef")).unwrap();
    assert!(!status(lab).current);
}

fn status(lab: &SocketLab) -> SocketPrograms {
    SocketPrograms::status(&lab.lab.registry).unwrap().unwrap()
}

fn program_ids(lab: &SocketLab) -> Vec<u32> {
    status(lab).programs.iter().map(|program| program.id).collect()
}

fn attach(lab: &SocketLab, cgroup: &Cgroup) -> Result<Attached, SocketProgramsError> {
    let options = AttachOptions { cgroup: Some(cgroup.path().to_owned()), ..AttachOptions::default() };
    SocketPrograms::attach(&lab.lab.registry, &options)
}

fn text(traits: &Traits, keys: &Keys) -> String {
    traits.iter(keys).map(|(key, value)| format!("{}={value} ", key.name())).collect()
}

#[track_caller]
fn assert_is(traits: &Traits, keys: &Keys, set: Assigned) {
    assert_eq!(text(traits, keys), format!("tenant={} flow_id={} ", set.tenant, set.flow_id));
}

/// Receives the datagrams of these numbers, which are on the way.
fn receive(receiver: &Receiver<UdpSocket>, numbers: Range<u64>) {
    for number in numbers {
        let traits = receiver.recv(&mut [0; 64]).unwrap().traits;
        assert_is(&traits, receiver.keys(), Assigned::datagram(number));
    }
}

#[test]
fn servers_keep_what_they_asked_for() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        keep_what_they_asked_for(&SocketLab::new(), family, &ReceiverOptions::new().without_ring());
        let lab = SocketLab::new();
        let ring = Ring::open(Registry::options().bpffs(lab.lab.bpffs().path()).slots_path()).unwrap();
        keep_what_they_asked_for(&lab, family, &ReceiverOptions::new().ring(&ring));
    }
}

fn keep_what_they_asked_for(lab: &SocketLab, family: Family, options: &ReceiverOptions) {
    let receiver = options.build(lab.udp(family)).unwrap();
    let keys = receiver.keys();
    receiver.socket().set_trait(&keys.typed("tenant").unwrap(), TENANT).unwrap();
    let client = lab.udp_client(family);
    send_numbered(&client, lab.addr(family), 0..10, 64).unwrap();
    receive(&receiver, 0..5);

    let listener = lab.listener(family);
    listener.save_syn_traits(true).unwrap();
    listener.receive_traits(true).unwrap();
    let mut old = lab.tcp_client(family);
    let (mut old_accepted, old_peer) = tcp::accept(&listener);
    let waiting = lab.tcp_client(family);

    make_foreign(lab);
    let mut before = status(lab);
    let attached = attach(lab, &lab.cgroup).unwrap();
    assert_eq!(attached, Attached { cgroup: lab.cgroup.id().unwrap(), already: true, updated: true });
    let after = status(lab);
    assert!(after.current && !after.unfinished);
    assert!(before.programs.iter().zip(&after.programs).all(|(old, new)| old.name == new.name && old.id != new.id));
    (before.current, before.programs) = (true, after.programs.clone());
    assert_eq!(after, before, "only the programs are others");
    assert!(!attach(lab, &lab.cgroup).unwrap().updated);

    // what waits in the queue was received before
    receive(&receiver, 5..10);
    send_numbered(&client, lab.addr(family), 10..20, 64).unwrap();
    receive(&receiver, 10..20);
    let peer = client.local_addr().unwrap();
    let mut answer = [0; 64];
    answer[..8].copy_from_slice(&99u64.to_be_bytes());
    receiver.socket().send_to(&answer, peer).unwrap();
    assert_eq!(lab.sent().last(), Some(&Sent { number: 99, tenant: Some(TENANT), flow_id: None }));

    assert_is(&old_accepted.syn_traits(keys).unwrap(), keys, Assigned::syn(old_peer));
    exchange(&mut old, &mut old_accepted, keys, 7);
    let (accepted, peer) = tcp::accept(&listener);
    assert_eq!(peer, waiting.local_addr().unwrap());
    assert_is(&accepted.syn_traits(keys).unwrap(), keys, Assigned::syn(peer));
    let mut new = lab.tcp_client(family);
    let (mut accepted, peer) = tcp::accept(&listener);
    assert_is(&accepted.syn_traits(keys).unwrap(), keys, Assigned::syn(peer));
    exchange(&mut new, &mut accepted, keys, 8);
    drop(receiver);
    assert_eq!(lab.sockets_used(), 0, "the new programs see that a socket is closed");
}

/// Sends a number, whose traits then are the newest.
fn exchange(client: &mut TcpStream, accepted: &mut TcpStream, keys: &Keys, number: u64) {
    client.write_all(&number.to_be_bytes()).unwrap();
    accepted.read_exact(&mut [0; 8]).unwrap();
    let set = Assigned::data(client.local_addr().unwrap(), number);
    assert_is(&accepted.last_traits(keys).unwrap(), keys, set);
}

#[test]
fn no_datagram_comes_without_traits_meanwhile() {
    const UPDATES: usize = 5;
    if !common::area_enabled() {
        return;
    }
    let lab = SocketLab::new();
    let other = Cgroup::new().unwrap();
    attach(&lab, &other).unwrap();
    let receiver = ReceiverOptions::new().without_ring().build(lab.udp(Family::V4)).unwrap();
    let client = lab.udp_client(Family::V4);
    let stop = AtomicBool::new(false);
    let received = thread::scope(|scope| {
        let exchanges = scope.spawn(|| {
            // one at a time, so that none is overtaken in its ring
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                send_numbered(&client, lab.addr(Family::V4), number..number + 1, 64).unwrap();
                receive(&receiver, number..number + 1);
                number += 1;
            }
            number
        });
        for _ in 0..UPDATES {
            make_foreign(&lab);
            let before = program_ids(&lab);
            assert!(attach(&lab, &other).unwrap().updated, "it is for all cgroups, whichever is named");
            assert_ne!(program_ids(&lab), before);
        }
        stop.store(true, Ordering::Relaxed);
        exchanges.join().unwrap()
    });
    assert!(received > UPDATES as u64, "{received} datagrams are too few to say anything");
}

/// With new secrets for all that is up, among it the program that gives packets their traits, servers keep what they asked for.
#[test]
fn servers_keep_what_they_asked_for_when_secrets_rotate() {
    if !common::area_enabled() {
        return;
    }
    let mut lab = SocketLab::with(&Setup { xdp: None, ..Setup::default() });
    let bytes = common::compile("sockets");
    let mut object = BoundObject::from_bytes(&bytes, "assign", &lab.lab.registry).unwrap();
    for mut program in object.open_object_mut().progs_mut().filter(|program| program.name() != "assign") {
        program.set_autoload(false);
    }
    let options = UpOptions { interface: Some(lab.pair.rx().ifindex()), ..UpOptions::default() };
    lab.pair.rx().netns().enter(|| Deployment::up("assign", object, &lab.lab.registry, &options)).unwrap();

    let receiver = ReceiverOptions::new().without_ring().build(lab.udp(Family::V4)).unwrap();
    let keys = receiver.keys();
    receiver.socket().set_trait(&keys.typed("tenant").unwrap(), TENANT).unwrap();
    let client = lab.udp_client(Family::V4);
    send_numbered(&client, lab.addr(Family::V4), 0..10, 64).unwrap();
    receive(&receiver, 0..5);
    let listener = lab.listener(Family::V4);
    listener.save_syn_traits(true).unwrap();
    let waiting = lab.tcp_client(Family::V4);

    let before = program_ids(&lab);
    let rotation = rotate(&Registry::options().bpffs(lab.lab.bpffs().path()), true).unwrap();
    assert_eq!(rotation.deployments, ["assign"]);
    assert_eq!(rotation.cgroups.iter().map(|cgroup| cgroup.id).collect::<Vec<_>>(), [lab.cgroup.id().unwrap()]);
    assert!(rotation.left.iter().any(|program| program.name == "report_sent"), "{:?}", rotation.left);
    assert!(program_ids(&lab).iter().all(|id| !before.contains(id)));
    lab.reload();

    receive(&receiver, 5..10);
    send_numbered(&client, lab.addr(Family::V4), 10..20, 64).unwrap();
    receive(&receiver, 10..20);
    let mut answer = [0; 64];
    answer[..8].copy_from_slice(&99u64.to_be_bytes());
    receiver.socket().send_to(&answer, client.local_addr().unwrap()).unwrap();
    assert_eq!(lab.sent().last(), Some(&Sent { number: 99, tenant: Some(TENANT), flow_id: None }));
    let (accepted, peer) = tcp::accept(&listener);
    assert_eq!(peer, waiting.local_addr().unwrap());
    assert_is(&accepted.syn_traits(keys).unwrap(), keys, Assigned::syn(peer));
    assert!(status(&lab).current && !status(&lab).unfinished);
    Deployment::down("assign", &Location::from(&lab.lab.registry)).unwrap();
}

#[test]
fn what_another_version_keeps_is_not_taken_over() {
    let lab = SocketLab::with(&Setup { xdp: None, ..Setup::default() });
    make_foreign(&lab);
    let before = program_ids(&lab);
    // the same with 0 for the version, as before there were versions
    let slots = pins(&lab).join("slots");
    let old = MapHandle::from_pinned_path(&slots).unwrap();
    let last = old.max_entries() - 1;
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        map_flags: libbpf_sys::BPF_F_MMAPABLE,
        ..Default::default()
    };
    let mut versionless =
        MapHandle::create(MapType::Array, Some("pt_slots"), 4, old.value_size(), old.max_entries(), &options).unwrap();
    let mut value = old.lookup(&last.to_ne_bytes(), MapFlags::ANY).unwrap().unwrap();
    value[12..16].fill(0);
    versionless.update(&last.to_ne_bytes(), &value, MapFlags::ANY).unwrap();
    fs::remove_file(&slots).unwrap();
    versionless.pin(&slots).unwrap();

    let error = attach(&lab, &lab.cgroup).unwrap_err();
    assert!(matches!(error, SocketProgramsError::OtherVersion { .. }), "{error}");
    assert!(matches!(error.hints()[..], [Hint::DetachSockets { cgroup: None, .. }]), "{error:?}");
    assert_eq!(program_ids(&lab), before);
    assert!(!status(&lab).unfinished);
}
