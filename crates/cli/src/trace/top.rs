//! `traits top`: a full-screen view of what is traced: points, values of traits, drops.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    error::Error,
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use packet_traits_trace::{
    Counters, DropPlace, Names, OTHERS, Paths, Point, Summary, Tracer, write::Clock, write::text,
};
use ratatui::{
    Frame,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout},
    style::{Modifier, Style},
    text::Line,
    widgets::{Cell, Row, Table},
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

Keys: p points, t traits, d drops, Tab the next of them; s sorts by the next column,
r the other way round; Space holds the screen, c starts counting anew; q ends it.";

/// How often keys and events are looked at.
const TICK: Duration = Duration::from_millis(20);

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

    fn titles(self) -> &'static [&'static str] {
        match self {
            View::Points => &["POINT", "EVENTS/S", "EVENTS", "P50", "P99", "MAX", "P50 STEP"],
            View::Traits => &["TRAIT", "VALUE", "PACKETS/S", "PACKETS", "LOSS %", "P50", "P99"],
            View::Drops => &["REASON", "AT", "NAMESPACE", "DROPS/S", "DROPS"],
        }
    }

    fn widths(self) -> Vec<Constraint> {
        let widths: &[u16] = match self {
            View::Points => &[14, 10, 11, 10, 10, 10, 9],
            View::Traits => &[16, 18, 10, 10, 7, 7, 6],
            View::Drops => &[24, 24, 12, 9, 7],
        };
        widths.iter().map(|width| Constraint::Length(*width)).collect()
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
    title: String,
    head: String,
    alert: String,
    rows: [Vec<Vec<Value>>; View::ALL.len()],
}

impl Screen {
    fn new(title: String) -> Screen {
        Screen {
            view: View::Points,
            // points in their order, the rest by how many
            sort: [usize::MAX, 3, 4],
            reverse: false,
            paused: false,
            title,
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
            "{:.0} packets/s; {} packets, {} delivered, {} dropped, {} merged, {} again",
            per_second(summary.packets, Some(&before.packets)),
            summary.packets,
            summary.delivered,
            summary.dropped,
            summary.merged,
            summary.retransmits
        );
        self.alert = match counters.lost_events() {
            0 => String::new(),
            lost => format!("{lost} EVENTS LOST: use --buffer, --sample or a condition"),
        };
        self.rows[View::Points as usize] = summary
            .points
            .iter()
            .map(|(point, seen)| {
                vec![
                    Value::Text(point.name().to_owned()),
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
            KeyCode::Char('p') => self.view = View::Points,
            KeyCode::Char('t') => self.view = View::Traits,
            KeyCode::Char('d') => self.view = View::Drops,
            KeyCode::Tab => self.view = View::ALL[(self.view as usize + 1) % View::ALL.len()],
            KeyCode::Char('s') => {
                let sort = &mut self.sort[self.view as usize];
                *sort = sort.wrapping_add(1) % self.view.titles().len();
            }
            KeyCode::Char('r') => self.reverse = !self.reverse,
            KeyCode::Char(' ') => self.paused = !self.paused,
            _ => {}
        }
        Next::GoOn
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
        frame.render_widget(Line::styled(format!("traits top: {}{held}", self.title), bold), title);
        frame.render_widget(Line::raw(&*self.head), head);
        frame.render_widget(Line::styled(&*self.alert, inverse), alert);
        let view = self.view;
        let column = self.sort[view as usize];
        let titles = view
            .titles()
            .iter()
            .enumerate()
            .map(|(at, title)| Cell::from(*title).style(if at == column { inverse } else { bold }));
        let rows = self.sorted().into_iter().map(|row| Row::new(row.iter().map(|value| Cell::from(value.text()))));
        frame.render_widget(Table::new(rows, view.widths()).header(Row::new(titles)), table);
        let views: Vec<String> = View::ALL
            .iter()
            .map(|other| if *other == view { format!("[{}]", other.name()) } else { other.name().to_owned() })
            .collect();
        let keys = "Tab next  s sort  r reverse  Space hold  c anew  q quit";
        frame.render_widget(Line::styled(format!("{}   {keys}", views.join(" ")), inverse), help);
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
    let tracer = Tracer::start(&session.registry, &session.options)?;
    if session.interrupt.came() {
        return Err(Interrupted::NOTHING_LEFT.into());
    }
    let mut terminal = ratatui::try_init()?;
    let outcome = watch(options, &session, &tracer, &mut names, &mut terminal);
    ratatui::try_restore()?;
    outcome
}

fn watch(
    options: &Options,
    session: &Session,
    tracer: &Tracer<'_>,
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
    let mut screen = Screen::new(session.describe.clone());
    let mut before = Before::default();
    let interval = Duration::from_secs(options.interval);
    let mut looked = Instant::now();
    terminal.draw(|frame| screen.draw(frame))?;
    while !session.interrupt.came() {
        tracer.adapt()?;
        reader.read()?;
        let mut state = state.borrow_mut();
        let (paths, summary) = &mut *state;
        paths.take_finished(Clock::now()?).iter().for_each(|packet| summary.add_finished(packet));
        let mut changed = false;
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
        while let Some(next) = next_key(&mut screen)? {
            changed = true;
            match next {
                Next::GoOn => {}
                Next::End => return Ok(()),
                Next::Reset => (*summary, before) = <(Summary, Before)>::default(),
            }
        }
        drop(state);
        if changed {
            terminal.draw(|frame| screen.draw(frame))?;
        }
        event::poll(TICK)?;
    }
    Ok(())
}

/// What the next key or change of size asks for; `None` if there is none.
fn next_key(screen: &mut Screen) -> Result<Option<Next>, Box<dyn Error>> {
    if !event::poll(Duration::ZERO)? {
        return Ok(None);
    }
    Ok(Some(match event::read()? {
        Event::Key(key) if key.kind == KeyEventKind::Press => screen.key(key),
        _ => Next::GoOn,
    }))
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    fn screen() -> Screen {
        let mut screen = Screen::new("this namespace; dport == 53".to_owned());
        screen.head = "10 packets/s; 100 packets".to_owned();
        let row = |name: &str, number: f64| {
            let number = || Value::Number(number, format!("{number}"));
            vec![Value::Text(name.to_owned()), number(), number(), number(), number(), number(), number()]
        };
        screen.rows = [
            vec![row("xdp", 1.0), row("gro", 3.0), row("drop", 2.0)],
            vec![row("tenant", 7.0)],
            vec![row("NETFILTER_DROP", 1.0)],
        ];
        screen
    }

    fn lines(screen: &Screen) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        buffer.content.chunks(80).map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect()).collect()
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
            let last = screen.view.titles().last().unwrap();
            assert!(lines[3].contains(last), "{last} in {lines:#?}");
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
        assert_eq!(first(&screen), ["drop", "gro", "xdp"]);
        press(&mut screen, 's');
        assert_eq!(first(&screen), ["gro", "drop", "xdp"], "most events first");
        press(&mut screen, 'r');
        assert_eq!(first(&screen), ["xdp", "drop", "gro"]);
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
