//! Any bytes are a script of commands: the allocator answers as the naive model does, and recovers to the same state.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run allocator`

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/model/mod.rs"]
mod model;

fuzz_target!(|bytes: &[u8]| {
    model::pair::Pair::run(bytes);
});
