//! What sockets keep of packets, and keys that come later and have the numbers of keys that have gone: what was kept is none of
//! theirs.

mod common;

use std::{
    io::{Read, Write},
    net::UdpSocket,
    ops::Range,
};

use common::{
    enabled,
    sockets::{Assigned, SOCKET_KEYS, Sent, SocketLab},
    spec, tcp,
};
use packet_traits::{KeyType, Merge, registry::Registry};
use packet_traits_lab::{Family, send_numbered};
use packet_traits_socket::{Keys, Receiver, ReceiverOptions, Ring, SocketTraits, TcpTraits, Traits};

const FAMILY: Family = Family::V4;

/// Has another key take a key's number: one of the same name if `same_name`, else `later`.
fn replace(registry: &Registry, key: &str, same_name: bool) {
    let (_, key_type, merge) = SOCKET_KEYS.iter().find(|(name, ..)| *name == key).unwrap();
    let gone = registry.unregister(&common::name(key), true).unwrap().key;
    let later = if same_name { key } else { "later" };
    for _ in 0..64 {
        let found = registry.register(&spec(later, *key_type, *merge)).unwrap().key;
        if found.number() == gone.number() {
            return;
        }
        registry.unregister(found.name(), true).unwrap();
    }
    panic!("nothing gets the number of {key} again");
}

/// The traits of `later` and of the other key.
fn traits(traits: &Traits, keys: &Keys) -> (Option<u32>, Option<u64>) {
    assert!(traits.is_found());
    (traits.get(&keys.typed("later").unwrap()), traits.get(&keys.typed("flow_id").unwrap()))
}

#[test]
fn what_a_connection_kept_is_no_value_of_a_later_key() {
    if !enabled() {
        return;
    }
    let lab = SocketLab::new();
    let listener = lab.listener(FAMILY);
    listener.save_syn_traits(true).unwrap();
    listener.receive_traits(true).unwrap();
    let mut client = lab.tcp_client(FAMILY);
    let (mut accepted, from) = tcp::accept(&listener);
    client.write_all(&9u64.to_be_bytes()).unwrap();
    accepted.read_exact(&mut [0; 8]).unwrap();
    let keys = Keys::of(&accepted).unwrap();
    accepted.set_trait(&keys.typed("tenant").unwrap(), 77u32).unwrap();
    accepted.set_trait(&keys.typed("flow_id").unwrap(), 78u64).unwrap();

    replace(&lab.lab.registry, "tenant", false);
    let keys = Keys::of(&accepted).unwrap();
    let (syn, data) = (Assigned::syn(from), Assigned::data(from, 9));
    let later = keys.get("later").unwrap();
    let values = [accepted.syn_value(later), accepted.last_value(later), accepted.own_value(later)];
    assert_eq!(values.map(Result::unwrap), [None, None, None]);
    let flow_id = keys.typed::<u64>("flow_id").unwrap();
    let values = [accepted.syn_trait(&flow_id), accepted.last_trait(&flow_id), accepted.own_trait(&flow_id)];
    assert_eq!(values.map(Result::unwrap), [Some(syn.flow_id), Some(data.flow_id), Some(78)]);
    for (kept, flow_id) in [
        (accepted.syn_traits(&keys).unwrap(), syn.flow_id),
        (accepted.last_traits(&keys).unwrap(), data.flow_id),
        (accepted.own_traits(&keys).unwrap(), 78),
    ] {
        assert_eq!(traits(&kept, &keys), (None, Some(flow_id)));
    }

    // another one's new value does not bring it back, and its own counts
    accepted.set_trait(&keys.typed("flow_id").unwrap(), 79u64).unwrap();
    assert_eq!(traits(&accepted.own_traits(&keys).unwrap(), &keys), (None, Some(79)));
    accepted.set_trait(&keys.typed("later").unwrap(), 5u32).unwrap();
    assert_eq!(traits(&accepted.own_traits(&keys).unwrap(), &keys), (Some(5), Some(79)));
}

