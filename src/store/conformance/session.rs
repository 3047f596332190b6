//! A store at work: what a check opens, offers and expects.

use super::Tally;
use crate::store::{OpenRequest, Recovered, Replica, ReplicaError, Store, StoreError};
use crate::types::{
    Batch, CommandKind, Event, EventKind, IdempotencyKey, Line, Origin, Refusal, RefusalRecord,
    ReservationId, Rules, SkuId, SkuName, SourcePosition, StateRecord, Timestamp, Token, UserId,
};
use std::fmt;
use std::sync::Arc;

/// Batches of the history that most checks begin with.
const HISTORY: u64 = 6;

/// Events that define the SKU, in a log's first batch.
const DEFINING: u64 = 2;

/// Makes stores on one and the same log.
pub(super) struct NewStore<'a> {
    pub(super) make: &'a mut dyn FnMut() -> Box<dyn Store>,
    pub(super) shard: u16,
}

/// A store that is open, and a replica of what was acknowledged.
pub(super) struct Session {
    pub(super) store: Box<dyn Store>,
    pub(super) token: Token,
    pub(super) recovered: Recovered,
    pub(super) tally: Tally,
    shard: u16,
}

impl Session {
    pub(super) fn open(new: &mut NewStore<'_>, writer: u128) -> Result<Self, String> {
        let mut store = (new.make)();
        let mut tally = Tally::default();
        let recovered = store
            .open(&request(new.shard, writer), &mut tally, &mut |_| {})
            .map_err(|error| format!("it doesn't open: {error}"))?;
        tally.settle();
        let session = Self {
            store,
            token: recovered.token,
            recovered,
            tally,
            shard: new.shard,
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

    /// The next batch: events, refusals and source positions that differ from batch to batch. The first one also defines
    /// the SKU that all others are about.
    pub(super) fn next(&self, events: u64, refusals: u64) -> Batch {
        let number = self.tally.batches + 1;
        let mut batch = Batch::default();
        batch.header.number = number;
        batch.header.shard = self.shard;
        batch.header.token = self.token;
        batch.header.stamp = Timestamp::from_micros(1_000_000 + number * 7);
        batch.header.first_sequence = self.tally.events + 1;
        batch.header.sources = (0..number % 3)
            .map(|source| SourcePosition {
                source,
                position: number * 100 + source,
            })
            .collect();
        let first = self.tally.events + 1;
        let defining = if number == 1 { DEFINING } else { 0 };
        for sequence in first..first + defining + events {
            batch.push_event(&event(self.shard, sequence, batch.header.stamp));
        }
        for n in 0..refusals {
            batch.push_refusal(&refusal(number * 1_000 + n));
        }
        batch.seal(self.tally.last_hash);
        batch
    }

    pub(super) fn commit(&mut self, batch: &Batch) -> Result<(), String> {
        let number = batch.header.number;
        let mut last = String::new();
        for _ in 0..100 {
            match self.store.commit(batch) {
                Ok(()) => {
                    let applied = self.tally.apply(batch);
                    return applied.map_err(|error| format!("the kit itself errs: {error}"));
                }
                Err(StoreError::Retryable(why)) => last = why,
                Err(error) => return Err(format!("batch {number} isn't committed: {error}")),
            }
        }
        Err(format!(
            "batch {number} isn't committed in 100 attempts: {last}"
        ))
    }

    /// A log of [`HISTORY`] batches of several shapes.
    pub(super) fn history(&mut self) -> Result<(), String> {
        for number in 1..=HISTORY {
            let batch = self.next(number % 4 * 3, number % 3);
            self.commit(&batch)?;
        }
        Ok(())
    }

    pub(super) fn must_refuse(
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

fn request(shard: u16, writer: u128) -> OpenRequest {
    OpenRequest {
        shard,
        writer,
        replicas: Arc::new(|| Box::new(Tally::default())),
    }
}

/// A replica that takes everything, and then doesn't want the role.
#[derive(Default)]
struct Declines(Tally);

impl Replica for Declines {
    fn restore(&mut self, record: &StateRecord) -> Result<(), ReplicaError> {
        self.0.restore(record)
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), ReplicaError> {
        self.0.apply(batch)
    }

    fn complete(&mut self) -> Result<(), ReplicaError> {
        Err(ReplicaError::Declined("the kit declines".to_owned()))
    }

    fn export(&self, out: &mut dyn FnMut(&StateRecord)) {
        self.0.export(out);
    }
}

/// Opens the log for a writer that declines the role.
pub(super) fn decline(new: &mut NewStore<'_>, writer: u128) -> Result<(), String> {
    let request = request(new.shard, writer);
    match (new.make)().open(&request, &mut Declines::default(), &mut |_| {}) {
        Err(_) => Ok(()),
        Ok(_) => Err("it opens although the replica declines the role".to_owned()),
    }
}

/// Of a sale without end: two events define its SKU, then units are held and given back or lapse. So a store that keeps rows
/// finds the batches in order, wherever they are cut.
fn event(shard: u16, sequence: u64, at: Timestamp) -> Event {
    let sku = SkuId(0);
    let held = ReservationId::new(shard, sequence - 1);
    let kind = match (sequence, sequence % 4) {
        (1, _) => EventKind::SkuNamed {
            sku,
            name: SkuName::new("conformance").expect("a name"),
        },
        (DEFINING, _) => EventKind::SkuDefined {
            origin: origin(sequence),
            sku,
            total: 1 << 40,
            rules: Rules::default(),
        },
        (_, 1 | 3) => EventKind::Reserved {
            origin: origin(sequence),
            first: Line { sku, quantity: 3 },
            lines: 1,
            sale: 0,
            hold_ms: 1,
            expires_at: at.plus_ms(1),
            replaces: None,
        },
        (_, 2) => EventKind::Released {
            origin: origin(sequence),
            reservation: held,
        },
        _ => EventKind::Expired { reservation: held },
    };
    Event {
        sequence,
        at,
        shard,
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

pub(super) fn expect<T: PartialEq + fmt::Debug>(
    what: &str,
    found: &T,
    wanted: &T,
) -> Result<(), String> {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{what} is {found:?} instead of {wanted:?}"))
}

/// Opens the log anew and compares what comes back with what was acknowledged.
pub(super) fn reopened(
    new: &mut NewStore<'_>,
    writer: u128,
    wanted: &Tally,
) -> Result<Session, String> {
    let session = Session::open(new, writer)?;
    expect("the recovered log", &session.tally, wanted)?;
    Ok(session)
}
