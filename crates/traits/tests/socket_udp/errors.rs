//! What is wrong with a call is said by its error number, and then nothing has been written or changed.

use std::{
    io,
    net::UdpSocket,
    os::{
        fd::{AsFd, FromRawFd, OwnedFd},
        unix::net::UnixDatagram,
    },
};

use libc::{EINVAL, ENOENT, ENOPROTOOPT, EOPNOTSUPP};
use packet_traits::{
    KeyType, Merge,
    attach::{CgroupHook, cgroup},
    socket_programs::SocketPrograms,
};
use packet_traits_lab::{Family, udp_socket};
use packet_traits_socket::{
    Keys as SocketKeys, Received, Receiver, SocketError, SocketTraits, TcpTraits, UdpTraits,
    abi::{
        LAST_TRAITS, NEXT_TRAITS, RCV_TRAITS, SAVE_SYN_TRAITS, SOCKET_TRAITS, SOL_TRAITS, SOL_TRAITS_DATAGRAM,
        SOL_TRAITS_DATAGRAMS, SYN_TRAITS, TRAITS_ALL, TRAITS_BATCH_MAX, TRAITS_KEYS,
    },
};

use crate::{
    SIZE, assert_carried,
    common::{
        self, Keys, TEST_PORT,
        datagrams::{RawTraits, Reader, Way, get, recvmsg},
        sockets::{SOCKET_KEYS, Setup, SocketLab},
        sockopt::{set, set_int},
    },
    own, send,
};

/// A key of each size, behind those of the lab.
const KEYS: Keys = &[
    SOCKET_KEYS[0],
    SOCKET_KEYS[1],
    ("byte", KeyType::U8, Merge::Block),
    ("short", KeyType::U16, Merge::Block),
    ("wide", KeyType::U128, Merge::Block),
    ("seen", KeyType::Flag, Merge::Block),
];

/// `get` checks that nothing is written if it fails, and nothing behind the answer.
#[test]
fn a_buffer_that_is_too_short_is_refused_and_left_alone() {
    if !common::area_enabled() {
        return;
    }
    let lab = SocketLab::with(&Setup { keys: KEYS, ..Setup::default() });
    for family in Family::BOTH {
        let (client, socket) = (lab.udp_client(family), lab.udp(family));
        socket.receive_traits(true).unwrap();
        let len = socket.receive_state().unwrap().traits_len as usize;
        send(&lab, &client, family, 4..5);
        let handle = recvmsg(&socket, SIZE, 0).unwrap().mark().unwrap().cast_signed();
        let keys = SocketKeys::of(&socket).unwrap();
        for key in &keys {
            let value = vec![1; key.key_type().size().max(1)];
            set(&socket, SOL_TRAITS, SOCKET_TRAITS + key.number() as i32, &value).unwrap();
        }
        let options = [
            (SOL_TRAITS_DATAGRAM, handle, len),
            (SOL_TRAITS_DATAGRAM, 0, len),
            (SOL_TRAITS_DATAGRAM, -1, len),
            (SOL_TRAITS_DATAGRAMS, handle, len),
            (SOL_TRAITS, RCV_TRAITS, 40),
            (SOL_TRAITS, TRAITS_KEYS, 40),
            (SOL_TRAITS, SOCKET_TRAITS + TRAITS_ALL, len),
        ];
        let of_keys =
            keys.iter().map(|key| (SOL_TRAITS, SOCKET_TRAITS + key.number() as i32, key.key_type().size().max(1)));
        for (level, option, needed) in options.into_iter().chain(of_keys) {
            for room in 0..needed {
                assert_eq!(get(&socket, level, option, room), Err(EINVAL), "{level:#x} {option:#x} {room}");
            }
            // the last with more than BPF programs are shown (PAGE_SIZE)
            for room in [needed, needed + 1, needed + 7, 5000] {
                let answer = get(&socket, level, option, room).unwrap();
                let count = match (level, option) {
                    (SOL_TRAITS_DATAGRAMS, _) => (room / needed).min(TRAITS_BATCH_MAX),
                    (SOL_TRAITS, TRAITS_KEYS) => (room / needed).min(KEYS.len()),
                    _ => 1,
                };
                // the registry's revision only where there is room for it
                let more = if (level, option) == (SOL_TRAITS, RCV_TRAITS) && room >= 48 { 8 } else { 0 };
                assert_eq!(answer.len(), count * needed + more, "{level:#x} {option:#x} {room}");
            }
        }
    }
}

