//! A TCP socket answers for the traits of the SYN of its connection and for those of the newest data it has received, and
//! is otherwise as it is without.

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use common::{
    BOTH_MODES, Keys as KeyTable, TEST_PORT,
    c_program::{Folder, compile},
    crafted::Crafted,
    record::{Record, Records, Stage},
    sizes::{ABSENT, LAYOUTS, Sizes, VALUES},
    sockets::{Assigned, Setup, SocketLab},
    sockopt, tcp,
};
use packet_traits::{
    KeyType, Merge, TraitValue, TypedKey,
    attach::{Attachment, Direction, XdpMode},
    bind::LoadedObject,
};
use packet_traits_lab::{
    Family, Netns, Pair, RECV_TIMEOUT, VethOptions,
    frame::{ACK, FIN, Flow, PSH, SYN},
};
use packet_traits_socket::{
    Keys, SocketError, SocketTraits, TcpTraits, Traits,
    abi::{
        self, LAST_TRAITS, RCV_TRAITS, SAVE_SYN_TRAITS, SOCKET_TRAITS, SOL_TRAITS, SYN_TRAITS, TRAITS_ALL, TRAITS_FOUND,
    },
};

/// Reads the traits that `assign` of `sockets.bpf.c` sets.
struct Reader {
    keys: Keys,
    tenant: TypedKey<u32>,
    flow_id: TypedKey<u64>,
}

impl Reader {
    fn of(socket: &impl AsFd) -> Reader {
        let keys = Keys::of(socket).unwrap();
        let (tenant, flow_id) = (keys.typed("tenant").unwrap(), keys.typed("flow_id").unwrap());
        Reader { keys, tenant, flow_id }
    }

    /// All at once and one by one. `None` if there was no such packet.
    #[track_caller]
    fn read(&self, stream: &impl AsFd, source: Source) -> Option<(Option<u32>, Option<u64>)> {
        let traits = all(stream, source, &self.keys);
        let values = (traits.get(&self.tenant), traits.get(&self.flow_id));
        let tenant = one(stream, source, &self.tenant);
        let flow_id = one(stream, source, &self.flow_id);
        assert_eq!((tenant, flow_id), values, "one by one they are others");
        assert!(traits.is_found() || traits.is_empty());
        traits.is_found().then_some(values)
    }

    /// Whether that is what `assign` set.
    #[track_caller]
    fn assert(&self, stream: &impl AsFd, source: Source, set: Assigned) {
        assert_eq!(self.read(stream, source), Some((Some(set.tenant), Some(set.flow_id))), "{source:?}");
    }

    #[track_caller]
    fn assert_nothing(&self, stream: &impl AsFd, source: Source) {
        assert_eq!(self.read(stream, source), None, "{source:?}");
    }
}

/// Which traits of a socket.
#[derive(Clone, Copy, Debug)]
enum Source {
    Syn,
    Last,
}

fn one<T: TraitValue>(stream: &impl AsFd, source: Source, key: &TypedKey<T>) -> Option<T> {
    match source {
        Source::Syn => stream.syn_trait(key),
        Source::Last => stream.last_trait(key),
    }
    .unwrap()
}

fn all(stream: &impl AsFd, source: Source, keys: &Keys) -> Traits {
    match source {
        Source::Syn => stream.syn_traits(keys),
        Source::Last => stream.last_traits(keys),
    }
    .unwrap()
}

/// Sends a number as its own segment.
fn write_number(stream: &mut TcpStream, number: u64) {
    stream.write_all(&number.to_be_bytes()).unwrap();
}

#[track_caller]
fn read_number(stream: &mut TcpStream) -> u64 {
    let mut number = [0; 8];
    stream.read_exact(&mut number).unwrap();
    u64::from_be_bytes(number)
}

/// A listener that saves SYNs.
fn saving_listener(lab: &SocketLab, family: Family) -> TcpListener {
    let listener = lab.listener(family);
    listener.save_syn_traits(true).unwrap();
    listener
}

/// Connects; both ends.
#[track_caller]
fn connect(lab: &SocketLab, family: Family, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = lab.tcp_client(family);
    let (accepted, peer) = tcp::accept(listener);
    assert_eq!(peer, client.local_addr().unwrap());
    (client, accepted)
}

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

/// A socket with the options, not bound yet.
fn socket_inside(lab: &SocketLab, family: Family) -> OwnedFd {
    lab.inside(|| tcp::socket(family))
}

#[test]
fn listeners_of_a_reuseport_group_save_each_for_itself() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    for family in Family::BOTH {
        let listeners: Vec<TcpListener> = (0..4)
            .map(|index| {
                let socket = socket_inside(&lab, family);
                sockopt::set_int(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1).unwrap();
                tcp::bind(&socket, lab.addr(family));
                let listener = tcp::listen(socket);
                listener.set_nonblocking(true).unwrap();
                listener.save_syn_traits(index != 0).unwrap();
                listener
            })
            .collect();
        let reader = Reader::of(&listeners[0]);
        let mut accepted_by = [0; 4];
        for _ in 0..60 {
            let client = lab.tcp_client(family);
            let deadline = Instant::now() + RECV_TIMEOUT;
            let (index, accepted) = loop {
                let accept = |(index, listener): (usize, &TcpListener)| Some((index, listener.accept().ok()?.0));
                if let Some(accepted) = listeners.iter().enumerate().find_map(accept) {
                    break accepted;
                }
                assert!(Instant::now() < deadline, "nobody accepts");
            };
            accepted_by[index] += 1;
            if index == 0 {
                reader.assert_nothing(&accepted, Source::Syn);
            } else {
                reader.assert(&accepted, Source::Syn, Assigned::syn(client.local_addr().unwrap()));
            }
        }
        assert!(accepted_by.iter().all(|count| *count > 0), "{accepted_by:?}");
    }
}

