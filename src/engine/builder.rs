//! How an engine is put together: every setting is checked once, here.

use super::announcer::{Announcer, Inbox};
use super::clock::LogicalClock;
use super::committer::Committer;
use super::health::Vitals;
use super::reads::Reads;
use super::replica::Candidate;
use super::runner::{Core, Runner};
use super::submit::Sources;
use super::telemetry::Telemetry;
use super::threads::Threads;
use super::writer::{Cadence, Writer};
use super::{Engine, EngineError, Handle, Shared};
use crate::allocator::{Allocator, Limits};
use crate::cache::Cache;
use crate::events::EventSink;
use crate::ring::ring;
use crate::store::{MemoryStore, OpenRequest, Progress, ReadLog, Recovered, Store};
use crate::ticket::{CELLS_MAX, Pool};
use crate::types::{Clock, LINES_MAX, Policy, SystemClock};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

const RING_CAPACITY_MAX: usize = 1 << 24;
const BATCH_MAX: usize = 1 << 20;

/// Settings of an engine. What is not set has a default that works.
#[must_use = "a builder does nothing until `start` or `build`"]
pub struct EngineBuilder {
    name: String,
    store: Box<dyn Store>,
    caches: Vec<Box<dyn Cache>>,
    sinks: Vec<Box<dyn EventSink>>,
    log: Option<Box<dyn ReadLog>>,
    clock: Arc<dyn Clock>,
    limits: Limits,
    policy: Policy,
    shard: u16,
    ring_capacity: usize,
    batch_max: usize,
    tickets_max: usize,
    stall_min: Duration,
    clock_jump_max: Duration,
    digest_at_shutdown: bool,
    progress: Box<dyn FnMut(Progress) + Send>,
}

/// An engine that has recovered and does not run yet.
struct Parts {
    handle: Handle,
    core: Core,
    committer: Arc<Mutex<Committer>>,
    announcers: Vec<Announcer>,
    inboxes: Vec<Arc<Inbox>>,
}

impl Default for EngineBuilder {
    fn default() -> Self {
        Self {
            name: "stockade".into(),
            store: Box::new(MemoryStore::new()),
            caches: Vec::new(),
            sinks: Vec::new(),
            log: None,
            clock: Arc::new(SystemClock::new()),
            limits: Limits::default(),
            policy: Policy::default(),
            shard: 0,
            ring_capacity: 65_536,
            batch_max: 8_192,
            tickets_max: 262_144,
            stall_min: Duration::from_secs(2),
            clock_jump_max: Duration::from_secs(3_600),
            digest_at_shutdown: false,
            progress: Box::new(|_| {}),
        }
    }
}

impl EngineBuilder {
    /// Names the engine, its threads and its metrics. Several engines can live in one process.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Where batches become durable. Default: in memory, which survives nothing.
    pub fn store(mut self, store: impl Store + 'static) -> Self {
        self.store = Box::new(store);
        self
    }

    /// Adds a cache that changes are written through to: stock, and reservations if it holds them.
    pub fn cache(mut self, cache: impl Cache + 'static) -> Self {
        self.caches.push(Box::new(cache));
        self
    }

    /// Adds a sink that committed batches are handed to.
    pub fn sink(mut self, sink: impl EventSink + 'static) -> Self {
        self.sinks.push(Box::new(sink));
        self
    }

    /// How sinks get what they missed: a second way to the store's log. Without one, a sink that falls too far behind is told of
    /// the gap, and so is one that stands further back than the engine's start.
    pub fn log(mut self, log: impl ReadLog + 'static) -> Self {
        self.log = Some(Box::new(log));
        self
    }

    /// Where time comes from. Default: the system's clocks.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Bounds of the tables.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How long ended things are remembered. A log that was written under another policy goes on under this one.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// The share of the log that this engine writes. Default: 0.
    pub fn shard(mut self, shard: u16) -> Self {
        self.shard = shard;
        self
    }

