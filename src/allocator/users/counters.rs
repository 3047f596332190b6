//! Units that users hold or have bought, per SKU and sale: what their limits compare with. A user's first counter lies with
//! the user, further ones in a table of their own.

use super::{NONE, Units, Users};
use crate::types::{SkuId, UserId};

/// A counter that found its user's first place taken. Without units its place is free.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counter {
    user: u32,
    of: Units,
}

impl Counter {
    /// Fills memory that isn't used yet.
    pub(super) const FREE: Self = Self {
        user: NONE,
        of: Units::NONE,
    };
}

/// Where a counter is.
enum Place {
    First,
    Further(u32),
}

impl Users {
    fn counter_hash(&self, user: UserId, sku: SkuId) -> u64 {
        self.hash.of(user.0, u64::from(sku.0) + 1)
    }

    #[inline]
    fn find_counter(&self, user: u32, sku: SkuId) -> Option<(Place, Units)> {
        let entry = self.users.get(user);
        if entry.first.units > 0 && entry.first.sku == sku {
            return Some((Place::First, entry.first));
        }
        if entry.counters == 0 {
            return None;
        }
        let place = self
            .counter_index
            .find(self.counter_hash(entry.id(), sku), |place| {
                let counter = self.counters.get(place);
                counter.user == user && counter.of.sku == sku
            })?;
        Some((Place::Further(place), self.counters.get(place).of))
    }

    fn set_counter(&mut self, user: u32, place: &Place, units: Units) {
        match *place {
            Place::First => self.users.get_mut(user).first = units,
            Place::Further(place) => self.counters.get_mut(place).of = units,
        }
    }

    /// Counters of sales that have not ended.
    pub(in crate::allocator) fn counting(&self) -> usize {
        self.counting
    }

    /// A sale with so many counters has ended.
    pub(in crate::allocator) fn stop_counting(&mut self, counters: u32) {
        self.counting -= counters as usize;
    }

    /// Units of this sale that count against the user's limit.
    #[inline]
    pub(in crate::allocator) fn counted(&self, user: u32, sku: SkuId, sale: u32) -> u32 {
        let counter = self.find_counter(user, sku);
        counter
            .filter(|(_, of)| of.sale == sale)
            .map_or(0, |(_, of)| of.units)
    }

    /// Counts units of a sale; a counter of an earlier one begins anew. True if it is a new counter of the sale.
    pub(in crate::allocator) fn count(
        &mut self,
        user: u32,
        sku: SkuId,
        sale: u32,
        units: u32,
    ) -> bool {
        let mut of = Units { sku, sale, units };
        let begins = if let Some((place, known)) = self.find_counter(user, sku) {
            let begins = known.sale != sale;
            if !begins {
                of.units = known.units.saturating_add(units);
            }
            self.set_counter(user, &place, of);
            begins
        } else {
            self.add_counter(user, of);
            true
        };
        self.counting += usize::from(begins);
        begins
    }

    fn add_counter(&mut self, user: u32, of: Units) {
        let entry = self.users.get_mut(user);
        if entry.first.units == 0 {
            entry.first = of;
            self.first_counters += 1;
            return;
        }
        entry.counters += 1;
        let id = entry.id();
        let place = self.counters.insert(Counter { user, of });
        let hash = self.counter_hash(id, of.sku);
        self.counter_index.insert(hash, place);
    }

    /// Takes units off a counter of a sale that has not ended; with the last one it goes, which is told. `None` if it
    /// counts fewer. The user stays until [`drop_if_idle`](Self::drop_if_idle).
    pub(in crate::allocator) fn discount(
        &mut self,
        user: u32,
        sku: SkuId,
        sale: u32,
        units: u32,
    ) -> Option<bool> {
        let (place, mut of) = self.find_counter(user, sku)?;
        if of.sale != sale {
            return None;
        }
        of.units = of.units.checked_sub(units)?;
        if of.units > 0 {
            self.set_counter(user, &place, of);
            return Some(false);
        }
        self.drop_counter(user, &place);
        self.counting -= 1;
        Some(true)
    }

    fn drop_counter(&mut self, user: u32, place: &Place) {
        match *place {
            Place::First => {
                self.users.get_mut(user).first = Units::NONE;
                self.first_counters -= 1;
            }
            Place::Further(place) => {
                let sku = self.counters.get(place).of.sku;
                let hash = self.counter_hash(self.users.get(user).id(), sku);
                self.counter_index.remove(hash, place);
                *self.counters.get_mut(place) = Counter::FREE;
                self.counters.remove(place);
                self.users.get_mut(user).counters -= 1;
            }
        }
    }

    /// Looks at the next `max` counters and frees those that no longer count. What a query or a decision sees doesn't
    /// change by it.
    pub(in crate::allocator) fn sweep_counters(
        &mut self,
        max: u32,
        counts: impl Fn(SkuId, u32) -> bool,
    ) {
        if self.first_counters + self.counters.in_use() == self.counting {
            return;
        }
        let has_ended = |of: Units| of.units > 0 && !counts(of.sku, of.sale);
        let places = u32::try_from(self.users.places()).unwrap_or(NONE);
        for _ in 0..max.min(places) {
            self.user_cursor = (self.user_cursor + 1) % places;
            if has_ended(self.users.get(self.user_cursor).first) {
                self.drop_counter(self.user_cursor, &Place::First);
                self.drop_if_idle(self.user_cursor);
            }
        }
        let places = u32::try_from(self.counters.places()).unwrap_or(NONE);
        for _ in 0..max.min(places) {
            self.counter_cursor = (self.counter_cursor + 1) % places;
            let Counter { user, of } = *self.counters.get(self.counter_cursor);
            if has_ended(of) {
                self.drop_counter(user, &Place::Further(self.counter_cursor));
                self.drop_if_idle(user);
            }
        }
    }

    /// All counters, with their users.
    pub(in crate::allocator) fn counters(&self) -> impl Iterator<Item = (UserId, Units)> + '_ {
        let places = |len: usize| 0..u32::try_from(len).unwrap_or(NONE);
        let first = places(self.users.places()).map(|place| {
            let user = self.users.get(place);
            (user.id(), user.first)
        });
        let further = places(self.counters.places()).filter_map(|place| {
            let counter = self.counters.get(place);
            (counter.of.units > 0).then(|| (self.users.get(counter.user).id(), counter.of))
        });
        first.filter(|(_, of)| of.units > 0).chain(further)
    }
}
