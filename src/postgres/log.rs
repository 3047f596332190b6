//! Reads the log: the fence row, and batches, whose chain of hashes is checked on the way.

use super::commit::signed;
use super::repair::{REPAIR, resume_after};
use super::session::{Session, fatal};
use super::sql::Id128;
use crate::store::{Progress, Recovered, StoreError};
use crate::types::{Batch, BatchHash, BatchHeader, SourcePosition, Timestamp, Token};
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

/// The id of a writer that there isn't.
pub(super) const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

/// Batches that are read at once: of 8,192 commands they are some 30 MiB.
pub(super) const PAGE: usize = 32;

/// Where a log ends, or a reader of it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct End {
    pub(super) number: u64,
    pub(super) hash: BatchHash,
}

/// The row of `writer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fence {
    pub(super) token: Token,
    pub(super) end: End,
    pub(super) credit_micros: u64,
    pub(super) handed_on: bool,
    /// The session of the token's writer is there.
    pub(super) has_owner: bool,
    /// Why nobody may take the role.
    pub(super) halted: Option<String>,
}

impl Fence {
    /// Whether the log that ends there is all that was committed.
    ///
    /// # Errors
    /// `Fatal` if not, or if nobody may take the role; it says what to do.
    pub(super) fn fits(&self, shard: u16, end: End) -> Result<(), StoreError> {
        let lost = lost(self.halted.as_deref(), self.end, end);
        if let Some(lost) = lost {
            return Err(fatal(format!("{lost}{}", resume_after(shard, end.number))));
        }
        if self.end == end {
            return Ok(());
        }
        Err(fatal(format!(
            "the row of shard {shard} in `writer` says that the last batch is {}, and the log ends with {}: it was changed from \
             outside{REPAIR}",
            self.end.number, end.number
        )))
    }
}

/// Why batches are known to be missing at the end of a log: somebody has said so, or the fence row knows of more.
pub(super) fn lost(halted: Option<&str>, known: End, end: End) -> Option<String> {
    let is_more = known.number > end.number;
    let differs = known.number == end.number && known.hash != end.hash;
    let more = (is_more || differs).then(|| missing(known, end));
    halted.map(str::to_owned).or(more)
}

/// What is wrong with a log that ends there.
pub(super) fn missing(known: End, end: End) -> String {
    format!(
        "batches are missing: number {} ({}) was committed, and the log ends with {} ({})",
        known.number, known.hash, end.number, end.hash
    )
}

/// Reads the fence row; `lock` keeps everybody else from committing until the transaction ends.
///
/// # Errors
/// Those of the session, or a row that isn't there.
pub(super) fn fence(session: &Session, shard: u16, lock: bool) -> Result<Fence, StoreError> {
    find_fence(session, shard, lock)?.ok_or_else(|| no_fence(shard))
}

/// Whose log there is, and no row.
pub(super) fn no_fence(shard: u16) -> StoreError {
    fatal(format!(
        "the row of shard {shard} in `writer` is gone{REPAIR}"
    ))
}

/// The same of a shard that there may not be.
pub(super) fn find_fence(
    session: &Session,
    shard: u16,
    lock: bool,
) -> Result<Option<Fence>, StoreError> {
    // A statement of its own: one that waits for the lock and reads may give the owner's session as it was before the wait.
    if lock {
        let locked = "SELECT FROM writer WHERE shard = $1 FOR UPDATE";
        session.rows(locked, &[&shard.cast_signed()])?;
    }
    let sql = "SELECT epoch, writer_id, last_batch, last_hash, credit_micros, handed_on,
                      owner_process(shard, epoch) IS NOT NULL, halted
               FROM writer WHERE shard = $1";
    let Some(row) = session.row(sql, &[&shard.cast_signed()])? else {
        return Ok(None);
    };
    Ok(Some(Fence {
        token: Token {
            epoch: unsigned(&row, 0)?,
            writer: get::<Id128>(&row, 1)?.0,
        },
        end: End {
            number: unsigned(&row, 2)?,
            hash: hash(&row, 3)?,
        },
        credit_micros: unsigned(&row, 4)?,
        handed_on: get(&row, 5)?,
        has_owner: get(&row, 6)?,
        halted: get(&row, 7)?,
    }))
}

/// Makes the fence row of a shard that has none, and no log.
pub(super) fn begin_shard(session: &Session, shard: u16) -> Result<(), StoreError> {
    let no_hash = BatchHash::default();
    let made = session.rows(
        "INSERT INTO writer (shard, epoch, writer_id, last_batch, last_hash, last_sequence, last_stamp,
                             credit_micros, handed_on, committed_at)
         SELECT $1::int2, 0, $2::uuid, 0, $3::bytea, 0, $4::timestamptz, 0, true, now()
         WHERE NOT EXISTS (SELECT FROM batches WHERE shard = $1)
         ON CONFLICT DO NOTHING",
        &[
            &shard.cast_signed(),
            &Id128(0),
            &no_hash.0.as_slice(),
            &Timestamp::MIN,
        ],
    );
    made.map(drop)
}

/// How far a log was read.
#[derive(Debug, Clone, Default)]
pub(super) struct Position {
    pub(super) end: End,
    /// All but its token.
    pub(super) recovered: Recovered,
}

