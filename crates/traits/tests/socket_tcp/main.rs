//! A TCP socket answers for the traits of the SYN of its connection and for those of the newest data it has received, and
//! is otherwise as it is without.

#[path = "../common/mod.rs"]
mod common;

mod handshake;
mod lifecycle;
mod newest;
mod switches;
mod syn;
mod unchanged;
mod values;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
};

use common::{
    record::{Record, Records, Stage},
    sockets::{Assigned, RECORDED_KEYS, Setup, SocketLab},
    tcp,
};
use packet_traits::{
    TraitValue, TypedKey,
    attach::{Attachment, XdpMode},
    bind::LoadedObject,
};
use packet_traits_lab::{Family, VethOptions};
use packet_traits_socket::{Keys, TcpTraits, Traits};

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

/// A socket with the options, not bound yet.
fn socket_inside(lab: &SocketLab, family: Family) -> OwnedFd {
    lab.inside(|| tcp::socket(family))
}

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
        let lab = SocketLab::with(&Setup { keys: RECORDED_KEYS, xdp: None, veth, ..Setup::default() });
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

#[track_caller]
fn wait_for(what: impl FnMut() -> bool) {
    assert!(common::until(what, |happened| *happened), "it does not happen");
}