#[test]
fn saving_can_begin_before_bind_before_listen_and_after_listen() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    for family in Family::BOTH {
        for when in 0..3 {
            let socket = socket_inside(&lab, family);
            let save_if = |now| {
                if now {
                    socket.save_syn_traits(true).unwrap();
                }
            };
            save_if(when == 0);
            tcp::bind(&socket, lab.addr(family));
            save_if(when == 1);
            let listener = tcp::listen(socket.try_clone().unwrap());
            save_if(when == 2);
            let (client, accepted) = connect(&lab, family, &listener);
            Reader::of(&accepted).assert(&accepted, Source::Syn, Assigned::syn(client.local_addr().unwrap()));
        }
    }
}

#[test]
fn switches_take_only_0_and_1() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let is_on = |socket: &OwnedFd, option| {
        let mut value = [0; 40]; // both are longer than an int or as long, and begin with one
        sockopt::get(socket, SOL_TRAITS, option, &mut value).unwrap();
        i32::from_ne_bytes(value[..4].try_into().unwrap())
    };
    for option in [SAVE_SYN_TRAITS, RCV_TRAITS] {
        for listening in [false, true] {
            let mut socket = socket_inside(&lab, Family::V4);
            if listening {
                socket = tcp::listen(socket).into();
            }
            for on in [0, 1] {
                sockopt::set_int(&socket, SOL_TRAITS, option, on).unwrap();
                for value in [2, -1, 256, 1 << 24, i32::MIN] {
                    assert_eq!(sockopt::set_int(&socket, SOL_TRAITS, option, value), Err(libc::EINVAL), "{value}");
                }
                for len in [0, 1, 2, 3, 5, 8, 5000] {
                    let mut value = vec![0; len];
                    if let Some(first) = value.first_mut() {
                        *first = 1;
                    }
                    assert_eq!(sockopt::set(&socket, SOL_TRAITS, option, &value), Err(libc::EINVAL), "{len} bytes");
                }
                assert_eq!(is_on(&socket, option), on);
            }
        }
    }
}

#[test]
fn accepted_connections_inherit_the_switches() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let listener = lab.listener(Family::V4);
    for (save, receive) in [(false, false), (true, false), (false, true), (true, true)] {
        listener.save_syn_traits(save).unwrap();
        listener.receive_traits(receive).unwrap();
        let (mut client, mut accepted) = connect(&lab, Family::V4, &listener);
        write_number(&mut client, 5);
        read_number(&mut accepted);
        for socket in [listener.as_fd(), accepted.as_fd()] {
            assert_eq!(sockopt::get_int(&socket, SOL_TRAITS, SAVE_SYN_TRAITS), Ok(save.into()));
            let state = socket.receive_state().unwrap();
            assert_eq!(state.enabled, u32::from(receive));
            assert_eq!((state.slots, state.slot_len, state.ring), (0, 0, 0), "TCP takes no ring");
        }
        let (reader, peer) = (Reader::of(&accepted), client.local_addr().unwrap());
        let expected = |on: bool, set: Assigned| on.then_some((Some(set.tenant), Some(set.flow_id)));
        assert_eq!(reader.read(&accepted, Source::Syn), expected(save, Assigned::syn(peer)));
        assert_eq!(reader.read(&accepted, Source::Last), expected(receive, Assigned::data(peer, 5)));
        // a short buffer for a switch is refused, a long one is not
        assert_eq!(sockopt::get(&accepted, SOL_TRAITS, SAVE_SYN_TRAITS, &mut [0; 3]), Err(libc::EINVAL));
        assert_eq!(sockopt::get(&accepted, SOL_TRAITS, SAVE_SYN_TRAITS, &mut [0; 8]), Ok(4));
    }
}

#[test]
fn a_socket_that_connects_or_is_connected_cannot_save_its_syn() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let listener = lab.listener(Family::V4);
    let (_client, accepted) = connect(&lab, Family::V4, &listener);

    let server = lab.pair.tx().netns().enter(|| TcpListener::bind(lab.pair.tx().addr(Family::V4, 0))).unwrap();
    let connected = socket_inside(&lab, Family::V4);
    tcp::connect(&connected, server.local_addr().unwrap()).unwrap();

    // nobody is at this address
    let rx = lab.pair.rx();
    let mac = lab.pair.tx().mac();
    rx.netns().ip(&format!("neigh replace 10.77.0.50 lladdr {mac} dev {} nud permanent", rx.name())).unwrap();
    let connecting = TcpStream::from(socket_inside(&lab, Family::V4));
    connecting.set_nonblocking(true).unwrap();
    assert_eq!(tcp::connect(&connecting, "10.77.0.50:7777".parse().unwrap()), Err(libc::EINPROGRESS));

    for socket in [accepted.as_fd(), connected.as_fd(), connecting.as_fd()] {
        for on in [0, 1] {
            assert_eq!(sockopt::set_int(&socket, SOL_TRAITS, SAVE_SYN_TRAITS, on), Err(libc::EISCONN));
        }
        assert_eq!(sockopt::get_int(&socket, SOL_TRAITS, SAVE_SYN_TRAITS), Ok(0));
        let error = socket.save_syn_traits(true).unwrap_err();
        assert!(matches!(error, SocketError::Connected { .. }), "{error}");
    }
}

