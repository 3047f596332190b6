//! A hash index: from a key's hash to the position of its entry in an arena or queue.
//!
//! It holds no keys, only 32 bits of each hash and a position, so that a miss costs one cache line, growing moves
//! 8 bytes an entry, and nothing is ever iterated in hash order. Callers compare the entry itself.
//!
//! ```text
//! hash: [ part: 10 bits | ....... | tag: 32 bits ]        slot: [ tag | position ], 0 is empty
//!          |                          `-- its top bit is set; home slot = tag mod capacity, then linear probing
//!          `-- 1,024 parts, each with its own table and its own growth limit
//! ```
//!
//! Never stalls: a part doubles alone, and the parts' limits are spread over 62 to 75 % load, so that they don't
//! double together. At 10 million entries one doubling moves some 10,000 slots.
//!
//! I1: every entry lies between its home slot and the next empty one. I2: `used <= limit < capacity`.

const PARTS: usize = 1_024;
const PART_SHIFT: u32 = 54; // the upper 10 of 64 bits
const CAPACITY_MIN: usize = 4;
const EMPTY: u64 = 0;

pub(super) struct Index {
    parts: Box<[Part; PARTS]>,
}

struct Part {
    slots: Box<[u64]>,
    used: usize,
    limit: usize,
}

impl Index {
    /// For so many entries without growing; more fit all the same.
    pub(super) fn with_capacity(entries: usize) -> Self {
        // 5/8 is the lowest load at which a part grows. Hashes spread as chance does: a part has four standard deviations
        // more than the mean once in 30,000 times.
        let mean = entries.div_ceil(PARTS);
        let most = mean + 4 * mean.isqrt();
        let capacity = (most * 8 / 5).next_power_of_two().max(CAPACITY_MIN);
        Self {
            parts: Box::new(std::array::from_fn(|part| Part::warm(part, capacity))),
        }
    }

    fn part(&self, hash: u64) -> &Part {
        &self.parts[(hash >> PART_SHIFT) as usize]
    }

    /// Reads the home slot: a first pass over a batch makes the misses overlap.
    #[inline]
    pub(super) fn touch(&self, hash: u64) -> u64 {
        let part = self.part(hash);
        part.slots[part.home(tag_of(hash))]
    }

    /// The position whose entry the caller recognises.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let part = self.part(hash);
        let tag = tag_of(hash);
        let mut at = part.home(tag);
        loop {
            let slot = part.slots[at];
            if slot == EMPTY {
                return None;
            }
            if tag_in(slot) == tag && is_it(position_in(slot)) {
                return Some(position_in(slot));
            }
            at = part.next(at);
        }
    }

    /// Adds an entry that is not there.
    #[inline]
    pub(super) fn insert(&mut self, hash: u64, position: u32) {
        let number = (hash >> PART_SHIFT) as usize;
        let part = &mut self.parts[number];
        if part.used == part.limit {
            part.grow(number);
        }
        part.put((u64::from(tag_of(hash)) << 32) | u64::from(position));
        part.used += 1;
    }

    /// Takes an entry out; true if it was there.
    pub(super) fn remove(&mut self, hash: u64, position: u32) -> bool {
        let part = &mut self.parts[(hash >> PART_SHIFT) as usize];
        let tag = tag_of(hash);
        let mut at = part.home(tag);
        while part.slots[at] != EMPTY {
            if tag_in(part.slots[at]) == tag && position_in(part.slots[at]) == position {
                part.close_gap(at);
                part.used -= 1;
                return true;
            }
            at = part.next(at);
        }
        false
    }
}

impl Part {
    fn new(number: usize, capacity: usize) -> Self {
        debug_assert!(
            capacity.is_power_of_two(),
            "the home slot is taken by a mask"
        );
        // 5/8 + 0..=31/256 of the capacity; at least one slot stays empty, which ends every probe.
        let limit = (capacity * 5 / 8 + capacity * (number % 32) / 256).min(capacity - 1);
        Self {
            slots: vec![EMPTY; capacity].into_boxed_slice(),
            used: 0,
            limit,
        }
    }

    /// With memory that is there already: zeros alone would fault page by page later.
    fn warm(number: usize, capacity: usize) -> Self {
        let mut part = Self::new(number, capacity);
        part.slots.fill(std::hint::black_box(!EMPTY));
        part.slots.fill(EMPTY);
        part
    }

    fn home(&self, tag: u32) -> usize {
        tag as usize & (self.slots.len() - 1)
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }

