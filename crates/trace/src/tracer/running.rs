//! Tracing in progress: attaching, and standing by while nothing matches.

use std::time::Instant;

use packet_traits::{attach::Attachment, registry::Registry};

use super::{
    counters::Counters,
    ending::{Draining, Ended},
    entry::Entry,
    loaded::Loaded,
    options::Options,
    points::Points,
    reader::Reader,
};
use crate::{
    error::TraceError,
    event::Event,
    keys::Keys,
    point::Point,
    standby::{Change, Pace, Standby},
};

/// Tracing in progress: the programs are attached. [`Loaded::attach`] and [`Tracer::start`] return it.
/// [`reader`](Tracer::reader) reads what they report; [`end`](Tracer::end) is what comes next, or first
/// [`stop_assigning`](Tracer::stop_assigning). Dropping it ends it as well.
pub struct Tracer<'r> {
    // dropped in this order: what assigns ids first, the programs and the keys last
    entry: Entry,
    points: Points,
    /// Counts verdicts of other software's XDP programs. These fire for rare verdicts only, so they stay while the tracer
    /// stands by.
    xdp_counts: Vec<Attachment>,
    /// Whether the points behind the entry are in place; else it stands by.
    armed: bool,
    pace: Pace,
    /// [`Counters::too_early`] when it was armed last.
    too_early: u64,
    loaded: Loaded<'r>,
}

impl<'r> Tracer<'r> {
    /// Loads the programs and attaches them.
    ///
    /// # Errors
    /// See [`TraceError`]; then nothing is left attached.
    pub fn start(registry: &'r Registry, options: &Options) -> Result<Tracer<'r>, TraceError> {
        Tracer::load(registry, options)?.attach()
    }

    /// Loads the programs, and attaches none of them.
    ///
    /// # Errors
    /// See [`TraceError`]; then nothing is left loaded.
    pub fn load(registry: &'r Registry, options: &Options) -> Result<Loaded<'r>, TraceError> {
        Loaded::load(registry, options)
    }

    pub(super) fn attach(loaded: Loaded<'r>) -> Result<Tracer<'r>, TraceError> {
        let mut tracer = Tracer {
            entry: Entry::default(),
            points: Points::default(),
            xdp_counts: loaded.programs.functions.attach_counts()?,
            armed: false,
            pace: Pace::new(Instant::now()),
            too_early: 0,
            loaded,
        };
        if tracer.loaded.standby == Standby::FromStart {
            // whether it can be, and where
            tracer.entry.attach(&mut tracer.loaded)?;
            tracer.stand_by()?;
        } else {
            tracer.arm()?;
        }
        Ok(tracer)
    }

    /// Attaches the points behind the entry, if they are not, and has packets followed from then on. Takes some tens of
    /// milliseconds.
    ///
    /// # Errors
    /// A program cannot be attached.
    pub fn arm(&mut self) -> Result<(), TraceError> {
        if self.armed {
            return Ok(());
        }
        // what waited when the points were taken away is long gone
        self.loaded.programs.forget_waiting()?;
        // the entry last: what has an id is then seen at all points
        let attached = self.points.attach(&mut self.loaded).and_then(|()| self.entry.attach(&mut self.loaded));
        if let Err(error) = attached {
            self.take_away();
            return Err(error);
        }
        self.set_armed(true)?;
        self.too_early = self.loaded.counts()?.shown.too_early;
        self.pace.restart(Instant::now());
        Ok(())
    }

    /// Takes all away until a packet matches, but for what notices one.
    fn stand_by(&mut self) -> Result<(), TraceError> {
        self.points.attach_receive(&self.loaded.programs)?;
        self.set_armed(false)?;
        self.take_away();
        Ok(())
    }

    /// Takes away what costs packets time: the XDP programs and the points behind them.
    fn take_away(&mut self) {
        self.entry.take_away();
        self.points.take_away();
    }

    fn set_armed(&mut self, armed: bool) -> Result<(), TraceError> {
        self.loaded.programs.set_armed(armed)?;
        self.armed = armed;
        Ok(())
    }

    /// Stands by if nothing matches, and attaches all points again when a packet does: see [`Standby`]. To be called
    /// every few milliseconds; returns what has changed.
    ///
    /// # Errors
    /// As [`arm`](Tracer::arm), and if the counters cannot be read.
    pub fn adapt(&mut self) -> Result<Option<Change>, TraceError> {
        if self.loaded.standby == Standby::Never {
            return Ok(None);
        }
        if !self.armed {
            if self.loaded.counts()?.shown.too_early == self.too_early {
                return Ok(None);
            }
            self.arm()?;
            return Ok(Some(Change::Armed));
        }
        let now = Instant::now();
        if self.loaded.standby != Standby::Auto || !self.pace.due(now) {
            return Ok(None);
        }
        let counts = self.loaded.counts()?;
        let received = self.loaded.programs.received()?;
        if !self.pace.look(now, received, counts.matched + counts.shown.too_early) {
            return Ok(None);
        }
        self.stand_by()?;
        Ok(Some(Change::StoodBy))
    }

    /// Whether the points behind the entry are in place.
    pub fn is_armed(&self) -> bool {
        self.armed
    }

    /// What people should know of this tracing: what is not seen, and why. [`adapt`](Tracer::adapt) may add to them.
    pub fn notes(&self) -> &[String] {
        self.loaded.notes()
    }

    /// The keys that events are decoded by.
    pub fn keys(&self) -> &Keys {
        self.loaded.keys()
    }

    /// The points that this kernel has.
    pub fn points(&self) -> impl Iterator<Item = Point> {
        self.loaded.points()
    }

    /// Whether the tracer assigns the ids.
    pub fn assigns_ids(&self) -> bool {
        self.loaded.assigns_ids()
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// The kernel does not let the counters be read.
    pub fn counters(&self) -> Result<Counters, TraceError> {
        self.loaded.counters()
    }

    /// Reads events, for `sink`. One reader at a time gets them.
    ///
    /// # Errors
    /// The ring buffer cannot be mapped.
    pub fn reader<'a>(&self, sink: impl FnMut(Event<'_>) + 'a) -> Result<Reader<'a>, TraceError> {
        self.loaded.events.reader(sink)
    }

    /// Ends the assigning of ids: what is under way is still seen. [`Draining`] is the phase that begins.
    pub fn stop_assigning(self) -> Draining<'r> {
        let Tracer { entry, points, xdp_counts, loaded, .. } = self;
        drop(entry);
        Draining::new(points, xdp_counts, loaded)
    }

    /// Ends tracing: reads the counters, then detaches and unloads the programs, and removes the tracer's own keys.
    pub fn end(mut self) -> Ended {
        let ended = self.loaded.last();
        drop(self);
        ended
    }
}
