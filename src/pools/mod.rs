//! Hot SKU pools: one SKU, split over several writers, sold as one.
//!
//! Every [`Pool`] is a shard with a writer and a log of its own and part of the units. A user belongs to one pool
//! ([`pool_of`]), so his limits and keys stay in one writer; units move between pools, users never do.
//!
//! ```text
//!  user ── pool_of ──► pool 0 ◄── withdraw, deposit ──► pool 1   pool 2   pool 3
//!                         ▲                                ▲        ▲        ▲
//!                      reserve                             `── balancer: step() ──'
//! ```
//!
//! **No unit is lost or doubled.** A transfer is a withdraw at one pool and then a deposit at the other, both under one
//! number, which both pools keep for ever. What the sender counts as sent and the receiver not as received is in flight; any
//! balancer finds it by asking both, and finishes it before it moves anything else between them. So a process may die
//! between the halves, messages may be repeated or come late, and several balancers may run. I1: a balancer takes the
//! number of a withdraw from the *receiver*, so a number proves that the one before it has arrived.
//! [`audit`] checks the sum: units in the pools and in flight are those that were ever brought in.
//!
//! **What users are told.** A pool that is short asks the others through [`Pools::want`]; they are told [`NotReserved::Moving`],
//! not sold out, as long as the pools together have what was asked for, by their last committed batches, or units are on their way
//! through a balancer of this process. The last units drain to where they are wanted, and a pool that was brought units for a
//! request keeps them for it for a while ([`SETTLE`]). A transfer takes a commit in each of two pools: milliseconds. A process that
//! does not balance may report a SKU sold out for that long; one that does takes a first step before it serves users, so that it
//! knows what a predecessor left in flight. While a pool does not answer its balancer, nobody is told sold out: what is there may
//! come.
//!
//! ```
//! use std::time::Duration;
//! use stockade::Engine;
//! use stockade::pools::{EnginePool, NotReserved, Pools};
//! use stockade::types::{DefineSku, Gate, SetGate, SkuName, UserId};
//!
//! let (mut engines, mut pools) = (Vec::new(), Vec::new());
//! for (shard, units) in [(0, 0), (1, 1)] {
//!     let engine = Engine::builder().shard(shard).start()?;
//!     let (handle, admin) = (engine.handle(), UserId::from_text("admin"));
//!     let sku = handle.define_sku(DefineSku::new(admin, SkuName::new("HOT")?, units))?.wait()?;
//!     handle.set_gate(SetGate::new(admin, sku, Gate::Open))?.wait()?;
//!     pools.push(EnginePool::new(handle, sku)?);
//!     engines.push(engine);
//! }
//! let pools = Pools::new(pools)?;
//! // `balance` starts a thread that steps; here the clock stands still.
//! pools.step(Duration::ZERO)?;
//!
//! let ann = UserId::from(0); // of the first pool, which has nothing
//! assert!(matches!(pools.reserve(ann, 1, None), Err(NotReserved::Moving)));
//! assert_eq!(pools.step(Duration::ZERO)?, 1);
//! assert!(pools.reserve(ann, 1, None)?.wait().is_ok());
//!
//! let report = pools.audit()?;
//! assert!(report.is_ok() && report.total == 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **What stays with you.** Pools define, open and close the SKU each for itself, and `adjust` goes to any of them. A cart's
//! lines lie in one pool. A [`Pool`] is an engine of this process ([`EnginePool`]), a writer behind Kafka (`KafkaPool`), or
//! whatever else takes a command and brings its answer.
//!
//! The number of pools of a SKU and their order are fixed for a sale. Nothing checks it, for no writer knows of the others: with
//! another number or order most users have another pool, in which their limits begin anew and their keys are unknown, so that a
//! request that is sent again may be decided again. No unit is oversold by that, only limits and repetitions don't hold. Change it
//! between sales: a pool that is added defines the SKU with a total of 0 and is filled by the balancer; one that goes has its units
//! taken with `adjust`, and they are added to another.
//!
//! # Over Kafka
//!
//! Feature `kafka`, and `postgres` for the writers' logs. For `n` pools:
//!
//! 1. `reservation-requests` has at least `n` partitions: partition `p` is shard `p`, and a pool is one of them. More may sell
//!    other things. The other topics are as without pools.
//! 2. Each shard has a writer, with a `PostgresStore` and a `KafkaSource` of its shard, and its standbys. All are in the same
//!    schema of one database, so that one transaction sees all of them; each has a connection of its own. A cache of one writer
//!    holds that writer's counts: give each its own prefix, or none to hot SKUs.
//! 3. Every process that asks, or moves units, has the same `Placement`: `Placement::new(partitions).pools(sku, shards)`. A
//!    user's reservations then go to his pool, and what names a reservation to the shard that made it. Define, open, pause and
//!    adjust the SKU with `KafkaClient::send_to`, in each shard.
//! 4. Every API node has `Pools::new(KafkaPool::all(&client, &sku))`, takes a [`step`](Pools::step), starts
//!    [`balance`](Pools::balance) (every 50 ms, say), and asks [`want`](Pools::want) before it sends a reservation and after one
//!    was sold out, as `Pools::<EnginePool>::reserve` does: `Elsewhere` is an answer of 503 with `Retry-After`, or of a waiting
//!    room, and never "sold out"; after a refusal the user needs a new key.
//!
//! A writer that dies keeps its units; the others go on, and each step waits for its answer in vain. What was sent to it lies in
//! the topic, and its successor decides it once. A step asks every pool one question, and a move takes four more answers: of some
//! 15 ms each where nothing else is going on, so that units come after about 0.1 s, and as much later as the writers are behind.

