//! An application needs no privilege: all of it works as the user nobody, but for the mapped ring, which only root opens.

use std::{
    io,
    net::{Ipv6Addr, UdpSocket},
    process::{Command, Stdio},
    sync::Barrier,
    thread,
};

use packet_traits::{
    attach::XdpMode,
    registry::Registry,
    socket_programs::{AttachOptions, SocketPrograms},
};
use packet_traits_lab::Family;
use packet_traits_socket::{Receiver, Ring, SocketError, SocketTraits};

use crate::{
    SIZE, assert_carried,
    common::{
        self, TEST_PORT,
        datagrams::{Carried, Reader, Way, bind_with, recvmsg, wait_until_queued},
        sockets::{MARK, Setup, SocketLab},
    },
    marking_lab, own, send, wait_for_used,
};

const NOBODY: u32 = 65_534;

/// Runs `f` on a thread of user and group nobody.
fn as_nobody<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    as_user(NOBODY, f)
}

/// Runs `f` on a thread of this user, without capabilities. The rest of the process stays what it is.
fn as_user<R: Send>(uid: u32, f: impl FnOnce() -> R + Send) -> R {
    let change = |call: libc::c_long, a: libc::c_ulong, b: libc::c_ulong, c: libc::c_ulong| {
        // SAFETY: the calls below take numbers, and no groups. Unlike libc's functions they change this thread alone.
        let result = unsafe { libc::syscall(call, a, b, c) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    };
    let inside = || {
        let id = libc::c_ulong::from(uid);
        change(libc::SYS_setgroups, 0, 0, 0);
        change(libc::SYS_setresgid, id, id, id);
        change(libc::SYS_setresuid, id, id, id);
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(
            status.contains("CapPrm:\t0000000000000000") && status.contains("CapEff:\t0000000000000000"),
            "{status}"
        );
        f()
    };
    thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

#[test]
fn nobody_reads_the_traits_of_its_datagrams() {
    if !common::enabled() {
        return;
    }
    let lab = marking_lab(Some(XdpMode::Native));
    let clients = Family::BOTH.map(|family| (family, lab.udp_client(family)));
    for way in Way::ALL.into_iter().filter(|way| !way.is_mapped()) {
        let make = || {
            let socket = bind_with((Ipv6Addr::UNSPECIFIED, TEST_PORT).into(), &[]).unwrap();
            Reader::build(way, socket, None, SIZE)
        };
        let mut reader = lab.inside(|| as_nobody(make));
        for (family, client) in &clients {
            send(&lab, client, *family, 0..20);
            let received = as_nobody(|| reader.recv_all(20));
            assert_carried(&received, 0..20, |number| Some(own(number)));
        }
    }
}

#[test]
fn nobody_does_not_open_the_ring_and_does_without() {
    if !common::enabled() {
        return;
    }
    let lab = marking_lab(Some(XdpMode::Native));
    let registry = Registry::options().bpffs(lab.lab.bpffs().path());
    assert!(Ring::open(registry.slots_path()).is_ok(), "root does");
    let error = as_nobody(|| Ring::open(registry.slots_path()).unwrap_err());
    assert!(matches!(error, SocketError::Ring { .. }), "{error}");
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");

    let (client, socket) = (lab.udp_client(Family::V4), lab.udp(Family::V4));
    as_nobody(|| {
        // what an application does that knows nothing of rings
        let receiver = Receiver::new(&socket).unwrap();
        assert!(receiver.ring().is_none());
        send(&lab, &client, Family::V4, 3..4);
        let traits = receiver.recv(&mut [0; SIZE]).unwrap().traits;
        assert_eq!(traits.get(&receiver.keys().typed("flow_id").unwrap()), Some(3u64));
        assert_eq!(traits.mark(), Some(MARK));
    });
}

/// A lab with places for a number of sockets, and for a number of one user's.
fn shared_lab(sockets: u32, sockets_per_user: u32) -> SocketLab {
    let options = AttachOptions {
        sockets: Some(sockets),
        sockets_per_user: Some(sockets_per_user),
        ..Setup::default().options.unwrap()
    };
    SocketLab::with(&Setup { options: Some(options), ..Setup::default() })
}

/// Turns RCV_TRAITS on, in a thread of that user; root has all privileges.
fn turn_on(uid: u32, socket: &UdpSocket) -> Result<(), SocketError> {
    match uid {
        0 => socket.receive_traits(true),
        uid => as_user(uid, || socket.receive_traits(true)),
    }
}

/// How many of the places are whose.
fn users(lab: &SocketLab) -> Vec<(u32, u32)> {
    let users = SocketPrograms::status(&lab.lab.registry).unwrap().unwrap().users;
    users.iter().map(|user| (user.uid, user.sockets)).collect()
}

#[test]
fn a_user_has_its_part_of_the_places_and_leaves_the_others_theirs() {
    const OTHER: u32 = NOBODY - 1;
    if !common::enabled() {
        return;
    }
    let lab = shared_lab(6, 2);
    let client = lab.udp_client(Family::V4);
    let local = || lab.inside(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
    let refused = |uid, socket: &UdpSocket| {
        let error = turn_on(uid, socket).unwrap_err();
        assert!(matches!(error, SocketError::NoRoom { .. }), "{uid}: {error}");
        assert!(error.hint().unwrap().contains("`--sockets-per-user`"), "{error:?}");
    };

    let socket = lab.udp(Family::V4);
    let mut reader = as_nobody(|| Reader::new(Way::Once, socket, &lab));
    let second = local();
    turn_on(NOBODY, &second).unwrap();
    // whoever made the socket: the one who asks counts
    let socket = local();
    for _ in 0..3 {
        refused(NOBODY, &socket);
    }
    assert_eq!(users(&lab), [(NOBODY, 2)]);
    // again, on one that has its place
    turn_on(NOBODY, &second).unwrap();

    turn_on(OTHER, &socket).unwrap();
    let theirs = [socket, local()];
    turn_on(OTHER, &theirs[1]).unwrap();
    refused(OTHER, &local());
    assert_eq!(users(&lab), [(OTHER, 2), (NOBODY, 2)]);

    // root takes what is left
    let roots = [local(), local()];
    roots.iter().for_each(|socket| turn_on(0, socket).unwrap());
    let late = local();
    refused(0, &late);
    assert_eq!(users(&lab), [(0, 2), (OTHER, 2), (NOBODY, 2)]);

    // the ones that have a place go on
    send(&lab, &client, Family::V4, 0..20);
    assert_carried(&reader.recv_all(20), 0..20, |number| Some(Carried::by_xdp(number, 0)));

    // a place that is free again is for those who have not had their part
    drop(second);
    wait_for_used(&lab, 5);
    refused(OTHER, &late);
    turn_on(NOBODY, &late).unwrap();
    assert_eq!(users(&lab), [(0, 2), (OTHER, 2), (NOBODY, 2)]);
    drop((theirs, roots));
}

#[test]
fn users_together_leave_root_its_places() {
    const OTHER: u32 = NOBODY - 1;
    if !common::enabled() {
        return;
    }
    let lab = shared_lab(16, 8);
    let on = |uid| {
        let socket = lab.inside(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
        turn_on(uid, &socket).map(|()| socket)
    };
    let first: Vec<_> = (0..8).map(|_| on(NOBODY).unwrap()).collect();
    let second: Vec<_> = (0..6).map(|_| on(OTHER).unwrap()).collect();
    for uid in [OTHER, NOBODY - 2] {
        assert!(matches!(on(uid), Err(SocketError::NoRoom { .. })), "{uid}");
    }
    let roots = [on(0).unwrap(), on(0).unwrap()];
    assert!(matches!(on(0), Err(SocketError::NoRoom { .. })));
    assert_eq!(users(&lab), [(0, 2), (OTHER, 6), (NOBODY, 8)]);
    drop((first, second, roots));
}

#[test]
fn threads_of_a_user_that_race_for_places_get_no_more_than_its_part() {
    const PART: usize = 3;
    if !common::enabled() {
        return;
    }
    let lab = shared_lab(16, PART as u32);
    for _ in 0..20 {
        let sockets: Vec<_> = (0..8).map(|_| lab.inside(|| UdpSocket::bind("127.0.0.1:0")).unwrap()).collect();
        let start = Barrier::new(sockets.len());
        let turn_on = |socket: &UdpSocket| {
            as_nobody(|| {
                start.wait();
                socket.receive_traits(true).is_ok()
            })
        };
        let got = thread::scope(|scope| {
            let threads: Vec<_> = sockets.iter().map(|socket| scope.spawn(|| turn_on(socket))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).filter(|got| *got).count()
        });
        assert!(got <= PART, "{got}");
        assert_eq!(lab.sockets_used() as usize, got);
        // whoever lost a race can try again
        let again = sockets.iter().filter(|socket| as_nobody(|| socket.receive_traits(true).is_ok())).count();
        assert_eq!((again, lab.sockets_used() as usize), (PART, PART));
        drop(sockets);
        wait_for_used(&lab, 0);
    }
}

/// A process without any privilege, and without a library: it says what it has received, and what another process's handles
/// give it.
const RECEIVER: &str = r#"
import errno, os, socket, struct, sys
SOL_TRAITS, DATAGRAM, DATAGRAMS, RCV_TRAITS, KEYS = 0x5452, 0x5453, 0x5454, 0x200, 0
assert os.geteuid() == 65534
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.settimeout(5)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
s.bind(('::', 7777))
s.setsockopt(SOL_TRAITS, RCV_TRAITS, 1)
length = struct.unpack('IIII', s.getsockopt(SOL_TRAITS, RCV_TRAITS, 40)[:16])[1]
keys = {}
table = s.getsockopt(SOL_TRAITS, KEYS, 1000)
for i in range(0, len(table), 40):
    name, number, kind, size, merge, offset, distance = struct.unpack('32sBBBBHH', table[i:i + 40])
    keys[name.rstrip(b'\0').decode()] = number, offset, size
def values(raw):
    present, flags, mark = struct.unpack('QII', raw[:16])
    value = lambda key: int.from_bytes(raw[16 + key[1]:][:key[2]], sys.byteorder) if present >> key[0] & 1 else None
    return flags, mark, value(keys['tenant']), value(keys['flow_id'])
try:
    s.getsockopt(SOL_TRAITS, RCV_TRAITS, 39)
except OSError as error:
    assert error.errno == errno.EINVAL
print('ready', flush=True)
sys.stdin.readline()
for _ in range(4):
    data, control, flags, peer = s.recvmsg(64, 64)
    handle, = [struct.unpack('i', data)[0] for level, kind, data in control if (level, kind) == (1, 36)]
    one, several = s.getsockopt(DATAGRAM, handle, length), s.getsockopt(DATAGRAMS, handle, length)
    assert one == several
    print(int.from_bytes(data[:8], 'big'), *values(one), flush=True)
for handle in map(int, sys.argv[1:]):
    print(s.getsockopt(DATAGRAM, handle, length).strip(b'\0'), flush=True)
"#;

#[test]
fn a_process_of_nobody_reads_its_own_datagrams_and_no_others() {
    if !common::enabled() {
        return;
    }
    let lab = marking_lab(Some(XdpMode::Native));
    // another user's datagrams, which their owner still finds
    let client = lab.udp_client(Family::V4);
    let mut mine = Reader::new(Way::Once, lab.udp(Family::V4), &lab);
    send(&lab, &client, Family::V4, 100..104);
    let handles: Vec<i32> =
        (0..4).map(|_| recvmsg(mine.socket(), SIZE, 0).unwrap().mark().unwrap().cast_signed()).collect();

    let mut command = Command::new("python3");
    command.args(["-c", RECEIVER]).args(handles.iter().map(ToString::to_string));
    let mut command = lab.unprivileged(&command);
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin").current_dir("/");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = io::BufRead::lines(io::BufReader::new(child.stdout.take().unwrap()));
    let mut line = || lines.next().map(Result::unwrap).unwrap_or_default();
    assert_eq!(line(), "ready");
    assert_eq!(lab.sockets_used(), 2);
    let v6 = lab.udp_client(Family::V6);
    send(&lab, &v6, Family::V6, 3..7);
    drop(child.stdin.take());
    let expected = ["3 1 5 10 3", "4 1 0 11 4", "5 1 0 7 5", "6 1 5 8 6"];
    assert_eq!([0; 4].map(|_| line()), expected);
    assert_eq!([0; 4].map(|_| line()), ["b''"; 4], "none of the handles of another socket");
    assert!(child.wait().unwrap().success());

    send(&lab, &client, Family::V4, 0..2);
    wait_until_queued(mine.socket(), 2);
    assert_carried(&mine.recv_all(2), 0..2, |number| Some(own(number)));
}
