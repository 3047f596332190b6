//! Who tells caches and sinks, off the answer's path: an inbox that never makes the committer wait, and deliveries that
//! are repeated with a backoff until they succeed. There are two at most, one for the caches and one for the sinks, so that
//! neither waits for the other.
//!
//! For caches the inbox notes which SKUs have changed, and the newest stock is read when it is offered; so a slow one skips
//! versions, never the last. For sinks, and for caches that hold reservations, it keeps the last [`BATCHES_MAX`]
//! batches. A sink that falls behind further, or stood further back when the engine started, gets what is missing from the
//! log, and only then what waits; where nobody can read the log it is told of the gap. A cache's reservations are no longer
//! vouched for.

mod changes;
mod mirror;
mod sink;

use super::Shared;
use super::turn::Turn;
use crate::cache::Cache;
use crate::events::EventSink;
use crate::store::ReadLog;
use crate::types::{Batch, SkuId};
use mirror::Mirror;
use parking_lot::{Condvar, Mutex};
use sink::Sink;
use std::collections::{BTreeSet, VecDeque};
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
    keeps_batches: bool,
}

#[derive(Default)]
struct Mail {
    changed: BTreeSet<SkuId>,
    batches: VecDeque<Arc<Batch>>,
    /// Batches that were dropped, since the last delivery: from and to.
    gap: Option<(u64, u64)>,
    /// No more mail comes; `true`: what is there is not delivered either.
    closed: Option<bool>,
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.batches.is_empty()
    }
}

/// Puts what a committed turn changed into the inboxes.
pub(super) fn tell(inboxes: &[Arc<Inbox>], turn: &Turn) {
    let mut shared = None;
    for inbox in inboxes {
        let batch = (inbox.keeps_batches && !turn.batch.is_empty())
            .then(|| &*shared.get_or_insert_with(|| Arc::new(turn.batch.clone())));
        inbox.put(turn, batch);
    }
}

