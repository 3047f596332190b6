//! What became of captured payments: a payment buys once, and its refund falls due once, however often the gateway
//! tells of it.

use super::arena::Queue;
use super::index::{Hash, Index};
use crate::types::{PaymentRef, ReservationId, Timestamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) payment_ref: PaymentRef,
    /// The reservation that the payment was for.
    pub(super) asked: ReservationId,
    /// The reservation that it bought; `None`: a refund is due.
    pub(super) bought: Option<ReservationId>,
    pub(super) decided_at: Timestamp,
}

impl Outcome {
    /// Fills memory that isn't used yet.
    const FILLER: Self = Self {
        payment_ref: PaymentRef::MAX,
        asked: ReservationId::from_u64(u64::MAX),
        bought: None,
        decided_at: Timestamp::MAX,
    };
}

pub(super) struct Outcomes {
    hash: Hash,
    queue: Queue<Outcome>,
    index: Index,
}

impl Outcomes {
    pub(super) fn new(hash: Hash) -> Self {
        Self {
            hash,
            queue: Queue::with_capacity(0, Outcome::FILLER),
            index: Index::with_capacity(0),
        }
    }

    /// Whether more than `max` outcomes were decided after `horizon`, or as many.
    pub(super) fn is_full(&self, max: usize, horizon: Option<Timestamp>) -> bool {
        let has_passed = |outcome: &Outcome| Some(outcome.decided_at) <= horizon;
        self.queue.len() >= max && self.queue.count_from(has_passed) >= max
    }

    /// The last outcome, whether or not its retention has passed: the caller judges.
    pub(super) fn find(&self, payment_ref: PaymentRef) -> Option<&Outcome> {
        let hash = self.hash.of(payment_ref.get(), 2);
        let position = self.index.find(hash, |position| {
            self.queue.get(position).payment_ref == payment_ref
        })?;
        Some(self.queue.get(position))
    }

    pub(super) fn insert(&mut self, outcome: Outcome) {
        let hash = self.hash.of(outcome.payment_ref.get(), 2);
        let outdated = self.index.find(hash, |position| {
            self.queue.get(position).payment_ref == outcome.payment_ref
        });
        if let Some(position) = outdated {
            self.index.remove(hash, position);
        }
        let position = self.queue.push(outcome);
        self.index.insert(hash, position);
    }

    /// Frees up to `max` outcomes that were decided at or before `horizon`.
    pub(super) fn sweep(&mut self, horizon: Timestamp, max: usize) {
        for _ in 0..max {
            match self.queue.front() {
                Some((_, outcome)) if outcome.decided_at <= horizon => {}
                _ => break,
            }
            let Some((position, outcome)) = self.queue.pop() else {
                break;
            };
            self.index
                .remove(self.hash.of(outcome.payment_ref.get(), 2), position);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Outcome> {
        self.queue.iter()
    }
}
