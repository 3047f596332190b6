//! Who hears of committed events: the trait [`EventSink`], and one in memory.
//!
//! The engine hands over committed batches in order, off the answer's path. A sink that fails is asked again with a
//! backoff. One that falls too far behind is told of the gap and goes on after it: the log has what it missed.

use crate::types::{Batch, Event};
use parking_lot::Mutex;
use std::sync::Arc;

/// A sink could not take a batch. The engine offers it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the sink can't take the batch: {0}")]
pub struct SinkError(pub String);

/// Who hears of committed events. Called by one thread, the announcer.
pub trait EventSink: Send {
    /// Takes a committed batch. Batches come in order; one may come again after an error.
    ///
    /// # Errors
    /// If it was not taken.
    fn publish(&mut self, batch: &Batch) -> Result<(), SinkError>;

    /// The batches `from..to` (numbers) were not handed over, because the sink was too far behind.
    fn gap(&mut self, from: u64, to: u64) {
        let _ = (from, to);
    }
}

/// Collects events in this process; clones share them.
#[derive(Debug, Clone, Default)]
pub struct MemorySink(Arc<Mutex<Vec<Event>>>);

impl MemorySink {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// The events so far, in order.
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().clone()
    }
}

impl EventSink for MemorySink {
    fn publish(&mut self, batch: &Batch) -> Result<(), SinkError> {
        let events: Result<Vec<Event>, _> = batch.events().collect();
        let events = events.map_err(|error| SinkError(error.to_string()))?;
        let mut known = self.0.lock();
        let last = known.last().map_or(0, |event| event.sequence);
        known.extend(events.into_iter().filter(|event| event.sequence > last));
        Ok(())
    }
}
