//! A link with socket options at the receiver: a cgroup they are attached to, an XDP program that gives every packet traits,
//! and TC programs that mark what arrives and report what is sent (`tests/bpf/sockets.bpf.c`).

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use libbpf_rs::RingBufferBuilder;
use packet_traits::{
    KeyType, Layout, Merge, Region,
    attach::{Attachment, Direction, XdpMode},
    bind::LoadedObject,
    socket_programs::{AttachOptions, SocketPrograms},
};

use packet_traits_lab::{Cgroup, Family, Pair, RECV_TIMEOUT, VethOptions, udp_socket};

use super::{Keys, Lab, RECORD_KEYS, TEST_PORT, attach_tc, attach_xdp, record::global, sockopt};

/// The keys of `sockets.bpf.c`.
pub const SOCKET_KEYS: Keys = &[("tenant", KeyType::U32, Merge::Block), ("flow_id", KeyType::U64, Merge::KeepFirst)];

/// [`SOCKET_KEYS`] and [`RECORD_KEYS`].
pub const RECORDED_KEYS: Keys = &[
    SOCKET_KEYS[0],
    SOCKET_KEYS[1],
    // `tenant` is in both
    RECORD_KEYS[1],
    RECORD_KEYS[2],
    RECORD_KEYS[3],
    RECORD_KEYS[4],
    RECORD_KEYS[5],
    RECORD_KEYS[6],
];

/// The keys of `every_type.bpf.c`.
pub const EVERY_TYPE: Keys = &[
    ("tenant", KeyType::U32, Merge::Block),
    ("flow_id", KeyType::U64, Merge::KeepFirst),
    ("sampled", KeyType::Flag, Merge::Block),
    ("hops", KeyType::U8, Merge::KeepFirst),
    ("port", KeyType::U16, Merge::KeepFirst),
    ("hash", KeyType::U128, Merge::Block),
    ("offset", KeyType::I64, Merge::KeepFirst),
    ("via", KeyType::Ipv4, Merge::Block),
    ("source", KeyType::Ipv6, Merge::Block),
    ("gateway", KeyType::Mac, Merge::Block),
    ("session", KeyType::Uuid, Merge::KeepFirst),
    ("rx_ts", KeyType::Timestamp, Merge::KeepFirst),
];

/// Bytes for a socket's datagrams.
pub const ROOM: i32 = 4 << 20;

/// What a [`SocketLab`] is made of. The default serves the options, with [`SOCKET_KEYS`], small numbers of sockets and slots
/// and native XDP.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The registry's keys, in the order of their numbers: [`SOCKET_KEYS`] first.
    pub keys: Keys,
    /// Sizes of the attachment; the cgroup is the lab's. `None`: the options are not attached.
    pub options: Option<AttachOptions>,
    /// Where `assign` of `sockets.bpf.c` is attached at the receiver. `None`: it is not.
    pub xdp: Option<XdpMode>,
    pub veth: VethOptions,
    /// Sizes of the registry's area. `None`: the default, as far as the kernel has room for it.
    pub layout: Option<Layout>,
}

impl Default for Setup {
    fn default() -> Setup {
        let options =
            AttachOptions { sockets: Some(8), slots: Some(64), pending_syns: Some(1024), ..AttachOptions::default() };
        Setup {
            keys: SOCKET_KEYS,
            options: Some(options),
            xdp: Some(XdpMode::Native),
            veth: VethOptions::new(),
            layout: None,
        }
    }
}

/// A link whose receiver's sockets, if they are made [inside](SocketLab::inside), have the socket options.
///
/// Nothing of it is visible outside the test's process, and all of it goes when it is dropped.
pub struct SocketLab {
    /// `tests/bpf/sockets.bpf.c`.
    pub object: LoadedObject,
    /// Dropped first: the programs of the link.
    attached: Vec<Attachment>,
    /// The registry. The options' programs and links are pinned in it.
    pub lab: Lab,
    pub pair: Pair,
    pub cgroup: Cgroup,
}

