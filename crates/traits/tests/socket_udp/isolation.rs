//! A socket reads what came to it, and nothing of what came to another: at the same time, or before in the same ring.

use std::{
    io::{BufRead, BufReader},
    net::UdpSocket,
    os::fd::{FromRawFd, OwnedFd},
    process::{Child, Stdio},
};

use libc::{ENOSPC, EOPNOTSUPP, c_int};
use packet_traits::{
    attach::XdpMode,
    socket_programs::{AttachOptions, SocketPrograms},
};
use packet_traits_lab::{Cgroup, Family, KernelFeature, udp_socket};
use packet_traits_socket::{
    Receiver, ReceiverOptions, Ring, SocketError, SocketTraits,
    abi::{
        RCV_TRAITS, SAVE_SYN_TRAITS, SOCKET_TRAITS, SOL_TRAITS, SOL_TRAITS_DATAGRAM, SOL_TRAITS_DATAGRAMS, TRAITS_ALL,
        TRAITS_BATCH_MAX, TRAITS_KEYS,
    },
};

use crate::{
    SIZE, assert_carried,
    common::{
        self, TEST_PORT, attach_xdp,
        datagrams::{Carried, RawTraits, Reader, SO_RCVMARK, Way, get, recvmsg, ring},
        sockets::{Setup, SocketLab},
        sockopt::{get_int, set_int},
    },
    own, send, sized, wait_for_used,
};

/// Slots of a ring.
const SLOTS: u32 = 64;

/// Bytes of a datagram's values.
fn values_len() -> usize {
    if KernelFeature::LongMetadata.is_here() { 88 } else { 16 }
}

/// What is said of a datagram that is not found.
fn none() -> RawTraits {
    RawTraits { values: vec![0; values_len()], ..RawTraits::default() }
}

/// The handles of the next datagrams.
fn recv_handles(socket: &UdpSocket, count: u64) -> Vec<u32> {
    (0..count).map(|_| recvmsg(socket, SIZE, 0).unwrap().mark().unwrap()).collect()
}

/// How many handles in front of one are asked for with it.
const BEFORE: usize = TRAITS_BATCH_MAX / 2;

/// Checks that a socket cannot read any of these, one by one and several at once.
#[track_caller]
fn assert_none_found(socket: &UdpSocket, handles: &[u32]) {
    let several = TRAITS_BATCH_MAX * (16 + values_len());
    for handle in handles {
        assert_eq!(RawTraits::of(socket, *handle), none());
        let first = handle.wrapping_sub(BEFORE as u32);
        let raw = get(socket, SOL_TRAITS_DATAGRAMS, first.cast_signed(), several).unwrap();
        let answers: Vec<_> = raw.chunks(16 + values_len()).map(RawTraits::parse).collect();
        assert_eq!(answers, vec![none(); TRAITS_BATCH_MAX]);
    }
}

#[test]
fn a_socket_does_not_find_another_sockets_handles() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let sockets = Family::BOTH.map(|family| {
        let (client, socket) = (lab.udp_client(family), lab.udp(family));
        socket.receive_traits(true).unwrap();
        send(&lab, &client, family, 0..SLOTS.into());
        let handles = recv_handles(&socket, SLOTS.into());
        let own: Vec<_> = handles.iter().map(|handle| RawTraits::of(&socket, *handle)).collect();
        assert!(own.iter().all(|traits| traits.present == 3));
        (socket, handles, own)
    });
    let [(a, of_a, own_a), (b, of_b, own_b)] = &sockets;
    assert_none_found(a, of_b);
    assert_none_found(b, of_a);
    // a third that has no ring, and one that has one and has received nothing
    let lo = |port| lab.inside(|| UdpSocket::bind(("127.0.0.1", port))).unwrap();
    for asks in [false, true] {
        let c = lo(0);
        c.receive_traits(asks).unwrap();
        assert_none_found(&c, of_a);
        assert_none_found(&c, of_b);
    }
    // nobody has taken anything from them
    for (socket, handles, own) in [(a, of_a, own_a), (b, of_b, own_b)] {
        let again: Vec<_> = handles.iter().map(|handle| RawTraits::of(socket, *handle)).collect();
        assert_eq!(&again, own);
    }
}

