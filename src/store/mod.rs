//! Where batches become durable: the trait [`Store`], and the stores that come with the crate.
//!
//! A store knows batches, not inventory. It commits a batch whole or not at all, under the writer's token, the
//! batch's number and its predecessor's hash (law L6), and it gives the committed log back: as state records, if
//! it has a snapshot, and the batches after it. What those mean is the [`Replica`]'s to know.
//!
//! ```text
//!             open                               commit, one at a time
//! Store ───────────────► Replica       writer ──────────────────────► Store
//!        restore(record)*                       Ok: durable; the same batch again: Ok
//!        apply(batch)*                          Retryable: again; anything else ends the writer
//!        complete()
//! ```
//!
//! An adapter of your own is proved by [`conformance`].

pub mod conformance;
pub mod journal;
mod memory;

pub use journal::{JournalOptions, JournalReader, JournalStore};
pub use memory::{MemoryLog, MemoryStore};

use crate::types::{
    Availability, Batch, BatchHash, DecodeError, ReservationId, SourcePosition, StateRecord,
    Timestamp, Token,
};
use std::sync::Arc;
use std::time::Duration;

/// A store's answer when it can't.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Nothing was committed, or it is unknown; the same batch may be committed again.
    #[error("the store can't commit just now: {0}; the batch is offered again")]
    Retryable(String),
    /// Another writer has taken the role: this one must stop for good.
    #[error(
        "another writer (epoch {epoch}) has taken the role: this one stops; start it anew to follow"
    )]
    Fenced {
        /// The epoch that holds the role now.
        epoch: u64,
    },
    /// The store holds another batch under this number: two histories exist.
    #[error(
        "the log forks at batch {number}: another batch is committed under this number; stop and compare them"
    )]
    Fork {
        /// The number.
        number: u64,
    },
    /// The store has lost batches that were committed, or the batch skips some.
    #[error("the store's last batch is {last}, the writer's next is {next}: batches are missing")]
    Behind {
        /// The store's last batch.
        last: u64,
        /// The batch that was offered.
        next: u64,
    },
    /// It was told to stop while it waited for the role.
    #[error("the store was told to stop while it waited for the role; nothing was changed")]
    Stopped,
    /// The store is damaged, not this program's, or can't be written; the text says where and what to do.
    #[error("{0}")]
    Fatal(String),
}

/// A replica refused what the store gave it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// A record can't be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A record contradicts the state: a law would break.
    #[error("the log contradicts itself at sequence {sequence}: {what}")]
    Contradiction {
        /// The last event that was applied.
        sequence: u64,
        /// What is wrong.
        what: String,
    },
    /// The log is whole, and yet the writer doesn't want the role; the text says why.
    #[error("{0}")]
    Declined(String),
}

/// What the log is folded into: the engine's allocator, or a copy of it that makes snapshots.
pub trait Replica: Send {
    /// Takes the next record of a snapshot's stream.
    ///
    /// # Errors
    /// If the stream is no state.
    fn restore(&mut self, record: &StateRecord) -> Result<(), ReplicaError>;

    /// Takes the next batch.
    ///
    /// # Errors
    /// If it doesn't follow from the state.
    fn apply(&mut self, batch: &Batch) -> Result<(), ReplicaError>;

    /// The whole log was given. A store asks before it takes the role, and only `Ok` lets it.
    ///
    /// # Errors
    /// If the role is not wanted.
    fn complete(&mut self) -> Result<(), ReplicaError> {
        Ok(())
    }

    /// Gives the state as a stream that `restore` takes.
    fn export(&self, out: &mut dyn FnMut(&StateRecord));

    /// The counts of every SKU, for a store that keeps them in rows. A replica that counts nothing gives none.
    fn stock(&self) -> Vec<Availability> {
        Vec::new()
    }
}

/// Reads a committed log beside its writer, for whoever was not there when a batch was committed.
pub trait ReadLog: Send {
    /// Gives the batches from number `from` on, in order, for as long as `take` returns true. A log that begins later gives its
    /// first one. It may hold one batch whose commit is under way: whoever asks knows how far he may read (law L4).
    ///
    /// # Errors
    /// If the log can't be read, or is damaged.
    fn read(&mut self, from: u64, take: &mut dyn FnMut(&Batch) -> bool) -> Result<(), StoreError>;
}

