//! The peer: a limit per user and a first answer per key in two hash maps, reservations in a slab, units in a counter.

use super::{BATCH, Numbers, instant};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::hint::black_box;
use std::time::Duration;

/// One folded multiplication, the least that a hash can cost: the numbers are random already.
#[derive(Default)]
struct Folded(u64);

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u128(byte.into());
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves of a product")]
    fn write_u128(&mut self, number: u128) {
        let (low, high) = (number as u64, (number >> 64) as u64);
        let product = u128::from(low ^ 0x9E37_79B9_7F4A_7C15) * u128::from(high ^ self.0 | 1);
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

type Map = HashMap<u128, u32, BuildHasherDefault<Folded>>;

struct Held {
    user: u128,
    units: u32,
    expires_at: u64,
}

struct Toy {
    units_of: Map,
    first_answer: Map,
    held: Vec<Held>,
    available: u64,
}

impl Toy {
    /// With room for so many, its memory touched.
    fn with_capacity(entries: usize) -> Self {
        let warm = || {
            let mut numbers = Numbers(2);
            let mut map = Map::with_capacity_and_hasher(entries, BuildHasherDefault::default());
            map.extend((0..entries).map(|_| (numbers.wide(), 0)));
            map.clear();
            map
        };
        let mut held = Vec::with_capacity(entries);
        held.extend((0..entries).map(|_| Held {
            user: 1,
            units: 1,
            expires_at: 1,
        }));
        held.clear();
        Self {
            units_of: warm(),
            first_answer: warm(),
            held,
            available: 2 * entries as u64,
        }
    }

    /// The place of the reservation.
    fn reserve(&mut self, user: u128, key: u128, now: u64) -> Option<u32> {
        let place = u32::try_from(self.held.len()).ok()?;
        let first = match self.first_answer.entry(key) {
            Entry::Occupied(known) => return Some(*known.get()),
            Entry::Vacant(first) => first,
        };
        let units_of = self.units_of.entry(user).or_insert(0);
        if *units_of > 0 || self.available == 0 {
            return None;
        }
        *units_of += 1;
        self.available -= 1;
        self.held.push(Held {
            user,
            units: 1,
            expires_at: now + 120_000_000,
        });
        first.insert(place);
        Some(place)
    }
}

/// The times of the last `measured` decisions of all, batch by batch.
pub(super) fn reserve(all: usize, measured: usize) -> Vec<Duration> {
    let mut toy = Toy::with_capacity(all);
    let mut numbers = Numbers(1);
    let mut asked = Vec::with_capacity(BATCH);
    let mut times = Vec::with_capacity(all / BATCH);
    for now in 0..all as u64 / BATCH as u64 {
        asked.clear();
        asked.extend((0..BATCH).map(|_| (numbers.wide(), numbers.wide())));
        let start = instant();
        for &(user, key) in &asked {
            assert!(black_box(toy.reserve(user, key, now)).is_some());
        }
        times.push(start.elapsed());
    }
    let units: u64 = toy.held.iter().map(|held| u64::from(held.units)).sum();
    assert_eq!(units, all as u64, "no unit is lost");
    black_box(toy.held.last().map(|held| (held.user, held.expires_at)));
    times.split_off((all - measured) / BATCH)
}
