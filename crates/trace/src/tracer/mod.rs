//! Tracing in progress: starting it, standing by, reading what the programs report.
//!
//! | file | what it holds |
//! |---|---|
//! | `options` | what to trace, and where that is |
//! | `own_keys` | the keys that the tracer registers |
//! | `load` | loading the programs |
//! | `entry` | where packets get their ids |
//! | `attach` | attaching the points behind it |
//! | `counters` | what the programs count |
//! | `reader` | reading what they report |
//!
//! Everything is held by descriptors of this process: when it ends, however it ends, all of it is gone. What stays after a
//! SIGKILL is the names of the tracer's own keys in the registry, which the next tracer takes over; and before Linux 6.6 the
//! `clsact` filters, which pass every packet.

mod attach;
mod counters;
mod entry;
pub(crate) mod load;
mod options;
mod own_keys;
mod reader;

use std::{
    cell::{Cell, RefCell},
    time::Instant,
};

use libbpf_rs::{MapCore, MapFlags};
use packet_traits::{
    attach::{Attachment, XdpMode},
    bind::LoadedObject,
    deployment::Location,
    registry::Registry,
};

use self::{
    attach::{CURRENT_RECEIVED, RECEIVE},
    counters::{CounterMaps, Counts},
    load::{LOAD_ATTEMPTS, Loaded, switch},
    options::{check, interfaces, occupied},
    own_keys::OwnKeys,
    reader::EventSource,
};
pub use self::{
    counters::Counters,
    options::{Options, RING_LEN},
    reader::Reader,
};
use crate::{
    error::{TraceError, libbpf},
    event::Event,
    functions::Functions,
    keys::Keys,
    namespace::{Namespace, Place, PlaceId},
    object::handle,
    point::Point,
    standby::{Change, Pace, Standby},
};

/// Tracing in progress. Dropping it ends it.
pub struct Tracer<'r> {
    // dropped in this order: who assigns ids first, the keys last
    assigning: RefCell<Vec<Attachment>>,
    /// The entry behind other people's XDP programs, which stays while the tracer stands by.
    entering: RefCell<Vec<Attachment>>,
    attachments: RefCell<Vec<Attachment>>,
    /// The point that stays while the tracer stands by: it counts what is received, and notices what matches.
    receive: RefCell<Option<Attachment>>,
    /// What is traced.
    places: (Vec<Namespace>, Vec<Place>),
    /// The interfaces were chosen by name.
    named: bool,
    xdp_mode: XdpMode,
    /// Where deployments are that may stand in the way.
    location: Location,
    standby: Standby,
    armed: Cell<bool>,
    pace: RefCell<Pace>,
    /// `Counters::too_early` when the tracer was armed last.
    too_early: Cell<u64>,
    assign: Option<LoadedObject>,
    /// The entry behind other people's XDP programs; it counts in the map of `assign`.
    enter: Option<LoadedObject>,
    /// As of [`Loaded::finds_sent`].
    finds_sent: bool,
    /// The interfaces that have such a program.
    occupied: Vec<PlaceId>,
    functions: Functions,
    trace: LoadedObject,
    events: EventSource,
    counters: CounterMaps,
    only_drops: bool,
    notes: RefCell<Vec<String>>,
    _own_keys: Option<OwnKeys<'r>>,
}

