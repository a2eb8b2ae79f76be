//! Who sees it: loads the demo's programs and attaches one to each stage; the last ones serve the applications' sockets.

use std::{
    error::Error,
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use packet_traits::{
    KeyName, KeyType, Merge, Region,
    attach::{
        Attachment, CgroupHook, Direction, NetfilterFamily, NetfilterHook, NetfilterOptions, TcxOptions, XdpMode,
        cgroup, netfilter, socket, tcx, tracing, xdp,
    },
    bind::{BoundObject, LoadedObject},
    bpffs::DEFAULT_ROOT,
    registry::{KeySpec, Registry, RegistryName},
    socket_programs::{AttachOptions, SocketPrograms, SocketProgramsError},
};
use packet_traits_lab::{Bpffs, Cgroup, Family, Netns};
use packet_traits_terminal::advice;
use zerocopy::{Immutable, IntoBytes};

use super::{flows::Route, network::Network, records::Stage, servers::Servers, traffic::WINDOW};

/// `config` of bpf/demo.bpf.c.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct RawConfig {
    pub(crate) netns: u32,
    pub(crate) skip: u32,
}

pub(crate) static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/demo.bpf.o"));
pub(crate) static SHORT_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/demo_short.bpf.o"));

/// Whether the kernel takes so little metadata that the area has no packet region.
pub(super) fn is_short(registry: &Registry) -> bool {
    registry.layout().region_len(Region::Packet) == 0
}

/// The keys that bpf/demo.bpf.c declares.
fn keys(short: bool) -> [(&'static str, KeyType, Merge, &'static str); 3] {
    let (id_type, merge) = if short { (KeyType::U32, Merge::Block) } else { (KeyType::U64, Merge::KeepFirst) };
    [
        ("tenant", KeyType::U32, Merge::Block, "VNI, or a number for the source prefix"),
        ("flow_id", id_type, merge, "unique per packet"),
        ("rx_ts", KeyType::Timestamp, merge, "when XDP saw the packet"),
    ]
}

/// The netfilter programs, and their hooks.
const NETFILTER: [(&str, Stage, NetfilterHook); 2] = [
    ("demo_local_in", Stage::Input, NetfilterHook::Input),
    ("demo_pre_route", Stage::PreRouting, NetfilterHook::PreRouting),
];

/// Where the netfilter programs run: before the rule that drops, which has priority 0.
const PRIORITY: i32 = -10;

/// A registry with the demo's keys, on a bpffs that nobody else sees.
pub(super) fn registry(bpffs: &Bpffs) -> Result<Registry, Box<dyn Error>> {
    let registry = Registry::options().name(RegistryName::new("demo")?).bpffs(bpffs.path()).create()?;
    for (name, key_type, merge, description) in keys(is_short(&registry)) {
        let spec = KeySpec::new(KeyName::new(name)?, key_type).merge(merge).description(description.parse()?);
        registry.register(&spec)?;
    }
    Ok(registry)
}

/// Binds and loads the programs of these stages. XDP leaves every `skip`-th packet without traits, none if that is 0.
pub(super) fn load(
    registry: &Registry,
    receiver: &Netns,
    skip: u32,
    stages: &[Stage],
) -> Result<LoadedObject, Box<dyn Error>> {
    let object = if is_short(registry) { SHORT_OBJECT } else { OBJECT };
    let mut bound = BoundObject::from_bytes(object, "the demo's programs", registry)?;
    // net.ns.inum in the kernel
    let netns = u32::try_from(File::from(receiver.fd().try_clone_to_owned()?).metadata()?.ino())?;
    let config = RawConfig { netns, skip };
    let mut section = bound.open_object_mut().maps_mut().find(|map| map.name() == ".rodata.config");
    let value = section.as_mut().and_then(|map| map.initial_value_mut()?.get_mut(..size_of::<RawConfig>()));
    value.ok_or("the demo's object has no section `.rodata.config`")?.copy_from_slice(config.as_bytes());
    for mut program in bound.open_object_mut().progs_mut() {
        if NETFILTER.iter().any(|(name, stage, _)| program.name() == *name && !stages.contains(stage)) {
            program.set_autoload(false);
        }
    }
    Ok(bound.load()?)
}

