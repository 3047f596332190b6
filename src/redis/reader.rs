//! The readers' side: what Redis holds, and where it holds nothing, what the authority says.
//!
//! ```text
//! stock(sku) ──► one flight per key ──► Redis ──► there, of the current epoch, no older than the last: a hit
//!                                         │ not there: a miss; no answer: an error
//!                                         └─────► fallback, once for all who ask meanwhile
//! ```
//!
//! Redis being down costs latency only: after the first time-out its circuit is open, and reads go to the fallback at once,
//! except one from time to time that tries.

use super::RedisOptions;
use super::flights::Flights;
use super::layout::{self, Layout, PUT};
use super::nodes::{Keyed, Nodes};
use crate::cache::ReservationEntry;
use crate::types::{Availability, ReservationId, SkuName};
use ::redis::{Cmd, Value};
use parking_lot::Mutex;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a step may take if the options don't say.
const TIMEOUT: Duration = Duration::from_millis(50);

/// The authority behind the cache: a store, a snapshot, another service.
///
/// Called by the thread that reads, for one key by one thread at a time. It should have a time-out of its own.
pub trait Fallback: Send + Sync {
    /// A SKU's stock; `None` if there is no such SKU.
    ///
    /// # Errors
    /// Why it can't be said, in words for an operator.
    fn stock(&self, name: &SkuName) -> Result<Option<Availability>, String>;

    /// A reservation, live or ended; `None` if there is no such reservation.
    ///
    /// # Errors
    /// Why it can't be said, in words for an operator.
    fn reservation(&self, id: ReservationId) -> Result<Option<ReservationEntry>, String>;
}

/// A read that brought nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Another read of the same key was under way and didn't finish within the deadline: read again later.
    #[error("the read took too long: try again later")]
    Late,
    /// Redis had nothing, and the fallback failed.
    #[error("neither the cache nor its fallback could be read: {0}")]
    Load(String),
}

/// What the reads of a [`RedisReader`] came to. Each counts once in the first four.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadStats {
    /// Answered by what Redis held.
    pub hits: u64,
    /// Answered by the fallback, because Redis held nothing, or nothing that could be trusted.
    pub misses: u64,
    /// Answered by the fallback, because Redis didn't answer.
    pub errors: u64,
    /// Not answered: [`ReadError`].
    pub failures: u64,
    /// How often Redis was asked.
    pub asked: u64,
    /// How often the fallback was.
    pub fallbacks: u64,
}

impl ReadStats {
    /// The share of reads that were answered by what Redis held; 1 before the first.
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub fn hit_rate(&self) -> f64 {
        let reads = self.hits + self.misses + self.errors + self.failures;
        if reads == 0 {
            1.0
        } else {
            self.hits as f64 / reads as f64
        }
    }
}

/// Reads what a [`RedisCache`](super::RedisCache) writes, from any number of threads; it blocks for as long as its time-out,
/// its deadline and the fallback say.
///
/// It never gives an older stock than it gave before, as long as Redis answers: what an earlier epoch's writer left or wrote
/// late is a miss.
pub struct RedisReader<F> {
    nodes: Nodes,
    layout: Layout,
    fallback: F,
    deadline: Duration,
    keep: Duration,
    stock: Flights<SkuName, Read<Availability>>,
    reservations: Flights<ReservationId, Read<ReservationEntry>>,
    /// Reservations below this version may be stale, and so may all of an earlier epoch; the largest that was seen.
    vouched_from: Mutex<(u64, u64)>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    errors: AtomicU64,
    failures: AtomicU64,
    asked: AtomicU64,
    fallbacks: AtomicU64,
}

/// A value and where it is from.
#[derive(Clone)]
struct Read<T> {
    value: Option<T>,
    from: From,
    /// Of the newest that Redis has given for this key.
    version: (u64, u64),
}

#[derive(Clone, Copy)]
enum From {
    Redis,
    Miss,
    Error,
}

impl<F: Fallback> RedisReader<F> {
    /// Connects with the first read. The options are the writer's.
    pub fn new(options: &RedisOptions, fallback: F) -> Self {
        Self {
            nodes: Nodes::new(options, TIMEOUT, PUT),
            layout: Layout::new(&options.prefix, options.stock_ttl),
            fallback,
            deadline: Duration::from_millis(250),
            keep: Duration::from_millis(20),
            stock: Flights::new(),
            reservations: Flights::new(),
            vouched_from: Mutex::default(),
            counts: Counts::default(),
        }
    }