impl<'r> Tracer<'r> {
    /// Starts tracing.
    ///
    /// # Errors
    /// See [`TraceError`]; then nothing is left attached.
    pub fn start(registry: &'r Registry, options: &Options) -> Result<Tracer<'r>, TraceError> {
        check(options)?;
        let interfaces = interfaces(options)?;
        let own_keys = options.id.is_none().then(|| OwnKeys::new(registry));
        let mut occupied = if own_keys.is_some() { occupied(&interfaces)? } else { Vec::new() };
        let mut attempts = LOAD_ATTEMPTS;
        let Loaded { keys, run, trace, functions, assign, enter, finds_sent, notes } = loop {
            attempts -= 1;
            match Loaded::load(registry, options, &interfaces, &occupied, own_keys.as_ref()) {
                Err(error) if attempts > 0 && error.keys_changed() => tracing::debug!("once more: {error}"),
                loaded => break loaded?,
            }
        };
        if enter.is_none() {
            occupied.clear();
        }
        let events = EventSource::new(handle(&trace, "events")?, keys, run, options.ring_len);
        let counting = [Some(&trace), assign.as_ref()].into_iter().flatten().chain(functions.objects());
        let counters = CounterMaps::of(&counting.collect::<Vec<_>>())?;
        let only_drops = options.reports_only_drops();
        let standby = match options.standby {
            // what sees drops only is cheap
            _ if only_drops => Standby::Never,
            // without conditions everything matches
            Standby::Auto if options.conditions.is_empty() => Standby::Never,
            standby => standby,
        };
        let tracer = Tracer {
            assigning: RefCell::default(),
            entering: RefCell::default(),
            attachments: RefCell::default(),
            receive: RefCell::default(),
            places: (options.namespaces.clone(), interfaces),
            named: !options.devices.is_empty(),
            xdp_mode: options.xdp_mode,
            location: Location::from(registry),
            standby,
            armed: Cell::new(false),
            pace: RefCell::new(Pace::new(Instant::now())),
            too_early: Cell::new(0),
            assign,
            enter,
            finds_sent,
            occupied,
            functions,
            trace,
            events,
            counters,
            only_drops,
            notes: RefCell::new(notes),
            _own_keys: own_keys,
        };
        if tracer.standby == Standby::FromStart {
            // whether it can be, and where
            tracer.attach_entry()?;
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
    pub fn arm(&self) -> Result<(), TraceError> {
        if self.armed.get() {
            return Ok(());
        }
        // what waited when the points were taken away is long gone
        let waiting = handle(&self.trace, "waiting")?;
        for key in waiting.keys() {
            // the kernel may have removed it in the meantime
            let _ = waiting.delete(&key);
        }
        if let Err(error) = self.attach() {
            self.take_away();
            return Err(error);
        }
        // the entry last: what has an id is then seen at all points
        if let Err(error) = self.attach_entry() {
            self.take_away();
            return Err(error);
        }
        self.set_armed(true)?;
        self.too_early.set(self.counts()?.shown.too_early);
        self.pace.borrow_mut().restart(Instant::now());
        Ok(())
    }

    /// Takes all away until a packet matches, but for what notices one.
    fn stand_by(&self) -> Result<(), TraceError> {
        if self.receive.borrow().is_none() {
            *self.receive.borrow_mut() = self.attach_tracepoint(RECEIVE)?;
        }
        self.set_armed(false)?;
        self.take_away();
        Ok(())
    }

    /// Takes away what costs packets time: the XDP programs, for which drivers and the kernel cut and copy large packets,
    /// and the points behind them.
    fn take_away(&self) {
        self.assigning.borrow_mut().clear();
        self.attachments.borrow_mut().clear();
    }

    fn set_armed(&self, armed: bool) -> Result<(), TraceError> {
        // what counts packets that are too early last, so that none is neither counted nor followed
        let entries = [self.assign.as_ref(), self.enter.as_ref()];
        for object in entries.into_iter().flatten().chain(self.functions.objects()).chain([&self.trace]) {
            switch(object, ".data.armed", armed)?;
        }
        self.armed.set(armed);
        Ok(())
    }

    /// Stands by if nothing matches, and attaches all points again when a packet does: see [`Standby`]. To be called
    /// every few milliseconds; returns what has changed.
    ///
    /// # Errors
    /// As [`arm`](Tracer::arm), and if the counters cannot be read.
    pub fn adapt(&self) -> Result<Option<Change>, TraceError> {
        if self.standby == Standby::Never {
            return Ok(None);
        }
        if !self.armed.get() {
            if self.counts()?.shown.too_early == self.too_early.get() {
                return Ok(None);
            }
            self.arm()?;
            return Ok(Some(Change::Armed));
        }
        let now = Instant::now();
        if self.standby != Standby::Auto || !self.pace.borrow().due(now) {
            return Ok(None);
        }
        let counts = self.counts()?;
        if !self.pace.borrow_mut().look(now, self.received()?, counts.matched + counts.shown.too_early) {
            return Ok(None);
        }
        self.stand_by()?;
        Ok(Some(Change::StoodBy))
    }

    /// Whether the points behind the entry are in place.
    pub fn is_armed(&self) -> bool {
        self.armed.get()
    }

    /// Packets that the host received, as far as the programs were attached.
    fn received(&self) -> Result<u64, TraceError> {
        let map = handle(&self.trace, "current")?;
        let values = map.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY).map_err(libbpf("count packets"))?;
        let count = |value: &Vec<u8>| value.as_chunks().0.get(CURRENT_RECEIVED).copied().map_or(0, u64::from_ne_bytes);
        Ok(values.iter().flatten().map(count).sum())
    }

    /// What people should know of this tracing: what is not seen, and why.
    pub fn notes(&self) -> Vec<String> {
        self.notes.borrow().clone()
    }

    /// The keys that events are decoded by.
    pub fn keys(&self) -> &Keys {
        self.events.keys()
    }

    /// The points that this kernel has.
    pub fn points(&self) -> impl Iterator<Item = Point> {
        Point::ALL.into_iter().filter(|point| self.has(*point))
    }

    /// Whether the tracer assigns the ids.
    pub fn assigns_ids(&self) -> bool {
        self.assign.is_some()
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// The kernel does not let the counters be read.
    pub fn counters(&self) -> Result<Counters, TraceError> {
        Ok(Counters { xdp: self.functions.xdp_counts()?, ..self.counts()?.shown })
    }

    fn counts(&self) -> Result<Counts, TraceError> {
        self.counters.read()
    }

    /// Ends the assigning of ids. What is under way is still seen.
    pub fn stop_assigning(&mut self) {
        self.assigning.borrow_mut().clear();
        self.entering.borrow_mut().clear();
    }

    /// Reads events, for `sink`.
    ///
    /// # Errors
    /// The ring buffer cannot be mapped.
    pub fn reader<'a>(&self, sink: impl FnMut(Event<'_>) + 'a) -> Result<Reader<'a>, TraceError> {
        self.events.reader(sink)
    }
}

#[cfg(test)]
mod tests {
    use packet_traits_testing::layout::Types;

    use super::{load::TRACE_OBJECT, *};

    #[test]
    fn received_packets_are_counted_there() {
        let types = Types::of(TRACE_OBJECT);
        assert_eq!(types.structure("current_packet").offset_of("received"), CURRENT_RECEIVED * size_of::<u64>());
    }
}
