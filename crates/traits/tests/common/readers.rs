//! A link whose receiver reads traits at every stage that a datagram to a local socket passes, and the programs that
//! share the packet with them.

use std::{
    net::UdpSocket,
    ops::Range,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::LazyLock,
    time::Duration,
};

use libbpf_rs::{MapCore, MapFlags, Object, ObjectBuilder};
use packet_traits::{
    attach::{
        Attachment, CgroupHook, Direction, NetfilterHook, NetfilterOptions, TcxOptions, XdpMode, netfilter, socket,
        tcx, xdp,
    },
    bind::LoadedObject,
    registry::Registry,
};
use packet_traits_lab::{End, Family, KernelFeature, PacketSocket, Pair, kernel_has_for, send_numbered, udp_socket};

use super::{
    TEST_PORT, attach_cgroup, attach_tc, attach_tracing, compile, load, netfilter_family, program,
    record::{Records, Stage, shown},
};

/// What every datagram passes, where this kernel shows it.
pub static STAGES: LazyLock<Vec<Stage>> = LazyLock::new(|| {
    shown([
        Stage::TcIngress,
        Stage::PacketFilter,
        Stage::PreRouting,
        Stage::LocalIn,
        Stage::CgroupIngress,
        Stage::SocketFilter,
        Stage::Delivery,
    ])
});

/// One registry's programs at [`STAGES`].
pub struct Readers {
    pub object: LoadedObject,
    capture: Option<PacketSocket>,
    attached: Vec<Attachment>,
}

impl Readers {
    /// `stages.bpf.c` at every stage of `end`, but [`Stage::SocketFilter`]: a socket has one filter.
    pub fn on(end: &End, registry: &Registry, netfilter_priority: i32) -> Readers {
        let mut readers = Readers::without_capture(end, registry, netfilter_priority);
        let capture = PacketSocket::on(end).unwrap();
        let filter = program(&readers.object, "packet_filter");
        readers.attached.push(socket::attach(filter.as_fd(), capture.as_fd()).unwrap());
        // the delivery of the capture's copies; see packet_path.rs for why the datagrams' own is not seen
        readers.attached.extend(attach_tracing(&readers.object, &["delivery"]));
        readers.capture = Some(capture);
        readers
    }

    /// The same without a packet socket, which holds a clone of every packet: not [`Stage::PacketFilter`] and
    /// [`Stage::Delivery`].
    pub fn without_capture(end: &End, registry: &Registry, netfilter_priority: i32) -> Readers {
        let object = load("stages", registry);
        let mut attached = vec![
            attach_tc(&object, "tc_ingress", end, Direction::Ingress),
            attach_cgroup(&object, "cgroup_ingress", CgroupHook::Ingress),
        ];
        if kernel_has_for(KernelFeature::NetfilterLinks, "what netfilter shows") {
            for (name, hook) in [("pre_routing", NetfilterHook::PreRouting), ("local_in", NetfilterHook::Input)] {
                let fd = program(&object, name);
                let options = NetfilterOptions::new(netfilter_family(Family::V4), hook).priority(netfilter_priority);
                attached.push(end.netns().enter(|| netfilter::attach(fd.as_fd(), &options)).unwrap());
            }
        }
        Readers { object, capture: None, attached }
    }

    /// Reads at a socket too.
    pub fn filter(&mut self, receiver: &UdpSocket) {
        let filter = program(&self.object, "socket_filter");
        self.attached.push(socket::attach(filter.as_fd(), receiver.as_fd()).unwrap());
    }

    /// Receives the capture's copies, which ends the packets' lives.
    pub fn release(&self) {
        if let Some(capture) = &self.capture {
            capture.drain(Duration::from_millis(20)).unwrap();
        }
    }

    /// What was read since the last call.
    pub fn records(&self) -> Records {
        self.release();
        Records::collect(&self.object, |_| true)
    }
}

/// A link with [`Readers`] of one registry at the receiver and a socket on either side.
pub struct Link {
    pub pair: Pair,
    pub readers: Readers,
    pub receiver: UdpSocket,
    pub sender: UdpSocket,
}

impl Link {
    pub fn new(registry: &Registry) -> Link {
        let pair = Pair::new().unwrap();
        let readers = Readers::on(pair.rx(), registry, 0);
        Link::with(pair, readers)
    }

    /// The same, without a packet socket that holds a clone of every packet.
    pub fn without_capture(registry: &Registry) -> Link {
        let pair = Pair::new().unwrap();
        let readers = Readers::without_capture(pair.rx(), registry, 0);
        Link::with(pair, readers)
    }

    fn with(pair: Pair, mut readers: Readers) -> Link {
        let receiver = udp_socket(pair.rx().netns(), pair.rx().addr(Family::V4, TEST_PORT)).unwrap();
        readers.filter(&receiver);
        let sender = udp_socket(pair.tx().netns(), pair.tx().addr(Family::V4, 0)).unwrap();
        Link { pair, readers, receiver, sender }
    }

    /// Sends datagrams one by one; all arrive, unharmed.
    #[track_caller]
    pub fn deliver(&self, numbers: Range<u64>) {
        for number in numbers {
            send_numbered(&self.sender, self.pair.rx().addr(Family::V4, TEST_PORT), number..number + 1, 64).unwrap();
            let mut payload = [0xff; 65];
            let length = self.receiver.recv(&mut payload).unwrap();
            let mut sent = [0; 64];
            sent[..8].copy_from_slice(&number.to_be_bytes());
            assert_eq!((length, &payload[..64]), (64, &sent[..]), "datagram {number} is not as it was sent");
        }
    }

    pub fn attach_xdp(&self, program: &OwnedFd, mode: XdpMode) -> Attachment {
        let end = self.pair.rx();
        end.netns().enter(|| xdp::attach(program.as_fd(), end.ifindex(), mode)).unwrap().0
    }

    /// Attaches another program to TC, behind those that are there.
    pub fn attach_tc(&self, program: &OwnedFd) -> Attachment {
        let end = self.pair.rx();
        let options = TcxOptions::new(Direction::Ingress);
        end.netns().enter(|| tcx::attach(program.as_fd(), end.ifindex(), &options)).unwrap()
    }
}

/// `tests/bpf/<name>.bpf.c`, loaded as any loader does: without binding.
pub fn load_unbound(name: &str) -> Object {
    ObjectBuilder::default().open_memory(&compile(name)).unwrap().load().unwrap()
}

pub fn unbound_program(object: &Object, name: &str) -> OwnedFd {
    let program = object.progs().find(|program| program.name() == name).unwrap_or_else(|| panic!("no program {name}"));
    program.as_fd().try_clone_to_owned().unwrap()
}

/// What runs after a program of `object`: a tail call through its map `next`.
pub fn set_next(object: &Object, program: Option<&OwnedFd>) {
    let next = object.maps().find(|map| map.name() == "next").unwrap();
    let key = 0u32.to_ne_bytes();
    match program {
        Some(program) => next.update(&key, &program.as_raw_fd().to_ne_bytes(), MapFlags::ANY).unwrap(),
        // it may be empty
        None => drop(next.delete(&key)),
    }
}
