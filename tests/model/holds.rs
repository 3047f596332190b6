//! Holds: what may be held, what is, and how it ends but by a payment.

use super::{Decided, Hold, HoldLine, Model, busy};
use stockade::types::{
    Bound, Command, Decision, Expire, HoldStatus, LINES_PER_EVENT, Line, Lines, Refusal, Release,
    Reservation, ReservationId, Reserve, SkuId, Timestamp, UserId,
};

impl Model {
    pub(super) fn reserve(&mut self, c: &Reserve) -> Decided {
        let retention = self.policy.key_retention_ms * 1_000;
        if c.asked_at.as_micros().saturating_add(retention) <= self.now {
            return Err(Refusal::TooOld);
        }
        if c.decide_by.as_micros() < self.now {
            return Err(Refusal::TooLate);
        }
        if self.keys_are_full(&Command::Reserve(c.clone())) {
            return busy(Bound::AcceptedKeys);
        }
        self.room_for(c.user, &c.lines)?;
        let lines = c.lines.as_slice();
        self.all_known(lines)?;
        for &Line { sku, .. } in lines {
            let stock = &self.skus[sku.0 as usize];
            let opens_at = Some(stock.rules.opens_at).filter(|at| at.as_micros() > self.now);
            let is_past = stock.rules.closes_at.as_micros() <= self.now;
            if !stock.is_open || opens_at.is_some() || is_past {
                return Err(Refusal::NotOpen { sku, opens_at });
            }
        }
        let paused = |line: &&Line| self.skus[line.sku.0 as usize].reservations_paused;
        if let Some(&Line { sku, .. }) = lines.iter().find(paused) {
            return Err(Refusal::Paused { sku });
        }
        if lines.len() > usize::from(self.limits.lines_max) {
            let max = self.limits.lines_max;
            return Err(Refusal::TooManyLines { max });
        }
        for (line, &Line { sku, quantity }) in (0..).zip(lines) {
            let max = self.skus[sku.0 as usize].rules.per_request;
            if let Some(max) = max.filter(|&max| quantity > max) {
                return Err(Refusal::RequestLimit { line, sku, max });
            }
        }
        self.units_for(c.user, &c.lines)?;
        Ok(Decision::Reserved(self.hold(c.user, &c.lines)))
    }

    pub(super) fn all_known(&self, lines: &[Line]) -> Result<(), Refusal> {
        let unknown = |line: &Line| line.sku.0 as usize >= self.skus.len();
        match (0..).zip(lines).find(|(_, line)| unknown(line)) {
            Some((line, _)) => Err(Refusal::UnknownSku { line }),
            None => Ok(()),
        }
    }

    pub(super) fn room_for(&self, user: UserId, lines: &Lines) -> Result<(), Refusal> {
        if self.holds.len() >= self.limits.reservations_max as usize {
            let bound = Bound::Reservations;
            return Err(Refusal::Busy { bound });
        }
        let is_new = |line: &&Line| {
            let stock = self.skus.get(line.sku.0 as usize);
            stock.is_some_and(|stock| stock.rules.per_user.is_some())
                && !self.counters.contains_key(&(user, line.sku))
        };
        let new = lines.as_slice().iter().filter(is_new).count();
        if new > 0 && self.counters.len() + new > self.limits.counters_max as usize {
            let bound = Bound::Counters;
            return Err(Refusal::Busy { bound });
        }
        Ok(())
    }

