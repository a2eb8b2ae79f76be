//! The programs change nothing else of a socket: options of other levels, errors, marks, IP options and saved SYNs.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use packet_traits_lab::Family;
use packet_traits_socket::abi::{self, SOL_TRAITS};

use crate::common::{self, TEST_PORT, sockets::SocketLab, sockopt, tcp};

/// Runs something with sockets that have the options, and with sockets that have none. Both have the same outcome.
fn is_the_same_without<T: PartialEq + std::fmt::Debug + Send>(
    lab: &SocketLab,
    run: impl Fn() -> Vec<T> + Sync,
) -> Vec<T> {
    let (with, without) = (lab.inside(&run), lab.pair.rx().netns().enter(&run));
    assert_eq!(with.len(), without.len());
    let differences: Vec<_> = with.iter().zip(&without).filter(|(with, without)| with != without).collect();
    assert!(differences.is_empty(), "with and without: {differences:#?}");
    with
}

/// One socket of each kind, with a name.
fn sockets_of_every_kind() -> Vec<(&'static str, OwnedFd)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = tcp::accept(&listener);
    let (unix, _) = UnixStream::pair().unwrap();
    vec![
        ("TCP", tcp::socket(Family::V4)),
        ("TCP over IPv6", tcp::socket(Family::V6)),
        ("TCP listener", listener.into()),
        ("TCP client", client.into()),
        ("TCP server", accepted.into()),
        ("UDP", UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().into()),
        ("UDP over IPv6", UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap().into()),
        ("Unix", unix.into()),
    ]
}

/// Levels of options, and two that nobody has, beside that of the traits.
const LEVELS: [i32; 8] = [
    libc::SOL_SOCKET,
    libc::IPPROTO_IP,
    libc::IPPROTO_IPV6,
    libc::IPPROTO_TCP,
    libc::IPPROTO_UDP,
    libc::SOL_NETLINK,
    SOL_TRAITS - 1,
    abi::SOL_TRAITS_DATAGRAMS + 1,
];

#[test]
fn every_other_option_is_got_as_without() {
    const IP_PROTOCOL: i32 = 52; // include/uapi/linux/in.h
    const SO_MEMINFO: i32 = 55; // include/uapi/asm-generic/socket.h
    /// Options whose values are not the same of any two sockets.
    const VARYING: [(i32, i32); 8] = [
        (libc::SOL_SOCKET, libc::SO_INCOMING_CPU),
        (libc::SOL_SOCKET, libc::SO_INCOMING_NAPI_ID),
        (libc::SOL_SOCKET, libc::SO_COOKIE),
        (libc::SOL_SOCKET, SO_MEMINFO),
        (libc::SOL_SOCKET, libc::SO_PEERNAME),
        (libc::SOL_SOCKET, libc::SO_PEERPIDFD), // a new descriptor
        (libc::IPPROTO_IP, IP_PROTOCOL),        // a TCP socket's port
        (libc::IPPROTO_TCP, libc::TCP_TIMESTAMP),
    ];
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let outcomes = is_the_same_without(&lab, || {
        let mut outcomes = Vec::new();
        // kept until all have been asked: a server is another one when it hears that its client is gone
        for (kind, socket) in &sockets_of_every_kind() {
            for (level, option) in LEVELS.into_iter().flat_map(|level| (-1..130).map(move |option| (level, option))) {
                for len in [0, 1, 4, 8, 60, 300, 5000] {
                    let mut value = vec![sockopt::UNTOUCHED; len];
                    let result = sockopt::get(socket, level, option, &mut value);
                    // longer ones have counters and times in them
                    if len > 8 || VARYING.contains(&(level, option)) {
                        value.clear();
                    }
                    outcomes.push((*kind, level, option, len, result, value));
                }
            }
        }
        outcomes
    });
    assert!(outcomes.iter().filter(|(.., result, _)| result.is_ok()).count() > 1000);
}

