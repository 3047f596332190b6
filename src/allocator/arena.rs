//! Two containers that grow by chunks and never move what they hold: [`Arena`], with reuse of free places, and
//! [`Queue`], first in first out, whose entries can be reached by position.
//!
//! A `Vec` that doubles copies everything at once, which at ten million entries takes longer than a whole batch
//! may; these allocate one chunk at a time. A chunk is written with a filler when it is made, so that no page of a
//! presized table faults later, and its length is a constant, so that reaching an entry checks one bound.

use std::collections::VecDeque;

const CHUNK_SHIFT: u32 = 12;
const CHUNK: usize = 1 << CHUNK_SHIFT; // 4,096 entries: 256 KiB of 64-byte ones
const CHUNK_MASK: usize = CHUNK - 1;

/// No place: the end of a list, or nothing there.
pub(super) const NONE: u32 = u32::MAX;

type Chunk<T> = Box<[T; CHUNK]>;

#[expect(
    clippy::unnecessary_box_returns,
    reason = "a chunk is too large for the stack"
)]
fn chunk_of<T: Clone>(filler: &T) -> Chunk<T> {
    match vec![filler.clone(); CHUNK].into_boxed_slice().try_into() {
        Ok(chunk) => chunk,
        Err(_) => unreachable!("a chunk has the length of a chunk"),
    }
}

/// Entries at stable places.
pub(super) struct Arena<T> {
    chunks: Vec<Chunk<T>>,
    filler: T,
    len: usize,
    free: Vec<u32>,
}

impl<T: Clone> Arena<T> {
    /// With memory for so many entries, written with the filler.
    pub(super) fn with_capacity(entries: usize, filler: T) -> Self {
        let chunks = (0..entries.div_ceil(CHUNK)).map(|_| chunk_of(&filler));
        Self {
            chunks: chunks.collect(),
            filler,
            len: 0,
            free: Vec::new(),
        }
    }

    /// Entries in use.
    pub(super) fn in_use(&self) -> usize {
        self.len - self.free.len()
    }

    /// Places, used and free.
    pub(super) fn places(&self) -> usize {
        self.len
    }

    /// The place that the n-th next insertion will probably take, so that it can be read before it is written.
    #[inline]
    pub(super) fn upcoming(&self, ahead: usize) -> Option<&T> {
        let place = self.len + ahead;
        Some(&self.chunks.get(place >> CHUNK_SHIFT)?[place & CHUNK_MASK])
    }

    #[inline]
    pub(super) fn get(&self, place: u32) -> &T {
        &self.chunks[place as usize >> CHUNK_SHIFT][place as usize & CHUNK_MASK]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, place: u32) -> &mut T {
        &mut self.chunks[place as usize >> CHUNK_SHIFT][place as usize & CHUNK_MASK]
    }

    /// # Panics
    /// At 2^32 - 2 entries: the limits of the allocator lie below.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: what is returned through memory is read before it has arrived"
    )]
    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(place) = self.free.pop() {
            *self.get_mut(place) = value;
            return place;
        }
        let place = u32::try_from(self.len).unwrap_or(NONE);
        assert!(
            place < NONE,
            "an arena is bounded by the allocator's limits"
        );
        if self.len >> CHUNK_SHIFT == self.chunks.len() {
            self.chunks.push(chunk_of(&self.filler));
        }
        self.len += 1;
        *self.get_mut(place) = value;
        place
    }

    /// The place may be given to another entry; its old value stays until then.
    pub(super) fn remove(&mut self, place: u32) {
        self.free.push(place);
    }
}

/// First in, first out; positions count up for ever, modulo 2^32.
pub(super) struct Queue<T> {
    chunks: VecDeque<Chunk<T>>,
    filler: T,
    /// The position of the first entry of the first chunk.
    base: u32,
    /// Entries of the first chunk that were taken out.
    taken: usize,
    len: usize,
    spare: Vec<Chunk<T>>,
    spare_max: usize,
}

