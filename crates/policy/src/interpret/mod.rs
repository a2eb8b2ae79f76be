//! The meaning of the language as a program: what a block does to one packet, step by step.
//!
//! It is written to be read beside [`policy`](crate::policy) and [`field`](crate::field), whose sentences it says again
//! in code, and shares nothing with the generated programs: a test runs both on the same packets. `traits explain`
//! shows what it finds.
//!
//! | file | what it holds |
//! |---|---|
//! | `packet` | a packet taken apart: [`Packet`] |
//! | `context` | what a block can see beside the packet: [`Context`] |
//! | `run` | conditions, values and actions: [`run`] |
//! | `outcome` | what became of the packet, and how: [`Outcome`] |
//! | `number` | numbers of this crate and values as keys have them |

mod context;
mod number;
mod outcome;
mod packet;
mod run;

pub use context::{Context, HardwareValues};
pub use number::{from_value, to_value};
pub use outcome::{ActionStep, Counted, Decision, Effect, Logged, Outcome, RuleStep, TestStep};
pub use packet::Packet;
pub use run::run;
