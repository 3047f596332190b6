//! The desk of an API node: it asks writers through Kafka, and reads what they have committed from Redis, or from PostgreSQL
//! where Redis holds nothing.
//!
//! ```text
//! reserve, checkout, ..   ──► KafkaClient ──► the writer of the SKU or reservation ──► reply
//! availability            ──► this node's snapshot ◄── one thread, every 25 ms ◄── Redis ◄┬─ PostgreSQL
//! a reservation           ──► at most `READS_MAX` at once ◄─────────────────────── Redis ◄┘
//! SKUs                    ──► this node's list ◄────── one thread, every second ◄────────── PostgreSQL
//! ```
//!
//! So a storm of reads costs Redis one question per SKU and 25 ms, whatever its size. The node numbers SKUs by itself, as it
//! hears of them: writers have numbers of their own. Each writer's keys in Redis are read by a reader of their own, since each
//! vouches for its own alone.
//!
//! The time of a log is not that of the clocks: a node learns how far each shard's is ahead, or behind.
//!
//! PostgreSQL may hang: whoever waits for it does so for [`READ_TIME_MAX`] at most, and holds up nobody whom Redis can answer.

use super::catalogue::Names;
use super::desk::DECISION_TIME_MAX;
use super::problem::Problem;
use crate::engine::{Ask, Health, State};
use crate::ingest::KafkaUrl;
use crate::log::PostgresUrl;
use crate::shared_cache::RedisUrl;
use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use hyper::StatusCode;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use stockade::cache::ReservationEntry;
use stockade::kafka::{AskError, KafkaClient, Placement, Request};
use stockade::postgres::PostgresReads;
use stockade::redis::{Fallback, ReadStats, RedisReader};
use stockade::types::{
    Answer, Availability, Clock, Command, Decision, IdempotencyKey, Line, ReservationId,
    ReservationView, SkuId, SkuName, SystemClock, Timestamp,
};
use tokio::sync::Semaphore;

/// Requests in line: it bounds the wait, to a second or so where the node gets 5,000 decisions a second.
const QUEUE: u32 = 8_192;
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How often it asks for new SKUs.
const SKUS_EVERY: Duration = Duration::from_secs(1);
/// Stock that could not be read for so long is marked as stale.
const STALE_AFTER: Duration = Duration::from_secs(2);

/// Reservations that are read at once; more wait in line.
const READS_MAX: usize = 64;
/// How long reading one may take, the line included.
const READ_TIME_MAX: Duration = Duration::from_secs(2);
/// How long PostgreSQL may take for a connection, and for an answer.
const ROWS_WITHIN: Duration = Duration::from_secs(1);

/// See the module.
pub(crate) struct Away {
    client: KafkaClient,
    shared: Arc<Shared>,
    queue_capacity: u32,
    reads: Arc<Semaphore>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    /// By shard: what its writer writes.
    readers: Vec<RedisReader<Rows>>,
    placement: Placement,
    rows: Arc<PostgresReads>,
    times: Arc<Times>,
    skus: Arc<ArcSwap<Skus>>,
    learning: Mutex<()>,
    /// By this node's index.
    stock: ArcSwap<Vec<Option<Availability>>>,
    began: Instant,
    /// Milliseconds from `began` to when all stock had last been read.
    read_at_ms: AtomicU64,
    unread: Mutex<Option<String>>,
    unlearned: Mutex<Option<String>>,
    stop: AtomicBool,
}

/// The SKUs that the node has heard of: what is known stays.
#[derive(Clone, Default)]
struct Skus {
    names: Vec<SkuName>,
    ids: HashMap<SkuName, SkuId>,
    /// From the numbers of the writers.
    places: HashMap<(u16, SkuId), SkuId>,
}

impl Skus {
    fn learn(&mut self, name: &SkuName) -> SkuId {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let id = SkuId(u32::try_from(self.names.len()).unwrap_or(u32::MAX));
        self.names.push(name.clone());
        self.ids.insert(name.clone(), id);
        id
    }

    fn name_at(&self, shard: u16, sku: SkuId) -> Option<&SkuName> {
        self.names.get(self.places.get(&(shard, sku))?.0 as usize)
    }
}

/// What time it is in the logs.
struct Times {
    clock: SystemClock,
    /// By shard: microseconds that its log is ahead of the clocks, or behind.
    leads: Vec<AtomicI64>,
}