impl Position {
    /// The position after a batch, if it follows.
    fn follow(&mut self, batch: &Batch, stored: BatchHash) -> Result<(), StoreError> {
        let (header, hash) = (&batch.header, batch.hash());
        let follows = header.number == self.end.number + 1 && header.prev_hash == self.end.hash;
        if hash != stored || !follows {
            return Err(fatal(format!(
                "batches row {} (shard {}) is not what was committed: its hash is {hash}, recorded {stored}, after {}; \
                 restore the database from a backup or a standby",
                header.number, header.shard, self.end.hash
            )));
        }
        self.end = End {
            number: header.number,
            hash,
        };
        let recovered = &mut self.recovered;
        (recovered.last_batch, recovered.last_hash) = (header.number, hash);
        (recovered.last_stamp, recovered.last_sequence) = (header.stamp, batch.last_sequence());
        recovered.sources.clone_from(&header.sources);
        recovered.batches_read += 1;
        recovered.events_read += batch.event_records().len() as u64;
        Ok(())
    }
}

/// Gives the next batches, at most a page of them, and says how many there were.
///
/// # Errors
/// Those of the session and of `take`, and a log that isn't one chain.
pub(super) fn read_page(
    session: &Session,
    shard: u16,
    position: &mut Position,
    take: &mut dyn FnMut(&Batch) -> Result<(), StoreError>,
) -> Result<usize, StoreError> {
    let after = signed(position.end.number)?;
    let limit = i64::try_from(PAGE).unwrap_or(i64::MAX);
    let rows = session.rows(
        "SELECT number, epoch, writer_id, stamp, first_sequence, prev_hash, source_ids, source_positions,
                events, refusals, hash
         FROM batches WHERE shard = $1 AND number > $2 ORDER BY number LIMIT $3",
        &[&shard.cast_signed(), &after, &limit],
    )?;
    for row in &rows {
        let header = BatchHeader {
            number: unsigned(row, 0)?,
            shard,
            stamp: get(row, 3)?,
            token: Token {
                epoch: unsigned(row, 1)?,
                writer: get::<Id128>(row, 2)?.0,
            },
            first_sequence: unsigned(row, 4)?,
            prev_hash: hash(row, 5)?,
            sources: sources(row, 6)?,
        };
        let batch = Batch::from_parts(header, get(row, 8)?, get(row, 9)?);
        let batch = batch.map_err(|error| {
            let number: i64 = row.get(0);
            fatal(format!(
                "batches row {number} (shard {shard}) is no batch: {error}; restore the database from a backup or a standby"
            ))
        })?;
        position.follow(&batch, hash(row, 10)?)?;
        take(&batch)?;
    }
    Ok(rows.len())
}

/// Gives all batches that follow.
///
/// # Errors
/// As [`read_page`].
pub(super) fn read_to_end(
    session: &Session,
    shard: u16,
    position: &mut Position,
    take: &mut dyn FnMut(&Batch) -> Result<(), StoreError>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), StoreError> {
    let total = log_end(session, shard)?.number;
    loop {
        let read = read_page(session, shard, position, take)?;
        progress(Progress {
            done: position.end.number,
            total: Some(total.max(position.end.number)),
        });
        if read < PAGE {
            return Ok(());
        }
    }
}

/// The last batch that is there.
pub(super) fn log_end(session: &Session, shard: u16) -> Result<End, StoreError> {
    let row = session.row(
        "SELECT number, hash FROM batches WHERE shard = $1 ORDER BY number DESC LIMIT 1",
        &[&shard.cast_signed()],
    )?;
    row.map_or(Ok(End::default()), |row| end_of(&row))
}

/// A number and its hash.
pub(super) fn end_of(row: &Row) -> Result<End, StoreError> {
    Ok(End {
        number: unsigned(row, 0)?,
        hash: hash(row, 1)?,
    })
}

/// The two columns of source positions.
pub(super) fn sources(row: &Row, at: usize) -> Result<Vec<SourcePosition>, StoreError> {
    let (ids, positions): (Vec<i64>, Vec<i64>) = (get(row, at)?, get(row, at + 1)?);
    if ids.len() != positions.len() {
        return Err(fatal("source_ids and source_positions differ in length"));
    }
    let pairs = ids.into_iter().zip(positions);
    Ok(pairs
        .map(|(source, position)| SourcePosition {
            source: source.cast_unsigned(),
            position: position.cast_unsigned(),
        })
        .collect())
}

pub(super) fn get<'a, T: FromSql<'a>>(row: &'a Row, at: usize) -> Result<T, StoreError> {
    row.try_get(at).map_err(|error| {
        fatal(format!(
            "a column isn't what the schema says: {error}; was it altered by hand?"
        ))
    })
}

pub(super) fn unsigned(row: &Row, at: usize) -> Result<u64, StoreError> {
    u64::try_from(get::<i64>(row, at)?)
        .map_err(|_| fatal(format!("column {} is negative", row.columns()[at].name())))
}

pub(super) fn hash(row: &Row, at: usize) -> Result<BatchHash, StoreError> {
    let bytes: &[u8] = get(row, at)?;
    let bytes = bytes
        .try_into()
        .map_err(|_| fatal(format!("column {} is no hash", row.columns()[at].name())))?;
    Ok(BatchHash(bytes))
}
