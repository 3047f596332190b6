//! Where others read stock from: the trait [`Cache`], and one in memory.
//!
//! The engine writes each changed SKU through after the commit, off the answer's path. A cache is never the authority:
//! one that is down costs latency, not correctness. Entries carry a version; a cache keeps the larger one, so a
//! write that is repeated or comes late changes nothing.

use crate::types::{Availability, SkuName};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;

/// A SKU's stock, versioned by (epoch, sequence).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// Whose.
    pub name: SkuName,
    /// The epoch of the writer that committed it.
    pub epoch: u64,
    /// The stock.
    pub availability: Availability,
}

impl CacheEntry {
    /// Larger is newer.
    pub fn version(&self) -> (u64, u64) {
        (self.epoch, self.availability.sequence)
    }
}

/// A cache could not be written. The engine tries again with a backoff, with newer values if there are any.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the cache can't be written: {0}")]
pub struct CacheError(pub String);

/// Where others read stock from. Called by one thread, the announcer.
pub trait Cache: Send {
    /// Writes the entries, each only where its version exceeds the one that is there. Safe to repeat.
    ///
    /// # Errors
    /// If any may be missing; all of them are offered again.
    fn put(&mut self, entries: &[CacheEntry]) -> Result<(), CacheError>;
}

/// A cache in this process; clones are the same cache.
#[derive(Debug, Clone, Default)]
pub struct MemoryCache(Arc<RwLock<HashMap<SkuName, CacheEntry>>>);

impl MemoryCache {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the cache says of a SKU.
    pub fn get(&self, name: &SkuName) -> Option<CacheEntry> {
        self.0.read().get(name).cloned()
    }
}

impl Cache for MemoryCache {
    fn put(&mut self, entries: &[CacheEntry]) -> Result<(), CacheError> {
        let mut cached = self.0.write();
        for entry in entries {
            match cached.get_mut(&entry.name) {
                Some(known) if known.version() >= entry.version() => {}
                Some(known) => *known = entry.clone(),
                None => {
                    cached.insert(entry.name.clone(), entry.clone());
                }
            }
        }
        Ok(())
    }
}
