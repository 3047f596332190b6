//! Units that users hold or have bought, per SKU and sale: what their limits compare with. A user's first counter lies with
//! the user, further ones in a table of their own.

use super::{Counter, CounterPlace, Holds, NONE, Units, User};
use crate::types::{SkuId, UserId};

impl Holds {
    fn find_counter(&self, user: u32, sku: SkuId) -> Option<(CounterPlace, Units)> {
        let User {
            id,
            first,
            counters,
            ..
        } = *self.users.get(user);
        if first.units > 0 && first.sku == sku {
            return Some((CounterPlace::First, first));
        }
        if counters == 0 {
            return None;
        }
        let place = self
            .counter_index
            .find(self.counter_hash(id, sku), |place| {
                let counter = self.counters.get(place);
                counter.user == user && counter.of.sku == sku
            })?;
        Some((CounterPlace::Further(place), self.counters.get(place).of))
    }

    fn set_counter(&mut self, user: u32, place: &CounterPlace, units: Units) {
        match *place {
            CounterPlace::First => self.users.get_mut(user).first = units,
            CounterPlace::Further(place) => self.counters.get_mut(place).of = units,
        }
    }

    /// Units of this sale that count against the user's limit.
    pub(in crate::allocator) fn counted(&self, user: UserId, sku: SkuId, sale: u32) -> u32 {
        let user = self.find_user(user);
        user.map_or(0, |user| self.counted_of(user, sku, sale))
    }

    /// The same, of a user at a place.
    pub(in crate::allocator) fn counted_of(&self, user: u32, sku: SkuId, sale: u32) -> u32 {
        let counter = self.find_counter(user, sku);
        counter
            .filter(|(_, of)| of.sale == sale)
            .map_or(0, |(_, of)| of.units)
    }

    /// Counts units of a sale; a counter of an earlier one begins anew. True if it is a new counter of the sale.
    pub(in crate::allocator) fn count(
        &mut self,
        user: UserId,
        sku: SkuId,
        sale: u32,
        units: u32,
    ) -> bool {
        let owner = self.user_or_new(user);
        let mut of = Units { sku, sale, units };
        let begins = if let Some((place, known)) = self.find_counter(owner, sku) {
            let begins = known.sale != sale;
            if !begins {
                of.units = known.units.saturating_add(units);
            }
            self.set_counter(owner, &place, of);
            begins
        } else {
            self.add_counter(owner, user, of);
            true
        };
        self.counting += usize::from(begins);
        begins
    }

    fn add_counter(&mut self, owner: u32, user: UserId, of: Units) {
        let entry = self.users.get_mut(owner);
        if entry.first.units == 0 {
            entry.first = of;
            self.first_counters += 1;
            return;
        }
        entry.counters += 1;
        let place = self.counters.insert(Counter { user: owner, of });
        let hash = self.counter_hash(user, of.sku);
        self.counter_index.insert(hash, place);
    }

    /// Takes units off a counter of a sale that has not ended; with the last one it goes, which is told. `None` if it
    /// counts fewer.
    pub(in crate::allocator) fn discount(
        &mut self,
        user: UserId,
        sku: SkuId,
        sale: u32,
        units: u32,
    ) -> Option<bool> {
        let owner = self.find_user(user)?;
        let (place, mut of) = self.find_counter(owner, sku)?;
        if of.sale != sale {
            return None;
        }
        of.units = of.units.checked_sub(units)?;
        if of.units > 0 {
            self.set_counter(owner, &place, of);
            return Some(false);
        }
        self.drop_counter(owner, &place);
        self.counting -= 1;
        Some(true)
    }

    fn drop_counter(&mut self, owner: u32, place: &CounterPlace) {
        match *place {
            CounterPlace::First => {
                self.users.get_mut(owner).first = Units::NONE;
                self.first_counters -= 1;
            }
            CounterPlace::Further(place) => {
                let sku = self.counters.get(place).of.sku;
                let hash = self.counter_hash(self.users.get(owner).id, sku);
                self.counter_index.remove(hash, place);
                *self.counters.get_mut(place) = Counter::FREE;
                self.counters.remove(place);
                self.users.get_mut(owner).counters -= 1;
            }
        }
        self.drop_idle_user(owner);
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
                self.drop_counter(self.user_cursor, &CounterPlace::First);
            }
        }
        let places = u32::try_from(self.counters.places()).unwrap_or(NONE);
        for _ in 0..max.min(places) {
            self.counter_cursor = (self.counter_cursor + 1) % places;
            let Counter { user, of } = *self.counters.get(self.counter_cursor);
            if has_ended(of) {
                self.drop_counter(user, &CounterPlace::Further(self.counter_cursor));
            }
        }
    }

    /// All counters, with their users.
    pub(in crate::allocator) fn counters(&self) -> impl Iterator<Item = (UserId, Units)> + '_ {
        let places = |len: usize| 0..u32::try_from(len).unwrap_or(NONE);
        let first = places(self.users.places()).map(|place| {
            let user = self.users.get(place);
            (user.id, user.first)
        });
        let further = places(self.counters.places()).filter_map(|place| {
            let counter = self.counters.get(place);
            (counter.of.units > 0).then(|| (self.users.get(counter.user).id, counter.of))
        });
        first.filter(|(_, of)| of.units > 0).chain(further)
    }
}
