//! Which sockets save SYNs and receive traits: those that are told to, and the connections that a listener accepts.

use std::{
    net::{TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use packet_traits_lab::{Family, RECV_TIMEOUT};
use packet_traits_socket::{
    SocketError, SocketTraits, TcpTraits,
    abi::{LAST_TRAITS, RCV_TRAITS, SAVE_SYN_TRAITS, SOL_TRAITS, SYN_TRAITS, TRAITS_ALL},
};

use crate::{
    Reader, Source,
    common::{
        self,
        sockets::{Assigned, SocketLab},
        sockopt, tcp,
    },
    connect, read_number, socket_inside, write_number,
};

#[test]
fn listeners_of_a_reuseport_group_save_each_for_itself() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    for family in Family::BOTH {
        let listeners: Vec<TcpListener> = (0..4)
            .map(|index| {
                let socket = socket_inside(&lab, family);
                sockopt::set_int(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).unwrap();
                tcp::bind(&socket, lab.addr(family));
                let listener = tcp::listen(socket);
                listener.set_nonblocking(true).unwrap();
                listener.save_syn_traits(index != 0).unwrap();
                listener
            })
            .collect();
        let reader = Reader::of(&listeners[0]);
        let mut accepted_by = [0; 4];
        for _ in 0..60 {
            let client = lab.tcp_client(family);
            let deadline = Instant::now() + RECV_TIMEOUT;
            let (index, accepted) = loop {
                let accept = |(index, listener): (usize, &TcpListener)| Some((index, listener.accept().ok()?.0));
                if let Some(accepted) = listeners.iter().enumerate().find_map(accept) {
                    break accepted;
                }
                assert!(Instant::now() < deadline, "nobody accepts");
            };
            accepted_by[index] += 1;
            if index == 0 {
                reader.assert_nothing(&accepted, Source::Syn);
            } else {
                reader.assert(&accepted, Source::Syn, Assigned::syn(client.local_addr().unwrap()));
            }
        }
        assert!(accepted_by.iter().all(|count| *count > 0), "{accepted_by:?}");
    }
}

#[test]
fn saving_can_begin_before_bind_before_listen_and_after_listen() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    for family in Family::BOTH {
        for when in 0..3 {
            let socket = socket_inside(&lab, family);
            let save_if = |now| {
                if now {
                    socket.save_syn_traits(true).unwrap();
                }
            };
            save_if(when == 0);
            tcp::bind(&socket, lab.addr(family));
            save_if(when == 1);
            let listener = tcp::listen(socket.try_clone().unwrap());
            save_if(when == 2);
            let (client, accepted) = connect(&lab, family, &listener);
            Reader::of(&accepted).assert(&accepted, Source::Syn, Assigned::syn(client.local_addr().unwrap()));
        }
    }
}

#[test]
fn switches_take_only_0_and_1() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let is_on = |socket: &OwnedFd, option| {
        let mut value = [0; 40]; // both are longer than an int or as long, and begin with one
        sockopt::get(socket, SOL_TRAITS, option, &mut value).unwrap();
        i32::from_ne_bytes(value[..4].try_into().unwrap())
    };
    for option in [SAVE_SYN_TRAITS, RCV_TRAITS] {
        for listening in [false, true] {
            let mut socket = socket_inside(&lab, Family::V4);
            if listening {
                socket = tcp::listen(socket).into();
            }
            for on in [0, 1] {
                sockopt::set_int(&socket, SOL_TRAITS, option, on).unwrap();
                for value in [2, -1, 256, 1 << 24, i32::MIN] {
                    assert_eq!(sockopt::set_int(&socket, SOL_TRAITS, option, value), Err(libc::EINVAL), "{value}");
                }
                for len in [0, 1, 2, 3, 5, 8, 5000] {
                    let mut value = vec![0; len];
                    if let Some(first) = value.first_mut() {
                        *first = 1;
                    }
                    assert_eq!(sockopt::set(&socket, SOL_TRAITS, option, &value), Err(libc::EINVAL), "{len} bytes");
                }
                assert_eq!(is_on(&socket, option), on);
            }
        }
    }
}

