//! Where packets get their ids by default: where they come in first, and not by generic XDP where that need not be.

mod common;

use std::{net::Ipv4Addr, thread, time::Duration};

use common::{Home, enabled, in_namespaces, points, port, start, watch};
use packet_traits::attach::{XdpMode, xdp};
use packet_traits_lab::{
    Containers, Family, Netns, Overlay, Pair, VxlanOptions, recv_numbered, send_numbered, udp_socket,
};
use packet_traits_trace::{Namespace, Outcome, Packet, Point, Standby, Step, Tracer};

const PORT: u16 = 7;

/// Sends datagrams from one container to the other.
fn send(containers: &Containers, count: u64) {
    let [from, to] = containers.ends();
    let receiver = udp_socket(to.netns(), to.addr(Family::V4, PORT)).unwrap();
    let sender = udp_socket(from.netns(), from.addr(Family::V4, 0)).unwrap();
    send_numbered(&sender, receiver.local_addr().unwrap(), 0..count, 64).unwrap();
    (0..count).for_each(|number| assert_eq!(recv_numbered(&receiver).unwrap(), number));
}

fn mode(netns: &Netns, name: &str) -> Option<XdpMode> {
    let interfaces = Namespace::find(netns.path().to_str().unwrap()).unwrap().interfaces().unwrap();
    let index = interfaces.into_iter().find(|one| one.name == name).unwrap().index;
    netns.enter(|| xdp::attached(index)).map(|(_, mode)| mode)
}

/// Notes about interfaces, and not about what the kernel lacks.
fn notes(tracer: &Tracer<'_>) -> Vec<String> {
    let mut notes = tracer.notes().to_vec();
    notes.retain(|note| (note.contains("XDP") || note.contains("get no id")) && !note.contains("bulk TCP"));
    notes
}

fn to_port(packets: &[Packet]) -> Vec<&Packet> {
    packets.iter().filter(|packet| port(packet) == Some(PORT)).collect()
}

#[test]
fn what_containers_send_each_other_gets_its_ids_at_the_ports_of_their_bridge() {
    if !enabled() {
        return;
    }
    let (containers, home) = (Containers::new().unwrap(), Home::new());
    let mut tracer = start(&home.registry, &in_namespaces(&[containers.host()]));
    assert_eq!(notes(&tracer), [""; 0]);
    let costs: Vec<_> = tracer.notes().iter().filter(|note| note.contains("bulk TCP")).collect();
    assert!(costs.len() == 1 && costs[0].starts_with("port2, port3: ") && costs[0].contains("`--mode generic`"));
    let modes = ["br0", "port2", "port3"].map(|name| mode(containers.host(), name));
    assert_eq!(modes, [None, Some(XdpMode::Native), Some(XdpMode::Native)]);
    let seen = watch(&mut tracer, || send(&containers, 20));
    let packets = to_port(&seen.packets);
    assert_eq!(packets.len(), 20);
    for packet in packets {
        assert_eq!((points(packet)[0], packet.steps[0].device()), (Point::Xdp, "port2"), "{packet:?}");
        let ids = packet.steps.iter().filter(|step| step.point == Point::Xdp).count();
        assert_eq!((ids, packet.outcome), (1, Outcome::Delivered), "{packet:?}");
        assert!(packet.steps.iter().map(Step::device).any(|device| device == "port3"), "{packet:?}");
    }
}

#[test]
fn an_interface_that_is_asked_for_gets_generic_xdp_if_there_is_no_other_way_and_it_is_said() {
    if !enabled() {
        return;
    }
    let (containers, home) = (Containers::new().unwrap(), Home::new());
    let mut options = in_namespaces(&[containers.host()]);
    options.devices = vec!["br0".to_owned()];
    let tracer = start(&home.registry, &options);
    assert_eq!(["br0", "port2"].map(|name| mode(containers.host(), name)), [Some(XdpMode::Generic), None]);
    let said = notes(&tracer);
    assert!(said.iter().any(|note| note.starts_with("br0: ") && note.contains("generic XDP")), "{said:?}");
    drop(tracer);
    // in any mode a port goes before its bridge
    options.devices = vec!["br0".to_owned(), "port3".to_owned()];
    options.xdp_mode = XdpMode::Generic;
    let tracer = start(&home.registry, &options);
    let modes = ["br0", "port2", "port3"].map(|name| mode(containers.host(), name));
    assert_eq!(modes, [None, None, Some(XdpMode::Generic)]);
    assert_eq!(notes(&tracer), [""; 0]);
}

