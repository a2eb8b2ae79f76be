//! What a socket says of what it sends is read at every egress hook of its host, for its packets and no others.

mod common;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    process::Command,
    sync::{Barrier, Mutex},
    thread,
    time::Duration,
};

use common::{
    Keys as KeyTable, Lab, TEST_PORT, attach_netfilter, attach_tc, attach_tracing,
    c_program::{Folder, compile},
    program,
    record::{self, HAS_ALL, HAS_SEQ, Record, Records, Stage, set_global, shown},
    sizes::{LAYOUTS, Sizes, VALUES},
    sockets::{SOCKET_KEYS, Setup, SocketLab},
    sockopt, tcp,
};
use packet_traits::{
    KeyType, Merge, Value,
    attach::{Attachment, CgroupHook, Direction, NetfilterHook, cgroup},
    bind::LoadedObject,
    socket_programs::{AttachOptions, SocketPrograms},
};
use packet_traits_lab::{Cgroup, Chain, End, Family, Netns, VethOptions, udp_socket};
use packet_traits_socket::{
    Keys, SocketError, SocketTraits, TcpTraits, Traits, UdpTraits,
    abi::{self, NEXT_TRAITS, SOCKET_TRAITS, SOL_TRAITS, TRAITS_ALL},
};

/// The keys of `sockets.bpf.c` and those of `record.bpf.h`.
const KEYS: KeyTable = &[
    SOCKET_KEYS[0],
    SOCKET_KEYS[1],
    ("port", KeyType::U16, Merge::Block),
    ("marked", KeyType::Flag, Merge::Block),
    ("seq", KeyType::U64, Merge::KeepFirst),
    ("rx_ts", KeyType::Timestamp, Merge::KeepFirst),
    ("src", KeyType::Ipv6, Merge::KeepFirst),
    ("tiny", KeyType::U8, Merge::KeepFirst),
];

/// The hooks that a packet passes, in this order.
const HOOKS: [Stage; 5] =
    [Stage::LocalOut, Stage::PostRouting, Stage::CgroupEgress, Stage::TcEgress, Stage::NetDevQueue];

/// `HAS_TENANT` and `HAS_MARKED`.
const HAS_TENANT: u32 = 1;
const HAS_MARKED: u32 = 4;

/// What `describe` of `sender.bpf.c` says of a packet.
const IS_TCP: u64 = 1 << 32;
const IS_SYN: u64 = 1 << 33;
const IS_FIN: u64 = 1 << 34;
const IS_FRAGMENT: u64 = 1 << 35;

/// All traits of [`KEYS`] that `record.bpf.h` has, chosen by a number.
fn values(number: u64) -> record::Traits {
    record::Traits {
        seq: number,
        rx_ts: number * 3 + 1,
        src: [number as u8; 16],
        tenant: (number as u32).wrapping_mul(2_654_435_761),
        port: number as u16 ^ 0x5555,
        tiny: (number * 7) as u8,
    }
}

/// None of them.
const NOTHING: record::Traits = record::Traits { seq: 0, rx_ts: 0, src: [0; 16], tenant: 0, port: 0, tiny: 0 };

/// A link whose receiver sends, from sockets with the options, and reports at every hook.
struct Sender {
    object: LoadedObject,
    attached: Vec<Attachment>,
    keys: Keys,
    lab: SocketLab,
}

impl Sender {
    fn new() -> Sender {
        Sender::with(VethOptions::new())
    }

    fn with(veth: VethOptions) -> Sender {
        let mut sender = Sender::unwatched(veth);
        let egress = program(&sender.object, "cgroup_egress");
        let path = sender.lab.cgroup.path();
        sender.attached.push(cgroup::attach_path(egress.as_fd(), path, CgroupHook::Egress).unwrap());
        sender
    }

    /// The same without a program at the cgroup.
    fn unwatched(veth: VethOptions) -> Sender {
        Sender::over(SocketLab::with(&Setup { keys: KEYS, xdp: None, veth, ..Setup::default() }))
    }

    /// The same on a link whose receiver's sockets have the options.
    fn over(lab: SocketLab) -> Sender {
        let object = lab.lab.load("sender");
        let rx = lab.pair.rx();
        set_global(&object, "netns_cookie", cookie(rx.netns()));
        let mut attached = Vec::new();
        for family in Family::BOTH {
            let hooks = [("local_out", NetfilterHook::Output), ("post_routing", NetfilterHook::PostRouting)];
            attached.extend(attach_netfilter(&object, rx, family, &hooks));
        }
        attached.push(attach_tc(&object, "tc_egress", rx, Direction::Egress));
        attached.push(attach_tc(&object, "tc_ingress", lab.pair.tx(), Direction::Ingress));
        attached.extend(attach_tracing(&object, &["net_dev_queue"]));
        let keys = Keys::of(&lab.udp(Family::V4)).unwrap();
        Sender { object, attached, keys, lab }
    }

    /// All traits, chosen by a number.
    fn traits(&self, number: u64) -> Traits {
        let (mut traits, values) = (Traits::new(&self.keys), values(number));
        let mut set = |key, value: Value| traits.set_value(self.keys.get(key).unwrap(), &value).unwrap();
        set("tenant", Value::U32(values.tenant));
        set("port", Value::U16(values.port));
        set("marked", Value::Flag);
        set("seq", Value::U64(values.seq));
        set("rx_ts", Value::Timestamp(values.rx_ts));
        set("src", Value::Ipv6(values.src.into()));
        set("tiny", Value::U8(values.tiny));
        traits
    }

