//! The programs of an object, and the places they go to.

use std::{
    fs,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use libbpf_rs::{OpenObject, ProgramAttachType, ProgramType};

use packet_traits_core::Layout;

use super::{
    DeployError, Needs, UpOptions,
    clsact::ClsactFilter,
    dispatch::{self, Slot},
    error::failed,
    version::{Holder, Link},
};
use crate::{
    attach::{
        AttachmentInfo, CgroupHook, Direction, Hook, NetfilterOptions, Position, Target, TcxOptions, XdpMode, cgroup,
        netfilter, tcx, tracing, xdp,
    },
    bind::LoadedObject,
    registry::RegistryName,
};

/// A loaded program and where its source says it goes.
pub(super) struct Program {
    pub(super) name: String,
    section: String,
    attach_type: ProgramAttachType,
    fd: OwnedFd,
}

/// A place for a program.
pub(super) enum Place {
    Xdp { interface: u32, mode: XdpMode },
    Tc { interface: u32, direction: Direction, first: bool },
    Netfilter(NetfilterOptions),
    Cgroup { path: PathBuf, hook: CgroupHook },
    Tracepoint,
}

/// A program at a place, and the name of the pin that will hold it there.
pub(super) struct Placed<'p> {
    pub(super) pin: String,
    pub(super) program: &'p Program,
    pub(super) place: Place,
}

impl Program {
    /// Every program of an object that was loaded.
    pub(super) fn all(object: &LoadedObject) -> Result<Vec<Program>, DeployError> {
        let loaded = object.object().progs().filter(libbpf_rs::ProgramImpl::autoload);
        loaded
            .map(|program| {
                let fd = program.as_fd().try_clone_to_owned();
                Ok(Program {
                    name: program.name().to_string_lossy().into_owned(),
                    section: program.section().to_string_lossy().into_owned(),
                    attach_type: program.attach_type(),
                    fd: fd.map_err(failed("duplicate a descriptor of", Path::new(program.name())))?,
                })
            })
            .collect()
    }

    /// Its type, by its section.
    fn kind(&self) -> &str {
        self.section.split('/').next().unwrap_or_default().trim_start_matches('?')
    }

    /// The places that the options give it, by its section.
    pub(super) fn places(&self, options: &UpOptions) -> Result<Vec<Placed<'_>>, DeployError> {
        let rest = self.section.split_once('/').map_or("", |(_, rest)| rest);
        let place = match (self.kind(), rest) {
            ("xdp" | "xdp.frags", "") => Place::Xdp { interface: self.interface(options)?, mode: self.mode(options) },
            ("tc" | "tcx", "ingress") | ("tc" | "classifier", "") => self.tc(options, Direction::Ingress)?,
            ("tc" | "tcx", "egress") => self.tc(options, Direction::Egress)?,
            ("netfilter", _) => return self.netfilter(options),
            ("cgroup_skb", "ingress") => self.cgroup(options, CgroupHook::Ingress)?,
            ("cgroup_skb", "egress") => self.cgroup(options, CgroupHook::Egress)?,
            ("sockops", "") => self.cgroup(options, CgroupHook::SockOps)?,
            ("tp_btf", _) => Place::Tracepoint,
            ("xdp" | "xdp.frags", _) => {
                return Err(self.refused("it runs from a DEVMAP or CPUMAP entry, which a program fills"));
            }
            ("socket", _) => {
                return Err(self.refused("a socket filter belongs to one socket, which attaches it itself"));
            }
            _ => return Err(self.refused("no hook is known for this section; attach it with the library")),
        };
        Ok(vec![Placed { pin: self.name.clone(), program: self, place }])
    }

    fn mode(&self, options: &UpOptions) -> XdpMode {
        // Generic mode does not take a program that is loaded for a device (`dev_xdp_attach` in net/core/dev.c).
        match options.setup.device_bound.contains(&self.name) {
            true => XdpMode::Native,
            false => options.xdp_mode,
        }
    }

    fn tc(&self, options: &UpOptions, direction: Direction) -> Result<Place, DeployError> {
        let first = options.ingress_first && direction == Direction::Ingress;
        Ok(Place::Tc { interface: self.interface(options)?, direction, first })
    }

    fn cgroup(&self, options: &UpOptions, hook: CgroupHook) -> Result<Place, DeployError> {
        let path = options.cgroup.clone().ok_or_else(|| {
            // Not the root by itself: a program that drops would cut off the host.
            let root = cgroup::cgroup_tree().map_or_else(|_| "/sys/fs/cgroup".into(), |tree| tree.path);
            self.needs(Needs::Cgroup { example: root.join("system.slice") })
        })?;
        Ok(Place::Cgroup { path, hook })
    }

    fn netfilter(&self, options: &UpOptions) -> Result<Vec<Placed<'_>>, DeployError> {
        let places: Vec<_> = options.netfilter.iter().filter(|(program, _)| *program == self.name).collect();
        if places.is_empty() {
            return Err(self.needs(Needs::NetfilterHook));
        }
        let placed = |options: &NetfilterOptions| {
            let pin = match options.place() {
                // '-' is in no program's name, so this is not another program's.
                Hook::Netfilter { family, hook, priority } if places.len() > 1 => {
                    format!("{}-{family}-{hook}-{priority}", self.name)
                }
                _ => self.name.clone(),
            };
            Placed { pin, program: self, place: Place::Netfilter(*options) }
        };
        Ok(places.iter().map(|(_, options)| placed(options)).collect())
    }

    /// Attaches it to its tracepoint.
    pub(super) fn at_tracepoint(&self, pin: &str) -> Result<Link, DeployError> {
        let placed = Placed { pin: pin.to_owned(), program: self, place: Place::Tracepoint };
        Ok(placed.attach(false)?.0)
    }

    fn interface(&self, options: &UpOptions) -> Result<u32, DeployError> {
        options.interface.ok_or_else(|| self.needs(Needs::Interface))
    }

    fn needs(&self, needs: Needs) -> DeployError {
        DeployError::Where { program: self.name.clone(), section: self.section.clone(), needs }
    }

    fn refused(&self, why: &'static str) -> DeployError {
        DeployError::Section { program: self.name.clone(), section: self.section.clone(), why }
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Placed<'_> {
    /// Attaches the program; a clsact filter only when it is pinned. The mode in use comes with XDP.
    pub(super) fn attach(&self, force_clsact: bool) -> Result<(Link, Option<XdpMode>), DeployError> {
        let program = self.program.as_fd();
        let (holder, slot, mode): (Holder, Option<Slot>, _) = match &self.place {
            Place::Xdp { interface, mode } => {
                let (attachment, mode) = xdp::attach(program, *interface, *mode)?;
                (attachment.into(), None, Some(mode))
            }
            Place::Tc { interface, direction, first } => {
                let position = if *first { Position::First } else { Position::Last };
                let link = match force_clsact {
                    true => None,
                    false => tcx::attach_link(program, *interface, &TcxOptions::new(*direction).position(position))?,
                };
                match link {
                    Some(attachment) => (attachment.into(), None, None),
                    None => {
                        let (dispatcher, slot) = dispatch::for_clsact(program, &self.program.attach_type)?;
                        (
                            Holder::Clsact(ClsactFilter::new(dispatcher, *interface, *direction, *first)?),
                            Some(slot),
                            None,
                        )
                    }
                }
            }
            Place::Netfilter(options) => {
                let (dispatcher, slot) = dispatch::for_netfilter(program)?;
                (netfilter::attach(dispatcher.as_fd(), options)?.into(), Some(slot), None)
            }
            Place::Cgroup { path, hook } => (cgroup::attach_path(program, path, *hook)?.into(), None, None),
            Place::Tracepoint => (tracing::attach(program)?.into(), None, None),
        };
        Ok((Link { pin: self.pin.clone(), holder, slot }, mode))
    }

    /// Whether something is attached in this place and can be exchanged there. Interfaces and netfilter hooks are those
    /// of one network namespace, which the kernel does not tell of a link.
    pub(super) fn is_place_of(&self, info: &AttachmentInfo, same_namespace: bool) -> bool {
        match (&self.place, info.hook, &info.target) {
            (Place::Xdp { interface, .. }, Hook::Xdp, Target::Interface { ifindex, .. }) => {
                same_namespace && interface == ifindex
            }
            (
                Place::Tc { interface, direction, .. },
                Hook::Tcx(found) | Hook::Clsact(found),
                Target::Interface { ifindex, .. },
            ) => same_namespace && *direction == found && interface == ifindex,
            (Place::Netfilter(options), found, _) => same_namespace && options.place() == found,
            (Place::Cgroup { path, hook }, Hook::Cgroup(found), Target::Cgroup { id, .. }) => {
                *hook == found && fs::metadata(path).is_ok_and(|folder| folder.ino() == *id)
            }
            // A tracepoint's link cannot be updated; the old program stays until the new one is there.
            _ => false,
        }
    }
}

