//! An embeddable inventory engine for flash sales.
#![forbid(clippy::print_stdout)]

pub mod allocator;
pub mod cache;
pub mod engine;
pub mod events;
pub mod ring;
pub mod store;
pub mod sync;
pub mod ticket;
pub mod types;

pub use engine::{Engine, Handle};
