//! What to trace: the options that `trace` and `top` share.

use std::{error::Error, time::Duration};

use clap::ValueEnum;
use packet_traits_trace::{CAPTURE_MAX, Condition, Namespace, Options, Standby};

use crate::Mode;

/// Most MiB for events, as of [`Options::ring_len`].
const BUFFER_MAX: usize = 1 << 10;

/// When the tracer stands by.
#[derive(Clone, Copy, ValueEnum)]
enum When {
    /// While many packets come in and none matches
    Auto,
    /// Until the first packet matches
    FromStart,
    /// Never: every packet that matches is followed
    Never,
}

impl From<When> for Standby {
    fn from(when: When) -> Standby {
        match when {
            When::Auto => Standby::Auto,
            When::FromStart => Standby::FromStart,
            When::Never => Standby::Never,
        }
    }
}

/// Which packets, where.
#[derive(clap::Args)]
pub(super) struct What {
    /// Conditions on traits and header fields, such as 'tenant == 7' or 'dst == 10.0.0.0/8'
    #[arg(value_name = "CONDITION")]
    conditions: Vec<Condition>,
    /// Interface; may be repeated [default: all that are up]
    #[arg(long, value_name = "INTERFACE")]
    dev: Vec<String>,
    /// Network namespace: a name of `ip netns`, the id of a process in it, or a path; may be repeated [default: this one]
    #[arg(long, value_name = "NETNS")]
    netns: Vec<String>,
    /// Key that has the packets' ids, of type u64 or u32, instead of assigning ids
    #[arg(long, value_name = "KEY")]
    id: Option<String>,
    /// With --id: key of type timestamp that says when a packet entered
    #[arg(long, value_name = "KEY", requires = "id")]
    entered: Option<String>,
    /// How the command's own XDP program is attached
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    mode: Mode,
    /// Only drops
    #[arg(long)]
    only_drops: bool,
    /// Only events more than this many µs after the packet entered
    #[arg(long, value_name = "µS", value_parser = clap::value_parser!(u64).range(1..))]
    slower: Option<u64>,
    /// Only one packet in N
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    sample: u32,
    /// When to take away the points behind the first while no packet matches the conditions [default: auto]
    #[arg(long, value_enum, value_name = "WHEN", require_equals = true, num_args = 0..=1, default_value_t = When::Auto,
        default_missing_value = "from-start", hide_default_value = true)]
    standby: When,
    /// Bytes of each packet to look at
    #[arg(long, value_name = "BYTES", default_value_t = 96)]
    capture: usize,
    /// Memory for events on their way from the kernel, in MiB; a power of two
    #[arg(long, value_name = "MIB", default_value_t = 16)]
    buffer: usize,
}

impl What {
    /// The same for the tracer.
    pub(super) fn options(&self) -> Result<Options, Box<dyn Error>> {
        let namespaces = if self.netns.is_empty() {
            vec![Namespace::current()?]
        } else {
            let find = |name: &String| {
                Namespace::find(name)
                    .map_err(|error| format!("no network namespace {name}: {error}; `ip netns` lists those with names"))
            };
            self.netns.iter().map(find).collect::<Result<_, _>>()?
        };
        if self.capture > CAPTURE_MAX {
            return Err(format!("--capture {}: at most {CAPTURE_MAX} bytes can be looked at", self.capture).into());
        }
        if !self.buffer.is_power_of_two() || self.buffer > BUFFER_MAX {
            return Err(format!("--buffer {}: give a power of two, up to {BUFFER_MAX} MiB", self.buffer).into());
        }
        Ok(Options {
            namespaces,
            devices: self.dev.clone(),
            xdp_mode: self.mode.into(),
            id: self.id.clone(),
            entered: self.entered.clone(),
            conditions: self.conditions.clone(),
            only_drops: self.only_drops,
            slower: self.slower.map(Duration::from_micros),
            whole_paths: false,
            sample: self.sample,
            capture: self.capture,
            standby: self.standby.into(),
            ring_len: self.buffer << 20,
        })
    }

    /// Whether the tracer assigns the ids.
    pub(super) fn assigns_ids(&self) -> bool {
        self.id.is_none()
    }

    /// It in a line.
    pub(super) fn describe(&self) -> String {
        let mut words = Vec::new();
        words.push(if self.netns.is_empty() { "this namespace".to_owned() } else { self.netns.join(", ") });
        if !self.dev.is_empty() {
            words.push(self.dev.join(", "));
        }
        words.extend(self.conditions.iter().map(ToString::to_string));
        if let Some(id) = &self.id {
            words.push(format!("id {id}"));
        }
        if self.only_drops {
            words.push("drops only".to_owned());
        }
        words.extend(self.slower.map(|micros| format!("slower than {micros} µs")));
        if self.sample > 1 {
            words.push(format!("1 packet in {}", self.sample));
        }
        words.join("; ")
    }
}