mod audit;
mod balance;
mod carry;
mod engine;
#[cfg(feature = "kafka")]
mod kafka;

pub use crate::types::pool_of;
pub use audit::{InFlight, PoolsAudit, audit};
pub use balance::{Balancing, SETTLE};
pub use carry::TransferError;
pub use engine::{EnginePool, NotReserved, Reserving};
#[cfg(feature = "kafka")]
pub use kafka::KafkaPool;

use crate::engine::CommandError;
use crate::types::{Availability, Deposit, PoolView, ReservationId, UserId, Withdraw};
use balance::Balance;
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicU64, Ordering};

/// One pool of one SKU, as router and balancer reach it.
pub trait Pool: Send + Sync {
    /// Its shard.
    fn shard(&self) -> u16;

    /// Its stock as of the last committed batch, or at least of the last [`view`](Self::view); must not wait. `None` while nothing
    /// is known.
    fn stock(&self) -> Option<PooledStock>;

    /// Its answer to [`Query::Pool`](crate::types::Query::Pool).
    ///
    /// # Errors
    /// Why there is none.
    fn view(&self) -> Result<PoolView, CommandError>;

    /// Submits the command and waits for its answer.
    ///
    /// # Errors
    /// Why it brought nothing, or that nobody knows: then the balancer looks again.
    fn withdraw(&self, command: Withdraw) -> Result<u64, CommandError>;

    /// Submits the command and waits for its answer.
    ///
    /// # Errors
    /// Why it brought nothing, or that nobody knows: then the balancer looks again.
    fn deposit(&self, command: Deposit) -> Result<u64, CommandError>;
}

/// Pools can't be put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolsError {
    /// There is none.
    #[error("a SKU has at least one pool: give one")]
    None,
    /// Two have one shard, so transfers between them could not be told apart.
    #[error("two pools are of shard {0}: give each pool's engine a shard of its own")]
    SameShard(u16),
}

/// Where units are that a user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// His pool has them.
    Here,
    /// The pools together have them, or some are on their way: the balancer has been told. Ask again in milliseconds.
    Elsewhere,
    /// All pools together have fewer.
    Nowhere,
}

/// The stock of a pool; or of all of them, a sum of snapshots that were taken one after the other: units that move at the moment
/// are in none or, rarely, in two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "each is what it names")]
pub struct PooledStock {
    pub available: u64,
    pub reserved: u64,
    pub sold: u64,
    pub total: u64,
}

impl From<Availability> for PooledStock {
    fn from(stock: Availability) -> Self {
        Self {
            available: stock.available,
            reserved: stock.reserved,
            sold: stock.sold,
            total: stock.total,
        }
    }
}

