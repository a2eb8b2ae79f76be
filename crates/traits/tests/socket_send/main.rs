//! What a socket says of what it sends is read at every egress hook of its host, for its packets and no others.

#[path = "../common/mod.rs"]
mod common;

mod errors;
mod isolation;
mod next;
mod packets;
mod socket;
mod threads;
mod unprivileged;
mod values;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
};

use common::{
    TEST_PORT, attach_netfilter, attach_tc, attach_tracing, program,
    record::{self, HAS_ALL, Records, Stage, set_global, shown},
    sockets::{RECORDED_KEYS, Setup, SocketLab},
    sockopt,
};
use packet_traits::{
    Value,
    attach::{Attachment, CgroupHook, Direction, NetfilterHook, cgroup},
    bind::LoadedObject,
};
use packet_traits_lab::{Family, VethOptions, udp_socket};
use packet_traits_socket::{Keys, Traits};

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

/// All traits of [`RECORDED_KEYS`] that `record.bpf.h` has, chosen by a number.
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
        Sender::over(SocketLab::with(&Setup { keys: RECORDED_KEYS, xdp: None, veth, ..Setup::default() }))
    }

    /// The same on a link whose receiver's sockets have the options.
    fn over(lab: SocketLab) -> Sender {
        let object = lab.lab.load("sender");
        let rx = lab.pair.rx();
        set_global(&object, "netns_cookie", sockopt::netns_cookie(rx.netns()));
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

/// What is seen of a datagram with only `seq` of its own, over all traits of its socket.
fn seq_over(number: u64, of_socket: u64) -> (u32, record::Traits) {
    (HAS_ALL, record::Traits { seq: number, ..values(of_socket) })
}

/// A [`Sender::sink`] with room for a few datagrams: those that come later are dropped at once.
fn full_sink(sender: &Sender, family: Family) -> UdpSocket {
    let sink = sender.sink(family);
    sockopt::set_int(&sink, libc::SOL_SOCKET, libc::SO_RCVBUF, 1).unwrap();
    sink
}
