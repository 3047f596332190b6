//! [`SnapshotCell`]: a few words that change together, read by anybody without waiting.
//!
//! Leaves out: more than one writer, and values that are not words (the caller packs them).
//! The engine publishes each SKU's counts through one, once per batch.
//!
//! ```text
//!  version  n ----odd/even----+        the writer fills the other copy,
//!                             v        then moves the version to it
//!  copies  [ words of n-1 ] [ words of n ]
//! ```
//!
//! - I1: `copies[version % 2]` holds the words of `version`, complete.
//! - I2: the writer touches only `copies[(version + 1) % 2]`, so a reader of `version` is
//!   disturbed only by the write of `version + 2`, which follows the publication of `version + 1`.
//!
//! | atomic | writer | reader | ordering | publishes |
//! |---|---|---|---|---|
//! | `version` | the writer | anybody | P1 Release / Acquire | the copy it chooses |
//! | words | the writer, after a Release fence | anybody, before an Acquire fence | P2 | that the version has moved on |
//!
//! - P1: `version.store(Release)` with `version.load(Acquire)`: who sees the version sees its words.
//! - P2: `fence(Release)` before a copy is overwritten with `fence(Acquire)` after it is read: who
//!   read even one word of `version + 2` sees a version of at least `version + 1` and retries.
//!
//! A reader never waits for a preempted writer: it retries only after the version has moved, so
//! each retry means that a store was finished meanwhile. A store and an undisturbed load are
//! `WORDS + 2` accesses each. Proved by `loom_tests` below and by a test with several threads.

use std::array;

use super::{AtomicU64, Ordering, fence};

/// A cache line of its own. 64 bytes, not 128: engines hold one cell per SKU, and the two copies
/// are not written at once, so the adjacent-line prefetcher does little harm.
#[repr(align(64))]
struct Line<T>(T);

/// `WORDS` words with one writer and any number of readers, none of whom ever waits.
///
/// Two threads that store at the same time are a programmer's error: readers then may see words of
/// both (never undefined behaviour). Debug builds assert against it.
pub struct SnapshotCell<const WORDS: usize> {
    version: Line<AtomicU64>,
    copies: [Line<[AtomicU64; WORDS]>; 2],
}

impl<const WORDS: usize> SnapshotCell<WORDS> {
    /// A cell that holds `words`.
    pub fn new(words: &[u64; WORDS]) -> Self {
        let copy = || Line(array::from_fn(|index| AtomicU64::new(words[index])));
        Self {
            version: Line(AtomicU64::new(0)),
            copies: [copy(), copy()],
        }
    }

    /// Replaces the words. Only one thread may store at a time.
    pub fn store(&self, words: &[u64; WORDS]) {
        let version = self.version.0.load(Ordering::Relaxed);
        let next = version.wrapping_add(1);
        fence(Ordering::Release); // P2
        for (word, value) in self.copy(next).iter().zip(words) {
            word.store(*value, Ordering::Relaxed);
        }
        debug_assert_eq!(
            version,
            self.version.0.load(Ordering::Relaxed),
            "two writers at once"
        );
        self.version.0.store(next, Ordering::Release); // P1
    }

    /// The words of one store, never a mixture of two; the newest that happens before this call,
    /// or a later one.
    #[inline]
    pub fn load(&self) -> [u64; WORDS] {
        let mut version = self.version.0.load(Ordering::Acquire); // P1
        loop {
            let copy = self.copy(version);
            let words = array::from_fn(|index| copy[index].load(Ordering::Relaxed));
            fence(Ordering::Acquire); // P2
            let again = self.version.0.load(Ordering::Acquire); // P1 of the next round
            if again == version {
                return words;
            }
            version = again;
        }
    }

    #[inline]
    fn copy(&self, version: u64) -> &[AtomicU64; WORDS] {
        &self.copies[usize::from(version % 2 == 1)].0
    }
}

#[cfg(all(test, not(stockade_loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::SnapshotCell;

    #[test]
    fn load_gives_what_was_stored() {
        let cell = SnapshotCell::new(&[1, 2, 3]);
        assert_eq!(cell.load(), [1, 2, 3]);
        for round in 0..5 {
            cell.store(&[round, round + 1, round + 2]);
            assert_eq!(cell.load(), [round, round + 1, round + 2]);
        }
    }

    #[test]
    fn readers_never_see_a_mixture_nor_go_back() {
        let cell = SnapshotCell::new(&[0; 7]);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut last = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let words = cell.load();
                        assert!(
                            words.iter().all(|word| *word == words[0]),
                            "torn: {words:?}"
                        );
                        assert!(words[0] >= last, "went back from {last} to {}", words[0]);
                        last = words[0];
                    }
                });
            }
            for round in 1..200_000 {
                cell.store(&[round; 7]);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}

/// `RUSTFLAGS="--cfg stockade_loom" cargo test --profile loom --lib loom_`
#[cfg(all(test, stockade_loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU64, Ordering};
    use loom::thread;

    use super::SnapshotCell;

    #[test]
    fn loom_a_reader_never_sees_a_torn_value() {
        loom::model(|| {
            let cell = Arc::new(SnapshotCell::new(&[0, 0]));
            let writer = {
                let cell = Arc::clone(&cell);
                thread::spawn(move || {
                    for round in 1..=3 {
                        cell.store(&[round, round]);
                    }
                })
            };
            let [first, second] = cell.load();
            assert_eq!(first, second);
            writer.join().expect("the writer must not panic");
            assert_eq!(cell.load(), [3, 3]);
        });
    }

    #[test]
    fn loom_a_reader_told_of_a_store_sees_it() {
        loom::model(|| {
            let cell = Arc::new(SnapshotCell::new(&[0, 0]));
            let told = Arc::new(AtomicU64::new(0));
            let writer = {
                let (cell, told) = (Arc::clone(&cell), Arc::clone(&told));
                thread::spawn(move || {
                    for round in 1..=2 {
                        cell.store(&[round, round]);
                        told.store(round, Ordering::Release);
                    }
                })
            };
            let floor = told.load(Ordering::Acquire);
            let [first, second] = cell.load();
            assert_eq!(first, second);
            assert!(first >= floor, "told of {floor}, saw {first}");
            writer.join().expect("the writer must not panic");
        });
    }
}
