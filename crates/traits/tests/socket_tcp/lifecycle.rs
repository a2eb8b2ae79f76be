//! What a socket knows begins and ends with its connection.

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
};

use packet_traits_lab::Family;
use packet_traits_socket::{
    SocketTraits, TcpTraits,
    abi::{SOL_TRAITS, SYN_TRAITS},
};

use crate::{
    Numbered, Reader, Source,
    common::{
        self, TEST_PORT,
        record::{Records, Stage},
        sockets::{Assigned, SocketLab},
        sockopt, tcp,
    },
    connect, read_number, saving_listener, socket_inside, wait_for, write_number,
};

#[test]
fn a_connection_in_place_of_one_that_was_closed_has_its_own_syn() {
    const TIME_WAIT: &str = "06";
    const LAST_ACK: &str = "09";
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let link = Numbered::new();
        let (tx, rx) = (link.lab.pair.tx().clone(), link.lab.pair.rx().clone());
        let listener = saving_listener(&link.lab, family);
        let connect = || {
            let client = tx.netns().enter(|| tcp::socket(family));
            tcp::bind(&client, tx.addr(family, 40000));
            tcp::connect(&client, link.lab.addr(family)).unwrap();
            TcpStream::from(client)
        };
        let mut client = connect();
        let (first, _) = tcp::accept(&listener);
        assert_eq!(link.number(&first, Source::Syn), Some(0));
        drop(first);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        drop(client);
        wait_for(|| tcp::is_in_state(rx.netns(), family, TEST_PORT, TIME_WAIT));
        // the client's own is gone when it has heard that
        wait_for(|| !tcp::is_in_state(tx.netns(), family, 40000, LAST_ACK));
        let before = Records::collect(&link.object, |_| true).count(Stage::Xdp);
        let _client = connect();
        let (second, _) = tcp::accept(&listener);
        assert_eq!(link.number(&second, Source::Syn), Some(before as u64));
    }
}

#[test]
fn a_socket_that_connects_has_the_newest_data_and_no_syn() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let tx = lab.pair.tx();
    for family in Family::BOTH {
        let server = tx.netns().enter(|| TcpListener::bind(tx.addr(family, 0))).unwrap();
        let socket = socket_inside(&lab, family);
        socket.save_syn_traits(true).unwrap();
        socket.receive_traits(true).unwrap();
        tcp::bind(&socket, lab.addr(family));
        let reader = Reader::of(&socket);
        // the same socket again
        for round in 0..3 {
            reader.assert_nothing(&socket, Source::Last);
            tcp::connect(&socket, server.local_addr().unwrap()).unwrap();
            reader.assert_nothing(&socket, Source::Last);
            let (mut accepted, _) = tcp::accept(&server);
            let mut stream = TcpStream::from(socket.try_clone().unwrap());
            for number in [round * 10, round * 10 + 1] {
                write_number(&mut accepted, number);
                assert_eq!(read_number(&mut stream), number);
                reader.assert(&socket, Source::Last, Assigned::data(server.local_addr().unwrap(), number));
            }
            reader.assert_nothing(&socket, Source::Syn);
            tcp::disconnect(&socket);
        }
    }
}

#[test]
fn a_disconnected_socket_has_forgotten_its_connection() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let tx = lab.pair.tx();
    for family in Family::BOTH {
        let listener = saving_listener(&lab, family);
        listener.receive_traits(true).unwrap();
        let (mut client, mut accepted) = connect(&lab, family, &listener);
        let (reader, peer) = (Reader::of(&accepted), client.local_addr().unwrap());
        write_number(&mut client, 1);
        read_number(&mut accepted);
        reader.assert(&accepted, Source::Syn, Assigned::syn(peer));
        reader.assert(&accepted, Source::Last, Assigned::data(peer, 1));

        let assert_forgotten = |socket: &TcpStream| {
            for source in [Source::Syn, Source::Last] {
                reader.assert_nothing(socket, source);
            }
            let raw = SYN_TRAITS + reader.tenant.key().number() as i32;
            assert_eq!(sockopt::get(socket, SOL_TRAITS, raw, &mut [0; 4]), Err(libc::ENOENT));
        };
        tcp::disconnect(&accepted);
        assert_forgotten(&accepted);

        // as a client, of a connection whose packets get no traits
        let server = tx.netns().enter(|| TcpListener::bind(tx.addr(family, 0))).unwrap();
        tcp::connect(&accepted, server.local_addr().unwrap()).unwrap();
        assert_forgotten(&accepted);
        let (mut other, _) = tcp::accept(&server);
        write_number(&mut other, 2);
        read_number(&mut accepted);
        reader.assert_nothing(&accepted, Source::Syn);
        assert_eq!(reader.read(&accepted, Source::Last), Some((None, None)));

        // as a listener, whose connections have their own
        tcp::disconnect(&accepted);
        drop((listener, other));
        tcp::bind(&accepted, lab.addr(family));
        let listener = tcp::listen(accepted.into());
        let (mut client, mut accepted) = connect(&lab, family, &listener);
        let peer = client.local_addr().unwrap();
        reader.assert(&accepted, Source::Syn, Assigned::syn(peer));
        reader.assert_nothing(&accepted, Source::Last);
        write_number(&mut client, 3);
        read_number(&mut accepted);
        reader.assert(&accepted, Source::Last, Assigned::data(peer, 3));
    }
}