/// Everything that a socket can be asked for about itself, and about handles from `handles` on.
fn everything(socket: &UdpSocket, handles: impl Iterator<Item = u32>) -> Vec<u8> {
    let mut all = Vec::new();
    let mut ask = |level: c_int, option: c_int, room: usize| {
        all.extend(get(socket, level, option, room).unwrap_or_default());
    };
    for handle in handles {
        ask(SOL_TRAITS_DATAGRAM, handle.cast_signed(), 240);
        ask(SOL_TRAITS_DATAGRAMS, handle.cast_signed(), 4096);
    }
    for option in [TRAITS_KEYS, RCV_TRAITS, SOCKET_TRAITS, SOCKET_TRAITS + 1, SOCKET_TRAITS + TRAITS_ALL] {
        ask(SOL_TRAITS, option, 4096);
    }
    all
}

/// A number of which every byte tells that it is a value of the earlier owner's.
const FORMER: u64 = 0xd1d2_d3d4_d5d6_0000;

fn has_former(bytes: &[u8]) -> bool {
    bytes.windows(6).any(|window| window == &FORMER.to_ne_bytes()[2..])
}

#[test]
fn a_rings_next_owner_sees_nothing_of_the_one_before() {
    if !common::enabled() {
        return;
    }
    let mut lab = SocketLab::with(&Setup { xdp: None, ..sized(1, SLOTS) });
    lab.mark_some();
    let client = lab.udp_client(Family::V4);
    let former = lab.udp(Family::V4);
    former.receive_traits(true).unwrap();
    let state = former.receive_state().unwrap();
    let xdp = attach_xdp(&lab.object, "assign", lab.pair.rx(), XdpMode::Native);
    send(&lab, &client, Family::V4, FORMER..FORMER + u64::from(SLOTS));
    let handles = recv_handles(&former, SLOTS.into());
    assert!(has_former(&everything(&former, handles.iter().copied())), "it can be told");
    drop((former, xdp));
    wait_for_used(&lab, 0);

    let socket = lab.udp(Family::V4);
    socket.receive_traits(true).unwrap();
    let next = socket.receive_state().unwrap();
    assert_eq!((next.ring, next.instance), (state.ring, state.instance), "there is one ring only");
    assert_ne!(next.generation, state.generation);
    let range = || handles[0].wrapping_sub(SLOTS)..handles[0].wrapping_add(3 * SLOTS);
    assert_none_found(&socket, &handles);
    assert!(!has_former(&everything(&socket, range())));

    // datagrams that have a mark but no traits take slots in which the former owner's values are
    let mapped = ReceiverOptions::new().ring(&ring(&lab)).build(&socket).unwrap();
    send(&lab, &client, Family::V4, 3..4);
    send(&lab, &client, Family::V4, 6..7);
    let traits = mapped.recv(&mut [0; SIZE]).unwrap().traits;
    assert!(traits.is_found() && traits.is_empty() && traits.iter(mapped.keys()).next().is_none());
    let handle = recv_handles(&socket, 1)[0];
    assert_eq!(RawTraits::of(&socket, handle), RawTraits { flags: 1, mark: own(6).mark, ..none() });
    assert!(!has_former(&everything(&socket, range())));
    // those of the former owner that are still in their slots
    assert_none_found(&socket, &handles[BEFORE..SLOTS as usize - BEFORE]);

    // and datagrams with traits overwrite them
    let _xdp = attach_xdp(&lab.object, "assign", lab.pair.rx(), XdpMode::Native);
    let mut reader = Reader::new(Way::Number, socket, &lab);
    send(&lab, &client, Family::V4, 0..u64::from(SLOTS));
    assert_carried(&reader.recv_all(SLOTS as usize), 0..u64::from(SLOTS), |number| Some(own(number)));
    assert!(!has_former(&everything(reader.socket(), range())));
}

/// A handle that the ring gives out again after its owner has changed is the new owner's.
#[test]
fn handles_go_on_where_the_one_before_left_off() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::with(&sized(1, SLOTS));
    let client = lab.udp_client(Family::V4);
    let mut last: Option<u32> = None;
    for _ in 0..3 {
        let socket = lab.udp(Family::V4);
        socket.receive_traits(true).unwrap();
        send(&lab, &client, Family::V4, 0..10);
        let handles = recv_handles(&socket, 10);
        if let Some(last) = last {
            assert_eq!(handles[0], last.wrapping_add(1));
        }
        last = handles.last().copied();
        drop(socket);
        wait_for_used(&lab, 0);
    }
}

