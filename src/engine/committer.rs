//! What follows a decided turn: seal, commit, publish reads, answer, hand to the announcer; in this order (law L4).
//!
//! Whoever holds the committer does it: the writer itself when nothing is queued, the committer's thread under load.

use super::announcer::{Inbox, tell};
use super::turn::Turn;
use super::{Shared, panic_text};
use crate::store::{Store, StoreError};
use crate::ticket::CompletionBatch;
use crate::types::{Answer, BatchHash, Clock};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The first pause before a batch is offered again, and the longest.
const RETRY_MIN: Duration = Duration::from_millis(1);
const RETRY_MAX: Duration = Duration::from_millis(200);
/// A store that commits is asked for its warnings so often.
const WARNINGS_EVERY: Duration = Duration::from_secs(1);
/// A store is asked so often for holds that it takes for overdue, and for so many at most.
const OVERDUE_EVERY: Duration = Duration::from_secs(10);
const OVERDUE_MAX: usize = 1_000;

pub(super) struct Committer {
    store: Box<dyn Store>,
    shared: Arc<Shared>,
    time: Arc<dyn Clock>,
    last_hash: BatchHash,
    completions: CompletionBatch<Answer>,
    inboxes: Vec<Arc<Inbox>>,
    /// Not before this monotonic time the store is asked for its warnings again.
    warnings_due: Duration,
    /// Nor for overdue holds before this one.
    overdue_due: Duration,
}

impl Committer {
    pub(super) fn new(
        store: Box<dyn Store>,
        shared: Arc<Shared>,
        time: Arc<dyn Clock>,
        last_hash: BatchHash,
        inboxes: Vec<Arc<Inbox>>,
    ) -> Self {
        let completions = CompletionBatch::new();
        let warnings_due = time.monotonic().saturating_add(WARNINGS_EVERY);
        let overdue_due = time.monotonic().saturating_add(OVERDUE_EVERY);
        Self {
            store,
            shared,
            time,
            last_hash,
            completions,
            inboxes,
            warnings_due,
            overdue_due,
        }
    }

    /// Commits the turn and answers it.
    ///
    /// # Errors
    /// If it can't be committed, or the store panics: the engine must halt, and the turn's callers hear that the outcome is
    /// unknown.
    pub(super) fn finish(&mut self, turn: &mut Turn) -> Result<(), StoreError> {
        let finished = catch_unwind(AssertUnwindSafe(|| self.finish_turn(turn)));
        finished.unwrap_or_else(|panic| {
            let (number, text) = (turn.batch.header.number, panic_text(&*panic));
            Err(StoreError::Fatal(format!(
                "the store panicked ({text}) at batch {number}: whether the log has it the next start will find"
            )))
        })
    }

    fn finish_turn(&mut self, turn: &mut Turn) -> Result<(), StoreError> {
        let requests = turn.requests.len();
        let mut took = None;
        if turn.has_batch {
            turn.batch.seal(self.last_hash);
            self.store.expect(&turn.stock);
            let began = self.time.monotonic();
            self.shared.commit_begins(began);
            let committed = self.commit(turn);
            self.shared.commit_ends();
            committed?;
            let now = self.time.monotonic();
            let commit = now.saturating_sub(began);
            took = Some(commit);
            self.shared.vitals.commit.record(commit);
            if commit > self.shared.stall_min {
                let micros = u64::try_from(commit.as_micros()).unwrap_or(u64::MAX);
                self.shared
                    .stalled_micros
                    .fetch_add(micros, Ordering::AcqRel);
                let telemetry = &self.shared.vitals.telemetry;
                telemetry.slow_commit(turn.batch.header.number, commit);
            }
            self.last_hash = turn.batch.hash();
            self.refresh_warnings(now);
        }
        self.publish(turn);
        self.answer(turn);
        let Shared { vitals, reads, .. } = &*self.shared;
        vitals.telemetry.finished(turn, requests, took, reads);
        let swept = self.sweep(turn);
        turn.clear();
        swept
    }

    /// Asks the store for overdue holds, now and then, and leaves them for the writer to judge.
    fn sweep(&mut self, turn: &Turn) -> Result<(), StoreError> {
        let now = self.time.monotonic();
        if !turn.has_batch || now < self.overdue_due {
            return Ok(());
        }
        self.overdue_due = now.saturating_add(OVERDUE_EVERY);
        let header = &turn.batch.header;
        match self.store.overdue(header.stamp, OVERDUE_MAX) {
            Ok(ids) => {
                let mut overdue = self.shared.overdue.lock();
                *overdue = Some((header.number, ids));
                Ok(())
            }
            // The next commit will tell.
            Err(StoreError::Retryable(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn commit(&mut self, turn: &Turn) -> Result<(), StoreError> {
        let mut pause = RETRY_MIN;
        loop {
            match self.store.commit(&turn.batch) {
                Err(StoreError::Retryable(reason)) => {
                    self.shared
                        .vitals
                        .warn("commit", Some(format!("the store can't commit: {reason}")));
                    if self.shared.stop_by(self.time.monotonic()) {
                        return Err(StoreError::Retryable(reason));
                    }
                    std::thread::park_timeout(pause);
                    pause = (pause * 2).min(RETRY_MAX);
                }
                result => {
                    if pause > RETRY_MIN {
                        self.shared.vitals.warn("commit", None);
                    }
                    return result;
                }
            }
        }
    }

    /// What the store began to warn of, or warns of no more.
    fn refresh_warnings(&mut self, now: Duration) {
        if now >= self.warnings_due {
            self.warnings_due = now.saturating_add(WARNINGS_EVERY);
            let warnings = self.store.warnings();
            self.shared.vitals.warn_all("store", &warnings);
        }
    }

    /// Reads come before answers, so that a caller reads his own write.
    fn publish(&self, turn: &mut Turn) {
        for stock in &turn.stock {
            self.shared.reads.publish(stock);
        }
        self.shared.reads.add_names(&mut turn.skus);
        if turn.has_batch {
            tell(&self.inboxes, turn);
        }
    }

    fn answer(&mut self, turn: &mut Turn) {
        debug_assert_eq!(
            turn.requests.len(),
            turn.answers.len(),
            "every command has its answer"
        );
        let is_request = !turn.requests.is_empty();
        for (request, answer) in turn.requests.drain(..).zip(turn.answers.drain(..)) {
            self.completions.complete(request.completer, answer);
        }
        self.completions.flush();
        let vitals = &self.shared.vitals;
        if is_request {
            let took = self.time.monotonic().saturating_sub(turn.began);
            vitals.batch.record(took);
            vitals.telemetry.answered(took);
        }
        vitals.count(
            &mut turn.tally,
            turn.batch.event_records().len() as u64,
            turn.has_batch,
        );
    }

    /// Ends the writer's role in good order.
    ///
    /// # Errors
    /// If that can't be recorded.
    pub(super) fn close(&mut self) -> Result<(), StoreError> {
        self.store.close()
    }
}
