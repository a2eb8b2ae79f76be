//! The `traits` command.
fn main() {}
