//! What a socket sends has the traits of the socket: a connection's every packet, and each datagram.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
};

use packet_traits_lab::Family;
use packet_traits_socket::{
    SocketError, SocketTraits,
    abi::{SOCKET_TRAITS, SOL_TRAITS, TRAITS_ALL},
};

use crate::{
    ABSENT, HOOKS, IS_FIN, IS_SYN, IS_TCP, Sender, assert_seen,
    common::{
        self,
        record::{Record, Stage, shown},
        sockopt, tcp,
    },
    datagram, full,
};

#[test]
fn a_connection_has_its_traits_from_the_syn_to_the_fin() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    let tx = sender.lab.pair.tx();
    for family in Family::BOTH {
        let server = tx.netns().enter(|| TcpListener::bind(sender.to(family))).unwrap();
        let socket = sender.lab.inside(|| tcp::socket(family));
        socket.set_traits(&sender.traits(5)).unwrap();
        tcp::connect(&socket, sender.to(family)).unwrap();
        let mut client = TcpStream::from(socket);
        let (mut accepted, _) = tcp::accept(&server);
        client.write_all(&[1; 5000]).unwrap();
        accepted.read_exact(&mut [0; 5000]).unwrap();
        accepted.write_all(&[2; 5000]).unwrap();
        client.read_exact(&mut [0; 5000]).unwrap();
        // closed by the process, not yet by the kernel
        drop(client);
        assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
        drop(accepted);

        let records = sender.records();
        for hook in shown(HOOKS) {
            let of_hook: Vec<&Record> = records.at(hook).collect();
            for record in &of_hook {
                assert_eq!(record.extra & IS_TCP, IS_TCP);
                // the last one acknowledges the other end's FIN, when the socket has gone and the kernel waits (TIME_WAIT)
                let of_nobody =
                    record.len == 0 && record.present == 0 && std::ptr::eq(*record, of_hook[of_hook.len() - 1]);
                assert!(of_nobody || (record.present, record.traits) == full(5), "{hook:?}: {record:?}");
            }
            let count = |flag: u64| of_hook.iter().filter(|record| record.extra & flag != 0).count();
            assert_eq!((count(IS_SYN), count(IS_FIN)), (1, 1), "{hook:?}");
            assert_eq!(of_hook.iter().map(|record| record.len).sum::<u32>(), 5000, "{hook:?}");
            let acks = of_hook.iter().filter(|record| record.len == 0 && record.extra & (IS_SYN | IS_FIN) == 0).count();
            assert!(acks >= 2, "{hook:?}: {acks} acknowledgements");
        }
    }
}

#[test]
fn datagrams_have_the_traits_of_their_socket() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    for family in Family::BOTH {
        let (_sink, connected) = (sender.sink(family), sender.udp(family));
        let bystander = sender.udp(family);
        let unconnected = sender.unconnected(family);
        connected.set_traits(&sender.traits(1)).unwrap();
        unconnected.set_traits(&sender.traits(2)).unwrap();
        for round in 0..100 {
            connected.send(&datagram(3 * round)).unwrap();
            unconnected.send_to(&datagram(3 * round + 1), sender.to(family)).unwrap();
            bystander.send(&datagram(3 * round + 2)).unwrap();
        }
        let expected = (0..300).map(|number| (number, [full(1), full(2), ABSENT][number as usize % 3]));
        let records = sender.records();
        assert_seen(&records, expected);
        assert_eq!(records.count(Stage::TcIngress), 300, "all of them arrived, and had nothing there");
    }
}

#[test]
fn a_listener_has_no_traits_of_its_own_and_gives_none() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let sender = Sender::new();
        // what it was told before it listened is not what it sends, and not what the accepted ones send
        let socket = sender.lab.inside(|| tcp::socket(family));
        socket.set_traits(&sender.traits(5)).unwrap();
        tcp::bind(&socket, sender.lab.addr(family));
        let listener = tcp::listen(socket);
        let one = SOCKET_TRAITS + sender.keys.get("tenant").unwrap().number() as i32;
        assert_eq!(sockopt::set(&listener, SOL_TRAITS, one, &[1; 4]), Err(libc::EOPNOTSUPP));
        assert_eq!(sockopt::set(&listener, SOL_TRAITS, one, &[]), Err(libc::EOPNOTSUPP));
        assert_eq!(sockopt::set(&listener, SOL_TRAITS, SOCKET_TRAITS + TRAITS_ALL, &[0; 300]), Err(libc::EOPNOTSUPP));
        let error = listener.set_traits(&sender.traits(5)).unwrap_err();
        assert!(matches!(error, SocketError::WrongSocket { .. }), "{error}");

        let tx = sender.lab.pair.tx();
        let mut client = tx.netns().enter(|| {
            let client = tcp::socket(family);
            tcp::bind(&client, sender.to(family));
            tcp::connect(&client, sender.lab.addr(family)).unwrap();
            TcpStream::from(client)
        });
        let (mut accepted, _) = tcp::accept(&listener);
        assert!(accepted.own_traits(&sender.keys).unwrap().is_empty());
        let mut exchange = |accepted: &mut TcpStream| {
            accepted.write_all(&[1; 100]).unwrap();
            client.read_exact(&mut [0; 100]).unwrap();
            sender.records()
        };
        let before = exchange(&mut accepted);
        accepted.set_traits(&sender.traits(6)).unwrap();
        let after = exchange(&mut accepted);
        for hook in shown(HOOKS) {
            assert_eq!(before.count(hook), 2, "{hook:?}: the answer to the SYN, and the data");
            assert!(before.at(hook).all(|record| record.present == 0), "{hook:?}");
            assert_eq!(after.count(hook), 1);
            assert!(after.at(hook).all(|record| (record.present, record.traits) == full(6)), "{hook:?}");
        }
    }
}