#[test]
fn udp_sockets_have_no_options_of_tcp() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    for family in Family::BOTH {
        let socket = lab.udp(family);
        assert_eq!(sockopt::set_int(&socket, SOL_TRAITS, SAVE_SYN_TRAITS, 1), Err(libc::EOPNOTSUPP));
        for option in [SAVE_SYN_TRAITS, SYN_TRAITS, SYN_TRAITS + TRAITS_ALL, LAST_TRAITS, LAST_TRAITS + TRAITS_ALL] {
            assert_eq!(sockopt::get(&socket, SOL_TRAITS, option, &mut [0; 300]), Err(libc::EOPNOTSUPP), "{option:#x}");
        }
    }
}

#[test]
fn a_listener_that_stops_saving_saves_nothing_more() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    for family in Family::BOTH {
        let listener = lab.listener(family);
        let reader = Reader::of(&listener);
        let never = connect(&lab, family, &listener).1;
        listener.save_syn_traits(true).unwrap();
        let (client, saved) = connect(&lab, family, &listener);
        let set = Assigned::syn(client.local_addr().unwrap());
        reader.assert(&saved, Source::Syn, set);
        listener.save_syn_traits(false).unwrap();
        let later = connect(&lab, family, &listener).1;
        for unsaved in [&never, &later] {
            reader.assert_nothing(unsaved, Source::Syn);
            let tenant = SYN_TRAITS + reader.tenant.key().number() as i32;
            assert_eq!(sockopt::get(unsaved, SOL_TRAITS, tenant, &mut [0; 4]), Err(libc::ENOENT));
        }
        reader.assert(&saved, Source::Syn, set);
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

/// The keys of `sockets.bpf.c` and those of `record.bpf.h`.
const NUMBERED_KEYS: KeyTable = &[
    ("tenant", KeyType::U32, Merge::Block),
    ("flow_id", KeyType::U64, Merge::KeepFirst),
    ("port", KeyType::U16, Merge::Block),
    ("marked", KeyType::Flag, Merge::Block),
    ("seq", KeyType::U64, Merge::KeepFirst),
    ("rx_ts", KeyType::Timestamp, Merge::KeepFirst),
    ("src", KeyType::Ipv6, Merge::KeepFirst),
    ("tiny", KeyType::U8, Merge::KeepFirst),
];

/// A link whose packets to [`TEST_PORT`] are counted from 0 as they arrive, and have their number for a trait.
struct Numbered {
    object: LoadedObject,
    attached: Vec<Attachment>,
    keys: Keys,
    seq: TypedKey<u64>,
    tenant: TypedKey<u32>,
    arrived: Vec<Record>,
    lab: SocketLab,
}

impl Numbered {
    fn new() -> Numbered {
        Numbered::with("sock_ops", "assign", XdpMode::Native, VethOptions::new())
    }

    fn with(object: &str, program: &str, mode: XdpMode, veth: VethOptions) -> Numbered {
        let lab = SocketLab::with(&Setup { keys: NUMBERED_KEYS, xdp: None, veth, ..Setup::default() });
        let object = lab.lab.load(object);
        let attached = vec![common::attach_xdp(&object, program, lab.pair.rx(), mode)];
        let keys = Keys::of(&lab.udp(Family::V4)).unwrap();
        let (seq, tenant) = (keys.typed("seq").unwrap(), keys.typed("tenant").unwrap());
        Numbered { object, attached, keys, seq, tenant, arrived: Vec::new(), lab }
    }

    /// The number of the packet; `None` if there was none.
    #[track_caller]
    fn number(&self, stream: &impl AsFd, source: Source) -> Option<u64> {
        let traits = all(stream, source, &self.keys);
        if !traits.is_found() {
            assert!(traits.is_empty());
            return None;
        }
        let number = traits.get(&self.seq).unwrap();
        assert_eq!(traits.get(&self.tenant), Some((number as u32).wrapping_mul(2_654_435_761)), "of another packet");
        Some(number)
    }

    /// Waits until this many packets have arrived, all told. Returns all of them.
    #[track_caller]
    fn wait_for_arrived(&mut self, packets: usize) -> &[Record] {
        let missing = packets.saturating_sub(self.arrived.len());
        let records = Records::collect(&self.object, |records| records.count(Stage::Xdp) >= missing);
        self.arrived.extend(records.at(Stage::Xdp));
        assert!(self.arrived.len() >= packets, "only {} of {packets} packets came", self.arrived.len());
        &self.arrived
    }
}

/// Has the kernel of a namespace drop TCP segments from a port, until it is dropped.
struct Deaf<'n>(&'n Netns);

impl<'n> Deaf<'n> {
    fn to(netns: &'n Netns, port: u16) -> Deaf<'n> {
        let chain = "{ type filter hook input priority 0; }";
        nft(
            netns,
            &format!("add table inet deaf; add chain inet deaf c {chain}; add rule inet deaf c tcp sport {port} drop"),
        );
        Deaf(netns)
    }
}

impl Drop for Deaf<'_> {
    fn drop(&mut self) {
        nft(self.0, "delete table inet deaf");
    }
}

