//! Policies at work on real traffic: those in the repository's `policies` folder, and what stages behind them make of
//! the traits they set. Everything is brought up by the `traits` command, from text.

#![allow(unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;
mod examples;
mod host;
mod others;
mod routing;
mod steering;
