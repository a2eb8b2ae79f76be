//! Lines for people.

use std::{
    fmt::{self, Write as _},
    io,
};

use crate::{
    event::Event,
    names::{Names, table},
    path::{Detail, Packet, Step},
    point::Point,
    summary::{OTHERS, Summary},
    tracer::Counters,
    write::{self, End, Sink, Start, View},
};

/// Titles of the columns of [`event`].
pub const EVENT_TITLES: &str = "       µs        ID  POINT         INTERFACE        PACKET";

/// Lines of text.
pub struct Lines<W: io::Write> {
    to: W,
    view: View,
    line: String,
}

impl<W: io::Write> Lines<W> {
    /// Lines about what `view` says, and the summary.
    pub fn new(to: W, view: View) -> Lines<W> {
        Lines { to, view, line: String::new() }
    }

    fn write_line(&mut self) -> io::Result<()> {
        self.line.push('\n');
        self.to.write_all(self.line.as_bytes())
    }
}

impl<W: io::Write> Sink for Lines<W> {
    fn start(&mut self, _: &Start<'_, '_>) -> io::Result<()> {
        match self.view {
            View::Events => writeln!(self.to, "{EVENT_TITLES}"),
            View::Packets | View::Summary => Ok(()),
        }
    }

    fn event(&mut self, it: &Event<'_>, since_entered: u64, packet: &Packet, names: &mut Names) -> io::Result<()> {
        if self.view != View::Events {
            return Ok(());
        }
        self.line.clear();
        event(&mut self.line, it, since_entered, Some(packet), names);
        self.write_line()
    }

    fn packet(&mut self, it: &Packet, names: &mut Names) -> io::Result<()> {
        if self.view != View::Packets {
            return Ok(());
        }
        self.line.clear();
        packet(&mut self.line, it, names);
        self.write_line()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    fn end(&mut self, end: &End<'_>, names: &mut Names) -> io::Result<()> {
        if self.view != View::Summary {
            writeln!(self.to)?;
        }
        for line in summary(end.summary, end.counters, names) {
            writeln!(self.to, "{line}")?;
        }
        if end.given_up != 0 {
            let packets = counted(end.given_up, "packet");
            writeln!(self.to, "{packets} given up before the end: too many were under way.")?;
        }
        self.to.flush()
    }
}

/// Writes a line about an event, without its end: microseconds since the packet entered, its id, the point, the interface
/// and namespace, addresses, traits, and what is known there only.
pub fn event(to: &mut String, event: &Event<'_>, since_entered: u64, packet: Option<&Packet>, names: &mut Names) {
    micros(to, since_entered, 9);
    let mut place = event.device().to_owned();
    let netns = names.namespace(event.netns());
    if !netns.is_empty() {
        let _ = write!(place, "@{netns}");
    }
    let id = event.id();
    let width = 8 - (id.max(1).ilog10() as usize).min(7);
    let _ = write!(to, " {:>width$}{id}  {:<13} {place:<16} ", '#', event.point().name());
    if event.is_inferred() {
        // the packet itself was not shown
        to.push('~');
    }
    match event.headers() {
        Some(headers) => {
            let _ = write!(to, "{headers} len {}", event.len());
        }
        None if event.is_empty() => {}
        None => {
            let _ = write!(to, "len {}", event.len());
        }
    }
    if event.segments() > 1 {
        let _ = write!(to, " in {} segments", event.segments());
    }
    for (key, value) in event.traits() {
        let _ = write!(to, " {}={value}", key.name());
    }
    let detail = write::detail(event, packet, names);
    if !detail.is_empty() {
        let _ = write!(to, "  {detail}");
    }
}

/// Nanoseconds as microseconds with one decimal, right-aligned. By hand: it is done for every event.
fn micros(to: &mut String, nanos: u64, width: usize) {
    let tenths = nanos / 100;
    let _ = write!(to, "{:>width$}.{}", tenths / 10, tenths % 10, width = width - 2);
}

/// Nanoseconds as people read them: `950ns`, `12.3µs`, `4.56ms`, `1.20s`.
pub fn time(nanos: u64) -> String {
    match nanos {
        0..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{:.1}µs", nanos as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2}ms", nanos as f64 / 1e6),
        _ => format!("{:.2}s", nanos as f64 / 1e9),
    }
}

