//! `traits top`: a full-screen view of what is traced: points, values of traits, drops.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io::{self, IsTerminal},
    os::fd::{AsRawFd, RawFd},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use packet_traits_trace::{
    Counters, DropPlace, Names, OTHERS, Paths, Point, Summary, Tracer, write::Clock, write::text,
};
use ratatui::{
    Frame,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::Line,
    widgets::{self, Paragraph, Row, Table, Wrap},
};

use super::{options::What, session::Session};
use crate::{Global, Outcome, interrupt::Interrupted};

/// Watch packets, drops and latencies in a full-screen view
///
/// The same tracing as `traits trace`, summed up: by point, by the value of a trait, by the reason of a drop. Works in a
/// terminal of 80 columns and 24 lines.
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    #[command(flatten)]
    what: What,
    /// Seconds between two looks at the numbers
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
}

const HELP: &str = "\
Examples:
  traits top
  traits top --dev eth0 'dport == 443'
  traits top --id flow_id --entered rx_ts --sample 100

Keys: p points, t traits, d drops, Tab the next view; s sorts by the next column, r reverses; arrows, Page Up and Page \
Down scroll; Space holds the screen, c starts counting from zero, q quits.";

/// Rows that Page Up and Page Down go.
const PAGE: isize = 10;
/// How often keys and events are looked at.
const TICK: Duration = Duration::from_millis(20);
/// After this many events nobody waits: the smallest ring buffer has room for twice as many.
const MANY: usize = 1 << 10;

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum View {
    Points,
    Traits,
    Drops,
}

impl View {
    const ALL: [View; 3] = [View::Points, View::Traits, View::Drops];

    fn name(self) -> &'static str {
        match self {
            View::Points => "points",
            View::Traits => "traits",
            View::Drops => "drops",
        }
    }

    fn columns(self) -> &'static [Column] {
        match self {
            View::Points => &POINTS,
            View::Traits => &TRAITS,
            View::Drops => &DROPS,
        }
    }

    /// What is shown where there is nothing to show.
    fn nothing(self) -> &'static str {
        match self {
            View::Points => "No packets so far.",
            View::Traits => "No packet with traits has come to its end so far.",
            View::Drops => "No drops so far.",
        }
    }
}

/// A column of a table.
struct Column {
    title: &'static str,
    /// The least that it takes.
    width: u16,
    /// Numbers stand on the right.
    number: bool,
    /// Takes what is left of the line.
    grows: bool,
}

const POINTS: [Column; 7] = [
    Column::text("POINT", 14),
    Column::number("EVENTS/S", 10),
    Column::number("EVENTS", 11),
    Column::number("P50", 9),
    Column::number("P99", 9),
    Column::number("MAX", 9),
    Column::number("P50 STEP", 9),
];

const TRAITS: [Column; 7] = [
    Column::growing("TRAIT", 12),
    Column::growing("VALUE", 12),
    Column::number("PACKETS/S", 9),
    Column::number("PACKETS", 10),
    Column::number("LOSS %", 6),
    Column::number("P50", 8),
    Column::number("P99", 8),
];

const DROPS: [Column; 5] = [
    Column::growing("REASON", 12),
    Column::growing("AT", 12),
    Column::text("NAMESPACE", 12),
    Column::number("DROPS/S", 8),
    Column::number("DROPS", 9),
];

impl Column {
    const fn text(title: &'static str, width: u16) -> Column {
        Column { title, width, number: false, grows: false }
    }

    const fn growing(title: &'static str, width: u16) -> Column {
        Column { title, width, number: false, grows: true }
    }

    const fn number(title: &'static str, width: u16) -> Column {
        Column { title, width, number: true, grows: false }
    }

    fn cell<'t>(&self, text: &'t str, width: u16) -> widgets::Cell<'t> {
        let line = Line::raw(cut(text, width));
        widgets::Cell::from(if self.number { line.right_aligned() } else { line })
    }
}

