//! The single-writer batch allocator: commands in, events and decisions out.
//!
//! Pure: no I/O, no clock, no threads, no randomness; time comes with the batch and the hash seed with the
//! constructor. One writer owns it and calls, per batch, [`begin`](Allocator::begin), [`sweep`](Allocator::sweep),
//! [`decide_all`](Allocator::decide_all), and [`finish`](Allocator::finish). It knows nothing of
//! stores: a failed commit ends the writer, so nothing is ever rolled back here.
//!
//! ```text
//!   begin(header) ─► sweep ─► decide(command)* ─► finish ─► what readers may see after the commit
//!                      │          │
//!                      ▼          ▼
//!                   record(event) ─► apply(&event) ─► tables        replay: begin(header), apply(&event)*,
//!                      `─► batch                                            apply_refusal(record)*
//! ```
//!
//! **State changes in [`apply`](Allocator::apply) only** (law L7), whether an event was just decided or is read from a
//! log; refusals, which change no stock, in [`apply_refusal`](Allocator::apply_refusal). *Logical time decides,
//! sweeping only frees memory*: a key, a counter, an ended reservation or an outcome is forgotten at the
//! moment its retention has passed, whether or not its entry is still in a table. That is why
//! [`digest`](Allocator::digest) depends on no table's layout.
//!
//! Rooms: `decide` holds the rules, `apply` and `effects` what they do, `audit` the laws, `export` the state as a stream; the
//! tables are `users` (with their counters), `holds` (reservations), `keys`, `outcomes`, `transfers`, `deadlines` and `stock`, on
//! top of `index`, `arena` and `directory`. Deciding costs one cache miss for a new user with a new key, and those of many commands
//! overlap: [`decide_all`](Allocator::decide_all) reads the places of the next hundred commands first. Memory per live reservation:
//! a hold (64 bytes), a user with his first counter and key (56), a key (72), an index slot (11 to 26 bytes, by its load) and two
//! queue entries (12).

mod apply;
mod arena;
mod audit;
mod deadlines;
mod decide;
mod directory;
mod effects;
mod export;
mod holds;
mod index;
mod keys;
mod outcomes;
mod stock;
mod transfers;
mod users;

pub use audit::AuditReport;

use crate::types::{
    Availability, Batch, BatchHeader, Event, EventKind, HeldLine, Policy, QueryAnswer,
    ReservationId, ReservationView, SkuId, SkuName, SourcePosition, Timestamp, UserId,
};
use arena::Queue;
use deadlines::Deadlines;
use holds::Holds;
use index::Hash;
use keys::Keys;
use outcomes::Outcomes;
use std::collections::HashMap;
use stock::Stock;
use transfers::Transfers;
use users::Users;

/// Entries that a batch frees at most from each table, besides what it decides: more than one per command of a full
/// batch, so that memory follows the retention.
const FREED_PER_BATCH: usize = 16_384;

/// Commands or events whose places are read before the first of them changes anything: more pages than that don't stay in
/// the TLB.
const TOUCHED: usize = 128;

/// Counters that a batch looks at while some wait to be freed.
const COUNTERS_LOOKED_AT: u32 = 4_096;

/// Bounds of the tables (law L8). They limit what is decided from now on, never what a log replays to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// SKUs that can be defined.
    pub skus_max: u32,
    /// Lines of one cart, at most [`LINES_MAX`](crate::types::LINES_MAX).
    pub lines_max: u16,
    /// Live holds of one user.
    pub holds_per_user_max: u32,
    /// Reservations that are live or have not retired.
    pub reservations_max: u32,
    /// Keys of accepted commands within their retention.
    pub accepted_keys_max: u32,
    /// Pairs of user and SKU with a unit limit in sales that have not ended.
    pub counters_max: u32,
    /// Outcomes of payments within their retention.
    pub payments_max: u32,
    /// Pairs of a SKU and another shard between which units have ever moved.
    pub transfers_max: u32,
    /// Overdue holds that one batch expires, besides those that a command needs; a batch of more than half as many
    /// commands expires twice as many as it decides.
    pub expiries_per_batch_max: u32,
    /// Tables are made for so many live reservations at once; more fit all the same, up to the bounds.
    pub presize: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            skus_max: 65_536,
            lines_max: 256,
            holds_per_user_max: 1_000,
            reservations_max: 100_000_000,
            accepted_keys_max: 100_000_000,
            counters_max: 100_000_000,
            payments_max: 100_000_000,
            transfers_max: 65_536,
            expiries_per_batch_max: 4_096,
            presize: 16_384,
        }
    }
}

