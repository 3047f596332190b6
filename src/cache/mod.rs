//! Where others read stock and reservations from: the trait [`Cache`], and one in memory.
//!
//! The engine writes what a batch changed through after the commit, off the answer's path. A cache is never the authority:
//! one that is down costs latency, not correctness. Everything carries a version, (epoch, sequence): the writer's, and the
//! last event's that it counts. A cache keeps the larger one, so a write that is repeated or comes late changes nothing.
//!
//! **Stock** is offered until it is taken, always the newest; all of it when the engine starts, and again every
//! [`refresh_every`](Cache::refresh_every).
//!
//! **Reservations** are offered once, in order, and their ends as well. Where some could not be written, none is repeated;
//! instead the stock entries that follow bear a higher [`reservations_from`](CacheEntry::reservations_from), and whatever a
//! cache holds of a reservation below it [may be stale](CacheEntry::vouches_for). So may what an earlier epoch left. Whoever
//! reads a reservation compares, and asks the authority where no stock entry vouches for it. The deadline may be too early (a
//! stall's credit moves all deadlines, without a change to each), never too late.

use crate::types::{Availability, HoldStatus, ReservationId, SkuName, Timestamp, UserId};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// A SKU's stock, versioned by (epoch, sequence).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// Whose.
    pub name: SkuName,
    /// The epoch of the writer that committed it.
    pub epoch: u64,
    /// The stock.
    pub availability: Availability,
    /// The sequence from which on the writer's reservations have reached the cache without a gap.
    pub reservations_from: u64,
}

impl CacheEntry {
    /// Larger is newer.
    pub fn version(&self) -> (u64, u64) {
        (self.epoch, self.availability.sequence)
    }

    /// Whether a reservation of this version is as its writer last had it; if not, it may be stale.
    pub fn vouches_for(&self, reservation: (u64, u64)) -> bool {
        reservation >= (self.epoch, self.reservations_from)
    }
}

/// A live reservation, versioned by (epoch, sequence).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReservationEntry {
    /// Which.
    pub id: ReservationId,
    /// The epoch of the writer that committed the last change.
    pub epoch: u64,
    /// The event of the last change.
    pub sequence: u64,
    /// Whose.
    pub user: UserId,
    /// Held or in payment.
    pub status: HoldStatus,
    /// When it lapses.
    pub expires_at: Timestamp,
    /// What it holds: SKUs and units.
    pub lines: Vec<(SkuName, u32)>,
}

impl ReservationEntry {
    /// Larger is newer.
    pub fn version(&self) -> (u64, u64) {
        (self.epoch, self.sequence)
    }
}

/// What became of a reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReservationChange {
    /// Which.
    pub id: ReservationId,
    /// The writer's epoch.
    pub epoch: u64,
    /// The event's sequence.
    pub sequence: u64,
    /// The event's stamp: time-to-lives count from it.
    pub at: Timestamp,
    /// What.
    pub change: Change,
}

/// See [`ReservationChange`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was made.
    Made {
        /// For whom.
        user: UserId,
        /// What it holds: SKUs and units.
        lines: Vec<(SkuName, u32)>,
        /// When it lapses.
        expires_at: Timestamp,
    },
    /// A cache that doesn't have it ignores this: the rest is missing.
    Moved {
        /// Held or in payment.
        status: HoldStatus,
        /// When it lapses now.
        expires_at: Timestamp,
    },
    /// Confirmed, released or expired: a cache removes it.
    Ended,
}

/// A cache could not be written. The engine tries again with a backoff, with newer values if there are any.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the cache can't be written: {0}")]
pub struct CacheError(pub String);

/// Where others read stock and reservations from. Called by one thread, the announcer.
pub trait Cache: Send {
    /// Writes the stock, each entry unless a newer version is there, and applies the changes in their order, likewise. Safe to
    /// repeat.
    ///
    /// # Errors
    /// If any may be missing. The stock is offered again; of the reservations the next stock entries say that they may be
    /// stale.
    fn put(
        &mut self,
        stock: &[CacheEntry],
        reservations: &[ReservationChange],
    ) -> Result<(), CacheError>;

    /// Whether it holds reservations. One that doesn't is offered none, and nothing is spent on them.
    fn holds_reservations(&self) -> bool {
        false
    }

    /// How often all stock is offered again, changed or not: for a cache that forgets by itself or loses what it had taken.
    /// At most 10,000 SKUs at a time, in turns.
    fn refresh_every(&self) -> Option<Duration> {
        None
    }
}

/// A cache in this process; clones are the same cache. What it holds of reservations is removed with their ends alone.
#[derive(Debug, Clone, Default)]
pub struct MemoryCache(Arc<RwLock<Cached>>);

#[derive(Debug, Default)]
struct Cached {
    stock: HashMap<SkuName, CacheEntry>,
    reservations: HashMap<ReservationId, ReservationEntry>,
    /// Reservations below this version may be stale.
    vouched_from: (u64, u64),
}

impl MemoryCache {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the cache says of a SKU.
    pub fn get(&self, name: &SkuName) -> Option<CacheEntry> {
        self.0.read().stock.get(name).cloned()
    }

    /// What the cache says of a reservation; `None` if it is unknown, has ended, or may be stale.
    pub fn reservation(&self, id: ReservationId) -> Option<ReservationEntry> {
        let cached = self.0.read();
        let known = cached.reservations.get(&id)?;
        (known.version() >= cached.vouched_from).then(|| known.clone())
    }
}

impl Cached {
    fn put(&mut self, entry: &CacheEntry) {
        let from = (entry.epoch, entry.reservations_from);
        self.vouched_from = self.vouched_from.max(from);
        match self.stock.get_mut(&entry.name) {
            Some(known) if known.version() > entry.version() => {}
            Some(known) => *known = entry.clone(),
            None => {
                self.stock.insert(entry.name.clone(), entry.clone());
            }
        }
    }

    fn apply(&mut self, changed: &ReservationChange) {
        let (id, epoch, sequence) = (changed.id, changed.epoch, changed.sequence);
        let known = self.reservations.get_mut(&id);
        if known
            .as_ref()
            .is_some_and(|known| known.version() > (epoch, sequence))
        {
            return;
        }
        match &changed.change {
            Change::Made {
                user,
                lines,
                expires_at,
            } => {
                let made = ReservationEntry {
                    id,
                    epoch,
                    sequence,
                    user: *user,
                    status: HoldStatus::Held,
                    expires_at: *expires_at,
                    lines: lines.clone(),
                };
                self.reservations.insert(id, made);
            }
            Change::Moved { status, expires_at } => {
                if let Some(known) = known {
                    (known.epoch, known.sequence) = (epoch, sequence);
                    (known.status, known.expires_at) = (*status, *expires_at);
                }
            }
            Change::Ended => {
                self.reservations.remove(&id);
            }
        }
    }
}

impl Cache for MemoryCache {
    fn put(
        &mut self,
        stock: &[CacheEntry],
        reservations: &[ReservationChange],
    ) -> Result<(), CacheError> {
        let mut cached = self.0.write();
        for entry in stock {
            cached.put(entry);
        }
        for changed in reservations {
            cached.apply(changed);
        }
        Ok(())
    }

    fn holds_reservations(&self) -> bool {
        true
    }
}