/// The pools of one SKU: routes users, sums stock, and moves units. All methods may be called from any thread.
pub struct Pools<P> {
    pools: Vec<P>,
    /// Per pool the smallest request that it could not serve since the last step; `u64::MAX` for none.
    wanted: Vec<AtomicU64>,
    /// Odd while units may be on their way, as far as the steps of this process know.
    moves: AtomicU64,
    balance: Mutex<Balance>,
    /// Whether somebody waits for units, and who sleeps until then.
    is_wanted: Mutex<bool>,
    woken: Condvar,
}

const NOTHING: u64 = u64::MAX;

impl<P: Pool> Pools<P> {
    /// In this order for the whole sale: it decides which users are whose. Where this process balances, take a first
    /// [`step`](Self::step) before users are served.
    ///
    /// # Errors
    /// None, or two of one shard.
    pub fn new(pools: Vec<P>) -> Result<Self, PoolsError> {
        if pools.is_empty() {
            return Err(PoolsError::None);
        }
        for (at, pool) in pools.iter().enumerate() {
            let shard = pool.shard();
            if pools[..at].iter().any(|other| other.shard() == shard) {
                return Err(PoolsError::SameShard(shard));
            }
        }
        Ok(Self {
            wanted: pools.iter().map(|_| AtomicU64::new(NOTHING)).collect(),
            moves: AtomicU64::new(0),
            balance: Mutex::new(Balance::of(pools.len())),
            is_wanted: Mutex::new(false),
            woken: Condvar::new(),
            pools,
        })
    }

    /// All of them, in order.
    pub fn all(&self) -> &[P] {
        &self.pools
    }

    /// The pool of a user.
    pub fn of(&self, user: UserId) -> &P {
        &self.pools[pool_of(user, self.pools.len())]
    }

    /// The pool that made a reservation; `None` if it was none of these.
    pub fn of_reservation(&self, reservation: ReservationId) -> Option<&P> {
        let mut pools = self.pools.iter();
        pools.find(|pool| pool.shard() == reservation.shard())
    }

    /// The stock of all.
    pub fn stock(&self) -> PooledStock {
        let mut sum = PooledStock::default();
        for stock in self.pools.iter().filter_map(Pool::stock) {
            sum.available += stock.available;
            sum.reserved += stock.reserved;
            sum.sold += stock.sold;
            sum.total += stock.total;
        }
        sum
    }

    /// Where units are that a user wants, and if not in his pool, tells the balancer. To be asked before a reservation is
    /// submitted, so that nothing is recorded in vain, and again when it was refused as sold out.
    pub fn want(&self, user: UserId, units: u32) -> Whereabouts {
        let index = pool_of(user, self.pools.len());
        let units = u64::from(units);
        // A move begins before its units leave and ends after they have come: where both looks see the same even number,
        // none was on its way in between.
        let before = self.moves.load(Ordering::Acquire);
        let here = self.pools[index].stock().map_or(0, |stock| stock.available);
        if here >= units {
            return Whereabouts::Here;
        }
        let everywhere = self.stock().available;
        let after = self.moves.load(Ordering::Acquire);
        let is_moving = before % 2 == 1 || before != after;
        if everywhere < units && !is_moving {
            return Whereabouts::Nowhere;
        }
        self.wanted[index].fetch_min(units, Ordering::AcqRel);
        self.wake();
        Whereabouts::Elsewhere
    }

    fn wake(&self) {
        *self.is_wanted.lock() = true;
        self.woken.notify_one();
    }

    /// Whether the laws hold over all pools, at one moment: pools whose accounts did not change between two looks at all of
    /// them are as they were between the looks.
    ///
    /// # Errors
    /// If a pool does not answer, or other processes move units all the time: ask again.
    pub fn audit(&self) -> Result<PoolsAudit, TransferError> {
        // Nobody moves through this process meanwhile.
        let _still = self.balance.lock();
        let mut views = self.views()?;
        for _ in 0..LOOKS_MAX {
            let again = self.views()?;
            let pairs = views.iter().zip(&again);
            if pairs.fold(true, |same, (a, b)| same && a.accounts == b.accounts) {
                return Ok(audit(&again));
            }
            views = again;
        }
        Err(TransferError::NeverStill)
    }

    fn views(&self) -> Result<Vec<PoolView>, TransferError> {
        self.pools.iter().map(carry::view).collect()
    }
}

/// Pairs of looks at all pools before an audit gives up.
const LOOKS_MAX: u32 = 100;