/// How many of the columns fit in a line of `line` characters; at least one.
fn columns_that_fit(columns: &[Column], line: u16) -> usize {
    let mut used = 0;
    let fits = columns.iter().take_while(|column| {
        used += column.width + 1;
        used <= line.saturating_add(1)
    });
    fits.count().max(1)
}

/// The widths of columns in a line of `line` characters: what is left of it goes to those that grow.
fn widths(columns: &[Column], line: u16) -> Vec<u16> {
    let used: u16 = columns.iter().map(|column| column.width + 1).sum();
    let left = (line + 1).saturating_sub(used);
    let mut growing = columns.iter().filter(|column| column.grows).count() as u16;
    let mut rest = left;
    let mut width = |column: &Column| {
        let more = if column.grows { rest / growing } else { 0 };
        growing -= u16::from(column.grows);
        rest -= more;
        (column.width + more).min(line)
    };
    columns.iter().map(&mut width).collect()
}

/// A text in at most `width` columns; what is cut ends in `…`.
fn cut(text: &str, width: u16) -> Cow<'_, str> {
    match text.char_indices().nth(width.into()) {
        None => text.into(),
        Some((0, _)) => "".into(),
        Some(_) => text.chars().take(usize::from(width).saturating_sub(1)).chain(['…']).collect::<String>().into(),
    }
}

/// A cell: what is shown, and what it is sorted by.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Text(String),
    Number(f64, String),
}

impl Value {
    fn text(&self) -> &str {
        match self {
            Value::Text(text) | Value::Number(_, text) => text,
        }
    }

    fn order(&self, other: &Value) -> std::cmp::Ordering {
        match (self, other) {
            // numbers largest first: that is what people look for
            (Value::Number(one, _), Value::Number(other, _)) => other.total_cmp(one),
            _ => self.text().cmp(other.text()),
        }
    }
}

fn count(number: u64) -> Value {
    Value::Number(number as f64, number.to_string())
}

fn time(nanos: u64) -> Value {
    Value::Number(nanos as f64, text::time(nanos))
}

fn rate(number: f64) -> Value {
    Value::Number(number, format!("{number:.0}"))
}

/// Counts at the last look, to tell rates.
#[derive(Default)]
struct Before {
    points: BTreeMap<Point, u64>,
    values: BTreeMap<(String, String), u64>,
    drops: BTreeMap<DropPlace, u64>,
    packets: u64,
}

/// All that is on the screen.
struct Screen {
    view: View,
    /// The column that each view is sorted by.
    sort: [usize; View::ALL.len()],
    reverse: bool,
    paused: bool,
    /// Nothing matches, and the points are taken away until something does.
    standing_by: bool,
    /// Rows of the view that are above the screen.
    above: Cell<usize>,
    title: String,
    /// What people should know of this tracing.
    notes: String,
    head: String,
    alert: String,
    rows: [Vec<Vec<Value>>; View::ALL.len()],
}

impl Screen {
    fn new(title: String, notes: &[String]) -> Screen {
        Screen {
            view: View::Points,
            // points in their order, the rest by how many
            sort: [0, 3, 4],
            reverse: false,
            paused: false,
            standing_by: false,
            above: Cell::default(),
            title,
            notes: notes.join("; "),
            head: String::new(),
            alert: String::new(),
            rows: Default::default(),
        }
    }

