//! Where events and packets go: lines on standard output, and files.

use std::{
    error::Error,
    fmt,
    fs::File,
    io::{self, BufWriter, StdoutLock, Write},
    path::{Path, PathBuf},
};

use crate::{
    Outcome,
    output::{self, counted},
};
use packet_traits_trace::{
    Added, Change, Counters, Event, Names, Packet, Summary, Tracer,
    write::{
        Clock, chrome,
        html::{self, Report, Slowest},
        json, pcapng, text,
    },
};

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
    pcapng: Option<(PathBuf, pcapng::File<BufWriter<File>>)>,
    chrome: Option<(PathBuf, chrome::File<BufWriter<File>>)>,
    html: Option<(PathBuf, BufWriter<File>, Slowest)>,
    lost: u64,
}

fn create(path: &Path) -> Result<BufWriter<File>, Box<dyn Error>> {
    if path == Path::new("-") {
        return Err("no file goes to standard output, which has the lines: give a name, or in bash >(COMMAND)".into());
    }
    match File::create(path) {
        Ok(file) => Ok(BufWriter::new(file)),
        Err(error) => Err(format!("cannot create {}: {error}", path.display()).into()),
    }
}

fn cannot_write<E: fmt::Display>(path: &Path) -> impl Fn(E) -> Box<dyn Error> {
    move |error| format!("cannot write {}: {error}", path.display()).into()
}

/// That nobody reads any more is no failure, and stays what it is.
fn cannot_print(error: io::Error) -> Box<dyn Error> {
    match error.kind() {
        io::ErrorKind::BrokenPipe => error.into(),
        _ => format!("cannot write to standard output: {error}").into(),
    }
}

impl Outputs {
    /// Creates the files, so that tracing does not start if one cannot be written.
    pub(super) fn open(view: View, json: bool, files: &Files) -> Result<Outputs, Box<dyn Error>> {
        let pcapng = match &files.pcapng {
            Some(path) => {
                let file = pcapng::File::new(create(path)?, Clock::read()?).map_err(cannot_write(path))?;
                Some((path.clone(), file))
            }
            None => None,
        };
        let chrome = match &files.chrome {
            Some(path) => Some((path.clone(), chrome::File::new(create(path)?).map_err(cannot_write(path))?)),
            None => None,
        };
        let html = match &files.html {
            Some(path) => Some((path.clone(), create(path)?, Slowest::default())),
            None => None,
        };
        let out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        Ok(Outputs { view, json, out, line: String::new(), pcapng, chrome, html, lost: 0 })
    }

    fn print(&mut self, line: impl fmt::Display) -> Outcome {
        writeln!(self.out, "{line}").map_err(cannot_print)
    }

    fn print_line(&mut self) -> Outcome {
        self.line.push('\n');
        self.out.write_all(self.line.as_bytes()).map_err(cannot_print)
    }

    pub(super) fn start(&mut self, tracer: &Tracer<'_>, registry: &str, id_key: &str, kernel: &str) -> Outcome {
        if self.json {
            self.print(json::start(tracer, registry, id_key, kernel))?;
        } else if self.view == View::Events {
            self.print(text::EVENT_TITLES)?;
        }
        self.flush()
    }

    pub(super) fn event(&mut self, event: &Event<'_>, added: Added, packet: &Packet, names: &mut Names) -> Outcome {
        if let Some((path, file)) = &mut self.pcapng {
            file.write(event, added.since_entered, Some(packet), names).map_err(cannot_write(path))?;
        }
        if self.view != View::Events {
            return Ok(());
        }
        if self.json {
            let line = json::event(event, added.since_entered, Some(packet), names)?;
            return self.print(line);
        }
        self.line.clear();
        text::event(&mut self.line, event, added.since_entered, Some(packet), names);
        self.print_line()
    }

    /// A packet of which nothing more is expected.
    pub(super) fn packet(&mut self, packet: &Packet, names: &mut Names) -> Outcome {
        if let Some((path, file)) = &mut self.chrome {
            file.write(packet, names).map_err(cannot_write(path))?;
        }
        if let Some((_, _, slowest)) = &mut self.html {
            slowest.add(packet);
        }
        if self.view != View::Packets {
            return Ok(());
        }
        if self.json {
            return self.print(json::packet(packet, names));
        }
        self.line.clear();
        text::packet(&mut self.line, packet, names);
        self.print_line()
    }

    /// Events were lost: so many, all in all.
    pub(super) fn lost(&mut self, counters: &Counters) -> Outcome {
        if self.json {
            self.print(json::lost(counters))?;
        } else {
            let (now, all) = (counters.lost_events() - self.lost, counters.lost_events());
            let now = counted(now, "event");
            output::note(format_args!("traits: {now} lost, {all} so far: the ring buffer is full"));
        }
        self.lost = counters.lost_events();
        self.flush()
    }

    /// The tracer stands by, or no longer does.
    pub(super) fn changed(&mut self, change: Change) -> Outcome {
        output::note(format_args!("traits: {}", explain(change)));
        if self.json {
            self.print(json::standby(change == Change::Armed, explain(change)))?;
        }
        self.flush()
    }

    pub(super) fn flush(&mut self) -> Outcome {
        self.out.flush().map_err(cannot_print)
    }

    /// Ends the files and prints the numbers, as far as each can be.
    pub(super) fn end(
        &mut self,
        title: &str,
        notes: &[String],
        summary: &Summary,
        counters: &Counters,
        given_up: u64,
        names: &mut Names,
    ) -> Outcome {
        let ended = self.pcapng.take().map_or(Ok(()), |(path, file)| file.finish().map_err(cannot_write(&path)));
        let chrome = self.chrome.take().map_or(Ok(()), |(path, file)| file.finish().map_err(cannot_write(&path)));
        let html = self.html.take().map_or(Ok(()), |(path, mut file, slowest)| {
            let report = Report { title, notes, summary, counters, slowest: slowest.packets() };
            html::write(&mut file, &report, names).and_then(|()| file.flush()).map_err(cannot_write(&path))
        });
        let numbers = self.numbers(summary, counters, given_up, names);
        ended.and(chrome).and(html).and(numbers)
    }

    fn numbers(&mut self, summary: &Summary, counters: &Counters, given_up: u64, names: &mut Names) -> Outcome {
        if self.json {
            self.print(json::summary(summary, counters, given_up, names))?;
        } else {
            if self.view != View::Summary {
                self.print("")?;
            }
            for line in text::summary(summary, counters, names) {
                self.print(line)?;
            }
            if given_up != 0 {
                let packets = counted(given_up, "packet");
                self.print(format_args!("{packets} given up before the end: too many were under way."))?;
            }
        }
        self.flush()
    }
}

/// What has changed, and what that means.
fn explain(change: Change) -> &'static str {
    match change {
        Change::StoodBy => {
            "no packet matches, and many come in: all points but the first are taken away, which costs them least; the \
             next that matches brings the points back, but is not followed itself (--standby=never: all stay)"
        }
        Change::Armed => "a packet has matched: packets are followed from now on",
    }
}