    fn put(&mut self, slot: u64) {
        let mut at = self.home(tag_in(slot));
        while self.slots[at] != EMPTY {
            at = self.next(at);
        }
        self.slots[at] = slot;
    }

    #[cold]
    fn grow(&mut self, number: usize) {
        let mut larger = Self::new(number, self.slots.len() * 2);
        larger.used = self.used;
        for &slot in self.slots.iter().filter(|&&slot| slot != EMPTY) {
            larger.put(slot);
        }
        *self = larger;
    }

    /// Moves later entries of the run back, so that no probe meets a gap (I1).
    fn close_gap(&mut self, mut gap: usize) {
        let mut at = gap;
        loop {
            at = self.next(at);
            let slot = self.slots[at];
            if slot == EMPTY {
                break;
            }
            let mask = self.slots.len() - 1;
            let from_home = at.wrapping_sub(self.home(tag_in(slot))) & mask;
            let from_gap = at.wrapping_sub(gap) & mask;
            if from_home >= from_gap {
                self.slots[gap] = slot;
                gap = at;
            }
        }
        self.slots[gap] = EMPTY;
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half on purpose")]
const fn tag_of(hash: u64) -> u32 {
    hash as u32 | 1 << 31
}

const fn tag_in(slot: u64) -> u32 {
    (slot >> 32) as u32
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half on purpose")]
const fn position_in(slot: u64) -> u32 {
    slot as u32
}

/// Hashes under a seed: keys come from outside, so whoever doesn't know it can't aim at one slot.
///
/// Folded multiplication (the 128-bit product's halves, xored), as in wyhash and foldhash.
#[derive(Clone, Copy)]
pub(super) struct Hash {
    seeds: [u64; 4],
}

impl Hash {
    pub(super) fn new(seed: u64) -> Self {
        // SplitMix64 (Steele, Lea, Flood 2014) stretches the seed.
        let mut state = seed;
        let seeds = std::array::from_fn(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        });
        Self { seeds }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "halves of a product")]
    pub(super) fn of(&self, wide: u128, word: u64) -> u64 {
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            (product as u64) ^ ((product >> 64) as u64)
        };
        let [a, b, c, d] = self.seeds;
        fold(fold(wide as u64 ^ a, (wide >> 64) as u64 ^ b) ^ c, word ^ d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// A small pseudo-random sequence: tests must not depend on a random crate's stream.
    fn numbers(seed: u64) -> impl Iterator<Item = u64> {
        let hash = Hash::new(seed);
        (0..).map(move |n| hash.of(n, 1))
    }

    #[test]
    fn index_agrees_with_a_map_under_inserts_and_removals() {
        let mut index = Index::with_capacity(0);
        let mut model: HashMap<u32, u64> = HashMap::new();
        for (step, number) in numbers(7).take(200_000).enumerate() {
            // Few distinct hashes in few parts, so that runs are long and wrap around.
            let position = (number % 3_000) as u32;
            let hash = u64::from(position % 400).wrapping_mul(0x0100_0000_0000_0005);
            if model.remove(&position).is_some() {
                assert!(index.remove(hash, position), "step {step}");
                assert_eq!(index.find(hash, |at| at == position), None);
            } else {
                model.insert(position, hash);
                index.insert(hash, position);
            }
        }
        for position in 0..3_000 {
            let hash = u64::from(position % 400).wrapping_mul(0x0100_0000_0000_0005);
            let found = index.find(hash, |at| at == position).is_some();
            assert_eq!(found, model.contains_key(&position), "position {position}");
        }
        assert_eq!(
            index.parts.iter().map(|part| part.used).sum::<usize>(),
            model.len()
        );
    }

    #[test]
    fn a_removal_of_what_is_absent_changes_nothing() {
        let mut index = Index::with_capacity(16);
        index.insert(5, 1);
        assert!(!index.remove(5, 2));
        assert!(!index.remove(6, 1));
        assert_eq!(index.find(5, |_| true), Some(1));
    }

    #[test]
    fn parts_do_not_grow_together() {
        let limits: std::collections::BTreeSet<usize> = (0..PARTS)
            .map(|part| Part::new(part, 65_536).limit)
            .collect();
        assert!(
            limits.len() >= 32,
            "the limits are spread: {}",
            limits.len()
        );
        assert!(limits.iter().all(|limit| (40_000..50_000).contains(limit)));
    }
}
