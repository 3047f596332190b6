//! Who tells caches and sinks, off the answer's path: an inbox that never makes the committer wait, and deliveries that
//! are repeated with a backoff until they succeed.
//!
//! For caches the inbox keeps the newest stock of each SKU, so a slow one skips versions, never the last. For sinks it
//! keeps the last [`BATCHES_MAX`] batches; one that falls behind further is told of the gap.

use super::reads::Reads;
use super::turn::Turn;
use crate::cache::{Cache, CacheEntry};
use crate::events::EventSink;
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
    /// For each cache, entries that it has not taken.
    unwritten: Vec<BTreeMap<SkuId, CacheEntry>>,
}

struct Sink {
    sink: Box<dyn EventSink>,
    waiting: VecDeque<Arc<Batch>>,
}

impl Announcer {
    pub(super) fn new(
        inbox: Arc<Inbox>,
        caches: Vec<Box<dyn Cache>>,
        sinks: Vec<Box<dyn EventSink>>,
    ) -> Self {
        let unwritten = caches.iter().map(|_| BTreeMap::new()).collect();
        let sinks = sinks
            .into_iter()
            .map(|sink| Sink {
                sink,
                waiting: VecDeque::new(),
            })
            .collect();
        Self {
            inbox,
            caches,
            sinks,
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
                        return;
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
                sink.sink.gap(from, to);
            }
            sink.waiting.extend(mail.batches.iter().cloned());
            while sink.waiting.len() > BATCHES_MAX {
                if let Some(dropped) = sink.waiting.pop_front() {
                    sink.sink
                        .gap(dropped.header.number, dropped.header.number + 1);
                }
            }
        }
        mail.batches.clear();
    }

    fn is_done(&self) -> bool {
        self.unwritten.iter().all(BTreeMap::is_empty)
            && self.sinks.iter().all(|sink| sink.waiting.is_empty())
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
            while let Some(batch) = sink.waiting.front() {
                if let Err(error) = sink.sink.publish(batch) {
                    failed = Some(error.to_string());
                    break;
                }
                sink.waiting.pop_front();
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