    /// Only `seq`.
    fn seq(&self, number: u64) -> Traits {
        let mut traits = Traits::new(&self.keys);
        traits.set(&self.keys.typed("seq").unwrap(), number).unwrap();
        traits
    }

    /// Where everything is sent: to the other end, [`TEST_PORT`].
    fn to(&self, family: Family) -> SocketAddr {
        self.lab.pair.tx().addr(family, TEST_PORT)
    }

    /// A socket with the options.
    fn unconnected(&self, family: Family) -> UdpSocket {
        self.lab.inside(|| UdpSocket::bind(SocketAddr::new(self.lab.addr(family).ip(), 0))).unwrap()
    }

    /// A socket with the options, connected to [`to`](Self::to).
    fn udp(&self, family: Family) -> UdpSocket {
        let socket = self.unconnected(family);
        socket.connect(self.to(family)).unwrap();
        socket
    }

    /// Who gets what is sent, so that nobody answers that there is no such port.
    fn sink(&self, family: Family) -> UdpSocket {
        udp_socket(self.lab.pair.tx().netns(), self.to(family)).unwrap()
    }

    /// What has been reported since the last call.
    fn records(&self) -> Records {
        let records = Records::collect(&self.object, |_| true);
        for record in records.at(Stage::TcIngress) {
            assert_eq!((record.present, record.extra), (0, 0), "the other end sees something: {record:?}");
        }
        records
    }
}

/// The number by which the kernel tells namespaces apart.
fn cookie(netns: &Netns) -> u64 {
    let socket = netns.enter(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let mut cookie = [0; 8];
    sockopt::get(&socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, &mut cookie).unwrap();
    u64::from_ne_bytes(cookie)
}

/// A datagram that begins with its number.
fn datagram(number: u64) -> [u8; 64] {
    let mut data = [0; 64];
    data[..8].copy_from_slice(&number.to_be_bytes());
    data
}

/// What a hook saw of each datagram, by its number: which traits, and their values.
#[track_caller]
fn by_number(records: &Records, hook: Stage) -> BTreeMap<u32, (u32, record::Traits)> {
    let mut seen = BTreeMap::new();
    for record in records.at(hook) {
        let before = seen.insert(record.len, (record.present, record.traits));
        assert_eq!(before, None, "datagram {} was at {hook:?} twice", record.len);
    }
    seen
}

/// Checks that every hook has seen just these datagrams and their traits.
#[track_caller]
fn assert_seen(records: &Records, expected: impl IntoIterator<Item = (u64, (u32, record::Traits))>) {
    let expected: BTreeMap<u32, _> = expected.into_iter().map(|(number, seen)| (number as u32, seen)).collect();
    for hook in shown(HOOKS) {
        let seen = by_number(records, hook);
        let differences: Vec<_> = expected
            .iter()
            .filter(|(number, wanted)| seen.get(number) != Some(wanted))
            .map(|(number, wanted)| (number, wanted, seen.get(number)))
            .collect();
        let first = &differences[..differences.len().min(3)];
        assert!(first.is_empty(), "{hook:?}: {} datagrams, among them {first:#?}", differences.len());
        assert_eq!(seen.len(), expected.len(), "{hook:?}");
    }
}

/// All traits of a number are seen.
fn full(number: u64) -> (u32, record::Traits) {
    (HAS_ALL, values(number))
}

const ABSENT: (u32, record::Traits) = (0, NOTHING);

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
fn changed_and_deleted_values_count_at_once() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    let (_sink, socket) = (sender.sink(Family::V4), sender.udp(Family::V4));
    let mut expected = Vec::new();
    let mut send = |socket: &UdpSocket, seen| {
        let number = expected.len() as u64;
        socket.send(&datagram(number)).unwrap();
        expected.push((number, seen));
    };
    let key = |name| sender.keys.get(name).unwrap();
    send(&socket, ABSENT);
    socket.set_traits(&sender.traits(1)).unwrap();
    send(&socket, full(1));
    socket.set_traits(&sender.traits(2)).unwrap();
    send(&socket, full(2));
    socket.set_trait(&sender.keys.typed("seq").unwrap(), 77u64).unwrap();
    let mut changed = record::Traits { seq: 77, ..values(2) };
    send(&socket, (HAS_ALL, changed));
    socket.set_value(key("tiny"), &Value::U8(9)).unwrap();
    changed.tiny = 9;
    send(&socket, (HAS_ALL, changed));
    socket.delete_trait(key("seq")).unwrap();
    changed.seq = 0;
    send(&socket, (HAS_ALL & !HAS_SEQ, changed));
    socket.delete_trait(key("marked")).unwrap();
    send(&socket, (HAS_ALL & !HAS_SEQ & !HAS_MARKED, changed));
    socket.set_value(key("marked"), &Value::Flag).unwrap();
    send(&socket, (HAS_ALL & !HAS_SEQ, changed));
    // as an int of 0
    let marked = SOCKET_TRAITS + key("marked").number() as i32;
    sockopt::set_int(&socket, SOL_TRAITS, marked, 0).unwrap();
    send(&socket, (HAS_ALL & !HAS_SEQ & !HAS_MARKED, changed));
    // what it was told is what it says
    let own = socket.own_traits(&sender.keys).unwrap();
    assert_eq!(own.get(&sender.keys.typed::<u8>("tiny").unwrap()), Some(9));
    assert!(!own.is_set(key("seq")) && !own.is_set(key("marked")) && own.is_set(key("src")));
    // only one: the others are deleted
    socket.set_traits(&sender.seq(8)).unwrap();
    send(&socket, (HAS_SEQ, record::Traits { seq: 8, ..NOTHING }));
    socket.set_traits(&Traits::new(&sender.keys)).unwrap();
    send(&socket, ABSENT);
    assert_seen(&sender.records(), expected);
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

#[test]
fn next_traits_are_for_udp() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    for family in Family::BOTH {
        let socket = sender.lab.inside(|| tcp::socket(family));
        let error = socket.set_next_traits(&sender.traits(1)).unwrap_err();
        assert!(matches!(error, SocketError::WrongSocket { .. }), "{error}");
        let udp = sender.udp(family);
        for option in [NEXT_TRAITS, NEXT_TRAITS + TRAITS_ALL] {
            assert_eq!(sockopt::get(&udp, SOL_TRAITS, option, &mut [0; 300]), Err(libc::EINVAL));
        }
    }
}

