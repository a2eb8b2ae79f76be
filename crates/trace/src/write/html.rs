//! A report as one HTML file: numbers, latency plots, drops and the slowest packets' ways. Nothing is loaded from
//! elsewhere and nothing runs in it: plots are drawn here, as SVG.
//!
//! maud writes the markup and escapes all text in it; only the style sheet goes in as it is.

use std::{
    cmp::Reverse,
    io::{self, Write},
    iter,
};

use maud::{DOCTYPE, Markup, PreEscaped, html};

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
    writeln!(to, "{}", page(report, names).into_string())
}

fn page(report: &Report<'_>, names: &mut Names) -> Markup {
    let Report { title, notes, summary, counters, slowest } = report;
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { "traits trace" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "traits trace" }
                p.note { (title) }
                (tiles(summary, counters))
                @for note in notes.iter().chain(&text::unseen(counters)).filter(|note| !note.is_empty()) {
                    p.note { (note) }
                }
                @if let Some(delivered) = summary.points.get(&Point::Deliver) {
                    h2 { "From entering to delivery" }
                    (plot(&delivered.since_entered))
                }
                (points(summary))
                (verdicts(summary))
                (drops(summary, names))
                (values(summary))
                @if !slowest.is_empty() {
                    h2 { "The slowest packets" }
                    @for (place, packet) in slowest.iter().enumerate() {
                        (way(packet, place == 0, names))
                    }
                }
            }
        }
    }
}

fn tiles(summary: &Summary, counters: &Counters) -> Markup {
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
    html! {
        div.tiles {
            @for (name, count, bad) in tiles {
                div.tile.bad[bad && count != 0] { b { (count) } (name) }
            }
        }
    }
}

/// Where a time is on a logarithmic axis.
fn log(nanos: u64) -> f64 {
    (nanos.max(1) as f64).log2()
}

/// A histogram, with a logarithmic axis of time.
fn plot(histogram: &Histogram) -> Markup {
    const WIDTH: f64 = 900.0;
    const HEIGHT: f64 = 180.0;
    let buckets: Vec<Bucket> = histogram.buckets().collect();
    let axis = buckets.first().zip(buckets.last());
    let (from, until) =
        axis.map_or((0.0, 0.0), |(first, last)| (log(first.start).floor(), (log(last.start) + 0.3).ceil()));
    let x = |value: f64| (value - from) / (until - from).max(1.0) * WIDTH;
    let most = buckets.iter().map(|bucket| bucket.count).max().unwrap_or(1) as f64;
    let step = ((until - from) / 10.0).ceil().max(1.0);
    let ticks = iter::successors(Some(from), |tick| Some(tick + step)).take_while(|tick| *tick <= until);
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT + 20.0) } role="img" aria-label="latency" {
            @for Bucket { start, last, count } in &buckets {
                @let height = (*count as f64 / most * (HEIGHT - 20.0)).max(1.0);
                @let (left, right) = (x(log(*start)), x(log(last.saturating_add(1))));
                (bar(left, HEIGHT - height, (right - left - 0.5).max(1.0), height, &html! {
                    title { (text::time(*start)) ": " (count) }
                }))
            }
            @if axis.is_some() {
                @for tick in ticks {
                    text x=(format_args!("{:.1}", x(tick))) y=(HEIGHT + 14.0) { (text::time(tick.exp2() as u64)) }
                }
                @for (name, part, y) in [("p50", 0.5, 12), ("p90", 0.9, 24), ("p99", 0.99, 12)] {
                    @let value = histogram.quantile(part);
                    @let at = x(log(value));
                    line x1=(format_args!("{at:.1}")) x2=(format_args!("{at:.1}")) y1="14" y2=(HEIGHT)
                        stroke="#b3261e" stroke-dasharray="3 3" {}
                    text x=(format_args!("{:.1}", (at + 3.0).min(WIDTH - 70.0))) y=(y) {
                        (name) " " (text::time(value))
                    }
                }
            }
        }
    }
}

/// A blue rectangle of a plot, with what belongs into it.
fn bar(x: f64, y: f64, width: f64, height: f64, inside: &Markup) -> Markup {
    html! {
        rect x=(format_args!("{x:.1}")) y=(format_args!("{y:.1}")) width=(format_args!("{width:.1}"))
            height=(format_args!("{height:.1}")) fill="#3b7dd8" { (inside) }
    }
}

fn points(summary: &Summary) -> Markup {
    let most = summary.points.values().map(|seen| log(seen.since_entered.max())).fold(1.0, f64::max);
    html! {
        h2 { "By point" }
        table {
            tr {
                th { "point" }
                th.n { "events" }
                th.n { "p50 since entered" }
                th.n { "p99" }
                th.n { "max" }
                th.n { "p50 since the step before" }
                th.n { "p99" }
                th { "p50 to p99, logarithmic" }
            }
            @for (point, seen) in &summary.points {
                @let all = &seen.since_entered;
                @let [p50, p99] = [0.5, 0.99].map(|part| all.quantile(part));
                @let [left, right] = [p50, p99].map(|time| log(time) / most * 200.0);
                tr {
                    td title=(point.hook()) { (point) }
                    td.n { (seen.events) }
                    td.n { (text::time(p50)) }
                    td.n { (text::time(p99)) }
                    td.n { (text::time(all.max())) }
                    td.n { (text::time(seen.since_step.quantile(0.5))) }
                    td.n { (text::time(seen.since_step.quantile(0.99))) }
                    td {
                        svg viewBox="0 0 200 12" style="width:200px" {
                            (bar(left, 3.0, (right - left).max(2.0), 6.0, &Markup::default()))
                        }
                    }
                }
            }
        }
    }
}

