//! Reservations and the users who have them: the tables, and the lists that tie them together. No rule is decided
//! here.
//!
//! ```text
//! id ── Directory ──► Hold ◄─ prev/next ─► Hold          one list per user, the newest first
//!                      │  `── user ──► User ── head ──► the newest Hold
//!                      │── more ──► lines from the second on
//!                      `── payment ──► Payment, while one has been begun
//! (user, SKU) ── Index ──► Counter: units of the current sale
//! ```
//!
//! I1: a user's `head` list holds exactly his reservations in the tables. I2: `live` counts the live ones.
//! I3: a user is in the table exactly while he has a reservation or a counter.

use super::arena::{Arena, NONE};
use super::directory::Directory;
use super::index::{Hash, Index};
use crate::types::{HeldLine, HoldStatus, PaymentRef, ReservationId, SkuId, Timestamp, UserId};

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
    /// The deadline is not creation plus hold: the heap of moved deadlines has it.
    pub(super) is_moved: bool,
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
    head: u32,
    pub(super) live: u32,
    counters: u32,
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
            holds: Arena::with_capacity(capacity),
            carts: Arena::with_capacity(0),
            payments: Arena::with_capacity(0),
            users: Arena::with_capacity(capacity),
            user_index: Index::with_capacity(capacity),
            counters: Arena::with_capacity(capacity),
            counter_index: Index::with_capacity(capacity),
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

    pub(super) fn counters_len(&self) -> usize {
        self.counters.in_use()
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
        self.users.get(user).live
    }

    /// A user's reservations, the newest first.
    pub(super) fn of_user(&self, user: u32) -> impl Iterator<Item = u32> {
        let head = Some(self.users.get(user).head).filter(|&place| place != NONE);
        std::iter::successors(head, |&place| {
            Some(self.holds.get(place).next).filter(|&next| next != NONE)
        })
    }

    fn user_or_new(&mut self, user: UserId) -> u32 {
        if let Some(place) = self.find_user(user) {
            return place;
        }
        let place = self.users.insert(User {
            id: user,
            head: NONE,
            live: 0,
            counters: 0,
        });
        self.user_index.insert(self.hash.of(user.0, 0), place);
        place
    }

    fn drop_idle_user(&mut self, place: u32) {
        let user = *self.users.get(place);
        if user.head == NONE && user.counters == 0 {
            self.user_index.remove(self.hash.of(user.id.0, 0), place);
            self.users.remove(place);
        }
    }

    pub(super) fn insert(&mut self, new: NewHold<'_>) -> u32 {
        let user = self.user_or_new(new.user);
        let head = self.users.get(user).head;
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
            next: head,
            more,
            payment: NONE,
            hold_ms: new.hold_ms,
            lines: u16::try_from(new.more.len() + 1).unwrap_or(u16::MAX),
            status: new.status,
            is_moved: new.is_moved,
        });
        if head != NONE {
            self.holds.get_mut(head).prev = place;
        }
        let owner = self.users.get_mut(user);
        owner.head = place;
        owner.live += u32::from(new.status.is_live());
        self.directory.insert(new.id.sequence(), place);
        place
    }

    /// Ends a live reservation; it stays in the tables until it retires.
    pub(super) fn end(&mut self, place: u32, status: HoldStatus, at: Timestamp) {
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
        self.users.get_mut(user).live -= 1;
    }

    /// Takes an ended reservation out of the tables.
    pub(super) fn retire(&mut self, place: u32) {
        let hold = *self.holds.get(place);
        debug_assert!(!hold.status.is_live(), "only ended reservations retire");
        if hold.prev == NONE {
            self.users.get_mut(hold.user).head = hold.next;
        } else {
            self.holds.get_mut(hold.prev).next = hold.next;
        }
        if hold.next != NONE {
            self.holds.get_mut(hold.next).prev = hold.prev;
        }
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

    /// Counts units of a sale; a counter of an earlier one begins anew.
    pub(super) fn count(&mut self, user: UserId, sku: SkuId, sale: u32, units: u32) {
        if let Some(place) = self.find_counter(user, sku) {
            let counter = self.counters.get_mut(place);
            let before = if counter.sale == sale {
                counter.units
            } else {
                0
            };
            *counter = Counter {
                sale,
                units: before.saturating_add(units),
                ..*counter
            };
            return;
        }
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
    }

    /// Takes units off a sale's counter; one of another sale is left alone. False if it counts fewer.
    pub(super) fn discount(&mut self, user: UserId, sku: SkuId, sale: u32, units: u32) -> bool {
        let Some(place) = self.find_counter(user, sku) else {
            return false;
        };
        let counter = self.counters.get_mut(place);
        if counter.sale != sale {
            return true;
        }
        let Some(rest) = counter.units.checked_sub(units) else {
            return false;
        };
        counter.units = rest;
        if rest == 0 {
            self.drop_counter(place);
        }
        true
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