    /// Takes the numbers over.
    fn update(&mut self, summary: &Summary, counters: &Counters, before: &Before, seconds: f64, names: &mut Names) {
        let per_second =
            |now: u64, before: Option<&u64>| (now - before.copied().unwrap_or(0).min(now)) as f64 / seconds;
        self.head = format!(
            "{:.0} packets/s; {}, {} delivered, {} dropped, {} merged, {} again",
            per_second(summary.packets, Some(&before.packets)),
            text::counted(summary.packets, "packet"),
            summary.delivered,
            summary.dropped,
            summary.merged,
            summary.retransmits
        );
        self.alert = match counters.lost_events() {
            0 => {
                let unseen = text::unseen(counters).into_iter().find(|line| !line.is_empty());
                unseen.map_or_else(|| self.notes.clone(), |line| line.trim_end_matches(':').to_owned())
            }
            lost => {
                format!("{} LOST: use --buffer, --sample or a condition", text::counted(lost, "event").to_uppercase())
            }
        };
        self.rows[View::Points as usize] = summary
            .points
            .iter()
            .map(|(point, seen)| {
                vec![
                    // in their order, not that of their names
                    Value::Number(-f64::from(*point as u16), point.name().to_owned()),
                    rate(per_second(seen.events, before.points.get(point))),
                    count(seen.events),
                    time(seen.since_entered.quantile(0.5)),
                    time(seen.since_entered.quantile(0.99)),
                    time(seen.since_entered.max()),
                    time(seen.since_step.quantile(0.5)),
                ]
            })
            .collect();
        self.rows[View::Traits as usize] = summary
            .values
            .iter()
            .map(|(name, counts)| {
                let loss = 100.0 * counts.dropped as f64 / counts.packets.max(1) as f64;
                let value = if name.1 == OTHERS { "(others)" } else { &name.1 };
                vec![
                    Value::Text(name.0.clone()),
                    // numbers in their order, not that of their digits
                    value.parse().map_or(Value::Text(value.to_owned()), |n: f64| Value::Number(-n, value.to_owned())),
                    rate(per_second(counts.packets, before.values.get(name))),
                    count(counts.packets),
                    Value::Number(loss, format!("{loss:.1}")),
                    time(counts.latency.quantile(0.5)),
                    time(counts.latency.quantile(0.99)),
                ]
            })
            .collect();
        self.rows[View::Drops as usize] = summary
            .drops
            .iter()
            .map(|(drop, drops)| {
                vec![
                    Value::Text(names.drop_reason(&drop.cause)),
                    Value::Text(names.drop_place(&drop.cause)),
                    Value::Text(names.namespace(drop.netns)),
                    rate(per_second(*drops, before.drops.get(drop))),
                    count(*drops),
                ]
            })
            .collect();
    }

