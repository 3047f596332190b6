//! The distributed sale on real servers and processes: API nodes and writers apart, what fails, and a whole sale.
//! `cargo test --release -p flash-sale --features kafka --test system`.

mod alerts;
mod backends;
mod clients;
#[path = "../common/mod.rs"]
mod common;
mod losses;
mod nodes;
mod outages;
mod places;
mod refusals;
mod shards;
mod whole_sale;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by each test: two of them at once would be slow enough to fail by the clock.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
