//! From a reservation's id to its place: pages of a dense array over the log's sequences.
//!
//! Ids are sequences, so those in use lie close together and grow upwards; no hash is needed, and nothing is ever
//! moved. A page is freed with its last reservation, and reservations retire in time, so the pages in use span what
//! the retention spans.

use super::arena::NONE;
use std::collections::VecDeque;

const PAGE_SHIFT: u32 = 10;
const PAGE: usize = 1 << PAGE_SHIFT; // 1,024 places: 4 KiB

pub(super) struct Directory {
    pages: VecDeque<Option<Box<Page>>>,
    /// The number of the first page in `pages`.
    first: u64,
    /// Empty pages to be used next.
    spare: Vec<Box<Page>>,
    spare_max: usize,
}

struct Page {
    used: usize,
    places: [u32; PAGE],
}

impl Page {
    fn empty() -> Box<Self> {
        Box::new(Self {
            used: 0,
            places: [NONE; PAGE],
        })
    }
}

impl Directory {
    /// With memory for so many sequences.
    pub(super) fn with_capacity(sequences: usize) -> Self {
        let pages = sequences.div_ceil(PAGE);
        Self {
            pages: VecDeque::new(),
            first: 0,
            spare: (0..pages).map(|_| Page::empty()).collect(),
            spare_max: pages,
        }
    }

    #[inline]
    pub(super) fn get(&self, sequence: u64) -> Option<u32> {
        let number = (sequence >> PAGE_SHIFT).checked_sub(self.first)?;
        let page = self.pages.get(usize::try_from(number).ok()?)?.as_ref()?;
        Some(page.places[offset(sequence)]).filter(|&place| place != NONE)
    }

    /// Sequences may come in any order, but far apart only upwards: every page between is a pointer.
    #[inline]
    pub(super) fn insert(&mut self, sequence: u64, place: u32) {
        let number = sequence >> PAGE_SHIFT;
        let index = usize::try_from(number.wrapping_sub(self.first)).unwrap_or(usize::MAX);
        let page = match self.pages.get_mut(index) {
            Some(Some(page)) => page,
            _ => self.open_page(number),
        };
        debug_assert_eq!(
            page.places[offset(sequence)],
            NONE,
            "a sequence is used once"
        );
        page.places[offset(sequence)] = place;
        page.used += 1;
    }

    #[cold]
    fn open_page(&mut self, number: u64) -> &mut Page {
        if self.pages.is_empty() {
            self.first = number;
        }
        while number < self.first {
            self.pages.push_front(None);
            self.first -= 1;
        }
        let index = usize::try_from(number - self.first).unwrap_or(usize::MAX);
        if index >= self.pages.len() {
            self.pages.resize_with(index + 1, || None);
        }
        let spare = &mut self.spare;
        self.pages[index].get_or_insert_with(|| spare.pop().unwrap_or_else(Page::empty))
    }

    pub(super) fn remove(&mut self, sequence: u64) {
        let Some(index) = (sequence >> PAGE_SHIFT).checked_sub(self.first) else {
            return;
        };
        let Ok(index) = usize::try_from(index) else {
            return;
        };
        let Some(Some(page)) = self.pages.get_mut(index) else {
            return;
        };
        debug_assert_ne!(
            page.places[offset(sequence)],
            NONE,
            "only what is there is removed"
        );
        page.places[offset(sequence)] = NONE;
        page.used -= 1;
        if page.used == 0 {
            let page = self.pages[index].take();
            let room = self.spare_max - self.spare.len();
            self.spare.extend(page.into_iter().take(room));
            while let Some(None) = self.pages.front() {
                self.pages.pop_front();
                self.first += 1;
            }
        }
    }

    /// All places, in the order of the sequences.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.pages
            .iter()
            .flatten()
            .flat_map(|page| page.places.iter().copied().filter(|&place| place != NONE))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "masked to a page")]
const fn offset(sequence: u64) -> usize {
    sequence as usize & (PAGE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_inserted_is_found_until_removed_and_pages_are_freed() {
        let mut directory = Directory::with_capacity(2 * PAGE);
        for sequence in (1..50_000_u64).step_by(3) {
            directory.insert(sequence, u32::try_from(sequence).expect("small"));
        }
        assert_eq!(directory.get(4), Some(4));
        assert_eq!(directory.get(5), None);
        assert_eq!(directory.get(1 << 40), None);
        for sequence in (1..49_000_u64).step_by(3) {
            directory.remove(sequence);
        }
        assert_eq!(directory.get(4), None);
        assert!(
            directory.pages.len() <= 2,
            "{} pages",
            directory.pages.len()
        );
        let rest: Vec<u32> = directory.iter().collect();
        assert!(rest.is_sorted() && rest.len() == (49_000..50_000).filter(|n| n % 3 == 1).count());
        directory.insert(10, 1);
        assert_eq!(directory.get(10), Some(1));
    }
}