    /// Returns whether to go on.
    fn key(&mut self, key: KeyEvent) -> Next {
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Next::End,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Next::End,
            KeyCode::Char('c') => return Next::Reset,
            KeyCode::Char('p') => self.show(View::Points),
            KeyCode::Char('t') => self.show(View::Traits),
            KeyCode::Char('d') => self.show(View::Drops),
            KeyCode::Tab => self.show(View::ALL[(self.view as usize + 1) % View::ALL.len()]),
            KeyCode::Char('s') => {
                let sort = &mut self.sort[self.view as usize];
                *sort = (*sort + 1) % self.view.columns().len();
            }
            KeyCode::Up => self.scroll(-1),
            KeyCode::Down => self.scroll(1),
            KeyCode::PageUp => self.scroll(-PAGE),
            KeyCode::PageDown => self.scroll(PAGE),
            KeyCode::Char('r') => self.reverse = !self.reverse,
            KeyCode::Char(' ') => self.paused = !self.paused,
            _ => {}
        }
        Next::GoOn
    }

    fn show(&mut self, view: View) {
        self.view = view;
        self.above.set(0);
    }

    fn scroll(&self, rows: isize) {
        self.above.set(self.above.get().saturating_add_signed(rows));
    }

    fn sorted(&self) -> Vec<&Vec<Value>> {
        let column = self.sort[self.view as usize];
        let mut rows: Vec<_> = self.rows[self.view as usize].iter().collect();
        rows.sort_by(|one, other| match (one.get(column), other.get(column)) {
            (Some(one), Some(other)) => one.order(other),
            _ => std::cmp::Ordering::Equal,
        });
        if self.reverse {
            rows.reverse();
        }
        rows
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let inverse = Style::new().add_modifier(Modifier::REVERSED);
        let [title, head, alert, table, help] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(1),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let held = if self.paused { " (held)" } else { "" };
        let standing_by = if self.standing_by { " (stands by until a packet matches)" } else { "" };
        let head_line = format!("traits top{standing_by}: {}{held}", self.title);
        frame.render_widget(Line::styled(cut(&head_line, title.width), bold), title);
        frame.render_widget(Line::raw(cut(&self.head, head.width)), head);
        let view = self.view;
        let sorted = self.sorted();
        // below the titles
        let room = usize::from(table.height).saturating_sub(1);
        let above = self.above.get().min(sorted.len().saturating_sub(room));
        self.above.set(above);
        let shown = &sorted[above..sorted.len().min(above + room)];
        let place = match sorted.len() {
            all if all > room => format!("{}-{} of {all} (arrows)", above + 1, above + shown.len()),
            _ => String::new(),
        };
        let [alert, at] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Length(place.len() as u16)]).areas(alert);
        frame.render_widget(Line::styled(cut(&self.alert, alert.width), inverse), alert);
        frame.render_widget(Line::raw(place), at);
        let all = view.columns();
        let columns = &all[..columns_that_fit(all, table.width)];
        let widths = widths(columns, table.width);
        let sort = self.sort[view as usize];
        let titles = columns.iter().zip(&widths).enumerate().map(|(at, (column, width))| {
            column.cell(column.title, *width).style(if at == sort { inverse } else { bold })
        });
        let rows = shown.iter().map(|row| {
            let values = columns.iter().zip(&widths).zip(row.iter());
            Row::new(values.map(|((column, width), value)| column.cell(value.text(), *width)))
        });
        frame.render_widget(Table::new(rows, widths.iter().copied()).header(Row::new(titles)), table);
        if columns.len() < all.len() && table.width > 0 {
            let end = Rect { x: table.right() - 1, width: 1, height: 1.min(table.height), ..table };
            frame.render_widget(Line::raw("…"), end);
        }
        if sorted.is_empty() {
            let below = Rect { y: table.y.saturating_add(1), height: table.height.saturating_sub(1), ..table };
            frame.render_widget(Paragraph::new(view.nothing()).wrap(Wrap::default()), below);
        }
        let views: Vec<String> = View::ALL
            .iter()
            .map(|other| if *other == view { format!("[{}]", other.name()) } else { other.name().to_owned() })
            .collect();
        let keys = "Tab next  s sort  r reverse  Space hold  c reset  q quit";
        let line = format!("{}   {keys}", views.join(" "));
        frame.render_widget(Paragraph::new(cut(&line, help.width)).style(inverse), help);
    }
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    Reset,
    End,
}

pub(crate) fn run(options: &Options, global: &Global) -> Outcome {
    if !io::stdout().is_terminal() {
        return Err(
            "`traits top` draws on a terminal, and standard output is none; `traits trace --summary` prints the \
                    same numbers"
                .into(),
        );
    }
    let session = Session::prepare(&options.what, global)?;
    let mut names = Names::read(&session.options.namespaces)?;
    let mut tracer = Tracer::start(&session.registry, &session.options)?;
    if session.interrupt.came() {
        return Err(Interrupted::NOTHING_LEFT.into());
    }
    let mut terminal = ratatui::try_init()?;
    let outcome = watch(options, &session, &mut tracer, &mut names, &mut terminal);
    ratatui::try_restore()?;
    outcome
}

