//! An embeddable inventory engine for flash sales.
#![forbid(clippy::print_stdout)]

pub mod ring;
pub mod sync;
pub mod ticket;
