//! Where events and packets go: lines on standard output, and files.

use std::{
    error::Error,
    fs::File,
    io::{self, BufWriter, StdoutLock, Write},
    path::{Path, PathBuf},
};

use packet_traits_trace::{
    Added, Counters, Event, Names, Packet, Summary, Tracer,
    write::{
        Clock, chrome,
        html::{self, Report, Slowest},
        json, pcapng, text,
    },
};
use serde_json::Value;

use crate::{Outcome, output};

/// What is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Events,
    Packets,
    Summary,
}

/// Files that are written beside.
pub(super) struct Files {
    pub(super) pcapng: Option<PathBuf>,
    pub(super) chrome: Option<PathBuf>,
    pub(super) html: Option<PathBuf>,
}

/// All of it.
pub(super) struct Outputs {
    view: View,
    json: bool,
    out: BufWriter<StdoutLock<'static>>,
    line: String,
    pcapng: Option<pcapng::File<BufWriter<File>>>,
    chrome: Option<chrome::File<BufWriter<File>>>,
    html: Option<(PathBuf, BufWriter<File>, Slowest)>,
    lost: u64,
}

fn create(path: &Path) -> Result<BufWriter<File>, Box<dyn Error>> {
    match File::create(path) {
        Ok(file) => Ok(BufWriter::new(file)),
        Err(error) => Err(format!("cannot create {}: {error}", path.display()).into()),
    }
}

impl Outputs {
    /// Creates the files, so that tracing does not start if one cannot be written.
    pub(super) fn open(view: View, json: bool, files: &Files) -> Result<Outputs, Box<dyn Error>> {
        let pcapng = match &files.pcapng {
            Some(path) => Some(pcapng::File::new(create(path)?, Clock::read()?)?),
            None => None,
        };
        let chrome = match &files.chrome {
            Some(path) => Some(chrome::File::new(create(path)?)?),
            None => None,
        };
        let html = match &files.html {
            Some(path) => Some((path.clone(), create(path)?, Slowest::default())),
            None => None,
        };
        let out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        Ok(Outputs { view, json, out, line: String::new(), pcapng, chrome, html, lost: 0 })
    }

    fn json(&mut self, value: &Value) -> Outcome {
        Ok(writeln!(self.out, "{value}")?)
    }

    pub(super) fn start(&mut self, tracer: &Tracer<'_>, registry: &str, id_key: &str, kernel: &str) -> Outcome {
        if self.json {
            self.json(&json::start(tracer, registry, id_key, kernel))?;
        } else if self.view == View::Events {
            writeln!(self.out, "{}", text::EVENT_TITLES)?;
        }
        self.flush()
    }

    pub(super) fn event(&mut self, event: &Event<'_>, added: Added, packet: &Packet, names: &mut Names) -> Outcome {
        if let Some(file) = &mut self.pcapng {
            file.write(event, added.since_entered, Some(packet), names)?;
        }
        if self.view != View::Events {
            return Ok(());
        }
        if self.json {
            let line = json::event(event, added.since_entered, Some(packet), names)?;
            writeln!(self.out, "{line}")?;
            return Ok(());
        }
        self.line.clear();
        text::event(&mut self.line, event, added.since_entered, Some(packet), names);
        self.line.push('\n');
        Ok(self.out.write_all(self.line.as_bytes())?)
    }

    /// A packet of which nothing more is expected.
    pub(super) fn packet(&mut self, packet: &Packet, names: &mut Names) -> Outcome {
        if let Some(file) = &mut self.chrome {
            file.write(packet, names)?;
        }
        if let Some((_, _, slowest)) = &mut self.html {
            slowest.add(packet);
        }
        if self.view != View::Packets {
            return Ok(());
        }
        if self.json {
            return self.json(&json::packet(packet, names));
        }
        self.line.clear();
        text::packet(&mut self.line, packet, names);
        self.line.push('\n');
        Ok(self.out.write_all(self.line.as_bytes())?)
    }

    /// Events were lost: so many, all in all.
    pub(super) fn lost(&mut self, counters: &Counters) -> Outcome {
        if self.json {
            self.json(&json::lost(counters))?;
        } else {
            let (now, all) = (counters.lost_events() - self.lost, counters.lost_events());
            output::note(format_args!("traits: {now} events lost, {all} so far: the ring buffer is full"));
        }
        self.lost = counters.lost_events();
        self.flush()
    }

    pub(super) fn flush(&mut self) -> Outcome {
        Ok(self.out.flush()?)
    }

    /// Prints the numbers and ends the files.
    pub(super) fn end(
        &mut self,
        title: &str,
        notes: &[String],
        summary: &Summary,
        counters: &Counters,
        given_up: u64,
        names: &mut Names,
    ) -> Outcome {
        if let Some(file) = self.pcapng.take() {
            file.finish()?;
        }
        if let Some(file) = self.chrome.take() {
            file.finish()?;
        }
        if let Some((path, mut file, slowest)) = self.html.take() {
            let report = Report { title, notes, summary, counters, slowest: slowest.packets() };
            html::write(&mut file, &report, names)
                .and_then(|()| file.flush())
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        if self.json {
            self.json(&json::summary(summary, counters, given_up, names))?;
        } else {
            if self.view != View::Summary {
                writeln!(self.out)?;
            }
            for line in text::summary(summary, counters, names) {
                writeln!(self.out, "{line}")?;
            }
            if given_up != 0 {
                writeln!(self.out, "{given_up} packets were given up before their end: too many were under way.")?;
            }
        }
        self.flush()
    }
}
