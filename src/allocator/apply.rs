//! The one place where state changes: what each event does to the tables. Deciding and replaying both come here.
//!
//! An event is checked against the state before it changes anything that others rely on. What doesn't fit is a
//! [`Violation`]: a bug if it was just decided, a damaged or foreign log if it was read.

use super::holds::{NewHold, Payment};
use super::keys::{AcceptedKey, KeyScope, RefusedKey};
use super::outcomes::Outcome;
use super::stock::Stock;
use super::{Allocator, Violation};
use crate::types::record::PackedRefusal;
use crate::types::{
    Batch, CommandKind, Confirmation, Decision, Disposition, Event, EventKind, HeldLine,
    HoldStatus, Kept, Line, Origin, PaymentAttempt, RefusalRecord, Reservation, ReservationId,
    SEQUENCE_MAX, SkuId, TOTAL_MAX, Timestamp, UserId,
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
        for (event, applied) in batch.events().zip(0_u32..) {
            while let Some(packed) =
                refusals.next_if(|packed| RefusalRecord::events_before(packed) <= applied)
            {
                self.apply_packed(packed)?;
            }
            let event = event.map_err(|error| self.violation(error.to_string()))?;
            self.apply(&event)?;
        }
        for packed in refusals {
            self.apply_packed(packed)?;
        }
        if self.cart.is_empty() && self.name.is_none() {
            Ok(())
        } else {
            Err(self.violation("a command's records straddle two batches"))
        }
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
        self.keys
            .refuse(record, entry, self.policy.refused_keys_max.into());
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
                if stock.total != *total {
                    return Err(format!(
                        "an adjusted total is {}, recorded {total}",
                        stock.total
                    ));
                }
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
                    self.holds.stop_counting(counters);
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
                    .keep_last(policy.refused_keys_max.into(), self.refusals);
                Ok(())
            }
        }
    }

    /// A SKU whose counts are about to change.
    pub(super) fn stock_mut(&mut self, sku: SkuId) -> Result<&mut Stock, String> {
        let stock = self.stocks.get_mut(sku.0 as usize);
        let stock = stock.ok_or_else(|| format!("SKU {sku} is not defined"))?;
        if !stock.is_touched {
            stock.is_touched = true;
            self.touched.push(sku);
        }
        Ok(stock)
    }

    fn live(&self, id: ReservationId) -> Result<u32, String> {
        let place = self
            .holds
            .place_of(id)
            .ok_or_else(|| format!("{id} is unknown"))?;
        let status = self.holds.get(place).status;
        if status.is_live() {
            Ok(place)
        } else {
            Err(format!("L3: {id} has ended already, {}", status.name()))
        }
    }

    fn held_line(&self, line: Line) -> Result<HeldLine, String> {
        let stock = self.stocks.get(line.sku.0 as usize);
        let stock = stock.ok_or_else(|| format!("SKU {} is not defined", line.sku))?;
        Ok(HeldLine {
            line,
            sale: stock.sale,
            returned: 0,
        })
    }

    fn reserved(
        &mut self,
        id: ReservationId,
        origin: &Origin,
        first: Line,
        lines: u16,
        hold_ms: u32,
        expires_at: Timestamp,
    ) -> Result<(), String> {
        let first = self.held_line(first)?;
        let more = std::mem::take(&mut self.cart);
        if usize::from(lines) != more.len() + 1 {
            return Err(format!(
                "{id} has {lines} lines, {} are recorded",
                more.len() + 1
            ));
        }
        for held in std::iter::once(&first).chain(&more) {
            let Line { sku, quantity } = held.line;
            let stock = self.stock_mut(sku)?;
            stock.reserve(quantity)?;
            if stock.rules.per_user.is_some() {
                self.count(origin.user, sku, held.sale, quantity);
            }
        }
        let scope = self.scope_of(first.line.sku);
        let time = self.without_credit(expires_at)?;
        let place = self.holds.insert(&NewHold {
            id,
            user: origin.user,
            first,
            more: &more,
            time,
            hold_ms,
            status: HoldStatus::Held,
            is_moved: false,
        });
        self.schedule(place);
        self.cart = more;
        self.cart.clear();
        let decision = Decision::Reserved(Reservation { id, expires_at });
        self.answer(CommandKind::Reserve, origin, decision, scope);
        Ok(())
    }

    pub(super) fn count(&mut self, user: UserId, sku: SkuId, sale: u32, units: u32) {
        let begins = self.holds.count(user, sku, sale, units);
        self.stocks[sku.0 as usize].counters += u32::from(begins);
    }

    fn without_credit(&self, at: Timestamp) -> Result<Timestamp, String> {
        let micros = at.as_micros().checked_sub(self.credit_micros);
        micros
            .map(Timestamp::from_micros)
            .ok_or_else(|| "a deadline lies before all credits".into())
    }

    fn move_deadline(&mut self, place: u32, expires_at: Timestamp) -> Result<(), String> {
        let time = self.without_credit(expires_at)?;
        let hold = self.holds.get_mut(place);
        if hold.time == time {
            return Ok(());
        }
        hold.time = time;
        hold.is_moved = true;
        self.schedule(place);
        Ok(())
    }

    /// Enters a live hold under its deadline.
    pub(super) fn schedule(&mut self, place: u32) {
        let hold = *self.holds.get(place);
        if hold.is_moved || !self.deadlines.push(hold.hold_ms, hold.time, hold.id) {
            self.holds.get_mut(place).in_heap = true;
            self.deadlines.push_moved(hold.time, hold.id, &self.holds);
        }
    }

    /// Ends a live reservation and moves its units.
    fn end(&mut self, place: u32, status: HoldStatus) -> Result<(), String> {
        let user = self.holds.user_of(place);
        let lines = usize::from(self.holds.get(place).lines);
        for index in 0..lines {
            let Some(&mut held) = self.holds.line_mut(place, index) else {
                break;
            };
            let Line { sku, quantity } = held.line;
            let stock = self.stock_mut(sku)?;
            if status == HoldStatus::Confirmed {
                stock.sell(quantity)?;
                continue;
            }
            stock.release(quantity)?;
            self.give_allowance_back(user, &held, quantity)?;
        }
        let id = self.holds.get(place).id;
        self.holds.end(place, status, self.now);
        self.ended.push(id);
        Ok(())
    }

    fn give_allowance_back(
        &mut self,
        user: UserId,
        held: &HeldLine,
        units: u32,
    ) -> Result<(), String> {
        let sku = held.line.sku;
        let stock = &mut self.stocks[sku.0 as usize];
        if stock.rules.per_user.is_none() || !stock.counts(held.sale) {
            return Ok(());
        }
        let was_last = self.holds.discount(user, sku, held.sale, units);
        let was_last = was_last.ok_or_else(|| {
            format!("L2: a user's counter of SKU {sku} is below what he gives back")
        })?;
        stock.counters -= u32::from(was_last);
        Ok(())
    }

    fn returned(&mut self, reservation: Option<ReservationId>, line: Line) -> Result<(), String> {
        self.stock_mut(line.sku)?.take_back(line.quantity)?;
        let Some(id) = reservation else { return Ok(()) };
        let place = self
            .holds
            .place_of(id)
            .ok_or_else(|| format!("{id} is unknown"))?;
        let index = self
            .holds
            .lines(place)
            .position(|held| held.line.sku == line.sku);
        let held = index.and_then(|index| self.holds.line_mut(place, index));
        let held = held.ok_or_else(|| format!("{id} has no line of SKU {}", line.sku))?;
        held.returned = held.returned.saturating_add(line.quantity);
        let held = *held;
        if held.returned > held.line.quantity {
            return Err(format!("L2: more of {id} returned than it sold"));
        }
        let user = self.holds.user_of(place);
        self.give_allowance_back(user, &held, line.quantity)
    }

    /// The sale whose end drops a key; none before the first sale or after its end.
    fn scope_of(&self, sku: SkuId) -> Option<KeyScope> {
        let stock = self.stocks.get(sku.0 as usize)?;
        stock.counts(stock.sale).then_some(KeyScope {
            sku,
            sale: stock.sale,
        })
    }

    /// Remembers an accepted command's answer for its key.
    fn answer(
        &mut self,
        kind: CommandKind,
        origin: &Origin,
        decision: Decision,
        scope: Option<KeyScope>,
    ) {
        if origin.key.is_some() {
            self.keys.accept(AcceptedKey {
                origin: *origin,
                decided_at: self.now,
                decision: decision.to_words(),
                scope: scope.unwrap_or_default(),
                kind,
            });
        }
    }
}

impl Payment {
    fn first(payment_ref: crate::types::PaymentRef, base: Timestamp, now: Timestamp) -> Self {
        Self {
            payment_ref,
            base,
            began_at: now,
            spent_micros: 0,
            attempt: 1,
            is_under_way: true,
        }
    }

    /// The next attempt; one that is still under way ends here.
    pub(super) fn next(mut self, now: Timestamp) -> Self {
        self.stop(now);
        Self {
            attempt: self.attempt + 1,
            began_at: now,
            is_under_way: true,
            ..self
        }
    }

    pub(super) fn stop(&mut self, now: Timestamp) {
        if self.is_under_way {
            self.spent_micros += now.micros_since(self.began_at);
            self.is_under_way = false;
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
