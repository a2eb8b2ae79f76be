//! Each value is the one that was set last: one by one and all at once, of every size and in every layout.

use std::net::UdpSocket;

use packet_traits::Value;
use packet_traits_lab::{Family, udp_socket};
use packet_traits_socket::{
    Keys, SocketTraits, Traits, UdpTraits,
    abi::{SOCKET_TRAITS, SOL_TRAITS},
};

use crate::{
    ABSENT, HAS_MARKED, NOTHING, Sender, assert_seen,
    common::{
        self, TEST_PORT,
        record::{self, HAS_ALL, HAS_SEQ},
        sizes::{LAYOUTS, Sizes, VALUES},
        sockopt,
    },
    datagram, full, values,
};

#[test]
fn changed_and_deleted_values_count_at_once() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    let (_sink, socket) = (sender.sink(Family::V4), sender.udp(Family::V4));
    let mut expected = Vec::new();
    let mut send = |socket: &UdpSocket, seen| {
        let number = expected.len() as u64;
        socket.send(&datagram(number)).unwrap();
        expected.push((number, seen));
    };
    let key = |name| sender.keys.get(name).unwrap();
    send(&socket, ABSENT);
    socket.set_traits(&sender.traits(1)).unwrap();
    send(&socket, full(1));
    socket.set_traits(&sender.traits(2)).unwrap();
    send(&socket, full(2));
    socket.set_trait(&sender.keys.typed("seq").unwrap(), 77u64).unwrap();
    let mut changed = record::Traits { seq: 77, ..values(2) };
    send(&socket, (HAS_ALL, changed));
    socket.set_value(key("tiny"), &Value::U8(9)).unwrap();
    changed.tiny = 9;
    send(&socket, (HAS_ALL, changed));
    socket.delete_trait(key("seq")).unwrap();
    changed.seq = 0;
    send(&socket, (HAS_ALL & !HAS_SEQ, changed));
    socket.delete_trait(key("marked")).unwrap();
    send(&socket, (HAS_ALL & !HAS_SEQ & !HAS_MARKED, changed));
    socket.set_value(key("marked"), &Value::Flag).unwrap();
    send(&socket, (HAS_ALL & !HAS_SEQ, changed));
    // as an int of 0
    let marked = SOCKET_TRAITS + key("marked").number() as i32;
    sockopt::set_int(&socket, SOL_TRAITS, marked, 0).unwrap();
    send(&socket, (HAS_ALL & !HAS_SEQ & !HAS_MARKED, changed));
    // what it was told is what it says
    let own = socket.own_traits(&sender.keys).unwrap();
    assert_eq!(own.get(&sender.keys.typed::<u8>("tiny").unwrap()), Some(9));
    assert!(!own.is_set(key("seq")) && !own.is_set(key("marked")) && own.is_set(key("src")));
    // only one: the others are deleted
    socket.set_traits(&sender.seq(8)).unwrap();
    send(&socket, (HAS_SEQ, record::Traits { seq: 8, ..NOTHING }));
    socket.set_traits(&Traits::new(&sender.keys)).unwrap();
    send(&socket, ABSENT);
    assert_seen(&sender.records(), expected);
}

#[test]
fn every_size_is_seen_in_every_layout() {
    if !common::area_enabled() {
        return;
    }
    for layout in LAYOUTS {
        for family in Family::BOTH {
            let mut sizes = Sizes::new(layout);
            sizes.watch(family);
            let (from, to) = (sizes.pair.rx().addr(family, 0), sizes.pair.tx().addr(family, TEST_PORT));
            let _sink = udp_socket(sizes.pair.tx().netns(), to).unwrap();
            let socket = sizes.inside(|| UdpSocket::bind(from)).unwrap();
            socket.connect(to).unwrap();
            let keys = Keys::of(&socket).unwrap();
            let key = |name| keys.get(name).unwrap();
            let at_every_hook = |values: &[(&'static str, Value)]| {
                sizes.watched().map(|hook| (hook, values.to_vec())).collect::<Vec<_>>()
            };
            // one more with each datagram
            for (index, (name, value)) in VALUES.iter().enumerate() {
                socket.set_value(key(name), value).unwrap();
                assert_eq!(socket.own_value(key(name)).unwrap().as_ref(), Some(value));
                socket.send(&[0; 16]).unwrap();
                assert_eq!(sizes.seen(), at_every_hook(&VALUES[..=index]), "{layout:?}");
            }
            // one less
            for (index, (name, _)) in VALUES.iter().enumerate() {
                socket.delete_trait(key(name)).unwrap();
                assert_eq!(socket.own_value(key(name)).unwrap(), None);
                socket.send(&[0; 16]).unwrap();
                assert_eq!(sizes.seen(), at_every_hook(&VALUES[index + 1..]), "{layout:?}");
            }
            // one datagram's
            for (name, value) in &VALUES {
                let mut traits = Traits::new(&keys);
                traits.set_value(key(name), value).unwrap();
                socket.send_with_traits(&[0; 16], &traits).unwrap();
                assert_eq!(sizes.seen(), at_every_hook(&[(*name, *value)]), "{layout:?}");
                socket.send(&[0; 16]).unwrap();
                assert_eq!(sizes.seen(), at_every_hook(&[]), "{layout:?}");
            }
        }
    }
}
