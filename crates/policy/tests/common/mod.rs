//! What the tests of texts share: checking one, and policies without their places.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod robust;

use packet_traits_policy::check::{CheckOptions, Checked, Rejected, Texts, check};

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
