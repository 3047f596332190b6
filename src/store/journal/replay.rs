//! Gives a log to a replica: a thread reads and verifies, the caller applies.
//!
//! ```text
//! reader thread: read 2 MiB, BLAKE3, decode ──groups of batches──► calling thread: apply
//!                     ▲                                                │
//!                     └────────────── used groups ─────────────────────┘
//! ```
//!
//! Groups bound what is in flight and keep a log of many small batches from waking a thread for each.

use super::disk::Disk;
use super::scan::{ChainEnd, Scanned, scan};
use super::segment::{Segment, segment_name, segments};
use super::snapshot::{self, SnapshotHeader};
use super::{damaged, fatal};
use crate::store::{Progress, Replica, StoreError};
use crate::types::Batch;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;

/// A group is handed over when it holds so many bytes,
const GROUP_BYTES: u64 = 1 << 20;
/// or so many batches.
const GROUP_BATCHES: usize = 256;
/// Groups in flight.
const GROUPS: usize = 4;

/// Batches on their way to the replica; those behind `used` only lend their buffers.
#[derive(Default)]
struct Group {
    batches: Vec<Batch>,
    used: usize,
    begun_at: u64,
    read: u64,
}

/// What was recovered, and from where.
pub(super) struct Replayed {
    pub(super) scanned: Scanned,
    /// The segments that were read.
    pub(super) segments: Vec<Segment>,
    pub(super) snapshot: Option<SnapshotHeader>,
    /// Snapshots that were passed over.
    pub(super) warnings: Vec<String>,
}

/// Restores the last usable snapshot, if `from_snapshot`, and applies every batch after it.
pub(super) fn replay(
    disk: &dyn Disk,
    shard: Option<u16>,
    from_snapshot: bool,
    replica: &mut dyn Replica,
    progress: &mut dyn FnMut(Progress),
) -> Result<Replayed, StoreError> {
    let mut warnings = Vec::new();
    let snapshot = if from_snapshot {
        snapshot::newest(disk, shard, &mut warnings)?
    } else {
        None
    };
    let (first, shard, from) = match &snapshot {
        Some(header) => (
            header.next_segment,
            Some(header.shard),
            header.chain.clone(),
        ),
        None => (0, shard, ChainEnd::default()),
    };
    let segments = segments(disk, shard, first)?;
    if let Some(header) = &snapshot {
        // There always is one: the active segment at least.
        if segments.first().map(|segment| segment.header.index) != Some(first) {
            let what = "the file is missing, a snapshot says that it goes on there";
            return Err(damaged(disk, &segment_name(first), 0, what));
        }
        snapshot::restore(disk, header, replica)?;
    }
    let total = segments.iter().map(|segment| segment.len).sum();
    let scanned = pipeline(disk, &segments, from, total, replica, progress)?;
    Ok(Replayed {
        scanned,
        segments,
        snapshot,
        warnings,
    })
}

/// Gives the batches from number `from` on, in order, for as long as `take` returns true.
pub(super) fn read_from(
    disk: &dyn Disk,
    from: u64,
    take: &mut dyn FnMut(&Batch) -> bool,
) -> Result<(), StoreError> {
    let all = segments(disk, None, 0)?;
    let has_first = all
        .first()
        .is_some_and(|first| first.header.base_number == 0);
    let newest_of = |is_wanted: &dyn Fn(u64) -> bool| {
        snapshot::newest_of(disk, None, is_wanted, &mut Vec::new())
    };
    // The one that is nearest before what is asked for; without one and without the log's beginning, whatever there is.
    let snapshot = match newest_of(&|batch| batch < from)? {
        None if !has_first => newest_of(&|_| true)?,
        before => before,
    };
    let (first, chain) = match snapshot {
        Some(header) => (header.next_segment, header.chain),
        None => (0, ChainEnd::default()),
    };
    let after: Vec<Segment> = all
        .into_iter()
        .filter(|segment| segment.header.index >= first)
        .collect();
    let mut is_done = false;
    let read = scan(disk, &after, chain, &mut |batch, _| {
        is_done = batch.header.number >= from && !take(batch);
        if is_done {
            Err(fatal("nobody wants more"))
        } else {
            Ok(())
        }
    });
    if is_done { Ok(()) } else { read.map(drop) }
}

fn pipeline(
    disk: &dyn Disk,
    segments: &[Segment],
    from: ChainEnd,
    total: u64,
    replica: &mut dyn Replica,
    progress: &mut dyn FnMut(Progress),
) -> Result<Scanned, StoreError> {
    let (full, groups) = sync_channel::<Group>(GROUPS);
    let (used, empty) = channel::<Group>();
    thread::scope(|scope| {
        let reader = thread::Builder::new()
            .name("journal-read".to_owned())
            .spawn_scoped(scope, move || read(disk, segments, from, &full, &empty))
            .map_err(|error| fatal(format!("the thread that reads the log: {error}")))?;
        let mut applied = Ok(());
        for group in groups {
            applied = apply(&group, replica);
            if applied.is_err() {
                break;
            }
            progress(Progress {
                // A segment may have grown since it was counted.
                done: group.read.min(total),
                total: Some(total),
            });
            // Nobody takes it when the reader has finished.
            let _ = used.send(group);
        }
        // A reader that still sends learns by it that nobody listens.
        let scanned = reader
            .join()
            .unwrap_or_else(|_| Err(fatal("the thread that reads the log panicked")));
        applied.and(scanned)
    })
}

fn apply(group: &Group, replica: &mut dyn Replica) -> Result<(), StoreError> {
    for batch in &group.batches[..group.used] {
        replica
            .apply(batch)
            .map_err(|error| fatal(format!("batch {}: {error}", batch.header.number)))?;
    }
    Ok(())
}

fn read(
    disk: &dyn Disk,
    segments: &[Segment],
    from: ChainEnd,
    full: &SyncSender<Group>,
    empty: &Receiver<Group>,
) -> Result<Scanned, StoreError> {
    let mut group = Group::default();
    let scanned = scan(disk, segments, from, &mut |batch, read| {
        if group.used == group.batches.len() {
            group.batches.push(Batch::default());
        }
        std::mem::swap(batch, &mut group.batches[group.used]);
        group.used += 1;
        group.read = read;
        if read - group.begun_at < GROUP_BYTES && group.used < GROUP_BATCHES {
            return Ok(());
        }
        let mut next = empty.try_recv().unwrap_or_default();
        (next.used, next.begun_at) = (0, read);
        send(full, std::mem::replace(&mut group, next))
    });
    // What was read before a damaged place is whole; but the open fails, so nobody needs it.
    let scanned = scanned?;
    send(full, group)?;
    Ok(scanned)
}

fn send(full: &SyncSender<Group>, group: Group) -> Result<(), StoreError> {
    // The caller reports the replica's error, not this one.
    full.send(group)
        .map_err(|_| fatal("the replica refused a batch"))
}
