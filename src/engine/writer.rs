//! The single writer: decides one turn at a time. It has the allocator, and nobody else has.

use super::Shared;
use super::clock::LogicalClock;
use super::turn::Turn;
use crate::allocator::{Allocator, Violation};
use crate::store::Store;
use crate::types::{Answer, Policy, ReservationId, SkuId, Timestamp, Token};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(super) struct Writer {
    allocator: Allocator,
    shared: Arc<Shared>,
    clock: LogicalClock,
    shard: u16,
    token: Token,
    next_batch: u64,
    known_skus: usize,
    /// To be recorded with the next batch, because the log has another.
    policy: Option<Policy>,
    /// The last batch is not vouched for by a successor, since then.
    open_since: Option<Timestamp>,
    last_batch_at: Timestamp,
    cadence: Cadence,
    /// Holds that the store takes for overdue and the allocator has ended, with the batch that did so at the latest.
    suspects: BTreeMap<ReservationId, u64>,
}

/// When there is a batch although nothing is recorded, as the store wants it.
pub(super) struct Cadence {
    /// After a batch that nothing follows.
    idle_commit_after: Option<Duration>,
    /// After any batch, and for every turn that answers somebody.
    heartbeat: Option<Duration>,
}

impl Cadence {
    pub(super) fn of(store: &dyn Store) -> Self {
        Self {
            idle_commit_after: store.idle_commit_after(),
            heartbeat: store.heartbeat(),
        }
    }
}

impl Writer {
    pub(super) fn new(
        allocator: Allocator,
        shared: Arc<Shared>,
        shard: u16,
        token: Token,
        next_batch: u64,
        policy: Policy,
        cadence: Cadence,
    ) -> Self {
        let clock = shared.clock.clone();
        let last_batch_at = clock.now();
        let known_skus = allocator.skus_len();
        let policy = (allocator.policy() != policy).then_some(policy);
        let open_since = None;
        Self {
            allocator,
            shared,
            clock,
            shard,
            token,
            next_batch,
            known_skus,
            policy,
            open_since,
            last_batch_at,
            cadence,
            suspects: BTreeMap::new(),
        }
    }

    pub(super) fn allocator(&self) -> &Allocator {
        &self.allocator
    }

    /// Decides the turn's requests and what time brings. With `vouch`, there is a batch even if it records nothing.
    ///
    /// # Errors
    /// If a law would break: nothing of the turn may be told.
    pub(super) fn decide(&mut self, turn: &mut Turn, vouch: bool) -> Result<(), Violation> {
        let have_moved = self.begin(turn)?;
        let commands = turn.requests.iter().map(|request| request.cargo.command());
        let (tally, answers) = (&mut turn.tally, &mut turn.answers);
        self.allocator
            .decide_all(commands, &mut turn.batch, |answer| {
                match &answer {
                    Answer::Decided(decision) => tally.decided(decision),
                    Answer::Found(_) => tally.found(),
                    Answer::NotDecided => {}
                }
                answers.push(answer);
            })?;
        self.allocator.finish(&mut turn.stock)?;
        if self.allocator.skus_len() > self.known_skus {
            let new = self.allocator.skus().skip(self.known_skus);
            turn.skus.extend(new.map(|(id, name)| (id, name.clone())));
            self.known_skus += turn.skus.len();
        }
        let shows_role = self.cadence.heartbeat.is_some() && !turn.requests.is_empty();
        // A position is committed before its answer is told, also that of an answer that records nothing: after a crash the
        // command would come again, and might be answered otherwise.
        turn.has_batch = vouch || shows_role || have_moved || !turn.batch.is_empty();
        if turn.has_batch {
            self.next_batch += 1;
            self.last_batch_at = turn.batch.header.stamp;
            // A batch that says nothing vouches for its predecessor and needs nobody to vouch for itself.
            let says = have_moved || !turn.batch.is_empty();
            self.open_since = says.then_some(turn.batch.header.stamp);
        }
        Ok(())
    }