#[test]
fn a_ring_is_free_when_the_last_descriptor_is_closed() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::with(&sized(2, SLOTS));
    for family in Family::BOTH {
        let socket = lab.udp(family);
        assert_eq!(lab.sockets_used(), 0, "it has not asked");
        socket.receive_traits(true).unwrap();
        assert_eq!(lab.sockets_used(), 1);
        let copy = socket.try_clone().unwrap();
        drop(socket);
        assert_eq!(lab.sockets_used(), 1);
        // it goes on
        let client = lab.udp_client(family);
        let mut reader = Reader::new(Way::Once, copy, &lab);
        send(&lab, &client, family, 0..5);
        assert_carried(&reader.recv_all(5), 0..5, |number| Some(own_unmarked(number)));
        // turned off it keeps its ring, for datagrams that it has received and not read yet
        reader.socket().receive_traits(false).unwrap();
        assert_eq!(lab.sockets_used(), 1);
        drop(reader);
        wait_for_used(&lab, 0);
    }
}

fn own_unmarked(number: u64) -> Carried {
    Carried { mark: 0, ..own(number) }
}

/// A process that has a socket with RCV_TRAITS, and waits.
const HOLDER: &str = "
import socket, sys
sock = socket.socket(socket.AF_INET if sys.argv[1] == 'V4' else socket.AF_INET6, socket.SOCK_DGRAM)
sock.bind(('', 0))
sock.setsockopt(0x5452, 0x200, 1)
print('ready', flush=True)
sys.stdin.read()
";

fn start_holder(lab: &SocketLab, family: Family) -> Child {
    let mut command = lab.command("python3");
    command.args(["-c", HOLDER, &format!("{family:?}")]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

#[test]
fn a_ring_is_free_when_its_owner_is_killed() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::with(&sized(4, SLOTS));
    let mut holders = Family::BOTH.map(|family| start_holder(&lab, family));
    assert_eq!(lab.sockets_used(), 2);
    for (holder, left) in holders.iter_mut().zip([1, 0]) {
        holder.kill().unwrap();
        let status = holder.wait().unwrap();
        assert!(!status.success(), "{status}");
        wait_for_used(&lab, left);
    }
}

#[test]
fn sockets_of_a_detached_cgroup_still_give_their_rings_back() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::with(&sized(4, SLOTS));
    let registry = &lab.lab.registry;
    let other = Cgroup::new().unwrap();
    let options = AttachOptions { cgroup: Some(other.path().to_owned()), ..AttachOptions::default() };
    SocketPrograms::attach(registry, &options).unwrap();
    // more often than a cgroup has room for programs (BPF_CGROUP_MAX_PROGS, 64)
    for _ in 0..70 {
        let socket = lab.udp(Family::V4);
        socket.receive_traits(true).unwrap();
        assert_eq!(lab.sockets_used(), 1);
        SocketPrograms::detach(registry, lab.cgroup.path()).unwrap();
        assert_eq!(get(&socket, SOL_TRAITS, RCV_TRAITS, 64), Err(EOPNOTSUPP));
        drop(socket);
        wait_for_used(&lab, 0);
        lab.attach_options(&AttachOptions::default());
    }
}

#[test]
fn raw_sockets_have_no_traits() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::with(&sized(2, SLOTS));
    for protocol in [libc::IPPROTO_UDP, libc::IPPROTO_TCP] {
        let socket = lab.inside(|| {
            // SAFETY: takes numbers only.
            let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            // SAFETY: it is open, and nobody else has it.
            unsafe { OwnedFd::from_raw_fd(fd) }
        });
        for option in [RCV_TRAITS, SAVE_SYN_TRAITS] {
            assert_eq!(set_int(&socket, SOL_TRAITS, option, 1), Err(EOPNOTSUPP));
        }
        assert_eq!(get(&socket, SOL_TRAITS, SOCKET_TRAITS + TRAITS_ALL, 256), Err(EOPNOTSUPP));
    }
    assert_eq!(lab.sockets_used(), 0);
}