impl<T: Copy> Queue<T> {
    /// With memory for so many entries, written with the filler.
    pub(super) fn with_capacity(entries: usize, filler: T) -> Self {
        let spare = (0..entries.div_ceil(CHUNK)).map(|_| chunk_of(&filler));
        Self {
            chunks: VecDeque::new(),
            filler,
            base: 0,
            taken: 0,
            len: 0,
            spare: spare.collect(),
            spare_max: entries.div_ceil(CHUNK).max(1),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn front(&self) -> Option<(u32, &T)> {
        (self.len > 0).then(|| (self.front_position(), self.at(0)))
    }

    #[expect(clippy::cast_possible_truncation, reason = "positions wrap by design")]
    fn front_position(&self) -> u32 {
        self.base.wrapping_add(self.taken as u32)
    }

    /// The n-th entry from the front.
    fn at(&self, index: usize) -> &T {
        let offset = self.taken + index;
        &self.chunks[offset >> CHUNK_SHIFT][offset & CHUNK_MASK]
    }

    /// The place that the n-th next push will take, so that it can be read before it is written.
    #[inline]
    pub(super) fn upcoming(&self, ahead: usize) -> Option<&T> {
        let offset = self.taken + self.len + ahead;
        Some(&self.chunks.get(offset >> CHUNK_SHIFT)?[offset & CHUNK_MASK])
    }

    /// The entry at a position that `push` gave and `pop` has not passed.
    #[inline]
    pub(super) fn get(&self, position: u32) -> &T {
        let offset = position.wrapping_sub(self.base) as usize;
        &self.chunks[offset >> CHUNK_SHIFT][offset & CHUNK_MASK]
    }

    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: what is returned through memory is read before it has arrived"
    )]
    #[expect(clippy::cast_possible_truncation, reason = "positions wrap by design")]
    pub(super) fn push(&mut self, value: T) -> u32 {
        let offset = self.taken + self.len;
        if offset >> CHUNK_SHIFT == self.chunks.len() {
            let spare = self.spare.pop();
            self.chunks
                .push_back(spare.unwrap_or_else(|| chunk_of(&self.filler)));
        }
        self.chunks[offset >> CHUNK_SHIFT][offset & CHUNK_MASK] = value;
        self.len += 1;
        self.base.wrapping_add(offset as u32)
    }

    pub(super) fn pop(&mut self) -> Option<(u32, T)> {
        let (position, &value) = self.front()?;
        self.taken += 1;
        self.len -= 1;
        if self.taken == CHUNK {
            if let Some(chunk) = self.chunks.pop_front()
                && self.spare.len() < self.spare_max
            {
                self.spare.push(chunk);
            }
            self.base = self.base.wrapping_add(1 << CHUNK_SHIFT);
            self.taken = 0;
        }
        Some((position, value))
    }

    /// Entries from the first that has not passed on; those that have come before it.
    pub(super) fn count_from(&self, has_passed: impl Fn(&T) -> bool) -> usize {
        let (mut passed, mut end) = (0, self.len);
        while passed < end {
            let middle = usize::midpoint(passed, end);
            if has_passed(self.at(middle)) {
                passed = middle + 1;
            } else {
                end = middle;
            }
        }
        self.len - passed
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let all = self.chunks.iter().flat_map(|chunk| chunk.iter());
        all.skip(self.taken).take(self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arena_reuses_free_places_and_moves_nothing() {
        let mut arena = Arena::with_capacity(0, 0_u64);
        let places: Vec<u32> = (0..10_000_u64).map(|n| arena.insert(n)).collect();
        arena.remove(places[17]);
        arena.remove(places[5_000]);
        assert_eq!(arena.in_use(), 9_998);
        assert_eq!(arena.insert(1), places[5_000]);
        assert_eq!(arena.insert(2), places[17]);
        assert_eq!(arena.insert(3), 10_000);
        assert_eq!(
            (*arena.get(places[4_999]), *arena.get(places[17])),
            (4_999, 2)
        );
    }

    #[test]
    fn queue_keeps_order_and_positions_across_chunks() {
        let mut queue = Queue::with_capacity(0, 0_u64);
        let mut next_in = 0_u64;
        let mut next_out = 0_u64;
        for round in 0..200 {
            for _ in 0..(round * 37) % 500 {
                let position = queue.push(next_in);
                assert_eq!(u64::from(position), next_in);
                next_in += 1;
            }
            for _ in 0..(round * 53) % 400 {
                let Some((position, value)) = queue.pop() else {
                    break;
                };
                assert_eq!((u64::from(position), value), (next_out, next_out));
                next_out += 1;
            }
            assert_eq!(queue.len() as u64, next_in - next_out);
            assert_eq!(queue.iter().count(), queue.len());
            if queue.len() > 0 {
                let middle = u32::try_from(u64::midpoint(next_out, next_in)).expect("small");
                assert_eq!(u64::from(middle), *queue.get(middle));
            }
        }
    }

    #[test]
    fn queue_positions_wrap_around() {
        let mut queue = Queue::with_capacity(0, 0_u32);
        queue.base = u32::MAX - 4_095;
        let positions: Vec<u32> = (0..5_000_u32).map(|n| queue.push(n)).collect();
        assert_eq!(positions[4_096], 0);
        assert_eq!(*queue.get(positions[4_500]), 4_500);
        for n in 0..5_000 {
            assert_eq!(queue.pop(), Some((positions[n as usize], n)));
        }
        assert_eq!(queue.pop(), None);
    }
}