impl SocketLab {
    pub fn new() -> SocketLab {
        SocketLab::with(&Setup::default())
    }

    pub fn with(setup: &Setup) -> SocketLab {
        let lab = setup.layout.map_or_else(Lab::fitting, Lab::empty);
        lab.register_fitting(setup.keys);
        let (pair, cgroup) = (Pair::with(&setup.veth).unwrap(), Cgroup::new().unwrap());
        let object = lab.load("sockets");
        let mut attached = vec![attach_tc(&object, "report_sent", pair.rx(), Direction::Egress)];
        attached.extend(setup.xdp.map(|mode| attach_xdp(&object, "assign", pair.rx(), mode)));
        let lab = SocketLab { object, attached, lab, pair, cgroup };
        if let Some(options) = &setup.options {
            lab.attach_options(options);
        }
        lab
    }

    /// Attaches the socket options to the lab's cgroup.
    pub fn attach_options(&self, sizes: &AttachOptions) {
        let options = AttachOptions { cgroup: Some(self.cgroup.path().to_owned()), ..sizes.clone() };
        SocketPrograms::attach(&self.lab.registry, &options).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Loads the program that reports what is sent again, bound to the keys that there are now.
    pub fn reload(&mut self) {
        self.object = self.lab.load("sockets");
        // the former one first
        drop(self.attached.remove(0));
        self.attached.insert(0, attach_tc(&self.object, "report_sent", self.pair.rx(), Direction::Egress));
    }

    /// From now on every datagram to the receiver whose number is divisible by 3 has the mark [`MARK`], as someone's
    /// firewall may have set it.
    pub fn mark_some(&mut self) {
        self.attached.push(attach_tc(&self.object, "mark_some", self.pair.rx(), Direction::Ingress));
    }

    /// Runs `f` in the receiver's namespace and in the cgroup. The sockets it makes have the options, wherever they are used.
    pub fn inside<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.cgroup.enter(|| self.pair.rx().netns().enter(f))
    }

