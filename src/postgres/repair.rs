//! Rows that were changed from outside, made again what the log says; and a log that lost its tail, gone on with.
//!
//! The log is read into the rows it leads to (see `rebuild`) while a writer may go on. Then the fence row is locked, so that
//! nobody commits; the last batches are read, every row is compared, and what differs is replaced in that one transaction. It
//! also takes the role and hands it on: a writer that lives finds itself fenced with its next batch instead of committing on
//! rows it doesn't know, and whoever waits for the role has it at once. Where nothing differs nobody is fenced. A program that is
//! stopped meanwhile loses its lock after a while, and has changed nothing. Merely to look, nothing is locked: both sessions
//! see one moment.

use super::audit::holds_drift;
use super::log::{End, Position, end_of, fence, get, lost, read_to_end, unsigned};
use super::rebuild::Rebuild;
use super::schema;
use super::session::{Session, fatal};
use super::standby::persist;
use super::writer::drift;
use super::{PostgresOptions, Stop};
use crate::store::{Progress, Recovered, Replica, StoreError};
use crate::types::Batch;
use std::fmt;
use std::time::Duration;

/// What a statement over all rows may take.
const STATEMENT_MAX: Duration = Duration::from_secs(3_600);

/// What an operator does about rows that differ: the end of an error's text.
pub(super) const REPAIR: &str =
    "; see what differs with `flash-sale repair --store URL`, and mend it with its `--apply`";

/// What an operator does about a lost tail: the end of an error's text.
pub(super) fn resume_after(shard: u16, number: u64) -> String {
    format!(
        "; restore the database from where they are, or go on without them: \
         `flash-sale resume --store URL --shard {shard} --after-batch {number}`"
    )
}

/// A row that is not what the log says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RowDifference {
    /// `inventory`, `reservations`, `reservation_lines`, `writer` or `snapshots`.
    pub table: &'static str,
    /// What names the row.
    pub row: String,
    /// The columns that differ, as they are; `None`: the row is missing.
    pub found: Option<String>,
    /// The columns that differ, as the log says; `None`: there is no such row.
    pub wanted: Option<String>,
}

impl fmt::Display for RowDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            table, row, found, ..
        } = self;
        let found = found.as_deref().unwrap_or("missing");
        let wanted = self.wanted.as_deref().unwrap_or("none");
        write!(f, "{table} row {row}: {found} -> {wanted}")
    }
}

/// How the rows of a shard differ from its log, and what was done about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PostgresRepair {
    /// What was read of the log.
    pub recovered: Recovered,
    /// The first 1,000 rows that differ.
    pub differences: Vec<RowDifference>,
    /// How many differ.
    pub differing: u64,
    /// Why batches are known to be missing at the end of the log: no writer starts before that is [accepted](Self::resume).
    pub lost: Option<String>,
    /// The epoch that was taken and handed on, if anything was changed.
    pub epoch: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Intent {
    Look,
    Apply,
    ResumeAfter(u64),
}

