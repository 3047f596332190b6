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

use super::{OpenRequest, Recovered, Replica, ReplicaError, Store, StoreError};
use crate::types::{
    Batch, BatchHash, CommandKind, Event, EventKind, IdempotencyKey, Origin, Refusal,
    RefusalRecord, ReservationId, SkuId, SourcePosition, StateRecord, Timestamp, Token, UserId,
};
use std::fmt;
use std::sync::Arc;

/// Events of the large batch: 40,000 of 128 bytes are 5 MB.
const LARGE_BATCH: u64 = 40_000;
/// Batches of the history that most checks begin with.
const HISTORY: u64 = 6;

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

/// Makes stores on one and the same log.
type NewStore<'a> = dyn FnMut() -> Box<dyn Store> + 'a;
type Check = fn(&mut NewStore<'_>) -> Result<(), String>;

/// Every check, by its claim.
const CHECKS: [(&str, Check); 13] = [
    ("a new log is empty", new_log_is_empty),
    (
        "every commit is recovered, whole and in order",
        recovery_at_every_point,
    ),
    ("recovery changes nothing", recovery_changes_nothing),
    (
        "every takeover has a new token",
        every_takeover_has_a_new_token,
    ),
    (
        "a lost acknowledgement is Ok and changes nothing",
        lost_acknowledgement,
    ),
    ("another batch under a number is a fork", fork_by_hash),
    (
        "a batch of another predecessor is a fork",
        fork_by_predecessor,
    ),
    ("a batch after a gap is refused", gap),
    ("a zombie commits nothing", zombie),
    ("a foreign token commits nothing", foreign_token),
    (
        "source positions and refusals come back",
        sources_and_refusals,
    ),
    ("an empty batch counts", empty_batch),
    ("a large batch is whole", large_batch),
];

/// Runs every check, each on a log of its own.
///
/// # Errors
/// The first check that fails.
pub fn prove<L, S>(mut new_log: impl FnMut() -> L) -> Result<Report, Failure>
where
    L: FnMut() -> S,
    S: Store + 'static,
{
    let mut passed = Vec::new();
    for (name, check) in CHECKS {
        let mut log = new_log();
        check(&mut || Box::new(log())).map_err(|what| Failure { check: name, what })?;
        passed.push(name);
    }
    Ok(Report { passed })
}

/// A replica that folds batches into one hash, and counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Batches so far.
    pub batches: u64,
    /// Events so far.
    pub events: u64,
    /// Refusals so far.
    pub refusals: u64,
    /// BLAKE3 over the fold so far and the next batch's encoding.
    pub fold: [u8; 32],
    /// The hash of the last batch, computed from its encoding.
    pub last_hash: BatchHash,
    stamp: Timestamp,
    /// What was restored: the halves of `fold` and `last_hash` come one by one.
    restored: usize,
}

impl Replica for Tally {
    fn restore(&mut self, record: &StateRecord) -> Result<(), ReplicaError> {
        let half = |user: UserId| user.0.to_le_bytes();
        match (self.restored, record) {
            (0, StateRecord::Source(counts)) => {
                (self.batches, self.events) = (counts.source, counts.position);
            }
            (1, StateRecord::Source(counts)) => {
                (self.refusals, self.stamp) =
                    (counts.source, Timestamp::from_micros(counts.position));
            }
            (2, StateRecord::Counter { user, .. }) => self.fold[..16].copy_from_slice(&half(*user)),
            (3, StateRecord::Counter { user, .. }) => self.fold[16..].copy_from_slice(&half(*user)),
            (4, StateRecord::Counter { user, .. }) => {
                self.last_hash.0[..16].copy_from_slice(&half(*user));
            }
            (5, StateRecord::Counter { user, .. }) => {
                self.last_hash.0[16..].copy_from_slice(&half(*user));
            }
            (at, record) => {
                return Err(ReplicaError::Contradiction {
                    sequence: self.events,
                    what: format!("record {at} of a tally's stream is {record:?}"),
                });
            }
        }
        self.restored += 1;
        Ok(())
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), ReplicaError> {
        let mut bytes = Vec::new();
        batch.encode_into(&mut bytes);
        let header = &batch.header;
        let follows = header.number == self.batches + 1
            && header.prev_hash == self.last_hash
            && header.first_sequence == self.events + 1
            && header.stamp >= self.stamp;
        if !follows || batch.events().any(|event| event.is_err()) {
            return Err(ReplicaError::Contradiction {
                sequence: self.events,
                what: format!("batch {} doesn't follow {}", header.number, self.batches),
            });
        }
        self.batches += 1;
        self.events += batch.event_records().len() as u64;
        self.refusals += batch.packed_refusals().len() as u64;
        self.stamp = header.stamp;
        self.last_hash = BatchHash(*blake3::hash(&bytes).as_bytes());
        let mut fold = blake3::Hasher::new();
        fold.update(&self.fold).update(&bytes);
        self.fold = *fold.finalize().as_bytes();
        Ok(())
    }