    /// A command that will run in the receiver's namespace and in the cgroup, as root.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.pair.rx().netns().command(program);
        self.cgroup.join(&mut command).unwrap();
        command
    }

    /// A command that will run there as the user nobody (65534), without groups, capabilities or a way to get any.
    pub fn unprivileged(&self, command: &Command) -> Command {
        let mut wrapped = self.command("setpriv");
        wrapped
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"])
            .args(["--inh-caps=-all", "--bounding-set=-all", "--pdeathsig=KILL", "--"])
            .arg(command.get_program())
            .args(command.get_args());
        wrapped
    }

    /// Where the receiver's sockets are: its address and [`TEST_PORT`].
    pub fn addr(&self, family: Family) -> SocketAddr {
        self.pair.rx().addr(family, TEST_PORT)
    }

    /// A socket that has the options, bound to [`addr`](Self::addr). Receives time out. It has room for hundreds of datagrams:
    /// by default that is 49 of native XDP on Linux 6.1.
    pub fn udp(&self, family: Family) -> UdpSocket {
        let socket = self.udp_by_default(family);
        sockopt::set_int(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, ROOM).unwrap();
        socket
    }

    /// The same with as much room as the kernel gives by default.
    pub fn udp_by_default(&self, family: Family) -> UdpSocket {
        let bind = || self.cgroup.enter(|| udp_socket(self.pair.rx().netns(), self.addr(family)));
        let deadline = Instant::now() + RECV_TIMEOUT;
        loop {
            match bind() {
                // A process that another test starts may have a copy of a socket that was here, until it executes its
                // program.
                Err(error) if error.errno() == Some(libc::EADDRINUSE) && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(1));
                }
                other => return other.unwrap(),
            }
        }
    }

    /// A listener that has the options, at [`addr`](Self::addr).
    pub fn listener(&self, family: Family) -> TcpListener {
        self.inside(|| TcpListener::bind(self.addr(family))).unwrap()
    }

    /// A sender's socket, outside the cgroup, connected to [`addr`](Self::addr). Receives time out.
    pub fn udp_client(&self, family: Family) -> UdpSocket {
        let socket = udp_socket(self.pair.tx().netns(), self.pair.tx().addr(family, 0)).unwrap();
        socket.connect(self.addr(family)).unwrap();
        socket
    }

    /// A sender's connection, from outside the cgroup, to [`addr`](Self::addr). Receives time out.
    pub fn tcp_client(&self, family: Family) -> TcpStream {
        let connect = || TcpStream::connect_timeout(&self.addr(family), RECV_TIMEOUT);
        let stream = self.pair.tx().netns().enter(connect).unwrap();
        stream.set_read_timeout(Some(RECV_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(RECV_TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Bytes of a datagram's values: the regions without their footers.
    pub fn values_len(&self) -> usize {
        let layout = self.lab.registry.layout();
        layout.slot_space(Region::Flow) + layout.slot_space(Region::Packet)
    }

    /// How many UDP sockets receive traits: places are taken by RCV_TRAITS and given back when the socket is closed.
    pub fn sockets_used(&self) -> u32 {
        SocketPrograms::status(&self.lab.registry).unwrap().map_or(0, |programs| programs.sockets_used)
    }

    /// What the receiver's sockets said of the datagrams that were sent from [`TEST_PORT`] since the last call, in order.
    pub fn sent(&self) -> Vec<Sent> {
        let (sender, receiver) = mpsc::channel();
        let map = self.object.map("sent").unwrap();
        let mut builder = RingBufferBuilder::new();
        builder
            .add(&map, move |raw| {
                sender.send(Sent::parse(raw)).unwrap();
                0
            })
            .unwrap();
        builder.build().unwrap().consume().unwrap();
        assert_eq!(global(&self.object, "lost"), 0, "the ring buffer was too small for this test");
        receiver.try_iter().collect()
    }
}

/// The mark that [`SocketLab::mark_some`] sets.
pub const MARK: u32 = 5;

/// The traits that `assign` gives a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Assigned {
    pub tenant: u32,
    pub flow_id: u64,
}

impl Assigned {
    /// Those of a datagram that begins with this number.
    pub fn datagram(number: u64) -> Assigned {
        Assigned { tenant: 7 + (number % 5) as u32, flow_id: number }
    }

    /// Those of the SYN of a connection from `client`.
    pub fn syn(client: SocketAddr) -> Assigned {
        let from = match client.ip() {
            IpAddr::V4(ip) => ip.to_bits(),
            IpAddr::V6(ip) => ip.to_bits() as u32,
        };
        let port = client.port();
        Assigned { tenant: u32::from(port % 100), flow_id: u64::from(from) << 16 | u64::from(port) }
    }

    /// Those of a segment from `client` whose data begins with this number, as eight bytes in network order.
    pub fn data(client: SocketAddr, number: u64) -> Assigned {
        Assigned { tenant: u32::from(client.port() % 100), flow_id: number }
    }
}

/// What the sender of a datagram says of it, as TC sees it leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The number in its payload.
    pub number: u64,
    pub tenant: Option<u32>,
    pub flow_id: Option<u64>,
}

impl Sent {
    fn parse(raw: &[u8]) -> Sent {
        assert_eq!(raw.len(), 24, "struct sent has changed");
        let u64_at = |at: usize| u64::from_ne_bytes(raw[at..at + 8].try_into().unwrap());
        let tenant = u32::from_ne_bytes(raw[16..20].try_into().unwrap());
        Sent { number: u64_at(0), flow_id: (raw[20] == 1).then(|| u64_at(8)), tenant: (raw[21] == 1).then_some(tenant) }
    }
}
