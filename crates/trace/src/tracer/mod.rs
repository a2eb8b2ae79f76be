//! The tracer, in phases. Each is a type that owns what its phase needs, and has the calls that make sense in it.
//!
//! | file | phase | goes on by |
//! |---|---|---|
//! | `options` | [`Options`]: what to trace | [`Tracer::load`], or [`Tracer::start`], which also attaches |
//! | `loaded` | [`Loaded`]: the programs are in the kernel, none is attached | [`Loaded::attach`] |
//! | `running` | [`Tracer`]: the programs are attached, or it stands by | [`Tracer::end`], [`Tracer::stop_assigning`] |
//! | `ending` | [`Draining`]: no packet gets an id any more | [`Draining::end`] |
//! | `ending` | [`Ended`]: the last counters and notes | |
//!
//! [`Reader`] belongs to no phase: it has the ring buffer and the keys, and reads while the tracer changes.
//!
//! | file | part of a phase |
//! |---|---|
//! | `targets` | namespaces and interfaces |
//! | `own_keys` | the keys that the tracer registers |
//! | `load` | loading the programs |
//! | `programs` | the programs, loaded |
//! | `entry` | where packets get their ids |
//! | `points` | the points behind it |
//! | `counters` | what the programs count |
//! | `reader` | reading what they report |
//! | `notes` | what people should know |
//!
//! Everything is held by descriptors of this process: when it ends, however it ends, all of it is gone. What stays after a
//! SIGKILL is the names of the tracer's own keys in the registry, which the next tracer takes over; and before Linux 6.6 the
//! `clsact` filters, which pass every packet.

mod counters;
mod ending;
mod entry;
pub(crate) mod load;
mod loaded;
mod notes;
mod options;
mod own_keys;
mod points;
mod programs;
mod reader;
mod running;
mod targets;

pub use self::{
    counters::Counters,
    ending::{Draining, Ended},
    loaded::Loaded,
    options::{Options, RING_LEN},
    reader::Reader,
    running::Tracer,
};