/// As many as there is room for, of which the first is found and those after it have not come.
#[test]
fn several_datagrams_are_answered_for_as_far_as_there_is_room() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let (client, socket) = (lab.udp_client(Family::V4), lab.udp(Family::V4));
    socket.receive_traits(true).unwrap();
    let len = socket.receive_state().unwrap().traits_len as usize;
    send(&lab, &client, Family::V4, 0..3);
    let handles = [0; 3].map(|_| recvmsg(&socket, SIZE, 0).unwrap().mark().unwrap());
    let own = handles.map(|handle| RawTraits::of(&socket, handle));
    assert!(own.iter().all(|traits| traits.flags == 1 && traits.present == 3));
    for room in [len, 2 * len + len / 2, 5 * len, 40 * len] {
        let raw = get(&socket, SOL_TRAITS_DATAGRAMS, handles[0].cast_signed(), room).unwrap();
        let answers: Vec<_> = raw.chunks(len).map(RawTraits::parse).collect();
        assert_eq!(answers.len(), (room / len).min(TRAITS_BATCH_MAX));
        for (i, answer) in answers.iter().enumerate() {
            let none = RawTraits { values: vec![0; len - 16], ..RawTraits::default() };
            assert_eq!(answer, own.get(i).unwrap_or(&none));
        }
    }
}

#[test]
fn options_and_keys_that_there_are_not_are_refused() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    for family in Family::BOTH {
        let socket = lab.udp(family);
        let refused = |option: i32, expected: i32| {
            assert_eq!(get(&socket, SOL_TRAITS, option, 512), Err(expected), "{option:#x}");
        };
        for option in [-1, i32::MIN, i32::MAX, 0x700, 0x7ff, 0x10000, RCV_TRAITS + 1, RCV_TRAITS + TRAITS_ALL] {
            refused(option, EINVAL);
            assert_eq!(set_int(&socket, SOL_TRAITS, option, 1), Err(EINVAL), "{option:#x}");
        }
        for option in [SAVE_SYN_TRAITS + 1, NEXT_TRAITS, NEXT_TRAITS + TRAITS_ALL] {
            refused(option, EINVAL);
        }
        for key in [2, 3, 63, 64, 65, 128, 254] {
            refused(SOCKET_TRAITS + key, EINVAL);
            for option in [SOCKET_TRAITS, NEXT_TRAITS] {
                assert_eq!(set_int(&socket, SOL_TRAITS, option + key, 1), Err(EINVAL), "{option:#x} + {key}");
            }
        }
        // there are no more
        for first in [2, 63, 64, 255] {
            refused(TRAITS_KEYS + first, ENOENT);
        }
        // not set
        for key in [0, 1] {
            refused(SOCKET_TRAITS + key, ENOENT);
        }
        // those of TCP
        for option in [SAVE_SYN_TRAITS, SYN_TRAITS, SYN_TRAITS + TRAITS_ALL, LAST_TRAITS, LAST_TRAITS + TRAITS_ALL] {
            refused(option, EOPNOTSUPP);
        }
        // what can only be read
        for option in [TRAITS_KEYS, SYN_TRAITS, SYN_TRAITS + TRAITS_ALL, LAST_TRAITS + TRAITS_ALL] {
            assert_eq!(set_int(&socket, SOL_TRAITS, option, 1), Err(EINVAL), "{option:#x}");
        }
        for level in [SOL_TRAITS_DATAGRAM, SOL_TRAITS_DATAGRAMS] {
            assert_eq!(set_int(&socket, level, 0, 1), Err(ENOPROTOOPT));
        }
        assert_eq!(lab.sockets_used(), 0);
    }
}

