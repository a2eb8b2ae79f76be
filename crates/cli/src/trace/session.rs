//! A tracing session: starting it, reading events until its end, ending it.

use std::{
    cell::RefCell,
    error::Error,
    fs, thread,
    time::{Duration, Instant},
};

use packet_traits::registry::{Registry, RegistryError};
use packet_traits_lab::Bpffs;
use packet_traits_trace::{
    Change, Counters, Ended, Event, ID_KEY, Names, Options, Packet, Paths, Reader, Summary, Tracer,
    write::{Clock, End, Start},
};

use super::{options::What, outputs::Outputs};
use crate::{
    Global, Outcome,
    interrupt::{Interrupt, Interrupted},
    output,
};

/// How long nobody looks for events after there were none: they are in memory, and wait.
const TICK: Duration = Duration::from_millis(5);
/// How often counters are looked at.
const LOST_INTERVAL: Duration = Duration::from_millis(500);
/// How long what is under way at the end is waited for.
const SETTLE: Duration = Duration::from_millis(50);

/// When to end, other than by Ctrl-C.
pub(super) struct Ends {
    pub(super) events: Option<u64>,
    pub(super) seconds: Option<u64>,
}

/// What there is before tracing starts.
pub(super) struct Session {
    pub(super) registry: Registry,
    /// Holds the registry, if the host has none.
    _private: Option<Bpffs>,
    pub(super) options: Options,
    pub(super) describe: String,
    pub(super) interrupt: Interrupt,
}

impl Session {
    pub(super) fn prepare(what: &What, global: &Global) -> Result<Session, Box<dyn Error>> {
        if !rustix::process::geteuid().is_root() {
            return Err("tracing loads BPF programs, which needs root: run it as root, or with sudo".into());
        }
        let (registry, private) = match global.options().open() {
            Ok(registry) => (registry, None),
            // nobody has traits here: ids need no one else's registry
            Err(RegistryError::NotFound { .. } | RegistryError::Bpffs(_)) if what.assigns_ids() => {
                let bpffs = Bpffs::new()?;
                (Registry::options().bpffs(bpffs.path()).create()?, Some(bpffs))
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Session {
            registry,
            _private: private,
            options: what.options()?,
            describe: what.describe(),
            interrupt: Interrupt::catch()?,
        })
    }

    /// Traces until the end.
    pub(super) fn run(&self, ends: &Ends, outputs: &mut Outputs) -> Outcome {
        let names = Names::read(&self.options.namespaces)?;
        let mut tracer = Tracer::start(&self.registry, &self.options)?;
        if self.interrupt.came() {
            return Err(Interrupted::NOTHING_LEFT.into());
        }
        for note in tracer.notes() {
            output::note(format_args!("traits: {note}"));
        }
        output::note(format_args!("traits: tracing {}; Ctrl-C ends it", self.describe));
        let id_key = self.options.id.as_deref().unwrap_or(ID_KEY);
        let registry = self.registry.name().as_str();
        let printed = outputs.start(&Start { tracer: &tracer, registry, id_key, kernel: &kernel_release() });

        let state = RefCell::new(State {
            paths: Paths::default(),
            summary: Summary::default(),
            counters: Counters::default(),
            names,
            outputs,
            options: &self.options,
            count: ends.events,
            taken: 0,
            failed: printed.err(),
        });
        // also after a failure: what was seen is to be printed, and the files that can be written are to be whole
        let followed = self.follow(&mut tracer, ends, &state);
        let Ended { counters: last, notes, .. } = tracer.end();
        let mut state = state.into_inner();
        let counted = last.map(|last| state.counters = last);
        state.finish_all();
        let given_up = state.paths.given_up();
        let State { summary, counters, outputs, mut names, failed, .. } = state;
        let end = End { title: &self.describe, notes: &notes, summary: &summary, counters: &counters, given_up };
        let ended = outputs.end(&end, &mut names);
        followed.and(counted.map_err(Into::into)).and(ended).and(failed.map_or(Ok(()), Err))
    }

    /// Reads events until the end, and then what was under way; also if reading was ended by a failure.
    fn follow(&self, tracer: &mut Tracer<'_>, ends: &Ends, state: &RefCell<State<'_>>) -> Outcome {
        let reader = tracer.reader(|event| state.borrow_mut().add(&event))?;
        let followed = self.read_until_end(tracer, &reader, ends, state);
        thread::sleep(SETTLE);
        let read = reader.read();
        followed?;
        read?;
        Ok(())
    }

    /// Reads events until something ends it.
    fn read_until_end(
        &self,
        tracer: &mut Tracer<'_>,
        reader: &Reader<'_>,
        ends: &Ends,
        state: &RefCell<State<'_>>,
    ) -> Outcome {
        let started = Instant::now();
        let mut looked = started;
        loop {
            if let Some(change) = tracer.adapt()? {
                state.borrow_mut().changed(change);
            }
            let count = reader.read()?;
            let mut state = state.borrow_mut();
            if count == 0 {
                state.flush();
            }
            let done = self.interrupt.came()
                || state.failed.is_some()
                || state.has_enough()
                || ends.seconds.is_some_and(|seconds| started.elapsed().as_secs() >= seconds);
            state.finish(Clock::now());
            if looked.elapsed() >= LOST_INTERVAL {
                looked = Instant::now();
                state.look(tracer.counters()?);
            }
            drop(state);
            if done {
                return Ok(());
            }
            if count == 0 {
                thread::sleep(TICK);
            }
        }
    }
}

/// What events are added to.
struct State<'o> {
    paths: Paths,
    summary: Summary,
    /// As of the last look.
    counters: Counters,
    names: Names,
    outputs: &'o mut Outputs,
    options: &'o Options,
    /// Events after which no more are taken.
    count: Option<u64>,
    /// Events that were taken.
    taken: u64,
    /// The first output that could not be written. No events are added after that.
    failed: Option<Box<dyn Error>>,
}