    /// How long to wait for a load of the same key that somebody else has begun. Default: 250 ms.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long what was read is given again without asking anybody: it protects Redis, and with Redis down the fallback,
    /// which is then asked once per key and this time at most. Default: 20 ms.
    #[must_use]
    pub fn keep(mut self, keep: Duration) -> Self {
        self.keep = keep;
        self
    }

    /// A SKU's stock; its `as_of` says of when. `None` if there is no such SKU.
    ///
    /// # Errors
    /// [`ReadError`], if neither Redis nor the fallback brought it in time.
    pub fn stock(&self, name: &SkuName) -> Result<Option<Availability>, ReadError> {
        let read = self.stock.get(name, self.keep, self.deadline, |last| {
            self.load_stock(name, last)
        });
        self.count(read)
    }

    /// A reservation: while it lives, from the cache; `None` if there is no such reservation. One whose deadline has just
    /// passed may still be shown as live.
    ///
    /// # Errors
    /// As for [`stock`](Self::stock).
    pub fn reservation(&self, id: ReservationId) -> Result<Option<ReservationEntry>, ReadError> {
        let load = |_| self.load_reservation(id);
        let read = self.reservations.get(&id, self.keep, self.deadline, load);
        self.count(read)
    }

    /// What the reads so far came to.
    pub fn stats(&self) -> ReadStats {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ReadStats {
            hits: of(&self.counts.hits),
            misses: of(&self.counts.misses),
            errors: of(&self.counts.errors),
            failures: of(&self.counts.failures),
            asked: of(&self.counts.asked),
            fallbacks: of(&self.counts.fallbacks),
        }
    }

    fn count<T>(&self, read: Result<Read<T>, ReadError>) -> Result<Option<T>, ReadError> {
        let count = match read.as_ref().map(|read| read.from) {
            Ok(From::Redis) => &self.counts.hits,
            Ok(From::Miss) => &self.counts.misses,
            Ok(From::Error) => &self.counts.errors,
            Err(_) => &self.counts.failures,
        };
        count.fetch_add(1, Ordering::Relaxed);
        read.map(|read| read.value)
    }

    fn load_stock(
        &self,
        name: &SkuName,
        last: Option<Read<Availability>>,
    ) -> Result<Read<Availability>, ReadError> {
        let last = last.map_or((0, 0), |last| last.version);
        let key = self.layout.stock_key(name);
        let found = self.ask(&key, &Layout::get_stock(&key), |value| {
            layout::stock(name, value)
        });
        let from = match found {
            Ok(Some(entry)) => {
                let mut vouched_from = self.vouched_from.lock();
                *vouched_from = (*vouched_from).max((entry.epoch, entry.reservations_from));
                if entry.epoch >= vouched_from.0 && entry.version() >= last {
                    return Ok(Read {
                        version: entry.version(),
                        value: Some(entry.availability),
                        from: From::Redis,
                    });
                }
                From::Miss
            }
            Ok(None) => From::Miss,
            Err(_) => From::Error,
        };
        self.fall_back(from, last, || self.fallback.stock(name))
    }

    fn load_reservation(&self, id: ReservationId) -> Result<Read<ReservationEntry>, ReadError> {
        let key = self.layout.reservation_key(id);
        let get = Layout::get_reservation(&key);
        let found = self.ask(&key, &get, |value| layout::reservation(id, value));
        let from = match found {
            Ok(Some(entry)) if entry.version() >= *self.vouched_from.lock() => {
                return Ok(Read {
                    version: entry.version(),
                    value: Some(entry),
                    from: From::Redis,
                });
            }
            Ok(_) => From::Miss,
            Err(_) => From::Error,
        };
        self.fall_back(from, (0, 0), || self.fallback.reservation(id))
    }

    /// Asks Redis; what can't be understood counts as no answer.
    fn ask<T>(
        &self,
        key: &str,
        get: &Cmd,
        read: impl FnOnce(&Value) -> Result<Option<T>, String>,
    ) -> Result<Option<T>, String> {
        self.counts.asked.fetch_add(1, Ordering::Relaxed);
        let answers = self.nodes.run(&[Keyed::new(key, get)]);
        read(&answers.into_iter().next().unwrap_or(Ok(Value::Nil))?)
    }

    fn fall_back<T>(
        &self,
        from: From,
        version: (u64, u64),
        load: impl FnOnce() -> Result<Option<T>, String>,
    ) -> Result<Read<T>, ReadError> {
        self.counts.fallbacks.fetch_add(1, Ordering::Relaxed);
        let value = load().map_err(ReadError::Load)?;
        Ok(Read {
            value,
            from,
            version,
        })
    }
}

impl<F> fmt::Debug for RedisReader<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisReader").finish_non_exhaustive()
    }
}
