//! The writer's side: what the engine offers goes to Redis, one pipeline for each node.

use super::RedisOptions;
use super::layout::{Layout, PUT, VERSION_MAX};
use super::nodes::{Keyed, Nodes};
use crate::cache::{Cache, CacheEntry, CacheError, ReservationChange};
use std::fmt;
use std::time::Duration;

/// How long a step may take if the options don't say.
const TIMEOUT: Duration = Duration::from_millis(500);

/// A cache in Redis, for the engine's [`cache`](crate::engine::EngineBuilder::cache).
///
/// It connects when it is first written, and again after every failure; until then, and while Redis is down, the engine
/// says so in its health and goes on. See the [module](super) for what it writes.
///
/// ```no_run
/// use stockade::Engine;
/// use stockade::redis::{RedisCache, RedisOptions};
///
/// let cache = RedisCache::new(&RedisOptions::new("redis://127.0.0.1")?);
/// let engine = Engine::builder().cache(cache).start()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RedisCache {
    nodes: Nodes,
    layout: Layout,
    refresh_every: Duration,
}

impl RedisCache {
    /// Doesn't connect yet.
    pub fn new(options: &RedisOptions) -> Self {
        Self {
            nodes: Nodes::new(options, TIMEOUT, PUT),
            layout: Layout::new(&options.prefix, options.stock_ttl),
            refresh_every: options.stock_ttl / 4,
        }
    }
}

impl Cache for RedisCache {
    fn put(
        &mut self,
        stock: &[CacheEntry],
        reservations: &[ReservationChange],
    ) -> Result<(), CacheError> {
        let versions = stock.iter().map(CacheEntry::version);
        let versions = versions.chain(reservations.iter().map(|c| (c.epoch, c.sequence)));
        for (epoch, sequence) in versions {
            if epoch.max(sequence) >= VERSION_MAX {
                let text = "an epoch or sequence beyond 2^53 can't be compared by Redis";
                return Err(CacheError(text.to_owned()));
            }
        }
        let stock = stock.iter().map(|entry| {
            let key = self.layout.stock_key(&entry.name);
            Keyed::new(&key, &self.layout.put_stock(&key, entry))
        });
        let reservations = reservations.iter().map(|changed| {
            let key = self.layout.reservation_key(changed.id);
            Keyed::new(&key, &self.layout.apply(&key, changed))
        });
        let commands: Vec<Keyed> = stock.chain(reservations).collect();
        let failed = self.nodes.run(&commands).into_iter().find_map(Result::err);
        failed.map_or(Ok(()), |failure| Err(CacheError(failure)))
    }

    fn holds_reservations(&self) -> bool {
        true
    }

    fn refresh_every(&self) -> Option<Duration> {
        Some(self.refresh_every)
    }
}

impl fmt::Debug for RedisCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisCache").finish_non_exhaustive()
    }
}