/// Serves trait options to the sockets that are made in a cgroup, for as long as there is the registry.
pub(super) fn serve_sockets(registry: &Registry, cgroup: &Cgroup) -> Result<(), Box<dyn Error>> {
    let options = AttachOptions {
        cgroup: Some(cgroup.path().to_owned()),
        sockets: Some(16),
        slots: Some(4 * WINDOW as u32),
        pending_syns: Some(1024),
        ..AttachOptions::default()
    };
    match SocketPrograms::attach(registry, &options) {
        Err(SocketProgramsError::Overlap { holder, .. }) => {
            let whose = match &holder.registry {
                Some(name) => format!("by registry '{name}'"),
                None => format!("by a registry (id {:016x}) in another BPF file system", holder.registry_id),
            };
            Err(format!(
                "cannot serve the sockets of the demo's servers: those of {} are served {whose}, and a socket is served by \
                 one registry only{}",
                holder.cgroup.display(),
                advice::clause(&holder.hint(), Path::new(DEFAULT_ROOT))
            )
            .into())
        }
        other => Ok(other.map(drop)?),
    }
}

/// Programs in place. Dropping it detaches them.
pub(super) struct Attached {
    _attachments: Vec<Attachment>,
    /// How XDP runs.
    pub(super) mode: XdpMode,
}

/// Attaches a program to every stage, XDP last, so that what XDP has seen all others see.
pub(super) fn attach(
    object: &LoadedObject,
    network: &Network,
    servers: &Servers,
    mode: XdpMode,
) -> Result<Attached, Box<dyn Error>> {
    let program = |name: &str| -> Result<OwnedFd, Box<dyn Error>> {
        let program = object.program(name).ok_or_else(|| format!("the demo's object has no program `{name}`"))?;
        Ok(program.as_fd().try_clone_to_owned()?)
    };
    let mut attachments = Vec::new();

    for name in ["demo_drop", "demo_delivery"] {
        attachments.push(tracing::attach(program(name)?.as_fd())?);
    }
    let fd = program("demo_socket")?;
    for server in servers.datagram_sockets() {
        attachments.push(socket::attach(fd.as_fd(), server.as_fd())?);
    }
    attachments.push(cgroup::attach_path(
        program("demo_cgroup")?.as_fd(),
        cgroup::cgroup_tree()?.path,
        CgroupHook::Ingress,
    )?);
    let rx0 = network.rx(Route::Plain);
    for (name, _, hook) in NETFILTER {
        if object.program(name).is_some_and(|program| !program.autoload()) {
            continue;
        }
        let fd = program(name)?;
        for family in [NetfilterFamily::Ipv4, NetfilterFamily::Ipv6] {
            let options = NetfilterOptions::new(family, hook).priority(PRIORITY);
            attachments.push(rx0.netns().enter(|| netfilter::attach(fd.as_fd(), &options))?);
        }
    }
    for (name, routes) in
        [("demo_tc_inner", &[Route::Tunnel(Family::V4), Route::Tunnel(Family::V6)][..]), ("demo_tc", &[Route::Plain])]
    {
        let fd = program(name)?;
        for end in routes.iter().map(|route| network.rx(*route)) {
            let options = TcxOptions::new(Direction::Ingress);
            attachments.push(end.netns().enter(|| tcx::attach(fd.as_fd(), end.ifindex(), &options))?);
        }
    }
    let fd = program("demo_xdp")?;
    let (attachment, mode) = rx0.netns().enter(|| xdp::attach(fd.as_fd(), rx0.ifindex(), mode))?;
    attachments.push(attachment);
    Ok(Attached { _attachments: attachments, mode })
}