#[test]
fn accepted_connections_inherit_the_switches() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let listener = lab.listener(Family::V4);
    for (save, receive) in [(false, false), (true, false), (false, true), (true, true)] {
        listener.save_syn_traits(save).unwrap();
        listener.receive_traits(receive).unwrap();
        let (mut client, mut accepted) = connect(&lab, Family::V4, &listener);
        write_number(&mut client, 5);
        read_number(&mut accepted);
        for socket in [listener.as_fd(), accepted.as_fd()] {
            assert_eq!(sockopt::get_int(&socket, SOL_TRAITS, SAVE_SYN_TRAITS), Ok(save.into()));
            let state = socket.receive_state().unwrap();
            assert_eq!(state.enabled, u32::from(receive));
            assert_eq!((state.slots, state.slot_len, state.ring), (0, 0, 0), "TCP takes no ring");
        }
        let (reader, peer) = (Reader::of(&accepted), client.local_addr().unwrap());
        let expected = |on: bool, set: Assigned| on.then_some((Some(set.tenant), Some(set.flow_id)));
        assert_eq!(reader.read(&accepted, Source::Syn), expected(save, Assigned::syn(peer)));
        assert_eq!(reader.read(&accepted, Source::Last), expected(receive, Assigned::data(peer, 5)));
        // a short buffer for a switch is refused, a long one is not
        assert_eq!(sockopt::get(&accepted, SOL_TRAITS, SAVE_SYN_TRAITS, &mut [0; 3]), Err(libc::EINVAL));
        assert_eq!(sockopt::get(&accepted, SOL_TRAITS, SAVE_SYN_TRAITS, &mut [0; 8]), Ok(4));
    }
}

#[test]
fn a_socket_that_connects_or_is_connected_cannot_save_its_syn() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let listener = lab.listener(Family::V4);
    let (_client, accepted) = connect(&lab, Family::V4, &listener);

    let server = lab.pair.tx().netns().enter(|| TcpListener::bind(lab.pair.tx().addr(Family::V4, 0))).unwrap();
    let connected = socket_inside(&lab, Family::V4);
    tcp::connect(&connected, server.local_addr().unwrap()).unwrap();

    // nobody is at this address
    let rx = lab.pair.rx();
    let mac = lab.pair.tx().mac();
    rx.netns().ip(&format!("neigh replace 10.77.0.50 lladdr {mac} dev {} nud permanent", rx.name())).unwrap();
    let connecting = TcpStream::from(socket_inside(&lab, Family::V4));
    connecting.set_nonblocking(true).unwrap();
    assert_eq!(tcp::connect(&connecting, "10.77.0.50:7777".parse().unwrap()), Err(libc::EINPROGRESS));

    for socket in [accepted.as_fd(), connected.as_fd(), connecting.as_fd()] {
        for on in [0, 1] {
            assert_eq!(sockopt::set_int(&socket, SOL_TRAITS, SAVE_SYN_TRAITS, on), Err(libc::EISCONN));
        }
        assert_eq!(sockopt::get_int(&socket, SOL_TRAITS, SAVE_SYN_TRAITS), Ok(0));
        let error = socket.save_syn_traits(true).unwrap_err();
        assert!(matches!(error, SocketError::Connected { .. }), "{error}");
    }
}

#[test]
fn udp_sockets_have_no_options_of_tcp() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    for family in Family::BOTH {
        let socket = lab.udp(family);
        assert_eq!(sockopt::set_int(&socket, SOL_TRAITS, SAVE_SYN_TRAITS, 1), Err(libc::EOPNOTSUPP));
        for option in [SAVE_SYN_TRAITS, SYN_TRAITS, SYN_TRAITS + TRAITS_ALL, LAST_TRAITS, LAST_TRAITS + TRAITS_ALL] {
            assert_eq!(sockopt::get(&socket, SOL_TRAITS, option, &mut [0; 300]), Err(libc::EOPNOTSUPP), "{option:#x}");
        }
    }
}

#[test]
fn a_listener_that_stops_saving_saves_nothing_more() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    for family in Family::BOTH {
        let listener = lab.listener(family);
        let reader = Reader::of(&listener);
        let never = connect(&lab, family, &listener).1;
        listener.save_syn_traits(true).unwrap();
        let (client, saved) = connect(&lab, family, &listener);
        let set = Assigned::syn(client.local_addr().unwrap());
        reader.assert(&saved, Source::Syn, set);
        listener.save_syn_traits(false).unwrap();
        let later = connect(&lab, family, &listener).1;
        for unsaved in [&never, &later] {
            reader.assert_nothing(unsaved, Source::Syn);
            let tenant = SYN_TRAITS + reader.tenant.key().number() as i32;
            assert_eq!(sockopt::get(unsaved, SOL_TRAITS, tenant, &mut [0; 4]), Err(libc::ENOENT));
        }
        reader.assert(&saved, Source::Syn, set);
    }
}
