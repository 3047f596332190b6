//! Snapshots: the state after a batch, as a stream of state records in parts, so that a recovery need not read the whole log.
//!
//! A helper makes them from the log with a replica and a connection of its own, at a pace that leaves the server to the commits:
//! none waits for it. A snapshot counts once its row is there, which is written after its parts; it names the batch and hash that
//! it stands on. Each part is committed by itself: a transaction that stays open would keep the server from removing old versions
//! of the rows that every commit writes. Parts without a row are removed by the next helper. A snapshot that is damaged is passed
//! over for an older one, or for the log itself, which stays whole.
//!
//! The next one is not due before as many events as the last one has records: so snapshots never write more than the log does,
//! however large the state is, and what a recovery reads of the log stays in proportion to its snapshot.
//!
//! Invariant I1: nothing of a snapshot reaches a replica before all of it was verified.

use super::commit::signed;
use super::log::{End, PAGE, Position, get, hash, read_page, sources, unsigned};
use super::session::{Session, fatal};
use super::{PostgresOptions, Stop};
use crate::store::{OpenRequest, Recovered, Replica, ReplicaFactory, StoreError};
use crate::types::StateRecord;
use crate::types::record::RECORD_SIZE;
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Records of one part: 1,024 of 128 bytes are 128 KiB.
const PART_RECORDS: usize = 1_024;
/// What the helper reads and writes at most (16 MiB a second): each MiB costs some 10 ms of a core, of ours and of the server's.
const PACE_BYTES_PER_S: u64 = 16 << 20;
/// Snapshots that stay.
const KEPT: i64 = 2;

/// Gives the newest snapshot that is whole to an empty replica, and where the log goes on from there; those passed over are
/// told in `warnings`.
///
/// # Errors
/// A connection that fails while the replica is filled is `Fatal`, since half a state is none. And those of `pace`.
pub(super) fn restore(
    session: &Session,
    shard: u16,
    replica: &mut dyn Replica,
    warnings: &mut Vec<String>,
    pace: Pace<'_>,
) -> Result<Position, StoreError> {
    let rows = session.rows(
        "SELECT batch, batch_hash, sequence, parts, hash, source_ids, source_positions, stamp
         FROM snapshots WHERE shard = $1 ORDER BY batch DESC",
        &[&shard.cast_signed()],
    )?;
    for row in &rows {
        let end = End {
            number: unsigned(row, 0)?,
            hash: hash(row, 1)?,
        };
        let parts: i32 = get(row, 3)?;
        let mut hasher = blake3::Hasher::new();
        let whole = each_part(session, shard, end.number, parts, pace, &mut |bytes| {
            hasher.update(bytes);
            Ok(())
        });
        match whole {
            Ok(()) if hasher.finalize().as_bytes() == &hash(row, 4)?.0 => {}
            Err(error @ (StoreError::Retryable(_) | StoreError::Stopped)) => return Err(error),
            _ => {
                let number = end.number;
                warnings.push(format!(
                    "the snapshot after batch {number} is damaged and was passed over"
                ));
                continue;
            }
        }
        let restored = each_part(session, shard, end.number, parts, pace, &mut |bytes| {
            for record in bytes.as_chunks::<RECORD_SIZE>().0 {
                StateRecord::decode(record)
                    .map_err(Into::into)
                    .and_then(|record| replica.restore(&record))
                    .map_err(|error| {
                        fatal(format!("the snapshot after batch {}: {error}", end.number))
                    })?;
            }
            Ok(())
        });
        restored.map_err(|error| {
            fatal(format!(
                "{error} (while a snapshot was restored: start again)"
            ))
        })?;
        return Ok(Position {
            end,
            recovered: Recovered {
                last_batch: end.number,
                last_hash: end.hash,
                last_sequence: unsigned(row, 2)?,
                last_stamp: get(row, 7)?,
                sources: sources(row, 5)?,
                ..Recovered::default()
            },
        });
    }
    Ok(Position::default())
}