    fn export(&self, out: &mut dyn FnMut(&StateRecord)) {
        for (source, position) in [
            (self.batches, self.events),
            (self.refusals, self.stamp.as_micros()),
        ] {
            out(&StateRecord::Source(SourcePosition { source, position }));
        }
        for bytes in [&self.fold, &self.last_hash.0] {
            for half in bytes.as_chunks::<16>().0 {
                out(&StateRecord::Counter {
                    user: UserId(u128::from_le_bytes(*half)),
                    sku: SkuId(0),
                    sale: 0,
                    units: 0,
                });
            }
        }
    }
}

/// A store that is open, and a replica of what was acknowledged.
struct Session {
    store: Box<dyn Store>,
    token: Token,
    recovered: Recovered,
    tally: Tally,
}

impl Session {
    fn open(new: &mut NewStore<'_>, writer: u128) -> Result<Self, String> {
        let mut store = new();
        let mut tally = Tally::default();
        let request = OpenRequest {
            shard: 0,
            writer,
            replicas: Arc::new(|| Box::new(Tally::default())),
        };
        let recovered = store
            .open(&request, &mut tally, &mut |_| {})
            .map_err(|error| format!("it doesn't open: {error}"))?;
        tally.restored = 0;
        let session = Self {
            store,
            token: recovered.token,
            recovered,
            tally,
        };
        session.check_recovered()?;
        Ok(session)
    }

    /// What it reports must be what it gave to the replica.
    fn check_recovered(&self) -> Result<(), String> {
        let (r, tally) = (&self.recovered, &self.tally);
        let reported = (r.last_batch, r.last_hash, r.last_sequence, r.last_stamp);
        let given = (tally.batches, tally.last_hash, tally.events, tally.stamp);
        expect("what it reports as recovered", &reported, &given)
    }

    /// The next batch: events, refusals and source positions that differ from batch to batch.
    fn next(&self, events: u64, refusals: u64) -> Batch {
        let number = self.tally.batches + 1;
        let mut batch = Batch::default();
        batch.header.number = number;
        batch.header.token = self.token;
        batch.header.stamp = Timestamp::from_micros(1_000_000 + number * 7);
        batch.header.first_sequence = self.tally.events + 1;
        batch.header.sources = (0..number % 3)
            .map(|source| SourcePosition {
                source,
                position: number * 100 + source,
            })
            .collect();
        for sequence in (self.tally.events + 1..).zip(0..events).map(|(s, _)| s) {
            batch.push_event(&event(sequence, batch.header.stamp));
        }
        for n in 0..refusals {
            batch.push_refusal(&refusal(number * 1_000 + n));
        }
        batch.seal(self.tally.last_hash);
        batch
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), String> {
        let number = batch.header.number;
        for _ in 0..100 {
            match self.store.commit(batch) {
                Ok(()) => {
                    let applied = self.tally.apply(batch);
                    return applied.map_err(|error| format!("the kit itself errs: {error}"));
                }
                Err(StoreError::Retryable(_)) => {}
                Err(error) => return Err(format!("batch {number} isn't committed: {error}")),
            }
        }
        Err(format!("batch {number} isn't committed in 100 attempts"))
    }

    /// A log of [`HISTORY`] batches of several shapes.
    fn history(&mut self) -> Result<(), String> {
        for number in 1..=HISTORY {
            let batch = self.next(number % 4 * 3, number % 3);
            self.commit(&batch)?;
        }
        Ok(())
    }