#[test]
fn values_of_the_wrong_size_are_refused_and_change_nothing() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    let socket = sender.udp(Family::V4);
    socket.set_traits(&sender.traits(1)).unwrap();
    let before = socket.own_traits(&sender.keys).unwrap();
    let needed = socket.receive_state().unwrap().traits_len as usize;
    for option in [SOCKET_TRAITS, NEXT_TRAITS] {
        for key in &sender.keys {
            let sizes: &[usize] = if key.key_type() == KeyType::Flag { &[1, 4] } else { &[key.key_type().size()] };
            for len in [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 5000].into_iter().filter(|len| !sizes.contains(len)) {
                let result = sockopt::set(&socket, SOL_TRAITS, option + key.number() as i32, &vec![1; len]);
                assert_eq!(result, Err(libc::EINVAL), "{}, {len} bytes", key.name());
            }
        }
        let unregistered = 1u64 << 63;
        let mut unknown = vec![0; needed];
        unknown[..8].copy_from_slice(&unregistered.to_ne_bytes());
        let too_long = vec![0; size_of::<abi::traits>() + 1];
        for value in [vec![], vec![0; 8], vec![0; needed - 1], too_long, vec![0; 5000], unknown] {
            let result = sockopt::set(&socket, SOL_TRAITS, option + TRAITS_ALL, &value);
            assert_eq!(result, Err(libc::EINVAL), "{} bytes", value.len());
        }
    }
    let after = socket.own_traits(&sender.keys).unwrap();
    assert!(after.iter(&sender.keys).eq(before.iter(&sender.keys)));
    let _sink = sender.sink(Family::V4);
    socket.send(&datagram(0)).unwrap();
    assert_seen(&sender.records(), [(0, full(1))]);
}

/// What is kept of a socket counts as its option memory, which is limited.
#[test]
fn what_does_not_fit_is_refused_and_what_was_set_before_stays() {
    const LIMIT: &str = "net/core/optmem_max";
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    let rx = sender.lab.pair.rx().netns();
    let plenty = rx.sysctl(LIMIT).unwrap();
    let (_sink, full_before, never) = (sender.sink(Family::V4), sender.udp(Family::V4), sender.udp(Family::V4));
    let listener = sender.lab.listener(Family::V4);
    full_before.set_traits(&sender.traits(1)).unwrap();

    rx.set_sysctl(LIMIT, "300").unwrap();
    let is_refused = |result: Result<(), SocketError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, SocketError::NoRoom { .. }), "{error}");
        assert_eq!(error.errno(), libc::ENOSPC);
    };
    is_refused(never.set_traits(&sender.traits(2)));
    is_refused(never.set_value(sender.keys.get("marked").unwrap(), &Value::Flag));
    is_refused(never.set_next_traits(&sender.traits(2)));
    is_refused(full_before.receive_traits(true));
    is_refused(listener.receive_traits(true));
    is_refused(listener.save_syn_traits(true));
    assert!(never.own_traits(&sender.keys).unwrap().is_empty());
    never.send(&datagram(0)).unwrap();
    full_before.send(&datagram(1)).unwrap();
    // there is room for it already
    full_before.set_traits(&sender.traits(3)).unwrap();
    full_before.send(&datagram(2)).unwrap();

    rx.set_sysctl(LIMIT, &plenty).unwrap();
    never.set_traits(&sender.traits(4)).unwrap();
    never.send(&datagram(3)).unwrap();
    assert_seen(&sender.records(), [(0, ABSENT), (1, full(1)), (2, full(3)), (3, full(4))]);
}