fn each_part(
    session: &Session,
    shard: u16,
    batch: u64,
    parts: i32,
    pace: Pace<'_>,
    take: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    for part in 0..parts {
        let row = session.row(
            "SELECT records FROM snapshot_parts WHERE shard = $1 AND batch = $2 AND part = $3",
            &[&shard.cast_signed(), &signed(batch)?, &part],
        )?;
        let row = row.ok_or_else(|| fatal(format!("part {part} is missing")))?;
        let bytes: &[u8] = get(&row, 0)?;
        take(bytes)?;
        pace(bytes.len())?;
    }
    Ok(())
}

/// Hears how many bytes were read or written just now, and takes its time.
///
/// # Errors
/// Whoever gives one says.
pub(super) type Pace<'a> = &'a dyn Fn(usize) -> Result<(), StoreError>;

/// The helper's own.
///
/// # Errors
/// `Stopped` once it is to end.
fn at_pace(stop: &Stop, bytes: usize) -> Result<(), StoreError> {
    let nanos = bytes as u64 * 1_000_000_000 / PACE_BYTES_PER_S;
    if stop.wait(Duration::from_nanos(nanos)) {
        return Err(StoreError::Stopped);
    }
    Ok(())
}

/// The helper. Dropped, it ends before the next page.
pub(super) struct Keeper {
    /// `None` once it is to end.
    due: Option<Sender<u64>>,
    stop: Stop,
    told: Arc<Mutex<Told>>,
    thread: Option<JoinHandle<()>>,
    /// Events that make a snapshot due, if the last one has no more records, and those since then.
    every: u64,
    events: u64,
}

/// What the helper tells of its work.
#[derive(Default)]
struct Told {
    /// Records of the last snapshot that it made; while it makes one, more than there can be events.
    records: u64,
    /// Why the last one could not be made.
    failed: Option<String>,
}

impl Keeper {
    pub(super) fn start(
        options: &PostgresOptions,
        request: &OpenRequest,
        every: u64,
    ) -> Result<Self, StoreError> {
        let (due, todo) = channel::<u64>();
        let (stop, told) = (Stop::default(), Arc::new(Mutex::new(Told::default())));
        let (stopped, telling) = (stop.clone(), Arc::clone(&told));
        let (options, shard) = (options.clone(), request.shard);
        let replicas = Arc::clone(&request.replicas);
        let thread = std::thread::Builder::new()
            .name("stockade-snapshots".to_owned())
            .spawn(move || {
                for batch in &todo {
                    let made = catch_unwind(AssertUnwindSafe(|| {
                        make(&options, shard, batch, &replicas, &stopped)
                    }));
                    let made = made.unwrap_or_else(|_| Err(fatal("the replica panicked")));
                    let mut telling = telling.lock();
                    let done = made.map_err(|error| error.to_string());
                    telling.records = *done.as_ref().unwrap_or(&0);
                    telling.failed = done.err().filter(|_| !stopped.is_set());
                }
            });
        let thread = thread.map_err(|error| {
            StoreError::Retryable(format!("a thread can't be started: {error}"))
        })?;
        Ok(Self {
            due: Some(due),
            stop,
            told,
            thread: Some(thread),
            every,
            events: 0,
        })
    }

    /// A batch of so many events was committed.
    pub(super) fn committed(&mut self, batch: u64, events: u64) {
        self.events += events;
        let mut told = self.told.lock();
        if self.events >= self.every
            && self.events >= told.records
            && let Some(due) = &self.due
        {
            self.events = 0;
            told.records = u64::MAX;
            // A helper that has ended can only have panicked, outside of what it catches.
            let _ = due.send(batch);
        }
    }

    pub(super) fn warning(&self) -> Option<String> {
        let failed = self.told.lock().failed.clone()?;
        Some(format!(
            "no snapshot could be made, the log is whole without it: {failed}"
        ))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop.stop();
        self.due = None;
        if let Some(thread) = self.thread.take() {
            // What it caught it has told.
            drop(thread.join());
        }
    }
}

