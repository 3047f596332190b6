//! The one place where state changes: what each event does to the tables. Deciding and replaying both come here.
//!
//! An event is checked against the state before it changes anything that others rely on. What doesn't fit is a
//! [`Violation`]: a bug if it was just decided, a damaged or foreign log if it was read.

use super::holds::Payment;
use super::keys::RefusedKey;
use super::outcomes::Outcome;
use super::stock::Stock;
use super::{Allocator, TOUCHED, Violation};
use crate::types::record::PackedRefusal;
use crate::types::{
    Batch, CommandKind, Confirmation, Decision, Disposition, Event, EventKind, HoldStatus, Kept,
    PaymentAttempt, RefusalRecord, ReservationId, SEQUENCE_MAX, SkuId, TOTAL_MAX,
};

impl Allocator {
    /// Changes the state as the event says.
    ///
    /// # Errors
    /// If the event doesn't follow from the state. The state is not usable afterwards.
    pub fn apply(&mut self, event: &Event) -> Result<(), Violation> {
        if event.sequence != self.sequence + 1 || event.sequence > SEQUENCE_MAX {
            return Err(self.violation(format!(
                "L7: event {} after {}",
                event.sequence, self.sequence
            )));
        }
        if event.at != self.now {
            return Err(self.violation("L7: an event is stamped otherwise than its batch"));
        }
        self.change(event).map_err(|what| self.violation(what))?;
        self.sequence = event.sequence;
        Ok(())
    }

    /// Replays a whole batch.
    ///
    /// # Errors
    /// If it can't be decoded or doesn't follow from the state.
    pub fn apply_batch(&mut self, batch: &Batch) -> Result<(), Violation> {
        self.begin(&batch.header)?;
        let mut refusals = batch.packed_refusals().iter().peekable();
        let mut applied = 0;
        let mut run = std::mem::take(&mut self.run);
        for records in batch.event_records().chunks(TOUCHED) {
            run.clear();
            for record in records {
                let event = Event::decode(record);
                run.push(event.map_err(|error| self.violation(error.to_string()))?);
            }
            self.touch_events(&run);
            for event in &run {
                while let Some(packed) =
                    refusals.next_if(|packed| RefusalRecord::events_before(packed) <= applied)
                {
                    self.apply_packed(packed)?;
                }
                self.apply(event)?;
                applied += 1;
            }
        }
        self.run = run;
        for packed in refusals {
            self.apply_packed(packed)?;
        }
        if self.cart.is_empty() && self.name.is_none() {
            Ok(())
        } else {
            Err(self.violation("a command's records straddle two batches"))
        }
    }

    /// Reads what applying a run of events will need, so that the misses overlap.
    fn touch_events(&self, run: &[Event]) {
        let mut touched = 0;
        for (event, ahead) in run.iter().zip(0..) {
            touched ^= match &event.kind {
                EventKind::Reserved { origin, .. } => {
                    self.users.touch(self.users.hash_of(origin.user)) ^ self.touch_next(ahead)
                }
                EventKind::PaymentBegun { reservation, .. }
                | EventKind::PaymentFailed { reservation, .. }
                | EventKind::Confirmed { reservation, .. }
                | EventKind::Released { reservation, .. }
                | EventKind::Expired { reservation } => self.touch_hold(*reservation),
                _ => 0,
            };
        }
        std::hint::black_box(touched);
    }

    fn apply_packed(&mut self, packed: &PackedRefusal) -> Result<(), Violation> {
        let record = RefusalRecord::decode(packed, self.now);
        let record = record.map_err(|error| self.violation(error.to_string()))?;
        self.apply_refusal(&record);
        Ok(())
    }

    /// Remembers a refusal for its key. It changes no stock.
    pub fn apply_refusal(&mut self, record: &RefusalRecord) {
        if record.origin.key.is_none() || !record.refusal.takes_key() {
            return;
        }
        self.refusals += 1;
        let packed = record.encode(self.now, 0);
        let sku = refused_sku(record);
        let scope = sku.and_then(|sku| self.scope_of(sku)).unwrap_or_default();
        let entry = RefusedKey {
            decided_at: self.now,
            packed,
            scope,
            ordinal: self.refusals,
        };
        let max = self.policy.refused_keys_max.into();
        self.keys.refuse(&mut self.users, record, entry, max);
    }