/// A law would have been broken: the engine halts, or a log is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a law would break at sequence {sequence}: {what}")]
pub struct Violation {
    /// The event that would have broken it.
    pub sequence: u64,
    /// Which law, and how.
    pub what: String,
}

/// See the module.
pub struct Allocator {
    limits: Limits,
    policy: Policy,
    shard: u16,
    epoch: u32,
    now: Timestamp,
    sequence: u64,
    credit_micros: u64,
    refusals: u64,
    sources: Vec<SourcePosition>,
    stocks: Vec<Stock>,
    names: HashMap<SkuName, SkuId>,
    users: Users,
    holds: Holds,
    deadlines: Deadlines,
    keys: Keys,
    outcomes: Outcomes,
    transfers: Transfers,
    /// Ended reservations in the order in which they retire.
    ended: Queue<ReservationId>,
    /// Continuations whose event has not come yet.
    cart: Vec<HeldLine>,
    name: Option<(SkuId, SkuName)>,
    /// SKUs whose counts changed in this batch.
    touched: Vec<SkuId>,
    /// Events that are replayed together.
    run: Vec<Event>,
}

impl Allocator {
    /// An empty state. The seed keeps outsiders from aiming at one hash slot; it changes no decision.
    pub fn new(limits: Limits, seed: u64) -> Self {
        let hash = Hash::new(seed);
        let capacity = limits.presize as usize;
        Self {
            limits,
            policy: Policy::default(),
            shard: 0,
            epoch: 0,
            now: Timestamp::MIN,
            sequence: 0,
            credit_micros: 0,
            refusals: 0,
            sources: Vec::new(),
            stocks: Vec::new(),
            names: HashMap::new(),
            users: Users::new(hash, capacity),
            holds: Holds::new(capacity),
            deadlines: Deadlines::with_capacity(capacity),
            keys: Keys::new(hash, capacity),
            outcomes: Outcomes::new(hash),
            transfers: Transfers::default(),
            ended: Queue::with_capacity(0, ReservationId::from_u64(0)),
            cart: Vec::new(),
            name: None,
            touched: Vec::new(),
            run: Vec::new(),
        }
    }

    /// The sequence of the last event.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The stamp of the batch at hand.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// What is remembered, and for how long.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Where the sources stood after the last batch.
    pub fn sources(&self) -> &[SourcePosition] {
        &self.sources
    }

    /// The index of a SKU.
    pub fn sku(&self, name: &SkuName) -> Option<SkuId> {
        self.names.get(name).copied()
    }

    /// The SKUs, in the order of their indexes.
    pub fn skus(&self) -> impl Iterator<Item = (SkuId, &SkuName)> {
        self.stocks
            .iter()
            .zip(0..)
            .map(|(stock, id)| (SkuId(id), &stock.name))
    }

    /// How many SKUs are defined.
    pub fn skus_len(&self) -> usize {
        self.stocks.len()
    }

    /// A SKU's counts now; only what is committed may be shown to anybody.
    pub fn availability(&self, sku: SkuId) -> Option<Availability> {
        let stock = self.stocks.get(sku.0 as usize)?;
        Some(stock.availability(sku, self.sequence, self.now, None))
    }

    /// Whether a reservation's units are held, overdue or not.
    pub fn is_live(&self, id: ReservationId) -> bool {
        let place = self.holds.place_of(id);
        place.is_some_and(|place| self.holds.get(place).status.is_live())
    }

