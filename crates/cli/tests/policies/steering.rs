//! A trait chooses the socket: the member of a SO_REUSEPORT group, the AF_XDP socket.

use std::{
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd},
};

use libbpf_rs::{MapCore, MapFlags, MapHandle, Program};
use packet_traits_lab::{AfXdp, Family, Pair, RECV_TIMEOUT, number_of, recv_numbered, send_numbered, udp_socket};
use socket2::{Domain, Socket, Type};

use crate::host::Host;

const PORT: u16 = 7777;
/// A socket's buffer has room for 49 where each has a page of its own (6.1).
const DATAGRAMS: u64 = 40;

/// The tenant is the last digit of the sender's port.
const BY_PORT: &str = "\
key tenant u8
xdp {
	udp sport 5000  set tenant = 0
	udp sport 5001  set tenant = 1
	udp sport 5002  set tenant = 2
}
";

/// Sockets of the same address, in order.
fn group(pair: &Pair, family: Family, members: usize) -> Vec<UdpSocket> {
    let address = pair.rx().addr(family, PORT);
    let member = |_| {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.set_read_timeout(Some(RECV_TIMEOUT)).unwrap();
        socket.into()
    };
    pair.rx().netns().enter(|| (0..members).map(member).collect())
}

/// Gives the group a program that chooses.
fn choose_by(group: &[UdpSocket], program: &impl AsFd) {
    let fd = program.as_fd().as_raw_fd();
    // SAFETY: the option's value is an int, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            group[0].as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_EBPF,
            (&raw const fd).cast(),
            size_of_val(&fd) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_trait_chooses_the_member_of_a_group() {
    for family in Family::BOTH {
        let Some(host) = Host::new() else { return };
        let pair = Pair::new().unwrap();
        // members in another order than tenants, so that no hash is right by chance for all
        let policy = format!("{BY_PORT}steer workers {{\n\tmember trait tenant map {{ 0 : 2, 1 : 0, 2 : 1 }}\n}}\n");
        host.up(pair.rx(), &host.traits.policy("steer", &policy), &[]);
        let group = group(&pair, family, 3);
        choose_by(&group, &Program::fd_from_pinned_path(host.filter("steer", "workers")).unwrap());

        for (port, member) in [(5000, 2), (5001, 0), (5002, 1)] {
            let sender = udp_socket(pair.tx().netns(), pair.tx().addr(family, port)).unwrap();
            let first = u64::from(port) * 1000;
            send_numbered(&sender, pair.rx().addr(family, PORT), first..first + DATAGRAMS, 64).unwrap();
            for number in first..first + DATAGRAMS {
                assert_eq!(recv_numbered(&group[member]).unwrap(), number, "{family:?} port {port}");
            }
        }
        for socket in &group {
            socket.set_nonblocking(true).unwrap();
            assert!(recv_numbered(socket).is_err(), "no member got another's");
        }
    }
}

#[test]
fn without_the_trait_the_kernel_chooses_the_member() {
    let Some(host) = Host::new() else { return };
    let pair = Pair::new().unwrap();
    let policy = format!("{BY_PORT}steer workers {{\n\tmember trait tenant\n}}\n");
    host.up(pair.rx(), &host.traits.policy("steer", &policy), &[]);
    let group = group(&pair, Family::V4, 3);
    choose_by(&group, &Program::fd_from_pinned_path(host.filter("steer", "workers")).unwrap());
    let senders = (0..DATAGRAMS).map(|_| udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0)).unwrap());
    for (number, sender) in senders.enumerate() {
        let number = number as u64;
        send_numbered(&sender, pair.rx().addr(Family::V4, PORT), number..number + 1, 64).unwrap();
    }
    let mut of_each = group.iter().map(|socket| {
        socket.set_nonblocking(true).unwrap();
        std::iter::from_fn(|| recv_numbered(socket).ok()).count()
    });
    let counts: Vec<usize> = of_each.by_ref().collect();
    assert_eq!(counts.iter().sum::<usize>() as u64, DATAGRAMS);
    assert!(counts.iter().all(|count| *count > 0), "a hash spreads {DATAGRAMS} flows: {counts:?}");
}

#[test]
fn a_trait_chooses_the_af_xdp_socket_and_the_stack_has_the_rest() {
    // the UDP payload's place in the frame
    const PAYLOAD: usize = 14 + 20 + 8;
    let Some(host) = Host::new() else { return };
    let pair = Pair::new().unwrap();
    let policy = BY_PORT.replace("\n}\n", "\n\tudp dport 7777 and trait tenant 1  redirect xsk 3\n\tudp dport 7777 and trait tenant 2  redirect xsk 4\n}\n");
    host.up(pair.rx(), &host.traits.policy("xsk", &policy), &["--mode", "native"]);
    // in the third place, and nothing in the fourth
    let mut socket = AfXdp::bind(pair.rx(), 0, 128).unwrap();
    let sockets = MapHandle::from_pinned_path(host.traits.pins("xsk").join("maps/pt_xsks")).unwrap();
    sockets.update(&3u32.to_ne_bytes(), &socket.as_fd().as_raw_fd().to_ne_bytes(), MapFlags::ANY).unwrap();

    let stack = udp_socket(pair.rx().netns(), pair.rx().addr(Family::V4, PORT)).unwrap();
    let senders =
        [5000, 5001, 5002].map(|port| udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, port)).unwrap());
    for number in (0..DATAGRAMS).step_by(3) {
        for (sender, number) in senders.iter().zip(number..) {
            send_numbered(sender, stack.local_addr().unwrap(), number..number + 1, 64).unwrap();
        }
        assert_eq!(recv_numbered(&stack).unwrap(), number, "tenant 0 has no rule");
        let frame = socket.recv(|_| {}).unwrap();
        assert_eq!(number_of(&frame.packet[PAYLOAD..]), Some(number + 1), "tenant 1 has a socket");
        assert_eq!(recv_numbered(&stack).unwrap(), number + 2, "tenant 2 has none");
    }
}
