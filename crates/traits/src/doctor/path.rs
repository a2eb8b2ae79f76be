//! What a real packet keeps: XDP gives datagrams a trait, and every later stage is asked for it.

use std::{io, net::UdpSocket, os::fd::AsFd};

use packet_traits_socket::{Keys, SocketError, SocketTraits as _, UdpTraits as _};

use super::{
    Finding, Ground, Probe, Stage,
    object::{KEY, Loaded, VALUE, register_key},
    route::Route,
};
use crate::{
    attach::{
        Attachment, CgroupHook, Direction, NetfilterFamily, NetfilterHook, NetfilterOptions, TcxOptions, XdpMode,
        cgroup, netfilter, socket, tcx, xdp,
    },
    registry::Registry,
    socket_programs::{AttachOptions, SocketPrograms, SocketProgramsError},
};
use packet_traits_core::TypedKey;

/// Datagrams that are sent in each mode.
const DATAGRAMS: u32 = 8;

/// Sends datagrams over `route` to the interface of `ground`, in native and in generic mode, and tells which stages read
/// the trait that XDP gave them.
///
/// `registry` is one of the caller's own, on a bpffs of its own, with a layout that fits; it
/// gets a key, and socket programs. The calling thread must be in the receiver's namespace.
pub fn path(registry: &Registry, ground: &Ground, route: &Route) -> Vec<Finding> {
    let modes = [XdpMode::Native, XdpMode::Generic];
    match Programs::attach(registry, ground, route) {
        Ok(programs) => modes.iter().flat_map(|mode| programs.findings(ground, route, *mode)).collect(),
        Err(why) => Stage::ALL
            .iter()
            .flat_map(|stage| modes.map(|mode| Finding::untried(Probe::Reads(mode, *stage), &why)))
            .collect(),
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
    set: Loaded,
    readers: Vec<(Stage, Result<Reader, String>)>,
    application: Result<Application, Refusal>,
}

impl Programs {
    fn attach(registry: &Registry, ground: &Ground, route: &Route) -> Result<Programs, String> {
        register_key(registry)?;
        let set = Loaded::new(registry, "doctor_set")?;
        let reader = |stage| (stage, Reader::attach(stage, registry, ground, route));
        let readers = [Stage::Tc, Stage::Netfilter, Stage::Cgroup, Stage::SocketFilter].map(reader).into();
        let application = Application::serve(registry, ground, route);
        Ok(Programs { set, readers, application })
    }

    fn findings(&self, ground: &Ground, route: &Route, mode: XdpMode) -> Vec<Finding> {
        let all = |finding: &dyn Fn(Probe) -> Finding| {
            Stage::ALL.map(|stage| finding(Probe::Reads(mode, stage))).into_iter().collect()
        };
        match self.send(ground, route, mode) {
            Err(why) => all(&|probe| Finding::untried(probe, &why)),
            Ok(Sent { set, .. }) if set < DATAGRAMS => {
                all(&|probe| Finding::no(probe, format_args!("XDP gave a trait to {set} of {DATAGRAMS} packets")))
            }
            Ok(Sent { application, .. }) => {
                let readers = self.readers.iter().map(|(stage, reader)| {
                    let probe = Probe::Reads(mode, *stage);
                    match reader.as_ref().map_err(Clone::clone).and_then(|reader| reader.loaded.packets()) {
                        Ok(count) => read_by(probe, count),
                        Err(why) => Finding::no(probe, why),
                    }
                });
                let probe = Probe::Reads(mode, Stage::SocketOption);
                let application = match &self.application {
                    Ok(_) => read_by(probe, application),
                    Err(Refusal { overlap: true, why }) => Finding::untried(probe, why),
                    Err(Refusal { overlap: false, why }) => Finding::no(probe, why),
                };
                readers.chain([application]).collect()
            }
        }
    }

    /// Sends the datagrams.
    fn send(&self, ground: &Ground, route: &Route, mode: XdpMode) -> Result<Sent, String> {
        self.set.forget()?;
        for (_, reader) in &self.readers {
            reader.as_ref().map_or(Ok(()), |reader| reader.loaded.forget())?;
        }
        let attached = self.set.with_fd(|fd| xdp::attach(fd, ground.ifindex, mode))?;
        let _attached = attached.map_err(|error| error.to_string())?;
        let mut sent = Sent { set: 0, application: 0 };
        for _ in 0..DATAGRAMS {
            sent.application += match &self.application {
                Ok(application) => route.exchange(|socket| application.receive(socket))?,
                Err(_) => route.exchange_plain().map(|()| 0)?,
            };
        }
        sent.set = self.set.packets()?;
        Ok(sent)
    }
}

/// What became of the datagrams.
struct Sent {
    /// Those that XDP gave their trait.
    set: u32,
    /// Those whose trait the application read.
    application: u32,
}

/// What it means that a stage read the trait of this number of packets.
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
                netfilter::attach(fd, &NetfilterOptions::new(NetfilterFamily::Ipv4, NetfilterHook::Input))
            }
            Stage::Cgroup => match &ground.cgroup {
                Some(cgroup) => cgroup::attach_path(fd, cgroup, CgroupHook::Ingress),
                None => cgroup::cgroup_tree().and_then(|tree| cgroup::attach_path(fd, tree.path, CgroupHook::Ingress)),
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
            route.receiver.receive_traits(true)?;
            let keys = Keys::of(&route.receiver)?;
            Ok(Application { key: keys.typed(KEY)?, keys })
        };
        ask().map_err(|error: SocketError| refused(error.to_string()))
    }

    /// Receives a datagram; 1 if it has the trait.
    fn receive(&self, socket: &UdpSocket) -> io::Result<u32> {
        let mut buffer = [0; 64];
        let received = socket.recv_with_traits(&self.keys, &mut buffer)?;
        Ok(u32::from(received.traits.get(&self.key) == Some(VALUE)))
    }
}
