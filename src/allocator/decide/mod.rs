//! The rules: what the answer to each command is. One file for each group of commands.
//!
//! The order is fixed: the key first (law L5), then what defers, then what refuses, in the order of
//! [`RefusalCode`](crate::types::RefusalCode). A rule looks at the state and records events; it never changes
//! the state itself.

mod admin;
mod ending;
mod payment;
mod reserve;

use super::keys::{Known, difference};
use super::{Allocator, Violation};
use crate::types::{
    Answer, Batch, Bound, Command, CommandKind, Decision, EventKind, Origin, Refusal,
    RefusalRecord, ReservationId, UserId,
};

/// A rule's result: a decision, or a law that would break.
type Decided = Result<Decision, Violation>;

#[expect(clippy::unnecessary_wraps, reason = "the tail of every rule")]
fn refused(refusal: Refusal) -> Decided {
    Ok(Decision::Refused(refusal))
}

impl Allocator {
    /// Decides one command within the batch that was begun, and records it there.
    ///
    /// # Errors
    /// If a law would break: the writer must stop, and nothing of the batch may be told.
    pub fn decide(&mut self, command: &Command, batch: &mut Batch) -> Result<Answer, Violation> {
        if let Command::Query(query) = command {
            return Ok(Answer::Found(Box::new(self.query(query))));
        }
        let (kind, origin) = (command.kind(), command.origin());
        let first = self.first_answer(kind, &origin);
        let outdated = || self.outdated(command);
        let no_room = || self.no_room_for_key(&origin);
        let decision = match first.or_else(outdated).or_else(no_room) {
            Some(decision) => decision,
            None => match command {
                Command::Reserve(c) => self.reserve(c, &origin, batch)?,
                Command::BeginPayment(c) => self.begin_payment(c, &origin, batch)?,
                Command::PaymentFailed(c) => self.payment_failed(c, &origin, batch)?,
                Command::Confirm(c) => self.confirm(c, &origin, batch)?,
                Command::Release(c) => self.release(c, &origin, batch)?,
                Command::Expire(c) => self.expire(*c, batch)?,
                Command::Return(c) => self.return_units(c, &origin, batch)?,
                Command::Adjust(c) => self.adjust(c, &origin, batch)?,
                Command::DefineSku(c) => self.define(c, &origin, batch)?,
                Command::SetGate(c) => self.set_gate(c, &origin, batch)?,
                Command::Query(_) => unreachable!("answered above"),
            },
        };
        if let Decision::Refused(refusal) = decision
            && !refusal.is_deferral()
        {
            let record = RefusalRecord {
                origin,
                kind,
                refusal,
            };
            // A repeated refusal is on record already, under the same key.
            if self.known(kind, &origin).is_none() || !refusal.takes_key() {
                self.apply_refusal(&record);
                batch.push_refusal(&record);
            }
        }
        Ok(Answer::Decided(decision))
    }

    /// What is known of a key and still answers.
    pub(super) fn known(&self, kind: CommandKind, origin: &Origin) -> Option<Known> {
        self.keys.find(kind, origin).filter(|known| {
            let kept = known.decided_at.plus_ms(self.policy.key_retention_ms) > self.now;
            let scope = known.scope;
            let in_sale = scope.sale == 0 || self.stocks[scope.sku.0 as usize].counts(scope.sale);
            let max = u64::from(self.policy.refused_keys_max);
            let among_last = known
                .ordinal
                .is_none_or(|ordinal| ordinal + max > self.refusals);
            kept && in_sale && among_last
        })
    }

    /// The key's first answer, or a conflict.
    fn first_answer(&self, kind: CommandKind, origin: &Origin) -> Option<Decision> {
        let known = self.known(kind, origin)?;
        Some(
            match difference(kind, &known.fingerprints, &origin.fingerprints) {
                Some(field) => Decision::Refused(Refusal::KeyConflict { field }),
                None => known.decision,
            },
        )
    }

    /// Too old for its key to be known, or too late for its caller.
    fn outdated(&self, command: &Command) -> Option<Decision> {
        let Command::Reserve(c) = command else {
            return None;
        };
        let kept_until = c.asked_at.plus_ms(self.policy.key_retention_ms);
        if kept_until <= self.now {
            return Some(Decision::Refused(Refusal::TooOld));
        }
        let is_late = c.decide_by < self.now;
        is_late.then_some(Decision::Refused(Refusal::TooLate))
    }

    fn no_room_for_key(&self, origin: &Origin) -> Option<Decision> {
        origin.key?;
        let max = self.limits.accepted_keys_max as usize;
        let horizon = self.horizon(self.policy.key_retention_ms);
        let full = self.keys.is_full(max, horizon);
        full.then_some(Decision::Refused(Refusal::Busy {
            bound: Bound::AcceptedKeys,
        }))
    }

    /// Accepted without a change: only a key has to be recorded.
    fn unchanged(
        &mut self,
        kind: CommandKind,
        origin: &Origin,
        decision: Decision,
        batch: &mut Batch,
    ) -> Decided {
        if origin.key.is_some() {
            let decision = decision.to_words();
            self.record(
                EventKind::Repeated {
                    origin: *origin,
                    kind,
                    decision,
                },
                batch,
            )?;
        }
        Ok(decision)
    }

    /// Finds a reservation. A hold is over when its deadline has passed, swept or not: a command that touches it
    /// expires it first (or moves the deadline, of one in payment while confirms are paused).
    fn settled(&mut self, id: ReservationId, batch: &mut Batch) -> Result<Option<u32>, Violation> {
        let place = self.find(id);
        if let Some(place) = place {
            let hold = self.holds.get(place);
            if hold.status.is_live() && self.has_passed(hold.time) {
                self.lapse(place, batch)?;
            }
        }
        Ok(place)
    }

    /// The same, of a user's own.
    fn settled_own(
        &mut self,
        user: UserId,
        id: ReservationId,
        batch: &mut Batch,
    ) -> Result<Result<u32, Refusal>, Violation> {
        Ok(match self.settled(id, batch)? {
            None => Err(Refusal::UnknownReservation),
            Some(place) if self.holds.user_of(place) != user => Err(Refusal::NotOwner),
            Some(place) => Ok(place),
        })
    }
}
