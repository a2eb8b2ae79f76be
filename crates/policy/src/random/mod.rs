//! Random policies, packets and circumstances, for tests: everything a checked policy can say, and packets that its
//! rules match.
//!
//! Behind the feature `random`. What is made depends on the generator's seed only, so a test that prints the seed of a
//! failing case can be run on it again; [`minimise`] makes the policy of such a case smaller.

mod numbers;
mod packet;
mod policy;
mod shrink;

pub use fastrand::Rng;
pub use packet::{context, packet};
pub use policy::{PolicyOptions, hook, policy};
pub use shrink::minimise;
