//! The users who have something here: a reservation, a counter or a key.
//!
//! ```text
//! id ── Index ──► User ── live, ended ──► his newest reservation of each list
//!                  │ `── key ──► his first accepted key         further ones: the keys' own index
//!                  `── first ──► units of one SKU's sale        further ones: a table, by (user, SKU)
//! ```
//!
//! Most users buy one thing under one key, so the first counter and the first key need no place of their own, and a
//! command of a new user costs one cache miss: whoever is not in the table has no key either.
//!
//! I1: a user is in the table exactly while he has a reservation, a counter or an entry among the keys.
//! I2: `last` is right about the user it names.

mod counters;

use super::arena::{Arena, NONE};
use super::index::{Hash, Index};
use crate::types::{SkuId, UserId, halves, joined};
use counters::Counter;

#[derive(Debug, Clone, Copy)]
pub(super) struct User {
    id: [u64; 2],
    /// The head of the list of his live reservations, and of that of the others.
    pub(super) live: u32,
    pub(super) ended: u32,
    pub(super) live_count: u32,
    /// The position of an accepted key of his that needs no index; `NONE` for none.
    pub(super) key: u32,
    /// His entries in the queue of accepted keys, also those that no longer answer.
    pub(super) keys: u32,
    /// Counters besides the first.
    counters: u32,
    first: Units,
}

impl User {
    /// Without anything; also fills memory that isn't used yet.
    const NOBODY: Self = Self {
        id: [u64::MAX; 2],
        live: NONE,
        ended: NONE,
        live_count: 0,
        key: NONE,
        keys: 0,
        counters: 0,
        first: Units::NONE,
    };

    pub(super) fn id(&self) -> UserId {
        UserId(joined(self.id))
    }

    /// The head of one of his lists.
    pub(super) fn list(&mut self, is_live: bool) -> &mut u32 {
        if is_live {
            &mut self.live
        } else {
            &mut self.ended
        }
    }

    fn is_idle(&self) -> bool {
        self.live == NONE
            && self.ended == NONE
            && self.keys == 0
            && self.counters == 0
            && self.first.units == 0
    }
}

const _: () = assert!(
    size_of::<User>() <= 56,
    "a live reservation is bounded by 256 bytes"
);

/// Units of a sale that count against a user's limit; 0 units: no counter.
#[derive(Debug, Clone, Copy)]
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

/// A user, his hash, and his place, or `NONE` if he is not in the table.
#[derive(Clone, Copy)]
struct Asked {
    id: UserId,
    hash: u64,
    place: u32,
}

pub(super) struct Users {
    hash: Hash,
    users: Arena<User>,
    index: Index,
    counters: Arena<Counter>,
    counter_index: Index,
    /// Users whose first counter is in use.
    first_counters: usize,
    /// Counters of sales that have not ended; the others wait to be freed.
    counting: usize,
    /// Where the sweep for counters of ended sales goes on, among users and among counters.
    user_cursor: u32,
    counter_cursor: u32,
    /// A command asks for its user several times.
    last: Asked,
}

impl Users {
    pub(super) fn new(hash: Hash, capacity: usize) -> Self {
        let nobody = UserId(u128::MAX);
        Self {
            hash,
            users: Arena::with_capacity(capacity, User::NOBODY),
            index: Index::with_capacity(capacity),
            counters: Arena::with_capacity(0, Counter::FREE),
            counter_index: Index::with_capacity(0),
            first_counters: 0,
            counting: 0,
            user_cursor: 0,
            counter_cursor: 0,
            last: Asked {
                id: nobody,
                hash: hash.of(nobody.0, 0),
                place: NONE,
            },
        }
    }

    #[inline]
    pub(super) fn hash_of(&self, user: UserId) -> u64 {
        if self.last.id == user {
            self.last.hash
        } else {
            self.hash.of(user.0, 0)
        }
    }

    /// Reads what finding a user will need, so that the misses of a batch overlap.
    #[inline]
    pub(super) fn touch(&self, hash: u64) -> u64 {
        self.index.touch(hash)
    }

    /// Reads the place that the n-th next user will take.
    #[inline]
    pub(super) fn touch_next(&self, ahead: usize) -> u64 {
        self.users.upcoming(ahead).map_or(0, |user| user.id[0])
    }

    #[inline]
    pub(super) fn get(&self, place: u32) -> &User {
        self.users.get(place)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, place: u32) -> &mut User {
        self.users.get_mut(place)
    }

    /// Where a user is.
    #[inline]
    pub(super) fn find(&self, user: UserId) -> Option<u32> {
        let place = if self.last.id == user {
            self.last.place
        } else {
            self.look_up(user, self.hash_of(user))
        };
        (place != NONE).then_some(place)
    }

    fn look_up(&self, user: UserId, hash: u64) -> u32 {
        let id = halves(user.0);
        let found = self
            .index
            .find(hash, |place| self.users.get(place).id == id);
        found.unwrap_or(NONE)
    }

    /// Looks a user up whom the next steps will ask for.
    #[inline]
    pub(super) fn ask(&mut self, id: UserId, hash: u64) {
        if self.last.id != id {
            let place = self.look_up(id, hash);
            self.last = Asked { id, hash, place };
        }
    }

    /// A user's place, in the table from now on. He must be given something (I1).
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: what is returned through memory is read before it has arrived"
    )]
    pub(super) fn find_or_insert(&mut self, user: UserId) -> u32 {
        if self.last.id != user {
            self.ask(user, self.hash_of(user));
        }
        if self.last.place == NONE {
            self.last.place = self.users.insert(User {
                id: halves(user.0),
                ..User::NOBODY
            });
            self.index.insert(self.last.hash, self.last.place);
        }
        self.last.place
    }

    /// Takes a user out of the table if he has nothing (I1).
    pub(super) fn drop_if_idle(&mut self, place: u32) {
        let user = self.users.get(place);
        if user.is_idle() {
            let hash = self.hash_of(user.id());
            self.index.remove(hash, place);
            self.users.remove(place);
            if self.last.place == place {
                self.last.place = NONE;
            }
        }
    }

    /// All users.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let places = 0..u32::try_from(self.users.places()).unwrap_or(NONE);
        places.filter(|&place| !self.users.get(place).is_idle())
    }
}
