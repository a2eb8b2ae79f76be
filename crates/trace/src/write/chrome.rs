//! The trace event format of Chrome and Perfetto (<https://ui.perfetto.dev>): each packet a track, each step a slice that
//! lasts until the next.
//!
//! Slices are asynchronous events (`b`, `e`) of category `packet` with the packet's id, so packets that overlap in time
//! have tracks of their own. Times are microseconds since the first packet.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::{End, Sink, text};
use crate::{names::Names, path::Packet};

/// A file that is being written.
pub struct File<W: Write> {
    to: W,
    started: Option<u64>,
}

impl<W: Write> File<W> {
    /// Starts a file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(mut to: W) -> io::Result<File<W>> {
        let name = json!({"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "packets (traits trace)"}});
        write!(to, "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n{name}")?;
        Ok(File { to, started: None })
    }
}

impl<W: Write> Sink for File<W> {
    fn packet(&mut self, packet: &Packet, names: &mut Names) -> io::Result<()> {
        let started = *self.started.get_or_insert(packet.entered);
        let micros = |at: u64| (at as f64 - started as f64) / 1000.0;
        let id = format!("{:#x}", packet.id);
        let mut event = |kind: &str, name: &str, at: u64, args: Value| {
            let event = json!({
                "name": name, "cat": "packet", "ph": kind, "id": id, "pid": 1, "tid": 1, "ts": micros(at), "args": args,
            });
            write!(self.to, ",\n{event}")
        };
        let headers = packet.headers.map(|headers| headers.to_string()).unwrap_or_default();
        let title = format!("#{} {headers} {}", packet.id, packet.outcome.name());
        let traits: Map<String, Value> =
            packet.traits.iter().map(|(key, value)| (key.clone(), value.to_string().into())).collect();
        let end = packet.last_at().max(packet.entered);
        event("b", &title, packet.entered, json!({"traits": traits, "outcome": packet.outcome.name()}))?;
        for (at, step) in packet.steps.iter().enumerate() {
            let until = packet.steps.get(at + 1).map_or(end, |next| next.at);
            let detail = text::detail(&step.detail, names);
            let args = json!({
                "dev": step.device(), "netns": names.namespace(step.netns), "copy": step.copy, "detail": detail,
                "inferred": step.inferred,
            });
            event("b", step.point.name(), step.at, args)?;
            event("e", step.point.name(), until.max(step.at), Value::Null)?;
        }
        event("e", &title, end, Value::Null)
    }

    fn end(&mut self, _: &End<'_>, _: &mut Names) -> io::Result<()> {
        self.to.write_all(b"\n]}\n")?;
        self.to.flush()
    }
}