    /// Commands that can wait for the writer, rounded up to a power of two. Default: 65,536 (8 MiB).
    pub fn ring_capacity(mut self, capacity: usize) -> Self {
        self.ring_capacity = capacity;
        self
    }

    /// Commands that one batch decides at most. Default: 8,192.
    pub fn batch_max(mut self, commands: usize) -> Self {
        self.batch_max = commands;
        self
    }

    /// Answers that can be outstanding or uncollected. Default: 262,144.
    pub fn tickets_max(mut self, tickets: usize) -> Self {
        self.tickets_max = tickets;
        self
    }

    /// A commit that takes longer than this moves every live deadline by what it took. Default: 2 s.
    pub fn stall_credit_after(mut self, stall: Duration) -> Self {
        self.stall_min = stall;
        self
    }

    /// How far the wall clock may be ahead of a log with live holds at the start. Default: 1 h. Beyond it the start is
    /// refused, because all these holds would lapse at once, and the log is left as it is.
    pub fn clock_jump_max(mut self, jump: Duration) -> Self {
        self.clock_jump_max = jump;
        self
    }

    /// Computes the state's digest at the end, for comparison with a replay: some 100 ns per reservation.
    pub fn digest_at_shutdown(mut self) -> Self {
        self.digest_at_shutdown = true;
        self
    }

    /// Is told how far recovery is.
    pub fn on_progress(mut self, progress: impl FnMut(Progress) + Send + 'static) -> Self {
        self.progress = Box::new(progress);
        self
    }

    /// Recovers the log and starts the threads.
    ///
    /// # Errors
    /// A setting that can't be, a store that can't be opened, a log whose laws don't hold, or a clock that can't be
    /// right.
    pub fn start(self) -> Result<Engine, EngineError> {
        let with_digest = self.digest_at_shutdown;
        let Parts {
            handle,
            core,
            committer,
            announcers,
            inboxes,
        } = self.assemble()?;
        let threads = Threads::start(core, committer, announcers, with_digest)?;
        Ok(Engine::new(handle, threads, inboxes))
    }

