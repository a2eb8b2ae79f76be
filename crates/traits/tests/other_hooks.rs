//! What XDP sets is read unchanged at the hooks that belong to a socket map (sk_skb) and, where the kernel leaves it, to a
//! route (lwt).

mod common;

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    time::Instant,
};

use common::{
    BOTH_MODES, Lab, TEST_PORT, attach_xdp,
    record::{Records, Stage, Traits},
};
use libbpf_rs::{MapCore, MapFlags};
use packet_traits::{attach::XdpMode, bind::LoadedObject};
use packet_traits_lab::{Chain, Family, Pair, RECV_TIMEOUT, recv_numbered, send_numbered, udp_socket};

/// Attaches a program to the map `sockets`, as long as both are there.
fn attach_to_sockets(object: &mut LoadedObject, name: &str) {
    let map = object.map("sockets").unwrap().as_fd().as_raw_fd();
    let program = object.object_mut().progs_mut().find(|program| program.name() == name).unwrap();
    program.attach_sockmap(map).unwrap();
}

/// Reads a number of bytes of a socket that is in a map: there a woken reader may find nothing yet, and gets EAGAIN before
/// its timeout (`tcp_bpf_recvmsg_parser` in net/ipv4/tcp_bpf.c).
fn read_bytes(receiver: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut received = vec![0; count];
    let (mut filled, deadline) = (0, Instant::now() + RECV_TIMEOUT);
    while filled < count {
        match receiver.read(&mut received[filled..]) {
            Ok(0) => panic!("the connection ended after {filled} of {count} bytes"),
            Ok(more) => filled += more,
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {}
            Err(error) => panic!("after {filled} of {count} bytes: {error}"),
        }
    }
    received
}

/// Sends over a connection whose receiving socket is in a socket map with a verdict and no parser.
fn tcp_to_a_socket_in_a_map(mode: XdpMode, family: Family) {
    const BYTES: usize = 1 << 18;
    let lab = Lab::new();
    let mut object = lab.load("other_hooks");
    let pair = Pair::new().unwrap();
    let rx = pair.rx();
    let _xdp = attach_xdp(&object, "assign", rx, mode);
    attach_to_sockets(&mut object, "verdict");

    let listener = rx.netns().enter(|| TcpListener::bind(rx.addr(family, TEST_PORT))).unwrap();
    let mut sender = pair.tx().netns().enter(|| TcpStream::connect(rx.addr(family, TEST_PORT))).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(RECV_TIMEOUT)).unwrap();
    // nothing was sent yet, so that all of it passes the program
    let socket = (receiver.as_raw_fd() as u64).to_ne_bytes();
    object.map("sockets").unwrap().update(&0u32.to_ne_bytes(), &socket, MapFlags::ANY).unwrap();

    let sent: Vec<u8> = (0..BYTES).map(|place| (place % 251) as u8).collect();
    let received = std::thread::scope(|scope| {
        scope.spawn(|| sender.write_all(&sent).unwrap());
        read_bytes(&mut receiver, BYTES)
    });
    assert!(received == sent, "the program passes what came");

    let records = Records::collect(&object, |_| false);
    // of each packet what XDP set; assert_right refuses one without
    let read = records.assert_right(Stage::SkSkbVerdict);
    assert!(read.len() > 3, "{read:?}");
    let bytes: usize = records.at(Stage::SkSkbVerdict).map(|record| record.len as usize).sum();
    assert_eq!(bytes, BYTES, "every byte passed in a packet with traits");
}

#[test]
fn sk_skb_verdict_reads_the_packets_of_a_connection() {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            for family in Family::BOTH {
                tcp_to_a_socket_in_a_map(mode, family);
            }
        }
    }
}

/// Forwards datagrams over a route that has a program where they come in, go out, and are handed to the device.
fn udp_over_a_route_with_programs(mode: XdpMode, family: Family) {
    const PACKETS: u64 = 100;
    let lab = Lab::new();
    let mut object = lab.load("other_hooks");
    let chain = Chain::new().unwrap();
    let router = chain.router_out();
    let _xdp = attach_xdp(&object, "assign", chain.router_in(), mode);
    let mut encap = String::new();
    for direction in ["in", "out", "xmit"] {
        let name = format!("route_{direction}");
        let pin = lab.bpffs().path().join(&name);
        object.object_mut().progs_mut().find(|program| *program.name() == *name).unwrap().pin(&pin).unwrap();
        encap += &format!(" {direction} pinned {}", pin.display());
    }
    let to = chain.server().addr(family, TEST_PORT);
    let (ip, dev) = (to.ip(), router.name());
    let version = if family == Family::V4 { "-4" } else { "-6" };
    router.netns().ip(&format!("{version} route add {ip} dev {dev} encap bpf{encap}")).unwrap();

    let receiver = udp_socket(chain.server().netns(), to).unwrap();
    let sender = udp_socket(chain.client().netns(), chain.client().addr(family, 0)).unwrap();
    for number in 0..PACKETS {
        send_numbered(&sender, to, number..number + 1, 64).unwrap();
        assert_eq!(recv_numbered(&receiver).unwrap(), number);
    }
    let records = Records::collect(&object, |records| records.count(Stage::LwtXmit) as u64 >= PACKETS);
    // From 7.1.5 the kernel drops the metadata before it enters them (net/core/lwtunnel.c).
    let dropped = records.at(Stage::LwtIn).all(|record| record.extra == 0);
    for stage in [Stage::LwtIn, Stage::LwtOut, Stage::LwtXmit] {
        assert!(records.at(stage).all(|record| (record.extra == 0) == dropped), "{stage:?}");
        if !dropped {
            records.assert_all_read(stage, 0..PACKETS);
            continue;
        }
        assert_eq!(records.count(stage) as u64, PACKETS);
        assert!(records.at(stage).all(|record| (record.present, record.traits) == (0, Traits::default())), "{stage:?}");
    }
    if dropped {
        eprintln!("{mode}, {family:?}: this kernel drops the metadata at a route with programs");
    }
}

#[test]
fn lwt_programs_of_a_route_read_what_is_forwarded_over_it_unless_the_kernel_has_dropped_it() {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            for family in Family::BOTH {
                udp_over_a_route_with_programs(mode, family);
            }
        }
    }
}
