//! Who hears of committed events: the trait [`EventSink`], and one in memory.
//!
//! The engine hands over committed batches in order, off the answer's path. A sink that fails is asked again with a
//! backoff. One that knows where it stands ([`EventSink::resume`]) gets what it missed from the log, if the engine was given a way
//! to read it, be it after a restart or because it fell behind. Any other is told of the gap and goes on after it.

use crate::types::{Batch, Event};
use parking_lot::Mutex;
use std::sync::Arc;

/// A sink could not take a batch. The engine offers it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the sink can't take the batch: {0}")]
pub struct SinkError(pub String);

/// Who hears of committed events. Called by one thread, the announcer.
pub trait EventSink: Send {
    /// The number of the batch to go on with, 1 for the first there is. Asked before the first batch and again after an error, so
    /// that what was taken and didn't arrive comes again. `None`: whatever comes next, after an error the same batch.
    ///
    /// # Errors
    /// If it can't tell just now; it is asked again.
    fn resume(&mut self) -> Result<Option<u64>, SinkError> {
        Ok(None)
    }

    /// Takes a committed batch. Batches come in order; some may come again after an error, or after a resume.
    ///
    /// # Errors
    /// If it was not taken.
    fn publish(&mut self, batch: &Batch) -> Result<(), SinkError>;

    /// Waits a little for what was taken to arrive. Asked at the end, until it has or the engine waits no longer.
    ///
    /// # Errors
    /// If it hasn't.
    fn flush(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// The batches `from..to` (numbers) were not handed over, because the sink was too far behind, or resumed before the log
    /// begins.
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
