//! The programs change nothing else of what an application sees: control messages, errors, options of other levels.

use std::{
    io,
    net::UdpSocket,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use packet_traits_lab::{Family, RECV_TIMEOUT, send_numbered, udp_socket};
use packet_traits_socket::{Keys, Received, ReceiverOptions, SocketTraits, UdpTraits};

use crate::{
    SIZE,
    common::{
        self,
        datagrams::{Control, Message, SO_RCVMARK, get, recvmsg},
        sockets::{MARK, Setup, SocketLab},
        sockopt::set_int,
    },
    send,
};

/// What an application may have turned on for a family: level and option.
fn options(family: Family) -> Vec<(i32, i32)> {
    let socket = [libc::SO_TIMESTAMPNS, libc::SO_RXQ_OVFL, SO_RCVMARK].map(|option| (libc::SOL_SOCKET, option));
    let ip = match family {
        Family::V4 => [libc::IP_PKTINFO, libc::IP_RECVTOS, libc::IP_RECVTTL, libc::IP_RECVORIGDSTADDR]
            .map(|option| (libc::IPPROTO_IP, option)),
        Family::V6 => {
            [libc::IPV6_RECVPKTINFO, libc::IPV6_RECVTCLASS, libc::IPV6_RECVHOPLIMIT, libc::IPV6_RECVORIGDSTADDR]
                .map(|option| (libc::IPPROTO_IPV6, option))
        }
    };
    [socket.to_vec(), ip.to_vec()].concat()
}

/// Receives a datagram with every option on, once without a wait and once with. The timestamp is checked and taken out.
fn received(lab: &SocketLab, client: &UdpSocket, socket: &UdpSocket, family: Family) -> [Message; 2] {
    for (level, option) in options(family) {
        set_int(socket, level, option, 1).unwrap();
    }
    // divisible by 3: it has a mark
    send(lab, client, family, 9..10);
    send(lab, client, family, 12..13);
    [0, 0].map(|flags| {
        let mut message = recvmsg(socket, 2 * SIZE, flags).unwrap();
        let timestamps: Vec<Control> =
            message.control.extract_if(.., |control| control.kind == libc::SCM_TIMESTAMPNS).collect();
        let [timestamp] = &timestamps[..] else { panic!("{timestamps:?}") };
        let (words, _) = timestamp.data.as_chunks::<8>();
        let at = Duration::new(u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1]) as u32);
        let age = SystemTime::now().duration_since(UNIX_EPOCH + at).unwrap();
        assert!(age < RECV_TIMEOUT, "{age:?}");
        message
    })
}

fn mark(messages: &[Message]) -> Vec<Option<u32>> {
    messages.iter().map(Message::mark).collect()
}

fn without_mark(messages: &[Message]) -> Vec<Message> {
    let is_other = |control: &&Control| (control.level, control.kind) != (libc::SOL_SOCKET, libc::SO_MARK);
    let strip = |message: &Message| Message {
        control: message.control.iter().filter(is_other).cloned().collect(),
        ..message.clone()
    };
    messages.iter().map(strip).collect()
}

#[test]
fn control_messages_are_the_same_with_the_options_and_without() {
    if !common::enabled() {
        return;
    }
    for mode in common::BOTH_MODES {
        let mut lab = SocketLab::with(&Setup { options: None, xdp: Some(mode), ..Setup::default() });
        lab.mark_some();
        let sockets = Family::BOTH.map(|family| {
            let (client, socket) = (lab.udp_client(family), lab.udp(family));
            let (level, option) = match family {
                Family::V4 => (libc::IPPROTO_IP, libc::IP_TOS),
                Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
            };
            set_int(&client, level, option, 0x28).unwrap();
            let before = received(&lab, &client, &socket, family);
            assert_eq!(before[0].control.len(), options(family).len() - 2, "all but the timestamp and no overflow");
            assert_eq!(mark(&before), [Some(MARK); 2]);
            (family, client, socket, before)
        });
        lab.attach_options(&Setup::default().options.unwrap());
        for (family, client, socket, before) in sockets {
            // a socket that was there before the programs, as they were attached
            assert_eq!(received(&lab, &client, &socket, family), before);
            drop(socket);
            let socket = lab.udp(family);
            assert_eq!(received(&lab, &client, &socket, family), before);
            // with RCV_TRAITS only the mark is another
            socket.receive_traits(true).unwrap();
            let with = received(&lab, &client, &socket, family);
            assert_eq!(without_mark(&with), without_mark(&before));
            assert!(mark(&with).iter().all(|mark| mark.is_some() && *mark != Some(MARK)));
            socket.receive_traits(false).unwrap();
            assert_eq!(received(&lab, &client, &socket, family), before);
        }
    }
}

