//! Reservations and the users who have them: the tables, and the lists that tie them together. No rule is decided
//! here.
//!
//! ```text
//! id ── Directory ──► Hold ◄─ prev/next ─► Hold          two lists per user
//!                      │  `── user ──► User ── live ──► the newest live Hold
//!                      │── more ──► lines from the second on
//!                      `── payment ──► Payment, while one has been begun
//!                               `── ended ─► the last to end
//! (user, SKU) ── Index ──► Counter: units of the current sale
//! ```
//!
//! I1: a user's two lists hold exactly his reservations in the tables, apart by whether they are live: his ended ones
//! may be many, and no decision walks over them. I2: `live_count` counts the live ones.
//! I3: a user is in the table exactly while he has a reservation or a counter.

use super::arena::{Arena, NONE};
use super::directory::Directory;
use super::index::{Hash, Index};
use crate::types::{
    HeldLine, HoldStatus, Line, PaymentRef, ReservationId, SkuId, Timestamp, UserId,
};

/// A reservation: one cache line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hold {
    pub(super) id: ReservationId,
    /// While live: the deadline, without credits. Then: when it ended.
    pub(super) time: Timestamp,
    pub(super) first: HeldLine,
    pub(super) user: u32,
    prev: u32,
    next: u32,
    more: u32,
    pub(super) payment: u32,
    pub(super) hold_ms: u32,
    pub(super) lines: u16,
    pub(super) status: HoldStatus,
    /// The deadline is not creation plus hold.
    pub(super) is_moved: bool,
    /// The heap of deadlines has it, not its duration's queue.
    pub(super) in_heap: bool,
}

impl Hold {
    /// Fills memory that isn't used yet.
    const FILLER: Self = Self {
        id: ReservationId::from_u64(u64::MAX),
        time: Timestamp::MAX,
        first: HeldLine {
            line: Line {
                sku: SkuId(NONE),
                quantity: NONE,
            },
            sale: NONE,
            returned: NONE,
        },
        user: NONE,
        prev: NONE,
        next: NONE,
        more: NONE,
        payment: NONE,
        hold_ms: NONE,
        lines: 0,
        status: HoldStatus::Expired,
        is_moved: false,
        in_heap: false,
    };
}

const _: () = assert!(
    size_of::<Hold>() <= 64,
    "a reservation takes one cache line"
);

/// The payments of one reservation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Payment {
    pub(super) payment_ref: PaymentRef,
    /// The hold's deadline without grace and credits.
    pub(super) base: Timestamp,
    pub(super) began_at: Timestamp,
    /// Grace used by earlier attempts.
    pub(super) spent_micros: u64,
    pub(super) attempt: u32,
    pub(super) is_under_way: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct User {
    pub(super) id: UserId,
    live: u32,
    ended: u32,
    live_count: u32,
    counters: u32,
}

impl Counter {
    /// Fills memory that isn't used yet.
    const FILLER: Self = Self {
        user: NOBODY,
        sku: SkuId(NONE),
        sale: NONE,
        units: NONE,
    };
}

impl User {
    /// Without anything; also fills memory that isn't used yet.
    const NOBODY: Self = Self {
        id: UserId(u128::MAX),
        live: NONE,
        ended: NONE,
        live_count: 0,
        counters: 0,
    };

