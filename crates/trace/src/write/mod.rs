//! Events, packets and summaries as text, and in files that other tools open.

pub mod chrome;
pub mod html;
pub mod json;
pub mod pcapng;
mod sink;
pub mod text;

pub use self::sink::{End, Sink, Start, View};

use rustix::time::{ClockId, clock_gettime};

use crate::{event::Event, names::Names, path::Packet};

/// The clock of events and the clock on the wall.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Nanoseconds from `CLOCK_MONOTONIC`'s zero to the Unix epoch's, to be added.
    offset: i128,
}

impl Clock {
    /// Reads both now.
    pub fn read() -> Clock {
        let read = |clock| {
            let time = clock_gettime(clock);
            i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
        };
        Clock { offset: read(ClockId::Realtime) - read(ClockId::Monotonic) }
    }

    /// Nanoseconds since 1970 of an event's time.
    pub fn wall(&self, at: u64) -> u64 {
        u64::try_from(i128::from(at) + self.offset).unwrap_or(0)
    }

    /// The time of an event that happens now.
    pub fn now() -> u64 {
        let time = clock_gettime(ClockId::Monotonic);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }
}

/// What is known at this point only, as text; empty if there is nothing.
pub(crate) fn detail(event: &Event<'_>, packet: Option<&Packet>, names: &mut Names) -> String {
    use crate::{names::table, path::Detail, point::Point};
    let of_packet = packet.and_then(|packet| packet.step_of(event)).map(|step| &step.detail);
    let what = match event.point() {
        Point::GroResult => match of_packet {
            Some(Detail::Merged(Some(target))) => format!("merged into #{target}"),
            Some(Detail::Merged(None)) => "merged into a packet that is not traced".to_owned(),
            Some(Detail::Held) => "held".to_owned(),
            _ => String::new(),
        },
        Point::Route => event.table().map(|number| format!("table {}", table(number))).unwrap_or_default(),
        Point::Icmp => event.icmp().map(|(kind, code)| format!("type {kind} code {code}")).unwrap_or_default(),
        Point::XdpVerdict => {
            event.verdict().map(|(verdict, program)| format!("{verdict} by {program}")).unwrap_or_default()
        }
        Point::Deliver | Point::Peek => {
            let bytes = text::counted(event.delivered().unwrap_or(0), "byte");
            match event.process() {
                Some((pid, comm)) => format!("{bytes} to {comm}[{pid}]"),
                None => bytes,
            }
        }
        Point::Consume => format!("at {}", names.place(event.place())),
        Point::Drop => {
            let reason = names.reason(event.reason());
            format!("{reason} at {}", names.place(event.place()))
        }
        Point::Xdp if !event.is_first() => "again".to_owned(),
        _ if event.is_clone() => "clone".to_owned(),
        _ => String::new(),
    };
    text::with_socket(what, event.socket())
}
