//! The clock of `bpf_ktime_get_ns`.

use packet_traits_trace::write::Clock;

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn now() -> u64 {
    Clock::now()
}
