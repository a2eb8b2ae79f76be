//! The end of a trace: packets under way, and what is left when the programs are gone.

use packet_traits::attach::Attachment;

use super::{counters::Counters, loaded::Loaded, points::Points, reader::Reader};
use crate::{error::TraceError, event::Event};

/// A tracer that assigns no more ids, and still sees the packets that have one. [`Tracer::stop_assigning`] returns it,
/// [`end`](Draining::end) is what comes next. Dropping it ends it as well.
///
/// It neither stands by nor attaches anything:
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use packet_traits_trace::{Options, Tracer};
/// # let registry = packet_traits::registry::Registry::options().open()?;
/// let mut tracer = Tracer::start(&registry, &Options::default())?;
/// tracer.adapt()?;
/// let draining = tracer.stop_assigning();
/// println!("{} packets got an id", draining.end().counters?.assigned);
/// # Ok(())
/// # }
/// ```
///
/// ```compile_fail,E0599
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use packet_traits_trace::{Options, Tracer};
/// # let registry = packet_traits::registry::Registry::options().open()?;
/// let mut tracer = Tracer::start(&registry, &Options::default())?;
/// let mut draining = tracer.stop_assigning();
/// draining.adapt()?;
/// # Ok(())
/// # }
/// ```
///
/// [`Tracer::stop_assigning`]: crate::Tracer::stop_assigning
pub struct Draining<'r> {
    // dropped in this order: the programs and the keys last
    _points: Points,
    _xdp_counts: Vec<Attachment>,
    loaded: Loaded<'r>,
}

impl<'r> Draining<'r> {
    pub(super) fn new(points: Points, xdp_counts: Vec<Attachment>, loaded: Loaded<'r>) -> Draining<'r> {
        Draining { _points: points, _xdp_counts: xdp_counts, loaded }
    }

    /// As [`Tracer::reader`](crate::Tracer::reader). A reader of the tracer goes on as well.
    ///
    /// # Errors
    /// The ring buffer cannot be mapped.
    pub fn reader<'a>(&self, sink: impl FnMut(Event<'_>) + 'a) -> Result<Reader<'a>, TraceError> {
        self.loaded.events.reader(sink)
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// The kernel does not let the counters be read.
    pub fn counters(&self) -> Result<Counters, TraceError> {
        self.loaded.counters()
    }

    /// As [`Tracer::notes`](crate::Tracer::notes).
    pub fn notes(&self) -> &[String] {
        self.loaded.notes()
    }

    /// As [`Tracer::end`](crate::Tracer::end).
    pub fn end(mut self) -> Ended {
        let ended = self.loaded.last();
        drop(self);
        ended
    }
}

/// What is left of a trace: the programs are gone, and so are the tracer's own keys. [`Tracer::end`](crate::Tracer::end)
/// returns it. A [`Reader`] that there still is reads what was reported until then.
#[derive(Debug)]
#[non_exhaustive]
pub struct Ended {
    /// What was counted until the programs were detached, or why that could not be read.
    pub counters: Result<Counters, TraceError>,
    /// What people should know of this trace: what was not seen, and why.
    pub notes: Vec<String>,
}