fn watch(
    options: &Options,
    session: &Session,
    tracer: &mut Tracer<'_>,
    names: &mut Names,
    terminal: &mut ratatui::DefaultTerminal,
) -> Outcome {
    let state = RefCell::new((Paths::default(), Summary::default()));
    let reader = tracer.reader(|event| {
        let (paths, summary) = &mut *state.borrow_mut();
        if let Some((added, packet)) = paths.add(&event) {
            summary.add(&event, added, packet);
        }
    })?;
    let mut screen = Screen::new(session.describe.clone(), tracer.notes());
    screen.standing_by = !tracer.is_armed();
    let mut before = Before::default();
    let interval = Duration::from_secs(options.interval);
    let mut looked = Instant::now();
    let keys = read_keys();
    let mut next_key = None;
    terminal.draw(|frame| screen.draw(frame))?;
    while !session.interrupt.came() {
        let mut changed = tracer.adapt()?.is_some();
        screen.standing_by = !tracer.is_armed();
        let read = reader.read()?;
        let mut state = state.borrow_mut();
        let (paths, summary) = &mut *state;
        paths.take_finished(Clock::now()).iter().for_each(|packet| summary.add_finished(packet));
        if looked.elapsed() >= interval {
            if !screen.paused {
                screen.update(summary, &tracer.counters()?, &before, looked.elapsed().as_secs_f64(), names);
            }
            before = Before {
                points: summary.points.iter().map(|(point, seen)| (*point, seen.events)).collect(),
                values: summary.values.iter().map(|(name, counts)| (name.clone(), counts.packets)).collect(),
                drops: summary.drops.clone(),
                packets: summary.packets,
            };
            looked = Instant::now();
            changed = true;
        }
        for event in next_key.take().into_iter().chain(keys.try_iter()) {
            changed = true;
            match meaning(&event, &mut screen) {
                Next::GoOn => {}
                Next::End => return Ok(()),
                Next::Reset => (*summary, before) = <(Summary, Before)>::default(),
            }
        }
        drop(state);
        if changed {
            terminal.draw(|frame| screen.draw(frame))?;
        }
        if is_gone(io::stdout().as_raw_fd())? {
            break;
        }
        let time = if read < MANY { TICK } else { Duration::ZERO };
        next_key = match keys.recv_timeout(time) {
            Ok(event) => Some(event),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            // keys cannot be read
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                thread::sleep(time);
                None
            }
        };
    }
    Ok(())
}

/// Reads keys and changes of size in a thread of its own, which ends with the process: reading from a terminal that is gone
/// never ends.
fn read_keys() -> mpsc::Receiver<Event> {
    let (to, keys) = mpsc::channel();
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if to.send(event).is_err() {
                break;
            }
        }
    });
    keys
}

/// Whether a terminal is gone.
fn is_gone(terminal: RawFd) -> io::Result<bool> {
    let mut terminal = libc::pollfd { fd: terminal, events: 0, revents: 0 };
    // SAFETY: `terminal` is valid for writing, and is the one that is told of.
    if unsafe { libc::poll(&raw mut terminal, 1, 0) } < 0 {
        let error = io::Error::last_os_error();
        // a signal, as when the terminal's size changes
        return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) };
    }
    Ok(terminal.revents != 0)
}

/// What a key or a change of size asks for.
fn meaning(event: &Event, screen: &mut Screen) -> Next {
    match event {
        Event::Key(key) if key.kind == KeyEventKind::Press => screen.key(*key),
        _ => Next::GoOn,
    }
}

#[cfg(test)]
mod tests {
    use packet_traits_trace::{Fate, Interface, XdpCount, XdpProgram};
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    fn screen() -> Screen {
        let mut screen = Screen::new("this namespace; dport == 53".to_owned(), &[]);
        screen.head = "10 packets/s; 100 packets".to_owned();
        let row = |name: &str, number: f64| {
            let number = || Value::Number(number, format!("{number}"));
            vec![Value::Text(name.to_owned()), number(), number(), number(), number(), number(), number()]
        };
        let point = |place: f64, name: &str, number: f64| {
            let mut row = row(name, number);
            row[0] = Value::Number(-place, name.to_owned());
            row
        };
        screen.rows = [
            vec![point(0.0, "xdp", 1.0), point(1.0, "gro", 3.0), point(2.0, "drop", 2.0)],
            vec![row("tenant", 7.0)],
            vec![row("NETFILTER_DROP", 1.0)],
        ];
        screen
    }

    fn lines(screen: &Screen) -> Vec<String> {
        lines_of(screen, 80, 24)
    }

