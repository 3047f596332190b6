//! One sink, and what it has not taken: first what is in the log alone, then the batches that wait.

use super::{BATCHES_MAX, Patience};
use crate::events::EventSink;
use crate::store::ReadLog;
use crate::types::Batch;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Sink {
    sink: Box<dyn EventSink>,
    /// It has said where it goes on, since the last error.
    has_resumed: bool,
    /// Batches that come before those that wait, and are in the log alone: from and to.
    missing: Option<(u64, u64)>,
    waiting: VecDeque<Arc<Batch>>,
    /// The number after the last batch that came this way.
    next: u64,
    patience: Patience,
}

impl Sink {
    /// On a log that ends with batch `next - 1`.
    pub(super) fn new(sink: Box<dyn EventSink>, next: u64) -> Self {
        Self {
            sink,
            has_resumed: false,
            missing: None,
            waiting: VecDeque::new(),
            next,
            patience: Patience::default(),
        }
    }

    /// Takes new batches; `gap` are those that were dropped before them.
    pub(super) fn take(
        &mut self,
        gap: Option<(u64, u64)>,
        batches: &VecDeque<Arc<Batch>>,
        has_log: bool,
    ) {
        if let Some((from, to)) = gap {
            if has_log {
                self.miss(from, to);
            } else {
                self.sink.gap(from, to);
            }
        }
        self.waiting.extend(batches.iter().cloned());
        let last = batches.back().map(|batch| batch.header.number);
        self.next = last.map_or(self.next, |last| last + 1);
        while self.waiting.len() > BATCHES_MAX {
            if let Some(dropped) = self.waiting.pop_front() {
                let number = dropped.header.number;
                let from = self.missing.map_or(number, |(from, _)| from);
                self.missing = Some((from, number + 1));
            }
        }
    }

    /// The batches up to `to` are in the log alone, and those that wait are taken from there too.
    fn miss(&mut self, from: u64, to: u64) {
        let waiting = self.waiting.front().map(|batch| batch.header.number);
        let before = self.missing.map(|(from, _)| from);
        let first = before.into_iter().chain(waiting).fold(from, u64::min);
        self.waiting.clear();
        self.missing = Some((first, to));
        self.next = self.next.max(to);
    }

    pub(super) fn is_done(&self) -> bool {
        self.has_resumed && self.missing.is_none() && self.waiting.is_empty()
    }

    /// When something is to be offered. `None`: not before there is mail.
    pub(super) fn due(&self) -> Option<Duration> {
        (!self.is_done()).then_some(self.patience.not_before)
    }

    pub(super) fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Offers everything once.
    pub(super) fn offer(
        &mut self,
        now: Duration,
        log: Option<&mut Box<dyn ReadLog>>,
    ) -> Result<(), String> {
        let offered = self.deliver(log);
        if offered.is_ok() {
            self.patience.succeeded();
        } else {
            self.has_resumed = false;
            self.patience.failed(now);
        }
        offered
    }

    fn deliver(&mut self, log: Option<&mut Box<dyn ReadLog>>) -> Result<(), String> {
        self.resume()?;
        self.catch_up(log)?;
        while let Some(batch) = self.waiting.front() {
            let published = self.sink.publish(batch);
            published.map_err(|error| error.to_string())?;
            self.waiting.pop_front();
            self.patience.succeeded();
        }
        Ok(())
    }

    /// Asks where it goes on.
    fn resume(&mut self) -> Result<(), String> {
        if self.has_resumed {
            return Ok(());
        }
        if let Some(from) = self.sink.resume().map_err(|error| error.to_string())? {
            let waiting = self.waiting.front().map(|batch| batch.header.number);
            let to = waiting.unwrap_or(self.next);
            self.missing = (from < to).then_some((from, to));
        }
        self.has_resumed = true;
        Ok(())
    }

    /// Hands over what is missing, as far as the log has it.
    fn catch_up(&mut self, log: Option<&mut Box<dyn ReadLog>>) -> Result<(), String> {
        let Some((from, to)) = self.missing else {
            return Ok(());
        };
        let Some(log) = log else {
            self.sink.gap(from, to);
            self.missing = None;
            return Ok(());
        };
        let (mut next, mut failed) = (from, None);
        let read = log.read(from, &mut |batch| {
            let number = batch.header.number;
            // Where the log begins later, what is before is gone.
            let begins = number.min(to);
            if begins > next {
                self.sink.gap(next, begins);
                next = begins;
            }
            if number >= to {
                return false;
            }
            if !batch.is_empty()
                && let Err(error) = self.sink.publish(batch)
            {
                failed = Some(error.to_string());
                return false;
            }
            next = number + 1;
            next < to
        });
        self.missing = (next < to).then_some((next, to));
        match (failed, read) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(format!("the log can't be read for a sink: {error}")),
            (None, Ok(())) if next < to => Err(format!(
                "the log ends before batch {next}, which a sink has missed"
            )),
            (None, Ok(())) => Ok(()),
        }
    }

    /// Waits a little for what it has taken to arrive.
    pub(super) fn flush(&mut self) -> Result<(), String> {
        self.sink.flush().map_err(|error| error.to_string())
    }
}
