//! Proves any store: the checks that every [`Store`] of this crate passes, and that an adapter of your own should.
//!
//! It knows a store by its trait alone. What the trait can't show (a machine that loses power) is each store's own to
//! test.
//!
//! ```
//! use stockade::store::{MemoryLog, MemoryStore, conformance};
//!
//! // A new log for every check; and a store on that log as often as one is asked for.
//! let report = conformance::prove(|| {
//!     let log = MemoryLog::default();
//!     move || MemoryStore::on(&log)
//! });
//! assert!(report.is_ok(), "{report:?}");
//! ```
//!
//! The replica is a [`Tally`]: a fold of the batches whose export can be restored, so that stores which make snapshots
//! are held to the same standard.

#[cfg(test)]
mod broken;
mod checks;
mod session;
mod tally;

pub use tally::Tally;

use super::Store;
use checks::CHECKS;

/// The checks that a store passed, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// In the order in which they ran.
    pub passed: Vec<&'static str>,
}

/// The first check that a store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store fails \"{check}\": {what}")]
pub struct Failure {
    /// Its name.
    pub check: &'static str,
    /// What was expected, and what happened.
    pub what: String,
}

/// Runs every check, each on a log of its own.
///
/// # Errors
/// The first check that fails.
pub fn prove<L, S>(new_log: impl FnMut() -> L) -> Result<Report, Failure>
where
    L: FnMut() -> S,
    S: Store + 'static,
{
    prove_shard(0, new_log)
}

/// The same with the log of another shard, for a store that keeps several.
///
/// # Errors
/// The first check that fails.
pub fn prove_shard<L, S>(shard: u16, mut new_log: impl FnMut() -> L) -> Result<Report, Failure>
where
    L: FnMut() -> S,
    S: Store + 'static,
{
    let mut passed = Vec::new();
    for (name, check) in CHECKS {
        let mut log = new_log();
        let mut make = || Box::new(log()) as Box<dyn Store>;
        let mut new = session::NewStore {
            make: &mut make,
            shard,
        };
        check(&mut new).map_err(|what| Failure { check: name, what })?;
        passed.push(name);
    }
    Ok(Report { passed })
}