#[test]
fn every_size_is_seen_in_every_layout() {
    if !common::area_enabled() {
        return;
    }
    for layout in LAYOUTS {
        for family in Family::BOTH {
            let mut sizes = Sizes::new(layout);
            sizes.watch(family);
            let (from, to) = (sizes.pair.rx().addr(family, 0), sizes.pair.tx().addr(family, TEST_PORT));
            let _sink = udp_socket(sizes.pair.tx().netns(), to).unwrap();
            let socket = sizes.inside(|| UdpSocket::bind(from)).unwrap();
            socket.connect(to).unwrap();
            let keys = Keys::of(&socket).unwrap();
            let key = |name| keys.get(name).unwrap();
            let at_every_hook = |values: &[(&'static str, Value)]| {
                sizes.watched().map(|hook| (hook, values.to_vec())).collect::<Vec<_>>()
            };
            // one more with each datagram
            for (index, (name, value)) in VALUES.iter().enumerate() {
                socket.set_value(key(name), value).unwrap();
                assert_eq!(socket.own_value(key(name)).unwrap().as_ref(), Some(value));
                socket.send(&[0; 16]).unwrap();
                assert_eq!(sizes.seen(), at_every_hook(&VALUES[..=index]), "{layout:?}");
            }
            // one less
            for (index, (name, _)) in VALUES.iter().enumerate() {
                socket.delete_trait(key(name)).unwrap();
                assert_eq!(socket.own_value(key(name)).unwrap(), None);
                socket.send(&[0; 16]).unwrap();
                assert_eq!(sizes.seen(), at_every_hook(&VALUES[index + 1..]), "{layout:?}");
            }
            // one datagram's
            for (name, value) in &VALUES {
                let mut traits = Traits::new(&keys);
                traits.set_value(key(name), value).unwrap();
                socket.send_with_traits(&[0; 16], &traits).unwrap();
                assert_eq!(sizes.seen(), at_every_hook(&[(*name, *value)]), "{layout:?}");
                socket.send(&[0; 16]).unwrap();
                assert_eq!(sizes.seen(), at_every_hook(&[]), "{layout:?}");
            }
        }
    }
}

#[test]
fn a_router_sees_nothing_of_what_a_sender_says() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let lab = Lab::new();
        let chain = Chain::new().unwrap();
        let cgroup = Cgroup::new().unwrap();
        let few = Some(2);
        let options = AttachOptions {
            cgroup: Some(cgroup.path().to_owned()),
            sockets: few,
            slots: few,
            pending_syns: few,
            ..AttachOptions::default()
        };
        SocketPrograms::attach(&lab.registry, &options).unwrap();
        let watch = |end: &End, incoming: Option<&End>| {
            let object = lab.load("sender");
            set_global(&object, "netns_cookie", cookie(end.netns()));
            let mut attached = attach_netfilter(&object, end, family, &[("post_routing", NetfilterHook::PostRouting)]);
            attached.push(attach_tc(&object, "tc_egress", end, Direction::Egress));
            attached.extend(attach_tracing(&object, &["net_dev_queue"]));
            attached.extend(incoming.map(|end| attach_tc(&object, "tc_ingress", end, Direction::Ingress)));
            (object, attached)
        };
        let (at_client, _client) = watch(chain.client(), None);
        let (at_router, _router) = watch(chain.router_out(), Some(chain.router_in()));
        let sink = udp_socket(chain.server().netns(), chain.server().addr(family, TEST_PORT)).unwrap();
        let from = chain.client().addr(family, 0);
        let socket = cgroup.enter(|| chain.client().netns().enter(|| UdpSocket::bind(from))).unwrap();
        let keys = Keys::of(&socket).unwrap();
        let mut traits = Traits::new(&keys);
        traits.set(&keys.typed("seq").unwrap(), 5u64).unwrap();
        socket.set_traits(&traits).unwrap();
        for number in 0..20 {
            let to = chain.server().addr(family, TEST_PORT);
            if number % 2 == 0 {
                socket.send_to(&datagram(number), to).unwrap();
            } else {
                socket.send_to_with_traits(&datagram(number), to, &traits).unwrap();
            }
            sink.recv(&mut [0; 64]).unwrap();
        }
        for (object, present) in [(&at_client, HAS_SEQ), (&at_router, 0)] {
            let records = Records::collect(object, |_| true);
            for hook in shown([Stage::PostRouting, Stage::TcEgress, Stage::NetDevQueue]) {
                assert_eq!(records.count(hook), 20, "{hook:?}");
                assert!(records.at(hook).all(|record| record.present == present), "{hook:?}");
            }
            assert!(records.at(Stage::TcIngress).all(|record| record.present == 0), "it has just come in");
        }
    }
}

/// What is seen of a datagram with only `seq` of its own, over all traits of its socket.
fn seq_over(number: u64, of_socket: u64) -> (u32, record::Traits) {
    (HAS_ALL, record::Traits { seq: number, ..values(of_socket) })
}

/// The memory of a datagram's skb is the next one's at once, since nobody keeps what arrives.
#[test]
fn a_datagrams_own_traits_are_not_the_next_ones() {
    const DATAGRAMS: u64 = 4000;
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let sender = Sender::new();
        let _sink = full_sink(&sender, family);
        let socket = sender.udp(family);
        let send = |number: u64| match number % 2 {
            0 => socket.send(&datagram(number)).unwrap(),
            _ => socket.send_with_traits(&datagram(number), &sender.traits(number)).unwrap(),
        };
        for number in 0..DATAGRAMS {
            send(number);
        }
        let own = |number| if number % 2 == 0 { ABSENT } else { full(number) };
        assert_seen(&sender.records(), (0..DATAGRAMS).map(|number| (number, own(number))));

        socket.set_traits(&sender.traits(9)).unwrap();
        let send = |number: u64| match number % 3 {
            0 => socket.send(&datagram(number)).unwrap(),
            1 => socket.send_with_traits(&datagram(number), &sender.traits(number)).unwrap(),
            _ => socket.send_with_traits(&datagram(number), &sender.seq(number)).unwrap(),
        };
        for number in 0..DATAGRAMS {
            send(number);
        }
        let seen = |number| match number % 3 {
            0 => full(9),
            1 => full(number),
            _ => seq_over(number, 9),
        };
        assert_seen(&sender.records(), (0..DATAGRAMS).map(|number| (number, seen(number))));
    }
}

