//! Payments: begun, failed, captured.
//!
//! A captured payment is never lost sight of: it buys its reservation, or, if that lapsed, a new one on the same
//! terms, or its refund falls due; and each of that once, by the payment's reference.

use super::{Decided, refused};
use crate::allocator::Allocator;
use crate::allocator::holds::Payment;
use crate::allocator::outcomes::Outcome;
use crate::types::{
    Batch, BeginPayment, Bound, CommandKind, Confirm, Confirmation, Decision, Disposition,
    EventKind, HoldStatus, Kept, Lines, Origin, PaymentAttempt, PaymentFailed, PaymentRef, Refusal,
    ReservationId,
};

impl Allocator {
    pub(super) fn begin_payment(
        &mut self,
        c: &BeginPayment,
        origin: &Origin,
        batch: &mut Batch,
    ) -> Decided {
        let Some(place) = self.settled(c.reservation, batch)? else {
            return refused(Refusal::UnknownReservation);
        };
        if let Some(refusal) = self.paused(place) {
            return refused(refusal);
        }
        if self.user_of(place) != c.user {
            return refused(Refusal::NotOwner);
        }
        if let Some(outcome) = self.outcome(c.payment_ref) {
            let reservation = outcome.bought.unwrap_or(outcome.asked);
            return refused(Refusal::PaymentUsed { reservation });
        }
        let hold = *self.holds.get(place);
        if !hold.status.is_live() {
            return refused(Refusal::Ended {
                status: hold.status,
            });
        }
        let known = self.holds.payment(place).copied();
        if let Some(payment) = known
            && payment.is_under_way
            && payment.payment_ref == c.payment_ref
        {
            let expires_at = self.effective(hold.time);
            let begun = PaymentAttempt {
                attempt: payment.attempt,
                expires_at,
            };
            let decision = Decision::PaymentBegun(begun);
            return self.unchanged(CommandKind::BeginPayment, origin, decision, batch);
        }
        let (attempt, base, spent_micros) = match known {
            Some(payment) => {
                let next = payment.next(self.now);
                (next.attempt, next.base, next.spent_micros)
            }
            None => (1, hold.time, 0),
        };
        let grace_micros = u64::from(self.policy.payment_grace_ms) * 1_000;
        let grace_end = self
            .now
            .plus_micros(grace_micros.saturating_sub(spent_micros));
        let expires_at = self.effective(base).max(grace_end);
        let begun = EventKind::PaymentBegun {
            origin: *origin,
            reservation: c.reservation,
            payment_ref: c.payment_ref,
            attempt,
            expires_at,
        };
        self.record(begun, batch)?;
        Ok(Decision::PaymentBegun(PaymentAttempt {
            attempt,
            expires_at,
        }))
    }

    pub(super) fn payment_failed(
        &mut self,
        c: &PaymentFailed,
        origin: &Origin,
        batch: &mut Batch,
    ) -> Decided {
        let place = match self.live_own(c.user, c.reservation, batch)? {
            Ok(place) => place,
            Err(refusal) => return refused(refusal),
        };
        let under_way = self
            .holds
            .payment(place)
            .filter(|payment| payment.is_under_way);
        let Some(&Payment { base, .. }) = under_way.filter(|payment| payment.attempt == c.attempt)
        else {
            let current = under_way.map_or(0, |payment| payment.attempt);
            return refused(Refusal::StaleAttempt { current });
        };
        let expires_at = self.effective(base);
        let failed = EventKind::PaymentFailed {
            origin: *origin,
            reservation: c.reservation,
            attempt: c.attempt,
            disposition: c.disposition,
            expires_at,
        };
        self.record(failed, batch)?;
        Ok(Decision::PaymentFailed(match c.disposition {
            Disposition::Keep => Kept::Until(expires_at),
            Disposition::Release => Kept::Released,
        }))
    }

    pub(super) fn confirm(&mut self, c: &Confirm, origin: &Origin, batch: &mut Batch) -> Decided {
        let outcome = c.payment_ref.and_then(|paid| self.outcome(paid));
        if let Some(answer) = outcome.and_then(|outcome| repeated(&outcome, c)) {
            return self.repeat_confirm(answer, origin, batch);
        }
        let is_new = c.payment_ref.is_some() && outcome.is_none();
        let max = self.limits.payments_max as usize;
        let horizon = self.horizon(self.policy.ended_retention_ms);
        if is_new && self.outcomes.is_full(max, horizon) {
            return refused(Refusal::Busy {
                bound: Bound::Payments,
            });
        }
        let found = self.settled(c.reservation, batch)?;
        if let Some(refusal) = found.and_then(|place| self.pauses_sale(place)) {
            return refused(refusal);
        }
        if let Some(reservation) = outcome.and_then(|outcome| outcome.bought) {
            return refused(Refusal::PaymentUsed { reservation });
        }
        let Some(place) = found else {
            return self.refund_or(Refusal::UnknownReservation, c, origin, batch);
        };
        if self.user_of(place) != c.user {
            return self.refund_or(Refusal::NotOwner, c, origin, batch);
        }
        match self.holds.get(place).status {
            HoldStatus::Held | HoldStatus::InPayment => self.confirm_live(place, c, origin, batch),
            HoldStatus::Expired if c.payment_ref.is_some() => {
                self.confirm_late(place, c, origin, batch)
            }
            HoldStatus::Confirmed if c.payment_ref.is_none() => {
                let sold = Confirmation::Sold {
                    reservation: c.reservation,
                };
                self.repeat_confirm(sold, origin, batch)
            }
            status => self.refund_or(Refusal::Ended { status }, c, origin, batch),
        }
    }

