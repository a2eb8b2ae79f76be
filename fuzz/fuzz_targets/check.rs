//! The parser and the checker on any text: the property tests of `crates/policy/tests/robust.rs` hold them to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/policy/tests/common/robust.rs"]
mod robust;

fuzz_target!(|text: &[u8]| robust::assert_robust(text));
