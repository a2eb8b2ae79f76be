//! Points in time as people and machines read them.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;

/// Prints a time in UTC to the second, as in RFC 3339: `2026-01-31T23:59:59Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Utc(pub SystemTime);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = Timestamp::try_from(self.0).unwrap_or_default().max(Timestamp::UNIX_EPOCH);
        f.pad(&time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    }
}

/// Nanoseconds since 1970, as the pinned table stores times.
pub(super) fn nanos(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// The time that [`nanos`] stands for.
pub(super) fn from_nanos(nanos: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Utc(from_nanos(seconds * 1_000_000_000)).to_string(), text);
        }
    }
}
