//! The log, its chain and its rows, read beside the writer or without one: what it leads to, and where a row says otherwise.

use super::PostgresOptions;
use super::changes::Changes;
use super::log::{End, PAGE, Position, end_of, find_fence, get, no_fence, read_page, read_to_end};
use super::session::{Session, fatal};
use super::writer::drift;
use crate::store::{Progress, ReadLog, Recovered, Replica, StoreError};
use crate::types::{Batch, HoldStatus, ReservationId, SEQUENCE_MAX, StateRecord};
use std::collections::BTreeMap;

/// Rows that are asked for at once.
const ROWS_MAX: usize = 10_000;

/// The whole log of a shard, and how its rows differ from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PostgresAudit {
    /// What was read.
    pub recovered: Recovered,
    /// Every row of `inventory` whose units, and every row of `reservations` whose status the log says otherwise. All that rows say
    /// is compared by [`PostgresRepair::look`](super::PostgresRepair::look).
    pub drift: Vec<String>,
}

impl PostgresAudit {
    /// Audits one shard, as of [one moment](PostgresMoment::audit).
    ///
    /// # Errors
    /// Those of the moment.
    pub fn run(
        options: &PostgresOptions,
        shard: u16,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, StoreError> {
        PostgresMoment::new(options)?.audit(shard, replica, progress)
    }
}

/// All shards of a schema as they were at one moment, whether or not their writers go on meanwhile. The server keeps that
/// moment's rows for as long as this lives.
pub struct PostgresMoment {
    session: Session,
}

impl PostgresMoment {
    /// The moment is now.
    ///
    /// # Errors
    /// `Retryable` if no server can be asked just now.
    pub fn new(options: &PostgresOptions) -> Result<Self, StoreError> {
        let session = Session::connect_for_reads(options)?;
        session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        // The first statement that reads makes it.
        session.run("SELECT FROM writer")?;
        Ok(Self { session })
    }

    /// The shards that there are.
    ///
    /// # Errors
    /// `Retryable` if the connection fails: begin anew.
    pub fn shards(&self) -> Result<Vec<u16>, StoreError> {
        // Also one whose fence row was removed.
        let rows = self.session.rows(
            "SELECT shard FROM writer UNION SELECT shard FROM batches WHERE number = 1",
            &[],
        )?;
        let shards = rows.iter().map(|row| get(row, 0).map(i16::cast_unsigned));
        let mut shards = shards.collect::<Result<Vec<u16>, _>>()?;
        shards.sort_unstable();
        Ok(shards)
    }

