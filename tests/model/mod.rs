//! A naive model of the allocator: the same commands at the same stamps get the same answers.
//!
//! Written from the documentation, with maps and linear scans and no cleverness: every deadline is kept as it is
//! (a credit moves each of them), a payload is compared field by field, and what time has ended is thrown away
//! at once. It serves the property tests and the fuzz target. Left out: records, hashes, recovery.

pub(crate) mod pair;
pub(crate) mod script;

use std::collections::{BTreeMap, BTreeSet};
use stockade::allocator::Limits;
use stockade::types::{
    Account, Adjust, Answer, Availability, BeginPayment, Bound, Command, CommandKind, Confirm,
    Confirmation, Decision, DefineSku, Deposit, Disposition, Expire, Field, Gate, HoldStatus,
    IdempotencyKey, Kept, LINES_PER_EVENT, Line, Lines, Moved, PaymentAttempt, PaymentFailed,
    PaymentRef, Policy, PoolView, Query, QueryAnswer, Refusal, Release, Reservation, ReservationId,
    ReservationView, Reserve, Return, Rules, SaleStatus, SetGate, SkuId, SkuName, SkuView,
    TOTAL_MAX, Timestamp, Transfer, UserId, Withdraw,
};

/// Different hold durations that an engine takes.
const DURATIONS_MAX: usize = 64;

/// The shard that the scripts' batches are of.
const SHARD: u16 = 0;

#[expect(clippy::struct_excessive_bools, reason = "each gate by its name")]
struct Sku {
    name: SkuName,
    rules: Rules,
    defined_total: u64,
    total: u64,
    reserved: u64,
    sold: u64,
    deltas: i64,
    sale: u32,
    is_open: bool,
    has_ended: bool,
    reservations_paused: bool,
    confirms_paused: bool,
}

struct Payment {
    reference: PaymentRef,
    attempt: u32,
    is_under_way: bool,
    began_at: u64,
    spent: u64,
    base: u64,
}

struct HoldLine {
    sku: SkuId,
    quantity: u32,
    sale: u32,
    returned: u32,
}

struct Hold {
    user: UserId,
    status: HoldStatus,
    /// While live the deadline, then the time of its end.
    time: u64,
    lines: Vec<HoldLine>,
    payment: Option<Payment>,
}

struct Key {
    command: Command,
    decision: Decision,
    decided_at: u64,
    scope: Option<(SkuId, u32)>,
    /// For a refusal, its number.
    ordinal: Option<u64>,
}

struct Outcome {
    asked: ReservationId,
    bought: Option<ReservationId>,
    decided_at: u64,
}

type Decided = Result<Decision, Refusal>;

/// See the module.
pub(crate) struct Model {
    limits: Limits,
    policy: Policy,
    now: u64,
    pub(crate) sequence: u64,
    refusals: u64,
    skus: Vec<Sku>,
    holds: BTreeMap<ReservationId, Hold>,
    counters: BTreeMap<(UserId, SkuId), u32>,
    keys: Vec<Key>,
    outcomes: BTreeMap<PaymentRef, Outcome>,
    /// Every transfer to and from a peer, the first first.
    sent: BTreeMap<(SkuId, u16), Vec<u64>>,
    received: BTreeMap<(SkuId, u16), Vec<u64>>,
}