    fn lines_of(screen: &Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        buffer.content.chunks(width.into()).map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect()).collect()
    }

    fn press(screen: &mut Screen, key: char) -> Next {
        screen.key(KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE))
    }

    #[test]
    fn everything_is_there_at_80_by_24() {
        let mut screen = screen();
        for (key, title) in [('p', "POINT"), ('t', "TRAIT"), ('d', "REASON")] {
            press(&mut screen, key);
            let lines = lines(&screen);
            assert_eq!(lines.len(), 24);
            assert!(lines[0].starts_with("traits top: this namespace; dport == 53"), "{lines:#?}");
            assert!(lines[3].starts_with(title), "{lines:#?}");
            let last = screen.view.columns().last().unwrap().title;
            assert!(lines[3].trim_end().ends_with(last), "{last} in {lines:#?}");
            assert!(lines[23].trim_end().ends_with("q quit"), "{lines:#?}");
        }
    }

    #[test]
    fn no_terminal_is_too_small() {
        let mut screen = screen();
        for (width, height) in [(1, 1), (1, 24), (80, 1), (3, 4), (20, 5)] {
            for view in View::ALL {
                screen.view = view;
                Terminal::new(TestBackend::new(width, height)).unwrap().draw(|frame| screen.draw(frame)).unwrap();
            }
        }
    }

    #[test]
    fn points_are_in_their_order_until_they_are_sorted() {
        let mut screen = screen();
        let first = |screen: &Screen| screen.sorted().iter().map(|row| row[0].text().to_owned()).collect::<Vec<_>>();
        assert_eq!(first(&screen), ["xdp", "gro", "drop"]);
        press(&mut screen, 's');
        assert_eq!(first(&screen), ["gro", "drop", "xdp"], "most events first");
        press(&mut screen, 'r');
        assert_eq!(first(&screen), ["xdp", "drop", "gro"]);
        press(&mut screen, 'r');
        (2..=View::Points.columns().len()).for_each(|_| _ = press(&mut screen, 's'));
        assert_eq!(first(&screen), ["xdp", "gro", "drop"], "in their order again");
    }

    #[test]
    fn numbers_stand_on_the_right_and_names_take_what_is_left() {
        let mut screen = screen();
        screen.rows[View::Drops as usize] = vec![vec![
            Value::Text("SKB_DROP_REASON_OF_A_LONG_NAME".to_owned()),
            Value::Text("a_function_in_the_kernel_of_a_long_name+0x3e8".to_owned()),
            Value::Text("blue".to_owned()),
            rate(5.0),
            count(1234),
        ]];
        press(&mut screen, 'd');
        let wide = lines_of(&screen, 120, 24);
        assert!(wide[4].starts_with("SKB_DROP_REASON_OF_A_LONG_NAME "), "{wide:#?}");
        assert!(wide[4].contains(" a_function_in_the_kernel_of_a_long_name"), "{wide:#?}");
        assert!(wide[3].ends_with("    DROPS") && wide[4].ends_with("     1234"), "{wide:#?}");
        press(&mut screen, 'p');
        let narrow = lines_of(&screen, 40, 24);
        assert_eq!(
            narrow[3], "POINT            EVENTS/S      EVENTS  …",
            "whole columns only, and that there are more"
        );
        assert_eq!(narrow[5].trim_end(), "gro                     3           3");
    }

    #[test]
    fn what_is_cut_is_marked() {
        let mut screen = screen();
        let long = "nf_hook_slow_list_of_a_long_name+0x3e8";
        screen.rows[View::Drops as usize] =
            vec![vec![Value::Text(long.to_owned()), Value::Text(long.to_owned()), rate(1.0), rate(1.0), count(1)]];
        screen.title = "this namespace; ".repeat(10);
        screen.head = "1 packet, ".repeat(10);
        screen.alert = "a note of this kernel; ".repeat(10);
        press(&mut screen, 'd');
        let lines = lines(&screen);
        for line in &lines[..3] {
            assert!(line.ends_with('…'), "{lines:#?}");
        }
        let cells: Vec<&str> = lines[4].split_whitespace().collect();
        assert!(cells.len() == 5 && cells[..2].iter().all(|cell| cell.ends_with('…')), "{lines:#?}");
        assert!(lines_of(&screen, 140, 24)[4].matches(long).count() == 2, "there is room");
        assert_eq!([cut("four", 4), cut("five5", 4), cut("x", 0), cut("", 0)], ["four", "fiv…", "", ""]);
    }

    #[test]
    fn what_does_not_fit_can_be_scrolled_to() {
        let mut screen = screen();
        let row =
            |number: u64| vec![Value::Text("tenant".to_owned()), Value::Number(-(number as f64), number.to_string())];
        screen.rows[View::Traits as usize] = (1..=40).map(row).collect();
        screen.sort[View::Traits as usize] = 1;
        press(&mut screen, 't');
        let lines = lines_of(&screen, 80, 24);
        assert!(lines[2].ends_with("1-19 of 40 (arrows)"), "{lines:#?}");
        assert!(lines[4].contains("tenant") && lines[4].contains(" 1 "), "{lines:#?}");
        for _ in 0..9 {
            screen.key(KeyEvent::new(KeyCode::PageDown, KeyModifiers::NONE));
        }
        let lines = lines_of(&screen, 80, 24);
        assert!(lines[2].ends_with("22-40 of 40 (arrows)"), "{lines:#?}");
        assert!(lines[22].contains(" 40 "), "{lines:#?}");
        screen.key(KeyEvent::new(KeyCode::Up, KeyModifiers::NONE));
        assert!(lines_of(&screen, 80, 24)[2].ends_with("21-39 of 40 (arrows)"), "it goes up at once");
        screen.rows[View::Traits as usize].clear();
        assert!(lines_of(&screen, 80, 24)[4].starts_with("No packet with traits"));
    }

    #[test]
    fn it_says_that_the_tracer_stands_by() {
        let mut screen = screen();
        assert!(!lines(&screen)[0].contains("stands by"));
        screen.standing_by = true;
        let first = &lines(&screen)[0];
        assert!(first.starts_with("traits top (stands by until a packet matches): this namespace"), "{first}");
    }

    #[test]
    fn an_alert_is_never_empty_where_there_is_something_to_say() {
        let mut screen = Screen::new(String::new(), &["a note".to_owned()]);
        let mut names = Names::read(&[]).unwrap();
        let mut alert = |counters: &Counters| {
            screen.update(&Summary::default(), counters, &Before::default(), 1.0, &mut names);
            screen.alert.clone()
        };
        let interface = Interface { index: 2, name: "eth0".to_owned(), up: true, loopback: false };
        let redirected = XdpCount {
            fate: Fate::Redirected,
            interface,
            netns: 0,
            namespace: String::new(),
            program: XdpProgram::new(7, "router"),
            packets: 5,
        };
        let mut counters = Counters::default();
        assert_eq!(alert(&counters), "a note");
        counters.xdp = vec![redirected];
        assert_eq!(alert(&counters), "Other XDP programs redirected or dropped 5 packets, unknown which");
        counters.no_room = 3;
        assert!(alert(&counters).starts_with("3 packets had no room"));
        counters.lost[0] = 4;
        assert!(alert(&counters).starts_with("4 EVENTS LOST"));
    }

    #[test]
    fn keys_end_hold_and_reset() {
        let mut screen = screen();
        assert_eq!(press(&mut screen, 'q'), Next::End);
        assert_eq!(press(&mut screen, 'c'), Next::Reset);
        assert_eq!(screen.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Next::End);
        press(&mut screen, ' ');
        assert!(lines(&screen)[0].contains("(held)"));
        screen.key(KeyEvent::new(KeyCode::Tab, KeyModifiers::NONE));
        assert_eq!(screen.view, View::Traits);
    }
}