    /// Recovers the log and gives the engine without threads: the [`Runner`] decides when it is turned.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn build(self) -> Result<(Handle, Runner), EngineError> {
        let Parts {
            handle,
            core,
            committer,
            announcers,
            ..
        } = self.assemble()?;
        Ok((handle, Runner::new(core, committer, announcers)))
    }

    fn check(&self) -> Result<(), EngineError> {
        let range = |what, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(EngineError::Setting {
                    what,
                    value,
                    min,
                    max,
                })
            }
        };
        let limits = &self.limits;
        let places = u64::from(u32::MAX - 1);
        range(
            "ring_capacity",
            self.ring_capacity as u64,
            2,
            RING_CAPACITY_MAX as u64,
        )?;
        range("batch_max", self.batch_max as u64, 1, BATCH_MAX as u64)?;
        range("tickets_max", self.tickets_max as u64, 1, CELLS_MAX as u64)?;
        range("limits.skus_max", limits.skus_max.into(), 1, 1 << 24)?;
        range(
            "limits.lines_max",
            limits.lines_max.into(),
            1,
            LINES_MAX as u64,
        )?;
        range(
            "limits.holds_per_user_max",
            limits.holds_per_user_max.into(),
            1,
            places,
        )?;
        range(
            "limits.reservations_max",
            limits.reservations_max.into(),
            1,
            places,
        )?;
        range(
            "limits.accepted_keys_max",
            limits.accepted_keys_max.into(),
            1,
            places,
        )?;
        range("limits.counters_max", limits.counters_max.into(), 1, places)?;
        range("limits.payments_max", limits.payments_max.into(), 1, places)?;
        range(
            "limits.transfers_max",
            limits.transfers_max.into(),
            1,
            1 << 24,
        )?;
        range(
            "limits.expiries_per_batch_max",
            limits.expiries_per_batch_max.into(),
            1,
            1 << 20,
        )?;
        range("limits.presize", limits.presize.into(), 0, 1 << 30)?;
        self.policy.check()?;
        Ok(())
    }

    fn assemble(mut self) -> Result<Parts, EngineError> {
        self.check()?;
        let telemetry = Telemetry::new(&self.name);
        let (allocator, recovered) = self.recover(&telemetry)?;
        let last_stamp = recovered.last_stamp.max(allocator.now());
        let time = Arc::clone(&self.clock);
        let start = LogicalClock::start(Arc::clone(&time), last_stamp);
        let shared = Arc::new(Shared {
            name: self.name,
            vitals: Vitals::new(telemetry),
            reads: Reads::new(self.limits.skus_max),
            pool: Pool::new(self.tickets_max),
            sources: Sources::new(allocator.sources()),
            clock: start.clock,
            time: Arc::clone(&time),
            stalled_micros: AtomicU64::new(0),
            stall_min: self.stall_min,
            overdue: Mutex::default(),
            commit_began_micros: AtomicU64::new(u64::MAX),
            stop_at_micros: AtomicU64::new(u64::MAX),
        });
        shared.vitals.warn("clock", start.warning);
        shared.vitals.warn("tail", recovered.dropped_tail.clone());
        shared.vitals.warn_all("store", &self.store.warnings());
        let (producer, consumer) = ring(self.ring_capacity);
        let writer = Writer::new(
            allocator,
            Arc::clone(&shared),
            self.shard,
            recovered.token,
            recovered.last_batch + 1,
            self.policy,
            Cadence::of(&*self.store),
        );
        writer.publish_all();
        let from = (recovered.token.epoch, recovered.last_batch + 1);
        let announcers = Announcer::all(&shared, from, self.caches, self.sinks, self.log);
        let inboxes: Vec<Arc<Inbox>> = announcers.iter().map(Announcer::inbox).collect();
        shared.vitals.telemetry.started(
            recovered.last_sequence,
            producer.capacity(),
            &shared.reads,
        );
        let linger = self.store.linger();
        let committer = Committer::new(
            self.store,
            Arc::clone(&shared),
            time,
            recovered.last_hash,
            inboxes.clone(),
        );
        let core = Core::new(
            writer,
            consumer,
            Arc::clone(&shared),
            self.batch_max,
            linger,
        );
        Ok(Parts {
            handle: Handle { shared, producer },
            core,
            committer: Arc::new(Mutex::new(committer)),
            announcers,
            inboxes,
        })
    }

    fn recover(&mut self, telemetry: &Telemetry) -> Result<(Allocator, Recovered), EngineError> {
        let _recovering = telemetry.recovering();
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|error| EngineError::Random(error.to_string()))?;
        let (writer, seed) = random.split_at(16);
        let writer = u128::from_le_bytes(writer.try_into().unwrap_or_default());
        let seed = u64::from_le_bytes(seed.try_into().unwrap_or_default());
        let limits = self.limits;
        let allocator = Allocator::new(limits, seed);
        let mut candidate = Candidate::new(allocator, Arc::clone(&self.clock), self.clock_jump_max);
        let request = OpenRequest {
            shard: self.shard,
            writer,
            replicas: Arc::new(move || super::replica::small(limits, seed)),
        };
        let mut log = telemetry.progress();
        let mut progress = |now| {
            log(now);
            (self.progress)(now);
        };
        let opened = self.store.open(&request, &mut candidate, &mut progress);
        let (allocator, recovered) = candidate.settle(opened)?;
        if allocator.sequence() != recovered.last_sequence {
            return Err(EngineError::Laws(vec![format!(
                "the store says that its last event is {}, its log ends at {}",
                recovered.last_sequence,
                allocator.sequence()
            )]));
        }
        telemetry.recovered(&recovered);
        Ok((allocator, recovered))
    }
}
