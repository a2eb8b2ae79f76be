//! What a real packet keeps: XDP gives datagrams a trait, and every later stage is asked for it.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use super::{
    Finding, Ground, Probe, Stage, Subject,
    object::{KEY, Loaded, VALUE},
    room::Room,
    untried,
};
use crate::{
    attach::{
        Attachment, CgroupHook, Direction, NetfilterFamily, NetfilterHook, NetfilterOptions, TcxOptions, XdpMode,
        cgroup, netfilter, socket, tcx, xdp,
    },
    core::TypedKey,
    registry::Registry,
    socket::{
        Keys, SocketError,
        programs::{AttachOptions, SocketPrograms, SocketProgramsError},
        recv_with_traits, set_receive,
    },
};

/// Datagrams that are sent in each mode.
const DATAGRAMS: u32 = 8;

/// How long one may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A way from one namespace to another, for datagrams.
#[derive(Debug)]
pub struct Route {
    /// In the sender's namespace.
    pub sender: UdpSocket,
    /// In the receiver's namespace, and made in the cgroup of the [`Ground`] there.
    pub receiver: UdpSocket,
}

impl Route {
    /// Sends a datagram and receives it by `receive`.
    fn exchange<T>(&self, receive: impl FnOnce(&UdpSocket) -> io::Result<T>) -> Result<T, String> {
        let to: SocketAddr = self.receiver.local_addr().map_err(|error| format!("the receiver's address: {error}"))?;
        self.sender.send_to(b"traits doctor", to).map_err(|error| format!("sending a datagram to {to}: {error}"))?;
        receive(&self.receiver).map_err(|error| format!("a datagram to {to} did not arrive: {error}"))
    }
}

/// Sends datagrams over `route` to the interface of `ground`, in native and in generic mode, and tells how much room XDP
/// had in front of them and which stages read the trait that it gave them.
///
/// `registry` is one of the caller's own, on a bpffs of its own; it gets a key, and socket programs. The calling thread
/// must be in the receiver's namespace.
pub fn path(registry: &Registry, ground: &Ground, route: &Route) -> Vec<Finding> {
    let modes = [XdpMode::Native, XdpMode::Generic];
    match Programs::attach(registry, ground, route) {
        Ok(programs) => modes.iter().flat_map(|mode| programs.findings(ground, route, *mode)).collect(),
        Err(why) => untried(Subject::Path, &why),
    }
}

/// A program at its stage.
struct Reader {
    loaded: Loaded,
    _attached: Vec<Attachment>,
}

/// The application's way to read traits.
struct Application {
    keys: Keys,
    key: TypedKey<u32>,
}

/// All programs; those of the stages behind XDP are attached.
struct Programs {
    room: Room,
    set: Loaded,
    readers: Vec<(Stage, Result<Reader, String>)>,
    application: Result<Application, Refusal>,
}

impl Programs {
    fn attach(registry: &Registry, ground: &Ground, route: &Route) -> Result<Programs, String> {
        let room = Room::load(registry)?;
        let set = Loaded::new(registry, "doctor_set")?;
        let reader = |stage| (stage, Reader::attach(stage, registry, ground, route));
        let readers = [Stage::Tc, Stage::Netfilter, Stage::Cgroup, Stage::SocketFilter].map(reader).into();
        let application = Application::serve(registry, ground, route);
        for socket in [&route.sender, &route.receiver] {
            let limited = socket.set_read_timeout(Some(TIMEOUT)).and_then(|()| socket.set_write_timeout(Some(TIMEOUT)));
            limited.map_err(|error| format!("limiting how long a socket waits: {error}"))?;
        }
        Ok(Programs { room, set, readers, application })
    }

    fn findings(&self, ground: &Ground, route: &Route, mode: XdpMode) -> Vec<Finding> {
        let mut found = Vec::from(self.room.findings(ground.ifindex, mode, || route.exchange(plain)));
        match self.counts(ground, route, mode) {
            Ok(counts) => found.extend(counts.into_iter().map(|(stage, count)| {
                let probe = Probe::Reads(mode, stage);
                match count {
                    Ok(count) => read_by(probe, count),
                    Err(Refusal { overlap: true, why }) => Finding::untried(probe, why),
                    Err(Refusal { overlap: false, why }) => Finding::no(probe, why),
                }
            })),
            Err(why) => found.extend(Stage::ALL.map(|stage| Finding::untried(Probe::Reads(mode, stage), &why))),
        }
        found
    }