#[test]
fn rcv_traits_takes_0_and_1_only() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let socket = lab.udp(Family::V4);
    let refused = |value: &[u8]| {
        let before = socket.receive_state().unwrap();
        assert_eq!(set(&socket, SOL_TRAITS, RCV_TRAITS, value), Err(EINVAL), "{value:?}");
        assert_eq!(socket.receive_state().unwrap(), before);
    };
    for on in [false, true] {
        socket.receive_traits(on).unwrap();
        for value in [-1i32, 2, 256, i32::MIN] {
            refused(&value.to_ne_bytes());
        }
        for len in [0, 1, 2, 3, 5, 8, 64] {
            refused(&vec![0; len]);
        }
    }
}

#[test]
fn sockets_that_are_not_udp_have_no_datagrams() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    for family in Family::BOTH {
        let listener = lab.listener(family);
        let client = lab.inside(|| std::net::TcpStream::connect(lab.addr(family))).unwrap();
        let fresh = |domain, kind, protocol| {
            lab.inside(|| {
                // SAFETY: socket takes no pointers.
                let fd = unsafe { libc::socket(domain, kind, protocol) };
                assert!(fd >= 0, "{}", io::Error::last_os_error());
                // SAFETY: a new descriptor, which nobody else has.
                unsafe { OwnedFd::from_raw_fd(fd) }
            })
        };
        let (domain, icmp) = match family {
            Family::V4 => (libc::AF_INET, libc::IPPROTO_ICMP),
            Family::V6 => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
        };
        let (tcp, raw) = (fresh(domain, libc::SOCK_STREAM, 0), fresh(domain, libc::SOCK_RAW, icmp));
        for socket in [listener.as_fd(), client.as_fd(), tcp.as_fd(), raw.as_fd()] {
            for level in [SOL_TRAITS_DATAGRAM, SOL_TRAITS_DATAGRAMS] {
                for handle in [0, 1, -1] {
                    assert_eq!(get(&socket, level, handle, 512), Err(EOPNOTSUPP));
                }
            }
        }
        // what does not receive at all
        assert_eq!(set_int(&raw, SOL_TRAITS, RCV_TRAITS, 1), Err(EOPNOTSUPP));
        assert!(matches!(raw.receive_traits(true), Err(SocketError::WrongSocket { .. })));
        // TCP does, but no datagrams
        assert!(matches!(Receiver::new(&tcp), Err(SocketError::WrongSocket { .. })));
    }
    assert_eq!(lab.sockets_used(), 0);
}

#[test]
fn sockets_of_other_families_are_left_alone() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let (inside, outside) = (lab.inside(UnixDatagram::unbound).unwrap(), UnixDatagram::unbound().unwrap());
    for (level, option) in [(SOL_TRAITS, RCV_TRAITS), (SOL_TRAITS, TRAITS_KEYS), (SOL_TRAITS_DATAGRAM, 0)] {
        let expected = get(&outside, level, option, 512).unwrap_err();
        assert_eq!(get(&inside, level, option, 512), Err(expected));
        let expected = set_int(&outside, level, option, 1).unwrap_err();
        assert_eq!(set_int(&inside, level, option, 1), Err(expected));
    }
    let error = inside.receive_traits(true).unwrap_err();
    assert!(matches!(error, SocketError::NotAttached { .. }), "{error}");
}

/// What an application that is not served sees.
fn assert_not_attached(socket: &UdpSocket) {
    let family = if socket.local_addr().unwrap().is_ipv4() { Family::V4 } else { Family::V6 };
    assert_eq!(set_int(socket, SOL_TRAITS, RCV_TRAITS, 1), Err(ENOPROTOOPT));
    // do_ip_getsockopt in net/ipv4/ip_sockglue.c has another number for a level that it does not know
    let unknown = if family == Family::V4 { EOPNOTSUPP } else { ENOPROTOOPT };
    for (level, option) in [(SOL_TRAITS, RCV_TRAITS), (SOL_TRAITS, TRAITS_KEYS), (SOL_TRAITS_DATAGRAM, 7)] {
        assert_eq!(get(socket, level, option, 512), Err(unknown));
    }
    let errors = [
        socket.receive_traits(true).unwrap_err(),
        socket.receive_traits(false).unwrap_err(),
        socket.receive_state().unwrap_err(),
        SocketKeys::of(socket).unwrap_err(),
        Receiver::new(socket).unwrap_err(),
        socket.save_syn_traits(true).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, SocketError::NotAttached { .. }), "{error}");
        assert_eq!(error.errno(), ENOPROTOOPT);
        assert!(error.to_string().contains("`traits sockets attach` is not in force"), "{error}");
        assert!(error.hint().unwrap().contains("run `traits sockets attach` as root"), "{error:?}");
        assert_eq!(io::Error::from(error).raw_os_error(), None, "it says more than a number");
    }
}

