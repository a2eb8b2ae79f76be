//! What formats have in common.

use std::io;

use crate::{
    event::Event,
    names::Names,
    path::Packet,
    standby::Change,
    summary::Summary,
    tracer::{Counters, Tracer},
};

/// What lines are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum View {
    /// A line for each event.
    Events,
    /// The path of each packet.
    Packets,
    /// Nothing but the summary.
    Summary,
}

/// What is known when tracing starts.
pub struct Start<'a, 'r> {
    /// The tracer.
    pub tracer: &'a Tracer<'r>,
    /// The registry's name.
    pub registry: &'a str,
    /// The key that packets are told apart by.
    pub id_key: &'a str,
    /// The kernel's release.
    pub kernel: &'a str,
}

/// What is known when it ends.
pub struct End<'a> {
    /// What was traced, in a line.
    pub title: &'a str,
    /// What people should know of it.
    pub notes: &'a [String],
    /// The numbers.
    pub summary: &'a Summary,
    /// What was lost.
    pub counters: &'a Counters,
    /// Packets that were given up before the end.
    pub given_up: u64,
}

/// Writes what is traced in one format. A new format implements this; what it does not write it leaves out.
///
/// # Errors
/// Each of them fails if something cannot be written.
pub trait Sink {
    /// Tracing has started.
    fn start(&mut self, start: &Start<'_, '_>) -> io::Result<()> {
        let _ = start;
        Ok(())
    }

    /// An event, `since_entered` nanoseconds after its packet entered.
    fn event(&mut self, event: &Event<'_>, since_entered: u64, packet: &Packet, names: &mut Names) -> io::Result<()> {
        let _ = (event, since_entered, packet, names);
        Ok(())
    }

    /// A packet of which nothing more is expected.
    fn packet(&mut self, packet: &Packet, names: &mut Names) -> io::Result<()> {
        let _ = (packet, names);
        Ok(())
    }

    /// More events were lost.
    fn lost(&mut self, counters: &Counters) -> io::Result<()> {
        let _ = counters;
        Ok(())
    }

    /// The tracer stands by, or no longer does, and why.
    fn changed(&mut self, change: Change, why: &str) -> io::Result<()> {
        let _ = (change, why);
        Ok(())
    }

    /// There are no events for a while.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Tracing has ended: writes the rest.
    fn end(&mut self, end: &End<'_>, names: &mut Names) -> io::Result<()>;
}