/// A [`Sender::sink`] with room for a few datagrams: those that come later are dropped at once.
fn full_sink(sender: &Sender, family: Family) -> UdpSocket {
    let sink = sender.sink(family);
    sockopt::set_int(&sink, libc::SOL_SOCKET, libc::SO_RCVBUF, 1).unwrap();
    sink
}

/// Four threads send with traits, with a lock around that, and two without either.
#[test]
fn threads_of_one_socket_send_each_its_own_traits() {
    const EACH: u64 = 1000;
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let sender = Sender::new();
        let _sink = full_sink(&sender, family);
        let socket = sender.udp(family);
        socket.set_traits(&sender.traits(9)).unwrap();
        let lock = Mutex::new(());
        let keys = &sender.keys;
        let traits = |number| {
            let mut traits = Traits::new(keys);
            traits.set(&keys.typed("seq").unwrap(), number).unwrap();
            traits
        };
        thread::scope(|scope| {
            for first in (0..6).map(|thread| thread * EACH) {
                let (socket, lock, traits) = (&socket, &lock, &traits);
                scope.spawn(move || {
                    for number in first..first + EACH {
                        if first < 4 * EACH {
                            let _locked = lock.lock().unwrap();
                            socket.send_with_traits(&datagram(number), &traits(number)).unwrap();
                        } else {
                            socket.send(&datagram(number)).unwrap();
                        }
                    }
                });
            }
        });
        let seen = |number| if number < 4 * EACH { seq_over(number, 9) } else { full(9) };
        assert_seen(&sender.records(), (0..6 * EACH).map(|number| (number, seen(number))));
    }
}

#[test]
fn another_threads_datagram_does_not_take_what_a_thread_has_set() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    let (_sink, socket) = (sender.sink(Family::V4), sender.udp(Family::V4));
    socket.set_next_traits(&sender.traits(1)).unwrap();
    thread::scope(|scope| drop(scope.spawn(|| socket.send(&datagram(0)).unwrap())));
    socket.send(&datagram(1)).unwrap();
    socket.send(&datagram(2)).unwrap();
    // the other thread's takes the place of what this one has set: one of them at a time
    socket.set_next_traits(&sender.traits(3)).unwrap();
    let keys = &sender.keys;
    let theirs = sender.seq(4);
    thread::scope(|scope| drop(scope.spawn(|| socket.send_with_traits(&datagram(4), &theirs).unwrap())));
    socket.send(&datagram(3)).unwrap();
    // key by key, and taken back
    socket.set_next_traits(&sender.traits(5)).unwrap();
    let seq = NEXT_TRAITS + keys.get("seq").unwrap().number() as i32;
    sockopt::set(&socket, SOL_TRAITS, seq, &55u64.to_ne_bytes()).unwrap();
    socket.send(&datagram(5)).unwrap();
    socket.set_next_traits(&sender.traits(6)).unwrap();
    socket.set_next_traits(&Traits::new(keys)).unwrap();
    socket.send(&datagram(6)).unwrap();
    socket.set_next_traits(&sender.seq(7)).unwrap();
    sockopt::set(&socket, SOL_TRAITS, seq, &[]).unwrap();
    socket.send(&datagram(7)).unwrap();
    sockopt::set(&socket, SOL_TRAITS, seq, &8u64.to_ne_bytes()).unwrap();
    socket.send(&datagram(8)).unwrap();
    let only_seq = |seq| (HAS_SEQ, record::Traits { seq, ..NOTHING });
    assert_seen(
        &sender.records(),
        [
            (0, ABSENT),
            (1, full(1)),
            (2, ABSENT),
            (3, ABSENT),
            (4, only_seq(4)),
            (5, (HAS_ALL, record::Traits { seq: 55, ..values(5) })),
            (6, ABSENT),
            (7, ABSENT),
            (8, only_seq(8)),
        ],
    );
}

/// The kernel gives the memory of a thread that has ended to one that begins.
#[test]
fn what_a_thread_has_set_ends_with_it() {
    const THREADS: u64 = 30;
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    let (_sink, socket) = (sender.sink(Family::V4), sender.udp(Family::V4));
    let traits = sender.seq(1);
    for round in 0..50 {
        thread::scope(|scope| drop(scope.spawn(|| socket.set_next_traits(&traits).unwrap())));
        // its memory is free after an RCU grace period; some of the threads that begin then, all there at once, get it
        thread::sleep(Duration::from_millis(40));
        let all_there = Barrier::new(THREADS as usize);
        thread::scope(|scope| {
            for number in round * THREADS..(round + 1) * THREADS {
                let (socket, all_there) = (&socket, &all_there);
                scope.spawn(move || {
                    all_there.wait();
                    socket.send(&datagram(number)).unwrap();
                });
            }
        });
    }
    assert_seen(&sender.records(), (0..50 * THREADS).map(|number| (number, ABSENT)));
}