/// A port that nobody has.
const NOBODY: u16 = 9;

/// A socket that is connected to it.
fn unanswered(lab: &SocketLab, family: Family) -> UdpSocket {
    let socket = lab.udp(family);
    socket.connect(lab.pair.tx().addr(family, NOBODY)).unwrap();
    socket
}

/// Sends until the peer's kernel has said that nobody is there; it does not say it to every datagram (icmp_ratelimit).
fn provoke_error<T>(socket: &UdpSocket, mut recv: impl FnMut() -> io::Result<T>) -> io::Error {
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let deadline = Instant::now() + 2 * RECV_TIMEOUT;
    while Instant::now() < deadline {
        let _earlier = socket.send(&[0; SIZE]);
        let error = recv().err().expect("nobody sends anything");
        if error.kind() != io::ErrorKind::WouldBlock {
            return error;
        }
    }
    panic!("no error came");
}

#[test]
fn icmp_errors_reach_the_application() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::with(&Setup { options: None, ..Setup::default() });
    let plain = |socket: &UdpSocket| {
        let error = provoke_error(socket, || socket.recv(&mut [0; SIZE]));
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    };
    for family in Family::BOTH {
        plain(&unanswered(&lab, family));
    }
    lab.attach_options(&Setup::default().options.unwrap());
    for family in Family::BOTH {
        let socket = unanswered(&lab, family);
        plain(&socket);
        socket.receive_traits(true).unwrap();
        plain(&socket);

        let keys = Keys::of(&socket).unwrap();
        let mut receiver = ReceiverOptions::new().without_ring().build(&socket).unwrap();
        let once = || Ok(socket.recv_with_traits(&keys, &mut [0; SIZE])?);
        assert_eq!(provoke_error(&socket, once).kind(), io::ErrorKind::ConnectionRefused);
        let recv = || Ok(receiver.recv(&mut [0; SIZE])?);
        assert_eq!(provoke_error(&socket, recv).kind(), io::ErrorKind::ConnectionRefused);
        let batch = || Ok(receiver.recv_batch()?.len());
        assert_eq!(provoke_error(&socket, batch).kind(), io::ErrorKind::ConnectionRefused);

        // and it goes on when the peer comes to life
        let peer = udp_socket(lab.pair.tx().netns(), lab.pair.tx().addr(family, NOBODY)).unwrap();
        let _late = socket.take_error().unwrap();
        socket.set_read_timeout(Some(RECV_TIMEOUT)).unwrap();
        send_numbered(&peer, lab.addr(family), 4..5, SIZE).unwrap();
        let Received { len, from, traits, .. } = socket.recv_with_traits(&keys, &mut [0; 2 * SIZE]).unwrap();
        assert_eq!((len, from), (SIZE, peer.local_addr().unwrap()));
        assert_eq!(traits.get(&keys.typed("flow_id").unwrap()), Some(4u64));
    }
}

/// Options that are not ours: the same answers, errors among them.
#[test]
fn other_options_are_left_alone() {
    if !common::enabled() {
        return;
    }
    let answers = |socket: &UdpSocket| {
        let levels = [libc::SOL_SOCKET, libc::IPPROTO_IP, libc::IPPROTO_IPV6, libc::IPPROTO_UDP, 0x5451, 0x5455];
        let ask = |level| move |option| get(socket, level, option, 64);
        let mut got: Vec<_> = levels.iter().flat_map(|level| (0..90).map(ask(*level))).collect();
        let set = |level: i32| move |option| set_int(socket, level, option, 7);
        // no level of anybody's, and options that no level has
        let refused = [0x5451, 0x5455].into_iter().flat_map(|level| (0..3).map(set(level)));
        got.extend(refused.map(|answer| answer.map(|()| Vec::new())));
        got
    };
    let lab = SocketLab::with(&Setup { options: None, ..Setup::default() });
    let before = Family::BOTH.map(|family| {
        let socket = lab.udp(family);
        let answers = answers(&socket);
        (socket, answers)
    });
    lab.attach_options(&Setup::default().options.unwrap());
    for (socket, before) in before {
        assert_eq!(answers(&socket), before);
    }
}