#[test]
fn every_other_option_is_set_as_without() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let outcomes = is_the_same_without(&lab, || {
        let mut outcomes = Vec::new();
        for level in LEVELS {
            for option in -1..130 {
                // new ones, since an option may change what another one does
                for (kind, socket) in &sockets_of_every_kind() {
                    for (len, first) in [(0, 0), (1, 1), (4, 0), (4, 1), (8, 1), (5000, 0)] {
                        let mut value = vec![0; len];
                        if let Some(byte) = value.first_mut() {
                            *byte = first;
                        }
                        let result = sockopt::set(socket, level, option, &value);
                        outcomes.push((*kind, level, option, len, first, result));
                    }
                }
            }
        }
        outcomes
    });
    assert!(outcomes.iter().filter(|(.., result)| result.is_ok()).count() > 500);
}

/// BPF instructions (struct sock_filter) that accept everything, after many that do nothing.
fn long_filter() -> Vec<libc::sock_filter> {
    const LD_IMM: u16 = 0; // BPF_LD | BPF_IMM
    const RET_K: u16 = 6; // BPF_RET | BPF_K
    let nothing = libc::sock_filter { code: LD_IMM, jt: 0, jf: 0, k: 1 };
    let mut filter = vec![nothing; 4095];
    filter.push(libc::sock_filter { code: RET_K, k: u32::MAX, ..nothing });
    filter
}

/// A socket filter's instructions come back, and their number is told to who asks for none.
fn filter_outcomes() -> Vec<(Result<usize, i32>, Vec<u8>)> {
    let filter = long_filter();
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    // SAFETY: the struct is all bytes, without padding that anybody reads, and lives longer than this.
    let raw = unsafe { std::slice::from_raw_parts((&raw const program).cast::<u8>(), size_of_val(&program)) };
    sockopt::set(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, raw).unwrap();
    [0, 1, 4095, 4096, 5000]
        .into_iter()
        .map(|room| {
            let mut value = vec![sockopt::UNTOUCHED; room * size_of::<libc::sock_filter>()];
            (sockopt::get_units(&socket, libc::SOL_SOCKET, libc::SO_GET_FILTER, &mut value, room), value)
        })
        .collect()
}

/// A list of multicast sources that is longer than a page comes back.
fn source_list_outcomes() -> Vec<(Result<usize, i32>, Vec<u8>)> {
    const SOURCES: u32 = 2000;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let (group, interface) = (Ipv4Addr::new(232, 1, 1, 1), Ipv4Addr::new(10, 77, 0, 2));
    socket.join_multicast_v4(&group, &interface).unwrap();
    let mut filter = [group.octets(), interface.octets()].concat();
    filter.extend(1u32.to_ne_bytes()); // MCAST_INCLUDE
    filter.extend(SOURCES.to_ne_bytes());
    filter.extend((0..SOURCES).flat_map(|source| (0x0a4d_0100 + source).to_be_bytes()));
    let set = sockopt::set(&socket, libc::IPPROTO_IP, libc::IP_MSFILTER, &filter);
    let mut got = filter.clone();
    got[16..].fill(sockopt::UNTOUCHED);
    let get = sockopt::get(&socket, libc::IPPROTO_IP, libc::IP_MSFILTER, &mut got);
    vec![(set.map(|()| 0), filter), (get, got)]
}

#[test]
fn values_longer_than_a_page_are_as_without() {
    if !common::area_enabled() {
        return;
    }
    let lab = SocketLab::new();
    lab.pair.rx().netns().set_sysctl("net/ipv4/igmp_max_msf", "4096").unwrap();
    let filters = is_the_same_without(&lab, filter_outcomes);
    let results: Vec<_> = filters.iter().map(|(result, _)| *result).collect();
    assert_eq!(results, [Ok(4096), Err(libc::EINVAL), Err(libc::EINVAL), Ok(4096), Ok(4096)]);
    let lists = is_the_same_without(&lab, source_list_outcomes);
    assert_eq!(lists[0].0, Ok(0));
    assert_eq!(lists[1], (Ok(lists[0].1.len()), lists[0].1.clone()));
}

