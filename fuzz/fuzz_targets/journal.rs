//! Any bytes are a script of damage to a journal's files: opening it serves what was written or refuses, within bounds.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run journal -- -timeout=10 -max_len=512`

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/damage/mod.rs"]
mod damage;

fuzz_target!(|bytes: &[u8]| {
    damage::run(bytes);
});