#[test]
fn a_socket_for_which_there_is_no_ring_is_refused_and_the_others_go_on() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::with(&sized(3, SLOTS));
    let client = lab.udp_client(Family::V4);
    let mut reader = Reader::new(Way::Once, lab.udp(Family::V4), &lab);
    let local = || lab.inside(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
    let others = [local(), local()];
    for other in &others {
        other.receive_traits(true).unwrap();
    }
    let rings = [reader.socket(), &others[0], &others[1]].map(|socket| socket.receive_state().unwrap().ring);
    assert!(rings[0] != rings[1] && rings[1] != rings[2] && rings[0] != rings[2], "{rings:?}");

    let late = local();
    for _ in 0..3 {
        assert_eq!(set_int(&late, SOL_TRAITS, RCV_TRAITS, 1), Err(ENOSPC));
    }
    let error = late.receive_traits(true).unwrap_err();
    assert!(matches!(error, SocketError::NoRoom { .. }), "{error}");
    assert!(error.hint().unwrap().contains("`traits sockets attach --sockets`"), "{error:?}");
    assert!(matches!(Receiver::new(&late), Err(SocketError::NoRoom { .. })));
    let state = late.receive_state().unwrap();
    assert_eq!((state.enabled, state.slots), (0, 0));
    // nor has SO_RCVMARK been turned on
    assert_eq!(get_int(&late, libc::SOL_SOCKET, SO_RCVMARK), Ok(0));

    send(&lab, &client, Family::V4, 0..20);
    assert_carried(&reader.recv_all(20), 0..20, |number| Some(own_unmarked(number)));
    assert_eq!(lab.sockets_used(), 3);
    drop(others);
    wait_for_used(&lab, 1);
    late.receive_traits(true).unwrap();
    assert_eq!(lab.sockets_used(), 2);
    // again: it has one
    late.receive_traits(true).unwrap();
    assert_eq!(lab.sockets_used(), 2);
}

#[test]
fn a_pin_that_is_no_ring_is_refused() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let registry = lab.lab.registry.dir();
    for (pin, what) in [
        ("header", "it is a map of type 2 with flags"),
        ("sockets/programs/release", "it is not a map but anon_inode:bpf-prog"),
    ] {
        let error = Ring::open(registry.join(pin)).unwrap_err();
        assert!(matches!(error, SocketError::NotRing { .. }), "{error}");
        assert!(error.to_string().contains(pin) && error.to_string().contains(what), "{error}");
        assert_eq!(error.errno(), libc::EINVAL);
    }
}

#[test]
fn a_mapped_ring_of_another_attachment_is_refused() {
    if !common::enabled() {
        return;
    }
    let (lab, other) = (SocketLab::new(), SocketLab::new());
    let socket = lab.udp(Family::V4);
    let refused = |options: &ReceiverOptions| {
        let error = options.build(&socket).unwrap_err();
        assert!(matches!(error, SocketError::ForeignRing { .. }), "{error}");
        assert_eq!(error.errno(), libc::ESTALE);
    };
    // of another registry, with the same sizes
    refused(&ReceiverOptions::new().ring(&ring(&other)));

    let earlier = ring(&lab);
    assert!(ReceiverOptions::new().ring(&earlier).build(&socket).is_ok());
    SocketPrograms::detach_all(&lab.lab.registry).unwrap();
    lab.attach_options(&Setup::default().options.unwrap());
    // of the same registry's earlier attachment
    refused(&ReceiverOptions::new().ring(&earlier));
    assert_ne!(earlier.instance(), ring(&lab).instance());

    let receiver = ReceiverOptions::new().ring(&ring(&lab)).build(&socket).unwrap();
    assert_eq!(receiver.ring().unwrap().instance(), socket.receive_state().unwrap().instance);
}

/// Sockets of other processes in the same cgroup and outside it, at the same time.
#[test]
fn sockets_outside_the_cgroup_take_no_rings() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let outside = udp_socket(lab.pair.rx().netns(), lab.addr(Family::V4)).unwrap();
    assert!(matches!(outside.receive_traits(true), Err(SocketError::NotAttached { .. })));
    let client = lab.udp_client(Family::V4);
    send(&lab, &client, Family::V4, 0..5);
    for _ in 0..5 {
        recvmsg(&outside, SIZE, 0).unwrap();
    }
    assert_eq!((lab.sockets_used(), lab.addr(Family::V4).port()), (0, TEST_PORT));
}