impl Inbox {
    fn put(&self, turn: &Turn, batch: Option<&Arc<Batch>>) {
        let mut mail = self.mail.lock();
        if self.has_caches {
            mail.changed
                .extend(turn.stock.iter().map(|stock| stock.sku));
        }
        if let Some(batch) = batch {
            mail.batches.push_back(Arc::clone(batch));
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

/// When something that has failed is tried again.
#[derive(Default)]
struct Patience {
    pause: Duration,
    not_before: Duration,
}

impl Patience {
    fn failed(&mut self, now: Duration) {
        self.pause = (self.pause * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
        self.not_before = now.saturating_add(self.pause);
    }

    fn succeeded(&mut self) {
        *self = Self::default();
    }

    fn is_failing(&self) -> bool {
        !self.pause.is_zero()
    }
}

pub(super) struct Announcer {
    /// Whom it tells: its thread's name, and the kind of its warnings.
    pub(super) role: &'static str,
    inbox: Arc<Inbox>,
    shared: Arc<Shared>,
    caches: Vec<Mirror>,
    sinks: Vec<Sink>,
    log: Option<Box<dyn ReadLog>>,
    /// What the last failure was, while anybody is failing.
    failure: Option<String>,
}

impl Announcer {
    /// As many as there is somebody to tell. `log` ends with batch `next - 1`, of a writer with this epoch.
    pub(super) fn all(
        shared: &Arc<Shared>,
        (epoch, next): (u64, u64),
        caches: Vec<Box<dyn Cache>>,
        sinks: Vec<Box<dyn EventSink>>,
        log: Option<Box<dyn ReadLog>>,
    ) -> Vec<Self> {
        let holds_reservations = caches.iter().any(|cache| cache.holds_reservations());
        let new_mirror = |cache| Mirror::new(cache, epoch, shared);
        let new_sink = |sink| Sink::new(sink, next);
        let mut all = Vec::new();
        if !caches.is_empty() {
            let mut announcer = Self::new(shared, "caches", holds_reservations);
            announcer.caches = caches.into_iter().map(new_mirror).collect();
            all.push(announcer);
        }
        if !sinks.is_empty() {
            let mut announcer = Self::new(shared, "sinks", true);
            announcer.sinks = sinks.into_iter().map(new_sink).collect();
            announcer.log = log;
            all.push(announcer);
        }
        all
    }

    fn new(shared: &Arc<Shared>, role: &'static str, keeps_batches: bool) -> Self {
        Self {
            role,
            inbox: Arc::new(Inbox {
                mail: Mutex::default(),
                arrived: Condvar::new(),
                has_caches: role == "caches",
                keeps_batches,
            }),
            shared: Arc::clone(shared),
            caches: Vec::new(),
            sinks: Vec::new(),
            log: None,
            failure: None,
        }
    }

    pub(super) fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.inbox)
    }

    /// Delivers until the inbox is closed.
    pub(super) fn run(mut self, warn: impl Fn(Option<String>)) {
        let mut told = None;
        loop {
            let closed = self.collect();
            if closed == Some(true) {
                return;
            }
            self.deliver();
            if self.failure != told {
                told.clone_from(&self.failure);
                warn(told.clone());
            }
            if closed.is_some() && self.is_done() {
                match self.flush() {
                    Ok(()) => return,
                    Err(error) => warn(Some(error)),
                }
            }
        }
    }

    /// What sinks have taken has arrived. A sink waits a little for that by itself.
    fn flush(&mut self) -> Result<(), String> {
        self.sinks.iter_mut().try_for_each(Sink::flush)
    }

    /// Takes the mail; waits until there is some, or until something is due.
    fn collect(&mut self) -> Option<bool> {
        let due = self.due();
        let inbox = Arc::clone(&self.inbox);
        let mut mail = inbox.mail.lock();
        let is_closing = mail.closed.is_some() && self.is_done();
        if mail.is_empty() && !is_closing && mail.closed != Some(true) {
            let now = self.shared.time.monotonic();
            match due.map(|due| due.saturating_sub(now)) {
                None => inbox.arrived.wait(&mut mail),
                Some(Duration::ZERO) => {}
                Some(pause) => {
                    let pause = self.shared.clock.sleep_for(pause);
                    inbox.arrived.wait_for(&mut mail, pause);
                }
            }
        }
        self.take(&mut mail);
        mail.closed
    }

    fn take(&mut self, mail: &mut Mail) {
        let changed = std::mem::take(&mut mail.changed);
        let gap = mail.gap.take();
        for mirror in &mut self.caches {
            mirror.take(&changed, gap.is_some(), &mail.batches);
        }
        for sink in &mut self.sinks {
            sink.take(gap, &mail.batches, self.log.is_some());
        }
        mail.batches.clear();
    }

    fn is_done(&self) -> bool {
        self.caches.iter().all(Mirror::is_done) && self.sinks.iter().all(Sink::is_done)
    }

    /// When something is to be offered, by monotonic time. `None`: not before there is mail.
    fn due(&self) -> Option<Duration> {
        let caches = self.caches.iter().filter_map(Mirror::due);
        caches.chain(self.sinks.iter().filter_map(Sink::due)).min()
    }

    /// Offers what is due once.
    fn deliver(&mut self) {
        let now = self.shared.time.monotonic();
        // A clock that stands still would never end a pause.
        let may = |patience: &Patience| {
            patience.not_before <= now || !self.shared.clock.advances_by_itself()
        };
        let mut failure = None;
        for mirror in self
            .caches
            .iter_mut()
            .filter(|mirror| may(mirror.patience()))
        {
            failure = mirror.offer(now).err().or(failure);
        }
        let log = &mut self.log;
        for sink in self.sinks.iter_mut().filter(|sink| may(sink.patience())) {
            failure = sink.offer(now, log.as_mut()).err().or(failure);
        }
        let caches = self.caches.iter().map(Mirror::patience);
        let mut all = caches.chain(self.sinks.iter().map(Sink::patience));
        if failure.is_some() {
            self.failure = failure;
        } else if !all.any(Patience::is_failing) {
            self.failure = None;
        }
    }

    /// For an engine without threads: delivers what is there, once.
    pub(super) fn step(&mut self) -> Option<String> {
        let inbox = Arc::clone(&self.inbox);
        self.take(&mut inbox.mail.lock());
        self.deliver();
        self.failure.clone()
    }
}