    /// Gives every batch of a shard's log to an empty `replica`, checks the chain of hashes on the way, and compares the rows with
    /// what the replica then [says](Replica::stock).
    ///
    /// # Errors
    /// `Fatal` if the log is damaged or lacks its end; what was read until then is in the replica. `Retryable` if the connection
    /// fails: begin anew.
    pub fn audit(
        &self,
        shard: u16,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PostgresAudit, StoreError> {
        let session = &self.session;
        let mut position = Position::default();
        let mut reservations = Statuses::default();
        let mut take = |batch: &Batch| {
            let applied = replica.apply(batch);
            applied.map_err(|error| fatal(error.to_string()))?;
            reservations.take(batch)
        };
        read_to_end(session, shard, &mut position, &mut take, progress)?;
        let known = find_fence(session, shard, false)?;
        // Of a shard that there isn't all is well.
        if known.is_some() || position.end != End::default() {
            known
                .ok_or_else(|| no_fence(shard))?
                .fits(shard, position.end)?;
        }
        let known = replica.stock().into_iter();
        let known = known.map(|stock| (stock.sku, stock)).collect();
        let mut drift = drift(session, shard, &known)?;
        let mut known = reservations.known;
        // What lives is the state's to say.
        known.retain(|_, status| !status.is_live());
        known.extend(live(replica));
        drift.extend(reservations_drift(session, shard, known, "true")?);
        Ok(PostgresAudit {
            recovered: position.recovered,
            drift,
        })
    }
}

/// Every reservation of a log, and what has become of it, told from the events as the rows are.
#[derive(Default)]
struct Statuses {
    changes: Changes,
    credit_micros: u64,
    known: BTreeMap<ReservationId, HoldStatus>,
}

impl Statuses {
    fn take(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let changes = &mut self.changes;
        changes
            .read(batch, self.credit_micros)
            .map_err(|what| fatal(format!("batch {} can't be: {what}", batch.header.number)))?;
        self.credit_micros = self.credit_micros.saturating_add(changes.credit_micros);
        let made = changes.made.iter().map(|made| (&made.id, &made.now));
        let changed = made.chain(&changes.changed);
        let statuses = changed.filter_map(|(id, change)| Some((*id, change.status?)));
        self.known.extend(statuses);
        Ok(())
    }
}

/// The reservations that live in a state.
fn live(replica: &dyn Replica) -> BTreeMap<ReservationId, HoldStatus> {
    let mut live = BTreeMap::new();
    replica.export(&mut |record| {
        if let StateRecord::Reservation { id, status, .. } = record
            && status.is_live()
        {
            live.insert(*id, *status);
        }
    });
    live
}

/// How the reservations that live in the rows differ from those that live in the log.
pub(super) fn holds_drift(
    session: &Session,
    shard: u16,
    replica: &dyn Replica,
) -> Result<Vec<String>, StoreError> {
    reservations_drift(session, shard, live(replica), "ended_at IS NULL")
}

/// How the rows of reservations, those of them that are asked for, differ from what is known.
fn reservations_drift(
    session: &Session,
    shard: u16,
    mut known: BTreeMap<ReservationId, HoldStatus>,
    which: &str,
) -> Result<Vec<String>, StoreError> {
    let id = |sequence| ReservationId::new(shard, sequence).get().cast_signed();
    let (mut after, last) = (id(0), id(SEQUENCE_MAX));
    let asks = format!(
        "SELECT id, status, id FROM reservations WHERE {which} AND id > $1 AND id <= $2 ORDER BY id LIMIT {ROWS_MAX}"
    );
    let mut drift = Vec::new();
    loop {
        let rows = session.rows(&asks, &[&after, &last])?;
        for row in &rows {
            let (id, found): (ReservationId, &str) = (get(row, 0)?, get(row, 1)?);
            after = get(row, 2)?;
            match known.remove(&id) {
                Some(status) if status.name() == found => {}
                Some(status) => drift.push(format!(
                    "reservations row {id} is {found}, the log says {}",
                    status.name()
                )),
                None => drift.push(format!(
                    "reservations row {id} is {found}, the log has none"
                )),
            }
        }
        if rows.len() < ROWS_MAX {
            break;
        }
    }
    drift.extend(known.iter().map(|(id, status)| {
        format!(
            "reservations row {id} is missing, the log says {}",
            status.name()
        )
    }));
    Ok(drift)
}

/// Reads the batches of a shard beside its writer.
pub struct PostgresLog {
    options: PostgresOptions,
    shard: u16,
}

impl PostgresLog {
    /// Nothing is connected to before it reads.
    pub fn new(options: PostgresOptions, shard: u16) -> Self {
        Self { options, shard }
    }
}

impl ReadLog for PostgresLog {
    fn read(&mut self, from: u64, take: &mut dyn FnMut(&Batch) -> bool) -> Result<(), StoreError> {
        let session = Session::connect_for_reads(&self.options)?;
        let before = from.saturating_sub(1);
        let row = session.row(
            "SELECT number, hash FROM batches WHERE shard = $1 AND number = $2",
            &[&self.shard.cast_signed(), &super::commit::signed(before)?],
        )?;
        let mut position = Position::default();
        match row {
            Some(row) => position.end = end_of(&row)?,
            None if before == 0 => {}
            // Nothing is there that far.
            None => return Ok(()),
        }
        let mut wants = true;
        while wants {
            let mut give = |batch: &Batch| {
                wants = wants && take(batch);
                Ok(())
            };
            if read_page(&session, self.shard, &mut position, &mut give)? < PAGE {
                break;
            }
        }
        Ok(())
    }
}