/// Makes the link look for the other end's address, which never answers.
fn forget_neighbour(sender: &Sender) {
    let (rx, tx) = (sender.lab.pair.rx(), sender.lab.pair.tx());
    rx.netns().ip(&format!("link set {} arp on", rx.name())).unwrap();
    for (family, version) in Family::BOTH.into_iter().zip(["ipv4", "ipv6"]) {
        // it asks once a second; when it gives up, it drops what waits
        rx.netns().set_sysctl(&format!("net/{version}/neigh/{}/mcast_solicit", rx.name()), "100").unwrap();
        let _ = rx.netns().ip(&format!("neigh del {} dev {}", tx.ip(family), rx.name()));
    }
}

/// Tells it.
fn find_neighbour(sender: &Sender, family: Family) {
    let (rx, tx) = (sender.lab.pair.rx(), sender.lab.pair.tx());
    let (ip, mac) = (tx.ip(family), tx.mac());
    rx.netns().ip(&format!("neigh replace {ip} lladdr {mac} dev {} nud permanent", rx.name())).unwrap();
}

#[test]
fn a_failed_send_leaves_nothing_for_the_next_datagram() {
    const CLOSED_PORT: u16 = 9;
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let sender = Sender::new();
        let socket = sender.udp(family);
        socket.set_traits(&sender.traits(9)).unwrap();
        let failed = |socket: &UdpSocket, data: &[u8], errno| {
            let error = socket.send_with_traits(data, &sender.traits(1)).unwrap_err();
            assert_eq!(error.errno(), errno, "{error}");
        };
        // too long
        let _sink = sender.sink(family);
        failed(&socket, &[0; 70_000], libc::EMSGSIZE);
        socket.send(&datagram(0)).unwrap();
        // an error of an earlier datagram: nobody is there
        socket.connect(SocketAddr::new(sender.to(family).ip(), CLOSED_PORT)).unwrap();
        socket.send(&datagram(1)).unwrap();
        wait_for_error(&socket);
        failed(&socket, &datagram(2), libc::ECONNREFUSED);
        socket.connect(sender.to(family)).unwrap();
        socket.send(&datagram(3)).unwrap();
        assert_seen(&sender.records(), [(0, full(9)), (3, full(9))]);

        // no room, since what was sent waits for the other end's address
        let socket = sender.udp(family);
        socket.set_traits(&sender.traits(9)).unwrap();
        socket.set_nonblocking(true).unwrap();
        sockopt::set_int(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, 1).unwrap();
        forget_neighbour(&sender);
        let mut sent = 10;
        while socket.send(&datagram(sent)).is_ok() {
            sent += 1;
        }
        failed(&socket, &datagram(sent), libc::EAGAIN);
        find_neighbour(&sender, family);
        socket.set_nonblocking(false).unwrap();
        socket.send(&datagram(sent)).unwrap();
        assert!(sent > 10);
        assert_seen(&sender.records(), (10..=sent).map(|number| (number, full(9))));
    }
}

/// Sends nothing, with success (include/linux/socket.h).
const MSG_PROBE: libc::c_int = 0x10;

/// A send that succeeds may send nothing.
#[test]
fn what_no_datagram_has_taken_can_be_taken_back() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let sender = Sender::new();
        let (socket, _sink) = (sender.udp(family), sender.sink(family));
        let probe = || {
            // SAFETY: there is nothing to be read.
            let sent = unsafe { libc::send(socket.as_raw_fd(), std::ptr::null(), 0, MSG_PROBE) };
            assert_eq!(sent, 0);
        };
        let none = Traits::new(&sender.keys);
        socket.set_next_traits(&sender.traits(1)).unwrap();
        probe();
        socket.set_next_traits(&none).unwrap();
        socket.send(&datagram(0)).unwrap();
        // but not what is on its way
        socket.set_next_traits(&sender.traits(2)).unwrap();
        socket.send(&datagram(2)).unwrap();
        socket.set_next_traits(&none).unwrap();
        assert_seen(&sender.records(), [(0, (0, record::Traits::default())), (2, full(2))]);
    }
}

/// Waits until the socket has an error to report.
fn wait_for_error(socket: &UdpSocket) {
    assert!(tcp::readable(socket), "no error came");
}

/// While the address of the other end is looked up, datagrams wait between the cgroup and TC.
#[test]
fn a_datagram_that_waits_for_an_address_keeps_its_own_traits_until_the_next_has_some() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let sender = Sender::new();
        let (_sink, socket) = (sender.sink(family), sender.udp(family));
        let other = sender.udp(family);
        socket.set_traits(&sender.traits(9)).unwrap();
        forget_neighbour(&sender);
        socket.send(&datagram(0)).unwrap();
        socket.send_with_traits(&datagram(1), &sender.seq(1)).unwrap();
        socket.send(&datagram(2)).unwrap();
        other.send_with_traits(&datagram(3), &sender.seq(3)).unwrap();
        other.send(&datagram(4)).unwrap();
        let waiting = sender.records();
        for hook in [Stage::TcEgress, Stage::NetDevQueue] {
            assert_eq!(waiting.count(hook), 0);
        }
        find_neighbour(&sender, family);
        let only_seq = |seq| (HAS_SEQ, record::Traits { seq, ..NOTHING });
        let expected = [(0, full(9)), (1, seq_over(1, 9)), (2, full(9)), (3, only_seq(3)), (4, ABSENT)];
        let records = Records::collect(&sender.object, |records| records.count(Stage::NetDevQueue) == 5).and(waiting);
        assert_seen(&records, expected);

        // the next one with traits takes its place: what waits has its socket's then, never the other's
        forget_neighbour(&sender);
        socket.send_with_traits(&datagram(1), &sender.seq(1)).unwrap();
        socket.send_with_traits(&datagram(2), &sender.traits(2)).unwrap();
        find_neighbour(&sender, family);
        let records = Records::collect(&sender.object, |records| records.count(Stage::NetDevQueue) == 2);
        for hook in shown(HOOKS) {
            let waited = matches!(hook, Stage::TcEgress | Stage::NetDevQueue);
            let first = if waited { full(9) } else { seq_over(1, 9) };
            assert_eq!(by_number(&records, hook), BTreeMap::from([(1, first), (2, full(2))]), "{hook:?}");
        }
    }
}

