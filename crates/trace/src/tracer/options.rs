//! What to trace: options, and whether they make sense.

use std::time::Duration;

use packet_traits::attach::XdpMode;

use crate::{
    config::{CAPTURE_MAX, NAMESPACES_MAX},
    error::TraceError,
    event::Event,
    filter::Condition,
    namespace::Namespace,
    path::{Outcome, Packet},
    standby::Standby,
};

/// Size of the ring buffer, unless it is said: 16 MiB.
pub const RING_LEN: usize = 1 << 24;

/// What to trace, and how. Here a trace begins; [`Tracer::load`](crate::Tracer::load) and
/// [`Tracer::start`](crate::Tracer::start) take it from there.
#[derive(Debug)]
pub struct Options {
    /// The namespaces whose interfaces and netfilter hooks get programs. If another program gives the ids, only what is
    /// seen in these is reported.
    pub namespaces: Vec<Namespace>,
    /// The interfaces; empty: all that are up, but for loopback.
    pub devices: Vec<String>,
    /// How the tracer's own XDP program is attached.
    pub xdp_mode: XdpMode,
    /// The key that has packets' ids; none: the tracer assigns ids itself.
    pub id: Option<String>,
    /// The key of type timestamp that says when a packet entered, if another program gives the ids.
    pub entered: Option<String>,
    /// All of which must hold.
    pub conditions: Vec<Condition>,
    /// Report drops only.
    pub only_drops: bool,
    /// Report what is older than that when it is seen.
    pub slower: Option<Duration>,
    /// Report all else as well, so that whole paths are known of the packets that [`wants`](Options::wants) chooses: those
    /// dropped, if `only_drops`, and those slow as a whole, if `slower`.
    pub whole_paths: bool,
    /// Report one packet in N.
    pub sample: u32,
    /// Bytes of each packet that are reported, at most [`CAPTURE_MAX`].
    pub capture: usize,
    /// Whether the points behind the entry are taken away while nothing matches; then call
    /// [`Tracer::adapt`](crate::Tracer::adapt) regularly.
    pub standby: Standby,
    /// Size of the ring buffer: a power of two, in bytes.
    pub ring_len: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            namespaces: Vec::new(),
            devices: Vec::new(),
            xdp_mode: XdpMode::Auto,
            id: None,
            entered: None,
            conditions: Vec::new(),
            only_drops: false,
            slower: None,
            whole_paths: false,
            sample: 1,
            capture: 96,
            standby: Standby::Never,
            ring_len: RING_LEN,
        }
    }
}

impl Options {
    /// Whether the kernel reports drops alone, and not the whole paths of what is dropped.
    pub(super) fn reports_only_drops(&self) -> bool {
        self.only_drops && !self.whole_paths
    }

    /// Whether a packet of which nothing more is expected is one that `only_drops` and `slower` ask for.
    pub fn wants(&self, packet: &Packet) -> bool {
        (!self.only_drops || packet.outcome == Outcome::Dropped)
            && self.slower.is_none_or(|slower| u128::from(packet.duration()) >= slower.as_nanos())
    }

    /// Whether an event that comes this many nanoseconds after its packet entered is reported without `whole_paths`.
    pub fn wants_event(&self, event: &Event<'_>, since_entered: u64) -> bool {
        (!self.only_drops || event.is_drop())
            && self.slower.is_none_or(|slower| u128::from(since_entered) >= slower.as_nanos())
    }
}

pub(super) fn check(options: &Options) -> Result<(), TraceError> {
    let wrong = if options.capture > CAPTURE_MAX {
        format!("{} bytes of each packet: at most {CAPTURE_MAX} can be reported", options.capture)
    } else if options.sample == 0 {
        "one packet in 0: give 1 for every packet".to_owned()
    } else if !options.ring_len.is_power_of_two() || !(1 << 12..=1 << 30).contains(&options.ring_len) {
        format!("a ring buffer of {} bytes: its size is a power of two from 4096 to 1073741824", options.ring_len)
    } else if options.namespaces.is_empty() || options.namespaces.len() > NAMESPACES_MAX {
        format!("{} namespaces: from 1 to {NAMESPACES_MAX} can be traced at once", options.namespaces.len())
    } else {
        return Ok(());
    };
    Err(TraceError::Option(wrong))
}