fn nft(netns: &Netns, commands: &str) {
    let output = netns.command("nft").arg(commands).output();
    let output = output.unwrap_or_else(|error| panic!("running nft: {error}; install nftables"));
    assert!(output.status.success(), "nft {commands}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Counters of a namespace's TCP (`TcpExt` in `/proc/net/netstat`).
fn tcp_counter(netns: &Netns, name: &str) -> u64 {
    let table = netns.enter(|| fs::read_to_string("/proc/thread-self/net/netstat")).unwrap();
    let mut lines = table.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(found, _)| *found == name).unwrap_or_else(|| panic!("no counter {name}")).1.parse().unwrap()
}

/// Runs a test for both families, with SYN cookies only when the queue is full, which is the default, and always.
fn with_and_without_cookies(test: impl Fn(Numbered, Family) + Sync) {
    if !common::area_enabled() {
        return;
    }
    let cases = Family::BOTH.into_iter().flat_map(|family| [(family, false), (family, true)]);
    let run = |(family, cookies)| {
        let link = Numbered::new();
        let rx = link.lab.pair.rx().netns().clone();
        rx.set_sysctl("net/ipv4/tcp_syncookies", if cookies { "2" } else { "1" }).unwrap();
        test(link, family);
        assert_eq!(tcp_counter(&rx, "SyncookiesRecv") > 0, cookies, "it was not what was to be tested");
    };
    thread::scope(|scope| cases.for_each(|case| drop(scope.spawn(move || run(case)))));
}

/// The client does not hear of the first answer, and sends its SYN again a second later. In the meantime someone sends SYNs of
/// other connections from its address and port.
#[test]
fn the_syn_that_was_sent_again_is_saved_and_no_spoofed_one() {
    with_and_without_cookies(|mut link, family| {
        let listener = saving_listener(&link.lab, family);
        let (tx, rx) = (link.lab.pair.tx().clone(), link.lab.pair.rx().clone());
        let deaf = Deaf::to(tx.netns(), TEST_PORT);
        let client = tx.netns().enter(|| tcp::socket(family));
        tcp::bind(&client, tx.addr(family, 40000));
        let to = link.lab.addr(family);
        let mut spoofer = Crafted::new(&link.lab.pair, family, 40000);
        spoofer.flow = Flow::between(&tx, &rx, family, 40000, TEST_PORT);
        let spoofed_len = spoofer.flow.tcp(0, 0, SYN, &[]).len() as u32;
        thread::scope(|scope| {
            let connecting = scope.spawn(|| tcp::connect(&client, to));
            link.wait_for_arrived(1);
            for sequence in [1, 0x7fff_ffff, 0x8000_0000] {
                spoofer.inject(sequence, SYN, &[]);
            }
            link.wait_for_arrived(4);
            drop(deaf);
            assert_eq!(connecting.join().unwrap(), Ok(()));
        });
        let (accepted, _) = tcp::accept(&listener);
        let saved = link.number(&accepted, Source::Syn).unwrap();
        // the client's own have TCP options
        let is_spoofed = |record: &Record| record.len == spoofed_len;
        let spoofed: Vec<u64> = link
            .wait_for_arrived(6)
            .iter()
            .filter(|record| is_spoofed(record))
            .map(|record| record.traits.seq)
            .collect();
        assert_eq!(spoofed.len(), 3);
        assert!(!spoofed.contains(&saved), "{saved} is one of {spoofed:?}");
        assert!(saved < link.arrived.len() as u64 - 1, "it ended the handshake");
    });
}

#[test]
fn a_spoofed_syn_after_it_does_not_change_what_is_saved() {
    with_and_without_cookies(|link, family| {
        let listener = saving_listener(&link.lab, family);
        let mut client = Crafted::new(&link.lab.pair, family, 40000);
        client.syn(&[]);
        // the kernel resets a connection for which one in the window comes (tcp_check_req in net/ipv4/tcp_minisocks.c)
        for sequence in [client.sequence - 2, client.sequence + 100_000, client.sequence ^ 0x8000_0000] {
            client.inject(sequence, SYN, &[]);
        }
        client.send(&[]);
        let (accepted, _) = tcp::accept(&listener);
        assert_eq!(link.number(&accepted, Source::Syn), Some(0));
    });
}

/// Two namespaces with the same addresses, in which clients send the same SYN.
#[test]
fn a_syn_in_another_namespace_is_another_one() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let (link, other) = (Numbered::new(), Pair::new().unwrap());
        let listener = saving_listener(&link.lab, family);
        let bind = || TcpListener::bind(other.rx().addr(family, TEST_PORT));
        let other_listener = link.lab.cgroup.enter(|| other.rx().netns().enter(bind)).unwrap();
        other_listener.save_syn_traits(true).unwrap();
        let mut clients = [&link.lab.pair, &other].map(|pair| Crafted::new(pair, family, 40000));
        for client in &mut clients {
            client.syn(&[]);
        }
        for client in &mut clients {
            client.send(&[]);
        }
        let [(accepted, peer), (other_accepted, other_peer)] = [&listener, &other_listener].map(tcp::accept);
        assert_eq!(peer, other_peer);
        assert_eq!(link.number(&accepted, Source::Syn), Some(0));
        // there, nobody gives traits
        let syn = all(&other_accepted, Source::Syn, &link.keys);
        assert!(syn.is_found() && syn.is_empty());
    }
}