impl PostgresRepair {
    /// Says what differs, and changes nothing. `replica` is empty, and takes the whole log. Needs a server that takes writes, for
    /// temporary tables; a writer may go on meanwhile.
    ///
    /// # Errors
    /// `Fatal` if the log itself is damaged, naming the batch: rows can't be rebuilt from it. `Retryable` if no server can be
    /// asked just now.
    pub fn look(
        options: &PostgresOptions,
        shard: u16,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, StoreError> {
        run(options, shard, Intent::Look, replica, progress)
    }

    /// Replaces what differs, in one transaction. A writer that lives is fenced then.
    ///
    /// # Errors
    /// As [`look`](Self::look), with nothing changed; and `Fatal` if batches are missing at the end of the log.
    pub fn apply(
        options: &PostgresOptions,
        shard: u16,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, StoreError> {
        run(options, shard, Intent::Apply, replica, progress)
    }

    /// Accepts that the log ends with batch number `after`, the number being the operator's word that he knows, and makes the
    /// rows fit. What was answered from later batches is lost; epochs of writers that made them are not used again, so a sink
    /// that has published their events says that they are void.
    ///
    /// # Errors
    /// As [`look`](Self::look), with nothing changed; and `Fatal` if the log ends elsewhere.
    pub fn resume(
        options: &PostgresOptions,
        shard: u16,
        after: u64,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, StoreError> {
        run(
            options,
            shard,
            Intent::ResumeAfter(after),
            replica,
            progress,
        )
    }
}

fn run(
    options: &PostgresOptions,
    shard: u16,
    intent: Intent,
    replica: &mut dyn Replica,
    progress: &mut dyn FnMut(Progress),
) -> Result<PostgresRepair, StoreError> {
    let mut options = options.clone();
    options.statement_timeout = options.statement_timeout.max(STATEMENT_MAX);
    // Nothing has reached the replica yet: a server that is just starting is waited for.
    let log = persist(options.open_within, &Stop::default(), || {
        Session::connect(&options)
    })?;
    schema::check(&log)?;
    let session = Session::connect(&options)?;
    let mut rebuild = Rebuild::new(&session, &options.schema, shard)?;
    let mut position = Position::default();
    let mut read = |rebuild: &mut Rebuild<'_>, replica: &mut dyn Replica, position: &mut _| {
        let mut take = |batch: &Batch| {
            let applied = replica.apply(batch);
            applied.map_err(|error| fatal(error.to_string()))?;
            rebuild.take(batch)
        };
        read_to_end(&log, shard, position, &mut take, progress)
    };
    read(&mut rebuild, replica, &mut position)?;
    let found = if intent == Intent::Look {
        share_moment(&session, &log)?;
        known(&session, &options.schema, shard, "")?
    } else {
        session.begin(position.recovered.last_sequence)?;
        known(&session, &options.schema, shard, "FOR UPDATE")?
    };
    read(&mut rebuild, replica, &mut position)?;
    check(&rebuild, shard, replica)?;
    let (differences, differing) = rebuild.compare()?;
    let mut repair = PostgresRepair {
        differences,
        differing,
        lost: found.and_then(|(known, halted)| lost(halted.as_deref(), known, position.end)),
        recovered: position.recovered,
        epoch: None,
    };
    let end = position.end.number;
    match intent {
        Intent::Look => return Ok(repair),
        Intent::Apply => {
            if let Some(lost) = &repair.lost {
                return Err(fatal(format!("{lost}{}", resume_after(shard, end))));
            }
        }
        Intent::ResumeAfter(after) if after != end => {
            return Err(fatal(format!(
                "the log ends with batch {end}, not {after}; nothing was changed"
            )));
        }
        Intent::ResumeAfter(_) => {}
    }
    if repair.differing > 0 || repair.lost.is_some() {
        rebuild.mend()?;
        repair.epoch = Some(hand_on(&session, &options.schema, shard)?);
        // A COMMIT that became a ROLLBACK is reported as done; who takes the role at once raises the epoch again.
        if Some(fence(&log, shard, false)?.token.epoch) < repair.epoch {
            return Err(StoreError::Retryable(
                "nothing was changed: the server has rolled it back".to_owned(),
            ));
        }
    }
    Ok(repair)
}

/// Begins a transaction in each session; both see one moment.
fn share_moment(first: &Session, second: &Session) -> Result<(), StoreError> {
    first.run("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    let row = first.row("SELECT pg_export_snapshot()", &[])?;
    let row = row.ok_or_else(|| fatal("the server exports no snapshot"))?;
    let moment: &str = get(&row, 0)?;
    second.run(&format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{moment}'"
    ))
}

/// What the schema's fence row says of the end of the log, and why nobody may take the role.
type Known = (End, Option<String>);

fn known(
    session: &Session,
    schema: &str,
    shard: u16,
    lock: &str,
) -> Result<Option<Known>, StoreError> {
    let row = session.row(
        &format!(
            "SELECT last_batch, last_hash, halted FROM {schema}.writer WHERE shard = $1 {lock}"
        ),
        &[&shard.cast_signed()],
    )?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some((end_of(&row)?, get(&row, 2)?)))
}

/// The rows that were built say what the replica counts, or neither can be trusted.
fn check(rebuild: &Rebuild<'_>, shard: u16, replica: &dyn Replica) -> Result<(), StoreError> {
    let stock = replica.stock().into_iter();
    let known = stock.map(|stock| (stock.sku, stock)).collect();
    let mut wrong = drift(rebuild.session, shard, &known)?;
    wrong.extend(holds_drift(rebuild.session, shard, replica)?);
    match wrong.first() {
        None => Ok(()),
        Some(row) => Err(fatal(format!(
            "the rows that the log leads to are not those that its state counts: {row}; nothing was changed; \
             report this as a bug"
        ))),
    }
}

/// Takes the role, hands it on, and commits. Gives the epoch.
fn hand_on(session: &Session, schema: &str, shard: u16) -> Result<u64, StoreError> {
    let row = session.row(
        &format!(
            "UPDATE {schema}.writer SET epoch = epoch + 1, writer_id = '{}', handed_on = true, halted = NULL
             WHERE shard = $1 RETURNING epoch",
            super::log::NOBODY
        ),
        &[&shard.cast_signed()],
    )?;
    let row = row.ok_or_else(|| fatal("the fence row has vanished; nothing was changed"))?;
    session.run("COMMIT")?;
    unsigned(&row, 0)
}
