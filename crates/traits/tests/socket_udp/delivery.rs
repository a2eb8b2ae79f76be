//! Whatever kind of socket it is: each datagram comes with its own traits and its own mark.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use packet_traits::attach::XdpMode;
use packet_traits_lab::{Family, RECV_TIMEOUT, number_of, send_numbered, udp_socket};
use packet_traits_socket::{
    Keys, Received, ReceiverOptions, SocketError, SocketTraits, UdpTraits, abi::traits_receive,
};

use crate::{
    SIZE, assert_carried,
    common::{
        self, BOTH_MODES, TEST_PORT,
        datagrams::{Carried, Datagram, RawTraits, Reader, SO_RCVMARK, Way, bind_with, recvmsg, ring},
        sockets::{Assigned, ROOM, SocketLab},
        sockopt::{set, set_int},
    },
    mark_of, marking_lab, own, recv_shared, send, sized, wait_for_used,
};

/// Does something with every way of reading and both families.
fn each_way(mode: XdpMode, check: impl Fn(&SocketLab, Way, Family)) {
    if common::enabled() {
        let lab = marking_lab(Some(mode));
        for way in Way::ALL {
            for family in Family::BOTH {
                check(&lab, way, family);
            }
        }
    }
}

#[test]
fn unconnected_sockets_get_each_datagrams_own_traits() {
    for mode in BOTH_MODES {
        each_way(mode, |lab, way, family| {
            let (client, mut reader) = (lab.udp_client(family), Reader::new(way, lab.udp(family), lab));
            send(lab, &client, family, 0..40);
            let received = reader.recv_all(40);
            assert_carried(&received, 0..40, |number| Some(own(number)));
            let peer = client.local_addr().unwrap();
            assert!(received.iter().all(|datagram| (datagram.from, datagram.data.len()) == (peer, SIZE)));
            assert!(received.iter().all(|datagram| datagram.data[8..] == [0; SIZE - 8]));
        });
    }
}

#[test]
fn connected_sockets_get_each_datagrams_own_traits() {
    each_way(XdpMode::Native, |lab, way, family| {
        let (client, stranger) = (lab.udp_client(family), lab.udp_client(family));
        let socket = lab.udp(family);
        socket.connect(client.local_addr().unwrap()).unwrap();
        let mut reader = Reader::new(way, socket, lab);
        for number in 0..20 {
            let _refused = stranger.send(&[0xff; SIZE]);
            send(lab, &client, family, number..number + 1);
        }
        assert_carried(&reader.recv_all(20), 0..20, |number| Some(own(number)));
    });
}

#[test]
fn dual_stack_sockets_get_the_traits_of_both_families() {
    if !common::enabled() {
        return;
    }
    let lab = marking_lab(Some(XdpMode::Native));
    let [v4, v6] = Family::BOTH.map(|family| lab.udp_client(family));
    for way in Way::ALL {
        let socket = lab.inside(|| bind_with((Ipv6Addr::UNSPECIFIED, TEST_PORT).into(), &[])).unwrap();
        let mut reader = Reader::new(way, socket, &lab);
        for number in (0..40).step_by(2) {
            send(&lab, &v4, Family::V4, number..number + 1);
            send(&lab, &v6, Family::V6, number + 1..number + 2);
        }
        let mut received = reader.recv_all(40);
        received.sort_by_key(Datagram::number);
        assert_carried(&received, 0..40, |number| Some(own(number)));
        let SocketAddr::V4(peer) = v4.local_addr().unwrap() else { panic!("it is IPv4") };
        let mapped = SocketAddr::from((peer.ip().to_ipv6_mapped(), peer.port()));
        assert!(received.iter().step_by(2).all(|datagram| datagram.from == mapped));
    }
}