    fn must_refuse(
        &mut self,
        batch: &Batch,
        what: &str,
        right: fn(&StoreError) -> bool,
    ) -> Result<(), String> {
        match self.store.commit(batch) {
            Err(error) if right(&error) => Ok(()),
            Err(error) => Err(format!("{what} is refused by the wrong error: {error}")),
            Ok(()) => Err(format!("{what} is committed")),
        }
    }
}

fn event(sequence: u64, at: Timestamp) -> Event {
    let kind = match sequence % 3 {
        0 => EventKind::Expired {
            reservation: ReservationId::from_u64(sequence),
        },
        1 => EventKind::DeadlinesCredited { micros: sequence },
        _ => EventKind::Released {
            origin: origin(sequence),
            reservation: ReservationId::from_u64(sequence * 3),
        },
    };
    Event {
        sequence,
        at,
        shard: 0,
        epoch: 1,
        kind,
    }
}

fn origin(seed: u64) -> Origin {
    Origin {
        user: UserId(u128::from(seed) << 7),
        key: IdempotencyKey::new(u128::from(seed) + 1),
        fingerprints: [1, 2, 3],
    }
}

fn refusal(seed: u64) -> RefusalRecord {
    RefusalRecord {
        origin: origin(seed),
        kind: CommandKind::Reserve,
        refusal: Refusal::ExceedsSold {
            line: u16::try_from(seed % 9).unwrap_or(0),
            sku: SkuId(u32::try_from(seed % 1_000).unwrap_or(0)),
            sold: seed,
        },
    }
}

fn expect<T: PartialEq + fmt::Debug>(what: &str, found: &T, wanted: &T) -> Result<(), String> {
    match found == wanted {
        true => Ok(()),
        false => Err(format!("{what} is {found:?} instead of {wanted:?}")),
    }
}

/// Opens the log anew and compares what comes back with what was acknowledged.
fn reopened(new: &mut NewStore<'_>, writer: u128, wanted: &Tally) -> Result<Session, String> {
    let session = Session::open(new, writer)?;
    expect("the recovered log", &session.tally, wanted)?;
    Ok(session)
}

fn new_log_is_empty(new: &mut NewStore<'_>) -> Result<(), String> {
    let session = Session::open(new, 1)?;
    expect(
        "the number of the last batch",
        &session.recovered.last_batch,
        &0,
    )?;
    expect("what is left out", &session.recovered.dropped_tail, &None)
}

fn recovery_at_every_point(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut wanted = Tally::default();
    for writer in 1..=u128::from(HISTORY) {
        let mut session = reopened(new, writer, &wanted)?;
        for events in 0..3 {
            let batch = session.next(events * 40, events);
            session.commit(&batch)?;
        }
        // Every other writer ends without a word, as one that was killed.
        if writer % 2 == 0 {
            let closed = session.store.close();
            closed.map_err(|error| format!("it doesn't close: {error}"))?;
        }
        wanted = session.tally.clone();
    }
    reopened(new, 99, &wanted).map(drop)
}

fn recovery_changes_nothing(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    session.history()?;
    let wanted = session.tally.clone();
    drop(session);
    for writer in 2..6 {
        reopened(new, writer, &wanted)?;
    }
    Ok(())
}

fn every_takeover_has_a_new_token(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut epoch = 0;
    for writer in 1..5 {
        let session = Session::open(new, writer)?;
        expect("the token's writer", &session.token.writer, &writer)?;
        if session.token.epoch <= epoch {
            return Err(format!("epoch {} follows {epoch}", session.token.epoch));
        }
        epoch = session.token.epoch;
    }
    Ok(())
}

fn lost_acknowledgement(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    session.history()?;
    let batch = session.next(5, 1);
    session.commit(&batch)?;
    for _ in 0..3 {
        let again = session.store.commit(&batch);
        again.map_err(|error| format!("the same batch again is refused: {error}"))?;
    }
    let batch = session.next(2, 0);
    session.commit(&batch)?;
    let wanted = session.tally.clone();
    drop(session);
    reopened(new, 2, &wanted).map(drop)
}

