//! Who tells caches and sinks, off the answer's path: an inbox that never makes the committer wait, and deliveries that
//! are repeated with a backoff until they succeed.
//!
//! For caches the inbox keeps the newest stock of each SKU, so a slow one skips versions, never the last. For sinks it
//! keeps the last [`BATCHES_MAX`] batches. A sink that falls behind further, or stood further back when the engine started,
//! gets what is missing from the log, and only then what waits; where nobody can read the log it is told of the gap.

use super::reads::Reads;
use super::turn::Turn;
use crate::cache::{Cache, CacheEntry};
use crate::events::EventSink;
use crate::store::ReadLog;
use crate::types::{Batch, SkuId};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Batches that wait for a slow sink at most.
pub(super) const BATCHES_MAX: usize = 1_024;
const BACKOFF_MIN: Duration = Duration::from_millis(1);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

pub(super) struct Inbox {
    mail: Mutex<Mail>,
    arrived: Condvar,
    has_caches: bool,
    has_sinks: bool,
}

#[derive(Default)]
struct Mail {
    stock: BTreeMap<SkuId, CacheEntry>,
    batches: VecDeque<Arc<Batch>>,
    /// Batches that were dropped, since the last delivery: from and to.
    gap: Option<(u64, u64)>,
    /// No more mail comes; `true`: what is there is not delivered either.
    closed: Option<bool>,
}

impl Inbox {
    pub(super) fn new(has_caches: bool, has_sinks: bool) -> Self {
        Self {
            mail: Mutex::default(),
            arrived: Condvar::new(),
            has_caches,
            has_sinks,
        }
    }

    /// Takes what a committed turn changed.
    pub(super) fn put(&self, turn: &Turn, epoch: u64, reads: &Reads) {
        let mut mail = self.mail.lock();
        if self.has_caches {
            for &availability in &turn.stock {
                if let Some(name) = reads.name(availability.sku) {
                    mail.stock.insert(
                        availability.sku,
                        CacheEntry {
                            name,
                            epoch,
                            availability,
                        },
                    );
                }
            }
        }
        if self.has_sinks && !turn.batch.is_empty() {
            mail.batches.push_back(Arc::new(turn.batch.clone()));
            if mail.batches.len() > BATCHES_MAX
                && let Some(dropped) = mail.batches.pop_front()
            {
                let number = dropped.header.number;
                mail.gap = Some((mail.gap.map_or(number, |(from, _)| from), number + 1));
            }
        }
        drop(mail);
        self.arrived.notify_one();
    }

    /// No more mail comes. Delivers what is there, unless it is told not to.
    pub(super) fn close(&self, discard: bool) {
        let mut mail = self.mail.lock();
        mail.closed = Some(mail.closed.unwrap_or(false) || discard);
        drop(mail);
        self.arrived.notify_all();
    }
}

pub(super) struct Announcer {
    inbox: Arc<Inbox>,
    caches: Vec<Box<dyn Cache>>,
    sinks: Vec<Sink>,
    log: Option<Box<dyn ReadLog>>,
    /// For each cache, entries that it has not taken.
    unwritten: Vec<BTreeMap<SkuId, CacheEntry>>,
}

struct Sink {
    sink: Box<dyn EventSink>,
    /// It has said where it goes on, since the last error.
    has_resumed: bool,
    /// Batches that come before those that wait, and are in the log alone: from and to.
    missing: Option<(u64, u64)>,
    waiting: VecDeque<Arc<Batch>>,
    /// The number after the last batch that came this way.
    next: u64,
}

impl Sink {
    /// The batches up to `to` are in the log alone, and those that wait are taken from there too.
    fn miss(&mut self, from: u64, to: u64) {
        let waiting = self.waiting.front().map(|batch| batch.header.number);
        let before = self.missing.map(|(from, _)| from);
        let first = before.into_iter().chain(waiting).fold(from, u64::min);
        self.waiting.clear();
        self.missing = Some((first, to));
        self.next = self.next.max(to);
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

    /// Offers everything once.
    fn deliver(&mut self, log: Option<&mut Box<dyn ReadLog>>) -> Result<(), String> {
        self.resume()?;
        self.catch_up(log)?;
        while let Some(batch) = self.waiting.front() {
            let published = self.sink.publish(batch);
            published.map_err(|error| error.to_string())?;
            self.waiting.pop_front();
        }
        Ok(())
    }
}

impl Announcer {
    pub(super) fn new(
        inbox: Arc<Inbox>,
        caches: Vec<Box<dyn Cache>>,
        sinks: Vec<Box<dyn EventSink>>,
        log: Option<Box<dyn ReadLog>>,
        next: u64,
    ) -> Self {
        let unwritten = caches.iter().map(|_| BTreeMap::new()).collect();
        let sinks = sinks
            .into_iter()
            .map(|sink| Sink {
                sink,
                has_resumed: false,
                missing: None,
                waiting: VecDeque::new(),
                next,
            })
            .collect();
        Self {
            inbox,
            caches,
            sinks,
            log,
            unwritten,
        }
    }