#[test]
fn members_of_a_reuseport_group_get_their_datagrams_own_traits() {
    const CLIENTS: u64 = 16;
    const EACH: u64 = 10;
    if !common::enabled() {
        return;
    }
    let mut lab = SocketLab::with(&sized(8, 256));
    lab.mark_some();
    for family in Family::BOTH {
        for ways in Way::ALL.chunks(4) {
            let member = |way: &Way| {
                let options =
                    [(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1), (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, ROOM)];
                Reader::new(*way, lab.inside(|| bind_with(lab.addr(family), &options)).unwrap(), &lab)
            };
            // four of them, of the ways that there are
            let mut group: Vec<Reader> = ways.iter().cycle().take(4).map(member).collect();
            for client in 0..CLIENTS {
                send(&lab, &lab.udp_client(family), family, client * EACH..(client + 1) * EACH);
            }
            let received = recv_shared(&mut group, (CLIENTS * EACH) as usize);
            assert!(received.iter().filter(|received| !received.is_empty()).count() > 1, "the kernel shares them out");
            let mut all: Vec<Datagram> = received.into_iter().flatten().collect();
            all.sort_by_key(Datagram::number);
            assert_carried(&all, 0..CLIENTS * EACH, |number| Some(own(number)));
            // the next group has no members of this one
            drop(group);
            wait_for_used(&lab, 0);
        }
    }
}

/// Two sockets that are in one multicast group, and a sender to it.
fn multicast(lab: &SocketLab, family: Family) -> (UdpSocket, [UdpSocket; 2], SocketAddr) {
    let (tx, rx) = (lab.pair.tx(), lab.pair.rx());
    let (v4, v6) = (Ipv4Addr::new(239, 77, 0, 1), "ff15::77".parse::<Ipv6Addr>().unwrap());
    let sender = udp_socket(tx.netns(), tx.addr(family, 0)).unwrap();
    let group = match family {
        Family::V4 => {
            set(&sender, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &tx.ipv4().octets()).unwrap();
            (v4, TEST_PORT).into()
        }
        Family::V6 => {
            let index = tx.ifindex().cast_signed();
            set_int(&sender, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, index).unwrap();
            (v6, TEST_PORT).into()
        }
    };
    let member = || {
        let socket = lab.inside(|| bind_with(group, &[(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)])).unwrap();
        match family {
            Family::V4 => socket.join_multicast_v4(&v4, &rx.ipv4()).unwrap(),
            Family::V6 => socket.join_multicast_v6(&v6, rx.ifindex()).unwrap(),
        }
        socket
    };
    (sender, [member(), member()], group)
}

#[test]
fn all_members_of_a_multicast_group_get_the_same_traits() {
    if !common::enabled() {
        return;
    }
    let lab = marking_lab(Some(XdpMode::Native));
    for family in Family::BOTH {
        for (way, other) in Way::ALL.into_iter().zip(Way::ALL.into_iter().cycle().skip(3)) {
            let (sender, [first, second], group) = multicast(&lab, family);
            let mut members = [Reader::new(way, first, &lab), Reader::new(other, second, &lab)];
            send_numbered(&sender, group, 0..20, SIZE).unwrap();
            for member in &mut members {
                assert_carried(&member.recv_all(20), 0..20, |number| Some(own(number)));
            }
        }
    }
}

/// A member that did not ask sees the mark, one that did the handle; the clones of one packet have marks of their own.
#[test]
fn a_multicast_member_without_traits_sees_the_mark_itself() {
    if !common::enabled() {
        return;
    }
    let lab = marking_lab(Some(XdpMode::Native));
    for family in Family::BOTH {
        for asks_first in [true, false] {
            let (sender, [first, second], group) = multicast(&lab, family);
            let (asks, plain) = if asks_first { (first, second) } else { (second, first) };
            set_int(&plain, libc::SOL_SOCKET, SO_RCVMARK, 1).unwrap();
            let mut asks = Reader::new(Way::Once, asks, &lab);
            send_numbered(&sender, group, 0..20, SIZE).unwrap();
            assert_carried(&asks.recv_all(20), 0..20, |number| Some(own(number)));
            let marks: Vec<_> = (0..20).map(|_| recvmsg(&plain, SIZE, 0).unwrap().mark().unwrap()).collect();
            assert_eq!(marks, (0..20).map(mark_of).collect::<Vec<_>>());
        }
    }
}

/// What a thread has received: number, tenant and flow_id of each datagram.
type Taken = Vec<(u64, Option<u32>, Option<u64>)>;