    #[expect(clippy::too_many_lines, reason = "one arm per kind, in one place")]
    fn change(&mut self, event: &Event) -> Result<(), String> {
        match &event.kind {
            EventKind::SkuNamed { sku, name } => {
                self.name = Some((*sku, name.clone()));
                Ok(())
            }
            EventKind::SkuDefined {
                origin,
                sku,
                total,
                rules,
            } => {
                rules.check().map_err(|error| error.to_string())?;
                if *total > TOTAL_MAX {
                    return Err(format!("SKU {sku} is defined with {total} units"));
                }
                let name = self.name.take().filter(|(named, _)| named == sku);
                let (_, name) = name.ok_or("a SKU is defined without its name")?;
                if sku.0 as usize != self.stocks.len() || self.names.contains_key(&name) {
                    return Err(format!("SKU {name} is defined twice or out of order"));
                }
                self.names.insert(name.clone(), *sku);
                self.stocks.push(Stock::new(name, *total, *rules));
                self.deadlines.add(rules.hold_ms);
                self.stock_mut(*sku)?;
                self.answer(
                    CommandKind::DefineSku,
                    origin,
                    Decision::Defined { sku: *sku },
                    None,
                );
                Ok(())
            }
            EventKind::TotalAdjusted {
                origin,
                sku,
                delta,
                total,
                ..
            } => {
                let stock = self.stock_mut(*sku)?;
                stock.adjust(*delta)?;
                stock.has_total(*total)?;
                self.answer(
                    CommandKind::Adjust,
                    origin,
                    Decision::Adjusted { total: *total },
                    None,
                );
                Ok(())
            }
            EventKind::GateSet {
                origin,
                sku,
                change,
                sale,
                ..
            } => {
                let stock = self.stock_mut(*sku)?;
                let (gates, number) = stock.after(*change);
                if number != *sale {
                    return Err(format!("a sale's number is {number}, recorded {sale}"));
                }
                stock.gates = gates;
                stock.sale = number;
                if gates.has_ended() {
                    let counters = std::mem::take(&mut stock.counters);
                    self.users.stop_counting(counters);
                }
                self.answer(
                    CommandKind::SetGate,
                    origin,
                    Decision::GateSet { sale: *sale },
                    None,
                );
                Ok(())
            }
            EventKind::CartLines { len, lines } => {
                for &line in &lines[..usize::from(*len)] {
                    let line = self.held_line(line)?;
                    self.cart.push(line);
                }
                Ok(())
            }
            EventKind::Reserved {
                origin,
                first,
                lines,
                hold_ms,
                expires_at,
                ..
            } => {
                let id = ReservationId::new(event.shard, event.sequence);
                self.reserved(id, origin, *first, *lines, *hold_ms, *expires_at)
            }
            EventKind::PaymentBegun {
                origin,
                reservation,
                payment_ref,
                attempt,
                expires_at,
            } => {
                let place = self.live(*reservation)?;
                let hold = *self.holds.get(place);
                let payment = match self.holds.payment(place) {
                    Some(before) => before.next(self.now),
                    None => Payment::first(*payment_ref, hold.time, self.now),
                };
                if payment.attempt != *attempt {
                    return Err(format!(
                        "payment attempt {attempt} follows {}",
                        payment.attempt - 1
                    ));
                }
                self.holds.set_payment(
                    place,
                    Payment {
                        payment_ref: *payment_ref,
                        ..payment
                    },
                );
                self.holds.get_mut(place).status = HoldStatus::InPayment;
                self.move_deadline(place, *expires_at)?;
                let begun = PaymentAttempt {
                    attempt: *attempt,
                    expires_at: *expires_at,
                };
                self.answer(
                    CommandKind::BeginPayment,
                    origin,
                    Decision::PaymentBegun(begun),
                    None,
                );
                Ok(())
            }
            EventKind::PaymentFailed {
                origin,
                reservation,
                attempt,
                disposition,
                expires_at,
            } => {
                let place = self.live(*reservation)?;
                let now = self.now;
                let payment = self
                    .holds
                    .payment_mut(place)
                    .ok_or("no payment was begun")?;
                if payment.attempt != *attempt || !payment.is_under_way {
                    return Err(format!("payment attempt {attempt} is not under way"));
                }
                payment.stop(now);
                let kept = match disposition {
                    Disposition::Keep => {
                        self.holds.get_mut(place).status = HoldStatus::Held;
                        self.move_deadline(place, *expires_at)?;
                        Kept::Until(*expires_at)
                    }
                    Disposition::Release => {
                        self.end(place, HoldStatus::Released)?;
                        Kept::Released
                    }
                };
                self.answer(
                    CommandKind::PaymentFailed,
                    origin,
                    Decision::PaymentFailed(kept),
                    None,
                );
                Ok(())
            }
            EventKind::Confirmed {
                origin,
                reservation,
                asked,
                payment_ref,
                ..
            } => {
                let place = self.live(*reservation)?;
                self.end(place, HoldStatus::Confirmed)?;
                if let Some(payment_ref) = *payment_ref {
                    let bought = Some(*reservation);
                    self.outcomes.insert(Outcome {
                        payment_ref,
                        asked: *asked,
                        bought,
                        decided_at: self.now,
                    });
                }
                let sold = Confirmation::Sold {
                    reservation: *reservation,
                };
                self.answer(
                    CommandKind::Confirm,
                    origin,
                    Decision::Confirmed(sold),
                    None,
                );
                Ok(())
            }
            EventKind::RefundDue {
                origin,
                asked,
                payment_ref,
                ..
            } => {
                let (payment_ref, asked) = (*payment_ref, *asked);
                let decided_at = self.now;
                self.outcomes.insert(Outcome {
                    payment_ref,
                    asked,
                    bought: None,
                    decided_at,
                });
                let refund = Confirmation::RefundDue { payment_ref };
                self.answer(
                    CommandKind::Confirm,
                    origin,
                    Decision::Confirmed(refund),
                    None,
                );
                Ok(())
            }
            EventKind::Released {
                origin,
                reservation,
            } => {
                let place = self.live(*reservation)?;
                self.end(place, HoldStatus::Released)?;
                self.answer(CommandKind::Release, origin, Decision::Released, None);
                Ok(())
            }
            EventKind::Expired { reservation } => {
                let place = self.live(*reservation)?;
                if !self.has_passed(self.holds.get(place).time) {
                    return Err(format!("{reservation} expires before its deadline"));
                }
                self.end(place, HoldStatus::Expired)
            }
            EventKind::Returned {
                origin,
                reservation,
                line,
                units,
                ..
            } => {
                self.returned(*reservation, *line)?;
                if *units > 0 {
                    let returned = Decision::Returned { units: *units };
                    self.answer(CommandKind::Return, origin, returned, None);
                }
                Ok(())
            }
            EventKind::DeadlineMoved {
                reservation,
                expires_at,
            } => {
                let place = self.live(*reservation)?;
                self.move_deadline(place, *expires_at)
            }
            EventKind::DeadlinesCredited { micros } => {
                self.credit_micros = self.credit_micros.saturating_add(*micros);
                Ok(())
            }
            EventKind::Repeated {
                origin,
                kind,
                decision,
            } => {
                let decision = Decision::from_words(*decision).ok_or("an unknown decision")?;
                self.answer(*kind, origin, decision, None);
                Ok(())
            }
            EventKind::PolicySet { policy } => {
                policy.check().map_err(|error| error.to_string())?;
                // What is forgotten stays so, also if the retention grows again.
                self.free(usize::MAX);
                self.policy = *policy;
                self.free(usize::MAX);
                self.keys
                    .keep_last(&self.users, policy.refused_keys_max.into(), self.refusals);
                Ok(())
            }
            EventKind::Withdrawn {
                origin,
                transfer,
                total,
            } => {
                self.withdrawn(transfer, *total)?;
                let units = transfer.units;
                let withdrawn = Decision::Withdrawn { units };
                self.answer(CommandKind::Withdraw, origin, withdrawn, None);
                Ok(())
            }
            EventKind::Deposited {
                origin,
                transfer,
                total,
            } => {
                self.deposited(transfer, *total)?;
                let units = transfer.units;
                let deposited = Decision::Deposited { units };
                self.answer(CommandKind::Deposit, origin, deposited, None);
                Ok(())
            }
        }
    }
}

/// The SKU whose sale's end drops a refused key.
fn refused_sku(record: &RefusalRecord) -> Option<SkuId> {
    use crate::types::Refusal;
    match record.refusal {
        Refusal::RequestLimit { sku, .. }
        | Refusal::UserLimit { sku, .. }
        | Refusal::SoldOut { sku, .. } => Some(sku).filter(|_| record.kind == CommandKind::Reserve),
        _ => None,
    }
}
