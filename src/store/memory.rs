//! The reference store: a log in memory that outlives its writers, for tests and for engines that need no
//! durability. Its recovery is real: it keeps encoded batches and nothing else.

use super::{OpenRequest, Progress, ReadLog, Recovered, Replica, Store, StoreError};
use crate::types::{Batch, BatchHash, Token};
use parking_lot::Mutex;
use std::sync::Arc;

/// The log itself; clones are the same log.
#[derive(Debug, Clone, Default)]
pub struct MemoryLog(Arc<Mutex<Log>>);

#[derive(Debug, Default)]
struct Log {
    token: Token,
    last_batch: u64,
    last_hash: BatchHash,
    batches: Vec<Vec<u8>>,
}

impl ReadLog for MemoryLog {
    fn read(&mut self, from: u64, take: &mut dyn FnMut(&Batch) -> bool) -> Result<(), StoreError> {
        let first = usize::try_from(from.saturating_sub(1)).unwrap_or(usize::MAX);
        for index in first.. {
            // One at a time, so that the writer never waits for whoever takes them.
            let Some(bytes) = self.0.lock().batches.get(index).cloned() else {
                break;
            };
            let batch =
                Batch::decode(&bytes).map_err(|error| StoreError::Fatal(error.to_string()))?;
            if !take(&batch) {
                break;
            }
        }
        Ok(())
    }
}

/// A writer's access to a [`MemoryLog`].
#[derive(Debug, Default)]
pub struct MemoryStore {
    log: MemoryLog,
    token: Token,
}

impl MemoryStore {
    /// On a log of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// On a log that another store may have written.
    pub fn on(log: &MemoryLog) -> Self {
        Self {
            log: log.clone(),
            token: Token::default(),
        }
    }
}

impl Store for MemoryStore {
    fn open(
        &mut self,
        request: &OpenRequest,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, StoreError> {
        let mut log = self.log.0.lock();
        let mut recovered = Recovered::default();
        for (bytes, done) in log.batches.iter().zip(1..) {
            let batch =
                Batch::decode(bytes).map_err(|error| StoreError::Fatal(error.to_string()))?;
            replica
                .apply(&batch)
                .map_err(|error| StoreError::Fatal(error.to_string()))?;
            recovered.last_stamp = batch.header.stamp;
            recovered.last_sequence = batch.last_sequence();
            recovered.batches_read = done;
            recovered.events_read += batch.event_records().len() as u64;
            recovered.sources.clone_from(&batch.header.sources);
            progress(Progress {
                done,
                total: Some(log.batches.len() as u64),
            });
        }
        replica
            .complete()
            .map_err(|error| StoreError::Fatal(error.to_string()))?;
        log.token = Token {
            epoch: log.token.epoch + 1,
            writer: request.writer,
        };
        self.token = log.token;
        recovered.token = log.token;
        recovered.last_batch = log.last_batch;
        recovered.last_hash = log.last_hash;
        Ok(recovered)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let mut log = self.log.0.lock();
        if log.token != self.token || batch.header.token != self.token {
            return Err(StoreError::Fenced {
                epoch: log.token.epoch,
            });
        }
        let number = batch.header.number;
        if number == log.last_batch && number > 0 {
            let same = batch.hash() == log.last_hash;
            return if same {
                Ok(())
            } else {
                Err(StoreError::Fork { number })
            };
        }
        if number != log.last_batch + 1 {
            return Err(StoreError::Behind {
                last: log.last_batch,
                next: number,
            });
        }
        if batch.header.prev_hash != log.last_hash {
            return Err(StoreError::Fork { number });
        }
        let mut bytes = Vec::new();
        batch.encode_into(&mut bytes);
        log.batches.push(bytes);
        log.last_batch = number;
        log.last_hash = batch.hash();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    #[test]
    fn the_memory_store_is_a_store() {
        let report = conformance::prove(|| {
            let log = MemoryLog::default();
            move || MemoryStore::on(&log)
        });
        assert!(report.is_ok(), "{report:?}");
    }
}