#[test]
fn what_ends_the_handshake_may_be_the_newest_data() {
    with_and_without_cookies(|link, family| {
        let listener = saving_listener(&link.lab, family);
        listener.receive_traits(true).unwrap();
        let mut client = Crafted::new(&link.lab.pair, family, 40000);
        client.connect(b"first");
        let (mut accepted, _) = tcp::accept(&listener);
        let mut first = [0; 5];
        accepted.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"first");
        assert_eq!(link.number(&accepted, Source::Syn), Some(0));
        assert_eq!(link.number(&accepted, Source::Last), Some(1));
    });
}

#[test]
fn a_connection_that_is_accepted_with_its_first_data_has_both() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let link = Numbered::new();
        let listener = saving_listener(&link.lab, family);
        listener.receive_traits(true).unwrap();
        sockopt::set_int(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 10).unwrap();
        let mut client = Crafted::new(&link.lab.pair, family, 40000);
        client.connect(&[]);
        client.send(b"first");
        let (accepted, _) = tcp::accept(&listener);
        assert_eq!(link.number(&accepted, Source::Syn), Some(0));
        assert_eq!(link.number(&accepted, Source::Last), Some(2));
    }
}

#[test]
fn fast_open_has_the_newest_data_in_the_syn() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let link = Numbered::new();
        let (tx, rx) = (link.lab.pair.tx(), link.lab.pair.rx());
        // include/net/tcp.h: TFO_CLIENT_ENABLE | TFO_CLIENT_NO_COOKIE, TFO_SERVER_ENABLE | TFO_SERVER_COOKIE_NOT_REQD
        tx.netns().set_sysctl("net/ipv4/tcp_fastopen", "5").unwrap();
        rx.netns().set_sysctl("net/ipv4/tcp_fastopen", "514").unwrap();
        let listener = saving_listener(&link.lab, family);
        listener.receive_traits(true).unwrap();
        sockopt::set_int(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16).unwrap();
        let client = tx.netns().enter(|| tcp::socket(family));
        sockopt::set_int(&client, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1).unwrap();
        tcp::connect(&client, link.lab.addr(family)).unwrap();
        let mut client = TcpStream::from(client);
        write_number(&mut client, 3);
        let (mut accepted, _) = tcp::accept(&listener);
        assert_eq!(read_number(&mut accepted), 3);
        assert_eq!(tcp_counter(rx.netns(), "TCPFastOpenPassive"), 1, "the data did not come with the SYN");
        assert_eq!(link.number(&accepted, Source::Syn), Some(0));
        assert_eq!(link.number(&accepted, Source::Last), Some(0));
    }
}

/// Whether a socket in this state has the port. States are those of include/net/tcp_states.h.
fn is_in_state(netns: &Netns, family: Family, port: u16, state: &str) -> bool {
    let table = match family {
        Family::V4 => "/proc/thread-self/net/tcp",
        Family::V6 => "/proc/thread-self/net/tcp6",
    };
    let sockets = netns.enter(|| fs::read_to_string(table)).unwrap();
    sockets.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, found) = (fields.next().unwrap_or_default(), fields.nth(1));
        local.ends_with(&format!(":{port:04X}")) && found == Some(state)
    })
}

#[track_caller]
fn wait_for(what: impl FnMut() -> bool) {
    assert!(common::until(what, |happened| *happened), "it does not happen");
}

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
        wait_for(|| is_in_state(rx.netns(), family, TEST_PORT, TIME_WAIT));
        // the client's own is gone when it has heard that
        wait_for(|| !is_in_state(tx.netns(), family, 40000, LAST_ACK));
        let before = Records::collect(&link.object, |_| true).count(Stage::Xdp);
        let _client = connect();
        let (second, _) = tcp::accept(&listener);
        assert_eq!(link.number(&second, Source::Syn), Some(before as u64));
    }
}

/// One connection whose every segment is crafted.
struct Segments {
    client: Crafted,
    accepted: TcpStream,
    link: Numbered,
    /// How many the client has sent.
    sent: u64,
}

impl Segments {
    fn new(family: Family) -> Segments {
        let link = Numbered::new();
        let listener = saving_listener(&link.lab, family);
        listener.receive_traits(true).unwrap();
        let mut client = Crafted::new(&link.lab.pair, family, 40000);
        client.connect(&[]);
        let (accepted, _) = tcp::accept(&listener);
        Segments { client, accepted, link, sent: 2 }
    }

    /// Sends one and waits until TCP has got it. Returns its number.
    #[track_caller]
    fn inject(&mut self, frame: &[u8]) -> u64 {
        let before = segments_in(&self.accepted);
        self.client.inject_frame(frame);
        wait_for(|| segments_in(&self.accepted) == before + 1);
        self.sent += 1;
        self.sent - 1
    }

    /// Sends data that begins this far behind what has been sent so far.
    #[track_caller]
    fn inject_at(&mut self, offset: i32, flags: u8, data: &[u8]) -> u64 {
        let sequence = self.client.sequence.wrapping_add_signed(offset);
        self.inject(&self.client.flow.tcp(sequence, self.client.acknowledged, flags, data))
    }

    /// Sends the next data.
    #[track_caller]
    fn send(&mut self, data: &[u8]) -> u64 {
        let number = self.inject_at(0, ACK, data);
        self.client.sequence += data.len() as u32;
        number
    }