impl Times {
    fn of(&self, shard: u16) -> Timestamp {
        let wall = self.clock.wall().as_micros();
        let lead = self.leads.get(usize::from(shard));
        let lead = lead.map_or(0, |lead| lead.load(Ordering::Relaxed));
        Timestamp::from_micros(wall.saturating_add_signed(lead))
    }

    fn learn(&self, stamps: Vec<(u16, Timestamp, Timestamp)>) {
        for (shard, stamp, committed_at) in stamps {
            if let Some(lead) = self.leads.get(usize::from(shard)) {
                let stamp = stamp.as_micros().cast_signed();
                let ahead = stamp.saturating_sub_unsigned(committed_at.as_micros());
                lead.store(ahead, Ordering::Relaxed);
            }
        }
    }
}

/// The rows of a writer, behind the cache.
struct Rows {
    rows: Arc<PostgresReads>,
    shard: u16,
    skus: Arc<ArcSwap<Skus>>,
    times: Arc<Times>,
}

impl Fallback for Rows {
    fn stock(&self, name: &SkuName) -> Result<Option<Availability>, String> {
        let found = self.rows.availability(self.shard, name);
        found.map_err(|error| error.to_string())
    }

    fn reservation(&self, id: ReservationId) -> Result<Option<ReservationEntry>, String> {
        let found = self.rows.reservation(id, self.times.of(self.shard));
        let Some(view) = found.map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let skus = self.skus.load();
        let named = |line: &Line| {
            let name = skus.name_at(id.shard(), line.sku).cloned();
            let name =
                name.ok_or_else(|| format!("{} is new here: try again shortly", line.sku))?;
            Ok((name, line.quantity))
        };
        Ok(Some(ReservationEntry {
            id,
            // Of no cached version: it is read each time.
            epoch: 0,
            sequence: 0,
            user: view.user,
            status: view.status,
            expires_at: view.expires_at,
            lines: view
                .lines
                .iter()
                .map(named)
                .collect::<Result<_, String>>()?,
        }))
    }
}

impl Away {
    /// Connects: to Kafka as a node of that number with at most so many requests in line, else [`QUEUE`], and to what the writers
    /// write.
    pub(crate) fn start(
        ingest: &KafkaUrl,
        (node, queue): (u16, Option<u32>),
        store: &PostgresUrl,
        cache: &RedisUrl,
    ) -> Result<Self> {
        let placement = ingest.placement()?;
        let queue_capacity = queue.unwrap_or(QUEUE);
        let client = ingest.client(node, queue_capacity, placement.clone())?;
        let mut options = store.options();
        options.connect_timeout = ROWS_WITHIN;
        options.statement_timeout = ROWS_WITHIN;
        let rows = Arc::new(PostgresReads::new(options));
        let skus = Arc::new(ArcSwap::from_pointee(Skus::default()));
        let shards = u16::try_from(placement.partitions())?;
        let times = Arc::new(Times {
            clock: SystemClock::new(),
            leads: (0..shards).map(|_| AtomicI64::new(0)).collect(),
        });
        let reader = |shard| -> Result<_> {
            let behind = Rows {
                rows: Arc::clone(&rows),
                shard,
                skus: Arc::clone(&skus),
                times: Arc::clone(&times),
            };
            Ok(RedisReader::new(&cache.options(shard)?, behind))
        };
        let shared = Arc::new(Shared {
            readers: (0..shards).map(reader).collect::<Result<_>>()?,
            placement,
            rows,
            times,
            skus,
            learning: Mutex::new(()),
            stock: ArcSwap::from_pointee(Vec::new()),
            began: Instant::now(),
            read_at_ms: AtomicU64::new(0),
            unread: Mutex::new(None),
            unlearned: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        shared
            .learn_all()
            .with_context(|| format!("the SKUs can't be read from {store}"))?;
        // What can't be read now is read later, and marked as stale meanwhile.
        set(&shared.unread, shared.look());
        let mut away = Self {
            client,
            queue_capacity,
            shared: Arc::clone(&shared),
            reads: Arc::new(Semaphore::new(READS_MAX)),
            threads: Vec::new(),
        };
        let watching = Arc::clone(&shared);
        away.spawn("stock", move || watching.watch())?;
        away.spawn("skus", move || shared.learn())?;
        Ok(away)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.into());
        self.threads.push(thread.spawn(run)?);
        Ok(())
    }

    /// Sends a command to its writer and waits for the reply.
    pub(super) async fn ask<'a, C: Ask>(
        &self,
        command: C,
        names: &Names,
        name_of: impl Fn(u16) -> Option<&'a SkuName>,
    ) -> Result<C::Accepted, Problem> {
        let command: Command = command.into();
        let defines = match &command {
            Command::DefineSku(define) => Some(define.name.clone()),
            _ => None,
        };
        let request = Request::from_command(command, fresh_key()?, |sku| names.name(sku).cloned());
        let request = request.ok_or_else(Problem::ask_writer)?;
        let pending = self.client.send(&request).map_err(Problem::from)?;
        let reply = match tokio::time::timeout(DECISION_TIME_MAX, pending).await {
            Ok(reply) => reply.map_err(Problem::from)?,
            Err(_) => return Err(Problem::outcome_unknown()),
        };
        match reply.decision {
            Decision::Refused(refusal) => Err(Problem::refused(&refusal, name_of)),
            decision => {
                if let Some(name) = defines {
                    self.shared.change_skus(|skus| {
                        skus.learn(&name);
                    });
                }
                C::accepted(Answer::Decided(decision)).ok_or_else(Problem::outcome_unknown)
            }
        }
    }

