//! When the points behind the entry are worth their price: a tracer that waits for a packet takes them away.

use std::time::{Duration, Instant};

/// Whether the points behind the entry are taken away as long as no packet matches the conditions.
///
/// In place, they cost every packet of the host a part of a microsecond, also those that do not match, and XDP programs
/// cost more: a veth whose peer has one sends no large packets, and generic XDP copies them. Standing by, only one program
/// looks at packets, where the stack receives them. The first packet that matches brings all back, which takes some tens of
/// milliseconds; those that match until then are counted ([`Counters::too_early`](crate::Counters::too_early)) and not
/// followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standby {
    /// They stay: every packet that matches is followed.
    #[default]
    Never,
    /// They are taken away while the host receives more than [`BUSY`] packets per second and nothing has matched for
    /// [`QUIET`], or, once something has matched, for [`QUIET_AGAIN`].
    Auto,
    /// They are not there until the first packet matches, and stay from then on.
    FromStart,
}

/// [`Standby::Auto`]: with fewer packets per second than these, the points cost about a hundredth of one CPU.
pub const BUSY: u64 = 10_000;
/// [`Standby::Auto`]: the tracer stands by if nothing has matched for so long after its start.
pub const QUIET: Duration = Duration::from_secs(1);
/// [`Standby::Auto`]: and so long after a packet that matched, which may still wait in a socket's queue.
pub const QUIET_AGAIN: Duration = Duration::from_secs(30);

/// Over how long packets per second are taken.
const INTERVAL: Duration = Duration::from_millis(250);

/// What [`Tracer::adapt`](crate::Tracer::adapt) did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A packet has matched: all points are in place again.
    Armed,
    /// Nothing has matched: only what notices a match is left.
    StoodBy,
}

/// Tells when nothing has matched for long enough.
#[derive(Debug)]
pub(crate) struct Pace {
    looked: Instant,
    received: u64,
    matched: u64,
    quiet_since: Instant,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Pace {
        Pace { looked: now, received: 0, matched: 0, quiet_since: now }
    }

    /// Begins again, after the points were attached.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.quiet_since = now;
    }

    /// Whether it is time to look again.
    pub(crate) fn due(&self, now: Instant) -> bool {
        now.duration_since(self.looked) >= INTERVAL
    }

    /// Takes how many packets were received and have matched so far. Returns whether to stand by.
    pub(crate) fn look(&mut self, now: Instant, received: u64, matched: u64) -> bool {
        let per_second = received.saturating_sub(self.received) as f64 / now.duration_since(self.looked).as_secs_f64();
        (self.looked, self.received) = (now, received);
        if matched != self.matched {
            (self.matched, self.quiet_since) = (matched, now);
        }
        let quiet = if matched == 0 { QUIET } else { QUIET_AGAIN };
        per_second > BUSY as f64 && now.duration_since(self.quiet_since) >= quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks four times a second, at a given number of packets per second, until it stands by; returns how long that took.
    fn waits(pace: &mut Pace, start: Instant, from: u64, per_second: u64, matched: u64) -> Option<Duration> {
        (1..=200).find_map(|quarter| {
            let after = INTERVAL * quarter;
            pace.look(start + after, from + per_second * u64::from(quarter) / 4, matched).then_some(after)
        })
    }

    #[test]
    fn a_busy_host_without_matches_stands_by_after_a_second() {
        let start = Instant::now();
        assert_eq!(waits(&mut Pace::new(start), start, 0, 4 * BUSY, 0), Some(QUIET));
    }

    #[test]
    fn an_idle_host_never_stands_by() {
        let start = Instant::now();
        assert_eq!(waits(&mut Pace::new(start), start, 0, BUSY, 0), None);
    }

    #[test]
    fn after_a_match_it_waits_longer() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        // the match is seen by the first look
        assert_eq!(waits(&mut pace, start, 0, 4 * BUSY, 3), Some(INTERVAL + QUIET_AGAIN));
        let again = start + QUIET_AGAIN * 2;
        pace.restart(again);
        assert_eq!(waits(&mut pace, again, 1 << 40, 4 * BUSY, 3), Some(QUIET_AGAIN));
    }
}