/// A receiver of the lab's socket, which reads the slots as memory or by system calls.
fn receiver(lab: &SocketLab, socket: &UdpSocket, by_ring: bool) -> Receiver<UdpSocket> {
    let ring = Ring::open(Registry::options().bpffs(lab.lab.bpffs().path()).slots_path()).unwrap();
    let options = ReceiverOptions::new();
    let options = if by_ring { options.ring(&ring) } else { options.without_ring() };
    options.build(socket.try_clone().unwrap()).unwrap()
}

#[test]
fn what_waiting_datagrams_brought_is_no_value_of_a_later_key() {
    if !enabled() {
        return;
    }
    for by_ring in [true, false] {
        let lab = SocketLab::new();
        let (client, socket) = (lab.udp_client(FAMILY), lab.udp(FAMILY));
        let send = |numbers: Range<u64>| send_numbered(&client, lab.addr(FAMILY), numbers, 64).unwrap();
        let before = receiver(&lab, &socket, by_ring);
        send(0..4);
        replace(&lab.lab.registry, "tenant", false);
        let mut after = receiver(&lab, &socket, by_ring);
        let keys = after.keys().clone();
        let found = after.recv(&mut [0; 64]).unwrap().traits;
        assert_eq!(traits(&found, &keys), (None, Some(0)));
        let batch = after.recv_batch().unwrap();
        assert_eq!(batch.len(), 3);
        for (datagram, number) in batch.iter().zip(1..) {
            assert_eq!(traits(&datagram.traits(), &keys), (None, Some(number)));
        }
        // who looked the keys up before still knows the other one
        send(7..8);
        let found = before.recv(&mut [0; 64]).unwrap().traits;
        assert_eq!(found.get(&before.keys().typed("flow_id").unwrap()), Some(7u64));
    }
}

#[test]
fn a_key_that_only_comes_leaves_readers_of_the_ring_what_they_had() {
    if !enabled() {
        return;
    }
    let lab = SocketLab::new();
    let (client, socket) = (lab.udp_client(FAMILY), lab.udp(FAMILY));
    let receiver = receiver(&lab, &socket, true);
    for number in 0..6 {
        if number % 2 == 1 {
            let more = spec(&format!("more{number}"), KeyType::Flag, Merge::Block);
            lab.lab.registry.register(&more).unwrap();
        }
        send_numbered(&client, lab.addr(FAMILY), number..number + 1, 64).unwrap();
        let found = receiver.recv(&mut [0; 64]).unwrap().traits;
        let expected = Assigned::datagram(number);
        assert_eq!(found.get(&receiver.keys().typed("tenant").unwrap()), Some(expected.tenant));
        assert_eq!(found.get(&receiver.keys().typed("flow_id").unwrap()), Some(expected.flow_id));
    }
}

#[test]
fn what_a_socket_says_of_what_it_sends_is_no_value_of_a_later_key() {
    if !enabled() {
        return;
    }
    let mut lab = SocketLab::new();
    let (client, socket) = (lab.udp_client(FAMILY), lab.udp(FAMILY));
    let keys = Keys::of(&socket).unwrap();
    socket.set_trait(&keys.typed("tenant").unwrap(), 77u32).unwrap();
    socket.set_trait(&keys.typed("flow_id").unwrap(), 78u64).unwrap();
    let to = client.local_addr().unwrap();
    send_numbered(&socket, to, 1..2, 64).unwrap();
    assert_eq!(lab.sent(), [Sent { number: 1, tenant: Some(77), flow_id: Some(78) }]);

    replace(&lab.lab.registry, "tenant", true);
    lab.reload();
    send_numbered(&socket, to, 2..3, 64).unwrap();
    assert_eq!(lab.sent(), [Sent { number: 2, tenant: None, flow_id: Some(78) }]);
    let keys = Keys::of(&socket).unwrap();
    socket.set_trait(&keys.typed("tenant").unwrap(), 79u32).unwrap();
    send_numbered(&socket, to, 3..4, 64).unwrap();
    assert_eq!(lab.sent(), [Sent { number: 3, tenant: Some(79), flow_id: Some(78) }]);
}
