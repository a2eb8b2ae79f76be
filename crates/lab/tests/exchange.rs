//! Traffic gets through each topology, over IPv4 and IPv6, and an idle link is silent.

use std::net::SocketAddr;
use std::time::Duration;

use packet_traits_lab::{
    Chain, End, Family, Overlay, PacketSocket, Pair, RECV_TIMEOUT, TcpSink, UdpEcho, VethOptions, VxlanOptions,
    kernel_tests_enabled, recv_numbered, require_root, send_numbered, tcp_transfer, udp_socket,
};

/// Sends numbered datagrams from `client` to an echo server at `server` and expects all of them back, in order.
fn echo(client: &End, server: &End, family: Family) {
    let server = UdpEcho::start(server.netns(), server.addr(family, 0)).unwrap();
    let socket = udp_socket(client.netns(), client.addr(family, 0)).unwrap();
    send_numbered(&socket, server.addr(), 0..20, 100).unwrap();
    for number in 0..20 {
        assert_eq!(recv_numbered(&socket).unwrap(), number, "{family:?}");
    }
}

/// Sends enough over TCP to need segmentation, windows and acknowledgements.
fn transfer(client: &End, server: &End, family: Family) {
    const BYTES: u64 = 3_000_001;
    let sink = TcpSink::start(server.netns(), server.addr(family, 0)).unwrap();
    tcp_transfer(client.netns(), sink.addr(), BYTES).unwrap();
    assert_eq!((sink.received(), sink.corrupt()), (BYTES, 0), "{family:?}");
}

#[test]
fn pair_carries_udp_and_tcp() {
    if !kernel_tests_enabled() {
        return;
    }
    require_root().unwrap();
    let pair = Pair::with(&VethOptions::new().mtu(3000).queues(2)).unwrap();
    for family in Family::BOTH {
        echo(pair.tx(), pair.rx(), family);
        transfer(pair.tx(), pair.rx(), family);
    }
}

#[test]
fn tcp_arrives_merged_with_gro() {
    if !kernel_tests_enabled() {
        return;
    }
    let pair = Pair::with(&VethOptions::new().gro(true)).unwrap();
    let capture = PacketSocket::on(pair.rx()).unwrap();
    transfer(pair.tx(), pair.rx(), Family::V4);
    capture.wait_for(RECV_TIMEOUT, |frame| !frame.outgoing && frame.bytes.len() > 3000).unwrap();
    let stats = pair.rx().netns().link_stats("rx0").unwrap();
    assert!(stats.rx_packets > 2000, "each segment crosses the link: {stats:?}");
}

#[test]
fn chain_forwards_udp_and_tcp_through_the_router() {
    if !kernel_tests_enabled() {
        return;
    }
    let chain = Chain::new().unwrap();
    for family in Family::BOTH {
        echo(chain.client(), chain.server(), family);
        transfer(chain.client(), chain.server(), family);
    }
    let router = chain.router_out().netns();
    assert!(router.link_stats(chain.router_out().name()).unwrap().tx_packets > 40);
}

#[test]
fn overlay_carries_udp_and_tcp_over_either_underlay() {
    if !kernel_tests_enabled() {
        return;
    }
    for underlay in Family::BOTH {
        for checksum in [true, false] {
            let overlay = Overlay::new(&VxlanOptions::new(underlay).vni(5).udp_checksum(checksum)).unwrap();
            for family in Family::BOTH {
                echo(overlay.tx(), overlay.rx(), family);
                transfer(overlay.tx(), overlay.rx(), family);
            }
            let outer = overlay.underlay().rx();
            assert!(outer.netns().link_stats(outer.name()).unwrap().rx_packets > 40, "{underlay:?}");
        }
    }
}

#[test]
fn idle_links_carry_nothing() {
    if !kernel_tests_enabled() {
        return;
    }
    let overlay = Overlay::new(&VxlanOptions::new(Family::V6)).unwrap();
    let (pair, chain) = (overlay.underlay(), Chain::new().unwrap());
    let captures = [pair.rx(), chain.client(), chain.server()].map(|end| PacketSocket::on(end).unwrap());
    for capture in captures {
        assert_eq!(capture.drain(Duration::from_millis(700)).unwrap(), []);
    }
    for end in [pair.tx(), pair.rx(), overlay.tx(), overlay.rx()] {
        assert_eq!(end.netns().link_stats(end.name()).unwrap().tx_packets, 0, "{}", end.name());
    }
}

#[test]
fn receive_without_traffic_times_out() {
    if !kernel_tests_enabled() {
        return;
    }
    let pair = Pair::new().unwrap();
    let socket = udp_socket(pair.rx().netns(), pair.rx().addr(Family::V4, 0)).unwrap();
    assert_eq!(socket.read_timeout().unwrap(), Some(RECV_TIMEOUT));
    socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    let error = recv_numbered(&socket).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    let SocketAddr::V4(addr) = socket.local_addr().unwrap() else { panic!("an IPv4 socket") };
    assert_eq!(error.to_string(), format!("cannot receive a numbered datagram at {addr}: nothing came in time"));
}

#[test]
fn dropping_a_server_with_an_open_connection_does_not_hang() {
    if !kernel_tests_enabled() {
        return;
    }
    let pair = Pair::new().unwrap();
    let sink = TcpSink::start(pair.rx().netns(), pair.rx().addr(Family::V4, 0)).unwrap();
    let open = pair.tx().netns().enter(|| std::net::TcpStream::connect_timeout(&sink.addr(), RECV_TIMEOUT)).unwrap();
    let begun = std::time::Instant::now();
    drop(sink);
    assert!(begun.elapsed() < Duration::from_secs(2));
    drop(open);
}
