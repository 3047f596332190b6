//! Reservations and the users who have them: the tables, and the lists that tie them together. No rule is decided
//! here.
//!
//! ```text
//! id ── Directory ──► Hold ◄─ prev/next ─► Hold          two lists per user
//!                      │  `── user ──► User ── live ──► the newest live Hold
//!                      │── more ──► lines from the second on
//!                      `── payment ──► Payment, while one has been begun
//!                               `── ended ─► the last to end
//!                               `── first counter: units of one SKU's current sale
//! (user, SKU) ── Index ──► his further counters
//! ```
//!
//! I1: a user's two lists hold exactly his reservations in the tables, apart by whether they are live: his ended ones
//! may be many, and no decision walks over them. I2: `live_count` counts the live ones.
//! I3: a user is in the table exactly while he has a reservation or a counter.

mod counters;

use super::arena::{Arena, NONE};
use super::directory::Directory;
use super::index::{Hash, Index};
use crate::types::{
    HeldLine, HoldStatus, Line, PaymentRef, ReservationId, SkuId, Timestamp, UserId,
};

/// A reservation: one cache line.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "the words of the events")]
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
#[expect(clippy::struct_field_names, reason = "the words of the events")]
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

impl Payment {
    /// Fills memory that isn't used yet.
    const FILLER: Self = Self {
        payment_ref: PaymentRef::MAX,
        base: Timestamp::MAX,
        began_at: Timestamp::MAX,
        spent_micros: 0,
        attempt: 0,
        is_under_way: false,
    };
}

#[derive(Debug, Clone, Copy)]
pub(super) struct User {
    pub(super) id: UserId,
    live: u32,
    ended: u32,
    live_count: u32,
    /// Further counters, in their table.
    counters: u32,
    /// Most users buy one thing: the first counter needs no place of its own.
    first: Units,
}

impl User {
    /// Without anything; also fills memory that isn't used yet.
    const NOBODY: Self = Self {
        id: UserId(u128::MAX),
        live: NONE,
        ended: NONE,
        live_count: 0,
        counters: 0,
        first: Units::NONE,
    };

    fn list(&mut self, is_live: bool) -> &mut u32 {
        if is_live {
            &mut self.live
        } else {
            &mut self.ended
        }
    }

    fn is_idle(&self) -> bool {
        self.live == NONE && self.ended == NONE && self.counters == 0 && self.first.units == 0
    }
}

/// Units of a sale that count against a user's limit; 0 units: no counter.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "the words of the events")]
pub(super) struct Units {
    pub(super) sku: SkuId,
    pub(super) sale: u32,
    pub(super) units: u32,
}

impl Units {
    const NONE: Self = Self {
        sku: SkuId(NONE),
        sale: NONE,
        units: 0,
    };
}

/// A counter that found its user's first place taken. Without units its place is free.
#[derive(Debug, Clone, Copy)]
struct Counter {
    user: u32,
    of: Units,
}

impl Counter {
    /// Fills memory that isn't used yet.
    const FREE: Self = Self {
        user: NONE,
        of: Units::NONE,
    };
}

/// Where a counter is.
enum CounterPlace {
    First,
    Further(u32),
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

#[expect(clippy::struct_field_names, reason = "the words of the events")]
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
    /// Users whose first counter is in use.
    first_counters: usize,
    /// Counters of sales that have not ended; the others wait to be freed.
    counting: usize,
    /// Where the sweep for counters of ended sales goes on, among users and among counters.
    user_cursor: u32,
    counter_cursor: u32,
    /// The user who was found or made last: a command asks for him several times.
    last_user: u32,
}

impl Holds {
    pub(super) fn new(hash: Hash, capacity: usize) -> Self {
        Self {
            hash,
            directory: Directory::new(),
            holds: Arena::with_capacity(capacity, Hold::FILLER),
            carts: Arena::with_capacity(0, Box::default()),
            payments: Arena::with_capacity(0, Payment::FILLER),
            users: Arena::with_capacity(capacity, User::NOBODY),
            user_index: Index::with_capacity(capacity),
            counters: Arena::with_capacity(0, Counter::FREE),
            counter_index: Index::with_capacity(0),
            first_counters: 0,
            counting: 0,
            user_cursor: 0,
            counter_cursor: 0,
            last_user: NONE,
        }
    }

    /// Reads what a reservation of this user will need, so that the misses of a batch overlap.
    #[inline]
    pub(super) fn touch(&self, user: UserId) -> u64 {
        self.user_index.touch(self.hash.of(user.0, 0))
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
        if self.last_user != NONE && self.users.get(self.last_user).id == user {
            return Some(self.last_user);
        }
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
            self.last_user = place;
            return place;
        }
        let place = self.users.insert(User {
            id: user,
            ..User::NOBODY
        });
        self.user_index.insert(self.hash.of(user.0, 0), place);
        self.last_user = place;
        place
    }

    fn drop_idle_user(&mut self, place: u32) {
        let user = *self.users.get(place);
        if user.is_idle() {
            self.user_index.remove(self.hash.of(user.id.0, 0), place);
            self.users.remove(place);
            if self.last_user == place {
                self.last_user = NONE;
            }
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

    /// All reservations, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.directory.iter()
    }
}