/// Refuses a hook for a program that the object does not have: it would be left out without a word.
pub(super) fn refuse_unknown_netfilter(
    object: &str,
    programs: &[Program],
    options: &UpOptions,
) -> Result<(), DeployError> {
    let names = || programs.iter().filter(|program| program.kind() == "netfilter").map(|program| &program.name);
    match options.netfilter.iter().find(|(given, _)| !names().any(|name| name == given)) {
        Some((given, _)) => Err(DeployError::NoNetfilterProgram {
            object: object.to_owned(),
            program: given.clone(),
            programs: names().cloned().collect(),
        }),
        None => Ok(()),
    }
}

/// Refuses an object whose XDP programs could not reserve the registry's area where the kernel takes `longest` bytes of
/// metadata: every set would fail, and nobody would notice.
pub(super) fn refuse_long_area(
    registry: &RegistryName,
    layout: Layout,
    object: &OpenObject,
    longest: usize,
) -> Result<(), DeployError> {
    let area_len = layout.area_len();
    if area_len <= longest || !object.progs().any(|program| program.prog_type() == ProgramType::Xdp) {
        return Ok(());
    }
    Err(DeployError::TooLong { registry: registry.to_string(), area_len, longest })
}

#[cfg(test)]
mod tests {
    use libbpf_rs::ObjectBuilder;

    use super::*;

    #[test]
    fn an_area_that_the_kernel_has_no_room_for_is_refused_if_there_is_xdp() {
        let open = |object: &[u8]| ObjectBuilder::default().open_memory(object).unwrap();
        let xdp = open(include_bytes!(concat!(env!("OUT_DIR"), "/metadata.bpf.o")));
        let other = open(include_bytes!(concat!(env!("OUT_DIR"), "/dispatch.bpf.o")));
        let refuse = |object, longest| refuse_long_area(&RegistryName::default(), Layout::DEFAULT, object, longest);
        assert!(refuse(&xdp, 144).is_ok() && refuse(&other, 32).is_ok());
        let error = refuse(&xdp, 32).unwrap_err();
        assert!(matches!(error, DeployError::TooLong { area_len: 144, longest: 32, .. }), "{error}");
        assert!(error.to_string().contains("traits registry create default"), "{error}");
    }
}
