//! What is refused, and that it changes nothing: other kinds of sockets, wrong sizes, and what does not fit.

use packet_traits::{KeyType, Value};
use packet_traits_lab::Family;
use packet_traits_socket::{
    SocketError, SocketTraits, TcpTraits, UdpTraits,
    abi::{self, NEXT_TRAITS, SOCKET_TRAITS, SOL_TRAITS, TRAITS_ALL},
};

use crate::{
    ABSENT, Sender, assert_seen,
    common::{self, sockopt, tcp},
    datagram, full,
};

#[test]
fn next_traits_are_for_udp() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    for family in Family::BOTH {
        let socket = sender.lab.inside(|| tcp::socket(family));
        let error = socket.set_next_traits(&sender.traits(1)).unwrap_err();
        assert!(matches!(error, SocketError::WrongSocket { .. }), "{error}");
        let udp = sender.udp(family);
        for option in [NEXT_TRAITS, NEXT_TRAITS + TRAITS_ALL] {
            assert_eq!(sockopt::get(&udp, SOL_TRAITS, option, &mut [0; 300]), Err(libc::EINVAL));
        }
    }
}

#[test]
fn values_of_the_wrong_size_are_refused_and_change_nothing() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    let socket = sender.udp(Family::V4);
    socket.set_traits(&sender.traits(1)).unwrap();
    let before = socket.own_traits(&sender.keys).unwrap();
    let needed = socket.receive_state().unwrap().traits_len as usize;
    for option in [SOCKET_TRAITS, NEXT_TRAITS] {
        for key in &sender.keys {
            let sizes: &[usize] = if key.key_type() == KeyType::Flag { &[1, 4] } else { &[key.key_type().size()] };
            for len in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 5000].into_iter().filter(|len| !sizes.contains(len)) {
                let result = sockopt::set(&socket, SOL_TRAITS, option + key.number() as i32, &vec![1; len]);
                assert_eq!(result, Err(libc::EINVAL), "{}, {len} bytes", key.name());
            }
        }
        let unregistered = 1u64 << 63;
        let mut unknown = vec![0; needed];
        unknown[..8].copy_from_slice(&unregistered.to_ne_bytes());
        let too_long = vec![0; size_of::<abi::traits>() + 1];
        for value in [vec![], vec![0; 8], vec![0; needed - 1], too_long, vec![0; 5000], unknown] {
            let result = sockopt::set(&socket, SOL_TRAITS, option + TRAITS_ALL, &value);
            assert_eq!(result, Err(libc::EINVAL), "{} bytes", value.len());
        }
    }
    let after = socket.own_traits(&sender.keys).unwrap();
    assert!(after.iter(&sender.keys).eq(before.iter(&sender.keys)));
    let _sink = sender.sink(Family::V4);
    socket.send(&datagram(0)).unwrap();
    assert_seen(&sender.records(), [(0, full(1))]);
}

/// What is kept of a socket counts as its option memory, which is limited.
#[test]
fn what_does_not_fit_is_refused_and_what_was_set_before_stays() {
    const LIMIT: &str = "net/core/optmem_max";
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    let rx = sender.lab.pair.rx().netns();
    let plenty = rx.sysctl(LIMIT).unwrap();
    let (_sink, full_before, never) = (sender.sink(Family::V4), sender.udp(Family::V4), sender.udp(Family::V4));
    let listener = sender.lab.listener(Family::V4);
    full_before.set_traits(&sender.traits(1)).unwrap();

    rx.set_sysctl(LIMIT, "300").unwrap();
    let is_refused = |result: Result<(), SocketError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, SocketError::NoRoom { .. }), "{error}");
        assert_eq!(error.errno(), libc::ENOSPC);
    };
    is_refused(never.set_traits(&sender.traits(2)));
    is_refused(never.set_value(sender.keys.get("marked").unwrap(), &Value::Flag));
    is_refused(never.set_next_traits(&sender.traits(2)));
    is_refused(full_before.receive_traits(true));
    is_refused(listener.receive_traits(true));
    is_refused(listener.save_syn_traits(true));
    assert!(never.own_traits(&sender.keys).unwrap().is_empty());
    never.send(&datagram(0)).unwrap();
    full_before.send(&datagram(1)).unwrap();
    // there is room for it already
    full_before.set_traits(&sender.traits(3)).unwrap();
    full_before.send(&datagram(2)).unwrap();

    rx.set_sysctl(LIMIT, &plenty).unwrap();
    never.set_traits(&sender.traits(4)).unwrap();
    never.send(&datagram(3)).unwrap();
    assert_seen(&sender.records(), [(0, ABSENT), (1, full(1)), (2, full(3)), (3, full(4))]);
}