    /// Asks Redis, then PostgreSQL; off the server's threads, for it blocks.
    pub(super) async fn reservation(
        &self,
        id: ReservationId,
    ) -> Result<Option<ReservationView>, Problem> {
        let unread = |reason: String| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", reason).retry_after(1)
        };
        let (shared, reads) = (Arc::clone(&self.shared), Arc::clone(&self.reads));
        let read = async move {
            let place = reads.acquire_owned().await;
            tokio::task::spawn_blocking(move || {
                // Kept to the end of the read, also when nobody waits for that any more.
                let _place = place;
                let reader = shared.readers.get(usize::from(id.shard()));
                reader.map_or(Ok(None), |reader| reader.reservation(id))
            })
            .await
        };
        let Ok(read) = tokio::time::timeout(READ_TIME_MAX, read).await else {
            return Err(unread("it can't be read in time: try again".into()));
        };
        let read = read.map_err(|error| unread(error.to_string()))?;
        let Some(entry) = read.map_err(|error| unread(error.to_string()))? else {
            return Ok(None);
        };
        let skus = self.shared.skus.load();
        let line = |(name, quantity): &(SkuName, u32)| {
            let sku = *skus.ids.get(name)?;
            Some(Line {
                sku,
                quantity: *quantity,
            })
        };
        let lines: Option<Vec<_>> = entry.lines.iter().map(line).collect();
        Ok(Some(ReservationView {
            id,
            user: entry.user,
            status: entry.status,
            expires_at: entry.expires_at,
            attempt: 0,
            lines: lines.ok_or_else(|| unread("a SKU of it is new here: try again".into()))?,
        }))
    }

    pub(super) fn availability(&self, sku: SkuId) -> Option<Availability> {
        *self.shared.stock.load().get(sku.0 as usize)?
    }

    pub(super) fn is_stale(&self) -> bool {
        self.shared.is_stale()
    }

    pub(super) fn sku(&self, name: &str) -> Option<SkuId> {
        let name = SkuName::new(name).ok()?;
        self.shared.skus.load().ids.get(&name).copied()
    }

    pub(super) fn skus(&self) -> Vec<(SkuId, SkuName)> {
        let names = self.shared.skus.load().names.clone();
        (0..).map(SkuId).zip(names).collect()
    }

    /// By the clocks, as requests say when.
    pub(super) fn now(&self) -> Timestamp {
        self.shared.times.clock.wall()
    }

    /// By the log that a reservation is in.
    pub(super) fn now_of(&self, id: ReservationId) -> Timestamp {
        self.shared.times.of(id.shard())
    }

    pub(super) fn health(&self) -> Health {
        let unread = lock(&self.shared.unread).clone();
        let unread = unread.map(|reason| format!("stock can't be read: {reason}"));
        let unlearned = lock(&self.shared.unlearned).clone();
        let unlearned = unlearned.map(|reason| format!("new SKUs can't be read: {reason}"));
        let warnings = [unread, unlearned, self.client.trouble()];
        Health {
            state: State::Running,
            warnings: warnings.into_iter().flatten().collect(),
            is_stalled: self.is_stale(),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.client.has_room()
    }

    pub(super) fn queue_depth(&self) -> usize {
        self.client.in_flight()
    }

    pub(super) fn queue_capacity(&self) -> u32 {
        self.queue_capacity
    }

    /// Requests that wait in each partition.
    pub(super) fn lags(&self) -> Vec<u64> {
        self.client.lags()
    }

    /// What became of the reads of Redis.
    pub(super) fn reads(&self) -> ReadStats {
        let add = |all: ReadStats, one: ReadStats| ReadStats {
            hits: all.hits + one.hits,
            misses: all.misses + one.misses,
            errors: all.errors + one.errors,
            failures: all.failures + one.failures,
            asked: all.asked + one.asked,
            fallbacks: all.fallbacks + one.fallbacks,
        };
        let readers = self.shared.readers.iter().map(RedisReader::stats);
        readers.fold(ReadStats::default(), add)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A panic has been printed; there is nothing left to do.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn watch(&self) {
        while !self.stop.load(Ordering::Acquire) {
            std::thread::park_timeout(LOOK_EVERY);
            set(&self.unread, self.look());
        }
    }

    fn learn(&self) {
        while !self.stop.load(Ordering::Acquire) {
            std::thread::park_timeout(SKUS_EVERY);
            set(
                &self.unlearned,
                self.learn_all().map_err(|error| error.to_string()),
            );
        }
    }

    /// Reads all stock anew. What can't be read stays as it was.
    fn look(&self) -> Result<(), String> {
        let skus = self.skus.load_full();
        let before = self.stock.load_full();
        let mut stock = Vec::with_capacity(skus.names.len());
        let mut outcome = Ok(());
        for (id, name) in (0..).map(SkuId).zip(&skus.names) {
            // Where one has failed the others are read all the same: nobody asks again at once who has just not answered.
            stock.push(match self.read(name) {
                Ok(found) => found.map(|found| Availability { sku: id, ..found }),
                Err(error) => {
                    outcome = Err(error);
                    before.get(id.0 as usize).copied().flatten()
                }
            });
        }
        self.stock.store(Arc::new(stock));
        if outcome.is_ok() {
            let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.read_at_ms.store(ms, Ordering::Release);
        }
        outcome
    }

    fn read(&self, name: &SkuName) -> Result<Option<Availability>, String> {
        let shard = self.placement.partition_of(name);
        let reader = self.readers.get(shard as usize);
        reader.map_or(Ok(None), |reader| {
            reader.stock(name).map_err(|error| error.to_string())
        })
    }

    fn is_stale(&self) -> bool {
        let read_at = Duration::from_millis(self.read_at_ms.load(Ordering::Acquire));
        self.began.elapsed().saturating_sub(read_at) > STALE_AFTER
    }

    /// Takes in what the writers have defined, and what time it is to them.
    fn learn_all(&self) -> Result<()> {
        self.times.learn(self.rows.stamps()?);
        let defined = self.rows.skus()?;
        if defined.len() != self.skus.load().places.len() {
            self.change_skus(|skus| {
                for (shard, sku, name) in defined {
                    let id = skus.learn(&name);
                    skus.places.insert((shard, sku), id);
                }
            });
        }
        Ok(())
    }

    fn change_skus(&self, change: impl FnOnce(&mut Skus)) {
        let _one_at_a_time = self.learning.lock().unwrap_or_else(PoisonError::into_inner);
        let mut skus = Skus::clone(&self.skus.load());
        change(&mut skus);
        self.skus.store(Arc::new(skus));
    }
}

fn set(trouble: &Mutex<Option<String>>, outcome: Result<(), String>) {
    *lock(trouble) = outcome.err();
}

fn lock(trouble: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    trouble.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For a command that has none: its message may come twice, and is decided once.
fn fresh_key() -> Result<IdempotencyKey, Problem> {
    let mut bytes = [0; 16];
    let failed = |error: getrandom::Error| {
        let text = error.to_string();
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", text)
    };
    getrandom::fill(&mut bytes).map_err(failed)?;
    IdempotencyKey::new(u128::from_le_bytes(bytes) | 1).ok_or_else(Problem::outcome_unknown)
}

impl From<AskError> for Problem {
    fn from(error: AskError) -> Self {
        let text = error.to_string();
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        match error {
            AskError::CrossGroup { .. } => Self::bad_request("cross_group", text),
            AskError::WhichPool { .. }
            | AskError::NotSoldThere { .. }
            | AskError::OtherShard { .. } => Self::bad_request("bad_request", text),
            AskError::UnknownShard { .. } => {
                Self::new(StatusCode::NOT_FOUND, "unknown_reservation", text)
            }
            AskError::Busy { max } => Self::queue_full(max),
            AskError::Lagging { .. } => Self::new(unavailable, "lagging", text).retry_after(5),
            AskError::Unavailable(_) => Self::new(unavailable, "unavailable", text).retry_after(2),
            _ => Self::outcome_unknown(),
        }
    }
}
