//! The phase between loading and attaching: the programs are in the kernel, and nothing runs yet.

use std::mem;

use packet_traits::registry::Registry;

use super::{
    counters::{CounterMaps, Counters, Counts},
    ending::Ended,
    load::load,
    notes::Notes,
    options::{Options, check},
    own_keys::OwnKeys,
    programs::Programs,
    reader::EventSource,
    running::Tracer,
    targets::Targets,
};
use crate::{error::TraceError, keys::Keys, point::Point, standby::Standby};

/// How often the programs are loaded if keys go in the meantime.
const LOAD_ATTEMPTS: u32 = 10;

/// A tracer whose programs are loaded, and none attached: packets do not notice it. [`Tracer::load`] returns it,
/// [`attach`](Loaded::attach) goes on. Dropping it unloads the programs and removes the tracer's own keys.
pub struct Loaded<'r> {
    // dropped in this order: the keys last, which the programs use
    pub(super) programs: Programs,
    pub(super) targets: Targets,
    pub(super) events: EventSource,
    counters: CounterMaps,
    pub(super) standby: Standby,
    pub(super) notes: Notes,
    _own_keys: Option<OwnKeys<'r>>,
}

impl<'r> Loaded<'r> {
    pub(super) fn load(registry: &'r Registry, options: &Options) -> Result<Loaded<'r>, TraceError> {
        check(options)?;
        let mut targets = Targets::find(registry, options)?;
        let mut own_keys = options.id.is_none().then(|| OwnKeys::new(registry));
        let mut attempts = LOAD_ATTEMPTS;
        let (programs, events, notes) = loop {
            attempts -= 1;
            match load(registry, options, &targets, own_keys.as_mut()) {
                Err(error) if attempts > 0 && error.keys_changed() => tracing::debug!("once more: {error}"),
                loaded => break loaded?,
            }
        };
        if programs.enter.is_none() {
            targets.occupied.clear();
        }
        let standby = match options.standby {
            // what sees drops only is cheap
            _ if programs.only_drops => Standby::Never,
            // without conditions everything matches
            Standby::Auto if options.conditions.is_empty() => Standby::Never,
            standby => standby,
        };
        Ok(Loaded {
            counters: CounterMaps::of(&programs.counting())?,
            programs,
            targets,
            events,
            standby,
            notes: Notes::new(notes),
            _own_keys: own_keys,
        })
    }

    /// Attaches the programs: the next phase.
    ///
    /// # Errors
    /// A program cannot be attached; then nothing is left attached.
    pub fn attach(self) -> Result<Tracer<'r>, TraceError> {
        Tracer::attach(self)
    }

    /// As [`Tracer::notes`]; attaching adds to them.
    pub fn notes(&self) -> &[String] {
        self.notes.all()
    }

    /// The keys that events are decoded by.
    pub fn keys(&self) -> &Keys {
        self.events.keys()
    }

    /// The points that this kernel has.
    pub fn points(&self) -> impl Iterator<Item = Point> {
        Point::ALL.into_iter().filter(|point| self.programs.has(*point))
    }

    /// Whether the tracer assigns the ids.
    pub fn assigns_ids(&self) -> bool {
        self.programs.assign.is_some()
    }

    /// What the programs have counted.
    pub(super) fn counters(&self) -> Result<Counters, TraceError> {
        Ok(Counters { xdp: self.programs.functions.xdp_counts()?, ..self.counts()?.shown })
    }

    /// The same without what concerns other software's XDP programs.
    pub(super) fn counts(&self) -> Result<Counts, TraceError> {
        self.counters.read()
    }

    /// What is to be kept when the tracer ends.
    pub(super) fn last(&mut self) -> Ended {
        Ended { counters: self.counters(), notes: mem::take(&mut self.notes).into_all() }
    }
}