#[test]
fn what_stands_on_a_traced_interface_needs_no_program_of_its_own() {
    if !enabled() {
        return;
    }
    let overlay = Overlay::over(Pair::new().unwrap(), &VxlanOptions::new(Family::V4)).unwrap();
    let home = Home::new();
    let netns = overlay.rx().netns();
    netns.ip("link add mac0 link rx0 type macvlan\nlink set mac0 up").unwrap();
    let mut tracer = start(&home.registry, &in_namespaces(&[netns]));
    let modes = ["rx0", "vx1", "mac0"].map(|name| mode(netns, name));
    assert_eq!((modes, notes(&tracer)), ([Some(XdpMode::Native), None, None], Vec::new()));
    let socket = udp_socket(netns, overlay.rx().addr(Family::V4, PORT)).unwrap();
    let sender = udp_socket(overlay.tx().netns(), overlay.tx().addr(Family::V4, 0)).unwrap();
    let seen = watch(&mut tracer, || {
        send_numbered(&sender, overlay.rx().addr(Family::V4, PORT), 0..20, 64).unwrap();
        (0..20).for_each(|_| assert!(recv_numbered(&socket).unwrap() < 20));
    });
    assert_eq!(to_port(&seen.packets).len(), 20);
}

/// As containers are given one.
#[test]
fn what_stands_on_a_traced_interface_of_another_namespace_needs_none_either() {
    if !enabled() {
        return;
    }
    let (pair, container, home) = (Pair::new().unwrap(), Netns::new().unwrap(), Home::new());
    let (tx, host) = (pair.tx(), pair.rx().netns());
    host.ip(&format!(
        "link add mac0 link rx0 address 02:00:00:00:00:77 type macvlan mode bridge\nlink set mac0 netns {}",
        container.path().display()
    ))
    .unwrap();
    container.ip("link set mac0 up\naddr add 10.77.0.77/24 dev mac0").unwrap();
    tx.netns().ip("addr add 10.77.0.76/24 dev tx0\nneigh add 10.77.0.77 lladdr 02:00:00:00:00:77 dev tx0").unwrap();
    let receiver = udp_socket(&container, (Ipv4Addr::new(10, 77, 0, 77), PORT).into()).unwrap();
    let sender = udp_socket(tx.netns(), (Ipv4Addr::new(10, 77, 0, 76), 0).into()).unwrap();
    let to = receiver.local_addr().unwrap();
    let deliver = || {
        send_numbered(&sender, to, 0..20, 64).unwrap();
        (0..20).for_each(|number| assert_eq!(recv_numbered(&receiver).unwrap(), number));
    };
    // with the one that it stands on, and without
    for (traced, entry) in [(vec![host, &container], "rx0"), (vec![&container], "mac0")] {
        let mut tracer = start(&home.registry, &in_namespaces(&traced));
        let modes = [mode(host, "rx0"), mode(&container, "mac0")];
        let expected = if entry == "rx0" { [Some(XdpMode::Native), None] } else { [None, Some(XdpMode::Generic)] };
        assert_eq!(modes, expected);
        let seen = watch(&mut tracer, deliver);
        let packets = to_port(&seen.packets);
        assert_eq!(packets.len(), 20, "{packets:?}");
        for packet in packets {
            assert_eq!((packet.outcome, packet.steps[0].device()), (Outcome::Delivered, entry), "{packet:?}");
        }
    }
}

/// Reads and adapts until that holds.
fn soon<'r>(tracer: &mut Tracer<'r>, holds: impl Fn(&Tracer<'r>) -> bool) -> bool {
    let reader = tracer.reader(|_| {}).unwrap();
    (0..500).any(|_| {
        tracer.adapt().unwrap();
        reader.read().unwrap();
        thread::sleep(Duration::from_millis(10));
        holds(tracer)
    })
}

#[test]
fn a_tracer_that_stands_by_has_no_xdp_program_until_a_packet_matches() {
    if !enabled() {
        return;
    }
    let (containers, home) = (Containers::new().unwrap(), Home::new());
    let mut options = in_namespaces(&[containers.host()]);
    options.standby = Standby::FromStart;
    options.conditions = vec!["dport == 7".parse().unwrap()];
    let mut tracer = start(&home.registry, &options);
    let has_xdp = || ["port2", "port3"].map(|name| mode(containers.host(), name).is_some());
    assert_eq!(has_xdp(), [false; 2]);
    let [from, _] = containers.ends();
    let sender = udp_socket(from.netns(), from.addr(Family::V4, 0)).unwrap();
    send_numbered(&sender, (Ipv4Addr::new(10, 80, 0, 1), 9).into(), 0..1, 64).unwrap();
    assert!(
        !soon(&mut tracer, |tracer| tracer.is_armed() || tracer.counters().unwrap().too_early > 0)
            && has_xdp() == [false; 2]
    );
    send(&containers, 1);
    assert!(soon(&mut tracer, Tracer::is_armed));
    assert_eq!((has_xdp(), tracer.counters().unwrap().too_early), ([true; 2], 1));
    let seen = watch(&mut tracer, || send(&containers, 20));
    assert_eq!(to_port(&seen.packets).len(), 20);
}
