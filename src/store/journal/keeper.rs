//! Makes snapshots from closed segments, and keeps, archives or removes what they cover. It sees neither the live state nor
//! the active segment, and no commit waits for it.
//!
//! Invariants. I1: a segment is removed only if the second newest snapshot covers it, so a damaged newest one never
//! costs the log. I2: it stops between two batches when told. I3: a failure, also a panic of the replica, is a
//! warning and leaves the log as it is.

use super::disk::Disk;
use super::scan::{ChainEnd, scan};
use super::segment::segments;
use super::snapshot::{self, snapshot_name, snapshots};
use super::worker::Notes;
use super::{JournalOptions, Retention, fatal};
use crate::store::{ReplicaFactory, StoreError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Snapshots that stay.
const SNAPSHOTS_KEPT: usize = 2;
/// Segments that will not change any more.
#[derive(Clone, Copy)]
pub(super) struct Closed {
    /// The last of them.
    pub(super) index: u64,
    /// How much longer the closed log has become.
    pub(super) bytes: u64,
    /// The last batch in them.
    pub(super) last_batch: u64,
}

/// Makes snapshots and removes what they cover.
pub(super) struct Keeper {
    disk: Arc<dyn Disk>,
    options: JournalOptions,
    shard: u16,
    replicas: ReplicaFactory,
    notes: Notes,
    /// Bytes in closed segments since the last snapshot.
    bytes: u64,
}

impl Keeper {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        options: JournalOptions,
        shard: u16,
        replicas: ReplicaFactory,
        notes: Notes,
    ) -> Self {
        Self {
            disk,
            options,
            shard,
            replicas,
            notes,
            bytes: 0,
        }
    }

    /// The closed log has become longer.
    pub(super) fn tend(&mut self, closed: Closed) {
        self.bytes += closed.bytes;
        let due = self.options.snapshot_every_bytes;
        if due.is_none_or(|every| self.bytes < every) || self.notes.stopped() {
            return;
        }
        // Also after a failure: it is tried again after as many bytes, not with every segment.
        self.bytes = 0;
        let tended = catch_unwind(AssertUnwindSafe(|| self.snapshot(&closed)));
        let error = match tended {
            Ok(Ok(())) => return,
            Ok(Err(_)) if self.notes.stopped() => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the replica panicked".to_owned(),
        };
        self.notes.warn(format!(
            "no snapshot could be made, the log is whole without it: {error}"
        ));
    }

    /// Makes a snapshot of the closed segments.
    fn snapshot(&self, closed: &Closed) -> Result<(), StoreError> {
        let disk = &*self.disk;
        let mut warnings = Vec::new();
        let last = snapshot::newest(disk, Some(self.shard), &mut warnings)?;
        for warning in warnings {
            self.notes.warn(warning);
        }
        let mut replica = (self.replicas)();
        let (first, from) = match &last {
            Some(header) => {
                snapshot::restore(disk, header, &mut *replica)?;
                (header.next_segment, header.chain.clone())
            }
            None => (0, ChainEnd::default()),
        };
        let mut segments = segments(disk, Some(self.shard), first)?;
        segments.retain(|segment| segment.header.index <= closed.index);
        let before = from.number;
        let scanned = scan(disk, &segments, from, &mut |batch, _| {
            if self.notes.stopped() {
                return Err(fatal("stopped"));
            }
            replica
                .apply(batch)
                .map_err(|error| fatal(error.to_string()))
        })?;
        if scanned.chain.number != closed.last_batch {
            let what = format!(
                "the closed segments end with batch {} instead of {}",
                scanned.chain.number, closed.last_batch
            );
            return Err(fatal(what));
        }
        if scanned.chain.number > before {
            let next_segment = closed.index + 1;
            snapshot::write(disk, self.shard, &scanned.chain, next_segment, &*replica)
                .map_err(|error| fatal(format!("writing a snapshot: {error}")))?;
        }
        self.retain()
            .map_err(|error| fatal(format!("removing old segments: {error}")))
    }

    /// Removes old snapshots, and old segments as the policy says.
    fn retain(&self) -> std::io::Result<()> {
        let disk = &*self.disk;
        let batches = snapshots(disk)?;
        let Some(&covering) = batches.get(SNAPSHOTS_KEPT - 1) else {
            return Ok(());
        };
        let covered = match snapshot::verify(disk, covering) {
            Ok(header) => header.next_segment,
            // What a damaged snapshot covers must stay.
            Err(_) => 0,
        };
        for &batch in batches.iter().skip(SNAPSHOTS_KEPT) {
            disk.remove(&snapshot_name(batch))?;
        }
        if self.options.retention == Retention::Keep {
            return disk.sync();
        }
        let names = disk.list()?;
        let mut old: Vec<u64> = names
            .iter()
            .filter_map(|name| super::segment::segment_index(name))
            .filter(|&index| index < covered)
            .collect();
        // Oldest first, each durably: what is left has no gap.
        old.sort_unstable();
        for index in old {
            let name = super::segment::segment_name(index);
            match &self.options.retention {
                Retention::Keep => {}
                Retention::Archive(to) => disk.archive(&name, to)?,
                Retention::Delete => {
                    disk.remove(&name)?;
                    disk.sync()?;
                }
            }
        }
        Ok(())
    }
}
