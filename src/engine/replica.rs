//! The allocator as a store sees it: something that takes a snapshot's records and batches.

use crate::allocator::{Allocator, Limits, Violation};
use crate::store::{Replica, ReplicaError};
use crate::types::{Batch, StateRecord};

impl From<Violation> for ReplicaError {
    fn from(violation: Violation) -> Self {
        Self::Contradiction {
            sequence: violation.sequence,
            what: violation.what,
        }
    }
}

impl Replica for Allocator {
    fn restore(&mut self, record: &StateRecord) -> Result<(), ReplicaError> {
        Ok(Allocator::restore(self, record)?)
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), ReplicaError> {
        Ok(self.apply_batch(batch)?)
    }

    fn export(&self, out: &mut dyn FnMut(&StateRecord)) {
        Allocator::export(self, out);
    }
}

/// Copies that a store makes beside the writer start small: they live for one snapshot.
pub(super) fn small(limits: Limits, seed: u64) -> Box<dyn Replica> {
    Box::new(Allocator::new(
        Limits {
            presize: 0,
            ..limits
        },
        seed,
    ))
}