    /// How many of the datagrams had their trait at each stage.
    fn counts(
        &self,
        ground: &Ground,
        route: &Route,
        mode: XdpMode,
    ) -> Result<Vec<(Stage, Result<u32, Refusal>)>, String> {
        self.set.forget()?;
        for (_, reader) in &self.readers {
            reader.as_ref().map_or(Ok(()), |reader| reader.loaded.forget())?;
        }
        let attached = self.set.with_fd(|fd| xdp::attach(fd, ground.ifindex, mode))?;
        let _attached = attached.map_err(|error| error.to_string())?;
        let mut read = 0;
        for _ in 0..DATAGRAMS {
            read += match &self.application {
                Ok(application) => route.exchange(|socket| application.receive(socket))?,
                Err(_) => route.exchange(plain).map(|()| 0)?,
            };
        }
        let set = self.set.seen()?.packets;
        if set < DATAGRAMS {
            return Err(format!("XDP gave a trait to {set} of {DATAGRAMS} packets"));
        }
        let mut counts = Vec::new();
        for (stage, reader) in &self.readers {
            let count = match reader {
                Ok(reader) => Ok(reader.loaded.seen()?.packets),
                Err(why) => Err(Refusal { overlap: false, why: why.clone() }),
            };
            counts.push((*stage, count));
        }
        counts.push((Stage::SocketOption, self.application.as_ref().map(|_| read).map_err(Clone::clone)));
        Ok(counts)
    }
}

/// What it means that a stage read the trait of so many packets.
fn read_by(probe: Probe, count: u32) -> Finding {
    let text = format!("{count} of {DATAGRAMS} packets");
    let found = match count {
        0 => Finding::no(probe, text),
        some if some < DATAGRAMS => Finding::limited(probe, text),
        _ => Finding::yes(probe, text),
    };
    found.with_number(count.into())
}

impl Reader {
    fn attach(stage: Stage, registry: &Registry, ground: &Ground, route: &Route) -> Result<Reader, String> {
        let program = match stage {
            Stage::Tc => "doctor_tc",
            Stage::Netfilter => "doctor_filter",
            Stage::Cgroup => "doctor_cgroup",
            Stage::SocketFilter | Stage::SocketOption => "doctor_socket",
        };
        let loaded = Loaded::new(registry, program)?;
        let attached = loaded.with_fd(|fd| match stage {
            Stage::Tc => tcx::attach(fd, ground.ifindex, &TcxOptions::new(Direction::Ingress)),
            Stage::Netfilter => {
                netfilter::attach(fd, &NetfilterOptions::new(NetfilterFamily::Ipv4, NetfilterHook::LocalIn))
            }
            Stage::Cgroup => match &ground.cgroup {
                Some(cgroup) => cgroup::attach_path(fd, cgroup, CgroupHook::Ingress),
                None => cgroup::cgroup_root().and_then(|root| cgroup::attach_path(fd, root, CgroupHook::Ingress)),
            },
            Stage::SocketFilter | Stage::SocketOption => socket::attach(fd, route.receiver.as_fd()),
        })?;
        Ok(Reader { loaded, _attached: vec![attached.map_err(|error| error.to_string())?] })
    }
}

/// Why the application cannot read.
#[derive(Clone)]
struct Refusal {
    /// Because its sockets are served by another registry, which is no fault.
    overlap: bool,
    why: String,
}

impl Application {
    /// Serves the receiver's socket, and has it ask for traits.
    fn serve(registry: &Registry, ground: &Ground, route: &Route) -> Result<Application, Refusal> {
        let refused = |why: String| Refusal { overlap: false, why };
        let Some(cgroup) = ground.cgroup.clone() else {
            return Err(refused("there is no cgroup to serve".to_owned()));
        };
        let options = AttachOptions {
            cgroup: Some(cgroup),
            sockets: Some(1),
            slots: Some(2 * DATAGRAMS),
            pending_syns: Some(1),
            ..AttachOptions::default()
        };
        SocketPrograms::attach(registry, &options).map_err(|error| Refusal {
            overlap: matches!(error, SocketProgramsError::Overlap { .. }),
            why: error.to_string(),
        })?;
        let ask = || {
            set_receive(&route.receiver, true)?;
            let keys = Keys::of(&route.receiver)?;
            Ok(Application { key: keys.typed(KEY)?, keys })
        };
        ask().map_err(|error: SocketError| refused(error.to_string()))
    }

    /// Receives a datagram; 1 if it has the trait.
    fn receive(&self, socket: &UdpSocket) -> io::Result<u32> {
        let mut buffer = [0; 64];
        let (_, _, traits) = recv_with_traits(socket, &self.keys, &mut buffer)?;
        Ok(u32::from(traits.get(&self.key) == Some(VALUE)))
    }
}

/// Receives a datagram without asking for its traits.
fn plain(socket: &UdpSocket) -> io::Result<()> {
    socket.recv(&mut [0; 64]).map(drop)
}