    fn list(&mut self, is_live: bool) -> &mut u32 {
        if is_live {
            &mut self.live
        } else {
            &mut self.ended
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Counter {
    user: u32,
    pub(super) sku: SkuId,
    pub(super) sale: u32,
    pub(super) units: u32,
}

/// What a new reservation is made of.
pub(super) struct NewHold<'a> {
    pub(super) id: ReservationId,
    pub(super) user: UserId,
    pub(super) first: HeldLine,
    pub(super) more: &'a [HeldLine],
    pub(super) time: Timestamp,
    pub(super) hold_ms: u32,
    pub(super) status: HoldStatus,
    pub(super) is_moved: bool,
}

pub(super) struct Holds {
    hash: Hash,
    directory: Directory,
    holds: Arena<Hold>,
    carts: Arena<Box<[HeldLine]>>,
    payments: Arena<Payment>,
    users: Arena<User>,
    user_index: Index,
    counters: Arena<Counter>,
    counter_index: Index,
    /// Counters of sales that have not ended; the others wait to be freed.
    counting: usize,
    /// Where the sweep for counters of ended sales goes on.
    counter_cursor: u32,
}

/// Marks a free place in the arena of counters, so that the sweep passes it.
const NOBODY: u32 = NONE;

impl Holds {
    pub(super) fn new(hash: Hash, capacity: usize) -> Self {
        Self {
            hash,
            directory: Directory::new(),
            holds: Arena::with_capacity(capacity, &Hold::FILLER),
            carts: Arena::new(),
            payments: Arena::new(),
            users: Arena::with_capacity(capacity, &User::NOBODY),
            user_index: Index::with_capacity(capacity),
            counters: Arena::with_capacity(capacity, &Counter::FILLER),
            counter_index: Index::with_capacity(capacity),
            counting: 0,
            counter_cursor: 0,
        }
    }

    /// Reads what a reservation of this user and SKU will need, so that the misses of a batch overlap.
    #[inline]
    pub(super) fn touch(&self, user: UserId, sku: SkuId) -> u64 {
        self.user_index.touch(self.hash.of(user.0, 0))
            ^ self.counter_index.touch(self.counter_hash(user, sku))
    }

    /// Reads the reservation.
    #[inline]
    pub(super) fn touch_hold(&self, id: ReservationId) -> u64 {
        self.directory.get(id.sequence()).map_or(0, u64::from)
    }

    fn counter_hash(&self, user: UserId, sku: SkuId) -> u64 {
        self.hash.of(user.0, u64::from(sku.0) + 1)
    }

    /// Reservations in the tables, live and ended.
    pub(super) fn len(&self) -> usize {
        self.holds.in_use()
    }

    /// Counters of sales that have not ended.
    pub(super) fn counting(&self) -> usize {
        self.counting
    }

    /// A sale with so many counters has ended.
    pub(super) fn stop_counting(&mut self, counters: u32) {
        self.counting -= counters as usize;
    }

    pub(super) fn place_of(&self, id: ReservationId) -> Option<u32> {
        let place = self.directory.get(id.sequence())?;
        (self.holds.get(place).id == id).then_some(place)
    }

    pub(super) fn get(&self, place: u32) -> &Hold {
        self.holds.get(place)
    }

    pub(super) fn get_mut(&mut self, place: u32) -> &mut Hold {
        self.holds.get_mut(place)
    }

    pub(super) fn user_of(&self, place: u32) -> UserId {
        self.users.get(self.holds.get(place).user).id
    }

    /// All lines, the first included.
    pub(super) fn lines(&self, place: u32) -> impl Iterator<Item = &HeldLine> {
        let hold = self.holds.get(place);
        let more: &[HeldLine] = if hold.more == NONE {
            &[]
        } else {
            self.carts.get(hold.more)
        };
        std::iter::once(&hold.first).chain(more)
    }

    pub(super) fn line_mut(&mut self, place: u32, index: usize) -> Option<&mut HeldLine> {
        let hold = self.holds.get_mut(place);
        match index.checked_sub(1) {
            None => Some(&mut hold.first),
            Some(_) if hold.more == NONE => None,
            Some(index) => self.carts.get_mut(hold.more).get_mut(index),
        }
    }

    pub(super) fn payment(&self, place: u32) -> Option<&Payment> {
        let payment = self.holds.get(place).payment;
        (payment != NONE).then(|| self.payments.get(payment))
    }

    pub(super) fn set_payment(&mut self, place: u32, payment: Payment) {
        let known = self.holds.get(place).payment;
        if known == NONE {
            self.holds.get_mut(place).payment = self.payments.insert(payment);
        } else {
            *self.payments.get_mut(known) = payment;
        }
    }

    pub(super) fn payment_mut(&mut self, place: u32) -> Option<&mut Payment> {
        let payment = self.holds.get(place).payment;
        (payment != NONE).then(|| self.payments.get_mut(payment))
    }

    pub(super) fn find_user(&self, user: UserId) -> Option<u32> {
        self.user_index.find(self.hash.of(user.0, 0), |place| {
            self.users.get(place).id == user
        })
    }

    /// How many live holds a user has, overdue ones included.
    pub(super) fn live_of(&self, user: u32) -> u32 {
        self.users.get(user).live_count
    }

    /// A user's live reservations, the newest first.
    pub(super) fn live_of_user(&self, user: u32) -> impl Iterator<Item = u32> {
        self.list_from(self.users.get(user).live)
    }

    /// All of a user's reservations, in no order.
    pub(super) fn of_user(&self, user: u32) -> impl Iterator<Item = u32> {
        let ended = self.list_from(self.users.get(user).ended);
        self.live_of_user(user).chain(ended)
    }

    fn list_from(&self, head: u32) -> impl Iterator<Item = u32> {
        let first = Some(head).filter(|&place| place != NONE);
        std::iter::successors(first, |&place| {
            Some(self.holds.get(place).next).filter(|&next| next != NONE)
        })
    }

    /// Puts a hold at the head of its user's list for its status.
    fn link(&mut self, place: u32) {
        let Hold { user, status, .. } = *self.holds.get(place);
        let list = self.users.get_mut(user).list(status.is_live());
        let next = std::mem::replace(list, place);
        let hold = self.holds.get_mut(place);
        (hold.prev, hold.next) = (NONE, next);
        if next != NONE {
            self.holds.get_mut(next).prev = place;
        }
    }

    /// Takes a hold out of its user's list for its status.
    fn unlink(&mut self, place: u32) {
        let Hold {
            user,
            status,
            prev,
            next,
            ..
        } = *self.holds.get(place);
        if prev == NONE {
            *self.users.get_mut(user).list(status.is_live()) = next;
        } else {
            self.holds.get_mut(prev).next = next;
        }
        if next != NONE {
            self.holds.get_mut(next).prev = prev;
        }
    }

    fn user_or_new(&mut self, user: UserId) -> u32 {
        if let Some(place) = self.find_user(user) {
            return place;
        }
        let place = self.users.insert(User {
            id: user,
            ..User::NOBODY
        });
        self.user_index.insert(self.hash.of(user.0, 0), place);
        place
    }

    fn drop_idle_user(&mut self, place: u32) {
        let user = *self.users.get(place);
        if user.live == NONE && user.ended == NONE && user.counters == 0 {
            self.user_index.remove(self.hash.of(user.id.0, 0), place);
            self.users.remove(place);
        }
    }

    pub(super) fn insert(&mut self, new: &NewHold<'_>) -> u32 {
        let user = self.user_or_new(new.user);
        let more = if new.more.is_empty() {
            NONE
        } else {
            self.carts.insert(new.more.into())
        };
        let place = self.holds.insert(Hold {
            id: new.id,
            time: new.time,
            first: new.first,
            user,
            prev: NONE,
            next: NONE,
            more,
            payment: NONE,
            hold_ms: new.hold_ms,
            lines: u16::try_from(new.more.len() + 1).unwrap_or(u16::MAX),
            status: new.status,
            is_moved: new.is_moved,
            in_heap: false,
        });
        self.link(place);
        self.users.get_mut(user).live_count += u32::from(new.status.is_live());
        self.directory.insert(new.id.sequence(), place);
        place
    }

    /// Ends a live reservation; it stays in the tables until it retires.
    pub(super) fn end(&mut self, place: u32, status: HoldStatus, at: Timestamp) {
        self.unlink(place);
        let hold = self.holds.get_mut(place);
        debug_assert!(
            hold.status.is_live() && !status.is_live(),
            "L3: a reservation ends once"
        );
        hold.status = status;
        hold.time = at;
        let (user, payment) = (hold.user, std::mem::replace(&mut hold.payment, NONE));
        if payment != NONE {
            self.payments.remove(payment);
        }
        self.users.get_mut(user).live_count -= 1;
        self.link(place);
    }

    /// Takes an ended reservation out of the tables.
    pub(super) fn retire(&mut self, place: u32) {
        let hold = *self.holds.get(place);
        debug_assert!(!hold.status.is_live(), "only ended reservations retire");
        self.unlink(place);
        if hold.more != NONE {
            *self.carts.get_mut(hold.more) = Box::default();
            self.carts.remove(hold.more);
        }
        self.directory.remove(hold.id.sequence());
        self.holds.remove(place);
        self.drop_idle_user(hold.user);
    }

    fn find_counter(&self, user: UserId, sku: SkuId) -> Option<u32> {
        self.counter_index
            .find(self.counter_hash(user, sku), |place| {
                let counter = self.counters.get(place);
                counter.sku == sku && self.users.get(counter.user).id == user
            })
    }

    /// Units of this sale that count against the user's limit.
    pub(super) fn counted(&self, user: UserId, sku: SkuId, sale: u32) -> u32 {
        let counter = self
            .find_counter(user, sku)
            .map(|place| self.counters.get(place));
        counter
            .filter(|counter| counter.sale == sale)
            .map_or(0, |counter| counter.units)
    }

    /// Counts units of a sale; a counter of an earlier one begins anew. True if it is a new counter of the sale.
    pub(super) fn count(&mut self, user: UserId, sku: SkuId, sale: u32, units: u32) -> bool {
        if let Some(place) = self.find_counter(user, sku) {
            let counter = self.counters.get_mut(place);
            let begins = counter.sale != sale;
            let before = if begins { 0 } else { counter.units };
            *counter = Counter {
                sale,
                units: before.saturating_add(units),
                ..*counter
            };
            self.counting += usize::from(begins);
            return begins;
        }
        self.counting += 1;
        let owner = self.user_or_new(user);
        self.users.get_mut(owner).counters += 1;
        let place = self.counters.insert(Counter {
            user: owner,
            sku,
            sale,
            units,
        });
        self.counter_index
            .insert(self.counter_hash(user, sku), place);
        true
    }

    /// Takes units off a counter of a sale that has not ended; with the last one it goes, which is told. `None` if it
    /// counts fewer.
    pub(super) fn discount(
        &mut self,
        user: UserId,
        sku: SkuId,
        sale: u32,
        units: u32,
    ) -> Option<bool> {
        let place = self.find_counter(user, sku)?;
        let counter = self.counters.get_mut(place);
        if counter.sale != sale {
            return None;
        }
        counter.units = counter.units.checked_sub(units)?;
        let was_last = counter.units == 0;
        if was_last {
            self.drop_counter(place);
            self.counting -= 1;
        }
        Some(was_last)
    }

    fn drop_counter(&mut self, place: u32) {
        let Counter { user, sku, .. } = *self.counters.get(place);
        let hash = self.counter_hash(self.users.get(user).id, sku);
        self.counter_index.remove(hash, place);
        self.counters.get_mut(place).user = NOBODY;
        self.counters.remove(place);
        self.users.get_mut(user).counters -= 1;
        self.drop_idle_user(user);
    }

    /// Looks at the next `max` counters and frees those that no longer count. What a query or a decision sees doesn't
    /// change by it.
    pub(super) fn sweep_counters(&mut self, max: u32, counts: impl Fn(SkuId, u32) -> bool) {
        if self.counters.in_use() == self.counting {
            return;
        }
        let places = u32::try_from(self.counters.places()).unwrap_or(NONE);
        for _ in 0..max.min(places) {
            self.counter_cursor = (self.counter_cursor + 1) % places;
            let counter = *self.counters.get(self.counter_cursor);
            if counter.user != NOBODY && !counts(counter.sku, counter.sale) {
                self.drop_counter(self.counter_cursor);
            }
        }
    }

    /// All reservations, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.directory.iter()
    }

    /// All counters, with their users.
    pub(super) fn counters(&self) -> impl Iterator<Item = (UserId, Counter)> + '_ {
        let places = 0..u32::try_from(self.counters.places()).unwrap_or(NONE);
        places
            .map(|place| *self.counters.get(place))
            .filter(|counter| counter.user != NOBODY)
            .map(|counter| (self.users.get(counter.user).id, counter))
    }
}