fn verdicts(summary: &Summary) -> Markup {
    html! {
        @if !summary.verdicts.is_empty() {
            h2 { "Other software's XDP programs" }
            table {
                tr { th.n { "packets" } th { "verdict" } th { "program" } }
                @for ((program, verdict), count) in &summary.verdicts {
                    tr { td.n { (count) } td { (verdict) } td { (program) } }
                }
            }
        }
    }
}

fn drops(summary: &Summary, names: &mut Names) -> Markup {
    let mut drops: Vec<_> = summary.drops.iter().collect();
    drops.sort_by_key(|(_, count)| Reverse(**count));
    html! {
        @if !drops.is_empty() {
            h2 { "Drops" }
            table {
                tr { th.n { "packets" } th { "reason" } th { "at" } th { "namespace" } }
                @for (drop, count) in drops {
                    tr {
                        td.n { (count) }
                        td { (names.drop_reason(&drop.cause)) }
                        td { (names.drop_place(&drop.cause)) }
                        td { (names.namespace(drop.netns)) }
                    }
                }
            }
        }
    }
}

fn values(summary: &Summary) -> Markup {
    let values: Vec<_> = summary.values.iter().collect();
    html! {
        @for of_key in values.chunk_by(|((key, _), _), ((next, _), _)| key == next) {
            h2 { "By " (of_key[0].0.0) }
            table {
                tr {
                    th { "value" }
                    th.n { "packets" }
                    th.n { "delivered" }
                    th.n { "dropped" }
                    th.n { "p50" }
                    th.n { "p99" }
                }
                @for ((_, value), counts) in of_key {
                    tr {
                        td { @if value == OTHERS { "(others)" } @else { (value) } }
                        td.n { (counts.packets) }
                        td.n { (counts.delivered) }
                        td.n { (counts.dropped) }
                        td.n { (text::time(counts.latency.quantile(0.5))) }
                        td.n { (text::time(counts.latency.quantile(0.99))) }
                    }
                }
            }
        }
    }
}

/// One packet's way, each step a bar from the step before.
fn way(packet: &Packet, open: bool, names: &mut Names) -> Markup {
    let mut line = String::new();
    text::packet(&mut line, packet, names);
    let who = line.split(": ").next().unwrap_or_default();
    let total = packet.last_at().saturating_sub(packet.entered).max(1) as f64;
    let x = |at: u64| 260.0 + at.saturating_sub(packet.entered) as f64 / total * 540.0;
    let before = iter::once(packet.entered).chain(packet.steps.iter().map(|step| step.at));
    html! {
        details open[open] {
            summary { (who) ": " (packet.outcome.name()) " in " (text::time(packet.duration())) }
            svg viewBox={ "0 0 900 " (packet.steps.len() * 14 + 4) } role="img" aria-label="way" {
                @for (row, (step, before)) in packet.steps.iter().zip(before).enumerate() {
                    @let (left, right) = (x(before), x(step.at));
                    @let netns = names.namespace(step.netns);
                    @let (top, baseline) = (row * 14 + 3, row * 14 + 11);
                    text x="0" y=(baseline) { (step.point) }
                    text x="100" y=(baseline) { (step.device()) @if !netns.is_empty() { "@" (netns) } }
                    (bar(left, top as f64, (right - left).max(1.5), 9.0, &Markup::default()))
                    text x=(format_args!("{:.1}", (right + 4.0).min(806.0))) y=(baseline) {
                        "+" (text::time(step.at.saturating_sub(before))) " " (text::detail(&step.detail, names))
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::ValueSummary;

    fn written(title: &str, notes: &[String], summary: &Summary) -> String {
        let (counters, mut to) = (Counters::default(), Vec::new());
        let report = Report { title, notes, summary, counters: &counters, slowest: &[] };
        write(&mut to, &report, &mut Names::none()).unwrap();
        String::from_utf8(to).unwrap()
    }

    #[test]
    fn text_cannot_become_markup() {
        let mut summary = Summary::default();
        summary.values.insert(("<key>".to_owned(), "a \"value\" & <b>".to_owned()), ValueSummary::default());
        let html = written("<a href=\"x\">", &["</style><script>".to_owned()], &summary);
        for part in ["&lt;a href=&quot;x&quot;&gt;", "&lt;/style&gt;&lt;script&gt;", "By &lt;key&gt;<"] {
            assert!(html.contains(part), "{part} in {html}");
        }
        assert!(html.contains("<td>a &quot;value&quot; &amp; &lt;b&gt;</td>"), "{html}");
        assert!(!html.contains("<a") && !html.contains("<script") && !html.contains("<key"), "{html}");
    }

    #[test]
    fn an_empty_report_is_a_document() {
        let html = written("nothing", &[], &Summary::default());
        assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>\n"), "{html}");
        assert!(!html.contains("http") && !html.contains("<script"), "{html}");
    }

    #[test]
    fn a_plot_has_a_bar_for_each_bucket_and_three_quantiles() {
        let mut histogram = Histogram::default();
        [1_000, 2_000, 64_000].into_iter().for_each(|time| histogram.add(time));
        let svg = plot(&histogram).into_string();
        assert!(svg.starts_with("<svg viewBox=\"0 0 900 200\"") && svg.ends_with("</svg>"), "{svg}");
        assert_eq!(svg.matches("</rect>").count(), 3, "{svg}");
        assert_eq!(svg.matches("</line>").count(), 3, "{svg}");
        assert!(svg.contains(">p99 ") && !svg.contains("NaN"), "{svg}");
        assert_eq!(plot(&Histogram::default()).into_string().matches("<text").count(), 0);
    }
}