/// Makes a snapshot of the log up to a batch, or a little further; how many records it has.
fn make(
    options: &PostgresOptions,
    shard: u16,
    batch: u64,
    replicas: &ReplicaFactory,
    stop: &Stop,
) -> Result<u64, StoreError> {
    let session = Session::connect(options)?;
    // No part waits for the disk, and no commit of the writer for a part: the server's log keeps the order, so that a row that
    // outlives a crash has its parts.
    session.run("SET synchronous_commit = off")?;
    let mut replica = replicas();
    let pace: Pace<'_> = &|bytes| at_pace(stop, bytes);
    // A damaged one is told when it is restored from.
    let mut position = restore(&session, shard, &mut *replica, &mut Vec::new(), pace)?;
    while position.end.number < batch {
        let mut bytes = 0;
        let read = read_page(&session, shard, &mut position, &mut |batch| {
            bytes += batch.event_records().len() * RECORD_SIZE;
            let applied = replica.apply(batch);
            applied.map_err(|error| fatal(error.to_string()))
        })?;
        pace(bytes)?;
        if read < PAGE && position.end.number < batch {
            return Err(fatal(format!(
                "the log ends with batch {}",
                position.end.number
            )));
        }
    }
    session.rows(
        "DELETE FROM snapshot_parts p WHERE p.shard = $1
         AND NOT EXISTS (SELECT FROM snapshots s WHERE s.shard = p.shard AND s.batch = p.batch)",
        &[&shard.cast_signed()],
    )?;
    let mut parts = Parts {
        session: &session,
        pace,
        shard,
        batch: signed(position.end.number)?,
        part: 0,
        count: 0,
        records: Vec::with_capacity(PART_RECORDS * RECORD_SIZE),
        hasher: blake3::Hasher::new(),
        done: Ok(()),
    };
    replica.export(&mut |record| parts.push(record));
    parts.flush();
    let Parts {
        part,
        count,
        hasher,
        done,
        ..
    } = parts;
    done?;
    let recovered = &position.recovered;
    let sources = recovered.sources.iter();
    let (ids, positions): (Vec<i64>, Vec<i64>) = sources
        .map(|source| (source.source.cast_signed(), source.position.cast_signed()))
        .unzip();
    // Another writer's helper may have removed some meanwhile.
    let made = session.rows(
        "INSERT INTO snapshots (shard, batch, batch_hash, stamp, sequence, source_ids, source_positions, parts, hash)
         SELECT $1::int2, $2::int8, $3, $4, $5, $6, $7, $8::int4, $9
         WHERE $8 = (SELECT count(*) FROM snapshot_parts WHERE shard = $1 AND batch = $2)
         RETURNING batch",
        &[
            &shard.cast_signed(),
            &signed(position.end.number)?,
            &position.end.hash.0.as_slice(),
            &recovered.last_stamp,
            &signed(recovered.last_sequence)?,
            &ids,
            &positions,
            &part,
            &hasher.finalize().as_bytes().as_slice(),
        ],
    )?;
    if made.is_empty() {
        return Err(fatal("another writer's helper makes one"));
    }
    session.rows(
        "WITH kept AS (SELECT min(batch) AS batch FROM
                       (SELECT batch FROM snapshots WHERE shard = $1 ORDER BY batch DESC LIMIT $2) AS newest),
              old AS (DELETE FROM snapshots s USING kept WHERE s.shard = $1 AND s.batch < kept.batch)
         DELETE FROM snapshot_parts p USING kept WHERE p.shard = $1 AND p.batch < kept.batch",
        &[&shard.cast_signed(), &KEPT],
    )?;
    Ok(count)
}

/// The parts of a snapshot that is being written. The first error stops it and is told at the end.
struct Parts<'a> {
    session: &'a Session,
    pace: Pace<'a>,
    shard: u16,
    batch: i64,
    part: i32,
    count: u64,
    records: Vec<u8>,
    hasher: blake3::Hasher,
    done: Result<(), StoreError>,
}

impl Parts<'_> {
    fn push(&mut self, record: &StateRecord) {
        self.count += 1;
        self.records.extend_from_slice(&record.encode());
        if self.records.len() == PART_RECORDS * RECORD_SIZE {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.done.is_ok() && !self.records.is_empty() {
            let written = self.session.rows(
                "INSERT INTO snapshot_parts (shard, batch, part, records) VALUES ($1, $2, $3, $4)",
                &[
                    &self.shard.cast_signed(),
                    &self.batch,
                    &self.part,
                    &self.records,
                ],
            );
            self.done = written.and_then(|_| (self.pace)(self.records.len()));
            self.hasher.update(&self.records);
            self.part += 1;
        }
        self.records.clear();
    }
}
