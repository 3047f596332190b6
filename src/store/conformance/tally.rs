//! A fold of batches: the replica that knows no inventory.

use crate::store::{Replica, ReplicaError};
use crate::types::{Batch, BatchHash, SkuId, SourcePosition, StateRecord, Timestamp, UserId};

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
    /// The stamp of the last batch.
    pub stamp: Timestamp,
    /// What was restored: the halves of `fold` and `last_hash` come one by one.
    restored: usize,
}

impl Tally {
    /// Forgets how it came about, so that it compares equal to one that was not restored.
    pub(crate) fn settle(&mut self) {
        self.restored = 0;
    }
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
