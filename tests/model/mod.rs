//! A naive model of the allocator: the same commands at the same stamps get the same answers.
//!
//! Written from the documentation, with maps and linear scans and no cleverness: every deadline is kept as it is
//! (a credit moves each of them), a payload is compared field by field, and what time has ended is thrown away
//! at once. It serves the property tests and the fuzz target. Left out: records, hashes, recovery.

mod admin;
mod holds;
mod keys;
pub(crate) mod pair;
mod payment;
pub(crate) mod script;

use keys::{difference, key_of};
use std::collections::{BTreeMap, BTreeSet};
use stockade::allocator::Limits;
use stockade::types::{
    Account, Answer, Availability, Bound, Command, Decision, HoldStatus, IdempotencyKey, Line,
    Moved, PaymentRef, Policy, PoolView, Query, QueryAnswer, Refusal, ReservationId,
    ReservationView, Rules, SaleStatus, SkuId, SkuName, SkuView, Timestamp, UserId,
};

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

    /// Accepted without a change: only a keyed command leaves an event.
    #[expect(clippy::unnecessary_wraps, reason = "the tail of every rule")]
    fn unchanged(&mut self, key: Option<IdempotencyKey>, decision: Decision) -> Decided {
        self.sequence += u64::from(key.is_some());
        Ok(decision)
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