/// Makes empty replicas, for snapshots that a store takes beside the writer.
pub type ReplicaFactory = Arc<dyn Fn() -> Box<dyn Replica> + Send + Sync>;

/// How a writer asks for the role.
#[derive(Clone)]
pub struct OpenRequest {
    /// The share of the log.
    pub shard: u16,
    /// 128 bits, drawn at random for this takeover.
    pub writer: u128,
    /// For snapshots; a store that makes none ignores it.
    pub replicas: ReplicaFactory,
}

/// How far recovery is, for a start-up display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Done so far, in the unit that the store counts.
    pub done: u64,
    /// Of so many, if known.
    pub total: Option<u64>,
}

/// What a store knows after it gave its log to a replica.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The token under which this writer commits.
    pub token: Token,
    /// The number of the last committed batch, 0 for none.
    pub last_batch: u64,
    /// Its hash; zero for none.
    pub last_hash: BatchHash,
    /// Its stamp.
    pub last_stamp: Timestamp,
    /// The sequence of the last committed event, 0 for none.
    pub last_sequence: u64,
    /// Where the sources stand after it.
    pub sources: Vec<SourcePosition>,
    /// Batches that were read (not from a snapshot), and events in them.
    pub batches_read: u64,
    /// See `batches_read`.
    pub events_read: u64,
    /// What was dropped from the unvouched end, if anything.
    pub dropped_tail: Option<String>,
}

/// Where batches become durable.
///
/// One store serves one writer. Its calls come from one thread at a time, and `commit` is never called again after an
/// error other than [`StoreError::Retryable`].
pub trait Store: Send {
    /// Gives the committed log to `replica`, first a snapshot's records, if there is one, then every batch after it, in
    /// order; asks it whether that is [`complete`](Replica::complete), and takes the role under a new token.
    ///
    /// # Errors
    /// What keeps the store from being opened; nothing has been changed then.
    fn open(
        &mut self,
        request: &OpenRequest,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, StoreError>;

    /// What the SKUs that the next batch touches will count after it. A store that derives the same from the batch may
    /// compare, and refuse the batch if it finds otherwise.
    fn expect(&mut self, stock: &[Availability]) {
        let _ = stock;
    }

    /// Makes the batch durable: all of it or nothing. `Ok` only when it can't be lost any more. The last committed
    /// batch again (same number, same hash) is `Ok` and changes nothing: its acknowledgement was lost.
    ///
    /// # Errors
    /// [`StoreError`] says what each means for the writer.
    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError>;

    /// Live holds whose deadline the store knows to have passed, the earliest first: a check from outside on the
    /// writer's own queue, made every 10 s. A store that can't tell gives none; one that keeps rows may check them here.
    ///
    /// # Errors
    /// `Retryable` if it can't be asked just now; anything else ends the writer.
    fn overdue(&mut self, now: Timestamp, limit: usize) -> Result<Vec<ReservationId>, StoreError> {
        let _ = (now, limit);
        Ok(Vec::new())
    }

    /// How long a loaded writer should gather commands before a commit: zero for a store that is fast.
    fn linger(&self) -> Duration {
        Duration::ZERO
    }

    /// When nothing comes after a batch for so long, the writer commits an empty one. `None`: never.
    fn idle_commit_after(&self) -> Option<Duration> {
        None
    }

    /// Others may take this writer's role while it lives, and watch it from outside: so it commits at least so often, an empty
    /// batch if need be, and answers nothing, also not what records nothing, before a commit has shown that the role is still
    /// its own. `None`: nobody can.
    fn heartbeat(&self) -> Option<Duration> {
        None
    }

    /// Ends the role in good order: after it the log says that nothing is missing.
    ///
    /// # Errors
    /// If that can't be recorded; nothing that was committed is lost.
    fn close(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// What an operator should know just now, such as a file system that doesn't persist. Empty: nothing. Asked after it was
    /// opened, and after commits at most once a second: it must not wait.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}
