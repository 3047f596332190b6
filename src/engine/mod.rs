//! The engine: where ring, allocator, store and tickets meet.
//!
//! ```text
//! caller threads                     writer                                     committer               announcer
//! reserve() ─ check state ─► ring ─► drain ≤ batch_max ─► expire due ─► store.commit(batch) ─► publish ─► caches
//!      │        Full → Busy             stamp, number       decide         one atomic step      answer     sinks
//!      ▼        (handed back)                               apply
//!   Ticket ◄───────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Stages are functions over a turn (the commands decided together): `writer` decides, `committer` commits and
//! answers, `announcer` tells others. [`Engine`] has threads that call them; a [`Runner`] lets the caller.
//!
//! I1 (law L4): nobody sees anything of a turn before its batch is committed, and reads are published before tickets
//! are answered. I2: turns finish in the order in which they were decided. I3: whatever can't go on safely halts the
//! engine: commands that were decided but not committed are answered *unknown*, those that were not, *not decided*.
//! The allocator has applied a batch before it is durable; that is safe because of I1, and because a failed commit ends
//! the writer, so nothing is rolled back.
//!
//! Idle, a request costs two wake-ups and one durable write. Under load the batch is what arrived while the last one
//! committed, and the writer decides the next meanwhile.
//!
//! What it tells a metrics recorder and a log: [`telemetry`].

mod announcer;
mod ask;
mod builder;
mod clock;
mod committer;
mod handle;
mod health;
mod histogram;
mod reads;
mod replica;
mod runner;
mod submit;
pub mod telemetry;
mod threads;
mod turn;
mod writer;

pub use ask::{Ask, BlockTicket, CommandError, Outcomes, Ticket};
pub use builder::EngineBuilder;
pub use handle::{Busy, BusyReason, Handle};
pub use health::{Health, Percentiles, State, Stats};
pub use runner::{Halted, Runner, Step};

use crate::store::StoreError;
use crate::ticket::Pool;
use crate::types::{Answer, Clock, PolicyError, ReservationId, Timestamp};
use announcer::Inbox;
use clock::LogicalClock;
use health::Vitals;
use parking_lot::Mutex;
use reads::Reads;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use submit::Sources;
use threads::Threads;

/// An engine can't be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A setting is out of range.
    #[error("{what} is {value}: give {min} to {max}")]
    Setting {
        /// Which.
        what: &'static str,
        /// As given.
        value: u64,
        /// The smallest possible.
        min: u64,
        /// The largest possible.
        max: u64,
    },
    /// The policy can't be.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The store can't be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log was read, and its laws don't hold.
    #[error("the recovered state breaks laws: {}", .0.join("; "))]
    Laws(Vec<String>),
    /// The wall clock is so far ahead of the log that every live hold would lapse at once.
    #[error(
        "the wall clock ({wall}) is more than {} s ahead of the log ({last_stamp}), which has live holds: \
         set the clock, or raise clock_jump_max to accept that they lapse",
        jump_max.as_secs()
    )]
    ClockAhead {
        /// What the wall clock says.
        wall: Timestamp,
        /// The log's last stamp.
        last_stamp: Timestamp,
        /// What is accepted.
        jump_max: Duration,
    },
    /// The operating system gives no random numbers.
    #[error("no random numbers from the operating system: {0}")]
    Random(String),
    /// A thread can't be started.
    #[error("a thread can't be started: {0}")]
    Thread(#[source] std::io::Error),
}

/// What handles and stages share.
struct Shared {
    name: String,
    vitals: Vitals,
    reads: Reads,
    pool: Pool<Answer>,
    sources: Sources,
    clock: LogicalClock,
    time: Arc<dyn Clock>,
    /// Time in which nothing could commit, to be credited to the live deadlines.
    stalled_micros: AtomicU64,
    stall_min: Duration,
    /// Holds that the store took for overdue after the batch of this number, for the writer to judge.
    overdue: Mutex<Option<(u64, Vec<ReservationId>)>>,
    /// Monotonic time at which the commit under way began; `u64::MAX` if none is.
    commit_began_micros: AtomicU64,
    /// Monotonic time at which a shutdown waits no longer.
    stop_at_micros: AtomicU64,
}

