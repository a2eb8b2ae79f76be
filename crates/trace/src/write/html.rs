//! A report as one HTML file: numbers, latency plots, drops and the slowest packets' ways. Nothing is loaded from
//! elsewhere and nothing runs in it: plots are drawn here, as SVG.

use std::{
    fmt::{self, Write as _},
    io::{self, Write},
};

use super::{End, Sink, text};
use crate::{
    histogram::{Bucket, Histogram},
    names::Names,
    path::Packet,
    point::Point,
    summary::{OTHERS, Summary},
    tracer::Counters,
};

/// How many of the slowest packets are shown.
pub const SLOWEST_MAX: usize = 20;

/// What goes into a report.
pub struct Report<'a> {
    /// What was traced, in a line.
    pub title: &'a str,
    /// What people should know of it.
    pub notes: &'a [String],
    /// The numbers.
    pub summary: &'a Summary,
    /// What was lost.
    pub counters: &'a Counters,
    /// The slowest packets, slowest first.
    pub slowest: &'a [Packet],
}

/// Keeps the slowest packets.
#[derive(Default)]
pub struct Slowest(Vec<Packet>);

impl Slowest {
    /// Keeps the packet if it is one of the slowest.
    pub fn add(&mut self, packet: &Packet) {
        let time = |packet: &Packet| packet.duration();
        if self.0.len() >= SLOWEST_MAX && self.0.last().is_some_and(|last| time(last) >= time(packet)) {
            return;
        }
        let place = self.0.partition_point(|other| time(other) >= time(packet));
        self.0.insert(place, packet.clone());
        self.0.truncate(SLOWEST_MAX);
    }

    /// They, slowest first.
    pub fn packets(&self) -> &[Packet] {
        &self.0
    }
}

/// A file that is written at the end.
pub struct File<W: Write> {
    to: W,
    slowest: Slowest,
}

impl<W: Write> File<W> {
    /// Takes what to write to.
    pub fn new(to: W) -> File<W> {
        File { to, slowest: Slowest::default() }
    }
}

impl<W: Write> Sink for File<W> {
    fn packet(&mut self, packet: &Packet, _: &mut Names) -> io::Result<()> {
        self.slowest.add(packet);
        Ok(())
    }

    fn end(&mut self, end: &End<'_>, names: &mut Names) -> io::Result<()> {
        let End { title, notes, summary, counters, .. } = *end;
        let report = Report { title, notes, summary, counters, slowest: self.slowest.packets() };
        write(&mut self.to, &report, names)?;
        self.to.flush()
    }
}