/// Receives until `count`, of all threads together, is `wanted` or it takes too long.
fn take(
    keys: &Keys,
    (count, wanted): (&AtomicU64, u64),
    recv: impl Fn(&mut [u8]) -> Result<Received, SocketError>,
) -> Taken {
    let (tenant, flow_id) = (keys.typed("tenant").unwrap(), keys.typed("flow_id").unwrap());
    let (mut taken, mut buffer) = (Vec::new(), [0; SIZE]);
    let deadline = Instant::now() + 2 * RECV_TIMEOUT;
    while count.load(Ordering::Relaxed) < wanted && Instant::now() < deadline {
        match recv(&mut buffer) {
            Ok(Received { len, traits, .. }) => {
                let number = number_of(&buffer[..len]).unwrap();
                taken.push((number, traits.get(&tenant), traits.get(&flow_id)));
                count.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
        }
    }
    taken
}

/// Each of four sockets, two of each family, is read by three threads, in different ways.
#[test]
fn several_threads_on_several_sockets_get_each_datagrams_own_traits() {
    const CLIENTS: u64 = 4;
    const EACH: u64 = 500;
    const ALL: u64 = CLIENTS * EACH;
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::with(&sized(4, 4096));
    let ring = ring(&lab);
    let receivers = [Family::V4, Family::V4, Family::V6, Family::V6].map(|family| {
        let options = [(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1), (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 32 << 20)];
        let socket = lab.inside(|| bind_with(lab.addr(family), &options)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let asks = ReceiverOptions::new().without_ring().build(socket.try_clone().unwrap()).unwrap();
        (asks, ReceiverOptions::new().ring(&ring).build(socket).unwrap())
    });
    let clients = (0..CLIENTS).map(|client| {
        let family = Family::BOTH[(client % 2) as usize];
        // several flows, so that both members of a group get some
        let sockets: Vec<_> = (0..8).map(|_| lab.udp_client(family)).collect();
        (client * EACH..(client + 1) * EACH, sockets, lab.addr(family))
    });
    let clients: Vec<_> = clients.collect();
    let (count, sent, start) = (&AtomicU64::new(0), &AtomicU64::new(0), Instant::now());
    let mut taken: Taken = thread::scope(|scope| {
        let mut threads = Vec::new();
        for (asks, mapped) in &receivers {
            let once = |buffer: &mut [u8]| asks.socket().recv_with_traits(asks.keys(), buffer);
            threads.push(scope.spawn(move || take(asks.keys(), (count, ALL), once)));
            threads.push(scope.spawn(move || take(asks.keys(), (count, ALL), |buffer| asks.recv(buffer))));
            threads.push(scope.spawn(move || take(mapped.keys(), (count, ALL), |buffer| mapped.recv(buffer))));
        }
        for (numbers, sockets, addr) in clients {
            scope.spawn(move || {
                for (number, socket) in numbers.zip(sockets.iter().cycle()) {
                    // a veth has room for 256
                    while sent.load(Ordering::Relaxed).saturating_sub(count.load(Ordering::Relaxed)) > 64 {
                        assert!(start.elapsed() < 6 * RECV_TIMEOUT, "datagrams were lost");
                        thread::yield_now();
                    }
                    sent.fetch_add(1, Ordering::Relaxed);
                    send_numbered(socket, addr, number..number + 1, SIZE).unwrap();
                }
            });
        }
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    taken.sort_unstable();
    let expected = (0..ALL).map(|number| {
        let Assigned { tenant, flow_id } = Assigned::datagram(number);
        (number, Some(tenant), Some(flow_id))
    });
    assert_eq!(taken, expected.collect::<Taken>());
}

#[test]
fn looking_at_a_datagram_leaves_its_traits() {
    each_way(XdpMode::Native, |lab, way, family| {
        let (client, mut reader) = (lab.udp_client(family), Reader::new(way, lab.udp(family), lab));
        send(lab, &client, family, 3..5);
        let looks = [0; 2].map(|_| recvmsg(reader.socket(), SIZE, libc::MSG_PEEK).unwrap());
        assert_eq!(looks[0], looks[1]);
        let handle = looks[0].mark().unwrap();
        let seen = RawTraits::of(reader.socket(), handle);
        assert_eq!((seen.present.count_ones(), seen.mark), (2, own(3).mark));
        assert_carried(&reader.recv_all(2), 3..5, |number| Some(own(number)));
        assert_eq!(
            RawTraits::of(reader.socket(), handle),
            seen,
            "it has its slot as long as the ring does not come round"
        );
    });
}

#[test]
fn a_datagram_that_is_cut_off_keeps_its_traits() {
    each_way(XdpMode::Native, |lab, way, family| {
        let client = lab.udp_client(family);
        let mut reader = Reader::with_room(way, lab.udp(family), lab, 4);
        send(lab, &client, family, 0..20);
        let received = reader.recv_all(20);
        assert!(received.iter().all(|datagram| datagram.data == [0; 4]));
        let carried: Vec<_> = received.iter().map(|datagram| datagram.carried).collect();
        assert_eq!(carried, (0..20).map(|number| Some(own(number))).collect::<Vec<_>>());
    });
}

#[test]
fn a_datagram_without_data_has_traits() {
    each_way(XdpMode::Native, |lab, way, family| {
        let (client, mut reader) = (lab.udp_client(family), Reader::new(way, lab.udp(family), lab));
        client.send(&[]).unwrap();
        send(lab, &client, family, 1..2);
        let received = reader.recv_all(2);
        // there is no number in it, from which its flow_id would follow
        let empty = Carried { flow_id: None, ..own(0) };
        let seen: Vec<_> = received.iter().map(|datagram| (datagram.data.len(), datagram.carried)).collect();
        assert_eq!(seen, [(0, Some(empty)), (SIZE, Some(own(1)))]);
    });
}

#[test]
fn a_non_blocking_socket_that_has_no_datagram_says_so() {
    each_way(XdpMode::Native, |lab, way, family| {
        let (client, mut reader) = (lab.udp_client(family), Reader::new(way, lab.udp(family), lab));
        reader.socket().set_nonblocking(true).unwrap();
        let empty = |reader: &mut Reader| reader.recv().unwrap_err();
        assert_eq!(empty(&mut reader).kind(), io::ErrorKind::WouldBlock);
        assert_eq!(empty(&mut reader).raw_os_error(), Some(libc::EAGAIN));
        send(lab, &client, family, 0..1);
        let mut readers = [reader];
        assert_carried(&recv_shared(&mut readers, 1)[0], 0..1, |number| Some(own(number)));
        assert_eq!(empty(&mut readers[0]).kind(), io::ErrorKind::WouldBlock);
    });
}

/// Turning it on again changes nothing, and `Keys::of` and `receive_state` may be asked of any socket.
#[test]
fn a_socket_keeps_its_ring_when_it_is_turned_on_again() {
    each_way(XdpMode::Native, |lab, way, family| {
        let socket = lab.udp(family);
        let before = socket.receive_state().unwrap();
        let none = traits_receive { enabled: 0, ring: 0, slots: 0, generation: 0, slot_len: 0, ..before };
        assert_eq!(before, none);
        let (client, mut reader) = (lab.udp_client(family), Reader::new(way, socket, lab));
        let state = reader.socket().receive_state().unwrap();
        let slot_len = 32 + lab.values_len() as u32;
        assert_eq!((state.enabled, state.slots, state.slot_len), (1, 64, slot_len.next_multiple_of(64)));
        send(lab, &client, family, 0..10);
        reader.socket().receive_traits(true).unwrap();
        assert_eq!(reader.socket().receive_state().unwrap(), state);
        assert_carried(&reader.recv_all(10), 0..10, |number| Some(own(number)));
    });
}

/// The numbers of handles are 32 bits. Three of them are no slot's, whose datagrams are not found.
#[test]
fn handles_start_over() {
    const FIRST: u32 = u32::MAX - 15;
    each_way(XdpMode::Native, |lab, way, family| {
        let (client, mut reader) = (lab.udp_client(family), Reader::new(way, lab.udp(family), lab));
        let ring = reader.socket().receive_state().unwrap().ring.to_ne_bytes();
        let rings = MapHandle::from_pinned_path(lab.lab.registry.dir().join("sockets/rings")).unwrap();
        let mut value = rings.lookup(&ring, MapFlags::ANY).unwrap().unwrap();
        // `next` of struct ring
        value[12..16].copy_from_slice(&FIRST.to_ne_bytes());
        rings.update(&ring, &value, MapFlags::ANY).unwrap();
        // each has traits, and so a handle
        send(lab, &client, family, 0..40);
        let has_slot = |number: u64| !matches!(FIRST.wrapping_add(number as u32), 0 | 0xffff_fffe | 0xffff_ffff);
        assert_carried(&reader.recv_all(40), 0..40, |number| has_slot(number).then(|| own(number)));
    });
}
