//! What the tests of several crates share.

pub mod layout;
pub mod process;