    /// True if the positions of sources have moved.
    fn begin(&mut self, turn: &mut Turn) -> Result<bool, Violation> {
        let header = &mut turn.batch.header;
        header.number = self.next_batch;
        header.shard = self.shard;
        header.stamp = self.clock.now().max(self.allocator.now());
        header.token = self.token;
        header.first_sequence = self.allocator.sequence() + 1;
        header.sources.clear();
        header.sources.extend_from_slice(self.allocator.sources());
        let have_moved = self.shared.sources.advance(turn);
        self.allocator.begin(&turn.batch.header)?;
        self.judge_overdue()?;
        if let Some(policy) = self.policy.take() {
            self.allocator.set_policy(policy, &mut turn.batch)?;
        }
        let stalled = self.shared.stalled_micros.swap(0, Ordering::AcqRel);
        if stalled > 0 {
            self.allocator.credit(stalled, &mut turn.batch)?;
        }
        self.allocator.sweep(turn.requests.len(), &mut turn.batch)?;
        Ok(have_moved)
    }

    /// A hold that the store takes for overdue is live here, or a batch has ended it that the store hadn't when it was asked;
    /// else the store's rows aren't what was committed.
    fn judge_overdue(&mut self) -> Result<(), Violation> {
        let Some((committed, overdue)) = self.shared.overdue.lock().take() else {
            return Ok(());
        };
        let decided = self.next_batch - 1;
        let ended = overdue
            .into_iter()
            .filter(|&id| !self.allocator.is_live(id));
        let suspects: BTreeMap<_, _> = ended
            .map(|id| (id, *self.suspects.get(&id).unwrap_or(&decided)))
            .collect();
        let drifted = suspects.iter().find(|&(_, &by)| by <= committed);
        if let Some((id, _)) = drifted {
            return Err(Violation {
                sequence: self.allocator.sequence(),
                what: format!(
                    "L3: the store holds {id} as overdue, which is not live: its rows were changed from outside; rebuild \
                     them from the log (in PostgreSQL: `flash-sale repair --store URL --apply`)"
                ),
            });
        }
        self.suspects = suspects;
        Ok(())
    }

    /// How long there is nothing to do without a request: zero if there is something now, `None` for ever.
    pub(super) fn idle_for(&mut self) -> Option<Duration> {
        if self.policy.is_some() || self.shared.stalled_micros.load(Ordering::Acquire) > 0 {
            return Some(Duration::ZERO);
        }
        let now = self.clock.now();
        let vouch = self.vouch_at();
        let lapse = self.allocator.next_deadline();
        let next = vouch.into_iter().chain(lapse).min()?;
        Some(self.clock.sleep_for(next.since(now)))
    }

    /// When the last batch wants a successor, to vouch for it or for the writer.
    fn vouch_at(&self) -> Option<Timestamp> {
        let cadence = &self.cadence;
        let open = self.open_since.zip(cadence.idle_commit_after);
        let vouch = open.map(|(since, after)| since.plus(after));
        let beat = cadence
            .heartbeat
            .map(|every| self.last_batch_at.plus(every));
        vouch.into_iter().chain(beat).min()
    }

    /// True if an idle writer should commit an empty batch now.
    pub(super) fn must_vouch(&self) -> bool {
        self.vouch_at().is_some_and(|at| at <= self.clock.now())
    }

    /// Whether time alone has brought something to do.
    pub(super) fn has_due(&mut self) -> bool {
        self.idle_for() == Some(Duration::ZERO)
    }

    pub(super) fn publish_all(&self) {
        let mut names: Vec<_> = self
            .allocator
            .skus()
            .map(|(id, name)| (id, name.clone()))
            .collect();
        let ids: Vec<SkuId> = names.iter().map(|&(id, _)| id).collect();
        for stock in ids
            .into_iter()
            .filter_map(|sku| self.allocator.availability(sku))
        {
            self.shared.reads.publish(&stock);
        }
        self.shared.reads.add_names(&mut names);
    }
}
