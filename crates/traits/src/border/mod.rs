//! Borders: at the host's end of a link to a network namespace that is not trusted, such as a container's.
//!
//! The traits of a packet lie in front of it in memory, and with it they cross a veth. Root of the namespace there can read them
//! with `tc`, and the secrets that authenticate them, and can change them in packets that come back. A border wipes the memory in
//! front of every packet that goes out over the interface, and of every packet that comes in with XDP metadata. It drops and counts
//! packets that it cannot wipe.
//!
//! A border is two TC programs, `border_in`, which runs before the others at TC ingress, and `border_out`, which runs behind those
//! that are there at TC egress. They are pinned in `<bpffs>/packet_traits_borders/<registry>/`, stay when the process ends, and
//! go with the interface.
//!
//! If the interface has an XDP program, packets that come in are left to it: the metadata may be its own. A policy's `xdp` block
//! drops inherited traits; another program that attaches nothing passes them on, unless it calls `trait_drop_inherited`.
//!
//! Not wiped are packets that do not pass TC egress: those that XDP redirects to the interface, and those that a program at TC
//! hands to its other end (`bpf_redirect_peer`).

mod links;

use libbpf_rs::{MapCore, MapFlags};

use zerocopy::FromBytes;

pub use self::links::{OpenLink, open_links};

use crate::{
    attach::{Direction, Hook, Target},
    bind::BoundObject,
    deployment::{self, DeployError, Deployment, Location, NetNamespace, Setup, UpOptions},
    registry::{Registry, Utc},
};

/// Compiled from `bpf/border.bpf.c`.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/border.bpf.o"));

/// What stands for it in errors.
const NAME: &str = "border";

/// The map of what came over it.
const CROSSED: &str = "pt_crossed";

/// The border of an interface.
#[derive(Debug)]
pub struct Border {
    deployment: Deployment,
    location: Location,
}

/// `struct pt_crossed` in `bpf/border.bpf.c`.
#[derive(FromBytes)]
#[repr(C)]
struct RawCrossed {
    packets: u64,
    wiped: u64,
    dropped: u64,
}

/// What came over a border in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Crossed {
    /// Packets.
    pub packets: u64,
    /// Those that were wiped.
    pub wiped: u64,
    /// Those that could not be, and were dropped.
    pub dropped: u64,
}

impl Border {
    /// Gives an interface of the calling thread's network namespace a border, or its border the programs of this build.
    ///
    /// # Errors
    /// [`DeployError::Attach`] and [`DeployError::Bind`], as of any program.
    pub fn attach(registry: &Registry, ifindex: u32) -> Result<Border, DeployError> {
        let location = Location::from(registry).of_borders();
        let object = BoundObject::from_bytes(OBJECT, NAME, registry)?;
        let counts = vec![CROSSED.to_owned()];
        let setup = Setup { pinned_maps: counts.clone(), kept_maps: counts, ..Setup::default() };
        let options =
            UpOptions { interface: Some(ifindex), ingress_first: true, replace: true, setup, ..UpOptions::default() };
        let name = format!("{:x}-{ifindex}", deployment::namespace_cookie());
        let up = Deployment::up_at(&name, object, registry, &options, &location)?;
        let mut only = [up];
        Deployment::locate(&mut only);
        let [deployment] = only;
        Ok(Border { deployment, location })
    }

    /// The borders of a registry, also of interfaces in other network namespaces, and of such that are gone.
    ///
    /// # Errors
    /// As of [`Deployment::list`].
    pub fn list(location: &Location) -> Result<Vec<Border>, DeployError> {
        let location = location.clone().of_borders();
        let mut found = Deployment::list(&location)?;
        Deployment::locate(&mut found);
        Ok(found.into_iter().map(|deployment| Border { deployment, location: location.clone() }).collect())
    }

    /// Takes it away. The registry need not be there any more.
    ///
    /// # Errors
    /// As of [`Deployment::down`].
    pub fn detach(self) -> Result<(), DeployError> {
        Deployment::down(self.deployment.name(), &self.location).map(drop)
    }

    /// The interface's index in its namespace, and its name there if that is known. `None`: the interface is gone.
    pub fn interface(&self) -> Option<(u32, Option<&str>)> {
        self.deployment.attached().iter().find_map(|deployed| match &deployed.info.target {
            Target::Interface { ifindex, name } if *ifindex != 0 => Some((*ifindex, name.as_deref())),
            _ => None,
        })
    }

    /// The interface's index in its namespace. `None`: the interface is gone.
    pub fn ifindex(&self) -> Option<u32> {
        self.interface().map(|(index, _)| index)
    }

    /// Whether the interface is in the calling thread's network namespace.
    pub fn is_here(&self) -> bool {
        self.namespace().is_some_and(|namespace| namespace.current)
    }

    /// The interface's network namespace, if a way into it was found.
    pub fn namespace(&self) -> Option<&NetNamespace> {
        self.deployment.namespace()
    }

    /// When it was attached, or its programs were exchanged.
    pub fn since(&self) -> Option<Utc> {
        self.deployment.attached().iter().filter_map(|deployed| deployed.since).min().map(Utc)
    }

    /// Whether both programs are attached: someone may have detached one, or the command that attached them was killed.
    pub fn is_whole(&self) -> bool {
        let at = |wanted: Direction| {
            let is_there =
                |hook: Hook| matches!(hook, Hook::Tcx(direction) | Hook::Clsact(direction) if direction == wanted);
            self.deployment.attached().iter().any(|deployed| is_there(deployed.info.hook))
        };
        !self.deployment.unfinished() && at(Direction::Ingress) && at(Direction::Egress)
    }

    /// What came in over it ([`Direction::Ingress`]) or went out. 0 if it is not known any more.
    pub fn crossed(&self, direction: Direction) -> Crossed {
        let place = match direction {
            Direction::Ingress => 0u32,
            Direction::Egress => 1,
        };
        let values = self.deployment.map(CROSSED).and_then(|map| {
            let found = map.lookup_percpu(&place.to_ne_bytes(), MapFlags::ANY);
            found.ok().flatten()
        });
        let values = values.unwrap_or_default();
        let of_cpus = values.iter().filter_map(|raw| RawCrossed::read_from_prefix(raw).ok());
        of_cpus.fold(Crossed::default(), |sum, (one, _)| Crossed {
            packets: sum.packets + one.packets,
            wiped: sum.wiped + one.wiped,
            dropped: sum.dropped + one.dropped,
        })
    }
}

#[cfg(test)]
mod tests {
    use packet_traits_testing::{layout::Types, same_layout};

    use super::*;

    #[test]
    fn the_programs_count_like_that() {
        same_layout!(Types::of(OBJECT).structure("pt_crossed"), RawCrossed { packets, wiped, dropped });
    }
}