    /// Number of the newest data.
    #[track_caller]
    fn last(&self) -> Option<u64> {
        self.link.number(&self.accepted, Source::Last)
    }
}

/// How many segments the socket has got: `tcpi_segs_in` of `struct tcp_info`.
fn segments_in(socket: &impl AsFd) -> u32 {
    let mut info = [0; 144];
    sockopt::get(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).unwrap();
    u32::from_ne_bytes(info[140..].try_into().unwrap())
}

#[test]
fn the_newest_data_is_what_last_came_in_sequence() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let mut segments = Segments::new(family);
        assert_eq!(segments.last(), None, "there has been no data");
        let first = segments.send(&[1; 100]);
        assert_eq!(segments.last(), Some(first));
        segments.send(&[]);
        assert_eq!(segments.last(), Some(first), "an acknowledgement has no data");
        for (offset, len) in [(-100, 100), (-100, 10), (-10, 10), (-101, 50), (-5000, 100)] {
            segments.inject_at(offset, ACK, &vec![1; len]);
            assert_eq!(segments.last(), Some(first), "{len} bytes at {offset} are old");
        }
        let overlapping = segments.inject_at(-50, ACK | PSH, &[2; 60]);
        segments.client.sequence += 10;
        assert_eq!(segments.last(), Some(overlapping), "10 bytes of it are new");
        segments.inject_at(100, ACK, &[4; 100]);
        assert_eq!(segments.last(), Some(overlapping), "it cannot be read yet, for what is missing before it");
        let missing = segments.send(&[3; 100]);
        assert_eq!(segments.last(), Some(missing));
        segments.client.sequence += 100;
        let next = segments.send(&[5; 100]);
        assert_eq!(segments.last(), Some(next));

        let mut received = Vec::new();
        segments.client.inject(segments.client.sequence, ACK | FIN, &[]);
        segments.accepted.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), 100 + 10 + 300);
        assert_eq!(segments.last(), Some(next));
        assert_eq!(segments.link.number(&segments.accepted, Source::Syn), Some(0));
    }
}

#[test]
fn data_that_tcp_does_not_take_is_not_the_newest() {
    if !common::area_enabled() {
        return;
    }
    for family in Family::BOTH {
        let mut segments = Segments::new(family);
        let mut newest = segments.send(&[1; 100]);
        let window = 70_000; // more than the receiver offers, which has no window scaling
        for offset in [window, 1 << 30, i32::MAX, -(1 << 30), i32::MIN] {
            segments.inject_at(offset, ACK, &[2; 100]);
            assert_eq!(segments.last(), Some(newest), "{offset} is out of the window");
        }
        newest = segments.send(&[3; 100]);
        assert_eq!(segments.last(), Some(newest));

        let flow = segments.client.flow;
        let (sequence, acknowledged) = (segments.client.sequence, segments.client.acknowledged);
        let mut corrupt = flow.tcp(sequence, acknowledged, ACK, &[4; 200]);
        *corrupt.last_mut().unwrap() ^= 1;
        let rejected = [
            ("no ACK flag", flow.tcp(sequence, acknowledged, PSH, &[4; 100])),
            ("acknowledges what was not sent", flow.tcp(sequence, acknowledged + 100_000, ACK, &[4; 100])),
            ("acknowledges what was long ago", flow.tcp(sequence, acknowledged ^ 0x8000_0000, ACK, &[4; 100])),
            ("a wrong checksum", corrupt),
        ];
        for (why, frame) in rejected {
            segments.inject(&frame);
            assert_eq!(segments.last(), Some(newest), "{why}");
        }
        newest = segments.send(&[5; 10]);
        assert_eq!(segments.last(), Some(newest), "and nothing of it stays");
    }
}

#[test]
fn every_segment_of_its_own_has_its_own_traits() {
    if !common::enabled() {
        return;
    }
    for mode in BOTH_MODES {
        let lab = SocketLab::with(&Setup { xdp: Some(mode), ..Setup::default() });
        for family in Family::BOTH {
            let listener = lab.listener(family);
            listener.receive_traits(true).unwrap();
            let (mut client, mut accepted) = connect(&lab, family, &listener);
            let (reader, peer) = (Reader::of(&accepted), client.local_addr().unwrap());
            reader.assert_nothing(&accepted, Source::Last);
            for number in 0..50 {
                write_number(&mut client, number);
                if number % 2 == 0 {
                    assert_eq!(read_number(&mut accepted), number);
                    reader.assert(&accepted, Source::Last, Assigned::data(peer, number));
                    // what it sends, and what acknowledges that, changes nothing
                    write_number(&mut accepted, number);
                    assert_eq!(read_number(&mut client), number);
                } else {
                    // before it is read
                    assert!(tcp::readable(&accepted));
                }
                reader.assert(&accepted, Source::Last, Assigned::data(peer, number));
                if number % 2 == 1 {
                    assert_eq!(read_number(&mut accepted), number);
                }
            }
            reader.assert_nothing(&accepted, Source::Syn);
        }
    }
}