impl Model {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            policy: Policy::default(),
            now: 0,
            sequence: 0,
            refusals: 0,
            skus: Vec::new(),
            holds: BTreeMap::new(),
            counters: BTreeMap::new(),
            keys: Vec::new(),
            outcomes: BTreeMap::new(),
            sent: BTreeMap::new(),
            received: BTreeMap::new(),
        }
    }

    /// A batch begins: what time has ended is forgotten.
    pub(crate) fn begin(&mut self, stamp: Timestamp) {
        self.now = stamp.as_micros();
        self.forget();
    }

    pub(crate) fn set_policy(&mut self, policy: Policy) {
        self.sequence += 1;
        self.policy = policy;
        self.forget();
    }

    fn forget(&mut self) {
        let now = self.now;
        let keys_ms = self.policy.key_retention_ms * 1_000;
        let ended_ms = self.policy.ended_retention_ms * 1_000;
        let (refused_max, refusals) = (u64::from(self.policy.refused_keys_max), self.refusals);
        self.holds
            .retain(|_, hold| hold.status.is_live() || hold.time + ended_ms > now);
        self.outcomes
            .retain(|_, outcome| outcome.decided_at + ended_ms > now);
        self.keys.retain(|key| {
            key.decided_at + keys_ms > now && key.ordinal.is_none_or(|n| n + refused_max > refusals)
        });
    }

    pub(crate) fn sweep(&mut self, load: u32) {
        for _ in 0..self.limits.expiries_per_batch_max.max(2 * load) {
            if !self.lapse_earliest(self.now) {
                break;
            }
        }
    }

    pub(crate) fn credit(&mut self, micros: u64) {
        while self.lapse_earliest(self.now.saturating_sub(micros)) {}
        self.sequence += 1;
        for hold in self.holds.values_mut().filter(|hold| hold.status.is_live()) {
            hold.time += micros;
            if let Some(payment) = &mut hold.payment {
                payment.base += micros;
            }
        }
    }

    pub(crate) fn skus(&self) -> usize {
        self.skus.len()
    }

    /// `not_before` is the true time of the earliest lapse: what is published may lie before it.
    pub(crate) fn availability(&self, sku: SkuId) -> Availability {
        let stock = &self.skus[sku.0 as usize];
        let available = stock.total - stock.reserved - stock.sold;
        Availability {
            sku,
            available,
            reserved: stock.reserved,
            sold: stock.sold,
            total: stock.total,
            sequence: self.sequence,
            as_of: Timestamp::from_micros(self.now),
            not_before: self.earliest_of(sku).filter(|_| available == 0),
        }
    }

    pub(crate) fn decide(&mut self, command: &Command) -> Answer {
        if let Command::Query(query) = command {
            return Answer::Found(Box::new(self.query(query)));
        }
        let known = self.known(command.kind(), command.origin().user, key_of(command));
        if let Some(known) = known {
            return Answer::Decided(match difference(&known.command, command) {
                Some(field) => Decision::Refused(Refusal::KeyConflict { field }),
                None => known.decision,
            });
        }
        let decided = match command {
            Command::Reserve(c) => self.reserve(c),
            _ if self.keys_are_full(command) => busy(Bound::AcceptedKeys),
            Command::BeginPayment(c) => self.begin_payment(c),
            Command::PaymentFailed(c) => self.payment_failed(c),
            Command::Confirm(c) => self.confirm(c),
            Command::Release(c) => self.release(c),
            Command::Expire(c) => self.expire(*c),
            Command::Return(c) => self.return_units(c),
            Command::Adjust(c) => self.adjust(c),
            Command::DefineSku(c) => self.define(c),
            Command::SetGate(c) => self.set_gate(c),
            Command::Withdraw(c) => self.withdraw(c),
            Command::Deposit(c) => self.deposit(c),
            _ => panic!("a command that the model does not know"),
        };
        let decision = decided.unwrap_or_else(Decision::Refused);
        if key_of(command).is_some() {
            self.remember(command, decision);
        }
        Answer::Decided(decision)
    }

    fn remember(&mut self, command: &Command, decision: Decision) {
        let scope = |sku: SkuId| Some((sku, self.skus[sku.0 as usize].sale));
        let (scope, ordinal) = match (decision, command) {
            (Decision::Refused(refusal), _) => {
                let scope = match refusal {
                    Refusal::KeyConflict { .. }
                    | Refusal::TooOld
                    | Refusal::TooLate
                    | Refusal::Busy { .. }
                    | Refusal::UnknownSku { .. }
                    | Refusal::NotOpen { .. }
                    | Refusal::Paused { .. }
                    | Refusal::OutOfOrder { .. }
                    | Refusal::NothingToMove { .. } => return,
                    Refusal::RequestLimit { sku, .. }
                    | Refusal::UserLimit { sku, .. }
                    | Refusal::SoldOut { sku, .. } => scope(sku),
                    _ => None,
                };
                self.refusals += 1;
                (scope, Some(self.refusals))
            }
            (_, Command::Reserve(c)) => (scope(c.lines.first().sku), None),
            _ => (None, None),
        };
        self.keys.push(Key {
            command: command.clone(),
            decision,
            decided_at: self.now,
            scope,
            ordinal,
        });
        self.forget();
    }

    fn known(&self, kind: CommandKind, user: UserId, key: Option<IdempotencyKey>) -> Option<&Key> {
        let key = key?;
        self.keys.iter().rev().find(|known| {
            known.command.kind() == kind
                && known.command.origin().user == user
                && key_of(&known.command) == Some(key)
                && known
                    .scope
                    .is_none_or(|(sku, sale)| self.sale_goes_on(sku, sale))
        })
    }

    fn sale_goes_on(&self, sku: SkuId, sale: u32) -> bool {
        let stock = &self.skus[sku.0 as usize];
        stock.sale == sale && !stock.has_ended
    }

    fn keys_are_full(&self, command: &Command) -> bool {
        let accepted = self.keys.iter().filter(|key| key.ordinal.is_none()).count();
        key_of(command).is_some() && accepted >= self.limits.accepted_keys_max as usize
    }

    /// Accepted without a change: only a keyed command leaves an event.
    #[expect(clippy::unnecessary_wraps, reason = "the tail of every rule")]
    fn unchanged(&mut self, key: Option<IdempotencyKey>, decision: Decision) -> Decided {
        self.sequence += u64::from(key.is_some());
        Ok(decision)
    }

    fn reserve(&mut self, c: &Reserve) -> Decided {
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

    fn all_known(&self, lines: &[Line]) -> Result<(), Refusal> {
        let unknown = |line: &Line| line.sku.0 as usize >= self.skus.len();
        match (0..).zip(lines).find(|(_, line)| unknown(line)) {
            Some((line, _)) => Err(Refusal::UnknownSku { line }),
            None => Ok(()),
        }
    }

    fn room_for(&self, user: UserId, lines: &Lines) -> Result<(), Refusal> {
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
    fn units_for(&mut self, user: UserId, lines: &Lines) -> Result<(), Refusal> {
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

    fn hold(&mut self, user: UserId, lines: &Lines) -> Reservation {
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

    fn earliest_of(&self, sku: SkuId) -> Option<Timestamp> {
        let of_sku = self
            .live()
            .filter(|id| self.holds[id].lines.iter().any(|l| l.sku == sku));
        let time = of_sku.map(|id| self.holds[&id].time).min();
        time.map(Timestamp::from_micros)
    }

    /// The live hold with the earliest (deadline, id), if that is not after `by`.
    fn lapse_earliest(&mut self, by: u64) -> bool {
        let earliest = self.live().min_by_key(|id| (self.holds[id].time, *id));
        let overdue = earliest.filter(|id| self.holds[id].time <= by);
        overdue.inspect(|&id| self.lapse(id)).is_some()
    }

    fn is_suspended(&self, id: ReservationId) -> bool {
        let hold = &self.holds[&id];
        let in_payment = hold.payment.as_ref().is_some_and(|p| p.is_under_way);
        in_payment && self.paused(id).is_some()
    }

    fn paused(&self, id: ReservationId) -> Option<SkuId> {
        let mut skus = self.holds[&id].lines.iter().map(|line| line.sku);
        skus.find(|sku| self.skus[sku.0 as usize].confirms_paused)
    }

    fn is_over(&self, id: ReservationId) -> bool {
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
    fn settle(&mut self, id: ReservationId) -> Result<(), Refusal> {
        let hold = self.holds.get(&id).ok_or(Refusal::UnknownReservation)?;
        if hold.status.is_live() && hold.time <= self.now {
            self.lapse(id);
        }
        Ok(())
    }

    fn owned(&self, id: ReservationId, user: UserId) -> Result<(), Refusal> {
        let is_own = self.holds[&id].user == user;
        is_own.then_some(()).ok_or(Refusal::NotOwner)
    }

    fn live_status(&self, id: ReservationId) -> Result<(), Refusal> {
        let status = self.holds[&id].status;
        let ended = Refusal::Ended { status };
        status.is_live().then_some(()).ok_or(ended)
    }

    fn hold_mut(&mut self, id: ReservationId) -> &mut Hold {
        self.holds.get_mut(&id).expect("the hold was looked up")
    }

    /// A live reservation ends, which is one event.
    fn end(&mut self, id: ReservationId, status: HoldStatus) {
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

    fn give_back(&mut self, id: ReservationId, index: usize, units: u32) {
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

    fn begin_payment(&mut self, c: &BeginPayment) -> Decided {
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

    fn payment_failed(&mut self, c: &PaymentFailed) -> Decided {
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

    fn confirm(&mut self, c: &Confirm) -> Decided {
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

    fn release(&mut self, c: &Release) -> Decided {
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

    fn expire(&mut self, c: Expire) -> Decided {
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

    fn return_units(&mut self, c: &Return) -> Decided {
        let asked = c.lines.as_ref().map(|lines| lines.as_slice().to_vec());
        self.all_known(asked.as_deref().unwrap_or(&[]))?;
        let left: Option<BTreeMap<SkuId, u32>> = match c.reservation {
            None => None,
            Some(id) => {
                let hold = self.holds.get(&id).ok_or(Refusal::UnknownReservation)?;
                if hold.status != HoldStatus::Confirmed {
                    return Err(Refusal::NotConfirmed);
                }
                let left = hold.lines.iter().map(|l| (l.sku, l.quantity - l.returned));
                Some(left.collect())
            }
        };
        let all = || {
            let id = c.reservation?;
            let lines = self.holds[&id].lines.iter().map(|l| Line {
                sku: l.sku,
                quantity: l.quantity - l.returned,
            });
            Some(lines.filter(|line| line.quantity > 0).collect())
        };
        let lines: Vec<Line> = asked.or_else(all).unwrap_or_default();
        if lines.is_empty() {
            return Err(Refusal::NotConfirmed);
        }
        for (line, &Line { sku, quantity }) in (0..).zip(&lines) {
            let mut sold = self.skus[sku.0 as usize].sold;
            if let Some(left) = &left {
                sold = sold.min(left.get(&sku).copied().unwrap_or(0).into());
            }
            if u64::from(quantity) > sold {
                return Err(Refusal::ExceedsSold { line, sku, sold });
            }
        }
        for &Line { sku, quantity } in &lines {
            self.sequence += 1;
            self.skus[sku.0 as usize].sold -= u64::from(quantity);
            let Some(id) = c.reservation else { continue };
            let of_sku = self.holds[&id].lines.iter().position(|l| l.sku == sku);
            let index = of_sku.expect("units were left of it");
            self.hold_mut(id).lines[index].returned += quantity;
            self.give_back(id, index, quantity);
        }
        let units = lines.iter().map(|line| u64::from(line.quantity)).sum();
        Ok(Decision::Returned { units })
    }

    fn adjust(&mut self, c: &Adjust) -> Decided {
        let stock = self.skus.get_mut(c.sku.0 as usize);
        let stock = stock.ok_or(Refusal::UnknownSku { line: 0 })?;
        let min = stock.reserved + stock.sold;
        let total = stock.total.checked_add_signed(c.delta);
        let total = total.filter(|&total| total >= min && total <= TOTAL_MAX);
        stock.total = total.ok_or(Refusal::TotalOutOfRange { min })?;
        stock.deltas += c.delta;
        self.sequence += 1;
        let total = stock.total;
        Ok(Decision::Adjusted { total })
    }

    fn withdraw(&mut self, c: &Withdraw) -> Decided {
        let Transfer {
            sku,
            from,
            to,
            number,
            units,
        } = c.transfer();
        let made = self.sent.get(&(sku, to)).cloned().unwrap_or_default();
        let last = made.len() as u64;
        if from == SHARD && number == last {
            let units = made[made.len() - 1];
            return self.unchanged(Some(c.key), Decision::Withdrawn { units });
        }
        self.room_for_peer(sku, to)?;
        let stock = self.skus.get_mut(sku.0 as usize);
        let stock = stock.ok_or(Refusal::UnknownSku { line: 0 })?;
        if from != SHARD {
            return Err(Refusal::OtherShard { shard: SHARD });
        }
        if number != last + 1 {
            let expected = last + 1;
            return Err(Refusal::OutOfOrder { expected });
        }
        let units = units.min(stock.total - stock.reserved - stock.sold);
        if units == 0 {
            return Err(Refusal::NothingToMove { sku });
        }
        stock.total -= units;
        self.sequence += 1;
        self.sent.entry((sku, to)).or_default().push(units);
        Ok(Decision::Withdrawn { units })
    }

    fn deposit(&mut self, c: &Deposit) -> Decided {
        let Transfer {
            sku,
            from,
            to,
            number,
            units,
        } = c.transfer();
        let made = self.received.get(&(sku, from)).cloned().unwrap_or_default();
        let last = made.len() as u64;
        if to == SHARD && number == last && made.last() == Some(&units) {
            return self.unchanged(Some(c.key), Decision::Deposited { units });
        }
        self.room_for_peer(sku, from)?;
        let stock = self.skus.get_mut(sku.0 as usize);
        let stock = stock.ok_or(Refusal::UnknownSku { line: 0 })?;
        if stock.total + units > TOTAL_MAX {
            let min = stock.reserved + stock.sold;
            return Err(Refusal::TotalOutOfRange { min });
        }
        if to != SHARD {
            return Err(Refusal::OtherShard { shard: SHARD });
        }
        if number != last + 1 {
            let expected = last + 1;
            return Err(Refusal::OutOfOrder { expected });
        }
        stock.total += units;
        self.sequence += 1;
        self.received.entry((sku, from)).or_default().push(units);
        Ok(Decision::Deposited { units })
    }

    fn room_for_peer(&self, sku: SkuId, peer: u16) -> Result<(), Refusal> {
        let known: BTreeSet<_> = self.sent.keys().chain(self.received.keys()).collect();
        let max = self.limits.transfers_max as usize;
        if known.len() >= max && !known.contains(&(sku, peer)) {
            let bound = Bound::Transfers;
            return Err(Refusal::Busy { bound });
        }
        Ok(())
    }

    fn pool_view(&self, sku: SkuId) -> PoolView {
        let stock = &self.skus[sku.0 as usize];
        let peers: BTreeSet<u16> = self
            .sent
            .keys()
            .chain(self.received.keys())
            .filter(|(of, _)| *of == sku)
            .map(|&(_, peer)| peer)
            .collect();
        let account = |peer| Account {
            sku,
            peer,
            sent: sum_of(self.sent.get(&(sku, peer))),
            received: sum_of(self.received.get(&(sku, peer))),
        };
        PoolView {
            shard: SHARD,
            sku,
            opening: stock.defined_total,
            deltas: stock.deltas,
            total: stock.total,
            available: stock.total - stock.reserved - stock.sold,
            reserved: stock.reserved,
            sold: stock.sold,
            accounts: peers.into_iter().map(account).collect(),
        }
    }

    fn define(&mut self, c: &DefineSku) -> Decided {
        let count = self.skus.len();
        if let Some(at) = self.skus.iter().position(|sku| sku.name == c.name) {
            let known = &self.skus[at];
            let field = if known.defined_total != c.total {
                Field::Total
            } else if known.rules != c.rules_given() {
                Field::Rules
            } else {
                let sku = SkuId(u32::try_from(at).expect("few SKUs"));
                return self.unchanged(c.key, Decision::Defined { sku });
            };
            return Err(Refusal::SkuDiffers { field });
        }
        if count >= self.limits.skus_max as usize {
            return busy(Bound::Skus);
        }
        let mut durations: Vec<u32> = self.skus.iter().map(|sku| sku.rules.hold_ms).collect();
        durations.sort_unstable();
        durations.dedup();
        if durations.len() >= DURATIONS_MAX && !durations.contains(&c.rules_given().hold_ms) {
            return busy(Bound::HoldDurations);
        }
        if c.total > TOTAL_MAX {
            return Err(Refusal::TotalOutOfRange { min: 0 });
        }
        self.sequence += 2;
        self.skus.push(Sku {
            name: c.name.clone(),
            rules: c.rules_given(),
            defined_total: c.total,
            total: c.total,
            reserved: 0,
            sold: 0,
            deltas: 0,
            sale: 0,
            is_open: false,
            has_ended: true,
            reservations_paused: false,
            confirms_paused: false,
        });
        let sku = SkuId(u32::try_from(count).expect("few SKUs"));
        Ok(Decision::Defined { sku })
    }

    fn set_gate(&mut self, c: &SetGate) -> Decided {
        let stock = self.skus.get_mut(c.sku.0 as usize);
        let stock = stock.ok_or(Refusal::UnknownSku { line: 0 })?;
        let gates = |stock: &Sku| {
            [
                stock.is_open,
                stock.has_ended,
                stock.reservations_paused,
                stock.confirms_paused,
            ]
        };
        let before = gates(stock);
        match c.change {
            Gate::Open => {
                stock.sale += u32::from(stock.has_ended);
                (stock.is_open, stock.has_ended) = (true, false);
            }
            Gate::Close => stock.is_open = false,
            Gate::PauseReservations => stock.reservations_paused = true,
            Gate::ResumeReservations => stock.reservations_paused = false,
            Gate::PauseConfirms => stock.confirms_paused = true,
            Gate::ResumeConfirms => stock.confirms_paused = false,
            Gate::EndSale => (stock.is_open, stock.has_ended) = (false, true),
        }
        let sale = stock.sale;
        let decision = Decision::GateSet { sale };
        if gates(stock) == before {
            return self.unchanged(c.key, decision);
        }
        if stock.has_ended {
            self.counters.retain(|&(_, sku), _| sku != c.sku);
        }
        self.sequence += 1;
        Ok(decision)
    }

    fn view(&self, id: ReservationId) -> ReservationView {
        let hold = &self.holds[&id];
        let lines = hold.lines.iter().map(|l| Line {
            sku: l.sku,
            quantity: l.quantity - l.returned,
        });
        let expired = self.is_over(id).then_some(HoldStatus::Expired);
        ReservationView {
            id,
            user: hold.user,
            status: expired.unwrap_or(hold.status),
            expires_at: Timestamp::from_micros(hold.time),
            attempt: hold.payment.as_ref().map_or(0, |payment| payment.attempt),
            lines: lines.collect(),
        }
    }

    fn sku_view(&self, sku: SkuId) -> SkuView {
        let stock = &self.skus[sku.0 as usize];
        let status = match (stock.sale, stock.has_ended, stock.is_open) {
            (0, ..) => SaleStatus::NeverOpened,
            (_, true, _) => SaleStatus::Ended,
            (_, false, true) => SaleStatus::Open,
            (_, false, false) => SaleStatus::Closed,
        };
        SkuView {
            sku,
            name: stock.name.clone(),
            rules: stock.rules,
            defined_total: stock.defined_total,
            total: stock.total,
            available: stock.total - stock.reserved - stock.sold,
            reserved: stock.reserved,
            sold: stock.sold,
            sale: stock.sale,
            status,
            reservations_paused: stock.reservations_paused,
            confirms_paused: stock.confirms_paused,
        }
    }

    fn query(&self, query: &Query) -> QueryAnswer {
        match query {
            Query::Reservation(id) => {
                let known = self.holds.contains_key(id);
                QueryAnswer::Reservation(known.then(|| self.view(*id)))
            }
            Query::ReservationsOf(user) => {
                let newest_first = self.holds.iter().rev();
                let own = newest_first.filter(|(_, hold)| hold.user == *user);
                QueryAnswer::Reservations(own.map(|(&id, _)| self.view(id)).collect())
            }
            Query::Status { user, kind, key } => {
                let known = self.known(*kind, *user, Some(*key));
                QueryAnswer::Status(known.map(|known| known.decision))
            }
            Query::Sku(sku) => {
                let known = (sku.0 as usize) < self.skus.len();
                QueryAnswer::Sku(known.then(|| self.sku_view(*sku)))
            }
            Query::Pool(sku) => {
                let known = (sku.0 as usize) < self.skus.len();
                QueryAnswer::Pool(known.then(|| self.pool_view(*sku)))
            }
        }
    }
}

fn sum_of(moves: Option<&Vec<u64>>) -> Moved {
    let moves = moves.map_or(&[][..], Vec::as_slice);
    Moved {
        last: moves.len() as u64,
        last_units: moves.last().copied().unwrap_or(0),
        units: moves.iter().sum(),
    }
}

fn busy(bound: Bound) -> Decided {
    Err(Refusal::Busy { bound })
}

fn sold(reservation: ReservationId) -> Decision {
    Decision::Confirmed(Confirmation::Sold { reservation })
}

fn is_expired(status: HoldStatus) -> bool {
    status == HoldStatus::Expired
}

fn key_of(command: &Command) -> Option<IdempotencyKey> {
    command.origin().key
}

fn differing(a: Transfer, b: Transfer) -> Vec<(Field, bool)> {
    let way = |of: Transfer| (of.from, of.to, of.number);
    vec![
        (Field::Sku, a.sku != b.sku),
        (Field::Units, a.units != b.units),
        (Field::Transfer, way(a) != way(b)),
    ]
}

/// The first field of a payload that differs between two commands of one kind.
fn difference(first: &Command, now: &Command) -> Option<Field> {
    let fields = match (first, now) {
        (Command::Reserve(a), Command::Reserve(b)) => vec![(Field::Lines, a.lines != b.lines)],
        (Command::BeginPayment(a), Command::BeginPayment(b)) => vec![
            (Field::Reservation, a.reservation != b.reservation),
            (Field::PaymentRef, a.payment_ref != b.payment_ref),
        ],
        (Command::PaymentFailed(a), Command::PaymentFailed(b)) => vec![
            (Field::Reservation, a.reservation != b.reservation),
            (Field::Attempt, a.attempt != b.attempt),
            (Field::Disposition, a.disposition != b.disposition),
        ],
        (Command::Confirm(a), Command::Confirm(b)) => vec![
            (Field::Reservation, a.reservation != b.reservation),
            (Field::Attempt, a.attempt != b.attempt),
            (Field::PaymentRef, a.payment_ref != b.payment_ref),
        ],
        (Command::Release(a), Command::Release(b)) => {
            vec![(Field::Reservation, a.reservation != b.reservation)]
        }
        (Command::Return(a), Command::Return(b)) => vec![
            (Field::Reservation, a.reservation != b.reservation),
            (Field::Lines, a.lines != b.lines),
        ],
        (Command::Adjust(a), Command::Adjust(b)) => vec![
            (Field::Sku, a.sku != b.sku),
            (Field::Delta, a.delta != b.delta),
        ],
        (Command::DefineSku(a), Command::DefineSku(b)) => vec![
            (Field::Sku, a.name != b.name),
            (Field::Total, a.total != b.total),
            (Field::Rules, a.rules_given() != b.rules_given()),
        ],
        (Command::SetGate(a), Command::SetGate(b)) => vec![
            (Field::Sku, a.sku != b.sku),
            (Field::Change, a.change != b.change),
        ],
        (Command::Withdraw(a), Command::Withdraw(b)) => differing(a.transfer(), b.transfer()),
        (Command::Deposit(a), Command::Deposit(b)) => differing(a.transfer(), b.transfer()),
        _ => Vec::new(),
    };
    let differs = fields.into_iter().find(|&(_, differs)| differs);
    differs.map(|(field, _)| field)
}
