//! Where events and packets go: lines on standard output, and files.

use std::{
    error::Error,
    fs::File,
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

use crate::{
    Outcome,
    output::{self, counted},
};
use packet_traits_trace::{
    Added, Change, Counters, Event, Names, Packet,
    write::{Clock, End, Sink, Start, View, chrome, html, json, pcapng, text},
};

/// Files that are written beside.
pub(super) struct Files {
    pub(super) pcapng: Option<PathBuf>,
    pub(super) chrome: Option<PathBuf>,
    pub(super) html: Option<PathBuf>,
}

/// All of it.
pub(super) struct Outputs {
    json: bool,
    lines: Box<dyn Sink>,
    files: Vec<(PathBuf, Box<dyn Sink>)>,
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

fn cannot_write(path: &Path) -> impl Fn(io::Error) -> Box<dyn Error> {
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
        type Make = fn(BufWriter<File>) -> io::Result<Box<dyn Sink>>;
        let formats: [(&Option<PathBuf>, Make); 3] = [
            (&files.pcapng, |to| Ok(Box::new(pcapng::File::new(to, Clock::read())?))),
            (&files.chrome, |to| Ok(Box::new(chrome::File::new(to)?))),
            (&files.html, |to| Ok(Box::new(html::File::new(to)))),
        ];
        let mut made = Vec::new();
        for (path, make) in formats {
            if let Some(path) = path {
                made.push((path.clone(), make(create(path)?).map_err(cannot_write(path))?));
            }
        }
        let out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        let lines: Box<dyn Sink> =
            if json { Box::new(json::Lines::new(out, view)) } else { Box::new(text::Lines::new(out, view)) };
        Ok(Outputs { json, lines, files: made, lost: 0 })
    }

    pub(super) fn start(&mut self, start: &Start<'_, '_>) -> Outcome {
        self.lines.start(start).map_err(cannot_print)?;
        self.flush()
    }

    pub(super) fn event(&mut self, event: &Event<'_>, added: Added, packet: &Packet, names: &mut Names) -> Outcome {
        for (path, file) in &mut self.files {
            file.event(event, added.since_entered, packet, names).map_err(cannot_write(path))?;
        }
        self.lines.event(event, added.since_entered, packet, names).map_err(cannot_print)
    }

    /// A packet of which nothing more is expected.
    pub(super) fn packet(&mut self, packet: &Packet, names: &mut Names) -> Outcome {
        for (path, file) in &mut self.files {
            file.packet(packet, names).map_err(cannot_write(path))?;
        }
        self.lines.packet(packet, names).map_err(cannot_print)
    }

    /// Events were lost; `counters` says how many, all in all.
    pub(super) fn lost(&mut self, counters: &Counters) -> Outcome {
        if !self.json {
            let (now, all) = (counters.lost_events() - self.lost, counters.lost_events());
            let now = counted(now, "event");
            output::note(format_args!("traits: {now} lost, {all} so far: the ring buffer is full"));
        }
        self.lost = counters.lost_events();
        self.lines.lost(counters).map_err(cannot_print)?;
        self.flush()
    }

    /// The tracer stands by, or no longer does.
    pub(super) fn changed(&mut self, change: Change) -> Outcome {
        output::note(format_args!("traits: {}", explain(change)));
        self.lines.changed(change, explain(change)).map_err(cannot_print)?;
        self.flush()
    }

    pub(super) fn flush(&mut self) -> Outcome {
        self.lines.flush().map_err(cannot_print)
    }

    /// Ends the files and prints the numbers, as far as each can be.
    pub(super) fn end(&mut self, end: &End<'_>, names: &mut Names) -> Outcome {
        let mut ended = Ok(());
        for (path, file) in &mut self.files {
            ended = ended.and(file.end(end, names).map_err(cannot_write(path)));
        }
        ended.and(self.lines.end(end, names).map_err(cannot_print))
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
