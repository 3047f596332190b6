//! Reservations: the tables, and the lists that tie them to their users. No rule is decided here.
//!
//! ```text
//! id ── Directory ──► Hold ◄─ prev/next ─► Hold          two lists per user
//!                      │── user ──► User ── live ──► the newest live Hold
//!                      │                 `── ended ─► the last to end
//!                      │── more ──► lines from the second on
//!                      `── payment ──► Payment, while one has been begun
//! ```
//!
//! I1: a user's two lists hold exactly his reservations in the tables, apart by whether they are live: his ended ones
//! may be many, and no decision walks over them. I2: his `live_count` counts the live ones.

use super::arena::{Arena, NONE};
use super::directory::Directory;
use super::users::Users;
use crate::types::{HeldLine, HoldStatus, Line, PaymentRef, ReservationId, SkuId, Timestamp};

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

/// What a new reservation is made of.
pub(super) struct NewHold<'a> {
    pub(super) id: ReservationId,
    /// His place.
    pub(super) user: u32,
    pub(super) first: HeldLine,
    pub(super) more: &'a [HeldLine],
    pub(super) time: Timestamp,
    pub(super) hold_ms: u32,
    pub(super) status: HoldStatus,
    pub(super) is_moved: bool,
}

#[expect(clippy::struct_field_names, reason = "the words of the events")]
pub(super) struct Holds {
    directory: Directory,
    holds: Arena<Hold>,
    carts: Arena<Box<[HeldLine]>>,
    payments: Arena<Payment>,
}

impl Holds {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            directory: Directory::with_capacity(capacity),
            holds: Arena::with_capacity(capacity, Hold::FILLER),
            carts: Arena::with_capacity(0, Box::default()),
            payments: Arena::with_capacity(0, Payment::FILLER),
        }
    }

    /// Reads a reservation and tells its user's place, so that the misses of a batch overlap.
    #[inline]
    pub(super) fn touch(&self, id: ReservationId) -> Option<u32> {
        self.place_of(id).map(|place| self.holds.get(place).user)
    }

    /// Reads the place that the n-th next reservation will take.
    #[inline]
    pub(super) fn touch_next(&self, ahead: usize) -> u64 {
        let next = self.holds.upcoming(ahead);
        next.map_or(0, |hold| hold.id.get())
    }

    /// Reservations in the tables, live and ended.
    pub(super) fn len(&self) -> usize {
        self.holds.in_use()
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

    /// The reservations of a user's list, the newest first.
    pub(super) fn list_from(&self, head: u32) -> impl Iterator<Item = u32> {
        let first = Some(head).filter(|&place| place != NONE);
        std::iter::successors(first, |&place| {
            Some(self.holds.get(place).next).filter(|&next| next != NONE)
        })
    }

    /// Puts a hold at the head of its user's list for its status.
    fn link(&mut self, users: &mut Users, place: u32) {
        let Hold { user, status, .. } = *self.holds.get(place);
        let list = users.get_mut(user).list(status.is_live());
        let next = std::mem::replace(list, place);
        let hold = self.holds.get_mut(place);
        (hold.prev, hold.next) = (NONE, next);
        if next != NONE {
            self.holds.get_mut(next).prev = place;
        }
    }

    /// Takes a hold out of its user's list for its status.
    fn unlink(&mut self, users: &mut Users, place: u32) {
        let Hold {
            user,
            status,
            prev,
            next,
            ..
        } = *self.holds.get(place);
        if prev == NONE {
            *users.get_mut(user).list(status.is_live()) = next;
        } else {
            self.holds.get_mut(prev).next = next;
        }
        if next != NONE {
            self.holds.get_mut(next).prev = prev;
        }
    }

    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: what is returned through memory is read before it has arrived"
    )]
    pub(super) fn insert(&mut self, users: &mut Users, new: &NewHold<'_>) -> u32 {
        let more = if new.more.is_empty() {
            NONE
        } else {
            self.carts.insert(new.more.into())
        };
        let place = self.holds.insert(Hold {
            id: new.id,
            time: new.time,
            first: new.first,
            user: new.user,
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
        users.get_mut(new.user).live_count += u32::from(new.status.is_live());
        self.link(users, place);
        self.directory.insert(new.id.sequence(), place);
        place
    }

    /// Ends a live reservation; it stays in the tables until it retires.
    pub(super) fn end(&mut self, users: &mut Users, place: u32, status: HoldStatus, at: Timestamp) {
        self.unlink(users, place);
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
        users.get_mut(user).live_count -= 1;
        self.link(users, place);
    }

    /// Takes an ended reservation out of the tables.
    pub(super) fn retire(&mut self, users: &mut Users, place: u32) {
        let hold = *self.holds.get(place);
        debug_assert!(!hold.status.is_live(), "only ended reservations retire");
        self.unlink(users, place);
        if hold.more != NONE {
            *self.carts.get_mut(hold.more) = Box::default();
            self.carts.remove(hold.more);
        }
        self.directory.remove(hold.id.sequence());
        self.holds.remove(place);
        users.drop_if_idle(hold.user);
    }

    /// All reservations, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.directory.iter()
    }
}