/// Text in HTML.
struct Escaped<T>(T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.to_string().chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

const STYLE: &str = "\
body{font:14px/1.45 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#1d2733;background:#fff}
h1{font-size:1.5em;margin:0 0 .2em}h2{font-size:1.1em;margin:2em 0 .5em;border-bottom:1px solid #d5dce4}
table{border-collapse:collapse;width:100%}th{text-align:left;font-weight:600;color:#5a6875}
th,td{padding:.2em .7em .2em 0;border-bottom:1px solid #eef1f4;white-space:nowrap}td.n,th.n{text-align:right;
font-variant-numeric:tabular-nums}.tiles{display:flex;gap:1em;flex-wrap:wrap;margin:1em 0}
.tile{border:1px solid #d5dce4;border-radius:6px;padding:.5em 1em;min-width:7em}.tile b{display:block;font-size:1.5em}
.bad b,.bad{color:#b3261e}.note{color:#5a6875}svg{display:block;width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:#5a6875}
@media (prefers-color-scheme:dark){body{background:#12171d;color:#dde4ea}th,.note,svg text{color:#93a1ae;fill:#93a1ae}
h2,.tile{border-color:#303a45}th,td{border-color:#222b34}}
";

/// Writes a report.
///
/// # Errors
/// It cannot be written.
pub fn write(to: &mut impl Write, report: &Report<'_>, names: &mut Names) -> io::Result<()> {
    let Report { title, notes, summary, counters, slowest } = report;
    writeln!(
        to,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>traits trace</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>traits trace</h1>\n<p class=\"note\">{}</p>",
        Escaped(title)
    )?;
    tiles(to, summary, counters)?;
    for note in notes.iter().chain(&text::unseen(counters)).filter(|note| !note.is_empty()) {
        writeln!(to, "<p class=\"note\">{}</p>", Escaped(note))?;
    }
    if let Some(delivered) = summary.points.get(&Point::Deliver) {
        writeln!(to, "<h2>From entering to delivery</h2>\n{}", plot(&delivered.since_entered))?;
    }
    points(to, summary)?;
    verdicts(to, summary)?;
    drops(to, summary, names)?;
    values(to, summary)?;
    if !slowest.is_empty() {
        writeln!(to, "<h2>The slowest packets</h2>")?;
        for (place, packet) in slowest.iter().enumerate() {
            way(to, packet, place == 0, names)?;
        }
    }
    writeln!(to, "</body>\n</html>")
}

fn tiles(to: &mut impl Write, summary: &Summary, counters: &Counters) -> io::Result<()> {
    let tiles = [
        ("packets", summary.packets, false),
        ("delivered", summary.delivered, false),
        ("dropped", summary.dropped, true),
        ("ended connections", summary.spent, false),
        ("merged by GRO", summary.merged, false),
        ("came again", summary.retransmits, false),
        ("events", summary.events, false),
        ("events lost", counters.lost_events(), true),
    ];
    writeln!(to, "<div class=\"tiles\">")?;
    for (name, count, bad) in tiles {
        let class = if bad && count != 0 { "tile bad" } else { "tile" };
        writeln!(to, "<div class=\"{class}\"><b>{count}</b>{name}</div>")?;
    }
    writeln!(to, "</div>")
}

/// A histogram, with a logarithmic axis of time.
fn plot(histogram: &Histogram) -> String {
    const WIDTH: f64 = 900.0;
    const HEIGHT: f64 = 180.0;
    let buckets: Vec<Bucket> = histogram.buckets().collect();
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"latency\">", HEIGHT + 20.0);
    if let (Some(first), Some(last)) = (buckets.first(), buckets.last()) {
        let log = |value: u64| (value.max(1) as f64).log2();
        let (from, until) = (log(first.start).floor(), (log(last.start) + 0.3).ceil());
        let x = |value: f64| (value - from) / (until - from).max(1.0) * WIDTH;
        let most = buckets.iter().map(|bucket| bucket.count).max().unwrap_or(1) as f64;
        for Bucket { start, last, count } in &buckets {
            let height = (*count as f64 / most * (HEIGHT - 20.0)).max(1.0);
            let (left, right) = (x(log(*start)), x(log(last.saturating_add(1))));
            let _ = write!(
                svg,
                "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"#3b7dd8\">\
                 <title>{}: {count}</title></rect>",
                HEIGHT - height,
                (right - left - 0.5).max(1.0),
                text::time(*start)
            );
        }
        let mut tick = from;
        let step = ((until - from) / 10.0).ceil().max(1.0);
        while tick <= until {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\">{}</text>",
                x(tick),
                HEIGHT + 14.0,
                text::time(tick.exp2() as u64)
            );
            tick += step;
        }
        for (name, part) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
            let value = histogram.quantile(part);
            let at = x(log(value));
            let _ = write!(
                svg,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"14\" y2=\"{HEIGHT}\" stroke=\"#b3261e\" \
                 stroke-dasharray=\"3 3\"/><text x=\"{:.1}\" y=\"{}\">{name} {}</text>",
                (at + 3.0).min(WIDTH - 70.0),
                if part == 0.9 { 24 } else { 12 },
                text::time(value)
            );
        }
    }
    svg.push_str("</svg>");
    svg
}

fn points(to: &mut impl Write, summary: &Summary) -> io::Result<()> {
    writeln!(
        to,
        "<h2>By point</h2>\n<table>\n<tr><th>point</th><th class=\"n\">events</th><th class=\"n\">p50 since entered</th>\
         <th class=\"n\">p99</th><th class=\"n\">max</th><th class=\"n\">p50 since the step before</th>\
         <th class=\"n\">p99</th><th>p50 to p99, logarithmic</th></tr>"
    )?;
    let log = |value: u64| (value.max(1) as f64).log2();
    let most = summary.points.values().map(|seen| log(seen.since_entered.max())).fold(1.0, f64::max);
    for (point, seen) in &summary.points {
        let all = &seen.since_entered;
        let [p50, p99] = [0.5, 0.99].map(|part| all.quantile(part));
        let [step50, step99] = [0.5, 0.99].map(|part| seen.since_step.quantile(part));
        let (left, right) = (log(p50) / most * 200.0, log(p99) / most * 200.0);
        writeln!(
            to,
            "<tr><td title=\"{}\">{point}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td><svg viewBox=\"0 0 200 12\" style=\"width:200px\"><rect x=\"{left:.1}\" y=\"3\" width=\"{:.1}\" \
             height=\"6\" fill=\"#3b7dd8\"/></svg></td></tr>",
            Escaped(point.hook()),
            seen.events,
            text::time(p50),
            text::time(p99),
            text::time(all.max()),
            text::time(step50),
            text::time(step99),
            (right - left).max(2.0)
        )?;
    }
    writeln!(to, "</table>")
}

fn verdicts(to: &mut impl Write, summary: &Summary) -> io::Result<()> {
    if summary.verdicts.is_empty() {
        return Ok(());
    }
    writeln!(
        to,
        "<h2>Other software's XDP programs</h2>\n<table>\n<tr><th class=\"n\">packets</th><th>verdict</th><th>program</th></tr>"
    )?;
    for ((program, verdict), count) in &summary.verdicts {
        writeln!(to, "<tr><td class=\"n\">{count}</td><td>{verdict}</td><td>{}</td></tr>", Escaped(program))?;
    }
    writeln!(to, "</table>")
}

fn drops(to: &mut impl Write, summary: &Summary, names: &mut Names) -> io::Result<()> {
    if summary.drops.is_empty() {
        return Ok(());
    }
    writeln!(
        to,
        "<h2>Drops</h2>\n<table>\n<tr><th class=\"n\">packets</th><th>reason</th><th>at</th><th>namespace</th></tr>"
    )?;
    let mut drops: Vec<_> = summary.drops.iter().collect();
    drops.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (drop, count) in drops {
        let (reason, netns) = (names.drop_reason(&drop.cause), names.namespace(drop.netns));
        let place = Escaped(names.drop_place(&drop.cause));
        let (reason, netns) = (Escaped(reason), Escaped(netns));
        writeln!(to, "<tr><td class=\"n\">{count}</td><td>{reason}</td><td>{place}</td><td>{netns}</td></tr>")?;
    }
    writeln!(to, "</table>")
}

fn values(to: &mut impl Write, summary: &Summary) -> io::Result<()> {
    let mut key = "";
    for ((name, value), counts) in &summary.values {
        if name != key {
            if !key.is_empty() {
                writeln!(to, "</table>")?;
            }
            writeln!(
                to,
                "<h2>By {}</h2>\n<table>\n<tr><th>value</th><th class=\"n\">packets</th><th class=\"n\">delivered</th>\
                 <th class=\"n\">dropped</th><th class=\"n\">p50</th><th class=\"n\">p99</th></tr>",
                Escaped(name)
            )?;
            key = name;
        }
        let shown = if value == OTHERS { "(others)" } else { value };
        writeln!(
            to,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td></tr>",
            Escaped(shown),
            counts.packets,
            counts.delivered,
            counts.dropped,
            text::time(counts.latency.quantile(0.5)),
            text::time(counts.latency.quantile(0.99))
        )?;
    }
    if key.is_empty() { Ok(()) } else { writeln!(to, "</table>") }
}

/// One packet's way, each step a bar from the step before.
fn way(to: &mut impl Write, packet: &Packet, open: bool, names: &mut Names) -> io::Result<()> {
    let mut line = String::new();
    text::packet(&mut line, packet, names);
    let total = packet.last_at().saturating_sub(packet.entered).max(1) as f64;
    let height = packet.steps.len() * 14 + 4;
    writeln!(
        to,
        "<details{}><summary>{}</summary>\n<svg viewBox=\"0 0 900 {height}\" role=\"img\" aria-label=\"way\">",
        if open { " open" } else { "" },
        Escaped(
            line.split(": ").next().unwrap_or_default().to_owned()
                + ": "
                + packet.outcome.name()
                + " in "
                + &text::time(packet.duration())
        )
    )?;
    let mut before = packet.entered;
    for (row, step) in packet.steps.iter().enumerate() {
        let x = |at: u64| 260.0 + at.saturating_sub(packet.entered) as f64 / total * 540.0;
        let (left, right) = (x(before), x(step.at));
        let netns = names.namespace(step.netns);
        let y = row * 14;
        writeln!(
            to,
            "<text x=\"0\" y=\"{}\">{}</text><text x=\"100\" y=\"{}\">{}</text><rect x=\"{left:.1}\" y=\"{}\" \
             width=\"{:.1}\" height=\"9\" fill=\"#3b7dd8\"/><text x=\"{:.1}\" y=\"{}\">+{} {}</text>",
            y + 11,
            step.point,
            y + 11,
            Escaped(format!("{}{}{netns}", step.device(), if netns.is_empty() { "" } else { "@" })),
            y + 3,
            (right - left).max(1.5),
            (right + 4.0).min(806.0),
            y + 11,
            text::time(step.at.saturating_sub(before)),
            Escaped(text::detail(&step.detail, names))
        )?;
        before = step.at;
    }
    writeln!(to, "</svg></details>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(Escaped("<a href=\"x\">&").to_string(), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }

    #[test]
    fn an_empty_report_is_a_document() {
        let (summary, counters, mut to) = (Summary::default(), Counters::default(), Vec::new());
        let report = Report { title: "nothing", notes: &[], summary: &summary, counters: &counters, slowest: &[] };
        write(&mut to, &report, &mut Names::none()).unwrap();
        let html = String::from_utf8(to).unwrap();
        assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>\n"), "{html}");
        assert!(!html.contains("http") && !html.contains("<script"), "{html}");
    }
}