#[test]
fn receiving_can_begin_and_end_on_a_connection() {
    if !common::enabled() {
        return;
    }
    let lab = SocketLab::new();
    let listener = lab.listener(Family::V4);
    let (mut client, mut accepted) = connect(&lab, Family::V4, &listener);
    let (reader, peer) = (Reader::of(&accepted), client.local_addr().unwrap());
    let mut exchange = |accepted: &mut TcpStream, number| {
        write_number(&mut client, number);
        assert_eq!(read_number(accepted), number);
    };
    exchange(&mut accepted, 1);
    reader.assert_nothing(&accepted, Source::Last);
    accepted.receive_traits(true).unwrap();
    reader.assert_nothing(&accepted, Source::Last);
    exchange(&mut accepted, 2);
    reader.assert(&accepted, Source::Last, Assigned::data(peer, 2));
    accepted.receive_traits(false).unwrap();
    exchange(&mut accepted, 3);
    reader.assert_nothing(&accepted, Source::Last);
    accepted.receive_traits(true).unwrap();
    reader.assert_nothing(&accepted, Source::Last);
    exchange(&mut accepted, 4);
    reader.assert(&accepted, Source::Last, Assigned::data(peer, 4));
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

/// GRO merges segments that differ in the traits of the packet region only; the merged one has those of the first.
#[test]
fn bulk_data_has_the_traits_of_the_newest_packet_that_gro_made() {
    const BYTES: usize = 4 << 20;
    /// Ethernet, IP, TCP with timestamps.
    const HEADERS: [u32; 2] = [14 + 20 + 32, 14 + 40 + 32];
    if !common::area_enabled() {
        return;
    }
    for mode in BOTH_MODES {
        let mut link = Numbered::with("stages", "assign_flow", mode, VethOptions::new().gro(true));
        link.attached.push(common::attach_tc(&link.object, "tc_ingress", link.lab.pair.rx(), Direction::Ingress));
        // no tail loss probes, which send again what came last: that is no new data
        link.lab.pair.tx().netns().set_sysctl("net/ipv4/tcp_early_retrans", "0").unwrap();
        for (family, headers) in Family::BOTH.into_iter().zip(HEADERS) {
            let listener = link.lab.listener(family);
            listener.receive_traits(true).unwrap();
            let (mut client, mut accepted) = connect(&link.lab, family, &listener);
            let newest = |accepted: &TcpStream| {
                let traits = all(accepted, Source::Last, &link.keys);
                assert!(traits.is_found());
                assert_eq!(traits.get(&link.tenant), Some(7));
                traits.get(&link.seq).unwrap()
            };
            thread::scope(|scope| {
                scope.spawn(|| client.write_all(&vec![1; BYTES]).unwrap());
                let (mut received, mut before, mut buffer) = (0, 0, vec![0; 1 << 16]);
                while received < BYTES {
                    received += accepted.read(&mut buffer).unwrap();
                    let now = newest(&accepted);
                    assert!(now >= before, "{now} came before {before}");
                    before = now;
                }
            });
            let records = Records::collect(&link.object, |_| true);
            let (packets, merged) = (records.count(Stage::Xdp), records.count(Stage::TcIngress));
            // generic XDP sees a packet behind GRO, if at all: then the packets are those that GRO has made
            assert!(mode == XdpMode::Generic || merged < packets / 2, "GRO has made {merged} packets of {packets}");
            let with_data = |record: &&Record| record.len > headers;
            let last = records.at(Stage::TcIngress).filter(with_data).map(|record| record.traits.seq).max();
            assert_eq!(Some(newest(&accepted)), last);
        }
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

/// A connection whose SYN had traits of every size.
fn with_every_size(test: impl Fn(&Sizes, &Keys, &TcpStream)) {
    if !common::area_enabled() {
        return;
    }
    for layout in LAYOUTS {
        let mut sizes = Sizes::new(layout);
        sizes.assign();
        let (tx, addr) = (sizes.pair.tx(), sizes.pair.rx().addr(Family::V4, TEST_PORT));
        let listener = sizes.inside(|| TcpListener::bind(addr)).unwrap();
        listener.save_syn_traits(true).unwrap();
        let _client = tx.netns().enter(|| TcpStream::connect_timeout(&addr, RECV_TIMEOUT)).unwrap();
        let (accepted, _) = tcp::accept(&listener);
        test(&sizes, &Keys::of(&accepted).unwrap(), &accepted);
    }
}

/// Lengths of buffers to try.
const LENGTHS: [usize; 14] = [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 300, 4096, 70_000];

#[test]
fn every_key_is_read_by_its_number() {
    with_every_size(|_, keys, accepted| {
        for (name, expected) in VALUES {
            let key = keys.get(name).unwrap();
            assert_eq!(accepted.syn_value(key).unwrap(), Some(expected), "{name}");
            let bytes = if key.key_type() == KeyType::Flag { vec![1] } else { expected.to_bytes().to_vec() };
            for room in LENGTHS {
                let mut value = vec![sockopt::UNTOUCHED; room];
                let result = sockopt::get(accepted, SOL_TRAITS, SYN_TRAITS + key.number() as i32, &mut value);
                let written = if room < bytes.len() { 0 } else { bytes.len() };
                assert_eq!(result, if written == 0 { Err(libc::EINVAL) } else { Ok(written) }, "{name}, {room} bytes");
                assert_eq!(value[..written], bytes[..written], "{name}");
                assert!(value[written..].iter().all(|byte| *byte == sockopt::UNTOUCHED), "{name}, {room} bytes");
            }
        }
        let absent = keys.get(ABSENT).unwrap();
        assert_eq!(accepted.syn_value(absent).unwrap(), None);
        for room in LENGTHS {
            let mut value = vec![sockopt::UNTOUCHED; room];
            let result = sockopt::get(accepted, SOL_TRAITS, SYN_TRAITS + absent.number() as i32, &mut value);
            assert_eq!(result, Err(if room < 4 { libc::EINVAL } else { libc::ENOENT }), "{room} bytes");
            assert!(value.iter().all(|byte| *byte == sockopt::UNTOUCHED));
        }
    });
}

#[test]
fn a_number_that_is_no_key_is_refused() {
    with_every_size(|sizes, keys, accepted| {
        let free = (0..64).filter(|number| keys.numbered(*number).is_none()).chain(64..TRAITS_ALL as usize);
        for number in free {
            for option in [SYN_TRAITS, LAST_TRAITS, SOCKET_TRAITS] {
                let mut value = [sockopt::UNTOUCHED; 16];
                let result = sockopt::get(accepted, SOL_TRAITS, option + number as i32, &mut value);
                assert_eq!((result, value), (Err(libc::EINVAL), [sockopt::UNTOUCHED; 16]), "{number}");
                assert_eq!(
                    sockopt::set(accepted, SOL_TRAITS, SOCKET_TRAITS + number as i32, &[1; 4]),
                    Err(libc::EINVAL)
                );
            }
        }
        for option in [SAVE_SYN_TRAITS + 1, RCV_TRAITS + TRAITS_ALL, 0x700, 0x1000, -1, i32::MIN] {
            assert_eq!(sockopt::get(accepted, SOL_TRAITS, option, &mut [0; 300]), Err(libc::EINVAL), "{option:#x}");
            assert_eq!(sockopt::set(accepted, SOL_TRAITS, option, &[0; 4]), Err(libc::EINVAL), "{option:#x}");
        }
        for option in [SYN_TRAITS, LAST_TRAITS, SYN_TRAITS + TRAITS_ALL, LAST_TRAITS + TRAITS_ALL] {
            assert_eq!(sockopt::set(accepted, SOL_TRAITS, option, &[0; 4]), Err(libc::EINVAL), "{option:#x}");
        }
        let key = *keys.get("four").unwrap().name();
        sizes.lab.registry.unregister(&key, true).unwrap();
        let number = keys.get("four").unwrap().number() as i32;
        assert_eq!(sockopt::get(accepted, SOL_TRAITS, SYN_TRAITS + number, &mut [0; 4]), Err(libc::EINVAL));
    });
}

#[test]
fn all_traits_are_read_at_once_or_nothing_is_written() {
    with_every_size(|_, keys, accepted| {
        let traits = all(accepted, Source::Syn, keys);
        let found: Vec<_> = traits.iter(keys).map(|(key, value)| (key.name().as_str(), value)).collect();
        let mut expected = VALUES.to_vec();
        expected.sort_by_key(|(name, _)| keys.get(name).unwrap().number());
        assert_eq!(found, expected);

        let needed = accepted.receive_state().unwrap().traits_len as usize;
        let lengths = LENGTHS.into_iter().chain([needed - 1, needed, needed + 1, size_of::<abi::traits>()]);
        for room in lengths {
            for (option, is_found) in [(SYN_TRAITS, true), (LAST_TRAITS, false), (SOCKET_TRAITS, false)] {
                let mut value = vec![sockopt::UNTOUCHED; room];
                let result = sockopt::get(accepted, SOL_TRAITS, option + TRAITS_ALL, &mut value);
                let written = if room < needed { 0 } else { needed };
                assert_eq!(result, if room < needed { Err(libc::EINVAL) } else { Ok(needed) }, "{room} bytes");
                assert!(value[written..].iter().all(|byte| *byte == sockopt::UNTOUCHED), "{room} bytes");
                if written > 0 {
                    assert_eq!(value[8..12], u32::from(is_found).to_ne_bytes());
                    assert!(is_found || value[12..written].iter().all(|byte| *byte == 0));
                }
            }
        }
    });
}

#[test]
fn one_call_of_the_c_header_reads_several_keys() {
    let folder = Folder::new("scatter");
    let program = compile(&folder, "scatter");
    let scatter = |accepted: &TcpStream, keys: &[&str]| {
        let connection = Stdio::from(OwnedFd::from(accepted.try_clone().unwrap()));
        let output = Command::new(&program).args(keys).stdin(connection).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    with_every_size(|_, _, accepted| {
        let keys = ["one=1", "absent=4", "sixteen=16", "flag=1", "four=64", "two=2", "eight=9"];
        assert_eq!(
            scatter(accepted, &keys),
            "6 set\none 1 a1\nabsent 0 \nsixteen 16 e8e7e6e5e4e3e2e1f8f7f6f5f4f3f2f1\nflag 1 01\nfour 4 c4c3c2c1\n\
             two 2 b2b1\neight 8 d8d7d6d5d4d3d2d1\n"
        );
        assert_eq!(scatter(accepted, &["absent=4"]), "0 set\nabsent 0 \n");
        for keys in [["one=1", "eight=7"], ["absent=3", "two=2"], ["sixteen=0", "flag=0"]] {
            assert_eq!(scatter(accepted, &keys), "failed: Invalid argument\n");
        }
        assert_eq!(scatter(accepted, &["one=1", "unheard=4"]), "no key unheard: No such file or directory\n");
    });
}

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
    nft(
        rx.netns(),
        &format!(
            "add table inet marks; add chain inet marks c {{ type filter hook prerouting priority 0; }}; \
             add rule inet marks c tcp dport {TEST_PORT} meta mark set 5"
        ),
    );
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
