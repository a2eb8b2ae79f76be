//! Rules that no packet comes to, and conditions that never hold.

use crate::{
    diagnostic::Diagnostics,
    policy::{Policy, Rule},
    source::{Sources, Span},
};

/// Looks at the rules of a block. `tests` has the places of each rule's tests.
pub(super) fn check(_: &Policy, _: &[Rule], _: &[Vec<Span>], _: &Sources, _: &mut Diagnostics) {}
