//! TC programs where the kernel has no TCX: filters of a clsact qdisc, which no link holds.
//!
//! Such a filter stays by itself, so what is pinned is what tells which one is ours: its program, a dispatcher that is
//! loaded for this one place (see `dispatch.rs`), in the place of the link; and a map that says where the filter is.
//! Both are pinned before the filter is added, so that a process that is killed leaves no filter without its pins.
//! A filter is removed only if it runs the dispatcher, and the qdisc with it only if a deployment made that and nothing
//! else is on it.
//!
//! If nobody can enter the filter's network namespace any more, the filter stays with an empty slot: it does nothing.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use super::{
    DeployError,
    error::{failed, map_failed},
    location::ROOTS,
    namespace::Namespace,
    version::{LINKS, children, file_name},
};
use crate::{
    attach::{self, AttachmentInfo, Direction, Hook, KeptFilter, Target},
    bpffs::{self, Kind},
};

/// The folder of a version with the places of its filters.
pub(super) const PLACES: &str = "places";

/// Version of the encoding.
const VERSION: u32 = 1;

/// Name of a place's map in the kernel.
const MAP: &str = "pt_place";

/// Where a filter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    namespace: Namespace,
    ifindex: u32,
    direction: Direction,
    /// Whether a deployment made the qdisc.
    made_qdisc: bool,
}

/// A filter of a clsact qdisc.
#[derive(Debug)]
pub(super) struct ClsactFilter {
    pub(super) info: AttachmentInfo,
    dispatcher: OwnedFd,
    place: Place,
    map: MapHandle,
    state: State,
    /// It is to run before the filters that are there.
    first: bool,
}

/// What is known of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody has added it yet.
    New,
    /// It is there, or in a namespace that cannot be entered.
    There,
    /// Another process deleted it.
    Deleted,
}

impl Place {
    const LEN: usize = 40;

    fn encode(&self) -> [u8; Place::LEN] {
        let direction = match self.direction {
            Direction::Ingress => 0u32,
            Direction::Egress => 1,
        };
        let mut raw = [0; Place::LEN];
        let (words, longs) = raw.split_at_mut(16);
        for (at, word) in [VERSION, self.ifindex, direction, self.made_qdisc.into()].into_iter().enumerate() {
            words[at * 4..][..4].copy_from_slice(&word.to_ne_bytes());
        }
        let (device, inode) = self.namespace.file;
        for (at, long) in [self.namespace.cookie, device, inode].into_iter().enumerate() {
            longs[at * 8..][..8].copy_from_slice(&long.to_ne_bytes());
        }
        raw
    }

    fn decode(raw: &[u8]) -> Option<Place> {
        let (words, longs) = raw.split_at_checked(16).filter(|_| raw.len() == Place::LEN)?;
        let word = |at: usize| words[at * 4..].first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let long = |at: usize| longs[at * 8..].first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        if word(0)? != VERSION {
            return None;
        }
        Some(Place {
            namespace: Namespace { cookie: long(0)?, file: (long(1)?, long(2)?) },
            ifindex: word(1)?,
            direction: match word(2)? {
                0 => Direction::Ingress,
                1 => Direction::Egress,
                _ => return None,
            },
            made_qdisc: word(3)? != 0,
        })
    }
}