impl State<'_> {
    fn has_enough(&self) -> bool {
        self.count.is_some_and(|count| self.taken >= count)
    }

    fn add(&mut self, event: &Event<'_>) {
        if self.failed.is_some() || self.has_enough() {
            return;
        }
        let Some((added, packet)) = self.paths.add(event) else { return };
        if !self.options.whole_paths {
            self.summary.add(event, added, packet);
        } else if !self.options.wants_event(event, added.since_entered) {
            return;
        }
        self.taken += 1;
        self.failed = self.outputs.event(event, added, packet, &mut self.names).err();
    }

    /// Passes on the packets of which nothing more is expected.
    fn finish(&mut self, now: u64) {
        let packets = self.paths.take_finished(now);
        self.pass_on(&packets);
    }

    fn finish_all(&mut self) {
        let packets = self.paths.take_all();
        self.pass_on(&packets);
    }

    fn pass_on(&mut self, packets: &[Packet]) {
        for packet in packets {
            if self.options.whole_paths {
                if !self.options.wants(packet) {
                    continue;
                }
                self.summary.add_path(packet);
            }
            self.summary.add_finished(packet);
            let written = self.outputs.packet(packet, &mut self.names);
            self.keep_failure(written);
        }
    }

    /// Takes the counters over, and says so if more events were lost.
    fn look(&mut self, counters: Counters) {
        if counters.lost_events() != self.counters.lost_events() {
            let printed = self.outputs.lost(&counters);
            self.keep_failure(printed);
        }
        self.counters = counters;
    }

    /// Says that the tracer stands by, or no longer does.
    fn changed(&mut self, change: Change) {
        let printed = self.outputs.changed(change);
        self.keep_failure(printed);
    }

    fn flush(&mut self) {
        let flushed = self.outputs.flush();
        self.keep_failure(flushed);
    }

    fn keep_failure(&mut self, outcome: Outcome) {
        self.failed = self.failed.take().or(outcome.err());
    }
}

/// Release of the running kernel.
fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}