    /// Delivers until the inbox is closed.
    pub(super) fn run(mut self, warn: impl Fn(Option<String>)) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let closed = self.collect(backoff);
            if closed == Some(true) {
                return;
            }
            match self.deliver() {
                Ok(()) => {
                    if backoff > BACKOFF_MIN {
                        warn(None);
                    }
                    backoff = BACKOFF_MIN;
                    if closed.is_some() && self.is_done() {
                        match self.flush() {
                            Ok(()) => return,
                            Err(error) => warn(Some(error)),
                        }
                    }
                }
                Err(error) => {
                    warn(Some(error));
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    /// Takes the mail; waits for some if nothing is left to deliver, and for the backoff if there is.
    fn collect(&mut self, backoff: Duration) -> Option<bool> {
        let is_idle = self.is_done();
        let inbox = Arc::clone(&self.inbox);
        let mut mail = inbox.mail.lock();
        if !is_idle && backoff > BACKOFF_MIN && mail.closed != Some(true) {
            inbox.arrived.wait_for(&mut mail, backoff);
        }
        while is_idle && mail.stock.is_empty() && mail.batches.is_empty() && mail.closed.is_none() {
            inbox.arrived.wait(&mut mail);
        }
        self.take(&mut mail);
        mail.closed
    }

    fn take(&mut self, mail: &mut Mail) {
        let stock = std::mem::take(&mut mail.stock);
        for unwritten in &mut self.unwritten {
            unwritten.extend(stock.iter().map(|(&sku, entry)| (sku, entry.clone())));
        }
        let gap = mail.gap.take();
        for sink in &mut self.sinks {
            if let Some((from, to)) = gap {
                if self.log.is_some() {
                    sink.miss(from, to);
                } else {
                    sink.sink.gap(from, to);
                }
            }
            sink.waiting.extend(mail.batches.iter().cloned());
            let last = mail.batches.back().map(|batch| batch.header.number);
            sink.next = last.map_or(sink.next, |last| last + 1);
            while sink.waiting.len() > BATCHES_MAX {
                if let Some(dropped) = sink.waiting.pop_front() {
                    let number = dropped.header.number;
                    let from = sink.missing.map_or(number, |(from, _)| from);
                    sink.missing = Some((from, number + 1));
                }
            }
        }
        mail.batches.clear();
    }

    fn is_done(&self) -> bool {
        self.unwritten.iter().all(BTreeMap::is_empty)
            && self
                .sinks
                .iter()
                .all(|sink| sink.has_resumed && sink.missing.is_none() && sink.waiting.is_empty())
    }

    /// What sinks have taken has arrived.
    fn flush(&mut self) -> Result<(), String> {
        for sink in &mut self.sinks {
            sink.sink.flush().map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Offers everything once.
    fn deliver(&mut self) -> Result<(), String> {
        let mut failed = None;
        for (cache, unwritten) in self.caches.iter_mut().zip(&mut self.unwritten) {
            if unwritten.is_empty() {
                continue;
            }
            let entries: Vec<CacheEntry> = unwritten.values().cloned().collect();
            match cache.put(&entries) {
                Ok(()) => unwritten.clear(),
                Err(error) => failed = Some(error.to_string()),
            }
        }
        for sink in &mut self.sinks {
            if let Err(error) = sink.deliver(self.log.as_mut()) {
                sink.has_resumed = false;
                failed = Some(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// For an engine without threads: delivers what is there, once.
    pub(super) fn step(&mut self) -> Result<(), String> {
        let inbox = Arc::clone(&self.inbox);
        self.take(&mut inbox.mail.lock());
        self.deliver()
    }
}