impl ClsactFilter {
    /// A filter for an interface of the calling thread's network namespace, which is not there before it is
    /// [added](Self::add).
    pub(super) fn new(
        dispatcher: OwnedFd,
        ifindex: u32,
        direction: Direction,
        first: bool,
    ) -> Result<ClsactFilter, DeployError> {
        let place = Place { namespace: Namespace::current(), ifindex, direction, made_qdisc: false };
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            ..Default::default()
        };
        let map = MapHandle::create(MapType::Array, Some(MAP), 4, Place::LEN as u32, 1, &options)
            .map_err(map_failed("make", MAP))?;
        let info = info(&dispatcher, place, Target::interface(ifindex));
        let filter = ClsactFilter { info, dispatcher, place, map, state: State::New, first };
        filter.write()?;
        Ok(filter)
    }

    /// Opens what is pinned under a name in a version's folder; the error says why that is no filter.
    pub(super) fn open(folder: &Path, pin: &str) -> Result<ClsactFilter, String> {
        let dispatcher =
            bpffs::open(&folder.join(LINKS).join(pin), Kind::Program).map_err(|error| error.to_string())?;
        let map = bpffs::open_map(&place_path(folder, pin)).map_err(|error| error.to_string())?;
        let raw = map.lookup(&[0; 4], MapFlags::ANY).map_err(|error| format!("{error:#}"))?;
        let place = Place::decode(&raw.unwrap_or_default()).ok_or("its place is of another version")?;
        let target = Target::Interface { ifindex: place.ifindex, name: None };
        let mut filter = ClsactFilter {
            info: info(&dispatcher, place, target),
            dispatcher,
            place,
            map,
            state: State::There,
            first: false,
        };
        let kept = filter.kept();
        let found = place.namespace.enter(|| (kept.exists(), attach::interface_name(place.ifindex).is_some()));
        if let Some((Ok(false), interface)) = found {
            filter.state = State::Deleted;
            if !interface {
                // as the kernel says it of a link
                filter.info.target = Target::Interface { ifindex: 0, name: None };
            }
        }
        Ok(filter)
    }

    /// Whether a process deleted the filter, and not the interface with it.
    pub(super) fn was_deleted(&self) -> bool {
        self.state == State::Deleted && !matches!(self.info.target, Target::Interface { ifindex: 0, .. })
    }

    /// Pins it in a version's folder, and adds it if it is not there. `name` is what `tc` shows.
    pub(super) fn pin(&mut self, folder: &Path, pin: &str, name: &str) -> Result<(), DeployError> {
        let link = folder.join(LINKS).join(pin);
        for (object, path) in [(self.map.as_fd(), place_path(folder, pin)), (self.dispatcher.as_fd(), link)] {
            bpffs::pin(object, &path).map_err(failed("pin", &path))?;
        }
        if self.state != State::New {
            return Ok(());
        }
        let made = self.kept().make_qdisc()?;
        if made || self.made_by_another(folder) {
            self.place.made_qdisc = true;
            self.write()?;
        }
        self.kept().add(self.dispatcher.as_fd(), name, self.first)?;
        self.state = State::There;
        Ok(())
    }

    /// Deletes the filter, and the qdisc with it if a deployment made it and nothing else is on it.
    pub(super) fn remove(&self) -> Result<(), DeployError> {
        let kept = self.kept();
        match self.place.namespace.enter(|| kept.remove(self.place.made_qdisc)) {
            Some(removed) => Ok(removed?),
            None => {
                let (Place { ifindex, direction, .. }, (_, inode)) = (self.place, self.place.namespace.file);
                tracing::debug!(ifindex, %direction, inode, "no way into the filter's network namespace");
                Ok(())
            }
        }
    }

    fn kept(&self) -> KeptFilter {
        let Place { ifindex, direction, .. } = self.place;
        KeptFilter { ifindex, direction, program: self.info.program_id }
    }

    fn write(&self) -> Result<(), DeployError> {
        self.map.update(&[0; 4], &self.place.encode(), MapFlags::ANY).map_err(map_failed("write", MAP))
    }

    /// Whether another filter of a deployment is on this one's qdisc, and a deployment made that: the last one removes it.
    fn made_by_another(&self, folder: &Path) -> bool {
        // <bpffs>/<root>/<registry>/<deployment>
        let Some(bpffs) = folder.ancestors().nth(3) else { return false };
        let below = |folder: &Path| children(folder).unwrap_or_default();
        let registries = ROOTS.iter().flat_map(|root| below(&bpffs.join(root)));
        let deployments = registries.flat_map(|registry| below(&registry));
        let mut filters = deployments.flat_map(|deployment| {
            let places = below(&deployment.join(PLACES)).into_iter();
            places.filter_map(|place| ClsactFilter::open(&deployment, &file_name(&place)).ok()).collect::<Vec<_>>()
        });
        filters.any(|filter| {
            let Place { namespace, ifindex, made_qdisc, .. } = filter.place;
            let same = namespace == self.place.namespace && ifindex == self.place.ifindex;
            same && made_qdisc && filter.state == State::There
        })
    }
}

/// Where the place of the filter of this name is pinned in a version's folder.
pub(super) fn place_path(folder: &Path, pin: &str) -> PathBuf {
    folder.join(PLACES).join(pin)
}

fn info(dispatcher: &OwnedFd, place: Place, target: Target) -> AttachmentInfo {
    let program_id = attach::Program::of(dispatcher.as_fd()).map_or(0, |program| program.id);
    AttachmentInfo { hook: Hook::Clsact(place.direction), target, program_id, link_id: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_written_is_read_again_and_another_is_not() {
        let place = Place {
            namespace: Namespace { cookie: 1 << 40 | 7, file: (4, 4026531840) },
            ifindex: 12,
            direction: Direction::Egress,
            made_qdisc: true,
        };
        let raw = place.encode();
        assert_eq!(Place::decode(&raw), Some(place));
        assert_eq!(Place::decode(&raw[..Place::LEN - 1]), None);
        for at in [0, 8] {
            let mut wrong = raw;
            wrong[at] += 1;
            assert_eq!(Place::decode(&wrong), None, "{at}");
        }
    }
}
