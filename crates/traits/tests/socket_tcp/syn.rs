//! An accepted connection has the traits of its own SYN, whatever else arrives.

use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use packet_traits_lab::Family;
use packet_traits_socket::{
    SocketTraits, TcpTraits,
    abi::{SOL_TRAITS, SYN_TRAITS, TRAITS_ALL, TRAITS_FOUND},
};

use crate::{
    Reader, Source, all,
    common::{
        self, BOTH_MODES, TEST_PORT,
        sockets::{Assigned, Setup, SocketLab},
        sockopt, tcp,
    },
    connect, read_number, saving_listener, write_number,
};

#[test]
fn an_accepted_connection_has_the_traits_that_xdp_set_on_its_syn() {
    if !common::enabled() {
        return;
    }
    for mode in BOTH_MODES {
        let lab = SocketLab::with(&Setup { xdp: Some(mode), ..Setup::default() });
        for family in Family::BOTH {
            let listener = saving_listener(&lab, family);
            let reader = Reader::of(&listener);
            let connections: Vec<_> = (0..10).map(|_| connect(&lab, family, &listener)).collect();
            for (client, accepted) in &connections {
                reader.assert(accepted, Source::Syn, Assigned::syn(client.local_addr().unwrap()));
            }
            // in both directions data leaves it as it is
            for (mut client, mut accepted) in connections {
                write_number(&mut client, 7);
                assert_eq!(read_number(&mut accepted), 7);
                write_number(&mut accepted, 8);
                assert_eq!(read_number(&mut client), 8);
                reader.assert(&accepted, Source::Syn, Assigned::syn(client.local_addr().unwrap()));
            }
        }
    }
}

#[test]
fn a_dual_stack_listener_saves_the_syns_of_both_families() {
    if !common::enabled() {
        return;
    }
    for mode in BOTH_MODES {
        let lab = SocketLab::with(&Setup { xdp: Some(mode), ..Setup::default() });
        let listener = lab.inside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, TEST_PORT))).unwrap();
        listener.save_syn_traits(true).unwrap();
        let reader = Reader::of(&listener);
        for family in [Family::V4, Family::V6, Family::V4] {
            let client = lab.tcp_client(family);
            let (accepted, peer) = tcp::accept(&listener);
            assert_eq!(peer.ip().to_canonical(), client.local_addr().unwrap().ip());
            reader.assert(&accepted, Source::Syn, Assigned::syn(client.local_addr().unwrap()));
        }
    }
}

#[test]
fn a_syn_without_traits_is_found_and_empty() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::with(&Setup { xdp: None, ..Setup::default() });
    for family in Family::BOTH {
        let listener = saving_listener(&lab, family);
        listener.receive_traits(true).unwrap();
        let (mut client, mut accepted) = connect(&lab, family, &listener);
        write_number(&mut client, 1);
        read_number(&mut accepted);
        let reader = Reader::of(&accepted);
        for source in [Source::Syn, Source::Last] {
            assert_eq!(reader.read(&accepted, source), Some((None, None)));
            assert!(all(&accepted, source, &reader.keys).is_empty());
        }
        let mut raw = [0xff; 240];
        let len = sockopt::get(&accepted, SOL_TRAITS, SYN_TRAITS + TRAITS_ALL, &mut raw).unwrap();
        assert_eq!(raw[..8], [0; 8], "no key is set");
        assert_eq!(raw[8..12], TRAITS_FOUND.to_ne_bytes());
        assert!(raw[12..len].iter().all(|byte| *byte == 0), "nothing of another packet or of the kernel's");
    }
}

/// Four clients at once, two of each family, each with an address of its own.
#[test]
fn a_thousand_connections_have_each_its_own_syn() {
    const EACH: u64 = 250;
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let (tx, rx) = (lab.pair.tx(), lab.pair.rx());
    let clients: Vec<IpAddr> = (0..4u8)
        .map(|client| match client % 2 {
            0 => Ipv4Addr::new(10, 77, 0, 10 + client).into(),
            _ => Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x10 + u16::from(client)).into(),
        })
        .collect();
    for client in &clients {
        let (length, flag) = if client.is_ipv4() { (24, "") } else { (64, "nodad") };
        tx.netns().ip(&format!("addr add {client}/{length} dev {} {flag}", tx.name())).unwrap();
        rx.netns().ip(&format!("neigh replace {client} lladdr {} dev {} nud permanent", tx.mac(), rx.name())).unwrap();
    }
    let listener = lab.inside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, TEST_PORT))).unwrap();
    listener.save_syn_traits(true).unwrap();
    let reader = Reader::of(&listener);

    let mut counts = [0; 4];
    thread::scope(|scope| {
        for client in &clients {
            let family = if client.is_ipv4() { Family::V4 } else { Family::V6 };
            let to = lab.addr(family);
            scope.spawn(move || {
                for _ in 0..EACH {
                    let socket = tx.netns().enter(|| tcp::socket(family));
                    tcp::bind(&socket, SocketAddr::new(*client, 0));
                    tcp::connect(&socket, to).unwrap();
                    // until the server has read its traits
                    assert_eq!(TcpStream::from(socket).read(&mut [0]).unwrap(), 0);
                }
            });
        }
        for _ in 0..4 * EACH {
            let (accepted, peer) = tcp::accept(&listener);
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            reader.assert(&accepted, Source::Syn, Assigned::syn(peer));
            counts[clients.iter().position(|client| *client == peer.ip()).unwrap()] += 1;
        }
    });
    assert_eq!(counts, [EACH; 4]);
}