fn fork_by_hash(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    session.history()?;
    let (one, other) = (session.next(3, 0), session.next(4, 0));
    session.commit(&one)?;
    let fork = |error: &StoreError| matches!(error, StoreError::Fork { .. });
    session.must_refuse(&other, "another batch under the last number", fork)?;
    let wanted = session.tally.clone();
    drop(session);
    reopened(new, 2, &wanted).map(drop)
}

fn fork_by_predecessor(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    session.history()?;
    let mut batch = session.next(3, 0);
    batch.seal(BatchHash([7; 32]));
    let fork = |error: &StoreError| matches!(error, StoreError::Fork { .. });
    session.must_refuse(&batch, "a batch with another predecessor", fork)?;
    let wanted = session.tally.clone();
    drop(session);
    reopened(new, 2, &wanted).map(drop)
}

fn gap(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    session.history()?;
    let mut batch = session.next(3, 0);
    batch.header.number += 1;
    batch.seal(session.tally.last_hash);
    let behind = |error: &StoreError| matches!(error, StoreError::Behind { .. });
    session.must_refuse(&batch, "a batch that skips a number", behind)?;
    let wanted = session.tally.clone();
    drop(session);
    reopened(new, 2, &wanted).map(drop)
}

/// A second writer opens while the first one lives. A store that locks refuses it, and then the first goes on.
fn zombie(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut zombie = Session::open(new, 1)?;
    zombie.history()?;
    match Session::open(new, 2) {
        Err(_) => {
            let batch = zombie.next(3, 0);
            zombie.commit(&batch)?;
            let wanted = zombie.tally.clone();
            drop(zombie);
            reopened(new, 3, &wanted).map(drop)
        }
        Ok(mut session) => {
            expect("the log at the takeover", &session.tally, &zombie.tally)?;
            let fenced = |error: &StoreError| matches!(error, StoreError::Fenced { .. });
            let batch = zombie.next(3, 1);
            zombie.must_refuse(&batch, "a batch of the old writer", fenced)?;
            let batch = session.next(2, 1);
            session.commit(&batch)?;
            let batch = zombie.next(1, 0);
            zombie.must_refuse(&batch, "a later batch of the old writer", fenced)?;
            drop(zombie);
            let batch = session.next(2, 1);
            session.commit(&batch)?;
            let wanted = session.tally.clone();
            drop(session);
            reopened(new, 3, &wanted).map(drop)
        }
    }
}

fn foreign_token(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    session.history()?;
    let fenced = |error: &StoreError| matches!(error, StoreError::Fenced { .. });
    for (epoch, writer) in [(1, 0), (0, 1)] {
        let mut batch = session.next(3, 0);
        batch.header.token.epoch += epoch;
        batch.header.token.writer += writer;
        batch.seal(session.tally.last_hash);
        session.must_refuse(&batch, "a batch under a foreign token", fenced)?;
    }
    let wanted = session.tally.clone();
    drop(session);
    reopened(new, 2, &wanted).map(drop)
}

fn sources_and_refusals(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut wanted = Tally::default();
    for sources in [1, 16, 0, 5] {
        let mut session = reopened(new, sources, &wanted)?;
        let mut batch = session.next(1, 7);
        batch.header.sources = (0..sources)
            .map(|source| SourcePosition {
                source: u64::MAX - u64::try_from(source).unwrap_or(0),
                position: u64::MAX,
            })
            .collect();
        batch.seal(session.tally.last_hash);
        session.commit(&batch)?;
        wanted = session.tally.clone();
        drop(session);
        let session = reopened(new, 100 + sources, &wanted)?;
        expect(
            "the sources",
            &session.recovered.sources,
            &batch.header.sources,
        )?;
    }
    Ok(())
}

fn empty_batch(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    for events in [0, 2, 0, 0, 1, 0] {
        let batch = session.next(events, 0);
        session.commit(&batch)?;
    }
    let wanted = session.tally.clone();
    drop(session);
    reopened(new, 2, &wanted).map(drop)
}

fn large_batch(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    for events in [1, LARGE_BATCH, 1, LARGE_BATCH / 3] {
        let batch = session.next(events, events / 2);
        session.commit(&batch)?;
    }
    let wanted = session.tally.clone();
    drop(session);
    reopened(new, 2, &wanted).map(drop)
}