    /// Limits and stock, after what is overdue and matters has lapsed.
    pub(super) fn units_for(&mut self, user: UserId, lines: &Lines) -> Result<(), Refusal> {
        if let Err(refusal) = self.within_limits(user, lines) {
            let overdue: Vec<ReservationId> = self.live().filter(|id| self.is_over(*id)).collect();
            let mut own = overdue;
            own.retain(|id| self.holds[id].user == user);
            if own.is_empty() {
                return Err(refusal);
            }
            for id in own {
                self.lapse(id);
            }
            self.within_limits(user, lines)?;
        }
        for (line, &Line { sku, quantity }) in (0..).zip(lines.as_slice()) {
            loop {
                let now = self.availability(sku);
                if now.available >= u64::from(quantity) {
                    break;
                }
                if now.reserved == 0 || !self.lapse_earliest(self.now) {
                    return Err(Refusal::SoldOut {
                        line,
                        sku,
                        available: u32::try_from(now.available).unwrap_or(u32::MAX),
                        lapsing: u32::try_from(now.reserved).unwrap_or(u32::MAX),
                        not_before: self.earliest_of(sku),
                    });
                }
            }
        }
        Ok(())
    }

    fn within_limits(&self, user: UserId, lines: &Lines) -> Result<(), Refusal> {
        for (line, &Line { sku, quantity }) in (0..).zip(lines.as_slice()) {
            let has = self.counters.get(&(user, sku)).copied().unwrap_or(0);
            let max = self.skus[sku.0 as usize].rules.per_user;
            if let Some(max) = max.filter(|&max| has + quantity > max) {
                return Err(Refusal::UserLimit {
                    line,
                    sku,
                    max,
                    has,
                });
            }
        }
        let live = self.live().filter(|id| self.holds[id].user == user).count();
        let max = self.limits.holds_per_user_max;
        if live >= max as usize {
            return Err(Refusal::HoldLimit { max });
        }
        Ok(())
    }

    pub(super) fn hold(&mut self, user: UserId, lines: &Lines) -> Reservation {
        let lines = lines.as_slice();
        let rules = |line: &Line| self.skus[line.sku.0 as usize].rules;
        let hold_ms = lines.iter().map(|line| rules(line).hold_ms).min();
        let time = self.now + u64::from(hold_ms.unwrap_or(0)) * 1_000;
        self.sequence += 1 + (lines.len() - 1).div_ceil(LINES_PER_EVENT) as u64;
        let kept = lines.iter().map(|&Line { sku, quantity }| {
            let stock = &mut self.skus[sku.0 as usize];
            stock.reserved += u64::from(quantity);
            if stock.rules.per_user.is_some() {
                *self.counters.entry((user, sku)).or_default() += quantity;
            }
            HoldLine {
                sku,
                quantity,
                sale: stock.sale,
                returned: 0,
            }
        });
        let hold = Hold {
            user,
            status: HoldStatus::Held,
            time,
            lines: kept.collect(),
            payment: None,
        };
        let id = ReservationId::new(0, self.sequence);
        self.holds.insert(id, hold);
        Reservation {
            id,
            expires_at: Timestamp::from_micros(time),
        }
    }

