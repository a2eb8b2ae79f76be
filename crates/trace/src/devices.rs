//! The map of the interfaces that are traced, `bpf/devices.bpf.h`.

use libbpf_rs::{MapCore, MapFlags};
use packet_traits::bind::{BoundObject, LoadedObject};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    error::{TraceError, libbpf},
    namespace::PlaceId,
    object::handle,
};

/// `struct device`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct RawDevice {
    /// Inode of its network namespace.
    pub(crate) netns: u32,
    pub(crate) ifindex: u32,
}

pub(crate) const DEVICES: &str = "devices";

/// Has an object's map hold as many, before it is loaded.
pub(crate) fn set_room(bound: &mut BoundObject<'_>, places: usize) -> Result<(), TraceError> {
    for mut map in bound.open_object_mut().maps_mut() {
        if map.name() == DEVICES {
            map.set_max_entries(places as u32).map_err(libbpf("set how many interfaces are traced"))?;
        }
    }
    Ok(())
}

/// Adds one to a loaded object's map.
pub(crate) fn add(object: &LoadedObject, (inode, ifindex): PlaceId) -> Result<(), TraceError> {
    let key = RawDevice { netns: inode, ifindex };
    handle(object, DEVICES)?
        .update(key.as_bytes(), &[0; 4], MapFlags::ANY)
        .map_err(libbpf("say which interfaces are traced"))
}