#[test]
fn errors_marks_ip_options_and_saved_syns_are_as_without() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let (tx, rx) = (lab.pair.tx(), lab.pair.rx());
    rx.netns()
        .nft(&format!(
            "add table inet marks; add chain inet marks c {{ type filter hook prerouting priority 0; }}; \
             add rule inet marks c tcp dport {TEST_PORT} meta mark set 5"
        ))
        .unwrap();
    rx.netns().set_sysctl("net/ipv4/tcp_fwmark_accept", "1").unwrap();
    let (addr, closed) = (lab.addr(Family::V4), tx.addr(Family::V4, 9));
    let client_addr = SocketAddr::new(tx.ip(Family::V4), 40000);
    let outcomes = is_the_same_without(&lab, || {
        let mut outcomes = Vec::new();
        let mut note = |what, result: Result<usize, i32>, value: &[u8]| outcomes.push((what, result, value.to_vec()));

        let refused = TcpStream::from(tcp::socket(Family::V4));
        refused.set_nonblocking(true).unwrap();
        assert_eq!(tcp::connect(&refused, closed), Err(libc::EINPROGRESS));
        assert!(tcp::readable(&refused));
        for what in ["the error", "no error any more"] {
            let mut error = [0; 4];
            note(what, sockopt::get(&refused, libc::SOL_SOCKET, libc::SO_ERROR, &mut error), &error);
        }

        let socket = tcp::socket(Family::V4);
        let record_route = [7, 7, 4, 0, 0, 0, 0, 0]; // RFC 791, page 20
        sockopt::set(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &record_route).unwrap();
        sockopt::set_int(&socket, libc::SOL_SOCKET, libc::SO_MARK, 9).unwrap();
        let mut value = [0; 40];
        note("IP options", sockopt::get(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &mut value), &value);
        note("its mark", sockopt::get(&socket, libc::SOL_SOCKET, libc::SO_MARK, &mut value), &value);

        let listener = tcp::socket(Family::V4);
        tcp::bind(&listener, addr);
        sockopt::set_int(&listener, libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, 1).unwrap();
        let listener = tcp::listen(listener);
        let client = tx.netns().enter(|| {
            let client = tcp::socket(Family::V4);
            tcp::bind(&client, client_addr);
            tcp::connect(&client, addr).unwrap();
            client
        });
        let (accepted, _) = tcp::accept(&listener);
        let mut mark = [0; 4];
        note("the SYN's mark", sockopt::get(&accepted, libc::SOL_SOCKET, libc::SO_MARK, &mut mark), &mark);
        let mut info = [0; 104];
        note("TCP_INFO", sockopt::get(&accepted, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info), &info[..1]);
        for what in ["the SYN", "no SYN any more"] {
            let mut syn = [0; 100];
            let result = sockopt::get(&accepted, libc::IPPROTO_TCP, libc::TCP_SAVED_SYN, &mut syn);
            // the addresses and ports are behind the identification and the checksum
            note(what, result, &syn[12..24]);
        }
        // not only closed, of which a process that another test has just started may have a copy: the next one has its address
        tcp::disconnect(&client);
        outcomes
    });
    let from_client = [10, 77, 0, 1, 10, 77, 0, 2, 0x9c, 0x40, 0x1e, 0x61];
    let expected: [(&str, usize, &[u8]); 8] = [
        ("the error", 4, &libc::ECONNREFUSED.to_ne_bytes()),
        ("no error any more", 4, &[0; 4]),
        ("IP options", 8, &[7, 7, 4, 0, 0, 0, 0, 0]),
        ("its mark", 4, &[9, 0, 0, 0]),
        ("the SYN's mark", 4, &[5, 0, 0, 0]),
        ("TCP_INFO", 104, &[1]), // established
        ("the SYN", 60, &from_client),
        ("no SYN any more", 0, &[0; 12]),
    ];
    assert_eq!(outcomes.len(), expected.len());
    for ((what, result, value), (_, len, start)) in outcomes.iter().zip(expected) {
        assert_eq!((*result, &value[..start.len()]), (Ok(len), start), "{what}");
    }
}
