//! Brings up policies and BPF objects, and reads what policies count and log.
//!
//! ```no_run
//! use packet_traits::registry::Registry;
//! use packet_traits_deploy::{Policy, Statistics};
//!
//! let registry = Registry::options().open()?;
//! let up = Policy::from_file("edge.traits")?.on_interface("eth0").replace(true).up(&registry)?;
//! println!("{} is up, instead of another version: {}", up.deployment.name(), up.replaced);
//! for rule in Statistics::of(&up.deployment)?.into_iter().flat_map(|statistics| statistics.rules) {
//!     println!("{}: {} packets", rule.rule.text, rule.count.packets);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Programs stay attached when the process ends. [`Deployment`] lists what is up and takes it down.
//!
//! | module | what it holds |
//! |---|---|
//! | [`Policy`] | a policy or an object, and where its programs go |
//! | [`Statistics`] | hits of rules, and counters |
//! | [`Log`], [`Event`] | what `log` actions write |
//! | [`remove_keys`] | removes the keys of a policy that is down |

mod error;
mod interface;
mod keys;
mod log;
mod note;
mod policy;
mod setup;
mod statistics;

pub use packet_traits::deployment::{Deployment, Location};

pub use self::{
    error::PolicyError,
    interface::index as interface_index,
    keys::{RemovedKeys, remove_keys},
    log::{Event, Log},
    note::Note,
    policy::{Policy, Up},
    statistics::{Count, CounterStatistics, RuleStatistics, Statistics, ValueStatistics},
};