#[test]
fn a_socket_that_nothing_serves_says_how_to_attach() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::with(&Setup { options: None, ..Setup::default() });
    for family in Family::BOTH {
        assert_not_attached(&lab.udp(family));
    }
    lab.attach_options(&Setup::default().options.unwrap());
    // attached, but made outside the cgroup
    for family in Family::BOTH {
        let rx = lab.pair.rx();
        assert_not_attached(&udp_socket(rx.netns(), rx.addr(family, TEST_PORT)).unwrap());
    }
    for family in Family::BOTH {
        lab.udp(family).receive_traits(true).unwrap();
    }
}

/// A program of the cgroup that knows nothing of traits answers in the place of ours.
#[test]
fn an_answer_that_is_none_of_ours_is_refused() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::with(&Setup { options: None, ..Setup::default() });
    let answers = common::program(&lab.object, "answer_one_byte");
    let _attached = cgroup::attach_path(answers.as_fd(), lab.cgroup.path(), CgroupHook::GetSockOpt).unwrap();
    let socket = lab.udp(Family::V4);
    for error in [SocketKeys::of(&socket).unwrap_err(), socket.receive_state().unwrap_err()] {
        assert!(matches!(error, SocketError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("the answer is 1 bytes"), "{error}");
        assert_eq!(error.errno(), libc::EPROTO);
    }
}

/// An application that runs on when its socket is not served any more, and is served again.
#[test]
fn datagrams_come_without_traits_after_detaching() {
    if !common::enabled() {
        return;
    }
    let mut lab = SocketLab::new();
    lab.mark_some();
    for way in Way::ALL.into_iter().filter(|way| !matches!(way, Way::Number | Way::Numbers)) {
        let (client, socket) = (lab.udp_client(Family::V4), lab.udp(Family::V4));
        let mut reader = Reader::new(way, socket, &lab);
        send(&lab, &client, Family::V4, 0..8);
        assert_carried(&reader.recv_all(8), 0..8, |number| Some(own(number)));

        SocketPrograms::detach_all(&lab.lab.registry).unwrap();
        send(&lab, &client, Family::V4, 8..16);
        assert_carried(&reader.recv_all(8), 8..16, |_| None);
        assert_not_attached(reader.socket());

        lab.attach_options(&Setup::default().options.unwrap());
        // it has to ask again
        send(&lab, &client, Family::V4, 16..24);
        assert_carried(&reader.recv_all(8), 16..24, |_| None);
        let mut reader = Reader::new(way, reader.socket().try_clone().unwrap(), &lab);
        send(&lab, &client, Family::V4, 24..32);
        assert_carried(&reader.recv_all(8), 24..32, |number| Some(own(number)));
    }
}

/// Whatever is wrong with the traits, the datagram is received.
#[test]
fn a_socket_without_rcv_traits_receives_datagrams_without_traits() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let (client, socket) = (lab.udp_client(Family::V4), lab.udp(Family::V4));
    let keys = SocketKeys::of(&socket).unwrap();
    send(&lab, &client, Family::V4, 1..2);
    let mut buffer = [0; 2 * SIZE];
    let Received { len, from, traits, .. } = socket.recv_with_traits(&keys, &mut buffer).unwrap();
    assert_eq!((len, from), (SIZE, client.local_addr().unwrap()));
    assert!(!traits.is_found() && traits.is_empty());
    assert_eq!(traits.mark(), None);
    assert_eq!(socket.own_trait(&keys.typed::<u32>("tenant").unwrap()).unwrap(), None);
}
