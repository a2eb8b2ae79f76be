//! How much XDP can put in front of a packet, measured by moving its start until the kernel refuses.

use std::os::fd::AsFd;

use libbpf_rs::{MapCore, MapFlags, Object, ObjectBuilder, OpenObject};
use zerocopy::FromBytes;

use crate::attach::{XdpMode, xdp};
use packet_traits_core::{Layout, Region};

use super::{Finding, Ground, Probe, route::Route};

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/room.bpf.o"));

/// Sends a datagram over `route` to the interface of `ground`, in native and in generic mode, and tells how much room XDP
/// had in front of it. The calling thread must be in the receiver's namespace.
pub fn room(ground: &Ground, route: &Route) -> Vec<Finding> {
    let modes = [XdpMode::Native, XdpMode::Generic];
    match Room::load() {
        Ok(room) => {
            modes.iter().flat_map(|mode| room.findings(ground.ifindex, *mode, || route.exchange_plain())).collect()
        }
        Err(why) => modes.iter().flat_map(|mode| probes(*mode).map(|probe| Finding::untried(probe, &why))).collect(),
    }
}

fn probes(mode: XdpMode) -> [Probe; 2] {
    [Probe::Metadata(mode), Probe::Headroom(mode)]
}

/// The program that measures.
pub(super) struct Room(Object);

impl Room {
    /// Loads it.
    pub(super) fn load() -> Result<Room, String> {
        let open = ObjectBuilder::default().open_memory(OBJECT);
        open.and_then(OpenObject::load).map(Room).map_err(|error| format!("loading a program that measures: {error}"))
    }

    /// Measures on the packets that come in while `traffic` runs.
    pub(super) fn findings(
        &self,
        ifindex: u32,
        mode: XdpMode,
        traffic: impl FnOnce() -> Result<(), String>,
    ) -> [Finding; 2] {
        match self.measure(ifindex, mode, traffic) {
            Ok(Measured { packets: 0, .. }) => {
                probes(mode).map(|probe| Finding::untried(probe, "no packet came in to measure on"))
            }
            Ok(measured) => [measured.metadata(mode), measured.headroom(mode)],
            Err(why) => probes(mode).map(|probe| Finding::untried(probe, &why)),
        }
    }

    fn measure(
        &self,
        ifindex: u32,
        mode: XdpMode,
        traffic: impl FnOnce() -> Result<(), String>,
    ) -> Result<Measured, String> {
        let first = 0u32.to_ne_bytes();
        let map = self.0.maps().find(|map| map.name() == "doctor_room_map").ok_or("the object has no map")?;
        map.update(&first, &[0; size_of::<Measured>()], MapFlags::ANY).map_err(|error| error.to_string())?;
        let program =
            self.0.progs().find(|program| program.name() == "doctor_room").ok_or("the object has no program")?;
        let attached = xdp::attach(program.as_fd(), ifindex, mode).map_err(|error| error.to_string())?;
        traffic()?;
        drop(attached);
        let value = map.lookup(&first, MapFlags::ANY).map_err(|error| error.to_string())?;
        value.and_then(|bytes| Measured::read_from_bytes(&bytes).ok()).ok_or_else(|| "the map is empty".to_owned())
    }
}

/// `struct room` in bpf/room.bpf.c.
#[derive(FromBytes)]
#[repr(C)]
struct Measured {
    packets: u32,
    headroom: u32,
    metadata: u32,
}

impl Measured {
    fn headroom(&self, mode: XdpMode) -> Finding {
        Finding::yes(Probe::Headroom(mode), format!("{} bytes", self.headroom)).with_number(self.headroom.into())
    }

    fn metadata(&self, mode: XdpMode) -> Finding {
        let probe = Probe::Metadata(mode);
        let text = format!("up to {} bytes", self.metadata);
        let found = match Layout::default_within(self.metadata as usize) {
            Some(Layout::DEFAULT) => Finding::yes(probe, text),
            Some(fits) => {
                let (flow, packet) = (fits.region_len(Region::Flow), fits.region_len(Region::Packet));
                Finding::limited(probe, text).with_next(format!(
                    "make a registry whose area fits: `traits registry create --flow {flow} --packet {packet}`, which has \
                     room for {} bytes of values",
                    fits.slot_space(Region::Flow) + fits.slot_space(Region::Packet)
                ))
            }
            None => Finding::no(probe, text).with_next(match mode {
                XdpMode::Generic => "use a kernel that has XDP metadata: Linux 4.15 or later",
                _ => "use generic mode (`--mode generic`), which has metadata on every interface",
            }),
        };
        found.with_number(self.metadata.into())
    }
}

#[cfg(test)]
mod tests {
    use packet_traits_testing::{layout::Types, same_layout};

    use super::*;

    #[test]
    fn the_program_measures_like_that() {
        same_layout!(Types::of(OBJECT).structure("room"), Measured { packets, headroom, metadata });
    }
}