/// Whichever order other programs of the cgroup are attached in, they see what the one sees that binds traits to datagrams.
#[test]
fn programs_attached_to_the_cgroup_before_and_after_see_the_same() {
    const DATAGRAMS: u64 = 1000;
    if !common::area_enabled() {
        return;
    }
    let lab = SocketLab::with(&Setup { keys: KEYS, xdp: None, options: None, ..Setup::default() });
    let below = lab.cgroup.child().unwrap();
    let watch = |cgroup_dir: &Cgroup| {
        let object = lab.lab.load("sender");
        let egress = program(&object, "cgroup_egress");
        let attached = cgroup::attach_path(egress.as_fd(), cgroup_dir.path(), CgroupHook::Egress).unwrap();
        (object, attached)
    };
    let above = watch(&lab.cgroup);
    let before = watch(&below);
    let options = AttachOptions { cgroup: Some(below.path().to_owned()), ..Setup::default().options.unwrap() };
    SocketPrograms::attach(&lab.lab.registry, &options).unwrap();
    let after = watch(&below);

    let from = SocketAddr::new(lab.addr(Family::V4).ip(), 0);
    let socket = below.enter(|| lab.pair.rx().netns().enter(|| UdpSocket::bind(from))).unwrap();
    let to = lab.pair.tx().addr(Family::V4, TEST_PORT);
    let sink = udp_socket(lab.pair.tx().netns(), to).unwrap();
    sockopt::set_int(&sink, libc::SOL_SOCKET, libc::SO_RCVBUF, 1).unwrap();
    let keys = Keys::of(&socket).unwrap();
    let mut traits = Traits::new(&keys);
    for number in 0..DATAGRAMS {
        if number % 2 == 0 {
            socket.send_to(&datagram(number), to).unwrap();
        } else {
            traits.set(&keys.typed("seq").unwrap(), number).unwrap();
            socket.send_to_with_traits(&datagram(number), to, &traits).unwrap();
        }
    }
    let seen = |number: u64| match number % 2 {
        0 => ABSENT,
        _ => (HAS_SEQ, record::Traits { seq: number, ..NOTHING }),
    };
    let expected: BTreeMap<u32, _> = (0..DATAGRAMS).map(|number| (number as u32, seen(number))).collect();
    for (object, _attached) in [above, before, after] {
        let records = Records::collect(&object, |_| true);
        assert!(by_number(&records, Stage::CgroupEgress) == expected);
    }
}

#[test]
fn a_datagram_leaves_with_its_sockets_mark() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    for family in Family::BOTH {
        let (_sink, socket) = (sender.sink(family), sender.udp(family));
        for mark in [0, 9, 0x8000_0001u32] {
            sockopt::set_int(&socket, libc::SOL_SOCKET, libc::SO_MARK, mark as i32).unwrap();
            socket.send(&datagram(0)).unwrap();
            socket.send_with_traits(&datagram(1), &sender.traits(1)).unwrap();
            socket.set_traits(&sender.traits(2)).unwrap();
            socket.send(&datagram(2)).unwrap();
            socket.set_traits(&Traits::new(&sender.keys)).unwrap();
            let records = sender.records();
            for hook in shown(HOOKS) {
                let marks: Vec<u64> = records.at(hook).map(|record| record.extra).collect();
                assert_eq!(marks, [u64::from(mark); 3], "{hook:?}");
            }
        }
    }
}

/// Pieces of a datagram: only the first one is the packet that its own traits are bound to.
#[test]
fn fragments_have_their_sockets_traits_and_the_first_one_its_datagrams() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    for family in Family::BOTH {
        let (_sink, socket) = (sender.sink(family), sender.udp(family));
        socket.set_traits(&sender.traits(9)).unwrap();
        let long = |number: u64| [&number.to_be_bytes()[..], &[0; 4000]].concat();
        for own in [false, true] {
            match own {
                false => socket.send(&long(1)).unwrap(),
                true => socket.send_with_traits(&long(1), &sender.seq(1)).unwrap(),
            };
            socket.send(&datagram(2)).unwrap();
            let records = sender.records();
            let first = if own { seq_over(1, 9) } else { full(9) };
            for hook in shown(HOOKS) {
                let seen: Vec<_> = records
                    .at(hook)
                    .map(|record| (record.extra & IS_FRAGMENT != 0, (record.present, record.traits)))
                    .collect();
                let whole = matches!(hook, Stage::LocalOut | Stage::PostRouting | Stage::CgroupEgress);
                let later = if whole { 0 } else { 2 };
                assert_eq!(seen[0], (false, first), "{hook:?}");
                assert_eq!(seen[1..=later], vec![(true, full(9)); later], "{hook:?}");
                assert_eq!(seen[later + 1..], [(false, full(9))], "{hook:?}");
            }
        }
    }
}

