//! What events do to the tables, in the steps that several of them share: hold units, move a deadline, end a reservation,
//! take units back, answer a key. Called by `apply` alone, but for what restoring a state needs too.

use super::Allocator;
use super::holds::{NewHold, Payment};
use super::keys::{AcceptedKey, KeyScope};
use super::stock::Stock;
use crate::types::{
    CommandKind, Decision, HeldLine, HoldStatus, Line, Origin, Reservation, ReservationId, SkuId,
    Timestamp,
};

impl Allocator {
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

    pub(super) fn live(&self, id: ReservationId) -> Result<u32, String> {
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

    pub(super) fn held_line(&self, line: Line) -> Result<HeldLine, String> {
        let stock = self.stocks.get(line.sku.0 as usize);
        let stock = stock.ok_or_else(|| format!("SKU {} is not defined", line.sku))?;
        Ok(HeldLine {
            line,
            sale: stock.sale,
            returned: 0,
        })
    }

    pub(super) fn reserved(
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
        let user = self.users.find_or_insert(origin.user);
        for held in std::iter::once(&first).chain(&more) {
            let Line { sku, quantity } = held.line;
            let stock = self.stock_mut(sku)?;
            stock.reserve(quantity)?;
            if stock.rules.per_user.is_some() {
                self.count(user, sku, held.sale, quantity);
            }
        }
        let scope = self.scope_of(first.line.sku);
        let time = self.without_credit(expires_at)?;
        let new = NewHold {
            id,
            user,
            first,
            more: &more,
            time,
            hold_ms,
            status: HoldStatus::Held,
            is_moved: false,
        };
        let place = self.holds.insert(&mut self.users, &new);
        if !self.deadlines.push(hold_ms, time, id) {
            self.move_to_heap(place);
        }
        self.cart = more;
        self.cart.clear();
        let decision = Decision::Reserved(Reservation { id, expires_at });
        if let Some(key) = origin.key {
            let entry = self.accepted(CommandKind::Reserve, origin, decision, scope);
            self.keys.accept(&mut self.users, user, key, &entry);
        }
        Ok(())
    }

    /// Counts units of a user at a place.
    pub(super) fn count(&mut self, user: u32, sku: SkuId, sale: u32, units: u32) {
        let begins = self.users.count(user, sku, sale, units);
        self.stocks[sku.0 as usize].counters += u32::from(begins);
    }

    pub(super) fn without_credit(&self, at: Timestamp) -> Result<Timestamp, String> {
        let micros = at.as_micros().checked_sub(self.credit_micros);
        micros
            .map(Timestamp::from_micros)
            .ok_or_else(|| "a deadline lies before all credits".into())
    }

    pub(super) fn move_deadline(
        &mut self,
        place: u32,
        expires_at: Timestamp,
    ) -> Result<(), String> {
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
        let hold = self.holds.get(place);
        if hold.is_moved || !self.deadlines.push(hold.hold_ms, hold.time, hold.id) {
            self.move_to_heap(place);
        }
    }

    fn move_to_heap(&mut self, place: u32) {
        let hold = self.holds.get_mut(place);
        hold.in_heap = true;
        let (time, id) = (hold.time, hold.id);
        self.deadlines.push_moved(time, id, &self.holds);
    }

    /// Ends a live reservation and moves its units.
    pub(super) fn end(&mut self, place: u32, status: HoldStatus) -> Result<(), String> {
        let user = self.holds.get(place).user;
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
        self.holds.end(&mut self.users, place, status, self.now);
        self.ended.push(id);
        Ok(())
    }

    pub(super) fn give_allowance_back(
        &mut self,
        user: u32,
        held: &HeldLine,
        units: u32,
    ) -> Result<(), String> {
        let sku = held.line.sku;
        let stock = &mut self.stocks[sku.0 as usize];
        if stock.rules.per_user.is_none() || !stock.counts(held.sale) {
            return Ok(());
        }
        let was_last = self.users.discount(user, sku, held.sale, units);
        let was_last = was_last.ok_or_else(|| {
            format!("L2: a user's counter of SKU {sku} is below what he gives back")
        })?;
        stock.counters -= u32::from(was_last);
        Ok(())
    }

    pub(super) fn returned(
        &mut self,
        reservation: Option<ReservationId>,
        line: Line,
    ) -> Result<(), String> {
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
        let user = self.holds.get(place).user;
        self.give_allowance_back(user, &held, line.quantity)
    }

    /// The sale whose end drops a key; none before the first sale or after its end.
    pub(super) fn scope_of(&self, sku: SkuId) -> Option<KeyScope> {
        let stock = self.stocks.get(sku.0 as usize)?;
        stock.counts(stock.sale).then_some(KeyScope {
            sku,
            sale: stock.sale,
        })
    }

    /// Remembers an accepted command's answer for its key.
    pub(super) fn answer(
        &mut self,
        kind: CommandKind,
        origin: &Origin,
        decision: Decision,
        scope: Option<KeyScope>,
    ) {
        if let Some(key) = origin.key {
            let user = self.users.find_or_insert(origin.user);
            let entry = self.accepted(kind, origin, decision, scope);
            self.keys.accept(&mut self.users, user, key, &entry);
        }
    }

    fn accepted(
        &self,
        kind: CommandKind,
        origin: &Origin,
        decision: Decision,
        scope: Option<KeyScope>,
    ) -> AcceptedKey {
        AcceptedKey {
            origin: *origin,
            decided_at: self.now,
            decision: decision.to_words(),
            scope: scope.unwrap_or_default(),
            kind,
        }
    }
}

impl Payment {
    pub(super) fn first(
        payment_ref: crate::types::PaymentRef,
        base: Timestamp,
        now: Timestamp,
    ) -> Self {
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
