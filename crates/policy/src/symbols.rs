//! Names of the maps and variables of a compiled policy that its loader fills in and reads.

/// What the names of a policy's maps begin with, and those of the header.
pub const PREFIX: &str = "pt_";

/// The header's map of headrooms, of which binding takes care.
pub const ANCHORS: &str = "pt_anchors";

/// Hits of rules: packets and bytes (two `u64`) for each, by CPU.
pub const HITS: &str = "pt_hits";

/// Counters that do not count by value: packets and bytes (two `u64`) for each, by CPU.
pub const COUNTERS: &str = "pt_counters";

/// What `unique` counts, of all policies.
pub const UNIQUE: &str = "pt_unique";

/// AF_XDP sockets by queue: applications put theirs in.
pub const XSKS: &str = "pt_xsks";

/// CPUs to redirect to.
pub const CPUS: &str = "pt_cpus";

/// The ring of [events](crate::log_event).
pub const LOG: &str = "pt_log";

/// Events that found no room in the ring: a `u64`, by CPU.
pub const LOG_LOST: &str = "pt_log_lost";

/// A variable in `.rodata`: indexes of interfaces, an array of `u32`.
pub const INTERFACES: &str = "pt_interfaces";

/// A variable in `.rodata`, `u32`: whether packets have no link header.
pub const NO_LINK_HEADER: &str = "pt_no_link_header";

/// A variable in `.rodata`, `u32`: whether packets may have traits from another interface.
pub const MAY_INHERIT: &str = "pt_may_inherit";

/// The map of a counter that counts by value.
pub fn counter_by_value(counter: &str) -> String {
    format!("pt_by_{counter}")
}