/// What UDP_SEGMENT sends at once is one packet for every hook.
#[test]
fn datagrams_that_are_sent_at_once_have_the_same_traits() {
    const UDP_SEGMENT: i32 = 103; // include/uapi/linux/udp.h
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let sender = Sender::new();
        let (sink, socket) = (sender.sink(family), sender.udp(family));
        socket.set_traits(&sender.traits(9)).unwrap();
        sockopt::set_int(&socket, libc::IPPROTO_UDP, UDP_SEGMENT, 1000).unwrap();
        socket.send(&[1; 4000]).unwrap();
        socket.send_with_traits(&[2; 4000], &sender.seq(2)).unwrap();
        socket.send(&[3; 4000]).unwrap();
        let records = sender.records();
        for hook in shown(HOOKS) {
            let seen: Vec<_> = records.at(hook).map(|record| (record.present, record.traits)).collect();
            assert_eq!(seen, [full(9), seq_over(2, 9), full(9)], "{hook:?}");
        }
        for datagram in 0..12 {
            let mut data = [0; 4000];
            assert_eq!(sink.recv(&mut data).unwrap(), 1000);
            assert_eq!(data[0], 1 + datagram / 4);
        }
    }
}

/// Of a datagram to many, the host keeps a copy for itself, which has no socket.
#[test]
fn what_goes_to_many_has_its_traits_when_it_leaves() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    let group = Ipv4Addr::new(239, 1, 1, 1);
    let rx = sender.lab.pair.rx();
    let socket = sender.unconnected(Family::V4);
    socket.set_broadcast(true).unwrap();
    socket.join_multicast_v4(&group, &rx.ipv4()).unwrap();
    socket.set_traits(&sender.traits(9)).unwrap();
    rx.netns().ip(&format!("route add {group} dev {}", rx.name())).unwrap();
    for to in [group, Ipv4Addr::new(10, 77, 0, 255)] {
        for number in 0..10 {
            let to = SocketAddr::from((to, TEST_PORT));
            match number % 2 {
                0 => socket.send_to(&datagram(number), to).unwrap(),
                _ => socket.send_to_with_traits(&datagram(number), to, &sender.seq(number)).unwrap(),
            };
        }
        let records = sender.records();
        let expected: Vec<_> =
            (0..10).map(|number| if number % 2 == 0 { full(9) } else { seq_over(number, 9) }).collect();
        for hook in shown(HOOKS) {
            let (copies, seen): (Vec<_>, Vec<_>) =
                records.at(hook).map(|record| (record.present, record.traits)).partition(|seen| *seen == ABSENT);
            assert_eq!(seen, expected, "{to}, {hook:?}");
            let copied = if hook == Stage::PostRouting { 10 } else { 0 };
            assert_eq!(copies.len(), copied, "{to}, {hook:?}");
        }
    }
}

#[test]
fn a_datagram_that_is_written_in_parts_has_its_traits() {
    if !common::area_enabled() {
        return;
    }
    let sender = Sender::new();
    for family in Family::BOTH {
        let (_sink, socket) = (sender.sink(family), sender.udp(family));
        let send_part = |data: &[u8]| {
            // SAFETY: the data is readable for its length.
            let sent = unsafe { libc::send(socket.as_raw_fd(), data.as_ptr().cast(), data.len(), libc::MSG_MORE) };
            assert_eq!(sent, data.len() as isize);
        };
        for number in [0, 2] {
            if number == 0 {
                socket.set_next_traits(&sender.traits(number)).unwrap();
                send_part(&datagram(number));
            } else {
                send_part(&datagram(number));
                socket.set_next_traits(&sender.traits(number)).unwrap();
            }
            socket.send(b"the rest").unwrap();
            socket.send(&datagram(number + 1)).unwrap();
        }
        assert_seen(&sender.records(), [(0, full(0)), (1, ABSENT), (2, full(2)), (3, ABSENT)]);
    }
}

/// `tests/send.c` as nobody: what the C header says is all it takes.
#[test]
fn a_process_without_privileges_sends_with_traits() {
    if !common::area_enabled() {
        return;
    }
    let folder = Folder::new("send");
    let program = compile(&folder, "send");
    for family in Family::BOTH {
        let sender = Sender::new();
        let _sink = sender.sink(family);
        let to = sender.to(family);
        let mut command = Command::new(&program);
        command.arg(to.ip().to_string()).arg(to.port().to_string());
        let output = sender.lab.unprivileged(&command).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(said, "uid 65534\nMessage too long\nInvalid argument\n");
        let seen = |tenant, seq: Option<u64>| {
            let present = HAS_TENANT | if seq.is_some() { HAS_SEQ } else { 0 };
            (present, record::Traits { tenant, seq: seq.unwrap_or_default(), ..NOTHING })
        };
        assert_seen(
            &sender.records(),
            [(0, seen(7, None)), (1, seen(7, Some(1))), (2, seen(7, None)), (3, seen(8, Some(3))), (4, seen(7, None))],
        );
    }
}