/// `1 packet`, `2 packets`
pub fn counted(count: impl fmt::Display, what: &str) -> String {
    let count = count.to_string();
    let plural = if count == "1" { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Writes a packet's whole path as one line, without its end.
pub fn packet(to: &mut String, packet: &Packet, names: &mut Names) {
    let _ = write!(to, "#{}", packet.id);
    if let Some(headers) = packet.headers {
        let _ = write!(to, " {headers}");
    }
    if let Some(first) = packet.came_as {
        let _ = write!(to, " (came as {})", first.flow());
    }
    for (key, value) in &packet.traits {
        let _ = write!(to, " {key}={value}");
    }
    if let Some(first) = packet.retransmit_of {
        let _ = write!(to, " (again what #{first} brought)");
    }
    if packet.merged != 0 {
        let _ = write!(to, " ({} merged into it)", packet.merged);
    }
    let total = packet.duration();
    let _ = write!(to, ": {} in {}:", packet.outcome.name(), time(total));
    let (mut place, mut socket, mut before) = (String::new(), 0, packet.entered);
    for step in &packet.steps {
        let here = place_of(step, names);
        if !here.is_empty() && here != place {
            let _ = write!(to, " [{here}]");
            place = here;
        }
        let _ = write!(to, " {}", step.point.name());
        if step.copy != 0 {
            let _ = write!(to, "(clone {})", step.copy);
        }
        let mut detail = without_socket(&step.detail, names);
        // once is enough, as long as it is the same
        let here = step.detail.socket();
        if here != 0 && here != socket {
            detail = with_socket(detail, here);
            socket = here;
        }
        if !detail.is_empty() {
            let _ = write!(to, "({detail})");
        }
        let _ = write!(to, "+{}", time(step.at.saturating_sub(before)));
        before = step.at;
    }
    if packet.more_steps != 0 {
        let _ = write!(to, " and {}", counted(packet.more_steps, "more step"));
    }
}

/// Where a step was: `eth0@namespace`; empty if that is not known.
fn place_of(step: &Step, names: &mut Names) -> String {
    if step.device().is_empty() {
        return String::new();
    }
    match names.namespace(step.netns) {
        none if none.is_empty() => step.device().to_owned(),
        name => format!("{}@{name}", step.device()),
    }
}

/// What is known of a step only.
pub(crate) fn detail(detail: &Detail, names: &mut Names) -> String {
    with_socket(without_socket(detail, names), detail.socket())
}

/// Adds a socket's cookie, if it is known, as `ss --extended` prints it: `sk:1f`.
pub(crate) fn with_socket(mut what: String, cookie: u64) -> String {
    if cookie != 0 {
        let space = if what.is_empty() { "" } else { " " };
        let _ = write!(what, "{space}sk:{cookie:x}");
    }
    what
}

fn without_socket(detail: &Detail, names: &mut Names) -> String {
    match detail {
        Detail::None | Detail::Socket(_) => String::new(),
        Detail::Merged(Some(target)) => format!("merged into #{target}"),
        Detail::Merged(None) => "merged".to_owned(),
        Detail::Held => "held".to_owned(),
        Detail::Table(number) => table(*number),
        Detail::Icmp(kind, code) => format!("type {kind} code {code}"),
        Detail::Verdict(verdict, program) => format!("{verdict} by {program}"),
        Detail::Delivered { bytes, pid, comm, .. } if comm.is_empty() => format!("{} to {pid}", counted(bytes, "byte")),
        Detail::Delivered { bytes, pid, comm, .. } => format!("{} to {comm}[{pid}]", counted(bytes, "byte")),
        Detail::Freed(place) => names.place(*place).to_owned(),
        Detail::Dropped { reason, place, .. } => format!("{} at {}", names.reason(*reason), names.place(*place)),
    }
}

/// The summary, as lines of at most 80 columns.
pub fn summary(summary: &Summary, counters: &Counters, names: &mut Names) -> Vec<String> {
    let mut lines = vec![format!(
        "{}, {}: {} delivered, {} dropped, {} merged, {} came again",
        counted(summary.packets, "packet"),
        counted(summary.events, "event"),
        summary.delivered,
        summary.dropped,
        summary.merged,
        summary.retransmits
    )];
    if summary.spent != 0 {
        let packets = counted(summary.spent, "packet");
        lines.push(format!("{packets} not counted as dropped: the end of a connection, or left as a socket closed"));
    }
    if !summary.unique.is_empty() {
        let keys = summary.unique.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        lines.push(format!("no table by {keys}: nearly every packet has a value of its own"));
    }
    lines.push(String::new());
    lines.push(format!(
        "{:<14}{:>10}{:>12}{:>10}{:>10}{:>12}{:>10}",
        "POINT", "EVENTS", "P50 ENTERED", "P99", "MAX", "P50 STEP", "P99"
    ));
    for (point, seen) in &summary.points {
        let [p50, p99] = [0.5, 0.99].map(|part| time(seen.since_entered.quantile(part)));
        let [step50, step99] = [0.5, 0.99].map(|part| time(seen.since_step.quantile(part)));
        let max = time(seen.since_entered.max());
        lines.push(format!(
            "{:<14}{:>10}{p50:>12}{p99:>10}{max:>10}{step50:>12}{step99:>10}",
            point.name(),
            seen.events
        ));
    }
    if let Some(delivered) = summary.points.get(&Point::Deliver) {
        lines.push(String::new());
        lines.push("From entering to delivery:".to_owned());
        let buckets: Vec<_> = delivered.since_entered.buckets().map(|bucket| (bucket.start, bucket.count)).collect();
        let most = buckets.iter().map(|(_, count)| *count).max().unwrap_or(1);
        for (start, count) in halve(buckets) {
            let bar = "#".repeat((count * 40 / most.max(1)).min(46) as usize);
            lines.push(format!("{:>10} {count:>9} {bar}", time(start)));
        }
    }
    if !summary.verdicts.is_empty() {
        lines.push(String::new());
        lines.push(format!("{:>9}  {:<28}{}", "PACKETS", "XDP VERDICT", "OF PROGRAM"));
        for ((program, verdict), count) in &summary.verdicts {
            lines.push(format!("{count:>9}  {verdict:<28}{program}"));
        }
    }
    if !summary.drops.is_empty() {
        lines.push(String::new());
        lines.push(format!("{:>9}  {:<28}{}", "DROPPED", "REASON", "AT"));
        let mut drops: Vec<_> = summary.drops.iter().collect();
        drops.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (drop, count) in drops {
            let place = names.drop_place(&drop.cause);
            let netns = names.namespace(drop.netns);
            let netns = if netns.is_empty() { netns } else { format!(" in {netns}") };
            lines.push(format!("{count:>9}  {:<28}{place}{netns}", names.drop_reason(&drop.cause)));
        }
    }
    let mut key = "";
    for ((name, value), counts) in &summary.values {
        if name != key {
            lines.push(String::new());
            lines.push(format!(
                "{:<24}{:>9}{:>11}{:>9}{:>8}{:>10}{:>9}",
                name.to_uppercase(),
                "PACKETS",
                "DELIVERED",
                "DROPPED",
                "LOSS",
                "P50",
                "P99"
            ));
            key = name;
        }
        let value = if value == OTHERS { "(others)" } else { value };
        let loss = 100.0 * counts.dropped as f64 / counts.packets.max(1) as f64;
        let [p50, p99] = [0.5, 0.99].map(|part| match counts.latency.count() {
            0 => "-".to_owned(),
            _ => time(counts.latency.quantile(part)),
        });
        lines.push(format!(
            "{value:<24}{:>9}{:>11}{:>9}{loss:>7.1}%{p50:>10}{p99:>9}",
            counts.packets, counts.delivered, counts.dropped
        ));
    }
    lines.extend(unseen(counters));
    lines
}

/// Pairs of neighbouring buckets, until there are at most 24.
fn halve(mut buckets: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    while buckets.len() > 24 {
        buckets = buckets.chunks(2).map(|pair| (pair[0].0, pair.iter().map(|(_, count)| count).sum())).collect();
    }
    buckets
}

/// What was counted rather than seen: nothing is lost in silence.
pub fn unseen(counters: &Counters) -> Vec<String> {
    let mut lines = Vec::new();
    match counters.lost_events() {
        0 => {}
        lost => {
            let points = counters.lost.iter().enumerate().filter(|(_, count)| **count != 0);
            let points: Vec<String> = points
                .filter_map(|(code, count)| Some(format!("{} {count}", Point::from_code(code as u16)?.name())))
                .collect();
            lines.push(String::new());
            let (lost, points) = (counted(lost, "event"), points.join(", "));
            lines.push(format!("LOST: {lost} did not fit into the ring buffer: {points}."));
            lines.push("Make it larger by --buffer, or trace less: a filter, --sample, --only-drops.".to_owned());
        }
    }
    if counters.no_room != 0 {
        lines.push(format!("{} had no room for an id in front: not traced.", counted(counters.no_room, "packet")));
    }
    if counters.taken != 0 {
        let packets = counted(counters.taken, "packet");
        lines.push(format!("{packets} followed by another tracer behind the same XDP program, not by this one."));
    }
    if counters.shared != 0 {
        let packets = counted(counters.shared, "packet");
        lines.push(format!("{packets} got no id behind an XDP program, because of another holder: a capture, say."));
    }
    if counters.too_early != 0 {
        let packets = counted(counters.too_early, "packet");
        lines.push(format!("{packets} matched while only the first point was in place (--standby): not followed."));
    }
    if counters.unfollowed != 0 {
        let datagrams = counted(counters.unfollowed, "datagram");
        lines.push(format!("{datagrams} waited in too long a queue: the delivery was not seen."));
    }
    if !counters.xdp.is_empty() {
        lines.push(String::new());
        let packets: u64 = counters.xdp.iter().map(|count| count.packets).sum();
        let packets = counted(packets, "packet");
        lines.push(format!("Other XDP programs redirected or dropped {packets}, unknown which:"));
        for count in &counters.xdp {
            let at = if count.namespace.is_empty() { "" } else { "@" };
            let place = format!("{}{at}{}", count.interface.name, count.namespace);
            lines.push(format!("{:>9}  {:<16} {place:<20} {}", count.packets, count.fate.name(), count.program));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_unit_that_fits() {
        assert_eq!([999, 1_500, 2_340_000, 3_000_000_000].map(time), ["999ns", "1.5µs", "2.34ms", "3.00s"]);
        let mut text = String::new();
        micros(&mut text, 12_345, 9);
        assert_eq!(text, "     12.3");
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(
            [0, 1, 2, 11].map(|count| counted(count, "packet")),
            ["0 packets", "1 packet", "2 packets", "11 packets"]
        );
        let mut names = Names::none();
        let summary = Summary { packets: 1, events: 1, delivered: 1, ..Summary::default() };
        let mut counters =
            Counters { no_room: 1, taken: 1, shared: 1, too_early: 1, unfollowed: 1, ..Counters::default() };
        counters.lost[Point::Xdp as usize] = 1;
        for line in self::summary(&summary, &counters, &mut names) {
            assert!(!["1 packets", "1 events", "1 datagrams"].iter().any(|wrong| line.contains(wrong)), "{line}");
            assert!(line.chars().count() <= 100, "{line}");
        }
        let delivered = Detail::Delivered { bytes: 1, pid: 7, comm: String::new(), socket: 0 };
        assert_eq!(detail(&delivered, &mut names), "1 byte to 7");
    }

    #[test]
    fn nothing_is_lost_in_silence() {
        let mut counters = Counters::default();
        assert!(unseen(&counters).is_empty());
        counters.lost[Point::Drop as usize] = 7;
        counters.lost[Point::Xdp as usize] = 1;
        let text = unseen(&counters).join("\n");
        assert!(text.contains("LOST: 8 events") && text.contains("drop 7") && text.contains("xdp 1"), "{text}");
    }
}
