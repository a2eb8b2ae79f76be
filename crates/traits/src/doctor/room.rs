//! How much XDP can put in front of a packet, measured by moving its start until the kernel refuses.

use crate::{
    attach::{XdpMode, xdp},
    registry::Registry,
};

use super::{
    Finding, Probe,
    object::{Loaded, Seen, register_key},
};

/// The program that measures.
pub(super) struct Room(Loaded);

impl Room {
    /// Loads it. The registry gets the key that the doctor's programs use.
    pub(super) fn load(registry: &Registry) -> Result<Room, String> {
        register_key(registry)?;
        Loaded::new(registry, "doctor_room").map(Room)
    }

    /// Measures on the packets that come in while `traffic` runs.
    pub(super) fn measure(
        &self,
        ifindex: u32,
        mode: XdpMode,
        traffic: impl FnOnce() -> Result<(), String>,
    ) -> Result<Measured, String> {
        self.0.forget()?;
        let attached = self.0.with_fd(|fd| xdp::attach(fd, ifindex, mode))?.map_err(|error| error.to_string())?;
        traffic()?;
        drop(attached);
        Ok(match self.0.seen()? {
            Seen { packets: 0, .. } => Measured::NoPacket,
            Seen { headroom, metadata, .. } => Measured::Room { headroom, metadata },
        })
    }

    /// The same, as findings.
    pub(super) fn findings(
        &self,
        ifindex: u32,
        mode: XdpMode,
        traffic: impl FnOnce() -> Result<(), String>,
    ) -> [Finding; 2] {
        let (metadata, headroom) = (Probe::Metadata(mode), Probe::Headroom(mode));
        match self.measure(ifindex, mode, traffic) {
            Ok(Measured::Room { headroom: room, metadata: longest }) => {
                let room = Finding::yes(headroom, format!("{room} bytes")).with_number(room.into());
                let text = format!("up to {longest} bytes");
                let longest = match longest {
                    0 => Finding::no(metadata, "the driver has none").with_next(metadata_missing(mode)),
                    // what traits have by default does not fit
                    some if some < DEFAULT_AREA => Finding::limited(metadata, text),
                    _ => Finding::yes(metadata, text),
                }
                .with_number(longest.into());
                [longest, room]
            }
            Ok(Measured::NoPacket) => {
                [metadata, headroom].map(|probe| Finding::untried(probe, "no packet came in to measure on"))
            }
            Err(why) => [metadata, headroom].map(|probe| Finding::untried(probe, &why)),
        }
    }
}

/// What was seen.
pub(super) enum Measured {
    /// No packet came.
    NoPacket,
    /// The bytes that a packet had.
    Room { headroom: u32, metadata: u32 },
}

/// The length of a new registry's area.
const DEFAULT_AREA: u32 = packet_traits_core::Layout::DEFAULT.area_len() as u32;

fn metadata_missing(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Generic => "the kernel is too old: metadata came with Linux 4.15",
        _ => "use generic mode (`--mode generic`), which has metadata on every interface",
    }
}
