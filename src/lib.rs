//! An embeddable inventory engine for flash sales.
#![forbid(clippy::print_stdout)]

pub mod allocator;
pub mod store;
pub mod types;