    fn live(&self) -> impl Iterator<Item = ReservationId> + '_ {
        let live = self.holds.iter().filter(|(_, hold)| hold.status.is_live());
        live.map(|(&id, _)| id)
    }

    pub(super) fn earliest_of(&self, sku: SkuId) -> Option<Timestamp> {
        let of_sku = self
            .live()
            .filter(|id| self.holds[id].lines.iter().any(|l| l.sku == sku));
        let time = of_sku.map(|id| self.holds[&id].time).min();
        time.map(Timestamp::from_micros)
    }

    /// The live hold with the earliest (deadline, id), if that is not after `by`.
    pub(super) fn lapse_earliest(&mut self, by: u64) -> bool {
        let earliest = self.live().min_by_key(|id| (self.holds[id].time, *id));
        let overdue = earliest.filter(|id| self.holds[id].time <= by);
        overdue.inspect(|&id| self.lapse(id)).is_some()
    }

    fn is_suspended(&self, id: ReservationId) -> bool {
        let hold = &self.holds[&id];
        let in_payment = hold.payment.as_ref().is_some_and(|p| p.is_under_way);
        in_payment && self.paused(id).is_some()
    }

    pub(super) fn paused(&self, id: ReservationId) -> Option<SkuId> {
        let mut skus = self.holds[&id].lines.iter().map(|line| line.sku);
        skus.find(|sku| self.skus[sku.0 as usize].confirms_paused)
    }

    pub(super) fn is_over(&self, id: ReservationId) -> bool {
        let hold = &self.holds[&id];
        hold.status.is_live() && hold.time <= self.now && !self.is_suspended(id)
    }

    fn lapse(&mut self, id: ReservationId) {
        if self.is_suspended(id) {
            self.sequence += 1;
            let grace = u64::from(self.policy.payment_grace_ms) * 1_000;
            self.hold_mut(id).time = self.now + grace;
        } else {
            self.end(id, HoldStatus::Expired);
        }
    }

    /// What a command touches lapses first, if it is overdue.
    pub(super) fn settle(&mut self, id: ReservationId) -> Result<(), Refusal> {
        let hold = self.holds.get(&id).ok_or(Refusal::UnknownReservation)?;
        if hold.status.is_live() && hold.time <= self.now {
            self.lapse(id);
        }
        Ok(())
    }

    pub(super) fn owned(&self, id: ReservationId, user: UserId) -> Result<(), Refusal> {
        let is_own = self.holds[&id].user == user;
        is_own.then_some(()).ok_or(Refusal::NotOwner)
    }

    pub(super) fn live_status(&self, id: ReservationId) -> Result<(), Refusal> {
        let status = self.holds[&id].status;
        let ended = Refusal::Ended { status };
        status.is_live().then_some(()).ok_or(ended)
    }

    pub(super) fn hold_mut(&mut self, id: ReservationId) -> &mut Hold {
        self.holds.get_mut(&id).expect("the hold was looked up")
    }

    /// A live reservation ends, which is one event.
    pub(super) fn end(&mut self, id: ReservationId, status: HoldStatus) {
        self.sequence += 1;
        let now = self.now;
        let hold = self.hold_mut(id);
        assert!(hold.status.is_live(), "L3: a reservation ends once");
        (hold.status, hold.time, hold.payment) = (status, now, None);
        for index in 0..hold.lines.len() {
            let HoldLine { sku, quantity, .. } = self.holds[&id].lines[index];
            let stock = &mut self.skus[sku.0 as usize];
            stock.reserved -= u64::from(quantity);
            if status == HoldStatus::Confirmed {
                stock.sold += u64::from(quantity);
            } else {
                self.give_back(id, index, quantity);
            }
        }
    }

    pub(super) fn give_back(&mut self, id: ReservationId, index: usize, units: u32) {
        let hold = &self.holds[&id];
        let HoldLine { sku, sale, .. } = hold.lines[index];
        let user = hold.user;
        if self.sale_goes_on(sku, sale)
            && let Some(counter) = self.counters.get_mut(&(user, sku))
        {
            *counter -= units;
            if *counter == 0 {
                self.counters.remove(&(user, sku));
            }
        }
    }

    pub(super) fn release(&mut self, c: &Release) -> Decided {
        self.settle(c.reservation)?;
        self.owned(c.reservation, c.user)?;
        self.live_status(c.reservation)?;
        let payment = self.holds[&c.reservation].payment.as_ref();
        if let Some(payment) = payment.filter(|p| p.is_under_way) {
            let attempt = payment.attempt;
            return Err(Refusal::InPayment { attempt });
        }
        self.end(c.reservation, HoldStatus::Released);
        Ok(Decision::Released)
    }

    pub(super) fn expire(&mut self, c: Expire) -> Decided {
        let hold = self.holds.get(&c.reservation);
        let hold = hold.ok_or(Refusal::UnknownReservation)?;
        let was_live = hold.status.is_live();
        self.settle(c.reservation)?;
        let hold = &self.holds[&c.reservation];
        let expires_at = Timestamp::from_micros(hold.time);
        let status = hold.status;
        match (was_live, status.is_live()) {
            (true, false) => Ok(Decision::Expired),
            (_, true) => Err(Refusal::NotDue { expires_at }),
            (false, false) => Err(Refusal::Ended { status }),
        }
    }
}