    /// The confirm must name the current attempt and its payment, or no attempt where none was begun.
    fn confirm_live(
        &mut self,
        place: u32,
        c: &Confirm,
        origin: &Origin,
        batch: &mut Batch,
    ) -> Decided {
        let current = self.holds.payment(place).copied();
        let is_current = match current {
            Some(payment) => {
                payment.attempt == c.attempt && Some(payment.payment_ref) == c.payment_ref
            }
            None => c.attempt == 0,
        };
        if !is_current {
            let current = current.map_or(0, |payment| payment.attempt);
            return self.refund_or(Refusal::StaleAttempt { current }, c, origin, batch);
        }
        self.sell(c.reservation, c, origin, batch)
    }

    /// The payment was captured after the hold had lapsed: a new reservation on the same terms, sold at once, if units
    /// and limits allow, and if the sale it belongs to has not ended.
    fn confirm_late(
        &mut self,
        place: u32,
        c: &Confirm,
        origin: &Origin,
        batch: &mut Batch,
    ) -> Decided {
        let ended = Refusal::Ended {
            status: HoldStatus::Expired,
        };
        let in_sale =
            |line: &crate::types::HeldLine| self.stocks[line.line.sku.0 as usize].counts(line.sale);
        if !self.holds.lines(place).all(in_sale) {
            return self.refund_or(ended, c, origin, batch);
        }
        let Ok(lines) = Lines::new(self.holds.lines(place).map(|held| held.line)) else {
            return Err(self.violation("a reservation's lines are no cart"));
        };
        if let Some(bound) = self.exhausted(c.user, &lines) {
            return refused(Refusal::Busy { bound });
        }
        if self.refuses_units(c.user, &lines, batch)?.is_some() {
            return self.refund_or(ended, c, origin, batch);
        }
        let unkeyed = Origin {
            key: None,
            fingerprints: [0; 3],
            ..*origin
        };
        let reservation = self.hold(&lines, &unkeyed, Some(c.reservation), batch)?;
        self.sell(reservation.id, c, origin, batch)
    }

    fn sell(
        &mut self,
        reservation: ReservationId,
        c: &Confirm,
        origin: &Origin,
        batch: &mut Batch,
    ) -> Decided {
        let confirmed = EventKind::Confirmed {
            origin: *origin,
            reservation,
            asked: c.reservation,
            attempt: c.attempt,
            payment_ref: c.payment_ref,
        };
        self.record(confirmed, batch)?;
        Ok(Decision::Confirmed(Confirmation::Sold { reservation }))
    }

    /// A captured payment that buys nothing falls due for a refund; without one, the refusal stands.
    fn refund_or(
        &mut self,
        refusal: Refusal,
        c: &Confirm,
        origin: &Origin,
        batch: &mut Batch,
    ) -> Decided {
        let Some(payment_ref) = c.payment_ref else {
            return refused(refusal);
        };
        let refund = EventKind::RefundDue {
            origin: *origin,
            asked: c.reservation,
            attempt: c.attempt,
            payment_ref,
        };
        self.record(refund, batch)?;
        Ok(Decision::Confirmed(Confirmation::RefundDue { payment_ref }))
    }

    fn repeat_confirm(
        &mut self,
        confirmation: Confirmation,
        origin: &Origin,
        batch: &mut Batch,
    ) -> Decided {
        self.unchanged(
            CommandKind::Confirm,
            origin,
            Decision::Confirmed(confirmation),
            batch,
        )
    }

    /// Confirms of one of the reservation's SKUs are paused.
    fn paused(&self, place: u32) -> Option<Refusal> {
        self.holds
            .lines(place)
            .map(|held| held.line.sku)
            .find_map(|sku| {
                let gates = self.stocks[sku.0 as usize].gates;
                gates.confirms_paused().then_some(Refusal::Paused { sku })
            })
    }

    /// The same, where resuming could still sell it.
    fn pauses_sale(&self, place: u32) -> Option<Refusal> {
        let status = self.holds.get(place).status;
        let can_sell = status.is_live() || status == HoldStatus::Expired;
        self.paused(place).filter(|_| can_sell)
    }

    /// What became of a payment, within the retention.
    fn outcome(&self, payment_ref: PaymentRef) -> Option<Outcome> {
        let outcome = self.outcomes.find(payment_ref)?;
        (!self.has_retired(outcome.decided_at)).then_some(*outcome)
    }
}

/// The first answer to this payment, if the command asks for it again.
fn repeated(outcome: &Outcome, c: &Confirm) -> Option<Confirmation> {
    match outcome.bought {
        None => Some(Confirmation::RefundDue {
            payment_ref: outcome.payment_ref,
        }),
        Some(reservation) if [outcome.asked, reservation].contains(&c.reservation) => {
            Some(Confirmation::Sold { reservation })
        }
        Some(_) => None,
    }
}
