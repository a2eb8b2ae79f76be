//! The policy language of packet traits: which traits packets get, and what later stages do because of them.
//!
//! docs/policy.md is the reference of the language. A policy (`*.traits`) is checked ([`policy::Policy`]), then either compiled to
//! BPF C over `packet_traits/traits.bpf.h` or interpreted on one packet. This crate knows nothing of attaching:
//! `packet-traits-deploy` brings up what it emits.
//!
//! | module | what it holds |
//! |---|---|
//! | [`source`] | files and places in them |
//! | [`mod@check`], [`diagnostic`] | from text to a checked policy, or to all that is wrong with it |
//! | [`mod@print`] | and back to text |
//! | [`policy`] | the checked policy: the meaning of the language |
//! | [`field`], [`hook`], [`hash`] | headers and fields, places where rules run, the hash of a flow |
//! | [`interpret`] | the reference interpreter: what a block does to one packet, with the steps that led there |
//! | `random` | random policies and packets, for tests (behind the feature of that name) |
//! | [`emit`], [`compile`] | a policy as BPF C, and that as an object |
//! | [`log_event`] | what `log` tells |
//! | [`manifest`], [`symbols`] | what a compiled policy says of itself to its loader, and the names of its maps |
#![forbid(unsafe_code)]

pub mod check;
pub mod compile;
pub mod diagnostic;
pub mod emit;
pub mod field;
mod foreign;
pub mod hash;
pub mod hook;
pub mod interpret;
pub mod log_event;
pub mod manifest;
pub mod policy;
pub mod print;
#[cfg(feature = "random")]
pub mod random;
pub mod source;
pub mod symbols;
mod syntax;
mod words;
