//! Reads the log: the fence row, and batches, whose chain of hashes is checked on the way.

use super::commit::signed;
use super::session::{Session, fatal};
use super::sql::Id128;
use crate::store::{Recovered, StoreError};
use crate::types::{Batch, BatchHash, BatchHeader, SourcePosition, Timestamp, Token};
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;

/// Batches that are read at once: of 8,192 commands they are some 30 MiB.
pub(super) const PAGE: usize = 32;

/// Where a log ends, or a reader of it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct End {
    pub(super) number: u64,
    pub(super) hash: BatchHash,
}

/// The row of `writer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fence {
    pub(super) token: Token,
    pub(super) end: End,
    pub(super) credit_micros: u64,
    pub(super) handed_on: bool,
    /// The session of the token's writer is there.
    pub(super) has_owner: bool,
}

/// Reads the fence row; `lock` keeps everybody else from committing until the transaction ends.
///
/// # Errors
/// Those of the session, or a row that isn't there.
pub(super) fn fence(session: &Session, shard: u16, lock: bool) -> Result<Fence, StoreError> {
    let sql = "SELECT epoch, writer_id, last_batch, last_hash, credit_micros, handed_on,
                      owner_process(shard, epoch) IS NOT NULL
               FROM writer WHERE shard = $1";
    let sql = format!("{sql}{}", if lock { " FOR UPDATE" } else { "" });
    let row = session.row(&sql, &[&shard.cast_signed()])?;
    let row = row.ok_or_else(|| {
        fatal(format!(
            "the row of shard {shard} in `writer` is gone: restore the database, or rebuild the rows from the log"
        ))
    })?;
    Ok(Fence {
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
    })
}

/// Makes the fence row of a shard that has none.
pub(super) fn begin_shard(session: &Session, shard: u16) -> Result<(), StoreError> {
    let no_hash = BatchHash::default();
    let made = session.rows(
        "INSERT INTO writer (shard, epoch, writer_id, last_batch, last_hash, last_sequence, last_stamp,
                             credit_micros, handed_on, committed_at)
         VALUES ($1, 0, $2, 0, $3, 0, $4, 0, true, now())
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
        let batch = batch.map_err(|error| fatal(format!("a row of batches: {error}")))?;
        position.follow(&batch, hash(row, 10)?)?;
        take(&batch)?;
    }
    Ok(rows.len())
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
