//! What the tests of texts share: checking one, and policies without their places.
#![allow(dead_code, unreachable_pub, missing_docs)]

use packet_traits_policy::{
    check::{CheckOptions, Checked, Rejected, Texts, check},
    policy::Policy,
    source::Span,
};

pub fn check_text(text: &str) -> Result<Checked, Rejected> {
    check("policy.traits".as_ref(), &Texts::from_iter([("policy.traits", text)]), &CheckOptions::default())
}

/// The policy of a text that must be good.
pub fn good(text: &str) -> Checked {
    check_text(text).unwrap_or_else(|rejected| panic!("{}\n{text}", said(&rejected)))
}

pub fn said(rejected: &Rejected) -> String {
    rejected.diagnostics.iter().map(|diagnostic| diagnostic.render(&rejected.sources, false) + "\n\n").collect()
}

/// The policy with all places the same.
pub fn without_places(mut policy: Policy) -> Policy {
    for key in &mut policy.keys {
        key.span = Span::default();
    }
    for block in &mut policy.blocks {
        block.span = Span::default();
        for rule in &mut block.rules {
            rule.span = Span::default();
        }
    }
    policy
}
