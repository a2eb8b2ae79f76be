//! The doctor: what this kernel, this process and an interface can do for traits, found by trying.
//!
//! A [`Probe`] is a question, and a [`Finding`] its answer: whether it works, what was seen, what that means to a user of
//! traits, and what to do about it. No answer is derived from the kernel's version, since distributions backport and
//! configurations leave out.
//!
//! | function | asks | needs |
//! |---|---|---|
//! | [`host`] | the kernel, the process, the file systems | nothing |
//! | [`reading`], [`maps`] | ways to a packet's fields; maps and helpers | privileges |
//! | [`programs`], [`sockets`] | types of programs, attached; options of sockets | a [`Ground`]: an interface and a cgroup of the caller's own |
//! | [`room`] | how much XDP can put in front of a datagram | that, and a [`Route`] to it |
//! | [`path`] | who reads what XDP put there | that, and a registry of the caller's own |
//! | [`interface`] | an interface of the host: asks only | nothing |
//! | [`try_interface`] | the same, by attaching a program for a moment | privileges |
//!
//! What is attached is detached when the function returns, and held by descriptors until then, so that it is gone however
//! the process ends. Nothing that belongs to the host is touched, except by [`try_interface`].
//!
//! ```no_run
//! use std::path::Path;
//! use packet_traits::{bpffs, doctor};
//!
//! for finding in doctor::host(Path::new(bpffs::DEFAULT_ROOT)) {
//!     println!("{}: {} {}", finding.probe.id(), finding.status, finding.found);
//! }
//! ```

mod finding;
mod ground;
mod host;
mod interface;
mod maps;
pub(crate) mod netdev;
mod object;
mod path;
mod probe;
mod programs;
mod reading;
mod room;
mod route;
mod sockets;

pub use finding::{Finding, Status, missing_basics, untried};
pub use ground::Ground;
pub use host::{host, kernel};
pub use interface::{Interface, interface, try_interface};
pub use maps::maps;
pub use path::path;
pub use probe::{Probe, Stage, Subject};
pub use programs::programs;
pub use reading::reading;
pub use room::room;
pub use route::Route;
pub use sockets::sockets;
