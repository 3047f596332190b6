//! Payments: their attempts, what a confirmation sells, and what falls due.

use super::{Decided, HoldLine, Model, Outcome, Payment, busy};
use stockade::types::{
    BeginPayment, Bound, Confirm, Confirmation, Decision, Disposition, HoldStatus, Kept, Line,
    Lines, PaymentAttempt, PaymentFailed, Refusal, ReservationId, Timestamp,
};

impl Model {
    pub(super) fn begin_payment(&mut self, c: &BeginPayment) -> Decided {
        self.settle(c.reservation)?;
        if let Some(sku) = self.paused(c.reservation) {
            return Err(Refusal::Paused { sku });
        }
        self.owned(c.reservation, c.user)?;
        if let Some(outcome) = self.outcomes.get(&c.payment_ref) {
            let reservation = outcome.bought.unwrap_or(outcome.asked);
            return Err(Refusal::PaymentUsed { reservation });
        }
        self.live_status(c.reservation)?;
        let (now, grace) = (self.now, u64::from(self.policy.payment_grace_ms) * 1_000);
        let hold = &self.holds[&c.reservation];
        let (mut attempt, mut base, mut spent) = (1, hold.time, 0);
        if let Some(payment) = &hold.payment {
            if payment.is_under_way && payment.reference == c.payment_ref {
                let begun = PaymentAttempt {
                    attempt: payment.attempt,
                    expires_at: Timestamp::from_micros(hold.time),
                };
                return self.unchanged(c.key, Decision::PaymentBegun(begun));
            }
            let running = u64::from(payment.is_under_way) * (now - payment.began_at);
            (attempt, base) = (payment.attempt + 1, payment.base);
            spent = payment.spent + running;
        }
        self.sequence += 1;
        let hold = self.hold_mut(c.reservation);
        hold.status = HoldStatus::InPayment;
        hold.time = base.max(now + grace.saturating_sub(spent));
        hold.payment = Some(Payment {
            reference: c.payment_ref,
            attempt,
            is_under_way: true,
            began_at: now,
            spent,
            base,
        });
        Ok(Decision::PaymentBegun(PaymentAttempt {
            attempt,
            expires_at: Timestamp::from_micros(hold.time),
        }))
    }

    pub(super) fn payment_failed(&mut self, c: &PaymentFailed) -> Decided {
        self.settle(c.reservation)?;
        self.owned(c.reservation, c.user)?;
        self.live_status(c.reservation)?;
        let now = self.now;
        let hold = self.hold_mut(c.reservation);
        let payment = hold.payment.as_mut().filter(|p| p.is_under_way);
        let Some(payment) = payment else {
            return Err(Refusal::StaleAttempt { current: 0 });
        };
        if payment.attempt != c.attempt {
            let current = payment.attempt;
            return Err(Refusal::StaleAttempt { current });
        }
        payment.is_under_way = false;
        payment.spent += now - payment.began_at;
        (hold.status, hold.time) = (HoldStatus::Held, payment.base);
        let until = Timestamp::from_micros(payment.base);
        Ok(Decision::PaymentFailed(match c.disposition {
            Disposition::Keep => {
                self.sequence += 1;
                Kept::Until(until)
            }
            Disposition::Release => {
                self.end(c.reservation, HoldStatus::Released);
                Kept::Released
            }
        }))
    }

    pub(super) fn confirm(&mut self, c: &Confirm) -> Decided {
        let outcome = c.payment_ref.and_then(|paid| self.outcomes.get(&paid));
        let used = outcome.map(|outcome| (outcome.asked, outcome.bought));
        match (used, c.payment_ref) {
            (Some((_, None)), Some(payment_ref)) => {
                let refund = Confirmation::RefundDue { payment_ref };
                return self.unchanged(c.key, Decision::Confirmed(refund));
            }
            (Some((asked, Some(bought))), _) if [asked, bought].contains(&c.reservation) => {
                return self.unchanged(c.key, sold(bought));
            }
            (None, Some(_)) if self.outcomes.len() >= self.limits.payments_max as usize => {
                return busy(Bound::Payments);
            }
            _ => {}
        }
        let settled = self.settle(c.reservation);
        if settled.is_ok() {
            let status = self.holds[&c.reservation].status;
            let paused = self.paused(c.reservation);
            if let Some(sku) = paused.filter(|_| status.is_live() || is_expired(status)) {
                return Err(Refusal::Paused { sku });
            }
        }
        if let Some((_, Some(reservation))) = used {
            return Err(Refusal::PaymentUsed { reservation });
        }
        let owned = settled.and_then(|()| self.owned(c.reservation, c.user));
        if let Err(refusal) = owned {
            return self.refund_or(c, refusal);
        }
        let hold = &self.holds[&c.reservation];
        let status = hold.status;
        if status.is_live() {
            let current = hold
                .payment
                .as_ref()
                .map(|p| (p.attempt, Some(p.reference)));
            let named = (c.attempt, c.payment_ref);
            if current.map_or(c.attempt == 0, |current| current == named) {
                return Ok(self.sell(c.reservation, c));
            }
            let current = current.map_or(0, |(attempt, _)| attempt);
            return self.refund_or(c, Refusal::StaleAttempt { current });
        }
        if status == HoldStatus::Confirmed && c.payment_ref.is_none() {
            return self.unchanged(c.key, sold(c.reservation));
        }
        if is_expired(status) && c.payment_ref.is_some() {
            return self.confirm_late(c);
        }
        self.refund_or(c, Refusal::Ended { status })
    }

    /// A new reservation on the same terms, sold at once, or the payment goes back.
    fn confirm_late(&mut self, c: &Confirm) -> Decided {
        let status = HoldStatus::Expired;
        let lines = &self.holds[&c.reservation].lines;
        let goes_on = lines
            .iter()
            .all(|line| self.sale_goes_on(line.sku, line.sale));
        let cart = lines
            .iter()
            .map(|&HoldLine { sku, quantity, .. }| Line { sku, quantity });
        let cart = Lines::new(cart).expect("a hold's lines are a cart");
        if !goes_on {
            return self.refund_or(c, Refusal::Ended { status });
        }
        self.room_for(c.user, &cart)?;
        if self.units_for(c.user, &cart).is_err() {
            return self.refund_or(c, Refusal::Ended { status });
        }
        let reservation = self.hold(c.user, &cart);
        Ok(self.sell(reservation.id, c))
    }

    fn sell(&mut self, reservation: ReservationId, c: &Confirm) -> Decision {
        self.end(reservation, HoldStatus::Confirmed);
        self.pay(c, Some(reservation));
        sold(reservation)
    }

    fn refund_or(&mut self, c: &Confirm, refusal: Refusal) -> Decided {
        let payment_ref = c.payment_ref.ok_or(refusal)?;
        self.sequence += 1;
        self.pay(c, None);
        Ok(Decision::Confirmed(Confirmation::RefundDue { payment_ref }))
    }

    fn pay(&mut self, c: &Confirm, bought: Option<ReservationId>) {
        if let Some(payment_ref) = c.payment_ref {
            let (asked, decided_at) = (c.reservation, self.now);
            let outcome = Outcome {
                asked,
                bought,
                decided_at,
            };
            self.outcomes.insert(payment_ref, outcome);
        }
    }
}

fn sold(reservation: ReservationId) -> Decision {
    Decision::Confirmed(Confirmation::Sold { reservation })
}

fn is_expired(status: HoldStatus) -> bool {
    status == HoldStatus::Expired
}