impl Shared {
    /// True if a shutdown's patience has ended.
    fn stop_by(&self, monotonic: Duration) -> bool {
        monotonic.as_micros() >= u128::from(self.stop_at_micros.load(Ordering::Acquire))
    }

    fn set_stop(&self, deadline: Duration) {
        let at = self.time.monotonic().saturating_add(deadline);
        self.stop_at_micros.store(micros(at), Ordering::Release);
    }

    fn commit_begins(&self, now: Duration) {
        self.commit_began_micros
            .store(micros(now), Ordering::Release);
    }

    fn commit_ends(&self) {
        self.commit_began_micros.store(u64::MAX, Ordering::Release);
    }

    /// True while a commit takes so long that what is known may no longer be so.
    fn is_stalled(&self, now: Duration) -> bool {
        let began = self.commit_began_micros.load(Ordering::Acquire);
        micros(now).saturating_sub(began) > micros(self.stall_min)
    }

    fn health(&self) -> Health {
        Health {
            state: self.vitals.state(),
            warnings: self.vitals.warnings(),
            is_stalled: self.is_stalled(self.time.monotonic()),
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A running engine with its threads. Dropping it shuts it down, without waiting for caches and sinks.
///
/// ```
/// use stockade::Engine;
/// use stockade::types::{DefineSku, Gate, Reserve, SetGate, SkuName, UserId};
///
/// let engine = Engine::builder().start()?;
/// let handle = engine.handle();
/// let admin = UserId::from_text("admin");
/// let sku = handle.define_sku(DefineSku::new(admin, SkuName::new("SNEAKER-42")?, 1))?.wait()?;
/// handle.set_gate(SetGate::new(admin, sku, Gate::Open))?.wait()?;
///
/// assert!(handle.reserve(Reserve::one(UserId::from(1), sku, 1)?)?.wait().is_ok());
/// assert!(handle.reserve(Reserve::one(UserId::from(2), sku, 1)?)?.wait().is_err(), "sold out");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Engine {
    handle: Handle,
    threads: Threads,
    inboxes: Vec<Arc<Inbox>>,
}

/// How an engine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Every command was answered, the store's role was ended in good order.
    pub is_clean: bool,
    /// Caches and sinks have everything.
    pub is_announced: bool,
    /// Why not, if the engine had halted.
    pub halted: Option<String>,
    /// The state's digest, if the builder asked for it.
    pub digest: Option<u128>,
}

/// How long a drop waits for the store.
const DROP_DEADLINE: Duration = Duration::from_secs(5);
/// How often a shutdown looks whether caches and sinks have everything.
const ANNOUNCED_POLL: Duration = Duration::from_millis(1);

impl Engine {
    /// Settings, all with defaults.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    fn new(handle: Handle, threads: Threads, inboxes: Vec<Arc<Inbox>>) -> Self {
        Self {
            handle,
            threads,
            inboxes,
        }
    }

    /// The way to talk to it; clone it freely.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Takes no more commands, answers all that were submitted, commits a last batch, ends the store's role in good
    /// order, and lets caches and sinks have everything. At `deadline` it stops waiting: what was not decided by then
    /// is handed back as not decided, and what was decided but could not be committed is answered as unknown.
    pub fn shutdown(mut self, deadline: Duration) -> ShutdownReport {
        self.stop(deadline, true)
    }

    fn stop(&mut self, deadline: Duration, announce: bool) -> ShutdownReport {
        let shared = Arc::clone(&self.handle.shared);
        shared.set_stop(deadline);
        shared.vitals.drain();
        self.threads.wake();
        let ended = self.threads.join_writer();
        for inbox in &self.inboxes {
            inbox.close(!announce);
        }
        while announce
            && !self.threads.has_announced()
            && !shared.stop_by(shared.time.monotonic())
            && shared.clock.advances_by_itself()
        {
            std::thread::park_timeout(ANNOUNCED_POLL);
        }
        let is_announced = self.threads.join_announcers();
        for inbox in &self.inboxes {
            inbox.close(true);
        }
        let halted = match shared.vitals.state() {
            State::Halted(reason) => Some(reason),
            _ => None,
        };
        let is_clean = ended.is_some() && halted.is_none();
        let digest = ended.and_then(|ended| ended.digest);
        ShutdownReport {
            is_clean,
            is_announced,
            halted,
            digest,
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop(DROP_DEADLINE, false);
    }
}

/// What a panic said.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