    /// Begins a batch: from here on it is `header.stamp`.
    ///
    /// # Errors
    /// If the stamp goes back, or the sequences don't follow.
    pub fn begin(&mut self, header: &BatchHeader) -> Result<(), Violation> {
        if header.stamp < self.now {
            return Err(self.violation(format!(
                "L7: batch {} is stamped {}, after {}",
                header.number, header.stamp, self.now
            )));
        }
        if header.first_sequence != self.sequence + 1 {
            return Err(self.violation(format!(
                "L7: batch {} begins at sequence {}, after {}",
                header.number, header.first_sequence, self.sequence
            )));
        }
        self.now = header.stamp;
        self.shard = header.shard;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "events carry the lower half"
        )]
        {
            self.epoch = header.token.epoch as u32;
        }
        self.sources.clone_from(&header.sources);
        self.free(FREED_PER_BATCH);
        Ok(())
    }

    /// Expires overdue holds, the earliest first: at most `expiries_per_batch_max`, or twice as many as `commands` are about
    /// to be decided, so that expiry keeps up with what is reserved under load. Returns how many.
    ///
    /// # Errors
    /// If a law would break.
    pub fn sweep(&mut self, commands: usize, batch: &mut Batch) -> Result<u32, Violation> {
        let load = u32::try_from(commands).unwrap_or(u32::MAX);
        let max = self
            .limits
            .expiries_per_batch_max
            .max(load.saturating_mul(2));
        let mut expired = 0;
        while expired < max {
            match self.deadlines.first(&self.holds) {
                Some((deadline, place)) if self.has_passed(deadline) => {
                    self.lapse(place, batch)?;
                    expired += 1;
                }
                _ => break,
            }
        }
        Ok(expired)
    }

    /// Moves every live deadline, because nothing could commit for so long. Holds that were over before the stall stay
    /// over: they are expired first, all of them.
    ///
    /// # Errors
    /// If a law would break.
    pub fn credit(&mut self, micros: u64, batch: &mut Batch) -> Result<(), Violation> {
        let before = Timestamp::from_micros(self.now.as_micros().saturating_sub(micros));
        while let Some((deadline, place)) = self.deadlines.first(&self.holds) {
            if self.effective(deadline) > before {
                break;
            }
            self.lapse(place, batch)?;
        }
        self.record(EventKind::DeadlinesCredited { micros }, batch)
    }

    /// Records another policy.
    ///
    /// # Errors
    /// If a law would break.
    pub fn set_policy(&mut self, policy: Policy, batch: &mut Batch) -> Result<(), Violation> {
        self.record(EventKind::PolicySet { policy }, batch)
    }

    /// When the next hold lapses: the writer sleeps no longer than that.
    pub fn next_deadline(&mut self) -> Option<Timestamp> {
        let (deadline, _) = self.deadlines.first(&self.holds)?;
        Some(self.effective(deadline))
    }

    /// Ends a batch: checks the laws for the SKUs it touched, and gives what readers may see once it is committed.
    ///
    /// # Errors
    /// If a law is broken.
    pub fn finish(&mut self, out: &mut Vec<Availability>) -> Result<(), Violation> {
        if self.touched.is_empty() {
            return Ok(());
        }
        let next = self.next_deadline();
        let mut touched = std::mem::take(&mut self.touched);
        for sku in touched.drain(..) {
            self.stocks[sku.0 as usize].is_touched = false;
            let stock = &self.stocks[sku.0 as usize];
            if let Err(what) = stock.check() {
                return Err(self.violation(format!("{what}, SKU {}", stock.name)));
            }
            let not_before = next.filter(|_| stock.available == 0 && stock.reserved > 0);
            out.push(stock.availability(sku, self.sequence, self.now, not_before));
        }
        self.touched = touched;
        Ok(())
    }

    fn violation(&self, what: impl Into<String>) -> Violation {
        Violation {
            sequence: self.sequence + 1,
            what: what.into(),
        }
    }

    /// Applies a new event and appends it to the batch. Inlined, so that the event is made where it stays.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: a copied event stalls on its own stores"
    )]
    fn record(&mut self, kind: EventKind, batch: &mut Batch) -> Result<(), Violation> {
        let event = Event {
            sequence: self.sequence + 1,
            at: self.now,
            shard: self.shard,
            epoch: self.epoch,
            kind,
        };
        self.record_event(&event, batch)
    }

    #[inline]
    fn record_event(&mut self, event: &Event, batch: &mut Batch) -> Result<(), Violation> {
        self.apply(event)?;
        batch.push_event(event);
        Ok(())
    }

    /// A stored deadline with all credits.
    fn effective(&self, deadline: Timestamp) -> Timestamp {
        deadline.plus_micros(self.credit_micros)
    }

    fn has_passed(&self, deadline: Timestamp) -> bool {
        self.effective(deadline) <= self.now
    }

    /// True if a live hold is over, swept or not: its deadline has passed, and it isn't waiting for confirms to resume.
    fn is_over(&self, place: u32) -> bool {
        let hold = self.holds.get(place);
        hold.status.is_live() && self.has_passed(hold.time) && !self.is_suspended(place)
    }

    /// True for a hold in payment while confirms of one of its SKUs are paused.
    fn is_suspended(&self, place: u32) -> bool {
        self.holds
            .payment(place)
            .is_some_and(|payment| payment.is_under_way)
            && self.holds.lines(place).any(|line| {
                self.stocks[line.line.sku.0 as usize]
                    .gates
                    .confirms_paused()
            })
    }

    /// Reads a reservation and its user. The result means nothing, here and below.
    #[inline]
    fn touch_hold(&self, id: ReservationId) -> u64 {
        let user = self.holds.touch(id);
        user.map_or(0, |user| self.users.get(user).keys.into())
    }

    /// Reads the places that the n-th next reservation will take.
    #[inline]
    fn touch_next(&self, ahead: usize) -> u64 {
        self.users.touch_next(ahead) ^ self.holds.touch_next(ahead) ^ self.keys.touch_next(ahead)
    }

    /// What becomes of a hold whose deadline has passed.
    fn lapse(&mut self, place: u32, batch: &mut Batch) -> Result<(), Violation> {
        let reservation = self.holds.get(place).id;
        if self.is_suspended(place) {
            let expires_at = self.now.plus_ms(self.policy.payment_grace_ms.into());
            self.record(
                EventKind::DeadlineMoved {
                    reservation,
                    expires_at,
                },
                batch,
            )
        } else {
            self.record(EventKind::Expired { reservation }, batch)
        }
    }

    /// The place of a reservation that is live or has not retired.
    fn find(&self, id: ReservationId) -> Option<u32> {
        self.holds.place_of(id).filter(|&place| {
            let hold = self.holds.get(place);
            hold.status.is_live() || !self.has_retired(hold.time)
        })
    }

    /// Whose a reservation is.
    fn user_of(&self, place: u32) -> UserId {
        self.users.get(self.holds.get(place).user).id()
    }

    /// A user's reservations in the tables, in no order.
    fn of_user(&self, user: u32) -> impl Iterator<Item = u32> {
        let user = self.users.get(user);
        let live = self.holds.list_from(user.live);
        live.chain(self.holds.list_from(user.ended))
    }

    fn has_retired(&self, ended_at: Timestamp) -> bool {
        ended_at.plus_ms(self.policy.ended_retention_ms) <= self.now
    }

    /// What was decided at or before this time is no longer remembered; `None` while everything is.
    fn horizon(&self, retention_ms: u64) -> Option<Timestamp> {
        let micros = retention_ms.saturating_mul(1_000);
        let before = self.now.as_micros().checked_sub(micros);
        before.map(Timestamp::from_micros)
    }

    /// Frees what time has ended, at most `max` entries of each table. No decision and no query sees a difference.
    fn free(&mut self, max: usize) {
        for _ in 0..max {
            let Some((_, &id)) = self.ended.front() else {
                break;
            };
            if let Some(place) = self.holds.place_of(id) {
                if !self.has_retired(self.holds.get(place).time) {
                    break;
                }
                self.holds.retire(&mut self.users, place);
            }
            self.ended.pop();
        }
        if let Some(horizon) = self.horizon(self.policy.key_retention_ms) {
            self.keys.sweep(&mut self.users, horizon, max);
        }
        if let Some(horizon) = self.horizon(self.policy.ended_retention_ms) {
            self.outcomes.sweep(horizon, max);
        }
        let stocks = &self.stocks;
        self.users.sweep_counters(COUNTERS_LOOKED_AT, |sku, sale| {
            stocks[sku.0 as usize].counts(sale)
        });
    }

    fn view(&self, place: u32) -> ReservationView {
        let hold = self.holds.get(place);
        let lines = self.holds.lines(place).map(|line| {
            let quantity = line.line.quantity - line.returned;
            crate::types::Line {
                quantity,
                ..line.line
            }
        });
        let status = if self.is_over(place) {
            crate::types::HoldStatus::Expired
        } else {
            hold.status
        };
        ReservationView {
            id: hold.id,
            user: self.user_of(place),
            status,
            expires_at: if hold.status.is_live() {
                self.effective(hold.time)
            } else {
                hold.time
            },
            attempt: self
                .holds
                .payment(place)
                .map_or(0, |payment| payment.attempt),
            lines: lines.collect(),
        }
    }

    /// Answers a query from the state as it is.
    fn query(&self, query: &crate::types::Query) -> QueryAnswer {
        use crate::types::{Origin, Query};
        match query {
            Query::Reservation(id) => {
                QueryAnswer::Reservation(self.find(*id).map(|place| self.view(place)))
            }
            Query::ReservationsOf(user) => {
                let user = self.users.find(*user);
                let places =
                    user.into_iter()
                        .flat_map(|user| self.of_user(user))
                        .filter(|&place| {
                            let hold = self.holds.get(place);
                            hold.status.is_live() || !self.has_retired(hold.time)
                        });
                let mut views: Vec<_> = places.map(|place| self.view(place)).collect();
                views.sort_by_key(|view| std::cmp::Reverse(view.id));
                QueryAnswer::Reservations(views)
            }
            Query::Status { user, kind, key } => {
                let origin = Origin {
                    user: *user,
                    key: Some(*key),
                    ..Origin::default()
                };
                QueryAnswer::Status(self.known(*kind, &origin).map(|known| known.decision))
            }
            Query::Sku(sku) => {
                let stock = self.stocks.get(sku.0 as usize);
                QueryAnswer::Sku(stock.map(|stock| stock.view(*sku)))
            }
            Query::Pool(sku) => QueryAnswer::Pool(self.pool(*sku)),
        }
    }
}
