//! What the tests of several crates share.

pub mod kernel;
pub mod layout;
pub mod process;
